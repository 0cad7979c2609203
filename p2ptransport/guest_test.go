package p2ptransport

import (
	"net/http"
	"sync/atomic"
	"testing"
)

// TestGuest: a stranger to the relay reaches a friend of the relay's when it is that friend's guest, and nobody else.
func TestGuest(t *testing.T) {
	t.Parallel()
	var friends [2]atomic.Pointer[PeerID]
	var guest atomic.Pointer[PeerID]
	is := func(p *atomic.Pointer[PeerID], q PeerID) bool { id := p.Load(); return id != nil && *id == q }
	b := start(t, Config{
		Relay:  true,
		Friend: func(p PeerID) bool { return is(&friends[0], p) || is(&friends[1], p) },
		Guest:  func(from, to PeerID) bool { return is(&guest, from) && is(&friends[0], to) },
	})
	host, other := startHidden(t, Config{Handler: http.HandlerFunc(serveFile)}), startHidden(t, Config{Handler: http.HandlerFunc(serveFile)})
	for i, h := range []*Host{host, other} {
		id := h.ID()
		friends[i].Store(&id)
		connect(t, h, b)
		eventually(t, "it is reachable", func() bool { return len(h.relays.published()) > 0 })
	}
	a := startHidden(t, Config{})
	a.AddAddrs(host.ID(), host.Addrs())
	a.AddAddrs(other.ID(), other.Addrs())
	if _, err := fetch(t, a, host.ID(), "/"); err == nil {
		t.Error("a stranger was let through")
	}
	id := a.ID()
	guest.Store(&id)
	mustFetch(t, a, host.ID(), "/")
	if _, err := fetch(t, a, other.ID(), "/"); err == nil {
		t.Error("a guest reached somebody else")
	}
}
