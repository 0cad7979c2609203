package clientapi

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// viewer is the client that events are written out for. It belongs to one request and is not for concurrent use.
type viewer struct {
	user        eventgraph.UserID
	device      store.DeviceID
	now         int64 // ms, for unsigned.age
	withoutRoom bool  // /sync implies the room (ClientEventWithoutRoomID)
	federation  bool  // filter's event_format: the event as peers have it
	because     bool  // inside a redacted_because
	bare        bool  // state beside a timeline: without the content of what was replaced, and the viewer's membership

	service bool // for an application service: without what is a user's own, and with whatever was replaced
	bundle  bool // with aggregations of child events
	nested  int  // inside how many aggregations
	ignored map[eventgraph.UserID]bool

	roots   map[eventgraph.Hash]string    // state root: the user's membership by it
	members map[eventgraph.EventID]string // member event: its membership
}

// viewerOf is the caller, who is shown aggregations of child events too.
func (a *API) viewerOf(q *request) *viewer {
	v := a.newViewer(q.user, q.device)
	v.bundle = true
	return v
}

// ignores says whether the viewer ignores the user. If that cannot be read, they do not.
func (v *viewer) ignores(r *store.Reader, user eventgraph.UserID) bool {
	if v.ignored == nil {
		v.ignored, _ = ignoredUsers(r, v.user)
		if v.ignored == nil {
			v.ignored = map[eventgraph.UserID]bool{}
		}
	}
	return v.ignored[user]
}

// hides says whether the event is not shown for its sender's sake: state always is (CS API, Ignoring Users).
func (v *viewer) hides(r *store.Reader, e *store.StoredEvent) bool {
	_, isState := e.StateKey()
	return !isState && v.ignores(r, e.Sender())
}

func (a *API) newViewer(user eventgraph.UserID, device store.DeviceID) *viewer {
	return &viewer{
		user: user, device: device, now: a.Now().UnixMilli(),
		roots: map[eventgraph.Hash]string{}, members: map[eventgraph.EventID]string{},
	}
}

// clientEvent writes an event as clients see it (CS API, Room event format; definitions/client_event.yaml). Whether the
// viewer may see it has been asked before (rooms.MaySeeUser).
func (a *API) clientEvent(r *store.Reader, e *store.StoredEvent, v *viewer) (json.RawMessage, error) {
	event, err := a.Rooms.ShownToUser(v.user, e)
	if err != nil {
		return nil, err
	}
	if v.federation {
		return event.Raw(), nil
	}
	b := make([]byte, 0, len(event.Content())+512)
	b = append(b, `{"content":`...)
	b = appendContent(b, event)
	b = append(b, `,"event_id":`...)
	b = appendString(b, string(event.ID()))
	b = append(b, `,"origin_server_ts":`...)
	b = strconv.AppendInt(b, event.OriginServerTS(), 10)
	if redacts := event.Redacts(); redacts != "" {
		b = append(b, `,"redacts":`...)
		b = appendString(b, string(redacts))
	}
	if !v.withoutRoom {
		b = append(b, `,"room_id":`...)
		b = appendString(b, string(event.RoomID()))
	}
	b = append(b, `,"sender":`...)
	b = appendString(b, string(event.Sender()))
	if key, ok := event.StateKey(); ok {
		b = append(b, `,"state_key":`...)
		b = appendString(b, key)
	}
	b = append(b, `,"type":`...)
	b = appendString(b, event.Type())
	b, err = a.appendUnsigned(b, r, e, v)
	if err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// clientEvents is clientEvent for each of them.
func (a *API) clientEvents(r *store.Reader, events []*store.StoredEvent, v *viewer) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(events))
	for _, e := range events {
		raw, err := a.clientEvent(r, e, v)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

// appendContent writes the content; that of a redaction carries "redacts" in every room version, as the top level does
// (CS API, m.room.redaction: servers serve both places).
func appendContent(b []byte, e *eventgraph.Event) []byte {
	content := e.Content()
	redacts := e.Redacts()
	if redacts == "" || e.Type() != "m.room.redaction" {
		return append(b, content...)
	}
	var in struct {
		Redacts *string `json:"redacts"`
	}
	if json.Unmarshal(content, &in) != nil || in.Redacts != nil {
		return append(b, content...)
	}
	b = append(b, `{"redacts":`...)
	b = appendString(b, string(redacts))
	if len(content) > len("{}") {
		b = append(b, ',')
	}
	return append(b, content[1:]...)
}

// appendUnsigned writes UnsignedData.
func (a *API) appendUnsigned(b []byte, r *store.Reader, e *store.StoredEvent, v *viewer) ([]byte, error) {
	b = append(b, `,"unsigned":{"age":`...)
	b = strconv.AppendInt(b, v.now-e.OriginServerTS(), 10)
	if t := e.SentBy; t != nil && !v.service && t.User == v.user && t.Device == v.device {
		b = append(b, `,"transaction_id":`...)
		b = appendString(b, t.TxnID)
	} else if t != nil && t.User == v.user && t.Device == delayedDevice {
		b = append(b, `,"org.matrix.msc4140.delay_id":`...)
		b = appendString(b, t.TxnID)
	}
	b, err := a.appendContext(b, r, e, v)
	if err != nil {
		return nil, err
	}
	if v.bundle && !v.because && v.nested < 2 {
		children, err := a.aggregated(r, e, v)
		if err != nil {
			return nil, err
		}
		if children != nil {
			raw, err := json.Marshal(children)
			if err != nil {
				return nil, err
			}
			b = append(b, `,"m.relations":`...)
			b = append(b, raw...)
		}
	}
	if e.RedactedBy != "" && !v.because {
		because, err := a.redactedBecause(r, e, v)
		if err != nil {
			return nil, err
		}
		if because != nil {
			b = append(b, `,"redacted_because":`...)
			b = append(b, because...)
		}
	}
	return append(b, '}'), nil
}

// redactedBecause writes out what has redacted the event; nil if that is not held, or the viewer may not see it: they had left by then.
func (a *API) redactedBecause(r *store.Reader, e *store.StoredEvent, v *viewer) (json.RawMessage, error) {
	because, err := r.Event(e.RedactedBy)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	see := v.service
	if err == nil && !see {
		see, err = a.Rooms.MaySeeUser(v.user, because)
	}
	if err != nil || !see {
		return nil, err
	}
	v.because = true // redactions of redactions may be chained without end
	defer func() { v.because = false }()
	return a.clientEvent(r, because, v)
}

// appendContext writes those parts of UnsignedData that follow from the room's state around the event.
func (a *API) appendContext(b []byte, r *store.Reader, e *store.StoredEvent, v *viewer) ([]byte, error) {
	if v.bare && e.Type() == "m.room.member" {
		return b, nil // thousands, each with a state of its own to look into
	}
	var membership string
	var err error
	if !v.service && !v.bare {
		if membership, err = v.membershipAt(r, e); err != nil {
			return nil, err
		}
	}
	if membership != "" {
		b = append(b, `,"membership":`...)
		b = appendString(b, membership)
	}
	id, err := replacedID(r, e)
	if err != nil || id == "" {
		return b, err
	}
	b = append(b, `,"replaces_state":`...)
	b = appendString(b, string(id))
	if v.bare {
		return b, nil
	}
	replaced, err := r.Event(id)
	if errors.Is(err, store.ErrNotFound) {
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	see := v.service
	if !see {
		see, err = a.Rooms.MaySeeUser(v.user, replaced)
	}
	if !see || err != nil {
		return b, err
	}
	shown, err := a.Rooms.ShownToUser(v.user, replaced)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"prev_content":`...)
	b = append(b, shown.Content()...)
	// Not in the spec: matrix-js-sdk finds by it who has invited the user to a direct chat, once they have joined.
	b = append(b, `,"prev_sender":`...)
	return appendString(b, string(replaced.Sender())), nil
}

// membershipAt is the viewer's membership after the event; "" where the state is not known.
func (v *viewer) membershipAt(r *store.Reader, e *store.StoredEvent) (string, error) {
	root := e.StateAfter
	if root == (eventgraph.Hash{}) {
		return "", nil
	}
	if m, ok := v.roots[root]; ok {
		return m, nil
	}
	m, err := v.membershipIn(r, root)
	if err == nil {
		v.roots[root] = m
	}
	return m, err
}

// membershipIn is the viewer's membership by the state at root; leave where there is none.
func (v *viewer) membershipIn(r *store.Reader, root eventgraph.Hash) (string, error) {
	id, ok, err := eventgraph.OpenTrie(r, root).Get(eventgraph.StateTuple{Type: "m.room.member", Key: string(v.user)})
	if err != nil {
		return "", err
	}
	if !ok {
		return "leave", nil
	}
	if m, ok := v.members[id]; ok {
		return m, nil
	}
	e, err := r.Event(id)
	if err != nil {
		return "", err
	}
	v.members[id] = e.Membership()
	return v.members[id], nil
}

// replacedState is the state event in whose place e stepped; nil if none is known.
func replacedState(r *store.Reader, e *store.StoredEvent) (*store.StoredEvent, error) {
	id, err := replacedID(r, e)
	if err != nil || id == "" {
		return nil, err
	}
	replaced, err := r.Event(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return replaced, err
}

// replacedID is the ID of the state event in whose place e stepped; "" if none is known.
func replacedID(r *store.Reader, e *store.StoredEvent) (eventgraph.EventID, error) {
	tuple, ok := e.Tuple()
	if !ok || e.StateBefore == (eventgraph.Hash{}) {
		return "", nil
	}
	id, ok, err := eventgraph.OpenTrie(r, e.StateBefore).Get(tuple)
	if err != nil || !ok || id == e.ID() {
		return "", err
	}
	return id, nil
}

// strippedEvent is the event as stripped state (CS API, Stripped state).
func strippedEvent(e *eventgraph.Event) json.RawMessage {
	b := make([]byte, 0, len(e.Content())+256)
	b = append(b, `{"content":`...)
	b = append(b, e.Content()...)
	b = append(b, `,"sender":`...)
	b = appendString(b, string(e.Sender()))
	key, _ := e.StateKey()
	b = append(b, `,"state_key":`...)
	b = appendString(b, key)
	b = append(b, `,"type":`...)
	b = appendString(b, e.Type())
	return append(b, '}')
}

// appendString appends s as a JSON string.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // of a string: never fails
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
