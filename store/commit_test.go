package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPanicReachesTheCaller(t *testing.T) {
	t.Parallel()
	s := open(t)
	func() {
		defer func() {
			if p := fmt.Sprint(recover()); !strings.Contains(p, "boom") || !strings.Contains(p, "TestPanicReachesTheCaller") {
				t.Errorf("recovered %s", p)
			}
		}()
		s.Update(context.Background(), func(tx *Tx) error {
			if err := tk2(tx, "a", "1"); err != nil {
				return err
			}
			panic("boom")
		})
		t.Error("no panic")
	}()
	mustUpdate(t, s, func(tx *Tx) error {
		if _, err := tx.get(tk("a")); !errors.Is(err, ErrNotFound) {
			t.Errorf("the write of a function that panicked: %v", err)
		}
		return nil
	})
}

func TestGoexitEndsWritesLoudly(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error { return tk2(tx, "a", "1") })
	_, err := s.Update(context.Background(), func(*Tx) error { runtime.Goexit(); return nil })
	if err == nil || !strings.Contains(err.Error(), "ended the committer") {
		t.Errorf("update: %v", err)
	}
	if _, again := s.Update(context.Background(), func(*Tx) error { return nil }); again == nil {
		t.Error("a store without a committer takes updates")
	}
	mustView(t, s, func(r *Reader) error { _, err := r.get(tk("a")); return err })
}

// TestSyncFails: nobody knows what of the commit is on disk, so nothing is shown, no position is consumed, and nothing more is
// written until the next Open has looked.
func TestSyncFails(t *testing.T) {
	t.Parallel()
	if !syncsMappedPages {
		t.Skip("Badger syncs on this platform")
	}
	dir := ramDir(t)
	s, err := Open(dir, Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := workCommit(s, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.logFile.f.Close(); err != nil { // the committer is idle
		t.Fatal(err)
	}
	for range 2 {
		if err := workCommit(s, 2); err == nil {
			t.Fatal("a commit that could not be synced succeeds")
		}
		if n, err := workState(s); n != 1 || err != nil {
			t.Errorf("%d commits shown, %v", n, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, Options{small: true})
	if n, err := workState(s); n < 1 || n > 2 || err != nil || s.Loss() != "" {
		t.Errorf("reopened: %d commits, loss %q, %v", n, s.Loss(), err)
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := open(t)
	big := make([]byte, 400_000)
	for name, f := range map[string]func(tx *Tx) error{
		"one value": func(tx *Tx) error { return tx.put(tk("x"), make([]byte, maxValue+1)) },
		"bytes": func(tx *Tx) error {
			return errors.Join(tx.put(tk("1"), big), tx.put(tk("2"), big), tx.put(tk("3"), big))
		},
		"records": func(tx *Tx) error {
			for i := range maxWrites + 1 {
				tx.put(key(0xf0).u64(uint64(i)), nil) // its error is not looked at
			}
			return nil
		},
	} {
		if _, err := s.Update(context.Background(), f); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
	// What fits only alone waits for the next group. Many of them together do not disturb each other.
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := s.Update(context.Background(), func(tx *Tx) error {
				return errors.Join(tx.put(tk(fmt.Sprint("a", i)), big), tx.put(tk(fmt.Sprint("b", i)), big))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// The largest write set that the overlay lets through is one that Badger takes.
	mustUpdate(t, s, func(tx *Tx) error {
		for i := range maxWrites {
			if err := tx.put(key(0xf0).u64(uint64(i)), make([]byte, 80)); err != nil {
				return err
			}
		}
		return nil
	})
	mustUpdate(t, s, func(tx *Tx) error { return tx.put(tk("x"), make([]byte, maxValue)) })
}

// A function in Update knows where the log ends, also behind what others of its group have logged.
func TestPositionInUpdate(t *testing.T) {
	t.Parallel()
	s := open(t)
	var group sync.WaitGroup
	for range 40 {
		group.Go(func() {
			var before Position
			at, err := s.Update(t.Context(), func(tx *Tx) error {
				before = tx.Position()
				_, err := tx.LogRemoteDevices("@a:x")
				if tx.Position() != before {
					t.Errorf("position %d, was %d", tx.Position(), before)
				}
				return err
			})
			if err != nil || at != before+1 {
				t.Errorf("logged at %d after %d, %v", at, before, err)
			}
		})
	}
	group.Wait()
}

func TestUpdateGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	s := open(t)
	running, release := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := s.Update(context.Background(), func(*Tx) error { close(running); <-release; return nil })
		done <- err
	}()
	<-running
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var ran atomic.Bool
	if _, err := s.Update(ctx, func(*Tx) error { ran.Store(true); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting update: %v", err)
	}
	if _, err := s.Wait(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if ran.Load() {
		t.Error("the function of a caller who gave up has run")
	}
}

// TestReadersSeePrefixes: whatever a snapshot shows is the state after some commit, in order, and what Wait announced is there.
func TestReadersSeePrefixes(t *testing.T) {
	t.Parallel()
	s := open(t)
	const commits = 300
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for seen := Position(0); seen < 2*commits; {
				announced, err := s.Wait(context.Background(), seen)
				if err != nil {
					t.Error(err)
					return
				}
				err = s.View(func(r *Reader) error {
					v, err := r.get(key(0xf1))
					if err != nil {
						return err
					}
					n := binary.BigEndian.Uint64(v)
					next := seen + 1
					err = r.Changes(seen, 1<<40, func(p Position, c Change) (bool, error) {
						if p != next {
							return false, fmt.Errorf("position %d after %d", p, next-1)
						}
						next++
						return true, nil
					})
					if next-1 != Position(2*n) || next-1 < announced {
						return fmt.Errorf("commit %d with positions up to %d, announced %d", n, next-1, announced)
					}
					seen = next - 1
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := uint64(1); i <= commits; i++ {
		if err := workCommit(s, i); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if _, err := workState(s); err != nil {
		t.Error(err)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("!room:s", "$event", uint64(7), int64(-3))
	f.Add("a\x00", "\x00\x01\xff", uint64(0), int64(1)<<62)
	f.Add("", "", uint64(1)<<63, int64(-1)<<63)
	f.Fuzz(func(t *testing.T, a, b string, u uint64, i int64) {
		k := key(0xf0).str(a).u64(u).str(b).i64(i)
		p := parts(k)
		if a2, u2, b2, i2 := p.str(), p.u64(), p.str(), p.i64(); a2 != a || u2 != u || b2 != b || i2 != i || !p.ok || len(p.rest) != 0 {
			t.Errorf("%q %d %q %d came back as %q %d %q %d", a, u, b, i, a2, u2, b2, i2)
		}
		if got, want := bytes.Compare(key(1).str(a), key(1).str(b)), strings.Compare(a, b); got != want {
			t.Errorf("%q and %q compare as %d, want %d", a, b, got, want)
		}
		if a != b && bytes.HasPrefix(key(1).str(a), key(1).str(b)) {
			t.Errorf("%q is a prefix of %q", b, a)
		}
		if bytes.Compare(key(1).i64(i), key(1).i64(0)) < 0 != (i < 0) {
			t.Errorf("%d sorts on the wrong side of 0", i)
		}
		parts([]byte(a)).str() // whatever it is, no panic
	})
}

func FuzzRecords(f *testing.F) {
	c := Change{Kind: ChangeEvent, Room: "!a:s", Event: "$e"}
	f.Add(c.encode())
	f.Add([]byte{1, 0xff, 0x80, 0x80})
	f.Add([]byte{1, 1, 0xff, 2, '1', '2', 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeChange(b); err == nil {
			again, err := decodeChange(c.encode())
			if err != nil || again != c {
				t.Errorf("%+v came back as %+v, %v", c, again, err)
			}
		}
		decodeEventHeader(b)
		decodeTestimony(b)
		decodeCommit(b)
		(&logReader{in: bufio.NewReader(bytes.NewReader(b))}).next()
	})
}
