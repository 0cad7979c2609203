// Package ephemeral holds what lives in memory only: who is typing where, and who is present. It has a counter of its own,
// beside the store's positions.
package ephemeral

import (
	"context"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Counter counts changes since the process started.
type Counter uint64

type State struct{}

func New(now func() time.Time) *State { panic("ephemeral: skeleton") }

// Close ends the goroutine that lets typing and presence lapse.
func (s *State) Close() {}

// SetTyping marks the user as typing in the room for the duration (0: stopped), at most 2 minutes.
func (s *State) SetTyping(room eventgraph.RoomID, user eventgraph.UserID, for_ time.Duration) {
	panic("ephemeral: skeleton")
}

// Typing lists who types in the room now, sorted, and the counter of the room's last change (0: never).
func (s *State) Typing(room eventgraph.RoomID) ([]eventgraph.UserID, Counter) {
	panic("ephemeral: skeleton")
}

// Presence of a user (CS API, Presence). LastActive is when the user was last active.
type Presence struct {
	State           string // online, unavailable, offline
	StatusMsg       string
	LastActive      time.Time
	CurrentlyActive bool
	Changed         Counter
}

func (s *State) SetPresence(user eventgraph.UserID, p Presence)   { panic("ephemeral: skeleton") }
func (s *State) Presence(user eventgraph.UserID) (Presence, bool) { panic("ephemeral: skeleton") }

// Changed lists rooms whose typing, and users whose presence, changed after the counter.
func (s *State) Changed(after Counter) (rooms []eventgraph.RoomID, users []eventgraph.UserID) {
	panic("ephemeral: skeleton")
}
func (s *State) Counter() Counter { panic("ephemeral: skeleton") }

// Wait returns the counter once it is greater than after, or ctx's error.
func (s *State) Wait(ctx context.Context, after Counter) (Counter, error) {
	panic("ephemeral: skeleton")
}
