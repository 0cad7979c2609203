package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func backupKey(room, session string, first, forwarded int64, verified bool) BackupKey {
	return BackupKey{
		Room: eventgraph.RoomID(room), Session: session, FirstMessageIndex: first, ForwardedCount: forwarded, IsVerified: verified,
		SessionData: json.RawMessage(`{"a":"<b>"}`),
	}
}

// Of two keys for a session the better one stays, whichever came first (CS API, Server-side key backups).
func TestBackupKeepsTheBetterKey(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error { _, err := tx.AddKeyBackup(alice, "m", json.RawMessage(`{}`)); return err })
	better := []BackupKey{ // from the best to the worst
		backupKey("!r", "", 1, 9, true), backupKey("!r", "", 2, 0, true), backupKey("!r", "", 2, 1, true),
		backupKey("!r", "", 0, 5, false), backupKey("!r", "", 0, 6, false), backupKey("!r", "", 1, 0, false),
	}
	for i, x := range better {
		for j, y := range better {
			session := fmt.Sprintf("%d-%d", i, j)
			x.Session, y.Session = session, session
			mustUpdate(t, s, func(tx *Tx) error {
				for _, k := range []BackupKey{x, y} {
					if _, err := tx.PutBackupKeys(alice, 1, []BackupKey{k}); err != nil {
						return err
					}
				}
				return nil
			})
			mustView(t, s, func(r *Reader) error {
				data, err := r.BackupKey(alice, 1, "!r", session)
				if err != nil {
					return err
				}
				want, _ := json.Marshal(better[min(i, j)])
				var got BackupKey
				if err := json.Unmarshal(data, &got); err != nil {
					return err
				}
				if again, _ := json.Marshal(got); string(again) != string(want) {
					t.Errorf("%s: %s, want %s", session, again, want)
				}
				return nil
			})
		}
	}
}

// backupSums recounts what the record of a backup says of its keys.
func backupSums(t *testing.T, s *Store, version uint64) {
	t.Helper()
	mustView(t, s, func(r *Reader) error {
		b, err := r.KeyBackup(alice, version)
		if err != nil {
			return err
		}
		count, size := 0, int64(0)
		err = r.scan(backupKeys(alice, version, "", ""), nil, false, func(k, value []byte) (bool, error) {
			count, size = count+1, size+int64(len(k)+len(value))
			return true, nil
		})
		if count != b.Count || size != b.Bytes {
			t.Errorf("%d keys of %d bytes, the record says %d of %d", count, size, b.Count, b.Bytes)
		}
		return err
	})
}

func TestBackupsAreBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	add := func() {
		t.Helper()
		mustUpdate(t, s, func(tx *Tx) error { _, err := tx.AddKeyBackup(alice, "m", json.RawMessage(`{}`)); return err })
	}
	put := func(version uint64, keys ...BackupKey) error {
		_, err := s.Update(t.Context(), func(tx *Tx) error { _, err := tx.PutBackupKeys(alice, version, keys); return err })
		return err
	}
	add()
	add()
	for _, full := range []KeyBackup{{Count: MaxBackupKeys}, {Bytes: MaxBackupBytes}} {
		full.Version = 1
		mustUpdate(t, s, func(tx *Tx) error { return tx.PutKeyBackup(alice, &full) })
		if err := put(2, backupKey("!r", "s", 0, 0, false)); !errors.Is(err, ErrBackupFull) {
			t.Errorf("%+v: %v", full, err)
		}
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutKeyBackup(alice, &KeyBackup{Version: 1, Algorithm: "m"}) })
	if err := put(2, backupKey("!r", "s", 0, 0, false), backupKey("!r", "t", 4, 0, false)); err != nil {
		t.Fatal(err)
	}
	if err := put(2, backupKey("!r", "t", 3, 0, true)); err != nil {
		t.Fatal(err)
	}
	backupSums(t, s, 2)
	if err := put(3, backupKey("!r", "s", 0, 0, false)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a version that is not there: %v", err)
	}

	for range MaxKeyBackups {
		add()
	}
	mustView(t, s, func(r *Reader) error {
		if _, err := r.KeyBackup(alice, 2); !errors.Is(err, ErrNotFound) {
			t.Errorf("the oldest is not dropped: %v", err)
		}
		_, err := r.KeyBackup(alice, 3)
		return err
	})
}

// A backup of more keys than one transaction may delete goes in parts, and nothing of it stays.
func TestSweepKeyBackups(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error { _, err := tx.AddKeyBackup(alice, "m", json.RawMessage(`{}`)); return err })
	const n = droppedKeys + 500
	var keys []BackupKey
	for i := range n {
		keys = append(keys, backupKey(fmt.Sprint("!", i%3), fmt.Sprint(i), 0, 0, false))
	}
	mustUpdate(t, s, func(tx *Tx) error { _, err := tx.PutBackupKeys(alice, 1, keys); return err })
	backupSums(t, s, 1)
	mustUpdate(t, s, func(tx *Tx) error {
		b, more, err := tx.DeleteBackupKeys(alice, 1, "!1", "")
		if more || b.Count != n-n/3 || b.Changes != 2 {
			t.Errorf("one room less: %+v, more %v", b, more)
		}
		return err
	})
	backupSums(t, s, 1)
	mustUpdate(t, s, func(tx *Tx) error { return tx.DropKeyBackup(alice, 1) })
	mustView(t, s, func(r *Reader) error {
		if _, err := r.LatestKeyBackup(alice); !errors.Is(err, ErrNotFound) {
			t.Errorf("a dropped backup: %v", err)
		}
		return nil
	})
	rounds := 0
	for more := true; more; rounds++ {
		mustUpdate(t, s, func(tx *Tx) (err error) { more, err = tx.SweepKeyBackups(alice); return err })
	}
	if rounds < 2 {
		t.Errorf("%d rounds", rounds)
	}
	mustView(t, s, func(r *Reader) error {
		for _, table := range []table{tableKeyBackup, tableBackupKey} {
			err := r.scan(key(table), nil, false, func(k, _ []byte) (bool, error) {
				t.Errorf("%x stays", k)
				return false, nil
			})
			if err != nil {
				return err
			}
		}
		if last, err := r.KeyBackupVersions(alice); last != 1 {
			t.Errorf("the number of versions is %d, %v", last, err)
		}
		return nil
	})
}
