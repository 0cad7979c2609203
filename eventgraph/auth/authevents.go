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
	state := new(listed)
	if e.Type() == typeCreate {
		return Check(e, state)
	}
	traits, ok := e.Version().Traits()
	if !ok {
		panic("auth: an event of unsupported room version " + string(e.Version()))
	}
	n := numbering[e.Version()]

	// Version 12, rule 2.
	if traits.RoomIDFromCreate {
		id := CreateOf(e.RoomID())
		create := byID(authEvents, id)
		if create == nil || create.Type() != typeCreate || rejected != nil && rejected(id) {
			return refuse(n.noCreate, "the room ID is not that of an accepted create event")
		}
		state.create = create
	}

	// Version 12, rule 3.
	var space [maxSelection]eventgraph.StateTuple
	stateKey, isState := e.StateKey()
	selected := selection(space[:0], traits, e.Type(), stateKey, isState, e.Sender(), e.Content())
	state.events = state.space[:0]
	// Of several rules that are broken the first of the page counts, whichever entry breaks it.
	var broken struct{ unneeded, rejected, noCreate, room *Refused }
	for _, id := range e.AuthEvents() {
		a := byID(authEvents, id)
		if a == nil {
			return fmt.Errorf("authorizing %s: its auth event %s was not given", e.ID(), id)
		}
		tuple, isState := a.Tuple()
		// 3.1
		if isState && state.at(tuple) != nil {
			return refuse(n.duplicate, "two auth events of type "+tuple.Type)
		}
		// 3.2
		if !isState || !slices.Contains(selected, tuple) {
			broken.unneeded = refuse(n.unneeded, "an auth event that such an event does not need, of type "+a.Type())
		}
		// 3.3
		if rejected != nil && rejected(id) {
			broken.rejected = refuse(n.rejected, "a rejected auth event, "+string(id))
		}
		// 3.5
		if a.RoomID() != e.RoomID() {
			broken.room = refuse(n.room, "an auth event of another room")
		}
		if isState {
			state.events = append(state.events, a)
		}
	}
	// Before version 12, rule 2.4.
	if !traits.RoomIDFromCreate && state.at(tupleCreate) == nil {
		broken.noCreate = refuse(n.noCreate, "no create event among the auth events")
	}
	for _, refused := range []*Refused{broken.unneeded, broken.rejected, broken.noCreate, broken.room} {
		if refused != nil {
			return refused
		}
	}
	return Check(e, state)
}

// byID finds an event among few.
func byID(events []*eventgraph.Event, id eventgraph.EventID) *eventgraph.Event {
	for _, e := range events {
		if e.ID() == id {
			return e
		}
	}
	return nil
}

// listed is the state that the auth events of one event make: few, each of another tuple, so that looking through them
// costs less than a map of them.
type listed struct {
	events []*eventgraph.Event
	create *eventgraph.Event // in version 12, which does not list it
	space  [maxSelection]*eventgraph.Event
}

// at is the listed event at the tuple, which is one of a state event.
func (l *listed) at(t eventgraph.StateTuple) *eventgraph.Event {
	for _, e := range l.events {
		if tuple, _ := e.Tuple(); tuple == t {
			return e
		}
	}
	return nil
}

// Event makes it a State.
func (l *listed) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	if e := l.at(t); e != nil || t != tupleCreate {
		return e, nil
	}
	return l.create, nil
}

// CreateOf is the event ID of the create event of a room of version 12.
func CreateOf(room eventgraph.RoomID) eventgraph.EventID {
	if room == "" {
		return ""
	}
	return eventgraph.EventID("$" + room[1:])
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
	var stateKey string
	if d.StateKey != nil {
		stateKey = *d.StateKey
	}
	return selection(nil, traits, d.Type, stateKey, d.StateKey != nil, d.Sender, d.Content)
}

// maxSelection is how many tuples a selection can have.
const maxSelection = 7

// selection appends the Selection for an event that is not the create event and has those fields and canonical content.
func selection(tuples []eventgraph.StateTuple, traits eventgraph.Traits, eventType, stateKey string, isState bool, sender eventgraph.UserID, content []byte) []eventgraph.StateTuple {
	if !traits.RoomIDFromCreate {
		tuples = append(tuples, tupleCreate)
	}
	tuples = append(tuples, tuplePower, tupleMember(sender))
	if eventType != typeMember {
		return tuples
	}

	if target := eventgraph.UserID(stateKey); isState && target != sender {
		tuples = append(tuples, tupleMember(target))
	}
	membership, _ := canonicaljson.GetString(content, "membership")
	switch membership {
	case "join", "invite", "knock":
		tuples = append(tuples, tupleJoinRules)
	}
	if membership == "invite" {
		invite, _ := canonicaljson.Get(content, "third_party_invite")
		signed, _ := canonicaljson.Get(invite, "signed")
		if token, ok := canonicaljson.GetString(signed, "token"); ok {
			tuples = append(tuples, eventgraph.StateTuple{Type: typeThirdParty, Key: token})
		}
	}
	if membership == "join" && traits.Restricted {
		if user, ok := canonicaljson.GetString(content, "join_authorised_via_users_server"); ok {
			if via := tupleMember(eventgraph.UserID(user)); !slices.Contains(tuples, via) {
				tuples = append(tuples, via)
			}
		}
	}
	return tuples
}
