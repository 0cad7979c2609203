package store

import (
	"encoding/binary"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// ChangeKind says what a change is about; see Change for which fields are set.
type ChangeKind uint8

const (
	ChangeEvent        ChangeKind = iota + 1 // Room, Event: accepted into the room's timeline
	ChangeMembership                         // Room, User (local): membership outside the timeline: invite from afar, rejected invite, forget, knock
	ChangeReceipt                            // Room, User, Key: receipt type, Event: where it has moved to ("" in records of before that was told)
	ChangeAccountData                        // User, Room ("" = global), Key: type
	ChangeToDevice                           // User, Device: a message was queued
	ChangeDeviceList                         // User, local or remote: device or cross-signing keys changed
	ChangeDeviceUnused                       // User, Device: one-time or fallback key counts changed
	ChangeProfile                            // User (local)
	ChangeOutbound                           // Server: an EDU or pending invite/leave was queued for it
	ChangeBackfill                           // Room: events were added before the timeline; nothing for /sync
	ChangeRedaction                          // Room, Event: that event was redacted (by an event logged separately)
	ChangeSoftFailed                         // Room, Event: stored, not shown; nothing for /sync, but peers may ask "do you know it"
	ChangePusher                             // User (local): one was set or removed; nothing for /sync
)

// KeyHandshake is the Key of a ChangeEvent for an event that another server made and that was taken in here by send_join, send_leave
// or send_knock: it is on us to send it to the other servers of the room.
const KeyHandshake = "handshake"

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

// encode gives the record: the kind, a mask of the fields that are set, and those fields with their lengths.
func (c *Change) encode() []byte {
	b := []byte{byte(c.Kind), 0}
	for i, f := range c.fields() {
		if *f != "" {
			b[1] |= 1 << i
			b = binary.AppendUvarint(b, uint64(len(*f)))
			b = append(b, *f...)
		}
	}
	return b
}

func decodeChange(b []byte) (Change, error) {
	var c Change
	if len(b) < 2 {
		return c, errors.New("change record too short")
	}
	c.Kind = ChangeKind(b[0])
	mask := b[1]
	b = b[2:]
	for i, f := range c.fields() {
		if mask&(1<<i) == 0 {
			continue
		}
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return c, errors.New("change record is cut off")
		}
		*f = string(b[w : w+int(n)])
		b = b[w+int(n):]
	}
	return c, nil
}

// fields in the order of the record; new ones only at the end.
func (c *Change) fields() [6]*string {
	return [...]*string{
		(*string)(&c.Room), (*string)(&c.User), (*string)(&c.Device),
		(*string)(&c.Event), (*string)(&c.Server), &c.Key,
	}
}

// Log records the change and returns its position, final if this transaction commits.
func (tx *Tx) Log(c Change) (Position, error) {
	p := tx.group.last + 1
	if err := tx.put(key(tableChange).u64(uint64(p)), c.encode()); err != nil {
		return 0, err
	}
	if c.Kind == ChangeEvent {
		if err := tx.put(key(tableRoomChange).str(string(c.Room)).u64(uint64(p)), []byte(c.Event)); err != nil {
			return 0, err
		}
	}
	tx.group.last = p
	tx.logged = p
	return p, nil
}

// Changes calls f for each change with after < position ≤ upTo, in order; f returns false to stop.
func (r *Reader) Changes(after, upTo Position, f func(Position, Change) (bool, error)) error {
	if after >= upTo {
		return nil
	}
	return r.changes(after, upTo, false, f)
}

// ChangesBefore calls f for each change with position ≤ from, newest first; f returns false to stop.
func (r *Reader) ChangesBefore(from Position, f func(Position, Change) (bool, error)) error {
	return r.changes(0, from, true, f)
}

func (r *Reader) changes(after, upTo Position, backwards bool, f func(Position, Change) (bool, error)) error {
	start := key(tableChange).u64(uint64(after) + 1)
	if backwards {
		start = key(tableChange).u64(uint64(upTo))
	}
	return r.scan(key(tableChange), start, backwards, func(k, v []byte) (bool, error) {
		p := Position(parts(k).u64())
		if p > upTo {
			return false, nil
		}
		c, err := decodeChange(v)
		if err != nil {
			return false, err
		}
		return f(p, c)
	})
}

// RoomChanges is Changes narrowed to ChangeEvent of one room, by an index; backwards if after > upTo (then
// upTo < position ≤ after, newest first).
func (r *Reader) RoomChanges(room eventgraph.RoomID, after, upTo Position, f func(Position, eventgraph.EventID) (bool, error)) error {
	if after == upTo {
		return nil
	}
	prefix := key(tableRoomChange).str(string(room))
	backwards := after > upTo
	start := append(dbKey(nil), prefix...)
	if backwards {
		start = start.u64(uint64(after))
	} else {
		start = start.u64(uint64(after) + 1)
	}
	return r.scan(prefix, start, backwards, func(k, v []byte) (bool, error) {
		p := Position(binary.BigEndian.Uint64(k[len(k)-8:]))
		if backwards && p <= upTo || !backwards && p > upTo {
			return false, nil
		}
		return f(p, eventgraph.EventID(v))
	})
}
