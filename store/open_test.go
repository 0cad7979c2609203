package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
)

func TestReopenKeepsIncarnation(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s, err := Open(dir, Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	id := s.Incarnation()
	if id == (Incarnation{}) || s.Loss() != "" {
		t.Fatalf("new store: incarnation %x, loss %q", id, s.Loss())
	}
	if _, err := Open(dir, Options{small: true}); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v, want ErrLocked", err)
	}
	if err := workCommit(s, 1); err != nil {
		t.Fatal(err)
	}
	old := snapshot(t, dir)
	if err := workCommit(s, 2); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(context.Background(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("update after close: %v", err)
	}
	if err := s.View(func(*Reader) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("view after close: %v", err)
	}
	s = openAt(t, dir, Options{small: true})
	if s.Incarnation() != id || s.Loss() != "" || s.Position() != 4 {
		t.Errorf("reopened: incarnation %x, was %x; loss %q; position %d", s.Incarnation(), id, s.Loss(), s.Position())
	}

	// The database put back from before, beside the files of now.
	now := snapshot(t, dir)
	for _, name := range []string{"witness", "incarnation"} {
		old[name] = now[name]
	}
	back := openAt(t, old.write(t), Options{small: true})
	if back.Incarnation() == id || !strings.Contains(back.Loss(), "lost") {
		t.Errorf("rolled back: incarnation kept: %v, loss %q", back.Incarnation() == id, back.Loss())
	}
	// Once told, it is over.
	again := snapshot(t, back.dir).write(t)
	reopened := openAt(t, again, Options{small: true})
	if reopened.Incarnation() != back.Incarnation() || reopened.Loss() != "" {
		t.Errorf("after the loss: incarnation kept: %v, loss %q", reopened.Incarnation() == back.Incarnation(), reopened.Loss())
	}
}

func TestFilesOfAnotherLife(t *testing.T) {
	t.Parallel()
	make := func() files {
		dir := ramDir(t)
		s := openAt(t, dir, Options{small: true})
		if err := workCommit(s, 1); err != nil {
			t.Fatal(err)
		}
		return snapshot(t, dir)
	}
	a, b := make(), make()
	for _, c := range []struct {
		name   string
		change func(f files)
	}{
		{"other witness", func(f files) { f["witness"] = b["witness"] }},
		{"other incarnation", func(f files) { f["incarnation"] = b["incarnation"] }},
		{"no witness", func(f files) { delete(f, "witness") }},
		{"no incarnation", func(f files) { delete(f, "incarnation") }},
		{"no database", func(f files) {
			for name := range f {
				if name != "witness" && name != "incarnation" {
					delete(f, name)
				}
			}
		}},
	} {
		f := a.copy()
		c.change(f)
		s, err := Open(f.write(t), Options{small: true})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s.Loss() == "" {
			t.Errorf("%s: no word of it", c.name)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOtherSchema(t *testing.T) {
	t.Parallel()
	for schema, want := range map[string]error{"1": ErrOlder, "2": ErrOlder, strconv.Itoa(schemaVersion + 1): ErrNewer, "": ErrNewer, "x": ErrNewer} {
		dir := ramDir(t)
		s, err := Open(dir, Options{small: true})
		if err != nil {
			t.Fatal(err)
		}
		mustUpdate(t, s, func(tx *Tx) error { return tx.put(keySchema, []byte(schema)) })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // it is left as it is
			if _, err := Open(dir, Options{small: true}); !errors.Is(err, want) {
				t.Errorf("schema %q: %v, want %v", schema, err, want)
			}
		}
	}
}
