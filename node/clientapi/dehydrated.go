package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/plexus-p2p/plexus/store"
)

// Dehydrated devices (MSC3814). A user has one at most. It is a device without a token: others encrypt for it while none of the
// user's devices is logged in, and the next one that is fetches its messages with the keys that it can decrypt from its data.

const (
	maxDehydrated    = 64 << 10 // bytes of device_data; a pickled account with a hundred keys has some 10 KiB
	dehydratedEvents = 100      // messages in one answer
)

func (a *API) dehydratedRoutes() {
	const at = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
	a.route("PUT", at, authed, a.putDehydrated)
	a.route("GET", at, authed, a.getDehydrated)
	a.route("DELETE", at, authed, a.deleteDehydrated)
	a.route("GET", at+"/{deviceId}/events", authed, a.dehydratedEvents)
	a.route("POST", at+"/{deviceId}/events", authed, a.postDehydratedEvents)
}

var errNextBatch = invalidParam("next_batch is not what an earlier answer has given.")

// dehydratedOf is the user's dehydrated device; M_NOT_FOUND.
func dehydratedOf(r *store.Reader, q *request) (*store.Device, error) {
	var found *store.Device
	err := r.Devices(q.user, func(d *store.Device) (bool, error) {
		if d.Dehydrated != "" {
			found = d
		}
		return found == nil, nil
	})
	if err == nil && found == nil {
		err = notFound("There is no dehydrated device.")
	}
	return found, err
}

// putDehydrated is PUT /dehydrated_device: the device with all its keys, in place of the one before.
func (a *API) putDehydrated(q *request) (any, error) {
	var body struct {
		newDevice
		Data         json.RawMessage            `json:"device_data"`
		DeviceKeys   json.RawMessage            `json:"device_keys"`
		OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
		FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	switch {
	case body.DeviceID == "" || body.Data == nil || body.DeviceKeys == nil:
		return nil, missingParam("A dehydrated device needs device_id, device_data and device_keys.")
	case !isObject(body.Data):
		return nil, badJSON("device_data must be a JSON object.")
	case len(body.Data) > maxDehydrated, len(body.OneTimeKeys)+len(body.FallbackKeys) > maxUploadKeys:
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The device is too large.")
	}
	if err := body.newDevice.check(); err != nil {
		return nil, err
	}
	keys, err := checkDeviceKeys(body.DeviceKeys, q.user, body.DeviceID)
	if err != nil {
		return nil, err
	}
	signer := signingKeyOf(keys, body.DeviceID)
	oneTime, err := checkOneTimeKeys(body.OneTimeKeys, q.user, body.DeviceID, signer)
	if err != nil {
		return nil, err
	}
	fallback, err := checkOneTimeKeys(body.FallbackKeys, q.user, body.DeviceID, signer)
	if err != nil {
		return nil, err
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		before, err := dehydratedOf(&tx.Reader, q)
		var none *matrixError
		switch {
		case err == nil:
			if _, err := removeDevices(tx, q.user, []store.DeviceID{before.ID}); err != nil {
				return err
			}
		case !errors.As(err, &none):
			return err
		}
		if _, err := tx.Device(q.user, body.DeviceID); !errors.Is(err, store.ErrNotFound) {
			if err == nil {
				err = invalidParam("There is a device with that ID.")
			}
			return err
		}
		if err := notCrossSigningKey(tx, q.user, body.DeviceID); err != nil {
			return err
		}
		err = tx.PutDevice(&store.Device{
			User: q.user, ID: body.DeviceID, CreatedTS: a.Now().UnixMilli(), DisplayName: body.DisplayName, Origin: a.Peer, Dehydrated: string(body.Data),
		})
		if err != nil {
			return err
		}
		if _, err := tx.PutDeviceKeys(q.user, body.DeviceID, keys); err != nil {
			return err
		}
		if err := tx.PutOneTimeKeys(q.user, body.DeviceID, oneTime); err != nil {
			return err
		}
		return tx.PutFallbackKeys(q.user, body.DeviceID, fallback)
	})
	if errors.Is(err, store.ErrTooManyKeys) {
		return nil, fail(http.StatusBadRequest, "M_LIMIT_EXCEEDED", "These are too many keys for one device.")
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"device_id": body.DeviceID}, nil
}

// getDehydrated is GET /dehydrated_device.
func (a *API) getDehydrated(q *request) (any, error) {
	var d *store.Device
	err := a.Store.View(func(r *store.Reader) (err error) {
		d, err = dehydratedOf(r, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"device_id": d.ID, "device_data": json.RawMessage(d.Dehydrated)}, nil
}

// deleteDehydrated is DELETE /dehydrated_device.
func (a *API) deleteDehydrated(q *request) (any, error) {
	var id store.DeviceID
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		d, err := dehydratedOf(&tx.Reader, q)
		if err != nil {
			return err
		}
		id = d.ID
		_, err = removeDevices(tx, q.user, []store.DeviceID{id}) // it has no token that could be cached
		return err
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"device_id": id}, nil
}

// dehydratedEvents is GET /dehydrated_device/{deviceId}/events?from=, as matrix-js-sdk 43 asks: pages as the spec has them (Appendices,
// Pagination), so next_batch is there only while more wait. A server that always gives one makes that client ask for ever.
func (a *API) dehydratedEvents(q *request) (any, error) {
	page, err := a.dehydratedPage(q, q.URL.Query().Get("from"))
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"events": page.events}
	if page.more {
		answer["next_batch"] = page.next
	}
	return answer, nil
}

// postDehydratedEvents is POST /dehydrated_device/{deviceId}/events, as matrix-rust-sdk asks: next_batch is always there, and the end is
// an answer without events.
func (a *API) postDehydratedEvents(q *request) (any, error) {
	var body struct {
		NextBatch string `json:"next_batch"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	page, err := a.dehydratedPage(q, body.NextBatch)
	if err != nil {
		return nil, err
	}
	return map[string]any{"events": page.events, "next_batch": page.next}, nil
}

type dehydratedPage struct {
	events []json.RawMessage
	next   string
	more   bool // after next
}

// dehydratedPage is the messages that wait for the device after from ("": all), oldest first. They stay: should the client that
// fetches them get lost, another begins anew.
func (a *API) dehydratedPage(q *request, from string) (*dehydratedPage, error) {
	after := uint64(0)
	if from != "" {
		var err error
		if after, err = strconv.ParseUint(from, 10, 64); err != nil {
			return nil, errNextBatch
		}
	}
	page := &dehydratedPage{events: []json.RawMessage{}}
	err := a.Store.View(func(r *store.Reader) error {
		d, err := dehydratedOf(r, q)
		var none *matrixError
		if errors.As(err, &none) || err == nil && string(d.ID) != q.path("deviceId") {
			return forbidden("That is not the dehydrated device.")
		}
		if err != nil {
			return err
		}
		if store.Position(after) > r.Position() {
			return errNextBatch
		}
		return r.ToDevice(q.user, d.ID, store.Position(after), r.Position(), func(m *store.ToDevice) (bool, error) {
			if len(page.events) == dehydratedEvents {
				page.more = true
				return false, nil
			}
			after = uint64(m.Position)
			m.Origin = ""
			event, err := json.Marshal(m)
			page.events = append(page.events, event)
			return true, err
		})
	})
	if err != nil {
		return nil, err
	}
	page.next = strconv.FormatUint(after, 10)
	return page, nil
}
