// Package auth holds the authorization rules of room versions 3 to 12, and MaySee, the one decision on who may read an event.
package auth

import "github.com/plexus-p2p/plexus/eventgraph"

// State answers with the event at a tuple of the state that an event is checked against; nil if none.
type State interface {
	Event(t eventgraph.StateTuple) (*eventgraph.Event, error)
}

// Refused is an event that the rules refuse: which rule (spec's numbering) and why, in words.
type Refused struct {
	Rule   string
	Reason string
}

func (r *Refused) Error() string { return "not authorized by rule " + r.Rule + ": " + r.Reason }

// Check applies the authorization rules of e's room version to e against state. It returns *Refused
// if they refuse it, and other errors only from state.
func Check(e *eventgraph.Event, state State) error { panic("auth: skeleton") }

// CheckAuthEvents applies the rules on auth_events themselves: no duplicates, none beyond the auth
// events selection, a create event where the version wants one, all of the same room, none rejected
// (rejected says so), and then Check against them.
func CheckAuthEvents(e *eventgraph.Event, authEvents []*eventgraph.Event, rejected func(eventgraph.EventID) bool) error {
	panic("auth: skeleton")
}

// Selection lists the tuples whose events become auth_events of such an event (SS API, Auth events selection).
func Selection(v eventgraph.RoomVersion, d eventgraph.Draft) []eventgraph.StateTuple {
	panic("auth: skeleton")
}

// PowerLevel of a user in that state, by v12 creators too (then IsCreator: infinite).
type PowerLevel struct {
	Level     int64
	IsCreator bool
}

func UserPower(user eventgraph.UserID, state State) (PowerLevel, error) { panic("auth: skeleton") }

// Levels is a parsed m.room.power_levels with the defaults filled in.
type Levels struct {
	Users, Events, Notifications                                         map[string]int64
	UsersDefault, EventsDefault, StateDefault, Ban, Kick, Redact, Invite int64
}

// PowerLevels reads the levels from that state; with the defaults where there is no such event.
func PowerLevels(state State) (*Levels, error) { panic("auth: skeleton") }

// ServerAllowed applies the content of m.room.server_acl (nil: everyone) to a server name (SS API, Server ACLs).
func ServerAllowed(aclContent []byte, server eventgraph.ServerName) bool { panic("auth: skeleton") }

// Sight is what MaySee needs to know of one reader (a server, or a user) in one state.
type Sight struct {
	Visibility      string // content.history_visibility of the state, "" = shared
	Joined, Invited bool   // a user of the server (or the user) is
}

// MaySee says whether a server may be given an event: at is its sight in the state at the event (for a
// state event of m.room.history_visibility or of membership, the more permissive of before and after: the
// caller passes both as before and after), now in the room's current state. ownUser: the event is
// a membership event of a user of that server.
// (CS API, Room History Visibility; design.md §7: a removed server still gets its removal.)
func MaySee(before, after, now Sight, ownUser bool) bool { panic("auth: skeleton") }
