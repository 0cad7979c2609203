package transporttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// Gossip of payloads in topics.

const theTopic = "a topic"

func everybody(p2ptransport.PeerID) bool { return true }

// gossips starts a node that gossips with those that with names.
func (n *network) gossips(with func(p2ptransport.PeerID) bool) p2ptransport.Transport {
	n.t.Helper()
	return n.nodeWith(p2ptransport.Config{Gossip: with})
}

// heard is what comes to a subscriber.
type heard struct {
	t        *testing.T
	payloads chan string
	refuse   atomic.Bool // to forward
	cancel   func()
	begun    bool // what is left of the prelude does not count
}

func (n *network) subscribe(node p2ptransport.Transport, topic string) *heard {
	n.t.Helper()
	h := &heard{t: n.t, payloads: make(chan string, 2000)}
	cancel, err := node.Subscribe(topic, func(_ p2ptransport.PeerID, payload []byte) bool {
		h.payloads <- string(payload)
		return !h.refuse.Load()
	})
	if err != nil {
		n.t.Fatal(err)
	}
	h.cancel = cancel
	return h
}

// next is the next payload.
func (h *heard) next() string {
	h.t.Helper()
	for late := time.After(patience); ; {
		select {
		case p := <-h.payloads:
			if !h.begun || !strings.HasPrefix(p, prelude) {
				return p
			}
		case <-late:
			h.t.Fatal("no payload came")
		}
	}
}

// nothing fails if a payload has come.
func (h *heard) nothing(why string) {
	h.t.Helper()
	select {
	case p := <-h.payloads:
		h.t.Errorf("%s: %.40q came", why, p)
	default:
	}
}

// awaitSubscribers waits until a node knows of just these subscribers.
func (n *network) awaitSubscribers(at p2ptransport.Transport, topic string, want ...p2ptransport.Transport) {
	n.t.Helper()
	var ids []p2ptransport.PeerID
	for _, w := range want {
		ids = append(ids, w.ID())
	}
	slices.Sort(ids)
	deadline := time.After(patience)
	for {
		changed := at.SubscribersChanged()
		if slices.Equal(at.Subscribers(topic), ids) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			n.t.Fatalf("%s knows the subscribers %v, want %v", at.ID(), at.Subscribers(topic), ids)
		}
	}
}

// publish publishes as soon as somebody takes what is published.
func (n *network) publish(from p2ptransport.Transport, topic, payload string) {
	n.t.Helper()
	for {
		err := from.Publish(n.ctx(), topic, []byte(payload))
		if err == nil {
			return
		}
		if !errors.Is(err, p2ptransport.ErrNobody) {
			n.t.Fatal(err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-n.ctx().Done():
			n.t.Fatal(err)
		}
	}
}

// mesh waits until each node's payloads come to all others: a topic's neighbours find each other at the heartbeats, and what was published
// before goes to those they had.
func (n *network) mesh(topic string, nodes []p2ptransport.Transport, heard []*heard) {
	n.t.Helper()
	for i, node := range nodes {
		missing := make(map[int]bool)
		for j := range heard {
			if j != i {
				missing[j] = true
			}
		}
		for round := 0; len(missing) > 0; round++ {
			if n.ctx().Err() != nil {
				n.t.Fatalf("%v do not get what %d publishes", missing, i)
			}
			n.publish(node, topic, fmt.Sprint(prelude, i, round))
			for j := range missing {
				if heard[j].isPrelude(i) {
					delete(missing, j)
				}
			}
		}
	}
	for _, h := range heard {
		h.begun = true
	}
}

// prelude begins the payloads of mesh.
const prelude = "prelude "

// isPrelude says whether a prelude of a node comes soon.
func (h *heard) isPrelude(of int) bool {
	for soon := time.After(100 * time.Millisecond); ; {
		select {
		case p := <-h.payloads:
			if strings.HasPrefix(p, fmt.Sprint(prelude, of)) {
				return true
			}
		case <-soon:
			return false
		}
	}
}

// testGossipBurst: what is published at once all comes, also over a node between.
func testGossipBurst(t *testing.T, n *network) {
	a, b, c := n.gossips(everybody), n.gossips(everybody), n.gossips(everybody)
	n.connect(a, b)
	n.connect(c, b)
	ha, hb, hc := n.subscribe(a, theTopic), n.subscribe(b, theTopic), n.subscribe(c, theTopic)
	n.mesh(theTopic, []p2ptransport.Transport{a, b, c}, []*heard{ha, hb, hc})
	want := make(map[string]bool)
	for i := range 50 {
		p := fmt.Sprint(i, string(bytes.Repeat([]byte{byte(i)}, 4000)))
		want[p] = true
		n.publish(a, theTopic, p)
	}
	for _, h := range []*heard{hb, hc} {
		left := make(map[string]bool)
		for p := range want {
			left[p] = true
		}
		for len(left) > 0 {
			p := h.next()
			if !left[p] {
				t.Fatalf("%.10q came twice, or was never sent", p)
			}
			delete(left, p)
		}
	}
}

func testGossipBounds(t *testing.T, n *network) {
	a, b := n.gossips(everybody), n.gossips(everybody)
	n.connect(a, b)
	if err := a.Publish(n.ctx(), theTopic, nil); !errors.Is(err, p2ptransport.ErrNotSubscribed) {
		t.Errorf("published to a topic without part in it: %v", err)
	}
	n.subscribe(a, theTopic)
	if err := a.Publish(n.ctx(), theTopic, []byte("x")); !errors.Is(err, p2ptransport.ErrNobody) {
		t.Errorf("published to nobody: %v", err)
	}
	if _, err := a.Subscribe(theTopic, func(p2ptransport.PeerID, []byte) bool { return true }); err == nil {
		t.Error("one topic was subscribed twice")
	}
	for _, topic := range []string{"", string(make([]byte, p2ptransport.MaxGossipTopic+1))} {
		if _, err := a.Subscribe(topic, func(p2ptransport.PeerID, []byte) bool { return true }); err == nil {
			t.Errorf("a topic of %d bytes was subscribed", len(topic))
		}
	}
	h := n.subscribe(b, theTopic)
	n.awaitSubscribers(a, theTopic, b)
	if err := a.Publish(n.ctx(), theTopic, make([]byte, p2ptransport.MaxGossipPayload+1)); !errors.Is(err, p2ptransport.ErrPayloadTooLarge) {
		t.Errorf("published too much: %v", err)
	}
	n.publish(a, theTopic, string(make([]byte, p2ptransport.MaxGossipPayload)))
	if p := h.next(); len(p) != p2ptransport.MaxGossipPayload {
		t.Errorf("%d bytes came", len(p))
	}
	done, cancel := context.WithCancel(n.ctx())
	cancel()
	if err := a.Publish(done, theTopic, []byte("y")); !errors.Is(err, context.Canceled) {
		t.Errorf("published with an ended context: %v", err)
	}
}

// testGossipStranger: to a peer that Config.Gossip does not name nothing is announced, its streams are broken unread, and it becomes one
// that takes part as soon as Config.Gossip says so.
func testGossipStranger(t *testing.T, n *network) {
	var strange sync.Map
	a, b := n.gossips(func(p p2ptransport.PeerID) bool { _, is := strange.Load(p); return !is }), n.gossips(everybody)
	stranger := n.node(nil)
	strange.Store(stranger.ID(), true)
	opened := make(chan []byte, 100)
	stranger.Handle(p2ptransport.ProtocolGossip, func(_ context.Context, p p2ptransport.PeerID, s net.Conn) {
		defer s.Close()
		if p != a.ID() {
			return
		}
		first := make([]byte, 1000)
		k, _ := s.Read(first)
		opened <- first[:k]
		_, _ = io.Copy(io.Discard, s)
	})
	n.connect(stranger, a)
	n.connect(b, a)
	ha := n.subscribe(a, theTopic)
	n.subscribe(b, theTopic)
	n.awaitSubscribers(a, theTopic, b)
	n.awaitSubscribers(b, theTopic, a)

	// The stranger announces the topic and sends a payload, as gossipsub writes them.
	for range 2 {
		s, err := stranger.OpenStream(n.ctx(), a.ID(), p2ptransport.ProtocolGossip)
		if err == nil {
			_, _ = s.Write(announcement(theTopic))
			_, _ = s.Write(publication(theTopic, "from a stranger"))
			if k, err := s.Read(make([]byte, 1)); err == nil || k > 0 {
				t.Error("the stream of a stranger was answered")
			}
			_ = s.Close()
		}
	}
	n.publish(b, theTopic, "from b")
	if p := ha.next(); p != "from b" {
		t.Errorf("%q came first", p)
	}
	select {
	case said := <-opened:
		t.Errorf("%q was said to a stranger", said)
	default:
	}
	n.awaitSubscribers(a, theTopic, b)

	strange.Delete(stranger.ID())
	a.GossipChanged(stranger.ID())
	select {
	case said := <-opened:
		if !bytes.Contains(said, []byte(theTopic)) {
			t.Errorf("%q was said to who takes part", said)
		}
	case <-time.After(patience):
		t.Fatal("who has come to take part was told nothing")
	}
	s, err := stranger.OpenStream(n.ctx(), a.ID(), p2ptransport.ProtocolGossip)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, _ = s.Write(announcement(theTopic))
	n.awaitSubscribers(a, theTopic, b, stranger)
	_, _ = s.Write(publication(theTopic, "from a friend"))
	if p := ha.next(); p != "from a friend" {
		t.Errorf("%q came", p)
	}

	strange.Store(stranger.ID(), true)
	a.GossipChanged(stranger.ID())
	n.awaitSubscribers(a, theTopic, b)
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the stream of who takes part no more: %v", err)
	}
}

// announcement and publication are RPCs of gossipsub in protobuf, each with its length before it.
func announcement(topic string) []byte {
	return rpc(1, append([]byte{0x08, 1}, field(2, []byte(topic))...)) // subscriptions: subscribe, topicid
}

func publication(topic, payload string) []byte {
	return rpc(2, append(field(2, []byte(payload)), field(4, []byte(topic))...)) // publish: data, topic
}

func rpc(number byte, message []byte) []byte {
	body := field(number, message)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

func field(number byte, b []byte) []byte {
	return append(binary.AppendUvarint([]byte{number<<3 | 2}, uint64(len(b))), b...)
}

// testGossipForward: what the node between does not want forwarded goes no further.
func testGossipForward(t *testing.T, n *network) {
	a, b, c := n.gossips(everybody), n.gossips(everybody), n.gossips(everybody)
	n.connect(a, b)
	n.connect(c, b)
	ha, hb, hc := n.subscribe(a, theTopic), n.subscribe(b, theTopic), n.subscribe(c, theTopic)
	n.mesh(theTopic, []p2ptransport.Transport{a, b, c}, []*heard{ha, hb, hc})
	hb.refuse.Store(true)
	n.publish(a, theTopic, "not forwarded")
	if p := hb.next(); p != "not forwarded" {
		t.Errorf("%q came", p)
	}
	hb.refuse.Store(false)
	n.publish(a, theTopic, "last")
	hb.next()
	if p := hc.next(); p != "last" {
		t.Errorf("%q came beyond a node that did not forward it", p)
	}
}

// testGossipOnce: a payload that comes over several ways, or is published by several, is delivered once.
func testGossipOnce(t *testing.T, n *network) {
	nodes := []p2ptransport.Transport{n.gossips(everybody), n.gossips(everybody), n.gossips(everybody)}
	var heard []*heard
	for i, node := range nodes {
		n.connect(node, nodes[(i+1)%3])
		heard = append(heard, n.subscribe(node, theTopic))
	}
	n.mesh(theTopic, nodes, heard)
	n.publish(nodes[0], theTopic, "one")
	for _, h := range heard[1:] {
		h.next()
	}
	for _, node := range nodes {
		n.publish(node, theTopic, "one")
		n.publish(node, theTopic, "two of "+string(node.ID()))
	}
	for _, h := range heard {
		for range 2 {
			if p := h.next(); p == "one" {
				t.Error("a payload came again, or to who published it")
			}
		}
	}
}

// testGossipCancel: who has cancelled gets nothing more and is nobody's subscriber; who comes late gets what is published from then on.
func testGossipCancel(t *testing.T, n *network) {
	a, b, c := n.gossips(everybody), n.gossips(everybody), n.gossips(everybody)
	n.connect(a, b)
	n.connect(a, c)
	n.subscribe(a, theTopic)
	hb := n.subscribe(b, theTopic)
	n.awaitSubscribers(a, theTopic, b)
	n.publish(a, theTopic, "early")
	hb.next()
	hb.cancel()
	hb.cancel()
	n.awaitSubscribers(a, theTopic)
	if err := b.Publish(n.ctx(), theTopic, []byte("x")); !errors.Is(err, p2ptransport.ErrNotSubscribed) {
		t.Errorf("published after cancel: %v", err)
	}
	hc := n.subscribe(c, theTopic)
	n.awaitSubscribers(a, theTopic, c)
	for round, came := 0, false; !came; round++ {
		if n.ctx().Err() != nil {
			t.Fatal("nothing comes to who came late")
		}
		n.publish(a, theTopic, fmt.Sprint("late", round))
		select {
		case p := <-hc.payloads:
			if came = true; !strings.HasPrefix(p, "late") {
				t.Errorf("%q came to who came late", p)
			}
		case <-time.After(100 * time.Millisecond):
		}
	}
	hb.nothing("after cancel")
	again := n.subscribe(b, theTopic)
	n.awaitSubscribers(a, theTopic, b, c)
	n.awaitSubscribers(b, theTopic, a)
	again.cancel()
	n.awaitSubscribers(a, theTopic, c)
}

// testGossipAgain: who was cut off, or started late, takes part by itself; of who left nothing is kept.
func testGossipAgain(t *testing.T, n *network) {
	a, b := n.gossips(everybody), n.gossips(everybody)
	n.subscribe(a, theTopic)
	n.connect(a, b)
	other := n.subscribe(b, "another topic")
	n.awaitSubscribers(a, theTopic)
	hb := n.subscribe(b, theTopic)
	other.cancel()
	n.awaitSubscribers(a, theTopic, b)
	n.publish(a, theTopic, "x")
	hb.next()
	_ = b.Close()
	n.awaitSubscribers(a, theTopic)
	if _, err := b.Subscribe("another topic", nil); !errors.Is(err, p2ptransport.ErrClosed) {
		t.Errorf("subscribed at a closed node: %v", err)
	}
}

// testGossipFlood: of what one neighbour sends without measure only so much is looked at, while another's comes.
func testGossipFlood(t *testing.T, n *network) {
	a, honest, raw := n.gossips(everybody), n.gossips(everybody), n.node(nil)
	raw.Handle(p2ptransport.ProtocolGossip, func(_ context.Context, _ p2ptransport.PeerID, s net.Conn) {
		defer s.Close()
		_, _ = io.Copy(io.Discard, s)
	})
	n.connect(raw, a)
	n.connect(honest, a)
	var flooded atomic.Int64
	came := make(chan string, 1)
	first := make(chan struct{})
	begin := time.Now()
	if _, err := a.Subscribe(theTopic, func(from p2ptransport.PeerID, payload []byte) bool {
		if from == raw.ID() {
			if flooded.Add(1) == 1 {
				close(first)
			}
		} else {
			select {
			case came <- string(payload):
			default:
			}
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	n.subscribe(honest, theTopic)
	n.awaitSubscribers(honest, theTopic, a)
	s, err := raw.OpenStream(n.ctx(), a.ID(), p2ptransport.ProtocolGossip)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, _ = s.Write(announcement(theTopic))
	const sent = 6000
	for i := range sent {
		if _, err := s.Write(publication(theTopic, fmt.Sprint("flood ", i))); err != nil {
			t.Fatal(err)
		}
	}
	n.publish(honest, theTopic, "honest")
	select {
	case <-came:
	case <-time.After(patience):
		t.Error("what an honest neighbour publishes does not come")
	}
	select {
	case <-first:
	case <-time.After(patience):
		t.Error("nothing of the flood comes")
	}
	// The bound, in p2ptransport/gossipmesh.go, is 2,000 at once and 200 a second.
	if most := 2000 + 200*time.Since(begin).Seconds(); float64(flooded.Load()) > most+1 {
		t.Errorf("%d of %d messages were looked at, want at most %.0f", flooded.Load(), sent, most)
	}
	if _, err := s.Write([]byte{5, 1, 2, 3, 4, 5}); err != nil { // no RPC
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("nonsense was answered")
	}
}
