package federation

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// transactions says how many transactions a host was sent.
func (h *host) transactions() (n int) {
	h.end.wire.mu.Lock()
	defer h.end.wire.mu.Unlock()
	for _, asked := range h.end.asked {
		if strings.Contains(asked, "/send/") {
			n++
		}
	}
	return n
}

func (h *host) holds(id eventgraph.EventID) bool {
	_, err := h.held(id)
	return err == nil
}

// A blocked server that shares a room gets no answer to anything, and nothing is asked of it or sent to it, also after a restart; unblocked, it gets
// what it has missed.
func TestBlockedServer(t *testing.T) {
	t.Parallel()
	w := newWire()
	c := newHosts(t, w, "c")[0] // takes what it is given, and brings nobody anything by itself
	a, b := newHost(t, w, "a"), newHost(t, w, "b")
	for _, h := range []*host{b, c} {
		h.meet(a)
		a.meet(h)
	}
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	c.join(room, c.user("carol"), a)
	first := a.say(room, a.user("alice"), "before")
	b.wait("a message", func() bool { return b.holds(first) })
	if !a.Friend(b.end.id) {
		t.Fatal("b is no friend")
	}

	if err := a.Block(t.Context(), b.server); err != nil {
		t.Fatal(err)
	}
	if a.Friend(b.end.id) {
		t.Error("b is a friend")
	}
	refused := func(method, target string, body any) {
		t.Helper()
		err := b.do(t.Context(), a.server, method, target, body, nil)
		var remote *remoteError
		if errors.As(err, &remote) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s %s is answered: %v", method, target, err)
		}
	}
	refused(http.MethodGet, v1+"version", nil)
	refused(http.MethodGet, v1+"nothing", nil)
	refused(http.MethodDelete, v1+"version", nil)
	refused(http.MethodGet, v1+"version?"+strings.Repeat("x", maxURI), nil)
	refused(http.MethodGet, "/_matrix/key/v2/server", nil)
	refused(http.MethodGet, target(v1+"event", []string{string(first)}, nil), nil)
	theirs := b.say(room, b.user("bob"), "of b")
	refused(http.MethodPut, target(v1+"send", []string{"1"}, nil), transaction{Origin: b.server, PDUs: []json.RawMessage{b.event(theirs).Raw()}})
	if a.holds(theirs) {
		t.Error("an event of the blocked server was taken from it")
	}
	alice := string(a.user("alice"))
	invite, err := b.Rooms.Build(t.Context(), rooms.Draft{Room: b.create("12", "public", "shared"), Sender: b.user("alice"), Type: "m.room.member",
		StateKey: &alice, Content: json.RawMessage(`{"membership":"invite"}`)})
	if err != nil {
		t.Fatal(err)
	}
	refused(http.MethodPut, target(v2+"invite", []string{string(invite.RoomID()), string(invite.ID())}, nil), invitation{Version: "12", Event: invite.Raw()})
	stream, err := b.Federation.Transport.OpenStream(t.Context(), a.end.id, protocolMeet)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a meeting: %v", err)
	}
	// It is known by its name, too, where its devices are not.
	named := func(server eventgraph.ServerName) {
		a.peers.mu.Lock()
		defer a.peers.mu.Unlock()
		clear(a.peers.refused)
		a.peers.links[b.end.id].server = server
	}
	named("")
	refused(http.MethodGet, target(v1+"event", []string{string(first)}, nil), nil)
	named(b.server)
	// Who only says that it is the blocked server is told what it would be if that were not blocked.
	get := target(v1+"event", []string{string(first)}, nil)
	for _, of := range []*host{b, idleHost(t, w, "somebody else")} {
		claim, err := of.authorize(a.server, http.MethodGet, get, nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, code := c.raw(a, http.MethodGet, get, claim, ""); status != http.StatusUnauthorized || code != "M_UNAUTHORIZED" {
			t.Errorf("an impostor of %s is answered %d %s", of.server, status, code)
		}
	}

	// Nothing goes out, and others are not held up.
	bob := string(b.user("another"))
	_, err = a.Invite(t.Context(), rooms.Draft{Room: room, Sender: a.user("alice"), Type: "m.room.member", StateKey: &bob, Content: json.RawMessage(`{"membership":"invite"}`)})
	wantCode(t, err, "M_FORBIDDEN")
	before := b.transactions()
	if err := a.do(t.Context(), b.server, http.MethodGet, v1+"version", nil, nil); !errors.Is(err, ErrBlocked) || !errors.Is(err, ErrUnreachable) {
		t.Errorf("asked all the same: %v", err)
	}
	if _, err := a.Federation.Transport.OpenStream(t.Context(), b.end.id, protocolMeet); !errors.Is(err, ErrBlocked) {
		t.Errorf("met all the same: %v", err)
	}
	for _, text := range []string{"one", "two"} {
		id := a.say(room, a.user("alice"), text)
		c.wait("a message", func() bool { return c.holds(id) })
	}
	if n := b.transactions(); n != before {
		t.Errorf("%d transactions were sent to the blocked server", n-before)
	}
	// What it says comes by others: the room stays one.
	if err := c.do(t.Context(), a.server, http.MethodPut, target(v1+"send", []string{"2"}, nil), transaction{Origin: c.server, PDUs: []json.RawMessage{b.event(theirs).Raw()}}, nil); err != nil {
		t.Fatal(err)
	}
	a.wait("an event by way of another", func() bool { return a.holds(theirs) })

	again := New(a.Config)
	if !again.peers.isBlocked(b.server) || !again.peers.refuses(eventgraph.NewPeerID(b.server.PublicKey())) {
		t.Error("forgotten by a restart")
	}
	last := a.say(room, a.user("alice"), "last")
	if err := a.Unblock(t.Context(), b.server); err != nil {
		t.Fatal(err)
	}
	b.wait("what it missed", func() bool { return b.holds(last) })
	a.meet(b)
	if err := b.do(t.Context(), a.server, http.MethodGet, v1+"version", nil, nil); err != nil {
		t.Errorf("unblocked: %v", err)
	}
}

// TestBlockedStreams: over none of our protocols a blocked server is answered a byte, also if it is found out only while it asks for whom the
// device speaks, or has been found out before and not been disconnected.
func TestBlockedStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, b := newMemHost(t, n, "blocking a"), newMemHost(t, n, "blocked b")
		c := a.Config
		c.RefusalChanged = nil // so that b is not disconnected
		a.renew(c)
		a.start()
		b.run(b.runPeers) // it asks nothing by itself, which would take the place of what is asked here
		a.meet(b.host)
		b.meet(a.host)
		togetherIn(a, b)
		time.Sleep(time.Minute)
		token, _, err := a.CreateInvite(t.Context(), "@alice:"+string(a.server), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		questions := map[string]any{
			protocolMeet:     meetMessage{Hello: &meetHello{Nonce: make([]byte, nonceSize)}},
			protocolPeers:    peersMessage{Want: map[eventgraph.PeerID]uint64{a.peer: 0}},
			protocolMedia:    mediaMessage{Server: a.server, ID: "file"},
			protocolKeys:     meetMessage{Hello: &meetHello{Nonce: make([]byte, nonceSize)}},
			protocolHandover: keysMessage{Want: []eventgraph.UserID{a.user("alice")}},
			protocolCarry:    struct{}{},
			protocolInvite:   inviteMessage{Token: token},
			protocolGuest:    guestMessage{Guest: b.peer, Pass: "pass"},
			protocolNews:     struct{}{},
		}
		answered := func(protocol string) (bytes int) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			s, err := b.Config.Transport.OpenStream(ctx, a.peer, protocol)
			if err != nil {
				return 0
			}
			defer s.Close()
			defer context.AfterFunc(ctx, func() { reset(s) })()
			if err := writeMessage(s, questions[protocol]); err != nil {
				return 0
			}
			bytes, _ = s.Read(make([]byte, 1))
			return bytes
		}
		for _, protocol := range []string{protocolMeet, protocolPeers, protocolMedia, protocolHandover, protocolCarry} {
			if answered(protocol) == 0 {
				t.Errorf("%s: no answer before the block", protocol)
			}
		}
		if err := a.Block(t.Context(), b.server); err != nil {
			t.Fatal(err)
		}
		for protocol := range questions {
			if protocol == protocolInvite {
				continue // whoever has a token is answered until it is known whose device that is
			}
			for _, server := range []eventgraph.ServerName{b.server, ""} { // as it is known, or not yet
				a.peers.mu.Lock()
				clear(a.peers.refused)
				if l := a.peers.links[b.peer]; l == nil {
					t.Fatal("b is disconnected")
				} else if l.server = server; server == "" {
					l.document = nil
				}
				a.peers.mu.Unlock()
				if n := answered(protocol); n > 0 {
					t.Errorf("%s: an answer to a blocked server, of which is known %q", protocol, server)
				}
			}
		}
		a.peers.mu.Lock()
		a.peers.links[b.peer].server = b.server
		a.peers.mu.Unlock()
		if answered(protocolInvite) > 0 {
			t.Error("an invite token of a blocked server is taken")
		}
	})
}

func TestBlockList(t *testing.T) {
	t.Parallel()
	a := idleHost(t, newWire(), "a")
	wantCode(t, a.Block(t.Context(), "not a name"), "M_INVALID_PARAM")
	wantCode(t, a.Block(t.Context(), a.server), "M_INVALID_PARAM")
	other, _, _, _ := newKeys("b")
	if err := a.Unblock(t.Context(), other); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unblock: %v", err)
	}
	for range 2 {
		if err := a.Block(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := a.Blocked(); err != nil || !slices.Equal(list, []eventgraph.ServerName{other}) {
		t.Errorf("blocked: %v, %v", list, err)
	}
}

// A certificate of a blocked server that names somebody else's device does not block that one.
func TestBlockedCertificateNamesOthers(t *testing.T) {
	t.Parallel()
	a := idleHost(t, newWire(), "a")
	server, _, identity, _ := newKeys("b")
	_, innocent, _, _ := newKeys("c")
	cert, err := eventgraph.SignCertificate(identity, 1, []eventgraph.CertifiedDevice{{
		PeerID: innocent, KeyID: innocent.KeyID(), Key: unpadded(innocent.PublicKey()), BoxKey: unpadded(append([]byte{9}, make([]byte, 31)...)), FromTS: 1,
	}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := eventgraph.SignKeyDocument(server, []eventgraph.SigningKey{identity}, nil, cert, a.Now().UnixMilli()+1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	a.peers.learn(d, "")
	if err := a.Block(t.Context(), server); err != nil {
		t.Fatal(err)
	}
	if a.peers.refuses(innocent) || !a.peers.refuses(eventgraph.NewPeerID(server.PublicKey())) {
		t.Error("who is refused is not who is blocked")
	}
}

// TestBlockedServerIsDisconnected: no connection to a blocked server is kept, nor to a device that turns out to be one of it; unblocked, it is
// found again and gets what it has missed.
func TestBlockedServerIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		all := newMemHosts(t, n, "a", "b", "c")
		a, b, c := all[0], all[1], all[2]
		room := a.create("12", "public", "shared")
		b.join(room, b.user("bob"), a.host)
		c.join(room, c.user("carol"), a.host)
		connected := func(to *memHost) bool {
			return slices.ContainsFunc(a.streams.Transport.(memEnd).Peers(), func(p p2ptransport.Peer) bool { return string(p.ID) == string(to.peer) })
		}
		if !connected(b) {
			t.Fatal("not connected")
		}
		if err := a.Block(t.Context(), b.server); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if connected(b) || !connected(c) {
			t.Errorf("a is connected to b: %v, to c: %v", connected(b), connected(c))
		}
		a.peers.mu.Lock()
		delete(a.peers.refused, b.peer) // as if its certificate were not known here
		a.peers.documents.Remove(b.server)
		a.peers.mu.Unlock()
		n.Cut(p2ptransport.PeerID(a.peer), p2ptransport.PeerID(b.peer))
		n.Heal(p2ptransport.PeerID(a.peer), p2ptransport.PeerID(b.peer))
		time.Sleep(time.Minute)
		if connected(b) || !a.peers.refuses(b.peer) {
			t.Errorf("a device whose server was found out: connected %v, refused %v", connected(b), a.peers.refuses(b.peer))
		}
		missed := a.say(room, a.user("alice"), "while blocked")
		if err := a.Unblock(t.Context(), b.server); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if !connected(b) || !b.holds(missed) {
			t.Errorf("after unblock: connected %v, got what it missed %v", connected(b), b.holds(missed))
		}
		for _, h := range all {
			h.stop()
		}
	})
}

// TestReachedOtherwise: a connected peer that is now reached over another link is met anew, with a speed that is to be found.
func TestReachedOtherwise(t *testing.T) {
	t.Parallel()
	a := newHost(t, newWire(), "a")
	b := newHost(t, a.end.wire, "b")
	b.meet(a)
	a.meet(b)
	before, ok := a.peers.since(b.end.id)
	pace := a.peers.paceOf(b.end.id)
	if !ok {
		t.Fatal("not met")
	}
	if a.peers.connected(b.end.id) {
		t.Error("a peer that is known is asked who it is")
	}
	after, ok := a.peers.since(b.end.id)
	if !ok || after <= before {
		t.Errorf("met at turn %d, and at %d before", after, before)
	}
	if a.peers.paceOf(b.end.id) == pace {
		t.Error("the speed is that of the other link")
	}
}
