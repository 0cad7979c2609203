package federation

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// burier is a member's server that answers what it is asked about a room's history with what it has made up.
type burier struct {
	*host
	room  eventgraph.RoomID
	like  *store.StoredEvent // an event of its user
	state []eventgraph.EventID
	made  map[eventgraph.EventID]*eventgraph.Event
	n     int
}

// newBurier has m, in the room, claim that the state before all of its events is that of b.
func newBurier(m, b *host, room eventgraph.RoomID) *burier {
	m.t.Helper()
	x := &burier{host: m, room: room, made: map[eventgraph.EventID]*eventgraph.Event{}}
	x.like = m.event(m.say(room, m.user("mallory"), "like"))
	state, err := b.Rooms.CurrentState(room)
	if err == nil {
		err = state.Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error { x.state = append(x.state, id); return nil })
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return x
}

// on makes an event of mallory's on parents; without any, on one that nobody has.
func (x *burier) on(parents ...eventgraph.EventID) *eventgraph.Event {
	if x.n++; len(parents) == 0 {
		parents = []eventgraph.EventID{eventgraph.EventID(fmt.Sprintf("$%042dA", x.n))}
	}
	e, err := eventgraph.Build(x.like.Version(), eventgraph.Draft{
		RoomID: x.room, Sender: x.like.Sender(), Type: "m.room.message", Content: json.RawMessage(fmt.Sprintf(`{"body":"made up %d"}`, x.n)),
		AuthEvents: x.like.AuthEvents(), Depth: 3, OriginServerTS: x.like.OriginServerTS(), PrevEvents: parents,
	}, x.Key)
	if err != nil {
		x.t.Error(err)
	}
	x.made[e.ID()] = e
	return e
}

// give puts an event into the timeline of another, with a gap before it.
func (x *burier) give(to *host, e *eventgraph.Event) {
	x.t.Helper()
	basis := rooms.Basis{Kind: rooms.Claimed, State: x.state, Origin: x.server}
	if r, err := to.Rooms.Accept(x.t.Context(), e, basis); err != nil || r.Verdict != store.Accepted {
		x.t.Fatalf("%+v, %v", r, err)
	}
}

// answer has it answer /backfill with these, and /state_ids with its claim.
func (x *burier) answer(backfill func(about []string) []*eventgraph.Event) {
	x.end.wire.mu.Lock()
	defer x.end.wire.mu.Unlock()
	honest := x.end.handler
	x.end.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any
		switch {
		case strings.Contains(r.URL.Path, "/backfill/"):
			events := []json.RawMessage{}
			for _, e := range backfill(r.URL.Query()["v"]) {
				events = append(events, e.Raw())
			}
			answer = map[string]any{"origin": x.server, "origin_server_ts": 1, "pdus": events}
		case strings.Contains(r.URL.Path, "/state_ids/"):
			answer = map[string]any{"pdu_ids": x.state, "auth_chain_ids": []string{}}
		default:
			honest.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
}

// said counts a user's messages among the events.
func said(events []*store.StoredEvent, user eventgraph.UserID) (n int) {
	for _, e := range events {
		if e.Sender() == user && e.Type() == "m.room.message" {
			n++
		}
	}
	return n
}

// buried is a room of alice's on a with mallory on m, much said in it, that bob on b has joined.
func buried(t *testing.T) (a, b *host, m *burier, room eventgraph.RoomID) {
	hosts := newHosts(t, newWire(), "a", "b", "m")
	a, b = hosts[0], hosts[1]
	room = a.create("12", "public", "shared")
	hosts[2].join(room, hosts[2].user("mallory"), a)
	for i := range 60 {
		a.say(room, a.user("alice"), fmt.Sprint(i))
	}
	b.join(room, b.user("bob"), a)
	return a, b, newBurier(hosts[2], b, room), room
}

// What rests on nothing that we ask about is not placed below our join: a server that has it cannot keep us from what others have.
func TestBackfillOfWhatWasNotAskedAbout(t *testing.T) {
	t.Parallel()
	a, b, m, room := buried(t)
	m.answer(func([]string) (events []*eventgraph.Event) {
		for range 10 {
			events = append(events, m.on())
		}
		return events
	})
	m.end.wire.setAway(a.end.id, true)
	if n, err := b.Backfill(t.Context(), room, 50); n != 0 {
		t.Errorf("%d events taken in, %v", n, err)
	}
	m.end.wire.setAway(a.end.id, false)
	b.meet(a)
	for range 3 {
		if _, err := b.Backfill(t.Context(), room, 50); err != nil {
			t.Fatal(err)
		}
	}
	if all := b.timeline(room); said(all, a.user("alice")) != 60 || said(all, m.user("mallory")) != 0 {
		t.Errorf("of alice's 60 messages %d are here, of mallory's %d", said(all, a.user("alice")), said(all, m.user("mallory")))
	}
}

// However many gaps a server makes, and however much it has below each, each time it is asked, what others have comes all the same: whoever is
// asked first, and also where the oldest that is held of it is by a user of that server.
func TestBackfillPastEndlessHistory(t *testing.T) {
	t.Parallel()
	a, b, m, room := buried(t)
	const gaps, length = 3 * maxBackfillFrom, 60
	for range gaps {
		e := m.on()
		for range length {
			e = m.on(e.ID())
		}
		m.give(b, e)
	}
	given := map[eventgraph.EventID]bool{}
	m.answer(func(about []string) (events []*eventgraph.Event) {
		for _, v := range about { // a little below each, so that it lasts
			for e, n := m.made[eventgraph.EventID(v)], 0; e != nil && n < 4; n++ {
				events, given[e.ID()] = append(events, e), true
				e = m.made[e.PrevEvents()[0]]
			}
		}
		return events
	})
	calls := 0
	for ; said(b.timeline(room), a.user("alice")) < 60; calls++ {
		if calls == 10 {
			t.Fatalf("of alice's 60 messages %d are here", said(b.timeline(room), a.user("alice")))
		}
		if _, err := b.Backfill(t.Context(), room, 50); err != nil {
			t.Fatal(err)
		}
	}
	if len(given) <= gaps {
		t.Errorf("the hostile server gave %d events only, in %d calls", len(given), calls)
	}
}

// Where everybody's extremities are of one server's users, and it always has something below its own, each other one is asked about for all that,
// of each server.
func TestQuestAsksAboutAll(t *testing.T) {
	t.Parallel()
	const m, a, gaps = "m", "a", 300
	p := &past{room: &store.Room{ID: "!r"}}
	add := func(id eventgraph.EventID) {
		p.from = append(p.from, extremity{id: id, server: m, order: -int64(len(p.from))})
		p.room.Backward = append(p.room.Backward, id)
		slices.Sort(p.room.Backward)
	}
	for i := range gaps {
		add(eventgraph.EventID(fmt.Sprint("made up ", i)))
	}
	add("true")
	slices.Reverse(p.from) // as its server has just put others below
	q := newQuests()
	var aboutTrue []eventgraph.ServerName
	for i := range 4 * gaps / maxBackfillFrom {
		from, server := q.next(p, "b", []eventgraph.ServerName{m, a}, func(eventgraph.ServerName) bool { return true })
		if len(from) != maxBackfillFrom {
			t.Fatalf("%d extremities are named", len(from))
		}
		if slices.Contains(from, "true") {
			aboutTrue = append(aboutTrue, server)
		}
		if server == m { // half of what it was asked about has become another
			for _, id := range from[:maxBackfillFrom/2] {
				if id != "true" {
					p.from = slices.DeleteFunc(p.from, func(e extremity) bool { return e.id == id })
					p.room.Backward = slices.DeleteFunc(p.room.Backward, func(other eventgraph.EventID) bool { return other == id })
					add(eventgraph.EventID(fmt.Sprint("below ", i, id)))
				}
			}
		}
	}
	asked := map[eventgraph.ServerName]bool{}
	for _, server := range aboutTrue {
		asked[server] = true
	}
	if !asked[a] || !asked[m] {
		t.Errorf("asked about it: %v", slices.Collect(maps.Keys(asked)))
	}
}

// What is always named: our own users', those in breaks, and one of each server's users.
func TestQuestNamesFairly(t *testing.T) {
	t.Parallel()
	p := &past{room: &store.Room{ID: "!r"}}
	add := func(id eventgraph.EventID, server eventgraph.ServerName, inBreak bool) {
		p.from = append(p.from, extremity{id, server, int64(len(p.from)), inBreak})
		p.room.Backward = append(p.room.Backward, id)
	}
	for i := range 10 * maxBackfillFrom {
		add(eventgraph.EventID(fmt.Sprint("flood ", i)), "m", i%2 == 0)
	}
	add("our join", "b", false)
	add("in a break", "a", true)
	add("a's", "a", false)
	add("c's", "c", false)
	slices.Sort(p.room.Backward)
	q := newQuests()
	for i := range 30 {
		from, _ := q.next(p, "b", []eventgraph.ServerName{"m", "a"}, func(eventgraph.ServerName) bool { return true })
		for _, id := range []eventgraph.EventID{"our join", "in a break", "a's", "c's"} {
			if !slices.Contains(from, id) {
				t.Errorf("request %d does not name %s", i, id)
			}
		}
	}
}

// Who is not connected is asked where the connected servers leave something unanswered, in each round one of them.
func TestQuestAsksTheAbsent(t *testing.T) {
	t.Parallel()
	p := &past{room: &store.Room{ID: "!r", Backward: []eventgraph.EventID{"x", "y"}}, from: []extremity{{id: "x"}, {id: "y"}}}
	q := newQuests()
	var asked []string
	for range 8 {
		_, server := q.next(p, "b", []eventgraph.ServerName{"away1", "here1", "away2", "here2"}, func(s eventgraph.ServerName) bool { return strings.HasPrefix(string(s), "here") })
		asked = append(asked, string(server))
	}
	if got, want := strings.Join(asked, " "), "here1 here2 away1 here1 here2 away2 here1 here2"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// History goes on behind an event that is rejected, though what was built on it rests on nothing else.
func TestBackfillThroughRejected(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "m")
	a, b, m := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	m.join(room, m.user("mallory"), a)
	first := a.say(room, a.user("alice"), "first")
	x := newBurier(m, a, room)
	key, under := "", first
	for i := range int64(60) { // more than a page of 50
		forbidden, err := eventgraph.Build("12", eventgraph.Draft{
			RoomID: room, Sender: x.like.Sender(), Type: "m.room.topic", StateKey: &key, Content: json.RawMessage(`{"topic":"mine"}`),
			AuthEvents: x.like.AuthEvents(), Depth: x.like.Depth() + 1 + i, OriginServerTS: x.like.OriginServerTS(), PrevEvents: []eventgraph.EventID{under},
		}, m.Key)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := a.Rooms.Accept(t.Context(), forbidden, rooms.Basis{Origin: m.server}); err != nil || r.Verdict != store.Rejected {
			t.Fatalf("%+v, %v", r, err)
		}
		under = forbidden.ID()
	}
	above := x.on(under)
	if r, err := a.Rooms.Accept(t.Context(), above, rooms.Basis{Origin: m.server}); err != nil || r.Verdict != store.Accepted {
		t.Fatalf("%+v, %v", r, err)
	}
	if held, _, err := a.backwards(room); err != nil || !slices.Equal(held.Forward, []eventgraph.EventID{above.ID()}) {
		t.Fatalf("extremities %v, %v", held, err)
	}
	b.join(room, b.user("bob"), a)
	for range 3 {
		if _, err := b.Backfill(t.Context(), room, 50); err != nil {
			t.Fatal(err)
		}
	}
	sameHistory(t, room, a, b)
}
