package clientapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// types says that the client's user types in a room, or does no more.
func (c client) types(room eventgraph.RoomID, on bool) {
	c.s.t.Helper()
	c.call(200, "PUT", "/v3/rooms/"+string(room)+"/typing/"+string(c.user), map[string]any{"typing": on, "timeout": 10000})
}

// Who types, and who has read what, is told in the room, without its ID, and nobody outside hears anything of it (CS API, Typing, Receipts).
func TestTypingAndReceiptsStayInTheRoom(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat"}`)
	bob.inRoom(200, room, "join", nil)
	said := bob.say(room, "read me")
	carols := carol.sync("").NextBatch
	since := bob.sync("").NextBatch
	for _, on := range []bool{true, false} {
		alice.types(room, on)
		body := bob.sync(since)
		e := body.Rooms.Join[room].Ephemeral.find("m.typing")
		if e == nil || e.Room != "" || slices.Contains(e.Content["user_ids"].([]any), any(string(alice.user))) != on {
			t.Errorf("typing %v: %s", on, body.raw)
		}
		since = body.NextBatch
	}
	alice.types(room, true)
	alice.inRoom(200, room, "receipt/m.read/"+string(said), struct{}{})
	body := bob.sync(since)
	e := body.Rooms.Join[room].Ephemeral.find("m.receipt")
	if e == nil || e.Room != "" || e.Content[string(said)] == nil {
		t.Errorf("receipt: %s", body.raw)
	}
	for _, token := range []string{"", carols} {
		if body := carol.sync(token); strings.Contains(body.raw, string(room)) || strings.Contains(body.raw, "m.typing") {
			t.Errorf("carol hears %s", body.raw)
		}
	}
}

// presences are what a sync tells of others' presence.
func (b syncBody) presences() map[eventgraph.UserID]string {
	out := map[eventgraph.UserID]string{}
	for _, e := range b.Presence.Events {
		presence, _ := e.Content["presence"].(string)
		out[e.Sender] = presence
		if message, ok := e.Content["status_msg"].(string); ok {
			out[e.Sender] += " " + message
		}
	}
	return out
}

// Those who share a room are told how present somebody is, set by request or by sync, in a first sync and when they come (CS API, Presence).
func TestPresenceIsTold(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	// alice meets bob in one room and carol in another; these two do not meet.
	rooms := map[client]eventgraph.RoomID{bob: alice.createRoom(`{}`), carol: alice.createRoom(`{}`)}
	since := alice.sync("").NextBatch
	for c, room := range rooms {
		c.call(200, "PUT", "/v3/presence/"+string(c.user)+"/status", map[string]any{"presence": "online"})
		alice.invite(room, c)
		c.inRoom(200, room, "join", nil)
	}
	for what, token := range map[string]string{"first": "", "incremental": since} {
		got := alice.sync(token).presences()
		if got[bob.user] != "online" || got[carol.user] != "online" {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got := bob.sync("").presences(); got[carol.user] != "" {
		t.Errorf("bob is told of carol: %v", got)
	}
	path := "/v3/presence/" + string(bob.user) + "/status"
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { bob.sync("", "set_presence=unavailable") }, "unavailable"},
		{func() { bob.call(200, "PUT", path, map[string]any{"presence": "online", "status_msg": "here"}) }, "online here"},
		{func() { bob.call(200, "PUT", path, map[string]any{"presence": "unavailable"}) }, "unavailable"},
	} {
		since := alice.sync("").NextBatch
		step.do()
		if got := alice.sync(since).presences(); got[bob.user] != step.want {
			t.Errorf("%v, want %s", got, step.want)
		}
	}
}
