package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// maxTxnID bounds a client's transaction ID: it is kept with the event.
const maxTxnID = 255

// transactionOf is the request's transaction ID in the scope of its device.
func transactionOf(q *request) (*store.ClientTxn, error) {
	id := q.path("txnId")
	if len(id) > maxTxnID {
		return nil, invalidParam("The transaction ID is too long.")
	}
	return &store.ClientTxn{User: q.user, Device: q.device, CreatedTS: q.deviceCreated, TxnID: id}, nil
}

// sendEvent is PUT /rooms/{roomId}/send/{eventType}/{txnId}.
func (a *API) sendEvent(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	txn, err := transactionOf(q)
	if err != nil {
		return nil, err
	}
	content, err := q.body()
	if err != nil {
		return nil, err
	}
	eventType := q.path("eventType")
	if ms, delayed, err := delayOf(q); err != nil {
		return nil, err
	} else if delayed {
		return a.schedule(q, &store.DelayedEvent{User: q.user, Room: room, Type: eventType, Content: content, DelayMS: ms}, txn)
	}
	ts, err := q.massagedTime()
	if err != nil {
		return nil, err
	}
	return sent(a.sendMessage(q.Context(), rooms.Draft{Room: room, Sender: q.user, Type: eventType, Content: content, Txn: txn, TS: ts}))
}

// sendMessage sends an event that is no state.
func (a *API) sendMessage(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	if d.Type == "m.room.redaction" {
		var redaction struct {
			Redacts string `json:"redacts"`
		}
		err := decodeJSON(d.Content, &redaction)
		if err != nil {
			return "", err
		}
		if d.Redacts, err = eventgraph.ParseEventID(redaction.Redacts); err != nil {
			return "", badJSON("A redaction must name in redacts the event that it is for.")
		}
	}
	if err := a.checkRelation(d); err != nil {
		return "", err
	}
	return a.remote.Send(ctx, d)
}

// checkRelation refuses what clients may not relate: a thread at an event that is a child of another itself (CS API, Threading, Validation of
// m.thread relationships), and the same annotation a second time, unless the first was redacted (Event annotations, Avoiding duplicate annotations).
func (a *API) checkRelation(d rooms.Draft) error {
	if !bytes.Contains(d.Content, []byte(`"m.relates_to"`)) {
		return nil
	}
	var content struct {
		Relates struct {
			Type  string             `json:"rel_type"`
			Event eventgraph.EventID `json:"event_id"`
			Key   string             `json:"key"`
		} `json:"m.relates_to"`
	}
	if json.Unmarshal(d.Content, &content) != nil {
		return nil // whatever that is, it is no relation
	}
	relates := content.Relates
	if relates.Type != "m.thread" && relates.Type != "m.annotation" {
		return nil
	}
	refused := a.Store.View(func(r *store.Reader) error {
		parent, err := r.Event(relates.Event)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil || parent.RoomID() != d.Room {
			return err
		}
		if see, err := a.Rooms.MaySeeUser(d.Sender, parent); err != nil || !see {
			return err // what it is to others is not theirs to know
		}
		if relates.Type == "m.thread" {
			if relTypeOf(parent) != "" {
				return fail(http.StatusBadRequest, "M_UNKNOWN", "A thread cannot begin at an event that relates to another.")
			}
			return nil
		}
		looked, same := 0, false
		err = r.Relations(relates.Event, "m.annotation", d.Type, func(e *store.StoredEvent) (bool, error) {
			looked++
			same = e.Sender() == d.Sender && e.RedactedBy == "" && e.Verdict == store.Accepted && annotationKey(e) == relates.Key
			return !same && looked < maxAggregated, nil
		})
		if same && err == nil {
			err = fail(http.StatusBadRequest, "M_DUPLICATE_ANNOTATION", "You have sent that annotation already.")
		}
		return err
	})
	if refused != nil && d.Txn != nil {
		// The same request again finds what it has sent itself. It is looked for last: the first may have been under way until now.
		if id, err := a.Rooms.Sent(d); err != nil || id != "" {
			return err
		}
	}
	return refused
}

// annotationKey is the key of an annotation; "" if it has none.
func annotationKey(e *store.StoredEvent) string {
	relates, _ := canonicaljson.Get(e.Content(), "m.relates_to")
	key, _ := canonicaljson.GetString(relates, "key")
	return key
}

// sent answers with the event's ID.
func sent(id eventgraph.EventID, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return map[string]any{"event_id": id}, nil
}

// redactEvent is PUT /rooms/{roomId}/redact/{eventId}/{txnId}.
func (a *API) redactEvent(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	txn, err := transactionOf(q)
	if err != nil {
		return nil, err
	}
	target, err := eventgraph.ParseEventID(q.path("eventId"))
	if err != nil {
		return nil, invalidParam("That is not an event ID.")
	}
	var body struct {
		Reason string `json:"reason,omitempty"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if err := a.Store.View(func(r *store.Reader) error {
		e, err := r.Event(target)
		if err == nil && e.RoomID() != room {
			err = store.ErrNotFound
		}
		return err
	}); errors.Is(err, store.ErrNotFound) {
		return nil, notFound("There is no such event in the room.")
	} else if err != nil {
		return nil, err
	}
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return sent(a.remote.Send(q.Context(), rooms.Draft{Room: room, Sender: q.user, Type: "m.room.redaction", Content: content, Redacts: target, Txn: txn}))
}

// putState is PUT /rooms/{roomId}/state/{eventType}/{stateKey}; the state key is "" where the path has none.
func (a *API) putState(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	content, err := q.body()
	if err != nil {
		return nil, err
	}
	key, eventType := stateKeyOf(q), q.path("eventType")
	if ms, delayed, err := delayOf(q); err != nil {
		return nil, err
	} else if delayed {
		return a.schedule(q, &store.DelayedEvent{User: q.user, Room: room, Type: eventType, StateKey: &key, Content: content, DelayMS: ms}, nil)
	}
	ts, err := q.massagedTime()
	if err != nil {
		return nil, err
	}
	return sent(a.sendState(q.Context(), rooms.Draft{Room: room, Sender: q.user, Type: eventType, StateKey: &key, Content: content, TS: ts}))
}

// sendState sends a state event.
func (a *API) sendState(ctx context.Context, d rooms.Draft) (id eventgraph.EventID, err error) {
	switch d.Type {
	case "m.room.member":
		if _, err := eventgraph.ParseUserID(*d.StateKey); err != nil {
			return "", invalidParam("The state key of a membership is a user ID.")
		}
		if d.Content, err = withoutAuthoriser(d.Content); err != nil {
			return "", err
		}
		return a.sendMembership(ctx, d)
	case "m.room.canonical_alias":
		if err := a.checkCanonicalAlias(ctx, d.Room, d.Content); err != nil {
			return "", err
		}
	}
	return a.remote.Send(ctx, d)
}

// withoutAuthoriser is the content of a membership without what servers alone say: who lets somebody into a restricted room. Clients that
// change their name send back what their last join had, and the authorization rules would ask for that server's signature anew.
func withoutAuthoriser(content json.RawMessage) (json.RawMessage, error) {
	const authoriser = "join_authorised_via_users_server"
	if !bytes.Contains(content, []byte(authoriser)) {
		return content, nil
	}
	var fields map[string]json.RawMessage
	if err := decodeJSON(content, &fields); err != nil {
		return nil, err
	}
	delete(fields, authoriser)
	return json.Marshal(fields)
}

// stateKeyOf is the path's state key, "" where it has none.
func stateKeyOf(q *request) string {
	for _, p := range q.params {
		if p.name == "stateKey" {
			return p.value
		}
	}
	return ""
}

// checkCanonicalAlias: aliases that are added must point to the room (CS API, m.room.canonical_alias, M_BAD_ALIAS).
func (a *API) checkCanonicalAlias(ctx context.Context, room eventgraph.RoomID, content json.RawMessage) error {
	type aliases struct {
		Alias string   `json:"alias"`
		Alt   []string `json:"alt_aliases"`
	}
	var now, before aliases
	if err := decodeJSON(content, &now); err != nil {
		return err
	}
	if state, err := a.Rooms.CurrentState(room); err == nil {
		if e, err := state.Event(eventgraph.StateTuple{Type: "m.room.canonical_alias"}); err == nil && e != nil {
			_ = json.Unmarshal(e.Content(), &before) // what is malformed has no aliases
		}
	}
	known := map[string]bool{"": true, before.Alias: true}
	for _, s := range before.Alt {
		known[s] = true
	}
	if len(now.Alt) > maxAltAliases {
		return invalidParam("There are too many alternative aliases.")
	}
	for _, s := range append(now.Alt, now.Alias) {
		if known[s] {
			continue
		}
		alias, err := eventgraph.ParseRoomAlias(s)
		if err != nil {
			return invalidParam(strconv.Quote(s) + " is not a room alias.")
		}
		target, _, err := a.resolveAlias(ctx, alias)
		if err != nil || target != room {
			return fail(http.StatusBadRequest, "M_BAD_ALIAS", "The alias "+s+" does not point to this room.")
		}
	}
	return nil
}

// maxAltAliases bounds the look-ups of one event.
const maxAltAliases = 50
