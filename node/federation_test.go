package node_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/p2p/net/gostream"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/p2ptransport"
)

// logs collects what a node logs.
type logs struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

// lines counts the lines that name all the words.
func (l *logs) lines(words ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.all.String()) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			n++
		}
	}
	return n
}

func runNode(t testing.TB, peers ...string) (*node.Node, *logs) {
	t.Helper()
	return runNodeOn(t, nil, peers...)
}

// runNodeOn is runNode with a transport made by the test; nil: libp2p.
func runNodeOn(t testing.TB, transport func(p2ptransport.Config) (p2ptransport.Transport, error), peers ...string) (*node.Node, *logs) {
	t.Helper()
	return runNodeWith(t, func(c *node.Config) { c.Peers, c.Transport = peers, transport })
}

// runNodeWith is runNode with a configuration that the test changes.
func runNodeWith(t testing.TB, change func(*node.Config)) (*node.Node, *logs) {
	t.Helper()
	l := &logs{}
	config := node.Config{
		Dir: t.TempDir(), ClientAddrs: []string{"127.0.0.1:0"}, P2PAddrs: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, NoMDNS: true,
		Registration: clientapi.RegistrationOpen, NoRateLimits: true,
		Log: slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	change(&config)
	n, err := node.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, n.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(l.all.String())
		}
	})
	return n, l
}

// localUser is a user of the node, over its client API.
type localUser struct {
	t           testing.TB
	base, token string
	id          eventgraph.UserID
	txn         int
}

func register(t testing.TB, n *node.Node, name string) *localUser {
	t.Helper()
	u := &localUser{t: t, base: n.ClientURL()}
	var answer struct {
		User  eventgraph.UserID `json:"user_id"`
		Token string            `json:"access_token"`
	}
	u.must("POST", "/register", map[string]any{"username": name, "password": "a password for " + name, "auth": map[string]string{"type": "m.login.dummy"}}, &answer)
	u.id, u.token = answer.User, answer.Token
	return u
}

func (u *localUser) do(method, path string, body any) (int, []byte) {
	u.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		u.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(u.t.Context(), method, u.base+"/_matrix/client/v3"+path, bytes.NewReader(raw))
	if err != nil {
		u.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer res.Body.Close()
	if raw, err = io.ReadAll(res.Body); err != nil {
		u.t.Fatal(err)
	}
	return res.StatusCode, raw
}

func (u *localUser) must(method, path string, body, out any) {
	u.t.Helper()
	status, raw := u.do(method, path, body)
	if status != http.StatusOK {
		u.t.Fatalf("%s %s: %d %s", method, path, status, raw)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			u.t.Fatal(err)
		}
	}
}

func (u *localUser) create(body map[string]any) eventgraph.RoomID {
	u.t.Helper()
	var made struct {
		Room eventgraph.RoomID `json:"room_id"`
	}
	u.must("POST", "/createRoom", body, &made)
	return made.Room
}

func (u *localUser) say(room eventgraph.RoomID, text string) eventgraph.EventID {
	u.t.Helper()
	u.txn++
	var sent struct {
		Event eventgraph.EventID `json:"event_id"`
	}
	u.must("PUT", fmt.Sprintf("/rooms/%s/send/m.room.message/t%d", url.PathEscape(string(room)), u.txn), map[string]string{"msgtype": "m.text", "body": text}, &sent)
	return sent.Event
}

// shows says whether the user is shown the event, and with what body.
func (u *localUser) shows(room eventgraph.RoomID, id eventgraph.EventID) (body string, ok bool) {
	u.t.Helper()
	status, raw := u.do("GET", "/rooms/"+url.PathEscape(string(room))+"/event/"+url.PathEscape(string(id)), nil)
	var e struct{ Content struct{ Body string } }
	json.Unmarshal(raw, &e)
	return e.Content.Body, status == http.StatusOK
}

func TestPlainPeer(t *testing.T) {
	n, _ := runNode(t)
	alice := register(t, n, "alice")
	p := newPlainPeer(t, n.ServerName(), n.P2PAddrs())
	pat := p.user("pat")

	t.Run("joins, sends, receives, is served", func(t *testing.T) {
		room := alice.create(map[string]any{"preset": "public_chat", "name": "Open"})
		before := alice.say(room, "before pat came")
		r := p.join(room, pat)

		mine := p.build(r.version, p.draft(r, pat, "hello from a plain peer"))
		if status, answer := p.send(as{}, "1", []json.RawMessage{mine.Raw()}, nil); status != 200 || answer[mine.ID()].Error != "" {
			t.Fatalf("send: %d %v", status, answer)
		}
		if body, ok := alice.shows(room, mine.ID()); !ok || body != "hello from a plain peer" {
			t.Errorf("alice is shown %q, %v", body, ok)
		}
		theirs := alice.say(room, "hello pat")
		p.until("alice's message", func() bool {
			for _, raw := range p.got {
				if e, err := eventgraph.ParseEvent(r.version, raw); err == nil && e.ID() == theirs {
					return true
				}
			}
			return false
		})

		var answer struct{ PDUs []json.RawMessage }
		p.get("GET", "/_matrix/federation/v1/event/"+url.PathEscape(string(theirs)), nil, &answer)
		if len(answer.PDUs) != 1 {
			t.Errorf("GET event answered %d PDUs", len(answer.PDUs))
		}
		p.get("GET", "/_matrix/federation/v1/backfill/"+url.PathEscape(string(room))+"?limit=50&v="+url.QueryEscape(string(r.join.ID())), nil, &answer)
		found := false
		for _, raw := range answer.PDUs {
			e, err := eventgraph.ParseEvent(r.version, raw)
			found = found || err == nil && e.ID() == before
		}
		if !found {
			t.Errorf("backfill does not hold what was said before the join (history is shared): %d PDUs", len(answer.PDUs))
		}
		var ids struct {
			IDs []eventgraph.EventID `json:"pdu_ids"`
		}
		p.get("GET", "/_matrix/federation/v1/state_ids/"+url.PathEscape(string(room))+"?event_id="+url.QueryEscape(string(theirs)), nil, &ids)
		if len(ids.IDs) < 5 {
			t.Errorf("state_ids: %v", ids.IDs)
		}
	})

	t.Run("is not served what it may not see", func(t *testing.T) {
		room := alice.create(map[string]any{"preset": "private_chat"})
		secret := alice.say(room, "not for you")
		for _, target := range []string{"event/" + url.PathEscape(string(secret)), "backfill/" + url.PathEscape(string(room)) + "?limit=5&v=" + url.QueryEscape(string(secret)),
			"state/" + url.PathEscape(string(room)) + "?event_id=" + url.QueryEscape(string(secret)), "event_auth/" + url.PathEscape(string(room)) + "/" + url.PathEscape(string(secret))} {
			status, raw := p.call(as{}, "GET", "/_matrix/federation/v1/"+target, nil)
			if status == 200 && bytes.Contains(raw, []byte("not for you")) || status/100 != 4 {
				t.Errorf("%s: %d %s", target, status, raw)
			}
		}
	})

	t.Run("is invited", func(t *testing.T) {
		room := alice.create(map[string]any{"preset": "private_chat"})
		alice.must("POST", "/rooms/"+url.PathEscape(string(room))+"/invite", map[string]any{"user_id": pat}, nil)
		p.until("the invite", func() bool { return bytes.Contains(p.invite, []byte(room)) })
		r := p.join(room, pat)
		if alice.say(room, "welcome"); r.join.Membership() != "join" {
			t.Errorf("membership %q", r.join.Membership())
		}
	})
}

// TestWrongInput sends what a hostile or broken peer may send; each has its answer, and is logged once.
func TestWrongInput(t *testing.T) {
	n, l := runNode(t)
	alice := register(t, n, "alice")
	p := newPlainPeer(t, n.ServerName(), n.P2PAddrs())
	pat := p.user("pat")
	room := alice.create(map[string]any{"preset": "public_chat"})
	r := p.join(room, pat)
	txn := 0
	send := func(pdus ...json.RawMessage) (int, map[eventgraph.EventID]struct{ Error string }) {
		txn++
		return p.send(as{}, fmt.Sprintf("w%d", txn), pdus, nil)
	}
	// refused checks for 200, an error under the event's ID, nothing stored, and one line in the log.
	refused := func(t *testing.T, id eventgraph.EventID, raw json.RawMessage) {
		t.Helper()
		status, answer := send(raw)
		if status != 200 || answer[id].Error == "" {
			t.Errorf("answer %d %v, want 200 and an error under %s", status, answer, id)
		}
		if got := l.lines(string(id), "refused"); got != 1 {
			t.Errorf("logged %d times", got)
		}
		if s, body := p.call(as{}, "GET", "/_matrix/federation/v1/event/"+url.PathEscape(string(id)), nil); s != 404 {
			t.Errorf("the event is served: %d %s", s, body)
		}
	}
	raw := func(e *eventgraph.Event, change func(map[string]any)) json.RawMessage {
		var object map[string]any
		d := json.NewDecoder(bytes.NewReader(e.Raw()))
		d.UseNumber()
		if err := d.Decode(&object); err != nil {
			t.Fatal(err)
		}
		change(object)
		out, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	t.Run("bad signature", func(t *testing.T) {
		e := p.build(r.version, p.draft(r, pat, "forged"))
		_, wrong, _ := ed25519.GenerateKey(nil)
		forged, err := eventgraph.SignJSON(raw(e, func(o map[string]any) { delete(o, "signatures") }), eventgraph.SigningKey{Server: p.key.Server, ID: p.key.ID, Private: wrong})
		if err != nil {
			t.Fatal(err)
		}
		refused(t, e.ID(), forged)
	})
	t.Run("no signature", func(t *testing.T) {
		e := p.build(r.version, p.draft(r, pat, "unsigned"))
		refused(t, e.ID(), raw(e, func(o map[string]any) { o["signatures"] = map[string]any{} }))
	})
	t.Run("over 64 KiB", func(t *testing.T) {
		e := p.build(r.version, p.draft(r, pat, "large"))
		large := raw(e, func(o map[string]any) {
			o["content"] = map[string]any{"msgtype": "m.text", "body": strings.Repeat("x", 66_000)}
		})
		refused(t, e.ID(), large) // the content of a message is no part of its ID
	})
	t.Run("unknown room", func(t *testing.T) {
		d := p.draft(r, pat, "nowhere")
		d.RoomID = "!" + eventgraph.RoomID(strings.Repeat("A", 43))
		e := p.build(r.version, d)
		status, answer := send(e.Raw())
		if status != 200 || len(answer) != 0 {
			t.Errorf("answer %d %v, want 200 and no entry", status, answer)
		}
		if got := l.lines(string(d.RoomID)); got != 1 {
			t.Errorf("logged %d times", got)
		}
	})
	t.Run("wrong content hash", func(t *testing.T) {
		e := p.build(r.version, p.draft(r, pat, "genuine"))
		status, answer := send(raw(e, func(o map[string]any) { o["content"].(map[string]any)["body"] = "changed on the way" }))
		if status != 200 || answer[e.ID()].Error != "" {
			t.Fatalf("answer %d %v", status, answer)
		}
		if body, ok := alice.shows(room, e.ID()); !ok || body != "" {
			t.Errorf("alice is shown %q, %v; want it redacted", body, ok)
		}
		if got := l.lines(string(e.ID())); got != 1 {
			t.Errorf("logged %d times", got)
		}
		r.last = e
	})
	t.Run("not allowed by its auth events", func(t *testing.T) {
		d := p.draft(r, p.user("nobody"), "I never joined")
		e := p.build(r.version, d)
		status, answer := send(e.Raw())
		if status != 200 {
			t.Errorf("answer %d %v", status, answer)
		}
		if _, ok := alice.shows(room, e.ID()); ok {
			t.Error("a rejected event is shown")
		}
		if got := l.lines(string(e.ID())); got != 1 {
			t.Errorf("logged %d times", got)
		}
	})
	t.Run("not allowed by the current state", func(t *testing.T) {
		// Pat is banned; its next message is built on what was before, where it was allowed.
		e := p.build(r.version, p.draft(r, pat, "from before the ban"))
		alice.must("POST", "/rooms/"+url.PathEscape(string(room))+"/ban", map[string]any{"user_id": pat}, nil)
		status, answer := send(e.Raw())
		if status != 200 || answer[e.ID()].Error != "" {
			t.Errorf("answer %d %v", status, answer)
		}
		if _, ok := alice.shows(room, e.ID()); ok {
			t.Error("a soft-failed event is shown")
		}
		if got := l.lines(string(e.ID())); got != 1 {
			t.Errorf("logged %d times", got)
		}
		alice.must("POST", "/rooms/"+url.PathEscape(string(room))+"/unban", map[string]any{"user_id": pat}, nil)
		r = p.join(room, pat)
	})
	t.Run("not allowed by the state before", func(t *testing.T) {
		// The auth events are those of before the ban, the parent is after it.
		d := p.draft(r, pat, "in spite of the ban")
		ban := map[string]any{"user_id": pat}
		alice.must("POST", "/rooms/"+url.PathEscape(string(room))+"/ban", ban, nil)
		banned := func() *eventgraph.Event {
			for _, raw := range p.got {
				if e, err := eventgraph.ParseEvent(r.version, raw); err == nil && e.Membership() == "ban" && e.Depth() > r.last.Depth() {
					return e
				}
			}
			return nil
		}
		p.until("the ban", func() bool { return banned() != nil })
		p.mu.Lock()
		b := banned()
		p.mu.Unlock()
		d.PrevEvents, d.Depth = []eventgraph.EventID{b.ID()}, b.Depth()+1
		e := p.build(r.version, d)
		send(e.Raw())
		if _, ok := alice.shows(room, e.ID()); ok {
			t.Error("a rejected event is shown")
		}
		if got := l.lines(string(e.ID())); got != 1 {
			t.Errorf("logged %d times", got)
		}
		alice.must("POST", "/rooms/"+url.PathEscape(string(room))+"/unban", ban, nil)
		r = p.join(room, pat)
	})
	t.Run("wrong origin or destination", func(t *testing.T) {
		_, stranger, _ := ed25519.GenerateKey(nil)
		for name, who := range map[string]as{
			"origin of another server":  {origin: eventgraph.NewServerName(stranger.Public().(ed25519.PublicKey)), key: stranger},
			"origin is the node itself": {origin: n.ServerName()},
			"destination":               {destination: eventgraph.NewServerName(stranger.Public().(ed25519.PublicKey))},
			"signature":                 {key: stranger},
		} {
			if status, _ := p.send(who, "x"+url.PathEscape(name), nil, nil); status != 401 {
				t.Errorf("%s: %d, want 401", name, status)
			}
			if got := l.lines("request of a peer refused", "/x"+name); got != 1 {
				t.Errorf("%s: logged %d times", name, got)
			}
		}
	})
	t.Run("too many", func(t *testing.T) {
		e := p.build(r.version, p.draft(r, pat, "again and again"))
		if status, _ := send(repeat(json.RawMessage(e.Raw()), 51)...); status != 400 {
			t.Errorf("51 PDUs: %d, want 400", status)
		}
		if status, _ := p.send(as{}, "edus", nil, repeat(any(map[string]any{"edu_type": "m.typing", "content": map[string]any{}}), 101)); status != 400 {
			t.Errorf("101 EDUs: %d, want 400", status)
		}
		if _, ok := alice.shows(room, e.ID()); ok {
			t.Error("an event of a transaction that was refused is shown")
		}
		for _, id := range []string{fmt.Sprintf("w%d", txn), "edus"} {
			if got := l.lines("request of a peer refused", "/send/"+id+" "); got != 1 {
				t.Errorf("transaction %s: logged %d times", id, got)
			}
		}
	})
	t.Run("a stream that stops in the middle", func(t *testing.T) {
		e := p.build(r.version, p.draft(r, pat, "cut off"))
		stream, err := gostream.Dial(t.Context(), p.host, p.host.Network().Peers()[0], federationProtocol)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(stream, "PUT /_matrix/federation/v1/send/cut HTTP/1.1\r\nHost: plexus\r\nContent-Length: 100000\r\nContent-Type: application/json\r\n\r\n{\"pdus\":[%s", e.Raw())
		stream.Close()
		if _, ok := alice.shows(room, e.ID()); ok {
			t.Error("an event of a transaction that never arrived whole is shown")
		}
	})
	t.Run("server denied by ACL", func(t *testing.T) {
		alice.must("PUT", "/rooms/"+url.PathEscape(string(room))+"/state/m.room.server_acl/", map[string]any{"allow": []string{"*"}, "deny": []string{string(p.key.Server)}}, nil)
		e := p.build(r.version, p.draft(r, pat, "denied"))
		status, answer := send(e.Raw())
		if status != 200 || answer[e.ID()].Error == "" {
			t.Errorf("answer %d %v", status, answer)
		}
		if _, ok := alice.shows(room, e.ID()); ok {
			t.Error("the event of a denied server is shown")
		}
		if status, _ := p.call(as{}, "GET", "/_matrix/federation/v1/state_ids/"+url.PathEscape(string(room))+"?event_id="+url.QueryEscape(string(r.join.ID())), nil); status != 403 {
			t.Errorf("state_ids for a denied server: %d, want 403", status)
		}
		if got := l.lines(string(e.ID())); got != 1 {
			t.Errorf("logged %d times", got)
		}
	})
}

func repeat[T any](v T, n int) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = v
	}
	return all
}
