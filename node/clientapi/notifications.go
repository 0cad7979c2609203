package clientapi

import (
	"encoding/json"
	"errors"
	"net/url"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/pushrules"
	"github.com/plexus-p2p/plexus/store"
)

// The list of notifications is not stored: "the user has been, or would have been notified" (CS API, GET /notifications) is what the rules make of
// the log of changes, read backwards. To store it would cost a write per event and user, which a client that never asks for the list pays too; to
// read it costs some microseconds for each event that is passed over, and scanNotifications bounds them.
const (
	usualNotifications = 20
	maxNotifications   = 100
	// scanNotifications is how many changes one answer looks at; what it has not found by then the next one goes on to find.
	scanNotifications = 5000
)

// notificationJSON is one of the list.
type notificationJSON struct {
	Actions []pushrules.Action `json:"actions"`
	Event   json.RawMessage    `json:"event"`
	Read    bool               `json:"read"`
	Room    eventgraph.RoomID  `json:"room_id"`
	TS      int64              `json:"ts"`
}

// getNotifications is GET /notifications: of rooms that the user is joined to, since they joined.
func (a *API) getNotifications(q *request) (any, error) {
	query := q.URL.Query()
	limit, err := limitOf(query.Get("limit"), usualNotifications, maxNotifications)
	if err != nil {
		return nil, err
	}
	from, err := notificationsFrom(query)
	if err != nil {
		return nil, err
	}
	list := &notificationList{
		api: a, viewer: a.viewerOf(q), limit: limit, onlyHighlights: query.Get("only") == "highlight",
		rooms: map[eventgraph.RoomID]*notices{}, found: []notificationJSON{},
	}
	list.viewer.withoutRoom = true
	err = a.Store.View(func(r *store.Reader) error {
		if from == 0 || from > r.Position() {
			from = r.Position()
		}
		return r.ChangesBefore(from, func(at store.Position, c store.Change) (bool, error) { return list.add(r, at, c) })
	})
	answer := map[string]any{"notifications": list.found}
	if list.next > 0 {
		answer["next_token"] = strconv.FormatUint(uint64(list.next), 10)
	}
	return answer, err
}

// notificationsFrom reads the token: the position up to which to list; 0 if there is none.
func notificationsFrom(query url.Values) (store.Position, error) {
	token := query.Get("from")
	if token == "" {
		return 0, nil
	}
	from, err := strconv.ParseUint(token, 10, 64)
	if err != nil {
		return 0, invalidParam("from is no token of this list.")
	}
	return store.Position(from), nil
}

// notificationList is an answer that is being put together, newest first.
type notificationList struct {
	api            *API
	viewer         *viewer
	limit, scanned int
	onlyHighlights bool
	rooms          map[eventgraph.RoomID]*notices // nil: the user is not joined
	found          []notificationJSON
	next           store.Position // where the next answer begins; 0: there is no more
}

// add looks at one change; false if the answer is complete.
func (l *notificationList) add(r *store.Reader, at store.Position, c store.Change) (bool, error) {
	if l.scanned++; len(l.found) == l.limit || l.scanned > scanNotifications {
		l.next = at
		return false, nil
	}
	if c.Kind != store.ChangeEvent {
		return true, nil
	}
	n, known := l.rooms[c.Room]
	if !known {
		var err error
		if n, err = l.joined(r, c.Room); err != nil {
			return false, err
		}
		l.rooms[c.Room] = n
	}
	if n == nil {
		return true, nil
	}
	e, err := r.Event(c.Event)
	if errors.Is(err, store.ErrNotFound) || err == nil && e.Order <= n.since {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	outcome, read, err := n.told(e)
	if err != nil || !outcome.Notify || l.onlyHighlights && !outcome.Highlight {
		return err == nil, err
	}
	shown, err := l.api.clientEvent(r, e, l.viewer)
	l.found = append(l.found, notificationJSON{outcome.Actions, shown, read, c.Room, e.ReceivedTS})
	return err == nil, err
}

// joined judges the events of a room that the user is joined to; nil if they are not.
func (l *notificationList) joined(r *store.Reader, room eventgraph.RoomID) (*notices, error) {
	n, err := l.api.notices(r, l.viewer.user, room)
	if n == nil || err != nil || n.member.Membership != "join" {
		return nil, err
	}
	n.since, err = n.joinedAt(room)
	return n, err
}
