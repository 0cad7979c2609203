package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of one page of history.
const (
	usualPage = 10
	mostPage  = 1000
	// mostLooked is how many events one request looks at: a filter or the history's visibility may let few pass. The page is
	// then shorter, and its end token goes on from there.
	mostLooked = 5000
	// backfillLeast is how many events are asked of other servers at once when local history ends.
	backfillLeast = 100
	// breakRounds is how often other servers are asked again because what came belongs elsewhere than into the break at which a page begins. Then it
	// is empty, and its end token is where it began: the next one asks on.
	breakRounds = 3
)

// page is a stretch of a room's history.
type page struct {
	events []*store.StoredEvent
	last   int64 // order of the last event looked at
	looked int
	ended  bool  // nothing lies behind it here
	broken bool  // it ends at a break
	stop   int64 // of that break: the newest order that is older; the lowest if there is none
}

// getMessages is GET /rooms/{roomId}/messages. Where local history ends before the page is full, the room's other servers are asked for
// more.
func (a *API) getMessages(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	backwards := true
	switch query.Get("dir") {
	case "f":
		backwards = false
	case "b":
	default:
		// Who may not read here is told that rather than what else is wrong.
		err := a.Store.View(func(r *store.Reader) error {
			_, err := a.readableState(r, room, q.user)
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case query.Get("dir") == "":
			return nil, missingParam("dir is missing.")
		}
		return nil, invalidParam("dir must be b or f.")
	}
	filter := &eventFilter{}
	if s := query.Get("filter"); s != "" {
		if err := decodeJSON([]byte(s), filter); err != nil {
			return nil, err
		}
	}
	limit, err := limitOf(query.Get("limit"), max(filter.limit(usualPage, mostPage), 1), mostPage)
	if err != nil {
		return nil, err
	}
	answer, lacks, err := a.messagesPage(q, room, backwards, filter, limit, false)
	for round := 0; err == nil && lacks.what != nothing && round < breakRounds; round++ {
		n, failed := a.remote.BackfillAbove(q.Context(), room, lacks.above, max(limit, backfillLeast))
		if failed != nil || n == 0 {
			// What is here is shown; the rest comes when somebody who has it is met.
			a.Log.Debug("no older history from other servers now", "room", room, "error", failed)
			if lacks.what == allOfIt {
				answer, _, err = a.messagesPage(q, room, backwards, filter, limit, true)
			}
			return answer, err
		}
		if answer, lacks, err = a.messagesPage(q, room, backwards, filter, limit, false); lacks.what == someOfIt {
			break
		}
	}
	return answer, err
}

// lack is what of a page other servers have. It belongs above that order: that of the break at which the page ends, or the lowest.
type lack struct {
	what  lackKind
	above int64
}

type lackKind uint8

const (
	nothing lackKind = iota
	someOfIt
	allOfIt // it begins at a break (store.Break)
)

// messagesPage makes the answer of what is here. It ends at a break of history that other servers have, or goes on across it.
func (a *API) messagesPage(q *request, room eventgraph.RoomID, backwards bool, filter *eventFilter, limit int, across bool) (answer map[string]any, lacks lack, err error) {
	query := q.URL.Query()
	err = a.Store.View(func(r *store.Reader) error {
		root, err := a.readableState(r, room, q.user)
		if err != nil {
			return err
		}
		from, to := int64(math.MinInt64), int64(math.MaxInt64)
		if backwards {
			from, to = to, from
		}
		start := query.Get("from")
		if start != "" {
			if from, err = a.parseToken(r, room, start); err != nil {
				return err
			}
		} else {
			if backwards {
				if from, err = a.orderAt(r, room, latestPosition); err != nil {
					return err
				}
			}
			start = a.roomToken(from)
		}
		if s := query.Get("to"); s != "" {
			if to, err = a.parseToken(r, room, s); err != nil {
				return err
			}
		}
		held, err := r.Room(room)
		if err != nil {
			return err
		}
		var breaks []store.Break
		if backwards && !across {
			if breaks, err = openBreaks(r, held); err != nil {
				return err
			}
		}
		v := a.viewerOf(q)
		p, err := a.readPage(r, room, v, from, to, backwards, filter, limit, breaks)
		if err != nil {
			return err
		}
		elsewhere, err := moreHistory(r, held)
		if err != nil {
			return err
		}
		more := backwards && p.ended && len(p.events) < limit && elsewhere && to == math.MinInt64
		switch {
		case p.broken && p.looked == 0:
			lacks = lack{allOfIt, p.stop}
		case p.broken || more:
			lacks = lack{someOfIt, p.stop}
		default:
			lacks = lack{}
		}
		chunk, err := a.clientEvents(r, p.events, v)
		if err != nil {
			return err
		}
		answer = map[string]any{"start": start, "chunk": chunk}
		if !p.ended || more {
			answer["end"] = a.roomToken(pointAfter(p, from, backwards))
		}
		if filter.LazyLoadMembers {
			answer["state"], err = a.sendersOf(r, root, p.events, v)
		}
		return err
	})
	return answer, lacks, err
}

// openBreaks are the breaks in the room's history of which other servers may have more.
func openBreaks(r *store.Reader, room *store.Room) (open []store.Break, err error) {
	if len(room.Breaks) == 0 {
		return nil, nil
	}
	err = r.BackwardEvents(room, func(e *store.StoredEvent) (bool, error) {
		i := slices.IndexFunc(room.Breaks, func(b store.Break) bool { return b.Holds(e.Order) })
		if i >= 0 && !room.Ends(e.Order) {
			open = append(open, room.Breaks[i])
		}
		return true, nil
	})
	return open, err
}

// moreHistory says whether other servers have history of the room that is not here, and was not purged.
func moreHistory(r *store.Reader, room *store.Room) (more bool, err error) {
	err = r.BackwardEvents(room, func(e *store.StoredEvent) (bool, error) {
		more = !room.Ends(e.Order)
		return !more, nil
	})
	return more, err
}

// pointAfter is the order of the token that goes on behind the page.
func pointAfter(p *page, from int64, backwards bool) int64 {
	switch {
	case p.looked == 0:
		return from
	case backwards:
		return p.last - 1
	}
	return p.last
}

// readPage reads from a point towards to, at most limit events that pass; backwards not across any of the breaks. What users sent whom the viewer ignores does not, but for
// state (CS API, Ignoring Users).
func (a *API) readPage(r *store.Reader, room eventgraph.RoomID, v *viewer, from, to int64, backwards bool, filter *eventFilter, limit int, breaks []store.Break) (*page, error) {
	p := &page{ended: true, stop: math.MinInt64}
	above := from
	first := from
	if !backwards && from != math.MinInt64 {
		first++ // a token lies just after its event
	}
	err := r.Timeline(room, first, backwards, func(e *store.StoredEvent) (bool, error) {
		for _, b := range breaks {
			if store.Between([]store.Break{b}, e.Order, above) {
				p.ended, p.broken, p.stop = false, true, max(p.stop, b.After)
			}
		}
		if p.broken {
			return false, nil
		}
		above = e.Order
		if backwards && e.Order <= to || !backwards && e.Order > to {
			return false, nil
		}
		if len(p.events) == limit || p.looked == mostLooked {
			p.ended = false
			return false, nil
		}
		p.looked++
		p.last = e.Order
		if e.Type() == rooms.DummyEvent || !filter.event(e.Event) || !filter.room(room) || v.hides(r, e) {
			return true, nil
		}
		see, err := a.Rooms.MaySeeUser(v.user, e)
		if see {
			see, err = a.relatedPass(r, filter, e, v)
		}
		if see {
			p.events = append(p.events, e)
		}
		return true, err
	})
	return p, err
}

// sendersOf writes out the member events of the events' senders in the state at root, for clients that load members lazily.
func (a *API) sendersOf(r *store.Reader, root eventgraph.Hash, events []*store.StoredEvent, v *viewer) ([]json.RawMessage, error) {
	seen := map[eventgraph.UserID]bool{}
	state := []json.RawMessage{}
	for _, e := range events {
		if seen[e.Sender()] {
			continue
		}
		seen[e.Sender()] = true
		m, err := stateEvent(r, root, "m.room.member", string(e.Sender()))
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		raw, err := a.clientEvent(r, m, v)
		if err != nil {
			return nil, err
		}
		state = append(state, raw)
	}
	return state, nil
}

// limitOf reads a limit from a query.
func limitOf(s string, usual, most int) (int, error) {
	if s == "" {
		return usual, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, invalidParam("limit is not a number of events.")
	}
	return min(n, most), nil
}

// visibleEvent is an event of the room that the user may see; M_NOT_FOUND.
func (a *API) visibleEvent(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID, id eventgraph.EventID) (*store.StoredEvent, error) {
	missing := notFound("There is no such event, or you may not see it.")
	if err := a.notForgotten(r, room, user, missing); err != nil {
		return nil, err
	}
	e, err := r.Event(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	if e.RoomID() != room || e.Verdict != store.Accepted {
		return nil, missing
	}
	see, err := a.Rooms.MaySeeUser(user, e)
	if err == nil && !see {
		err = missing
	}
	return e, err
}

// notForgotten answers with the error if the user has forgotten the room, unless anybody may read it now: "a user will no longer be able to
// retrieve history for this room" (CS API, POST forget).
func (a *API) notForgotten(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID, refusal error) error {
	m, err := memberOf(r, room, user)
	if err != nil || m == nil || !m.Forgotten || isJoined(m) {
		return err
	}
	held, err := r.Room(room)
	if errors.Is(err, store.ErrNotFound) {
		return refusal
	}
	if err != nil {
		return err
	}
	readable, err := worldReadable(r, held.State)
	if err == nil && !readable {
		err = refusal
	}
	return err
}

// getEvent is GET /rooms/{roomId}/event/{eventId}.
func (a *API) getEvent(q *request) (any, error) {
	room, id, err := eventOf(q)
	if err != nil {
		return nil, err
	}
	var answer json.RawMessage
	err = a.Store.View(func(r *store.Reader) error {
		e, err := a.visibleEvent(r, room, q.user, id)
		if err != nil {
			return err
		}
		answer, err = a.clientEvent(r, e, a.viewerOf(q))
		return err
	})
	return answer, err
}

func eventOf(q *request) (eventgraph.RoomID, eventgraph.EventID, error) {
	room, err := roomOf(q)
	if err != nil {
		return "", "", err
	}
	id, err := eventgraph.ParseEventID(q.path("eventId"))
	if err != nil {
		return "", "", notFound("There is no such event.")
	}
	return room, id, nil
}

// getContext is GET /rooms/{roomId}/context/{eventId}.
func (a *API) getContext(q *request) (any, error) {
	room, id, err := eventOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	filter := &eventFilter{}
	if s := query.Get("filter"); s != "" {
		if err := decodeJSON([]byte(s), filter); err != nil {
			return nil, err
		}
	}
	limit, err := limitOf(query.Get("limit"), max(filter.limit(usualPage, mostPage), 1), mostPage)
	if err != nil {
		return nil, err
	}
	answer := map[string]any{}
	err = a.Store.View(func(r *store.Reader) error {
		e, err := a.visibleEvent(r, room, q.user, id)
		if err != nil {
			return err
		}
		v := a.viewerOf(q)
		before, err := a.readPage(r, room, v, e.Order-1, math.MinInt64, true, filter, limit/2, nil)
		if err != nil {
			return err
		}
		after, err := a.readPage(r, room, v, e.Order, math.MaxInt64, false, filter, limit-limit/2, nil)
		if err != nil {
			return err
		}
		if answer["event"], err = a.clientEvent(r, e, v); err != nil {
			return err
		}
		if answer["events_before"], err = a.clientEvents(r, before.events, v); err != nil {
			return err
		}
		if answer["events_after"], err = a.clientEvents(r, after.events, v); err != nil {
			return err
		}
		answer["start"] = a.roomToken(pointAfter(before, e.Order-1, true))
		answer["end"] = a.roomToken(pointAfter(after, e.Order, false))
		last := e
		if n := len(after.events); n > 0 {
			last = after.events[n-1]
		}
		wanted := func(eventgraph.StateTuple) bool { return true }
		if filter.LazyLoadMembers {
			senders := map[string]bool{string(e.Sender()): true}
			for _, other := range append(before.events, after.events...) {
				senders[string(other.Sender())] = true
			}
			wanted = func(t eventgraph.StateTuple) bool { return t.Type != "m.room.member" || senders[t.Key] }
		}
		root, may, err := stateSeen(r, q.user, last)
		if err != nil {
			return err
		}
		if !may {
			wanted = func(eventgraph.StateTuple) bool { return false }
		}
		answer["state"], err = a.stateEvents(r, root, v, wanted)
		return err
	})
	return answer, err
}

// timestampToEvent is GET /rooms/{roomId}/timestamp_to_event: the closest event here that the user may see, or, where what is here begins
// after the time, the closest that another server has. Of that nothing is told before it is here, and the user may see it.
func (a *API) timestampToEvent(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	ts, err := strconv.ParseInt(query.Get("ts"), 10, 64)
	if err != nil {
		return nil, invalidParam("ts is not a time in milliseconds.")
	}
	forwards := query.Get("dir") == "f"
	if !forwards && query.Get("dir") != "b" {
		return nil, invalidParam("dir must be b or f.")
	}
	var history bool // that is not here
	err = a.Store.View(func(r *store.Reader) error {
		if _, err := a.readableState(r, room, q.user); err != nil {
			return err
		}
		held, err := r.Room(room)
		if err == nil {
			history, err = moreHistory(r, held)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	near, err := a.eventNear(room, q.user, ts, forwards)
	if err != nil {
		return nil, err
	}
	if history && (near == nil || forwards) {
		id, at, err := a.remote.EventNear(q.Context(), room, ts, forwards)
		if err == nil && (near == nil || distance(at, ts) < distance(near.OriginServerTS(), ts)) {
			a.fetchHistory(q.Context(), room, id)
			if near, err = a.eventNear(room, q.user, ts, forwards); err != nil {
				return nil, err
			}
		}
	}
	if near == nil {
		return nil, fail(http.StatusNotFound, "M_NOT_FOUND", "No event is known near that time.")
	}
	return map[string]any{"event_id": near.ID(), "origin_server_ts": near.OriginServerTS()}, nil
}

// eventNear is the closest event here that the user may see; nil if there is none.
func (a *API) eventNear(room eventgraph.RoomID, user eventgraph.UserID, ts int64, forwards bool) (*store.StoredEvent, error) {
	e, err := a.Rooms.EventNear(room, ts, forwards, func(e *store.StoredEvent) (bool, error) { return a.Rooms.MaySeeUser(user, e) })
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return e, err
}

// Bounds of fetching history up to an event that another server has found by its time: a room's history has no holes here, so all of it
// that is newer must come too.
const (
	maxHistoryFetch = 10 * time.Second
	historyFetch    = 500 // events asked for at once
)

// fetchHistory fetches the room's history back to the event, so that the client can read on from there (CS API,
// GET timestamp_to_event; SS API: the server should try to backfill the event). If that is too far back the next request goes on.
func (a *API) fetchHistory(ctx context.Context, room eventgraph.RoomID, id eventgraph.EventID) {
	ctx, cancel := context.WithTimeout(ctx, maxHistoryFetch)
	defer cancel()
	for {
		held := false
		err := a.Store.View(func(r *store.Reader) error {
			order, err := r.OrderOf(id)
			held = order != 0
			return err
		})
		if held || err != nil {
			return
		}
		if n, err := a.remote.Backfill(ctx, room, historyFetch); err != nil || n == 0 {
			a.Log.Debug("the history up to an event found by its time is not to be had now", "room", room, "event", id, "error", err)
			return
		}
	}
}

func distance(a, b int64) int64 {
	if a > b {
		return a - b
	}
	return b - a
}
