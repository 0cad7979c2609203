package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Verdict is what Accept found (design.md §3.1).
type Verdict uint8

const (
	Accepted   Verdict = iota + 1
	SoftFailed         // allowed where it stands, refused by the current state: never shown, not an extremity
	Rejected           // refused by the auth rules
	Outlier            // signature, hash and auth events checked; its place is not known yet
)

// StoredEvent is an event and what we know of it.
type StoredEvent struct {
	*eventgraph.Event
	Verdict     Verdict
	StateBefore eventgraph.Hash // zero for outliers
	StateAfter  eventgraph.Hash
	RoomState   eventgraph.Hash    // the room's resolved state once this event was taken in; zero unless it has a Position
	Order       int64              // place in the room's local topological order; backfill grows downwards; 0 for outliers
	Position    Position           // of its ChangeEvent; 0 if none (backfilled, rejected, outlier)
	Gap         bool               // its prev_events were not to be had when it was taken in: the state before it is a claim, until they give the same
	RedactedBy  eventgraph.EventID // the event is served redacted
	SentBy      *ClientTxn         // sent by a local client: for unsigned.transaction_id
	ReceivedTS  int64              // ms
	Height      uint32             // in the auth graph: the length of the longest path of auth_events from it
	Aside       bool               // accepted, with an Order, but was no extremity of the room, as the past never was, or had to go for others: what it rests on may be some still
	Purged      bool               // its content has been removed here: Event is what redaction leaves, for the graph's sake, and is shown to nobody
	Related     Relation           // what is kept (Relation.Kept) of what it related to before it was redacted: shown to nobody, but whose message it was had read what is before it

	mismatched *eventgraph.Event // Event, if its record has the mark of a wrong content hash: the bytes alone do not show it
}

// HashMismatch says that the event came with a wrong content hash: it is held redacted, until a right copy comes.
func (e *StoredEvent) HashMismatch() bool {
	return e.mismatched == e.Event || e.Event.HashMismatch()
}

// Shown is the event as anybody but the authorization rules may see it: the record of one that has been redacted keeps more than that
// (eventgraph.Event.RedactKeepingRules).
func (e *StoredEvent) Shown() *eventgraph.Event {
	if e.RedactedBy != "" {
		return e.Redact()
	}
	return e.Event
}

// ClientTxn is a client's transaction ID, in the scope of its device (CS API, Transaction identifiers).
type ClientTxn struct {
	User      eventgraph.UserID
	Device    DeviceID
	CreatedTS int64 // of the device: the IDs of an earlier one with its name do not count; not kept with events
	TxnID     string
}

// An event record is
//
//	format byte, verdict byte, flags byte,
//	room version string, order varint, position uvarint, received varint, height uvarint,
//	[state before hash], [state after hash], [room state hash], [redacted by string], [relation: rel_type, parent strings],
//	[user (empty: the sender), device, txn ID strings],
//	the event as JSON to the end
//
// where the parts in brackets are there if their flag is set.
const eventFormat = 1

const (
	flagGap        = 1 << iota
	flagState      // state before is not the empty one
	flagStateAfter // state after differs from state before
	flagRedacted   // by RedactedBy
	flagSentBy     // a local client
	flagMismatch   // HashMismatch
	flagRoomAfter  // room state is state after: no hash of its own
	flagRoomState  // room state is another
)

const eventHeaderSize = 3

// Marks in a verdict byte: the flags are all in use.
const (
	purgedMark  = 0x80 // of a purged event, in tableOrder too
	relatedMark = 0x40 // the record has Related
	asideMark   = 0x20
)

func (e *StoredEvent) verdictByte() byte {
	if e.Purged {
		return byte(e.Verdict) | purgedMark
	}
	return byte(e.Verdict)
}

func verdictOf(b byte) Verdict { return Verdict(b &^ (purgedMark | relatedMark | asideMark)) }

func (e *StoredEvent) encode() []byte {
	raw := e.Raw()
	b := make([]byte, eventHeaderSize, len(raw)+200)
	b[0], b[1] = eventFormat, e.verdictByte()
	if e.Aside {
		b[1] |= asideMark
	}
	set := func(on bool, flag byte) bool {
		if on {
			b[2] |= flag
		}
		return on
	}
	set(e.Gap, flagGap)
	set(e.HashMismatch(), flagMismatch)
	b = appendString(b, string(e.Version()))
	b = binary.AppendVarint(b, e.Order)
	b = binary.AppendUvarint(b, uint64(e.Position))
	b = binary.AppendVarint(b, e.ReceivedTS)
	b = binary.AppendUvarint(b, uint64(e.Height))
	if set(e.StateBefore != eventgraph.Hash{}, flagState) {
		b = append(b, e.StateBefore[:]...)
	}
	if set(e.StateAfter != e.StateBefore, flagStateAfter) {
		b = append(b, e.StateAfter[:]...)
	}
	if !set(e.RoomState == e.StateAfter, flagRoomAfter) && set(e.RoomState != eventgraph.Hash{}, flagRoomState) {
		b = append(b, e.RoomState[:]...)
	}
	if set(e.RedactedBy != "", flagRedacted) {
		b = appendString(b, string(e.RedactedBy))
	}
	if e.Related != (Relation{}) {
		b[1] |= relatedMark
		b = appendString(appendString(b, e.Related.Type), string(e.Related.Parent))
	}
	if set(e.SentBy != nil, flagSentBy) {
		user := e.SentBy.User
		if user == e.Sender() {
			user = "" // else half of what stands before the event
		}
		b = appendString(b, string(user))
		b = appendString(b, string(e.SentBy.Device))
		b = appendString(b, e.SentBy.TxnID)
	}
	return append(b, raw...)
}

// decodeEventHeader reads what stands before the event itself, which rest is.
func decodeEventHeader(record []byte) (e *StoredEvent, rest eventRest, err error) {
	f := fieldReader{rest: record}
	if format := f.byte(); format != eventFormat {
		return nil, rest, fmt.Errorf("event record of format %d", format)
	}
	verdict := f.byte()
	e = &StoredEvent{Verdict: verdictOf(verdict), Aside: verdict&asideMark != 0, Purged: verdict&purgedMark != 0}
	flags := f.byte()
	rest.version = eventgraph.RoomVersion(f.string())
	e.Order = f.varint()
	e.Position = Position(f.uvarint())
	e.ReceivedTS = f.varint()
	e.Height = uint32(f.uvarint())
	e.Gap = flags&flagGap != 0
	rest.mismatch = flags&flagMismatch != 0
	if flags&flagState != 0 {
		e.StateBefore = f.hash()
	}
	e.StateAfter = e.StateBefore
	if flags&flagStateAfter != 0 {
		e.StateAfter = f.hash()
	}
	switch {
	case flags&flagRoomAfter != 0:
		e.RoomState = e.StateAfter
	case flags&flagRoomState != 0:
		e.RoomState = f.hash()
	}
	if flags&flagRedacted != 0 {
		e.RedactedBy = eventgraph.EventID(f.string())
	}
	if verdict&relatedMark != 0 {
		e.Related = Relation{Type: f.string(), Parent: eventgraph.EventID(f.string())}.Kept()
	}
	if flags&flagSentBy != 0 {
		e.SentBy = &ClientTxn{User: eventgraph.UserID(f.string()), Device: DeviceID(f.string()), TxnID: f.string()}
	}
	rest.raw = f.rest
	return e, rest, f.err
}

// eventRest is what makes the Event of a StoredEvent.
type eventRest struct {
	version  eventgraph.RoomVersion
	mismatch bool
	raw      []byte // the record's
}

func decodeEvent(id eventgraph.EventID, record []byte) (*StoredEvent, error) {
	e, rest, err := decodeEventHeader(record)
	if err == nil {
		e.Event, err = eventgraph.LoadEvent(rest.version, id, bytes.Clone(rest.raw))
	}
	if err != nil {
		return nil, fmt.Errorf("event %s in the store: %w", id, err)
	}
	if rest.mismatch {
		e.mismatched = e.Event
	}
	if e.SentBy != nil && e.SentBy.User == "" {
		e.SentBy.User = e.Sender()
	}
	return e, nil
}

func eventKey(id eventgraph.EventID) dbKey { return key(tableEvent).str(string(id)) }

// Event reads an event in whatever verdict; ErrNotFound. The StoredEvent is the caller's.
func (r *Reader) Event(id eventgraph.EventID) (*StoredEvent, error) {
	k := eventKey(id)
	pending := r.pending != nil && r.pending.has(k)
	if pending {
		if e := r.pending.event(id); e != nil {
			return e, nil
		}
	} else if e := r.s.events.get(id, r.ts); e != nil {
		return e, nil
	}
	var e *StoredEvent
	err := r.read(k, func(v []byte) (err error) { e, err = decodeEvent(id, v); return err })
	if err != nil {
		return nil, err
	}
	if !pending {
		r.s.events.put(e, r.ts)
	}
	return e, nil
}

// HasEvent says whether the event is held, and in which verdict.
func (r *Reader) HasEvent(id eventgraph.EventID) (Verdict, bool, error) {
	var v Verdict
	err := r.read(eventKey(id), func(record []byte) error {
		if len(record) < eventHeaderSize {
			return errCutOff
		}
		v = verdictOf(record[1])
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	return v, err == nil, err
}

// PutEvent writes or replaces the event's record, its order index entry (Order != 0), edges from prev_events, what
// CitedBy reads, and its relation index entry (m.relates_to); a segment over its place goes (segments.go). It does not Log.
func (tx *Tx) PutEvent(e *StoredEvent) error {
	id := e.ID()
	old, err := tx.Event(id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if old != nil {
		if err := tx.unindexEvent(old); err != nil {
			return err
		}
	}
	if err := tx.said(old, e); err != nil {
		return err
	}
	if err := tx.pending.putEvent(e); err != nil {
		return err
	}
	if e.Order != 0 {
		k := key(tableOrder).str(string(e.RoomID())).i64(e.Order)
		if err := tx.put(k, append([]byte{e.verdictByte()}, id...)); err != nil {
			return err
		}
	}
	if rel, ok := relationOf(e); ok {
		if err := tx.put(rel.key(e), rel.value(e)); err != nil {
			return err
		}
		if rel.Type == threadRelation {
			if err := tx.put(threadKey(e), []byte(rel.Parent)); err != nil {
				return err
			}
		}
	}
	if err := tx.putCiting(e, old != nil); err != nil {
		return err
	}
	if old != nil { // the edges are part of what the ID covers
		return nil
	}
	for _, parent := range e.PrevEvents() {
		if err := tx.put(key(tableEdge).str(string(parent)).str(string(id)), nil); err != nil {
			return err
		}
	}
	return nil
}

// putCiting writes what CitedBy reads of an event that is put, for the first time or again. Beside state events there are others in
// auth chains, wrong as it is to cite them. They are written when they are cited, but those that cite such an event at once; so
// however many stand in a row, little is written at a time. An event is put after those that it cites (before it has a place it may
// be otherwise), as its height is counted from theirs.
func (tx *Tx) putCiting(e *StoredEvent, again bool) error {
	_, isState := e.Tuple()
	needed := isState && !again
	for _, id := range e.AuthEvents() {
		cited, err := tx.Event(id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if _, ok := cited.Tuple(); ok {
			continue
		}
		if err := tx.cite(cited.Event); err != nil {
			return err
		}
		needed = true
	}
	if !needed {
		return nil
	}
	return tx.cite(e.Event)
}

func (tx *Tx) cite(e *eventgraph.Event) error {
	for _, id := range e.AuthEvents() {
		if err := tx.put(citedByKey(id).id(e.ID()), nil); err != nil {
			return err
		}
	}
	return nil
}

func citedByKey(id eventgraph.EventID) dbKey { return key(tableCitedBy).id(id) }

// unindexEvent takes back the index entries that a new record of the event may change.
func (tx *Tx) unindexEvent(old *StoredEvent) error {
	if old.Order != 0 {
		if err := tx.delete(key(tableOrder).str(string(old.RoomID())).i64(old.Order)); err != nil {
			return err
		}
	}
	rel, ok := relationOf(old)
	if !ok {
		return nil
	}
	if rel.Type == threadRelation {
		if err := tx.delete(threadKey(old)); err != nil {
			return err
		}
	}
	return tx.delete(rel.key(old))
}

// threadRelation is the rel_type whose children make a thread (CS API, Threading).
const threadRelation = "m.thread"

// Relation is what an event says that it relates to (CS API, Forming relationships between events).
type Relation struct {
	Parent eventgraph.EventID
	Type   string // rel_type; a client may have left it out
}

// Relation is the event's, also if it has been redacted; zero if it has none.
func (e *StoredEvent) Relation() Relation {
	if e.Related != (Relation{}) || !bytes.Contains(e.Content(), []byte(`"m.relates_to"`)) {
		return e.Related
	}
	var c struct {
		RelatesTo struct {
			RelType string             `json:"rel_type"`
			EventID eventgraph.EventID `json:"event_id"`
		} `json:"m.relates_to"`
	}
	if json.Unmarshal(e.Content(), &c) != nil || c.RelatesTo.EventID == "" {
		return Relation{} // whatever a client wrote there, it is no relation
	}
	return Relation{c.RelatesTo.EventID, c.RelatesTo.RelType}
}

// Kept is what of a relation outlasts the event's redaction: which event it named, and whether as its thread. The strings are a client's own: a type
// that means nothing here and a parent that is no event ID are content like any other, and go with it. It is zero if nothing is kept.
func (rel Relation) Kept() Relation {
	if !isEventID(rel.Parent) {
		return Relation{}
	}
	if rel.Type != threadRelation {
		rel.Type = ""
	}
	return rel
}

// eventIDSize is that of a reference hash in unpadded base64 with its sigil (room versions 3 and 4, Event IDs).
const eventIDSize = 1 + 43

// isEventID says whether id has the form of an event ID of the room versions that are supported.
func isEventID(id eventgraph.EventID) bool {
	if len(id) != eventIDSize || id[0] != '$' {
		return false
	}
	for _, c := range []byte(id[1:]) {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("+/-_", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// relationOf is the event's relation, if it has one that is indexed.
func relationOf(e *StoredEvent) (Relation, bool) {
	if e.Verdict != Accepted || e.Order == 0 || e.Related != (Relation{}) {
		return Relation{}, false
	}
	rel := e.Relation()
	return rel, rel.Type != ""
}

func (rel Relation) key(e *StoredEvent) dbKey {
	return key(tableRelation).str(string(rel.Parent)).i64(e.Order).str(string(e.ID()))
}

func (rel Relation) value(e *StoredEvent) []byte {
	return appendString(appendString(nil, rel.Type), e.Type())
}

func threadKey(e *StoredEvent) dbKey { return key(tableThread).str(string(e.RoomID())).i64(e.Order) }

// Children calls f for the events held, in whatever verdict and room, whose prev_events name id, until f wants no more. There may be any number.
func (r *Reader) Children(id eventgraph.EventID, f func(child eventgraph.EventID) (more bool, err error)) error {
	return r.scan(key(tableEdge).str(string(id)), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		child := p.str()
		if !p.ok {
			return false, errCutOff
		}
		return f(eventgraph.EventID(child))
	})
}

// CitedBy calls f for the events held, in whatever verdict, that name id among their auth_events, until f wants no more. It knows of
// state events, and of others that are in the auth chain of one.
func (r *Reader) CitedBy(id eventgraph.EventID, f func(by eventgraph.EventID) (more bool)) error {
	prefix := citedByKey(id)
	return r.scan(prefix, nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.id()
		by := p.id()
		if !p.ok {
			return false, errCutOff
		}
		return f(by), nil
	})
}

// Ordered calls f for all events of the room that have an order, in whatever verdict, from the order from (inclusive) on.
func (r *Reader) Ordered(room eventgraph.RoomID, from int64, f func(order int64, id eventgraph.EventID, purged bool) (bool, error)) error {
	prefix := key(tableOrder).str(string(room))
	return r.scan(prefix, append(dbKey(nil), prefix...).i64(from), false, func(k, v []byte) (bool, error) {
		p := parts(k)
		p.str()
		order := p.i64()
		if !p.ok || len(v) < 2 {
			return false, errCutOff
		}
		return f(order, eventgraph.EventID(v[1:]), v[0]&purgedMark != 0)
	})
}

// Timeline calls f for accepted events in room order from from (inclusive): forwards or backwards. Purged ones are passed over.
func (r *Reader) Timeline(room eventgraph.RoomID, from int64, backwards bool, f func(*StoredEvent) (bool, error)) error {
	prefix := key(tableOrder).str(string(room))
	start := append(dbKey(nil), prefix...).i64(from)
	return r.scan(prefix, start, backwards, func(_, v []byte) (bool, error) {
		if len(v) < 2 {
			return false, errCutOff
		}
		if Verdict(v[0]) != Accepted {
			return true, nil
		}
		e, err := r.Event(eventgraph.EventID(v[1:]))
		if err != nil {
			return false, fmt.Errorf("timeline of %s: %w", room, err)
		}
		return f(e)
	})
}

// Related is an entry of the index of relations: an event that relates to another.
type Related struct {
	ID      eventgraph.EventID
	Order   int64
	RelType string
	Type    string
}

// Related calls f for what relates to parent, in room order from the order from (inclusive) on: forwards or backwards.
func (r *Reader) Related(parent eventgraph.EventID, from int64, backwards bool, f func(Related) (bool, error)) error {
	prefix := key(tableRelation).str(string(parent))
	start := append(dbKey(nil), prefix...).i64(from)
	if backwards {
		start = append(start, 0xff) // behind all entries of that order
	}
	if r.pending == nil && backwards && r.unrelated.none(r, prefix, start) {
		return nil
	}
	return r.scan(prefix, start, backwards, func(k, v []byte) (bool, error) {
		fields := fieldReader{rest: v}
		p := parts(k)
		p.str()
		related := Related{Order: p.i64(), ID: eventgraph.EventID(p.str()), RelType: fields.string(), Type: fields.string()}
		if !p.ok {
			return false, errCutOff
		}
		return f(related)
	})
}

// Relations calls f for events relating to parent by rel_type and type ("" = any), newest first in room order.
func (r *Reader) Relations(parent eventgraph.EventID, relType, eventType string, f func(*StoredEvent) (bool, error)) error {
	return r.Related(parent, math.MaxInt64, true, func(related Related) (bool, error) {
		if relType != "" && relType != related.RelType || eventType != "" && eventType != related.Type {
			return true, nil
		}
		e, err := r.Event(related.ID)
		if err != nil {
			return false, fmt.Errorf("relation to %s: %w", parent, err)
		}
		return f(e)
	})
}

// ThreadReplies calls f for the events of the room that are in a thread, with the thread's root, from the order from (inclusive)
// backwards.
func (r *Reader) ThreadReplies(room eventgraph.RoomID, from int64, f func(order int64, root eventgraph.EventID) (bool, error)) error {
	prefix := key(tableThread).str(string(room))
	return r.scan(prefix, append(dbKey(nil), prefix...).i64(from), true, func(k, v []byte) (bool, error) {
		p := parts(k)
		p.str()
		order := p.i64()
		if !p.ok {
			return false, errCutOff
		}
		return f(order, eventgraph.EventID(v))
	})
}

func clientTxnKey(t ClientTxn, endpoint string) dbKey {
	return key(tableClientTxn).str(string(t.User)).str(string(t.Device)).u64(uint64(t.CreatedTS)).str(endpoint).str(t.TxnID)
}

// ClientTxnResult is the result of an earlier request with this transaction ID and endpoint; ErrNotFound. For
// /send it is the event ID.
func (r *Reader) ClientTxnResult(t ClientTxn, endpoint string) (string, error) {
	v, err := r.get(clientTxnKey(t, endpoint))
	return string(v), err
}

// PutClientTxn records the result in the same commit as the effect.
func (tx *Tx) PutClientTxn(t ClientTxn, endpoint, result string) error {
	return tx.put(clientTxnKey(t, endpoint), []byte(result))
}
