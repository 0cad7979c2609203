package store

import (
	"crypto/rand"
	"errors"
	"math"
	"strconv"
)

// schemaVersion is that of the layout in keys.go.
const schemaVersion = 1

var (
	keySchema      = key(tableMeta).str("schema")
	keyIncarnation = key(tableMeta).str("incarnation")
)

// recover finds the newest commit and checks it against the witness.
func (s *Store) recover() error {
	txn := s.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	r := &Reader{s: s, txn: txn, ts: math.MaxUint64}
	// 1. Schema.
	v, err := r.get(keySchema)
	if err == nil {
		if n, err := strconv.Atoi(string(v)); err != nil || n > schemaVersion {
			return ErrNewer
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	// 2. Newest commit.
	err = r.scan(key(tableCommit), nil, true, func(k, v []byte) (bool, error) {
		s.last, err = decodeCommit(parts(k).u64(), v)
		return false, err
	})
	if err != nil {
		return err
	}
	// 3. Incarnation.
	id, err := r.get(keyIncarnation)
	if err == nil {
		copy(s.incarnation[:], id)
		return nil
	}
	rand.Read(s.incarnation[:])
	g := &group{s: s, snap: r, pending: newOverlay(), last: s.last.Position}
	g.pending.write(keySchema, write{value: []byte(strconv.Itoa(schemaVersion))})
	g.pending.write(keyIncarnation, write{value: s.incarnation[:]})
	return s.commit(g)
}
