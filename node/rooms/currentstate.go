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
		then, err := run.roomBefore(on)
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

// roomBefore is the room's current state as it was here before an event came that inTimeline, zero if that was the first.
func (run *run) roomBefore(on eventgraph.EventID) (eventgraph.Hash, error) {
	s, err := run.stored(on)
	if err != nil {
		return eventgraph.Hash{}, err
	}
	last := &store.StoredEvent{}
	for _, e := range run.events { // some are in no commit yet
		if e.RoomState != (eventgraph.Hash{}) && last.Order < e.Order && e.Order < s.Order {
			last = e
		}
	}
	from := run.r.store.Position()
	if s.Position > 0 {
		from = s.Position - 1
	}
	err = run.read.RoomChanges(run.rm.id, from, 0, func(_ store.Position, id eventgraph.EventID) (bool, error) {
		e, err := run.read.Event(id)
		if err == nil && e.Order > last.Order && e.Order < s.Order {
			last = e
		}
		return false, err
	})
	return last.RoomState, err
}
