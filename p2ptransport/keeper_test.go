package p2ptransport

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// TestMetPeersAreDialledFirst: announcements of peers that do not exist, of which anybody can send any number, do not keep the
// keeper from those it knows.
func TestMetPeersAreDialledFirst(t *testing.T) {
	t.Parallel()
	now := time.Now()
	k := newKeeper(nil)
	for i := range 500 {
		k.peers[peer.ID(fmt.Sprint("announced ", i))] = &known{wanted: true, next: now.Add(-time.Minute)}
	}
	k.peers["met"] = &known{wanted: true, met: true, next: now}
	k.peers["static"] = &known{wanted: true, static: true, next: now.Add(-time.Second)}
	k.peers["later"] = &known{wanted: true, met: true, next: now.Add(time.Second)}

	due, next := k.due(now, dialsAtOnce, unmetAtOnce)
	if len(due) != 2+unmetAtOnce || due[0].peer != "static" || due[1].peer != "met" || !due[2].unmet {
		t.Errorf("due: %v", due)
	}
	if !next.Equal(now.Add(time.Second)) {
		t.Errorf("next in %v", next.Sub(now))
	}
	// All places for the unmet are taken: who was met still finds one.
	k.peers["met"].next = now
	if due, _ := k.due(now, dialsAtOnce-unmetAtOnce, 0); len(due) != 1 || due[0].peer != "met" {
		t.Errorf("with no place for the unmet: %v", due)
	}
	if due, _ := k.due(now, 0, 0); len(due) != 0 {
		t.Errorf("with no place at all: %v", due)
	}
}
