package store

import (
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// PusherKey names a pusher.
type PusherKey struct {
	User  eventgraph.UserID // local
	AppID string
	Key   string // pushkey
}

// Pusher tells a push gateway what its user is notified of (CS API, POST /pushers/set).
type Pusher struct {
	PusherKey         `json:"-"`
	Device            DeviceID // that set it; it goes with the device
	UpdatedTS         int64    // ms, when it was last set
	AppDisplayName    string
	DeviceDisplayName string
	ProfileTag        string `json:",omitzero"`
	Lang              string
	URL               string
	Data              json.RawMessage // what the client gave as data, without url: an object
}

// MaxPushers bounds the pushers of one user: a device has one or two. Beyond it PutPusher answers ErrTooManyPushers.
const MaxPushers = 50

// ErrTooManyPushers: see MaxPushers.
var ErrTooManyPushers = errors.New("too many pushers")

func pusherKey(t table, k PusherKey) dbKey {
	return key(t).str(string(k.User)).str(k.AppID).str(k.Key)
}

// Pusher reads one; ErrNotFound.
func (r *Reader) Pusher(k PusherKey) (*Pusher, error) {
	p := Pusher{PusherKey: k}
	if err := r.getJSON(pusherKey(tablePusher, k), &p); err != nil {
		return nil, err
	}
	return &p, nil
}

// Pushers calls f for each pusher of the user, or of all users if user is "". Inside Update f may write.
func (r *Reader) Pushers(user eventgraph.UserID, f func(*Pusher) (bool, error)) error {
	prefix := key(tablePusher)
	if user != "" {
		prefix = prefix.str(string(user))
	}
	return r.scan(prefix, nil, false, func(k, value []byte) (bool, error) {
		parts := parts(k)
		p := Pusher{PusherKey: PusherKey{eventgraph.UserID(parts.str()), parts.str(), parts.str()}}
		if err := json.Unmarshal(value, &p); err != nil {
			return false, err
		}
		return f(&p)
	})
}

// PutPusher writes or replaces the pusher and logs ChangePusher. A new one tells what comes after that.
func (tx *Tx) PutPusher(p *Pusher) error {
	held, err := tx.has(pusherKey(tablePusher, p.PusherKey))
	if err != nil {
		return err
	}
	if err := tx.putJSON(pusherKey(tablePusher, p.PusherKey), p); err != nil {
		return err
	}
	at, err := tx.Log(Change{Kind: ChangePusher, User: p.User})
	if held || err != nil {
		return err
	}
	count := 0
	if err := tx.Pushers(p.User, func(*Pusher) (bool, error) { count++; return true, nil }); err != nil {
		return err
	}
	if count > MaxPushers {
		return ErrTooManyPushers
	}
	return tx.PutPusherCursor(p.PusherKey, at)
}

// DeletePusher removes a pusher, which need not be there, and logs ChangePusher if it was.
func (tx *Tx) DeletePusher(k PusherKey) error {
	held, err := tx.has(pusherKey(tablePusher, k))
	if err != nil || !held {
		return err
	}
	if err := tx.delete(pusherKey(tablePusher, k)); err != nil {
		return err
	}
	if err := tx.delete(pusherKey(tablePusherCursor, k)); err != nil {
		return err
	}
	_, err = tx.Log(Change{Kind: ChangePusher, User: k.User})
	return err
}

// DeletePushersOf removes the pushers that a device has set.
func (tx *Tx) DeletePushersOf(user eventgraph.UserID, device DeviceID) error {
	return tx.Pushers(user, func(p *Pusher) (bool, error) {
		if p.Device != device {
			return true, nil
		}
		return true, tx.DeletePusher(p.PusherKey)
	})
}

// PusherCursor is the position up to which the pusher has told everything; 0 if there is no such pusher.
func (r *Reader) PusherCursor(k PusherKey) (Position, error) {
	n, err := r.getNumber(pusherKey(tablePusherCursor, k))
	return Position(n), err
}

// PutPusherCursor moves the cursor of a pusher that is there; ErrNotFound. It does not Log.
func (tx *Tx) PutPusherCursor(k PusherKey, at Position) error {
	held, err := tx.has(pusherKey(tablePusher, k))
	if err != nil {
		return err
	}
	if !held {
		return ErrNotFound
	}
	return tx.putNumber(pusherKey(tablePusherCursor, k), uint64(at))
}
