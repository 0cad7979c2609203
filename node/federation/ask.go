package federation

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What clientapi asks of other servers. Each tries the servers' connected peers first, then dials; errors are *rooms.Refusal with the
// remote's Matrix error where there is one, ErrUnreachable otherwise.

// ResolveAlias asks the alias's server.
func (f *Federation) ResolveAlias(ctx context.Context, alias eventgraph.RoomAlias) (eventgraph.RoomID, []eventgraph.ServerName, error) {
	var answer struct {
		Room    string   `json:"room_id"`
		Servers []string `json:"servers"`
	}
	query := url.Values{"room_alias": {string(alias)}}
	if err := f.do(ctx, alias.Server(), http.MethodGet, target(v1+"query/directory", nil, query), nil, &answer); err != nil {
		return "", nil, err
	}
	room, err := eventgraph.ParseRoomID(answer.Room)
	if err != nil {
		return "", nil, malformed(alias.Server(), err.Error())
	}
	var servers []eventgraph.ServerName
	for _, s := range answer.Servers[:min(len(answer.Servers), maxDirectoryServers)] {
		if name, err := eventgraph.ParseServerName(s); err == nil {
			servers = append(servers, name)
		}
	}
	return room, servers, nil
}

// Bounds of answers about keys, of which many may come at once: one user's devices, of which half would be kept, and the keys of some users.
const (
	maxDevicesAnswer = 2 * store.MaxRemoteDeviceList
	maxKeysAnswer    = 1 << 20
)

// Profile, QueryKeys, ClaimKeys, UserDevices ask a user's server; bodies as in the SS API.
func (f *Federation) Profile(ctx context.Context, user eventgraph.UserID, field string) (json.RawMessage, error) {
	query := url.Values{"user_id": {string(user)}}
	if field != "" {
		query.Set("field", field)
	}
	return f.askObject(ctx, user.Server(), http.MethodGet, target(v1+"query/profile", nil, query), nil, maxAnswer)
}

func (f *Federation) QueryKeys(ctx context.Context, server eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return f.askObject(ctx, server, http.MethodPost, v1+"user/keys/query", body, maxKeysAnswer)
}

func (f *Federation) ClaimKeys(ctx context.Context, server eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return f.askObject(ctx, server, http.MethodPost, v1+"user/keys/claim", body, maxAnswer)
}

func (f *Federation) UserDevices(ctx context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	return f.askObject(ctx, user.Server(), http.MethodGet, target(v1+"user/devices", []string{string(user)}, nil), nil, maxDevicesAnswer)
}

// askObject asks for an answer that is an object, which the caller reads.
func (f *Federation) askObject(ctx context.Context, server eventgraph.ServerName, method, target string, body json.RawMessage, limit int64) (json.RawMessage, error) {
	var content any
	if body != nil {
		content = body
	}
	var answer json.RawMessage
	if err := f.doLarge(ctx, server, method, target, content, &answer, limit); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(answer, new(map[string]json.RawMessage)); err != nil {
		return nil, malformed(server, err.Error())
	}
	return answer, nil
}

// EventNear asks room servers for the event closest to ts when ours is not known to be. What comes is a claim: the event itself
// is taken in by Backfill.
func (f *Federation) EventNear(ctx context.Context, room eventgraph.RoomID, ts int64, forwards bool) (eventgraph.EventID, int64, error) {
	servers, err := f.roomServers(room)
	if err != nil {
		return "", 0, err
	}
	query := url.Values{"ts": {strconv.FormatInt(ts, 10)}, "dir": {"b"}}
	if forwards {
		query.Set("dir", "f")
	}
	var answer near
	err = f.handshake(ctx, servers, func(server eventgraph.ServerName) error {
		answer = near{}
		if err := f.do(ctx, server, http.MethodGet, target(v1+"timestamp_to_event", []string{string(room)}, query), nil, &answer); err != nil {
			return err
		}
		if _, err := eventgraph.ParseEventID(string(answer.ID)); err != nil {
			return malformed(server, err.Error())
		}
		if forwards && answer.TS < ts || !forwards && answer.TS > ts {
			return malformed(server, "the event is on the other side of the time asked for")
		}
		return nil
	})
	return answer.ID, answer.TS, err
}

// maxAsked is how many of a room's servers are asked in turn for what any of them holds.
const maxAsked = 5

// roomServers lists the other servers of a held room to ask, the connected ones first.
func (f *Federation) roomServers(room eventgraph.RoomID) ([]eventgraph.ServerName, error) {
	servers, err := f.otherServers(room)
	return servers[:min(len(servers), maxAsked)], err
}

// otherServers is roomServers with all that there are, one at least.
func (f *Federation) otherServers(room eventgraph.RoomID) ([]eventgraph.ServerName, error) {
	var held *store.Room
	if err := f.Store.View(func(r *store.Reader) (err error) {
		held, err = r.Room(room)
		return err
	}); err != nil {
		return nil, err
	}
	servers, err := f.Rooms.Servers(held.ID)
	if err != nil {
		return nil, err
	}
	servers = f.connectedFirst(servers)
	if len(servers) == 0 {
		return nil, &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "no other server is in the room"}
	}
	return servers, nil
}
