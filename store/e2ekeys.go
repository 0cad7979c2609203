package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Public keys for end-to-end encryption: of local devices and users, and what is cached of remote users. Keys are kept as
// uploaded; signatures that came later, by other keys, lie beside them and are merged in for those who may see them.
//
// Each change of a local user's devices takes the user's next stream ID (SS API, Device Management). It is logged as
// ChangeDeviceList with the device (none: cross-signing keys) and DeviceListEDU makes of the change what
// peers are told.

// Bounds on what one device can make grow.
const (
	MaxOneTimeKeys      = 500       // per device and algorithm; clients keep 50 to 100
	MaxKeyAlgorithms    = 10        // of one-time and fallback keys per device; there is one in use
	MaxClaimedKeys      = 500       // that are remembered of a device, the last: as many as one upload has of an algorithm
	MaxRemoteDevices    = 500       // of one remote user
	MaxRemoteDeviceList = 128 << 10 // bytes, of one remote user: some 220 devices with their signatures
	MaxRemoteBytes      = 32 << 20  // of lists of one server's users: 6,000 users with five devices each
	MaxAllRemoteBytes   = 256 << 20 // of all servers' users
)

var (
	// ErrKeyExists: a one-time key of this ID but another content is held.
	ErrKeyExists = errors.New("another key of this ID has been uploaded")
	// ErrTooManyKeys: see MaxOneTimeKeys, MaxKeyAlgorithms.
	ErrTooManyKeys = errors.New("too many keys")
)

// DeviceKeys are the identity keys of a local device as uploaded, without signatures that came later; ErrNotFound.
func (r *Reader) DeviceKeys(user eventgraph.UserID, device DeviceID) (json.RawMessage, error) {
	return r.get(key(tableDeviceKeys).str(string(user)).str(string(device)))
}

// PutDeviceKeys keeps the identity keys of a local device and logs ChangeDeviceList. With others than before it is another device by the old name: its
// one-time and fallback keys go.
func (tx *Tx) PutDeviceKeys(user eventgraph.UserID, device DeviceID, keys json.RawMessage) (Position, error) {
	before, err := tx.DeviceKeys(user, device)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	if before != nil && !bytes.Equal(before, keys) { // signatures were of other keys
		if err := tx.deletePrefix(key(tableKeySignature).str(string(user)).str(string(device))); err != nil {
			return 0, err
		}
		if err := tx.dropKeysOfOther(user, device, before, keys); err != nil {
			return 0, err
		}
	}
	if err := tx.put(key(tableDeviceKeys).str(string(user)).str(string(device)), keys); err != nil {
		return 0, err
	}
	return tx.LogDeviceList(user, device)
}

// dropKeysOfOther removes the one-time and fallback keys of a local device if its identity keys are other ones than before: nobody has the secret parts
// any more.
func (tx *Tx) dropKeysOfOther(user eventgraph.UserID, device DeviceID, before, now json.RawMessage) error {
	var was, is struct {
		Keys map[string]string `json:"keys"`
	}
	if json.Unmarshal(before, &was) != nil || json.Unmarshal(now, &is) != nil || maps.Equal(was.Keys, is.Keys) {
		return nil
	}
	for _, t := range []table{tableOneTimeKey, tableFallbackKey, tableClaimedKey} {
		if err := tx.deletePrefix(key(t).str(string(user)).str(string(device))); err != nil {
			return err
		}
	}
	counts, err := tx.KeyCounts(user, device)
	if err != nil {
		return err
	}
	_, err = tx.putKeyCounts(user, device, &KeyCounts{OneTime: map[string]int{}, UnusedFallback: []string{}, Uploads: counts.Uploads})
	return err
}

// DeleteDeviceKeys removes all keys of a local device, and logs ChangeDeviceList if it had any that others could know.
func (tx *Tx) DeleteDeviceKeys(user eventgraph.UserID, device DeviceID) error {
	_, err := tx.DeviceKeys(user, device)
	known := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for _, t := range []table{tableDeviceKeys, tableKeyCounts} {
		if err := tx.delete(key(t).str(string(user)).str(string(device))); err != nil {
			return err
		}
	}
	for _, t := range []table{tableOneTimeKey, tableFallbackKey, tableClaimedKey, tableKeySignature} {
		if err := tx.deletePrefix(key(t).str(string(user)).str(string(device))); err != nil {
			return err
		}
	}
	if known {
		_, err = tx.LogDeviceList(user, device)
		return err
	}
	return nil
}

// LogDeviceList logs that a local device, or with "" the user's cross-signing keys, look different to others now, under
// the user's next stream ID. PutDeviceKeys and its like do it themselves; for a changed display name the caller does.
func (tx *Tx) LogDeviceList(user eventgraph.UserID, device DeviceID) (Position, error) {
	c := Change{Kind: ChangeDeviceList, User: user, Device: device}
	if device != "" {
		stream := key(tableDeviceStream).str(string(user))
		last, err := tx.getNumber(stream)
		if err != nil {
			return 0, err
		}
		base, err := tx.getNumber(key(tableMeta).str(metaDeviceStreamBase))
		if err != nil {
			return 0, err
		}
		next := max(last+1, base)
		if err := tx.putNumber(stream, next); err != nil {
			return 0, err
		}
		c.Key = fmt.Sprintf("%d %d", next, last)
	}
	return tx.Log(c)
}

const (
	metaDeviceStreamBase = "device stream base" // stream IDs of this incarnation are at least this
	metaKeysIncarnation  = "keys incarnation"   // the incarnation that DropOneTimeKeys ran for
)

// signedPrefix begins Change.Key of a ChangeDeviceList that only the signing user sees: they signed another user's key.
const signedPrefix = "signed "

// SignedUser is the user whose key c.User has signed, if c is such a change: only c.User's devices are told, that user's
// keys look different to them.
func (c Change) SignedUser() (eventgraph.UserID, bool) {
	user, ok := strings.CutPrefix(c.Key, signedPrefix)
	return eventgraph.UserID(user), ok && c.Kind == ChangeDeviceList
}

// DeviceListEDU makes of a ChangeDeviceList of a local user the EDU that servers sharing a room with them are sent:
// m.device_list_update or m.signing_key_update and its content. eduType is "" if peers have nothing to
// hear of it. The keys are those of now; so when a device changed several times, earlier EDUs tell the newest keys too,
// each under its own stream_id, and none may be left out (prev_id names the one before).
func (r *Reader) DeviceListEDU(c Change) (eduType string, content json.RawMessage, err error) {
	if _, ok := c.SignedUser(); ok {
		return "", nil, nil
	}
	if c.Device == "" {
		update := map[string]any{"user_id": c.User}
		for usage, field := range map[string]string{"master": "master_key", "self_signing": "self_signing_key"} {
			k, err := r.CrossSigningKey(c.User, usage, c.User)
			if err == nil {
				update[field] = k
			} else if !errors.Is(err, ErrNotFound) {
				return "", nil, err
			}
		}
		content, err = json.Marshal(update)
		return "m.signing_key_update", content, err
	}

	update := struct {
		User        eventgraph.UserID `json:"user_id"`
		Device      DeviceID          `json:"device_id"`
		DisplayName string            `json:"device_display_name,omitempty"`
		StreamID    uint64            `json:"stream_id"`
		PrevID      []uint64          `json:"prev_id"`
		Deleted     bool              `json:"deleted,omitempty"`
		Keys        json.RawMessage   `json:"keys,omitempty"`
	}{User: c.User, Device: c.Device, PrevID: []uint64{}}
	stream, prev, _ := strings.Cut(c.Key, " ")
	if update.StreamID, err = strconv.ParseUint(stream, 10, 64); err != nil {
		return "", nil, fmt.Errorf("change of a device list without stream ID: %w", err)
	}
	if n, err := strconv.ParseUint(prev, 10, 64); err == nil && n > 0 {
		update.PrevID = []uint64{n}
	}
	update.Keys, err = r.SignedDeviceKeys(c.User, c.Device, c.User)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", nil, err
	}
	d, err := r.Device(c.User, c.Device)
	if err == nil {
		update.DisplayName = d.DisplayName
	} else if !errors.Is(err, ErrNotFound) {
		return "", nil, err
	} else {
		update.Deleted = update.Keys == nil
	}
	content, err = json.Marshal(update)
	return "m.device_list_update", content, err
}

// DeviceList is all that others may know of a local user's keys (SS API, GET user/devices).
type DeviceList struct {
	User        eventgraph.UserID `json:"user_id"`
	StreamID    uint64            `json:"stream_id"`
	Devices     []ListedDevice    `json:"devices"`
	Master      json.RawMessage   `json:"master_key,omitempty"`
	SelfSigning json.RawMessage   `json:"self_signing_key,omitempty"`
}

// ListedDevice is a device that has keys.
type ListedDevice struct {
	ID          DeviceID        `json:"device_id"`
	DisplayName string          `json:"device_display_name,omitempty"`
	Keys        json.RawMessage `json:"keys"` // with the user's own signatures
}

// DeviceList lists the user's devices that have keys, by device ID; empty for a user without.
func (r *Reader) DeviceList(user eventgraph.UserID) (*DeviceList, error) {
	list := &DeviceList{User: user, Devices: []ListedDevice{}}
	ids, err := r.devicesWithKeys(user)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		d := ListedDevice{ID: id}
		if d.Keys, err = r.SignedDeviceKeys(user, id, user); err != nil {
			return nil, err
		}
		if device, err := r.Device(user, id); err == nil {
			d.DisplayName = device.DisplayName
		} else if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		list.Devices = append(list.Devices, d)
	}
	if list.StreamID, err = r.getNumber(key(tableDeviceStream).str(string(user))); err != nil {
		return nil, err
	}
	for usage, into := range map[string]*json.RawMessage{"master": &list.Master, "self_signing": &list.SelfSigning} {
		*into, err = r.CrossSigningKey(user, usage, user)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return list, nil
}

func (r *Reader) devicesWithKeys(user eventgraph.UserID) (ids []DeviceID, err error) {
	err = r.scan(key(tableDeviceKeys).str(string(user)), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		ids = append(ids, DeviceID(p.str()))
		return true, nil
	})
	return ids, err
}

// SignedDeviceKeys are a local device's keys with the signatures that its user and viewer have made; ErrNotFound.
func (r *Reader) SignedDeviceKeys(user eventgraph.UserID, device DeviceID, viewer eventgraph.UserID) (json.RawMessage, error) {
	keys, err := r.DeviceKeys(user, device)
	if err != nil {
		return nil, err
	}
	return r.MergeSignatures(keys, user, string(device), user, viewer)
}

// CrossSigningKey is a local user's key of this usage (master, self_signing, user_signing) with the signatures that
// they themselves and viewer have made; ErrNotFound. Nobody but the user may see user_signing.
func (r *Reader) CrossSigningKey(user eventgraph.UserID, usage string, viewer eventgraph.UserID) (json.RawMessage, error) {
	k, err := r.get(key(tableCrossSigning).str(string(user)).str(usage))
	if err != nil {
		return nil, err
	}
	return r.MergeSignatures(k, user, CrossSigningPublicKey(k), user, viewer)
}

// CrossSigningPublicKey is the unpadded base64 of the key in a cross-signing key object: the one entry of its "keys".
// "" if it has not one.
func CrossSigningPublicKey(object json.RawMessage) string {
	var k struct {
		Keys map[string]string `json:"keys"`
	}
	if json.Unmarshal(object, &k) != nil || len(k.Keys) != 1 {
		return ""
	}
	for _, public := range k.Keys {
		return public
	}
	return ""
}

// PutCrossSigningKeys keeps a local user's cross-signing keys by usage and logs ChangeDeviceList.
func (tx *Tx) PutCrossSigningKeys(user eventgraph.UserID, keys map[string]json.RawMessage) (Position, error) {
	for usage, k := range keys {
		if err := tx.put(key(tableCrossSigning).str(string(user)).str(usage), k); err != nil {
			return 0, err
		}
	}
	return tx.LogDeviceList(user, "")
}

// MergeSignatures returns the object with the signatures added that signers have uploaded for target's key (a device ID
// or a public key). Signatures in the object that are of another form than the specification gives are replaced.
func (r *Reader) MergeSignatures(object json.RawMessage, target eventgraph.UserID, keyID string, signers ...eventgraph.UserID) (json.RawMessage, error) {
	var merged map[string]json.RawMessage
	var signatures map[eventgraph.UserID]map[string]string
	for i, signer := range signers {
		if slices.Contains(signers[:i], signer) {
			continue
		}
		var added map[string]string
		err := r.getJSON(key(tableKeySignature).str(string(target)).str(keyID).str(string(signer)), &added)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if merged == nil {
			if err := json.Unmarshal(object, &merged); err != nil {
				return nil, err
			}
			if s := merged["signatures"]; s != nil && json.Unmarshal(s, &signatures) != nil {
				signatures = nil // nobody could read them: they are not kept
			}
			if signatures == nil {
				signatures = map[eventgraph.UserID]map[string]string{}
			}
		}
		if signatures[signer] == nil {
			signatures[signer] = map[string]string{}
		}
		for id, signature := range added {
			signatures[signer][id] = signature
		}
	}
	if merged == nil {
		return object, nil
	}
	raw, err := json.Marshal(signatures)
	if err != nil {
		return nil, err
	}
	merged["signatures"] = raw
	return json.Marshal(merged)
}

// PutKeySignatures adds signatures (by key ID) of a local user on target's key, and logs for whom they make a difference:
// everybody if they are on the user's own device or keys, else the user alone.
func (tx *Tx) PutKeySignatures(signer, target eventgraph.UserID, keyID string, signatures map[string]string) (Position, error) {
	at := key(tableKeySignature).str(string(target)).str(keyID).str(string(signer))
	held := map[string]string{}
	if err := tx.getJSON(at, &held); err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	for id, s := range signatures {
		held[id] = s
	}
	if err := tx.putJSON(at, held); err != nil {
		return 0, err
	}
	if signer != target {
		return tx.Log(Change{Kind: ChangeDeviceList, User: signer, Key: signedPrefix + string(target)})
	}
	_, err := tx.DeviceKeys(target, DeviceID(keyID))
	if errors.Is(err, ErrNotFound) {
		return tx.LogDeviceList(target, "")
	}
	if err != nil {
		return 0, err
	}
	return tx.LogDeviceList(target, DeviceID(keyID))
}

// KeyCounts says what a device has left for others to claim.
type KeyCounts struct {
	OneTime        map[string]int `json:"one_time"`        // unclaimed one-time keys by algorithm
	UnusedFallback []string       `json:"unused_fallback"` // algorithms, sorted
	Fallback       []string       `json:"fallback"`        // algorithms, sorted
	Uploads        uint64         `json:"uploads"`         // calls of PutOneTimeKeys so far
	Claimed        uint64         `json:"claimed"`         // one-time keys claimed so far
}

// KeyCounts of a local device; all zero for one that has uploaded none. Its fields are never nil.
func (r *Reader) KeyCounts(user eventgraph.UserID, device DeviceID) (*KeyCounts, error) {
	c := KeyCounts{OneTime: map[string]int{}, UnusedFallback: []string{}}
	err := r.getJSON(key(tableKeyCounts).str(string(user)).str(string(device)), &c)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return &c, nil
}

func (tx *Tx) putKeyCounts(user eventgraph.UserID, device DeviceID, c *KeyCounts) (Position, error) {
	if err := tx.putJSON(key(tableKeyCounts).str(string(user)).str(string(device)), c); err != nil {
		return 0, err
	}
	return tx.Log(Change{Kind: ChangeDeviceUnused, User: user, Device: device})
}

// OneTimeKey is a one-time or fallback key as uploaded.
type OneTimeKey struct {
	Algorithm string
	ID        string
	Key       json.RawMessage // an object or a string, compact
}

// PutOneTimeKeys keeps keys that may each be claimed once; one that is held already is passed over, and one that was claimed: a client
// repeats an upload of which it has no answer. ErrKeyExists, ErrTooManyKeys. It logs ChangeDeviceUnused.
func (tx *Tx) PutOneTimeKeys(user eventgraph.UserID, device DeviceID, keys []OneTimeKey) error {
	counts, err := tx.KeyCounts(user, device)
	if err != nil {
		return err
	}
	held := map[string][]byte{}
	prefix := key(tableOneTimeKey).str(string(user)).str(string(device))
	err = tx.scan(prefix, nil, false, func(k, value []byte) (bool, error) {
		p := parts(k)
		p.str()
		p.str()
		algorithm := p.str()
		p.u64()
		held[algorithm+":"+p.str()] = bytes.Clone(value)
		return true, nil
	})
	if err != nil {
		return err
	}
	claimed := map[string]bool{}
	err = tx.scan(key(tableClaimedKey).str(string(user)).str(string(device)), nil, false, func(_, value []byte) (bool, error) {
		claimed[string(value)] = true
		return true, nil
	})
	if err != nil {
		return err
	}
	counts.Uploads++
	for _, k := range keys {
		if claimed[k.Algorithm+":"+k.ID] {
			continue
		}
		if was, ok := held[k.Algorithm+":"+k.ID]; ok {
			if !bytes.Equal(was, k.Key) {
				return fmt.Errorf("%s:%s: %w", k.Algorithm, k.ID, ErrKeyExists)
			}
			continue
		}
		if counts.OneTime[k.Algorithm]++; counts.OneTime[k.Algorithm] > MaxOneTimeKeys || len(counts.OneTime) > MaxKeyAlgorithms {
			return ErrTooManyKeys
		}
		at := key(tableOneTimeKey).str(string(user)).str(string(device)).str(k.Algorithm).u64(counts.Uploads).str(k.ID)
		if err := tx.put(at, k.Key); err != nil {
			return err
		}
	}
	_, err = tx.putKeyCounts(user, device, counts)
	return err
}

// fallbackKey is the value of a tableFallbackKey record.
type fallbackKey struct {
	ID   string          `json:"id"`
	Key  json.RawMessage `json:"key"`
	Used bool            `json:"used"`
}

// PutFallbackKeys replaces the fallback key of each algorithm; the same key again stays used if it was. ErrTooManyKeys. It
// logs ChangeDeviceUnused.
func (tx *Tx) PutFallbackKeys(user eventgraph.UserID, device DeviceID, keys []OneTimeKey) error {
	counts, err := tx.KeyCounts(user, device)
	if err != nil {
		return err
	}
	for _, k := range keys {
		at := key(tableFallbackKey).str(string(user)).str(string(device)).str(k.Algorithm)
		var held fallbackKey
		if err := tx.getJSON(at, &held); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if held.ID == k.ID && bytes.Equal(held.Key, k.Key) {
			continue
		}
		if err := tx.putJSON(at, &fallbackKey{ID: k.ID, Key: k.Key}); err != nil {
			return err
		}
		counts.Fallback = insert(counts.Fallback, k.Algorithm)
		counts.UnusedFallback = insert(counts.UnusedFallback, k.Algorithm)
		if len(counts.Fallback) > MaxKeyAlgorithms {
			return ErrTooManyKeys
		}
	}
	_, err = tx.putKeyCounts(user, device, counts)
	return err
}

// FallbackKeys are the current fallback keys of a local device, by algorithm, used or not.
func (r *Reader) FallbackKeys(user eventgraph.UserID, device DeviceID) (keys []OneTimeKey, err error) {
	err = r.scan(key(tableFallbackKey).str(string(user)).str(string(device)), nil, false, func(k, value []byte) (bool, error) {
		p := parts(k)
		p.str()
		p.str()
		var held fallbackKey
		if err := json.Unmarshal(value, &held); err != nil {
			return false, err
		}
		keys = append(keys, OneTimeKey{Algorithm: p.str(), ID: held.ID, Key: held.Key})
		return true, nil
	})
	return keys, err
}

// insert puts s into the sorted list, once.
func insert(list []string, s string) []string {
	i, found := slices.BinarySearch(list, s)
	if found {
		return list
	}
	return slices.Insert(list, i, s)
}

// ClaimKey takes the one-time key that was uploaded first, which nobody gets again, or else shows the fallback key;
// ErrNotFound. It logs ChangeDeviceUnused.
func (tx *Tx) ClaimKey(user eventgraph.UserID, device DeviceID, algorithm string) (*OneTimeKey, error) {
	counts, err := tx.KeyCounts(user, device)
	if err != nil {
		return nil, err
	}
	var claimed *OneTimeKey
	var at []byte
	err = tx.scan(key(tableOneTimeKey).str(string(user)).str(string(device)).str(algorithm), nil, false, func(k, value []byte) (bool, error) {
		p := parts(k)
		p.str()
		p.str()
		p.str()
		p.u64()
		claimed = &OneTimeKey{Algorithm: algorithm, ID: p.str(), Key: bytes.Clone(value)}
		at = bytes.Clone(k)
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if claimed != nil {
		if err := tx.delete(at); err != nil {
			return nil, err
		}
		if counts.OneTime[algorithm]--; counts.OneTime[algorithm] <= 0 {
			counts.OneTime[algorithm] = 0
		}
		remembered := key(tableClaimedKey).str(string(user)).str(string(device)).u64(counts.Claimed % MaxClaimedKeys)
		if err := tx.put(remembered, []byte(algorithm+":"+claimed.ID)); err != nil {
			return nil, err
		}
		counts.Claimed++
		_, err = tx.putKeyCounts(user, device, counts)
		return claimed, err
	}

	var fallback fallbackKey
	at = key(tableFallbackKey).str(string(user)).str(string(device)).str(algorithm)
	if err := tx.getJSON(at, &fallback); err != nil {
		return nil, err
	}
	if !fallback.Used {
		fallback.Used = true
		if err := tx.putJSON(at, &fallback); err != nil {
			return nil, err
		}
		counts.UnusedFallback = slices.DeleteFunc(counts.UnusedFallback, func(a string) bool { return a == algorithm })
		if _, err := tx.putKeyCounts(user, device, counts); err != nil {
			return nil, err
		}
	}
	return &OneTimeKey{Algorithm: algorithm, ID: fallback.ID, Key: fallback.Key}, nil
}

// DropOneTimeKeys makes good what a copied or rolled-back store could do harm with, once per incarnation; node calls it
// at each open (design.md §1). Unclaimed one-time keys go, since some may have been given out; stream IDs start anew at the
// time now; and each local user's device list counts as changed, with a gap in its stream, so that peers fetch it again.
func (s *Store) DropOneTimeKeys(ctx context.Context, now time.Time) error {
	incarnation := s.Incarnation()
	for {
		more := false
		_, err := s.Update(ctx, func(tx *Tx) error {
			more = false
			ran, err := tx.get(key(tableMeta).str(metaKeysIncarnation))
			if err != nil && !errors.Is(err, ErrNotFound) || bytes.Equal(ran, incarnation[:]) {
				return err
			}
			deleted := 0
			err = tx.scan(key(tableOneTimeKey), nil, false, func(k, _ []byte) (bool, error) {
				if deleted == maxDropped {
					more = true
					return false, nil
				}
				deleted++
				return true, tx.delete(bytes.Clone(k))
			})
			if err != nil || more {
				return err
			}
			if err := tx.renewDeviceLists(uint64(max(now.UnixMilli(), 1))); err != nil {
				return err
			}
			return tx.put(key(tableMeta).str(metaKeysIncarnation), incarnation[:])
		})
		if err != nil || !more {
			return err
		}
	}
}

// renewDeviceLists starts stream IDs anew at base and logs all device lists as changed; no one-time key is left.
func (tx *Tx) renewDeviceLists(base uint64) error {
	if err := tx.putNumber(key(tableMeta).str(metaDeviceStreamBase), base); err != nil {
		return err
	}
	type owner struct {
		user   eventgraph.UserID
		device DeviceID
	}
	var devices []owner
	for _, t := range []table{tableDeviceKeys, tableKeyCounts} {
		err := tx.scan(key(t), nil, false, func(k, _ []byte) (bool, error) {
			p := parts(k)
			devices = append(devices, owner{eventgraph.UserID(p.str()), DeviceID(p.str())})
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(devices, func(x, y owner) int {
		return cmp.Or(cmp.Compare(x.user, y.user), cmp.Compare(x.device, y.device))
	})
	devices = slices.Compact(devices)
	for i, d := range devices {
		counts, err := tx.KeyCounts(d.user, d.device)
		if err != nil {
			return err
		}
		counts.OneTime = map[string]int{}
		if _, err := tx.putKeyCounts(d.user, d.device, counts); err != nil {
			return err
		}
		if i == 0 || devices[i-1].user != d.user {
			// The stream's last ID becomes one that was never sent: no peer knows it when it comes as prev_id.
			stream := key(tableDeviceStream).str(string(d.user))
			last, err := tx.getNumber(stream)
			if err != nil {
				return err
			}
			if err := tx.putNumber(stream, max(last+1, base)); err != nil {
				return err
			}
		}
		if _, err := tx.LogDeviceList(d.user, d.device); err != nil {
			return err
		}
	}
	return nil
}

// RemoteDevices is what is cached of a remote user's keys, as their server told it. It is kept current by
// m.device_list_update while we share a room; Stale means that an update was missed and it must be fetched again.
type RemoteDevices struct {
	User        eventgraph.UserID         `json:"user"`
	StreamID    int64                     `json:"stream_id"`
	Seen        int64                     `json:"seen"`    // newest stream ID that an update named
	Fetched     Position                  `json:"fetched"` // newest here when the list was asked for
	Devices     map[DeviceID]RemoteDevice `json:"devices"`
	Master      json.RawMessage           `json:"master,omitempty"`
	SelfSigning json.RawMessage           `json:"self_signing,omitempty"`
	Stale       bool                      `json:"stale,omitempty"`
}

// RemoteDevice is a device with its keys, signatures included.
type RemoteDevice struct {
	DisplayName string          `json:"display_name,omitempty"`
	Keys        json.RawMessage `json:"keys"`
}

// RemoteDevices reads the cache for a remote user; ErrNotFound.
func (r *Reader) RemoteDevices(user eventgraph.UserID) (*RemoteDevices, error) {
	var d RemoteDevices
	if err := r.getJSON(key(tableRemoteDevices).str(string(user)), &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// PutRemoteDevices replaces the cache for a remote user. It does not Log. ErrTooManyKeys: the list is too large, or too much is held of its server's users.
func (tx *Tx) PutRemoteDevices(d *RemoteDevices) error {
	value, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if len(d.Devices) > MaxRemoteDevices || len(value) > MaxRemoteDeviceList {
		return ErrTooManyKeys
	}
	if err := tx.countRemote(d.User, len(value)); err != nil {
		return err
	}
	return tx.put(key(tableRemoteDevices).str(string(d.User)), value)
}

// DeleteRemoteDevices forgets what is cached of a remote user: nobody tells us of changes any more.
func (tx *Tx) DeleteRemoteDevices(user eventgraph.UserID) error {
	if err := tx.countRemote(user, 0); err != nil {
		return err
	}
	return tx.delete(key(tableRemoteDevices).str(string(user)))
}

const metaRemoteDevices = "remote devices"

// countRemote counts that the list of a remote user takes so many bytes from now on.
func (tx *Tx) countRemote(user eventgraph.UserID, now int) error {
	before := 0
	err := tx.read(key(tableRemoteDevices).str(string(user)), func(v []byte) error { before = len(v); return nil })
	if err != nil && !errors.Is(err, ErrNotFound) || now == before {
		return err
	}
	return tx.countHeld(metaRemoteDevices, user.Server(), int64(now-before), MaxRemoteBytes, MaxAllRemoteBytes, ErrTooManyKeys)
}

// LogRemoteDevices logs that a remote user's keys have changed.
func (tx *Tx) LogRemoteDevices(user eventgraph.UserID) (Position, error) {
	return tx.Log(Change{Kind: ChangeDeviceList, User: user})
}

// DeleteCrossSigning removes a local user's cross-signing keys and the signatures on them, without logging it: their devices are gone.
func (tx *Tx) DeleteCrossSigning(user eventgraph.UserID) error {
	if err := tx.deletePrefix(key(tableCrossSigning).str(string(user))); err != nil {
		return err
	}
	return tx.deletePrefix(key(tableKeySignature).str(string(user)))
}
