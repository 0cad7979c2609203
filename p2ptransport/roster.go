package p2ptransport

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// Roster knows who is connected, and tells watchers; implementations of Transport keep one. A peer may have several
// connections: it is connected while it has one. The zero value is ready.
//
// A watcher that is slow loses no change that still matters: it is told the difference between what it last heard and
// what is now, so what waits for it is bounded by the number of peers. A peer that went and came back while a watcher
// was busy is told as a disconnect and a connect.
type Roster struct {
	mu       sync.Mutex
	sessions map[PeerID]*session
	count    uint64 // sessions begun so far
	wake     chan struct{}
}

// session is the time from a peer's first connection to the loss of its last.
type session struct {
	number uint64
	conns  []connection // in the order they came
}

type connection struct {
	key   any
	addr  string
	relay bool
}

// best is a direct connection if there is one, and of those the oldest.
func (s *session) best() connection {
	for _, c := range s.conns {
		if !c.relay {
			return c
		}
	}
	return s.conns[0]
}

// Add notes a connection, known by key, and reports how many the peer has now.
func (r *Roster) Add(peer PeerID, key any, addr string, relay bool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions == nil {
		r.sessions = make(map[PeerID]*session)
	}
	s := r.sessions[peer]
	if s == nil {
		r.count++
		s = &session{number: r.count}
		r.sessions[peer] = s
		defer r.wakeAll()
	}
	if !slices.ContainsFunc(s.conns, func(c connection) bool { return c.key == key }) {
		relayed := len(s.conns) > 0 && s.relayed()
		s.conns = append(s.conns, connection{key, addr, relay})
		if relayed && !relay {
			r.wakeAll()
		}
	}
	return len(s.conns)
}

// Remove forgets a connection and reports how many the peer still has.
func (r *Roster) Remove(peer PeerID, key any) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[peer]
	if s == nil {
		return 0
	}
	relayed := s.relayed()
	s.conns = slices.DeleteFunc(s.conns, func(c connection) bool { return c.key == key })
	if len(s.conns) == 0 {
		delete(r.sessions, peer)
		r.wakeAll()
	} else if s.relayed() != relayed {
		r.wakeAll()
	}
	return len(s.conns)
}

// wakeAll needs mu.
func (r *Roster) wakeAll() {
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
}

// Peers lists the connected peers, ordered by ID.
func (r *Roster) Peers() []Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	peers := make([]Peer, 0, len(r.sessions))
	for id, s := range r.sessions {
		best := s.best()
		peers = append(peers, Peer{ID: id, Addr: best.addr, Relay: best.relay})
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return peers
}

// relayed says whether all of the session's connections go through relays.
func (s *session) relayed() bool { return s.best().relay }

// direct says whether a peer has a connection that goes through no relay.
func (r *Roster) direct(peer PeerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[peer]
	return s != nil && !s.best().relay
}

// standing is what a watcher was last told of a connected peer.
type standing struct {
	number  uint64 // of the session, from 1
	relayed bool
}

// Watch is Transport.Watch: it returns when ctx ends.
func (r *Roster) Watch(ctx context.Context, f func(PeerEvent)) {
	told := make(map[PeerID]standing)
	for {
		events, wake := r.news(told)
		for _, e := range events {
			if ctx.Err() != nil {
				return
			}
			f(e)
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// news is what changed since told, which it brings up to date, in the order in which it happened, disconnects first.
func (r *Roster) news(told map[PeerID]standing) ([]PeerEvent, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wake == nil {
		r.wake = make(chan struct{})
	}
	var gone, came []PeerEvent
	for id, was := range told {
		if s := r.sessions[id]; s == nil || s.number != was.number {
			gone = append(gone, PeerEvent{Peer: id})
			delete(told, id)
		}
	}
	for id, s := range r.sessions {
		if now := (standing{s.number, s.relayed()}); told[id] != now {
			came = append(came, PeerEvent{Peer: id, Connected: true, Addr: s.best().addr, Relay: now.relayed})
			told[id] = now
		}
	}
	slices.SortFunc(gone, func(a, b PeerEvent) int { return cmp.Compare(a.Peer, b.Peer) })
	slices.SortFunc(came, func(a, b PeerEvent) int { return cmp.Compare(told[a.Peer].number, told[b.Peer].number) })
	return append(gone, came...), r.wake
}
