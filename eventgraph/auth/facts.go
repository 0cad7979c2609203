package auth

import (
	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// Nearly every event of a room is judged by the same create event and the same power levels. What the rules read from these
// and from the join rules is read once and stays with the event that says it (eventgraph.Event.Derived). Looking a sender's
// level up in the content anew would cost a scan of it: of an event with 500 users, as much as half a signature's check.

// createFacts is what a create event says.
type createFacts struct {
	local    bool                       // m.federate is false
	creator  eventgraph.UserID          // whom rule 5.3.1 lets join first
	infinite map[eventgraph.UserID]bool // the users of infinite power (version 12)
	levels   *Levels                    // of a room without power levels
}

// powerFacts is what an m.room.power_levels says, as it stands there and with the defaults.
type powerFacts struct {
	written written
	bad     malformed
	levels  *Levels
}

// joinFacts is what an m.room.join_rules says.
type joinFacts struct{ rule string }

func derive(e *eventgraph.Event) any {
	switch e.Type() {
	case typeCreate:
		return readCreate(e)
	case typePower:
		return readPower(e)
	case typeJoinRules:
		return readJoinRules(e)
	}
	return nil
}

// createFactsOf an event that a state has as its create event. If it is none, it is read as if it were one.
func createFactsOf(e *eventgraph.Event) *createFacts {
	if f, ok := e.Derived(derive).(*createFacts); ok {
		return f
	}
	return readCreate(e)
}

func powerFactsOf(e *eventgraph.Event) *powerFacts {
	if f, ok := e.Derived(derive).(*powerFacts); ok {
		return f
	}
	return readPower(e)
}

func joinFactsOf(e *eventgraph.Event) *joinFacts {
	if f, ok := e.Derived(derive).(*joinFacts); ok {
		return f
	}
	return readJoinRules(e)
}

func readCreate(e *eventgraph.Event) *createFacts {
	traits, _ := e.Version().Traits()
	f := &createFacts{creator: e.Sender()}
	if !traits.NoCreatorField {
		s, _ := canonicaljson.GetString(e.Content(), "creator")
		f.creator = eventgraph.UserID(s)
	}
	federate, _ := canonicaljson.Get(e.Content(), "m.federate")
	f.local = string(federate) == "false"
	var w written
	if traits.PrivilegedCreators {
		f.infinite = map[eventgraph.UserID]bool{e.Sender(): true}
		raw, _ := canonicaljson.Get(e.Content(), "additional_creators")
		elements, _ := canonicaljson.Elements(raw)
		for _, element := range elements {
			s, _ := canonicaljson.String(element)
			f.infinite[eventgraph.UserID(s)] = true
		}
	} else {
		w.users = map[string]int64{string(f.creator): 100}
	}
	f.levels = w.withDefaults()
	return f
}

func readPower(e *eventgraph.Event) *powerFacts {
	traits, _ := e.Version().Traits()
	w, bad := parseLevels(e.Content(), traits)
	return &powerFacts{w, bad, w.withDefaults()}
}

func readJoinRules(e *eventgraph.Event) *joinFacts {
	rule, _ := canonicaljson.GetString(e.Content(), "join_rule")
	return &joinFacts{rule}
}

// isCreator says whether u has infinite power in the room of that create event (version 12).
func isCreator(u eventgraph.UserID, create *eventgraph.Event) bool {
	return createFactsOf(create).infinite[u]
}
