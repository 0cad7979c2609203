package memnet

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// Link says how bytes travel one way. The zero value takes no time and loses nothing.
type Link struct {
	Delay  time.Duration
	Jitter time.Duration // at most so much more, evenly spread; bytes of one stream keep their order
	Rate   int           // bytes per second, of all streams together; 0: no bound
	Loss   float64       // of packets, below 1; each is sent again a round trip later, and holds up its stream
}

const (
	// packetSize is how bytes are cut where a rate or loss is set: what QUIC sends in one packet.
	packetSize = 1200
	// resendMin is the least wait before a lost packet is sent again: the granularity of a sender's timers.
	resendMin = 10 * time.Millisecond
	// maxResends of one packet; with any loss that lets a conversation go on, more do not happen.
	maxResends = 10
)

// hop is one part of a path in one direction. It is guarded by the wire's mu.
type hop struct {
	Link
	free time.Time // when all that was given to it before has passed
}

// wire is the network's state that each write needs. Its mu is taken after all others, and nothing is called under it.
type wire struct {
	mu     sync.Mutex
	hop    hop // that every path has beside its own: SetDelay
	random *rand.Rand
}

// path is one direction between two nodes: out of one, over the link, into the other.
type path struct {
	wire *wire
	hops [3]*hop
}

// arrival is when size bytes written now arrive, and how often they had to be sent.
//
// What goes through the later hops is counted there when it is written, not when it gets there: so all rates hold, and who sends
// over a slow link does not keep the receiver's own line from others.
func (p *path) arrival(size int) (at time.Time, times int) {
	p.wire.mu.Lock()
	defer p.wire.mu.Unlock()
	now := time.Now()
	at, times = now, 1
	delay, loss := p.wire.hop.Delay, 1.0
	for _, h := range p.hops {
		delay += h.Delay
		loss *= 1 - h.Loss
	}
	for loss < 1 && times < maxResends && p.wire.random.Float64() >= loss {
		times++
	}
	for _, h := range p.hops {
		if h.Rate > 0 {
			if h.free.Before(now) {
				h.free = now
			}
			h.free = h.free.Add(time.Duration(size*times) * time.Second / time.Duration(h.Rate))
			if at.Before(h.free) {
				at = h.free
			}
		}
		if h.Jitter > 0 {
			at = at.Add(time.Duration(p.wire.random.Int64N(int64(h.Jitter))))
		}
	}
	resend := max(2*delay+delay/4, resendMin)
	return at.Add(delay + time.Duration(times-1)*resend), times
}

// packets says whether bytes travel in packets: where rate and loss do not matter, all of a write arrives at once.
func (p *path) packets() bool {
	p.wire.mu.Lock()
	defer p.wire.mu.Unlock()
	for _, h := range p.hops {
		if h.Rate > 0 || h.Loss > 0 {
			return true
		}
	}
	return false
}

// access is a node's own line, which all its links share.
type access struct{ up, down hop }

// SetAccess sets the node's own line: up for what it sends, down for what it gets, of all links together. It may be set before the node
// starts, and holds for bytes written from now on.
func (n *Network) SetAccess(id p2ptransport.PeerID, up, down Link) {
	n.mu.Lock()
	a := n.access(id)
	n.mu.Unlock()
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	a.up.Link, a.down.Link = up, down
}

// SetLink sets the way between two peers, the same in each direction.
func (n *Network) SetLink(a, b p2ptransport.PeerID, l Link) {
	n.mu.Lock()
	both := &n.link(a, b).ways
	n.mu.Unlock()
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	both[0].Link, both[1].Link = l, l
}

// SetSeed begins anew the random numbers from which jitter and the loss of packets follow, in the order in which bytes are written.
func (n *Network) SetSeed(seed uint64) {
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	n.wire.random = rand.New(rand.NewPCG(seed, seed))
}

// access needs mu, as does path.
func (n *Network) access(id p2ptransport.PeerID) *access {
	a := n.lines[id]
	if a == nil {
		a = &access{}
		n.lines[id] = a
	}
	return a
}

func (n *Network) path(from, to p2ptransport.PeerID) *path {
	way := 0
	if to < from {
		way = 1
	}
	return &path{wire: &n.wire, hops: [3]*hop{&n.access(from).up, &n.link(from, to).ways[way], &n.access(to).down}}
}

// Detach takes a node off the network while it runs: its connections break at once. Attach brings it back.
func (n *Network) Detach(id p2ptransport.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away[id] = true
	for other := range n.nodes {
		if other != id {
			n.disconnect(id, other)
		}
	}
}

// Attach ends Detach. The node and those that want it are connected shortly after.
func (n *Network) Attach(id p2ptransport.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.away, id)
	n.dialSoon()
}

// Observer sees what is put on the wire: the bytes of one direction of a stream, in order, and how many times they had to be sent. It must
// not keep or change the bytes, and calls no method of the network.
type Observer func(b []byte, times int)

// Observe has f called for each stream opened from now on; f returns who observes what the opening node sends, and what it gets, and
// calls no method of the network. The counts are those of the streams' bytes: a real transport adds its headers, handshakes and
// acknowledgements.
func (n *Network) Observe(f func(from, to p2ptransport.PeerID, protocol string) (sent, got Observer)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.observe = f
}
