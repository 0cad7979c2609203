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
	for _, flag := range []string{"org.matrix.simplified_msc3575", "org.matrix.msc4140"} {
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
