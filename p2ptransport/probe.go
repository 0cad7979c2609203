package p2ptransport

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

const (
	// suspectAfter is how long an answer is awaited before the connection is probed; libp2p itself notices a dead one
	// after 30 s or more.
	suspectAfter = 3 * time.Second
	// probeTimeout is the least that a sign of life is awaited when there is a reason to think that a connection is dead; slowTimeout
	// when only an answer is slow, as the peer may be busy. On a slow link it is longer; see patience.
	probeTimeout = time.Second
	slowTimeout  = 4 * time.Second
	// patienceFactor times as long as the peer's first answer took, and no longer than maxPatience: a second for each way and
	// 16 kbit/s are 4 s for that answer, and what else is on the way comes before the next.
	patienceFactor = 4
	maxPatience    = 20 * time.Second
	// thinAfter leaves both sides time to notice which connections they have; thinEvery until they are drained.
	thinAfter = 15 * time.Second
	thinEvery = 30 * time.Second
)

// probeProtocol is spoken by nobody. That a peer says so shows that it lives, whatever software it runs.
const probeProtocol protocol.ID = "/plexus/probe/1"

// Probe asks each connection to the peer for a sign of life, closes those that give none in time, and says
// whether one is left.
func (h *Host) Probe(ctx context.Context, p PeerID) bool {
	id, err := peer.Decode(string(p))
	if err != nil {
		return false
	}
	h.probeConns(ctx, id, probeTimeout)
	return h.isConnected(id)
}

func (h *Host) probeConns(ctx context.Context, p peer.ID, timeout time.Duration) {
	conns := h.swarm.ConnsToPeer(p)
	done := make(chan struct{}, len(conns))
	started := 0
	for _, c := range conns {
		if h.work.start(func() {
			defer func() { done <- struct{}{} }()
			began := time.Now()
			lives, answered := alive(ctx, c, h.patience(c, timeout))
			if answered {
				h.answered(c, began)
			}
			if lives || ctx.Err() != nil || c.IsClosed() {
				return
			}
			h.log.Debug("connection is dead", "peer", p, "addr", c.RemoteMultiaddr())
			_ = c.Close()
		}) {
			started++
		}
	}
	for range started {
		<-done
	}
}

// patience is how long a sign of life on a connection is awaited: at least so long, more where its first answer took long.
func (h *Host) patience(c network.Conn, least time.Duration) time.Duration {
	h.mu.Lock()
	took, ok := h.firstAnswer[c]
	h.mu.Unlock()
	if !ok {
		return maxPatience // it is still to come: on a slow link identify gives up before it
	}
	return min(max(least, patienceFactor*took), maxPatience)
}

// answered notes that the first answer came on a connection: to identify, asked when the connection began, or to a probe. Every peer gives these.
func (h *Host) answered(c network.Conn, asked time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.firstAnswer[c]; !ok && !c.IsClosed() {
		h.firstAnswer[c] = time.Since(asked)
	}
}

// slowest is the longest that a first answer took on the connections to a peer.
func (h *Host) slowest(p peer.ID) (took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.swarm.ConnsToPeer(p) {
		took = max(took, h.firstAnswer[c])
	}
	return took
}

// alive waits for any answer on a new stream. A connection lives, too, if our own limits refuse the stream: that says nothing about the peer.
func alive(ctx context.Context, c network.Conn, timeout time.Duration) (lives, answered bool) {
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "probe"), timeout)
	defer cancel()
	s, err := c.NewStream(ctx)
	if err != nil {
		return errors.Is(err, network.ErrResourceLimitExceeded), false
	}
	defer func() { _ = s.Reset() }()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	err = multistream.SelectProtoOrFail(probeProtocol, s)
	var unsupported multistream.ErrNotSupported[protocol.ID]
	answered = err == nil || errors.As(err, &unsupported)
	return answered, answered
}

// probe probes a peer in the background, unless that is under way.
func (h *Host) probe(p peer.ID, timeout time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.probing[p] || !h.isConnected(p) {
		return
	}
	h.probing[p] = h.work.start(func() {
		h.probeConns(h.ctx, p, timeout)
		h.mu.Lock()
		delete(h.probing, p)
		h.mu.Unlock()
	})
}

func (h *Host) probeAll() {
	for _, p := range h.swarm.Peers() {
		h.probe(p, probeTimeout)
	}
}

// suspect probes a peer now and again while an answer is awaited, until ctx ends.
func (h *Host) suspect(ctx context.Context, p peer.ID) {
	var again *time.Timer
	armed := make(chan struct{})
	again = time.AfterFunc(suspectAfter, func() {
		<-armed
		if ctx.Err() == nil {
			h.probe(p, slowTimeout)
			again.Reset(2 * suspectAfter) // ctx is looked at when it fires
		}
	})
	close(armed)
	context.AfterFunc(ctx, func() { again.Stop() })
}

// await is suspect until came is called.
func (h *Host) await(p peer.ID) (came context.CancelFunc) {
	ctx, came := context.WithCancel(h.ctx)
	h.suspect(ctx, p)
	return came
}

// thinLater closes superfluous connections to a peer, once they are drained.
func (h *Host) thinLater(p peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.thinning[p] {
		return
	}
	h.thinning[p] = h.work.start(func() {
		wait := time.NewTimer(thinAfter)
		defer wait.Stop()
		for {
			select {
			case <-wait.C:
			case <-h.ctx.Done():
				return
			}
			if !h.thin(p) {
				h.mu.Lock()
				delete(h.thinning, p)
				h.mu.Unlock()
				return
			}
			wait.Reset(thinEvery)
		}
	})
}

// thin closes those direct connections that this side dialled and that the rule does not keep, if nothing is under way
// on them, and says whether any such is left. Of several direct connections the rule keeps those dialled by the node
// with the smaller peer ID, and of a node's own the oldest. As a side closes only what it dialled, and both know who
// dialled what, the two never close different ones and lose all. Those through relays are superfluous beside a direct one
// that has answered.
func (h *Host) thin(p peer.ID) (left bool) {
	conns := slices.DeleteFunc(h.swarm.ConnsToPeer(p), network.Conn.IsClosed)
	dialled := func(c network.Conn) bool { return c.Stat().Direction == network.DirOutbound }
	var direct, mine, relayed []network.Conn
	for _, c := range conns {
		switch {
		case !c.Stat().Limited:
			direct = append(direct, c)
			if dialled(c) {
				mine = append(mine, c)
			}
		case dialled(c):
			relayed = append(relayed, c)
		}
	}
	slices.SortFunc(mine, func(a, b network.Conn) int {
		return cmp.Compare(a.Stat().Opened.UnixNano(), b.Stat().Opened.UnixNano())
	})
	if len(mine) > 0 && (len(mine) == len(direct) || h.swarm.LocalPeer() < p) {
		mine = mine[1:]
	}
	if len(relayed) > 0 && len(direct) > 0 {
		if slices.ContainsFunc(direct, func(c network.Conn) bool { lives, _ := alive(h.ctx, c, h.patience(c, slowTimeout)); return lives }) {
			mine = append(mine, relayed...)
		} else {
			left = true
		}
	}
	for _, c := range mine {
		if len(c.GetStreams()) > 0 {
			left = true
			continue
		}
		_ = c.Close()
	}
	return left
}
