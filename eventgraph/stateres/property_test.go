package stateres

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
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

// tallHistory is a history with more in it than an honest room has: a tower of power levels and joins that rest on one another,
// events with auth events that nobody selects, rejected ones among them, and at the end states as a server may claim them, of old
// events and without some, also more than a word has bits.
func tallHistory(t *rapid.T) (*world, []state) {
	w, branches := history(t)
	var sent []*eventgraph.Event
	note := func(e *eventgraph.Event) { sent = append(sent, e) }
	for _, e := range w.named {
		note(e)
	}
	slices.SortFunc(sent, func(a, b *eventgraph.Event) int { return strings.Compare(w.names[a.ID()], w.names[b.ID()]) })
	for n := range rapid.IntRange(0, 40).Draw(t, "tower") {
		s := branches[rapid.IntRange(0, len(branches)-1).Draw(t, "branch")]
		ts := rapid.IntRange(1, 60).Draw(t, "ts")
		lie := ""
		for range rapid.SampledFrom([]int{0, 0, 0, 1, 3}).Draw(t, "lies") {
			lie += "+" + w.names[rapid.SampledFrom(sent).Draw(t, "cited").ID()] + " "
		}
		var e *eventgraph.Event
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			e = w.send(s, fmt.Sprintf(`t%d@%d %sm.room.member @u%d @u%d {"membership":"join"}`, n, ts, lie, n, n))
		case 1:
			e = w.send(s, fmt.Sprintf(`t%d@%d %sm.room.topic '' @u%d {"topic":"%d"}`, n, ts, lie, rapid.IntRange(0, n).Draw(t, "u"), n))
		default:
			e = w.send(s, fmt.Sprintf(`t%d@%d %sm.room.power_levels '' @alice %s`, n, ts, lie, w.levels(fmt.Sprintf(`"@bob":50,"@u%d":50`, n), fmt.Sprintf(`,"invite":%d`, n%3))))
		}
		note(e)
		w.rejected[e.ID()] = rapid.IntRange(0, 9).Draw(t, "rejected") == 0
	}
	states := slices.Clone(branches)
	for range rapid.SampledFrom([]int{0, 0, 1, 2, 3, 70, 130}).Draw(t, "claims") {
		s := maps.Clone(rapid.SampledFrom(branches).Draw(t, "of"))
		for range rapid.IntRange(1, 3).Draw(t, "claimed") {
			tuple, ok := rapid.SampledFrom(sent).Draw(t, "claim").Tuple()
			if !ok {
				continue
			}
			delete(s, tuple)
			if e := rapid.SampledFrom(sent).Draw(t, "instead"); rapid.Bool().Draw(t, "put") {
				tuple, _ := e.Tuple()
				s[tuple] = e.ID()
			}
		}
		states = append(states, s)
	}
	return w, states
}

// world.resolve tries every order of the states; each run also meets another order of Go's maps. What no state differs on
// stays, and what comes out is among the events of the states and their auth chains.
func TestOrderOfStatesDoesNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, branches := tallHistory(t)
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

// chains are the auth chains of events, by the definition.
type chains map[eventgraph.EventID]map[eventgraph.EventID]bool

func (w *world) chains() chains {
	c := make(chains)
	for id := range w.events {
		c[id] = w.fullChain(state{{}: id})
	}
	return c
}

// reaches says whether a path of auth events leads from a to b, or a is b.
func (c chains) reaches(a, b eventgraph.EventID) bool { return a == b || c[a][b] }

// fullConflictedSet is that of the definitions.
func (w *world) fullConflictedSet(states []state, reaches func(a, b eventgraph.EventID) bool) map[eventgraph.EventID]bool {
	set := make(map[eventgraph.EventID]bool)
	// Conflicted state set.
	full, all := make([]map[eventgraph.EventID]bool, len(states)), make(map[eventgraph.EventID]bool)
	for i, s := range states {
		for tuple, id := range s {
			if slices.ContainsFunc(states, func(o state) bool { return o[tuple] != id }) {
				set[id] = true
			}
		}
		full[i] = w.fullChain(s)
		maps.Copy(all, full[i])
	}
	// Conflicted state subgraph.
	if w.version == "12" {
		conflicted := slices.Collect(maps.Keys(set))
		for id := range all {
			if slices.ContainsFunc(conflicted, func(c eventgraph.EventID) bool { return reaches(c, id) }) &&
				slices.ContainsFunc(conflicted, func(c eventgraph.EventID) bool { return reaches(id, c) }) {
				set[id] = true
			}
		}
	}
	// Auth difference.
	for id := range all {
		if slices.ContainsFunc(full, func(c map[eventgraph.EventID]bool) bool { return !c[id] }) {
			set[id] = true
		}
	}
	return set
}

// The full conflicted set and the two orderings are those of the definitions, though they are found without walking whole
// auth chains or the unconflicted state.
func TestDefinitions(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, states := tallHistory(t)
		chains := w.chains()
		want := w.fullConflictedSet(states, chains.reaches)

		var roots []eventgraph.Hash
		for _, s := range states {
			roots = append(roots, w.root(s))
		}
		slices.SortFunc(roots, func(a, b eventgraph.Hash) int { return slices.Compare(a[:], b[:]) })
		roots = slices.Compact(roots)
		r := newResolver(w.version, roots, w, w)
		r.citers = rapid.SampledFrom(citersTried).Draw(t, "citers")
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

		// X: the power events, and what of the full conflicted set they rest on.
		set := r.powerEvents()
		for _, n := range r.full {
			inX := slices.ContainsFunc(r.full, func(p *node) bool { return isPowerEvent(p) && chains.reaches(p.ID(), n.ID()) })
			if inX != slices.Contains(set, n) {
				t.Errorf("%s: among the power events and what they rest on: %v", w.names[n.ID()], !inX)
			}
		}

		// The power events come after those of the set that they cite, and of those that could come next the smallest does.
		sorted, err := r.byPower(slices.Clone(set))
		if err != nil {
			t.Fatal(err)
		}
		if len(sorted) != len(set) {
			t.Fatalf("sorted %d events into %d", len(set), len(sorted))
		}
		for i, n := range sorted {
			for _, later := range sorted[i+1:] {
				if slices.Contains(n.AuthEvents(), later.ID()) {
					t.Errorf("%s comes before %s, which it cites", w.names[n.ID()], w.names[later.ID()])
				}
				free := !slices.ContainsFunc(sorted[i:], func(o *node) bool { return slices.Contains(later.AuthEvents(), o.ID()) })
				if free && w.less(later.Event, n.Event) {
					t.Errorf("%s comes before %s, which is smaller and free", w.names[n.ID()], w.names[later.ID()])
				}
			}
		}

		if err := r.apply(sorted); err != nil {
			t.Fatal(err)
		}
		levels, err := r.partial(tuplePower)
		if err != nil {
			t.Fatal(err)
		}
		rest := slices.DeleteFunc(slices.Clone(r.full), func(n *node) bool { return n.ordered })
		if rest, err = r.byMainline(rest); err != nil {
			t.Fatal(err)
		}
		var mainline []eventgraph.EventID
		if levels != nil {
			mainline = append([]eventgraph.EventID{levels.ID()}, w.powerLevelsBelow(levels.ID())...)
		}
		for i := 1; i < len(rest); i++ {
			x, y := rest[i-1].Event, rest[i].Event
			px, py := w.mainlinePosition(mainline, x.ID()), w.mainlinePosition(mainline, y.ID())
			if px < py || px == py && (x.OriginServerTS() > y.OriginServerTS() || x.OriginServerTS() == y.OriginServerTS() && x.ID() > y.ID()) {
				t.Errorf("%s, at %d, comes before %s, at %d", w.names[x.ID()], px, w.names[y.ID()], py)
			}
		}
	})
}

// powerLevelsBelow are the power levels that an event cites, those that these cite, and so on.
func (w *world) powerLevelsBelow(id eventgraph.EventID) (list []eventgraph.EventID) {
	for {
		i := slices.IndexFunc(w.events[id].AuthEvents(), func(a eventgraph.EventID) bool {
			tuple, _ := w.events[a].Tuple()
			return tuple == where(levels)
		})
		if i < 0 {
			return list
		}
		id = w.events[id].AuthEvents()[i]
		list = append(list, id)
	}
}

func (w *world) mainlinePosition(mainline []eventgraph.EventID, id eventgraph.EventID) int {
	for _, e := range w.powerLevelsBelow(id) {
		if i := slices.Index(mainline, e); i >= 0 {
			return i
		}
	}
	return math.MaxInt
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
		// Of several at a tuple the first counts.
		if tuple, _ := w.events[id].Tuple(); s[tuple] == "" {
			s[tuple] = id
		}
	}
	p, err := auth.UserPower(e.Sender(), checked{w, s})
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	return p.Level
}

// reader counts reads of events and trie nodes.
type reader struct {
	w             *world
	events, nodes map[string]int
}

func (w *world) reader() *reader { return &reader{w, make(map[string]int), make(map[string]int)} }

func (r *reader) Event(id eventgraph.EventID) (Held, error) {
	r.events[string(id)]++
	return r.w.Event(id)
}

func (r *reader) CitedBy(id eventgraph.EventID, f func(eventgraph.EventID) bool) error {
	return r.w.CitedBy(id, f)
}

func (r *reader) TrieNode(h eventgraph.Hash) ([]byte, error) {
	r.nodes[string(h[:])]++
	return r.w.TrieNode(h)
}

// In a room of 1,200 entries and auth chains of 1,000 events, a fork near the top reads neither the room nor the chains, and
// one that touches something old reads the chains once, and not the room.
func TestReadsOfTheDifference(t *testing.T) {
	t.Parallel()
	for _, v := range []eventgraph.RoomVersion{"11", "12"} {
		w := newWorld(t, v)
		s := w.oldRoom(1200)
		holder := fmt.Sprintf("@h%d", levelChanges)
		w.allowed(s, `@9999 m.room.member %s %s {"membership":"join"}`, holder, holder)
		for _, c := range []struct {
			what     string
			a, b     string
			most     int
			walksAll bool
		}{
			{what: "notes of the one in power", a: `m.room.name '' ` + holder + ` {"n":1}`, b: `m.room.name '' ` + holder + ` {"n":2}`, most: 10},
			{what: "levels and a note", a: `m.room.power_levels '' ` + holder + ` ` + w.levels(`"`+holder+`":50`, ``), b: `m.room.name '' ` + holder + ` {"n":2}`, most: 10},
			{what: "an old topic", a: `m.room.topic '' ` + holder + ` {"n":1}`, b: `m.room.name '' ` + holder + ` {"n":2}`, most: 1200, walksAll: true},
		} {
			a, b := maps.Clone(s), maps.Clone(s)
			w.send(a, `@10000 `+c.a)
			w.send(b, `@10001 `+c.b)
			r := w.reader()
			if _, _, err := Resolve(v, []eventgraph.Hash{w.root(a), w.root(b)}, r, r); err != nil {
				t.Fatal(err)
			}
			if len(r.events) > c.most || c.walksAll && len(r.events) < levelChanges {
				t.Errorf("version %s, %s: read %d events", v, c.what, len(r.events))
			}
			for what, counts := range map[string]map[string]int{"event": r.events, "trie node": r.nodes} {
				for id, n := range counts {
					if n > 1 {
						t.Errorf("version %s, %s: %s %x read %d times", v, c.what, what, id, n)
					}
				}
			}
		}
	}
}
