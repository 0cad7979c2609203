package store

import (
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Receipt says how far a user has read (CS API, Receipts), by type (m.read, m.read.private, …) and thread.
type Receipt struct {
	Room   eventgraph.RoomID  `json:"-"`
	User   eventgraph.UserID  `json:"-"`
	Type   string             `json:"-"`
	Event  eventgraph.EventID `json:"event"`
	Thread string             `json:"thread,omitempty"` // "" unthreaded, "main", or the thread root's event ID
	TS     int64              `json:"ts"`               // ms
}

// MaxReceiptThreads bounds the threads of a room in which one user has receipts of one type; beyond it PutReceipt
// answers ErrTooManyReceipts.
const MaxReceiptThreads = 1000

// ErrTooManyReceipts: see MaxReceiptThreads.
var ErrTooManyReceipts = errors.New("receipts in too many threads")

// PutReceipt writes or replaces the receipt and logs ChangeReceipt with the type as Key and the event. Whether it moves
// forwards is the caller's question.
func (tx *Tx) PutReceipt(p *Receipt) (Position, error) {
	at := receiptKey(p.Room, p.User, p.Type, p.Thread)
	held, err := tx.has(at)
	if err != nil {
		return 0, err
	}
	if !held && p.Thread != "" {
		threads := 0
		if err := tx.Receipts(p.Room, p.User, p.Type, func(*Receipt) (bool, error) { threads++; return true, nil }); err != nil {
			return 0, err
		}
		if threads >= MaxReceiptThreads {
			return 0, ErrTooManyReceipts
		}
	}
	if err := tx.putJSON(at, p); err != nil {
		return 0, err
	}
	return tx.Log(Change{Kind: ChangeReceipt, Room: p.Room, User: p.User, Key: p.Type, Event: p.Event})
}

// Receipt reads one; ErrNotFound.
func (r *Reader) Receipt(room eventgraph.RoomID, user eventgraph.UserID, receiptType, thread string) (*Receipt, error) {
	p := Receipt{Room: room, User: user, Type: receiptType}
	if err := r.getJSON(receiptKey(room, user, receiptType, thread), &p); err != nil {
		return nil, err
	}
	return &p, nil
}

// Receipts calls f for the receipts of the room; of one user unless user is "", and then of one type unless receiptType is "".
func (r *Reader) Receipts(room eventgraph.RoomID, user eventgraph.UserID, receiptType string, f func(*Receipt) (bool, error)) error {
	prefix := key(tableReceipt).str(string(room))
	if user != "" {
		prefix = prefix.str(string(user))
		if receiptType != "" {
			prefix = prefix.str(receiptType)
		}
	}
	return r.scan(prefix, nil, false, func(k, value []byte) (bool, error) {
		p := parts(k)
		receipt := Receipt{Room: eventgraph.RoomID(p.str()), User: eventgraph.UserID(p.str()), Type: p.str()}
		if err := json.Unmarshal(value, &receipt); err != nil {
			return false, err
		}
		return f(&receipt)
	})
}

func receiptKey(room eventgraph.RoomID, user eventgraph.UserID, receiptType, thread string) []byte {
	return key(tableReceipt).str(string(room)).str(string(user)).str(receiptType).str(thread)
}

// ReadUpTo is the order of the last event that the user's receipts of the thread ("" = unthreaded) say is read: the further of
// m.read and m.read.private (CS API, Marking notifications as read). ErrNotFound if there is neither.
func (r *Reader) ReadUpTo(room eventgraph.RoomID, user eventgraph.UserID, thread string) (order int64, err error) {
	found := false
	for _, receiptType := range []string{"m.read", "m.read.private"} {
		receipt, err := r.Receipt(room, user, receiptType, thread)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		at, err := r.OrderOf(receipt.Event)
		if err != nil {
			return 0, err
		}
		if !found || at > order {
			found, order = true, at
		}
	}
	if !found {
		return 0, ErrNotFound
	}
	return order, nil
}

// OrderOf is the event's place in its room's order, 0 if the event is not held or has none.
func (r *Reader) OrderOf(id eventgraph.EventID) (int64, error) {
	e, err := r.Event(id)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return e.Order, nil
}
