package eventgraph

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// memoryNodes is a store of trie nodes that counts what is read of it.
type memoryNodes struct {
	nodes map[Hash][]byte
	reads int
}

func newNodes() *memoryNodes { return &memoryNodes{nodes: map[Hash][]byte{}} }

func (m *memoryNodes) TrieNode(h Hash) ([]byte, error) {
	m.reads++
	if n, ok := m.nodes[h]; ok {
		return n, nil
	}
	return nil, errors.New("no such node")
}

// commit stores what the trie made.
func (m *memoryNodes) commit(t *Trie) Hash {
	root, made := t.Commit()
	maps.Copy(m.nodes, made)
	return root
}

func numberedID(n int) EventID {
	h := sha256.Sum256(fmt.Append(nil, n))
	return EventID("$" + base64.RawURLEncoding.EncodeToString(h[:]))
}

type fataler interface {
	Fatalf(string, ...any)
	Helper()
}

// buildTrie makes a trie of a map, in the map's random order, and stores it. The height of an entry is its heightIn.
func buildTrie(t fataler, m *memoryNodes, state map[StateTuple]EventID) Hash {
	t.Helper()
	trie := OpenTrie(m, Hash{})
	for k, id := range state {
		if err := trie.Set(k, id, heightIn(id)); err != nil {
			t.Fatalf("Set(%v): %v", k, err)
		}
	}
	return m.commit(trie)
}

// heightIn gives each event one height, below 300.
func heightIn(id EventID) uint32 {
	h := sha256.Sum256([]byte(id))
	return uint32(h[0]) + uint32(h[1])%44
}

const someServer = "k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8"

var (
	genTuple = rapid.Custom(func(t *rapid.T) StateTuple {
		key := fmt.Sprint(rapid.IntRange(0, 60).Draw(t, "key"))
		if rapid.Bool().Draw(t, "label") {
			key = "@" + key + ":" + someServer
		}
		return StateTuple{rapid.SampledFrom([]string{"", "a", "m.room.member", "m.space.parent"}).Draw(t, "type"), key}
	})
	genID = rapid.OneOf(
		rapid.Map(rapid.IntRange(0, 50), numberedID),
		rapid.Just(EventID("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk")),
		rapid.Just(EventID("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJl")),
		rapid.Just(EventID("$old:example.org")),
	)
)

// TestTrieAgainstMap: whatever is done in whatever order, with commits between, the trie has what a map
// has, and its root is that of a trie built at once from the map.
func TestTrieAgainstMap(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		nodes, want := newNodes(), map[StateTuple]EventID{}
		trie := OpenTrie(nodes, Hash{})
		for range rapid.IntRange(0, 120).Draw(t, "steps") {
			k := genTuple.Draw(t, "tuple")
			switch rapid.IntRange(0, 9).Draw(t, "action") {
			case 0:
				trie = OpenTrie(nodes, nodes.commit(trie))
			case 1:
				nodes.commit(trie)
			case 2, 3, 4:
				delete(want, k)
				if err := trie.Delete(k); err != nil {
					t.Fatalf("Delete(%v): %v", k, err)
				}
			default:
				want[k] = genID.Draw(t, "id")
				if err := trie.Set(k, want[k], heightIn(want[k])); err != nil {
					t.Fatalf("Set(%v): %v", k, err)
				}
			}
			id, ok, err := trie.Get(k)
			if err != nil || id != want[k] || ok != (want[k] != "") {
				t.Fatalf("Get(%v) = %q, %v, %v, want %q", k, id, ok, err, want[k])
			}
		}
		got := map[StateTuple]EventID{}
		if err := trie.Walk(func(k StateTuple, id EventID) error { got[k] = id; return nil }); err != nil {
			t.Fatalf("Walk: %v", err)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("Walk gave %v, want %v", got, want)
		}
		above := rapid.Uint32Range(0, 300).Draw(t, "above")
		checkAbove(t, trie, want, above) // with nodes that have changed since the last commit
		root := nodes.commit(trie)
		checkAbove(t, OpenTrie(nodes, root), want, above)
		if again := buildTrie(t, nodes, want); again != root {
			t.Fatalf("root %x, built at once %x", root, again)
		}
		if (root == Hash{}) != (len(want) == 0) {
			t.Fatalf("root %x of %d entries", root, len(want))
		}
		reachable(t, nodes, root)
	})
}

// checkAbove checks that WalkAbove gives the entries of the map that are above.
func checkAbove(t fataler, trie *Trie, state map[StateTuple]EventID, above uint32) {
	t.Helper()
	want, got := map[StateTuple]EventID{}, map[StateTuple]EventID{}
	for k, id := range state {
		if heightIn(id) > above {
			want[k] = id
		}
	}
	if err := trie.WalkAbove(above, func(k StateTuple, id EventID) error { got[k] = id; return nil }); err != nil {
		t.Fatalf("WalkAbove: %v", err)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("WalkAbove(%d) gave %v, want %v", above, got, want)
	}
}

// reachable checks that every node below root is there, and returns them.
func reachable(t fataler, nodes *memoryNodes, root Hash) map[Hash]bool {
	t.Helper()
	seen := map[Hash]bool{}
	err := WalkNodes(nodes, Hash{}, root, func(h Hash) (bool, error) {
		seen[h] = true
		return true, nil
	})
	if err != nil {
		t.Fatalf("WalkNodes(%x): %v", root, err)
	}
	return seen
}

// TestWalkNodesBeyond: what WalkNodes leaves out of a state are nodes of the base, and it reads little where little differs.
func TestWalkNodesBeyond(t *testing.T) {
	t.Parallel()
	nodes := newNodes()
	state := bigState(1000)
	base := buildTrie(t, nodes, state)
	for i := range 5 {
		state[member(100*i)] = numberedID(-1 - i)
		delete(state, member(1+100*i))
	}
	root := buildTrie(t, nodes, state)
	all, known := reachable(t, nodes, root), reachable(t, nodes, base)
	nodes.reads = 0
	found := map[Hash]bool{}
	err := WalkNodes(nodes, base, root, func(h Hash) (bool, error) { found[h] = true; return true, nil })
	if err != nil || nodes.reads > 2*10*10 {
		t.Errorf("%d nodes read, %v", nodes.reads, err)
	}
	for h := range all {
		if !known[h] && !found[h] {
			t.Errorf("node %x is in the state and not in the base, and is left out", h)
		}
	}
	for h := range found {
		if !all[h] {
			t.Errorf("node %x is not in the state", h)
		}
	}
	// No further than f wants.
	calls := 0
	if err := WalkNodes(nodes, Hash{}, root, func(Hash) (bool, error) { calls++; return false, nil }); err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// TestDiffAgainstMaps: Diff says on which tuples two maps differ, each once.
func TestDiffAgainstMaps(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		nodes := newNodes()
		a := rapid.MapOf(genTuple, genID).Draw(t, "a")
		b := maps.Clone(a)
		if rapid.Bool().Draw(t, "unrelated") {
			b = rapid.MapOf(genTuple, genID).Draw(t, "b")
		}
		for range rapid.IntRange(0, 5).Draw(t, "changes") {
			b[genTuple.Draw(t, "tuple")] = genID.Draw(t, "id")
		}
		for range rapid.IntRange(0, 5).Draw(t, "deletions") {
			delete(b, genTuple.Draw(t, "tuple"))
		}
		want := map[Difference]bool{}
		for k, id := range a {
			if b[k] != id {
				want[Difference{k, id, b[k]}] = true
			}
		}
		for k, id := range b {
			if a[k] == "" {
				want[Difference{k, "", id}] = true
			}
		}
		got := map[Difference]bool{}
		err := Diff(nodes, buildTrie(t, nodes, a), buildTrie(t, nodes, b), func(d Difference) error {
			if got[d] {
				t.Fatalf("Diff gave %v twice", d)
			}
			got[d] = true
			return nil
		})
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("Diff gave %v (%v), want %v", got, err, want)
		}
	})
}

func member(n int) StateTuple {
	return StateTuple{"m.room.member", fmt.Sprintf("@user%d:%s", n, someServer)}
}

func bigState(n int) map[StateTuple]EventID {
	state := map[StateTuple]EventID{}
	for i := range n {
		state[member(i)] = numberedID(i)
	}
	return state
}

// storedSize is what the nodes take in a store: each with its key, a table's byte and the hash.
func storedSize(nodes map[Hash][]byte) (size int) {
	for h, n := range nodes {
		size += 1 + len(h) + len(n)
	}
	return size
}

// TestTrieCosts: what one change writes, with the keys of the nodes, and what a diff of it reads.
func TestTrieCosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ entries, bytes, reads int }{ // most, in the mean
		{10, 512, 6},
		{1_000, 1024, 13},
		{10_000, 1280, 17},
		{100_000, 1536, 20},
	} {
		t.Run(fmt.Sprint(c.entries), func(t *testing.T) {
			t.Parallel()
			nodes := newNodes()
			before := buildTrie(t, nodes, bigState(c.entries))
			changes := min(c.entries, 200)
			size, reads := 0, 0
			for i := range changes {
				trie := OpenTrie(nodes, before)
				if err := trie.Set(member(c.entries/changes*i), numberedID(-1-i), 1000); err != nil {
					t.Fatal(err)
				}
				after, made := trie.Commit()
				size += storedSize(made)
				maps.Copy(nodes.nodes, made)
				nodes.reads = 0
				n := 0
				if err := Diff(nodes, before, after, func(Difference) error { n++; return nil }); err != nil || n != 1 {
					t.Fatalf("%d differences, %v", n, err)
				}
				if nodes.reads > 2*len(made) {
					t.Errorf("a diff of one change read %d nodes, made were %d", nodes.reads, len(made))
				}
				reads += nodes.reads
			}
			t.Logf("%d entries: a change writes %d bytes, a diff of it reads %d nodes", c.entries, size/changes, reads/changes)
			if size/changes >= c.bytes || reads/changes > c.reads {
				t.Errorf("a change writes %d bytes, a diff of it reads %d nodes; the bounds are %d and %d", size/changes, reads/changes, c.bytes, c.reads)
			}
		})
	}
}

// TestWalkAboveReads: the nodes above the entries asked for are read, and no others.
func TestWalkAboveReads(t *testing.T) {
	t.Parallel()
	const entries, high, depth = 100_000, 20, 12
	nodes := newNodes()
	trie := OpenTrie(nodes, Hash{})
	for i := range entries {
		height := uint32(i % 100)
		if i%(entries/high) == 7 {
			height = 100 + uint32(i)
		}
		if err := trie.Set(member(i), numberedID(i), height); err != nil {
			t.Fatal(err)
		}
	}
	trie = OpenTrie(nodes, nodes.commit(trie))
	for above, want := range map[uint32]int{99: high, math.MaxUint32: 0} {
		nodes.reads = 0
		n := 0
		if err := trie.WalkAbove(above, func(StateTuple, EventID) error { n++; return nil }); err != nil || n != want {
			t.Errorf("%d entries above %d, want %d; %v", n, above, want, err)
		}
		if nodes.reads > 1+want*depth {
			t.Errorf("%d entries above %d: %d nodes read", want, above, nodes.reads)
		}
	}
	// The greatest height goes, and is forgotten on the whole way up.
	for i := 7; i < entries; i += entries / high {
		if err := trie.Delete(member(i)); err != nil {
			t.Fatal(err)
		}
	}
	trie = OpenTrie(nodes, nodes.commit(trie))
	nodes.reads = 0
	if err := trie.WalkAbove(99, func(k StateTuple, _ EventID) error { return fmt.Errorf("%q", k) }); err != nil || nodes.reads > 1 {
		t.Errorf("none is above 99, and %d nodes were read; %v", nodes.reads, err)
	}
}

// TestTrieSetAgain: what does not change the state makes no node.
func TestTrieSetAgain(t *testing.T) {
	t.Parallel()
	nodes := newNodes()
	root := buildTrie(t, nodes, bigState(100))
	trie := OpenTrie(nodes, root)
	for k, id := range bigState(20) {
		if err := trie.Set(k, id, heightIn(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := trie.Delete(StateTuple{"absent", ""}); err != nil {
		t.Fatal(err)
	}
	if again, made := trie.Commit(); again != root || len(made) != 0 {
		t.Errorf("root %x, before %x; %d nodes made", again, root, len(made))
	}
}

// TestTrieDamage: nodes that are absent or changed are errors, and leave the trie as it was.
func TestTrieDamage(t *testing.T) {
	t.Parallel()
	nodes := newNodes()
	root := buildTrie(t, nodes, bigState(100))
	var top node
	if err := top.decode(nodes.nodes[root]); err != nil {
		t.Fatal(err)
	}
	damaged := top.slots[1].hash
	kept := nodes.nodes[damaged]
	nodes.nodes[damaged] = append([]byte(nil), append(kept[:len(kept)-1:len(kept)-1], kept[len(kept)-1]^1)...)
	trie := OpenTrie(nodes, root)
	failed := 0
	for k := range bigState(100) {
		if err := trie.Set(k, "$x", 0); err != nil {
			failed++
			if !errors.Is(err, ErrTrieNode) {
				t.Fatalf("Set: %v", err)
			}
			if _, _, err := trie.Get(k); err == nil {
				t.Error("Get passed over a damaged node")
			}
		}
	}
	if failed == 0 || failed == 100 {
		t.Errorf("%d of 100 failed", failed)
	}
	if err := trie.Walk(func(StateTuple, EventID) error { return nil }); !errors.Is(err, ErrTrieNode) {
		t.Errorf("Walk: %v", err)
	}
	nodes.nodes[damaged] = kept
	if err := trie.Walk(func(StateTuple, EventID) error { return nil }); err != nil {
		t.Errorf("Walk after mending: %v", err)
	}
}

// TestTrieNodeWhereItIsNot: a node is taken only where its parent says what it is.
func TestTrieNodeWhereItIsNot(t *testing.T) {
	t.Parallel()
	nodes := newNodes()
	lone := buildTrie(t, nodes, map[StateTuple]EventID{{"a", ""}: "$a"})
	many := buildTrie(t, nodes, bigState(20))
	most := uint32(0)
	for _, id := range bigState(20) {
		most = max(most, heightIn(id))
	}
	for name, c := range map[string]struct {
		child slot
		ok    bool
	}{
		"right":       {slot{kind: slotChild, hash: many, height: most}, true},
		"too low":     {slot{kind: slotChild, hash: many, height: most - 1}, false},
		"too high":    {slot{kind: slotChild, hash: many, height: most + 1}, false},
		"one's alone": {slot{kind: slotChild, hash: lone, height: heightIn("$a")}, false},
	} {
		parent := &node{}
		parent.slots[2] = c.child
		raw := parent.encode()
		nodes.nodes[hashOf(raw)] = raw
		err := OpenTrie(nodes, hashOf(raw)).Walk(func(StateTuple, EventID) error { return nil })
		if c.ok && err != nil || !c.ok && !errors.Is(err, ErrTrieNode) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTrieNodeSpelling: entries are read back as they were, whatever their parts; no tuple's bytes begin another's.
func TestTrieNodeSpelling(t *testing.T) {
	t.Parallel()
	tuples := []StateTuple{
		{"", ""}, {"m.room.member", ""}, {"m.room.members", ""}, {"x", someServer}, {"x", "@a:" + someServer}, {"x", "@a:" + someServer + ".example.org"},
		{"x", "@a:" + strings.ToUpper(someServer)}, {"x", someServer[1:]}, {"x", someServer + someServer}, {"x", labelStart + strings.Repeat("z", 50)},
		{"x", labelStart + strings.Repeat("0", 50)}, {"x", labelStart + strings.Repeat("-", 50)}, {"x", labelStart + strings.Repeat("0", 49) + "ä"},
		{strings.Repeat("x", maxNodeText), strings.Repeat("y", maxNodeText)},
	}
	for _, usual := range usualTypes {
		tuples = append(tuples, StateTuple{usual, "k"})
	}
	ids := []EventID{numberedID(1), "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", "$old:example.org", "$", "",
		"$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJl", "$acR1l0raoZnm60CBwAVgqbZqoO_mYU81xysh1u7XcJn"} // base64 with bits that no hash has
	var spelled []string
	for i, k := range tuples {
		id := ids[i%len(ids)]
		b := appendTuple(nil, k)
		spelled = append(spelled, string(b))
		entry := appendID(b, id)
		r := nodeBytes{rest: append(entry, "more"...)}
		if got := r.entry(); r.failed || string(got) != string(entry) || string(r.rest) != "more" {
			t.Errorf("%q is not read back: %x", k, got)
		}
		if gotK, gotID := decodeEntry(entry); gotK != k || gotID != id || string(tupleOf(entry)) != string(b) {
			t.Errorf("%q, %q became %q, %q", k, id, gotK, gotID)
		}
	}
	for i, a := range spelled {
		for j, b := range spelled {
			if i != j && strings.HasPrefix(a, b) {
				t.Errorf("%q begins %q", tuples[j], tuples[i])
			}
		}
	}
}

// FuzzTrieNode: what decodeNode takes, encode writes, byte for byte.
func FuzzTrieNode(f *testing.F) {
	nodes := newNodes()
	buildTrie(f, nodes, bigState(100))
	buildTrie(f, nodes, map[StateTuple]EventID{{"a", ""}: "$old:domain", {"b", "c"}: "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", {"m.room.create", ""}: "$"})
	for _, n := range nodes.nodes {
		f.Add(n)
	}
	// Longer spellings, which are refused: a usual type as text, a label as text, a long number, an ID as text.
	entry := func(rest ...string) []byte { return []byte("\x01\x01" + strings.Join(rest, "")) }
	hash := "\x01" + strings.Repeat("h", 32)
	for _, raw := range [][]byte{
		entry("\x00", "\x2dm.room.member", "\x00", hash),
		entry("\x00", "\x00", "\x7c", someServer, hash),
		entry("\x80\x00", "\x00", "\x00", hash),
		entry("\x00", "\x00", "\x00", "\x02", strings.Repeat("h", 32)),
		entry("\x00", "\x00", "\x00", "\x00\x2c", string(numberedID(1))),
		entry("\x00", "\x00", "\x01", strings.Repeat("\xff", packedLabel), hash),
		entry("\x00", "\x1f", "\x00", hash),
		{nodeFormat, 3}, {nodeFormat, 0}, {0, 1},
	} {
		if n := new(node); n.decode(raw) == nil {
			f.Errorf("%x was taken: %+v", raw, n)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n := new(node)
		if n.decode(raw) != nil {
			return
		}
		if again := n.encode(); string(again) != string(raw) {
			t.Fatalf("node %x is written %x", raw, again)
		}
		for i := range n.slots {
			if s := &n.slots[i]; s.kind == slotEntry {
				k, id := decodeEntry(s.entry)
				if again := appendID(appendTuple(nil, k), id); string(again) != string(s.entry) {
					t.Fatalf("entry %x of %q, %q is written %x", s.entry, k, id, again)
				}
			}
		}
	})
}
