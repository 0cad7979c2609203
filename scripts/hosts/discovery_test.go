package hosts

import (
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// plexus runs a subcommand against the host's node and returns what it prints.
func (h *Host) plexus(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.Command(t.Context(), binary, append(args, "--data", h.Dir)...).CombinedOutput()
	if err != nil {
		t.Fatalf("plexus %s on host %d: %v: %s", args[0], h.number, err, out)
	}
	return string(out)
}

// linkIn is the invite link in the output of plexus invite.
func linkIn(out string) string {
	_, rest, _ := strings.Cut(out, "matrix:")
	line, _, _ := strings.Cut(rest, "\n")
	return "matrix:" + line
}

// TestInviteLinksAndMoving: nodes that look for nobody come together by a link; two of them that know only the third find each other through
// it; and when one comes back elsewhere, on another port, it finds the third by its address book, and the third tells the other.
func TestInviteLinksAndMoving(t *testing.T) {
	l := lan(t, 3)
	hostA, hostB, hostC := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	fileA, fileB := hostA.start(t, "--mdns=false"), hostB.start(t, "--mdns=false")
	fileC := hostC.start(t, "--mdns=false")
	bob := newCurl(t, hostB, fileB)
	bob.register("bob")
	newCurl(t, hostA, fileA).register("alice")
	newCurl(t, hostC, fileC).register("carol")
	var made struct {
		Room eventgraph.RoomID `json:"room_id"`
	}
	if code := bob.do("POST", "/createRoom", args{"preset": "public_chat", "name": "Harbour"}, &made); code != 200 {
		t.Fatalf("createRoom: %d", code)
	}
	link := linkIn(hostB.plexus(t, "invite", "--room", string(made.Room), "--qr=false"))
	for user, h := range map[string]*Host{"alice": hostA, "carol": hostC} {
		if out := h.plexus(t, "join", link, "--user", user); !strings.HasPrefix(out, "joined") {
			t.Fatalf("join of %s: %s", user, out)
		}
	}
	took := eventually(t, 20*time.Second, "a and c connected, through b", func() bool { return connected(t, hostA, fileC.PeerID) })
	t.Logf("a and c connected after %v", took)

	if err := hostC.Stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "c is gone", func() bool { return !connected(t, hostA, fileC.PeerID) && !connected(t, hostB, fileC.PeerID) })
	const moved = "10.77.0.200"
	for _, change := range [][]string{{"addr", "flush", "dev", "eth0"}, {"addr", "add", moved + "/24", "dev", "eth0"}} {
		if out, err := hostC.Command(t.Context(), "ip", change...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", change, err, out)
		}
	}
	// c knows a, and must not be the one that finds the other: nothing that it begins reaches a.
	if out, err := hostC.Command(t.Context(), "nft", "add table ip one; add chain ip one way { type filter hook output priority 0; }; "+
		"add rule ip one way ip daddr "+hostA.Addr+" ct state new drop").CombinedOutput(); err != nil {
		t.Skipf("no connection tracking by nft: %v: %s", err, out)
	}
	hostC.start(t, "--mdns=false")
	eventually(t, 5*time.Second, "c and b connected again, by c's address book", func() bool { return connected(t, hostB, fileC.PeerID) })
	took = eventually(t, 15*time.Second, "a and c connected again", func() bool {
		for _, p := range hostA.status(t).Peers {
			if p.PeerID == fileC.PeerID && strings.HasPrefix(p.Addr, "/ip4/"+moved+"/") {
				return true
			}
		}
		return false
	})
	t.Logf("a and c connected %v after b met c", took)
}
