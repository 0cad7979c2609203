package store

import (
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestCompactorsRestAndWake(t *testing.T) {
	db, err := openBadger(t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	c := newCompactors(db)
	c.tick()
	if !c.running {
		t.Error("one quiet tick is enough to stop the compactors")
	}
	c.tick()
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if c.running || strings.Contains(string(stacks), "runCompactor") {
		t.Error("the compactors of an idle store run")
	}

	// Badger halts writing at 15 tables in level 0, so this ends only if the compactors come back.
	written := make(chan error, 1)
	go func() {
		random := rand.NewChaCha8([32]byte{1})
		for i := range uint64(400) {
			txn := db.NewTransactionAt(i+1, true)
			value := make([]byte, 40_000)
			random.Read(value)
			if err := txn.Set(binary.BigEndian.AppendUint64([]byte("k"), random.Uint64()), value); err != nil {
				written <- err
				return
			}
			if err := txn.CommitAt(i+1, nil); err != nil {
				written <- err
				return
			}
			c.wrote(len(value))
		}
		written <- nil
	}()
	select {
	case err := <-written:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("writing has halted: nothing is compacted")
	}
	below := 0
	for _, level := range db.Levels()[1:] {
		below += level.NumTables
	}
	if !c.running || below == 0 {
		t.Errorf("after 16 MB of writes the compactors run: %v, and there are %d tables below level 0", c.running, below)
	}
}
