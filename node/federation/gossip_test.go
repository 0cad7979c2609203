package federation

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// A crowd is servers in one large room, with a user called alice each.
type crowd struct {
	t     *testing.T
	net   *memnet.Network
	hosts []*memHost
	room  eventgraph.RoomID
}

// newCrowd makes so many servers, changed by change before they start, and as much talk as it takes for gossip to begin.
func newCrowd(t *testing.T, count int, visibility string, change func(*memHost)) *crowd {
	t.Helper()
	c := &crowd{t: t, net: memnet.New()}
	c.net.SetDelay(10 * time.Millisecond)
	for i := range count {
		c.add(fmt.Sprintf("%s %d", t.Name(), i), change)
	}
	c.room = c.hosts[0].create("12", "public", visibility)
	c.joinAll(c.room, c.hosts...)
	c.warm(c.hosts[count-1], c.room)
	return c
}

// add makes a server that knows the others and is in no room.
func (c *crowd) add(name string, change func(*memHost)) *memHost {
	c.t.Helper()
	h := newMemHost(c.t, c.net, name)
	if change != nil {
		change(h)
		h.renew(h.Config)
	}
	h.start()
	for _, other := range c.hosts {
		h.meet(other.host)
		other.meet(h.host)
	}
	c.hosts = append(c.hosts, h)
	return h
}

// joinAll lets the others join a room of the first's.
func (c *crowd) joinAll(room eventgraph.RoomID, hosts ...*memHost) {
	c.t.Helper()
	for _, h := range hosts[1:] {
		h.join(room, h.user("alice"), hosts[0].host)
	}
}

// warm lets gossip begin: the first event makes the secret, and the keys go round.
func (c *crowd) warm(h *memHost, room eventgraph.RoomID) {
	time.Sleep(time.Minute)
	h.say(room, h.user("alice"), "the first")
	time.Sleep(time.Minute)
}

// missing lists the places of those that do not hold the event.
func (c *crowd) missing(said eventgraph.EventID) (places []int) {
	for i, h := range c.hosts {
		if !h.holds(said) {
			places = append(places, i)
		}
	}
	return places
}

// TestGossip: what is said in a large room comes to all servers, published once and sent to nobody in a transaction.
func TestGossip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 12, "shared", nil)
		var heard []*arrivals
		for _, h := range c.hosts {
			heard = append(heard, h.hear("12"))
		}
		for i, h := range c.hosts {
			said := h.say(c.room, h.user("alice"), fmt.Sprint("hello from ", i))
			time.Sleep(200 * time.Millisecond)
			if missing := c.missing(said); len(missing) > 0 {
				t.Errorf("what %d says has not come to %d", i, missing)
			}
			for j := range heard {
				heard[j].mu.Lock()
				if n := heard[j].count[said]; n > 0 {
					t.Errorf("what %d says came to %d in %d transactions", i, j, n)
				}
				heard[j].mu.Unlock()
			}
			sent := h.gossip.published()
			if len(sent) == 0 {
				t.Fatalf("%d published nothing", i)
			}
			for _, p := range sent {
				if bytes.Contains(p.payload, []byte("hello")) || bytes.Contains(p.payload, []byte(c.room)) || strings.Contains(p.topic, string(c.room)) {
					t.Errorf("what %d publishes shows what is in it", i)
				}
			}
		}
		// What is said within a few milliseconds is one payload.
		h := c.hosts[3]
		var burst []eventgraph.EventID
		for i := range 10 {
			burst = append(burst, h.say(c.room, h.user("alice"), fmt.Sprint("burst ", i)))
		}
		time.Sleep(200 * time.Millisecond)
		if n := len(h.gossip.published()); n > 3 {
			t.Errorf("10 events at a time are %d payloads", n)
		}
		for _, said := range burst {
			if missing := c.missing(said); len(missing) > 0 {
				t.Errorf("the burst has not come to %d", missing)
			}
		}
		sameState(t, c.room, c.hosts...)
	})
}

// TestGossipOff: with some who do not gossip, and with none who does, events come as soon.
func TestGossipOff(t *testing.T) {
	for _, off := range []int{3, 12} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				made := 0
				c := newCrowd(t, 12, "shared", func(h *memHost) {
					if made++; made <= off {
						h.Config.Gossip = nil
					}
				})
				for i, h := range c.hosts {
					said := h.say(c.room, h.user("alice"), fmt.Sprint("hello from ", i))
					time.Sleep(200 * time.Millisecond)
					if missing := c.missing(said); len(missing) > 0 {
						t.Errorf("what %d says has not come to %d", i, missing)
					}
					if n := len(h.gossip.published()); (n > 0) != (i >= off) {
						t.Errorf("%d published %d payloads", i, n)
					}
				}
			})
		})
	}
}

// TestGossipLost: when all that is published is lost though the transport says nothing, meetings bring the events: within two minutes,
// and what is said later too, however long it has been quiet before.
func TestGossipLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 12, "shared", nil)
		for _, h := range c.hosts {
			h.gossip.lose.Store(true)
		}
		for i, h := range c.hosts[:4] {
			time.Sleep(time.Duration(i) * 25 * time.Minute)
			h.gossip.published()
			said := h.say(c.room, h.user("alice"), fmt.Sprint("hello from ", i))
			began := time.Now()
			time.Sleep(time.Second)
			if len(h.gossip.published()) == 0 {
				t.Fatalf("%d published nothing: there is nothing to lose", i)
			}
			for len(c.missing(said)) > 0 && time.Since(began) < 15*time.Minute {
				time.Sleep(time.Second)
			}
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("what %d says has come to all but %d after %v", i, c.missing(said), took)
			} else {
				t.Logf("all have it after %v", took)
			}
		}
	})
}

// has says whether the host holds the event in any verdict.
func (h *memHost) has(id eventgraph.EventID) (has bool) {
	h.t.Helper()
	err := h.Store.View(func(r *store.Reader) (err error) {
		_, has, err = r.HasEvent(id)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return has
}

// keysFor are the keys that a host holds for a room, as they are now.
func (h *memHost) keysFor(room eventgraph.RoomID) (keys []*openingKey) {
	h.Federation.gossip.mu.Lock()
	defer h.Federation.gossip.mu.Unlock()
	if r := h.Federation.gossip.rooms[room]; r != nil {
		for _, k := range r.keys {
			copied := *k
			copied.skipped = slices.Clone(k.skipped)
			keys = append(keys, &copied)
		}
	}
	return keys
}

// opens says how many of the payloads one of the keys opens.
func opens(keys []*openingKey, sent []publishedGossip) (n int) {
	for _, p := range sent {
		id, err := sealedBy(p.payload)
		for _, k := range keys {
			if err == nil && k.id == id {
				if _, err := k.open(p.topic, p.payload); err == nil {
					n++
				}
			}
		}
	}
	return n
}

// TestGossipBanned: no event made after a ban was known to its sender can be read by the banned server: not from what is published, with
// the keys that it has, nor is it given anything; and the others go on to gossip.
func TestGossipBanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 13, "shared", nil)
		admin, banned := c.hosts[0], c.hosts[5]
		var sent []publishedGossip
		collect := func() (now []publishedGossip) {
			for _, h := range c.hosts {
				now = append(now, h.gossip.published()...)
			}
			return now
		}
		collect()
		before := admin.say(c.room, admin.user("alice"), "before")
		keys := banned.keysFor(c.room)
		time.Sleep(time.Second)
		if sent = collect(); len(sent) != 1 || opens(keys, sent) != 1 || !banned.holds(before) {
			t.Fatal("what is said before the ban is not gossiped to the server")
		}
		keys = banned.keysFor(c.room)
		ban := admin.setState(c.room, admin.user("alice"), "m.room.member", string(banned.user("alice")), `{"membership":"ban"}`)
		after := []eventgraph.EventID{admin.say(c.room, admin.user("alice"), "after, at once")}
		rest := slices.Delete(slices.Clone(c.hosts), 5, 6)
		time.Sleep(time.Second)
		for round := range 3 {
			for i, h := range rest {
				after = append(after, h.say(c.room, h.user("alice"), fmt.Sprint("after ", round, i)))
				time.Sleep(2 * time.Second)
			}
			time.Sleep(time.Minute)
		}
		if !banned.holds(ban) {
			t.Error("the banned server has not got its ban")
		}
		time.Sleep(20 * time.Minute)
		sent = collect()
		if len(sent) < 2*len(rest) {
			t.Errorf("only %d payloads were published after the ban", len(sent))
		}
		if n := opens(append(keys, banned.keysFor(c.room)...), sent); n > 0 {
			t.Errorf("the banned server opens %d of %d payloads", n, len(sent))
		}
		for i, id := range after {
			if banned.has(id) {
				t.Errorf("the banned server holds event %d made after the ban", i)
			}
			for _, h := range rest {
				if !h.holds(id) {
					t.Errorf("event %d is missing at %s", i, h.server.Tail())
				}
			}
		}
		sameState(t, c.room, rest...)
	})
}

// TestGossipLate: a server that joins opens nothing that was published before, and gossips with the others soon.
func TestGossipLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 11, "joined", nil)
		early := c.hosts[2].say(c.room, c.hosts[2].user("alice"), "early")
		time.Sleep(time.Second)
		var sent []publishedGossip
		for _, h := range c.hosts {
			sent = append(sent, h.gossip.published()...)
		}
		late := c.add(t.Name()+" late", nil)
		late.join(c.room, late.user("alice"), c.hosts[0].host)
		c.warm(c.hosts[1], c.room)
		keys := late.keysFor(c.room)
		if len(keys) < 11 {
			t.Errorf("the late server has %d keys, want those of 11 servers", len(keys))
		}
		if n := opens(keys, sent); n > 0 || len(sent) == 0 {
			t.Errorf("it opens %d of %d payloads from before it joined", n, len(sent))
		}
		if late.has(early) {
			t.Error("it holds what was said before it joined, which only those joined may see")
		}
		heard := late.hear("12")
		for _, h := range []*memHost{c.hosts[0], c.hosts[7], late} {
			said := h.say(c.room, h.user("alice"), "now")
			time.Sleep(200 * time.Millisecond)
			if missing := c.missing(said); len(missing) > 0 {
				t.Errorf("missing at %d", missing)
			}
			if heard.count[said] > 0 {
				t.Error("it came in a transaction")
			}
		}
	})
}

// TestGossipRevoked: once its server has withdrawn a device's certificate, what is published can no longer be read with the keys that the
// device has, though its server is in the room as before.
func TestGossipRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 11, "shared", nil)
		speaker, revoked := c.hosts[0], c.hosts[5]
		speaker.gossip.published()
		speaker.say(c.room, speaker.user("alice"), "before")
		keys := revoked.keysFor(c.room)
		time.Sleep(time.Second)
		if n := opens(keys, speaker.gossip.published()); n != 1 {
			t.Fatalf("the device opens %d payloads from before", n)
		}
		_, _, identity, _ := newKeys(fmt.Sprintf("%s %d", t.Name(), 5))
		_, peer, _, device := newKeys(t.Name() + " a new device")
		box := make([]byte, 32)
		box[0] = 9
		cert, err := eventgraph.SignCertificate(identity, 2, []eventgraph.CertifiedDevice{{
			PeerID: peer, KeyID: peer.KeyID(), Key: unpadded(device.Private.Public().(ed25519.PublicKey)), BoxKey: unpadded(box), FromTS: 1,
		}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := eventgraph.SignKeyDocument(revoked.server, []eventgraph.SigningKey{device}, nil, cert, time.Now().Add(24*time.Hour).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range c.hosts {
			if h != revoked {
				h.peers.adopt(d, "")
			}
		}
		for range 3 {
			speaker.say(c.room, speaker.user("alice"), "after")
			time.Sleep(time.Minute)
		}
		sent := speaker.gossip.published()
		if n := opens(append(keys, revoked.keysFor(c.room)...), sent); n > 0 || len(sent) == 0 {
			t.Errorf("it opens %d of %d payloads from after", n, len(sent))
		}
	})
}

// deafGossip subscribes to nothing.
type deafGossip struct{ Gossip }

func (deafGossip) Subscribe(string, func(eventgraph.PeerID, []byte) bool) (func(), error) {
	return nil, errors.New("deaf")
}

// TestGossipDeaf: a server that takes all that it is offered and does not subscribe is offered it ever more seldom.
func TestGossipDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var exchanges atomic.Int32
		c := &crowd{t: t, net: memnet.New()}
		c.net.Observe(func(_, _ p2ptransport.PeerID, protocol string) (sent, got memnet.Observer) {
			if protocol == protocolKeys {
				exchanges.Add(1)
			}
			return nil, nil
		})
		const count = 10
		for i := range count {
			c.add(fmt.Sprintf("%s %d", t.Name(), i), func(h *memHost) {
				if i == 3 {
					h.Config.Gossip = deafGossip{h.Config.Gossip}
				}
			})
		}
		room := c.hosts[0].create("12", "public", "shared")
		c.joinAll(room, c.hosts...)
		c.warm(c.hosts[1], room)
		exchanges.Store(0)
		time.Sleep(30 * time.Minute)
		if n := exchanges.Load(); n > 20*(count-1) {
			t.Errorf("%d exchanges with it in half an hour", n)
		}
		c.hosts[3].waitFor("it has what is said", c.hosts[2].say(room, c.hosts[2].user("alice"), "hello"))
	})
}

// TestGossipKeysStalled: a server that begins exchanges and does not go on with them holds up nobody else's.
func TestGossipKeysStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 10, "shared", nil)
		h, stalling, other := c.hosts[0], c.hosts[1], c.hosts[2]
		for range 2 * exchangesServed {
			s, err := stalling.Config.Transport.OpenStream(t.Context(), h.peer, protocolKeys)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
		time.Sleep(time.Second)
		began := time.Now()
		since, _ := other.peers.since(h.peer)
		if err := other.exchange(t.Context(), contact{h.server, h.peer, since}, nil); err != nil || time.Since(began) > time.Second {
			t.Errorf("another's exchange took %v: %v", time.Since(began), err)
		}
	})
}

// TestGossipDropped: what a server has no place for, it asks for soon.
func TestGossipDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 12, "shared", nil)
		speaker, h := c.hosts[1], c.hosts[7]
		time.Sleep(time.Hour) // until meetings are seldom
		spent := rate.NewLimiter(0, 1)
		spent.AllowN(time.Now(), 1)
		h.budgets.mu.Lock()
		h.budgets.friends[speaker.server] = spent
		h.budgets.mu.Unlock()
		said := speaker.say(c.room, speaker.user("alice"), "nobody listens")
		time.Sleep(2 * newsDelay)
		if !h.holds(said) {
			t.Error("it is not held after two delays")
		}
	})
}

// overheard is all that is sent to each peer.
type overheard struct {
	mu sync.Mutex
	to map[p2ptransport.PeerID]*bytes.Buffer
}

func (o *overheard) observe(from, to p2ptransport.PeerID, _ string) (sent, got memnet.Observer) {
	hear := func(peer p2ptransport.PeerID) memnet.Observer {
		return func(b []byte, _ int) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.to[peer] == nil {
				o.to[peer] = &bytes.Buffer{}
			}
			o.to[peer].Write(b)
		}
	}
	return hear(to), hear(from)
}

// TestGossipPrivate: a stranger who is connected to all is sent nothing about large rooms, not even a topic or a member's name; who shares another
// large room with some of a room's servers is sent topics at most.
func TestGossipPrivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &overheard{to: map[p2ptransport.PeerID]*bytes.Buffer{}}
		c := &crowd{t: t, net: memnet.New()}
		c.net.Observe(net.observe)
		for i := range 18 {
			c.add(fmt.Sprintf("%s %d", t.Name(), i), nil)
		}
		inFirst, inSecond, stranger := c.hosts[:10], c.hosts[8:17], c.hosts[17]
		first := inFirst[0].create("12", "public", "shared")
		second := inSecond[0].create("12", "public", "shared")
		// Each member has a name of its own, also those of the two servers that are in both rooms.
		member := func(name string, of []*memHost, i int) eventgraph.UserID {
			if i == 0 {
				return of[0].user("alice") // who has made the room
			}
			return of[i].user(fmt.Sprintf("%s%dth", name, i))
		}
		for i := 1; i < len(inFirst); i++ {
			inFirst[i].join(first, member("first", inFirst, i), inFirst[0].host)
		}
		for i := 1; i < len(inSecond); i++ {
			inSecond[i].join(second, member("second", inSecond, i), inSecond[0].host)
		}
		members := func(name string, of []*memHost) (names []string) { // as user IDs and as the people's display names
			names = []string{string(member(name, of, 0))}
			for i := 1; i < len(of); i++ {
				localpart := member(name, of, i).Localpart()
				names = append(names, localpart, strings.ToUpper(localpart))
			}
			return names
		}
		others := inSecond[2:]
		for _, warm := range []func(){
			func() { inFirst[1].say(first, member("first", inFirst, 1), "the first") },
			func() { inSecond[1].say(second, member("second", inSecond, 1), "the first") },
		} {
			time.Sleep(time.Minute)
			warm()
			time.Sleep(time.Minute)
		}
		var secrets []string
		for i, h := range inFirst {
			h.gossip.published()
			said := h.say(first, member("first", inFirst, i), "a secret of the first room")
			secrets = append(secrets, string(said)[1:])
			time.Sleep(time.Second)
			if len(h.gossip.published()) == 0 {
				t.Error("gossip has not begun in the first room")
			}
		}
		inSecond[3].say(second, member("second", inSecond, 3), "of the second room")
		time.Sleep(15 * time.Minute)
		secrets = append(append(secrets, string(first)[1:], "a secret of the first room"), members("first", inFirst)...)
		var topics []string
		for _, h := range []*memHost{inFirst[0], inSecond[5]} {
			g := h.Federation.gossip
			g.mu.Lock()
			for _, r := range g.rooms {
				for _, topic := range r.topics {
					topics = append(topics, topic.name)
				}
			}
			g.mu.Unlock()
		}
		if len(topics) < 2 {
			t.Fatalf("topics are %q", topics)
		}
		net.mu.Lock()
		defer net.mu.Unlock()
		seen := false
		for _, h := range others {
			all := net.to[p2ptransport.PeerID(h.peer)].Bytes()
			for _, secret := range secrets {
				if bytes.Contains(all, []byte(secret)) {
					t.Errorf("%q is shown to a server of another room", secret)
				}
			}
			for i := range inSecond {
				if name := member("second", inSecond, i).Localpart(); !bytes.Contains(all, []byte(name)) {
					t.Errorf("%q is not shown to a server of the room: names are not heard", name)
				}
			}
			seen = seen || bytes.Contains(all, []byte("of the second room")) || bytes.Contains(all, []byte(topics[len(topics)-1]))
		}
		if !seen {
			t.Error("nothing of its own room comes to a server: nothing is heard")
		}
		all := net.to[p2ptransport.PeerID(stranger.peer)].Bytes()
		secrets = append(append(secrets, string(second)[1:], "of the second room"), members("second", inSecond)...)
		for _, secret := range append(secrets, topics...) {
			if bytes.Contains(all, []byte(secret)) {
				t.Errorf("%q is shown to a stranger", secret)
			}
		}
		if len(all) == 0 {
			t.Error("nothing at all is sent to the stranger: nothing is heard")
		}
	})
}

// TestGossipPatience: payloads that overtake each other cost no question; what does not come is asked for when patience is over.
func TestGossipPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{t: t, net: memnet.New()}
		for _, name := range []string{"a", "b", "c"} {
			c.add(t.Name()+name, nil)
		}
		a, b, far := c.hosts[0], c.hosts[1], c.hosts[2]
		room := a.create("12", "public", "shared")
		c.joinAll(room, c.hosts...)
		time.Sleep(97 * time.Second) // no meeting is under way then, or due: what is due here is due at whole quarters of a minute
		cut(c.net, b, far)
		b.gone(far)
		var questions atomic.Int32
		a.on(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			if strings.Contains(r.URL.Path, "/get_missing_events/") {
				questions.Add(1)
			}
			return false
		})
		ended := func(_ eventgraph.PeerID, s io.ReadWriteCloser) io.ReadWriteCloser {
			_ = s.Close()
			return s
		}
		b.streams.f.Store(&ended) // it does not meet a, which would bring what is to come by gossip alone
		say := func() *eventgraph.Event {
			id := far.say(room, far.user("alice"), "something")
			a.waitFor("it comes to a", id)
			return a.event(id).Event
		}
		take := func(e *eventgraph.Event, patience time.Duration) {
			if refused, err := b.takeInPatiently(t.Context(), room, []*eventgraph.Event{e}, far.server, patience); err != nil || len(refused) > 0 {
				t.Fatal(refused, err)
			}
		}
		first, second := say(), say()
		take(second, gossipPatience)
		time.Sleep(gossipPatience / 2)
		if b.holds(second.ID()) {
			t.Fatal("the second is held without the first")
		}
		take(first, gossipPatience)
		time.Sleep(gossipPatience / 4)
		if !b.holds(first.ID(), second.ID()) || questions.Load() > 0 {
			t.Errorf("not both are held, or %d questions were put", questions.Load())
		}
		third, fourth := say(), say()
		take(fourth, gossipPatience)
		time.Sleep(gossipPatience + 100*time.Millisecond)
		if !b.holds(third.ID(), fourth.ID()) || questions.Load() != 1 {
			t.Errorf("what is missing is not held, or %d questions were put", questions.Load())
		}
	})
}

// TestGossipFlood: what a server publishes beyond its budget is dropped without anybody waiting for it, and others' is taken in.
func TestGossipFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 9, "shared", nil)
		h, flooder := c.hosts[0], c.hosts[1]
		began, taken := time.Now(), 0
		for range 2 * friendSaved {
			if h.takeOpened(t.Context(), opened{c.room, flooder.server, []byte(`{"pdus":[]}`)}) == nil {
				taken++
			}
		}
		if taken < friendSaved*9/10 || taken > friendSaved {
			t.Errorf("%d of %d payloads at a time were taken, want about %d", taken, 2*friendSaved, friendSaved)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the others wait %v for it", took)
		}
		said := c.hosts[2].say(c.room, c.hosts[2].user("alice"), "heard all the same")
		time.Sleep(200 * time.Millisecond)
		if !h.holds(said) {
			t.Error("another's event is held up")
		}
	})
}
