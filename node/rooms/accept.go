package rooms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// BasisKind is what an event rests on (design.md §3.1).
type BasisKind uint8

const (
	Parents BasisKind = iota // its prev_events, all held
	Claimed                  // the state before it as a room server claims it
	Nothing                  // nothing: an outlier
)

// Basis is whence an event came and what it rests on.
type Basis struct {
	Kind     BasisKind
	State    []eventgraph.EventID        // Claimed: all held, at least as outliers
	Backfill bool                        // before the timeline: moves backward extremities, makes no ChangeEvent
	Origin   eventgraph.ServerName       // who gave it to us, "" if we ourselves; the room's server ACL must allow it
	Announce bool                        // taken in by send_join, send_leave or send_knock: it is on us to tell the room's servers (store.KeyHandshake)
	Unsigned bool                        // the room's policy server was asked to sign the event, and did not: without its signature it is soft-failed
	Declined map[eventgraph.EventID]bool // Backfill: what the room's policy server was asked to sign, and has declined: it is soft-failed
	New      *NewRoom                    // Nothing: if the room is not here, it is being joined, and this is known of it
}

// Result of Accept. Already: the event was held with this verdict before (an outlier that gets its place is not Already).
type Result struct {
	Verdict  store.Verdict
	Reason   string // why rejected or soft-failed
	Already  bool
	Position store.Position
}

// Outcome is what became of one event of AcceptAll.
type Outcome struct {
	Result
	Err error // *Refusal or *MissingError
}

// Accept is the only way in: signatures, content hash, auth by auth events, by the state before, by the current state, by the room's policy
// server; then one commit.
// It returns *MissingError, *Refusal (nothing stored: bad signature, room unknown, the giver denied by the room's server
// ACL, not allowed by the state that was claimed), or errors of the store. A rejected or soft-failed event is
// stored and is no error.
func (r *Rooms) Accept(ctx context.Context, e *eventgraph.Event, b Basis) (Result, error) {
	outcomes, err := r.AcceptAll(ctx, []*eventgraph.Event{e}, b)
	if err != nil {
		return Result{}, err
	}
	return outcomes[0].Result, outcomes[0].Err
}

// AcceptAll is Accept for a run of events of one room, in order, parents first. A Refusal is in its Outcome and the run goes on. So it does after an
// event that cannot be taken in now (Missing), whose descendants then miss it too; but for a claimed state, and in a page of backfill, it stops
// there, after committing those before. So there are as many outcomes as events looked at. A Claimed state is that before the
// first event; the others rest on their parents. A page of backfill must come in one call, oldest first: each event gets its place below all that is held and rests on it (order.go).
func (r *Rooms) AcceptAll(ctx context.Context, events []*eventgraph.Event, b Basis) ([]Outcome, error) {
	if len(events) == 0 {
		return nil, nil
	}
	room := events[0].RoomID()
	for _, e := range events {
		if e.RoomID() != room {
			return nil, fmt.Errorf("accept: events of %s and %s in one run", room, e.RoomID())
		}
	}
	verified, err := r.verifyAll(ctx, events)
	if err != nil {
		return nil, err
	}
	outcomes, err := r.acceptRun(ctx, events, verified, b, nil)
	if errors.Is(err, errTooMuch) {
		outcomes, err = r.acceptSingly(ctx, events, verified, b)
	}
	return outcomes, err
}

// acceptRun is AcceptAll in one turn; errTooMuch. orders are those of a page of backfill, nil: to be reserved.
func (r *Rooms) acceptRun(ctx context.Context, events []*eventgraph.Event, verified []error, b Basis, reserved []int64) ([]Outcome, error) {
	room := events[0].RoomID()
	var outcomes []Outcome
	var results []Result
	err := r.inTurn(ctx, room, func(run *run) (err error) {
		outcomes, results = nil, make([]Result, len(events))
		if b.Kind == Nothing && b.New != nil && !run.live.exists {
			if run.live, err = b.New.unborn(room); err != nil {
				return err
			}
			defer func() { run.live = live{} }() // for others in this run there is no room
		}
		orders, giveBack := reserved, func() {}
		if orders == nil {
			orders = make([]int64, len(events))
		}
		if reserved == nil && b.Backfill && b.Kind != Nothing && run.live.exists {
			if orders, giveBack, err = run.reserve(events, nil); err != nil {
				return err
			}
		}
		placed := false
		for i, e := range events {
			in := incoming{event: e, basis: b, signature: verified[i], result: &results[i], order: orders[i]}
			if b.Kind == Claimed && i > 0 {
				in.basis.Kind, in.basis.State = Parents, nil
			}
			err := run.accept(in)
			if err != nil && !isOutcome(err) {
				return err
			}
			placed = placed || (err == nil && !results[i].Already)
			outcomes = append(outcomes, Outcome{Err: err})
			if stops(err, b) {
				break
			}
			if err := run.whole(); err != nil {
				return err
			}
		}
		if !placed {
			giveBack()
		} else if b.Backfill && b.Kind != Nothing {
			run.put(&write{also: func(tx *store.Tx) error {
				_, err := tx.Log(store.Change{Kind: store.ChangeBackfill, Room: room})
				return err
			}})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range outcomes {
		outcomes[i].Result = results[i]
	}
	return outcomes, nil
}

// isOutcome says whether err speaks of the one event, not of the store.
func isOutcome(err error) bool {
	var refusal *Refusal
	var missing *MissingError
	return errors.As(err, &refusal) || errors.As(err, &missing)
}

// incoming is one event on its way in.
type incoming struct {
	event     *eventgraph.Event
	copy      *eventgraph.Event // as it came now, where event is as it came before; its signatures were not checked. Else nil
	basis     Basis
	signature error // what the check of its signatures found, before this room's turn
	order     int64 // backfill, past: its place in history. 0: it is news, or for backfill: to be placed (place)
	history   bool  // it is the past, and has its order by place if it has none yet
	local     bool  // made here: anything but Accepted is a Refusal and is not stored
	join      bool  // the join by which we enter the room: what we hold of the room's current state is no judge of it
	past      bool  // the timeline rests on it, and it was held as an outlier, or is forbidden by what came since: it is no extremity (reservePast)
	txn       *store.ClientTxn
	result    *Result
}

// judgement is what the checks on an event found.
type judgement struct {
	event   *eventgraph.Event // as it is kept: with the policy server's signature if a copy brought it
	verdict store.Verdict
	reason  string
	before  eventgraph.Hash
	gap     bool // some of its prev_events are not held
	past    bool // see incoming; as far as claims tell
}

// accept is the one way in, for one event (SS API, Checks performed on receipt of a PDU). Steps 1 and 3 (format and content hash)
// were ParseEvent's. It returns nil with in.result set, *Refusal, *MissingError, or an error of the store.
func (run *run) accept(in incoming) error {
	e := in.event
	if in.result == nil {
		in.result = new(Result)
	}
	if !run.live.exists && (in.basis.New == nil || in.basis.Kind != Nothing) {
		return refuse("M_NOT_FOUND", "room %s is not known here", run.rm.id)
	}
	if e.Version() != run.live.Version {
		return refuse("M_INCOMPATIBLE_ROOM_VERSION", "the room has version %s, the event %s", run.live.Version, e.Version())
	}
	if allowed, err := run.serverAllowed(in.basis.Origin); err != nil {
		return err
	} else if !allowed {
		return refuse("M_FORBIDDEN", "the room's server ACL denies %s", in.basis.Origin)
	}

	// Held before? A copy with the right content hash replaces one without.
	held, err := run.stored(e.ID())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	better := held != nil && held.HashMismatch() && !e.HashMismatch() && !held.Purged
	if held != nil && !better {
		if decided(held, in.basis.Kind) {
			*in.result = Result{Verdict: held.Verdict, Already: true, Position: held.Position}
			return nil
		}
		in.copy, e, in.event = e, held.Event, held.Event // whose signatures were checked when it came
	} else if in.signature != nil {
		return in.signature // step 2
	}
	if better && held.Verdict != store.Rejected && decided(held, in.basis.Kind) {
		run.replace(held, e)
		*in.result = Result{Verdict: held.Verdict, Already: true, Position: held.Position}
		return nil
	}

	if in.basis.Kind == Claimed {
		if err := run.ownParents(e); err != nil {
			return err
		}
		// A claim counts only where the parents do not tell.
		lacking, err := run.withoutPlace(e)
		if err != nil {
			return err
		}
		if len(lacking) == 0 {
			in.basis.Kind, in.basis.State = Parents, nil
		}
	}
	if held != nil && held.Verdict == store.Outlier && in.basis.Kind == Parents && !in.basis.Backfill && !in.past {
		if in.past, err = run.covered(e.ID()); err != nil {
			return err
		}
	}
	j, err := run.judge(in, held)
	if err != nil {
		return err
	}
	in.event = j.event
	in.past = in.past || j.past
	if in.past && in.order == 0 && !in.history && j.verdict != store.Rejected { // now: what it rests on has its place
		if err := run.reservePast(&in); err != nil {
			return err
		}
	}
	if in.local && j.verdict != store.Accepted {
		return refuse("M_FORBIDDEN", "%s", j.reason)
	}
	*in.result = Result{Verdict: j.verdict, Reason: j.reason}
	if j.verdict == store.Rejected || j.verdict == store.SoftFailed {
		run.r.log.Info("event not shown", "event", e.ID(), "room", run.rm.id, "origin", in.basis.Origin,
			"rejected", j.verdict == store.Rejected, "reason", j.reason)
	}
	return run.take(in, held, j)
}

// reservePast gives an event of the past its place. In history it has one if that is above what it rests on, or if what it rests on is history.
// Else there is none left for it: what came after it was shown, and it never was, so it is news, above all that was shown. But state that has been
// replaced since stays in history: clients take the last that they are shown for what it is.
func (run *run) reservePast(in *incoming) error {
	orders, giveBack, err := run.reserve([]*eventgraph.Event{in.event}, nil)
	if err != nil {
		return err
	}
	if in.order = orders[0]; in.order == 0 {
		if in.order, err = run.between(in.event); err != nil {
			return err
		}
	}
	highest, _, err := run.highestUnder(in.event, false)
	if err != nil {
		return err
	}
	if in.order <= 0 && in.basis.Kind == Claimed { // what it rests on is not known: what rests on it tells
		edges := maxReserveEdges
		on, err := run.lowestOn(in.event, nil, &edges)
		if err != nil {
			return err
		}
		highest = max(highest, on)
	}
	if highest > 0 && in.order < highest {
		news := true
		if tuple, ok := in.event.Tuple(); ok {
			current, _, err := run.state(run.live.State).EventID(tuple)
			if err != nil {
				return err
			}
			news = current == in.event.ID()
		}
		if news {
			giveBack()
			in.order = 0
			return nil
		}
	}
	if in.order == 0 {
		return run.placeBelow(in)
	}
	return nil
}

// decided says whether a held event has its final verdict, as far as an event with such a basis can get one.
func decided(held *store.StoredEvent, kind BasisKind) bool {
	return kind == Nothing || placed(held)
}

// placed says whether the state before the event is known. Outliers, and events rejected as outliers, have no place yet.
func placed(s *store.StoredEvent) bool {
	switch s.Verdict {
	case store.Accepted, store.SoftFailed:
		return true
	case store.Rejected:
		return s.StateAfter != eventgraph.Hash{} || s.Type() == "m.room.create"
	}
	return false
}

// judge makes the checks 4 to 7, and finds the state before the event.
func (run *run) judge(in incoming, held *store.StoredEvent) (judgement, error) {
	keep := run.keepNodes(in.basis.Kind == Claimed)
	j, err := run.authorise(in, held)
	if err == nil && j.verdict == store.Accepted && in.basis.Backfill && in.basis.Declined[in.event.ID()] {
		j.verdict, j.reason = store.SoftFailed, "the room's policy server has declined it"
	}
	// Steps 6 and 7 are by the current state. History before the timeline and the join by which we come are not measured by it, nor what the
	// timeline rests on already; but for what of the history the policy server has declined.
	if err != nil || j.verdict != store.Accepted || in.basis.Backfill || in.past || in.join || in.event.Type() == "m.room.create" {
		return j, err
	}
	now := run.live.State
	if in.basis.Kind == Claimed {
		// What we hold may be as old as the gap.
		if now, err = run.merge(append(run.tipStates(), j.before)); err != nil {
			return j, err
		}
	}
	if err := run.byCurrentState(in, now, &j); err != nil || j.verdict != store.Accepted {
		return j, err
	}
	if held != nil && held.Verdict == store.Outlier && in.basis.Kind == Parents && !j.past {
		if j.past, err = run.claimedPast(in.event, j.before); j.past || err != nil {
			return j, err
		}
	}
	signed, err := run.bySignature(in.event, in.copy, now)
	var missing *MissingError
	if errors.As(err, &missing) && in.basis.Unsigned {
		if in.local { // LeaveUnsigned
			return j, nil
		}
		j.verdict, j.reason = store.SoftFailed, "the room's policy server has not signed it"
		return j, nil
	}
	if err != nil {
		keep()
	}
	j.event = signed
	return j, err
}

// authorise makes the checks 4 and 5, by what the event itself rests on: they are the same whenever and in whatever order events come.
func (run *run) authorise(in incoming, held *store.StoredEvent) (judgement, error) {
	e := in.event
	j := judgement{event: e, verdict: store.Accepted}
	reject := func(err error, what string) error {
		var refused *auth.Refused
		if !errors.As(err, &refused) {
			return err // nil, or of the store
		}
		j.verdict, j.reason = store.Rejected, what+": "+refused.Error()
		return nil
	}

	// Step 4: by its auth events. All of them must be held; a rejected one rejects this one too.
	if in.basis.Kind == Parents && !in.basis.Backfill {
		if err := run.placeAuthEvents(e); err != nil {
			return j, err
		}
	}
	authEvents, rejected, missing, err := run.authEvents(e)
	if err != nil {
		return j, err
	}
	if len(missing) > 0 {
		return j, &MissingError{Events: missing}
	}
	err = auth.CheckAuthEvents(e, authEvents, func(id eventgraph.EventID) bool { return rejected[id] })
	if err := reject(err, "by its auth events"); err != nil {
		return j, err
	}
	if e.Type() == "m.room.create" && e.ID() != run.live.Create {
		// The rules look at a create event alone; state resolution would have to choose between the two.
		j.verdict, j.reason = store.Rejected, "the room has another create event"
	}
	if held != nil && held.Verdict == store.Rejected && !held.HashMismatch() {
		j.verdict, j.reason = store.Rejected, "rejected before" // as an outlier; it only gets its place now
	}
	if in.basis.Kind == Nothing {
		if j.verdict == store.Accepted {
			j.verdict = store.Outlier
		}
		return j, nil
	}

	// Step 5: by the state before.
	keep := run.keepNodes(in.basis.Kind == Claimed)
	j.before, j.gap, err = run.stateBefore(in)
	if err != nil {
		return j, err
	}
	if j.verdict == store.Accepted {
		if err := reject(auth.Check(e, run.state(j.before)), "by the state before it"); err != nil {
			return j, err
		}
		if j.verdict == store.Rejected && in.basis.Kind == Claimed {
			// The state is only a claim: another server's may be truer, so this is no verdict to keep.
			keep()
			return j, refuse("M_FORBIDDEN", "not allowed by the state that was claimed before it: %s", j.reason)
		}
	}

	return j, nil
}

// authEvents reads the events that e names as its auth events.
func (run *run) authEvents(e *eventgraph.Event) (events []*eventgraph.Event, rejected map[eventgraph.EventID]bool, missing []eventgraph.EventID, err error) {
	rejected = map[eventgraph.EventID]bool{}
	for _, id := range e.AuthEvents() {
		s, err := run.stored(id)
		if errors.Is(err, store.ErrNotFound) {
			missing = append(missing, id)
			continue
		}
		if err != nil {
			return nil, nil, nil, err
		}
		events = append(events, s.Event)
		rejected[id] = s.Verdict == store.Rejected
		if _, isState := s.Tuple(); !isState {
			run.size += citedBytes * len(s.AuthEvents()) // store.Tx.PutEvent writes them with e
		}
	}
	if run.live.traits.RoomIDFromCreate && e.Type() != "m.room.create" {
		// Not among its auth_events, but they rest on it (room version 12).
		create, err := run.stored(run.live.Create)
		switch {
		case errors.Is(err, store.ErrNotFound) && !run.live.exists: // of a room that is being joined it may come later
			return nil, nil, append(missing, run.live.Create), nil
		case err != nil:
			return nil, nil, nil, fmt.Errorf("create event of %s: %w", run.rm.id, err)
		}
		events = append(events, create.Event)
	}
	return events, rejected, missing, nil
}

// replace puts the right copy of an event, whose content hash fits, in the place of one whose does not.
func (run *run) replace(held *store.StoredEvent, e *eventgraph.Event) {
	s := run.changeable(held)
	if s.Event = e; s.RedactedBy != "" {
		reduce(s, e)
	}
	run.put(&write{event: s})
	run.rm.resolved = nil // by the content that the event had
}

// take gives a judged event its place: order, state after, extremities, the room's current state, redactions.
func (run *run) take(in incoming, held *store.StoredEvent, j judgement) error {
	run.carried = 0
	e := in.event
	s := &store.StoredEvent{
		Event: e, Verdict: j.verdict, StateBefore: j.before, StateAfter: j.before, Gap: j.gap,
		SentBy: in.txn, ReceivedTS: run.r.now().UnixMilli(),
	}
	if held != nil {
		s.RedactedBy, s.Related, s.ReceivedTS = held.RedactedBy, held.Related, held.ReceivedTS
		if s.RedactedBy != "" && held.HashMismatch() && !e.HashMismatch() { // the right copy has come, in full
			reduce(s, e)
		}
		run.rm.resolved = nil // by the verdict and the content that the event had
	}
	var err error
	if s.Height, err = heightOf(e, run.stored); err != nil {
		return err
	}
	w := &write{event: s, txn: in.txn, result: in.result}
	if j.verdict == store.Outlier || j.verdict == store.Rejected {
		run.put(w)
		if j.verdict == store.Rejected {
			err = run.consequences(in, s, w)
		} else if err = run.tie(w); err == nil {
			err = run.redactions(s, w)
		}
		if err != nil {
			run.broken = err
		}
		return err
	}

	if tuple, ok := e.Tuple(); ok {
		if s.StateAfter, err = run.with(j.before, tuple, e.ID(), s.Height); err != nil {
			return err
		}
	}
	s.Aside = in.basis.Backfill || in.past
	history := in.basis.Backfill || in.history || in.order != 0
	if history {
		if in.order == 0 {
			if err := run.place(&in); err != nil {
				return err
			}
		}
		s.Order = in.order
		run.live.Skipped--
		run.given(s.Order)
	} else {
		if in.join && j.gap {
			run.breakOff()
		}
		s.Order = run.live.NextOrder
		run.live.NextOrder++
	}
	run.dirty = true
	switch {
	case history: // no news
	case j.verdict == store.SoftFailed:
		w.change = store.ChangeSoftFailed
	default:
		w.change = store.ChangeEvent
		if in.basis.Announce {
			w.key = store.KeyHandshake
		}
	}
	run.put(w)
	err = run.consequences(in, s, w)
	if err != nil {
		run.broken = err // half an event is worse than none
	}
	return err
}

// consequences brings extremities, the room's current state and redactions up to an event that has its place, or is rejected.
func (run *run) consequences(in incoming, s *store.StoredEvent, w *write) error {
	proven, err := run.fillGaps(s)
	if err != nil {
		return err
	}
	if s.Verdict == store.Accepted && !in.basis.Backfill && !in.past {
		err = run.extend(in, s, w)
	} else if err = run.tie(w); w.change == store.ChangeEvent {
		s.RoomState = run.live.State
	}
	if err != nil {
		return err
	}
	if err := run.provenTies(proven); err != nil {
		return err
	}
	if rooted, err := run.rooted(s); err != nil {
		return err
	} else if !rooted {
		run.ties.forget(s.ID())
		run.ties.doubt()
	}
	if s.Verdict == store.Rejected {
		return nil
	}
	return run.redactions(s, w)
}

// extend makes an accepted event a forward extremity in the place of its ancestors, and brings the room's current state up to it.
func (run *run) extend(in incoming, s *store.StoredEvent, w *write) error {
	behind, err := run.ancestors(s, false)
	if err != nil {
		return err
	}
	covered, err := run.covered(s.ID())
	if err != nil {
		return err
	}
	before := maps.Clone(behind.found)
	added := newTip(s)
	if !covered { // else a mere claim would take away what no extremity replaces
		if err := run.claimedBefore(in, added, before); err != nil {
			return err
		}
	}
	added.alone = true
	tips := make([]tip, 0, len(run.live.tips)+1)
	for _, t := range run.live.tips {
		if _, ancestor := before[t.id]; !ancestor {
			tips = append(tips, t)
		} else if !t.alone || t.server != added.server {
			added.alone = false
		}
	}
	var out eventgraph.EventID
	if covered {
		s.Aside = true
		switch len(tips) {
		case 0:
			tips = slices.Clone(run.live.tips) // the last ones stay
		case len(run.live.tips):
		default:
			tips = builtOn(tips)
		}
	} else {
		tips, out = admitted(tips, added)
	}
	if out == s.ID() {
		s.Aside = true
		tips = slices.Clone(run.live.tips) // what it rests on stays
		run.leftOut(behind)
	} else {
		if out != "" {
			if err := run.setAside(out); err != nil {
				return err
			}
		}
		if err := run.reached(behind); err != nil {
			return err
		}
	}
	slices.SortFunc(tips, func(a, b tip) int { return strings.Compare(string(a.id), string(b.id)) })
	err = run.setTips(tips, w)
	s.RoomState = run.live.State
	return err
}

// claimedBefore adds to what comes before an event on a claim the extremities in the claimed state: what is in the state before an event comes
// before it. But a claim that names them, and leaves out what they rest on, does not make that forgotten: they stay where the state after them has
// what the claim lacks or sets back, or who may do what in the room would be another without them (ruleOtherwise). Then both states are
// resolved. By the join by which we come they all go.
func (run *run) claimedBefore(in incoming, added tip, before map[eventgraph.EventID]bool) error {
	claimed := map[eventgraph.EventID]bool{}
	for _, id := range in.basis.State {
		claimed[id] = true
	}
	with, without := []eventgraph.Hash{added.after}, []eventgraph.Hash{added.after}
	var named []eventgraph.EventID
	for _, t := range run.live.tips {
		if _, ancestor := before[t.id]; ancestor {
			continue
		}
		with = append(with, t.after)
		goes := claimed[t.id]
		if goes && !in.join {
			back, err := run.setsBack(t.after, added)
			if err != nil {
				return err
			}
			goes = !back
		}
		if goes {
			named = append(named, t.id)
		} else {
			without = append(without, t.after)
		}
	}
	if len(named) == 0 {
		return nil
	}
	if !in.join {
		as, err := run.merge(with)
		if err != nil {
			return err
		}
		other, err := run.merge(without)
		if err != nil {
			return err
		}
		if differ, err := run.ruleOtherwise(as, other); differ || err != nil {
			return err
		}
	}
	for _, id := range named {
		before[id] = true
	}
	return nil
}

// setAside makes one that was an extremity no part of what the room's current state is made of.
func (run *run) setAside(id eventgraph.EventID) error {
	held, err := run.stored(id)
	if err != nil {
		return err
	}
	s := run.changeable(held)
	s.Aside = true
	run.put(&write{event: s})
	run.ties = ties{} // it may have tied others
	return nil
}

// setTips sets the forward extremities, sorted, and resolves the room's current state.
func (run *run) setTips(tips []tip, w *write) (err error) {
	run.live.tips = tips
	run.live.Forward = make([]eventgraph.EventID, len(tips))
	for i, t := range tips {
		run.live.Forward[i] = t.id
	}
	run.dirty = true

	was := run.live.State
	if run.live.State, err = run.merge(run.tipStates()); err != nil {
		return err
	}
	w.members, err = run.memberChanges(was, run.live.State)
	return err
}
