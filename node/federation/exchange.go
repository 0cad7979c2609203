package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// What key handover and carrying have in common: with each contact they go on by themselves (visits), in exchanges of a few messages on a stream, of
// which so many go on at one time (slots). Who is slow has the time that a slow link needs, and holds up nobody: neither by what it is asked,
// nor by what it asks.

const (
	// exchangeTime bounds an exchange as a whole; each message has its time besides, as at a meeting (meetStream). At 16 kbit/s 1.7 MB pass
	// in it, and of what is more than that the part that has come is kept, and not asked for again.
	exchangeTime = 15 * time.Minute
	// slotFair is for how long an exchange has its slot in any case, longer by what has passed at slotSpeed bytes a second (half of 16 kbit/s), but not
	// longer than slotLongest. After that it ends if others wait for a slot, the slowest first. Who waits does so for meetTurn.
	slotFair    = 20 * time.Second
	slotSpeed   = 1 << 10
	slotLongest = 3 * time.Minute
	// slotGrudge is for how long a server whose exchange was ended so comes after those with whom that has not happened.
	slotGrudge = time.Hour
)

// exchangeStream is that of one. A message has meetTurn, and more for what passes meanwhile.
type exchangeStream struct {
	meetStream
	sent int // bytes, since the last message was read: they may still be on their way
}

func newExchangeStream(stream io.ReadWriteCloser, mine *slot) *exchangeStream {
	return &exchangeStream{meetStream: meetStream{&weighed{stream, mine}}}
}

func (x *exchangeStream) write(m any) error {
	body, err := marshal(m)
	if err != nil {
		return err
	}
	x.sent += len(body)
	return x.writeBody(body)
}

// read reads a message of at most limit bytes into m.
func (x *exchangeStream) read(limit uint32, m any) error {
	body, err := x.readBody(x.sent, limit)
	if err != nil {
		return err
	}
	x.sent = 0
	if err := json.Unmarshal(body, m); err != nil {
		return fmt.Errorf("message that is not one: %w", err)
	}
	return nil
}

// say writes a message and reads the answer, of at most limit bytes.
func (x *exchangeStream) say(m any, limit uint32, answer any) error {
	if err := x.write(m); err != nil {
		return err
	}
	return x.read(limit, answer)
}

// weighed counts what passes, for the slot; mine may be nil.
type weighed struct {
	io.ReadWriteCloser
	mine *slot
}

func (w *weighed) Read(b []byte) (int, error) {
	n, err := w.ReadWriteCloser.Read(b)
	w.mine.count(n)
	return n, err
}

func (w *weighed) Write(b []byte) (int, error) {
	n, err := w.ReadWriteCloser.Write(b)
	w.mine.count(n)
	return n, err
}

func (w *weighed) SetDeadline(t time.Time) error {
	if d, ok := w.ReadWriteCloser.(deadliner); ok {
		return d.SetDeadline(t)
	}
	return nil
}

func (w *weighed) Reset() error {
	reset(w.ReadWriteCloser)
	return nil
}

// openExchange opens the stream of one; mine is its slot, nil if it has none. stop ends it.
func (f *Federation) openExchange(ctx context.Context, peer eventgraph.PeerID, protocol string, mine *slot) (x *exchangeStream, stop func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	opening, opened := context.WithTimeout(ctx, peersTimeout)
	defer opened()
	stream, err := f.Transport.OpenStream(opening, peer, protocol)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	unbind := context.AfterFunc(ctx, func() { reset(stream) })
	return newExchangeStream(stream, mine), func() { unbind(); cancel(); stream.Close() }, nil
}

// serveExchanges answers those that servers which share a room with us begin: one of each server at a time. what is it that serve does, for the log.
func (f *Federation) serveExchanges(protocol, what string, places *slots, serve func(ctx context.Context, from contact, x *exchangeStream) error) {
	one := &keyedLock[eventgraph.ServerName]{}
	f.Transport.Handle(protocol, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		answer := func() error {
			from, within, mine, release, err := f.admitExchange(ctx, peer, one, places)
			if err != nil {
				return err
			}
			defer release()
			defer context.AfterFunc(within, func() { reset(stream) })()
			return serve(within, from, newExchangeStream(stream, mine))
		}
		if err := answer(); err != nil && ctx.Err() == nil {
			reset(stream)
			f.Log.Debug(what+" not served", "peer", peer, "err", err)
		}
	})
}

// admitExchange lets an exchange in; it is over when the context returned ends.
func (f *Federation) admitExchange(ctx context.Context, peer eventgraph.PeerID, one *keyedLock[eventgraph.ServerName], places *slots) (from contact, within context.Context, mine *slot, release func(), err error) {
	if err := f.admitStream(ctx, peer); err != nil {
		return contact{}, nil, nil, nil, err
	}
	server, err := f.asker(ctx, peer)
	if err == nil && !f.sharesRoom(server) {
		err = errors.New("it shares no room with us")
	}
	if err != nil {
		return contact{}, nil, nil, nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, meetTurn) // after that nobody waits at the other end
	defer cancel()
	unlock, err := one.lock(waiting, server)
	if err != nil {
		return contact{}, nil, nil, nil, err
	}
	within, mine, err = places.take(ctx, waiting, server)
	if err != nil {
		unlock()
		return contact{}, nil, nil, nil, err
	}
	return contact{Server: server, Peer: peer}, within, mine, func() { mine.release(); unlock() }, nil
}

// slots lets so many exchanges go on at one time.
type slots struct {
	most int

	mu      sync.Mutex
	taken   map[*slot]bool               // at most most
	queue   []*slot                      // who waits, in this order
	grudges rests[eventgraph.ServerName] // servers of which an exchange was ended for others
}

// slot is the place of an exchange with a server.
type slot struct {
	of      *slots
	server  eventgraph.ServerName
	granted chan struct{} // closed when it is its turn
	end     context.CancelFunc
	passed  atomic.Int64 // bytes, both ways

	// Guarded by slots.mu.
	since time.Time // when it was granted
	ended bool      // for another
	whole *time.Timer
}

func newSlots(most int) *slots { return &slots{most: most, taken: map[*slot]bool{}} }

// take waits for a slot until waiting ends. The exchange is over when the context returned ends: with ctx, after exchangeTime, or for others who wait.
func (s *slots) take(ctx, waiting context.Context, server eventgraph.ServerName) (within context.Context, mine *slot, err error) {
	within, cancel := context.WithCancel(ctx)
	mine = &slot{of: s, server: server, granted: make(chan struct{}), end: cancel}
	s.mu.Lock()
	s.enqueue(mine)
	s.fill()
	s.mu.Unlock()
	for {
		timer := time.NewTimer(s.crowd())
		select {
		case <-mine.granted:
			timer.Stop()
			return within, mine, nil
		case <-timer.C:
		case <-waiting.Done():
			timer.Stop()
			mine.release()
			return nil, nil, fmt.Errorf("no slot for it: %w", waiting.Err())
		}
	}
}

// enqueue puts it behind the others, but before those that have a grudge against them; mu is held.
func (s *slots) enqueue(mine *slot) {
	grudge := func(w *slot) bool { return time.Now().Before(s.grudges[w.server].until) }
	at := len(s.queue)
	if !grudge(mine) {
		if first := slices.IndexFunc(s.queue, grudge); first >= 0 {
			at = first
		}
	}
	s.queue = slices.Insert(s.queue, at, mine)
}

// fill gives free slots to those who wait; mu is held.
func (s *slots) fill() {
	for len(s.queue) > 0 && len(s.taken) < s.most {
		next := s.queue[0]
		s.queue = slices.Delete(s.queue, 0, 1)
		s.taken[next] = true
		next.since = time.Now()
		next.whole = time.AfterFunc(exchangeTime, next.end)
		close(next.granted)
	}
}

// crowd ends exchanges for those who wait, the slowest first, and says when it may have to be done again.
func (s *slots) crowd() (again time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, free := time.Now(), 0
	again = slotFair
	for w := range s.taken {
		if w.ended {
			free++
		} else if left := w.fair() - now.Sub(w.since); left > 0 {
			again = min(again, left)
		}
	}
	for ; free < len(s.queue); free++ {
		var slowest *slot
		for w := range s.taken {
			if !w.ended && now.Sub(w.since) >= w.fair() && (slowest == nil || w.speed(now) < slowest.speed(now)) {
				slowest = w
			}
		}
		if slowest == nil {
			break
		}
		slowest.ended = true
		slowest.end()
		s.grudges.put(slowest.server, rest{until: now.Add(slotGrudge)}, now)
	}
	return again
}

// fair is how long the slot may be had while others wait.
func (w *slot) fair() time.Duration {
	return min(slotFair+time.Duration(w.passed.Load())*time.Second/slotSpeed, slotLongest)
}

func (w *slot) speed(now time.Time) float64 {
	return float64(w.passed.Load()) / now.Sub(w.since).Seconds()
}

// count notes that so many bytes have passed.
func (w *slot) count(n int) {
	if w != nil {
		w.passed.Add(int64(n))
	}
}

// release ends the exchange, or the waiting, and gives the slot back.
func (w *slot) release() {
	w.end()
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.whole != nil {
		w.whole.Stop()
	}
	delete(w.of.taken, w)
	w.of.queue = slices.DeleteFunc(w.of.queue, func(other *slot) bool { return other == w })
	w.of.fill()
}

// visits has a goroutine for each contact that shares a room with us: as many as the transport has connections. It visits the contact when it is met and when
// something has changed, and again after as long as the visit says.
type visits struct {
	f       *Federation
	changed chan struct{} // holds a token when there may be something to do
	soon    time.Duration // how long it is gathered who comes and goes, and
	later   time.Duration // what changes
	seldom  time.Duration // all contacts are visited so often in any case
	prepare func() error  // is called before them, by one goroutine
	begin   func(c contact) (visit func(ctx context.Context) (again time.Duration))
}

// visiting is what goes on with a contact over one connection.
type visiting struct {
	since uint64 // the turn at which it was met
	poked chan struct{}
	end   context.CancelFunc
}

// run goes on until ctx ends, and all visits have.
func (v *visits) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		with := map[eventgraph.PeerID]*visiting{}
		for {
			v.f.peers.mu.Lock()
			news := v.f.peers.changed
			v.f.peers.mu.Unlock()
			if err := v.prepare(); err != nil {
				v.f.Log.Error("cannot tell what to give to whom", "err", err)
			} else {
				v.poke(ctx, group, with)
			}
			timer := time.NewTimer(v.seldom)
			select {
			case <-ctx.Done():
			case <-news:
				pause(ctx, v.soon, nil)
			case <-v.changed:
				pause(ctx, v.later, nil)
			case <-timer.C:
			}
			timer.Stop()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	})
	return group.Wait()
}

// poke begins with those who have come, ends with those who have gone, and has the others looked after.
func (v *visits) poke(ctx context.Context, group *errgroup.Group, with map[eventgraph.PeerID]*visiting) {
	here := map[eventgraph.PeerID]contact{}
	for _, c := range v.f.peers.contacts() {
		if v.f.sharesRoom(c.Server) {
			here[c.Peer] = c
		}
	}
	for peer, goes := range with {
		if c, is := here[peer]; !is || c.Since != goes.since {
			goes.end()
			delete(with, peer)
		}
	}
	for peer, c := range here {
		if goes := with[peer]; goes != nil {
			signal(goes.poked)
			continue
		}
		within, end := context.WithCancel(ctx)
		goes := &visiting{since: c.Since, poked: make(chan struct{}, 1), end: end}
		with[peer] = goes
		visit := v.begin(c)
		group.Go(func() error {
			defer end()
			for {
				if !pause(within, visit(within), goes.poked) {
					return nil
				}
			}
		})
	}
}
