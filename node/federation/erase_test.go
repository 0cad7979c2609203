package federation

import (
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What an erased user said is given redacted to a server that came later, also where it asks for it by its ID at a meeting.
func TestErasedAtMeeting(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	alice := a.user("alice")
	said := a.say(room, alice, "a secret")
	if _, err := a.Store.Update(t.Context(), func(tx *store.Tx) error {
		at, err := tx.PutProfile(alice, nil)
		if err == nil {
			a.Rooms.NoteErased(alice, at)
			err = tx.PutAccount(&store.Account{User: alice, Deactivated: true, Erased: at})
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	c.join(room, c.user("carol"), a)
	for _, h := range []*host{b, c} {
		got, err := a.wanted(&gift{contact: contact{Server: h.server}, told: map[eventgraph.ServerName]bool{}}, []eventgraph.EventID{said}, 0)
		if err != nil || len(got.Events) != 1 {
			t.Fatalf("%s: %+v %v", h.server, got, err)
		}
		if whole := strings.Contains(string(got.Events[0].PDU), "a secret"); whole != (h == b) {
			t.Errorf("%s is given %s", h.server, got.Events[0].PDU)
		}
	}
}
