package appservice

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/store"
)

// The sender reads the store's changes, as /sync does, for each service on its own. There is a stored cursor, and a transaction whose content
// and ID are stored before the first attempt, so that a repetition is exactly it (AS API, Pushing events; design.md §3.3).
//
//	changes ─ compose ─→ transaction ─ fix: on disk ─→ PUT /transactions, until it is answered 200 ─→ cursor
//	typing, presence ─→ a transaction of its own, of the moment: not stored, and made anew rather than repeated

const (
	// retryFirst and retryLast bound the wait after a failed attempt; it doubles. A service that calls us is tried after retryFirst: it
	// has come back.
	retryFirst = time.Second
	retryLast  = 5 * time.Minute
)

// Local writes out what services are told, in the client-server API's form; *clientapi.API in a node.
type Local interface {
	// ServiceEvent is an event as clients see it; nil for one that they are not shown.
	ServiceEvent(r *store.Reader, e *store.StoredEvent) (json.RawMessage, error)
	// ServiceInvite is the invite by which somebody is invited to a room not held here, or the event that ended it; nil if m is neither.
	ServiceInvite(r *store.Reader, m *store.Member) (json.RawMessage, error)
	// ServiceReceipts is an m.receipt event of the room.
	ServiceReceipts(room eventgraph.RoomID, receipts []*store.Receipt) (json.RawMessage, error)
	// ServicePresence is an m.presence event; nil if nothing is known of the user.
	ServicePresence(user eventgraph.UserID) (json.RawMessage, error)
}

// Config of NewSender. All fields are required.
type Config struct {
	Store     *store.Store
	Ephemeral *ephemeral.State
	Services  *Services
	Local     Local
	Log       *slog.Logger
}

// Sender brings services what concerns them. Run owns its goroutines, one for each service.
type Sender struct {
	Config
	start ephemeral.Counter // who typed and was present before this is told to nobody
}

// NewSender makes the sender. A service that was never here, or wanted no traffic, is told of what happens from now on; and so is one that was not
// among the services at the last start: a bridge that is set up again after months is not to tell its network the old messages as if they were new.
func NewSender(ctx context.Context, c Config) (*Sender, error) {
	if err := forgetRemoved(ctx, c); err != nil && !errors.Is(err, store.ErrDiskFull) {
		return nil, fmt.Errorf("application services that were removed: %w", err)
	}
	for _, svc := range c.Services.All() {
		_, err := c.Store.Update(ctx, func(tx *store.Tx) error {
			_, err := tx.ServiceCursor(svc.ID)
			if err != nil && !errors.Is(err, store.ErrNotFound) || err == nil && svc.url != nil {
				return err
			}
			return tx.PutServiceCursor(&store.ServiceCursor{Service: svc.ID, Sent: tx.Position()})
		})
		if err != nil && !errors.Is(err, store.ErrDiskFull) {
			return nil, fmt.Errorf("application service %s: %w", svc.ID, err)
		}
	}
	return &Sender{c, c.Ephemeral.Counter()}, nil
}

// forgetRemoved drops the cursors of services that are not registered any more, with what was in flight. The log says so: it may be that one was
// left out of the command line by mistake.
func forgetRemoved(ctx context.Context, c Config) error {
	var removed []*store.ServiceCursor
	err := c.Store.View(func(r *store.Reader) error {
		ids, err := r.ServiceCursors()
		for _, id := range ids {
			if slices.ContainsFunc(c.Services.All(), func(s *Service) bool { return s.ID == id }) {
				continue
			}
			cursor, err := r.ServiceCursor(id)
			if err != nil {
				return err
			}
			removed = append(removed, cursor)
		}
		return err
	})
	if err != nil || len(removed) == 0 {
		return err
	}
	_, err = c.Store.Update(ctx, func(tx *store.Tx) error {
		for _, cursor := range removed {
			if err := tx.DeleteServiceCursor(cursor.Service); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, cursor := range removed {
		c.Log.Warn("an application service is not registered any more; it is not told what it has missed, also if it comes back",
			"service", cursor.Service, "told", cursor.Sent, "in_flight", cursor.InFlight != nil)
	}
	return nil
}

// Run sends until ctx ends, and returns when all its goroutines have ended.
func (s *Sender) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, svc := range s.Services.All() {
		if svc.url != nil {
			group.Go(func() error { return s.serve(ctx, &sending{Service: svc, sender: s, rooms: newRoomUsers()}) })
		}
	}
	err := group.Wait()
	s.Services.Close()
	return err
}

// sending is the work for one service, of its goroutine alone.
type sending struct {
	*Service
	sender *Sender
	rooms  roomUsers

	cursor store.ServiceCursor // acknowledged and looked at so far; ahead of the stored one
	saved  store.Position      // of the stored one
	told   ephemeral.Counter   // typing and presence up to here are told
	acked  string              // ID of a transaction acknowledged since; "" if none
	failed int                 // attempts in a row
}

// serve is the goroutine of one service.
func (s *Sender) serve(ctx context.Context, w *sending) error {
	if err := s.Store.View(func(r *store.Reader) error {
		c, err := r.ServiceCursor(w.ID)
		if errors.Is(err, store.ErrNotFound) { // the disk was full
			w.cursor = store.ServiceCursor{Service: w.ID, Sent: r.Position()}
			return nil
		}
		if err == nil {
			w.cursor = *c
		}
		return err
	}); err != nil {
		return fmt.Errorf("application service %s: %w", w.ID, err)
	}
	w.saved = w.cursor.Sent
	w.told = s.start
	for {
		err := w.round(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, store.ErrDiskFull):
			s.Log.Warn("an application service waits for room on the disk", "service", w.ID)
			w.failed++
		case err != nil:
			return fmt.Errorf("application service %s: %w", w.ID, err)
		}
		if w.failed == 0 {
			continue
		}
		if err := w.wait(ctx, backoff(w.failed)); err != nil {
			return err
		}
	}
}

// backoff is how long to wait after so many failures in a row.
func backoff(failed int) time.Duration {
	return min(retryLast, retryFirst<<min(failed-1, 20))
}

// round delivers what is in flight, else fixes what comes next, else waits for something.
func (w *sending) round(ctx context.Context) error {
	if w.cursor.InFlight != nil {
		return w.deliver(ctx)
	}
	upTo := w.sender.Store.Position()
	if upTo > w.cursor.Sent {
		return w.fix(ctx, upTo)
	}
	if w.saved < w.cursor.Sent && !w.onlyScanned() {
		return w.save(ctx) // nothing more comes at once: say that the last is done
	}
	counter := w.sender.Ephemeral.Counter()
	if w.ReceiveEphemeral && counter > w.told {
		return w.tellMoment(ctx, counter)
	}
	return w.waitForChange(ctx, counter)
}

// onlyScanned says whether nothing was sent since the cursor was stored, and not too much was looked at in vain.
func (w *sending) onlyScanned() bool {
	return w.acked == "" && w.cursor.Sent-w.saved < saveScan
}

// fix puts the next transaction together and stores it.
func (w *sending) fix(ctx context.Context, upTo store.Position) error {
	var c *composed
	err := w.sender.Store.View(func(r *store.Reader) (err error) {
		c, err = w.compose(ctx, r, upTo)
		return err
	})
	if err != nil {
		return err
	}
	if len(c.Events) == 0 && len(c.Ephemeral) == 0 {
		w.cursor.Sent = c.reached
		return nil
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	next := w.cursor
	next.InFlight = &store.Transaction{ID: rand.Text(), Body: body, UpTo: c.reached}
	if err := w.put(ctx, &next); err != nil {
		return err
	}
	w.cursor = next
	return nil
}

func (w *sending) save(ctx context.Context) error { return w.put(ctx, &w.cursor) }

func (w *sending) put(ctx context.Context, c *store.ServiceCursor) error {
	_, err := w.sender.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutServiceCursor(c) })
	if err == nil {
		w.saved, w.acked = c.Sent, ""
	}
	return err
}

// deliver makes one attempt to send what is in flight.
func (w *sending) deliver(ctx context.Context) error {
	t := w.cursor.InFlight
	if !w.send(ctx, t.ID, t.Body) {
		return nil
	}
	w.acked, w.cursor = t.ID, store.ServiceCursor{Service: w.ID, Sent: t.UpTo}
	return nil
}

// send makes one attempt, and counts it if it failed.
func (w *sending) send(ctx context.Context, id string, body []byte) (ok bool) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	r, err := w.call(ctx, http.MethodPut, "/_matrix/app/v1/transactions/"+url.PathEscape(id), nil, body)
	if err == nil && r.status != http.StatusOK {
		err = &BadStatusError{Status: r.status}
	}
	if err == nil {
		if w.failed > 0 {
			w.sender.Log.Info("an application service takes events again", "service", w.ID)
		}
		w.failed = 0
		return true
	}
	if w.failed == 0 && !errors.Is(err, context.Canceled) {
		w.sender.Log.Warn("an application service does not take events: they wait, and are sent again", "service", w.ID, "error", err)
	}
	w.failed++
	return false
}

// tellMoment tells who types and who is present, as it is now. What could not be told is out of date when the service is back; then it is
// told what is so at that time.
func (w *sending) tellMoment(ctx context.Context, upTo ephemeral.Counter) error {
	var moment []json.RawMessage
	err := w.sender.Store.View(func(r *store.Reader) (err error) {
		moment, err = w.moment(r)
		return err
	})
	if err != nil {
		return err
	}
	for len(moment) > 0 {
		part := moment[:min(len(moment), maxEvents)]
		c := &composed{Events: []json.RawMessage{}, Ephemeral: part}
		if w.unstableEphemeral {
			c.Unstable = part
		}
		body, err := c.body()
		if err != nil {
			return err
		}
		if !w.send(ctx, rand.Text(), body) {
			return nil
		}
		moment = moment[len(part):]
	}
	w.told = upTo
	return nil
}

// waitForChange returns once there may be something to tell. It has waited for its goroutines then.
func (w *sending) waitForChange(ctx context.Context, counter ephemeral.Counter) error {
	if !w.ReceiveEphemeral {
		_, err := w.sender.Store.Wait(ctx, w.cursor.Sent)
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 2)
	go func() { _, err := w.sender.Store.Wait(ctx, w.cursor.Sent); done <- err }()
	go func() { _, err := w.sender.Ephemeral.Wait(ctx, counter); done <- err }()
	first := <-done
	cancel()
	<-done
	return first
}
