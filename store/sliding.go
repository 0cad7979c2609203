package store

import (
	"bytes"
	"encoding/json"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// SlidingConnection is a client's connection of simplified sliding sync (MSC4186): what it has been sent, so that it can go on after
// a restart.
type SlidingConnection struct {
	ID        string          // conn_id
	WrittenTS int64           // ms
	Body      json.RawMessage // the client API's own
}

// MaxSlidingConnections bounds the connections of one device; the one that was written first goes. Clients have two.
const MaxSlidingConnections = 10

func slidingKey(user eventgraph.UserID, device DeviceID) dbKey {
	return key(tableSliding).str(string(user)).str(string(device))
}

// SlidingConnection reads a connection; ErrNotFound.
func (r *Reader) SlidingConnection(user eventgraph.UserID, device DeviceID, id string) (*SlidingConnection, error) {
	var c SlidingConnection
	if err := r.getJSON(slidingKey(user, device).str(id), &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// PutSlidingConnection writes or replaces the connection. It does not Log.
func (tx *Tx) PutSlidingConnection(user eventgraph.UserID, device DeviceID, c *SlidingConnection) error {
	count, oldest, oldestTS := 0, []byte(nil), int64(0)
	err := tx.scan(slidingKey(user, device), nil, false, func(k, value []byte) (bool, error) {
		var held SlidingConnection
		if err := json.Unmarshal(value, &held); err != nil {
			return false, err
		}
		if held.ID == c.ID {
			return true, nil
		}
		if count++; oldest == nil || held.WrittenTS < oldestTS {
			oldest, oldestTS = bytes.Clone(k), held.WrittenTS
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if count >= MaxSlidingConnections {
		if err := tx.delete(oldest); err != nil {
			return err
		}
	}
	return tx.putJSON(slidingKey(user, device).str(c.ID), c)
}

// DeleteSlidingConnections removes the device's connections.
func (tx *Tx) DeleteSlidingConnections(user eventgraph.UserID, device DeviceID) error {
	return tx.deletePrefix(slidingKey(user, device))
}
