package rooms

import (
	"math"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A room's order. What happens gets the next order; what is fetched of the past gets one below all that is held. Where we come back to a room, what
// happened meanwhile lies between what we hold and the join: orders are reserved for it there.
//
//	fetched, downwards ──▶  -3 -2 -1 │ 1 2 3 … After │ fetched, downwards ──▶  Next … │ Before, the join   …  NextOrder

// breakOrders is how many orders a break has: more than are ever fetched, and few enough for 2^31 breaks.
const breakOrders = 1 << 32

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
// not nil, rests on the last of them and has no place yet. giveBack takes all of it back.
func (run *run) reserve(events []*eventgraph.Event, on *eventgraph.Event) (orders []int64, giveBack func(), err error) {
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
	taken := map[int64]int64{} // of each break
	below := int64(0)
	for i, e := range slices.Backward(events) {
		at, found := -1, false
		if len(run.live.Breaks) > 0 && edges > 0 {
			lowest, err := run.lowestOn(e, given, &edges)
			if err != nil {
				return nil, nil, err
			}
			if edges > 0 { // else it was not looked at to the end
				at = slices.IndexFunc(run.live.Breaks, func(b store.Break) bool { return b.Holds(lowest) })
			}
		}
		if at >= 0 {
			after := run.live.Breaks[at].After
			if orders[i], found = run.moveBreak(after, -1); found {
				taken[after]++
			}
		}
		if !found {
			orders[i] = run.live.PrevOrder
			run.live.PrevOrder--
			below++
		}
		given[e.ID()] = orders[i]
		for _, parent := range e.PrevEvents() {
			if lowest, ok := given[parent]; !ok || lowest > orders[i] {
				given[parent] = orders[i] // until it has its own
			}
		}
	}
	return orders, func() {
		for after, n := range taken {
			run.moveBreak(after, n)
		}
		run.live.PrevOrder += below
	}, nil
}

// moveBreak gives orders back to a break, or takes them if by is negative and there are so many; then next is the one taken.
func (run *run) moveBreak(after, by int64) (next int64, ok bool) {
	i := slices.IndexFunc(run.live.Breaks, func(b store.Break) bool { return b.After == after })
	if i < 0 || run.live.Breaks[i].Next+by < after {
		return 0, false
	}
	run.live.Breaks = slices.Clone(run.live.Breaks) // others may see it
	next = run.live.Breaks[i].Next
	run.live.Breaks[i].Next += by
	run.live.Skipped += by
	return next, true
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
