package clientapi

import (
	"testing"

	"github.com/plexus-p2p/plexus/node/ephemeral"
)

// Who typed when the node went down is not shown as typing for ever: a client keeps what it was told until it is told
// otherwise.
func TestTypingEndsWithARestart(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room, quiet := alice.room(), alice.room()
	bob.join(room)
	bob.join(quiet)
	alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/typing/"+string(alice.user), map[string]any{"typing": true})
	body := bob.sync("")
	if e := body.Rooms.Join[room].Ephemeral.find("m.typing"); e == nil {
		t.Fatalf("alice does not type: %s", body.raw)
	}
	s.restart()
	after := bob.sync(body.NextBatch)
	e := after.Rooms.Join[room].Ephemeral.find("m.typing")
	if e == nil || len(e.Content["user_ids"].([]any)) != 0 {
		t.Errorf("after a restart: %s", after.raw)
	}
	if again := bob.sync(after.NextBatch); len(again.Rooms.Join) != 0 {
		t.Errorf("told twice: %s", again.raw)
	}
}

// restart is what a new process makes of the API: nothing is left of what was ephemeral or is reckoned anew.
func (s *testServer) restart() {
	s.API.Ephemeral = ephemeral.New(s.time)
	s.t.Cleanup(s.API.Ephemeral.Close)
	s.API.unreads = newUnreadCache()
	s.API.boot++
}
