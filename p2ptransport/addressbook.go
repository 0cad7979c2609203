package p2ptransport

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// bookSoon is how long after a connection the peer is written down: until then it is known whose friend it is, and
	// identify has told where it listens.
	bookSoon = 5 * time.Second
	// bookAgain is how often connected peers are looked over that are not in the book yet, or not as they are now.
	bookAgain = 5 * time.Minute
	// bookFresh is how old the times in the book may get before they alone are worth a write.
	bookFresh = 6 * time.Hour
	// bookLast is how long Close waits for the last write.
	bookLast = time.Second
	// bookAddrs of one peer are kept.
	bookAddrs = 8
)

// AddressBook keeps where peers were reached from one run of the host to the next. The host loads it once, in New, and saves
// to it now and then, one call after another, the last one in Close. It holds as many entries as it likes.
type AddressBook interface {
	Load() ([]BookEntry, error)
	Save(ctx context.Context, changed []BookEntry) error
}

// BookEntry is a peer with its addresses, the best first.
type BookEntry struct {
	Peer  PeerID
	Addrs []BookAddr
}

// BookAddr is a multiaddr without /p2p/ID. Reached is zero if the peer was never reached there, but said that it listens there.
type BookAddr struct {
	Addr    string
	Reached time.Time
}

// reached is when the peer was last reached anywhere.
func (e *BookEntry) reached() (last time.Time) {
	for _, a := range e.Addrs {
		if a.Reached.After(last) {
			last = a.Reached
		}
	}
	return last
}

// book writes down the friends that are connected. Strangers' identities are free, and would push friends out.
type book struct {
	h    *Host
	to   AddressBook
	wake chan struct{} // holds one: somebody has connected

	writing chan struct{}     // holds one while somebody writes
	entries map[peer.ID]*page // as in the book; owned by load and then by who writes
}

// page is an entry in the book. It was written in this run, or written is zero.
type page struct {
	BookEntry
	written time.Time
}

func newBook(h *Host, to AddressBook) *book {
	return &book{h: h, to: to, wake: make(chan struct{}, 1), writing: make(chan struct{}, 1), entries: make(map[peer.ID]*page)}
}

// load gives the keeper whom the book knows, those reached last first.
func (b *book) load() {
	entries, err := b.to.Load()
	if err != nil {
		b.h.log.Warn("address book not readable: peers have to be found anew", "error", err)
		return
	}
	slices.SortStableFunc(entries, func(x, y BookEntry) int { return y.reached().Compare(x.reached()) })
	for i, e := range entries[:min(len(entries), maxKnown/2)] {
		id, err := peer.Decode(string(e.Peer))
		if err != nil {
			continue
		}
		var addrs []ma.Multiaddr
		for _, a := range e.Addrs {
			if m, err := ma.NewMultiaddr(a.Addr); err == nil {
				addrs = append(addrs, m)
			}
		}
		b.entries[id] = &page{BookEntry: e}
		b.h.keeper.remember(id, addrs, e.reached(), i)
	}
}

// changed is called for each new connection.
func (b *book) changed() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run writes until the host closes.
func (b *book) run() {
	again := time.NewTimer(bookAgain)
	defer again.Stop()
	for {
		select {
		case <-b.h.ctx.Done():
			return
		case <-b.wake:
			again.Reset(bookSoon)
			continue
		case <-again.C:
		}
		again.Reset(bookAgain)
		b.write(b.h.ctx, time.Now())
	}
}

// last writes what is not written yet, while all are still connected.
func (b *book) last() {
	ctx, cancel := context.WithTimeout(b.h.ctx, bookLast)
	defer cancel()
	b.write(ctx, time.Now())
}

// write saves what has changed of the friends that are connected.
func (b *book) write(ctx context.Context, now time.Time) {
	select {
	case b.writing <- struct{}{}:
		defer func() { <-b.writing }()
	case <-ctx.Done():
		return
	}
	var changed []BookEntry
	for _, p := range b.h.swarm.Peers() {
		if e := b.current(p, now); e != nil {
			changed = append(changed, *e)
		}
	}
	if len(changed) == 0 {
		return
	}
	if err := b.to.Save(ctx, changed); err != nil {
		if b.h.ctx.Err() == nil {
			b.h.log.Warn("address book not written", "error", err)
		}
		return
	}
	for _, e := range changed {
		if id, err := peer.Decode(string(e.Peer)); err == nil {
			if len(b.entries) >= maxKnown {
				clear(b.entries) // costs a write for each at worst
			}
			b.entries[id] = &page{e, now}
		}
	}
}

// current is the peer's new entry, nil if the one in the book will do or it is not to have one.
func (b *book) current(p peer.ID, now time.Time) *BookEntry {
	old := b.entries[p]
	e := &BookEntry{Peer: PeerID(p.String())}
	add := func(a string, reached time.Time) {
		if len(e.Addrs) < bookAddrs && !slices.ContainsFunc(e.Addrs, func(x BookAddr) bool { return x.Addr == a }) {
			e.Addrs = append(e.Addrs, BookAddr{a, reached})
		}
	}
	for _, c := range b.h.swarm.ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound && !c.Stat().Limited {
			add(shown(c.RemoteMultiaddr()).String(), now)
		}
	}
	for _, a := range b.h.host.Peerstore().Addrs(p) {
		if _, disguised := undisguise(a); !disguised {
			add(a.String(), time.Time{})
		}
	}
	if len(e.Addrs) == 0 || old != nil && says(&old.BookEntry, e) && now.Sub(old.written) < bookFresh {
		return nil
	}
	if old != nil {
		for _, a := range old.Addrs { // where it was reached on another network, it may be again
			if !a.Reached.IsZero() {
				add(a.Addr, a.Reached)
			}
		}
	}
	if !b.h.keeper.isStatic(p) && b.h.friend != nil && !b.h.friend(e.Peer) {
		return nil
	}
	return e
}

// says says whether all that e says stands in old.
func says(old, e *BookEntry) bool {
	for _, a := range e.Addrs {
		if !slices.ContainsFunc(old.Addrs, func(x BookAddr) bool {
			return x.Addr == a.Addr && (a.Reached.IsZero() || !x.Reached.IsZero())
		}) {
			return false
		}
	}
	return true
}

// shown takes the disguise off.
func shown(a ma.Multiaddr) ma.Multiaddr {
	if plain, ok := undisguise(a); ok {
		return plain
	}
	return a
}

// remember gives the keeper a peer of the address book; those with a lower rank are dialled first.
func (k *keeper) remember(p peer.ID, addrs []ma.Multiaddr, reached time.Time, rank int) {
	if len(addrs) == 0 || p == k.h.host.ID() {
		return
	}
	k.learn(p, addrs)
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peer(p)
	t.met, t.wanted, t.away = true, true, reached
	if !t.up && t.next.IsZero() {
		t.next = time.Now().Add(time.Duration(rank) * time.Millisecond)
	}
	k.signal()
}

func (k *keeper) isStatic(p peer.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.peers[p]
	return t != nil && t.static
}
