package federation

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Who is concerned: to which servers a change is to go. The sender asks concerned once, as it follows the changes, for whom there is something to do;
// compose asks again for one server when a transaction is put together, which may be long after, and what goes by then is what it is owed and may be
// told. What an event shows to the server, MaySee says beyond that (seen).

// concerned lists the servers that a change concerns.
func (f *Federation) concerned(r *store.Reader, c store.Change) ([]eventgraph.ServerName, error) {
	switch c.Kind {
	case store.ChangeOutbound:
		return []eventgraph.ServerName{c.Server}, nil
	case store.ChangeReceipt:
		if c.User.Server() != f.server || c.Key != "m.read" {
			return nil, nil
		}
		return f.meetings.sharing.among([]eventgraph.RoomID{c.Room})
	case store.ChangeDeviceList:
		if c.User.Server() != f.server {
			return nil, nil
		}
		return f.sharing(r, c.User)
	case store.ChangeMembership:
		signal(f.company) // of a room that has come, maybe
	case store.ChangeEvent:
		e, err := r.Event(c.Event)
		if err != nil {
			return nil, err
		}
		if e.Type() == "m.room.member" && e.Membership() == "join" {
			signal(f.company)
		}
		if !f.announces(e, c) {
			return nil, nil
		}
		servers, err := f.Rooms.Servers(c.Room)
		if err != nil {
			return nil, err
		}
		// One that is out by now is owed what was sent when it was not, though we look only now: after a restart, say. That goes by the room's
		// state here once the event was taken in, not by the state before it: a handshake's event may be built on anything, and one made here
		// is built on some of the forward extremities only. Who was banned by then, though not in what it is built on, gets no event.
		then, err := f.Rooms.ServersAt(c.Room, e.RoomState)
		if !slices.Equal(servers, then) {
			servers = append(servers, then...)
			slices.Sort(servers)
			servers = slices.Compact(servers)
		}
		if target, ok := removedServer(e); ok && !slices.Contains(servers, target) {
			servers = append(servers, target) // a server whose last user this removes still gets its removal
		}
		return slices.DeleteFunc(servers, func(s eventgraph.ServerName) bool { return s == e.Sender().Server() || !f.mayBeTold(s, e) }), err
	}
	return nil, nil
}

// owed says whether the server was in the room when an event on us to send was taken in (see concerned) or is now, or is the one whose
// member it removes.
func (f *Federation) owed(server eventgraph.ServerName, e *store.StoredEvent) bool {
	if target, ok := removedServer(e); ok && target == server {
		return true
	}
	return f.Rooms.InRoomAt(e.RoomID(), e.RoomState, server) || f.Rooms.InRoom(e.RoomID(), server)
}

// mayBeTold says whether a server may be sent an event as far as the room's ACL goes. Nothing of a room goes to who is denied by it, but what says
// so: the ACL itself, and its own removal. Without these it would go on taking the room's events for its own, as if it were there, and its users could
// not be told why nothing comes. At a meeting it is given nothing: there it is the one who asks (SS API, Server ACLs).
func (f *Federation) mayBeTold(server eventgraph.ServerName, e *store.StoredEvent) bool {
	if target, ok := removedServer(e); ok && target == server {
		return true
	}
	if key, ok := e.StateKey(); ok && key == "" && e.Type() == "m.room.server_acl" {
		return true
	}
	return f.allows(e.RoomID(), server)
}

// allows is sharing.allows; who cannot be judged is denied. That a room has no ACL, as most have none, is known without what sharing reads first.
func (f *Federation) allows(room eventgraph.RoomID, server eventgraph.ServerName) bool {
	if acl, err := f.Rooms.ServerACL(room); err == nil && acl == "" {
		return true
	}
	allowed, err := f.meetings.sharing.allows(room, server)
	if err != nil {
		f.Log.Error("cannot tell whom the room's ACL denies", "room", room, "err", err)
	}
	return allowed
}

// announces says whether it is on us to send the event to the room's servers: it was made here, or taken in here by
// send_join, send_leave or send_knock (store.ChangeEvent, Key).
func (f *Federation) announces(e *store.StoredEvent, c store.Change) bool {
	return e.Sender().Server() == f.server || c.Key == store.KeyHandshake
}

// removedServer is the server of the user whom the event takes out of the room, or from its door. An invite is no such event: it goes
// by PUT /invite.
func removedServer(e *store.StoredEvent) (eventgraph.ServerName, bool) {
	key, ok := e.StateKey()
	if !ok || e.Type() != "m.room.member" || e.Membership() != "leave" && e.Membership() != "ban" {
		return "", false
	}
	return eventgraph.UserID(key).Server(), true
}

// sharing lists the servers with a joined user in a room that the user is joined to, without those that are denied by the ACLs of all such rooms: what
// belongs to a user, as device lists and presence do, is for who is in a room with them. To-device messages are for whom they are addressed to, as in
// the spec, where only what is local to a room is under its ACL.
func (f *Federation) sharing(r *store.Reader, user eventgraph.UserID) ([]eventgraph.ServerName, error) {
	var joined []eventgraph.RoomID
	err := r.RoomsOf(user, func(m *store.Member) (bool, error) {
		if m.Membership == "join" {
			joined = append(joined, m.Room)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return f.meetings.sharing.among(joined)
}
