package eventgraph

import "encoding/json"

// StateTuple keys room state: event type and state key.
type StateTuple struct{ Type, Key string }

// Event is one PDU, immutable. It never carries "unsigned".
type Event struct {
	_ struct{}
}

// ParseEvent parses a PDU from a peer: limits, format, content hash, and from the reference hash its
// ID. "unsigned" is dropped. With a wrong content hash the result is the redacted event and
// HashMismatch is true (SS API, checks on receipt of a PDU, step 3). Signatures are not checked.
// Errors wrap ErrTooLarge or ErrFormat.
func ParseEvent(v RoomVersion, raw []byte) (*Event, error) { panic("eventgraph: skeleton") }

// LoadEvent takes bytes that Raw gave, from our own disk, without checking them again.
func LoadEvent(v RoomVersion, id EventID, raw []byte) (*Event, error) { panic("eventgraph: skeleton") }

func (e *Event) ID() EventID               { panic("eventgraph: skeleton") }
func (e *Event) Version() RoomVersion      { panic("eventgraph: skeleton") }
func (e *Event) RoomID() RoomID            { panic("eventgraph: skeleton") } // v12 create: from its own ID
func (e *Event) Type() string              { panic("eventgraph: skeleton") }
func (e *Event) StateKey() (string, bool)  { panic("eventgraph: skeleton") }
func (e *Event) Tuple() (StateTuple, bool) { panic("eventgraph: skeleton") }
func (e *Event) Sender() UserID            { panic("eventgraph: skeleton") }
func (e *Event) Content() json.RawMessage  { panic("eventgraph: skeleton") } // caller must not change it
func (e *Event) PrevEvents() []EventID     { panic("eventgraph: skeleton") }
func (e *Event) AuthEvents() []EventID     { panic("eventgraph: skeleton") }
func (e *Event) Depth() int64              { panic("eventgraph: skeleton") }
func (e *Event) OriginServerTS() int64     { panic("eventgraph: skeleton") }
func (e *Event) Redacts() EventID          { panic("eventgraph: skeleton") } // top level or content, by version; "" if none
func (e *Event) HashMismatch() bool        { panic("eventgraph: skeleton") }
func (e *Event) Raw() []byte               { panic("eventgraph: skeleton") } // as sent to peers; caller must not change it
func (e *Event) Membership() string        { panic("eventgraph: skeleton") } // content.membership of m.room.member, else ""

// RequiredSigners: the sender's server (unless a third-party invite), and the server of
// join_authorised_via_users_server in a restricted join.
func (e *Event) RequiredSigners() []ServerName { panic("eventgraph: skeleton") }

// VerifySignatures checks the signatures of RequiredSigners over the redacted form. ErrSignature is
// final; ErrKeyUnknown and ErrKeyNotValid mean that a key document must be fetched (KeysNeeded).
func (e *Event) VerifySignatures(ring KeyRing) error { panic("eventgraph: skeleton") }

// SignedBy lists the key IDs under which server has signed, whether rightly or not.
func (e *Event) SignedBy(server ServerName) []KeyID { panic("eventgraph: skeleton") }

// WithSignature returns the event with our signature added; the ID stays.
func (e *Event) WithSignature(k SigningKey) (*Event, error) { panic("eventgraph: skeleton") }

// Redact returns the event reduced as its room version's redaction rules say; same ID.
func (e *Event) Redact() *Event { panic("eventgraph: skeleton") }

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

// Build makes, hashes and signs an event. Errors as ParseEvent.
func Build(v RoomVersion, d Draft, k SigningKey) (*Event, error) { panic("eventgraph: skeleton") }

// Proto renders a draft as the "event" template of make_join, make_leave and make_knock: no hashes, no signatures.
func Proto(v RoomVersion, d Draft) (json.RawMessage, error) { panic("eventgraph: skeleton") }

// Finish hashes and signs a template that another server made (make_join): after the caller has
// checked and set its fields, it gets our timestamp, hash and signature.
func Finish(v RoomVersion, proto json.RawMessage, originServerTS int64, k SigningKey) (*Event, error) {
	panic("eventgraph: skeleton")
}

// SortTopologically orders events so that each comes after those of its prev_events (and auth_events) that
// are among them; ties by depth, then origin_server_ts, then ID. It does not recurse.
func SortTopologically(events []*Event) []*Event { panic("eventgraph: skeleton") }
