package p2ptransport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/time/rate"
)

const (
	// gossipQueue is how many RPCs may wait for one peer, and messages for being looked at. With pubsub's 32 a burst of 50 lost most.
	gossipQueue = 1024
	// gossipOverhead is what an RPC has beside a payload, or a few control messages.
	gossipOverhead = 8 << 10
	// maxGossipTopics that one peer may announce: two epochs of each room that a busy server shares.
	maxGossipTopics = 512

	// What one neighbour may send: bytes are read no faster, so that its own queue fills; of the messages above the bound nothing is looked
	// at. A message is opened and compared with what is known in some 20 µs.
	gossipBytesRate     = 256 << 10 // per second
	gossipBytesBurst    = 4 << 20
	gossipReadCost      = 128 // bytes that a read counts at least: an RPC of three bytes takes two reads, and some 10 µs to be looked at
	gossipMessagesRate  = 200 // per second
	gossipMessagesBurst = 2000
	// gossipRest is how long a peer to which a stream was lost gets no new one: until it has noticed too.
	gossipRest = 500 * time.Millisecond
	// gossipRefusal is how soon the end of a stream means that the peer takes part in nothing. It will open one when it does.
	gossipRefusal = 2 * time.Second
	// maxNeighbours that are remembered, also while they are away: coming back gives no budget anew.
	maxNeighbours = 1024
)

var errRefusesGossip = errors.New("the peer takes part in no topic now")

// mesh is pubsub while it runs, from the first subscription to the end of the last.
type mesh struct {
	*Gossip
	ctx    context.Context
	cancel context.CancelFunc
	pubsub *pubsub.PubSub
	fresh  chan any       // of the host's event bus: peers to open a stream to
	work   sync.WaitGroup // its own goroutines; those of pubsub end by themselves, soon after ctx and their streams

	state   sync.Mutex
	serving func(*gossipStream)             // pubsub's handler
	streams map[*gossipStream]struct{}      // all open ones, in and out
	told    map[PeerID]map[string]struct{}  // topics that a peer has announced
	grafted map[string]map[peer.ID]struct{} // neighbours by topic
	known   *simplelru.LRU[PeerID, *neighbour]
}

// neighbour is what is remembered of a peer.
type neighbour struct {
	bytes, messages *rate.Limiter // what it may still send
	lost            time.Time     // when a stream to it ended
	refused         bool          // that stream was refused, and the peer has opened none since
}

// topic is a subscription.
type topic struct {
	name    string
	mesh    *mesh
	pubsub  *pubsub.Topic
	relay   pubsub.RelayCancelFunc
	handler *pubsub.TopicEventHandler
	deliver func(PeerID, []byte) bool
	ended   atomic.Bool

	mu    sync.Mutex
	peers map[PeerID]bool
}

// startMesh starts pubsub; changing is held.
func (g *Gossip) startMesh() (*mesh, error) {
	known, err := simplelru.NewLRU[PeerID, *neighbour](maxNeighbours, nil)
	if err != nil {
		return nil, err
	}
	m := &mesh{
		Gossip: g, fresh: make(chan any), known: known,
		streams: make(map[*gossipStream]struct{}), told: make(map[PeerID]map[string]struct{}), grafted: make(map[string]map[peer.ID]struct{}),
	}
	m.ctx, m.cancel = context.WithCancel(g.ctx)
	params := pubsub.DefaultGossipSubParams()
	// A narrower band than the default 5 to 12, for the copies that a node gets are about its neighbours.
	params.D, params.Dlo, params.Dhi, params.Dscore, params.Dout = 6, 4, 8, 4, 2
	params.GossipFactor = 0 // IDs of what is held go to Dlazy others and not to a quarter of all
	params.MaxIHaveLength = gossipQueue
	params.Connectors, params.MaxPendingConnections = 1, 1 // no peer exchange
	m.pubsub, err = pubsub.NewGossipSub(m.ctx, &gossipHost{m: m},
		pubsub.WithGossipSubParams(params),
		pubsub.WithGossipSubProtocols([]protocol.ID{ProtocolGossip}, func(f pubsub.GossipSubFeature, _ protocol.ID) bool {
			return f == pubsub.GossipSubFeatureMesh || f == pubsub.GossipSubFeatureIdontwant
		}),
		pubsub.WithPeerExchange(false),
		pubsub.WithFloodPublish(false),
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(func(m *pb.Message) string { return messageID(m.GetTopic(), m.GetData()) }),
		pubsub.WithMaxMessageSize(MaxGossipPayload+gossipOverhead),
		pubsub.WithMaxControlMessageSize(MaxGossipPayload),
		pubsub.WithPeerOutboundQueueSize(gossipQueue),
		pubsub.WithValidateQueueSize(gossipQueue),
		pubsub.WithValidateWorkers(1), // deliver is to be quick; one goroutine keeps the order
		pubsub.WithSubscriptionFilter(m),
		pubsub.WithAppSpecificRpcInspector(m.inspect),
		pubsub.WithRawTracer(gossipTracer{m}),
	)
	if err != nil {
		m.cancel()
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	g.mu.Lock()
	g.mesh = m
	g.mu.Unlock()
	m.work.Go(func() {
		m.roster.Watch(m.ctx, func(e PeerEvent) {
			if e.Connected {
				m.meet(e.Peer)
			}
		})
	})
	return m, nil
}

// stop ends pubsub and breaks its streams.
func (m *mesh) stop() {
	m.cancel()
	m.breakStreams(func(*gossipStream) bool { return true })
	m.work.Wait()
}

// breakStreams breaks those that are chosen.
func (m *mesh) breakStreams(which func(*gossipStream) bool) {
	m.state.Lock()
	var broken []*gossipStream
	for s := range m.streams {
		if which(s) {
			broken = append(broken, s)
		}
	}
	m.state.Unlock()
	for _, s := range broken {
		_ = s.Reset()
	}
}

// allowed says whether anything is said to a peer, or heard from it.
func (m *mesh) allowed(p PeerID) bool { return m.roster.direct(p) && m.takesPart(p) }

// meet has pubsub open a stream to a peer, if it is one for gossip and pubsub has none.
func (m *mesh) meet(p PeerID) {
	id, err := peer.Decode(string(p))
	if err != nil || !m.allowed(p) {
		return
	}
	select {
	case m.fresh <- identified(id):
	case <-m.ctx.Done():
	}
}

// reconsider is called when a peer may have come to take part, or no longer to.
func (m *mesh) reconsider(p PeerID) {
	if m.takesPart(p) {
		m.meet(p)
		return
	}
	m.breakStreams(func(s *gossipStream) bool { return s.peer == p })
}

// lost is called when a stream that we opened has ended. With it pubsub forgets which topics the peer has, which the peer says only on a
// stream that is new: so its stream ends too, and both begin anew, ours when the peer has had the time to notice.
func (m *mesh) lost(s *gossipStream) {
	m.state.Lock()
	n := m.neighbour(s.peer)
	n.lost = time.Now()
	n.refused = n.lost.Sub(s.opened) < gossipRefusal && !m.hasStream(s.peer)
	m.state.Unlock()
	m.breakStreams(func(other *gossipStream) bool { return other.peer == s.peer && other.budget != nil })
}

// rest waits until a new stream may be opened to a peer.
func (m *mesh) rest(ctx context.Context, p PeerID) error {
	m.state.Lock()
	n := m.neighbour(p)
	wait := time.Until(n.lost.Add(gossipRest))
	m.state.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.state.Lock()
	defer m.state.Unlock()
	if n.refused {
		n.refused = false
		return errRefusesGossip
	}
	return nil
}

// serve reads what a peer sends, until its stream ends. It also makes us open our own stream, by which the peer learns our topics.
func (m *mesh) serve(p PeerID, stream net.Conn) {
	s, err := m.newStream(p, stream)
	if err != nil {
		reset(stream)
		return
	}
	defer s.forget()
	m.state.Lock()
	s.budget = m.neighbour(p)
	s.budget.lost, s.budget.refused = time.Time{}, false
	topics := make(map[string]struct{})
	m.told[p] = topics
	handler := m.serving
	m.state.Unlock()
	defer func() {
		m.state.Lock()
		defer m.state.Unlock()
		if len(m.told[p]) == 0 || !m.hasStream(p) {
			delete(m.told, p)
		}
	}()
	m.meet(p)
	handler(s)
}

// hasStream says whether a stream from the peer is open; state is held.
func (m *mesh) hasStream(p PeerID) bool {
	for s := range m.streams {
		if s.peer == p && s.budget != nil {
			return true
		}
	}
	return false
}

// neighbour is what is remembered of a peer; state is held.
func (m *mesh) neighbour(p PeerID) *neighbour {
	n, ok := m.known.Get(p)
	if !ok {
		n = &neighbour{bytes: rate.NewLimiter(gossipBytesRate, gossipBytesBurst), messages: rate.NewLimiter(gossipMessagesRate, gossipMessagesBurst)}
		m.known.Add(p, n)
	}
	return n
}

// inspect is called by pubsub with each RPC before anything in it is looked at. What is above the sender's budget is taken out; its
// subscriptions and its coming and going in the mesh stay, since nobody would say them again.
func (m *mesh) inspect(from peer.ID, rpc *pubsub.RPC) error {
	p := PeerID(from.String())
	if !m.allowed(p) {
		return errors.New("the peer takes no part in gossip")
	}
	n := len(rpc.Publish)
	if c := rpc.Control; c != nil {
		for _, x := range c.Ihave {
			n += 1 + len(x.MessageIDs)/16
		}
		for _, x := range c.Iwant {
			n += len(x.MessageIDs)
		}
		for _, x := range c.Idontwant {
			n += 1 + len(x.MessageIDs)/16
		}
		for _, x := range c.Prune {
			x.Peers = nil // no peer exchange
		}
	}
	if n > 0 && !m.mayHandle(p, n) {
		m.log.Debug("gossip above a neighbour's budget", "peer", p, "messages", n)
		rpc.Publish = nil
		if c := rpc.Control; c != nil {
			c.Ihave, c.Iwant, c.Idontwant = nil, nil, nil
		}
	}
	return nil
}

// mayHandle takes messages off a peer's budget.
func (m *mesh) mayHandle(p PeerID, messages int) bool {
	m.state.Lock()
	defer m.state.Unlock()
	return m.neighbour(p).messages.AllowN(time.Now(), messages)
}

// CanSubscribe and FilterIncomingSubscriptions are pubsub's SubscriptionFilter: it bounds what one peer may make us remember.
func (m *mesh) CanSubscribe(string) bool { return true }

// FilterIncomingSubscriptions keeps the topics of a peer within bounds.
func (m *mesh) FilterIncomingSubscriptions(from peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	m.state.Lock()
	defer m.state.Unlock()
	topics := m.told[PeerID(from.String())]
	if topics == nil {
		return nil, nil // its stream has ended
	}
	return slices.DeleteFunc(subs, func(s *pb.RPC_SubOpts) bool {
		name := s.GetTopicid()
		if !s.GetSubscribe() {
			delete(topics, name)
			return false
		}
		if _, known := topics[name]; !known && (len(topics) >= maxGossipTopics || len(name) > MaxGossipTopic) {
			return true
		}
		topics[name] = struct{}{}
		return false
	}), nil
}

// join subscribes; changing is held.
func (m *mesh) join(name string, deliver func(PeerID, []byte) bool) (t *topic, err error) {
	t = &topic{name: name, mesh: m, deliver: deliver, peers: make(map[PeerID]bool)}
	if err := m.pubsub.RegisterTopicValidator(name, t.validate, pubsub.WithValidatorInline(true)); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	defer func() {
		if err != nil {
			t.leave()
		}
	}()
	if t.pubsub, err = m.pubsub.Join(name); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	if t.handler, err = t.pubsub.EventHandler(); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	// Relay takes part as a subscription does; payloads are delivered where they are judged.
	if t.relay, err = t.pubsub.Relay(); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	m.work.Go(t.watch)
	return t, nil
}

// leave undoes what join has done, of which a part may be missing.
func (t *topic) leave() {
	if t.relay != nil {
		t.relay()
	}
	if t.handler != nil {
		t.handler.Cancel()
	}
	if t.pubsub != nil {
		_ = t.pubsub.Close()
	}
	_ = t.mesh.pubsub.UnregisterTopicValidator(t.name)
}

// validate is called by pubsub once with each payload, and with our own.
func (t *topic) validate(_ context.Context, from peer.ID, message *pubsub.Message) pubsub.ValidationResult {
	switch {
	case from == t.mesh.id:
		return pubsub.ValidationAccept
	case t.ended.Load() || len(message.GetData()) > MaxGossipPayload || !t.deliver(PeerID(from.String()), message.GetData()):
		return pubsub.ValidationIgnore
	}
	return pubsub.ValidationAccept
}

// watch follows who subscribes, until the subscription or pubsub ends.
func (t *topic) watch() {
	for {
		e, err := t.handler.NextPeerEvent(t.mesh.ctx)
		if err != nil || t.ended.Load() {
			return
		}
		p := PeerID(e.Peer.String())
		t.mu.Lock()
		if e.Type == pubsub.PeerJoin {
			t.peers[p] = true
		} else {
			delete(t.peers, p)
		}
		t.mu.Unlock()
		t.mesh.tell()
	}
}

func (t *topic) subscribers() []PeerID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.peers))
}

func (t *topic) hasNeighbours() bool {
	t.mesh.state.Lock()
	defer t.mesh.state.Unlock()
	return len(t.mesh.grafted[t.name]) > 0
}

// gossipTracer is what pubsub tells of its work.
type gossipTracer struct{ m *mesh }

func (t gossipTracer) Graft(p peer.ID, topic string) {
	t.m.state.Lock()
	defer t.m.state.Unlock()
	if t.m.grafted[topic] == nil {
		t.m.grafted[topic] = make(map[peer.ID]struct{})
	}
	t.m.grafted[topic][p] = struct{}{}
}

func (t gossipTracer) Prune(p peer.ID, topic string) {
	t.m.state.Lock()
	defer t.m.state.Unlock()
	delete(t.m.grafted[topic], p)
}

func (t gossipTracer) Leave(topic string) {
	t.m.state.Lock()
	defer t.m.state.Unlock()
	delete(t.m.grafted, topic)
}

func (t gossipTracer) OnClosedOutboundStream(p peer.ID) {
	t.m.state.Lock()
	defer t.m.state.Unlock()
	for _, neighbours := range t.m.grafted {
		delete(neighbours, p)
	}
}

func (t gossipTracer) ValidateMessage(message *pubsub.Message) {
	if message.ReceivedFrom != t.m.id {
		t.m.copies.Add(1)
		t.m.first.Add(1)
	}
}

func (t gossipTracer) DuplicateMessage(message *pubsub.Message) {
	if message.ReceivedFrom != t.m.id {
		t.m.copies.Add(1)
	}
}

func (gossipTracer) OnNewOutboundStream(peer.ID, protocol.ID)             {}
func (gossipTracer) Join(string)                                          {}
func (gossipTracer) DeliverMessage(*pubsub.Message)                       {}
func (gossipTracer) RejectMessage(*pubsub.Message, string)                {}
func (gossipTracer) ThrottlePeer(peer.ID)                                 {}
func (gossipTracer) RecvRPC(*pubsub.RPC)                                  {}
func (gossipTracer) SendRPC(*pubsub.RPC, peer.ID)                         {}
func (gossipTracer) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
func (gossipTracer) DropRPC(*pubsub.RPC, peer.ID)                         {}
func (gossipTracer) UndeliverableMessage(*pubsub.Message)                 {}
