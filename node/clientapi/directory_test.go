package clientapi

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// The name that somebody takes for one room alone, when they join it or later, is shown there, and gives them away nowhere else: the directory
// finds local users by the name of their profile, and shows that.
func TestNameOfOneRoom(t *testing.T) {
	t.Parallel()
	for _, atJoin := range []bool{true, false} {
		t.Run(fmt.Sprintf("at join %v", atJoin), func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, nil)
			alice, bob, eve := s.newClient("alice"), s.newClient("bob"), s.newClient("eve")
			alice.call(200, "PUT", "/v3/profile/"+string(alice.user)+"/displayname", map[string]string{"displayname": "Alice Cooper"})
			alice.call(200, "POST", "/v3/createRoom", map[string]string{"visibility": "public", "preset": "public_chat"})
			room := eventgraph.RoomID(bob.call(200, "POST", "/v3/createRoom", map[string]any{"preset": "private_chat", "invite": []any{alice.user}}).text("room_id"))
			if !atJoin {
				alice.join(room)
			}
			alice.call(200, "PUT", "/v3/rooms/"+url.PathEscape(string(room))+"/state/m.room.member/"+url.PathEscape(string(alice.user)),
				map[string]string{"membership": "join", "displayname": "Freddy"})
			if got := s.memberContent(room, alice.user); got != `{"displayname":"Freddy","membership":"join"}` {
				t.Errorf("in the room: %s", got)
			}
			members := bob.call(200, "GET", "/v3/rooms/"+url.PathEscape(string(room))+"/joined_members", nil).body["joined"].(map[string]any)
			if got := members[string(alice.user)].(map[string]any)["display_name"]; got != "Freddy" {
				t.Errorf("to those in the room: %v", got)
			}

			for who, c := range map[string]client{"in the room": bob, "outside": eve} {
				for term, want := range map[string][]string{"Alice Cooper": {"Alice Cooper"}, "alice": {"Alice Cooper"}, string(alice.user): {"Alice Cooper"}, "Freddy": nil} {
					var found []string
					results := c.call(200, "POST", "/v3/user_directory/search", map[string]string{"search_term": term}).body["results"].([]any)
					for _, u := range results {
						found = append(found, u.(map[string]any)["display_name"].(string))
					}
					if !slices.Equal(found, want) {
						t.Errorf("%s, %q: found %q, want %q", who, term, found, want)
					}
				}
				if got := c.call(200, "GET", "/v3/profile/"+string(alice.user), nil).text("displayname"); got != "Alice Cooper" {
					t.Errorf("%s, the profile: %q", who, got)
				}
			}
		})
	}
}
