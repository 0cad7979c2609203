package rooms

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// taken is what became of one of a history's events, and the extremities then.
type taken struct {
	kind    BasisKind
	verdict store.Verdict
	held    bool
	forward []eventgraph.EventID
}

// randomHistory gives a server, in a random order, 80 events on random others: news, soft-failed and rejected ones, as outliers, on claims
// true and false, so many by one server that some are left out of the extremities. Unless it remembers, its ties are forgotten before each.
func randomHistory(t *testing.T, seed uint64, remembers bool) (history []taken) {
	random := rand.New(rand.NewPCG(seed, 0))
	a, b, alice, bob, room := shared(t, "12")
	c, carol, old := carolIn(a, b, room)
	oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
	a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
	now := a.record(room).Forward
	newState, _ := a.stateAndChain(room, a.event(now[0]).StateAfter)
	message := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: now})
	honest := a.lie(a, said(room, alice, ""), claim{ts: a.now, parents: now})
	noPower := b.lie(a, Draft{Room: room, Sender: bob, Type: "org.example.note", StateKey: stateKey(""), Content: json.RawMessage(`{}`)},
		claim{ts: b.now, parents: now})
	evading := c.lie(a, said(room, carol, "evading"), claim{ts: c.now, parents: old})

	graph := []eventgraph.EventID{now[0], now[0], old[0]}
	var events []*eventgraph.Event
	for i := range 80 {
		var parents []eventgraph.EventID
		for range 1 + random.IntN(3) {
			among := graph
			if random.IntN(2) > 0 {
				among = graph[max(0, len(graph)-15):]
			}
			if p := among[random.IntN(len(among))]; !slices.Contains(parents, p) {
				parents = append(parents, p)
			}
		}
		s, like := b, message
		switch random.IntN(8) {
		case 0, 1:
			like = noPower
		case 2:
			s, like = c, evading
		case 3:
			s, like = a, honest
		}
		e := s.on(like, fmt.Sprint(i), parents...)
		events = append(events, e)
		graph = append(graph, e.ID())
	}
	for len(events) > 0 {
		i := random.IntN(min(len(events), 4))
		e, basis := events[i], Basis{Origin: b.Server()}
		switch random.IntN(6) {
		case 0:
			basis.Kind = Nothing
		case 1:
			basis = claimed(oldState, b)
		case 2:
			basis = claimed(newState, b)
		default:
			events = slices.Delete(events, i, i+1)
		}
		if !remembers {
			a.rooms[room].ties = ties{}
		}
		r, err := a.Accept(t.Context(), pdu(t, e), basis)
		if err != nil && !isOutcome(err) {
			t.Fatal(err)
		}
		history = append(history, taken{basis.Kind, r.Verdict, err == nil, a.record(room).Forward})
	}
	return history
}

// What a server remembers of ties takes no extremity away that would stay if it remembered nothing, nor makes it judge otherwise.
func TestTiesTakeNothingAway(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			history, other := randomHistory(t, seed, true), randomHistory(t, seed, false)
			for i := range min(len(history), len(other)) {
				one, two := history[i], other[i]
				for _, id := range two.forward {
					if !slices.Contains(one.forward, id) {
						t.Fatalf("event %d of %d: extremity %s is lost", i, len(history), id)
					}
				}
				if one.verdict != two.verdict || one.held != two.held {
					t.Fatalf("event %d of %d: verdict %d, held %v; else %d, %v", i, len(history), one.verdict, one.held, two.verdict, two.held)
				}
				if len(one.forward) > len(two.forward) { // harmless; but from now on they are two rooms
					break
				}
			}
		})
	}
}

// Messages that there is no room for among the extremities, on top of rejected events, more than are looked at at once: each of those is looked at
// once. The message that there is room for takes the place of the extremity below all of them.
func TestAttackRowBelowWhatIsLeftOut(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		old := a.record(room).Forward
		message := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
		noPower := b.lie(a, Draft{Room: room, Sender: bob, Type: "org.example.note", StateKey: stateKey(""), Content: json.RawMessage(`{}`)},
			claim{ts: b.now, parents: old})
		last := a.message(room, alice, "an extremity")
		var forks []*eventgraph.Event
		for i := range maxForwardOf {
			forks = append(forks, b.on(message, fmt.Sprint("fork ", i), old...))
		}
		a.flood(b, forks)
		under := last
		row := make([]*eventgraph.Event, many(version, maxBehind+300))
		much := strings.Repeat("much", min(4<<20/len(row), 15_000)) // together more than is kept in memory
		for i := range row {
			row[i] = b.on(noPower, fmt.Sprint(i, much), under)
			under = row[i].ID()
		}
		if got := a.flood(b, row); got[store.Rejected] != len(row) {
			t.Fatalf("verdicts %v", got)
		}

		const leftOut = 30
		var events []*eventgraph.Event
		for i := range leftOut {
			events = append(events, b.on(message, fmt.Sprint("left out ", i), under))
		}
		var got map[store.Verdict]int
		reads := a.readsFor(func() { got = a.flood(b, events) })
		t.Logf("%d reads for %d on %d", reads, leftOut, len(row))
		if got[store.Accepted] != leftOut || !a.event(events[0].ID()).Aside || reads > uint64(leftOut*8+len(row)+100) {
			t.Errorf("%d reads, verdicts %v", reads, got)
		}
		tips := a.record(room).Forward
		if len(tips) != 1+maxForwardOf || !slices.Contains(tips, last) {
			t.Fatalf("extremities %v", tips)
		}

		top := b.on(message, "on top", under, forks[0].ID())
		a.accept(top, Basis{Origin: b.Server()}, store.Accepted)
		if tips := a.record(room).Forward; len(tips) != maxForwardOf || slices.Contains(tips, last) || !slices.Contains(tips, top.ID()) {
			t.Errorf("extremities %v with what takes the place of %s", tips, last)
		}
	})
}

// A stream of events by who is banned, with a row of others on them that came before, and a claim above that: whether it is in the timeline, or the
// row is of claims and none of them is, each is looked at once.
func TestAttackReadsThroughClaims(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		for what, claims := range map[string]bool{"a claim above": false, "claims that are left out": true} {
			s := banned(t, version)
			a, b, c, room := s.a, s.b, s.c, s.room
			const softFailed, between = maxPrevEvents - 1, 200
			evading := c.lie(a, said(room, s.carol, "evading"), claim{ts: c.now, parents: s.old})
			var events []*eventgraph.Event
			for i := range softFailed {
				events = append(events, c.on(evading, fmt.Sprint(i), s.old...))
			}
			if claims {
				for i := range maxForwardOf {
					a.accept(b.on(s.base, fmt.Sprint("fork ", i), s.old...), Basis{Origin: b.Server()}, store.Accepted)
				}
			}
			under := ids(events)
			for i := range between {
				e := b.on(s.base, fmt.Sprint("row ", i), under...)
				if claims {
					e = b.on(s.base, fmt.Sprint("row ", i), append(slices.Clone(under), b.on(e, "withheld", under...).ID())...)
					a.accept(e, claimed(s.oldState, b), store.Accepted)
				} else {
					a.accept(e, Basis{Kind: Nothing, Origin: b.Server()}, store.Outlier)
				}
				under = []eventgraph.EventID{e.ID()}
			}
			if !claims {
				a.accept(b.on(s.base, "claim", under...), claimed(s.oldState, b), store.Accepted)
			}
			// The first may cost what is between, twice: who knows of it, and who claims to.
			reads := a.readsFor(func() { a.flood(c, events) })
			t.Logf("%s: %d reads for %d below %d", what, reads, softFailed, between)
			if reads > softFailed*15+between*5 {
				t.Errorf("%s: %d reads", what, reads)
			}
		}
	})
}

// What is remembered of one kind of event does not push out that of another, and what is asked for stays.
func TestMemoryKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	var m memory[tie]
	m.put("$in use", tied, asked)
	m.put("$mark", tied, marks)
	for i := range 10 * maxTies {
		m.put(eventgraph.EventID(fmt.Sprint("$", i)), untied, rest)
		if i < 4*partSizes[asked] {
			m.put(eventgraph.EventID(fmt.Sprint("$asked ", i)), untied, asked)
		}
		if found, known := m.get("$in use"); !known || found != tied {
			t.Fatalf("forgotten after %d", i)
		}
	}
	if found, known := m.get("$mark"); !known || found != tied {
		t.Error("the mark is forgotten")
	}
	if _, known := m.get("$asked 0"); known {
		t.Error("nothing is ever forgotten")
	}
	if bound := 2 * (partSizes[asked] + partSizes[marks] + partSizes[rest]); m.size() > bound {
		t.Errorf("%d are remembered", m.size())
	}
	m.put("$mark", untied, rest)
	if found, _ := m.get("$mark"); found != untied {
		t.Error("what was found later does not count")
	}
	if was := m.forget("$mark"); was != marks {
		t.Errorf("it was in part %d", was)
	}
	if _, known := m.get("$mark"); known {
		t.Error("it is not forgotten")
	}
}
