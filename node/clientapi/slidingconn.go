package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What a connection of sliding sync has been sent is kept in two generations: the one that the client's last request named, and the
// one that its answer made. A request names one of them by its pos; the other is dropped when the next is written. Written is only
// what a pos does not say itself: of a room in the client's windows all changes up to the pos have been sent, so messages in such
// rooms write nothing.
//
//	request, pos = g  ->  answer, pos = h:   held {g: rooms, h: rooms and what changed}
//	  again, pos = g  ->  answer, pos = i:   held {g, i}          the client has not got h
//	    next, pos = i ->  answer, pos = j:   held {i, j}          the client has got i

// maxSlidingRooms bounds the rooms of one connection; those out of the windows for longest are forgotten, and sent anew.
const maxSlidingRooms = 10_000

// sentRoom is what the client has of a room. The zero value: nothing.
type sentRoom struct {
	Stage  sentStage      `json:"s"`
	Live   bool           `json:"live,omitempty"` // in the windows: sent up to the pos
	UpTo   store.Position `json:"p,omitempty"`    // if not Live: sent up to here
	Limit  int            `json:"n,omitempty"`    // newest events of the timeline that it has, at least
	DM     bool           `json:"dm,omitempty"`
	Config int            `json:"c"` // of slidingConn.configs: which state it has
}

// sentStage is how the client knows the room.
type sentStage uint8

const (
	notSent  sentStage = iota
	coming             // being joined
	stripped           // by stripped state
	inside             // joined, or left after having been joined
)

// slidingConn is what a client has at its pos.
type slidingConn struct {
	generation uint64
	rooms      map[eventgraph.RoomID]sentRoom
	configs    []roomConfig
}

// slidingRecord is a connection in the store.
type slidingRecord struct {
	Configs []roomConfig                   `json:"configs"`
	Base    uint64                         `json:"base"`
	Rooms   map[eventgraph.RoomID]sentRoom `json:"rooms"`
	Next    uint64                         `json:"next"`
	Delta   map[eventgraph.RoomID]sentRoom `json:"delta"` // by which Next differs
}

// errUnknownPos tells the client to begin anew (MSC4186, Connections).
func errUnknownPos() error {
	return fail(http.StatusBadRequest, "M_UNKNOWN_POS", "This pos was not given on this connection, or not lately.")
}

// slidingConnections are those with a call under way, and the lists of rooms that calls left behind for the next. It is for
// concurrent use.
type slidingConnections struct {
	mu    sync.Mutex
	calls map[deviceKey]*slidingCall
	views *lru.Cache[deviceKey, *slidingView]
}

// slidingCall is a call under way; cancel ends it.
type slidingCall struct{ cancel context.CancelFunc }

// maxSlidingViews bounds the lists kept, each some 200 bytes for every room of its user. A list that is gone is made again.
const maxSlidingViews = 64

func newSlidingConnections() *slidingConnections {
	views, _ := lru.New[deviceKey, *slidingView](maxSlidingViews) // fails only on a size below 1
	return &slidingConnections{calls: map[deviceKey]*slidingCall{}, views: views}
}

// begin ends the call that is under way on the connection: a client has one at a time, and has given up the former. It returns the list that is
// valid at pos, if there is one; it is the caller's now.
func (c *slidingConnections) begin(key deviceKey, call *slidingCall, pos store.Position) *slidingView {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before := c.calls[key]; before != nil {
		before.cancel()
	}
	c.calls[key] = call
	view, _ := c.views.Get(key)
	c.views.Remove(key)
	if view == nil || view.pos != pos {
		return nil
	}
	return view
}

// end leaves the list for the next call.
func (c *slidingConnections) end(key deviceKey, call *slidingCall, view *slidingView) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[key] == call {
		delete(c.calls, key)
		if view != nil {
			c.views.Add(key, view)
		}
	}
}

// slidingConn reads what the client has at a pos; M_UNKNOWN_POS.
func (a *API) slidingConn(s *syncRequest, connID string, generation uint64) (*slidingConn, error) {
	if generation == 0 {
		return &slidingConn{}, nil
	}
	var record slidingRecord
	err := a.Store.View(func(r *store.Reader) error {
		held, err := r.SlidingConnection(s.user, s.device, connID)
		if err != nil {
			return err
		}
		return json.Unmarshal(held.Body, &record)
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, errUnknownPos()
	case err != nil:
		return nil, err
	case generation != record.Base && generation != record.Next:
		return nil, errUnknownPos()
	}
	if generation == record.Next {
		record.Rooms = withDelta(record.Rooms, record.Delta)
	}
	return &slidingConn{generation, record.Rooms, record.Configs}, nil
}

func withDelta(rooms, delta map[eventgraph.RoomID]sentRoom) map[eventgraph.RoomID]sentRoom {
	merged := maps.Clone(rooms)
	if merged == nil {
		merged = make(map[eventgraph.RoomID]sentRoom, len(delta))
	}
	for room, sent := range delta {
		if sent.Stage == notSent {
			delete(merged, room)
		} else {
			merged[room] = sent
		}
	}
	return merged
}

// config is the index of the config, which is added if it is new.
func (c *slidingConn) config(config *roomConfig) int {
	same := func(held roomConfig) bool { return held.Lazy == config.Lazy && slices.Equal(held.State, config.State) }
	if i := slices.IndexFunc(c.configs, same); i >= 0 {
		return i
	}
	c.configs = append(slices.Clip(c.configs), roomConfig{State: config.State, Lazy: config.Lazy})
	return len(c.configs) - 1
}

// putSlidingConn writes the connection with what an answer changes, and returns it; if nothing changes, it is as it was.
func (a *API) putSlidingConn(ctx context.Context, s *syncRequest, connID string, c *slidingConn, delta map[eventgraph.RoomID]sentRoom) (*slidingConn, error) {
	if len(delta) == 0 {
		return c, nil
	}
	next := rand.Uint64() | 1 // is never 0; of a connection that was begun anew no pos is valid any more
	forgetRooms(c.rooms, delta)
	record := slidingRecord{Base: c.generation, Rooms: c.rooms, Next: next, Delta: delta}
	record.compact(c.configs)
	body, err := json.Marshal(&record)
	if err != nil {
		return nil, err
	}
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := tx.Device(s.user, s.device); err != nil {
			return err // logged out meanwhile
		}
		return tx.PutSlidingConnection(s.user, s.device, &store.SlidingConnection{ID: connID, WrittenTS: a.Now().UnixMilli(), Body: body})
	})
	return &slidingConn{next, withDelta(record.Rooms, record.Delta), record.Configs}, err
}

// forgetRooms keeps maxSlidingRooms.
func forgetRooms(rooms, delta map[eventgraph.RoomID]sentRoom) {
	all := withDelta(rooms, delta)
	over := len(all) - maxSlidingRooms
	if over <= 0 {
		return
	}
	maps.DeleteFunc(all, func(_ eventgraph.RoomID, sent sentRoom) bool { return sent.Live })
	ids := slices.SortedFunc(maps.Keys(all), func(x, y eventgraph.RoomID) int { return int(all[x].UpTo) - int(all[y].UpTo) })
	for _, id := range ids[:min(over, len(ids))] {
		delta[id] = sentRoom{}
	}
}

// compact takes over those configs that a room refers to.
func (r *slidingRecord) compact(configs []roomConfig) {
	index := make(map[int]int, len(configs))
	rename := func(rooms map[eventgraph.RoomID]sentRoom) map[eventgraph.RoomID]sentRoom {
		renamed := make(map[eventgraph.RoomID]sentRoom, len(rooms))
		for id, sent := range rooms {
			if sent.Stage != notSent {
				if _, ok := index[sent.Config]; !ok {
					index[sent.Config] = len(r.Configs)
					r.Configs = append(r.Configs, configs[sent.Config])
				}
				sent.Config = index[sent.Config]
			}
			renamed[id] = sent
		}
		return renamed
	}
	r.Rooms, r.Delta = rename(r.Rooms), rename(r.Delta)
}
