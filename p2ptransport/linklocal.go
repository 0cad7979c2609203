package p2ptransport

import (
	"context"
	"encoding/hex"
	"net"
	"strings"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Where there is no router and no DHCP, machines have IPv6 link-local addresses and nothing else. libp2p's swarm
// refuses to dial those. So they pass through it in disguise, as a DNS name that no resolver is asked for,
//
//	/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1  →  /dns6/fe80…01.eth0.link-local.invalid/udp/4001/quic-v1
//
// and the QUIC transport below takes the disguise off.

const linkLocalSuffix = ".link-local.invalid"

// disguise turns link-local QUIC addresses with a zone into their disguise, and leaves others as they are.
func disguise(a ma.Multiaddr) ma.Multiaddr {
	if !manet.IsIP6LinkLocal(a) {
		return a
	}
	zone, err := a.ValueForProtocol(ma.P_IP6ZONE)
	if err != nil {
		return a
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return a
	}
	name, err := ma.NewComponent("dns6", hex.EncodeToString(ip.To16())+"."+zone+linkLocalSuffix)
	if err != nil {
		return a
	}
	_, afterZone := ma.SplitFirst(a)
	_, rest := ma.SplitFirst(afterZone)
	return name.Encapsulate(rest)
}

// undisguise is the reverse; ok is false for what is no disguise.
func undisguise(a ma.Multiaddr) (plain ma.Multiaddr, ok bool) {
	first, rest := ma.SplitFirst(a)
	if first == nil || rest == nil || first.Protocol().Code != ma.P_DNS6 {
		return nil, false
	}
	name, ok := strings.CutSuffix(first.Value(), linkLocalSuffix)
	if !ok {
		return nil, false
	}
	digits, zone, ok := strings.Cut(name, ".")
	ip, err := hex.DecodeString(digits)
	if !ok || err != nil || len(ip) != net.IPv6len || !net.IP(ip).IsLinkLocalUnicast() {
		return nil, false
	}
	z, err := ma.NewComponent("ip6zone", zone)
	if err != nil {
		return nil, false
	}
	host, err := ma.NewComponent("ip6", net.IP(ip).String())
	if err != nil {
		return nil, false
	}
	return ma.Join(z, host, rest), true
}

// resolver leaves the disguise alone.
type resolver struct{ network.MultiaddrDNSResolver }

func (r resolver) ResolveDNSComponent(ctx context.Context, a ma.Multiaddr, limit int) ([]ma.Multiaddr, error) {
	if _, ok := undisguise(a); ok {
		return []ma.Multiaddr{a}, nil
	}
	return r.MultiaddrDNSResolver.ResolveDNSComponent(ctx, a, limit)
}

// quic is libp2p's QUIC transport, which dials through the disguise too.
type quic struct{ transport.Transport }

func newQUIC(key crypto.PrivKey, m *quicreuse.ConnManager, psk pnet.PSK, gater connmgr.ConnectionGater, limits network.ResourceManager) (*quic, error) {
	t, err := libp2pquic.NewTransport(key, m, psk, gater, limits)
	if err != nil {
		return nil, err
	}
	return &quic{t}, nil
}

func (q *quic) CanDial(a ma.Multiaddr) bool {
	if plain, ok := undisguise(a); ok {
		_, afterZone := ma.SplitFirst(plain)
		return q.Transport.CanDial(afterZone)
	}
	return q.Transport.CanDial(a)
}

func (q *quic) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	if plain, ok := undisguise(a); ok {
		a = plain
	}
	return q.Transport.Dial(ctx, a, p)
}
