package federation

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// sharing knows which servers are in which of our rooms, and what we hold of each. With 1,000 rooms, reading all of them at each meeting would be most of
// what an idle node does; so it follows the changes, and reads the rooms again that changed.
type sharing struct {
	store *store.Store
	now   *rooms.Rooms

	mu    sync.Mutex // also while it reads the store: who waits needs the same
	upTo  store.Position
	rooms map[eventgraph.RoomID]*sharedBy
	count map[eventgraph.ServerName]int  // of rooms; its keys are the names in all lists
	letIn map[eventgraph.ServerName]bool // whether the ACL of one of its rooms lets the server in, of those that were asked for

	follows bool                       // somebody calls changes
	changed map[eventgraph.RoomID]bool // read since changes was called; true: though it was known before
}

// sharedBy is a room with the servers in it.
type sharedBy struct {
	state   eventgraph.Hash
	own     held
	servers []eventgraph.ServerName        // sorted
	allowed map[eventgraph.ServerName]bool // by the server ACL, of those that were asked for
}

// maxFollowed is how many changes are followed; after more, all rooms are read.
const maxFollowed = 20_000

// refresh reads what has changed since the last time; mu is held.
func (s *sharing) refresh() error {
	upTo := s.store.Position()
	if s.rooms != nil && upTo == s.upTo {
		return nil
	}
	var changed map[eventgraph.RoomID]bool
	err := s.store.View(func(r *store.Reader) error {
		if s.rooms != nil && upTo-s.upTo <= maxFollowed {
			changed = map[eventgraph.RoomID]bool{}
			return r.Changes(s.upTo, upTo, func(_ store.Position, c store.Change) (bool, error) {
				if c.Room != "" {
					changed[c.Room] = true
				}
				return true, nil
			})
		}
		s.rooms, s.count = map[eventgraph.RoomID]*sharedBy{}, map[eventgraph.ServerName]int{}
		s.letIn = map[eventgraph.ServerName]bool{}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.store.View(func(r *store.Reader) error {
		if changed == nil {
			return r.Rooms(func(room *store.Room) (bool, error) { return true, s.read(room.ID, room) })
		}
		for id := range changed {
			room, err := r.Room(id)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if err := s.read(id, room); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.rooms = nil // in parts
		return err
	}
	s.upTo = upTo
	return nil
}

// read takes in a room as it is now, nil if it is held no more; mu is held.
func (s *sharing) read(id eventgraph.RoomID, room *store.Room) error {
	before := s.rooms[id]
	if room == nil {
		if before != nil {
			s.counting(before.servers, -1)
			delete(s.rooms, id)
			s.note(id, true)
		}
		return nil
	}
	s.note(id, before != nil)
	now := &sharedBy{state: room.State, own: heldOf(room.Forward)}
	if before != nil && before.state == now.state {
		now.servers, now.allowed = before.servers, before.allowed
		s.rooms[id] = now
		return nil
	}
	servers, err := s.now.Servers(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	now.servers, now.allowed = servers, map[eventgraph.ServerName]bool{}
	s.counting(now.servers, +1)
	if before != nil {
		s.counting(before.servers, -1)
	}
	s.rooms[id] = now
	return nil
}

// note remembers for changes that a room was read; mu is held.
func (s *sharing) note(id eventgraph.RoomID, known bool) {
	if s.follows {
		s.changed[id] = s.changed[id] || known
	}
}

// roomChange is a room that has changed; servers, sorted, is nil if it is held no more. Fresh: it was not known before.
type roomChange struct {
	id      eventgraph.RoomID
	servers []eventgraph.ServerName
	fresh   bool
}

// changes lists the rooms that have changed since the last call, all at the first. One caller at a time.
func (s *sharing) changes() (all []roomChange, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.follows {
		s.follows, s.rooms, s.changed = true, nil, map[eventgraph.RoomID]bool{}
	}
	if err := s.refresh(); err != nil {
		return nil, err
	}
	for id, known := range s.changed {
		c := roomChange{id: id, fresh: !known}
		if room := s.rooms[id]; room != nil {
			c.servers = room.servers
		}
		all = append(all, c)
	}
	clear(s.changed)
	return all, nil
}

// counting takes in, or out, the servers of a room as it is, or was: its ACL, too, may have changed; mu is held.
func (s *sharing) counting(servers []eventgraph.ServerName, by int) {
	for _, server := range servers {
		delete(s.letIn, server)
		if s.count[server] += by; s.count[server] == 0 {
			delete(s.count, server)
		}
	}
}

// joined says whether a user of the server is joined to a room that is held here.
func (s *sharing) joined(server eventgraph.ServerName) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return false, err
	}
	return s.count[server] > 0, nil
}

// shares is joined, of the rooms whose ACLs let the server in. The rooms are looked through once until one of the server's changes.
func (s *sharing) shares(server eventgraph.ServerName) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil || s.count[server] == 0 {
		return false, err
	}
	shares, known := s.letIn[server]
	if known {
		return shares, nil
	}
	for id, room := range s.rooms {
		if _, in := slices.BinarySearch(room.servers, server); in && s.letsIn(id, room, server) {
			shares = true
			break
		}
	}
	s.letIn[server] = shares
	return shares, nil
}

// mates lists the servers that are with the server in a room with us and are let in by its ACL. A room whose ACL denies the server itself counts only
// with denied: not if something is told to the server, or asked of it.
func (s *sharing) mates(self, server eventgraph.ServerName, denied bool) (map[eventgraph.ServerName]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return nil, err
	}
	found := map[eventgraph.ServerName]bool{}
	if s.count[server] == 0 {
		return found, nil
	}
	for id, room := range s.rooms {
		_, with := slices.BinarySearch(room.servers, server)
		_, here := slices.BinarySearch(room.servers, self)
		if !with || !here || !denied && !s.letsIn(id, room, server) {
			continue
		}
		for _, mate := range room.servers {
			if !found[mate] && s.letsIn(id, room, mate) {
				found[mate] = true
			}
		}
	}
	return found, nil
}

// roomsWith is with, by ID alone.
func (s *sharing) roomsWith(server eventgraph.ServerName) (map[eventgraph.RoomID]bool, error) {
	shared, err := s.with(server)
	rooms := make(map[eventgraph.RoomID]bool, len(shared))
	for _, room := range shared {
		rooms[room.id] = true
	}
	return rooms, err
}

// with lists the rooms that the server is in and is let into by their ACLs.
func (s *sharing) with(server eventgraph.ServerName) (shared []*sharedRoom, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return nil, err
	}
	for id, room := range s.rooms {
		if _, in := slices.BinarySearch(room.servers, server); in && s.letsIn(id, room, server) {
			shared = append(shared, &sharedRoom{id: id, own: room.own, large: len(room.servers) > gossipAbove})
		}
	}
	return shared, nil
}

// among lists the servers that are in one of the rooms and let in by its ACL, sorted.
func (s *sharing) among(rooms []eventgraph.RoomID) ([]eventgraph.ServerName, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return nil, err
	}
	found := map[eventgraph.ServerName]bool{}
	for _, id := range rooms {
		room := s.rooms[id]
		if room == nil {
			continue
		}
		for _, server := range room.servers {
			if !found[server] && s.letsIn(id, room, server) {
				found[server] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// allows says whether the room's ACL lets the server in; of a room not held none is known.
func (s *sharing) allows(id eventgraph.RoomID, server eventgraph.ServerName) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return false, err
	}
	room := s.rooms[id]
	return room == nil || s.letsIn(id, room, server), nil
}

// letsIn reads the ACL once for each server and state of the room: with many entries, and many servers, that takes its time; mu is held.
func (s *sharing) letsIn(id eventgraph.RoomID, room *sharedBy, server eventgraph.ServerName) bool {
	allowed, known := room.allowed[server]
	if !known {
		allowed = s.now.ServerAllowed(id, server)
		room.allowed[server] = allowed
	}
	return allowed
}
