package store

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Keys that servers have handed over for the time when they are away (node/federation, handover.go). They stand beside what is cached of
// remote users (RemoteDevices), which follows each change; these are whole and signed by the server, so that they can be handed on.

// Bounds of what is held of other servers' users: a device with its fallback key is about 1.2 KB.
const (
	MaxHandedUsers    = 1000      // of one server
	MaxHandedBytes    = 4 << 20   // of one server
	MaxAllHandedBytes = 128 << 20 // of all servers
	handedFrame       = 250       // bytes of a record's key and names
)

// ErrHandedFull: MaxHandedBytes or MaxAllHandedBytes are held.
var ErrHandedFull = errors.New("too many keys have been handed over")

// HandedKeys is what a server has handed over of one of its users: Bundle, in Signed as the server signed it at TS. Digest is that of Bundle.
type HandedKeys struct {
	User   eventgraph.UserID `json:"-"`
	Digest []byte            `json:"digest"`
	TS     int64             `json:"ts"` // ms
	Signed json.RawMessage   `json:"signed"`
	Bundle json.RawMessage   `json:"-"`
}

func (h *HandedKeys) size() int64 { return int64(len(h.Signed) + handedFrame) }

// read takes the record apart.
func (h *HandedKeys) read(record []byte) error {
	var signed struct {
		Bundle json.RawMessage `json:"bundle"`
	}
	if err := json.Unmarshal(record, h); err != nil {
		return err
	}
	err := json.Unmarshal(h.Signed, &signed)
	h.Bundle = signed.Bundle
	return err
}

func handedKey(user eventgraph.UserID) dbKey {
	return key(tableHandedKeys).str(string(user.Server())).str(string(user))
}

// HandedKeys reads what was handed over of a user; ErrNotFound.
func (r *Reader) HandedKeys(user eventgraph.UserID) (*HandedKeys, error) {
	h := &HandedKeys{User: user}
	return h, r.read(handedKey(user), h.read)
}

// HandedBy calls f for what is held of the server's users, by user ID.
func (r *Reader) HandedBy(server eventgraph.ServerName, f func(*HandedKeys) (bool, error)) error {
	return r.scan(key(tableHandedKeys).str(string(server)), nil, false, func(k, v []byte) (bool, error) {
		p := parts(k)
		p.str()
		h := &HandedKeys{User: eventgraph.UserID(p.str())}
		if err := h.read(v); err != nil {
			return false, err
		}
		return f(h)
	})
}

// HandedServers calls f for each server that has handed over something; perhaps twice.
func (r *Reader) HandedServers(f func(eventgraph.ServerName) (bool, error)) error {
	more := true
	visit := func(s eventgraph.ServerName) (_ bool, err error) {
		if s != "" && more {
			more, err = f(s)
		}
		return more, err
	}
	err := r.scan(key(tableHandedSum), nil, false, func(k, _ []byte) (bool, error) {
		return visit(eventgraph.ServerName(parts(k).str()))
	})
	if err != nil || !more {
		return err
	}
	return r.scan(key(tableMeta).str(metaHanded), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		return visit(eventgraph.ServerName(p.str()))
	})
}

// streamID is that of the user's device list which the bundle has, as the updates name it (SS API, m.device_list_update); 0 if it names none.
func (h *HandedKeys) streamID() int64 {
	var signed struct {
		Bundle struct {
			StreamID int64 `json:"stream_id"`
		} `json:"bundle"`
	}
	if json.Unmarshal(h.Signed, &signed) != nil {
		return 0
	}
	return signed.Bundle.StreamID
}

// PutHandedKeys keeps what a server has handed over of its user, in the place of what was held. Where the cache of the user's devices does not
// follow each change, or has not had the update that the bundle has, it logs that they have changed, if they have. Error: ErrHandedFull.
func (tx *Tx) PutHandedKeys(h *HandedKeys) error {
	held, err := tx.HandedKeys(h.User)
	before := int64(0)
	switch {
	case err == nil:
		before = held.size()
	case errors.Is(err, ErrNotFound):
		held = nil
	default:
		return err
	}
	if err := tx.countHanded(h.User.Server(), h.size()-before); err != nil {
		return err
	}
	if err := tx.putJSON(handedKey(h.User), h); err != nil {
		return err
	}
	if held != nil && bytes.Equal(held.Digest, h.Digest) {
		return nil
	}
	cached, err := tx.RemoteDevices(h.User)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if newest := h.streamID(); err == nil && newest > max(cached.StreamID, cached.Seen) {
		cached.Seen, cached.Stale = newest, true
		err := tx.PutRemoteDevices(cached)
		if errors.Is(err, ErrTooManyKeys) {
			err = tx.DeleteRemoteDevices(h.User)
		}
		if err != nil {
			return err
		}
	}
	if err == nil && !cached.Stale {
		return nil
	}
	_, err = tx.LogRemoteDevices(h.User)
	return err
}

// DeleteHandedKeys forgets what was handed over of a user.
func (tx *Tx) DeleteHandedKeys(user eventgraph.UserID) error {
	held, err := tx.HandedKeys(user)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(tx.countHanded(user.Server(), -held.size()), tx.delete(handedKey(user)))
}

const metaHanded = "handed keys"

func (tx *Tx) countHanded(s eventgraph.ServerName, n int64) error {
	return tx.countHeld(metaHanded, s, n, MaxHandedBytes, MaxAllHandedBytes, ErrHandedFull)
}

// HandedSum is what PutHandedSum kept; nil if nothing.
func (r *Reader) HandedSum(s eventgraph.ServerName) ([]byte, error) {
	sum, err := r.get(key(tableHandedSum).str(string(s)))
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return sum, err
}

// PutHandedSum keeps the sum of a hand-over that came whole: while the server's is the same, nothing is to be handed over. nil forgets it.
func (tx *Tx) PutHandedSum(s eventgraph.ServerName, sum []byte) error {
	if sum == nil {
		return tx.delete(key(tableHandedSum).str(string(s)))
	}
	return tx.put(key(tableHandedSum).str(string(s)), sum)
}
