package rooms

import (
	"cmp"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What ties an event to the timeline. An extremity is what the room's current state is made of and nothing else of it rests on; so an event is none
// from which one descends that is, or was until something was built on it. Events that were not extremities are looked through, in either
// direction: any number of them may lie between, and they may come in any order. But nothing is tied through an event on a mere claim (rooted):
// what lies behind it need not be in its state, and would be forgotten. Through it an event is the past at most (claimCovers): it is not measured by
// what came after it, and takes nothing away.

// maxBehind bounds how far one question after descendants or ancestors goes: in edges of the graph downwards, in events upwards. Members make
// both grow, by events that are rejected. Where it is met the answer is that nothing ties the event: an extremity stays that need not, which
// does no harm but that its state is resolved with the others, until an event is built on it. An extremity is never taken away for it.
const maxBehind = 1000

// inTimeline says whether an event is an extremity, or was one until something was built on it: so what it rests on is none.
func inTimeline(s *store.StoredEvent) bool {
	return s.Verdict == store.Accepted && s.Order > 0 && !s.Aside
}

// rooted says whether what an event rests on is in the state before it. It is where that state came of its parents, but need not be where a
// server claimed it: it may have left out what we hold, or hold later. The join by which we came is taken at its word, as we know the room by it.
func (run *run) rooted(s *store.StoredEvent) (bool, error) {
	if !s.Gap {
		return true, nil
	}
	key, isState := s.StateKey()
	if s.Membership() != "join" || s.Sender().Server() != run.r.key.Server || !isState || key != string(s.Sender()) {
		return false, nil
	}
	// Others of our users may have been in the room then, or this one: then we came by another.
	c, err := run.r.countOf(run.rm, run, s.StateBefore)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil // the history has been purged since
	}
	return err == nil && c.joined[run.r.key.Server] == 0, err
}

// covered says whether an event that inTimeline descends from the event, so that it is no extremity. Others that are held are looked behind,
// whatever their verdict: backfilled ones, for whoever gave us one may not have given what ties it to the timeline; outliers, for a join rests on
// them; those that are not shown and those left aside, for what was built on them is.
func (run *run) covered(id eventgraph.EventID) (bool, error) {
	if found, known := run.ties.above.get(id); known {
		return found == tied, nil
	}
	on, err := run.climbed(id, false)
	return on != "", err
}

// claimCovers is covered, but looks through events that are not rooted, too. So it tells what is the past, but not what the room's state knows of.
func (run *run) claimCovers(id eventgraph.EventID) (bool, error) {
	if found, known := run.ties.above.get(id); known && found != onlyClaimed {
		return found == tied, nil
	}
	on, err := run.restsOn(id)
	return on != "", err
}

// restsOn is an event that inTimeline and descends from the event, if only by claims; "" if there is none.
func (run *run) restsOn(id eventgraph.EventID) (eventgraph.EventID, error) {
	if found, known := run.ties.above.get(id); known && found == untied {
		return "", nil
	}
	if on, known := run.ties.claims.get(id); known {
		return eventgraph.EventID(on), nil
	}
	return run.climbed(id, true)
}

// tie takes away the extremities that an event, itself none, ties to the timeline: they came before it, as if they were news. Between them and
// it, and between it and the timeline, others may lie that came before.
func (run *run) tie(w *write) error {
	loose, onTip := false, false // does it rest on what was not tied, on an extremity?
	for _, parent := range w.event.PrevEvents() {
		found, known := run.ties.above.get(parent)
		loose = loose || known && found != tied
		onTip = onTip || run.isTip(parent)
	}
	shown := w.event.Verdict == store.Accepted || w.event.Verdict == store.SoftFailed // others come by the thousand, at a join
	if alone := len(run.live.tips) < 2; !loose && (alone || !onTip && !shown) {
		return nil // the last one stays
	}
	id := w.event.ID()
	if covered, err := run.covered(id); err != nil {
		return err
	} else if covered {
		return run.takePlaces(w)
	}
	if found, _ := run.ties.above.get(id); found == onlyClaimed && loose {
		run.ties.doubt()
	} else {
		run.ties.above.put(id, found, rest)
	}
	return nil
}

// takePlaces takes away the extremities among an event's ancestors.
func (run *run) takePlaces(w *write) error {
	behind, err := run.ancestors(w.event, true)
	if err != nil {
		return err
	}
	if err := run.reached(behind); err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(run.live.tips), func(t tip) bool { _, gone := behind.found[t.id]; return gone })
	if len(rest) == len(run.live.tips) || len(rest) == 0 {
		return nil
	}
	return run.setTips(builtOn(rest), w)
}

// provenTies takes away the extremities that events tie to the timeline since they are rooted.
func (run *run) provenTies(proven []*write) error {
	for _, w := range proven {
		is := inTimeline(w.event)
		if !is {
			var err error
			if is, err = run.covered(w.event.ID()); err != nil {
				return err
			}
		}
		if is && len(run.live.tips) > 1 {
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

// claimedPast says whether an outlier that gets its place is the past because a claim tells so. Only state is held as an outlier for a claim's
// sake. And what the claim leaves out of the room's state is none: it would be forgotten. before is the state before the event.
func (run *run) claimedPast(e *eventgraph.Event, before eventgraph.Hash) (bool, error) {
	tuple, ok := e.Tuple()
	if !ok {
		return false, nil
	}
	if past, err := run.claimCovers(e.ID()); !past || err != nil {
		return false, err
	}
	height, err := heightOf(e, run.stored)
	if err != nil {
		return false, err
	}
	after, err := run.with(before, tuple, e.ID(), height)
	if err != nil {
		return false, err
	}
	with, err := run.merge(append(run.tipStates(), after))
	return with == run.live.State, err
}

// errOtherwise ends a comparison of states early.
var errOtherwise = errors.New("the states differ in what matters")

// ruleOtherwise says whether two states differ in what the authorization rules, the server ACL and the policy server are read from. Where they
// do not, either may be the room's state without anybody being able to do what he could not.
func (run *run) ruleOtherwise(a, b eventgraph.Hash) (bool, error) {
	err := eventgraph.Diff(run, a, b, func(d eventgraph.Difference) error {
		switch d.Tuple.Type {
		case "m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.server_acl", eventgraph.PolicyType:
			if d.Tuple.Key == "" {
				return errOtherwise
			}
		case "m.room.third_party_invite":
			return errOtherwise
		case "m.room.member":
			was, err := run.membershipIn(d.A)
			if err != nil {
				return err
			}
			if is, err := run.membershipIn(d.B); err != nil || is != was {
				return cmp.Or(err, errOtherwise)
			}
		}
		return nil
	})
	if errors.Is(err, errOtherwise) {
		return true, nil
	}
	return false, err
}

// setsBack says whether the state after an event on a claim, which is to be newer than another, lacks something of that, or has in its place what is
// older: an event that is not deeper than another does not come after it, and one that has its place here, and is not in the room's current state,
// was replaced. Nothing is taken away from a room's state but by state resolution.
func (run *run) setsBack(older eventgraph.Hash, newer tip) (bool, error) {
	now := run.state(run.live.State)
	err := eventgraph.Diff(run, older, newer.after, func(d eventgraph.Difference) error {
		if d.A == "" {
			return nil
		}
		if d.B == "" {
			return errOtherwise
		}
		was, err := run.stored(d.A)
		if err != nil {
			return err
		}
		is, err := run.stored(d.B)
		if err != nil {
			return err
		}
		if is.Depth() <= was.Depth() {
			return errOtherwise
		}
		if placed(is) && d.B != newer.id {
			if current, _, err := now.EventID(d.Tuple); err != nil || current != d.B {
				return cmp.Or(err, errOtherwise)
			}
		}
		return nil
	})
	if errors.Is(err, errOtherwise) {
		return true, nil
	}
	return false, err
}

// membershipIn is that of a member event, "" if there is none.
func (run *run) membershipIn(id eventgraph.EventID) (string, error) {
	if id == "" {
		return "", nil
	}
	s, err := run.stored(id)
	if err != nil {
		return "", err
	}
	return s.Membership(), nil
}
