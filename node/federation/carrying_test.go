package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// encrypted is an EDU of the host's alice that may be carried.
func (h *memHost) encrypted(id string) string {
	return fmt.Sprintf(`{"sender":%q,"type":"m.room.encrypted","message_id":%q,"messages":{}}`, h.user("alice"), id)
}

// carries counts what the host keeps for another.
func (h *memHost) carries(destination *memHost) (n int) {
	h.t.Helper()
	err := h.Store.View(func(r *store.Reader) error {
		return r.Carried(destination.server, func(*store.Carried) (bool, error) { n++; return true, nil })
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// togetherIn makes a room of the first host's that all are in.
func togetherIn(hosts ...*memHost) eventgraph.RoomID {
	first := hosts[0]
	room := first.create("12", "public", "shared")
	for _, h := range hosts[1:] {
		h.join(room, h.user("alice"), first.host)
	}
	for _, h := range hosts {
		h.waitUntil("all to be in the room", func() bool {
			for _, other := range hosts {
				if !h.Rooms.InRoom(room, other.server) {
					return false
				}
			}
			return true
		})
	}
	return room
}

// alone cuts a host off from all others.
func alone(n *memnet.Network, h *memHost, others ...*memHost) {
	for _, other := range others {
		cut(n, h, other)
	}
	for _, other := range others {
		h.gone(other)
		other.gone(h)
	}
}

// TestMessagesAreCarried: what is encrypted for a server that is away goes to at most three others, over a restart of theirs, and reaches it when it meets one; what is not
// encrypted, or for a server with which the carrier shares no room, waits for the origin.
func TestMessagesAreCarried(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "carry a", "carry b", "carry c", "carry d", "carry e", "carry f")
	a, b, c := hosts[0], hosts[1], hosts[2]
	togetherIn(hosts...)
	alone(n, b, a, c, hosts[3], hosts[4], hosts[5])
	a.queue(b.server, a.encrypted("one"))
	a.queue(b.server, fmt.Sprintf(`{"sender":%q,"type":"m.key.verification.request","message_id":"plain"}`, a.user("alice")))
	a.queue(b.server, a.encrypted("two"))
	carriers := func() (all []*memHost) {
		for _, h := range hosts[2:] {
			if h.carries(b) > 0 {
				all = append(all, h)
			}
		}
		return all
	}
	a.waitUntil("three carriers", func() bool {
		queued := a.outbound(b.server)
		return len(queued[0].Carriers) >= maxCarriers && len(queued[2].Carriers) >= maxCarriers
	})
	for i, o := range a.outbound(b.server) {
		if len(o.Carriers) > maxCarriers {
			t.Errorf("%d keep item %d", len(o.Carriers), i)
		}
	}
	if got := len(carriers()); got != maxCarriers {
		t.Fatalf("%d carry", got)
	}
	for _, o := range a.outbound(b.server)[1:2] {
		if len(o.Carriers) > 0 {
			t.Errorf("%s is carried", o.Body)
		}
	}

	// a goes, a carrier forgets all but its store, and b comes.
	alone(n, a, hosts[2:]...)
	carrier := carriers()[0]
	carrier.restart()
	for _, h := range hosts[2:] {
		if h != carrier {
			cut(n, h, carrier)
		}
	}
	mend(n, b, carrier)
	b.waitUntil("what was carried", func() bool { return len(b.local.came("m.direct_to_device")) == 2 })
	for i, id := range []string{"one", "two"} {
		if got := b.local.came("m.direct_to_device")[i]; !strings.Contains(got, id) {
			t.Errorf("the message at %d is %s", i, got)
		}
	}
	carrier.waitUntil("the carrier to forget it", func() bool { return carrier.carries(b) == 0 })
	if got := len(a.outbound(b.server)); got != 3 {
		t.Errorf("%d are left in the origin's outbox", got)
	}
	mend(n, a, b)
	a.waitUntil("the origin to deliver all", func() bool { return len(a.outbound(b.server)) == 0 })
	if got := len(b.local.came("m.direct_to_device")); got != 5 {
		t.Errorf("%d came, of two twice", got)
	}
}

// TestNoMoreCarriersThanMayBe: many contacts that are asked at the same time to keep the same items keep each of them maxCarriers times, not more.
func TestNoMoreCarriersThanMayBe(t *testing.T) {
	t.Parallel()
	a := newMemHost(t, memnet.New(), "most a")
	server, _, _, _ := newKeys("most b")
	const items, contacts = 300, 12
	for i := range items {
		a.queue(server, a.encrypted(fmt.Sprint(i)))
	}
	k := newCarrying(a.Federation)
	var mu sync.Mutex
	withdrawn := make(chan struct{}) // closed and replaced each time
	next := func() chan struct{} { mu.Lock(); defer mu.Unlock(); return withdrawn }
	var group errgroup.Group
	for i := range contacts {
		by, _, _, _ := newKeys(fmt.Sprint("most ", i))
		group.Go(func() error {
			for after := uint64(0); ; {
				news := next()
				batch, upTo, later, err := k.toHandOn(by, server, after, true)
				if err != nil {
					return err
				}
				_, err = a.Store.Update(t.Context(), func(tx *store.Tx) error {
					for _, o := range batch {
						if err := tx.AddCarrier(server, o.Seq, by); err != nil {
							return err
						}
					}
					return nil
				})
				k.withdraw(by, server, batch)
				after = upTo
				if len(batch) > 0 {
					mu.Lock()
					close(withdrawn)
					withdrawn = make(chan struct{})
					mu.Unlock()
				}
				if err != nil || len(batch) == 0 && !later {
					return err
				}
				if len(batch) == 0 {
					<-news
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, o := range a.outbound(server) {
		if len(o.Carriers) != maxCarriers {
			t.Errorf("%d keep item %d", len(o.Carriers), i)
		}
	}
}

// bundle is one of the user's, signed by h at that time.
func (h *memHost) bundle(user eventgraph.UserID, text string, at time.Time) json.RawMessage {
	h.t.Helper()
	object, err := marshal(signedBundle{User: user, TS: at.UnixMilli(), Bundle: json.RawMessage(fmt.Sprintf(`{"of":%q,"text":%q}`, user, text))})
	if err != nil {
		h.t.Fatal(err)
	}
	raw, err := eventgraph.SignJSON(object, h.Key)
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

// TestKeysComeWithCarriedMessages: the sender's newest keys go with the message to the carrier, and with it, or before it, to the destination. They are asked for
// only where they are news, and count only if the sender's server has signed them.
func TestKeysComeWithCarriedMessages(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "keyed a", "keyed b", "keyed c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	alice := a.user("alice")
	togetherIn(a, b, c)
	a.hasKeys("alice", "one")
	for _, h := range hosts[1:] {
		h.waitUntil("alice's keys", func() bool { return h.handed(alice) == "one" })
	}
	alone(n, b, a, c)
	a.hasKeys("alice", "two")
	a.queue(b.server, a.encrypted("from a new device"))
	c.waitUntil("the message", func() bool { return c.carries(b) == 1 })
	if got := c.handed(alice); got != "two" {
		t.Errorf("when the message was there, its carrier had %q of its sender", got)
	}
	alone(n, a, c)
	mend(n, b, c)
	b.waitUntil("the message", func() bool { return len(b.local.came("m.direct_to_device")) == 1 })
	if got := b.handed(alice); got != "two" {
		t.Errorf("when the message was there, its destination had %q of its sender", got)
	}

	// c says what it likes of alice's keys, and of others'.
	now := time.Now()
	wanted := 0
	give := func(user eventgraph.UserID, text string, at time.Time, bundle json.RawMessage) {
		t.Helper()
		before := len(b.local.came("m.direct_to_device"))
		id := fmt.Sprint("message ", before)
		m := &carryMessage{
			Give:  []json.RawMessage{a.message(b, func(m *carriedMessage) { m.Content = json.RawMessage(a.encrypted(id)) })},
			Users: map[eventgraph.UserID]offeredBundle{user: {Digest: digestOf([]byte(fmt.Sprintf(`{"of":%q,"text":%q}`, user, text))), TS: at.UnixMilli()}},
		}
		wanted = 0
		done, err := c.tellWith(b, m, func(eventgraph.UserID) (json.RawMessage, error) { wanted++; return bundle, nil })
		if !done || err != nil || len(b.local.came("m.direct_to_device")) != before+1 {
			t.Errorf("the message: done %t, %v", done, err)
		}
	}
	for what, bundle := range map[string]json.RawMessage{
		"signed by the carrier":                  c.bundle(alice, "three", now.Add(time.Minute)),
		"of another user than the sender":        a.bundle(a.user("alf"), "three", now.Add(time.Minute)),
		"older than what is held":                a.bundle(alice, "three", now.Add(-time.Hour)),
		"no bundle":                              json.RawMessage(`{}`),
		"signed when the key will be out of use": a.bundle(alice, "three", now.Add(1000*time.Hour)),
	} {
		give(alice, "three", now.Add(time.Minute), bundle)
		if wanted != 1 || b.handed(alice) != "two" || b.handed(a.user("alf")) != "" {
			t.Errorf("%s: %d asked for, and now %q is held", what, wanted, b.handed(alice))
		}
	}
	for what, f := range map[string]func(){
		"the same":         func() { give(alice, "two", now.Add(time.Minute), nil) },
		"an older one":     func() { give(alice, "three", now.Add(-time.Hour), nil) },
		"one of no sender": func() { give(a.user("alf"), "three", now.Add(time.Minute), nil) },
	} {
		if f(); wanted != 0 {
			t.Errorf("%s is asked for", what)
		}
	}
	give(alice, "three", now.Add(time.Minute), a.bundle(alice, "three", now.Add(time.Minute)))
	if wanted != 1 || b.handed(alice) != "three" {
		t.Errorf("a right one: %d asked for, and now %q is held", wanted, b.handed(alice))
	}
}

// TestKeysAreNotCarriedToOthers: a carrier is given the keys of a sender who is in a room with it, of others the message alone.
func TestKeysAreNotCarriedToOthers(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "unkeyed a", "unkeyed b", "unkeyed c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	togetherIn(a, b, c)
	a.hasKeys("alf", "one")
	alone(n, b, a, c)
	a.queue(b.server, strings.Replace(a.encrypted("of alf"), "@alice:", "@alf:", 1))
	c.waitUntil("the message", func() bool { return c.carries(b) == 1 })
	if got := c.handed(a.user("alf")); got != "" {
		t.Errorf("it has %q of him", got)
	}
}

// message is one as the host signs it, after change.
func (h *memHost) message(to *memHost, change func(*carriedMessage)) json.RawMessage {
	h.t.Helper()
	m := &carriedMessage{Origin: h.server, Destination: to.server, TS: time.Now().UnixMilli(), Type: "m.direct_to_device",
		Content: json.RawMessage(h.encrypted("an id"))}
	if change != nil {
		change(m)
	}
	object, err := marshal(m)
	if err != nil {
		h.t.Fatal(err)
	}
	raw, err := eventgraph.SignJSON(object, h.Key)
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

// tell sends a message of the protocol and says whether all of it is done with.
func (h *memHost) tell(to *memHost, m *carryMessage) (done bool, err error) {
	return h.tellWith(to, m, nil)
}

// tellWith is tell, with bundles for those users whom m names.
func (h *memHost) tellWith(to *memHost, m *carryMessage, bundle func(eventgraph.UserID) (json.RawMessage, error)) (done bool, err error) {
	h.t.Helper()
	got, err := newCarrying(h.Federation).ask(h.t.Context(), contact{Server: to.server, Peer: to.peer}, nil, m, bundle)
	return err == nil && len(got) == len(m.Keep)+len(m.Give), err
}

// TestCarryRefused: nothing is carried for a stranger, nor what is not the origin's, not for a third server in a room with us, not signed, or not encrypted;
// and nothing is taken that its origin has not signed for us.
func TestCarryRefused(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "refused a", "refused b", "refused c", "refused stranger")
	a, b, c, stranger := hosts[0], hosts[1], hosts[2], hosts[3]
	room := togetherIn(a, b, c)
	alone(n, b, a, c, stranger)

	changed := func(raw json.RawMessage, from, to string) json.RawMessage {
		s := strings.Replace(string(raw), from, to, 1)
		if s == string(raw) {
			t.Fatalf("%s is not in it", from)
		}
		return json.RawMessage(s)
	}
	if _, err := stranger.tell(c, &carryMessage{Keep: []json.RawMessage{stranger.message(b, nil)}}); err == nil {
		t.Error("a stranger is answered")
	}
	for what, raw := range map[string]json.RawMessage{
		"changed":                 changed(a.message(b, nil), "an id", "other"),
		"of another origin":       b.message(b, func(m *carriedMessage) { m.Destination = a.server }),
		"for the origin itself":   a.message(a, nil),
		"for the carrier":         a.message(c, nil),
		"for a stranger":          a.message(stranger, nil),
		"for a name that is none": a.message(b, func(m *carriedMessage) { m.Destination = "nobody" }),
		"of another's user":       a.message(b, func(m *carriedMessage) { m.Content = json.RawMessage(b.encrypted("x")) }),
		"not encrypted":           a.message(b, func(m *carriedMessage) { m.Content = json.RawMessage(changed(m.Content, "m.room.encrypted", "m.x")) }),
		"another EDU":             a.message(b, func(m *carriedMessage) { m.Type = "m.receipt" }),
		"too old":                 a.message(b, func(m *carriedMessage) { m.TS -= (carryFor + time.Minute).Milliseconds() }),
		"too new":                 a.message(b, func(m *carriedMessage) { m.TS += carryFor.Milliseconds() }),
		"without ID":              a.message(b, func(m *carriedMessage) { m.Content = json.RawMessage(a.encrypted("")) }),
		"too large": a.message(b, func(m *carriedMessage) {
			m.Content = json.RawMessage(a.encrypted(strings.Repeat("x", maxCarriedMessage)))
		}),
		"with a long ID":               a.message(b, func(m *carriedMessage) { m.Content = json.RawMessage(a.encrypted(strings.Repeat("x", maxCarriedID+1))) }),
		"no message":                   json.RawMessage(`{}`),
		"no message, but a signed one": json.RawMessage(`[]`),
	} {
		if done, err := a.tell(c, &carryMessage{Keep: []json.RawMessage{raw}}); done || err != nil {
			t.Errorf("%s: kept %t, %v", what, done, err)
		}
	}
	if c.carries(b) > 0 {
		t.Error("something is carried")
	}
	many := &carryMessage{}
	for range maxCarriedAtOnce + 1 {
		many.Keep = append(many.Keep, json.RawMessage(`{}`))
	}
	if _, err := a.tell(c, many); err == nil {
		t.Error("too many at once are answered")
	}

	// To the destination: a may say what it likes, but the message must be one that its origin has signed for c.
	for what, raw := range map[string]json.RawMessage{
		"forged":             changed(b.message(c, nil), "an id", "other"),
		"signed by another":  changed(a.message(c, func(m *carriedMessage) { m.Content = json.RawMessage(b.encrypted("x")) }), `"origin":"`+string(a.server), `"origin":"`+string(b.server)),
		"for another":        b.message(a, nil),
		"of ourselves":       c.message(c, nil),
		"very old":           b.message(c, func(m *carriedMessage) { m.TS -= (carryFor + 2*carrySkew).Milliseconds() }),
		"not of its users'":  b.message(c, func(m *carriedMessage) { m.Content = json.RawMessage(a.encrypted("x")) }),
		"nothing":            json.RawMessage(`{}`),
		"of another type":    b.message(c, func(m *carriedMessage) { m.Type = "m.device_list_update" }),
		"unencrypted, in it": b.message(c, func(m *carriedMessage) { m.Content = json.RawMessage(changed(m.Content, "m.room.encrypted", "m.x")) }),
	} {
		if done, err := a.tell(c, &carryMessage{Give: []json.RawMessage{raw}}); !done || err != nil {
			t.Errorf("%s: done %t, %v", what, done, err)
		}
		if got := c.local.came("m.direct_to_device"); len(got) > 0 {
			t.Errorf("%s: it was taken", what)
		}
	}
	if done, err := a.tell(c, &carryMessage{Give: []json.RawMessage{stranger.message(c, nil)}}); done || err != nil || len(c.local.came("m.direct_to_device")) > 0 {
		t.Errorf("of one that is in no room with it yet: done %t, %v", done, err)
	}
	if done, err := a.tell(c, &carryMessage{Give: []json.RawMessage{b.message(c, nil)}}); !done || err != nil || len(c.local.came("m.direct_to_device")) != 1 {
		t.Errorf("a right one: done %t, %v", done, err)
	}
	if _, err := stranger.tell(c, &carryMessage{Give: []json.RawMessage{b.message(c, nil)}}); err == nil {
		t.Error("a stranger may give")
	}

	// Who is blocked or in no room any more is not carried for, nor is what was taken before.
	if done, err := a.tell(c, &carryMessage{Keep: []json.RawMessage{a.message(b, nil)}}); !done || err != nil || c.carries(b) != 1 {
		t.Fatalf("a right one: kept %t, %v", done, err)
	}
	if err := c.Block(t.Context(), b.server); err != nil {
		t.Fatal(err)
	}
	if batch, err := c.carriedFor(b.server, nil); err != nil || len(batch) > 0 {
		t.Errorf("for a blocked server: %d, %v", len(batch), err)
	}
	if err := c.Unblock(t.Context(), b.server); err != nil {
		t.Fatal(err)
	}
	if batch, err := c.carriedFor(b.server, nil); err != nil || len(batch) != 1 {
		t.Fatalf("again: %d, %v", len(batch), err)
	}
	a.setState(room, a.user("alice"), "m.room.member", string(b.user("alice")), `{"membership":"ban"}`)
	c.waitUntil("the ban", func() bool { return !c.Rooms.InRoom(room, b.server) })
	if batch, err := c.carriedFor(b.server, nil); err != nil || len(batch) > 0 {
		t.Errorf("for a banned server: %d, %v", len(batch), err)
	}
	if done, err := a.tell(c, &carryMessage{Keep: []json.RawMessage{a.message(b, nil)}}); done || err != nil {
		t.Errorf("for a banned server: kept %t, %v", done, err)
	}
	if err := c.sweepKept(t.Context()); err != nil || c.carries(b) != 0 {
		t.Errorf("%v; %d are left", err, c.carries(b))
	}
}

// TestCarryHoldsUpNobody: a message that its destination cannot prove yet waits without those of other origins, and a server for which a carrier keeps
// nothing without those for others.
func TestCarryHoldsUpNobody(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "held a", "held b", "held c", "held d")
	a, b, c, d := hosts[0], hosts[1], hosts[2], hosts[3]
	togetherIn(hosts...)
	alone(n, b, a, c, d)
	alone(n, d, a, c)
	blocked, other := b, d // a looks at those who are away by name
	if d.server < b.server {
		blocked, other = d, b
	}
	if err := c.Block(t.Context(), blocked.server); err != nil {
		t.Fatal(err)
	}
	for _, to := range []*memHost{blocked, other} {
		a.queue(to.server, a.encrypted("while one is blocked"))
	}
	c.waitUntil("the message for the other", func() bool { return c.carries(other) == 1 })
	if got := c.carries(blocked); got != 0 {
		t.Errorf("%d are kept for who is blocked", got)
	}
	if err := c.Unblock(t.Context(), blocked.server); err != nil {
		t.Fatal(err)
	}
	k := newCarrying(c.Federation)
	c.update(func(tx *store.Tx) error { // of a and d, whose messages cannot be proven, or not be read
		for i, origin := range []*memHost{a, d} {
			for j := range maxCarriedAtOnce + 1 {
				raw := origin.message(b, func(m *carriedMessage) { m.Content = json.RawMessage(origin.encrypted(fmt.Sprint("id ", j))) })
				if i == 0 {
					raw = origin.message(b, func(m *carriedMessage) { m.TS += carryFor.Milliseconds() }) // by a key not known for then
				}
				err := tx.PutCarried(&store.Carried{Destination: b.server, Origin: origin.server, TS: time.Now().UnixMilli(), MessageID: fmt.Sprint(j),
					Received: time.Now().UnixMilli(), Signed: raw})
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	mend(n, b, c)
	c.waitUntil("b", func() bool { return c.IsConnected(b.server) })
	if err := k.giveAll(t.Context(), contact{Server: b.server, Peer: b.peer}); err != nil && !errors.Is(err, errNotTaken) {
		t.Fatal(err)
	}
	b.waitUntil("those that can be proven", func() bool {
		n := 0
		for _, content := range b.local.came("m.direct_to_device") {
			if strings.Contains(content, string(d.user("alice"))) {
				n++
			}
		}
		return n >= maxCarriedAtOnce+1
	})
}

// TestCarriedBeforeTheOriginsJoin: a joins b's room through c while b is away, and writes to b. Over a link of 16 kbit/s and 2 s what c carries comes before
// what tells b that a is there; c keeps it until b knows.
func TestCarriedBeforeTheOriginsJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		hosts := newMemHosts(t, n, "early a", "early b", "early c")
		a, b, c := hosts[0], hosts[1], hosts[2]
		room := togetherIn(c, b)
		alone(n, b, a, c)
		for i := range 100 { // they come before the join
			c.say(room, c.user("alice"), fmt.Sprint("while b is away ", i))
		}
		a.join(room, a.user("alice"), c.host)
		a.queue(b.server, a.encrypted("of a new member"))
		c.waitUntil("the message to carry", func() bool { return c.carries(b) == 1 })
		alone(n, a, c)
		n.SetLink(p2ptransport.PeerID(b.peer), p2ptransport.PeerID(c.peer), memnet.Link{Delay: 2 * time.Second, Rate: 2000})
		mend(n, b, c)
		time.Sleep(15 * time.Second)
		if b.Rooms.InRoom(room, a.server) {
			t.Fatal("b knows of the join too early for this test to show anything")
		}
		if got := c.carries(b); got != 1 {
			t.Errorf("c carries %d messages that b could not take", got)
		}
		time.Sleep(2 * carrySeldom)
		if got := b.local.came("m.direct_to_device"); len(got) != 1 || c.carries(b) != 0 {
			t.Errorf("%d messages have come to b, and c carries %d", len(got), c.carries(b))
		}
	})
}

// TestQueueWithoutCanonicalForm: what can never be signed goes from the queue and from the transaction that was made of it, and the rest is sent.
func TestQueueWithoutCanonicalForm(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "formless a", "formless b")
	a, b := hosts[0], hosts[1]
	togetherIn(a, b)
	alone(n, a, b)
	bad := fmt.Sprintf(`{"sender":%q,"type":"m.test","message_id":"bad","x":1,"x":2}`, a.user("alice"))
	a.queue(b.server, bad)
	a.queue(b.server, a.encrypted("good"))
	a.stop()
	a.update(func(tx *store.Tx) error {
		d := &store.Destination{Server: b.server, Sent: a.Store.Position()}
		d.InFlight = &store.Transaction{ID: "blocked", Body: []byte(`{"edus":[{"edu_type":"m.direct_to_device","content":` + bad + `}]}`),
			UpTo: d.Sent, Queue: []uint64{a.outbound(b.server)[0].Seq}}
		return tx.PutDestination(d)
	})
	a.start()
	mend(n, a, b)
	a.waitUntil("the queue to empty", func() bool { return len(a.outbound(b.server)) == 0 })
	if got := b.local.came("m.direct_to_device"); len(got) != 1 || !strings.Contains(got[0], "good") {
		t.Errorf("%q came", got)
	}
}

// TestMessagesCarriedTooLong: after carryFor nothing is given, and it is removed; and an origin cannot fill a carrier.
func TestMessagesCarriedTooLong(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "long a", "long b", "long c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	togetherIn(a, b, c)
	alone(n, b, a, c)
	now := time.Now()
	c.update(func(tx *store.Tx) error {
		for i, at := range []struct{ signed, received time.Time }{
			{now, now.Add(-carryFor - time.Hour)},
			{now, now.Add(-carryFor + time.Hour)},
			{now.Add(-carryFor - carrySkew - time.Hour), now.Add(time.Hour)}, // the clock was ahead
		} {
			err := tx.PutCarried(&store.Carried{Destination: b.server, Origin: a.server, TS: at.signed.UnixMilli(), MessageID: fmt.Sprint(i),
				Received: at.received.UnixMilli(), Signed: a.message(b, nil)})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if batch, err := c.carriedFor(b.server, nil); err != nil || len(batch) != 1 {
		t.Errorf("%d, %v", len(batch), err)
	}
	if err := c.sweepKept(t.Context()); err != nil || c.carries(b) != 1 {
		t.Errorf("%v, %d are left", err, c.carries(b))
	}

	most := store.MaxCarriedBytes / (64 << 10)
	filler := fmt.Sprintf(`,"y":%q}`, strings.Repeat("y", 64<<10))
	for i := 0; ; i++ {
		raw := a.message(b, func(m *carriedMessage) {
			m.TS += int64(i)
			m.Content = json.RawMessage(strings.TrimSuffix(a.encrypted("x"), "}") + filler)
		})
		done, err := a.tell(c, &carryMessage{Keep: []json.RawMessage{raw}})
		if err != nil {
			t.Fatal(err)
		}
		if !done {
			break
		}
		if i > most {
			t.Fatalf("%d are kept for one origin", c.carries(b))
		}
	}
	if c.carries(b) < most/2 {
		t.Errorf("only %d are kept", c.carries(b))
	}
}
