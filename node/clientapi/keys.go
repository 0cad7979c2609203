package clientapi

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// Public keys for end-to-end encryption that local clients upload (CS API, End-to-End Encryption). The server can read
// none of what they protect; it checks signatures so that a broken upload is refused here and not later by every reader.

// Bounds of one device's uploads, in bytes. Post-quantum keys will be larger; today's objects have some hundred bytes.
const (
	maxDeviceKeys = 32 << 10
	maxOneTimeKey = 4 << 10
	maxUploadKeys = store.MaxOneTimeKeys * 2
)

func errSignature(message string) error {
	return fail(http.StatusBadRequest, "M_INVALID_SIGNATURE", message)
}

// deviceKeysObject is DeviceKeys (definitions/device_keys.yaml).
type deviceKeysObject struct {
	User       eventgraph.UserID                                 `json:"user_id"`
	Device     store.DeviceID                                    `json:"device_id"`
	Algorithms []string                                          `json:"algorithms"`
	Keys       map[string]string                                 `json:"keys"`
	Signatures map[eventgraph.UserID]map[eventgraph.KeyID]string `json:"signatures"`
}

// uploadKeys is POST /keys/upload.
func (a *API) uploadKeys(q *request) (any, error) {
	var body struct {
		DeviceKeys   json.RawMessage            `json:"device_keys"`
		OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
		FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if len(body.OneTimeKeys)+len(body.FallbackKeys) > maxUploadKeys {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "Too many keys in one upload.")
	}
	if q.device == "" {
		return nil, errNoDevice
	}
	var held json.RawMessage
	err := a.Store.View(func(r *store.Reader) (err error) {
		held, err = r.DeviceKeys(q.user, q.device)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	deviceKeys := held
	if body.DeviceKeys != nil && !canonicaljson.IsNull(body.DeviceKeys) {
		if deviceKeys, err = checkDeviceKeys(body.DeviceKeys, q.user, q.device); err != nil {
			return nil, err
		}
	}
	signer := signingKeyOf(deviceKeys, q.device)
	oneTime, err := checkOneTimeKeys(body.OneTimeKeys, q.user, q.device, signer)
	if err != nil {
		return nil, err
	}
	fallback, err := checkOneTimeKeys(body.FallbackKeys, q.user, q.device, signer)
	if err != nil {
		return nil, err
	}
	of := map[string]bool{}
	for _, k := range fallback {
		if of[k.Algorithm] { // "at most one fallback key per algorithm" (keys.yaml)
			return nil, invalidParam("There are two fallback keys of one algorithm.")
		}
		of[k.Algorithm] = true
	}

	var counts *store.KeyCounts
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) (err error) {
		if _, err := tx.Device(q.user, q.device); err != nil {
			return fail(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "This device has been removed.")
		}
		if deviceKeys != nil && string(deviceKeys) != string(held) {
			if _, err := tx.PutDeviceKeys(q.user, q.device, deviceKeys); err != nil {
				return err
			}
		}
		if len(oneTime) > 0 {
			if err := tx.PutOneTimeKeys(q.user, q.device, oneTime); err != nil {
				return err
			}
		}
		if len(fallback) > 0 {
			if err := tx.PutFallbackKeys(q.user, q.device, fallback); err != nil {
				return err
			}
		}
		counts, err = tx.KeyCounts(q.user, q.device)
		return err
	})
	switch {
	case errors.Is(err, store.ErrKeyExists):
		return nil, invalidParam("One time key already exists with another content: " + err.Error())
	case errors.Is(err, store.ErrTooManyKeys):
		return nil, fail(http.StatusBadRequest, "M_LIMIT_EXCEEDED", "This device has too many keys here already.")
	case err != nil:
		return nil, err
	}
	return map[string]any{"one_time_key_counts": counts.OneTime}, nil
}

// isDeep says whether a part of what is signed for other servers is nested so deep that nothing could be signed with it.
func isDeep(part json.RawMessage) bool { return canonicaljson.Depth(part) > canonicaljson.MaxPart }

// checkDeviceKeys returns the keys in canonical form if they name this device and no signature of it is wrong. That there is one is
// for those to ask who are to trust the keys.
func checkDeviceKeys(raw json.RawMessage, user eventgraph.UserID, device store.DeviceID) (json.RawMessage, error) {
	canonical, err := canonicaljson.CanonicalizeWithout(raw, canonicaljson.Strict, "unsigned")
	if err != nil || !canonicaljson.IsObject(canonical) {
		return nil, badJSON("device_keys is not canonical JSON.")
	}
	if len(canonical) > maxDeviceKeys {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "device_keys is too large.")
	}
	if isDeep(canonical) {
		return nil, badJSON("device_keys is nested too deep.")
	}
	var keys deviceKeysObject
	if err := json.Unmarshal(canonical, &keys); err != nil {
		return nil, badJSON("device_keys is not of the form that the specification gives.")
	}
	if keys.User != user || keys.Device != device {
		return nil, invalidParam("device_keys names another user or device.")
	}
	if keys.Algorithms == nil || keys.Keys == nil || keys.Signatures == nil {
		return nil, badJSON("device_keys lacks algorithms, keys or signatures.")
	}
	id := eventgraph.KeyID("ed25519:" + string(device))
	public := signingKeyOf(canonical, device)
	if public == nil {
		return nil, invalidParam("device_keys has no ed25519 key of this device.")
	}
	if keys.Signatures[user][id] == "" {
		return canonical, nil
	}
	if err := eventgraph.VerifyJSON(canonical, eventgraph.ServerName(user), id, public); err != nil {
		return nil, errSignature("device_keys is not rightly signed by the device.")
	}
	return canonical, nil
}

// signingKeyOf is the device's ed25519 key in its identity keys; nil if there is none.
func signingKeyOf(deviceKeys json.RawMessage, device store.DeviceID) ed25519.PublicKey {
	var keys deviceKeysObject
	if deviceKeys == nil || json.Unmarshal(deviceKeys, &keys) != nil {
		return nil
	}
	return decodePublicKey(keys.Keys["ed25519:"+string(device)])
}

// decodePublicKey reads unpadded base64; nil if it is no ed25519 key.
func decodePublicKey(s string) ed25519.PublicKey {
	public, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return nil
	}
	return public
}

// checkOneTimeKeys takes one-time or fallback keys apart. Signed ones must be signed by the device (CS API, Key
// algorithms: signed_curve25519).
func checkOneTimeKeys(keys map[string]json.RawMessage, user eventgraph.UserID, device store.DeviceID, signer ed25519.PublicKey) ([]store.OneTimeKey, error) {
	var out []store.OneTimeKey
	for name, raw := range keys {
		algorithm, id, ok := strings.Cut(name, ":")
		if !ok || algorithm == "" || id == "" || len(name) > 255 {
			return nil, invalidParam("The name of a key must be <algorithm>:<key_id>.")
		}
		canonical, err := canonicaljson.Canonicalize(raw, canonicaljson.Strict)
		if err != nil || len(canonical) > maxOneTimeKey || isDeep(canonical) {
			return nil, badJSON("A key is not canonical JSON, or too large, or nested too deep.")
		}
		if strings.HasPrefix(algorithm, "signed_") {
			if signer == nil {
				return nil, invalidParam("Signed keys need the device's own keys uploaded first.")
			}
			if eventgraph.VerifyJSON(canonical, eventgraph.ServerName(user), eventgraph.KeyID("ed25519:"+string(device)), signer) != nil {
				return nil, errSignature("A one-time or fallback key is not rightly signed by the device.")
			}
		}
		out = append(out, store.OneTimeKey{Algorithm: algorithm, ID: id, Key: canonical})
	}
	return out, nil
}
