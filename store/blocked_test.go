package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestBlocked(t *testing.T) {
	t.Parallel()
	s, err := Open("", Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	do := func(f func(tx *Tx) error) error {
		_, err := s.Update(t.Context(), f)
		return err
	}
	blocked := func() (all []string) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			return r.Blocked(func(server eventgraph.ServerName, since int64) (bool, error) {
				all = append(all, fmt.Sprint(server, " ", since))
				return true, nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for i, server := range []eventgraph.ServerName{"b", "a", "b"} {
		if err := do(func(tx *Tx) error { return tx.Block(server, int64(i+1)) }); err != nil {
			t.Fatal(err)
		}
	}
	if got := blocked(); !slices.Equal(got, []string{"a 2", "b 1"}) {
		t.Errorf("blocked: %v", got)
	}
	if err := do(func(tx *Tx) error { return tx.Unblock("b") }); err != nil {
		t.Fatal(err)
	}
	if err := do(func(tx *Tx) error { return tx.Unblock("b") }); !errors.Is(err, ErrNotFound) {
		t.Errorf("unblocked twice: %v", err)
	}
	err = do(func(tx *Tx) error {
		for i := range MaxBlocked - 1 {
			if err := tx.put(key(tableBlocked).str(fmt.Sprint(i)), make([]byte, 8)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := do(func(tx *Tx) error { return tx.Block("one more", 1) }); !errors.Is(err, ErrTooManyBlocked) {
		t.Errorf("one too many: %v", err)
	}
	if got := blocked(); len(got) != MaxBlocked {
		t.Errorf("%d are blocked", len(got))
	}
}
