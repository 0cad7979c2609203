package rooms

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
	"github.com/plexus-p2p/plexus/store"
)

// maxPlaced bounds how many outliers among an event's ancestors get their place on the way to it.
const maxPlaced = 1000

// maxPlacing bounds how far placeAuthEvents goes from auth event to auth event. Honest ones have their place, or one or two wait
// for it.
const maxPlacing = 20

// stateBefore finds the state before an event: by its parents, or where they are not all held (then gap is true) as claimed. A claim is for what we
// cannot know, and must not make forgotten what we do: where it sets back the state after a parent that is held (setsBack), both are
// resolved. Else it is taken as it is, and so is the join's by which we enter the room: a true one has been resolved from the states after all parents, and
// resolving it with some of these once more may have another outcome, so that this server alone would have another state from here on.
func (run *run) stateBefore(in incoming) (root eventgraph.Hash, gap bool, err error) {
	e, b := in.event, in.basis
	if b.Kind == Claimed {
		if root, err = run.claimed(b.State); err != nil || in.join {
			return root, true, err
		}
		held, _, err := run.afterParents(e)
		if err != nil {
			return root, true, err
		}
		states := []eventgraph.Hash{root}
		for _, after := range held {
			back, err := run.setsBack(after, tip{after: root})
			if err != nil {
				return root, true, err
			}
			if back {
				states = append(states, after)
			}
		}
		root, err = run.merge(states)
		return root, true, err
	}
	if err := run.placeParents(e, b); err != nil {
		return root, false, err
	}
	states, _, err := run.afterParents(e)
	if err == nil {
		root, err = run.merge(states)
	}
	return root, false, err
}

// afterParents are the states after those parents of e that have their place, and whether all have.
func (run *run) afterParents(e *eventgraph.Event) (states []eventgraph.Hash, all bool, err error) {
	all = true
	for _, id := range e.PrevEvents() {
		s, err := run.stored(id)
		switch {
		case errors.Is(err, store.ErrNotFound):
			all = false
		case err != nil:
			return nil, false, err
		case placed(s):
			states = append(states, s.StateAfter)
		default:
			all = false
		}
	}
	return states, all, nil
}

// placeParents gives outliers among e's ancestors their place, oldest first, as if they came now. It answers *MissingError with
// the parents that have no place and cannot get one, and then has placed none. Backfill asks for the state before
// instead: in its pages outliers come in their turn.
func (run *run) placeParents(e *eventgraph.Event, b Basis) error {
	type visit struct {
		event *eventgraph.Event
		next  int // parent to look at
	}
	var order []*eventgraph.Event // without a place yet, parents first
	lacking, tooMany := false, false
	seen := map[eventgraph.EventID]bool{}
	stack := []visit{{event: e}}
	for len(stack) > 0 && !lacking {
		v := &stack[len(stack)-1]
		if v.next == len(v.event.PrevEvents()) {
			if v.event != e {
				order = append(order, v.event)
			}
			stack = stack[:len(stack)-1]
			continue
		}
		id := v.event.PrevEvents()[v.next]
		v.next++
		if seen[id] {
			continue
		}
		seen[id] = true
		s, err := run.stored(id)
		switch {
		case errors.Is(err, store.ErrNotFound):
			lacking = true
		case err != nil:
			return err
		case s.RoomID() != run.rm.id:
			return run.foreignParent(id)
		case placed(s):
		case b.Backfill && s.Verdict == store.Outlier:
			lacking = true
		case len(seen) > maxPlaced:
			lacking, tooMany = true, true
		default:
			stack = append(stack, visit{event: s.Event})
		}
	}
	if lacking {
		missing, err := run.withoutPlace(e)
		if err != nil {
			return err
		}
		return &MissingError{Events: missing, StateBefore: b.Backfill || tooMany}
	}
	past := false
	if len(order) > 0 && !b.Backfill {
		var err error
		if past, err = run.covered(e.ID()); err != nil {
			return err
		}
	}
	orders := make([]int64, len(order))
	if past {
		var err error
		if orders, _, err = run.reserve(order, e); err != nil {
			return err
		}
	}
	for i, outlier := range order {
		in := incoming{event: outlier, basis: Basis{Kind: Parents, Backfill: b.Backfill}, past: past, history: past, order: orders[i]}
		if err := run.accept(in); err != nil {
			return err
		}
		if err := run.whole(); err != nil {
			return err
		}
	}
	return nil
}

// placeAuthEvents gives outliers among e's auth events their place, where all that they build on has its place. Step 4 asks whether they
// were rejected, and of an outlier only its own auth events have been asked: who took such an event in by its parents may have
// rejected it by the state before it, and then rejects e. What cannot have its place yet stays an outlier.
func (run *run) placeAuthEvents(e *eventgraph.Event) error {
	if run.placing == maxPlacing {
		return nil
	}
	run.placing++
	defer func() { run.placing-- }()
	for _, id := range e.AuthEvents() {
		s, err := run.stored(id)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err != nil || s.Verdict != store.Outlier || len(s.PrevEvents()) == 0 || s.RoomID() != run.rm.id {
			continue
		}
		lacking, err := run.withoutPlace(s.Event)
		if err != nil {
			return err
		}
		if len(lacking) > 0 {
			continue // as all that a join brought: what it builds on is the past
		}
		if err := run.accept(incoming{event: s.Event, basis: Basis{Kind: Parents}}); err != nil && !isOutcome(err) {
			return err
		}
		if err := run.whole(); err != nil {
			return err
		}
	}
	return nil
}

func (run *run) foreignParent(id eventgraph.EventID) *Refusal {
	return refuse("M_BAD_JSON", "prev event %s is not of room %s", id, run.rm.id)
}

// ownParents refuses an event of whose parents one is held and of another room.
func (run *run) ownParents(e *eventgraph.Event) error {
	for _, id := range e.PrevEvents() {
		s, err := run.stored(id)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return err
		case s.RoomID() != run.rm.id:
			return run.foreignParent(id)
		}
	}
	return nil
}

// withoutPlace lists the parents of e that are not held, or only as outliers.
func (run *run) withoutPlace(e *eventgraph.Event) ([]eventgraph.EventID, error) {
	var ids []eventgraph.EventID
	for _, id := range e.PrevEvents() {
		s, err := run.stored(id)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err != nil || !placed(s) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// claimed builds the state that a room server claims. Rejected events in it do not count.
func (run *run) claimed(ids []eventgraph.EventID) (eventgraph.Hash, error) {
	trie := eventgraph.OpenTrie(run, eventgraph.Hash{})
	var missing []eventgraph.EventID
	for _, id := range ids {
		s, err := run.stored(id)
		if errors.Is(err, store.ErrNotFound) {
			missing = append(missing, id)
			continue
		}
		if err != nil {
			return eventgraph.Hash{}, err
		}
		tuple, ok := s.Tuple()
		if !ok || s.RoomID() != run.rm.id {
			return eventgraph.Hash{}, refuse("M_BAD_JSON", "%s in the claimed state is no state event of the room", id)
		}
		if s.Verdict == store.Rejected {
			continue
		}
		if other, taken, err := trie.Get(tuple); err != nil {
			return eventgraph.Hash{}, err
		} else if taken && other != id {
			return eventgraph.Hash{}, refuse("M_BAD_JSON", "%s and %s in the claimed state have the same place", id, other)
		}
		if err := trie.Set(tuple, id, s.Height); err != nil {
			return eventgraph.Hash{}, err
		}
	}
	if len(missing) > 0 {
		return eventgraph.Hash{}, &MissingError{Events: missing}
	}
	root, nodes := trie.Commit()
	run.putNodes(nodes)
	return root, nil
}

// keepNodes returns a function that takes back the trie nodes put since, so that claims that come to nothing leave nothing.
func (run *run) keepNodes(wanted bool) (takeBack func()) {
	if !wanted {
		return func() {}
	}
	nodes, fresh := maps.Clone(run.nodes), maps.Clone(run.fresh)
	return func() { run.nodes, run.fresh = nodes, fresh } // else merge would take them for written
}

// with is the state root with one tuple set.
func (run *run) with(root eventgraph.Hash, t eventgraph.StateTuple, id eventgraph.EventID, height uint32) (eventgraph.Hash, error) {
	trie := eventgraph.OpenTrie(run, root)
	if err := trie.Set(t, id, height); err != nil {
		return root, err
	}
	after, nodes := trie.Commit()
	run.putNodes(nodes)
	return after, nil
}

// tipStates are the states after the forward extremities.
func (run *run) tipStates() []eventgraph.Hash {
	states := make([]eventgraph.Hash, 0, len(run.live.tips)+1)
	for _, t := range run.live.tips {
		states = append(states, t.after)
	}
	return states
}

// resolution is the outcome of a state resolution, with the trie nodes it made: they may have been collected since.
type resolution struct {
	root  eventgraph.Hash
	nodes map[eventgraph.Hash][]byte
}

// maxResolutions bounds what a room remembers of its last resolutions: while a fork lasts each event asks for the same.
const maxResolutions = 8

// merge resolves states into one; no states are the empty state.
func (run *run) merge(states []eventgraph.Hash) (eventgraph.Hash, error) {
	slices.SortFunc(states, func(a, b eventgraph.Hash) int { return bytes.Compare(a[:], b[:]) })
	states = slices.Compact(states)
	switch len(states) {
	case 0:
		return eventgraph.Hash{}, nil
	case 1:
		return states[0], nil
	}
	var key []byte
	for _, s := range states {
		key = append(key, s[:]...)
	}
	known, ok := run.rm.resolved[string(key)]
	if !ok {
		root, nodes, err := stateres.Resolve(run.live.Version, states, run, run)
		if err != nil {
			return eventgraph.Hash{}, fmt.Errorf("resolve the state of %s: %w", run.rm.id, err)
		}
		known = resolution{root, nodes}
		if len(run.rm.resolved) >= maxResolutions {
			run.rm.resolved = nil
		}
		if run.rm.resolved == nil {
			run.rm.resolved = map[string]resolution{}
		}
		run.rm.resolved[string(key)] = known
	}
	if _, here := run.nodes[known.root]; !here && known.root != run.live.State {
		run.putNodes(known.nodes)
	}
	return known.root, nil
}

// memberChanges lists the memberships on which two states differ.
func (run *run) memberChanges(was, now eventgraph.Hash) ([]memberChange, error) {
	if was == now {
		return nil, nil
	}
	var changes []memberChange
	err := eventgraph.Diff(run, was, now, func(d eventgraph.Difference) error {
		if d.Tuple.Type != "m.room.member" {
			return nil
		}
		m := memberChange{user: eventgraph.UserID(d.Tuple.Key)}
		if d.B != "" {
			e, err := run.Event(d.B)
			if err != nil {
				return err
			}
			m.event, m.membership = d.B, e.Membership()
		}
		changes = append(changes, m)
		return nil
	})
	return changes, err
}
