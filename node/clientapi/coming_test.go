package clientapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// comes takes in the state of j's room, of which what is of the types may be shown while the rest comes.
func (j *joiningServer) comes(types ...string) {
	j.t.Helper()
	n := j.newRoom()
	if _, err := j.Rooms.AcceptAll(j.t.Context(), j.state, rooms.Basis{Kind: rooms.Nothing, New: &n}); err != nil {
		j.t.Fatal(err)
	}
	var show []eventgraph.EventID
	for _, e := range j.state {
		for _, want := range types {
			if e.Type() == want {
				show = append(show, e.ID())
			}
		}
	}
	j.note(func(r *store.Join) { r.Show, r.Arrived, r.Expected = show, 40, 100 })
}

// enters makes the room be there.
func (j *joiningServer) enters() {
	j.t.Helper()
	var ids []eventgraph.EventID
	for _, e := range j.state {
		ids = append(ids, e.ID())
	}
	if err := j.Rooms.Enter(j.t.Context(), j.join, j.newRoom(), ids); err != nil {
		j.t.Fatal(err)
	}
	j.note(func(r *store.Join) { r.Phase = "" })
}

// asks begins a request about the inside of the room. In virtual time.
func (j *joiningServer) asks(c client, path string) <-chan answer {
	j.t.Helper()
	a := make(chan answer, 1)
	go func() { a <- j.send("GET", "/_matrix/client/v3/rooms/"+string(j.room)+path, c.token, nil) }()
	synctest.Wait()
	return a
}

// What has come of a room's state is answered piece by piece; of what has not it is never said that there is none.
func TestStateOfComingRoom(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bob, berta := s.newClient("bob"), s.newClient("berta")
	j := elsewhere(t, s, bob)
	path := "/v3/rooms/" + string(j.room) + "/state/"
	j.note(func(r *store.Join) { r.Phase = store.JoinSent })
	bob.call(403, "GET", path+"m.room.name", nil)
	j.comes("m.room.name")

	for _, key := range []string{"", "/"} {
		if a := bob.call(200, "GET", path+"m.room.name"+key, nil); a.text("name") != "Far away" {
			t.Errorf("the name is %s", a.raw)
		}
	}
	a := bob.call(200, "GET", path+"m.room.name?format=event", nil)
	if a.text("type") != "m.room.name" || a.text("event_id") == "" {
		t.Errorf("as an event the name is %s", a.raw)
	}
	if a := bob.call(200, "GET", path+"m.room.member/"+string(bob.user), nil); a.text("membership") != "join" {
		t.Errorf("the user's own membership is %s", a.raw)
	}
	for _, other := range []string{"m.room.topic", "m.room.create", "m.room.name/x", "state", "m.room.member/" + string(berta.user)} {
		if a := bob.call(429, "GET", path+other, nil); a.text("errcode") != "M_LIMIT_EXCEEDED" || a.body["retry_after_ms"] == nil {
			t.Errorf("%s is answered with %s", other, a.raw)
		}
	}
	berta.call(403, "GET", path+"m.room.name", nil)
	if a := s.send("GET", "/_matrix/client"+path+"m.room.name", "", nil); a.status != 401 || a.text("errcode") != "M_MISSING_TOKEN" {
		t.Errorf("without a token: %d %s", a.status, a.raw)
	}
	j.enters()
	bob.call(404, "GET", path+"m.room.topic", nil)
}

// A client asks for a room's members once and keeps the answer, and takes an empty page of history for the room's beginning: both are held back until the
// room is there.
func TestReadsWaitForComingRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestAPI(t, nil)
		bob := s.newClient("bob")
		j := elsewhere(t, s, bob)
		path := "/v3/rooms/" + string(j.room)
		j.comes("m.room.name")
		began := time.Now()
		members, joined := j.asks(bob, "/members"), j.asks(bob, "/joined_members")
		history := j.asks(bob, "/messages?dir=b&from="+s.roomToken(0))
		if len(members)+len(joined)+len(history) > 0 {
			t.Fatal("answered about a room that is not there")
		}
		// Who has so many requests waiting is answered at once: a browser has few connections to a server, and needs one for /sync.
		bob.call(429, "GET", path+"/members", nil)
		other := s.logIn("bob", "OTHER")
		second := j.asks(other, "/members")
		// Nor does what writes wait.
		a := bob.call(429, "PUT", path+"/send/m.room.message/1", `{"msgtype":"m.text","body":"x"}`)
		if !strings.Contains(a.text("error"), "40 %") || !strings.Contains(a.text("error"), "sent") || a.body["retry_after_ms"] == nil {
			t.Errorf("a message is answered with %s", a.raw)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("who was to be refused at once waited %v", waited)
		}
		j.enters()
		for _, members := range []<-chan answer{members, second} {
			a := <-members
			if chunk, _ := a.body["chunk"].([]any); a.status != 200 || len(chunk) != 2 {
				t.Errorf("members: %d %s", a.status, a.raw)
			}
		}
		a = <-joined
		if all, _ := a.body["joined"].(map[string]any); a.status != 200 || len(all) != 2 {
			t.Errorf("joined members: %d %s", a.status, a.raw)
		}
		if a = <-history; a.status != 200 {
			t.Errorf("history: %d %s", a.status, a.raw)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("who waited for the room waited %v longer than it took", waited)
		}
	})
}

// A room takes as long as it takes: then the client comes again, as it is told, and others may wait.
func TestReadsOfComingRoomDoNotWaitForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestAPI(t, nil)
		bob := s.newClient("bob")
		j := elsewhere(t, s, bob)
		j.comes()
		for _, path := range []string{"/members", "/joined_members", "/messages?dir=b", "/context/$x", "/event/$x", "/aliases"} {
			began := time.Now()
			a := bob.call(429, "GET", "/v3/rooms/"+string(j.room)+path, nil)
			if a.text("errcode") != "M_LIMIT_EXCEEDED" || a.body["retry_after_ms"] == nil || !strings.Contains(a.text("error"), "40 %") {
				t.Errorf("%s is answered with %s", path, a.raw)
			}
			if waited := time.Since(began); waited != comingPatience {
				t.Errorf("%s waited %v", path, waited)
			}
		}
	})
}

// A request that waits ends with what it waits for: the join that comes to nothing, the room that is left, the device that is logged out, the client that
// goes away, the server.
func TestWaitForComingRoomEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestAPI(t, nil)
		bob := s.newClient("bob")
		j := elsewhere(t, s, bob)
		began := time.Now()

		j.comes()
		a := j.asks(bob, "/members")
		j.note(func(r *store.Join) { r.Phase = "" })
		if a := <-a; a.status != 403 || a.text("errcode") != "M_FORBIDDEN" {
			t.Errorf("of a room that did not come: %d %s", a.status, a.raw)
		}

		j.comes()
		other := s.logIn("bob", "OTHER")
		a = j.asks(other, "/members")
		other.call(200, "POST", "/v3/logout", nil)
		j.note(func(r *store.Join) { r.Arrived = 50 })
		if a := <-a; a.status != 401 {
			t.Errorf("to a device that was logged out: %d %s", a.status, a.raw)
		}

		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan bool)
		go func() {
			req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/_matrix/client/v3/rooms/"+string(j.room)+"/members", nil)
			if err != nil {
				t.Error(err)
			}
			req.Header.Set("Authorization", "Bearer "+bob.token)
			s.Handler().ServeHTTP(httptest.NewRecorder(), req)
			close(gone)
		}()
		synctest.Wait()
		cancel()
		<-gone

		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v though nothing was to be waited for", waited)
		}
	})
}

// When a client is to come again depends on how fast the room comes: matrix-js-sdk tries four times to send a message, and then calls it failed.
func TestRetryWhileRoomComes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bob := s.newClient("bob")
	j := elsewhere(t, s, bob)
	now := s.time()
	for _, c := range []struct {
		since             time.Duration
		arrived, expected int
		want              time.Duration
	}{
		{20 * time.Second, 40, 100, 30 * time.Second},
		{20 * time.Second, 80, 100, 5 * time.Second},
		{time.Millisecond, 40, 100, 5 * time.Second},
		{time.Hour, 1, 100, 30 * time.Second},
		{time.Hour, 100, 100, 5 * time.Second},
		{time.Hour, 120, 100, 5 * time.Second}, // others than expected
		{time.Hour, 0, 100, 5 * time.Second},
		{time.Hour, 10, 0, 5 * time.Second},
		{-time.Hour, 40, 100, 5 * time.Second}, // the clock was set back
	} {
		j.note(func(r *store.Join) {
			r.Since, r.Arrived, r.Expected = now.Add(-c.since).UnixMilli(), c.arrived, c.expected
		})
		a := bob.call(429, "PUT", "/v3/rooms/"+string(j.room)+"/send/m.room.message/1", `{"msgtype":"m.text","body":"x"}`)
		if ms, _ := a.body["retry_after_ms"].(float64); time.Duration(ms)*time.Millisecond != c.want {
			t.Errorf("%d of %d events in %v: %s, want %v", c.arrived, c.expected, c.since, a.raw, c.want)
		}
	}
}
