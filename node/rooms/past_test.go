package rooms

import (
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestPastIsNoExtremity: who has joined is given, one by one and as if they were news, events from before: they are held as outliers, or are not
// held. What the join rests on is never a tip, and is not judged by rules that were made since; else the members of then would have to
// stand by the join rules of now.
func TestPastIsNoExtremity(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"10", "12"} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			a := newServer(t, "a")
			b := newServer(t, "b", a)
			alice, carol, bob := a.user("alice"), a.user("carol"), b.user("bob")
			room := a.create(version, alice)
			a.setState(room, alice, "m.room.name", "", `{"name":"a room"}`)
			a.setState(room, carol, "m.room.member", string(carol), `{"membership":"join"}`)
			said := a.message(room, carol, "before")
			b.join(a, room, bob)
			joined := a.store.Position()
			a.setState(room, alice, "m.room.join_rules", "", `{"join_rule":"invite"}`)
			a.give(b, room, joined)
			b.sameState(a, room)

			a.give(b, room, 0)
			b.sameState(a, room)
			if e := b.event(said); e.Verdict != store.Accepted || e.Order == 0 {
				t.Errorf("the message from before the join has verdict %d and place %d", e.Verdict, e.Order)
			}
		})
	}
}

// TestReturn: a server that comes back to a room goes by the state of now. What were its extremities when it left are not beside that: else who came
// since, or comes back itself, would have to stand by rules made since.
func TestReturn(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"10", "12"} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			a := newServer(t, "a")
			b := newServer(t, "b", a)
			alice, bob := a.user("alice"), b.user("bob")
			room := a.create(version, alice)
			b.join(a, room, bob)
			joined := b.store.Position()
			b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`)
			b.give(a, room, joined)
			a.message(room, alice, "while bob is away")
			b.join(a, room, bob)
			position := a.store.Position()
			a.setState(room, alice, "m.room.join_rules", "", `{"join_rule":"invite"}`)
			a.give(b, room, position)
			b.sameState(a, room)
		})
	}
}

// What the join rests on and is held as an outlier is history: it is not shown as news when it is given one by one.
func TestPastIsHistory(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice := a.user("alice")
	room := a.create("12", alice)
	name := a.setState(room, alice, "m.room.name", "", `{"name":"a room"}`)
	b.join(a, room, b.user("bob"))
	a.give(b, room, 0)
	if e := b.event(name); e.Verdict != store.Accepted || e.Order >= 0 || e.Position != 0 {
		t.Errorf("the name from before the join has verdict %d, place %d and position %d", e.Verdict, e.Order, e.Position)
	}
	b.sameState(a, room)
}
