package clientapi

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// Knock sends the knock here, as federation does of a room that is held.
func (l localJoins) Knock(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, _ []eventgraph.ServerName, content json.RawMessage) error {
	if !l.rooms.InRoom(room, user.Server()) {
		return &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "no server is known that is in the room"}
	}
	return l.Join(ctx, room, user, nil, content)
}

func TestKnockByClient(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.call(200, "POST", "/v3/createRoom", `{"room_alias_name":"door","name":"Behind the door","preset":"private_chat"}`).text("room_id")
	path := "/v3/rooms/" + room
	refused := func(when string) {
		t.Helper()
		if a := bob.call(403, "POST", "/v3/knock/"+room, `{}`); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", when, a.raw)
		}
	}
	refused("a room that nobody may knock on")
	alice.call(200, "PUT", path+"/state/m.room.join_rules", `{"join_rule":"knock"}`)
	bob.call(403, "POST", "/v3/join/"+room, `{}`)

	since := alice.call(200, "GET", "/v3/sync", nil).text("next_batch")
	for _, target := range []string{"%23door:" + string(s.Server), room} { // a second knock is no error
		if a := bob.call(200, "POST", "/v3/knock/"+target+"?via="+string(s.Server), `{"reason":"let me in"}`); a.text("room_id") != room {
			t.Errorf("answer: %s", a.raw)
		}
	}
	if got := s.memberContent(eventgraph.RoomID(room), bob.user); got != `{"displayname":"bob","membership":"knock","reason":"let me in"}` {
		t.Errorf("content: %s", got)
	}
	if seen := alice.call(200, "GET", "/v3/sync?since="+since, nil); !strings.Contains(seen.raw, "let me in") {
		t.Errorf("alice is shown %s", seen.raw)
	}
	first := bob.call(200, "GET", "/v3/sync", nil)
	knocked, _ := first.body["rooms"].(map[string]any)["knock"].(map[string]any)
	state, _ := knocked[room].(map[string]any)
	if text, err := json.Marshal(state["knock_state"]); err != nil || !strings.Contains(string(text), "Behind the door") || !strings.Contains(string(text), `"knock"`) {
		t.Errorf("bob is shown %s, %v", text, err)
	}

	// Withdrawn, and made again; turned down.
	bob.call(200, "POST", path+"/leave", `{}`)
	if gone := bob.call(200, "GET", "/v3/sync?since="+first.text("next_batch"), nil); !strings.Contains(gone.raw, `"leave":{"`+room) {
		t.Errorf("after it was withdrawn: %s", gone.raw)
	}
	bob.call(200, "POST", "/v3/knock/"+room, nil)
	alice.call(200, "POST", path+"/kick", map[string]any{"user_id": bob.user, "reason": "no"})
	bob.call(200, "POST", "/v3/knock/"+room, nil)
	alice.call(200, "POST", path+"/invite", map[string]any{"user_id": bob.user})
	refused("who is invited")
	bob.join(eventgraph.RoomID(room))
	refused("who is in it")
	alice.call(200, "POST", path+"/ban", map[string]any{"user_id": bob.user})
	refused("who is banned")

	for target, want := range map[string]int{"!" + strings.Repeat("A", 43): 404, "%23nothing:" + string(s.Server): 404, "x": 400} {
		bob.call(want, "POST", "/v3/knock/"+target, nil)
	}
	if a := bob.call(400, "POST", "/v3/knock/"+room, `{"reason":7}`); a.code() != "M_BAD_JSON" {
		t.Errorf("reason that is no string: %s", a.raw)
	}
	if a := s.send("POST", "/_matrix/client/v3/knock/"+room, "", "{}"); a.status != 401 {
		t.Errorf("without a token: %d", a.status)
	}
}
