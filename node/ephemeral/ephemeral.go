// Package ephemeral holds what lives in memory only: who is typing where, and who is present. It has a counter of its own,
// beside the store's positions.
package ephemeral

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Bounds on what clients and peers can make grow here. Beyond them the entry that has been quiet longest goes.
const (
	maxTypingRooms   = 10_000 // each a few hundred bytes
	maxTypistsOfRoom = 100    // more than anybody can show
	maxPresentUsers  = 20_000
)

// How things lapse by themselves.
const (
	MaxTyping    = 2 * time.Minute  // longest that one notice of typing counts
	IdleAfter    = 5 * time.Minute  // online becomes unavailable (CS API, Presence, Idle timeout)
	OfflineAfter = 30 * time.Minute // a presence that nobody repeats becomes offline
)

// Counter counts changes since the process started.
type Counter uint64

// State is for concurrent use. New starts the goroutine that lets typing and presence lapse; Close waits for its end.
type State struct {
	now  func() time.Time
	stop chan struct{}
	done chan struct{}
	wake chan struct{} // an earlier lapse may be due

	mu       sync.Mutex
	counter  Counter
	changed  chan struct{} // closed and renewed at each change
	typing   map[eventgraph.RoomID]*list.Element
	rooms    list.List // *typingRoom, newest change first
	presence map[eventgraph.UserID]*list.Element
	users    list.List // *presentUser, newest change first
	closed   bool
}

// New starts the goroutine that lets typing and presence lapse; now is its clock.
func New(now func() time.Time) *State {
	s := &State{
		now: now, stop: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
		changed:  make(chan struct{}),
		typing:   map[eventgraph.RoomID]*list.Element{},
		presence: map[eventgraph.UserID]*list.Element{},
	}
	go s.lapse()
	return s
}

// Close ends the goroutine that lets typing and presence lapse.
func (s *State) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	<-s.done
}

// Counter is that of the newest change.
func (s *State) Counter() Counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counter
}

// Changed lists rooms whose typing, and users whose presence, changed after the counter, newest first.
func (s *State) Changed(after Counter) (rooms []eventgraph.RoomID, users []eventgraph.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.rooms.Front(); e != nil && e.Value.(*typingRoom).changed > after; e = e.Next() {
		rooms = append(rooms, e.Value.(*typingRoom).room)
	}
	for e := s.users.Front(); e != nil && e.Value.(*presentUser).Changed > after; e = e.Next() {
		users = append(users, e.Value.(*presentUser).user)
	}
	return rooms, users
}

// Moved returns a channel that is closed once the counter is greater than after.
func (s *State) Moved(after Counter) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counter > after {
		return closed
	}
	return s.changed
}

// closed is what waits for nothing.
var closed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// Wait returns the counter once it is greater than after, or ctx's error.
func (s *State) Wait(ctx context.Context, after Counter) (Counter, error) {
	for {
		s.mu.Lock()
		counter, changed := s.counter, s.changed
		s.mu.Unlock()
		if counter > after {
			return counter, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// change counts one change and wakes those who wait. The caller holds mu.
func (s *State) change() Counter {
	s.counter++
	close(s.changed)
	s.changed = make(chan struct{})
	return s.counter
}

// lapse sleeps until the next entry is due, lets it lapse, and sleeps again.
func (s *State) lapse() {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-timer.C:
		}
		s.mu.Lock()
		now := s.now()
		next := earlier(s.lapseTyping(now), s.lapsePresence(now))
		s.mu.Unlock()
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(next.Sub(now), 0))
		}
	}
}

// earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func (s *State) wakeLapse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
