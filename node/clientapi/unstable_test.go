package clientapi

import (
	"strings"
	"testing"
)

// What clients rely on before the specification has it: the flags by which they find it, and refusals as of any other endpoint.
func TestUnstableEndpoints(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	features, _ := s.send("GET", "/_matrix/client/versions", "", nil).body["unstable_features"].(map[string]any)
	for _, flag := range []string{"org.matrix.simplified_msc3575", "org.matrix.msc4140", "uk.tcpip.msc4133", "uk.tcpip.msc4133.stable"} {
		if features[flag] != true {
			t.Errorf("%s: %v", flag, features[flag])
		}
	}
	if a := alice.call(200, "GET", "/unstable/org.matrix.msc4143/rtc/transports", nil); strings.TrimSpace(a.raw) != `{"rtc_transports":[]}` {
		t.Errorf("transports: %s", a.raw)
	}
	for _, endpoint := range []string{
		"POST /unstable/org.matrix.simplified_msc3575/sync",
		"GET /unstable/org.matrix.msc4140/delayed_events",
		"POST /unstable/org.matrix.msc4140/delayed_events/x",
		"PUT /v3/rooms/!x:y/send/m.x/1?org.matrix.msc4140.delay=1000",
		"PUT /v3/rooms/!x:y/state/m.x?org.matrix.msc4140.delay=1000",
		"GET /unstable/org.matrix.msc4143/rtc/transports",
		"GET /v3/sync?org.matrix.msc4222.use_state_after=true",
		"POST /v3/user/" + string(alice.user) + "/openid/request_token",
	} {
		method, path, _ := strings.Cut(endpoint, " ")
		var body any
		if method != "GET" {
			body = "{}"
		}
		for token, code := range map[string]string{"": "M_MISSING_TOKEN", "nobodys": "M_UNKNOWN_TOKEN"} {
			if a := s.send(method, "/_matrix/client"+path, token, body); a.status != 401 || a.code() != code {
				t.Errorf("%s with token %q: %d %s", endpoint, token, a.status, a.raw)
			}
		}
	}
	if a := alice.call(400, "GET", "/unstable/im.nheko.summary/rooms/nowhere/summary", nil); a.code() != "M_INVALID_PARAM" {
		t.Errorf("summary: %s", a.raw)
	}
}

// Paths of drafts that became part of the specification as they were do what the stable ones do (MSC2918, MSC4133).
func TestUnstablePathsOfStableEndpoints(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	field, stable := "/unstable/uk.tcpip.msc4133/profile/"+string(alice.user)+"/m.tz", "/v3/profile/"+string(alice.user)+"/m.tz"
	alice.call(200, "PUT", field, map[string]any{"m.tz": "Europe/Berlin"})
	for _, path := range []string{field, stable} {
		if a := bob.call(200, "GET", path, nil); a.text("m.tz") != "Europe/Berlin" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	if a := bob.call(403, "PUT", field, map[string]any{"m.tz": "UTC"}); a.code() != "M_FORBIDDEN" {
		t.Errorf("another's: %s", a.raw)
	}
	if a := alice.call(400, "PUT", field, map[string]any{"m.zone": "UTC"}); a.code() != "M_MISSING_PARAM" {
		t.Errorf("another field: %s", a.raw)
	}
	if a := s.send("PUT", "/_matrix/client"+field, "", map[string]any{"m.tz": "UTC"}); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	alice.call(200, "DELETE", field, nil)
	alice.call(404, "GET", stable, nil)

	login := map[string]any{"type": stagePassword, "user": "alice", "password": testPassword, "device_id": "OLD", "org.matrix.msc2918.refresh_token": true}
	a := s.send("POST", "/_matrix/client/v3/login", "", login)
	if a.status != 200 || a.text("refresh_token") == "" || a.body["expires_in_ms"] == nil {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	first := a.text("access_token")
	if a = s.send("POST", unstableRefresh, "", map[string]any{"refresh_token": a.text("refresh_token")}); a.status != 200 || a.text("access_token") == "" || a.text("access_token") == first {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := s.send("POST", unstableRefresh, "", map[string]any{"refresh_token": "nobodys"}); a.status != 401 || a.code() != "M_UNKNOWN_TOKEN" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
