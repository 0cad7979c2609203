package eventgraph

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// Hash is a SHA-256: of a trie node, and so of a whole state. The zero Hash is the empty state.
type Hash [32]byte

// NodeReader reads a trie node by its hash. The bytes belong to the reader and are not kept.
type NodeReader interface {
	TrieNode(h Hash) ([]byte, error)
}

// A trie node has eight slots, one for each next three bits of the SHA-256 of a tuple. A slot is empty, holds
// the one entry below it, or refers to a child with all the entries below it, two or more. So a set of entries has one
// shape only. Eight slots and not sixteen: a change rewrites a node on each level, and levels of 8 hashes cost fewer
// bytes than fewer levels of 16: about 1 KiB in a room of 10,000 members.
//
// A node's bytes are
//
//	1 byte            nodeFormat
//	1 byte            bit i: slot i holds an entry
//	1 byte            bit i: slot i refers to a child
//	for each slot in use, in order:
//	  a child         its 32-byte hash
//	  an entry        uvarint height, uvarint length and type, uvarint length and state key, ID
//
// and an ID is idURLSafe or idStandard and the 32 bytes of its hash, or idText, uvarint length and the text.
const (
	nodeFormat  = 1
	nodeHeader  = 3
	slotBits    = 3
	slots       = 1 << slotBits
	maxLevel    = 256 / slotBits // of a node; entries that agree on so many bits do not exist
	idText      = 0
	idURLSafe   = 1
	idStandard  = 2
	maxNodeText = 1 << 16 // no event has a longer type, state key or ID
)

// ErrTrieNode: the bytes that a NodeReader gave are not the node asked for.
var ErrTrieNode = errors.New("damaged trie node")

// Trie is room state, (type, state key) -> event ID, as a persistent hash trie: equal sets have equal
// roots in whatever order they were built. A Trie is for one goroutine. After an error of its NodeReader it is as before the call.
type Trie struct {
	nodes NodeReader
	root  slot
}

// slot is empty, an entry, or a child, which is read when it is needed.
type slot struct {
	entry *entry
	hash  Hash  // of a child that was read, or is to be
	child *node // nil until read
	isRef bool
}

type entry struct {
	tuple  StateTuple
	id     EventID
	height uint32
}

// node is a node in memory. It is never shared between tries. Changed says that its slot's hash is out of date.
type node struct {
	slots   [slots]slot
	changed bool
}

// OpenTrie opens the state with that root; the zero Hash is the empty one. Nothing is read yet.
func OpenTrie(nodes NodeReader, root Hash) *Trie {
	return &Trie{nodes, slot{hash: root, isRef: root != Hash{}}}
}

// pathOf is the tuple's hash, whose bits lead to its slot.
func pathOf(k StateTuple) Hash {
	b := make([]byte, 0, len(k.Type)+len(k.Key)+binary.MaxVarintLen64)
	b = binary.AppendUvarint(b, uint64(len(k.Type)))
	b = append(b, k.Type...)
	b = append(b, k.Key...)
	return sha256.Sum256(b)
}

// at returns the slot number on a level: three bits of the path.
func (h *Hash) at(level int) int {
	bit := level * slotBits
	two := uint(h[bit/8]) << 8
	if bit/8+1 < len(h) {
		two |= uint(h[bit/8+1])
	}
	return int(two >> (16 - slotBits - bit%8) & (slots - 1))
}

// load reads the child of a slot, a node of that level.
func (s *slot) load(nodes NodeReader, level int) (*node, error) {
	if level > maxLevel {
		return nil, fmt.Errorf("%w: too deep", ErrTrieNode)
	}
	if s.child == nil {
		n, err := readNode(nodes, s.hash)
		if err != nil {
			return nil, err
		}
		s.child = n
	}
	return s.child, nil
}

// Get returns the event ID at the tuple; false if there is none.
func (t *Trie) Get(k StateTuple) (EventID, bool, error) {
	path, s := pathOf(k), &t.root
	for level := 0; s.isRef; level++ {
		n, err := s.load(t.nodes, level)
		if err != nil {
			return "", false, err
		}
		s = &n.slots[path.at(level)]
	}
	if s.entry == nil || s.entry.tuple != k {
		return "", false, nil
	}
	return s.entry.id, true, nil
}

// Set puts the event ID at the tuple, in place of what was there, with the height of the event in the auth graph (the length of
// the longest path of auth_events from it).
func (t *Trie) Set(k StateTuple, id EventID, height uint32) error {
	if len(k.Type) > maxNodeText || len(k.Key) > maxNodeText || len(id) > maxNodeText {
		return fmt.Errorf("state entry: %w", ErrTooLarge)
	}
	e, path := &entry{k, id, height}, pathOf(k)
	// 1. Go down, remembering the nodes on the way, which change if anything does.
	var way []*node
	s := &t.root
	for s.isRef {
		n, err := s.load(t.nodes, len(way))
		if err != nil {
			return err
		}
		way = append(way, n)
		s = &n.slots[path.at(len(way)-1)]
	}
	// 2. Put the entry into its slot. Two entries in one slot move down until their paths part.
	switch old := s.entry; {
	case old == nil && s != &t.root:
		s.entry = e
	case old != nil && old.tuple == k:
		if old.id == id && old.height == height {
			return nil
		}
		s.entry = e
	case old == nil: // the first entry of all
		*s = slot{child: &node{changed: true}, isRef: true}
		s.child.slots[path.at(0)].entry = e
	default:
		oldPath := pathOf(old.tuple)
		if oldPath == path {
			return fmt.Errorf("state entries %q and %q collide", old.tuple, k)
		}
		for level := len(way); ; level++ {
			n := &node{changed: true}
			*s = slot{child: n, isRef: true}
			if i, j := oldPath.at(level), path.at(level); i != j {
				n.slots[i].entry, n.slots[j].entry = old, e
				break
			}
			s = &n.slots[path.at(level)]
		}
	}
	for _, n := range way {
		n.changed = true
	}
	return nil
}

// Delete removes the tuple, if it is there.
func (t *Trie) Delete(k StateTuple) error {
	path := pathOf(k)
	var way []*slot // the slots of the nodes on the way, the root's first
	s := &t.root
	for level := 0; s.isRef; level++ {
		n, err := s.load(t.nodes, level)
		if err != nil {
			return err
		}
		way = append(way, s)
		s = &n.slots[path.at(level)]
	}
	if s.entry == nil || s.entry.tuple != k {
		return nil
	}
	s.entry = nil
	for _, w := range way {
		w.child.changed = true
	}
	// A node left with one entry and nothing else goes, and the entry moves up; the root goes when it is empty.
	for i := len(way) - 1; i >= 0; i-- {
		only, used := (*entry)(nil), 0
		for _, s := range way[i].child.slots {
			if s.entry != nil || s.isRef {
				used++
				only = s.entry
			}
		}
		switch {
		case used == 0:
			*way[i] = slot{}
		case used == 1 && only != nil && i > 0:
			*way[i] = slot{entry: only}
		default:
			return nil
		}
	}
	return nil
}

// Walk calls f for each entry, in an order that depends on the tuples only, until f errs. f must not change the trie.
func (t *Trie) Walk(f func(k StateTuple, id EventID) error) error {
	return t.root.walk(t.nodes, func(e *entry) error { return f(e.tuple, e.id) })
}

// WalkAbove is Walk for the entries whose height is greater than height.
func (t *Trie) WalkAbove(height uint32, f func(k StateTuple, id EventID) error) error {
	return t.root.walk(t.nodes, func(e *entry) error {
		if e.height <= height {
			return nil
		}
		return f(e.tuple, e.id)
	})
}

// walk reads nodes and does not keep them: a walk of a large state would hold all of it.
func (s *slot) walk(nodes NodeReader, f func(*entry) error) error {
	if s.entry != nil {
		return f(s.entry)
	}
	if !s.isRef {
		return nil
	}
	n := s.child
	if n == nil {
		var err error
		if n, err = readNode(nodes, s.hash); err != nil {
			return err
		}
	}
	for i := range n.slots {
		if err := n.slots[i].walk(nodes, f); err != nil {
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
	s.hash = sha256.Sum256(raw)
	s.child.changed = false
	made[s.hash] = raw
}

func (n *node) encode() []byte {
	raw := append(make([]byte, 0, 512), nodeFormat, 0, 0)
	for i := range n.slots {
		switch s := &n.slots[i]; {
		case s.entry != nil:
			raw[1] |= 1 << i
			raw = s.entry.append(raw)
		case s.isRef:
			raw[2] |= 1 << i
			raw = append(raw, s.hash[:]...)
		}
	}
	return raw
}

func (e *entry) append(raw []byte) []byte {
	raw = binary.AppendUvarint(raw, uint64(e.height))
	raw = appendText(raw, e.tuple.Type)
	raw = appendText(raw, e.tuple.Key)
	kind, enc := byte(idText), base64.RawURLEncoding
	switch {
	case isHashID(string(e.id), '$', enc):
		kind = idURLSafe
	case isHashID(string(e.id), '$', base64.RawStdEncoding):
		kind, enc = idStandard, base64.RawStdEncoding
	}
	raw = append(raw, kind)
	if kind == idText {
		return appendText(raw, string(e.id))
	}
	raw, err := enc.AppendDecode(raw, []byte(e.id[1:]))
	if err != nil {
		panic("eventgraph: " + string(e.id) + " was base64 a moment ago")
	}
	return raw
}

func appendText(raw []byte, s string) []byte {
	return append(binary.AppendUvarint(raw, uint64(len(s))), s...)
}

func readNode(nodes NodeReader, h Hash) (*node, error) {
	raw, err := nodes.TrieNode(h)
	if err != nil {
		return nil, fmt.Errorf("trie node %x: %w", h[:6], err)
	}
	// The hash is checked: state is what events are judged by, and a node costs less than a microsecond.
	if sha256.Sum256(raw) != h {
		return nil, fmt.Errorf("trie node %x: %w", h[:6], ErrTrieNode)
	}
	n, err := decodeNode(raw)
	if err != nil {
		return nil, fmt.Errorf("trie node %x: %w", h[:6], err)
	}
	return n, nil
}

// decodeNode copies what it needs of raw.
func decodeNode(raw []byte) (*node, error) {
	if len(raw) < nodeHeader || raw[0] != nodeFormat || raw[1]&raw[2] != 0 || raw[1]|raw[2] == 0 {
		return nil, ErrTrieNode
	}
	n := &node{}
	r := nodeBytes{rest: raw[nodeHeader:]}
	for i := range n.slots {
		switch bit := byte(1) << i; {
		case raw[1]&bit != 0:
			n.slots[i].entry = r.entry()
		case raw[2]&bit != 0:
			n.slots[i].isRef = true
			copy(n.slots[i].hash[:], r.take(len(Hash{})))
		}
	}
	if r.short || len(r.rest) > 0 {
		return nil, ErrTrieNode
	}
	return n, nil
}

// nodeBytes reads from the front of rest; short says that it ended early.
type nodeBytes struct {
	rest  []byte
	short bool
}

func (r *nodeBytes) take(n int) []byte {
	if n > len(r.rest) {
		r.short, r.rest = true, nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *nodeBytes) height() uint32 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > math.MaxUint32 {
		r.short, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[size:]
	return uint32(n)
}

func (r *nodeBytes) text() string {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > maxNodeText {
		r.short, r.rest = true, nil
		return ""
	}
	r.rest = r.rest[size:]
	return string(r.take(int(n)))
}

func (r *nodeBytes) entry() *entry {
	e := &entry{height: r.height()}
	e.tuple = StateTuple{r.text(), r.text()}
	kind := r.take(1)
	switch {
	case r.short:
		return nil
	case kind[0] == idURLSafe:
		e.id = EventID("$" + base64.RawURLEncoding.EncodeToString(r.take(32)))
	case kind[0] == idStandard:
		e.id = EventID("$" + base64.RawStdEncoding.EncodeToString(r.take(32)))
	case kind[0] == idText:
		e.id = EventID(r.text())
	default:
		r.short = true
	}
	return e
}

// Difference is one tuple on which two states differ; "" where it is absent.
type Difference struct {
	Tuple StateTuple
	A, B  EventID
}

// Diff calls f for each tuple on which a and b differ, in an order that depends on the tuples only; its cost is the
// size of the difference.
func Diff(nodes NodeReader, a, b Hash, f func(Difference) error) error {
	sa, sb := OpenTrie(nodes, a).root, OpenTrie(nodes, b).root
	return diff(nodes, &sa, &sb, f)
}

func diff(nodes NodeReader, a, b *slot, f func(Difference) error) error {
	switch {
	case a.isRef && b.isRef:
		if a.hash == b.hash {
			return nil
		}
		na, err := readNode(nodes, a.hash)
		if err != nil {
			return err
		}
		nb, err := readNode(nodes, b.hash)
		if err != nil {
			return err
		}
		for i := range na.slots {
			if err := diff(nodes, &na.slots[i], &nb.slots[i], f); err != nil {
				return err
			}
		}
		return nil
	case b.isRef:
		return diff(nodes, b, a, func(d Difference) error { return f(Difference{d.Tuple, d.B, d.A}) })
	}
	// b is one entry or none; a is anything. All of a is A's alone, but for the entry that b has too.
	rest := b.entry
	err := a.walk(nodes, func(e *entry) error {
		d := Difference{Tuple: e.tuple, A: e.id}
		if rest != nil && rest.tuple == e.tuple {
			d.B, rest = rest.id, nil
		}
		if d.A == d.B {
			return nil
		}
		return f(d)
	})
	if err != nil || rest == nil {
		return err
	}
	return f(Difference{Tuple: rest.tuple, B: rest.id})
}

// NodeChildren lists the nodes that a node refers to, for collection of what nothing refers to.
func NodeChildren(node []byte) ([]Hash, error) {
	n, err := decodeNode(node)
	if err != nil {
		return nil, err
	}
	children := make([]Hash, 0, bits.OnesCount8(node[2]))
	for _, s := range n.slots {
		if s.isRef {
			children = append(children, s.hash)
		}
	}
	return children, nil
}
