package clientapi

import (
	"strings"
	"testing"
)

// What happens in a room after somebody has left it is not theirs to read, whatever becomes of their membership later.
func TestFormerMembersReadTheStateOfTheirLeaving(t *testing.T) {
	t.Parallel()
	const withLeft = `filter={"room":{"include_leave":true}}`
	for name, later := range map[string]func(alice, bob client, room string){
		"nothing": func(client, client, string) {},
		"banned": func(alice, bob client, room string) {
			alice.call(200, "POST", "/v3/rooms/"+room+"/ban", map[string]any{"user_id": bob.user})
		},
		"banned, unbanned": func(alice, bob client, room string) {
			alice.call(200, "POST", "/v3/rooms/"+room+"/ban", map[string]any{"user_id": bob.user})
			alice.call(200, "POST", "/v3/rooms/"+room+"/unban", map[string]any{"user_id": bob.user})
		},
		"invite refused": func(alice, bob client, room string) {
			alice.call(200, "POST", "/v3/rooms/"+room+"/invite", map[string]any{"user_id": bob.user})
			bob.call(200, "POST", "/v3/rooms/"+room+"/leave", nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, nil)
			alice, bob := s.newClient("alice"), s.newClient("bob")
			room := alice.room()
			alice.state(room, "m.room.topic", "", `{"topic":"open"}`)
			bob.join(room)
			whileIn := bob.sync("").NextBatch
			bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
			gone := bob.sync(whileIn).NextBatch
			alice.state(room, "m.room.topic", "", `{"topic":"secret"}`)
			alice.state(room, "m.room.member", string(alice.user), `{"membership":"join","displayname":"secret"}`)
			alice.say(room, "secret")
			later(alice, bob, string(room))
			alice.state(room, "m.room.name", "", `{"name":"secret"}`)

			for what, raw := range map[string]string{
				"sync from the time inside":        bob.sync(whileIn).raw,
				"the same, state after":            bob.sync(whileIn, "use_state_after=true").raw,
				"sync from after leaving":          bob.sync(gone).raw,
				"the same, state after ":           bob.sync(gone, "use_state_after=true").raw,
				"initial sync with rooms left":     bob.sync("", withLeft).raw,
				"the same with state after":        bob.sync("", withLeft, "use_state_after=true").raw,
				"full state":                       bob.sync(gone, withLeft, "full_state=true").raw,
				"members":                          bob.call(200, "GET", "/v3/rooms/"+string(room)+"/members", nil).raw,
				"messages":                         bob.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=50", nil).raw,
				"messages with members of senders": bob.call(200, "GET", "/v3/rooms/"+string(room)+`/messages?dir=b&limit=50&filter={"lazy_load_members":true}`, nil).raw,
			} {
				if strings.Contains(raw, "secret") {
					t.Errorf("%s: %s", what, raw)
				}
			}
			if topic := bob.call(200, "GET", "/v3/rooms/"+string(room)+"/state/m.room.topic", nil); topic.text("topic") != "open" {
				t.Errorf("topic: %s", topic.raw)
			}
		})
	}
}

// A client that slept over both the leaving and the forgetting is not told what came between.
func TestForgettingMovesNoLeaving(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	token := bob.sync("").NextBatch
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
	alice.state(room, "m.room.topic", "", `{"topic":"secret"}`)
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/forget", nil)
	body := bob.sync(token, "use_state_after=true")
	if _, ok := body.Rooms.Leave[room]; !ok || strings.Contains(body.raw, "secret") {
		t.Errorf("%s", body.raw)
	}
}
