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
	defer func() { read += w.spent }()
	defer func() {
		if w.hasAsked {
			f.tellTurn()
		}
	}()
	began := f.Now()
	for range inboxRounds {
		taken, err := f.takeReady(ctx, w)
		moved = moved || taken > 0
		if err != nil || len(w.events) == 0 {
			return len(w.events) == 0, moved, read, err
		}
		if f.inbox.isPatient(room) || f.Now().Sub(began) > inboxAsking {
			break
		}
		if ctx.Err() != nil {
			return false, moved, read, ctx.Err()
		}
		next, ok := f.nextQuestion(w)
		if !ok {
			return false, moved, read, nil
		}
		err = f.putQuestion(ctx, w, next)
		if errors.Is(err, errTurn) {
			break
		}
		if err != nil {
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

// look takes in what can be taken in by now, and asks nothing: for who comes while all who ask wait for answers. A visit may ask in the same
// room meanwhile: both put events through Accept, which takes each once.
func (f *Federation) look(ctx context.Context, room eventgraph.RoomID) (empty bool, read time.Duration, err error) {
	if j, err := f.storedJoin(room); err != nil || j != nil && !f.Rooms.InRoom(room, f.server) {
		return false, 0, err
	}
	start := time.Now()
	w, err := f.loadWaiting(ctx, room)
	read = time.Since(start)
	if err != nil {
		return false, read, err
	}
	_, err = f.takeReady(ctx, w)
	return len(w.events) == 0, read + w.spent, err
}

// putQuestion puts one question, and notes that, and how it ended.
func (f *Federation) putQuestion(ctx context.Context, w *waiting, a ask) error {
	of := w.answerer(a)
	if a.kind != askPolicy && !f.answerers.turns.begin(of, w.room, f.isSlow(of, a)) {
		return errTurn
	}
	within, cancel := context.WithTimeout(ctx, a.time())
	defer cancel()
	f.inbox.ask(w.room, a)
	began := f.Now()
	err := f.obtain(within, w, a)
	if a.kind == askPolicy {
		f.endTurn(a.server, w.room, err)
	} else {
		f.endAsking(w, of, began, errors.Join(err, within.Err()))
	}
	switch {
	case errors.Is(err, errPolicyTurn), errors.Is(err, errAskedEnough):
		f.inbox.notAsked(w.room, a)
		w.notAsked[a] = true
	case isRefusal(err):
		f.inbox.refuse(w.room, a)
	}
	return err
}

// waiting is what waits in a room while it is visited, without the PDUs.
type waiting struct {
	room     eventgraph.RoomID
	version  eventgraph.RoomVersion
	events   map[eventgraph.EventID]*waitingEvent
	order    []eventgraph.EventID                        // in which they came, with those that have gone
	children map[eventgraph.EventID][]eventgraph.EventID // which waiting events lack it, some more than once
	keyless  map[neededKey][]eventgraph.EventID          // which of them lack a key
	ready    []eventgraph.EventID                        // those that seem to lack nothing
	givers   map[eventgraph.ServerName]int               // how many each of them gave
	letIn    map[eventgraph.ServerName]bool              // see noteGiver
	notAsked map[ask]bool                                // questions to a policy server that could not be put in this visit
	spent    time.Duration                               // on what brought nothing, but for questions
	hasAsked bool                                        // somebody else than a policy server

	// lines.go
	inbox   *inbox
	isIn    func(eventgraph.ServerName) bool // the room
	holders holders
	lines   *lines
	inLine  map[place]standing
	leaned  map[place]bool
	leans   map[eventgraph.ServerName]int // how many of leaned are each giver's
	unasked int                           // of these, those whose first round has not ended
	looked  int                           // how often an event was looked at for something to ask
}

type waitingEvent struct {
	id          eventgraph.EventID
	origin      eventgraph.ServerName
	bytes       int // of the PDU
	prev        []eventgraph.EventID
	lacks       map[eventgraph.EventID]bool
	keys        []rooms.KeyNeeded
	policy      *rooms.PolicyNeeded
	stateBefore bool
	stuck       bool // see getStuck
	behind      int  // how many of those that it lacks are
}

type neededKey struct {
	server eventgraph.ServerName
	id     eventgraph.KeyID
}

func (f *Federation) newWaiting(room eventgraph.RoomID, version eventgraph.RoomVersion) *waiting {
	return &waiting{
		room: room, version: version, inbox: f.inbox, isIn: func(s eventgraph.ServerName) bool { return f.Rooms.InRoom(room, s) },
		events: map[eventgraph.EventID]*waitingEvent{}, children: map[eventgraph.EventID][]eventgraph.EventID{}, keyless: map[neededKey][]eventgraph.EventID{},
		givers: map[eventgraph.ServerName]int{}, letIn: map[eventgraph.ServerName]bool{}, notAsked: map[ask]bool{},
	}
}

// loadWaiting reads what waits in the room and drops what has waited too long or cannot be read.
func (f *Federation) loadWaiting(ctx context.Context, room eventgraph.RoomID) (*waiting, error) {
	version, known := f.versionOf(room)
	w := f.newWaiting(room, version)
	var dropped []eventgraph.EventID
	waits, outside := newLoads(), load{}
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
			one := load{1, len(item.PDU)}
			waits.add(item.Origin, one)
			if !isIn {
				outside = outside.plus(one)
			}
			return true, errors.Join(f.noteGiver(r, w, e, item.Origin), w.add(r, e, item.Origin))
		})
	})
	if err != nil {
		return nil, err
	}
	f.inbox.counted(room, waits, outside)
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
	w.put(&waitingEvent{id: e.ID(), origin: origin, bytes: len(e.Raw()), prev: e.PrevEvents()}, lacks)
	return nil
}

func (w *waiting) put(e *waitingEvent, lacks []eventgraph.EventID) {
	w.events[e.id] = e
	w.order = append(w.order, e.id)
	w.givers[e.origin]++
	w.park(e.id, lacks)
	w.enqueue(e.id)
}

// park lets an event wait for others; for none, it is ready.
func (w *waiting) park(id eventgraph.EventID, lacks []eventgraph.EventID) {
	e := w.events[id]
	e.lacks, e.behind = map[eventgraph.EventID]bool{}, 0
	for _, l := range lacks {
		if e.lacks[l] {
			continue
		}
		e.lacks[l] = true
		w.children[l] = append(w.children[l], id)
		if other := w.events[l]; other != nil && other.stuck {
			e.behind++
		}
	}
	if len(e.lacks) == 0 {
		w.ready = append(w.ready, id)
	}
}

// childrenOf are those that lack an event.
func (w *waiting) childrenOf(id eventgraph.EventID) (all []*waitingEvent) {
	slices.Sort(w.children[id])
	w.children[id] = slices.Compact(w.children[id])
	for _, child := range w.children[id] {
		if e := w.events[child]; e != nil && e.lacks[id] {
			all = append(all, e)
		}
	}
	return all
}

// settle takes an event out. If it is held now, those that lacked it lack it no more.
func (w *waiting) settle(id eventgraph.EventID, held bool) {
	gone := w.events[id]
	delete(w.events, id)
	if w.givers[gone.origin]--; w.givers[gone.origin] == 0 {
		delete(w.givers, gone.origin)
	}
	for _, child := range w.childrenOf(id) {
		if gone.stuck {
			child.behind--
		}
		if held {
			w.nowHeld(child, id)
		}
		w.enqueue(child.id)
	}
	if held {
		delete(w.children, id)
	}
}

// nowHeld takes from what an event lacks one that is held.
func (w *waiting) nowHeld(e *waitingEvent, id eventgraph.EventID) {
	if delete(e.lacks, id); len(e.lacks) == 0 && len(e.keys) == 0 {
		w.ready = append(w.ready, e.id)
	}
}

// inboxRun is how many waiting events are put through Accept together.
const inboxRun = 100

// takeReady puts through Accept what is ready, and what becomes so by it. It returns how many events are held now.
func (f *Federation) takeReady(ctx context.Context, w *waiting) (taken int, err error) {
	for len(w.ready) > 0 {
		began := time.Now()
		n, err := f.takeTogether(ctx, w, w.nextRun())
		if taken += n; n == 0 {
			w.spent += time.Since(began)
		}
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
				for _, k := range missing.Keys {
					w.keyless[neededKey{k.Server, k.ID}] = append(w.keyless[neededKey{k.Server, k.ID}], e.ID())
				}
				w.enqueue(e.ID())
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
	gone := newLoads()
	for _, id := range settled {
		gone.add(w.events[id].origin, load{1, w.events[id].bytes})
		w.settle(id, !refused[id])
	}
	f.inbox.release(w.room, gone, w.isIn)
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
		if !slices.Contains(servers, s) && f.peers.isConnected(s) && f.allows(w.room, s) && !f.Rooms.Banned(w.room, s) {
			h.outside[s] = true
		}
	}
	if !slices.Contains(servers, f.server) {
		servers = slices.DeleteFunc(servers, func(s eventgraph.ServerName) bool { return w.givers[s] == 0 })
	}
	h.room = slices.DeleteFunc(servers, func(s eventgraph.ServerName) bool { return s == f.server || !f.peers.isConnected(s) })
	return h
}
