package clientapi

import (
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/store"
)

// CS API, Account locking: a locked account can log out, and nothing else; its sessions serve again once it is unlocked.
func TestLockedAccount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	phone := s.logIn("alice", "PHONE")
	lock := func(on bool) {
		t.Helper()
		if changed, err := s.SetLocked(t.Context(), alice.user, on); err != nil || !changed {
			t.Fatal(changed, err)
		}
	}
	locked := func(a answer) {
		t.Helper()
		if a.status != 401 || a.code() != "M_USER_LOCKED" || a.body["soft_logout"] != true {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	refresher := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{
		"type": stagePassword, "user": "alice", "password": testPassword, "device_id": "R", "refresh_token": true})
	alice.call(200, "GET", "/v3/account/whoami", nil) // its session is in memory
	lock(true)
	if changed, err := s.SetLocked(t.Context(), alice.user, true); err != nil || changed {
		t.Error("locked twice", changed, err)
	}
	for _, c := range []client{alice, phone} { // the one in memory, the other not
		locked(c.call(401, "GET", "/v3/account/whoami", nil))
		locked(c.call(401, "GET", "/v3/sync", nil))
		locked(c.call(401, "POST", "/v3/account/deactivate", map[string]any{})) // a token is not needed there
	}
	locked(s.send("POST", "/_matrix/client/v3/refresh", "", map[string]any{"refresh_token": refresher.text("refresh_token")}))
	login := func(password string) answer {
		return s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": stagePassword, "user": "alice", "password": password})
	}
	locked(login(testPassword))
	if a := login("wrong"); a.status != 403 || a.code() != "M_FORBIDDEN" {
		t.Errorf("who does not know the password is told that the account is locked: %s", a.raw)
	}
	bob.call(200, "GET", "/v3/account/whoami", nil)
	phone.call(200, "POST", "/v3/logout", map[string]any{})
	lock(false)
	alice.call(200, "GET", "/v3/account/whoami", nil)
	if a := phone.call(401, "GET", "/v3/account/whoami", nil); a.code() != "M_UNKNOWN_TOKEN" {
		t.Errorf("logged out while locked: %s", a.raw)
	}
	if a := login(testPassword); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

func TestAccountsAndDevices(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	other := s.logIn("alice", "OTHER")
	alice.join(bob.room())
	list, err := s.Accounts()
	if err != nil || len(list) != 2 || list[0].User != alice.user || list[0].Devices != 2 || list[0].Rooms != 1 || list[0].LastSeenTS == 0 || list[1].Disabled {
		t.Errorf("%+v %v", list, err)
	}
	devices, err := s.DevicesOf(alice.user)
	if err != nil || len(devices) != 2 || !slices.ContainsFunc(devices, func(d DeviceStatus) bool { return d.ID == "OTHER" && d.LastSeenIP == "127.0.0.1" }) {
		t.Errorf("%+v %v", devices, err)
	}
	if err := s.DeleteDevices(t.Context(), alice.user, []store.DeviceID{"OTHER", "NONE"}); err == nil {
		t.Error("a device that is not there was deleted")
	}
	other.call(200, "GET", "/v3/account/whoami", nil)
	if err := s.DeleteDevices(t.Context(), alice.user, []store.DeviceID{"OTHER"}); err != nil {
		t.Error(err)
	}
	other.call(401, "GET", "/v3/account/whoami", nil)
	if err := s.ResetPassword(t.Context(), alice.user, "new one", false); err != nil {
		t.Fatal(err)
	}
	alice.call(200, "GET", "/v3/account/whoami", nil)
	if err := s.ResetPassword(t.Context(), alice.user, "newer", true); err != nil {
		t.Fatal(err)
	}
	alice.call(401, "GET", "/v3/account/whoami", nil)
	if err := s.ResetPassword(t.Context(), alice.user, "", true); err == nil {
		t.Error("an empty password was set")
	}
	if a := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": stagePassword, "user": "alice", "password": "newer"}); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
