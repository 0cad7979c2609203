package rooms

import (
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What ties an event to the timeline. An extremity is what the room's current state is made of and nothing else of it rests on; so an event is none
// from which one descends that is, or was until something was built on it. Events that were not extremities are looked through, in either
// direction: any number of them may lie between, and they may come in any order. But nothing is tied through an event on a mere claim (rooted):
// what lies behind it need not be in its state, and would be forgotten.

// maxBehind bounds how far one question after descendants or ancestors goes: in edges of the graph downwards, in events upwards. Members make
// both grow, by events that are rejected. Where it is met the answer is that nothing ties the event: an extremity stays that need not, which
// does no harm but that its state is resolved with the others, until an event is built on it. An extremity is never taken away for it.
const maxBehind = 1000

// ties remembers what covered has found, so that a stream of events beside the timeline costs no more than itself: each is looked at once,
// however many come after it. true is never wrong, else an extremity would be lost; false may be, as after maxBehind. Events that are not rooted
// are not in it: what ties them need not tie what they rest on.
type ties struct {
	young, old map[eventgraph.EventID]bool
}

// maxTies is how many of them are remembered, and as many older ones; some 100 bytes each.
const maxTies = 2 * maxBehind

// maxAllTies is how many the idle rooms may have together, some 4 MB. Members make them grow in as many rooms as they like.
const maxAllTies = 20 * maxTies

func (t *ties) size() int { return len(t.young) + len(t.old) }

func (t *ties) get(id eventgraph.EventID) (tied, known bool) {
	if tied, known = t.young[id]; !known {
		tied, known = t.old[id]
	}
	return tied, known
}

func (t *ties) put(id eventgraph.EventID, tied bool) {
	if len(t.young) >= maxTies {
		t.old, t.young = t.young, nil
	}
	if t.young == nil {
		t.young = map[eventgraph.EventID]bool{}
	}
	t.young[id] = tied
}

func (t *ties) forget(id eventgraph.EventID) {
	delete(t.young, id)
	delete(t.old, id)
}

// reached takes down that the timeline rests on what ancestors has found.
func (t *ties) reached(found map[eventgraph.EventID]bool) {
	for id, through := range found {
		if _, known := t.get(id); known || through {
			t.put(id, true)
		}
	}
}

// inTimeline says whether an event is an extremity, or was one until something was built on it: so what it rests on is none.
func inTimeline(s *store.StoredEvent) bool {
	return s.Verdict == store.Accepted && s.Order > 0 && !s.Aside
}

// rooted says whether what an event rests on is in the state before it. It is where that state came of its parents, but need not be where a
// server claimed it: it may have left out what we hold, or hold later. The join by which we came is taken at its word, as we know the room by it.
func (run *run) rooted(s *store.StoredEvent) bool {
	return !s.Gap || s.Membership() == "join" && s.Sender().Server() == run.r.key.Server
}

// covered says whether an event that inTimeline descends from the event, so that it is no extremity. Others that are held are looked behind,
// whatever their verdict: backfilled ones, for whoever gave us one may not have given what ties it to the timeline; outliers, for a join rests on
// them; those that are not shown and those left aside, for what was built on them is.
func (run *run) covered(id eventgraph.EventID) (bool, error) {
	if tied, known := run.ties.get(id); known {
		return tied, nil
	}
	seen := map[eventgraph.EventID]bool{id: true}
	todo := []eventgraph.EventID{id}
	var claims []eventgraph.EventID
	tied := false
	for edges := 0; len(todo) > 0 && edges < maxBehind && !tied; {
		parent := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		err := run.children(parent, func(child eventgraph.EventID) (bool, error) {
			if edges++; !seen[child] {
				seen[child] = true
				var known bool
				if tied, known = run.ties.get(child); !known {
					s, err := run.stored(child)
					if err != nil {
						return false, err
					}
					switch {
					case s.RoomID() != run.rm.id: // any room's event can name any parent
					case !run.rooted(s):
						claims = append(claims, child)
					default:
						tied = inTimeline(s)
						todo = append(todo, child)
					}
				}
			}
			return !tied && edges < maxBehind, nil
		})
		if err != nil {
			return false, err
		}
	}
	switch {
	case tied:
		run.ties.put(id, true)
	case len(seen) > 1:
		for _, id := range claims {
			delete(seen, id)
		}
		for id := range seen {
			run.ties.put(id, false)
		}
	}
	return tied, nil
}

// ancestors are the parents of an event, and behind those that are not inTimeline, and so are no extremities, their parents in turn; they are
// true. What is known to be tied is not looked behind: what it rests on was reached before. Of an event that is not rooted they are the parents
// that have their place, whose states are in its own.
func (run *run) ancestors(of *store.StoredEvent) (map[eventgraph.EventID]bool, error) {
	found := map[eventgraph.EventID]bool{}
	todo := slices.Clone(of.PrevEvents())
	for looked := 0; len(todo) > 0 && looked < maxBehind; looked++ {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, again := found[id]; again {
			continue
		}
		found[id] = false
		if tied, _ := run.ties.get(id); tied || len(run.live.tips) == 0 || run.isTip(id) {
			continue
		}
		s, err := run.stored(id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch {
		case s.RoomID() != run.rm.id || inTimeline(s) || !run.rooted(s):
		case !run.rooted(of) && !placed(s):
			delete(found, id)
		default:
			found[id] = true
			todo = append(todo, s.PrevEvents()...)
		}
	}
	return found, nil
}

func (run *run) isTip(id eventgraph.EventID) bool {
	return slices.ContainsFunc(run.live.tips, func(t tip) bool { return t.id == id })
}

// tie takes away the extremities that an event, itself none, ties to the timeline: they came before it, as if they were news. Between them and
// it, and between it and the timeline, others may lie that came before.
func (run *run) tie(w *write) error {
	loose, onTip := false, false // does it rest on what was not tied, on an extremity?
	for _, parent := range w.event.PrevEvents() {
		tied, known := run.ties.get(parent)
		loose = loose || known && !tied
		onTip = onTip || run.isTip(parent)
	}
	shown := w.event.Verdict == store.Accepted || w.event.Verdict == store.SoftFailed // others come by the thousand, at a join
	if alone := len(run.live.tips) < 2; !loose && (alone || !onTip && !shown) {
		return nil // the last one stays
	}
	tied, err := run.covered(w.event.ID())
	if err != nil {
		return err
	}
	if !tied {
		run.ties.put(w.event.ID(), false)
		return nil
	}
	return run.takePlaces(w)
}

// takePlaces takes away the extremities among an event's ancestors.
func (run *run) takePlaces(w *write) error {
	found, err := run.ancestors(w.event)
	if err != nil {
		return err
	}
	run.ties.reached(found)
	rest := slices.DeleteFunc(slices.Clone(run.live.tips), func(t tip) bool { _, gone := found[t.id]; return gone })
	if len(rest) == len(run.live.tips) || len(rest) == 0 {
		return nil
	}
	return run.setTips(builtOn(rest), w)
}

// provenTies takes away the extremities that events tie to the timeline since they are rooted.
func (run *run) provenTies(proven []*write) error {
	for _, w := range proven {
		tied := inTimeline(w.event)
		if !tied {
			var err error
			if tied, err = run.covered(w.event.ID()); err != nil {
				return err
			}
		}
		if tied && len(run.live.tips) > 1 {
			if err := run.takePlaces(w); err != nil {
				return err
			}
		}
	}
	return nil
}

// builtOn are the extremities where one of them, whichever, ties others now that were some themselves: none is to be pushed out any more.
func builtOn(tips []tip) []tip {
	tips = slices.Clone(tips)
	for i := range tips {
		tips[i].alone = false
	}
	return tips
}
