// Package stateres resolves the state of forked rooms: versions 2 (room versions 2 to 11) and 2.1 (12).
package stateres

import "github.com/plexus-p2p/plexus/eventgraph"

// EventReader reads an event, held in whatever verdict; the events of state and of auth chains are always
// held, and in room version 12 the create event. rejected says that it was refused by the auth rules when it
// was received: the iterative auth checks do not fall back on such an auth event. An error ends Resolve.
type EventReader interface {
	Event(id eventgraph.EventID) (e *eventgraph.Event, rejected bool, err error)
}

// Resolve returns the resolution of the states (roots, at least one), committed into new trie nodes. With one distinct
// root it returns that at once. Same set of roots, same result, in whatever order.
func Resolve(v eventgraph.RoomVersion, states []eventgraph.Hash, nodes eventgraph.NodeReader, events EventReader) (eventgraph.Hash, map[eventgraph.Hash][]byte, error) {
	panic("stateres: skeleton")
}
