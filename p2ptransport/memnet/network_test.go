package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/internal/transporttest"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// nodes starts n nodes that find each other and answer every request with its body.
func nodes(t *testing.T, net *memnet.Network, n int) []*memnet.Node {
	t.Helper()
	all := make([]*memnet.Node, n)
	for i := range all {
		node, err := net.Node(p2ptransport.Config{Key: transporttest.Key(t), MDNS: true, Handler: http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) {
				if body, err := io.ReadAll(r.Body); err == nil {
					_, _ = w.Write(body)
				}
			})})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = node.Close() })
		all[i] = node
	}
	return all
}

func send(ctx context.Context, from, to *memnet.Node, size int) error {
	body := make([]byte, size)
	r, err := http.NewRequest(http.MethodPost, "http://x/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := from.Do(ctx, to.ID(), r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && len(got) != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func TestCutAndPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		all := nodes(t, net, 4)
		a, b, c, d := all[0], all[1], all[2], all[3]
		if len(a.Peers()) != 3 {
			t.Fatalf("peers: %+v", a.Peers())
		}
		net.Cut(a.ID(), b.ID())
		if len(a.Peers()) != 2 || !errors.Is(send(t.Context(), a, b, 1), p2ptransport.ErrUnreachable) {
			t.Errorf("cut, and yet peers %+v", a.Peers())
		}
		if err := send(t.Context(), a, c, 1); err != nil {
			t.Error(err)
		}
		net.Heal(a.ID(), b.ID())
		time.Sleep(time.Second) // of the bubble
		if err := send(t.Context(), a, b, 1); err != nil || len(a.Peers()) != 3 {
			t.Errorf("healed: %v, peers %+v", err, a.Peers())
		}
		net.Partition([]p2ptransport.PeerID{a.ID(), b.ID()}, []p2ptransport.PeerID{c.ID(), d.ID()})
		if err := errors.Join(send(t.Context(), a, b, 1), send(t.Context(), c, d, 1)); err != nil {
			t.Errorf("within a part: %v", err)
		}
		if err := send(t.Context(), b, c, 1); !errors.Is(err, p2ptransport.ErrUnreachable) {
			t.Errorf("between parts: %v", err)
		}
		net.HealAll()
		time.Sleep(time.Second)
		if err := send(t.Context(), b, c, 1); err != nil {
			t.Error(err)
		}
		var events []p2ptransport.PeerEvent
		ctx, cancel := context.WithCancel(t.Context())
		go a.Watch(ctx, func(e p2ptransport.PeerEvent) { events = append(events, e) })
		synctest.Wait()
		net.Drop(a.ID(), d.ID())
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		cancel()
		if n := len(events); n != 5 || events[3].Connected || events[3].Peer != d.ID() || !events[4].Connected {
			t.Errorf("%+v", events)
		}
	})
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		all := nodes(t, net, 2)
		net.SetDelay(100 * time.Millisecond)
		begin := time.Now()
		if err := send(t.Context(), all[0], all[1], 1000); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 200*time.Millisecond {
			t.Errorf("there and back took %v", took)
		}
	})
}

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		all := nodes(t, net, 2)
		a, b := all[0], all[1]
		if err := send(t.Context(), a, b, 1); err != nil { // leaves a stream open
			t.Fatal(err)
		}
		net.Stall(a.ID(), b.ID())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := send(ctx, a, b, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("on the open stream: %v", err)
		}
		if len(a.Peers()) != 1 {
			t.Error("the stall was noticed")
		}
		done := make(chan error)
		go func() { done <- send(t.Context(), a, b, 1) }() // needs a new stream
		synctest.Wait()
		net.Heal(a.ID(), b.ID())
		if err := <-done; err != nil {
			t.Errorf("after the stall: %v", err)
		}
	})
}

func TestLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(seed uint64) (failed int) {
			net := memnet.New()
			all := nodes(t, net, 2)
			net.SetLoss(0.5, seed)
			for range 40 {
				if err := send(t.Context(), all[0], all[1], 200_000); err != nil {
					failed++
				}
			}
			return failed
		}
		first := run(7)
		if first == 0 || first == 40 {
			t.Errorf("%d of 40 requests failed", first)
		}
		if again := run(7); again != first {
			t.Errorf("%d failed, and with the same seed %d", first, again)
		}
	})
}
