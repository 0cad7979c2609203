package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestPushers(t *testing.T) {
	t.Parallel()
	s := open(t)
	a := Pusher{PusherKey: PusherKey{"@a:s", "app", "key"}, Device: "D1", UpdatedTS: 5, Lang: "en", URL: "https://example.org/", Data: json.RawMessage(`{"x":1}`)}
	b := a
	b.User, b.Device = "@b:s", "D2"
	other := a
	other.Key, other.Device = "key\x00two", "D2"
	update := func(f func(tx *Tx) error) Position {
		t.Helper()
		at, err := s.Update(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	kinds := func(after Position) (kinds []ChangeKind) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			return r.Changes(after, r.Position(), func(_ Position, c Change) (bool, error) { kinds = append(kinds, c.Kind); return true, nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return kinds
	}
	list := func() (keys []string) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			return r.Pushers("", func(p *Pusher) (bool, error) { keys = append(keys, string(p.User)+" "+p.Key); return true, nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	cursor := func(k PusherKey) (at Position) {
		t.Helper()
		if err := s.View(func(r *Reader) (err error) { at, err = r.PusherCursor(k); return err }); err != nil {
			t.Fatal(err)
		}
		return at
	}

	before := s.Position()
	at := update(func(tx *Tx) error {
		return errors.Join(tx.PutPusher(&a), tx.PutPusher(&b), tx.PutPusher(&other))
	})
	if got := kinds(before); !slices.Equal(got, []ChangeKind{ChangePusher, ChangePusher, ChangePusher}) {
		t.Errorf("changes %v", got)
	}
	if got := cursor(other.PusherKey); got != at {
		t.Errorf("a new pusher begins at %d, set at %d", got, at)
	}
	update(func(tx *Tx) error { return tx.PutPusherCursor(a.PusherKey, 77) })
	a.Lang, a.UpdatedTS = "de", 6
	update(func(tx *Tx) error { return tx.PutPusher(&a) })
	if got := cursor(a.PusherKey); got != 77 {
		t.Errorf("a pusher that is set anew goes on from %d, want 77", got)
	}
	err := s.View(func(r *Reader) error {
		got, err := r.Pusher(a.PusherKey)
		if err == nil && (fmt.Sprint(*got) != fmt.Sprint(a)) {
			t.Errorf("got %+v, want %+v", *got, a)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	update(func(tx *Tx) error { return tx.DeletePushersOf("@a:s", "D2") })
	if got := list(); !slices.Equal(got, []string{"@a:s key", "@b:s key"}) {
		t.Errorf("left: %q", got)
	}
	before = s.Position()
	update(func(tx *Tx) error { return errors.Join(tx.DeletePusher(a.PusherKey), tx.DeletePusher(a.PusherKey)) })
	if got := kinds(before); !slices.Equal(got, []ChangeKind{ChangePusher}) {
		t.Errorf("removing one twice: %v", got)
	}
	if _, err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutPusherCursor(a.PusherKey, 80) }); !errors.Is(err, ErrNotFound) {
		t.Errorf("the cursor of a pusher that has gone: %v", err)
	}

	_, err = s.Update(t.Context(), func(tx *Tx) error {
		for i := range MaxPushers + 1 {
			p := a
			p.Key = fmt.Sprint(i)
			if err := tx.PutPusher(&p); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrTooManyPushers) {
		t.Errorf("one too many: %v", err)
	}
}

func TestChangesBefore(t *testing.T) {
	t.Parallel()
	s := open(t)
	var want []Position
	for range 5 {
		at, err := s.Update(t.Context(), func(tx *Tx) error { _, err := tx.Log(Change{Kind: ChangeProfile}); return err })
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, at)
	}
	err := s.View(func(r *Reader) error {
		var got []Position
		err := r.ChangesBefore(want[3], func(p Position, _ Change) (bool, error) {
			got = append(got, p)
			return len(got) < 3, nil
		})
		if !slices.Equal(got, []Position{want[3], want[2], want[1]}) {
			t.Errorf("got %v of %v", got, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
