package p2ptransport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
)

const loopback = "/ip4/127.0.0.1/udp/0/quic-v1"

// start runs a host with a new key, on loopback unless c says otherwise.
func start(t *testing.T, c Config) *Host {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.Key = key
	if c.Listen == nil {
		c.Listen = []string{loopback}
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// startHidden runs a host that nobody can dial, as behind a NAT.
func startHidden(t *testing.T, c Config) *Host {
	t.Helper()
	h := start(t, c)
	h.hide()
	return h
}

func (h *Host) hide() {
	for _, a := range h.swarm.ListenAddresses() {
		if _, circuit := relayOf(a); !circuit {
			h.swarm.ListenClose(a)
		}
	}
}

// file is what handlers of these tests answer.
var file = bytes.Repeat([]byte("0123456789abcdef"), 50<<20/16)

func serveFile(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/file") {
		_, _ = w.Write(file)
		return
	}
	_, _ = io.WriteString(w, "here")
}

// fetch gets a path from a peer.
func fetch(t *testing.T, h *Host, p PeerID, path string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // 50 MB on a machine that does much else
	defer cancel()
	req, err := http.NewRequest(http.MethodGet, "http://x"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := h.Do(ctx, p, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func mustFetch(t *testing.T, h *Host, p PeerID, path string) []byte {
	t.Helper()
	b, err := fetch(t, h, p, path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func connect(t *testing.T, h, to *Host) {
	t.Helper()
	if err := h.AddPeer(t.Context(), to.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
}

// requests counts the streams of requests on connections through relays and on direct ones.
func requests(h *Host, p peer.ID) (relayed, direct int) {
	for _, c := range h.swarm.ConnsToPeer(p) {
		for _, s := range c.GetStreams() {
			if s.Protocol() != ProtocolFederation {
				continue
			}
			if c.Stat().Limited {
				relayed++
			} else {
				direct++
			}
		}
	}
	return relayed, direct
}

// TestRelay: two nodes that nobody can dial talk through a third, and pass a file of 50 MB, without being told how they are found.
func TestRelay(t *testing.T) {
	t.Parallel()
	b := start(t, Config{Relay: true})
	a := startHidden(t, Config{Handler: http.HandlerFunc(serveFile)})
	c := startHidden(t, Config{Handler: http.HandlerFunc(serveFile)})
	connect(t, a, b)
	connect(t, c, b)
	eventually(t, "C is reachable", func() bool { return len(c.relays.published()) > 0 })
	eventually(t, "A is reachable", func() bool { return len(a.relays.published()) > 0 })
	if got := mustFetch(t, a, c.ID(), "/"); string(got) != "here" {
		t.Errorf("answer %q", got)
	}
	if got := mustFetch(t, a, c.ID(), "/file"); !bytes.Equal(got, file) {
		t.Errorf("%d bytes of the file, want %d", len(got), len(file))
	}
	if got := mustFetch(t, c, a.ID(), "/"); string(got) != "here" {
		t.Errorf("answer %q", got)
	}
	peers := a.Peers()
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.ID == c.ID() })
	if i < 0 || !peers[i].Relay {
		t.Errorf("peers of A: %+v", peers)
	}
	// Others are told where C is found.
	if !slices.ContainsFunc(c.Addrs(), func(s string) bool {
		return strings.HasSuffix(s, "/p2p/"+string(b.ID())+"/p2p-circuit/p2p/"+string(c.ID())) && strings.HasPrefix(s, "/ip4/127.0.0.1/udp/")
	}) {
		t.Errorf("addresses of C: %q", c.Addrs())
	}
	d := start(t, Config{})
	d.AddAddrs(c.ID(), c.Addrs())
	if got := mustFetch(t, d, c.ID(), "/"); string(got) != "here" {
		t.Errorf("answer %q by the published address", got)
	}
}

// TestRelayedThenDirect: a peer reached through a relay is dialled directly; requests move there, idle streams too, and the
// circuit is closed only once the direct connection has answered.
func TestRelayedThenDirect(t *testing.T) {
	t.Parallel()
	b := start(t, Config{Relay: true})
	a := start(t, Config{Handler: http.HandlerFunc(serveFile)})
	c := startHidden(t, Config{Handler: http.HandlerFunc(serveFile)})
	connect(t, a, b)
	connect(t, c, b)
	eventually(t, "C is reachable", func() bool { return len(c.relays.published()) > 0 })
	a.relays.look(b.host.ID(), nil)
	eventually(t, "A knows the relay", func() bool { return len(a.relays.to(c.host.ID())) > 0 })
	mustFetch(t, a, c.ID(), "/")
	pc := c.host.ID()
	if relayed, direct := requests(a, pc); relayed == 0 || direct != 0 {
		t.Fatalf("%d streams relayed, %d direct, want the idle one relayed", relayed, direct)
	}
	if a.thin(pc); len(a.swarm.ConnsToPeer(pc)) == 0 {
		t.Fatal("the only connection was closed")
	}

	// C comes into the same network.
	if err := c.swarm.Listen(ma.StringCast(loopback)); err != nil {
		t.Fatal(err)
	}
	a.AddAddrs(c.ID(), c.Addrs())
	if err := a.keeper.connectDirectly(t.Context(), pc); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, a, c.ID(), "/")
	if _, direct := requests(a, pc); direct == 0 {
		t.Error("the request did not take the direct connection")
	}
	if !a.thin(pc) || len(a.swarm.ConnsToPeer(pc)) != 2 {
		t.Error("a relayed connection was closed under a stream")
	}
	a.client.rt.CloseIdleConnections() // as they do by themselves after clientIdle
	eventually(t, "the circuit is closed", func() bool {
		a.thin(pc)
		return len(a.swarm.ConnsToPeer(pc)) == 1 && a.swarm.Connectedness(pc) == network.Connected
	})
	mustFetch(t, a, c.ID(), "/")
}

// TestRelayedIsDialledDirectly: the keeper goes on dialling a peer that it has through a relay only.
func TestRelayedIsDialledDirectly(t *testing.T) {
	t.Parallel()
	b := start(t, Config{Relay: true})
	a, c := start(t, Config{}), start(t, Config{Handler: http.HandlerFunc(serveFile)})
	c.hide()
	connect(t, a, b)
	connect(t, c, b)
	eventually(t, "C is reachable", func() bool { return len(c.relays.published()) > 0 })
	eventually(t, "A knows the relay", func() bool { return len(a.relays.to(c.host.ID())) > 0 })
	mustFetch(t, a, c.ID(), "/")
	if err := c.swarm.Listen(ma.StringCast(loopback)); err != nil {
		t.Fatal(err)
	}
	a.AddAddrs(c.ID(), c.Addrs())
	a.keeper.networkChanged() // and does not wait for the first of the attempts
	eventually(t, "a direct connection", func() bool { return a.swarm.Connectedness(c.host.ID()) == network.Connected })
}

// TestStrangersAreNotRelayed: a relay serves friends, as source and as destination.
func TestStrangersAreNotRelayed(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	friends := map[PeerID]bool{}
	b := start(t, Config{Relay: true, Friend: func(p PeerID) bool {
		mu.Lock()
		defer mu.Unlock()
		return friends[p]
	}})
	a, c, stranger := startHidden(t, Config{}), startHidden(t, Config{}), startHidden(t, Config{})
	mu.Lock()
	friends[a.ID()], friends[c.ID()] = true, true
	mu.Unlock()
	for _, h := range []*Host{a, c, stranger} {
		connect(t, h, b)
	}
	eventually(t, "C is reachable", func() bool { return len(c.relays.published()) > 0 })
	if _, err := client.Reserve(t.Context(), stranger.host, peer.AddrInfo{ID: b.host.ID()}); err == nil || !strings.Contains(err.Error(), "PERMISSION_DENIED") {
		t.Errorf("a stranger's reservation: %v", err)
	}
	if got := stranger.relays.published(); len(got) != 0 {
		t.Errorf("the stranger tells %v", got)
	}
	circuit := "/p2p/" + string(b.ID()) + "/p2p-circuit/p2p/"
	if err := stranger.AddPeer(t.Context(), b.Addrs()[0]+"/p2p-circuit/p2p/"+string(c.ID())); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a stranger calls C: %v", err)
	}
	a.AddAddrs(stranger.ID(), []string{circuit + string(stranger.ID())})
	if err := a.keeper.connect(t.Context(), stranger.host.ID()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a friend calls the stranger: %v", err)
	}
	a.AddAddrs(c.ID(), []string{circuit + string(c.ID())})
	if err := a.keeper.connect(t.Context(), c.host.ID()); err != nil {
		t.Errorf("a friend calls a friend: %v", err)
	}
	// With --relay=false nobody is served.
	idle := start(t, Config{})
	connect(t, c, idle)
	if _, err := client.Reserve(t.Context(), c.host, peer.AddrInfo{ID: idle.host.ID()}); err == nil {
		t.Error("a node that is no relay gave a reservation")
	}
}

// TestUnaskedRelay: whom a stranger relays to us is not let in.
func TestUnaskedRelay(t *testing.T) {
	t.Parallel()
	b := start(t, Config{Relay: true})
	a := startHidden(t, Config{})
	c := startHidden(t, Config{Friend: func(PeerID) bool { return false }})
	connect(t, a, b)
	connect(t, c, b)
	// The reservation is made behind the back of C's relays.
	if _, err := client.Reserve(t.Context(), c.host, peer.AddrInfo{ID: b.host.ID()}); err != nil {
		t.Fatal(err)
	}
	err := a.AddPeer(t.Context(), b.Addrs()[0]+"/p2p-circuit/p2p/"+string(c.ID()))
	if !errors.Is(err, ErrUnreachable) || c.isConnected(a.host.ID()) {
		t.Errorf("a circuit through a relay that C has not asked: %v", err)
	}
}

// TestRelayBudget: circuits of one friend and bytes of all are bounded in each window.
func TestRelayBudget(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := &relayPolicy{now: func() time.Time { return now }}
	for i := range maxCircuitsOpened {
		if !r.AllowConnect("a", nil, "c") {
			t.Fatalf("circuit %d is refused", i)
		}
	}
	if r.AllowConnect("a", nil, "c") || !r.AllowConnect("b", nil, "c") {
		t.Error("the bound is not one for each friend")
	}
	r.BytesTransferred(relayedBytes)
	if r.AllowConnect("b", nil, "c") {
		t.Error("a circuit beyond the bytes of a window")
	}
	now = now.Add(relayWindow)
	if !r.AllowConnect("a", nil, "c") {
		t.Error("no circuit in the next window")
	}
}
