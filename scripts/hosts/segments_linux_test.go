package hosts

import (
	"fmt"
	"testing"
	"time"
)

// join gives the host a leg in another LAN as well.
func (h *Host) join(t *testing.T, l *LAN, iface, addr string) {
	t.Helper()
	port := fmt.Sprintf("guest%d", lans.Add(1)) // of any number that is not taken
	for _, args := range [][]string{
		{"-n", l.bridge(), "link", "add", port, "type", "veth", "peer", "name", iface, "netns", h.Namespace},
		{"-n", l.bridge(), "link", "set", port, "master", "br0", "up"},
		{"-n", h.Namespace, "addr", "add", addr, "dev", iface},
		{"-n", h.Namespace, "link", "set", iface, "up"},
	} {
		if err := ip(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSegments: A and C are on two networks and never meet; B is on both, forwards no packet and relays nothing, and is in the room.
func TestSegments(t *testing.T) {
	t.Parallel()
	one, two := lan(t, 2), lan(t, 1)
	hostA, hostB, hostC := one.Hosts[0], one.Hosts[1], two.Hosts[0]
	hostC.in(t, "ip", "addr", "flush", "dev", "eth0")
	hostC.in(t, "ip", "addr", "add", "10.78.0.3/24", "dev", "eth0")
	hostB.join(t, two, "eth1", "10.78.0.2/24")
	hostB.in(t, "sysctl", "-qw", "net.ipv4.ip_forward=0")
	flags := []string{"--rate-limits=false"}
	fileA, fileB, fileC := hostA.start(t, flags...), hostB.start(t, flags...), hostC.start(t, flags...)
	a, b, c := sdkClient(t, hostA), nioClient(t, hostB), sdkClient(t, hostC)
	a.enter(fileA, "alice", false)
	b.enter(fileB, "bob", false)
	c.enter(fileC, "carol", false)
	eventually(t, 10*time.Second, "B connected to both", func() bool { return connected(t, hostB, fileA.PeerID, fileC.PeerID) })

	room := meet(t, a, b, args{"name": "Harbour"})
	b.do("invite", args{"room": room, "user": c.User}, nil)
	c.do("waitInvite", args{"room": room}, nil)
	c.do("join", args{"room": room, "via": []string{string(fileB.ServerName)}}, nil)
	a.do("waitMember", args{"room": room, "user": c.User}, nil)
	took := bothWays(t, room, "across", a, c, 20, time.Minute)
	t.Logf("20 messages each way between A and C through B: %v", took.Round(time.Millisecond))
	a.do("state", args{"room": room, "type": "m.room.topic", "content": args{"topic": "by A"}}, nil)
	eventually(t, 20*time.Second, "equal state", equalState(t, room, hostA, hostB, hostC))

	// C is away when A speaks, and A is off when C is back: B brings it; and the other way round.
	for _, way := range []struct {
		from, to         *client
		origin, receiver *Host
	}{{a, c, hostA, hostC}, {c, a, hostC, hostA}} {
		if err := way.receiver.Cut(t.Context()); err != nil {
			t.Fatal(err)
		}
		prefix := "left by " + way.from.User
		way.from.sendMany(room, prefix, 10)
		b.waitMessages(room, prefix, 10)
		if err := way.origin.Cut(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := way.receiver.Mend(t.Context()); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		way.to.waitMessages(room, prefix, 10)
		t.Logf("what the absent origin had left with B came %v after the link", time.Since(back).Round(time.Millisecond))
		if err := way.origin.Mend(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	bothWays(t, room, "again", a, c, 5, time.Minute)

	// And off altogether: A's node has ended, C's starts afterwards.
	if err := hostC.Stop(); err != nil {
		t.Fatal(err)
	}
	a.sendMany(room, "last", 10)
	b.waitMessages(room, "last", 10)
	if err := hostA.Stop(); err != nil {
		t.Fatal(err)
	}
	late := newCurl(t, hostC, hostC.start(t, flags...))
	late.login("carol")
	took = eventually(t, 20*time.Second, "C has what the origin, which is off, has said", func() bool {
		return late.shows(room, "last 9") && late.shows(room, "last 0")
	})
	t.Logf("C has all that A said before it ended, %v after its start", took.Round(time.Millisecond))
	if connected(t, hostC, fileA.PeerID) {
		t.Error("A and C have met")
	}
}
