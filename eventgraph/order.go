package eventgraph

import (
	"cmp"
	"container/heap"
	"slices"
)

// SortTopologically orders events so that each comes after those of its prev_events (and auth_events) that
// are among them; ties by depth, then origin_server_ts, then ID. It does not recurse. An event that
// stands twice in events comes once.
func SortTopologically(events []*Event) []*Event {
	// Kahn's algorithm: waiting counts the parents still to come, ready holds what waits for none.
	index := make(map[EventID]int, len(events))
	for i, e := range events {
		if _, twice := index[e.id]; !twice {
			index[e.id] = i
		}
	}
	waiting := make([]int, len(events))
	children := make([][]int, len(events))
	var ready eventHeap
	for i, e := range events {
		if index[e.id] != i {
			continue
		}
		for _, parents := range [2][]EventID{e.prev, e.auth} {
			for _, id := range parents {
				if p, ok := index[id]; ok && p != i {
					waiting[i]++
					children[p] = append(children[p], i)
				}
			}
		}
		if waiting[i] == 0 {
			ready = append(ready, e)
		}
	}
	heap.Init(&ready)
	sorted := make([]*Event, 0, len(index))
	for ready.Len() > 0 {
		e := heap.Pop(&ready).(*Event)
		sorted = append(sorted, e)
		for _, c := range children[index[e.id]] {
			if waiting[c]--; waiting[c] == 0 {
				heap.Push(&ready, events[c])
			}
		}
	}
	if len(sorted) < len(index) {
		// Events name their parents by hash, so a cycle needs a collision of SHA-256, or IDs that LoadEvent was told wrongly.
		// The rest comes last, since losing it would be worse.
		seen := make(map[EventID]bool, len(sorted))
		for _, e := range sorted {
			seen[e.id] = true
		}
		var rest []*Event
		for i, e := range events {
			if index[e.id] == i && !seen[e.id] {
				rest = append(rest, e)
			}
		}
		slices.SortFunc(rest, compareEvents)
		sorted = append(sorted, rest...)
	}
	return sorted
}

func compareEvents(a, b *Event) int {
	return cmp.Or(cmp.Compare(a.depth, b.depth), cmp.Compare(a.ts, b.ts), cmp.Compare(a.id, b.id))
}

// eventHeap has the least event by compareEvents first.
type eventHeap []*Event

func (h eventHeap) Len() int           { return len(h) }
func (h eventHeap) Less(i, j int) bool { return compareEvents(h[i], h[j]) < 0 }
func (h eventHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(e any)        { *h = append(*h, e.(*Event)) }
func (h *eventHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
