package push

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// seen is what a worker has found to tell.
type seen struct {
	pusher  *store.Pusher // nil if there is nothing to tell
	upTo    store.Position
	notices []Notice // by position
	unread  int
	recount bool // the count may have changed without an event
}

// look reads the changes since the cursor. What has been read, is too old or too much is not told.
func (w *worker) look(ctx context.Context) (*seen, error) {
	found := &seen{}
	err := w.Store.View(func(r *store.Reader) error {
		found.upTo = r.Position()
		p, err := r.Pusher(w.key)
		if errors.Is(err, store.ErrNotFound) {
			return nil // the supervisor is about to end this worker
		}
		if err != nil {
			return err
		}
		account, err := r.Account(w.key.User)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if account != nil && account.Locked {
			return nil // who cannot use the account is not told what happens in it
		}
		events, err := w.gather(ctx, r, found)
		if err != nil {
			return err
		}
		for room, ids := range events {
			notices, err := w.Source.Notices(r, w.key.User, room, ids, noticesOfRoom)
			if err != nil {
				return err
			}
			found.notices = append(found.notices, notices...)
		}
		now := w.Now().UnixMilli()
		found.notices = slices.DeleteFunc(found.notices, func(n Notice) bool {
			return n.Position <= w.at || n.ReceivedTS != 0 && now-n.ReceivedTS > maxAge.Milliseconds()
		})
		slices.SortFunc(found.notices, func(a, b Notice) int { return cmp.Compare(a.Position, b.Position) })
		found.notices = found.notices[max(0, len(found.notices)-noticesAtOnce):]
		if len(found.notices) == 0 && !found.recount {
			return nil
		}
		found.pusher = p
		found.unread, err = w.unread(r)
		return err
	})
	return found, err
}

// gather lists the new events of rooms that the user has to do with, the newest of each, and notes which counts they and the user's receipts
// change. Invites to rooms that are not held here go to found at once.
func (w *worker) gather(ctx context.Context, r *store.Reader, found *seen) (map[eventgraph.RoomID][]eventgraph.EventID, error) {
	user := w.key.User
	events := map[eventgraph.RoomID][]eventgraph.EventID{}
	concerns := map[eventgraph.RoomID]bool{}
	err := r.Changes(w.at, found.upTo, func(_ store.Position, c store.Change) (bool, error) {
		switch {
		case c.Kind == store.ChangeEvent:
			concerned, known := concerns[c.Room]
			if !known {
				_, err := r.Member(c.Room, user)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return false, err
				}
				concerned = err == nil
				concerns[c.Room] = concerned
			}
			if !concerned {
				break
			}
			w.recount(c.Room)
			if events[c.Room] = append(events[c.Room], c.Event); len(events[c.Room]) >= 2*eventsOfRoom {
				events[c.Room] = slices.Delete(events[c.Room], 0, eventsOfRoom)
			}
		case c.User != user:
		case c.Kind == store.ChangeReceipt:
			w.recount(c.Room)
			found.recount = true
		case c.Kind == store.ChangeAccountData && (c.Key == "m.push_rules" || c.Key == "m.ignored_user_list"):
			w.counts = nil
		case c.Kind == store.ChangeMembership:
			w.recount(c.Room)
			return true, w.invitation(r, c.Room, found)
		}
		return ctx.Err() == nil, nil
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return events, err
}

// invitation adds the notice of an invite to a room that is not held here, if that is what has changed.
func (w *worker) invitation(r *store.Reader, room eventgraph.RoomID, found *seen) error {
	m, err := r.Member(room, w.key.User)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := w.Source.Invitation(r, m)
	same := func(other Notice) bool { return other.Event == n.Event }
	if n != nil && err == nil && !slices.ContainsFunc(found.notices, same) {
		found.notices = append(found.notices, *n)
	}
	return err
}

// recount notes that a room's count is to be read anew.
func (w *worker) recount(room eventgraph.RoomID) {
	if w.counts != nil {
		w.counts[room] = stale
	}
}

// unread is how many messages the user has not read, in all rooms. All rooms are looked at once; from then on those where something happens.
func (w *worker) unread(r *store.Reader) (sum int, err error) {
	if w.counts == nil {
		w.counts = map[eventgraph.RoomID]int{}
		err := r.RoomsOf(w.key.User, func(m *store.Member) (bool, error) {
			if m.Membership == "join" {
				w.counts[m.Room] = stale
			}
			return true, nil
		})
		if err != nil {
			return 0, err
		}
	}
	for room, n := range w.counts {
		if n == stale {
			if n, err = w.Source.Unread(r, w.key.User, room); err != nil {
				return 0, err
			}
			w.counts[room] = n
		}
		sum += n
	}
	return sum, nil
}
