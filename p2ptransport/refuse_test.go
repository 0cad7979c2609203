package p2ptransport

import (
	"testing"
	"time"
)

// TestRefusedPeerSlowsDown: who is disconnected each time as soon as it comes does not come all the time.
func TestRefusedPeerSlowsDown(t *testing.T) {
	t.Parallel()
	for name, listen := range map[string]string{"QUIC": loopback, "TCP": "/ip4/127.0.0.1/tcp/0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, Config{Listen: []string{listen}, Refuse: func(PeerID) bool { return true }})
			a := start(t, Config{Listen: []string{listen}, StaticPeers: b.Addrs()})
			eventually(t, "the next attempt is a while away", func() bool {
				a.keeper.mu.Lock()
				defer a.keeper.mu.Unlock()
				known := a.keeper.peers[b.host.ID()]
				return known != nil && !known.up && time.Until(known.next) > 900*time.Millisecond
			})
			if len(b.Peers()) > 0 {
				t.Error("the refused peer is connected")
			}
		})
	}
}

func TestAfterBrief(t *testing.T) {
	for often, want := range map[int]time.Duration{0: 0, 2: 0, 3: time.Second, 4: 2 * time.Second, 9: 64 * time.Second, 10: briefCap, 1000: briefCap} {
		if got := afterBrief(often); got != want {
			t.Errorf("after %d: %v, want %v", often, got, want)
		}
	}
}
