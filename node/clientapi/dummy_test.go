package clientapi

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// The events that merge extremities are shown nowhere, count nowhere and wake nobody, even if their sender puts into them what
// would call for attention.
func TestMergingEventsAreNotShown(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	root := alice.say(room, "root")
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(root), map[string]any{})
	token := bob.sync("").NextBatch
	content, err := json.Marshal(map[string]any{
		"msgtype": "m.text", "body": "bob: look", "m.mentions": map[string]any{"user_ids": []eventgraph.UserID{bob.user}},
		"m.relates_to": map[string]any{"rel_type": "m.thread", "event_id": root},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		alice.event(rooms.Draft{Room: room, Type: rooms.DummyEvent, Content: content})
	}
	if counts, threads := bob.unread(room, true); counts != (unreadCounts{}) || len(threads) != 0 {
		t.Errorf("unread: %+v, %v", counts, threads)
	}
	if body := bob.sync(token); len(body.Rooms.Join) != 0 {
		t.Errorf("/sync shows %s", body.raw)
	}
	whole := bob.sync("")
	joined := whole.Rooms.Join[room]
	if got := names(joined.Timeline.Events); got[len(got)-1] != "root" || strings.Contains(whole.raw, rooms.DummyEvent) {
		t.Errorf("/sync shows %v", got)
	}
	if last := joined.Timeline.Events[len(joined.Timeline.Events)-1]; last.Unsigned.Relations.Thread != nil {
		t.Errorf("a thread of %d", last.Unsigned.Relations.Thread.Count)
	}
	for _, path := range []string{"/messages?dir=b&limit=50", "/context/" + string(root) + "?limit=10"} {
		if a := bob.call(200, "GET", "/v3/rooms/"+string(room)+path, nil); strings.Contains(a.raw, rooms.DummyEvent) {
			t.Errorf("%s shows %s", path, a.raw)
		}
	}
	near, err := s.Rooms.EventNear(room, 1<<50, false, func(*store.StoredEvent) (bool, error) { return true, nil })
	if err != nil || near.Type() == rooms.DummyEvent {
		t.Errorf("nearest in time: %v, %v", near, err)
	}
	// The next message still rests on them, and the room goes on.
	token = bob.sync(token).NextBatch
	alice.say(room, "on")
	if got := names(bob.sync(token).Rooms.Join[room].Timeline.Events); !slices.Equal(got, []string{"on"}) {
		t.Errorf("then /sync shows %v", got)
	}
}
