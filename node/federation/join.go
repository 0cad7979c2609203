package federation

import (
	"context"
	"encoding/json"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

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
