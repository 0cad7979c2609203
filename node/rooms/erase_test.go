package rooms

import (
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What an erased user said is given whole to a server that was in the room before, and redacted to one that came later; state is given whole to both, as
// they must come to the same state.
func TestShownToServerAfterErasure(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	c := newServer(t, "c", a, b)
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	room := a.create("12", alice, bob)
	a.setState(room, alice, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
	b.join(a, room, bob)
	said := a.message(room, alice, "a secret")
	topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"a secret too"}`)
	if _, err := a.store.Update(t.Context(), func(tx *store.Tx) error {
		at, err := tx.PutProfile(alice, nil)
		if err != nil {
			return err
		}
		a.NoteErased(alice, at)
		return tx.PutAccount(&store.Account{User: alice, Deactivated: true, Erased: at})
	}); err != nil {
		t.Fatal(err)
	}
	c.join(a, room, carol)
	for _, s := range []*server{b, c} {
		e, err := a.GivenToServer(s.key.Server, a.event(said))
		if err != nil || strings.Contains(string(e.Raw()), "secret") != (s == b) || e.ID() != said {
			t.Errorf("%s %v", e.Raw(), err)
		}
		if e, err = a.GivenToServer(s.key.Server, a.event(topic)); err != nil || !strings.Contains(string(e.Raw()), "secret") {
			t.Errorf("%s %v", e.Raw(), err)
		}
	}
	after := a.message(room, alice, "not possible for a client") // what comes after the erasure is shown by the same rule
	if e, err := a.ShownToServer(b.key.Server, a.event(after)); err != nil || !strings.Contains(string(e.Raw()), "not possible") {
		t.Errorf("%s %v", e.Raw(), err)
	}
}

// Who is erased while the store is read for those who are stays erased.
func TestErasedWhileRead(t *testing.T) {
	t.Parallel()
	s := newServer(t, "a")
	alice, bob := s.user("alice"), s.user("bob")
	s.NoteErased(alice, 7)
	s.erased.add(map[eventgraph.UserID]store.Position{bob: 3}, true) // read before that
	for user, want := range map[eventgraph.UserID]store.Position{alice: 7, bob: 3} {
		if at, err := s.erased.at(s.store, user); at != want || err != nil {
			t.Errorf("%s: %d %v", user, at, err)
		}
	}
}
