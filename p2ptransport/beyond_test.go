//go:build linux

package p2ptransport_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// link joins a namespace to the LAN by an interface with an address.
func (l *lan) link(ns, iface, addr string) {
	l.t.Helper()
	l.count++
	port := fmt.Sprintf("port%d", l.count)
	l.ip("-n", l.bridge(), "link", "add", port, "type", "veth", "peer", "name", iface, "netns", ns)
	l.ip("-n", l.bridge(), "link", "set", port, "master", "br0", "up")
	l.ip("-n", ns, "addr", "add", addr, "dev", iface)
	l.ip("-n", ns, "link", "set", iface, "up")
}

// bare adds a machine without an interface but loopback.
func (l *lan) bare() *machine {
	l.t.Helper()
	l.count++
	m := &machine{l: l, ns: fmt.Sprintf("%s-%d", l.prefix, l.count)}
	l.ip("netns", "add", m.ns)
	l.t.Cleanup(func() { l.ip("netns", "del", m.ns) })
	l.ip("-n", m.ns, "link", "set", "lo", "up")
	return m
}

// in runs a command in the machine's namespace.
func (m *machine) in(args ...string) {
	m.l.t.Helper()
	m.l.ip(append([]string{"netns", "exec", m.ns}, args...)...)
}

// relayed asks a node how it reaches a peer until the answer is the wanted one.
func (p *process) relayed(within time.Duration, peer, want string) {
	p.t.Helper()
	for end := time.Now().Add(within); ; {
		if _, err := fmt.Fprintln(p.stdin, "relay", peer); err != nil {
			p.t.Fatal(err)
		}
		l := p.next(5 * time.Second)
		for l.Relay == "" {
			l = p.next(5 * time.Second)
		}
		if l.Relay == want {
			p.t.Logf("through a relay: %s", want)
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("reached through a relay: %s, want %s", l.Relay, want)
		}
		// The connection may change at any moment, and nothing tells: ask again with the next event or after a while.
		select {
		case <-p.lines:
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// TestRelayBetweenLANs: A and C are on two LANs without a route between them, B is on both. They talk through B, though nobody has
// told them how the other is found.
func TestRelayBetweenLANs(t *testing.T) {
	t.Parallel()
	one, two := newLAN(t), newLAN(t)
	a, b, c := one.bare(), one.bare(), two.bare()
	one.link(a.ns, "eth0", "10.78.1.1/24")
	one.link(b.ns, "eth0", "10.78.1.2/24")
	two.link(b.ns, "eth1", "10.78.2.2/24")
	two.link(c.ns, "eth0", "10.78.2.3/24")
	pa, pb, pc := a.start(seed(t)), b.start(seed(t), "relay"), c.start(seed(t))
	pa.awaitPeer(5*time.Second, pb.ID)
	pc.awaitPeer(5*time.Second, pb.ID)
	pa.get(8*time.Second, pc.ID)
	pc.get(2*time.Second, pa.ID)
	pa.relayed(time.Second, pc.ID, "yes")

	// A way between the LANs appears: they take it.
	two.link(a.ns, "eth1", "10.78.2.1/24")
	pa.relayed(15*time.Second, pc.ID, "no")
	pa.get(2*time.Second, pc.ID)
}

// nats is a network with public addresses, on it a relay, and A and C each behind an address translator.
type nats struct{ relay, a, c, aRouter, cRouter *machine }

func newNATs(t *testing.T) nats {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft command")
	}
	wide, homeA, homeC := newLAN(t), newLAN(t), newLAN(t)
	n := nats{wide.bare(), homeA.bare(), homeC.bare(), wide.bare(), wide.bare()}
	wide.link(n.relay.ns, "eth0", "11.7.0.3/24")
	for i, h := range []struct {
		home        *lan
		m, router   *machine
		in, outside string
	}{{homeA, n.a, n.aRouter, "192.168.1", "11.7.0.1"}, {homeC, n.c, n.cRouter, "192.168.2", "11.7.0.2"}} {
		wide.link(h.router.ns, "out", h.outside+"/24")
		h.home.link(h.router.ns, "in", h.in+".1/24")
		h.home.link(h.m.ns, "eth0", h.in+".2/24")
		h.home.ip("-n", h.m.ns, "route", "add", "default", "via", h.in+".1")
		h.router.in("sysctl", "-qw", "net.ipv4.ip_forward=1")
		out, err := exec.Command("ip", "netns", "exec", h.router.ns, "nft", "table ip nat { chain post { type nat hook postrouting priority 100; oifname out masquerade; }; }").CombinedOutput()
		if err != nil {
			t.Skipf("no address translation in router %d: %v: %s", i, err, out)
		}
		// From outside only answers come in, and what is no answer is not refused, as with home routers.
		h.router.in("nft", "table ip filter { chain passing { type filter hook forward priority 0; iifname out ct state new drop; };"+
			" chain arriving { type filter hook input priority 0; iifname out ct state new drop; }; }")
	}
	return n
}

// overQUIC is the node's QUIC address with an IP.
func (p *process) overQUIC(ip string) string {
	p.t.Helper()
	for _, a := range p.Addrs {
		if strings.HasPrefix(a, "/ip4/"+ip+"/udp/") {
			return a
		}
	}
	p.t.Fatalf("no QUIC address in %v", p.Addrs)
	return ""
}

// TestNATs: both nodes behind NAT reach each other through a relay that is a friend of both, and then through the holes that
// they punch.
func TestNATs(t *testing.T) {
	t.Parallel()
	n := newNATs(t)
	relay := n.relay.start(seed(t), "relay", "nomdns")
	at := relay.overQUIC("11.7.0.3")
	a, c := n.a.start(seed(t), "nomdns", at), n.c.start(seed(t), "nomdns", at)
	a.awaitPeer(5*time.Second, relay.ID)
	c.awaitPeer(5*time.Second, relay.ID)
	a.get(8*time.Second, c.ID)
	a.relayed(20*time.Second, c.ID, "no")
	a.get(2*time.Second, c.ID)
	c.get(2*time.Second, a.ID)
}

// publishes waits until a node tells others an address that begins so, and returns all that it tells.
func (p *process) publishes(within time.Duration, prefix string) []string {
	p.t.Helper()
	for end := time.Now().Add(within); ; {
		if _, err := fmt.Fprintln(p.stdin, "addrs"); err != nil {
			p.t.Fatal(err)
		}
		l := p.next(5 * time.Second)
		for l.Addrs == nil {
			l = p.next(5 * time.Second)
		}
		if slices.ContainsFunc(l.Addrs, func(a string) bool { return strings.HasPrefix(a, prefix) }) {
			return l.Addrs
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s is not told: %q", prefix, l.Addrs)
		}
		select {
		case <-p.lines:
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// TestForwardedPort: where the router forwards a port the node finds out that it is reached there, by a relay that dials it, and tells others;
// where it does not, it tells nothing.
func TestForwardedPort(t *testing.T) {
	t.Parallel()
	n := newNATs(t)
	n.aRouter.in("nft", "table ip forward { chain arriving { type nat hook prerouting priority -100; iifname out udp dport 4001 dnat to 192.168.1.2; }; }")
	n.aRouter.in("nft", "insert rule ip filter passing iifname out udp dport 4001 accept")
	relay := n.relay.start(seed(t), "relay", "nomdns")
	at := relay.overQUIC("11.7.0.3")
	a, c := n.a.start(seed(t), "nomdns", "port=4001", at), n.c.start(seed(t), "nomdns", "port=4001", at)
	a.awaitPeer(5*time.Second, relay.ID)
	c.awaitPeer(5*time.Second, relay.ID)
	for _, addr := range a.publishes(15*time.Second, "/ip4/11.7.0.1/udp/4001/quic-v1/p2p/") {
		if strings.HasPrefix(addr, "/ip4/11.7.0.1/tcp") {
			t.Errorf("a port that is not forwarded is told: %s", addr)
		}
	}
	c.await(20*time.Second, "an answer", func(l line) bool {
		return strings.Contains(l.Outside, "/ip4/11.7.0.2/udp/4001/quic-v1") && strings.Contains(l.Outside, "reachable=false")
	})
	for _, addr := range c.publishes(8*time.Second, "/ip4/11.7.0.3/") { // through the relay
		if strings.HasPrefix(addr, "/ip4/11.7.0.2/") {
			t.Errorf("told without being reachable: %s", addr)
		}
	}
}

// TestNATsThatDoNotLetThrough: where no hole can be made the relay carries it all.
func TestNATsThatDoNotLetThrough(t *testing.T) {
	t.Parallel()
	n := newNATs(t)
	n.aRouter.in("nft", "table ip wall { chain passing { type filter hook forward priority -1; ip daddr 11.7.0.2 drop; }; }")
	relay := n.relay.start(seed(t), "relay", "nomdns")
	at := relay.overQUIC("11.7.0.3")
	a, c := n.a.start(seed(t), "nomdns", at), n.c.start(seed(t), "nomdns", at)
	a.awaitPeer(5*time.Second, relay.ID)
	c.awaitPeer(5*time.Second, relay.ID)
	a.get(8*time.Second, c.ID)
	c.get(2*time.Second, a.ID)
	a.relayed(time.Second, c.ID, "yes")
}

// TestPrivateBesideOpen: on one LAN an open mesh and two private ones find their own and nobody else.
func TestPrivateBesideOpen(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	key := hex.EncodeToString(p2ptransport.NewMeshKey()[:])
	other := hex.EncodeToString(p2ptransport.NewMeshKey()[:])
	var nodes []*process
	for _, args := range [][]string{{"mesh=" + key}, {}, {"mesh=" + other}, {"mesh=" + key}, {}, {"mesh=" + other}} {
		nodes = append(nodes, l.machine(true).start(seed(t), args...))
	}
	for i, n := range nodes {
		own := nodes[(i+3)%6]
		n.await(6*time.Second, "its own", func(l line) bool {
			if l.Peer != "" && l.Peer != own.ID {
				t.Errorf("node %d knows %s", i, l.Peer)
			}
			return l.Peer == own.ID && l.Connected
		})
		n.get(2*time.Second, own.ID)
	}
	for i, n := range nodes {
		for j, o := range nodes {
			if i%3 != j%3 {
				n.relayed(time.Second, o.ID, "away")
			}
		}
	}
	// Not even told the address.
	asker := l.machine(true).start(seed(t), "nomdns", nodes[0].Addrs[0])
	if _, err := fmt.Fprintln(asker.stdin, "get", nodes[0].ID); err != nil {
		t.Fatal(err)
	}
	asker.await(12*time.Second, "refusal", func(l line) bool { return l.Answer == "failed" })
	nodes[0].relayed(time.Second, asker.ID, "away")
}

// sniff tells of each IP packet that leaves this machine for an address outside, until stdin ends.
func sniff() {
	local := []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/24"),
		netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("ff02::/16"), netip.MustParsePrefix("::1/128"),
	}
	const all, outgoing = 0x0300, 4 // ETH_P_ALL in network order, PACKET_OUTGOING
	s, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM, all)
	if err != nil {
		panic(err)
	}
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(line{ID: "sniffing"})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := syscall.Recvfrom(s, buf, 0)
		if err != nil {
			panic(err)
		}
		ll, ok := from.(*syscall.SockaddrLinklayer)
		if !ok || ll.Pkttype != outgoing || n < 40 && (n < 20 || buf[0]>>4 != 4) {
			continue
		}
		var to netip.Addr
		switch buf[0] >> 4 {
		case 4:
			to = netip.AddrFrom4([4]byte(buf[16:20]))
		case 6:
			to = netip.AddrFrom16([16]byte(buf[24:40]))
		default:
			continue
		}
		if !containsAny(local, to) {
			_ = out.Encode(line{Outside: fmt.Sprintf("%s, protocol %d", to, buf[9])})
		}
	}
}

func containsAny(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// TestLANOnlySendsNothingOutside: a node that is given addresses outside, names, and calls from outside sends no packet there, while
// it talks to its LAN. Without LANOnly it does, which shows that the test sees it.
func TestLANOnlySendsNothingOutside(t *testing.T) {
	t.Parallel()
	for _, lanOnly := range []bool{true, false} {
		t.Run(fmt.Sprint(lanOnly), func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			m, gateway, near := l.machine(true), l.machine(true), l.machine(true)
			// The gateway is everything outside: it answers as 8.7.6.5, and calls from there.
			l.ip("-n", gateway.ns, "addr", "add", "8.7.6.5/32", "dev", "lo")
			l.ip("-n", gateway.ns, "route", "replace", "10.77.0.0/24", "dev", "eth0", "src", "8.7.6.5")
			l.ip("-n", m.ns, "route", "add", "default", "via", "10.77.0.2")
			etc := filepath.Join("/etc/netns", m.ns)
			if err := os.MkdirAll(etc, 0o755); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(etc) })
			if err := os.WriteFile(filepath.Join(etc, "resolv.conf"), []byte("nameserver 8.7.6.5\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			sniffer := m.start("00", "sniff")
			friend := near.start(seed(t))
			nobody := "/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
			args := []string{
				"/ip4/8.7.6.5/tcp/4001" + nobody, "/ip4/8.7.6.5/udp/4001/quic-v1" + nobody, "/ip4/8.7.6.5/tcp/80/ws" + nobody,
				"/dns4/plexus.example/tcp/4001" + nobody, "/dnsaddr/plexus.example" + nobody,
			}
			if lanOnly {
				args = append(args, "lanonly")
			}
			node := m.start(seed(t), args...)
			node.awaitPeer(5*time.Second, friend.ID)
			node.get(2*time.Second, friend.ID)
			var calls []string
			for _, a := range node.Addrs {
				if strings.HasPrefix(a, "/ip4/10.77.") {
					calls = append(calls, a)
				}
			}
			caller := gateway.start(seed(t), append([]string{"nomdns"}, calls...)...)
			if !lanOnly {
				caller.awaitPeer(5*time.Second, node.ID)
				sniffer.await(5*time.Second, "a packet outside", func(l line) bool { return l.Outside != "" })
				return
			}
			if _, err := fmt.Fprintln(caller.stdin, "get", node.ID); err != nil {
				t.Fatal(err)
			}
			caller.await(12*time.Second, "no answer", func(l line) bool { return l.Answer == "failed" })
			node.get(2*time.Second, friend.ID)
			select {
			case l := <-sniffer.lines:
				t.Errorf("a packet to %s", l.Outside)
			default:
			}
		})
	}
}
