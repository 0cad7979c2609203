package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// growState stores a state of 30 members more than from; n tells one such step from another.
func growState(t *testing.T, s *Store, from eventgraph.Hash, n int) eventgraph.Hash {
	t.Helper()
	root, nodes := grownState(t, s, from, n)
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutTrieNodes(nodes) })
	return root
}

func grownState(t *testing.T, s *Store, from eventgraph.Hash, n int) (eventgraph.Hash, map[eventgraph.Hash][]byte) {
	t.Helper()
	trie := eventgraph.OpenTrie(s, from)
	for i := range 30 {
		k := eventgraph.StateTuple{Type: "m.room.member", Key: fmt.Sprintf("@user%d_%d:s", n, i)}
		if err := trie.Set(k, eventgraph.EventID(fmt.Sprintf("$%d_%d", n, i)), uint32(i)); err != nil {
			t.Fatal(err)
		}
	}
	return trie.Commit()
}

// stateSize counts the entries of a state, all of which must be there.
func stateSize(s *Store, root eventgraph.Hash) (n int, err error) {
	err = eventgraph.OpenTrie(s, root).Walk(func(eventgraph.StateTuple, eventgraph.EventID) error { n++; return nil })
	return n, err
}

func mustCollect(t *testing.T, s *Store, now time.Time) int {
	t.Helper()
	n, err := s.CollectTrieNodes(context.Background(), now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openAt(t, s.dir, Options{small: true})
}

func TestCollectTrieNodes(t *testing.T) {
	t.Parallel()
	s, err := Open(ramDir(t), Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	// States, each built on the one before, and who refers to them: before and after an event, its room's state, a rejected event, which
	// has no order, a room that is not here any more, the room. To the last nobody does; it shares nodes with the others.
	roots := []eventgraph.Hash{{}}
	for n := range 6 {
		roots = append(roots, growState(t, s, roots[n], n))
	}
	mustUpdate(t, s, func(tx *Tx) error {
		placed, rejected := message(t, `{"body":"placed"}`), message(t, `{"body":"rejected"}`)
		return errors.Join(
			tx.PutEvent(&StoredEvent{Event: placed, Verdict: Accepted, Order: 1, Position: 1, StateBefore: roots[1], StateAfter: roots[2], RoomState: roots[3]}),
			tx.PutEvent(&StoredEvent{Event: rejected, Verdict: Rejected, StateBefore: roots[4], StateAfter: roots[4]}),
			tx.PutRoom(&Room{ID: testRoom, Version: "11", State: roots[5]}),
		)
	})
	now := time.Unix(1<<31, 0)
	if n := mustCollect(t, s, now); n != 0 {
		t.Errorf("%d nodes collected that were written since Open", n)
	}
	s = reopen(t, s)
	fresh := growState(t, s, roots[5], 9) // as a join under way has them
	again, nodes := grownState(t, s, roots[5], 5)
	if again != roots[6] {
		t.Fatal("not the same state")
	}
	kept := 0
	for h, node := range nodes { // of the garbage two nodes are written again
		if kept++; kept <= 2 {
			mustUpdate(t, s, func(tx *Tx) error { return tx.PutTrieNodes(map[eventgraph.Hash][]byte{h: node}) })
		}
	}
	if n := mustCollect(t, s, now); n != len(nodes)-2 {
		t.Errorf("%d nodes collected, want %d", n, len(nodes)-2)
	}
	if n := mustCollect(t, s, now); n != 0 {
		t.Errorf("%d nodes collected in the second run", n)
	}
	for i, root := range append(roots[1:6:6], fresh) {
		if n, err := stateSize(s, root); n != 30*(i+1) || err != nil {
			t.Errorf("state of %d entries has %d, %v", 30*(i+1), n, err)
		}
	}
	if _, err := stateSize(s, roots[6]); !errors.Is(err, ErrNotFound) {
		t.Errorf("unreferenced state: %v, want ErrNotFound", err)
	}
	s = reopen(t, s)
	if n := mustCollect(t, s, now); n <= 2 { // fresh is old now
		t.Errorf("%d nodes collected after another Open", n)
	}
}

// TestCollectionStops: a context that ends stops it, and where the store lacks a node it removes nothing.
func TestCollectionStops(t *testing.T) {
	t.Parallel()
	s, err := Open(ramDir(t), Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	used := eventgraph.Hash{}
	for n := range 30 {
		used = growState(t, s, used, n)
	}
	growState(t, s, used, 100)
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutRoom(&Room{ID: testRoom, Version: "11", State: used}) })
	s = reopen(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := s.CollectTrieNodes(ctx, time.Now()); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d nodes collected, %v", n, err)
	}
	if due, err := s.CollectionDue(time.Now()); !due || err != nil {
		t.Errorf("due: %v, %v", due, err)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.delete(key(tableTrie).bytes(used[:])) })
	if n, err := s.CollectTrieNodes(t.Context(), time.Now()); n != 0 || !errors.Is(err, ErrNotFound) {
		t.Errorf("%d nodes collected though the state of the room is damaged, %v", n, err)
	}
}

// TestCollectionDue: after a time, and if nodes were staged before Open and their commit perhaps never came.
func TestCollectionDue(t *testing.T) {
	t.Parallel()
	s, err := Open(ramDir(t), Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1<<31, 0)
	check := func(what string, at time.Time, want bool) {
		t.Helper()
		if due, err := s.CollectionDue(at); due != want || err != nil {
			t.Errorf("%s: due %v, %v", what, due, err)
		}
	}
	check("never yet", now, true)
	mustCollect(t, s, now)
	check("just now", now, false)
	check("long ago", now.Add(collectEvery), true)
	check("the clock was ahead", now.Add(-time.Hour), true)
	s = reopen(t, s)
	check("opened again", now, false)
	_, nodes := grownState(t, s, eventgraph.Hash{}, 1)
	mustUpdate(t, s, func(tx *Tx) error { return tx.StageTrieNodes(nodes) })
	check("staged since Open", now, false)
	if n := mustCollect(t, s, now); n != 0 {
		t.Errorf("%d staged nodes collected", n)
	}
	s = reopen(t, s)
	check("staged before Open", now, true)
	if n := mustCollect(t, s, now); n != len(nodes) {
		t.Errorf("%d nodes collected, %d had been staged", n, len(nodes))
	}
	check("collected", now, false)
}

// TestBloom: it has what was added, and of others as few as it says.
func TestBloom(t *testing.T) {
	t.Parallel()
	hash := func(n int) eventgraph.Hash {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
		return eventgraph.Hash(sum[:len(eventgraph.Hash{})])
	}
	const n = 1 << 16
	b := newBloom(n)
	if len(b)*bitsOfAWord != n*bloomBits {
		t.Fatalf("%d words", len(b))
	}
	for i := range n {
		b.add(hash(i))
	}
	wrong := 0
	for i := range n {
		if !b.has(hash(i)) {
			t.Fatalf("hash %d was added", i)
		}
		if b.has(hash(n + i)) {
			wrong++
		}
	}
	if wrong > n/300 {
		t.Errorf("%d of %d are taken for members", wrong, n)
	}
	if big := newBloom(1 << 40); len(big) != maxBloom {
		t.Errorf("%d words", len(big))
	}
}
