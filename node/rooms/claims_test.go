package rooms

import (
	"encoding/json"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// without is the IDs of a state but for one tuple's.
func without(state []*eventgraph.Event, kind, key string) (ids []eventgraph.EventID) {
	for _, e := range state {
		if tuple, _ := e.Tuple(); tuple.Type != kind || tuple.Key != key {
			ids = append(ids, e.ID())
		}
	}
	return ids
}

// What a claim says to be in the state before an event takes no extremity away where the event becomes none itself: here it names the one
// that there is, and the room would be without any.
func TestAttackClaimOfTheLastExtremity(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		last := a.message(room, alice, "last")
		state, _ := a.stateAndChain(room, a.event(last).StateAfter)
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: []eventgraph.EventID{last}})
		below := b.on(base, "below", b.on(base, "never given", last).ID())
		renamed := b.lie(a, Draft{
			Room: room, Sender: bob, Type: "m.room.member", StateKey: stateKey(string(bob)), Content: json.RawMessage(`{"membership":"join","displayname":"b"}`),
		}, claim{ts: b.now, parents: []eventgraph.EventID{last, below.ID()}})
		a.accept(renamed, Basis{Kind: Claimed, State: ids(state), Origin: b.Server()}, store.Accepted)
		lie := append(without(state, "m.room.member", string(bob)), renamed.ID())
		a.accept(below, Basis{Kind: Claimed, State: lie, Origin: b.Server()}, store.Accepted)

		if got := a.record(room); len(got.Forward) == 0 || got.State == (eventgraph.Hash{}) {
			t.Fatalf("extremities %v, state %x", got.Forward, got.State)
		}
		a.message(room, alice, "the room is alive")
		a.checkTips(room)
	})
}

// A claim says nothing against what the held ones among the parents tell: here it is the state from before the ban that one of them knows of.
func TestAttackClaimBesideHeldParent(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c := newServer(t, "c", a, b)
		carol := c.user("carol")
		c.join(a, room, carol)
		old := a.record(room).Forward
		oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
		a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
		known := a.message(room, alice, "after the ban")
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
		above := b.on(base, "above", known, b.on(base, "never given", old...).ID())
		a.accept(above, Basis{Kind: Claimed, State: ids(oldState), Origin: b.Server()}, store.Accepted)
		a.wantMember(room, carol, "ban")
		if at, err := a.StateAt(room, a.event(above.ID()).StateBefore).Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(carol)}); err != nil || at == nil || at.Membership() != "ban" {
			t.Errorf("before the event carol is no more banned: %v", err)
		}
		a.message(room, alice, "on")
		a.wantMember(room, carol, "ban")
	})
}

// afterBan is a room that bob has a fork of from before carol was banned: he says of what the fork rests on that it is the state of then.
type afterBan struct {
	a, b, c            *server
	alice, bob, carol  eventgraph.UserID
	room               eventgraph.RoomID
	ban                eventgraph.EventID
	old                []eventgraph.EventID // extremities before the ban
	oldState, newState []*eventgraph.Event  // after those, and after the ban
	base               *eventgraph.Event    // says something, on old
}

func banned(t *testing.T, version eventgraph.RoomVersion) (s afterBan) {
	t.Helper()
	s.a, s.b, s.alice, s.bob, s.room = shared(t, version)
	s.c = newServer(t, "c", s.a, s.b)
	s.carol = s.c.user("carol")
	s.c.join(s.a, s.room, s.carol)
	s.old = s.a.record(s.room).Forward
	s.oldState, _ = s.a.stateAndChain(s.room, s.a.event(s.old[0]).StateAfter)
	s.base = s.b.lie(s.a, said(s.room, s.bob, ""), claim{ts: s.b.now, parents: s.old})
	s.ban = s.a.setState(s.room, s.alice, "m.room.member", string(s.carol), `{"membership":"ban"}`)
	s.newState, _ = s.a.stateAndChain(s.room, s.a.event(s.ban).StateAfter)
	return s
}

// still finds carol banned, now and after the next event.
func (s *afterBan) still(t *testing.T, what string) {
	t.Helper()
	s.a.wantMember(s.room, s.carol, "ban")
	s.a.message(s.room, s.alice, what)
	s.a.wantMember(s.room, s.carol, "ban")
	back := s.c.lie(s.a, said(s.room, s.carol, "here again"), claim{ts: s.c.now, parents: s.old})
	s.a.accept(back, Basis{Origin: s.c.Server()}, store.SoftFailed)
}

func claimed(events []*eventgraph.Event, by *server) Basis {
	return Basis{Kind: Claimed, State: ids(events), Origin: by.Server()}
}

// A claim is not made true by what is handed over later and lies between it and a ban: through an event on a false claim nothing is tied to the
// timeline. So it is however what lies between comes, and however many they are.
func TestAttackTieThroughClaim(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for what, then := range map[string]func(s *afterBan){
			"it rests on the ban": func(s *afterBan) {
				below := s.b.on(s.base, "below", s.ban)
				s.a.accept(s.b.on(s.base, "above", below.ID()), claimed(s.oldState, s.b), store.Accepted)
				s.a.accept(below, Basis{Origin: s.b.Server()}, store.Accepted)
			},
			"it is said that the ban is in the state before it": func(s *afterBan) {
				below := s.b.on(s.base, "below", s.b.on(s.base, "never given", s.old...).ID())
				s.a.accept(s.b.on(s.base, "above", below.ID()), claimed(s.oldState, s.b), store.Accepted)
				s.a.accept(below, claimed(s.newState, s.b), store.Accepted)
			},
			"they are two, the upper on the same claim, given as history": func(s *afterBan) {
				lower := s.b.on(s.base, "lower", s.ban)
				upper := s.b.on(s.base, "upper", lower.ID())
				s.a.accept(s.b.on(s.base, "above", upper.ID()), claimed(s.oldState, s.b), store.Accepted)
				history := claimed(s.oldState, s.b)
				history.Backfill = true
				s.a.accept(upper, history, store.Accepted)
				s.a.accept(lower, Basis{Origin: s.b.Server()}, store.Accepted)
			},
			"what rests on the claim is built on": func(s *afterBan) {
				below := s.b.on(s.base, "below", s.ban)
				above := s.b.on(s.base, "above", below.ID())
				s.a.accept(above, claimed(s.oldState, s.b), store.Accepted)
				s.a.accept(s.b.on(s.base, "on it", above.ID()), Basis{Origin: s.b.Server()}, store.Accepted)
				s.a.accept(below, Basis{Origin: s.b.Server()}, store.Accepted)
			},
			"the claim names what knows of the ban": func(s *afterBan) {
				renamed := s.b.lie(s.a, Draft{
					Room: s.room, Sender: s.bob, Type: "m.room.member", StateKey: stateKey(string(s.bob)), Content: json.RawMessage(`{"membership":"join","displayname":"b"}`),
				}, claim{ts: s.b.now, parents: []eventgraph.EventID{s.ban}})
				s.a.accept(renamed, Basis{Origin: s.b.Server()}, store.Accepted)
				lie := append(without(s.oldState, "m.room.member", string(s.bob)), renamed.ID())
				above := s.b.on(s.base, "above", s.b.on(s.base, "never given", s.old...).ID())
				s.a.accept(above, Basis{Kind: Claimed, State: lie, Origin: s.b.Server()}, store.Accepted)
			},
		} {
			for _, restart := range []bool{false, true} {
				s := banned(t, version)
				then(&s)
				if restart {
					s.a.restarted()
				}
				s.still(t, what)
				if t.Failed() {
					t.Fatal(what)
				}
			}
		}
	})
}

// Who has a ban before others and builds on it, on a claim that leaves it out, does not make them pass it over when it comes.
func TestAttackClaimBeforeTheBanComes(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		s := banned(t, version)
		d := newServer(t, "d", s.a, s.b, s.c)
		room := s.room
		join := d.lie(s.a, member(room, d.user("dora"), d.user("dora"), "join"), claim{ts: d.now, parents: s.old})
		_, chain := s.a.stateAndChain(room, s.a.event(s.old[0]).StateAfter)
		if err := d.takeJoin(join, s.oldState, chain); err != nil {
			t.Fatal(err)
		}
		above := s.b.on(s.base, "above", s.ban)
		d.accept(above, claimed(s.oldState, s.b), store.Accepted)
		d.wantMember(room, s.carol, "join")
		d.accept(s.a.event(s.ban).Event, Basis{Origin: s.a.Server()}, store.Accepted)
		d.wantMember(room, s.carol, "ban")
	})
}

// A claim that was true leaves nothing behind: when the gap is filled, in whatever order, its extremity takes the place of all that it rests on.
func TestTrueClaimTies(t *testing.T) {
	t.Parallel()
	for _, reversed := range []bool{false, true} {
		a, b, alice, bob, room := shared(t, "12")
		old := a.record(room).Forward
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
		a.setState(room, alice, "m.room.name", "", `{"name":"known"}`)
		fork := b.lie(a, said(room, bob, "fork"), claim{ts: b.now, parents: old})
		mine := a.record(room).Forward[0]
		between := []*eventgraph.Event{b.on(base, "one", mine), b.on(base, "two", fork.ID())}
		above := b.on(base, "above", ids(between)...)
		state, _ := a.stateAndChain(room, a.event(mine).StateAfter)
		a.accept(fork, Basis{Origin: b.Server()}, store.Accepted)
		a.accept(above, claimed(state, b), store.Accepted)
		if reversed {
			between[0], between[1] = between[1], between[0]
		}
		for _, e := range between {
			a.accept(e, Basis{Origin: b.Server()}, store.Accepted)
		}
		if got := a.record(room); len(got.Forward) != 1 || got.Forward[0] != above.ID() || len(got.Backward) != 0 {
			t.Errorf("reversed %v: extremities %v, backward %v", reversed, got.Forward, got.Backward)
		}
	}
}
