package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/pushrules"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of what an upgrade moves.
const (
	maxMovedBans     = 1000
	maxMovedChildren = 1000 // of a space
)

// transferred is the state that goes over into the new room (CS API, Room upgrades, step 3); power levels come last, so that the
// creator may send all that the old room had.
var transferred = []string{
	"m.room.server_acl", "m.room.encryption", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.guest_access",
	"m.room.history_visibility", "m.room.canonical_alias",
}

// upgradeRoom is POST /rooms/{roomId}/upgrade (CS API, Room upgrades).
func (a *API) upgradeRoom(q *request) (any, error) {
	old, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Version  *eventgraph.RoomVersion `json:"new_version"`
		Creators []string                `json:"additional_creators"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Version == nil {
		return nil, missingParam("new_version is missing.")
	}
	traits, ok := body.Version.Traits()
	if !ok {
		return nil, fail(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "This server does not know that room version.")
	}
	creators, err := invitees(body.Creators, q.user)
	if err != nil {
		return nil, err
	}
	if !traits.PrivilegedCreators {
		creators = nil // ignored by versions that know none
	}
	may, err := a.maySetState(old, q.user, "m.room.tombstone")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if !may {
		return nil, forbidden("You may not upgrade that room.")
	}
	state, err := a.Rooms.CurrentState(old)
	if err != nil {
		return nil, err
	}
	create := rooms.CreateRequest{Version: *body.Version, Creator: q.user}
	if create.Content, err = a.successorContent(old, state, traits, creators); err != nil {
		return nil, err
	}
	if create.JoinContent, err = a.membershipContent(q.user, "join", ""); err != nil {
		return nil, err
	}
	if create.Then, err = a.transferredState(state, traits, append(creators, q.user)); err != nil {
		return nil, err
	}
	replacement, err := a.Rooms.Create(q.Context(), create)
	if err != nil {
		return nil, err
	}
	tombstone, err := json.Marshal(map[string]any{"body": "This room has been replaced.", "replacement_room": replacement})
	if err != nil {
		return nil, err
	}
	empty := ""
	if _, err := a.remote.Send(q.Context(), rooms.Draft{Room: old, Sender: q.user, Type: "m.room.tombstone", StateKey: &empty, Content: tombstone}); err != nil {
		return nil, err
	}
	// After the tombstone, which may be refused, by the room's policy server, say: then the old room stays where it is found.
	if err := a.moveDirectory(q.Context(), old, replacement); err != nil {
		return nil, err
	}
	if err := a.quietOldRoom(q, old, state); err != nil { // "if possible"
		a.Log.Debug("a room that was replaced goes on letting people talk", "room", old, "error", err)
	}
	a.carryOver(q.Context(), q.user, replacement)
	return map[string]any{"replacement_room": replacement}, nil
}

// successorContent is the content of the new room's create event: that of the old one, but for what depends on the version.
func (a *API) successorContent(old eventgraph.RoomID, state *rooms.State, traits eventgraph.Traits, creators []eventgraph.UserID) (json.RawMessage, error) {
	content, err := stateContent(state, "m.room.create")
	if err != nil {
		return nil, err
	}
	for _, field := range []string{"creator", "room_version", "additional_creators", "predecessor"} {
		delete(content, field)
	}
	predecessor := map[string]any{"room_id": old}
	if !traits.RoomIDFromCreate { // from version 12 on it may be left out
		err := a.Store.View(func(r *store.Reader) error {
			held, err := r.Room(old)
			if err == nil && len(held.Forward) > 0 {
				predecessor["event_id"] = held.Forward[0]
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for field, value := range map[string]any{"predecessor": predecessor, "additional_creators": creators} {
		if field == "additional_creators" && len(creators) == 0 {
			continue
		}
		if content[field], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return json.Marshal(content)
}

// stateContent is the content of the state event with an empty key, by field; empty if there is none.
func stateContent(state *rooms.State, eventType string) (map[string]json.RawMessage, error) {
	content := map[string]json.RawMessage{}
	e, err := state.Event(eventgraph.StateTuple{Type: eventType})
	if err != nil || e == nil {
		return content, err
	}
	return content, json.Unmarshal(e.Content(), &content)
}

// transferredState lists what is sent into the new room: state, children of a space, bans, power levels.
func (a *API) transferredState(state *rooms.State, traits eventgraph.Traits, creators []eventgraph.UserID) (drafts []rooms.Draft, err error) {
	add := func(eventType, key string, content json.RawMessage) {
		drafts = append(drafts, rooms.Draft{Type: eventType, StateKey: &key, Content: content})
	}
	for _, eventType := range transferred {
		e, err := state.Event(eventgraph.StateTuple{Type: eventType})
		if err != nil {
			return nil, err
		}
		if e != nil {
			add(eventType, "", e.Content())
		}
	}
	rules, err := transferredJoinRules(state, traits)
	if err != nil {
		return nil, err
	}
	if rules != nil {
		add("m.room.join_rules", "", rules)
	}
	bans, children := 0, 0
	err = state.Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		if t.Type != "m.room.member" && t.Type != "m.space.child" {
			return nil
		}
		held, err := a.Rooms.Event(id)
		if err != nil {
			return err
		}
		switch {
		case t.Type == "m.space.child" && children < maxMovedChildren && string(held.Content()) != "{}":
			children++
			add(t.Type, t.Key, held.Content())
		case held.Membership() == "ban" && bans < maxMovedBans && !slices.Contains(creators, eventgraph.UserID(t.Key)):
			bans++
			add(t.Type, t.Key, held.Content())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	levels, err := transferredPowerLevels(state, traits, creators)
	if err != nil {
		return nil, err
	}
	if levels != nil {
		add("m.room.power_levels", "", levels)
	}
	// Not among what the spec recommends, but without it nothing would protect the new room. It is in force once its policy server has joined.
	policy, err := state.Event(eventgraph.StateTuple{Type: "m.room.policy"})
	if policy != nil {
		add("m.room.policy", "", policy.Content())
	}
	return drafts, err
}

// transferredJoinRules are the old rules, or by invite where the new version does not know them; nil if there are none.
func transferredJoinRules(state *rooms.State, traits eventgraph.Traits) (json.RawMessage, error) {
	e, err := state.Event(eventgraph.StateTuple{Type: "m.room.join_rules"})
	if err != nil || e == nil {
		return nil, err
	}
	var content struct {
		Rule string `json:"join_rule"`
	}
	if err := json.Unmarshal(e.Content(), &content); err != nil {
		return nil, err
	}
	known := true
	switch content.Rule {
	case "knock":
		known = traits.Knock
	case "restricted":
		known = traits.Restricted
	case "knock_restricted":
		known = traits.KnockRestricted
	}
	if !known {
		return json.RawMessage(`{"join_rule":"invite"}`), nil
	}
	return e.Content(), nil
}

// transferredPowerLevels are the old ones; creators are above them where the version has it so, and else named in them, at the highest level that
// anything takes: that of a tombstone is 150 in version 12. nil if the old room
// has none.
func transferredPowerLevels(state *rooms.State, traits eventgraph.Traits, creators []eventgraph.UserID) (json.RawMessage, error) {
	content, err := stateContent(state, "m.room.power_levels")
	if err != nil || len(content) == 0 {
		return nil, err
	}
	users := map[eventgraph.UserID]json.RawMessage{}
	if raw, ok := content["users"]; ok {
		if err := json.Unmarshal(raw, &users); err != nil {
			return nil, err
		}
	}
	create, err := state.Event(eventgraph.StateTuple{Type: "m.room.create"})
	if err != nil || create == nil {
		return nil, err
	}
	was, _ := create.Version().Traits()
	for _, creator := range creators {
		switch {
		case traits.PrivilegedCreators:
			delete(users, creator) // the rules allow no entry
		case was.PrivilegedCreators && users[creator] == nil:
			users[creator] = json.RawMessage(strconv.FormatInt(highestLevel(content), 10))
		}
	}
	if content["users"], err = json.Marshal(users); err != nil {
		return nil, err
	}
	return json.Marshal(content)
}

// highestLevel is what it takes to do all that the power levels speak of, at least 100.
func highestLevel(content map[string]json.RawMessage) int64 {
	highest := int64(100)
	var events map[string]json.RawMessage
	_ = json.Unmarshal(content["events"], &events) // what is malformed asks for nothing
	for _, levels := range []map[string]json.RawMessage{content, events} {
		for _, raw := range levels {
			var level int64
			if json.Unmarshal(raw, &level) == nil {
				highest = max(highest, level)
			}
		}
	}
	return highest
}

// moveDirectory moves the local aliases and the place in the directory.
func (a *API) moveDirectory(ctx context.Context, from, to eventgraph.RoomID) error {
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		published, err := tx.Published(from)
		if err != nil {
			return err
		}
		if published {
			if err := errors.Join(tx.SetPublished(from, false), tx.SetPublished(to, true)); err != nil {
				return err
			}
		}
		aliases, err := tx.AliasesOf(from)
		if err != nil {
			return err
		}
		for _, name := range aliases {
			held, err := tx.Alias(name)
			if err != nil {
				return err
			}
			if err := tx.DeleteAlias(name); err != nil {
				return err
			}
			if err := tx.PutAlias(&store.Alias{Alias: name, Room: to, Creator: held.Creator}); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// quietOldRoom raises what it takes to talk and to invite in the old room (CS API, Room upgrades, step 6).
func (a *API) quietOldRoom(q *request, room eventgraph.RoomID, state *rooms.State) error {
	content, err := stateContent(state, "m.room.power_levels")
	if err != nil {
		return err
	}
	var usual int64
	if raw, ok := content["users_default"]; ok {
		if err := json.Unmarshal(raw, &usual); err != nil {
			return err
		}
	}
	for _, field := range []string{"events_default", "invite"} {
		var level int64
		if json.Unmarshal(content[field], &level) == nil && level >= max(50, usual+1) {
			continue
		}
		if content[field], err = json.Marshal(max(50, usual+1)); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	empty := ""
	_, err = a.remote.Send(q.Context(), rooms.Draft{Room: room, Sender: q.user, Type: "m.room.power_levels", StateKey: &empty, Content: raw})
	return err
}

// carryOver gives the room that the user has come into what they keep about its predecessor: push rules, tags, and that it is a direct chat (CS API, Room upgrades). A room
// that only claims to follow another, without having been made by the user or named by a tombstone there, gets nothing. What does not
// succeed is no reason to refuse the joining.
func (a *API) carryOver(ctx context.Context, user eventgraph.UserID, room eventgraph.RoomID) {
	old, err := a.predecessorOf(user, room)
	if err == nil && old != "" {
		_, err = a.Store.Update(ctx, func(tx *store.Tx) error { return a.carryOverIn(tx, user, old, room) })
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		a.Log.Debug("what a user keeps about a room is not carried over to the new one", "room", room, "error", err)
	}
}

// predecessorOf is the room that the user was in and that the room replaces; "" if there is none.
func (a *API) predecessorOf(user eventgraph.UserID, room eventgraph.RoomID) (eventgraph.RoomID, error) {
	state, err := a.Rooms.CurrentState(room)
	if err != nil {
		return "", err
	}
	create, err := state.Event(eventgraph.StateTuple{Type: "m.room.create"})
	if err != nil || create == nil {
		return "", err
	}
	var content struct {
		Predecessor struct {
			Room eventgraph.RoomID `json:"room_id"`
		} `json:"predecessor"`
	}
	old := &content.Predecessor.Room
	if json.Unmarshal(create.Content(), &content) != nil || *old == "" || *old == room {
		return "", nil
	}
	m, err := a.member(*old, user)
	if err != nil || m == nil || !m.WasJoined && !isJoined(m) {
		return "", err
	}
	if create.Sender() == user {
		return *old, nil
	}
	if state, err = a.Rooms.CurrentState(*old); err != nil {
		return "", err
	}
	tombstone, err := stateContent(state, "m.room.tombstone")
	var replacement eventgraph.RoomID
	if err != nil || json.Unmarshal(tombstone["replacement_room"], &replacement) != nil || replacement != room {
		return "", err
	}
	return *old, nil
}

// carryOverDirect names the new room in m.direct wherever it names the old one.
func (a *API) carryOverDirect(tx *store.Tx, user eventgraph.UserID, old, room eventgraph.RoomID) error {
	data, err := tx.AccountData(user, "", typeDirect)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var chats map[string]json.RawMessage
	if json.Unmarshal(data.Content, &chats) != nil {
		return nil // a client may have put anything there
	}
	changed := false
	for other, raw := range chats {
		var ids []eventgraph.RoomID
		if json.Unmarshal(raw, &ids) != nil || !slices.Contains(ids, old) || slices.Contains(ids, room) {
			continue
		}
		if chats[other], err = json.Marshal(append(ids, room)); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	content, err := json.Marshal(chats)
	if err != nil {
		return err
	}
	_, err = tx.PutAccountData(user, "", &store.AccountData{Type: typeDirect, Content: content, Origin: a.Peer})
	return err
}

// carryOverIn copies rules of the kinds that clients make for a room, and the tags, unless the new room has them.
func (a *API) carryOverIn(tx *store.Tx, user eventgraph.UserID, old, room eventgraph.RoomID) error {
	if err := a.carryOverDirect(tx, user, old, room); err != nil {
		return err
	}
	rules, err := readPushRules(&tx.Reader, user)
	if err != nil {
		return err
	}
	changed := false
	for _, kind := range []pushrules.Kind{"room", "override"} {
		rule, err := rules.Find(kind, string(old))
		if err != nil {
			continue // none
		}
		if _, err := rules.Find(kind, string(room)); err == nil {
			continue
		}
		raw, err := json.Marshal(rule)
		if err != nil {
			return err
		}
		var copied pushrules.Rule
		if err := json.Unmarshal(bytes.ReplaceAll(raw, []byte(old), []byte(room)), &copied); err != nil {
			return err
		}
		if err := rules.Put(kind, copied, "", ""); err != nil {
			return err
		}
		changed = true
	}
	if changed {
		if err := a.putPushRules(tx, user, rules); err != nil {
			return err
		}
	}
	tags, err := tx.AccountData(user, old, typeTag)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := tx.AccountData(user, room, typeTag); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	_, err = tx.PutAccountData(user, room, &store.AccountData{Type: typeTag, Content: tags.Content, Origin: a.Peer})
	if errors.Is(err, store.ErrAccountDataBytes) {
		return nil // the room is upgraded all the same
	}
	return err
}
