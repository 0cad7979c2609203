package federation

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// inboxWorkers is how many rooms are worked on at one time; each waits mostly for the network. One more worker asks nothing: see look.
	inboxWorkers = 6
	// inboxRounds bounds the questions of one visit to a room, so that a peer that answers with ever more gaps does
	// not hold a worker, and inboxAsking the time in which they are begun; what is left waits for the next visit.
	inboxRounds = 100
	inboxAsking = 2 * time.Minute
	// inboxPatience and inboxBackoff are the shortest and longest wait before a room is visited again on its own account, and before a question
	// is put again; a server of the room that is met brings both forward, a further event the visit.
	inboxPatience = 2 * time.Second
	inboxBackoff  = 10 * time.Minute
	// inboxShare bounds the part of the time spent on reading what waits in a room: one of so many.
	inboxShare = 10
	// inboxKeep and inboxKeepOutside are how long an event may wait while this node runs, and how long one from a server that is not even in the
	// room. Nobody who is met has what it misses; who builds on it brings it again.
	inboxKeep        = 30 * 24 * time.Hour
	inboxKeepOutside = 24 * time.Hour
	// inboxLeft is how long at most a room is not visited while there are waiting events that were not asked about.
	inboxLeft = 30 * time.Second
	// maxRefused bounds the refused events that are remembered, each with who gave it; it is not taken from them again for inboxBackoff.
	maxRefused = 10_000
)

// inbox says which rooms have events waiting and when each is to be visited.
type inbox struct {
	now       func() time.Time
	seed      maphash.Seed
	refused   *lru.Cache[refusedFrom, time.Time]           // when
	postponed *lru.Cache[eventgraph.ServerName, time.Time] // since when, see postpones
	woken     chan struct{}                                // holds a token when a room may have become due
	toLook    chan struct{}                                // likewise, or when no worker is idle any more

	mu    sync.Mutex
	idle  int                              // workers that wait for a room
	rooms map[eventgraph.RoomID]*inboxRoom // bounded by the inbox in the store
	waits loads                            // in all rooms
}

type refusedFrom struct {
	event eventgraph.EventID
	giver eventgraph.ServerName
}

type inboxRoom struct {
	due      time.Time
	earliest time.Time // no visit before, see inboxShare
	patient  time.Time // nothing is asked for before: it may be on its way
	visits   int       // without success
	visited  bool      // being worked on
	again    bool      // woken while visited
	fresh    bool      // woken since a visit or look began
	looking  bool      // being looked at
	left     bool      // the last visit has left events that were not asked about
	asked    map[eventgraph.EventID]*questions
	numbers  map[eventgraph.ServerName]int    // of those that were asked, for questions
	turns    map[eventgraph.ServerName]uint64 // of those that gave what waits: the number of their last turn
	turn     uint64
	waits    loads // about: counted when it is read, and as it comes and goes
	outside  load  // of that, what servers gave that are not in the room
}

func newInboxRoom(now time.Time) *inboxRoom {
	return &inboxRoom{due: now, asked: map[eventgraph.EventID]*questions{}, waits: newLoads()}
}

func newInbox(now func() time.Time) *inbox {
	refused, err := lru.New[refusedFrom, time.Time](maxRefused)
	if err != nil {
		panic("federation: refused events: " + err.Error()) // only for a size below 1
	}
	postponed, err := lru.New[eventgraph.ServerName, time.Time](maxPostponed)
	if err != nil {
		panic("federation: postponed: " + err.Error()) // likewise
	}
	return &inbox{now: now, seed: maphash.MakeSeed(), refused: refused, postponed: postponed, waits: newLoads(), rooms: map[eventgraph.RoomID]*inboxRoom{}, woken: make(chan struct{}, 1), toLook: make(chan struct{}, 1)}
}

func (i *inbox) signal() {
	signal(i.woken)
	signal(i.toLook)
}

// wake makes the room due: something waits there.
func (i *inbox) wake(room eventgraph.RoomID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if r == nil {
		r = newInboxRoom(i.now())
		i.rooms[room] = r
	}
	r.wake(i.now())
	i.signal()
}

func (r *inboxRoom) wake(now time.Time) {
	r.due, r.visits, r.again, r.fresh = now, 0, true, true
	if r.earliest.After(now) {
		r.due = r.earliest
	}
}

// isPatient says whether what is missing in a room that is visited is not to be asked for yet.
func (i *inbox) isPatient(room eventgraph.RoomID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now().Before(i.rooms[room].patient)
}

// nudge makes the room due if something waits there.
func (i *inbox) nudge(room eventgraph.RoomID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r := i.rooms[room]; r != nil {
		r.wake(i.now())
		i.signal()
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
		for _, number := range []int{r.number(server), r.number("")} { // of "" are the questions that are put to whomever
			for _, of := range r.asked {
				of.forget(0, number)
			}
		}
		r.wake(i.now())
	}
	i.signal()
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
			r.visited, r.again, r.left, r.fresh = true, false, false, false
			i.signal() // for the other workers
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
	i.addIdle(1)
	defer i.addIdle(-1)
	return i.await(ctx, i.due, i.woken)
}

func (i *inbox) addIdle(n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.idle += n; i.idle == 0 {
		signal(i.toLook)
	}
}

// await waits until find has found a room; something may have changed for it when there is a token.
func (i *inbox) await(ctx context.Context, find func() (eventgraph.RoomID, time.Time, bool), token <-chan struct{}) (eventgraph.RoomID, error) {
	for {
		room, next, found := find()
		if found {
			return room, nil
		}
		timer := time.NewTimer(next.Sub(i.now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return "", ctx.Err()
		case <-token:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// dueToLook finds a room for which something has come that no worker is there for: they all ask, or the one that visits the room does. It marks the
// room as looked at; else it says when the next one may be due.
func (i *inbox) dueToLook() (room eventgraph.RoomID, next time.Time, found bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	next = now.Add(inboxBackoff)
	for id, r := range i.rooms {
		if !r.fresh || i.idle > 0 && !r.visited {
			continue
		}
		at := r.earliest
		if !r.visited {
			at = r.due
		}
		if !at.After(now) {
			r.fresh, r.looking = false, true
			return id, now, true
		}
		if at.Before(next) {
			next = at
		}
	}
	return "", next, false
}

// looked ends a look: see done.
func (i *inbox) looked(room eventgraph.RoomID, empty bool, read time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	r.looking = false
	r.earliest = i.now().Add(inboxShare * read)
	if empty && !r.fresh && !r.visited {
		i.recount(r, newLoads())
		delete(i.rooms, room)
	}
	if !r.visited && r.due.Before(r.earliest) {
		r.due = r.earliest
	}
	i.signal()
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
	case empty && !r.looking:
		i.recount(r, newLoads())
		delete(i.rooms, room)
		return
	case i.now().Before(r.patient):
		r.due = r.patient
	case moved:
		r.visits = 0
		r.due = i.now().Add(inboxPatience)
	default:
		wait := backoff(r.visits)
		if r.visits++; r.left {
			wait = min(wait, inboxLeft)
		}
		r.due = i.now().Add(wait)
	}
	i.signal()
}

func backoff(n int) time.Duration { return min(inboxPatience<<min(n, 12), inboxBackoff) }

// wasRefused says whether this giver's copy of the event was refused lately.
func (i *inbox) wasRefused(event eventgraph.EventID, giver eventgraph.ServerName) bool {
	at, ok := i.refused.Get(refusedFrom{event, giver})
	return ok && i.now().Sub(at) < inboxBackoff
}

// isEmpty says whether nothing waits.
func (i *inbox) isEmpty() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.rooms) == 0
}

// wakeWaiting makes the rooms due in which something waits, at start: also those that are not here, for their join may have been given up when
// this node ended.
func (f *Federation) wakeWaiting() error {
	err := f.Store.View(func(r *store.Reader) error {
		return r.InboxRooms(func(room eventgraph.RoomID) (bool, error) {
			f.inbox.wake(room)
			return true, nil
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
	group.Go(func() error { f.keepInboxTime(ctx); return nil })
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
				f.answerers.met(c.Server)
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
	group.Go(func() error {
		for {
			room, err := f.inbox.await(ctx, f.inbox.dueToLook, f.inbox.toLook)
			if err != nil {
				return nil
			}
			empty, read, err := f.look(ctx, room)
			if err != nil && ctx.Err() == nil {
				f.Log.Warn("events that wait could not be looked at", "room", room, "err", err)
			}
			f.inbox.looked(room, empty, read)
		}
	})
	return group.Wait()
}
