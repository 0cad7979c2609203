package store

import "github.com/plexus-p2p/plexus/eventgraph"

// What node/federation keeps: key documents, inbox, outbox, cursors.

// KeyDocument is the newest document held of a server; ErrNotFound. PutKeyDocument keeps all that is needed to judge old
// signatures; a certificate with a lower seq than one held, or two contents under one seq, is
// ErrCertificate (design.md §1).
func (r *Reader) KeyDocument(server eventgraph.ServerName) (*eventgraph.KeyDocument, error) {
	panic("store: skeleton")
}
func (tx *Tx) PutKeyDocument(d *eventgraph.KeyDocument) error { panic("store: skeleton") }

// KeyDocuments calls f for each server's document: who may speak for whom is rebuilt from it at start.
func (r *Reader) KeyDocuments(f func(*eventgraph.KeyDocument) (bool, error)) error {
	panic("store: skeleton")
}

// InboxItem is a PDU that waits for parents or keys (design.md §3.6), kept as received.
type InboxItem struct {
	ID       eventgraph.EventID
	Room     eventgraph.RoomID
	Origin   eventgraph.ServerName
	PDU      []byte
	Received int64 // ms
}

// Bounds of the inbox: beyond them PutInbox answers ErrInboxFull.
const (
	InboxMaxItems = 100_000
	InboxMaxBytes = 256 << 20
)

func (tx *Tx) PutInbox(i *InboxItem) error { panic("store: skeleton") }
func (tx *Tx) DeleteInbox(room eventgraph.RoomID, id eventgraph.EventID) error {
	panic("store: skeleton")
}
func (r *Reader) Inbox(room eventgraph.RoomID, f func(*InboxItem) (bool, error)) error {
	panic("store: skeleton")
} // "" = all rooms; oldest first per room
func (r *Reader) InboxHas(room eventgraph.RoomID, id eventgraph.EventID) (bool, error) {
	panic("store: skeleton")
}

// SeenTransaction says whether this transaction of origin was answered already, and with what; bounded per origin.
func (r *Reader) SeenTransaction(origin eventgraph.ServerName, txnID string) ([]byte, bool, error) {
	panic("store: skeleton")
}
func (tx *Tx) PutSeenTransaction(origin eventgraph.ServerName, txnID string, answer []byte) error {
	panic("store: skeleton")
}

// Destination is the sender's cursor for one server and peer ("" for the server as a whole).
type Destination struct {
	Server    eventgraph.ServerName
	Peer      eventgraph.PeerID
	Sent      Position // all before and at it that concern the server are acknowledged
	EDUStream int64    // last stream number used
	InFlight  *Transaction
}

// Transaction is fixed before the first attempt: a retry repeats exactly it.
type Transaction struct {
	ID    string
	Body  []byte
	UpTo  Position // Sent after it is acknowledged
	Queue []uint64 // outbound items that it carries
}

func (r *Reader) Destination(s eventgraph.ServerName) (*Destination, error) { panic("store: skeleton") } // ErrNotFound
func (r *Reader) Destinations(f func(*Destination) (bool, error)) error     { panic("store: skeleton") }
func (tx *Tx) PutDestination(d *Destination) error                          { panic("store: skeleton") }

// Outbound is something durable for one server that is not a room event: a to-device EDU, an invite or leave it has not had.
type Outbound struct {
	Seq    uint64 // given by PutOutbound
	Server eventgraph.ServerName
	Kind   string // "m.direct_to_device", "invite", "leave", …
	Body   []byte // JSON
}

// PutOutbound queues it and logs ChangeOutbound.
func (tx *Tx) PutOutbound(o *Outbound) (Position, error) { panic("store: skeleton") }
func (r *Reader) Outbound(s eventgraph.ServerName, after uint64, f func(*Outbound) (bool, error)) error {
	panic("store: skeleton")
}
func (tx *Tx) DeleteOutbound(s eventgraph.ServerName, seq uint64) error { panic("store: skeleton") }

// MeetingCursor is the opaque token that the peer gave us at our last meeting, "" if none.
func (r *Reader) MeetingCursor(p eventgraph.PeerID) (string, error)     { panic("store: skeleton") }
func (tx *Tx) PutMeetingCursor(p eventgraph.PeerID, token string) error { panic("store: skeleton") }

// PeerAddrs is the address book: multiaddrs where a peer was reached, newest first, bounded.
func (r *Reader) PeerAddrs(f func(eventgraph.PeerID, []string) (bool, error)) error {
	panic("store: skeleton")
}
func (tx *Tx) PutPeerAddrs(p eventgraph.PeerID, addrs []string) error { panic("store: skeleton") }
