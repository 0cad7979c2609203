package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// Asking for keys and claiming them, for local clients and for other servers.

// Bounds of one call.
const (
	usualKeyTimeout = 10 * time.Second // keys.yaml's recommended default
	maxKeyTimeout   = time.Minute
	maxAsked        = 10   // remote servers or users asked at a time
	maxClaims       = 5000 // one-time keys in one request; a room of 1000 people has that many devices
	claimsAtOnce    = 200  // in one transaction of the store
)

// keyTimeout is how long to wait for remote servers.
func keyTimeout(ms *int64) time.Duration {
	if ms == nil || *ms <= 0 {
		return usualKeyTimeout
	}
	return time.Duration(min(*ms, maxKeyTimeout.Milliseconds())) * time.Millisecond
}

// keysAnswer is the body of POST /keys/query.
type keysAnswer struct {
	Failures    map[eventgraph.ServerName]any                            `json:"failures"`
	DeviceKeys  map[eventgraph.UserID]map[store.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys  map[eventgraph.UserID]json.RawMessage                    `json:"master_keys"`
	SelfSigning map[eventgraph.UserID]json.RawMessage                    `json:"self_signing_keys"`
	UserSigning map[eventgraph.UserID]json.RawMessage                    `json:"user_signing_keys"`
}

func newKeysAnswer() *keysAnswer {
	return &keysAnswer{
		Failures:    map[eventgraph.ServerName]any{},
		DeviceKeys:  map[eventgraph.UserID]map[store.DeviceID]json.RawMessage{},
		MasterKeys:  map[eventgraph.UserID]json.RawMessage{},
		SelfSigning: map[eventgraph.UserID]json.RawMessage{},
		UserSigning: map[eventgraph.UserID]json.RawMessage{},
	}
}

// queryKeys is POST /keys/query.
func (a *API) queryKeys(q *request) (any, error) {
	var body struct {
		Timeout    *int64                                `json:"timeout"`
		DeviceKeys map[eventgraph.UserID]json.RawMessage `json:"device_keys"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.DeviceKeys == nil {
		return nil, missingParam("device_keys is missing.")
	}
	wanted := make(map[eventgraph.UserID][]store.DeviceID, len(body.DeviceKeys))
	for user, raw := range body.DeviceKeys {
		var devices []store.DeviceID
		if json.Unmarshal(raw, &devices) != nil {
			return nil, badJSON("device_keys must map each user to a list of device IDs.")
		}
		wanted[user] = devices
	}
	found, failures, err := a.findKeys(q.Context(), wanted, keyTimeout(body.Timeout))
	if err != nil {
		return nil, err
	}
	return a.streamKeys(q, wanted, found, failures)
}

// queryUsers finds the keys of users, here or at their servers, as viewer may see them. No devices means all of a user's.
func (a *API) queryUsers(ctx context.Context, viewer eventgraph.UserID, wanted map[eventgraph.UserID][]store.DeviceID, timeout time.Duration) (*keysAnswer, error) {
	answer := newKeysAnswer()
	found, failures, err := a.findKeys(ctx, wanted, timeout)
	if err != nil {
		return nil, err
	}
	answer.Failures = failures
	return answer, a.Store.View(func(r *store.Reader) error {
		for _, f := range found {
			if err := a.addFound(r, answer, f, wanted[f.user], viewer); err != nil {
				return err
			}
		}
		return nil
	})
}

// maxUncached bounds the lists of one answer that are not in the cache, in bytes of their keys.
const maxUncached = 2 << 20

// findKeys says where the keys of users are: local ones in the store, and those of remote ones in the cache where their servers were asked for them.
func (a *API) findKeys(ctx context.Context, wanted map[eventgraph.UserID][]store.DeviceID, timeout time.Duration) ([]foundKeys, map[eventgraph.ServerName]any, error) {
	var found []foundKeys
	failures := map[eventgraph.ServerName]any{}
	remote := map[eventgraph.ServerName][]eventgraph.UserID{}
	for _, user := range slices.Sorted(maps.Keys(wanted)) {
		if server := user.Server(); server == a.Server {
			found = append(found, foundKeys{user: user})
		} else if server != "" {
			remote[server] = append(remote[server], user)
		}
	}
	if len(remote) == 0 {
		return found, failures, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var mu sync.Mutex // guards found, failures, uncached
	uncached := 0
	var group errgroup.Group
	group.SetLimit(maxAsked)
	for server, users := range remote {
		group.Go(func() error {
			lists, failure := a.remoteLists(ctx, server, users)
			mu.Lock()
			defer mu.Unlock()
			for _, l := range lists {
				if n := l.size(); uncached+n > maxUncached {
					failure = fail(http.StatusServiceUnavailable, "M_TOO_LARGE", "There are too many keys for one answer: ask for fewer users at once.")
				} else {
					uncached += n
					found = append(found, l)
				}
			}
			if failure != nil {
				failures[server] = showFailure(failure)
			}
			return nil
		})
	}
	return found, failures, group.Wait()
}

// size is how many bytes the keys take in memory; none that are in the cache.
func (f *foundKeys) size() (n int) {
	if f.list != nil {
		n = len(f.list.Master) + len(f.list.SelfSigning)
		for _, d := range f.list.Devices {
			n += len(d.Keys) + len(d.DisplayName)
		}
	}
	return n
}

// addFound adds a user's keys to an answer, as viewer may see them.
func (a *API) addFound(r *store.Reader, answer *keysAnswer, f foundKeys, devices []store.DeviceID, viewer eventgraph.UserID) error {
	if f.user.Server() == a.Server {
		return answer.addLocal(r, f.user, devices, viewer)
	}
	if f.list == nil {
		list, err := r.RemoteDevices(f.user)
		if errors.Is(err, store.ErrNotFound) { // no room is shared any more
			return nil
		}
		if err != nil {
			return err
		}
		f.list = list
	}
	return answer.addRemote(r, f.list, devices, viewer)
}

// showFailure is what clients are told of a server that could not be asked.
func showFailure(err error) any {
	status, message := http.StatusServiceUnavailable, "This server cannot be reached now."
	if e := asMatrixError(err); e != nil {
		status, message = e.Status, e.Message
	}
	return map[string]any{"status": status, "message": message}
}

// addLocal adds a local user's keys; nothing for a user who does not exist.
func (k *keysAnswer) addLocal(r *store.Reader, user eventgraph.UserID, devices []store.DeviceID, viewer eventgraph.UserID) error {
	if _, err := r.Account(user); errors.Is(err, store.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	list, err := r.DeviceList(user)
	if err != nil {
		return err
	}
	k.DeviceKeys[user] = map[store.DeviceID]json.RawMessage{}
	for _, d := range list.Devices {
		if len(devices) > 0 && !slices.Contains(devices, d.ID) {
			continue
		}
		if k.DeviceKeys[user][d.ID], err = withDisplayName(d.Keys, d.DisplayName); err != nil {
			return err
		}
	}
	fields := map[string]map[eventgraph.UserID]json.RawMessage{"master": k.MasterKeys, "self_signing": k.SelfSigning}
	if viewer == user {
		fields["user_signing"] = k.UserSigning
	}
	for usage, into := range fields {
		key, err := r.CrossSigningKey(user, usage, viewer)
		if err == nil {
			into[user] = key
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}

// addRemote adds a remote user's keys, with the viewer's own signatures on their master key.
func (k *keysAnswer) addRemote(r *store.Reader, list *store.RemoteDevices, devices []store.DeviceID, viewer eventgraph.UserID) error {
	var err error
	k.DeviceKeys[list.User] = map[store.DeviceID]json.RawMessage{}
	for id, d := range list.Devices {
		if len(devices) > 0 && !slices.Contains(devices, id) {
			continue
		}
		if k.DeviceKeys[list.User][id], err = withDisplayName(d.Keys, d.DisplayName); err != nil {
			return err
		}
	}
	if list.Master != nil {
		public := store.CrossSigningPublicKey(list.Master)
		if k.MasterKeys[list.User], err = r.MergeSignatures(list.Master, list.User, public, viewer); err != nil {
			return err
		}
	}
	if list.SelfSigning != nil {
		k.SelfSigning[list.User] = list.SelfSigning
	}
	return nil
}

// withDisplayName sets the unsigned.device_display_name of a device's keys, and drops all else that is unsigned.
func withDisplayName(keys json.RawMessage, name string) (json.RawMessage, error) {
	canonical, err := canonicaljson.CanonicalizeWithout(keys, canonicaljson.Strict, "unsigned")
	if err != nil || name == "" || !canonicaljson.IsObject(canonical) || len(canonical) == len("{}") {
		return canonical, err
	}
	b := append(canonical[:len(canonical)-1:len(canonical)-1], `,"unsigned":{"device_display_name":`...)
	return append(appendString(b, name), "}}"...), nil
}

// Devices is GET /user/devices/{userId} of another server (federation.Local); store.ErrNotFound.
func (a *API) Devices(_ context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	var list *store.DeviceList
	err := a.Store.View(func(r *store.Reader) (err error) {
		if _, err = r.Account(user); err == nil {
			list, err = r.DeviceList(user)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(list)
}

// QueryKeys is POST /user/keys/query of another server (federation.Local): local users only, and only what their own keys have
// signed.
func (a *API) QueryKeys(_ context.Context, _ eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	var query struct {
		DeviceKeys map[eventgraph.UserID][]store.DeviceID `json:"device_keys"`
	}
	if json.Unmarshal(body, &query) != nil {
		return nil, badJSON("device_keys must map each user to a list of device IDs.")
	}
	answer := newKeysAnswer()
	err := a.Store.View(func(r *store.Reader) error {
		for user, devices := range query.DeviceKeys {
			if user.Server() != a.Server {
				continue
			}
			if err := answer.addLocal(r, user, devices, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"device_keys": answer.DeviceKeys, "master_keys": answer.MasterKeys, "self_signing_keys": answer.SelfSigning,
	})
}

// claims is a map from user to device to algorithm, and with json.RawMessage by key name what came of it.
type (
	claims  = map[eventgraph.UserID]map[store.DeviceID]string
	claimed = map[eventgraph.UserID]map[store.DeviceID]map[string]json.RawMessage
)

// claimKeys is POST /keys/claim.
func (a *API) claimKeys(q *request) (any, error) {
	var body struct {
		Timeout     *int64 `json:"timeout"`
		OneTimeKeys claims `json:"one_time_keys"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.OneTimeKeys == nil {
		return nil, missingParam("one_time_keys is missing.")
	}
	got, err := a.claimLocal(q.Context(), body.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	remote := map[eventgraph.ServerName]claims{}
	for user, devices := range body.OneTimeKeys {
		if server := user.Server(); server != a.Server && server != "" {
			if remote[server] == nil {
				remote[server] = claims{}
			}
			remote[server][user] = devices
		}
	}
	ctx, cancel := context.WithTimeout(q.Context(), keyTimeout(body.Timeout))
	defer cancel()
	failures := map[eventgraph.ServerName]any{}
	var mu sync.Mutex // guards got and failures
	var group errgroup.Group
	group.SetLimit(maxAsked)
	for server, wanted := range remote {
		group.Go(func() error {
			theirs, err := a.claimRemote(ctx, server, wanted)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures[server] = showFailure(err)
			}
			for user, devices := range theirs {
				got[user] = devices
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return map[string]any{"one_time_keys": got, "failures": failures}, nil
}

// claimLocal claims keys of local users. Each key goes out once: it is deleted in the transaction that reads it.
func (a *API) claimLocal(ctx context.Context, wanted claims) (claimed, error) {
	type claim struct {
		user      eventgraph.UserID
		device    store.DeviceID
		algorithm string
	}
	var all []claim
	for user, devices := range wanted {
		if user.Server() != a.Server {
			continue
		}
		for device, algorithm := range devices {
			all = append(all, claim{user, device, algorithm})
		}
	}
	if len(all) > maxClaims {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "Too many keys are claimed at once.")
	}
	got := claimed{}
	for chunk := range slices.Chunk(all, claimsAtOnce) {
		keys := make([]*store.OneTimeKey, len(chunk))
		_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
			for i, c := range chunk {
				key, err := tx.ClaimKey(c.user, c.device, c.algorithm)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				keys[i] = key
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for i, c := range chunk {
			if keys[i] == nil {
				continue
			}
			if got[c.user] == nil {
				got[c.user] = map[store.DeviceID]map[string]json.RawMessage{}
			}
			got[c.user][c.device] = map[string]json.RawMessage{c.algorithm + ":" + keys[i].ID: keys[i].Key}
		}
	}
	return got, nil
}

// claimRemote claims keys of one remote server's users; while it is away, they are the fallback keys that it has handed over.
func (a *API) claimRemote(ctx context.Context, server eventgraph.ServerName, wanted claims) (claimed, error) {
	handed := true
	for user := range wanted {
		if b, err := a.handedBundle(user); b == nil || err != nil {
			handed = false
			break
		}
	}
	asking, cancel := a.asking(ctx, server, handed)
	defer cancel()
	theirs, failure := a.askClaim(asking, server, wanted)
	if failure == nil || answered(failure) {
		return theirs, failure
	}
	theirs, whole, err := a.handedFallback(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if whole {
		failure = nil
	}
	return theirs, failure
}

// askClaim asks a server for keys; what was not asked for is dropped from the answer.
func (a *API) askClaim(ctx context.Context, server eventgraph.ServerName, wanted claims) (claimed, error) {
	body, err := json.Marshal(map[string]any{"one_time_keys": wanted})
	if err != nil {
		return nil, err
	}
	raw, err := a.remote.ClaimKeys(ctx, server, body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		OneTimeKeys claimed `json:"one_time_keys"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fail(http.StatusBadGateway, "M_UNKNOWN", "This server's answer could not be read.")
	}
	for user, devices := range answer.OneTimeKeys {
		for device := range devices {
			if wanted[user][device] == "" {
				delete(devices, device)
			}
		}
		if len(devices) == 0 {
			delete(answer.OneTimeKeys, user)
		}
	}
	return answer.OneTimeKeys, nil
}

// ClaimKeys is POST /user/keys/claim of another server (federation.Local).
func (a *API) ClaimKeys(ctx context.Context, _ eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	var query struct {
		OneTimeKeys claims `json:"one_time_keys"`
	}
	if json.Unmarshal(body, &query) != nil {
		return nil, badJSON("one_time_keys must map users to devices to algorithms.")
	}
	got, err := a.claimLocal(ctx, query.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"one_time_keys": got})
}
