package clientapi

import (
	"testing"
	"time"
)

func TestTurnServer(t *testing.T) {
	t.Parallel()
	const path = "/_matrix/client/v3/voip/turnServer"
	alice := newTestServer(t, nil).newClient("alice")
	if a := alice.call(200, "GET", "/v3/voip/turnServer", nil); len(a.body) != 0 {
		t.Errorf("without a relay: %s", a.raw)
	}
	wantError(t, "no token", client{s: alice.s}.raw("GET", path, "", ""), 401, "M_MISSING_TOKEN")

	uris := []string{"turn:turn.example.org?transport=udp", "turns:turn.example.org:443"}
	alice = newTestServer(t, func(c *Config) {
		c.TURN = &TURN{URIs: uris, User: "all", Password: "the same", TTL: time.Hour}
		c.RateLimits = true
	}).newClient("alice")
	want := `{"password":"the same","ttl":3600,"uris":["turn:turn.example.org?transport=udp","turns:turn.example.org:443"],"username":"all"}` + "\n"
	if a := alice.call(200, "GET", "/r0/voip/turnServer", nil); a.raw != want {
		t.Errorf("fixed: %s", a.raw)
	}
	limited := false
	for range userBurst + 1 {
		if a := alice.raw("GET", path, "", ""); a.status == 429 {
			wantError(t, "too often", a, 429, "M_LIMIT_EXCEEDED")
			limited = true
		}
	}
	if !limited {
		t.Error("no limit on how often it is asked for")
	}

	alice = newTestServer(t, func(c *Config) { c.TURN = &TURN{URIs: uris, Secret: "north", TTL: 12 * time.Hour} }).newClient("alice")
	a := alice.call(200, "GET", "/v3/voip/turnServer", nil)
	// printf %s NAME | openssl dgst -sha1 -hmac north -binary | base64
	name, password := "1800043200:"+string(alice.user), "JNSIqU3u97A9S9W5yqsp8KL4EtQ="
	if a.text("username") != name || a.text("password") != password || a.body["ttl"] != 43200.0 {
		t.Errorf("with a secret: %s", a.raw)
	}
}

func TestTurnConfiguration(t *testing.T) {
	t.Parallel()
	uris := []string{"turn:example.org"}
	for name, c := range map[string]struct {
		turn TURN
		ok   bool
	}{
		"secret":       {TURN{URIs: uris, Secret: "s", TTL: time.Hour}, true},
		"fixed":        {TURN{URIs: uris, User: "u", Password: "p", TTL: time.Hour}, true},
		"both":         {TURN{URIs: uris, User: "u", Password: "p", Secret: "s", TTL: time.Hour}, false},
		"no password":  {TURN{URIs: uris, User: "u", TTL: time.Hour}, false},
		"nothing":      {TURN{URIs: uris, TTL: time.Hour}, false},
		"no URI":       {TURN{Secret: "s", TTL: time.Hour}, false},
		"no time":      {TURN{URIs: uris, Secret: "s"}, false},
		"other scheme": {TURN{URIs: []string{"stun:example.org"}, Secret: "s", TTL: time.Hour}, false},
		"slashes":      {TURN{URIs: []string{"turn://example.org"}, Secret: "s", TTL: time.Hour}, false},
	} {
		if err := c.turn.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
