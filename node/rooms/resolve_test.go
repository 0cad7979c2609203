package rooms

import (
	"context"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestTakenBackNodesAreWrittenWhenNeeded: a claim that comes to nothing leaves no nodes; a resolution that comes to the same state
// afterwards, in the same run, is to bring them again.
func TestTakenBackNodesAreWrittenWhenNeeded(t *testing.T) {
	t.Parallel()
	s := newServer(t, "a")
	alice := s.user("alice")
	room := s.create("11", alice)
	trie := eventgraph.OpenTrie(s.store, s.record(room).State)
	if err := trie.Set(eventgraph.StateTuple{Type: "m.room.topic"}, "$claimed", 9); err != nil {
		t.Fatal(err)
	}
	root, nodes := trie.Commit()
	states := []eventgraph.Hash{{1}, {2}}
	err := s.inTurn(t.Context(), room, func(run *run) error {
		run.rm.resolved = map[string]resolution{string(append(states[0][:], states[1][:]...)): {root, nodes}}
		takeBack := run.keepNodes(true)
		run.putNodes(nodes)
		takeBack()
		if len(run.fresh) > 0 {
			t.Errorf("%d nodes of the claim are to be written", len(run.fresh))
		}
		if got, err := run.merge(states); got != root || err != nil {
			t.Errorf("merge: %x, %v", got, err)
		}
		_, err := s.store.Update(context.Background(), func(tx *store.Tx) error { return tx.PutTrieNodes(run.fresh) })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := eventgraph.OpenTrie(s.store, root).Get(eventgraph.StateTuple{Type: "m.room.topic"}); err != nil {
		t.Errorf("the resolved state is not in the store: %v", err)
	}
}
