package federation

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// This file decides whom to ask for what; inbox.go asks. Nothing here reads a clock, the store or the network, so that a
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

// decide returns the next question for the first waiting event that has one; false if there is none. tried says whether a question was put
// so lately that it is no use to put it again. holders are the servers of the room that can be reached. A parent's absence is taken
// for final, and the state before the event as a server claims it for its basis, only after every holder has been
// asked for the parent.
func decide(wants []want, holders []eventgraph.ServerName, tried func(ask) bool) (ask, bool) {
	for _, w := range wants {
		servers := firstIn(holders, w.origin)
		var next []ask
		add := func(kind askKind, parent eventgraph.EventID) {
			for _, s := range servers {
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
