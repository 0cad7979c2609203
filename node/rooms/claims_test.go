package rooms

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
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
		_, carol, old := carolIn(a, b, room)
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

// An honest claim does not keep the past out: what lies behind it comes one by one, and was forbidden since. It is taken as the past, with what
// forbids it, and takes nothing away. Nobody here has been shown it: so it is news, above what it rests on.
func TestPastBehindClaim(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"10", "12"} {
		a, b, alice, bob, room := shared(t, version)
		before := a.store.Position()
		d, _ := doraIn(a, b, room, alice)
		a.give(b, room, before)
		at := b.store.Position()
		early := b.message(room, bob, "before the ban")
		b.give(a, room, at)
		ban := a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
		across := d.acrossGap(a, room, alice)

		tips := d.record(room).Forward
		d.accept(a.event(early).Event, Basis{Origin: a.Server()}, store.Accepted)
		if got := d.record(room).Forward; len(got) != 2 || !slices.Equal(got, tips) {
			t.Errorf("version %s: extremities %v, and before %v", version, got, tips)
		}
		d.accept(a.event(ban).Event, Basis{Origin: a.Server()}, store.Accepted)
		for _, id := range []eventgraph.EventID{early, ban} {
			d.wantShown(id)
			if e := d.event(id); !e.Aside || e.RoomState != d.record(room).State {
				t.Errorf("version %s: %s is an extremity, or shown with another state than the room's", version, e.Type())
			}
		}
		if got := d.record(room).Forward; len(got) != 1 || got[0] != across || d.event(across).Gap {
			t.Errorf("version %s: extremities %v when the gap is filled", version, got)
		}
		d.wantMember(room, bob, "ban")
		d.sameState(a, room)
	}
}

// wantShown finds an event in the timeline, above what it rests on.
func (s *server) wantShown(id eventgraph.EventID) {
	s.t.Helper()
	e := s.event(id)
	if e.Verdict != store.Accepted || e.Position == 0 {
		s.t.Errorf("%s has verdict %d and position %d: nobody is shown it", e.Type(), e.Verdict, e.Position)
	}
	for _, parent := range e.PrevEvents() {
		if under := s.event(parent); e.Order <= under.Order {
			s.t.Errorf("%s has order %d, and what it rests on %d", e.Type(), e.Order, under.Order)
		}
	}
}

// acrossGap gives the server what a's user says next as the first event after a gap, with the state before it, and its ID.
func (s *server) acrossGap(a *server, room eventgraph.RoomID, by eventgraph.UserID) eventgraph.EventID {
	s.t.Helper()
	state, chain := a.stateAndChain(room, a.record(room).State)
	id := a.message(room, by, "across the gap")
	for _, e := range append(chain, state...) {
		if _, held := s.has(e.ID()); !held {
			s.accept(e, Basis{Kind: Nothing, Origin: a.Server()}, store.Outlier)
		}
	}
	s.accept(a.event(id).Event, claimed(state, a), store.Accepted)
	return id
}

// Nor is a ban the past because a claim that leaves it out was built on it, though it is held as an outlier.
func TestAttackClaimAboveOutlier(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		s := banned(t, version)
		d := newServer(t, "d", s.a, s.b, s.c)
		join := d.lie(s.a, member(s.room, d.user("dora"), d.user("dora"), "join"), claim{ts: d.now, parents: s.old})
		_, chain := s.a.stateAndChain(s.room, s.a.event(s.old[0]).StateAfter)
		if err := d.takeJoin(join, s.oldState, chain); err != nil {
			t.Fatal(err)
		}
		ban := s.a.event(s.ban).Event
		d.accept(ban, Basis{Kind: Nothing, Origin: s.b.Server()}, store.Outlier)
		d.accept(s.b.on(s.base, "above", s.ban), claimed(s.oldState, s.b), store.Accepted)
		d.wantMember(s.room, s.carol, "join")
		d.accept(ban, Basis{Origin: s.a.Server()}, store.Accepted)
		d.wantMember(s.room, s.carol, "ban")
	})
}

// Nor is anything else the past for it, that a server of the room has before others and hands over as an outlier, as if it were of an auth chain, with
// an event of its own on it, on a claim: what is said is shown, and what is set counts.
func TestAttackOutlierWithholds(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for kind, content := range map[string]string{
			"m.room.message":            "",
			"m.room.encryption":         `{"algorithm":"m.megolm.v1.aes-sha2"}`,
			"m.room.history_visibility": `{"history_visibility":"joined"}`,
		} {
			a, b, alice, bob, room := shared(t, version)
			d, dora := doraIn(a, b, room, alice)
			old := a.record(room).Forward
			oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
			base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
			var honest eventgraph.EventID
			if content == "" {
				honest = a.message(room, alice, "to be withheld")
			} else {
				honest = a.setState(room, alice, kind, "", content)
			}
			_, _ = d.Accept(t.Context(), a.event(honest).Event, Basis{Kind: Nothing, Origin: b.Server()})
			d.accept(b.on(base, "above", honest), claimed(oldState, b), store.Accepted)
			d.accept(a.event(honest).Event, Basis{Origin: a.Server()}, store.Accepted)
			d.wantShown(honest)
			for range 2 {
				if e := d.current(room, kind, ""); content != "" && (e == nil || e.ID() != honest) {
					t.Errorf("%s does not count", kind)
				}
				d.message(room, dora, "on")
			}
		}
	})
}

// A claim excuses nobody who was banned before it came, whether it leaves the ban out or names it: what he posts behind it is soft-failed, as it is
// without it.
func TestAttackPostsBehindClaim(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for _, named := range []bool{false, true} {
			s := banned(t, version)
			state := s.oldState
			if named {
				state = s.newState
			}
			post := s.c.lie(s.a, said(s.room, s.carol, "a post"), claim{ts: s.c.now, parents: s.old})
			rename := renamed(s.a, s.c, s.room, s.carol, s.old...)
			s.a.accept(rename, Basis{Kind: Nothing, Origin: s.b.Server()}, store.Outlier)
			s.a.accept(s.b.on(s.base, "above", post.ID(), rename.ID(), s.b.on(s.base, "never given", s.old...).ID()), claimed(state, s.b), store.Accepted)
			for _, e := range []*eventgraph.Event{post, rename} {
				s.a.accept(e, Basis{Origin: s.c.Server()}, store.SoftFailed)
			}
			s.a.message(s.room, s.alice, "on")
			s.a.accept(s.c.on(post, "one more", post.ID()), Basis{Origin: s.c.Server()}, store.SoftFailed)
			s.a.wantMember(s.room, s.carol, "ban")
		}
	})
}

// What was said before its sender was banned, and lies behind an honest claim, is not soft-failed: neither where the ban came after the claim, nor where
// he came to the room, spoke and was banned behind it.
func TestSaidBeforeTheBanBehindClaim(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"10", "12"} {
		for _, after := range []bool{false, true} {
			a, b, alice, _, room := shared(t, version)
			d := newServer(t, "d", a, b)
			d.join(a, room, d.user("dora"))
			c := newServer(t, "c", a, b, d)
			carol := c.user("carol")
			c.join(a, room, carol)
			at := c.store.Position()
			early := c.message(room, carol, "before the ban")
			c.give(a, room, at)
			ban := func() eventgraph.EventID {
				return a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
			}
			if after {
				d.acrossGap(a, room, alice)
				d.accept(a.event(ban()).Event, Basis{Origin: a.Server()}, store.Accepted)
			} else {
				ban()
				d.acrossGap(a, room, alice)
			}
			for _, id := range a.event(early).PrevEvents() { // carol's join
				_, _ = d.Accept(t.Context(), a.event(id).Event, Basis{Origin: a.Server()})
			}
			d.accept(a.event(early).Event, Basis{Origin: a.Server()}, store.Accepted)
			d.wantShown(early)
			d.wantMember(room, carol, "ban")
		}
	}
}

// Nor is it where the timeline begins after the ban: it is history.
func TestHistoryOfTheBannedBehindClaim(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	a.message(room, alice, "long ago")
	a.give(b, room, 0)
	at := b.store.Position()
	early := b.message(room, bob, "before the ban")
	b.give(a, room, at)
	above := a.message(room, alice, "an answer")
	a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
	d := newServer(t, "d", a, b)
	d.join(a, room, d.user("dora"))
	for _, id := range []eventgraph.EventID{above, early} {
		state, chain := a.stateAndChain(room, a.event(id).StateBefore)
		for _, e := range append(chain, state...) {
			_, _ = d.Accept(t.Context(), e, Basis{Kind: Nothing, Origin: a.Server()})
		}
		basis := claimed(state, a)
		basis.Backfill = id == above
		d.accept(a.event(id).Event, basis, store.Accepted)
	}
	if got := d.event(early); got.Order >= d.event(above).Order || got.Position != 0 {
		t.Errorf("order %d, position %d: it is no history", got.Order, got.Position)
	}
}

// renamed is bob's new name on top of what parents are. It is state, so a claim can name it.
func renamed(a, b *server, room eventgraph.RoomID, bob eventgraph.UserID, parents ...eventgraph.EventID) *eventgraph.Event {
	a.t.Helper()
	return b.lie(a, Draft{
		Room: room, Sender: bob, Type: "m.room.member", StateKey: stateKey(string(bob)), Content: json.RawMessage(`{"membership":"join","displayname":"b"}`),
	}, claim{ts: b.now, parents: parents})
}

// What a room's state has is not forgotten, nor set back, because a member without power names an event of his own in a claim that knows of it,
// and leaves it out, or has in its place what it replaced. It is so for all state, not only for what the authorization rules read.
func TestAttackClaimNamesWhatKnowsOfIt(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for kind, contents := range map[string][]string{
			"m.room.encryption":         {`{"algorithm":"m.megolm.v1.aes-sha2"}`, `{"algorithm":"m.megolm.v1.aes-sha2","rotation_period_msgs":1}`},
			"m.room.history_visibility": {`{"history_visibility":"shared"}`, `{"history_visibility":"joined"}`},
			"m.room.topic":              {`{"topic":"before"}`, `{"topic":"now"}`},
		} {
			for _, setBefore := range []bool{false, true} {
				a, b, alice, bob, room := shared(t, version)
				if setBefore {
					a.setState(room, alice, kind, "", contents[0])
				}
				old := a.record(room).Forward
				oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
				base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
				set := a.setState(room, alice, kind, "", contents[1])
				mine := renamed(a, b, room, bob, set)
				a.accept(mine, Basis{Origin: b.Server()}, store.Accepted)
				lie := append(without(oldState, "m.room.member", string(bob)), mine.ID())
				above := b.on(base, "above", b.on(base, "never given", old...).ID())
				a.accept(above, Basis{Kind: Claimed, State: lie, Origin: b.Server()}, store.Accepted)
				for range 2 {
					if e := a.current(room, kind, ""); e == nil || e.ID() != set {
						t.Errorf("%s, set before %v: it is forgotten", kind, setBefore)
					}
					a.message(room, alice, "on")
				}
			}
		}
	})
}

// So nobody who joins later may read what was said for those in the room only, wherever the claim was believed.
func TestAttackClaimOpensHistory(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c := newServer(t, "c", a, b)
		c.join(a, room, c.user("carol"))
		old := a.record(room).Forward
		oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
		at := a.store.Position()
		mine := renamed(a, b, room, bob, a.setState(room, alice, "m.room.history_visibility", "", `{"history_visibility":"joined"}`))
		at = a.give(c, room, at)
		lie := append(without(oldState, "m.room.member", string(bob)), mine.ID())
		above := b.on(base, "above", b.on(base, "never given", old...).ID())
		for _, s := range []*server{a, c} {
			s.accept(mine, Basis{Origin: b.Server()}, store.Accepted)
			s.accept(above, Basis{Kind: Claimed, State: lie, Origin: b.Server()}, store.Accepted)
		}
		secret := a.message(room, alice, "for those here only")
		a.give(c, room, at)
		at = c.store.Position()
		c.message(room, c.user("carol"), "an answer")
		c.give(a, room, at)
		d := newServer(t, "d", a, b, c)
		d.join(a, room, d.user("dora"))
		for _, s := range []*server{a, c} {
			if may, err := s.MaySeeServer(d.Server(), s.event(secret)); may || err != nil {
				t.Errorf("at %s who joined later may read it: %v", s.Server().Tail(), err)
			}
		}
	})
}

// Who was away and comes back by an honest claim has the newer topic, though the older one is above the older power levels by his extremity:
// that one is in the claim, and goes.
func TestHonestClaimResetsNothing(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"11", "12"} {
		a, b, alice, bob, room := shared(t, version)
		users := `"` + string(bob) + `":50`
		if version == "11" {
			users += `,"` + string(alice) + `":100`
		}
		before := a.store.Position()
		a.setState(room, alice, "m.room.power_levels", "", `{"users":{`+users+`}}`)
		a.give(b, room, before)
		a.setState(room, alice, "m.room.topic", "", `{"topic":"old"}`)
		d := newServer(t, "d", a, b)
		dora := d.user("dora")
		d.join(a, room, dora)
		at := a.store.Position()
		a.setState(room, alice, "m.room.name", "", `{"name":"known to d"}`)
		a.give(d, room, at)
		a.give(b, room, before)
		at = b.store.Position()
		topic := b.setState(room, bob, "m.room.topic", "", `{"topic":"new"}`)
		b.give(a, room, at)
		a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
		across := d.acrossGap(a, room, alice)
		if got := d.record(room).Forward; len(got) != 1 || got[0] != across {
			t.Errorf("version %s: extremities %v", version, got)
		}
		at = d.store.Position()
		d.message(room, dora, "here again")
		d.give(a, room, at)
		for _, s := range []*server{a, d} {
			if e := s.current(room, "m.room.topic", ""); e == nil || e.ID() != topic {
				t.Errorf("version %s: the topic at %s is not the newer one", version, s.Server())
			}
		}
	}
}

// What is hidden has no position, and yet its place: here a redaction that applies to nothing rests on the post, on a claim.
func TestAttackPostBehindHiddenRedaction(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		s := banned(t, version)
		post := s.c.lie(s.a, said(s.room, s.carol, "a post"), claim{ts: s.c.now, parents: s.old})
		never := s.b.on(s.base, "never given", s.old...)
		redaction, err := eventgraph.Build(version, eventgraph.Draft{
			RoomID: s.room, Type: "m.room.redaction", Sender: s.base.Sender(), Content: []byte(`{}`), Redacts: never.ID(),
			PrevEvents: []eventgraph.EventID{post.ID(), never.ID()}, AuthEvents: s.base.AuthEvents(), Depth: s.base.Depth(), OriginServerTS: s.base.OriginServerTS(),
		}, s.b.key)
		if err != nil {
			t.Fatal(err)
		}
		s.a.accept(redaction, claimed(s.oldState, s.b), store.Accepted)
		s.a.message(s.room, s.alice, "on")
		s.a.accept(post, Basis{Origin: s.c.Server()}, store.SoftFailed)
		s.a.wantMember(s.room, s.carol, "ban")
	})
}

// Two events behind claims rest on what carol said before her ban. The first came before the ban, so it counts, whichever is found first: that is a
// matter of their IDs, so there are several rooms.
func TestSaidBeforeTheBanBelowTwo(t *testing.T) {
	t.Parallel()
	for i := range 6 {
		a, b, alice, bob, room := shared(t, "12")
		d := newServer(t, "d", a, b)
		d.join(a, room, d.user("dora"))
		c := newServer(t, "c", a, b, d)
		carol := c.user("carol")
		c.join(a, room, carol)
		a.give(b, room, 0)
		at := c.store.Position()
		early := c.message(room, carol, "before the ban")
		joined := a.current(room, "m.room.member", string(carol))
		c.give(a, room, at)
		late := b.lie(a, said(room, bob, fmt.Sprint("late ", i)), claim{ts: b.now, parents: []eventgraph.EventID{early}})
		state, _ := a.stateAndChain(room, a.record(room).State)
		d.acrossGap(a, room, alice)
		ban := a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
		d.accept(a.event(ban).Event, Basis{Origin: a.Server()}, store.Accepted)
		d.accept(late, claimed(state, b), store.Accepted)
		d.accept(joined, Basis{Origin: a.Server()}, store.Accepted)
		d.accept(a.event(early).Event, Basis{Origin: a.Server()}, store.Accepted)
	}
}

// A true claim is the state before the event as it is. Resolved once more with the state after one of the parents, it would come out without
// join rules: alice, who had given her power away on a fork, set them.
func TestHonestClaimIsNotResolvedAgain(t *testing.T) {
	t.Parallel()
	const version = "11"
	a, b, alice, bob, room := shared(t, version)
	fork := a.lie(a, Draft{Room: room, Sender: alice, Type: "m.room.power_levels", StateKey: new(string), Content: json.RawMessage(`{"users":{"` + string(bob) + `":50}}`)},
		claim{ts: a.now.Add(time.Minute), parents: []eventgraph.EventID{a.current(room, "m.room.member", string(alice)).ID()}})
	a.accept(fork, Basis{Origin: a.Server()}, store.Accepted)
	whole := a.record(room)
	if again, _, err := stateres.Resolve(version, []eventgraph.Hash{whole.State, a.event(fork.ID()).StateAfter}, a, a); err != nil || again == whole.State {
		t.Fatalf("the state resolved again is the same: %v", err)
	}
	withheld := b.lie(a, said(room, bob, "never given"), claim{ts: b.now, parents: b.record(room).Forward})
	across := b.on(withheld, "across the gap", fork.ID(), withheld.ID())
	state, _ := a.stateAndChain(room, whole.State)
	a.accept(across, claimed(state, b), store.Accepted)
	if got := a.event(across.ID()).StateBefore; got != whole.State {
		t.Errorf("the state before the event is %x, and not as claimed, %x", got, whole.State)
	}
}

// What an event on a claim rests on and is not here is not tied by it: here it was looked at before, when it lacked its policy server's signature.
func TestAttackTieOfWhatLacksItsSignature(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		r := newPoliced(t, version)
		a, b, room, alice, bob := r.a, r.b, r.room, r.alice, r.bob
		c := newServer(t, "c", a, b)
		carol := c.user("carol")
		a.setState(room, alice, eventgraph.PolicyType, "", `{}`)
		c.join(a, room, carol)
		r.name(r.p.key.Server, r.key)
		old := a.record(room).Forward
		oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
		_, err := a.Send(t.Context(), Draft{Room: room, Sender: alice, Type: "m.room.member", StateKey: stateKey(string(carol)), Content: json.RawMessage(`{"membership":"ban"}`)})
		ban := r.sign(wantUnsigned(t, err))
		a.accept(ban, Basis{}, store.Accepted)
		renamed := r.sign(b.lie(a, Draft{
			Room: room, Sender: bob, Type: "m.room.member", StateKey: stateKey(string(bob)), Content: json.RawMessage(`{"membership":"join","displayname":"b"}`),
		}, claim{ts: b.now, parents: []eventgraph.EventID{ban.ID()}}))
		between := b.on(base, "between", renamed.ID())
		one, two := r.sign(b.on(base, "one", between.ID())), r.sign(b.on(base, "two", between.ID()))
		a.accept(renamed, Basis{Kind: Nothing, Origin: b.Server()}, store.Outlier)
		a.accept(one, claimed(oldState, b), store.Accepted)
		_, err = a.Accept(t.Context(), between, Basis{Origin: b.Server()})
		wantUnsigned(t, err)
		a.accept(two, claimed(oldState, b), store.Accepted)
		a.accept(r.sign(between), Basis{Origin: b.Server()}, store.Accepted)
		a.wantMember(room, carol, "ban")
	})
}

// Of our users' joins only that is believed by which we came: not the one of who was in the room, nor of who came when others of us were. The
// server may have lost them, and be given them anew.
func TestAttackClaimBeforeOwnJoin(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for _, again := range []bool{false, true} {
			s := banned(t, version)
			below := s.b.on(s.base, "withheld", s.ban)
			who, content := s.alice, `{"membership":"join","displayname":"A"}`
			if again {
				who, content = s.a.user("other"), `{"membership":"join"}`
			}
			like := s.a.lie(s.a, Draft{Room: s.room, Sender: who, Type: "m.room.member", StateKey: stateKey(string(who)), Content: json.RawMessage(content)},
				claim{ts: s.a.now, parents: s.old})
			join, err := eventgraph.Build(version, eventgraph.Draft{
				RoomID: s.room, Type: like.Type(), Sender: who, StateKey: stateKey(string(who)), Content: like.Content(),
				PrevEvents: []eventgraph.EventID{below.ID()}, AuthEvents: like.AuthEvents(), Depth: like.Depth(), OriginServerTS: like.OriginServerTS(),
			}, s.a.key)
			if err != nil {
				t.Fatal(err)
			}
			s.a.accept(join, claimed(s.oldState, s.b), store.Accepted)
			s.a.wantMember(s.room, s.carol, "ban")
			s.a.accept(below, Basis{Origin: s.b.Server()}, store.Accepted)
			s.still(t, "after what was withheld")
		}
	})
}
