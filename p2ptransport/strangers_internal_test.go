package p2ptransport

import (
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"
)

// TestStrangersShareOnePart: however many strangers there are, what a friend needs is left.
func TestStrangersShareOnePart(t *testing.T) {
	friend := test.RandPeerIDFatal(t)
	s := &strangers{friend: func(p PeerID) bool { return p == PeerID(friend.String()) }}
	limits, err := newResourceManager(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { limits.Close() })
	addr := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	connect := func(p peer.ID) network.ConnManagementScope {
		t.Helper()
		c, err := limits.OpenConnection(network.DirInbound, false, addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetPeer(p); err != nil {
			t.Fatal(err)
		}
		return c
	}

	const window = 256 << 10
	var spans []network.ResourceScopeSpan
	streams := 0
	var done []func()
	for range 40 { // strangers, each with less than a peer may have
		p := test.RandPeerIDFatal(t)
		c := connect(p)
		done = append(done, c.Done)
		for range 20 {
			span, err := c.PeerScope().BeginSpan()
			if err != nil {
				t.Fatal(err)
			}
			if span.ReserveMemory(window, 255) == nil {
				spans = append(spans, span)
			} else {
				span.Done()
			}
			stream, err := limits.OpenStream(p, network.DirInbound)
			if err == nil {
				streams++
				done = append(done, stream.Done)
			} else if !errors.Is(err, network.ErrResourceLimitExceeded) {
				t.Fatal(err)
			}
		}
	}
	if len(spans) != maxStrangerMemory/window {
		t.Errorf("strangers hold %d windows of %d KiB, want %d", len(spans), window>>10, maxStrangerMemory/window)
	}
	if streams != maxStrangerMuxed {
		t.Errorf("strangers have %d streams, want %d", streams, maxStrangerMuxed)
	}

	c := connect(friend)
	span, err := c.PeerScope().BeginSpan()
	if err != nil {
		t.Fatal(err)
	}
	for n := range 32 {
		if err := span.ReserveMemory(window, 255); err != nil {
			t.Fatalf("window %d of a friend: %v", n, err)
		}
		stream, err := limits.OpenStream(friend, network.DirInbound)
		if err != nil {
			t.Fatalf("stream %d of a friend: %v", n, err)
		}
		done = append(done, stream.Done)
	}
	span.Done()
	c.Done()

	for _, span := range spans {
		span.Done()
		span.Done() // as often as one likes
	}
	for _, d := range done {
		d()
	}
	if s.memory != 0 || s.streams != 0 {
		t.Errorf("with all gone, strangers still have %d bytes and %d streams", s.memory, s.streams)
	}
}

// TestStrangersKnownLater: who becomes a friend gives back what it took as a stranger, and no more than that.
func TestStrangersKnownLater(t *testing.T) {
	known := false
	s := &strangers{friend: func(PeerID) bool { return known }}
	limits, err := newResourceManager(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { limits.Close() })
	c, err := limits.OpenConnection(network.DirInbound, false, ma.StringCast("/ip4/127.0.0.1/tcp/1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetPeer(test.RandPeerIDFatal(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.ReserveMemory(1000, 255); err != nil {
		t.Fatal(err)
	}
	known = true
	if err := c.ReserveMemory(5000, 255); err != nil {
		t.Fatal(err)
	}
	if s.memory != 1000 {
		t.Errorf("strangers have %d bytes, want the 1000 of before", s.memory)
	}
	c.ReleaseMemory(6000)
	if s.memory != 0 {
		t.Errorf("after its release strangers have %d bytes", s.memory)
	}
	c.Done()
}
