package clientapi

import (
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// keysOf are the device keys that a query shows of a user, by device ID.
func (c client) keysOf(user eventgraph.UserID, devices ...string) (ids []string) {
	c.s.t.Helper()
	a := c.call(200, "POST", "/v3/keys/query", map[string]any{"device_keys": map[eventgraph.UserID][]string{user: append([]string{}, devices...)}})
	shown, ok := a.body["device_keys"].(map[string]any)[string(user)].(map[string]any)
	if !ok {
		c.s.t.Errorf("nothing is said of %s: %s", user, a.raw)
	}
	for id := range shown {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Keys are asked for by user, and by device; who has none has an empty object; what is no list of devices is refused (CS API, keys/query).
func TestQueryKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	second := s.logIn("alice", "SECOND")
	alice.withKeys(1, 1)
	second.withKeys(2, 0)
	all := []string{string(alice.device), "SECOND"}
	slices.Sort(all)
	wantList(t, "all", bob.keysOf(alice.user), all...)
	wantList(t, "one", bob.keysOf(alice.user, "SECOND"), "SECOND")
	wantList(t, "of a device that is not there", bob.keysOf(alice.user, "NONE"))
	wantList(t, "of a user without", alice.keysOf(bob.user))
	for _, devices := range []string{`{"A":true,"B":true}`, `{}`, `"A"`, `[1]`, `true`} {
		if a := alice.call(400, "POST", "/v3/keys/query", `{"device_keys":{"`+string(bob.user)+`":`+devices+`}}`); a.code() != "M_BAD_JSON" {
			t.Errorf("%s: %s", devices, a.raw)
		}
	}
	// A device uploads for itself alone.
	theirs := newKeyPair(alice.user, alice.device, 1)
	for _, keys := range []any{theirs.deviceKeys(t), map[string]any{"user_id": alice.user, "device_id": alice.device}} {
		bob.call(400, "POST", "/v3/keys/upload", map[string]any{"device_keys": keys})
	}
	wantList(t, "bob's after all that", alice.keysOf(bob.user))
	// The last one-time key given, there is nothing of the user.
	if id := bob.claim(alice.user, alice.device); id != "signed_curve25519:K000" {
		t.Errorf("claimed %q", id)
	}
	a := bob.call(200, "POST", "/v3/keys/claim", map[string]any{"one_time_keys": map[string]any{string(alice.user): map[string]any{string(alice.device): "signed_curve25519"}}})
	if keys := a.body["one_time_keys"].(map[string]any); keys[string(alice.user)] != nil {
		t.Errorf("claimed again: %s", a.raw)
	}
}

// One-time keys that were uploaded before count once.
func TestUploadKeysAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	k := alice.withKeys(1, 0)
	for _, c := range []struct{ from, n, want int }{{0, 3, 3}, {0, 3, 3}, {1, 3, 4}, {0, 4, 4}} {
		a := alice.call(200, "POST", "/v3/keys/upload", map[string]any{"one_time_keys": k.oneTimeKeys(t, c.from, c.n)})
		if n := a.body["one_time_key_counts"].(map[string]any)["signed_curve25519"]; n != float64(c.want) {
			t.Errorf("%d from %d: %s, want %d", c.n, c.from, a.raw, c.want)
		}
	}
}

// Device lists are told of while two users share a room, and the end of that is told (CS API, Tracking the device list for a user). The keys
// themselves are shown to whoever asks.
func TestDeviceListsOfLocalUsers(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string][]struct {
		who, action   string
		changed, left bool
	}{
		"the other joins":              {{"bob", "join", true, false}},
		"oneself joins":                {{"alice", "join", true, false}},
		"the other leaves":             {{"bob", "join", true, false}, {"bob", "leave", false, true}},
		"oneself leaves":               {{"alice", "join", true, false}, {"alice", "leave", false, true}},
		"the other leaves and returns": {{"bob", "join", true, false}, {"bob", "leave", false, true}, {"bob", "join", true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, alice, bob, _ := newMeeting(t)
			clients := map[string]client{"alice": alice, "bob": bob}
			owner := bob
			if steps[0].who == "bob" {
				owner = alice
			}
			room := owner.createRoom(`{"preset":"public_chat"}`)
			seed := byte(1)
			bob.withKeys(seed, 0)
			for _, filter := range []string{`filter={}`, `filter={"room":{"timeline":{"lazy_load_members":true},"state":{"lazy_load_members":true}}}`} {
				since := alice.sync("", filter).NextBatch
				together := false
				for n, step := range steps {
					clients[step.who].inRoom(200, room, step.action, nil)
					together = step.action == "join"
					var body syncBody
					for range 2 { // the first answer may have been lost
						body = alice.sync(since, filter)
						if slices.Contains(body.DeviceLists.Changed, bob.user) != step.changed || slices.Contains(body.DeviceLists.Left, bob.user) != step.left {
							t.Errorf("after step %d: %+v", n, body.DeviceLists)
						}
					}
					since = body.NextBatch
					seed++
					bob.withKeys(seed, 0)
					body = alice.sync(since, filter)
					if slices.Contains(body.DeviceLists.Changed, bob.user) != together || len(body.DeviceLists.Left) > 0 {
						t.Errorf("new keys after step %d: %+v", n, body.DeviceLists)
					}
					since = body.NextBatch
					wantList(t, "keys", alice.keysOf(bob.user), string(bob.device))
				}
				if together {
					clients[steps[0].who].inRoom(200, room, "leave", nil)
				}
			}
		})
	}
}

// A new login with keys changes its user's device list (CS API, keys/changes).
func TestNewLoginChangesDeviceList(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	bob.withKeys(1, 1)
	bob.inRoom(200, alice.createRoom(`{"preset":"public_chat"}`), "join", nil)
	since := alice.sync("").NextBatch
	bob.s.logIn("bob", "NEW").withKeys(2, 1)
	body := alice.sync(since)
	if !slices.Contains(body.DeviceLists.Changed, bob.user) {
		t.Errorf("sync: %+v", body.DeviceLists)
	}
	a := alice.call(200, "GET", "/v3/keys/changes?from="+since+"&to="+body.NextBatch, nil)
	if changed, _ := a.body["changed"].([]any); len(changed) != 1 || changed[0] != string(bob.user) {
		t.Errorf("keys/changes: %s", a.raw)
	}
	if ids := alice.keysOf(bob.user); len(ids) != 2 {
		t.Errorf("devices %v", ids)
	}
}
