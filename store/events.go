package store

import "github.com/plexus-p2p/plexus/eventgraph"

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
	Gap         bool               // its prev_events were not to be had when it was taken in
	RedactedBy  eventgraph.EventID // the event is served redacted
	SentBy      *ClientTxn         // sent by a local client: for unsigned.transaction_id
	ReceivedTS  int64              // ms
}

// ClientTxn is a client's transaction ID, in the scope of its device (CS API, Transaction identifiers).
type ClientTxn struct {
	User   eventgraph.UserID
	Device DeviceID
	TxnID  string
}

// Event reads an event in whatever verdict; ErrNotFound.
func (r *Reader) Event(id eventgraph.EventID) (*StoredEvent, error)     { panic("store: skeleton") }
func (r *Reader) HasEvent(id eventgraph.EventID) (Verdict, bool, error) { panic("store: skeleton") }

// PutEvent writes or replaces the event's record, its order index entry (Order != 0), edges from prev_events, and
// its relation index entry (m.relates_to). It does not Log.
func (tx *Tx) PutEvent(e *StoredEvent) error { panic("store: skeleton") }

// Children lists the events held whose prev_events name id.
func (r *Reader) Children(id eventgraph.EventID) ([]eventgraph.EventID, error) {
	panic("store: skeleton")
}

// Timeline calls f for accepted events in room order from from (inclusive): forwards or backwards.
func (r *Reader) Timeline(room eventgraph.RoomID, from int64, backwards bool, f func(*StoredEvent) (bool, error)) error {
	panic("store: skeleton")
}

// Relations calls f for events relating to parent by rel_type and type ("" = any), newest first.
func (r *Reader) Relations(parent eventgraph.EventID, relType, eventType string, f func(*StoredEvent) (bool, error)) error {
	panic("store: skeleton")
}

// ClientTxnResult is the result of an earlier request with this transaction ID and endpoint; ErrNotFound. For
// /send it is the event ID. PutClientTxn records it in the same commit as the effect.
func (r *Reader) ClientTxnResult(t ClientTxn, endpoint string) (string, error) {
	panic("store: skeleton")
}
func (tx *Tx) PutClientTxn(t ClientTxn, endpoint, result string) error { panic("store: skeleton") }
