package p2ptransport

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// TestFirstAnswer: on a link so slow that libp2p's identify gives up, a connection is not held for one on a LAN: a probe's answer tells how slow it
// is, and until there is any it gets the longest patience, however old it is.
func TestFirstAnswer(t *testing.T) {
	t.Parallel()
	a, b := startHost(t, "/ip4/127.0.0.1/tcp/0"), startHost(t, "/ip4/127.0.0.1/tcp/0")
	if err := a.AddPeer(t.Context(), b.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "identify has its answer", func() bool { return a.slowest(b.host.ID()) > 0 })
	c := a.swarm.ConnsToPeer(b.host.ID())[0]
	if got := a.patience(aged{c}, probeTimeout); got != maxPatience {
		t.Errorf("an old connection on which no answer came yet is given %v", got)
	}
	a.mu.Lock()
	delete(a.firstAnswer, c)
	a.mu.Unlock()
	a.probeConns(t.Context(), b.host.ID(), slowTimeout)
	if a.slowest(b.host.ID()) == 0 {
		t.Error("the probe's answer is not noted")
	}
}

// aged is another connection, an hour old.
type aged struct{ network.Conn }

func (c aged) Stat() network.ConnStats {
	s := c.Conn.Stat()
	s.Opened = s.Opened.Add(-time.Hour)
	return s
}
