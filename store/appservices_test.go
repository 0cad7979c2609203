package store

import (
	"errors"
	"testing"
)

func TestServiceUsersAreBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error {
		return tx.putNumber(key(tableServiceUsers).str("irc"), MaxServiceUsers-1)
	})
	mustUpdate(t, s, func(tx *Tx) error {
		if err := tx.CountServiceUser("irc"); err != nil {
			t.Errorf("the last that is allowed: %v", err)
		}
		return nil
	})
	mustUpdate(t, s, func(tx *Tx) error {
		if err := tx.CountServiceUser("irc"); !errors.Is(err, ErrTooManyUsers) {
			t.Errorf("one more: %v", err)
		}
		if err := tx.CountServiceUser("other"); err != nil {
			t.Errorf("another service: %v", err)
		}
		return nil
	})
}
