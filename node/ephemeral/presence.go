package ephemeral

import (
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Presence of a user (CS API, Presence). LastActive is when the user was last active.
type Presence struct {
	State           string // online, unavailable, offline
	StatusMsg       string
	LastActive      time.Time
	CurrentlyActive bool
	Changed         Counter
	// For is how long it counts without being set again, until the user is taken for offline; 0 means OfflineAfter.
	For time.Duration
}

type presentUser struct {
	user eventgraph.UserID
	Presence
	until time.Time
}

// SetPresence sets or repeats the user's presence. Only what others would see differently (state, message, currently
// active) counts as a change.
func (s *State) SetPresence(user eventgraph.UserID, p Presence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if p.LastActive.IsZero() || p.LastActive.After(now) {
		p.LastActive = now
	}
	if p.For <= 0 || p.For > OfflineAfter {
		p.For = OfflineAfter
	}
	element := s.presence[user]
	fresh := element == nil
	if fresh {
		element = s.users.PushFront(&presentUser{user: user})
		s.presence[user] = element
		if s.users.Len() > maxPresentUsers {
			quiet := s.users.Remove(s.users.Back()).(*presentUser)
			delete(s.presence, quiet.user)
		}
	}
	u := element.Value.(*presentUser)
	same := !fresh && u.State == p.State && u.StatusMsg == p.StatusMsg && u.CurrentlyActive == p.CurrentlyActive
	p.Changed = u.Changed
	u.Presence, u.until = p, now.Add(p.For)
	s.wakeLapse()
	if !same {
		u.Changed = s.change()
		s.users.MoveToFront(element)
	}
}

// Presence is the user's; false if nothing is known of it.
func (s *State) Presence(user eventgraph.UserID) (Presence, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	element := s.presence[user]
	if element == nil {
		return Presence{}, false
	}
	return element.Value.(*presentUser).Presence, true
}

// Present lists the users of whom more is known than that they have been offline for OfflineAfter, those changed last first.
func (s *State) Present() (users []eventgraph.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	past := s.now().Add(-OfflineAfter)
	for element := s.users.Front(); element != nil; element = element.Next() {
		if u := element.Value.(*presentUser); u.State != "offline" || u.LastActive.After(past) {
			users = append(users, u.user)
		}
	}
	return users
}

// lapsePresence turns idle users unavailable, and those of whom nothing is heard offline; it returns when the next is due
// (zero: never). The caller holds mu.
func (s *State) lapsePresence(now time.Time) (next time.Time) {
	var lapsed []eventgraph.UserID
	for element := s.users.Front(); element != nil; element = element.Next() {
		u := element.Value.(*presentUser)
		if u.State == "offline" {
			continue
		}
		idle := u.LastActive.Add(IdleAfter)
		switch {
		case !u.until.After(now):
			u.State, u.CurrentlyActive = "offline", false
			lapsed = append(lapsed, u.user)
			continue
		case u.State == "online" && !idle.After(now):
			u.State, u.CurrentlyActive = "unavailable", false
			lapsed = append(lapsed, u.user)
		case u.State == "online":
			next = earlier(next, idle)
		}
		next = earlier(next, u.until)
	}
	for _, user := range lapsed {
		element := s.presence[user]
		element.Value.(*presentUser).Changed = s.change()
		s.users.MoveToFront(element)
	}
	return next
}
