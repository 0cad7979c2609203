package stateres

import (
	"cmp"
	"container/heap"
	"math"
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
func (r *resolver) powerEvents() []*node {
	var set []*node
	for _, n := range r.walked {
		if n.full && isPowerEvent(n) {
			n.powerful = true
		}
		if !n.powerful {
			continue
		}
		if n.full {
			n.ordered = true
			set = append(set, n)
		}
		for _, a := range n.auth {
			a.powerful = true
		}
	}
	return set
}

// byPower sorts the set that powerEvents marked into the reverse topological power ordering, with Kahn's algorithm. The links of the
// DAG are those between events of the set.
func (r *resolver) byPower(set []*node) ([]*node, error) {
	for i, n := range set {
		level, err := r.senderPower(n)
		if err != nil {
			return nil, err
		}
		n.level, n.vertex = level, i+1
	}

	// Who cites whom: the citers of vertex v are citers[ends[v-1]:ends[v]]. Of each, how many auth events must come first.
	waits := make([]int, len(set)+1)
	ends := make([]int, len(set)+2)
	edges := func(f func(citer, cited int)) {
		for _, n := range set {
			for _, a := range n.auth {
				if a.ordered {
					f(n.vertex, a.vertex)
				}
			}
		}
	}
	edges(func(citer, cited int) {
		waits[citer]++
		ends[cited+1]++
	})
	for v := range set {
		ends[v+2] += ends[v+1]
	}
	citers := make([]*node, ends[len(set)+1])
	edges(func(citer, cited int) {
		citers[ends[cited]] = set[citer-1]
		ends[cited]++
	})

	free := &vertices{}
	release := func(n *node) {
		if waits[n.vertex] == 0 {
			heap.Push(free, n)
		}
	}
	for _, n := range set {
		release(n)
	}
	sorted := make([]*node, 0, len(set))
	for free.Len() > 0 {
		n := heap.Pop(free).(*node)
		sorted = append(sorted, n)
		for _, c := range citers[ends[n.vertex-1]:ends[n.vertex]] {
			waits[c.vertex]--
			release(c)
		}
	}
	return sorted, nil
}

// byTime is the part that both orderings have in common.
func byTime(a, b *node) int {
	if c := cmp.Compare(a.OriginServerTS(), b.OriginServerTS()); c != 0 {
		return c
	}
	return cmp.Compare(a.ID(), b.ID())
}

// vertices is a heap of nodes, in the order of the reverse topological power ordering.
type vertices []*node

func (v vertices) Len() int { return len(v) }

func (v vertices) Less(i, j int) bool {
	switch a, b := v[i], v[j]; {
	case a.level.Above(b.level):
		return true
	case b.level.Above(a.level):
		return false
	default:
		return byTime(a, b) < 0
	}
}

func (v vertices) Swap(i, j int) { v[i], v[j] = v[j], v[i] }
func (v *vertices) Push(n any)   { *v = append(*v, n.(*node)) }
func (v *vertices) Pop() any {
	n := (*v)[len(*v)-1]
	*v = (*v)[:len(*v)-1]
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
	levels := n.power
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
// Nil if it has none, as the create event itself. n is linked.
func (r *resolver) createOf(n *node) (*node, error) {
	if !r.traits.RoomIDFromCreate {
		return n.cites(tupleCreate), nil
	}
	if r.create == nil || r.room != n.RoomID() {
		create, err := r.graph.node(auth.CreateOf(n.RoomID()))
		if err != nil {
			return nil, err
		}
		r.room, r.create = n.RoomID(), create
	}
	return r.create, nil
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
	if levels == nil { // all are at infinity
		slices.SortFunc(list, byTime)
		return list, nil
	}
	m := mainline{&r.graph, levels}
	levels.place = 1
	for _, n := range list {
		if n.position, err = m.position(n); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b *node) int {
		if c := cmp.Compare(b.position, a.position); c != 0 {
			return c // the greater position comes first
		}
		return byTime(a, b)
	})
	return list, nil
}

// mainline is the mainline of some power levels as far down as it was needed.
type mainline struct {
	graph *graph
	tail  *node // the last of it that is known
}

// infinite is the mainline position of what is based on nothing of the mainline.
const infinite = math.MaxInt

// position is the mainline position of n, plus 1.
func (m *mainline) position(n *node) (int, error) {
	var passed []*node
	found := infinite
	for {
		if err := m.graph.link(n); err != nil {
			return 0, err
		}
		if n = n.power; n == nil {
			break
		}
		// Below the height of n, the mainline does not have n.
		for m.tail.Height > n.Height {
			if err := m.graph.link(m.tail); err != nil {
				return 0, err
			}
			next := m.tail.power
			if next == nil {
				break
			}
			next.place = m.tail.place + 1
			m.tail = next
		}
		if n.place > 0 {
			found = n.place
			break
		}
		passed = append(passed, n)
	}
	for _, p := range passed {
		p.place = found
	}
	return found, nil
}
