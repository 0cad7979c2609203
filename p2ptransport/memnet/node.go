package memnet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// Node is a Transport on a Network. Its goroutines are those of handlers and of the HTTP ends; Close waits for them.
type Node struct {
	net    *Network
	id     p2ptransport.PeerID
	addr   string // "/memory/7"
	mdns   bool
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	roster p2ptransport.Roster
	client *p2ptransport.Client
	server *p2ptransport.Server // nil without a Handler
	accept listener             // of the server

	record  []byte // its own signed peer record
	records p2ptransport.Records
	gossip  *p2ptransport.Gossip
	refuse  func(p2ptransport.PeerID) bool // Config.Refuse; nil: none

	// Guarded by the network's mu.
	wants map[p2ptransport.PeerID]bool // static peers and those once connected

	mu       sync.Mutex // taken after the network's, never before
	closed   bool
	handlers map[string]func(context.Context, p2ptransport.PeerID, net.Conn)
	known    map[p2ptransport.PeerID][]string // addresses
	work     sync.WaitGroup
}

var _ p2ptransport.Transport = (*Node)(nil)

func newNode(n *Network, id p2ptransport.PeerID, c p2ptransport.Config) *Node {
	node := &Node{
		net: n, id: id, mdns: c.MDNS, refuse: c.Refuse,
		wants:    make(map[p2ptransport.PeerID]bool),
		handlers: make(map[string]func(context.Context, p2ptransport.PeerID, net.Conn)),
		known:    make(map[p2ptransport.PeerID][]string),
	}
	node.ctx, node.cancel = context.WithCancel(context.Background())
	node.client = p2ptransport.NewClient(node.ctx, func(ctx context.Context, p p2ptransport.PeerID) (net.Conn, error) {
		return node.OpenStream(ctx, p, p2ptransport.ProtocolFederation)
	})
	node.gossip = p2ptransport.NewGossip(node.ctx, id, c.Gossip, &node.roster, func(ctx context.Context, p p2ptransport.PeerID) (net.Conn, error) {
		return n.openConnected(ctx, node, p, p2ptransport.ProtocolGossip)
	}, c.Log)
	node.Handle(p2ptransport.ProtocolGossip, node.gossip.Serve)
	if c.Handler != nil {
		node.accept = listener{streams: make(chan net.Conn), closed: make(chan struct{}), addr: addr(id)}
		node.server = p2ptransport.NewServer(node.ctx, c)
	}
	return node
}

func (n *Node) start() {
	if n.server != nil {
		n.work.Go(func() { n.server.Serve(&n.accept) })
	}
}

// ID is the peer ID of the device key.
func (n *Node) ID() p2ptransport.PeerID { return n.id }

// Addrs is the node's one address on its network.
func (n *Node) Addrs() []string { return []string{n.addr + "/p2p/" + string(n.id)} }

// Do sends a request; see p2ptransport.Transport.
func (n *Node) Do(ctx context.Context, p p2ptransport.PeerID, req *http.Request) (*http.Response, error) {
	return n.client.Do(ctx, p, req)
}

// OpenStream opens a stream; see p2ptransport.Transport.
func (n *Node) OpenStream(ctx context.Context, p p2ptransport.PeerID, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(n.ctx, func() { cancel(p2ptransport.ErrClosed) })()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s, err := n.net.open(ctx, n, p, protocol)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Handle serves streams of a protocol; see p2ptransport.Transport.
func (n *Node) Handle(protocol string, h func(ctx context.Context, p p2ptransport.PeerID, stream net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[protocol] = h
}

// acceptor is what takes the far end of a new stream, or nil if the node does not speak the protocol.
func (n *Node) acceptor(protocol string) func(*stream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if protocol == p2ptransport.ProtocolFederation && n.server != nil {
		return func(s *stream) { n.begin(s, func() { n.accept.pass(s) }) }
	}
	h := n.handlers[protocol]
	if h == nil {
		return nil
	}
	return func(s *stream) {
		n.begin(s, func() { h(n.ctx, p2ptransport.PeerID(s.RemoteAddr().String()), s) })
	}
}

// begin runs f in a goroutine of the node, or breaks the stream if the node is closed.
func (n *Node) begin(s *stream, f func()) {
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.work.Go(f)
	}
	n.mu.Unlock()
	if closed {
		_ = s.Reset() // takes the network's mu, which comes before ours
	}
}

// Peers are the connected peers.
func (n *Node) Peers() []p2ptransport.Peer { return n.roster.Peers() }

// Watch reports connects and disconnects; see p2ptransport.Transport.
func (n *Node) Watch(ctx context.Context, f func(p2ptransport.PeerEvent)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	n.roster.Watch(ctx, f)
}

// meet notes a connection; it is called with the network's mu.
func (n *Node) meet(peer *Node) {
	n.wants[peer.id] = true
	_, _ = n.records.Add(peer.id, peer.record) // no news if it has not started anew
	n.roster.Add(peer.id, n.net.link(n.id, peer.id), peer.addr, false)
}

// sign makes the node's own peer record, which it shows to whom it meets, as libp2p's identify does.
func (n *Node) sign(key crypto.PrivKey, id peer.ID) error {
	at, err := ma.NewMultiaddr(n.addr)
	if err != nil {
		return err
	}
	envelope, err := record.Seal(peer.PeerRecordFromAddrInfo(peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{at}}), key)
	if err != nil {
		return err
	}
	n.record, err = envelope.Marshal()
	return err
}

// Record is the newest signed record of a peer; see p2ptransport.Transport.
func (n *Node) Record(p p2ptransport.PeerID) ([]byte, uint64) { return n.records.Get(p) }

// RecordsChanged is closed when a new record has come; see p2ptransport.Transport.
func (n *Node) RecordsChanged() <-chan struct{} { return n.records.Changed() }

// AddRecord takes in a record that somebody else handed on, and connects to the peer if it is there.
func (n *Node) AddRecord(p p2ptransport.PeerID, raw []byte) error {
	addrs, err := n.records.Add(p, raw)
	if err != nil {
		return err
	}
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	for _, a := range addrs {
		if peer := n.net.addrs[a.String()]; peer != nil && peer.id == p {
			n.net.connect(n, peer)
		}
	}
	return nil
}

// AddPeer connects to an address, "/memory/7/p2p/ID", and keeps it as a static peer.
func (n *Node) AddPeer(ctx context.Context, address string) error {
	if n.ctx.Err() != nil {
		return p2ptransport.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.addStatic(address); err != nil {
		return err
	}
	at, _, _ := strings.Cut(address, "/p2p/")
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if peer := n.net.addrs[at]; peer == nil || !n.net.connect(n, peer) {
		return fmt.Errorf("%w: %s", p2ptransport.ErrUnreachable, address)
	}
	return nil
}

// addStatic notes a static peer.
func (n *Node) addStatic(address string) error {
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		return fmt.Errorf("peer address %q: %w", address, err)
	}
	id := p2ptransport.PeerID(info.ID.String())
	if id == n.id {
		return fmt.Errorf("%s is this node", address)
	}
	if len(info.Addrs) == 0 {
		return fmt.Errorf("peer address %q has only a peer ID", address)
	}
	n.AddAddrs(id, []string{address})
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.wants[id] = true
	return nil
}

// AddAddrs notes addresses to try when the peer is needed.
func (n *Node) AddAddrs(p p2ptransport.PeerID, addrs []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		at, named, _ := strings.Cut(a, "/p2p/")
		if named == "" || named == string(p) {
			n.known[p] = append(n.known[p], at)
		}
	}
}

// knows says whether this node has the address of the peer, or met it before.
func (n *Node) knows(p p2ptransport.PeerID, address string) bool {
	if n.wants[p] {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.known[p] {
		if a == address {
			return true
		}
	}
	return false
}

// Subscribe takes part in a gossip topic; see p2ptransport.Transport.
func (n *Node) Subscribe(topic string, deliver func(from p2ptransport.PeerID, payload []byte) bool) (cancel func(), err error) {
	return n.gossip.Subscribe(topic, deliver)
}

// Publish sends a payload to a gossip topic; see p2ptransport.Transport.
func (n *Node) Publish(ctx context.Context, topic string, payload []byte) error {
	return n.gossip.Publish(ctx, topic, payload)
}

// Subscribers are the connected peers that have announced a gossip topic; see p2ptransport.Transport.
func (n *Node) Subscribers(topic string) []p2ptransport.PeerID { return n.gossip.Subscribers(topic) }

// SubscribersChanged is closed when the subscribers of a topic change; see p2ptransport.Transport.
func (n *Node) SubscribersChanged() <-chan struct{} { return n.gossip.SubscribersChanged() }

// GossipChanged has Config.Gossip asked again about a peer.
func (n *Node) GossipChanged(p p2ptransport.PeerID) { n.gossip.Changed(p) }

// RefusalChanged has Config.Refuse asked again about a peer; see p2ptransport.Transport.
func (n *Node) RefusalChanged(p p2ptransport.PeerID) {
	refused := n.refuses(p)
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if refused {
		n.net.disconnect(n.id, p)
	} else {
		n.net.dialSoon()
	}
}

// refuses says whether no connection of the peer is kept.
func (n *Node) refuses(p p2ptransport.PeerID) bool { return n.refuse != nil && n.refuse(p) }

// GossipCounts says how many copies of gossiped payloads have come, and how many of these were the first of theirs. What they take on the
// wire Observe sees, as streams of p2ptransport.ProtocolGossip.
func (n *Node) GossipCounts() (copies, first uint64) { return n.gossip.Counts() }

// Close leaves the network, which breaks all connections, and waits for the handlers.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.gossip.Close()
	n.net.leave(n)
	if n.server != nil {
		_ = n.accept.Close()
		n.server.Close()
	}
	n.client.Close()
	n.work.Wait()
	return nil
}

// listener hands streams to the HTTP server.
type listener struct {
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
	addr    addr
}

func (l *listener) pass(s *stream) {
	select {
	case l.streams <- s:
	case <-l.closed:
		_ = s.Reset()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case s := <-l.streams:
		return s, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
