// Package clientapi is the Matrix client-server API on localhost: decode, authorise, call, encode.
package clientapi

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/push"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Remote is what the client API asks of other servers; *federation.Federation in a node.
type Remote interface {
	Join(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error
	Knock(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error
	Leave(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, reason string) error
	// Send is how users' events are made: rooms.Send, with what the room's policy server has to say before. Invite is that of an invite
	// for another server's user.
	Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error)
	Invite(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error)
	ResolveAlias(ctx context.Context, alias eventgraph.RoomAlias) (eventgraph.RoomID, []eventgraph.ServerName, error)
	PublicRooms(ctx context.Context, server eventgraph.ServerName, q rooms.PublicQuery) (*rooms.PublicPage, error)
	Hierarchy(ctx context.Context, room eventgraph.RoomID, via []eventgraph.ServerName, suggested bool) (*federation.Hierarchy, error)
	Profile(ctx context.Context, user eventgraph.UserID, field string) (json.RawMessage, error)
	QueryKeys(ctx context.Context, server eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error)
	ClaimKeys(ctx context.Context, server eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error)
	UserDevices(ctx context.Context, user eventgraph.UserID) (json.RawMessage, error)
	IsConnected(server eventgraph.ServerName) bool
	AskKeyBundles(ctx context.Context, users []eventgraph.UserID)
	Backfill(ctx context.Context, room eventgraph.RoomID, limit int) (int, error)
	BackfillAbove(ctx context.Context, room eventgraph.RoomID, above int64, limit int) (int, error)
	EventNear(ctx context.Context, room eventgraph.RoomID, ts int64, forwards bool) (eventgraph.EventID, int64, error)
	FetchMedia(ctx context.Context, id store.MediaID, user eventgraph.UserID, patience time.Duration) error
}

// Registration says who may make an account.
type Registration string

const (
	RegistrationToken  Registration = "token"
	RegistrationOpen   Registration = "open"
	RegistrationClosed Registration = "closed"
)

// Config of New. All fields but Log, Peer, RoomVersion, Services, Terms and Hosts are required.
type Config struct {
	Store             *store.Store
	Rooms             *rooms.Rooms
	Ephemeral         *ephemeral.State
	Media             *media.Repository
	URLPreviews       bool // fetch what previews of links show: then others learn that somebody here reads the link
	Server            eventgraph.ServerName
	Peer              eventgraph.PeerID // this device: the origin of records that other devices of the identity could write later
	Registration      Registration
	RegistrationToken string
	Terms             Policies               // what people who register have to accept; none: nothing
	RoomVersion       eventgraph.RoomVersion // of rooms that clients make without naming one; "": eventgraph.DefaultRoomVersion
	RateLimits        bool
	PushGateways      push.Gateways        // which users may have called
	TURN              *TURN                // relays for calls; nil: none
	Services          *appservice.Services // nil: none
	PeersConnected    func() int           // for the page at GET /
	// Hosts are the hosts (without port) of the configured client addresses: requests may name them beside localhost and
	// loopback addresses. An unspecified address ("", "0.0.0.0", "::") allows every IP literal.
	Hosts []string
	Now   func() time.Time
	Log   *slog.Logger
}

// API serves the client API. It is also federation.Local. Its goroutines are its callers': RunDelayed is one.
type API struct {
	Config
	remote  Remote
	routes  routeTree
	limits  *limits
	tokens  *tokenCache
	auths   *authSessions
	hashing hashing

	loginTokens, openIDTokens *shortTokens

	unreads  *unreadCache
	previews *previews
	boot     uint32 // tells this process' ephemeral counters from those of others
	sent     *sentMembers
	sliding  *slidingConnections
	polls    *polls
	delayed  *delayedSending
	coming   comingWaits
	open     openSends
}

// New makes the API; SetRemote must be called before Handler serves (federation and the API know each other).
func New(c Config) *API {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.RoomVersion == "" {
		c.RoomVersion = eventgraph.DefaultRoomVersion
	}
	a := &API{
		Config: c,
		limits: newLimits(c.Now),
		tokens: newTokenCache(),
		auths:  newAuthSessions(c.Now),

		loginTokens: newShortTokens(c.Now, loginTokenLives), openIDTokens: newShortTokens(c.Now, openIDLives),

		hashing:  newHashing(),
		unreads:  newUnreadCache(),
		previews: newPreviews(),
		boot:     rand.Uint32(),
		sent:     newSentMembers(),
		sliding:  newSlidingConnections(),
		polls:    newPolls(),
		delayed:  newDelayedSending(),
	}
	a.discoveryRoutes()
	a.accountRoutes()
	a.roomRoutes()
	a.delayedRoutes()
	a.relationRoutes()
	a.reportRoutes()
	a.syncRoutes()
	a.keyRoutes()
	a.mediaRoutes()
	a.pusherRoutes()
	a.callRoutes()
	a.serviceRoutes()
	return a
}

// SetRemote gives the API its way to other servers.
func (a *API) SetRemote(r Remote) { a.remote = r }

// Handler serves the API.
func (a *API) Handler() http.Handler { return http.HandlerFunc(a.serve) }
