package rooms

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func TestMaySee(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	c := newServer(t, "c", a, b)
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	room := a.create("12", alice)
	setVisibility := func(v string) {
		a.setState(room, alice, "m.room.history_visibility", "", `{"history_visibility":"`+v+`"}`)
	}
	setVisibility("shared")
	shared := a.message(room, alice, "shared, before bob")
	setVisibility("joined")
	joined := a.message(room, alice, "for the joined, before bob")
	a.setState(room, alice, "m.room.member", string(bob), `{"membership":"invite"}`)
	setVisibility("invited")
	invited := a.message(room, alice, "for the invited, before bob comes")
	b.join(a, room, bob)
	with := a.message(room, alice, "with bob")
	kick := a.setState(room, alice, "m.room.member", string(bob), `{"membership":"leave"}`)
	without := a.message(room, alice, "without bob")
	setVisibility("world_readable")
	world := a.message(room, alice, "for all")

	for _, want := range []struct {
		name       string
		event      eventgraph.EventID
		bob, carol bool
	}{
		{"shared before bob", shared, true, false},
		{"joined before bob", joined, false, false},
		{"invited before bob", invited, true, false},
		{"with bob", with, true, false},
		{"the kick", kick, true, false},
		{"without bob", without, false, false},
		{"world readable", world, true, true},
	} {
		e := a.event(want.event)
		if got, err := a.MaySeeUser(bob, e); got != want.bob || err != nil {
			t.Errorf("%s: bob sees it: %v, %v", want.name, got, err)
		}
		if got, err := a.MaySeeUser(carol, e); got != want.carol || err != nil {
			t.Errorf("%s: carol sees it: %v, %v", want.name, got, err)
		}
		wantServer := want.bob && want.event != shared // of a server that has left only what it saw then counts
		if got, err := a.MaySeeServer(b.Server(), e); got != wantServer || err != nil {
			t.Errorf("%s: b sees it: %v, %v", want.name, got, err)
		}
		if got, err := a.MaySeeServer(c.Server(), e); got != want.carol || err != nil {
			t.Errorf("%s: c sees it: %v, %v", want.name, got, err)
		}
		if got, err := a.MaySeeUser(alice, e); !got || err != nil {
			t.Errorf("%s: alice sees it: %v, %v", want.name, got, err)
		}
		if got, err := a.MaySeeServer(a.Server(), e); !got || err != nil {
			t.Errorf("%s: a sees it: %v, %v", want.name, got, err)
		}
	}
}

// TestGivenToServer: of what was before its time a server in the room is given whole what it needs for the room's state, of the rest the shape.
func TestGivenToServer(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"10", "12"} {
		a := newServer(t, "a")
		b, out := newServer(t, "b", a), newServer(t, "out", a)
		alice, bob := a.user("alice"), b.user("bob")
		room := a.create(version, alice)
		a.setState(room, alice, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
		levels := func(invite int) eventgraph.EventID {
			users := strings.TrimSuffix(a.levels(version, map[eventgraph.UserID]int{alice: 100}), "}")
			return a.setState(room, alice, "m.room.power_levels", "", fmt.Sprintf(`%s,"invite":%d}`, users, invite))
		}
		oldLevels := levels(7)
		oldTopic := a.setState(room, alice, "m.room.topic", "", `{"topic":"old"}`)
		oldAlice := a.setState(room, alice, "m.room.member", string(alice), `{"displayname":"Old","membership":"join"}`)
		said := a.message(room, alice, "before bob")
		nowTopic := a.setState(room, alice, "m.room.topic", "", `{"topic":"new"}`)
		nowAlice := a.setState(room, alice, "m.room.member", string(alice), `{"displayname":"New","membership":"join"}`)
		levels(0)
		forced := a.setState(room, alice, "m.room.name", "", `{"name":"x"}`)
		a.send(redaction(room, alice, forced))
		events := []eventgraph.EventID{oldLevels, oldTopic, oldAlice, said, nowTopic, nowAlice, forced}
		given := func(to *server, id eventgraph.EventID) *eventgraph.Event {
			g, err := a.GivenToServer(to.Server(), a.event(id))
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		none := func(to *server, when string) {
			for _, id := range events {
				if g := given(to, id); g != nil {
					t.Errorf("version %s, %s: given %s", version, when, g.Raw())
				}
			}
		}
		none(b, "not in the room")
		b.join(a, room, bob)
		for i, whole := range []bool{version == "10", false, false, false, true, true, false} {
			e := a.event(events[i])
			if may, err := a.MaySeeServer(b.Server(), e); may || err != nil {
				t.Errorf("version %s: b sees %s (%v)", version, e.Raw(), err)
			}
			want := e.Redact()
			if whole {
				want = e.Event
			}
			if g := given(b, events[i]); g == nil {
				t.Errorf("version %s: event %d is not given", version, i)
			} else if !bytes.Equal(g.Raw(), want.Raw()) {
				t.Errorf("version %s: event %d is given as %s, want %s", version, i, g.Raw(), want.Raw())
			}
		}
		none(out, "a stranger")
		a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
		none(b, "banned")
	}
}

// anybody may see any event.
func anybody(*store.StoredEvent) (bool, error) { return true, nil }

func TestEventNear(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	first := a.message(room, alice, "first")
	second := a.message(room, alice, "second")
	at := a.event(first).OriginServerTS()
	for _, want := range []struct {
		ts       int64
		forwards bool
		id       eventgraph.EventID
	}{
		{at, true, first}, {at, false, first}, {at + 1, true, second}, {at + 999, false, first},
		{at + time.Hour.Milliseconds(), false, second}, {at + time.Hour.Milliseconds(), true, ""}, {1, false, ""},
	} {
		e, err := a.EventNear(room, want.ts, want.forwards, anybody)
		switch {
		case want.id == "" && !errors.Is(err, store.ErrNotFound):
			t.Errorf("near %d: %v, want none", want.ts-at, err)
		case want.id != "" && (err != nil || e.ID() != want.id):
			t.Errorf("near %d forwards %v: %v", want.ts-at, want.forwards, err)
		}
	}
	for hidden, want := range map[eventgraph.EventID]eventgraph.EventID{first: second, second: first} {
		e, err := a.EventNear(room, a.event(hidden).OriginServerTS(), hidden == first, func(e *store.StoredEvent) (bool, error) { return e.ID() != hidden, nil })
		if err != nil || e.ID() != want {
			t.Errorf("where the nearest is hidden: %v", err)
		}
	}
}

func TestAuthChain(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("11", alice)
	said := a.message(room, alice, "x")
	chain, err := a.AuthChain([]eventgraph.EventID{said}, 0)
	if err != nil || len(chain) != 3 { // create, power levels, alice's join
		t.Fatalf("%d events, %v", len(chain), err)
	}
	if slices.Contains(chain, said) {
		t.Error("the event itself is in its chain")
	}
	for i, want := range []string{"m.room.create", "m.room.member", "m.room.power_levels"} { // each rests on those before
		if kind := a.event(chain[i]).Type(); kind != want {
			t.Errorf("event %d of the chain is %s", i, kind)
		}
	}
	if few, err := a.AuthChain([]eventgraph.EventID{said}, 2); err != nil || len(few) != 2 {
		t.Errorf("with a limit of 2: %d, %v", len(few), err)
	}
}

// Of who is in a room by a state only so much is remembered, however many servers are in it.
func TestCensusesAreBounded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	const each = maxCensusServers / 10
	for i := range 50 {
		c := &census{root: eventgraph.Hash{byte(i + 1)}, joined: map[eventgraph.ServerName]int{}}
		for n := range each {
			c.joined[eventgraph.ServerName(strconv.Itoa(n))] = 1
		}
		a.remember(c)
		a.remember(c)
		if got := a.counted.Load(); got > maxCensusServers || got != int64(a.censuses.Len()*each) {
			t.Fatalf("%d servers counted in %d censuses", got, a.censuses.Len())
		}
	}
	if got := a.censuses.Len(); got != 10 {
		t.Errorf("%d censuses are remembered, want 10", got)
	}
}
