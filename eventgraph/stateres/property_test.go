package stateres

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"pgregory.net/rapid"
)

// act sends something random on a branch, if the auth rules allow it there.
func (w *world) act(t *rapid.T, s state, n int) {
	user := func(label string) string {
		return rapid.SampledFrom([]string{"alice", "bob", "carol", "dave", "eve"}).Draw(t, label)
	}
	sender := user("sender")
	line := fmt.Sprintf("e%d@%d ", n, rapid.IntRange(1, 60).Draw(t, "ts")) // clocks lie
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0, 1:
		line += fmt.Sprintf(`m.room.topic '' @%s {"topic":"%d"}`, sender, n)
	case 2:
		line += fmt.Sprintf(`m.room.join_rules '' @%s {"join_rule":"%s","n":%d}`, sender, rapid.SampledFrom([]string{"public", "invite", "knock"}).Draw(t, "rule"), n)
	case 3:
		users := ""
		for _, u := range []string{"bob", "carol", "dave"} {
			users += fmt.Sprintf(`"@%s":%d,`, u, rapid.SampledFrom([]int{0, 49, 50, 100}).Draw(t, u))
		}
		line += fmt.Sprintf(`m.room.power_levels '' @%s %s`, sender, w.levels(users[:len(users)-1], fmt.Sprintf(`,"invite":%d`, n%3)))
	case 4:
		line += fmt.Sprintf(`m.room.member @%s @%s {"membership":"%s","n":%d}`, sender, sender, rapid.SampledFrom([]string{"join", "join", "leave", "knock"}).Draw(t, "own"), n)
	default:
		line += fmt.Sprintf(`m.room.member @%s @%s {"membership":"%s","n":%d}`, user("target"), sender,
			rapid.SampledFrom([]string{"invite", "leave", "ban"}).Draw(t, "membership"), n)
	}
	after := maps.Clone(s)
	e := w.send(after, line)
	if auth.Check(e, checked{w, s}) == nil {
		maps.Copy(s, after)
	}
}

// history makes a room with some branches, which fork, go on and merge.
func history(t *rapid.T) (*world, []state) {
	w := newWorld(t, rapid.SampledFrom([]eventgraph.RoomVersion{"6", "11", "12"}).Draw(t, "version"))
	branches := []state{w.begin()}
	for n := range rapid.IntRange(5, 30).Draw(t, "steps") {
		i := rapid.IntRange(0, len(branches)-1).Draw(t, "branch")
		switch what := rapid.IntRange(0, 9).Draw(t, "step"); {
		case what == 0 && len(branches) < 4:
			branches = append(branches, maps.Clone(branches[i]))
		case what == 1 && len(branches) > 1:
			j := rapid.IntRange(0, len(branches)-1).Draw(t, "other")
			branches[i] = w.resolve(branches[i], branches[j])
		default:
			w.act(t, branches[i], n)
		}
	}
	for len(branches) < 2 {
		fork := maps.Clone(branches[0])
		w.act(t, fork, 100)
		branches = append(branches, fork)
	}
	return w, branches
}

// world.resolve tries every order of the states; each run also meets another order of Go's maps. What no state differs on
// stays, and what comes out is among the events of the states and their auth chains.
func TestOrderOfStatesDoesNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, branches := history(t)
		got := w.resolve(branches...)

		source := make(map[eventgraph.EventID]bool)
		for _, s := range branches {
			for _, id := range s {
				source[id] = true
			}
			maps.Copy(source, w.fullChain(s))
		}
		for tuple, id := range got {
			if !source[id] {
				t.Errorf("%v is an event from nowhere", tuple)
			}
		}
		for tuple, id := range branches[0] {
			if !slices.ContainsFunc(branches, func(s state) bool { return s[tuple] != id }) && got[tuple] != id {
				t.Errorf("%v was in no conflict", tuple)
			}
		}
		// The state so resolved and one that it came from: nothing new to find out about tuples they agree on.
		if again := w.resolve(got, got); !maps.Equal(again, got) {
			t.Errorf("a state does not resolve to itself")
		}
	})
}

// fullChain is the union of the auth chains of a state's events, by the definition.
func (w *world) fullChain(s state) map[eventgraph.EventID]bool {
	chain := make(map[eventgraph.EventID]bool)
	stack := slices.Collect(maps.Values(s))
	for len(stack) > 0 {
		e := w.events[stack[len(stack)-1]]
		stack = stack[:len(stack)-1]
		for _, id := range e.AuthEvents() {
			if !chain[id] {
				chain[id] = true
				stack = append(stack, id)
			}
		}
	}
	return chain
}

// reaches says whether a path of auth events leads from a to b, or a is b.
func (w *world) reaches(a, b eventgraph.EventID) bool {
	return a == b || w.fullChain(state{{}: a})[b]
}

// The full conflicted set is that of the definitions, though it is found without walking the unconflicted state.
func TestFullConflictedSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, branches := history(t)
		want := make(map[eventgraph.EventID]bool)
		// Conflicted state set.
		var conflicted []eventgraph.EventID
		chains, all := make([]map[eventgraph.EventID]bool, len(branches)), make(map[eventgraph.EventID]bool)
		for i, s := range branches {
			for tuple, id := range s {
				if slices.ContainsFunc(branches, func(o state) bool { return o[tuple] != id }) {
					want[id] = true
					conflicted = append(conflicted, id)
				}
			}
			chains[i] = w.fullChain(s)
			maps.Copy(all, chains[i])
		}
		// Conflicted state subgraph.
		if w.version == "12" {
			for id := range all {
				if slices.ContainsFunc(conflicted, func(c eventgraph.EventID) bool { return w.reaches(c, id) }) &&
					slices.ContainsFunc(conflicted, func(c eventgraph.EventID) bool { return w.reaches(id, c) }) {
					want[id] = true
				}
			}
		}
		// Auth difference.
		for id := range all {
			if slices.ContainsFunc(chains, func(c map[eventgraph.EventID]bool) bool { return !c[id] }) {
				want[id] = true
			}
		}

		var roots []eventgraph.Hash
		for _, s := range branches {
			roots = append(roots, w.root(s))
		}
		slices.SortFunc(roots, func(a, b eventgraph.Hash) int { return slices.Compare(a[:], b[:]) })
		roots = slices.Compact(roots)
		r := newResolver(w.version, roots, w, w)
		if err := r.findConflicts(); err != nil {
			t.Fatal(err)
		}
		got := make(map[eventgraph.EventID]bool)
		for _, n := range r.full {
			if got[n.ID()] {
				t.Errorf("%s is twice in the full conflicted set", w.names[n.ID()])
			}
			got[n.ID()] = true
		}
		for id := range want {
			if !got[id] {
				t.Errorf("%s is missing in the full conflicted set", w.names[id])
			}
		}
		for id := range got {
			if !want[id] {
				t.Errorf("%s is not of the full conflicted set", w.names[id])
			}
		}

		// The power events come after all that they rest on, and of those that could come next the smallest does.
		set, err := r.powerEvents()
		if err != nil {
			t.Fatal(err)
		}
		sorted, err := r.byPower(slices.Clone(set))
		if err != nil {
			t.Fatal(err)
		}
		if len(sorted) != len(set) {
			t.Fatalf("sorted %d events into %d", len(set), len(sorted))
		}
		for i, n := range sorted {
			for _, later := range sorted[i+1:] {
				if w.reaches(n.ID(), later.ID()) {
					t.Errorf("%s comes before %s, which it rests on", w.names[n.ID()], w.names[later.ID()])
				}
				free := !slices.ContainsFunc(sorted[i:], func(o *node) bool { return o != later && w.reaches(later.ID(), o.ID()) })
				if free && w.less(later.Event, n.Event) {
					t.Errorf("%s comes before %s, which is smaller and free", w.names[n.ID()], w.names[later.ID()])
				}
			}
		}
	})
}

// less is the comparison of the reverse topological power ordering.
func (w *world) less(x, y *eventgraph.Event) bool {
	px, py := w.senderLevel(x), w.senderLevel(y)
	switch {
	case px != py:
		return px > py
	case x.OriginServerTS() != y.OriginServerTS():
		return x.OriginServerTS() < y.OriginServerTS()
	}
	return x.ID() < y.ID()
}

func (w *world) senderLevel(e *eventgraph.Event) int64 {
	s := state{{Type: "m.room.create"}: w.id("create")}
	if e.Type() == "m.room.create" && w.version != "12" {
		delete(s, eventgraph.StateTuple{Type: "m.room.create"})
	}
	for _, id := range e.AuthEvents() {
		tuple, _ := w.events[id].Tuple()
		s[tuple] = id
	}
	p, err := auth.UserPower(e.Sender(), checked{w, s})
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	return p.Level
}

// A room of 2,000 members, forked by a change of power levels and a topic on one side, a topic on the other.
func BenchmarkResolve(b *testing.B) {
	w := newWorld(b, "12")
	s := w.begin()
	for i := range 2000 {
		w.send(s, fmt.Sprintf(`m%d@%d m.room.member @u%d @u%d {"membership":"join"}`, i, 10+i, i, i))
	}
	x, y := maps.Clone(s), maps.Clone(s)
	w.send(x, `PX@3000 m.room.power_levels '' @alice `+w.levels(`"@bob":50`, ``))
	w.send(x, `TX@3001 m.room.topic '' @bob {"topic":"x"}`)
	w.send(y, `TY@3002 m.room.topic '' @dave {"topic":"y"}`)
	roots := []eventgraph.Hash{w.root(x), w.root(y)}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Resolve("12", roots, w, w); err != nil {
			b.Fatal(err)
		}
	}
}
