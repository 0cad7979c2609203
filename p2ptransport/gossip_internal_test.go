package p2ptransport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

// endless is a stream on which bytes come without end.
type endless struct{ net.Conn }

func (endless) Read(b []byte) (int, error) {
	return copy(b, bytes.Repeat([]byte{1}, len(b))), nil
}

// TestGossipSmallReads: a neighbour that sends the smallest RPCs that there are, has few of them read.
func TestGossipSmallReads(t *testing.T) {
	t.Parallel()
	const burst = 64 << 10
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the limiter never fills again: who waits for that fails at once
	defer cancel()
	s := &gossipStream{m: &mesh{ctx: ctx}, conn: endless{}, budget: &neighbour{bytes: rate.NewLimiter(0, burst)}}
	for n := 0; ; n++ {
		if _, err := s.Read(make([]byte, 1)); err != nil {
			break
		}
		if n > burst/gossipReadCost {
			t.Fatalf("more than %d reads of a byte at a time", n)
		}
	}
}

// TestGossipNoLongerAllowed: a stream that was being opened to a peer while it ceased to take part, is not kept.
func TestGossipNoLongerAllowed(t *testing.T) {
	t.Parallel()
	id := func() PeerID {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		k, err := crypto.UnmarshalEd25519PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		p, err := peer.IDFromPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return PeerID(p.String())
	}
	other := id()
	var roster Roster
	roster.Add(other, "a connection", "address", false)
	takesPart := true
	g := NewGossip(t.Context(), id(), func(PeerID) bool { return takesPart }, &roster, func(context.Context, PeerID) (net.Conn, error) {
		takesPart = false // as by a ban that comes in between
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, nil
	}, slog.New(slog.DiscardHandler))
	known, err := simplelru.NewLRU[PeerID, *neighbour](1, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{Gossip: g, ctx: t.Context(), streams: make(map[*gossipStream]struct{}), known: known}
	decoded, err := peer.Decode(string(other))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&gossipHost{m: m}).NewStream(t.Context(), decoded); err == nil || len(m.streams) > 0 || takesPart {
		t.Errorf("a stream is opened to it: %v", err)
	}
}
