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
	maxHierarchyKept = 128 << 10 // bytes of one that is kept: 32 MiB in all
	// maxHierarchy is the bytes of one answer; of more, the first rooms are taken. A space of 500 rooms with three servers each has some 200 KiB.
	maxHierarchy = 512 << 10
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

// fresh finds an answer that is not too old.
func (h hierarchies) fresh(key hierarchyKey, now time.Time) (*Hierarchy, bool) {
	h.dropOld(now)
	kept, ok := h.Peek(key) // Get would change the order, which is that of their age
	return kept.answer, ok
}

// dropOld frees what is too old to be used again.
func (h hierarchies) dropOld(now time.Time) {
	for {
		key, oldest, ok := h.GetOldest()
		if !ok || now.Sub(oldest.at) < hierarchyKept {
			return
		}
		h.Remove(key)
	}
}

// Hierarchy asks servers of a room that we are not in for it and its children. What comes is their word, and not to be changed.
func (f *Federation) Hierarchy(ctx context.Context, room eventgraph.RoomID, via []eventgraph.ServerName, suggested bool) (*Hierarchy, error) {
	key := hierarchyKey{room, suggested}
	if answer, ok := f.hierarchies.fresh(key, f.Now()); ok {
		return answer, nil
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
		if answer.Room.Summary.Size() > maxTheirSummary {
			return malformed(server, "the room's summary is larger than any event")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if size := answer.trim(suggested); size <= maxHierarchyKept {
		f.hierarchies.Add(key, keptHierarchy{answer, f.Now()})
	}
	return answer, nil
}

// trim leaves out of another server's answer what is not well formed or beyond the bounds, and says how many bytes are left.
func (h *Hierarchy) trim(suggested bool) (size int) {
	size = h.Room.Summary.Size()
	fits := func(n int) bool {
		if size+n > maxHierarchy {
			return false
		}
		size += n
		return true
	}
	children := []rooms.SpaceChild{}
	for _, c := range h.Room.Children {
		if len(children) == maxTheirRooms {
			break
		}
		_, err := eventgraph.ParseRoomID(string(c.Room))
		if err != nil || c.Type != "m.space.child" || c.Size() > maxTheirSummary || len(c.Via()) == 0 || suggested && !c.Suggested() {
			continue
		}
		if !fits(c.Size()) {
			break
		}
		children = append(children, c)
	}
	rooms.SortSpaceChildren(children)
	h.Room.Children = children
	h.Inaccessible = slices.DeleteFunc(h.Inaccessible, func(id eventgraph.RoomID) bool {
		_, err := eventgraph.ParseRoomID(string(id))
		return err != nil || !fits(len(id))
	})
	h.Inaccessible = slices.Clone(h.Inaccessible[:min(len(h.Inaccessible), maxTheirRooms)])
	// Those left out are asked for by themselves.
	h.Children = slices.DeleteFunc(wellFormed(h.Children), func(s *rooms.Summary) bool { return !fits(s.Size()) })
	return size
}
