package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Delayed events (MSC4140): a client leaves an event here that is sent at a later time, unless it puts that off or cancels it. Calls
// use it so that a client that vanishes leaves its call. What is scheduled lies on disk; RunDelayed sends it.

// Bounds of delayed events, told to clients as a capability.
const (
	maxDelay           = 30 * 24 * time.Hour // for messages to be sent later; calls use seconds
	maxDelayed         = 100                 // scheduled events of one user; a client in a call has one or two
	maxDelayedContent  = 64 << 10            // bytes, as no event may be larger
	maxDelayedBytes    = 1 << 20             // of contents of one user's scheduled events, which one answer lists
	maxDelayedName     = 255                 // bytes of a type and of a state key, as in events (CS API, Size limits)
	delayedRetry       = 30 * time.Second    // after an error that is ours, such as a full disk
	maxDelayedRetry    = 10 * time.Minute    // the longest that a policy server may put off what it has no time for
	maxDelayedLate     = 24 * time.Hour      // after this, what was put off or could not be asked about is given up
	maxDelayedLook     = time.Minute         // a timer stands still while a device sleeps: then the clock is looked at again
	slowDelayed        = time.Second         // what took longer asked another server; after it the user's others wait for those of others
	delayParameter     = "org.matrix.msc4140.delay"
	delayedEvents      = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
	delayedEventsFlag  = "org.matrix.msc4140"
	delayedEventsLimit = "org.matrix.msc4140.delayed_events"
)

// delayedDevice stands for the device in the transaction ID of what is sent for somebody later, which is the delay ID: so it is sent once,
// though the process ends in between. No device has such a name.
const delayedDevice store.DeviceID = "\x00delayed"

// delayedRoutes registers scheduling, of which PUT /send and /state with a delay are an older form that clients use, and managing.
func (a *API) delayedRoutes() {
	a.route("PUT", "/_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}", authed, a.putDelayed)
	a.route("GET", delayedEvents, authed, a.listDelayed)
	a.route("GET", delayedEvents+"/{delayId}", authed, a.getDelayed)
	a.route("POST", delayedEvents+"/{delayId}", authed, a.manageDelayedByBody)
	a.route("POST", delayedEvents+"/{delayId}/{action}", authed, a.manageDelayed)
}

// delayedSending is what the process knows of delayed events beyond the store, for concurrent use.
type delayedSending struct {
	changed chan struct{} // of size 1: something was scheduled or restarted

	mu    sync.Mutex
	busy  map[string]chan struct{} // delay IDs that are being sent or managed; closed when that is done
	later map[string]time.Time     // due delay IDs that are not to be tried before; a restart tries them at once
}

func newDelayedSending() *delayedSending {
	return &delayedSending{changed: make(chan struct{}, 1), busy: map[string]chan struct{}{}, later: map[string]time.Time{}}
}

// putOff says that a due event is not to be tried again before.
func (s *delayedSending) putOff(id string, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later[id] = until
}

// laterThan says until when a due event was put off, if that is after now, and forgets it if not.
func (s *delayedSending) laterThan(now time.Time, id string) (until time.Time, put bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until, put = s.later[id]; put && !until.After(now) {
		delete(s.later, id)
		put = false
	}
	return until, put
}

// forgetOthers forgets what was put off and is not due any more.
func (s *delayedSending) forgetOthers(due map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.later {
		if !due[id] {
			delete(s.later, id)
		}
	}
}

// wake makes RunDelayed look again.
func (s *delayedSending) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// wait returns when something was scheduled or restarted, or the time is up, if it is not forever.
func (s *delayedSending) wait(ctx context.Context, forever bool, d time.Duration) error {
	var up <-chan time.Time
	if !forever {
		timer := time.NewTimer(min(max(d, 0), maxDelayedLook))
		defer timer.Stop()
		up = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.changed:
	case <-up:
	}
	return nil
}

// take waits until nobody else sends or manages the event; done lets go of it.
func (s *delayedSending) take(ctx context.Context, id string) (done func(), err error) {
	for {
		s.mu.Lock()
		other := s.busy[id]
		if other == nil {
			mine := make(chan struct{})
			s.busy[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// putDelayed is PUT /rooms/{roomId}/delayed_event/{eventType}/{txnId}.
func (a *API) putDelayed(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	txn, err := transactionOf(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Delay    *int64          `json:"delay_ms"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	switch {
	case body.Delay == nil || body.Content == nil:
		return nil, missingParam("delay_ms and content are needed.")
	case !isObject(body.Content):
		return nil, badJSON("content must be an object.")
	}
	d := &store.DelayedEvent{User: q.user, Room: room, Type: q.path("eventType"), StateKey: body.StateKey, Content: body.Content, DelayMS: *body.Delay}
	return a.schedule(q, d, txn)
}

// delayOf is the delay in the query of PUT /send or /state, in ms; given is false where there is none.
func delayOf(q *request) (ms int64, given bool, err error) {
	query := q.URL.Query()
	if !query.Has(delayParameter) {
		return 0, false, nil
	}
	ms, err = strconv.ParseInt(query.Get(delayParameter), 10, 64)
	if err != nil {
		return 0, true, invalidParam("The delay is a number of milliseconds.")
	}
	return ms, true, nil
}

// schedule keeps the event and answers its delay ID. A transaction ID that was used before answers the ID that it got then.
func (a *API) schedule(q *request, d *store.DelayedEvent, txn *store.ClientTxn) (any, error) {
	switch {
	case d.DelayMS <= 0:
		return nil, invalidParam("The delay must be longer than nothing.")
	case d.DelayMS > maxDelay.Milliseconds():
		return nil, forbidden("The delay is longer than this server keeps events.")
	case len(d.Content) > maxDelayedContent, len(d.Type) > maxDelayedName, d.StateKey != nil && len(*d.StateKey) > maxDelayedName:
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The event is too large.")
	}
	id := ""
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		endpoint := "delay " + string(d.Room) + " " + d.Type
		if txn != nil {
			before, err := tx.ClientTxnResult(*txn, endpoint)
			if err == nil || !errors.Is(err, store.ErrNotFound) {
				id = before
				return err
			}
		}
		now := a.Now().UnixMilli()
		scheduled, _, err := tx.DelayedEvents(d.User)
		if err != nil {
			return err
		}
		size := len(d.Content)
		for _, other := range scheduled {
			size += len(other.Content)
		}
		if len(scheduled) >= maxDelayed || size > maxDelayedBytes {
			return &matrixError{
				Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED", Message: "The maximum number of delayed events has been reached.",
				Extra: map[string]any{"retry_after_ms": max(scheduled[0].Due()-now, 1)},
			}
		}
		kept := *d
		kept.ID, _ = newToken()
		kept.ScheduledTS = now
		id = kept.ID
		if txn != nil {
			if err := tx.PutClientTxn(*txn, endpoint, id); err != nil {
				return err
			}
		}
		return tx.PutDelayedEvent(&kept)
	})
	if err != nil {
		return nil, err
	}
	a.delayed.wake()
	return map[string]string{"delay_id": id}, nil
}

// delayedJSON is a delayed event as a client is shown it.
type delayedJSON struct {
	ID          string             `json:"delay_id"`
	Room        eventgraph.RoomID  `json:"room_id"`
	Type        string             `json:"type"`
	StateKey    *string            `json:"state_key,omitempty"`
	DelayMS     int64              `json:"delay_ms"`
	ScheduledTS int64              `json:"scheduled_at"`
	Content     json.RawMessage    `json:"content"`
	Error       json.RawMessage    `json:"error,omitempty"`
	Event       eventgraph.EventID `json:"event_id,omitempty"`
	FinalisedTS int64              `json:"finalised_ts,omitzero"`
}

func showDelayed(d *store.DelayedEvent) delayedJSON {
	return delayedJSON{d.ID, d.Room, d.Type, d.StateKey, d.DelayMS, d.ScheduledTS, d.Content, d.Error, d.Event, d.FinalisedTS}
}

// listDelayed is GET /delayed_events: what is scheduled.
func (a *API) listDelayed(q *request) (any, error) {
	list := []delayedJSON{}
	err := a.Store.View(func(r *store.Reader) error {
		scheduled, _, err := r.DelayedEvents(q.user)
		for _, d := range scheduled {
			list = append(list, showDelayed(d))
		}
		return err
	})
	return map[string]any{"delayed_events": list}, err
}

// getDelayed is GET /delayed_events/{delayId}, of finalised ones too.
func (a *API) getDelayed(q *request) (any, error) {
	d, err := a.delayedEvent(q.user, q.path("delayId"))
	if err != nil {
		return nil, err
	}
	return showDelayed(d), nil
}

func (a *API) delayedEvent(user eventgraph.UserID, id string) (d *store.DelayedEvent, err error) {
	err = a.Store.View(func(r *store.Reader) (err error) {
		d, err = r.DelayedEvent(user, id)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = notFound("There is no such delayed event.")
	}
	return d, err
}

// manageDelayedByBody is POST /delayed_events/{delayId} with the action in the body: an older form.
func (a *API) manageDelayedByBody(q *request) (any, error) {
	var body struct {
		Action string `json:"action"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Action == "" {
		return nil, missingParam("action is missing.")
	}
	return a.manage(q, body.Action)
}

// manageDelayed is POST /delayed_events/{delayId}/{action}.
func (a *API) manageDelayed(q *request) (any, error) {
	switch q.path("action") {
	case "send", "cancel", "restart":
	default:
		return nil, errUnrecognized
	}
	if _, err := q.body(); err != nil {
		return nil, err
	}
	return a.manage(q, q.path("action"))
}

func (a *API) manage(q *request, action string) (any, error) {
	id := q.path("delayId")
	done, err := a.delayed.take(q.Context(), id)
	if err != nil {
		return nil, err
	}
	defer done()
	d, err := a.delayedEvent(q.user, id)
	if err != nil {
		return nil, err
	}
	sent, cancelled := d.Event != "", d.FinalisedTS != 0 && d.Event == ""
	conflict := fail(http.StatusConflict, "M_UNKNOWN", "The delayed event was sent or cancelled already.")
	switch action {
	case "cancel":
		switch {
		case sent:
			return nil, conflict
		case cancelled:
			return nil, nil
		}
		d.FinalisedTS = a.Now().UnixMilli()
	case "restart":
		if sent || cancelled {
			return nil, conflict
		}
		d.ScheduledTS = a.Now().UnixMilli()
	case "send":
		switch {
		case sent:
			return nil, nil
		case cancelled:
			return nil, conflict
		}
		// If it cannot be sent now, it stays scheduled: it may be possible later.
		if d.Event, err = a.sendDelayed(q.Context(), d, 0); err != nil {
			return nil, err
		}
		d.FinalisedTS = a.Now().UnixMilli()
	default:
		return nil, invalidParam("action is send, cancel or restart.")
	}
	if err := a.keepDelayed(context.WithoutCancel(q.Context()), d); err != nil {
		return nil, err
	}
	a.delayed.wake()
	return nil, nil
}

// keepDelayed stores what has become of the event, unless its user was deactivated meanwhile.
func (a *API) keepDelayed(ctx context.Context, d *store.DelayedEvent) error {
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.DelayedEvent(d.User, d.ID); err != nil {
			return err
		}
		return tx.PutDelayedEvent(d)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// sendDelayed sends the event as its user would now, but not over state that came here after due (ms), if that is not 0: it would have been overwritten
// if this had been sent in time. What came before is overwritten (MSC4140, Conflicting delayed state events).
func (a *API) sendDelayed(ctx context.Context, d *store.DelayedEvent, due int64) (eventgraph.EventID, error) {
	txn := &store.ClientTxn{User: d.User, Device: delayedDevice, TxnID: d.ID}
	draft := rooms.Draft{Room: d.Room, Sender: d.User, Type: d.Type, StateKey: d.StateKey, Content: d.Content, Txn: txn, Due: due}
	if d.StateKey != nil {
		return a.sendState(ctx, draft)
	}
	return a.sendMessage(ctx, draft)
}

// RunDelayed sends delayed events when their time has come, until ctx ends; what came due while the process did not run is sent first.
func (a *API) RunDelayed(ctx context.Context) error {
	for {
		next, err := a.sendDue(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			a.Log.Error("delayed events could not be sent; they are tried again", "error", err)
		}
		if err := a.delayed.wait(ctx, next.IsZero(), next.Sub(a.Now())); err != nil {
			return err
		}
	}
}

// sendDue sends what is due, in the order of its times, and answers when to look again, also beside an error; never, if nothing is scheduled. Invites and aliases
// ask other servers, which takes seconds if they are away: of these it sends one of each user, so that nobody keeps all others waiting.
func (a *API) sendDue(ctx context.Context) (next time.Time, err error) {
	type due struct {
		user eventgraph.UserID
		id   string
	}
	var all []due
	now := a.Now()
	err = a.Store.View(func(r *store.Reader) error {
		return r.DelayedDue(func(ts int64, user eventgraph.UserID, id string) (bool, error) {
			if ts > now.UnixMilli() {
				next = time.UnixMilli(ts)
				return false, nil
			}
			all = append(all, due{user, id})
			return true, nil
		})
	})
	look := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if err != nil {
		look(now.Add(delayedRetry))
	}
	ids := map[string]bool{}
	for _, one := range all {
		ids[one.id] = true
	}
	a.delayed.forgetOthers(ids)
	var failed []error
	slow := map[eventgraph.UserID]bool{}
	for _, one := range all {
		if slow[one.user] {
			look(now)
			continue
		}
		began := a.Now()
		until, putOff := a.delayed.laterThan(began, one.id)
		if !putOff {
			if err := a.sendOneDue(ctx, one.user, one.id); err != nil {
				failed = append(failed, err)
				a.delayed.putOff(one.id, a.Now().Add(delayedRetry))
			}
			until, putOff = a.delayed.laterThan(began, one.id)
			slow[one.user] = a.Now().Sub(began) > slowDelayed
		}
		if putOff {
			look(until)
		}
	}
	return next, errors.Join(append(failed, err)...)
}

// retryDelayed says after what time an event that could not be sent is to be tried again; false if never, or refused for good. It is the
// room's policy server that is away or too busy, or the user who is sending too much.
func retryDelayed(refused *matrixError, err error) (time.Duration, bool) {
	var policy *federation.PolicyError
	switch {
	case refused.Status == http.StatusTooManyRequests:
		if ms, ok := refused.Extra["retry_after_ms"].(int64); ok {
			return min(time.Duration(ms)*time.Millisecond, maxDelayedRetry), true
		}
		return delayedRetry, true
	case errors.As(err, &policy) && errors.Is(err, federation.ErrUnreachable):
		return delayedRetry, true
	}
	return 0, false
}

// sendOneDue sends an event whose time has come and finalises it, whether it could be sent or was refused, or puts it off; an error is ours, and the
// event stays scheduled.
func (a *API) sendOneDue(ctx context.Context, user eventgraph.UserID, id string) error {
	done, err := a.delayed.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	var d *store.DelayedEvent
	var account *store.Account
	err = a.Store.View(func(r *store.Reader) (err error) {
		if d, err = r.DelayedEvent(user, id); err == nil {
			account, err = r.Account(user)
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || d.FinalisedTS != 0 || d.Due() > a.Now().UnixMilli() { // managed since it was looked at
		return err
	}
	err = usable(account)
	if err == nil && a.RateLimits {
		err = a.limits.request(user)
	}
	if err == nil {
		d.Event, err = a.sendDelayed(ctx, d, d.Due())
	}
	if err != nil {
		refused := asMatrixError(err)
		if refused == nil {
			return err
		}
		after, again := retryDelayed(refused, err)
		now := a.Now()
		if again && now.Sub(time.UnixMilli(d.Due())) < maxDelayedLate {
			a.delayed.putOff(id, now.Add(after))
			return nil
		}
		if !again && refused.Status >= http.StatusInternalServerError {
			return err
		}
		if d.Error, err = json.Marshal(map[string]string{"errcode": refused.Code, "error": refused.Message}); err != nil {
			return err
		}
	}
	d.FinalisedTS = a.Now().UnixMilli()
	return a.keepDelayed(ctx, d)
}
