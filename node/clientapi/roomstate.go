package clientapi

import (
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// errNotInRoom is the answer to who asks about a room that they are not in.
var errNotInRoom = forbidden("You are not in that room.")

// readableState is the root of the room state that the user may read: the current one for members and where anybody may read, that at
// their leaving for former members. errNotInRoom for others.
func (a *API) readableState(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID) (eventgraph.Hash, error) {
	m, err := memberOf(r, room, user)
	if err != nil {
		return eventgraph.Hash{}, err
	}
	held, err := r.Room(room)
	if errors.Is(err, store.ErrNotFound) {
		return eventgraph.Hash{}, errNotInRoom
	}
	if err != nil {
		return eventgraph.Hash{}, err
	}
	switch {
	case isJoined(m):
		return held.State, nil
	case m != nil && !m.Forgotten:
		gone, err := leaving(r, m)
		if err != nil {
			return eventgraph.Hash{}, err
		}
		if gone != nil {
			return stateRoot(gone), nil
		}
	}
	readable, err := worldReadable(r, held.State)
	if err != nil {
		return eventgraph.Hash{}, err
	}
	if !readable {
		return eventgraph.Hash{}, errNotInRoom
	}
	return held.State, nil
}

// leaving is the event by which a user who is not joined now was last joined no more; nil if they never were, or it is not to be
// found. Later bans, invites and their refusals do not move it: what came after it is not theirs to read.
func leaving(r *store.Reader, m *store.Member) (*store.StoredEvent, error) {
	if !m.WasJoined || m.Event == "" {
		return nil, nil
	}
	e, err := r.Event(m.Event)
	for range rooms.MaxMemberHops {
		if isNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		before, err := replacedState(r, e)
		if err != nil || before == nil {
			return nil, err
		}
		if before.Membership() == "join" {
			return e, nil
		}
		e = before
	}
	return nil, nil
}

// stateSeen is the state as of an event that the user may see, as far as it is theirs to read: after their leaving it stays as it was then, and
// who was never joined sees none, though their own membership is shown to them, unless anybody may read there.
func stateSeen(r *store.Reader, user eventgraph.UserID, e *store.StoredEvent) (root eventgraph.Hash, may bool, err error) {
	root = stateRoot(e)
	m, err := memberOf(r, e.RoomID(), user)
	if err != nil || isJoined(m) {
		return root, err == nil, err
	}
	if readable, err := worldReadable(r, root); err != nil || readable {
		return root, readable, err
	}
	if m == nil || m.Forgotten {
		return root, false, nil
	}
	gone, err := leaving(r, m)
	if err != nil || gone == nil {
		return root, false, err
	}
	if e.Order > gone.Order {
		root = stateRoot(gone)
	}
	return root, true, nil
}

// worldReadable says whether by the state at root anybody may read the room.
func worldReadable(r *store.Reader, root eventgraph.Hash) (bool, error) {
	e, err := stateEvent(r, root, "m.room.history_visibility", "")
	if err != nil || e == nil {
		return false, err
	}
	var content struct {
		Visibility string `json:"history_visibility"`
	}
	return json.Unmarshal(e.Content(), &content) == nil && content.Visibility == "world_readable", nil
}

// getState is GET /rooms/{roomId}/state.
func (a *API) getState(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	var ids []eventgraph.EventID
	err = a.Store.View(func(r *store.Reader) error {
		root, err := a.readableState(r, room, q.user)
		if err != nil {
			return err
		}
		ids, err = stateIDs(r, root, func(eventgraph.StateTuple) bool { return true })
		return err
	})
	if err != nil {
		return nil, err
	}
	v := a.viewerOf(q)
	return a.streamEvents(q, "[", ids, func(r *store.Reader, e *store.StoredEvent) ([]byte, error) { return a.clientEvent(r, e, v) }, "]")
}

// stateEvents writes out the events of the state at root whose tuple passes.
func (a *API) stateEvents(r *store.Reader, root eventgraph.Hash, v *viewer, passes func(eventgraph.StateTuple) bool) ([]json.RawMessage, error) {
	events := []json.RawMessage{}
	return events, eventgraph.OpenTrie(r, root).Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		if !passes(t) {
			return nil
		}
		e, err := r.Event(id)
		if err != nil {
			return err
		}
		raw, err := a.clientEvent(r, e, v)
		events = append(events, raw)
		return err
	})
}

// getStateEvent is GET /rooms/{roomId}/state/{eventType}/{stateKey}: the content, or with format=event the event.
func (a *API) getStateEvent(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	var answer any
	err = a.Store.View(func(r *store.Reader) error {
		root, err := a.readableState(r, room, q.user)
		if err != nil {
			return err
		}
		e, err := stateEvent(r, root, q.path("eventType"), stateKeyOf(q))
		if err != nil {
			return err
		}
		if e == nil {
			return notFound("The room has no such state.")
		}
		answer, err = a.stateEventAnswer(r, e, q)
		return err
	})
	return answer, err
}

// stateEventAnswer is the event as getStateEvent was asked for it.
func (a *API) stateEventAnswer(r *store.Reader, e *store.StoredEvent, q *request) (any, error) {
	if q.URL.Query().Get("format") == "event" {
		return a.clientEvent(r, e, a.viewerOf(q))
	}
	shown, err := a.Rooms.ShownToUser(q.user, e)
	if err != nil {
		return nil, err
	}
	return json.RawMessage(shown.Content()), nil
}

// getMembers is GET /rooms/{roomId}/members, at a token of /sync or /messages if one is given.
func (a *API) getMembers(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	query := q.URL.Query()
	membership, not := query.Get("membership"), query.Get("not_membership")
	var ids []eventgraph.EventID
	err = a.Store.View(func(r *store.Reader) error {
		root, err := a.readableState(r, room, q.user)
		if err != nil {
			return err
		}
		if at := query.Get("at"); at != "" {
			if root, err = a.rootAt(r, room, q.user, at, root); err != nil {
				return err
			}
		}
		ids, err = stateIDs(r, root, func(t eventgraph.StateTuple) bool { return t.Type == "m.room.member" })
		return err
	})
	if err != nil {
		return nil, err
	}
	v := a.viewerOf(q)
	return a.streamEvents(q, `{"chunk":[`, ids, func(r *store.Reader, e *store.StoredEvent) ([]byte, error) {
		if membership != "" && e.Membership() != membership || not != "" && e.Membership() == not {
			return nil, nil
		}
		return a.clientEvent(r, e, v)
	}, "]}")
}

// maxBeforeMembers is how many events of a room's beginning are looked through for its first member: a room begins with its creation and
// the creator's joining.
const maxBeforeMembers = 10

// rootAt is the state at a token, for a user who may see the event there and its state (stateSeen); else otherwise. At a point before all events here it is that
// of the first members: a client that has got the whole timeline asks so, and a room has never been without any.
func (a *API) rootAt(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID, token string, otherwise eventgraph.Hash) (eventgraph.Hash, error) {
	order, err := a.parseToken(r, room, token)
	if err != nil {
		return eventgraph.Hash{}, err
	}
	root, before := otherwise, true
	seenAt := func(e *store.StoredEvent) error {
		see, err := a.Rooms.MaySeeUser(user, e)
		if err != nil || !see {
			return err
		}
		at, may, err := stateSeen(r, user, e)
		if may {
			root = at
		}
		return err
	}
	err = r.Timeline(room, order, true, func(e *store.StoredEvent) (bool, error) {
		before = false
		return false, seenAt(e)
	})
	if err != nil || !before {
		return root, err
	}
	looked := 0
	return root, r.Timeline(room, order+1, false, func(e *store.StoredEvent) (bool, error) {
		looked++
		if e.Type() != "m.room.member" {
			return looked < maxBeforeMembers, nil
		}
		return false, seenAt(e)
	})
}

// getJoinedMembers is GET /rooms/{roomId}/joined_members, for members.
func (a *API) getJoinedMembers(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	var ids []eventgraph.EventID
	err = a.Store.View(func(r *store.Reader) error {
		m, err := memberOf(r, room, q.user)
		if err != nil {
			return err
		}
		if !isJoined(m) {
			return errNotInRoom
		}
		return r.MembersOf(room, func(m *store.Member) (bool, error) {
			if m.Membership == "join" {
				ids = append(ids, m.Event)
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	return a.streamEvents(q, `{"joined":{`, ids, func(_ *store.Reader, e *store.StoredEvent) ([]byte, error) { return memberProfile(e) }, "}}")
}
