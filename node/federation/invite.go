package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// inviteTimeout is how long the invited server may take before the invite goes in with our signature alone (design.md §3.4).
	inviteTimeout = 5 * time.Second
	// pendingInviteGrace is how long a pending invite may wait for its event: it is queued just before that is committed.
	pendingInviteGrace = 5 * time.Minute
)

// kindInvite is the kind of a store.Outbound that holds a pendingInvite, for deliverOutbound.
const kindInvite = "invite"

// pendingInvite is an invite that the invited server has not heard of.
type pendingInvite struct {
	Event eventgraph.EventID `json:"event_id"`
	TS    int64              `json:"ts"` // when it was queued
}

// errNotYet: the invite is queued, but its event is not committed.
var errNotYet = errors.New("the invite is not committed yet")

// Invite sends an invite for a remote user through PUT /invite; a server that does not answer in 5 s gets it at the next meeting.
func (f *Federation) Invite(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	if d.StateKey == nil {
		return "", &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: "an invite needs the invited user"}
	}
	user, err := eventgraph.ParseUserID(*d.StateKey)
	if err != nil {
		return "", &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: err.Error()}
	}
	server, err := eventgraph.ParseServerName(string(user.Server()))
	if err != nil {
		return "", &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: "the user's server cannot be reached from here: " + err.Error()}
	}
	if f.peers.isBlocked(server) {
		return "", &rooms.Refusal{Code: "M_FORBIDDEN", Reason: "the server of " + string(user) + " is blocked here"}
	}
	if !f.allows(d.Room, server) { // it could not join either
		return "", &rooms.Refusal{Code: "M_FORBIDDEN", Reason: "the room's server ACL (m.room.server_acl) denies the server of " + string(user)}
	}
	e, err := f.Rooms.Build(ctx, d)
	if need := policyOf(err); need != nil {
		e, err = f.policySignature(ctx, need)
	}
	if err != nil {
		return "", err
	}
	reach, cancel := context.WithTimeout(ctx, inviteTimeout)
	signed, err := f.putInvite(reach, server, e)
	cancel()
	var remote *remoteError
	switch {
	case err == nil:
		e = signed
	case errors.As(err, &remote) && remote.Status < 500:
		return "", err
	case ctx.Err() != nil:
		return "", ctx.Err()
	default:
		f.Log.Info("invited server is away", "server", server, "err", err)
		if err := f.queueInvite(ctx, server, e.ID()); err != nil {
			return "", err
		}
	}
	return e.ID(), f.acceptOne(ctx, e, rooms.Basis{Kind: rooms.Parents, Origin: f.server})
}

func (f *Federation) queueInvite(ctx context.Context, server eventgraph.ServerName, id eventgraph.EventID) error {
	body, err := marshal(pendingInvite{id, f.Now().UnixMilli()})
	if err != nil {
		return err
	}
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.PutOutbound(&store.Outbound{Server: server, Kind: kindInvite, Body: body})
		return err
	})
	return err
}

// putInvite sends an invite and returns it with the invited server's signature.
func (f *Federation) putInvite(ctx context.Context, server eventgraph.ServerName, e *eventgraph.Event) (*eventgraph.Event, error) {
	stripped, err := f.strippedState(e.RoomID(), e.Sender())
	if err != nil {
		return nil, err
	}
	var answer struct {
		Event json.RawMessage `json:"event"`
	}
	err = f.do(ctx, server, http.MethodPut, target(v2+"invite", []string{string(e.RoomID()), string(e.ID())}, nil),
		invitation{e.Version(), e.Raw(), stripped}, &answer)
	if err != nil {
		return nil, err
	}
	signed, err := withTheirSignature(e, answer.Event)
	if err != nil {
		return nil, malformed(server, err.Error())
	}
	return signed, nil
}

// deliverInvite sends an invite that was committed while the server was away. The signature that comes back is not needed: the
// event is in the room with ours.
func (f *Federation) deliverInvite(ctx context.Context, o *store.Outbound) error {
	var p pendingInvite
	if err := json.Unmarshal(o.Body, &p); err != nil {
		return fmt.Errorf("pending invite: %w", err)
	}
	e, err := f.held(p.Event)
	if errors.Is(err, errNoEvent) {
		if f.Now().UnixMilli()-p.TS > pendingInviteGrace.Milliseconds() {
			return nil // it was refused here, or we stopped before it was committed
		}
		return errNotYet
	}
	if err != nil {
		return err
	}
	if !f.allows(e.RoomID(), o.Server) {
		f.Log.Info("an invite is not sent: the room's ACL denies the server by now", "room", e.RoomID(), "server", o.Server)
		return nil
	}
	// One that the invited user, or somebody for the room, has answered since is stale.
	state, err := f.Rooms.CurrentState(e.RoomID())
	if err != nil {
		return err
	}
	tuple, _ := e.Tuple()
	if id, ok, err := state.EventID(tuple); err != nil || !ok || id != e.ID() {
		return err
	}
	_, err = f.putInvite(ctx, o.Server, e.Event)
	return err
}
