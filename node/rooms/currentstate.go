package rooms

import (
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// byCurrentState is step 6. now is the room's current state. What the timeline rests on is not measured by it. Where only a claim ties the event to
// the timeline it is measured by what the room's state would have been, had it come with what rests on it: no later than then was it
// made. So a claim, whatever it names, excuses nobody whom the room had out before it came; and what was said by who is put out later, or
// was behind the same claim, is not hidden by that.
func (run *run) byCurrentState(in incoming, now eventgraph.Hash, j *judgement) error {
	e := in.event
	if now == j.before {
		return nil
	}
	err := auth.Check(e, run.state(now))
	var refused *auth.Refused
	if !errors.As(err, &refused) {
		return err // nil, or of the store
	}
	if covered, err := run.covered(e.ID()); covered || err != nil {
		return err
	}
	on, err := run.restsOn(e.ID())
	if err != nil {
		return err
	}
	if on != "" {
		order, err := run.firstOn(e.ID(), on)
		if err != nil {
			return err
		}
		then, err := run.roomBefore(order)
		if err != nil {
			return err
		}
		states := []eventgraph.Hash{j.before}
		if then != (eventgraph.Hash{}) {
			states = append(states, then)
		}
		if then, err = run.merge(states); err != nil {
			return err
		}
		if err := auth.Check(e, run.state(then)); !errors.As(err, &refused) {
			j.past = err == nil
			return err
		}
	}
	j.verdict, j.reason = store.SoftFailed, "by the current state: "+refused.Error()
	return nil
}

// firstOn is the lowest order among on, which rests on the event, and those that rest on it directly and are inTimeline.
func (run *run) firstOn(id, on eventgraph.EventID) (int64, error) {
	s, err := run.stored(on)
	if err != nil {
		return 0, err
	}
	first, edges := s.Order, 0
	err = run.children(id, func(child eventgraph.EventID) (bool, error) {
		s, err := run.stored(child)
		if err == nil && s.RoomID() == run.rm.id && inTimeline(s) {
			first = min(first, s.Order)
		}
		edges++
		return edges < maxBehind, err
	})
	return first, err
}

// roomBefore is the room's current state as it was here before the event of that order came, zero if that was the first.
func (run *run) roomBefore(order int64) (eventgraph.Hash, error) {
	last := &store.StoredEvent{}
	for _, e := range run.events { // some are in no commit yet
		if e.RoomState != (eventgraph.Hash{}) && last.Order < e.Order && e.Order < order {
			last = e
		}
	}
	looked := 0
	err := run.read.Timeline(run.rm.id, order-1, true, func(e *store.StoredEvent) (bool, error) {
		if looked++; e.RoomState == (eventgraph.Hash{}) { // history, and what is hidden
			return looked < maxBehind, nil
		}
		if e.Order > last.Order {
			last = e
		}
		return false, nil
	})
	return last.RoomState, err
}
