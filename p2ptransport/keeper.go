package p2ptransport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxKnown peers that are dialled again after their connection is lost, or that addresses are remembered for,
	// besides static ones. The one away the longest makes room.
	maxKnown = 1024
	// maxAddrs remembered for a peer: some networks, QUIC and TCP, IPv4 and IPv6.
	maxAddrs = 16
	// dialsAtOnce by the keeper; requests dial beside it.
	dialsAtOnce = 16
	// unmetAtOnce are those of them to peers that are not static and were never met.
	unmetAtOnce = 8
	// attemptTimeout of one dial by the keeper: on a LAN it succeeds at once or not. patientAttempt is what follows, two of three, for
	// where a round trip takes seconds: it leaves QUIC out if there is TCP. QUIC's first packets are of 1,280 bytes and repeated after
	// fractions of a second, by both ends; at 16 kbit/s they alone keep everything else, and themselves, from arriving in time.
	attemptTimeout = 4 * time.Second
	patientAttempt = 24 * time.Second
	// dialHangs after which a dial under way is given up for a new address; sooner, anybody could break all dials off.
	dialHangs = 500 * time.Millisecond
	// yield is how long the node with the greater peer ID waits for the other to dial, so that two nodes that meet make
	// one connection and not two.
	yield = 300 * time.Millisecond
	// firstRetry, doubled with each failure, up to what retryCap says.
	firstRetry = 500 * time.Millisecond
	// firstDirect, doubled up to directCap, is when a peer reached through a relay is dialled directly; hole punching goes first.
	firstDirect = 5 * time.Second
	directCap   = 10 * time.Minute
)

// retryCap bounds the time between dials by how long the peer has been away. A peer just lost is likely to come back,
// on the same address, before anybody can tell us: a link cut in the middle of the network shows on neither end.
func retryCap(away time.Duration, static bool) time.Duration {
	switch {
	case away < 2*time.Minute:
		return 2500 * time.Millisecond
	case away < 15*time.Minute:
		return 15 * time.Second
	case away < time.Hour, static:
		return time.Minute
	case away < 24*time.Hour:
		return 10 * time.Minute
	}
	return time.Hour // announcements, records and changes of networks end the wait; a dial of all addresses is some 10 KiB
}

// keeper decides whom to dial and when: static peers always, others while they were lately connected or heard of. It
// has a backoff of its own, which ends when the network changes or the peer is heard; libp2p's grows to minutes.
type keeper struct {
	h    *Host
	wake chan struct{} // holds one: look again whose turn it is

	mu    sync.Mutex
	peers map[peer.ID]*known
}

// known is what the keeper remembers of a peer.
type known struct {
	static   bool
	wanted   bool // dial it: static, lately connected, or heard by mDNS
	met      bool // was connected once
	addrs    []ma.Multiaddr
	up       bool
	relayed  bool               // up, but only through relays: still dialled directly
	away     time.Time          // since when it is not connected
	slow     time.Duration      // how long its first answer took, on the last connection
	came     time.Time          // when it was last connected
	brief    int                // connections in a row that ended at once; see refuse.go
	failures int                // since something said that it may be there now
	tries    int                // that failed since it was last connected
	next     time.Time          // when to dial
	dialling context.CancelFunc // of the dial under way
	dialled  time.Time          // when that began
	light    bool               // it leaves QUIC out
}

func newKeeper(h *Host) *keeper {
	return &keeper{h: h, wake: make(chan struct{}, 1), peers: make(map[peer.ID]*known)}
}

func (k *keeper) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// peer finds or makes the entry; it needs mu.
func (k *keeper) peer(p peer.ID) *known {
	if t := k.peers[p]; t != nil {
		return t
	}
	if len(k.peers) >= maxKnown {
		k.makeRoom()
	}
	t := &known{away: time.Now()}
	k.peers[p] = t
	return t
}

// makeRoom forgets the peer away the longest, and of those never met first: anybody on the network can announce any
// number of them. It needs mu.
func (k *keeper) makeRoom() {
	var least peer.ID
	for p, t := range k.peers {
		if t.static || t.up || t.dialling != nil {
			continue
		}
		l := k.peers[least]
		if l == nil || l.met && !t.met || l.met == t.met && t.away.Before(l.away) {
			least = p
		}
	}
	delete(k.peers, least)
}

// keep makes a peer static and dials it soon.
func (k *keeper) keep(p peer.AddrInfo) {
	k.learn(p.ID, p.Addrs)
	k.mu.Lock()
	t := k.peer(p.ID)
	t.static, t.wanted, t.next = true, true, time.Now()
	k.mu.Unlock()
	k.h.host.ConnManager().Protect(p.ID, "static")
	k.signal()
}

// learn puts addresses before those already known, and says whether one of them is new.
func (k *keeper) learn(p peer.ID, addrs []ma.Multiaddr) (fresh bool) {
	if len(addrs) == 0 || p == k.h.host.ID() {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peer(p)
	fresh = slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return !slices.ContainsFunc(t.addrs, a.Equal) })
	t.addrs = mergeAddrs(addrs, t.addrs)
	return fresh
}

// noteSlowness remembers how long the peer takes to answer.
func (k *keeper) noteSlowness(p peer.ID, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := k.peers[p]; t != nil && took > 0 {
		t.slow = took
	}
}

func mergeAddrs(first, then []ma.Multiaddr) []ma.Multiaddr {
	merged := make([]ma.Multiaddr, 0, maxAddrs)
	for _, a := range slices.Concat(first, then) {
		if len(merged) < maxAddrs && !slices.ContainsFunc(merged, a.Equal) {
			merged = append(merged, a)
		}
	}
	return merged
}

// heard is called when a peer announces itself on the local network, and says whether one of the addresses is new. A dial under way that
// hangs on the old ones is given up.
func (k *keeper) heard(p peer.ID, addrs []ma.Multiaddr) (fresh bool) {
	fresh = k.learn(p, addrs)
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := k.peers[p]; t != nil && (!t.up || t.relayed) {
		t.wanted = true
		if fresh && t.dialling != nil && time.Since(t.dialled) > dialHangs {
			t.dialling()
		}
		k.soon(p, t)
	}
	return fresh
}

// soon dials the peer without regard to past failures; it needs mu.
func (k *keeper) soon(p peer.ID, t *known) {
	wait := time.Duration(0)
	if t.failures == 0 && k.h.host.ID() > p {
		wait = yield
	}
	t.failures = 0
	if next := time.Now().Add(wait); t.next.IsZero() || t.next.After(next) {
		t.next = next
	}
	k.signal()
}

func (k *keeper) connected(p peer.ID, c network.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peer(p)
	if c.Stat().Limited && t.up && !t.relayed {
		return // a direct one is there
	}
	t.relayed = c.Stat().Limited
	if !t.up {
		t.came = time.Now()
	}
	t.up, t.met, t.wanted, t.failures, t.tries, t.next = true, true, true, 0, 0, time.Time{}
	if t.relayed {
		k.dialDirectly(t)
	}
	if c.Stat().Direction == network.DirOutbound && !c.Stat().Limited {
		t.addrs = mergeAddrs([]ma.Multiaddr{c.RemoteMultiaddr()}, t.addrs)
	}
}

// dialDirectly says when a peer that is reached through relays is next dialled at its other addresses; it needs mu.
func (k *keeper) dialDirectly(t *known) {
	t.next = time.Now().Add(min(firstDirect<<min(t.failures, 10), directCap))
	k.signal()
}

// lostDirect is called when a direct connection was lost and one through a relay is left.
func (k *keeper) lostDirect(p peer.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peer(p)
	if t.up && !t.relayed {
		t.relayed, t.failures = true, 0
		k.dialDirectly(t)
	}
}

func (k *keeper) disconnected(p peer.ID) {
	// What identify has told of the peer's addresses is kept here; libp2p forgets it after a while.
	listens := k.h.host.Peerstore().Addrs(p)
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peer(p)
	t.up, t.relayed, t.away = false, false, time.Now()
	t.addrs = mergeAddrs(t.addrs, listens)
	t.failures = 0
	if t.brief++; t.away.Sub(t.came) >= brief {
		t.brief = 0
	}
	if wait := afterBrief(t.brief); wait > 0 {
		t.next = t.away.Add(wait)
		k.signal()
		return
	}
	k.soon(p, t)
}

// networkChanged makes every peer due that is wanted and not connected.
func (k *keeper) networkChanged() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p, t := range k.peers {
		if (!t.up || t.relayed) && t.wanted {
			if t.dialling != nil {
				t.dialling() // it may hang on an address that is no more
			}
			k.soon(p, t)
		}
	}
}

// run dials those whose turn it is, until the host closes.
func (k *keeper) run() {
	slots, unmet := make(chan struct{}, dialsAtOnce), make(chan struct{}, unmetAtOnce)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-k.h.ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		due, next := k.due(time.Now(), cap(slots)-len(slots), cap(unmet)-len(unmet))
		for _, t := range due {
			taken := []chan struct{}{slots}
			if t.unmet {
				taken = append(taken, unmet)
			}
			for _, place := range taken {
				place <- struct{}{} // free: only this loop takes them
			}
			if !k.h.work.start(func() {
				k.attempt(t.peer)
				for _, place := range taken {
					<-place
				}
				k.signal()
			}) {
				return
			}
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// turn is a peer to dial now.
type turn struct {
	peer  peer.ID
	unmet bool
}

// due takes peers whose turn it is, as many as there are places, and says when the next one's comes; the zero time is never. Those that
// are static or were met come first: anybody on the network can announce any number of others, each of which takes a
// place until it has timed out.
func (k *keeper) due(now time.Time, places, unmet int) (due []turn, next time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p, t := range k.peers {
		switch {
		case t.up && !t.relayed || !t.wanted || t.next.IsZero():
		case !t.next.After(now):
			if t.dialling == nil {
				due = append(due, turn{p, !t.static && !t.met})
			}
		case next.IsZero() || t.next.Before(next):
			next = t.next
		}
	}
	slices.SortFunc(due, func(a, b turn) int {
		if a.unmet != b.unmet {
			if b.unmet {
				return -1
			}
			return 1
		}
		return k.peers[a.peer].next.Compare(k.peers[b.peer].next)
	})
	due = due[:min(len(due), places)]
	if i := slices.IndexFunc(due, func(t turn) bool { return t.unmet }); i >= 0 {
		due = due[:min(len(due), i+unmet)]
	}
	for _, t := range due {
		k.peers[t.peer].next = time.Time{}
	}
	return due, next
}

// patience is how long the next dial may take; it needs the keeper's mu.
func (t *known) patience() time.Duration {
	if t.tries%3 > 0 {
		return patientAttempt
	}
	return min(max(attemptTimeout, patienceFactor*t.slow), patientAttempt)
}

// leaveOut says whether an address of a peer shall not be dialled now.
func (k *keeper) leaveOut(p peer.ID, a ma.Multiaddr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peers[p]
	return t != nil && t.light && overQUIC(a)
}

func overQUIC(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_QUIC_V1)
	return err == nil
}

// attempt dials a peer once and, if that fails, says when to try again.
func (k *keeper) attempt(p peer.ID) {
	k.mu.Lock()
	t := k.peers[p]
	if t == nil || t.up && !t.relayed || t.dialling != nil {
		k.mu.Unlock()
		return
	}
	patience := t.patience()
	ctx, cancel := context.WithTimeout(k.h.ctx, patience)
	defer cancel()
	t.dialling, t.dialled = cancel, time.Now()
	t.light = patience > attemptTimeout && slices.ContainsFunc(t.addrs, func(a ma.Multiaddr) bool {
		_, err := a.ValueForProtocol(ma.P_TCP)
		return err == nil
	})
	relayed := t.relayed
	k.mu.Unlock()

	connect := k.connect
	if relayed {
		connect = k.connectDirectly
	}
	err := connect(ctx, p)

	k.mu.Lock()
	defer k.mu.Unlock()
	t.dialling, t.light = nil, false
	if err != nil {
		t.tries++
	}
	switch {
	case err == nil:
	case t.relayed:
		t.failures++
		k.dialDirectly(t)
	case !t.up:
		wait := min(firstRetry<<min(t.failures, 10), retryCap(time.Since(t.away), t.static))
		wait += rand.N(wait / 4) // nodes that lost each other together do not dial together
		if again := time.Now().Add(wait); t.next.IsZero() || t.next.After(again) {
			t.next = again
		}
		t.failures++
		k.h.log.Debug("dial failed", "peer", p, "failures", t.failures, "error", err)
	}
	k.signal()
}

// connect dials the peer at all its known addresses and through the relays at hand, unless it is connected. Errors:
// ErrUnreachable, ErrClosed.
func (k *keeper) connect(ctx context.Context, p peer.ID) error {
	if k.h.isConnected(p) {
		return nil
	}
	return k.dial(network.WithAllowLimitedConn(ctx, "dial"), p, k.h.relays.to(p))
}

// connectDirectly dials a peer that may be connected through a relay, and where that fails lets a hole be punched.
func (k *keeper) connectDirectly(ctx context.Context, p peer.ID) error {
	err := k.dial(network.WithForceDirectDial(ctx, "dial"), p, nil)
	if err != nil {
		k.h.punchAgain(p)
	}
	return err
}

func (k *keeper) dial(ctx context.Context, p peer.ID, more []ma.Multiaddr) error {
	store := k.h.host.Peerstore()
	k.mu.Lock()
	var addrs []ma.Multiaddr
	if t := k.peers[p]; t != nil {
		for _, a := range t.addrs {
			addrs = append(addrs, disguise(a))
		}
	}
	k.mu.Unlock()
	addrs = append(addrs, more...)
	if len(addrs) == 0 && len(store.Addrs(p)) == 0 {
		return fmt.Errorf("%w: no address known", ErrUnreachable)
	}
	store.AddAddrs(p, addrs, peerstore.TempAddrTTL)
	k.h.swarm.Backoff().Clear(p)
	ctx = network.WithDialPeerTimeout(ctx, dialTimeout)
	if err := k.h.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		if k.h.ctx.Err() != nil {
			return ErrClosed
		}
		return fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	return nil
}
