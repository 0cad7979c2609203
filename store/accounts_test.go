package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestDeviceHasOneSession(t *testing.T) {
	t.Parallel()
	s := open(t)
	const user = eventgraph.UserID("@a:x")
	d := &Device{User: user, ID: "D", DisplayName: "phone", Token: TokenHash{1}}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutDevice(d) })
	d.Token = TokenHash{2}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutDevice(d) })
	check := func(want map[TokenHash]bool) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			for h, there := range want {
				found, err := r.Session(h)
				if there != (err == nil) || there && *found != (Session{user, "D"}) {
					t.Errorf("session %d: %+v, %v", h[0], found, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check(map[TokenHash]bool{{1}: false, {2}: true})
	err := s.View(func(r *Reader) error {
		read, err := r.Device(user, "D")
		if err == nil && *read != *d {
			t.Errorf("device %+v, want %+v", read, d)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteDevice(user, "D") })
	check(map[TokenHash]bool{{1}: false, {2}: false})
	if _, err := s.Update(t.Context(), func(tx *Tx) error { return tx.DeleteDevice(user, "D") }); !errors.Is(err, ErrNotFound) {
		t.Errorf("a device that is gone: %v", err)
	}
}

// Of a device that refreshes its token, three pairs are known; all others are forgotten.
func TestDeviceForgetsOldTokens(t *testing.T) {
	t.Parallel()
	s := open(t)
	d := &Device{User: alice, ID: phone, Token: TokenHash{1}, Refresh: TokenHash{101}}
	for i := byte(1); i <= 5; i++ {
		d.Next = TokenPair{Token: TokenHash{i + 1}, Refresh: TokenHash{i + 101}}
		mustUpdate(t, s, func(tx *Tx) error { return tx.PutDevice(d) })
		d.Rotate()
		mustUpdate(t, s, func(tx *Tx) error { return tx.PutDevice(d) })
		if d.Token[0] != i+1 || d.Refresh[0] != i+101 || d.Prev.Token[0] != i || d.Next != (TokenPair{}) {
			t.Fatalf("rotated %d times: %+v", i, d)
		}
	}
	known := func() (n int) {
		mustView(t, s, func(r *Reader) error {
			return r.scan(key(tableSession), nil, false, func(_, _ []byte) (bool, error) { n++; return true, nil })
		})
		return n
	}
	if n := known(); n != 4 {
		t.Errorf("%d tokens are known, want those in use and those before", n)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteDevice(alice, phone) })
	if n := known(); n != 0 {
		t.Errorf("%d tokens stay", n)
	}
}

// A user's account data has a quota in bytes, for all rooms together, which is given back with what is replaced or removed.
func TestAccountDataBytes(t *testing.T) {
	t.Parallel()
	s := open(t)
	put := func(room eventgraph.RoomID, dataType string, size int) error {
		_, err := s.Update(t.Context(), func(tx *Tx) error {
			content := []byte(`{"x":"` + strings.Repeat("x", size) + `"}`)
			_, err := tx.PutAccountData("@a:x", room, &AccountData{Type: dataType, Content: content})
			return err
		})
		return err
	}
	// One that was kept before anything was counted.
	mustUpdate(t, s, func(tx *Tx) error {
		return tx.putJSON(key(tableAccountData).str("@a:x").str("").str("old"), &AccountData{Type: "old", Content: []byte(`"` + strings.Repeat("x", 512<<10) + `"`)})
	})
	const one = 512<<10 - 1024
	n := 0
	for ; n < 40; n++ {
		if err := put(eventgraph.RoomID(fmt.Sprintf("!%d", n%3)), fmt.Sprint(n), one); errors.Is(err, ErrAccountDataBytes) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n != MaxAccountDataBytes/(512<<10)-1 {
		t.Errorf("%d times half a MiB were taken beside the first", n)
	}
	for _, step := range []struct {
		what, dataType string
		size           int
		err            error
	}{
		{"as much again", "0", one, nil}, {"more", "0", one + 64<<10, ErrAccountDataBytes}, {"less", "0", 10, nil}, {"one more", "more", one, nil},
		{"two more", "more2", one, ErrAccountDataBytes},
	} {
		if err := put("!0", step.dataType, step.size); !errors.Is(err, step.err) {
			t.Errorf("%s: %v, want %v", step.what, err, step.err)
		}
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteAllAccountData("@a:x") })
	err := s.View(func(r *Reader) error {
		if left, err := r.accountDataBytes("@a:x"); left != 0 || err != nil {
			t.Errorf("%d bytes are counted of nothing, %v", left, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAccountDataIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	put := func(room eventgraph.RoomID, dataType string) error {
		_, err := s.Update(t.Context(), func(tx *Tx) error {
			_, err := tx.PutAccountData("@a:x", room, &AccountData{Type: dataType, Content: []byte(`{"h":"<&>"}`)})
			return err
		})
		return err
	}
	// Written by hand: PutAccountData would count a thousand times.
	mustUpdate(t, s, func(tx *Tx) error {
		for i := range MaxAccountData - 1 {
			k := key(tableAccountData).str("@a:x").str("").str(fmt.Sprint(i))
			if err := tx.putJSON(k, &AccountData{Type: fmt.Sprint(i), Content: []byte(`{}`)}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, step := range []struct {
		room     eventgraph.RoomID
		dataType string
		err      error
	}{
		{"", "last", nil}, {"", "more", ErrAccountDataFull}, {"", "last", nil}, {"!r", "more", nil},
	} {
		if err := put(step.room, step.dataType); !errors.Is(err, step.err) {
			t.Errorf("%q in room %q: %v, want %v", step.dataType, step.room, err, step.err)
		}
	}
	err := s.View(func(r *Reader) error {
		d, err := r.AccountData("@a:x", "", "last")
		if err == nil && string(d.Content) != `{"h":"<&>"}` {
			t.Errorf("content %s", d.Content)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteAllAccountData("@a:x") })
	err = s.View(func(r *Reader) error {
		return r.AllAccountData("@a:x", "!r", func(d *AccountData) (bool, error) {
			t.Errorf("%s stays", d.Type)
			return true, nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}
