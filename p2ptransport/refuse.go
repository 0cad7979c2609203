package p2ptransport

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Of whom Config.Refuse names no connection is kept: what there is is closed, none is dialled, and one that comes ends when the peer has
// proven who it is. A peer that is treated so by others finds its connections end as soon as they begin: the keeper then waits longer each
// time.

const (
	// brief is a connection that ended so soon that it may have been refused.
	brief = 5 * time.Second
	// briefOften in a row are more than a network that comes and goes; from there the wait before the next dial doubles, up to briefCap.
	briefOften = 3
	briefCap   = 2 * time.Minute
)

// RefusalChanged has Config.Refuse asked again about a peer; see Transport.
func (h *Host) RefusalChanged(p PeerID) {
	id, err := peer.Decode(string(p))
	switch {
	case err != nil || p == h.id:
	case h.gate.refuses(id):
		h.work.start(func() { _ = h.swarm.ClosePeer(id) })
	default:
		h.keeper.heard(id, nil)
	}
}

// refuses says whether no connection of the peer is kept.
func (g *gate) refuses(p peer.ID) bool { return g.refuse != nil && g.refuse(PeerID(p.String())) }

// afterBrief is how long to wait before dialling a peer whose last so many connections were brief; 0: as after any loss.
func afterBrief(often int) time.Duration {
	if often < briefOften {
		return 0
	}
	return min(firstRetry<<min(often-briefOften+1, 10), briefCap)
}
