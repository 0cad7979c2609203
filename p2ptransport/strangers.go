package p2ptransport

import (
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Identities are free, so bounds for each peer bound nothing: all peers that are not friends (Config.Friend) share one part of what libp2p may
// hold. libp2p's resource manager knows peers and protocols, not who is a friend; what stands here asks that before it is asked.

const (
	// maxStrangerConns that strangers have opened; when there are more, the oldest goes. So who holds all that there are keeps
	// nobody out, and who comes has some seconds to become a friend even in a flood.
	maxStrangerConns = 128
	// maxStrangerMuxed streams of all protocols. Less than maxUnnamedStreams, so that streams without a protocol leave room for friends'.
	maxStrangerMuxed = maxUnnamedStreams - 64
	// maxStrangerMemory is their part of maxMemory. A stream over TCP takes 256 KiB of it at once.
	maxStrangerMemory = maxMemory / 3
)

// strangers bounds what strangers make the resource manager hold.
type strangers struct {
	network.ResourceManager
	friend func(PeerID) bool // nil: all are

	mu      sync.Mutex
	streams int
	memory  int
	conns   []network.Conn // opened by strangers, the oldest first
}

func (s *strangers) isStranger(p peer.ID) bool {
	return p != "" && s.friend != nil && !s.friend(PeerID(p.String()))
}

// came notes a connection, and returns those that have to go for it.
func (s *strangers) came(c network.Conn) (tooMany []network.Conn) {
	if c.Stat().Direction != network.DirInbound || !s.isStranger(c.RemotePeer()) {
		return nil
	}
	s.mu.Lock()
	s.conns = append(s.conns, c)
	looked := len(s.conns)
	all := slices.Clone(s.conns[:max(0, looked-maxStrangerConns)])
	s.mu.Unlock()
	for _, old := range all {
		if s.isStranger(old.RemotePeer()) {
			tooMany = append(tooMany, old)
		} // else it has become a friend, and is no longer counted
		s.went(old)
	}
	return tooMany
}

// went forgets a connection.
func (s *strangers) went(c network.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = slices.DeleteFunc(s.conns, func(other network.Conn) bool { return other == c })
}

func (s *strangers) takeStream() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= maxStrangerMuxed {
		return false
	}
	s.streams++
	return true
}

func (s *strangers) giveStream() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
}

func (s *strangers) takeMemory(size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory+size > maxStrangerMemory {
		return false
	}
	s.memory += size
	return true
}

func (s *strangers) giveMemory(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory -= size
}

func tooManyStrangers(what string) error {
	return fmt.Errorf("strangers have all the %s that is theirs: %w", what, network.ErrResourceLimitExceeded)
}

// OpenConnection is that of the resource manager, with the memory of strangers counted.
func (s *strangers) OpenConnection(dir network.Direction, usefd bool, endpoint ma.Multiaddr) (network.ConnManagementScope, error) {
	c, err := s.ResourceManager.OpenConnection(dir, usefd, endpoint)
	if err != nil {
		return nil, err
	}
	return &connScope{ConnManagementScope: c, held: held{of: s}}, nil
}

// OpenStream is that of the resource manager, for a stranger's stream if there is a place.
func (s *strangers) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if dir != network.DirInbound || !s.isStranger(p) {
		return s.ResourceManager.OpenStream(p, dir)
	}
	if !s.takeStream() {
		return nil, tooManyStrangers("streams")
	}
	scope, err := s.ResourceManager.OpenStream(p, dir)
	if err != nil {
		s.giveStream()
		return nil, err
	}
	return &streamScope{StreamManagementScope: scope, done: sync.OnceFunc(s.giveStream)}, nil
}

// streamScope is that of a stranger's stream.
type streamScope struct {
	network.StreamManagementScope
	done func()
}

func (s *streamScope) Done() {
	s.StreamManagementScope.Done()
	s.done()
}

// held is the memory that a scope has of the strangers'. A peer that becomes a friend gives back what it took before, and takes no more of it.
type held struct {
	of   *strangers
	peer peer.ID

	mu   sync.Mutex
	size int
	done bool
}

func (h *held) take(size int, reserve func() error) error {
	h.mu.Lock()
	p := h.peer
	h.mu.Unlock()
	stranger := h.of.isStranger(p)
	if stranger && !h.of.takeMemory(size) {
		return tooManyStrangers("memory")
	}
	err := reserve()
	if !stranger {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || h.done {
		h.of.giveMemory(size)
	} else {
		h.size += size
	}
	return err
}

func (h *held) give(size int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	size = min(size, h.size)
	h.size -= size
	h.of.giveMemory(size)
}

func (h *held) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of.giveMemory(h.size)
	h.size, h.done = 0, true
}

// connScope is that of a connection, which QUIC reserves its windows of.
type connScope struct {
	network.ConnManagementScope
	held
}

func (c *connScope) SetPeer(p peer.ID) error {
	c.mu.Lock()
	c.peer = p
	c.mu.Unlock()
	return c.ConnManagementScope.SetPeer(p)
}

func (c *connScope) ReserveMemory(size int, prio uint8) error {
	return c.take(size, func() error { return c.ConnManagementScope.ReserveMemory(size, prio) })
}

func (c *connScope) ReleaseMemory(size int) {
	c.ConnManagementScope.ReleaseMemory(size)
	c.give(size)
}

func (c *connScope) Done() {
	c.ConnManagementScope.Done()
	c.end()
}

// PeerScope is what a muxer begins a span of for each stream.
func (c *connScope) PeerScope() network.PeerScope {
	scope := c.ConnManagementScope.PeerScope()
	if scope == nil {
		return nil
	}
	return &peerScope{scope, c.of}
}

type peerScope struct {
	network.PeerScope
	of *strangers
}

func (p *peerScope) BeginSpan() (network.ResourceScopeSpan, error) {
	span, err := p.PeerScope.BeginSpan()
	if err != nil {
		return nil, err
	}
	return &spanScope{ResourceScopeSpan: span, held: held{of: p.of, peer: p.Peer()}}, nil
}

type spanScope struct {
	network.ResourceScopeSpan
	held
}

func (s *spanScope) ReserveMemory(size int, prio uint8) error {
	return s.take(size, func() error { return s.ResourceScopeSpan.ReserveMemory(size, prio) })
}

func (s *spanScope) ReleaseMemory(size int) {
	s.ResourceScopeSpan.ReleaseMemory(size)
	s.give(size)
}

func (s *spanScope) Done() {
	s.ResourceScopeSpan.Done()
	s.end()
}
