package store

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A store of schema 3, which knew no threads, gets its index of them at the next Open, once.
func TestMigrateThreads(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s, err := Open(dir, Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	const replies = migratedAtOnce + 3
	root := message(t, `{"body":"root"}`)
	for first := int64(1); first <= replies; first += 50 {
		mustUpdate(t, s, func(tx *Tx) error {
			for order := first; order < first+50 && order <= replies; order++ {
				rel := threadRelation
				if order == 2 {
					rel = "m.annotation"
				}
				e := message(t, fmt.Sprintf(`{"body":"%d","m.relates_to":{"rel_type":%q,"event_id":%q}}`, order, rel, root.ID()))
				if err := tx.PutEvent(&StoredEvent{Event: e, Verdict: Accepted, Order: order}); err != nil {
					return err
				}
				if err := tx.delete(key(tableThread).str(string(testRoom)).i64(order)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.put(keySchema, []byte("3")) })
	id := s.Incarnation()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = openAt(t, dir, Options{small: true})
		n := 0
		mustView(t, s, func(r *Reader) error {
			if v, err := r.get(keySchema); err != nil || string(v) != strconv.Itoa(schemaVersion) {
				t.Errorf("schema %s, %v", v, err)
			}
			return r.ThreadReplies(testRoom, replies+1, func(order int64, in eventgraph.EventID) (bool, error) {
				n++
				if in != root.ID() || order == 2 {
					t.Errorf("%d is in the thread %s", order, in)
				}
				return true, nil
			})
		})
		if n != replies-1 || s.Incarnation() != id || s.Loss() != "" {
			t.Errorf("%d replies, want %d; loss %q", n, replies-1, s.Loss())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A store of schema 4, which did not count people, does so at the next Open.
func TestMigratePeople(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s, err := Open(dir, Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(tx *Tx) error {
		for user, service := range map[eventgraph.UserID]string{"@a:x": "", "@b:x": "", "@irc_c:x": "irc"} {
			if err := tx.PutAccount(&Account{User: user, Service: service}); err != nil {
				return err
			}
		}
		return tx.put(keySchema, []byte("4"))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, Options{small: true})
	mustUpdate(t, s, func(tx *Tx) error {
		if n, err := tx.CountPerson(); n != 3 || err != nil {
			t.Errorf("%d people with one more, %v", n, err)
		}
		return nil
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
