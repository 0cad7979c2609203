package memnet_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/internal/transporttest"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// TestGossipMesh: in a topic of 24 nodes, all connected to all, each message reaches all, and comes to each about as often as a node has
// neighbours in the mesh. A topic in which nothing is said costs nothing on the wire.
func TestGossipMesh(t *testing.T) {
	const count, messages = 24, 10
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		network.SetDelay(20 * time.Millisecond)
		var bytes atomic.Int64
		network.Observe(func(_, _ p2ptransport.PeerID, _ string) (sent, got memnet.Observer) {
			count := func(b []byte, times int) { bytes.Add(int64(len(b) * times)) }
			return count, count
		})
		var nodes []*memnet.Node
		var delivered atomic.Int64
		var last atomic.Int64
		for range count {
			n, err := network.Node(p2ptransport.Config{
				Key: transporttest.Key(t), MDNS: true, Gossip: func(p2ptransport.PeerID) bool { return true },
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = n.Close() })
			nodes = append(nodes, n)
		}
		for _, n := range nodes {
			if _, err := n.Subscribe("topic", func(p2ptransport.PeerID, []byte) bool {
				delivered.Add(1)
				last.Store(time.Now().UnixNano())
				return true
			}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second) // of heartbeats
		bytes.Store(0)
		time.Sleep(time.Minute)
		if idle := bytes.Swap(0); idle > 10*count {
			t.Errorf("%d bytes a node in a minute in which nothing was said", idle/count)
		}
		var slowest time.Duration
		payload := make([]byte, 500)
		for i := range messages {
			copy(payload, fmt.Sprint(i))
			begin := time.Now()
			if err := nodes[i*7%count].Publish(t.Context(), "topic", payload); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			slowest = max(slowest, time.Unix(0, last.Load()).Sub(begin))
		}
		if n := delivered.Load(); n != messages*(count-1) {
			t.Errorf("%d deliveries, want %d", n, messages*(count-1))
		}
		var copies, first uint64
		for _, n := range nodes {
			c, f := n.GossipCounts()
			copies, first = copies+c, first+f
		}
		mean := float64(copies) / (messages * count)
		t.Logf("%.2f copies and %d bytes for each node and message, the last after %v", mean, bytes.Load()/(messages*count), slowest)
		if first != messages*(count-1) || mean > 6 {
			t.Errorf("%d first copies and %.2f copies for each node and message", first, mean)
		}
	})
}
