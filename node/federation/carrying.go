package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// An encrypted to-device message for a server that is away is also given to others that meet it perhaps sooner than we do: up to maxCarriers servers in a
// room with us and it. It is signed by us for that destination, so a carrier can neither change it nor give it to another.
//
//	origin   keep  messages, each signed           carrier  done  which it keeps
//	carrier  give  them, when it meets their destination, which checks the signature and takes each message_id once
//	         done  which the carrier may drop, because they were taken or never will be
//
// Both name the newest bundles that they have of the senders (handover.go), and hand over those that the other side has not (carriedkeys.go), before
// it answers what is done: else a device that the destination has never heard of could write, and not be answered.
//
// The origin's own outbox is as without: it delivers when it meets the destination, which knows the repeat by its message_id (SS API,
// m.direct_to_device). Only m.room.encrypted is carried: what else goes from device to device could be read on the way, and is soon of no use.

// protocolCarry is spoken on streams of its own, each for one message and its answer.
const protocolCarry = "/plexus/carry/1"

const (
	// maxCarriers keep a copy of one message.
	maxCarriers = 3
	// carryFor is how long a carrier keeps it; a device that comes back later gets it from its origin.
	carryFor = 30 * 24 * time.Hour
	// carrySkew is how much longer its destination takes it, whose clock may be ahead. By then it was delivered, or is, by its origin.
	carrySkew = 24 * time.Hour
	// carryChunk is the size after which a protocol message ends: 16 s at 16 kbit/s. maxCarryMessage has a chunk and one message more.
	carryChunk      = 32 << 10
	maxCarryMessage = 256 << 10
	// maxCarriedMessage bounds one: the EDU with at most maxEDUBytes of clientapi, or one content of 64 KiB, and signature and names.
	maxCarriedMessage = 96 << 10
	// maxCarriedAtOnce bounds the messages of one protocol message.
	maxCarriedAtOnce = 64
	// carryDelay gathers what is sent together, and is longer than a server is away that only changes its connection.
	carryDelay = time.Second
	// carryRetry, doubled with each failure, and carrySeldom bound the time until a contact that did not take all is tried again. The first is short:
	// who has just started may be connected before it speaks the protocol.
	carryRetry  = 2 * time.Second
	carrySeldom = 10 * time.Minute
	// carriesAtOnce and carriesServed bound the exchanges that go on, as giver and as taker (slots).
	carriesAtOnce = 4
	carriesServed = 8
	// offerAgain is when a contact is visited again that was not asked because others were.
	offerAgain = 3 * time.Second
	// maxCarryAnswer bounds an answer: maxCarriedAtOnce numbers, or as many users' IDs of 255 bytes, escaped.
	maxCarryAnswer = 64 << 10
	// sweepEvery is how often it is looked for what has been kept too long, or is kept for whom we share no room with any more.
	sweepEvery = time.Hour
)

// carryMessage is any message of the protocol.
type carryMessage struct {
	Keep []json.RawMessage `json:"keep,omitempty"`
	Give []json.RawMessage `json:"give,omitempty"`
	Done []int             `json:"done,omitempty"` // the places of those that are done with

	Users map[eventgraph.UserID]offeredBundle `json:"users,omitempty"` // of the senders
	Want  []eventgraph.UserID                 `json:"want,omitempty"`  // whose bundles are to come first, as giveBundles writes them
}

// carriedMessage is what the origin signs. Content is that of the EDU m.direct_to_device, the only Type.
type carriedMessage struct {
	Origin      eventgraph.ServerName `json:"origin"`
	Destination eventgraph.ServerName `json:"destination"`
	TS          int64                 `json:"origin_server_ts"`
	Type        string                `json:"edu_type"`
	Content     json.RawMessage       `json:"content"`
}

// directMessage is what is looked at of the EDU.
type directMessage struct {
	Sender    eventgraph.UserID `json:"sender"`
	Type      string            `json:"type"`
	MessageID string            `json:"message_id"`
}

// carrying gives messages to carriers, and carries those of others.
type carrying struct {
	f       *Federation
	giving  *slots
	to      keyedLock[eventgraph.ServerName] // what is carried for a server is given to one of its peers at a time
	changed chan struct{}                    // holds a token when there may be something to give

	mu     sync.Mutex
	away   []eventgraph.ServerName // for whom something waits
	lastTS int64

	choosing sync.Mutex                                          // also while the outbox is read: who is noted there meanwhile, and withdrawn, would not count
	offered  map[offeredItem]map[eventgraph.ServerName]time.Time // who is being asked to keep what, since when: a batch for each slot
	missed   bool                                                // somebody was not asked because others are
}

// offeredItem is an item in a server's outbox.
type offeredItem struct {
	server eventgraph.ServerName
	seq    uint64
}

// carrier is a contact, over one connection.
type carrier struct {
	looked map[eventgraph.ServerName]uint64 // how far the outbox of a server was looked through for it
	failed int
	next   time.Time // not before, if it failed
}

func newCarrying(f *Federation) *carrying {
	return &carrying{f: f, giving: newSlots(carriesAtOnce), changed: make(chan struct{}, 1), offered: map[offeredItem]map[eventgraph.ServerName]time.Time{}}
}

// runCarrying gives to carriers and destinations, and takes from both, until ctx ends.
func (f *Federation) runCarrying(ctx context.Context) error {
	k := newCarrying(f)
	f.serveExchanges(protocolCarry, "messages to carry", newSlots(carriesServed), k.serve)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.follow(ctx, f.Store.Position()) })
	group.Go(func() error {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			f.hierarchies.dropOld(f.Now())
			if err := f.sweepKept(ctx); err != nil && ctx.Err() == nil {
				f.Log.Error("what is kept for others is not readable", "err", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	group.Go(func() error {
		v := &visits{f: f, changed: k.changed, soon: carryDelay, later: carryDelay, seldom: carrySeldom, prepare: k.lookForAway}
		v.begin = func(c contact) func(context.Context) time.Duration {
			with := &carrier{looked: map[eventgraph.ServerName]uint64{}}
			return func(ctx context.Context) time.Duration { return k.visit(ctx, c, with) }
		}
		return v.run(ctx)
	})
	return group.Wait()
}

// follow tells when something has been queued for another server.
func (k *carrying) follow(ctx context.Context, from store.Position) error {
	for {
		upTo, err := k.f.Store.Wait(ctx, from)
		if err != nil {
			return err
		}
		news := false
		err = k.f.Store.View(func(r *store.Reader) error {
			return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
				news = c.Kind == store.ChangeOutbound
				return !news, nil
			})
		})
		if err != nil {
			return err
		}
		if from = upTo; news {
			signal(k.changed)
		}
	}
}

// visit gives a contact what we carry for it, and what it may carry for others; and says when the next visit is due.
func (k *carrying) visit(ctx context.Context, c contact, with *carrier) (again time.Duration) {
	f := k.f
	if later := with.next.Sub(f.Now()); later > 0 {
		return later
	}
	k.mu.Lock()
	away := k.away
	k.mu.Unlock()
	again = carrySeldom
	var refused error
	err := k.giveAll(ctx, c)
	if errors.Is(err, errNotTaken) {
		refused, err = err, nil
	}
	for _, server := range away {
		if err != nil || ctx.Err() != nil {
			break
		}
		if server != c.Server && f.shareRoom(c.Server, server) {
			var later bool
			if later, err = k.handOn(ctx, c, with, server); errors.Is(err, errNotKept) {
				refused, err = err, nil // it may be in no room with that one, for all that it knows: the others do not wait for it
			}
			if later {
				again = min(again, offerAgain)
			}
		}
	}
	if err == nil {
		err = refused
	}
	if err == nil {
		with.failed = 0
		return again
	}
	if ctx.Err() == nil {
		f.Log.Debug("a server does not carry", "server", c.Server, "peer", c.Peer, "err", err)
	}
	again = min(carryRetry<<min(with.failed, 20), carrySeldom)
	with.failed++
	with.next = f.Now().Add(again)
	clear(with.looked)
	return again
}

// A contact did not do all that it was asked.
var (
	errNotKept  = errors.New("it does not keep all")
	errNotTaken = errors.New("it does not take all")
)

// lookForAway finds the servers for which something is queued and that are not connected.
func (k *carrying) lookForAway() error {
	var servers []eventgraph.ServerName
	err := k.f.Store.View(func(r *store.Reader) error {
		return r.OutboundServers(func(s eventgraph.ServerName) (bool, error) {
			if !k.f.peers.isConnected(s) && !k.f.peers.isBlocked(s) {
				servers = append(servers, s)
			}
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.away = servers
	return nil
}

// handOn gives a contact what waits for a server that is away. later: others are being asked to keep some of it, and it is to be seen what they do.
func (k *carrying) handOn(ctx context.Context, c contact, with *carrier, server eventgraph.ServerName) (later bool, err error) {
	for {
		batch, upTo, later, err := k.toHandOn(c.Server, server, with.looked[server], false)
		if err != nil {
			return false, err
		}
		if len(batch) == 0 {
			with.looked[server] = upTo
			return later, nil
		}
		if upTo, later, err = k.handOnBatch(ctx, c, server, with.looked[server]); err != nil {
			return false, err
		}
		with.looked[server] = upTo
		if later {
			return true, nil
		}
	}
}

// handOnBatch is one exchange of handOn.
func (k *carrying) handOnBatch(ctx context.Context, c contact, server eventgraph.ServerName, after uint64) (upTo uint64, later bool, err error) {
	ctx, mine, err := k.giving.take(ctx, ctx, c.Server)
	if err != nil {
		return 0, false, err
	}
	defer mine.release()
	batch, upTo, later, err := k.toHandOn(c.Server, server, after, true)
	defer k.withdraw(c.Server, server, batch)
	if err != nil || len(batch) == 0 {
		return upTo, later, err
	}
	var m carryMessage
	for _, o := range batch {
		raw, err := k.sign(o)
		if err != nil {
			return 0, false, err
		}
		m.Keep = append(m.Keep, raw)
	}
	own, err := k.f.ownBundles(c.Server, sendersOf(m.Keep))
	if err != nil {
		return 0, false, err
	}
	m.Users = map[eventgraph.UserID]offeredBundle{}
	for user, raw := range own {
		m.Users[user] = offeredBundle{Digest: digestOf(raw), TS: k.f.Now().UnixMilli()}
	}
	done, err := k.ask(ctx, c, mine, &m, func(user eventgraph.UserID) (json.RawMessage, error) { return k.f.signBundle(user, own[user]) })
	if err != nil {
		return 0, false, err
	}
	_, err = k.f.Store.Update(ctx, func(tx *store.Tx) error {
		for i := range done {
			if err := tx.AddCarrier(server, batch[i].Seq, c.Server); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && len(done) < len(batch) {
		err = errNotKept
	}
	return upTo, later, err
}

// offer says whether the contact may be asked to keep an item for which others are being asked too; and notes that it is, if it is asked now. Who
// has been asked for slotFair and has not answered keeps nobody else from being asked. choosing is held since before the item was read.
func (k *carrying) offer(by eventgraph.ServerName, o *store.Outbound, now bool) bool {
	item := offeredItem{o.Server, o.Seq}
	carriers := len(o.Carriers)
	for _, since := range k.offered[item] {
		if time.Since(since) < slotFair {
			carriers++
		}
	}
	if carriers >= maxCarriers {
		k.missed = true
		return false
	}
	if now {
		if k.offered[item] == nil {
			k.offered[item] = map[eventgraph.ServerName]time.Time{}
		}
		k.offered[item][by] = time.Now()
	}
	return true
}

// withdraw ends what offer has noted, once it is noted with the items who keeps them, and lets those be asked who were not for its sake.
func (k *carrying) withdraw(by, server eventgraph.ServerName, batch []*store.Outbound) {
	k.choosing.Lock()
	defer k.choosing.Unlock()
	for _, o := range batch {
		item := offeredItem{server, o.Seq}
		if delete(k.offered[item], by); len(k.offered[item]) == 0 {
			delete(k.offered, item)
		}
	}
	if k.missed && len(batch) > 0 {
		k.missed = false
		signal(k.changed)
	}
}

// toHandOn lists what is queued for a server after the place given and can be carried by another that does not have it, as much as goes into one message,
// and how far it need not look again. later: there is more for which enough others are being asked now. If it is offered now, that is noted (offer).
func (k *carrying) toHandOn(by, server eventgraph.ServerName, after uint64, now bool) (batch []*store.Outbound, upTo uint64, later bool, err error) {
	k.choosing.Lock()
	defer k.choosing.Unlock()
	upTo = after
	size := 0
	err = k.f.Store.View(func(r *store.Reader) error {
		return r.Outbound(server, after, func(o *store.Outbound) (bool, error) {
			if len(o.Carriers) < maxCarriers && !slices.Contains(o.Carriers, by) && carried(o) {
				if len(batch) == maxCarriedAtOnce || len(batch) > 0 && size+len(o.Body) > carryChunk {
					return false, nil
				}
				if k.offer(by, o, now) {
					batch = append(batch, o)
					size += len(o.Body)
				} else {
					later = true
				}
			}
			if !later {
				upTo = o.Seq
			}
			return true, nil
		})
	})
	return batch, upTo, later, err
}

// carried says whether others may carry the item.
func carried(o *store.Outbound) bool {
	var m directMessage
	return o.Kind == "m.direct_to_device" && len(o.Body) < maxCarriedMessage-requestFrame && json.Unmarshal(o.Body, &m) == nil &&
		m.Type == "m.room.encrypted" && signable(o.Body, canonicaljson.Strict, wrapsOfEDU)
}

// sign signs an item for its server. No two are signed at the same time, so that carriers keep their order.
func (k *carrying) sign(o *store.Outbound) (json.RawMessage, error) {
	k.mu.Lock()
	k.lastTS = max(k.lastTS+1, k.f.Now().UnixMilli())
	at := k.lastTS
	k.mu.Unlock()
	object, err := marshal(carriedMessage{Origin: k.f.server, Destination: o.Server, TS: at, Type: o.Kind, Content: o.Body})
	if err != nil {
		return nil, err
	}
	return eventgraph.SignJSON(object, k.f.Key)
}

// ask sends a message and returns which of it is done with. Of the users whom it names bundle has the signed bundles, if they are wanted.
func (k *carrying) ask(ctx context.Context, c contact, mine *slot, m *carryMessage, bundle func(eventgraph.UserID) (json.RawMessage, error)) (done map[int]bool, err error) {
	x, stop, err := k.f.openExchange(ctx, c.Peer, protocolCarry, mine)
	if err != nil {
		return nil, err
	}
	defer stop()
	var answer carryMessage
	if err := x.say(m, maxCarryAnswer, &answer); err != nil {
		return nil, err
	}
	if len(answer.Want) > 0 {
		for i, user := range answer.Want {
			if _, offered := m.Users[user]; !offered || slices.Contains(answer.Want[:i], user) {
				return nil, errors.New("it wants what was not offered")
			}
		}
		if err := giveBundles(x, answer.Want, bundle); err != nil {
			return nil, err
		}
		answer = carryMessage{}
		if err := x.read(maxCarryAnswer, &answer); err != nil {
			return nil, err
		}
	}
	done = map[int]bool{}
	for _, i := range answer.Done {
		if i < 0 || i >= len(m.Keep)+len(m.Give) {
			return nil, errors.New("an answer that is not in order")
		}
		done[i] = true
	}
	return done, nil
}

// giveAll gives a contact what we carry for it, and drops what it has taken. An origin of which it does not take something, because it has not its
// key, waits until the next time, and holds up no other.
func (k *carrying) giveAll(ctx context.Context, c contact) error {
	unlock, err := k.to.lock(ctx, c.Server)
	if err != nil {
		return err
	}
	defer unlock()
	waits := map[eventgraph.ServerName]bool{}
	for {
		batch, err := k.f.carriedFor(c.Server, waits)
		if err == nil && len(batch) == 0 && len(waits) > 0 {
			err = errNotTaken
		}
		if err != nil || len(batch) == 0 {
			return err
		}
		done, err := k.giveBatch(ctx, c, batch)
		if err != nil {
			return err
		}
		for i, kept := range batch {
			if !done[i] {
				waits[kept.Origin] = true
			}
		}
	}
}

// giveBatch is one exchange of giveAll. It returns which have been taken, and dropped.
func (k *carrying) giveBatch(ctx context.Context, c contact, batch []*store.Carried) (done map[int]bool, err error) {
	ctx, mine, err := k.giving.take(ctx, ctx, c.Server)
	if err != nil {
		return nil, err
	}
	defer mine.release()
	var m carryMessage
	for _, kept := range batch {
		m.Give = append(m.Give, kept.Signed)
	}
	held, err := k.f.heldFor(c.Server, sendersOf(m.Give))
	if err != nil {
		return nil, err
	}
	m.Users = map[eventgraph.UserID]offeredBundle{}
	for user, h := range held {
		m.Users[user] = offeredBundle{Digest: h.Digest, TS: h.TS}
	}
	done, err = k.ask(ctx, c, mine, &m, func(user eventgraph.UserID) (json.RawMessage, error) { return held[user].Signed, nil })
	if err != nil {
		return nil, err
	}
	_, err = k.f.Store.Update(ctx, func(tx *store.Tx) error {
		for i := range done {
			if err := tx.DeleteCarried(batch[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return done, err
}

// carriedFor lists what is kept for a server, but not of those who wait, as much as goes into one message.
func (f *Federation) carriedFor(server eventgraph.ServerName, waits map[eventgraph.ServerName]bool) (batch []*store.Carried, err error) {
	size, now := 0, f.Now()
	shares := map[eventgraph.ServerName]bool{} // origins
	err = f.Store.View(func(r *store.Reader) error {
		return r.Carried(server, func(kept *store.Carried) (bool, error) {
			share, known := shares[kept.Origin]
			if !known {
				share = f.carriesBetween(kept.Origin, server)
				shares[kept.Origin] = share
			}
			if waits[kept.Origin] || !share || tooOld(kept, now) {
				return true, nil // sweepKept removes it, if it is not to be given
			}
			if len(batch) == maxCarriedAtOnce || len(batch) > 0 && size+len(kept.Signed) > carryChunk {
				return false, nil
			}
			batch = append(batch, kept)
			size += len(kept.Signed)
			return true, nil
		})
	})
	return batch, err
}

// carriesBetween says whether we carry from the origin to the destination: both are in a room with us, and neither is blocked.
func (f *Federation) carriesBetween(origin, destination eventgraph.ServerName) bool {
	return !f.peers.isBlocked(origin) && !f.peers.isBlocked(destination) && f.shareRoom(origin, destination)
}

// tooOld says whether a message has been kept for as long as it may be: by our clock since it came, or since its origin signed it, if our clock was ahead then.
func tooOld(kept *store.Carried, now time.Time) bool {
	return now.Sub(time.UnixMilli(kept.Received)) > carryFor || now.Sub(time.UnixMilli(kept.TS)) > carryFor+carrySkew
}

// sweepKept removes messages kept for too long, or between servers for which we carry no more, and keys handed over by servers that share no room with us.
func (f *Federation) sweepKept(ctx context.Context) error {
	var drop []*store.Carried
	var gone []eventgraph.UserID
	var left []eventgraph.ServerName
	type way struct{ from, to eventgraph.ServerName }
	open := map[way]bool{}
	now := f.Now()
	err := f.Store.View(func(r *store.Reader) error {
		err := r.Carried("", func(kept *store.Carried) (bool, error) {
			w := way{kept.Origin, kept.Destination}
			if _, known := open[w]; !known {
				open[w] = f.carriesBetween(w.from, w.to)
			}
			if !open[w] || tooOld(kept, now) {
				kept.Signed = nil
				drop = append(drop, kept)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		return r.HandedServers(func(s eventgraph.ServerName) (bool, error) {
			if f.inSomeRoom(s) {
				return true, nil
			}
			left = append(left, s)
			return true, r.HandedBy(s, func(h *store.HandedKeys) (bool, error) {
				gone = append(gone, h.User)
				return true, nil
			})
		})
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(drop, recordsAtOnce) {
		_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
			for _, kept := range part {
				if err := tx.DeleteCarried(kept); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(left) == 0 {
		return nil
	}
	for part := range slices.Chunk(gone, recordsAtOnce) {
		_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
			for _, user := range part {
				if err := tx.DeleteHandedKeys(user); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error {
		for _, s := range left {
			if err := tx.PutHandedSum(s, nil); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// serve takes messages to carry, and those that are for us.
func (k *carrying) serve(ctx context.Context, from contact, x *exchangeStream) error {
	f := k.f
	var m carryMessage
	if err := x.read(maxCarryMessage, &m); err != nil {
		return err
	}
	if len(m.Keep)+len(m.Give) > maxCarriedAtOnce || len(m.Users) > maxCarriedAtOnce || len(m.Keep) > 0 && len(m.Give) > 0 {
		return errTooLong
	}
	if err := f.spendOn(ctx, from.Peer, costRequest+len(m.Keep)+len(m.Give)*costEDU); err != nil {
		return err
	}
	if err := k.takeKeys(ctx, x, from, &m); err != nil {
		return err
	}
	answer := &carryMessage{}
	var err error
	if len(m.Keep) > 0 {
		answer.Done, err = k.keep(ctx, from.Server, m.Keep)
	}
	for i, raw := range m.Give {
		if err != nil {
			break
		}
		var done bool
		if done, err = k.receive(ctx, from.Server, raw); done {
			answer.Done = append(answer.Done, i)
		}
	}
	if err != nil {
		return err
	}
	return x.write(answer)
}

// parseCarried reads a message and checks all of it but the signature. Whether it is for whom, and for how long, is for the caller to ask.
func parseCarried(raw json.RawMessage) (*carriedMessage, *directMessage, error) {
	m, d := &carriedMessage{}, &directMessage{}
	if len(raw) > maxCarriedMessage {
		return nil, nil, errTooLong
	}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(m.Content, d); err != nil {
		return nil, nil, err
	}
	_, originErr := eventgraph.ParseServerName(string(m.Origin))
	_, destinationErr := eventgraph.ParseServerName(string(m.Destination))
	switch {
	case originErr != nil || destinationErr != nil:
		return nil, nil, errors.Join(originErr, destinationErr)
	case m.Type != "m.direct_to_device" || d.Type != "m.room.encrypted":
		return nil, nil, fmt.Errorf("%.80q in %.80q is not carried", d.Type, m.Type)
	case d.Sender.Server() != m.Origin || d.MessageID == "" || len(d.MessageID) > maxCarriedID || m.TS < 0:
		return nil, nil, errors.New("it is not of the origin's user, or has no ID")
	}
	return m, d, nil
}

// maxCarriedID bounds a message_id in bytes; the spec has 32 codepoints.
const maxCarriedID = 128

// keep keeps messages of a server for others, and says which.
func (k *carrying) keep(ctx context.Context, origin eventgraph.ServerName, all []json.RawMessage) (kept []int, err error) {
	f := k.f
	items := make([]*store.Carried, len(all))
	for i, raw := range all {
		m, d, err := parseCarried(raw)
		switch {
		case err != nil:
		case !f.isToCarry(m, origin):
			err = errors.New("it is not ours to carry")
		case f.Now().Sub(time.UnixMilli(m.TS)) > carryFor:
			err = errors.New("it is too old")
		default:
			err = f.verifyObject(ctx, raw, origin, m.TS, origin)
		}
		if err != nil {
			f.Log.Debug("a message is not carried", "origin", origin, "err", err)
			continue
		}
		items[i] = &store.Carried{Destination: m.Destination, Origin: origin, TS: m.TS, MessageID: d.MessageID,
			Received: f.Now().UnixMilli(), Signed: bytes.Clone(raw)}
	}
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error {
		kept = nil
		for i, item := range items {
			if item == nil {
				continue
			}
			if err := tx.PutCarried(item); errors.Is(err, store.ErrCarriedFull) {
				continue
			} else if err != nil {
				return err
			}
			kept = append(kept, i)
		}
		return nil
	})
	if err == nil {
		f.Log.Debug("messages are kept for other servers", "origin", origin, "messages", len(kept))
		signal(k.changed) // a destination may be connected to us
	}
	return kept, err
}

// isToCarry says whether the message is one of the origin's that we may carry.
func (f *Federation) isToCarry(m *carriedMessage, origin eventgraph.ServerName) bool {
	return m.Origin == origin && m.Destination != origin && m.Destination != f.server && f.carriesBetween(origin, m.Destination)
}

// isForUs says whether the message is one that we take.
func (f *Federation) isForUs(m *carriedMessage) bool {
	return m.Destination == f.server && m.Origin != f.server && !f.peers.isBlocked(m.Origin) && f.shareRoom(m.Origin, f.server)
}

// receive takes in a message for us that another server carried. done says that it need not be given again; an error of the store is returned. A message
// whose origin shares no room with us, for all that we know, waits with the carrier, as one does whose key we lack: that it has joined may come over a slow
// link later than what it wrote. Who never joins waits no longer than the carrier keeps things.
func (k *carrying) receive(ctx context.Context, by eventgraph.ServerName, raw json.RawMessage) (done bool, err error) {
	f := k.f
	refuse := func(why any) (bool, error) {
		f.Log.Info("a carried message was refused", "by", by, "why", why)
		return true, nil
	}
	m, _, err := parseCarried(raw)
	if err != nil {
		return refuse(err)
	}
	switch {
	case m.Destination != f.server || m.Origin == f.server || f.peers.isBlocked(m.Origin):
		return refuse("it is for another server, or of one that is blocked")
	case f.Now().Sub(time.UnixMilli(m.TS)) > carryFor+carrySkew:
		return refuse("it is too old")
	case !f.isForUs(m):
		f.Log.Debug("a carried message waits until its origin is in a room with us", "by", by, "origin", m.Origin)
		return false, nil
	}
	switch err := f.verifyObject(ctx, raw, m.Origin, m.TS, by); {
	case errors.Is(err, eventgraph.ErrKeyUnknown) || errors.Is(err, eventgraph.ErrKeyNotValid):
		f.Log.Debug("a carried message waits for its origin's key", "by", by, "origin", m.Origin, "err", err)
		return false, nil
	case err != nil:
		return refuse(err)
	}
	f.Log.Debug("a carried message has come", "by", by, "origin", m.Origin)
	return true, f.receiveEDU(ctx, m.Origin, edu{Type: m.Type, Content: m.Content})
}
