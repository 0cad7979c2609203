package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A device learns the ID of what it sends from the answer, and only then from /sync. Clients match the two by that ID: matrix-js-sdk, told first by
// /sync of a reply that begins a thread, takes it for a message that it has not sent, fails when the answer comes, and holds back what else is to be
// sent to the room for half a minute. So a poll that is about to show its own device's doing waits for the answers that are still owed. Other
// devices and users wait for nothing.

// sendAnswerPatience bounds that wait: an answer takes as long as its client reads, and a send may still wait for another server.
const sendAnswerPatience = time.Second

// openSends are the requests, of all devices, that make events and are not answered yet. They are as many as there are such requests.
type openSends struct {
	mu sync.Mutex
	of map[deviceKey][]*openSend
}

type openSend struct {
	room     eventgraph.RoomID // "": it is known once it is answered
	answered chan struct{}     // closed then
	gone     <-chan struct{}   // closed when its client hangs up
}

// makesEvents says whether a route's requests make events, and are answered with their IDs, or that of their room.
func makesEvents(method, path string) bool {
	path, ok := strings.CutPrefix(path, "/_matrix/client/v3/")
	inside := strings.TrimPrefix(path, "rooms/{roomId}/")
	switch verb, _, _ := strings.Cut(inside, "/"); verb {
	case "send", "redact", "state":
		return ok && method == http.MethodPut && inside != path
	case "createRoom", "join", "knock", "leave", "invite", "kick", "ban", "unban", "upgrade":
		return ok && method == http.MethodPost
	}
	return false
}

// begin notes a request that makes events; end is called when it has been answered, its error too.
func (o *openSends) begin(q *request) (end func()) {
	s := &openSend{answered: make(chan struct{}), gone: q.Context().Done()}
	for _, p := range q.params {
		if p.name == "roomId" {
			s.room = eventgraph.RoomID(p.value)
		}
	}
	key := deviceKey{user: q.user, device: q.device}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil {
		o.of = map[deviceKey][]*openSend{}
	}
	o.of[key] = append(o.of[key], s)
	return func() {
		close(s.answered)
		o.mu.Lock()
		defer o.mu.Unlock()
		if left := slices.DeleteFunc(o.of[key], func(other *openSend) bool { return other == s }); len(left) > 0 {
			o.of[key] = left
		} else {
			delete(o.of, key)
		}
	}
}

// by lists the requests of a device.
func (o *openSends) by(key deviceKey) []*openSend {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.of[key])
}

// awaitAnswers returns when the device has the answers to what this round shows of its doing, when sendAnswerPatience is over, or with ctx.
func (s *syncRound) awaitAnswers(ctx context.Context) {
	open := s.a.open.by(deviceKey{user: s.user, device: s.device})
	if len(open) == 0 {
		return
	}
	rooms, moved := s.ownNews()
	ctx, cancel := context.WithTimeout(ctx, sendAnswerPatience)
	defer cancel()
	for _, send := range open {
		if !rooms[send.room] && !(send.room == "" && moved) {
			continue
		}
		select {
		case <-send.answered:
		case <-send.gone:
		case <-ctx.Done():
			return
		}
	}
}

// ownNews lists the rooms of which the round shows events of the user's that are new, and says whether the user's membership is among them.
func (s *syncRound) ownNews() (rooms map[eventgraph.RoomID]bool, moved bool) {
	rooms = map[eventgraph.RoomID]bool{}
	for _, e := range s.members {
		if e.Sender() == s.user && e.Position > s.sincePosition() {
			rooms[e.RoomID()] = true
			key, ok := e.StateKey()
			moved = moved || ok && e.Type() == "m.room.member" && key == string(s.user)
		}
	}
	for room := range s.changes.membership {
		rooms[room], moved = true, true
	}
	return rooms, moved
}

// writeAtOnce answers with v, and returns when it is on its way. That needs its length: without, what ends the answer would only
// be written after the handler.
func (a *API) writeAtOnce(w http.ResponseWriter, v any) {
	if v == nil {
		v = struct{}{}
	}
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		a.Log.Error("a response could not be encoded", "error", err)
	}
	jsonHeader(w)
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(http.StatusOK)
	w.Write(body.Bytes())
	http.NewResponseController(w).Flush() // fails if the client has gone
}
