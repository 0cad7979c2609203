package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// AccountData is one piece of what a user's clients keep here, for the user (Room "") or for one room.
type AccountData struct {
	Type    string
	Content json.RawMessage
	Origin  eventgraph.PeerID
}

// ErrAccountDataFull: the user keeps MaxAccountData types in that room, or globally, already.
var ErrAccountDataFull = errors.New("too many types of account data")

// MaxAccountData bounds the types of account data of one user in one room, and globally. Clients name types after keys and
// devices, so a busy account has some tens.
const MaxAccountData = 1000

// MaxAccountDataBytes bounds all account data of a user, for rooms too. A busy account of years has less than 1 MiB: a list of direct chats, push rules,
// some records for each room. All of what is global stands in a first /sync.
const MaxAccountDataBytes = 16 << 20

// ErrAccountDataBytes: the user's account data would be more than MaxAccountDataBytes.
var ErrAccountDataBytes = errors.New("too much account data")

// AccountData reads one type; ErrNotFound.
func (r *Reader) AccountData(user eventgraph.UserID, room eventgraph.RoomID, dataType string) (*AccountData, error) {
	var d AccountData
	if err := r.getJSON(key(tableAccountData).str(string(user)).str(string(room)).str(dataType), &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// AccountDataSum is a sum of one type as it is stored, which need not be parsed for it: another one if it has changed, zero if there is none.
func (r *Reader) AccountDataSum(user eventgraph.UserID, room eventgraph.RoomID, dataType string) (sum [sha256.Size]byte, err error) {
	err = r.read(key(tableAccountData).str(string(user)).str(string(room)).str(dataType), func(value []byte) error {
		sum = sha256.Sum256(value)
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return sum, err
}

// AllAccountData calls f for each type that the user keeps for the room ("" = global), by type.
func (r *Reader) AllAccountData(user eventgraph.UserID, room eventgraph.RoomID, f func(*AccountData) (bool, error)) error {
	return r.scan(key(tableAccountData).str(string(user)).str(string(room)), nil, false, func(_, value []byte) (bool, error) {
		var d AccountData
		if err := json.Unmarshal(value, &d); err != nil {
			return false, err
		}
		return f(&d)
	})
}

// PutAccountData writes or replaces one type and logs ChangeAccountData; ErrAccountDataFull, ErrAccountDataBytes.
func (tx *Tx) PutAccountData(user eventgraph.UserID, room eventgraph.RoomID, d *AccountData) (Position, error) {
	k := key(tableAccountData).str(string(user)).str(string(room)).str(d.Type)
	before, err := tx.valueSize(k)
	if errors.Is(err, ErrNotFound) {
		count := 0
		err = tx.scan(key(tableAccountData).str(string(user)).str(string(room)), nil, false, func(_, _ []byte) (bool, error) {
			count++
			return true, nil
		})
		if err == nil && count >= MaxAccountData {
			return 0, ErrAccountDataFull
		}
	}
	if err != nil {
		return 0, err
	}
	value, err := encode(d)
	if err != nil {
		return 0, err
	}
	size, err := tx.accountDataBytes(user)
	if err != nil {
		return 0, err
	}
	// What makes it less is always taken.
	if more := len(value) - before; more > 0 && size+int64(more) > MaxAccountDataBytes {
		return 0, ErrAccountDataBytes
	}
	if err := tx.putNumber(key(tableAccountDataBytes).str(string(user)), uint64(size+int64(len(value)-before))); err != nil {
		return 0, err
	}
	if err := tx.put(k, value); err != nil {
		return 0, err
	}
	return tx.Log(Change{Kind: ChangeAccountData, User: user, Room: room, Key: d.Type})
}

// valueSize is the length of a value; ErrNotFound.
func (r *Reader) valueSize(k dbKey) (size int, err error) {
	err = r.read(k, func(value []byte) error {
		size = len(value)
		return nil
	})
	return size, err
}

// accountDataBytes is the bytes of all values of a user; where they were never counted, they are now.
func (r *Reader) accountDataBytes(user eventgraph.UserID) (int64, error) {
	n, err := r.getNumber(key(tableAccountDataBytes).str(string(user)))
	if err != nil || n > 0 {
		return int64(n), err
	}
	sum := int64(0)
	err = r.scan(key(tableAccountData).str(string(user)), nil, false, func(_, value []byte) (bool, error) {
		sum += int64(len(value))
		return true, nil
	})
	return sum, err
}

// DeleteAllAccountData removes all account data of a user, without logging it: there is no client left to tell.
func (tx *Tx) DeleteAllAccountData(user eventgraph.UserID) error {
	keys := [][]byte{key(tableAccountDataBytes).str(string(user))}
	err := tx.scan(key(tableAccountData).str(string(user)), nil, false, func(k, _ []byte) (bool, error) {
		keys = append(keys, bytes.Clone(k))
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := tx.delete(k); err != nil {
			return err
		}
	}
	return nil
}
