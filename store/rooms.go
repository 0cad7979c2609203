package store

import "github.com/plexus-p2p/plexus/eventgraph"

// Room is what is kept of a room beside its events.
type Room struct {
	ID        eventgraph.RoomID
	Version   eventgraph.RoomVersion
	Create    eventgraph.EventID
	Forward   []eventgraph.EventID // forward extremities, sorted
	Backward  []eventgraph.EventID // events held whose prev_events are not all held, sorted
	State     eventgraph.Hash      // current resolved state
	NextOrder int64                // for the next live event, starts at 1
	PrevOrder int64                // for the next backfilled event, starts at -1
}

func (r *Reader) Room(id eventgraph.RoomID) (*Room, error) { panic("store: skeleton") }
func (r *Reader) Rooms(f func(*Room) (bool, error)) error  { panic("store: skeleton") }
func (tx *Tx) PutRoom(room *Room) error                    { panic("store: skeleton") }

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
	Invite     []byte                // the invite PDU, if Outside
	Stripped   []byte                // JSON array of stripped state, if Outside
	Via        eventgraph.ServerName // who brought it, if Outside
	WasJoined  bool                  // the user has been joined to the room at some time
}

func (r *Reader) Member(room eventgraph.RoomID, user eventgraph.UserID) (*Member, error) {
	panic("store: skeleton")
}
func (r *Reader) MembersOf(room eventgraph.RoomID, f func(*Member) (bool, error)) error {
	panic("store: skeleton")
}
func (r *Reader) RoomsOf(user eventgraph.UserID, f func(*Member) (bool, error)) error {
	panic("store: skeleton")
}
func (tx *Tx) PutMember(m *Member) error { panic("store: skeleton") }
func (tx *Tx) DeleteMember(room eventgraph.RoomID, user eventgraph.UserID) error {
	panic("store: skeleton")
}

// Alias is a local alias.
type Alias struct {
	Alias   eventgraph.RoomAlias
	Room    eventgraph.RoomID
	Creator eventgraph.UserID
}

func (r *Reader) Alias(a eventgraph.RoomAlias) (*Alias, error) { panic("store: skeleton") }
func (r *Reader) AliasesOf(room eventgraph.RoomID) ([]eventgraph.RoomAlias, error) {
	panic("store: skeleton")
}
func (tx *Tx) PutAlias(a *Alias) error                  { panic("store: skeleton") }
func (tx *Tx) DeleteAlias(a eventgraph.RoomAlias) error { panic("store: skeleton") }

// Published says whether the room is in the public directory.
func (r *Reader) Published(room eventgraph.RoomID) (bool, error)  { panic("store: skeleton") }
func (r *Reader) PublishedRooms() ([]eventgraph.RoomID, error)    { panic("store: skeleton") }
func (tx *Tx) SetPublished(room eventgraph.RoomID, on bool) error { panic("store: skeleton") }
