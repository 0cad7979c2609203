package stateres

import (
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// apply is the iterative auth checks algorithm, going on from what is resolved so far.
func (r *resolver) apply(list []*node) error {
	for _, n := range list {
		tuple, ok := n.Tuple()
		if !ok {
			continue // a chain may cite what is no state event; it authorizes nothing
		}
		err := auth.Check(n.Event, stateFor{r, n})
		var refused *auth.Refused
		switch {
		case err == nil:
			r.resolved[tuple] = n
		case !errors.As(err, &refused):
			return err
		}
	}
	return nil
}

// partial is the event at a tuple of the partially resolved state. Under it lies the unconflicted state map, or from
// version 2.1 nothing.
func (r *resolver) partial(t eventgraph.StateTuple) (*node, error) {
	if n := r.resolved[t]; n != nil {
		return n, nil
	}
	if r.traits.StateResolutionV21 {
		return nil, nil
	}
	if n, ok := r.under[t]; ok {
		return n, nil
	}
	var n *node
	if _, ok := r.conflicted[t]; !ok {
		id, ok, err := r.base.Get(t)
		if err != nil {
			return nil, err
		}
		if ok {
			if n, err = r.graph.node(id); err != nil {
				return nil, err
			}
		}
	}
	r.under[t] = n
	return n, nil
}

// stateFor is the state that an event is checked against: the partially resolved state, and where that has nothing,
// the event's auth events that are not rejected.
type stateFor struct {
	r *resolver
	n *node
}

func (s stateFor) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	n, err := s.r.partial(t)
	if n == nil && err == nil {
		n, err = s.r.graph.authEvent(s.n, t)
		if n != nil && n.Rejected {
			n = nil
		}
	}
	if n == nil && err == nil && t == tupleCreate && s.r.traits.RoomIDFromCreate {
		n, err = s.r.createOf(s.n)
	}
	if n == nil || err != nil {
		return nil, err
	}
	return n.Event, nil
}
