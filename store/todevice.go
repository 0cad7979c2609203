package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Bounds on what waits for a device and on what is remembered of its senders.
const (
	// MaxToDevice messages wait for one device; the oldest goes. A device that comes back after a year finds the
	// newest; one that never comes back does not fill the disk.
	MaxToDevice = 10_000
	// MaxSeenMessages IDs are remembered of one origin. It repeats a transaction until it is answered, so only the newest few can come twice that way; but
	// others may carry a message for 30 days, and bring what came long before. With more than these in between it is given twice, which
	// an Olm session notices. They take 8 MB at most.
	MaxSeenMessages = 20_000
)

// ToDevice is a send-to-device message (CS API, Send-to-Device messaging) in a device's queue.
type ToDevice struct {
	Position Position          `json:"-"` // of its ChangeToDevice: its place in the queue
	Sender   eventgraph.UserID `json:"sender"`
	Type     string            `json:"type"`
	Content  json.RawMessage   `json:"content"`
	Origin   eventgraph.PeerID `json:"origin,omitempty"` // the device of this identity that took it in
}

// PutToDevice queues a message for a local device and logs ChangeToDevice.
func (tx *Tx) PutToDevice(user eventgraph.UserID, device DeviceID, m *ToDevice) (Position, error) {
	pos, err := tx.Log(Change{Kind: ChangeToDevice, User: user, Device: device})
	if err != nil {
		return 0, err
	}
	queued, err := tx.ToDeviceCount(user, device)
	if err != nil {
		return 0, err
	}
	if queued >= MaxToDevice {
		dropped, err := tx.dropToDevice(user, device, latest, queued-MaxToDevice+1)
		if err != nil {
			return 0, err
		}
		queued -= dropped
	}
	if err := tx.putJSON(key(tableToDevice).str(string(user)).str(string(device)).u64(uint64(pos)), m); err != nil {
		return 0, err
	}
	return pos, tx.putToDeviceCount(user, device, queued+1)
}

// ToDevice calls f for the messages that wait for the device, of positions after < position ≤ upTo, oldest first.
func (r *Reader) ToDevice(user eventgraph.UserID, device DeviceID, after, upTo Position, f func(*ToDevice) (bool, error)) error {
	prefix := key(tableToDevice).str(string(user)).str(string(device))
	start := bytes.Clone(prefix)
	return r.scan(prefix, dbKey(start).u64(uint64(after)+1), false, func(k, value []byte) (bool, error) {
		m := ToDevice{Position: Position(binary.BigEndian.Uint64(k[len(prefix):]))}
		if m.Position > upTo {
			return false, nil
		}
		if err := json.Unmarshal(value, &m); err != nil {
			return false, err
		}
		return f(&m)
	})
}

// HasToDevice says whether messages of positions up to upTo wait for the device.
func (r *Reader) HasToDevice(user eventgraph.UserID, device DeviceID, upTo Position) (bool, error) {
	found := false
	prefix := key(tableToDevice).str(string(user)).str(string(device))
	err := r.scan(prefix, nil, false, func(k, _ []byte) (bool, error) {
		found = Position(binary.BigEndian.Uint64(k[len(prefix):])) <= upTo
		return false, nil
	})
	return found, err
}

// DeleteToDevice removes the messages of positions up to upTo: the device has said that it has them.
func (tx *Tx) DeleteToDevice(user eventgraph.UserID, device DeviceID, upTo Position) error {
	queued, err := tx.ToDeviceCount(user, device)
	if err != nil || queued == 0 {
		return err
	}
	dropped, err := tx.dropToDevice(user, device, upTo, queued)
	if err != nil {
		return err
	}
	return tx.putToDeviceCount(user, device, queued-dropped)
}

// DeleteDeviceQueue removes all that waits for the device.
func (tx *Tx) DeleteDeviceQueue(user eventgraph.UserID, device DeviceID) error {
	if err := tx.deletePrefix(key(tableToDevice).str(string(user)).str(string(device))); err != nil {
		return err
	}
	return tx.delete(key(tableToDeviceQueue).str(string(user)).str(string(device)))
}

// latest lies after every position.
const latest = ^Position(0)

// maxDropped bounds the deletions of one function, so that it fits into a transaction; what is over is dropped next time.
const maxDropped = 5_000

// dropToDevice deletes the oldest messages up to upTo, at most n, and says how many.
func (tx *Tx) dropToDevice(user eventgraph.UserID, device DeviceID, upTo Position, n uint64) (uint64, error) {
	dropped := uint64(0)
	prefix := key(tableToDevice).str(string(user)).str(string(device))
	err := tx.scan(prefix, nil, false, func(k, _ []byte) (bool, error) {
		if dropped >= min(n, maxDropped) || Position(binary.BigEndian.Uint64(k[len(prefix):])) > upTo {
			return false, nil
		}
		dropped++
		return true, tx.delete(bytes.Clone(k))
	})
	return dropped, err
}

// ToDeviceCount is how many messages wait for the device.
func (r *Reader) ToDeviceCount(user eventgraph.UserID, device DeviceID) (uint64, error) {
	return r.getNumber(key(tableToDeviceQueue).str(string(user)).str(string(device)))
}

func (tx *Tx) putToDeviceCount(user eventgraph.UserID, device DeviceID, n uint64) error {
	return tx.putNumber(key(tableToDeviceQueue).str(string(user)).str(string(device)), n)
}

// getNumber reads a record of one number; 0 if there is none.
func (r *Reader) getNumber(k []byte) (uint64, error) {
	value, err := r.get(k)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil || len(value) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(value), nil
}

func (tx *Tx) putNumber(k []byte, n uint64) error {
	return tx.put(k, binary.BigEndian.AppendUint64(nil, n))
}

// SawMessage says whether SeeMessage remembers the message.
func (r *Reader) SawMessage(origin eventgraph.ServerName, messageID string) (bool, error) {
	return r.has(key(tableSeenMessage).str(string(origin)).str(messageID))
}

// SeeMessage remembers that a direct_to_device message of the origin has been taken in, and says whether it had been before
// (SS API, m.direct_to_device, message_id).
func (tx *Tx) SeeMessage(origin eventgraph.ServerName, messageID string) (before bool, err error) {
	seen := key(tableSeenMessage).str(string(origin)).str(messageID)
	if before, err = tx.has(seen); before || err != nil {
		return before, err
	}
	order := key(tableSeenMsgOrder).str(string(origin))
	arrival := uint64(1)
	err = tx.scan(order, nil, true, func(k, _ []byte) (bool, error) {
		arrival = binary.BigEndian.Uint64(k[len(order):]) + 1
		return false, nil
	})
	if err != nil {
		return false, err
	}
	if arrival > MaxSeenMessages {
		old := dbKey(bytes.Clone(order)).u64(arrival - MaxSeenMessages)
		id, err := tx.get(old)
		if err == nil {
			err = errors.Join(tx.delete(old), tx.delete(key(tableSeenMessage).str(string(origin)).str(string(id))))
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
	}
	if err := tx.put(dbKey(bytes.Clone(order)).u64(arrival), []byte(messageID)); err != nil {
		return false, err
	}
	return false, tx.putNumber(seen, arrival)
}
