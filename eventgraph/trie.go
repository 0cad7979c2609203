package eventgraph

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

// Hash names a trie node, and so a whole state, by its content: the first 192 bits of its SHA-256. The zero Hash is the empty state.
// Hashes are most of what a change of state writes, and what is cut off is not missed: to find two nodes of one hash takes 2^96
// steps, to find one for a given hash 2^192, and a Hash is never taken from others; each server makes its own.
type Hash [24]byte

func hashOf(node []byte) Hash {
	sum := sha256.Sum256(node)
	return Hash(sum[:len(Hash{})])
}

// NodeReader reads a trie node by its hash. A trie keeps the bytes: nobody may change them any more.
type NodeReader interface {
	TrieNode(h Hash) ([]byte, error)
}

// Trie is room state, (type, state key) -> event ID, as a persistent hash trie: equal sets have equal
// roots in whatever order they were built. A Trie is for one goroutine. After an error of its NodeReader it is as before the call.
type Trie struct {
	nodes NodeReader
	root  slot
}

// A node has four slots, one for each next two bits of the path of a tuple. A slot is empty, holds the one entry below
// it, or refers to a child with all the entries below it, two or more. So a set of entries has one shape only.
//
// Four slots and not sixteen: a change rewrites a node on each level, and many levels of few hashes cost fewer bytes than few
// levels of many; with two slots the nodes' own keys in a store outweigh what is saved (ARCHITECTURE.md, The state trie).
const (
	slotBits = 2
	slots    = 1 << slotBits
	maxLevel = 256/slotBits - 1 // of a node; entries that agree on so many bits do not exist

	// Space set aside on the stack, enough for all but odd states: nodes above an entry, bytes of an entry.
	usualDepth = 16
	usualEntry = 256
)

// node is a node in memory. It is never shared between tries. Changed says that hash and height of its slot are out of date.
type node struct {
	slots   [slots]slot
	changed bool
}

type slot struct {
	kind   slotKind
	height uint32 // of the entry; of a child the greatest below it
	entry  []byte // as node bytes have it, from the type on
	hash   Hash   // of a child
	child  *node  // nil until read
}

type slotKind byte

const (
	slotEmpty slotKind = iota
	slotEntry
	slotChild
)

// OpenTrie opens the state with that root; the zero Hash is the empty one. Nothing is read yet.
func OpenTrie(nodes NodeReader, root Hash) *Trie {
	t := &Trie{nodes: nodes}
	if root != (Hash{}) {
		t.root = slot{kind: slotChild, hash: root}
	}
	return t
}

// path is the SHA-256 of a tuple's bytes in a node. Its bits lead to the tuple's slot.
type path [sha256.Size]byte

// at returns the slot number on a level.
func (p *path) at(level int) int {
	bit := level * slotBits
	return int(p[bit/8]>>(8-slotBits-bit%8)) & (slots - 1)
}

// read returns the child of a slot, a node of that level, and does not keep it. If it has to be decoded, that is into space, which is
// an empty node.
func (s *slot) read(nodes NodeReader, level int, space *node) (*node, error) {
	if s.child != nil {
		return s.child, nil
	}
	raw, err := nodes.TrieNode(s.hash)
	if err != nil {
		return nil, nodeError(s.hash, err)
	}
	// The hash is checked: state is what events are judged by, and a node costs less than a microsecond. So what is read is what a
	// trie wrote, and that the entries are on their paths need not be checked.
	if hashOf(raw) != s.hash {
		return nil, nodeError(s.hash, ErrTrieNode)
	}
	if err := space.decode(raw); err != nil {
		return nil, nodeError(s.hash, err)
	}
	if level > maxLevel || level > 0 && (space.height() != s.height || space.only() != nil) {
		return nil, nodeError(s.hash, fmt.Errorf("%w: not where it belongs", ErrTrieNode))
	}
	return space, nil
}

// nodeError takes a copy of the hash: with a pointer into it, the spaces of read would all be on the heap.
func nodeError(h Hash, err error) error { return fmt.Errorf("trie node %x: %w", h[:6], err) }

// load is read and keeps the child.
func (s *slot) load(nodes NodeReader, level int) (*node, error) {
	if s.child != nil {
		return s.child, nil
	}
	n, err := s.read(nodes, level, &node{})
	if err == nil {
		s.child = n
	}
	return n, err
}

// height is the greatest in the node and below it, unless children have changed.
func (n *node) height() (most uint32) {
	for i := range n.slots {
		most = max(most, n.slots[i].height)
	}
	return most
}

// only returns the one slot in use, if it is of an entry.
func (n *node) only() (only *slot) {
	for i := range n.slots {
		switch s := &n.slots[i]; {
		case s.kind == slotChild, s.kind == slotEntry && only != nil:
			return nil
		case s.kind == slotEntry:
			only = s
		}
	}
	return only
}

// Get returns the event ID at the tuple; false if there is none.
func (t *Trie) Get(k StateTuple) (EventID, bool, error) {
	var space [usualEntry]byte
	tuple := appendTuple(space[:0], k)
	p, s := path(sha256.Sum256(tuple)), &t.root
	for level := 0; s.kind == slotChild; level++ {
		n, err := s.load(t.nodes, level)
		if err != nil {
			return "", false, err
		}
		s = &n.slots[p.at(level)]
	}
	if id, ok := bytes.CutPrefix(s.entry, tuple); ok {
		return decodeID(id), true, nil
	}
	return "", false, nil
}

// Set puts the event ID at the tuple, in place of what was there, with the height of the event in the auth graph (the length of
// the longest path of auth_events from it).
func (t *Trie) Set(k StateTuple, id EventID, height uint32) error {
	if len(k.Type) > maxNodeText || len(k.Key) > maxNodeText || len(id) > maxNodeText {
		return fmt.Errorf("state entry: %w", ErrTooLarge)
	}
	var space [usualEntry]byte
	tuple := appendTuple(space[:0], k)
	entry := bytes.Clone(appendID(tuple, id))
	p := path(sha256.Sum256(tuple))
	// 1. Go down, remembering the nodes on the way, which change if anything does.
	way := make([]*node, 0, usualDepth)
	s := &t.root
	for s.kind == slotChild {
		n, err := s.load(t.nodes, len(way))
		if err != nil {
			return err
		}
		way = append(way, n)
		s = &n.slots[p.at(len(way)-1)]
	}
	// 2. Put the entry into its slot. Two entries in one slot move down until their paths part; the first entry of all gets a root.
	switch old := *s; {
	case old.kind == slotEntry && bytes.HasPrefix(old.entry, tuple):
		if old.height == height && bytes.Equal(old.entry, entry) {
			return nil
		}
	case old.kind == slotEntry:
		other := path(sha256.Sum256(tupleOf(old.entry)))
		if other == p {
			return fmt.Errorf("state entry %q collides with another", k)
		}
		for parted := false; !parted; {
			n, level := s.grow(), len(way)
			way = append(way, n)
			if i := other.at(level); i != p.at(level) {
				n.slots[i], parted = old, true
			}
			s = &n.slots[p.at(level)]
		}
	case s == &t.root:
		s = &s.grow().slots[p.at(0)]
	}
	*s = slot{kind: slotEntry, height: height, entry: entry}
	for _, n := range way {
		n.changed = true
	}
	return nil
}

// grow makes the slot refer to a new node.
func (s *slot) grow() *node {
	*s = slot{kind: slotChild, child: &node{changed: true}}
	return s.child
}

// Delete removes the tuple, if it is there.
func (t *Trie) Delete(k StateTuple) error {
	var space [usualEntry]byte
	tuple := appendTuple(space[:0], k)
	p := path(sha256.Sum256(tuple))
	way := make([]*slot, 0, usualDepth) // the slots of the nodes on the way, the root's first
	s := &t.root
	for s.kind == slotChild {
		n, err := s.load(t.nodes, len(way))
		if err != nil {
			return err
		}
		way = append(way, s)
		s = &n.slots[p.at(len(way)-1)]
	}
	if !bytes.HasPrefix(s.entry, tuple) {
		return nil
	}
	*s = slot{}
	for _, w := range way {
		w.child.changed = true
	}
	// A node left with one entry and nothing else goes, and the entry moves up; the root goes when it is empty.
	for i := len(way) - 1; i > 0; i-- {
		only := way[i].child.only()
		if only == nil {
			return nil
		}
		*way[i] = *only
	}
	for i := range way[0].child.slots {
		if way[0].child.slots[i].kind != slotEmpty {
			return nil
		}
	}
	*way[0] = slot{}
	return nil
}

// Walk calls f for each entry, in an order that depends on the tuples only, until f errs. f must not change the trie.
func (t *Trie) Walk(f func(k StateTuple, id EventID) error) error {
	return t.root.walk(t.nodes, 0, nil, func(entry []byte) error {
		k, id := decodeEntry(entry)
		return f(k, id)
	})
}

// WalkAbove is Walk for the entries whose height is greater than height. It reads the nodes above those entries, and no others.
func (t *Trie) WalkAbove(height uint32, f func(k StateTuple, id EventID) error) error {
	return t.root.walk(t.nodes, 0, &height, func(entry []byte) error {
		k, id := decodeEntry(entry)
		return f(k, id)
	})
}

// walk goes through the entries at and below a slot of a node of the level above, all or those above a height. It does
// not keep the nodes it reads: a walk of a large state would hold all of it.
func (s *slot) walk(nodes NodeReader, level int, above *uint32, f func(entry []byte) error) error {
	outdated := s.child != nil && s.child.changed
	switch {
	case s.kind == slotEmpty:
		return nil
	case above != nil && s.height <= *above && !outdated && level > 0: // what the root's height is, nobody told us
		return nil
	case s.kind == slotEntry:
		return f(s.entry)
	}
	var space node
	n, err := s.read(nodes, level, &space)
	if err != nil {
		return err
	}
	for i := range n.slots {
		if err := n.slots[i].walk(nodes, level+1, above, f); err != nil {
			return err
		}
	}
	return nil
}

// Commit returns the root and the nodes made since OpenTrie, or the last Commit, that the root needs, for the
// caller to store; the trie goes on from there.
func (t *Trie) Commit() (Hash, map[Hash][]byte) {
	made := map[Hash][]byte{}
	t.root.commit(made)
	return t.root.hash, made
}

func (s *slot) commit(made map[Hash][]byte) {
	if s.child == nil || !s.child.changed {
		return
	}
	for i := range s.child.slots {
		s.child.slots[i].commit(made)
	}
	raw := s.child.encode()
	s.hash, s.height = hashOf(raw), s.child.height()
	s.child.changed = false
	made[s.hash] = raw
}

// Difference is one tuple on which two states differ; "" where it is absent.
type Difference struct {
	Tuple StateTuple
	A, B  EventID
}

// Diff calls f for each tuple on which a and b differ, in an order that depends on the tuples only; its cost is the
// size of the difference.
func Diff(nodes NodeReader, a, b Hash, f func(Difference) error) error {
	return OpenTrie(nodes, a).Diff(b, f)
}

// Diff compares the trie, as it was last committed, with another. The nodes on the way to the differences stay with the
// trie, so that changes there read nothing again.
func (t *Trie) Diff(other Hash, f func(Difference) error) error {
	return diff(t.nodes, 0, &t.root, &OpenTrie(t.nodes, other).root, f)
}

// diff compares slots of nodes of the level above.
func diff(nodes NodeReader, level int, a, b *slot, f func(Difference) error) error {
	switch {
	case a.kind == slotEntry && b.kind == slotEntry && bytes.Equal(a.entry, b.entry):
		return nil
	case a.kind == slotChild && b.kind == slotChild:
		if a.hash == b.hash {
			return nil
		}
		na, err := a.load(nodes, level)
		if err != nil {
			return err
		}
		var space node
		nb, err := b.read(nodes, level, &space)
		if err != nil {
			return err
		}
		for i := range na.slots {
			if err := diff(nodes, level+1, &na.slots[i], &nb.slots[i], f); err != nil {
				return err
			}
		}
		return nil
	case b.kind == slotChild:
		return diff(nodes, level, b, a, func(d Difference) error { return f(Difference{d.Tuple, d.B, d.A}) })
	}
	// b is one entry or none; a is anything. All of a is A's alone, but for the entry that b has too.
	var rest Difference
	if b.kind == slotEntry {
		rest.Tuple, rest.B = decodeEntry(b.entry)
	}
	err := a.walk(nodes, level, nil, func(entry []byte) error {
		k, id := decodeEntry(entry)
		d := Difference{Tuple: k, A: id}
		if rest.B != "" && rest.Tuple == k {
			d.B, rest.B = rest.B, ""
		}
		if d.A == d.B {
			return nil
		}
		return f(d)
	})
	if err != nil || rest.B == "" {
		return err
	}
	return f(rest)
}

// WalkNodes calls f for nodes of the state root, each before those below it, for collection of what nothing refers to. Nodes that stand
// at the same place in the state base are left out, and what is below a node for which f says no.
func WalkNodes(nodes NodeReader, base, root Hash, f func(Hash) (below bool, err error)) error {
	return walkNodes(nodes, 0, &OpenTrie(nodes, base).root, &OpenTrie(nodes, root).root, f)
}

func walkNodes(nodes NodeReader, level int, base, s *slot, f func(Hash) (bool, error)) error {
	if s.kind != slotChild || base.kind == slotChild && base.hash == s.hash {
		return nil
	}
	if below, err := f(s.hash); err != nil || !below {
		return err
	}
	var space, spaceOfBase node
	n, err := s.read(nodes, level, &space)
	if err != nil {
		return err
	}
	known := &spaceOfBase
	if base.kind == slotChild {
		if known, err = base.read(nodes, level, known); err != nil {
			return err
		}
	}
	for i := range n.slots {
		if err := walkNodes(nodes, level+1, &known.slots[i], &n.slots[i], f); err != nil {
			return err
		}
	}
	return nil
}
