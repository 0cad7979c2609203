package rooms

import (
	"errors"
	"math"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A room's order. What happens gets the next order; what is fetched of the past gets one below all that is held. Where we come back to a room, what
// happened meanwhile lies between what we hold and the join: orders are reserved for it there. S is pastSpacing.
//
//	fetched, downwards ──▶  -3S -2S -S │ 1 2 3 … After │ fetched, downwards ──▶  Next … │ Before, the join   …  NextOrder
//
// Those of the past have room between them: what rests on one of them that is held is put between that and what rests on it (between). So the past
// may come piece by piece. What happened has no room between: what fills a gap in it is below all that is held. Orders that have been given never
// change, for clients hold tokens that name them (clientapi/tokens.go).

const (
	// pastSpacing is how far apart those are that go below all that is held: room for 2^27 events.
	pastSpacing = 1 << 36
	// stepBits says in which part of the room between two others an event gets its order: the first 2^12th, as what rests on it comes after it more
	// often than before it. So between two with pastSpacing some 70,000 can come one by one, each above the one before.
	stepBits = 12
	// maxGapLooks bounds how many neighbours are looked at to find room between them. About as many can come that rest on one and stand above it: the
	// first few take the room right above it, and each after those looks past the ones before.
	maxGapLooks = maxBehind
)

// A break has breakOrders: more than are ever fetched, and few enough for 2^18 breaks. An event that is fetched goes down by the 2^breakBits-th part of
// what is left, so that some millions fit.
const (
	breakOrders = 1 << 44
	breakBits   = 20
)

// maxBreaks bounds the breaks of a room that are known. Beyond it what belongs into the oldest is shown below all that is held.
const maxBreaks = 20

// maxReserveEdges bounds how far one reserve goes for all its events, in edges of the graph: members make many events rest on one. What is looked at
// beyond it is shown below all that is held.
const maxReserveEdges = 10 * maxBehind

// breakOff reserves orders before the join by which we come back.
func (run *run) breakOff() {
	if run.live.NextOrder == 1 {
		return // we have never been there
	}
	b := store.Break{After: run.live.NextOrder - 1, Next: run.live.NextOrder + breakOrders - 1, Before: run.live.NextOrder + breakOrders}
	run.live.NextOrder += breakOrders
	run.live.Skipped += breakOrders
	run.live.Breaks = append(slices.Clone(run.live.Breaks), b)
	if extra := len(run.live.Breaks) - maxBreaks; extra > 0 {
		run.live.Breaks = run.live.Breaks[extra:]
	}
}

// reserve keeps orders for events of the past, sorted, parents first: each in the break that it belongs into, or below all that is held. on, if
// not nil, rests on the last of them and has no place yet. None is kept, and 0 given, for what rests on others that are held and above that: it
// gets its order by place, in its turn. giveBack takes all of it back.
func (run *run) reserve(events []*eventgraph.Event, on *eventgraph.Event) (orders []int64, giveBack func(), err error) {
	under, err := run.allUnder(events)
	if err != nil {
		return nil, nil, err
	}
	return run.reserveAbove(events, on, under)
}

// reserveAbove is reserve where it is known above which orders events have to be, if any.
func (run *run) reserveAbove(events []*eventgraph.Event, on *eventgraph.Event, under map[eventgraph.EventID]int64) (orders []int64, giveBack func(), err error) {
	orders = make([]int64, len(events))
	given := map[eventgraph.EventID]int64{}
	edges := maxReserveEdges
	if on != nil && len(run.live.Breaks) > 0 {
		lowest, err := run.lowestOn(on, given, &edges)
		if err != nil {
			return nil, nil, err
		}
		for _, parent := range on.PrevEvents() {
			given[parent] = lowest
		}
	}
	taken := map[int64][]int64{} // of each break
	below := int64(0)
	for i, e := range slices.Backward(events) {
		at, lowest := -1, int64(math.MaxInt64)
		if len(run.live.Breaks) > 0 && edges > 0 {
			if lowest, err = run.lowestOn(e, given, &edges); err != nil {
				return nil, nil, err
			}
			if edges > 0 { // else it was not looked at to the end
				at = slices.IndexFunc(run.live.Breaks, func(b store.Break) bool { return b.Holds(lowest) })
			}
		}
		highest, rests := under[e.ID()]
		found := rests && (at < 0 || highest > run.live.Breaks[at].After)
		if !found && at >= 0 {
			var step int64
			if orders[i], step, found = run.nextInBreak(at); found {
				after := run.live.Breaks[at].After
				taken[after] = append(taken[after], step)
			}
		}
		if !found {
			run.live.PrevOrder -= pastSpacing
			run.live.Skipped += pastSpacing // of these take counts one off
			orders[i] = run.live.PrevOrder + 1
			below++
		}
		if orders[i] != 0 {
			lowest = orders[i]
			given[e.ID()] = lowest
		}
		for _, parent := range e.PrevEvents() {
			if was, ok := given[parent]; !ok || was > lowest {
				given[parent] = lowest // until it has its own
			}
		}
	}
	return orders, func() {
		for after, steps := range taken {
			run.returnToBreak(after, steps)
		}
		run.live.PrevOrder += below * pastSpacing
		run.live.Skipped -= below * pastSpacing
	}, nil
}

// nextInBreak takes an order of a break, if one is left; step is how far that goes down.
func (run *run) nextInBreak(at int) (order, step int64, ok bool) {
	b := run.live.Breaks[at]
	step = max(1, (b.Next-b.After)>>breakBits)
	if b.Next-step < b.After {
		return 0, 0, false
	}
	run.live.Breaks = slices.Clone(run.live.Breaks) // others may see it
	run.live.Breaks[at].Next -= step
	return b.Next - step + 1, step, true
}

// returnToBreak gives orders back to a break.
func (run *run) returnToBreak(after int64, steps []int64) {
	i := slices.IndexFunc(run.live.Breaks, func(b store.Break) bool { return b.After == after })
	if i < 0 {
		return
	}
	run.live.Breaks = slices.Clone(run.live.Breaks)
	for _, step := range steps {
		run.live.Breaks[i].Next += step
	}
}

// place gives an event of the past, for which reserve has kept no order, one above what it rests on and below what rests on it. Where both cannot
// be, or there is no room, it is below all that is held, or in the break.
func (run *run) place(in *incoming) error {
	var err error
	if in.order, err = run.between(in.event); err != nil || in.order != 0 {
		return err
	}
	return run.placeBelow(in)
}

// placeBelow gives an event of the past an order whatever it rests on.
func (run *run) placeBelow(in *incoming) error {
	orders, _, err := run.reserveAbove([]*eventgraph.Event{in.event}, nil, nil)
	if err == nil {
		in.order = orders[0]
	}
	return err
}

// between is an order that no event has, above what the event rests on and below what rests on it, and in the same part of the room's order as the
// former: soon above it, for of what rests on the event not all may have come. 0: there is none.
func (run *run) between(e *eventgraph.Event) (int64, error) {
	low, rests, err := run.highestUnder(e, true)
	if err != nil || !rests {
		return 0, err
	}
	edges := maxBehind
	high, err := run.lowestOn(e, nil, &edges)
	if err != nil {
		return 0, err
	}
	if high <= low {
		return 0, nil
	}
	at := slices.IndexFunc(run.live.Breaks, func(b store.Break) bool { return b.After < low && low < b.Before })
	if at < 0 {
		high = min(high, 0)
	} else {
		high = min(high, run.live.Breaks[at].Before)
	}
	low, room, err := run.roomAbove(low, high)
	if err != nil || room == 0 {
		return 0, err
	}
	return low + max(1, room>>stepBits), nil
}

// roomAbove looks upwards from low for two orders that events have, or high, with room between them: the lower one, and how far the upper one is
// above it. 0: there is none, as far as it looked.
func (run *run) roomAbove(low, high int64) (at, room int64, err error) {
	at = low
	looks := 0
	step := func(used int64) (more bool) {
		used = min(used, high)
		if used-at >= 2 {
			room = used - at
			return false
		}
		at = used
		looks++
		return used < high && looks < maxGapLooks
	}
	i, _ := slices.BinarySearch(run.orders, low+1)
	own, more := run.orders[i:], true
	err = run.read.Ordered(run.rm.id, low+1, func(used int64, _ eventgraph.EventID, _ bool) (bool, error) {
		for ; more && len(own) > 0 && own[0] < used; own = own[1:] {
			more = step(own[0])
		}
		more = more && step(used)
		return more, nil
	})
	for ; more && len(own) > 0; own = own[1:] {
		more = step(own[0])
	}
	if more {
		step(high)
	}
	return at, room, err
}

// given notes an order that an event of the past gets: the run's reader does not have it.
func (run *run) given(order int64) {
	i, _ := slices.BinarySearch(run.orders, order)
	run.orders = slices.Insert(run.orders, i, order)
}

// inPast says whether an order is one of the past: below all that happened here, or in a break.
func (run *run) inPast(order int64) bool {
	return order < 0 || slices.ContainsFunc(run.live.Breaks, func(b store.Break) bool { return b.After < order && order < b.Before })
}

// highestUnder is the highest order of the parents of e, if one has any. past: only those in the past count.
func (run *run) highestUnder(e *eventgraph.Event, past bool) (highest int64, rests bool, err error) {
	for _, id := range e.PrevEvents() {
		parent, err := run.stored(id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, false, err
		}
		counts := parent.Order != 0 && parent.RoomID() == run.rm.id && (!past || run.inPast(parent.Order))
		if counts && (!rests || parent.Order > highest) {
			highest, rests = parent.Order, true
		}
	}
	return highest, rests, nil
}

// allUnder is highestUnder in the past for each of events, sorted, parents first: also for what rests on such by others of them.
func (run *run) allUnder(events []*eventgraph.Event) (map[eventgraph.EventID]int64, error) {
	under := map[eventgraph.EventID]int64{}
	for _, e := range events {
		highest, rests, err := run.highestUnder(e, true)
		if err != nil {
			return nil, err
		}
		for _, parent := range e.PrevEvents() {
			if its, ok := under[parent]; ok && (!rests || its > highest) {
				highest, rests = its, true
			}
		}
		if rests {
			under[e.ID()] = highest
		}
	}
	return under, nil
}

// lowestOn is the lowest order of the events that are held and rest on e, or are given one. It takes the edges that it looks at from those left.
func (run *run) lowestOn(e *eventgraph.Event, given map[eventgraph.EventID]int64, left *int) (int64, error) {
	lowest, ok := given[e.ID()]
	if !ok {
		lowest = math.MaxInt64
	}
	edges := 0
	err := run.children(e.ID(), func(child eventgraph.EventID) (bool, error) {
		s, err := run.stored(child)
		if err == nil && s.RoomID() == run.rm.id && s.Order != 0 {
			lowest = min(lowest, s.Order)
		}
		edges++
		*left--
		return edges < maxBehind && *left > 0, err
	})
	return lowest, err
}
