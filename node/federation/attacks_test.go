package federation

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// TestAttackEndlessPast: a server of the room gives an event whose parents nobody has, and to the question for them thousands of events,
// each again on parents that nobody has. Of an answer no more is taken than was asked for, the rest of the room does not wait for
// it, and questions are not repeated for each of them.
func TestAttackEndlessPast(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	alice := a.user("alice")
	base := a.event(a.say(room, alice, "base"))
	if err := a.put(b, base.ID()); err != nil {
		t.Fatal(err)
	}
	b.waitFor("base", base.ID())

	const maxParents, endless = 20, 3
	given := 1500
	if testing.Short() {
		given = 2 * missingLimit
	}
	onNothing := a.eventsOnNothing(room, alice, base.AuthEvents(), maxParents)
	var asked, single atomic.Int32
	first := onNothing()
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case strings.Contains(r.URL.Path, "/get_missing_events/"):
			var events []json.RawMessage
			if asked.Add(1) <= endless {
				for range given {
					events = append(events, onNothing().Raw())
				}
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"events": events})
		case strings.Contains(r.URL.Path, "/event/"):
			single.Add(1)
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
		default:
			return false
		}
		return true
	})
	body, err := marshal(transaction{Origin: a.server, PDUs: []json.RawMessage{first.Raw()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.putTransaction(t.Context(), b.server, "attack", body); err != nil {
		t.Fatal(err)
	}
	b.waitUntil("the answers", func() bool { return asked.Load() >= endless })

	honest := a.say(room, alice, "not held up")
	if err := a.put(b, honest); err != nil {
		t.Fatal(err)
	}
	b.waitFor("what rests on what is held", honest)
	b.say(room, b.user("bob"), "nor is b")
	if waits, most := b.waits(room), 1+endless*missingLimit; waits > most {
		t.Errorf("%d events wait, want at most %d", waits, most)
	}
	// Each visit of the room puts some questions; there are 6,000 parents to ask for.
	if total := asked.Load() + single.Load(); total > 5*inboxRounds {
		t.Errorf("%d questions in a few visits, of at most %d each", total, inboxRounds)
	}
}

// eventsOnNothing makes events of the user, each on so many parents that nobody has.
func (h *memHost) eventsOnNothing(room eventgraph.RoomID, user eventgraph.UserID, authEvents []eventgraph.EventID, parents int) func() *eventgraph.Event {
	n := 0
	return func() *eventgraph.Event {
		d := eventgraph.Draft{
			RoomID: room, Sender: user, Type: "m.room.message", Content: json.RawMessage(`{"body":"on nothing","msgtype":"m.text"}`),
			AuthEvents: authEvents, Depth: 1 << 40, OriginServerTS: h.Now().UnixMilli(),
		}
		for range parents {
			n++
			hash := sha256.Sum256(fmt.Append(nil, n))
			d.PrevEvents = append(d.PrevEvents, eventgraph.EventID("$"+base64.RawURLEncoding.EncodeToString(hash[:])))
		}
		e, err := eventgraph.Build("12", d, h.Key)
		if err != nil {
			h.t.Error(err)
		}
		return e
	}
}

// TestAttackFromOutside: a server that was in the room once, and names that, gives events whose parents nobody has, and more such events to each
// question for them. It fills a small part of what may wait in the room, and is not asked what the room's state was.
func TestAttackFromOutside(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	a, b := newMemHost(t, n, "a"), newMemHost(t, n, "b")
	b.start()
	b.meet(a.host)
	a.run(a.runPeers)
	a.meet(b.host)
	room := b.create("12", "public", "shared")
	mallory := a.user("mallory")
	a.join(room, mallory, b.host)
	state, err := b.Rooms.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	join, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(mallory)})
	if err != nil {
		t.Fatal(err)
	}
	b.setState(room, b.user("alice"), "m.room.member", string(mallory), `{"membership":"leave"}`)

	onNothing := a.eventsOnNothing(room, mallory, append(join.AuthEvents(), join.ID()), 1)
	first := onNothing()
	const most = maxWaiting / outsideOnePart
	var asked, states atomic.Int32
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case strings.Contains(r.URL.Path, "/get_missing_events/"):
			asked.Add(1)
			var events []json.RawMessage
			for range missingLimit {
				events = append(events, onNothing().Raw())
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"events": events})
		case strings.Contains(r.URL.Path, "/state"):
			states.Add(1)
			fmt.Fprint(w, `{"pdu_ids":[],"auth_chain_ids":[]}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
		}
		return true
	})
	body, err := marshal(transaction{Origin: a.server, PDUs: []json.RawMessage{first.Raw()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.putTransaction(t.Context(), b.server, "attack", body); err != nil {
		t.Fatal(err)
	}
	b.waitUntil("answers for which there is no place", func() bool { return asked.Load() >= 2*most/missingLimit })
	if waits := b.waits(room); waits != most {
		t.Errorf("%d events wait, want %d: the place for one server, and of an answer what there is place for", waits, most)
	}
	if states.Load() > 0 {
		t.Errorf("asked for the room's state %d times", states.Load())
	}
}

// TestAttackMessageAsAuthEvent: a server of the room has a message before another, which its sender does not reach. It gives that one an event of its
// own on the message, says of neither's parents anything, and names the message in the auth chain of the state that it claims. What is said is
// shown all the same when the sender is back.
func TestAttackMessageAsAuthEvent(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	all := newMemHosts(t, n, "a", "b", "m")
	a, b, m := all[0], all[1], all[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	m.join(room, m.user("mallory"), a.host)
	base := a.say(room, a.user("alice"), "base")
	b.waitFor("base", base)
	m.waitFor("base", base)
	state, err := b.Rooms.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	var claimed []eventgraph.EventID
	if err := state.Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error { claimed = append(claimed, id); return nil }); err != nil {
		t.Fatal(err)
	}
	cut(n, a, b)
	b.gone(a)
	said := a.say(room, a.user("alice"), "to be withheld")
	m.waitFor("what is withheld", said)

	var stateAsked atomic.Bool
	m.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case strings.Contains(r.URL.Path, "/get_missing_events/"):
			fmt.Fprint(w, `{"events":[]}`)
		case strings.Contains(r.URL.Path, "/event/") && !stateAsked.Load():
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
		case strings.Contains(r.URL.Path, "/state_ids/"):
			stateAsked.Store(true)
			_ = json.NewEncoder(w).Encode(map[string]any{"pdu_ids": claimed, "auth_chain_ids": []eventgraph.EventID{said}})
		default:
			return false
		}
		return true
	})
	m.Transport.Handle(protocolMeet, givingAs(func(q *meetMessage) *meetMessage { // nor are they given at meetings
		answer := &meetMessage{}
		switch {
		case q.Hello != nil:
			answer.News = &meetNews{Cursor: "x"}
		case q.Want != nil:
			answer.Events = &meetEvents{Looked: len(q.Want)}
		case q.Compare != nil:
			answer.Compared = &meetCompared{Ranges: []meetRange{{Same: true}}}
		}
		return answer
	}))
	above := m.say(room, m.user("mallory"), "above")
	b.waitFor("what rests on it", above)
	if !b.event(above).Gap || b.holds(said) {
		t.Fatalf("gap %v; the message has its place: %v", b.event(above).Gap, b.holds(said))
	}
	mend(n, a, b)
	b.meet(a.host)
	b.waitFor("the message", said)
	if e, under := b.event(said), b.event(base); e.Position == 0 || e.Order <= under.Order {
		t.Errorf("position %d, order %d; that of what was said before it is %d", e.Position, e.Order, under.Order)
	}
}
