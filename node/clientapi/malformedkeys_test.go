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
