// Package rooms decides what enters a room: Send for events made here, Accept for every event. It is the only writer of
// events, and knows no network: Accept says what is missing, its caller fetches it.
//
// Each room has one writer at a time; it takes events in runs, each on the uncommitted result of the one before,
// and commits a run together. Readers use snapshots.
//
// The files are the steps of the story: writer.go (one at a time), send.go and create.go (events made here), accept.go
// (the only way in), resolve.go (state before and current state), tips.go and merging.go (the extremities), redact.go, commit.go, large.go; then
// join.go, template.go and invite.go for the handshakes, and see.go, servers.go, state.go, graph.go, keys.go and clock.go for those who ask.
package rooms

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// Config of New. Store, Key and Now are required.
type Config struct {
	Store *store.Store
	Key   eventgraph.SigningKey // the device key under our server name
	Now   func() time.Time
	Log   *slog.Logger // nil: none
}

// Rooms is for concurrent use.
type Rooms struct {
	store *store.Store
	key   eventgraph.SigningKey
	now   func() time.Time
	log   *slog.Logger

	verifying chan struct{}                             // a slot for each signature check under way: see keys.go
	censuses  *lru.Cache[eventgraph.Hash, *census]      // who is in a room, by state root: see servers.go
	counted   atomic.Int64                              // servers in censuses
	summaries *lru.Cache[eventgraph.RoomID, summarized] // see summary.go
	sights    *lru.Cache[seenBy, auth.Sight]            // see see.go

	clocks clocks
	erased erased
	crowds *crowds // rooms with many extremities: see merging.go

	mu     sync.Mutex
	rooms  map[eventgraph.RoomID]*room
	tied   int // what idle rooms remember of ties: see ties.go
	closed bool
	active sync.WaitGroup // writers and what waits for them
}

// Bounds on what is kept in memory between uses.
const (
	maxIdleRooms = 512 // each holds its record, extremities and one census; ties are bounded by maxAllTies
	maxCensuses  = 256 // states whose servers are known
	// maxCensusServers bounds the servers counted in them together, of which each takes some 65 bytes: in a room of thousands each join makes
	// another state.
	maxCensusServers = 50_000
	maxSights        = 2048 // a state and a user each, some 250 bytes: of a room's events in a row most rest on one state
)

// ErrClosed: Close has been called.
var ErrClosed = errors.New("rooms are closed")

// New makes the rooms of a store. There may be only one Rooms for a store.
func New(c Config) *Rooms {
	r := &Rooms{
		store: c.Store, key: c.Key, now: c.Now, log: c.Log,
		verifying: newVerifySlots(),
		rooms:     map[eventgraph.RoomID]*room{},
		crowds:    newCrowds(),
		clocks:    clocks{heard: map[eventgraph.ServerName]reading{}},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.summaries, _ = lru.New[eventgraph.RoomID, summarized](maxSummaries)
	r.sights, _ = lru.New[seenBy, auth.Sight](maxSights)
	r.censuses, _ = lru.NewWithEvict(maxCensuses, func(_ eventgraph.Hash, c *census) { // fails for sizes below 1 only
		r.counted.Add(-c.size())
	})
	return r
}

// Close refuses new writes and waits for those under way.
func (r *Rooms) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.active.Wait()
}

// Server is our own name.
func (r *Rooms) Server() eventgraph.ServerName { return r.key.Server }

// Refusal is why an event cannot be sent or taken in; clientapi turns Code into a Matrix error.
type Refusal struct {
	Code   string // M_FORBIDDEN, M_NOT_FOUND, M_TOO_LARGE, M_BAD_JSON, M_UNSUPPORTED_ROOM_VERSION, …
	Reason string // plain words
}

func (r *Refusal) Error() string { return r.Code + ": " + r.Reason }

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// MissingError is what must be obtained before Accept can go on.
type MissingError struct {
	Events []eventgraph.EventID // not held with a place: prev events; or not held at all: auth events, claimed state
	Keys   []KeyNeeded
	// StateBefore: the events are parents that Accept does not want: give it the state before the event instead (Claimed).
	// So it is for backfill, and where too many parents are missing.
	StateBefore bool
	// Policy: the room's policy server must be asked for its signature. Its Event is the one that was to be accepted, or one that this rests on and
	// that is to be accepted before it. If it does not sign: Basis.Unsigned.
	Policy *PolicyNeeded
}

// KeyNeeded is a key that must be found to judge a signature.
type KeyNeeded struct {
	Server eventgraph.ServerName
	ID     eventgraph.KeyID
	TS     int64 // must be valid then (ms)
}

func (m *MissingError) Error() string {
	if m.Policy != nil {
		return fmt.Sprintf("missing the signature of the policy server %s on %s", m.Policy.By.Name, m.Policy.Event.ID())
	}
	return fmt.Sprintf("missing %d events, %d keys", len(m.Events), len(m.Keys))
}
