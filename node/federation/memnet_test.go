package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// memEnd is a Transport over memnet.
type memEnd struct{ *memnet.Node }

func (e memEnd) Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error) {
	return e.Node.Do(ctx, p2ptransport.PeerID(peer), req)
}

func (e memEnd) OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error) {
	s, err := e.Node.OpenStream(ctx, p2ptransport.PeerID(peer), protocol)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (e memEnd) Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)) {
	e.Node.Handle(protocol, func(ctx context.Context, p p2ptransport.PeerID, s net.Conn) { h(ctx, eventgraph.PeerID(p), s) })
}

func (e memEnd) Watch(ctx context.Context, f func(peer eventgraph.PeerID, connected bool)) {
	e.Node.Watch(ctx, func(ev p2ptransport.PeerEvent) { f(eventgraph.PeerID(ev.Peer), ev.Connected) })
}

func (e memEnd) Record(peer eventgraph.PeerID) ([]byte, uint64) {
	return e.Node.Record(p2ptransport.PeerID(peer))
}

func (e memEnd) AddRecord(peer eventgraph.PeerID, record []byte) error {
	return e.Node.AddRecord(p2ptransport.PeerID(peer), record)
}

func (e memEnd) Subscribe(topic string, deliver func(from eventgraph.PeerID, payload []byte) bool) (cancel func(), err error) {
	return e.Node.Subscribe(topic, func(from p2ptransport.PeerID, payload []byte) bool { return deliver(eventgraph.PeerID(from), payload) })
}

func (e memEnd) Subscribers(topic string) (all []eventgraph.PeerID) {
	for _, p := range e.Node.Subscribers(topic) {
		all = append(all, eventgraph.PeerID(p))
	}
	return all
}

func (e memEnd) GossipChanged(peer eventgraph.PeerID) {
	e.Node.GossipChanged(p2ptransport.PeerID(peer))
}

// watchedGossip keeps what is published, and can lose all of it without a word.
type watchedGossip struct {
	Gossip
	lose atomic.Bool

	mu   sync.Mutex
	sent []publishedGossip
}

type publishedGossip struct {
	topic   string
	payload []byte
}

func (g *watchedGossip) Publish(ctx context.Context, topic string, payload []byte) error {
	g.mu.Lock()
	g.sent = append(g.sent, publishedGossip{topic, payload})
	g.mu.Unlock()
	if g.lose.Load() {
		return nil
	}
	return g.Gossip.Publish(ctx, topic, payload)
}

// published takes what was published since it was last called.
func (g *watchedGossip) published() []publishedGossip {
	g.mu.Lock()
	defer g.mu.Unlock()
	sent := g.sent
	g.sent = nil
	return sent
}

// memHost is a server on memnet. Its federation can be stopped and made anew over the same store.
type memHost struct {
	*host
	peer       eventgraph.PeerID
	streams    *brokenStreams // between the federation and the network
	gossip     *watchedGossip // likewise
	handler    atomic.Pointer[http.Handler]
	federation atomic.Pointer[Federation]
	intercept  atomic.Pointer[func(w http.ResponseWriter, r *http.Request, body []byte) (answered bool)]
}

// newMemHost makes a server that answers; start lets it do more.
func newMemHost(t *testing.T, n *memnet.Network, name string) *memHost {
	t.Helper()
	return newMemHostIn(t, n, name, "")
}

// newMemHostIn keeps its store in a directory, if that is not "".
func newMemHostIn(t *testing.T, n *memnet.Network, name, dir string) *memHost {
	t.Helper()
	server, peer, identity, device := newKeys(name)
	s, err := store.Open(dir, store.Options{InMemory: dir == ""})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testLog{t, name}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h := &memHost{peer: peer}
	at, err := n.Node(p2ptransport.Config{Key: device.Private, MDNS: true, Log: log, Handler: http.HandlerFunc(h.serve),
		Gossip: func(p p2ptransport.PeerID) bool {
			f := h.federation.Load()
			return f != nil && f.Gossips(eventgraph.PeerID(p))
		},
		Refuse: func(p p2ptransport.PeerID) bool {
			f := h.federation.Load()
			return f != nil && f.Refuses(eventgraph.PeerID(p))
		}})
	if err != nil {
		t.Fatal(err)
	}
	r := rooms.New(rooms.Config{Store: s, Key: device, Now: time.Now, Log: log})
	e := ephemeral.New(time.Now)
	document := newDocument(t, server, peer, identity, device, time.Now())
	local := &people{server: server}
	h.host = &host{t: t, local: local, stop: func() {}}
	h.streams = &brokenStreams{Transport: memEnd{at}}
	h.gossip = &watchedGossip{Gossip: memEnd{at}}
	h.renew(Config{
		Store: s, Rooms: r, Ephemeral: e, Media: media.New(media.Config{Store: s, Key: device, Limits: media.Limits{Upload: 1 << 20}, Now: time.Now}), Transport: h.streams, Records: memEnd{at}, Gossip: h.gossip, Key: device, Local: local, Now: time.Now, Log: log,
		KeyDocument:    func() *eventgraph.KeyDocument { return document },
		RefusalChanged: func(p eventgraph.PeerID) { at.RefusalChanged(p2ptransport.PeerID(p)) },
		PeerOf: func(ctx context.Context) (eventgraph.PeerID, bool) {
			p, ok := p2ptransport.PeerFrom(ctx)
			return eventgraph.PeerID(p), ok
		},
	})
	t.Cleanup(func() {
		h.stop()
		at.Close()
		r.Close()
		e.Close()
		s.Close()
	})
	return h
}

func (h *memHost) renew(c Config) {
	h.Federation = New(c)
	h.federation.Store(h.Federation)
	handler := bySpecification(h.t, h.Federation.Handler())
	h.handler.Store(&handler)
}

func (h *memHost) start() { h.run(h.Federation.Run) }

// restart stops the federation and makes it anew: what it knows is what the store keeps.
func (h *memHost) restart() {
	h.t.Helper()
	h.stop()
	h.renew(h.Config)
	h.start()
}

func (h *memHost) serve(w http.ResponseWriter, r *http.Request) {
	if f := h.intercept.Load(); f != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if (*f)(w, r, body) {
			return
		}
	}
	handler := h.handler.Load()
	if handler == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	(*handler).ServeHTTP(w, r)
}

// on lets f see each request before it is served; f may answer itself.
func (h *memHost) on(f func(w http.ResponseWriter, r *http.Request, body []byte) (answered bool)) {
	h.intercept.Store(&f)
}

// newMemHosts makes servers that run and know each other.
func newMemHosts(t *testing.T, n *memnet.Network, names ...string) []*memHost {
	t.Helper()
	var all []*memHost
	for _, name := range names {
		all = append(all, newMemHost(t, n, name))
	}
	for _, h := range all {
		h.start()
	}
	for _, h := range all {
		for _, other := range all {
			if other != h {
				h.meet(other.host)
			}
		}
	}
	return all
}

func cut(n *memnet.Network, a, b *memHost) {
	n.Cut(p2ptransport.PeerID(a.peer), p2ptransport.PeerID(b.peer))
}

func mend(n *memnet.Network, a, b *memHost) {
	n.Heal(p2ptransport.PeerID(a.peer), p2ptransport.PeerID(b.peer))
}

// gone waits until h knows that the other is away.
func (h *memHost) gone(other *memHost) {
	h.t.Helper()
	for {
		h.peers.mu.Lock()
		changed := h.peers.changed
		h.peers.mu.Unlock()
		if !h.peers.isConnected(other.server) {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			h.t.Fatal("still connected")
		}
	}
}

// holds says whether the host holds all of the events with a place.
func (h *memHost) holds(events ...eventgraph.EventID) bool {
	for _, id := range events {
		if placed, err := h.placed(id); err != nil || !placed {
			return false
		}
	}
	return true
}

// waitFor waits until the host holds the events with a place.
func (h *memHost) waitFor(what string, events ...eventgraph.EventID) {
	h.t.Helper()
	h.wait(what, func() bool { return h.holds(events...) })
}

// sameState fails the test if the hosts' current states of the room differ.
func sameState(t *testing.T, room eventgraph.RoomID, hosts ...*memHost) {
	t.Helper()
	var first eventgraph.Hash
	for i, h := range hosts {
		state, err := h.Rooms.CurrentState(room)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = state.Root()
		} else if state.Root() != first {
			t.Errorf("the states of %s and %s differ", hosts[0].server.Tail(), h.server.Tail())
		}
	}
}

// arrivals counts how often each event came by PUT /send.
type arrivals struct {
	mu    sync.Mutex
	count map[eventgraph.EventID]int
	order []eventgraph.EventID
}

// hear counts what comes to the host in transactions from now on.
func (h *memHost) hear(version eventgraph.RoomVersion) *arrivals {
	a := &arrivals{count: map[eventgraph.EventID]int{}}
	h.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if t, ok := transactionOf(r, body); ok {
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, e := range parseAll(version, t.PDUs) {
				a.count[e.ID()]++
				a.order = append(a.order, e.ID())
			}
		}
		return false
	})
	return a
}

// transactionOf parses the body of PUT /send.
func transactionOf(r *http.Request, body []byte) (t transaction, ok bool) {
	ok = strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/send/") && json.Unmarshal(body, &t) == nil
	return t, ok
}
