package hosts

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// full says that tests repeat and wait as often and as long as was promised (PLEXUS_HOST_FULL=1), not only the part that fits into each run.
var full = os.Getenv("PLEXUS_HOST_FULL") != ""

// part is n in a full run.
func part[N any](n, less N) N {
	if full {
		return n
	}
	return less
}

// pair is two nodes on a LAN with a client each that share a room.
type pair struct {
	l            *LAN
	hostA, hostB *Host
	a, b         *client
	room         string
}

// newPair starts two nodes and clients. before runs before that.
func newPair(t *testing.T, before func(h *Host), flags ...string) *pair {
	t.Helper()
	l := lan(t, 2)
	p := &pair{l: l, hostA: l.Hosts[0], hostB: l.Hosts[1]}
	for _, h := range l.Hosts {
		if before != nil {
			before(h)
		}
	}
	flags = append(flags, "--rate-limits=false")
	fileA, fileB := p.hostA.start(t, flags...), p.hostB.start(t, flags...)
	p.a, p.b = sdkClient(t, p.hostA), nioClient(t, p.hostB)
	p.a.enter(fileA, "alice", false)
	p.b.enter(fileB, "bob", false)
	eventually(t, 2*time.Minute, "the nodes connected", func() bool { return connected(t, p.hostA, fileB.PeerID) })
	p.room = meet(t, p.a, p.b, args{"name": "Harbour"})
	return p
}

// quantile of figures: the smallest one that so large a part of them does not exceed.
func quantile(all []time.Duration, part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, max(0, int(float64(len(sorted))*part+0.999999)-1))]
}

func figures(all []time.Duration) string {
	var b strings.Builder
	for _, d := range all {
		fmt.Fprintf(&b, " %.2f", d.Seconds())
	}
	return b.String()
}

// resumeLimit is how soon after a link is back messages flow again, at p95.
const resumeLimit = 3 * time.Second

// TestLinkDownAndUp pulls the cable, lets both sides send, puts it back, and wants what was sent then and before within 3 s. A cable
// pulled at the bridge shows at one end, a cut in the middle of the network at none. 5 s is less, and 45 s is more than libp2p's patience.
func TestLinkDownAndUp(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name   string
		middle bool
		down   time.Duration
		times  int // in a full run
		short  int
	}{
		{"cable 5s", false, 5 * time.Second, 20, 4},
		{"cable 45s", false, 45 * time.Second, 20, 1},
		{"middle 5s", true, 5 * time.Second, 20, 4},
		{"middle 45s", true, 45 * time.Second, 20, 1},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, nil)
			port := []string{"-n", p.l.bridge(), "link", "set", p.hostB.port()}
			if way.middle {
				port[len(port)-1] = "br0"
			}
			var took []time.Duration
			for i := range part(way.times, way.short) {
				if err := ip(t.Context(), append(port, "down")...); err != nil {
					t.Fatal(err)
				}
				cut := time.NewTimer(way.down)
				away, back := fmt.Sprintf("away%d", i), fmt.Sprintf("back%d", i)
				var both sync.WaitGroup
				both.Go(func() { p.a.sendMany(p.room, away+" a", 3) })
				both.Go(func() { p.b.sendMany(p.room, away+" b", 3) })
				both.Wait()
				<-cut.C
				up := time.Now()
				if err := ip(t.Context(), append(port, "up")...); err != nil {
					t.Fatal(err)
				}
				both.Go(func() { p.a.sendMany(p.room, back+" a", 1) })
				both.Go(func() { p.b.sendMany(p.room, back+" b", 1) })
				both.Wait()
				last := time.Duration(0)
				for _, want := range []struct {
					at     *client
					prefix string
					count  int
				}{{p.a, away + " b", 3}, {p.b, away + " a", 3}, {p.a, back + " b", 1}, {p.b, back + " a", 1}} {
					for _, m := range want.at.waitMessages(p.room, want.prefix, want.count) {
						last = max(last, time.UnixMicro(int64(m.At*1000)).Sub(up))
					}
				}
				took = append(took, last)
			}
			p95 := quantile(took, 0.95)
			t.Logf("seconds from link up to the last message at the other's client:%s; p95 of %d: %.2f", figures(took), len(took), p95.Seconds())
			if p95 > resumeLimit {
				t.Errorf("p95 is %v, more than %v", p95, resumeLimit)
			}
		})
	}
}
