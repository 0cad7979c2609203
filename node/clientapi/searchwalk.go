package clientapi

import (
	"context"
	"errors"
	"math"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/search"
	"github.com/plexus-p2p/plexus/store"
)

// searchWalk goes through a room for a search, from the newest event to the oldest, and passes over those of which the index says that they do not fit:
//
//	newest ──▶ rows: each ──▶ segment: its candidates ──▶ segment: its candidates ──▶ rows: each ──▶ oldest
type searchWalk struct {
	ctx   context.Context
	read  *store.Reader
	room  eventgraph.RoomID
	words []string // of the term, one at least

	events, candidates, segments int // that may still be looked at
}

// walk calls f for all accepted events that may fit, as far as the bounds go. Once they are reached for events that are in no segment, it goes on with
// the segments: some that is old is more than none.
func (w *searchWalk) walk(f func(*store.StoredEvent) error) error {
	above, whole := int64(math.MaxInt64), true // all that is higher has been looked at
	err := w.read.Segments(w.room, math.MaxInt64, func(seg *store.Segment) (bool, error) {
		if whole = w.segments > 0; !whole {
			return false, nil
		}
		w.segments--
		err := w.rows(seg.High+1, above, f)
		if err != nil {
			return false, err
		}
		above = seg.Low - 1
		whole, err = w.segment(seg, f)
		return whole, errors.Join(err, w.ctx.Err())
	})
	if err != nil || !whole {
		return err
	}
	return w.rows(math.MinInt64, above, f)
}

// segment calls f for the candidates of a segment, the newest first; false if there were too many.
func (w *searchWalk) segment(seg *store.Segment, f func(*store.StoredEvent) error) (whole bool, err error) {
	orders, err := search.Candidates(seg.Index, w.words)
	if err != nil {
		return false, err
	}
	for _, order := range orders {
		if w.candidates == 0 {
			return false, nil
		}
		w.candidates--
		e, err := w.read.At(w.room, order)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err == nil {
			err = f(e)
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// rows calls f for the accepted events between two orders, the newest first.
func (w *searchWalk) rows(low, high int64, f func(*store.StoredEvent) error) error {
	if low > high || w.events <= 0 {
		return nil
	}
	return w.read.Timeline(w.room, high, true, func(e *store.StoredEvent) (bool, error) {
		if e.Order < low {
			return false, nil
		}
		w.events--
		if err := f(e); err != nil {
			return false, err
		}
		return w.events > 0, w.ctx.Err()
	})
}
