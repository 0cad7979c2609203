package eventgraph

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// errDeep: see canonicaljson.MaxPart.
var errDeep = fmt.Errorf("nested deeper than %d", canonicaljson.MaxPart)

// Draft is an event before hash and signature.
type Draft struct {
	RoomID         RoomID // empty for a v12 create event
	Type           string
	StateKey       *string
	Sender         UserID
	Content        json.RawMessage
	Redacts        EventID // put where the version wants it
	PrevEvents     []EventID
	AuthEvents     []EventID
	Depth          int64
	OriginServerTS int64
}

// Build makes, hashes and signs an event. Errors as ParseEvent, and ErrFormat for content nested deeper than canonicaljson.MaxPart: the event
// has to fit into the requests that bring it to others.
func Build(v RoomVersion, d Draft, k SigningKey) (*Event, error) {
	t, err := traitsOf(v)
	if err != nil {
		return nil, err
	}
	members, err := d.members(t)
	if err != nil {
		return nil, err
	}
	return seal(v, t, members, k)
}

// Proto renders a draft as the "event" template of make_join, make_leave and make_knock: no hashes, no signatures.
func Proto(v RoomVersion, d Draft) (json.RawMessage, error) {
	t, err := traitsOf(v)
	if err != nil {
		return nil, err
	}
	members, err := d.members(t)
	if err != nil {
		return nil, err
	}
	return canonicaljson.Join(members), nil
}

// Finish hashes and signs a template that another server made (make_join): after the caller has
// checked and set its fields, it gets our timestamp, hash and signature.
func Finish(v RoomVersion, proto json.RawMessage, originServerTS int64, k SigningKey) (*Event, error) {
	t, err := traitsOf(v)
	if err != nil {
		return nil, err
	}
	if len(proto) > maxRawEvent {
		return nil, fmt.Errorf("%w: template of %d bytes", ErrTooLarge, len(proto))
	}
	if canonicaljson.Depth(proto) > canonicaljson.MaxPart {
		return nil, fmt.Errorf("%w: template: %w", ErrFormat, errDeep)
	}
	canonical, err := canonicaljson.CanonicalizeWithout(proto, t.jsonRules(), "unsigned")
	if err != nil {
		return nil, fmt.Errorf("%w: template: %v", ErrFormat, err)
	}
	members, err := canonicaljson.Split(canonical)
	if err != nil {
		return nil, fmt.Errorf("%w: template: %v", ErrFormat, err)
	}
	// event_id is of versions 1 and 2 only; hashes and signatures of a template mean nothing.
	members = dropMembers(members, "hashes", "signatures", "event_id")
	return seal(v, t, setMember(members, "origin_server_ts", number(originServerTS)), k)
}

// members of the event without hashes and signatures.
func (d *Draft) members(t *Traits) ([]canonicaljson.Member, error) {
	if !utf8.ValidString(d.Type) || d.StateKey != nil && !utf8.ValidString(*d.StateKey) {
		return nil, fmt.Errorf("%w: type or state_key is not UTF-8", ErrFormat)
	}
	content := []byte(d.Content)
	if content == nil {
		content = []byte("{}")
	}
	if len(content) > maxRawEvent {
		return nil, fmt.Errorf("%w: content of %d bytes", ErrTooLarge, len(content))
	}
	if canonicaljson.Depth(content) > canonicaljson.MaxPart {
		return nil, fmt.Errorf("%w: content: %w", ErrFormat, errDeep)
	}
	content, err := canonicaljson.Canonicalize(content, t.jsonRules())
	if err != nil {
		return nil, fmt.Errorf("%w: content: %v", ErrFormat, err)
	}
	if !canonicaljson.IsObject(content) {
		return nil, fmt.Errorf("%w: content is not an object", ErrFormat)
	}
	var redacts []byte
	if d.Redacts != "" {
		redacts = quote(string(d.Redacts))
		if t.RedactsInContent {
			inner, err := canonicaljson.Split(content)
			if err != nil {
				return nil, fmt.Errorf("%w: content: %v", ErrFormat, err)
			}
			content, redacts = canonicaljson.Join(setMember(inner, "redacts", redacts)), nil
		}
	}
	members := []canonicaljson.Member{
		{Key: "auth_events", Value: idArray(d.AuthEvents)},
		{Key: "content", Value: content},
		{Key: "depth", Value: number(d.Depth)},
		{Key: "origin_server_ts", Value: number(d.OriginServerTS)},
		{Key: "prev_events", Value: idArray(d.PrevEvents)},
		{Key: "sender", Value: quote(string(d.Sender))},
		{Key: "type", Value: quote(d.Type)},
	}
	if redacts != nil {
		members = append(members, canonicaljson.Member{Key: "redacts", Value: redacts})
	}
	if d.RoomID != "" {
		members = append(members, canonicaljson.Member{Key: "room_id", Value: quote(string(d.RoomID))})
	}
	if d.StateKey != nil {
		members = append(members, canonicaljson.Member{Key: "state_key", Value: quote(*d.StateKey)})
	}
	return members, nil
}

// seal adds hash and signature and checks the result as any event from a peer (SS API, Adding hashes and signatures to outgoing events).
func seal(v RoomVersion, t *Traits, members []canonicaljson.Member, k SigningKey) (*Event, error) {
	fields, err := canonicaljson.Fields(nil, canonicaljson.Join(members))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	h := contentHash(fields)
	members = append(members, canonicaljson.Member{Key: "hashes", Value: []byte(`{"sha256":"` + encodeBase64(h[:]) + `"}`)})
	hashed := canonicaljson.Join(members)
	if fields, err = canonicaljson.Fields(fields[:0], hashed); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	message, err := t.appendRedacted(nil, typeOf(fields), fields, false)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	signatures, err := addSignature(nil, k, message)
	if err != nil {
		return nil, err
	}
	members = append(members, canonicaljson.Member{Key: "signatures", Value: signatures})
	return ParseEvent(v, canonicaljson.Join(members))
}

func quote(s string) []byte { return canonicaljson.AppendString(nil, s) }
func number(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
func idArray(ids []EventID) []byte {
	out := []byte{'['}
	for i, id := range ids {
		if i > 0 {
			out = append(out, ',')
		}
		out = canonicaljson.AppendString(out, string(id))
	}
	return append(out, ']')
}
