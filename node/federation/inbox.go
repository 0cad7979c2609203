package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// inboxWorkers is how many rooms are worked on at one time; each waits mostly for the network.
	inboxWorkers = 4
	// inboxRounds bounds the questions of one visit to a room, so that a peer that answers with ever more gaps does
	// not hold a worker; what is left waits for the next visit.
	inboxRounds = 100
	// inboxPatience and inboxBackoff are the shortest and longest wait before a room is visited again on its own account, and before a question
	// is put again; a server of the room that is met brings both forward, a further event the visit.
	inboxPatience = 2 * time.Second
	inboxBackoff  = 10 * time.Minute
	// inboxShare bounds the part of the time spent on reading what waits in a room: one of so many.
	inboxShare = 10
	// inboxKeep and inboxKeepOutside are how long an event may wait, and how long one from a server that is not even in the room. Nobody who
	// is met has what it misses; who builds on it brings it again.
	inboxKeep        = 30 * 24 * time.Hour
	inboxKeepOutside = 24 * time.Hour
	// maxAttempts bounds the questions of a room of which is known when they were put.
	maxAttempts = 10_000
	// maxRefused bounds the refused events that are remembered, each with who gave it; it is not taken from them again for inboxBackoff.
	maxRefused = 10_000
)

// inbox says which rooms have events waiting and when each is to be visited.
type inbox struct {
	now     func() time.Time
	refused *lru.Cache[refusedFrom, time.Time] // when
	woken   chan struct{}                      // holds a token when a room may have become due

	mu    sync.Mutex
	rooms map[eventgraph.RoomID]*inboxRoom // bounded by the inbox in the store
}

type refusedFrom struct {
	event eventgraph.EventID
	giver eventgraph.ServerName
}

type inboxRoom struct {
	due      time.Time
	earliest time.Time       // no visit before, see inboxShare
	patient  time.Time       // nothing is asked for before: it may be on its way
	visits   int             // without success
	visited  bool            // being worked on
	again    bool            // woken while visited
	asked    map[ask]attempt // what was asked for it
	all      load            // of what waits, about: counted when it is read, and as it comes
	outside  load            // of what servers gave that are not in the room
	each     loads           // of that, what each of them gave
}

// load counts events and the bytes of their PDUs.
type load struct{ items, bytes int }

func (t *load) add(bytes int) {
	t.items++
	t.bytes += bytes
}

// loads are those of servers; no more servers than events are counted.
type loads map[eventgraph.ServerName]load

func (l loads) add(server eventgraph.ServerName, bytes int) {
	one := l[server]
	one.add(bytes)
	l[server] = one
}

// takes says whether one more of that many bytes stays within one part of so many of a room's share.
func (t load) takes(bytes, parts int) bool {
	return t.items < maxWaiting/parts && t.bytes+bytes <= maxWaitingBytes/parts
}

// attempt is when a question may be put again, how often it was, and whether the server has answered that it does not give that.
type attempt struct {
	next    time.Time
	n       int
	refused bool
}

func newInbox(now func() time.Time) *inbox {
	refused, err := lru.New[refusedFrom, time.Time](maxRefused)
	if err != nil {
		panic("federation: refused events: " + err.Error()) // only for a size below 1
	}
	return &inbox{now: now, refused: refused, rooms: map[eventgraph.RoomID]*inboxRoom{}, woken: make(chan struct{}, 1)}
}

// wake makes the room due: something waits there.
func (i *inbox) wake(room eventgraph.RoomID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if r == nil {
		r = &inboxRoom{asked: map[ask]attempt{}}
		i.rooms[room] = r
	}
	r.wake(i.now())
	signal(i.woken)
}

func (r *inboxRoom) wake(now time.Time) {
	r.due, r.visits, r.again = now, 0, true
	if r.earliest.After(now) {
		r.due = r.earliest
	}
}

// Bounds of what may wait in one room, so that one does not take the place of all others; and the part of that for all servers together that
// are not in the room, one of so many: they may have been let in once only to fill it. Of that one of them has a part, else it would keep out
// those who were left out by one side of a fork.
const (
	maxWaiting      = store.InboxMaxItems / 5
	maxWaitingBytes = store.InboxMaxBytes / 5
	outsidePart     = 20
	outsideOnePart  = 4 * outsidePart
)

// reserve says whether one more event may wait in the room, and counts it. outside is who gives it, if that is not in the room.
func (i *inbox) reserve(room eventgraph.RoomID, bytes int, outside eventgraph.ServerName) bool {
	return i.reservePatiently(room, bytes, outside, 0)
}

// reservePatiently is reserve; if the event is the first that waits, nothing is asked for in the room while patience lasts.
func (i *inbox) reservePatiently(room eventgraph.RoomID, bytes int, outside eventgraph.ServerName, patience time.Duration) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if r == nil {
		r = &inboxRoom{asked: map[ask]attempt{}, due: i.now()}
		i.rooms[room] = r
	}
	if !r.all.takes(bytes, 1) || outside != "" && !(r.outside.takes(bytes, outsidePart) && r.each[outside].takes(bytes, outsideOnePart)) {
		return false
	}
	if r.all.items == 0 {
		r.patient = i.now().Add(patience)
	}
	r.all.add(bytes)
	if outside != "" {
		r.outside.add(bytes)
		if r.each == nil {
			r.each = loads{}
		}
		r.each.add(outside, bytes)
	}
	return true
}

// isPatient says whether what is missing in a room that is visited is not to be asked for yet.
func (i *inbox) isPatient(room eventgraph.RoomID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now().Before(i.rooms[room].patient)
}

// counted notes what waits in a room that is visited, and what of that each server gave that is not in the room.
func (i *inbox) counted(room eventgraph.RoomID, all load, each loads) {
	var outside load
	for _, l := range each {
		outside.items += l.items
		outside.bytes += l.bytes
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	r.all, r.outside, r.each = all, outside, each
}

// nudge makes the room due if something waits there.
func (i *inbox) nudge(room eventgraph.RoomID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r := i.rooms[room]; r != nil {
		r.wake(i.now())
		signal(i.woken)
	}
}

// met makes the rooms due that the server is in, and lets it be asked everything again.
func (i *inbox) met(server eventgraph.ServerName, isIn func(eventgraph.RoomID) bool) {
	i.mu.Lock()
	waiting := make([]eventgraph.RoomID, 0, len(i.rooms))
	for room := range i.rooms {
		waiting = append(waiting, room)
	}
	i.mu.Unlock()
	waiting = slices.DeleteFunc(waiting, func(room eventgraph.RoomID) bool { return !isIn(room) })
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, room := range waiting {
		r := i.rooms[room]
		if r == nil {
			continue
		}
		for a := range r.asked {
			if a.server == server || a.kind == askKeys {
				delete(r.asked, a)
			}
		}
		r.wake(i.now())
	}
	signal(i.woken)
}

// due finds a room that is due and marks it as visited; else it says when the next one is.
func (i *inbox) due() (room eventgraph.RoomID, next time.Time, found bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	next = now.Add(inboxBackoff)
	for id, r := range i.rooms {
		if r.visited {
			continue
		}
		if !r.due.After(now) {
			r.visited, r.again = true, false
			signal(i.woken) // for the other workers
			return id, now, true
		}
		if r.due.Before(next) {
			next = r.due
		}
	}
	return "", next, false
}

// take waits for a room that is due and marks it as visited.
func (i *inbox) take(ctx context.Context) (eventgraph.RoomID, error) {
	for {
		room, next, found := i.due()
		if found {
			return room, nil
		}
		timer := time.NewTimer(next.Sub(i.now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return "", ctx.Err()
		case <-i.woken:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// wokenAgain says whether something has come for the room since its visit began.
func (i *inbox) wokenAgain(room eventgraph.RoomID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rooms[room].again
}

// done ends a visit: empty says that nothing waits in the room any more, moved that something was taken in, read how long it took to
// read what waits.
func (i *inbox) done(room eventgraph.RoomID, empty, moved bool, read time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	r.visited = false
	r.earliest = i.now().Add(inboxShare * read)
	switch {
	case r.again:
		r.wake(i.now())
	case empty:
		delete(i.rooms, room)
		return
	case i.now().Before(r.patient):
		r.due = r.patient
	case moved:
		r.visits = 0
		r.due = i.now().Add(inboxPatience)
	default:
		r.due = i.now().Add(backoff(r.visits))
		r.visits++
	}
	signal(i.woken)
}

func backoff(n int) time.Duration { return min(inboxPatience<<min(n, 12), inboxBackoff) }

// tried says whether the question was put lately.
func (i *inbox) tried(room eventgraph.RoomID, a ask) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	before, ok := i.rooms[room].asked[a]
	return ok && i.now().Before(before.next)
}

// ask notes that the question is put, and returns what was noted of it before.
func (i *inbox) ask(room eventgraph.RoomID, a ask) (before attempt) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if len(r.asked) >= maxAttempts {
		clear(r.asked)
	}
	before = r.asked[a]
	r.asked[a] = attempt{next: i.now().Add(backoff(before.n)), n: before.n + 1}
	return before
}

// notAsked takes back ask: the question was not put after all.
func (i *inbox) notAsked(room eventgraph.RoomID, a ask, before attempt) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.rooms[room].asked[a]; ok { // the server was not met meanwhile
		i.rooms[room].asked[a] = before
	}
}

// refuse notes that the server has answered the question and does not give that.
func (i *inbox) refuse(room eventgraph.RoomID, a ask) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if before, ok := i.rooms[room].asked[a]; ok {
		before.refused = true
		i.rooms[room].asked[a] = before
	}
}

// wasAskedInVain says whether the server has refused the answer to the question, and is not asked again yet.
func (i *inbox) wasAskedInVain(room eventgraph.RoomID, a ask) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.rooms[room].asked[a]
	return before.refused && i.now().Before(before.next)
}

// wasRefused says whether this giver's copy of the event was refused lately.
func (i *inbox) wasRefused(event eventgraph.EventID, giver eventgraph.ServerName) bool {
	at, ok := i.refused.Get(refusedFrom{event, giver})
	return ok && i.now().Sub(at) < inboxBackoff
}

// outside is the server if it is not in the room, for reserve.
func (f *Federation) outside(room eventgraph.RoomID, server eventgraph.ServerName) eventgraph.ServerName {
	if f.Rooms.InRoom(room, server) {
		return ""
	}
	return server
}

// wakeWaiting makes the rooms due in which something waits, at start.
func (f *Federation) wakeWaiting() error {
	err := f.Store.View(func(r *store.Reader) error {
		return r.Rooms(func(room *store.Room) (bool, error) {
			return true, r.Inbox(room.ID, func(*store.InboxItem) (bool, error) {
				f.inbox.wake(room.ID)
				return false, nil
			})
		})
	})
	if err != nil {
		return fmt.Errorf("read inbox: %w", err)
	}
	return nil
}

// runInbox takes in what waits in the inbox as it becomes possible, until ctx ends.
func (f *Federation) runInbox(ctx context.Context) error {
	if err := f.wakeWaiting(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		turn := uint64(0)
		for {
			met, next, err := f.peers.met(ctx, turn)
			if err != nil {
				return nil
			}
			turn = next
			for _, c := range met {
				f.policies.met(c.Server)
				f.inbox.met(c.Server, func(room eventgraph.RoomID) bool { return f.Rooms.InRoom(room, c.Server) })
			}
		}
	})
	for range inboxWorkers {
		group.Go(func() error {
			for {
				room, err := f.inbox.take(ctx)
				if err != nil {
					return nil
				}
				empty, moved, read, err := f.visit(ctx, room)
				if err != nil && ctx.Err() == nil {
					f.Log.Warn("events that wait could not be worked on", "room", room, "err", err)
				}
				f.inbox.done(room, empty, moved, read)
			}
		})
	}
	return group.Wait()
}

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
	now := f.Now()
	err := f.Store.View(func(r *store.Reader) error {
		return r.Inbox(room, func(item *store.InboxItem) (bool, error) {
			keep, isIn := inboxKeep, f.Rooms.InRoom(room, item.Origin)
			if !isIn {
				keep = inboxKeepOutside
			}
			e, err := eventgraph.ParseEvent(version, item.PDU)
			if !known || err != nil || now.Sub(time.UnixMilli(item.Received)) > keep {
				f.Log.Info("waiting event dropped", "room", room, "event", item.ID, "received", item.Received, "err", err)
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
