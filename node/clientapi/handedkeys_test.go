package clientapi

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/store"
)

// TestKeyBundle: a bundle has what is rightly signed, and what is not is refused in one.
func TestKeyBundle(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	if raw, err := s.KeyBundle(alice.user); raw != nil || err != nil {
		t.Fatalf("of a user without keys: %s, %v", raw, err)
	}
	k := alice.withKeys(1, 2)
	fallback := k.sign(t, map[string]any{"key": "f", "fallback": true})
	alice.call(200, "POST", "/v3/keys/upload", map[string]any{"fallback_keys": map[string]any{"signed_curve25519:F": fallback}})
	master, self := newKeyPair(alice.user, "", 3), newKeyPair(alice.user, "", 4)
	_, err := s.Store.Update(context.Background(), func(tx *store.Tx) error {
		if err := tx.PutDevice(&store.Device{User: alice.user, ID: "UNSIGNED"}); err != nil {
			return err
		}
		unsigned := strings.Replace(string(newKeyPair(alice.user, "UNSIGNED", 5).deviceKeys(t)), "ed25519:UNSIGNED\":\"", "ed25519:OTHER\":\"", 1)
		if _, err := tx.PutDeviceKeys(alice.user, "UNSIGNED", json.RawMessage(unsigned)); err != nil {
			return err
		}
		_, err := tx.PutCrossSigningKeys(alice.user, map[string]json.RawMessage{
			"master": master.crossSigning(t, "master", nil), "self_signing": self.crossSigning(t, "self_signing", &master)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.KeyBundle(alice.user)
	if err != nil {
		t.Fatal(err)
	}
	var b keyBundle
	if err := json.Unmarshal(raw, &b); err != nil || len(b.Devices) != 1 || b.Devices[0].ID != alice.device || b.Master == nil || b.SelfSigning == nil ||
		b.fallback(alice.device, "signed_curve25519")["signed_curve25519:F"] == nil || b.fallback(alice.device, "curve25519") != nil {
		t.Fatalf("%s, %v", raw, err)
	}
	if err := s.CheckKeyBundle(alice.user, raw); err != nil {
		t.Errorf("its own check refuses it: %v", err)
	}
	other := newKeyPair(alice.user, alice.device, 9)
	for what, change := range map[string]func(*keyBundle){
		"device keys of another device":    func(b *keyBundle) { b.Devices[0].ID = "OTHER" },
		"device keys of another user":      func(b *keyBundle) { b.Devices[0].Keys = newKeyPair("@x:far", alice.device, 1).deviceKeys(t) },
		"a device twice":                   func(b *keyBundle) { b.Devices = append(b.Devices, b.Devices[0]) },
		"a fallback key of another device": func(b *keyBundle) { b.Devices[0].Keys = other.deviceKeys(t) },
		"a fallback key without signature": func(b *keyBundle) {
			b.Devices[0].Fallback = map[string]json.RawMessage{"curve25519:F": json.RawMessage(`"x"`)}
		},
		"a fallback key without name":       func(b *keyBundle) { b.Devices[0].Fallback = map[string]json.RawMessage{"signed_curve25519": fallback} },
		"a master key of another user":      func(b *keyBundle) { b.Master = newKeyPair("@x:far", "", 3).crossSigning(t, "master", nil) },
		"a self-signing key unsigned":       func(b *keyBundle) { b.SelfSigning = self.crossSigning(t, "self_signing", nil) },
		"a self-signing key by another":     func(b *keyBundle) { b.SelfSigning = self.crossSigning(t, "self_signing", &self) },
		"a self-signing key with no master": func(b *keyBundle) { b.Master = nil },
		"one too large":                     func(b *keyBundle) { b.Devices[0].DisplayName = strings.Repeat("x", maxKeyBundle) },
		"unsigned device keys": func(b *keyBundle) {
			b.Devices[0].Keys = json.RawMessage(strings.Replace(string(b.Devices[0].Keys), `"signatures":{`, `"signatures":{},"x":{`, 1))
		},
	} {
		var wrong keyBundle
		if err := json.Unmarshal(raw, &wrong); err != nil {
			t.Fatal(err)
		}
		change(&wrong)
		bad, err := json.Marshal(wrong)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CheckKeyBundle(alice.user, bad); err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
	if s.CheckKeyBundle(alice.user, json.RawMessage(`[]`)) == nil {
		t.Error("what is no bundle is not refused")
	}

	// Of more devices than fit those seen last are given.
	for i := range 150 {
		id := store.DeviceID(fmt.Sprintf("D%03d", i))
		keys := newKeyPair(alice.user, id, byte(i)).deviceKeys(t)
		s.update(func(tx *store.Tx) error {
			if err := tx.PutDevice(&store.Device{User: alice.user, ID: id, LastSeenTS: 1 << 50}); err != nil {
				return err
			}
			_, err := tx.PutDeviceKeys(alice.user, id, keys)
			return err
		})
	}
	if raw, err = s.KeyBundle(alice.user); err != nil || len(raw) > maxKeyBundle || len(raw) < maxKeyBundle*9/10 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	if json.Unmarshal(raw, &b); b.fallback(alice.device, "signed_curve25519") != nil {
		t.Error("the device seen longest ago is among them")
	}
}

// handingServer is a Remote that cannot be reached, of whose users a third has keys.
type handingServer struct {
	*unreachable
	s     *testServer
	third map[eventgraph.UserID]*store.HandedKeys
	gone  bool // it is connected, and yet does not answer
}

func (h *handingServer) IsConnected(eventgraph.ServerName) bool { return h.gone }

func (h *handingServer) ClaimKeys(ctx context.Context, _ eventgraph.ServerName, _ json.RawMessage) (json.RawMessage, error) {
	if h.gone {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, federation.ErrUnreachable
}

func (h *handingServer) AskKeyBundles(_ context.Context, users []eventgraph.UserID) {
	for _, user := range users {
		if k := h.third[user]; k != nil {
			h.s.update(func(tx *store.Tx) error { return tx.PutHandedKeys(k) })
		}
	}
}

// TestKeysOfServersAway: keys/query and keys/claim answer with what a server has handed over, here or to others, while it is away; one with neither is named in
// failures (CS API, POST keys/query and keys/claim, failures and timeout).
func TestKeysOfServersAway(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	handed := func(user eventgraph.UserID, stream int) *store.HandedKeys {
		k := newKeyPair(user, "PHONE", 1)
		bundle, err := json.Marshal(keyBundle{StreamID: uint64(stream), Devices: []bundledDevice{{ID: "PHONE", DisplayName: "a phone", Keys: k.deviceKeys(t),
			Fallback: map[string]json.RawMessage{"signed_curve25519:F": k.sign(t, map[string]any{"key": "f", "fallback": true})}}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CheckKeyBundle(user, bundle); err != nil {
			t.Fatal(err)
		}
		return &store.HandedKeys{User: user, Digest: []byte{byte(stream)}, Signed: json.RawMessage(`{"bundle":` + string(bundle) + `}`)}
	}
	const here, third, nobody = eventgraph.UserID("@rita:remote"), eventgraph.UserID("@tim:third"), eventgraph.UserID("@nobody:elsewhere")
	remote := &handingServer{unreachable: s.remote, s: s, third: map[eventgraph.UserID]*store.HandedKeys{third: handed(third, 1)}}
	s.SetRemote(remote)
	for _, user := range []eventgraph.UserID{here, third, nobody} {
		s.remoteMember(room, user)
	}
	since := alice.sync("").NextBatch
	s.update(func(tx *store.Tx) error { return tx.PutHandedKeys(handed(here, 1)) })
	if told := alice.sync(since).DeviceLists.Changed; len(told) != 1 || told[0] != here {
		t.Errorf("told of %v", told)
	}
	query := alice.queryKeys(here, third, nobody)
	if len(query.Failures) != 1 || query.Failures["elsewhere"] == nil {
		t.Errorf("failures: %v", query.Failures)
	}
	for _, user := range []eventgraph.UserID{here, third} {
		if keys := query.DeviceKeys[user]["PHONE"]; !strings.Contains(string(keys), "a phone") {
			t.Errorf("%s: %s", user, keys)
		}
	}
	wanted := map[eventgraph.UserID]any{}
	for _, user := range []eventgraph.UserID{here, third, nobody} {
		wanted[user] = map[string]string{"PHONE": "signed_curve25519"}
	}
	claim := func(wanted any, timeout int) (keys claimed, failures map[string]any) {
		t.Helper()
		a := alice.call(200, "POST", "/v3/keys/claim", map[string]any{"one_time_keys": wanted, "timeout": timeout})
		var got struct {
			Keys     claimed        `json:"one_time_keys"`
			Failures map[string]any `json:"failures"`
		}
		if err := json.Unmarshal([]byte(a.raw), &got); err != nil {
			t.Fatal(err)
		}
		return got.Keys, got.Failures
	}
	for _, remote.gone = range []bool{false, true} {
		keys, failures := claim(wanted, 400)
		if len(failures) != 1 || failures["elsewhere"] == nil || len(keys) != 2 || keys[here]["PHONE"]["signed_curve25519:F"] == nil || keys[third]["PHONE"]["signed_curve25519:F"] == nil {
			t.Errorf("connected %t: %v, %v", remote.gone, keys, failures)
		}
	}
	remote.gone = false
	if keys, failures := claim(map[eventgraph.UserID]any{here: map[string]string{"PHONE": "signed_curve25519", "OTHER": "signed_curve25519"}}, 400); len(keys[here]) != 1 || len(failures) != 1 {
		t.Errorf("a device that nobody knows: %v, %v", keys, failures)
	}

	// A cached list that is newer is not hidden by what was handed over before it.
	newer := newKeyPair(here, "NEW", 2)
	s.update(func(tx *store.Tx) error {
		return tx.PutRemoteDevices(&store.RemoteDevices{User: here, StreamID: 2, Seen: 4, Stale: true,
			Devices: map[store.DeviceID]store.RemoteDevice{"NEW": {Keys: newer.deviceKeys(t)}}})
	})
	if got := alice.queryKeys(here); got.DeviceKeys[here]["NEW"] == nil || got.Failures["remote"] == nil {
		t.Errorf("%+v", got)
	}
	s.update(func(tx *store.Tx) error { return tx.PutHandedKeys(handed(here, 4)) })
	if got := alice.queryKeys(here); got.DeviceKeys[here]["PHONE"] == nil || len(got.Failures) > 0 {
		t.Errorf("%+v", got)
	}
}

// TestToDeviceWithoutCanonicalForm: what cannot be signed can never be sent to another server, and would hold up all that comes after it.
func TestToDeviceWithoutCanonicalForm(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	remote := eventgraph.NewServerName(newKeyPair("@x:y", "X", 1).private.Public().(ed25519.PublicKey))
	send := func(want int, content string) answer {
		return alice.call(want, "PUT", "/v3/sendToDevice/m.test/"+fmt.Sprint(len(content)), map[string]any{"messages": map[string]any{
			"@bob:" + string(remote): map[string]any{"*": json.RawMessage(content)}}})
	}
	if a := send(400, `{"x":1.5}`); a.code() != "M_BAD_JSON" {
		t.Errorf("%s", a.raw)
	}
	send(200, `{"x":15}`)
	n := 0
	s.Store.View(func(r *store.Reader) error {
		return r.Outbound(remote, 0, func(*store.Outbound) (bool, error) { n++; return true, nil })
	})
	if n != 1 {
		t.Errorf("%d are queued", n)
	}
}
