package p2ptransport

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// memoryBook is an address book in memory.
type memoryBook struct {
	mu      sync.Mutex
	entries map[PeerID]BookEntry
	saves   int
}

func (b *memoryBook) Load() (all []BookEntry, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		all = append(all, e)
	}
	return all, nil
}

func (b *memoryBook) Save(_ context.Context, changed []BookEntry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.saves++
	for _, e := range changed {
		b.entries[e.Peer] = e
	}
	return nil
}

func hostWith(t *testing.T, c Config) *Host {
	t.Helper()
	if c.Key == nil {
		_, c.Key, _ = ed25519.GenerateKey(rand.Reader)
	}
	if c.Listen == nil {
		c.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"}
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// TestAddressBook: a host that starts anew dials whom it was connected to, at the address where it was, without being told; who is
// no friend is not written down, however often it comes.
func TestAddressBook(t *testing.T) {
	t.Parallel()
	book := &memoryBook{entries: map[PeerID]BookEntry{}}
	friend, stranger, caller := hostWith(t, Config{}), hostWith(t, Config{}), hostWith(t, Config{})
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	friends := func(p PeerID) bool { return p == friend.ID() || p == caller.ID() }
	first := hostWith(t, Config{Key: key, AddressBook: book, Friend: friends})
	for _, h := range []*Host{friend, stranger} {
		first.AddAddrs(h.ID(), h.Addrs())
		if err := first.keeper.connect(t.Context(), h.host.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if err := caller.AddPeer(t.Context(), first.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "identify has told where the caller listens", func() bool {
		return len(first.host.Peerstore().Addrs(caller.host.ID())) > 0 && len(first.swarm.Peers()) == 3
	})
	first.book.write(t.Context(), time.Now())
	if _, there := book.entries[stranger.ID()]; there || len(book.entries) != 2 {
		t.Fatalf("in the book: %v", book.entries)
	}
	if e := book.entries[friend.ID()]; len(e.Addrs) == 0 || e.Addrs[0].Reached.IsZero() {
		t.Errorf("the friend: %+v", e)
	}
	if e := book.entries[caller.ID()]; len(e.Addrs) == 0 || !e.Addrs[0].Reached.IsZero() {
		t.Errorf("one that dialled us was reached nowhere: %+v", e)
	}
	first.book.write(t.Context(), time.Now())
	if book.saves != 1 {
		t.Errorf("written %d times, though nothing has changed", book.saves)
	}
	first.book.write(t.Context(), time.Now().Add(bookFresh))
	if book.saves != 2 {
		t.Errorf("written %d times, though the times are old", book.saves)
	}
	book.entries = map[PeerID]BookEntry{}
	clear(first.book.entries)
	_ = first.Close()
	if len(book.entries) != 2 {
		t.Errorf("after Close: %v", book.entries)
	}

	again := hostWith(t, Config{Key: key, AddressBook: book, Friend: friends})
	eventually(t, "the friends are connected again", func() bool { return len(again.Peers()) >= 2 })
	if again.keeper.isStatic(friend.host.ID()) {
		t.Error("a peer of the book has become static")
	}
}

// TestAddressBookKeepsPlaces: where a peer was reached before stays in the book when it is reached elsewhere; static peers are kept though
// nobody knows them as friends.
func TestAddressBookKeepsPlaces(t *testing.T) {
	t.Parallel()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	other := hostWith(t, Config{Key: key})
	old := BookAddr{"/ip4/192.0.2.1/udp/4001/quic-v1", time.Unix(1e9, 0)}
	said := BookAddr{Addr: "/ip4/192.0.2.2/udp/4001/quic-v1"}
	book := &memoryBook{entries: map[PeerID]BookEntry{other.ID(): {other.ID(), []BookAddr{old, said}}}}
	h := hostWith(t, Config{AddressBook: book, Friend: func(PeerID) bool { return false }})
	if err := h.AddPeer(t.Context(), other.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	h.book.write(t.Context(), time.Now())
	got := book.entries[other.ID()]
	if len(got.Addrs) < 2 || got.Addrs[0].Reached.Before(old.Reached) || !slices.Contains(got.Addrs, old) || slices.Contains(got.Addrs, said) {
		t.Errorf("%+v", got)
	}
}

// TestNetworkChangeEndsBackoff: a peer that could not be reached for long is dialled at once when the network changes or it is heard.
func TestNetworkChangeEndsBackoff(t *testing.T) {
	t.Parallel()
	h := hostWith(t, Config{})
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	away := hostWith(t, Config{Key: key})
	_ = away.Close()
	id := away.host.ID()
	later := time.Now().Add(time.Hour)
	waiting := func() *known {
		t := &known{wanted: true, met: true, failures: 9, next: later, away: time.Now().Add(-48 * time.Hour)}
		h.keeper.mu.Lock()
		h.keeper.peers[id] = t
		h.keeper.mu.Unlock()
		return t
	}
	due := func(t *known) bool {
		h.keeper.mu.Lock()
		defer h.keeper.mu.Unlock()
		return t.failures < 9 && t.next.Before(later)
	}
	k := waiting()
	h.keeper.networkChanged()
	if !due(k) {
		t.Error("the network changed, and the peer still has to wait")
	}
	k = waiting()
	h.keeper.heard(id, nil)
	if !due(k) {
		t.Error("the peer was heard, and still has to wait")
	}
	var cap time.Duration
	for _, away := range []time.Duration{0, 3 * time.Minute, 30 * time.Minute, 2 * time.Hour, 48 * time.Hour} {
		if next := retryCap(away, false); next <= cap {
			t.Errorf("away for %v: dialled every %v", away, next)
		} else {
			cap = next
		}
	}
	if got := retryCap(48*time.Hour, true); got != time.Minute {
		t.Errorf("a static peer is dialled every %v", got)
	}
}

// TestThinWhenDrained: a superfluous connection stays while something is under way on it.
func TestThinWhenDrained(t *testing.T) {
	t.Parallel()
	a, b := startHost(t, "/ip4/127.0.0.1/udp/0/quic-v1"), startHost(t, "/ip4/127.0.0.1/udp/0/quic-v1")
	if b.host.ID() < a.host.ID() {
		a, b = b, a // the rule keeps what a dialled
	}
	b.AddAddrs(a.ID(), a.Addrs())
	if err := b.keeper.connect(t.Context(), a.host.ID()); err != nil {
		t.Fatal(err)
	}
	superfluous := b.swarm.ConnsToPeer(a.host.ID())[0]
	s, err := superfluous.NewStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := peer.AddrInfoFromString(b.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	dialled, err := a.swarm.TransportForDialing(addrs.Addrs[0]).Dial(t.Context(), addrs.Addrs[0], b.host.ID())
	if err != nil {
		t.Fatal(err)
	}
	_ = dialled
	t.Cleanup(func() { _ = dialled.Close() })
	eventually(t, "b has two connections", func() bool { return len(b.swarm.ConnsToPeer(a.host.ID())) == 2 })
	for range 3 {
		if !b.thin(a.host.ID()) || superfluous.IsClosed() {
			t.Fatal("a connection was closed with a stream open")
		}
	}
	_ = s.Reset()
	eventually(t, "the superfluous one is closed", func() bool { return !b.thin(a.host.ID()) && superfluous.IsClosed() })
	if n := len(b.swarm.ConnsToPeer(a.host.ID())); n != 1 {
		t.Errorf("%d connections are left", n)
	}
}
