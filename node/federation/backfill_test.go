package federation

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// timeline is the room's events in order.
func (h *host) timeline(room eventgraph.RoomID) []*store.StoredEvent {
	h.t.Helper()
	var all []*store.StoredEvent
	if err := h.Store.View(func(r *store.Reader) error {
		return r.Timeline(room, -1<<62, false, func(e *store.StoredEvent) (bool, error) {
			all = append(all, e)
			return true, nil
		})
	}); err != nil {
		h.t.Fatal(err)
	}
	return all
}

// TestBackfillInPages: a history longer than a page comes page by page, each resting on a claimed state until the first event is there.
func TestBackfillInPages(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	for i := range 150 {
		a.say(room, a.user("alice"), fmt.Sprint(i))
		if i%40 == 0 {
			a.setState(room, a.user("alice"), "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, i))
		}
	}
	b.join(room, b.user("bob"), a)
	n, err := b.Backfill(t.Context(), room, 30)
	if err != nil || n < 30 || n > 60 {
		t.Fatalf("the first page brings %d, %v", n, err)
	}
	for range 20 {
		if n, err = b.Backfill(t.Context(), room, 50); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	sameHistory(t, room, a, b)
}

// sameHistory fails unless both have the same events in the same order, with the same states around each.
func sameHistory(t *testing.T, room eventgraph.RoomID, a, b *host) {
	t.Helper()
	mine, theirs := a.timeline(room), b.timeline(room)
	if len(mine) != len(theirs) {
		t.Fatalf("%d events and %d", len(mine), len(theirs))
	}
	for i := range mine {
		if mine[i].ID() != theirs[i].ID() || mine[i].StateBefore != theirs[i].StateBefore || mine[i].StateAfter != theirs[i].StateAfter {
			t.Fatalf("event %d: %s and %s", i, mine[i].Raw(), theirs[i].Raw())
		}
	}
}

// Of many backward extremities some in breaks are named and those nearest above the point of a reader, and while the nearest lies in a break no others.
func TestBackfillAbove(t *testing.T) {
	t.Parallel()
	a := newHosts(t, newWire(), "a")[0]
	room := a.create("12", "public", "shared")
	var said []eventgraph.EventID
	for i := range 2 * maxBackfillFrom {
		said = append(said, a.say(room, a.user("alice"), fmt.Sprint(i)))
	}
	old, inBreak, late := said[:maxBackfillFrom+5], said[maxBackfillFrom+7:maxBackfillFrom+9], said[maxBackfillFrom+12]
	before, after := a.event(inBreak[1]).Order, a.event(inBreak[0]).Order-2
	_, err := a.Store.Update(t.Context(), func(tx *store.Tx) error {
		record, err := tx.Room(room)
		if err != nil {
			return err
		}
		record.Backward = slices.Sorted(slices.Values(slices.Concat(old, inBreak, []eventgraph.EventID{late})))
		record.Breaks = []store.Break{{After: after, Next: after, Before: before}}
		return tx.PutRoom(record)
	})
	if err != nil {
		t.Fatal(err)
	}
	below := slices.Clone(old[5:])
	slices.Reverse(below)
	for _, test := range []struct {
		what  string
		above int64
		want  []eventgraph.EventID
	}{
		{"at the bottom", math.MinInt64, slices.Concat(inBreak, old[:maxBackfillFrom-len(inBreak)])},
		{"at the break", after, inBreak},
		{"over the break", before, slices.Concat([]eventgraph.EventID{late, inBreak[1], inBreak[0]}, below)[:maxBackfillFrom]},
	} {
		p, err := a.backwardsAbove(room, test.above)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := newQuests().next(p, "elsewhere", []eventgraph.ServerName{"other"}, a.peers.isConnected)
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(test.want))) {
			t.Errorf("%s: %v, want %v", test.what, got, test.want)
		}
	}
}

// TestBackfillFork: where history forked, no event stands before its parents, and the states come out the same.
func TestBackfillFork(t *testing.T) {
	t.Parallel()
	for _, length := range []int{60, 300} { // of each branch; a page is widened to the shorter ones only
		t.Run(fmt.Sprint(length), func(t *testing.T) { t.Parallel(); testBackfillFork(t, length) })
	}
}

func testBackfillFork(t *testing.T, length int) {
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("11", "public", "shared")
	b.join(room, b.user("bob"), a)
	w.setAway(b.end.id, true)
	var theirs []eventgraph.EventID
	for i := range length {
		a.say(room, a.user("alice"), fmt.Sprint("a", i))
		theirs = append(theirs, b.say(room, b.user("bob"), fmt.Sprint("b", i)))
	}
	a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"while apart"}`)
	for _, id := range theirs {
		if r, err := a.Rooms.Accept(t.Context(), b.event(id).Event, rooms.Basis{Kind: rooms.Parents, Origin: b.server}); err != nil || r.Verdict != store.Accepted {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	for i := range 20 {
		a.say(room, a.user("alice"), fmt.Sprint("together", i))
	}
	c.join(room, c.user("carol"), a)
	for range 100 {
		n, err := c.Backfill(t.Context(), room, 40)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	all := c.timeline(room)
	if want := len(a.timeline(room)); len(all) != want {
		t.Fatalf("%d events, want %d", len(all), want)
	}
	place := map[eventgraph.EventID]int{}
	for i, e := range all {
		place[e.ID()] = i
	}
	for i, e := range all {
		for _, parent := range e.PrevEvents() {
			if p, ok := place[parent]; !ok || p >= i {
				t.Errorf("event %d stands before its parent at %d, %v", i, p, ok)
			}
		}
		if mine := a.event(e.ID()); mine.StateBefore != e.StateBefore {
			t.Errorf("event %d has another state before it", i)
		}
	}
	if held, from, err := c.backwards(room); err != nil || len(from) != 0 || len(held.Backward) != 0 {
		t.Errorf("still missing before %v, %v", from, err)
	}
	if !slices.ContainsFunc(all, func(e *store.StoredEvent) bool { return e.ID() == theirs[0] }) {
		t.Error("the other branch is not there")
	}
}

// TestChains: on random graphs, each event is in one run, behind its only parent or at the front, and no parent is in an earlier run.
func TestChains(t *testing.T) {
	t.Parallel()
	_, _, _, key := newKeys("chains")
	rapid.Check(t, func(t *rapid.T) {
		var page []*eventgraph.Event
		for i := range rapid.IntRange(1, 30).Draw(t, "events") {
			var parents []eventgraph.EventID
			for _, back := range rapid.SliceOfNDistinct(rapid.IntRange(1, 4), 1, 3, rapid.ID).Draw(t, "parents") {
				if i-back >= 0 {
					parents = append(parents, page[i-back].ID())
				} else {
					parents = append(parents, eventgraph.EventID(fmt.Sprintf("$%042dA", back)))
				}
			}
			e, err := eventgraph.Build("11", eventgraph.Draft{
				RoomID: "!r:x", Type: "m.room.message", Sender: eventgraph.UserID("@u:" + string(key.Server)), Content: []byte(`{}`),
				PrevEvents: parents, Depth: int64(i + 1), OriginServerTS: int64(i),
			}, key)
			if err != nil {
				t.Fatal(err)
			}
			page = append(page, e)
		}
		page = unique(page)
		run := map[eventgraph.EventID]int{}
		n := 0
		for r, events := range chains(page) {
			for i, e := range events {
				n++
				run[e.ID()] = r
				if i > 0 && (len(e.PrevEvents()) != 1 || e.PrevEvents()[0] != events[i-1].ID()) {
					t.Fatalf("run %d: event %d does not rest on the one before it alone", r, i)
				}
			}
		}
		if n != len(page) || len(run) != n {
			t.Fatalf("%d events in runs, %d of them different, of %d", n, len(run), len(page))
		}
		for _, e := range page {
			for _, parent := range e.PrevEvents() {
				if r, in := run[parent]; in && r < run[e.ID()] {
					t.Fatalf("the parent's run is %d, the event's %d", r, run[e.ID()])
				}
			}
		}
	})
}

// TestBackfillDialsFew: whoever reads back waits for no more than a few servers that are not there, and not for the same ones again soon.
func TestBackfillDialsFew(t *testing.T) {
	q, now := newQuests(), time.Now()
	here := func(s eventgraph.ServerName) bool { return s == "here" }
	var servers []eventgraph.ServerName
	for i := range 10 {
		servers = append(servers, eventgraph.ServerName(fmt.Sprint("away", i)))
	}
	servers = append(servers, "here")
	first := q.worthAsking(servers, here, now)
	if len(first) != maxAwayAsked+1 || !slices.Contains(first, "here") {
		t.Fatalf("%v are asked", first)
	}
	for _, s := range first {
		if s != "here" {
			q.notThere(s, now)
		}
	}
	second := q.worthAsking(servers, here, now.Add(awayRest/2))
	if len(second) != maxAwayAsked+1 || slices.ContainsFunc(second, func(s eventgraph.ServerName) bool { return s != "here" && slices.Contains(first, s) }) {
		t.Errorf("then %v, after %v", second, first)
	}
	if third := q.worthAsking(servers, here, now.Add(awayRest)); !slices.Equal(third, first) {
		t.Errorf("and later %v", third)
	}
}
