// Package auth holds the authorization rules of room versions 3 to 12, and MaySee, the one decision on
// who may read an event.
//
// The rules are those of the section "Authorisation rules" on the page of each room version. The versions
// differ in few rules but in many numbers; numbers.go knows the numbering, and comments here give places in
// the numbering of room version 12, which holds every rule except that on m.room.aliases (4 in versions 3
// to 5) and that on the creator field (1.4 in versions 3 to 10).
//
// What Check cannot see is the caller's part: that the signatures are valid (Event.VerifySignatures).
package auth

import (
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// The types of events that the rules know.
const (
	typeCreate     = "m.room.create"
	typeMember     = "m.room.member"
	typePower      = "m.room.power_levels"
	typeJoinRules  = "m.room.join_rules"
	typeThirdParty = "m.room.third_party_invite"
	typeAliases    = "m.room.aliases"
)

var (
	tupleCreate    = eventgraph.StateTuple{Type: typeCreate}
	tuplePower     = eventgraph.StateTuple{Type: typePower}
	tupleJoinRules = eventgraph.StateTuple{Type: typeJoinRules}
)

func tupleMember(u eventgraph.UserID) eventgraph.StateTuple {
	return eventgraph.StateTuple{Type: typeMember, Key: string(u)}
}

// State answers with the event at a tuple of the state that an event is checked against; nil if none.
// It answers with the room's create event in every room version, also where auth_events do not list it.
type State interface {
	Event(t eventgraph.StateTuple) (*eventgraph.Event, error)
}

// Refused is an event that the rules refuse: which rule (numbered as on the page of its room version) and
// why, in words.
type Refused struct {
	Rule   string
	Reason string
}

func (r *Refused) Error() string { return "not authorized by rule " + r.Rule + ": " + r.Reason }

// Check applies the authorization rules of e's room version to e against state, all but the rule on
// auth_events (CheckAuthEvents has it). It returns *Refused if they refuse it, and other errors only from
// state.
func Check(e *eventgraph.Event, state State) error {
	traits, ok := e.Version().Traits()
	if !ok {
		panic("auth: an event of unsupported room version " + string(e.Version()))
	}
	c := check{e: e, traits: traits, n: numbering[e.Version()], content: e.Content(), state: state}
	refused := c.event()
	if c.err != nil {
		return c.err
	}
	if refused != nil {
		return refused
	}
	return nil
}

// check is one event under the rules. What it reads from the state goes through read, which keeps the first
// error, so that the rules need not: whatever they find after an error is not used.
type check struct {
	e       *eventgraph.Event
	traits  eventgraph.Traits
	n       *numbers
	content []byte // canonical
	state   State
	err     error

	create *eventgraph.Event
	levels *Levels // nil until asked for
}

func (c *check) read(t eventgraph.StateTuple) *eventgraph.Event {
	if c.err != nil {
		return nil
	}
	e, err := c.state.Event(t)
	if err != nil {
		c.err = err
		return nil
	}
	return e
}

func refuse(rule, reason string) *Refused { return &Refused{Rule: rule, Reason: reason} }

// event runs the rules in their order.
func (c *check) event() *Refused {
	if c.e.Type() == typeCreate {
		return c.creation()
	}

	// Rule 2, and before version 12 the part of the rule on auth_events that makes a room begin with its create event.
	c.create = c.read(tupleCreate)
	if c.create == nil {
		return refuse(c.n.noCreate, "the room has no create event")
	}
	if c.create.RoomID() != c.e.RoomID() {
		return refuse(c.n.otherRoom, "the create event is that of another room")
	}

	// Rule 4.
	if createFactsOf(c.create).local && c.e.Sender().Server() != c.create.Sender().Server() {
		return refuse(c.n.federate, "the room does not federate, and the sender is on another server")
	}

	// Versions 3 to 5, rule 4.
	if c.e.Type() == typeAliases && !c.traits.NoAliasAuth {
		return c.aliases()
	}

	// Rule 5.
	if c.e.Type() == typeMember {
		return c.member()
	}

	// Rule 6.
	if c.membership(c.e.Sender()) != "join" {
		return refuse(c.n.joined, "the sender is not joined")
	}

	// Rule 7, with 7.1 alone in its list.
	sender := c.power(c.e.Sender())
	if c.e.Type() == typeThirdParty {
		if !sender.AtLeast(c.powerLevels().Invite) {
			return refuse(c.n.thirdParty+".1", "the sender's power level is below the invite level")
		}
		return nil
	}

	// Rule 8.
	stateKey, isState := c.e.StateKey()
	if !sender.AtLeast(c.powerLevels().Required(c.e.Type(), isState)) {
		return refuse(c.n.required, "the sender's power level is below that required for "+c.e.Type())
	}

	// Rule 9.
	if isState && strings.HasPrefix(stateKey, "@") && stateKey != string(c.e.Sender()) {
		return refuse(c.n.ownKey, "the state key is another user")
	}

	// Rule 10.
	if c.e.Type() == typePower {
		return c.alteration(sender)
	}

	// Rule 11.
	return nil
}

// creation is rule 1.
func (c *check) creation() *Refused {
	// 1.1
	if len(c.e.PrevEvents()) > 0 {
		return refuse("1.1", "a create event with prev_events")
	}

	// 1.2: what the accessor answers in version 12 is made from the event's ID, so the bytes are asked.
	if c.traits.RoomIDFromCreate {
		if _, has := canonicaljson.Get(c.e.Raw(), "room_id"); has {
			return refuse("1.2", "a create event with a room_id")
		}
	} else if _, domain, _ := strings.Cut(string(c.e.RoomID()), ":"); domain != string(c.e.Sender().Server()) {
		return refuse("1.2", "the room ID is not of the sender's server")
	}

	// 1.3: recognised is also not enough if it is not the version whose rules these are.
	if raw, has := canonicaljson.Get(c.content, "room_version"); has {
		version, ok := canonicaljson.String(raw)
		if !ok || eventgraph.RoomVersion(version) != c.e.Version() {
			return refuse("1.3", "room_version is not the room version that this is an event of")
		}
	}

	// Versions 3 to 10, 1.4.
	if _, has := canonicaljson.Get(c.content, "creator"); !has && !c.traits.NoCreatorField {
		return refuse("1.4", "a create event without creator")
	}

	// Version 12, 1.4.
	if raw, has := canonicaljson.Get(c.content, "additional_creators"); has && c.traits.PrivilegedCreators {
		users, ok := canonicaljson.Elements(raw)
		if !ok {
			return refuse("1.4", "additional_creators is not an array")
		}
		for _, u := range users {
			s, _ := canonicaljson.String(u)
			if _, err := eventgraph.ParseUserID(s); err != nil {
				return refuse("1.4", "additional_creators holds what is not a user ID")
			}
		}
	}
	// Otherwise, allow.
	return nil
}

// aliases is rule 4 of versions 3 to 5: 4.1, 4.2, and otherwise 4.3.
func (c *check) aliases() *Refused {
	stateKey, isState := c.e.StateKey()
	if !isState {
		return refuse(c.n.aliases+".1", "m.room.aliases without state_key")
	}
	if stateKey != string(c.e.Sender().Server()) {
		return refuse(c.n.aliases+".2", "the state key is not the sender's server")
	}
	return nil
}

// membership is a user's current membership; who has none has left, as far as the rules are concerned.
func (c *check) membership(u eventgraph.UserID) string {
	if e := c.read(tupleMember(u)); e != nil {
		return e.Membership()
	}
	return "leave"
}

func (c *check) powerLevels() *Levels {
	if c.levels == nil {
		c.levels = levelsOf(c.create, c.read(tuplePower))
	}
	return c.levels
}

func (c *check) power(u eventgraph.UserID) PowerLevel {
	if isCreator(u, c.create) {
		return infinite
	}
	return PowerLevel{Level: c.powerLevels().User(u)}
}
