package federation

import (
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// TestPurgedHistory: who has purged does not fetch anew what was purged nor what was before it, and does not give it away; whom it lets join gets the
// rest and can go on.
func TestPurgedHistory(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	var said []eventgraph.EventID
	for i := range 150 {
		said = append(said, a.say(room, a.user("alice"), fmt.Sprint(i)))
	}
	b.join(room, b.user("bob"), a)
	if n, err := b.Backfill(t.Context(), room, 60); err != nil || n < 60 || n > 120 {
		t.Fatal(n, err)
	}
	limit := said[149]
	if done, err := b.Rooms.Purge(t.Context(), room, rooms.PurgeLimit{Event: limit}, func(rooms.PurgeProgress) {}); err != nil || done.Purged < 59 {
		t.Fatalf("%+v %v", done, err)
	}
	before := len(b.timeline(room))
	if n, err := b.Backfill(t.Context(), room, 60); n != 0 || err != nil {
		t.Errorf("%d events were fetched after a purge, %v", n, err)
	}
	if now := len(b.timeline(room)); now != before {
		t.Errorf("%d events, had %d", now, before)
	}

	w.setAway(a.end.id, true)
	c.join(room, c.user("carol"), b)
	for range 10 {
		if n, err := c.Backfill(t.Context(), room, 60); n == 0 || err != nil {
			break
		}
	}
	for _, e := range c.timeline(room) {
		if e.Type() == "m.room.message" && e.ID() != limit && len(e.Content()) > len("{}") {
			t.Errorf("purged at b, it came to c: %s", e.Raw())
		}
	}
	if r, err := b.Rooms.Accept(t.Context(), c.event(c.say(room, c.user("carol"), "hello")).Event, rooms.Basis{Origin: c.server}); err != nil || r.Verdict != store.Accepted {
		t.Errorf("%+v %v", r, err)
	}
}
