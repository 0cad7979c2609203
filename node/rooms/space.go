package rooms

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	// maxSpaceChildren bounds the children shown of one space.
	maxSpaceChildren = 1000
	// maxSpaceOrder is the length of an order that counts (CS API, m.space.child).
	maxSpaceOrder = 50
)

// SpaceChild is an m.space.child event as the hierarchy shows it: stripped state with its time.
type SpaceChild struct {
	Type    string            `json:"type"`
	Room    eventgraph.RoomID `json:"state_key"`
	Content json.RawMessage   `json:"content"`
	Sender  eventgraph.UserID `json:"sender"`
	TS      int64             `json:"origin_server_ts"`
}

// Size is about how many bytes of memory the event takes.
func (c *SpaceChild) Size() int {
	const fixed = 96
	return fixed + len(c.Type) + len(c.Room) + len(c.Content) + len(c.Sender)
}

// SpaceRoom is a room in the hierarchy of a space. Children is never nil, and empty where the room is no space.
type SpaceRoom struct {
	Summary
	Children []SpaceChild `json:"children_state"`
}

// Size is about how many bytes of memory the room takes with its children.
func (s *SpaceRoom) Size() int {
	size := s.Summary.Size()
	for i := range s.Children {
		size += s.Children[i].Size()
	}
	return size
}

// Via lists the servers that the event names; a child without any is none (CS API, m.space.child).
func (c *SpaceChild) Via() []eventgraph.ServerName {
	var content struct {
		Via []eventgraph.ServerName `json:"via"`
	}
	if json.Unmarshal(c.Content, &content) != nil {
		return nil
	}
	return content.Via
}

// Suggested says whether the space suggests the child.
func (c *SpaceChild) Suggested() bool {
	var content struct {
		Suggested bool `json:"suggested"`
	}
	return json.Unmarshal(c.Content, &content) == nil && content.Suggested
}

// order is the child's order; false if it has none that counts.
func (c *SpaceChild) order() (string, bool) {
	var content struct {
		Order *string `json:"order"`
	}
	if json.Unmarshal(c.Content, &content) != nil || content.Order == nil || len(*content.Order) > maxSpaceOrder {
		return "", false
	}
	for _, b := range []byte(*content.Order) {
		if b < ' ' || b > '~' {
			return "", false
		}
	}
	return *content.Order, true
}

// SortSpaceChildren sorts children as they are to be shown: by order, those without it last; then by time and room ID (CS API, Ordering
// of children within a space).
func SortSpaceChildren(children []SpaceChild) {
	slices.SortFunc(children, func(x, y SpaceChild) int {
		a, ordered := x.order()
		b, alsoOrdered := y.order()
		switch {
		case ordered && !alsoOrdered:
			return -1
		case alsoOrdered && !ordered:
			return 1
		}
		return cmp.Or(cmp.Compare(a, b), cmp.Compare(x.TS, y.TS), cmp.Compare(x.Room, y.Room))
	})
}

// SpaceRoom is the room with its children, or only the suggested ones, in order; store.ErrNotFound if it is not held.
func (r *Rooms) SpaceRoom(room eventgraph.RoomID, suggested bool) (*SpaceRoom, error) {
	summary, err := r.Summary(room)
	if err != nil {
		return nil, err
	}
	s := &SpaceRoom{Summary: *summary, Children: []SpaceChild{}}
	if s.RoomType != "m.space" {
		return s, nil
	}
	state, err := r.CurrentState(room)
	if err != nil {
		return nil, err
	}
	err = state.Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		if t.Type != "m.space.child" || len(s.Children) >= maxSpaceChildren {
			return nil
		}
		child, err := eventgraph.ParseRoomID(t.Key)
		if err != nil {
			return nil
		}
		e, err := r.Event(id)
		if err != nil {
			return err
		}
		c := SpaceChild{Type: t.Type, Room: child, Content: e.Content(), Sender: e.Sender(), TS: e.OriginServerTS()}
		if len(c.Via()) > 0 && (!suggested || c.Suggested()) {
			s.Children = append(s.Children, c)
		}
		return nil
	})
	SortSpaceChildren(s.Children)
	return s, err
}

// OpenTo says whether users of the server may look at the room, join it or knock on it, as far as is known here (SS API, GET hierarchy):
// some are in it or invited, or it is open to all or to the members of a room where some are.
func (r *Rooms) OpenTo(room eventgraph.RoomID, server eventgraph.ServerName) (bool, error) {
	l, err := r.liveRoom(room)
	if err != nil {
		return false, err
	}
	c, err := r.census(room, l.State)
	if err != nil || !r.ServerAllowed(room, server) {
		return false, err
	}
	if c.joined[server] > 0 || c.invited[server] > 0 {
		return true, nil
	}
	s, err := r.Summary(room)
	if err != nil {
		return false, err
	}
	return s.Open(func(other eventgraph.RoomID) bool { return r.InRoom(other, server) }), nil
}
