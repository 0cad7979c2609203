package store

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// trieCacheBytes bounds the trie nodes kept in memory; a node has some hundred bytes.
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
