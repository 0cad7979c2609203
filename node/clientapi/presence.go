package clientapi

import (
	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/store"
)

// maxStatusMessage bounds a presence's message, in bytes: it goes to everybody who shares a room.
const maxStatusMessage = 1024

// putPresence is PUT /presence/{userId}/status.
func (a *API) putPresence(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	var body struct {
		Presence  string `json:"presence"`
		StatusMsg string `json:"status_msg"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	switch body.Presence {
	case "online", "unavailable", "offline":
	case "":
		return nil, missingParam("presence is missing.")
	default:
		return nil, invalidParam("presence must be online, unavailable or offline.")
	}
	if len(body.StatusMsg) > maxStatusMessage {
		return nil, invalidParam("status_msg is too long.")
	}
	a.Ephemeral.SetPresence(q.user, ephemeral.Presence{
		State: body.Presence, StatusMsg: body.StatusMsg, LastActive: a.Now(), CurrentlyActive: body.Presence == "online",
	})
	return nil, nil
}

// getPresence is GET /presence/{userId}/status, for oneself and those one shares a room with.
func (a *API) getPresence(q *request) (any, error) {
	user, err := eventgraph.ParseUserID(q.path("userId"))
	if err != nil {
		return nil, invalidParam("That is not a user ID.")
	}
	if user != q.user {
		shared := false
		err := a.Store.View(func(r *store.Reader) (err error) {
			shared, err = newCompany(r, q.user).shares(user)
			return err
		})
		if err != nil {
			return nil, err
		}
		if !shared {
			return nil, forbidden("You share no room with that user.")
		}
	}
	presence, ok := a.Ephemeral.Presence(user)
	if !ok {
		return map[string]any{"presence": "offline"}, nil
	}
	return a.presenceContent(presence), nil
}

// presenceContent is the content of m.presence, and the answer of GET /presence/{userId}/status.
func (a *API) presenceContent(presence ephemeral.Presence) map[string]any {
	content := map[string]any{
		"presence":         presence.State,
		"currently_active": presence.CurrentlyActive,
		"last_active_ago":  max(a.Now().Sub(presence.LastActive).Milliseconds(), 0),
	}
	if presence.StatusMsg != "" {
		content["status_msg"] = presence.StatusMsg
	}
	return content
}
