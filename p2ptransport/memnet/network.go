package memnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// redialAfter is how long after a change nodes dial the peers that they want and have not.
const redialAfter = 20 * time.Millisecond

// Network connects nodes. Its methods may be called at any time from any goroutine.
type Network struct {
	mu     sync.Mutex
	nodes  map[p2ptransport.PeerID]*Node
	addrs  map[string]*Node // by listen address, "/memory/7"
	number int
	links  map[pair]*link // made when first spoken of
	loss   float64
	random *rand.Rand
	redial *time.Timer

	lines   map[p2ptransport.PeerID]*access // made when first spoken of
	away    map[p2ptransport.PeerID]bool    // detached
	observe func(from, to p2ptransport.PeerID, protocol string) (sent, got Observer)
	wire    wire
}

// pair of peers, the smaller first.
type pair struct{ a, b p2ptransport.PeerID }

func pairOf(a, b p2ptransport.PeerID) pair {
	if b < a {
		a, b = b, a
	}
	return pair{a, b}
}

// link is all there is between two peers.
type link struct {
	cut     bool
	stalled chan struct{} // closed when the stall ends; nil: not stalled
	up      bool          // connected
	streams map[*stream]struct{}
	ways    [2]hop // from the smaller peer to the greater, and back
}

// New makes a network without nodes, delay or loss.
func New() *Network {
	return &Network{
		nodes: make(map[p2ptransport.PeerID]*Node), addrs: make(map[string]*Node),
		links: make(map[pair]*link), random: rand.New(rand.NewPCG(1, 2)),
		lines: make(map[p2ptransport.PeerID]*access), away: make(map[p2ptransport.PeerID]bool),
		wire: wire{random: rand.New(rand.NewPCG(1, 2))},
	}
}

// Node starts a node. Listen is ignored.
func (n *Network) Node(c p2ptransport.Config) (*Node, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	key, err := crypto.UnmarshalEd25519PrivateKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	node := newNode(n, p2ptransport.PeerID(id.String()), c)
	for _, a := range c.StaticPeers {
		if err := node.addStatic(a); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[node.id] != nil {
		return nil, fmt.Errorf("a node with the key of %s is running", node.id)
	}
	n.number++
	node.addr = fmt.Sprintf("/memory/%d", n.number)
	if err := node.sign(key, id); err != nil {
		return nil, fmt.Errorf("sign peer record: %w", err)
	}
	n.nodes[node.id], n.addrs[node.addr] = node, node
	node.start()
	n.dial()
	return node, nil
}

// Cut takes the link between two peers away: connections break at once, and there are no new ones.
func (n *Network) Cut(a, b p2ptransport.PeerID) { n.setCut(true, a, b) }

// Heal brings the link back, and ends a stall. Nodes that want each other are connected shortly after.
func (n *Network) Heal(a, b p2ptransport.PeerID) { n.setCut(false, a, b) }

func (n *Network) setCut(cut bool, a, b p2ptransport.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(a, b)
	l.cut = cut
	if cut {
		n.disconnect(a, b)
	} else {
		n.thaw(l)
	}
	n.dialSoon()
}

// Partition cuts every link between peers of different groups and heals every link within one. Peers in no group are
// cut off from all.
func (n *Network) Partition(groups ...[]p2ptransport.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	group := make(map[p2ptransport.PeerID]int)
	for i, g := range groups {
		for _, id := range g {
			group[id] = i + 1
		}
	}
	ids := n.ids()
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			l := n.link(a, b)
			if l.cut = group[a] == 0 || group[a] != group[b]; l.cut {
				n.disconnect(a, b)
			} else {
				n.thaw(l)
			}
		}
	}
	n.dialSoon()
}

// HealAll heals every link.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.cut = false
		n.thaw(l)
	}
	n.dialSoon()
}

// Stall lets nothing pass between two peers until Heal, while both believe that they are connected: a dead link that
// nobody has noticed. Streams and dials wait.
func (n *Network) Stall(a, b p2ptransport.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(a, b)
	if l.stalled == nil {
		l.stalled = make(chan struct{})
	}
	for s := range l.streams {
		s.in.set(func() { s.in.frozen = true })
		s.out.set(func() { s.out.frozen = true })
	}
}

// thaw needs mu.
func (n *Network) thaw(l *link) {
	if l.stalled == nil {
		return
	}
	close(l.stalled)
	l.stalled = nil
	for s := range l.streams {
		s.in.set(func() { s.in.frozen = false })
		s.out.set(func() { s.out.frozen = false })
	}
}

// Drop breaks the connection between two peers once; they may connect again.
func (n *Network) Drop(a, b p2ptransport.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.disconnect(a, b)
	n.dialSoon()
}

// SetDelay sets how long bytes written from now on travel, one way.
func (n *Network) SetDelay(d time.Duration) {
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	n.wire.hop.Delay = d
}

// SetLoss makes each stream opened from now on break with this probability, after at most 64 KiB in one direction.
// The choices follow the seed, in the order in which streams are opened.
func (n *Network) SetLoss(probability float64, seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss, n.random = probability, rand.New(rand.NewPCG(seed, seed))
}

// ids of the nodes, in order; it needs mu, as do all functions below unless they say otherwise.
func (n *Network) ids() []p2ptransport.PeerID {
	ids := make([]p2ptransport.PeerID, 0, len(n.nodes))
	for id := range n.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (n *Network) link(a, b p2ptransport.PeerID) *link {
	p := pairOf(a, b)
	l := n.links[p]
	if l == nil {
		l = &link{streams: make(map[*stream]struct{})}
		n.links[p] = l
	}
	return l
}

// connect makes a connection, if both nodes run and the link lets them.
func (n *Network) connect(a, b *Node) bool {
	l := n.link(a.id, b.id)
	switch {
	case l.up:
		return true
	case a == b || n.nodes[a.id] != a || n.nodes[b.id] != b || l.cut || l.stalled != nil || n.away[a.id] || n.away[b.id]:
		return false
	case a.refuses(b.id) || b.refuses(a.id):
		return false
	}
	l.up = true
	a.meet(b)
	b.meet(a)
	return true
}

// disconnect breaks the connection between two peers, if there is one, with its streams.
func (n *Network) disconnect(a, b p2ptransport.PeerID) {
	l := n.link(a, b)
	if !l.up {
		return
	}
	l.up = false
	streams := l.streams
	l.streams = make(map[*stream]struct{})
	for s := range streams {
		s.in.fail(errReset)
		s.out.fail(errReset)
	}
	for _, p := range [][2]p2ptransport.PeerID{{a, b}, {b, a}} {
		if node := n.nodes[p[0]]; node != nil {
			node.roster.Remove(p[1], l)
		}
	}
}

// dial connects all nodes that want each other and can.
func (n *Network) dial() {
	ids := slices.DeleteFunc(n.ids(), func(id p2ptransport.PeerID) bool { return n.away[id] })
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			na, nb := n.nodes[a], n.nodes[b]
			if na.mdns && nb.mdns || na.wants[b] || nb.wants[a] {
				n.connect(na, nb)
			}
		}
	}
}

// dialSoon lets nodes notice a change as real ones do: a little later.
func (n *Network) dialSoon() {
	if n.redial != nil {
		n.redial.Reset(redialAfter)
		return
	}
	n.redial = time.AfterFunc(redialAfter, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.dial()
	})
}

// leave takes a node off the network.
func (n *Network) leave(node *Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.nodes {
		if id != node.id {
			n.disconnect(node.id, id)
		}
	}
	delete(n.nodes, node.id)
	delete(n.addrs, node.addr)
	if len(n.nodes) == 0 && n.redial != nil {
		n.redial.Stop()
	}
}

// errStalled is for open alone: look again when the stall has ended.
var errStalled = errors.New("memnet: link is stalled")

// open opens a stream from one node to a peer, dialling at known addresses if they are not connected. It takes mu.
func (n *Network) open(ctx context.Context, from *Node, to p2ptransport.PeerID, protocol string) (*stream, error) {
	for {
		near, far, accept, stalled, err := n.tryOpen(from, to, protocol)
		switch {
		case errors.Is(err, errStalled):
			select {
			case <-stalled:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		case err != nil:
			return nil, err
		}
		accept(far)
		return near, nil
	}
}

// openConnected opens a stream if the two are connected. It takes mu.
func (n *Network) openConnected(ctx context.Context, from *Node, to p2ptransport.PeerID, protocol string) (*stream, error) {
	n.mu.Lock()
	up := n.link(from.id, to).up
	n.mu.Unlock()
	if !up {
		return nil, fmt.Errorf("%w: %s", p2ptransport.ErrUnreachable, to)
	}
	return n.open(ctx, from, to, protocol)
}

func (n *Network) tryOpen(from *Node, to p2ptransport.PeerID, protocol string) (near, far *stream, accept func(*stream), stalled <-chan struct{}, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	peer := n.nodes[to]
	l := n.link(from.id, to)
	switch {
	case n.nodes[from.id] != from:
		return nil, nil, nil, nil, p2ptransport.ErrClosed
	case l.stalled != nil:
		return nil, nil, nil, l.stalled, errStalled
	case peer == nil, !l.up && !(from.knows(to, peer.addr) && n.connect(from, peer)):
		return nil, nil, nil, nil, fmt.Errorf("%w: %s", p2ptransport.ErrUnreachable, to)
	}
	accept = peer.acceptor(protocol)
	if accept == nil {
		return nil, nil, nil, nil, fmt.Errorf("%w: %s", p2ptransport.ErrNotHere, protocol)
	}
	breaksIn := -1
	if n.loss > 0 && n.random.Float64() < n.loss {
		breaksIn = n.random.IntN(pipeSize)
	}
	there, back := newHalf(breaksIn, n.path(from.id, to)), newHalf(breaksIn, n.path(to, from.id))
	if n.observe != nil {
		there.observe, back.observe = n.observe(from.id, to, protocol)
	}
	near = &stream{in: back, out: there, local: addr(from.id), remote: addr(to)}
	far = &stream{in: there, out: back, local: addr(to), remote: addr(from.id)}
	for _, s := range []*stream{near, far} {
		l.streams[s] = struct{}{}
		s.done = func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			delete(l.streams, s)
		}
	}
	return near, far, accept, nil, nil
}
