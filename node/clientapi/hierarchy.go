package clientapi

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of GET /hierarchy.
const (
	usualHierarchy = 50 // rooms of a page
	mostHierarchy  = 100
	deepest        = 20 // levels; the root is on level 0
	// maxHierarchyWalk rooms of a space are looked at for all pages together: each page begins at the root again.
	maxHierarchyWalk = 2000
	// maxWalkStack rooms wait to be looked at, of each maxWalkVia servers to be asked; who is first in a space is kept.
	maxWalkStack = 4 * maxHierarchyWalk
	maxWalkVia   = 10
	// maxWalkTold bytes of what other servers say of rooms are kept during a walk, and maxWalkClosed rooms that they say are closed; of the others they
	// are asked again.
	maxWalkTold   = 4 << 20
	maxWalkClosed = 10_000
	// maxHierarchyPage ends a page, in bytes, after the room that reaches it.
	maxHierarchyPage = 4 << 20
	// hierarchyPatience is how long other servers are waited for. Rooms of which nothing has come by then are left out.
	hierarchyPatience = 15 * time.Second
	// roomPatience is how long they are waited for because of one room, so that who does not answer hides no others; and rooms to come are asked for
	// meanwhile, maxWalkAhead of them, of the next maxAheadSeen of the walk.
	roomPatience = 7 * time.Second
	maxWalkAhead = 8
	maxAheadSeen = 64
)

// membershipOf is the membership of the user, "" if they never had one.
func (a *API) membershipOf(user eventgraph.UserID, room eventgraph.RoomID) (string, error) {
	m, err := a.member(room, user)
	if err != nil || m == nil {
		return "", err
	}
	return m.Membership, nil
}

// mayPreview says whether the user may know what room it is (CS API, GET hierarchy): they are in it or invited, or could get in, knock or peek.
func (a *API) mayPreview(user eventgraph.UserID, s *rooms.Summary) (bool, error) {
	membership, err := a.membershipOf(user, s.RoomID)
	switch {
	case err != nil || membership == "join" || membership == "invite":
		return err == nil, err
	case membership == "ban" && !s.WorldReadable:
		return false, nil
	}
	open := s.Open(func(other eventgraph.RoomID) bool {
		m, failed := a.member(other, user)
		err = errors.Join(err, failed)
		return isJoined(m)
	})
	return open, err
}

// branch is a room that a walk through a space comes to.
type branch struct {
	room  eventgraph.RoomID
	depth int
	via   []eventgraph.ServerName
}

// spaceWalk goes through a space depth first. What it sees of rooms elsewhere is kept for as long as it lasts.
type spaceWalk struct {
	a         *API
	ctx       context.Context
	user      eventgraph.UserID
	suggested bool
	maxDepth  int

	stack  []branch // the next one last
	seen   map[eventgraph.RoomID]bool
	told   map[eventgraph.RoomID]*rooms.Summary // by the server of a space that they are in
	size   int                                  // bytes of told
	closed map[eventgraph.RoomID]bool           // nobody of us gets in, as that server says

	asked  map[eventgraph.RoomID]*question // that the walk has not come to yet
	asking sync.WaitGroup
}

// question is what servers are asked for one room; done is closed when the answer or err is there.
type question struct {
	done   chan struct{}
	answer *federation.Hierarchy
	err    error
}

// far says whether other servers must be asked for the room.
func (w *spaceWalk) far(b branch) bool {
	if len(b.via) == 0 || w.closed[b.room] || w.ctx.Err() != nil || w.a.Rooms.InRoom(b.room, w.a.Server) {
		return false
	}
	s := w.told[b.room]
	return s == nil || s.RoomType == "m.space"
}

// ask has servers asked for the room, unless they are.
func (w *spaceWalk) ask(b branch) *question {
	if q := w.asked[b.room]; q != nil {
		return q
	}
	q := &question{done: make(chan struct{})}
	w.asked[b.room] = q
	w.asking.Go(func() {
		defer close(q.done)
		ctx, cancel := context.WithTimeout(w.ctx, roomPatience)
		defer cancel()
		q.answer, q.err = w.a.remote.Hierarchy(ctx, b.room, b.via, w.suggested)
	})
	return q
}

// askAhead has servers asked for rooms that the walk comes to next.
func (w *spaceWalk) askAhead() {
	for i := len(w.stack) - 1; i >= max(0, len(w.stack)-maxAheadSeen) && len(w.asked) <= maxWalkAhead; i-- {
		if b := w.stack[i]; !w.seen[b.room] && w.far(b) {
			w.ask(b)
		}
	}
}

// next is the next room that the user may see; nil at the end.
func (w *spaceWalk) next() (*rooms.SpaceRoom, error) {
	for len(w.stack) > 0 && len(w.seen) < maxHierarchyWalk {
		b := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		if w.seen[b.room] {
			continue
		}
		w.seen[b.room] = true
		s, err := w.look(b)
		delete(w.asked, b.room)
		if err != nil {
			return nil, err
		}
		if s == nil {
			continue
		}
		if may, err := w.a.mayPreview(w.user, &s.Summary); err != nil {
			return nil, err
		} else if !may {
			continue
		}
		if b.depth < w.maxDepth {
			for _, c := range slices.Backward(s.Children) {
				via := c.Via()
				w.stack = append(w.stack, branch{c.Room, b.depth + 1, slices.Clone(via[:min(len(via), maxWalkVia)])})
			}
			if more := len(w.stack) - maxWalkStack; more > 0 {
				w.stack = slices.Delete(w.stack, 0, more)
			}
		}
		return s, nil
	}
	return nil, nil
}

// look reads the room here or asks servers that know it; nil if it is not to be had.
func (w *spaceWalk) look(b branch) (*rooms.SpaceRoom, error) {
	if w.a.Rooms.InRoom(b.room, w.a.Server) {
		return w.a.Rooms.SpaceRoom(b.room, w.suggested)
	}
	if w.closed[b.room] {
		return nil, nil
	}
	if s := w.told[b.room]; s != nil && s.RoomType != "m.space" {
		return &rooms.SpaceRoom{Summary: *s, Children: []rooms.SpaceChild{}}, nil
	}
	if !w.far(b) {
		return nil, nil
	}
	asked := w.ask(b)
	w.askAhead()
	<-asked.done
	if asked.err != nil {
		w.a.Log.Debug("a room of a space is not shown", "room", b.room, "error", asked.err)
		return nil, nil
	}
	answer := asked.answer
	for _, s := range answer.Children {
		if w.size+s.Size() > maxWalkTold {
			break
		}
		w.told[s.RoomID] = s
		w.size += s.Size()
	}
	for _, room := range answer.Inaccessible {
		if len(w.closed) < maxWalkClosed {
			w.closed[room] = true
		}
	}
	room := answer.Room
	return &room, nil
}

// getHierarchy is GET /rooms/{roomId}/hierarchy. Its tokens are the number of rooms before the page, with what may not change on the way.
func (a *API) getHierarchy(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	suggested := query.Get("suggested_only") == "true"
	limit, depth := usualHierarchy, deepest
	if limit, err = countIn(query, "limit", limit, 1, mostHierarchy); err != nil {
		return nil, err
	}
	if depth, err = countIn(query, "max_depth", depth, 0, deepest); err != nil {
		return nil, err
	}
	skip := 0
	if from := query.Get("from"); from != "" {
		var thenSuggested bool
		var thenDepth int
		if n, err := fmt.Sscanf(from, "%d_%t_%d", &skip, &thenSuggested, &thenDepth); n != 3 || err != nil || skip < 1 || thenDepth < 0 || thenDepth > deepest {
			return nil, invalidParam("from is not a token of this server.")
		}
		if query.Has("suggested_only") && suggested != thenSuggested || query.Has("max_depth") && depth != thenDepth {
			return nil, invalidParam("suggested_only and max_depth cannot change from page to page.")
		}
		suggested, depth = thenSuggested, thenDepth
	}
	ctx, cancel := context.WithTimeout(q.Context(), hierarchyPatience)
	w := &spaceWalk{
		a: a, ctx: ctx, user: q.user, suggested: suggested, maxDepth: depth,
		stack: []branch{{room: room, via: roomIDServers(room)}},
		seen:  map[eventgraph.RoomID]bool{}, told: map[eventgraph.RoomID]*rooms.Summary{}, closed: map[eventgraph.RoomID]bool{},
		asked: map[eventgraph.RoomID]*question{},
	}
	defer w.asking.Wait()
	defer cancel()
	page, size := []*rooms.SpaceRoom{}, 0
	for at := 0; len(page) < limit && size < maxHierarchyPage; at++ {
		s, err := w.next()
		if err != nil {
			return nil, err
		}
		if s == nil {
			break
		}
		if s.RoomID != room && at == 0 {
			return nil, forbidden("You may not view that room.") // the root itself was passed over
		}
		if at >= skip {
			page = append(page, s)
			size += s.Size()
		}
	}
	if len(page) == 0 && skip == 0 {
		return nil, forbidden("You may not view that room.")
	}
	answer := map[string]any{"rooms": page}
	if (len(page) == limit || size >= maxHierarchyPage) && len(w.stack) > 0 && len(w.seen) < maxHierarchyWalk {
		answer["next_batch"] = fmt.Sprintf("%d_%t_%d", skip+len(page), suggested, depth)
	}
	return answer, nil
}

// countIn is a number of the query, otherwise if there is none, and at most most; M_INVALID_PARAM if it is less than least.
func countIn(query url.Values, name string, otherwise, least, most int) (int, error) {
	if !query.Has(name) {
		return otherwise, nil
	}
	n, err := strconv.Atoi(query.Get(name))
	if err != nil || n < least {
		return 0, invalidParam(name + " must be a number not less than " + strconv.Itoa(least) + ".")
	}
	return min(n, most), nil
}

// roomIDServers is the server that a room ID names, as those up to room version 11 do: somebody to ask.
func roomIDServers(room eventgraph.RoomID) []eventgraph.ServerName {
	if _, server, ok := strings.Cut(string(room), ":"); ok {
		return []eventgraph.ServerName{eventgraph.ServerName(server)}
	}
	return nil
}

// getRoomSummary is GET /room_summary/{roomIdOrAlias}: of a room held here, or as its servers say. Who has no token sees what is held here
// and open to all.
func (a *API) getRoomSummary(q *request) (any, error) {
	room, via, err := a.roomIDOrAlias(q)
	if err != nil {
		return nil, err
	}
	answer := struct {
		*rooms.Summary
		Membership string `json:"membership,omitempty"`
	}{}
	switch {
	case a.Rooms.InRoom(room, a.Server):
		answer.Summary, err = a.Rooms.Summary(room)
	case q.user == "":
		err = store.ErrNotFound
	default:
		ctx, cancel := context.WithTimeout(q.Context(), hierarchyPatience)
		defer cancel()
		hierarchy, asked := a.remote.Hierarchy(ctx, room, append(via, roomIDServers(room)...), false)
		if err = asked; err == nil {
			answer.Summary = &hierarchy.Room.Summary
		}
	}
	if err != nil {
		return nil, err
	}
	if may, err := a.mayPreview(q.user, answer.Summary); err != nil {
		return nil, err
	} else if !may {
		return nil, notFound("There is no such room, or you may not see it.")
	}
	if q.user != "" {
		answer.Membership, err = a.membershipOf(q.user, room)
	}
	return answer, err
}
