package p2ptransport

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ProtocolGossip carries gossip: the RPCs of gossipsub, each with its length before it.
const ProtocolGossip = "/plexus/gossip/1"

// Bounds of gossip.
const (
	// MaxGossipPayload of one message: a whole event of 64 KiB, sealed, in whatever encoding. Well under 1 MiB, since each node sends it to
	// six others.
	MaxGossipPayload = 128 << 10
	// MaxGossipTopic is the length of a topic: a hash in hexadecimal.
	MaxGossipTopic = 64
)

var (
	// ErrPayloadTooLarge: more than MaxGossipPayload.
	ErrPayloadTooLarge = errors.New("payload is too large for gossip")
	// ErrNotSubscribed: who publishes takes part in the topic.
	ErrNotSubscribed = errors.New("topic is not subscribed")
	// ErrNobody: no other node takes what is published now.
	ErrNobody = errors.New("nobody takes part in the topic")
)

// Gossip is a Transport's part in gossip: gossipsub over the streams that the Transport gives it; both implementations have one. A topic's
// payloads go from node to node over a mesh of about six neighbours for each; what a neighbour missed it asks for.
//
// pubsub runs while a topic is subscribed: with none there is no goroutine, no stream and no traffic. It sees only the peers that
// Config.Gossip names and that have a direct connection: those alone are told our topics, and of nobody else anything is read. Relays are
// left out: what is for a few goes over them better as requests.
type Gossip struct {
	id        peer.ID
	self      PeerID
	ctx       context.Context // of the Transport
	takesPart func(PeerID) bool
	roster    *Roster
	open      func(context.Context, PeerID) (net.Conn, error)
	log       *slog.Logger
	copies    atomic.Uint64
	first     atomic.Uint64

	changing sync.Mutex // one Subscribe or cancel at a time, which wait for pubsub; taken before mu

	mu      sync.Mutex
	mesh    *mesh // nil while no topic is subscribed
	topics  map[string]*topic
	changed chan struct{} // closed and replaced when a topic's subscribers change
}

// NewGossip makes a Transport's gossip. takesPart is Config.Gossip; open opens a stream of ProtocolGossip over a direct connection that
// exists. ctx ends with the Transport, whose streams must have been broken when it waits for Serve.
func NewGossip(ctx context.Context, id PeerID, takesPart func(PeerID) bool, roster *Roster,
	open func(context.Context, PeerID) (net.Conn, error), log *slog.Logger) *Gossip {
	if takesPart == nil {
		takesPart = func(PeerID) bool { return false }
	}
	decoded, err := peer.Decode(string(id))
	if err != nil {
		panic("p2ptransport: a transport's own peer ID does not parse: " + err.Error())
	}
	return &Gossip{
		id: decoded, self: id, ctx: ctx, takesPart: takesPart, roster: roster, open: open, log: log,
		topics: make(map[string]*topic), changed: make(chan struct{}),
	}
}

// Subscribe takes part in a topic; see Transport.
func (g *Gossip) Subscribe(name string, deliver func(from PeerID, payload []byte) bool) (cancel func(), err error) {
	if name == "" || len(name) > MaxGossipTopic {
		return nil, fmt.Errorf("gossip topic has %d bytes, at most %d are possible", len(name), MaxGossipTopic)
	}
	g.changing.Lock()
	defer g.changing.Unlock()
	if g.ctx.Err() != nil {
		return nil, ErrClosed
	}
	g.mu.Lock()
	m, subscribed := g.mesh, g.topics[name] != nil
	g.mu.Unlock()
	if subscribed {
		return nil, fmt.Errorf("gossip topic %s is subscribed already", name)
	}
	if m == nil {
		if m, err = g.startMesh(); err != nil {
			return nil, err
		}
		defer g.stopIdle()
	}
	t, err := m.join(name, deliver)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.topics[name] = t
	g.mu.Unlock()
	return sync.OnceFunc(func() { g.leave(t) }), nil
}

// leave ends a subscription, and with the last of them pubsub.
func (g *Gossip) leave(t *topic) {
	t.ended.Store(true)
	g.changing.Lock()
	defer g.changing.Unlock()
	g.mu.Lock()
	delete(g.topics, t.name)
	g.mu.Unlock()
	t.leave()
	g.stopIdle()
	g.tell()
}

// stopIdle stops pubsub if no topic is subscribed; changing is held.
func (g *Gossip) stopIdle() {
	g.mu.Lock()
	m := g.mesh
	if m == nil || len(g.topics) > 0 {
		g.mu.Unlock()
		return
	}
	g.mesh = nil
	g.mu.Unlock()
	m.stop()
}

// Publish sends a payload to a topic; see Transport.
func (g *Gossip) Publish(ctx context.Context, name string, payload []byte) error {
	if len(payload) > MaxGossipPayload {
		return fmt.Errorf("%w: %d bytes", ErrPayloadTooLarge, len(payload))
	}
	g.mu.Lock()
	t := g.topics[name]
	g.mu.Unlock()
	switch {
	case g.ctx.Err() != nil:
		return ErrClosed
	case t == nil:
		return ErrNotSubscribed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !t.hasNeighbours():
		return ErrNobody
	}
	// pubsub keeps the bytes for as long as others may ask for them.
	if err := t.pubsub.Publish(ctx, slices.Clone(payload)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// Subscribers are the peers that have announced a topic; see Transport.
func (g *Gossip) Subscribers(name string) []PeerID {
	g.mu.Lock()
	t := g.topics[name]
	g.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.subscribers()
}

// SubscribersChanged is closed when the subscribers of a topic change; see Transport.
func (g *Gossip) SubscribersChanged() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// tell closes what SubscribersChanged has given.
func (g *Gossip) tell() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.changed)
	g.changed = make(chan struct{})
}

// Changed asks again whether the peer takes part; see Transport.GossipChanged.
func (g *Gossip) Changed(p PeerID) {
	if m := g.running(); m != nil {
		m.reconsider(p)
	}
}

// Serve takes a stream that a peer has opened, until it ends.
func (g *Gossip) Serve(_ context.Context, p PeerID, stream net.Conn) {
	m := g.running()
	if m == nil || !m.allowed(p) {
		reset(stream)
		return
	}
	m.serve(p, stream)
}

func (g *Gossip) running() *mesh {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mesh
}

// Counts says how many copies of messages have come, and how many of them were the first of their message: for measuring.
func (g *Gossip) Counts() (copies, first uint64) { return g.copies.Load(), g.first.Load() }

// GossipCounts says how many copies of gossiped payloads have come, and how many of these were the first of theirs.
func (h *Host) GossipCounts() (copies, first uint64) { return h.gossip.Counts() }

// Close stops pubsub; the streams are the Transport's to break.
func (g *Gossip) Close() {
	g.mu.Lock()
	m := g.mesh
	g.mesh = nil
	g.mu.Unlock()
	if m != nil {
		m.stop()
	}
}

// messageID is 16 bytes of the hash of topic and payload: a message that comes twice is one, whoever sent it. IDs are sent around, so not
// the whole hash; who makes two messages with one ID keeps nobody's but his own from spreading.
func messageID(topic string, payload []byte) string {
	h := sha256.New()
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(topic)))
	h.Write(length[:])
	h.Write([]byte(topic))
	h.Write(payload)
	return string(h.Sum(nil)[:16])
}

func reset(stream net.Conn) {
	if r, ok := stream.(interface{ Reset() error }); ok {
		_ = r.Reset()
		return
	}
	_ = stream.Close()
}
