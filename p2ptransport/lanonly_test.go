package p2ptransport

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

func TestLocalAddr(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"/ip4/127.0.0.1/tcp/1":                              true,
		"/ip4/10.255.0.1/udp/1/quic-v1":                     true,
		"/ip4/172.16.0.1/tcp/1":                             true,
		"/ip4/172.31.255.255/tcp/1":                         true,
		"/ip4/192.168.7.7/tcp/1/ws":                         true,
		"/ip4/169.254.1.1/tcp/1":                            true,
		"/ip6/fd00::1/tcp/1":                                true,
		"/ip6/::1/tcp/1":                                    true,
		"/ip6zone/eth0/ip6/fe80::1/udp/1/quic-v1":           true,
		"/ip6/::ffff:192.168.1.1/tcp/1":                     true,
		"/p2p/" + peerA + "/p2p-circuit":                    true,
		"/ip4/10.0.0.1/tcp/1/p2p/" + peerA + "/p2p-circuit": true,
		"/ip4/8.8.8.8/tcp/1":                                false,
		"/ip4/8.8.8.8/tcp/1/p2p/" + peerA + "/p2p-circuit":  false,
		"/ip4/172.32.0.1/tcp/1":                             false,
		"/ip4/172.15.255.255/tcp/1":                         false,
		"/ip4/192.169.0.1/tcp/1":                            false,
		"/ip4/100.64.0.1/tcp/1":                             false,
		"/ip4/11.0.0.1/udp/1/quic-v1":                       false,
		"/ip4/255.255.255.255/tcp/1":                        false,
		"/ip4/0.0.0.0/tcp/1":                                false,
		"/ip6/2001:db8::1/tcp/1":                            false,
		"/ip6/::ffff:8.8.8.8/tcp/1":                         false,
		"/ip6/64:ff9b::808:808/tcp/1":                       false,
		"/dns4/localhost/tcp/1":                             false,
		"/dns/example.org/tcp/443/wss":                      false,
		"/dnsaddr/example.org":                              false,
		"/p2p-circuit":                                      false,
	} {
		if got := localAddr(ma.StringCast(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if !localAddr(disguise(ma.StringCast("/ip6zone/eth0/ip6/fe80::1/udp/1/quic-v1"))) {
		t.Error("a disguised link-local address")
	}
}

// TestLANOnlyDials: no address outside is dialled, wherever it comes from, no name is looked up, and no such address is told.
func TestLANOnlyDials(t *testing.T) {
	t.Parallel()
	h := start(t, Config{LANOnly: true, StaticPeers: []string{"/ip4/203.0.114.1/udp/4001/quic-v1/p2p/" + peerA}})
	for _, addr := range []string{
		"/ip4/203.0.114.1/tcp/4001", "/ip4/203.0.114.1/udp/4001/quic-v1", "/ip4/203.0.114.1/tcp/80/ws", "/ip6/2606::1/udp/4001/quic-v1",
		"/dns4/localhost/tcp/4001", "/dns/localhost/udp/4001/quic-v1", "/dnsaddr/localhost", "/dns4/localhost/tcp/443/tls/ws",
		"/ip4/203.0.114.1/tcp/4001/p2p/" + peerA + "/p2p-circuit",
	} {
		other := start(t, Config{}).ID()
		began := time.Now()
		h.AddAddrs(other, []string{addr}) // as an announcement or a peer's own words do
		if err := h.AddPeer(t.Context(), addr+"/p2p/"+string(other)); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", addr, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: refused after %v: something was tried", addr, took)
		}
	}
	near := start(t, Config{})
	connect(t, h, near)
	told := h.published([]ma.Multiaddr{ma.StringCast("/ip4/203.0.114.9/udp/1/quic-v1"), ma.StringCast("/ip4/10.0.0.9/udp/1/quic-v1")})
	if len(told) != 1 || !strings.HasPrefix(told[0].String(), "/ip4/10.0.0.9/") {
		t.Errorf("told: %v", told)
	}
	if slices.ContainsFunc(h.Peers(), func(p Peer) bool { return p.ID != near.ID() }) {
		t.Errorf("peers: %v", h.Peers())
	}
}

// TestLANOnlyTransports: the guards leave connections on this side of the border as they are.
func TestLANOnlyTransports(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{loopback, "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip6/::1/tcp/0", "/ip6/::1/udp/0/quic-v1"} {
		if strings.HasPrefix(listen, "/ip6/") {
			l, err := net.Listen("tcp", "[::1]:0")
			if err != nil {
				continue // no IPv6 here
			}
			_ = l.Close()
		}
		a, b := start(t, Config{LANOnly: true, Listen: []string{listen}}), start(t, Config{LANOnly: true, Listen: []string{listen}})
		connect(t, a, b)
		eventually(t, listen+": connected", func() bool { return b.isConnected(a.host.ID()) })
	}
}

// TestLocalUDP: a packet for outside is dropped before the system sees it, and one for this side is not.
func TestLocalUDP(t *testing.T) {
	t.Parallel()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	c := localUDP{u}
	// From a loopback address the system would refuse to send there: no error means that it was not asked.
	outside := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.114.1:9"))
	if n, err := c.WriteTo([]byte("x"), outside); n != 1 || err != nil {
		t.Errorf("WriteTo outside: %d, %v", n, err)
	}
	if n, _, err := c.WriteMsgUDP([]byte("x"), nil, outside); n != 1 || err != nil {
		t.Errorf("WriteMsgUDP outside: %d, %v", n, err)
	}
	for range 2 {
		if _, err := c.WriteTo([]byte("x"), u.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadFrom(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	_ = u.Close()
	if _, err := c.WriteTo([]byte("x"), u.LocalAddr()); err == nil {
		t.Error("a packet for this side did not reach the socket")
	}
}
