package store

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// eventCacheBytes bounds the parsed events kept in memory, each counted as no less than it takes (TestEventCacheCountsEnough).
const eventCacheBytes = 8 << 20

// eventCache keeps events as of the newest durable commit. Only readers of exactly that commit fill it, and a commit
// takes out what it wrote, so an entry holds for all commits from the one where it was read until it goes.
type eventCache struct {
	mu     sync.Mutex
	commit uint64
	events *simplelru.LRU[eventgraph.EventID, cachedEvent]
	size   int
}

type cachedEvent struct {
	e     StoredEvent
	since uint64 // the commit at which it was read
}

// cost is three times the event's JSON and some fixed bytes. With create events and power levels goes what the rules read
// from them, once they judged by it: of many short user IDs, several times their bytes.
func (c cachedEvent) cost() int {
	switch c.e.Type() {
	case "m.room.create", "m.room.power_levels":
		return 8*len(c.e.Raw()) + 512
	}
	return 3*len(c.e.Raw()) + 512
}

func newEventCache() *eventCache {
	c := &eventCache{}
	c.events, _ = simplelru.NewLRU(1<<20, func(_ eventgraph.EventID, e cachedEvent) { c.size -= e.cost() })
	return c
}

// get returns a copy of the event as a snapshot of the commit shows it, or nil.
func (c *eventCache) get(id eventgraph.EventID, commit uint64) *StoredEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.events.Get(id)
	if !ok || commit < entry.since {
		return nil
	}
	e := entry.e
	return &e
}

// put keeps a copy of an event that was read from a snapshot of the commit.
func (c *eventCache) put(e *StoredEvent, commit uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if commit != c.commit || c.events.Contains(e.ID()) {
		return
	}
	entry := cachedEvent{*e, commit}
	c.events.Add(e.ID(), entry)
	c.size += entry.cost()
	for c.size > eventCacheBytes {
		c.events.RemoveOldest()
	}
}

// advance takes in what a durable commit wrote.
func (c *eventCache) advance(commit uint64, o *overlay) {
	c.mu.Lock()
	c.commit = commit
	var written []*StoredEvent
	for _, k := range o.keys([]byte{byte(tableEvent)}, nil, false) {
		id := eventgraph.EventID(parts([]byte(k)).str())
		c.events.Remove(id)
		if e := o.event(id); e != nil {
			written = append(written, e)
		}
	}
	c.mu.Unlock()
	for _, e := range written {
		c.put(e, commit)
	}
}

// putEvent writes an event's record and keeps the parsed event beside it.
func (o *overlay) putEvent(e *StoredEvent) error {
	k := eventKey(e.ID())
	record := e.encode()
	kept := *e
	if e.HashMismatch() {
		kept.mismatched = e.Event
	}
	o.events[e.ID()] = pendingEvent{&kept, record}
	return o.write(k, write{value: record})
}

// pendingEvent is an event with the record that it was written as: if the overlay holds another, it was undone.
type pendingEvent struct {
	e      *StoredEvent
	record []byte
}

// event returns a copy of an event written as a whole by putEvent and not undone, or nil.
func (o *overlay) event(id eventgraph.EventID) *StoredEvent {
	p, ok := o.events[id]
	if !ok {
		return nil
	}
	w := o.writes[string(eventKey(id))]
	if w.deleted || len(w.value) == 0 || &w.value[0] != &p.record[0] {
		return nil
	}
	e := *p.e
	return &e
}
