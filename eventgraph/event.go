package eventgraph

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

const (
	// maxEvent bounds an event in canonical JSON with its signatures, without "unsigned" (CS API, Size limits).
	maxEvent = 65536
	// maxRawEvent bounds what is parsed at all: spaces, escapes and "unsigned" go before maxEvent is looked at.
	// An escape takes six bytes for one.
	maxRawEvent = 8 * maxEvent
	// maxField bounds type and state_key, in bytes (CS API, Size limits).
	maxField = 255
	// maxPrevEvents and maxAuthEvents: room versions, Event format.
	maxPrevEvents = 20
	maxAuthEvents = 10
)

// StateTuple keys room state: event type and state key.
type StateTuple struct{ Type, Key string }

// Event is one PDU, immutable. It never carries "unsigned". Its fields are read once; content stays bytes.
type Event struct {
	version  RoomVersion
	id       EventID
	raw      []byte // canonical
	roomID   RoomID
	sender   UserID
	tuple    StateTuple // Key only where isState
	isState  bool
	content  []byte // within raw
	hashes   []byte // within raw
	prev     []EventID
	auth     []EventID
	depth    int64
	ts       int64
	redacts  EventID
	member   string // content.membership
	mismatch bool
}

// ParseEvent parses a PDU from a peer: limits, format, content hash, and from the reference hash its
// ID. "unsigned" is dropped. With a wrong content hash the result is the redacted event and
// HashMismatch is true (SS API, checks on receipt of a PDU, step 3). Signatures are not checked.
// Errors wrap ErrTooLarge or ErrFormat.
func ParseEvent(v RoomVersion, raw []byte) (*Event, error) {
	t, err := traitsOf(v)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxRawEvent {
		return nil, fmt.Errorf("%w: %d bytes before parsing", ErrTooLarge, len(raw))
	}
	canonical, err := canonicaljson.CanonicalizeWithout(raw, t.jsonRules(), "unsigned")
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	return parseCanonical(v, &t, canonical)
}

// ReferenceID is the ID of an event that ParseEvent refuses, so that the refusal can be told under it (SS API, Transactions): the hash of
// its redacted form, whatever its size and fields. It fails where there is no such form: not a JSON object, or without a type.
func ReferenceID(v RoomVersion, raw []byte) (EventID, error) {
	t, err := traitsOf(v)
	if err != nil {
		return "", err
	}
	canonical, err := canonicaljson.CanonicalizeWithout(raw, t.jsonRules(), "unsigned")
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrFormat, err)
	}
	members, err := canonicaljson.Split(canonical)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrFormat, err)
	}
	var e Event
	for _, m := range members {
		if m.Key == "type" {
			e.tuple.Type = text(m.Value)
		}
	}
	redacted, err := t.redactMembers(e.tuple.Type, members)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrFormat, err)
	}
	e.setID(&t, redacted)
	return e.id, nil
}

// parseCanonical takes canonical bytes without "unsigned" and makes all the checks of ParseEvent.
func parseCanonical(v RoomVersion, t *Traits, canonical []byte) (*Event, error) {
	if len(canonical) > maxEvent {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(canonical), maxEvent)
	}
	members, err := canonicaljson.Split(canonical)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	e := &Event{version: v, raw: canonical}
	if err := e.read(t, members); err != nil {
		return nil, err
	}
	if err := e.checkFormat(t, members); err != nil {
		return nil, err
	}
	redacted, err := t.redactMembers(e.tuple.Type, members)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	e.setID(t, redacted)
	claimed, err := contentHashOf(e.hashes)
	if err != nil {
		return nil, err
	}
	actual := contentHash(members)
	if string(claimed) == string(actual[:]) {
		return e, nil
	}
	r, err := e.withMembers(t, redacted)
	if err != nil {
		return nil, err
	}
	r.mismatch = true
	return r, nil
}

// LoadEvent takes bytes that Raw gave, from our own disk, without checking them again, and keeps them. HashMismatch of the
// result is false: redaction changes content rightly too, so whoever stores an event keeps that mark beside it.
func LoadEvent(v RoomVersion, id EventID, raw []byte) (*Event, error) {
	t, err := traitsOf(v)
	if err != nil {
		return nil, err
	}
	members, err := canonicaljson.Split(raw)
	if err != nil {
		return nil, fmt.Errorf("stored event %s: %w: %v", id, ErrFormat, err)
	}
	e := &Event{version: v, id: id, raw: raw}
	if err := e.read(&t, members); err != nil {
		return nil, fmt.Errorf("stored event %s: %w", id, err)
	}
	if e.roomID == "" {
		e.roomID = RoomID("!" + strings.TrimPrefix(string(id), "$"))
	}
	return e, nil
}

func traitsOf(v RoomVersion) (Traits, error) {
	t, ok := v.Traits()
	if !ok {
		return t, fmt.Errorf("%w: room version %.20q is not supported", ErrFormat, v)
	}
	return t, nil
}

// read sets the fields from the top-level members. It checks the types that it needs, not the grammar.
func (e *Event) read(t *Traits, members []canonicaljson.Member) error {
	var have struct{ typ, sender, room, content, hashes, prev, auth, depth, ts bool }
	var redacts []byte
	ok := true
	for _, m := range members {
		var s string
		switch m.Key {
		case "type":
			e.tuple.Type, ok = canonicaljson.String(m.Value)
			have.typ = ok
		case "state_key":
			e.tuple.Key, ok = canonicaljson.String(m.Value)
			e.isState = ok
		case "sender":
			s, ok = canonicaljson.String(m.Value)
			e.sender, have.sender = UserID(s), ok
		case "room_id":
			s, ok = canonicaljson.String(m.Value)
			e.roomID, have.room = RoomID(s), ok
		case "content":
			e.content, ok = m.Value, canonicaljson.IsObject(m.Value)
			have.content = ok
		case "hashes":
			e.hashes, ok = m.Value, canonicaljson.IsObject(m.Value)
			have.hashes = ok
		case "prev_events":
			e.prev, ok = eventIDs(m.Value)
			have.prev = ok
		case "auth_events":
			e.auth, ok = eventIDs(m.Value)
			have.auth = ok
		case "depth":
			e.depth, ok = canonicaljson.Int64(m.Value)
			have.depth = ok
		case "origin_server_ts":
			e.ts, ok = canonicaljson.Int64(m.Value)
			have.ts = ok
		case "redacts":
			redacts = m.Value
		}
		if !ok {
			return fmt.Errorf("%w: %s is of the wrong type", ErrFormat, m.Key)
		}
	}
	if !have.typ || !have.sender || !have.content || !have.hashes || !have.prev || !have.auth || !have.depth || !have.ts {
		return fmt.Errorf("%w: a required field is absent", ErrFormat)
	}
	if !have.room && !(t.RoomIDFromCreate && e.tuple == StateTuple{Type: "m.room.create"} && e.isState) {
		return fmt.Errorf("%w: room_id is absent", ErrFormat)
	}
	switch e.tuple.Type {
	case "m.room.member":
		e.member, _ = canonicaljson.GetString(e.content, "membership")
	case "m.room.redaction":
		if t.RedactsInContent {
			redacts, _ = canonicaljson.Get(e.content, "redacts")
		}
		if id, err := ParseEventID(text(redacts)); err == nil {
			e.redacts = id
		}
	}
	return nil
}

// text is the string that value is, else "".
func text(value []byte) string {
	s, _ := canonicaljson.String(value)
	return s
}

func eventIDs(array []byte) ([]EventID, bool) {
	elements, ok := canonicaljson.Elements(array)
	if !ok {
		return nil, false
	}
	ids := make([]EventID, len(elements))
	for i, el := range elements {
		s, ok := canonicaljson.String(el)
		if !ok {
			return nil, false
		}
		ids[i] = EventID(s)
	}
	return ids, true
}

// checkFormat checks limits and grammar (room versions, Event format; CS API, Size limits).
func (e *Event) checkFormat(t *Traits, members []canonicaljson.Member) error {
	switch {
	case len(e.tuple.Type) > maxField:
		return fmt.Errorf("%w: type of %d bytes", ErrTooLarge, len(e.tuple.Type))
	case len(e.tuple.Key) > maxField:
		return fmt.Errorf("%w: state_key of %d bytes", ErrTooLarge, len(e.tuple.Key))
	case len(e.sender) > maxID:
		return fmt.Errorf("%w: sender of %d bytes", ErrTooLarge, len(e.sender))
	case len(e.roomID) > maxID:
		return fmt.Errorf("%w: room_id of %d bytes", ErrTooLarge, len(e.roomID))
	case len(e.prev) > maxPrevEvents:
		return fmt.Errorf("%w: %d prev_events, the limit is %d", ErrFormat, len(e.prev), maxPrevEvents)
	case len(e.auth) > maxAuthEvents:
		return fmt.Errorf("%w: %d auth_events, the limit is %d", ErrFormat, len(e.auth), maxAuthEvents)
	case e.depth < 0:
		return fmt.Errorf("%w: depth %d", ErrFormat, e.depth)
	}
	if _, err := ParseUserID(string(e.sender)); err != nil {
		return fmt.Errorf("%w: sender: %v", ErrFormat, err)
	}
	if e.roomID != "" || !t.RoomIDFromCreate {
		if err := t.checkRoomID(e.roomID); err != nil {
			return err
		}
	}
	for _, id := range slices.Concat(e.prev, e.auth) {
		if !isHashID(string(id), '$', t.idEncoding()) {
			return fmt.Errorf("%w: refers to %.80q, which is no event ID of this room version", ErrFormat, id)
		}
	}
	for _, m := range members {
		if m.Key == "signatures" {
			return checkSignatures(m.Value)
		}
	}
	return fmt.Errorf("%w: signatures are absent", ErrFormat)
}

// checkRoomID: up to version 11 with a server name, from version 12 the create event's hash.
func (t *Traits) checkRoomID(id RoomID) error {
	if t.RoomIDFromCreate {
		if !isHashID(string(id), '!', base64.RawURLEncoding) {
			return fmt.Errorf("%w: room_id %.80q is not a create event's hash", ErrFormat, id)
		}
		return nil
	}
	if err := checkID(string(id), '!'); err != nil {
		return fmt.Errorf("%w: room_id %.80q %v", ErrFormat, id, err)
	}
	return nil
}

// checkSignatures: an object of objects of strings.
func checkSignatures(signatures []byte) error {
	servers, err := canonicaljson.Split(signatures)
	if err != nil {
		return fmt.Errorf("%w: signatures are not an object", ErrFormat)
	}
	for _, s := range servers {
		keys, err := canonicaljson.Split(s.Value)
		if err != nil {
			return fmt.Errorf("%w: signatures of %.80q are not an object", ErrFormat, s.Key)
		}
		for _, k := range keys {
			if _, ok := canonicaljson.String(k.Value); !ok {
				return fmt.Errorf("%w: signature %.80q is not a string", ErrFormat, k.Key)
			}
		}
	}
	return nil
}

// contentHash covers all but "unsigned", "signatures" and "hashes" (SS API, Calculating the content hash).
func contentHash(members []canonicaljson.Member) [32]byte {
	covered := make([]canonicaljson.Member, 0, len(members))
	for _, m := range members {
		if m.Key != "signatures" && m.Key != "hashes" && m.Key != "unsigned" {
			covered = append(covered, m)
		}
	}
	return sha256.Sum256(canonicaljson.Join(covered))
}

// contentHashOf decodes hashes.sha256.
func contentHashOf(hashes []byte) ([]byte, error) {
	s, ok := canonicaljson.GetString(hashes, "sha256")
	if !ok {
		return nil, fmt.Errorf("%w: hashes.sha256 is absent", ErrFormat)
	}
	h, err := decodeBase64(s)
	if err != nil {
		return nil, fmt.Errorf("%w: hashes.sha256 is not base64", ErrFormat)
	}
	return h, nil
}

// decodeBase64 takes it with and without padding (appendices, Unpadded Base64).
func decodeBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

func encodeBase64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// signedBytes of the members of a redacted event: what signatures cover, and the reference hash too.
func signedBytes(redacted []canonicaljson.Member) []byte {
	covered := make([]canonicaljson.Member, 0, len(redacted))
	for _, m := range redacted {
		if m.Key != "signatures" && m.Key != "unsigned" {
			covered = append(covered, m)
		}
	}
	return canonicaljson.Join(covered)
}

// setID: the ID is the reference hash, and from version 12 the room's ID is the create event's.
func (e *Event) setID(t *Traits, redacted []canonicaljson.Member) {
	h := sha256.Sum256(signedBytes(redacted))
	e.id = EventID("$" + t.idEncoding().EncodeToString(h[:]))
	if e.roomID == "" {
		e.roomID = RoomID("!" + string(e.id[1:]))
	}
}

// withMembers is the same event, by ID, with other members.
func (e *Event) withMembers(t *Traits, members []canonicaljson.Member) (*Event, error) {
	r := &Event{version: e.version, id: e.id, raw: canonicaljson.Join(members), mismatch: e.mismatch}
	// The fields are read anew, for they are slices of raw.
	members, err := canonicaljson.Split(r.raw)
	if err != nil {
		return nil, err
	}
	if err := r.read(t, members); err != nil {
		return nil, err
	}
	r.roomID = e.roomID
	return r, nil
}

func (e *Event) ID() EventID          { return e.id }
func (e *Event) Version() RoomVersion { return e.version }

// RoomID of a create event of version 12 is made of its own ID; a create event that claims another
// has that one here, and the authorization rules reject it.
func (e *Event) RoomID() RoomID { return e.roomID }
func (e *Event) Type() string   { return e.tuple.Type }

// StateKey is false for events that are not state.
func (e *Event) StateKey() (string, bool) { return e.tuple.Key, e.isState }

// Tuple is false for events that are not state.
func (e *Event) Tuple() (StateTuple, bool) { return e.tuple, e.isState }
func (e *Event) Sender() UserID            { return e.sender }

// Content is canonical JSON, an object. The caller must not change it.
func (e *Event) Content() json.RawMessage { return e.content }

// PrevEvents and AuthEvents are not the caller's to change.
func (e *Event) PrevEvents() []EventID { return e.prev }
func (e *Event) AuthEvents() []EventID { return e.auth }
func (e *Event) Depth() int64          { return e.depth }

// OriginServerTS is in ms as its sender claims, and may be negative.
func (e *Event) OriginServerTS() int64 { return e.ts }

// Redacts is what an m.room.redaction names, at the top level or in content by version; "" if nothing.
func (e *Event) Redacts() EventID { return e.redacts }

// HashMismatch: it came with content that its hash does not cover, and is redacted therefore.
func (e *Event) HashMismatch() bool { return e.mismatch }

// Raw is the event as sent to peers: canonical JSON with signatures, without "unsigned". The caller must not change it.
func (e *Event) Raw() []byte { return e.raw }

// Membership is content.membership of an m.room.member, else "".
func (e *Event) Membership() string { return e.member }

// Redact returns the event reduced as its room version's redaction rules say; same ID.
func (e *Event) Redact() *Event {
	t, members := e.split()
	redacted, err := t.redactMembers(e.tuple.Type, members)
	if err != nil {
		panic("eventgraph: content of " + string(e.id) + " was parsed and is not an object")
	}
	r, err := e.withMembers(t, redacted)
	if err != nil {
		panic("eventgraph: redaction of " + string(e.id) + " dropped a required field")
	}
	return r
}

// split returns the top-level members. Every Event was made from bytes that split.
func (e *Event) split() (*Traits, []canonicaljson.Member) {
	t, _ := e.version.Traits()
	members, err := canonicaljson.Split(e.raw)
	if err != nil {
		panic("eventgraph: event " + string(e.id) + " was parsed and is not an object")
	}
	return &t, members
}
