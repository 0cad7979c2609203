package search

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// startAfter is when a run looks through all rooms for what has no segment: late enough not to be in the way of a start.
	startAfter = time.Minute
	// settle is for how long rooms that have got many events are let be: so a burst of them makes one segment.
	settle = 10 * time.Second
	// share is the part of a core that looking at rooms and making segments takes: one of so many. A segment takes some 15 ms, a look at a room in
	// which there is nothing to do 0.1, and 10 µs more for each of its segments.
	share = 20
	// leastRest is the shortest rest: what is owed is gathered up to that.
	leastRest = 20 * time.Millisecond
)

// Indexer makes segments. It waits for no writer of a room, and none waits for it: a segment of what has changed while it was made is not written
// (store.Tx.PutSegment).
type Indexer struct {
	store *store.Store
	log   *slog.Logger
	owed  time.Duration // rest, for what Run has done
}

// NewIndexer makes an indexer; it does nothing before Run. There may be one for a store.
func NewIndexer(s *store.Store, log *slog.Logger) *Indexer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Indexer{store: s, log: log}
}

// Run makes segments until ctx ends: some time after the start of what all rooms have without one, and then of what comes. While nothing comes it
// sleeps.
func (x *Indexer) Run(ctx context.Context) {
	if !rest(ctx, startAfter) {
		return
	}
	var rooms []eventgraph.RoomID
	err := x.store.View(func(r *store.Reader) error {
		return r.RoomIDs(func(room eventgraph.RoomID) (bool, error) { rooms = append(rooms, room); return true, nil })
	})
	for err == nil {
		left := x.indexAll(ctx, rooms)
		if rooms, err = x.store.Unindexed(ctx); err == nil && !rest(ctx, settle) {
			return
		}
		rooms = append(left, rooms...)
		slices.Sort(rooms)
		rooms = slices.Compact(rooms)
	}
	if ctx.Err() == nil && !errors.Is(err, store.ErrClosed) {
		x.log.Error("there will be no index for search of what comes", "err", err)
	}
}

// indexAll makes the segments that rooms lack. What it cannot make a search reads through, so it goes on; left are those for which there was no room on
// the disk.
func (x *Indexer) indexAll(ctx context.Context, rooms []eventgraph.RoomID) (left []eventgraph.RoomID) {
	for i, room := range rooms {
		err := x.index(ctx, room, x.pace)
		switch {
		case ctx.Err() != nil || errors.Is(err, store.ErrClosed):
			return nil
		case errors.Is(err, store.ErrDiskFull):
			x.log.Warn("the index for search waits for room on the disk")
			return rooms[i:]
		case err != nil:
			x.log.Error("the index for search of a room is incomplete", "room", room, "err", err)
		}
	}
	return nil
}

// pace rests for what has been done since a time. It returns at once if ctx ends.
func (x *Indexer) pace(ctx context.Context, since time.Time) {
	x.owed += (share - 1) * time.Since(since)
	if x.owed >= leastRest {
		rest(ctx, x.owed)
		x.owed = 0
	}
}

// Index makes the segments that a room lacks, at once. It may be called beside Run.
func (x *Indexer) Index(ctx context.Context, room eventgraph.RoomID) error {
	return x.index(ctx, room, func(context.Context, time.Time) {})
}

// index makes the segments that a room lacks, from the newest on, and calls pace after each step.
func (x *Indexer) index(ctx context.Context, room eventgraph.RoomID, pace func(ctx context.Context, since time.Time)) error {
	left := 0 // events in a row
	for from := int64(math.MaxInt64); ; {
		var stretch *store.Stretch
		began := time.Now()
		err := x.store.View(func(r *store.Reader) error {
			next, few, err := r.NextStretch(room, from)
			stretch, left = next, max(left, few)
			return err
		})
		if err != nil {
			return err
		}
		if stretch == nil {
			pace(ctx, began)
			break
		}
		from = stretch.Low - 1
		for stretch != nil { // more than once if there is much text
			if stretch, err = x.make(ctx, stretch); err != nil {
				return err
			}
			pace(ctx, began)
			began = time.Now()
		}
	}
	x.store.LeftUnindexed(room, left)
	return ctx.Err()
}

// make makes a segment of a stretch, and returns what of it is for another.
func (x *Indexer) make(ctx context.Context, s *store.Stretch) (rest *store.Stretch, err error) {
	made := newSegment()
	err = x.store.View(func(r *store.Reader) error {
		rest, err = r.Said(s, func(e *store.StoredEvent) (bool, error) {
			if _, text := Said(e.Shown()); text != "" {
				made.add(e.Order, text)
			}
			return !made.full(), ctx.Err()
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	index, put := made.encode(), false
	_, err = x.store.Update(ctx, func(tx *store.Tx) (err error) {
		put, err = tx.PutSegment(s, index)
		return err
	})
	if err == nil && !put { // Unindexed names the room again
		x.store.LeftUnindexed(s.Room, s.Rows)
	}
	return rest, err
}

// rest waits; false if ctx has ended.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
