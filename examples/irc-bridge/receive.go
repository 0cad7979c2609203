package main

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxTransaction = 1 << 20 // bytes
	// keptTransactions is how many transaction IDs are remembered, so that one that is repeated is done once.
	keptTransactions = 100
	// eventAge is how old a message may be that is still said on IRC: after a long pause nobody wants all of them.
	eventAge = time.Hour
)

// event is what is looked at of a room event.
type event struct {
	Type     string          `json:"type"`
	Room     string          `json:"room_id"`
	Sender   string          `json:"sender"`
	StateKey *string         `json:"state_key"`
	TS       int64           `json:"origin_server_ts"`
	Content  json.RawMessage `json:"content"`
	Unsigned struct {
		Prev struct {
			Membership string `json:"membership"`
			Name       string `json:"displayname"`
		} `json:"prev_content"`
	} `json:"unsigned"`
}

// calls answers the homeserver (Application Service API).
func (b *bridge) calls(hsToken string) http.Handler {
	mux := http.NewServeMux()
	var oneAtATime sync.Mutex
	mux.HandleFunc("PUT /_matrix/app/v1/transactions/{id}", func(w http.ResponseWriter, r *http.Request) {
		oneAtATime.Lock()
		defer oneAtATime.Unlock()
		id := r.PathValue("id")
		if slices.Contains(b.answered, id) {
			answer(w, http.StatusOK, "")
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTransaction))
		var transaction struct {
			Events []event `json:"events"`
		}
		if err == nil {
			err = json.Unmarshal(body, &transaction)
		}
		if err != nil {
			answer(w, http.StatusBadRequest, "M_BAD_JSON")
			return
		}
		if !b.connected(r.Context()) {
			answer(w, http.StatusServiceUnavailable, "M_UNKNOWN") // it comes again
			return
		}
		for _, e := range transaction.Events {
			b.fromMatrix(r.Context(), &e)
		}
		b.answered = append(b.answered, id)
		b.answered = b.answered[max(0, len(b.answered)-keptTransactions):]
		answer(w, http.StatusOK, "")
	})
	mux.HandleFunc("POST /_matrix/app/v1/ping", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "") })
	// Ghosts and rooms are made when IRC has them, not when somebody asks.
	unknown := func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusNotFound, "M_NOT_FOUND") }
	mux.HandleFunc("GET /_matrix/app/v1/users/{user}", unknown)
	mux.HandleFunc("GET /_matrix/app/v1/rooms/{alias}", unknown)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusNotFound, "M_UNRECOGNIZED") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+hsToken)) != 1 {
			answer(w, http.StatusForbidden, "M_FORBIDDEN")
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, status int, code string) {
	body := map[string]string{}
	if code != "" {
		body["errcode"] = code
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error means that the homeserver has gone
}

// connected says whether IRC takes what is said, and has let us into all channels or refused to. Until then the homeserver keeps it.
func (b *bridge) connected(ctx context.Context) bool {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.irc != nil && len(b.joined) == len(b.channel)
}

// fromMatrix says on IRC what happened in a room.
func (b *bridge) fromMatrix(ctx context.Context, e *event) {
	channel := b.channel[e.Room]
	if channel == "" || b.isGhost(e.Sender) || time.Since(time.UnixMilli(e.TS)) > eventAge {
		return
	}
	var lines []string
	switch e.Type {
	case "m.room.message":
		lines = b.message(ctx, e, channel)
	case "m.room.member":
		lines = b.membership(e)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range lines {
		if b.irc == nil || !b.joined[e.Room] || !b.irc.send("PRIVMSG %s :%s", channel, text) {
			log.Printf("a line of %s did not reach IRC", e.Sender)
		}
	}
}

// message is a message as lines of IRC, with who says it.
func (b *bridge) message(ctx context.Context, e *event, channel string) []string {
	var content struct {
		Kind     string `json:"msgtype"`
		Body     string `json:"body"`
		URL      string `json:"url"`
		Filename string `json:"filename"`
	}
	if json.Unmarshal(e.Content, &content) != nil || content.Body == "" {
		return nil
	}
	name := shorten(b.matrix.displayName(ctx, e.Room, e.Sender))
	switch content.Kind {
	case "m.emote":
		return split(content.Body, channel, "\x01ACTION * "+name+" ", "\x01")
	case "m.image", "m.file", "m.audio", "m.video":
		if content.Filename == "" {
			content.Filename = content.Body
		}
		return split(fmt.Sprintf("%s (%s)", content.Filename, b.mediaLink(content.URL)), channel, "<"+name+"> sent ", "")
	}
	return split(content.Body, channel, "<"+name+"> ", "")
}

// maxName is how much of a display name is shown, in bytes.
const maxName = 60

func shorten(name string) string {
	name = clean(name)
	return strings.ToValidUTF8(name[:min(len(name), maxName)], "")
}

// membership tells who of Matrix has come or gone.
func (b *bridge) membership(e *event) []string {
	var content struct {
		Membership string `json:"membership"`
		Name       string `json:"displayname"`
	}
	if e.StateKey == nil || b.isGhost(*e.StateKey) || json.Unmarshal(e.Content, &content) != nil {
		return nil
	}
	was := e.Unsigned.Prev.Membership == "join" // a change of name is a join too
	name := shorten(cmp.Or(content.Name, e.Unsigned.Prev.Name, localpartOf(*e.StateKey)))
	switch is := content.Membership == "join"; {
	case is && !was:
		return []string{"* " + name + " has joined on Matrix"}
	case was && !is:
		return []string{"* " + name + " has left on Matrix"}
	}
	return nil
}

// mediaLink is where a file can be had by who has an account on the homeserver.
func (b *bridge) mediaLink(mxc string) string {
	rest, is := strings.CutPrefix(mxc, "mxc://")
	server, id, ok := strings.Cut(rest, "/")
	if !is || !ok {
		return mxc
	}
	return b.matrix.base + "/_matrix/media/v3/download/" + url.PathEscape(server) + "/" + url.PathEscape(id)
}
