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

// ties remembers what covered has found, so that a stream of events beside the timeline costs no more than itself: each is looked at once,
// however many come after it. tied is never wrong, else an extremity would be lost; the others may be, as after maxBehind. Events that are not rooted
// are not in it: what ties them need not tie what they rest on.
type ties struct {
	young, old map[eventgraph.EventID]tie
}

// tie is what is known of one event.
type tie uint8

const (
	untied      tie = iota
	onlyClaimed     // not tied; perhaps so through events that are not rooted
	tied
)

// maxTies is how many of them are remembered, and as many older ones; some 100 bytes each.
const maxTies = 2 * maxBehind

// maxAllTies is how many the idle rooms may have together, some 4 MB. Members make them grow in as many rooms as they like.
const maxAllTies = 20 * maxTies

func (t *ties) size() int { return len(t.young) + len(t.old) }

func (t *ties) get(id eventgraph.EventID) (found tie, known bool) {
	if found, known = t.young[id]; !known {
		found, known = t.old[id]
	}
	return found, known
}

func (t *ties) put(id eventgraph.EventID, found tie) {
	if len(t.young) >= maxTies {
		t.old, t.young = t.young, nil
	}
	if t.young == nil {
		t.young = map[eventgraph.EventID]tie{}
	}
	t.young[id] = found
}

// doubt is for when an event has come through which a claim may reach what it did not: what is tied by no claim either is not known any more.
func (t *ties) doubt() {
	for _, all := range []map[eventgraph.EventID]tie{t.young, t.old} {
		for id, found := range all {
			if found == untied {
				all[id] = onlyClaimed
			}
		}
	}
}

func (t *ties) forget(id eventgraph.EventID) {
	delete(t.young, id)
	delete(t.old, id)
}

// reached takes down that the timeline rests on what ancestors has found.
func (t *ties) reached(found map[eventgraph.EventID]bool) {
	for id, through := range found {
		if _, known := t.get(id); known || through {
			t.put(id, tied)
		}
	}
}

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
	if found, known := run.ties.get(id); known {
		return found == tied, nil
	}
	return run.above(id, false)
}

// claimCovers is covered, but looks through events that are not rooted, too. So it tells what is the past, but not what the room's state knows of.
func (run *run) claimCovers(id eventgraph.EventID) (bool, error) {
	if found, known := run.ties.get(id); known && found != onlyClaimed {
		return found == tied, nil
	}
	return run.above(id, true)
}

// above looks for an event that inTimeline among the descendants, and remembers what it finds, but not what it finds through claims.
func (run *run) above(id eventgraph.EventID, throughClaims bool) (is bool, err error) {
	seen := map[eventgraph.EventID]bool{id: true}
	todo := []eventgraph.EventID{id}
	var claims []eventgraph.EventID
	open := false // is there one that was not looked through, as it is not rooted?
	look := func(child eventgraph.EventID) error {
		found, known := run.ties.get(child)
		if known && (found != onlyClaimed || !throughClaims) {
			is, open = found == tied, open || found == onlyClaimed
			return nil
		}
		s, err := run.stored(child)
		if err != nil || s.RoomID() != run.rm.id { // any room's event can name any parent
			return err
		}
		rooted, err := run.rooted(s)
		if err != nil {
			return err
		}
		if !rooted {
			claims = append(claims, child)
			if !throughClaims {
				open = true
				return nil
			}
		}
		is = inTimeline(s)
		todo = append(todo, child)
		return nil
	}
	for edges := 0; len(todo) > 0 && edges < maxBehind && !is; {
		parent := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		err := run.children(parent, func(child eventgraph.EventID) (bool, error) {
			if edges++; !seen[child] {
				seen[child] = true
				if err := look(child); err != nil {
					return false, err
				}
			}
			return !is && edges < maxBehind, nil
		})
		if err != nil {
			return false, err
		}
	}
	switch {
	case is && !throughClaims:
		run.ties.put(id, tied)
	case !is && len(seen) > 1:
		found := untied
		if open {
			found = onlyClaimed
		}
		for _, id := range claims {
			delete(seen, id)
		}
		for id := range seen {
			run.ties.put(id, found)
		}
	}
	return is, nil
}

// ancestors are the parents of an event, and behind those that are not inTimeline, and so are no extremities, their parents in turn; they are
// true. What is known to be tied is not looked behind: what it rests on was reached before. Of an event that is not rooted they are the parents
// that have their place, whose states are in its own.
func (run *run) ancestors(of *store.StoredEvent) (map[eventgraph.EventID]bool, error) {
	found := map[eventgraph.EventID]bool{}
	whole, err := run.rooted(of)
	if err != nil {
		return nil, err
	}
	todo := slices.Clone(of.PrevEvents())
	for looked := 0; len(todo) > 0 && looked < maxBehind; looked++ {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, again := found[id]; again {
			continue
		}
		found[id] = false
		if known, _ := run.ties.get(id); known == tied || len(run.live.tips) == 0 || run.isTip(id) {
			continue
		}
		s, err := run.stored(id)
		if errors.Is(err, store.ErrNotFound) {
			if !whole {
				delete(found, id)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		rooted, err := run.rooted(s)
		if err != nil {
			return nil, err
		}
		switch {
		case s.RoomID() != run.rm.id || inTimeline(s) || !rooted:
		case !whole && !placed(s):
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
		found, known := run.ties.get(parent)
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
	if found, _ := run.ties.get(id); found == onlyClaimed && loose {
		run.ties.doubt()
	} else {
		run.ties.put(id, found)
	}
	return nil
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
