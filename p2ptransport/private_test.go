package p2ptransport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

func TestMeshKeyFile(t *testing.T) {
	t.Parallel()
	key := NewMeshKey()
	got, err := ReadMeshKey(strings.NewReader(key.String()))
	if err != nil || *got != *key {
		t.Errorf("read back: %v", err)
	}
	if *key == *NewMeshKey() {
		t.Error("two new keys are equal")
	}
	const hex = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
	for name, c := range map[string]struct{ text, word string }{
		"of others":   {"/key/swarm/psk/1.0.0/\n/base16/\n" + hex, ""},
		"Windows":     {"/key/swarm/psk/1.0.0/\r\n/base16/\r\n" + hex + "\r\n", ""},
		"base64":      {"/key/swarm/psk/1.0.0/\n/base64/\nAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n", ""},
		"empty":       {"", "ends too soon"},
		"short":       {"/key/swarm/psk/1.0.0/\n/base16/\n0102\n", "hex"},
		"another":     {"-----BEGIN PRIVATE KEY-----\n", "expected file header"},
		"no encoding": {"/key/swarm/psk/1.0.0/\n" + hex + "\n", "encoding"},
		"zero":        {"/key/swarm/psk/1.0.0/\n/base16/\n" + strings.Repeat("0", 64), "all zero"},
		"no hex":      {"/key/swarm/psk/1.0.0/\n/base16/\n" + strings.Repeat("x", 64), "hex"},
	} {
		got, err := ReadMeshKey(strings.NewReader(c.text))
		switch {
		case c.word == "" && (err != nil || got[0] != 1 || got[31] != 32):
			t.Errorf("%s: %v", name, err)
		case c.word != "" && (err == nil || !strings.Contains(err.Error(), c.word)):
			t.Errorf("%s: error %v, want one that says %q", name, err, c.word)
		}
	}
}

// TestPrivateMesh: those that hold the key talk over TCP and WebSocket; others, with no key or another one, reach nobody and
// are reached by nobody.
func TestPrivateMesh(t *testing.T) {
	t.Parallel()
	for name, listen := range map[string]string{"TCP": "/ip4/127.0.0.1/tcp/0", "WebSocket": "/ip4/127.0.0.1/tcp/0/ws"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := NewMeshKey()
			run := func(key *MeshKey) *Host {
				return start(t, Config{Listen: []string{listen}, MeshKey: key, Handler: http.HandlerFunc(serveFile)})
			}
			a, b, keyless, other := run(key), run(key), run(nil), run(NewMeshKey())
			connect(t, a, b)
			if got := mustFetch(t, a, b.ID(), "/"); string(got) != "here" {
				t.Errorf("answer %q", got)
			}
			var wg sync.WaitGroup
			for _, pair := range [][2]*Host{{keyless, a}, {a, keyless}, {other, a}, {a, other}} {
				wg.Go(func() {
					if err := pair[0].AddPeer(t.Context(), pair[1].Addrs()[0]); !errors.Is(err, ErrUnreachable) {
						t.Errorf("%s to %s: %v", pair[0].ID(), pair[1].ID(), err)
					}
				})
			}
			wg.Wait()
			if got := a.Peers(); len(got) != 1 {
				t.Errorf("peers: %v", got)
			}
		})
	}
	if _, err := New(Config{Key: start(t, Config{}).testKey(t), Listen: []string{loopback}, MeshKey: NewMeshKey()}); err == nil || !strings.Contains(err.Error(), "TCP and WebSocket only") {
		t.Errorf("QUIC in a private mesh: %v", err)
	}
}

func (h *Host) testKey(t *testing.T) []byte {
	t.Helper()
	raw, err := h.host.Peerstore().PrivKey(h.host.ID()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestPrivateMeshIsSilent: who connects without the key is sent not one byte, whatever it says.
func TestPrivateMeshIsSilent(t *testing.T) {
	t.Parallel()
	a := start(t, Config{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, MeshKey: NewMeshKey()})
	addr, err := manet.ToNetAddr(ma.StringCast(strings.Split(a.Addrs()[0], "/p2p/")[0]))
	if err != nil {
		t.Fatal(err)
	}
	for name, say := range map[string]string{
		"nothing":   "",
		"little":    "\x13/multistream/1.0.0\n",
		"in clear":  strings.Repeat("\x13/multistream/1.0.0\n\x07/noise\n", 10),
		"nonce":     strings.Repeat("n", pskNonce),
		"nonsense":  strings.Repeat("n", 1000),
		"all zeros": string(make([]byte, pskNonce+len(pskGreeting))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial(addr.Network(), addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, say); err != nil {
				t.Fatal(err)
			}
			closes, listen := len(say) >= pskNonce+len(pskGreeting), 300*time.Millisecond
			if closes {
				listen = 30 * time.Second
			}
			_ = c.SetReadDeadline(time.Now().Add(listen))
			got, err := io.ReadAll(c)
			if len(got) != 0 {
				t.Errorf("answered by %d bytes: %q", len(got), got)
			}
			if closes && errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection stays open")
			}
		})
	}
}

// TestPrivateMDNS: what a private mesh announces is read by those with its key, and tells others nothing.
func TestPrivateMDNS(t *testing.T) {
	t.Parallel()
	key := NewMeshKey()
	private, same, other, open := dialectOf(key), dialectOf(key), dialectOf(NewMeshKey()), dialectOf(nil)
	addr := "/ip4/10.1.2.3/tcp/4001/p2p/" + peerA
	msg, err := private.announcement("me."+private.service, []ma.Multiaddr{ma.StringCast(addr)})
	if err != nil {
		t.Fatal(err)
	}
	if _, peers := same.read(msg); len(peers) != 1 || peers[0].peer.ID.String() != peerA || len(peers[0].peer.Addrs) != 1 {
		t.Errorf("with the key: %v", peers)
	}
	for name, d := range map[string]dialect{"another key": other, "no key": open, "another key and the right service": {private.service, NewMeshKey()}, "no key and the right service": {private.service, nil}} {
		if _, peers := d.read(msg); len(peers) != 0 {
			t.Errorf("with %s: %v", name, peers)
		}
	}
	for _, secret := range []string{peerA, "10.1.2.3", "\x0a\x01\x02\x03", "4001", "\x0f\xa1", "plexus", "dnsaddr"} {
		if bytes.Contains(msg, []byte(secret)) {
			t.Errorf("the announcement shows %q", secret)
		}
	}
	q, err := private.question()
	if err != nil {
		t.Fatal(err)
	}
	if asked, _ := same.read(q); !asked {
		t.Error("the question is not understood with the key")
	}
	for _, d := range []dialect{other, open} {
		if asked, _ := d.read(q); asked {
			t.Error("the question is answered without the key")
		}
	}
	if service, _, _ := strings.Cut(private.service, "."); len(service) > 16 || private.service == other.service {
		t.Errorf("service names %s and %s", private.service, other.service)
	}
}
