package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Room is what is kept of a room beside its events.
type Room struct {
	ID        eventgraph.RoomID
	Version   eventgraph.RoomVersion
	Create    eventgraph.EventID
	Forward   []eventgraph.EventID // forward extremities, sorted
	Backward  []eventgraph.EventID // events held whose prev_events are not all held, sorted
	Unproven  []eventgraph.EventID // events whose prev_events came after them, and whose state before is to be compared with what those give
	State     eventgraph.Hash      // current resolved state
	NextOrder int64                // for the next live event, starts at 1
	PrevOrder int64                // the highest below all that are held, starts at -1; backfilled events go down from there
	Purged    int64                // how many events have been purged
	PurgedTo  int64                // if any have: the order up to which all have, that could be
	Breaks    []Break              // where we came back to the room, oldest first
	Skipped   int64                // how many orders between PrevOrder and NextOrder, but for 0, no event has
}

// Break is a place in a room's order where history is missing that happened while nobody of this server was in the room. The orders between
// After and Before are for it.
type Break struct {
	After  int64 `json:"after"`  // the newest event's that was held before
	Next   int64 `json:"next"`   // the highest below all that are fetched; the next event goes down from there
	Before int64 `json:"before"` // of the join by which we came back
}

// Holds says whether an order lies in the break, or is that of the join.
func (b Break) Holds(order int64) bool { return b.After < order && order <= b.Before }

// Between says whether one of the breaks lies between the events of two orders, or begins at the newer one.
func Between(breaks []Break, older, newer int64) bool {
	return slices.ContainsFunc(breaks, func(b Break) bool { return older <= b.After && b.After < newer })
}

// GapOf is the server among whose backward extremities an event counts: its sender's, or "" for all that are rejected, which anybody can make under
// any name.
func GapOf(e *StoredEvent) eventgraph.ServerName {
	if e.Verdict == Rejected {
		return ""
	}
	return e.Sender().Server()
}

// Ends says whether the room's history is to end at an event of that order: what was before it has been purged, or would be.
func (room *Room) Ends(order int64) bool { return room.Purged > 0 && order <= room.PurgedTo }

// roomRecord is Room on disk; the ID is in the key.
type roomRecord struct {
	Version   eventgraph.RoomVersion `json:"version"`
	Create    eventgraph.EventID     `json:"create"`
	Forward   []eventgraph.EventID   `json:"forward,omitempty"`
	Backward  []eventgraph.EventID   `json:"backward,omitempty"`
	Unproven  []eventgraph.EventID   `json:"unproven,omitempty"`
	State     []byte                 `json:"state"`
	NextOrder int64                  `json:"next_order"`
	PrevOrder int64                  `json:"prev_order"`
	Purged    int64                  `json:"purged,omitempty"`
	PurgedTo  int64                  `json:"purged_to,omitempty"`
	Breaks    []Break                `json:"breaks,omitempty"`
	Skipped   int64                  `json:"skipped,omitempty"`
}

func decodeRoom(id eventgraph.RoomID, v []byte) (*Room, error) {
	var d roomRecord
	if err := json.Unmarshal(v, &d); err != nil || len(d.State) != len(eventgraph.Hash{}) {
		return nil, fmt.Errorf("room %s in the store: bad record: %v", id, err)
	}
	return &Room{id, d.Version, d.Create, d.Forward, d.Backward, d.Unproven, eventgraph.Hash(d.State), d.NextOrder, d.PrevOrder, d.Purged, d.PurgedTo, d.Breaks, d.Skipped}, nil
}

// Room reads a room; ErrNotFound.
func (r *Reader) Room(id eventgraph.RoomID) (*Room, error) {
	var room *Room
	err := r.read(key(tableRoom).str(string(id)), func(v []byte) (err error) {
		room, err = decodeRoom(id, v)
		return err
	})
	return room, err
}

// BackwardEvents calls f for the room's backward extremities, in the order of Room.Backward, until f says that it wants no more. Those that are
// not held any more are left out.
func (r *Reader) BackwardEvents(room *Room, f func(*StoredEvent) (more bool, err error)) error {
	for _, id := range room.Backward {
		e, err := r.Event(id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if more, err := f(e); !more || err != nil {
			return err
		}
	}
	return nil
}

// Rooms calls f for each room, by ID.
func (r *Reader) Rooms(f func(*Room) (bool, error)) error {
	return r.scan(key(tableRoom), nil, false, func(k, v []byte) (bool, error) {
		room, err := decodeRoom(eventgraph.RoomID(parts(k).str()), v)
		if err != nil {
			return false, err
		}
		return f(room)
	})
}

// PutRoom writes the room.
func (tx *Tx) PutRoom(room *Room) error {
	return tx.putJSON(key(tableRoom).str(string(room.ID)), roomRecord{
		room.Version, room.Create, room.Forward, room.Backward, room.Unproven, room.State[:], room.NextOrder, room.PrevOrder, room.Purged, room.PurgedTo,
		room.Breaks, room.Skipped,
	})
}

// Member is a user's membership in a room by the current resolved state, or outside it (invites and knocks to rooms that
// we are not in, our own leave of such). Kept for local and remote users.
type Member struct {
	Room       eventgraph.RoomID
	User       eventgraph.UserID
	Membership string // join, invite, leave, ban, knock
	Event      eventgraph.EventID
	Position   Position // of the change that made it so
	Forgotten  bool
	Outside    bool                  // not by a room we hold: Stripped tells what is known of the room
	Invite     []byte                // the PDU of the invite or knock, if Outside, or that of its end
	Stripped   []byte                // JSON array of stripped state, if Outside
	Via        eventgraph.ServerName // who brought it, if Outside
	WasJoined  bool                  // the user has been joined to the room at some time
	Stranger   bool                  // who invites shared no room with us, if Outside and an invite
}

// memberRecord is Member on disk; room and user are in the key.
type memberRecord struct {
	Membership string                `json:"m"`
	Event      eventgraph.EventID    `json:"e,omitempty"`
	Position   Position              `json:"p,omitempty"`
	Forgotten  bool                  `json:"f,omitempty"`
	Outside    bool                  `json:"o,omitempty"`
	Invite     []byte                `json:"invite,omitempty"`
	Stripped   []byte                `json:"stripped,omitempty"`
	Via        eventgraph.ServerName `json:"via,omitempty"`
	WasJoined  bool                  `json:"j,omitempty"`
	Stranger   bool                  `json:"s,omitempty"`
}

func decodeMember(room eventgraph.RoomID, user eventgraph.UserID, v []byte) (*Member, error) {
	var d memberRecord
	if err := json.Unmarshal(v, &d); err != nil {
		return nil, fmt.Errorf("member %s of %s in the store: %w", user, room, err)
	}
	return &Member{
		room, user, d.Membership, d.Event, d.Position, d.Forgotten, d.Outside, d.Invite, d.Stripped, d.Via, d.WasJoined, d.Stranger,
	}, nil
}

func memberKey(room eventgraph.RoomID, user eventgraph.UserID) dbKey {
	return key(tableMember).str(string(room)).str(string(user))
}

func userRoomKey(room eventgraph.RoomID, user eventgraph.UserID) dbKey {
	return key(tableUserRoom).str(string(user)).str(string(room))
}

// Member reads a membership; ErrNotFound.
func (r *Reader) Member(room eventgraph.RoomID, user eventgraph.UserID) (*Member, error) {
	var m *Member
	err := r.read(memberKey(room, user), func(v []byte) (err error) {
		m, err = decodeMember(room, user, v)
		return err
	})
	return m, err
}

// MembersOf calls f for each membership in the room, whatever it is, by user ID.
func (r *Reader) MembersOf(room eventgraph.RoomID, f func(*Member) (bool, error)) error {
	return r.scan(key(tableMember).str(string(room)), nil, false, func(k, v []byte) (bool, error) {
		p := parts(k)
		p.str()
		m, err := decodeMember(room, eventgraph.UserID(p.str()), v)
		if err != nil {
			return false, err
		}
		return f(m)
	})
}

// RoomsOf calls f for each membership of the user, whatever it is, by room ID.
func (r *Reader) RoomsOf(user eventgraph.UserID, f func(*Member) (bool, error)) error {
	return r.scan(key(tableUserRoom).str(string(user)), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		m, err := r.Member(eventgraph.RoomID(p.str()), user)
		if errors.Is(err, ErrNotFound) { // inside Update: deleted by f
			return true, nil
		}
		if err != nil {
			return false, err
		}
		return f(m)
	})
}

// PutMember writes the membership and its index entry.
func (tx *Tx) PutMember(m *Member) error {
	k := userRoomKey(m.Room, m.User)
	indexed, err := tx.has(k)
	if err != nil {
		return err
	}
	if !indexed {
		if err := tx.put(k, nil); err != nil {
			return err
		}
	}
	return tx.putJSON(memberKey(m.Room, m.User), memberRecord{
		m.Membership, m.Event, m.Position, m.Forgotten, m.Outside, m.Invite, m.Stripped, m.Via, m.WasJoined, m.Stranger,
	})
}

// DeleteMember removes the membership, if there is one.
func (tx *Tx) DeleteMember(room eventgraph.RoomID, user eventgraph.UserID) error {
	if err := tx.delete(userRoomKey(room, user)); err != nil {
		return err
	}
	return tx.delete(memberKey(room, user))
}

// Alias is a local alias.
type Alias struct {
	Alias   eventgraph.RoomAlias
	Room    eventgraph.RoomID
	Creator eventgraph.UserID
}

func aliasKey(a eventgraph.RoomAlias) dbKey { return key(tableAlias).str(string(a)) }

func roomAliasKey(room eventgraph.RoomID, a eventgraph.RoomAlias) dbKey {
	return key(tableRoomAlias).str(string(room)).str(string(a))
}

// Alias reads a local alias; ErrNotFound.
func (r *Reader) Alias(a eventgraph.RoomAlias) (*Alias, error) {
	var alias Alias
	if err := r.getJSON(aliasKey(a), &alias); err != nil {
		return nil, err
	}
	return &alias, nil
}

// AliasesOf lists the room's local aliases in order.
func (r *Reader) AliasesOf(room eventgraph.RoomID) ([]eventgraph.RoomAlias, error) {
	var aliases []eventgraph.RoomAlias
	err := r.scan(key(tableRoomAlias).str(string(room)), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		aliases = append(aliases, eventgraph.RoomAlias(p.str()))
		return true, nil
	})
	return aliases, err
}

// PutAlias writes the alias; one that named another room names this one now.
func (tx *Tx) PutAlias(a *Alias) error {
	if err := tx.DeleteAlias(a.Alias); err != nil {
		return err
	}
	if err := tx.put(roomAliasKey(a.Room, a.Alias), nil); err != nil {
		return err
	}
	return tx.putJSON(aliasKey(a.Alias), a)
}

// DeleteAlias removes the alias, if it is there.
func (tx *Tx) DeleteAlias(a eventgraph.RoomAlias) error {
	old, err := tx.Alias(a)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := tx.delete(roomAliasKey(old.Room, a)); err != nil {
		return err
	}
	return tx.delete(aliasKey(a))
}

// Published says whether the room is in the public directory.
func (r *Reader) Published(room eventgraph.RoomID) (bool, error) {
	return r.has(key(tablePublished).str(string(room)))
}

// PublishedRooms lists the rooms in the public directory in order.
func (r *Reader) PublishedRooms() ([]eventgraph.RoomID, error) {
	var rooms []eventgraph.RoomID
	err := r.scan(key(tablePublished), nil, false, func(k, _ []byte) (bool, error) {
		rooms = append(rooms, eventgraph.RoomID(parts(k).str()))
		return true, nil
	})
	return rooms, err
}

// SetPublished puts the room into the public directory or takes it out.
func (tx *Tx) SetPublished(room eventgraph.RoomID, on bool) error {
	k := key(tablePublished).str(string(room))
	if on {
		return tx.put(k, nil)
	}
	return tx.delete(k)
}
