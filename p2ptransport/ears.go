package p2ptransport

import (
	"net"
	"net/netip"
	"time"
)

// Anybody on a LAN can announce peers as fast as the network carries. Each message costs parsing and may cost a dial, so of one machine, and of all
// of them together, so many are heard in a second and no more. A peer announces itself again and again.
const (
	maxHeardFrom = 20
	maxHeard     = 400
)

// ears count what is heard on one socket. They are not for several goroutines.
type ears struct {
	since time.Time // when this second began
	all   int
	from  map[netip.Addr]int
}

// hear says whether a packet that came from there at that time is to be looked at.
func (e *ears) hear(from net.Addr, now time.Time) bool {
	if e.from == nil || now.Sub(e.since) >= time.Second {
		e.since, e.all, e.from = now, 0, make(map[netip.Addr]int)
	}
	if e.all >= maxHeard {
		return false
	}
	if u, ok := from.(*net.UDPAddr); ok {
		addr := u.AddrPort().Addr().Unmap()
		if e.from[addr] >= maxHeardFrom {
			return false
		}
		e.from[addr]++
	}
	e.all++
	return true
}
