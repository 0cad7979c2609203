package store

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Backups of room keys (CS API, Server-side key backups). A backup is deleted in two steps, since its keys may be more than
// one transaction holds: DropKeyBackup hides it, SweepKeyBackups removes what is hidden.

// Bounds on the backups of one user.
const (
	// MaxKeyBackups are kept; the oldest goes. Clients that reset a backup seldom delete the one before.
	MaxKeyBackups = 10
	// MaxBackupKeys and MaxBackupBytes bound the keys in all of a user's backups. A session is some 800 bytes and lasts for
	// a hundred messages of one device in one room, so this is twenty million messages.
	MaxBackupKeys  = 200_000
	MaxBackupBytes = 256 << 20
	// droppedKeys are deleted in one transaction; with IDs of the longest kind they still fit.
	droppedKeys = 1000
)

// ErrBackupFull: the user's backups hold MaxBackupKeys or MaxBackupBytes.
var ErrBackupFull = errors.New("the backups of room keys hold as much as they may")

// KeyBackup is one version of a user's backup.
type KeyBackup struct {
	Version   uint64          `json:"-"`
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int             `json:"count"`   // of its keys
	Bytes     int64           `json:"bytes"`   // of their records
	Changes   uint64          `json:"changes"` // transactions that have changed its keys
	Dropped   bool            `json:"dropped,omitempty"`
}

// BackupKey is the key of one megolm session. Its JSON is the spec's KeyBackupData.
type BackupKey struct {
	Room    eventgraph.RoomID `json:"-"`
	Session string            `json:"-"`

	FirstMessageIndex int64           `json:"first_message_index"`
	ForwardedCount    int64           `json:"forwarded_count"`
	IsVerified        bool            `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

// replaces says whether k is kept instead of the key that is there (CS API, Server-side key backups).
func (k *BackupKey) replaces(held *BackupKey) bool {
	if k.IsVerified != held.IsVerified {
		return k.IsVerified
	}
	if k.FirstMessageIndex != held.FirstMessageIndex {
		return k.FirstMessageIndex < held.FirstMessageIndex
	}
	return k.ForwardedCount < held.ForwardedCount
}

func keyBackupKey(user eventgraph.UserID, version uint64) dbKey {
	return key(tableKeyBackup).str(string(user)).u64(version)
}

// backupKeys is the prefix of the backup's keys, of one room ("" = all), of one session ("" = all of the room).
func backupKeys(user eventgraph.UserID, version uint64, room eventgraph.RoomID, session string) dbKey {
	k := key(tableBackupKey).str(string(user)).u64(version)
	if room != "" {
		k = k.str(string(room))
	}
	if session != "" {
		k = k.str(session)
	}
	return k
}

// KeyBackup reads one version of the user's backup; ErrNotFound.
func (r *Reader) KeyBackup(user eventgraph.UserID, version uint64) (*KeyBackup, error) {
	b := KeyBackup{Version: version}
	if err := r.getJSON(keyBackupKey(user, version), &b); err != nil {
		return nil, err
	}
	if b.Dropped {
		return nil, ErrNotFound
	}
	return &b, nil
}

// LatestKeyBackup is the version to which keys are written; ErrNotFound.
func (r *Reader) LatestKeyBackup(user eventgraph.UserID) (*KeyBackup, error) {
	var latest *KeyBackup
	err := r.keyBackups(user, true, func(b *KeyBackup) (bool, error) {
		if !b.Dropped {
			latest = b
		}
		return b.Dropped, nil
	})
	if err == nil && latest == nil {
		err = ErrNotFound
	}
	return latest, err
}

// keyBackups calls f for each version, dropped ones too.
func (r *Reader) keyBackups(user eventgraph.UserID, backwards bool, f func(*KeyBackup) (bool, error)) error {
	return r.scan(key(tableKeyBackup).str(string(user)), nil, backwards, func(k, value []byte) (bool, error) {
		p := parts(k)
		p.str()
		b := KeyBackup{Version: p.u64()}
		if err := json.Unmarshal(value, &b); err != nil {
			return false, err
		}
		return f(&b)
	})
}

// KeyBackupVersions is how many versions the user has made; the newest had that number.
func (r *Reader) KeyBackupVersions(user eventgraph.UserID) (uint64, error) {
	return r.getNumber(key(tableBackupVersions).str(string(user)))
}

// AddKeyBackup begins a new version and gives its number, which is never given again. Beyond MaxKeyBackups the oldest is
// dropped: SweepKeyBackups should follow.
func (tx *Tx) AddKeyBackup(user eventgraph.UserID, algorithm string, authData json.RawMessage) (uint64, error) {
	last, err := tx.KeyBackupVersions(user)
	if err != nil {
		return 0, err
	}
	var held []*KeyBackup
	err = tx.keyBackups(user, false, func(b *KeyBackup) (bool, error) {
		if !b.Dropped {
			held = append(held, b)
		}
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	for ; len(held) >= MaxKeyBackups; held = held[1:] {
		if err := tx.DropKeyBackup(user, held[0].Version); err != nil {
			return 0, err
		}
	}
	if err := tx.putNumber(key(tableBackupVersions).str(string(user)), last+1); err != nil {
		return 0, err
	}
	return last + 1, tx.putJSON(keyBackupKey(user, last+1), &KeyBackup{Algorithm: algorithm, AuthData: authData})
}

// PutKeyBackup replaces what is said of a version that AddKeyBackup has made.
func (tx *Tx) PutKeyBackup(user eventgraph.UserID, b *KeyBackup) error {
	return tx.putJSON(keyBackupKey(user, b.Version), b)
}

// DropKeyBackup hides the version with all its keys; ErrNotFound. SweepKeyBackups removes them.
func (tx *Tx) DropKeyBackup(user eventgraph.UserID, version uint64) error {
	b, err := tx.KeyBackup(user, version)
	if err != nil {
		return err
	}
	b.Dropped = true
	return tx.PutKeyBackup(user, b)
}

// DropKeyBackups hides all versions.
func (tx *Tx) DropKeyBackups(user eventgraph.UserID) error {
	return tx.keyBackups(user, false, func(b *KeyBackup) (bool, error) {
		b.Dropped = true
		return true, tx.PutKeyBackup(user, b)
	})
}

// SweepKeyBackups removes dropped versions, a part in each transaction: it is called until there is no more.
func (tx *Tx) SweepKeyBackups(user eventgraph.UserID) (more bool, err error) {
	var dropped *KeyBackup
	err = tx.keyBackups(user, false, func(b *KeyBackup) (bool, error) {
		if b.Dropped {
			dropped = b
		}
		return !b.Dropped, nil
	})
	if err != nil || dropped == nil {
		return false, err
	}
	if more, err := tx.deleteBackupKeys(dropped, user, "", ""); more || err != nil {
		return more, err
	}
	return true, tx.delete(keyBackupKey(user, dropped.Version))
}

// BackupKey reads one key as the spec's KeyBackupData; ErrNotFound.
func (r *Reader) BackupKey(user eventgraph.UserID, version uint64, room eventgraph.RoomID, session string) (json.RawMessage, error) {
	return r.get(backupKeys(user, version, room, session))
}

// BackupKeys calls f for each key of the room ("" = all rooms) behind that of afterRoom and afterSession (afterRoom "" = from
// the first), by room and session. data is the spec's KeyBackupData and valid only in f.
func (r *Reader) BackupKeys(user eventgraph.UserID, version uint64, room, afterRoom eventgraph.RoomID, afterSession string,
	f func(room eventgraph.RoomID, session string, data json.RawMessage) (bool, error)) error {
	var start dbKey
	if afterRoom != "" {
		start = append(backupKeys(user, version, afterRoom, afterSession), 0)
	}
	return r.scan(backupKeys(user, version, room, ""), start, false, func(k, value []byte) (bool, error) {
		p := parts(k)
		p.str()
		p.u64()
		return f(eventgraph.RoomID(p.str()), p.str(), value)
	})
}

// PutBackupKeys adds the keys to the version; where there is one of the session already, the better one stays. ErrNotFound,
// ErrBackupFull. It returns the version as it is then.
func (tx *Tx) PutBackupKeys(user eventgraph.UserID, version uint64, keys []BackupKey) (*KeyBackup, error) {
	b, err := tx.KeyBackup(user, version)
	if err != nil {
		return nil, err
	}
	count, size := 0, int64(0) // in all versions
	err = tx.keyBackups(user, false, func(b *KeyBackup) (bool, error) {
		count, size = count+b.Count, size+b.Bytes
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	count, size = count-b.Count, size-b.Bytes
	changed := false
	for i := range keys {
		at := backupKeys(user, version, keys[i].Room, keys[i].Session)
		was, err := tx.get(at)
		switch {
		case errors.Is(err, ErrNotFound):
			b.Count++
		case err != nil:
			return nil, err
		default:
			var held BackupKey
			if err := json.Unmarshal(was, &held); err != nil {
				return nil, err
			}
			if !keys[i].replaces(&held) {
				continue
			}
			b.Bytes -= int64(len(at) + len(was))
		}
		if err := tx.putJSON(at, &keys[i]); err != nil {
			return nil, err
		}
		value, err := tx.get(at)
		if err != nil {
			return nil, err
		}
		b.Bytes += int64(len(at) + len(value))
		changed = true
	}
	if !changed {
		return b, nil
	}
	if count+b.Count > MaxBackupKeys || size+b.Bytes > MaxBackupBytes {
		return nil, ErrBackupFull
	}
	b.Changes++
	return b, tx.PutKeyBackup(user, b)
}

// DeleteBackupKeys removes keys of the version: those of one room ("" = all), of one session ("" = all of the room); a part in each
// transaction, so it is called until there is no more. ErrNotFound. It returns the version as it is then.
func (tx *Tx) DeleteBackupKeys(user eventgraph.UserID, version uint64, room eventgraph.RoomID, session string) (b *KeyBackup, more bool, err error) {
	if b, err = tx.KeyBackup(user, version); err != nil {
		return nil, false, err
	}
	more, err = tx.deleteBackupKeys(b, user, room, session)
	return b, more, err
}

func (tx *Tx) deleteBackupKeys(b *KeyBackup, user eventgraph.UserID, room eventgraph.RoomID, session string) (more bool, err error) {
	deleted := 0
	err = tx.scan(backupKeys(user, b.Version, room, session), nil, false, func(k, value []byte) (bool, error) {
		if deleted == droppedKeys {
			more = true
			return false, nil
		}
		deleted++
		b.Count--
		b.Bytes -= int64(len(k) + len(value))
		return true, tx.delete(bytes.Clone(k))
	})
	if err != nil || deleted == 0 {
		return more, err
	}
	b.Changes++
	return more, tx.PutKeyBackup(user, b)
}
