package clientapi

import "testing"

func TestThirdPartyIDsAreRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	if a := alice.call(200, "GET", "/v3/account/3pid", nil); a.raw != `{"threepids":[]}`+"\n" {
		t.Error(a.raw)
	}
	capabilities := alice.call(200, "GET", "/v3/capabilities", nil).body["capabilities"].(map[string]any)
	if changes := capabilities["m.3pid_changes"].(map[string]any); changes["enabled"] != false {
		t.Errorf("m.3pid_changes: %v", changes)
	}
	body := map[string]any{"sid": "1", "client_secret": "x", "email": "a@example.org", "send_attempt": 1}
	for _, test := range []struct {
		path   string
		public bool
		status int
		code   string
	}{
		{"/v3/account/3pid", false, 403, "M_FORBIDDEN"},
		{"/v3/account/3pid/add", false, 403, "M_FORBIDDEN"},
		{"/v3/account/3pid/bind", false, 403, "M_FORBIDDEN"},
		{"/v3/account/3pid/delete", false, 403, "M_FORBIDDEN"},
		{"/v3/account/3pid/unbind", false, 403, "M_FORBIDDEN"},
		{"/v3/account/3pid/email/requestToken", true, 403, "M_THREEPID_DENIED"},
		{"/v3/account/3pid/msisdn/requestToken", true, 403, "M_THREEPID_DENIED"},
		{"/v3/register/email/requestToken", true, 403, "M_THREEPID_DENIED"},
		{"/v3/register/msisdn/requestToken", true, 403, "M_THREEPID_DENIED"},
		{"/v3/account/password/email/requestToken", true, 400, "M_THREEPID_NOT_FOUND"},
		{"/v3/account/password/msisdn/requestToken", true, 400, "M_THREEPID_NOT_FOUND"},
	} {
		if a := alice.call(test.status, "POST", test.path, body); a.code() != test.code {
			t.Errorf("%s: %s, want %s", test.path, a.raw, test.code)
		}
		if a := alice.call(400, "POST", test.path, `{`); a.code() != "M_NOT_JSON" {
			t.Errorf("%s: %s", test.path, a.raw)
		}
		want := "M_MISSING_TOKEN"
		if test.public {
			want = test.code
		}
		if a := s.send("POST", "/_matrix/client"+test.path, "", body); a.code() != want {
			t.Errorf("%s without a token: %d %s, want %s", test.path, a.status, a.raw, want)
		}
	}
}
