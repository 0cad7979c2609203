package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Joins under way: of a room of which another server has, or may have, let one of our users in, and of which not all has come that
// makes it a room here. What has come lies in tableStaged, until the room exists or the join is given up.

// MaxJoins is how many rooms may be being joined at a time: each may hold what a state may be long.
const MaxJoins = 16

// ErrTooManyJoins: MaxJoins are under way.
var ErrTooManyJoins = errors.New("too many rooms are being joined; wait for one of them")

// JoinPhase is how far a join has come.
type JoinPhase string

const (
	JoinSent  JoinPhase = "sent"  // our event was about to be sent: whether it was taken in is not known
	JoinTaken JoinPhase = "taken" // a server in the room has taken it in: nothing is to be sent again
	JoinWhole JoinPhase = "whole" // the room's state and its auth chains have come, or what is to be had of them
)

// Join is one of them, kept before its event leaves.
type Join struct {
	Room    eventgraph.RoomID
	Version eventgraph.RoomVersion
	User    eventgraph.UserID
	Event   []byte                  // ours, signed; with the other server's signature, once it has come
	Server  eventgraph.ServerName   // whom it was sent to
	Via     []eventgraph.ServerName // who else may give the rest
	Since   int64                   // ms
	Phase   JoinPhase
	Create  eventgraph.EventID // "": has not come

	Arrived  int                  // events
	Expected int                  // of so many; 0: not known
	Show     []eventgraph.EventID // state that tells what room it is: held as outliers
}

// PutJoin keeps a join; ErrTooManyJoins if it is new and too many are under way.
func (tx *Tx) PutJoin(j *Join) error {
	k := key(tableJoin).str(string(j.Room))
	if held, err := tx.has(k); err != nil {
		return err
	} else if !held {
		n := 0
		if err := tx.Joins(func(*Join) (bool, error) { n++; return true, nil }); err != nil {
			return err
		}
		if n >= MaxJoins {
			return ErrTooManyJoins
		}
	}
	return tx.putJSON(k, j)
}

// Join reads the join of a room that is under way; ErrNotFound.
func (r *Reader) Join(room eventgraph.RoomID) (*Join, error) {
	var j Join
	if err := r.getJSON(key(tableJoin).str(string(room)), &j); err != nil {
		return nil, err
	}
	return &j, nil
}

// Joins calls f for each join under way.
func (r *Reader) Joins(f func(*Join) (bool, error)) error {
	var rooms []eventgraph.RoomID
	err := r.scan(key(tableJoin), nil, false, func(k, _ []byte) (bool, error) {
		rooms = append(rooms, eventgraph.RoomID(parts(k).str()))
		return true, nil
	})
	for _, room := range rooms {
		var j *Join
		if err == nil {
			j, err = r.Join(room)
		}
		more := false
		if err == nil {
			more, err = f(j)
		}
		if err != nil || !more {
			return err
		}
	}
	return err
}

// DeleteJoin forgets a join; what it staged goes by DeleteStaged, before it.
func (tx *Tx) DeleteJoin(room eventgraph.RoomID) error {
	return tx.delete(key(tableJoin).str(string(room)))
}

// Staged is an event that a join needs.
type Staged struct {
	ID      eventgraph.EventID
	State   bool   // is in the room's state before the join, as the server that gave it says
	Settled bool   // was put through Accept: it is held, or was refused
	PDU     []byte // what has come and could not be accepted yet; nil: settled, or has not come
}

// Bits of a staged record's first byte.
const (
	stagedState   = 1
	stagedSettled = 2
)

func stagedKey(room eventgraph.RoomID, id eventgraph.EventID) dbKey {
	return key(tableStaged).str(string(room)).id(id)
}

// PutStaged keeps what is known of an event of a join under way.
func (tx *Tx) PutStaged(room eventgraph.RoomID, s *Staged) error {
	flags := byte(0)
	if s.State {
		flags |= stagedState
	}
	if s.Settled {
		flags |= stagedSettled
	}
	return tx.put(stagedKey(room, s.ID), append([]byte{flags}, s.PDU...))
}

// StagedEvent reads one; ErrNotFound.
func (r *Reader) StagedEvent(room eventgraph.RoomID, id eventgraph.EventID) (*Staged, error) {
	v, err := r.get(stagedKey(room, id))
	if err != nil {
		return nil, err
	}
	return decodeStaged(id, v)
}

// Staged calls f for each event of a join under way, in the order of their IDs. The PDU is valid only in f.
func (r *Reader) Staged(room eventgraph.RoomID, f func(*Staged) (bool, error)) error {
	return r.scan(key(tableStaged).str(string(room)), nil, false, func(k, v []byte) (bool, error) {
		p := parts(k)
		p.str()
		s, err := decodeStaged(p.id(), v)
		if err != nil {
			return false, err
		}
		return f(s)
	})
}

func decodeStaged(id eventgraph.EventID, v []byte) (*Staged, error) {
	if len(v) == 0 {
		return nil, fmt.Errorf("staged event %s: %w", id, errCutOff)
	}
	s := &Staged{ID: id, State: v[0]&stagedState != 0, Settled: v[0]&stagedSettled != 0}
	if len(v) > 1 {
		s.PDU = v[1:]
	}
	return s, nil
}

// DeleteStagedEvent forgets one event that a room's join needs.
func (tx *Tx) DeleteStagedEvent(room eventgraph.RoomID, id eventgraph.EventID) error {
	return tx.delete(stagedKey(room, id))
}

// DeleteStaged forgets at most n of what a room's join staged, and says whether anything is left.
func (tx *Tx) DeleteStaged(room eventgraph.RoomID, n int) (left bool, err error) {
	err = tx.scan(key(tableStaged).str(string(room)), nil, false, func(k, _ []byte) (bool, error) {
		if n == 0 {
			left = true
			return false, nil
		}
		n--
		return true, tx.delete(bytes.Clone(k))
	})
	return left, err
}
