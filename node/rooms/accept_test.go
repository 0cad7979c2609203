package rooms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// forge makes an event on the parents that the caller names, as a server does that has not seen more. Its auth events are those of
// the state after the first parent, or the ones given.
func (s *server) forge(d Draft, parents []eventgraph.EventID, authEvents ...eventgraph.EventID) *eventgraph.Event {
	s.t.Helper()
	s.now = s.now.Add(time.Second)
	version := s.record(d.Room).Version
	full := eventgraph.Draft{
		RoomID: d.Room, Type: d.Type, StateKey: d.StateKey, Sender: d.Sender, Content: d.Content, Redacts: d.Redacts,
		PrevEvents: parents, AuthEvents: authEvents, OriginServerTS: s.now.UnixMilli(),
	}
	for _, p := range parents {
		full.Depth = max(full.Depth, s.event(p).Depth()+1)
	}
	if authEvents == nil {
		state := s.StateAt(d.Room, s.event(parents[0]).StateAfter)
		for _, tuple := range auth.Selection(version, full) {
			id, ok, err := state.EventID(tuple)
			if err != nil {
				s.t.Fatal(err)
			}
			if ok {
				full.AuthEvents = append(full.AuthEvents, id)
			}
		}
	}
	e, err := eventgraph.Build(version, full, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *server) accept(e *eventgraph.Event, b Basis, want store.Verdict) Result {
	s.t.Helper()
	r, err := s.Accept(context.Background(), pdu(s.t, e), b)
	if err != nil {
		s.t.Fatalf("accept %s: %v", e.Type(), err)
	}
	if r.Verdict != want {
		s.t.Fatalf("accept %s: verdict %d (%s), want %d", e.Type(), r.Verdict, r.Reason, want)
	}
	return r
}

func text(body string) json.RawMessage {
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	return content
}

// shared is a room of alice on a, who may do all, and bob on b.
func shared(t *testing.T, version eventgraph.RoomVersion) (a, b *server, alice, bob eventgraph.UserID, room eventgraph.RoomID) {
	t.Helper()
	a = newServer(t, "a")
	b = newServer(t, "b", a)
	alice, bob = a.user("alice"), b.user("bob")
	room = a.create(version, alice)
	b.join(a, room, bob)
	return a, b, alice, bob, room
}

// carolIn is carol on c, who joins a room of a and b, and its extremities then.
func carolIn(a, b *server, room eventgraph.RoomID) (c *server, carol eventgraph.UserID, then []eventgraph.EventID) {
	a.t.Helper()
	c = newServer(a.t, "c", a, b)
	carol = c.user("carol")
	c.join(a, room, carol)
	return c, carol, a.record(room).Forward
}

// doraIn is dora on d, who joins a room of a and b and is given what alice says after that.
func doraIn(a, b *server, room eventgraph.RoomID, alice eventgraph.UserID) (d *server, dora eventgraph.UserID) {
	a.t.Helper()
	d = newServer(a.t, "d", a, b)
	dora = d.user("dora")
	d.join(a, room, dora)
	at := a.store.Position()
	a.message(room, alice, "known to d")
	a.give(d, room, at)
	return d, dora
}

func TestRejectedByAuth(t *testing.T) {
	t.Parallel()
	a, b, _, bob, room := shared(t, "12")
	before := a.record(room)
	topic := b.forge(Draft{Room: room, Sender: bob, Type: "m.room.topic", StateKey: stateKey(""), Content: json.RawMessage(`{"topic":"no power"}`)}, before.Forward)
	r := a.accept(topic, Basis{Origin: b.Server()}, store.Rejected)
	if r.Reason == "" || r.Position != 0 {
		t.Errorf("result %+v", r)
	}
	if again := a.accept(topic, Basis{}, store.Rejected); !again.Already {
		t.Error("the second time is not Already")
	}
	after := a.record(room)
	if after.State != before.State || !slices.Equal(after.Forward, before.Forward) {
		t.Error("a rejected event changed the room")
	}
	if may, _ := a.MaySeeServer(b.Server(), a.event(topic.ID())); may {
		t.Error("a rejected event is shown to a server")
	}

	// What builds on it stands by itself, and on the state without it.
	message := b.forge(Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("on it")}, before.Forward)
	_ = message
	onIt := forgeOn(t, b, a, Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("on it")}, topic.ID())
	a.accept(onIt, Basis{}, store.Accepted)
	after = a.record(room)
	if !slices.Equal(after.Forward, []eventgraph.EventID{onIt.ID()}) {
		t.Errorf("forward extremities %v: the parent behind the rejected event should be gone", after.Forward)
	}
	if after.State != before.State {
		t.Error("the rejected event came into the state")
	}

	// An event that rests on a rejected auth event is rejected too.
	restsOn := forgeOn(t, b, a, Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("rests on it")}, onIt.ID())
	d := eventgraph.Draft{
		RoomID: room, Type: "m.room.message", Sender: bob, Content: text("x"), PrevEvents: restsOn.PrevEvents(), Depth: 99,
		AuthEvents: append(slices.Clone(restsOn.AuthEvents()), topic.ID()), OriginServerTS: restsOn.OriginServerTS(),
	}
	e, err := eventgraph.Build("12", d, b.key)
	if err != nil {
		t.Fatal(err)
	}
	a.accept(e, Basis{}, store.Rejected)
}

// forgeOn makes an event of s on a parent that only holder holds.
func forgeOn(t *testing.T, s, holder *server, d Draft, parent eventgraph.EventID) *eventgraph.Event {
	t.Helper()
	version := holder.record(d.Room).Version
	p := holder.event(parent)
	full := eventgraph.Draft{
		RoomID: d.Room, Type: d.Type, StateKey: d.StateKey, Sender: d.Sender, Content: d.Content, Redacts: d.Redacts,
		PrevEvents: []eventgraph.EventID{parent}, Depth: p.Depth() + 1, OriginServerTS: s.now.UnixMilli(),
	}
	for _, tuple := range auth.Selection(version, full) {
		if id, ok, _ := holder.StateAt(d.Room, p.StateAfter).EventID(tuple); ok {
			full.AuthEvents = append(full.AuthEvents, id)
		}
	}
	e, err := eventgraph.Build(version, full, s.key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestSoftFailed(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	fork := a.record(room).Forward
	ban := a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
	after := a.store.Position()

	evading := b.forge(Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("evading")}, fork)
	r := a.accept(evading, Basis{}, store.SoftFailed)
	if r.Reason == "" {
		t.Error("no reason")
	}
	if got := a.record(room).Forward; !slices.Equal(got, []eventgraph.EventID{ban}) {
		t.Errorf("forward extremities %v, want the ban", got)
	}
	var kinds []store.ChangeKind
	err := a.store.View(func(r *store.Reader) error {
		return r.Changes(after, a.store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			kinds = append(kinds, c.Kind)
			return true, nil
		})
	})
	if err != nil || !slices.Equal(kinds, []store.ChangeKind{store.ChangeSoftFailed}) {
		t.Errorf("changes %v, %v", kinds, err)
	}
	if see, err := a.MaySeeUser(alice, a.event(evading.ID())); see || err != nil {
		t.Errorf("alice sees a soft-failed event: %v, %v", see, err)
	}

	// A third server that took both in builds on them; we follow, and the message on both is shown.
	c := newServer(t, "c", a, b)
	carol := c.user("carol")
	c.join(a, room, carol)
	joined := a.record(room).Forward
	both := eventgraph.Draft{
		RoomID: room, Type: "m.room.message", Sender: carol, Content: text("on both"), Depth: 50,
		PrevEvents: append(slices.Clone(joined), evading.ID()), OriginServerTS: c.now.UnixMilli(),
	}
	for _, tuple := range auth.Selection("12", both) {
		if id, ok, _ := a.StateAt(room, a.record(room).State).EventID(tuple); ok {
			both.AuthEvents = append(both.AuthEvents, id)
		}
	}
	e, err := eventgraph.Build("12", both, c.key)
	if err != nil {
		t.Fatal(err)
	}
	a.accept(e, Basis{}, store.Accepted)
	if got := a.record(room).Forward; !slices.Equal(got, []eventgraph.EventID{e.ID()}) {
		t.Errorf("forward extremities %v", got)
	}
	member, err := a.StateAt(room, a.record(room).State).Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(bob)})
	if err != nil || member.Membership() != "ban" {
		t.Errorf("bob after the merge: %v, %v", member, err)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	first := a.message(room, alice, "first")
	second := a.message(room, alice, "second")
	third := a.message(room, alice, "third")

	_, err := b.Accept(context.Background(), pdu(t, a.event(third).Event), Basis{Origin: a.Server()})
	var missing *MissingError
	if !errors.As(err, &missing) || !slices.Equal(missing.Events, []eventgraph.EventID{second}) || missing.StateBefore {
		t.Fatalf("got %v, want missing %s", err, second)
	}
	// A run goes on after one that cannot be taken in: a caller that had to begin anew would have the signatures of all the rest checked again.
	fourth, fifth := a.message(room, alice, "fourth"), a.message(room, alice, "fifth")
	outcomes, err := b.AcceptAll(context.Background(), []*eventgraph.Event{
		pdu(t, a.event(first).Event), pdu(t, a.event(third).Event), pdu(t, a.event(fourth).Event), pdu(t, a.event(fifth).Event),
	}, Basis{Origin: a.Server()})
	if err != nil || len(outcomes) != 4 || outcomes[0].Verdict != store.Accepted {
		t.Fatalf("outcomes %+v, %v", outcomes, err)
	}
	for i, lacks := range []eventgraph.EventID{second, third, fourth} {
		if err := outcomes[i+1].Err; !errors.As(err, &missing) || !slices.Equal(missing.Events, []eventgraph.EventID{lacks}) {
			t.Errorf("got %v, want missing %s", err, lacks)
		}
	}
	if outcomes[0].Position != b.store.Position() {
		t.Errorf("position %d, want %d", outcomes[0].Position, b.store.Position())
	}

	// A key that no document here shows, and one from too far ahead.
	c := newServer(t, "c", a)
	c.join(a, room, c.user("carol"))
	e := a.event(a.record(room).Forward[0]).Event
	_, err = b.Accept(context.Background(), pdu(t, e), Basis{})
	if !errors.As(err, &missing) || len(missing.Keys) != 1 || missing.Keys[0].Server != c.Server() || missing.Keys[0].ID != c.key.ID {
		t.Errorf("got %v, want c's key", err)
	}
	a.now = a.now.Add(8 * 24 * time.Hour)
	ahead := a.message(room, alice, "from the future")
	_, err = b.Accept(context.Background(), pdu(t, a.event(ahead).Event), Basis{})
	if !errors.As(err, &missing) || len(missing.Keys) != 1 || missing.Keys[0].TS != a.event(ahead).OriginServerTS() {
		t.Errorf("got %v, want a's key at that time", err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	ctx := context.Background()
	message := Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("hi")}
	good := b.forge(message, a.record(room).Forward)

	bad := bytes.Replace(good.Raw(), []byte(string(b.key.ID)+`":"`), []byte(string(b.key.ID)+`":"AA`), 1)
	forged, err := eventgraph.ParseEvent("12", bad)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Accept(ctx, forged, Basis{})
	wantRefusal(t, err, "M_FORBIDDEN")
	if _, held := a.has(good.ID()); held {
		t.Error("an event with a bad signature was stored")
	}

	other := b.create("12", bob)
	_, err = a.Accept(ctx, pdu(t, b.event(b.message(other, bob, "x")).Event), Basis{})
	wantRefusal(t, err, "M_NOT_FOUND")

	a.setState(room, alice, "m.room.server_acl", "", `{"allow":["*"],"deny":["`+string(b.Server())+`"]}`)
	_, err = a.Accept(ctx, pdu(t, good), Basis{Origin: b.Server()})
	wantRefusal(t, err, "M_FORBIDDEN")
	if _, held := a.has(good.ID()); held {
		t.Error("an event from a denied server was stored")
	}
	if a.ServerAllowed(room, b.Server()) || !a.ServerAllowed(room, a.Server()) {
		t.Error("ServerAllowed does not follow the ACL")
	}

	_, err = a.Send(ctx, Draft{Room: room, Sender: a.user("stranger"), Type: "m.room.message", Content: text("x")})
	wantRefusal(t, err, "M_FORBIDDEN")
	_, err = a.Send(ctx, Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("x")})
	wantRefusal(t, err, "M_FORBIDDEN")
	_, err = a.Send(ctx, Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text(string(make([]byte, 70_000)))})
	wantRefusal(t, err, "M_TOO_LARGE")
	_, err = a.Send(ctx, Draft{Room: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"a":1.5}`)})
	wantRefusal(t, err, "M_BAD_JSON")
}

func (s *server) has(id eventgraph.EventID) (v store.Verdict, held bool) {
	s.t.Helper()
	err := s.store.View(func(r *store.Reader) (err error) { v, held, err = r.HasEvent(id); return err })
	if err != nil {
		s.t.Fatal(err)
	}
	return v, held
}

func TestHashMismatchIsReplaced(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	id := a.message(room, alice, "as sent")
	right := a.event(id).Event
	changed, err := eventgraph.ParseEvent("12", bytes.Replace(right.Raw(), []byte("as sent"), []byte("altered"), 1))
	if err != nil || changed.ID() != id || !changed.HashMismatch() {
		t.Fatalf("altered copy: %v", err)
	}
	if r, err := b.Accept(context.Background(), changed, Basis{}); err != nil || r.Verdict != store.Accepted {
		t.Fatalf("%+v, %v", r, err)
	}
	if held := b.event(id); bytes.Contains(held.Content(), []byte("altered")) || !held.HashMismatch() {
		t.Errorf("altered content kept: %s", held.Content())
	}
	if r := b.accept(right, Basis{}, store.Accepted); !r.Already || r.Position == 0 {
		t.Errorf("right copy: %+v", r)
	}
	if held := b.event(id); !bytes.Contains(held.Content(), []byte("as sent")) || held.HashMismatch() || held.Order == 0 {
		t.Errorf("right copy not kept: %s", held.Content())
	}
	if _, err := b.Accept(context.Background(), changed, Basis{}); err != nil {
		t.Fatal(err)
	}
	if held := b.event(id); held.HashMismatch() {
		t.Error("the altered copy replaced the right one")
	}
}

func TestClaimedStateAndGap(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	ctx := context.Background()
	joined := b.record(room)
	a.setState(room, alice, "m.room.topic", "", `{"topic":"b missed this"}`)
	missed := a.message(room, alice, "and this")
	after := a.message(room, alice, "after the gap")

	state, chain := a.stateAndChain(room, a.event(after).StateBefore)
	outcomes, err := b.AcceptAll(ctx, eventgraph.SortTopologically(unique(append(chain, state...))), Basis{Kind: Nothing, Origin: a.Server()})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range outcomes {
		if o.Err != nil || o.Verdict == store.Rejected {
			t.Fatalf("outlier: %+v", o)
		}
	}
	var ids []eventgraph.EventID
	for _, e := range state {
		ids = append(ids, e.ID())
	}
	e := pdu(t, a.event(after).Event)
	_, err = b.Accept(ctx, e, Basis{Kind: Claimed, State: append(slices.Clone(ids), missed)})
	var missing *MissingError
	if !errors.As(err, &missing) || !slices.Equal(missing.Events, []eventgraph.EventID{missed}) {
		t.Fatalf("claimed state that is not held: %v", err)
	}
	// A claim under which the event is not allowed is no verdict on it.
	_, err = b.Accept(ctx, e, Basis{Kind: Claimed, State: ids[:1]})
	wantRefusal(t, err, "M_FORBIDDEN")
	if _, held := b.has(after); held {
		t.Error("stored as refused by a mere claim")
	}
	b.accept(e, Basis{Kind: Claimed, State: ids}, store.Accepted)
	if held := b.event(after); !held.Gap || held.StateBefore != a.event(after).StateBefore {
		t.Errorf("gap %v", held.Gap)
	}
	record := b.record(room)
	if !slices.Contains(record.Backward, after) || !slices.Contains(record.Forward, after) {
		t.Errorf("forward %v, backward %v", record.Forward, record.Backward)
	}

	// The gap fills by backfill: no event of the timeline, and the extremity goes.
	position := b.store.Position()
	page := []*eventgraph.Event{}
	for id := missed; !slices.Contains(joined.Forward, id); {
		page = append([]*eventgraph.Event{pdu(t, a.event(id).Event)}, page...)
		id = a.event(id).PrevEvents()[0]
	}
	outcomes, err = b.AcceptAll(ctx, page, Basis{Backfill: true, Origin: a.Server()})
	if err != nil || len(outcomes) != 2 || outcomes[0].Verdict != store.Accepted || outcomes[1].Verdict != store.Accepted {
		t.Fatalf("backfill: %+v, %v", outcomes, err)
	}
	if o1, o2 := b.event(page[0].ID()).Order, b.event(missed).Order; o1 >= o2 || o2 >= 0 {
		t.Errorf("orders of backfilled events %d, %d", o1, o2)
	}
	if got := b.record(room).Backward; slices.Contains(got, after) {
		t.Errorf("backward extremities %v after the gap was filled", got)
	}
	err = b.store.View(func(r *store.Reader) error {
		return r.Changes(position, b.store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			if c.Kind != store.ChangeBackfill {
				t.Errorf("backfill logged change %d", c.Kind)
			}
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func unique(events []*eventgraph.Event) []*eventgraph.Event {
	seen := map[eventgraph.EventID]bool{}
	return slices.DeleteFunc(events, func(e *eventgraph.Event) bool {
		again := seen[e.ID()]
		seen[e.ID()] = true
		return again
	})
}

func TestBackfillAsksForTheStateBefore(t *testing.T) {
	t.Parallel()
	a, b, _, _, room := shared(t, "12")
	c := newServer(t, "c", a, b)
	alice := a.user("alice")
	var said []eventgraph.EventID
	for range 3 {
		said = append(said, a.message(room, alice, "before c came"))
	}
	c.join(a, room, c.user("carol"))
	page := []*eventgraph.Event{pdu(t, a.event(said[1]).Event), pdu(t, a.event(said[2]).Event)}
	ctx := context.Background()
	_, err := c.Accept(ctx, page[0], Basis{Backfill: true, Origin: a.Server()})
	var missing *MissingError
	if !errors.As(err, &missing) || !missing.StateBefore {
		t.Fatalf("got %v, want StateBefore", err)
	}
	var ids []eventgraph.EventID
	state, _ := a.stateAndChain(room, a.event(said[1]).StateBefore)
	for _, e := range state {
		ids = append(ids, e.ID())
	}
	outcomes, err := c.AcceptAll(ctx, page, Basis{Kind: Claimed, State: ids, Backfill: true, Origin: a.Server()})
	if err != nil || len(outcomes) != 2 || outcomes[1].Verdict != store.Accepted {
		t.Fatalf("%+v, %v", outcomes, err)
	}
	record := c.record(room)
	if !slices.Equal(record.Backward, []eventgraph.EventID{said[1]}) {
		t.Errorf("backward %v, want only the oldest", record.Backward)
	}
	first, second := c.event(said[1]), c.event(said[2])
	if first.Order >= second.Order || second.Order >= 0 || first.Position != 0 {
		t.Errorf("orders %d and %d", first.Order, second.Order)
	}
	outcomes, err = c.AcceptAll(ctx, []*eventgraph.Event{pdu(t, a.event(said[0]).Event)},
		Basis{Kind: Claimed, State: ids, Backfill: true, Origin: a.Server()})
	if err != nil || outcomes[0].Verdict != store.Accepted || c.event(said[0]).Order >= first.Order {
		t.Errorf("next page: %+v, %v", outcomes, err)
	}
}

// Where JSON is not yet canonical, a peer's depth may be any 64-bit integer. It must not keep us from sending.
func TestGreatestDepth(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"5", "12"} {
		a, b, alice, bob, room := shared(t, version)
		greatest := int64(maxDepth)
		if version == "5" {
			greatest = math.MaxInt64
		}
		d := eventgraph.Draft{
			RoomID: room, Type: "m.room.message", Sender: bob, Content: text("deep"),
			PrevEvents: a.record(room).Forward, Depth: greatest, OriginServerTS: b.now.UnixMilli(),
		}
		for _, tuple := range auth.Selection(version, d) {
			if id, ok, _ := a.StateAt(room, a.record(room).State).EventID(tuple); ok {
				d.AuthEvents = append(d.AuthEvents, id)
			}
		}
		deep, err := eventgraph.Build(version, d, b.key)
		if err != nil {
			t.Fatal(err)
		}
		a.accept(deep, Basis{Origin: b.Server()}, store.Accepted)
		a.message(room, alice, "still here")
		a.message(room, alice, "and again")
	}
}

// Before room version 12 the server that a room's ID names can sign another create event, even when its users have left. It must
// not become part of the room.
func TestSecondCreateEvent(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "11")
	before := b.record(room)
	content, _ := json.Marshal(map[string]any{"room_version": "11", "m.federate": false})
	second, err := eventgraph.Build("11", eventgraph.Draft{
		RoomID: room, Type: "m.room.create", StateKey: stateKey(""), Sender: alice, Content: content,
		Depth: 1, OriginServerTS: a.now.UnixMilli(),
	}, a.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, basis := range []Basis{{Kind: Nothing}, {Origin: a.Server()}} {
		b.accept(second, basis, store.Rejected)
	}
	after := b.record(room)
	if after.State != before.State || len(after.Forward) != 1 || after.Forward[0] != before.Forward[0] {
		t.Error("a second create event changed the room")
	}
	b.message(room, bob, "still here")
	// The room's own create event is still what it was.
	if create := b.event(before.Create); create.Verdict == store.Rejected {
		t.Error("the room's own create event is rejected")
	}
}

// An event of one room that names one of another as its parent says nothing about the other room's extremities.
func TestParentInAnotherRoom(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	other := a.create("12", alice)
	b.join(a, other, bob)
	joined := a.record(other).State

	topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"not here yet"}`)
	unseen := a.message(other, alice, "nor this")
	across := a.forge(Draft{Room: other, Sender: alice, Type: "m.room.message", Content: text("across")}, []eventgraph.EventID{unseen, topic})
	var state []eventgraph.EventID
	err := a.StateAt(other, joined).Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error {
		state = append(state, id)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.accept(across, Basis{Kind: Claimed, State: state, Origin: a.Server()}, store.Accepted)

	b.accept(a.event(topic).Event, Basis{Origin: a.Server()}, store.Accepted)
	b.sameState(a, room)
	// Nor does it keep its own room from going on.
	b.accept(a.event(unseen).Event, Basis{Origin: a.Server()}, store.Accepted)

	// Once the parent is here, it is known to be of another room.
	across = a.forge(Draft{Room: other, Sender: alice, Type: "m.room.message", Content: text("once more")}, []eventgraph.EventID{unseen, topic})
	_, err = b.Accept(context.Background(), pdu(t, across), Basis{Kind: Claimed, State: state, Origin: a.Server()})
	wantRefusal(t, err, "M_BAD_JSON")
}
