package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// MaxBlocked is how many servers may be blocked: a person blocks them one by one, and each is held in memory.
const MaxBlocked = 1000

// ErrTooManyBlocked: MaxBlocked servers are blocked.
var ErrTooManyBlocked = errors.New("too many servers are blocked; unblock one first")

// Blocked calls f for each blocked server, by name, with the time since when it is, in ms.
func (r *Reader) Blocked(f func(server eventgraph.ServerName, since int64) (bool, error)) error {
	return r.scan(key(tableBlocked), nil, false, func(k, v []byte) (bool, error) {
		server := eventgraph.ServerName(parts(k).str())
		if len(v) != 8 {
			return false, fmt.Errorf("blocked server %s in the store: %d bytes", server, len(v))
		}
		return f(server, int64(binary.BigEndian.Uint64(v)))
	})
}

// Block notes that a server is blocked since the time given, in ms; one that is blocked already stays so since then. Error:
// ErrTooManyBlocked.
func (tx *Tx) Block(server eventgraph.ServerName, since int64) error {
	k := key(tableBlocked).str(string(server))
	if held, err := tx.has(k); err != nil || held {
		return err
	}
	count := 0
	err := tx.Blocked(func(eventgraph.ServerName, int64) (bool, error) { count++; return true, nil })
	switch {
	case err != nil:
		return err
	case count >= MaxBlocked:
		return ErrTooManyBlocked
	}
	return tx.put(k, binary.BigEndian.AppendUint64(nil, uint64(since)))
}

// Unblock ends Block; ErrNotFound if the server is not blocked.
func (tx *Tx) Unblock(server eventgraph.ServerName) error {
	k := key(tableBlocked).str(string(server))
	if held, err := tx.has(k); err != nil {
		return err
	} else if !held {
		return ErrNotFound
	}
	return tx.delete(k)
}
