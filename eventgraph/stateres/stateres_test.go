package stateres

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	topic  = "m.room.topic"
	rules  = "m.room.join_rules"
	levels = "m.room.power_levels"
)

// versions: one for each difference that matters here, and the last with state resolution 2.1.
var versions = []eventgraph.RoomVersion{"3", "6", "10", "11", "12"}

// scenario forks a room and resolves the states of the forks. What comes out is computed by hand from the
// spec; the comments say how. Tuples not named stay as in the room that was forked.
type scenario struct {
	name  string
	forks [][]string        // see world.send; LEVELS(users;more) stands for world.levels
	want  map[string]string // place -> name of the event, "" for none
}

var scenarios = []scenario{
	{
		name: "the same event on both sides of nothing",
		forks: [][]string{
			{`T1@10 m.room.topic '' @bob {"topic":"1"}`},
			{},
		},
		// T0 and T1 cite the same power levels: by time.
		want: map[string]string{topic: "T1"},
	},
	{
		name: "a topic fight goes to the later",
		forks: [][]string{
			{`T1@10 m.room.topic '' @bob {"topic":"1"}`},
			{`T2@11 m.room.topic '' @dave {"topic":"2"}`},
			{`T3@9 m.room.topic '' @alice {"topic":"3"}`}, // more power is no argument among topics
		},
		want: map[string]string{topic: "T2"},
	},
	{
		name: "a topic on newer power levels wins over a later one on older",
		forks: [][]string{
			{`P2@20 m.room.power_levels '' @alice LEVELS("@bob":50,"@dave":50;,"invite":1)`, `T1@21 m.room.topic '' @bob {"topic":"1"}`},
			{`T2@99 m.room.topic '' @dave {"topic":"2"}`},
		},
		// Mainline P2, P1: T2 stands on P1, position 1, and so comes before T1, position 0.
		want: map[string]string{topic: "T1", levels: "P2"},
	},
	{
		name: "power levels that lost still lead to the mainline",
		forks: [][]string{
			{`PA@30 m.room.power_levels '' @alice LEVELS("@bob":50,"@dave":50;,"ban":60)`},
			{`PB@31 m.room.power_levels '' @bob LEVELS("@bob":50,"@dave":50;,"invite":1)`, `TB@42 m.room.topic '' @bob {"topic":"B"}`, `NB@42 m.room.name '' @bob {"name":"B"}`},
			{`TC@41 m.room.topic '' @dave {"topic":"C"}`, `NC@41 m.room.name '' @dave {"name":"C"}`},
		},
		// PB would take away ban, 60. TB rests on PB, which rests on P1, as TC does: the same position, so by time.
		want: map[string]string{levels: "PA", topic: "TB", "m.room.name": "NB"},
	},
	{
		name: "a ban undoes what the banned did meanwhile",
		forks: [][]string{
			{`ban@20 m.room.member @bob @alice {"membership":"ban"}`},
			{`T1@10 m.room.topic '' @bob {"topic":"1"}`, `name@11 m.room.name '' @bob {"name":"x"}`},
		},
		want: map[string]string{"@bob": "ban", topic: "T0", "m.room.name": ""},
	},
	{
		name: "a ban beats a new profile of the banned",
		forks: [][]string{
			{`ban@20 m.room.member @bob @alice {"membership":"ban"}`},
			{`bob2@30 m.room.member @bob @bob {"membership":"join","displayname":"B"}`},
		},
		want: map[string]string{"@bob": "ban"},
	},
	{
		name: "a leave of one's own is no power event: the later membership stays",
		forks: [][]string{
			{`left@20 m.room.member @bob @bob {"membership":"leave"}`},
			{`bob2@30 m.room.member @bob @bob {"membership":"join","displayname":"B"}`},
		},
		// Public room: after left, bob2 is a join like any other.
		want: map[string]string{"@bob": "bob2"},
	},
	{
		name: "of two who kick each other the more powerful stays",
		forks: [][]string{
			{`kick@30 m.room.member @bob @alice {"membership":"leave"}`},
			{`ban@10 m.room.member @carol @bob {"membership":"ban"}`},
		},
		// @alice's comes first, for her power; then @bob is not joined.
		want: map[string]string{"@bob": "kick", "@carol": "carol"},
	},
	{
		name: "power levels: the more powerful first, the other no longer allowed",
		forks: [][]string{
			{`PA@30 m.room.power_levels '' @alice LEVELS("@dave":50;)`},
			{`PB@10 m.room.power_levels '' @bob LEVELS("@bob":50,"@dave":50,"@carol":50;)`},
		},
		want: map[string]string{levels: "PA"},
	},
	{
		name: "power levels: the more powerful first, the other still allowed",
		forks: [][]string{
			{`PA@30 m.room.power_levels '' @alice LEVELS("@bob":50,"@dave":50;,"invite":1)`},
			{`PB@10 m.room.power_levels '' @bob LEVELS("@bob":50,"@dave":50;,"invite":2)`},
		},
		// PB is checked after PA, though sent before it: its alteration of invite from 1 to 2 is below 50.
		want: map[string]string{levels: "PB"},
	},
	{
		name: "power levels of equals: by time, the second checked against the first",
		forks: [][]string{
			{`PA@30 m.room.power_levels '' @bob LEVELS("@bob":50,"@dave":50;,"events":{"x":10})`},
			{`PB@31 m.room.power_levels '' @dave LEVELS("@bob":50,"@dave":50;,"events":{"y":10})`},
		},
		want: map[string]string{levels: "PB"},
	},
	{
		name: "power levels of equals who would take each other's power",
		forks: [][]string{
			{`PA@30 m.room.power_levels '' @alice LEVELS("@bob":50;)`, `PA2@31 m.room.power_levels '' @bob LEVELS("@bob":50,"@carol":20;)`},
			{`PB@5 m.room.power_levels '' @dave LEVELS("@bob":50,"@dave":50,"@carol":30;)`},
		},
		// PA (100) first. Then PA2 (50, its auth event PA) and PB (50) are free: PB is earlier, but @dave has lost
		// his power in PA. PA2 stays. PA is in no state: it is here by the auth difference.
		want: map[string]string{levels: "PA2"},
	},
	{
		name: "closing the room shuts out who joins meanwhile",
		forks: [][]string{
			{`closed@30 m.room.join_rules '' @alice {"join_rule":"invite"}`},
			{`eve@10 m.room.member @eve @eve {"membership":"join"}`},
		},
		want: map[string]string{rules: "closed", "@eve": ""},
	},
	{
		name: "closing the room keeps the invited",
		forks: [][]string{
			{`closed@30 m.room.join_rules '' @alice {"join_rule":"invite"}`},
			{`invited@9 m.room.member @eve @carol {"membership":"invite"}`, `eve@10 m.room.member @eve @eve {"membership":"join"}`},
		},
		// invited is in the auth difference, and by time before eve.
		want: map[string]string{rules: "closed", "@eve": "eve"},
	},
	{
		name: "join rules: the later of equals",
		forks: [][]string{
			{`J1@30 m.room.join_rules '' @bob {"join_rule":"invite"}`},
			{`J2@31 m.room.join_rules '' @dave {"join_rule":"public","x":1}`},
		},
		want: map[string]string{rules: "J2"},
	},
	{
		name: "a promotion that only one side knows carries what was done with it",
		forks: [][]string{
			{`P2@20 m.room.power_levels '' @alice LEVELS("@bob":50,"@dave":50,"@carol":50;)`,
				`P3@21 m.room.power_levels '' @carol LEVELS("@bob":50,"@dave":50,"@carol":50;,"invite":3)`,
				`T1@22 m.room.topic '' @carol {"topic":"1"}`},
			{`T2@99 m.room.topic '' @dave {"topic":"2"}`},
		},
		// P2, in no state but in the auth difference, comes before P3 and makes it allowed.
		want: map[string]string{levels: "P3", topic: "T1"},
	},
	{
		name: "a kick and the return after it, against an older view",
		forks: [][]string{
			{`kick@20 m.room.member @carol @bob {"membership":"leave"}`, `back@21 m.room.member @carol @carol {"membership":"join"}`},
			{`carol2@22 m.room.member @carol @carol {"membership":"join","displayname":"C"}`},
		},
		// kick is a power event of the auth difference and first; back and carol2 follow by time, on the same power levels.
		want: map[string]string{"@carol": "carol2"},
	},
}

func TestScenarios(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		for _, sc := range scenarios {
			t.Run(string(v)+" "+sc.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, v)
				origin := w.begin()
				var states []state
				for _, fork := range sc.forks {
					s := maps.Clone(origin)
					for _, line := range fork {
						w.send(s, w.fill(line))
					}
					states = append(states, s)
				}
				w.expect(w.resolve(states...), origin, sc.want)
			})
		}
	}
}

// fill replaces LEVELS(users;more).
func (w *world) fill(line string) string {
	before, rest, found := strings.Cut(line, "LEVELS(")
	if !found {
		return line
	}
	users, rest, _ := strings.Cut(rest, ";")
	return before + w.levels(users, rest[:len(rest)-1])
}

// expect compares with the events of these names, and with otherwise for all other tuples.
func (w *world) expect(got, otherwise state, want map[string]string) {
	w.t.Helper()
	full := maps.Clone(otherwise)
	for place, name := range want {
		if name == "" {
			delete(full, where(place))
		} else {
			full[where(place)] = w.id(name)
		}
	}
	tuples := slices.Collect(maps.Keys(full))
	for tuple := range got {
		if _, ok := full[tuple]; !ok {
			tuples = append(tuples, tuple)
		}
	}
	for _, tuple := range tuples {
		if got[tuple] != full[tuple] {
			w.t.Errorf("%s %s is %q, want %q", tuple.Type, tuple.Key, w.names[got[tuple]], w.names[full[tuple]])
		}
	}
}

// Equal times: the event ID decides, the greater is applied last.
func TestTieByEventID(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `T1@10 m.room.topic '' @bob {"topic":"1"}`)
		w.send(b, `T2@10 m.room.topic '' @bob {"topic":"2"}`)
		w.send(a, `J1@10 m.room.join_rules '' @bob {"join_rule":"public","x":1}`)
		w.send(b, `J2@10 m.room.join_rules '' @bob {"join_rule":"public","x":2}`)
		want := map[string]string{topic: "T1", rules: "J1"}
		if w.id("T2") > w.id("T1") {
			want[topic] = "T2"
		}
		if w.id("J2") > w.id("J1") {
			want[rules] = "J2"
		}
		w.expect(w.resolve(a, b), s, want)
	}
}

// What rests on no power levels at all comes before what rests on the oldest.
func TestBeforeAllPowerLevels(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := make(state)
		w.create(s)
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `P1@3 m.room.power_levels '' @alice `+w.levels(``, ``))
		w.send(a, `T1@4 m.room.topic '' @alice {"topic":"1"}`)
		w.send(b, `T2@9 m.room.topic '' @alice {"topic":"2"}`)
		w.expect(w.resolve(a, b), s, map[string]string{levels: "P1", topic: "T1"})
	}
}

// byResolution runs f in versions 11 and 12 and compares with what the two algorithms make of it.
func byResolution(t *testing.T, f func(w *world) (got, otherwise state), want2, want21 map[string]string) {
	t.Helper()
	for v, want := range map[eventgraph.RoomVersion]map[string]string{"11": want2, "12": want21} {
		t.Run(string(v), func(t *testing.T) {
			w := newWorld(t, v)
			got, otherwise := f(w)
			w.expect(got, otherwise, want)
		})
	}
}

// A state reset of version 2: @bob set both join rules and has left since, as both states agree. Version 2 checks the
// join rules against a state in which he is gone, and none is left. Version 2.1 starts from nothing, so that
// the join rules' own auth events count.
func TestStateReset(t *testing.T) {
	t.Parallel()
	byResolution(t, func(w *world) (state, state) {
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `J1@20 m.room.join_rules '' @bob {"join_rule":"invite"}`)
		w.send(b, `J2@21 m.room.join_rules '' @bob {"join_rule":"public","x":1}`)
		w.send(s, `left@30 m.room.member @bob @bob {"membership":"leave"}`)
		a[where("@bob")], b[where("@bob")] = w.id("left"), w.id("left")
		return w.resolve(a, b), s
	}, map[string]string{rules: ""}, map[string]string{rules: "J2"})
}

// Power levels P1, P2, P3 each rest on the one before; @carol has power from P2. One state has gone back to P1, the other
// has P3, and both have a name that cites P2: so P2 is in no auth difference. Version 2 applies P3 to P1,
// where @carol has no power. Version 2.1 has P2 in the conflicted state subgraph.
func TestConflictedStateSubgraph(t *testing.T) {
	t.Parallel()
	byResolution(t, func(w *world) (state, state) {
		s := w.begin()
		a := maps.Clone(s)
		b := maps.Clone(s)
		w.send(b, `P2@20 m.room.power_levels '' @alice `+w.levels(`"@carol":50`, ``))
		name := w.send(b, `name@21 m.room.name '' @alice {"name":"x"}`)
		w.send(b, `P3@22 m.room.power_levels '' @carol `+w.levels(`"@carol":50`, `,"invite":1`))
		tuple, _ := name.Tuple()
		a[tuple] = name.ID()
		return w.resolve(a, b), a
	}, map[string]string{levels: "P1"}, map[string]string{levels: "P3"})
}

// As above, but @carol has power in P1 too, P3 claims to be older than P1, and both senders have 100. P1 comes
// first all the same, for P3 rests on it, by way of P2, which is not among the events to sort in version 2.
func TestOrderThroughOutsideEvents(t *testing.T) {
	t.Parallel()
	for _, v := range []eventgraph.RoomVersion{"6", "11"} {
		w := newWorld(t, v)
		s := make(state)
		w.create(s)
		w.send(s, `P1@30 m.room.power_levels '' @alice `+w.levels(`"@carol":100`, ``))
		w.send(s, `JR@4 m.room.join_rules '' @alice {"join_rule":"public"}`)
		w.send(s, `carol@5 m.room.member @carol @carol {"membership":"join"}`)
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(b, `P2@20 m.room.power_levels '' @alice `+w.levels(`"@carol":100`, `,"kick":1`))
		name := w.send(b, `name@21 m.room.name '' @alice {"name":"x"}`)
		w.send(b, `P3@2 m.room.power_levels '' @carol `+w.levels(`"@carol":100`, `,"kick":2`))
		tuple, _ := name.Tuple()
		a[tuple] = name.ID()
		w.expect(w.resolve(a, b), a, map[string]string{levels: "P3"})
	}
}

// An event of the auth difference whose tuple is not in conflict is applied on the way, but does not stay (step 5).
func TestUnconflictedStays(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `T1@20 m.room.topic '' @bob {"topic":"1"}`)
		// Does not cite the old membership, which so is in the auth chains of one state only.
		bob2 := w.send(s, `bob2@21 -bob m.room.member @bob @bob {"membership":"join","displayname":"B"}`)
		tuple, _ := bob2.Tuple()
		a[tuple], b[tuple] = bob2.ID(), bob2.ID()
		w.expect(w.resolve(a, b), b, map[string]string{topic: "T1", "@bob": "bob2"})
	}
}

// An event of the auth difference whose tuple is in neither state comes into the result if it is allowed.
func TestAuthDifferenceAdds(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `eve@20 m.room.member @eve @eve {"membership":"join"}`)
		w.send(a, `P2@21 m.room.power_levels '' @alice `+w.levels(`"@bob":50,"@dave":50,"@eve":50`, ``))
		w.send(a, `T1@22 m.room.topic '' @eve {"topic":"1"}`)
		delete(a, where("@eve")) // a state that a server claims
		w.expect(w.resolve(a, b), s, map[string]string{topic: "T1", levels: "P2", "@eve": "eve"})
	}
}

// A rejected auth event does not stand in for missing state: in version 2.1, where the checks start from nothing, the
// join rules of one whose join was rejected are not allowed.
func TestRejectedAuthEvent(t *testing.T) {
	t.Parallel()
	for rejected, want := range map[bool]string{false: "J2", true: ""} {
		w := newWorld(t, "12")
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `J1@20 m.room.join_rules '' @bob {"join_rule":"invite"}`)
		w.send(b, `J2@21 m.room.join_rules '' @bob {"join_rule":"public","x":1}`)
		w.rejected[w.id("bob")] = rejected
		w.expect(w.resolve(a, b), s, map[string]string{rules: want})
	}
}

// Tuples that only one of three states has, and states that share their conflict.
func TestThreeStates(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		a, b, c := maps.Clone(s), maps.Clone(s), maps.Clone(s)
		w.send(a, `T1@20 m.room.topic '' @bob {"topic":"1"}`)
		b[where(topic)] = w.id("T1")
		w.send(b, `name@21 m.room.name '' @carol {"name":"x"}`) // not allowed: in a state by mistake
		w.send(b, `avatar@22 m.room.avatar '' @dave {}`)
		w.send(c, `ban@23 m.room.member @dave @alice {"membership":"ban"}`)
		w.expect(w.resolve(a, b, c), s, map[string]string{topic: "T1", "@dave": "ban"})
	}
}

func TestOneState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "12")
	root := w.root(w.begin())
	got, made, err := Resolve("12", []eventgraph.Hash{root, root}, w, w)
	if err != nil || got != root || len(made) != 0 {
		t.Errorf("%v, %d nodes, %v", got, len(made), err)
	}
	if len(w.reads) != 0 {
		t.Error("read events of a state that needs no resolution")
	}
	if _, _, err := Resolve("12", nil, w, w); err == nil {
		t.Error("resolved no states")
	}
	if _, _, err := Resolve("x", []eventgraph.Hash{root, {1}}, w, w); err == nil {
		t.Error("resolved in an unknown room version")
	}
}

// Nothing is read twice, and members who have nothing to do with a conflict are not read.
func TestReads(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `T1@20 m.room.topic '' @bob {"topic":"1"}`)
		w.send(b, `T2@21 m.room.topic '' @bob {"topic":"2"}`)
		ra, rb := w.root(a), w.root(b)
		if _, _, err := Resolve(v, []eventgraph.Hash{ra, rb}, w, w); err != nil {
			t.Fatal(err)
		}
		for id, n := range w.reads {
			if n > 1 {
				t.Errorf("version %s: %s read %d times", v, w.names[id], n)
			}
		}
		if w.reads[w.id("carol")]+w.reads[w.id("dave")] > 0 {
			t.Errorf("version %s: read a member for nothing", v)
		}
	}
}

// Every event and trie node that cannot be read ends Resolve with the reader's error.
func TestReaderErrors(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		w := newWorld(t, v)
		s := w.begin()
		a, b := maps.Clone(s), maps.Clone(s)
		w.send(a, `eve@20 m.room.member @eve @eve {"membership":"join"}`)
		w.send(a, `P2@21 m.room.power_levels '' @alice `+w.levels(`"@bob":50,"@eve":50`, ``))
		w.send(b, `T1@22 m.room.topic '' @bob {"topic":"1"}`)
		roots := []eventgraph.Hash{w.root(a), w.root(b)}
		if _, _, err := Resolve(v, roots, w, w); err != nil {
			t.Fatal(err)
		}
		needed := maps.Clone(w.reads)
		for id := range needed {
			e := w.events[id]
			delete(w.events, id)
			if _, _, err := Resolve(v, roots, w, w); !errors.Is(err, errNoEvent) {
				t.Errorf("version %s, without %s: %v", v, w.names[id], err)
			}
			w.events[id] = e
		}
		for h, node := range maps.Clone(w.nodes) {
			if h != roots[0] && h != roots[1] {
				continue
			}
			delete(w.nodes, h)
			if _, _, err := Resolve(v, roots, w, w); err == nil {
				t.Errorf("version %s: resolved without a root node", v)
			}
			w.nodes[h] = node
		}
	}
}
