package store

import (
	"context"
	"errors"
	"log/slog"

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
	ErrLocked   = errors.New("another plexus is using this data directory")
	ErrClosed   = errors.New("store is closed")
)

type Options struct {
	InMemory bool         // tests: Badger in memory, no directory
	Log      *slog.Logger // nil: none
}

type Store struct{}

// Open opens or creates the store in dir. Loss tells in words what a damaged log has lost ("" if nothing); a
// loss begins a new incarnation.
func Open(dir string, o Options) (*Store, error) { panic("store: skeleton") }
func (s *Store) Loss() string                    { panic("store: skeleton") }
func (s *Store) Incarnation() Incarnation        { panic("store: skeleton") }
func (s *Store) Close() error                    { panic("store: skeleton") }

// Update runs f in the committer and returns when its writes are on disk: the position of its last logged
// change (0 if it logged none), or f's error and nothing written. f may be run again from the start.
func (s *Store) Update(ctx context.Context, f func(tx *Tx) error) (Position, error) {
	panic("store: skeleton")
}

// View runs f on a consistent snapshot.
func (s *Store) View(f func(r *Reader) error) error { panic("store: skeleton") }

// Position is that of the newest durable change.
func (s *Store) Position() Position { panic("store: skeleton") }

// Wait returns the newest position once it is greater than after, or ctx's error.
func (s *Store) Wait(ctx context.Context, after Position) (Position, error) { panic("store: skeleton") }

// Reader reads from a snapshot, or inside Update from the committer's view. It is not for concurrent use.
type Reader struct{}

// Tx reads and writes inside Update.
type Tx struct{ Reader }

// TrieNode makes Reader (and Store) an eventgraph.NodeReader.
func (r *Reader) TrieNode(h eventgraph.Hash) ([]byte, error) { panic("store: skeleton") }
func (s *Store) TrieNode(h eventgraph.Hash) ([]byte, error)  { panic("store: skeleton") }
func (tx *Tx) PutTrieNodes(nodes map[eventgraph.Hash][]byte) error {
	panic("store: skeleton")
}

// get, put, delete and scan are what the files of this package build their records on; keys come from keys.go only.
// Values that are structs are JSON (getJSON, putJSON) unless a file says why not.
func (r *Reader) get(key []byte) ([]byte, error)  { panic("store: skeleton") } // ErrNotFound; caller owns the bytes
func (r *Reader) getJSON(key []byte, v any) error { panic("store: skeleton") }

// scan calls f for each key with the prefix, from the key at or after start (nil: first), in key order or backwards
// (then from the key at or before start). f returns false to stop. Key and value are valid only in f.
func (r *Reader) scan(prefix, start []byte, backwards bool, f func(key, value []byte) (bool, error)) error {
	panic("store: skeleton")
}
func (tx *Tx) put(key, value []byte) error     { panic("store: skeleton") }
func (tx *Tx) putJSON(key []byte, v any) error { panic("store: skeleton") }
func (tx *Tx) delete(key []byte) error         { panic("store: skeleton") }
