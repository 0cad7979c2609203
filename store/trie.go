package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// trieCacheBytes bounds the trie nodes kept in memory; a node is at most some hundred bytes to a few KiB.
const trieCacheBytes = 4 << 20

// trieCache keeps nodes read lately. They are named by their content, so an entry is never wrong.
type trieCache struct {
	mu    sync.Mutex
	nodes *simplelru.LRU[eventgraph.Hash, []byte]
	size  int
}

func newTrieCache() *trieCache {
	c := &trieCache{}
	c.nodes, _ = simplelru.NewLRU(1<<20, func(_ eventgraph.Hash, n []byte) { c.size -= len(n) + 128 })
	return c
}

func (c *trieCache) get(h eventgraph.Hash) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes.Get(h)
}

func (c *trieCache) put(h eventgraph.Hash, node []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes.Contains(h) {
		return
	}
	c.nodes.Add(h, node)
	c.size += len(node) + 128
	for c.size > trieCacheBytes {
		c.nodes.RemoveOldest()
	}
}

// drop takes out nodes that were collected.
func (c *trieCache) drop(nodes []eventgraph.Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range nodes {
		c.nodes.Remove(h)
	}
}

// collectBatch is how many nodes one commit removes.
const collectBatch = 1000

// CollectTrieNodes removes trie nodes that no event and no room refers to, as a join that failed leaves them, and returns how
// many. It may run beside everything else: nodes written since Open stay, for whoever wrote them may be about to
// refer to them. It reads all events and nodes, and keeps 32 bytes in memory for each node in use.
func (s *Store) CollectTrieNodes(ctx context.Context) (int, error) {
	var garbage []eventgraph.Hash
	err := s.View(func(r *Reader) error {
		used, err := r.usedTrieNodes(ctx)
		if err != nil {
			return err
		}
		garbage, err = r.oldTrieNodes(func(h eventgraph.Hash) bool { _, ok := used[h]; return !ok })
		return err
	})
	if err != nil {
		return 0, err
	}
	removed := 0
	for len(garbage) > 0 {
		batch := garbage[:min(len(garbage), collectBatch)]
		garbage = garbage[len(batch):]
		var gone []eventgraph.Hash
		_, err := s.Update(ctx, func(tx *Tx) error {
			gone = nil
			for _, h := range batch {
				// Written again meanwhile?
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
			return removed, err
		}
		s.tries.drop(gone)
		removed += len(gone)
	}
	return removed, nil
}

// usedTrieNodes marks what events and rooms refer to.
func (r *Reader) usedTrieNodes(ctx context.Context) (map[eventgraph.Hash]struct{}, error) {
	used := map[eventgraph.Hash]struct{}{}
	var open []eventgraph.Hash
	mark := func(h eventgraph.Hash) {
		if _, ok := used[h]; !ok && h != (eventgraph.Hash{}) {
			used[h] = struct{}{}
			open = append(open, h)
		}
	}
	follow := func() error {
		for len(open) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			h := open[len(open)-1]
			open = open[:len(open)-1]
			node, err := r.get(key(tableTrie).bytes(h[:]))
			if errors.Is(err, ErrNotFound) {
				r.s.log.Error("a trie node is missing", "hash", fmt.Sprintf("%x", h))
				continue
			}
			if err != nil {
				return err
			}
			children, err := eventgraph.NodeChildren(node)
			if err != nil {
				return err
			}
			for _, c := range children {
				mark(c)
			}
		}
		return nil
	}
	err := r.Rooms(func(room *Room) (bool, error) {
		mark(room.State)
		return true, follow()
	})
	if err != nil {
		return nil, err
	}
	return used, r.scan(key(tableEvent), nil, false, func(k, v []byte) (bool, error) {
		e, _, err := decodeEventHeader(v)
		if err != nil {
			return false, fmt.Errorf("event %s: %w", parts(k).str(), err)
		}
		mark(e.StateBefore)
		mark(e.StateAfter)
		mark(e.RoomState)
		return true, follow()
	})
}

// oldTrieNodes lists nodes written before Open that are unused.
func (r *Reader) oldTrieNodes(unused func(eventgraph.Hash) bool) ([]eventgraph.Hash, error) {
	prefix := key(tableTrie)
	it := r.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	var old []eventgraph.Hash
	for it.Seek(prefix); it.Valid(); it.Next() {
		k := it.Item().Key()[1:]
		if len(k) != len(eventgraph.Hash{}) {
			return nil, fmt.Errorf("trie node with a key of %d bytes", len(k))
		}
		if h := eventgraph.Hash(k); it.Item().Version() <= r.s.opened && unused(h) {
			old = append(old, h)
		}
	}
	return old, nil
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
