package federation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// What stands in a transaction: this file turns changes, and news of typing and presence, into PDUs and EDUs for one server.

// draft is a transaction that is being put together. What does not fit goes with the next, but for a single thing that is too large for
// any: so it is cut where the link's speed says, and order is kept.
type draft struct {
	transaction
	most int // bytes; at most fullTransaction

	newest map[listed]store.Position    // the last change of each device list that is looked at together; nil: not looked for yet
	prev   map[eventgraph.UserID]string // stream IDs of users' device lists that the server was told last
}

// listed is what an entry in a device list is about; without a device, cross-signing keys.
type listed struct {
	user   eventgraph.UserID
	device store.DeviceID
}

// draftFor begins a transaction that is as large as passes over the link to the server within a few seconds.
func (f *Federation) draftFor(server eventgraph.ServerName) *draft {
	return &draft{
		transaction: transaction{Origin: f.server, OriginServerTS: f.Now().UnixMilli()},
		most:        f.paceTo(server).batch(fullTransaction) - requestFrame,
		prev:        map[eventgraph.UserID]string{},
	}
}

// paceTo is that of the link over which a request to the server goes.
func (f *Federation) paceTo(server eventgraph.ServerName) *pace {
	if connected := f.peers.of(server); len(connected) > 0 {
		return f.peers.paceOf(connected[0])
	}
	return newPace()
}

// full says that nothing more should be added. Beside the EDUs of one more change there is room for one that is queued.
func (t *draft) full() bool {
	return len(t.PDUs) == maxPDUs || len(t.EDUs) >= maxEDUs-1 || t.size >= t.most
}

// add lets f add something, and takes it out again if it does not fit.
func (t *draft) add(most int, f func() error) (fits bool, err error) {
	pdus, edus, size := len(t.PDUs), len(t.EDUs), t.size
	if err := f(); err != nil {
		return false, err
	}
	if pdus+edus > 0 && t.size > most {
		t.PDUs, t.EDUs, t.size = t.PDUs[:pdus], t.EDUs[:edus], size
		return false, nil
	}
	return true, nil
}

// composeQueue adds EDUs that are queued for the server, after the one given, until the draft has so many bytes. It returns which it has added, and
// those that can never be sent: they go from the queue with them.
func (f *Federation) composeQueue(server eventgraph.ServerName, after uint64, carried []uint64, t *draft, most int) (queue []uint64, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		return r.Outbound(server, after, func(o *store.Outbound) (bool, error) {
			if !durableEDU(o.Kind) || slices.Contains(carried, o.Seq) {
				return true, nil
			}
			if len(t.EDUs) >= maxEDUs || t.size >= most {
				return false, nil
			}
			fits, err := t.add(most, func() error { t.addEDU(f, o.Kind, o.Body); return nil })
			if fits {
				queue = append(queue, o.Seq)
			}
			return fits, err
		})
	})
	return queue, err
}

// composeChanges adds to the draft from the changes after the record's cursor, and returns up to which it has looked.
func (f *Federation) composeChanges(ctx context.Context, courier *courier, next *draft) (scanned store.Position, err error) {
	d := courier.record
	scanned = d.Sent
	before := len(next.PDUs) + len(next.EDUs)
	upTo := min(f.Store.Position(), f.gossip.reachedBy())
	for full := next.full(); !full && scanned < upTo && len(next.PDUs)+len(next.EDUs) == before; {
		n := 0
		next.newest = nil
		err := f.Store.View(func(r *store.Reader) error {
			return r.Changes(scanned, upTo, func(at store.Position, c store.Change) (bool, error) {
				if full = next.full(); full || n == scanAtOnce {
					return false, nil
				}
				n++
				fits, err := next.add(next.most, func() error { return f.compose(r, d.Server, at, upTo, c, next) })
				if errors.Is(err, store.ErrNotFound) {
					fits, err = true, nil // the room or the event has gone
				}
				if err != nil && ctx.Err() == nil && courier.stuck.fails(at) {
					f.Log.Error("a change is not sent: it cannot be read", "server", d.Server, "position", at, "kind", c.Kind, "err", err)
					fits, err = true, nil
				}
				if full = !fits; fits {
					scanned = at
				}
				return fits, err
			})
		})
		if err != nil {
			return 0, err
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if n == 0 && !full {
			scanned = upTo
		}
	}
	return scanned, nil
}

// compose adds to the transaction what a change means for the server.
func (f *Federation) compose(r *store.Reader, server eventgraph.ServerName, at, upTo store.Position, c store.Change, t *draft) error {
	switch c.Kind {
	case store.ChangeEvent:
		e, err := r.Event(c.Event)
		if err != nil {
			return err
		}
		if !f.announces(e, c) || e.Sender().Server() == server || f.gossip.hasCarried(server, c.Event) || !f.owed(server, e) || !f.mayBeTold(server, e) {
			return nil
		}
		shown, err := f.seen(server, e)
		if shown == nil || err != nil {
			return err
		}
		pdu := shown.Raw()
		if !shallow(pdu, wrapsOfPDU) {
			f.Log.Warn("an event is not sent: it is nested too deep for a request, and can be had at meetings and asked for", "event", e.ID(), "room", c.Room)
			return nil
		}
		t.PDUs = append(t.PDUs, pdu)
		t.size += len(pdu)
	case store.ChangeReceipt:
		if c.User.Server() != f.server || c.Key != "m.read" || !f.Rooms.InRoom(c.Room, server) || !f.allows(c.Room, server) {
			return nil
		}
		return f.composeReceipts(r, c, &t.transaction)
	case store.ChangeDeviceList:
		if c.User.Server() != f.server {
			return nil
		}
		sharing, err := f.sharing(r, c.User)
		if err != nil || !slices.Contains(sharing, server) {
			return err
		}
		c, tell, err := t.latest(r, at, upTo, c)
		if err != nil || !tell {
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

// latest says whether a change of a local user's device list is to be told: not if the same device changes again among what is looked at now, for
// what is told are the keys of today. Who left out some is told which ID came before those (SS API, m.device_list_update, prev_id); should
// the later change go with another transaction after all, it names an ID that the server does not know, which then asks for the whole list.
func (t *draft) latest(r *store.Reader, at, upTo store.Position, c store.Change) (told store.Change, tell bool, err error) {
	if t.newest == nil {
		t.newest = map[listed]store.Position{}
		n := 0
		err := r.Changes(at-1, upTo, func(at store.Position, c store.Change) (bool, error) {
			if _, signed := c.SignedUser(); c.Kind == store.ChangeDeviceList && !signed {
				t.newest[listed{c.User, c.Device}] = at
			}
			n++
			return n < scanAtOnce, nil
		})
		if err != nil {
			return c, false, err
		}
	}
	if _, signed := c.SignedUser(); signed {
		return c, false, nil
	}
	last := t.newest[listed{c.User, c.Device}] <= at
	if c.Device == "" {
		return c, last, nil
	}
	stream, prev, _ := strings.Cut(c.Key, " ")
	if before, ok := t.prev[c.User]; ok {
		prev = before
	}
	t.prev[c.User] = prev
	if last {
		c.Key, t.prev[c.User] = stream+" "+prev, stream
	}
	return c, last, nil
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

// addEDU adds an EDU unless the very same is there, for several changes may tell the same newest content, or it can never be sent.
func (t *transaction) addEDU(f *Federation, kind string, content json.RawMessage) {
	if len(content) > maxEDU {
		f.Log.Error("EDU not sent: it is too large", "type", kind, "bytes", len(content))
		return
	}
	if !signable(content, canonicaljson.Strict, wrapsOfEDU) {
		f.Log.Warn("EDU not sent: it has no canonical form, or is nested too deep", "type", kind, "bytes", len(content))
		return
	}
	for _, e := range t.EDUs {
		if e.Type == kind && string(e.Content) == string(content) {
			return
		}
	}
	t.EDUs = append(t.EDUs, edu{kind, content})
	t.size += len(content) + eduFrame
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
		if !f.Rooms.InRoom(room, c.server) || !f.allows(room, c.server) {
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
