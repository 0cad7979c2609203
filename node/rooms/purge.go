package rooms

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Purging removes the content of old events from this device, and from it alone. The graph stays whole: a purged event keeps its place, its
// edges and its states, and of its JSON what a redaction leaves, so that it is still known by its ID, what rests on it can be judged, and
// nobody fetches it again. It is shown to no client, nor given to another server but in that reduced form, where the graph demands it. State is
// not purged, nor what is in an auth chain, the newest events, and redactions of what stays.

const (
	// purgeLooks is how many events one turn of the room's writer looks at, and purgeWrites how many it purges: others who wait to write to
	// the room wait some milliseconds. A reduced event takes about 1 KB in the commit.
	purgeLooks  = 500
	purgeWrites = 200
)

// PurgeLimit says what is old: what stands before an event in the room's order here, or was sent before a time.
type PurgeLimit struct {
	Event eventgraph.EventID
	Time  int64 // ms; counts if Event is ""
}

// PurgeProgress is how far a purge has come.
type PurgeProgress struct {
	Looked int `json:"looked_at"`
	Purged int `json:"purged"`
}

// Purge purges a room. progress is called after each step, all of which is durable then. A purge that was ended by ctx, or an error, is gone on with
// by calling it again. Errors: store.ErrNotFound (the room), a *Refusal (the event is not in the room's order).
func (r *Rooms) Purge(ctx context.Context, room eventgraph.RoomID, limit PurgeLimit, progress func(PurgeProgress)) (PurgeProgress, error) {
	var done PurgeProgress
	if _, err := r.liveRoom(room); err != nil {
		return done, err
	}
	p := purge{limit: limit, upTo: math.MaxInt64, from: math.MinInt64, whole: true, to: math.MinInt64}
	if limit.Event != "" {
		e, err := r.stored(limit.Event)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return done, err
		}
		if err != nil || e.RoomID() != room || e.Order == 0 {
			return done, refuse("M_NOT_FOUND", "there is no event %s in the history of %s here", limit.Event, room)
		}
		p.upTo = e.Order - 1
	}
	for !p.ended {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		from := p
		step := func(run *run) error {
			p = from // it may be run again
			return p.step(run)
		}
		if err := r.inTurn(ctx, room, step); err != nil {
			return done, fmt.Errorf("purge %s: %w", room, err)
		}
		done = p.done
		progress(done)
	}
	return done, nil
}

// purge is a purge under way.
type purge struct {
	limit PurgeLimit
	upTo  int64 // the last order that may be purged

	from  int64 // the next order to be looked at
	whole bool  // all that was looked at and can be purged is
	to    int64 // as long as it was, up to here
	ended bool
	done  PurgeProgress
}

// step purges a stretch of the room.
func (p *purge) step(run *run) error {
	if !run.live.exists {
		return store.ErrNotFound
	}
	next := *p
	next.ended = true
	looked := 0
	var old []*store.StoredEvent
	err := run.read.Ordered(run.rm.id, p.from, func(order int64, id eventgraph.EventID, purged bool) (bool, error) {
		if order > p.upTo {
			return false, nil
		}
		if looked == purgeLooks || len(old) == purgeWrites {
			next.ended = false
			return false, nil
		}
		looked++
		next.from = order + 1
		if purged {
			next.note(order, true)
			return true, nil
		}
		e, err := run.stored(id)
		if err != nil {
			return false, err
		}
		if stays, err := p.stays(run, e, old); err != nil || stays {
			return true, err
		}
		isOld := p.limit.Event != "" || min(e.OriginServerTS(), e.ReceivedTS) < p.limit.Time
		if next.note(order, isOld); isOld {
			old = append(old, e)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, e := range old {
		reduced := *e
		reduced.Event, reduced.SentBy, reduced.Related, reduced.Purged = e.Redact(), nil, store.Relation{}, true
		run.put(&write{event: &reduced})
	}
	next.done.Looked += looked
	next.done.Purged += len(old)
	if len(old) > 0 {
		to := next.to
		if run.live.Purged > 0 {
			to = max(to, run.live.PurgedTo)
		}
		run.live.Purged += int64(len(old))
		run.live.PurgedTo = to
		run.dirty = true
	}
	*p = next
	return nil
}

// note takes down that an event that can be purged is, or is too new.
func (p *purge) note(order int64, purged bool) {
	if p.whole = p.whole && purged; p.whole {
		p.to = order
	}
}

// stays says whether an event is not purged however old it is; old are those that are purged with it.
func (p *purge) stays(run *run, e *store.StoredEvent, old []*store.StoredEvent) (bool, error) {
	if _, isState := e.Tuple(); isState || e.Type() == DummyEvent || slices.Contains(run.live.Forward, e.ID()) {
		return true, nil
	}
	if e.Type() == "m.room.redaction" {
		target := e.Redacts()
		if slices.ContainsFunc(old, func(o *store.StoredEvent) bool { return o.ID() == target }) {
			return false, nil
		}
		redacted, err := run.stored(target)
		if errors.Is(err, store.ErrNotFound) {
			return true, nil // it waits for its target
		}
		return err != nil || !redacted.Purged, err
	}
	cited := false
	err := run.CitedBy(e.ID(), func(eventgraph.EventID) bool { cited = true; return false })
	return cited, err
}
