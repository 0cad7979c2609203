package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/p2ptransport"
)

// spoken are the protocols that a stranger tries beside those that a node names.
var spoken = []protocol.ID{
	federationProtocol, "/plexus/keys/1", "/plexus/carry/1", "/plexus/meet/1", "/plexus/news/1", "/plexus/peers/1", "/plexus/invite/1", "/plexus/gossip/1", "/plexus/gossipkeys/1",
	"/plexus/probe/1", "/meshsub/1.0.0", "/meshsub/1.1.0", "/meshsub/1.2.0", "/meshsub/1.3.0", "/floodsub/1.0.0",
	"/libp2p/circuit/relay/0.2.0/hop", "/libp2p/autonat/2/dial-request", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0",
}

// strangerHost is a libp2p host that nobody knows, and all that it has ever received in streams.
type strangerHost struct {
	host.Host
	mu  sync.Mutex
	got map[protocol.ID]*bytes.Buffer
}

// hear keeps what comes in a stream until it ends or there has been nothing for a while.
func (s *strangerHost) hear(p protocol.ID, from network.Stream) {
	buf := make([]byte, 64<<10)
	for {
		_ = from.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := from.Read(buf)
		s.mu.Lock()
		if s.got[p] == nil {
			s.got[p] = &bytes.Buffer{}
		}
		s.got[p].Write(buf[:n])
		s.mu.Unlock()
		if err != nil {
			_ = from.Reset()
			return
		}
	}
}

// try opens streams of a protocol at once, says something different in each, and hears what is answered.
func (s *strangerHost) try(t *testing.T, to peer.ID, p protocol.ID) {
	framed := func(b string) string { return string(rune(len(b))) + b }
	var all sync.WaitGroup
	for _, said := range []string{
		"",
		"{}\n",
		"\x00\x00\x00\x02{}",
		framed("\x0a\x05\x08\x01\x12\x01x"), // of gossipsub: subscribe to topic x
		framed("\x1a\x0a\x0a\x08\x0a\x01x\x12\x03abc"), // of gossipsub: control messages
		"GET /_matrix/federation/v1/publicRooms HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /_matrix/key/v2/server HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		all.Go(func() {
			stream, err := s.NewStream(t.Context(), to, p)
			if err != nil {
				return
			}
			_ = stream.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(stream, said)
			_ = stream.CloseWrite()
			s.hear(p, stream)
		})
	}
	all.Wait()
}

// TestStranger: a room of nine servers, in which gossip runs, is told by nothing that a stranger gets who is connected to all of them from
// the beginning, tries every protocol with every node, and listens to whatever they send.
func TestStranger(t *testing.T) {
	t.Parallel()
	const servers = 9
	lh, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	defer lh.Close()
	s := &strangerHost{Host: lh, got: map[protocol.ID]*bytes.Buffer{}}
	for _, p := range spoken {
		if !strings.HasPrefix(string(p), "/ipfs/id/") {
			lh.SetStreamHandler(p, func(from network.Stream) { s.hear(from.Protocol(), from) })
		}
	}
	var nodes []*node.Node
	var users []*localUser
	var transports []*p2ptransport.Host
	for i := range servers {
		var peers []string
		for _, n := range nodes {
			peers = append(peers, n.P2PAddrs()[0])
		}
		n, _ := runNodeOn(t, func(c p2ptransport.Config) (p2ptransport.Transport, error) {
			h, err := p2ptransport.New(c)
			if err != nil {
				return nil, err
			}
			transports = append(transports, h)
			return h, nil
		}, peers...)
		info, err := peer.AddrInfoFromString(n.P2PAddrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := lh.Connect(t.Context(), *info); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
		users = append(users, register(t, n, fmt.Sprintf("wanderfalke%d", i)))
	}
	room := users[0].create(map[string]any{"preset": "private_chat", "name": "Hafenbecken", "topic": "Schleusenwaerter"})
	for _, u := range users[1:] {
		users[0].must("POST", "/rooms/"+url.PathEscape(string(room))+"/invite", map[string]any{"user_id": u.id}, nil)
		u.joins(room, nodes[0])
	}
	const body = "Morgenappell an der Muehle"
	var said []eventgraph.EventID
	gossiped := func() (n uint64) {
		for _, h := range transports {
			_, first := h.GossipCounts()
			n += first
		}
		return n
	}
	arrives := func(id eventgraph.EventID) {
		for _, u := range users {
			within(t, 20*time.Second, "the message at all", func() bool { _, ok := u.shows(room, id); return ok })
		}
	}
	within(t, 60*time.Second, "gossip in the room", func() bool {
		said = append(said, users[len(said)%servers].say(room, body))
		if len(said) > 1 {
			arrives(said[len(said)-2])
		}
		return gossiped() > servers
	})
	var all sync.WaitGroup
	for _, n := range nodes {
		id, err := peer.Decode(string(n.PeerID()))
		if err != nil {
			t.Fatal(err)
		}
		protocols, _ := lh.Peerstore().GetProtocols(id)
		protocols = append(protocols, spoken...)
		slices.Sort(protocols)
		for _, p := range slices.Compact(protocols) {
			all.Go(func() { s.try(t, id, p) })
		}
	}
	for range servers { // meanwhile they talk
		said = append(said, users[len(said)%servers].say(room, body))
	}
	all.Wait()
	arrives(said[len(said)-1])
	// The key document is for everybody, as soon as what all strangers share has filled again.
	id, err := peer.Decode(string(nodes[0].PeerID()))
	if err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "an answer to a stranger", func() bool {
		s.try(t, id, federationProtocol)
		s.mu.Lock()
		defer s.mu.Unlock()
		return bytes.Contains(s.got[federationProtocol].Bytes(), []byte(nodes[0].ServerName()))
	})

	secrets := []string{string(room)[1:], body, "Hafenbecken", "Schleusenwaerter", "wanderfalke"}
	for _, id := range said {
		secrets = append(secrets, string(id)[1:])
	}
	topic := regexp.MustCompile(`[0-9a-f]{64}`)
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for p, got := range s.got {
		total += got.Len()
		for _, secret := range secrets {
			if bytes.Contains(got.Bytes(), []byte(secret)) {
				t.Errorf("%s: a stranger is shown %q", p, secret)
			}
		}
		if topic := topic.Find(got.Bytes()); topic != nil {
			t.Errorf("%s: a stranger is shown what looks like a topic: %s", p, topic)
		}
	}
	t.Logf("%d bytes in %d protocols, with none of %d secrets and no topic; %d messages were new by gossip", total, len(s.got), len(secrets), gossiped())
}

// within waits until check is true; what it asks for happens in nodes that tell nobody.
func within(t *testing.T, limit time.Duration, what string, check func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !check(); <-tick.C {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// TestBannedServerAsks: a server that was banned asks by every endpoint of the server-server API for what was said afterwards, whose IDs
// it knows, and gets none of it; nor is any sent to it. The ban itself it gets.
func TestBannedServerAsks(t *testing.T) {
	t.Parallel()
	n, _ := runNode(t)
	alice := register(t, n, "alice")
	p := newPlainPeer(t, n.ServerName(), n.P2PAddrs())
	mallory := p.user("mallory")
	room := alice.create(map[string]any{"preset": "public_chat"})
	r := p.join(room, mallory)
	alice.say(room, "for mallory too")
	p.until("the message of before", func() bool { return len(p.got) > 0 })
	alice.must("POST", "/rooms/"+url.PathEscape(string(room))+"/ban", map[string]any{"user_id": mallory}, nil)
	p.until("the ban", func() bool { return bytes.Contains(bytes.Join(raws(p.got), nil), []byte(`"ban"`)) })
	const secret = "not for the banned"
	var after []eventgraph.EventID
	for range 20 {
		after = append(after, alice.say(room, secret))
	}
	escaped := url.PathEscape(string(room))
	last := url.QueryEscape(string(after[19]))
	asked := 0
	refused := func(method, target string, body any) {
		t.Helper()
		asked++
		status, raw := p.call(as{}, method, target, body)
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%s %s: %d %s", method, target, status, raw)
		}
		for _, id := range after {
			// An error may name what was asked for.
			if status == http.StatusOK && bytes.Contains(raw, []byte(id)) && !strings.Contains(target, url.PathEscape(string(id))) && !strings.Contains(target, url.QueryEscape(string(id))) {
				t.Errorf("%s %s: tells of %s", method, target, id)
			}
		}
	}
	const v1 = "/_matrix/federation/v1/"
	for _, id := range after {
		refused("GET", v1+"event/"+url.PathEscape(string(id)), nil)
	}
	for _, from := range []string{last, url.QueryEscape(string(r.join.ID()))} {
		refused("GET", v1+"backfill/"+escaped+"?limit=100&v="+from, nil)
		refused("GET", v1+"state/"+escaped+"?event_id="+from, nil)
		refused("GET", v1+"state_ids/"+escaped+"?event_id="+from, nil)
	}
	refused("GET", v1+"event_auth/"+escaped+"/"+url.PathEscape(string(after[19])), nil)
	refused("POST", v1+"get_missing_events/"+escaped, map[string]any{"limit": 100, "earliest_events": []eventgraph.EventID{r.join.ID()}, "latest_events": after})
	refused("GET", v1+"timestamp_to_event/"+escaped+"?dir=b&ts="+fmt.Sprint(time.Now().UnixMilli()+1000), nil)
	refused("GET", v1+"make_join/"+escaped+"/"+url.PathEscape(string(mallory))+"?ver=12", nil)
	refused("GET", v1+"make_leave/"+escaped+"/"+url.PathEscape(string(mallory)), nil)
	refused("GET", v1+"make_knock/"+escaped+"/"+url.PathEscape(string(mallory))+"?ver=12", nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes.Contains(bytes.Join(raws(p.got), nil), []byte(secret)) {
		t.Error("it was sent to the banned server")
	}
	t.Logf("%d questions, %d events sent to it", asked, len(p.got))
}

func raws(messages []json.RawMessage) [][]byte {
	all := make([][]byte, len(messages))
	for i, m := range messages {
		all[i] = m
	}
	return all
}
