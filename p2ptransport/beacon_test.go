package p2ptransport_test

import (
	"fmt"
	"os/exec"
	"testing"
	"time"
)

// dropMulticast lets the machine neither send nor hear multicast over IPv4, and takes IPv6 away, which cannot do without.
func (m *machine) dropMulticast() {
	m.l.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		m.l.t.Skip("no nft command")
	}
	m.l.ip("netns", "exec", m.ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	for _, hook := range []string{"input", "output"} {
		m.l.ip("netns", "exec", m.ns, "nft", "add table ip block; add chain ip block "+hook+" { type filter hook "+hook+
			" priority 0; }; add rule ip block "+hook+" iifname != lo oifname != lo ip daddr 224.0.0.0/4 drop")
	}
}

// TestLANWithoutMulticast: where the network passes no multicast, the beacon brings nodes together, also when one comes back on a new port.
func TestLANWithoutMulticast(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	ma.dropMulticast()
	mb.dropMulticast()
	a := ma.start(seed(t))
	key := seed(t)
	b := mb.start(key)
	a.awaitPeer(3*time.Second, b.ID)
	b.awaitPeer(3*time.Second, a.ID)
	a.get(time.Second, b.ID)

	_ = b.cmd.Process.Kill()
	again := mb.start(key)
	again.awaitPeer(4*time.Second, a.ID)
	again.get(2*time.Second, a.ID)
	a.get(4*time.Second, b.ID)
}

// TestLANCutWhileWaiting: a connection that died is found out in seconds also where what is waited for comes on a stream of another protocol
// than requests; a peer that is only silent stays connected.
func TestLANCutWhileWaiting(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	a, b := ma.start(seed(t)), mb.start(seed(t))
	a.awaitPeer(3*time.Second, b.ID)
	_, _ = fmt.Fprintln(a.stdin, "wait", b.ID)
	select {
	case line := <-a.lines:
		t.Fatalf("though the peer is only silent: %+v", line)
	case <-time.After(5 * time.Second):
	}
	l.ip("-n", l.bridge(), "link", "set", "br0", "down")
	broken, lost := false, false
	a.await(15*time.Second, "loss", func(l line) bool {
		broken, lost = broken || l.Answer == "broken", lost || l.Peer == b.ID && !l.Connected
		return broken && lost
	})
}
