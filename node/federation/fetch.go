package federation

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// This file decides whom to ask for what; waiting.go asks. Nothing here reads a clock, the store or the network, so that a
// history can be played again.

// want is an event that waits, its prev_events, who gave it, and what it misses that does not wait too.
type want struct {
	event  eventgraph.EventID
	prev   []eventgraph.EventID
	origin eventgraph.ServerName
	rooms.MissingError
}

// askKind is a way to obtain what is missing.
type askKind uint8

const (
	askKeys    askKind = iota + 1 // key documents
	askMissing                    // get_missing_events: between what we hold and the waiting event
	askAuth                       // event_auth: the auth chain of the waiting event
	askEvent                      // event: one parent, by its ID
	askState                      // state_ids: the state before the waiting event, as the server claims it
	askPolicy                     // policy/v1/sign: the policy server's signature on the waiting event, or on a parent
)

// ask is one question to one server. Event is the waiting event, Parent the one asked for by askEvent, or to be signed.
type ask struct {
	kind   askKind
	server eventgraph.ServerName
	event  eventgraph.EventID
	parent eventgraph.EventID
}

// holders are the servers that are connected now and may have what is missing.
type holders struct {
	room []eventgraph.ServerName // the room's: asked about all that waits
	// outside is who gave an event of its own, was let in once, and is not in the room by what we hold. Such a server is asked about what it gave
	// itself, and only for events, of which each is judged by what it rests on: never for what it claims of the room's state.
	outside map[eventgraph.ServerName]bool
}

// about lists who is asked for what an event misses, whoever gave it first.
func (h holders) about(origin eventgraph.ServerName) []eventgraph.ServerName {
	if h.outside[origin] {
		return append([]eventgraph.ServerName{origin}, h.room...)
	}
	return firstIn(h.room, origin)
}

// decide returns the next question for the first waiting event that has one; false if there is none. tried says whether a question was put
// so lately that it is no use to put it again. A parent's absence is taken for final, and the state before the event as a server of the room
// claims it for its basis, only after every holder has been asked for the parent.
func decide(wants []want, holders holders, tried func(ask) bool) (ask, bool) {
	for _, w := range wants {
		var next []ask
		add := func(kind askKind, parent eventgraph.EventID) {
			for _, s := range holders.about(w.origin) {
				if kind == askState && holders.outside[s] {
					continue
				}
				next = append(next, ask{kind, s, w.event, parent})
			}
		}
		var parents, others []eventgraph.EventID
		for _, id := range w.Events {
			if slices.Contains(w.prev, id) {
				parents = append(parents, id)
			} else {
				others = append(others, id)
			}
		}
		if len(w.Keys) > 0 {
			// ensureKeys asks the keys' owners and the servers given, so one question is enough.
			next = append(next, ask{kind: askKeys, event: w.event})
		}
		if w.Policy != nil {
			next = append(next, ask{askPolicy, w.Policy.By.Name, w.event, w.Policy.Event.ID()})
		}
		if len(parents) > 0 {
			add(askMissing, "")
		}
		if len(others) > 0 {
			add(askAuth, "")
		}
		for _, p := range parents {
			add(askEvent, p)
		}
		if len(parents) > 0 || w.StateBefore {
			add(askState, "")
		}
		for _, a := range next {
			if !tried(a) {
				return a, true
			}
		}
	}
	return ask{}, false
}

// firstIn returns servers with first at its head, if it is among them.
func firstIn(servers []eventgraph.ServerName, first eventgraph.ServerName) []eventgraph.ServerName {
	i := slices.Index(servers, first)
	if i <= 0 {
		return servers
	}
	ordered := append([]eventgraph.ServerName{first}, servers[:i]...)
	return append(ordered, servers[i+1:]...)
}
