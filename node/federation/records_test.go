package federation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// exchange sends one message of the peers protocol and returns the answer.
func exchange(h, to *memHost, m *peersMessage) (*peersMessage, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	s, err := h.Transport.OpenStream(ctx, to.peer, protocolPeers)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { reset(s) })()
	if err := writeMessage(s, m); err != nil {
		return nil, err
	}
	answer := &peersMessage{}
	return answer, readMessage(s, maxPeersMessage, answer)
}

// TestRecordsAreHandedOn: only records of servers that share a room with the asker, only newer ones, and to who shares no room nothing at all.
func TestRecordsAreHandedOn(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "records a", "records b", "records c", "records stranger")
	a, b, c, stranger := hosts[0], hosts[1], hosts[2], hosts[3]
	room := b.create("12", "public", "a and b")
	a.join(room, a.user("alice"), b.host)
	other := b.create("12", "public", "b and c")
	c.join(other, c.user("carol"), b.host)

	want := &peersMessage{Want: map[eventgraph.PeerID]uint64{c.peer: 0, stranger.peer: 0, b.peer: 0}}
	if answer, err := exchange(a, b, want); err != nil || len(answer.Records) != 0 {
		t.Errorf("of one that shares no room with the asker: %v, %v", answer, err)
	}
	if answer, err := exchange(stranger, b, want); err == nil {
		t.Errorf("a stranger is answered: %v", answer)
	}
	c.join(room, c.user("carol"), b.host)
	b.wait("c in the room", func() bool { return b.Rooms.InRoom(room, c.server) && a.Rooms.InRoom(room, c.server) })
	raw, seq := b.Records.Record(c.peer)
	answer, err := exchange(a, b, want)
	if err != nil || len(answer.Records) != 1 || string(answer.Records[c.peer]) != string(raw) {
		t.Fatalf("%v, %v", answer, err)
	}
	if answer, err := exchange(a, b, &peersMessage{Want: map[eventgraph.PeerID]uint64{c.peer: seq}}); err != nil || len(answer.Records) != 0 {
		t.Errorf("one that is held already: %v, %v", answer, err)
	}

	// Too much at once, and what is no message, end the stream.
	many := &peersMessage{Want: map[eventgraph.PeerID]uint64{}}
	for i := range maxMissed + 1 {
		many.Want[eventgraph.PeerID(fmt.Sprint("peer ", i))] = 0
	}
	if answer, err := exchange(a, b, many); err == nil {
		t.Errorf("a question too long is answered: %v", answer)
	}
	if answer, err := exchange(a, b, &peersMessage{Records: map[eventgraph.PeerID][]byte{c.peer: make([]byte, maxPeersMessage)}}); err == nil {
		t.Errorf("a message too long is answered: %v", answer)
	}
	// So does asking without end.
	var refused error
	for range 2 * peersMessageBurst {
		if _, refused = exchange(a, b, want); refused != nil {
			break
		}
	}
	if refused == nil {
		t.Error("one peer may ask as often as it likes")
	}
}

// TestRecordsOfOthersAreRefused: a record counts only if it is of a peer that we miss, by the certificate of a server that shares a room with us
// and with who hands it on.
func TestRecordsOfOthersAreRefused(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "refuse a", "refuse b", "refuse c", "refuse stranger")
	a, b, c, stranger := hosts[0], hosts[1], hosts[2], hosts[3]
	room := b.create("12", "public", "a room")
	a.join(room, a.user("alice"), b.host)
	c.join(room, c.user("carol"), b.host)
	a.wait("c in the room", func() bool { return a.Rooms.InRoom(room, c.server) })
	taken := &countRecords{PeerRecords: a.Records}
	a.Records = taken
	in := &introducer{f: a.Federation}
	ofC, _ := b.Records.Record(c.peer)
	ofStranger, _ := b.Records.Record(stranger.peer)

	in.takeRecords(b.server, map[eventgraph.PeerID][]byte{c.peer: ofC, stranger.peer: ofStranger})
	if taken.n != 0 {
		t.Errorf("%d records were taken in, of a peer that is connected and one that shares no room", taken.n)
	}
	cut(n, a, c)
	a.gone(c)
	in.takeRecords(stranger.server, map[eventgraph.PeerID][]byte{c.peer: ofC})
	if taken.n != 0 {
		t.Error("a record was taken in from one that shares no room with its peer")
	}
	in.takeRecords(b.server, map[eventgraph.PeerID][]byte{c.peer: ofC, stranger.peer: ofStranger})
	if taken.n != 1 {
		t.Errorf("%d records were taken in, want that of the one missed", taken.n)
	}
	if missed := a.missed(b.server); len(missed) == 0 {
		t.Error("nobody is missed")
	} else if missed[stranger.peer] {
		t.Error("one that shares no room is missed")
	}
	if missed := a.missed(stranger.server); len(missed) != 0 {
		t.Errorf("a stranger is asked for %v", missed)
	}
}

// TestOnlyNewsAreAskedFor: over one connection a contact is asked for each that is missed once, is told who is missed no longer, and remembers
// as much as the asker thinks; after it has forgotten, on another connection, and now and then, it is asked for all.
func TestOnlyNewsAreAskedFor(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "news a", "news b", "news c", "news d", "news e")
	a, b, others := hosts[0], hosts[1], hosts[2:]
	room := b.create("12", "public", "a room")
	for _, h := range append([]*memHost{a}, others...) {
		h.join(room, h.user("user"), b.host)
		for _, seeing := range []*memHost{a, b} {
			seeing.wait("all in the room", func() bool { return seeing.Rooms.InRoom(room, h.server) })
		}
	}
	asking, asked := newIntroducer(a.Federation), newIntroducer(b.Federation)
	asked.admit(a.peer)
	of := &askedFor{}
	to := contact{Server: b.server, Peer: b.peer}
	// ask wants a question of a, nil for none, and b to remember afterwards who is missed.
	ask := func(what string, want *peersMessage, remembered ...*memHost) {
		t.Helper()
		m := asking.question(to, of)
		if (m == nil) != (want == nil) {
			t.Fatalf("%s: asks %+v, want %+v", what, m, want)
		}
		if m != nil {
			if m.More != want.More || !slices.Equal(slices.Sorted(maps.Keys(m.Want)), slices.Sorted(maps.Keys(want.Want))) || !slices.Equal(m.Found, want.Found) {
				t.Errorf("%s: asks %+v, want %+v", what, m, want)
			}
			if !asked.remember(a.peer, m, nil) {
				t.Errorf("%s: it has forgotten", what)
			}
		}
		there := asked.askers[a.peer].want
		for _, h := range remembered {
			if _, ok := there[h.peer]; !ok {
				t.Errorf("%s: %s is not remembered", what, h.server.Tail())
			}
		}
		if len(there) != len(remembered) || len(of.missed) != len(remembered) {
			t.Errorf("%s: %d are remembered and %d are told, want %d", what, len(there), len(of.missed), len(remembered))
		}
	}
	wants := func(all ...*memHost) map[eventgraph.PeerID]uint64 {
		m := map[eventgraph.PeerID]uint64{}
		for _, h := range all {
			m[h.peer] = 0
		}
		return m
	}
	goes := func(h *memHost) { cut(n, a, h); a.gone(h) }
	c, d, e := others[0], others[1], others[2]
	ask("nobody is missed", nil)
	goes(c)
	ask("the first", &peersMessage{Want: wants(c)}, c)
	ask("again", nil, c)
	goes(d)
	ask("another", &peersMessage{More: true, Want: wants(d)}, c, d)
	mend(n, a, c)
	a.meet(c.host)
	ask("one is back", nil, c, d)
	goes(e)
	ask("one is back and one has gone", &peersMessage{More: true, Want: wants(e), Found: []eventgraph.PeerID{c.peer}}, d, e)
	of.whole = of.whole.Add(-recordsAgain)
	ask("after long", &peersMessage{Want: wants(d, e)}, d, e)

	// What a contact has forgotten it says.
	delete(asked.askers, a.peer)
	if asked.remember(a.peer, &peersMessage{More: true}, nil) {
		t.Error("one who is not known adds to its question")
	}
	asked.admit(a.peer)
	if asked.remember(a.peer, &peersMessage{More: true, Want: wants(c)}, nil) {
		t.Error("one who has asked nothing adds to its question")
	}
	// However often somebody adds, what is remembered is bounded.
	many := &peersMessage{Want: map[eventgraph.PeerID]uint64{}}
	for i := range maxMissed {
		many.Want[eventgraph.PeerID(fmt.Sprint("peer ", i))] = 0
	}
	if !asked.remember(a.peer, many, nil) {
		t.Error("a whole question is not remembered")
	}
	if asked.remember(a.peer, &peersMessage{More: true, Want: wants(c)}, nil) || len(asked.askers[a.peer].want) > maxMissed {
		t.Errorf("%d are remembered", len(asked.askers[a.peer].want))
	}
}

// TestForgottenQuestion: a contact that has forgotten what it was asked for is asked for all at once; one that does not answer, when it is asked next.
func TestForgottenQuestion(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	all := givingHosts(t, n, "forgotten a", "forgotten b", "forgotten c")
	a, b, c := all[0], all[1], all[2]
	room := b.create("12", "public", "a room")
	a.join(room, a.user("alice"), b.host)
	c.join(room, c.user("carol"), b.host)
	if _, err := a.meetOnce(b, nil); err != nil {
		t.Fatal(err)
	}
	asking, asked := newIntroducer(a.Federation), newIntroducer(b.Federation)
	served := make(chan error, 10)
	b.Transport.Handle(protocolPeers, func(ctx context.Context, peer eventgraph.PeerID, s io.ReadWriteCloser) {
		defer s.Close()
		err := asked.serve(ctx, peer, s)
		served <- err
	})
	of, to := &askedFor{}, contact{Server: b.server, Peer: b.peer}
	ask := func(what string, messages int) {
		t.Helper()
		asking.ask(t.Context(), to, of)
		for range messages {
			if err := <-served; err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		asked.mu.Lock()
		defer asked.mu.Unlock()
		if _, there := asked.askers[a.peer].want[c.peer]; !there || !of.missed[c.peer] || len(served) > 0 {
			t.Errorf("%s: remembered %v, told %v, %d messages more", what, there, of.missed, len(served))
		}
	}
	ask("at first", 1)
	asked.forget(a.peer)
	delete(of.missed, c.peer) // so that there is something to ask
	ask("after it has forgotten", 2)
	cut(n, a, b)
	delete(of.missed, c.peer)
	asking.ask(t.Context(), to, of)
	if of.missed != nil {
		t.Errorf("one that does not answer counts as told of %v", of.missed)
	}
}

// countRecords counts what is taken in.
type countRecords struct {
	PeerRecords
	n int
}

func (c *countRecords) AddRecord(eventgraph.PeerID, []byte) error { c.n++; return nil }

// TestInviteStalled: a stranger that opens streams to present an invite, and to ask as a guest, and says nothing keeps nobody from doing either;
// nor do strangers that have spent their budget keep anybody from presenting an invite.
func TestInviteStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newMemHosts(t, memnet.New(), "stalled a", "stalled b", "stalled c")
		a, b, c := hosts[0], hosts[1], hosts[2]
		token, _, err := a.CreateInvite(t.Context(), "@alice:"+string(a.server), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 * presentedAtOnce {
			for _, protocol := range []string{protocolInvite, protocolGuest} {
				s, err := c.Transport.OpenStream(t.Context(), a.peer, protocol)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
			}
		}
		time.Sleep(time.Second)
		for range 4 { // other strangers have spent what is theirs
			a.budgets.strangers.ReserveN(time.Now(), strangeSaved)
		}
		if err := b.PresentInvite(t.Context(), a.peer, token); err != nil {
			t.Error(err)
		}
		// Nobody is a guest here; but the question is read, and the stream ended at once.
		began := time.Now()
		if _, err := b.exchangeGuest(t.Context(), a.peer, guestMessage{For: c.peer}); err == nil || time.Since(began) > time.Second {
			t.Errorf("a question was answered after %v: %v", time.Since(began), err)
		}
	})
}

// TestInviteTokenOnTheWire: who presents a valid token is a friend from then on, after a restart too, until it is revoked; who presents another gets
// no answer and costs no write.
func TestInviteTokenOnTheWire(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "token a", "token b", "token c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	ctx := t.Context()
	token, link, err := a.CreateInvite(ctx, "@alice:"+string(a.server), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	before := a.Store.Position()
	for name, wrong := range map[string]string{"wrong": strings.Repeat("A", 26), "empty": "", "long": strings.Repeat("A", 10_000)} {
		if err := c.PresentInvite(ctx, a.peer, wrong); err == nil || name != "long" && !errors.Is(err, ErrInviteRefused) {
			t.Errorf("%s token: %v", name, err)
		}
	}
	if a.Store.Position() != before || a.Friend(c.peer) || a.Friend(b.peer) {
		t.Error("a wrong token did something")
	}
	if err := b.PresentInvite(ctx, a.peer, token); err != nil {
		t.Fatal(err)
	}
	if !a.Friend(b.peer) || a.Friend(c.peer) || !a.invited(b.server) || a.invited(c.server) {
		t.Error("not those who presented the token are friends")
	}
	if links, err := a.Invites(); err != nil || len(links) != 1 || links[0].Holders != 1 || links[0].ID != link.ID || strings.Contains(fmt.Sprint(links), token) {
		t.Errorf("%+v, %v", links, err)
	}
	a.stop()
	a.renew(a.Config)
	if err := a.loadInvitees(); err != nil || !a.Friend(b.peer) {
		t.Errorf("after a restart: %v", err)
	}
	a.start()
	a.meet(b.host)
	if err := a.RevokeInvite(ctx, link.ID); err != nil {
		t.Fatal(err)
	}
	if a.Friend(b.peer) || a.invited(b.server) {
		t.Error("still a friend after the token was revoked")
	}
	if err := b.PresentInvite(ctx, a.peer, token); !errors.Is(err, ErrInviteRefused) {
		t.Errorf("a revoked token: %v", err)
	}

	// A stream that says nothing gets nothing, and ends.
	s, err := c.Transport.OpenStream(ctx, a.peer, protocolInvite)
	if err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(s); len(said) > 0 {
		t.Errorf("a said %q, %v", said, err)
	}
}
