package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Typing lasts as long as the client says, within these bounds; most say 30 s.
const (
	usualTyping = 30 * time.Second
	mostTyping  = 2 * time.Minute
)

// putTyping is PUT /rooms/{roomId}/typing/{userId}.
func (a *API) putTyping(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	room, err := a.joinedRoom(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Typing  bool  `json:"typing"`
		Timeout int64 `json:"timeout"` // ms
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	last := time.Duration(0)
	if body.Typing {
		last = usualTyping
		if body.Timeout > 0 {
			last = time.Duration(min(body.Timeout, mostTyping.Milliseconds())) * time.Millisecond
		}
	}
	a.Ephemeral.SetTyping(room, q.user, last)
	return nil, nil
}

// joinedRoom is the request's room, which its user must be joined to.
func (a *API) joinedRoom(q *request) (eventgraph.RoomID, error) {
	room, err := roomOf(q)
	if err != nil {
		return "", err
	}
	m, err := a.member(room, q.user)
	if err != nil {
		return "", err
	}
	if !isJoined(m) {
		return "", errNotInRoom
	}
	return room, nil
}

// postReceipt is POST /rooms/{roomId}/receipt/{receiptType}/{eventId}.
func (a *API) postReceipt(q *request) (any, error) {
	room, err := a.joinedRoom(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Thread *string `json:"thread_id"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	thread := ""
	if body.Thread != nil {
		if thread = *body.Thread; thread == "" || len(thread) > maxThreadID {
			return nil, invalidParam("thread_id must be \"main\" or the event ID of a thread's root.")
		}
	}
	kind := q.path("receiptType")
	if kind == typeFullyRead && thread != "" {
		return nil, invalidParam("m.fully_read has no threads.")
	}
	return nil, a.setReceipt(q, room, kind, q.path("eventId"), thread)
}

// maxThreadID is the longest event ID.
const maxThreadID = 255

// postReadMarkers is POST /rooms/{roomId}/read_markers.
func (a *API) postReadMarkers(q *request) (any, error) {
	room, err := a.joinedRoom(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		FullyRead string `json:"m.fully_read"`
		Read      string `json:"m.read"`
		Private   string `json:"m.read.private"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	for _, m := range []struct{ kind, event string }{{typeFullyRead, body.FullyRead}, {"m.read", body.Read}, {"m.read.private", body.Private}} {
		if m.event == "" {
			continue
		}
		if err := a.setReceipt(q, room, m.kind, m.event, ""); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// setReceipt moves a receipt or the fully-read marker forwards; one that would move it back changes nothing.
func (a *API) setReceipt(q *request, room eventgraph.RoomID, kind, event, thread string) error {
	id, err := eventgraph.ParseEventID(event)
	if err != nil {
		return invalidParam("That is not an event ID.")
	}
	if kind == typeFullyRead {
		content, err := json.Marshal(map[string]any{"event_id": id})
		if err != nil {
			return err
		}
		return a.setAccountData(q, room, typeFullyRead, content)
	}
	if kind != "m.read" && kind != "m.read.private" {
		return invalidParam("There is no such type of receipt.")
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		now, err := orderOf(&tx.Reader, room, id)
		if err != nil {
			return err
		}
		if err := inThread(&tx.Reader, id, thread); err != nil {
			return err
		}
		held, err := tx.Receipt(room, q.user, kind, thread)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if held != nil {
			before, err := orderOf(&tx.Reader, room, held.Event)
			if err == nil && before >= now {
				return nil
			}
		}
		_, err = tx.PutReceipt(&store.Receipt{Room: room, User: q.user, Type: kind, Event: id, Thread: thread, TS: a.Now().UnixMilli()})
		return err
	})
	if errors.Is(err, store.ErrTooManyReceipts) {
		return fail(http.StatusForbidden, "M_FORBIDDEN", "You have receipts in too many threads of this room.")
	}
	return err
}

// inThread refuses a receipt in a thread that the event does not belong to (receipts.yaml, 400: "the event_id is not related to the thread_id").
// A root belongs to the main thread, and clients also send receipts at it in its own. Where relations lead to what is not held, any thread may be. What was redacted in a thread, and what relates to that,
// clients show in the main thread: they see no relation any more.
func inThread(r *store.Reader, id eventgraph.EventID, thread string) error {
	if thread == "" {
		return nil
	}
	e, err := r.Event(id)
	if err != nil {
		return err
	}
	belongs, path, err := threadAbove(r, e)
	if err != nil || thread == belongs {
		return err
	}
	if slices.ContainsFunc(path, func(e *store.StoredEvent) bool {
		return string(e.ID()) == thread || thread == mainThread && e.RedactedBy != ""
	}) {
		return nil
	}
	if _, err := eventgraph.ParseEventID(thread); belongs == "" && (err == nil || thread == mainThread) {
		return nil
	}
	return invalidParam("The event does not belong to the thread of thread_id.")
}

// orderOf is an event's place in its room; M_NOT_FOUND.
func orderOf(r *store.Reader, room eventgraph.RoomID, id eventgraph.EventID) (int64, error) {
	e, err := r.Event(id)
	if errors.Is(err, store.ErrNotFound) || err == nil && e.RoomID() != room {
		return 0, notFound("There is no such event in the room.")
	}
	if err != nil {
		return 0, err
	}
	return e.Order, nil
}
