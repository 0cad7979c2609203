package store

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestLongKey: what would be too long a key for Badger fails alone; the store goes on taking writes.
func TestLongKey(t *testing.T) {
	t.Parallel()
	s := open(t)
	for name, part := range map[string]string{"long": strings.Repeat("x", maxKey), "longer once escaped": strings.Repeat("\x00", maxKey/2)} {
		_, err := s.Update(context.Background(), func(tx *Tx) error { return tx.put(key(0xf0).str(part), nil) })
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.put(key(0xf0).str(strings.Repeat("x", maxKey-3)), nil) })
}
