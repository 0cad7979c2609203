package clientapi

import (
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Who was removed and invited again between two syncs shares no room any more.
func TestDeviceListsOfThoseInvitedAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	token := bob.sync("").NextBatch
	alice.member(room, bob, "leave")
	alice.member(room, bob, "invite")
	body := bob.sync(token)
	if _, invited := body.Rooms.Invite[room]; !invited || !slices.Equal(body.DeviceLists.Left, []eventgraph.UserID{alice.user}) {
		t.Errorf("%s", body.raw)
	}
	changes := bob.call(200, "GET", "/v3/keys/changes?from="+token+"&to="+body.NextBatch, nil)
	if left, _ := changes.body["left"].([]any); len(left) != 1 {
		t.Errorf("%s", changes.raw)
	}
	if again := bob.sync(body.NextBatch); len(again.DeviceLists.Left) > 0 {
		t.Errorf("told twice: %s", again.raw)
	}
}

// While one is out of the room servers have no reason to tell of new devices. So who comes back between two syncs counts as changed, and so does
// everybody else to whom comes back; a new name alone does not.
func TestDeviceListsOfThoseWhoCameBack(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	told := func(c client, token string, want ...eventgraph.UserID) {
		t.Helper()
		body := c.sync(token)
		if got := body.DeviceLists; !slices.Equal(got.Changed, want) || len(got.Left) > 0 {
			t.Errorf("told of %v, %v left, want %v: %s", got.Changed, got.Left, want, body.raw)
		}
		changes := c.call(200, "GET", "/v3/keys/changes?from="+token+"&to="+body.NextBatch, nil)
		if got, _ := changes.body["changed"].([]any); len(got) != len(want) {
			t.Errorf("/keys/changes: %s, want %v", changes.raw, want)
		}
	}

	token := alice.sync("").NextBatch
	for _, name := range []string{"B", "Bo"} {
		bob.call(200, "PUT", "/v3/profile/"+string(bob.user)+"/displayname", map[string]string{"displayname": name})
	}
	told(alice, token)

	token = alice.sync("").NextBatch
	bobs := bob.sync("").NextBatch
	bob.inRoom(200, room, "leave", nil)
	bob.join(room)
	told(alice, token, bob.user)
	told(bob, bobs, alice.user)
}
