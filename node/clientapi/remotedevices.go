package clientapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// The cache of remote users' device lists (SS API, Device Management):
//
//	          first query while sharing a room
//	(none) ------------------------------------> current --- update that follows on --> current
//	   ^                                            |
//	   | update while no room is shared             | update with a gap; or no room was shared for a while
//	   +----------------------------------------- stale --- fetched again --> current
//
// A list is fetched again when somebody asks for it: clients do at once when /sync tells them that it changed. While
// its server is away a stale list is shown, or what the server handed over when it was last met (handedkeys.go), so that people on a split network
// go on talking to the devices they know.

// foundKeys is where the keys of a remote user are: in list, or if that is nil in the cache. Lists are large, and there may be many.
type foundKeys struct {
	user eventgraph.UserID
	list *store.RemoteDevices
}

// remoteLists finds the lists of one server's users: in the cache, else from the server, and if that is away those last seen. failure tells
// that some are missing.
func (a *API) remoteLists(ctx context.Context, server eventgraph.ServerName, users []eventgraph.UserID) (lists []foundKeys, failure error) {
	var fetch, ask []eventgraph.UserID // to be cached; not to be
	held := map[eventgraph.UserID]int64{}
	ours := presenceHere{a: a, since: map[eventgraph.RoomID]store.Position{}}
	err := a.Store.View(func(r *store.Reader) error {
		for _, user := range users {
			list, err := r.RemoteDevices(user)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			shared, followed, err := ours.shares(r, user, list)
			if err != nil {
				return err
			}
			if !shared {
				ask = append(ask, user)
				continue
			}
			if list != nil && !list.Stale && followed {
				lists = append(lists, foundKeys{user, nil})
				continue
			}
			if list != nil && list.Devices != nil {
				held[user] = list.StreamID
			}
			fetch = append(fetch, user)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}

	asking, cancel := a.asking(ctx, server, len(ask) == 0 && a.seenAll(fetch, held))
	defer cancel()
	fetched := make([]foundKeys, len(fetch))
	failed := make([]error, len(fetch))
	var group errgroup.Group
	group.SetLimit(maxAsked)
	for i, user := range fetch {
		group.Go(func() error {
			fetched[i], failed[i] = a.fetchDevices(asking, user)
			return nil
		})
	}
	group.Wait()
	var away []eventgraph.UserID // of whom nothing could be asked
	for i, user := range fetch {
		switch {
		case failed[i] == nil:
			lists = append(lists, fetched[i])
		case answered(failed[i]): // perhaps a server that knows only the other call
			ask = append(ask, user)
		default:
			failure = failed[i]
			away = append(away, user)
		}
	}
	if len(ask) > 0 {
		asked, err := a.askKeys(asking, server, ask)
		lists = append(lists, asked...)
		if err != nil {
			failure = err
			if !answered(err) {
				away = append(away, ask...)
			}
		}
	}
	if len(away) == 0 {
		return lists, failure
	}
	seen, whole, err := a.lastSeenLists(ctx, away, held)
	if err != nil {
		return nil, err
	}
	if whole && !answered(failure) {
		failure = nil
	}
	return append(lists, seen...), failure
}

// seenAll says whether a list of each user is held, however old.
func (a *API) seenAll(users []eventgraph.UserID, held map[eventgraph.UserID]int64) bool {
	for _, user := range users {
		if _, ok := held[user]; ok {
			continue
		}
		if b, err := a.handedBundle(user); b == nil || err != nil {
			return false
		}
	}
	return true
}

// presenceHere remembers for one call since when local users are in rooms.
type presenceHere struct {
	a     *API
	since map[eventgraph.RoomID]store.Position
}

// shares says whether the user is in a room with a local user, and whether that has been so in one room since the list was
// fetched: else their server may have had no reason to tell us of a change.
func (h *presenceHere) shares(r *store.Reader, user eventgraph.UserID, list *store.RemoteDevices) (shared, followed bool, err error) {
	var rooms []*store.Member
	err = r.RoomsOf(user, func(m *store.Member) (bool, error) {
		if isJoined(m) && h.a.Rooms.InRoom(m.Room, h.a.Server) {
			rooms = append(rooms, m)
		}
		return true, nil
	})
	for _, m := range rooms {
		if err != nil || followed || list == nil {
			break
		}
		if m.Position > list.Fetched {
			continue
		}
		var since store.Position
		since, err = h.sinceIn(r, m.Room)
		followed = err == nil && since <= list.Fetched
	}
	return len(rooms) > 0, followed, err
}

// sinceIn is the position of the oldest membership of a joined local user.
func (h *presenceHere) sinceIn(r *store.Reader, room eventgraph.RoomID) (store.Position, error) {
	if since, ok := h.since[room]; ok {
		return since, nil
	}
	since := latestPosition
	err := r.MembersOf(room, func(m *store.Member) (bool, error) {
		if m.Membership == "join" && m.User.Server() == h.a.Server {
			since = min(since, m.Position)
		}
		return true, nil
	})
	h.since[room] = since
	return since, err
}

// sharedWithUs says whether the user is in a room with any local user: then their server tells us of changes.
func (a *API) sharedWithUs(r *store.Reader, user eventgraph.UserID) (bool, error) {
	shared := false
	err := r.RoomsOf(user, func(m *store.Member) (bool, error) {
		shared = isJoined(m) && a.Rooms.InRoom(m.Room, a.Server)
		return !shared, nil
	})
	return shared, err
}

// fetchDevices asks the user's server for their list and caches it, unless too much is cached of that server's users.
func (a *API) fetchDevices(ctx context.Context, user eventgraph.UserID) (found foundKeys, err error) {
	seen, position := int64(0), store.Position(0)
	var before store.RemoteDevices
	err = a.Store.View(func(r *store.Reader) error {
		position = r.Position()
		held, err := r.RemoteDevices(user)
		if err == nil {
			seen, before = held.Seen, *held
		}
		return ignoreNotFound(err)
	})
	if err != nil {
		return found, err
	}
	raw, err := a.remote.UserDevices(ctx, user)
	if err != nil {
		return found, err
	}
	var answer struct {
		User        eventgraph.UserID    `json:"user_id"`
		StreamID    int64                `json:"stream_id"`
		Devices     []store.ListedDevice `json:"devices"`
		Master      json.RawMessage      `json:"master_key"`
		SelfSigning json.RawMessage      `json:"self_signing_key"`
	}
	if json.Unmarshal(raw, &answer) != nil || answer.User != user || len(answer.Devices) > store.MaxRemoteDevices {
		return found, fail(http.StatusBadGateway, "M_UNKNOWN", "This server's answer could not be read.")
	}
	list := &store.RemoteDevices{
		User: user, StreamID: answer.StreamID, Seen: answer.StreamID, Fetched: position, Devices: map[store.DeviceID]store.RemoteDevice{},
	}
	for _, d := range answer.Devices {
		if keys, ok := remoteDeviceKeys(d.Keys, user, d.ID); ok {
			list.Devices[d.ID] = store.RemoteDevice{DisplayName: d.DisplayName, Keys: keys}
		}
	}
	list.Master = remoteCrossSigningKey(answer.Master, user, "master")
	list.SelfSigning = remoteCrossSigningKey(answer.SelfSigning, user, "self_signing")
	if left := fitDevices(list); left > 0 {
		a.Log.Warn("a user has too many devices: not all are kept", "user", user, "left_out", left)
	}
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error {
		held, err := tx.RemoteDevices(user)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err == nil && held.Seen != seen && held.Seen > answer.StreamID { // an update came while we asked, and may not be in the answer
			list.Seen, list.Stale = held.Seen, true
		}
		if err == nil {
			keepNewerKey(list, &list.Master, held.Master, before.Master)
			keepNewerKey(list, &list.SelfSigning, held.SelfSigning, before.SelfSigning)
		}
		return tx.PutRemoteDevices(list)
	})
	if errors.Is(err, store.ErrTooManyKeys) {
		return foundKeys{user, list}, nil
	}
	return foundKeys{user, nil}, err
}

// fitDevices leaves out devices of a list that is larger than may be cached, and says how many. Those that the user's self-signing key has signed are left
// out last: clients may write to no others.
func fitDevices(list *store.RemoteDevices) (left int) {
	size := len(list.Master) + len(list.SelfSigning) + remoteListFrame
	sizes, signed := map[store.DeviceID]int{}, map[store.DeviceID]int{}
	owner := eventgraph.KeyID("ed25519:" + store.CrossSigningPublicKey(list.SelfSigning))
	for id, d := range list.Devices {
		raw, err := json.Marshal(map[store.DeviceID]store.RemoteDevice{id: d})
		if err != nil {
			delete(list.Devices, id)
			continue
		}
		sizes[id] = len(raw)
		var keys deviceKeysObject
		if json.Unmarshal(d.Keys, &keys) == nil && keys.Signatures[list.User][owner] != "" {
			signed[id] = 1
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(sizes), func(x, y store.DeviceID) int {
		return cmp.Or(cmp.Compare(signed[y], signed[x]), cmp.Compare(sizes[x], sizes[y]), cmp.Compare(x, y))
	}) {
		if size += sizes[id]; size > store.MaxRemoteDeviceList {
			delete(list.Devices, id)
			left++
		}
	}
	return left
}

const (
	// remoteListFrame is above what a list takes beside its keys.
	remoteListFrame = 1 << 10
	// askedTogether are the users whose keys are asked for in one request; the answer is bounded (federation, maxKeysAnswer).
	askedTogether = 50
)

// keepNewerKey puts a cross-signing key of which an update has told while the list was fetched in the place of the list's, which may be the one before:
// such updates have no number. The list is then to be fetched again.
func keepNewerKey(list *store.RemoteDevices, fetched *json.RawMessage, held, before json.RawMessage) {
	if held != nil && !bytes.Equal(held, before) && !bytes.Equal(held, *fetched) {
		*fetched, list.Stale = held, true
	}
}

// askKeys asks for keys that are not cached.
func (a *API) askKeys(ctx context.Context, server eventgraph.ServerName, users []eventgraph.UserID) (lists []foundKeys, err error) {
	for some := range slices.Chunk(users, askedTogether) {
		asked, err := a.askSome(ctx, server, some)
		if err != nil {
			return lists, err
		}
		lists = append(lists, asked...)
	}
	return lists, nil
}

func (a *API) askSome(ctx context.Context, server eventgraph.ServerName, users []eventgraph.UserID) ([]foundKeys, error) {
	wanted := map[eventgraph.UserID][]store.DeviceID{}
	for _, user := range users {
		wanted[user] = []store.DeviceID{}
	}
	body, err := json.Marshal(map[string]any{"device_keys": wanted})
	if err != nil {
		return nil, err
	}
	raw, err := a.remote.QueryKeys(ctx, server, body)
	if err != nil {
		return nil, err
	}
	var answer keysAnswer
	if json.Unmarshal(raw, &answer) != nil {
		return nil, fail(http.StatusBadGateway, "M_UNKNOWN", "This server's answer could not be read.")
	}
	var lists []foundKeys
	for _, user := range users {
		devices, ok := answer.DeviceKeys[user]
		if !ok || len(devices) > store.MaxRemoteDevices {
			continue
		}
		list := &store.RemoteDevices{User: user, Devices: map[store.DeviceID]store.RemoteDevice{}}
		for id, keys := range devices {
			name := displayNameOf(keys)
			if keys, ok := remoteDeviceKeys(keys, user, id); ok {
				list.Devices[id] = store.RemoteDevice{DisplayName: name, Keys: keys}
			}
		}
		list.Master = remoteCrossSigningKey(answer.MasterKeys[user], user, "master")
		list.SelfSigning = remoteCrossSigningKey(answer.SelfSigning[user], user, "self_signing")
		fitDevices(list)
		lists = append(lists, foundKeys{user, list})
	}
	return lists, nil
}

func displayNameOf(keys json.RawMessage) string {
	var with struct {
		Unsigned struct {
			Name string `json:"device_display_name"`
		} `json:"unsigned"`
	}
	if json.Unmarshal(keys, &with) != nil {
		return ""
	}
	return with.Unsigned.Name
}

// remoteDeviceKeys checks that keys from another server are those of this device, so that none passes for another's. Whether
// they are rightly signed is for the clients to say, who do not trust servers in that.
func remoteDeviceKeys(raw json.RawMessage, user eventgraph.UserID, device store.DeviceID) (json.RawMessage, bool) {
	canonical, err := canonicaljson.CanonicalizeWithout(raw, canonicaljson.Strict, "unsigned")
	if err != nil || len(canonical) > maxDeviceKeys || device == "" {
		return nil, false
	}
	var keys deviceKeysObject
	ok := json.Unmarshal(canonical, &keys) == nil && keys.User == user && keys.Device == device
	return canonical, ok
}

// remoteCrossSigningKey is the key in canonical form; nil if there is none, or none that is well formed.
func remoteCrossSigningKey(raw json.RawMessage, user eventgraph.UserID, usage string) json.RawMessage {
	if raw == nil {
		return nil
	}
	canonical, _, err := checkCrossSigningKey(raw, user, usage)
	if err != nil {
		return nil
	}
	return canonical
}

// deviceListUpdate takes in m.device_list_update. origin is the user's server.
func (a *API) deviceListUpdate(ctx context.Context, content json.RawMessage) error {
	var u struct {
		User        eventgraph.UserID `json:"user_id"`
		Device      store.DeviceID    `json:"device_id"`
		DisplayName string            `json:"device_display_name"`
		StreamID    int64             `json:"stream_id"`
		PrevID      []int64           `json:"prev_id"`
		Deleted     bool              `json:"deleted"`
		Keys        json.RawMessage   `json:"keys"`
	}
	if json.Unmarshal(content, &u) != nil || u.User == "" || u.Device == "" {
		return errMalformedEDU
	}
	return a.changeRemoteList(ctx, u.User, func(list *store.RemoteDevices) bool {
		if list.Devices != nil && list.StreamID >= u.StreamID && list.Seen >= u.StreamID {
			return false // repeated, or older than the list that was fetched
		}
		follows := false
		for _, prev := range u.PrevID {
			follows = follows || prev == list.StreamID
		}
		list.Seen = max(list.Seen, u.StreamID)
		if list.Devices == nil || list.Stale || !follows {
			list.Stale = true
			return true
		}
		list.StreamID = u.StreamID
		if u.Deleted || u.Keys == nil {
			delete(list.Devices, u.Device)
		} else if keys, ok := remoteDeviceKeys(u.Keys, u.User, u.Device); ok {
			list.Devices[u.Device] = store.RemoteDevice{DisplayName: u.DisplayName, Keys: keys}
		}
		return true
	})
}

// signingKeyUpdate takes in m.signing_key_update. origin is the user's server.
func (a *API) signingKeyUpdate(ctx context.Context, content json.RawMessage) error {
	var u struct {
		User        eventgraph.UserID `json:"user_id"`
		Master      json.RawMessage   `json:"master_key"`
		SelfSigning json.RawMessage   `json:"self_signing_key"`
	}
	if json.Unmarshal(content, &u) != nil || u.User == "" {
		return errMalformedEDU
	}
	return a.changeRemoteList(ctx, u.User, func(list *store.RemoteDevices) bool {
		changed := list.Devices == nil
		for raw, held := range map[*json.RawMessage]*json.RawMessage{&u.Master: &list.Master, &u.SelfSigning: &list.SelfSigning} {
			usage := "master"
			if held == &list.SelfSigning {
				usage = "self_signing"
			}
			if key := remoteCrossSigningKey(*raw, u.User, usage); key != nil && !bytes.Equal(key, *held) {
				*held, changed = key, true
			}
		}
		return changed
	})
}

// changeRemoteList lets f change the cached list of a user (without Devices if none is held), and logs that it changed if f
// says so. Users whom nobody here shares a room with are not cached.
func (a *API) changeRemoteList(ctx context.Context, user eventgraph.UserID, f func(*store.RemoteDevices) bool) error {
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		shared, err := a.sharedWithUs(&tx.Reader, user)
		if err != nil {
			return err
		}
		if !shared {
			return tx.DeleteRemoteDevices(user)
		}
		list, err := tx.RemoteDevices(user)
		if errors.Is(err, store.ErrNotFound) {
			list, err = &store.RemoteDevices{User: user, Stale: true}, nil
		}
		if err != nil || !f(list) {
			return err
		}
		err = tx.PutRemoteDevices(list)
		if errors.Is(err, store.ErrTooManyKeys) {
			err = tx.DeleteRemoteDevices(user)
		}
		if err == nil {
			_, err = tx.LogRemoteDevices(user)
		}
		return err
	})
	return err
}

func ignoreNotFound(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
