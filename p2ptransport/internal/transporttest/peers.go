package transporttest

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// How peers are found, told of and lost.

func testUnreachable(t *testing.T, n *network) {
	client, gone := n.node(nil), n.node(hello)
	if _, err := get(n.ctx(), client, gone, "/"); !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("peer without a known address: %v", err)
	}
	if _, err := get(n.ctx(), client, client, "/"); !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("the node itself: %v", err)
	}
	addrs := gone.Addrs()
	client.AddAddrs(gone.ID(), addrs)
	_ = gone.Close()
	if _, err := get(n.ctx(), client, gone, "/"); !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("peer that is gone: %v", err)
	}
	if err := client.AddPeer(n.ctx(), addrs[0]); !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("AddPeer of a peer that is gone: %v", err)
	}
}

func testAddAddrs(t *testing.T, n *network) {
	server, other, client := n.node(hello), n.node(hello), n.node(nil)
	client.AddAddrs(server.ID(), append([]string{"nonsense", other.Addrs()[0]}, server.Addrs()...))
	if body, err := get(n.ctx(), client, server, "/"); err != nil || body != "hello "+string(client.ID()) {
		t.Errorf("%q, %v", body, err)
	}
	if _, err := get(n.ctx(), client, other, "/"); !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("an address given for another peer was used: %v", err)
	}
}

func testAddPeer(t *testing.T, n *network) {
	server, client := n.node(hello), n.node(nil)
	for _, bad := range []string{"", "nonsense", "/ip4/127.0.0.1/tcp/1", client.Addrs()[0], "/p2p/" + string(server.ID())} {
		if err := client.AddPeer(n.ctx(), bad); err == nil {
			t.Errorf("AddPeer(%q) succeeded", bad)
		}
	}
	n.connect(client, server)
	events := n.watch(client)
	if e := events.next(); e.Peer != server.ID() || !e.Connected || e.Addr == "" {
		t.Errorf("%+v", e)
	}
	peers := client.Peers()
	if len(peers) != 1 || peers[0].ID != server.ID() || peers[0].Addr == "" || peers[0].Relay {
		t.Errorf("peers: %+v", peers)
	}
}

func testStaticPeers(t *testing.T, n *network) {
	server := n.node(hello)
	client := n.nodeWith(p2ptransport.Config{StaticPeers: server.Addrs()})
	if e := n.watch(client).next(); e.Peer != server.ID() || !e.Connected {
		t.Errorf("%+v", e)
	}
	if e := n.watch(server).next(); e.Peer != client.ID() || !e.Connected {
		t.Errorf("%+v", e)
	}
	if _, err := n.make(p2ptransport.Config{Key: Key(t), StaticPeers: []string{"nonsense"}}); err == nil {
		t.Error("a static peer that does not parse was accepted")
	}
}

// events of a Watch.
type events struct {
	t  *testing.T
	ch chan p2ptransport.PeerEvent
}

func (n *network) watch(node p2ptransport.Transport) *events {
	e := &events{n.t, make(chan p2ptransport.PeerEvent, 100)}
	ctx, cancel := context.WithCancel(n.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { node.Watch(ctx, func(p p2ptransport.PeerEvent) { e.ch <- p }) })
	n.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return e
}

func (e *events) next() p2ptransport.PeerEvent {
	e.t.Helper()
	select {
	case p := <-e.ch:
		return p
	case <-time.After(patience):
		e.t.Fatal("no event")
		return p2ptransport.PeerEvent{}
	}
}

func testWatch(t *testing.T, n *network) {
	a, b, c := n.node(hello), n.node(hello), n.node(hello)
	n.connect(a, b)
	first := n.watch(a)
	if e := first.next(); e.Peer != b.ID() || !e.Connected {
		t.Fatalf("%+v", e)
	}
	n.connect(c, a)
	if e := first.next(); e.Peer != c.ID() || !e.Connected || e.Addr == "" {
		t.Fatalf("%+v", e)
	}
	second := n.watch(a) // who comes late hears of both, in the order in which they came
	if e := second.next(); e.Peer != b.ID() || !e.Connected {
		t.Fatalf("%+v", e)
	}
	if e := second.next(); e.Peer != c.ID() || !e.Connected {
		t.Fatalf("%+v", e)
	}
	_ = b.Close()
	for _, events := range []*events{first, second} {
		if e := events.next(); e.Peer != b.ID() || e.Connected {
			t.Fatalf("%+v", e)
		}
	}
	if peers := a.Peers(); len(peers) != 1 || peers[0].ID != c.ID() {
		t.Errorf("%+v", peers)
	}
}

// testRefuse: a peer that is refused loses its connection, gets none when it comes, and is not dialled; afterwards it is found again.
func testRefuse(t *testing.T, n *network) {
	var refused atomic.Pointer[p2ptransport.PeerID]
	a := n.nodeWith(p2ptransport.Config{Handler: hello, Refuse: func(p p2ptransport.PeerID) bool {
		r := refused.Load()
		return r != nil && *r == p
	}})
	b, c := n.node(hello), n.node(hello)
	n.connect(b, a)
	n.connect(c, a)
	n.awaitPeer(a, b.ID())
	events := n.watch(a)
	events.next()
	events.next()
	id := b.ID()
	refused.Store(&id)
	a.RefusalChanged(id)
	if e := events.next(); e.Peer != id || e.Connected {
		t.Fatalf("%+v", e)
	}
	if body, err := get(n.ctx(), b, a, "/"); err == nil {
		t.Errorf("a refused peer was answered %q", body)
	}
	if _, err := get(n.ctx(), a, b, "/"); !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("a request to a refused peer: %v", err)
	}
	if _, err := get(n.ctx(), c, a, "/"); err != nil {
		t.Errorf("another peer: %v", err)
	}
	for _, p := range a.Peers() {
		if p.ID == id {
			t.Error("a refused peer is connected")
		}
	}
	refused.Store(nil)
	a.RefusalChanged(id)
	if e := events.next(); e.Peer != id || !e.Connected {
		t.Fatalf("%+v", e)
	}
	if _, err := get(n.ctx(), b, a, "/"); err != nil {
		t.Errorf("a peer that is no longer refused: %v", err)
	}
}

// testRecords: who is connected to a peer can hand on its signed record, by which a third finds it; what is not signed by the peer, or is no
// newer than what is held, is refused.
func testRecords(t *testing.T, n *network) {
	a, b, c := n.node(nil), n.node(nil), n.node(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	n.connect(b, c)
	n.connect(b, a)
	record, seq := waitRecord(n, b, c.ID())
	if seq == 0 {
		t.Error("a record without a seq")
	}
	if raw, seq := a.Record(c.ID()); raw != nil || seq != 0 {
		t.Fatal("a has a record of a peer never met")
	}
	forged := bytes.Clone(record)
	forged[len(forged)-1] ^= 1
	for name, raw := range map[string][]byte{"forged": forged, "empty": nil, "long": make([]byte, p2ptransport.MaxRecord+1)} {
		if err := a.AddRecord(c.ID(), raw); !errors.Is(err, p2ptransport.ErrRecord) {
			t.Errorf("%s record: %v", name, err)
		}
	}
	if err := a.AddRecord(b.ID(), record); !errors.Is(err, p2ptransport.ErrRecord) {
		t.Errorf("another peer's record: %v", err)
	}
	changed := a.RecordsChanged()
	if err := a.AddRecord(c.ID(), record); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("a new record is not told")
	}
	if err := a.AddRecord(c.ID(), record); !errors.Is(err, p2ptransport.ErrOldRecord) {
		t.Errorf("the same record again: %v", err)
	}
	n.awaitPeer(a, c.ID())
	if _, body := n.do(a, c, request(t, http.MethodGet, "http://x/", nil)); body != "" {
		t.Errorf("answer %q", body)
	}
}

// waitRecord waits until from holds a record of a peer that it is connected to.
func waitRecord(n *network, from p2ptransport.Transport, of p2ptransport.PeerID) ([]byte, uint64) {
	n.t.Helper()
	for {
		changed := from.RecordsChanged()
		if raw, seq := from.Record(of); raw != nil {
			return raw, seq
		}
		select {
		case <-changed:
		case <-n.ctx().Done():
			n.t.Fatal("no record of a connected peer")
		}
	}
}

// awaitPeer waits until a node is connected to the peer.
func (n *network) awaitPeer(at p2ptransport.Transport, peer p2ptransport.PeerID) {
	n.t.Helper()
	ctx, found := context.WithCancel(n.ctx())
	met := false
	at.Watch(ctx, func(e p2ptransport.PeerEvent) {
		if e.Peer == peer && e.Connected {
			met = true
			found()
		}
	})
	if !met {
		n.t.Fatal("the peer was not connected")
	}
}
