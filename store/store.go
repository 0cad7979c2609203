package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Position is the number of a durable change in commit order; the first is 1.
type Position uint64

// Incarnation names one life of a data directory (design.md §1), 128 random bits.
type Incarnation [16]byte

var (
	ErrNotFound = errors.New("not found in the store")
	ErrDiskFull = errors.New("the disk is nearly full: writes are refused until there is room")
	ErrNewer    = errors.New("the data directory was written by a newer plexus")
	ErrOlder    = errors.New("the store was written by an unreleased plexus, which laid out the state of rooms in another way: " +
		"use that plexus, or move the directory \"store\" away, and this one begins anew under the same server name")
	ErrLocked = errors.New("another plexus is using this data directory")
	ErrClosed = errors.New("store is closed")
	// ErrTooLarge: one function given to Update wrote more than fits into one Badger transaction.
	ErrTooLarge = errors.New("too much for one transaction")
)

// Options of Open.
type Options struct {
	InMemory bool         // tests: Badger in memory, no directory
	Log      *slog.Logger // nil: none

	small bool // tests of this package: small memtables, so that tables come soon, and no reserve
}

// Store is an open data directory. Its methods may be called from any goroutine. It owns one goroutine, the
// committer, which Close waits for.
type Store struct {
	db   *badger.DB
	dir  string // "" in memory
	opts Options
	log  *slog.Logger
	lock *os.File // nil in memory

	// Of the committer, after Open.
	logFile    *logFile
	witness    *witness
	reserve    *reserve
	compactors *compactors

	opened      uint64 // the newest commit at Open
	incarnation Incarnation
	loss        string

	queue     chan *update  // to the committer
	closing   chan struct{} // closed by Close: no new updates
	committer chan struct{} // closed when the committer has ended

	indexing *indexing
	tries    *trieCache
	events   *eventCache
	keyDocs  keyDocCache
	media    mediaDir
	reads    atomic.Uint64

	mu       sync.Mutex
	last     commitRecord   // the newest durable commit
	changed  chan struct{}  // closed and replaced when last.Position grows
	readers  map[uint64]int // snapshots in use, by commit number
	broken   error          // why no more writes are taken
	closed   bool
	inFlight sync.WaitGroup // Views
}

// View runs f on a consistent snapshot: that of the newest durable commit. It never waits for a commit under way.
func (s *Store) View(f func(r *Reader) error) error {
	r, err := s.snapshot()
	if err != nil {
		return err
	}
	defer s.release(r)
	return f(r)
}

// snapshot opens a reader at the newest durable commit; release ends it.
func (s *Store) snapshot() (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	s.inFlight.Add(1)
	ts := s.last.Commit
	s.readers[ts]++
	return &Reader{s: s, txn: s.db.NewTransactionAt(ts, false), ts: ts, position: s.last.Position}, nil
}

func (s *Store) release(r *Reader) {
	r.unrelated.close()
	r.txn.Discard()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers[r.ts]--; s.readers[r.ts] == 0 {
		delete(s.readers, r.ts)
	}
	s.inFlight.Done()
}

// Position is that of the newest durable change.
func (s *Store) Position() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Position
}

// Wait returns the newest position once it is greater than after, or ctx's error, or ErrClosed.
func (s *Store) Wait(ctx context.Context, after Position) (Position, error) {
	return s.WaitOr(ctx, after, nil)
}

// WaitOr is Wait that also returns, with whatever position is the newest, once the channel other is closed.
func (s *Store) WaitOr(ctx context.Context, after Position, other <-chan struct{}) (Position, error) {
	for {
		s.mu.Lock()
		last, changed := s.last.Position, s.changed
		s.mu.Unlock()
		if last > after {
			return last, nil
		}
		select {
		case <-changed:
		case <-other:
			return last, nil
		case <-s.closing:
			return last, ErrClosed
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// Incarnation names this life of the data directory.
func (s *Store) Incarnation() Incarnation { return s.incarnation }

// Loss tells in words what a damaged log has lost, "" if nothing. A loss begins a new incarnation.
func (s *Store) Loss() string { return s.loss }

// Reads counts what Views have asked of the database since Open: records looked up and ranges begun, each as one. What the caches of events and
// of state answered is not among them.
func (s *Store) Reads() uint64 { return s.reads.Load() }

// Reader reads from a snapshot, or inside Update from the committer's view. It is not for concurrent use.
type Reader struct {
	s       *Store
	txn     *badger.Txn
	ts      uint64   // the commit whose state txn shows
	pending *overlay // inside Update: what is written but not committed yet; else nil

	position Position // newest in the snapshot; inside Update, of what was logged before it

	unrelated gap // in tableRelation; not inside Update
}

// Position is that of the newest change in the snapshot; inside Update, of the newest before what the function logs.
func (r *Reader) Position() Position { return r.position }

// Tx reads and writes inside Update. It must not be kept after the function returns.
type Tx struct {
	Reader
	group  *group
	logged Position // the last position given out by Log
}

// get reads a value, or ErrNotFound; the caller owns the bytes.
func (r *Reader) get(key []byte) ([]byte, error) {
	var v []byte
	err := r.read(key, func(value []byte) error { v = bytes.Clone(value); return nil })
	if v == nil && err == nil {
		v = []byte{}
	}
	return v, err
}

// read calls f with a value that is valid only in f; ErrNotFound.
func (r *Reader) read(key []byte, f func(value []byte) error) error {
	if r.pending != nil {
		if w, ok := r.pending.writes[string(key)]; ok {
			if w.deleted {
				return ErrNotFound
			}
			return f(w.value)
		}
	} else {
		r.s.reads.Add(1)
	}
	item, err := r.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	return item.Value(f)
}

// has says whether the key is there.
func (r *Reader) has(key []byte) (bool, error) {
	err := r.read(key, func([]byte) error { return nil })
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (r *Reader) getJSON(key []byte, v any) error {
	return r.read(key, func(value []byte) error {
		if err := json.Unmarshal(value, v); err != nil {
			return fmt.Errorf("record %x in the store: %w", key, err)
		}
		return nil
	})
}

// scan calls f for each key with the prefix, from the key at or after start (nil: first), in key order or backwards
// (then from the key at or before start). f returns false to stop. Key and value are valid only in f.
// Inside Update, f may write: keys written after the scan began are not visited, values are those of the moment.
func (r *Reader) scan(prefix, start []byte, backwards bool, f func(key, value []byte) (bool, error)) error {
	if r.pending == nil {
		r.s.reads.Add(1)
	}
	it := r.txn.NewIterator(badger.IteratorOptions{Reverse: backwards, Prefix: prefix})
	defer it.Close()
	from := start
	switch {
	case from == nil && backwards:
		from = append(slices.Clip(prefix), beyond...)
	case from == nil:
		from = prefix
	}
	it.Seek(from)
	var ours []string // keys of the overlay not visited yet, in the order of the scan
	if r.pending != nil {
		ours = r.pending.keys(prefix, start, backwards)
	}
	for it.Valid() || len(ours) > 0 {
		// Which comes first: the snapshot's key or the overlay's? One that is in both counts as the overlay's.
		if it.Valid() && (len(ours) == 0 || before(it.Item().Key(), ours[0], backwards)) {
			key := it.Item().Key()
			if r.pending != nil {
				if w, ok := r.pending.writes[string(key)]; ok { // written since the scan began
					if !w.deleted {
						if more, err := f(key, w.value); !more || err != nil {
							return err
						}
					}
					it.Next()
					continue
				}
			}
			more := false
			err := it.Item().Value(func(value []byte) (err error) { more, err = f(key, value); return err })
			if !more || err != nil {
				return err
			}
			it.Next()
			continue
		}
		key := ours[0]
		ours = ours[1:]
		if it.Valid() && string(it.Item().Key()) == key {
			it.Next()
		}
		if w, ok := r.pending.writes[key]; ok && !w.deleted {
			if more, err := f([]byte(key), w.value); !more || err != nil {
				return err
			}
		}
	}
	return nil
}

// before says whether a scan meets key a before b.
func before(a []byte, b string, backwards bool) bool {
	if backwards {
		return string(a) > b
	}
	return string(a) < b
}

// put writes a record. The transaction keeps both slices: the caller must not change them afterwards.
func (tx *Tx) put(key, value []byte) error {
	return tx.pending.write(key, write{value: value})
}

func (tx *Tx) putJSON(key []byte, v any) error {
	value, err := encode(v)
	if err != nil {
		return fmt.Errorf("record %x for the store: %w", key, err)
	}
	return tx.put(key, value)
}

// encode is JSON as it stands in the store.
func encode(v any) ([]byte, error) {
	var value bytes.Buffer
	e := json.NewEncoder(&value)
	e.SetEscapeHTML(false) // what clients keep here comes back as they wrote it
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(value.Bytes(), []byte("\n")), nil
}

// delete removes a record, which need not be there.
func (tx *Tx) delete(key []byte) error { return tx.pending.write(key, write{deleted: true}) }

// deletePrefix removes all records with the prefix.
func (tx *Tx) deletePrefix(prefix []byte) error {
	return tx.scan(prefix, nil, false, func(key, _ []byte) (bool, error) {
		return true, tx.delete(bytes.Clone(key))
	})
}

// TrieNode makes Reader (and Store) an eventgraph.NodeReader.
func (r *Reader) TrieNode(h eventgraph.Hash) ([]byte, error) {
	if node, ok := r.s.tries.get(h); ok {
		return node, nil
	}
	node, err := r.get(key(tableTrie).bytes(h[:]))
	if err != nil {
		return nil, fmt.Errorf("trie node %x: %w", h[:4], err)
	}
	if r.pending == nil { // else perhaps not durable
		r.s.tries.put(h, node)
	}
	return node, nil
}

// TrieNode reads a node from the newest snapshot.
func (s *Store) TrieNode(h eventgraph.Hash) ([]byte, error) {
	if node, ok := s.tries.get(h); ok {
		return node, nil
	}
	var node []byte
	err := s.View(func(r *Reader) (err error) { node, err = r.TrieNode(h); return err })
	return node, err
}

// PutTrieNodes writes nodes that Trie.Commit gave.
func (tx *Tx) PutTrieNodes(nodes map[eventgraph.Hash][]byte) error {
	for h, node := range nodes {
		if err := tx.put(key(tableTrie).bytes(h[:]), node); err != nil {
			return err
		}
	}
	return nil
}
