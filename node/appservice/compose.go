package appservice

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxEvents bounds the events of a transaction, and likewise its ephemeral ones.
	maxEvents = 100
	// fullTransaction is a body after which no event is added. An event and what stands beside it (its predecessor, what redacted it, stripped
	// state) are some 64 KiB each at most, so the body stays below store.MaxTransactionBody.
	fullTransaction = 256 << 10
	// maxReceiptThreads bounds the threads of which a change of somebody's receipts tells, those read last: one user may have receipts in
	// store.MaxReceiptThreads of a room, with IDs of 255 bytes.
	maxReceiptThreads = 100
	// scanAtOnce bounds the changes looked at for one transaction.
	scanAtOnce = 20_000
	// saveScan is how far a cursor may move over changes that do not concern its service before it is stored.
	saveScan = 5_000
	// maxRoomsKept is of how many rooms it is remembered who of a service may be in them. Others are looked through again.
	maxRoomsKept = 2_000
)

// composed is the body of a transaction (transactions.yaml).
type composed struct {
	Events    []json.RawMessage `json:"events"`
	Ephemeral []json.RawMessage `json:"ephemeral,omitempty"`
	Unstable  []json.RawMessage `json:"de.sorunome.msc2409.ephemeral,omitempty"` // the same (MSC2409, Unstable prefix)

	reached store.Position
	size    int
}

func (c *composed) full() bool {
	return len(c.Events) >= maxEvents || len(c.Ephemeral) >= maxEvents || c.size >= fullTransaction
}

// body is the transaction as it is sent, without the escaping that HTML would need: that makes six bytes of one.
func (c *composed) body() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(c)
	return b.Bytes(), err
}

// compose puts together what happened after the cursor, upTo at most.
func (w *sending) compose(ctx context.Context, r *store.Reader, upTo store.Position) (*composed, error) {
	from := w.cursor.Sent
	c := &composed{Events: []json.RawMessage{}, reached: min(upTo, from+scanAtOnce)}
	receipts := map[receiptOf]bool{}
	err := r.Changes(from, c.reached, func(pos store.Position, change store.Change) (bool, error) {
		if c.full() {
			c.reached = pos - 1
			return false, nil
		}
		var err error
		switch change.Kind {
		case store.ChangeEvent:
			err = w.addEvent(r, c, change)
		case store.ChangeMembership:
			err = w.addInvite(r, c, pos, change)
		case store.ChangeReceipt:
			err = w.addReceipt(r, c, change, receipts)
		}
		if errors.Is(err, store.ErrNotFound) {
			err = nil // the room has gone since
		}
		return ctx.Err() == nil, err
	})
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return c, err
}

func (w *sending) addEvent(r *store.Reader, c *composed, change store.Change) error {
	e, err := r.Event(change.Event)
	if err != nil {
		return err
	}
	w.rooms.note(w.Service, e)
	is, err := w.concernedBy(r, e)
	if err != nil || !is {
		return err
	}
	raw, err := w.sender.Local.ServiceEvent(r, e)
	if raw != nil {
		c.Events, c.size = append(c.Events, raw), c.size+len(raw)
	}
	return err
}

// addInvite tells of an invite to a room that is not held here, and of the end of one: the last change that the member's record has seen
// stands for those before it.
func (w *sending) addInvite(r *store.Reader, c *composed, pos store.Position, change store.Change) error {
	if !w.HasUser(change.User) {
		return nil
	}
	m, err := r.Member(change.Room, change.User)
	if err != nil || m.Position != pos {
		return err
	}
	raw, err := w.sender.Local.ServiceInvite(r, m)
	if raw != nil {
		c.Events, c.size = append(c.Events, raw), c.size+len(raw)
	}
	return err
}

// receiptOf is what a change of a receipt names: all of the user's of that type are told once.
type receiptOf struct {
	room eventgraph.RoomID
	user eventgraph.UserID
	kind string
}

func (w *sending) addReceipt(r *store.Reader, c *composed, change store.Change, told map[receiptOf]bool) error {
	of := receiptOf{change.Room, change.User, change.Key}
	if !w.ReceiveEphemeral || told[of] || of.kind == "m.read.private" && !w.HasUser(of.user) {
		return nil
	}
	told[of] = true
	is, err := w.concernedByRoom(r, of.room)
	if err != nil || !is {
		return err
	}
	var receipts []*store.Receipt
	err = r.Receipts(of.room, of.user, of.kind, func(p *store.Receipt) (bool, error) {
		receipts = append(receipts, p)
		return true, nil
	})
	if err != nil || len(receipts) == 0 {
		return err
	}
	slices.SortStableFunc(receipts, func(a, b *store.Receipt) int { return cmp.Compare(b.TS, a.TS) })
	raw, err := w.sender.Local.ServiceReceipts(of.room, receipts[:min(len(receipts), maxReceiptThreads)])
	if c.Ephemeral, c.size = append(c.Ephemeral, raw), c.size+len(raw); w.unstableEphemeral {
		c.Unstable, c.size = c.Ephemeral, c.size+len(raw)
	}
	return err
}

// concernedBy says whether the service is interested in an event (AS API, Registration): a user of its own is whom it is about, or was joined to
// the room when it happened; or the room or an alias of it is in its namespaces.
func (w *sending) concernedBy(r *store.Reader, e *store.StoredEvent) (bool, error) {
	if key, ok := e.StateKey(); ok && e.Type() == "m.room.member" && w.HasUser(eventgraph.UserID(key)) || w.HasUser(e.Sender()) {
		return true, nil
	}
	if is, err := w.namesRoom(r, e.RoomID()); is || err != nil {
		return is, err
	}
	return w.rooms.any(r, w.Service, e.RoomID(), func(user eventgraph.UserID) (bool, error) {
		if e.StateAfter == (eventgraph.Hash{}) {
			return isJoined(r, e.RoomID(), user)
		}
		id, ok, err := eventgraph.OpenTrie(r, e.StateAfter).Get(eventgraph.StateTuple{Type: "m.room.member", Key: string(user)})
		if err != nil || !ok {
			return false, err
		}
		m, err := r.Event(id)
		return err == nil && m.Membership() == "join", err
	})
}

// concernedByRoom says whether the service is interested in what happens in the room now.
func (w *sending) concernedByRoom(r *store.Reader, room eventgraph.RoomID) (bool, error) {
	if is, err := w.namesRoom(r, room); is || err != nil {
		return is, err
	}
	return w.rooms.any(r, w.Service, room, func(user eventgraph.UserID) (bool, error) { return isJoined(r, room, user) })
}

// namesRoom says whether the room or one of its aliases here is in the service's namespaces.
func (s *Service) namesRoom(r *store.Reader, room eventgraph.RoomID) (bool, error) {
	if contains(s.rooms, string(room)) {
		return true, nil
	}
	if len(s.aliases) == 0 {
		return false, nil
	}
	aliases, err := r.AliasesOf(room)
	return slices.ContainsFunc(aliases, s.HasAlias), err
}

func isJoined(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID) (bool, error) {
	m, err := r.Member(room, user)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil && m.Membership == "join" && !m.Outside, err
}

// roomUsers remembers which of a service's users are in a room, or were, so that a room of many is not looked through with each event.
type roomUsers struct {
	kept *lru.Cache[eventgraph.RoomID, []eventgraph.UserID]
}

func newRoomUsers() roomUsers {
	kept, _ := lru.New[eventgraph.RoomID, []eventgraph.UserID](maxRoomsKept) // fails only on a size below 1
	return roomUsers{kept}
}

// note adds whoever comes to be in the room by an event.
func (u roomUsers) note(s *Service, e *store.StoredEvent) {
	key, ok := e.StateKey()
	if !ok || e.Type() != "m.room.member" || !s.HasUser(eventgraph.UserID(key)) {
		return
	}
	if users, ok := u.kept.Peek(e.RoomID()); ok && !slices.Contains(users, eventgraph.UserID(key)) {
		u.kept.Add(e.RoomID(), append(slices.Clip(users), eventgraph.UserID(key)))
	}
}

// any says whether is holds for any of the service's users in the room. The one for whom it held comes first the next time.
func (u roomUsers) any(r *store.Reader, s *Service, room eventgraph.RoomID, is func(eventgraph.UserID) (bool, error)) (bool, error) {
	users, ok := u.kept.Get(room)
	if !ok {
		err := r.MembersOf(room, func(m *store.Member) (bool, error) {
			if s.HasUser(m.User) {
				users = append(users, m.User)
			}
			return true, nil
		})
		if err != nil {
			return false, err
		}
		u.kept.Add(room, users)
	}
	for i, user := range users {
		if ok, err := is(user); err != nil {
			return false, err
		} else if ok {
			users[0], users[i] = users[i], users[0]
			return true, nil
		}
	}
	return false, nil
}

// moment is who types and who is present, where that has changed since it was told.
func (w *sending) moment(r *store.Reader) ([]json.RawMessage, error) {
	var out []json.RawMessage
	rooms, users := w.sender.Ephemeral.Changed(w.told)
	for _, room := range rooms {
		if is, err := w.concernedByRoom(r, room); err != nil {
			return nil, err
		} else if !is {
			continue
		}
		typing, _ := w.sender.Ephemeral.Typing(room)
		if typing == nil {
			typing = []eventgraph.UserID{}
		}
		raw, err := json.Marshal(map[string]any{"type": "m.typing", "room_id": room, "content": map[string]any{"user_ids": typing}})
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	for _, user := range users {
		if is, err := w.knows(r, user); err != nil {
			return nil, err
		} else if !is {
			continue
		}
		raw, err := w.sender.Local.ServicePresence(user)
		if err != nil {
			return nil, err
		}
		if raw != nil {
			out = append(out, raw)
		}
	}
	return out, nil
}

// knows says whether a user's presence concerns the service: it is its own, or in a room in which it is interested.
func (w *sending) knows(r *store.Reader, user eventgraph.UserID) (is bool, err error) {
	if w.HasUser(user) {
		return true, nil
	}
	err = r.RoomsOf(user, func(m *store.Member) (bool, error) {
		if m.Membership == "join" && !m.Outside {
			var err error
			is, err = w.concernedByRoom(r, m.Room)
			return !is, err
		}
		return true, nil
	})
	return is, err
}
