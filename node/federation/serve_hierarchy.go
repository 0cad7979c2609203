package federation

import (
	"errors"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Hierarchy is a space, or any room, with what its server knows of its children (SS API, GET hierarchy/{roomId}).
type Hierarchy struct {
	Room     rooms.SpaceRoom  `json:"room"`
	Children []*rooms.Summary `json:"children"`
	// Inaccessible children need not be asked for elsewhere.
	Inaccessible []eventgraph.RoomID `json:"inaccessible_children"`
}

func (f *Federation) hierarchyRoutes(r *router) {
	r.add(http.MethodGet, v1+"hierarchy/{roomId}", f.serveHierarchy)
}

// serveHierarchy answers for rooms that we are in and that the asking server could get into: to all else there is no such room.
func (f *Federation) serveHierarchy(q *request) (any, error) {
	room, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
	}
	open, err := f.openTo(room, q.origin)
	if err != nil {
		return nil, err
	}
	if !open {
		return nil, fail(http.StatusNotFound, "M_NOT_FOUND", "no such room can be shown")
	}
	space, err := f.Rooms.SpaceRoom(room, q.URL.Query().Get("suggested_only") == "true")
	if err != nil {
		return nil, err
	}
	answer := Hierarchy{Room: *space, Children: []*rooms.Summary{}, Inaccessible: []eventgraph.RoomID{}}
	for _, child := range space.Children {
		if !f.Rooms.InRoom(child.Room, f.server) {
			continue
		}
		open, err := f.openTo(child.Room, q.origin)
		if err != nil {
			return nil, err
		}
		if !open {
			answer.Inaccessible = append(answer.Inaccessible, child.Room)
			continue
		}
		summary, err := f.Rooms.Summary(child.Room)
		if err != nil {
			return nil, err
		}
		answer.Children = append(answer.Children, summary)
	}
	return &answer, nil
}

// openTo says whether we are in the room and users of the server could get into it.
func (f *Federation) openTo(room eventgraph.RoomID, server eventgraph.ServerName) (bool, error) {
	if !f.Rooms.InRoom(room, f.server) {
		return false, nil
	}
	open, err := f.Rooms.OpenTo(room, server)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return open, err
}
