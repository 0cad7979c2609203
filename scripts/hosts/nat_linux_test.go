package hosts

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// home is a LAN behind a router that translates addresses and lets nothing in from outside that is no answer.
func home(t *testing.T, wide *LAN, subnet, outside string) (machine, router *Host) {
	t.Helper()
	l := lan(t, 2)
	machine, router = l.Hosts[0], l.Hosts[1]
	for i, h := range []*Host{router, machine} {
		h.withoutIPv6(t)
		h.in(t, "ip", "addr", "flush", "dev", "eth0")
		h.Addr = subnet + "." + string(rune('1'+i))
		h.in(t, "ip", "addr", "add", h.Addr+"/24", "dev", "eth0")
	}
	router.join(t, wide, "out", outside+"/24")
	machine.in(t, "ip", "route", "add", "default", "via", router.Addr)
	router.in(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	router.in(t, "nft", "table ip nat { chain post { type nat hook postrouting priority 100; oifname out masquerade; }; }")
	router.in(t, "nft", "table ip filter { chain passing { type filter hook forward priority 0; iifname out ct state new drop; };"+
		" chain arriving { type filter hook input priority 0; iifname out ct state new drop; }; }")
	return machine, router
}

// through says how a node reaches a peer: "relay", "direct", or "" if it does not.
func through(t *testing.T, h *Host, peer eventgraph.PeerID) string {
	t.Helper()
	for _, p := range h.status(t).Peers {
		if p.PeerID != peer {
			continue
		}
		if strings.Contains(p.Addr, "/p2p-circuit") {
			return "relay"
		}
		return "direct"
	}
	return ""
}

// TestNATs: two people, each behind a router that lets nothing in, share a room with a friend whose node relays. They talk through it, and
// where the routers let holes be made, directly soon; where they do not, it goes on through the relay.
func TestNATs(t *testing.T) {
	t.Parallel()
	for _, wall := range []bool{false, true} {
		name, want := "holes", "direct"
		if wall {
			name, want = "wall", "relay"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wide := lan(t, 1)
			friend := wide.Hosts[0]
			friend.withoutIPv6(t)
			friend.in(t, "ip", "addr", "flush", "dev", "eth0")
			friend.Addr = "11.7.0.3"
			friend.in(t, "ip", "addr", "add", friend.Addr+"/24", "dev", "eth0")
			hostA, routerA := home(t, wide, "192.168.1", "11.7.0.1")
			hostC, _ := home(t, wide, "192.168.2", "11.7.0.2")
			if wall {
				routerA.in(t, "nft", "table ip wall { chain passing { type filter hook forward priority -1; ip daddr 11.7.0.2 drop; }; }")
			}
			flags := []string{"--rate-limits=false", "--mdns=false"}
			fileR := friend.start(t, append(flags, "--relay")...)
			flags = append(flags, "--peer", addrOf(t, fileR, friend))
			fileA, fileC := hostA.start(t, flags...), hostC.start(t, flags...)
			r, a, c := newCurl(t, friend, fileR), sdkClient(t, hostA), nioClient(t, hostC)
			r.register("friend")
			a.enter(fileA, "alice", false)
			c.enter(fileC, "carol", false)
			eventually(t, 20*time.Second, "both connected to the friend", func() bool { return connected(t, friend, fileA.PeerID, fileC.PeerID) })
			room := r.create(a.User)
			if code := r.do("POST", "/rooms/"+room+"/invite", args{"user_id": c.User}, nil); code != 200 {
				t.Fatalf("invite: %d", code)
			}
			for _, who := range []*client{a, c} {
				who.do("waitInvite", args{"room": room}, nil)
				who.do("join", args{"room": room, "via": []string{string(fileR.ServerName)}}, nil)
			}
			a.do("waitMember", args{"room": room, "user": c.User}, nil)
			took := bothWays(t, room, "at once", a, c, 20, time.Minute)
			t.Logf("20 messages each way, right after the join: %v", took.Round(time.Millisecond))
			took = eventually(t, 90*time.Second, "A reaches C: "+want, func() bool { return through(t, hostA, fileC.PeerID) == want })
			t.Logf("A reaches C, %s, after another %v", want, took.Round(time.Millisecond))
			took = bothWays(t, room, "then", a, c, 20, time.Minute)
			t.Logf("20 messages each way: %v", took.Round(time.Millisecond))
		})
	}
}

// TestPrivateMeshOverheard: on a LAN with a private mesh and an open node, who listens on the bridge, and the open node, learn nothing of
// the private one: no peer ID, no server name, nothing said.
func TestPrivateMeshOverheard(t *testing.T) {
	t.Parallel()
	l := lan(t, 3)
	stop := l.tap(t)
	key := filepath.Join(t.TempDir(), "mesh.key")
	l.Hosts[0].in(t, binary, "mesh-key", key)
	hostA, hostB, outsider := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	flags := []string{"--rate-limits=false", "--mesh-key", key}
	fileA, fileB := hostA.start(t, flags...), hostB.start(t, flags...)
	fileC := outsider.start(t, "--peer", addrOf(t, fileA, hostA))
	a, b := sdkClient(t, hostA), nioClient(t, hostB)
	a.enter(fileA, "quellwasser", false)
	b.enter(fileB, "zaunkoenig", false)
	eventually(t, 10*time.Second, "the private nodes connected", func() bool { return connected(t, hostA, fileB.PeerID) })
	room := meet(t, a, b, args{"name": "Hafenbecken"})
	const body = "Morgenappell an der Muehle"
	sent := a.sendMany(room, body, 20)
	b.waitMessages(room, body, 20)
	if peers := outsider.status(t).Peers; len(peers) > 0 {
		t.Errorf("the outsider is connected to %v", peers)
	}
	got := stop()
	secrets := []string{room[1:], body, "Hafenbecken", "quellwasser", "zaunkoenig", string(fileA.ServerName), string(fileB.ServerName), string(fileA.PeerID),
		string(fileB.PeerID), sent[0].EventID[1:], "matrix", "m.room."}
	for _, s := range secrets {
		if i := bytes.Index(got.bytes, []byte(s)); i >= 0 {
			t.Errorf("%q is to be read on the bridge: %q", s, got.bytes[max(0, i-60):min(len(got.bytes), i+60)])
		}
	}
	if !bytes.Contains(got.bytes, []byte(fileC.PeerID)) {
		t.Error("the announcement of the open node by mDNS was not captured, so the rest proves nothing")
	}
	t.Logf("%d frames, none with any of %d secrets", got.frames, len(secrets))
}
