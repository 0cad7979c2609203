package auth

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// PowerLevel is the power of a user in some state; that of a creator in room version 12 is infinite, whatever Level says.
type PowerLevel struct {
	Level     int64
	IsCreator bool
}

// AtLeast says whether the power reaches a required level.
func (p PowerLevel) AtLeast(level int64) bool { return p.IsCreator || p.Level >= level }

// Above says whether the power is greater than that of another user. No creator is above a creator.
func (p PowerLevel) Above(other PowerLevel) bool {
	return !other.IsCreator && (p.IsCreator || p.Level > other.Level)
}

// UserPower is the user's power level in that state.
func UserPower(user eventgraph.UserID, state State) (PowerLevel, error) {
	create, err := state.Event(tupleCreate)
	if err != nil {
		return PowerLevel{}, err
	}
	power, err := state.Event(tuplePower)
	if err != nil {
		return PowerLevel{}, err
	}
	if create != nil && isCreator(user, create) {
		return infinite, nil
	}
	return PowerLevel{Level: levelsOf(create, power).User(user)}, nil
}

// infinite is the power of a creator in room version 12.
var infinite = PowerLevel{Level: math.MaxInt64, IsCreator: true}

// Levels is a parsed m.room.power_levels with the defaults filled in. The creators of a room of version 12 are not in it.
type Levels struct {
	Users, Events, Notifications                                         map[string]int64
	UsersDefault, EventsDefault, StateDefault, Ban, Kick, Redact, Invite int64
}

// User is the level of a user, the creators of version 12 apart.
func (l *Levels) User(u eventgraph.UserID) int64 {
	if level, ok := l.Users[string(u)]; ok {
		return level
	}
	return l.UsersDefault
}

// Required is the level needed to send an event of that type.
func (l *Levels) Required(eventType string, isState bool) int64 {
	if level, ok := l.Events[eventType]; ok {
		return level
	}
	if isState {
		return l.StateDefault
	}
	return l.EventsDefault
}

// PowerLevels reads the levels from that state; with the defaults where there is no such event. They are shared: the caller
// must not change them.
func PowerLevels(state State) (*Levels, error) {
	create, err := state.Event(tupleCreate)
	if err != nil {
		return nil, err
	}
	power, err := state.Event(tuplePower)
	if err != nil {
		return nil, err
	}
	return levelsOf(create, power), nil
}

// levelsOf are the levels that count in a state with those events; either may be nil.
func levelsOf(create, power *eventgraph.Event) *Levels {
	switch {
	case power != nil:
		return powerFactsOf(power).levels
	case create != nil:
		return createFactsOf(create).levels
	}
	return noLevels
}

var noLevels = written{}.withDefaults()

// withDefaults fills in the defaults of the CS API, m.room.power_levels: without the event the creator has 100 in
// versions 1 to 11; the other defaults are the same with and without it.
func (w written) withDefaults() *Levels {
	level := func(name string, otherwise int64) int64 {
		if level, ok := w.scalars[name]; ok {
			return level
		}
		return otherwise
	}
	return &Levels{
		Users: w.users, Events: w.events, Notifications: w.notifications,
		UsersDefault: level("users_default", 0), EventsDefault: level("events_default", 0), StateDefault: level("state_default", 50),
		Ban: level("ban", 50), Kick: level("kick", 50), Redact: level("redact", 50), Invite: level("invite", 0),
	}
}

// scalarLevels are the levels directly in content, in the order of the rules.
var scalarLevels = []string{"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}

// written is what a power levels event says, without defaults.
type written struct {
	scalars                      map[string]int64
	users, events, notifications map[string]int64
}

// malformed is a property whose form the rules refuse, of several that which they look at first.
type malformed struct {
	property string
	kind     malformedKind
}

type malformedKind uint8

const (
	wellFormed malformedKind = iota
	scalarMalformed
	mapMalformed
	usersMalformed
)

// parseLevels reads what can be read, and says what is malformed. From version 10 the rules 10.1 to 10.3 say
// what is. Before, the page says it of users alone; plexus refuses malformed levels elsewhere too, because no later
// event could be judged by them. There a level that is null counts as absent.
func parseLevels(content []byte, t eventgraph.Traits) (w written, bad malformed) {
	spoil := func(property string, kind malformedKind) {
		if bad.kind == wellFormed || kind < bad.kind {
			bad = malformed{property, kind}
		}
	}
	w.scalars = make(map[string]int64, len(scalarLevels))
	members, _ := canonicaljson.Split(content)
	var ok bool
	for _, m := range members {
		switch m.Key {
		case "events":
			if w.events, ok = parseLevelMap(m.Value, t, !t.IntegerLevels); !ok {
				spoil(m.Key, mapMalformed)
			}
		case "notifications":
			// Before version 6 the rules do not look at them.
			if w.notifications, ok = parseLevelMap(m.Value, t, !t.IntegerLevels); !ok && t.NotificationLevels {
				spoil(m.Key, mapMalformed)
			}
		case "users":
			if w.users, ok = parseLevelMap(m.Value, t, false); !ok {
				spoil(m.Key, usersMalformed)
			}
		default:
			if !slices.Contains(scalarLevels, m.Key) || !t.IntegerLevels && canonicaljson.IsNull(m.Value) {
				continue
			}
			if w.scalars[m.Key], ok = parseLevel(m.Value, t); !ok {
				delete(w.scalars, m.Key)
				spoil(m.Key, scalarMalformed)
			}
		}
	}
	for u := range w.users {
		if _, err := eventgraph.ParseUserID(u); err != nil {
			spoil("users", usersMalformed)
		}
	}
	return w, bad
}

// parseLevelMap reads an object of levels, as far as it can be read.
func parseLevelMap(raw []byte, t eventgraph.Traits, skipNull bool) (map[string]int64, bool) {
	entries, err := canonicaljson.Split(raw)
	if err != nil {
		return nil, false
	}
	levels, ok := make(map[string]int64, len(entries)), true
	for _, entry := range entries {
		if skipNull && canonicaljson.IsNull(entry.Value) {
			continue
		}
		if level, parsed := parseLevel(entry.Value, t); parsed {
			levels[entry.Key] = level
		} else {
			ok = false
		}
	}
	return levels, ok
}

// parseLevel reads one level. Before version 10 it may also be a string or a float (room version 3, Deprecated
// event content schemas). Levels outside int64, possible only where JSON is not yet canonical, become its ends.
func parseLevel(raw []byte, t eventgraph.Traits) (int64, bool) {
	if level, ok := canonicaljson.Int64(raw); ok || t.IntegerLevels {
		return level, ok
	}

	if s, ok := canonicaljson.String(raw); ok {
		// One integer in base 10, one sign, zeroes before and white space around it. Other than in Python and Go,
		// no underscores.
		s = strings.TrimSpace(s)
		unsigned := s
		if s != "" && (s[0] == '+' || s[0] == '-') {
			unsigned = s[1:]
		}
		if unsigned == "" || strings.Trim(unsigned, "0123456789") != "" {
			return 0, false
		}
		level, _ := strconv.ParseInt(s, 10, 64) // out of range: the nearest end
		return level, true
	}

	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return 0, false // outside the range of a double
	}
	switch f = math.Trunc(f); {
	case f >= math.MaxInt64:
		return math.MaxInt64, true
	case f <= math.MinInt64:
		return math.MinInt64, true
	}
	return int64(f), true
}

// alteration is rule 10.
func (c *check) alteration(sender PowerLevel) *Refused {
	// 10.1 to 10.3
	facts := powerFactsOf(c.e)
	now, bad := facts.written, facts.bad
	switch bad.kind {
	case scalarMalformed:
		return refuse(c.n.levelNotInteger, bad.property+" is not an integer")
	case mapMalformed:
		return refuse(c.n.mapNotInteger, bad.property+" is not an object of integers")
	case usersMalformed:
		return refuse(c.n.usersMalformed, "users is not an object of user IDs with integers")
	}

	// 10.4
	if c.traits.PrivilegedCreators {
		for u := range now.users {
			if isCreator(eventgraph.UserID(u), c.create) {
				return refuse(c.n.usersCreators, "users holds a creator of the room")
			}
		}
	}

	// 10.5
	event := c.read(tuplePower)
	if event == nil {
		return nil
	}
	old := powerFactsOf(event).written

	// 10.6
	for _, name := range scalarLevels {
		if above := altered(old.scalars, now.scalars, name, sender); above != "" {
			return refuse(c.n.scalars+"."+above, name+" is, or would be, above the sender's power level")
		}
	}

	// 10.7 and 10.8
	for _, entries := range []struct {
		name     string
		old, now map[string]int64
		counts   bool
	}{
		{"events", old.events, now.events, true},
		{"notifications", old.notifications, now.notifications, c.traits.NotificationLevels},
	} {
		if !entries.counts {
			continue
		}
		for key := range entries.old {
			if altered(entries.old, entries.now, key, sender) == "1" {
				return refuse(c.n.entriesNow+".1", entries.name+" has an altered entry that is above the sender's power level")
			}
		}
		for key := range entries.now {
			if altered(entries.old, entries.now, key, sender) == "2" {
				return refuse(c.n.entriesNew+".1", entries.name+" would have an entry above the sender's power level")
			}
		}
	}

	// 10.9
	for user, level := range old.users {
		if l, has := now.users[user]; (has && l == level) || user == string(c.e.Sender()) {
			continue
		}
		if !sender.Above(PowerLevel{Level: level}) {
			return refuse(c.n.usersNow+".1", "users has an altered entry that is not below the sender's power level")
		}
	}
	// 10.10
	for user, level := range now.users {
		if l, has := old.users[user]; has && l == level {
			continue
		}
		if !sender.AtLeast(level) {
			return refuse(c.n.usersNew+".1", "users would have an entry above the sender's power level")
		}
	}
	// The second rule 10.10 of the page: otherwise, allow.
	return nil
}

// altered compares one level before and after: "" if it stays or the sender may alter it, "1" if the current
// value is above the sender's power, "2" if the new one is.
func altered(old, now map[string]int64, name string, sender PowerLevel) string {
	was, had := old[name]
	is, has := now[name]
	switch {
	case had == has && was == is:
		return ""
	case had && !sender.AtLeast(was):
		return "1"
	case has && !sender.AtLeast(is):
		return "2"
	}
	return ""
}
