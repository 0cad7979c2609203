package federation

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Gossip makes large rooms cheap: in a room of more than gossipAbove servers an event is published once, to a topic that the servers have
// subscribed, and goes by transaction only to those that have not (design.md §6). It is an accelerator: what is lost, meetings bring.
//
//	sender   follow ─→ carry ─→ sealed under our key for the room ─→ topic of the room's epoch
//	courier  leaves out what was carried to its server
//	receiver topic ─→ gossiped: opened, or passed on unread ─→ the same takeIn as for a transaction
//	keys     gossipkeys.go: secrets of topics and senders' keys, from peer to peer
//
// Nothing is known of a room of ours in which nothing happens: only a room in which an event came since the start has a secret, a topic
// and keys.

const (
	// gossipAbove is the number of joined servers above which a room is large: with fewer, a transaction to each costs less than keys.
	gossipAbove = 8
	// gossipGather is how long the sender waits for more, so that what is sent within it is one payload.
	gossipGather = 5 * time.Millisecond
	// gossipBytes is the size of a payload before sealing; p2ptransport.MaxGossipPayload is larger. An event that does not fit goes by
	// transaction.
	gossipBytes = 96 << 10
	// gossipLeast is how few subscribers are served by transactions alone.
	gossipLeast = 3
	// publishTimeout bounds what the transport may take to accept a payload.
	publishTimeout = time.Second
	// epochSettle is how long the joined servers must have stayed the same before a secret for them is minted, or at most epochPatience after
	// the secret before: a hundred servers that join one by one are not given a hundred secrets. Meanwhile the epoch before serves.
	epochSettle   = 5 * time.Second
	epochPatience = time.Minute
	// topicsOfRoom is how many epochs of a room we listen to.
	topicsOfRoom = 2
	// maxCarried bounds the events of which is known to whom gossip carried them; what is forgotten goes by transaction too.
	maxCarried = 4096
	// gossipPatience is how long the parents of what has come are waited for before they are asked for: payloads overtake each other.
	gossipPatience = time.Second
	// gossipWorkers take in what was opened; gossipQueued payloads may wait for them, and of one server gossipQueuedOf. What finds no
	// place is dropped.
	gossipWorkers  = 4
	gossipQueued   = 256
	gossipQueuedOf = 64
	// strayEvery and strayBurst are the budget of each peer for payloads that we cannot open: so many are passed on, for others may have
	// the key, and cost us no more. maxStrays bounds the peers whose use of it is remembered.
	strayEvery = 50 * time.Millisecond
	strayBurst = 400
	maxStrays  = 1024
)

// gossip is what is known of large rooms.
type gossip struct {
	self    eventgraph.ServerName
	now     func() time.Time
	started store.Position // what is older is not published
	queue   chan opened
	woken   chan struct{} // holds a token when there is something to do for runGossip
	serving chan struct{} // a slot for each exchange of keys that is being answered

	answering keyedLock[eventgraph.ServerName] // of these, one of a server at a time: who does not go on with them holds up nobody else's

	checking chan struct{} // holds a token when there is something in unchecked

	refreshing sync.Mutex // from reading what has changed until rooms shows it; taken before mu

	mu      sync.Mutex
	rooms   map[eventgraph.RoomID]*gossipRoom // the large ones
	reached store.Position                    // up to which events were published, if they were to be
	queued  map[eventgraph.ServerName]int     // payloads in queue
	offers  map[eventgraph.PeerID]*offering   // of the contacts (gossipkeys.go)

	unchecked map[eventgraph.RoomID]int // large rooms in which gossip may have lost something, and how often to check (gossipcheck.go)

	carried *lru.Cache[eventgraph.EventID, map[eventgraph.ServerName]bool]
	strays  *lru.Cache[eventgraph.PeerID, *rate.Limiter]
}

// gossipRoom is a large room.
type gossipRoom struct {
	id      eventgraph.RoomID
	servers []eventgraph.ServerName // joined now, sorted
	members []eventgraph.ServerName // of these, those that may be given keys: not us, and none that the server ACL denies
	epoch   epoch                   // of servers
	since   time.Time               // when the epoch began here
	awake   bool                    // something has happened in it since the start
	minted  time.Time               // when we last made a secret, or began to know the room

	topics []*gossipTopic        // newest first, at most topicsOfRoom
	early  map[epoch]topicSecret // for epochs that are not ours yet, at most maxEarly
	turns  int                   // secrets that gave way to others in this epoch

	key   *sealingKey                                 // ours; nil until it is needed
	made  time.Time                                   // when
	given map[eventgraph.PeerID]eventgraph.ServerName // who may have it, and of which server; who has said so is in offering

	keys  map[keyID]*openingKey // others'; at most keysOfServer for each
	taken uint64                // of them so far
}

// gossipTopic is the topic of an epoch.
type gossipTopic struct {
	name    string
	epoch   epoch
	secret  topicSecret
	servers []eventgraph.ServerName
}

// opened is a payload that was opened.
type opened struct {
	room   eventgraph.RoomID
	origin eventgraph.ServerName
	plain  []byte
}

// gossipBatch is what is sealed.
type gossipBatch struct {
	PDUs []json.RawMessage `json:"pdus"`
}

func newGossip(c Config) *gossip {
	carried, err1 := lru.New[eventgraph.EventID, map[eventgraph.ServerName]bool](maxCarried)
	strays, err2 := lru.New[eventgraph.PeerID, *rate.Limiter](maxStrays)
	if err := errors.Join(err1, err2); err != nil {
		panic("federation: gossip: " + err.Error()) // only for a size below 1
	}
	at := c.Store.Position()
	return &gossip{
		self: c.Key.Server, now: c.Now, started: at, reached: at, carried: carried, strays: strays,
		queue: make(chan opened, gossipQueued), woken: make(chan struct{}, 1), serving: make(chan struct{}, exchangesServed),
		rooms: map[eventgraph.RoomID]*gossipRoom{}, queued: map[eventgraph.ServerName]int{}, offers: map[eventgraph.PeerID]*offering{},
		unchecked: map[eventgraph.RoomID]int{}, checking: make(chan struct{}, 1),
	}
}

// Gossips says whether the peer is connected and speaks for a server that is in a large room with us: for p2ptransport.Config.
func (f *Federation) Gossips(peer eventgraph.PeerID) bool {
	if f.gossip == nil || f.peers.refuses(peer) {
		return false
	}
	server, known := f.ServerOf(peer)
	return known && f.gossip.sharesLarge(server)
}

func (g *gossip) sharesLarge(server eventgraph.ServerName) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.rooms {
		if r.isMember(server) {
			return true
		}
	}
	return false
}

func (r *gossipRoom) isMember(server eventgraph.ServerName) bool {
	_, in := slices.BinarySearch(r.members, server)
	return in
}

// refreshGossip brings the large rooms up to the store.
func (f *Federation) refreshGossip() error {
	f.gossip.refreshing.Lock()
	defer f.gossip.refreshing.Unlock()
	changed, err := f.meetings.sharing.changes()
	if err != nil || len(changed) == 0 {
		return err
	}
	members := make([][]eventgraph.ServerName, len(changed))
	for i, c := range changed {
		if len(c.servers) <= gossipAbove {
			continue
		}
		for _, s := range c.servers {
			if s != f.server && f.allows(c.id, s) {
				members[i] = append(members[i], s)
			}
		}
	}
	g := f.gossip
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, c := range changed {
		if _, in := slices.BinarySearch(c.servers, f.server); !in || len(c.servers) <= gossipAbove {
			if g.rooms[c.id] != nil {
				delete(g.rooms, c.id)
				signal(g.woken)
			}
			continue
		}
		r := g.rooms[c.id]
		if r == nil {
			r = &gossipRoom{id: c.id, early: map[epoch]topicSecret{}, keys: map[keyID]*openingKey{}, given: map[eventgraph.PeerID]eventgraph.ServerName{}}
			g.rooms[c.id] = r
			signal(g.woken)
		}
		if r.update(c, members[i], g.now()) {
			signal(g.woken)
		}
	}
	return nil
}

// update takes in a change of the room and says whether it concerns others than the sender.
func (r *gossipRoom) update(c roomChange, members []eventgraph.ServerName, now time.Time) (news bool) {
	news = !r.awake && !c.fresh
	r.awake = r.awake || !c.fresh
	if r.servers == nil {
		r.minted = now
	}
	if e := epochOf(r.id, c.servers); e != r.epoch || r.servers == nil {
		r.epoch, r.since, r.turns, news = e, now, 0, true
		if secret, ok := r.early[e]; ok {
			delete(r.early, e)
			r.adopt(e, c.servers, secret)
		}
	}
	if !slices.Equal(members, r.members) {
		news = true
	}
	r.servers, r.members = c.servers, members
	for id, k := range r.keys {
		if !r.isMember(k.server) {
			delete(r.keys, id)
		}
	}
	// Whoever may have the key and is not, or may no longer be, in the room, shall not open what comes now.
	for _, s := range r.given {
		if !r.isMember(s) {
			r.key = nil
		}
	}
	return news
}

// adopt makes a secret the one of an epoch that we are or were in, if it counts.
func (r *gossipRoom) adopt(e epoch, servers []eventgraph.ServerName, secret topicSecret) (adopted bool) {
	t := &gossipTopic{name: topicName(secret, e), epoch: e, secret: secret, servers: servers}
	if i := slices.IndexFunc(r.topics, func(t *gossipTopic) bool { return t.epoch == e }); i >= 0 {
		if !secret.before(r.topics[i].secret) || r.turns >= maxTurnsOfEpoch {
			return false
		}
		r.turns++
		r.topics[i] = t
		return true
	}
	r.topics = append([]*gossipTopic{t}, r.topics[:min(len(r.topics), topicsOfRoom-1)]...)
	return true
}

// topicOf is the epoch's topic, if its secret is known.
func (r *gossipRoom) topicOf(e epoch) *gossipTopic {
	for _, t := range r.topics {
		if t.epoch == e {
			return t
		}
	}
	return nil
}

// publishable lists the topics on which we may publish, the newest first: to an older epoch only while nobody has left it.
func (r *gossipRoom) publishable() (all []*gossipTopic) {
	for _, t := range r.topics {
		gone := slices.ContainsFunc(t.servers, func(s eventgraph.ServerName) bool {
			_, in := slices.BinarySearch(r.servers, s)
			return !in
		})
		if !gone {
			all = append(all, t)
		}
	}
	return all
}

// mint makes a secret for the epoch if it is time for one: none is known, and the room has come to rest.
func (r *gossipRoom) mint(now time.Time) {
	if r.topicOf(r.epoch) != nil || now.Sub(r.since) < epochSettle && now.Sub(r.minted) < epochPatience {
		return
	}
	r.minted = now
	r.adopt(r.epoch, r.servers, newTopicSecret())
}

// sealing is our key for the room, a new one if there is none, or the one before has come to its end.
func (r *gossipRoom) sealing(self eventgraph.ServerName, now time.Time) *sealingKey {
	if r.key == nil || r.key.next >= keyLife || now.Sub(r.made) > keyAge {
		r.key, r.made, r.given = newSealingKey(self, r.id), now, map[eventgraph.PeerID]eventgraph.ServerName{}
	}
	return r.key
}

// carry publishes those of the changes that are for large rooms, and returns up to where the sender is to go on: what comes within gossipGather is published together. Only
// afterwards do couriers look at these changes.
func (f *Federation) carry(ctx context.Context, from, upTo store.Position) store.Position {
	g := f.gossip
	if g == nil {
		return upTo
	}
	gathered := false
	for {
		if err := f.refreshGossip(); err != nil {
			f.Log.Error("cannot tell which rooms are large", "err", err)
			break
		}
		g.mu.Lock()
		begin := max(from, g.reached)
		g.mu.Unlock()
		events, err := f.toCarry(begin, upTo)
		if err != nil {
			f.Log.Error("cannot tell what to gossip", "err", err)
			break
		}
		if len(events) > 0 && !gathered {
			gathered = true
			select {
			case <-time.After(gossipGather):
			case <-ctx.Done():
			}
			if now := f.Store.Position(); now > upTo {
				upTo = now
				continue
			}
		}
		for len(events) > 0 {
			n := 1
			for n < len(events) && events[n].RoomID() == events[0].RoomID() {
				n++
			}
			f.publish(ctx, events[0].RoomID(), events[:n])
			events = events[n:]
		}
		break
	}
	g.mu.Lock()
	g.reached = max(g.reached, upTo)
	g.mu.Unlock()
	return upTo
}

// reachedBy is up to where couriers may look.
func (g *gossip) reachedBy() store.Position {
	if g == nil {
		return math.MaxUint64
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reached
}

// hasCarried says whether gossip has brought the event to the server, as far as we can tell.
func (g *gossip) hasCarried(server eventgraph.ServerName, event eventgraph.EventID) bool {
	if g == nil {
		return false
	}
	to, _ := g.carried.Peek(event)
	return to[server]
}

// toCarry lists the events among the changes that are for us to announce, of large rooms, by room.
func (f *Federation) toCarry(from, upTo store.Position) (events []*store.StoredEvent, err error) {
	g := f.gossip
	if from >= upTo {
		return nil, nil
	}
	err = f.Store.View(func(r *store.Reader) error {
		return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
			if c.Kind != store.ChangeEvent {
				return true, nil
			}
			g.mu.Lock()
			large := g.rooms[c.Room] != nil
			g.mu.Unlock()
			if !large {
				return true, nil
			}
			e, err := r.Event(c.Event)
			if errors.Is(err, store.ErrNotFound) {
				return true, nil
			}
			if err == nil && f.announces(e, c) {
				events = append(events, e)
			}
			return true, err
		})
	})
	slices.SortStableFunc(events, func(a, b *store.StoredEvent) int {
		if a.RoomID() < b.RoomID() {
			return -1
		} else if a.RoomID() > b.RoomID() {
			return 1
		}
		return 0
	})
	return events, err
}

// publish seals events of a room and publishes them, in as few payloads as hold them.
func (f *Federation) publish(ctx context.Context, room eventgraph.RoomID, events []*store.StoredEvent) {
	g := f.gossip
	revoked := f.anyRevoked(g.holders(room))
	g.mu.Lock()
	r := g.rooms[room]
	if r == nil {
		g.mu.Unlock()
		return
	}
	if revoked {
		r.key = nil
	}
	r.mint(g.now())
	r.sealing(g.self, g.now())
	topics := r.publishable()
	g.mu.Unlock()
	signal(g.woken) // whoever lacks our key or the secret shall be given it
	var topic *gossipTopic
	var reached map[eventgraph.ServerName]bool
	for _, t := range topics {
		if able := f.able(room, t.name); len(able) > len(reached) {
			topic, reached = t, able
		}
	}
	if len(reached) < gossipLeast {
		return
	}
	holders := g.holders(room)
	for len(events) > 0 {
		batch := gossipBatch{}
		var carried []eventgraph.EventID
		size := 0
		n := 0
		for ; n < len(events) && len(batch.PDUs) < maxPDUs; n++ {
			raw := served(events[n])
			if len(raw) > gossipBytes || !f.mayAllSee(holders, events[n]) {
				continue
			}
			if size += len(raw); size > gossipBytes {
				break
			}
			batch.PDUs = append(batch.PDUs, raw)
			carried = append(carried, events[n].ID())
		}
		events = events[n:]
		if len(carried) == 0 {
			continue
		}
		if err := f.publishBatch(ctx, room, topic, batch, holders); err != nil {
			f.Log.Debug("events not gossiped", "room", room, "events", len(carried), "err", err)
			return
		}
		for _, id := range carried {
			g.carried.Add(id, reached)
		}
		g.published(room)
	}
}

// able lists the servers of the room that subscribe to the topic and have said that they have our key.
func (f *Federation) able(room eventgraph.RoomID, topic string) map[eventgraph.ServerName]bool {
	g := f.gossip
	able := map[eventgraph.ServerName]bool{}
	for _, peer := range f.Config.Gossip.Subscribers(topic) {
		server, known := f.ServerOf(peer)
		since, connected := f.peers.since(peer)
		if !known || !connected {
			continue
		}
		g.mu.Lock()
		if r := g.rooms[room]; r != nil && r.key != nil && r.isMember(server) && g.offers[peer].took(since, room, r.key.id) {
			able[server] = true
		}
		g.mu.Unlock()
	}
	return able
}

// holders are the peers that may have our key for the room, with their servers.
func (g *gossip) holders(room eventgraph.RoomID) map[eventgraph.PeerID]eventgraph.ServerName {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.rooms[room]; r != nil {
		return maps.Clone(r.given)
	}
	return nil
}

// anyRevoked says whether one of the peers no longer speaks for its server: its certificate has ended, or was withdrawn.
func (f *Federation) anyRevoked(peers map[eventgraph.PeerID]eventgraph.ServerName) bool {
	for peer, server := range peers {
		if d := f.document(server); d == nil || !speaksNow(d, peer, f.Now()) {
			return true
		}
	}
	return false
}

func (f *Federation) mayAllSee(holders map[eventgraph.PeerID]eventgraph.ServerName, e *store.StoredEvent) bool {
	for _, s := range holders {
		if may, err := f.Rooms.MaySeeServer(s, e); err != nil || !may {
			return false
		}
	}
	return true
}

var errKeyMoved = errors.New("our key for the room is not what it was")

// publishBatch seals and publishes what the holders of our key may see, if they are still all.
func (f *Federation) publishBatch(ctx context.Context, room eventgraph.RoomID, topic *gossipTopic, batch gossipBatch, holders map[eventgraph.PeerID]eventgraph.ServerName) error {
	plain, err := marshal(batch)
	if err != nil {
		return err
	}
	payload, err := f.gossip.seal(room, topic.name, plain, holders)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	return f.Config.Gossip.Publish(ctx, topic.name, payload)
}

func (g *gossip) seal(room eventgraph.RoomID, topic string, plain []byte, holders map[eventgraph.PeerID]eventgraph.ServerName) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.rooms[room]
	if r == nil || r.key == nil || r.key.next >= keyLife {
		return nil, errKeyMoved
	}
	for peer, server := range r.given {
		if holders[peer] != server {
			return nil, errKeyMoved
		}
	}
	return r.key.seal(topic, plain), nil
}

// gossiped is called with each payload of a topic, and says whether it is to be passed on. What we cannot open may be for others.
func (f *Federation) gossiped(room eventgraph.RoomID, topic string, from eventgraph.PeerID, payload []byte) (forward bool) {
	g := f.gossip
	id, err := sealedBy(payload)
	if err != nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.rooms[room]
	if r == nil {
		return false
	}
	k := r.keys[id]
	if k == nil || k.far(payload) {
		if !g.strayFrom(from) {
			return false
		}
		if k == nil {
			return true
		}
	}
	plain, err := k.open(topic, payload)
	if err != nil {
		g.strayFrom(from)
		return false
	}
	if f.peers.isBlocked(k.server) {
		return true
	}
	if g.queued[k.server] < gossipQueuedOf {
		select {
		case g.queue <- opened{room, k.server, plain}:
			g.queued[k.server]++
			return true
		default:
		}
	}
	f.askLater(k.server)
	return true
}

// askLater lets the next meeting with the server be soon: what it published was dropped, and it believes that we have it.
func (f *Federation) askLater(server eventgraph.ServerName) {
	for _, peer := range f.peers.of(server) {
		f.meetings.hint(peer)
	}
}

// strayFrom takes from a peer's budget for what we cannot open; false if nothing is left of it. mu is held.
func (g *gossip) strayFrom(peer eventgraph.PeerID) bool {
	budget, ok := g.strays.Get(peer)
	if !ok {
		budget = rate.NewLimiter(rate.Every(strayEvery), strayBurst)
		g.strays.Add(peer, budget)
	}
	return budget.AllowN(g.now(), 1)
}

// takeGossip takes in what was opened, as from a transaction of the server whose key it was, until ctx ends.
func (f *Federation) takeGossip(ctx context.Context) error {
	g := f.gossip
	for {
		var o opened
		select {
		case o = <-g.queue:
		case <-ctx.Done():
			return nil
		}
		g.mu.Lock()
		if g.queued[o.origin]--; g.queued[o.origin] <= 0 {
			delete(g.queued, o.origin)
		}
		g.mu.Unlock()
		if err := f.takeOpened(ctx, o); err != nil && ctx.Err() == nil {
			f.Log.Debug("gossip not taken in; a meeting will bring the events", "room", o.room, "origin", o.origin, "err", err)
			f.askLater(o.origin)
		}
	}
}

// takeOpened takes in a payload, or drops it if the server has used up what it may have us do: nobody's gossip waits for another's.
func (f *Federation) takeOpened(ctx context.Context, o opened) error {
	if err := spend(ctx, f.budgets.friend(o.origin), costRequest+len(o.plain)/costBody, 0); err != nil {
		return err
	}
	var batch gossipBatch
	if err := json.Unmarshal(o.plain, &batch); err != nil {
		return err
	}
	if len(batch.PDUs) > maxPDUs {
		return errTooLong
	}
	ctx, cancel := context.WithTimeout(ctx, receiveTimeout)
	defer cancel()
	for _, run := range f.parsePDUs(o.origin, batch.PDUs, map[eventgraph.EventID]pduResult{}) {
		if run.room != o.room {
			continue
		}
		if err := f.admitEvents(ctx, o.origin, run, 0); err != nil {
			return err
		}
		if _, err := f.takeInPatiently(ctx, run.room, run.events, o.origin, gossipPatience); err != nil {
			return err
		}
	}
	return nil
}
