package clientapi

import (
	"strconv"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func TestLoginToken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	const path = "/v1/login/get_token"
	logIn := func(token string) answer {
		return s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": loginToken, "token": token, "device_id": "NEW"})
	}
	get := func() string {
		t.Helper()
		a := alice.prove("POST", path, map[string]any{})
		if a.text("login_token") == "" || a.body["expires_in_ms"] != float64(loginTokenLives.Milliseconds()) {
			t.Fatal(a.raw)
		}
		return a.text("login_token")
	}
	refused := func(what, token string) {
		t.Helper()
		if a := logIn(token); a.status != 403 || a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	if a := s.send("POST", "/_matrix/client"+path, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("without an access token: %d %s", a.status, a.raw)
	}
	wrong := map[string]any{"auth": map[string]any{"type": stagePassword, "password": "x"}}
	if a := alice.call(401, "POST", path, wrong); a.code() != "M_FORBIDDEN" {
		t.Errorf("a wrong password: %s", a.raw)
	}

	token := get()
	if a := logIn(token); a.status != 200 || a.text("user_id") != string(alice.user) || a.text("device_id") != "NEW" {
		t.Errorf("login: %d %s", a.status, a.raw)
	}
	refused("a second time", token)
	refused("an access token", alice.token)
	refused("none", "")
	token = get()
	s.advance(loginTokenLives)
	refused("too late", token)
	token = get()
	alice.call(200, "POST", "/v3/logout", nil)
	refused("of a device that has logged out", token)

	if a := s.logIn("alice", "").call(200, "GET", "/v3/capabilities", nil); a.body["capabilities"].(map[string]any)["m.get_login_token"].(map[string]any)["enabled"] != true {
		t.Error(a.raw)
	}
	if a := s.send("GET", "/_matrix/client/v3/login", "", nil); a.body["flows"].([]any)[1].(map[string]any)["get_login_token"] != true {
		t.Error(a.raw)
	}
}

func TestOpenID(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	path := "/v3/user/" + string(alice.user) + "/openid/request_token"
	a := alice.call(200, "POST", path, map[string]any{})
	token := a.text("access_token")
	if token == "" || a.text("token_type") != "Bearer" || a.text("matrix_server_name") != string(s.Server) || a.body["expires_in"] != openIDLives.Seconds() {
		t.Fatal(a.raw)
	}
	if a := bob.call(403, "POST", path, map[string]any{}); a.code() != "M_FORBIDDEN" {
		t.Errorf("of another user: %s", a.raw)
	}
	if a := s.send("POST", "/_matrix/client"+path, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("without an access token: %d %s", a.status, a.raw)
	}
	if a := alice.call(400, "POST", path, `[`); a.code() != "M_NOT_JSON" {
		t.Error(a.raw)
	}
	const info = "/_matrix/federation/v1/openid/userinfo?access_token="
	for range 2 {
		if a := s.send("GET", info+token, "", nil); a.status != 200 || a.text("sub") != string(alice.user) {
			t.Errorf("userinfo: %d %s", a.status, a.raw)
		}
	}
	client{s, alice.user, alice.device, token}.ended(false) // it serves for nothing else
	unknown := func(what, token, code string) {
		t.Helper()
		if a := s.send("GET", info+token, "", nil); a.status != 401 || a.code() != code {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	unknown("none", "", "M_MISSING_TOKEN")
	unknown("an access token", alice.token, "M_UNKNOWN_TOKEN")
	other := alice.call(200, "POST", path, nil).text("access_token")
	s.advance(openIDLives - time.Minute)
	if user, err := s.OpenIDUser(other); err != nil || user != alice.user {
		t.Errorf("%s, %v", user, err)
	}
	s.advance(time.Minute)
	unknown("too late", token, "M_UNKNOWN_TOKEN")
	last := alice.call(200, "POST", path, nil).text("access_token")
	alice.call(200, "POST", "/v3/logout", nil)
	unknown("of a device that has logged out", last, "M_UNKNOWN_TOKEN")
}

func TestShortTokensAreBounded(t *testing.T) {
	t.Parallel()
	tokens := newShortTokens(func() time.Time { return time.UnixMilli(0) }, time.Minute)
	q := &request{user: "@a:x", device: store.DeviceID("D")}
	first := tokens.add(q)
	for i := range 2 * maxShortTokens {
		q.user = eventgraph.UserID("@u" + strconv.Itoa(i%100) + ":x")
		tokens.add(q)
	}
	if _, ok := tokens.find(first); ok || tokens.held.all.Len() != maxShortTokens {
		t.Errorf("%d tokens are held", tokens.held.all.Len())
	}
}
