package stateres

import (
	"cmp"
	"container/heap"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

var (
	tupleCreate = eventgraph.StateTuple{Type: "m.room.create"}
	tuplePower  = eventgraph.StateTuple{Type: "m.room.power_levels"}
)

// isPowerEvent is the definition "Power events".
func isPowerEvent(n *node) bool {
	key, ok := n.StateKey()
	if !ok {
		return false
	}
	switch n.Type() {
	case "m.room.power_levels", "m.room.join_rules":
		return true
	case "m.room.member":
		m := n.Membership()
		return (m == "leave" || m == "ban") && key != string(n.Sender())
	}
	return false
}

// powerEvents selects the set X of step 1: the power events of the full conflicted set, and what of that set is in
// their auth chains. It marks them as ordered.
func (r *resolver) powerEvents() ([]*node, error) {
	var set, stack []*node
	walk := len(r.states) + 1
	for _, n := range r.full {
		if isPowerEvent(n) {
			n.walk = walk
			stack = append(stack, n)
		}
	}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n.full {
			n.ordered = true
			set = append(set, n)
		}
		auth, err := r.auth(n)
		if err != nil {
			return nil, err
		}
		for _, a := range auth {
			if a.walk != walk {
				a.walk = walk
				stack = append(stack, a)
			}
		}
	}
	return set, nil
}

// byPower sorts into the reverse topological power ordering, with Kahn's algorithm.
//
// The DAG is that of all auth events: two events of the set may also be tied by a path through events outside it. Those
// outside events take part as silent vertices, passed as soon as they are free.
func (r *resolver) byPower(set []*node) ([]*node, error) {
	levels := make(map[*node]auth.PowerLevel, len(set))
	for _, n := range set {
		level, err := r.senderPower(n)
		if err != nil {
			return nil, err
		}
		levels[n] = level
	}
	free := &vertices{less: func(a, b *node) bool {
		switch la, lb := levels[a], levels[b]; {
		case la.Above(lb):
			return true
		case lb.Above(la):
			return false
		}
		return byTime(a, b) < 0
	}}

	cites := r.tied(set)
	var silent []*node
	release := func(n *node) {
		if n.waits > 0 {
			return
		}
		if n.ordered {
			heap.Push(free, n)
		} else {
			silent = append(silent, n)
		}
	}
	for n := range cites {
		n.waits = 0
	}
	for _, citing := range cites {
		for _, c := range citing {
			c.waits++
		}
	}
	for n := range cites {
		release(n)
	}

	sorted := make([]*node, 0, len(set))
	for len(silent) > 0 || free.Len() > 0 {
		var n *node
		if len(silent) > 0 {
			n = silent[len(silent)-1]
			silent = silent[:len(silent)-1]
		} else {
			n = heap.Pop(free).(*node)
			sorted = append(sorted, n)
		}
		for _, c := range cites[n] {
			c.waits--
			release(c)
		}
	}
	return sorted, nil
}

// tied returns the vertices of the DAG that sorting set needs, each with those that cite it: the set, and
// the events on paths between two of it. powerEvents has read the auth chains.
func (r *resolver) tied(set []*node) map[*node][]*node {
	// Who cites whom, in the auth chains of the set.
	citedBy := make(map[*node][]*node)
	walk := len(r.states) + 2
	stack := slices.Clone(set)
	for _, n := range set {
		n.walk = walk
	}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, a := range n.auth {
			citedBy[a] = append(citedBy[a], n)
			if a.walk != walk {
				a.walk = walk
				stack = append(stack, a)
			}
		}
	}

	// Of them those from which a path leads into the set.
	vertices := make(map[*node][]*node, len(set))
	for _, n := range set {
		vertices[n] = citedBy[n]
	}
	stack = append(stack, set...)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range citedBy[n] {
			if _, ok := vertices[c]; !ok {
				vertices[c] = citedBy[c]
				stack = append(stack, c)
			}
		}
	}
	return vertices
}

// byTime is the part that both orderings have in common.
func byTime(a, b *node) int {
	if c := cmp.Compare(a.OriginServerTS(), b.OriginServerTS()); c != 0 {
		return c
	}
	return byID(a, b)
}

// vertices is a heap of nodes.
type vertices struct {
	list []*node
	less func(a, b *node) bool
}

func (v *vertices) Len() int           { return len(v.list) }
func (v *vertices) Less(i, j int) bool { return v.less(v.list[i], v.list[j]) }
func (v *vertices) Swap(i, j int)      { v.list[i], v.list[j] = v.list[j], v.list[i] }
func (v *vertices) Push(n any)         { v.list = append(v.list, n.(*node)) }
func (v *vertices) Pop() any {
	n := v.list[len(v.list)-1]
	v.list = v.list[:len(v.list)-1]
	return n
}

// powerKey is what a sender's power depends on: power levels, create event and the sender.
type powerKey struct {
	levels, create *node
	sender         eventgraph.UserID
}

type power = auth.PowerLevel

// senderPower is the power level of an event's sender, looking at its auth events.
func (r *resolver) senderPower(n *node) (power, error) {
	create, err := r.createOf(n)
	if err != nil {
		return power{}, err
	}
	levels, err := r.authEvent(n, tuplePower)
	if err != nil {
		return power{}, err
	}
	key := powerKey{levels, create, n.Sender()}
	if p, ok := r.levels[key]; ok {
		return p, nil
	}
	p, err := auth.UserPower(n.Sender(), pair{create: create, levels: levels})
	if err != nil {
		return power{}, err
	}
	r.levels[key] = p
	return p, nil
}

// createOf is the create event that authorizes n: of its auth events, or from room version 12 that of the room's ID.
// Nil if it has none, as the create event itself.
func (r *resolver) createOf(n *node) (*node, error) {
	if !r.traits.RoomIDFromCreate {
		return r.authEvent(n, tupleCreate)
	}
	return r.node(auth.CreateOf(n.RoomID()))
}

// pair is a state of at most two events.
type pair struct{ create, levels *node }

func (p pair) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	switch {
	case t == tupleCreate && p.create != nil:
		return p.create.Event, nil
	case t == tuplePower && p.levels != nil:
		return p.levels.Event, nil
	}
	return nil, nil
}

// byMainline sorts into the mainline ordering based on the power levels of the partially resolved state.
func (r *resolver) byMainline(list []*node) ([]*node, error) {
	levels, err := r.partial(tuplePower)
	if err != nil {
		return nil, err
	}
	position := make(map[*node]int) // of power level events: where the first of them and theirs stands in the mainline
	length := 0
	for p := levels; p != nil; length++ {
		position[p] = length
		if p, err = r.authEvent(p, tuplePower); err != nil {
			return nil, err
		}
	}

	infinite := length // greater than every position
	of := make(map[*node]int, len(list))
	for _, n := range list {
		var passed []*node
		p, err := r.authEvent(n, tuplePower)
		for p != nil && err == nil {
			if _, ok := position[p]; ok {
				break
			}
			passed = append(passed, p)
			p, err = r.authEvent(p, tuplePower)
		}
		if err != nil {
			return nil, err
		}
		of[n] = infinite
		if p != nil {
			of[n] = position[p]
		}
		for _, q := range passed {
			position[q] = of[n]
		}
	}

	slices.SortFunc(list, func(a, b *node) int {
		if c := cmp.Compare(of[b], of[a]); c != 0 {
			return c // the greater position comes first
		}
		return byTime(a, b)
	})
	return list, nil
}
