package clientapi

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// TestDeepKeysAndMessages: what other servers are sent inside a signed request is refused here if nothing could be signed with it.
func TestDeepKeysAndMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	k := alice.withKeys(1, 0)
	deep := json.RawMessage(strings.Repeat("[", canonicaljson.MaxPart) + strings.Repeat("]", canonicaljson.MaxPart))
	var deviceKeys map[string]any
	if err := json.Unmarshal(k.deviceKeys(t), &deviceKeys); err != nil {
		t.Fatal(err)
	}
	deviceKeys["x"] = deep
	master := newKeyPair(alice.user, "", 2).crossSigningMap()
	master["x"] = deep
	content := map[string]any{"x": deep}
	for _, test := range []struct {
		method, path string
		body         any
	}{
		{"POST", "/v3/keys/upload", map[string]any{"device_keys": deviceKeys}},
		{"POST", "/v3/keys/upload", map[string]any{"one_time_keys": map[string]any{"curve25519:A": content}}},
		{"POST", "/v3/keys/upload", map[string]any{"fallback_keys": map[string]any{"curve25519:A": content}}},
		{"POST", "/v3/keys/device_signing/upload", map[string]any{"master_key": master}},
		{"PUT", "/v3/sendToDevice/m.test/1", map[string]any{"messages": map[string]any{"@bob:k51qzi5uqu5dm1pqruhf5rcxk20b98zm3skw6vejvwfjbt6dpl466j206rp33g": map[string]any{"*": content}}}},
		{"PUT", "/v3/sendToDevice/m.test/2", map[string]any{"messages": map[string]any{string(alice.user): map[string]any{"*": content}}}},
		{"PUT", "/v3/rooms/" + string(alice.room()) + "/send/m.test/1", content},
		{"PUT", "/v3/rooms/" + string(alice.room()) + "/state/m.test", content},
		{"POST", "/v3/createRoom", map[string]any{"creation_content": content}},
		{"POST", "/v3/createRoom", map[string]any{"initial_state": []any{map[string]any{"type": "m.test", "content": content}}}},
	} {
		if a := s.send(test.method, "/_matrix/client"+test.path, alice.token, test.body); a.status != 400 || a.code() != "M_BAD_JSON" {
			t.Errorf("%s %s: %d %s", test.method, test.path, a.status, a.raw)
		}
	}
}

// crossSigningMap is the unsigned master key.
func (k keyPair) crossSigningMap() map[string]any {
	return map[string]any{"user_id": k.user, "usage": []string{"master"}, "keys": map[string]string{"ed25519:" + k.name: k.name}}
}

// malformed is the master key with signatures of another form than the specification gives.
func (k keyPair) malformed(t *testing.T) string {
	return strings.TrimSuffix(string(k.crossSigning(t, "master", nil)), "}") + `,"signatures":{"@x:y":5}}`
}

// TestMalformedSignatures: they are refused, and where they are held, as from before that was so, they harm nobody.
func TestMalformedSignatures(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	alice.withKeys(1, 0)
	device, master := bob.withKeys(2, 0), newKeyPair(bob.user, "", 3)
	a := s.send("POST", "/_matrix/client/v3/keys/device_signing/upload", bob.token, `{"master_key":`+master.malformed(t)+`}`)
	if a.status != 400 || a.code() != "M_BAD_JSON" {
		t.Errorf("upload: %d %s", a.status, a.raw)
	}
	if _, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.PutCrossSigningKeys(bob.user, map[string]json.RawMessage{"master": json.RawMessage(master.malformed(t))})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	bob.call(200, "POST", "/v3/keys/signatures/upload", map[string]any{string(bob.user): map[string]any{master.name: device.sign(t, master.crossSigningMap())}})
	got := alice.queryKeys(bob.user, alice.user).MasterKeys[bob.user]
	if store.CrossSigningPublicKey(got) != master.name || !strings.Contains(string(got), "ed25519:"+device.name) {
		t.Errorf("bob's master key is shown as %s", got)
	}
	if _, err := s.QueryKeys(context.Background(), "remote", json.RawMessage(`{"device_keys":{"`+string(bob.user)+`":[]}}`)); err != nil {
		t.Errorf("another server's query: %v", err)
	}
	err := s.Store.View(func(r *store.Reader) error {
		_, _, err := r.DeviceListEDU(store.Change{Kind: store.ChangeDeviceList, User: bob.user})
		return err
	})
	if err != nil {
		t.Errorf("the EDU for other servers: %v", err)
	}
	if raw, err := s.KeyBundle(bob.user); err != nil || !strings.Contains(string(raw), master.name) {
		t.Errorf("what is handed over: %s, %v", raw, err)
	}
}

// TestMalformedSignaturesFromRemote is the same of a key that another server tells of.
func TestMalformedSignaturesFromRemote(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	const rita = eventgraph.UserID("@rita:remote")
	s.remoteMember(alice.room(), rita)
	alice.withKeys(1, 0)
	master, user := newKeyPair(alice.user, "", 2), newKeyPair(alice.user, "", 4)
	alice.call(200, "POST", "/v3/keys/device_signing/upload", map[string]any{
		"master_key": master.crossSigning(t, "master", nil), "user_signing_key": user.crossSigning(t, "user_signing", &master)})
	ritas := newKeyPair(rita, "", 3)
	s.SetRemote(&keyServer{unreachable: s.remote, devices: &store.DeviceList{User: rita, StreamID: 5, Devices: []store.ListedDevice{}, Master: ritas.crossSigning(t, "master", nil)}})
	alice.call(200, "POST", "/v3/keys/signatures/upload", map[string]any{string(rita): map[string]any{ritas.name: user.sign(t, ritas.crossSigningMap())}})
	edu := `{"user_id":"@rita:remote","master_key":` + ritas.malformed(t) + `}`
	if err := s.ReceiveEDU(t.Context(), "remote", "m.signing_key_update", json.RawMessage(edu)); err != nil {
		t.Fatal(err)
	}
	if got := alice.queryKeys(rita, alice.user).MasterKeys[rita]; !strings.Contains(string(got), string(alice.user)) || strings.Contains(string(got), "@x:y") {
		t.Errorf("rita's master key is shown as %s", got)
	}
}

// TestTwoFallbackKeys: "There can be at most one fallback key per algorithm" (keys.yaml).
func TestTwoFallbackKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	k := alice.withKeys(1, 0)
	key := func(v string) any { return k.sign(t, map[string]any{"key": v, "fallback": true}) }
	a := s.send("POST", "/_matrix/client/v3/keys/upload", alice.token, map[string]any{"fallback_keys": map[string]any{
		"signed_curve25519:A": key("a"), "signed_curve25519:B": key("b")}})
	if a.status != 400 || a.code() != "M_INVALID_PARAM" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// TestOneTimeKeyUploadedAgain: an upload whose answer was lost is repeated after one of its keys was claimed. Nobody gets that one again.
func TestOneTimeKeyUploadedAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	k := alice.withKeys(1, 2)
	first := bob.claim(alice.user, alice.device)
	again := alice.call(200, "POST", "/v3/keys/upload", map[string]any{"one_time_keys": k.oneTimeKeys(t, 0, 2)})
	if got := again.raw; !strings.Contains(got, `"signed_curve25519":1`) {
		t.Errorf("counts after the repetition: %s", got)
	}
	second := carol.claim(alice.user, alice.device)
	if second == first || second == "" {
		t.Errorf("%q was claimed after %q", second, first)
	}
}

// TestOtherIdentityKeys: one-time and fallback keys that a device had under other identity keys are given to nobody.
func TestOtherIdentityKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	k := alice.withKeys(1, 2)
	alice.call(200, "POST", "/v3/keys/upload", map[string]any{"fallback_keys": map[string]any{
		"signed_curve25519:F": k.sign(t, map[string]any{"key": "f", "fallback": true})}})
	bob.claim(alice.user, alice.device)
	other := newKeyPair(alice.user, alice.device, 9)
	a := alice.call(200, "POST", "/v3/keys/upload", map[string]any{"device_keys": other.deviceKeys(t), "one_time_keys": other.oneTimeKeys(t, 0, 1)})
	if !strings.Contains(a.raw, `"signed_curve25519":1`) {
		t.Errorf("counts: %s", a.raw)
	}
	if got := bob.claim(alice.user, alice.device); got == "" {
		t.Error("the new key, of an ID that was claimed of the old ones, cannot be claimed")
	}
	if got := bob.claim(alice.user, alice.device); got != "" {
		t.Errorf("%q of the old device was claimed", got)
	}
	if got := alice.sync("").UnusedFallback; len(got) != 0 {
		t.Errorf("unused fallback keys: %q", got)
	}
}

// racingServer does something while a list that it has made is on its way.
type racingServer struct {
	*keyServer
	during func()
}

func (r *racingServer) UserDevices(ctx context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	raw, err := r.keyServer.UserDevices(ctx, user)
	if r.during != nil {
		r.during()
		r.during = nil
	}
	return raw, err
}

// TestSigningKeyUpdateWhileFetching: a cross-signing key that is told of while the list is fetched is not replaced by the one before.
func TestSigningKeyUpdateWhileFetching(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} { // whether a list was held before
		s := newTestServer(t, nil)
		alice := s.newClient("alice")
		const rita = eventgraph.UserID("@rita:remote")
		s.remoteMember(alice.room(), rita)
		r1, old, now := newKeyPair(rita, "R1", 1), newKeyPair(rita, "", 2), newKeyPair(rita, "", 3)
		remote := &racingServer{keyServer: &keyServer{unreachable: s.remote, devices: &store.DeviceList{User: rita, StreamID: 5,
			Devices: []store.ListedDevice{{ID: "R1", Keys: r1.deviceKeys(t)}}, Master: old.crossSigning(t, "master", nil)}}}
		s.SetRemote(remote)
		if known {
			alice.queryKeys(rita)
			s.remoteUpdate(t, rita, 9) // with a gap: to be fetched again
		}
		remote.during = func() {
			remote.devices.Master = now.crossSigning(t, "master", nil)
			edu, _ := json.Marshal(map[string]any{"user_id": rita, "master_key": remote.devices.Master})
			if err := s.ReceiveEDU(t.Context(), "remote", "m.signing_key_update", edu); err != nil {
				t.Error(err)
			}
		}
		for range 3 {
			if got := store.CrossSigningPublicKey(alice.queryKeys(rita).MasterKeys[rita]); got != now.name {
				t.Errorf("the master key shown is %q, want the new one, %q", got, now.name)
			}
		}
		if list := s.cached(t, rita); list.Stale {
			t.Error("the list stays to be fetched again")
		}
	}
}

// remoteUpdate takes in an update of a device list that follows on none.
func (s *testServer) remoteUpdate(t *testing.T, user eventgraph.UserID, stream int64) {
	t.Helper()
	edu, _ := json.Marshal(map[string]any{"user_id": user, "device_id": "X", "stream_id": stream, "prev_id": []int64{stream - 1}})
	if err := s.ReceiveEDU(t.Context(), user.Server(), "m.device_list_update", edu); err != nil {
		t.Fatal(err)
	}
}

// cached is the list of a remote user that is held.
func (s *testServer) cached(t *testing.T, user eventgraph.UserID) (list *store.RemoteDevices) {
	t.Helper()
	if err := s.Store.View(func(r *store.Reader) (err error) { list, err = r.RemoteDevices(user); return err }); err != nil {
		t.Fatal(err)
	}
	return list
}
