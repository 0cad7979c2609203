package stateres

import (
	"crypto/ed25519"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

const (
	levelChanges = 500 // of power levels in the rooms of the benchmarks, each by another member, so that an auth chain is twice as long
	forkedKeys   = 50  // that both forks change
)

// allowed sends an event and checks that the rules allow it after s.
func (w *world) allowed(s state, format string, args ...any) {
	w.t.Helper()
	old := make(state)
	line := fmt.Sprintf(format, args...)
	e := w.send(s, line)
	if tuple, ok := e.Tuple(); ok {
		for _, id := range e.AuthEvents() {
			t, _ := w.events[id].Tuple()
			old[t] = id
		}
		old[where("m.room.create")] = w.id("create")
		if err := auth.Check(e, checked{w, old}); err != nil {
			w.t.Fatalf("%v: %s: %v", tuple, line, err)
		}
	}
}

// oldRoom is a public room with that many state entries. The power to change the power levels goes from hand to hand: each
// change is made by a member who gives power to the next and lays down their own; every fiftieth by one of ten
// lasting moderators, @s0 to @s9. There is another, @rare, whom no event of the room rests on. Members join all along.
func (w *world) oldRoom(entries int) state {
	w.t.Helper()
	s := w.begin()
	ts := 10
	join := func(user string) {
		ts++
		w.allowed(s, `@%d m.room.member @%s @%s {"membership":"join"}`, ts, user, user)
	}
	change := func(sender, next string) {
		ts++
		w.allowed(s, `@%d m.room.power_levels '' @%s %s`, ts, sender, w.moderators(next, ts))
	}

	join("rare")
	for i := range 10 {
		join(fmt.Sprintf("s%d", i))
	}
	change("alice", "h0")
	for i := range levelChanges {
		holder, next := fmt.Sprintf("h%d", i), fmt.Sprintf("h%d", i+1)
		join(holder)
		change(holder, next)
		if i%50 == 49 {
			change(fmt.Sprintf("s%d", i/50), next)
		}
		for members := (entries - len(s)) / (levelChanges - i); members > 0; members-- {
			join(fmt.Sprintf("m%d", ts))
		}
	}
	for len(s) < entries {
		join(fmt.Sprintf("m%d", ts))
	}
	return s
}

// moderators is the content of power levels.
func (w *world) moderators(holder string, n int) string {
	users := `"@rare":50,`
	for i := range 10 {
		users += fmt.Sprintf(`"@s%d":50,`, i)
	}
	return w.levels(fmt.Sprintf(`%s"@%s":50`, users, holder), fmt.Sprintf(`,"n":%d`, n))
}

// forks are two continuations of a room that change the same keys: notes, memberships, and the power levels.
func (w *world) forks(s state) []state {
	w.t.Helper()
	members := make([]string, 0, len(s))
	for tuple := range s {
		if tuple.Type == "m.room.member" && tuple.Key[1] == 'm' {
			members = append(members, strings.TrimSuffix(tuple.Key, ":a.example"))
		}
	}
	slices.Sort(members)

	var states []state
	for fork := range 2 {
		f := maps.Clone(s)
		ts := 1_000_000 + fork
		for i := range forkedKeys {
			ts += 2
			moderator := fmt.Sprintf("@s%d", (i+fork)%10)
			member := members[i*len(members)/forkedKeys]
			switch {
			case i == forkedKeys/2:
				w.allowed(f, `@%d m.room.power_levels '' %s %s`, ts, moderator, w.moderators(fmt.Sprintf("h%d", levelChanges), ts))
			case i%2 == 0:
				w.allowed(f, `@%d org.example.note note%d %s {"n":%d}`, ts, i, moderator, ts)
			case i%4 == 1:
				w.allowed(f, `@%d m.room.member @new%d @new%d {"membership":"join","n":%d}`, ts, i, i, ts)
			case fork == 0:
				w.allowed(f, `@%d m.room.member %s %s {"membership":"leave"}`, ts, member, moderator)
			default:
				w.allowed(f, `@%d m.room.member %s %s {"membership":"join","displayname":"%d"}`, ts, member, member, ts)
			}
		}
		states = append(states, f)
	}
	return states
}

// BenchmarkResolveForks resolves two forks of a room. Of /both each key is changed by both. Of /one it is changed by one of them,
// so that what it was before, as old as the room, is in conflict too. /rare is /both and a note on one side by a moderator whose
// membership nothing else rests on; that no unconflicted state leads to it is to be found out without reading that state. The
// metric "verifications" is the time as a multiple of one ed25519 verification of 1 KiB, measured between the resolutions.
func BenchmarkResolveForks(b *testing.B) {
	for _, entries := range []int{10_000, 100_000} {
		for _, v := range []eventgraph.RoomVersion{"11", "12"} {
			var w *world
			roots := make(map[string][]eventgraph.Hash)
			for _, what := range []string{"both", "one", "rare"} {
				b.Run(fmt.Sprintf("%s/%d/v%s", what, entries, v), func(b *testing.B) {
					if w == nil {
						w = newWorld(b, v)
						w.forkedRoom(entries, roots)
					}
					benchmarkResolve(b, w, roots[what])
				})
			}
		}
	}
}

// forkedRoom makes the states of BenchmarkResolveForks.
func (w *world) forkedRoom(entries int, roots map[string][]eventgraph.Hash) {
	s := w.oldRoom(entries)
	forks := w.forks(s)
	roots["both"] = []eventgraph.Hash{w.root(forks[0]), w.root(forks[1])}

	rare := maps.Clone(forks[0])
	w.allowed(rare, `@2000000 org.example.note rare @rare {}`)
	roots["rare"] = []eventgraph.Hash{w.root(rare), roots["both"][1]}

	var changed []eventgraph.StateTuple
	for tuple := range forks[0] {
		if forks[0][tuple] != forks[1][tuple] {
			changed = append(changed, tuple)
		}
	}
	slices.SortFunc(changed, func(a, b eventgraph.StateTuple) int { return strings.Compare(a.Type+a.Key, b.Type+b.Key) })
	for i, tuple := range changed {
		back := forks[i%2]
		delete(back, tuple)
		if id, ok := s[tuple]; ok {
			back[tuple] = id
		}
	}
	roots["one"] = []eventgraph.Hash{w.root(forks[0]), w.root(forks[1])}
}

func benchmarkResolve(b *testing.B, w *world, roots []eventgraph.Hash) {
	message := make([]byte, 1024)
	signature := ed25519.Sign(signer.Private, message)
	public := signer.Private.Public().(ed25519.PublicKey)
	var resolving, verifying []time.Duration

	cache := &cache{w: w, events: make(map[eventgraph.EventID]Held), nodes: make(map[eventgraph.Hash][]byte)}
	if _, _, err := Resolve(w.version, roots, cache, cache); err != nil {
		b.Fatal(err)
	}
	cache.reads, cache.cited, cache.trie = 0, 0, 0
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if _, _, err := Resolve(w.version, roots, cache, cache); err != nil {
			b.Fatal(err)
		}
		resolving = append(resolving, time.Since(start))
		b.StopTimer()
		start = time.Now()
		if !ed25519.Verify(public, message, signature) {
			b.Fatal("not verified")
		}
		verifying = append(verifying, time.Since(start))
		b.StartTimer()
	}
	slices.Sort(resolving)
	slices.Sort(verifying)
	verification := verifying[len(verifying)/2]
	b.ReportMetric(float64(resolving[len(resolving)/2])/float64(verification), "verifications")
	b.ReportMetric(float64(verification)/1000, "µs/verification")
	b.ReportMetric(float64(cache.reads)/float64(b.N), "events/op")
	b.ReportMetric(float64(cache.cited)/float64(b.N), "citers/op")
	b.ReportMetric(float64(cache.trie)/float64(b.N), "nodes/op")
}

// cache keeps the events and trie nodes that it was asked for once. To read one again costs a lookup in a map.
type cache struct {
	w      *world
	events map[eventgraph.EventID]Held
	nodes  map[eventgraph.Hash][]byte
	reads  int // of events
	cited  int // how many citing events it was told of
	trie   int // reads of trie nodes
}

func (c *cache) Event(id eventgraph.EventID) (Held, error) {
	c.reads++
	if held, ok := c.events[id]; ok {
		return held, nil
	}
	held, err := c.w.Event(id)
	if err != nil {
		return Held{}, err
	}
	// In memory of its own, as what is read from a disk.
	held.Event, err = eventgraph.LoadEvent(c.w.version, id, slices.Clone(held.Raw()))
	c.events[held.ID()] = held
	return held, err
}

func (c *cache) CitedBy(id eventgraph.EventID, f func(eventgraph.EventID) bool) error {
	return c.w.CitedBy(id, func(by eventgraph.EventID) bool {
		c.cited++
		return f(by)
	})
}

func (c *cache) TrieNode(h eventgraph.Hash) ([]byte, error) {
	c.trie++
	if node, ok := c.nodes[h]; ok {
		return node, nil
	}
	node, err := c.w.TrieNode(h)
	c.nodes[h] = slices.Clone(node)
	return c.nodes[h], err
}

// BenchmarkResolveStates resolves many states, each with a note, a name and a member of its own on a room of 1,000 entries.
func BenchmarkResolveStates(b *testing.B) {
	for _, n := range []int{2, 20, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, "12")
			s := w.oldRoom(1000)
			var roots []eventgraph.Hash
			for i := range n {
				f := maps.Clone(s)
				w.allowed(f, `@%d m.room.name '' @s%d {"name":"%d"}`, 1_000_000+i, i%10, i)
				w.allowed(f, `@%d org.example.note note%d @s%d {"n":%d}`, 1_000_000+i, i, i%10, i)
				w.allowed(f, `@%d m.room.member @new%d @new%d {"membership":"join"}`, 1_000_000+i, i, i)
				roots = append(roots, w.root(f))
			}
			benchmarkResolve(b, w, roots)
		})
	}
}
