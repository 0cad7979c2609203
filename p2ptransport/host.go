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
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	relayv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// dialTimeout is for one address, also on this network: libp2p's default for that is shorter, but a modem may be in between. Who
	// dials says how long to wait for the peer; see patientAttempt.
	dialTimeout = patientAttempt
	// muxTimeout is for yamux to write, and to be answered when it asks for a sign of life. Its 10 s are less than what may wait before it
	// on a modem; dead connections are found by probe.go.
	muxTimeout = 30 * time.Second
	// streamWindow bounds what a peer may send on one stream before it is read; libp2p's 16 MiB suits servers.
	streamWindow = 2 << 20
	// trimGrace is how long a new connection is safe from trimming when there are too many.
	trimGrace = time.Minute
	// addressForgotten is when an address that no longer opens connections has its rate limit forgotten.
	addressForgotten = time.Minute
)

var (
	defaultListen = []string{
		"/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0",
		"/ip6/::/udp/0/quic-v1", "/ip6/::/tcp/0",
	}
	// privateListen is the default in a private mesh: QUIC has its own encryption and no place for a key below it.
	privateListen = []string{"/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"}
)

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
	id      PeerID
	meshKey *MeshKey // nil outside of private meshes
	log     *slog.Logger
	host    host.Host
	swarm   *swarm.Swarm
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	work    group

	gate   *gate
	roster Roster
	friend func(PeerID) bool // Config.Friend
	keeper *keeper
	book   *book // nil without Config.AddressBook
	relays *relays
	reach  *reach
	client *Client
	server *Server        // nil without a Handler
	relay  *relayv2.Relay // nil without Config.Relay

	strangers strangers

	records Records
	gossip  *Gossip

	mu        sync.Mutex
	closed    bool
	puncher   *holepunch.Service // nil before a relay is at hand
	listeners []net.Listener     // of Handle and the server
	probing   map[peer.ID]bool
	// firstAnswer is how long the first answer on each connection took; see patience.
	firstAnswer map[network.Conn]time.Duration
	thinning    map[peer.ID]bool
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
	h := &Host{log: c.Log, meshKey: c.MeshKey, friend: c.Friend, probing: make(map[peer.ID]bool), thinning: make(map[peer.ID]bool),
		firstAnswer: make(map[network.Conn]time.Duration)}
	h.strangers.friend = c.Friend
	h.relays = newRelays(h, c.Friend)
	h.relays.used = h.startPunching
	h.reach = newReach(h, c.Friend)
	h.keeper = newKeeper(h)
	h.gate = &gate{lanOnly: c.LANOnly, mayRelay: h.relays.mayRelay, refuse: c.Refuse, leaveOut: h.keeper.leaveOut}
	lh, err := newLibp2p(c, h.gate, &h.strangers, h.published)
	if err != nil {
		return nil, fmt.Errorf("start libp2p: %w", errors.Join(err, h.gate.Close()))
	}
	sw, ok := lh.Network().(*swarm.Swarm)
	if !ok {
		_, _ = lh.Close(), h.gate.Close()
		return nil, fmt.Errorf("start libp2p: network is a %T", lh.Network())
	}
	h.id, h.host, h.swarm = PeerID(lh.ID().String()), lh, sw
	h.ctx, h.cancel = context.WithCancel(context.Background()) // of a host, which Close ends
	h.client = NewClient(h.ctx, func(ctx context.Context, p PeerID) (net.Conn, error) {
		return h.OpenStream(ctx, p, ProtocolFederation)
	})
	h.client.relayed = h.onlyRelayed
	h.gossip = NewGossip(h.ctx, h.id, c.Gossip, &h.roster, h.openGossip, c.Log)
	if c.AddressBook != nil {
		h.book = newBook(h, c.AddressBook)
		h.book.load()
	}
	if err := h.relays.subscribe(); err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("start libp2p: %w", err)
	}
	sw.Notify(&network.NotifyBundle{ConnectedF: h.connected, DisconnectedF: h.disconnected})
	if c.Handler != nil {
		if err := h.serve(c); err != nil {
			_ = h.Close()
			return nil, err
		}
	}
	h.Handle(ProtocolGossip, h.gossip.Serve)
	if c.Relay {
		if h.relay, err = startRelay(lh, c); err != nil {
			_ = h.Close()
			return nil, fmt.Errorf("start relay: %w", err)
		}
	}
	if c.MeshKey == nil && !c.LANOnly {
		if err := h.reach.start(c); err != nil {
			_ = h.Close()
			return nil, fmt.Errorf("start AutoNAT: %w", err)
		}
		h.work.start(h.reach.run)
	}
	for _, p := range statics {
		if c.LANOnly && !slices.ContainsFunc(p.Addrs, localAddr) {
			c.Log.Warn("static peer has no address in a private range and is not dialled", "peer", p.ID, "addrs", p.Addrs)
		}
		h.keeper.keep(p)
	}
	h.work.start(h.keeper.run)
	h.work.start(h.followRecords)
	if h.book != nil {
		h.work.start(h.book.run)
	}
	h.work.start(h.relays.run)
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
			h.reach.forget()
			h.probeAll()
		})
	})
	return h, nil
}

// newLibp2p starts libp2p. published adds to the listen addresses what else to tell peers.
func newLibp2p(c Config, g *gate, s *strangers, published func([]ma.Multiaddr) []ma.Multiaddr) (host.Host, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	listen, err := listenAddrs(c)
	if err != nil {
		return nil, err
	}
	limits, err := newResourceManager(s)
	if err != nil {
		return nil, err
	}
	manager, err := connmgr.NewConnManager(maxConns/2, maxConns*3/4, connmgr.WithGracePeriod(trimGrace))
	if err != nil {
		return nil, errors.Join(err, limits.Close())
	}
	mux := *yamux.DefaultTransport
	mux.MaxStreamWindowSize = streamWindow
	mux.ConnectionWriteTimeout = muxTimeout
	names := network.MultiaddrDNSResolver(swarm.ResolverFromMaDNS{Resolver: madns.DefaultResolver})
	if c.LANOnly {
		names = localResolver{}
	}
	// What this leaves out on purpose: public relays, libp2p's own AutoNAT and observed addresses (a reachability that is
	// given, not probed), port mapping, the ping service and metrics. Nothing is sent that was not asked for. The services
	// of relay.go, punch.go and reach.go do something when there is a friend that relays.
	options := append(transports(c, g),
		libp2p.Identity(key),
		libp2p.ListenAddrStrings(listen...),
		libp2p.ConnectionGater(g),
		libp2p.AddrsFactory(published),
		libp2p.MultiaddrResolver(resolver{names}),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, &mux),
		libp2p.ResourceManager(limits),
		libp2p.ConnectionManager(manager),
		libp2p.SwarmOpts(swarm.WithDialTimeoutLocal(dialTimeout), swarm.WithDialRanker(rankDials)),
		libp2p.WithDialTimeout(dialTimeout),
		// A device that has been offline must not conclude that UDP or IPv6 does not work.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
		libp2p.EnableRelay(), // circuits can be dialled and accepted; nothing is asked of any relay by this
		libp2p.ForceReachabilityPrivate(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.DisableMetrics(),
		libp2p.Ping(false),
		libp2p.UserAgent(userAgent),
		libp2p.ProtocolVersion(userAgent),
	)
	return libp2p.New(options...)
}

// listenAddrs are the addresses to listen on; in a private mesh those of QUIC are refused.
func listenAddrs(c Config) ([]string, error) {
	switch {
	case len(c.Listen) > 0:
	case c.MeshKey != nil:
		return privateListen, nil
	default:
		return defaultListen, nil
	}
	if c.MeshKey != nil {
		for _, s := range c.Listen {
			if a, err := ma.NewMultiaddr(s); err == nil {
				if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
					return nil, fmt.Errorf("listen on %s: a private mesh uses TCP and WebSocket only", s)
				}
			}
		}
	}
	return c.Listen, nil
}

// transports are QUIC, TCP and WebSocket, as far as the mesh key and LANOnly let them.
func transports(c Config, g *gate) []libp2p.Option {
	prepare := func(u transport.Upgrader) transport.Upgrader {
		if c.MeshKey != nil {
			u = guardedUpgrader{u, c.MeshKey}
		}
		if c.LANOnly {
			u = localUpgrader{u}
		}
		return u
	}
	options := []libp2p.Option{
		// Without port reuse: a dial from the listening port fails while the dead connection to the same address lingers.
		libp2p.Transport(func(u transport.Upgrader, limits network.ResourceManager, shared *tcpreuse.ConnMgr) (*tcp.TcpTransport, error) {
			return tcp.NewTCPTransport(prepare(u), limits, shared, tcp.DisableReuseport(), tcp.WithConnectionTimeout(dialTimeout))
		}),
		libp2p.Transport(func(u transport.Upgrader, limits network.ResourceManager, shared *tcpreuse.ConnMgr) (*webSocket, error) {
			return newWebSocket(prepare(u), limits, shared, c.LANOnly)
		}),
	}
	if c.MeshKey != nil {
		return append(options, libp2p.PrivateNetwork(c.MeshKey[:]))
	}
	if c.LANOnly {
		options = append(options, libp2p.QUICReuse(g.newLocalQUIC))
	}
	return append(options, libp2p.Transport(newQUIC))
}

// relayDelay is how much later than the direct addresses those through a relay are dialled: a direct connection on any link
// that carries a conversation is quicker.
const relayDelay = time.Second

// rankDials orders as libp2p does, but for relays: libp2p dials them along with private addresses.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var direct, relayed []ma.Multiaddr
	for _, a := range addrs {
		if _, ok := relayOf(a); ok {
			relayed = append(relayed, a)
		} else {
			direct = append(direct, a)
		}
	}
	ranked := swarm.DefaultDialRanker(direct)
	delay := time.Duration(0)
	if len(direct) > 0 {
		delay = relayDelay
	}
	for _, a := range relayed {
		ranked = append(ranked, network.AddrDelay{Addr: a, Delay: delay})
	}
	return ranked
}

// published is what peers are told of this node's addresses.
func (h *Host) published(addrs []ma.Multiaddr) []ma.Multiaddr {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool {
		_, circuit := relayOf(a)
		return circuit || h.gate.lanOnly && !localAddr(a)
	})
	return append(append(addrs, h.reach.published()...), h.relays.published()...)
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
	resolved = h.published(resolved)
	slices.SortStableFunc(resolved, func(a, b ma.Multiaddr) int { return cmp.Compare(distance(a), distance(b)) })
	addrs := make([]string, 0, len(resolved))
	for _, a := range resolved {
		addrs = append(addrs, a.String()+"/p2p/"+string(h.id))
	}
	return addrs
}

func distance(a ma.Multiaddr) int {
	if _, relayed := relayOf(a); relayed {
		return 3
	}
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
	if p != h.id && !h.isConnected(id) {
		// Before the client looks whether it is through a relay.
		dial, cancel := context.WithTimeout(ctx, streamTimeout)
		err := h.keeper.connect(dial, id)
		cancel()
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, err
		}
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
			if proto == ProtocolFederation {
				return &stream{Conn: s}, nil // kept open between requests; Do looks after those
			}
			return &stream{Conn: s, waits: func() context.CancelFunc { return h.await(id) }}, nil
		case h.ctx.Err() != nil:
			return nil, ErrClosed
		case try == 0 && ctx.Err() == nil && !h.isConnected(id):
			continue // the connection closed under our hands
		}
		return nil, sentinel(err)
	}
}

// openGossip opens a stream for gossip, over a direct connection.
func (h *Host) openGossip(ctx context.Context, p PeerID) (net.Conn, error) {
	id, err := peer.Decode(string(p))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	s, err := gostream.Dial(network.WithNoDial(ctx, "gossip"), h.host, id, ProtocolGossip)
	if err != nil {
		return nil, sentinel(err)
	}
	return s, nil
}

// Subscribe takes part in a gossip topic; see Transport.
func (h *Host) Subscribe(topic string, deliver func(from PeerID, payload []byte) bool) (cancel func(), err error) {
	return h.gossip.Subscribe(topic, deliver)
}

// Publish sends a payload to a gossip topic; see Transport.
func (h *Host) Publish(ctx context.Context, topic string, payload []byte) error {
	return h.gossip.Publish(ctx, topic, payload)
}

// Subscribers are the connected peers that have announced a gossip topic; see Transport.
func (h *Host) Subscribers(topic string) []PeerID { return h.gossip.Subscribers(topic) }

// SubscribersChanged is closed when the subscribers of a topic change; see Transport.
func (h *Host) SubscribersChanged() <-chan struct{} { return h.gossip.SubscribersChanged() }

// GossipChanged has Config.Gossip asked again about a peer.
func (h *Host) GossipChanged(p PeerID) { h.gossip.Changed(p) }

// stream reports a protocol that the peer turns out not to speak, which libp2p finds at the first read, as ErrNotHere.
type stream struct {
	net.Conn
	waits func() (came context.CancelFunc) // called when something of the peer's is waited for
}

// Read waits for what was asked for, if this side has opened the stream: meanwhile the peer's connections are probed, as in Do.
func (s *stream) Read(b []byte) (int, error) {
	if s.waits != nil {
		defer s.waits()()
	}
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
			if !h.work.start(func() { f(h.ctx, PeerID(s.RemoteAddr().String()), &stream{Conn: s}) }) {
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

// onlyRelayed says whether all connections to a peer go through relays.
func (h *Host) onlyRelayed(p PeerID) bool {
	id, err := peer.Decode(string(p))
	return err == nil && h.swarm.Connectedness(id) == network.Limited
}

// connected and disconnected are called by the swarm, in order for each connection.
func (h *Host) connected(_ network.Network, c network.Conn) {
	p := c.RemotePeer()
	relay := c.Stat().Limited
	conns := h.roster.Add(PeerID(p.String()), c, c.RemoteMultiaddr().String(), relay)
	h.keeper.connected(p, c)
	for _, old := range h.strangers.came(c) {
		h.work.start(func() { _ = old.Close() })
	}
	if h.book != nil {
		h.book.changed()
	}
	if conns > 1 {
		// A peer that came anew may have lost the connection that we still believe in.
		h.probe(p, probeTimeout)
		h.thinLater(p)
	}
}

func (h *Host) disconnected(_ network.Network, c network.Conn) {
	p := c.RemotePeer()
	h.strangers.went(c)
	h.keeper.noteSlowness(p, h.slowest(p))
	h.mu.Lock()
	delete(h.firstAnswer, c)
	h.mu.Unlock()
	if h.roster.Remove(PeerID(p.String()), c) == 0 {
		h.keeper.disconnected(p)
	} else if h.swarm.Connectedness(p) == network.Limited {
		h.keeper.lostDirect(p)
	}
	if h.swarm.Connectedness(p) != network.Connected {
		h.relays.lost(p)
	}
}

// Close writes the address book, stops discovery and dialling, closes libp2p, which breaks all connections, and then waits
// for the handlers and whatever else was under way. Connections go first, so that peers see this node leave and not refuse.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	listeners, puncher := h.listeners, h.puncher
	h.mu.Unlock()

	if h.book != nil {
		h.book.last()
	}
	h.work.refuse()
	h.cancel()
	h.gossip.Close()
	if puncher != nil {
		_ = puncher.Close()
	}
	if h.relay != nil {
		_ = h.relay.Close()
	}
	if h.reach.nat != nil {
		h.reach.nat.Close()
	}
	err := errors.Join(h.host.Close(), h.gate.Close())
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
