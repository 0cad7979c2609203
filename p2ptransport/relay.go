package p2ptransport

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	relayv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Two nodes that cannot reach each other talk through a third that both reach and that is a friend of both (libp2p's circuit
// relay v2). The relay carries bytes that the two ends encrypt for each other.
//
//	C ── reserve ──▶ B           C keeps a reservation at B, a friend that offers to relay (Config.Relay)
//	A ── connect to C ──▶ B ──▶ C
//	A ◀══════ circuit ══════▶ C  a connection like others, but marked as limited
//
// A client's part starts when a friend that offers it is connected; without one it is an idle goroutine.

// What a relay carries. libp2p's own figures, 128 KiB and 2 minutes for each circuit, suit a public relay that helps
// strangers to punch a hole.
const (
	// circuitBytes in each direction of a circuit, then it is cut and made anew: a 50 MB file and what is said beside it
	// pass several times over.
	circuitBytes = 256 << 20
	// circuitTime: a file of 50 MB at 64 kbit/s takes 1 h 45 min. After it the circuit is made anew, and the policy is asked again.
	circuitTime = 2 * time.Hour
	// circuitBuffer for each direction: two round trips' worth at some Mbit/s; libp2p's 2 KiB costs a system call for each packet.
	circuitBuffer = 16 << 10
	// maxReservations in all, one for each friend. A large room behind NATs fits.
	maxReservations = 128
	// maxCircuitsPerFriend at a time, made by it or to it: it talks to so many others through this relay.
	maxCircuitsPerFriend = 32
	// maxCircuits at a time in all. With their buffers that is 4 MiB.
	maxCircuits = 128
	// relayWindow is the time that the next two count in.
	relayWindow = time.Hour
	// maxCircuitsOpened by one friend in a window: one a minute, as when its network comes and goes.
	maxCircuitsOpened = 60
	// relayedBytes in a window in all, both directions together; then no new circuit is opened, and those that are go on
	// to circuitBytes. 16 GiB an hour is 36 Mbit/s.
	relayedBytes = 16 << 30
	// reservationTime: libp2p's own. A client renews at half of it.
	reservationTime = time.Hour
)

// relayPolicy answers for the relay whom to serve, and counts what is carried.
type relayPolicy struct {
	friend func(PeerID) bool
	guest  func(from, to PeerID) bool // Config.Guest
	now    func() time.Time

	bytes atomic.Int64 // carried since the window began

	mu     sync.Mutex
	began  time.Time       // of the window
	opened map[peer.ID]int // circuits opened in the window; friends only, so bounded by them
}

// AllowReserve allows friends.
func (r *relayPolicy) AllowReserve(p peer.ID, _ ma.Multiaddr) bool { return r.isFriend(p) }

// AllowConnect allows a friend, or a guest of his, to reach a friend, while there is something left of this hour's budget. What guests open
// counts as that of the friend whom they visit.
func (r *relayPolicy) AllowConnect(from peer.ID, _ ma.Multiaddr, to peer.ID) bool {
	if !r.isFriend(to) {
		return false
	}
	if !r.isFriend(from) {
		if r.guest == nil || !r.guest(PeerID(from.String()), PeerID(to.String())) {
			return false
		}
		from = to
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); now.Sub(r.began) >= relayWindow {
		r.began, r.opened = now, make(map[peer.ID]int)
		r.bytes.Store(0)
	}
	if r.bytes.Load() >= relayedBytes || r.opened[from] >= maxCircuitsOpened {
		return false
	}
	r.opened[from]++
	return true
}

func (r *relayPolicy) isFriend(p peer.ID) bool {
	return r.friend == nil || r.friend(PeerID(p.String()))
}

// BytesTransferred counts; it and the methods below are libp2p's metrics.
func (r *relayPolicy) BytesTransferred(n int) { r.bytes.Add(int64(n)) }

func (*relayPolicy) RelayStatus(bool)                      {}
func (*relayPolicy) ConnectionOpened()                     {}
func (*relayPolicy) ConnectionClosed(time.Duration)        {}
func (*relayPolicy) ConnectionRequestHandled(pbv2.Status)  {}
func (*relayPolicy) ReservationAllowed(bool)               {}
func (*relayPolicy) ReservationClosed(int)                 {}
func (*relayPolicy) ReservationRequestHandled(pbv2.Status) {}

// startRelay makes the host a relay; the caller closes it.
func startRelay(h host.Host, c Config) (*relayv2.Relay, error) {
	policy := &relayPolicy{friend: c.Friend, guest: c.Guest, now: time.Now}
	return relayv2.New(h,
		relayv2.WithACL(policy),
		relayv2.WithMetricsTracer(policy),
		// All addresses: a relay in a building has private ones, and whom it serves reaches it there.
		relayv2.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true }),
		relayv2.WithResources(relayv2.Resources{
			Limit:          &relayv2.RelayLimit{Duration: circuitTime, Data: circuitBytes},
			ReservationTTL: reservationTime, MaxReservations: maxReservations, MaxCircuits: maxCircuitsPerFriend, BufferSize: circuitBuffer,
			// Friends are known by their keys: many of them may be behind one address.
			MaxReservationsPerIP: maxReservations, MaxReservationsPerASN: maxReservations,
		}),
	)
}

// relayOf is the relay of a circuit's address; ok is false for other addresses.
func relayOf(a ma.Multiaddr) (relay peer.ID, ok bool) {
	before, after := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT })
	if after == nil {
		return "", false
	}
	_, relay = peer.SplitAddr(before)
	return relay, true
}

// The client's part.
const (
	// wantRelays that a node keeps reservations at: one may go.
	wantRelays = 2
	// tryRelays that a peer is looked for at, when it is dialled.
	tryRelays = 4
	// relayAddrs that are published of each relay: its networks, IPv4 and IPv6, QUIC and TCP.
	relayAddrs = 6
	// reserveTimeout of one attempt.
	reserveTimeout = 10 * time.Second
	// askAgain is when a relay is asked again that refused or did not answer, or that is not known as a friend yet; doubled up
	// to askSeldom.
	askAgain  = 5 * time.Second
	askSeldom = 2 * time.Minute
	// renewAtLeast bounds how often a relay makes us renew.
	renewAtLeast = time.Minute
)

// relays are the connected peers that offer to relay. run owns the attempts; mu guards what others read.
type relays struct {
	h      *Host
	friend func(PeerID) bool
	wake   chan struct{}
	used   func() // called by run when the first friend that relays is there, and has told how it sees us
	events event.Subscription

	mu    sync.Mutex
	peers map[peer.ID]*offer // bounded by the connections
}

// offer is a directly connected peer that speaks the relay protocol.
type offer struct {
	friend   bool           // when last asked
	addrs    []ma.Multiaddr // under which others find the relay; empty without a reservation
	observed []ma.Multiaddr // how the relay sees us
	next     time.Time      // when to ask, or ask again
	failures int
}

func newRelays(h *Host, friend func(PeerID) bool) *relays {
	return &relays{h: h, friend: friend, wake: make(chan struct{}, 1), peers: make(map[peer.ID]*offer)}
}

// subscribe is called before there is any connection: how a relay sees us is told once.
func (r *relays) subscribe() (err error) {
	r.events, err = r.h.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated),
	}, eventbus.Name("plexus relays"))
	return err
}

// run until the host closes.
func (r *relays) run() {
	defer func() { _ = r.events.Close() }()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if next := r.turn(time.Now()); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-r.h.ctx.Done():
			return
		case e, ok := <-r.events.Out():
			if !ok {
				return
			}
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				if e.Conn.Stat().Limited {
					break
				}
				r.look(e.Peer, e.ObservedAddr)
			case event.EvtPeerProtocolsUpdated:
				r.look(e.Peer, nil)
			}
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// look sees whether a peer offers to relay.
func (r *relays) look(p peer.ID, observed ma.Multiaddr) {
	spoken, err := r.h.host.Peerstore().SupportsProtocols(p, proto.ProtoIDv2Hop)
	offers := err == nil && slices.Contains(spoken, protocol.ID(proto.ProtoIDv2Hop)) && r.h.swarm.Connectedness(p) == network.Connected
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.peers[p]
	switch {
	case !offers:
		delete(r.peers, p)
		return
	case o == nil:
		o = &offer{next: time.Now()}
		r.peers[p] = o
	}
	if observed != nil {
		o.observed = mergeAddrs([]ma.Multiaddr{observed}, o.observed)
		o.observed = o.observed[:min(len(o.observed), relayAddrs)]
		r.h.reach.look()
	}
}

// lost forgets a peer to which there is no direct connection left.
func (r *relays) lost(p peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.peers[p]; known {
		delete(r.peers, p)
		select { // another may take its place
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// turn asks the relays whose turn it is, and says when the next one's comes; the zero time is never.
func (r *relays) turn(now time.Time) (next time.Time) {
	r.mu.Lock()
	known := slices.Collect(maps.Keys(r.peers))
	r.mu.Unlock()
	slices.Sort(known)
	for _, p := range known {
		if r.h.ctx.Err() != nil {
			return time.Time{}
		}
		isFriend := r.friend == nil || r.friend(PeerID(p.String()))
		r.mu.Lock()
		o := r.peers[p]
		if o == nil {
			r.mu.Unlock()
			continue
		}
		if isFriend && !o.friend {
			r.h.reach.look()
		}
		o.friend = isFriend
		have := 0
		for _, other := range r.peers {
			if len(other.addrs) > 0 {
				have++
			}
		}
		due := !o.next.After(now)
		ask := due && isFriend && (len(o.addrs) > 0 || have < wantRelays)
		if due && !ask {
			r.postpone(o, now)
		}
		r.mu.Unlock()
		if isFriend && r.used != nil && len(r.h.punchable()) > 0 {
			r.used()
			r.used = nil
		}
		if ask {
			r.reserve(p)
		}
		r.mu.Lock()
		if o := r.peers[p]; o != nil && (next.IsZero() || o.next.Before(next)) {
			next = o.next
		}
		r.mu.Unlock()
	}
	return next
}

// postpone needs mu.
func (r *relays) postpone(o *offer, now time.Time) {
	o.next = now.Add(min(askAgain<<min(o.failures, 10), askSeldom))
	o.failures++
}

// reserve asks a relay to take connections for this node.
func (r *relays) reserve(p peer.ID) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(r.h.ctx, "relay"), reserveTimeout)
	defer cancel()
	got, err := client.Reserve(ctx, r.h.host, peer.AddrInfo{ID: p})
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.peers[p]
	if o == nil {
		return // it went meanwhile
	}
	if err != nil {
		r.h.log.Debug("no reservation", "relay", p, "error", err)
		o.addrs = nil
		r.postpone(o, now)
		return
	}
	if len(o.addrs) == 0 {
		r.h.log.Debug("reachable through a relay", "relay", p)
	}
	o.failures = 0
	o.next = now.Add(max(renewAtLeast, got.Expiration.Sub(now)/2))
	o.addrs = r.circuitAddrs(p, got.Addrs)
}

// circuitAddrs are the addresses under which this node is found through a relay: those that the relay names, and the one that
// this node itself has dialled.
func (r *relays) circuitAddrs(p peer.ID, named []ma.Multiaddr) []ma.Multiaddr {
	var bases []ma.Multiaddr
	for _, c := range r.h.swarm.ConnsToPeer(p) {
		if s := c.Stat(); s.Direction == network.DirOutbound && !s.Limited {
			bases = append(bases, c.RemoteMultiaddr())
		}
	}
	for _, a := range named {
		base, id := peer.SplitAddr(a)
		if _, circuit := relayOf(a); base == nil || circuit || id != "" && id != p || manet.IsIPLoopback(base) && len(bases) > 0 && !manet.IsIPLoopback(bases[0]) {
			continue
		}
		bases = append(bases, base)
	}
	tail := ma.StringCast("/p2p/" + p.String() + "/p2p-circuit")
	var addrs []ma.Multiaddr
	for _, b := range mergeAddrs(bases, nil) {
		if len(addrs) < relayAddrs && !manet.IsIP6LinkLocal(b) {
			addrs = append(addrs, b.Encapsulate(tail))
		}
	}
	if len(addrs) == 0 {
		addrs = append(addrs, tail) // those that are connected to the relay find us
	}
	return addrs
}

// published are the circuit addresses to tell others.
func (r *relays) published() []ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var addrs []ma.Multiaddr
	for _, p := range slices.Sorted(maps.Keys(r.peers)) {
		addrs = append(addrs, r.peers[p].addrs...)
	}
	return addrs
}

// mayRelay says whether this node has a reservation at a peer.
func (r *relays) mayRelay(p peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.peers[p]
	// friend, and not only with an answered reservation: a circuit may come before the answer has been read.
	return o != nil && o.friend
}

// to are addresses of a peer through the connected relays of friends, whether it is known there or not: a relay that does not
// know it says so at once.
func (r *relays) to(p peer.ID) []ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var addrs []ma.Multiaddr
	for _, relay := range slices.Sorted(maps.Keys(r.peers)) {
		if relay != p && r.peers[relay].friend && len(addrs) < tryRelays {
			addrs = append(addrs, ma.StringCast("/p2p/"+relay.String()+"/p2p-circuit"))
		}
	}
	return addrs
}

// observed is how relays of friends see this node.
func (r *relays) observed() []ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var addrs []ma.Multiaddr
	for _, p := range slices.Sorted(maps.Keys(r.peers)) {
		if r.peers[p].friend {
			addrs = append(addrs, r.peers[p].observed...)
		}
	}
	return addrs
}
