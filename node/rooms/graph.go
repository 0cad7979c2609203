package rooms

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// AuthChain lists the events of the auth chains of ids, without ids, at most limit of them (0: all), each once, an event after its own
// auth events. Those that are not held are left out.
func (r *Rooms) AuthChain(ids []eventgraph.EventID, limit int) ([]eventgraph.EventID, error) {
	var chain []aged
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
			chain = append(chain, ageOf(e))
			follow(e.Event)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("auth chain: %w", err)
	}
	return oldestFirst(chain), nil
}

// OldestFirst sorts events that are held so that each comes after those that it rests on by its auth events, and of those that could change
// places members last: who reads a room's state in this order soon knows what room it is.
func (r *Rooms) OldestFirst(ids []eventgraph.EventID) ([]eventgraph.EventID, error) {
	events := make([]aged, 0, len(ids))
	err := r.store.View(func(read *store.Reader) error {
		for _, id := range ids {
			e, err := read.Event(id)
			if err != nil {
				return err
			}
			events = append(events, ageOf(e))
		}
		return nil
	})
	return oldestFirst(events), err
}

// aged is an event's place in an order of auth events.
type aged struct {
	id     eventgraph.EventID
	height uint32
	member bool
}

func ageOf(e *store.StoredEvent) aged { return aged{e.ID(), e.Height, e.Type() == "m.room.member"} }

func oldestFirst(events []aged) []eventgraph.EventID {
	slices.SortStableFunc(events, func(a, b aged) int {
		switch {
		case a.height != b.height:
			return cmp.Compare(a.height, b.height)
		case a.member == b.member:
			return 0
		case b.member:
			return -1
		}
		return 1
	})
	ids := make([]eventgraph.EventID, len(events))
	for i, e := range events {
		ids[i] = e.id
	}
	return ids
}

// maxNear is how many events EventNear looks at: their times follow no order that could be searched, and 10,000 take some 50 ms.
const maxNear = 10_000

// EventNear is the event closest in time to ts (ms), at or after it if forwards, else at or before it (timestamp_to_event), of those of the
// newest 10,000 of the timeline that the asker may see; store.ErrNotFound. Of several as close it is the first in the direction asked for.
func (r *Rooms) EventNear(room eventgraph.RoomID, ts int64, forwards bool, may func(*store.StoredEvent) (bool, error)) (*store.StoredEvent, error) {
	type candidate struct {
		id eventgraph.EventID
		ts int64
	}
	var near []candidate
	looked := 0
	err := r.store.View(func(read *store.Reader) error {
		return read.Timeline(room, math.MaxInt64, true, func(e *store.StoredEvent) (bool, error) {
			looked++
			at := e.OriginServerTS()
			if e.Type() != DummyEvent && (forwards && at >= ts || !forwards && at <= ts) { // a dummy tells nobody anything
				near = append(near, candidate{e.ID(), at})
			}
			return looked < maxNear, nil
		})
	})
	if err != nil {
		return nil, err
	}
	if forwards {
		slices.Reverse(near)
		slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(a.ts, b.ts) })
	} else {
		slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(b.ts, a.ts) })
	}
	for _, c := range near {
		e, err := r.stored(c.id)
		if err != nil {
			return nil, err
		}
		if ok, err := may(e); err != nil || ok {
			return e, err
		}
	}
	return nil, fmt.Errorf("event near %d: %w", ts, store.ErrNotFound)
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
