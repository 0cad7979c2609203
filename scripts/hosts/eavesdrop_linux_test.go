package hosts

import (
	"bytes"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plexus-p2p/plexus/node"
)

// tapped is every frame that passes the bridge of a LAN.
type tapped struct {
	bytes  []byte
	frames int
	lost   int
}

// capturedBytes bounds what is kept of a capture.
const capturedBytes = 256 << 20

// tap records what passes the bridge until the returned function is called.
func (l *LAN) tap(t *testing.T) (stop func() *tapped) {
	t.Helper()
	const allProtocols = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // network order
	fd := -1
	if err := inNamespace(l.bridge(), func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, allProtocols) // of all ports
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	got := &tapped{}
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<17) // of large sends that no hardware has cut into packets yet
		for !ended.Load() {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil || n <= 0 {
				continue
			}
			got.frames++
			if len(got.bytes)+n < capturedBytes {
				got.bytes = append(append(got.bytes, buf[:n]...), 0)
			} else {
				got.lost++
			}
		}
		if stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			got.lost += int(stats.Drops)
		}
		unix.Close(fd)
	}()
	var once sync.Once
	stop = func() *tapped {
		once.Do(func() { ended.Store(true); <-done })
		return got
	}
	t.Cleanup(func() { stop() })
	return stop
}

// TestEavesdropper listens on the bridge to everything that two nodes and then a third do: they find each other, invite, join, talk
// in a room that is not encrypted, and join by an invite link. Nothing of it is to be read there.
func TestEavesdropper(t *testing.T) {
	t.Parallel()
	l := lan(t, 3)
	stop := l.tap(t)
	hostA, hostB, hostC := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	fileA, fileB := hostA.start(t, "--rate-limits=false"), hostB.start(t, "--rate-limits=false")
	a, b := sdkClient(t, hostA), nioClient(t, hostB)
	a.enter(fileA, "quellwasser", false)
	b.enter(fileB, "zaunkoenig", false)
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, hostA, fileB.PeerID) })
	room := meet(t, a, b, args{"name": "Hafenbecken"})
	a.do("state", args{"room": room, "type": "m.room.topic", "content": args{"topic": "Schleusenwaerter"}}, nil)
	const body = "Morgenappell an der Muehle"
	sentA, sentB := a.sendMany(room, body, 30), b.sendMany(room, body+", ja", 30)
	b.waitMessages(room, body, 30)
	a.waitMessages(room, body+", ja", 30)

	link := linkIn(hostB.plexus(t, "invite", "--room", room, "--qr=false"))
	fileC := hostC.start(t, "--mdns=false")
	newCurl(t, hostC, fileC).register("dritter.mann")
	a.do("invite", args{"room": room, "user": "@dritter.mann:" + string(fileC.ServerName)}, nil)
	if out := hostC.plexus(t, "join", link, "--user", "dritter.mann"); !strings.HasPrefix(out, "joined") {
		t.Fatalf("join by the link: %s", out)
	}
	b.do("waitMember", args{"room": room, "user": "@dritter.mann:" + string(fileC.ServerName)}, nil)
	got := stop()

	secrets := []string{room, room[1:], body, "Hafenbecken", "Schleusenwaerter", "quellwasser", "zaunkoenig", "dritter.mann", "m.room.", "org.matrix.",
		string(fileA.ServerName), string(fileB.ServerName), string(fileC.ServerName)}
	for _, s := range append(sentA, sentB...) {
		secrets = append(secrets, s.EventID, s.EventID[1:])
	}
	if _, token, ok := strings.Cut(link, "token="); ok {
		token, _, _ = strings.Cut(token, "&")
		secrets = append(secrets, token)
	} else {
		t.Errorf("no token in the link %s", link)
	}
	for _, s := range secrets {
		if i := bytes.Index(got.bytes, []byte(s)); i >= 0 {
			t.Errorf("%q is to be read on the bridge: %q", s, got.bytes[max(0, i-60):min(len(got.bytes), i+60)])
		}
	}
	if !bytes.Contains(got.bytes, []byte(fileA.PeerID)) {
		t.Error("the announcement of A by mDNS was not captured, so the rest proves nothing")
	}
	if got.lost > 0 {
		t.Errorf("%d frames were not looked at", got.lost)
	}
	t.Logf("%d frames, %d kB, none with any of %d secrets", got.frames, len(got.bytes)>>10, len(secrets))
}

// TestBanned: after a ban is known to who sends, the banned one's node gets nothing more, neither sent nor when it asks.
func TestBanned(t *testing.T) {
	t.Parallel()
	l := lan(t, 3)
	var clients []*client
	var last *node.NodeFile
	for i, h := range l.Hosts {
		file := h.start(t, "--rate-limits=false")
		c := []func(*testing.T, *Host) *client{sdkClient, nioClient, sdkClient}[i](t, h)
		c.enter(file, []string{"alice", "bob", "mallory"}[i], false)
		clients, last = append(clients, c), file
	}
	a, b, m := clients[0], clients[1], clients[2]
	room := meet(t, a, b, args{"name": "Harbour"})
	a.do("invite", args{"room": room, "user": m.User}, nil)
	m.do("waitInvite", args{"room": room}, nil)
	m.do("join", args{"room": room}, nil)
	b.do("waitMember", args{"room": room, "user": m.User}, nil)
	a.do("send", args{"room": room, "body": "before 0"}, nil)
	m.waitMessages(room, "before", 1)

	a.do("state", args{"room": room, "type": "m.room.member", "key": m.User, "content": args{"membership": "ban"}}, nil)
	m.do("waitMember", args{"room": room, "user": m.User, "membership": "ban"}, nil) // the removal itself is for the removed
	eventually(t, 20*time.Second, "B knows of the ban", equalState(t, room, l.Hosts[0], l.Hosts[1]))
	after := append(a.sendMany(room, "after a", 20), b.sendMany(room, "after b", 20)...)
	a.waitMessages(room, "after b", 20)
	b.waitMessages(room, "after a", 20)

	// Its node asks: by its own client's eyes, and after a fresh start, which meets everybody anew.
	look := newCurl(t, l.Hosts[2], last)
	for round := range 2 {
		if round == 1 {
			if err := l.Hosts[2].Stop(); err != nil {
				t.Fatal(err)
			}
			look.node = l.Hosts[2].start(t, "--rate-limits=false")
			eventually(t, 20*time.Second, "it has met both again", func() bool { return len(l.Hosts[2].status(t).Peers) == 2 })
		}
		look.login("mallory")
		for _, s := range after {
			if look.has(room, s.EventID) {
				t.Errorf("the banned server has %s", s.EventID)
			}
		}
		for _, dir := range []string{"b", "f"} {
			var page struct {
				Chunk []struct {
					ID string `json:"event_id"`
				}
			}
			if code := look.do("GET", "/rooms/"+room+"/messages?limit=100&dir="+dir, nil, &page); code != 200 && code != 403 {
				t.Errorf("/messages: %d", code)
			}
			for _, e := range page.Chunk {
				for _, s := range after {
					if e.ID == s.EventID {
						t.Errorf("the banned server shows %s", e.ID)
					}
				}
			}
		}
	}
	var shown struct{ Messages []message }
	if err := m.call(t.Context(), "waitMessages", args{"room": room, "prefix": "after", "count": 1, "timeout": 1000}, &shown); err == nil {
		t.Errorf("the banned one's client shows %v", shown.Messages)
	}
	t.Logf("none of %d events of after the ban is at the banned server", len(after))
}
