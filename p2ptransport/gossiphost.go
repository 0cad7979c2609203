package p2ptransport

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// The libp2p host that pubsub gets: as much of one as it uses, over the Transport's streams. So it runs over memnet too, and so it never
// sees a peer that takes no part: pubsub itself asks no filter about messages that come in, are forwarded or announced. The interfaces
// that the types embed are nil: what is not written here is never called.

type gossipHost struct {
	host.Host
	m *mesh
}

func (h *gossipHost) ID() peer.ID                      { return h.m.id }
func (h *gossipHost) Peerstore() peerstore.Peerstore   { return nil }
func (h *gossipHost) Network() network.Network         { return gossipNetwork{m: h.m} }
func (h *gossipHost) EventBus() event.Bus              { return gossipBus{m: h.m} }
func (h *gossipHost) ConnManager() connmgr.ConnManager { return connmgr.NullConnMgr{} }

func (h *gossipHost) SetStreamHandler(_ protocol.ID, f network.StreamHandler) {
	h.m.state.Lock()
	defer h.m.state.Unlock()
	h.m.serving = func(s *gossipStream) { f(s) }
}

// Connect is for peers that others name; none are taken.
func (h *gossipHost) Connect(context.Context, peer.AddrInfo) error {
	return errors.New("gossip dials nobody")
}

func (h *gossipHost) NewStream(ctx context.Context, id peer.ID, _ ...protocol.ID) (network.Stream, error) {
	p := PeerID(id.String())
	if !h.m.allowed(p) {
		return nil, ErrUnreachable
	}
	if err := h.m.rest(ctx, p); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	c, err := h.m.open(ctx, p)
	if err != nil {
		return nil, err
	}
	s, err := h.m.newStream(p, c)
	if err != nil {
		reset(c)
		return nil, err
	}
	return s, nil
}

type gossipNetwork struct {
	network.Network
	m *mesh
}

func (n gossipNetwork) Connectedness(id peer.ID) network.Connectedness {
	if n.m.allowed(PeerID(id.String())) {
		return network.Connected
	}
	return network.NotConnected
}

// Peers is empty: the event bus tells of all.
func (n gossipNetwork) Peers() []peer.ID { return nil }

// ConnsToPeer is for scores by address, and for a share of neighbours dialled by ourselves: neither is used.
func (n gossipNetwork) ConnsToPeer(peer.ID) []network.Conn { return nil }

type gossipBus struct {
	event.Bus
	m *mesh
}

// Subscribe gives the peers to open streams to to whom asks for changed protocols; address books get nothing.
func (b gossipBus) Subscribe(types any, _ ...event.SubscriptionOpt) (event.Subscription, error) {
	wanted, _ := types.([]any)
	if slices.ContainsFunc(wanted, func(t any) bool { _, ok := t.(*event.EvtPeerProtocolsUpdated); return ok }) {
		return gossipEvents{b.m.fresh}, nil
	}
	return gossipEvents{}, nil
}

// identified is the event that makes pubsub open a stream.
func identified(id peer.ID) any {
	return event.EvtPeerIdentificationCompleted{Peer: id, Protocols: []protocol.ID{ProtocolGossip}}
}

type gossipEvents struct{ out <-chan any }

func (e gossipEvents) Out() <-chan any { return e.out }
func (e gossipEvents) Close() error    { return nil }
func (e gossipEvents) Name() string    { return "gossip" }

// gossipStream is a stream of ProtocolGossip as pubsub sees it.
type gossipStream struct {
	network.Stream
	m      *mesh
	peer   PeerID
	id     peer.ID
	conn   net.Conn
	opened time.Time
	budget *neighbour // the peer, if it has opened the stream
}

// newStream notes a stream, so that it ends with the mesh, or when the peer takes part no more: also if that came about since it was asked.
func (m *mesh) newStream(p PeerID, c net.Conn) (*gossipStream, error) {
	id, err := peer.Decode(string(p))
	if err != nil {
		return nil, err
	}
	s := &gossipStream{m: m, peer: p, id: id, conn: c, opened: time.Now()}
	m.state.Lock()
	if m.ctx.Err() != nil {
		m.state.Unlock()
		return nil, ErrClosed
	}
	m.streams[s] = struct{}{}
	m.state.Unlock()
	if !m.allowed(p) {
		s.forget()
		return nil, ErrUnreachable
	}
	return s, nil
}

func (s *gossipStream) forget() {
	s.m.state.Lock()
	defer s.m.state.Unlock()
	delete(s.m.streams, s)
}

// Read reads no more than the peer's budget has. On our own streams nothing comes but their end.
func (s *gossipStream) Read(b []byte) (int, error) {
	if s.budget == nil {
		n, err := s.conn.Read(b)
		if err != nil {
			s.m.lost(s)
		}
		return n, err
	}
	if len(b) > gossipBytesBurst {
		b = b[:gossipBytesBurst]
	}
	n, err := s.conn.Read(b)
	if n > 0 {
		if waited := s.budget.bytes.WaitN(s.m.ctx, max(n, gossipReadCost)); waited != nil && err == nil {
			err = waited
		}
	}
	return n, err
}

func (s *gossipStream) Write(b []byte) (int, error)        { return s.conn.Write(b) }
func (s *gossipStream) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }
func (s *gossipStream) Protocol() protocol.ID              { return ProtocolGossip }
func (s *gossipStream) Conn() network.Conn                 { return gossipConn{id: s.id} }

func (s *gossipStream) Close() error {
	s.forget()
	return s.conn.Close()
}

func (s *gossipStream) Reset() error {
	s.forget()
	reset(s.conn)
	return nil
}

type gossipConn struct {
	network.Conn
	id peer.ID
}

func (c gossipConn) RemotePeer() peer.ID { return c.id }
