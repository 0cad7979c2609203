package eventgraph

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"

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

// Event is one PDU, immutable. It never carries "unsigned". Its fields are read once; content stays bytes. All that it
// refers to but its own ID is substrings of one string: who keeps one of those keeps them all.
type Event struct {
	version  RoomVersion
	id       EventID
	raw      []byte // canonical
	roomID   RoomID
	sender   UserID
	tuple    StateTuple // Key only where isState
	content  []byte     // within raw
	prev     []EventID
	auth     []EventID
	depth    int64
	ts       int64
	redacts  EventID
	member   string // content.membership
	isState  bool
	mismatch bool
	derived  atomic.Pointer[any]
}

// What lies on the stack while an event is read: enough for nearly all, and what is larger goes to the heap.
const (
	usualMembers    = 24
	usualSignatures = 4
	usualBytes      = 2048
)

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
	return parseCanonical(v, t, canonical)
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
	var usual [usualMembers]canonicaljson.Field
	members, err := canonicaljson.Fields(usual[:0], canonical)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrFormat, err)
	}
	redacted, err := t.appendRedacted(nil, typeOf(members), members, false)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrFormat, err)
	}
	return t.referenceID(redacted), nil
}

// typeOf the event with those members, "" if it has none.
func typeOf(members []canonicaljson.Field) string {
	for _, m := range members {
		if string(m.Name()) == "type" {
			return text(m.Value())
		}
	}
	return ""
}

// parseCanonical takes canonical bytes without "unsigned" and makes all the checks of ParseEvent.
func parseCanonical(v RoomVersion, t *Traits, canonical []byte) (*Event, error) {
	if len(canonical) > maxEvent {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(canonical), maxEvent)
	}
	var usual [usualMembers]canonicaljson.Field
	members, err := canonicaljson.Fields(usual[:0], canonical)
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
	var space [usualBytes]byte
	redacted, err := t.appendRedacted(space[:0], e.tuple.Type, members, false)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	e.setID(t.referenceID(redacted))
	var claimed [64]byte
	if ok, err := hashFits(claimed[:0], members); err != nil {
		return nil, err
	} else if ok {
		return e, nil
	}
	r := e.Redact()
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
	e := &Event{version: v, raw: raw}
	if err := e.readRaw(t); err != nil {
		return nil, fmt.Errorf("stored event %s: %w", id, err)
	}
	e.setID(id)
	return e, nil
}

func traitsOf(v RoomVersion) (*Traits, error) {
	t := v.row()
	if t == nil {
		return nil, fmt.Errorf("%w: room version %.20q is not supported", ErrFormat, v)
	}
	return t, nil
}

// readRaw sets the fields from raw.
func (e *Event) readRaw(t *Traits) error {
	var usual [usualMembers]canonicaljson.Field
	members, err := canonicaljson.Fields(usual[:0], e.raw)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrFormat, err)
	}
	return e.read(t, members)
}

// read sets the fields from the top-level members. It checks the types that it needs, not the grammar.
func (e *Event) read(t *Traits, members []canonicaljson.Field) error {
	var v struct{ typ, stateKey, sender, room, hashes, prev, auth, depth, ts, redacts []byte }
	for _, m := range members {
		ok := true
		switch string(m.Name()) {
		case "type":
			v.typ, ok = m.Value(), isString(m.Value())
		case "state_key":
			v.stateKey, ok = m.Value(), isString(m.Value())
			e.isState = ok
		case "sender":
			v.sender, ok = m.Value(), isString(m.Value())
		case "room_id":
			v.room, ok = m.Value(), isString(m.Value())
		case "content":
			e.content, ok = m.Value(), canonicaljson.IsObject(m.Value())
		case "hashes":
			v.hashes, ok = m.Value(), canonicaljson.IsObject(m.Value())
		case "prev_events":
			v.prev = m.Value()
		case "auth_events":
			v.auth = m.Value()
		case "depth":
			v.depth = m.Value()
			e.depth, ok = canonicaljson.Int64(m.Value())
		case "origin_server_ts":
			v.ts = m.Value()
			e.ts, ok = canonicaljson.Int64(m.Value())
		case "redacts":
			v.redacts = m.Value()
		}
		if !ok {
			return fmt.Errorf("%w: %s is of the wrong type", ErrFormat, m.Name())
		}
	}
	for _, required := range [][]byte{v.typ, v.sender, e.content, v.hashes, v.prev, v.auth, v.depth, v.ts} {
		if required == nil {
			return fmt.Errorf("%w: a required field is absent", ErrFormat)
		}
	}
	if err := e.readStrings(v.typ, v.stateKey, v.sender, v.room, v.prev, v.auth); err != nil {
		return err
	}
	if v.room == nil && !(t.RoomIDFromCreate && e.tuple == StateTuple{Type: "m.room.create"} && e.isState) {
		return fmt.Errorf("%w: room_id is absent", ErrFormat)
	}
	switch e.tuple.Type {
	case "m.room.member":
		e.member = membership(e.content)
	case "m.room.redaction":
		if t.RedactsInContent {
			v.redacts, _ = canonicaljson.Get(e.content, "redacts")
		}
		if id, err := ParseEventID(text(v.redacts)); err == nil {
			e.redacts = id
		}
	}
	return nil
}

// readStrings decodes the fields that are strings into one, and cuts that.
func (e *Event) readStrings(typ, stateKey, sender, room, prev, auth []byte) error {
	var usual [4 + maxPrevEvents + maxAuthEvents][]byte
	values, ok := canonicaljson.AppendElements(append(usual[:0], typ, stateKey, sender, room), prev)
	if !ok {
		return fmt.Errorf("%w: prev_events is of the wrong type", ErrFormat)
	}
	firstAuth := len(values)
	if values, ok = canonicaljson.AppendElements(values, auth); !ok {
		return fmt.Errorf("%w: auth_events is of the wrong type", ErrFormat)
	}
	var space [usualBytes]byte
	var usualEnds [len(usual)]int
	all, ends := space[:0], usualEnds[:0]
	for i, value := range values {
		if i < 4 && value == nil {
			ends = append(ends, len(all)) // absent
			continue
		}
		if all, ok = canonicaljson.AppendText(all, value); !ok {
			return fmt.Errorf("%w: prev_events or auth_events hold what is no string", ErrFormat)
		}
		ends = append(ends, len(all))
	}
	rest, from := string(all), 0
	cut := func(i int) string {
		start := from
		from = ends[i]
		return rest[start:from]
	}
	e.tuple.Type, e.tuple.Key, e.sender, e.roomID = cut(0), cut(1), UserID(cut(2)), RoomID(cut(3))
	ids := make([]EventID, len(values)-4)
	for i := range ids {
		ids[i] = EventID(cut(4 + i))
	}
	firstAuth -= 4
	e.prev, e.auth = ids[:firstAuth:firstAuth], ids[firstAuth:]
	return nil
}

// membership is content.membership, "" if it is no string.
func membership(content []byte) string {
	value, _ := canonicaljson.Get(content, "membership")
	for _, known := range [...]string{"join", "leave", "invite", "ban", "knock"} {
		if len(value) == len(known)+2 && string(value[1:len(value)-1]) == known && isString(value) {
			return known // no string of its own
		}
	}
	return text(value)
}

func isString(value []byte) bool { return len(value) > 0 && value[0] == '"' }

// text is the string that value is, else "".
func text(value []byte) string {
	s, _ := canonicaljson.String(value)
	return s
}

// checkFormat checks limits and grammar (room versions, Event format; CS API, Size limits).
func (e *Event) checkFormat(t *Traits, members []canonicaljson.Field) error {
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
	for _, ids := range [...][]EventID{e.prev, e.auth} {
		for _, id := range ids {
			if !isHashID(string(id), '$', t.idEncoding()) {
				return fmt.Errorf("%w: refers to %.80q, which is no event ID of this room version", ErrFormat, id)
			}
		}
	}
	for _, m := range members {
		if string(m.Name()) == "signatures" {
			return checkSignatures(m.Value())
		}
	}
	return fmt.Errorf("%w: signatures are absent", ErrFormat)
}

// checkRoomID: up to version 11 with a server name, from version 12 the create event's hash.
func (t *Traits) checkRoomID(id RoomID) error {
	if t.RoomIDFromCreate {
		if !isHashID(string(id), '!', urlSafeIDs) {
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
	var space, spaceKeys [usualSignatures]canonicaljson.Field
	servers, err := canonicaljson.Fields(space[:0], signatures)
	if err != nil {
		return fmt.Errorf("%w: signatures are not an object", ErrFormat)
	}
	keys := spaceKeys[:0]
	for _, s := range servers {
		if keys, err = canonicaljson.Fields(keys[:0], s.Value()); err != nil {
			return fmt.Errorf("%w: signatures of %.80q are not an object", ErrFormat, s.Name())
		}
		for _, k := range keys {
			if !isString(k.Value()) {
				return fmt.Errorf("%w: signature %.80q is not a string", ErrFormat, k.Name())
			}
		}
	}
	return nil
}

// contentHash covers all but "unsigned", "signatures" and "hashes" (SS API, Calculating the content hash).
func contentHash(members []canonicaljson.Field) [32]byte {
	var space [usualBytes]byte
	covered := append(space[:0], '{')
	for _, m := range members {
		switch string(m.Name()) {
		case "signatures", "hashes", "unsigned":
		default:
			covered = append(append(covered, m.Text...), ',')
		}
	}
	return sha256.Sum256(closeObject(covered))
}

// hashFits says whether hashes.sha256 is the content hash. dst is space for what it claims.
func hashFits(dst []byte, members []canonicaljson.Field) (bool, error) {
	var value []byte
	for _, m := range members {
		if string(m.Name()) == "hashes" {
			value, _ = canonicaljson.Get(m.Value(), "sha256")
		}
	}
	var space [64]byte
	encoded, ok := canonicaljson.AppendText(space[:0], value)
	if !ok {
		return false, fmt.Errorf("%w: hashes.sha256 is absent", ErrFormat)
	}
	claimed, err := base64.RawStdEncoding.AppendDecode(dst, bytes.TrimRight(encoded, "="))
	if err != nil {
		return false, fmt.Errorf("%w: hashes.sha256 is not base64", ErrFormat)
	}
	actual := contentHash(members)
	return string(claimed) == string(actual[:]), nil
}

// decodeBase64 takes it with and without padding (appendices, Unpadded Base64).
func decodeBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

func encodeBase64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// referenceID is the event ID that is the hash of those bytes (room versions 4, Event IDs).
func (t *Traits) referenceID(signed []byte) EventID {
	h := sha256.Sum256(signed)
	var id [44]byte
	id[0] = '$'
	t.idEncoding().Encode(id[1:], h[:])
	return EventID(id[:])
}

// setID: from version 12 the room's ID is the create event's.
func (e *Event) setID(id EventID) {
	e.id = id
	if e.roomID == "" {
		e.roomID = RoomID("!" + strings.TrimPrefix(string(id), "$"))
	}
}

// withRaw is the same event, by ID, with other bytes.
func (e *Event) withRaw(raw []byte) (*Event, error) {
	r := &Event{version: e.version, raw: raw, mismatch: e.mismatch}
	if err := r.readRaw(e.version.row()); err != nil {
		return nil, err
	}
	r.id, r.roomID = e.id, e.roomID
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

// Derived returns what derive made of the event when it was first asked for, and keeps that as long as the event: package
// auth keeps here what its rules read from create events, power levels and join rules, of which one is asked for each
// event of a room. derive must be a function of the event alone, and its result must not change. There is one such place
// on an event, for one caller. It may be called by many at a time: then derive may run more than once, and all get the
// same result.
func (e *Event) Derived(derive func(*Event) any) any {
	if kept := e.derived.Load(); kept != nil {
		return *kept
	}
	made := derive(e)
	if !e.derived.CompareAndSwap(nil, &made) {
		return *e.derived.Load()
	}
	return made
}

// Redact returns the event reduced as its room version's redaction rules say; same ID.
func (e *Event) Redact() *Event {
	var space [usualBytes]byte
	r, err := e.withRaw(bytes.Clone(e.redacted(space[:0], true)))
	if err != nil {
		panic("eventgraph: redaction of " + string(e.id) + " dropped a required field")
	}
	return r
}

// redacted appends the redacted form to dst. Every Event was made from bytes that have one.
func (e *Event) redacted(dst []byte, signatures bool) []byte {
	var usual [usualMembers]canonicaljson.Field
	members, err := canonicaljson.Fields(usual[:0], e.raw)
	if err == nil {
		dst, err = e.version.row().appendRedacted(dst, e.tuple.Type, members, signatures)
	}
	if err != nil {
		panic("eventgraph: event " + string(e.id) + " was parsed and is not an object, or its content is not")
	}
	return dst
}
