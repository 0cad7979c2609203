package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// ServiceCursor is how far an application service has been told of changes.
type ServiceCursor struct {
	Service  string       // its ID
	Sent     Position     // all before and at it that concern the service are acknowledged
	InFlight *Transaction // its Queue is not used
}

func serviceKey(id string) dbKey { return key(tableService).str(id) }

// ServiceCursor reads a service's cursor; ErrNotFound for one that was never here.
func (r *Reader) ServiceCursor(id string) (*ServiceCursor, error) {
	c := &ServiceCursor{Service: id}
	err := r.read(serviceKey(id), func(v []byte) error {
		var h destRecord
		body, err := splitBody(v, &h)
		if err != nil {
			return fmt.Errorf("application service %s in the store: %w", id, err)
		}
		c.Sent = h.Sent
		if h.InFlight != nil {
			c.InFlight = &Transaction{ID: h.InFlight.ID, Body: bytes.Clone(body), UpTo: h.InFlight.UpTo}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// PutServiceCursor writes the cursor of c.Service.
func (tx *Tx) PutServiceCursor(c *ServiceCursor) error {
	h := destRecord{Sent: c.Sent}
	var body []byte
	if t := c.InFlight; t != nil {
		if len(t.Body) > MaxTransactionBody {
			return fmt.Errorf("transaction %s of %d bytes: %w", t.ID, len(t.Body), ErrTooLarge)
		}
		h.InFlight = &txnRecord{ID: t.ID, UpTo: t.UpTo}
		body = t.Body
	}
	record, err := joinBody(h, body)
	if err != nil {
		return err
	}
	return tx.put(serviceKey(c.Service), record)
}

// ServiceCursors lists the IDs of the services that have a cursor.
func (r *Reader) ServiceCursors() (ids []string, err error) {
	err = r.scan(key(tableService), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		ids = append(ids, p.str())
		return true, nil
	})
	return ids, err
}

// DeleteServiceCursor forgets how far the service has been told, and what is in flight to it.
func (tx *Tx) DeleteServiceCursor(id string) error { return tx.delete(serviceKey(id)) }

// MaxNetworkRooms bounds the rooms that one service publishes, in all its networks.
const MaxNetworkRooms = 100_000

// ErrTooManyRooms is returned by SetNetworkRoom.
var ErrTooManyRooms = errors.New("the application service publishes too many rooms")

func networkCountKey(service string) dbKey { return key(tableNetworkCount).str(service) }

// SetNetworkRoom adds the room to the directory of a service's network, or takes it out; ErrTooManyRooms.
func (tx *Tx) SetNetworkRoom(service, network string, room eventgraph.RoomID, on bool) error {
	k := key(tableNetworkRoom).str(service).str(network).str(string(room))
	is, err := tx.has(k)
	if err != nil || is == on {
		return err
	}
	n, err := tx.getNumber(networkCountKey(service))
	if err != nil {
		return err
	}
	if on {
		if n >= MaxNetworkRooms {
			return ErrTooManyRooms
		}
		err = tx.put(k, nil)
		n++
	} else {
		err = tx.delete(k)
		n = max(n, 1) - 1
	}
	if err != nil {
		return err
	}
	return tx.putNumber(networkCountKey(service), n)
}

// NetworkRooms lists the rooms in the directory of a service's network, by ID; with "" those of all networks of all services.
func (r *Reader) NetworkRooms(service, network string) (rooms []eventgraph.RoomID, err error) {
	prefix := key(tableNetworkRoom)
	if service != "" {
		prefix = prefix.str(service).str(network)
	}
	err = r.scan(prefix, nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		p.str()
		rooms = append(rooms, eventgraph.RoomID(p.str()))
		return true, nil
	})
	return rooms, err
}

// MaxServiceUsers bounds the users that one service makes. Networks have more people than speak in the rooms that one node bridges; each
// takes some KiB.
const MaxServiceUsers = 100_000

// ErrTooManyUsers is returned by CountServiceUser.
var ErrTooManyUsers = errors.New("the application service has made too many users")

// CountServiceUser counts a user whom a service is about to make; ErrTooManyUsers.
func (tx *Tx) CountServiceUser(service string) error {
	k := key(tableServiceUsers).str(service)
	n, err := tx.getNumber(k)
	if err != nil {
		return err
	}
	if n >= MaxServiceUsers {
		return ErrTooManyUsers
	}
	return tx.putNumber(k, n+1)
}
