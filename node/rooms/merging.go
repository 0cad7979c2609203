package rooms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// Forward extremities are merged by whoever speaks next, 20 at a time. Where many were apart and nobody speaks, one server of the
// room merges them with events that say nothing (design.md §4). Which one is no agreement, only an order in which the servers wait:
//
//	commit: more than mergeAbove ──▶ crowded ──mergeAfter──▶ my turn? ──its delay──▶ still so? ──▶ merge down to one
//	           mergeAbove or fewer ──▶ forgotten, whoever merged them
//
// Two servers that merge at the same time leave two extremities, which is few enough to end it.

// DummyEvent is the type of the event that merges extremities; other servers know it too. Its content is empty, and it is not shown to
// people.
const DummyEvent = "org.matrix.dummy_event"

const (
	// mergeAbove is how many extremities a room may have for long: each is a state more to resolve with each event.
	mergeAbove = 10
	// mergeAfter is for how long a room must have had more: usually somebody speaks, and what comes after a split comes in pieces.
	mergeAfter = time.Minute
	// mergeTurn is how long the second in the order waits for the first; long enough for an event to come over a slow link.
	mergeTurn = 30 * time.Second
	// mergeAgain is when a room is looked at again in which nobody here may merge, or which has more extremities still.
	mergeAgain = 10 * time.Minute
	// maxMerges is how many events take maxForward extremities down to one.
	maxMerges = maxForward/(maxPrevEvents-1) + 1
)

// crowd is a room with more than mergeAbove forward extremities.
type crowd struct {
	due    time.Time // of the next look
	ranked bool      // due counts the delay of our turn already
}

// crowds are the rooms to merge; rooms that have few extremities cost nothing. Bounded by the rooms held.
type crowds struct {
	more chan struct{} // holds a token when a room has been added

	mu    sync.Mutex
	rooms map[eventgraph.RoomID]*crowd
}

func newCrowds() *crowds {
	return &crowds{more: make(chan struct{}, 1), rooms: map[eventgraph.RoomID]*crowd{}}
}

// note says how many forward extremities a room has now.
func (c *crowds) note(room eventgraph.RoomID, extremities int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch held := c.rooms[room]; {
	case extremities <= mergeAbove:
		delete(c.rooms, room)
	case held == nil:
		c.rooms[room] = &crowd{due: time.Now().Add(mergeAfter)}
		select {
		case c.more <- struct{}{}:
		default:
		}
	}
}

// next is the room to look at first, and how long until then; false: there is none.
func (c *crowds) next() (room eventgraph.RoomID, at crowd, wait time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, held := range c.rooms {
		if !ok || held.due.Before(at.due) {
			room, at, ok = id, *held, true
		}
	}
	return room, at, time.Until(at.due), ok
}

// putOff sets the next look at a room, unless it has been forgotten since, and perhaps come anew.
func (c *crowds) putOff(room eventgraph.RoomID, at crowd, by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if held := c.rooms[room]; held != nil && *held == at {
		held.due, held.ranked = time.Now().Add(by), true
	}
}

// forget a room, until a commit leaves too many extremities in it again.
func (c *crowds) forget(room eventgraph.RoomID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.rooms, room)
}

// RunMerging merges forward extremities that stay many, in all rooms, until ctx ends.
func (r *Rooms) RunMerging(ctx context.Context) error {
	err := r.store.View(func(read *store.Reader) error {
		return read.Rooms(func(room *store.Room) (bool, error) {
			r.crowds.note(room.ID, len(room.Forward))
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	for {
		room, at, wait, ok := r.crowds.next()
		if ok && wait <= 0 {
			r.crowds.putOff(room, at, r.mergeInTurn(ctx, room, at))
			continue
		}
		var due <-chan time.Time
		if ok {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-due:
		case <-r.crowds.more:
		}
	}
}

// mergeInTurn merges a room's extremities if it is our turn, and says when to look at the room again.
func (r *Rooms) mergeInTurn(ctx context.Context, room eventgraph.RoomID, at crowd) time.Duration {
	if !at.ranked {
		delay, ok, err := r.mergeDelay(room)
		switch {
		case err != nil:
			r.logUnlessNotFound("whose turn it is to merge extremities", room, err)
			return mergeAgain
		case !ok:
			r.crowds.forget(room)
			return 0
		case delay > 0:
			return delay
		}
	}
	merged, err := r.mergeExtremities(ctx, room)
	var refusal *Refusal
	var missing *MissingError // a policy server's signature: nobody is asked for it for what says nothing
	switch {
	case err == nil:
		r.log.Debug("merged extremities", "room", room, "events", merged)
	case errors.As(err, &refusal), errors.As(err, &missing), errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDiskFull), errors.Is(err, ErrClosed):
		r.log.Debug("extremities are not merged here", "room", room, "err", err)
	default:
		r.log.Error("cannot merge extremities", "room", room, "err", err)
	}
	return mergeAgain
}

// mergeDelay is for how long our server leaves the merging to others; false if it has no joined user. The servers' places in the order
// come from a hash, so that all find the same without a word. The delay grows with the logarithm of the place: whatever part of the
// servers is here now, some turns pass before the first of them, and about one between it and the second.
func (r *Rooms) mergeDelay(room eventgraph.RoomID) (time.Duration, bool, error) {
	servers, err := r.Servers(room)
	if err != nil {
		return 0, false, err
	}
	place := func(s eventgraph.ServerName) []byte {
		sum := sha256.Sum256([]byte("merge " + string(room) + " " + string(s)))
		return sum[:]
	}
	own, before, joined := place(r.key.Server), 0, false
	for _, s := range servers {
		if s == r.key.Server {
			joined = true
		} else if bytes.Compare(place(s), own) < 0 {
			before++
		}
	}
	return time.Duration(math.Log2(float64(1+before)) * float64(mergeTurn)), joined, nil
}

// mergeExtremities merges more than mergeAbove extremities down to one, and returns how many events that took. *Refusal: no local user
// may.
func (r *Rooms) mergeExtremities(ctx context.Context, room eventgraph.RoomID) (merged int, err error) {
	user, err := r.mostPowerful(room)
	if err != nil {
		return 0, err
	}
	draft := Draft{Room: room, Sender: user, Type: DummyEvent, Content: json.RawMessage(`{}`)}
	for enough := mergeAbove; merged < maxMerges; enough = 1 {
		done := false
		err := r.inTurn(ctx, room, func(run *run) error {
			if done = len(run.live.tips) <= enough; done {
				return nil
			}
			_, err := run.send(draft)
			return err
		})
		if done || err != nil {
			return merged, err
		}
		merged++
	}
	return merged, nil
}

// mostPowerful is the local user joined to the room who has the greatest power. *Refusal: there is none.
func (r *Rooms) mostPowerful(room eventgraph.RoomID) (most eventgraph.UserID, err error) {
	state, err := r.CurrentState(room)
	if err != nil {
		return "", err
	}
	var users []eventgraph.UserID
	err = r.store.View(func(read *store.Reader) error {
		return read.MembersOf(room, func(m *store.Member) (bool, error) {
			if m.Membership == "join" && m.User.Server() == r.key.Server {
				users = append(users, m.User)
			}
			return true, nil
		})
	})
	if err != nil {
		return "", err
	}
	var greatest int64
	for _, user := range users {
		power, err := auth.UserPower(user, state)
		if err != nil {
			return "", err
		}
		if most == "" || power.Level > greatest {
			most, greatest = user, power.Level
		}
	}
	if most == "" {
		return "", refuse("M_FORBIDDEN", "nobody here is in room %s", room)
	}
	return most, nil
}
