package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

func (h *memHost) sayMany(room eventgraph.RoomID, user string, n int) (all []eventgraph.EventID) {
	h.t.Helper()
	for i := range n {
		all = append(all, h.say(room, h.user(user), fmt.Sprint(user, " ", i)))
	}
	return all
}

// level waits until the hosts hold the same events of the room and, after one more message of the first, have the same state and extremities.
func level(t *testing.T, room eventgraph.RoomID, user string, hosts ...*memHost) {
	t.Helper()
	last := hosts[0].say(room, hosts[0].user(user), "the last word")
	for _, h := range hosts[1:] {
		h.waitFor("the last word", last)
	}
	sameState(t, room, hosts...)
	for _, h := range hosts {
		if held, _, err := h.backwards(room); err != nil || !slices.Equal(held.Forward, []eventgraph.EventID{last}) {
			t.Errorf("%s has extremities %v, want the last word alone", h.server.Tail(), held.Forward)
		}
	}
}

func TestSplitAndHeal(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"6", "12"} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			n := memnet.New()
			hosts := newMemHosts(t, n, "a", "b")
			a, b := hosts[0], hosts[1]
			room := a.create(version, "public", "shared")
			b.join(room, b.user("bob"), a.host)
			levels, err := a.Rooms.CurrentState(room)
			if err != nil {
				t.Fatal(err)
			}
			power, err := levels.Event(eventgraph.StateTuple{Type: "m.room.power_levels"})
			if err != nil {
				t.Fatal(err)
			}
			with := func(more string) string {
				return strings.Replace(string(power.Content()), `"users":{`, `"users":{"`+string(b.user("bob"))+`":90`+more, 1)
			}
			content := with("")
			if strings.Contains(string(power.Content()), `"users":{"`) {
				content = with(",")
			}
			given := a.setState(room, a.user("alice"), "m.room.power_levels", "", content)
			b.waitFor("bob's power", given)
			a.acknowledged(b, given)

			cut(n, a, b)
			a.gone(b)
			b.gone(a)
			as, bs := a.sayMany(room, "alice", 50), b.sayMany(room, "bob", 50)
			as = append(as, a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"of a"}`),
				a.setState(room, a.user("alice"), "m.room.power_levels", "", strings.Replace(content, `"invite":0`, `"invite":40`, 1)))
			bs = append(bs, b.setState(room, b.user("bob"), "m.room.topic", "", `{"topic":"of b"}`),
				b.setState(room, b.user("bob"), "m.room.power_levels", "", strings.Replace(content, `"invite":0`, `"invite":30`, 1)))
			mend(n, a, b)
			a.waitFor("what b said", bs...)
			b.waitFor("what a said", as...)
			level(t, room, "alice", a, b)
		})
	}
}

// TestCarried: a server brings events between two that never meet, with the keys of who made them.
func TestCarried(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := b.create("12", "public", "shared")
	cut(n, a, c)
	a.gone(c)
	cut(n, b, c)
	b.gone(c)
	a.join(room, a.user("anna"), b.host)
	said := a.sayMany(room, "anna", 10)
	b.waitFor("what a said", said...)
	cut(n, a, b)
	b.gone(a)
	mend(n, b, c)
	b.meet(c.host)
	c.meet(b.host)
	c.join(room, c.user("carol"), b.host)
	cs := c.sayMany(room, "carol", 10)
	b.waitFor("what c said", cs...)
	cut(n, b, c)
	b.gone(c)
	c.gone(b)
	mend(n, a, b)
	a.waitFor("what c said", cs...) // from b, at a meeting; a has never met c while both were in the room
	more := a.sayMany(room, "anna", 10)
	b.waitFor("more of a", more...)
	cut(n, a, b)
	b.gone(a)
	mend(n, b, c)
	c.waitFor("what a said since", more...)
	sameState(t, room, a, b, c)
}

// TestHint: a server between two that do not reach each other brings what one says to the other soon, not at the next meeting alone.
func TestHint(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := b.create("12", "public", "shared")
	a.join(room, a.user("anna"), b.host)
	c.join(room, c.user("carol"), b.host)
	b.waitFor("a's word", a.say(room, a.user("anna"), "all are here"))
	cut(n, a, c)
	a.gone(c)
	c.gone(a)
	said := a.say(room, a.user("anna"), "tell c")
	c.waitFor("what a said", said)
}

// meetOnce holds a meeting over a stream that f may replace.
func (h *memHost) meetOnce(with *memHost, f func(io.ReadWriteCloser) io.ReadWriteCloser) (int, error) {
	h.t.Helper()
	if f != nil {
		g := func(_ eventgraph.PeerID, s io.ReadWriteCloser) io.ReadWriteCloser { return f(s) }
		h.streams.f.Store(&g)
		defer h.streams.f.Store(nil)
	}
	m := &meeting{pace: &pace{in: chunkBytes, out: chunkBytes}, until: time.Now().Add(meetSlice)}
	_, err := h.Federation.meet(h.t.Context(), contact{Server: with.server, Peer: with.peer}, m)
	return m.taken, err
}

type brokenStreams struct {
	Transport
	f atomic.Pointer[func(peer eventgraph.PeerID, stream io.ReadWriteCloser) io.ReadWriteCloser]
}

func (b *brokenStreams) OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error) {
	s, err := b.Transport.OpenStream(ctx, peer, protocol)
	if err != nil {
		return nil, err
	}
	if f := b.f.Load(); f != nil {
		return (*f)(peer, s), nil
	}
	return s, nil
}

// short is a stream that ends after so many bytes were read.
type short struct {
	io.ReadWriteCloser
	left int
}

func (s *short) Read(b []byte) (int, error) {
	if s.left <= 0 {
		return 0, errors.New("cut")
	}
	n, err := s.ReadWriteCloser.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

// givingOnly are a, which only gives at meetings, and b, which does nothing by itself, in one room; they know each other.
func givingOnly(t *testing.T) (a, b *memHost, room eventgraph.RoomID) {
	t.Helper()
	n := memnet.New()
	a, b = newMemHost(t, n, "a"), newMemHost(t, n, "b")
	a.run(a.runMeetings)
	for _, pair := range [][2]*memHost{{a, b}, {b, a}} {
		if _, err := pair[0].identify(t.Context(), pair[1].peer); err != nil {
			t.Fatal(err)
		}
	}
	room = a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	return a, b, room
}

// TestMeetingCut: what came before a meeting was cut is kept, and the next brings the rest.
func TestMeetingCut(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	said := a.sayMany(room, "alice", 2*maxWant+50)
	_, err := b.meetOnce(a, func(s io.ReadWriteCloser) io.ReadWriteCloser { return &short{s, 250_000} })
	if err == nil {
		t.Fatal("the meeting was not cut")
	}
	if !b.holds(said[:maxWant]...) || b.holds(said[len(said)-1]) {
		t.Fatal("not just the first chunk came")
	}
	came, err := b.meetOnce(a, nil)
	if err != nil || came >= len(said) || !b.holds(said...) {
		t.Errorf("%d came, %v; want the rest of %d", came, err, len(said))
	}
	if came, err := b.meetOnce(a, nil); came != 0 || err != nil {
		t.Errorf("%d came again, %v", came, err)
	}
	sameState(t, room, a, b)
}

// TestMeetingCursor: a cursor of another incarnation of the giver is none, so what it says of events the asker holds comes once more, and what
// it does not hold comes.
func TestMeetingCursor(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	said := a.sayMany(room, "alice", 3)
	if _, err := b.meetOnce(a, nil); err != nil || !b.holds(said...) {
		t.Fatal(err)
	}
	cursor, err := b.meetingCursor(contact{Server: a.server, Peer: a.peer})
	if err != nil || cursor == "" {
		t.Fatalf("cursor %q, %v", cursor, err)
	}
	all, err := a.newsFor(&gift{contact: contact{Server: b.server}}, "")
	if err != nil || len(all.Events) < 4 || all.More {
		t.Fatalf("news from the start: %+v, %v", all, err)
	}
	none, err := a.newsFor(&gift{contact: contact{Server: b.server}}, cursor)
	if err != nil || len(none.Events) != 0 || none.Cursor != cursor {
		t.Errorf("news after the cursor: %+v, %v", none, err)
	}
	_, at, _ := strings.Cut(cursor, ".")
	for name, strange := range map[string]string{
		"another incarnation": strings.Repeat("0", 32) + "." + at,
		"beyond the end":      strings.TrimSuffix(cursor, at) + fmt.Sprint(uint64(math.MaxUint64)),
		"not a cursor":        "x",
		"a negative one":      strings.TrimSuffix(cursor, at) + "-1",
	} {
		got, err := a.newsFor(&gift{contact: contact{Server: b.server}}, strange)
		if err != nil || !slices.Equal(got.Events, all.Events) || !slices.Equal(got.In, all.In) {
			t.Errorf("%s: %d events, %v; want all %d", name, len(got.Events), err, len(all.Events))
		}
	}
	b.update(func(tx *store.Tx) error { return tx.PutMeetingCursor(a.server, a.peer, strings.Repeat("0", 32)+"."+at) })
	last := a.say(room, a.user("alice"), "last")
	if came, err := b.meetOnce(a, nil); err != nil || came != 1 || !b.holds(last) {
		t.Errorf("%d came, %v; want the last", came, err)
	}
}

// TestMeetingShows: at a meeting nobody learns of what it may not see, not even whether it exists.
func TestMeetingShows(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	secretRoom := a.create("12", "invite", "shared")
	secret := a.say(secretRoom, a.user("alice"), "secret")
	joined := a.create("12", "public", "joined")
	before := a.say(joined, a.user("alice"), "before b came")
	b.join(joined, b.user("bob"), a.host)
	seen := a.say(joined, a.user("alice"), "after b came")

	news := func(server eventgraph.ServerName) []eventgraph.EventID {
		t.Helper()
		got, err := a.newsFor(&gift{contact: contact{Server: server}}, "")
		if err != nil {
			t.Fatal(err)
		}
		return got.Events
	}
	give := func(server eventgraph.ServerName, ids ...eventgraph.EventID) (given []eventgraph.EventID) {
		t.Helper()
		got, err := a.wanted(&gift{contact: contact{Server: server}, told: map[eventgraph.ServerName]bool{}}, ids, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got.Looked != len(ids) {
			t.Errorf("looked at %d of %d", got.Looked, len(ids))
		}
		for _, e := range got.Events {
			parsed, err := eventgraph.ParseEvent("12", e.PDU)
			if err != nil {
				t.Fatal(err)
			}
			given = append(given, parsed.ID())
		}
		return given
	}
	if got := news(b.server); slices.Contains(got, secret) || slices.Contains(got, before) || !slices.Contains(got, seen) {
		t.Errorf("news for b: %v", got)
	}
	if got := give(b.server, secret, before, seen, "$unknown"); !slices.Equal(got, []eventgraph.EventID{seen}) {
		t.Errorf("b was given %v, want %v alone", got, seen)
	}
	stranger, _, _, _ := newKeys("stranger")
	if got := news(stranger); len(got) > 0 {
		t.Errorf("news for a stranger: %v", got)
	}
	if got := give(stranger, secret, before, seen); len(got) > 0 {
		t.Errorf("a stranger was given %v", got)
	}
	with := contact{Server: b.server, Peer: b.peer}
	if got, err := a.summary(with, nil); err != nil || len(got.items) != 2 || len(got.rooms) != 2 {
		t.Errorf("shared with b: %+v, %v", got, err)
	}

	// Removed, it gets its removal and no more; denied by the ACL, nothing.
	ban := a.setState(joined, a.user("alice"), "m.room.member", string(b.user("bob")), `{"membership":"ban"}`)
	after := a.say(joined, a.user("alice"), "after the ban")
	if got := news(b.server); !slices.Contains(got, ban) || slices.Contains(got, after) {
		t.Errorf("news for b after its ban: %v", got)
	}
	if got := give(b.server, ban, after, seen); !slices.Equal(got, []eventgraph.EventID{ban, seen}) {
		t.Errorf("b was given %v, want its ban and what it saw", got)
	}
	a.setState(joined, a.user("alice"), "m.room.server_acl", "", `{"allow":["*"],"deny":["`+string(b.server)+`"]}`)
	if got := give(b.server, ban, seen); len(got) > 0 {
		t.Errorf("b was given %v in spite of the ACL", got)
	}
	if got := news(b.server); slices.Contains(got, ban) {
		t.Error("b is told of events in spite of the ACL")
	}
	_ = room
}

// TestHostileGiver: what a giver says that is no answer ends the meeting; what it gives that was not asked for is not taken.
func TestHostileGiver(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	said := a.say(room, a.user("alice"), "said")
	other := a.create("12", "invite", "shared")
	raw := func(id eventgraph.EventID) json.RawMessage { return a.event(id).Raw() }
	state, err := a.Rooms.CurrentState(other)
	if err != nil {
		t.Fatal(err)
	}
	create, err := state.Event(eventgraph.StateTuple{Type: "m.room.create"})
	if err != nil {
		t.Fatal(err)
	}
	listed := func(ids ...meetID) *meetNews {
		news := &meetNews{Cursor: "1"}
		for _, id := range ids {
			news.add(id)
		}
		return news
	}
	news := meetMessage{News: listed(meetID{room, said})}
	strange, peer, identity, device := newKeys("strange")
	many := make([]meetID, maxNews+1)
	for name, answers := range map[string][]meetMessage{
		"nothing":                {{}},
		"more news than allowed": {{News: listed(many...)}},
		"a room that is none":    {{News: &meetNews{Events: []eventgraph.EventID{said}, In: []int{0}}}},
		"no rooms":               {{News: &meetNews{Events: []eventgraph.EventID{said}}}},
		"a long cursor":          {{News: &meetNews{Cursor: strings.Repeat("x", maxCursor+1)}}},
		"more without progress":  {{News: &meetNews{More: true, Cursor: ""}}},
		"a chunk of nothing":     {news, {Events: &meetEvents{}}},
		"a chunk beyond the end": {news, {Events: &meetEvents{Looked: 5}}},
		"not what was asked for": {news, {Events: &meetEvents{Looked: 0, Events: []meetEvent{{other, create.Raw()}}}}},
		"in another room":        {news, {Events: &meetEvents{Looked: 0, Events: []meetEvent{{other, raw(said)}}}}},
		"more than asked for":    {news, {Events: &meetEvents{Looked: 1, Events: []meetEvent{{room, raw(said)}, {room, raw(said)}}}}},
		"keys of others":         {news, {Events: &meetEvents{Keys: []json.RawMessage{newDocument(t, strange, peer, identity, device, b.Now()).Raw}}}},
	} {
		a.Transport.Handle(protocolMeet, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
			defer stream.Close()
			s := meetStream{stream}
			for _, answer := range answers {
				if _, err := s.read(maxFrame); err != nil {
					return
				}
				if err := s.write(&answer); err != nil {
					return
				}
			}
		})
		if _, err := b.meetOnce(a, nil); err == nil {
			t.Errorf("%s: the meeting went on", name)
		}
		if b.holds(said) {
			t.Fatalf("%s: an event was taken", name)
		}
		if d, err := b.storedDocument(strange); d != nil || err != nil {
			t.Fatalf("%s: a key document was kept", name)
		}
	}
}

// givingAs answers each message as f says.
func givingAs(f func(*meetMessage) *meetMessage) func(context.Context, eventgraph.PeerID, io.ReadWriteCloser) {
	return func(_ context.Context, _ eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		s := meetStream{stream}
		for {
			m, err := s.read(maxFrame)
			if err != nil || s.write(f(m)) != nil {
				return
			}
		}
	}
}

// TestHostileAsker: messages that ask nothing end the meeting, and a message is not allocated before it comes.
func TestHostileAsker(t *testing.T) {
	t.Parallel()
	a, b, _ := givingOnly(t)
	ask := func(raw string) (*meetMessage, error) {
		t.Helper()
		opened, err := b.Transport.OpenStream(t.Context(), a.peer, protocolMeet)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		if _, err := io.WriteString(opened, raw); err != nil {
			return nil, err
		}
		return meetStream{opened}.read(maxFrame)
	}
	frame := func(s string) string { return string([]byte{0, 0, byte(len(s) >> 8), byte(len(s))}) + s }
	if m, err := ask(frame(`{"hello":{"cursor":""}}`)); err != nil || m.News == nil {
		t.Fatalf("hello: %v, %v", m, err)
	}
	want := `["` + strings.Repeat(`$x","`, maxWant) + `"]`
	for _, raw := range []string{frame(`{}`), frame(`{"want":[]}`), frame(`{"want":` + want + `}`), frame(`null`), frame(`[]`), frame(`{`), "\xff\xff\xff\xff{}", "GET / HTTP/1.1\r\n\r\n"} {
		if m, err := ask(raw); err == nil {
			t.Errorf("%.40q was answered %+v", raw, m)
		}
	}
}

// TestMeetingWithPlainPeer: one that does not speak the protocol is served by transactions alone.
func TestMeetingWithPlainPeer(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	a, b := newMemHost(t, n, "a"), newMemHost(t, n, "b")
	a.start()
	b.run(b.runPeers) // it answers and asks, and has no meetings
	a.meet(b.host)
	b.meet(a.host)
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	if _, err := a.meetOnce(b, nil); !errors.Is(err, p2ptransport.ErrNotHere) {
		t.Errorf("meeting: %v", err)
	}
	var sent atomic.Int32
	b.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if _, ok := transactionOf(r, body); ok {
			sent.Add(1)
		}
		return false
	})
	said := a.say(room, a.user("alice"), "hello")
	b.waitFor("a message", said)
	if sent.Load() == 0 {
		t.Error("it did not come in a transaction")
	}
}
