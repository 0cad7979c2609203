package p2ptransport

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// startPunching begins to make holes in the address translators between this node and those that it talks to through a relay
// (DCUtR): who was called through a relay tells the caller its observed addresses, and both send to the other's at once. It begins
// when a relay of a friend is at hand: before that there is nobody to agree with, and no address to tell.
func (h *Host) startPunching() {
	ids, ok := h.host.(interface{ IDService() identify.IDService })
	if !ok {
		return
	}
	s, err := holepunch.NewService(h.host, ids.IDService(), h.punchable)
	if err != nil {
		h.log.Error("no hole punching", "error", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		_ = s.Close()
		return
	}
	h.puncher = s
}

// punchAgain makes another attempt with a peer that is reached through a relay, if this side was called: the other then waits
// for it. libp2p makes its attempts once, when the circuit comes.
func (h *Host) punchAgain(p peer.ID) {
	h.mu.Lock()
	puncher := h.puncher
	h.mu.Unlock()
	called := slices.ContainsFunc(h.swarm.ConnsToPeer(p), func(c network.Conn) bool {
		return c.Stat().Limited && c.Stat().Direction == network.DirInbound
	})
	if puncher == nil || !called || len(h.punchable()) == 0 {
		return
	}
	h.work.start(func() {
		if err := puncher.DirectConnect(p); err != nil {
			h.log.Debug("no hole punched", "peer", p, "error", err)
		}
	})
}

// punchable are the addresses where a hole can be: QUIC's, as relays of friends see them. A TCP dial leaves from a port of its
// own, so what they see of it is no way in.
func (h *Host) punchable() []ma.Multiaddr {
	return slices.DeleteFunc(h.relays.observed(), func(a ma.Multiaddr) bool {
		_, err := a.ValueForProtocol(ma.P_QUIC_V1)
		return err != nil || manet.IsIPLoopback(a) || manet.IsIP6LinkLocal(a) || h.gate.lanOnly && !localAddr(a)
	})
}
