package stateres

import (
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// usualCiters is how many citing events dropShared looks at before it looks at the unconflicted state instead, and one more for each
// event walked. It costs little beside that state in a room where it matters.
const usualCiters = 2048

// dropShared lets go of the candidates that unconflicted state leads to, for these are in every full auth chain. Whether it
// does is asked upwards, of the events that cite a candidate, those that cite them, and so on. Most have few, or one that is in the
// state. Where there are too many, whoever made them, it is found downwards from the unconflicted state.
func (r *resolver) dropShared(candidates []*node) error {
	left := len(candidates)
	if left == 0 {
		return nil
	}
	up := ascent{r: r, left: r.citers + len(r.walked)}
	var rest []*node // not found out
	for _, n := range r.walked {
		if n.candidate {
			left--
			if !n.led && up.left > 0 {
				if err := up.find(n); err != nil {
					return err
				}
			}
			switch {
			case n.led:
				n.candidate = false
			case !n.barren:
				rest = append(rest, n)
			}
		}
		if left == 0 {
			break
		}
		if n.led {
			for _, a := range n.auth {
				a.led = true
			}
		}
	}
	return r.dropBelow(rest)
}

// ascent goes up the auth graph. It leaves what it has found in nodes: led or barren, in whatever part of the graph.
type ascent struct {
	r    *resolver
	left int // how many citing events may still be looked at
	path []ascentStep
}

// ascentStep is an event on the way up, and the events that cite it which it remains to go to.
type ascentStep struct {
	n      *node
	citers []*node
}

// find finds whether unconflicted state leads to n: then it is led, else barren. If it may look at no more, n is neither.
func (u *ascent) find(n *node) error {
	u.path = u.path[:0]
	for next := n; ; {
		found, err := u.enter(next)
		if err != nil {
			return err
		}
		if found { // to next, so to all that it has come from
			for _, s := range u.path {
				s.n.led = true
			}
			return nil
		}
		if u.left <= 0 {
			return nil
		}
		if next = u.onward(); next == nil {
			return nil
		}
	}
}

// enter takes a step to n and lists the events that cite it, up to one that is in unconflicted state or to which that leads.
func (u *ascent) enter(n *node) (found bool, err error) {
	step := ascentStep{n: n}
	u.left--
	listed := u.r.events.CitedBy(n.ID(), func(id eventgraph.EventID) bool {
		u.left--
		var by *node
		if by, err = u.r.graph.node(id); err != nil {
			return false
		}
		if found = by.led; !found {
			found, err = u.r.isUnconflicted(by)
		}
		if !by.barren {
			step.citers = append(step.citers, by)
		}
		return err == nil && !found && u.left > 0
	})
	if err == nil && listed != nil {
		err = fmt.Errorf("resolving state: what cites %s: %w", n.ID(), listed)
	}
	u.path = append(u.path, step)
	return found, err
}

// onward is the event to go to next, nil if there is none. Events whose citing events have all been gone to are left for good.
func (u *ascent) onward() *node {
	for len(u.path) > 0 {
		step := &u.path[len(u.path)-1]
		for len(step.citers) > 0 {
			n := step.citers[0]
			step.citers = step.citers[1:]
			if !n.barren {
				return n
			}
		}
		step.n.barren = true
		u.path = u.path[:len(u.path)-1]
	}
	return nil
}

// isUnconflicted says whether the event is in the unconflicted state map.
func (r *resolver) isUnconflicted(n *node) (bool, error) {
	tuple, ok := n.Tuple()
	if !ok {
		return false, nil
	}
	if _, ok := r.conflicted[tuple]; ok {
		return false, nil
	}
	id, _, err := r.base.Get(tuple)
	return id == n.ID(), err
}

// dropBelow lets go of the candidates, given by falling height, that are in auth chains of unconflicted state. Only what is
// higher than the lowest can lead to one. Events read on the way are not kept: a large room has many.
func (r *resolver) dropBelow(candidates []*node) error {
	left := len(candidates)
	if left == 0 {
		return nil
	}
	lowest := candidates[left-1].Height
	errDone := errors.New("no candidate left")
	passed := make(map[eventgraph.EventID]struct{}) // of those not in known
	var stack []eventgraph.EventID

	// pass looks at the auth events of an event.
	pass := func(id eventgraph.EventID) error {
		n := r.graph.known[id]
		var held Held
		switch {
		case n == nil:
			if _, ok := passed[id]; ok {
				return nil
			}
			passed[id] = struct{}{}
			var err error
			if held, err = r.events.Event(id); err != nil {
				return fmt.Errorf("resolving state: %w", err)
			}
		case n.passed || n.shared: // what an event in all the chains cites is in all the chains, so no candidate
			return nil
		default:
			n.passed = true
			held = n.Held
		}
		if held.Height <= lowest {
			return nil
		}
		for _, a := range held.AuthEvents() {
			if n := r.graph.known[a]; n != nil && n.candidate {
				n.candidate = false
				if left--; left == 0 {
					return errDone
				}
			}
			stack = append(stack, a)
		}
		return nil
	}
	err := r.base.WalkAbove(lowest, func(tuple eventgraph.StateTuple, id eventgraph.EventID) error {
		if _, ok := r.conflicted[tuple]; ok {
			return nil
		}
		for stack = append(stack, id); len(stack) > 0; {
			id := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if err := pass(id); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}
