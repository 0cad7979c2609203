package p2ptransport

import (
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func startHost(t *testing.T, listen string) *Host {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Key: key, Listen: []string{listen}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// eventually waits for a state that libp2p announces to nobody.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not: " + what)
		}
	}
}

// TestThin: two nodes that dial each other at the same moment have two connections; both sides thinning at once leaves
// exactly one, the same for both.
func TestThin(t *testing.T) {
	t.Parallel()
	for range 20 {
		a, b := startHost(t, "/ip4/127.0.0.1/udp/0/quic-v1"), startHost(t, "/ip4/127.0.0.1/udp/0/quic-v1")
		a.AddAddrs(b.ID(), b.Addrs())
		b.AddAddrs(a.ID(), a.Addrs())
		pa, pb := a.host.ID(), b.host.ID()
		var wg sync.WaitGroup
		for h, p := range map[*Host]peer.ID{a: pb, b: pa} {
			wg.Go(func() {
				if err := h.keeper.connect(t.Context(), p); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(a.swarm.ConnsToPeer(pb)) < 2 || len(b.swarm.ConnsToPeer(pa)) < 2 {
			_, _ = a.Close(), b.Close()
			continue // they were not quite at the same moment
		}
		eventually(t, "one connection is left", func() bool {
			wg.Go(func() { a.thin(pb) }) // streams of identify may be open still
			wg.Go(func() { b.thin(pa) })
			wg.Wait()
			return len(a.swarm.ConnsToPeer(pb)) == 1 && len(b.swarm.ConnsToPeer(pa)) == 1
		})
		if !a.Probe(t.Context(), b.ID()) || !b.Probe(t.Context(), a.ID()) {
			t.Error("the two sides kept different connections")
		}
		return
	}
	t.Skip("never dialled at the same moment")
}

// TestManyFromOneAddress: a mesh on one machine, or behind one address, is let in.
func TestManyFromOneAddress(t *testing.T) {
	t.Parallel()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.To4() == nil || n.IP.IsLoopback() {
			continue // loopback is not bounded
		}
		const many = 20
		server := startHost(t, "/ip4/"+n.IP.String()+"/tcp/0")
		var wg sync.WaitGroup
		for range many {
			client := startHost(t, "/ip4/"+n.IP.String()+"/tcp/0")
			wg.Go(func() {
				if err := client.AddPeer(t.Context(), server.Addrs()[0]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(t, "all are connected", func() bool { return len(server.Peers()) == many })
		return
	}
	t.Skip("no address but loopback")
}
