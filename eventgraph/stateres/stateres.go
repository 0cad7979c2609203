// Package stateres resolves the state of forked rooms: versions 2 (room versions 2 to 11) and 2.1 (12).
//
// The algorithm is that of the section "State resolution" on the pages of room versions 2 and 12; steps in comments
// are those of its subsection "Algorithm". The files follow it: conflict.go and shared.go find the full conflicted set,
// order.go sorts, iterate.go applies.
//
// What is done is in proportion to how far the states differ, not to the room; heights in the auth graph (Held) see to that, for
// what is lower than an event never leads to it:
//
//   - The conflicted state set is a trie diff.
//   - Auth chains are walked once, from the conflicted events alone and from above, until all that is left is in the chains of every
//     state and no conflicted event is below. What unconflicted state leads to is in every full auth chain, so it need not be
//     walked to find the auth difference. The conflicted state subgraph, the set X and its order are then found in what was walked.
//   - Whether unconflicted state leads to an event is asked only of those that would otherwise be in the auth difference, and
//     upwards: of the events that cite it, and those that cite them, until one is in that state. Most have few.
//   - The mainline is followed down as far as the lowest power levels that an event to be sorted rests on.
//
// Bounds, whoever made the events. With d differences between the first state and the others; c conflicted events, at most 2d; w
// events walked, those of the auth chains of the c that are higher than the lowest at which the walk ends; and u events that are asked
// about for the auth difference: at most c + 10w + u and the mainline's events are read, and 2d + u paths of the trie. The time is in
// proportion to that (w takes a logarithm for its order, and s/64 for s states) and to the checks of the full conflicted set, at most
// c + w. No step is quadratic. What is old makes w large: it is the chain above what is in conflict, 1,000 events for 500 changes of
// power levels. Commonly u is a few; it is at most 2,048 + w, unless somebody has made more events than that on top of one that only
// some states rest on, and none of them is in the unconflicted state. Then that state is read instead, once, and the auth chains of
// its events, as far as they are higher than the lowest event that is asked about.
//
// By the spec's definition an event is not in its own auth chain. So an event that is in all states, but that only some
// states' events cite, is in the auth difference, though not in conflict.
//
// Two readings of the text are ours. "The DAG formed by auth events" that the reverse topological power ordering rests on has the
// links between events of the set to be sorted, as servers that are widely used read it too, and not ways through an event that is
// in no conflict. (Version 2.1 has such events in the set, so there it makes no difference.) And a room has one create event: whoever
// receives events refuses a second.
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
	// CitedBy calls f for events that name id among their auth_events, in any order and perhaps twice, until f says that it
	// wants no more. All that it gives are held, and none is missing that is in one of the states or in an auth chain of theirs. Other
	// methods are called within f, but not CitedBy.
	CitedBy(id eventgraph.EventID, f func(by eventgraph.EventID) (more bool)) error
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
	events EventReader
	graph  graph
	citers int // how many citing events dropShared looks at, and one more for each of walked

	base       *eventgraph.Trie // the first state; without the tuples of conflicted it is the unconflicted state map
	conflicts  []conflict
	conflicted map[eventgraph.StateTuple]int   // place in conflicts
	walked     []*node                         // the part of the auth graph that matters, by falling height
	full       []*node                         // the full conflicted set
	resolved   map[eventgraph.StateTuple]*node // what the iterative auth checks have put over the state they started from
	under      map[eventgraph.StateTuple]*node // what was looked up in the unconflicted state map, nil for nothing
	levels     map[powerKey]power              // of senders, by their auth events
	room       eventgraph.RoomID               // from room version 12: whose create event was asked for last
	create     *node                           // that create event
}

// newResolver takes distinct states, sorted, and a supported version.
func newResolver(v eventgraph.RoomVersion, states []eventgraph.Hash, nodes eventgraph.NodeReader, events EventReader) *resolver {
	traits, _ := v.Traits()
	return &resolver{
		traits:     traits,
		states:     states,
		events:     events,
		citers:     usualCiters,
		base:       eventgraph.OpenTrie(nodes, states[0]),
		conflicted: make(map[eventgraph.StateTuple]int),
		resolved:   make(map[eventgraph.StateTuple]*node),
		under:      make(map[eventgraph.StateTuple]*node),
		levels:     make(map[powerKey]power),
	}
}

// resolve runs steps 1 to 4.
func (r *resolver) resolve() error {
	if err := r.findConflicts(); err != nil {
		return err
	}

	// Step 1.
	powerful, err := r.byPower(r.powerEvents())
	if err != nil {
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
	for _, c := range r.conflicts {
		if r.resolved[c.tuple] == nil {
			if err := r.base.Delete(c.tuple); err != nil {
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
