package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// put sends events as they are held here to another server, in one transaction.
func (h *memHost) put(to *memHost, events ...eventgraph.EventID) error {
	h.t.Helper()
	if _, err := h.identify(h.t.Context(), to.peer); err != nil {
		h.t.Fatal(err)
	}
	t := transaction{Origin: h.server}
	for _, id := range events {
		t.PDUs = append(t.PDUs, h.event(id).Raw())
	}
	body, err := marshal(t)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.putTransaction(h.t.Context(), to.server, string(events[0]), body)
}

// waits says how many events wait in the inbox for the room.
func (h *memHost) waits(room eventgraph.RoomID) (n int) {
	h.t.Helper()
	if err := h.Store.View(func(r *store.Reader) error {
		return r.Inbox(room, func(*store.InboxItem) (bool, error) { n++; return true, nil })
	}); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// giverAndTaker are a, which answers and does nothing by itself, and b, which runs, in one room.
func giverAndTaker(t *testing.T) (n *memnet.Network, a, b *memHost, room eventgraph.RoomID) {
	t.Helper()
	n = memnet.New()
	a, b = newMemHost(t, n, "a"), newMemHost(t, n, "b")
	b.start()
	b.meet(a.host)
	room = a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	return n, a, b, room
}

// TestMissingEvents: of a long row of events only the last comes; the others are asked for, as often as it needs.
func TestMissingEvents(t *testing.T) {
	t.Parallel()
	for _, length := range []int{2, 60, 350} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			t.Parallel()
			_, a, b, room := giverAndTaker(t)
			var asked atomic.Int32
			a.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				if strings.Contains(r.URL.Path, "/state") {
					t.Errorf("the state was asked for, though all parents are to be had")
				}
				if strings.Contains(r.URL.Path, "/get_missing_events/") {
					asked.Add(1)
				}
				return false
			})
			var said []eventgraph.EventID
			for i := range length {
				said = append(said, a.say(room, a.user("alice"), fmt.Sprint(i)))
			}
			a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"the last"}`)
			last := a.say(room, a.user("alice"), "last")
			if err := a.put(b, last); err != nil {
				t.Fatal(err)
			}
			b.waitFor("the row", append(said, last)...)
			b.waitUntil("the inbox to empty", func() bool { return b.waits(room) == 0 })
			if want := int32(length/missingLimit + 2); asked.Load() > want {
				t.Errorf("asked %d times, want at most %d", asked.Load(), want)
			}
			sameState(t, room, a, b)
			for _, id := range said {
				if e := b.event(id); e.Gap || e.Verdict != store.Accepted {
					t.Fatalf("%s: gap %v, verdict %v", id, e.Gap, e.Verdict)
				}
			}
		})
	}
}

// TestGap: parents that nobody gives are done without, on the state that a server claims.
func TestGap(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	a.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		switch {
		case strings.Contains(r.URL.Path, "/get_missing_events/"):
			fmt.Fprint(w, `{"events":[]}`)
		case strings.Contains(r.URL.Path, "/event/") && !strings.Contains(r.URL.RawQuery, "state"):
			// State events are given: the claimed state is made of them.
			id := eventgraph.EventID(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
			if _, isState := a.event(id).StateKey(); isState {
				return false
			}
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
		default:
			return false
		}
		return true
	})
	lost := a.say(room, a.user("alice"), "never given")
	a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"in the gap"}`)
	a.say(room, a.user("alice"), "nor this")
	last := a.say(room, a.user("alice"), "given")
	if err := a.put(b, last); err != nil {
		t.Fatal(err)
	}
	b.waitFor("the event after the gap", last)
	if e := b.event(last); !e.Gap || e.Verdict != store.Accepted {
		t.Errorf("gap %v, verdict %v", e.Gap, e.Verdict)
	}
	if b.holds(lost) {
		t.Error("the event in the gap is held")
	}
	sameState(t, room, a, b)
}

// TestMissingAuth: an event names an auth event from another branch, which none of its ancestors has.
func TestMissingAuth(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	alice := a.user("alice")
	base := a.say(room, alice, "base")
	if err := a.put(b, base); err != nil {
		t.Fatal(err)
	}
	b.waitFor("base", base)
	var levels eventgraph.EventID
	state, err := a.Rooms.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	old, err := state.Event(eventgraph.StateTuple{Type: "m.room.power_levels"})
	if err != nil {
		t.Fatal(err)
	}
	levels = a.setState(room, alice, "m.room.power_levels", "", strings.Replace(string(old.Content()), `"invite":0`, `"invite":50`, 1))

	member, _, _ := state.EventID(eventgraph.StateTuple{Type: "m.room.member", Key: string(alice)})
	e, err := eventgraph.Build("12", eventgraph.Draft{
		RoomID: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"body":"beside","msgtype":"m.text"}`),
		PrevEvents: []eventgraph.EventID{base}, AuthEvents: []eventgraph.EventID{levels, member},
		Depth: a.event(base).Depth() + 1, OriginServerTS: a.event(base).OriginServerTS(),
	}, a.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rooms.Accept(t.Context(), e, rooms.Basis{Kind: rooms.Parents}); err != nil {
		t.Fatal(err)
	}
	if err := a.put(b, e.ID()); err != nil {
		t.Fatal(err)
	}
	b.waitFor("the event", e.ID())
	if got := b.event(levels).Verdict; got != store.Accepted {
		t.Errorf("the auth event, whose parents have their place, has verdict %v, want accepted", got)
	}
	if b.event(e.ID()).Gap {
		t.Error("the event has a gap")
	}
}

// TestInboxResumed: what waited when a server stopped is taken in when it runs again.
func TestInboxResumed(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	first := a.say(room, a.user("alice"), "first")
	last := a.say(room, a.user("alice"), "last")
	if err := a.put(b, last); err != nil { // answered, though nothing works on it
		t.Fatal(err)
	}
	if n := b.waits(room); n != 1 {
		t.Fatalf("%d events wait", n)
	}
	b.restart()
	b.waitFor("both", first, last)
	b.waitUntil("the inbox to empty", func() bool { return b.waits(room) == 0 })
}

// TestRefusedParent: a parent whose only copy is forged does not come again and again.
func TestRefusedParent(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	lost := a.say(room, a.user("alice"), "forged")
	last := a.say(room, a.user("alice"), "last")
	_, _, _, other := newKeys("somebody else")
	other.Server, other.ID = a.Key.Server, a.Key.ID
	var object map[string]json.RawMessage
	if err := json.Unmarshal(a.event(lost).Raw(), &object); err != nil {
		t.Fatal(err)
	}
	delete(object, "signatures")
	unsigned, _ := json.Marshal(object)
	forged, err := eventgraph.SignJSON(unsigned, other)
	if err != nil {
		t.Fatal(err)
	}
	var given atomic.Int32
	a.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if strings.Contains(r.URL.Path, "/get_missing_events/") || strings.Contains(r.URL.Path, "/event/") && strings.Contains(r.URL.Path, string(lost)) {
			given.Add(1)
			fmt.Fprintf(w, `{"events":[%s],"pdus":[%s]}`, forged, forged)
			return true
		}
		return false
	})
	if err := a.put(b, last); err != nil {
		t.Fatal(err)
	}
	b.waitFor("the event after it, on claimed state", last)
	if b.holds(lost) {
		t.Error("the forged event is held")
	}
	b.waitUntil("the inbox to empty", func() bool { return b.waits(room) == 0 })
	if n := given.Load(); n > 3 {
		t.Errorf("it was asked for %d times", n)
	}
}

// TestInboxFull: a transaction whose events would have to wait is to be sent again later.
func TestInboxFull(t *testing.T) {
	if testing.Short() {
		t.Skip("large: plays without the race detector, in scripts/test")
	}
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	const atOnce = 3000
	for from := 0; from < store.InboxMaxItems; from += atOnce {
		b.update(func(tx *store.Tx) error {
			for i := from; i < min(from+atOnce, store.InboxMaxItems); i++ {
				if err := tx.PutInbox(&store.InboxItem{ID: eventgraph.EventID(fmt.Sprint("$", i)), Room: "!other", PDU: []byte("{}")}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	first := a.say(room, a.user("alice"), "first")
	last := a.say(room, a.user("alice"), "last")
	err := a.put(b, last)
	var remote *remoteError
	if !errors.As(err, &remote) || remote.Status != http.StatusServiceUnavailable || remote.RetryAfter != inboxFullRetry || remote.Refusal.Code != "M_LIMIT_EXCEEDED" {
		t.Errorf("answer %v, want 503 and a retry time", err)
	}
	if err := a.put(b, first, last); err != nil || !b.holds(first, last) {
		t.Errorf("events that need not wait: %v", err)
	}
}

// TestInboxBackoff: an event's questions are put again ever later, at once to a server that is met, or is new, and a visit takes its share of time only.
func TestInboxBackoff(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	i := newInbox(func() time.Time { return now })
	i.wake("!r")
	const needs = 5
	a, b := ask{askMissing, "a", "$e", ""}, ask{askMissing, "b", "$e", ""}
	is := func(want standing) {
		t.Helper()
		if at, _ := i.standing("!r", "$e", needs); at != want {
			t.Errorf("stands at %d, want %d", at, want)
		}
	}
	is(fresh)
	for n, wait := range []time.Duration{inboxPatience, 2 * inboxPatience, 4 * inboxPatience} {
		if i.begin("!r", "$e"); i.tried("!r", a) || i.tried("!r", b) {
			t.Error("not put again in the next round")
		}
		i.ask("!r", a)
		is([]standing{begun, again, again}[n])
		i.ask("!r", b)
		i.rest("!r", "$e", needs, false)
		now = now.Add(wait - 1)
		is(resting)
		if i.begin("!r", "$e"); !i.tried("!r", a) {
			t.Errorf("put again before %v", wait)
		}
		now = now.Add(1)
		is(again)
	}
	i.begin("!r", "$e")
	for _, server := range []eventgraph.ServerName{"a", "b"} {
		put := ask{askState, server, "$e", ""}
		i.ask("!r", put)
		i.refuse("!r", put)
	}
	i.rest("!r", "$e", needs, false)
	both := []eventgraph.ServerName{"a", "b"}
	if is(resting); !i.refusedByAll("!r", "$e", both) {
		t.Error("not refused by all")
	}
	i.met("a", func(eventgraph.RoomID) bool { return true })
	a.kind, b.kind = askState, askState
	if is(again); i.tried("!r", a) || !i.tried("!r", b) || i.refusedByAll("!r", "$e", both) {
		t.Error("a server that was met may be asked again, the others not")
	}
	i.ask("!r", a)
	i.rest("!r", "$e", needs, false)
	is(resting)
	if i.tried("!r", ask{askState, "c", "$e", ""}) {
		t.Error("one that is new was asked")
	}
	is(again)
	i.rest("!r", "$e", needs, true)
	is(again) // what cannot be asked now is asked as soon as it can be
	i.rest("!r", "$e", needs, false)
	if at, _ := i.standing("!r", "$e", needs+2); at != again {
		t.Errorf("with other needs it stands at %d", at)
	}

	if room, err := i.take(t.Context()); room != "!r" || err != nil {
		t.Fatalf("due is %q, %v", room, err)
	}
	i.done("!r", false, false, time.Second)
	i.nudge("!r")
	if due := i.rooms["!r"].due; due != now.Add(inboxShare*time.Second) {
		t.Errorf("due in %v", due.Sub(now))
	}
	i.nudge("!other")
	if len(i.rooms) != 1 {
		t.Error("a room where nothing waits is visited")
	}
}

// TestHoldersOutside: of the servers that are not in the room only one of whose user a membership is held is asked for what its event misses;
// not while it is banned, or the room's server ACL denies it.
func TestHoldersOutside(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "d")
	a, b, d := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	bob, alice := b.user("bob"), a.user("alice")
	b.join(room, bob, a)
	var membership eventgraph.EventID
	if err := a.Store.View(func(r *store.Reader) error {
		m, err := r.Member(room, bob)
		if err == nil {
			membership = m.Event
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	held := a.event(membership)
	letIn := append(held.AuthEvents(), membership)
	outside := func(from *host, auth []eventgraph.EventID) bool {
		t.Helper()
		e, err := eventgraph.Build(held.Version(), eventgraph.Draft{
			RoomID: room, Sender: from.user("bob"), Type: "m.room.message", Content: json.RawMessage(`{}`), Depth: 9,
			PrevEvents: []eventgraph.EventID{"$" + eventgraph.EventID(strings.Repeat("A", 43))}, AuthEvents: auth,
		}, from.Key)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.putInbox(t.Context(), []*store.InboxItem{{ID: e.ID(), Room: room, Origin: from.server, PDU: e.Raw()}}); err != nil {
			t.Fatal(err)
		}
		a.inbox.wake(room)
		w, err := a.loadWaiting(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		h := a.holders(w)
		if isIn := a.Rooms.InRoom(room, from.server); slices.Contains(h.room, from.server) != isIn || isIn && h.outside[from.server] {
			t.Errorf("in the room: %v, and of its holders: %+v", isIn, h)
		}
		if err := a.dropInbox(t.Context(), room, []eventgraph.EventID{e.ID()}); err != nil {
			t.Fatal(err)
		}
		return h.outside[from.server]
	}
	member := func(membership string) {
		a.setState(room, alice, "m.room.member", string(bob), `{"membership":"`+membership+`"}`)
	}
	acl := func(deny string) {
		a.setState(room, alice, "m.room.server_acl", "", `{"allow":["*"],"deny":["`+deny+`"]}`)
	}
	kick := func() { member("leave") }
	for _, c := range []struct {
		name string
		do   func()
		from *host
		auth []eventgraph.EventID
		want bool
	}{
		{"in the room", func() {}, b, letIn, false},
		{"never let in", kick, b, held.AuthEvents(), false},
		{"another's user was", func() {}, d, letIn, false},
		{"let in once", func() {}, b, letIn, true},
		{"denied by the ACL", func() { acl(string(b.server)) }, b, letIn, false},
		{"allowed again", func() { acl(string(d.server)) }, b, letIn, true},
		{"banned", func() { member("ban") }, b, letIn, false},
		{"no longer banned", kick, b, letIn, true},
	} {
		if c.do(); outside(c.from, c.auth) != c.want {
			t.Errorf("%s: it is %v that it is asked", c.name, !c.want)
		}
	}
}

// TestBehindOneOutside: what rests on events that cannot be had is asked for by its own state, of the room's servers, though a server that is not in
// the room, and gave all of it, answers nothing.
func TestBehindOneOutside(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "d")
	a, b, d := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	dora := d.user("dora")
	d.join(room, dora, a)
	state, err := a.Rooms.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	join, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(dora)})
	if err != nil {
		t.Fatal(err)
	}
	a.setState(room, a.user("alice"), "m.room.member", string(dora), `{"membership":"leave"}`)
	prev := "$" + eventgraph.EventID(strings.Repeat("A", 43))
	var given []eventgraph.EventID
	for range 2 {
		e, err := eventgraph.Build("12", eventgraph.Draft{
			RoomID: room, Sender: dora, Type: "m.room.message", Content: json.RawMessage(`{}`), Depth: 9,
			PrevEvents: []eventgraph.EventID{prev}, AuthEvents: append(join.AuthEvents(), join.ID()),
		}, d.Key)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.putInbox(t.Context(), []*store.InboxItem{{ID: e.ID(), Room: room, Origin: d.server, PDU: e.Raw()}}); err != nil {
			t.Fatal(err)
		}
		prev = e.ID()
		given = append(given, prev)
	}
	now := a.Now()
	a.inbox = newInbox(func() time.Time { return now }) // before anything that waits is visited
	a.inbox.wake(room)
	w, err := a.loadWaiting(t.Context(), room)
	if err != nil {
		t.Fatal(err)
	}
	var questions []ask
	for next, ok := a.nextQuestion(w); ok; next, ok = a.nextQuestion(w) {
		questions = append(questions, next)
		if a.inbox.ask(room, next); next.server == b.server {
			a.inbox.refuse(room, next)
		}
	}
	const none = "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	if want := []ask{
		{askMissing, d.server, given[0], ""}, {askMissing, b.server, given[0], ""},
		{askEvent, d.server, given[0], none}, {askEvent, b.server, given[0], none},
		{askState, b.server, given[0], ""}, {askState, b.server, given[1], ""},
	}; !slices.Equal(questions, want) {
		t.Errorf("asked %+v, want %+v", questions, want)
	}
}
