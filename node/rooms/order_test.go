package rooms

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// order is the room's order, as IDs.
func (s *server) order(room eventgraph.RoomID) (ids []eventgraph.EventID) {
	s.t.Helper()
	err := s.store.View(func(r *store.Reader) error {
		return r.Ordered(room, -1<<62, func(_ int64, id eventgraph.EventID, _ bool) (bool, error) {
			ids = append(ids, id)
			return true, nil
		})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return ids
}

// Who leaves and comes back twice, and then fetches what happened meanwhile, in pages that hold events of both absences and of the time before all,
// has it in its place. So it is after a restart between pages, and where the events of a page are taken in one by one, as after they were too much
// for one commit; and a page of which nothing is taken in keeps no place.
func TestOrderAfterReturn(t *testing.T) {
	t.Parallel()
	for i, size := range []int{1, 7, 1000, 7, 1000} {
		take := (*Rooms).AcceptAll
		if i >= 3 {
			take = func(r *Rooms, ctx context.Context, page []*eventgraph.Event, b Basis) ([]Outcome, error) {
				return r.acceptSingly(ctx, page, make([]error, len(page)), b)
			}
		}
		a := newServer(t, "a")
		b := newServer(t, "b", a)
		alice, bob := a.user("alice"), b.user("bob")
		room := a.create("12", alice)
		for i := range 3 {
			a.message(room, alice, fmt.Sprint("before all ", i))
		}
		var since store.Position
		for absence := range 3 {
			b.join(a, room, bob)
			since = b.store.Position() - 1
			b.message(room, bob, "here")
			if absence < 2 {
				b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`)
				b.give(a, room, since)
				for i := range 5 {
					a.message(room, alice, fmt.Sprint("meanwhile ", absence, i))
				}
			}
		}
		b.give(a, room, since)
		want := a.order(room)
		events := func() (n int64) {
			r := b.record(room)
			return r.NextOrder - r.PrevOrder - 2 - r.Skipped
		}
		if record := b.record(room); len(record.Breaks) != 2 || events() != int64(len(b.order(room))) {
			t.Fatalf("breaks %+v, %d events counted", record.Breaks, events())
		}

		var missing []*eventgraph.Event
		for _, id := range want {
			if !slices.Contains(b.order(room), id) {
				missing = append(missing, pdu(t, a.event(id).Event))
			}
		}
		for pages := 0; len(missing) > 0; pages++ {
			page := missing[max(0, len(missing)-size):]
			missing = missing[:len(missing)-len(page)]
			basis := Basis{Backfill: true, Origin: a.Server()}
			if len(page[0].PrevEvents()) > 0 {
				before := b.record(room)
				outcomes, err := b.AcceptAll(t.Context(), page, Basis{Kind: Claimed, State: []eventgraph.EventID{"$nobody"}, Backfill: true})
				if err != nil {
					t.Fatal(err)
				}
				if after := b.record(room); outcomes[0].Err != nil && (after.PrevOrder != before.PrevOrder || !slices.Equal(after.Breaks, before.Breaks)) {
					t.Errorf("a page that was not taken in moved %+v to %+v", before, after)
				}
				state, _ := a.stateAndChain(room, a.event(page[0].ID()).StateBefore)
				for _, e := range state {
					if _, err := b.Accept(t.Context(), e, Basis{Kind: Nothing}); err != nil {
						t.Fatal(err)
					}
				}
				basis.Kind, basis.State = Claimed, ids(state)
			}
			outcomes, err := take(b.Rooms, t.Context(), page, basis)
			if err != nil {
				t.Fatal(err)
			}
			for i, o := range outcomes {
				if o.Err != nil {
					t.Fatalf("%s: %v", page[i].Type(), o.Err)
				}
			}
			if pages == 1 {
				b.restarted()
			}
		}
		if got := b.order(room); !slices.Equal(got, want) {
			t.Errorf("in pages of %d the order is", size)
			for _, id := range got {
				t.Log(b.event(id).Order, slices.Index(want, id), b.event(id).Type(), string(b.event(id).Content()))
			}
		}
		if n := len(b.record(room).Backward); n != 0 || events() != int64(len(want)) {
			t.Errorf("%d backward extremities; %d events counted of %d", n, events(), len(want))
		}
		b.checkTips(room)
		b.message(room, bob, "still here")
	}
}

// Events of an absence on which thousands rest are looked at up to a bound for all of them; the rest goes below all that is held.
func TestReserveIsBounded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice)
	b.join(a, room, bob)
	since := b.store.Position() - 1
	b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`)
	b.give(a, room, since)
	old := a.record(room).Forward
	base := a.lie(a, said(room, alice, ""), claim{ts: a.now, parents: old})
	const each = maxReserveEdges / maxBehind
	var forks, above []*eventgraph.Event
	for i := range each {
		forks = append(forks, a.on(base, fmt.Sprint("meanwhile ", i), old...))
		a.accept(forks[i], Basis{}, store.Accepted)
	}
	merge := a.event(a.message(room, alice, "on all of them")).Event
	b.join(a, room, bob)
	for i := range maxBehind {
		above = append(above, a.on(base, fmt.Sprint("above ", i), ids(forks)...))
	}
	for some := range slices.Chunk(above, 100) {
		if _, err := b.AcceptAll(t.Context(), some, Basis{Kind: Nothing, Origin: a.Server()}); err != nil {
			t.Fatal(err)
		}
	}
	err := b.inTurn(t.Context(), room, func(run *run) error {
		orders, giveBack, err := run.reserve(forks, merge)
		if err != nil {
			return err
		}
		defer giveBack()
		after := run.live.Breaks[0].After
		if orders[0] > 0 || orders[1] <= after {
			t.Errorf("the last looked at has order %d, that before %d; the break is after %d", orders[0], orders[1], after)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wantCounted finds as many events with an order as the room's record counts.
func (s *server) wantCounted(room eventgraph.RoomID) {
	s.t.Helper()
	r := s.record(room)
	if counted, n := r.NextOrder-r.PrevOrder-2-r.Skipped, len(s.order(room)); counted != int64(n) {
		s.t.Errorf("%d events counted of %d", counted, n)
	}
}

// backfillAll takes in a page whose events are all accepted.
func (s *server) backfillAll(from *server, page []*eventgraph.Event) {
	s.t.Helper()
	outcomes, err := s.AcceptAll(s.t.Context(), page, Basis{Backfill: true, Origin: from.Server()})
	if err != nil {
		s.t.Fatal(err)
	}
	for i, o := range outcomes {
		if o.Err != nil || o.Verdict != store.Accepted {
			s.t.Fatalf("%d, %s: %+v", i, page[i].Type(), o)
		}
	}
}

// pdus are events as another server gets them.
func (s *server) pdus(ids []eventgraph.EventID) (page []*eventgraph.Event) {
	s.t.Helper()
	for _, id := range ids {
		page = append(page, pdu(s.t, s.event(id).Event))
	}
	return page
}

// wantSorted finds each event that has an order above its parents that have one.
func (s *server) wantSorted(room eventgraph.RoomID) {
	s.t.Helper()
	for _, id := range s.order(room) {
		e := s.event(id)
		for _, p := range e.PrevEvents() {
			if _, held := s.has(p); !held {
				continue
			}
			if parent := s.event(p); parent.Order != 0 && parent.Order >= e.Order {
				s.t.Errorf("%s has order %d, and what it rests on, %s, %d", e.Type(), e.Order, parent.Type(), parent.Order)
			}
		}
	}
}

// What a join rests on, and has brought as outliers, comes as if it were news, since who sends has not seen the join yet: in one run, one by one, or
// between what happens now. Its order is that of the room; and a count of the events by orders counts them all.
func TestPastComesInOrder(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"in one run", "one by one", "among others"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			a := newServer(t, "a")
			b := newServer(t, "b", a)
			alice := a.user("alice")
			room := a.create("12", alice)
			for i := range 6 {
				a.setState(room, alice, "org.example.state", fmt.Sprint(i), `{}`)
			}
			b.join(a, room, b.user("bob"))
			joined := a.store.Position()

			var past []*eventgraph.Event
			for _, id := range a.order(room) {
				if b.event(id).Order == 0 {
					past = append(past, pdu(t, a.event(id).Event))
				}
			}
			basis := Basis{Origin: a.Server()}
			if way == "in one run" {
				if _, err := b.AcceptAll(t.Context(), past, basis); err != nil {
					t.Fatal(err)
				}
			} else {
				for i, e := range past {
					b.accept(e, basis, store.Accepted)
					if way == "among others" {
						a.message(room, alice, fmt.Sprint("now ", i))
						joined = a.give(b, room, joined)
					}
				}
			}
			b.wantSorted(room)
			if got, want := b.order(room), a.order(room); len(past) != 10 || !slices.Equal(got, want) {
				t.Errorf("%d events of the past; another order", len(past))
				for _, id := range got {
					t.Log(b.event(id).Order, slices.Index(want, id), b.event(id).Type(), string(b.event(id).Content()))
				}
			}
			b.wantCounted(room)
		})
	}
}

// What has forked off in the past, and is fetched after what it rests on, in pages or each alone, lies above that; and below what merges it,
// if that is here. So it is in what happened while we were away.
func TestForkOfThePast(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 2, 1000} {
		for _, when := range []string{"the merge comes last", "the merge comes first", "while we were away"} {
			a := newServer(t, "a")
			b := newServer(t, "b", a)
			alice, bob := a.user("alice"), b.user("bob")
			room := a.create("12", alice)
			away := when == "while we were away"
			if away {
				b.join(a, room, bob)
				since := b.store.Position() - 1
				a.give(b, room, 0)
				b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`)
				b.give(a, room, since)
			}
			base := a.message(room, alice, "base")
			first := a.lie(a, said(room, alice, ""), claim{ts: a.now, parents: []eventgraph.EventID{base}})
			var under, all []*eventgraph.Event
			for _, id := range a.order(room) {
				if _, held := b.has(id); !held {
					under = append(under, pdu(t, a.event(id).Event))
				}
			}
			var forks [3][]*eventgraph.Event
			for i := range forks {
				on := base
				for j := range 4 {
					e := a.on(first, fmt.Sprint("fork ", i, j), on)
					a.accept(e, Basis{}, store.Accepted)
					forks[i], on = append(forks[i], e), e.ID()
				}
			}
			merge := a.event(a.message(room, alice, "merge"))
			after := a.event(a.message(room, alice, "after"))
			above := []*eventgraph.Event{pdu(t, merge.Event), pdu(t, after.Event)}
			b.join(a, room, bob)

			fetch := func(page []*eventgraph.Event, basis Basis) {
				t.Helper()
				all = append(all, page...)
				basis.Backfill = true
				outcomes, err := b.AcceptAll(t.Context(), page, basis)
				if err != nil {
					t.Fatal(err)
				}
				for i, o := range outcomes {
					if o.Err != nil || o.Verdict != store.Accepted {
						t.Fatalf("%s: %+v", page[i].Content(), o)
					}
				}
			}
			parents := Basis{Origin: a.Server()}
			if when != "the merge comes last" {
				state, chain := a.stateAndChain(room, merge.StateBefore)
				for _, e := range append(chain, state...) {
					_, _ = b.Accept(t.Context(), e, Basis{Kind: Nothing, Origin: a.Server()})
				}
				fetch(above, claimed(state, a))
			}
			fetch(append(under, forks[0]...), parents)
			for _, fork := range forks[1:] {
				for page := range slices.Chunk(fork, size) {
					fetch(page, parents)
				}
			}
			if when == "the merge comes last" {
				fetch(above, parents)
			}
			for _, e := range all {
				if got := b.event(e.ID()); (got.Order > 0) != away || away && got.Order > b.record(room).Breaks[0].Before {
					t.Errorf("%s, pages of %d: %s has order %d", when, size, e.Content(), got.Order)
				}
			}
			b.wantSorted(room)
			b.wantCounted(room)
		}
	}
}

// One event gives hundreds of outliers their place, whose neighbours are close: each of them costs a few reads.
func TestPlacingReadsLittle(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice)
	base := a.setState(room, alice, "org.example.base", "", "{}")
	past := a.pdus(a.order(room))
	first := a.lie(a, said(room, alice, ""), claim{ts: a.now, depth: 100, parents: []eventgraph.EventID{base}})
	var outliers []*eventgraph.Event
	var mids []eventgraph.EventID
	for i := range 10 {
		var leaves []eventgraph.EventID
		for j := range 20 {
			e := a.on(first, fmt.Sprint("leaf ", i, j), base)
			outliers, leaves = append(outliers, e), append(leaves, e.ID())
		}
		mid := a.on(first, fmt.Sprint("mid ", i), leaves...)
		outliers, mids = append(outliers, mid), append(mids, mid.ID())
	}
	top := a.on(first, "top", mids...)
	last := a.on(first, "last", top.ID())

	state, chain := a.stateAndChain(room, a.record(room).State)
	draft := eventgraph.Draft{
		RoomID: room, Type: "m.room.member", Sender: bob, StateKey: stateKey(string(bob)), Content: []byte(`{"membership":"join"}`),
		PrevEvents: ids([]*eventgraph.Event{last}), Depth: 101, OriginServerTS: a.now.UnixMilli(),
	}
	for _, tuple := range auth.Selection("12", draft) {
		if id, ok, err := a.StateAt(room, a.record(room).State).EventID(tuple); err != nil {
			t.Fatal(err)
		} else if ok {
			draft.AuthEvents = append(draft.AuthEvents, id)
		}
	}
	join, err := eventgraph.Build("12", draft, b.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.takeJoin(join, state, chain); err != nil {
		t.Fatal(err)
	}
	b.backfillAll(a, past)
	for some := range slices.Chunk(append(slices.Clone(outliers), last), 100) {
		if _, err := b.AcceptAll(t.Context(), some, Basis{Kind: Nothing, Origin: a.Server()}); err != nil {
			t.Fatal(err)
		}
	}
	reads := b.readsFor(func() { b.accept(pdu(t, top), Basis{Origin: a.Server()}, store.Accepted) })
	if n := uint64(len(outliers)); reads > 8*n {
		t.Errorf("%d reads to place %d", reads, n)
	}
	b.wantSorted(room)
	b.wantCounted(room)
}

// What an event rests on gets its place with it, and first of all its auth events: none of them has the order of another.
func TestPlacedAuthEventHasItsOwnOrder(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice := a.user("alice")
	room := a.create("11", alice)
	base := a.setState(room, alice, "org.example.state", "", `{}`)
	past := a.pdus(a.order(room))
	named := a.forge(Draft{
		Room: room, Sender: alice, Type: "m.room.member", StateKey: stateKey(string(alice)), Content: []byte(`{"membership":"join","displayname":"Alice"}`),
	}, []eventgraph.EventID{base})
	a.accept(named, Basis{}, store.Accepted)
	authEvents := []eventgraph.EventID{named.ID()}
	for _, id := range named.AuthEvents() {
		if kind := a.event(id).Type(); kind != "m.room.member" && kind != "m.room.join_rules" {
			authEvents = append(authEvents, id)
		}
	}
	beside := a.forge(Draft{Room: room, Sender: alice, Type: "org.example.beside", StateKey: stateKey(""), Content: []byte(`{}`)}, []eventgraph.EventID{base}, authEvents...)
	a.accept(beside, Basis{}, store.Accepted)
	on := a.forge(said(room, alice, "on it"), []eventgraph.EventID{beside.ID()})
	a.accept(on, Basis{}, store.Accepted)
	b.join(a, room, b.user("bob"))
	for _, e := range past {
		b.accept(e, Basis{Origin: a.Server()}, store.Accepted)
	}
	b.accept(pdu(t, on), Basis{Origin: a.Server()}, store.Accepted)

	order := b.order(room)
	for _, e := range []*eventgraph.Event{named, beside, on} {
		if at := b.event(e.ID()).Order; at <= b.event(base).Order || !slices.Contains(order, e.ID()) {
			t.Errorf("%s has order %d, and is in the room's order: %v", e.Type(), at, slices.Contains(order, e.ID()))
		}
	}
	b.wantCounted(room)
}

// Hundreds of events that rest on one of the past, and come after it, stand above it.
func TestManyForksOfThePast(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice := a.user("alice")
	room := a.create("12", alice)
	base := a.setState(room, alice, "org.example.base", "", "{}")
	past := a.pdus(a.order(room))
	first := a.lie(a, said(room, alice, ""), claim{ts: a.now, parents: []eventgraph.EventID{base}})
	var forks []*eventgraph.Event
	for i := range 250 {
		forks = append(forks, a.on(first, fmt.Sprint("fork ", i), base))
	}
	a.takeAll(forks)
	for len(a.record(room).Forward) > 1 {
		a.message(room, alice, "merge")
	}
	b.join(a, room, b.user("bob"))
	b.backfillAll(a, past)
	for page := range slices.Chunk(forks, 50) {
		b.backfillAll(a, page)
	}
	b.wantSorted(room)
	b.wantCounted(room)
}

// What a page holds and is not taken in, or is rejected, has no order, and is not counted.
func TestCountOfAPageInPart(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, mallory := a.user("alice"), a.user("mallory")
	room := a.create("12", alice)
	base := a.message(room, alice, "base")
	page := a.pdus(a.order(room))
	bad := a.lie(a, said(room, mallory, "not in the room"), claim{ts: a.now, depth: 100, parents: []eventgraph.EventID{base}})
	a.accept(bad, Basis{}, store.Rejected)
	lost := a.message(room, alice, "lost on the way")
	after := a.message(room, alice, "after it")
	b.join(a, room, b.user("bob"))
	page = append(page, pdu(t, bad), pdu(t, a.event(after).Event))
	outcomes, err := b.AcceptAll(t.Context(), page, Basis{Backfill: true, Origin: a.Server()})
	if err != nil {
		t.Fatal(err)
	}
	last := len(outcomes) - 1
	if outcomes[last-1].Verdict != store.Rejected || outcomes[last].Err == nil || len(outcomes) != len(page) {
		t.Fatalf("%+v, though %s is not here", outcomes[last-1:], lost)
	}
	b.wantCounted(room)
}
