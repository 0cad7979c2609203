package rooms

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// restarted gives the server rooms that have all to read again.
func (s *server) restarted() {
	s.Close()
	s.Rooms = New(Config{Store: s.store, Key: s.key, Now: s.Rooms.now})
}

// on makes an event like e, rightly signed by s, on other parents.
func (s *server) on(e *eventgraph.Event, what string, parents ...eventgraph.EventID) *eventgraph.Event {
	s.t.Helper()
	content, _ := json.Marshal(map[string]string{"body": what})
	d := eventgraph.Draft{
		RoomID: e.RoomID(), Type: e.Type(), Sender: e.Sender(), Content: content,
		PrevEvents: parents, AuthEvents: e.AuthEvents(), Depth: e.Depth(), OriginServerTS: e.OriginServerTS(),
	}
	if key, ok := e.StateKey(); ok {
		d.StateKey = &key
	}
	made, err := eventgraph.Build(e.Version(), d, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return made
}

func ids(events []*eventgraph.Event) (ids []eventgraph.EventID) {
	for _, e := range events {
		ids = append(ids, e.ID())
	}
	return ids
}

// readsFor is how often the store is read while f runs.
func (s *server) readsFor(f func()) uint64 {
	before := s.store.Reads()
	f()
	return s.store.Reads() - before
}

// checkTips finds no extremity that another descends from, however far: the whole graph above it is looked through.
func (s *server) checkTips(room eventgraph.RoomID) {
	s.t.Helper()
	tips := s.record(room).Forward
	for _, tip := range tips {
		seen := map[eventgraph.EventID]bool{}
		for todo := []eventgraph.EventID{tip}; len(todo) > 0; {
			parent := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			err := s.store.View(func(r *store.Reader) error {
				return r.Children(parent, func(child eventgraph.EventID) (bool, error) {
					if !seen[child] {
						seen[child] = true
						todo = append(todo, child)
					}
					return true, nil
				})
			})
			if err != nil {
				s.t.Fatal(err)
			}
		}
		for _, other := range tips {
			if seen[other] {
				s.t.Errorf("extremity %s descends from %s, which is one too", other, tip)
			}
		}
	}
}

// A room of as many extremities as there may be, each with hundreds of rejected children; and then a stream of soft-failed events, alone and
// on top of hundreds of rejected ones that came before. What looks for ties of extremities reads each once, and otherwise a constant number.
func TestAttackTies(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c, carol, old := carolIn(a, b, room)
		a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
		a.message(room, alice, "after the ban")

		away := crowdIn(room, maxForward/10, a)
		forks := forksOf(away, 10, a, room)
		a.takeAll(forks)
		tips := a.record(room).Forward
		if len(tips) != maxForward {
			t.Fatalf("%d extremities", len(tips))
		}
		noPower := b.lie(a, Draft{Room: room, Sender: bob, Type: "org.example.note", StateKey: stateKey(""), Content: json.RawMessage(`{}`)},
			claim{ts: b.now, parents: old})
		children := many(version, maxBehind+300)
		var events []*eventgraph.Event
		for group := range slices.Chunk(tips, maxPrevEvents) {
			for i := range children / (len(tips) / maxPrevEvents) {
				events = append(events, b.on(noPower, fmt.Sprint(i), group...))
			}
		}
		if got := a.flood(b, events); got[store.Rejected] != len(events) {
			t.Fatalf("verdicts %v", got)
		}

		const softFailed = 100
		evading := c.lie(a, said(room, carol, "evading"), claim{ts: c.now, parents: old})
		events = nil
		for i := range softFailed {
			events = append(events, c.on(evading, fmt.Sprint("alone ", i), old...))
		}
		var got map[store.Verdict]int
		reads := a.readsFor(func() { got = a.flood(c, events) })
		t.Logf("%d reads for %d soft-failed events", reads, softFailed)
		if got[store.SoftFailed] != softFailed || reads > softFailed*8 {
			t.Errorf("%d reads, verdicts %v", reads, got)
		}

		// What lies above them came before: as outliers, which were rejected.
		events = nil
		for i := range softFailed {
			events = append(events, c.on(evading, fmt.Sprint("below ", i), old...))
		}
		var middle, top []*eventgraph.Event
		for group := range slices.Chunk(events, maxPrevEvents) {
			middle = append(middle, b.on(noPower, "middle", ids(group)...))
		}
		under := ids(middle)
		for i := range children {
			top = append(top, b.on(noPower, fmt.Sprint("top ", i), under...))
			under = []eventgraph.EventID{top[i].ID()}
		}
		for some := range slices.Chunk(append(middle, top...), 50) {
			if _, err := a.AcceptAll(t.Context(), some, Basis{Kind: Nothing}); err != nil {
				t.Fatal(err)
			}
		}
		reads = a.readsFor(func() { got = a.flood(c, events) })
		t.Logf("%d reads for %d on which %d rest", reads, softFailed, children)
		if got[store.SoftFailed] != softFailed || reads > softFailed*8+maxBehind+100 {
			t.Errorf("%d reads, verdicts %v", reads, got)
		}
		a.wantMember(room, carol, "ban")
	})
}

// An event that there was no room for among the extremities ties nothing: neither one that lay between it and a ban, and comes after it, nor
// after a restart. Else the ban would be forgotten.
func TestAttackTieByWhatWasLeftOut(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for _, restart := range []bool{false, true} {
			a, b, alice, bob, room := shared(t, version)
			c, carol, old := carolIn(a, b, room)
			ban := a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
			message := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
			var events []*eventgraph.Event
			for i := range maxForwardOf {
				events = append(events, b.on(message, fmt.Sprint(i), old...))
			}
			a.flood(b, events)
			state, _ := a.stateAndChain(room, a.event(ban).StateAfter)
			between := b.on(message, "between", ban)
			above := b.on(message, "above", between.ID())
			a.accept(above, Basis{Kind: Claimed, State: ids(state), Origin: b.Server()}, store.Accepted)
			if !a.event(above.ID()).Aside {
				t.Fatal("there was room for the event")
			}
			if restart {
				a.restarted()
			}
			a.accept(between, Basis{Origin: b.Server()}, store.Accepted)
			a.wantMember(room, carol, "ban")
			back := c.lie(a, said(room, carol, "here again"), claim{ts: c.now, parents: old})
			a.accept(back, Basis{Origin: c.Server()}, store.SoftFailed)
			a.wantMember(room, carol, "ban")
			// Built on, it is part of the room's state as any.
			a.accept(c.on(back, "once more", old...), Basis{Origin: c.Server()}, store.SoftFailed)
			a.message(room, alice, "on some")
			a.accept(b.on(message, "on what was left out", append(a.record(room).Forward, above.ID())...), Basis{Origin: b.Server()}, store.Accepted)
			a.wantMember(room, carol, "ban")
			a.checkTips(room)
		}
	})
}

// One that was an extremity and had to go for another's ties nothing from then on, nor does what it tied alone; after a restart neither. And
// one that has tied others has not to go.
func TestAttackTieByWhatWasPushedOut(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		orders := []string{"pushed out, tied", "pushed out, restart, tied", "tied, pushed out"}
		for _, order := range orders {
			if version != "12" && order != orders[0] {
				break // it is the same there
			}
			a, b, alice, bob, room := shared(t, version)
			const each = maxForwardOf - 1
			away := crowdIn(room, maxForward/each, a)
			old := a.record(room).Forward
			message := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
			forks := forksOf(away[:len(away)-1], each, a, room)
			forks = forks[:maxForward-1-maxForwardOf]
			late := forksOf(away[len(away)-1:], 2, a, room)
			name := a.setState(room, alice, "m.room.name", "", `{"name":"not to be forgotten"}`)
			said := a.message(room, alice, "what the name is known by")
			a.takeAll(forks)
			between := b.on(message, "between", said)
			middle := b.on(message, "in the middle", between.ID())
			above := b.on(message, "above", middle.ID())
			state, _ := a.stateAndChain(room, a.event(said).StateAfter)
			claimed := Basis{Kind: Claimed, State: ids(state), Origin: b.Server()}
			for i := range maxForwardOf - 1 {
				a.accept(b.on(message, fmt.Sprint(i), old...), Basis{Origin: b.Server()}, store.Accepted)
			}
			a.accept(above, claimed, store.Accepted)
			a.accept(middle, claimed, store.Accepted)
			if tips := a.record(room).Forward; len(tips) != maxForward || !slices.Contains(tips, above.ID()) || !slices.Contains(tips, said) {
				t.Fatalf("%d extremities", len(tips))
			}
			if order == "tied, pushed out" {
				a.accept(between, Basis{Origin: b.Server()}, store.Accepted)
				a.takeAll(late)
			} else {
				a.takeAll(late[:1])
				if tips := a.record(room).Forward; len(tips) != maxForward || slices.Contains(tips, above.ID()) || !a.event(above.ID()).Aside {
					t.Fatalf("%d extremities, and what was made last stays", len(tips))
				}
				if order == "pushed out, restart, tied" {
					a.restarted()
				}
				a.accept(between, Basis{Origin: b.Server()}, store.Accepted)
			}
			if e := a.current(room, "m.room.name", ""); e == nil || e.ID() != name {
				t.Errorf("%s: the name is forgotten", order)
			}
			a.checkTips(room)
		}
	})
}

// Who comes back to a room and pages back through more than maxBehind events has no extremity left from when it went, however the pages are cut.
func TestLongGapIsTied(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	b.message(room, bob, "before the gap")
	b.give(a, room, 0)
	tip := b.record(room).Forward
	var gap []*eventgraph.Event
	for i := range maxBehind + 50 {
		gap = append(gap, pdu(t, a.event(a.message(room, alice, fmt.Sprint(i))).Event))
	}
	across := a.event(a.message(room, alice, "behind the gap"))
	state, _ := a.stateAndChain(room, across.StateBefore)
	b.accept(across.Event, Basis{Kind: Claimed, State: ids(state), Origin: a.Server()}, store.Accepted)
	if got := b.record(room).Forward; len(got) != 2 {
		t.Fatalf("extremities %v", got)
	}
	for len(gap) > 0 {
		page := gap[max(0, len(gap)-97):]
		gap = gap[:len(gap)-len(page)]
		state, _ := a.stateAndChain(room, a.event(page[0].ID()).StateBefore)
		outcomes, err := b.AcceptAll(t.Context(), page, Basis{Kind: Claimed, State: ids(state), Backfill: true, Origin: a.Server()})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range outcomes {
			if o.Err != nil || o.Verdict != store.Accepted {
				t.Fatalf("%+v", o)
			}
		}
	}
	if got := b.record(room).Forward; !slices.Equal(got, []eventgraph.EventID{across.ID()}) {
		t.Errorf("extremities %v, of which %s is of before the gap", got, tip)
	}
}

// What idle rooms remember of ties is bounded over all of them, and the newest is kept.
func TestTiesAreBounded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	for i := range 2 * maxAllTies / maxTies {
		rm, err := a.enter(eventgraph.RoomID(fmt.Sprint("!room", i)))
		if err != nil {
			t.Fatal(err)
		}
		for j := range 2 * maxTies {
			for p := range parts {
				id := eventgraph.EventID(fmt.Sprint("$", p, j))
				rm.ties.above.put(id, untied, p)
				rm.ties.claims.put(id, "$", p)
				if p != rest {
					rm.ties.below.put(id, ends{}, p)
				}
			}
		}
		a.leave(rm)
		if rm.ties.size() != 2*maxTies {
			t.Fatalf("room %d has %d ties when it becomes idle", i, rm.ties.size())
		}
	}
	sum := 0
	for _, rm := range a.rooms {
		sum += rm.ties.size()
	}
	if sum > maxAllTies || sum < maxAllTies/2 {
		t.Errorf("%d ties are remembered", sum)
	}
}
