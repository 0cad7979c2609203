package federation

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
	"github.com/plexus-p2p/plexus/store"
)

// Stalemates: the one way in which a history (history_test.go) may end with states that differ, for the spec's rules leave them so. A server that
// holds both sides of a fork resolves them so that somebody is in the room whom the server that came to know one side first has
// out, or has without the right to do something. There, whatever that somebody does on top of the fork is soft-failed by the current
// state, and a soft-failed event is no extremity until an accepted event builds on it (SS API, Soft failure). Those who would build on it
// are soft-failed too. So that server never merges the other side, though it holds it.
//
// If one of them is not soft-failed there, their next event merges it. Further events that all send at the same time do not build on each
// other, so there one of each is not enough (errUnmerged): then each sends another, until states are equal or it is a stalemate.

// stalemate returns nil if the servers that have themselves in the room differ by soft failures alone, each of them demanded by the rules; else
// what else is wrong. That is so if
//
//  1. each holds, with a verdict other than rejected, what another has accepted, unless it may not see it, is out of the room to the other, or has it
//     waiting; nothing waits that could be taken in (waitsRightly);
//  2. each one's extremities are the leaves of what it has accepted since it last came into the room, and its state is what they resolve to;
//  3. the state before each event that one has soft-failed allows it, and the room's state as it was there when it came does not;
//  4. the leaves of all that each of them holds, soft-failed ones included, resolve to the same state on each;
//  5. of two that differ, one has soft-failed what is part of the other's state (accepted, or something accepted rests on it) and not of its own, and the
//     other's further event too, or may not see it.
//
// It is errUnmerged if only the end of 5 is wrong.
func (w *world) stalemate(held []holding) error {
	var in []int
	for i, s := range w.stations {
		if w.mask(s)&(1<<i) != 0 {
			in = append(in, i)
		}
	}
	for _, i := range in {
		if err := errors.Join(w.holdsAll(i, in, held), w.restsOnLeaves(i, held[i]), w.softFailedRightly(i, held[i])); err != nil {
			return err
		}
	}
	if err := w.agreeOnAll(in, held); err != nil {
		return err
	}
	for _, i := range in {
		for _, j := range in {
			if i < j && w.stations[i].record().State != w.stations[j].record().State {
				if err := w.barred(i, j, held); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

var errUnmerged = errors.New("the further events of both were not barred by either")

func inGraph(e *store.StoredEvent) bool {
	return e != nil && (e.Verdict == store.Accepted || e.Verdict == store.SoftFailed)
}

// unseen says whether station i need not hold an event that station j holds: it may not see it, or to j it is out of the room, and was at the
// event: whoever is out is sent nothing, though anybody may see it. What is made at j goes by the room's state there (concerned.go).
func (w *world) unseen(i, j int, e *store.StoredEvent) (bool, error) {
	s, theirs := w.stations[j], w.stations[i].name
	may, err := s.rooms.MaySeeServer(theirs, e)
	if err != nil {
		return false, err
	}
	wasIn := w.inRoomAt(s, e, i)
	if e.Sender().Server() == s.name && e.RoomState != (eventgraph.Hash{}) {
		wasIn = s.rooms.InRoomAt(w.room, e.RoomState, theirs)
	}
	return !may || w.mask(s)&(1<<i) == 0 && !wasIn, nil
}

// lacksRightly says whether station i need not have in its graph an event that station j has there: it is unseen, or waits, which holdsAll looks at, or
// lies behind a gap.
func (w *world) lacksRightly(i, j int, e *store.StoredEvent, held []holding) (bool, error) {
	if slices.Contains(w.stations[i].waiting(), e.ID()) || w.behindGap(i, e.ID(), held) {
		return true, nil
	}
	return w.unseen(i, j, e)
}

// holdsAll is part 1.
func (w *world) holdsAll(i int, in []int, held []holding) error {
	for _, id := range w.stations[i].waiting() {
		if never, err := w.waitsRightly(i, id, held); !never {
			return errors.Join(fmt.Errorf("an event waits at %d: %s", i, w.name(id)), err)
		}
	}
	for _, j := range in {
		for id, e := range held[j].events {
			if i == j || !inGraph(e) || inGraph(held[i].events[id]) {
				continue
			}
			if ours := held[i].events[id]; ours != nil && ours.Verdict == store.Rejected {
				return fmt.Errorf("%d rejects %s", i, w.name(id))
			}
			if e.Verdict == store.SoftFailed {
				continue // by all who hold it, or it is looked at where it is accepted
			}
			if rightly, err := w.lacksRightly(i, j, e, held); !rightly {
				return errors.Join(fmt.Errorf("%d does not hold %s", i, w.name(id)), err)
			}
		}
	}
	return nil
}

// behindGap says whether station i holds the event as an outlier, behind a gap on which its timeline rests: with its join, or later, it was told the
// state there, of which the event is part. It pages back from there; but who has it out of the room gives it nothing, and who
// has not, and may show it the event, has a gap of their own in between, or what it may not see.
func (w *world) behindGap(i int, id eventgraph.EventID, held []holding) bool {
	if ours := held[i].events[id]; ours == nil || ours.Verdict != store.Outlier {
		return false
	}
	seen := map[eventgraph.EventID]bool{}
	todo := slices.Clone(w.stations[i].record().Backward)
	for len(todo) > 0 {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if e := w.any(next, held); e != nil && !seen[next] {
			seen[next] = true
			todo = append(todo, e.PrevEvents()...)
		}
	}
	return seen[id]
}

// waitsRightly says whether an event that waits at station i cannot be taken in there, for nobody whom it asks (waiting.go: who is in the room to
// it, and who gave it the event) may give it what the event rests on:
//
//   - a parent, or one of a parent that waits too, is held by others, and all of them have rejected it or may not let i see it
//     (ARCHITECTURE.md, invariant 10; CS API, Room History Visibility), or are not asked, and
//   - nobody who has taken in the event, and is in the room to i, has i in the room, now or at the event, so nobody may tell it the state before it.
//
// So it is with what is done to the users of a server on a side of a fork on which they are out: it is sent that alone, for "servers
// banned or gone hold nothing sent after their removal was known to the sender".
func (w *world) waitsRightly(i int, id eventgraph.EventID, held []holding) (bool, error) {
	var e *eventgraph.Event
	var giver eventgraph.ServerName
	err := w.stations[i].store.View(func(r *store.Reader) error {
		item, err := r.InboxItem(w.room, id)
		if err == nil {
			giver = item.Origin
			e, err = eventgraph.ParseEvent(w.script.version, item.PDU)
		}
		return err
	})
	if err != nil {
		return false, err
	}
	inRoom := func(j int) bool { return w.mask(w.stations[i])&(1<<j) != 0 }
	for j, s := range w.stations {
		theirs := held[j].events[id]
		if j != i && inRoom(j) && inGraph(theirs) && (w.mask(s)&(1<<i) != 0 || w.inRoomAt(s, theirs, i)) {
			return false, nil
		}
	}
	for _, parent := range e.PrevEvents() {
		if ours := held[i].events[parent]; ours != nil && ours.Verdict != store.Outlier {
			continue
		}
		if slices.Contains(w.stations[i].waiting(), parent) {
			if never, err := w.waitsRightly(i, parent, held); never || err != nil {
				return never, err
			}
			continue
		}
		some, given := false, false
		for j, s := range w.stations {
			theirs := held[j].events[parent]
			if j == i || theirs == nil {
				continue
			}
			may, err := s.rooms.MaySeeServer(w.stations[i].name, theirs) // not what is rejected
			if err != nil {
				return false, err
			}
			some, given = true, given || may && (inRoom(j) || s.name == giver)
		}
		if some && !given {
			return true, nil
		}
	}
	return false, nil
}

// inRoomAt says whether at station s station i was in the room before or after the event.
func (w *world) inRoomAt(s *station, e *store.StoredEvent, i int) bool {
	name := w.stations[i].name
	return s.rooms.InRoomAt(w.room, e.StateBefore, name) || s.rooms.InRoomAt(w.room, e.StateAfter, name)
}

// belowAccepted are the events that an accepted one rests on.
func belowAccepted(held holding) map[eventgraph.EventID]bool {
	below := map[eventgraph.EventID]bool{}
	var todo []eventgraph.EventID
	for _, e := range held.events {
		if e.Verdict == store.Accepted {
			todo = append(todo, e.PrevEvents()...)
		}
	}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if e := held.events[id]; e != nil && !below[id] {
			below[id] = true
			todo = append(todo, e.PrevEvents()...)
		}
	}
	return below
}

// restsOnLeaves is part 2.
func (w *world) restsOnLeaves(i int, held holding) error {
	s, room := w.stations[i], w.stations[i].record()
	below, came := belowAccepted(held), w.came(i, held)
	var roots []eventgraph.Hash
	for id, e := range held.events {
		if e.Verdict != store.Accepted || e.Order <= 0 || e.Position < came { // what was backfilled is behind the timeline
			continue
		}
		if leaf := !below[id]; leaf != slices.Contains(room.Forward, id) {
			return fmt.Errorf("extremities of %d: it is %v that this is a leaf of what it has accepted: %s", i, leaf, w.name(id))
		} else if leaf {
			roots = append(roots, e.StateAfter)
		}
	}
	root, err := s.resolve(roots)
	if err == nil && root != room.State {
		err = fmt.Errorf("the state of %d is not what its extremities resolve to", i)
	}
	return err
}

// came is the position of the join by which station i came into the room last, as its first user, through another server. That told the state, which
// is taken at its word: what was held before is behind it, though what ties it to the join may not be seen.
func (w *world) came(i int, held holding) (last store.Position) {
	s := w.stations[i]
	for _, e := range held.events {
		if e.Gap && e.Membership() == "join" && e.Sender().Server() == s.name && !s.rooms.InRoomAt(w.room, e.StateBefore, s.name) {
			last = max(last, e.Position)
		}
	}
	return last
}

func (s *station) resolve(roots []eventgraph.Hash) (eventgraph.Hash, error) {
	root, _, err := stateres.Resolve(s.w.script.version, roots, s.rooms, s.rooms)
	return root, err
}

// softFailedRightly is part 3.
func (w *world) softFailedRightly(i int, held holding) error {
	s := w.stations[i]
	then := map[eventgraph.EventID]eventgraph.Hash{} // the room's state when an event was soft-failed
	var now eventgraph.Hash
	err := s.store.View(func(r *store.Reader) error {
		return r.Changes(0, s.store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			switch e := held.events[c.Event]; {
			case c.Room != w.room || e == nil:
			case c.Kind == store.ChangeEvent && e.RoomState != (eventgraph.Hash{}):
				now = e.RoomState
			case c.Kind == store.ChangeSoftFailed:
				then[c.Event] = now
			}
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	for id, e := range held.events {
		if e.Verdict != store.SoftFailed {
			continue
		}
		if err := auth.Check(e.Event, s.rooms.StateAt(w.room, e.StateBefore)); err != nil {
			return fmt.Errorf("%d soft-failed what the state before does not allow: %s: %w", i, w.name(id), err)
		}
		root, ok := then[id]
		if !ok {
			return fmt.Errorf("%d soft-failed and did not log %s", i, w.name(id))
		}
		if e.Gap { // then the state before it is of the room's, too
			if root, err = s.resolve([]eventgraph.Hash{root, e.StateBefore}); err != nil {
				return err
			}
		}
		var refused *auth.Refused
		if err := auth.Check(e.Event, s.rooms.StateAt(w.room, root)); !errors.As(err, &refused) {
			return errors.Join(fmt.Errorf("%d soft-failed what the room's state allowed: %s", i, w.name(id)), err)
		}
	}
	return nil
}

// barred is part 5. Without such an event, but with one that one has soft-failed and the other not, it is errUnmerged: what one of them builds on is
// merged by what is made on it.
func (w *world) barred(i, j int, held []holding) error {
	leftOut := leavesOut(held[i], held[j]) || leavesOut(held[j], held[i])
	if !leftOut && !verdictsDiffer(held[i], held[j]) {
		return fmt.Errorf("%d and %d differ in no soft failure", i, j)
	}
	for _, pair := range [][2]int{{i, j}, {j, i}} {
		a, b := pair[0], pair[1]
		further := held[b].events[w.further[b]]
		if further == nil {
			return fmt.Errorf("%d has sent nothing further, for it had itself out of the room until others had: %w", b, errUnmerged)
		}
		if !leftOut {
			continue
		}
		ours := held[a].events[further.ID()]
		if ours != nil && ours.Verdict == store.SoftFailed {
			return nil
		}
		if !inGraph(ours) {
			if unseen, err := w.unseen(a, b, further); err != nil || unseen {
				return err
			}
		}
	}
	return fmt.Errorf("%d and %d: %w", i, j, errUnmerged)
}

func verdictsDiffer(one, another holding) bool {
	for id, e := range one.events {
		if theirs := another.events[id]; inGraph(e) && inGraph(theirs) && e.Verdict != theirs.Verdict {
			return true
		}
	}
	return false
}

// leavesOut says whether one server has soft-failed an event that is part of the state of another and not of its own.
func leavesOut(one, another holding) bool {
	ours, theirs := belowAccepted(one), belowAccepted(another)
	for id, e := range one.events {
		other := another.events[id]
		if e.Verdict == store.SoftFailed && !ours[id] && inGraph(other) && (other.Verdict == store.Accepted || theirs[id]) {
			return true
		}
	}
	return false
}

// agreeOnAll is part 4.
func (w *world) agreeOnAll(in []int, held []holding) error {
	all := map[eventgraph.EventID]bool{}
	for id, e := range held[in[0]].events {
		if inGraph(e) && !slices.ContainsFunc(in, func(i int) bool { return !inGraph(held[i].events[id]) }) {
			all[id] = true
		}
	}
	leaves := map[eventgraph.EventID]bool{}
	for id := range all {
		leaves[id] = true
	}
	for id := range all {
		for _, parent := range held[in[0]].events[id].PrevEvents() {
			delete(leaves, parent)
		}
	}
	var first eventgraph.Hash
	for n, i := range in {
		var roots []eventgraph.Hash
		for id := range leaves {
			roots = append(roots, held[i].events[id].StateAfter)
		}
		root, err := w.stations[i].resolve(roots)
		if err != nil {
			return err
		}
		if n == 0 {
			first = root
		} else if root != first {
			return fmt.Errorf("all that %d and %d hold resolves to other states there", in[0], i)
		}
	}
	return nil
}

// stalemateScripts are histories that end in a stalemate, minimised.
var stalemateScripts = []struct{ how, script string }{
	{"who is banned bans, and who banned takes their own power: the bans change places when both are known", `
room 3 11 public shared a2=100 b2=50
join a2 0
join b2 0
power a2 a2 0
send 2 0
ban a0 b2
ban b2 a2
power a0 a0 0`},
	{"a ban, and the power to have banned given away, while who is banned speaks", `
room 3 11 public world_readable a1=50 a2=50
join a2 0
ban a0 a2
join b2 1
send 2 0
power a0 a0 0
topic a2 t443`},
	{"of the side of a fork on which its user is out a server is sent the removal alone, and not what that rests on", `
room 6 12 public invited b0=100 a1=50 a2=50 b2=50 a3=100 a5=50
join a1 0
join a2 0
join b2 0
join a4 0
unban a1 a4
rule b2 knock
unban a2 a4`},
	{"the same, and whoever has a server in the room has the gap that it would fill", `
room 6 12 public invited b0=100 a1=50 a2=50 b2=50 a3=100 a5=50
join b0 0
join a1 0
join a2 0
join b2 0
join a4 0
join a5 0
invite a1 a5
fork a5 34 join a3
rule b2 knock
unban b0 a5
unban a2 a4`},
	{"an event that others rejected waits, for its parent may not be seen", `
room 3 9 public joined a1=50 a2=100
join a1 0
join a2 0
ban a2 a1
power a0 a1 99
join b1 2
meet 2 0
power a2 a2 0
say a2
rule a1 invite
invite a1 a2
leave a2
join a2 0
fork a2 12 say a0
leave a0
leave a1
join a2 1`},
	{"a join while the room is closed, and an act of who joined", `
room 4 8 public shared a1=50 a2=100 a3=100 b3=100
join b3 0 late=query
join a3 3 twice=query:3
meet 0 2
ban b3 a2
meet 0 1
rule a0 invite
power a3 a1 50`},
}

func TestStalemates(t *testing.T) { // not parallel, as TestHistories
	for _, found := range stalemateScripts {
		s, err := parseScript(found.script)
		if err != nil {
			t.Fatal(err)
		}
		playStalemate(t, found.how, s)
	}
	w, err := play(t.Context(), newScript(20261122, 1376), nil, nil)
	if err != nil || len(w.tally.again) != 1 || len(w.tally.stalemates) != 0 {
		t.Errorf("what who is accepted by all can merge: %v", err)
	}
	playStalemate(t, "a leave, and a join through who had not heard of it", newScript(20261122, 6008))
	playStalemate(t, "a removal that both soft-failed, one before it accepted what rests on it, which the other may not see", newScript(3, 377))
}

func playStalemate(t *testing.T, how string, s *script) {
	w, err := play(t.Context(), s, nil, nil)
	if err != nil {
		t.Errorf("%s:\n%s%v", how, s, err)
	} else if len(w.tally.stalemates) != 1 {
		t.Errorf("%s: no stalemate:\n%s", how, s)
	}
}

// TestStalemateOnly spoils what the servers of a stalemate hold, in each way that makes it a defect.
func TestStalemateOnly(t *testing.T) { // not parallel, as TestHistories
	s, err := parseScript(stalemateScripts[0].script)
	if err != nil {
		t.Fatal(err)
	}
	var ban eventgraph.EventID // of a2 by b2: accepted by 2, soft-failed by 0
	spoils := []struct {
		what  string
		spoil func(w *world, held []holding)
		fails bool
	}{
		{"nothing", func(*world, []holding) {}, false},
		{"the ban is withheld", func(_ *world, held []holding) { delete(held[0].events, ban) }, true},
		{"the ban has no place", func(_ *world, held []holding) { held[0].events[ban].Verdict = store.Outlier }, true},
		{"the ban is rejected", func(_ *world, held []holding) { held[0].events[ban].Verdict = store.Rejected }, true},
		{"the ban is accepted, and no extremity", func(_ *world, held []holding) { held[0].events[ban].Verdict = store.Accepted }, true},
		{"the ban waits, and what it rests on is held", func(w *world, held []holding) {
			e := held[2].events[ban]
			delete(held[0].events, ban)
			if err := w.stations[0].fed.putInbox(w.ctx, []*store.InboxItem{{ID: ban, Room: w.room, Origin: w.stations[2].name, PDU: e.Raw()}}); err != nil {
				t.Error(err)
			}
		}, true},
		{"the further event waits for one that may be seen", func(w *world, held []holding) {
			e := held[2].events[w.further[2]]
			delete(held[0].events, e.ID())
			delete(held[0].events, e.PrevEvents()[0])
			if err := w.stations[0].fed.putInbox(w.ctx, []*store.InboxItem{{ID: e.ID(), Room: w.room, Origin: w.stations[2].name, PDU: e.Raw()}}); err != nil {
				t.Error(err)
			}
		}, true},
		{"the further event is withheld", func(w *world, held []holding) { delete(held[0].events, w.further[2]) }, true},
		{"the further event is soft-failed and would not need to be", func(w *world, held []holding) {
			held[2].events[w.further[0]].Verdict = store.SoftFailed
		}, true},
		{"the ban leads to another state there", func(w *world, held []holding) {
			held[0].events[w.further[2]].StateAfter = held[0].events[w.further[0]].StateAfter
		}, true},
	}
	for _, c := range spoils {
		w, err := playThen(t.Context(), s, nil, nil, func(w *world) error {
			held := w.holdings()
			for id, e := range held[2].events {
				if e.Membership() == "ban" && held[0].events[id].Verdict == store.SoftFailed {
					ban = id
				}
			}
			c.spoil(w, held)
			return w.stalemate(held)
		})
		if w.stalled && (err != nil) != c.fails || !w.stalled {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
