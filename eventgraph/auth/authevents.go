package auth

import (
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// CheckAuthEvents applies the rule on auth_events (2, from version 12 rules 2 and 3): no duplicates, none beyond the auth
// events selection, none rejected (rejected says so), all of e's room, and before version 12 a create event
// among them; and then Check against the state that they make.
//
// authEvents are the events that e lists, in any order. In room version 12, whose events do not list it, the
// caller adds the room's create event ("$" and the room ID without its "!"): one that e does not list is not
// taken for listed, and without it e is refused by rule 2. So is e if rejected says yes to it. The create
// event itself needs none of this.
//
// A listed event that is not among authEvents is the caller's mistake: a plain error, no *Refused.
func CheckAuthEvents(e *eventgraph.Event, authEvents []*eventgraph.Event, rejected func(eventgraph.EventID) bool) error {
	if e.Type() == typeCreate {
		return Check(e, given(nil))
	}
	traits, ok := e.Version().Traits()
	if !ok {
		panic("auth: an event of unsupported room version " + string(e.Version()))
	}
	n := numbersOf(traits)

	held := make(map[eventgraph.EventID]*eventgraph.Event, len(authEvents))
	for _, a := range authEvents {
		held[a.ID()] = a
	}

	state := make(given, len(authEvents))
	// Version 12, rule 2.
	if traits.RoomIDFromCreate {
		id := CreateOf(e.RoomID())
		create := held[id]
		if create == nil || create.Type() != typeCreate || rejected != nil && rejected(id) {
			return refuse(n.noCreate, "the room ID is not that of an accepted create event")
		}
		state[tupleCreate] = create
	}

	// Version 12, rule 3.
	selected := selection(traits, draftOf(e))
	seen := make(map[eventgraph.StateTuple]bool, len(authEvents))
	for _, id := range e.AuthEvents() {
		a := held[id]
		if a == nil {
			return fmt.Errorf("authorizing %s: its auth event %s was not given", e.ID(), id)
		}
		tuple, isState := a.Tuple()
		// 3.1
		if seen[tuple] {
			return refuse(n.duplicate, "two auth events of type "+tuple.Type)
		}
		seen[tuple] = true
		// 3.2
		if !isState || !slices.Contains(selected, tuple) {
			return refuse(n.unneeded, "an auth event that such an event does not need, of type "+a.Type())
		}
		// 3.3
		if rejected != nil && rejected(id) {
			return refuse(n.rejected, "a rejected auth event, "+string(id))
		}
		// 3.5
		if a.RoomID() != e.RoomID() {
			return refuse(n.room, "an auth event of another room")
		}
		state[tuple] = a
	}
	// Before version 12, rule 2.4 is Check's: there is no create event in this state.
	return Check(e, state)
}

// CreateOf is the event ID of the create event of a room of version 12.
func CreateOf(room eventgraph.RoomID) eventgraph.EventID {
	if room == "" {
		return ""
	}
	return eventgraph.EventID("$" + room[1:])
}

// given is a state of few events.
type given map[eventgraph.StateTuple]*eventgraph.Event

func (g given) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) { return g[t], nil }

func draftOf(e *eventgraph.Event) eventgraph.Draft {
	d := eventgraph.Draft{Type: e.Type(), Sender: e.Sender(), Content: e.Content()}
	if key, ok := e.StateKey(); ok {
		d.StateKey = &key
	}
	return d
}

// Selection lists the tuples whose events become auth_events of such an event, without duplicates (SS API, Auth
// events selection). Of the draft it looks at type, state key, sender and content. In room version 12 the create
// event is not among them, although Check needs it.
func Selection(v eventgraph.RoomVersion, d eventgraph.Draft) []eventgraph.StateTuple {
	if d.Type == typeCreate {
		return nil
	}
	traits, _ := v.Traits()
	if canonical, err := canonicaljson.Canonicalize(d.Content, canonicaljson.Lenient); err == nil {
		d.Content = canonical
	}
	return selection(traits, d)
}

// selection is Selection for a draft whose content is canonical.
func selection(traits eventgraph.Traits, d eventgraph.Draft) []eventgraph.StateTuple {
	var tuples []eventgraph.StateTuple
	add := func(t eventgraph.StateTuple) {
		if !slices.Contains(tuples, t) {
			tuples = append(tuples, t)
		}
	}
	if !traits.RoomIDFromCreate {
		add(tupleCreate)
	}
	add(tuplePower)
	add(tupleMember(d.Sender))
	if d.Type != typeMember {
		return tuples
	}

	if d.StateKey != nil {
		add(tupleMember(eventgraph.UserID(*d.StateKey)))
	}
	membership, _ := canonicaljson.GetString(d.Content, "membership")
	switch membership {
	case "join", "invite", "knock":
		add(tupleJoinRules)
	}
	if membership == "invite" {
		invite, _ := canonicaljson.Get(d.Content, "third_party_invite")
		signed, _ := canonicaljson.Get(invite, "signed")
		if token, ok := canonicaljson.GetString(signed, "token"); ok {
			add(eventgraph.StateTuple{Type: typeThirdParty, Key: token})
		}
	}
	if membership == "join" && traits.Restricted {
		if user, ok := canonicaljson.GetString(d.Content, "join_authorised_via_users_server"); ok {
			add(tupleMember(eventgraph.UserID(user)))
		}
	}
	return tuples
}
