package p2ptransport

import (
	"math"
	"net/netip"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	relayv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/x/rate"
)

const (
	// maxConns of the host. A mesh of a hundred nodes fits, with two connections each while simultaneous dials are thinned.
	maxConns = 512
	// maxConnsPerPeer: a peer that changes networks may hold an old, a new and a relayed connection, over QUIC and TCP.
	maxConnsPerPeer = 8
	// maxConnsPerAddress: a mesh in one flat behind one address, or a laboratory on one machine; libp2p allows 8.
	maxConnsPerAddress = 128
	// connRate and connBurst of new connections from one address: a mesh that comes back at once must pass.
	connRate  = 10
	connBurst = 256
	// allConnRate and allConnBurst of new connections from all addresses together: a machine on a LAN can have as many as it likes. Each costs
	// a handshake, about 1 ms. Connections that we open ourselves are not counted, so friends are found in a flood too.
	allConnRate  = 50
	allConnBurst = 512
	// maxUnnamedStreams have not said their protocol yet.
	maxUnnamedStreams = 256
	// maxHandshakes of connections that others open: more than maxConnsPerAddress, so that one address does not have them all.
	maxHandshakes = 256
	// maxMemory that streams and connections may reserve together; windows stop growing there.
	maxMemory = 96 << 20
	// relayMessage is what libp2p's relay reserves for each stream's handshake.
	relayMessage = 4 << 10
)

// newResourceManager bounds what all peers together and each of them can make libp2p hold. The figures are fixed, not
// scaled by the machine's memory: the same node runs on a phone. What strangers have of it, s bounds.
func newResourceManager(s *strangers) (_ network.ResourceManager, err error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	all := rcmgr.ResourceLimits{
		Conns: 2 * maxConns, ConnsInbound: maxConns, ConnsOutbound: maxConns,
		Streams: 8192, StreamsInbound: 4096, StreamsOutbound: 4096,
		FD: 2 * maxConns, Memory: maxMemory,
	}
	protocols := rcmgr.ResourceLimits{
		Streams: 4096, StreamsInbound: 2048, StreamsOutbound: 2048, Memory: maxMemory,
	}
	partial := rcmgr.PartialLimitConfig{
		System: all,
		// Transient: handshakes and streams without a protocol yet.
		Transient: rcmgr.ResourceLimits{
			Conns: maxHandshakes + 128, ConnsInbound: maxHandshakes, ConnsOutbound: 128,
			Streams: maxUnnamedStreams + 256, StreamsInbound: maxUnnamedStreams, StreamsOutbound: 256, FD: maxHandshakes + 128, Memory: maxMemory / 4,
		},
		ServiceDefault:  protocols,
		ProtocolDefault: protocols,
		ProtocolPeerDefault: rcmgr.ResourceLimits{
			Streams: 128, StreamsInbound: 64, StreamsOutbound: 64, Memory: maxMemory / 4,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 2 * maxConnsPerPeer, ConnsInbound: maxConnsPerPeer, ConnsOutbound: maxConnsPerPeer,
			Streams: 256, StreamsInbound: 128, StreamsOutbound: 128, FD: 2 * maxConnsPerPeer, Memory: maxMemory / 3,
		},
	}
	// identify runs once for each connection, and a mesh's connections may all come at once.
	for service := range limits.ServiceLimits {
		if partial.Service == nil {
			partial.Service = make(map[string]rcmgr.ResourceLimits)
		}
		partial.Service[service] = protocols
	}
	// The relay's streams, two for each circuit, and its buffers.
	const questions = 64 // reservations and refusals under way
	partial.Service[relayv2.ServiceName] = rcmgr.ResourceLimits{
		Streams: 2*maxCircuits + questions, StreamsInbound: maxCircuits + questions, StreamsOutbound: maxCircuits,
		Memory: 2*maxCircuits*circuitBuffer + (2*maxCircuits+questions)*relayMessage,
	}
	for proto := range limits.ProtocolLimits {
		if partial.Protocol == nil {
			partial.Protocol = make(map[protocol.ID]rcmgr.ResourceLimits)
		}
		partial.Protocol[proto] = protocols
	}
	loopback4, loopback6 := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")
	s.ResourceManager, err = rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(partial.Build(limits.Scale(0, 2*maxConns))),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithNetworkPrefixLimit(
			[]rcmgr.NetworkPrefixLimit{{Network: loopback4, ConnCount: math.MaxInt}},
			[]rcmgr.NetworkPrefixLimit{{Network: loopback6, ConnCount: math.MaxInt}}),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: maxConnsPerAddress}},
			// A /64 is a LAN: as many as the host takes.
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 128, ConnCount: maxConnsPerAddress}, {PrefixLength: 56, ConnCount: maxConns}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{{Prefix: loopback4}, {Prefix: loopback6}},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: connRate, Burst: connBurst}}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: rate.Limit{RPS: connRate, Burst: 2 * connBurst}}},
				GracePeriod:      addressForgotten,
			},
			GlobalLimit: rate.Limit{RPS: allConnRate, Burst: allConnBurst},
		}),
	)
	return s, err
}
