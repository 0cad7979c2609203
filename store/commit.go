package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// commitRecord describes one durable commit.
type commitRecord struct {
	Commit   uint64   // its number, from 1: also the Badger timestamp of its writes
	Position Position // of the last change logged up to and with it
	Hash     [32]byte // running hash over all commits up to and with it
}

// commitRing is how many of the newest commits have their record in Badger, each under its number modulo commitRing. One that
// is missing between others is a hole in the store, and the hash tells one history from another.
const commitRing = 1024

func commitKey(n uint64) dbKey { return key(tableCommit).u64(n % commitRing) }

func (c commitRecord) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, c.Commit)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Position))
	return append(b, c.Hash[:]...)
}

func decodeCommit(b []byte) (commitRecord, error) {
	var c commitRecord
	if len(b) != 16+len(c.Hash) {
		return c, fmt.Errorf("a commit record has %d bytes", len(b))
	}
	c.Commit = binary.BigEndian.Uint64(b)
	c.Position = Position(binary.BigEndian.Uint64(b[8:]))
	copy(c.Hash[:], b[16:])
	return c, nil
}

// errFull: the write set is full. Alone in a group that is ErrTooLarge, else the function is run again in the next.
var errFull = errors.New("write set full")

// update is a function that waits for the committer.
type update struct {
	f     func(*Tx) error
	taken atomic.Bool // by the committer, or by a caller who gave up
	done  chan struct{}

	// Set before done is closed.
	position Position
	err      error
	panicked any
}

// Update runs f in the committer and returns when its writes are on disk: the position of its last logged
// change (0 if it logged none), or f's error and nothing written. f may be run again from the start. Once f has
// begun to run, ctx no longer counts. If f panics, Update does, in the caller's goroutine.
func (s *Store) Update(ctx context.Context, f func(tx *Tx) error) (Position, error) {
	u := &update{f: f, done: make(chan struct{})}
	select {
	case <-s.closing:
		return 0, ErrClosed
	default:
	}
	select {
	case s.queue <- u:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.committer:
		return 0, s.endReason()
	}
	select {
	case <-u.done:
	case <-s.committer:
		// The committer has ended; it answered all that it took, and this one perhaps before it ended.
		select {
		case <-u.done:
		default:
			return 0, s.endReason()
		}
	case <-ctx.Done():
		if u.taken.CompareAndSwap(false, true) {
			return 0, ctx.Err()
		}
		<-u.done
	}
	if u.panicked != nil {
		panic(u.panicked)
	}
	return u.position, u.err
}

// endReason says why the committer is not there.
func (s *Store) endReason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	return ErrClosed
}

// commitLoop is the committer. It groups the functions that wait into one transaction, commits it, answers them all,
// and ends when the store closes.
func (s *Store) commitLoop() {
	defer close(s.committer)
	var g *group
	defer func() {
		// Only a function that calls runtime.Goexit, or a defect here, ends the loop in the middle of a group.
		if g != nil {
			err := errors.New("store: a function given to Update ended the committer")
			s.fail(err)
			g.answer(err)
		}
	}()
	poll := time.NewTicker(pollDisk)
	defer poll.Stop()
	var next *update // did not fit into the group before
	for {
		if next == nil {
			select {
			case next = <-s.queue:
			case <-poll.C:
				s.reserve.check()
				s.compactors.tick()
				continue
			case <-s.closing:
				return
			}
			if !next.taken.CompareAndSwap(false, true) { // its caller gave up
				next = nil
				continue
			}
		}
		if err := s.writable(); err != nil {
			next.err = err
			close(next.done)
			next = nil
			continue
		}
		g = s.newGroup()
		next = g.fill(next)
		g.answer(s.commit(g))
		s.compactors.wrote(g.pending.size)
		g = nil
	}
}

// maxGroup bounds the functions in one group, so that the first of them does not wait for long.
const maxGroup = 1024

// group is the functions that share one transaction.
type group struct {
	s       *Store
	snap    *Reader
	pending *overlay
	last    Position // given out so far
	members []*update
}

func (s *Store) newGroup() *group {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	return &group{
		s:       s,
		snap:    &Reader{s: s, txn: s.db.NewTransactionAt(last.Commit, false), ts: last.Commit},
		pending: newOverlay(),
		last:    last.Position,
	}
}

// fill runs first and whatever waits behind it, until the group is full; it returns a function that did not fit.
func (g *group) fill(first *update) *update {
	for u := first; ; {
		if !g.run(u) {
			return u
		}
		if g.pending.size >= groupTarget || len(g.members) >= maxGroup {
			return nil
		}
		select {
		case u = <-g.s.queue:
			if !u.taken.CompareAndSwap(false, true) {
				continue
			}
		default:
			return nil
		}
	}
}

// run runs one function on the group's write set; false if it does not fit beside the others: then it
// has left nothing and is to be run again in a group of its own.
func (g *group) run(u *update) bool {
	before := g.last
	tx := &Tx{
		Reader: Reader{s: g.s, txn: g.snap.txn, ts: g.snap.ts, position: g.last, pending: g.pending},
		group:  g,
	}
	g.members = append(g.members, u)
	u.position, u.err, u.panicked = 0, nil, nil
	u.panicked, u.err = call(u.f, tx)
	full := g.pending.full
	if u.err == nil && u.panicked == nil && !full {
		u.position = tx.logged
		g.pending.keep()
		return true
	}
	g.pending.rollback()
	g.last = before
	if full && u.panicked == nil {
		if len(g.members) > 1 {
			g.members = g.members[:len(g.members)-1]
			return false
		}
		u.err = ErrTooLarge
	}
	return true
}

// call runs f and catches its panic, which belongs to the caller of Update.
func call(f func(*Tx) error, tx *Tx) (panicked any, err error) {
	defer func() {
		if p := recover(); p != nil {
			panicked = fmt.Sprintf("in a function given to store.Update: %v\n%s", p, debug.Stack())
		}
	}()
	return nil, f(tx)
}

// answer ends the group: a function's own error, else that of the commit.
func (g *group) answer(err error) {
	g.snap.txn.Discard()
	for _, u := range g.members {
		if u.err == nil && u.panicked == nil && err != nil {
			u.position, u.err = 0, err
		}
		close(u.done)
	}
}

// commit makes the group's writes durable, then visible. An error is final for the store: nobody knows what of the
// group is on disk, so nothing may be written behind it until the next Open has looked.
func (s *Store) commit(g *group) error {
	if len(g.pending.writes) == 0 {
		return nil
	}
	s.mu.Lock()
	prev := s.last
	s.mu.Unlock()
	rec := commitRecord{Commit: prev.Commit + 1, Position: g.last}

	// 1. One transaction: the writes in key order, and the record that makes a hole visible.
	txn := s.db.NewTransactionAt(math.MaxUint64, true)
	defer txn.Discard()
	h := sha256.New()
	h.Write(prev.Hash[:])
	var n [9]byte
	for _, k := range g.pending.order() {
		w, ok := g.pending.writes[k]
		if !ok {
			continue
		}
		var err error
		if w.deleted {
			err = txn.Delete([]byte(k))
		} else {
			err = txn.Set([]byte(k), w.value)
		}
		if err != nil {
			return s.fail(fmt.Errorf("store: write set: %w", err))
		}
		binary.LittleEndian.PutUint32(n[:], uint32(len(k)))
		binary.LittleEndian.PutUint32(n[4:], uint32(len(w.value)))
		n[8] = 0
		if w.deleted {
			n[8] = 1
		}
		h.Write(n[:])
		h.Write([]byte(k))
		h.Write(w.value)
	}
	h.Sum(rec.Hash[:0])
	if err := txn.Set(commitKey(rec.Commit), rec.encode()); err != nil {
		return s.fail(fmt.Errorf("store: commit record: %w", err))
	}

	// 2. Durable.
	if err := txn.CommitAt(rec.Commit, nil); err != nil {
		return s.fail(fmt.Errorf("store: commit: %w", err))
	}
	if err := s.logFile.sync(); err != nil {
		return s.fail(fmt.Errorf("store: sync: %w", err))
	}
	if err := s.witness.write(testimony{s.incarnation, rec}); err != nil {
		return s.fail(err)
	}

	// 3. Visible.
	s.show(rec, g.pending)
	s.indexing.note(g.pending.unindexed)
	return nil
}

// show makes a durable commit visible to new snapshots and wakes those who wait.
func (s *Store) show(rec commitRecord, o *overlay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events.advance(rec.Commit, o)
	grown := rec.Position > s.last.Position
	s.last = rec
	if grown {
		close(s.changed)
		s.changed = make(chan struct{})
	}
	// Compaction may drop what no snapshot can see.
	oldest := rec.Commit
	for ts := range s.readers {
		oldest = min(oldest, ts)
	}
	s.db.SetDiscardTs(oldest)
}

// fail makes the store refuse writes from now on; reads go on.
func (s *Store) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = fmt.Errorf("store takes no more writes until it is opened again: %w", err)
		s.log.Error("store takes no more writes", "err", err)
	}
	return s.broken
}

// writable says whether a commit may begin.
func (s *Store) writable() error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return broken
	}
	return s.reserve.check()
}
