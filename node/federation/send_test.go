package federation

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// TestDelivery: what is said while a server is away reaches it in order and once, also over restarts of both.
func TestDelivery(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	came := b.hear("12")

	first := a.say(room, a.user("alice"), "hello")
	b.waitFor("a message to a server that is there", first)
	a.acknowledged(b, first)

	cut(n, a, b)
	a.gone(b)
	said := []eventgraph.EventID{first}
	for i := range 120 {
		said = append(said, a.say(room, a.user("alice"), fmt.Sprint(i)))
	}
	a.restart()
	mend(n, a, b)
	b.waitFor("what was said meanwhile", said...)
	a.acknowledged(b, said[120])
	a.restart()
	last := a.say(room, a.user("alice"), "after another restart")
	b.waitFor("a message after a restart", last)

	came.mu.Lock()
	defer came.mu.Unlock()
	if got := slices.DeleteFunc(slices.Clone(came.order), func(id eventgraph.EventID) bool { return !slices.Contains(said, id) }); !slices.Equal(got, said) {
		t.Errorf("%d events came in transactions, or in another order than the %d that were said", len(got), len(said))
	}
	for id, n := range came.count {
		if n != 1 {
			t.Errorf("%s came %d times", id, n)
		}
	}
	sameState(t, room, a, b)
}

// acknowledged waits until the stored cursor is past the event.
func (h *memHost) acknowledged(by *memHost, id eventgraph.EventID) {
	h.t.Helper()
	h.waitUntil("the cursor", func() bool {
		d, err := h.destination(by.server)
		return err == nil && d != nil && d.InFlight == nil && d.Sent >= h.event(id).Position
	})
}

// TestRepeatedExactly: a transaction that was not answered is repeated as it was, by another incarnation of the sender too, though more
// has been said since.
func TestRepeatedExactly(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	a.waitUntil("the join's transactions", func() bool {
		d, err := a.destination(b.server)
		return err == nil && (d == nil || d.InFlight == nil)
	})

	var mu sync.Mutex
	var seen []string
	attempts := make(chan struct{}, 100)
	refuse := true
	b.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if _, ok := transactionOf(r, body); !ok {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.RequestURI+" "+string(body))
		attempts <- struct{}{}
		if refuse {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return refuse
	})
	a.say(room, a.user("alice"), "one")
	<-attempts
	a.say(room, a.user("alice"), "two")
	a.restart()
	<-attempts
	mu.Lock()
	refuse = false
	mu.Unlock()
	a.restart()
	last := a.say(room, a.user("alice"), "three")
	b.waitFor("all", last)

	mu.Lock()
	defer mu.Unlock()
	if seen[0] != seen[1] || seen[0] != seen[2] {
		t.Errorf("repeated otherwise:\n%s\n%s\n%s", seen[0], seen[1], seen[2])
	}
	if !strings.Contains(seen[0], `"one"`) || strings.Contains(seen[0], `"two"`) {
		t.Errorf("the first is %s", seen[0])
	}
}

// TestLargeTransaction: fifty events of nearly 64 KiB are more than a transaction may be; so are queued EDUs.
func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	cut(n, a, b)
	a.gone(b)
	var said []eventgraph.EventID
	for range 30 {
		said = append(said, a.say(room, a.user("alice"), strings.Repeat("x", 60_000)))
	}
	for i := range 5 {
		a.queue(b.server, fmt.Sprintf(`{"sender":%q,"n":%d,"x":%q}`, a.user("alice"), i, strings.Repeat("y", 100_000)))
	}
	mend(n, a, b)
	b.waitFor("large events", said...)
	a.waitUntil("the queue to empty", func() bool { return len(a.outbound(b.server)) == 0 })
	if got := b.local.came("m.direct_to_device"); len(got) != 5 {
		t.Errorf("%d of 5 EDUs came", len(got))
	}
}

// TestRefusedTransactionLosesNoMessage: a server refuses each transaction with an event, and each with one message that it cannot read. The other
// messages come, in their order, and nothing waits for ever.
func TestRefusedTransactionLosesNoMessage(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New()
				hosts := newMemHosts(t, n, "a", "b")
				a, b := hosts[0], hosts[1]
				room := togetherIn(a, b)
				time.Sleep(time.Minute)
				alone(n, b, a)
				const messages, unreadable = 20, 13
				for i := range messages {
					a.queue(b.server, fmt.Sprintf(`{"sender":%q,"message_id":"%d"}`, a.user("alice"), i))
				}
				said := a.say(room, a.user("alice"), "refused")
				var tries atomic.Int32
				b.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
					sent, ok := transactionOf(r, body)
					refused := ok && (len(sent.PDUs) > 0 || strings.Contains(string(body), fmt.Sprintf(`"message_id":"%d"`, unreadable)))
					if ok {
						tries.Add(1)
					}
					if refused {
						w.WriteHeader(status)
						fmt.Fprint(w, `{"errcode":"M_UNKNOWN","error":"no"}`)
					}
					return refused
				})
				mend(n, a, b)
				time.Sleep(time.Minute)
				var want []string
				for i := range messages {
					if i != unreadable {
						want = append(want, fmt.Sprintf(`"message_id":"%d"`, i))
					}
				}
				got := b.local.came("m.direct_to_device")
				if len(got) != len(want) {
					t.Fatalf("%d of %d messages have come", len(got), len(want))
				}
				for i, part := range want {
					if !strings.Contains(got[i], part) {
						t.Errorf("the message at %d is %s, want %s", i, got[i], part)
					}
				}
				if left := a.outbound(b.server); len(left) > 0 {
					t.Errorf("%d are left in the queue", len(left))
				}
				if n := tries.Load(); n > 20 {
					t.Errorf("%d tries", n)
				}
				if !b.holds(said) {
					t.Error("the event did not come at a meeting")
				}
			})
		})
	}
}

func (h *memHost) queue(server eventgraph.ServerName, edu string) {
	h.t.Helper()
	_, err := h.Store.Update(h.t.Context(), func(tx *store.Tx) error {
		_, err := tx.PutOutbound(&store.Outbound{Server: server, Kind: "m.direct_to_device", Body: []byte(edu)})
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// came lists the contents of the EDUs of a type that came.
func (p *people) came(eduType string) (contents []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.edus {
		if content, ok := strings.CutPrefix(e, eduType+" "); ok {
			contents = append(contents, content)
		}
	}
	return contents
}

// waitUntil waits for what is not a durable change of h: it looks again and again for 20 s.
func (h *memHost) waitUntil(what string, check func() bool) {
	h.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); !check(); {
		select {
		case <-tick.C:
		case <-limit:
			h.t.Fatalf("%s: not in time", what)
		}
	}
}

func TestEDUs(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	alice := a.user("alice")
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	said := a.say(room, alice, "hello")
	b.waitFor("hello", said)

	typing := func(h *memHost) []eventgraph.UserID {
		users, _ := h.Ephemeral.Typing(room)
		return users
	}
	a.Ephemeral.SetTyping(room, alice, 20*time.Second)
	b.waitUntil("alice to type", func() bool { return slices.Contains(typing(b), alice) })
	a.Ephemeral.SetTyping(room, alice, 0)
	b.waitUntil("alice to stop typing", func() bool { return len(typing(b)) == 0 })

	a.update(func(tx *store.Tx) error {
		_, err := tx.PutReceipt(&store.Receipt{Room: room, User: alice, Type: "m.read", Event: said, TS: 7})
		return err
	})
	a.update(func(tx *store.Tx) error {
		_, err := tx.PutReceipt(&store.Receipt{Room: room, User: alice, Type: "m.read.private", Event: said, TS: 8})
		return err
	})
	a.update(func(tx *store.Tx) error {
		if err := tx.PutDevice(&store.Device{User: alice, ID: "PHONE"}); err != nil {
			return err
		}
		_, err := tx.PutDeviceKeys(alice, "PHONE", json.RawMessage(`{"algorithms":[],"device_id":"PHONE","keys":{},"signatures":{},"user_id":"`+string(alice)+`"}`))
		return err
	})
	b.waitUntil("a device list update", func() bool { return len(b.local.came("m.device_list_update")) == 1 })
	if got := b.local.came("m.receipt"); len(got) != 1 || !strings.Contains(got[0], string(said)) || strings.Contains(got[0], "private") {
		t.Errorf("receipts: %v", got)
	}

	cut(n, a, b)
	a.gone(b)
	a.queue(b.server, `{"sender":"`+string(alice)+`","message_id":"1"}`)
	a.queue(b.server, `{"sender":"@mallory:`+string(c.server)+`","message_id":"2"}`)
	a.queue(c.server, `{"sender":"`+string(alice)+`","message_id":"3"}`)
	c.waitUntil("a message to a server in no room of ours", func() bool { return len(c.local.came("m.direct_to_device")) == 1 })
	mend(n, a, b)
	b.waitUntil("a message sent while away", func() bool { return len(b.local.came("m.direct_to_device")) == 1 })
	a.waitUntil("the queue to empty", func() bool { return len(a.outbound(b.server)) == 0 })
	if got := b.local.came("m.direct_to_device"); len(got) != 1 || !strings.Contains(got[0], `"1"`) {
		t.Errorf("messages: %v, want that of the origin's own user alone", got)
	}

	// c shares no room with a: what it says of its users is not heard, and it hears nothing.
	a.Ephemeral.SetTyping(room, alice, 20*time.Second)
	b.waitUntil("alice to type again", func() bool { return slices.Contains(typing(b), alice) })
	if len(typing(c)) > 0 || len(c.local.came("m.receipt"))+len(c.local.came("m.device_list_update")) > 0 {
		t.Errorf("a server in no room was told: %v", c.local.edus)
	}
}

func (h *memHost) update(f func(tx *store.Tx) error) {
	h.t.Helper()
	if _, err := h.Store.Update(h.t.Context(), f); err != nil {
		h.t.Fatal(err)
	}
}

// TestAwayCostsNothing: for a server that is away nothing runs, whatever is said; what it is owed is found when it is met.
func TestAwayCostsNothing(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	cut(n, a, b)
	a.gone(b)
	a.stop()

	at, err := a.beginFollowing()
	if err != nil {
		t.Fatal(err)
	}
	started := map[eventgraph.ServerName]int{}
	senders := &couriers{all: map[eventgraph.ServerName]*courier{}}
	senders.run = func(c *courier) { started[c.server]++ }
	follow := func() {
		t.Helper()
		if err := a.followTo(t.Context(), &at, a.Store.Position(), senders); err != nil {
			t.Fatal(err)
		}
	}
	a.say(room, a.user("alice"), "one")
	follow()
	if len(started) != 0 || len(senders.all) != 0 {
		t.Errorf("couriers of %v began to work, %d are there", started, len(senders.all))
	}
	if d, err := a.destination(b.server); err != nil || d == nil {
		t.Errorf("the record of the server that is away: %v, %v", d, err)
	}

	a.peers.connected(b.peer)
	a.say(room, a.user("alice"), "two")
	follow()
	follow()
	a.say(room, a.user("alice"), "three")
	follow()
	if started[b.server] != 1 {
		t.Errorf("the courier of a server that is there was started %d times", started[b.server])
	}
	c := senders.of(b.server)
	if senders.rest(c) {
		t.Error("a courier rests though it was woken")
	}
	<-c.poked
	if !senders.rest(c) {
		t.Error("a courier works on though it has nothing to do")
	}
	senders.wake(c)
	if started[b.server] != 2 {
		t.Error("a courier that rested is not woken")
	}
}

// TestBatches: after an absence transactions begin small and grow with what the link carries; what is queued does not wait for the events.
func TestBatches(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	a.acknowledged(b, a.say(room, a.user("alice"), "before"))
	cut(n, a, b)
	a.gone(b)
	var said []eventgraph.EventID
	for i := range 100 {
		said = append(said, a.say(room, a.user("alice"), fmt.Sprint(i, strings.Repeat("x", 1000))))
	}
	for i := range 6 {
		a.queue(b.server, fmt.Sprintf(`{"sender":%q,"n":%d,"x":%q}`, a.user("alice"), i, strings.Repeat("y", 3000)))
	}

	type batch struct{ bytes, pdus, edus int }
	var mu sync.Mutex
	var batches []batch
	var order []eventgraph.EventID
	b.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if sent, ok := transactionOf(r, body); ok {
			mu.Lock()
			defer mu.Unlock()
			batches = append(batches, batch{len(body), len(sent.PDUs), len(sent.EDUs)})
			for _, e := range parseAll("12", sent.PDUs) {
				order = append(order, e.ID())
			}
		}
		return false
	})
	mend(n, a, b)
	b.waitFor("what was said", said...)
	a.acknowledged(b, said[len(said)-1])
	a.waitUntil("the queue to empty", func() bool { return len(a.outbound(b.server)) == 0 })

	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(order, said) {
		t.Errorf("%d events came, or in another order than the %d that were said", len(order), len(said))
	}
	most, edus := paceFirst, 0
	for i, sent := range batches {
		if sent.bytes > most {
			t.Errorf("transaction %d has %d bytes, want at most %d", i, sent.bytes, most)
		}
		most *= 2
		if i == 0 && (sent.pdus == 0 || sent.edus == 0) {
			t.Errorf("the first has %d PDUs and %d EDUs", sent.pdus, sent.edus)
		}
		if i < (len(batches)+1)/2 {
			edus += sent.edus
		}
	}
	if edus != 6 {
		t.Errorf("%d of 6 EDUs came in the first half of %v", edus, batches)
	}
}

// TestDeviceListsSupersede: of changes of one device while a server is away it is told the last, and that none is missing.
func TestDeviceListsSupersede(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	alice := a.user("alice")
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	change := func(device store.DeviceID, name string) {
		a.update(func(tx *store.Tx) error {
			if err := tx.PutDevice(&store.Device{User: alice, ID: device, DisplayName: name}); err != nil {
				return err
			}
			_, err := tx.LogDeviceList(alice, device)
			return err
		})
	}
	type update struct {
		Device store.DeviceID `json:"device_id"`
		Name   string         `json:"device_display_name"`
		Stream uint64         `json:"stream_id"`
		Prev   []uint64       `json:"prev_id"`
	}
	came := func() (all []update) {
		for _, content := range b.local.came("m.device_list_update") {
			var u update
			if err := json.Unmarshal([]byte(content), &u); err != nil {
				t.Error(err)
			}
			all = append(all, u)
		}
		return all
	}
	change("PHONE", "first")
	b.waitUntil("the first", func() bool { return len(came()) == 1 })
	cut(n, a, b)
	a.gone(b)
	for i := range 20 {
		change([]store.DeviceID{"PHONE", "TABLET", "PHONE"}[i%3], fmt.Sprint(i))
	}
	said := a.say(room, alice, "the last")
	mend(n, a, b)
	a.acknowledged(b, said)
	all := came()
	// The sender may have composed one transaction more before it knew that b is gone.
	last := len(all) - 1
	if last < 2 || last > 4 || all[last-1].Device != "PHONE" || all[last-1].Name != "18" || all[last].Device != "TABLET" || all[last].Name != "19" {
		t.Fatalf("%+v", all)
	}
	for i := range last {
		if !slices.Equal(all[i+1].Prev, []uint64{all[i].Stream}) || all[last].Stream != all[0].Stream+20 {
			t.Errorf("IDs that do not follow upon each other: %+v", all)
		}
	}
}

// TestManyRecords: the records of all servers of a large room are made, more than one write holds, and are looked for once.
func TestManyRecords(t *testing.T) {
	t.Parallel()
	a := newMemHost(t, memnet.New(), "a")
	first := map[eventgraph.ServerName]store.Position{}
	for i := range 6 * recordsAtOnce {
		first[eventgraph.ServerName(fmt.Sprintf("%062d", i))] = store.Position(i + 1)
	}
	recorded := map[eventgraph.ServerName]bool{}
	fresh, err := a.withoutRecord(recorded, first)
	if err != nil || len(fresh) != len(first) {
		t.Fatalf("%d of %d have no record, %v", len(fresh), len(first), err)
	}
	if err := a.addDestinations(t.Context(), fresh, first, 7); err != nil {
		t.Fatal(err)
	}
	for s, at := range first {
		if d, err := a.destination(s); err != nil || d == nil || d.Sent != at-1 {
			t.Fatalf("the record of %s: %+v, %v", s, d, err)
		}
	}
	if at, err := a.beginFollowing(); err != nil || at.from != 7 {
		t.Errorf("the sender's own cursor: %+v, %v", at, err)
	}
	if fresh, err = a.withoutRecord(recorded, first); err != nil || len(fresh) != 0 || len(recorded) != len(first) {
		t.Errorf("%d have no record still, %d are known to, %v", len(fresh), len(recorded), err)
	}
}

// memberOn makes a member event on the one given, with the auth events of the state after that, signed by its sender's server.
func (h *host) memberOn(parent *store.StoredEvent, key eventgraph.SigningKey, sender, of eventgraph.UserID, membership string) *eventgraph.Event {
	h.t.Helper()
	stateKey := string(of)
	d := eventgraph.Draft{
		RoomID: parent.RoomID(), Sender: sender, Type: "m.room.member", StateKey: &stateKey, Content: json.RawMessage(`{"membership":"` + membership + `"}`),
		Depth: parent.Depth() + 1, PrevEvents: []eventgraph.EventID{parent.ID()}, OriginServerTS: parent.OriginServerTS(),
	}
	state := h.Rooms.StateAt(parent.RoomID(), parent.StateAfter)
	for _, tuple := range auth.Selection(parent.Version(), d) {
		id, ok, err := state.EventID(tuple)
		if err != nil {
			h.t.Fatal(err)
		}
		if ok {
			d.AuthEvents = append(d.AuthEvents, id)
		}
	}
	e, err := eventgraph.Build(parent.Version(), d, key)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

// TestHandshakeOnOldParents: what a handshake brings is sent to who was in the room when it was taken in, whatever it is built on: not to who had
// been banned by then; and still to who was banned after, though the sender comes to it later.
func TestHandshakeOnOldParents(t *testing.T) {
	t.Parallel()
	for _, banned := range []bool{true, false} { // before the handshake
		hosts := newHosts(t, newWire(), "a", "b", "c", "d")
		a, b, c, d := hosts[0], hosts[1], hosts[2], hosts[3]
		room := a.create("12", "public", "shared")
		b.join(room, b.user("bob"), a)
		c.join(room, c.user("carol"), a)
		old := a.event(a.say(room, a.user("alice"), "all are here"))
		join := a.memberOn(old, d.Key, d.user("dora"), d.user("dora"), "join")
		ban := func() {
			a.setState(room, a.user("alice"), "m.room.member", string(b.user("bob")), `{"membership":"ban"}`)
		}
		if banned {
			ban()
		}
		if err := a.acceptOne(t.Context(), join, rooms.Basis{Kind: rooms.Parents, Origin: d.server, Announce: true}); err != nil {
			t.Fatal(err)
		}
		if !banned {
			ban()
		}
		change := store.Change{Kind: store.ChangeEvent, Room: room, Event: join.ID(), Key: store.KeyHandshake}
		for _, s := range []*host{a, b, c, d} {
			want := s == c || s == b && !banned
			concerned, pdus, news := a.givenOf(change, s.server)
			if given := slices.Contains(news, join.ID()); s == b && given != want {
				t.Errorf("b is banned before the handshake: %v; a meeting brings it what that brought: %v", banned, given)
			}
			if s != a && (slices.Contains(concerned, s.server) != want || pdus == 1 != want) {
				t.Errorf("b is banned before the handshake: %v; %s is concerned: %v, gets %d events", banned, s.server.Tail(), slices.Contains(concerned, s.server), pdus)
			}
		}
	}
}

// givenOf says whom a change concerns, with how many events the transaction begins that a server is sent for it, and what it is told of at a meeting.
func (h *host) givenOf(change store.Change, server eventgraph.ServerName) (concerned []eventgraph.ServerName, pdus int, news []eventgraph.EventID) {
	h.t.Helper()
	draft := h.draftFor(server)
	if err := h.Store.View(func(r *store.Reader) (err error) {
		if concerned, err = h.concerned(r, change); err != nil {
			return err
		}
		return h.compose(r, server, 0, h.Store.Position(), change, draft)
	}); err != nil {
		h.t.Fatal(err)
	}
	gift, err := h.newsFor(&gift{contact: contact{Server: server}}, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return concerned, len(draft.PDUs), gift.Events
}

// TestBannedBesideManyExtremities: what is said here goes to no server that is banned here by then, though there are so many forward extremities
// that it is not built on the ban.
func TestBannedBesideManyExtremities(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	alice := a.user("alice")
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	c.join(room, c.user("carol"), a)
	a.setState(room, alice, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100}}`, b.user("bob")))
	old := a.event(a.say(room, alice, "all are here"))
	take := func(e *eventgraph.Event) {
		t.Helper()
		if err := a.acceptOne(t.Context(), e, rooms.Basis{Kind: rooms.Parents, Origin: e.Sender().Server()}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 21 { // one more than an event is built on
		var seed [ed25519.SeedSize]byte
		copy(seed[:], fmt.Sprint("crowd ", i))
		private := ed25519.NewKeyFromSeed(seed[:])
		public := private.Public().(ed25519.PublicKey)
		key := eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private}
		doc, err := eventgraph.SignKeyDocument(key.Server, []eventgraph.SigningKey{key}, nil, nil, a.Now().Add(6*24*time.Hour).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Store.Update(t.Context(), func(tx *store.Tx) error { return tx.PutKeyDocument(doc) }); err != nil {
			t.Fatal(err)
		}
		user := eventgraph.UserID("@one:" + string(key.Server))
		take(a.memberOn(old, key, user, user, "join"))
	}
	ban := a.memberOn(old, b.Key, b.user("bob"), c.user("carol"), "ban")
	take(ban)
	said := a.event(a.say(room, alice, "after the ban"))
	if a.Rooms.InRoom(room, c.server) || slices.Contains(said.PrevEvents(), ban.ID()) || !a.Rooms.InRoomAt(room, said.StateBefore, c.server) {
		t.Fatal("the ban does not hold, or the message is built on it")
	}
	change := store.Change{Kind: store.ChangeEvent, Room: room, Event: said.ID()}
	for _, s := range []*host{b, c} {
		want := s == b
		concerned, pdus, news := a.givenOf(change, s.server)
		if got := slices.Contains(concerned, s.server); got != want {
			t.Errorf("%s is concerned: %v, want %v", s.server.Tail(), got, want)
		}
		if got := pdus == 1; got != want {
			t.Errorf("%s is sent the message: %v, want %v", s.server.Tail(), got, want)
		}
		if got := slices.Contains(news, said.ID()); got != want {
			t.Errorf("a meeting brings it to %s: %v, want %v", s.server.Tail(), got, want)
		}
	}
}
