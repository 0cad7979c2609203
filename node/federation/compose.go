package federation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What stands in a transaction: this file turns changes, and news of typing and presence, into PDUs and EDUs for one server.

// composeChanges fills the transaction from the changes after the record's cursor, and returns up to which it has looked.
func (f *Federation) composeChanges(ctx context.Context, d *store.Destination, next *transaction) (scanned store.Position, err error) {
	scanned = d.Sent
	for upTo := min(f.Store.Position(), f.gossip.reachedBy()); scanned < upTo && len(next.PDUs) == 0 && len(next.EDUs) == 0; {
		n := 0
		err := f.Store.View(func(r *store.Reader) error {
			return r.Changes(scanned, upTo, func(at store.Position, c store.Change) (bool, error) {
				if next.full() || n == scanAtOnce {
					return false, nil
				}
				n++
				scanned = at
				err := f.compose(r, d.Server, c, next)
				if errors.Is(err, store.ErrNotFound) {
					return true, nil // the room or the event has gone
				}
				return true, err
			})
		})
		if err != nil {
			return 0, err
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if n == 0 {
			scanned = upTo
		}
	}
	return scanned, nil
}

// compose adds to the transaction what a change means for the server.
func (f *Federation) compose(r *store.Reader, server eventgraph.ServerName, c store.Change, t *transaction) error {
	switch c.Kind {
	case store.ChangeEvent:
		e, err := r.Event(c.Event)
		if err != nil {
			return err
		}
		if !f.announces(e, c) || e.Sender().Server() == server || f.gossip.hasCarried(server, c.Event) || !f.owed(server, e) {
			return nil
		}
		if may, err := f.Rooms.MaySeeServer(server, e); err != nil || !may {
			return err
		}
		t.PDUs = append(t.PDUs, served(e))
		t.size += len(e.Raw())
	case store.ChangeReceipt:
		if c.User.Server() != f.server || c.Key != "m.read" || !f.Rooms.InRoom(c.Room, server) {
			return nil
		}
		return f.composeReceipts(r, c, t)
	case store.ChangeDeviceList:
		if c.User.Server() != f.server {
			return nil
		}
		sharing, err := f.sharing(r, c.User)
		if err != nil || !slices.Contains(sharing, server) {
			return err
		}
		kind, content, err := r.DeviceListEDU(c)
		if err != nil || kind == "" {
			return err
		}
		t.addEDU(f, kind, content)
	}
	return nil
}

// composeReceipts adds an EDU for each thread that the user read last.
func (f *Federation) composeReceipts(r *store.Reader, c store.Change, t *transaction) error {
	var receipts []*store.Receipt
	err := r.Receipts(c.Room, c.User, c.Key, func(p *store.Receipt) (bool, error) {
		receipts = append(receipts, p)
		return true, nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(receipts, func(a, b *store.Receipt) int { return cmp.Compare(b.TS, a.TS) })
	for _, p := range receipts[:min(len(receipts), maxReceiptThreads, maxEDUs-len(t.EDUs))] {
		data := map[string]any{"ts": p.TS}
		if p.Thread != "" {
			data["thread_id"] = p.Thread
		}
		content, err := marshal(map[eventgraph.RoomID]any{c.Room: map[string]any{c.Key: map[eventgraph.UserID]any{
			c.User: map[string]any{"event_ids": []eventgraph.EventID{p.Event}, "data": data},
		}}})
		if err != nil {
			return err
		}
		t.addEDU(f, "m.receipt", content)
	}
	return nil
}

// full says that nothing more should be added. Beside the EDUs of one more change there is room for one that is queued.
func (t *transaction) full() bool {
	return len(t.PDUs) == maxPDUs || len(t.EDUs) >= maxEDUs-1 || t.size >= fullTransaction
}

// addEDU adds an EDU unless the very same is there: several changes may tell the same newest content.
func (t *transaction) addEDU(f *Federation, kind string, content json.RawMessage) {
	if len(content) > maxEDU {
		f.Log.Error("EDU not sent: it is too large", "type", kind, "bytes", len(content))
		return
	}
	for _, e := range t.EDUs {
		if e.Type == kind && string(e.Content) == string(content) {
			return
		}
	}
	t.EDUs = append(t.EDUs, edu{kind, content})
	t.size += len(content)
}

// owed says whether the server was in the room before or after the event, or is the one whose member it removes.
func (f *Federation) owed(server eventgraph.ServerName, e *store.StoredEvent) bool {
	if target, ok := removedServer(e); ok && target == server {
		return true
	}
	return f.Rooms.InRoomAt(e.RoomID(), e.StateBefore, server) || f.Rooms.InRoomAt(e.RoomID(), e.StateAfter, server) || f.Rooms.InRoom(e.RoomID(), server)
}

// composeTyping tells who has begun and who has stopped typing in the rooms, and now and then who goes on.
func (f *Federation) composeTyping(c *courier, rooms map[eventgraph.RoomID]bool, t *transaction) error {
	again := len(c.typed) > 0 && f.Now().Sub(c.toldAt) >= typingRefresh
	if again {
		for room := range c.typed {
			rooms[room] = true
		}
	}
	if again || len(c.typed) == 0 {
		c.toldAt = f.Now()
	}
	for room := range rooms {
		all, _ := f.Ephemeral.Typing(room)
		if !f.Rooms.InRoom(room, c.server) || !f.Rooms.ServerAllowed(room, c.server) {
			delete(c.typed, room)
			continue
		}
		now := slices.DeleteFunc(all, func(u eventgraph.UserID) bool { return u.Server() != f.server })
		was := c.typed[room]
		for _, user := range union(now, was) {
			typing := slices.Contains(now, user)
			if typing == slices.Contains(was, user) && !(typing && again) {
				continue
			}
			content, err := marshal(map[string]any{"room_id": room, "user_id": user, "typing": typing})
			if err != nil {
				return err
			}
			t.addEDU(f, "m.typing", content)
		}
		if delete(c.typed, room); len(now) > 0 {
			c.typed[room] = now
		}
	}
	return nil
}

// union is a and those of b that are not in a.
func union(a, b []eventgraph.UserID) []eventgraph.UserID {
	all := slices.Clone(a)
	for _, u := range b {
		if !slices.Contains(a, u) {
			all = append(all, u)
		}
	}
	return all
}

func (f *Federation) presenceOf(users map[eventgraph.UserID]bool) (push []map[string]any) {
	for user := range users {
		p, ok := f.Ephemeral.Presence(user)
		if !ok {
			continue
		}
		entry := map[string]any{
			"user_id": user, "presence": p.State, "currently_active": p.CurrentlyActive,
			"last_active_ago": max(0, f.Now().Sub(p.LastActive).Milliseconds()),
		}
		if p.StatusMsg != "" {
			entry["status_msg"] = p.StatusMsg
		}
		push = append(push, entry)
	}
	return push
}
