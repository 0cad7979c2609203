package clientapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// stages are the flows that a 401 offers, joined.
func stages(a answer) string {
	var names []string
	flows, _ := a.body["flows"].([]any)
	for _, flow := range flows {
		list, _ := flow.(map[string]any)["stages"].([]any)
		names = append(names, fmt.Sprint(list...))
	}
	return strings.Join(names, "|")
}

func TestRegisterWithToken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	const path = "/_matrix/client/v3/register"
	body := map[string]any{"username": "alice", "password": testPassword, "device_id": "PHONE", "initial_device_display_name": "phone"}

	a := s.send("POST", path, "", body)
	if a.status != 401 || stages(a) != "m.login.registration_token" || a.text("session") == "" || a.code() != "" {
		t.Fatalf("without auth: %d %s", a.status, a.raw)
	}
	session := a.text("session")
	for _, test := range []struct {
		name string
		auth map[string]any
		code string
	}{
		{"wrong token", map[string]any{"type": stageToken, "token": "guess", "session": session}, "M_FORBIDDEN"},
		{"no token", map[string]any{"type": stageToken, "session": session}, "M_FORBIDDEN"},
		{"another stage", map[string]any{"type": stageDummy, "session": session}, "M_UNRECOGNIZED"},
		{"unknown session", map[string]any{"type": stageToken, "token": testToken, "session": "x"}, "M_UNKNOWN"},
		{"session only", map[string]any{"session": session}, ""},
	} {
		body["auth"] = test.auth
		if a := s.send("POST", path, "", body); a.status != 401 || a.code() != test.code || stages(a) == "" || a.text("session") == "" {
			t.Errorf("%s: %d %s, want 401 %s", test.name, a.status, a.raw, test.code)
		}
	}
	body["auth"] = map[string]any{"type": stageToken, "token": testToken, "session": session}
	a = s.send("POST", path, "", body)
	user := "@alice:" + string(s.Server)
	if a.status != 200 || a.text("user_id") != user || a.text("device_id") != "PHONE" {
		t.Fatalf("register: %d %s", a.status, a.raw)
	}
	alice := client{s, eventgraph.UserID(user), "PHONE", a.text("access_token")}
	who := alice.call(200, "GET", "/v3/account/whoami", nil)
	if who.text("user_id") != user || who.text("device_id") != "PHONE" || who.body["is_guest"] != false {
		t.Errorf("whoami: %s", who.raw)
	}
	if p := alice.call(200, "GET", "/v3/profile/"+user, nil); p.text("displayname") != "alice" {
		t.Errorf("profile: %s", p.raw)
	}

	// The name is taken, and the session is spent.
	if a := s.send("POST", path, "", body); a.status != 400 || a.code() != "M_USER_IN_USE" {
		t.Errorf("again: %d %s", a.status, a.raw)
	}
	body["username"] = "bob"
	if a := s.send("POST", path, "", body); a.status != 401 || a.code() != "M_UNKNOWN" {
		t.Errorf("a spent session: %d %s", a.status, a.raw)
	}
}

func TestRegisterOpenAndClosed(t *testing.T) {
	t.Parallel()
	open := newTestServer(t, func(c *Config) { c.Registration = RegistrationOpen })
	const path = "/_matrix/client/v3/register"
	if a := open.send("POST", path, "", map[string]any{}); a.status != 401 || stages(a) != "m.login.dummy" {
		t.Errorf("open: %d %s", a.status, a.raw)
	}
	dummy := map[string]any{"type": stageDummy}
	a := open.send("POST", path, "", map[string]any{"password": "x", "auth": dummy})
	if a.status != 200 || a.text("access_token") == "" || !strings.HasPrefix(a.text("user_id"), "@") {
		t.Errorf("without a user name: %d %s", a.status, a.raw)
	}
	a = open.send("POST", path, "", map[string]any{"username": "quiet", "password": "x", "inhibit_login": true, "auth": dummy})
	if _, loggedIn := a.body["access_token"]; a.status != 200 || loggedIn {
		t.Errorf("inhibit_login: %d %s", a.status, a.raw)
	}
	for _, test := range []struct {
		path   string
		body   map[string]any
		status int
		code   string
	}{
		{path, map[string]any{"username": "quiet", "password": "x"}, 400, "M_USER_IN_USE"},
		{path, map[string]any{"username": "QUIET", "password": "x"}, 400, "M_USER_IN_USE"},
		{path, map[string]any{"username": "ümlaut", "password": "x"}, 400, "M_INVALID_USERNAME"},
		{path, map[string]any{"username": "", "password": "x"}, 400, "M_INVALID_USERNAME"},
		{path, map[string]any{"username": strings.Repeat("x", 250), "password": "x"}, 400, "M_INVALID_USERNAME"},
		{path, map[string]any{"username": "nopassword", "auth": dummy}, 400, "M_MISSING_PARAM"},
		{path, map[string]any{"username": "long", "password": strings.Repeat("x", 1000), "auth": dummy}, 400, "M_INVALID_PARAM"},
		{path, map[string]any{"username": "d", "password": "x", "device_id": strings.Repeat("x", 300)}, 400, "M_INVALID_PARAM"},
		{path + "?kind=guest", map[string]any{}, 403, "M_GUEST_ACCESS_FORBIDDEN"},
		{path + "?kind=cat", map[string]any{}, 400, "M_INVALID_PARAM"},
	} {
		if a := open.send("POST", test.path, "", test.body); a.status != test.status || a.code() != test.code {
			t.Errorf("%v: %d %s, want %d %s", test.body["username"], a.status, a.raw, test.status, test.code)
		}
	}
	for name, code := range map[string]string{"free": "", "quiet": "M_USER_IN_USE", "Quiet": "M_USER_IN_USE", "N%20O": "M_INVALID_USERNAME"} {
		if a := open.send("GET", path+"/available?username="+name, "", nil); a.code() != code || code == "" && a.body["available"] != true {
			t.Errorf("available %s: %d %s", name, a.status, a.raw)
		}
	}
	const validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token="
	if a := open.send("GET", validity+testToken, "", nil); a.status != 403 {
		t.Errorf("validity where no token is asked for: %d %s", a.status, a.raw)
	}

	closed := newTestServer(t, func(c *Config) { c.Registration = RegistrationClosed })
	if a := closed.send("POST", path, "", map[string]any{"username": "x", "password": "x", "auth": dummy}); a.status != 403 || a.code() != "M_FORBIDDEN" {
		t.Errorf("closed: %d %s", a.status, a.raw)
	}
	if _, err := closed.CreateUser(context.Background(), "made", testPassword); err != nil {
		t.Errorf("CreateUser: %v", err)
	}
	closed.logIn("made", "")

	token := newTestServer(t, nil)
	for guess, want := range map[string]bool{testToken: true, "no": false} {
		if a := token.send("GET", validity+guess, "", nil); a.status != 200 || a.body["valid"] != want {
			t.Errorf("validity of %q: %d %s", guess, a.status, a.raw)
		}
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	first := s.newClient("alice")
	const path = "/_matrix/client/v3/login"
	id := func(user string) map[string]any { return map[string]any{"type": "m.id.user", "user": user} }
	for _, test := range []struct {
		name   string
		body   map[string]any
		status int
		code   string
	}{
		{"localpart", map[string]any{"type": stagePassword, "identifier": id("alice"), "password": testPassword}, 200, ""},
		{"full ID", map[string]any{"type": stagePassword, "identifier": id(string(first.user)), "password": testPassword}, 200, ""},
		{"capitals", map[string]any{"type": stagePassword, "identifier": id("Alice"), "password": testPassword}, 200, ""},
		{"deprecated user", map[string]any{"type": stagePassword, "user": "alice", "password": testPassword}, 200, ""},
		{"wrong password", map[string]any{"type": stagePassword, "identifier": id("alice"), "password": "x"}, 403, "M_FORBIDDEN"},
		{"no password", map[string]any{"type": stagePassword, "identifier": id("alice")}, 403, "M_FORBIDDEN"},
		{"nobody", map[string]any{"type": stagePassword, "identifier": id("nobody"), "password": "x"}, 403, "M_FORBIDDEN"},
		{"another server", map[string]any{"type": stagePassword, "identifier": id("@alice:else"), "password": testPassword}, 403, "M_FORBIDDEN"},
		{"third party", map[string]any{"type": stagePassword, "identifier": map[string]any{"type": "m.id.thirdparty"}, "password": "x"}, 403, "M_FORBIDDEN"},
		{"no user", map[string]any{"type": stagePassword, "password": "x"}, 400, "M_MISSING_PARAM"},
		{"unknown token", map[string]any{"type": "m.login.token", "token": "x"}, 403, "M_FORBIDDEN"},
		{"another type", map[string]any{"type": "m.login.sso"}, 400, "M_UNKNOWN"},
		{"no type", map[string]any{}, 400, "M_UNKNOWN"},
	} {
		a := s.send("POST", path, "", test.body)
		if a.status != test.status || a.code() != test.code {
			t.Errorf("%s: %d %s, want %d %s", test.name, a.status, a.raw, test.status, test.code)
		}
		if a.status == 200 && (a.text("user_id") != string(first.user) || a.text("device_id") == "" || a.text("access_token") == "") {
			t.Errorf("%s: %s", test.name, a.raw)
		}
	}

	// A device that logs in again keeps its name and loses its older token.
	first.call(200, "PUT", "/v3/devices/"+string(first.device), map[string]any{"display_name": "mine"})
	again := s.logIn("alice", string(first.device))
	if first.call(401, "GET", "/v3/account/whoami", nil).code() != "M_UNKNOWN_TOKEN" {
		t.Error("the older token still works")
	}
	if d := again.call(200, "GET", "/v3/devices/"+string(again.device), nil); d.text("display_name") != "mine" || d.text("last_seen_ip") != "127.0.0.1" {
		t.Errorf("device: %s", d.raw)
	}
	s.advance(lastSeenEvery)
	if d := again.call(200, "GET", "/v3/devices/"+string(again.device), nil); d.body["last_seen_ts"] != float64(s.time().UnixMilli()) {
		t.Errorf("an hour later: %s", d.raw)
	}
	if a := s.send("GET", path, "", nil); !strings.Contains(a.raw, `{"type":"m.login.password"}`) {
		t.Errorf("flows: %s", a.raw)
	}
}

func TestTokensAreStoredHashed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.hashing = newHashing()
	alice := s.newClient("alice")
	if len(alice.token) < 43 {
		t.Errorf("token %q has less than 256 bits", alice.token)
	}
	err := s.Store.View(func(r *store.Reader) error {
		d, err := r.Device(alice.user, alice.device)
		if err != nil {
			return err
		}
		if strings.Contains(fmt.Sprintf("%+v", d), alice.token) {
			t.Errorf("the token stands in %+v", d)
		}
		account, err := r.Account(alice.user)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(account.PasswordHash, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Errorf("password hash %q", account.PasswordHash)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLogout(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	one := s.newClient("alice")
	two, three := s.logIn("alice", "TWO"), s.logIn("alice", "THREE")
	one.call(200, "POST", "/v3/logout", nil)
	one.call(401, "GET", "/v3/account/whoami", nil)
	if d := two.call(200, "GET", "/v3/devices", nil); strings.Contains(d.raw, string(one.device)) {
		t.Errorf("the device stays after logout: %s", d.raw)
	}
	two.call(200, "POST", "/v3/logout/all", nil)
	two.call(401, "GET", "/v3/account/whoami", nil)
	three.call(401, "GET", "/v3/account/whoami", nil)
	s.logIn("alice", "TWO")
}

// prove answers the 401 of a request by password.
func (c client) prove(method, path string, body map[string]any) answer {
	c.s.t.Helper()
	ask := c.call(401, method, path, body)
	if stages(ask) != stagePassword {
		c.s.t.Fatalf("%s %s asks for %q", method, path, stages(ask))
	}
	body["auth"] = map[string]any{
		"type": stagePassword, "session": ask.text("session"), "password": testPassword,
		"identifier": map[string]string{"type": "m.id.user", "user": string(c.user)},
	}
	return c.call(200, method, path, body)
}

func TestDeleteDevices(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for _, id := range []string{"A", "B", "C", "with/slash"} {
		s.logIn("alice", id)
	}
	alice.prove("DELETE", "/v3/devices/A", map[string]any{})
	alice.prove("DELETE", "/v3/devices/with%2Fslash", map[string]any{})
	alice.prove("POST", "/v3/delete_devices", map[string]any{"devices": []string{"B", "unknown"}})
	devices := alice.call(200, "GET", "/v3/devices", nil).body["devices"].([]any)
	var ids []string
	for _, d := range devices {
		ids = append(ids, d.(map[string]any)["device_id"].(string))
	}
	slices.Sort(ids)
	want := []string{"C", string(alice.device)}
	slices.Sort(want)
	if !slices.Equal(ids, want) {
		t.Errorf("devices %v, want %v", ids, want)
	}
	alice.call(404, "GET", "/v3/devices/A", nil)
	alice.call(404, "PUT", "/v3/devices/A", map[string]any{"display_name": "x"})

	// A proof serves only what it was asked for, and only its user.
	session := alice.call(401, "DELETE", "/v3/devices/C", map[string]any{}).text("session")
	auth := map[string]any{"type": stagePassword, "session": session, "password": testPassword}
	for _, test := range []struct {
		who  client
		path string
		auth map[string]any
		code string
	}{
		{alice, "/v3/devices/" + string(alice.device), auth, "M_UNKNOWN"},
		{bob, "/v3/devices/C", auth, "M_UNKNOWN"},
		{alice, "/v3/devices/C", map[string]any{"type": stagePassword, "session": session, "password": "x"}, "M_FORBIDDEN"},
		{alice, "/v3/devices/C", map[string]any{"type": stageDummy, "session": session}, "M_UNRECOGNIZED"},
	} {
		if a := test.who.call(401, "DELETE", test.path, map[string]any{"auth": test.auth}); a.code() != test.code {
			t.Errorf("%s with %v: %s, want %s", test.path, test.auth, a.raw, test.code)
		}
	}
	for _, name := range []string{"bob", string(bob.user)} {
		auth := map[string]any{"type": stagePassword, "session": session, "password": testPassword, "identifier": map[string]any{"type": "m.id.user", "user": name}}
		if a := alice.call(403, "DELETE", "/v3/devices/C", map[string]any{"auth": auth}); a.code() != "M_FORBIDDEN" {
			t.Errorf("proof of another user: %s", a.raw)
		}
	}
	s.advance(sessionExpires)
	if a := alice.call(401, "DELETE", "/v3/devices/C", map[string]any{"auth": auth}); a.code() != "M_UNKNOWN" {
		t.Errorf("an expired session: %s", a.raw)
	}
}

func TestAuthSessionsAreBounded(t *testing.T) {
	t.Parallel()
	s := newAuthSessions(func() time.Time { return time.UnixMilli(0) })
	first := s.begin("x", "", []string{stageDummy})
	for range maxSessions {
		s.begin("x", "", []string{stageDummy})
	}
	if s.get(first.id) != nil || s.open.all.Len() != openSessions {
		t.Errorf("%d sessions are open", s.open.all.Len())
	}
}

func TestChangePassword(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	other := s.logIn("alice", "OTHER")
	alice.prove("POST", "/v3/account/password", map[string]any{"new_password": "new one", "logout_devices": false})
	other.call(200, "GET", "/v3/account/whoami", nil)
	login := func(password string) int {
		return s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": stagePassword, "user": "alice", "password": password, "device_id": "X"}).status
	}
	if login(testPassword) != 403 || login("new one") != 200 {
		t.Error("the password has not changed")
	}
	ask := alice.call(401, "POST", "/v3/account/password", map[string]any{"new_password": testPassword})
	auth := map[string]any{"type": stagePassword, "session": ask.text("session"), "password": "new one"}
	alice.call(200, "POST", "/v3/account/password", map[string]any{"new_password": testPassword, "auth": auth})
	other.call(401, "GET", "/v3/account/whoami", nil)
	alice.call(200, "GET", "/v3/account/whoami", nil)
}

func TestDeactivate(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	bob.call(200, "PUT", "/v3/user/"+string(bob.user)+"/account_data/x", map[string]any{"a": 1})
	bob.newBackup()
	if a := bob.prove("POST", "/v3/account/deactivate", map[string]any{"erase": true}); a.text("id_server_unbind_result") != "success" {
		t.Errorf("deactivate: %s", a.raw)
	}
	bob.call(401, "GET", "/v3/account/whoami", nil)
	a := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": stagePassword, "user": "bob", "password": testPassword})
	if a.status != 403 || a.code() != "M_USER_DEACTIVATED" {
		t.Errorf("login: %d %s", a.status, a.raw)
	}
	if a := s.send("GET", "/_matrix/client/v3/register/available?username=bob", "", nil); a.code() != "M_USER_IN_USE" {
		t.Errorf("the name is free: %s", a.raw)
	}
	alice.call(404, "GET", "/v3/profile/"+string(bob.user), nil)
	err := s.Store.View(func(r *store.Reader) error {
		m, err := r.Member(room, bob.user)
		if err != nil {
			return err
		}
		if m.Membership != "leave" {
			t.Errorf("membership %q", m.Membership)
		}
		if _, err := r.KeyBackup(bob.user, 1); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the backup of room keys stays: %v", err)
		}
		return r.AllAccountData(bob.user, "", func(d *store.AccountData) (bool, error) {
			t.Errorf("account data %s stays", d.Type)
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Without an access token the proof says whose account it is (CS API, POST /account/password and /account/deactivate).
func TestAccountWithoutAccessToken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	send := func(path string, body map[string]any, user, password string) answer {
		t.Helper()
		ask := s.send("POST", "/_matrix/client"+path, "", body)
		if ask.status != 401 || stages(ask) != stagePassword || ask.text("session") == "" {
			t.Fatalf("%s: %d %s", path, ask.status, ask.raw)
		}
		body["auth"] = map[string]any{"type": stagePassword, "session": ask.text("session"), "password": password,
			"identifier": map[string]string{"type": "m.id.user", "user": user}}
		defer delete(body, "auth")
		return s.send("POST", "/_matrix/client"+path, "", body)
	}
	for _, path := range []string{"/v3/account/password", "/v3/account/deactivate"} {
		for _, who := range []string{"alice", "nobody", ""} {
			if a := send(path, map[string]any{"new_password": "x"}, who, "wrong"); a.status != 401 || a.code() != "M_FORBIDDEN" {
				t.Errorf("%s of %q with a wrong password: %d %s", path, who, a.status, a.raw)
			}
		}
		if a := s.send("POST", "/_matrix/client"+path, "nonsense", map[string]any{}); a.status != 401 || a.code() != "M_UNKNOWN_TOKEN" {
			t.Errorf("%s with an unknown token: %d %s", path, a.status, a.raw)
		}
	}
	if a := send("/v3/account/password", map[string]any{"new_password": "new one"}, "alice", testPassword); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	alice.call(401, "GET", "/v3/account/whoami", nil)
	bob.call(200, "GET", "/v3/account/whoami", nil)
	if a := send("/v3/account/deactivate", map[string]any{}, string(alice.user), "new one"); a.status != 200 || a.text("id_server_unbind_result") != "success" {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	if a := send("/v3/account/password", map[string]any{"new_password": "x"}, "alice", "new one"); a.status != 403 || a.code() != "M_USER_DEACTIVATED" {
		t.Errorf("a deactivated account: %d %s", a.status, a.raw)
	}
	err := s.Store.View(func(r *store.Reader) error {
		m, err := r.Member(room, alice.user)
		if err == nil && m.Membership != "leave" {
			t.Errorf("membership %q", m.Membership)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	bob.call(200, "GET", "/v3/account/whoami", nil)
}

// A field that a user has not set is not in the answer to another server, which may itself say null (SS API, GET /query/profile); clients are
// told that it is not there.
func TestUnsetProfileFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	for field, want := range map[string]string{"displayname": `{"displayname":"alice"}`, "avatar_url": `{}`} {
		if raw, err := s.Profile(t.Context(), alice.user, field); err != nil || string(raw) != want {
			t.Errorf("%s: %s %v, want %s", field, raw, err, want)
		}
	}
	if _, err := s.Profile(t.Context(), "@nobody:"+eventgraph.UserID(s.Server), "displayname"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	const far = "@a:far"
	s.remote.profiles = map[eventgraph.UserID]string{far: `{"displayname":"A","avatar_url":null}`}
	if a := alice.call(404, "GET", "/v3/profile/"+far+"/avatar_url", nil); a.code() != "M_NOT_FOUND" {
		t.Errorf("null: %s", a.raw)
	}
	if a := alice.call(200, "GET", "/v3/profile/"+far, nil); strings.TrimSpace(a.raw) != `{"displayname":"A"}` {
		t.Errorf("all: %q", a.raw)
	}
}

// A device of which little is known has all fields: matrix-nio refuses the list of devices otherwise.
func TestDevicesHaveAllFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	made := s.time().UnixMilli()
	s.update(func(tx *store.Tx) error {
		return tx.PutDevice(&store.Device{User: alice.user, ID: "SILENT", CreatedTS: made, Token: [32]byte{1}})
	})
	devices := alice.call(200, "GET", "/v3/devices", nil).body["devices"].([]any)
	for _, d := range append(devices, any(alice.call(200, "GET", "/v3/devices/SILENT", nil).body)) {
		d := d.(map[string]any)
		for _, field := range []string{"display_name", "last_seen_ip"} {
			if _, ok := d[field].(string); !ok {
				t.Errorf("%s in %v", field, d)
			}
		}
		if d["last_seen_ts"] != float64(made) {
			t.Errorf("last_seen_ts of %v, want %d", d, made)
		}
	}
	if len(devices) != 2 {
		t.Errorf("%v", devices)
	}
}
