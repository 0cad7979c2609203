package rooms

import (
	"maps"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A local user who has erased themself (CS API, POST /account/deactivate) asks that who comes to a room later is shown what they said there in its
// redacted form; who was in the room before goes on to see it. The events stay as they are, for they are part of the graph. State is not redacted
// for servers, which have to come to the same state by it, and for users no more of it than memberships, which hold the name and picture.

// erased are the local users who have erased themselves, and when. It is for concurrent use.
type erased struct {
	mu    sync.RWMutex
	read  bool // users has what the store had, beside those noted since
	users map[eventgraph.UserID]store.Position
}

// NoteErased tells that a local account is erased; that is in the store already.
func (r *Rooms) NoteErased(user eventgraph.UserID, at store.Position) {
	r.erased.add(map[eventgraph.UserID]store.Position{user: at}, false)
}

// add adds users; whole says that these are all that the store had when it was read. No user is ever taken out, so it does not matter who comes
// first: one who is erased while the store is read is noted beside.
func (e *erased) add(users map[eventgraph.UserID]store.Position, whole bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users == nil {
		e.users = map[eventgraph.UserID]store.Position{}
	}
	maps.Copy(e.users, users)
	e.read = e.read || whole
}

// at is when a user was erased; 0 if not.
func (e *erased) at(s *store.Store, user eventgraph.UserID) (store.Position, error) {
	e.mu.RLock()
	known, at := e.read, e.users[user]
	e.mu.RUnlock()
	if known {
		return at, nil
	}
	users := map[eventgraph.UserID]store.Position{}
	err := s.View(func(r *store.Reader) error {
		return r.Accounts(func(a *store.Account) (bool, error) {
			if a.Erased != 0 {
				users[a.User] = a.Erased
			}
			return true, nil
		})
	})
	if err == nil {
		e.add(users, true)
	}
	return users[user], err
}

// ShownToUser is an event as a user is shown it who may see it (MaySeeUser).
func (r *Rooms) ShownToUser(user eventgraph.UserID, e *store.StoredEvent) (*eventgraph.Event, error) {
	tuple, isState := e.Tuple()
	if isState && tuple.Type != "m.room.member" || e.Sender() == user {
		return e.Shown(), nil
	}
	then, err := r.atErasure(e)
	if then == nil || err != nil {
		return e.Shown(), err
	}
	was, err := then.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(user)})
	if err != nil {
		return nil, err
	}
	if was != nil && was.Membership() == "join" {
		return e.Shown(), nil
	}
	if was != nil {
		// Who had left before and has not come again since.
		if m, err := r.member(e.RoomID(), user); err != nil || m != nil && m.WasJoined && m.Event == was.ID() {
			return e.Shown(), err
		}
	}
	return e.Redact(), nil
}

// ShownToServer is an event as a server is given it that may see it (MaySeeServer).
func (r *Rooms) ShownToServer(server eventgraph.ServerName, e *store.StoredEvent) (*eventgraph.Event, error) {
	if _, isState := e.Tuple(); isState {
		return e.Shown(), nil
	}
	then, err := r.atErasure(e)
	if then == nil || err != nil || r.InRoomAt(e.RoomID(), then.Root(), server) {
		return e.Shown(), err
	}
	return e.Redact(), nil
}

// atErasure is the state in which the room was when the event's sender was erased; nil if they were not.
func (r *Rooms) atErasure(e *store.StoredEvent) (*State, error) {
	if e.Sender().Server() != r.key.Server {
		return nil, nil
	}
	at, err := r.erased.at(r.store, e.Sender())
	if at == 0 || err != nil {
		return nil, err
	}
	var root eventgraph.Hash // nobody was there if the room came here later
	err = r.store.View(func(read *store.Reader) error {
		return read.RoomChanges(e.RoomID(), at, 0, func(_ store.Position, id eventgraph.EventID) (bool, error) {
			newest, err := read.Event(id)
			if err == nil {
				root = newest.RoomState
			}
			return false, err
		})
	})
	return newState(r, root), err
}
