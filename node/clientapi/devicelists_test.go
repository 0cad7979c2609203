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
