package federation

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	} else if _, there := missed[stranger.peer]; there {
		t.Error("one that shares no room is missed")
	}
	if missed := a.missed(stranger.server); len(missed) != 0 {
		t.Errorf("a stranger is asked for %v", missed)
	}
}

// countRecords counts what is taken in.
type countRecords struct {
	PeerRecords
	n int
}

func (c *countRecords) AddRecord(eventgraph.PeerID, []byte) error { c.n++; return nil }

// TestInviteStalled: a stranger that opens streams to present an invite, and to ask as a guest, and says nothing keeps nobody from doing either.
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
