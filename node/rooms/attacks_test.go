package rooms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
	"github.com/plexus-p2p/plexus/store"
)

// Known attacks through the one way in: a server whose signatures are right and whose events lie. The table in ARCHITECTURE.md, "Known
// attacks", says what the spec makes of each. Bounds are counts, never time.

// attackVersions: the last with state resolution 2, and the one with 2.1.
var attackVersions = []eventgraph.RoomVersion{"11", "12"}

func underAttack(t *testing.T, f func(t *testing.T, version eventgraph.RoomVersion)) {
	t.Parallel()
	for _, version := range attackVersions {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			f(t, version)
		})
	}
}

// many is n where state is resolved as in the newest version, and less before: the same numbers in both would show no more.
func many(version eventgraph.RoomVersion, n int) int {
	if version == "12" {
		return n
	}
	return n / 10
}

// claim is what the liar says of an event besides its content.
type claim struct {
	depth   int64
	ts      time.Time
	parents []eventgraph.EventID
	without eventgraph.StateTuple // left out of the auth events
}

// lie makes an event rightly signed by s, whatever it says. Its auth events are those of the state after its first parent, as
// holder has it.
func (s *server) lie(holder *server, d Draft, c claim) *eventgraph.Event {
	s.t.Helper()
	version := holder.record(d.Room).Version
	full := eventgraph.Draft{
		RoomID: d.Room, Type: d.Type, StateKey: d.StateKey, Sender: d.Sender, Content: d.Content, Redacts: d.Redacts,
		PrevEvents: c.parents, Depth: c.depth, OriginServerTS: c.ts.UnixMilli(),
	}
	before := holder.StateAt(d.Room, holder.event(c.parents[0]).StateAfter)
	for _, tuple := range auth.Selection(version, full) {
		id, ok, err := before.EventID(tuple)
		if err != nil {
			s.t.Fatal(err)
		}
		if ok && tuple != c.without {
			full.AuthEvents = append(full.AuthEvents, id)
		}
	}
	e, err := eventgraph.Build(version, full, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func member(room eventgraph.RoomID, sender, of eventgraph.UserID, membership string) Draft {
	return Draft{Room: room, Sender: sender, Type: "m.room.member", StateKey: stateKey(string(of)), Content: json.RawMessage(`{"membership":"` + membership + `"}`)}
}

func said(room eventgraph.RoomID, sender eventgraph.UserID, body string) Draft {
	return Draft{Room: room, Sender: sender, Type: "m.room.message", Content: text(body)}
}

// flood gives events to s, as many at a time as a transaction has, and returns how many got each verdict.
func (s *server) flood(from *server, events []*eventgraph.Event) map[store.Verdict]int {
	s.t.Helper()
	verdicts := map[store.Verdict]int{}
	for some := range slices.Chunk(events, 50) {
		for i, e := range some {
			some[i] = pdu(s.t, e)
		}
		outcomes, err := s.AcceptAll(context.Background(), some, Basis{Origin: from.Server()})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, o := range outcomes {
			if o.Err != nil {
				s.t.Fatal(o.Err)
			}
			verdicts[o.Verdict]++
		}
	}
	return verdicts
}

// current is the event at a tuple of the room's current state, nil if none.
func (s *server) current(room eventgraph.RoomID, kind, key string) *eventgraph.Event {
	s.t.Helper()
	e, err := s.StateAt(room, s.record(room).State).Event(eventgraph.StateTuple{Type: kind, Key: key})
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *server) wantMember(room eventgraph.RoomID, user eventgraph.UserID, want string) {
	s.t.Helper()
	got := "leave"
	if e := s.current(room, "m.room.member", string(user)); e != nil {
		got = e.Membership()
	}
	if got != want || s.membership(room, user).Membership != want {
		s.t.Errorf("%s is %s in the state and %s in the index, want %s", user, got, s.membership(room, user).Membership, want)
	}
}

// countingReader counts the events that a resolution reads.
type countingReader struct {
	stateres.EventReader
	reads int
}

func (c *countingReader) Event(id eventgraph.EventID) (stateres.Held, error) {
	c.reads++
	return c.EventReader.Event(id)
}

// readsToResolve is how many events are read to resolve the states after the forward extremities.
func (s *server) readsToResolve(room eventgraph.RoomID) int {
	s.t.Helper()
	var reader countingReader
	err := s.inTurn(context.Background(), room, func(run *run) error {
		reader.EventReader = run
		_, _, err := stateres.Resolve(run.live.Version, run.tipStates(), run, &reader)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return reader.reads
}

// Thousands of extremities: a member without any power builds 1,500 events that change the state on what is old, each of a depth
// that no other has. All are allowed (SS API, checks on receipt of a PDU: by the state before, and by the current state), so
// accepted. They must not make the room forget what was done meanwhile, nor make it slow.
func TestAttackThousandsOfExtremities(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, _, room := shared(t, version)
		c := newServer(t, "c", a)
		carol := c.user("carol")
		c.join(a, room, carol)
		old := a.record(room).Forward
		a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
		topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"after the ban"}`)

		forks := many(version, 1500)
		var events []*eventgraph.Event
		for i := range forks {
			user := b.user(fmt.Sprint("mallory", i))
			events = append(events, b.lie(a, member(room, user, user, "join"), claim{depth: 1<<50 + int64(i), ts: b.now, parents: old}))
		}
		if got := a.flood(b, events); got[store.Accepted] != forks {
			t.Fatalf("verdicts %v", got)
		}
		a.wantMember(room, carol, "ban")
		if e := a.current(room, "m.room.topic", ""); e == nil || e.ID() != topic {
			t.Error("the topic is lost")
		}
		forward := a.record(room).Forward
		if len(forward) != 1+maxForwardOf || !slices.Contains(forward, topic) {
			t.Errorf("%d forward extremities, want the topic and %d", len(forward), maxForwardOf)
		}
		// Of the conflict: each fork's event, the ban and the topic; with the auth chain of all, some ten events.
		if reads := a.readsToResolve(room); reads > maxForwardOf+20 {
			t.Errorf("a resolution reads %d events", reads)
		}
		// One event of ours merges them all.
		id := a.message(room, alice, "still here")
		if e := a.event(id); len(e.PrevEvents()) != len(forward) || len(a.record(room).Forward) != 1 {
			t.Errorf("built on %d of %d extremities", len(e.PrevEvents()), len(forward))
		}
		a.wantMember(room, carol, "ban")
	})
}

// A member without power makes as many forks from before a ban as one server may have, and then builds on the ban: the event that takes
// the ban's place among the extremities is the one too many. The ban must stay, here and where it was made.
func TestAttackExtremityInThePlaceOfABan(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c, carol, old := carolIn(a, b, room)
		ban := a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
		var events []*eventgraph.Event
		for i := range maxForwardOf {
			events = append(events, b.lie(a, said(room, bob, fmt.Sprint(i)), claim{ts: b.now, parents: old}))
		}
		a.flood(b, events)
		a.wantMember(room, carol, "ban")
		a.flood(b, []*eventgraph.Event{b.lie(a, said(room, bob, "on the ban"), claim{ts: b.now, parents: []eventgraph.EventID{ban}})})
		a.wantMember(room, carol, "ban")
		back := a.flood(c, []*eventgraph.Event{c.lie(a, said(room, carol, "here again"), claim{ts: c.now, parents: old})})
		if back[store.SoftFailed] != 1 {
			t.Errorf("an event of the banned user, from before the ban, is %v", back)
		}
		// What is not shown ties nothing either: the event on the ban is there, but not among what the room's state is made of.
		a.wantMember(room, carol, "ban")
	})
}

// Two members without power make more forks than an event has parents, deeper than all others, each time somebody new comes. Who
// has just joined must be able to speak: what we build on is not for the liar to choose.
func TestAttackExtremitiesLockNobodyOut(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c, e := newServer(t, "c", a, b), newServer(t, "e", a, b)
		carol, dave, mallet := c.user("carol"), a.user("dave"), e.user("mallet")
		e.join(a, room, mallet)
		c.learn(e.doc)
		old := a.record(room).Forward
		n := 0
		// Of two servers, so that they are more than an event has parents although few of one server stay.
		forks := func() {
			for i, liar := range []*server{b, e} {
				user := []eventgraph.UserID{bob, mallet}[i]
				var events []*eventgraph.Event
				for range 3 * maxPrevEvents {
					n++
					events = append(events, liar.lie(a, said(room, user, fmt.Sprint(n)), claim{depth: maxDepth, ts: b.now, parents: old}))
				}
				a.flood(liar, events)
			}
		}
		forks()
		a.setState(room, dave, "m.room.member", string(dave), `{"membership":"join"}`)
		forks()
		a.message(room, dave, "of our own server")
		position := a.store.Position()
		c.join(a, room, carol)
		forks()
		a.setState(room, alice, "m.room.power_levels", "", a.levels(version, map[eventgraph.UserID]int{alice: 100, carol: 50}))
		forks()
		a.give(c, room, position)
		after := c.store.Position()
		topic := c.setState(room, carol, "m.room.topic", "", `{"topic":"of another server, with new power"}`)
		c.give(a, room, after)
		if e := a.current(room, "m.room.topic", ""); e == nil || e.ID() != topic {
			t.Error("the topic did not come through")
		}
		a.message(room, alice, "on what the others did")
		if slices.Contains(a.record(room).Forward, topic) {
			t.Error("our event was built on forks alone, and not on the topic")
		}
		forks()
		a.message(room, alice, "still here")
		if got := len(a.record(room).Forward); got > 2*maxForwardOf {
			t.Errorf("%d forward extremities", got)
		}
	})
}

// levels is the content of power levels; in version 12 a creator is not among them.
func (s *server) levels(version eventgraph.RoomVersion, users map[eventgraph.UserID]int) string {
	if traits, _ := version.Traits(); traits.PrivilegedCreators {
		delete(users, s.user("alice"))
	}
	content, _ := json.Marshal(map[string]any{"users": users})
	return string(content)
}

// How many extremities stay, and on which we build, whoever made how many.
func TestExtremityBounds(t *testing.T) {
	t.Parallel()
	order := int64(0)
	of := func(server string, n int) (tips []tip) {
		for range n {
			order++
			tips = append(tips, tip{id: eventgraph.EventID(fmt.Sprint(server, order)), server: eventgraph.ServerName(server), order: order, depth: order * order, alone: true})
		}
		return tips
	}
	servers := func(n, each int) (tips []tip) {
		for i := range n {
			tips = append(tips, of(fmt.Sprint("server", i), each)...)
		}
		return tips
	}
	for name, c := range map[string]struct {
		tips []tip
		stay func([]tip) []tip
	}{
		"none":               {nil, func(all []tip) []tip { return all }},
		"few":                {servers(3, 2), func(all []tip) []tip { return all }},
		"many of one server": {slices.Concat(of("a", 1), of("b", 500), of("c", 1)), func(all []tip) []tip { return slices.Concat(all[:1+maxForwardOf], all[501:]) }},
		"many servers":       {servers(maxForward+50, 1), func(all []tip) []tip { return all[:maxForward] }},
		"many servers, and one that came before": {append(of("a", 1), servers(maxForward, 2)...), func(all []tip) []tip {
			stay := all[:1:1]
			for i := 1; i < len(all) && len(stay) < maxForward; i += 2 { // the first of each
				stay = append(stay, all[i])
			}
			return stay
		}},
	} {
		want := c.stay(slices.Clone(c.tips))
		var got []tip
		for _, tip := range c.tips {
			got, _ = admitted(got, tip)
		}
		if len(got) > maxForward || !slices.Equal(got, want) {
			t.Errorf("%s: %d of %d stay, want %d", name, len(got), len(c.tips), len(want))
		}
	}

	tips := slices.Concat(of("mallory", 10), of("a", 2), of("mallet", 10), of("own", 3))
	slices.Reverse(tips)
	var first []string
	for _, tip := range fairly(tips, "own")[:8] {
		first = append(first, string(tip.server))
	}
	if want := []string{"own", "own", "own", "mallory", "a", "mallet", "mallory", "a"}; !slices.Equal(first, want) {
		t.Errorf("built on tips of %v, want %v", first, want)
	}
}

// Ban evasion: the server of a banned user lets it join, write and leave once more, all from before the ban by parents and time. By the
// state before them these events are allowed, so they are not rejected; by the current state they are not, so they are
// soft-failed (SS API, Soft failure): nobody sees them and nobody builds on them. When an accomplice does build on them, state
// resolution lets the ban, a power event, come first.
func TestAttackBanEvasion(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c := newServer(t, "c", a, b)
		accomplice := c.user("accomplice")
		c.join(a, room, accomplice)
		old := a.record(room).Forward
		ban := a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
		before := a.record(room)

		past := claim{depth: 1, ts: b.now.Add(-time.Hour), parents: old}
		join := member(room, bob, bob, "join")
		join.Content = json.RawMessage(`{"membership":"join","displayname":"not banned"}`)
		joined := b.lie(a, join, past)
		a.accept(joined, Basis{Origin: b.Server()}, store.SoftFailed)
		past.parents = []eventgraph.EventID{joined.ID()}
		spoke := b.lie(a, said(room, bob, "evading"), past)
		a.accept(spoke, Basis{Origin: b.Server()}, store.SoftFailed)
		another := b.user("another") // a new user of the same server is free to come: only a server ACL keeps a server out
		a.accept(b.lie(a, member(room, another, another, "join"), claim{depth: 1, ts: b.now, parents: old}), Basis{Origin: b.Server()}, store.Accepted)
		a.wantMember(room, bob, "ban")
		if may, err := a.MaySeeUser(alice, a.event(spoke.ID())); may || err != nil {
			t.Errorf("a soft-failed event is shown: %v, %v", may, err)
		}

		merge := claim{depth: 1 << 40, ts: c.now, parents: append(slices.Clone(before.Forward), spoke.ID())}
		a.accept(c.lie(a, said(room, accomplice, "built on both"), merge), Basis{Origin: c.Server()}, store.Accepted)
		a.wantMember(room, bob, "ban")

		// After the ban, by its parents, it is rejected outright, with an auth event from before it too.
		after := claim{depth: 1 << 41, ts: b.now, parents: []eventgraph.EventID{ban}}
		a.accept(b.lie(a, join, after), Basis{Origin: b.Server()}, store.Rejected)
		after.without = eventgraph.StateTuple{Type: "m.room.member", Key: string(bob)}
		a.accept(b.lie(a, join, after), Basis{Origin: b.Server()}, store.Rejected)
		a.wantMember(room, bob, "ban")
	})
}

// Forks made by a banned server's users, as many as they like: each is soft-failed, none becomes an extremity, and nothing is
// resolved for them. A server that an ACL denies is not even listened to.
func TestAttackForksOfTheBanned(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		a.setState(room, alice, "m.room.power_levels", "", a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50}))
		old := a.record(room).Forward
		a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
		before := a.record(room)

		const forks = 500
		var events []*eventgraph.Event
		for i := range forks {
			d := said(room, bob, fmt.Sprint(i))
			if i%2 == 0 {
				d = Draft{Room: room, Sender: bob, Type: "m.room.topic", StateKey: stateKey(""), Content: json.RawMessage(fmt.Sprintf(`{"topic":"%d"}`, i))}
			}
			events = append(events, b.lie(a, d, claim{depth: int64(i) + 100, ts: b.now.Add(time.Duration(i) * time.Second), parents: old}))
		}
		if got := a.flood(b, events); got[store.SoftFailed] != forks {
			t.Errorf("verdicts %v", got)
		}
		after := a.record(room)
		if after.State != before.State || !slices.Equal(after.Forward, before.Forward) {
			t.Error("forks of the banned changed the room")
		}
		rm, err := a.enter(room)
		if err != nil {
			t.Fatal(err)
		}
		defer a.leave(rm)
		if n := len(rm.resolved); n != 0 {
			t.Errorf("%d resolutions were made", n)
		}
		// A topic from the fork comes back with nobody who builds on it.
		c := newServer(t, "c", a, b)
		carol := c.user("carol")
		c.join(a, room, carol)
		merge := claim{depth: 1 << 40, ts: c.now, parents: slices.Clone(a.record(room).Forward)}
		for _, e := range events[:maxPrevEvents-1] {
			merge.parents = append(merge.parents, e.ID())
		}
		a.accept(c.lie(a, said(room, carol, "built on them"), merge), Basis{Origin: c.Server()}, store.Accepted)
		if e := a.current(room, "m.room.topic", ""); e != nil {
			t.Errorf("the topic of the banned is %s", e.Content())
		}

		a.setState(room, alice, "m.room.server_acl", "", `{"allow":["*"],"deny":["`+string(b.Server())+`"]}`)
		late := b.lie(a, said(room, bob, "denied"), claim{depth: 1, ts: b.now, parents: old})
		_, err = a.Accept(context.Background(), pdu(t, late), Basis{Origin: b.Server()})
		wantRefusal(t, err, "M_FORBIDDEN")
	})
}

// Who has given up power and then sends power levels from before that, dated before it too: state resolution by itself would let them
// come first (stateres, TestAttacks). Where the removal is known they are soft-failed, and come to nothing unless a server builds on
// them that did not know it; then all resolve alike.
func TestAttackPowerGivenUp(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		a.setState(room, alice, "m.room.power_levels", "", a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50}))
		old := a.record(room).Forward
		levels := func(users map[eventgraph.UserID]int) Draft {
			return Draft{Room: room, Sender: bob, Type: "m.room.power_levels", StateKey: stateKey(""), Content: json.RawMessage(a.levels(version, users))}
		}
		given := b.lie(a, levels(map[eventgraph.UserID]int{alice: 100}), claim{depth: 10, ts: b.now, parents: old})
		a.accept(given, Basis{Origin: b.Server()}, store.Accepted)
		taken := b.lie(a, levels(map[eventgraph.UserID]int{alice: 100, bob: 50, b.user("mallory"): 50}), claim{depth: 10, ts: b.now.Add(-time.Hour), parents: old})
		a.accept(taken, Basis{Origin: b.Server()}, store.SoftFailed)
		on := claim{depth: 11, ts: b.now, parents: []eventgraph.EventID{given.ID()}}
		a.accept(b.lie(a, levels(map[eventgraph.UserID]int{alice: 100, bob: 50}), on), Basis{Origin: b.Server()}, store.Rejected)
		if e := a.current(room, "m.room.power_levels", ""); e.ID() != given.ID() {
			t.Errorf("the power levels are %s", e.Content())
		}
		if got := a.record(room).Forward; !slices.Equal(got, []eventgraph.EventID{given.ID()}) {
			t.Errorf("forward extremities %v", got)
		}
	})
}

// A clock far in the past, of a key that is valid: times are no reason to refuse an event, and where two of the same power levels
// are in conflict the earlier loses (room versions, Mainline ordering). One far in the future waits until our clock has come near
// (room version 5, Signing key validity period: the lesser of valid_until_ts and 7 days from now), and is judged then as if it came then.
func TestAttackClocks(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		a.setState(room, alice, "m.room.power_levels", "", a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50}))
		old := a.record(room).Forward
		topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"now"}`)
		topicOf := func(what string) Draft {
			return Draft{Room: room, Sender: bob, Type: "m.room.topic", StateKey: stateKey(""), Content: json.RawMessage(`{"topic":"` + what + `"}`)}
		}
		past := b.lie(a, topicOf("of 30 years ago"), claim{depth: 3, ts: b.now.AddDate(-30, 0, 0), parents: old})
		a.accept(past, Basis{Origin: b.Server()}, store.Accepted)
		if e := a.current(room, "m.room.topic", ""); e.ID() != topic {
			t.Errorf("the topic is %s", e.Content())
		}
		negative := b.lie(a, topicOf("of before all time"), claim{depth: 3, ts: time.UnixMilli(-1 << 52), parents: old})
		a.accept(negative, Basis{Origin: b.Server()}, store.Accepted)
		if e := a.current(room, "m.room.topic", ""); e.ID() != topic {
			t.Errorf("the topic is %s", e.Content())
		}

		// A key document that is valid as long as anybody likes does not help.
		long, err := eventgraph.SignKeyDocument(b.key.Server, []eventgraph.SigningKey{b.key}, nil, nil, a.now.AddDate(1, 0, 0).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		a.learn(long)
		ahead := b.lie(a, topicOf("of next week"), claim{depth: 3, ts: b.now.Add(maxAhead + 24*time.Hour), parents: old})
		child := b.lie(a, said(room, bob, "on it"), claim{depth: 4, ts: b.now, parents: old})
		grand, err := eventgraph.Build(version, eventgraph.Draft{
			RoomID: room, Type: "m.room.message", Sender: bob, Content: text("on what waits"), PrevEvents: []eventgraph.EventID{ahead.ID()},
			AuthEvents: child.AuthEvents(), Depth: 4, OriginServerTS: b.now.UnixMilli(),
		}, b.key)
		if err != nil {
			t.Fatal(err)
		}
		var missing *MissingError
		before := a.record(room)
		if _, err := a.Accept(context.Background(), pdu(t, ahead), Basis{Origin: b.Server()}); !errors.As(err, &missing) || len(missing.Keys) != 1 {
			t.Fatalf("from the future: %v", err)
		}
		if _, err := a.Accept(context.Background(), pdu(t, grand), Basis{Origin: b.Server()}); !errors.As(err, &missing) || !slices.Contains(missing.Events, ahead.ID()) {
			t.Fatalf("on what waits: %v", err)
		}
		if after := a.record(room); after.State != before.State || !slices.Equal(after.Forward, before.Forward) {
			t.Error("what waits changed the room")
		}
		if _, held := a.has(ahead.ID()); held {
			t.Error("what waits is stored in the room")
		}
		// A week later, with a key document that is valid then.
		a.now = a.now.Add(maxAhead)
		doc, err := eventgraph.SignKeyDocument(b.key.Server, []eventgraph.SigningKey{b.key}, nil, nil, a.now.Add(6*24*time.Hour).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		a.learn(doc)
		a.accept(ahead, Basis{Origin: b.Server()}, store.Accepted)
		a.accept(grand, Basis{Origin: b.Server()}, store.Accepted)
		// It is later than the topic it was in conflict with; but who changes the topic or the power levels now undoes it.
		if e := a.current(room, "m.room.topic", ""); e.ID() != ahead.ID() {
			t.Errorf("the topic is %s", e.Content())
		}
		again := a.setState(room, alice, "m.room.topic", "", `{"topic":"taken back"}`)
		if e := a.current(room, "m.room.topic", ""); e.ID() != again {
			t.Errorf("the topic is %s", e.Content())
		}
	})
}

// altered is a copy of an event with other content and the hash of the right one: the same ID and signature.
func altered(t *testing.T, e *eventgraph.Event, old, new string) *eventgraph.Event {
	t.Helper()
	changed, err := eventgraph.ParseEvent(e.Version(), bytes.Replace(e.Raw(), []byte(old), []byte(new), 1))
	if err != nil || changed.ID() != e.ID() || !changed.HashMismatch() {
		t.Fatalf("no altered copy: %v", err)
	}
	return changed
}

// A copy with a wrong hash that comes before the genuine one: it is redacted and processed (SS API, checks on receipt of a PDU, step 3),
// whatever place it comes to, and gives way to the genuine copy from anybody, with what follows from its content. Of an accepted event
// TestHashMismatchIsReplaced shows it.
func TestAttackWrongHashFirst(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		ctx := context.Background()

		// As an outlier, and as the event that gets its place.
		topic := a.event(a.setState(room, alice, "m.room.topic", "", `{"topic":"genuine"}`)).Event
		wrong := altered(t, topic, "genuine", "altered")
		for _, basis := range []Basis{{Kind: Nothing}, {Origin: a.Server()}} {
			if _, err := b.Accept(ctx, wrong, basis); err != nil {
				t.Fatal(err)
			}
			if e := b.event(topic.ID()); bytes.Contains(e.Content(), []byte("altered")) || !e.HashMismatch() {
				t.Errorf("held is %s", e.Content())
			}
		}
		b.accept(topic, Basis{Kind: Nothing}, store.Accepted) // a giver of outliers brings the right copy
		if e := b.current(room, "m.room.topic", ""); !bytes.Contains(e.Content(), []byte("genuine")) || b.event(topic.ID()).HashMismatch() {
			t.Errorf("the topic is %s", e.Content())
		}

		// One that is rejected for what the copy lacks: power levels of a sender who must leave those of notifications as they are.
		a.setState(room, alice, "m.room.power_levels", "", withNotifications(a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50}), 100))
		b.accept(a.event(a.record(room).Forward[0]).Event, Basis{Origin: a.Server()}, store.Accepted)
		levels := b.event(b.setState(room, bob, "m.room.power_levels", "",
			withNotifications(a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50, b.user("third"): 1}), 100))).Event
		wrong = altered(t, levels, `"room":100`, `"room":101`)
		if r, err := a.Accept(ctx, wrong, Basis{Origin: b.Server()}); err != nil || r.Verdict != store.Rejected {
			t.Fatalf("%+v, %v", r, err)
		}
		a.accept(levels, Basis{Origin: b.Server()}, store.Accepted)
		if e := a.current(room, "m.room.power_levels", ""); e.ID() != levels.ID() || !bytes.Equal(e.Content(), levels.Content()) {
			t.Errorf("the power levels are %s", e.Content())
		}
		a.sameState(b, room)
		// The altered copy, once more, changes nothing.
		if r, err := a.Accept(ctx, wrong, Basis{Origin: b.Server()}); err != nil || r.Verdict != store.Accepted || !r.Already || a.event(levels.ID()).HashMismatch() {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func withNotifications(levels string, room int) string {
	return fmt.Sprintf(`{"notifications":{"room":%d},%s`, room, levels[1:])
}

// Redaction drops from power levels what the rules look at: those of notifications in every version, who may invite up to version 10.
// Somebody redacts such power levels, and makes new ones that the old do not allow, beside the redaction: whether a server saw the one or the
// other first must not decide what it makes of them.
func TestAttackRedactedPowerLevels(t *testing.T) {
	t.Parallel()
	for version, more := range map[eventgraph.RoomVersion][2]string{
		"10": {`{"invite":100,`, `{"invite":0,`},
		"11": {`{"notifications":{"room":100},`, `{"notifications":{"room":0},`},
		"12": {`{"notifications":{"room":100},`, `{"notifications":{"room":0},`},
	} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			a, b, alice, bob, room := shared(t, version)
			c := newServer(t, "c", a, b)
			users := a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50})
			old := a.setState(room, alice, "m.room.power_levels", "", more[0]+users[1:])
			position := a.store.Position()
			c.join(a, room, c.user("carol"))
			a.give(c, room, position)

			tip := a.record(room).Forward
			redacts := redaction(room, bob, old)
			taken := claim{depth: 20, ts: b.now, parents: tip}
			e := b.lie(a, redacts, taken)
			// Not allowed: a level above one's own is taken away.
			levels := b.lie(a, Draft{Room: room, Sender: bob, Type: "m.room.power_levels", StateKey: stateKey(""), Content: json.RawMessage(more[1] + users[1:])}, taken)

			a.accept(e, Basis{Origin: b.Server()}, store.Accepted)
			a.accept(levels, Basis{Origin: b.Server()}, store.Rejected)
			c.accept(levels, Basis{Origin: b.Server()}, store.Rejected)
			c.accept(e, Basis{Origin: b.Server()}, store.Accepted)
			a.sameState(c, room)
			for _, s := range []*server{a, c} {
				held := s.event(old)
				if held.RedactedBy != e.ID() || bytes.Contains(held.Redact().Raw(), []byte(more[0][2:8])) {
					t.Errorf("the power levels are %s", held.Content())
				}
			}
		})
	}
}

// Conflicting create events: one in a room's events is rejected (TestSecondCreateEvent); from version 12 a second create event is another
// room. A claimed state can bring neither in.
func TestAttackCreateInClaimedState(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		other := a.create(version, alice)
		b.join(a, other, bob)
		a.message(room, alice, "b missed this")
		after := a.event(a.message(room, alice, "after the gap")).Event
		var state []eventgraph.EventID
		err := a.StateAt(room, a.record(room).State).Walk(func(tuple eventgraph.StateTuple, id eventgraph.EventID) error {
			if tuple.Type != "m.room.create" {
				state = append(state, id)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		before := b.record(room)
		claimed := append(slices.Clone(state), b.record(other).Create)
		_, err = b.Accept(context.Background(), pdu(t, after), Basis{Kind: Claimed, State: claimed, Origin: a.Server()})
		wantRefusal(t, err, "M_BAD_JSON")

		second, err := eventgraph.Build(version, eventgraph.Draft{
			RoomID: room, Type: "m.room.create", StateKey: stateKey(""), Sender: alice, Depth: 1,
			Content: json.RawMessage(`{"room_version":"` + string(version) + `","m.federate":false}`), OriginServerTS: a.now.UnixMilli(),
		}, a.key)
		if err != nil {
			t.Fatal(err)
		}
		// From version 12 it is rejected for saying of which room it is; without that it would begin another room.
		b.accept(second, Basis{Kind: Nothing}, store.Rejected)
		// A rejected event in a claimed state does not count, and then the state has no create event.
		_, err = b.Accept(context.Background(), pdu(t, after), Basis{Kind: Claimed, State: append(state, second.ID()), Origin: a.Server()})
		wantRefusal(t, err, "M_FORBIDDEN")
		if e := b.current(room, "m.room.create", ""); e == nil || e.ID() != before.Create {
			t.Errorf("the create event is %v", e)
		}
		if record := b.record(room); record.State != before.State || !slices.Equal(record.Forward, before.Forward) {
			t.Error("claims that were refused changed the room")
		}
	})
}

// An auth chain as long as its sender likes, given as outliers: an event asks for the auth events that it names itself and for no
// more, ten at most, and its height is counted from theirs.
func TestAttackLongAuthChain(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		a.setState(room, alice, "m.room.power_levels", "", a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50}))
		old := a.record(room).Forward
		first := b.lie(a, Draft{Room: room, Sender: bob, Type: "m.room.power_levels", StateKey: stateKey(""), Content: json.RawMessage(a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50, "@a:x": 0}))},
			claim{depth: 5, ts: b.now, parents: old})
		chain := []*eventgraph.Event{first}
		length := many(version, maxPlaced)
		for i := range length {
			last := chain[len(chain)-1]
			var auth []eventgraph.EventID
			for _, id := range first.AuthEvents() {
				if e, err := a.stored(id); err == nil && e.Type() == "m.room.power_levels" {
					id = last.ID()
				}
				auth = append(auth, id)
			}
			e, err := eventgraph.Build(version, eventgraph.Draft{
				RoomID: room, Type: "m.room.power_levels", StateKey: stateKey(""), Sender: bob, AuthEvents: auth, PrevEvents: []eventgraph.EventID{last.ID()},
				Content: json.RawMessage(a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50, "@a:x": i % 50})), Depth: int64(i + 6), OriginServerTS: b.now.UnixMilli(),
			}, b.key)
			if err != nil {
				t.Fatal(err)
			}
			chain = append(chain, e)
		}
		top := chain[length]
		var missing *MissingError
		if _, err := a.Accept(context.Background(), pdu(t, top), Basis{Kind: Nothing}); !errors.As(err, &missing) || len(missing.Events) != 1 {
			t.Fatalf("its auth events are not here: %v", err)
		}
		for some := range slices.Chunk(chain, 100) {
			outcomes, err := a.AcceptAll(context.Background(), some, Basis{Kind: Nothing})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range outcomes {
				if o.Err != nil || o.Verdict != store.Outlier {
					t.Fatalf("%+v", o)
				}
			}
		}
		if got, want := a.event(top.ID()).Height, a.event(first.ID()).Height+uint32(length); got != want {
			t.Errorf("height %d, want %d", got, want)
		}
		// Its parents are held as outliers, more than may get their place on the way to one event: it asks for the state before it.
		over := b.lie(a, said(room, bob, "on the chain"), claim{depth: 1 << 20, ts: b.now, parents: old})
		on, err := eventgraph.Build(version, eventgraph.Draft{
			RoomID: room, Type: "m.room.message", Sender: bob, Content: text("on it"), PrevEvents: []eventgraph.EventID{top.ID()},
			AuthEvents: over.AuthEvents(), Depth: 1 << 20, OriginServerTS: b.now.UnixMilli(),
		}, b.key)
		if err != nil {
			t.Fatal(err)
		}
		if length >= maxPlaced {
			if _, err := a.Accept(context.Background(), pdu(t, on), Basis{Origin: b.Server()}); !errors.As(err, &missing) || !missing.StateBefore {
				t.Fatalf("%d outliers before it: %v", length, err)
			}
		}
		// Once placed in runs, a fork from before the chain costs a read of each event of it, and no more.
		for some := range slices.Chunk(chain, 100) {
			for i, e := range some {
				some[i] = pdu(t, e)
			}
			if _, err := a.AcceptAll(context.Background(), some, Basis{Origin: b.Server()}); err != nil {
				t.Fatal(err)
			}
		}
		if v := a.event(top.ID()).Verdict; v != store.Accepted {
			t.Fatalf("verdict %d", v)
		}
		deep := b.lie(a, Draft{Room: room, Sender: bob, Type: "m.room.topic", StateKey: stateKey(""), Content: json.RawMessage(`{"topic":"from before"}`)},
			claim{depth: 1 << 30, ts: b.now, parents: old})
		a.accept(deep, Basis{Origin: b.Server()}, store.Accepted)
		if reads := a.readsToResolve(room); reads > length+20 {
			t.Errorf("a resolution reads %d events", reads)
		}
		if e := a.current(room, "m.room.power_levels", ""); e.ID() != top.ID() {
			t.Errorf("the power levels are %s", e.Content())
		}
	})
}

// A server shows an event that the state before it forbids to one only as somebody's auth event, and to the other in its place. Both
// reject what rests on it, so their states stay the same.
func TestAttackRejectedForOneAlone(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		before := a.store.Position()
		both := a.levels(version, map[eventgraph.UserID]int{alice: 100, bob: 50})
		a.setState(room, alice, "m.room.power_levels", "", both)
		old := a.current(room, "m.room.power_levels", "").ID()
		a.setState(room, alice, "m.room.power_levels", "", a.levels(version, map[eventgraph.UserID]int{alice: 100}))
		a.give(b, room, before)
		member := a.current(room, "m.room.member", string(bob)).ID()
		build := func(eventType, key, content string, authEvents ...eventgraph.EventID) *eventgraph.Event {
			if version != "12" {
				authEvents = append(authEvents, a.record(room).Create)
			}
			e, err := eventgraph.Build(version, eventgraph.Draft{RoomID: room, Type: eventType, StateKey: &key, Sender: bob, Content: json.RawMessage(content),
				PrevEvents: a.record(room).Forward, AuthEvents: authEvents, Depth: 50, OriginServerTS: b.now.UnixMilli()}, b.key)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		forbidden := build("m.room.power_levels", "", string(both), old, member)
		resting := build("m.room.member", string(bob), `{"membership":"join","displayname":"split"}`,
			forbidden.ID(), member, a.current(room, "m.room.join_rules", "").ID())

		a.accept(pdu(t, forbidden), Basis{}, store.Rejected)
		b.accept(pdu(t, forbidden), Basis{Kind: Nothing}, store.Outlier)
		a.accept(pdu(t, resting), Basis{}, store.Rejected)
		b.accept(pdu(t, resting), Basis{}, store.Rejected)
		if a.record(room).State != b.record(room).State {
			t.Error("the states differ")
		}
	})
}
