package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// resolveAlias finds an alias's room and servers that know it, here or at the alias's server. M_NOT_FOUND.
func (a *API) resolveAlias(ctx context.Context, alias eventgraph.RoomAlias) (room eventgraph.RoomID, servers []eventgraph.ServerName, err error) {
	if alias.Server() != a.Server {
		return a.remote.ResolveAlias(ctx, alias)
	}
	if room, err = a.localAlias(ctx, alias); errors.Is(err, store.ErrNotFound) {
		return "", nil, notFound("There is no room with that alias.")
	}
	if err != nil {
		return "", nil, err
	}
	servers, err = a.Rooms.Servers(room)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return room, servers, err
}

func aliasOf(q *request) (eventgraph.RoomAlias, error) {
	alias, err := eventgraph.ParseRoomAlias(q.path("roomAlias"))
	if err != nil {
		return "", invalidParam("That is not a room alias.")
	}
	return alias, nil
}

// getAlias is GET /directory/room/{roomAlias}.
func (a *API) getAlias(q *request) (any, error) {
	alias, err := aliasOf(q)
	if err != nil {
		return nil, err
	}
	room, servers, err := a.resolveAlias(q.Context(), alias)
	if err != nil {
		return nil, err
	}
	if servers == nil {
		servers = []eventgraph.ServerName{}
	}
	return map[string]any{"room_id": room, "servers": servers}, nil
}

// maxAliases bounds the local aliases of one room.
const maxAliases = 200

// putAlias is PUT /directory/room/{roomAlias}.
func (a *API) putAlias(q *request) (any, error) {
	alias, err := aliasOf(q)
	if err != nil {
		return nil, err
	}
	if alias.Server() != a.Server {
		return nil, invalidParam("Aliases of other servers are made there.")
	}
	if err := a.mayMakeAlias(q, alias); err != nil {
		return nil, err
	}
	var body struct {
		Room string `json:"room_id"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	room, err := eventgraph.ParseRoomID(body.Room)
	if err != nil {
		return nil, invalidParam("room_id is not a room ID.")
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		if m, err := memberOf(&tx.Reader, room, q.user); err != nil {
			return err
		} else if !isJoined(m) {
			return forbidden("You are not in that room.")
		}
		switch _, err := tx.Alias(alias); {
		case err == nil:
			return fail(http.StatusConflict, "M_UNKNOWN", "That alias is in use.")
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		held, err := tx.AliasesOf(room)
		if err != nil {
			return err
		}
		if len(held) >= maxAliases {
			return forbidden("The room has too many aliases.")
		}
		return tx.PutAlias(&store.Alias{Alias: alias, Room: room, Creator: q.user})
	})
	return nil, err
}

// deleteAlias is DELETE /directory/room/{roomAlias}: by who made it, or who may change the room's canonical alias, or the application service in
// whose namespace it is.
func (a *API) deleteAlias(q *request) (any, error) {
	alias, err := aliasOf(q)
	if err != nil {
		return nil, err
	}
	var held *store.Alias
	err = a.Store.View(func(r *store.Reader) (err error) {
		held, err = r.Alias(alias)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, notFound("There is no room with that alias.")
	}
	if err != nil {
		return nil, err
	}
	if a.Services.AliasTaken(alias, q.service) != nil {
		return nil, errAliasExclusive
	}
	if held.Creator != q.user && (q.service == nil || !q.service.HasAlias(alias)) {
		may, err := a.maySetState(held.Room, q.user, "m.room.canonical_alias")
		if err != nil {
			return nil, err
		}
		if !may {
			return nil, forbidden("You may not delete that alias.")
		}
	}
	if _, err = a.Store.Update(q.Context(), func(tx *store.Tx) error { return tx.DeleteAlias(alias) }); err != nil {
		return nil, err
	}
	// The alias is gone whatever becomes of this (CS API, Room aliases).
	if err := a.dropCanonicalAlias(q, held.Room, alias); err != nil {
		a.Log.Debug("m.room.canonical_alias keeps a deleted alias", "room", held.Room, "error", err)
	}
	return nil, nil
}

// dropCanonicalAlias takes a deleted alias out of the room's m.room.canonical_alias, in the name of who has deleted it.
func (a *API) dropCanonicalAlias(q *request, room eventgraph.RoomID, alias eventgraph.RoomAlias) error {
	state, err := a.Rooms.CurrentState(room)
	if err != nil {
		return err
	}
	e, err := state.Event(eventgraph.StateTuple{Type: "m.room.canonical_alias"})
	if err != nil || e == nil {
		return err
	}
	var content map[string]json.RawMessage
	if err := json.Unmarshal(e.Content(), &content); err != nil {
		return err
	}
	named := false
	var main eventgraph.RoomAlias
	if json.Unmarshal(content["alias"], &main) == nil && main == alias {
		named = true
		delete(content, "alias")
	}
	var alt []eventgraph.RoomAlias
	if json.Unmarshal(content["alt_aliases"], &alt) == nil && slices.Contains(alt, alias) {
		named = true
		delete(content, "alt_aliases")
		if alt = slices.DeleteFunc(alt, func(other eventgraph.RoomAlias) bool { return other == alias }); len(alt) > 0 {
			if content["alt_aliases"], err = json.Marshal(alt); err != nil {
				return err
			}
		}
	}
	if !named {
		return nil
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	key := ""
	_, err = a.remote.Send(q.Context(), rooms.Draft{Room: room, Sender: q.user, Type: "m.room.canonical_alias", StateKey: &key, Content: raw})
	return err
}

// maySetState says whether the user is in the room and has the power to send state of the type.
func (a *API) maySetState(room eventgraph.RoomID, user eventgraph.UserID, eventType string) (bool, error) {
	m, err := a.member(room, user)
	if err != nil || !isJoined(m) {
		return false, err
	}
	state, err := a.Rooms.CurrentState(room)
	if err != nil {
		return false, err
	}
	power, err := auth.UserPower(user, state)
	if err != nil || power.IsCreator {
		return power.IsCreator, err
	}
	levels, err := auth.PowerLevels(state)
	if err != nil {
		return false, err
	}
	needed, ok := levels.Events[eventType]
	if !ok {
		needed = levels.StateDefault
	}
	return power.Level >= needed, nil
}

// getAliases is GET /rooms/{roomId}/aliases: the local aliases, for members and where anybody may read.
func (a *API) getAliases(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	aliases := []eventgraph.RoomAlias{}
	err = a.Store.View(func(r *store.Reader) error {
		if _, err := a.readableState(r, room, q.user); err != nil {
			return err
		}
		held, err := r.AliasesOf(room)
		aliases = append(aliases, held...)
		return err
	})
	return map[string]any{"aliases": aliases}, err
}

// getVisibility is GET /directory/list/room/{roomId}.
func (a *API) getVisibility(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	visibility := "private"
	err = a.Store.View(func(r *store.Reader) error {
		if _, err := r.Room(room); err != nil {
			return err
		}
		published, err := r.Published(room)
		if published {
			visibility = "public"
		}
		return err
	})
	return map[string]any{"visibility": visibility}, err
}

// putVisibility is PUT /directory/list/room/{roomId}.
func (a *API) putVisibility(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Visibility string `json:"visibility"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Visibility != "" && body.Visibility != "public" && body.Visibility != "private" {
		return nil, invalidParam("visibility must be public or private.")
	}
	if err := a.Store.View(func(r *store.Reader) error { _, err := r.Room(room); return err }); err != nil {
		return nil, err
	}
	may, err := a.maySetState(room, q.user, "m.room.canonical_alias")
	if err != nil {
		return nil, err
	}
	if !may {
		return nil, forbidden("You may not change whether the room is in the directory.")
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error { return tx.SetPublished(room, body.Visibility != "private") })
	return nil, err
}
