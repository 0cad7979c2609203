package federation

import (
	"crypto/ed25519"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// certified makes a document of name's server that certifies the devices, signed by the first, or by the identity if there is none.
func certified(t *testing.T, name string, seq int64, validUntil time.Time, devices ...eventgraph.SigningKey) *eventgraph.KeyDocument {
	t.Helper()
	server, _, identity, _ := newKeys(name)
	box := make([]byte, 32)
	box[0] = 9
	var list []eventgraph.CertifiedDevice
	for _, d := range devices {
		public := d.Private.Public().(ed25519.PublicKey)
		peer := eventgraph.NewPeerID(public)
		list = append(list, eventgraph.CertifiedDevice{
			PeerID: peer, KeyID: peer.KeyID(), Key: unpadded(public), BoxKey: unpadded(box), FromTS: 1,
		})
	}
	cert, err := eventgraph.SignCertificate(identity, seq, list)
	if err != nil {
		t.Fatal(err)
	}
	d, err := eventgraph.SignKeyDocument(server, []eventgraph.SigningKey{identity}, nil, cert, validUntil.UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWhoSpeaks(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_700_000_000_000)
	p := newPeers(func() time.Time { return now })
	server, peer, _, device := newKeys("a")
	other, _, _, otherDevice := newKeys("b")
	speaksFor := func() eventgraph.ServerName {
		t.Helper()
		p.lapse()
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.links[peer].server
	}
	if !p.connected(peer) {
		t.Error("a peer never heard of is not asked who it is")
	}
	if p.connected(peer) {
		t.Error("and again for a second connection")
	}

	// A server that certifies somebody else's device does not get it by that.
	p.learn(certified(t, "b", 1, now.Add(time.Hour), otherDevice, device), "")
	if got := speaksFor(); got != "" {
		t.Errorf("speaks for %s, which it has not said itself", got)
	}
	// What the peer shows as its own counts.
	p.learn(certified(t, "a", 2, now.Add(time.Hour), device), peer)
	if got := speaksFor(); got != server {
		t.Errorf("speaks for %q", got)
	}
	// Not taken away by another server, nor by an older certificate, nor given back by one.
	p.learn(certified(t, "b", 2, now.Add(2*time.Hour), device), peer)
	if got := speaksFor(); got != server {
		t.Errorf("speaks for %q, not %s as %s would have it", got, server.Tail(), other.Tail())
	}
	if counts := p.learn(certified(t, "a", 1, now.Add(2*time.Hour)), ""); counts.Certificate.Seq != 2 || speaksFor() != server {
		t.Error("an older certificate counts")
	}
	p.learn(certified(t, "a", 3, now.Add(time.Hour), otherDevice), "")
	if got := speaksFor(); got != "" {
		t.Errorf("speaks for %q after its certificate was withdrawn", got)
	}
	if counts := p.learn(certified(t, "a", 2, now.Add(3*time.Hour), device), peer); counts.Certificate.Seq != 3 || speaksFor() != "" {
		t.Error("shown again, the withdrawn certificate counts")
	}
	// The document's end is the end.
	p.learn(certified(t, "a", 4, now.Add(time.Hour), device), peer)
	if got := speaksFor(); got != server {
		t.Errorf("speaks for %q", got)
	}
	now = now.Add(time.Hour)
	if got := speaksFor(); got != "" {
		t.Errorf("speaks for %q with a document that has ended", got)
	}
	if due := p.due(); len(due) != 1 || due[0] != peer {
		t.Errorf("to be asked: %v", due)
	}
	p.asked(peer)
	if due := p.due(); len(due) != 0 {
		t.Errorf("asked just now, and again: %v", due)
	}
	p.disconnected(peer)
	if len(p.contacts()) != 0 || len(p.due()) != 0 {
		t.Error("gone, and still there")
	}
}

// TestContradiction: of two certificates under one number only the devices in both count, whichever came first.
func TestContradiction(t *testing.T) {
	t.Parallel()
	w := newWire()
	h := idleHost(t, w, "h")
	_, peer, _, device := newKeys("a")
	_, otherPeer, _, otherDevice := newKeys("b")
	end := time.Now().Add(time.Hour)
	h.peers.connected(peer)
	h.peers.connected(otherPeer)
	first := certified(t, "a", 1, end.Add(time.Hour), device, otherDevice)
	if _, err := h.keep(t.Context(), first, peer); err != nil {
		t.Fatal(err)
	}
	if server, ok := h.ServerOf(peer); !ok || server != first.ServerName {
		t.Fatalf("speaks for %q", server)
	}
	if _, err := h.keep(t.Context(), certified(t, "a", 1, end, otherDevice), otherPeer); err != nil {
		t.Fatal(err)
	}
	if server, ok := h.ServerOf(peer); ok {
		t.Errorf("a device that only one of them names speaks for %s", server)
	}
	if server, ok := h.ServerOf(otherPeer); !ok || server != first.ServerName {
		t.Errorf("the device in both speaks for %q", server)
	}
	if _, err := h.speaker(t.Context(), first.ServerName, peer); err == nil {
		t.Error("and makes requests")
	}
}

// TestCompromisedServersAreTold: two certificates that contradict each other, or one of our own server that is not ours, are told to the person once, and
// listed until a newer certificate comes.
func TestCompromisedServersAreTold(t *testing.T) {
	t.Parallel()
	w := newWire()
	h := idleHost(t, w, "h")
	var log strings.Builder
	h.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	_, _, _, device := newKeys("a")
	_, otherPeer, _, otherDevice := newKeys("b")
	end := time.Now().Add(time.Hour)
	a, _, _, _ := newKeys("a")
	h.peers.connected(otherPeer)
	for _, step := range []struct {
		what   string
		d      *eventgraph.KeyDocument
		from   eventgraph.PeerID
		listed []eventgraph.ServerName
		word   string // of the only line that is logged; "": none is
	}{
		{"the first", certified(t, "a", 1, end, device), "", nil, ""},
		{"the same devices", certified(t, "a", 1, end.Add(time.Second), device), "", nil, ""},
		{"others", certified(t, "a", 1, end, otherDevice), "", []eventgraph.ServerName{a}, "server=" + string(a)},
		{"others again", certified(t, "a", 1, end.Add(2*time.Second), otherDevice), "", []eventgraph.ServerName{a}, ""},
		{"a newer one", certified(t, "a", 2, end, device), "", nil, ""},
		{"our own", h.KeyDocument(), "", nil, ""},
		{"our own by another device", certified(t, "h", 1, end, otherDevice), otherPeer, []eventgraph.ServerName{h.server}, "a copy of that key"},
		{"and a newer one", certified(t, "h", 2, end.Add(time.Second), otherDevice), otherPeer, []eventgraph.ServerName{h.server}, ""},
	} {
		log.Reset()
		if _, err := h.learn(t.Context(), step.d, step.from); err != nil && step.what != "the first" {
			t.Fatalf("%s: %v", step.what, err)
		}
		if step.what == "the first" { // a stranger's is not stored
			if _, err := h.keep(t.Context(), step.d, ""); err != nil {
				t.Fatal(err)
			}
		}
		if listed, err := h.Compromised(); err != nil || !slices.Equal(listed, step.listed) {
			t.Errorf("%s: %v %v, want %v", step.what, listed, err, step.listed)
		}
		if said := log.String(); strings.Count(said, "\n") != min(len(step.word), 1) || !strings.Contains(said, step.word) {
			t.Errorf("%s: logged %q, want a line with %q", step.what, said, step.word)
		}
		if step.what == "our own by another device" {
			if server, ok := h.ServerOf(otherPeer); ok {
				t.Errorf("the other device speaks for %s", server)
			}
		}
	}
}
