package memnet_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// took says how long a request with a body of size bytes needs.
func took(t *testing.T, from, to *memnet.Node, size int) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := send(t.Context(), from, to, size); err != nil {
		t.Error(err)
	}
	return time.Since(begin)
}

func between(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s took %v, want %v to %v", what, got, least, most)
	}
}

// TestRate: each rate on the way holds for all that use it together, and for nobody else.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		all := nodes(t, net, 4)
		net.SetLink(all[0].ID(), all[1].ID(), memnet.Link{Rate: 10_000})
		between(t, "there and back over a slow link", took(t, all[0], all[1], 100_000), 20*time.Second, 21*time.Second)
		between(t, "another link", took(t, all[0], all[2], 100_000), 0, time.Second)

		net.SetLink(all[0].ID(), all[1].ID(), memnet.Link{})
		net.SetAccess(all[3].ID(), memnet.Link{}, memnet.Link{Rate: 20_000})
		ended := make(chan time.Duration)
		for _, n := range all[:2] {
			go func() { ended <- took(t, n, all[3], 100_000) }()
		}
		between(t, "the first of two into one line", <-ended, 5*time.Second, 11*time.Second)
		between(t, "the second", <-ended, 10*time.Second, 11*time.Second)
		between(t, "a small one out of it", took(t, all[3], all[0], 10), 0, time.Second)
	})
}

// TestDelays: delays on the way add up; jitter stays within its bound.
func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		all := nodes(t, net, 2)
		line := memnet.Link{Delay: 100 * time.Millisecond}
		net.SetAccess(all[0].ID(), line, line)
		net.SetAccess(all[1].ID(), line, line)
		net.SetLink(all[0].ID(), all[1].ID(), memnet.Link{Delay: 50 * time.Millisecond, Jitter: 10 * time.Millisecond})
		between(t, "there and back", took(t, all[0], all[1], 10), 500*time.Millisecond, 600*time.Millisecond)
	})
}

// TestPacketLoss: what is lost is sent again, later, and counted; the same seed loses the same.
func TestPacketLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(seed uint64) (sent int) {
			net := memnet.New()
			all := nodes(t, net, 2)
			net.SetSeed(seed)
			net.SetLink(all[0].ID(), all[1].ID(), memnet.Link{Delay: 50 * time.Millisecond, Loss: 0.3})
			net.Observe(func(from, to p2ptransport.PeerID, protocol string) (memnet.Observer, memnet.Observer) {
				if from != all[0].ID() || to != all[1].ID() || protocol != p2ptransport.ProtocolFederation {
					t.Errorf("%s from %s to %s", protocol, from, to)
				}
				return func(b []byte, times int) { sent += len(b) * times }, nil
			})
			for range 20 {
				if err := send(t.Context(), all[0], all[1], 10_000); err != nil {
					t.Fatal(err)
				}
			}
			return sent
		}
		sent := run(1)
		if least, most := 20*10_000*5/4, 20*10_000*2; sent < least || sent > most {
			t.Errorf("%d bytes sent, want %d to %d: 1/0.7 of the content", sent, least, most)
		}
		if again := run(1); again != sent {
			t.Errorf("%d bytes sent, with the same seed %d", sent, again)
		}
		if other := run(2); other == sent {
			t.Error("another seed lost as much")
		}
	})
}

// TestDetach: a node that is away is met by nobody, and its streams break; it comes back.
func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		all := nodes(t, net, 3)
		s, err := all[1].OpenStream(t.Context(), all[0].ID(), p2ptransport.ProtocolFederation)
		if err != nil {
			t.Fatal(err)
		}
		net.Detach(all[0].ID())
		if _, err := io.ReadAll(s); err == nil {
			t.Error("the stream has ended, not broken")
		}
		if err := send(t.Context(), all[1], all[0], 1); !errors.Is(err, p2ptransport.ErrUnreachable) {
			t.Errorf("to a node that is away: %v", err)
		}
		time.Sleep(time.Second)
		if len(all[0].Peers()) != 0 || len(all[1].Peers()) != 1 {
			t.Errorf("%d and %d peers", len(all[0].Peers()), len(all[1].Peers()))
		}
		net.Attach(all[0].ID())
		time.Sleep(time.Second)
		if len(all[0].Peers()) != 2 {
			t.Errorf("back, with %d peers", len(all[0].Peers()))
		}
	})
}
