package auth

// Sight is what MaySee needs to know of one reader (a server, or a user) in one state.
type Sight struct {
	Visibility      string // content.history_visibility of the state, "" = shared
	Joined, Invited bool   // a user of the server (or the user) is
}

// MaySee says whether a reader, a server or a user, may be given an event (CS API, Room History Visibility; and a
// removed server still gets its removal, and what it could see before).
//
// before and after are the reader's sight in the state before and after the event; only for state events of
// m.room.history_visibility and of membership do they differ, and then the more permissive counts. now is the sight in the
// room's current state; its Joined stands for "joined at any point after the event", so a caller that knows
// of a reader who joined after the event and has left again sets it. ownUser says that the event is a
// membership event of the user, or of a user of that server: such an event is addressed to them (an invite, a
// kick, the refusal of a knock) and tells only about them.
func MaySee(before, after, now Sight, ownUser bool) bool {
	return ownUser || before.sees(now) || after.sees(now)
}

// sees applies the five rules of "Server behaviour" in one state.
func (s Sight) sees(now Sight) bool {
	switch {
	case s.Visibility == "world_readable": // 1.
		return true
	case s.Joined: // 2.
		return true
	case s.shared() && now.Joined: // 3.
		return true
	case s.Visibility == "invited" && s.Invited: // 4.
		return true
	}
	return false // 5.
}

// shared is also what a visibility that is absent or not understood means.
func (s Sight) shared() bool {
	return s.Visibility != "invited" && s.Visibility != "joined" && s.Visibility != "world_readable"
}
