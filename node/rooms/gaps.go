package rooms

import (
	"cmp"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// maxProofs bounds the states that are resolved to see whether claims were true, when an event comes for which many have waited: an honest
// gap has one or two ends. So many more of those that were left are looked at with each event that comes.
const maxProofs = 20

// fillGaps brings the backward extremities up to an event that has come: it is one if parents of it are missing, and its
// children are none any more if it was their last missing parent. Those of them whose claimed state was the one that the parents
// give lose the mark of a gap with the writes that it returns, as far as maxProofs and maxCarried allow; others have to wait (store.Room.Unproven).
func (run *run) fillGaps(s *store.StoredEvent) (proven []*write, err error) {
	if !placed(s) {
		return nil, nil
	}
	back := slices.Clone(run.live.Backward)
	changed := false
	if s.Gap && !slices.Contains(back, s.ID()) {
		back, changed = append(back, s.ID()), true
	}
	var filled []eventgraph.EventID
	if len(back) > 0 {
		if filled, err = run.filled(s.ID()); err != nil {
			return nil, err
		}
		is := func(id eventgraph.EventID) bool { return slices.Contains(filled, id) }
		back = slices.DeleteFunc(back, is)
		changed = changed || len(filled) > 0
	}
	if changed {
		if len(back) > maxBackward {
			if back, err = run.fewerGaps(back); err != nil {
				return nil, err
			}
		}
		slices.Sort(back)
		run.live.Backward, run.dirty = back, true
	}
	return run.prove(filled)
}

// filled lists the children of an event that waited for it and for nothing else.
func (run *run) filled(parent eventgraph.EventID) (filled []eventgraph.EventID, err error) {
	var waiting []eventgraph.EventID
	err = run.children(parent, func(child eventgraph.EventID) (bool, error) {
		if _, waits := slices.BinarySearch(run.live.Backward, child); waits && !slices.Contains(waiting, child) {
			waiting = append(waiting, child)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for _, child := range waiting {
		c, err := run.stored(child)
		if err != nil {
			return nil, err
		}
		if _, all, err := run.afterParents(c.Event); err != nil {
			return nil, err
		} else if all {
			filled = append(filled, child)
		}
	}
	return filled, nil
}

// prove looks whether the states claimed before events whose parents are here now were true: maxProofs of these events, and of those that had to wait.
func (run *run) prove(filled []eventgraph.EventID) (proven []*write, err error) {
	look := func(some []eventgraph.EventID, most int) (wait []eventgraph.EventID, err error) {
		for i, id := range some {
			later := i >= maxProofs || run.carried > most
			if !later {
				var w *write
				if w, later, err = run.proof(id); err != nil {
					return nil, err
				} else if w != nil {
					proven = append(proven, w)
				}
			}
			if later {
				wait = append(wait, id)
			}
		}
		return wait, nil
	}
	more, err := look(filled, maxCarried)
	if err != nil {
		return nil, err
	}
	waited := run.live.Unproven
	wait, err := look(waited, maxCarried/3) // the rest is for what else comes with the event
	if err != nil || len(waited) == 0 && len(more) == 0 {
		return proven, err
	}
	if wait = append(wait, more...); len(wait) > maxBackward {
		if wait, err = run.fewerGaps(wait); err != nil {
			return nil, err
		}
	}
	run.live.Unproven, run.dirty = wait, true
	return proven, nil
}

// proof takes the mark of a gap from an event whose parents give the state that was claimed before it. later: this run cannot hold it.
func (run *run) proof(id eventgraph.EventID) (w *write, later bool, err error) {
	s, err := run.stored(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	states, all, err := run.afterParents(s.Event)
	if err != nil || !all || !s.Gap {
		return nil, false, err
	}
	if !run.carries(s) {
		return nil, true, nil
	}
	if before, err := run.merge(states); err != nil || before != s.StateBefore {
		return nil, false, err
	}
	s = run.changeable(s)
	s.Gap = false
	w = &write{event: s}
	run.put(w)
	return w, false, nil
}

// gap is a backward extremity.
type gap struct {
	id     eventgraph.EventID
	server eventgraph.ServerName // store.GapOf
	order  int64
	away   bool // in the room's order it lies in a break
}

// fewerGaps leaves keptBackward of too many backward extremities.
func (run *run) fewerGaps(back []eventgraph.EventID) ([]eventgraph.EventID, error) {
	gaps := make([]gap, len(back))
	for i, id := range back {
		s, err := run.stored(id)
		if err != nil {
			return nil, err
		}
		gaps[i] = gap{id, store.GapOf(s), s.Order, slices.ContainsFunc(run.live.Breaks, func(b store.Break) bool { return b.Holds(s.Order) })}
	}
	kept := make([]eventgraph.EventID, keptBackward)
	for i, g := range keepFirst(gaps, run.r.key.Server)[:keptBackward] {
		kept[i] = g.id
	}
	return kept, nil
}

// keepFirst orders backward extremities, first those to keep: by our own users all, for with our joins what was before us would be lost; then one of
// each server in turn, so that whoever makes many loses his own. Of one server's those in breaks come before others, and the older ones in the
// room's order before the newer: what was fetched in the place of another is older than that.
func keepFirst(gaps []gap, own eventgraph.ServerName) []gap {
	gaps = slices.Clone(gaps)
	slices.SortFunc(gaps, func(a, b gap) int {
		if a.away != b.away {
			if a.away {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.id, b.id))
	})
	turn := make(map[eventgraph.EventID]int, len(gaps))
	of := make(map[eventgraph.ServerName]int)
	for _, g := range gaps {
		if g.server != own {
			of[g.server]++
			turn[g.id] = of[g.server]
		}
	}
	slices.SortStableFunc(gaps, func(a, b gap) int { return cmp.Compare(turn[a.id], turn[b.id]) })
	return gaps
}
