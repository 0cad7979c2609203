package eventgraph

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
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

// build makes a trie of a map, in the map's random order, and stores it.
func buildTrie(t fataler, m *memoryNodes, state map[StateTuple]EventID) Hash {
	t.Helper()
	trie := OpenTrie(m, Hash{})
	for k, id := range state {
		if err := trie.Set(k, id, 0); err != nil {
			t.Fatalf("Set(%v): %v", k, err)
		}
	}
	return m.commit(trie)
}

var (
	genTuple = rapid.Custom(func(t *rapid.T) StateTuple {
		return StateTuple{rapid.SampledFrom([]string{"", "a", "m.room.member"}).Draw(t, "type"), fmt.Sprint(rapid.IntRange(0, 60).Draw(t, "key"))}
	})
	genID = rapid.OneOf(
		rapid.Map(rapid.IntRange(0, 50), numberedID),
		rapid.Just(EventID("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk")),
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
				if err := trie.Set(k, want[k], 0); err != nil {
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
		root := nodes.commit(trie)
		if again := buildTrie(t, nodes, want); again != root {
			t.Fatalf("root %x, built at once %x", root, again)
		}
		if (root == Hash{}) != (len(want) == 0) {
			t.Fatalf("root %x of %d entries", root, len(want))
		}
		reachable(t, nodes, root)
	})
}

// reachable checks that every node below root is there, and returns them.
func reachable(t fataler, nodes *memoryNodes, root Hash) map[Hash]bool {
	t.Helper()
	seen := map[Hash]bool{}
	if root == (Hash{}) {
		return seen
	}
	for todo := []Hash{root}; len(todo) > 0; {
		h := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[h] {
			continue
		}
		seen[h] = true
		children, err := NodeChildren(nodes.nodes[h])
		if err != nil {
			t.Fatalf("NodeChildren(%x): %v", h, err)
		}
		todo = append(todo, children...)
	}
	return seen
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

func bigState(n int) map[StateTuple]EventID {
	state := map[StateTuple]EventID{}
	for i := range n {
		state[StateTuple{"m.room.member", fmt.Sprintf("@user%d:k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8", i)}] = numberedID(i)
	}
	return state
}

// TestTrieCosts: one change among 10,000 entries writes about a KiB, and a diff reads as little.
func TestTrieCosts(t *testing.T) {
	t.Parallel()
	nodes := newNodes()
	before := buildTrie(t, nodes, bigState(10_000))
	size, changes := 0, 0
	for i := range 50 {
		trie := OpenTrie(nodes, before)
		k := StateTuple{"m.room.member", fmt.Sprintf("@user%d:k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8", 200*i)}
		if err := trie.Set(k, "$new", 0); err != nil {
			t.Fatal(err)
		}
		after, made := trie.Commit()
		for _, n := range made {
			size += len(n)
		}
		changes++
		maps.Copy(nodes.nodes, made)
		nodes.reads = 0
		n := 0
		if err := Diff(nodes, before, after, func(Difference) error { n++; return nil }); err != nil || n != 1 {
			t.Fatalf("%d differences, %v", n, err)
		}
		if nodes.reads > 2*len(made) {
			t.Errorf("a diff of one change read %d nodes, made were %d", nodes.reads, len(made))
		}
	}
	if mean := size / changes; mean > 1600 {
		t.Errorf("a change wrote %d bytes", mean)
	}
}

// TestTrieSetAgain: what does not change the state makes no node.
func TestTrieSetAgain(t *testing.T) {
	t.Parallel()
	nodes := newNodes()
	root := buildTrie(t, nodes, bigState(100))
	trie := OpenTrie(nodes, root)
	for k, id := range bigState(20) {
		if err := trie.Set(k, id, 0); err != nil {
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
	children, err := NodeChildren(nodes.nodes[root])
	if err != nil || len(children) == 0 {
		t.Fatalf("%d children, %v", len(children), err)
	}
	kept := nodes.nodes[children[0]]
	nodes.nodes[children[0]] = append([]byte(nil), append(kept[:len(kept)-1:len(kept)-1], kept[len(kept)-1]^1)...)
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
	nodes.nodes[children[0]] = kept
	if err := trie.Walk(func(StateTuple, EventID) error { return nil }); err != nil {
		t.Errorf("Walk after mending: %v", err)
	}
}

func FuzzTrieNode(f *testing.F) {
	nodes := newNodes()
	buildTrie(f, nodes, bigState(100))
	buildTrie(f, nodes, map[StateTuple]EventID{{"a", ""}: "$old:domain", {"b", "c"}: "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"})
	for _, n := range nodes.nodes {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := decodeNode(raw)
		if err != nil {
			return
		}
		again, err := decodeNode(n.encode())
		if err != nil {
			t.Fatalf("node of %x does not decode again: %v", raw, err)
		}
		if string(again.encode()) != string(n.encode()) {
			t.Fatalf("node of %x changes", raw)
		}
	})
}
