package rooms

import (
	"errors"
	"fmt"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
	"github.com/plexus-p2p/plexus/store"
)

// source is what a state is read from: a run, or the store.
type source interface {
	eventgraph.NodeReader
	stateres.EventReader
}

// State is the state of a room at one root, read lazily from the store; an auth.State. It is for concurrent use.
// It may be used after the snapshot that it was taken from: nodes and events of current and event states are kept.
type State struct {
	root eventgraph.Hash
	from source

	mu   sync.Mutex
	trie *eventgraph.Trie
	ids  map[eventgraph.StateTuple]eventgraph.EventID // what was asked before; "": absent
}

// maxStateMemory bounds the answers that one State keeps.
const maxStateMemory = 256

func newState(from source, root eventgraph.Hash) *State {
	return &State{root: root, from: from, trie: eventgraph.OpenTrie(from, root), ids: map[eventgraph.StateTuple]eventgraph.EventID{}}
}

// CurrentState is the room's current resolved state; store.ErrNotFound.
func (r *Rooms) CurrentState(room eventgraph.RoomID) (*State, error) {
	l, err := r.liveRoom(room)
	if err != nil {
		return nil, err
	}
	return newState(r, l.State), nil
}

// StateAt is the state with that root, of an event or of the room at some time.
func (r *Rooms) StateAt(room eventgraph.RoomID, root eventgraph.Hash) *State {
	return newState(r, root)
}

// Root is the root of its trie: two states are the same if and only if their roots are.
func (s *State) Root() eventgraph.Hash { return s.root }

// Event is the state event at the tuple, nil if there is none.
func (s *State) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	id, ok, err := s.EventID(t)
	if !ok || err != nil {
		return nil, err
	}
	e, err := s.from.Event(id)
	if err != nil {
		return nil, fmt.Errorf("state event %s: %w", id, err)
	}
	return e.Event, nil
}

// EventID is the ID of the state event at the tuple; false if there is none.
func (s *State) EventID(t eventgraph.StateTuple) (eventgraph.EventID, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, asked := s.ids[t]; asked {
		return id, id != "", nil
	}
	id, ok, err := s.trie.Get(t)
	if err != nil {
		return "", false, err
	}
	if len(s.ids) < maxStateMemory {
		s.ids[t] = id
	}
	return id, ok, nil
}

// Walk calls f for each tuple, in the same order for the same state. f must not use this State.
func (s *State) Walk(f func(t eventgraph.StateTuple, id eventgraph.EventID) error) error {
	return eventgraph.OpenTrie(s.from, s.root).Walk(f)
}

// state is the state at a root as this run sees it.
func (run *run) state(root eventgraph.Hash) *State {
	s := run.states[root]
	if s == nil {
		s = newState(run, root)
		run.states[root] = s
	}
	return s
}

// liveRoom is the room as of its last durable commit; store.ErrNotFound. Others see a commit in the store before the writer hears that it
// has succeeded: who was woken by it must not find the room as it was before. So while one is under way, the store says
// whether it has been made; if another is by then, it is asked again, for the room may be newer than both.
func (r *Rooms) liveRoom(id eventgraph.RoomID) (*live, error) {
	rm, err := r.enter(id)
	if err != nil {
		return nil, err
	}
	defer r.leave(rm)
	l, next := rm.published()
	for l != nil && next != nil {
		made, err := next.made(r.store)
		if err != nil {
			return nil, err
		}
		if made {
			l = next
			break
		}
		was := next
		if l, next = rm.published(); next == was {
			break // what the store said was said while this was under way
		}
	}
	if l == nil {
		err = r.store.View(func(read *store.Reader) (err error) {
			l, err = rm.loaded(read)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if !l.exists {
		return nil, fmt.Errorf("room %s: %w", id, store.ErrNotFound)
	}
	return l, nil
}

// published is what publish has set.
func (rm *room) published() (now, next *live) {
	rm.mu.Lock()
	defer rm.mu.Unlock()
	return rm.live, rm.next
}

// made says whether the store has the room so.
func (l *live) made(s *store.Store) (bool, error) {
	made := false
	err := s.View(func(read *store.Reader) error {
		record, err := read.Room(l.ID)
		made = err == nil && record.State == l.State && record.NextOrder == l.NextOrder && record.PrevOrder == l.PrevOrder && record.Skipped == l.Skipped
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return made, err
}

// TrieNode makes Rooms an eventgraph.NodeReader.
func (r *Rooms) TrieNode(h eventgraph.Hash) ([]byte, error) { return r.store.TrieNode(h) }

// Event makes Rooms a stateres.EventReader: an event held in whatever verdict, and whether that is Rejected.
func (r *Rooms) Event(id eventgraph.EventID) (stateres.Held, error) {
	e, err := r.stored(id)
	if err != nil {
		return stateres.Held{}, err
	}
	return held(e), nil
}

// CitedBy is that of a stateres.EventReader, as of the newest snapshot.
func (r *Rooms) CitedBy(id eventgraph.EventID, f func(by eventgraph.EventID) bool) error {
	return r.store.View(func(read *store.Reader) error { return read.CitedBy(id, f) })
}

// stored reads an event from the newest snapshot; store.ErrNotFound.
func (r *Rooms) stored(id eventgraph.EventID) (e *store.StoredEvent, err error) {
	err = r.store.View(func(read *store.Reader) (err error) {
		e, err = read.Event(id)
		return err
	})
	return e, err
}

// member reads the member index; nil if there is nothing.
func (r *Rooms) member(room eventgraph.RoomID, user eventgraph.UserID) (m *store.Member, err error) {
	err = r.store.View(func(read *store.Reader) (err error) {
		m, err = read.Member(room, user)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return m, err
}
