package clientapi

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// declining is a Remote whose policy server has something against everything.
type declining struct {
	*unreachable
	err error
}

func (d *declining) Send(context.Context, rooms.Draft) (eventgraph.EventID, error) { return "", d.err }

// Whatever makes an event asks the room's policy server, and answers its error as it is, as far as it may say that (SS API, Validating Policy
// Server signatures).
func TestPolicyServerDeclines(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	said := alice.message(room, `{"body":"before"}`)
	remote := &declining{unreachable: s.remote}
	s.SetRemote(remote)
	path := "/v3/rooms/" + string(room)
	for _, c := range []struct {
		given  int
		code   string
		after  time.Duration
		status int
		want   string
	}{
		{400, "M_FORBIDDEN", 0, 400, "M_FORBIDDEN"},
		{403, "M_FORBIDDEN", 0, 403, "M_FORBIDDEN"},
		{404, "M_NOT_FOUND", 0, 404, "M_NOT_FOUND"},
		{400, "ORG.EXAMPLE.SPAM", 0, 400, "ORG.EXAMPLE.SPAM"},
		{429, "M_LIMIT_EXCEEDED", 7 * time.Second, 429, "M_LIMIT_EXCEEDED"},
		{429, "M_LIMIT_EXCEEDED", 0, 429, "M_LIMIT_EXCEEDED"},
		{401, "M_UNKNOWN_TOKEN", 0, 403, "M_FORBIDDEN"}, // or alice would be logged out
		{0, "M_FORBIDDEN", 0, 403, "M_FORBIDDEN"},
	} {
		remote.err = fmt.Errorf("sent: %w", &federation.PolicyError{Status: c.given, Refusal: rooms.Refusal{Code: c.code, Reason: "this looks like spam"}, RetryAfter: c.after})
		a := alice.call(c.status, "PUT", path+"/send/m.room.message/1", `{"body":"x"}`)
		if a.code() != c.want || a.body["error"] != "this looks like spam" {
			t.Errorf("%d %s: %s", c.given, c.code, a.raw)
		}
		if retry, _ := a.body["retry_after_ms"].(float64); c.status == http.StatusTooManyRequests && retry != float64(max(c.after, time.Second).Milliseconds()) {
			t.Errorf("retry_after_ms: %v", a.body["retry_after_ms"])
		}
	}
	remote.err = &federation.PolicyError{Status: 400, Refusal: rooms.Refusal{Code: "M_FORBIDDEN", Reason: "no"}}
	for _, q := range [][3]string{
		{"PUT", path + "/state/m.room.topic", `{"topic":"x"}`},
		{"PUT", path + "/redact/" + string(said) + "/2", `{}`},
		{"POST", path + "/ban", `{"user_id":"@bob:` + string(s.Server) + `"}`},
		{"POST", path + "/invite", `{"user_id":"@bob:` + string(s.Server) + `"}`},
	} {
		if a := alice.call(400, q[0], q[1], q[2]); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s %s: %s", q[0], q[1], a.raw)
		}
	}
}

// A room whose policy server is away says so, and what to do.
func TestPolicyServerAway(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	away := &federation.PolicyError{Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "it is away: change m.room.policy"}, Cause: context.DeadlineExceeded}
	s.SetRemote(&declining{s.remote, away})
	if a := alice.call(502, "PUT", "/v3/rooms/"+string(room)+"/send/m.room.message/1", `{"body":"x"}`); a.code() != "M_UNKNOWN" || a.body["error"] != away.Refusal.Reason {
		t.Errorf("%s", a.raw)
	}
}

// stuck is a Remote that gets no further with some rooms until it is let go, as with policy servers that do not answer.
type stuck struct {
	*unreachable
	rooms map[eventgraph.RoomID]bool
	letGo chan struct{}
}

func (s *stuck) Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	if s.rooms[d.Room] {
		<-s.letGo
		return "", &federation.PolicyError{Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "it is away"}, Cause: context.DeadlineExceeded}
	}
	return s.unreachable.rooms.Send(ctx, d)
}

// holding is a Remote that holds up the first thing that is sent until it is let go, as one whose policy server is slow.
type holding struct {
	*unreachable
	held         atomic.Bool
	began, letGo chan struct{}
}

func newHolding(s *testServer) *holding {
	h := &holding{unreachable: s.remote, began: make(chan struct{}), letGo: make(chan struct{})}
	s.SetRemote(h)
	return h
}

func (h *holding) Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	if h.held.CompareAndSwap(false, true) {
		close(h.began)
		<-h.letGo
	}
	return h.unreachable.rooms.Send(ctx, d)
}

// renamed begins to set the user's name; the channel gets the answer.
func (c client) renamed(name string) <-chan answer {
	ended := make(chan answer, 1)
	go func() {
		ended <- c.s.send("PUT", "/_matrix/client/v3/profile/"+string(c.user)+"/displayname", c.token, map[string]string{"displayname": name})
	}()
	return ended
}

// Who leaves a room while their new name waits to be told to it stays out.
func TestLateNameJoinsNobody(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	remote := newHolding(s)
	first := bob.renamed("First")
	<-remote.began
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", map[string]any{})
	close(remote.letGo)
	if a := <-first; a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if got := s.memberContent(room, bob.user); got != `{"membership":"leave"}` {
		t.Errorf("membership: %s", got)
	}
}

// A change that was held up does not stand over a later one.
func TestLateNameIsTheNewest(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	remote := newHolding(s)
	first := alice.renamed("First")
	<-remote.began
	if a := <-alice.renamed("Second"); a.status != 200 {
		t.Errorf("second: %d %s", a.status, a.raw)
	}
	close(remote.letGo)
	if a := <-first; a.status != 200 {
		t.Errorf("first: %d %s", a.status, a.raw)
	}
	if got := s.memberContent(room, alice.user); got != `{"displayname":"Second","membership":"join"}` {
		t.Errorf("membership: %s", got)
	}
}

// A changed name comes to the rooms whose policy server answers, though more than are written to at once do not.
func TestStuckRoomsHoldUpNoOthers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	remote := &stuck{unreachable: s.remote, rooms: map[eventgraph.RoomID]bool{}, letGo: make(chan struct{})}
	var good []eventgraph.RoomID
	for i := range 2*roomsAtOnce + 4 {
		room := alice.room()
		if i%5 == 4 {
			bob.join(room)
			good = append(good, room)
		} else {
			remote.rooms[room] = true
		}
	}
	s.SetRemote(remote)
	since := bob.sync("").NextBatch
	ended := make(chan answer, 1)
	go func() {
		ended <- s.send("PUT", "/_matrix/client/v3/profile/"+string(alice.user)+"/displayname", alice.token, `{"displayname":"Al"}`)
	}()
	told := map[eventgraph.RoomID]bool{}
	for len(told) < len(good) {
		got := bob.sync(since, "timeout=20000")
		since = got.NextBatch
		if len(got.Rooms.Join) == 0 {
			t.Errorf("%d of %d rooms were told", len(told), len(good))
			break
		}
		for room := range got.Rooms.Join {
			told[room] = true
		}
	}
	close(remote.letGo)
	if a := <-ended; a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
