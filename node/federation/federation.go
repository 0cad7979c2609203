// Package federation is the server-server API, both ways, over a transport of proven peers: who may speak for which
// server, transactions out and in, joins and invites across servers, fetching what Accept misses, meetings.
package federation

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Transport is what federation needs of the network; node adapts p2ptransport to it.
type Transport interface {
	Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error)
	OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error)
	Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser))
	// Watch calls f for each connect and disconnect until ctx ends, first for the peers connected now.
	Watch(ctx context.Context, f func(peer eventgraph.PeerID, connected bool))
}

type Config struct {
	Store     *store.Store
	Rooms     *rooms.Rooms
	Ephemeral *ephemeral.State
	Transport Transport
	Key       eventgraph.SigningKey
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
	Devices(ctx context.Context, user eventgraph.UserID) (json.RawMessage, error)                             // GET user/devices
	QueryKeys(ctx context.Context, from eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) // POST user/keys/query
	ClaimKeys(ctx context.Context, from eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) // POST user/keys/claim
	// The EDUs m.direct_to_device (deduplicated by message_id), m.device_list_update, m.signing_key_update, m.receipt.
	// origin has been checked to be the sender's server. For m.direct_to_device it returns only when durable.
	ReceiveEDU(ctx context.Context, origin eventgraph.ServerName, eduType string, content json.RawMessage) error
}

// Federation serves and speaks. Handler serves ProtocolFederation; Run owns all its goroutines and returns when ctx ends and they have ended.
type Federation struct{}

func New(c Config) *Federation                      { panic("federation: skeleton") }
func (f *Federation) Handler() http.Handler         { panic("federation: skeleton") }
func (f *Federation) Run(ctx context.Context) error { panic("federation: skeleton") }

// What clientapi asks of other servers. Each tries the servers' connected peers first, then dials; errors are *rooms.Refusal with the remote's
// Matrix error where there is one, ErrUnreachable otherwise.

// Join joins a local user to a room over make_join and send_join at one of via (or locally if we are in the room).
func (f *Federation) Join(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error {
	panic("federation: skeleton")
}

// Leave leaves a room that we are not in (rejects an invite): takes effect here at once, is delivered when a server is met.
func (f *Federation) Leave(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, reason string) error {
	panic("federation: skeleton")
}

// Invite sends an invite for a remote user through PUT /invite; a server that does not answer in 5 s gets it at the next meeting.
func (f *Federation) Invite(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	panic("federation: skeleton")
}

// ResolveAlias asks the alias's server.
func (f *Federation) ResolveAlias(ctx context.Context, alias eventgraph.RoomAlias) (eventgraph.RoomID, []eventgraph.ServerName, error) {
	panic("federation: skeleton")
}

// Profile, QueryKeys, ClaimKeys, UserDevices ask a user's server; bodies as in the SS API.
func (f *Federation) Profile(ctx context.Context, user eventgraph.UserID, field string) (json.RawMessage, error) {
	panic("federation: skeleton")
}
func (f *Federation) QueryKeys(ctx context.Context, server eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	panic("federation: skeleton")
}
func (f *Federation) ClaimKeys(ctx context.Context, server eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	panic("federation: skeleton")
}
func (f *Federation) UserDevices(ctx context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	panic("federation: skeleton")
}

// Backfill asks room servers for events before the room's backward extremities, at least limit if they exist, and accepts them. It returns how many were taken in.
func (f *Federation) Backfill(ctx context.Context, room eventgraph.RoomID, limit int) (int, error) {
	panic("federation: skeleton")
}

// EventNear asks room servers for the event closest to ts when ours is not known to be.
func (f *Federation) EventNear(ctx context.Context, room eventgraph.RoomID, ts int64, forwards bool) (eventgraph.EventID, int64, error) {
	panic("federation: skeleton")
}

// ServerOf names the server that a connected peer speaks for, if known; for status and peers.
func (f *Federation) ServerOf(p eventgraph.PeerID) (eventgraph.ServerName, bool) {
	panic("federation: skeleton")
}
