package rooms

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// However many gaps a member's server makes, it loses its own: what was before our join can be fetched still, and what was before an event of another
// member, that came after all of those.
func TestAttackGapsPushOutOwn(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	a.message(room, alice, "history")
	d := newServer(t, "d", a, b)
	d.join(a, room, d.user("dora"))
	join := d.record(room).Backward
	old := d.record(room).Forward
	state, _ := d.stateAndChain(room, d.event(old[0]).StateAfter)
	gap := func(by *server, base *eventgraph.Event, i int) *eventgraph.Event {
		e := by.on(base, fmt.Sprint("gap ", i), by.on(base, fmt.Sprint("never given ", i), old...).ID())
		d.accept(e, claimed(state, by), store.Accepted)
		return e
	}
	base := b.lie(d, said(room, bob, ""), claim{ts: b.now, parents: old})
	oldest := gap(b, base, 0)
	for i := range maxBackward {
		gap(b, base, i+1)
	}
	last := gap(a, a.lie(d, said(room, alice, ""), claim{ts: a.now, parents: old}), 0)
	back := d.record(room).Backward
	if len(back) < keptBackward || len(back) > maxBackward || !slices.IsSorted(back) {
		t.Errorf("%d backward extremities, or not sorted", len(back))
	}
	for what, id := range map[string]eventgraph.EventID{"the join": join[0], "the other member's": last.ID(), "the oldest": oldest.ID()} {
		if !slices.Contains(back, id) {
			t.Errorf("%s is no backward extremity any more", what)
		}
	}
}

// Which backward extremities stay is shared among the servers, whatever the event IDs and the order in which they come.
func TestKeepFirst(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what string
		gaps []gap // named by order and, where that is the same, ID
		want string
	}{
		{"the older first", []gap{{"c", "m", 3, false}, {"a", "m", -4, false}, {"b", "m", 3, false}}, "a b c"},
		{"ours before all", []gap{{"a", "m", -4, false}, {"b", "own", 8, false}, {"c", "m", 1, true}, {"d", "own", 9, false}}, "b d c a"},
		{
			"one of each in turn",
			[]gap{{"a", "m", -9, false}, {"b", "m", -8, false}, {"c", "m", -7, false}, {"d", "a", 5, false}, {"e", "a", 6, false}, {"f", "b", 7, false}},
			"a d f b e c",
		},
		{"of one server those in breaks", []gap{{"a", "m", -9, false}, {"b", "m", 8, true}, {"c", "a", 2, false}, {"d", "m", 7, true}}, "d c b a"},
	} {
		slices.Reverse(test.gaps)
		var got []string
		for _, g := range keepFirst(test.gaps, "own") {
			got = append(got, string(g.id))
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %s", test.what, got, test.want)
		}
	}
}

// However many events on true claims wait for the same parent, each is found true: those that are too many at once with the events that come
// later, through a restart too. No event resolves more than a few states for them.
func TestTrueClaimAmongMany(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: a.record(room).Forward})
	a.setState(room, alice, "m.room.name", "", `{"name":"known"}`)
	mine := a.record(room).Forward
	missing := b.on(base, "missing", mine...)
	state, _ := a.stateAndChain(room, a.event(mine[0]).StateAfter)
	var above []eventgraph.EventID
	for i := range 3 * maxProofs {
		e := b.on(base, fmt.Sprint("above ", i), missing.ID())
		a.accept(e, claimed(state, b), store.Accepted)
		above = append(above, e.ID())
	}
	gaps := func() (n int) {
		for _, id := range above {
			if a.event(id).Gap {
				n++
			}
		}
		return n
	}
	a.accept(missing, Basis{Origin: b.Server()}, store.Accepted)
	if n := gaps(); n != 2*maxProofs || len(a.record(room).Backward) != 0 {
		t.Errorf("%d claims are still to be looked at, of %d; backward extremities %v", n, len(above), a.record(room).Backward)
	}
	a.restarted()
	for left := 2 * maxProofs; left > 0; {
		a.message(room, alice, "later")
		left -= maxProofs
		if n := gaps(); n != left {
			t.Errorf("%d claims are still to be looked at, want %d", n, left)
		}
	}
	if left := a.record(room).Unproven; len(left) != 0 {
		t.Errorf("still waiting: %v", left)
	}
}
