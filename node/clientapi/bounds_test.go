package clientapi

import (
	"strings"
	"testing"
)

// What strangers say of users is not kept.
func TestNamesTooLongForAUserAreNotKept(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.RateLimits = true })
	a := s.send("POST", "/_matrix/client/v3/login", "", map[string]string{
		"type": "m.login.password", "user": strings.Repeat("a", 50_000), "password": "x",
	})
	if a.status != 403 || a.code() != "M_FORBIDDEN" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if n := s.limits.guesses.Len(); n != 0 {
		t.Errorf("%d names kept", n)
	}
}
