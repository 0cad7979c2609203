package federation

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// crowd makes so many servers in one room, with a user called alice each, who have said what is needed for gossip to begin.
func crowd(t *testing.T, n *memnet.Network, count int, visibility string) ([]*memHost, eventgraph.RoomID) {
	t.Helper()
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("%s %d", t.Name(), i))
	}
	hosts := newMemHosts(t, n, names...)
	room := hosts[0].create("12", "public", visibility)
	for _, h := range hosts[1:] {
		h.join(room, h.user("alice"), hosts[0].host)
	}
	time.Sleep(time.Minute)
	hosts[0].say(room, hosts[0].user("alice"), "the first")
	time.Sleep(time.Minute)
	return hosts, room
}

// TestGossip: what is said in a large room comes to each server without transactions, and to those that are not there, later.
func TestGossip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetDelay(10 * time.Millisecond)
		hosts, room := crowd(t, n, 12, "shared")
		var heard []*arrivals
		for _, h := range hosts {
			heard = append(heard, h.hear("12"))
		}
		for i, h := range hosts {
			before := time.Now()
			said := h.say(room, h.user("alice"), fmt.Sprint("hello from ", i))
			time.Sleep(200 * time.Millisecond)
			for j, other := range hosts {
				if !other.holds(said) {
					t.Errorf("what %d says has not come to %d after %v", i, j, time.Since(before))
				}
				heard[j].mu.Lock()
				if k := heard[j].count[said]; k > 0 {
					t.Errorf("what %d says came to %d in %d transactions", i, j, k)
				}
				heard[j].mu.Unlock()
			}
		}
		sameState(t, room, hosts...)
	})
}
