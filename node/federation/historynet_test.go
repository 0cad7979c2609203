package federation

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// The network of a history (history_test.go): stations are nodes without goroutines of their own, whose steps the script calls. A request
// is served before Do returns, unless a fault of the step under way says otherwise.

// station is one node of a history. What store holds survives a restart, the rest does not.
type station struct {
	w     *world
	index int

	name     eventgraph.ServerName
	peer     eventgraph.PeerID
	key      eventgraph.SigningKey
	document *eventgraph.KeyDocument
	store    *store.Store

	// New at each start.
	rooms   *rooms.Rooms
	eph     *ephemeral.State
	fed     *Federation
	streams map[string]func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)
	senders *couriers
	looked  following
	down    bool
}

// faultKind is what goes wrong with requests, or with a meeting's stream.
type faultKind string

const (
	faultLose   faultKind = "lose"   // the request does not arrive
	faultAnswer faultKind = "answer" // it is served, and the answer does not arrive
	faultTwice  faultKind = "twice"  // it arrives twice
	faultHold   faultKind = "hold"   // it arrives later, when its sender has given it up
	faultLate   faultKind = "late"   // it arrives, and a copy later
	faultBreak  faultKind = "break"  // the stream breaks at a message; the number says which
)

// fault befalls the requests of one endpoint during a step: all of them, for some are sent side by side and their order is not ours. With a number
// n above 1, those that a hash of their target puts among every n-th.
type fault struct {
	kind     faultKind
	endpoint string
	n        int
}

// kept is a request that arrives later.
type kept struct {
	from eventgraph.PeerID
	to   int
	raw  []byte
}

var errLost = errors.New("lost on the way")

// port is a station's Transport.
type port struct{ *station }

func (s *station) linked(other *station) bool {
	return s != other && !s.down && !other.down && !s.w.cut[s.index][other.index]
}

func (w *world) reach(from *station, peer eventgraph.PeerID) (*station, error) {
	for _, to := range w.stations {
		if to.peer == peer && from.linked(to) {
			return to, nil
		}
	}
	return nil, errors.New("peer cannot be reached")
}

// endpoint is the name of what a request asks for: "send", "make_join", …
func endpoint(target string) string {
	path, _, _ := strings.Cut(target, "?")
	parts := strings.Split(path, "/")
	if len(parts) < 5 {
		return path
	}
	return parts[4]
}

// befalls says whether a fault of the kind befalls the request.
func (w *world) befalls(kind faultKind, target string) bool {
	for _, f := range w.faults {
		if f.kind != kind || f.endpoint != endpoint(target) {
			continue
		}
		h := fnv.New32a()
		io.WriteString(h, target)
		if f.n <= 1 || int(h.Sum32()>>8)%f.n == 0 {
			return true
		}
	}
	return false
}

// Do may be called side by side.
func (p port) Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error) {
	w := p.w
	to, err := w.reach(p.station, peer)
	if err != nil {
		return nil, err
	}
	var raw bytes.Buffer
	if err := req.Write(&raw); err != nil {
		return nil, err
	}
	target := req.URL.RequestURI()
	k := kept{p.peer, to.index, raw.Bytes()}
	hold := w.befalls(faultHold, target)
	if hold || w.befalls(faultLate, target) {
		w.keep(k)
	}
	if hold || w.befalls(faultLose, target) {
		return nil, errLost
	}
	res, err := w.serve(ctx, k)
	if err == nil && w.befalls(faultTwice, target) {
		res, err = w.serve(ctx, k)
	}
	if err == nil && w.befalls(faultAnswer, target) {
		return nil, errLost
	}
	return res, err
}

func (w *world) keep(k kept) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, k)
}

// serve lets a request arrive.
func (w *world) serve(ctx context.Context, k kept) (*http.Response, error) {
	in, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(k.raw)))
	if err != nil {
		return nil, err
	}
	to := w.stations[k.to]
	if to.down {
		return nil, errLost
	}
	answer := httptest.NewRecorder()
	to.fed.Handler().ServeHTTP(answer, in.WithContext(context.WithValue(ctx, peerKey{}, k.from)))
	res := answer.Result()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests++
	w.served[endpoint(in.RequestURI)]++
	if res.StatusCode >= 500 {
		w.alarm("internal error", "%s %s of %s: status %d: %s", in.Method, in.RequestURI, k.from, res.StatusCode, answer.Body)
	}
	return res, nil
}

func (p port) OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error) {
	to, err := p.w.reach(p.station, peer)
	if err != nil {
		return nil, err
	}
	serve := to.streams[protocol]
	if serve == nil {
		return nil, errors.New("peer does not speak that protocol")
	}
	ours, theirs := net.Pipe()
	p.w.open.Go(func() { serve(context.WithoutCancel(ctx), p.peer, theirs) })
	s := &brittle{Conn: ours}
	for _, f := range p.w.faults {
		if f.kind == faultBreak {
			s.at = f.n
		}
	}
	return s, nil
}

func (p port) Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)) {
	p.streams[protocol] = h
}

func (p port) Watch(ctx context.Context, _ func(peer eventgraph.PeerID, connected bool)) {
	<-ctx.Done()
}

// brittle is a stream that breaks before the message of that number: the asker's are odd, the giver's even.
type brittle struct {
	net.Conn
	at, passed int
	reading    bool
}

func (b *brittle) Write(p []byte) (int, error) {
	b.passed, b.reading = b.passed+1, false
	if b.at > 0 && b.passed >= b.at {
		b.Close()
		return 0, errLost
	}
	return b.Conn.Write(p)
}

func (b *brittle) Read(p []byte) (int, error) {
	if !b.reading {
		b.passed, b.reading = b.passed+1, true
	}
	if b.at > 0 && b.passed >= b.at {
		b.Close()
		return 0, errLost
	}
	return b.Conn.Read(p)
}

// Keys and documents are the same in all histories.
var (
	historyEpoch = time.UnixMilli(1_750_000_000_000)
	historyHosts = sync.OnceValue(func() (all []station) {
		for _, name := range strings.Split("h0 h1 h2 h3 h4 h5 h6 h7", " ") {
			server, peer, identity, device := newKeys(name)
			all = append(all, station{
				name: server, peer: peer, key: device,
				document: newDocument(&testing.T{}, server, peer, identity, device, historyEpoch),
			})
		}
		return all
	})
)

// newStation makes a node with an empty store, started and connected to nobody.
func (w *world) newStation(index int) (*station, error) {
	s := historyHosts()[index]
	s.w, s.index = w, index
	var err error
	if s.store, err = store.Open("", store.Options{InMemory: true}); err != nil {
		return nil, err
	}
	return &s, s.start()
}

// worldClock is the time of a history: an hour after historyEpoch, and what it was advanced by. What lapses of typing and presence reads it from
// a goroutine of its own.
type worldClock struct{ passed atomic.Int64 }

func (c *worldClock) advance(d time.Duration) { c.passed.Add(int64(d)) }

func (c *worldClock) now() time.Time {
	return historyEpoch.Add(time.Hour + time.Duration(c.passed.Load()))
}

// now is the station's clock: no two are quite equal.
func (s *station) now() time.Time {
	return s.w.clock.now().Add(time.Duration(s.index*7%5-2) * 3 * time.Second)
}

// start makes what a restart makes anew.
func (s *station) start() error {
	log := slog.New(slog.DiscardHandler)
	if s.w.log != nil {
		log = s.w.log.With("at", s.index)
	}
	s.streams = map[string]func(context.Context, eventgraph.PeerID, io.ReadWriteCloser){}
	s.rooms = rooms.New(rooms.Config{Store: s.store, Key: s.key, Now: s.now, Log: log})
	s.eph = ephemeral.New(s.now)
	s.fed = New(Config{
		Store: s.store, Rooms: s.rooms, Ephemeral: s.eph, Transport: port{s}, Key: s.key, PeerOf: peerOf,
		Local: &people{server: s.name}, Now: s.now, Log: log,
		KeyDocument: func() *eventgraph.KeyDocument { return s.document },
	})
	// Budgets are counted in real time, of which a history takes little.
	unlimited := allowance{rate.Inf, 1}
	s.fed.budgets.ofFriend, s.fed.budgets.ofTalker, s.fed.budgets.strangers = unlimited, unlimited, unlimited.limiter()
	s.senders = &couriers{all: map[eventgraph.ServerName]*courier{}, run: func(*courier) {}}
	var err error
	if s.looked, err = s.fed.beginFollowing(); err != nil {
		return err
	}
	s.fed.handleMeetings()
	s.down = false
	return errors.Join(s.fed.loadPeers(), s.fed.wakeWaiting())
}

// stop ends the node; its store stays.
func (s *station) stop() {
	s.w.open.Wait()
	s.rooms.Close()
	s.eph.Close()
	s.down = true
}

// relink tells each pair of stations that it is connected, or no longer.
func (w *world) relink(ctx context.Context) {
	for _, a := range w.stations {
		for _, b := range w.stations {
			if a.down || a == b {
				continue
			}
			_, known := a.fed.peers.links[b.peer]
			switch linked := a.linked(b); {
			case known && !linked:
				a.fed.peers.disconnected(b.peer)
			case linked && !known:
				if a.fed.peers.connected(b.peer) {
					a.fed.ask(ctx, b.peer)
				}
				a.fed.inbox.met(b.name, func(room eventgraph.RoomID) bool { return a.rooms.InRoom(room, b.name) })
			}
		}
	}
}

// drop ends the station's connections, as its restart does.
func (s *station) drop() {
	for _, other := range s.w.stations {
		if other != s && !other.down {
			other.fed.peers.disconnected(s.peer)
		}
	}
}

// follow looks at what is new in the station's store, as the sender does.
func (s *station) follow(ctx context.Context) error {
	return s.fed.followTo(ctx, &s.looked, s.store.Position(), s.senders)
}

// send is one turn of the courier for the other station.
func (s *station) send(ctx context.Context, to *station) error {
	if s.down {
		return errLost
	}
	if err := s.follow(ctx); err != nil {
		s.w.alarm("internal error", "the sender of %d cannot follow: %v", s.index, err)
		return err
	}
	if d, err := s.fed.destination(to.name); err != nil || d == nil || !s.fed.peers.isConnected(to.name) {
		return err
	}
	return s.fed.sendAll(ctx, s.senders.of(to.name))
}

// work visits the rooms of the inbox that are due.
func (s *station) work(ctx context.Context) (visits int, err error) {
	for ; !s.down && visits < 20; visits++ {
		room, _, due := s.fed.inbox.due()
		if !due {
			break
		}
		empty, moved, _, failed := s.fed.visit(ctx, room)
		err = errors.Join(err, failed)
		s.fed.inbox.done(room, empty, moved, 0)
	}
	return visits, err
}

// meet asks the other station for what is new.
func (s *station) meet(ctx context.Context, with *station) error {
	if !s.linked(with) || !s.fed.sharesRoom(with.name) {
		return errLost
	}
	since, connected := s.fed.peers.since(with.peer)
	if !connected {
		return errLost
	}
	m := &meeting{pace: s.fed.peers.paceOf(with.peer), until: s.now().Add(meetSlice)}
	_, err := s.fed.meet(ctx, contact{with.name, with.peer, since}, m)
	s.w.open.Wait()
	return err
}
