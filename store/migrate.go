package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// migrate brings a store of an older schema up to date, before anything else uses it. So far each step only adds entries that
// follow from others: cut off in the middle it is done again at the next Open, so nothing needs to be put aside first.
func (s *Store) migrate(from int) error {
	if err := s.reserve.check(); err != nil {
		return err
	}
	s.log.Info("bringing the store up to date; this is done once", "schema", from, "to", schemaVersion)
	if from < 4 {
		if err := s.indexThreads(); err != nil {
			return fmt.Errorf("schema 4: %w", err)
		}
	}
	if from < 5 {
		if err := s.countPeople(); err != nil {
			return fmt.Errorf("schema 5: %w", err)
		}
	}
	return s.writeDirectly(func(g *group) error {
		return g.pending.write(keySchema, write{value: []byte(strconv.Itoa(schemaVersion))})
	})
}

// indexThreads writes tableThread, which schema 3 did not have, from tableRelation.
func (s *Store) indexThreads() error {
	r := &Reader{s: s, txn: s.db.NewTransactionAt(math.MaxUint64, false), ts: math.MaxUint64}
	defer r.txn.Discard()
	var replies []*StoredEvent
	flush := func() error {
		defer func() { replies = nil }()
		return s.writeDirectly(func(g *group) error {
			for _, e := range replies {
				rel, _ := relationOf(e)
				if err := g.pending.write(threadKey(e), write{value: []byte(rel.Parent)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := r.scan(key(tableRelation), nil, false, func(k, v []byte) (bool, error) {
		fields := fieldReader{rest: v}
		if fields.string() != threadRelation {
			return true, nil
		}
		p := parts(k)
		p.str()
		p.i64()
		e, err := r.Event(eventgraph.EventID(p.str()))
		if errors.Is(err, ErrNotFound) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if rel, ok := relationOf(e); ok && rel.Type == threadRelation {
			replies = append(replies, e)
		}
		if len(replies) == migratedAtOnce {
			return true, flush()
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// countPeople writes keyPeople, which schema 4 did not have.
func (s *Store) countPeople() error {
	return s.writeDirectly(func(g *group) error {
		people := uint64(0)
		err := g.snap.Accounts(func(a *Account) (bool, error) {
			if a.Service == "" {
				people++
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		return g.pending.write(keyPeople, write{value: binary.BigEndian.AppendUint64(nil, people)})
	})
}

// migratedAtOnce bounds the entries of one commit of a migration, which stays well below what Badger takes.
const migratedAtOnce = 200

// writeDirectly commits what f writes; for Open alone, before there is a committer.
func (s *Store) writeDirectly(f func(*group) error) error {
	r := &Reader{s: s, txn: s.db.NewTransactionAt(math.MaxUint64, false), ts: math.MaxUint64}
	defer r.txn.Discard()
	g := &group{s: s, snap: r, pending: newOverlay(), last: s.last.Position}
	if err := f(g); err != nil {
		return err
	}
	return s.commit(g)
}
