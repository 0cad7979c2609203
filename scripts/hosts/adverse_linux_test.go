package hosts

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// bothWays sends count messages from each side at the same time and waits until all are at the other, in order; it says after how long.
func bothWays(t *testing.T, room, prefix string, a, b *client, count int, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	var both sync.WaitGroup
	for _, way := range [][2]*client{{a, b}, {b, a}} {
		both.Go(func() {
			from := prefix + " of " + way[0].User
			sent := way[0].sendMany(room, from, count)
			inOrder(t, from, sent, way[1].waitWithin(room, from, count, within))
		})
	}
	both.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return time.Since(began)
}

// movedLimit is how soon a peer is found again that has another address.
const movedLimit = 5 * time.Second

// TestAddressChange: a host gets another address, as by a new lease or another access point; messages that wait, and new ones, arrive
// within seconds. Without IPv6, whose link-local addresses would stay.
func TestAddressChange(t *testing.T) {
	t.Parallel()
	p := newPair(t, func(h *Host) { h.withoutIPv6(t) })
	var took []time.Duration
	for i := range part(20, 4) {
		host := p.l.Hosts[i%2] // either way
		addr := fmt.Sprintf("10.77.0.%d", 100+i)
		host.in(t, "ip", "addr", "del", host.Addr+"/24", "dev", "eth0")
		host.in(t, "ip", "addr", "add", addr+"/24", "dev", "eth0")
		host.Addr = addr
		took = append(took, bothWays(t, p.room, fmt.Sprintf("move%d", i), p.a, p.b, 3, time.Minute))
	}
	p95 := quantile(took, 0.95)
	t.Logf("seconds from the new address to all messages both ways:%s; p95 %.2f", figures(took), p95.Seconds())
	if p95 > movedLimit {
		t.Errorf("p95 is %v, more than %v", p95, movedLimit)
	}
}

// TestMulticastBlocked: on a network that passes no multicast the beacon brings nodes together, and a conversation works.
func TestMulticastBlocked(t *testing.T) {
	t.Parallel()
	began := time.Now()
	p := newPair(t, func(h *Host) {
		h.in(t, "nft", "table inet block { chain out { type filter hook output priority 0; oifname eth0 jump multicast; };"+
			" chain in { type filter hook input priority 0; iifname eth0 jump multicast; };"+
			" chain multicast { ip daddr 224.0.0.0/4 drop; ip6 daddr ff00::/8 drop; }; }")
	})
	t.Logf("met, and in a room, %v after the first node's start", time.Since(began).Round(time.Millisecond))
	exchange(t, p.room, p.a, p.b, 20)
}

// TestLoss: three of ten packets are lost in each direction.
func TestLoss(t *testing.T) {
	t.Parallel()
	p := newPair(t, func(h *Host) {
		if h.number == 1 { // on one cable, so that each packet passes it once
			h.rewire(t, wire{loss: 0.3})
		}
	})
	took := bothWays(t, p.room, "lossy", p.a, p.b, 50, 2*time.Minute)
	t.Logf("30 %% loss: 50 messages each way, all there in order %v after the first was sent", took.Round(time.Millisecond))
}

// TestSlowLink: 1 s each way and 16 kbit/s, as by a radio modem. A room is joined and a conversation held.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	slowLink(t, time.Second)
}

// TestSlowerLink: the same with 2 s each way, in a full run.
func TestSlowerLink(t *testing.T) {
	if !full {
		t.Skip("takes two to three minutes; PLEXUS_HOST_FULL=1 runs it")
	}
	t.Parallel()
	slowLink(t, 2*time.Second)
}

func slowLink(t *testing.T, delay time.Duration) {
	began := time.Now()
	p := newPair(t, func(h *Host) {
		if h.number == 1 {
			h.rewire(t, wire{delay: delay, rate: 16_000, queue: 32 << 10})
		}
	})
	t.Logf("%v each way, 16 kbit/s: met, invited and joined %v after the first node's start", delay, time.Since(began).Round(time.Millisecond))
	took := bothWays(t, p.room, "slow", p.a, p.b, 10, 3*time.Minute)
	t.Logf("10 messages each way, all there %v after the first was sent", took.Round(time.Millisecond))
	var each []time.Duration
	for i := range 3 {
		each = append(each, bothWays(t, p.room, fmt.Sprintf("alone%d", i), p.a, p.b, 1, time.Minute))
	}
	t.Logf("seconds for one message each way:%s", figures(each))
}

// TestSleep: a node is stopped as a machine that sleeps, ten minutes in a full run. The others go on as before, and after it has woken
// everything arrives both ways.
func TestSleep(t *testing.T) {
	t.Parallel()
	l := lan(t, 3)
	var clients []*client
	for i, h := range l.Hosts {
		file := h.start(t, "--rate-limits=false")
		c := []func(*testing.T, *Host) *client{sdkClient, nioClient, sdkClient}[i](t, h)
		c.enter(file, []string{"alice", "bob", "carol"}[i], false)
		clients = append(clients, c)
	}
	a, b, c := clients[0], clients[1], clients[2]
	sleeper := l.Hosts[2]
	room := meet(t, a, b, args{"name": "Harbour"})
	a.do("invite", args{"room": room, "user": c.User}, nil)
	c.do("waitInvite", args{"room": room}, nil)
	c.do("join", args{"room": room}, nil)
	b.do("waitMember", args{"room": room, "user": c.User}, nil)
	before := bothWays(t, room, "before", a, b, 30, time.Minute)

	sleeper.pause(t)
	asleep := time.NewTimer(part(10*time.Minute, 45*time.Second))
	during := bothWays(t, room, "asleep", a, b, 30, time.Minute)
	<-asleep.C
	late := bothWays(t, room, "late", a, b, 30, time.Minute)
	sleeper.resume(t)
	began := time.Now()
	var all sync.WaitGroup
	for _, from := range []*client{a, b} {
		all.Go(func() {
			c.waitMessages(room, "asleep of "+from.User, 30)
			c.waitMessages(room, "late of "+from.User, 30)
		})
	}
	all.Go(func() { bothWays(t, room, "awake", a, c, 3, time.Minute) })
	all.Go(func() { b.waitMessages(room, "awake of "+c.User, 3) })
	all.Wait()
	t.Logf("everything both ways %v after waking", time.Since(began).Round(time.Millisecond))
	t.Logf("30 messages each way between the others: %v before, %v right after it fell asleep, %v just before it woke",
		before.Round(time.Millisecond), during.Round(time.Millisecond), late.Round(time.Millisecond))
	if limit := max(3*before, before+2*time.Second); during > limit || late > limit {
		t.Errorf("the others were slowed")
	}
}
