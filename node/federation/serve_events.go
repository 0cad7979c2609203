package federation

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxEvents bounds the events in one answer of /backfill and /get_missing_events: with 64 KiB each, below maxAnswer.
	maxEvents = 100
	// defaultMissing is how many /get_missing_events answers if it is not told.
	defaultMissing = 10
	// maxNamedEvents bounds the event IDs that a request may name.
	maxNamedEvents = 200
	// maxWalked bounds the events looked at for one answer; most are in it unless they may not be seen.
	maxWalked = 2000
)

func (f *Federation) eventRoutes(r *router) {
	r.add(http.MethodGet, "/_matrix/federation/v1/event/{eventId}", f.serveEvent)
	r.add(http.MethodGet, "/_matrix/federation/v1/state/{roomId}", f.serveState)
	r.add(http.MethodGet, "/_matrix/federation/v1/state_ids/{roomId}", f.serveStateIDs)
	r.add(http.MethodGet, "/_matrix/federation/v1/event_auth/{roomId}/{eventId}", f.serveEventAuth)
	r.add(http.MethodGet, "/_matrix/federation/v1/backfill/{roomId}", f.serveBackfill)
	r.add(http.MethodPost, "/_matrix/federation/v1/get_missing_events/{roomId}", f.serveMissingEvents)
	r.add(http.MethodGet, "/_matrix/federation/v1/timestamp_to_event/{roomId}", f.serveTimestampToEvent)
}

// pdus is an answer in the form of a transaction.
type pdus struct {
	Origin eventgraph.ServerName `json:"origin"`
	TS     int64                 `json:"origin_server_ts"`
	PDUs   []json.RawMessage     `json:"pdus"`
}

func (f *Federation) transaction(events []json.RawMessage) pdus {
	return pdus{f.server, f.Now().UnixMilli(), events}
}

// room returns a held room that the origin may ask about: not denied by its ACL. To a room that is not held the answer is as to a server
// that may see nothing of it: a stranger does not learn which rooms we hold.
func (f *Federation) room(q *request) (*store.Room, error) {
	id, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
	}
	var room *store.Room
	if err := f.Store.View(func(r *store.Reader) error {
		room, err = r.Room(id)
		return err
	}); errors.Is(err, store.ErrNotFound) {
		return nil, errNotSeen
	} else if err != nil {
		return nil, err
	}
	if !f.allows(id, q.origin) {
		return nil, errDenied
	}
	return room, nil
}

var (
	errNotSeen = fail(http.StatusForbidden, "M_FORBIDDEN", "the server may not see that")
	errNoEvent = fail(http.StatusNotFound, "M_NOT_FOUND", "no such event that the server may see")
)

// held reads an event that is held with a verdict that lets it be given away: a rejected one is as if it were not there.
func (f *Federation) held(id eventgraph.EventID) (*store.StoredEvent, error) {
	var e *store.StoredEvent
	err := f.Store.View(func(r *store.Reader) (err error) {
		e, err = r.Event(id)
		return err
	})
	if errors.Is(err, store.ErrNotFound) || err == nil && e.Verdict == store.Rejected {
		return nil, errNoEvent
	}
	return e, err
}

// served is the event as it is given away: reduced if it has been redacted.
func served(e *store.StoredEvent) json.RawMessage {
	return e.Shown().Raw()
}

func (f *Federation) serveEvent(q *request) (any, error) {
	e, err := f.held(eventgraph.EventID(q.path("eventId")))
	if err != nil {
		return nil, err
	}
	if !f.allows(e.RoomID(), q.origin) {
		return nil, errNoEvent
	}
	// State events that make up a state are asked for one by one, by who has its IDs; messages that are hidden are of no use by themselves.
	given := f.Rooms.GivenToServer
	if _, isState := e.Tuple(); !isState {
		given = f.seen
	}
	g, err := given(q.origin, e)
	if err != nil {
		return nil, err
	}
	if g == nil {
		return nil, errNoEvent
	}
	return f.transaction([]json.RawMessage{g.Raw()}), nil
}

// seen is the event as shown to a server that may see it, nil for others.
func (f *Federation) seen(server eventgraph.ServerName, e *store.StoredEvent) (*eventgraph.Event, error) {
	if may, err := f.Rooms.MaySeeServer(server, e); !may || err != nil {
		return nil, err
	}
	return f.Rooms.ShownToServer(server, e)
}

// eventInRoom is an event that has its place in the room and that the origin may see, but for one that is rejected: of that it may see the place.
func (f *Federation) eventInRoom(q *request, id string) (*store.StoredEvent, error) {
	room, err := f.room(q)
	if err != nil {
		return nil, err
	}
	var e *store.StoredEvent
	err = f.Store.View(func(r *store.Reader) (err error) {
		e, err = r.Event(eventgraph.EventID(id))
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if err != nil || e.RoomID() != room.ID || !hasPlace(e) {
		if !f.Rooms.InRoom(room.ID, q.origin) {
			return nil, errNotSeen
		}
		return nil, errNoEvent
	}
	if ok, err := f.Rooms.MaySeePlace(q.origin, e); err != nil {
		return nil, err
	} else if !ok {
		return nil, errNotSeen
	}
	return e, nil
}

// stateWithChain lists a whole state, and the auth chain of its events and of also: events after their own auth events, and of those
// that could change places members last. Who reads them as they come can judge them as they come.
func (f *Federation) stateWithChain(ctx context.Context, room eventgraph.RoomID, root eventgraph.Hash, also []eventgraph.EventID) (state, chain []eventgraph.EventID, err error) {
	release, err := take(ctx, f.heavy)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	if state, err = f.stateIDs(room, root); err != nil {
		return nil, nil, err
	}
	if chain, err = f.Rooms.AuthChain(append(slices.Clone(state), also...), 0); err != nil {
		return nil, nil, err
	}
	// The chain is that of the events, without them; those that are part of another's chain belong to it.
	listed := make(map[eventgraph.EventID]bool, len(state)+len(chain))
	for _, ids := range [][]eventgraph.EventID{state, chain} {
		for _, id := range ids {
			listed[id] = true
		}
	}
	for _, id := range also {
		if !listed[id] {
			chain = append(chain, id)
		}
	}
	if state, err = f.Rooms.OldestFirst(state); err != nil {
		return nil, nil, err
	}
	chain, err = f.Rooms.OldestFirst(chain)
	return state, chain, err
}

const (
	// pieceEvents and pieceBytes are how much of a large answer is read from the store at once.
	pieceEvents = 256
	pieceBytes  = 256 << 10
)

// writeEvents writes events as the elements of a JSON array, as they are given away. While the peer reads, no slot is held and no snapshot.
func (f *Federation) writeEvents(ctx context.Context, w io.Writer, ids []eventgraph.EventID) error {
	for first := true; len(ids) > 0; {
		piece, n, err := f.piece(ctx, ids)
		if err != nil {
			return err
		}
		ids = ids[n:]
		for _, raw := range piece {
			if !first {
				if _, err := w.Write([]byte{','}); err != nil {
					return err
				}
			}
			first = false
			if _, err := w.Write(raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// piece reads the first of some events, and says how many they are.
func (f *Federation) piece(ctx context.Context, ids []eventgraph.EventID) (piece []json.RawMessage, n int, err error) {
	release, err := take(ctx, f.heavy)
	if err != nil {
		return nil, 0, err
	}
	defer release()
	err = f.Store.View(func(r *store.Reader) error {
		for size := 0; n < len(ids) && n < pieceEvents && size < pieceBytes; n++ {
			e, err := r.Event(ids[n])
			if err != nil {
				return err
			}
			raw := served(e)
			size += len(raw)
			piece = append(piece, raw)
		}
		return nil
	})
	return piece, n, err
}

// eventLists is an answer of arrays of events, behind other members that are marshalled as they are.
type eventLists struct {
	head  any // an object
	lists []eventList
}

type eventList struct {
	name   string
	events []eventgraph.EventID
}

// stream writes the lists in their order.
func (f *Federation) stream(ctx context.Context, l eventLists) streamed {
	return func(w io.Writer) error {
		head, err := marshal(l.head)
		if err != nil {
			return err
		}
		head = head[:len(head)-1] // the closing brace
		if _, err := w.Write(head); err != nil {
			return err
		}
		comma := len(head) > 1
		for _, list := range l.lists {
			name := `"` + list.name + `":[`
			if comma {
				name = "," + name
			}
			comma = true
			if _, err := io.WriteString(w, name); err != nil {
				return err
			}
			if err := f.writeEvents(ctx, w, list.events); err != nil {
				return err
			}
			if _, err := io.WriteString(w, "]"); err != nil {
				return err
			}
		}
		_, err = io.WriteString(w, "}")
		return err
	}
}

func (f *Federation) stateIDs(room eventgraph.RoomID, root eventgraph.Hash) ([]eventgraph.EventID, error) {
	ids := []eventgraph.EventID{}
	err := f.Rooms.StateAt(room, root).Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error {
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

// eventWithState is an event whose state the origin may have: it is in the room, or was before or after the event. A removed server sees what is done
// to its users later, an unban say, and no more than that of what the room has become.
func (f *Federation) eventWithState(q *request) (*store.StoredEvent, error) {
	e, err := f.eventInRoom(q, q.URL.Query().Get("event_id"))
	if err != nil {
		return nil, err
	}
	room := e.RoomID()
	if f.Rooms.InRoom(room, q.origin) || f.Rooms.InRoomAt(room, e.StateBefore, q.origin) || f.Rooms.InRoomAt(room, e.StateAfter, q.origin) {
		return e, nil
	}
	return nil, errNotSeen
}

func (f *Federation) serveState(q *request) (any, error) {
	e, err := f.eventWithState(q)
	if err != nil {
		return nil, err
	}
	state, chain, err := f.stateWithChain(q.Context(), e.RoomID(), e.StateBefore, nil)
	if err != nil {
		return nil, err
	}
	return f.stream(q.Context(), eventLists{struct{}{}, []eventList{{"auth_chain", chain}, {"pdus", state}}}), nil
}

// stateIDsAnswer is the answer of /state_ids.
type stateIDsAnswer struct {
	AuthChainIDs []eventgraph.EventID `json:"auth_chain_ids"`
	PDUIDs       []eventgraph.EventID `json:"pdu_ids"`
}

func (f *Federation) serveStateIDs(q *request) (any, error) {
	e, err := f.eventWithState(q)
	if err != nil {
		return nil, err
	}
	release, err := take(q.Context(), f.heavy)
	if err != nil {
		return nil, err
	}
	defer release()
	ids, err := f.stateIDs(e.RoomID(), e.StateBefore)
	if err != nil {
		return nil, err
	}
	chain, err := f.Rooms.AuthChain(ids, 0)
	if err != nil {
		return nil, err
	}
	return stateIDsAnswer{AuthChainIDs: append([]eventgraph.EventID{}, chain...), PDUIDs: ids}, nil
}

func (f *Federation) serveEventAuth(q *request) (any, error) {
	e, err := f.eventInRoom(q, q.path("eventId"))
	if err != nil {
		return nil, err
	}
	release, err := take(q.Context(), f.heavy)
	if err != nil {
		return nil, err
	}
	defer release()
	chain, err := f.Rooms.AuthChain([]eventgraph.EventID{e.ID()}, 0)
	if err != nil {
		return nil, err
	}
	return f.stream(q.Context(), eventLists{struct{}{}, []eventList{{"auth_chain", chain}}}), nil
}

// latestFirst is a heap of events, those farthest from the create event first.
type latestFirst []*store.StoredEvent

func (h latestFirst) Len() int      { return len(h) }
func (h latestFirst) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h latestFirst) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[i].Depth(), h[j].Depth()), cmp.Compare(h[i].Order, h[j].Order), cmp.Compare(h[i].ID(), h[j].ID())) > 0
}
func (h *latestFirst) Push(e any) { *h = append(*h, e.(*store.StoredEvent)) }
func (h *latestFirst) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}

// walk goes from the events towards the create event, latest first, and calls visit for each held and placed event of the room, rejected ones too,
// until it returns false. It looks at each event once, and at maxWalked at most.
func (f *Federation) walk(room eventgraph.RoomID, from []eventgraph.EventID, visit func(*store.StoredEvent) (more, deeper bool, err error)) error {
	return f.Store.View(func(r *store.Reader) error {
		seen := map[eventgraph.EventID]bool{}
		var next latestFirst
		add := func(ids []eventgraph.EventID) error {
			for _, id := range ids {
				if seen[id] || len(seen) == maxWalked {
					continue
				}
				seen[id] = true
				e, err := r.Event(id)
				if errors.Is(err, store.ErrNotFound) {
					continue
				}
				if err != nil {
					return err
				}
				if e.RoomID() == room && hasPlace(e) {
					heap.Push(&next, e)
				}
			}
			return nil
		}
		if err := add(from); err != nil {
			return err
		}
		for next.Len() > 0 {
			e := heap.Pop(&next).(*store.StoredEvent)
			more, deeper, err := visit(e)
			if err != nil || !more {
				return err
			}
			if deeper {
				if err := add(e.PrevEvents()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (f *Federation) serveBackfill(q *request) (any, error) {
	room, err := f.room(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 0 {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "limit is missing or not a number")
	}
	from, err := eventIDs(query["v"])
	if err != nil {
		return nil, err
	}
	release, err := take(q.Context(), f.heavy)
	if err != nil {
		return nil, err
	}
	defer release()
	// Rejected ones are given too: what was built on one rests on nothing else.
	events, err := f.gather(q.origin, room.ID, from, min(limit, maxEvents), func(*store.StoredEvent) (take, deeper bool) { return true, true })
	if err != nil {
		return nil, err
	}
	if len(events) == 0 && !f.Rooms.InRoom(room.ID, q.origin) {
		return nil, errNotSeen
	}
	return f.transaction(events), nil
}

// gather walks the room from the events named, and collects those that pick says to take, in the form that the server may see.
func (f *Federation) gather(server eventgraph.ServerName, room eventgraph.RoomID, from []eventgraph.EventID, limit int, pick func(*store.StoredEvent) (take, deeper bool)) ([]json.RawMessage, error) {
	events := []json.RawMessage{}
	err := f.walk(room, from, func(e *store.StoredEvent) (bool, bool, error) {
		take, deeper := pick(e)
		if take && len(events) < limit {
			given, err := f.Rooms.GivenToServer(server, e)
			if err != nil {
				return false, false, err
			}
			if given != nil {
				events = append(events, given.Raw())
			}
		}
		return len(events) < limit, deeper, nil
	})
	return events, err
}

func eventIDs(names []string) ([]eventgraph.EventID, error) {
	if len(names) > maxNamedEvents {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "too many events named")
	}
	ids := make([]eventgraph.EventID, len(names))
	for i, name := range names {
		var err error
		if ids[i], err = eventgraph.ParseEventID(name); err != nil {
			return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
		}
	}
	return ids, nil
}

// missingQuery is the body of /get_missing_events.
type missingQuery struct {
	Limit    *int     `json:"limit,omitempty"`
	MinDepth int64    `json:"min_depth"`
	Earliest []string `json:"earliest_events"`
	Latest   []string `json:"latest_events"`
}

// serveMissingEvents answers with the events between earliest and latest, without either, the earlier ones first.
func (f *Federation) serveMissingEvents(q *request) (any, error) {
	room, err := f.room(q)
	if err != nil {
		return nil, err
	}
	var body missingQuery
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	limit := defaultMissing
	if body.Limit != nil {
		limit = max(0, min(*body.Limit, maxEvents))
	}
	earliest, err := eventIDs(body.Earliest)
	if err != nil {
		return nil, err
	}
	latest, err := eventIDs(body.Latest)
	if err != nil {
		return nil, err
	}
	release, err := take(q.Context(), f.heavy)
	if err != nil {
		return nil, err
	}
	defer release()
	stop := map[eventgraph.EventID]bool{}
	for _, id := range earliest {
		stop[id] = true
	}
	events, err := f.gather(q.origin, room.ID, latest, limit, func(e *store.StoredEvent) (bool, bool) {
		if stop[e.ID()] || e.Depth() < body.MinDepth || e.Verdict == store.Rejected {
			return false, false
		}
		return !slices.Contains(latest, e.ID()), true
	})
	if err != nil {
		return nil, err
	}
	if len(events) == 0 && !f.Rooms.InRoom(room.ID, q.origin) {
		return nil, errNotSeen
	}
	slices.Reverse(events)
	return map[string][]json.RawMessage{"events": events}, nil
}

// near is the answer of /timestamp_to_event.
type near struct {
	ID eventgraph.EventID `json:"event_id"`
	TS int64              `json:"origin_server_ts"`
}

func (f *Federation) serveTimestampToEvent(q *request) (any, error) {
	room, err := f.room(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	ts, err := strconv.ParseInt(query.Get("ts"), 10, 64)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "ts is missing or not a number")
	}
	dir := query.Get("dir")
	if dir != "f" && dir != "b" {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "dir is neither f nor b")
	}
	// Whether the server may see an event is asked of many, if it may see few.
	release, err := take(q.Context(), f.heavy)
	if err != nil {
		return nil, err
	}
	defer release()
	e, err := f.Rooms.EventNear(room.ID, ts, dir == "f", func(e *store.StoredEvent) (bool, error) { return f.Rooms.MaySeeServer(q.origin, e) })
	if errors.Is(err, store.ErrNotFound) {
		if !f.Rooms.InRoom(room.ID, q.origin) {
			return nil, errNotSeen
		}
		return nil, errNoEvent
	} else if err != nil {
		return nil, err
	}
	return near{e.ID(), e.OriginServerTS()}, nil
}
