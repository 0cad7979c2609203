package clientapi

import (
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// shares keeps so many values, the one not used for longest goes; but of one user so many of these, whose oldest goes first: nobody pushes out
// what others need. It is for concurrent use.
type shares[K comparable, V any] struct {
	most func(eventgraph.UserID) int

	mu  sync.Mutex
	all *lru.Cache[K, V]
	of  map[eventgraph.UserID][]K // the oldest first; what is gone is taken out with the user's next
}

func newShares[K comparable, V any](size int, most func(eventgraph.UserID) int) *shares[K, V] {
	s := &shares[K, V]{most: most, of: map[eventgraph.UserID][]K{}}
	s.all, _ = lru.New[K, V](size) // fails only on a size below 1
	return s
}

func (s *shares[K, V]) add(user eventgraph.UserID, k K, v V) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := slices.DeleteFunc(s.of[user], func(k K) bool { return !s.all.Contains(k) })
	for len(keys) >= s.most(user) {
		s.all.Remove(keys[0])
		keys = slices.Delete(keys, 0, 1)
	}
	s.of[user] = append(keys, k)
	s.all.Add(k, v)
}

func (s *shares[K, V]) get(k K) (V, bool) { return s.all.Get(k) }

// remove says whether it was there.
func (s *shares[K, V]) remove(k K) bool { return s.all.Remove(k) }
