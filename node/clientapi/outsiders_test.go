package clientapi

import (
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// stateTypes are the types of the state that a context has.
func (a answer) stateTypes() (types []string) {
	state, _ := a.body["state"].([]any)
	for _, e := range state {
		types = append(types, e.(map[string]any)["type"].(string))
	}
	return types
}

// Who was never in a room reads nothing of its state beside the event that told them of it, unless anybody may.
func TestContextForOutsiders(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	for _, membership := range []string{"invite", "ban"} {
		for _, visibility := range []string{"joined", "invited", "shared", "world_readable"} {
			bob := s.newClient("bob-" + membership + "-" + visibility)
			room := alice.room()
			alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"`+visibility+`"}`)
			alice.state(room, "m.room.pinned_events", "", `{"pinned":["SECRET"]}`)
			id := alice.member(room, bob, membership)
			path := "/v3/rooms/" + string(room)
			a := bob.call(200, "GET", path+"/context/"+string(id), nil)
			if open := visibility == "world_readable"; open != strings.Contains(a.raw, "SECRET") || open != (len(a.stateTypes()) > 0) {
				t.Errorf("%s, %s: %s", membership, visibility, a.raw)
			}
			if visibility != "world_readable" {
				for _, other := range []string{"/state", "/members?at=" + bob.sync("").NextBatch} {
					if a := bob.call(403, "GET", path+other, nil); a.code() != "M_FORBIDDEN" {
						t.Errorf("%s, %s: %s", membership, other, a.raw)
					}
				}
			}
		}
	}
}

// Who has left reads the state as it was when they left, also around what concerns them of later.
func TestContextAndMembersAfterLeaving(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	path := "/v3/rooms/" + string(room)
	bob.join(room)
	alice.state(room, "m.room.name", "", `{"name":"EARLIER"}`)
	said := alice.say(room, "said")
	alice.state(room, "m.room.name", "", `{"name":"ATLEAVING"}`)
	bob.call(200, "POST", path+"/leave", map[string]any{})
	carol.join(room)
	alice.state(room, "m.room.name", "", `{"name":"LATER"}`)
	for _, membership := range []string{"ban", "leave", "invite"} {
		id := alice.member(room, bob, membership)
		context := bob.call(200, "GET", path+"/context/"+string(id), nil)
		around := bob.call(200, "GET", path+"/context/"+string(said)+"?limit=20", nil)
		before := bob.call(200, "GET", path+"/context/"+string(said)+"?limit=1", nil)
		members := bob.call(200, "GET", path+"/members?at="+bob.sync("").NextBatch, nil)
		for what, a := range map[string]answer{"of it": context, "around": around, "before": before, "members": members} {
			if strings.Contains(a.raw, "LATER") || strings.Contains(a.raw, string(carol.user)) || !strings.Contains(a.raw, string(bob.user)) {
				t.Errorf("after %s, %s: %s", membership, what, a.raw)
			}
		}
		if !strings.Contains(context.raw, "ATLEAVING") || !strings.Contains(before.raw, "EARLIER") {
			t.Errorf("after %s: %s and %s", membership, context.raw, before.raw)
		}
	}
}

// CS API, POST forget: "a user will no longer be able to retrieve history for this room".
func TestForgottenRoomsAreNotRead(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	path := "/rooms/" + string(room)
	bob.join(room)
	id := string(alice.say(room, "one"))
	reads := []string{"v3" + path + "/event/" + id, "v3" + path + "/context/" + id, "v1" + path + "/relations/" + id}
	all := func(when string, want int, code string) {
		t.Helper()
		for _, read := range reads {
			if a := s.send("GET", "/_matrix/client/"+read, bob.token, nil); a.status != want || a.code() != code {
				t.Errorf("%s: %s: %d %s", when, read, a.status, a.raw)
			}
		}
	}
	bob.call(200, "POST", "/v3"+path+"/leave", map[string]any{})
	all("left", 200, "")
	bob.call(200, "POST", "/v3"+path+"/forget", map[string]any{})
	all("forgotten", 404, "M_NOT_FOUND")
	alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
	all("to be read by anybody", 200, "")
	alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"shared"}`)
	all("not any more", 404, "M_NOT_FOUND")
	bob.join(room)
	all("joined again", 200, "")
	if n := len(bob.sync("").Rooms.Join[eventgraph.RoomID(room)].Timeline.Events); n == 0 {
		t.Error("nothing to read after joining again")
	}
}

// Shared history from before the joining stays readable to who has left, whatever is done to them then.
func TestSharedHistoryAfterLaterBan(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	path := "/v3/rooms/" + string(room) + "/event/"
	before := alice.say(room, "before")
	bob.join(room)
	with := alice.say(room, "with bob")
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", map[string]any{})
	after := alice.say(room, "after")
	for _, membership := range []string{"", "ban", "leave", "invite", "leave"} {
		if membership != "" {
			alice.member(room, bob, membership)
		}
		for id, want := range map[eventgraph.EventID]int{before: 200, with: 200, after: 404} {
			if a := s.send("GET", "/_matrix/client"+path+string(id), bob.token, nil); a.status != want {
				t.Errorf("after %q: %d, want %d", membership, a.status, want)
			}
		}
	}
}
