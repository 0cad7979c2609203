package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// Bounds of one createRoom.
const (
	maxInitialState = 200 // events; clients send a handful
	maxInvites      = 500 // each costs a signed event, and for other servers a request
	invitesAtOnce   = 16  // servers asked at one time; one that is away takes 5 s
)

// createRoomBody is the body of POST /createRoom.
type createRoomBody struct {
	Visibility      string                     `json:"visibility"`
	AliasName       string                     `json:"room_alias_name"`
	Name            string                     `json:"name"`
	Topic           string                     `json:"topic"`
	Invite          []string                   `json:"invite"`
	Invite3PID      []json.RawMessage          `json:"invite_3pid"`
	Version         eventgraph.RoomVersion     `json:"room_version"`
	CreationContent map[string]json.RawMessage `json:"creation_content"`
	InitialState    []struct {
		Type     string          `json:"type"`
		StateKey string          `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	} `json:"initial_state"`
	Preset      string                     `json:"preset"`
	IsDirect    bool                       `json:"is_direct"`
	PowerLevels map[string]json.RawMessage `json:"power_level_content_override"`
}

// preset is what a preset stands for (CS API, createRoom, presets).
type preset struct{ joinRule, visibility, guests string }

var presets = map[string]preset{
	"private_chat":         {"invite", "shared", "can_join"},
	"trusted_private_chat": {"invite", "shared", "can_join"},
	"public_chat":          {"public", "shared", "forbidden"},
}

// createRoom is POST /createRoom: the whole room in one commit, then the invites of users elsewhere.
func (a *API) createRoom(q *request) (any, error) {
	var body createRoomBody
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Preset == "" {
		body.Preset = "private_chat"
		if body.Visibility == "public" {
			body.Preset = "public_chat"
		}
	}
	chosen, ok := presets[body.Preset]
	switch {
	case !ok:
		return nil, invalidParam("There is no such preset.")
	case body.Visibility != "" && body.Visibility != "public" && body.Visibility != "private":
		return nil, invalidParam("visibility must be public or private.")
	case len(body.InitialState) > maxInitialState || len(body.Invite) > maxInvites:
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "There are too many initial state events or invites.")
	case len(body.Invite3PID) > 0:
		return nil, fail(http.StatusForbidden, "M_FORBIDDEN", "Invites by e-mail or telephone need an identity server; there is none here. Invite by user ID.")
	}
	named := body.Version != ""
	if !named {
		body.Version = a.RoomVersion
	}
	traits, ok := body.Version.Traits()
	if !ok {
		return nil, fail(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "This server does not know that room version.")
	}
	invited, err := invitees(body.Invite, q.user)
	if err != nil {
		return nil, err
	}
	trusted := body.Preset == "trusted_private_chat"
	create := rooms.CreateRequest{Version: body.Version, Creator: q.user, Published: body.Visibility == "public"}
	if create.Content, err = creationContent(&body, traits, invited, trusted); err != nil {
		return nil, err
	}
	if traits.PrivilegedCreators && !named {
		body.spareCreators(q.user, create.Content)
	}
	if create.JoinContent, err = a.membershipContent(q.user, "join", ""); err != nil {
		return nil, err
	}
	if body.AliasName != "" {
		if create.Alias, err = eventgraph.ParseRoomAlias("#" + body.AliasName + ":" + string(a.Server)); err != nil {
			return nil, invalidParam("The alias is not well formed.")
		}
		if err := a.mayMakeAlias(q, create.Alias); err != nil {
			return nil, err
		}
	}
	if create.Then, err = initialState(&body, create.Alias, chosen, traits, q.user, invited, trusted); err != nil {
		return nil, err
	}
	var remote []rooms.Draft
	for _, user := range invited {
		if err := a.findInvited(q.Context(), user); err != nil {
			return nil, err
		}
		d, err := a.inviteDraft("", q.user, user, "", body.IsDirect)
		if err != nil {
			return nil, err
		}
		if user.Server() == a.Server {
			if err := a.Rooms.RefuseBlocked(user); err != nil {
				return nil, err
			}
			create.Then = append(create.Then, d)
		} else {
			remote = append(remote, d)
		}
	}
	room, err := a.Rooms.Create(q.Context(), create)
	var refused *rooms.Refusal
	if errors.As(err, &refused) && refused.Code == "M_FORBIDDEN" { // nobody but the request itself has forbidden it
		return nil, fail(http.StatusBadRequest, "M_INVALID_ROOM_STATE", refused.Reason)
	}
	if err != nil {
		return nil, err
	}
	a.carryOver(q.Context(), q.user, room)
	a.inviteAll(q.Context(), room, remote)
	return map[string]any{"room_id": room}, nil
}

// inviteAll invites users of other servers to a room just made. The room exists whatever becomes of that.
func (a *API) inviteAll(ctx context.Context, room eventgraph.RoomID, drafts []rooms.Draft) {
	var group errgroup.Group
	group.SetLimit(invitesAtOnce)
	for _, d := range drafts {
		d.Room = room
		group.Go(func() error {
			if _, err := a.remote.Invite(ctx, d); err != nil {
				a.Log.Info("an invite of a new room was not sent", "room", room, "user", *d.StateKey, "error", err)
			}
			return nil
		})
	}
	group.Wait()
}

// invitees checks the users to invite; each once, without the creator.
func invitees(list []string, creator eventgraph.UserID) (invited []eventgraph.UserID, err error) {
	seen := map[eventgraph.UserID]bool{creator: true}
	for _, s := range list {
		user, err := eventgraph.ParseUserID(s)
		if err != nil {
			return nil, invalidParam("One of those to invite is not a user ID: " + err.Error())
		}
		if !seen[user] {
			seen[user] = true
			invited = append(invited, user)
		}
	}
	return invited, nil
}

// creationContent is the m.room.create content: the client's, without what is the server's to say. Trusted invitees are creators too
// where the version has such (room version 12).
func creationContent(body *createRoomBody, traits eventgraph.Traits, invited []eventgraph.UserID, trusted bool) (json.RawMessage, error) {
	content := maps.Clone(body.CreationContent)
	if content == nil {
		content = map[string]json.RawMessage{}
	}
	delete(content, "creator")
	delete(content, "room_version")
	if trusted && traits.PrivilegedCreators && len(invited) > 0 {
		var creators []eventgraph.UserID
		if raw, ok := content["additional_creators"]; ok && json.Unmarshal(raw, &creators) != nil {
			return nil, invalidParam("additional_creators must be a list of user IDs.")
		}
		raw, err := json.Marshal(append(creators, invited...))
		if err != nil {
			return nil, err
		}
		content["additional_creators"] = raw
	}
	return json.Marshal(content)
}

// initialState lists the events after the creator's join, in the order that the spec gives.
func initialState(body *createRoomBody, alias eventgraph.RoomAlias, chosen preset, traits eventgraph.Traits, creator eventgraph.UserID, invited []eventgraph.UserID, trusted bool) (drafts []rooms.Draft, err error) {
	add := func(eventType, key string, content any) {
		raw, failed := json.Marshal(content)
		if failed != nil {
			err = failed
		}
		drafts = append(drafts, rooms.Draft{Type: eventType, StateKey: &key, Content: raw})
	}
	given := map[eventgraph.StateTuple]bool{}
	for _, s := range body.InitialState {
		given[eventgraph.StateTuple{Type: s.Type, Key: s.StateKey}] = true
	}
	levels, overridden := powerLevels(body, chosen, traits, creator, invited, trusted)
	add("m.room.power_levels", "", levels)
	if alias != "" && !given[eventgraph.StateTuple{Type: "m.room.canonical_alias"}] {
		add("m.room.canonical_alias", "", map[string]any{"alias": alias})
	}
	for _, s := range []struct {
		eventType, field, value string
	}{
		{"m.room.join_rules", "join_rule", chosen.joinRule},
		{"m.room.history_visibility", "history_visibility", chosen.visibility},
		{"m.room.guest_access", "guest_access", chosen.guests},
	} {
		if !given[eventgraph.StateTuple{Type: s.eventType}] {
			add(s.eventType, "", map[string]string{s.field: s.value})
		}
	}
	for _, s := range body.InitialState {
		switch {
		case s.Type == "" || len(s.Content) == 0:
			return nil, badJSON("An initial state event needs type and content.")
		case s.Type == "m.room.create" || s.Type == "m.room.member":
			return nil, badJSON("Initial state cannot hold " + s.Type + ".")
		case s.Type == "m.room.power_levels" && overridden:
			return nil, badJSON("Power levels are given twice.")
		}
		key := s.StateKey
		drafts = append(drafts, rooms.Draft{Type: s.Type, StateKey: &key, Content: s.Content})
	}
	if body.Name != "" {
		add("m.room.name", "", map[string]string{"name": body.Name})
	}
	if body.Topic != "" {
		add("m.room.topic", "", map[string]any{
			"topic": body.Topic, "m.topic": map[string]any{"m.text": []any{map[string]string{"body": body.Topic}}},
		})
	}
	return drafts, err
}

// spareCreators takes the creators out of the power levels that a client gives without naming a room version: it may know none in which creators
// are above all levels, and means by it what they are given anyway (matrix-bot-sdk's createSpace does so). Who names such a version is
// refused, as the room would be (room version 12, authorization rules of m.room.power_levels).
func (b *createRoomBody) spareCreators(creator eventgraph.UserID, content json.RawMessage) {
	var users map[eventgraph.UserID]json.RawMessage
	if json.Unmarshal(b.PowerLevels["users"], &users) != nil {
		return // nothing there, or malformed: the power levels will be refused
	}
	var created struct {
		More []eventgraph.UserID `json:"additional_creators"`
	}
	_ = json.Unmarshal(content, &created) // malformed: the event will be refused
	for _, user := range append(created.More, creator) {
		delete(users, user)
	}
	if raw, err := json.Marshal(users); err == nil {
		b.PowerLevels["users"] = raw
	}
}

// powerLevels are the defaults with the client's fields over them. Creators have no entry where the version puts them above all levels.
func powerLevels(body *createRoomBody, chosen preset, traits eventgraph.Traits, creator eventgraph.UserID, invited []eventgraph.UserID, trusted bool) (levels map[string]any, overridden bool) {
	users := map[eventgraph.UserID]int{}
	tombstone := 100
	if traits.PrivilegedCreators {
		tombstone = 150
	} else {
		users[creator] = 100
		if trusted {
			for _, user := range invited {
				users[user] = 100
			}
		}
	}
	invite := 0
	if chosen.joinRule == "public" {
		invite = 50
	}
	levels = map[string]any{
		"users": users, "users_default": 0, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": invite, "historical": 100,
		"events": map[string]int{
			"m.room.name": 50, "m.room.avatar": 50, "m.room.canonical_alias": 50, "m.room.power_levels": 100,
			"m.room.history_visibility": 100, "m.room.encryption": 100, "m.room.server_acl": 100, "m.room.tombstone": tombstone,
		},
	}
	for field, value := range body.PowerLevels {
		levels[field] = value
	}
	return levels, len(body.PowerLevels) > 0
}
