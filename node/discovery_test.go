package node_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// runOn runs a node on a network in memory, where nodes find nobody by themselves, until stop is called or the test ends.
func runOn(t *testing.T, net *memnet.Network, dir string, peers ...string) (n *node.Node, stop func()) {
	t.Helper()
	l := &logs{}
	n, err := node.Open(t.Context(), node.Config{
		Dir: dir, ClientAddrs: []string{"127.0.0.1:0"}, NoMDNS: true, Peers: peers, Registration: clientapi.RegistrationOpen, NoRateLimits: true,
		Log:       slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Transport: func(c p2ptransport.Config) (p2ptransport.Transport, error) { return net.Node(c) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-ended, n.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(l.all.String())
		}
	})
	return n, stop
}

// meets waits until the node is connected to the other.
func meets(t *testing.T, n *node.Node, other eventgraph.PeerID, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	met := false
	n.WatchPeers(ctx, func(e p2ptransport.PeerEvent) {
		if e.Connected && eventgraph.PeerID(e.Peer) == other {
			met = true
			cancel()
		}
	})
	if !met {
		t.Fatalf("not connected within %v", within)
	}
}

func (u *localUser) joins(room eventgraph.RoomID, via *node.Node) {
	u.t.Helper()
	u.must("POST", "/join/"+url.PathEscape(string(room))+"?via="+string(via.ServerName()), struct{}{}, nil)
}

// TestCommonContact: two that share a room and know only a third find each other through it; so they do again after one of them has moved.
// One who shares no room is told nothing.
func TestCommonContact(t *testing.T) {
	t.Parallel()
	net := memnet.New()
	b, _ := runOn(t, net, t.TempDir())
	at := b.P2PAddrs()[0]
	dirA, dirC := t.TempDir(), t.TempDir()
	a, stopA := runOn(t, net, dirA, at)
	c, stopC := runOn(t, net, dirC, at)
	stranger, _ := runOn(t, net, t.TempDir(), at)
	idC := c.PeerID()
	room := register(t, b, "bob").create(map[string]any{"preset": "public_chat"})
	register(t, a, "alice").joins(room, b)
	register(t, c, "carol").joins(room, b)
	meets(t, a, idC, 20*time.Second)

	stopC()
	stopA()
	// Both start anew, at other addresses; a first, so that b has to tell it when c comes.
	a, _ = runOn(t, net, dirA, at)
	meets(t, a, b.PeerID(), 20*time.Second)
	runOn(t, net, dirC, at)
	meets(t, a, idC, 20*time.Second)

	stranger.WatchPeers(expired(t), func(e p2ptransport.PeerEvent) {
		if eventgraph.PeerID(e.Peer) != b.PeerID() {
			t.Errorf("one that shares no room is connected to %s", e.Peer)
		}
	})
}

// expired is a context that ends when what is known now has been told.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// TestInviteLink: who acts on a link is connected, and in the room or at its door; a wrong, revoked or foreign link does nothing.
func TestInviteLink(t *testing.T) {
	t.Parallel()
	net := memnet.New()
	a, _ := runOn(t, net, t.TempDir())
	b, _ := runOn(t, net, t.TempDir())
	alice := register(t, a, "alice")
	register(t, b, "bob")
	room := alice.create(map[string]any{"preset": "public_chat"})
	ctx := t.Context()

	link, _, err := a.Invite(ctx, string(room), 0)
	if err != nil {
		t.Fatal(err)
	}
	if link.Peer != a.PeerID() || len(link.Addrs) == 0 || len(link.Token) < 22 {
		t.Errorf("%+v", link)
	}
	if _, err := b.JoinLink(ctx, link.String(), ""); err == nil || !strings.Contains(err.Error(), "--user") {
		t.Errorf("without a user: %v", err)
	}
	if _, err := a.JoinLink(ctx, link.String(), "alice"); err == nil || !strings.Contains(err.Error(), "own") {
		t.Errorf("its own link: %v", err)
	}
	wrong := link
	wrong.Token = strings.Repeat("A", 26)
	if _, err := b.JoinLink(ctx, wrong.String(), "bob"); !errors.Is(err, federation.ErrInviteRefused) {
		t.Errorf("with a wrong token: %v", err)
	}
	if done, err := b.JoinLink(ctx, link.String(), "bob"); err != nil || done.Membership != "join" || done.Room != room {
		t.Errorf("%+v, %v", done, err)
	}
	if done, err := b.JoinLink(ctx, link.String(), "bob"); err != nil || done.Membership != "join" {
		t.Errorf("again: %+v, %v", done, err)
	}

	// A room to knock at, and one that is closed.
	door := alice.create(map[string]any{"preset": "private_chat", "initial_state": []any{map[string]any{
		"type": "m.room.join_rules", "state_key": "", "content": map[string]string{"join_rule": "knock"}}}})
	if link, _, err = a.Invite(ctx, string(door), time.Hour); err != nil {
		t.Fatal(err)
	}
	if done, err := b.JoinLink(ctx, link.String(), "bob"); err != nil || done.Membership != "knock" {
		t.Errorf("%+v, %v", done, err)
	}
	closed := alice.create(map[string]any{"preset": "private_chat"})
	if link, _, err = a.Invite(ctx, string(closed), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := b.JoinLink(ctx, link.String(), "bob"); err == nil || !strings.Contains(err.Error(), "invite") {
		t.Errorf("a closed room: %v", err)
	}

	// The link of a user, after the node that made it has been stopped and started, would be the same; revoked it is none.
	link, made, err := a.Invite(ctx, "", 0)
	if err != nil || link.User != alice.id {
		t.Fatalf("%+v, %v", link, err)
	}
	if done, err := b.JoinLink(ctx, link.String(), ""); err != nil || done.User != alice.id {
		t.Errorf("%+v, %v", done, err)
	}
	if err := a.RevokeInvite(ctx, made.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.JoinLink(ctx, link.String(), ""); !errors.Is(err, federation.ErrInviteRefused) {
		t.Errorf("revoked: %v", err)
	}
	if err := a.RevokeInvite(ctx, made.ID); !errors.Is(err, federation.ErrNoInvite) {
		t.Errorf("revoked again: %v", err)
	}
	for _, about := range []string{"nobody", "!none", "#none"} {
		if _, _, err := a.Invite(ctx, about, 0); err == nil {
			t.Errorf("a link to %s", about)
		}
	}
	if _, _, err := a.Invite(ctx, "", 1000*24*time.Hour); err == nil {
		t.Error("a link for years")
	}
}

func TestLink(t *testing.T) {
	t.Parallel()
	const server, peer = "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r", "12D3KooWHfGR7Nr9vNs1pNQmH4yAtqEGPRCLPYVTmHwdvLBpRvBP"
	whole := fmt.Sprintf("&plexus.peer=%s&plexus.addr=/ip4/10.0.0.7/udp/4001/quic-v1&plexus.addr=/ip6/2001:db8::1/tcp/4001&plexus.token=ABC", peer)
	for _, s := range []string{
		"matrix:u/alice:" + server + "?action=chat" + whole,
		"matrix:roomid/" + "LaV-IVa9RSIWB9p-y-WNNUY_gOeJCd4X2HLVfKjwywE?action=join&via=" + server + whole,
		"matrix:roomid/old:" + server + "?action=join&via=" + server + whole,
	} {
		l, err := node.ParseLink(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if l.String() != s {
			t.Errorf("%s\nbecame %s", s, l)
		}
		if len(l.Addrs) != 2 || l.Token != "ABC" || l.Peer != peer {
			t.Errorf("%+v", l)
		}
	}
	user := "matrix:u/alice:" + server
	for name, s := range map[string]string{
		"of a client, without a token": user + "?action=chat",
		"https":                        "https://matrix.to/#/@alice:" + server,
		"an alias":                     "matrix:r/room:" + server + "?x=y" + whole,
		"no peer ID":                   user + "?plexus.peer=x&plexus.token=ABC",
		"no user":                      "matrix:u/alice?action=chat" + whole,
		"a bad escape":                 "matrix:u/alice%zz:" + server + "?a=b" + whole,
		"endless":                      user + "?action=chat" + whole + strings.Repeat("x", 5000),
		"empty":                        "",
	} {
		if l, err := node.ParseLink(s); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
	odd, err := node.ParseLink("  MATRIX:u/alice:" + server + "?unknown=1&action=join" + whole + "#fragment ")
	if err != nil || odd.User != "@alice:"+server || odd.Token != "ABC" {
		t.Errorf("%+v, %v", odd, err)
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add("matrix:u/a:b?action=chat&plexus.peer=12D3KooWHfGR7Nr9vNs1pNQmH4yAtqEGPRCLPYVTmHwdvLBpRvBP&plexus.addr=/ip4/1.2.3.4/tcp/1&plexus.token=T")
	f.Add("matrix:roomid/a:b?via=c&plexus.peer=12D3KooWHfGR7Nr9vNs1pNQmH4yAtqEGPRCLPYVTmHwdvLBpRvBP&plexus.token=%26+")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := node.ParseLink(s)
		if err != nil {
			return
		}
		again, err := node.ParseLink(l.String())
		if err != nil && len(l.String()) <= len(s) || err == nil && again.String() != l.String() {
			t.Errorf("%q\nread as %q\nthen as %q, %v", s, l, again, err)
		}
	})
}

// TestInviteThroughRelay: who holds a link reaches an inviter that nobody can dial, through a relay that is the inviter's friend and has never
// heard of the holder; without a valid token the relay lets nobody through.
func TestInviteThroughRelay(t *testing.T) {
	t.Parallel()
	run := func(relay bool, peers ...string) *node.Node {
		c := quiet(t.TempDir())
		c.P2PAddrs, c.Peers, c.Relay = []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, peers, relay
		c.Registration, c.NoRateLimits = clientapi.RegistrationOpen, true
		n := open(t, c)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			<-ended
		})
		return n
	}
	relay := run(true)
	inviter, holder := run(false, relay.P2PAddrs()[0]), run(false)
	meets(t, inviter, relay.PeerID(), 20*time.Second)
	register(t, inviter, "ann").joins(register(t, relay, "rob").create(map[string]any{"preset": "public_chat"}), relay)
	register(t, holder, "hal")
	circuit := func(a string) bool { return strings.Contains(a, "/p2p-circuit") }
	var link node.Link
	for deadline := time.After(20 * time.Second); !slices.ContainsFunc(link.Addrs, circuit); {
		select {
		case <-deadline:
			t.Fatalf("no circuit in %+v", link)
		case <-time.After(100 * time.Millisecond):
		}
		var err error
		if link, _, err = inviter.Invite(t.Context(), "", time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	link.Addrs = slices.DeleteFunc(link.Addrs, func(a string) bool { return !circuit(a) })
	wrong := link
	wrong.Token = strings.Repeat("A", 26)
	if _, err := holder.JoinLink(t.Context(), wrong.String(), ""); err == nil || errors.Is(err, federation.ErrInviteRefused) {
		t.Errorf("with a wrong token: %v", err) // refused by the relay already
	}
	if done, err := holder.JoinLink(t.Context(), link.String(), ""); err != nil || done.User != link.User {
		t.Errorf("%+v, %v", done, err)
	}
}
