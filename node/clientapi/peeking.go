package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Peeking looks into a room without joining it (CS API, Room Previews): its state and newest messages, then its events as they come. Members may use it
// too; others where the history is world-readable. The room must be held here.

// peekPage bounds the events of one answer of /events: the next one goes on behind them.
const peekPage = 100

// roomInitialSync is GET /rooms/{roomId}/initialSync.
func (a *API) roomInitialSync(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(q.URL.Query().Get("limit"), usualPage, mostPage)
	if err != nil {
		return nil, err
	}
	page, _, err := a.messagesPage(q, room, true, &eventFilter{}, max(limit, 1), false)
	if err != nil {
		return nil, err
	}
	chunk := page["chunk"].([]json.RawMessage)
	slices.Reverse(chunk)
	messages := map[string]any{"chunk": chunk[len(chunk)-min(limit, len(chunk)):], "end": page["start"]}
	if older, ok := page["end"]; ok {
		messages["start"] = older
	}
	info := map[string]any{"room_id": room, "messages": messages, "visibility": "private"}
	var ids []eventgraph.EventID
	err = a.Store.View(func(r *store.Reader) error {
		root, err := a.readableState(r, room, q.user)
		if err != nil {
			return err
		}
		if ids, err = stateIDs(r, root, func(eventgraph.StateTuple) bool { return true }); err != nil {
			return err
		}
		return a.ownPart(r, room, q.user, info)
	})
	if err != nil {
		return nil, err
	}
	head, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	v := a.viewerOf(q)
	before := string(bytes.TrimSuffix(head, []byte("}"))) + `,"state":[`
	return a.streamEvents(q, before, ids, func(r *store.Reader, e *store.StoredEvent) ([]byte, error) { return a.clientEvent(r, e, v) }, "]}")
}

// ownPart adds what the room is to the user, and whether it is published.
func (a *API) ownPart(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID, info map[string]any) error {
	m, err := memberOf(r, room, user)
	if err != nil {
		return err
	}
	if m != nil && m.Membership != "knock" { // which this endpoint's schema does not know
		info["membership"] = m.Membership
	}
	published, err := r.Published(room)
	if err != nil {
		return err
	}
	if published {
		info["visibility"] = "public"
	}
	data := emptyList()
	err = r.AllAccountData(user, room, func(d *store.AccountData) (bool, error) {
		data.add(typeAndContent(d.Type, d.Content))
		return true, nil
	})
	info["account_data"] = data.Events
	return err
}

// peekEvents is GET /events for one room. For all rooms of the user it is deprecated, and not served: /sync is that.
func (a *API) peekEvents(q *request) (any, error) {
	query := q.URL.Query()
	if query.Get("room_id") == "" {
		return nil, missingParam("room_id is missing: the events of all rooms are at /sync.")
	}
	room, err := eventgraph.ParseRoomID(query.Get("room_id"))
	if err != nil {
		return nil, invalidParam("That is not a room ID.")
	}
	timeout, err := parseTimeout(query.Get("timeout"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(q.Context(), timeout)
	defer cancel()
	defer a.polls.begin(deviceKey{q.user, q.device, "events"}, cancel)()
	p := &peek{a: a, room: room, token: query.Get("from"), upTo: a.Store.Position()}
	for looks := true; ; {
		if looks {
			if err := a.Store.View(func(r *store.Reader) error { return p.read(r, q) }); err != nil {
				return nil, err
			}
		}
		if len(p.chunk) > 0 || p.more || timeout == 0 {
			break
		}
		at, err := a.Store.Wait(ctx, p.upTo)
		if err != nil {
			if q.Context().Err() != nil || ctx.Err() == nil {
				return nil, err
			}
			break // nothing happened in time
		}
		if err := a.admitAgain(q); err != nil {
			return nil, err
		}
		if looks, err = p.concerned(at); err != nil {
			return nil, err
		}
	}
	return map[string]any{"start": p.start, "end": a.roomToken(p.from), "chunk": p.chunk}, nil
}

// peek is a call of /events.
type peek struct {
	a     *API
	room  eventgraph.RoomID
	token string
	upTo  store.Position // nothing of the room came between the last look and this

	looked bool
	from   int64 // order of the last event looked at
	start  string
	chunk  []json.RawMessage
	more   bool // there is more than was looked at
}

// read takes in what has come to the room.
func (p *peek) read(r *store.Reader, q *request) (err error) {
	if _, err := p.a.readableState(r, p.room, q.user); err != nil {
		return err
	}
	if !p.looked {
		if p.token == "" {
			p.from, err = p.a.orderAt(r, p.room, latestPosition)
		} else {
			p.from, err = p.a.parseToken(r, p.room, p.token)
		}
		if err != nil {
			return err
		}
		if p.looked, p.start = true, p.token; p.start == "" {
			p.start = p.a.roomToken(p.from)
		}
	}
	v := p.a.viewerOf(q)
	page, err := p.a.readPage(r, p.room, v, p.from, math.MaxInt64, false, &eventFilter{}, peekPage, nil)
	if err != nil {
		return err
	}
	p.from, p.more = pointAfter(page, p.from, false), !page.ended
	p.chunk, err = p.a.clientEvents(r, page.events, v)
	return err
}

// concerned says whether anything happened in the room up to a position.
func (p *peek) concerned(upTo store.Position) (is bool, err error) {
	err = p.a.Store.View(func(r *store.Reader) error {
		return r.Changes(p.upTo, upTo, func(_ store.Position, c store.Change) (bool, error) {
			is = is || c.Kind == store.ChangeEvent && c.Room == p.room
			return !is, nil
		})
	})
	p.upTo = upTo
	return is, err
}
