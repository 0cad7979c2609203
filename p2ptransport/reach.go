package p2ptransport

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Behind an address translator a node may still be reached, where somebody has forwarded a port. It cannot see that itself, so it asks the
// friends that relay (libp2p's AutoNAT v2): they see its address, dial it from a peer ID that has nothing to do with it, and say a number
// that was in the question. What is confirmed is published.
//
//	node ── is 11.7.0.1:4001 me? number ──▶ relay
//	node ◀──────────── number ───────────── relay's dialler, to 11.7.0.1:4001
//
// A relay dials for friends only, at the IP address at which it sees them, or else after it was sent more than a dial costs. Nothing is asked by
// who knows no such relay, nor about private addresses, nor in a private mesh or with LANOnly.
const (
	// maxOutside addresses that are asked about: IPv4 and IPv6, QUIC and TCP, two ports.
	maxOutside = 6
	// reachAgain is when an address is asked about anew, whatever the answer was: routers are started anew and set up otherwise. A question
	// costs some 10 KiB.
	reachAgain = time.Hour
	// reachRetry is when to look again whether somebody can be asked, doubled up to reachSeldom: AutoNAT learns of a relay when we do, before or
	// after. It asks one server every two minutes at most.
	reachRetry  = time.Second
	reachSeldom = 2 * time.Minute
	// reachTimeout of one question.
	reachTimeout = 30 * time.Second
)

// reach knows which addresses of this node others can reach from outside.
type reach struct {
	h       *Host
	nat     *autonatv2.AutoNAT
	wake    chan struct{} // holds one: relays may see another address
	allowed func(PeerID) bool

	mu      sync.Mutex
	answers map[string]answer // by address; only of outside, so at most maxOutside for each network it has been in
}

type answer struct {
	at        time.Time
	addr      ma.Multiaddr
	reachable bool
}

func newReach(h *Host, friend func(PeerID) bool) *reach {
	return &reach{h: h, wake: make(chan struct{}, 1), allowed: friend, answers: make(map[string]answer)}
}

// start begins to ask, and on a relay to answer. run goes on with it.
func (r *reach) start(c Config) error {
	dialler := host.Host(noDialler{})
	if c.Relay {
		var err error
		if dialler, err = newDialler(c, r.h.gate); err != nil {
			return err
		}
	}
	nat, err := autonatv2.New(dialler)
	if err == nil {
		err = nat.Start(natHost{r.h.host, r.allowed, c.Relay})
	}
	if err != nil {
		return errors.Join(err, dialler.Close())
	}
	r.nat = nat
	return nil
}

// newDialler makes the host that dials friends back: under another key, so that the connections that they have do not count.
func newDialler(c Config, g *gate) (host.Host, error) {
	return libp2p.New(append(transports(Config{}, g),
		libp2p.NoListenAddrs,
		libp2p.ConnectionGater(g),
		libp2p.ResourceManager(&network.NullResourceManager{}), // AutoNAT bounds what it does
		libp2p.SwarmOpts(swarm.WithReadOnlyBlackHoleDetector()),
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
		libp2p.DisableRelay(),
		libp2p.ForceReachabilityPrivate(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.DisableMetrics(),
		libp2p.Ping(false),
		libp2p.UserAgent(userAgent),
		libp2p.ProtocolVersion(userAgent),
	)...)
}

// noDialler stands for the dialling host of a node that dials nobody back.
type noDialler struct{ host.Host }

func (noDialler) Close() error { return nil }

// natHost shows AutoNAT friends only.
type natHost struct {
	host.Host
	friend func(PeerID) bool
	serve  bool
}

func (h natHost) isFriend(p peer.ID) bool { return h.friend == nil || h.friend(PeerID(p.String())) }

// NewStream asks friends only: somebody else could confirm what is not so.
func (h natHost) NewStream(ctx context.Context, p peer.ID, protos ...protocol.ID) (network.Stream, error) {
	if !h.isFriend(p) {
		return nil, fmt.Errorf("%s is no friend", p)
	}
	return h.Host.NewStream(network.WithNoDial(ctx, "autonat"), p, protos...)
}

// SetStreamHandler lets friends ask, on a relay.
func (h natHost) SetStreamHandler(proto protocol.ID, f network.StreamHandler) {
	if proto != autonatv2.DialProtocol {
		h.Host.SetStreamHandler(proto, f)
		return
	}
	if !h.serve {
		return
	}
	h.Host.SetStreamHandler(proto, func(s network.Stream) {
		if !h.isFriend(s.Conn().RemotePeer()) {
			_ = s.Reset()
			return
		}
		f(s)
	})
}

// look is called when a relay may see this node at another address.
func (r *reach) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run asks about what is not known, until the host closes.
func (r *reach) run() {
	timer := time.NewTimer(reachAgain)
	defer timer.Stop()
	failed := 0
	for {
		next, wait := r.due(time.Now())
		if next != nil {
			if r.ask(next) {
				failed = 0
			} else {
				wait = min(reachRetry<<min(failed, 10), reachSeldom)
				failed++
			}
		}
		if wait > 0 {
			timer.Reset(wait)
		}
		switch {
		case next != nil && wait == 0:
			continue
		case next == nil && wait == 0:
			timer.Stop() // nothing to ask about until something is seen
		}
		select {
		case <-r.h.ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// due is the address to ask about now, or else how long until there is one; 0 is never.
func (r *reach) due(now time.Time) (next ma.Multiaddr, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, a := range r.answers {
		if now.Sub(a.at) > 2*reachAgain {
			delete(r.answers, key) // of a network in which this node no longer is
		}
	}
	for _, a := range r.h.outside() {
		known, ok := r.answers[string(a.Bytes())]
		left := known.at.Add(reachAgain).Sub(now)
		if !ok || left <= 0 {
			return a, 0
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return nil, wait
}

// ask asks about an address and says whether there was an answer.
func (r *reach) ask(a ma.Multiaddr) bool {
	ctx, cancel := context.WithTimeout(r.h.ctx, reachTimeout)
	defer cancel()
	got, err := r.nat.GetReachability(ctx, []autonatv2.Request{{Addr: a}})
	if err != nil || got.Reachability == network.ReachabilityUnknown && !got.AllAddrsRefused {
		if !errors.Is(err, autonatv2.ErrNoPeers) {
			r.h.log.Debug("no answer whether an address is reachable", "addr", a, "error", err)
		}
		return false
	}
	reachable := got.Reachability == network.ReachabilityPublic
	r.h.log.Debug("an address from outside", "addr", a, "reachable", reachable)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[string(a.Bytes())] = answer{time.Now(), a, reachable}
	return true
}

// published are the addresses that were found to be reachable.
func (r *reach) published() (addrs []ma.Multiaddr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.answers {
		if a.reachable {
			addrs = append(addrs, a.addr)
		}
	}
	slices.SortFunc(addrs, func(a, b ma.Multiaddr) int { return strings.Compare(a.String(), b.String()) })
	return addrs
}

// forget is called when this node may be in another network.
func (r *reach) forget() {
	r.mu.Lock()
	clear(r.answers)
	r.mu.Unlock()
	r.look()
}

// outside are the addresses at which this node may be reached from outside: the ports that it listens on at the IP addresses where relays see
// it, as a forwarded port mostly is, and where they see its QUIC.
func (h *Host) outside() (addrs []ma.Multiaddr) {
	if h.gate.lanOnly || h.meshKey != nil {
		return nil
	}
	own, _ := manet.InterfaceMultiaddrs()
	observed := h.relays.observed()
	for _, o := range observed {
		ip, port := ma.SplitFirst(o)
		if ip == nil || !manet.IsPublicAddr(o) || slices.ContainsFunc(own, ip.Multiaddr().Equal) {
			continue
		}
		for _, l := range h.swarm.ListenAddresses() {
			at, rest := ma.SplitFirst(l)
			if _, circuit := relayOf(l); !circuit && rest != nil && at.Protocol().Code == ip.Protocol().Code && !manet.IsIPLoopback(l) {
				addrs = append(addrs, ip.Multiaddr().Encapsulate(rest))
			}
		}
		if _, err := port.ValueForProtocol(ma.P_QUIC_V1); err == nil {
			addrs = append(addrs, o)
		}
	}
	slices.SortStableFunc(addrs, func(a, b ma.Multiaddr) int { return len(b.Protocols()) - len(a.Protocols()) }) // QUIC first
	merged := mergeAddrs(addrs, nil)
	return merged[:min(len(merged), maxOutside)]
}
