package federation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
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
	// maxQueued bounds the invites and leaves delivered at one go, and maxLooked the bytes of the queue that are looked at for them: what they
	// wait behind is sent meanwhile.
	maxQueued = 100
	maxLooked = 2 << 20
	// fullTransaction bounds what is put together in one transaction over the fastest link (pace.go). What is fixed is repeated as it is, over
	// a slow link too: it passes in 96 s at 1 KiB/s, half of 16 kbit/s, where peers wait two minutes for the body of a request. Fifty usual
	// events are a third of it. One PDU or EDU may be larger, maxEDU at most; the body stays below store.MaxTransactionBody.
	fullTransaction = 96 << 10
	// requestFrame and eduFrame are what passes beside the body of a transaction, as headers with names and signature and the stream's
	// beginning, and around an EDU's content. Both are above what they are.
	requestFrame = 1 << 10
	eduFrame     = 64
	// maxEDU bounds an EDU that we send; clientapi cuts its own far below. A larger one would hold up all behind it.
	maxEDU = 256 << 10
	// composeTries is how often a change is tried of which no transaction can be composed: the store may be in trouble for a moment. Then what is
	// behind it goes without it.
	composeTries = 3
	// maxReceiptThreads bounds the threads of which a change of somebody's receipts tells, those read last: which one has
	// changed is not said.
	maxReceiptThreads = 20
	// typingRefresh is after how long those who still type are named again: receivers forget them, we after typingTimeout.
	typingRefresh = 20 * time.Second
)

// senderCursor is the name of the sender's own record among the destinations: changes up to it have been looked at for
// servers that had no record yet.
const senderCursor eventgraph.ServerName = ""

// couriers are those who deliver, one for each server. Each has a goroutine only while its server is connected and there is something to do:
// a server that is away costs its record on disk and nothing else, however long, and is tried when it is met.
//
//	nothing ─ wake: news for a connected server, or it was met ─→ working ─ all is sent, or the server has gone ─→ nothing
//	                                                               │   ↑
//	                                      error or typists remain ─┴───┴─ the time is over, or met anew
type couriers struct {
	run func(*courier) // starts its goroutine; set by runSender

	mu  sync.Mutex
	all map[eventgraph.ServerName]*courier // bounded by the servers that were connected and shared a room or had something queued
}

// courier delivers to one server.
type courier struct {
	server  eventgraph.ServerName
	poked   chan struct{} // holds a token when there may be something to do
	met     chan struct{} // holds a token when a peer of the server was met: then no failure before counts
	working bool          // whether it has a goroutine; guarded by couriers.mu

	// Of the courier's goroutine alone.
	record *store.Destination                        // nil until something durable concerns the server; the courier is its only writer from then on
	acked  *store.Transaction                        // acknowledged, while the stored record still shows it in flight
	typed  map[eventgraph.RoomID][]eventgraph.UserID // who was said to be typing
	toldAt time.Time                                 // when
	denied string                                    // the transaction of which the last attempt was denied, maybe for its numbers
	stuck  stuckAt                                   // where the last attempts to compose one ended

	mu       sync.Mutex
	typing   map[eventgraph.RoomID]bool // rooms whose typing has changed
	presence map[eventgraph.UserID]bool
}

// stuckAt is a change of which a transaction could not be composed, so many times in a row.
type stuckAt struct {
	at    store.Position
	times int
}

// fails says whether the change has failed composeTries times in a row, with this time.
func (s *stuckAt) fails(at store.Position) bool {
	if s.at != at {
		*s = stuckAt{at: at}
	}
	s.times++
	return s.times >= composeTries
}

// signal puts a token into a channel that holds one.
func signal(token chan<- struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

// of is the courier of a connected server.
func (s *couriers) of(server eventgraph.ServerName) *courier {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.all[server]
	if c == nil {
		c = &courier{server: server, poked: make(chan struct{}, 1), met: make(chan struct{}, 1), typed: map[eventgraph.RoomID][]eventgraph.UserID{}}
		s.all[server] = c
	}
	return c
}

// wake tells a courier that there is something to do.
func (s *couriers) wake(c *courier) {
	s.mu.Lock()
	defer s.mu.Unlock()
	signal(c.poked)
	if !c.working {
		c.working = true
		s.run(c)
	}
}

// rest ends the work of a courier, unless it was woken since it last looked. A transaction in flight is read again when it is wanted; that one was
// acknowledged is remembered, else it would be repeated.
func (s *couriers) rest(c *courier) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(c.poked) > 0 {
		return false
	}
	c.working = false
	if c.record != nil && c.record.InFlight != nil {
		c.record = nil
	}
	return true
}

// runSender delivers to each server what concerns it, until ctx ends.
func (f *Federation) runSender(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	senders := &couriers{all: map[eventgraph.ServerName]*courier{}}
	watched := &audience{f: f, senders: senders, told: map[eventgraph.UserID]map[eventgraph.ServerName]time.Time{}}
	senders.run = func(c *courier) { group.Go(func() error { return f.runCourier(ctx, senders, c) }) }
	group.Go(func() error { return f.follow(ctx, senders) })
	group.Go(func() error { return f.followEphemeral(ctx, watched) })
	group.Go(func() error {
		turn := uint64(0)
		for {
			met, next, err := f.peers.met(ctx, turn)
			if err != nil {
				return nil
			}
			turn = next
			watched.met(met)
			for _, m := range met {
				if d, err := f.destination(m.Server); err == nil && d != nil {
					c := senders.of(m.Server)
					signal(c.met)
					senders.wake(c)
				}
			}
		}
	})
	return group.Wait()
}

// destination reads a server's record; nil if it has none.
func (f *Federation) destination(server eventgraph.ServerName) (d *store.Destination, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		d, err = r.Destination(server)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return d, err
}

// following is how far the sender has looked at the changes, and how far that is stored.
type following struct {
	from, saved store.Position
	recorded    map[eventgraph.ServerName]bool // servers that were found to have a record: none is deleted
}

func (f *Federation) beginFollowing() (following, error) {
	own, err := f.destination(senderCursor)
	if err != nil {
		return following{}, fmt.Errorf("read sender's cursor: %w", err)
	}
	if own == nil {
		return following{recorded: map[eventgraph.ServerName]bool{}}, nil
	}
	return following{own.Sent, own.Sent, map[eventgraph.ServerName]bool{}}, nil
}

// follow reads the changes as they come, makes a record for each server that is concerned for the first time, and pokes the couriers.
func (f *Federation) follow(ctx context.Context, senders *couriers) error {
	at, err := f.beginFollowing()
	if err != nil {
		return err
	}
	for {
		upTo, err := f.Store.Wait(ctx, at.from)
		if err != nil {
			return err
		}
		upTo = f.carry(ctx, at.from, upTo)
		err = f.followTo(ctx, &at, upTo, senders)
		if errors.Is(err, store.ErrDiskFull) {
			f.Log.Warn("sending waits for room on the disk", "err", err)
			select {
			case <-time.After(retryLast):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return err
		}
	}
}

// followTo is one step of follow.
func (f *Federation) followTo(ctx context.Context, at *following, upTo store.Position, senders *couriers) error {
	concerned := map[eventgraph.ServerName]store.Position{} // to the first change
	err := f.Store.View(func(r *store.Reader) error {
		return r.Changes(at.from, upTo, func(pos store.Position, c store.Change) (bool, error) {
			servers, err := f.concerned(r, c)
			if errors.Is(err, store.ErrNotFound) {
				return true, nil // the room or the event has gone
			}
			if c.Kind == store.ChangeEvent && len(servers) > 0 {
				f.budgets.talks(c.Room, f.server, time.Now())
			}
			for _, s := range servers {
				if _, ok := concerned[s]; !ok && s != f.server && s != "" {
					concerned[s] = pos
				}
			}
			return ctx.Err() == nil, err
		})
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	fresh, err := f.withoutRecord(at.recorded, concerned)
	if err != nil {
		return err
	}
	if len(fresh) > 0 || upTo-at.saved > saveScan {
		if err := f.addDestinations(ctx, fresh, concerned, upTo); err != nil {
			return fmt.Errorf("store destinations: %w", err)
		}
		at.saved = upTo
		for _, s := range fresh {
			at.recorded[s] = true
		}
	}
	for s := range f.peers.servers() { // after the records were made: who is connected later finds its own
		if _, is := concerned[s]; is {
			senders.wake(senders.of(s))
		}
	}
	at.from = upTo
	return nil
}

// recordsAtOnce is how many records of servers are made in one write.
const recordsAtOnce = 1000

// addDestinations makes the records of servers that had none, from before the first change that concerns each, and then moves the
// sender's own cursor.
func (f *Federation) addDestinations(ctx context.Context, fresh []eventgraph.ServerName, first map[eventgraph.ServerName]store.Position, upTo store.Position) error {
	for {
		part := fresh[:min(len(fresh), recordsAtOnce)]
		fresh = fresh[len(part):]
		_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
			for _, s := range part {
				if err := tx.PutDestination(&store.Destination{Server: s, Sent: first[s] - 1}); err != nil {
					return err
				}
			}
			if len(fresh) > 0 {
				return nil
			}
			return tx.PutDestination(&store.Destination{Server: senderCursor, Sent: upTo})
		})
		if err != nil || len(fresh) == 0 {
			return err
		}
	}
}

// withoutRecord lists those of the servers that have no record, and notes who has one.
func (f *Federation) withoutRecord(recorded map[eventgraph.ServerName]bool, servers map[eventgraph.ServerName]store.Position) (fresh []eventgraph.ServerName, err error) {
	var unsure []eventgraph.ServerName
	for s := range servers {
		if !recorded[s] {
			unsure = append(unsure, s)
		}
	}
	if len(unsure) == 0 {
		return nil, nil
	}
	slices.Sort(unsure)
	err = f.Store.View(func(r *store.Reader) error {
		for _, s := range unsure {
			_, err := r.Destination(s)
			if errors.Is(err, store.ErrNotFound) {
				fresh = append(fresh, s)
			} else if err != nil {
				return err
			} else {
				recorded[s] = true
			}
		}
		return nil
	})
	return fresh, err
}

// note remembers news of typing in a room, or of a user's presence; more than it can hold is not worth sending late.
func (s *couriers) note(server eventgraph.ServerName, room eventgraph.RoomID, user eventgraph.UserID) {
	c := s.of(server)
	c.mu.Lock()
	if c.typing == nil {
		c.typing, c.presence = map[eventgraph.RoomID]bool{}, map[eventgraph.UserID]bool{}
	}
	if room != "" && len(c.typing) < maxVolatile {
		c.typing[room] = true
	}
	if user != "" && len(c.presence) < maxVolatile {
		c.presence[user] = true
	}
	c.mu.Unlock()
	s.wake(c)
}

// runCourier delivers to one server until nothing is left or the server has gone.
func (f *Federation) runCourier(ctx context.Context, senders *couriers, c *courier) error {
	failures := 0
	for {
		select {
		case <-c.poked:
		case <-c.met:
			failures = 0
		default:
		}
		changed, connected := f.peers.watch(c.server)
		if !connected {
			clear(c.typed)
			if senders.rest(c) {
				return nil
			}
			continue
		}
		err := f.sendAll(ctx, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		poked, wait := c.poked, typingRefresh
		switch {
		case err == errJoinUnderWay: // all but that leave is sent
			wait, failures = leaveAgain, 0
		case err != nil:
			f.Log.Debug("delivery failed and will be repeated", "server", c.server, "err", err)
			poked = nil // what is new waits with the rest
			wait = retryAfter(err, failures)
			failures++
		case len(c.typed) == 0:
			if senders.rest(c) {
				return nil
			}
			continue
		default:
			failures = 0
		}
		if err := c.pause(ctx, f.peers, wait, poked, changed); err != nil {
			return err
		}
	}
}

// pause waits for the time given, for a token in poked, until the server is met anew, or until it has gone.
func (c *courier) pause(ctx context.Context, peers *peers, wait time.Duration, poked <-chan struct{}, changed <-chan struct{}) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for connected := true; connected; changed, connected = peers.watch(c.server) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poked:
			return nil
		case <-timer.C:
			return nil
		case <-c.met:
			signal(c.met) // for runCourier, which forgets the failures
			return nil
		case <-changed:
		}
	}
	return nil
}

// retryAfter is how long to wait after so many failures before this one; as long as the server asks for, if it does.
func retryAfter(err error, failures int) time.Duration {
	wait := min(retryFirst<<min(failures, 10), retryLast)
	var remote *remoteError
	if errors.As(err, &remote) {
		wait = max(wait, min(remote.RetryAfter, maxRetryAfter))
	}
	return wait
}

// maxRetryAfter bounds how long a server can make us wait.
const maxRetryAfter = 10 * time.Minute

// sendAll sends until nothing is left. Requests of their own that failed do not hold up the rest.
func (f *Federation) sendAll(ctx context.Context, c *courier) error {
	if c.record == nil {
		d, err := f.destination(c.server)
		if err != nil {
			return err
		}
		c.record = d
	}
	var failed error
	if d := c.record; d != nil {
		var more bool
		if more, failed = f.deliverQueued(ctx, c.server); more && failed == nil {
			signal(c.poked)
		}
		if d.InFlight != nil && !signable(d.InFlight.Body, canonicaljson.Lenient, wrapsOfBody) {
			d.InFlight = nil // it was never sent, for it cannot be signed: what is to blame is left out of the next
		}
		for {
			if d.InFlight == nil {
				if err := f.fix(ctx, c); err != nil {
					return err
				}
			}
			if d.InFlight == nil {
				break
			}
			err := f.putTransaction(ctx, c.server, d.InFlight.ID, d.InFlight.Body)
			if c.refuses(err) {
				if err := f.setAside(ctx, c); err != nil {
					return err
				}
				continue
			}
			if errors.Is(err, errTransactionRefused) {
				var again bool
				if again, err = f.sendAlone(ctx, c); again && err == nil {
					continue
				}
			}
			if err != nil {
				return err
			}
			c.acked, d.Sent, d.InFlight = d.InFlight, d.InFlight.UpTo, nil
			c.acked.Body = nil
		}
	}
	if err := f.sendVolatile(ctx, c); err != nil {
		return err
	}
	return failed
}

// deliverQueued brings what is queued for the server and is a request of its own: invites and leaves. One that cannot be delivered now
// stays, and does not hold up the others. more says that it has not looked at all of the queue.
func (f *Federation) deliverQueued(ctx context.Context, server eventgraph.ServerName) (more bool, failed error) {
	var queued []*store.Outbound
	looked := 0
	err := f.Store.View(func(r *store.Reader) error {
		return r.Outbound(server, 0, func(o *store.Outbound) (bool, error) {
			if !durableEDU(o.Kind) {
				queued = append(queued, o)
			}
			looked += len(o.Body)
			more = len(queued) == maxQueued || looked > maxLooked
			return !more, nil
		})
	})
	if err != nil {
		return false, err
	}
	var later error
	for _, o := range queued {
		if err := f.deliverOutbound(ctx, o); errors.Is(err, errJoinUnderWay) {
			later = err
			continue
		} else if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if _, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteOutbound(server, o.Seq) }); err != nil {
			return false, err
		}
	}
	return more, cmp.Or(failed, later)
}

// errNumbersRefused: a server that takes only JSON of canonical form has refused a transaction for the events of room versions 3 to 5 in it.
var errNumbersRefused = errors.New("the transaction holds numbers that have no canonical form")

// refuses says whether the end of an attempt to send the transaction in flight means that the server takes no such numbers: an answer that calls
// it malformed does, a denial when it comes twice in a row. One alone may pass: the server may lack a new key document of ours.
func (c *courier) refuses(err error) bool {
	if !errors.Is(err, errNumbersRefused) {
		c.denied = ""
		return false
	}
	var remote *remoteError
	again := c.denied == c.record.InFlight.ID
	c.denied = c.record.InFlight.ID
	return again || errors.As(err, &remote) && remote.Status == http.StatusBadRequest
}

// setAside makes another transaction of the one in flight, without the events for whose numbers the server has refused it: by its reading
// the signature of the request does not fit, or the body is no JSON. They can still be asked for, as what is built on them names them.
func (f *Federation) setAside(ctx context.Context, c *courier) error {
	next := *c.record.InFlight
	var t transaction
	if err := json.Unmarshal(next.Body, &t); err != nil {
		return fmt.Errorf("stored transaction: %w", err)
	}
	all := len(t.PDUs) + len(t.EDUs)
	t.PDUs = slices.DeleteFunc(t.PDUs, func(pdu json.RawMessage) bool { return !signable(pdu, canonicaljson.Strict, wrapsOfPDU) })
	t.EDUs = slices.DeleteFunc(t.EDUs, func(e edu) bool { return !signable(e.Content, canonicaljson.Strict, wrapsOfEDU) })
	f.Log.Warn("events whose numbers have no canonical form are not sent to a server that refuses them: it can ask for them",
		"server", c.server, "txn", next.ID, "events", all-len(t.PDUs)-len(t.EDUs))
	body, err := marshal(t)
	if err != nil {
		return err
	}
	next.ID, next.Body = next.ID+"-canonical", body
	before := c.record.InFlight
	c.record.InFlight = &next
	if err := f.saveDestination(ctx, c, nil); err != nil {
		c.record.InFlight = before
		return err
	}
	return nil
}

// errTransactionRefused: a server has called a transaction malformed or too large, so it will never take it.
var errTransactionRefused = errors.New("the transaction is refused for good")

// sendAlone makes another transaction of the one in flight, which was refused, with what was queued for the server alone: that nobody else brings.
// If it had nothing else in it, it is halved; what is not in it stays in the queue. So what is to blame is refused alone in the end, after few tries, and
// there is nothing left to send again.
func (f *Federation) sendAlone(ctx context.Context, c *courier) (again bool, err error) {
	next := *c.record.InFlight
	var refused transaction
	if err := json.Unmarshal(next.Body, &refused); err != nil {
		return false, fmt.Errorf("stored transaction: %w", err)
	}
	if len(refused.PDUs) == 0 && len(refused.EDUs) <= len(next.Queue) {
		next.Queue = next.Queue[:len(next.Queue)/2]
	}
	if len(next.Queue) == 0 {
		return false, nil
	}
	t := transaction{Origin: f.server, OriginServerTS: f.Now().UnixMilli()}
	err = f.Store.View(func(r *store.Reader) error {
		return r.Outbound(c.server, next.Queue[0]-1, func(o *store.Outbound) (bool, error) {
			if slices.Contains(next.Queue, o.Seq) {
				t.addEDU(f, o.Kind, o.Body)
			}
			return o.Seq < next.Queue[len(next.Queue)-1], nil
		})
	})
	if err != nil {
		return false, err
	}
	if next.Body, err = marshal(t); err != nil {
		return false, err
	}
	base, _, _ := strings.Cut(next.ID, "-q")
	next.ID = fmt.Sprintf("%s-q%d", base, len(next.Queue))
	before := c.record.InFlight
	c.record.InFlight = &next
	if err := f.saveDestination(ctx, c, nil); err != nil {
		c.record.InFlight = before
		return false, err
	}
	return true, nil
}

// putTransaction sends a transaction. A server that calls it malformed or too large will never take it, and what waits behind it
// would wait for ever: errTransactionRefused. Then it counts as delivered but for what was queued (sendAlone), and meetings bring the events.
// Before that it is errNumbersRefused, if that may be why.
func (f *Federation) putTransaction(ctx context.Context, server eventgraph.ServerName, id string, body []byte) error {
	var answer sendAnswer
	pace, began := f.paceTo(server), f.Now()
	err := f.do(ctx, server, http.MethodPut, target(v1+"send", []string{id}, nil), json.RawMessage(body), &answer)
	var remote *remoteError
	if err == nil || !errors.As(err, &remote) && ctx.Err() == nil {
		pace.went(len(body)+requestFrame, f.Now().Sub(began), err != nil)
	}
	if errors.As(err, &remote) && !signable(body, canonicaljson.Strict, wrapsOfBody) {
		switch remote.Status {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: %w", errNumbersRefused, err)
		}
	}
	if errors.As(err, &remote) && (remote.Status == http.StatusBadRequest || remote.Status == http.StatusRequestEntityTooLarge) {
		f.Log.Warn("a server refused a transaction for good", "server", server, "txn", id, "err", err)
		return fmt.Errorf("%w: %w", errTransactionRefused, err)
	}
	if errors.Is(err, errUnsignable) { // nothing that is put into a transaction should make it so
		f.Log.Error("a transaction cannot be signed and is not sent", "server", server, "txn", id, "err", err)
		return fmt.Errorf("%w: %w", errTransactionRefused, err)
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

// fix composes the next transaction and stores it, together with the acknowledgement of the one before; the record's InFlight stays nil if
// there is nothing to send. If we stop before the acknowledgement is stored, the transaction before is repeated exactly, and
// the other side knows it by its ID.
func (f *Federation) fix(ctx context.Context, c *courier) error {
	d := c.record
	next := f.draftFor(d.Server)
	var carried []uint64
	if c.acked != nil {
		carried = c.acked.Queue
	}
	// What is queued nobody else brings: it has half of a transaction, however many events wait, and what they leave.
	queue, err := f.composeQueue(d.Server, 0, carried, next, next.most/2)
	if err != nil {
		return err
	}
	scanned, err := f.composeChanges(ctx, c, next)
	if err != nil {
		return fmt.Errorf("compose transaction for %s: %w", d.Server, err)
	}
	last := uint64(0)
	if len(queue) > 0 {
		last = queue[len(queue)-1]
	}
	more, err := f.composeQueue(d.Server, last, carried, next, next.most)
	if err != nil {
		return err
	}
	queue = append(queue, more...)
	if len(next.PDUs) == 0 && len(next.EDUs) == 0 {
		unsaved := c.acked != nil || len(queue) > 0 || scanned-d.Sent > saveScan
		d.Sent = scanned
		if !unsaved {
			return nil
		}
		return f.saveDestination(ctx, c, append(carried, queue...))
	}
	body, err := marshal(next.transaction)
	if err != nil {
		return err
	}
	incarnation := f.Store.Incarnation()
	d.InFlight = &store.Transaction{
		ID:   fmt.Sprintf("%x-%d-%d", incarnation[:4], scanned, f.Now().UnixNano()),
		Body: body, UpTo: scanned, Queue: queue,
	}
	if err := f.saveDestination(ctx, c, carried); err != nil {
		d.InFlight = nil
		return err
	}
	return nil
}

// durableEDU says whether a queued item travels in transactions; the others are requests of their own (deliverQueued).
func durableEDU(kind string) bool { return kind == "m.direct_to_device" }

// saveDestination stores the record, without what the acknowledged transaction carried in the queue.
func (f *Federation) saveDestination(ctx context.Context, c *courier, drop []uint64) error {
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
		for _, seq := range drop {
			if err := tx.DeleteOutbound(c.server, seq); err != nil {
				return err
			}
		}
		return tx.PutDestination(c.record)
	})
	if err == nil {
		c.acked = nil
	}
	return err
}

// sendVolatile sends typing and presence in transactions that are not stored: late, they would be wrong. Lost is lost.
func (f *Federation) sendVolatile(ctx context.Context, c *courier) error {
	c.mu.Lock()
	rooms, users := c.typing, c.presence
	c.typing, c.presence = nil, nil
	c.mu.Unlock()
	if rooms == nil {
		rooms = map[eventgraph.RoomID]bool{}
	}
	t := transaction{Origin: f.server, OriginServerTS: f.Now().UnixMilli()}
	if err := f.composeTyping(c, rooms, &t); err != nil {
		return err
	}
	for push := range slices.Chunk(f.presenceOf(users), maxPresencePush) {
		content, err := marshal(map[string]any{"push": push})
		if err != nil {
			return err
		}
		t.addEDU(f, "m.presence", content)
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
		if err := f.putTransaction(ctx, c.server, id, body); err != nil && !errors.Is(err, errTransactionRefused) {
			return err
		}
	}
	return nil
}
