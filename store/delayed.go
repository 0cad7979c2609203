package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// DelayedEvent is an event that a local user has asked to be sent later (MSC4140). It is scheduled until it is finalised: sent,
// cancelled, or refused when its time had come.
type DelayedEvent struct {
	ID          string
	User        eventgraph.UserID
	Room        eventgraph.RoomID
	Type        string
	StateKey    *string `json:",omitempty"` // nil: a message event
	Content     json.RawMessage
	DelayMS     int64
	ScheduledTS int64 // ms; when it was scheduled, or last restarted

	FinalisedTS int64              `json:",omitzero"` // ms; 0: scheduled
	Event       eventgraph.EventID `json:",omitzero"` // as which it was sent
	Error       json.RawMessage    `json:",omitzero"` // why it could not be sent, as a client is told (CS API, Standard error response)
}

// Due is when it is to be sent, in ms.
func (d *DelayedEvent) Due() int64 { return d.ScheduledTS + d.DelayMS }

// Bounds of the delayed events of one user. What is scheduled the client API bounds, which answers when there is room again.
const (
	MaxFinalisedDelayed  = 100                     // kept for clients that ask what has become of them; the newest
	finalisedDelayedKept = 7 * 24 * 60 * 60 * 1000 // ms, as MSC4140 recommends
)

func delayedKey(user eventgraph.UserID) dbKey { return key(tableDelayed).str(string(user)) }

func delayedDueKey(d *DelayedEvent) dbKey {
	return key(tableDelayedDue).u64(uint64(d.Due())).str(string(d.User)).str(d.ID)
}

// DelayedEvent reads one; ErrNotFound.
func (r *Reader) DelayedEvent(user eventgraph.UserID, id string) (*DelayedEvent, error) {
	var d DelayedEvent
	if err := r.getJSON(delayedKey(user).str(id), &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// DelayedEvents lists the user's, scheduled ones by when they are due, then finalised ones, the newest first.
func (r *Reader) DelayedEvents(user eventgraph.UserID) (scheduled, finalised []*DelayedEvent, err error) {
	err = r.scan(delayedKey(user), nil, false, func(_, value []byte) (bool, error) {
		var d DelayedEvent
		if err := json.Unmarshal(value, &d); err != nil {
			return false, err
		}
		if d.FinalisedTS == 0 {
			scheduled = append(scheduled, &d)
		} else {
			finalised = append(finalised, &d)
		}
		return true, nil
	})
	slices.SortStableFunc(scheduled, func(a, b *DelayedEvent) int { return cmp.Compare(a.Due(), b.Due()) })
	slices.SortStableFunc(finalised, func(a, b *DelayedEvent) int { return cmp.Compare(b.FinalisedTS, a.FinalisedTS) })
	return scheduled, finalised, err
}

// DelayedDue calls f for all users' scheduled events, by when they are due.
func (r *Reader) DelayedDue(f func(dueTS int64, user eventgraph.UserID, id string) (bool, error)) error {
	return r.scan(key(tableDelayedDue), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		due, user, id := p.u64(), p.str(), p.str()
		if !p.ok {
			return false, errors.New("malformed key of a delayed event")
		}
		return f(int64(due), eventgraph.UserID(user), id)
	})
}

// PutDelayedEvent writes or replaces it. When it is finalised, older ones of the user that are more than is kept go.
func (tx *Tx) PutDelayedEvent(d *DelayedEvent) error {
	if err := tx.dropDelayedDue(d.User, d.ID); err != nil {
		return err
	}
	if err := tx.putJSON(delayedKey(d.User).str(d.ID), d); err != nil {
		return err
	}
	if d.FinalisedTS == 0 {
		return tx.put(delayedDueKey(d), nil)
	}
	_, finalised, err := tx.DelayedEvents(d.User)
	if err != nil {
		return err
	}
	for i, old := range finalised {
		if i >= MaxFinalisedDelayed || old.FinalisedTS < d.FinalisedTS-finalisedDelayedKept {
			if err := tx.delete(delayedKey(old.User).str(old.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// DropDelayedEvents removes all of a user's: nobody is left who would send them.
func (tx *Tx) DropDelayedEvents(user eventgraph.UserID) error {
	var keys [][]byte
	err := tx.scan(delayedKey(user), nil, false, func(k, value []byte) (bool, error) {
		keys = append(keys, bytes.Clone(k))
		var d DelayedEvent
		if err := json.Unmarshal(value, &d); err != nil {
			return false, err
		}
		if d.FinalisedTS == 0 {
			keys = append(keys, delayedDueKey(&d))
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := tx.delete(k); err != nil {
			return err
		}
	}
	return nil
}

// dropDelayedDue removes the event as it is held from those that are due.
func (tx *Tx) dropDelayedDue(user eventgraph.UserID, id string) error {
	held, err := tx.DelayedEvent(user, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil || held.FinalisedTS != 0 {
		return err
	}
	return tx.delete(delayedDueKey(held))
}
