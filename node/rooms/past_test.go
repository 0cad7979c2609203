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

// State that was replaced, and gets its place only then, is no news: clients would take it for what is. Here an honest claim brought it as an outlier.
func TestReplacedStateIsNotNews(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	d, _ := doraIn(a, b, room, alice)
	old := a.setState(room, alice, "m.room.name", "", `{"name":"old"}`)
	d.acrossGap(a, room, alice)
	at := a.store.Position()
	newer := a.setState(room, alice, "m.room.name", "", `{"name":"new"}`)
	a.give(d, room, at)
	d.accept(a.event(old).Event, Basis{Origin: a.Server()}, store.Accepted)
	if e := d.event(old); e.Position != 0 || e.Order > d.event(newer).Order {
		t.Errorf("the old name has position %d and order %d", e.Position, e.Order)
	}
}

// What was said before we came, and the state that it rests on and that was replaced since, come late, in one run.
func TestReplacedStateOfBeforeOurJoinIsNotNews(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice := a.user("alice")
	room := a.create("12", alice)
	a.message(room, alice, "before")
	old := a.setState(room, alice, "m.room.name", "", `{"name":"old"}`)
	b.join(a, room, b.user("bob"))
	at := a.store.Position()
	newer := a.setState(room, alice, "m.room.name", "", `{"name":"new"}`)
	a.give(b, room, at)
	a.give(b, room, 0)
	if e := b.event(old); e.Position != 0 || e.Order > b.event(newer).Order {
		t.Errorf("the old name has position %d and order %d", e.Position, e.Order)
	}
}
