package federation

import (
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxDirectoryServers bounds the servers named for an alias: more than a joining server will ever try.
	maxDirectoryServers = 50
	// maxPublicRooms bounds one page of the room directory: each entry reads a few state events.
	maxPublicRooms = 100
)

func (f *Federation) queryRoutes(r *router) {
	r.addOpen(http.MethodGet, "/_matrix/federation/v1/version", f.serveVersion)
	r.addOpen(http.MethodGet, "/_matrix/federation/v1/openid/userinfo", f.serveOpenIDUser)
	r.add(http.MethodGet, "/_matrix/federation/v1/query/profile", f.serveProfile)
	r.add(http.MethodGet, "/_matrix/federation/v1/query/directory", f.serveDirectory)
	r.add(http.MethodGet, "/_matrix/federation/v1/user/devices/{userId}", f.serveDevices)
	r.add(http.MethodPost, "/_matrix/federation/v1/user/keys/query", f.serveKeysQuery)
	r.add(http.MethodPost, "/_matrix/federation/v1/user/keys/claim", f.serveKeysClaim)
	r.add(http.MethodGet, "/_matrix/federation/v1/publicRooms", f.servePublicRooms)
	r.add(http.MethodPost, "/_matrix/federation/v1/publicRooms", f.servePublicRooms)
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
	var found *store.Alias
	if err := f.Store.View(func(r *store.Reader) error {
		found, err = r.Alias(alias)
		return err
	}); err != nil {
		return nil, err
	}
	servers, err := f.Rooms.Servers(found.Room)
	if err != nil {
		return nil, err
	}
	return struct {
		Room    eventgraph.RoomID       `json:"room_id"`
		Servers []eventgraph.ServerName `json:"servers"`
	}{found.Room, f.named(servers)}, nil
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

// publicRoom is one entry of the directory (public_rooms_chunk.yaml).
type publicRoom struct {
	RoomID         eventgraph.RoomID `json:"room_id"`
	Name           string            `json:"name,omitempty"`
	Topic          string            `json:"topic,omitempty"`
	CanonicalAlias string            `json:"canonical_alias,omitempty"`
	AvatarURL      string            `json:"avatar_url,omitempty"`
	JoinRule       string            `json:"join_rule,omitempty"`
	RoomType       string            `json:"room_type,omitempty"`
	Joined         int               `json:"num_joined_members"`
	WorldReadable  bool              `json:"world_readable"`
	GuestCanJoin   bool              `json:"guest_can_join"`
}

// servePublicRooms lists our published rooms; the order is that of room IDs, and since is the number of rooms before the page.
func (f *Federation) servePublicRooms(q *request) (any, error) {
	ask := struct {
		Limit  int    `json:"limit"`
		Since  string `json:"since"`
		Filter struct {
			Term      string    `json:"generic_search_term"`
			RoomTypes []*string `json:"room_types"`
		} `json:"filter"`
	}{}
	if q.Method == http.MethodPost {
		if err := q.decode(&ask); err != nil {
			return nil, err
		}
	} else {
		ask.Limit, _ = strconv.Atoi(q.URL.Query().Get("limit"))
		ask.Since = q.URL.Query().Get("since")
	}
	limit := ask.Limit
	if limit <= 0 || limit > maxPublicRooms {
		limit = maxPublicRooms
	}
	first := 0
	if ask.Since != "" {
		var err error
		if first, err = strconv.Atoi(ask.Since); err != nil || first < 0 {
			return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "since is not a token of this server")
		}
	}
	var ids []eventgraph.RoomID
	if err := f.Store.View(func(r *store.Reader) (err error) {
		ids, err = r.PublishedRooms()
		return err
	}); err != nil {
		return nil, err
	}
	slices.Sort(ids)
	answer := struct {
		Chunk     []publicRoom `json:"chunk"`
		NextBatch string       `json:"next_batch,omitempty"`
		Total     int          `json:"total_room_count_estimate"`
	}{Chunk: []publicRoom{}, Total: len(ids)}
	for i := first; i < len(ids); i++ {
		if len(answer.Chunk) == limit {
			answer.NextBatch = strconv.Itoa(i)
			break
		}
		room, err := f.publicRoom(ids[i])
		if err != nil {
			return nil, err
		}
		if matches(room, ask.Filter.Term) && isOneOf(room.RoomType, ask.Filter.RoomTypes) {
			answer.Chunk = append(answer.Chunk, room)
		}
	}
	return answer, nil
}

func matches(room publicRoom, term string) bool {
	term = strings.ToLower(term)
	return strings.Contains(strings.ToLower(room.Name), term) || strings.Contains(strings.ToLower(room.Topic), term) ||
		strings.Contains(strings.ToLower(room.CanonicalAlias), term)
}

// isOneOf applies the filter room_types, in which null means rooms without a type.
func isOneOf(roomType string, types []*string) bool {
	if types == nil {
		return true
	}
	return slices.ContainsFunc(types, func(t *string) bool {
		return t == nil && roomType == "" || t != nil && *t == roomType
	})
}

func (f *Federation) publicRoom(id eventgraph.RoomID) (publicRoom, error) {
	room := publicRoom{RoomID: id}
	state, err := f.Rooms.CurrentState(id)
	if err != nil {
		return room, err
	}
	var content struct {
		Name       string `json:"name"`
		Topic      string `json:"topic"`
		Alias      string `json:"alias"`
		URL        string `json:"url"`
		JoinRule   string `json:"join_rule"`
		Type       string `json:"type"`
		Visibility string `json:"history_visibility"`
		Guests     string `json:"guest_access"`
	}
	for _, t := range []string{"m.room.create", "m.room.name", "m.room.topic", "m.room.canonical_alias", "m.room.avatar",
		"m.room.join_rules", "m.room.history_visibility", "m.room.guest_access"} {
		e, err := state.Event(eventgraph.StateTuple{Type: t})
		if err != nil {
			return room, err
		}
		if e != nil {
			part := content
			if json.Unmarshal(e.Content(), &part) == nil { // members of another type are as absent
				content = part
			}
		}
	}
	room.Name, room.Topic, room.CanonicalAlias, room.AvatarURL = content.Name, content.Topic, content.Alias, content.URL
	room.JoinRule, room.RoomType = content.JoinRule, content.Type
	room.WorldReadable, room.GuestCanJoin = content.Visibility == "world_readable", content.Guests == "can_join"
	return room, f.Store.View(func(r *store.Reader) error {
		return r.MembersOf(id, func(m *store.Member) (bool, error) {
			if m.Membership == "join" {
				room.Joined++
			}
			return true, nil
		})
	})
}
