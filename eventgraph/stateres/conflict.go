package stateres

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// conflict is a tuple on which the states differ.
type conflict struct {
	tuple  eventgraph.StateTuple
	first  eventgraph.EventID // what the first state has there, "" for nothing; likewise each state that is not in others
	others []stateEvent
}

// stateEvent is what a state has at a tuple.
type stateEvent struct {
	state int
	id    eventgraph.EventID
}

// findConflicts fills in conflicts, walked and full.
func (r *resolver) findConflicts() error {
	if err := r.diff(); err != nil {
		return err
	}
	r.graph = newGraph(r.events, len(r.states), len(r.conflicts))
	set, err := r.conflictedStateSet()
	if err != nil {
		return err
	}
	if err := r.walk(set); err != nil {
		return err
	}
	r.full = set
	for _, n := range set {
		n.full = true
	}
	if r.traits.StateResolutionV21 {
		r.addSubgraph()
	}
	return r.addAuthDifference()
}

// diff compares every state with the first. A tuple on which none of them differs is unconflicted. What is kept is as
// much as they differ, not every state's event at every tuple.
func (r *resolver) diff() error {
	for i := 1; i < len(r.states); i++ {
		err := r.base.Diff(r.states[i], func(d eventgraph.Difference) error {
			at, ok := r.conflicted[d.Tuple]
			if !ok {
				at = len(r.conflicts)
				r.conflicted[d.Tuple] = at
				r.conflicts = append(r.conflicts, conflict{tuple: d.Tuple, first: d.A})
			}
			c := &r.conflicts[at]
			c.others = append(c.others, stateEvent{i, d.B})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// conflictedStateSet reads the events of conflicts.
func (r *resolver) conflictedStateSet() ([]*node, error) {
	var set []*node
	read := func(id eventgraph.EventID) (*node, error) {
		n, err := r.graph.node(id)
		if err == nil && !n.conflicted {
			n.conflicted = true
			set = append(set, n)
		}
		return n, err
	}
	all := allStates(len(r.states))
	rest := make(stateSet, len(all))
	for _, c := range r.conflicts {
		copy(rest, all)
		for _, o := range c.others {
			rest.remove(o.state)
			if o.id == "" {
				continue
			}
			n, err := read(o.id)
			if err != nil {
				return nil, err
			}
			n.in.add(o.state)
		}
		if c.first == "" {
			continue
		}
		n, err := read(c.first)
		if err != nil {
			return nil, err
		}
		n.in.union(rest)
	}
	return set, nil
}

// walk goes down the auth chains of the conflicted state set and finds of each event in which states' full auth chains it is, as
// far as conflicted state leads to it. Greater heights come first: so whatever cites an event has been passed before
// it, and what is known of it then is all.
//
// It ends when it has passed the conflicted state set, and all that is left is in the chain of every state; so is all below
// that. Of the full conflicted set nothing lies deeper, and no path between two of it.
func (r *resolver) walk(set []*node) error {
	all := allStates(len(r.states))
	waiting := len(set) // how many of queue must be passed
	var queue highest
	for _, n := range set {
		n.queued = true
		queue.push(n)
	}
	reached := make(stateSet, len(all))
	for waiting > 0 {
		n := queue.pop()
		r.walked = append(r.walked, n)
		if n.conflicted || !n.shared {
			waiting--
		}
		if err := r.graph.link(n); err != nil {
			return err
		}
		copy(reached, n.in)
		reached.union(n.chain)
		for _, a := range n.auth {
			if !a.queued {
				a.queued = true
				queue.push(a)
				waiting++
			}
			if a.shared {
				continue
			}
			a.chain.union(reached)
			if a.shared = slices.Equal(a.chain, all); a.shared && !a.conflicted {
				waiting--
			}
		}
	}
	return nil
}

// highest is a heap of nodes, the one of the greatest height on top.
type highest []*node

func (q *highest) push(n *node) {
	h := append(*q, n)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up].Height >= n.Height {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = n
	*q = h
}

func (q *highest) pop() *node {
	h := *q
	top, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	*q = h
	if len(h) == 0 {
		return top
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if down+1 < len(h) && h[down+1].Height > h[down].Height {
			down++
		}
		if last.Height >= h[down].Height {
			break
		}
		h[i] = h[down]
		i = down
	}
	h[i] = last
	return top
}

// addSubgraph adds the conflicted state subgraph (version 2.1): the events on the paths from one conflicted event to
// another. A path from a conflicted event leads to all of walked; those from which one leads to another are found upwards.
func (r *resolver) addSubgraph() {
	for _, n := range slices.Backward(r.walked) {
		n.leads = slices.ContainsFunc(n.auth, func(a *node) bool { return a.conflicted || a.leads })
		if n.leads && !n.full {
			n.full = true
			r.full = append(r.full, n)
		}
	}
	for _, n := range r.walked {
		n.leads = false
	}
}

// addAuthDifference adds the events that are in some full auth chain but not in all.
func (r *resolver) addAuthDifference() error {
	var candidates []*node
	for _, n := range r.walked {
		if !n.shared && !n.full {
			n.candidate = true
			candidates = append(candidates, n)
		}
	}
	if err := r.dropShared(candidates); err != nil {
		return err
	}
	for _, n := range candidates {
		if n.candidate {
			n.full = true
			r.full = append(r.full, n)
		}
	}
	return nil
}
