package federation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Limits of a transaction (SS API, Transactions).
const (
	maxPDUs = 50
	maxEDUs = 100
)

// inboxFullRetry is when a peer may repeat a transaction that found the inbox full.
const inboxFullRetry = 30 * time.Second

// typingTimeout is how long a remote user counts as typing without a further EDU (SS API, Typing Notifications, leaves
// it to the receiver).
const typingTimeout = 30 * time.Second

// transaction is the body of PUT /send/{txnId}.
type transaction struct {
	Origin         eventgraph.ServerName `json:"origin"`
	OriginServerTS int64                 `json:"origin_server_ts"`
	PDUs           []json.RawMessage     `json:"pdus"`
	EDUs           []edu                 `json:"edus,omitempty"`
	size           int                   // bytes of PDUs and EDUs; counted by the sender
}

type edu struct {
	Type    string          `json:"edu_type"`
	Content json.RawMessage `json:"content"`
}

// sendAnswer is its answer: an entry for each PDU whose ID can be known, with an error if it was refused.
type sendAnswer struct {
	PDUs map[eventgraph.EventID]pduResult `json:"pdus"`
}

type pduResult struct {
	Error     string `json:"error,omitempty"`
	postponed bool   // it may find a place later
}

var noPlace = pduResult{errTooManyWaiting.Error(), true}

func (f *Federation) sendRoutes(r *router) {
	r.add(http.MethodPut, "/_matrix/federation/v1/send/{txnId}", f.serveSend)
}

// serveSend answers PUT /_matrix/federation/v1/send/{txnId} (SS API, Transactions). When it answers 200, each PDU is
// refused, or stored with its verdict, or in the durable inbox. A repeated transaction gets the same answer.
func (f *Federation) serveSend(q *request) (any, error) {
	var t transaction
	if err := q.decode(&t); err != nil {
		return nil, err
	}
	if t.Origin != "" && t.Origin != q.origin {
		return nil, fail(http.StatusUnauthorized, "M_UNAUTHORIZED", "the transaction is of another origin than the request")
	}
	if len(t.PDUs) > maxPDUs || len(t.EDUs) > maxEDUs {
		return nil, fail(http.StatusBadRequest, "M_BAD_JSON", fmt.Sprintf("a transaction holds at most %d PDUs and %d EDUs", maxPDUs, maxEDUs))
	}
	if err := f.admitParts(q, &t); err != nil {
		return nil, err
	}
	// One transaction of an origin at a time: its order is the order in which it sent.
	done, err := f.receiving.lock(q.Context(), q.origin)
	if err != nil {
		return nil, err
	}
	defer done()
	txn := f.transactionKey(q)
	if txn.remembered = t.hasLastingEDU(); txn.remembered {
		if before, err := f.seenTransaction(txn); err != nil || before != nil {
			return before, err
		}
	}

	// What has begun is finished though the peer hangs up: it will ask again, and then it is quick.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.Context()), receiveTimeout)
	defer cancel()
	if err := f.afterJoins(ctx, t.PDUs); err != nil {
		return nil, err
	}
	if t.PDUs, err = f.takeRescinded(ctx, q.origin, t.PDUs); err != nil {
		return nil, err
	}
	answer := sendAnswer{PDUs: map[eventgraph.EventID]pduResult{}}
	if t.PDUs, err = f.takeEarly(ctx, q.origin, t.PDUs, answer.PDUs); err != nil {
		return nil, err
	}
	for _, run := range f.parsePDUs(q.origin, t.PDUs, answer.PDUs) {
		if err := f.admitEvents(ctx, q.origin, run, budgetWait); err != nil {
			return nil, err
		}
		refused, err := f.takeIn(ctx, run.room, run.events, q.origin)
		if err != nil {
			return nil, err
		}
		for _, e := range run.events {
			answer.PDUs[e.ID()] = refused[e.ID()]
		}
	}
	// EDUs wait too, for the whole comes again.
	if answer.lacksPlace() && f.inbox.postpones(q.origin) {
		return nil, errInboxFull
	}
	for _, e := range t.EDUs {
		if err := f.receiveEDU(ctx, q.origin, e); err != nil {
			return nil, fmt.Errorf("EDU %s: %w", e.Type, err)
		}
	}
	raw, err := marshal(answer)
	if err != nil {
		return nil, err
	}
	if txn.remembered {
		_, err = f.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutSeenTransaction(txn.origin, txn.id, raw) })
	}
	return json.RawMessage(raw), err
}

func (a *sendAnswer) lacksPlace() bool {
	for _, r := range a.PDUs {
		if r.postponed {
			return true
		}
	}
	return false
}

// errInboxFull tells a peer to come again.
var errInboxFull = &matrixError{Status: http.StatusServiceUnavailable, RetryAfterMS: inboxFullRetry.Milliseconds(),
	Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "too many events wait here for their parents; send this again later"}}

// receiveTimeout bounds the work on one transaction (design.md §3.6): what is done by then need not be done again
// when the peer repeats it.
const receiveTimeout = 10 * time.Second

// seenKey is under what a transaction that was answered is known. One of PDUs, typing and presence alone is not remembered: done
// again it changes nothing and has the same answer, and a commit is saved.
type seenKey struct {
	origin     eventgraph.ServerName
	id         string
	remembered bool
}

// transactionKey is by peer and content too: an origin that comes back without its memory, on a new device, may use an ID again.
// All servers that share no room with us have one memory together: each has its own bound in the store, and anybody can
// make any number of servers.
func (f *Federation) transactionKey(q *request) seenKey {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%q\n", q.peer, q.path("txnId"))
	h.Write(q.body)
	k := seenKey{id: hex.EncodeToString(h.Sum(nil))}
	if f.inSomeRoom(q.origin) {
		k.origin = q.origin
	}
	return k
}

func (t *transaction) hasLastingEDU() bool {
	return slices.ContainsFunc(t.EDUs, func(e edu) bool { return e.lasts() })
}

// seenTransaction is the answer given before; nil if there was none.
func (f *Federation) seenTransaction(txn seenKey) (before json.RawMessage, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		answer, seen, err := r.SeenTransaction(txn.origin, txn.id)
		if seen {
			before = answer
		}
		return err
	})
	return before, err
}

// run is a transaction's events of one room, in its order.
type run struct {
	room   eventgraph.RoomID
	events []*eventgraph.Event
}

// parsePDUs parses what a transaction holds, by room, and notes those that cannot be events or that the origin may not send. A PDU of
// a room that we do not know has no ID that we could know, so it has no entry.
func (f *Federation) parsePDUs(origin eventgraph.ServerName, pdus []json.RawMessage, results map[eventgraph.EventID]pduResult) []run {
	var runs []run
	at := map[eventgraph.RoomID]int{}
	for _, raw := range pdus {
		var frame struct {
			Room eventgraph.RoomID `json:"room_id"`
		}
		if err := json.Unmarshal(raw, &frame); err != nil {
			f.Log.Info("PDU refused: not an event", "origin", origin, "err", err)
			continue
		}
		version, ok := f.versionOf(frame.Room)
		if !ok {
			f.Log.Info("PDU dropped: its room is not known here", "origin", origin, "room", frame.Room)
			continue
		}
		e, err := eventgraph.ParseEvent(version, raw)
		if err == nil && !f.allows(frame.Room, origin) {
			err = errors.New("the room's server ACL denies the origin")
		}
		if err == nil && !f.Rooms.InRoom(frame.Room, origin) && (e.Sender().Server() != origin || !f.fromOutside.Allow()) {
			err = errors.New("the origin is not in the room") // or its join is not known here yet: then meetings bring the event
		}
		if err != nil {
			id, idErr := eventgraph.ReferenceID(version, raw)
			f.Log.Info("PDU refused", "origin", origin, "room", frame.Room, "event", id, "err", err)
			if idErr == nil {
				results[id] = pduResult{Error: err.Error()}
			}
			continue
		}
		i, ok := at[frame.Room]
		if !ok {
			i = len(runs)
			at[frame.Room] = i
			runs = append(runs, run{room: frame.Room})
		}
		runs[i].events = append(runs[i].events, e)
	}
	return runs
}

// versionOf is the version of a room held here.
func (f *Federation) versionOf(room eventgraph.RoomID) (version eventgraph.RoomVersion, ok bool) {
	if room == "" {
		return "", false
	}
	err := f.Store.View(func(r *store.Reader) error {
		held, err := r.Room(room)
		if err == nil {
			version = held.Version
		}
		return err
	})
	return version, err == nil
}

// takeIn puts events of one room through Accept, those that miss something into the durable inbox. It returns why events were refused.
func (f *Federation) takeIn(ctx context.Context, room eventgraph.RoomID, events []*eventgraph.Event, origin eventgraph.ServerName) (refused map[eventgraph.EventID]pduResult, err error) {
	return f.takeInPatiently(ctx, room, events, origin, 0)
}

// takeInPatiently is takeIn for events whose parents may be on their way: they are not asked for before patience is over.
func (f *Federation) takeInPatiently(ctx context.Context, room eventgraph.RoomID, events []*eventgraph.Event, origin eventgraph.ServerName, patience time.Duration) (refused map[eventgraph.EventID]pduResult, err error) {
	refused = map[eventgraph.EventID]pduResult{}
	var waiting []*store.InboxItem
	var failed error
	moved := false
	from := f.giver(room, origin)
	err = f.acceptEvents(ctx, events, origin, func(e *eventgraph.Event, o rooms.Outcome) {
		var refusal *rooms.Refusal
		var missing *rooms.MissingError
		switch {
		case errors.As(o.Err, &refusal):
			refused[e.ID()] = pduResult{Error: refusal.Reason}
			f.inbox.refused.Add(refusedFrom{e.ID(), origin}, f.Now())
		case errors.As(o.Err, &missing):
			item, err := f.holdBack(ctx, room, e, from, patience)
			switch {
			case errors.Is(err, errTooManyWaiting):
				refused[e.ID()] = noPlace
			case err != nil:
				failed = err
			case item != nil:
				waiting = append(waiting, item)
			}
		default:
			moved = moved || !o.Already
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return refused, err
	}
	if len(waiting) > 0 {
		err := f.putInbox(ctx, waiting)
		if errors.Is(err, store.ErrInboxFull) {
			for _, item := range waiting {
				refused[item.ID] = noPlace
			}
			err = nil
		}
		if err != nil {
			return nil, err
		}
		f.inbox.wake(room)
	} else if moved {
		f.inbox.nudge(room) // what waits there may have waited for these
	}
	return refused, nil
}

// acceptEvents puts events through Accept in graph order and calls each for each outcome; it does not stop at one that must wait.
func (f *Federation) acceptEvents(ctx context.Context, events []*eventgraph.Event, origin eventgraph.ServerName, each func(*eventgraph.Event, rooms.Outcome)) error {
	for rest := eventgraph.SortTopologically(events); len(rest) > 0; {
		outcomes, err := f.Rooms.AcceptAll(ctx, rest, rooms.Basis{Kind: rooms.Parents, Origin: origin})
		if err != nil {
			return err
		}
		if len(outcomes) == 0 || len(outcomes) > len(rest) {
			return fmt.Errorf("accept of %d events gave %d outcomes", len(rest), len(outcomes))
		}
		for i, o := range outcomes {
			f.logOutcome(rest[i], origin, o)
			each(rest[i], o)
		}
		rest = rest[len(outcomes):]
	}
	return nil
}

// logOutcome tells of an event that was not simply accepted, once.
func (f *Federation) logOutcome(e *eventgraph.Event, origin eventgraph.ServerName, o rooms.Outcome) {
	var refusal *rooms.Refusal
	switch {
	case errors.As(o.Err, &refusal):
		f.Log.Info("event refused", "room", e.RoomID(), "event", e.ID(), "origin", origin, "err", refusal)
	case o.Err != nil || o.Already:
	case o.Verdict == store.Rejected || o.Verdict == store.SoftFailed: // Accept has logged it
	case e.HashMismatch():
		f.Log.Info("event has a wrong content hash and counts as redacted", "room", e.RoomID(), "event", e.ID(), "origin", origin)
	}
}

// inboxWrite is how many bytes of PDUs are put into the inbox in one write, of which the store takes about a megabyte.
const inboxWrite = 512 << 10

// putInbox puts items into the inbox, with the time, so that a crash does not take back what has passed before they came.
func (f *Federation) putInbox(ctx context.Context, items []*store.InboxItem) error {
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && (n == 0 || size+len(items[n].PDU) <= inboxWrite) {
			size += len(items[n].PDU)
			n++
		}
		part := items[:n]
		items = items[n:]
		_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
			now := f.inboxTime.now().Milliseconds()
			for _, i := range part {
				i.Since = now
				if err := tx.PutInbox(i); err != nil {
					return err
				}
			}
			return tx.PutInboxTime(now)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// receiveEDU checks whose EDU it may be and hands it on (SS API, EDUs). An EDU that is not in order is dropped; an error means that a
// durable one could not be kept.
func (f *Federation) receiveEDU(ctx context.Context, origin eventgraph.ServerName, e edu) error {
	drop := func(why string) error {
		f.Log.Debug("EDU dropped", "origin", origin, "type", e.Type, "why", why)
		return nil
	}
	switch e.Type {
	case "m.typing":
		var c struct {
			Room   eventgraph.RoomID `json:"room_id"`
			User   eventgraph.UserID `json:"user_id"`
			Typing bool              `json:"typing"`
		}
		if json.Unmarshal(e.Content, &c) != nil || c.User.Server() != origin {
			return drop("not of the origin's user")
		}
		if !f.allows(c.Room, origin) || !f.isJoined(c.Room, c.User) {
			return drop("not in the room")
		}
		timeout := time.Duration(0)
		if c.Typing {
			timeout = typingTimeout
		}
		f.Ephemeral.SetTyping(c.Room, c.User, timeout)
		return nil
	case "m.presence":
		return f.receivePresence(origin, e.Content)
	case "m.receipt":
		content, ok := f.allowedReceipts(origin, e.Content)
		if !ok {
			return drop("no receipt in it that the origin may give")
		}
		return f.Local.ReceiveEDU(ctx, origin, e.Type, content)
	case "m.direct_to_device":
		var c struct {
			Sender eventgraph.UserID `json:"sender"`
		}
		if json.Unmarshal(e.Content, &c) != nil || c.Sender.Server() != origin {
			return drop("not of the origin's user")
		}
		return f.Local.ReceiveEDU(ctx, origin, e.Type, e.Content)
	case "m.device_list_update", "m.signing_key_update":
		var c struct {
			User eventgraph.UserID `json:"user_id"`
		}
		if json.Unmarshal(e.Content, &c) != nil || c.User.Server() != origin {
			return drop("not of the origin's user")
		}
		if !f.inSomeRoom(origin) {
			return drop("nobody here shares a room with the user")
		}
		return f.Local.ReceiveEDU(ctx, origin, e.Type, e.Content)
	}
	return drop("type not known")
}

// maxPresencePush bounds the users of one m.presence EDU.
const maxPresencePush = 100

func (f *Federation) receivePresence(origin eventgraph.ServerName, content json.RawMessage) error {
	var c struct {
		Push []struct {
			User            eventgraph.UserID `json:"user_id"`
			Presence        string            `json:"presence"`
			StatusMsg       string            `json:"status_msg"`
			LastActiveAgo   int64             `json:"last_active_ago"`
			CurrentlyActive bool              `json:"currently_active"`
		} `json:"push"`
	}
	if json.Unmarshal(content, &c) != nil {
		return nil
	}
	if !f.inSomeRoom(origin) && !f.letsIn(origin) {
		return nil // strangers' presence is nobody's business here
	}
	for _, p := range c.Push[:min(len(c.Push), maxPresencePush)] {
		if _, err := eventgraph.ParseUserID(string(p.User)); err != nil || p.User.Server() != origin {
			continue // of a user ID too long, too: what is kept here is bounded in number only
		}
		switch p.Presence {
		case "online", "unavailable", "offline":
		default:
			continue
		}
		ago := time.Duration(min(max(p.LastActiveAgo, 0), time.Hour.Milliseconds()*24*365)) * time.Millisecond
		f.Ephemeral.SetPresence(p.User, ephemeral.Presence{State: p.Presence, StatusMsg: p.StatusMsg[:min(len(p.StatusMsg), maxStatusMsg)],
			LastActive: f.Now().Add(-ago), CurrentlyActive: p.CurrentlyActive})
	}
	return nil
}

// letsIn says whether a room is coming from the server: it tells of its users as soon as it has taken in our join.
func (f *Federation) letsIn(server eventgraph.ServerName) (lets bool) {
	err := f.Store.View(func(r *store.Reader) error {
		return r.Joins(func(j *store.Join) (bool, error) {
			lets = j.Server == server || slices.Contains(j.Via, server)
			return !lets, nil
		})
	})
	return lets && err == nil
}

// maxStatusMsg bounds a presence status message, in bytes; the spec sets no limit.
const maxStatusMsg = 1024

// allowedReceipts keeps of an m.receipt those of the origin's joined users in rooms whose ACL lets the origin in.
func (f *Federation) allowedReceipts(origin eventgraph.ServerName, content json.RawMessage) (json.RawMessage, bool) {
	var c map[eventgraph.RoomID]map[string]map[eventgraph.UserID]json.RawMessage
	if json.Unmarshal(content, &c) != nil {
		return nil, false
	}
	for room, types := range c {
		if !f.allows(room, origin) {
			delete(c, room)
			continue
		}
		for kind, users := range types {
			if kind != "m.read" { // the only type that may be federated
				delete(types, kind)
				continue
			}
			for user := range users {
				if user.Server() != origin || !f.isJoined(room, user) {
					delete(users, user)
				}
			}
			if len(users) == 0 {
				delete(types, kind)
			}
		}
		if len(types) == 0 {
			delete(c, room)
		}
	}
	if len(c) == 0 {
		return nil, false
	}
	raw, err := marshal(c)
	return raw, err == nil
}

func (f *Federation) isJoined(room eventgraph.RoomID, user eventgraph.UserID) bool {
	joined := false
	f.Store.View(func(r *store.Reader) error {
		m, err := r.Member(room, user)
		joined = err == nil && m.Membership == "join" && !m.Outside
		return nil
	})
	return joined
}
