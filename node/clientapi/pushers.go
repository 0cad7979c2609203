package clientapi

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/store"
)

// pusherRoutes registers what a client needs to be told of events while it sleeps (CS API, Push Notifications).
func (a *API) pusherRoutes() {
	a.route("GET", "/_matrix/client/v3/pushers", authed, a.getPushers)
	a.route("POST", "/_matrix/client/v3/pushers/set", authed, a.setPusher)
	a.route("GET", "/_matrix/client/v3/notifications", authed, a.getNotifications)
}

// Bounds of what a client says of a pusher, in bytes; the first two are the spec's.
const (
	maxPushkey    = 512
	maxAppID      = 64
	maxPusherText = 1 << 10 // each name, tag, language and URL
	maxPusherData = 8 << 10 // data: some apps keep a payload for their push provider in it
)

// pusherJSON is a pusher as its user's clients see it.
type pusherJSON struct {
	Pushkey           string          `json:"pushkey"`
	Kind              *string         `json:"kind"`
	AppID             string          `json:"app_id"`
	AppDisplayName    *string         `json:"app_display_name"`
	DeviceDisplayName *string         `json:"device_display_name"`
	ProfileTag        string          `json:"profile_tag,omitempty"`
	Lang              *string         `json:"lang"`
	Data              json.RawMessage `json:"data"`
}

// getPushers is GET /pushers.
func (a *API) getPushers(q *request) (any, error) {
	kind, shown := "http", []pusherJSON{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Pushers(q.user, func(p *store.Pusher) (bool, error) {
			data, err := withURL(p)
			shown = append(shown, pusherJSON{p.Key, &kind, p.AppID, &p.AppDisplayName, &p.DeviceDisplayName, p.ProfileTag, &p.Lang, data})
			return true, err
		})
	})
	return map[string]any{"pushers": shown}, err
}

// withURL is the pusher's data as the client gave it.
func withURL(p *store.Pusher) (json.RawMessage, error) {
	data := map[string]json.RawMessage{}
	if err := json.Unmarshal(p.Data, &data); err != nil {
		return nil, err
	}
	address, err := json.Marshal(p.URL)
	if err != nil {
		return nil, err
	}
	data["url"] = address
	return json.Marshal(data)
}

// setPusher is POST /pushers/set.
func (a *API) setPusher(q *request) (any, error) {
	raw, err := q.body()
	if err != nil {
		return nil, err
	}
	var body pusherJSON
	var more struct {
		Append bool            `json:"append"`
		Kind   json.RawMessage `json:"kind"` // null is not the same as none
	}
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if err := decodeJSON(raw, &more); err != nil {
		return nil, err
	}
	switch {
	case more.Kind == nil, body.AppID == "", body.Pushkey == "":
		return nil, missingParam("kind, app_id and pushkey are needed.")
	case len(body.AppID) > maxAppID:
		return nil, invalidParam("app_id is too long.")
	case len(body.Pushkey) > maxPushkey:
		return nil, invalidParam("pushkey is too long.")
	}
	key := store.PusherKey{User: q.user, AppID: body.AppID, Key: body.Pushkey}
	if body.Kind == nil {
		_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error { return tx.DeletePusher(key) })
		return nil, err
	}
	if q.device == "" {
		return nil, errNoDevice
	}
	p, err := a.checkPusher(&body)
	if err != nil {
		return nil, err
	}
	p.PusherKey, p.Device, p.UpdatedTS = key, q.device, a.Now().UnixMilli()
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		if _, err := tx.Device(q.user, q.device); err != nil {
			return err // it has logged out meanwhile, and nothing would remove the pusher
		}
		if !more.Append {
			err := tx.Pushers("", func(held *store.Pusher) (bool, error) {
				if held.User == q.user || held.AppID != p.AppID || held.Key != p.Key {
					return true, nil
				}
				return true, tx.DeletePusher(held.PusherKey)
			})
			if err != nil {
				return err
			}
		}
		return tx.PutPusher(p)
	})
	switch {
	case errors.Is(err, store.ErrTooManyPushers):
		return nil, forbidden("You have too many pushers.")
	case errors.Is(err, store.ErrNotFound):
		return nil, errUnknownToken
	}
	return nil, err
}

// checkPusher reads a pusher that is to be set.
func (a *API) checkPusher(body *pusherJSON) (*store.Pusher, error) {
	switch {
	case *body.Kind != "http":
		return nil, invalidParam("There are only pushers of the kind http here.")
	case body.AppDisplayName == nil, body.DeviceDisplayName == nil, body.Lang == nil, len(body.Data) == 0, bytes.Equal(body.Data, []byte("null")):
		return nil, missingParam("app_display_name, device_display_name, lang and data are needed.")
	case len(body.Data) > maxPusherData:
		return nil, invalidParam("data is too long.")
	}
	for _, text := range []string{*body.AppDisplayName, *body.DeviceDisplayName, *body.Lang, body.ProfileTag} {
		if len(text) > maxPusherText {
			return nil, invalidParam("A name, profile_tag or lang is too long.")
		}
	}
	var data map[string]json.RawMessage
	if err := decodeJSON(body.Data, &data); err != nil {
		return nil, err
	}
	var address string
	if data["url"] == nil {
		return nil, missingParam("data.url is needed.")
	}
	if err := decodeJSON(data["url"], &address); err != nil {
		return nil, err
	}
	if len(address) > maxPusherText {
		return nil, invalidParam("data.url is too long.")
	}
	if err := a.PushGateways.Check(address); err != nil {
		return nil, invalidParam("data.url is of no push gateway that may be called: " + err.Error() + ".")
	}
	delete(data, "url")
	rest, err := json.Marshal(data)
	return &store.Pusher{
		AppDisplayName: *body.AppDisplayName, DeviceDisplayName: *body.DeviceDisplayName, ProfileTag: body.ProfileTag, Lang: *body.Lang,
		URL: address, Data: rest,
	}, err
}
