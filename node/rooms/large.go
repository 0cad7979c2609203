package rooms

import (
	"context"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What is too large for one commit. The store takes some 1.1 MB in one transaction, so a run is committed when it has maxRunBytes, but only
// between events: half of one is worse than none. What one event may add to that is bounded: it is 64 KiB itself, as are the one that it
// redacts and the extremity that it pushes out; of others it changes maxCarried; and trie nodes and memberships are written ahead
// (stageLarge). What it takes to have its place, outliers among its ancestors and auth events, are events of their own, and committed between.
//
//	inTurn: a run with others ──too large──▶ alone ──too large──▶ of AcceptAll: each event alone ──too large──▶ M_TOO_LARGE
//
// These arrows are not taken unless the estimates are wrong. Then too nobody else's work is lost, and nothing is tried for ever.

// maxCarried bounds the bytes of other events that change because one has come, and need not: two of the largest.
const maxCarried = 150_000

// carries says whether another event may change together with the one that is taken in, and counts it.
func (run *run) carries(e *store.StoredEvent) bool {
	run.carried += len(e.Raw())
	return run.carried <= maxCarried
}

// whole ends the work on one event of several: what there is is committed if it is much. So an event on outliers takes as many commits as
// these need, oldest first. Where one of them fails, or the device does, those before have what they would have if they had come alone. The event
// itself is not held yet, and nobody has been told that it is: it waits in the inbox, or is given again. Then the others are outliers
// still and get their place as they would have.
func (run *run) whole() error {
	if run.size < maxRunBytes {
		return nil
	}
	return run.commit()
}

// errTooMuch is the final answer to work that alone is too much for a commit.
var errTooMuch = refuse("M_TOO_LARGE", "what this changes is too much to be written at once")

// acceptSingly is acceptRun with each event in a turn of its own, after they were too much together. What is too much even so is refused.
func (r *Rooms) acceptSingly(ctx context.Context, events []*eventgraph.Event, verified []error, b Basis) (outcomes []Outcome, err error) {
	orders := make([]int64, len(events))
	if b.Backfill && b.Kind != Nothing {
		err := r.inTurn(ctx, events[0].RoomID(), func(run *run) (err error) {
			if run.live.exists {
				run.dirty = true // else those after might be given the same
				orders, _, err = run.reserve(events, nil)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for i := range events {
		basis := b
		if b.Kind == Claimed && i > 0 {
			basis.Kind, basis.State = Parents, nil
		}
		some, err := r.acceptRun(ctx, events[i:i+1], verified[i:i+1], basis, orders[i:i+1])
		switch {
		case errors.Is(err, errTooMuch):
			r.log.Error("event too large to be taken in", "event", events[i].ID(), "room", events[i].RoomID(), "origin", b.Origin)
			some = []Outcome{{Err: errTooMuch}}
		case err != nil:
			return nil, err
		}
		outcomes = append(outcomes, some...)
		if stops(some[0].Err, b) {
			break
		}
	}
	return outcomes, nil
}

// stops says whether AcceptAll stops at an event with such an outcome.
func stops(err error, b Basis) bool {
	var missing *MissingError
	return errors.As(err, &missing) && (b.Kind == Claimed || b.Backfill)
}
