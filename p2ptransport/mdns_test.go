package p2ptransport

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/net/dns/dnsmessage"
)

const (
	peerA = "12D3KooWHfGR7Nr9vNs1pNQmH4yAtqEGPRCLPYVTmHwdvLBpRvBP"
	peerB = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
)

func packed(t testing.TB, instance string, addrs ...string) []byte {
	t.Helper()
	var parsed []ma.Multiaddr
	for _, a := range addrs {
		parsed = append(parsed, ma.StringCast(a))
	}
	msg, err := dialectOf(nil).announcement(instance, parsed)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func TestAnnouncement(t *testing.T) {
	msg := packed(t, "me."+mdnsService,
		"/ip4/10.0.0.1/udp/4001/quic-v1/p2p/"+peerA, "/ip4/10.0.0.1/tcp/4001/p2p/"+peerA, "/ip6/fe80::1/tcp/4001/p2p/"+peerA)
	asked, peers := dialectOf(nil).read(msg)
	if asked || len(peers) != 1 {
		t.Fatalf("asked %v, peers %+v", asked, peers)
	}
	if peers[0].instance != "me."+mdnsService || peers[0].peer.ID.String() != peerA || len(peers[0].peer.Addrs) != 3 {
		t.Errorf("%+v", peers[0])
	}
	for _, a := range inZone(peers[0].peer.Addrs, "eth0") {
		if want := "/ip6zone/eth0/ip6/fe80::1/tcp/4001"; strings.Contains(a.String(), "fe80") && a.String() != want {
			t.Errorf("%s, want %s", a, want)
		}
	}
	q, err := dialectOf(nil).question()
	if err != nil {
		t.Fatal(err)
	}
	if asked, peers := dialectOf(nil).read(q); !asked || len(peers) != 0 {
		t.Errorf("asked %v, peers %+v", asked, peers)
	}
}

// TestAnnouncementRefused: what an announcement must not make this host dial.
func TestAnnouncementRefused(t *testing.T) {
	own := "/ip4/10.0.0.1/tcp/1/p2p/" + peerA
	msg := packed(t, "x."+mdnsService, own,
		"/ip4/10.0.0.2/tcp/1/p2p/"+peerB, // another peer than the first
		"/dns4/example.org/tcp/1/p2p/"+peerA,
		"/ip4/0.0.0.0/tcp/1/p2p/"+peerA,
		"/ip4/224.0.0.1/tcp/1/p2p/"+peerA,
		"/ip6zone/lo/ip6/fe80::1/tcp/1/p2p/"+peerA,
		"/ip4/10.0.0.3/tcp/1/p2p/"+peerB+"/p2p-circuit/p2p/"+peerA,
		"/ip4/10.0.0.4/tcp/1", "/p2p/"+peerA)
	_, peers := dialectOf(nil).read(msg)
	if len(peers) != 1 || len(peers[0].peer.Addrs) != 1 || peers[0].peer.Addrs[0].String() != "/ip4/10.0.0.1/tcp/1" {
		t.Errorf("%+v", peers)
	}
	if _, peers := dialectOf(nil).read(packed(t, "x._other._udp.local.", own)); len(peers) != 0 {
		t.Errorf("another service's record was read: %+v", peers)
	}
	var goodbye dnsmessage.Message
	if err := goodbye.Unpack(packed(t, "x."+mdnsService, own)); err != nil {
		t.Fatal(err)
	}
	for i := range goodbye.Additionals {
		goodbye.Additionals[i].Header.TTL = 0
	}
	bye, err := goodbye.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, peers := dialectOf(nil).read(bye); len(peers) != 0 {
		t.Errorf("a farewell was read as an announcement: %+v", peers)
	}
}

func FuzzReadMDNS(f *testing.F) {
	q, err := dialectOf(nil).question()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add(packed(f, "me."+mdnsService, "/ip4/10.0.0.1/tcp/4001/p2p/"+peerA, "/ip6/fe80::1/udp/1/quic-v1/p2p/"+peerA))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, peers := dialectOf(nil).read(data)
		if len(peers) > mdnsAddrs {
			t.Errorf("%d peers", len(peers))
		}
		for _, a := range peers {
			if len(a.peer.Addrs) == 0 || len(a.peer.Addrs) > mdnsAddrs || a.peer.ID.Validate() != nil {
				t.Errorf("%+v", a)
			}
			full, err := peer.AddrInfoToP2pAddrs(&a.peer)
			if err != nil {
				t.Fatal(err)
			}
			// What was read can be told on, and reads the same.
			if len(a.instance) > 200 || !strings.HasSuffix(a.instance, mdnsService) {
				continue
			}
			msg, err := dialectOf(nil).announcement("again."+mdnsService, full)
			if err != nil {
				t.Fatal(err)
			}
			_, again := dialectOf(nil).read(msg)
			if len(again) != 1 || !slices.EqualFunc(again[0].peer.Addrs, a.peer.Addrs, func(x, y ma.Multiaddr) bool { return x.Equal(y) }) {
				// Only an address too long for a TXT string may be left out.
				if !slices.ContainsFunc(full, func(m ma.Multiaddr) bool { return len(m.String()) > 240 }) {
					t.Errorf("read %+v, then %+v", a, again)
				}
			}
		}
	})
}

func TestDisguise(t *testing.T) {
	for _, s := range []string{
		"/ip6zone/eth0/ip6/fe80::e006:33ff:feee:823d/udp/4001/quic-v1",
		"/ip6zone/wlp3s0.7/ip6/fe80::1/udp/1/quic-v1",
	} {
		a := ma.StringCast(s)
		hidden := disguise(a)
		if hidden.Equal(a) {
			t.Errorf("%s stays as it is", s)
		}
		if plain, ok := undisguise(hidden); !ok || !plain.Equal(a) {
			t.Errorf("%s became %s and then %v", s, hidden, plain)
		}
	}
	for _, s := range []string{"/ip4/10.0.0.1/tcp/1", "/ip6/2001:db8::1/udp/1/quic-v1", "/ip6/fe80::1/udp/1/quic-v1"} {
		if got := disguise(ma.StringCast(s)); got.String() != s {
			t.Errorf("%s became %s", s, got)
		}
	}
	for _, s := range []string{
		"/dns6/example.org/udp/1/quic-v1",
		"/dns6/00.eth0.link-local.invalid/udp/1/quic-v1",
		"/dns6/20010db8000000000000000000000001.eth0.link-local.invalid/udp/1/quic-v1", // not link-local
		"/dns4/fe800000000000000000000000000001.eth0.link-local.invalid/udp/1/quic-v1",
	} {
		if plain, ok := undisguise(ma.StringCast(s)); ok {
			t.Errorf("%s passed for %s", s, plain)
		}
	}
}

// TestKnownAnswers: who is named as known in a question does not answer it, and who hears a question that names nobody unknown to it
// need not ask.
func TestKnownAnswers(t *testing.T) {
	t.Parallel()
	d := dialectOf(nil)
	instance := func(i int) string { return fmt.Sprintf("%026d.%s", i, mdnsService) }
	var most []string
	for i := range mdnsKnown {
		most = append(most, instance(i))
	}
	for _, c := range []struct {
		known        []string
		answer, rest bool
	}{
		{nil, true, true},
		{[]string{instance(1)}, false, true}, // this host
		{[]string{instance(2)}, true, true},  // a connected peer
		{[]string{instance(1), instance(2)}, false, true},
		{[]string{instance(2), instance(3)}, true, false},  // a peer that this host does not know: it may be known to who asked only
		{[]string{instance(1), instance(4)}, false, false}, // one that is not connected any more
		{most, false, false},
	} {
		h := &Host{}
		h.roster.Add(peerA, 1, "", false)
		m := &mdns{h: h, dialect: d, instance: instance(1), ifaces: map[int]*mdnsIface{7: {}}, instances: map[PeerID]string{peerA: instance(2), peerB: instance(4)}}
		question, err := d.question(c.known...)
		if err != nil {
			t.Fatal(err)
		}
		if known := d.known(question); !slices.Equal(known, c.known) || len(question) > beaconSize {
			t.Errorf("%d bytes name %q, not %q", len(question), known, c.known)
		}
		m.receive(packet{iface: 7, data: question})
		if i := m.ifaces[7]; i.answer != c.answer || i.lastAsk.IsZero() == c.rest {
			t.Errorf("known %q: answers %v, takes it for its own question %v", c.known, i.answer, !i.lastAsk.IsZero())
		}
	}
	var old dnsmessage.Message
	question, err := d.question(instance(1))
	if err == nil {
		err = old.Unpack(question)
	}
	if err != nil {
		t.Fatal(err)
	}
	old.Answers[0].Header.TTL = mdnsTTL/2 - 1
	if question, err = old.Pack(); err != nil {
		t.Fatal(err)
	}
	if known := d.known(question); len(known) != 0 {
		t.Errorf("known for too long: %q", known)
	}
}
