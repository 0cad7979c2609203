package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// What node/federation keeps beside key documents (keydocuments.go): inbox, outbox, cursors, addresses.

// InboxItem is a PDU that waits for parents or keys (design.md §3.6), kept as received.
type InboxItem struct {
	ID     eventgraph.EventID
	Room   eventgraph.RoomID
	Origin eventgraph.ServerName
	PDU    []byte
	Since  int64 // ms of InboxTime, when it came
}

// Bounds of the inbox: beyond them PutInbox answers ErrInboxFull.
const (
	InboxMaxItems = 100_000
	InboxMaxBytes = 256 << 20
)

// ErrInboxFull: the peer is to repeat its transaction later.
var ErrInboxFull = errors.New("the inbox is full")

// inboxRecord is the header of an item on disk; the PDU follows it, the room is in the key.
type inboxRecord struct {
	ID     eventgraph.EventID    `json:"id"`
	Origin eventgraph.ServerName `json:"origin"`
	Since  int64                 `json:"since"` // 0 in stores from before there was InboxTime, which began at 0 then
}

// inboxCount is what the inbox holds now, and how many items ever came.
type inboxCount struct {
	Items    int64  `json:"items"`
	Bytes    int64  `json:"bytes"`
	Arrivals uint64 `json:"arrivals"`
}

var keyInboxCount = key(tableMeta).str("inbox")

func inboxIDKey(room eventgraph.RoomID, id eventgraph.EventID) dbKey {
	return key(tableInboxID).str(string(room)).str(string(id))
}

func (r *Reader) inboxCount() (inboxCount, error) {
	var c inboxCount
	err := r.getJSON(keyInboxCount, &c)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return c, err
}

// PutInbox queues the item; ErrInboxFull. An item already there stays as it is.
func (tx *Tx) PutInbox(i *InboxItem) error {
	if held, err := tx.InboxHas(i.Room, i.ID); held || err != nil {
		return err
	}
	count, err := tx.inboxCount()
	if err != nil {
		return err
	}
	if count.Items >= InboxMaxItems || count.Bytes+int64(len(i.PDU)) > InboxMaxBytes {
		return ErrInboxFull
	}
	count.Items++
	count.Bytes += int64(len(i.PDU))
	count.Arrivals++
	record, err := joinBody(inboxRecord{i.ID, i.Origin, i.Since}, i.PDU)
	if err != nil {
		return err
	}
	place := binary.BigEndian.AppendUint64(nil, count.Arrivals)
	place = binary.BigEndian.AppendUint64(place, uint64(len(i.PDU)))
	return errors.Join(
		tx.put(key(tableInbox).str(string(i.Room)).u64(count.Arrivals), record),
		tx.put(inboxIDKey(i.Room, i.ID), place),
		tx.putJSON(keyInboxCount, count),
	)
}

// DeleteInbox removes the item, if it is there.
func (tx *Tx) DeleteInbox(room eventgraph.RoomID, id eventgraph.EventID) error {
	place, err := tx.get(inboxIDKey(room, id))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(place) != 16 {
		return errCutOff
	}
	count, err := tx.inboxCount()
	if err != nil {
		return err
	}
	count.Items--
	count.Bytes -= int64(binary.BigEndian.Uint64(place[8:]))
	return errors.Join(
		tx.delete(key(tableInbox).str(string(room)).u64(binary.BigEndian.Uint64(place))),
		tx.delete(inboxIDKey(room, id)),
		tx.putJSON(keyInboxCount, count),
	)
}

// Inbox calls f for the items of a room, or with "" of all rooms; oldest first per room.
func (r *Reader) Inbox(room eventgraph.RoomID, f func(*InboxItem) (bool, error)) error {
	prefix := key(tableInbox)
	if room != "" {
		prefix = prefix.str(string(room))
	}
	return r.scan(prefix, nil, false, func(k, v []byte) (bool, error) {
		var h inboxRecord
		pdu, err := splitBody(v, &h)
		if err != nil {
			return false, fmt.Errorf("inbox: %w", err)
		}
		return f(&InboxItem{
			ID: h.ID, Room: eventgraph.RoomID(parts(k).str()), Origin: h.Origin, PDU: bytes.Clone(pdu), Since: h.Since,
		})
	})
}

// InboxRooms calls f for each room for which something waits in the inbox, held or not.
func (r *Reader) InboxRooms(f func(eventgraph.RoomID) (bool, error)) error {
	var start dbKey
	for {
		var room eventgraph.RoomID
		err := r.scan(key(tableInbox), start, false, func(k, _ []byte) (bool, error) {
			room = eventgraph.RoomID(parts(k).str())
			return false, nil
		})
		if err != nil || room == "" {
			return err
		}
		if more, err := f(room); !more || err != nil {
			return err
		}
		start = key(tableInbox).str(string(room)).u64(math.MaxUint64) // behind all of it: none has that arrival
	}
}

var keyInboxTime = key(tableMeta).str("inbox time")

// InboxTime is for how long things have been worked on that wait in the inbox, in ms; 0 at first. No clock is asked for it, so none makes
// what waits older.
func (r *Reader) InboxTime() (int64, error) {
	ms, err := r.getNumber(keyInboxTime)
	return int64(ms), err
}

// PutInboxTime sets InboxTime.
func (tx *Tx) PutInboxTime(ms int64) error { return tx.putNumber(keyInboxTime, uint64(ms)) }

// InboxItem reads one item; ErrNotFound.
func (r *Reader) InboxItem(room eventgraph.RoomID, id eventgraph.EventID) (*InboxItem, error) {
	place, err := r.get(inboxIDKey(room, id))
	if err != nil {
		return nil, err
	}
	if len(place) != 16 {
		return nil, errCutOff
	}
	v, err := r.get(key(tableInbox).str(string(room)).u64(binary.BigEndian.Uint64(place)))
	if err != nil {
		return nil, err
	}
	var h inboxRecord
	pdu, err := splitBody(v, &h)
	if err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	return &InboxItem{ID: h.ID, Room: room, Origin: h.Origin, PDU: bytes.Clone(pdu), Since: h.Since}, nil
}

// InboxHas says whether the item waits in the inbox.
func (r *Reader) InboxHas(room eventgraph.RoomID, id eventgraph.EventID) (bool, error) {
	return r.has(inboxIDKey(room, id))
}

// maxSeenTransactions are remembered of one origin. It repeats a transaction until it is answered and sends no
// other meanwhile, so only its newest can come twice; several of its devices send side by side.
const maxSeenTransactions = 64

func seenTxnKey(origin eventgraph.ServerName, txnID string) dbKey {
	return key(tableSeenTxn).str(string(origin)).str(txnID)
}

// SeenTransaction says whether this transaction of origin was answered already, and with what; bounded per origin.
func (r *Reader) SeenTransaction(origin eventgraph.ServerName, txnID string) ([]byte, bool, error) {
	v, err := r.get(seenTxnKey(origin, txnID))
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case len(v) < 8:
		return nil, false, errCutOff
	}
	return v[8:], true, nil
}

// PutSeenTransaction records the answer and forgets the oldest ones of the origin.
func (tx *Tx) PutSeenTransaction(origin eventgraph.ServerName, txnID string, answer []byte) error {
	if _, seen, err := tx.SeenTransaction(origin, txnID); seen || err != nil {
		return err
	}
	order := func() dbKey { return key(tableSeenOrder).str(string(origin)) }
	arrival := uint64(1)
	err := tx.scan(order(), nil, true, func(k, _ []byte) (bool, error) {
		arrival = binary.BigEndian.Uint64(k[len(k)-8:]) + 1
		return false, nil
	})
	if err != nil {
		return err
	}
	if arrival > maxSeenTransactions {
		old := order().u64(arrival - maxSeenTransactions)
		oldID, err := tx.get(old)
		if err == nil {
			err = errors.Join(tx.delete(old), tx.delete(seenTxnKey(origin, string(oldID))))
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return errors.Join(
		tx.put(order().u64(arrival), []byte(txnID)),
		tx.put(seenTxnKey(origin, txnID), append(binary.BigEndian.AppendUint64(nil, arrival), answer...)),
	)
}

// Destination is the sender's cursor for one server and peer ("" for the server as a whole).
type Destination struct {
	Server   eventgraph.ServerName
	Peer     eventgraph.PeerID
	Sent     Position // all before and at it that concern the server are acknowledged
	InFlight *Transaction
}

// Transaction is fixed before the first attempt: a retry repeats exactly it.
type Transaction struct {
	ID    string
	Body  []byte   // at most MaxTransactionBody
	UpTo  Position // Sent after it is acknowledged
	Queue []uint64 // outbound items that it carries
}

// MaxTransactionBody bounds Transaction.Body, so that a destination's record fits into one write set beside others.
// A transaction of 50 PDUs that would be larger is to be cut before.
const MaxTransactionBody = 768 << 10

// destRecord is the header of a destination on disk; the body of the transaction in flight follows it.
type destRecord struct {
	Sent     Position   `json:"sent"`
	InFlight *txnRecord `json:"in_flight,omitempty"`
}

type txnRecord struct {
	ID    string   `json:"id"`
	UpTo  Position `json:"up_to"`
	Queue []uint64 `json:"queue,omitempty"`
}

func destKey(s eventgraph.ServerName, p eventgraph.PeerID) dbKey {
	return key(tableDest).str(string(s)).str(string(p))
}

func decodeDestination(k, v []byte) (*Destination, error) {
	p := parts(k)
	d := &Destination{Server: eventgraph.ServerName(p.str()), Peer: eventgraph.PeerID(p.str())}
	var h destRecord
	body, err := splitBody(v, &h)
	if err != nil {
		return nil, fmt.Errorf("destination %s in the store: %w", d.Server, err)
	}
	d.Sent = h.Sent
	if h.InFlight != nil {
		d.InFlight = &Transaction{h.InFlight.ID, bytes.Clone(body), h.InFlight.UpTo, h.InFlight.Queue}
	}
	return d, nil
}

// Destination reads the cursor of the server as a whole; ErrNotFound.
func (r *Reader) Destination(s eventgraph.ServerName) (*Destination, error) {
	return r.PeerDestination(s, "")
}

// PeerDestination reads the cursor of one peer of the server; ErrNotFound.
func (r *Reader) PeerDestination(s eventgraph.ServerName, p eventgraph.PeerID) (*Destination, error) {
	var d *Destination
	k := destKey(s, p)
	err := r.read(k, func(v []byte) (err error) { d, err = decodeDestination(k, v); return err })
	return d, err
}

// PutDestination writes the cursor of d.Server and d.Peer.
func (tx *Tx) PutDestination(d *Destination) error {
	h := destRecord{Sent: d.Sent}
	var body []byte
	if t := d.InFlight; t != nil {
		if len(t.Body) > MaxTransactionBody {
			return fmt.Errorf("transaction %s of %d bytes: %w", t.ID, len(t.Body), ErrTooLarge)
		}
		h.InFlight = &txnRecord{t.ID, t.UpTo, t.Queue}
		body = t.Body
	}
	record, err := joinBody(h, body)
	if err != nil {
		return err
	}
	return tx.put(destKey(d.Server, d.Peer), record)
}

// Outbound is something durable for one server that is not a room event: a to-device EDU, an invite or leave it has not had.
type Outbound struct {
	Seq      uint64 // given by PutOutbound: greater than that of all before
	Server   eventgraph.ServerName
	Kind     string                  // "m.direct_to_device", "invite", "leave", …
	Body     []byte                  // JSON
	Carriers []eventgraph.ServerName // who keeps a copy for Server (AddCarrier)
}

// MaxOutboundBytes are queued for one server, and MaxAllOutboundBytes for all together; an item counts with outboundFrame beside its body.
// What was accepted for sending is never dropped, so at the bound nothing more is accepted. An encrypted message shares its room's key anew
// once a week or every hundred messages, in one or two KB for each device: a server that is away for a year leaves far less.
// A client may name any number of servers, so all of them together have a bound too.
const (
	MaxOutboundBytes    = 64 << 20
	MaxAllOutboundBytes = 1 << 30
	outboundFrame       = 200 // bytes of the record's key and header and of its place in the log of changes
)

// ErrOutboundFull: MaxOutboundBytes or MaxAllOutboundBytes are queued. There is room again when the server has been met.
var ErrOutboundFull = errors.New("too much waits to be sent to that server")

type outboundRecord struct {
	Kind     string                  `json:"kind"`
	Carriers []eventgraph.ServerName `json:"carriers,omitempty"`
}

func outboundKey(s eventgraph.ServerName) dbKey { return key(tableOutbound).str(string(s)) }

// outboundBytesKey is where the bytes queued for the server stand; with "", those of all servers.
func outboundBytesKey(s eventgraph.ServerName) dbKey {
	return key(tableMeta).str("outbound").str(string(s))
}

// PutOutbound queues it, sets its Seq and logs ChangeOutbound; ErrOutboundFull.
func (tx *Tx) PutOutbound(o *Outbound) (Position, error) {
	size := int64(len(o.Body) + outboundFrame)
	if err := tx.countOutbound("", size, MaxAllOutboundBytes); err != nil {
		return 0, err
	}
	if err := tx.countOutbound(o.Server, size, MaxOutboundBytes); err != nil {
		return 0, err
	}
	p, err := tx.Log(Change{Kind: ChangeOutbound, Server: o.Server})
	if err != nil {
		return 0, err
	}
	o.Seq = uint64(p)
	record, err := joinBody(outboundRecord{Kind: o.Kind}, o.Body)
	if err != nil {
		return 0, err
	}
	return p, tx.put(outboundKey(o.Server).u64(o.Seq), record)
}

// countOutbound adds to what is queued for the server, "" for all, unless it would be more than most then.
func (tx *Tx) countOutbound(s eventgraph.ServerName, bytes, most int64) error {
	return tx.countBytes(outboundBytesKey(s), bytes, most, ErrOutboundFull)
}

// countBytes adds to the number at k, unless it would be more than most then: full.
func (tx *Tx) countBytes(k dbKey, bytes, most int64, full error) error {
	before, err := tx.getNumber(k)
	if err != nil {
		return err
	}
	now := max(0, int64(before)+bytes)
	if bytes > 0 && now > most {
		return full
	}
	if now == 0 {
		return tx.delete(k)
	}
	return tx.putNumber(k, uint64(now))
}

// countHeld adds to what is held of a server and of all, under that name in tableMeta, unless either would be more than most: then it fails with full
// and has changed nothing.
func (tx *Tx) countHeld(name string, s eventgraph.ServerName, n, most, mostOfAll int64, full error) error {
	of, all := key(tableMeta).str(name).str(string(s)), key(tableMeta).str(name).str("")
	sum, err := tx.getNumber(all)
	if err != nil {
		return err
	}
	if n > 0 && int64(sum)+n > mostOfAll {
		return full
	}
	if err := tx.countBytes(of, n, most, full); err != nil {
		return err
	}
	return tx.countBytes(all, n, mostOfAll, full)
}

// OutboundServers calls f for each server for which something is queued, by name.
func (r *Reader) OutboundServers(f func(eventgraph.ServerName) (bool, error)) error {
	return r.scan(key(tableMeta).str("outbound"), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		if s := eventgraph.ServerName(p.str()); s != "" {
			return f(s)
		}
		return true, nil
	})
}

// AddCarrier notes that another server keeps a copy of the item for its server, if it is still queued.
func (tx *Tx) AddCarrier(s eventgraph.ServerName, seq uint64, carrier eventgraph.ServerName) error {
	k := outboundKey(s).u64(seq)
	record, err := tx.get(k)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	var h outboundRecord
	body, err := splitBody(record, &h)
	if err != nil {
		return fmt.Errorf("outbound item for %s: %w", s, err)
	}
	if slices.Contains(h.Carriers, carrier) {
		return nil
	}
	h.Carriers = append(h.Carriers, carrier)
	if record, err = joinBody(h, bytes.Clone(body)); err != nil {
		return err
	}
	return tx.put(k, record)
}

// Outbound calls f for what is queued for the server with a Seq greater than after, in order.
func (r *Reader) Outbound(s eventgraph.ServerName, after uint64, f func(*Outbound) (bool, error)) error {
	if after == math.MaxUint64 {
		return nil
	}
	return r.scan(outboundKey(s), outboundKey(s).u64(after+1), false, func(k, v []byte) (bool, error) {
		var h outboundRecord
		body, err := splitBody(v, &h)
		if err != nil {
			return false, fmt.Errorf("outbound item for %s: %w", s, err)
		}
		p := parts(k)
		p.str()
		return f(&Outbound{Seq: p.u64(), Server: s, Kind: h.Kind, Body: bytes.Clone(body), Carriers: h.Carriers})
	})
}

// DeleteOutbound removes an item, if it is there.
func (tx *Tx) DeleteOutbound(s eventgraph.ServerName, seq uint64) error {
	k := outboundKey(s).u64(seq)
	record, err := tx.get(k)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	var h outboundRecord
	body, err := splitBody(record, &h)
	if err != nil {
		return fmt.Errorf("outbound item for %s: %w", s, err)
	}
	size := int64(len(body) + outboundFrame)
	return errors.Join(tx.countOutbound(s, -size, 0), tx.countOutbound("", -size, 0), tx.delete(k))
}

// MeetingCursor is the opaque token that the peer gave us, for that server, at our last meeting; "" if none.
func (r *Reader) MeetingCursor(s eventgraph.ServerName, p eventgraph.PeerID) (string, error) {
	v, err := r.get(key(tableMeeting).str(string(s)).str(string(p)))
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return string(v), err
}

// PutMeetingCursor keeps the token; "" forgets it.
func (tx *Tx) PutMeetingCursor(s eventgraph.ServerName, p eventgraph.PeerID, token string) error {
	k := key(tableMeeting).str(string(s)).str(string(p))
	if token == "" {
		return tx.delete(k)
	}
	return tx.put(k, []byte(token))
}
