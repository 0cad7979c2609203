package node

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestCollectsOnceWhenDue: a run looks some time after its start, not before, and only if it is due; it ends with the context.
func TestCollectsOnceWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open("", store.Options{InMemory: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		trie := eventgraph.OpenTrie(s, eventgraph.Hash{})
		if err := trie.Set(eventgraph.StateTuple{Type: "m.room.create"}, "$create", 0); err != nil {
			t.Fatal(err)
		}
		root, nodes := trie.Commit()
		if _, err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.StageTrieNodes(nodes) }); err != nil {
			t.Fatal(err)
		}
		due := func() bool {
			t.Helper()
			due, err := s.CollectionDue(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return due
		}
		run := func(ctx context.Context) (ended chan struct{}) {
			ended = make(chan struct{})
			go func() {
				defer close(ended)
				collectTrieNodes(ctx, s, time.Now, slog.New(slog.DiscardHandler))
			}()
			return ended
		}

		ctx, cancel := context.WithCancel(t.Context())
		ended := run(ctx)
		time.Sleep(collectAfter - time.Second)
		if !due() {
			t.Error("collected right after the start")
		}
		cancel()
		<-ended
		if !due() {
			t.Error("collected at the end of the run")
		}

		began := time.Now()
		<-run(t.Context())
		if took := time.Since(began); due() || took < collectAfter || took > collectAfter+time.Minute {
			t.Errorf("due still: %v, after %v", due(), took)
		}
		if _, err := s.TrieNode(root); err != nil {
			t.Errorf("a node written since Open: %v", err)
		}
	})
}
