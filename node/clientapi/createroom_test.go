package clientapi

import (
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A room gets the version that its client names, and the configured one where none is named.
func TestDefaultRoomVersion(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		configured eventgraph.RoomVersion
		body       map[string]any
		want       string
	}{
		"neither":    {want: "12"},
		"configured": {configured: "10", want: "10"},
		"named":      {configured: "10", body: map[string]any{"room_version": "3"}, want: "3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, func(config *Config) { config.RoomVersion = c.configured })
			alice := s.newClient("alice")
			body := c.body
			if body == nil {
				body = map[string]any{}
			}
			room := alice.call(200, "POST", "/v3/createRoom", body).text("room_id")
			if create := alice.call(200, "GET", "/v3/rooms/"+room+"/state/m.room.create", nil); create.text("room_version") != c.want {
				t.Errorf("a room of version %s, want %s", create.raw, c.want)
			}
			capabilities := alice.call(200, "GET", "/v3/capabilities", nil).body["capabilities"].(map[string]any)
			said := capabilities["m.room_versions"].(map[string]any)["default"]
			if c.body == nil && said != c.want {
				t.Errorf("capabilities say %v, want %s", said, c.want)
			}
			for _, unknown := range []string{"2", "13", "x"} {
				if a := alice.call(400, "POST", "/v3/createRoom", map[string]any{"room_version": unknown}); a.code() != "M_UNSUPPORTED_ROOM_VERSION" {
					t.Errorf("version %s: %s", unknown, a.raw)
				}
			}
		})
	}
}

// State that cannot be a room's is the fault of the request (CS API, createRoom, M_INVALID_ROOM_STATE).
func TestCreateRoomWithImpossibleState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	for name, body := range map[string]map[string]any{
		"a creator among the users of version 12": {"room_version": "12", "power_level_content_override": map[string]any{"users": map[string]int{string(alice.user): 100}}},
		"power too low for the room's name": {
			"room_version": "11", "name": "hall",
			"power_level_content_override": map[string]any{"users": map[string]int{string(alice.user): 0}},
		},
		"additional creators that are no users": {"creation_content": map[string]any{"additional_creators": []string{"nonsense"}}},
	} {
		if a := alice.call(400, "POST", "/v3/createRoom", body); a.code() != "M_INVALID_ROOM_STATE" {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	if rooms := alice.call(200, "GET", "/v3/joined_rooms", nil).body["joined_rooms"].([]any); len(rooms) != 0 {
		t.Errorf("half-made rooms stay: %v", rooms)
	}
}

// Who names no room version may know none in which creators have no level: those that are given to them are left out, and others' stay.
func TestCreateRoomWithLevelsOfCreators(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	const carol = "@carol:far.example.org"
	for name, more := range map[string]string{
		"alone":               `"invite":[]`,
		"trusted invitees":    `"preset":"trusted_private_chat","invite":["` + string(bob.user) + `"]`,
		"additional creators": `"creation_content":{"additional_creators":["` + string(bob.user) + `"]}`,
	} {
		room := alice.createRoom(`{"power_level_content_override":{"ban":60,"users":{"` + string(alice.user) + `":100,"` + carol + `":40}},` + more + `}`)
		levels := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/state/m.room.power_levels", nil)
		users, _ := levels.body["users"].(map[string]any)
		if len(users) != 1 || users[carol] != 40.0 || levels.body["ban"] != 60.0 {
			t.Errorf("%s: %s", name, levels.raw)
		}
		room = alice.createRoom(`{"power_level_content_override":{"users":{"` + string(alice.user) + `":100,"` + string(bob.user) + `":100}},` + more + `}`)
		levels = alice.call(200, "GET", "/v3/rooms/"+string(room)+"/state/m.room.power_levels", nil)
		if users, _ := levels.body["users"].(map[string]any); (users[string(bob.user)] == nil) != (name != "alone") || users[string(alice.user)] != nil {
			t.Errorf("%s, of both: %s", name, levels.raw)
		}
	}
	room := alice.createRoom(`{"room_version":"11","power_level_content_override":{"users":{"` + string(alice.user) + `":100}}}`)
	if levels := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/state/m.room.power_levels", nil); levels.body["users"].(map[string]any)[string(alice.user)] != 100.0 {
		t.Errorf("version 11: %s", levels.raw)
	}
}
