package rooms

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A run knows what cites an event, of the events that are stored and of those that it has not written yet; and in both of the
// messages that somebody cites.
func TestCitedBy(t *testing.T) {
	t.Parallel()
	s := newServer(t, "a")
	alice := s.user("alice")
	room := s.create("11", alice)
	member := s.memberEvent(room, alice)
	message := s.event(s.message(room, alice, "hello"))
	noted := s.setState(room, alice, "org.example.note", "", `{}`)

	parents := s.record(room).Forward
	newEvent := func(key *string, cites ...eventgraph.EventID) *store.StoredEvent {
		e := s.forge(Draft{Room: room, Type: "org.example.note", StateKey: key, Sender: alice, Content: json.RawMessage(`{}`)}, parents, cites...)
		return &store.StoredEvent{Event: e, Verdict: store.Rejected}
	}
	key := new(string)
	honest := newEvent(key, member)
	answer := newEvent(nil, member)
	bad := newEvent(key, message.ID())
	err := s.inTurn(t.Context(), room, func(run *run) error {
		check := func(when string, id eventgraph.EventID, cited map[eventgraph.EventID]bool) {
			t.Helper()
			got := map[eventgraph.EventID]bool{}
			if err := run.CitedBy(id, func(by eventgraph.EventID) bool { got[by] = true; return true }); err != nil {
				t.Fatal(err)
			}
			for by, want := range cited {
				if got[by] != want {
					t.Errorf("%s: %s %s is cited by %s: %v, want %v", when, s.event(id).Type(), id, by, got[by], want)
				}
			}
			calls := 0
			if err := run.CitedBy(id, func(eventgraph.EventID) bool { calls++; return false }); err != nil || calls > 1 {
				t.Errorf("%s: %d calls, though the first said that it wants no more, %v", when, calls, err)
			}
		}
		check("stored", member, map[eventgraph.EventID]bool{noted: true, message.ID(): false, honest.ID(): false})
		for _, e := range []*store.StoredEvent{honest, answer} {
			run.put(&write{event: e})
		}
		check("not written", member, map[eventgraph.EventID]bool{noted: true, message.ID(): false, honest.ID(): true, answer.ID(): false})
		run.put(&write{event: bad})
		for _, when := range []string{"not written", "written"} {
			check(when, message.ID(), map[eventgraph.EventID]bool{bad.ID(): true})
			check(when, member, map[eventgraph.EventID]bool{noted: true, message.ID(): true, honest.ID(): true, answer.ID(): false})
			if err := run.commit(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[eventgraph.EventID][]eventgraph.EventID{message.ID(): {bad.ID()}, honest.ID(): nil} {
		var stored []eventgraph.EventID
		if err := s.CitedBy(id, func(by eventgraph.EventID) bool { stored = append(stored, by); return true }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(stored, want) {
			t.Errorf("%s is cited by %v in the store, want %v", id, stored, want)
		}
	}
	stored := 0
	if err := s.CitedBy(member, func(eventgraph.EventID) bool { stored++; return true }); err != nil || stored < 4 {
		t.Errorf("the member is cited by %d events in the store, %v", stored, err)
	}
}
