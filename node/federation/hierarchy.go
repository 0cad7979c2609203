package federation

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

const (
	// hierarchyKept is for how long an answer is used again (SS API: it should be cached for a period of time): a client that leafs through a
	// space asks for its rooms again with each page.
	hierarchyKept    = time.Minute
	maxHierarchies   = 256       // answers kept
	maxHierarchyKept = 128 << 10 // bytes of content in one that is kept
	// maxHierarchyVia servers are asked in turn about one room: a person waits.
	maxHierarchyVia = 3
)

type hierarchyKey struct {
	room      eventgraph.RoomID
	suggested bool
}

type keptHierarchy struct {
	answer *Hierarchy
	at     time.Time
}

type hierarchies struct {
	*lru.Cache[hierarchyKey, keptHierarchy]
}

func newHierarchies() *hierarchies {
	c, _ := lru.New[hierarchyKey, keptHierarchy](maxHierarchies) // fails for sizes below 1 only
	return &hierarchies{c}
}

// Hierarchy asks servers of a room that we are not in for it and its children. What comes is their word, and not to be changed.
func (f *Federation) Hierarchy(ctx context.Context, room eventgraph.RoomID, via []eventgraph.ServerName, suggested bool) (*Hierarchy, error) {
	key := hierarchyKey{room, suggested}
	if kept, ok := f.hierarchies.Get(key); ok && f.Now().Sub(kept.at) < hierarchyKept {
		return kept.answer, nil
	}
	via = slices.DeleteFunc(f.connectedFirst(slices.Clone(via)), func(s eventgraph.ServerName) bool {
		_, err := eventgraph.ParseServerName(string(s))
		return err != nil || s == f.server
	})
	query := url.Values{}
	if suggested {
		query.Set("suggested_only", "true")
	}
	var answer *Hierarchy
	err := f.handshake(ctx, via[:min(len(via), maxHierarchyVia)], func(server eventgraph.ServerName) error {
		answer = &Hierarchy{}
		if err := f.do(ctx, server, http.MethodGet, target(v1+"hierarchy", []string{string(room)}, query), nil, answer); err != nil {
			return err
		}
		if answer.Room.RoomID != room {
			return malformed(server, "the hierarchy is that of another room")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	answer.Children = wellFormed(answer.Children)
	answer.Room.Children = slices.DeleteFunc(answer.Room.Children, func(c rooms.SpaceChild) bool {
		_, err := eventgraph.ParseRoomID(string(c.Room))
		return err != nil || c.Type != "m.space.child" || len(c.Via()) == 0 || suggested && !c.Suggested()
	})
	answer.Room.Children = append([]rooms.SpaceChild{}, answer.Room.Children[:min(len(answer.Room.Children), maxTheirRooms)]...)
	rooms.SortSpaceChildren(answer.Room.Children)
	size := 0
	for _, c := range answer.Room.Children {
		size += len(c.Content)
	}
	if size <= maxHierarchyKept {
		f.hierarchies.Add(key, keptHierarchy{answer, f.Now()})
	}
	return answer, nil
}
