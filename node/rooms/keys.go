package rooms

import (
	"context"
	"crypto/ed25519"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// maxAhead is how far ahead of our clock a key can be known to be valid: room version 5 asks for the lesser of valid_until_ts
// and 7 days ahead. An event from further ahead waits for the clock.
const maxAhead = 7 * 24 * time.Hour

// Key makes Rooms an eventgraph.KeyRing over the key documents that the store keeps. Our own key needs no document.
func (r *Rooms) Key(server eventgraph.ServerName, id eventgraph.KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	if strict && ts > r.now().Add(maxAhead).UnixMilli() {
		return nil, eventgraph.ErrKeyNotValid
	}
	if server == r.key.Server && id == r.key.ID {
		return r.key.Private.Public().(ed25519.PublicKey), nil
	}
	var doc *eventgraph.KeyDocument
	err := r.store.View(func(read *store.Reader) (err error) {
		doc, err = read.KeyDocument(server)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, eventgraph.ErrKeyUnknown
	}
	if err != nil {
		return nil, err
	}
	return doc.KeyFor(id, ts, strict)
}

// newVerifySlots makes a slot for each core: that many signatures are checked at a time, whoever asks.
func newVerifySlots() chan struct{} { return make(chan struct{}, runtime.GOMAXPROCS(0)) }

// verify checks the signatures of an event, one by one: nil, *MissingError with Keys, *Refusal, or an error of the store.
// (SS API, Checks performed on receipt of a PDU, step 2.)
func (r *Rooms) verify(e *eventgraph.Event) error {
	err := e.VerifySignatures(r)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, eventgraph.ErrKeyUnknown), errors.Is(err, eventgraph.ErrKeyNotValid):
		return &MissingError{Keys: r.keysOf(e)}
	case errors.Is(err, eventgraph.ErrSignature):
		return refuse("M_FORBIDDEN", "event %s: %s", e.ID(), err)
	}
	return err
}

// maxKeysOf bounds how many keys of one server an event can make us ask for.
const maxKeysOf = 4

// keysOf lists the keys that are lacking to judge the signatures of e.
func (r *Rooms) keysOf(e *eventgraph.Event) []KeyNeeded {
	traits, _ := e.Version().Traits()
	var needed []KeyNeeded
	for _, server := range e.RequiredSigners() {
		ids := e.SignedBy(server)
		for _, id := range ids[:min(len(ids), maxKeysOf)] {
			_, err := r.Key(server, id, e.OriginServerTS(), traits.StrictKeyValidity)
			if errors.Is(err, eventgraph.ErrKeyUnknown) || errors.Is(err, eventgraph.ErrKeyNotValid) {
				needed = append(needed, KeyNeeded{Server: server, ID: id, TS: e.OriginServerTS()})
			}
		}
	}
	return needed
}

// verifyAll checks the signatures of events on all cores, except of those held already, whose signatures were checked when they
// came. It returns what verify found for each.
func (r *Rooms) verifyAll(ctx context.Context, events []*eventgraph.Event) ([]error, error) {
	held, err := r.alreadyHeld(events)
	if err != nil {
		return nil, err
	}
	found := make([]error, len(events))
	if len(events) == 1 {
		if !held[0] {
			err = r.withSlot(ctx, func() { found[0] = r.verify(events[0]) })
		}
		return found, err
	}
	var wait sync.WaitGroup
	defer wait.Wait()
	next := make(chan int)
	for range min(cap(r.verifying), len(events)) {
		wait.Go(func() {
			for i := range next {
				if err := r.withSlot(ctx, func() { found[i] = r.verify(events[i]) }); err != nil {
					found[i] = err
				}
			}
		})
	}
	for i := range events {
		if !held[i] {
			next <- i
		}
	}
	close(next)
	wait.Wait()
	return found, ctx.Err()
}

func (r *Rooms) withSlot(ctx context.Context, f func()) error {
	select {
	case r.verifying <- struct{}{}:
		defer func() { <-r.verifying }()
		f()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// alreadyHeld says of which events a copy is held that is as good.
func (r *Rooms) alreadyHeld(events []*eventgraph.Event) ([]bool, error) {
	held := make([]bool, len(events))
	err := r.store.View(func(read *store.Reader) error {
		for i, e := range events {
			_, ok, err := read.HasEvent(e.ID())
			if err != nil {
				return err
			}
			if ok && !e.HashMismatch() {
				s, err := read.Event(e.ID())
				if err != nil {
					return err
				}
				ok = !s.HashMismatch()
			}
			held[i] = ok
		}
		return nil
	})
	return held, err
}
