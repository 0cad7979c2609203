package p2ptransport

import (
	"net"
	"testing"
	"time"
)

// TestEars: one machine's packets, and those of very many, leave room for others and for the next second.
func TestEars(t *testing.T) {
	var e ears
	now := time.Now()
	addr := func(n int) net.Addr { return &net.UDPAddr{IP: net.IPv4(10, 0, byte(n>>8), byte(n)), Port: 5353} }
	count := func(machines, packets int) (heard int) {
		for m := range machines {
			for range packets {
				if e.hear(addr(m), now) {
					heard++
				}
			}
		}
		return heard
	}
	if got := count(1, 10_000); got != maxHeardFrom {
		t.Errorf("%d packets of one machine were heard, want %d", got, maxHeardFrom)
	}
	if !e.hear(addr(7), now) {
		t.Error("another machine is not heard in the same second")
	}
	if got := count(10_000, 1) + maxHeardFrom + 1; got != maxHeard {
		t.Errorf("%d packets were heard in a second, want %d", got, maxHeard)
	}
	if len(e.from) > maxHeard {
		t.Errorf("%d machines are remembered", len(e.from))
	}
	now = now.Add(time.Second)
	if got := count(1, 10_000); got != maxHeardFrom {
		t.Errorf("in the next second %d packets were heard, want %d", got, maxHeardFrom)
	}
}
