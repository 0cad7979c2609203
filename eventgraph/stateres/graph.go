package stateres

import (
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// node is an event of the auth graph.
type node struct {
	Held
	auth  []*node // distinct; filled in by graph.link
	power *node   // the first of auth that is power levels

	in    stateSet // the states in which the event is at a conflicted tuple
	chain stateSet // the states whose conflicted events have it in their auth chains

	linked     bool
	queued     bool // for the walk
	shared     bool // chain is of all states
	conflicted bool // in the conflicted state set
	candidate  bool // for the auth difference
	led        bool // in the auth chain of an event of the unconflicted state map, as far as dropShared has found
	barren     bool // dropShared has found that it is in none
	passed     bool // by dropBelow
	full       bool // in the full conflicted set
	powerful   bool // a power event of the full conflicted set, or in the auth chain of one
	ordered    bool // in the set X of step 1
	leads      bool // to one of the set that is looked at

	vertex   int   // while sorting by power: its number, from 1
	level    power // likewise: of the sender
	place    int   // of power levels: the first place in the mainline that they lead to, from 1; 0 is not known
	position int   // while sorting by the mainline: the place that the event leads to
}

// graph reads events, each once, and links them by their auth events.
type graph struct {
	events EventReader
	known  map[eventgraph.EventID]*node
	words  int // of a stateSet

	// What nodes are cut from: there are many, of one lifetime.
	nodes []node
	sets  []uint64
	auth  []*node
}

const (
	slab = 64 // how many nodes are allocated at once

	// Events for which there is room from the beginning, which is cheaper than making more again and again: for a small conflict
	// few, for others a usual auth chain.
	knownPerConflict = 32
	knownAtFirst     = 1024
)

func newGraph(events EventReader, states, conflicts int) graph {
	known := make(map[eventgraph.EventID]*node, min(knownPerConflict*conflicts, knownAtFirst))
	return graph{events: events, known: known, words: (states + 63) / 64}
}

// node reads an event once.
func (g *graph) node(id eventgraph.EventID) (*node, error) {
	if n := g.known[id]; n != nil {
		return n, nil
	}
	held, err := g.events.Event(id)
	if err != nil {
		return nil, fmt.Errorf("resolving state: %w", err)
	}
	if len(g.nodes) == 0 {
		g.nodes = make([]node, slab)
		g.sets = make([]uint64, slab*2*g.words)
	}
	n := &g.nodes[0]
	n.Held, n.in, n.chain = held, g.sets[:g.words:g.words], g.sets[g.words:2*g.words:2*g.words]
	g.nodes, g.sets = g.nodes[1:], g.sets[2*g.words:]
	g.known[id] = n
	return n, nil
}

// link reads the auth events of an event.
func (g *graph) link(n *node) error {
	if n.linked {
		return nil
	}
	ids := n.AuthEvents()
	if len(ids) > cap(g.auth) {
		g.auth = make([]*node, 0, max(len(ids), 4*slab))
	}
	auth := g.auth[:0:len(ids)]
	for _, id := range ids {
		a, err := g.node(id)
		if err != nil {
			return err
		}
		if slices.Contains(auth, a) {
			continue
		}
		auth = append(auth, a)
		if n.power == nil && a.is(tuplePower) {
			n.power = a
		}
	}
	g.auth = g.auth[len(ids):len(ids):cap(g.auth)]
	n.auth, n.linked = auth, true
	return nil
}

// authEvent is the auth event of n at a tuple, nil if it lists none.
func (g *graph) authEvent(n *node, t eventgraph.StateTuple) (*node, error) {
	if err := g.link(n); err != nil {
		return nil, err
	}
	return n.cites(t), nil
}

// cites is authEvent of an event that is linked.
func (n *node) cites(t eventgraph.StateTuple) *node {
	for _, a := range n.auth {
		if a.is(t) {
			return a
		}
	}
	return nil
}

// is says whether the event is state at that tuple.
func (n *node) is(t eventgraph.StateTuple) bool {
	tuple, ok := n.Tuple()
	return ok && tuple == t
}

// stateSet is a set of states, by their numbers.
type stateSet []uint64

// allStates is the set of n states.
func allStates(n int) stateSet {
	s := make(stateSet, (n+63)/64)
	for i := range n {
		s.add(i)
	}
	return s
}

func (s stateSet) add(i int)    { s[i/64] |= 1 << (i % 64) }
func (s stateSet) remove(i int) { s[i/64] &^= 1 << (i % 64) }

func (s stateSet) union(other stateSet) {
	for i, word := range other {
		s[i] |= word
	}
}
