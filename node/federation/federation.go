// Package federation is the server-server API, both ways, over a transport of proven peers: who may speak for which
// server, transactions out and in, joins and invites across servers, fetching what Accept misses, meetings.
//
// peers.go knows who speaks for whom. request.go asks other servers, verify.go checks who asks us, and the serve*.go files
// answer. receive.go takes events in; what misses something waits in the inbox (inbox.go says when it is looked at, waiting.go how, turns.go how many are asked at one time), fetch.go decides whom to ask for it and
// obtain.go asks. send.go sends what is ours, to whom concerned.go says, which compose.go puts together. meet.go brings two servers level:
// collect.go fetches, compare.go and summary.go find what differs, give.go answers; news.go says that it is worth while. handover.go hands keys over, and carrying.go messages, for the time when a server is away;
// exchange.go lets these go on with many servers at a time. gossip.go publishes for large rooms, gossipkeys.go and
// gossipseal.go see to it that only their members can read that.
package federation

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// ErrUnreachable: no peer that speaks for the server can be reached now.
var ErrUnreachable = errors.New("server cannot be reached")

// Transport is what federation needs of the network; node adapts p2ptransport to it.
type Transport interface {
	Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error)
	OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error)
	Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser))
	// Watch calls f for each connect and disconnect until ctx ends, first for the peers connected now. A peer that is connected and is told
	// as connected again is now reached otherwise: directly and no longer through relays, or the other way.
	Watch(ctx context.Context, f func(peer eventgraph.PeerID, connected bool))
}

// Gossip is what federation needs of the network for large rooms; node adapts p2ptransport.Transport to it, where the outcomes are written.
type Gossip interface {
	Subscribe(topic string, deliver func(from eventgraph.PeerID, payload []byte) (forward bool)) (cancel func(), err error)
	// Publish: any error means that nobody is being sent the payload.
	Publish(ctx context.Context, topic string, payload []byte) error
	Subscribers(topic string) []eventgraph.PeerID
	SubscribersChanged() <-chan struct{}
	// GossipChanged is to be called when a peer may have come to take part in gossip, or no longer to.
	GossipChanged(peer eventgraph.PeerID)
}

// Config of New. All fields but Records, Gossip, RefusalChanged and Log are required.
type Config struct {
	Store     *store.Store
	Rooms     *rooms.Rooms
	Ephemeral *ephemeral.State
	Media     *media.Repository
	Transport Transport
	Records   PeerRecords // nil: no peer records are handed on
	Gossip    Gossip      // nil: there is none
	// RefusalChanged is called when Refuses has changed for a peer. nil: connections of blocked servers stay.
	RefusalChanged func(peer eventgraph.PeerID)
	Key            eventgraph.SigningKey
	Relay          bool // the transport relays: holders of invites are let through to friends
	// KeyDocument is our own current one.
	KeyDocument func() *eventgraph.KeyDocument
	// PeerOf takes the proven peer from the context of a request that the transport serves.
	PeerOf func(ctx context.Context) (eventgraph.PeerID, bool)
	// Local answers what other servers may ask about our users.
	Local Local
	Now   func() time.Time
	Log   *slog.Logger
}

// Local is what peers may ask about local users, and where EDUs for them go; clientapi implements it. Bodies as in the SS API.
type Local interface {
	Profile(ctx context.Context, user eventgraph.UserID, field string) (json.RawMessage, error)               // store.ErrNotFound
	FindAlias(ctx context.Context, alias eventgraph.RoomAlias) (eventgraph.RoomID, error)                     // of an alias that the store has not; store.ErrNotFound
	Devices(ctx context.Context, user eventgraph.UserID) (json.RawMessage, error)                             // GET user/devices
	QueryKeys(ctx context.Context, from eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) // POST user/keys/query
	ClaimKeys(ctx context.Context, from eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) // POST user/keys/claim
	// KeyBundle is what others need to write to a local user for the first time, in canonical JSON; nil if nothing. CheckKeyBundle says what is
	// wrong with that of another server's user.
	KeyBundle(user eventgraph.UserID) (json.RawMessage, error)
	CheckKeyBundle(user eventgraph.UserID, bundle json.RawMessage) error
	OpenIDUser(token string) (eventgraph.UserID, error) // GET openid/userinfo; store.ErrNotFound
	// The EDUs m.direct_to_device (deduplicated by message_id), m.device_list_update, m.signing_key_update, m.receipt.
	// origin has been checked to be the sender's server. For m.direct_to_device it returns only when durable.
	ReceiveEDU(ctx context.Context, origin eventgraph.ServerName, eduType string, content json.RawMessage) error
}

// Federation serves and speaks. Handler serves ProtocolFederation; Run owns all its goroutines and returns when ctx ends and they have ended.
type Federation struct {
	Config
	server  eventgraph.ServerName // our own name
	peers   *peers                // who speaks for whom, and who is connected (peers.go)
	handler http.Handler          // all routes (serve.go)
	inbox   *inbox                // rooms with events that wait (inbox.go)
	// inboxTime measures how long (inboxtime.go).
	inboxTime inboxTime

	gossip   *gossip   // of large rooms; nil if there is none (gossip.go)
	meetings *meetings // with whom, and what is being fetched (meet.go)

	fetching    *fetching   // media (media.go)
	givingMedia mediaGiving // to whom (serve_media.go)

	guests   *guests  // who may reach friends through us (guests.go)
	invitees invitees // who holds an invite token (invites.go)
	budgets  *budgets // what servers may have us do (budget.go)

	acting    chan struct{} // a slot for each join, leave, knock or invite served now to a server that shares a room with us
	strangers chan struct{} // the same for all other servers
	heavy     chan struct{} // a slot for each answer of many events made now (state, backfill, …)
	asking    chan struct{} // a slot for each key document being fetched from others

	company chan struct{} // holds a token when local users may share rooms with servers that do not know their presence (presence.go)

	invites     *rate.Limiter                    // for all servers together that share no room with us
	fromOutside *rate.Limiter                    // for the events of all servers together that are not in the events' room
	joining     keyedLock[eventgraph.RoomID]     // one join of a room at a time
	joins       joins                            // where the work on them runs (import.go)
	receiving   keyedLock[eventgraph.ServerName] // one transaction of a server at a time
	signing     keyedLock[eventgraph.RoomID]     // one event of ours on its way to a room's policy server at a time
	policies    policies                         // policy servers that do not answer (policy.go)
	quests      *quests                          // for what is missing of rooms' history (quest.go)
	answerers   answerers                        // who is being asked for what waiting events miss, and who is slow (turns.go)
	hierarchies *hierarchies                     // spaces of others, asked for lately (hierarchy.go)
	asked       keyedLock[eventgraph.PeerID]     // one question who it is to a peer that makes requests, at a time
	bodies      *semaphore.Weighted              // bytes of long request bodies held now, of servers that share a room with us
	outerBodies *semaphore.Weighted              // the same of all others
}

// Bounds on work that peers can cause. A request that finds no free slot waits until its context ends.
const (
	maxActing    = 8           // each verifies, builds on and commits to a room
	maxStrangers = 2           // as many again, for those who need not be served soon
	maxHeavy     = 4           // each may read a whole state and auth chain into memory
	maxAsking    = 16          // each waits for the network, holding at most a key document
	maxBodies    = 4 * maxBody // bytes; bodies below smallBody are not counted. Of strangers one maxBody more
)

// Identities are free, so servers that share no room with us have one budget of invites among them all (design.md §7).
const (
	strangerInviteEvery = 2 * time.Second
	strangerInviteBurst = 50

	// Events from a server that is not in the room, as far as is known here: its join may be on the way. They may wait in the
	// inbox, or be kept as rejected.
	outsideEventEvery = time.Second
	outsideEventBurst = 200
)

// New makes the federation; peers of servers whose key documents the store keeps are known from the start.
func New(c Config) *Federation {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f := &Federation{
		Config:    c,
		server:    c.Key.Server,
		acting:    make(chan struct{}, maxActing),
		heavy:     make(chan struct{}, maxHeavy),
		asking:    make(chan struct{}, maxAsking),
		strangers: make(chan struct{}, maxStrangers),
		bodies:    semaphore.NewWeighted(maxBodies),
		company:   make(chan struct{}, 1),

		outerBodies: semaphore.NewWeighted(maxBody),
		invites:     rate.NewLimiter(rate.Every(strangerInviteEvery), strangerInviteBurst),
		fromOutside: rate.NewLimiter(rate.Every(outsideEventEvery), outsideEventBurst),
	}
	f.peers = newPeers(c.Now)
	f.budgets = newBudgets()
	f.guests = newGuests()
	f.fetching = newFetching()
	f.Transport = blockable{c.Transport, f.peers}
	f.quests = newQuests()
	f.hierarchies = newHierarchies()
	f.inbox = newInbox(c.Now)
	f.meetings = newMeetings(c)
	if c.Gossip != nil {
		f.gossip = newGossip(c)
	}
	f.handler = f.routes()
	var err error
	if f.inboxTime, err = newInboxTime(c.Store); err != nil {
		f.Log.Error("cannot tell for how long events have waited", "err", err)
	}
	if err := f.loadBlocked(); err != nil {
		f.Log.Error("cannot tell which servers are blocked", "err", err)
	}
	return f
}

// Handler serves the server-server API to the peer that Config.PeerOf names.
func (f *Federation) Handler() http.Handler { return f.handler }

// Run learns who is there, sends, meets and takes in what waits, until ctx ends; it returns when all its goroutines have ended.
func (f *Federation) Run(ctx context.Context) error {
	if err := errors.Join(f.loadPeers(), f.loadInvitees()); err != nil {
		return err
	}
	f.handleInvites()
	f.handleGuests()
	f.handleMedia()
	defer f.fetching.end()
	group, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{
		f.runPeers,
		f.runRecords,
		f.runSender,
		f.runMeetings,
		f.runInbox,
		f.runJoins,
		f.runGossip,
		f.runHandover,
		f.runCarrying,
	} {
		group.Go(func() error {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

// act waits for a slot to serve a join, leave, knock or invite. Servers that share a room with us or hold an invite token never wait
// behind strangers (design.md §7).
func (f *Federation) act(q *request) (release func(), err error) {
	if f.sharesRoom(q.origin) || f.invited(q.origin) {
		return take(q.Context(), f.acting)
	}
	return take(q.Context(), f.strangers)
}

// take waits for a slot; the caller must call release if err is nil.
func take(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
