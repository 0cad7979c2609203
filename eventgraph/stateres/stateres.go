// Package stateres resolves the state of forked rooms: versions 2 (room versions 2 to 11) and 2.1 (12).
//
// The algorithm is that of the section "State resolution" on the pages of room versions 2 and 12; steps in comments
// are those of its subsection "Algorithm". The files follow it: conflict.go finds the full conflicted set,
// order.go sorts, iterate.go applies.
//
// Three things keep it from reading the whole room. The conflicted state set is a trie diff. Auth chains are walked
// from the conflicted events alone, since whatever is reached from unconflicted state is in every full auth chain and
// so in no auth difference. And whether an event is reached from unconflicted state is only asked for the few that would
// otherwise be in the auth difference; usually there is none.
//
// By the spec's definition an event is not in its own auth chain. So an event that is in all states, but that only some
// states' events cite, is in the auth difference, though not in conflict.
//
// Auth chains are walked with a stack, never by recursion: a chain is as long as a room is old.
package stateres

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// EventReader reads an event, held in whatever verdict; the events of state and of auth chains are always
// held, and in room version 12 the create event. An error ends Resolve. Within one Resolve no event of the conflict is
// read twice.
type EventReader interface {
	Event(id eventgraph.EventID) (Held, error)
}

// Held is an event with what whoever holds it knows of it.
type Held struct {
	*eventgraph.Event
	// Rejected: refused by the auth rules when it was received. The iterative auth checks do not fall back on such an auth
	// event.
	Rejected bool
	// Height is the length of the longest path of auth_events that leads from the event to one without any; so it is greater
	// than that of each auth event. It is no claim of a sender: the holder counts it when it takes the event in.
	Height uint32
}

// Resolve returns the resolution of the states (roots, at least one), committed into new trie nodes. With one distinct
// root it returns that at once. Same set of roots, same result, in whatever order. Errors come from the readers alone.
func Resolve(v eventgraph.RoomVersion, states []eventgraph.Hash, nodes eventgraph.NodeReader, events EventReader) (eventgraph.Hash, map[eventgraph.Hash][]byte, error) {
	if len(states) == 0 {
		return eventgraph.Hash{}, nil, errors.New("resolving no states")
	}
	if _, ok := v.Traits(); !ok {
		return eventgraph.Hash{}, nil, fmt.Errorf("resolving states of unsupported room version %q", v)
	}
	states = slices.Clone(states)
	slices.SortFunc(states, func(a, b eventgraph.Hash) int { return bytes.Compare(a[:], b[:]) })
	states = slices.Compact(states)
	if len(states) == 1 {
		return states[0], nil, nil
	}

	r := newResolver(v, states, nodes, events)
	if err := r.resolve(); err != nil {
		return eventgraph.Hash{}, nil, err
	}
	return r.result()
}

// resolver is one resolution.
type resolver struct {
	traits eventgraph.Traits
	states []eventgraph.Hash // distinct, sorted
	nodes  eventgraph.NodeReader
	events EventReader
	known  map[eventgraph.EventID]*node

	base       *eventgraph.Trie                               // the first state; without the tuples of conflicted it is the unconflicted state map
	conflicted map[eventgraph.StateTuple][]eventgraph.EventID // what each state has there, "" for nothing
	full       []*node                                        // the full conflicted set
	resolved   map[eventgraph.StateTuple]*node                // what the iterative auth checks have put over the state they started from
	levels     map[powerKey]power                             // of senders, by their auth events
}

// newResolver takes distinct states, sorted, and a supported version.
func newResolver(v eventgraph.RoomVersion, states []eventgraph.Hash, nodes eventgraph.NodeReader, events EventReader) *resolver {
	traits, _ := v.Traits()
	return &resolver{
		traits:   traits,
		states:   states,
		nodes:    nodes,
		events:   events,
		known:    make(map[eventgraph.EventID]*node),
		base:     eventgraph.OpenTrie(nodes, states[0]),
		resolved: make(map[eventgraph.StateTuple]*node),
		levels:   make(map[powerKey]power),
	}
}

// node is an event of the auth graph.
type node struct {
	Held
	auth   []*node // filled in by resolver.auth
	linked bool

	chains     int  // how many of the states' full auth chains have it, as far as conflicted state leads to it
	walk       int  // the last walk that came here
	conflicted bool // in the conflicted state set
	full       bool // in the full conflicted set
	ordered    bool // in the set X of step 1
	waits      int  // while sorting: how many auth events must come first
}

// resolve runs steps 1 to 4.
func (r *resolver) resolve() error {
	if err := r.findConflicts(); err != nil {
		return err
	}

	// Step 1.
	powerful, err := r.powerEvents()
	if err != nil {
		return err
	}
	if powerful, err = r.byPower(powerful); err != nil {
		return err
	}
	// Step 2.
	if err := r.apply(powerful); err != nil {
		return err
	}
	// Step 3.
	var rest []*node
	for _, n := range r.full {
		if !n.ordered {
			rest = append(rest, n)
		}
	}
	if rest, err = r.byMainline(rest); err != nil {
		return err
	}
	// Step 4.
	return r.apply(rest)
}

// result is step 5: the unconflicted state map, and over it what was resolved for other tuples.
func (r *resolver) result() (eventgraph.Hash, map[eventgraph.Hash][]byte, error) {
	for tuple := range r.conflicted {
		if r.resolved[tuple] == nil {
			if err := r.base.Delete(tuple); err != nil {
				return eventgraph.Hash{}, nil, err
			}
		}
	}
	for tuple, n := range r.resolved {
		if _, ok := r.conflicted[tuple]; !ok {
			if _, ok, err := r.base.Get(tuple); err != nil {
				return eventgraph.Hash{}, nil, err
			} else if ok {
				continue
			}
		}
		if err := r.base.Set(tuple, n.ID(), n.Height); err != nil {
			return eventgraph.Hash{}, nil, err
		}
	}
	root, made := r.base.Commit()
	return root, made, nil
}

// node reads an event once.
func (r *resolver) node(id eventgraph.EventID) (*node, error) {
	if n := r.known[id]; n != nil {
		return n, nil
	}
	held, err := r.events.Event(id)
	if err != nil {
		return nil, fmt.Errorf("resolving state: %w", err)
	}
	n := &node{Held: held}
	r.known[id] = n
	return n, nil
}

// auth reads the auth events of an event.
func (r *resolver) auth(n *node) ([]*node, error) {
	if n.linked {
		return n.auth, nil
	}
	ids := n.AuthEvents()
	auth := make([]*node, 0, len(ids))
	for _, id := range ids {
		a, err := r.node(id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(auth, a) {
			auth = append(auth, a)
		}
	}
	n.auth, n.linked = auth, true
	return auth, nil
}

// authEvent is the auth event of n at a tuple, nil if it lists none.
func (r *resolver) authEvent(n *node, t eventgraph.StateTuple) (*node, error) {
	auth, err := r.auth(n)
	if err != nil {
		return nil, err
	}
	for _, a := range auth {
		if tuple, ok := a.Tuple(); ok && tuple == t {
			return a, nil
		}
	}
	return nil, nil
}
