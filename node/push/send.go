package push

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// For each pusher there is a worker with a stored cursor: up to there it has told everything.
//
//	changes ─ look ─→ notices since the cursor, those that matter ─→ POST ─ taken ─→ cursor
//	                       ↑                                          │
//	                       └──────── pause, longer each time ── else ─┘

const (
	// pushesAtOnce of all pushers together. It bounds what this node lays on gateways and on its own connection.
	pushesAtOnce = 16
	// pushesOfUser of them are one user's at most: who has many pushers at a gateway that hangs holds up nobody else.
	pushesOfUser = 2
	// retryFirst and retryLast bound the pause after a failed attempt; it doubles. The last is short enough that a device that comes back
	// to the Internet tells within a quarter of an hour, and long enough to lay nothing on a gateway that is gone.
	retryFirst = time.Second
	retryLast  = 15 * time.Minute
	// maxAge is for how long after its arrival here an event is told. Later the person has opened the client or does not care for the sound; the
	// count of unread messages says the rest. It is not the age of the event: one that was carried by hand for days is news when it comes.
	maxAge = 24 * time.Hour
	// noticesOfRoom and noticesAtOnce are the newest that are told when many events come at once, as after a long absence: hundreds of sounds say no
	// more than some, and the count tells of all.
	noticesOfRoom = 20
	noticesAtOnce = 50
	// eventsOfRoom is how many of the newest events of a room the rules are asked about for those.
	eventsOfRoom = 200
	// saveScan is how far a cursor may move over changes of which there is nothing to tell before it is stored: after a restart they are looked
	// at again.
	saveScan = 5000
)

// Config of New. All fields but Log are required.
type Config struct {
	Store    *store.Store
	Source   Source
	Gateways Gateways
	Now      func() time.Time
	Log      *slog.Logger
}

// Sender tells gateways. Run starts all its goroutines and waits for them.
type Sender struct {
	Config
	client *http.Client
	slots  chan struct{}

	mu    sync.Mutex
	users map[eventgraph.UserID]*share // of whom something is under way or waits
}

// share is what one user has of the slots.
type share struct {
	slots chan struct{}
	in    int // requests under way or waiting; guarded by Sender.mu
}

// New makes a sender; it does nothing before Run.
func New(c Config) *Sender {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Sender{Config: c, client: newClient(c.Gateways.transport()), slots: make(chan struct{}, pushesAtOnce), users: map[eventgraph.UserID]*share{}}
}

// working is a worker that runs.
type working struct {
	stop    context.CancelFunc
	done    chan struct{} // closed when it has ended
	anew    chan struct{} // holds a token when the pusher was set anew: then no failure before counts
	updated int64
}

// Run tells gateways until ctx ends or the store fails.
func (s *Sender) Run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.supervise(ctx, group) })
	return group.Wait()
}

// supervise keeps one worker running for each pusher.
func (s *Sender) supervise(ctx context.Context, group *errgroup.Group) error {
	workers := map[store.PusherKey]*working{} // bounded by accounts and store.MaxPushers
	for {
		pushers := map[store.PusherKey]int64{}
		var at store.Position
		err := s.Store.View(func(r *store.Reader) error {
			at = r.Position()
			return r.Pushers("", func(p *store.Pusher) (bool, error) { pushers[p.PusherKey] = p.UpdatedTS; return true, nil })
		})
		if err != nil {
			return err
		}
		for key, w := range workers {
			if _, ok := pushers[key]; !ok {
				w.stop()
				<-w.done
				delete(workers, key)
			}
		}
		for key, updated := range pushers {
			switch w := workers[key]; {
			case w == nil:
				workers[key] = s.start(ctx, group, key, updated)
			case w.updated != updated:
				w.updated = updated
				select {
				case w.anew <- struct{}{}:
				default:
				}
			}
		}
		if err := s.awaitPushers(ctx, at); err != nil {
			return err
		}
	}
}

// start starts a worker.
func (s *Sender) start(ctx context.Context, group *errgroup.Group, key store.PusherKey, updated int64) *working {
	ctx, stop := context.WithCancel(ctx)
	w := &working{stop: stop, done: make(chan struct{}), anew: make(chan struct{}, 1), updated: updated}
	group.Go(func() error {
		defer close(w.done)
		defer stop()
		err := (&worker{Sender: s, key: key, anew: w.anew, told: -1}).run(ctx)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
	return w
}

// awaitPushers returns when a pusher was set or removed after that position.
func (s *Sender) awaitPushers(ctx context.Context, after store.Position) error {
	for changed := false; !changed; {
		upTo, err := s.Store.Wait(ctx, after)
		if err != nil {
			return err
		}
		err = s.Store.View(func(r *store.Reader) error {
			return r.Changes(after, upTo, func(_ store.Position, c store.Change) (bool, error) {
				changed = changed || c.Kind == store.ChangePusher
				return !changed, nil
			})
		})
		if err != nil {
			return err
		}
		after = upTo
	}
	return nil
}

// stale stands for a count that is to be read.
const stale = -1

// worker tells what concerns one pusher. All of it belongs to its goroutine.
type worker struct {
	*Sender
	key       store.PusherKey
	anew      chan struct{}
	at, saved store.Position            // done up to there; stored up to there
	counts    map[eventgraph.RoomID]int // unread, of the rooms that the user is in, or stale; nil: not read so far
	told      int                       // the count that was told last; -1: not known
	wait      time.Duration             // of the last pause; 0: the last attempt was good
}

func (w *worker) run(ctx context.Context) error {
	err := w.Store.View(func(r *store.Reader) (err error) {
		w.at, err = r.PusherCursor(w.key)
		w.at = min(w.at, r.Position()) // a store that has lost its end counts on from there
		return err
	})
	if err != nil {
		return err
	}
	w.saved = w.at
	for {
		if _, err := w.Store.Wait(ctx, w.at); err != nil {
			return err
		}
		err := w.round(ctx)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.Log.Error("a pusher cannot read what there is to tell", "app", w.key.AppID, "err", err)
		w.longer()
		if err := w.pause(ctx); err != nil {
			return err
		}
	}
}

// round tells what is new, as far as the gateway takes it.
func (w *worker) round(ctx context.Context) error {
	seen, err := w.look(ctx)
	if err != nil {
		return err
	}
	for i := range seen.notices {
		n := &seen.notices[i]
		if done, err := w.tell(ctx, seen.pusher, n, seen.unread); !done || err != nil {
			return err
		}
		w.at = n.Position
		if err := w.save(ctx); err != nil {
			return err
		}
		if w.wait > 0 { // this one was left out
			return w.pause(ctx)
		}
	}
	told := len(seen.notices) > 0
	if seen.recount && seen.unread != w.told {
		if done, err := w.tell(ctx, seen.pusher, nil, seen.unread); !done || err != nil {
			return err
		}
		told = true
	}
	w.at = seen.upTo
	if told || w.at-w.saved > saveScan {
		return w.save(ctx)
	}
	return nil
}

// tell sends one notification. Done is false if it is to be looked at again, after a pause that tell has made.
func (w *worker) tell(ctx context.Context, p *store.Pusher, n *Notice, unread int) (done bool, err error) {
	err = w.notify(ctx, p, newNotification(p, n, unread))
	switch {
	case err == nil:
		w.wait, w.told = 0, unread
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, errRejected):
		w.Log.Info("a pusher was removed: its gateway rejects the pushkey", "app", p.AppID)
		return false, w.remove(ctx, p)
	case errors.Is(err, errUnfit):
		// The next one waits a little more, but not for this: a gateway that chokes on one event would keep back all others for a day.
		w.Log.Warn("a push gateway does not take a notification", "app", p.AppID)
		w.longer()
		return true, nil
	}
	w.Log.Debug("a push gateway was not reached", "app", p.AppID, "err", err)
	w.longer()
	return false, w.pause(ctx)
}

func (w *worker) longer() { w.wait = min(max(2*w.wait, retryFirst), retryLast) }

// pause waits before the next attempt.
func (w *worker) pause(ctx context.Context) error {
	timer := time.NewTimer(w.wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.anew:
		w.wait = 0
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// remove removes the pusher, unless it was set anew since. The supervisor ends the worker.
func (w *worker) remove(ctx context.Context, p *store.Pusher) error {
	_, err := w.Store.Update(ctx, func(tx *store.Tx) error {
		now, err := tx.Pusher(w.key)
		if err != nil || now.UpdatedTS != p.UpdatedTS {
			return err
		}
		return tx.DeletePusher(w.key)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if errors.Is(err, store.ErrDiskFull) {
		w.longer()
		return w.pause(ctx)
	}
	return err
}

// save stores the cursor. Without room on the disk it goes on: what a restart would repeat, gateways know by the event's ID.
func (w *worker) save(ctx context.Context) error {
	_, err := w.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutPusherCursor(w.key, w.at) })
	switch {
	case errors.Is(err, store.ErrNotFound): // it was removed meanwhile
		return nil
	case errors.Is(err, store.ErrDiskFull):
		w.Log.Warn("the cursor of a pusher waits for room on the disk")
		return nil
	case err == nil:
		w.saved = w.at
	}
	return err
}
