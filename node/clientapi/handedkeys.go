package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// First contact with somebody whose server is away: their server has handed over, when it was last met, what a first message to them needs
// (federation/handover.go). That is a key bundle: the device list, the cross-signing keys, and of each device the current fallback key.

const (
	// maxKeyBundle bounds a bundle, in bytes: some fifty devices. Of more, those go that were seen longest ago.
	maxKeyBundle = 64 << 10
	// awayPatience is how long a server that is not connected is asked where there is an answer without it.
	awayPatience = 3 * time.Second
)

// keyBundle is all that others need of a user to write to them.
type keyBundle struct {
	StreamID    uint64          `json:"stream_id"`
	Devices     []bundledDevice `json:"devices"`
	Master      json.RawMessage `json:"master_key,omitempty"`
	SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
}

type bundledDevice struct {
	ID          store.DeviceID             `json:"device_id"`
	DisplayName string                     `json:"device_display_name,omitempty"`
	Keys        json.RawMessage            `json:"keys"`
	Fallback    map[string]json.RawMessage `json:"fallback_keys,omitempty"` // by <algorithm>:<key_id>
}

// KeyBundle is a local user's, in canonical JSON; nil for one without keys (federation.Local). What is not rightly signed, and so would be
// refused by CheckKeyBundle elsewhere, is not in it.
func (a *API) KeyBundle(user eventgraph.UserID) (json.RawMessage, error) {
	var b keyBundle
	seen := map[store.DeviceID]int64{}
	err := a.Store.View(func(r *store.Reader) error {
		list, err := r.DeviceList(user)
		if err != nil {
			return err
		}
		b.StreamID = list.StreamID
		if _, _, err := checkCrossSigningKey(list.Master, user, "master"); list.Master != nil && err == nil {
			b.Master = list.Master
		}
		if checkSelfSigning(list.SelfSigning, b.Master, user) == nil {
			b.SelfSigning = list.SelfSigning
		}
		for _, d := range list.Devices {
			if checkBundledDevice(&bundledDevice{ID: d.ID, Keys: d.Keys}, user) != nil {
				continue
			}
			with := bundledDevice{ID: d.ID, DisplayName: d.DisplayName, Keys: d.Keys, Fallback: map[string]json.RawMessage{}}
			keys, err := r.FallbackKeys(user, d.ID)
			if err != nil {
				return err
			}
			for _, k := range keys {
				if strings.HasPrefix(k.Algorithm, "signed_") {
					with.Fallback[k.Algorithm+":"+k.ID] = k.Key
				}
			}
			if checkBundledDevice(&with, user) != nil {
				with.Fallback = nil // of keys that the device had before
			}
			if device, err := r.Device(user, d.ID); err == nil {
				seen[d.ID] = device.LastSeenTS
			}
			b.Devices = append(b.Devices, with)
		}
		return nil
	})
	if err != nil || len(b.Devices) == 0 && b.Master == nil {
		return nil, err
	}
	slices.SortStableFunc(b.Devices, func(x, y bundledDevice) int { return int(max(-1, min(1, seen[y.ID]-seen[x.ID]))) })
	for {
		listed := b
		listed.Devices = slices.Clone(b.Devices)
		slices.SortFunc(listed.Devices, func(x, y bundledDevice) int { return strings.Compare(string(x.ID), string(y.ID)) })
		raw, err := canonicaljson.Marshal(listed)
		if err != nil {
			return nil, fmt.Errorf("keys of %s: %w", user, err)
		}
		if len(raw) <= maxKeyBundle {
			return raw, nil
		}
		if len(b.Devices) == 0 {
			return nil, nil
		}
		b.Devices = b.Devices[:len(b.Devices)-1]
	}
}

// CheckKeyBundle says what is wrong with a bundle of another server's user (federation.Local): names, sizes, the devices' signatures on
// their keys and fallback keys, the master key's on the self-signing key. Whether the devices are the user's own is for clients to judge.
func (a *API) CheckKeyBundle(user eventgraph.UserID, raw json.RawMessage) error {
	if len(raw) > maxKeyBundle {
		return errors.New("the bundle is too large")
	}
	var b keyBundle
	if err := json.Unmarshal(raw, &b); err != nil {
		return err
	}
	seen := map[store.DeviceID]bool{}
	for i := range b.Devices {
		d := &b.Devices[i]
		if seen[d.ID] || len(b.Devices) > store.MaxRemoteDevices {
			return errors.New("a device comes twice, or there are too many")
		}
		seen[d.ID] = true
		if err := checkBundledDevice(d, user); err != nil {
			return fmt.Errorf("device %q: %w", d.ID, err)
		}
	}
	if b.Master != nil {
		if _, _, err := checkCrossSigningKey(b.Master, user, "master"); err != nil {
			return fmt.Errorf("master key: %w", err)
		}
	}
	if b.SelfSigning != nil {
		if err := checkSelfSigning(b.SelfSigning, b.Master, user); err != nil {
			return fmt.Errorf("self-signing key: %w", err)
		}
	}
	return nil
}

// checkBundledDevice checks names, sizes and the device's own signatures.
func checkBundledDevice(d *bundledDevice, user eventgraph.UserID) error {
	canonical, err := checkDeviceKeys(d.Keys, user, d.ID)
	if err != nil {
		return err
	}
	var keys deviceKeysObject
	if err := json.Unmarshal(canonical, &keys); err != nil {
		return err
	}
	if keys.Signatures[user][eventgraph.KeyID("ed25519:"+string(d.ID))] == "" {
		return errSignature("device_keys is not signed by the device.")
	}
	if len(d.Fallback) > store.MaxKeyAlgorithms {
		return errors.New("too many fallback keys")
	}
	fallback, err := checkOneTimeKeys(d.Fallback, user, d.ID, signingKeyOf(canonical, d.ID))
	for _, k := range fallback {
		if !strings.HasPrefix(k.Algorithm, "signed_") {
			return errSignature("A fallback key is not signed.")
		}
	}
	return err
}

// checkSelfSigning checks that a self-signing key is the user's, and signed by their master key.
func checkSelfSigning(raw, master json.RawMessage, user eventgraph.UserID) error {
	if raw == nil || master == nil {
		return errors.New("there is none, or no master key")
	}
	canonical, _, err := checkCrossSigningKey(raw, user, "self_signing")
	if err != nil {
		return err
	}
	public := store.CrossSigningPublicKey(master)
	return eventgraph.VerifyJSON(canonical, eventgraph.ServerName(user), eventgraph.KeyID("ed25519:"+public), decodePublicKey(public))
}

// handedBundle reads what was handed over of a user; nil if nothing.
func (a *API) handedBundle(user eventgraph.UserID) (*keyBundle, error) {
	var handed *store.HandedKeys
	err := a.Store.View(func(r *store.Reader) (err error) {
		handed, err = r.HandedKeys(user)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := &keyBundle{}
	return b, json.Unmarshal(handed.Bundle, b)
}

// list is the bundle as a device list.
func (b *keyBundle) list(user eventgraph.UserID) *store.RemoteDevices {
	list := &store.RemoteDevices{User: user, StreamID: int64(b.StreamID), Devices: map[store.DeviceID]store.RemoteDevice{}}
	for _, d := range b.Devices {
		if keys, ok := remoteDeviceKeys(d.Keys, user, d.ID); ok {
			list.Devices[d.ID] = store.RemoteDevice{DisplayName: d.DisplayName, Keys: keys}
		}
	}
	list.Master = remoteCrossSigningKey(b.Master, user, "master")
	list.SelfSigning = remoteCrossSigningKey(b.SelfSigning, user, "self_signing")
	return list
}

// fallback is the device's fallback key of the algorithm, by its name; nil if it has none.
func (b *keyBundle) fallback(device store.DeviceID, algorithm string) map[string]json.RawMessage {
	for _, d := range b.Devices {
		for name, k := range d.Fallback {
			if d.ID == device && strings.HasPrefix(name, algorithm+":") {
				return map[string]json.RawMessage{name: k}
			}
		}
	}
	return nil
}

// answered says whether the server itself has answered, with an error: then it is not away.
func answered(err error) bool {
	var refused *rooms.Refusal
	return errors.As(err, &refused)
}

// asking bounds how long a server is asked, so that of ctx's time something is left for what others know of its users. handed says that there is
// an answer without it, of all of them.
func (a *API) asking(ctx context.Context, server eventgraph.ServerName, handed bool) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	left := time.Until(deadline)
	patience := left * 3 / 4
	if !a.remote.IsConnected(server) && handed {
		patience = min(left/2, awayPatience)
	}
	return context.WithTimeout(ctx, patience)
}

// bundlesOf reads the bundles of users; of those of whom none is held, connected servers are asked for theirs if ask is set.
func (a *API) bundlesOf(ctx context.Context, users []eventgraph.UserID, ask bool) (map[eventgraph.UserID]*keyBundle, error) {
	bundles := map[eventgraph.UserID]*keyBundle{}
	var lacking []eventgraph.UserID
	for _, user := range users {
		b, err := a.handedBundle(user)
		if err != nil {
			return nil, err
		}
		if b != nil {
			bundles[user] = b
		} else {
			lacking = append(lacking, user)
		}
	}
	if !ask || len(lacking) == 0 {
		return bundles, nil
	}
	a.remote.AskKeyBundles(ctx, lacking)
	more, err := a.bundlesOf(ctx, lacking, false)
	for user, b := range more {
		bundles[user] = b
	}
	return bundles, err
}

// lastSeenLists are the lists of users whose server is away: the newer of the one cached and the one handed over. whole says that the latter are of all: when
// the server is back it hands over again what has changed, and clients are told. A cached list that is not current is shown beside the failure, so
// that clients ask again. cached has the stream IDs of the lists that are.
func (a *API) lastSeenLists(ctx context.Context, users []eventgraph.UserID, cached map[eventgraph.UserID]int64) (lists []foundKeys, whole bool, err error) {
	var ask, read []eventgraph.UserID
	for _, user := range users {
		if _, ok := cached[user]; !ok {
			ask = append(ask, user)
		} else {
			read = append(read, user)
		}
	}
	handed, err := a.bundlesOf(ctx, ask, true)
	if err != nil {
		return nil, false, err
	}
	beside, err := a.bundlesOf(ctx, read, false)
	if err != nil {
		return nil, false, err
	}
	whole = true
	for _, user := range users {
		b := handed[user]
		if b == nil {
			b = beside[user]
		}
		stream, isCached := cached[user]
		if b != nil && (!isCached || int64(b.StreamID) >= stream) {
			lists = append(lists, foundKeys{user, b.list(user)})
			continue
		}
		whole = false
		if isCached {
			lists = append(lists, foundKeys{user, nil})
		}
	}
	return lists, whole, nil
}

// handedFallback answers a claim for a server that is away with fallback keys that it has handed over. whole says that there is one for each device.
func (a *API) handedFallback(ctx context.Context, wanted claims) (got claimed, whole bool, err error) {
	users := make([]eventgraph.UserID, 0, len(wanted))
	for user := range wanted {
		users = append(users, user)
	}
	slices.Sort(users)
	bundles, err := a.bundlesOf(ctx, users, true)
	if err != nil {
		return nil, false, err
	}
	got, whole = claimed{}, true
	for user, devices := range wanted {
		for device, algorithm := range devices {
			var k map[string]json.RawMessage
			if b := bundles[user]; b != nil {
				k = b.fallback(device, algorithm)
			}
			if k == nil {
				whole = false
				continue
			}
			if got[user] == nil {
				got[user] = map[store.DeviceID]map[string]json.RawMessage{}
			}
			got[user][device] = k
		}
	}
	return got, whole, nil
}
