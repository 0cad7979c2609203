package federation

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// What a policy server may be asked about of the past: what it may see (auth.MaySee), as any server. Of a page of history the states are not known before
// it is taken in, so this goes by the states above it, back to where the page says that they were others, and from there on by the strictest.

// unknownSight is that of a server of which nothing is known.
var unknownSight = auth.Sight{Visibility: "joined"}

// visiblePast says which events of a page, sorted, the server may see for all that is known. The events need not be held.
func (f *Federation) visiblePast(server eventgraph.ServerName, room eventgraph.RoomID, page []*eventgraph.Event) (map[eventgraph.EventID]bool, error) {
	visible := map[eventgraph.EventID]bool{}
	sight, err := f.sightOfPast(server, room)
	if err != nil {
		return nil, err
	}
	now := auth.Sight{Joined: f.Rooms.InRoom(room, server)}
	for _, e := range slices.Backward(page) {
		after, own := sight, false
		if tuple, ok := e.Tuple(); ok {
			switch {
			case tuple.Type == "m.room.history_visibility" && tuple.Key == "":
				sight.Visibility = unknownSight.Visibility
			case tuple.Type == "m.room.member" && eventgraph.UserID(tuple.Key).Server() == server:
				sight.Joined, own = false, true
			}
		}
		visible[e.ID()] = auth.MaySee(sight, after, now, own)
		if placed, err := f.placed(e.ID()); err != nil {
			return nil, err
		} else if !placed {
			continue
		}
		held, err := f.held(e.ID())
		if err == nil {
			visible[e.ID()], err = f.Rooms.MaySeeServer(server, held)
		}
		if err != nil {
			visible[e.ID()] = false // rejected, or gone meanwhile
		}
	}
	return visible, nil
}

// sightOfPast is what the server sees in the states before all backward extremities, on which a page of history ends.
func (f *Federation) sightOfPast(server eventgraph.ServerName, room eventgraph.RoomID) (auth.Sight, error) {
	var ends []*store.StoredEvent
	err := f.Store.View(func(r *store.Reader) error {
		held, err := r.Room(room)
		if err != nil {
			return err
		}
		for _, id := range held.Backward { // each of them: what is below one that is not held any more cannot be told
			e, err := r.Event(id)
			if err != nil {
				return err
			}
			ends = append(ends, e)
		}
		return nil
	})
	if err != nil || len(ends) == 0 {
		return unknownSight, err
	}
	var all auth.Sight
	for i, e := range ends {
		sight := auth.Sight{Joined: f.Rooms.InRoomAt(room, e.StateBefore, server)}
		state := f.Rooms.StateAt(room, e.StateBefore)
		visibility, err := state.Event(eventgraph.StateTuple{Type: "m.room.history_visibility"})
		if err != nil {
			return unknownSight, err
		}
		if visibility != nil {
			sight.Visibility, _ = canonicaljson.GetString(visibility.Content(), "history_visibility")
		}
		switch {
		case i == 0:
			all = sight
			continue
		case sight.Visibility != all.Visibility:
			all.Visibility = unknownSight.Visibility
		}
		all.Joined = all.Joined && sight.Joined
	}
	return all, nil
}
