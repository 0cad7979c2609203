package stateres

import (
	"cmp"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// findConflicts fills in conflicted and full.
func (r *resolver) findConflicts() error {
	if err := r.diff(); err != nil {
		return err
	}
	set, err := r.conflictedStateSet()
	if err != nil {
		return err
	}
	reached, err := r.walkChains()
	if err != nil {
		return err
	}

	r.full = set
	for _, n := range set {
		n.full = true
	}
	if r.traits.StateResolutionV21 {
		r.addSubgraph(set, reached)
	}
	if err := r.addAuthDifference(reached); err != nil {
		return err
	}
	slices.SortFunc(r.full, byID)
	return nil
}

func byID(a, b *node) int { return cmp.Compare(a.ID(), b.ID()) }

// diff compares every state with the first. A tuple on which none of them differs is unconflicted.
func (r *resolver) diff() error {
	r.conflicted = make(map[eventgraph.StateTuple][]eventgraph.EventID)
	for i := 1; i < len(r.states); i++ {
		err := eventgraph.Diff(r.nodes, r.states[0], r.states[i], func(d eventgraph.Difference) error {
			row := r.conflicted[d.Tuple]
			if row == nil {
				row = slices.Repeat([]eventgraph.EventID{d.A}, len(r.states))
				r.conflicted[d.Tuple] = row
			}
			row[i] = d.B
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// conflictedStateSet reads the events of conflicted.
func (r *resolver) conflictedStateSet() ([]*node, error) {
	var set []*node
	for _, row := range r.conflicted {
		for _, id := range row {
			if id == "" {
				continue
			}
			n, err := r.node(id)
			if err != nil {
				return nil, err
			}
			if !n.conflicted {
				n.conflicted = true
				set = append(set, n)
			}
		}
	}
	slices.SortFunc(set, byID)
	return set, nil
}

// walkChains counts for every event in how many states' full auth chains it is, as far as it is reached from conflicted
// state, and returns all that are in any.
func (r *resolver) walkChains() ([]*node, error) {
	var reached []*node
	for i := range r.states {
		walk := i + 1 // 0: never walked
		var stack []*node
		for _, row := range r.conflicted {
			if row[i] != "" {
				stack = append(stack, r.known[row[i]])
			}
		}
		for len(stack) > 0 {
			n := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			auth, err := r.auth(n)
			if err != nil {
				return nil, err
			}
			for _, a := range auth {
				if a.walk == walk {
					continue
				}
				a.walk = walk
				if a.chains++; a.chains == 1 {
					reached = append(reached, a)
				}
				stack = append(stack, a)
			}
		}
	}
	return reached, nil
}

// addSubgraph adds the conflicted state subgraph (version 2.1): the events on the paths from one conflicted event to
// another. All of reached are ends of paths from a conflicted event; those from which a path leads to another are found
// backwards.
func (r *resolver) addSubgraph(set, reached []*node) {
	citedBy := make(map[*node][]*node)
	for _, n := range reached {
		for _, a := range n.auth {
			citedBy[a] = append(citedBy[a], n)
		}
	}
	stack := slices.Clone(set)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range citedBy[n] {
			if !c.full {
				c.full = true
				r.full = append(r.full, c)
				stack = append(stack, c)
			}
		}
	}
}

// addAuthDifference adds the events that are in some full auth chain but not in all.
func (r *resolver) addAuthDifference(reached []*node) error {
	candidates := make(map[eventgraph.EventID]*node)
	for _, n := range reached {
		if n.chains < len(r.states) && !n.full {
			candidates[n.ID()] = n
		}
	}
	if err := r.dropShared(candidates); err != nil {
		return err
	}
	for _, n := range candidates {
		n.full = true
		r.full = append(r.full, n)
	}
	return nil
}

// dropShared takes out of candidates what unconflicted state leads to, for that is in every full auth chain. Events read
// on the way are not kept: a large room has many.
func (r *resolver) dropShared(candidates map[eventgraph.EventID]*node) error {
	if len(candidates) == 0 {
		return nil
	}
	errDone := errors.New("no candidate left")
	seen := make(map[eventgraph.EventID]struct{})
	var stack []eventgraph.EventID

	err := r.base.Walk(func(tuple eventgraph.StateTuple, id eventgraph.EventID) error {
		if _, ok := r.conflicted[tuple]; ok {
			return nil
		}
		for stack = append(stack, id); len(stack) > 0; {
			id := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			auth, err := r.authIDs(id)
			if err != nil {
				return err
			}
			for _, a := range auth {
				if _, ok := seen[a]; ok {
					continue
				}
				seen[a] = struct{}{}
				if delete(candidates, a); len(candidates) == 0 {
					return errDone
				}
				// What an event in all the chains cites is in all the chains, so no candidate.
				if n := r.known[a]; n == nil || n.chains < len(r.states) {
					stack = append(stack, a)
				}
			}
		}
		return nil
	})
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

func (r *resolver) authIDs(id eventgraph.EventID) ([]eventgraph.EventID, error) {
	if n := r.known[id]; n != nil {
		return n.AuthEvents(), nil
	}
	e, err := r.events.Event(id)
	if err != nil {
		return nil, err
	}
	return e.AuthEvents(), nil
}
