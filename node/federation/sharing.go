package federation

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// sharing knows which servers are in which of our rooms, and what we hold of each. With 1,000 rooms, reading all of them at each meeting would be most of
// what an idle node does; so it follows the changes, and reads the rooms again that changed.
type sharing struct {
	store *store.Store
	now   *rooms.Rooms
	event func(eventgraph.EventID) (*store.StoredEvent, error) // reads an ACL
	log   *slog.Logger

	mu    sync.Mutex // also while it reads what has changed: who waits needs the same. Not while ACLs are read and applied
	upTo  store.Position
	rooms map[eventgraph.RoomID]*sharedBy
	count map[eventgraph.ServerName]int  // of rooms; its keys are the names in all lists
	letIn map[eventgraph.ServerName]bool // whether the ACL of one of its rooms lets the server in, of those that were asked for

	follows bool                       // somebody calls changes
	changed map[eventgraph.RoomID]bool // read since changes was called; true: though it was known before
}

// sharedBy is a room with the servers in it. It is not changed, but replaced.
type sharedBy struct {
	id      eventgraph.RoomID
	state   eventgraph.Hash
	own     held
	servers []eventgraph.ServerName // sorted
	acl     *roomACL
}

func newSharing(c Config) *sharing {
	return &sharing{store: c.Store, now: c.Rooms, log: c.Log, event: func(id eventgraph.EventID) (e *store.StoredEvent, err error) {
		err = c.Store.View(func(r *store.Reader) error {
			e, err = r.Event(id)
			return err
		})
		return e, err
	}}
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
				if room := s.rooms[c.Room]; c.Kind == store.ChangeRedaction && room != nil && room.acl.id == c.Event {
					s.rooms[c.Room] = &sharedBy{id: c.Room, servers: room.servers, acl: &roomACL{}} // of no state: it is read again
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
	now := &sharedBy{id: id, state: room.State, own: heldOf(room.Forward)}
	if before != nil && before.state == now.state {
		now.servers, now.acl = before.servers, before.acl
		s.rooms[id] = now
		return nil
	}
	servers, err := s.now.Servers(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	acl, err := s.now.ServerACL(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	now.servers = servers
	if now.acl = (&roomACL{id: acl}); before != nil && before.acl.id == acl && !before.acl.passing.Load() {
		now.acl = before.acl
	}
	now.acl.most.Store(int64(2*len(servers) + spareACLAnswers))
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
func (s *sharing) shares(server eventgraph.ServerName) (shares bool, err error) {
	s.mu.Lock()
	if err := s.refresh(); err != nil || s.count[server] == 0 {
		s.mu.Unlock()
		return false, err
	}
	shares, known := s.letIn[server]
	upTo, rooms := s.upTo, s.having(server)
	s.mu.Unlock()
	if known {
		return shares, nil
	}
	shares = slices.ContainsFunc(rooms, func(room *sharedBy) bool { return s.letsIn(room.acl, server) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upTo == upTo { // else one of its rooms may have changed
		s.letIn[server] = shares
	}
	return shares, nil
}

// having lists the rooms that the server is in; mu is held.
func (s *sharing) having(server eventgraph.ServerName) (found []*sharedBy) {
	for _, room := range s.rooms {
		if _, in := slices.BinarySearch(room.servers, server); in {
			found = append(found, room)
		}
	}
	return found
}

// mates lists the servers that are with the server in a room with us and are let in by its ACL. A room whose ACL denies the server itself counts only
// with denied: not if something is told to the server, or asked of it.
func (s *sharing) mates(self, server eventgraph.ServerName, denied bool) (map[eventgraph.ServerName]bool, error) {
	s.mu.Lock()
	if err := s.refresh(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	var rooms []*sharedBy
	if s.count[server] > 0 {
		rooms = s.having(server)
	}
	s.mu.Unlock()
	found := map[eventgraph.ServerName]bool{}
	for _, room := range rooms {
		if _, here := slices.BinarySearch(room.servers, self); here && (denied || s.letsIn(room.acl, server)) {
			s.admitted(room, found)
		}
	}
	return found, nil
}

// admitted adds the servers in the room that its ACL lets in to those found.
func (s *sharing) admitted(room *sharedBy, found map[eventgraph.ServerName]bool) {
	for _, server := range room.servers {
		if !found[server] && s.letsIn(room.acl, server) {
			found[server] = true
		}
	}
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
	if err := s.refresh(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	rooms := s.having(server)
	s.mu.Unlock()
	for _, room := range rooms {
		if s.letsIn(room.acl, server) {
			shared = append(shared, &sharedRoom{id: room.id, own: room.own, large: len(room.servers) > gossipAbove})
		}
	}
	return shared, nil
}

// among lists the servers that are in one of the rooms and let in by its ACL, sorted.
func (s *sharing) among(ids []eventgraph.RoomID) ([]eventgraph.ServerName, error) {
	s.mu.Lock()
	if err := s.refresh(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	var rooms []*sharedBy
	for _, id := range ids {
		if room := s.rooms[id]; room != nil {
			rooms = append(rooms, room)
		}
	}
	s.mu.Unlock()
	found := map[eventgraph.ServerName]bool{}
	for _, room := range rooms {
		s.admitted(room, found)
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// allows says whether the room's ACL lets the server in; of a room not held none is known.
func (s *sharing) allows(id eventgraph.RoomID, server eventgraph.ServerName) (bool, error) {
	s.mu.Lock()
	if err := s.refresh(); err != nil {
		s.mu.Unlock()
		return false, err
	}
	acl := &roomACL{}
	if room := s.rooms[id]; room != nil {
		acl = room.acl
	}
	s.mu.Unlock()
	return s.letsIn(acl, server), nil
}

// roomACL is what a room's ACL says, for as long as its event counts: with many entries, and many servers, asking it takes its time. mu is held for
// moments only.
type roomACL struct {
	id      eventgraph.EventID // of m.room.server_acl; "": there is none
	most    atomic.Int64       // answers that are kept
	passing atomic.Bool        // a copy with a wrong content hash was read, in whose place the right one may come

	reading sync.Mutex // while the event is read, once
	acl     *auth.ACL

	mu      sync.Mutex
	answers map[eventgraph.ServerName]bool // whether it lets a server in
}

// spareACLAnswers is how many answers are kept of a room's ACL besides two for each server in the room: others are asked for, too, and those that leave
// are not taken out.
const spareACLAnswers = 64

// letsIn applies an ACL; who cannot be judged is denied.
func (s *sharing) letsIn(a *roomACL, server eventgraph.ServerName) bool {
	if a.id == "" {
		return true
	}
	a.mu.Lock()
	allowed, known := a.answers[server]
	a.mu.Unlock()
	if known {
		return allowed
	}
	acl, err := s.parsed(a)
	if err != nil {
		s.log.Error("cannot tell whom a room's ACL denies", "acl", a.id, "err", err)
		return false
	}
	allowed = acl.Allows(server)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers == nil || int64(len(a.answers)) >= a.most.Load() {
		a.answers = map[eventgraph.ServerName]bool{}
	}
	a.answers[server] = allowed
	return allowed
}

// parsed reads the event of an ACL, if none has.
func (s *sharing) parsed(a *roomACL) (*auth.ACL, error) {
	a.reading.Lock()
	defer a.reading.Unlock()
	if a.acl == nil {
		e, err := s.event(a.id)
		if err != nil {
			return nil, err
		}
		a.passing.Store(e.HashMismatch())
		a.acl = auth.ParseACL(e.Content())
	}
	return a.acl, nil
}
