package clientapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/store"
)

const dehydratedPath = "/unstable/org.matrix.msc3814.v1/dehydrated_device"

// dehydrated is the body of PUT /dehydrated_device.
func (c client) dehydrated(id string, seed byte) map[string]any {
	k := newKeyPair(c.user, store.DeviceID(id), seed)
	return map[string]any{
		"device_id": id, "device_data": map[string]string{"algorithm": "org.matrix.msc3814.v1.olm", "device_pickle": "<p>"},
		"initial_device_display_name": "dried", "device_keys": k.deviceKeys(c.s.t), "one_time_keys": k.oneTimeKeys(c.s.t, 0, 2),
		"fallback_keys": map[string]any{"signed_curve25519:F": k.sign(c.s.t, map[string]any{"key": "f", "fallback": true})},
	}
}

func TestDehydratedDevice(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	bob.join(alice.room())
	for _, method := range []string{"GET", "DELETE"} {
		if a := alice.call(404, method, dehydratedPath, nil); a.code() != "M_NOT_FOUND" {
			t.Errorf("%s: %s", method, a.raw)
		}
	}
	since := bob.sync("").NextBatch
	if a := alice.call(200, "PUT", dehydratedPath, alice.dehydrated("DRY", 5)); a.text("device_id") != "DRY" {
		t.Error(a.raw)
	}
	got := alice.call(200, "GET", dehydratedPath, nil)
	if got.text("device_id") != "DRY" || got.body["device_data"].(map[string]any)["device_pickle"] != "<p>" {
		t.Error(got.raw)
	}
	if lists := bob.sync(since).DeviceLists; len(lists.Changed) != 1 {
		t.Errorf("nobody is told of the device: %+v", lists)
	}

	// Others encrypt for it as for any device.
	if keys := bob.queryKeys(alice.user).DeviceKeys[alice.user]; len(keys) != 1 || !strings.Contains(string(keys["DRY"]), "dried") {
		t.Errorf("keys: %s", keys)
	}
	for _, want := range []string{"K000", "K001", "F", "F"} {
		claim := bob.call(200, "POST", "/v3/keys/claim", map[string]any{"one_time_keys": map[string]any{string(alice.user): map[string]string{"DRY": "signed_curve25519"}}})
		if !strings.Contains(claim.raw, `"signed_curve25519:`+want+`"`) {
			t.Errorf("claimed %s, want %s", claim.raw, want)
		}
	}
	const n = dehydratedEvents + 5
	for i := range n {
		bob.call(200, "PUT", fmt.Sprintf("/v3/sendToDevice/m.room.encrypted/%d", i),
			map[string]any{"messages": map[string]any{string(alice.user): map[string]any{"DRY": map[string]int{"n": i}}}})
	}

	// The last of the user's devices goes; a new one finds it all.
	alice.call(200, "POST", "/v3/logout/all", nil)
	alice = s.logIn("alice", "")
	events := dehydratedPath + "/DRY/events"
	read := func() int {
		t.Helper()
		count, next := 0, ""
		for round := 0; ; round++ {
			a := alice.call(200, "POST", events, map[string]any{"next_batch": next})
			list := a.body["events"].([]any)
			for _, e := range list {
				event := e.(map[string]any)
				if event["sender"] != string(bob.user) || event["type"] != "m.room.encrypted" || event["content"].(map[string]any)["n"] != float64(count) {
					t.Fatalf("message %d: %v", count, event)
				}
				count++
			}
			if next = a.text("next_batch"); next == "" {
				t.Fatalf("no next_batch: %s", a.raw)
			}
			if len(list) == 0 {
				return count
			}
		}
	}
	for range 2 { // they stay
		if got := read(); got != n {
			t.Errorf("%d messages, want %d", got, n)
		}
	}
	// By GET the last page has no next_batch: matrix-js-sdk asks until there is none.
	first := alice.call(200, "GET", events, nil)
	if len(first.body["events"].([]any)) != dehydratedEvents || first.text("next_batch") == "" {
		t.Fatalf("by GET: %s", first.raw)
	}
	rest := alice.call(200, "GET", events+"?from="+first.text("next_batch"), nil)
	if list := rest.body["events"].([]any); len(list) != n-dehydratedEvents || list[0].(map[string]any)["content"].(map[string]any)["n"] != float64(dehydratedEvents) {
		t.Errorf("by GET, the second page: %s", rest.raw)
	}
	if next, ok := rest.body["next_batch"]; ok {
		t.Errorf("by GET: the last page has a next_batch, %v", next)
	}

	// Another takes its place.
	alice.call(200, "PUT", dehydratedPath, alice.dehydrated("DRIER", 6))
	if keys := bob.queryKeys(alice.user).DeviceKeys[alice.user]; len(keys) != 1 || keys["DRIER"] == nil {
		t.Errorf("keys: %s", keys)
	}
	if a := alice.call(403, "POST", events, map[string]any{}); a.code() != "M_FORBIDDEN" {
		t.Errorf("messages of the one before: %s", a.raw)
	}
	if a := alice.call(200, "DELETE", dehydratedPath, nil); a.text("device_id") != "DRIER" {
		t.Error(a.raw)
	}
	alice.call(404, "GET", dehydratedPath, nil)
	if keys := bob.queryKeys(alice.user).DeviceKeys[alice.user]; len(keys) != 0 {
		t.Errorf("keys of a deleted device: %s", keys)
	}
	if a := alice.call(403, "POST", dehydratedPath+"/DRIER/events", map[string]any{}); a.code() != "M_FORBIDDEN" {
		t.Errorf("messages of none: %s", a.raw)
	}
}

func TestDehydratedDeviceRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	with := func(key string, value any) map[string]any {
		body := alice.dehydrated("DRY", 5)
		body[key] = value
		return body
	}
	foreign := newKeyPair(alice.user, "DRY", 9)
	for _, test := range []struct {
		name   string
		body   any
		status int
		code   string
	}{
		{"nothing", map[string]any{}, 400, "M_MISSING_PARAM"},
		{"no data", with("device_data", nil), 400, "M_BAD_JSON"},
		{"no keys", map[string]any{"device_id": "DRY", "device_data": map[string]any{}}, 400, "M_MISSING_PARAM"},
		{"keys of another device", with("device_keys", newKeyPair(alice.user, "X", 5).deviceKeys(t)), 400, "M_INVALID_PARAM"},
		{"keys of another user", with("device_keys", newKeyPair(bob.user, "DRY", 5).deviceKeys(t)), 400, "M_INVALID_PARAM"},
		{"one-time keys that another has signed", with("one_time_keys", foreign.oneTimeKeys(t, 0, 1)), 400, "M_INVALID_SIGNATURE"},
		{"too much data", with("device_data", map[string]string{"x": strings.Repeat("x", maxDehydrated)}), 413, "M_TOO_LARGE"},
		{"a long ID", with("device_id", strings.Repeat("x", 256)), 400, "M_INVALID_PARAM"},
		{"a device that is logged in", alice.dehydrated(string(alice.device), 5), 400, "M_INVALID_PARAM"},
		{"no JSON", `{`, 400, "M_NOT_JSON"},
	} {
		if a := alice.call(test.status, "PUT", dehydratedPath, test.body); a.code() != test.code {
			t.Errorf("%s: %s, want %s", test.name, a.raw, test.code)
		}
	}
	alice.call(404, "GET", dehydratedPath, nil)
	alice.call(200, "GET", "/v3/account/whoami", nil)

	alice.call(200, "PUT", dehydratedPath, alice.dehydrated("DRY", 5))
	for _, next := range []string{"x", "-1", "99999999999999999999", "9999999"} {
		if a := alice.call(400, "POST", dehydratedPath+"/DRY/events", map[string]string{"next_batch": next}); a.code() != "M_INVALID_PARAM" {
			t.Errorf("next_batch %s: %s", next, a.raw)
		}
	}
	bob.call(404, "GET", dehydratedPath, nil)
	bob.call(403, "POST", dehydratedPath+"/DRY/events", map[string]any{})
	a := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": stagePassword, "user": "alice", "password": testPassword, "device_id": "DRY"})
	if a.status != 403 || a.code() != "M_FORBIDDEN" {
		t.Errorf("login as the dehydrated device: %d %s", a.status, a.raw)
	}
	for _, call := range []string{"GET ", "PUT ", "DELETE ", "POST /DRY/events", "GET /DRY/events"} {
		method, path, _ := strings.Cut(call, " ")
		if a := s.send(method, "/_matrix/client"+dehydratedPath+path, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
			t.Errorf("%s without a token: %d %s", call, a.status, a.raw)
		}
	}
	// A new password ends it too: who had the old one may have made it.
	alice.prove("POST", "/v3/account/password", map[string]any{"new_password": "new one"})
	alice.call(404, "GET", dehydratedPath, nil)
}
