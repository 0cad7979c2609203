package rooms

import (
	"errors"
	"fmt"
	"math"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// AuthChain returns the events of the auth chains of ids as they are given to others, without ids, at most limit of them (0: all), each once. Events
// that are not held are left out.
func (r *Rooms) AuthChain(ids []eventgraph.EventID, limit int) ([]*eventgraph.Event, error) {
	var chain []*eventgraph.Event
	err := r.store.View(func(read *store.Reader) error {
		seen := make(map[eventgraph.EventID]bool, len(ids))
		var todo []eventgraph.EventID
		for _, id := range ids {
			seen[id] = true
		}
		follow := func(e *eventgraph.Event) {
			for _, id := range e.AuthEvents() {
				if !seen[id] {
					seen[id] = true
					todo = append(todo, id)
				}
			}
		}
		for _, id := range ids {
			e, err := read.Event(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			follow(e.Event)
		}
		for len(todo) > 0 && (limit == 0 || len(chain) < limit) {
			id := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			e, err := read.Event(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			chain = append(chain, e.Shown())
			follow(e.Event)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("auth chain: %w", err)
	}
	return chain, nil
}

// maxNear is how many events EventNear looks at: their times follow no order that could be searched, and 10,000 take some 50 ms.
const maxNear = 10_000

// EventNear is the event closest in time to ts (ms), at or after it if forwards, else at or before it (timestamp_to_event), among the
// newest 10,000 of the timeline; store.ErrNotFound. Of several as close it is the first in the direction asked for.
func (r *Rooms) EventNear(room eventgraph.RoomID, ts int64, forwards bool) (*store.StoredEvent, error) {
	var best *store.StoredEvent
	looked := 0
	err := r.store.View(func(read *store.Reader) error {
		return read.Timeline(room, math.MaxInt64, true, func(e *store.StoredEvent) (bool, error) {
			looked++
			at := e.OriginServerTS()
			switch {
			case e.Type() == DummyEvent: // tells nobody anything
			case forwards && at >= ts && (best == nil || at <= best.OriginServerTS()):
				best = e
			case !forwards && at <= ts && (best == nil || at > best.OriginServerTS()):
				best = e
			}
			return looked < maxNear, nil
		})
	})
	if err != nil {
		return nil, err
	}
	if best == nil {
		return nil, fmt.Errorf("event near %d: %w", ts, store.ErrNotFound)
	}
	return best, nil
}

// heightOf counts the height of an event: one more than the greatest of its auth events. One that is not held leads nowhere
// as far as we know; no event that is in any state cites such.
func heightOf(e *eventgraph.Event, read func(eventgraph.EventID) (*store.StoredEvent, error)) (uint32, error) {
	height := uint32(0)
	for _, id := range e.AuthEvents() {
		a, err := read(id)
		switch {
		case err == nil:
			height = max(height, a.Height+1)
		case !errors.Is(err, store.ErrNotFound):
			return 0, fmt.Errorf("height of %s: %w", e.ID(), err)
		}
	}
	return height, nil
}
