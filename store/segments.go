package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// What is said in rooms is indexed by segments, each of a stretch of one room's order. node/search makes them and reads them; what is in
// them it alone knows. The store keeps them true: a commit that writes an event into a segment's stretch, whether new or again (redacted, purged, a
// right copy), deletes the segment, and one that was made of what has changed meanwhile is not written. So there is never one that says
// what is no longer so, and what has none is what is to be indexed: no cursor is kept.
//
//	order  ──── past ────┬── segment ──┬─ rows ─┬── segment ──┬── segment ──┬──── new rows ───▶
//	                  Low          High                                  the top
//
// New events stand above all segments of their room, and fetched history mostly below. Between which orders they are is kept in memory, so such an
// event costs no look.

// Segment is an index of what was said in a stretch of a room's order.
type Segment struct {
	Room      eventgraph.RoomID
	Low, High int64  // the orders of its oldest and newest event
	Rows      int    // events that have an order in it, in whatever verdict
	Index     []byte // node/search's
}

const (
	// SegmentRows is how many events a segment is meant to have. One more of them costs a search 0.1 ms, and one that is deleted leaves so
	// many events, at some 15 µs each, to be read until it is made again.
	SegmentRows = 1024
	// segmentAfter is how many events without a segment in a row are given one: a quarter of the above, so that a room's newest, which a
	// search reads one by one, are few. Each event is then indexed up to four times, while its segment grows.
	segmentAfter = 256
	// MaxSegment bounds the index of a segment, in bytes. It is a quarter of what one write may have, and ten times what a thousand messages of
	// usual length take; one event can take most of it.
	MaxSegment = 256 << 10
	// growing is the largest index that is made anew with what has come beside it. Else what is above would take all the room.
	growing = MaxSegment / 8
	// maxSpans bounds the rooms of which it is in memory where their segments are, at some 200 bytes each. To ask for another costs two looks.
	maxSpans = 4096
)

// indexing is what the store knows in memory of what is to be indexed.
type indexing struct {
	spans *simplelru.LRU[eventgraph.RoomID, span] // where the room's segments are; the committer's alone

	mu   sync.Mutex
	rows map[eventgraph.RoomID]int // events without a segment since a room was last looked at: about as many as are in a row
	due  chan struct{}             // holds a token when a room has come to segmentAfter
}

// span is between which orders all segments of a room are. It may be too wide, but never too narrow.
type span struct{ low, high int64 }

var noSpan = span{math.MaxInt64, math.MinInt64}

func (p span) with(low, high int64) span { return span{min(p.low, low), max(p.high, high)} }

func newIndexing() *indexing {
	x := &indexing{rows: map[eventgraph.RoomID]int{}, due: make(chan struct{}, 1)}
	x.spans, _ = simplelru.NewLRU[eventgraph.RoomID, span](maxSpans, nil) // fails for sizes below 1 only
	return x
}

// note counts events that have no segment, once that is durable.
func (x *indexing) note(rows map[eventgraph.RoomID]int) {
	if len(rows) == 0 {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for room, n := range rows {
		x.rows[room] += n
		if x.rows[room] >= segmentAfter {
			select {
			case x.due <- struct{}{}:
			default:
			}
		}
	}
}

// take returns the rooms that are to be looked at, and begins to count anew for them.
func (x *indexing) take() []eventgraph.RoomID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var rooms []eventgraph.RoomID
	for room, n := range x.rows {
		if n >= segmentAfter {
			rooms = append(rooms, room)
			delete(x.rows, room)
		}
	}
	return rooms
}

// Unindexed waits until there are rooms with many events that have no segment, and names them once; or ctx's error, or ErrClosed. What was
// there at Open it does not know. It is for one caller at a time, who looks at them with NextStretch.
func (s *Store) Unindexed(ctx context.Context) ([]eventgraph.RoomID, error) {
	for {
		if rooms := s.indexing.take(); len(rooms) > 0 {
			return rooms, nil
		}
		select {
		case <-s.indexing.due:
		case <-s.closing:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// LeftUnindexed says how many events in a row a look at the room has left without a segment, as too few or as changed meanwhile.
func (s *Store) LeftUnindexed(room eventgraph.RoomID, rows int) {
	s.indexing.note(map[eventgraph.RoomID]int{room: rows})
}

// RoomIDs calls f for each room, by ID, and reads their keys only.
func (r *Reader) RoomIDs(f func(eventgraph.RoomID) (bool, error)) error {
	return r.scan(key(tableRoom), nil, false, func(k, _ []byte) (bool, error) { return f(eventgraph.RoomID(parts(k).str())) })
}

func segmentPrefix(room eventgraph.RoomID) dbKey { return key(tableSegment).str(string(room)) }

// decodeSegment reads a record; the index is the record's.
func decodeSegment(room eventgraph.RoomID, k, v []byte) (*Segment, error) {
	p, f := parts(k), fieldReader{rest: v}
	p.str()
	seg := &Segment{Room: room, High: p.i64(), Low: f.varint(), Rows: int(f.uvarint())}
	seg.Index = f.rest
	if !p.ok || f.err != nil {
		return nil, fmt.Errorf("segment of %s: %w", room, errCutOff)
	}
	return seg, nil
}

// Segments calls f for the room's segments that end at or below an order, the newest first. Index is valid only in f.
func (r *Reader) Segments(room eventgraph.RoomID, from int64, f func(*Segment) (more bool, err error)) error {
	prefix := segmentPrefix(room)
	return r.scan(prefix, append(dbKey(nil), prefix...).i64(from), true, func(k, v []byte) (bool, error) {
		seg, err := decodeSegment(room, k, v)
		if err != nil {
			return false, err
		}
		return f(seg)
	})
}

// At is the accepted event of the room at an order; ErrNotFound.
func (r *Reader) At(room eventgraph.RoomID, order int64) (*StoredEvent, error) {
	v, err := r.get(key(tableOrder).str(string(room)).i64(order))
	if err != nil {
		return nil, err
	}
	if len(v) < 2 || Verdict(v[0]) != Accepted {
		return nil, ErrNotFound
	}
	return r.Event(eventgraph.EventID(v[1:]))
}

// Stretch is a part of a room's order that is to have a segment.
type Stretch struct {
	Room      eventgraph.RoomID
	Low, High int64 // of its oldest and newest event
	Rows      int   // events that have an order in it, in whatever verdict

	asOf uint64 // the commit at which it was found
}

// NextStretch finds the newest part of the room's order, at or below from, that is to have a segment: segmentAfter events in a row without one, or
// more, and at most about SegmentRows. Small segments beside it are made one with it. Nil: there is none, and left is the number of events
// in the longest row without a segment. It reads keys only.
func (r *Reader) NextStretch(room eventgraph.RoomID, from int64) (s *Stretch, left int, err error) {
	var above *Segment // the segment before, if it is what ends the stretch
	top := from
	look := func(below *Segment) error {
		floor := int64(math.MinInt64)
		if below != nil {
			floor = below.High + 1
		}
		found, err := r.rowsBetween(room, floor, top)
		if err != nil {
			return err
		}
		if found.Rows < segmentAfter {
			left = max(left, found.Rows)
			return nil
		}
		s = found
		for _, beside := range []*Segment{above, below} { // of their indexes only the length is valid
			if beside != nil && s.Rows+beside.Rows <= SegmentRows && len(beside.Index) <= growing {
				s.Low, s.High, s.Rows = min(s.Low, beside.Low), max(s.High, beside.High), s.Rows+beside.Rows
			}
		}
		return nil
	}
	err = r.Segments(room, from, func(seg *Segment) (bool, error) {
		if err := look(seg); err != nil || s != nil {
			return false, err
		}
		above, top = seg, seg.Low-1
		return true, nil
	})
	if err == nil && s == nil {
		err = look(nil)
	}
	return s, left, err
}

// rowsBetween counts the events between two orders, from the newest on: all, unless they are so many that some are left for another segment.
func (r *Reader) rowsBetween(room eventgraph.RoomID, low, high int64) (*Stretch, error) {
	s := &Stretch{Room: room, asOf: r.ts}
	var lows [SegmentRows + segmentAfter + 1]int64
	prefix := key(tableOrder).str(string(room))
	err := r.scan(prefix, append(dbKey(nil), prefix...).i64(high), true, func(k, _ []byte) (bool, error) {
		p := keyParts{rest: k[len(prefix):], ok: true}
		order := p.i64()
		if !p.ok {
			return false, errCutOff
		}
		if order < low {
			return false, nil
		}
		if s.Rows == 0 {
			s.High = order
		}
		lows[s.Rows] = order
		s.Rows++
		return s.Rows < len(lows), nil
	})
	if s.Rows == len(lows) {
		s.Rows = SegmentRows
	}
	if s.Rows > 0 {
		s.Low = lows[s.Rows-1]
	}
	return s, err
}

// Said calls f for the accepted events of a stretch, purged ones left out, the newest first. Once f wants no more, the stretch ends with the
// event that it was called for, and rest is what is left of it; else nil. It does not push other events out of the cache.
func (r *Reader) Said(s *Stretch, f func(*StoredEvent) (more bool, err error)) (rest *Stretch, err error) {
	prefix := key(tableOrder).str(string(s.Room))
	rows, last := 0, s.High
	more := true
	err = r.scan(prefix, append(dbKey(nil), prefix...).i64(s.High), true, func(k, v []byte) (bool, error) {
		p := keyParts{rest: k[len(prefix):], ok: true}
		order := p.i64()
		if !p.ok || len(v) < 2 {
			return false, errCutOff
		}
		if order < s.Low {
			return false, nil
		}
		if !more {
			rest = &Stretch{Room: s.Room, Low: s.Low, High: order, Rows: s.Rows - rows, asOf: s.asOf}
			return false, nil
		}
		rows, last = rows+1, order
		if Verdict(v[0]) != Accepted {
			return true, nil
		}
		id := eventgraph.EventID(v[1:])
		return true, r.read(eventKey(id), func(record []byte) error {
			e, err := decodeEvent(id, record)
			if err == nil {
				more, err = f(e)
			}
			return err
		})
	})
	if rest != nil {
		s.Low, s.Rows = last, rows
	}
	return rest, err
}

// PutSegment writes the segment of a stretch, in the place of those that it covers. False: something of the stretch has been written since it was found,
// and nothing is done. Its events are then LeftUnindexed: where no segment was, none has gone that would say so.
func (tx *Tx) PutSegment(s *Stretch, index []byte) (bool, error) {
	if len(index) > MaxSegment {
		return false, fmt.Errorf("segment of %s: %d bytes", s.Room, len(index))
	}
	if same, err := tx.unchanged(s); !same || err != nil {
		return false, err
	}
	span, err := tx.segmentSpan(s.Room)
	if err != nil {
		return false, err
	}
	tx.s.indexing.spans.Add(s.Room, span.with(s.Low, s.High)) // also if this is undone
	for {
		seg, err := tx.segmentAt(s.Room, s.Low)
		if err != nil {
			return false, err
		}
		if seg == nil || seg.Low > s.High {
			break
		}
		if err := tx.delete(segmentPrefix(s.Room).i64(seg.High)); err != nil {
			return false, err
		}
	}
	record := binary.AppendVarint(nil, s.Low)
	record = binary.AppendUvarint(record, uint64(s.Rows))
	return true, tx.put(segmentPrefix(s.Room).i64(s.High), append(record, index...))
}

// unchanged says whether no event of the stretch was written, and none has come into it or gone, since it was found. Each write of an event
// writes its place in the order, too (PutEvent), and Badger says in which commit that was.
func (tx *Tx) unchanged(s *Stretch) (bool, error) {
	prefix := key(tableOrder).str(string(s.Room))
	low, high := append(dbKey(nil), prefix...).i64(s.Low), append(dbKey(nil), prefix...).i64(s.High)
	if ours := tx.pending.keys(prefix, low, false); len(ours) > 0 && ours[0] <= string(high) {
		return false, nil
	}
	it := tx.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	rows := 0
	for it.Seek(low); it.Valid() && string(it.Item().Key()) <= string(high); it.Next() {
		if it.Item().Version() > s.asOf {
			return false, nil
		}
		rows++
	}
	return rows == s.Rows, nil
}

// segmentAt is the lowest of the room's segments that end at an order or above it, without its index; nil if there is none.
func (r *Reader) segmentAt(room eventgraph.RoomID, order int64) (seg *Segment, err error) {
	prefix := segmentPrefix(room)
	err = r.scan(prefix, append(dbKey(nil), prefix...).i64(order), false, func(k, v []byte) (bool, error) {
		seg, err = decodeSegment(room, k, v)
		return false, err
	})
	if seg != nil {
		seg.Index = nil
	}
	return seg, err
}

// segmentSpan is where the room's segments are. What the group has deleted may be undone, so it counts, as does what it has written.
func (tx *Tx) segmentSpan(room eventgraph.RoomID) (span, error) {
	if span, ok := tx.s.indexing.spans.Get(room); ok {
		return span, nil
	}
	span := noSpan
	durable := &Reader{s: tx.s, txn: tx.txn, ts: tx.ts}
	for _, r := range []*Reader{durable, &tx.Reader} {
		err := r.Segments(room, math.MaxInt64, func(newest *Segment) (bool, error) { span = span.with(newest.Low, newest.High); return false, nil })
		if err != nil {
			return noSpan, err
		}
		oldest, err := r.segmentAt(room, math.MinInt64)
		if err != nil {
			return noSpan, err
		}
		if oldest != nil {
			span = span.with(oldest.Low, oldest.High)
		}
	}
	tx.s.indexing.spans.Add(room, span)
	return span, nil
}

// said keeps the index true when an event gets a place in its room's order, or is written there again: a segment of which it is goes.
func (tx *Tx) said(old, e *StoredEvent) error {
	if old != nil && old.Order != 0 && old.Order != e.Order {
		if err := tx.unindexAt(old.RoomID(), old.Order); err != nil {
			return err
		}
	}
	if e.Order == 0 {
		return nil
	}
	if old == nil || old.Order != e.Order {
		tx.pending.unindexed[e.RoomID()]++
	}
	return tx.unindexAt(e.RoomID(), e.Order)
}

// unindexAt deletes the segment that covers an order.
func (tx *Tx) unindexAt(room eventgraph.RoomID, order int64) error {
	span, err := tx.segmentSpan(room)
	if err != nil || order < span.low || order > span.high {
		return err
	}
	seg, err := tx.segmentAt(room, order)
	if err != nil || seg == nil || seg.Low > order {
		return err
	}
	tx.pending.unindexed[room] += seg.Rows
	return tx.delete(segmentPrefix(room).i64(seg.High))
}

// IndexSize counts the room's segments, their bytes, and the events in them.
func (r *Reader) IndexSize(room eventgraph.RoomID) (segments, bytes, rows int, err error) {
	err = r.Segments(room, math.MaxInt64, func(seg *Segment) (bool, error) {
		segments, bytes, rows = segments+1, bytes+len(seg.Index), rows+seg.Rows
		return true, nil
	})
	return segments, bytes, rows, err
}
