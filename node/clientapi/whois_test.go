package clientapi

import "testing"

func TestWhois(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	alice.call(200, "PUT", dehydratedPath, alice.dehydrated("DRY", 5))
	path := "/v3/admin/whois/" + string(alice.user)
	a := alice.call(200, "GET", path, nil)
	devices := a.body["devices"].(map[string]any)
	sessions := devices[string(alice.device)].(map[string]any)["sessions"].([]any)
	connection := sessions[0].(map[string]any)["connections"].([]any)[0].(map[string]any)
	if a.text("user_id") != string(alice.user) || len(devices) != 2 || connection["ip"] != "127.0.0.1" || connection["last_seen"] != float64(s.time().UnixMilli()) {
		t.Error(a.raw)
	}
	if list := devices["DRY"].(map[string]any)["sessions"].([]any); len(list) != 0 {
		t.Errorf("sessions of a dehydrated device: %v", list)
	}
	if a := bob.call(403, "GET", path, nil); a.code() != "M_FORBIDDEN" {
		t.Errorf("another user: %s", a.raw)
	}
	if a := s.send("GET", "/_matrix/client"+path, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("without a token: %d %s", a.status, a.raw)
	}
}
