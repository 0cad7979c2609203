package media

import (
	"context"
	"sync"
)

// Turns lets Each at one time work for each key; further ones wait. It is for concurrent use.
type Turns[K comparable] struct {
	Each int

	mu sync.Mutex
	of map[K]*turns
}

type turns struct {
	places chan struct{}
	users  int // who work and who wait; at 0 it is forgotten
}

// Take waits for a place, which release gives back once. Error: that of ctx.
func (t *Turns[K]) Take(ctx context.Context, k K) (release func(), err error) {
	t.mu.Lock()
	if t.of == nil {
		t.of = map[K]*turns{}
	}
	of := t.of[k]
	if of == nil {
		of = &turns{places: make(chan struct{}, t.Each)}
		t.of[k] = of
	}
	of.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if of.users--; of.users == 0 {
			delete(t.of, k)
		}
	}
	select {
	case of.places <- struct{}{}:
		return func() { <-of.places; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
