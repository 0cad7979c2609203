package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		runChild(what, os.Getenv(childDirEnv))
		return
	}
	goleak.VerifyTestMain(m)
}

// open opens a store in memory that ends with the test.
func open(t testing.TB) *Store {
	t.Helper()
	return openAt(t, "", Options{InMemory: true})
}

func openAt(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustUpdate(t testing.TB, s *Store, f func(tx *Tx) error) Position {
	t.Helper()
	p, err := s.Update(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustView(t testing.TB, s *Store, f func(r *Reader) error) {
	t.Helper()
	if err := s.View(f); err != nil {
		t.Fatal(err)
	}
}

// tk is a key in a table that only tests use.
func tk(name string) dbKey { return key(0xf0).str(name) }

func (r *Reader) testScan(prefix string, start []byte, backwards bool) ([]string, error) {
	var got []string
	err := r.scan(key(0xf0).bytes([]byte(prefix)), start, backwards, func(k, v []byte) (bool, error) {
		got = append(got, parts(k).str()+"="+string(v))
		return true, nil
	})
	return got, err
}

func TestUpdateReadsItsOwnWrites(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.put(tk("a"), []byte("1")), tk2(tx, "b", "2"), tk2(tx, "c", "3"))
	})
	mustUpdate(t, s, func(tx *Tx) error {
		if err := errors.Join(tx.delete(tk("b")), tk2(tx, "c", "4"), tk2(tx, "d", "5"), tk2(tx, "bb", "6")); err != nil {
			return err
		}
		for _, c := range []struct {
			prefix    string
			start     []byte
			backwards bool
			want      string
		}{
			{"", nil, false, "a=1 bb=6 c=4 d=5"},
			{"", nil, true, "d=5 c=4 bb=6 a=1"},
			{"", tk("b"), false, "bb=6 c=4 d=5"},
			{"", tk("b"), true, "a=1"},
			{"", tk("c"), true, "c=4 bb=6 a=1"},
			{"b", nil, false, "bb=6"},
			{"b", nil, true, "bb=6"},
		} {
			got, err := tx.testScan(c.prefix, c.start, c.backwards)
			if err != nil {
				return err
			}
			if g := strings.Join(got, " "); g != c.want {
				t.Errorf("scan %q from %q backwards=%v: %s, want %s", c.prefix, c.start, c.backwards, g, c.want)
			}
		}
		if _, err := tx.get(tk("b")); !errors.Is(err, ErrNotFound) {
			t.Errorf("deleted key: %v", err)
		}
		return nil
	})
	mustView(t, s, func(r *Reader) error {
		got, err := r.testScan("", nil, true)
		if want := "d=5 c=4 bb=6 a=1"; strings.Join(got, " ") != want {
			t.Errorf("after commit: %s, want %s", got, want)
		}
		return err
	})
}

func tk2(tx *Tx, k, v string) error { return tx.put(tk(k), []byte(v)) }

func TestFailedFunctionLeavesNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error { return tk2(tx, "a", "1") })
	boom := errors.New("boom")
	// Many at once, so that good and bad ones share groups.
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			_, err := s.Update(context.Background(), func(tx *Tx) error {
				if _, err := tx.Log(Change{Kind: ChangeProfile, Key: fmt.Sprint(i)}); err != nil {
					return err
				}
				if i%2 == 1 {
					if err := errors.Join(tx.delete(tk("a")), tk2(tx, fmt.Sprint("bad", i), "x")); err != nil {
						return err
					}
					return boom
				}
				if _, err := tx.get(tk("a")); err != nil {
					return err
				}
				return tk2(tx, fmt.Sprint("good", i), "x")
			})
			if want := map[bool]error{true: boom}[i%2 == 1]; !errors.Is(err, want) {
				t.Errorf("update %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if p := s.Position(); p != 100 {
		t.Errorf("position %d, want 100: failed functions consume none", p)
	}
	mustView(t, s, func(r *Reader) error {
		got, err := r.testScan("", nil, false)
		if len(got) != 101 || slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "bad") }) {
			t.Errorf("%d records, want 101 and none bad: %s", len(got), got)
		}
		next := Position(1)
		err = errors.Join(err, r.Changes(0, 1000, func(p Position, c Change) (bool, error) {
			if p != next || c.Kind != ChangeProfile {
				t.Errorf("change at %d: %v, want position %d", p, c, next)
			}
			next++
			return true, nil
		}))
		if next != 101 {
			t.Errorf("log ends at %d, want 100", next-1)
		}
		return err
	})
}

// WaitOr ends with the other channel, a change, the context or the store, whichever is first.
func TestWaitOr(t *testing.T) {
	t.Parallel()
	s := open(t)
	change := func() {
		mustUpdate(t, s, func(tx *Tx) error {
			_, err := tx.Log(Change{Kind: ChangeAccountData, User: "@a:example.org"})
			return err
		})
	}
	change()
	type result struct {
		position Position
		err      error
	}
	wait := func(ctx context.Context, after Position, other <-chan struct{}) <-chan result {
		done := make(chan result, 1)
		go func() {
			position, err := s.WaitOr(ctx, after, other)
			done <- result{position, err}
		}()
		return done
	}
	if got := <-wait(t.Context(), 0, nil); got != (result{1, nil}) {
		t.Errorf("what has come already: %v", got)
	}
	other := make(chan struct{})
	waits := wait(t.Context(), 1, other)
	close(other)
	if got := <-waits; got != (result{1, nil}) {
		t.Errorf("the other channel: %v", got)
	}
	waits = wait(t.Context(), 1, nil)
	change()
	if got := <-waits; got != (result{2, nil}) {
		t.Errorf("a change: %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waits = wait(ctx, 2, nil)
	cancel()
	if got := <-waits; got != (result{2, context.Canceled}) {
		t.Errorf("the context: %v", got)
	}
	waits = wait(t.Context(), 2, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-waits; got.err != ErrClosed {
		t.Errorf("the store's end: %v", got)
	}
}
