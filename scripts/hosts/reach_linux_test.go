package hosts

import (
	"strings"
	"testing"
	"time"
)

// TestLinkLocalOnly: a network on which there are no addresses but IPv6's link-local ones.
func TestLinkLocalOnly(t *testing.T) {
	t.Parallel()
	p := newPair(t, func(h *Host) { h.in(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global") })
	for _, peer := range p.hostA.status(t).Peers {
		if !strings.HasPrefix(peer.Addr, "/ip6/fe80") && !strings.HasPrefix(peer.Addr, "/ip6zone/") {
			t.Errorf("connected by %s", peer.Addr)
		}
	}
	took := bothWays(t, p.room, "link-local", p.a, p.b, 20, time.Minute)
	t.Logf("20 messages each way: %v", took.Round(time.Millisecond))
}

// TestInterfaceAdded: a machine gets another interface, into another network, while its node runs, and loses the first. It finds who is on
// the new one, and goes on with whom it knew there.
func TestInterfaceAdded(t *testing.T) {
	t.Parallel()
	p := newPair(t, func(h *Host) { h.withoutIPv6(t) })
	other := lan(t, 1)
	third := other.Hosts[0]
	third.in(t, "ip", "addr", "flush", "dev", "eth0")
	third.in(t, "ip", "addr", "add", "10.78.0.1/24", "dev", "eth0")
	file := third.start(t)
	p.hostA.join(t, other, "eth1", "10.78.0.2/24")
	took := eventually(t, movedLimit, "A has found who is on its new network", func() bool { return connected(t, p.hostA, file.PeerID) })
	t.Logf("found on the new interface after %v", took.Round(time.Millisecond))
	p.hostB.join(t, other, "eth1", "10.78.0.3/24")
	p.hostA.in(t, "ip", "link", "set", "eth0", "down")
	took = bothWays(t, p.room, "elsewhere", p.a, p.b, 5, time.Minute)
	t.Logf("5 messages each way over the new network, the old one gone: %v", took.Round(time.Millisecond))
	if took > movedLimit {
		t.Errorf("it took %v, more than %v", took, movedLimit)
	}
}

// TestInviteLinkElsewhere: a link made on one network, read on another that packets reach but no announcement does.
func TestInviteLinkElsewhere(t *testing.T) {
	t.Parallel()
	one, two := lan(t, 2), lan(t, 1)
	inviter, router, guest := one.Hosts[0], one.Hosts[1], two.Hosts[0]
	for _, h := range []*Host{inviter, guest} {
		h.withoutIPv6(t)
	}
	guest.in(t, "ip", "addr", "flush", "dev", "eth0")
	guest.in(t, "ip", "addr", "add", "10.78.0.3/24", "dev", "eth0")
	router.join(t, two, "eth1", "10.78.0.2/24")
	router.in(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	inviter.in(t, "ip", "route", "add", "default", "via", router.Addr)
	guest.in(t, "ip", "route", "add", "default", "via", "10.78.0.2")
	fileA, fileC := inviter.start(t), guest.start(t)
	alice := newCurl(t, inviter, fileA)
	alice.register("alice")
	newCurl(t, guest, fileC).register("carol")
	var made struct {
		Room string `json:"room_id"`
	}
	if code := alice.do("POST", "/createRoom", args{"preset": "public_chat", "name": "Harbour"}, &made); code != 200 {
		t.Fatalf("createRoom: %d", code)
	}
	out := inviter.plexus(t, "invite", "--room", made.Room)
	if !strings.ContainsAny(out, "█▀▄") {
		t.Errorf("no QR code in %q", out)
	}
	if connected(t, guest, fileA.PeerID) {
		t.Fatal("they know each other without the link")
	}
	began := time.Now()
	if out := guest.plexus(t, "join", linkIn(out), "--user", "carol"); !strings.HasPrefix(out, "joined") {
		t.Fatalf("join: %s", out)
	}
	t.Logf("joined by the link after %v", time.Since(began).Round(time.Millisecond))
	if !connected(t, guest, fileA.PeerID) {
		t.Error("joined, and not connected")
	}
}
