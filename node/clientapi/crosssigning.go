package clientapi

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// crossSigningUsages are the three keys in the order in which they are checked, with the field that carries each.
var crossSigningUsages = []struct{ usage, field string }{
	{"master", "master_key"},
	{"self_signing", "self_signing_key"},
	{"user_signing", "user_signing_key"},
}

// crossSigningObject is CrossSigningKey (definitions/cross_signing_key.yaml).
type crossSigningObject struct {
	User  eventgraph.UserID `json:"user_id"`
	Usage []string          `json:"usage"`
	Keys  map[string]string `json:"keys"`

	Signatures map[eventgraph.UserID]map[eventgraph.KeyID]string `json:"signatures"`
}

// checkCrossSigningKey returns the key object in canonical form, and the public key in it.
func checkCrossSigningKey(raw json.RawMessage, user eventgraph.UserID, usage string) (json.RawMessage, string, error) {
	canonical, err := canonicaljson.CanonicalizeWithout(raw, canonicaljson.Strict, "unsigned")
	if err != nil || len(canonical) > maxDeviceKeys || isDeep(canonical) {
		return nil, "", badJSON("A cross-signing key is not canonical JSON, or too large, or nested too deep.")
	}
	var k crossSigningObject
	if json.Unmarshal(canonical, &k) != nil {
		return nil, "", badJSON("A cross-signing key is not of the form that the specification gives.")
	}
	public := store.CrossSigningPublicKey(canonical)
	switch {
	case k.User != user:
		return nil, "", invalidParam("A cross-signing key names another user.")
	case !slices.Contains(k.Usage, usage):
		return nil, "", invalidParam("A cross-signing key is not meant for its use.")
	case decodePublicKey(public) == nil || k.Keys["ed25519:"+public] != public:
		return nil, "", invalidParam("A cross-signing key must have exactly one ed25519 key, under its own name.")
	}
	return canonical, public, nil
}

// uploadCrossSigning is POST /keys/device_signing/upload.
func (a *API) uploadCrossSigning(q *request) (any, error) {
	var body map[string]json.RawMessage
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	var auth *authData
	if raw := body["auth"]; raw != nil {
		if err := decodeJSON(raw, &auth); err != nil {
			return nil, err
		}
	}
	keys := map[string]json.RawMessage{} // by usage
	publics := map[string]string{}
	for _, u := range crossSigningUsages {
		if raw := body[u.field]; raw != nil && !canonicaljson.IsNull(raw) {
			var err error
			if keys[u.usage], publics[u.usage], err = checkCrossSigningKey(raw, q.user, u.usage); err != nil {
				return nil, err
			}
		}
	}
	held, devices, err := a.crossSigningHeld(q.user)
	if err != nil {
		return nil, err
	}
	master := publics["master"]
	if master == "" {
		master = held["master"]
	}
	if master == "" {
		return nil, missingParam("No master signing key is available.")
	}
	for usage, public := range publics {
		if usage != "master" && eventgraph.VerifyJSON(keys[usage], eventgraph.ServerName(q.user), eventgraph.KeyID("ed25519:"+master), decodePublicKey(master)) != nil {
			return nil, errSignature("The " + usage + " key is not rightly signed by the master key.")
		}
		if slices.Contains(devices, store.DeviceID(public)) {
			return nil, forbidden("Key ID in use: a device has the same ID.")
		}
	}

	// No authentication for the first upload, nor for one that changes nothing (cross_signing.yaml).
	if held["master"] != "" {
		changed := false
		for usage, public := range publics {
			changed = changed || held[usage] != public
		}
		if !changed {
			return nil, nil
		}
		if err := a.confirm(q, auth, "replace cross-signing keys"); err != nil {
			return nil, err
		}
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		// Somebody else may have been first meanwhile; they would have to be asked.
		if now, err := tx.CrossSigningKey(q.user, "master", q.user); err == nil && held["master"] != store.CrossSigningPublicKey(now) {
			return fail(http.StatusConflict, "M_UNKNOWN", "The keys were changed at the same time: try again.")
		} else if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		_, err := tx.PutCrossSigningKeys(q.user, keys)
		return err
	})
	return nil, err
}

// crossSigningHeld reads the public keys that a local user has, by usage, and the user's devices.
func (a *API) crossSigningHeld(user eventgraph.UserID) (map[string]string, []store.DeviceID, error) {
	held := map[string]string{}
	err := a.Store.View(func(r *store.Reader) error {
		for _, u := range crossSigningUsages {
			k, err := r.CrossSigningKey(user, u.usage, user)
			if err == nil {
				held[u.usage] = store.CrossSigningPublicKey(k)
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	devices, err := a.deviceIDs(user)
	return held, devices, err
}

// maxSignedKeys bounds the keys of one POST /keys/signatures/upload: an account's devices and all whom they verify at once.
const maxSignedKeys = 500

// uploadSignatures is POST /keys/signatures/upload.
func (a *API) uploadSignatures(q *request) (any, error) {
	var body map[eventgraph.UserID]map[string]json.RawMessage
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	held, _, err := a.crossSigningHeld(q.user)
	if err != nil {
		return nil, err
	}
	failures := map[eventgraph.UserID]map[string]any{}
	type signed struct {
		target     eventgraph.UserID
		key        string
		signatures map[string]string
	}
	var good []signed
	for _, target := range slices.Sorted(maps.Keys(body)) {
		for key, object := range body[target] {
			if len(good) == maxSignedKeys {
				return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "Too many keys in one upload.")
			}
			signatures, err := a.checkSignatures(q, held, target, key, object)
			if err == nil {
				good = append(good, signed{target, key, signatures})
				continue
			}
			e := asMatrixError(err)
			if e == nil {
				return nil, err
			}
			if failures[target] == nil {
				failures[target] = map[string]any{}
			}
			failures[target][key] = map[string]string{"errcode": e.Code, "error": e.Message}
		}
	}
	if len(good) > 0 {
		_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
			for _, s := range good {
				if _, err := tx.PutKeySignatures(q.user, s.target, s.key, s.signatures); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return map[string]any{"failures": failures}, err
}

// checkSignatures returns the caller's new signatures on one key if the object is that key and they are right. Who may sign
// what (CS API, Cross-signing): a self-signing key its user's devices, a device its user's master key, a
// user-signing key others' master keys.
func (a *API) checkSignatures(q *request, held map[string]string, target eventgraph.UserID, key string, object json.RawMessage) (map[string]string, error) {
	canonical, err := canonicaljson.CanonicalizeWithout(object, canonicaljson.Strict, "unsigned")
	if err != nil || len(canonical) > maxDeviceKeys {
		return nil, badJSON("The key is not canonical JSON, or too large.")
	}
	var signed struct {
		Signatures map[eventgraph.UserID]map[string]string `json:"signatures"`
	}
	if json.Unmarshal(canonical, &signed) != nil || len(signed.Signatures[q.user]) == 0 {
		return nil, errSignature("The key has no signature of yours.")
	}
	known, isDevice, err := a.signable(q, target, key)
	if err != nil {
		return nil, err
	}
	if !sameUnsigned(canonical, known) {
		return nil, invalidParam("The key is not the one known here.")
	}
	good := map[string]string{}
	for id, signature := range signed.Signatures[q.user] {
		var public ed25519.PublicKey
		switch {
		case isDevice && id == "ed25519:"+key:
			continue // the device's own, in its keys already
		case isDevice && id == "ed25519:"+held["self_signing"]:
			public = decodePublicKey(held["self_signing"])
		case !isDevice && target != q.user && id == "ed25519:"+held["user_signing"]:
			public = decodePublicKey(held["user_signing"])
		case !isDevice && target == q.user:
			if public, err = a.ownDeviceKey(q.user, id); err != nil {
				return nil, err
			}
		}
		if public == nil || eventgraph.VerifyJSON(canonical, eventgraph.ServerName(q.user), eventgraph.KeyID(id), public) != nil {
			return nil, errSignature("The signature is not right, or by a key that may not sign this.")
		}
		good[id] = signature
	}
	if len(good) == 0 {
		return nil, errSignature("The key has no new signature of yours.")
	}
	return good, nil
}

// signable reads the key that signatures are for.
func (a *API) signable(q *request, target eventgraph.UserID, key string) (known json.RawMessage, isDevice bool, err error) {
	unknown := notFound("That key is not known here.")
	if target != q.user {
		answer, err := a.queryUsers(q.Context(), q.user, map[eventgraph.UserID][]store.DeviceID{target: nil}, usualKeyTimeout)
		if err != nil {
			return nil, false, err
		}
		known = answer.MasterKeys[target]
		if known == nil || store.CrossSigningPublicKey(known) != key {
			return nil, false, unknown
		}
		return known, false, nil
	}
	err = a.Store.View(func(r *store.Reader) error {
		if known, err = r.DeviceKeys(target, store.DeviceID(key)); !errors.Is(err, store.ErrNotFound) {
			isDevice = true
			return err
		}
		known, err = r.CrossSigningKey(target, "master", target)
		return err
	})
	if errors.Is(err, store.ErrNotFound) || err == nil && !isDevice && store.CrossSigningPublicKey(known) != key {
		return nil, false, unknown
	}
	return known, isDevice, err
}

// ownDeviceKey is the ed25519 key of the user's device that a key ID names; nil if it names none.
func (a *API) ownDeviceKey(user eventgraph.UserID, id string) (public ed25519.PublicKey, err error) {
	const prefix = "ed25519:"
	if len(id) <= len(prefix) || id[:len(prefix)] != prefix {
		return nil, nil
	}
	device := store.DeviceID(id[len(prefix):])
	err = a.Store.View(func(r *store.Reader) error {
		keys, err := r.DeviceKeys(user, device)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		public = signingKeyOf(keys, device)
		return err
	})
	return public, err
}

// sameUnsigned says whether two objects are equal but for signatures and unsigned. a is canonical.
func sameUnsigned(a, b json.RawMessage) bool {
	strip := func(raw json.RawMessage) string {
		canonical, err := canonicaljson.CanonicalizeWithout(raw, canonicaljson.Strict, "signatures")
		if err == nil {
			canonical, err = canonicaljson.CanonicalizeWithout(canonical, canonicaljson.Strict, "unsigned")
		}
		if err != nil {
			return ""
		}
		return string(canonical)
	}
	x := strip(a)
	return x != "" && x == strip(b)
}
