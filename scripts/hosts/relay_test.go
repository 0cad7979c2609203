package hosts

import (
	"path/filepath"
	"testing"
	"time"
)

// apart makes it impossible for two hosts to send each other anything but multicast.
func apart(t *testing.T, l *LAN, a, b *Host) {
	t.Helper()
	for _, h := range l.Hosts {
		if out, err := h.Command(t.Context(), "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1").CombinedOutput(); err != nil {
			t.Fatalf("sysctl: %v: %s", err, out)
		}
	}
	for from, to := range map[*Host]*Host{a: b, b: a} {
		if out, err := from.Command(t.Context(), "ip", "route", "add", "blackhole", to.Addr+"/32").CombinedOutput(); err != nil {
			t.Fatalf("ip route: %v: %s", err, out)
		}
	}
}

// TestRelay: two hosts that cannot reach each other share a room with a third that relays. They are connected through it, and a
// message takes that way.
func TestRelay(t *testing.T) {
	l := lan(t, 3)
	hostA, hostB, hostC := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	apart(t, l, hostA, hostC)
	fileA, fileB, fileC := hostA.start(t), hostB.start(t, "--relay"), hostC.start(t)
	a, b, c := newCurl(t, hostA, fileA), newCurl(t, hostB, fileB), newCurl(t, hostC, fileC)
	a.register("alice")
	b.register("bob")
	c.register("carol")
	eventually(t, 10*time.Second, "A and C connected to B", func() bool {
		return connected(t, hostB, fileA.PeerID) && connected(t, hostB, fileC.PeerID)
	})
	alice, carol := "@alice:"+string(fileA.ServerName), "@carol:"+string(fileC.ServerName)
	room := b.create(alice)
	if code := b.do("POST", "/rooms/"+room+"/invite", args{"user_id": carol}, nil); code != 200 {
		t.Fatalf("invite: %d", code)
	}
	for _, who := range []*curl{a, c} {
		eventually(t, 15*time.Second, "joined", func() bool {
			return who.do("POST", "/join/"+room+"?via="+string(fileB.ServerName), args{}, nil) == 200
		})
	}
	event := a.send(room, "1", "through the relay")
	took := eventually(t, 30*time.Second, "C has the message", func() bool { return c.has(room, event) })
	t.Logf("the first message took %v", took)
	eventually(t, 60*time.Second, "A and C are connected through B", func() bool {
		return connected(t, hostA, fileC.PeerID) && connected(t, hostC, fileA.PeerID)
	})
	event = c.send(room, "2", "and back")
	took = eventually(t, 10*time.Second, "A has the answer", func() bool { return a.has(room, event) })
	t.Logf("the answer took %v", took)
}

// TestPrivateMesh: nodes with a key beside nodes without, all on one LAN.
func TestPrivateMesh(t *testing.T) {
	l := lan(t, 4)
	key := filepath.Join(t.TempDir(), "mesh.key")
	if out, err := l.Hosts[0].Command(t.Context(), binary, "mesh-key", key).CombinedOutput(); err != nil {
		t.Fatalf("mesh-key: %v: %s", err, out)
	}
	fileA, fileB := l.Hosts[0].start(t, "--mesh-key", key), l.Hosts[1].start(t, "--mesh-key", key)
	fileC := l.Hosts[2].start(t)
	fileD := l.Hosts[3].start(t, "--peer", addrOf(t, fileA, l.Hosts[0]))
	eventually(t, discoveryLimit, "the private nodes connected", func() bool { return connected(t, l.Hosts[0], fileB.PeerID) })
	eventually(t, discoveryLimit, "the open nodes connected", func() bool { return connected(t, l.Hosts[2], fileD.PeerID) })
	for _, private := range l.Hosts[:2] {
		if connected(t, private, fileC.PeerID) || connected(t, private, fileD.PeerID) {
			t.Error("an open node is connected to a private one")
		}
	}
}
