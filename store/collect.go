package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Trie nodes that no event and no room refers to come from runs that wrote nodes ahead of a commit that never came (a join that was
// cut off), and, a few at a time, from resolutions on the way to a state. CollectTrieNodes finds them by marking what is referred to.

const (
	// collectEvery: leavings of resolutions are small, and a collection reads all events and nodes.
	collectEvery = 30 * 24 * time.Hour

	collectBatch  = 1000                 // nodes removed in one commit
	collectStride = 500                  // nodes, events or keys looked at between two pauses
	collectPause  = 5 * time.Millisecond // so that a device does other things too
	collectReport = 2_000_000            // looked at between two words in the log

	// collectVisited bounds the nodes remembered as marked, some 12 MiB. A state is compared with the one marked before it, so the bound
	// costs time only where a room's state is larger than it and forks.
	collectVisited = 1 << 18
	// collectWork bounds the nodes looked at, as a multiple of those in the store. A server that makes more work of its room only brings
	// it about that nothing is collected.
	collectWork = 50
)

// collection is what the store remembers of collections.
type collection struct {
	At     int64  `json:"at"`               // ms, the end of the last
	UpTo   uint64 `json:"up_to"`            // the commit up to which it saw to nodes
	Staged uint64 `json:"staged,omitempty"` // the commit that last wrote nodes ahead of what refers to them
}

var keyCollection = key(tableMeta).str("collection")

func (r *Reader) collection() (c collection, err error) {
	if err = r.getJSON(keyCollection, &c); errors.Is(err, ErrNotFound) {
		err = nil
	}
	return c, err
}

// StageTrieNodes is PutTrieNodes ahead of the commit that will refer to the nodes: if that does not come, they are collected after
// the next Open.
func (tx *Tx) StageTrieNodes(nodes map[eventgraph.Hash][]byte) error {
	c, err := tx.collection()
	if err != nil {
		return err
	}
	c.Staged = tx.ts + 1
	return errors.Join(tx.putJSON(keyCollection, c), tx.PutTrieNodes(nodes))
}

// CollectionDue says whether CollectTrieNodes is worth its while: nodes were staged before Open, or the last collection is long ago.
func (s *Store) CollectionDue(now time.Time) (due bool, err error) {
	err = s.View(func(r *Reader) error {
		c, err := r.collection()
		age := now.Sub(time.UnixMilli(c.At)) // below zero: the clock was ahead
		due = c.Staged > c.UpTo && c.Staged <= s.opened || age < 0 || age >= collectEvery
		return err
	})
	return due, err
}

// CollectTrieNodes removes trie nodes that no event and no room refers to, and returns how many. It may run beside everything else:
// nodes written since Open stay, for whoever wrote them may be about to refer to them. It reads all events and nodes, with pauses. It
// keeps at most 30 MiB in memory, and for that passes over some garbage: below 1 in 200 up to 10 million nodes, about half at 60 million.
// If a node in use is missing or damaged nothing is removed.
func (s *Store) CollectTrieNodes(ctx context.Context, now time.Time) (removed int, err error) {
	c := &collector{s: s, ctx: ctx, visited: map[eventgraph.Hash]struct{}{}}
	if err := s.View(c.mark); err != nil {
		return 0, err
	}
	for from := []byte(nil); ; {
		var garbage []eventgraph.Hash
		err := s.View(func(r *Reader) (err error) {
			garbage, from, err = c.garbage(r, from)
			return err
		})
		if err != nil {
			return removed, err
		}
		if len(garbage) == 0 {
			break
		}
		n, err := s.removeOld(ctx, garbage)
		if err != nil {
			return removed, err
		}
		removed += n
	}
	_, err = s.Update(ctx, func(tx *Tx) error {
		c, err := tx.collection()
		if err != nil {
			return err
		}
		c.At, c.UpTo = now.UnixMilli(), s.opened
		return tx.putJSON(keyCollection, c)
	})
	return removed, err
}

// collector is one collection.
type collector struct {
	s       *Store
	ctx     context.Context
	used    bloom
	nodes   int                          // in the store
	looked  int                          // at nodes, events and keys
	walked  int                          // nodes
	visited map[eventgraph.Hash]struct{} // nodes that are marked, with all below them
}

// step is called for all that is looked at: it pauses, and ends with the context.
func (c *collector) step() error {
	if c.looked++; c.looked%collectStride != 0 {
		return nil
	}
	if c.looked%collectReport == 0 {
		c.s.log.Info("still looking for room state that nothing refers to", "looked_at", c.looked)
	}
	pause := time.NewTimer(collectPause)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// mark marks what events and rooms refer to, as one snapshot has them.
func (c *collector) mark(r *Reader) error {
	err := c.keys(r, nil, func(eventgraph.Hash, uint64) bool { c.nodes++; return true })
	if err != nil {
		return err
	}
	c.used = newBloom(c.nodes)
	// 1. Room by room, in their order, where each event's state differs little from the last one's.
	err = r.Rooms(func(room *Room) (bool, error) {
		var last StoredEvent
		err := r.scan(key(tableOrder).str(string(room.ID)), nil, false, func(_, v []byte) (bool, error) {
			if len(v) < 2 {
				return false, errCutOff
			}
			id := eventgraph.EventID(v[1:])
			return true, r.read(eventKey(id), func(record []byte) error {
				e, _, err := decodeEventHeader(record)
				if err != nil {
					return fmt.Errorf("event %s: %w", id, err)
				}
				return c.markEvent(r, &last, e)
			})
		})
		if err != nil {
			return false, err
		}
		return true, c.markState(r, last.RoomState, room.State)
	})
	if err != nil {
		return err
	}
	// 2. What has no order has states too: rejected events, and perhaps events of rooms that are not here.
	var last StoredEvent
	return r.scan(key(tableEvent), nil, false, func(k, record []byte) (bool, error) {
		e, _, err := decodeEventHeader(record)
		if err != nil {
			return false, fmt.Errorf("event %s: %w", parts(k).str(), err)
		}
		return true, c.markEvent(r, &last, e)
	})
}

// markEvent marks the states of an event; last has the states marked last, and gets these.
func (c *collector) markEvent(r *Reader, last, e *StoredEvent) error {
	if err := c.step(); err != nil {
		return err
	}
	for _, s := range []struct {
		base  eventgraph.Hash
		state eventgraph.Hash
		last  *eventgraph.Hash
	}{
		{last.StateAfter, e.StateBefore, &last.StateBefore},
		{e.StateBefore, e.StateAfter, &last.StateAfter},
		{last.RoomState, e.RoomState, &last.RoomState},
	} {
		if s.state == (eventgraph.Hash{}) {
			continue
		}
		if err := c.markState(r, s.base, s.state); err != nil {
			return err
		}
		*s.last = s.state
	}
	return nil
}

// markState marks the nodes of a state. Those of base are marked.
func (c *collector) markState(r *Reader, base, state eventgraph.Hash) error {
	return eventgraph.WalkNodes(uncached{r}, base, state, func(h eventgraph.Hash) (bool, error) {
		if _, done := c.visited[h]; done {
			return false, nil
		}
		if c.walked++; c.walked > collectWork*(c.nodes+collectStride) {
			return false, errors.New("states differ too much from each other to be gone through")
		}
		if len(c.visited) >= collectVisited {
			clear(c.visited)
		}
		c.visited[h] = struct{}{}
		c.used.add(h)
		return true, c.step()
	})
}

// uncached reads trie nodes without pushing others out of the cache.
type uncached struct{ r *Reader }

func (u uncached) TrieNode(h eventgraph.Hash) ([]byte, error) {
	return u.r.get(key(tableTrie).bytes(h[:]))
}

// garbage lists unmarked nodes written before Open, up to collectBatch of them, from a key on (nil: the first); next is where to go on.
func (c *collector) garbage(r *Reader, from []byte) (garbage []eventgraph.Hash, next []byte, err error) {
	err = c.keys(r, from, func(h eventgraph.Hash, written uint64) bool {
		if written <= c.s.opened && !c.used.has(h) {
			garbage = append(garbage, h)
			next = key(tableTrie).bytes(h[:]).bytes([]byte{0}) // the key after it
		}
		return len(garbage) < collectBatch
	})
	return garbage, next, err
}

// keys calls f for the trie nodes from a key on, with the commit that wrote each, until f says no.
func (c *collector) keys(r *Reader, from []byte, f func(h eventgraph.Hash, written uint64) bool) error {
	prefix := key(tableTrie)
	it := r.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	if from == nil {
		from = prefix
	}
	for it.Seek(from); it.Valid(); it.Next() {
		k := it.Item().Key()[1:]
		if len(k) != len(eventgraph.Hash{}) {
			return fmt.Errorf("trie node with a key of %d bytes", len(k))
		}
		if err := c.step(); err != nil {
			return err
		}
		if !f(eventgraph.Hash(k), it.Item().Version()) {
			return nil
		}
	}
	return nil
}

// removeOld removes those of the nodes that were not written again since Open.
func (s *Store) removeOld(ctx context.Context, nodes []eventgraph.Hash) (int, error) {
	var gone []eventgraph.Hash
	_, err := s.Update(ctx, func(tx *Tx) error {
		gone = nil
		for _, h := range nodes {
			old, err := tx.oldTrieNode(h)
			if err != nil {
				return err
			}
			if !old {
				continue
			}
			gone = append(gone, h)
			if err := tx.delete(key(tableTrie).bytes(h[:])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	s.tries.drop(gone)
	return len(gone), nil
}

// oldTrieNode says whether the node is there and was written before Open.
func (tx *Tx) oldTrieNode(h eventgraph.Hash) (bool, error) {
	k := key(tableTrie).bytes(h[:])
	if tx.pending.has(k) {
		return false, nil
	}
	item, err := tx.txn.Get(k)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil && item.Version() <= tx.s.opened, err
}

// bloom is a set of hashes that may claim to have one that it has not, and never the reverse. It errs for 1 hash in 400 with 16 bits
// for each that was added, for 1 in 6 with 4.
type bloom []uint64

const (
	bloomBits    = 16      // for each hash, if that is not more than
	maxBloom     = 2 << 20 // words, 16 MiB
	bloomProbes  = 4
	bitsOfAWord  = 64
	minBloomSize = 16 // words
)

// newBloom makes a set for about n hashes.
func newBloom(n int) bloom {
	words := minBloomSize
	for words < maxBloom && words*bitsOfAWord < n*bloomBits {
		words *= 2
	}
	return make(bloom, words)
}

// place gives the word and the bit of a probe. Hashes are random already.
func (b bloom) place(h eventgraph.Hash, probe uint64) (word int, bit uint64) {
	at := binary.BigEndian.Uint64(h[:]) + probe*(binary.BigEndian.Uint64(h[8:])|1)
	return int(at / bitsOfAWord % uint64(len(b))), 1 << (at % bitsOfAWord)
}

func (b bloom) add(h eventgraph.Hash) {
	for probe := range uint64(bloomProbes) {
		word, bit := b.place(h, probe)
		b[word] |= bit
	}
}

func (b bloom) has(h eventgraph.Hash) bool {
	for probe := range uint64(bloomProbes) {
		if word, bit := b.place(h, probe); b[word]&bit == 0 {
			return false
		}
	}
	return true
}
