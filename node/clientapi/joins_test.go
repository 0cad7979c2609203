package clientapi

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// localJoins is a Remote that joins rooms held here.
type localJoins struct {
	*unreachable
	rooms *rooms.Rooms
}

func (l localJoins) Join(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, _ []eventgraph.ServerName, content json.RawMessage) error {
	key := string(user)
	_, err := l.rooms.Send(ctx, rooms.Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: content})
	return err
}

// What else stands in the body of a join goes into the member event, but for what is the servers' to say.
func TestJoinWithCustomContent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	for body, want := range map[string]string{
		`{"foo":"bar","displayname":"Robert","membership":"ban","join_authorised_via_users_server":"@a:b","reason":"why"}`: `{"displayname":"Robert","foo":"bar","membership":"join","reason":"why"}`,
		`{}`: `{"displayname":"bob","membership":"join"}`,
	} {
		for _, path := range []string{"/v3/join/" + string(room), "/v3/rooms/" + string(room) + "/join"} {
			bob.call(200, "POST", path, body)
			if got := s.memberContent(room, bob.user); got != want {
				t.Errorf("%s: %s, want %s", body, got, want)
			}
			bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
		}
	}
	if a := bob.call(400, "POST", "/v3/join/"+string(room), `{"reason":7}`); a.code() != "M_BAD_JSON" {
		t.Errorf("reason that is no string: %s", a.raw)
	}
}

// A member of a restricted room changes their name with the content of their join, which another server has authorised.
func TestMembershipsAreNotAuthorisedByClients(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/m.room.member/"+string(alice.user),
		`{"membership":"join","displayname":"Al","join_authorised_via_users_server":"@erin:elsewhere"}`)
	if got := s.memberContent(room, alice.user); got != `{"displayname":"Al","membership":"join"}` {
		t.Errorf("content: %s", got)
	}
}

// matrix-nio refuses the whole answer where a member has no display_name.
func TestJoinedMembersWithoutProfile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	joined := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/joined_members", nil).body["joined"].(map[string]any)
	shown, ok := joined[string(bob.user)].(map[string]any)
	if !ok {
		t.Fatalf("joined: %v", joined)
	}
	for _, field := range []string{"display_name", "avatar_url"} {
		if value, ok := shown[field]; !ok || value != nil {
			t.Errorf("%s: %v, %v", field, value, ok)
		}
	}
}
