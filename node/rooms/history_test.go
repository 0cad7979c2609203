package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestHistoriesConverge lets three servers act at random, each event reaching the others at random and in random order, and then
// brings all to all: each server must have found the same state before and after each event, and rejected the same, whatever the
// order in which it saw them.
func TestHistoriesConverge(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		for _, version := range []eventgraph.RoomVersion{"6", "11", "12"} {
			t.Run(fmt.Sprintf("%s/%d", version, seed), func(t *testing.T) {
				t.Parallel()
				history(t, version, rand.New(rand.NewPCG(seed, 1)))
			})
		}
	}
}

func history(t *testing.T, version eventgraph.RoomVersion, random *rand.Rand) {
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	c := newServer(t, "c", a, b)
	servers := []*server{a, b, c}
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	users := []eventgraph.UserID{alice, bob, carol}
	room := a.create(version, alice)
	position := a.store.Position()
	b.join(a, room, bob)
	c.join(a, room, carol)
	a.give(b, room, position)

	var all []*eventgraph.Event
	given := make([]map[eventgraph.EventID]bool, len(servers))
	for i := range given {
		given[i] = map[eventgraph.EventID]bool{}
	}
	act := func(i int) {
		s := servers[i]
		s.now = s.now.Add(time.Second)
		if random.IntN(6) == 0 { // against the rules, unless by chance within them
			d := randomDraft(random, version, room, users[i], users)
			e := s.forge(d, s.record(room).Forward[:1])
			if _, err := s.Accept(context.Background(), pdu(t, e), Basis{}); err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
			given[i][e.ID()] = true
			return
		}
		id, err := s.Send(context.Background(), randomDraft(random, version, room, users[i], users))
		var refusal *Refusal
		if errors.As(err, &refusal) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(e *eventgraph.Event) bool { return e.ID() == id }) {
			all = append(all, s.event(id).Event)
		}
		given[i][id] = true
	}
	deliver := func(i int, e *eventgraph.Event) {
		if given[i][e.ID()] {
			return
		}
		_, err := servers[i].Accept(context.Background(), pdu(t, e), Basis{Origin: e.Sender().Server()})
		var missing *MissingError
		if errors.As(err, &missing) {
			return // again later
		}
		if err != nil {
			t.Fatalf("%s of type %s: %v", e.ID(), e.Type(), err)
		}
		given[i][e.ID()] = true
	}
	for range 80 {
		if act(random.IntN(3)); len(all) > 0 {
			for range random.IntN(4) {
				deliver(random.IntN(3), all[random.IntN(len(all))])
			}
		}
	}
	for i := range servers {
		for range all { // each round at least those whose parents are here
			order := random.Perm(len(all))
			for _, n := range order {
				deliver(i, all[n])
			}
			if len(given[i]) == len(all) {
				break
			}
		}
		if len(given[i]) != len(all) {
			t.Fatalf("server %d took %d of %d events", i, len(given[i]), len(all))
		}
	}
	for _, e := range all {
		want := a.event(e.ID())
		for _, s := range servers[1:] {
			got := s.event(e.ID())
			if (got.Verdict == store.Rejected) != (want.Verdict == store.Rejected) {
				t.Errorf("%s of type %s: verdicts %d and %d", e.ID(), e.Type(), want.Verdict, got.Verdict)
			}
			if got.StateBefore != want.StateBefore || got.StateAfter != want.StateAfter {
				t.Errorf("%s of type %s: states differ", e.ID(), e.Type())
			}
		}
	}
	counts := map[store.Verdict]int{}
	forks := 0
	for _, e := range all {
		for _, s := range servers {
			counts[s.event(e.ID()).Verdict]++
		}
		if len(e.PrevEvents()) > 1 {
			forks++
		}
	}
	t.Logf("events %d verdicts %v merges %d", len(all), counts, forks)
	for i, s := range servers {
		checkIndex(t, s, room, i)
		s.checkTips(room)
	}
}

func randomDraft(random *rand.Rand, version eventgraph.RoomVersion, room eventgraph.RoomID, by eventgraph.UserID, users []eventgraph.UserID) Draft {
	d := Draft{Room: room, Sender: by, Type: "m.room.message", Content: text(fmt.Sprint(random.Uint32()))}
	state := func(kind, key string, content any) {
		raw, _ := json.Marshal(content)
		d.Type, d.StateKey, d.Content = kind, &key, raw
	}
	other := users[random.IntN(len(users))]
	switch random.IntN(16) {
	case 0, 8, 9:
		state("m.room.topic", "", map[string]any{"topic": fmt.Sprint(random.Uint32())})
	case 1:
		levels := map[string]int{}
		if traits, _ := version.Traits(); !traits.PrivilegedCreators {
			levels[string(users[0])] = 100
		}
		for _, u := range users[1:] {
			levels[string(u)] = []int{0, 50, 100}[random.IntN(3)]
		}
		state("m.room.power_levels", "", map[string]any{"users": levels})
	case 2:
		state("m.room.member", string(other), map[string]any{"membership": "ban"})
	case 3:
		state("m.room.member", string(other), map[string]any{"membership": "leave"})
	case 4, 5:
		state("m.room.member", string(by), map[string]any{"membership": "join"})
	case 6:
		state("m.room.join_rules", "", map[string]any{"join_rule": []string{"public", "invite"}[random.IntN(2)]})
	}
	return d
}

// checkIndex compares the member index and the servers with the room's current state.
func checkIndex(t *testing.T, s *server, room eventgraph.RoomID, i int) {
	t.Helper()
	state, err := s.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	joined := map[eventgraph.ServerName]bool{}
	err = state.Walk(func(tuple eventgraph.StateTuple, id eventgraph.EventID) error {
		if tuple.Type != "m.room.member" {
			return nil
		}
		user := eventgraph.UserID(tuple.Key)
		e := s.event(id)
		if m := s.membership(room, user); m.Membership != e.Membership() || m.Event != id {
			t.Errorf("server %d: %s is %s in the index, %s in the state", i, user, m.Membership, e.Membership())
		}
		if e.Membership() == "join" {
			joined[user.Server()] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	servers, err := s.Servers(room)
	if err != nil || len(servers) != len(joined) {
		t.Errorf("server %d: servers %v, %v; joined %v", i, servers, err, joined)
	}
	for _, name := range servers {
		if !joined[name] {
			t.Errorf("server %d: %s counted as in the room", i, name)
		}
	}
}

func TestResolutionTakesBackAMembership(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, mallory, bob := a.user("alice"), b.user("mallory"), b.user("bob")
	room := a.create("12", alice, mallory)
	position := a.store.Position()
	b.join(a, room, mallory)
	after := b.store.Position()
	b.setState(room, bob, "m.room.member", string(bob), `{"membership":"join"}`)
	a.give(b, room, position)
	b.give(a, room, after)

	demoted := a.setState(room, alice, "m.room.power_levels", "", `{"users":{}}`)
	b.setState(room, mallory, "m.room.member", string(bob), `{"membership":"ban"}`)
	if m := b.membership(room, bob); m.Membership != "ban" {
		t.Fatalf("bob is %+v", m)
	}
	after = b.store.Position()
	b.accept(a.event(demoted).Event, Basis{}, store.Accepted)
	m := b.membership(room, bob)
	if m.Membership != "join" {
		t.Errorf("bob is %s after the ban was resolved away", m.Membership)
	}
	told := false
	for _, c := range b.changesAfter(after) {
		told = told || c.Kind == store.ChangeMembership && c.User == bob
	}
	if !told || m.Position != b.store.Position() {
		t.Errorf("bob is not told: member at %d, store at %d", m.Position, b.store.Position())
	}
}

func TestOutlierGetsItsPlace(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"x"}`)
	said := a.message(room, alice, "on it")
	r := b.accept(a.event(topic).Event, Basis{Kind: Nothing}, store.Outlier)
	if r.Position != 0 || b.event(topic).Order != 0 {
		t.Errorf("outlier %+v", r)
	}
	if again := b.accept(a.event(topic).Event, Basis{Kind: Nothing}, store.Outlier); !again.Already {
		t.Error("an outlier twice is not Already")
	}
	b.accept(a.event(said).Event, Basis{}, store.Accepted)
	placed := b.event(topic)
	if placed.Verdict != store.Accepted || placed.Order == 0 || placed.Order >= b.event(said).Order || placed.Position == 0 {
		t.Errorf("the outlier is %+v", placed)
	}
	b.sameState(a, room)

	// An outlier that its auth events allow, but not the state at its place: rejected once that is known.
	fork := a.record(room).Forward
	a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
	ban := a.record(room).Forward
	rests := b.event(said).AuthEvents()
	_ = fork
	late := b.forgeAt(room, bob, ban, a.event(ban[0]).Depth()+1, append(slices.Clone(rests[:1]), b.memberEvent(room, bob)))
	a.accept(late, Basis{Kind: Nothing}, store.Outlier)
	next := b.forgeAt(room, bob, []eventgraph.EventID{late.ID()}, late.Depth()+1, late.AuthEvents())
	a.accept(next, Basis{}, store.Rejected)
	if got := a.event(late.ID()).Verdict; got != store.Rejected {
		t.Errorf("the outlier got verdict %d at its place", got)
	}
}

func (s *server) memberEvent(room eventgraph.RoomID, user eventgraph.UserID) eventgraph.EventID {
	s.t.Helper()
	state, err := s.CurrentState(room)
	if err != nil {
		s.t.Fatal(err)
	}
	id, _, err := state.EventID(eventgraph.StateTuple{Type: "m.room.member", Key: string(user)})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// forgeAt makes a message on parents that s need not hold.
func (s *server) forgeAt(room eventgraph.RoomID, by eventgraph.UserID, parents []eventgraph.EventID, depth int64, authEvents []eventgraph.EventID) *eventgraph.Event {
	s.t.Helper()
	e, err := eventgraph.Build(s.record(room).Version, eventgraph.Draft{
		RoomID: room, Type: "m.room.message", Sender: by, Content: text("forged"), PrevEvents: parents, AuthEvents: authEvents,
		Depth: depth, OriginServerTS: s.now.UnixMilli(),
	}, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}
