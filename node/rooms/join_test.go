package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func (s *server) membership(room eventgraph.RoomID, user eventgraph.UserID) store.Member {
	s.t.Helper()
	m, err := s.member(room, user)
	if err != nil {
		s.t.Fatal(err)
	}
	if m == nil {
		return store.Member{}
	}
	return *m
}

func TestEnter(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	record := b.record(room)
	join := b.event(record.Forward[0])
	if join.Position == 0 || !join.Gap || join.Order != 1 || join.StateBefore != a.event(join.ID()).StateBefore {
		t.Errorf("the join is stored as %+v", join)
	}
	if !slices.Equal(record.Backward, record.Forward) || record.State != a.record(room).State {
		t.Errorf("room %+v", record)
	}
	if m := b.membership(room, bob); m.Membership != "join" || !m.WasJoined || m.Position != join.Position {
		t.Errorf("bob is %+v", m)
	}
	if m := b.membership(room, alice); m.Membership != "join" {
		t.Errorf("alice is %+v", m)
	}
	if !b.InRoom(room, a.Server()) || !b.InRoom(room, b.Server()) || b.InRoom(room, "elsewhere") {
		t.Error("InRoom is wrong after the join")
	}
	if m := a.membership(room, bob); m.Membership != "join" || m.Event != join.ID() {
		t.Errorf("for a bob is %+v", m)
	}

	// bob leaves and comes back: the room is there already.
	b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`)
	a.accept(b.event(b.record(room).Forward[0]).Event, Basis{}, store.Accepted)
	if a.InRoom(room, b.Server()) || b.InRoom(room, b.Server()) {
		t.Error("b is in the room after leaving")
	}
	a.message(room, alice, "meanwhile")
	a.setState(room, alice, "m.room.topic", "", `{"topic":"meanwhile"}`)
	b.join(a, room, bob)
	if !b.InRoom(room, b.Server()) || b.record(room).State != a.record(room).State {
		t.Error("the state after coming back is not a's")
	}
}

func TestJoinLeavesOutWhatIsForged(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice)
	a.setState(room, alice, "m.room.topic", "", `{"topic":"x"}`)
	ctx := context.Background()
	proto, version, err := a.Template(ctx, room, bob, "join")
	if err != nil {
		t.Fatal(err)
	}
	join, err := eventgraph.Finish(version, proto, b.now.UnixMilli(), b.key)
	if err != nil {
		t.Fatal(err)
	}
	state, chain := a.stateAndChain(room, a.record(room).State)

	// An event signed by a key that b has never seen, and one that the rules refuse.
	c := newServer(t, "c", a)
	unknown := a.forge(Draft{Room: room, Sender: alice, Type: "m.room.name", StateKey: stateKey(""), Content: json.RawMessage(`{"name":"y"}`)}, a.record(room).Forward)
	unknown, err = eventgraph.Build(version, eventgraph.Draft{
		RoomID: room, Type: "m.room.name", StateKey: stateKey(""), Sender: c.user("carol"), Content: unknown.Content(),
		PrevEvents: unknown.PrevEvents(), AuthEvents: unknown.AuthEvents(), Depth: unknown.Depth(), OriginServerTS: unknown.OriginServerTS(),
	}, c.key)
	if err != nil {
		t.Fatal(err)
	}
	refused, err := eventgraph.Build(version, eventgraph.Draft{
		RoomID: room, Type: "m.room.avatar", StateKey: stateKey(""), Sender: bob, Content: json.RawMessage(`{}`),
		PrevEvents: unknown.PrevEvents(), AuthEvents: unknown.AuthEvents(), Depth: unknown.Depth(), OriginServerTS: unknown.OriginServerTS(),
	}, b.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.takeJoin(join, append(slices.Clone(state), unknown, refused), chain); err != nil {
		t.Fatal(err)
	}
	current, err := b.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"m.room.name", "m.room.avatar"} {
		if e, err := current.Event(eventgraph.StateTuple{Type: kind}); e != nil || err != nil {
			t.Errorf("%s was taken in: %v, %v", kind, e, err)
		}
	}
	if e, err := current.Event(eventgraph.StateTuple{Type: "m.room.topic"}); e == nil || err != nil {
		t.Errorf("the topic was not taken in: %v", err)
	}
	if err := c.takeJoin(join, state[:1], nil); err == nil {
		t.Error("a join to a room without its state was taken in")
	}
	if _, err := c.CurrentState(room); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a failed join left a room: %v", err)
	}
}

func TestEnterLargeRoom(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice)
	const members = 1200
	err := a.inTurn(context.Background(), room, func(run *run) error {
		for i := range members {
			user := a.user(fmt.Sprintf("user%d", i))
			key := string(user)
			_, err := run.send(Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`)})
			if err == nil && run.size > maxRunBytes {
				err = run.commit()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.join(a, room, bob)
	if a.record(room).State != b.record(room).State {
		t.Error("states differ")
	}
	count := 0
	err = b.store.View(func(r *store.Reader) error {
		return r.MembersOf(room, func(m *store.Member) (bool, error) {
			if m.Membership == "join" {
				count++
			}
			return true, nil
		})
	})
	if err != nil || count != members+2 {
		t.Errorf("%d members, %v; want %d", count, err, members+2)
	}
}

func TestInviteFromOutside(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice)
	ctx := context.Background()
	key := string(bob)
	invite, err := a.Build(ctx, Draft{Room: room, Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, held := a.has(invite.ID()); held {
		t.Error("Build stored the event")
	}
	position := b.store.Position()
	stripped := []json.RawMessage{json.RawMessage(`{"type":"m.room.name","state_key":"","content":{"name":"x"},"sender":"@a:b"}`)}
	if err := b.ReceiveInvite(ctx, pdu(t, invite), stripped, a.Server(), false); err != nil {
		t.Fatal(err)
	}
	m := b.membership(room, bob)
	if m.Membership != "invite" || !m.Outside || m.Via != a.Server() || len(m.Stripped) == 0 || m.Event != invite.ID() {
		t.Errorf("bob is %+v", m)
	}
	changes := b.changesAfter(position)
	if len(changes) != 1 || changes[0].Kind != store.ChangeMembership || changes[0].User != bob {
		t.Errorf("changes %+v", changes)
	}
	signed, err := invite.WithSignature(b.key)
	if err != nil {
		t.Fatal(err)
	}
	a.accept(signed, Basis{}, store.Accepted)
	if m := a.membership(room, bob); m.Membership != "invite" || m.Outside {
		t.Errorf("for a bob is %+v", m)
	}
	if err := b.LeaveOutside(ctx, room, bob, nil); err != nil {
		t.Fatal(err)
	}
	if m := b.membership(room, bob); m.Membership != "leave" || !m.Outside {
		t.Errorf("after rejecting bob is %+v", m)
	}
	wantRefusal(t, b.LeaveOutside(ctx, room, bob, nil), "M_NOT_FOUND")
	b.join(a, room, bob)
	if m := b.membership(room, bob); m.Membership != "join" || m.Outside {
		t.Errorf("after joining bob is %+v", m)
	}
}

// Who was banned, and is invited again, has the invite, though the room's events from before it come here later.
func TestInviteOutlastsWhatIsOlder(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice)
	b.join(a, room, bob)
	ctx := context.Background()
	key := string(bob)
	change := func(membership string) *eventgraph.Event {
		t.Helper()
		e, err := a.Build(ctx, Draft{Room: room, Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"` + membership + `"}`)})
		if err != nil {
			t.Fatal(err)
		}
		a.accept(e, Basis{}, store.Accepted)
		return e
	}
	ban, unban := change("ban"), change("leave")
	b.accept(pdu(t, ban), Basis{}, store.Accepted)
	invite, err := a.Build(ctx, Draft{Room: room, Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server(), false); err != nil {
		t.Fatal(err)
	}
	b.accept(pdu(t, unban), Basis{}, store.Accepted)
	if m := b.membership(room, bob); m.Membership != "invite" || !m.Outside {
		t.Errorf("after the end of the ban bob is %+v", m)
	}
	if a.accept(invite, Basis{}, store.Accepted); t.Failed() {
		return
	}
	kick := change("leave")
	b.accept(pdu(t, invite), Basis{}, store.Accepted)
	b.accept(pdu(t, kick), Basis{}, store.Accepted)
	if m := b.membership(room, bob); m.Membership != "leave" {
		t.Errorf("after the invite was taken back bob is %+v", m)
	}
}

func TestRestrictedJoin(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	space := a.create("12", alice)
	room := a.create("12", alice)
	rule := `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"` + string(space) + `"}]}`
	a.setState(room, alice, "m.room.join_rules", "", rule)

	ctx := context.Background()
	_, _, err := a.Template(ctx, room, bob, "join")
	wantRefusal(t, err, "M_FORBIDDEN")
	b.join(a, space, bob)
	proto, version, err := a.Template(ctx, room, bob, "join")
	if err != nil {
		t.Fatal(err)
	}
	join, err := eventgraph.Finish(version, proto, b.now.UnixMilli(), b.key)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(join.RequiredSigners(), a.Server()) {
		t.Fatalf("template %s names nobody of a", proto)
	}
	if join, err = join.WithSignature(a.key); err != nil {
		t.Fatal(err)
	}
	a.accept(join, Basis{Origin: b.Server()}, store.Accepted)

	// A user of our own gets it without asking.
	carol := a.user("carol")
	a.setState(space, carol, "m.room.member", string(carol), `{"membership":"join"}`)
	a.setState(room, carol, "m.room.member", string(carol), `{"membership":"join"}`)

	// Where nobody of ours can know or invite, the refusal says so.
	a.setState(room, alice, "m.room.join_rules", "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!unknown"}]}`)
	_, _, err = a.Template(ctx, room, b.user("dora"), "join")
	wantRefusal(t, err, "M_UNABLE_TO_AUTHORISE_JOIN")
	a.setState(room, alice, "m.room.join_rules", "", `{"join_rule":"knock"}`)
	if _, _, err = a.Template(ctx, room, b.user("dora"), "knock"); err != nil {
		t.Errorf("knock: %v", err)
	}
	if _, _, err = a.Template(ctx, room, bob, "leave"); err != nil {
		t.Errorf("leave: %v", err)
	}
	_, _, err = a.Template(ctx, "!nowhere", bob, "join")
	wantRefusal(t, err, "M_NOT_FOUND")
}

func TestCreate(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice, bob := a.user("alice"), a.user("bob")
	ctx := context.Background()
	alias := eventgraph.RoomAlias("#here:" + string(a.Server()))
	key := string(bob)
	request := CreateRequest{
		Creator: alice, Content: json.RawMessage(`{"type":"m.space","additional_creators":["` + string(bob) + `"]}`),
		JoinContent: json.RawMessage(`{"displayname":"Alice"}`), Alias: alias, Published: true,
		Then: append(preset("12", alice), Draft{Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)}),
	}
	room, err := a.Create(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	record := a.record(room)
	if record.Version != eventgraph.DefaultRoomVersion || string(record.Create[1:]) != string(room[1:]) {
		t.Errorf("room %+v", record)
	}
	if m := a.membership(room, bob); m.Membership != "invite" {
		t.Errorf("bob is %+v", m)
	}
	err = a.store.View(func(r *store.Reader) error {
		named, err := r.Alias(alias)
		if err != nil || named.Room != room || named.Creator != alice {
			t.Errorf("alias %+v, %v", named, err)
		}
		published, err := r.Published(room)
		if !published {
			t.Error("not published")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	position := a.store.Position()
	_, err = a.Create(ctx, request)
	wantRefusal(t, err, "M_ROOM_IN_USE")
	if a.store.Position() != position {
		t.Error("a room was made although its alias was taken")
	}
	request.Alias = ""
	request.Then = append(request.Then, Draft{Type: "m.room.name", StateKey: stateKey(""), Content: json.RawMessage(`[]`)})
	_, err = a.Create(ctx, request)
	wantRefusal(t, err, "M_BAD_JSON")
	if a.store.Position() != position {
		t.Error("half a room was made")
	}
	request.Version = "99"
	_, err = a.Create(ctx, request)
	wantRefusal(t, err, "M_UNSUPPORTED_ROOM_VERSION")
}

// A join that is rejected by what we hold of the room is no join.
func TestJoinRejected(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`)
	a.accept(b.event(b.record(room).Forward[0]).Event, Basis{}, store.Accepted)
	a.setState(room, alice, "m.room.join_rules", "", `{"join_rule":"invite"}`)
	a.give(b, room, 0)
	state, chain := a.stateAndChain(room, a.record(room).State)
	// Its auth events would allow it; all its parents are held here, and the state after them does not.
	d := Draft{Room: room, Sender: bob, Type: "m.room.member", StateKey: stateKey(string(bob)), Content: json.RawMessage(`{"membership":"join"}`)}
	join := b.forge(d, b.record(room).Forward)
	public := a.eventOfType(room, "m.room.join_rules")
	var old []eventgraph.EventID
	for _, id := range join.AuthEvents() {
		if b.event(id).Type() == "m.room.join_rules" {
			id = public
		}
		old = append(old, id)
	}
	join = b.forge(d, b.record(room).Forward, old...)
	chain = append(chain, pdu(t, a.event(public).Event))
	wantRefusal(t, b.takeJoin(join, state, chain), "M_FORBIDDEN")
	if b.InRoom(room, b.Server()) {
		t.Error("b is in the room")
	}
}

// eventOfType is the first of that type in the room's timeline.
func (s *server) eventOfType(room eventgraph.RoomID, kind string) (id eventgraph.EventID) {
	s.t.Helper()
	err := s.store.View(func(r *store.Reader) error {
		return r.Timeline(room, math.MinInt64, false, func(e *store.StoredEvent) (bool, error) {
			if e.Type() == kind {
				id = e.ID()
			}
			return id == "", nil
		})
	})
	if err != nil || id == "" {
		s.t.Fatalf("no %s: %v", kind, err)
	}
	return id
}
