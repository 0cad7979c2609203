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
