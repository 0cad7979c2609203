package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// The sender reads the store's changes, as /sync does, and brings each server what concerns it. For each server there is a
// stored cursor, and a transaction whose content and ID are fixed and stored before the first attempt, so that a
// repetition is exactly it (design.md §3.3).
//
//	changes ─ follow ─→ who is concerned? ─→ courier of that server ─→ fix ─→ PUT /send ─→ cursor
//	typing, presence ─ followEphemeral ─→ the same courier, in transactions of their own, not stored

const (
	// retryFirst and retryLast bound the wait after a failed attempt while the server's peer stays connected. A server that is
	// away is not tried at all: its courier goes on when it is met.
	retryFirst = time.Second
	retryLast  = time.Minute
	// scanAtOnce bounds the changes looked at for one transaction; a server that was away long is served in steps.
	scanAtOnce = 20_000
	// saveScan is how far a cursor may move over changes that do not concern its server before it is stored.
	saveScan = 5_000
	// maxVolatile bounds the rooms and users of whose typing and presence a courier knows news not sent yet.
	maxVolatile = 200
	// maxQueued bounds the invites and leaves delivered at one go.
	maxQueued = 100
)

// senderCursor is the name of the sender's own record among the destinations: changes up to it have been looked at for
// servers that had no record yet.
const senderCursor eventgraph.ServerName = ""

// couriers are the goroutines that deliver, one for each server that something concerns.
type couriers struct {
	mu  sync.Mutex
	all map[eventgraph.ServerName]*courier // bounded by the servers that we share rooms with or queue something for
	run func(*courier)                     // starts its goroutine; set by runSender
}

// courier delivers to one server.
type courier struct {
	server eventgraph.ServerName
	poked  chan struct{} // holds a token when there may be something to do

	mu       sync.Mutex
	typing   map[eventgraph.RoomID]bool // rooms whose typing has changed
	presence map[eventgraph.UserID]bool
}

func (c *courier) poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

func (s *couriers) of(server eventgraph.ServerName) *courier {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.all[server]
	if c == nil {
		c = &courier{server: server, poked: make(chan struct{}, 1), typing: map[eventgraph.RoomID]bool{}, presence: map[eventgraph.UserID]bool{}}
		s.all[server] = c
		s.run(c)
	}
	return c
}

// runSender delivers to each server what concerns it, until ctx ends.
func (f *Federation) runSender(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	senders := &couriers{all: map[eventgraph.ServerName]*courier{}}
	senders.run = func(c *courier) { group.Go(func() error { return f.runCourier(ctx, c) }) }
	group.Go(func() error { return f.follow(ctx, senders) })
	group.Go(func() error { return f.followEphemeral(ctx, senders) })
	group.Go(func() error {
		turn := uint64(0)
		for {
			met, next, err := f.peers.met(ctx, turn)
			if err != nil {
				return nil
			}
			turn = next
			for _, m := range met {
				if known, err := f.isDestination(m.Server); err == nil && known {
					senders.of(m.Server).poke()
				}
			}
		}
	})
	return group.Wait()
}

func (f *Federation) isDestination(server eventgraph.ServerName) (known bool, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		_, err := r.Destination(server)
		known = err == nil
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return known, err
}

// follow reads the changes as they come, makes a record for each server that is concerned for the first time, and pokes the couriers.
func (f *Federation) follow(ctx context.Context, senders *couriers) error {
	var from store.Position
	err := f.Store.View(func(r *store.Reader) error {
		own, err := r.Destination(senderCursor)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			from = own.Sent
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read sender's cursor: %w", err)
	}
	saved := from
	for {
		upTo, err := f.Store.Wait(ctx, from)
		if err != nil {
			return err
		}
		concerned := map[eventgraph.ServerName]store.Position{} // to the first change
		err = f.Store.View(func(r *store.Reader) error {
			return r.Changes(from, upTo, func(at store.Position, c store.Change) (bool, error) {
				servers, err := f.concerned(r, c)
				for _, s := range servers {
					if _, ok := concerned[s]; !ok && s != f.server {
						concerned[s] = at
					}
				}
				return true, err
			})
		})
		if err != nil {
			return fmt.Errorf("read changes: %w", err)
		}
		fresh, err := f.withoutRecord(concerned)
		if err != nil {
			return err
		}
		if len(fresh) > 0 || upTo-saved > saveScan {
			_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
				for _, s := range fresh {
					if err := tx.PutDestination(&store.Destination{Server: s, Sent: concerned[s] - 1}); err != nil {
						return err
					}
				}
				return tx.PutDestination(&store.Destination{Server: senderCursor, Sent: upTo})
			})
			if err != nil {
				return fmt.Errorf("store destinations: %w", err)
			}
			saved = upTo
		}
		for s := range concerned {
			senders.of(s).poke()
		}
		from = upTo
	}
}

func (f *Federation) withoutRecord(servers map[eventgraph.ServerName]store.Position) (fresh []eventgraph.ServerName, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		for s := range servers {
			_, err := r.Destination(s)
			if errors.Is(err, store.ErrNotFound) {
				fresh = append(fresh, s)
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	slices.Sort(fresh)
	return fresh, err
}

// concerned lists the servers that a change concerns.
func (f *Federation) concerned(r *store.Reader, c store.Change) ([]eventgraph.ServerName, error) {
	switch c.Kind {
	case store.ChangeOutbound:
		return []eventgraph.ServerName{c.Server}, nil
	case store.ChangeReceipt:
		if c.User.Server() != f.server || c.Key != "m.read" {
			return nil, nil
		}
		return f.Rooms.Servers(c.Room)
	case store.ChangeDeviceList:
		if c.User.Server() != f.server {
			return nil, nil
		}
		return f.sharing(r, c.User)
	case store.ChangeEvent:
		e, err := r.Event(c.Event)
		if err != nil {
			return nil, err
		}
		if !f.announces(e, c) {
			return nil, nil
		}
		servers, err := f.Rooms.Servers(c.Room)
		if target, ok := memberServer(e); ok && err == nil && !slices.Contains(servers, target) {
			servers = append(servers, target) // a server whose last user this removes still gets its removal
		}
		return servers, err
	}
	return nil, nil
}

// announces says whether it is on us to send the event to the room's servers: it was made here, or taken in here by
// send_join, send_leave or send_knock (store.ChangeEvent, Key).
func (f *Federation) announces(e *store.StoredEvent, c store.Change) bool {
	return e.Sender().Server() == f.server || c.Key == store.KeyHandshake
}

// memberServer is the server of the user whose membership the event is about.
func memberServer(e *store.StoredEvent) (eventgraph.ServerName, bool) {
	key, ok := e.StateKey()
	if !ok || e.Type() != "m.room.member" {
		return "", false
	}
	return eventgraph.UserID(key).Server(), true
}

// sharing lists the servers with a joined user in a room that the user is joined to.
func (f *Federation) sharing(r *store.Reader, user eventgraph.UserID) (all []eventgraph.ServerName, err error) {
	err = r.RoomsOf(user, func(m *store.Member) (bool, error) {
		if m.Membership != "join" {
			return true, nil
		}
		servers, err := f.Rooms.Servers(m.Room)
		for _, s := range servers {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		return true, err
	})
	return all, err
}

// followEphemeral tells the couriers of typing and presence of local users.
func (f *Federation) followEphemeral(ctx context.Context, senders *couriers) error {
	from := f.Ephemeral.Counter()
	for {
		upTo, err := f.Ephemeral.Wait(ctx, from)
		if err != nil {
			return err
		}
		changed, users := f.Ephemeral.Changed(from)
		for _, room := range changed {
			servers, err := f.Rooms.Servers(room)
			if err != nil {
				continue // the room has gone
			}
			for _, s := range servers {
				if s != f.server && f.peers.isConnected(s) {
					senders.of(s).note(room, "")
				}
			}
		}
		for _, user := range users {
			if user.Server() != f.server {
				continue
			}
			var servers []eventgraph.ServerName
			err := f.Store.View(func(r *store.Reader) (err error) {
				servers, err = f.sharing(r, user)
				return err
			})
			if err != nil {
				return fmt.Errorf("servers that share a room with %s: %w", user, err)
			}
			for _, s := range servers {
				if s != f.server && f.peers.isConnected(s) {
					senders.of(s).note("", user)
				}
			}
		}
		from = upTo
	}
}

// note remembers news of typing in a room, or of a user's presence; more than it can hold is not worth sending late.
func (c *courier) note(room eventgraph.RoomID, user eventgraph.UserID) {
	c.mu.Lock()
	if room != "" && len(c.typing) < maxVolatile {
		c.typing[room] = true
	}
	if user != "" && len(c.presence) < maxVolatile {
		c.presence[user] = true
	}
	c.mu.Unlock()
	c.poke()
}

// runCourier delivers to one server whenever there is something and the server is here.
func (f *Federation) runCourier(ctx context.Context, c *courier) error {
	d, err := f.destination(c.server)
	if err != nil {
		return fmt.Errorf("read cursor of %s: %w", c.server, err)
	}
	typed := map[eventgraph.RoomID][]eventgraph.UserID{} // who was said to be typing
	failures := 0
	for {
		var retry <-chan time.Time
		if f.peers.isConnected(c.server) {
			err := f.sendAll(ctx, c, d, typed)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				f.Log.Debug("delivery failed and will be repeated", "server", c.server, "err", err)
				retry = time.After(min(retryFirst<<min(failures, 10), retryLast))
				failures++
			default:
				failures = 0
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.poked:
		case <-retry:
		}
	}
}

func (f *Federation) destination(server eventgraph.ServerName) (d *store.Destination, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		d, err = r.Destination(server)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		// Only typing or presence concern it so far: durable changes make the record first.
		return &store.Destination{Server: server, Sent: f.Store.Position()}, nil
	}
	return d, err
}

// sendAll sends until nothing is left. d is the courier's copy of the record, brought up to date as it is stored.
func (f *Federation) sendAll(ctx context.Context, c *courier, d *store.Destination, typed map[eventgraph.RoomID][]eventgraph.UserID) error {
	if stored, err := f.destination(c.server); err != nil {
		return err
	} else if stored.Sent > d.Sent || stored.InFlight != nil && d.InFlight == nil {
		*d = *stored
	}
	if err := f.deliverQueued(ctx, c.server); err != nil {
		return err
	}
	for {
		if d.InFlight == nil {
			if err := f.fix(ctx, d); err != nil {
				return err
			}
		}
		if d.InFlight == nil {
			break
		}
		if err := f.putTransaction(ctx, c.server, d.InFlight.ID, d.InFlight.Body); err != nil {
			return err
		}
		if err := f.acknowledged(ctx, d); err != nil {
			return err
		}
	}
	return f.sendVolatile(ctx, c, typed)
}

// deliverQueued brings what is queued for the server and is a request of its own: invites and leaves. One that cannot be delivered now
// stays, and does not hold up the others.
func (f *Federation) deliverQueued(ctx context.Context, server eventgraph.ServerName) error {
	var queued []*store.Outbound
	err := f.Store.View(func(r *store.Reader) error {
		return r.Outbound(server, 0, func(o *store.Outbound) (bool, error) {
			if !durableEDU(o.Kind) {
				queued = append(queued, o)
			}
			return len(queued) < maxQueued, nil
		})
	})
	if err != nil {
		return err
	}
	var failed error
	for _, o := range queued {
		if err := f.deliverOutbound(ctx, o); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if _, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteOutbound(server, o.Seq) }); err != nil {
			return err
		}
	}
	if failed != nil {
		f.Log.Debug("queued requests are not delivered yet", "server", server, "err", failed)
	}
	return nil
}

// putTransaction sends a transaction. A server that answers it with a client error will never take it, and what waits behind it
// would wait for ever: it counts as delivered, and meetings bring the events.
func (f *Federation) putTransaction(ctx context.Context, server eventgraph.ServerName, id string, body []byte) error {
	var answer sendAnswer
	err := f.do(ctx, server, http.MethodPut, target(v1+"send", []string{id}, nil), json.RawMessage(body), &answer)
	var remote *remoteError
	if errors.As(err, &remote) && remote.Status/100 == 4 && remote.Status != http.StatusTooManyRequests && remote.Status != http.StatusUnauthorized && remote.Status != http.StatusNotFound {
		f.Log.Warn("a server refused a transaction for good", "server", server, "txn", id, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	for event, result := range answer.PDUs {
		if result.Error != "" {
			f.Log.Info("a server refused an event", "server", server, "event", event, "err", result.Error)
		}
	}
	return nil
}

// fix composes the next transaction and stores it; d.InFlight stays nil if there is nothing to send.
func (f *Federation) fix(ctx context.Context, d *store.Destination) error {
	upTo := f.Store.Position()
	next := transaction{Origin: f.server, OriginServerTS: f.Now().UnixMilli()}
	var queue []uint64
	scanned := d.Sent
	for scanned < upTo && len(next.PDUs) == 0 && len(next.EDUs) == 0 {
		err := f.Store.View(func(r *store.Reader) error {
			n := 0
			return r.Changes(scanned, upTo, func(at store.Position, c store.Change) (bool, error) {
				if len(next.PDUs) == maxPDUs || len(next.EDUs) >= maxEDUs-1 || n == scanAtOnce {
					return false, nil
				}
				n++
				scanned = at
				return true, f.compose(r, d.Server, c, &next)
			})
		})
		if err != nil {
			return fmt.Errorf("compose transaction for %s: %w", d.Server, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	err := f.Store.View(func(r *store.Reader) error {
		return r.Outbound(d.Server, 0, func(o *store.Outbound) (bool, error) {
			if !durableEDU(o.Kind) {
				return true, nil
			}
			next.EDUs = append(next.EDUs, edu{o.Kind, o.Body})
			queue = append(queue, o.Seq)
			return len(next.EDUs) < maxEDUs, nil
		})
	})
	if err != nil {
		return err
	}
	if len(next.PDUs) == 0 && len(next.EDUs) == 0 {
		if scanned-d.Sent > saveScan {
			d.Sent = scanned
			return f.saveDestination(ctx, d, nil)
		}
		d.Sent = scanned
		return nil
	}
	body, err := marshal(next)
	if err != nil {
		return err
	}
	incarnation := f.Store.Incarnation()
	d.InFlight = &store.Transaction{
		ID:   fmt.Sprintf("%x-%d-%d", incarnation[:4], scanned, f.Now().UnixNano()),
		Body: body, UpTo: scanned, Queue: queue,
	}
	if err := f.saveDestination(ctx, d, nil); err != nil {
		d.InFlight = nil
		return err
	}
	return nil
}

// durableEDU says whether a queued item travels in transactions; the others are requests of their own (deliverQueued).
func durableEDU(kind string) bool { return kind == "m.direct_to_device" }

// compose adds to the transaction what a change means for the server.
func (f *Federation) compose(r *store.Reader, server eventgraph.ServerName, c store.Change, t *transaction) error {
	switch c.Kind {
	case store.ChangeEvent:
		e, err := r.Event(c.Event)
		if err != nil {
			return err
		}
		if !f.announces(e, c) || !f.owed(server, e) {
			return nil
		}
		if may, err := f.Rooms.MaySeeServer(server, e); err != nil || !may {
			return err
		}
		t.PDUs = append(t.PDUs, e.Raw())
	case store.ChangeReceipt:
		if c.User.Server() != f.server || c.Key != "m.read" || !f.Rooms.InRoom(c.Room, server) {
			return nil
		}
		return r.Receipts(c.Room, c.User, c.Key, func(p *store.Receipt) (bool, error) {
			data := map[string]any{"ts": p.TS}
			if p.Thread != "" {
				data["thread_id"] = p.Thread
			}
			content, err := marshal(map[eventgraph.RoomID]any{c.Room: map[string]any{c.Key: map[eventgraph.UserID]any{
				c.User: map[string]any{"event_ids": []eventgraph.EventID{p.Event}, "data": data},
			}}})
			t.addEDU("m.receipt", content)
			return len(t.EDUs) < maxEDUs-1, err
		})
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
		t.addEDU(kind, content)
	}
	return nil
}

// addEDU adds an EDU unless the very same is there: several changes may tell the same newest content.
func (t *transaction) addEDU(kind string, content json.RawMessage) {
	for _, e := range t.EDUs {
		if e.Type == kind && string(e.Content) == string(content) {
			return
		}
	}
	t.EDUs = append(t.EDUs, edu{kind, content})
}

// owed says whether the server was in the room before or after the event, or is the one whose member it removes.
func (f *Federation) owed(server eventgraph.ServerName, e *store.StoredEvent) bool {
	if target, ok := memberServer(e); ok && target == server {
		return true
	}
	return f.Rooms.InRoomAt(e.RoomID(), e.StateBefore, server) || f.Rooms.InRoomAt(e.RoomID(), e.StateAfter, server) || f.Rooms.InRoom(e.RoomID(), server)
}

// acknowledged moves the cursor past the transaction in flight and drops what it carried from the queue.
func (f *Federation) acknowledged(ctx context.Context, d *store.Destination) error {
	t := d.InFlight
	d.Sent, d.InFlight = t.UpTo, nil
	if err := f.saveDestination(ctx, d, t.Queue); err != nil {
		d.InFlight = t
		return err
	}
	return nil
}

func (f *Federation) saveDestination(ctx context.Context, d *store.Destination, drop []uint64) error {
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
		for _, seq := range drop {
			if err := tx.DeleteOutbound(d.Server, seq); err != nil {
				return err
			}
		}
		return tx.PutDestination(d)
	})
	return err
}

// sendVolatile sends typing and presence in a transaction that is not stored: late, they would be wrong. Lost is lost.
func (f *Federation) sendVolatile(ctx context.Context, c *courier, typed map[eventgraph.RoomID][]eventgraph.UserID) error {
	c.mu.Lock()
	rooms, users := c.typing, c.presence
	c.typing, c.presence = map[eventgraph.RoomID]bool{}, map[eventgraph.UserID]bool{}
	c.mu.Unlock()
	t := transaction{Origin: f.server, OriginServerTS: f.Now().UnixMilli()}
	for room := range rooms {
		all, _ := f.Ephemeral.Typing(room)
		now := slices.DeleteFunc(slices.Clone(all), func(u eventgraph.UserID) bool { return u.Server() != f.server })
		for _, user := range append(now, typed[room]...) {
			typing := slices.Contains(now, user)
			if typing == slices.Contains(typed[room], user) {
				continue
			}
			content, err := marshal(map[string]any{"room_id": room, "user_id": user, "typing": typing})
			if err != nil {
				return err
			}
			t.addEDU("m.typing", content)
		}
		if len(now) == 0 || !f.Rooms.InRoom(room, c.server) {
			delete(typed, room)
		} else {
			typed[room] = now
		}
	}
	if push := f.presenceOf(users); len(push) > 0 {
		content, err := marshal(map[string]any{"push": push})
		if err != nil {
			return err
		}
		t.addEDU("m.presence", content)
	}
	for len(t.EDUs) > 0 {
		part := t
		part.EDUs = t.EDUs[:min(len(t.EDUs), maxEDUs)]
		t.EDUs = t.EDUs[len(part.EDUs):]
		body, err := marshal(part)
		if err != nil {
			return err
		}
		incarnation := f.Store.Incarnation()
		id := fmt.Sprintf("%x-e%s", incarnation[:4], strconv.FormatInt(f.Now().UnixNano(), 36))
		if err := f.putTransaction(ctx, c.server, id, body); err != nil {
			return err
		}
	}
	return nil
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
