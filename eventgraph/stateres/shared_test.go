package stateres

import (
	"fmt"
	"maps"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// citersTried are bounds on the events that dropShared looks at: with the second it looks downwards at once, with the last it gives up
// soon. The results are the same.
var citersTried = []int{usualCiters, -1 << 20, 0, 5}

// Whether unconflicted state leads to a membership that one side alone rests on is found without reading that state.
func TestReadsOfARareMember(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		for i := range 100 {
			w.send(s, fmt.Sprintf(`@%d m.room.member @u%d @u%d {"membership":"join"}`, 10+i, i, i))
		}
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `T1@200 m.room.topic '' @bob {"topic":"1"}`)
		w.send(b, `T2@201 m.room.topic '' @dave {"topic":"2"}`)
		if all, most := w.countReads(a, b); all > 10 || most > 1 {
			t.Errorf("version %s: %d reads, %d of one event", v, all, most)
		}
		// A member's event in the unconflicted state rests on it, by way of power levels that are no longer in the state.
		w.send(s, `P2@202 m.room.power_levels '' @bob `+w.levels(`"@bob":50,"@dave":50`, `,"n":1`))
		w.send(s, `erin@203 m.room.member @erin @erin {"membership":"join"}`)
		w.send(s, `P3@204 m.room.power_levels '' @alice `+w.levels(`"@bob":50,"@dave":50`, `,"n":2`))
		a, b = maps.Clone(s), maps.Clone(s)
		w.send(a, `T3@205 m.room.topic '' @bob {"topic":"1"}`)
		w.send(b, `T4@206 m.room.topic '' @dave {"topic":"2"}`)
		r := w.resolver(a, b)
		if err := r.findConflicts(); err != nil {
			t.Fatal(err)
		}
		full := make(map[string]bool)
		for _, n := range r.full {
			full[w.names[n.ID()]] = true
		}
		if full["bob"] || !full["dave"] || !full["T3"] {
			t.Errorf("version %s: the full conflicted set is %v", v, full)
		}
	}
}

// A member makes so many events that rest on his membership, and that are in no state, that to look at them would cost more than
// the room. Then no more of them are looked at than the bound says.
func TestAttackManyCitingEvents(t *testing.T) {
	t.Parallel()
	const bound, made = 100, 400
	for _, v := range []eventgraph.RoomVersion{"11", "12"} {
		w := newWorld(t, v)
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		for i := range made {
			w.send(a, fmt.Sprintf(`T%d@%d m.room.topic '' @bob {"topic":"1"}`, i+1, 20+i))
		}
		w.send(b, `other@10 m.room.topic '' @dave {"topic":"1"}`)
		reads := make(map[int]int)
		for _, citers := range []int{bound, 2 * made} {
			clear(w.reads)
			r := w.resolver(a, b)
			r.citers = citers
			if err := r.findConflicts(); err != nil {
				t.Fatal(err)
			}
			full := make(map[string]bool)
			for _, n := range r.full {
				full[w.names[n.ID()]] = true
			}
			// The two topics, and the members whom only they rest on.
			if want := map[string]bool{fmt.Sprint("T", made): true, "other": true, "bob": true, "dave": true}; !maps.Equal(full, want) {
				t.Errorf("version %s: the full conflicted set is %v, want %v", v, full, want)
			}
			reads[citers] = len(w.reads)
		}
		if most := bound + 3*len(s); reads[bound] > most || reads[2*made] < made {
			t.Errorf("version %s: %v reads, with the bound no more than %d", v, reads, most)
		}
	}
}
