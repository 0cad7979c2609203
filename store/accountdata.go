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

// PutAccountData writes or replaces one type and logs ChangeAccountData; ErrAccountDataFull.
func (tx *Tx) PutAccountData(user eventgraph.UserID, room eventgraph.RoomID, d *AccountData) (Position, error) {
	_, err := tx.AccountData(user, room, d.Type)
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
	if err := tx.putJSON(key(tableAccountData).str(string(user)).str(string(room)).str(d.Type), d); err != nil {
		return 0, err
	}
	return tx.Log(Change{Kind: ChangeAccountData, User: user, Room: room, Key: d.Type})
}

// DeleteAllAccountData removes all account data of a user, without logging it: there is no client left to tell.
func (tx *Tx) DeleteAllAccountData(user eventgraph.UserID) error {
	var keys [][]byte
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
