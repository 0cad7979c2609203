package federation

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Who is in a large room needs the secret of its epoch, to find the topic, and the key of each sender, to open what it publishes. Both go
// straight from peer to peer, over streams of their own, and only to a peer that speaks for a server joined to the room as the giver
// knows it:
//
//	asker  offers: of each room that both are in, what the giver lacks; its own key for it
//	giver  offers: the same the other way round, and which keys it took
//	asker  which keys it took
//
// A peer that subscribes to the topic has the secret, so nobody tells it again. So a new secret costs one exchange for each server; a
// server that joins is given a key by each of the others, once; and after a removal all give new ones.

// protocolKeys is spoken on streams of its own; who does not know it gets transactions.
const protocolKeys = "/plexus/gossipkeys/1"

const (
	// maxOffers bounds the rooms of one exchange; the next goes on.
	maxOffers = 200
	// exchangesAtOnce and exchangesServed bound the exchanges that go on, as asker and as giver.
	exchangesAtOnce = 4
	exchangesServed = 8
	// exchangeTimeout is how long one may take.
	exchangeTimeout = 10 * time.Second
	// exchangePause is between two rounds of exchanges, and how much longer of two peers the one with the higher ID leaves it to the other.
	exchangePause = time.Second
	// exchangeRetry and exchangeSeldom bound the time until a peer that did not take what it was offered is offered it again.
	exchangeRetry  = 10 * time.Second
	exchangeSeldom = 10 * time.Minute
	// gossipLook is how often it is looked for something to exchange that nothing has announced.
	gossipLook = 15 * time.Second
	// keyAge is how long a key is used: who has stolen it opens no more than that.
	keyAge = 24 * time.Hour
	// keysOfServer is how many keys of one server are kept for a room: the newest, and the one before, of which something may still be on its way.
	keysOfServer = 2
	// maxEarly bounds the secrets kept for epochs of a room that are not ours yet, maxTurnsOfEpoch how often one gives way to another:
	// of honest ones as often as several are minted at a time.
	maxEarly        = 4
	maxTurnsOfEpoch = 20
)

// gossipOffer is what is given of a room: the secret of an epoch, or the giver's key from a payload on, or both.
type gossipOffer struct {
	Room   eventgraph.RoomID `json:"room"`
	Epoch  []byte            `json:"epoch,omitempty"`
	Secret []byte            `json:"secret,omitempty"`
	Mark   []byte            `json:"mark,omitempty"`
	Next   uint32            `json:"next,omitempty"`
	Key    []byte            `json:"key,omitempty"`
}

// gossipOffers is a message of the protocol. Took are the places of the rooms, among the other side's offers, whose key was taken.
type gossipOffers struct {
	Offers []gossipOffer `json:"offers,omitempty"`
	Took   []int         `json:"took,omitempty"`
}

// offering is what a contact was offered.
type offering struct {
	since  uint64                      // the turn at which it was met: one that comes anew may have forgotten
	keys   map[eventgraph.RoomID]keyID // our keys that it has taken; bounded by the large rooms
	told   map[eventgraph.RoomID]told  // secrets that it has taken; likewise
	failed int                         // exchanges that did not bring it what it lacked
	next   time.Time                   // not before
}

// told is a secret that a contact has taken. If all the same it does not subscribe to the topic, since it follows another or none, it is told
// again, ever more seldom.
type told struct {
	secret topicSecret
	times  int
	next   time.Time
}

// took says whether the contact, met at that turn, has taken our key for the room.
func (o *offering) took(since uint64, room eventgraph.RoomID, key keyID) bool {
	return o != nil && o.since == since && o.keys[room] == key
}

// runGossip subscribes, tells the transport who takes part, and exchanges keys, until ctx ends.
func (f *Federation) runGossip(ctx context.Context) error {
	if f.gossip == nil {
		return nil
	}
	f.Transport.Handle(protocolKeys, f.serveKeys)
	group, ctx := errgroup.WithContext(ctx)
	for range gossipWorkers {
		group.Go(func() error { return f.takeGossip(ctx) })
	}
	group.Go(func() error { return f.runChecks(ctx) })
	group.Go(func() error {
		turn := uint64(0)
		for {
			_, next, err := f.peers.met(ctx, turn)
			if err != nil {
				return nil
			}
			turn = next
			signal(f.gossip.woken)
		}
	})
	group.Go(func() error {
		subscribed := map[string]func(){}
		taking := map[eventgraph.PeerID]bool{}
		for {
			if err := f.refreshGossip(); err != nil {
				f.Log.Error("cannot tell which rooms are large", "err", err)
			}
			f.tellTransport(taking)
			f.subscribe(subscribed)
			wait := f.exchangeAll(ctx)
			if !pause(ctx, exchangePause, nil) || !pause(ctx, wait, f.gossip.woken) {
				break
			}
		}
		for _, cancel := range subscribed {
			cancel()
		}
		return nil
	})
	return group.Wait()
}

// pause waits for the time given or a token; false if ctx has ended.
func pause(ctx context.Context, wait time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case <-ctx.Done():
		return false
	}
	return true
}

// tellTransport has it ask again about contacts that have come to take part in gossip, or no longer do.
func (f *Federation) tellTransport(taking map[eventgraph.PeerID]bool) {
	now := map[eventgraph.PeerID]bool{}
	for _, c := range f.peers.contacts() {
		if f.Gossips(c.Peer) {
			now[c.Peer] = true
			if !taking[c.Peer] {
				f.Config.Gossip.GossipChanged(c.Peer)
				taking[c.Peer] = true
			}
		}
	}
	for peer := range taking {
		if !now[peer] {
			delete(taking, peer)
			f.Config.Gossip.GossipChanged(peer)
		}
	}
}

// subscribe brings what we are subscribed to to what we should be.
func (f *Federation) subscribe(subscribed map[string]func()) {
	g := f.gossip
	wanted := map[string]eventgraph.RoomID{}
	g.mu.Lock()
	for _, r := range g.rooms {
		for _, t := range r.topics {
			wanted[t.name] = r.id
		}
	}
	g.mu.Unlock()
	for topic, room := range wanted {
		if subscribed[topic] != nil {
			continue
		}
		cancel, err := f.Config.Gossip.Subscribe(topic, func(from eventgraph.PeerID, payload []byte) bool {
			return f.gossiped(room, topic, from, payload)
		})
		if err != nil {
			f.Log.Debug("gossip topic not subscribed", "room", room, "err", err)
			continue
		}
		subscribed[topic] = cancel
	}
	for topic, cancel := range subscribed {
		if _, ok := wanted[topic]; !ok {
			cancel()
			delete(subscribed, topic)
		}
	}
}

// exchangeAll exchanges with each contact that lacks something, and returns after what time to look again.
func (f *Federation) exchangeAll(ctx context.Context) time.Duration {
	g := f.gossip
	subscribers := f.subscribersOf()
	contacts := f.peers.contacts()
	f.forgetOffers(contacts)
	var group errgroup.Group
	group.SetLimit(exchangesAtOnce)
	wait := gossipLook
	for _, c := range contacts {
		if since, still := f.peers.since(c.Peer); !still || since != c.Since {
			continue // it has gone, or speaks for its server no more, while others were given theirs
		}
		offers := f.offers(c, subscribers)
		if len(offers) == 0 {
			continue
		}
		if later := g.dueIn(c, f.self()); later > 0 {
			wait = min(wait, later)
			continue
		}
		group.Go(func() error {
			if err := f.exchange(ctx, c, offers); err != nil {
				f.Log.Debug("keys for gossip not exchanged", "server", c.Server, "peer", c.Peer, "err", err)
			}
			return nil
		})
	}
	group.Wait()
	return wait
}

// subscribersOf lists by room who subscribes to the topic of its epoch.
func (f *Federation) subscribersOf() map[eventgraph.RoomID]map[eventgraph.PeerID]bool {
	g := f.gossip
	topics := map[eventgraph.RoomID]string{}
	g.mu.Lock()
	for _, r := range g.rooms {
		if t := r.topicOf(r.epoch); t != nil {
			topics[r.id] = t.name
		}
	}
	g.mu.Unlock()
	all := map[eventgraph.RoomID]map[eventgraph.PeerID]bool{}
	for room, topic := range topics {
		all[room] = map[eventgraph.PeerID]bool{}
		for _, p := range f.Config.Gossip.Subscribers(topic) {
			all[room][p] = true
		}
	}
	return all
}

// forgetOffers forgets those who have gone.
func (f *Federation) forgetOffers(contacts []contact) {
	g := f.gossip
	g.mu.Lock()
	defer g.mu.Unlock()
	for peer := range g.offers {
		if !slices.ContainsFunc(contacts, func(c contact) bool { return c.Peer == peer }) {
			delete(g.offers, peer)
		}
	}
}

// offering is the contact's, a new one if it was met anew; mu is held.
func (g *gossip) offering(c contact) *offering {
	o := g.offers[c.Peer]
	if o == nil || o.since != c.Since {
		o = &offering{since: c.Since, keys: map[eventgraph.RoomID]keyID{}, told: map[eventgraph.RoomID]told{}}
		g.offers[c.Peer] = o
	}
	return o
}

// dueIn is how long the contact is to be left alone. Of two peers that have something for each other one begins.
func (g *gossip) dueIn(c contact, self eventgraph.PeerID) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.offering(c)
	if o.next.IsZero() && self > c.Peer {
		o.next = g.now().Add(2 * exchangePause)
	}
	return o.next.Sub(g.now())
}

// offers is what the contact lacks, for it to be given at once: whoever is listed as having been given a key has it from then on. Nothing is
// given of a room in which nothing happens.
func (f *Federation) offers(c contact, subscribers map[eventgraph.RoomID]map[eventgraph.PeerID]bool) (offers []gossipOffer) {
	g := f.gossip
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.offering(c)
	for _, r := range g.rooms {
		if !r.awake || !r.isMember(c.Server) || len(offers) == maxOffers {
			continue
		}
		t := r.topicOf(r.epoch)
		offer := gossipOffer{Room: r.id}
		if t != nil && !subscribers[r.id][c.Peer] && o.mayTell(r.id, t.secret, g.now()) {
			offer.Epoch, offer.Secret = t.epoch[:], t.secret[:]
		}
		if key := r.sealing(g.self, g.now()); (t != nil || r.given[c.Peer] != "") && o.keys[r.id] != key.id {
			offer.Mark, offer.Next, offer.Key = key.mark[:], key.next, slices.Clone(key.key[:])
			r.given[c.Peer] = c.Server
		}
		if offer.Secret != nil || offer.Key != nil {
			offers = append(offers, offer)
		}
	}
	return offers
}

// mayTell says whether the contact is to be told a secret, maybe again.
func (o *offering) mayTell(room eventgraph.RoomID, secret topicSecret, now time.Time) bool {
	t := o.told[room]
	return t.secret != secret || !now.Before(t.next)
}

// tell notes that it has taken a secret.
func (o *offering) tell(room eventgraph.RoomID, secret topicSecret, now time.Time) {
	t := o.told[room]
	if t.secret != secret {
		t = told{secret: secret}
	}
	t.next = now.Add(min(exchangeRetry<<min(t.times, 10), exchangeSeldom))
	t.times++
	o.told[room] = t
}

// exchange offers and takes.
func (f *Federation) exchange(ctx context.Context, c contact, offers []gossipOffer) (err error) {
	g := f.gossip
	took := 0
	defer func() { g.exchanged(c, err == nil && took == len(offers)) }()
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	opened, err := f.Transport.OpenStream(ctx, c.Peer, protocolKeys)
	if err != nil {
		return err
	}
	defer opened.Close()
	s := meetStream{opened}
	defer s.endWith(ctx)()
	if err := s.write(&meetMessage{Gossip: &gossipOffers{Offers: offers}}); err != nil {
		return err
	}
	answer, err := s.read(maxQuestion)
	if err != nil {
		return err
	}
	if answer.Gossip == nil {
		return errors.New("an answer to offers that is none")
	}
	took = len(answer.Gossip.Took)
	g.note(c, offers, answer.Gossip.Took)
	if len(answer.Gossip.Offers) == 0 {
		return nil
	}
	taken := f.takeOffers(c, answer.Gossip.Offers)
	return s.write(&meetMessage{Gossip: &gossipOffers{Took: taken}})
}

// exchanged notes when to offer again, if there will be something: a success lets that be soon.
func (g *gossip) exchanged(c contact, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.offering(c)
	o.failed++
	if ok {
		o.failed = 0
	}
	o.next = g.now().Add(min(exchangeRetry<<min(o.failed, 10), exchangeSeldom))
	if ok {
		o.next = g.now().Add(exchangePause)
	}
}

// note notes which of our offers the contact took.
func (g *gossip) note(c contact, offers []gossipOffer, took []int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.offering(c)
	for _, i := range took {
		if i < 0 || i >= len(offers) {
			continue
		}
		if offers[i].Secret != nil {
			o.tell(offers[i].Room, topicSecret(offers[i].Secret), g.now())
		}
		if offers[i].Mark != nil {
			o.keys[offers[i].Room] = keyIDOf(g.self, offers[i].Room, offers[i].Mark)
		}
	}
}

// serveKeys is the giver's part.
func (f *Federation) serveKeys(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
	defer stream.Close()
	server, known := f.ServerOf(peer)
	since, connected := f.peers.since(peer)
	if !known || !connected || !f.sharesRoom(server) {
		return
	}
	c := contact{server, peer, since}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	if f.admitStream(ctx, peer) != nil {
		return
	}
	done, err := f.gossip.answering.lock(ctx, server)
	if err != nil {
		return
	}
	defer done()
	release, err := take(ctx, f.gossip.serving)
	if err != nil {
		return
	}
	defer release()
	s := meetStream{stream}
	defer s.endWith(ctx)()
	if err := f.answerOffers(c, s); err != nil && ctx.Err() == nil {
		f.Log.Debug("exchange of keys ended", "server", server, "peer", peer, "err", err)
	}
}

func (f *Federation) answerOffers(c contact, s meetStream) error {
	q, err := s.read(maxQuestion)
	if err != nil {
		return err
	}
	if q.Gossip == nil || len(q.Gossip.Offers) > maxOffers {
		return errors.New("offers that are none")
	}
	if err := f.refreshGossip(); err != nil { // what is given is for who is in the room now
		return err
	}
	answer := &gossipOffers{Took: f.takeOffers(c, q.Gossip.Offers)}
	answer.Offers = f.offers(c, f.subscribersOf())
	if err := s.write(&meetMessage{Gossip: answer}); err != nil || len(answer.Offers) == 0 {
		return err
	}
	last, err := s.read(maxQuestion)
	if err != nil {
		return err
	}
	if last.Gossip != nil {
		f.gossip.note(c, answer.Offers, last.Gossip.Took)
		f.gossip.exchanged(c, len(last.Gossip.Took) == len(answer.Offers))
	}
	return nil
}

// takeOffers takes secrets and keys of rooms that the contact's server is in, and returns which offers were taken in whole.
func (f *Federation) takeOffers(c contact, offers []gossipOffer) (took []int) {
	g := f.gossip
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, offer := range offers[:min(len(offers), maxOffers)] {
		r := g.rooms[offer.Room]
		if r == nil || !r.isMember(c.Server) {
			continue
		}
		r.awake = true
		ok := true
		if offer.Secret != nil {
			ok = len(offer.Secret) == secretSize && len(offer.Epoch) == len(epoch{}) && r.takeSecret(epoch(offer.Epoch), topicSecret(offer.Secret))
		}
		if offer.Key != nil {
			ok = r.takeKey(c.Server, offer) && ok
		}
		if ok {
			took = append(took, i)
		}
	}
	signal(g.woken)
	return took
}

// takeSecret keeps a secret if it counts, or may count soon.
func (r *gossipRoom) takeSecret(e epoch, secret topicSecret) (kept bool) {
	if t := r.topicOf(e); t != nil {
		r.adopt(e, t.servers, secret)
		return true
	}
	if e == r.epoch {
		return r.adopt(e, r.servers, secret)
	}
	before, held := r.early[e]
	switch {
	case held && !secret.before(before):
	case !held && len(r.early) >= maxEarly:
		return false
	default:
		r.early[e] = secret
	}
	return true
}

// takeKey keeps a server's key, in the place of its oldest.
func (r *gossipRoom) takeKey(server eventgraph.ServerName, offer gossipOffer) bool {
	if len(offer.Key) != secretSize || len(offer.Mark) != markSize || offer.Next >= keyLife {
		return false
	}
	id := keyIDOf(server, r.id, offer.Mark)
	if held := r.keys[id]; held != nil {
		return true // what we hold opens more
	}
	r.taken++
	r.keys[id] = &openingKey{server: server, mark: [markSize]byte(offer.Mark), id: id, taken: r.taken, chain: chain{offer.Next, [secretSize]byte(offer.Key)}}
	var oldest *openingKey
	n := 0
	for _, k := range r.keys {
		if k.server != server {
			continue
		}
		if n++; oldest == nil || k.taken < oldest.taken {
			oldest = k
		}
	}
	if n > keysOfServer {
		delete(r.keys, oldest.id)
	}
	return true
}
