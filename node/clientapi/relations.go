package clientapi

import (
	"cmp"
	"math"
	"net/http"
	"net/url"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of a request for relations.
const (
	// relationDepth is how far relations of relations are followed; the spec asks for 3 levels at least.
	relationDepth = 3
	// mostRelated is how many relations are looked at for one request; those that are further back come with the next page,
	// but for relations of relations, of which the rest is left out.
	mostRelated = 5000
)

// getRelations is GET /rooms/{roomId}/relations/{eventId}, with a relation type and an event type or without.
func (a *API) getRelations(q *request, relType, eventType string) (any, error) {
	room, id, err := eventOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	limit, err := limitOf(query.Get("limit"), usualPage, mostPage)
	if err != nil {
		return nil, err
	}
	backwards := query.Get("dir") != "f"
	if dir := query.Get("dir"); dir != "" && dir != "b" && dir != "f" {
		return nil, invalidParam("dir must be b or f.")
	}
	depth := 1
	switch query.Get("recurse") {
	case "", "false":
	case "true":
		depth = relationDepth
	default:
		return nil, invalidParam("recurse must be true or false.")
	}
	answer := map[string]any{}
	err = a.Store.View(func(r *store.Reader) error {
		if _, err := a.visibleEvent(r, room, q.user, id); err != nil {
			return err
		}
		from, to, err := a.relationRange(r, room, query, backwards)
		if err != nil {
			return err
		}
		found, more, err := related(r, id, from, to, backwards, depth, relType, eventType)
		if err != nil {
			return err
		}
		v := a.viewerOf(q)
		events := []*store.StoredEvent{}
		last := from
		for _, c := range found {
			if len(events) == max(limit, 1) {
				more = true
				break
			}
			last = c.Order
			e, err := r.Event(c.ID)
			if err != nil {
				return err
			}
			if show, err := a.showsChild(r, e, room, v); err != nil {
				return err
			} else if show {
				events = append(events, e)
			}
		}
		if answer["chunk"], err = a.clientEvents(r, events, v); err != nil {
			return err
		}
		if more {
			if backwards {
				last--
			}
			answer["next_batch"] = a.roomToken(last)
		}
		if s := query.Get("from"); s != "" {
			answer["prev_batch"] = s
		}
		if query.Has("recurse") {
			answer["recursion_depth"] = depth
		}
		return nil
	})
	return answer, err
}

// relationRange reads from and to: the first order to look at, and the first that is beyond.
func (a *API) relationRange(r *store.Reader, room eventgraph.RoomID, query url.Values, backwards bool) (from, to int64, err error) {
	// Forwards the end is one before the greatest order, which leaves room to step behind a token.
	from, to = math.MinInt64, math.MaxInt64-1
	if backwards {
		from, to = to, from
	}
	if s := query.Get("from"); s != "" {
		if from, err = a.parseToken(r, room, s); err != nil {
			return 0, 0, err
		}
		if !backwards {
			from++ // a token lies just after its event
		}
	}
	if s := query.Get("to"); s != "" {
		if to, err = a.parseToken(r, room, s); err != nil {
			return 0, 0, err
		}
		if !backwards {
			to++
		}
	}
	return from, to, nil
}

// related lists what relates to the event, directly or over as many steps as depth says, in room order; more if not all was looked
// at. Types that are asked for choose among what was found, not which relations are followed.
func related(r *store.Reader, id eventgraph.EventID, from, to int64, backwards bool, depth int, relType, eventType string) (found []store.Related, more bool, err error) {
	within := func(order int64) bool {
		if backwards {
			return order <= from && order > to
		}
		return order >= from && order < to
	}
	start := from
	if depth > 1 { // an early event may lead to a late one
		start = math.MinInt64
		if backwards {
			start = math.MaxInt64
		}
	}
	looked := 0
	seen := map[eventgraph.EventID]bool{id: true}
	level := []eventgraph.EventID{id}
	for ; depth > 0 && len(level) > 0; depth-- {
		var next []eventgraph.EventID
		for _, parent := range level {
			err := r.Related(parent, start, backwards, func(c store.Related) (bool, error) {
				if depth == 1 && start == from && !within(c.Order) {
					return false, nil
				}
				if looked++; looked > mostRelated {
					more = true
					return false, nil
				}
				if seen[c.ID] {
					return true, nil
				}
				seen[c.ID] = true
				next = append(next, c.ID)
				if within(c.Order) && (relType == "" || relType == c.RelType) && (eventType == "" || eventType == c.Type) {
					found = append(found, c)
				}
				return true, nil
			})
			if err != nil {
				return nil, false, err
			}
		}
		level = next
	}
	slices.SortFunc(found, func(x, y store.Related) int {
		if backwards {
			x, y = y, x
		}
		return cmp.Compare(x.Order, y.Order)
	})
	return found, more, nil
}

// showsChild says whether the viewer is shown an event as a child of another.
func (a *API) showsChild(r *store.Reader, e *store.StoredEvent, room eventgraph.RoomID, v *viewer) (bool, error) {
	if e.Verdict != store.Accepted || e.Type() == rooms.DummyEvent || e.RedactedBy != "" || e.RoomID() != room || v.ignores(r, e.Sender()) {
		return false, nil
	}
	return a.Rooms.MaySeeUser(v.user, e)
}

// getThreads is GET /rooms/{roomId}/threads: the roots, that with the newest reply first.
func (a *API) getThreads(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	limit, err := limitOf(query.Get("limit"), usualPage, mostPage)
	if err != nil {
		return nil, err
	}
	participated := false
	switch query.Get("include") {
	case "", "all":
	case "participated":
		participated = true
	default:
		return nil, invalidParam("include must be all or participated.")
	}
	answer := map[string]any{}
	err = a.Store.View(func(r *store.Reader) error {
		if _, err := a.readableState(r, room, q.user); err != nil {
			return err
		}
		from := int64(math.MaxInt64)
		if s := query.Get("from"); s != "" {
			var err error
			if from, err = a.parseToken(r, room, s); err != nil {
				return err
			}
		}
		v := a.viewerOf(q)
		chunk := []any{}
		looked := 0
		err := r.ThreadReplies(room, from, func(order int64, id eventgraph.EventID) (bool, error) {
			if looked++; looked > mostRelated || len(chunk) == max(limit, 1) {
				answer["next_batch"] = a.roomToken(order)
				return false, nil
			}
			root, err := a.threadRoot(r, room, id, order, participated, v)
			if root != nil {
				chunk = append(chunk, root)
			}
			return true, err
		})
		answer["chunk"] = chunk
		return err
	})
	return answer, err
}

// threadRoot writes out the root of a thread in which the reply at the given order is the newest that the viewer is shown; nil if another
// is, or if the viewer is not to see the root.
func (a *API) threadRoot(r *store.Reader, room eventgraph.RoomID, id eventgraph.EventID, order int64, participated bool, v *viewer) (any, error) {
	newest := int64(math.MinInt64)
	err := r.Relations(id, "m.thread", "", func(reply *store.StoredEvent) (bool, error) {
		show, err := a.showsChild(r, reply, room, v)
		if show {
			newest = reply.Order
		}
		return !show && reply.Order >= order, err
	})
	if err != nil || newest != order {
		return nil, err
	}
	root, err := a.visibleEvent(r, room, v.user, id)
	if m := asMatrixError(err); m != nil && m.Status == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if participated {
		children, err := a.aggregated(r, root, v)
		if err != nil || children == nil || children.Thread == nil || !children.Thread.Participated {
			return nil, err
		}
	}
	if v.ignores(r, root.Sender()) {
		shown := *root
		shown.Event = root.Redact()
		root = &shown
	}
	return a.clientEvent(r, root, v)
}

// relationPath is the path under which relations of an event are listed.
const relationPath = "/rooms/{roomId}/relations/{eventId}"

// relationRoutes registers what lists relations and threads.
func (a *API) relationRoutes() {
	const v1 = "/_matrix/client/v1"
	a.route("GET", v1+relationPath, authed, func(q *request) (any, error) { return a.getRelations(q, "", "") })
	a.route("GET", v1+relationPath+"/{relType}", authed, func(q *request) (any, error) {
		return a.getRelations(q, q.path("relType"), "")
	})
	a.route("GET", v1+relationPath+"/{relType}/{eventType}", authed, func(q *request) (any, error) {
		return a.getRelations(q, q.path("relType"), q.path("eventType"))
	})
	a.route("GET", v1+"/rooms/{roomId}/threads", authed, a.getThreads)
}
