package store

import (
	"encoding/json"
	"errors"
	"math"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Messages of other servers that wait here for a third, which was away when they were sent (node/federation, carrying.go).

// Bounds of what is kept for others. An encrypted message with a room's key is about 2 KB, so a server may leave 2,000 here.
const (
	MaxCarriedBytes    = 4 << 20  // of one origin
	MaxAllCarriedBytes = 64 << 20 // of all
	carriedFrame       = 400      // bytes of a record's key and names
)

// ErrCarriedFull: MaxCarriedBytes or MaxAllCarriedBytes are kept.
var ErrCarriedFull = errors.New("too much is kept for other servers")

// Carried is a message that Origin has signed for Destination.
type Carried struct {
	Destination eventgraph.ServerName `json:"-"`
	Origin      eventgraph.ServerName `json:"-"`
	TS          int64                 `json:"-"`        // when it was signed, ms; not negative
	MessageID   string                `json:"-"`        // the origin's
	Received    int64                 `json:"received"` // ms
	Signed      json.RawMessage       `json:"signed"`
}

func (c *Carried) size() int64 { return int64(len(c.Signed) + carriedFrame) }

func (c *Carried) key() dbKey {
	return key(tableCarried).str(string(c.Destination)).str(string(c.Origin)).u64(uint64(c.TS)).str(c.MessageID)
}

// PutCarried keeps a message; one that is kept already stays as it is. Error: ErrCarriedFull.
func (tx *Tx) PutCarried(c *Carried) error {
	if held, err := tx.has(c.key()); held || err != nil {
		return err
	}
	if err := tx.countCarried(c.Origin, c.size()); err != nil {
		return err
	}
	return tx.putJSON(c.key(), c)
}

// DeleteCarried removes a message, if it is there.
func (tx *Tx) DeleteCarried(c *Carried) error {
	var held Carried
	if err := tx.getJSON(c.key(), &held); errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(tx.countCarried(c.Origin, -held.size()), tx.delete(c.key()))
}

const metaCarried = "carried"

func (tx *Tx) countCarried(origin eventgraph.ServerName, n int64) error {
	return tx.countHeld(metaCarried, origin, n, MaxCarriedBytes, MaxAllCarriedBytes, ErrCarriedFull)
}

// Carried calls f for the messages kept for a destination, or with "" for all: those of an origin in the order in which it signed them.
func (r *Reader) Carried(destination eventgraph.ServerName, f func(*Carried) (bool, error)) error {
	prefix := key(tableCarried)
	if destination != "" {
		prefix = prefix.str(string(destination))
	}
	return r.scan(prefix, nil, false, func(k, v []byte) (bool, error) {
		p := parts(k)
		c := &Carried{Destination: eventgraph.ServerName(p.str()), Origin: eventgraph.ServerName(p.str())}
		if ts := p.u64(); ts <= math.MaxInt64 {
			c.TS = int64(ts)
		}
		c.MessageID = p.str()
		if err := json.Unmarshal(v, c); err != nil {
			return false, err
		}
		return f(c)
	})
}

// CarriesFor says whether something is kept for the destination.
func (r *Reader) CarriesFor(destination eventgraph.ServerName) (found bool, err error) {
	err = r.scan(key(tableCarried).str(string(destination)), nil, false, func([]byte, []byte) (bool, error) {
		found = true
		return false, nil
	})
	return found, err
}
