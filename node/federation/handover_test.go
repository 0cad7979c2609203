package federation

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// hasKeys gives a local user a bundle with that text.
func (h *memHost) hasKeys(user, text string) {
	h.t.Helper()
	h.local.mu.Lock()
	if h.local.bundles == nil {
		h.local.bundles = map[eventgraph.UserID]string{}
	}
	h.local.bundles[h.user(user)] = text
	h.local.mu.Unlock()
	h.update(func(tx *store.Tx) error {
		if err := tx.PutAccount(&store.Account{User: h.user(user)}); err != nil {
			return err
		}
		_, err := tx.LogDeviceList(h.user(user), "")
		return err
	})
}

// handed is the text of the bundle that h has of a user; "" if none.
func (h *memHost) handed(user eventgraph.UserID) string {
	var b struct{ Text string }
	h.Store.View(func(r *store.Reader) error {
		held, err := r.HandedKeys(user)
		if err == nil {
			err = json.Unmarshal(held.Bundle, &b)
		}
		return err
	})
	return b.Text
}

// handOver hands over to a host by itself, and counts the bytes both ways.
func (h *memHost) handOver(to *memHost) (bytes int64, err error) {
	h.t.Helper()
	o := newHandover(h.Federation)
	if err := o.refresh(); err != nil {
		h.t.Fatal(err)
	}
	digests, err := o.digestsFor(to.server, o.now)
	if err != nil {
		h.t.Fatal(err)
	}
	var in, out atomic.Int64
	g := func(_ eventgraph.PeerID, s io.ReadWriteCloser) io.ReadWriteCloser { return counted{s, &in, &out} }
	h.streams.f.Store(&g)
	defer h.streams.f.Store(nil)
	err = o.give(h.t.Context(), contact{Server: to.server, Peer: to.peer}, o.now, digests, sumOf(digests))
	return in.Load() + out.Load(), err
}

// TestHandover: who shares a room is handed the keys of the users in it, when it is met and when they change, and of no others; a stranger none.
func TestHandover(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "hand a", "hand b", "hand stranger")
	a, b, stranger := hosts[0], hosts[1], hosts[2]
	a.hasKeys("alice", "one")
	a.hasKeys("alone", "one")
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	b.waitUntil("alice's keys", func() bool { return b.handed(a.user("alice")) == "one" })
	if got := b.handed(a.user("alone")); got != "" {
		t.Errorf("keys of a user in no shared room: %q", got)
	}
	a.hasKeys("alice", "two")
	b.waitUntil("alice's new keys", func() bool { return b.handed(a.user("alice")) == "two" })
	if _, err := a.handOver(stranger); err == nil {
		t.Error("a stranger is given something")
	}
	if got := stranger.handed(a.user("alice")); got != "" {
		t.Errorf("a stranger has %q", got)
	}

	// What nobody needs any more goes.
	a.hasKeys("alice", "")
	b.hasKeys("bob", "one")
	a.waitUntil("bob's keys", func() bool { return a.handed(b.user("bob")) == "one" })
	a.setState(room, a.user("alice"), "m.room.member", string(a.user("alice")), `{"membership":"leave"}`)
	b.waitUntil("alice to be gone", func() bool { return !b.sharesRoom(a.server) })
	if err := b.sweepKept(t.Context()); err != nil {
		t.Fatal(err)
	}
	held, sum, err := b.handedBy(a.server)
	if err != nil || len(held) > 0 || !slices.Equal(sum, sumOf(nil)) {
		t.Errorf("after the last room: %v, %x, %v", held, sum, err)
	}
}

// TestHandoverCosts: a meeting at which nothing has changed costs less than 200 bytes, however many users there are; one that has changed, its own
// keys and the list of all.
func TestHandoverCosts(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	a, b := newMemHost(t, n, "cost a"), newMemHost(t, n, "cost b")
	a.run(a.runPeers)
	b.run(b.runPeers)
	a.meet(b.host)
	b.meet(a.host)
	b.serveExchanges(protocolHandover, "keys", newSlots(1), newHandover(b.Federation).serve)
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	const users = 40
	join := "join"
	for i := range users {
		name := "user" + string(rune('A'+i))
		a.hasKeys(name, strings.Repeat("k", 1000))
		a.update(func(tx *store.Tx) error {
			return tx.PutMember(&store.Member{Room: room, User: a.user(name), Membership: join})
		})
	}
	first, err := a.handOver(b)
	if err != nil || b.handed(a.user("userA")) == "" {
		t.Fatal(err)
	}
	idle, err := a.handOver(b)
	if err != nil || idle > 200 {
		t.Errorf("with nothing new: %d bytes, %v", idle, err)
	}
	a.hasKeys("userB", strings.Repeat("l", 1000))
	changed, err := a.handOver(b)
	if err != nil || changed > first/4 || !strings.HasPrefix(b.handed(a.user("userB")), "l") {
		t.Errorf("with one new of %d: %d bytes after %d, %v", users, changed, first, err)
	}
	t.Logf("%d users: %d bytes, with nothing new %d, with one new %d", users, first, idle, changed)
}

// TestHandoverForged: keys count only if they are of the giver's users, as offered, and signed by it.
func TestHandoverForged(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "forge a", "forge b", "forge c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	c.join(room, c.user("carol"), a.host)
	b.waitUntil("c in the room", func() bool { return b.Rooms.InRoom(room, c.server) })

	signed := func(by *memHost, user eventgraph.UserID, bundle string) json.RawMessage {
		object, err := marshal(signedBundle{User: user, TS: time.Now().UnixMilli(), Bundle: json.RawMessage(bundle)})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := eventgraph.SignJSON(object, by.Key)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	of := func(user eventgraph.UserID) string { return `{"of":"` + string(user) + `","text":"forged"}` }
	alice, carol := a.user("alice"), c.user("carol")
	for what, try := range map[string]struct {
		user    eventgraph.UserID
		offered string
		raw     json.RawMessage
	}{
		"of another server's user":   {carol, of(carol), signed(c, carol, of(carol))},
		"signed by another":          {alice, of(alice), signed(c, alice, of(alice))},
		"not as offered":             {alice, of(alice) + " ", signed(a, alice, of(alice))},
		"another user's in it":       {alice, of(carol), signed(a, alice, of(carol))},
		"of a user that is none":     {"@:x", of("@:x"), signed(a, "@:x", of("@:x"))},
		"of a user not offered":      {alice, of(alice), signed(a, a.user("alf"), of(a.user("alf")))},
		"signed in a time to come":   {alice, of(alice), nil},
		"more than was asked for":    {alice, of(alice), json.RawMessage("more")},
		"what is no signed object":   {alice, of(alice), json.RawMessage(`"x"`)},
		"nothing of what is offered": {alice, of(alice), json.RawMessage("none")},
	} {
		x, stop, err := a.openExchange(t.Context(), b.peer, protocolHandover, nil)
		if err != nil {
			t.Fatal(err)
		}
		users := map[eventgraph.UserID][]byte{try.user: digestOf([]byte(try.offered))}
		var answer keysMessage
		err = x.say(&keysMessage{Sum: sumOf(users)}, maxHandoverMessage, &answer)
		if err == nil {
			err = x.say(&keysMessage{Users: users}, maxHandoverMessage, &answer)
		}
		m := &keysMessage{Keys: []json.RawMessage{try.raw}}
		switch string(try.raw) {
		case "":
			object, _ := marshal(signedBundle{User: alice, TS: time.Now().Add(30 * 24 * time.Hour).UnixMilli(), Bundle: json.RawMessage(of(alice))})
			raw, err := eventgraph.SignJSON(object, a.Key)
			if err != nil {
				t.Fatal(err)
			}
			m.Keys[0] = raw
		case "more":
			raw := signed(a, alice, of(alice))
			m.Keys = []json.RawMessage{raw, raw}
		case "none":
			m.Keys = nil
		}
		answer = keysMessage{}
		if err == nil {
			err = x.say(m, maxHandoverMessage, &answer)
		}
		stop()
		if err == nil && answer.Level {
			t.Errorf("%s: it was taken", what)
		}
		for _, user := range []eventgraph.UserID{alice, carol, a.user("alf"), "@:x"} {
			if got := b.handed(user); got != "" {
				t.Errorf("%s: %s is known as %q", what, user, got)
			}
		}
	}
	if _, sum, _ := b.handedBy(a.server); !slices.Equal(sum, sumOf(nil)) {
		t.Error("a hand-over counts as whole")
	}
}

// TestHandedOnByOthers: keys of a server that is away come from who has met it, for those who share a room with the user, and are proven.
func TestHandedOnByOthers(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "third a", "third b", "third c", "third d")
	a, b, c, d := hosts[0], hosts[1], hosts[2], hosts[3]
	bob := b.user("bob")
	room := c.create("12", "public", "shared")
	a.join(room, a.user("alice"), c.host)
	other := c.create("12", "public", "shared")
	d.join(other, d.user("dora"), c.host)
	cut(n, a, b)
	cut(n, b, d)
	a.gone(b)
	b.join(room, bob, c.host)
	b.hasKeys("bob", "one")
	c.waitUntil("bob's keys", func() bool { return c.handed(bob) == "one" })
	a.waitUntil("bob in the room", func() bool { return a.Rooms.InRoom(room, b.server) })
	cut(n, b, c)
	c.gone(b)
	if a.IsConnected(b.server) {
		t.Fatal("still there")
	}
	a.AskKeyBundles(t.Context(), []eventgraph.UserID{bob, b.user("nobody")})
	if got := a.handed(bob); got != "one" {
		t.Errorf("alice's server has %q of bob", got)
	}
	d.AskKeyBundles(t.Context(), []eventgraph.UserID{bob})
	if bundles, err := c.bundlesFor(d.server, []eventgraph.UserID{bob}); err != nil || len(bundles) > 0 || d.handed(bob) != "" {
		t.Errorf("who shares no room with bob is given his keys: %s, %v", bundles, err)
	}
	if bundles, err := c.bundlesFor(a.server, []eventgraph.UserID{bob}); err != nil || len(bundles) != 1 {
		t.Errorf("%s, %v", bundles, err)
	}

	// An older one does not take the place of a newer one.
	var held *store.HandedKeys
	if err := a.Store.View(func(r *store.Reader) (err error) { held, err = r.HandedKeys(bob); return err }); err != nil {
		t.Fatal(err)
	}
	newer := *held
	newer.TS++
	newer.Digest = slices.Repeat([]byte{1}, digestSize)
	a.update(func(tx *store.Tx) error { return tx.PutHandedKeys(&newer) })
	if err := a.keepNewer(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	a.Store.View(func(r *store.Reader) (err error) { held, err = r.HandedKeys(bob); return err })
	if held.TS != newer.TS {
		t.Error("an older bundle was kept")
	}
}
