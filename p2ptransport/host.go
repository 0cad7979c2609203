package p2ptransport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// localDialTimeout is for one address on this network, remoteDialTimeout for one elsewhere.
	localDialTimeout  = 3 * time.Second
	remoteDialTimeout = 8 * time.Second
	// streamWindow bounds what a peer may send on one stream before it is read; libp2p's 16 MiB suits servers.
	streamWindow = 2 << 20
	// trimGrace is how long a new connection is safe from trimming when there are too many.
	trimGrace = time.Minute
	// addressForgotten is when an address that no longer opens connections has its rate limit forgotten.
	addressForgotten = time.Minute
)

var defaultListen = []string{
	"/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0",
	"/ip6/::/udp/0/quic-v1", "/ip6/::/tcp/0",
}

// Host is a Transport over libp2p. New starts it and Close stops it; its goroutines are those of work (probes, dials,
// streams of Handle), of the two HTTP ends, of mDNS and of libp2p.
//
//	            mDNS, AddAddrs, AddPeer, network changes
//	                            │
//	                  keeper: whom to dial, when
//	                            │
//	Do ── Client ── stream ── libp2p host ── stream ── Server ── Handler
//	                            │
//	                  Roster: who is connected ── Watch
type Host struct {
	id     PeerID
	log    *slog.Logger
	host   host.Host
	swarm  *swarm.Swarm
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   group

	roster Roster
	keeper *keeper
	client *Client
	server *Server // nil without a Handler

	mu        sync.Mutex
	closed    bool
	listeners []net.Listener // of Handle and the server
	probing   map[peer.ID]bool
	thinning  map[peer.ID]bool
}

var _ Transport = (*Host)(nil)

// New starts a host with the device key, and dials its static peers. It fails if none of the listen addresses can be had.
func New(c Config) (*Host, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	statics, err := parsePeers(c.StaticPeers)
	if err != nil {
		return nil, err
	}
	lh, err := newLibp2p(c)
	if err != nil {
		return nil, fmt.Errorf("start libp2p: %w", err)
	}
	sw, ok := lh.Network().(*swarm.Swarm)
	if !ok {
		_ = lh.Close()
		return nil, fmt.Errorf("start libp2p: network is a %T", lh.Network())
	}
	h := &Host{
		id: PeerID(lh.ID().String()), log: c.Log, host: lh, swarm: sw,
		probing: make(map[peer.ID]bool), thinning: make(map[peer.ID]bool),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background()) // of a host, which Close ends
	h.client = NewClient(h.ctx, func(ctx context.Context, p PeerID) (net.Conn, error) {
		return h.OpenStream(ctx, p, ProtocolFederation)
	})
	h.keeper = newKeeper(h)
	sw.Notify(&network.NotifyBundle{ConnectedF: h.connected, DisconnectedF: h.disconnected})
	if c.Handler != nil {
		if err := h.serve(c); err != nil {
			_ = h.Close()
			return nil, err
		}
	}
	for _, p := range statics {
		h.keeper.keep(p)
	}
	h.work.start(h.keeper.run)
	net := newNetworkWatch(h.log)
	var found *mdns
	if c.MDNS {
		found = newMDNS(h)
		h.work.start(found.run)
	}
	h.work.start(func() {
		net.run(h.ctx, func() {
			if found != nil {
				found.networkChanged()
			}
			h.keeper.networkChanged()
			h.probeAll()
		})
	})
	return h, nil
}

func newLibp2p(c Config) (host.Host, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	listen := c.Listen
	if len(listen) == 0 {
		listen = defaultListen
	}
	limits, err := newResourceManager()
	if err != nil {
		return nil, err
	}
	manager, err := connmgr.NewConnManager(maxConns/2, maxConns*3/4, connmgr.WithGracePeriod(trimGrace))
	if err != nil {
		return nil, errors.Join(err, limits.Close())
	}
	mux := *yamux.DefaultTransport
	mux.MaxStreamWindowSize = streamWindow
	// What this leaves out on purpose: relays, hole punching, AutoNAT and observed addresses (a reachability that is
	// given, not probed), port mapping, the ping service and metrics. Nothing is sent that was not asked for.
	return libp2p.New(
		libp2p.Identity(key),
		libp2p.ListenAddrStrings(listen...),
		libp2p.Transport(newQUIC),
		libp2p.MultiaddrResolver(resolver{swarm.ResolverFromMaDNS{Resolver: madns.DefaultResolver}}),
		// Without port reuse: a dial from the listening port fails while the dead connection to the same address lingers.
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, &mux),
		libp2p.ResourceManager(limits),
		libp2p.ConnectionManager(manager),
		libp2p.SwarmOpts(swarm.WithDialTimeoutLocal(localDialTimeout)),
		libp2p.WithDialTimeout(remoteDialTimeout),
		// A device that has been offline must not conclude that UDP or IPv6 does not work.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
		libp2p.DisableRelay(),
		libp2p.ForceReachabilityPrivate(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.DisableMetrics(),
		libp2p.Ping(false),
		libp2p.UserAgent(userAgent),
		libp2p.ProtocolVersion(userAgent),
	)
}

// serve starts the HTTP server.
func (h *Host) serve(c Config) error {
	// Without gostream.IgnoreEOF: it turns every end of a stream into a read of nothing, so that net/http would read a body that
	// was cut off again and again. serverConn waits where a half-closed stream is to be waited for.
	l, err := gostream.Listen(h.host, ProtocolFederation)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", ProtocolFederation, err)
	}
	h.listeners = append(h.listeners, l)
	h.server = NewServer(h.ctx, c)
	h.work.start(func() { h.server.Serve(l) })
	return nil
}

// ID is the peer ID of the device key.
func (h *Host) ID() PeerID { return h.id }

// Addrs are the addresses others can dial, those of this machine's networks before loopback.
func (h *Host) Addrs() []string {
	// Not the host's own list: libp2p keeps that for seconds, and this shall be right after a change of networks.
	resolved, err := manet.ResolveUnspecifiedAddresses(h.swarm.ListenAddresses(), nil)
	if err != nil {
		resolved = h.host.Addrs()
	}
	slices.SortStableFunc(resolved, func(a, b ma.Multiaddr) int { return cmp.Compare(distance(a), distance(b)) })
	addrs := make([]string, 0, len(resolved))
	for _, a := range resolved {
		addrs = append(addrs, a.String()+"/p2p/"+string(h.id))
	}
	return addrs
}

func distance(a ma.Multiaddr) int {
	switch {
	case manet.IsIPLoopback(a):
		return 2
	case manet.IsIP6LinkLocal(a):
		return 1
	}
	return 0
}

// Do sends a request; see Transport. While the answer is awaited the peer's connections are probed now and then, and
// one that is dead is closed, so that the request fails and the next one dials.
func (h *Host) Do(ctx context.Context, p PeerID, req *http.Request) (*http.Response, error) {
	id, err := peer.Decode(string(p))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	waiting, answered := context.WithCancel(ctx)
	defer answered()
	h.suspect(waiting, id)
	resp, err := h.client.Do(ctx, p, req)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnreachable) {
		h.probe(id, slowTimeout)
	}
	return resp, err
}

// OpenStream opens a stream; see Transport.
func (h *Host) OpenStream(ctx context.Context, p PeerID, proto string) (net.Conn, error) {
	s, err := h.openStream(ctx, p, proto)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s, err
}

func (h *Host) openStream(ctx context.Context, p PeerID, proto string) (net.Conn, error) {
	if h.ctx.Err() != nil {
		return nil, ErrClosed
	}
	id, err := peer.Decode(string(p))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	if p == h.id {
		return nil, fmt.Errorf("%w: it is this node", ErrUnreachable)
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	for try := 0; ; try++ {
		if err := h.keeper.connect(ctx, id); err != nil {
			return nil, err
		}
		s, err := gostream.Dial(network.WithNoDial(network.WithAllowLimitedConn(ctx, proto), "dialled"), h.host, id, protocol.ID(proto))
		switch {
		case err == nil:
			return &stream{s}, nil
		case h.ctx.Err() != nil:
			return nil, ErrClosed
		case try == 0 && ctx.Err() == nil && !h.isConnected(id):
			continue // the connection closed under our hands
		}
		return nil, sentinel(err)
	}
}

// stream reports a protocol that the peer turns out not to speak, which libp2p finds at the first read, as ErrNotHere.
type stream struct{ net.Conn }

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	return n, asNotHere(err)
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	return n, asNotHere(err)
}

// Reset breaks the stream in both directions.
func (s *stream) Reset() error {
	if r, ok := s.Conn.(interface{ Reset() error }); ok {
		return r.Reset()
	}
	return s.Conn.Close()
}

// CloseWrite ends what is written; the peer can go on writing.
func (s *stream) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.Conn.Close()
}

// Handle serves streams of a protocol; see Transport.
func (h *Host) Handle(proto string, f func(ctx context.Context, p PeerID, stream net.Conn)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	l, err := gostream.Listen(h.host, protocol.ID(proto))
	if err != nil {
		panic("p2ptransport: gostream.Listen, which only sets a handler, failed: " + err.Error())
	}
	h.listeners = append(h.listeners, l)
	h.work.start(func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return // the listener is closed
			}
			if !h.work.start(func() { f(h.ctx, PeerID(s.RemoteAddr().String()), &stream{s}) }) {
				_ = s.Close()
			}
		}
	})
}

// Peers are the connected peers.
func (h *Host) Peers() []Peer { return h.roster.Peers() }

// Watch reports connects and disconnects; see Transport.
func (h *Host) Watch(ctx context.Context, f func(PeerEvent)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	h.roster.Watch(ctx, f)
}

// AddPeer keeps an address, with /p2p/ID, as a static peer and dials it. An address that is well formed is kept even
// if the dial fails.
func (h *Host) AddPeer(ctx context.Context, addr string) error {
	if h.ctx.Err() != nil {
		return ErrClosed
	}
	peers, err := parsePeers([]string{addr})
	if err != nil {
		return err
	}
	if PeerID(peers[0].ID.String()) == h.id {
		return fmt.Errorf("%s is this node", addr)
	}
	h.keeper.keep(peers[0])
	if err := h.keeper.connect(ctx, peers[0].ID); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

// AddAddrs notes addresses to try when the peer is needed. They may end in /p2p/ID; what does not parse, or names
// another peer, is left out.
func (h *Host) AddAddrs(p PeerID, addrs []string) {
	id, err := peer.Decode(string(p))
	if err != nil {
		return
	}
	var parsed []ma.Multiaddr
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		transport, named := peer.SplitAddr(a)
		if transport != nil && (named == "" || named == id) {
			parsed = append(parsed, transport)
		}
	}
	h.keeper.learn(id, parsed)
}

// parsePeers reads multiaddrs that end in /p2p/ID.
func parsePeers(addrs []string) ([]peer.AddrInfo, error) {
	peers := make([]peer.AddrInfo, 0, len(addrs))
	for _, a := range addrs {
		p, err := peer.AddrInfoFromString(a)
		if err != nil {
			return nil, fmt.Errorf("peer address %q: %w", a, err)
		}
		if len(p.Addrs) == 0 {
			return nil, fmt.Errorf("peer address %q has only a peer ID", a)
		}
		peers = append(peers, *p)
	}
	return peers, nil
}

func (h *Host) isConnected(p peer.ID) bool {
	switch h.swarm.Connectedness(p) {
	case network.Connected, network.Limited:
		return true
	}
	return false
}

// connected and disconnected are called by the swarm, in order for each connection.
func (h *Host) connected(_ network.Network, c network.Conn) {
	p := c.RemotePeer()
	relay := c.Stat().Limited
	conns := h.roster.Add(PeerID(p.String()), c, c.RemoteMultiaddr().String(), relay)
	h.keeper.connected(p, c)
	if conns > 1 {
		// A peer that came anew may have lost the connection that we still believe in.
		h.probe(p, probeTimeout)
		h.thinLater(p)
	}
}

func (h *Host) disconnected(_ network.Network, c network.Conn) {
	p := c.RemotePeer()
	if h.roster.Remove(PeerID(p.String()), c) == 0 {
		h.keeper.disconnected(p)
	}
}

// Close stops discovery and dialling, closes libp2p, which breaks all connections, and then waits for the handlers and
// whatever else was under way. Connections go first, so that peers see this node leave and not refuse.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	listeners := h.listeners
	h.mu.Unlock()

	h.work.refuse()
	h.cancel()
	err := h.host.Close()
	for _, l := range listeners {
		_ = l.Close()
	}
	if h.server != nil {
		h.server.Close()
	}
	h.client.Close()
	h.work.wait()
	return err
}
