package rooms

import (
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// ancestry is one walk from an event to those that it rests on.
type ancestry struct {
	run     *run
	of      *store.StoredEvent
	whole   bool // of is rooted
	full    bool // all are looked at, but for what is tied
	jumped  bool // some are not in found, as it was remembered what is behind them
	looked  int
	found   map[eventgraph.EventID]bool // see ancestors
	stops   map[eventgraph.EventID]*stop
	through []*stop // those that are true in found, behind others before them
}

// stop is what a walk has found at one event.
type stop struct {
	id      eventgraph.EventID
	behind  ends
	settled bool
	part    part
	cost    int // how many are to be looked at to come to the same again
}

// ancestors are the parents of an event, and behind those that are not inTimeline, and so are no extremities, their parents in turn; they are
// true. What is known to be tied is not looked behind: what it rests on was reached before. Of an event that is not rooted they are the parents
// that have their place, whose states are in its own. Unless full, those between an event and where a walk from it has ended before are left out.
func (run *run) ancestors(of *store.StoredEvent, full bool) (*ancestry, error) {
	whole, err := run.rooted(of)
	if err != nil {
		return nil, err
	}
	a := &ancestry{run: run, of: of, whole: whole, full: full, found: map[eventgraph.EventID]bool{}, stops: map[eventgraph.EventID]*stop{}}
	for _, id := range of.PrevEvents() {
		at, err := a.visit(id)
		if err != nil {
			return nil, err
		}
		at.part = asked
	}
	return a, nil
}

// visit goes to an event and behind it.
func (a *ancestry) visit(id eventgraph.EventID) (*stop, error) {
	if at, again := a.stops[id]; again {
		return at, nil
	}
	at := &stop{id: id, behind: ends{open: []eventgraph.EventID{id}}, part: rest}
	a.stops[id] = at
	a.found[id] = false
	if len(a.run.live.tips) == 0 {
		return at, nil
	}
	if a.run.isTip(id) {
		at.behind.tips, at.behind.open = at.behind.open, nil
		return at, nil
	}
	if known, _ := a.run.ties.above.get(id); known == tied {
		at.behind = ends{}
		return at, nil
	}
	if behind, known := a.run.ties.below.get(id); known && !a.full {
		a.jumped, at.settled = true, true
		return at, a.goOn(at, slices.Concat(behind.tips, behind.open))
	}
	if a.looked == maxBehind {
		return at, nil
	}
	a.looked++
	s, err := a.run.stored(id)
	if errors.Is(err, store.ErrNotFound) {
		if !a.whole {
			delete(a.found, id)
		}
		return at, nil
	}
	if err != nil {
		return nil, err
	}
	rooted, err := a.run.rooted(s)
	if err != nil {
		return nil, err
	}
	switch {
	case s.RoomID() != a.run.rm.id || inTimeline(s):
		at.behind = ends{}
	case !rooted:
	case !a.whole && !placed(s):
		delete(a.found, id)
	default:
		at.settled, at.cost = placed(s), 1 // if a rejected one's right copy comes, one more may stay an extremity
		return at, a.goOn(at, s.PrevEvents())
	}
	return at, nil
}

// goOn looks behind an event, and says which part of the memory is for what was found.
func (a *ancestry) goOn(at *stop, next []eventgraph.EventID) error {
	var behind ends
	for _, id := range next {
		other, err := a.visit(id)
		if err != nil {
			return err
		}
		behind = behind.and(other.behind)
		at.cost += other.cost
	}
	if at.settled {
		at.behind = behind
	}
	if at.cost >= markEvery && (at.settled || a.full) {
		at.part, at.cost = marks, 0
	}
	a.found[at.id] = true
	a.through = append(a.through, at)
	return nil
}

// reached takes down that the timeline rests on what ancestors has found.
func (run *run) reached(found *ancestry) (err error) {
	if found.jumped {
		if found, err = run.ancestors(found.of, true); err != nil {
			return err
		}
	}
	for _, at := range found.through {
		run.ties.above.put(at.id, tied, at.part)
	}
	for id := range found.found {
		if _, known := run.ties.above.get(id); known {
			run.ties.above.put(id, tied, rest)
		}
		if past, known := run.ties.claims.get(id); known && past == "" {
			run.ties.doubt() // now it is
		}
	}
	return nil
}

// leftOut takes down what is behind those that ancestors has found, of which the timeline still does not know.
func (run *run) leftOut(found *ancestry) {
	for _, at := range found.through {
		if at.settled && at.part != rest {
			run.ties.below.put(at.id, at.behind, at.part)
		}
	}
}

func (run *run) isTip(id eventgraph.EventID) bool {
	return slices.ContainsFunc(run.live.tips, func(t tip) bool { return t.id == id })
}
