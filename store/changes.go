package store

import "github.com/plexus-p2p/plexus/eventgraph"

// ChangeKind says what a change is about; see Change for which fields are set.
type ChangeKind uint8

const (
	ChangeEvent        ChangeKind = iota + 1 // Room, Event: accepted into the room's timeline
	ChangeMembership                         // Room, User (local): membership outside the timeline: invite from afar, rejected invite, forget, knock
	ChangeReceipt                            // Room, User, Key: receipt type
	ChangeAccountData                        // User, Room ("" = global), Key: type
	ChangeToDevice                           // User, Device: a message was queued
	ChangeDeviceList                         // User, local or remote: device or cross-signing keys changed
	ChangeDeviceUnused                       // User, Device: one-time or fallback key counts changed
	ChangeProfile                            // User (local)
	ChangeOutbound                           // Server: an EDU or pending invite/leave was queued for it
	ChangeBackfill                           // Room: events were added before the timeline; nothing for /sync
	ChangeRedaction                          // Room, Event: that event was redacted (by an event logged separately)
	ChangeSoftFailed                         // Room, Event: stored, not shown; nothing for /sync, but peers may ask "do you know it"
)

// Change is one durable change.
type Change struct {
	Kind   ChangeKind
	Room   eventgraph.RoomID
	User   eventgraph.UserID
	Device DeviceID
	Event  eventgraph.EventID
	Server eventgraph.ServerName
	Key    string
}

// DeviceID is a user's device.
type DeviceID string

// Log records the change and returns its position, final if this transaction commits.
func (tx *Tx) Log(c Change) (Position, error) { panic("store: skeleton") }

// Changes calls f for each change with after < position ≤ upTo, in order; f returns false to stop.
func (r *Reader) Changes(after, upTo Position, f func(Position, Change) (bool, error)) error {
	panic("store: skeleton")
}

// RoomChanges is Changes narrowed to ChangeEvent of one room, by an index; backwards if after > upTo (then
// upTo < position ≤ after, newest first).
func (r *Reader) RoomChanges(room eventgraph.RoomID, after, upTo Position, f func(Position, eventgraph.EventID) (bool, error)) error {
	panic("store: skeleton")
}
