package rooms

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// census counts, in one state of a room, the users of each server that are joined, invited or banned, and names what says what servers may
// see. It is immutable.
type census struct {
	root            eventgraph.Hash
	joined, invited map[eventgraph.ServerName]int
	banned          map[eventgraph.ServerName]int
	servers         func() []eventgraph.ServerName // joined, sorted when it is first asked for; the same slice each time
	acl, visibility eventgraph.EventID             // of m.room.server_acl and m.room.history_visibility; "" if there is none. IDs, as events can be redacted
}

// Servers lists the servers with a joined user, sorted; store.ErrNotFound if the room is not held.
func (r *Rooms) Servers(room eventgraph.RoomID) ([]eventgraph.ServerName, error) {
	l, err := r.liveRoom(room)
	if err != nil {
		return nil, err
	}
	return r.ServersAt(room, l.State)
}

// ServersAt is Servers in the room's state with that root.
func (r *Rooms) ServersAt(room eventgraph.RoomID, root eventgraph.Hash) ([]eventgraph.ServerName, error) {
	c, err := r.census(room, root)
	if err != nil {
		return nil, err
	}
	return slices.Clone(c.servers()), nil
}

// InRoom says whether the server has a user joined to the room now; it is cheap.
func (r *Rooms) InRoom(room eventgraph.RoomID, server eventgraph.ServerName) bool {
	l, err := r.liveRoom(room)
	if err != nil {
		r.logUnlessNotFound("who is in the room", room, err)
		return false
	}
	return r.InRoomAt(room, l.State, server)
}

// Banned says whether users of the server are banned from the room now, and none is joined or invited.
func (r *Rooms) Banned(room eventgraph.RoomID, server eventgraph.ServerName) bool {
	l, err := r.liveRoom(room)
	if err != nil {
		r.logUnlessNotFound("who is banned", room, err)
		return false
	}
	c, err := r.census(room, l.State)
	if err != nil {
		r.logUnlessNotFound("who is banned", room, err)
		return true
	}
	return c.banned[server] > 0 && c.joined[server] == 0 && c.invited[server] == 0
}

// SharesRoom says whether a user of the server is joined to some room that is held here.
func (r *Rooms) SharesRoom(server eventgraph.ServerName) (shares bool) {
	err := r.store.View(func(read *store.Reader) error {
		return read.Rooms(func(room *store.Room) (bool, error) {
			shares = r.InRoom(room.ID, server)
			return !shares, nil
		})
	})
	if err != nil {
		r.log.Error("cannot tell who shares a room", "err", err)
	}
	return shares
}

// InRoomAt says whether the server has a joined user in the state with that root.
func (r *Rooms) InRoomAt(room eventgraph.RoomID, root eventgraph.Hash, server eventgraph.ServerName) bool {
	c, err := r.census(room, root)
	if err != nil {
		r.logUnlessNotFound("who is in the room", room, err)
		return false
	}
	return c.joined[server] > 0
}

// ServerAllowed applies the room's current m.room.server_acl. Of a room not held no ACL is known: all are allowed.
func (r *Rooms) ServerAllowed(room eventgraph.RoomID, server eventgraph.ServerName) bool {
	l, err := r.liveRoom(room)
	if errors.Is(err, store.ErrNotFound) {
		return true
	}
	if err != nil {
		r.logUnlessNotFound("server ACL", room, err)
		return false
	}
	c, err := r.census(room, l.State)
	if err == nil && c.acl == "" {
		return true
	}
	var acl *store.StoredEvent
	if err == nil {
		acl, err = r.stored(c.acl)
	}
	if err != nil {
		r.logUnlessNotFound("server ACL", room, err)
		return false
	}
	return auth.ServerAllowed(acl.Content(), server)
}

// ServerACL is the ID of the room's current m.room.server_acl, "" if there is none; store.ErrNotFound if the room is not held. It is cheap.
func (r *Rooms) ServerACL(room eventgraph.RoomID) (eventgraph.EventID, error) {
	l, err := r.liveRoom(room)
	if err != nil {
		return "", err
	}
	c, err := r.census(room, l.State)
	if err != nil {
		return "", err
	}
	return c.acl, nil
}

func (r *Rooms) logUnlessNotFound(what string, room eventgraph.RoomID, err error) {
	if !errors.Is(err, store.ErrNotFound) {
		r.log.Error("cannot tell: "+what, "room", room, "err", err)
	}
}

// serverAllowed applies the ACL of the run's current state to the server that gives us an event; "" is ourselves.
func (run *run) serverAllowed(server eventgraph.ServerName) (bool, error) {
	if server == "" {
		return true, nil
	}
	return serverAllowed(run.state(run.live.State), server)
}

func serverAllowed(s *State, server eventgraph.ServerName) (bool, error) {
	acl, err := s.Event(eventgraph.StateTuple{Type: "m.room.server_acl"})
	if acl == nil || err != nil {
		return err == nil, err
	}
	return auth.ServerAllowed(acl.Content(), server), nil
}

// census counts a state, by its difference to the one counted last in that room if there is one.
func (r *Rooms) census(room eventgraph.RoomID, root eventgraph.Hash) (*census, error) {
	if c, ok := r.censuses.Get(root); ok {
		return c, nil
	}
	rm, err := r.enter(room)
	if err != nil {
		return nil, err
	}
	defer r.leave(rm)
	return r.countOf(rm, r, root)
}

// countOf is census, of a state that is read from there.
func (r *Rooms) countOf(rm *room, from source, root eventgraph.Hash) (*census, error) {
	if c, ok := r.censuses.Get(root); ok {
		return c, nil
	}
	rm.mu.Lock()
	last := rm.census
	rm.mu.Unlock()
	if last == nil {
		last = &census{}
	}
	c, err := countFrom(from, last, root)
	if err != nil && last.root != (eventgraph.Hash{}) {
		c, err = countFrom(from, &census{}, root) // the other state may not be kept any more
	}
	if err != nil {
		return nil, fmt.Errorf("servers of %s: %w", rm.id, err)
	}
	r.remember(c)
	rm.mu.Lock()
	rm.census = c
	rm.mu.Unlock()
	return c, nil
}

// remember keeps a census, and as many of those used last as maxCensusServers allows.
func (r *Rooms) remember(c *census) {
	if known, _ := r.censuses.ContainsOrAdd(c.root, c); known {
		return
	}
	for all := r.counted.Add(c.size()); all > maxCensusServers && r.censuses.Len() > 1; all = r.counted.Load() {
		r.censuses.RemoveOldest()
	}
}

func (c *census) size() int64 { return int64(len(c.joined) + len(c.invited) + len(c.banned)) }

// countFrom counts the state at root, from one counted before.
func countFrom(from source, last *census, root eventgraph.Hash) (*census, error) {
	c := &census{root: root, joined: last.joined, invited: last.invited, banned: last.banned, acl: last.acl, visibility: last.visibility}
	copied := false
	count := func(user eventgraph.UserID, id eventgraph.EventID, by int) error {
		if id == "" {
			return nil
		}
		e, err := from.Event(id)
		if err != nil {
			return err
		}
		switch e.Membership() {
		case "join":
			bump(c.joined, user.Server(), by)
		case "invite":
			bump(c.invited, user.Server(), by)
		case "ban":
			bump(c.banned, user.Server(), by)
		}
		return nil
	}
	err := eventgraph.Diff(from, last.root, root, func(d eventgraph.Difference) error {
		switch {
		case d.Tuple.Type == "m.room.server_acl" && d.Tuple.Key == "":
			c.acl = d.B
			return nil
		case d.Tuple.Type == "m.room.history_visibility" && d.Tuple.Key == "":
			c.visibility = d.B
			return nil
		case d.Tuple.Type != "m.room.member":
			return nil
		}
		if !copied {
			copied = true
			c.joined, c.invited, c.banned = clone(c.joined), clone(c.invited), clone(c.banned)
		}
		user := eventgraph.UserID(d.Tuple.Key)
		if err := count(user, d.A, -1); err != nil {
			return err
		}
		return count(user, d.B, +1)
	})
	if err != nil {
		return nil, err
	}
	c.servers = sync.OnceValue(func() []eventgraph.ServerName { return slices.Sorted(maps.Keys(c.joined)) })
	return c, nil
}

func clone(m map[eventgraph.ServerName]int) map[eventgraph.ServerName]int {
	if m == nil {
		return map[eventgraph.ServerName]int{}
	}
	return maps.Clone(m)
}

func bump(m map[eventgraph.ServerName]int, s eventgraph.ServerName, by int) {
	if m[s] += by; m[s] == 0 {
		delete(m, s)
	}
}
