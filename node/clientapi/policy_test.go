package clientapi

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// declining is a Remote whose policy server has something against everything.
type declining struct {
	*unreachable
	err error
}

func (d *declining) Send(context.Context, rooms.Draft) (eventgraph.EventID, error) { return "", d.err }

// Whatever makes an event asks the room's policy server, and answers its error as it is, as far as it may say that (SS API, Validating Policy
// Server signatures).
func TestPolicyServerDeclines(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	said := alice.message(room, `{"body":"before"}`)
	remote := &declining{unreachable: s.remote}
	s.SetRemote(remote)
	path := "/v3/rooms/" + string(room)
	for _, c := range []struct {
		given  int
		code   string
		after  time.Duration
		status int
		want   string
	}{
		{400, "M_FORBIDDEN", 0, 400, "M_FORBIDDEN"},
		{403, "M_FORBIDDEN", 0, 403, "M_FORBIDDEN"},
		{404, "M_NOT_FOUND", 0, 404, "M_NOT_FOUND"},
		{400, "ORG.EXAMPLE.SPAM", 0, 400, "ORG.EXAMPLE.SPAM"},
		{429, "M_LIMIT_EXCEEDED", 7 * time.Second, 429, "M_LIMIT_EXCEEDED"},
		{429, "M_LIMIT_EXCEEDED", 0, 429, "M_LIMIT_EXCEEDED"},
		{401, "M_UNKNOWN_TOKEN", 0, 403, "M_FORBIDDEN"}, // or alice would be logged out
		{0, "M_FORBIDDEN", 0, 403, "M_FORBIDDEN"},
	} {
		remote.err = fmt.Errorf("sent: %w", &federation.PolicyError{Status: c.given, Refusal: rooms.Refusal{Code: c.code, Reason: "this looks like spam"}, RetryAfter: c.after})
		a := alice.call(c.status, "PUT", path+"/send/m.room.message/1", `{"body":"x"}`)
		if a.code() != c.want || a.body["error"] != "this looks like spam" {
			t.Errorf("%d %s: %s", c.given, c.code, a.raw)
		}
		if retry, _ := a.body["retry_after_ms"].(float64); c.status == http.StatusTooManyRequests && retry != float64(max(c.after, time.Second).Milliseconds()) {
			t.Errorf("retry_after_ms: %v", a.body["retry_after_ms"])
		}
	}
	remote.err = &federation.PolicyError{Status: 400, Refusal: rooms.Refusal{Code: "M_FORBIDDEN", Reason: "no"}}
	for _, q := range [][3]string{
		{"PUT", path + "/state/m.room.topic", `{"topic":"x"}`},
		{"PUT", path + "/redact/" + string(said) + "/2", `{}`},
		{"POST", path + "/ban", `{"user_id":"@bob:` + string(s.Server) + `"}`},
		{"POST", path + "/invite", `{"user_id":"@bob:` + string(s.Server) + `"}`},
	} {
		if a := alice.call(400, q[0], q[1], q[2]); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s %s: %s", q[0], q[1], a.raw)
		}
	}
}

// A room whose policy server is away says so, and what to do.
func TestPolicyServerAway(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	away := &federation.PolicyError{Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "it is away: change m.room.policy"}, Cause: context.DeadlineExceeded}
	s.SetRemote(&declining{s.remote, away})
	if a := alice.call(502, "PUT", "/v3/rooms/"+string(room)+"/send/m.room.message/1", `{"body":"x"}`); a.code() != "M_UNKNOWN" || a.body["error"] != away.Refusal.Reason {
		t.Errorf("%s", a.raw)
	}
}
