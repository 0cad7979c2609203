package rooms

import (
	"context"
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// reopen gives the server the store in a directory, as after a start.
func (s *server) reopen(dir string) {
	s.t.Helper()
	s.Close()
	if err := s.store.Close(); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if s.store, err = store.Open(dir, store.Options{}); err != nil {
		s.t.Fatal(err)
	}
	s.Rooms = New(Config{Store: s.store, Key: s.key, Now: s.Rooms.now})
}

// heldStates reads each state that an event or the room stands on, to the last entry, and counts the entries.
func (s *server) heldStates(room eventgraph.RoomID) map[eventgraph.Hash]int {
	s.t.Helper()
	states := map[eventgraph.Hash]int{s.record(room).State: 0}
	for event := range eventsOf(s, room) {
		for _, root := range []eventgraph.Hash{event.StateBefore, event.StateAfter, event.RoomState} {
			states[root] = 0
		}
	}
	for root := range states {
		err := s.StateAt(room, root).Walk(func(eventgraph.StateTuple, eventgraph.EventID) error { states[root]++; return nil })
		if err != nil {
			s.t.Errorf("state %x: %v", root[:4], err)
		}
	}
	return states
}

// eventsOf are the events of the room that are reached from its extremities and from children of those seen, so rejected ones too.
func eventsOf(s *server, room eventgraph.RoomID) map[*store.StoredEvent]bool {
	s.t.Helper()
	found, seen := map[*store.StoredEvent]bool{}, map[eventgraph.EventID]bool{}
	for todo := s.record(room).Forward; len(todo) > 0; todo = todo[1:] {
		if seen[todo[0]] {
			continue
		}
		seen[todo[0]] = true
		e, err := s.stored(todo[0])
		if err != nil {
			continue // a parent not held
		}
		found[e] = true
		todo = append(todo, e.PrevEvents()...)
		err = s.store.View(func(r *store.Reader) error {
			return r.Children(e.ID(), func(child eventgraph.EventID) (bool, error) { todo = append(todo, child); return true, nil })
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return found
}

// TestCollectionKeepsEveryState: after forks, resolutions and a rejected event, a collection takes what nothing refers to, here a
// state staged for a join that never came, and each state that an event stands on is as it was.
func TestCollectionKeepsEveryState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newServer(t, "a")
	a.reopen(dir)
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("11", alice, bob)
	b.join(a, room, bob)
	atA, atB := a.store.Position(), b.store.Position()
	for round := range 6 {
		for i := range 3 { // apart
			a.setState(room, alice, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d %d"}`, round, i))
			a.setState(room, alice, "a", fmt.Sprint(round, i), `{}`)
			b.setState(room, bob, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d %d of bob"}`, round, i))
			b.message(room, bob, "hello")
		}
		if round == 3 {
			mallory := b.user("mallory") // was never in the room
			topic := b.forge(Draft{Room: room, Sender: mallory, Type: "m.room.topic", StateKey: stateKey(""), Content: text("x")}, b.record(room).Forward)
			atB = b.give(a, room, atB)
			a.accept(topic, Basis{Origin: b.key.Server}, store.Rejected)
		}
		atA, atB = a.give(b, room, atA), b.give(a, room, atB)
	}
	a.sameState(b, room)
	trie := eventgraph.OpenTrie(a.store, a.record(room).State)
	if err := trie.Set(eventgraph.StateTuple{Type: "m.room.name"}, "$never", 1); err != nil {
		t.Fatal(err)
	}
	garbage, nodes := trie.Commit()
	if _, err := a.store.Update(context.Background(), func(tx *store.Tx) error { return tx.StageTrieNodes(nodes) }); err != nil {
		t.Fatal(err)
	}
	before := a.heldStates(room)

	a.reopen(dir)
	n, err := a.store.CollectTrieNodes(t.Context(), a.now)
	if err != nil || n < len(nodes) {
		t.Errorf("%d nodes collected, %d are of the state that nothing refers to; %v", n, len(nodes), err)
	}
	t.Logf("%d states; %d nodes collected, of which %d were staged", len(before), n, len(nodes))
	if _, err := a.store.TrieNode(garbage); err == nil {
		t.Error("the root of what was staged is still there")
	}
	a.reopen(dir) // the caches are empty
	for root, entries := range a.heldStates(room) {
		if entries == 0 && root != (eventgraph.Hash{}) || entries != before[root] {
			t.Errorf("state %x has %d entries, had %d", root[:4], entries, before[root])
		}
	}
	// The room goes on.
	a.setState(room, alice, "m.room.topic", "", `{"topic":"after"}`)
	a.give(b, room, atA)
	a.sameState(b, room)
}
