package clientapi

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// logInRefreshing logs in as a client that can refresh its token, and returns the refresh token too.
func (s *testServer) logInRefreshing(localpart, device string) (client, string) {
	s.t.Helper()
	a := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{
		"type": stagePassword, "user": localpart, "password": testPassword, "device_id": device, "refresh_token": true,
	})
	if a.status != 200 || a.text("refresh_token") == "" || a.body["expires_in_ms"] != float64(accessTokenLives.Milliseconds()) {
		s.t.Fatalf("login: %d %s", a.status, a.raw)
	}
	return client{s, eventgraph.UserID(a.text("user_id")), store.DeviceID(a.text("device_id")), a.text("access_token")}, a.text("refresh_token")
}

func (s *testServer) refreshToken(token string) answer {
	s.t.Helper()
	return s.send("POST", "/_matrix/client/v3/refresh", "", map[string]any{"refresh_token": token})
}

// refreshed is the client with the tokens of a refresh that succeeded.
func (c client) refreshed(token string) (client, string) {
	c.s.t.Helper()
	a := c.s.refreshToken(token)
	if a.status != 200 || a.text("access_token") == "" || a.text("refresh_token") == "" || a.body["expires_in_ms"] == nil {
		c.s.t.Fatalf("refresh: %d %s", a.status, a.raw)
	}
	c.token = a.text("access_token")
	return c, a.text("refresh_token")
}

// ended checks how the client's token is refused.
func (c client) ended(soft bool) {
	c.s.t.Helper()
	a := c.call(401, "GET", "/v3/account/whoami", nil)
	if a.code() != "M_UNKNOWN_TOKEN" || (a.body["soft_logout"] == true) != soft {
		c.s.t.Errorf("%s, want soft_logout %v", a.raw, soft)
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.newClient("alice")
	one, r1 := s.logInRefreshing("alice", "PHONE")
	one.call(200, "GET", "/v3/account/whoami", nil)

	// Until a token of the next pair is used, those in use serve on: the answer may have been lost.
	lost, _ := one.refreshed(r1)
	one.call(200, "GET", "/v3/account/whoami", nil)
	two, r2 := one.refreshed(r1)
	one.call(200, "GET", "/v3/account/whoami", nil)
	lost.ended(false) // never used, and replaced
	if who := two.call(200, "GET", "/v3/account/whoami", nil); who.text("device_id") != "PHONE" {
		t.Errorf("whoami: %s", who.raw)
	}
	one.ended(true)
	if a := s.refreshToken(r1); a.status != 401 || a.code() != "M_UNKNOWN_TOKEN" || a.body["soft_logout"] != true {
		t.Errorf("a refresh token that has been used: %d %s", a.status, a.raw)
	}

	// To use the next refresh token is to use the next pair.
	three, r3 := two.refreshed(r2)
	four, r4 := three.refreshed(r3)
	two.ended(true)
	three.call(200, "GET", "/v3/account/whoami", nil)
	one.ended(false) // of the pair before the previous nothing is known
	four.call(200, "GET", "/v3/account/whoami", nil)
	three.ended(true)

	// An access token expires; its refresh token does not.
	s.advance(accessTokenLives - time.Millisecond)
	four.call(200, "GET", "/v3/account/whoami", nil)
	s.advance(time.Millisecond)
	four.ended(true)
	s.advance(1000 * time.Hour)
	five, r5 := four.refreshed(r4)
	s.advance(accessTokenLives)
	five.ended(true) // expired without having been used
	six, r6 := five.refreshed(r5)
	six.call(200, "GET", "/v3/account/whoami", nil)

	for name, a := range map[string]answer{
		"an unknown token": s.refreshToken("x"),
		"an access token":  s.refreshToken(six.token),
	} {
		if a.status != 401 || a.code() != "M_UNKNOWN_TOKEN" || a.body["soft_logout"] != nil {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	if a := s.send("POST", "/_matrix/client/v3/refresh", "", map[string]any{}); a.status != 400 || a.code() != "M_MISSING_PARAM" {
		t.Errorf("no token: %d %s", a.status, a.raw)
	}
	client{s, six.user, six.device, r6}.ended(false) // a refresh token is no access token

	six.call(200, "POST", "/v3/logout", nil)
	six.ended(false)
	if a := s.refreshToken(r6); a.status != 401 || a.body["soft_logout"] != nil {
		t.Errorf("after logout: %d %s", a.status, a.raw)
	}
}

// A client that logs in again without refreshing has one token, which does not expire; nothing of the older ones stays.
func TestLoginEndsRefreshTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.newClient("alice")
	old, r1 := s.logInRefreshing("alice", "PHONE")
	next, r2 := old.refreshed(r1)
	again := s.logIn("alice", "PHONE")
	old.ended(false)
	next.ended(false)
	for _, token := range []string{r1, r2} {
		if a := s.refreshToken(token); a.status != 401 || a.body["soft_logout"] != nil {
			t.Errorf("refresh: %d %s", a.status, a.raw)
		}
	}
	s.advance(1000 * time.Hour)
	again.call(200, "GET", "/v3/account/whoami", nil)
}

func TestRegisterWithRefreshToken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.Registration = RegistrationOpen })
	a := s.send("POST", "/_matrix/client/v3/register", "", map[string]any{"username": "bob", "password": "x", "refresh_token": true, "auth": map[string]any{"type": stageDummy}})
	if a.status != 200 || a.text("refresh_token") == "" || a.body["expires_in_ms"] == nil {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	if a := s.refreshToken(a.text("refresh_token")); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// Transaction IDs are the device's, whichever token it has (CS API, Transaction identifiers).
func TestTransactionsOutlastRefresh(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.newClient("alice")
	alice, refresh := s.logInRefreshing("alice", "PHONE")
	room := alice.room()
	path := "/v3/rooms/" + string(room) + "/send/m.room.message/abc"
	body := map[string]string{"msgtype": "m.text", "body": "first"}
	first := alice.call(200, "PUT", path, body).text("event_id")
	alice, _ = alice.refreshed(refresh)
	if got := alice.call(200, "GET", "/v3/sync", nil); !strings.Contains(got.raw, `"transaction_id":"abc"`) {
		t.Errorf("sync: %s", got.raw)
	}
	if again := alice.call(200, "PUT", path, body).text("event_id"); again != first {
		t.Errorf("sent again as %s, first as %s", again, first)
	}
}

// Many requests with a new token at once use it for the first time only once.
func TestFirstUseOfANewTokenAtOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.newClient("alice")
	old, refresh := s.logInRefreshing("alice", "PHONE")
	next, _ := old.refreshed(refresh)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if a := s.send("GET", "/_matrix/client/v3/account/whoami", next.token, nil); a.status != 200 {
				t.Errorf("%d %s", a.status, a.raw)
			}
		})
	}
	group.Wait()
	old.ended(true)
	err := s.Store.View(func(r *store.Reader) error {
		d, err := r.Device(next.user, next.device)
		if err == nil && (d.Token != hashOf(next.token) || d.Prev.Token != hashOf(old.token) || d.Next != store.TokenPair{}) {
			t.Errorf("%+v", d)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
