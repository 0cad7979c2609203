package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// inboxWorkers is how many rooms are worked on at one time; each waits mostly for the network.
	inboxWorkers = 4
	// inboxAtOnce and inboxOldest are how many of a room's waiting events are looked at in one round, of those that came last (twice
	// what get_missing_events brings) and of those that came first.
	inboxAtOnce = 200
	inboxOldest = 50
	// inboxRounds bounds the questions of one visit to a room, so that a peer that answers with ever more gaps does
	// not hold a worker; what is left waits for the next visit.
	inboxRounds = 100
	// missingLimit is how many events one get_missing_events asks for; the spec lets servers give fewer.
	missingLimit = 100
	// inboxPatience and inboxBackoff are the shortest and longest wait before a room is visited again on its own account; a server of the
	// room that is met, or a further event, brings it forward.
	inboxPatience = 2 * time.Second
	inboxBackoff  = 10 * time.Minute
)

// inbox says which rooms have events waiting and when each is to be visited.
type inbox struct {
	now func() time.Time

	mu    sync.Mutex
	rooms map[eventgraph.RoomID]*inboxRoom // bounded by the inbox in the store
	woken chan struct{}                    // holds a token when a room may have become due
}

type inboxRoom struct {
	due     time.Time
	visits  int  // without success
	visited bool // being worked on
	again   bool // woken while visited
}

func newInbox(now func() time.Time) *inbox {
	return &inbox{now: now, rooms: map[eventgraph.RoomID]*inboxRoom{}, woken: make(chan struct{}, 1)}
}

// wake makes the room due now.
func (i *inbox) wake(room eventgraph.RoomID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if r == nil {
		r = &inboxRoom{}
		i.rooms[room] = r
	}
	r.due, r.visits, r.again = i.now(), 0, true
	i.signal()
}

// wakeAll makes every room due now: somebody was met.
func (i *inbox) wakeAll() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, r := range i.rooms {
		r.due, r.visits, r.again = i.now(), 0, true
	}
	i.signal()
}

func (i *inbox) signal() {
	select {
	case i.woken <- struct{}{}:
	default:
	}
}

// take waits for a room that is due and marks it as visited.
func (i *inbox) take(ctx context.Context) (eventgraph.RoomID, error) {
	for {
		i.mu.Lock()
		now := i.now()
		next := now.Add(inboxBackoff)
		for id, r := range i.rooms {
			if r.visited {
				continue
			}
			if !r.due.After(now) {
				r.visited, r.again = true, false
				i.signal() // for the other workers
				i.mu.Unlock()
				return id, nil
			}
			if r.due.Before(next) {
				next = r.due
			}
		}
		i.mu.Unlock()
		timer := time.NewTimer(next.Sub(now))
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

// done ends a visit: empty says that nothing waits in the room any more, moved that something was taken in.
func (i *inbox) done(room eventgraph.RoomID, empty, moved bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	r.visited = false
	switch {
	case r.again:
		r.due = i.now()
	case empty:
		delete(i.rooms, room)
		return
	case moved:
		r.visits = 0
		r.due = i.now().Add(inboxPatience)
	default:
		r.due = i.now().Add(min(inboxPatience<<min(r.visits, 12), inboxBackoff))
		r.visits++
	}
	i.signal()
}

// runInbox takes in what waits in the inbox as it becomes possible, until ctx ends.
func (f *Federation) runInbox(ctx context.Context) error {
	err := f.Store.View(func(r *store.Reader) error {
		return r.Inbox("", func(item *store.InboxItem) (bool, error) {
			f.inbox.wake(item.Room)
			return true, nil
		})
	})
	if err != nil {
		return fmt.Errorf("read inbox: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		turn := uint64(0)
		for {
			_, next, err := f.peers.met(ctx, turn)
			if err != nil {
				return nil
			}
			turn = next
			f.inbox.wakeAll()
		}
	})
	for range inboxWorkers {
		group.Go(func() error {
			for {
				room, err := f.inbox.take(ctx)
				if err != nil {
					return nil
				}
				empty, moved, err := f.visit(ctx, room)
				if err != nil && ctx.Err() == nil {
					f.Log.Warn("events that wait could not be worked on", "room", room, "err", err)
				}
				f.inbox.done(room, empty, moved)
			}
		})
	}
	return group.Wait()
}

// visit works through a room's waiting events: what can be taken in is, what is missing is asked for, and so on until nothing more
// is to be had now.
func (f *Federation) visit(ctx context.Context, room eventgraph.RoomID) (empty, moved bool, err error) {
	tried := map[ask]bool{}
	for range inboxRounds {
		items, err := f.waiting(room)
		if err != nil || len(items) == 0 {
			return len(items) == 0, moved, err
		}
		wants, settled, err := f.tryInbox(ctx, room, items)
		if err != nil {
			return false, moved, err
		}
		if len(settled) > 0 {
			moved = true
			if err := f.dropInbox(ctx, room, settled); err != nil {
				return false, moved, err
			}
			continue
		}
		next, ok := decide(wants, f.holders(room), tried)
		if !ok || ctx.Err() != nil {
			return false, moved, ctx.Err()
		}
		tried[next] = true
		if err := f.obtain(ctx, room, next, wants); err != nil {
			f.Log.Debug("what is missing was not given", "room", room, "event", next.event, "server", next.server, "err", err)
		}
	}
	return false, moved, nil
}

// waiting reads the room's waiting events: those that came last, for they are the parents that were asked for last, and the
// oldest, so that none is forgotten behind others.
func (f *Federation) waiting(room eventgraph.RoomID) (items []*store.InboxItem, err error) {
	var last []*store.InboxItem // a ring once it is full
	n := 0
	err = f.Store.View(func(r *store.Reader) error {
		return r.Inbox(room, func(item *store.InboxItem) (bool, error) {
			switch {
			case len(items) < inboxOldest:
				items = append(items, item)
			case len(last) < inboxAtOnce:
				last = append(last, item)
			default:
				last[n%inboxAtOnce] = item
				n++
			}
			return true, nil
		})
	})
	return append(items, last...), err
}

// tryInbox puts waiting events through Accept: settled are those that need wait no more, in whatever verdict.
func (f *Federation) tryInbox(ctx context.Context, room eventgraph.RoomID, items []*store.InboxItem) (wants []want, settled []eventgraph.EventID, err error) {
	version, known := f.versionOf(room)
	byOrigin := map[eventgraph.ServerName][]*eventgraph.Event{}
	for _, item := range items {
		e, err := eventgraph.ParseEvent(version, item.PDU)
		if !known || err != nil {
			f.Log.Info("waiting event dropped", "room", room, "event", item.ID, "err", err)
			settled = append(settled, item.ID)
			continue
		}
		byOrigin[item.Origin] = append(byOrigin[item.Origin], e)
	}
	for origin, events := range byOrigin {
		err := f.acceptEvents(ctx, events, origin, func(e *eventgraph.Event, o rooms.Outcome) {
			var missing *rooms.MissingError
			if errors.As(o.Err, &missing) {
				wants = append(wants, want{e, origin, *missing})
			} else {
				settled = append(settled, e.ID())
			}
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return wants, settled, nil
}

func (f *Federation) dropInbox(ctx context.Context, room eventgraph.RoomID, ids []eventgraph.EventID) error {
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			if err := tx.DeleteInbox(room, id); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// holders lists the room's servers that are connected now.
func (f *Federation) holders(room eventgraph.RoomID) []eventgraph.ServerName {
	servers, err := f.Rooms.Servers(room)
	if err != nil {
		return nil
	}
	var connected []eventgraph.ServerName
	for _, s := range servers {
		if s != f.server && f.peers.isConnected(s) {
			connected = append(connected, s)
		}
	}
	return connected
}

// obtain asks one question and stores what the answer brings.
func (f *Federation) obtain(ctx context.Context, room eventgraph.RoomID, a ask, wants []want) error {
	var w want
	for _, w = range wants {
		if w.event.ID() == a.event {
			break
		}
	}
	switch a.kind {
	case askKeys:
		return f.ensureKeys(ctx, w.Keys, firstIn(f.holders(room), w.origin))
	case askMissing:
		return f.askMissing(ctx, room, a.server, w.event)
	case askAuth:
		return f.askAuth(ctx, room, a.server, w.event)
	case askEvent:
		held, _, err := f.backwards(room)
		if err != nil {
			return err
		}
		e, err := f.fetchEvent(ctx, a.server, held, a.parent)
		if err != nil {
			return err
		}
		return f.await(ctx, room, a.server, []*eventgraph.Event{e})
	case askState:
		return f.askState(ctx, room, a.server, w.event)
	}
	panic(fmt.Sprintf("federation: ask of kind %d", a.kind))
}

// askMissing asks for the events between our extremities and the waiting event (SS API, Retrieving missing events).
func (f *Federation) askMissing(ctx context.Context, room eventgraph.RoomID, server eventgraph.ServerName, e *eventgraph.Event) error {
	held, err := f.extremities(room)
	if err != nil {
		return err
	}
	body := struct {
		Earliest []eventgraph.EventID `json:"earliest_events"`
		Latest   []eventgraph.EventID `json:"latest_events"`
		Limit    int                  `json:"limit"`
	}{held, []eventgraph.EventID{e.ID()}, missingLimit}
	var answer struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := f.do(ctx, server, http.MethodPost, target(v1+"get_missing_events", []string{string(room)}, nil), body, &answer); err != nil {
		return err
	}
	parents := parseAll(e.Version(), answer.Events[:min(len(answer.Events), missingLimit)])
	return f.await(ctx, room, server, slices.DeleteFunc(parents, func(p *eventgraph.Event) bool { return p.RoomID() != room }))
}

func (f *Federation) extremities(room eventgraph.RoomID) (held []eventgraph.EventID, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		kept, err := r.Room(room)
		if err == nil {
			held = kept.Forward
		}
		return err
	})
	return held[:min(len(held), maxEarliest)], err
}

// maxEarliest bounds the extremities named in get_missing_events: they only spare repetition.
const maxEarliest = 20

// await puts events that were asked for into the inbox, where the next round finds them; those held already, or waiting, add nothing.
func (f *Federation) await(ctx context.Context, room eventgraph.RoomID, server eventgraph.ServerName, events []*eventgraph.Event) error {
	var items []*store.InboxItem
	err := f.Store.View(func(r *store.Reader) error {
		for _, e := range events {
			verdict, held, err := r.HasEvent(e.ID())
			if err != nil {
				return err
			}
			if waits, err := r.InboxHas(room, e.ID()); err != nil {
				return err
			} else if !waits && (!held || verdict == store.Outlier) {
				items = append(items, &store.InboxItem{ID: e.ID(), Room: room, Origin: server, PDU: e.Raw(), Received: f.Now().UnixMilli()})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(items) == 0 {
		return errNothingNew
	}
	return f.putInbox(ctx, items)
}

var errNothingNew = errors.New("the answer held nothing new")

// askAuth fetches the auth chain of a waiting event and keeps it as outliers.
func (f *Federation) askAuth(ctx context.Context, room eventgraph.RoomID, server eventgraph.ServerName, e *eventgraph.Event) error {
	var answer struct {
		AuthChain []json.RawMessage `json:"auth_chain"`
	}
	if err := f.doLarge(ctx, server, http.MethodGet, target(v1+"event_auth", []string{string(room), string(e.ID())}, nil), nil, &answer, maxState); err != nil {
		return err
	}
	events := slices.DeleteFunc(parseAll(e.Version(), answer.AuthChain), func(a *eventgraph.Event) bool { return a.RoomID() != room })
	return f.acceptOutliers(ctx, server, events...)
}

// askState takes the event in on the state before it as the server claims it: its parents are not to be had. The event carries a gap
// marker (design.md §3.1 b).
func (f *Federation) askState(ctx context.Context, room eventgraph.RoomID, server eventgraph.ServerName, e *eventgraph.Event) error {
	held, _, err := f.backwards(room)
	if err != nil {
		return err
	}
	state, err := f.claimedState(ctx, server, held, e.ID())
	if err != nil {
		return err
	}
	result, err := f.Rooms.Accept(ctx, e, rooms.Basis{Kind: rooms.Claimed, State: state, Origin: server})
	f.logOutcome(e, server, rooms.Outcome{Result: result, Err: err})
	return err
}
