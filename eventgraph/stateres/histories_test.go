package stateres

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/internal/literal"
)

var (
	flagHistories = flag.Uint64("histories", 300, "how many histories TestHistories makes")
	flagSeed      = flag.Uint64("seed", 1, "seed of the histories")
	flagFrom      = flag.Uint64("from", 0, "number of the first history")
	flagHistory   = flag.Int64("history", -1, "make this history alone, and print it")
	flagProgress  = flag.Bool("progress", false, "print how far it is, now and then")
)

// ordersOfArrival is how many orders each history is replayed in, beside that in which it was made.
const ordersOfArrival = 10

// gcPercent lets garbage grow: a history holds little, and throws away much.
const gcPercent = 800

// literalReceiver is a receiver that judges with package literal alone.
type literalReceiver struct {
	c      *chronicle
	events map[string]*literal.Event
	placed []literalPlacement
	full   map[int]map[string]bool
}

// onResolution is told of each resolution.
type onResolution func(states []literal.State, resolved literal.State)

type literalPlacement struct {
	verdict verdict
	after   literal.State
}

func (l *literalReceiver) get(id string) *literal.Event { return l.events[id] }

// receive takes the chronicle's events in their order.
func (l *literalReceiver) receive(seen onResolution) error {
	v := string(l.c.version)
	for i, p := range l.c.events {
		if p.lost {
			l.placed = append(l.placed, literalPlacement{})
			continue
		}
		e, err := literal.Parse("", p.raw)
		if err != nil {
			return fmt.Errorf("e%d: %w", i, err)
		}
		if e.ID = literal.EventID(v, e.JSON); e.ID != string(p.ID()) {
			return fmt.Errorf("e%d: its ID is %s, and literally %s", i, p.ID(), e.ID)
		}
		// SS API, checks on receipt of a PDU, step 3.
		hashes, _ := e.JSON["hashes"].(map[string]any)
		mismatch := hashes["sha256"] != literal.ContentHash(e.JSON)
		if mismatch {
			e.JSON = literal.Redact(v, e.JSON)
		}
		if mismatch != p.HashMismatch() {
			return fmt.Errorf("e%d: hash mismatch is %v, and literally %v", i, p.HashMismatch(), mismatch)
		}
		l.events[e.ID] = e

		at := literalPlacement{verdict: accepted}
		if err := literal.AuthorizeByAuthEvents(v, e, l.get); err != nil || l.c.misplaced(i) {
			at.verdict = refusedByAuthEvents
		}
		before := l.before(i, l.c.parents(i), seen)
		if at.verdict == accepted {
			if err := literal.Authorize(v, e, before, l.get); err != nil {
				at.verdict = refusedByState
			}
		}
		e.Rejected = at.verdict != accepted
		at.after = before
		if tuple, isState := p.Tuple(); isState && !e.Rejected {
			at.after = maps.Clone(before)
			if at.after == nil {
				at.after = make(literal.State)
			}
			at.after[literal.Key{Type: tuple.Type, StateKey: tuple.Key}] = e.ID
		}
		l.placed = append(l.placed, at)
	}
	return nil
}

// before is the state before event i with these parents.
func (l *literalReceiver) before(i int, prev []int, seen onResolution) literal.State {
	var states []literal.State
	for _, on := range prev {
		after := l.placed[on].after
		if !slices.ContainsFunc(states, func(s literal.State) bool { return maps.Equal(s, after) }) {
			states = append(states, after)
		}
	}
	switch len(states) {
	case 0:
		return nil
	case 1:
		return states[0]
	}
	return l.resolve(i, states, seen)
}

func (l *literalReceiver) resolve(i int, states []literal.State, seen onResolution) literal.State {
	resolved, full := literal.Resolve(string(l.c.version), states, l.get)
	l.full[i] = full
	seen(states, resolved)
	return resolved
}

// claimed stands for the resolution of claimed states, in full.
const claimed = -2

// comparison is the examination of one chronicle.
type comparison struct {
	c   *chronicle
	ref *replay
	lit *literalReceiver
	rng *rand.Rand
	// same are the roots that were found to be those of a literal state.
	same map[eventgraph.Hash]literal.State
}

// examine replays a chronicle in other orders of arrival and literally, and tells the first difference. The reference is
// a replay in the chronicle's order, one that tells more; nil if there is none yet. Claims is how many resolutions of claimed
// states to compare.
func examine(c *chronicle, ref *replay, st *statistics, claims int) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if ref == nil {
		if ref, err = reference(c); err != nil {
			return err
		}
	}
	x := comparison{c: c, ref: ref, rng: rand.New(rand.NewPCG(c.seed^0xa77, c.number)), same: make(map[eventgraph.Hash]literal.State)}
	final, err := ref.final()
	if err != nil {
		return err
	}
	if err := x.literally(final, st); err != nil {
		return err
	}
	for range claims {
		if err := x.claimed(st); err != nil {
			return err
		}
	}
	for n := range ordersOfArrival {
		r, order := newReplay(c), c.order(x.rng)
		for _, i := range order {
			if err := r.receive(i); err != nil {
				return fmt.Errorf("order of arrival %d: %w", n, err)
			}
		}
		for i := range c.events {
			if r.placed[i] != ref.placed[i] {
				return fmt.Errorf("order of arrival %d, %v: e%d is %+v; in the order of the chronicle it is %+v",
					n, order, i, r.placed[i], ref.placed[i])
			}
		}
		if root, err := r.final(); err != nil || root != final {
			return fmt.Errorf("order of arrival %d, %v: the final state is another (%v)", n, order, err)
		}
	}
	return nil
}

// reference replays a chronicle in its order.
func reference(c *chronicle) (*replay, error) {
	ref := newReplay(c)
	ref.full, ref.rules = make(map[int][]eventgraph.EventID), make(map[int]string)
	for i := range c.events {
		if err := ref.receive(i); err != nil {
			return nil, fmt.Errorf("e%d: %w", i, err)
		}
	}
	return ref, nil
}

// literally compares the reference with what package literal says.
func (x *comparison) literally(final eventgraph.Hash, st *statistics) error {
	x.lit = &literalReceiver{c: x.c, events: make(map[string]*literal.Event), full: make(map[int]map[string]bool)}
	chains := newChainSets(x.c)
	seen := func(states []literal.State, resolved literal.State) { st.resolution(x.c, chains, states, resolved) }
	if err := x.lit.receive(seen); err != nil {
		return err
	}
	for i := range x.c.events {
		ours, theirs := x.ref.placed[i], x.lit.placed[i]
		if err := x.sameFull(i); err != nil {
			return fmt.Errorf("before e%d: %w", i, err)
		}
		if ours.verdict != theirs.verdict {
			return fmt.Errorf("e%d is %s (rule %q), and literally %s", i, ours.verdict, x.ref.rules[i], theirs.verdict)
		}
		if err := x.sameState(ours.after, theirs.after); err != nil {
			return fmt.Errorf("after e%d: %w", i, err)
		}
	}
	open := extremities(x.c, func(i int) bool { return x.lit.placed[i].verdict == accepted })
	literalFinal := x.lit.before(finalEvent, open, seen)
	if err := x.sameFull(finalEvent); err != nil {
		return fmt.Errorf("final state: %w", err)
	}
	if err := x.sameState(final, literalFinal); err != nil {
		return fmt.Errorf("final state: %w", err)
	}
	st.history(x.c, x.ref)
	return nil
}

// claimed compares resolutions of states that no event led to. In every other some events count as rejected that were not:
// what an accepted event cites never is, but the resolution is to be right about it.
func (x *comparison) claimed(st *statistics) error {
	roots, err := x.ref.claimedStates(x.rng)
	if err != nil {
		return err
	}
	if x.rng.IntN(2) == 0 {
		x.ref.doubted = make([]bool, len(x.c.events))
		for i, p := range x.c.events {
			if l := x.lit.events[string(p.ID())]; l != nil && !l.Rejected && x.rng.IntN(5) == 0 {
				x.ref.doubted[i], l.Rejected = true, true
				defer func() { l.Rejected = false }()
			}
		}
		defer func() { x.ref.doubted = nil }()
	}
	ours, err := x.ref.resolve(claimed, roots)
	if err != nil {
		return fmt.Errorf("claimed states: %w", err)
	}
	var states []literal.State
	slices.SortFunc(roots, func(a, b eventgraph.Hash) int { return slices.Compare(a[:], b[:]) })
	for _, root := range slices.Compact(roots) {
		s, err := x.read(root)
		if err != nil {
			return err
		}
		states = append(states, s)
	}
	theirs := states[0]
	delete(x.lit.full, claimed)
	if len(states) > 1 {
		theirs = x.lit.resolve(claimed, states, func([]literal.State, literal.State) { st.claimed++ })
	}
	say := func(err error) error {
		if err == nil {
			return nil
		}
		text := ""
		for i, doubted := range x.ref.doubted {
			if doubted {
				text += fmt.Sprintf("\ne%d counts as rejected", i)
			}
		}
		for i, s := range states {
			text += fmt.Sprintf("\nS%d: %s", i, x.names(s))
		}
		return fmt.Errorf("claimed states: %w%s", err, text)
	}
	if err := x.sameFull(claimed); err != nil {
		return say(err)
	}
	return say(x.sameState(ours, theirs))
}

// read is the state of a root.
func (x *comparison) read(root eventgraph.Hash) (literal.State, error) {
	s := make(literal.State)
	err := eventgraph.OpenTrie(x.c, root).Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		s[literal.Key{Type: t.Type, StateKey: t.Key}] = string(id)
		return nil
	})
	return s, err
}

// sameState says how a state differs from the literal one, whose root is made anew.
func (x *comparison) sameState(root eventgraph.Hash, want literal.State) error {
	if known, ok := x.same[root]; ok && maps.Equal(known, want) {
		return nil
	}
	trie := eventgraph.OpenTrie(x.c, eventgraph.Hash{})
	for key, id := range want {
		i, ok := x.c.index[eventgraph.EventID(id)]
		if !ok {
			return fmt.Errorf("the literal state has the unknown %s", id)
		}
		tuple := eventgraph.StateTuple{Type: key.Type, Key: key.StateKey}
		if err := trie.Set(tuple, eventgraph.EventID(id), x.ref.placed[i].height); err != nil {
			return err
		}
	}
	if wanted, _ := trie.Commit(); wanted == root {
		x.same[root] = want
		return nil
	}
	got, err := x.read(root)
	if err != nil {
		return err
	}
	return fmt.Errorf("the state is\n%s\nand literally\n%s", x.names(got), x.names(want))
}

func (x *comparison) names(s literal.State) string {
	var lines []string
	for key, id := range s {
		lines = append(lines, fmt.Sprintf("%s %q: %s", key.Type, key.StateKey, x.name(id)))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

func (x *comparison) name(id string) string {
	if i, ok := x.c.index[eventgraph.EventID(id)]; ok {
		return "e" + strconv.Itoa(i)
	}
	return id
}

// sameFull compares the full conflicted sets before event i.
func (x *comparison) sameFull(i int) error {
	ours, resolved := x.ref.full[i]
	theirs, literally := x.lit.full[i]
	if resolved != literally {
		return fmt.Errorf("resolved is %v, and literally %v", resolved, literally)
	}
	same := len(ours) == len(theirs)
	for _, id := range ours {
		same = same && theirs[string(id)]
	}
	if same {
		return nil
	}
	list := func(ids []string) string {
		for k := range ids {
			ids[k] = x.name(ids[k])
		}
		slices.Sort(ids)
		return strings.Join(ids, " ")
	}
	var got []string
	for _, id := range ours {
		got = append(got, string(id))
	}
	return fmt.Errorf("the full conflicted set is\n%s\nand literally\n%s", list(got), list(slices.Collect(maps.Keys(theirs))))
}

// shrink drops events as long as the chronicle still shows a difference.
func shrink(c *chronicle, err error) (*chronicle, error) {
	for i := len(c.events) - 1; i > 0; i-- {
		if i >= len(c.events) {
			continue
		}
		less := c.without(i)
		if e := examine(less, nil, newStatistics(), 50); e != nil {
			c, err = less, e
			i = len(c.events) // from the end again
		}
	}
	return c, err
}

// story makes and examines the history of a number. The error tells the shrunk history.
func story(seed, number uint64, st *statistics) error {
	g, err := generate(seed, number)
	if err == nil {
		err = examine(g.c, g.ref, st, 1)
	}
	if err == nil {
		return nil
	}
	c, ref := g.c, g.ref
	if e := examine(c, nil, newStatistics(), 50); e != nil {
		c, err = shrink(c, e)
		ref, _ = reference(c)
	}
	listing := ""
	if ref != nil {
		listing = c.describe(ref)
	}
	return fmt.Errorf("-seed %d -history %d, room version %s: %w\n%s", seed, number, c.version, err, listing)
}

// Random histories, received in many orders, and by a receiver that follows the text of the specification: each event
// has one verdict, and one state after it.
func TestHistories(t *testing.T) {
	t.Parallel()
	if *flagHistory >= 0 {
		printHistory(t, *flagSeed, uint64(*flagHistory))
		return
	}
	var (
		from, to = *flagFrom, *flagFrom + *flagHistories
		next     atomic.Uint64
		start    = time.Now()

		mu    sync.Mutex
		total = newStatistics()
		first error
		wg    sync.WaitGroup
	)
	next.Store(from)
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			st := newStatistics()
			for n := next.Add(1) - 1; n < to; n = next.Add(1) - 1 {
				if err := story(*flagSeed, n, st); err != nil {
					next.Store(to)
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
				if *flagProgress && (n-from)%10_000 == 9_999 {
					fmt.Fprintf(os.Stderr, "%d histories, %.0f a second\n", n-from+1, float64(n-from+1)/time.Since(start).Seconds())
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(st)
		})
	}
	wg.Wait()
	if first != nil {
		t.Fatal(first)
	}
	t.Logf("seed %d, histories %d to %d: %s", *flagSeed, from, to-1, total)
	total.check(t)
}

func printHistory(t *testing.T, seed, number uint64) {
	st := newStatistics()
	g, err := generate(seed, number)
	if err != nil {
		t.Error(err)
	}
	t.Logf("room version %s\n%s", g.c.version, g.c.describe(g.ref))
	if err := story(seed, number, st); err != nil {
		t.Error(err)
	}
	t.Log(st)
}

// statistics show that the histories are not tame.
type statistics struct {
	counts
	versions map[eventgraph.RoomVersion]int
	refusals map[string]int // by version and rule: "12 5.3.2"

	fork, differs, difference, power bool // of the history under way
}

type counts struct {
	histories, events, refused, resolutions, claimed int
	withFork                                         int // histories with a resolution
	withDifference                                   int // with an event in conflict that is in no state
	withPower                                        int // with a conflict over power levels
	notByTime                                        int // with a resolution that is not "the last by its timestamp wins"
	subgraphs                                        int // resolutions with an event in conflict for the subgraph alone
}

func newStatistics() *statistics {
	return &statistics{versions: make(map[eventgraph.RoomVersion]int), refusals: make(map[string]int)}
}

func (st *statistics) add(o *statistics) {
	st.histories += o.histories
	st.events += o.events
	st.refused += o.refused
	st.resolutions += o.resolutions
	st.claimed += o.claimed
	st.withFork += o.withFork
	st.withDifference += o.withDifference
	st.withPower += o.withPower
	st.notByTime += o.notByTime
	st.subgraphs += o.subgraphs
	for v, n := range o.versions {
		st.versions[v] += n
	}
	for rule, n := range o.refusals {
		st.refusals[rule] += n
	}
}

// history ends the history under way.
func (st *statistics) history(c *chronicle, ref *replay) {
	one := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	st.histories++
	st.events += len(c.events)
	st.versions[c.version]++
	st.withFork += one(st.fork)
	st.withDifference += one(st.difference)
	st.withPower += one(st.power)
	st.notByTime += one(st.differs)
	st.fork, st.differs, st.difference, st.power = false, false, false, false
	for i := range c.events {
		if rule := ref.rules[i]; rule != "" {
			st.refusals[string(c.version)+" "+rule]++
			st.refused++
		}
	}
}

// chainSets are the auth chains of all events, as sets of bits.
type chainSets [][]uint64

func newChainSets(c *chronicle) chainSets {
	words := (len(c.events) + 63) / 64
	all := make(chainSets, len(c.events))
	bits := make([]uint64, words*len(c.events))
	for i, p := range c.events {
		all[i] = bits[i*words : (i+1)*words]
		for _, a := range p.auth {
			if a < 0 {
				continue
			}
			for w := range words {
				all[i][w] |= all[a][w]
			}
			all[i][a/64] |= 1 << (a % 64)
		}
	}
	return all
}

func has(set []uint64, i int) bool { return set[i/64]>>(i%64)&1 == 1 }

// resolution counts what is remarkable about one.
func (st *statistics) resolution(c *chronicle, all chainSets, states []literal.State, resolved literal.State) {
	st.resolutions++
	st.fork = true
	words := (len(c.events) + 63) / 64
	conflicted, union, common := make([]uint64, words), make([]uint64, words), make([]uint64, words)
	last := make(map[literal.Key]int)
	for n, s := range states {
		chain := make([]uint64, words)
		for key, id := range s {
			i := c.index[eventgraph.EventID(id)]
			for w := range words {
				chain[w] |= all[i][w]
			}
			if !slices.ContainsFunc(states, func(o literal.State) bool { return o[key] != id }) {
				continue
			}
			conflicted[i/64] |= 1 << (i % 64)
			st.power = st.power || key.Type == "m.room.power_levels"
			if was, ok := last[key]; !ok || c.events[was].OriginServerTS() < c.events[i].OriginServerTS() {
				last[key] = i
			}
		}
		for w := range words {
			union[w] |= chain[w]
			if n == 0 {
				common[w] = chain[w]
			}
			common[w] &= chain[w]
		}
	}
	for key, i := range last {
		st.differs = st.differs || resolved[key] != string(c.events[i].ID())
	}
	subgraph := false
	for i := range c.events {
		switch {
		case !has(union, i) || has(conflicted, i):
		case !has(common, i):
			st.difference = true
		case c.version == "12":
			from, to := false, false
			for j := range c.events {
				from = from || has(conflicted, j) && has(all[j], i)
				to = to || has(conflicted, j) && has(all[i], j)
			}
			subgraph = subgraph || from && to
		}
	}
	if subgraph {
		st.subgraphs++
	}
}

func (st *statistics) String() string {
	percent := func(n, of int) string { return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(max(1, of))) }
	var versions []string
	for _, v := range eventgraph.SupportedVersions() {
		versions = append(versions, fmt.Sprintf("%s:%d", v, st.versions[v]))
	}
	// scripts/histories reads the beginning of it.
	return fmt.Sprintf("%d histories, %d events, %s of them refused; %d resolutions, and %d of claimed states; "+
		"%d orders of arrival each; histories with forks %s, with an auth difference %s, with power levels in conflict %s, "+
		"with a result that is not that of timestamps %s; %d resolutions with a subgraph; versions %s",
		st.histories, st.events, percent(st.refused, st.events), st.resolutions, st.claimed, ordersOfArrival,
		percent(st.withFork, st.histories), percent(st.withDifference, st.histories), percent(st.withPower, st.histories),
		percent(st.notByTime, st.histories), st.subgraphs, strings.Join(versions, " "))
}

// check fails a test whose histories were tame.
func (st *statistics) check(t *testing.T) {
	if st.histories < 200 {
		return
	}
	for _, share := range []struct {
		what           string
		n, of, atLeast int
	}{
		{"histories with forks", st.withFork, st.histories, 90},
		{"histories with an auth difference", st.withDifference, st.histories, 60},
		{"histories with power levels in conflict", st.withPower, st.histories, 70},
		{"histories where not the last by its timestamp wins", st.notByTime, st.histories, 40},
		{"refused events", st.refused, st.events, 20},
	} {
		if 100*share.n < share.atLeast*share.of {
			t.Errorf("%s: %d of %d, less than %d %%", share.what, share.n, share.of, share.atLeast)
		}
	}
	if st.subgraphs == 0 {
		t.Error("no resolution with a subgraph")
	}
	for _, v := range eventgraph.SupportedVersions() {
		if st.versions[v] == 0 {
			t.Errorf("no history of room version %s", v)
		}
	}
	if st.histories >= 10_000 {
		st.checkRules(t)
	}
}

// checkRules wants every rule that may refuse an event to have done so in some version.
func (st *statistics) checkRules(t *testing.T) {
	raw, err := os.ReadFile("../testdata/vectors/auth/rules.json")
	if err != nil {
		t.Fatal(err)
	}
	var pages []struct {
		From, To int
		Rules    []struct{ Number, Rule, Kind string }
	}
	if err := json.Unmarshal(raw, &pages); err != nil {
		t.Fatal(err)
	}
	refused := make(map[string]int)
	for _, page := range pages {
		for v := page.From; v <= page.To; v++ {
			for _, rule := range page.Rules {
				switch rule.Kind {
				case "reject", "otherwise reject", "either":
					refused[rule.Rule] += st.refusals[strconv.Itoa(v)+" "+rule.Number]
				}
			}
		}
	}
	for _, rule := range slices.Sorted(maps.Keys(refused)) {
		if refused[rule] == 0 {
			t.Errorf("no event was refused by the rule %s", rule)
		}
	}
}
