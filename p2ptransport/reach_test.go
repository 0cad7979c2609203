package p2ptransport

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	ma "github.com/multiformats/go-multiaddr"
)

// TestDialsBackForFriendsOnly: a relay dials for its friends; to a stranger it says nothing, and who relays for nobody does not offer it.
func TestDialsBackForFriendsOnly(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		c       Config
		answers bool
	}{
		"friend":          {Config{Relay: true}, true},
		"stranger":        {Config{Relay: true, Friend: func(PeerID) bool { return false }}, false},
		"no relay":        {Config{}, false},
		"LAN only":        {Config{Relay: true, LANOnly: true}, false},
		"in a priv. mesh": {Config{Relay: true, MeshKey: NewMeshKey(), Listen: []string{"/ip4/127.0.0.1/tcp/0"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, test.c)
			a := start(t, Config{MeshKey: test.c.MeshKey, Listen: test.c.Listen})
			connect(t, a, b)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			answered := false
			s, err := a.host.NewStream(network.WithNoDial(ctx, "test"), b.host.ID(), protocol.ID(autonatv2.DialProtocol))
			if err == nil {
				_, _ = s.Write([]byte{2, 0x0a, 0}) // a question about no address
				_ = s.SetReadDeadline(time.Now().Add(30 * time.Second))
				n, _ := s.Read(make([]byte, 1))
				answered = n > 0
				_ = s.Reset()
			}
			if answered != test.answers {
				t.Errorf("answered: %v (%v)", answered, err)
			}
		})
	}
}

// TestOutside: a node asks about the public addresses at which friends see it, with their port and its own, and about no others.
func TestOutside(t *testing.T) {
	t.Parallel()
	listen := []string{"/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	for _, c := range []Config{{Listen: listen}, {Listen: listen, LANOnly: true}} {
		h := start(t, c)
		friend, stranger := start(t, Config{}).host.ID(), start(t, Config{}).host.ID()
		see := func(addrs ...string) (parsed []ma.Multiaddr) {
			for _, a := range addrs {
				parsed = append(parsed, ma.StringCast(a))
			}
			return parsed
		}
		h.relays.mu.Lock()
		h.relays.peers[friend] = &offer{friend: true, next: time.Now().Add(time.Hour), observed: see("/ip4/11.7.0.1/udp/5555/quic-v1", "/ip4/192.168.1.2/udp/1/quic-v1",
			"/ip4/127.0.0.1/udp/1/quic-v1", "/ip6/2001:4860::1/udp/7/quic-v1", "/ip4/11.7.0.1/tcp/777")}
		h.relays.peers[stranger] = &offer{next: time.Now().Add(time.Hour), observed: see("/ip4/11.9.9.9/udp/1/quic-v1")}
		h.relays.mu.Unlock()
		var got []string
		for _, a := range h.outside() {
			got = append(got, a.String())
		}
		var want []string
		if !c.LANOnly {
			want = []string{"/ip4/11.7.0.1/udp/5555/quic-v1", "/ip6/2001:4860::1/udp/7/quic-v1"}
			for _, l := range h.swarm.ListenAddresses() {
				if port, ok := strings.CutPrefix(l.String(), "/ip4/0.0.0.0/"); ok {
					want = append(want, "/ip4/11.7.0.1/"+port)
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("asks about  %q\nwant        %q", got, want)
		}
	}
}
