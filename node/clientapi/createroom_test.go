package clientapi

import "testing"

// State that cannot be a room's is the fault of the request (CS API, createRoom, M_INVALID_ROOM_STATE).
func TestCreateRoomWithImpossibleState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	for name, body := range map[string]map[string]any{
		"a creator among the users of version 12": {"power_level_content_override": map[string]any{"users": map[string]int{string(alice.user): 100}}},
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
