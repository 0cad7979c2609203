package federation

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// This file is one visit to a room where events wait: which lack what, what can be taken in by now, and whom to ask next. inbox.go says when a
// room is visited.

// visit works through a room's waiting events: what can be taken in is, what is missing is asked for, and so on until nothing more
// is to be had now.
func (f *Federation) visit(ctx context.Context, room eventgraph.RoomID) (empty, moved bool, read time.Duration, err error) {
	if j, err := f.storedJoin(room); err != nil || j != nil && !f.Rooms.InRoom(room, f.server) {
		return false, false, 0, err // it is woken when the room is here, or is not to be
	}
	start := time.Now()
	w, err := f.loadWaiting(ctx, room)
	read = time.Since(start)
	if err != nil {
		return false, false, read, err
	}
	for range inboxRounds {
		taken, err := f.takeReady(ctx, w)
		moved = moved || taken > 0
		if err != nil || len(w.events) == 0 {
			return len(w.events) == 0, moved, read, err
		}
		if f.inbox.isPatient(room) {
			break
		}
		if ctx.Err() != nil {
			return false, moved, read, ctx.Err()
		}
		next, ok := f.nextQuestion(w)
		if !ok {
			return false, moved, read, nil
		}
		if err := f.putQuestion(ctx, w, next); err != nil {
			f.Log.Debug("what is missing was not given", "room", room, "event", next.event, "server", next.server, "err", err)
		}
		// What is missing may have come meanwhile from somebody else. Only after a question: else whoever sends without pause keeps us
		// from asking.
		if f.inbox.wokenAgain(room) {
			break
		}
	}
	return false, moved, read, nil
}

// putQuestion puts one question, and notes that, and how it ended.
func (f *Federation) putQuestion(ctx context.Context, w *waiting, a ask) error {
	before := f.inbox.ask(w.room, a)
	err := f.obtain(ctx, w, a)
	if a.kind == askPolicy {
		f.endTurn(a.server, w.room, err)
	}
	switch {
	case errors.Is(err, errPolicyTurn), errors.Is(err, errAskedEnough):
		f.inbox.notAsked(w.room, a, before)
		w.notAsked[a] = true
	case isRefusal(err):
		f.inbox.refuse(w.room, a)
	}
	return err
}

// nextQuestion is what decide says; for the events that rest on such as wait too only when nothing else is to be asked. A question to a policy server
// has its place by then.
func (f *Federation) nextQuestion(w *waiting) (ask, bool) {
	holders := f.holders(w)
	tried := func(a ask) bool { // decide takes the first that was not
		return f.inbox.tried(w.room, a) || w.notAsked[a] ||
			a.kind == askPolicy && (f.policies.rests(a.server, f.Now()) || !f.policies.begin(a.server, w.room))
	}
	next, ok := decide(w.wants(), holders, tried)
	if !ok {
		behind := w.behind(holders.room, func(a ask) bool { return f.inbox.wasAskedInVain(w.room, a) })
		next, ok = decide(behind, holders, tried)
	}
	return next, ok
}

// waiting is what waits in a room while it is visited, without the PDUs.
type waiting struct {
	room     eventgraph.RoomID
	version  eventgraph.RoomVersion
	events   map[eventgraph.EventID]*waitingEvent
	children map[eventgraph.EventID][]eventgraph.EventID // which waiting events lack it
	ready    []eventgraph.EventID                        // those that seem to lack nothing
	arrived  int
	letIn    map[eventgraph.ServerName]bool // see noteGiver
	notAsked map[ask]bool                   // questions to a policy server that could not be put in this visit
}

type waitingEvent struct {
	arrival     int
	origin      eventgraph.ServerName
	prev        []eventgraph.EventID
	lacks       map[eventgraph.EventID]bool
	keys        []rooms.KeyNeeded
	policy      *rooms.PolicyNeeded
	stateBefore bool
}

// loadWaiting reads what waits in the room and drops what has waited too long or cannot be read.
func (f *Federation) loadWaiting(ctx context.Context, room eventgraph.RoomID) (*waiting, error) {
	version, known := f.versionOf(room)
	w := &waiting{
		room: room, version: version, events: map[eventgraph.EventID]*waitingEvent{}, children: map[eventgraph.EventID][]eventgraph.EventID{},
		letIn: map[eventgraph.ServerName]bool{}, notAsked: map[ask]bool{},
	}
	var dropped []eventgraph.EventID
	var all load
	outside := loads{}
	err := f.Store.View(func(r *store.Reader) error {
		return r.Inbox(room, func(item *store.InboxItem) (bool, error) {
			keep, isIn := inboxKeep, f.Rooms.InRoom(room, item.Origin)
			if !isIn {
				keep = inboxKeepOutside
			}
			e, err := eventgraph.ParseEvent(version, item.PDU)
			if !known || err != nil || f.inboxTime.waited(item) > keep {
				f.Log.Info("waiting event dropped", "room", room, "event", item.ID, "waited", f.inboxTime.waited(item), "err", err)
				dropped = append(dropped, item.ID)
				return true, nil
			}
			all.add(len(item.PDU))
			if !isIn {
				outside.add(item.Origin, len(item.PDU))
			}
			return true, errors.Join(f.noteGiver(r, w, e, item.Origin), w.add(r, e, item.Origin))
		})
	})
	if err != nil {
		return nil, err
	}
	f.inbox.counted(room, all, outside)
	return w, f.dropInbox(ctx, room, dropped)
}

// add takes up an event that waits; what it names and is not held at all, it lacks.
func (w *waiting) add(r *store.Reader, e *eventgraph.Event, origin eventgraph.ServerName) error {
	var lacks []eventgraph.EventID
	for _, ids := range [][]eventgraph.EventID{e.PrevEvents(), e.AuthEvents()} {
		for _, id := range ids {
			if _, held, err := r.HasEvent(id); err != nil {
				return err
			} else if !held {
				lacks = append(lacks, id)
			}
		}
	}
	w.arrived++
	w.events[e.ID()] = &waitingEvent{arrival: w.arrived, origin: origin, prev: e.PrevEvents()}
	w.park(e.ID(), lacks)
	return nil
}

// park lets an event wait for others; for none, it is ready.
func (w *waiting) park(id eventgraph.EventID, lacks []eventgraph.EventID) {
	e := w.events[id]
	e.lacks = map[eventgraph.EventID]bool{}
	for _, l := range lacks {
		if !e.lacks[l] {
			e.lacks[l] = true
			w.children[l] = append(w.children[l], id)
		}
	}
	if len(e.lacks) == 0 {
		w.ready = append(w.ready, id)
	}
}

// settle takes an event out. If it is held now, those that lacked it lack it no more.
func (w *waiting) settle(id eventgraph.EventID, held bool) {
	delete(w.events, id)
	if !held {
		return
	}
	for _, child := range w.children[id] {
		e := w.events[child]
		if e == nil || !e.lacks[id] {
			continue
		}
		if delete(e.lacks, id); len(e.lacks) == 0 && len(e.keys) == 0 {
			w.ready = append(w.ready, child)
		}
	}
	delete(w.children, id)
}

// maxWants bounds the events of a room for which something is asked in one round; those that came first have precedence.
const maxWants = 2000

// wants lists what is to be asked for: that which an event misses and which does not wait itself.
func (w *waiting) wants() []want {
	var all []want
	for id, e := range w.events {
		next := want{event: id, prev: e.prev, origin: e.origin}
		for l := range e.lacks {
			if w.events[l] == nil {
				next.Events = append(next.Events, l)
			}
		}
		slices.Sort(next.Events)
		next.Keys, next.StateBefore, next.Policy = e.keys, e.stateBefore, e.policy
		if len(next.Events) > 0 || len(next.Keys) > 0 || next.StateBefore || next.Policy != nil {
			all = append(all, next)
		}
	}
	slices.SortFunc(all, func(a, b want) int { return w.events[a.event].arrival - w.events[b.event].arrival })
	return all[:min(len(all), maxWants)]
}

// behind lists the events whose every lack waits itself and is stuck: all of the room's servers have refused the state before it, which is the last that is asked
// for. A server may be told of the state before a later event where it is not told of that before an earlier one: it was out of the room
// there, by the giver's side of a fork. So these events are let in by the state before them, like those whose parents nobody has.
func (w *waiting) behind(servers []eventgraph.ServerName, refused func(ask) bool) []want {
	if len(servers) == 0 {
		return nil
	}
	stuck := map[eventgraph.EventID]bool{}
	for id, e := range w.events {
		stuck[id] = len(e.keys) == 0 && !slices.ContainsFunc(servers, func(s eventgraph.ServerName) bool {
			return !refused(ask{kind: askState, server: s, event: id})
		})
	}
	var all []want
	for id, e := range w.events {
		behind := len(e.lacks) > 0 && len(e.keys) == 0
		for l := range e.lacks {
			behind = behind && stuck[l]
		}
		if behind {
			all = append(all, want{event: id, prev: e.prev, origin: e.origin, MissingError: rooms.MissingError{StateBefore: true}})
		}
	}
	slices.SortFunc(all, func(a, b want) int { return w.events[a.event].arrival - w.events[b.event].arrival })
	return all[:min(len(all), maxWants)]
}

// inboxRun is how many waiting events are put through Accept together.
const inboxRun = 100

// takeReady puts through Accept what is ready, and what becomes so by it. It returns how many events are held now.
func (f *Federation) takeReady(ctx context.Context, w *waiting) (taken int, err error) {
	for len(w.ready) > 0 {
		n, err := f.takeTogether(ctx, w, w.nextRun())
		taken += n
		if err != nil {
			return taken, err
		}
	}
	return taken, nil
}

// nextRun takes ready events, and those that lack only such as come before them in the run.
func (w *waiting) nextRun() []eventgraph.EventID {
	var run []eventgraph.EventID
	in := map[eventgraph.EventID]bool{}
	add := func(id eventgraph.EventID) {
		if !in[id] && w.events[id] != nil && len(run) < inboxRun {
			in[id] = true
			run = append(run, id)
		}
	}
	n := min(len(w.ready), inboxRun)
	for _, id := range w.ready[:n] {
		add(id)
	}
	w.ready = w.ready[n:]
	for i := 0; i < len(run); i++ {
		for _, child := range w.children[run[i]] {
			e := w.events[child]
			if e == nil || len(e.keys) > 0 {
				continue
			}
			rests := true
			for l := range e.lacks {
				rests = rests && in[l]
			}
			if rests {
				add(child)
			}
		}
	}
	return run
}

// takeTogether puts events that wait through Accept and drops from the inbox those that wait no more.
func (f *Federation) takeTogether(ctx context.Context, w *waiting, run []eventgraph.EventID) (taken int, err error) {
	var events []*eventgraph.Event
	err = f.Store.View(func(r *store.Reader) error {
		for _, id := range run {
			item, err := r.InboxItem(w.room, id)
			if errors.Is(err, store.ErrNotFound) {
				w.settle(id, false)
				continue
			}
			if err != nil {
				return err
			}
			if e, err := eventgraph.ParseEvent(w.version, item.PDU); err == nil { // it was parsed before
				events = append(events, e)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	var settled []eventgraph.EventID
	refused := map[eventgraph.EventID]bool{}
	events = eventgraph.SortTopologically(events)
	for len(events) > 0 {
		origin := w.events[events[0].ID()].origin
		n := slices.IndexFunc(events, func(e *eventgraph.Event) bool { return w.events[e.ID()].origin != origin })
		if n < 0 {
			n = len(events)
		}
		err := f.acceptEvents(ctx, events[:n], origin, func(e *eventgraph.Event, o rooms.Outcome) {
			var missing *rooms.MissingError
			var refusal *rooms.Refusal
			switch {
			case errors.As(o.Err, &missing):
				waits := w.events[e.ID()]
				waits.keys, waits.stateBefore, waits.policy = missing.Keys, missing.StateBefore, missing.Policy
				if w.park(e.ID(), missing.Events); len(waits.lacks) == 0 {
					w.ready = w.ready[:len(w.ready)-1] // it lacks something else
				}
				return
			case errors.As(o.Err, &refusal):
				refused[e.ID()] = true
				f.inbox.refused.Add(refusedFrom{e.ID(), origin}, f.Now())
			default:
				taken++
			}
			settled = append(settled, e.ID())
		})
		if err != nil {
			return taken, err
		}
		events = events[n:]
	}
	if err := f.dropInbox(ctx, w.room, settled); err != nil {
		return taken, err
	}
	for _, id := range settled {
		w.settle(id, !refused[id])
	}
	return taken, nil
}

func (f *Federation) dropInbox(ctx context.Context, room eventgraph.RoomID, ids []eventgraph.EventID) error {
	for part := range slices.Chunk(ids, inboxDrop) {
		_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
			for _, id := range part {
				if err := tx.DeleteInbox(room, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// inboxDrop is how many items are dropped in one write.
const inboxDrop = 1000

// noteGiver notes who gave an event of its own that waits, if its user was let in or invited once: a membership of the sender is held among the
// auth events and was not rejected. We may have it out by one side of a fork, and nobody else have what the event rests on. A server
// that nobody ever let in is asked nothing.
func (f *Federation) noteGiver(r *store.Reader, w *waiting, e *eventgraph.Event, giver eventgraph.ServerName) error {
	if w.letIn[giver] || e.Sender().Server() != giver {
		return nil
	}
	for _, id := range e.AuthEvents() {
		a, err := r.Event(id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		tuple, _ := a.Tuple()
		if a.Verdict == store.Rejected || tuple != (eventgraph.StateTuple{Type: "m.room.member", Key: string(e.Sender())}) {
			continue
		}
		switch a.Membership() {
		case "join", "invite", "leave":
			w.letIn[giver] = true
		}
	}
	return nil
}

// holders are the room's servers, and those that noteGiver noted and the room has not banned. Where by what we hold we are not in the room, the
// room's are only those that gave us what waits: they take us to be in it, or owe us our removal, and the others would not answer.
func (f *Federation) holders(w *waiting) holders {
	servers, err := f.Rooms.Servers(w.room)
	if err != nil {
		return holders{}
	}
	h := holders{outside: map[eventgraph.ServerName]bool{}}
	for s := range w.letIn {
		if !slices.Contains(servers, s) && f.peers.isConnected(s) && f.Rooms.ServerAllowed(w.room, s) && !f.Rooms.Banned(w.room, s) {
			h.outside[s] = true
		}
	}
	if !slices.Contains(servers, f.server) {
		givers := map[eventgraph.ServerName]bool{}
		for _, e := range w.events {
			givers[e.origin] = true
		}
		servers = slices.DeleteFunc(servers, func(s eventgraph.ServerName) bool { return !givers[s] })
	}
	h.room = slices.DeleteFunc(servers, func(s eventgraph.ServerName) bool { return s == f.server || !f.peers.isConnected(s) })
	return h
}
