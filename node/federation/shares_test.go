package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// fill reserves places of 10 bytes until there is none for the giver, and says how many.
func (i *inbox) fill(room eventgraph.RoomID, from giver) (n int) {
	for i.reserve(room, 10, from) {
		n++
	}
	return n
}

func member(name eventgraph.ServerName) giver   { return giver{server: name} }
func outsider(name eventgraph.ServerName) giver { return giver{name, true} }

// TestInboxShare: what waits in one room leaves place for others; what one server gave, in a room or in all, for others'; and what those gave that
// are not in the room, for those in it.
func TestInboxShare(t *testing.T) {
	t.Parallel()
	i := newInbox(time.Now)
	check := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	check("one alone", i.fill("!one", member("m")), maxWaiting/2)
	check("a second", i.fill("!one", member("n")), maxWaiting/4)
	check("a third", i.fill("!one", member("o")), maxWaiting/8)
	if !i.reserve("!one", maxWaitingBytes/2, member("a")) || i.reserve("!one", maxWaitingBytes/2, member("a")) {
		t.Error("the bytes of a fourth")
	}
	i.release("!one", loads{each: map[eventgraph.ServerName]load{"m": {maxWaiting / 2, 5 * maxWaiting}}}, func(eventgraph.ServerName) bool { return true })
	if n := i.fill("!one", member("m")); n < maxWaiting/4 {
		t.Errorf("place for %d when what was given has been taken in", n)
	}

	all := 0
	for room := range 50 {
		all += i.fill(eventgraph.RoomID(fmt.Sprint("!of m", room)), member("m"))
	}
	if most := store.InboxMaxItems / 2; all < most/2 || all > most {
		t.Errorf("one server fills %d places of all rooms", all)
	}
	for room := range 5 {
		if n := i.fill(eventgraph.RoomID(fmt.Sprint("!of m", room)), member("a")); n < maxWaiting/10 {
			t.Errorf("it leaves another %d places in room %d", n, room)
		}
	}
	i.counted("!one", newLoads(), load{})
	for room := range 50 {
		i.counted(eventgraph.RoomID(fmt.Sprint("!of m", room)), newLoads(), load{})
	}
	check("waits when all were taken in", i.waits.all.items+len(i.waits.each), 0)
	check("one alone, after that", i.fill("!one", member("m")), maxWaiting/2)

	const one = maxWaiting / outsideOnePart
	for _, s := range []eventgraph.ServerName{"p", "q", "r", "s"} {
		check("one that is not in the room", i.fill("!three", outsider(s)), one)
	}
	check("all that are not in the room have had their share", i.fill("!three", outsider("t")), 0)
	if !i.reserve("!three", 10, member("t")) {
		t.Error("those in the room have no place left")
	}
	counted := newLoads()
	counted.add("p", load{one, 0})
	counted.add("q", load{one - 1, 0})
	i.counted("!three", counted, counted.all)
	if i.reserve("!three", 10, outsider("p")) || !i.reserve("!three", 10, outsider("q")) || i.reserve("!three", 10, outsider("q")) || !i.reserve("!three", 10, outsider("r")) {
		t.Error("what is counted of each is not what it may add to")
	}
	if i.reserve("!four", maxWaitingBytes/outsideOnePart+1, outsider("p")) || !i.reserve("!four", maxWaitingBytes/outsideOnePart, outsider("p")) {
		t.Error("nor of their own bytes")
	}
}

// answerTo gives events to another server in a transaction with a message to a device, and returns the answer.
func (h *memHost) answerTo(to *memHost, id string, events ...*eventgraph.Event) (answer sendAnswer, err error) {
	h.t.Helper()
	if _, err := h.identify(h.t.Context(), to.peer); err != nil {
		h.t.Fatal(err)
	}
	t := transaction{Origin: h.server, EDUs: []edu{{Type: "m.direct_to_device", Content: json.RawMessage(fmt.Sprintf(`{"sender":%q}`, h.user("alice")))}}}
	for _, e := range events {
		t.PDUs = append(t.PDUs, e.Raw())
	}
	return answer, h.do(h.t.Context(), to.server, http.MethodPut, target(v1+"send", []string{id}, nil), t, &answer)
}

// TestNoPlaceInTheInbox: what has no place is to be sent again, with all that came with it; what came with it and need not wait is taken in at once. After a while
// the event is refused by name, so that it does not hold up all that its server sends; later it is to be sent again.
func TestNoPlaceInTheInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, room := giverAndTaker(t)
		b.stop()
		b.inbox.fill(room, member(a.server))
		here := a.event(a.say(room, a.user("alice"), "here"))
		orphan := a.orphan(room, a.user("alice"), 1)
		sent := 0
		send := func() (sendAnswer, error) {
			t.Helper()
			sent++
			before := len(b.local.edus)
			answer, err := a.answerTo(b, fmt.Sprint(sent), orphan, here.Event)
			if came := len(b.local.edus) > before; came != (err == nil) {
				t.Errorf("the answer is %v, and that the message to a device is here is %v", err, came)
			}
			return answer, err
		}
		postponed := func() {
			t.Helper()
			_, err := send()
			var remote *remoteError
			if !errors.As(err, &remote) || remote.Status != http.StatusServiceUnavailable || remote.RetryAfter != inboxFullRetry || remote.Refusal.Code != "M_LIMIT_EXCEEDED" {
				t.Errorf("answer %v, want 503 and a retry time", err)
			}
		}
		postponed()
		if !b.holds(here.ID()) {
			t.Error("what need not wait is not taken in")
		}
		time.Sleep(fullPatience - time.Minute)
		postponed()
		time.Sleep(time.Minute)
		for range 2 {
			if answer, err := send(); err != nil || answer.PDUs[orphan.ID()].Error == "" || answer.PDUs[here.ID()].Error != "" || b.waits(room) > 0 {
				t.Errorf("later: %+v, %v", answer, err)
			}
			time.Sleep(fullRefusal - 2*time.Second)
		}
		postponed()
		b.inbox.counted(room, newLoads(), load{})
		if answer, err := send(); err != nil || answer.PDUs[orphan.ID()].Error != "" || b.waits(room) != 1 {
			t.Errorf("when there is place: %+v, %v", answer, err)
		}
	})
}

// TestWaitingEventIsCountedOnce: one that waits already takes no further place, however often and from whomever it comes.
func TestWaitingEventIsCountedOnce(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	orphan := a.orphan(room, a.user("alice"), 1)
	for range 3 {
		for _, from := range []eventgraph.ServerName{a.server, b.server} {
			if refused, err := b.takeIn(t.Context(), room, []*eventgraph.Event{orphan, orphan}, from); err != nil || len(refused) > 0 {
				t.Fatalf("%v, %v", refused, err)
			}
		}
	}
	if n := b.inbox.waits.all; n.items != 1 || b.waits(room) != 1 {
		t.Errorf("%d wait, and %d are counted", b.waits(room), n.items)
	}
	b.inbox.fill(room, member(a.server))
	if refused, err := b.takeIn(t.Context(), room, []*eventgraph.Event{orphan}, a.server); err != nil || len(refused) > 0 {
		t.Errorf("what waits is refused when there is no more place: %v, %v", refused, err)
	}
}

// TestOwnEventTakesItsPlaceAnew: a server's event that another gave before waits among its own when it gives it itself, as it gives it.
func TestOwnEventTakesItsPlaceAnew(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	orphan := a.orphan(room, a.user("alice"), 1)
	if err := b.putInbox(t.Context(), []*store.InboxItem{{ID: orphan.ID(), Room: room, Origin: "m", PDU: []byte(`{"forged":true}`)}}); err != nil {
		t.Fatal(err)
	}
	b.inbox.reserve(room, 15, member("m"))
	for _, from := range []eventgraph.ServerName{"n", a.server, "n", "m"} {
		if refused, err := b.takeIn(t.Context(), room, []*eventgraph.Event{orphan}, from); err != nil || len(refused) > 0 {
			t.Fatalf("%v, %v", refused, err)
		}
	}
	if err := b.Store.View(func(r *store.Reader) error {
		item, err := r.InboxItem(room, orphan.ID())
		if err == nil && (item.Origin != a.server || string(item.PDU) != string(orphan.Raw())) {
			t.Errorf("there waits what %s gave: %s", item.Origin, item.PDU)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if w := b.inbox.waits; w.all != w.each[a.server] || w.all.items != 1 || b.waits(room) != 1 {
		t.Errorf("counted are %+v", w)
	}
}

// TestReleaseAfterTheLastVisit: a place that was reserved is given back after a visit that found nothing has forgotten the room.
func TestReleaseAfterTheLastVisit(t *testing.T) {
	i := newInbox(time.Now)
	i.wake("!r")
	room, _, _ := i.due()
	if !i.reservePatiently(room, 10, giver{server: "a"}, 0) {
		t.Fatal("no place")
	}
	i.done(room, true, true, 0)
	gone := newLoads()
	gone.add("b", load{1, 10})
	i.release(room, gone, func(eventgraph.ServerName) bool { return true })
	if !i.isEmpty() {
		t.Error("something waits")
	}
}
