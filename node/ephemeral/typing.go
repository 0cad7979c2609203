package ephemeral

import (
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

type typingRoom struct {
	room    eventgraph.RoomID
	until   map[eventgraph.UserID]time.Time
	changed Counter
}

// SetTyping marks the user as typing in the room for the duration (0: stopped), at most MaxTyping. Repeating it
// only prolongs it and is no change.
func (s *State) SetTyping(room eventgraph.RoomID, user eventgraph.UserID, for_ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	element := s.typing[room]
	if element == nil {
		if for_ <= 0 {
			return
		}
		element = s.rooms.PushFront(&typingRoom{room: room, until: map[eventgraph.UserID]time.Time{}})
		s.typing[room] = element
		if s.rooms.Len() > maxTypingRooms {
			quiet := s.rooms.Remove(s.rooms.Back()).(*typingRoom)
			delete(s.typing, quiet.room)
		}
	}
	t := element.Value.(*typingRoom)
	_, was := t.until[user]
	if for_ <= 0 {
		if !was {
			return
		}
		delete(t.until, user)
	} else {
		if !was && len(t.until) >= maxTypistsOfRoom {
			return
		}
		t.until[user] = s.now().Add(min(for_, MaxTyping))
		s.wakeLapse()
		if was {
			return
		}
	}
	t.changed = s.change()
	s.rooms.MoveToFront(element)
}

// Typing lists who types in the room now, sorted, and the counter of the room's last change (0: never).
func (s *State) Typing(room eventgraph.RoomID) ([]eventgraph.UserID, Counter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	element := s.typing[room]
	if element == nil {
		return nil, 0
	}
	t := element.Value.(*typingRoom)
	users := make([]eventgraph.UserID, 0, len(t.until))
	for user := range t.until {
		users = append(users, user)
	}
	slices.Sort(users)
	return users, t.changed
}

// lapseTyping ends what is due and returns when the next will be (zero: never). The caller holds mu.
func (s *State) lapseTyping(now time.Time) (next time.Time) {
	var lapsed []eventgraph.RoomID
	for element := s.rooms.Front(); element != nil; element = element.Next() {
		t := element.Value.(*typingRoom)
		before := len(t.until)
		for user, until := range t.until {
			if until.After(now) {
				next = earlier(next, until)
			} else {
				delete(t.until, user)
			}
		}
		if len(t.until) < before {
			lapsed = append(lapsed, t.room)
		}
	}
	for _, room := range lapsed {
		element := s.typing[room]
		element.Value.(*typingRoom).changed = s.change()
		s.rooms.MoveToFront(element)
	}
	return next
}
