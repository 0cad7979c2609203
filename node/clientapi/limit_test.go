package clientapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// page sends a request as a browser does for a web page.
func (s *testServer) page(origin, method, path string, body string) answer {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if origin != "" {
		req.Header.Set("Origin", origin)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	return s.do(req)
}

// A web page that calls as often as it can keeps no client from refreshing its token, logging in or confirming, nor another page from calling.
func TestPagesHaveTheirOwnLimit(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.RateLimits = true })
	s.newClient("alice")
	s.advance(time.Minute)
	refused := 0
	for range 2 * strangBurst {
		if s.page("https://evil.example", "GET", "/_matrix/client/versions", "").status == 429 {
			refused++
		}
	}
	if refused != strangBurst {
		t.Errorf("%d of %d requests of a page are refused", refused, 2*strangBurst)
	}
	if a := s.send("GET", "/_matrix/client/versions", "", nil); a.status != 200 {
		t.Errorf("a program: %d %s", a.status, a.raw)
	}
	if a := s.page("https://client.example", "GET", "/_matrix/client/versions", ""); a.status != 200 {
		t.Errorf("another page: %d %s", a.status, a.raw)
	}
	for range guessBurst {
		s.page("https://evil.example", "POST", "/_matrix/client/v3/login", `{"type":"m.login.password","user":"alice","password":"wrong"}`)
	}
	if a := s.page("", "GET", "/_matrix/client/versions", ""); a.status != 200 {
		t.Errorf("a page that is not named: %d %s", a.status, a.raw)
	}
	right := map[string]any{"type": "m.login.password", "user": "alice", "password": testPassword, "refresh_token": true}
	login := s.send("POST", "/_matrix/client/v3/login", "", right)
	if login.status != 200 {
		t.Errorf("login: %d %s", login.status, login.raw)
	}

	// All that call without a token have used up what they may: who has a refresh token is known by it.
	for range 2 * strangBurst {
		s.send("GET", "/_matrix/client/versions", "", nil)
	}
	refresh := func(token string) answer {
		return s.send("POST", "/_matrix/client/v3/refresh", "", map[string]string{"refresh_token": token})
	}
	if a := refresh("x"); a.status != 429 {
		t.Errorf("an unknown refresh token: %d %s", a.status, a.raw)
	}
	if a := refresh(login.text("refresh_token")); a.status != 200 {
		t.Errorf("refresh: %d %s", a.status, a.raw)
	}
}

// Wrong passwords of callers without a token keep nobody from confirming by password what a device asks for.
func TestGuessesAreCountedForEachGuesser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.RateLimits = true })
	alice := s.newClient("alice")
	login := func(password string) answer {
		return s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": "m.login.password", "user": "alice", "password": password})
	}
	confirm := func(password string) answer {
		return s.send("POST", "/_matrix/client/v1/login/get_token", alice.token, map[string]any{
			"auth": map[string]any{"type": "m.login.password", "user": "alice", "password": password},
		})
	}
	for range guessBurst {
		login("wrong")
	}
	if a := login(testPassword); a.status != 429 {
		t.Errorf("login after too many wrong passwords: %d %s", a.status, a.raw)
	}
	if a := confirm(testPassword); a.status != 200 {
		t.Errorf("the device confirms: %d %s", a.status, a.raw)
	}
	for range guessBurst {
		confirm("wrong")
	}
	if a := confirm(testPassword); a.status != 429 {
		t.Errorf("a device after too many wrong passwords: %d %s", a.status, a.raw)
	}
}

// One user's sessions and tokens push out those of nobody else.
func TestSharesOfSessions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, mallory := s.newClient("alice"), s.newClient("mallory")
	const getToken = "/_matrix/client/v1/login/get_token"
	session := s.send("POST", getToken, alice.token, map[string]any{}).text("session")
	openID := func(c client) string {
		return s.send("POST", "/_matrix/client/v3/user/"+string(c.user)+"/openid/request_token", c.token, map[string]any{}).text("access_token")
	}
	token, first := openID(alice), openID(mallory)
	for range userShortTokens {
		openID(mallory)
	}
	info := "/_matrix/federation/v1/openid/userinfo?access_token="
	if a := s.send("GET", info+token, "", nil); a.status != 200 {
		t.Errorf("alice's OpenID token: %d %s", a.status, a.raw)
	}
	if a := s.send("GET", info+first, "", nil); a.status != 401 {
		t.Errorf("the oldest of too many OpenID tokens: %d %s", a.status, a.raw)
	}
	for range maxSessions + 1 {
		s.auths.begin("x", mallory.user, []string{stagePassword})
		s.auths.begin("x", "", []string{stagePassword})
	}
	a := s.send("POST", getToken, alice.token, map[string]any{
		"auth": map[string]any{"type": "m.login.password", "session": session, "user": "alice", "password": testPassword},
	})
	if a.status != 200 {
		t.Errorf("alice's session: %d %s", a.status, a.raw)
	}
}

// What is used, removed or pushed out by the whole makes place in a user's share.
func TestShares(t *testing.T) {
	t.Parallel()
	s := newShares[string, int](6, func(eventgraph.UserID) int { return 3 })
	for i := range 5 {
		s.add("@a:x", fmt.Sprint("a", i), i)
	}
	for key, want := range map[string]bool{"a0": false, "a1": false, "a2": true, "a3": true, "a4": true} {
		if _, ok := s.get(key); ok != want {
			t.Errorf("%s is held: %v", key, ok)
		}
	}
	if !s.remove("a2") || s.remove("a2") {
		t.Error("what is there is removed once")
	}
	s.add("@a:x", "a5", 5)
	if _, ok := s.get("a3"); !ok {
		t.Error("a place that is free again was not used")
	}
}
