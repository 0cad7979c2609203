package federation

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// The end of a history (history_test.go), and what must hold then.

// maxRounds is how often all stations speak with all, before a history counts as one that never ends.
const maxRounds = 40

// finish heals the network, lets all come to rest, lets each joined server send one further event, and looks at what they hold.
func (w *world) finish() {
	for _, step := range []string{"up", "heal"} {
		w.perform(step)
	}
	for len(w.kept) > 0 {
		w.perform("free 0")
	}
	w.settle("after the network has healed")
	w.speakAll()
	for i, s := range w.stations {
		for w.mask(s)&(1<<i) != 0 {
			n, err := s.fed.Backfill(w.ctx, w.room, 1000)
			w.note(fmt.Sprintf("backfill %d: %d", i, n), err)
			if n == 0 || err != nil {
				break
			}
		}
	}
	w.settle("after paging back")
	if w.failed == nil {
		w.check()
	}
}

// speakAll sends one further event from each joined server, at the same time.
func (w *world) speakAll() {
	for i, s := range w.stations {
		if w.mask(s)&(1<<i) != 0 {
			w.speak(s)
		}
	}
	w.settle("after one further event of each")
}

// settle lets all speak with all until nothing changes any more.
func (w *world) settle(when string) {
	quiet := 0
	for range maxRounds {
		if w.failed != nil {
			return
		}
		before := w.signature()
		w.clock.advance(meetSeldom + time.Minute)
		failed := w.round()
		w.note("round", failed)
		if w.signature() != before {
			quiet = 0
		} else if quiet++; quiet == 2 {
			if failed != nil {
				w.alarm("not delivered", "%s: %v", when, failed)
			}
			return
		}
	}
	w.alarm("no rest", "%s %d rounds are not enough", when, maxRounds)
}

func (w *world) round() (failed error) {
	each := func(f func(a, b *station) error) {
		for _, a := range w.stations {
			for _, b := range w.stations {
				if a != b {
					if err := f(a, b); err != nil && !errors.Is(err, errLost) {
						failed = errors.Join(failed, fmt.Errorf("%d to %d: %w", a.index, b.index, err))
					}
				}
			}
		}
	}
	work := func() {
		for _, s := range w.stations {
			if _, err := s.work(w.ctx); err != nil {
				failed = errors.Join(failed, fmt.Errorf("inbox of %d: %w", s.index, err))
			}
		}
	}
	each(func(a, b *station) error { return a.send(w.ctx, b) })
	work()
	each(func(a, b *station) error { return a.meet(w.ctx, b) })
	work()
	return failed
}

// signature changes when anything does that matters.
func (w *world) signature() string {
	text := ""
	for _, s := range w.stations {
		text += fmt.Sprint(s.store.Position(), " ")
		if room := s.record(); room != nil {
			text += fmt.Sprint(room.Forward, room.Backward, s.waiting())
		}
	}
	return text
}

// waiting is what waits in the inbox.
func (s *station) waiting() (ids []eventgraph.EventID) {
	s.store.View(func(r *store.Reader) error {
		return r.Inbox(s.w.room, func(i *store.InboxItem) (bool, error) {
			ids = append(ids, i.ID)
			return true, nil
		})
	})
	return ids
}

// speak sends one further event from a user who may.
func (w *world) speak(s *station) {
	for _, letter := range []string{"a", "b"} {
		user := fmt.Sprint(letter, s.index)
		if err := w.deed(s, "say", w.user(user), nil); err == nil {
			w.note("say "+user, nil)
			for _, id := range s.record().Forward {
				s.store.View(func(r *store.Reader) error {
					if e, err := r.Event(id); err == nil && e.Sender() == w.user(user) {
						w.further[s.index] = id
					}
					return nil
				})
			}
			return
		}
	}
	if w.mask(s)&(1<<s.index) == 0 {
		return // what it would have built on has told it that it is out
	}
	w.alarm("mute", "nobody of %d may speak", s.index)
}

// held is all that one station holds of the room.
type holding struct {
	events map[eventgraph.EventID]*store.StoredEvent
}

// universe is the IDs of all events of the room that have a place anywhere.
func (w *world) universe() map[eventgraph.EventID]bool {
	all := map[eventgraph.EventID]bool{}
	for _, s := range w.stations {
		err := s.store.View(func(r *store.Reader) error {
			err := r.Timeline(w.room, firstOrder, false, func(e *store.StoredEvent) (bool, error) {
				all[e.ID()] = true
				return true, nil
			})
			return errors.Join(err, r.Changes(0, s.store.Position(), func(_ store.Position, c store.Change) (bool, error) {
				if c.Kind == store.ChangeEvent || c.Kind == store.ChangeSoftFailed {
					all[c.Event] = true
				}
				return true, nil
			}))
		})
		if err != nil {
			w.alarm("internal error", "timeline of %d: %v", s.index, err)
		}
	}
	return all
}

func (w *world) holdings() []holding {
	all := w.universe()
	held := make([]holding, len(w.stations))
	for i, s := range w.stations {
		held[i].events = map[eventgraph.EventID]*store.StoredEvent{}
		s.store.View(func(r *store.Reader) error {
			for id := range all {
				if e, err := r.Event(id); err == nil {
					held[i].events[id] = e
				}
			}
			return nil
		})
	}
	return held
}

// check looks at what all hold.
func (w *world) check() {
	held := w.holdings()
	in, differ := w.resolved(held)
	for range w.stations {
		if differ == nil || !differ.unmerged {
			break
		}
		w.again = true
		w.speakAll()
		held = w.holdings()
		in, differ = w.resolved(held)
	}
	if differ != nil {
		w.alarm(differ.kind, "%s", differ.text)
	}
	if w.failed != nil {
		return
	}
	for i := range w.stations {
		if in&(1<<i) != 0 {
			w.checkComplete(i, in, held)
		}
		w.checkShown(i, held[i])
		w.checkOrder(i, held[i])
	}
	w.checkVerdicts(in, held)
	w.checkRemoved(held)
}

// resolved is the servers joined in the resolved state. They all have the same state, and nobody else can think that of others. In a stalemate
// it is those that have themselves in the room. Else it says what differs.
func (w *world) resolved(held []holding) (uint8, *failure) {
	w.mute, w.deserted = 0, false
	var groups []uint8
	var differ []string
	var own uint8
	for i, s := range w.stations {
		in := w.mask(s)
		own |= in & (1 << i)
		if in&(1<<i) == 0 || slices.ContainsFunc(groups, func(g uint8) bool { return g&(1<<i) != 0 && g&^in == 0 }) {
			continue
		}
		same, mute := true, uint8(0)
		for j, other := range w.stations {
			if in&(1<<j) == 0 || i == j {
				continue
			}
			if w.apart(s, other) {
				mute |= 1 << j
				continue
			}
			if theirs := other.record(); theirs == nil || theirs.State != s.record().State {
				same = false
				differ = append(differ, fmt.Sprintf("%d has joined %08b, %d has %08b: %s", i, in, j, w.mask(other), w.difference(s, other)))
			}
		}
		if same {
			groups = append(groups, in&^mute)
		}
	}
	if len(groups) == 0 && len(differ) > 0 && w.nobodyLeft() {
		w.deserted = true
		return 0, nil
	}
	switch {
	case len(groups) == 1:
		return groups[0], nil
	case len(groups) == 0 && len(differ) == 0:
		return 0, nil // all have left
	}
	no := w.stalemate(held)
	if no == nil {
		w.stalled = true
		return own, nil
	}
	differ = append(differ, fmt.Sprintf("no stalemate: %v", no))
	f := &failure{kind: "states differ", text: strings.Join(differ, "\n"), unmerged: errors.Is(no, errUnmerged)}
	if len(groups) > 1 {
		a, b := w.stations[bits.TrailingZeros8(groups[0])], w.stations[bits.TrailingZeros8(groups[1])]
		f.kind, f.text = "several groups", fmt.Sprintf("%08b each for themselves; %s%s", groups, f.text, w.difference(a, b))
	}
	return 0, f
}

// nobodyLeft says whether by the state of a station that holds all events nobody is in the room: a server whose join was resolved away is
// not told, if all who could tell it have left.
func (w *world) nobodyLeft() bool {
	all := w.universe()
	for _, s := range w.stations {
		if s.record() == nil || w.mask(s) != 0 {
			continue
		}
		whole := true
		s.store.View(func(r *store.Reader) error {
			for id := range all {
				if verdict, held, err := r.HasEvent(id); err != nil || !held || verdict == store.Outlier {
					whole = false
				}
			}
			return nil
		})
		if whole {
			return true
		}
	}
	return false
}

// apart says whether a station that others take for joined has itself out of the room by an extremity that they have soft-failed: it was allowed by
// the room as it was when it came there, not as it was when it came to them. Or it does not hold the room. So it cannot send the further event that would bring them together.
func (w *world) apart(s, other *station) bool {
	if w.mask(other)&(1<<other.index) != 0 {
		return false
	}
	if other.record() == nil { // its join was taken in when it had given it up
		w.mute |= 1 << other.index
		return true
	}
	found := false
	s.store.View(func(r *store.Reader) error {
		for _, id := range other.record().Forward {
			if e, err := r.Event(id); err == nil && e.Verdict == store.SoftFailed {
				found = true
			}
		}
		return nil
	})
	if found {
		w.mute |= 1 << other.index
	}
	return found
}

// difference is what two stations' states differ in.
func (w *world) difference(a, b *station) string {
	read := func(s *station) map[string]eventgraph.EventID {
		all := map[string]eventgraph.EventID{}
		if state, err := s.rooms.CurrentState(w.room); err == nil {
			state.Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
				all[t.Type+" "+t.Key] = id
				return nil
			})
		}
		return all
	}
	ours, theirs := read(a), read(b)
	text := ""
	for _, s := range w.stations {
		for _, id := range s.waiting() {
			text += fmt.Sprintf("\n  waiting at %d: %s", s.index, w.name(id))
		}
	}
	keys := slices.Sorted(maps.Keys(ours))
	for k := range theirs {
		if _, both := ours[k]; !both {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		if ours[k] != theirs[k] {
			text += fmt.Sprintf("\n  %s: %s and %s", k, w.name(ours[k]), w.name(theirs[k]))
		}
	}
	return text
}

// name tells what is known of an event at each station.
func (w *world) name(id eventgraph.EventID) string {
	if id == "" {
		return "nothing"
	}
	text, verdicts := string(id[1:6]), ""
	for i, s := range w.stations {
		s.store.View(func(r *store.Reader) error {
			e, err := r.Event(id)
			if err != nil {
				return nil
			}
			if verdicts == "" {
				key, _ := e.StateKey()
				text += fmt.Sprintf(" (%s %s %q by %s: %.80s)", e.Type(), e.Membership(), w.who(eventgraph.UserID(key)), w.who(e.Sender()), e.Content())
			}
			verdicts += fmt.Sprintf(" %d:%s", i, []string{"-", "accepted", "soft-failed", "rejected", "outlier"}[e.Verdict])
			return nil
		})
	}
	return text + verdicts
}

// who is the script's word for a user.
func (w *world) who(user eventgraph.UserID) string {
	for i, s := range w.stations {
		if user.Server() == s.name {
			return user.Localpart() + fmt.Sprint(i)
		}
	}
	return string(user)
}

// checkComplete: a joined server holds every event that another of them holds and that it may see.
func (w *world) checkComplete(i int, in uint8, held []holding) {
	for j, other := range w.stations {
		if i == j || in&(1<<j) == 0 {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(held[j].events)) {
			e := held[j].events[id]
			if e.Verdict == store.Rejected || e.Verdict == store.Outlier {
				continue
			}
			if ours := held[i].events[id]; ours != nil && ours.Verdict != store.Outlier {
				continue
			}
			if !w.accepted(id, in, held) {
				continue // soft-failed by all: whoever joined after it has nothing that leads to it
			}
			if w.stalled {
				if rightly, err := w.lacksRightly(i, j, e, held); err == nil && rightly {
					continue
				}
			}
			if may, err := other.rooms.MaySeeServer(w.stations[i].name, e); err != nil || may {
				w.alarm("event missing", "%d does not hold %s (may see: %v, %v)", i, w.name(id), may, err)
				return
			}
		}
	}
}

// accepted says whether one of the stations has accepted the event.
func (w *world) accepted(id eventgraph.EventID, in uint8, held []holding) bool {
	for i := range held {
		if e := held[i].events[id]; in&(1<<i) != 0 && e != nil && e.Verdict == store.Accepted {
			return true
		}
	}
	return false
}

// checkVerdicts: what one rejects nobody accepts.
func (w *world) checkVerdicts(in uint8, held []holding) {
	for i := range w.stations {
		for id, e := range held[i].events {
			if e.Verdict != store.Rejected || in&(1<<i) == 0 {
				continue
			}
			for j := range w.stations {
				if theirs := held[j].events[id]; in&(1<<j) != 0 && theirs != nil && (theirs.Verdict == store.Accepted || theirs.Verdict == store.SoftFailed) {
					w.alarm("verdicts differ", "%s", w.name(id))
					return
				}
			}
		}
	}
}

// checkOrder finds each event that one station holds above its parents in the room's order. Only what came late, and was shown as news, may stand above
// what rests on it; and what came so late that what rests on it stood below its parents already, below those. No two events have one order, each is
// found by its own, and the room's record counts them right.
func (w *world) checkOrder(i int, held holding) {
	record := w.stations[i].record()
	if record == nil {
		return
	}
	index := map[int64]eventgraph.EventID{}
	err := w.stations[i].store.View(func(r *store.Reader) error {
		return r.Ordered(w.room, math.MinInt64, func(order int64, id eventgraph.EventID, _ bool) (bool, error) {
			index[order] = id
			return true, nil
		})
	})
	if err != nil {
		w.alarm("internal error", "order of %d: %v", i, err)
	}
	if n := record.NextOrder - record.PrevOrder - 2 - record.Skipped; n != int64(len(index)) {
		w.alarm("order", "at %d %d events are counted, and %d have an order", i, n, len(index))
	}
	lowest := map[eventgraph.EventID]int64{} // of what rests on the event
	for id, e := range held.events {
		if at := index[e.Order]; e.Order != 0 && at != id {
			w.alarm("order", "at %d %s has %d, which is that of %q", i, w.name(id), e.Order, at)
		}
		for _, id := range e.PrevEvents() {
			if low, ok := lowest[id]; e.Order != 0 && (!ok || e.Order < low) {
				lowest[id] = e.Order
			}
		}
	}
	for id, e := range held.events {
		for _, on := range e.PrevEvents() {
			parent := held.events[on]
			if e.Order == 0 || parent == nil || parent.Order == 0 || parent.Order < e.Order {
				continue
			}
			low, rests := lowest[id]
			late := parent.Order > 0 && !inBreak(record.Breaks, parent.Order) && (e.Position == 0 || parent.Position == 0 || parent.Position > e.Position)
			if !late && !(rests && low < parent.Order) {
				w.alarm("order", "at %d %s has %d, and %s, on which it rests, %d", i, w.name(id), e.Order, w.name(on), parent.Order)
			}
		}
	}
}

// checkShown: nothing is shown to clients that did not pass, and the member index is that of the state.
func (w *world) checkShown(i int, held holding) {
	s := w.stations[i]
	if s.record() == nil {
		return
	}
	for id, e := range held.events {
		if e.Verdict != store.SoftFailed && e.Verdict != store.Rejected {
			continue
		}
		if e.Position != 0 && e.Verdict == store.Rejected {
			w.alarm("shown", "rejected at %d and in its timeline: %s", i, w.name(id))
		}
		for _, letter := range []string{"a", "b"} {
			if may, err := s.rooms.MaySeeUser(w.user(fmt.Sprint(letter, i)), e); err != nil || may {
				w.alarm("shown", "%d shows %s (%v)", i, w.name(id), err)
			}
		}
	}
	err := s.store.View(func(r *store.Reader) error {
		for _, id := range s.record().Forward {
			if e, err := r.Event(id); err != nil || e.Verdict != store.Accepted {
				w.alarm("shown", "extremity of %d: %s (%v)", i, w.name(id), err)
			}
		}
		state, err := s.rooms.CurrentState(w.room)
		if err != nil {
			return err
		}
		return state.Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
			if t.Type != "m.room.member" {
				return nil
			}
			m, err := r.Member(w.room, eventgraph.UserID(t.Key))
			if err != nil {
				return err
			}
			if !m.Outside && m.Event != id {
				w.alarm("member index", "at %d %s is %s by %s, and in the state by %s", i, w.who(m.User), m.Membership, w.name(m.Event), w.name(id))
			}
			return nil
		})
	})
	if err != nil {
		w.alarm("internal error", "state of %d: %v", i, err)
	}
}

// checkRemoved: a server holds nothing that was sent when its sender knew that the server was out of the room, unless one who had the event took
// it for joined again, or it may be seen by anybody. What a fork step sent it does not count: that step is the part of a server which heeds
// nothing, no rule keeps such a one from sending, and the receiver, to whom the sender is in the room, is not to refuse it (SS API, Checks
// performed on receipt of a PDU).
func (w *world) checkRemoved(held []holding) {
	for _, maker := range w.stations {
		for id, e := range held[maker.index].events {
			if e.Sender().Server() != maker.name || e.Verdict == store.Outlier || e.Verdict == store.Rejected || w.worldReadable(maker, e) {
				continue
			}
			for y, gone := range w.stations {
				if y == maker.index || held[y].events[id] == nil && !slices.Contains(gone.waiting(), id) {
					continue
				}
				if maker.rooms.InRoomAt(w.room, e.StateBefore, gone.name) || maker.rooms.InRoomAt(w.room, e.StateAfter, gone.name) {
					continue
				}
				if w.invited(maker, e.StateBefore, gone) || w.invited(maker, e.StateAfter, gone) {
					continue
				}
				if w.forced[id]&(1<<y) != 0 {
					continue
				}
				if !w.excused(id, y, held) && !w.chained(id, y, held) {
					w.alarm("given to the removed", "%d holds %s, of %d, who knew that it is out; visibility %q", y, w.name(id), maker.index, w.visibility(maker, e.StateBefore))
					return
				}
			}
		}
	}
}

// chained says whether the event is one that station y may have in any case, or of the auth chain of one: the membership events of its users,
// what anybody, or the invited, may see, and what a fork step sent it, though everybody may have rejected that.
func (w *world) chained(id eventgraph.EventID, y int, held []holding) bool {
	all := map[eventgraph.EventID]bool{}
	var todo []eventgraph.EventID
	for id, to := range w.forced {
		for _, s := range w.stations {
			s.store.View(func(r *store.Reader) error {
				if e, err := r.Event(id); err == nil && to&(1<<y) != 0 {
					todo = append(todo, e.AuthEvents()...)
				}
				return nil
			})
		}
	}
	for i := range held {
		for id, e := range held[i].events {
			key, ok := e.StateKey()
			own := ok && e.Type() == "m.room.member" && eventgraph.UserID(key).Server() == w.stations[y].name
			if own || w.worldReadable(w.stations[i], e) || w.invited(w.stations[i], e.StateBefore, w.stations[y]) || w.invited(w.stations[i], e.StateAfter, w.stations[y]) {
				todo = append(todo, id)
			}
		}
	}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if e := w.any(id, held); e != nil && !all[id] {
			all[id] = true
			todo = append(todo, e.AuthEvents()...)
		}
	}
	return all[id]
}

// worldReadable says whether anybody may see the event.
func (w *world) worldReadable(s *station, e *store.StoredEvent) bool {
	return w.visibility(s, e.StateBefore) == "world_readable" || w.visibility(s, e.StateAfter) == "world_readable"
}

func (w *world) visibility(s *station, root eventgraph.Hash) string {
	e, err := s.rooms.StateAt(w.room, root).Event(eventgraph.StateTuple{Type: "m.room.history_visibility"})
	if err != nil || e == nil {
		return ""
	}
	v, _ := canonicaljson.GetString(e.Content(), "history_visibility")
	return v
}

// invited says whether a user of the other station is invited in a state that the invited may see.
func (w *world) invited(s *station, root eventgraph.Hash, other *station) bool {
	if w.visibility(s, root) != "invited" {
		return false
	}
	for _, letter := range []string{"a", "b"} {
		key := string(w.user(fmt.Sprint(letter, other.index)))
		if e, err := s.rooms.StateAt(w.room, root).Event(eventgraph.StateTuple{Type: "m.room.member", Key: key}); err == nil && e != nil && e.Membership() == "invite" {
			return true
		}
	}
	return false
}

// excused says whether somebody who held the event took station y for joined then, or later, or with the event as part of a state: that is told to who is
// in the room in it.
func (w *world) excused(id eventgraph.EventID, y int, held []holding) bool {
	for z, s := range w.stations {
		e := held[z].events[id]
		if z == y || e == nil {
			continue
		}
		if w.inState(id, y, z, held[z]) {
			return true
		}
		for i, m := range w.past {
			if m.joined[z]&(1<<y) != 0 && (m.position[z] >= e.Position || i+1 < len(w.past) && w.past[i+1].position[z] >= e.Position) {
				return true
			}
		}
		joined := false // within a step
		s.store.View(func(r *store.Reader) error {
			return r.RoomChanges(w.room, max(e.Position, 1)-1, s.store.Position(), func(_ store.Position, id eventgraph.EventID) (bool, error) {
				then, err := r.Event(id)
				if err == nil {
					joined = s.rooms.InRoomAt(w.room, then.RoomState, w.stations[y].name)
				}
				return !joined, err
			})
		})
		if joined {
			return true
		}
	}
	return false
}

// inState says whether station z has accepted something in whose state, before or after it, the event is, and station y in the room.
func (w *world) inState(id eventgraph.EventID, y, z int, held holding) bool {
	rooms, name := w.stations[z].rooms, w.stations[y].name
	tuple, ok := held.events[id].Tuple()
	if !ok {
		return false
	}
	for _, at := range held.events {
		if at.Verdict != store.Accepted {
			continue
		}
		for _, root := range []eventgraph.Hash{at.StateBefore, at.StateAfter} {
			e, err := rooms.StateAt(w.room, root).Event(tuple)
			if err == nil && e != nil && e.ID() == id && rooms.InRoomAt(w.room, root, name) {
				return true
			}
		}
	}
	return false
}

// count sums up what a history had.
func (w *world) count(c *tally) {
	c.histories++
	c.stations += len(w.stations)
	c.steps += w.step
	c.requests += int(w.requests)
	if w.mute != 0 {
		c.mute = append(c.mute, w.script.number)
	}
	if w.deserted {
		c.deserted = append(c.deserted, w.script.number)
	}
	if w.stalled {
		c.stalemates = append(c.stalemates, w.script.number)
	}
	if w.again {
		c.again = append(c.again, w.script.number)
	}
	held := w.holdings()
	seen := map[eventgraph.EventID]uint8{}
	for i := range held {
		for id, e := range held[i].events {
			seen[id] |= 1 << e.Verdict
			if e.Gap {
				c.gaps++
			}
		}
	}
	for id, verdicts := range seen {
		c.events++
		for v := range c.verdicts {
			if verdicts&(1<<v) != 0 {
				c.verdicts[v]++
			}
		}
		if e := w.any(id, held); len(e.PrevEvents()) > 1 {
			c.merges++
		}
	}
	for endpoint, n := range w.served {
		c.served[endpoint] += n
	}
	for i, s := range w.stations {
		if w.mask(s)&(1<<i) != 0 {
			c.joined++
		} else if s.record() != nil {
			c.gone++
		}
	}
}

func (w *world) any(id eventgraph.EventID, held []holding) *store.StoredEvent {
	for _, h := range held {
		if e := h.events[id]; e != nil {
			return e
		}
	}
	return nil
}

// tally is what histories had together.
type tally struct {
	histories, stations, steps, requests int
	events, merges, gaps, joined, gone   int
	stalemates                           []uint64 // the numbers of the histories that ended in one
	again                                []uint64 // those in which one further event of each was not enough: errUnmerged
	mute                                 []uint64 // those with servers that others take for joined and that cannot speak: apart
	deserted                             []uint64 // those in which by all events nobody is left in the room: nobodyLeft
	verdicts                             [5]int
	served                               map[string]int
}

func newTally() *tally { return &tally{served: map[string]int{}} }

func (c *tally) add(o *tally) {
	c.histories += o.histories
	c.stations += o.stations
	c.steps += o.steps
	c.requests += o.requests
	c.events += o.events
	c.merges += o.merges
	c.gaps += o.gaps
	c.joined += o.joined
	c.gone += o.gone
	c.stalemates = append(c.stalemates, o.stalemates...)
	c.again = append(c.again, o.again...)
	c.mute = append(c.mute, o.mute...)
	c.deserted = append(c.deserted, o.deserted...)
	for v, n := range o.verdicts {
		c.verdicts[v] += n
	}
	for endpoint, n := range o.served {
		c.served[endpoint] += n
	}
}

func (c *tally) String() string {
	return fmt.Sprintf("%d histories, %d nodes, %d steps, %d requests; %d events, %d of them merges, soft-failed somewhere %d, rejected somewhere %d, outliers somewhere %d, gaps %d; at the end %d joined, %d gone; %d stalemates, %d with more further events, %d with mute servers, %d deserted",
		c.histories, c.stations, c.steps, c.requests, c.events, c.merges, c.verdicts[store.SoftFailed], c.verdicts[store.Rejected], c.verdicts[store.Outlier], c.gaps, c.joined, c.gone, len(c.stalemates), len(c.again), len(c.mute), len(c.deserted))
}
