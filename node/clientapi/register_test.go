package clientapi

import (
	"testing"

	"github.com/plexus-p2p/plexus/store"
)

// There are as many people as the bound says, and not one more.
func TestMostAccounts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.newClient("first")
	s.update(func(tx *store.Tx) error {
		for range maxAccounts - 2 {
			if _, err := tx.CountPerson(); err != nil {
				return err
			}
		}
		return nil
	})
	s.newClient("last")
	for range 2 { // who was refused is not counted
		if _, err := s.CreateUser(t.Context(), "late", testPassword); err == nil {
			t.Fatal("one account too many")
		}
	}
	s.update(func(tx *store.Tx) error {
		if n, err := tx.CountPerson(); n != maxAccounts+1 || err != nil {
			t.Errorf("%d counted with one more, %v", n, err)
		}
		return nil
	})
}
