package clientapi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// deviceJSON is a device as its user's clients see it (CS API, Device). matrix-nio refuses the whole list where a device lacks any of these, so what is not
// known is there too: no name and no address are "", and one that has never called was last seen when it was made.
type deviceJSON struct {
	ID          store.DeviceID `json:"device_id"`
	DisplayName string         `json:"display_name"`
	LastSeenIP  string         `json:"last_seen_ip"`
	LastSeenTS  int64          `json:"last_seen_ts"`
}

func showDevice(d *store.Device) deviceJSON {
	return deviceJSON{d.ID, d.DisplayName, d.LastSeenIP, max(d.LastSeenTS, d.CreatedTS)}
}

// getDevices is GET /devices.
func (a *API) getDevices(q *request) (any, error) {
	devices := []deviceJSON{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Devices(q.user, func(d *store.Device) (bool, error) {
			devices = append(devices, showDevice(d))
			return true, nil
		})
	})
	return map[string]any{"devices": devices}, err
}

// getDevice is GET /devices/{deviceId}.
func (a *API) getDevice(q *request) (any, error) {
	var shown deviceJSON
	err := a.Store.View(func(r *store.Reader) error {
		d, err := r.Device(q.user, store.DeviceID(q.path("deviceId")))
		if err == nil {
			shown = showDevice(d)
		}
		return err
	})
	return shown, err
}

// putDevice is PUT /devices/{deviceId}: its display name, which others see too.
func (a *API) putDevice(q *request) (any, error) {
	var body struct {
		DisplayName *string `json:"display_name"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.DisplayName != nil && len(*body.DisplayName) > maxDeviceName {
		return nil, invalidParam("display_name is too long.")
	}
	id := store.DeviceID(q.path("deviceId"))
	if q.service != nil {
		made, err := a.deviceByService(q, id, body.DisplayName)
		if made || err != nil {
			return written{}, err
		}
	}
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		d, err := tx.Device(q.user, id)
		if err != nil || body.DisplayName == nil || *body.DisplayName == d.DisplayName {
			return err
		}
		d.DisplayName, d.Origin = *body.DisplayName, a.Peer
		if err := tx.PutDevice(d); err != nil {
			return err
		}
		_, err = tx.LogDeviceList(q.user, d.ID)
		return err
	})
	return nil, err
}

// deleteDevice is DELETE /devices/{deviceId}, with User-Interactive Authentication.
func (a *API) deleteDevice(q *request) (any, error) {
	var body struct {
		Auth *authData `json:"auth"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	id := store.DeviceID(q.path("deviceId"))
	if err := a.confirm(q, body.Auth, "delete device "+string(id)); err != nil {
		return nil, err
	}
	return nil, a.deleteDevices(q.Context(), q.user, []store.DeviceID{id})
}

// postDeleteDevices is POST /delete_devices, with User-Interactive Authentication.
func (a *API) postDeleteDevices(q *request) (any, error) {
	var body struct {
		Auth    *authData        `json:"auth"`
		Devices []store.DeviceID `json:"devices"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Devices == nil {
		return nil, missingParam("devices is missing.")
	}
	slices.Sort(body.Devices)
	ids := slices.Compact(body.Devices)
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	if err := a.confirm(q, body.Auth, "delete devices "+strings.Join(names, "\x00")); err != nil {
		return nil, err
	}
	return nil, a.deleteDevices(q.Context(), q.user, ids)
}

// deviceIDs lists the user's devices.
func (a *API) deviceIDs(user eventgraph.UserID) (ids []store.DeviceID, err error) {
	err = a.Store.View(func(r *store.Reader) error {
		return r.Devices(user, func(d *store.Device) (bool, error) {
			ids = append(ids, d.ID)
			return true, nil
		})
	})
	return ids, err
}

// deleteDevices ends the devices' sessions and removes their keys and waiting messages. Those that are gone already are passed over.
func (a *API) deleteDevices(ctx context.Context, user eventgraph.UserID, ids []store.DeviceID) error {
	var ended []store.TokenHash
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		var err error
		ended, err = removeDevices(tx, user, ids)
		return err
	})
	if err != nil {
		return err
	}
	a.tokens.drop(ended...)
	return nil
}

// removeDevices removes all that is kept of the devices. The caller drops the tokens from the cache once it is
// committed.
func removeDevices(tx *store.Tx, user eventgraph.UserID, ids []store.DeviceID) (ended []store.TokenHash, err error) {
	for _, id := range ids {
		d, err := tx.Device(user, id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ended = append(ended, d.Tokens()...)
		if err := tx.DeleteDevice(user, id); err != nil {
			return nil, err
		}
		if err := tx.DeleteDeviceKeys(user, id); err != nil {
			return nil, err
		}
		if err := tx.DeleteDeviceQueue(user, id); err != nil {
			return nil, err
		}
		if err := tx.DeleteSlidingConnections(user, id); err != nil {
			return nil, err
		}
		if err := tx.DeletePushersOf(user, id); err != nil {
			return nil, err
		}
	}
	return ended, nil
}
