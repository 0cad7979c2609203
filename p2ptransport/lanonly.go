package p2ptransport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// With Config.LANOnly no packet goes to an address outside of localRanges. That is enforced where packets are made, and not
// only where peers are chosen:
//
//	dialling     gate.InterceptAddrDial, for every transport and for the relay that a circuit goes through
//	names        resolver: no DNS name is looked up
//	QUIC         localUDP: what the socket is given for another address, also as an answer, is dropped
//	TCP and WS   keepLocal: on Linux the listening socket does not answer a SYN from elsewhere; on other systems the
//	             connection is closed as soon as it is accepted (gate.InterceptAccept)
//	HTTP proxy   a WebSocket is not dialled through one
//	telling      addresses outside are not told to peers

// localRanges are the networks of one's own: RFC 1918, link-local, loopback, unique local addresses (RFC 4193). Not
// 100.64.0.0/10 (RFC 6598): that is the provider's network, shared with its other customers. An overlay that uses it for
// itself mostly has unique local IPv6 addresses too.
var localRanges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::1/128"),
}

func isLocal(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, r := range localRanges {
		if r.Contains(ip) {
			return true
		}
	}
	return false
}

// localAddr says whether dialling a multiaddr sends to localRanges only. A circuit without an address of the relay goes over
// a connection that was itself allowed.
func localAddr(a ma.Multiaddr) bool {
	if _, disguised := undisguise(a); disguised {
		return true
	}
	first, rest := ma.SplitFirst(a)
	if first != nil && first.Protocol().Code == ma.P_IP6ZONE {
		first, _ = ma.SplitFirst(rest)
	}
	if first == nil {
		return false
	}
	switch first.Protocol().Code {
	case ma.P_IP4, ma.P_IP6:
		ip, ok := netip.AddrFromSlice(first.RawValue())
		return ok && isLocal(ip)
	case ma.P_P2P:
		return true
	}
	return false
}

// gate refuses connections, for libp2p. Its fields do not change once libp2p has started.
type gate struct {
	lanOnly bool
	// mayRelay says whether circuits may come to us through this relay.
	mayRelay func(relay peer.ID) bool
	// leaveOut says whether an address is left out of the dial to a peer that is under way; see keeper.
	leaveOut func(peer.ID, ma.Multiaddr) bool
	refuse   func(PeerID) bool      // Config.Refuse
	sockets  *quicreuse.ConnManager // of QUIC, with lanOnly
}

// InterceptPeerDial refuses those that Config.Refuse names; else addresses decide.
func (g *gate) InterceptPeerDial(p peer.ID) bool { return !g.refuses(p) }

// InterceptAddrDial refuses addresses outside, with LANOnly, and what the keeper leaves out of a dial.
func (g *gate) InterceptAddrDial(p peer.ID, a ma.Multiaddr) bool {
	return (!g.lanOnly || localAddr(a)) && !g.leaveOut(p, a)
}

// InterceptAccept refuses who comes from outside, with LANOnly, and circuits through a relay that this node has not asked
// to relay for it: bounds by address do not hold for whom a stranger brings.
func (g *gate) InterceptAccept(c network.ConnMultiaddrs) bool {
	from := c.RemoteMultiaddr()
	if g.lanOnly && !localAddr(from) {
		return false
	}
	if relay, ok := relayOf(from); ok {
		return g.mayRelay(relay)
	}
	return true
}

// InterceptSecured refuses those that Config.Refuse names: strangers are welcome, within their budget.
func (g *gate) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return !g.refuses(p)
}

// InterceptUpgraded allows all.
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

var errNoNames = errors.New("names are not looked up: this node sends to private address ranges only")

// localResolver looks up no name; see resolver for the disguise.
type localResolver struct{}

func (localResolver) ResolveDNSAddr(context.Context, peer.ID, ma.Multiaddr, int, int) ([]ma.Multiaddr, error) {
	return nil, errNoNames
}

func (localResolver) ResolveDNSComponent(context.Context, ma.Multiaddr, int) ([]ma.Multiaddr, error) {
	return nil, errNoNames
}

// localUDP is a socket that sends nothing outside. What is dropped counts as sent, as any packet can be lost.
type localUDP struct{ *net.UDPConn }

func (c localUDP) WriteTo(b []byte, to net.Addr) (int, error) {
	if u, ok := to.(*net.UDPAddr); !ok || !isLocal(u.AddrPort().Addr()) {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, to)
}

func (c localUDP) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if to == nil || !isLocal(to.AddrPort().Addr()) {
		return len(b), len(oob), nil
	}
	return c.UDPConn.WriteMsgUDP(b, oob, to)
}

// newLocalQUIC makes libp2p's manager of QUIC sockets over localUDP, and keeps it in sockets for Close: libp2p closes only its
// own.
func (g *gate) newLocalQUIC(key crypto.PrivKey, limits network.ResourceManager) (*quicreuse.ConnManager, error) {
	reset, err := config.PrivKeyToStatelessResetKey(key)
	if err != nil {
		return nil, err
	}
	token, err := config.PrivKeyToTokenGeneratorKey(key)
	if err != nil {
		return nil, err
	}
	g.sockets, err = quicreuse.NewConnManager(reset, token,
		quicreuse.OverrideListenUDP(func(network string, addr *net.UDPAddr) (net.PacketConn, error) {
			c, err := net.ListenUDP(network, addr)
			if err != nil {
				return nil, err
			}
			return localUDP{c}, nil
		}),
		quicreuse.VerifySourceAddress(limits.VerifySourceAddress),
	)
	return g.sockets, err
}

// Close closes the sockets that are left, when libp2p has closed what is on them.
func (g *gate) Close() error {
	if g.sockets == nil {
		return nil
	}
	return g.sockets.Close()
}

// localUpgrader puts keepLocal on listening TCP sockets.
type localUpgrader struct{ transport.Upgrader }

func (u localUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return u.Upgrader.GateMaListener(keepLocal(l))
}

// webSocket is libp2p's WebSocket transport, which with lanOnly dials only where no HTTP proxy would be asked.
type webSocket struct {
	*websocket.WebsocketTransport
	lanOnly bool
}

func newWebSocket(u transport.Upgrader, limits network.ResourceManager, shared *tcpreuse.ConnMgr, lanOnly bool) (*webSocket, error) {
	t, err := websocket.New(u, limits, shared)
	if err != nil {
		return nil, err
	}
	return &webSocket{t, lanOnly}, nil
}

func (w *webSocket) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	if w.lanOnly {
		_, host, err := manet.DialArgs(a)
		if err != nil {
			return nil, err
		}
		for _, scheme := range []string{"http", "https"} {
			proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: scheme, Host: host}})
			if err != nil || proxy != nil {
				return nil, fmt.Errorf("%s is not dialled: this node sends to private address ranges only, and an HTTP proxy is set", a)
			}
		}
	}
	return w.WebsocketTransport.Dial(ctx, a, p)
}
