package federation

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// orphan is an event of the user on a parent that nobody has, another for each number.
func (h *memHost) orphan(room eventgraph.RoomID, user eventgraph.UserID, n int) *eventgraph.Event {
	h.t.Helper()
	state, err := h.Rooms.CurrentState(room)
	if err != nil {
		h.t.Fatal(err)
	}
	var auth []eventgraph.EventID
	for _, tuple := range []eventgraph.StateTuple{{Type: "m.room.power_levels"}, {Type: "m.room.member", Key: string(user)}} {
		id, _, err := state.EventID(tuple)
		if err != nil {
			h.t.Fatal(err)
		}
		auth = append(auth, id)
	}
	e, err := eventgraph.Build("12", eventgraph.Draft{
		RoomID: room, Sender: user, Type: "m.room.message", Content: json.RawMessage(`{"body":"orphan","msgtype":"m.text"}`), Depth: 900,
		PrevEvents: []eventgraph.EventID{eventgraph.EventID(fmt.Sprintf("$%042dA", n))}, AuthEvents: auth, OriginServerTS: h.Now().UnixMilli(),
	}, h.Key)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

// give sends events to another server, as many to a transaction as may be.
func (h *memHost) give(to *memHost, events ...*eventgraph.Event) {
	h.t.Helper()
	if _, err := h.identify(h.t.Context(), to.peer); err != nil {
		h.t.Fatal(err)
	}
	for n := 0; n < len(events); n += maxPDUs {
		t := transaction{Origin: h.server}
		for _, e := range events[n:min(n+maxPDUs, len(events))] {
			t.PDUs = append(t.PDUs, e.Raw())
		}
		body, err := marshal(t)
		if err == nil {
			err = h.putTransaction(h.t.Context(), to.server, fmt.Sprint("given", n, h.Now().UnixNano()), body)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// knowsNothing makes the server answer that it has none of the events that it is asked for. It returns how often it was asked.
func (h *memHost) knowsNothing() (asked func() int) {
	n := 0
	h.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		for _, part := range []string{"/get_missing_events/", "/event/", "/state"} {
			if strings.Contains(r.URL.Path, part) {
				n++
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"not here"}`)
				return true
			}
		}
		return false
	})
	return func() int { return n }
}

// withThird are giverAndTaker with a third server in their room, which answers and does nothing by itself.
func withThird(t *testing.T) (n *memnet.Network, a, b, m *memHost, room eventgraph.RoomID) {
	t.Helper()
	n, a, b, room = giverAndTaker(t)
	m = newMemHost(t, n, "m")
	m.run(m.runPeers)
	m.meet(a.host)
	m.meet(b.host)
	b.meet(m.host)
	m.join(room, m.user("mallory"), a.host)
	var join eventgraph.EventID
	if err := a.Store.View(func(r *store.Reader) error {
		member, err := r.Member(room, m.user("mallory"))
		if err == nil {
			join = member.Event
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := a.put(b, join); err != nil {
		t.Fatal(err)
	}
	b.waitFor("the join of m", join)
	return n, a, b, m, room
}

// TestWaitingEventsTakeTurns: more events on parents that nobody has than a visit puts questions, all given by one server of the room, hold up nobody else's; not at once, and not
// when all of them are to be asked about again.
func TestWaitingEventsTakeTurns(t *testing.T) {
	for _, later := range []time.Duration{time.Second, 10 * time.Minute} {
		t.Run(later.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, a, b, m, room := withThird(t)
				asked := m.knowsNothing()
				a.knowsNothing()
				var orphans []*eventgraph.Event
				for i := range 6 * inboxRounds / 5 {
					orphans = append(orphans, m.orphan(room, m.user("mallory"), i))
				}
				m.give(b, orphans...)
				time.Sleep(later)
				if n := b.waits(room); n != len(orphans) {
					t.Fatalf("%d events wait", n)
				}
				if n := asked(); n < inboxRounds/4 {
					t.Errorf("m was asked %d times", n)
				}
				a.on(func(http.ResponseWriter, *http.Request, []byte) bool { return false })
				a.say(room, a.user("alice"), "first")
				last := a.say(room, a.user("alice"), "last")
				if err := a.put(b, last); err != nil {
					t.Fatal(err)
				}
				if time.Sleep(5 * time.Second); !b.holds(last) {
					t.Error("an event whose parent its giver gives at once still waits")
				}
				for _, h := range []*memHost{a, b, m} {
					h.stop()
				}
			})
		})
	}
}

// visited is a visit in which so many events of each giver wait, all on parents that nobody has; the numbers begin anew with each giver.
func (h *memHost) visited(room eventgraph.RoomID, given map[eventgraph.ServerName]int) *waiting {
	h.inbox.wake(room)
	w := h.newWaiting(room, "12")
	for giver, events := range given {
		for n := range events {
			parent := []eventgraph.EventID{eventgraph.EventID(fmt.Sprint("$none", giver, n))}
			w.put(&waitingEvent{id: eventgraph.EventID(fmt.Sprint("$", giver, " ", n)), origin: giver, prev: parent}, parent)
		}
	}
	return w
}

// TestTurnsOfWaitingEvents: when each event is first asked about is bounded by how many its own giver has brought before it, as lines.go says, over
// any number of visits; those never asked about come before those that have rested; and what is to be asked next is found without looking through
// all that wait.
func TestTurnsOfWaitingEvents(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	now := b.Now()
	b.inbox = newInbox(func() time.Time { return now })
	given := map[eventgraph.ServerName]int{a.server: 3, b.server: 40, "outside": 20, "another": 5} // the last two are not in the room
	const parts, round = 3, 3                                                                      // a alone is connected: get_missing_events, the event, the state
	first, asked := map[eventgraph.EventID]int{}, 0
	of := func(id eventgraph.EventID) (giver eventgraph.ServerName, n int) {
		if _, err := fmt.Sscanf(strings.TrimPrefix(string(id), "$"), "%s %d", &giver, &n); err != nil {
			t.Fatal(err)
		}
		return giver, n
	}
	all := 0
	for _, n := range given {
		all += n
	}
	for visit := 0; asked < 2*round*all; visit++ {
		w := b.visited(room, given)
		now = now.Add(time.Hour) // all that have rested are due
		for range 7 {
			next, ok := b.nextQuestion(w)
			if !ok {
				break
			}
			b.inbox.ask(room, next)
			if asked++; first[next.event] == 0 {
				giver, n := of(next.event)
				if most := parts * round * (n + 1); giver != "outside" && giver != "another" && asked > most {
					t.Errorf("event %d of %s is first asked about by question %d, want %d at most", n, giver, asked, most)
				}
				first[next.event] = asked
			} else if giver, n := of(next.event); asked-first[next.event] > parts*round*2 && first[eventgraph.EventID(fmt.Sprint("$", giver, " ", given[giver]-1))] == 0 {
				t.Errorf("event %d of %s is asked about again before the last of its giver", n, giver)
			}
		}
		if visit > all {
			break
		}
	}
	if len(first) != all {
		t.Errorf("%d of %d events were asked about", len(first), all)
	}
}

// TestFullRoomIsLookedThroughOnce: with all that may wait in a room, what is asked next is found without looking through it each time: when nothing was
// asked yet, when all may be asked about again, and when only the last may.
func TestFullRoomIsLookedThroughOnce(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	now := b.Now()
	b.inbox = newInbox(func() time.Time { return now })
	given := map[eventgraph.ServerName]int{a.server: maxWaiting}
	visit := func(state string, questions int) *waiting {
		t.Helper()
		w, put := b.visited(room, given), 0
		for ; put < inboxRounds; put++ {
			next, ok := b.nextQuestion(w)
			if !ok {
				break
			}
			b.inbox.ask(room, next)
		}
		if put != questions || w.looked > 2*inboxRounds {
			t.Errorf("%s: %d questions, for which events were looked at %d times", state, put, w.looked)
		}
		return w
	}
	w := visit("nothing was asked", inboxRounds)
	for _, id := range w.order {
		x, _ := w.want(id)
		for _, kind := range []askKind{askMissing, askState} {
			b.inbox.ask(room, ask{kind: kind, server: a.server, event: id})
		}
		b.inbox.ask(room, ask{kind: askEvent, server: a.server, event: id, parent: x.Events[0]})
		b.inbox.rest(room, id, w.needs(x), false)
	}
	visit("all rest", 0)
	b.inbox.notAsked(room, ask{kind: askState, server: a.server, event: w.order[maxWaiting-1]})
	visit("one question is left", 1)
	now = now.Add(inboxPatience)
	visit("all are due", inboxRounds)
}

// TestTurnOfWhatAnotherGave: what an event rests on has its giver's turn, though another gave it among hundreds of others, and also when it comes as the answer to
// a question; the lines of others stay as they are.
func TestTurnOfWhatAnotherGave(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	other := b.server // a member that gave much
	w := b.visited(room, map[eventgraph.ServerName]int{other: 300})
	put := func(id eventgraph.EventID, giver eventgraph.ServerName, lacks ...eventgraph.EventID) {
		w.put(&waitingEvent{id: id, origin: giver, prev: lacks}, lacks)
	}
	put("$grandparent", other, "$nowhere")
	put("$parent", other, "$grandparent")
	put("$child", a.server, "$parent")
	ask := func() (about eventgraph.EventID) {
		t.Helper()
		next, ok := b.nextQuestion(w)
		if !ok {
			t.Fatal("no question")
		}
		b.inbox.ask(room, next)
		return next.event
	}
	turns := func(want eventgraph.EventID) {
		t.Helper()
		of := map[eventgraph.EventID]int{}
		for range 4 {
			of[ask()]++
		}
		if of[want] != 2 {
			t.Errorf("of four questions %d are about %s: %v", of[want], want, of)
		}
	}
	turns("$grandparent")
	put("$before", other, "$further") // the answer
	w.events["$grandparent"].lacks = nil
	w.park("$grandparent", []eventgraph.EventID{"$before"})
	turns("$before")
}
