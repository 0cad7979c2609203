package federation

import (
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxDirectoryServers bounds the servers named for an alias: more than a joining server will ever try.
	maxDirectoryServers = 50
)

func (f *Federation) queryRoutes(r *router) {
	r.addOpen(http.MethodGet, "/_matrix/federation/v1/version", f.serveVersion)
	r.addOpen(http.MethodGet, "/_matrix/federation/v1/openid/userinfo", f.serveOpenIDUser)
	r.add(http.MethodGet, "/_matrix/federation/v1/query/profile", f.serveProfile)
	r.add(http.MethodGet, "/_matrix/federation/v1/query/directory", f.serveDirectory)
	r.add(http.MethodGet, "/_matrix/federation/v1/user/devices/{userId}", f.serveDevices)
	r.add(http.MethodPost, "/_matrix/federation/v1/user/keys/query", f.serveKeysQuery)
	r.add(http.MethodPost, "/_matrix/federation/v1/user/keys/claim", f.serveKeysClaim)
}

func (f *Federation) serveVersion(*request) (any, error) {
	version := "devel"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		version = info.Main.Version
	}
	type server struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	return map[string]server{"server": {"plexus", version}}, nil
}

// serveOpenIDUser tells whose an OpenID token is (SS API, OpenID). The token is the proof: anybody may ask who has been given it.
func (f *Federation) serveOpenIDUser(q *request) (any, error) {
	user, err := f.Local.OpenIDUser(q.URL.Query().Get("access_token"))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fail(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "the token is not known, or no more")
	}
	return map[string]eventgraph.UserID{"sub": user}, err
}

// localUser parses a user ID that must be of this server.
func (f *Federation) localUser(s string) (eventgraph.UserID, error) {
	user, err := eventgraph.ParseUserID(s)
	if err != nil {
		return "", fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
	}
	if user.Server() != f.server {
		return "", fail(http.StatusBadRequest, "M_INVALID_PARAM", "the user is not of this server")
	}
	return user, nil
}

func (f *Federation) serveProfile(q *request) (any, error) {
	user, err := f.localUser(q.URL.Query().Get("user_id"))
	if err != nil {
		return nil, err
	}
	return f.Local.Profile(q.Context(), user, q.URL.Query().Get("field"))
}

func (f *Federation) serveDirectory(q *request) (any, error) {
	alias, err := eventgraph.ParseRoomAlias(q.URL.Query().Get("room_alias"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
	}
	if alias.Server() != f.server {
		return nil, fail(http.StatusNotFound, "M_NOT_FOUND", "the alias is not of this server")
	}
	var room eventgraph.RoomID
	err = f.Store.View(func(r *store.Reader) error {
		found, err := r.Alias(alias)
		if err == nil {
			room = found.Room
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		room, err = f.Local.FindAlias(q.Context(), alias)
	}
	if err != nil {
		return nil, err
	}
	servers, err := f.Rooms.Servers(room)
	if err != nil {
		return nil, err
	}
	return struct {
		Room    eventgraph.RoomID       `json:"room_id"`
		Servers []eventgraph.ServerName `json:"servers"`
	}{room, f.named(servers)}, nil
}

// named shortens a list of a room's servers for others, ourselves first if we are among them.
func (f *Federation) named(servers []eventgraph.ServerName) []eventgraph.ServerName {
	servers = slices.Clone(servers)
	if i := slices.Index(servers, f.server); i > 0 {
		servers[0], servers[i] = servers[i], servers[0]
	}
	return append([]eventgraph.ServerName{}, servers[:min(len(servers), maxDirectoryServers)]...)
}

func (f *Federation) serveDevices(q *request) (any, error) {
	user, err := f.localUser(q.path("userId"))
	if err != nil {
		return nil, err
	}
	return f.Local.Devices(q.Context(), user)
}

func (f *Federation) serveKeysQuery(q *request) (any, error) {
	if err := q.decode(new(map[string]json.RawMessage)); err != nil {
		return nil, err
	}
	return f.Local.QueryKeys(q.Context(), q.origin, q.body)
}

func (f *Federation) serveKeysClaim(q *request) (any, error) {
	if err := q.decode(new(map[string]json.RawMessage)); err != nil {
		return nil, err
	}
	return f.Local.ClaimKeys(q.Context(), q.origin, q.body)
}
