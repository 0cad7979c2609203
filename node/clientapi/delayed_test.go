package clientapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
)

const delayedPath = "/unstable/org.matrix.msc4140/delayed_events"

// later schedules a state event of type com.example.call in the room and answers its delay ID.
func (c client) later(room eventgraph.RoomID, key string, delay time.Duration, content string) string {
	c.s.t.Helper()
	path := fmt.Sprintf("/v3/rooms/%s/state/com.example.call/%s?org.matrix.msc4140.delay=%d", room, key, delay.Milliseconds())
	a := c.call(200, "PUT", path, content)
	if a.text("delay_id") == "" || a.body["event_id"] != nil {
		c.s.t.Fatalf("scheduled as %s", a.raw)
	}
	return a.text("delay_id")
}

// scheduled are the state keys and contents of what waits, in the order of the list.
func (c client) scheduled() string {
	c.s.t.Helper()
	var list struct {
		Events []struct {
			Room     eventgraph.RoomID `json:"room_id"`
			Type     string
			StateKey *string `json:"state_key"`
			Delay    int64   `json:"delay_ms"`
			At       int64   `json:"scheduled_at"`
			Content  json.RawMessage
		} `json:"delayed_events"`
	}
	if err := json.Unmarshal([]byte(c.call(200, "GET", delayedPath, nil).raw), &list); err != nil {
		c.s.t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range list.Events {
		key := "-"
		if e.StateKey != nil {
			key = *e.StateKey
		}
		fmt.Fprintf(&b, "%s %s %d@%d %s; ", e.Type, key, e.Delay, e.At-1_800_000_000_000, e.Content)
	}
	return b.String()
}

// due lets what is due be sent, as RunDelayed does.
func (s *testServer) due() {
	s.t.Helper()
	if _, err := s.sendDue(context.Background()); err != nil {
		s.t.Fatal(err)
	}
}

// state is the content of com.example.call with the key; "" if there is none.
func (c client) callState(room eventgraph.RoomID, key string) string {
	c.s.t.Helper()
	a := c.s.send("GET", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/com.example.call/%s", room, key), c.token, nil)
	if a.status == 404 {
		return ""
	}
	return strings.TrimSpace(a.raw)
}

// An event goes out when its time has come and not before, and once; in both forms of the request.
func TestDelayedEventsAreSent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	if got := alice.scheduled(); got != "" {
		t.Errorf("before: %s", got)
	}

	alice.later(room, "late", 3*time.Second, `{"n":2}`)
	alice.later(room, "early", time.Second, `{"n":1}`)
	body := map[string]any{"delay_ms": 2000, "content": map[string]any{"body": "later", "msgtype": "m.text"}}
	path := "/unstable/org.matrix.msc4140/rooms/" + string(room) + "/delayed_event/m.room.message/txn"
	message := alice.call(200, "PUT", path, body).text("delay_id")
	if again := alice.call(200, "PUT", path, body).text("delay_id"); again != message {
		t.Errorf("the same transaction ID: %q and %q", message, again)
	}
	sendPath := fmt.Sprintf("/v3/rooms/%s/send/m.room.message/txn?org.matrix.msc4140.delay=9000", room)
	other := alice.call(200, "PUT", sendPath, map[string]any{"body": "x"}).text("delay_id")
	if other != message { // both forms are one endpoint
		t.Errorf("by the older form: %q, want %q", other, message)
	}
	want := `com.example.call early 1000@0 {"n":1}; m.room.message - 2000@0 {"body":"later","msgtype":"m.text"}; com.example.call late 3000@0 {"n":2}; `
	if got := alice.scheduled(); got != want {
		t.Errorf("scheduled\n%s, want\n%s", got, want)
	}
	if got := bob.scheduled(); got != "" {
		t.Errorf("others see %s", got)
	}
	s.advance(999 * time.Millisecond)
	s.due()
	if got := alice.callState(room, "early"); got != "" {
		t.Errorf("sent before its time: %s", got)
	}
	since := bob.sync("").NextBatch
	s.advance(2001 * time.Millisecond)
	s.due()
	s.due()
	timeline := bob.sync(since).Rooms.Join[room].Timeline.Events
	if len(timeline) != 3 || timeline[0].StateKey == nil || *timeline[0].StateKey != "early" || timeline[1].Type != "m.room.message" {
		t.Errorf("sent: %+v", timeline)
	}
	if got := alice.scheduled(); got != "" {
		t.Errorf("afterwards: %s", got)
	}
	one := alice.call(200, "GET", delayedPath+"/"+message, nil)
	id := one.text("event_id")
	if id == "" || one.body["finalised_ts"] == nil || one.body["error"] != nil || one.text("room_id") != string(room) {
		t.Errorf("what has become of it: %s", one.raw)
	}
	// The sender's clients are told which delayed event it was, others are not (MSC4140, delay_id in unsigned event data).
	event := fmt.Sprintf("/v3/rooms/%s/event/%s", room, id)
	if got := alice.call(200, "GET", event, nil).body["unsigned"].(map[string]any); got["org.matrix.msc4140.delay_id"] != message || got["transaction_id"] != nil {
		t.Errorf("unsigned for the sender: %v", got)
	}
	if got := bob.call(200, "GET", event, nil); strings.Contains(got.raw, "delay_id") {
		t.Errorf("for another: %s", got.raw)
	}
}

func TestDelayedEventsAreManaged(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	act := func(want int, id, action string) answer {
		t.Helper()
		return alice.call(want, "POST", delayedPath+"/"+id+"/"+action, nil)
	}

	cancelled := alice.later(room, "cancelled", time.Second, `{}`)
	act(200, cancelled, "cancel")
	act(200, cancelled, "cancel")
	for _, action := range []string{"send", "restart"} {
		if a := act(409, cancelled, action); a.code() != "M_UNKNOWN" {
			t.Errorf("%s after cancel: %s", action, a.raw)
		}
	}
	if one := alice.call(200, "GET", delayedPath+"/"+cancelled, nil); one.body["finalised_ts"] == nil || one.body["event_id"] != nil || one.body["error"] != nil {
		t.Errorf("cancelled: %s", one.raw)
	}

	sent := alice.later(room, "sent", time.Hour, `{"n":1}`)
	act(200, sent, "send")
	act(200, sent, "send")
	for _, action := range []string{"cancel", "restart"} {
		act(409, sent, action)
	}
	if got := alice.callState(room, "sent"); got != `{"n":1}` {
		t.Errorf("sent at once: %q", got)
	}

	restarted := alice.later(room, "restarted", 1500*time.Millisecond, `{}`)
	s.advance(time.Second)
	alice.call(200, "POST", delayedPath+"/"+restarted, map[string]string{"action": "restart"}) // the older form
	s.advance(time.Second)
	s.due()
	if got := alice.callState(room, "restarted"); got != "" || alice.scheduled() != "com.example.call restarted 1500@1000 {}; " {
		t.Errorf("restarted: %q, %s", got, alice.scheduled())
	}
	s.advance(500 * time.Millisecond)
	s.due()
	if got := alice.callState(room, "restarted"); got != "{}" {
		t.Errorf("after its new time: %q", got)
	}
	if got := alice.callState(room, "cancelled"); got != "" {
		t.Errorf("what was cancelled was sent: %s", got)
	}

	// Nobody else's, no such one, no such action.
	theirs := alice.later(room, "theirs", time.Hour, `{}`)
	for name, c := range map[string]struct {
		token, method, path, body string
		status                    int
		code                      string
	}{
		"another's":            {bob.token, "POST", "/" + theirs + "/cancel", "", 404, "M_NOT_FOUND"},
		"another's, looked at": {bob.token, "GET", "/" + theirs, "", 404, "M_NOT_FOUND"},
		"no such one":          {alice.token, "POST", "/abc/send", "", 404, "M_NOT_FOUND"},
		"no such action":       {alice.token, "POST", "/" + theirs + "/oops", "", 404, "M_UNRECOGNIZED"},
		"… in the body":        {alice.token, "POST", "/" + theirs, `{"action":"oops"}`, 400, "M_INVALID_PARAM"},
		"no action":            {alice.token, "POST", "/" + theirs, `{}`, 400, "M_MISSING_PARAM"},
		"without a token":      {"", "POST", "/" + theirs + "/cancel", "", 401, "M_MISSING_TOKEN"},
		"list without a token": {"", "GET", "", "", 401, "M_MISSING_TOKEN"},
	} {
		if a := s.send(c.method, "/_matrix/client"+delayedPath+c.path, c.token, c.body); a.status != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
}

func TestDelayedEventsRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	newForm := "/_matrix/client/unstable/org.matrix.msc4140/rooms/" + string(room) + "/delayed_event/m.room.message/t"
	send := "/_matrix/client/v3/rooms/" + string(room) + "/send/m.room.message/t?org.matrix.msc4140.delay="
	for name, c := range map[string]struct {
		path, body string
		status     int
		code       string
	}{
		"no number":     {send + "soon", `{}`, 400, "M_INVALID_PARAM"},
		"now":           {send + "0", `{}`, 400, "M_INVALID_PARAM"},
		"the past":      {send + "-1", `{}`, 400, "M_INVALID_PARAM"},
		"too late":      {send + strconv.FormatInt(maxDelay.Milliseconds()+1, 10), `{}`, 403, "M_FORBIDDEN"},
		"too large":     {send + "1", `{"body":"` + strings.Repeat("x", maxDelayedContent) + `"}`, 413, "M_TOO_LARGE"},
		"no content":    {newForm, `{"delay_ms":1}`, 400, "M_MISSING_PARAM"},
		"no delay":      {newForm, `{"content":{}}`, 400, "M_MISSING_PARAM"},
		"content a 1":   {newForm, `{"delay_ms":1,"content":1}`, 400, "M_BAD_JSON"},
		"delay a text":  {newForm, `{"delay_ms":"1","content":{}}`, 400, "M_BAD_JSON"},
		"not a room ID": {strings.Replace(send, string(room), "x", 1) + "1", `{}`, 400, "M_INVALID_PARAM"},
	} {
		if a := s.send("PUT", c.path, alice.token, c.body); a.status != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", name, a.status, a.raw, c.status, c.code)
		}
	}
	if a := s.send("PUT", newForm, "", `{"delay_ms":1,"content":{}}`); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("without a token: %d %s", a.status, a.raw)
	}

	// What the user may not do is found out when it is sent; by hand it stays scheduled, in time it is finalised with the error.
	id := bob.later(room, "x", time.Second, `{}`)
	if a := bob.call(403, "POST", delayedPath+"/"+id+"/send", nil); a.code() != "M_FORBIDDEN" {
		t.Errorf("sent by hand: %s", a.raw)
	}
	if bob.scheduled() == "" {
		t.Error("what could not be sent by hand is gone")
	}
	s.advance(time.Second)
	s.due()
	one := bob.call(200, "GET", delayedPath+"/"+id, nil)
	if why, _ := one.body["error"].(map[string]any); why["errcode"] != "M_FORBIDDEN" || one.body["event_id"] != nil {
		t.Errorf("sent in time: %s", one.raw)
	}

	// A user has maxDelayed of them, as the capability says, and is told when there is room again.
	for i := range maxDelayed {
		alice.later(room, strconv.Itoa(i), time.Duration(1500+i)*time.Millisecond, `{}`)
	}
	full := s.send("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+"/state/com.example.call/more?org.matrix.msc4140.delay=1000", alice.token, `{}`)
	if full.status != 429 || full.code() != "M_LIMIT_EXCEEDED" || full.header.Get("Retry-After") != "2" {
		t.Errorf("one too many: %d %s, Retry-After %s", full.status, full.raw, full.header.Get("Retry-After"))
	}
	capabilities := alice.call(200, "GET", "/v3/capabilities", nil).body["capabilities"].(map[string]any)
	if limits := capabilities["org.matrix.msc4140.delayed_events"].(map[string]any); limits["max_scheduled"] != float64(maxDelayed) || limits["max_delay_ms"] != float64(maxDelay.Milliseconds()) {
		t.Errorf("capability: %v", limits)
	}
	alice.call(200, "POST", "/v3/account/deactivate", map[string]any{"auth": map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": testPassword}})
	s.advance(time.Hour)
	s.due()
	if got := bob.s.send("GET", "/_matrix/client/v3/rooms/"+string(room)+"/state/com.example.call/0", bob.token, nil); got.status == 200 {
		t.Errorf("a deactivated user still sends: %s", got.raw)
	}
}

// RunDelayed wakes for what is scheduled while it runs, and sends first what came due while nobody ran it.
func TestDelayedEventsRun(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.later(room, "before", time.Second, `{}`)
	s.advance(time.Minute)
	since := alice.sync("").NextBatch
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.RunDelayed(ctx) }()
	for _, key := range []string{"before", "while"} {
		if key == "while" {
			// The server's clock stands still: that of the timer comes first, and finds that it is not time. The next wake does.
			alice.later(room, key, time.Millisecond, `{}`)
			s.advance(time.Second)
			alice.later(room, "much later", time.Hour, `{}`)
		}
		got := alice.sync(since, "timeout=30000")
		since = got.NextBatch
		if events := got.Rooms.Join[room].Timeline.Events; len(events) != 1 || events[0].StateKey == nil || *events[0].StateKey != key {
			t.Errorf("%s: %+v", key, events)
		}
	}
	stop()
	if err := <-ended; err != context.Canceled {
		t.Error(err)
	}
}

// What the room's policy server has no time for now, or cannot be asked about, is sent later, when that allows; for maxDelayedLate.
func TestDelayedEventsAreTriedAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	remote := &declining{unreachable: s.remote}
	busy := &federation.PolicyError{Status: 429, Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "later"}, RetryAfter: 90 * time.Second}
	away := &federation.PolicyError{Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "it is away"}, Cause: context.DeadlineExceeded}
	look := func(want time.Duration) {
		t.Helper()
		next, err := s.sendDue(context.Background())
		if got := next.Sub(s.Now()); err != nil || got != want {
			t.Errorf("looks again after %s, %v; want %s", got, err, want)
		}
	}
	alice.later(room, "busy", time.Second, `{}`)
	remote.err = busy
	s.SetRemote(remote)
	s.advance(time.Second)
	look(90 * time.Second)
	s.SetRemote(s.remote) // it would be sent if it were tried
	look(90 * time.Second)
	s.advance(89 * time.Second)
	alice.later(room, "other", time.Second, `{}`)
	look(time.Second)
	if got := alice.scheduled(); got != "com.example.call busy 1000@0 {}; com.example.call other 1000@90000 {}; " {
		t.Errorf("scheduled: %s", got)
	}
	s.advance(time.Second)
	s.due()
	if alice.callState(room, "busy") != "{}" || alice.callState(room, "other") != "{}" || alice.scheduled() != "" {
		t.Errorf("not sent: %s", alice.scheduled())
	}

	// Whoever is away is asked again, though not for ever, and none is made to wait longer than maxDelayedRetry.
	id := alice.later(room, "away", time.Second, `{}`)
	remote.err = away
	s.SetRemote(remote)
	s.advance(time.Second)
	look(delayedRetry)
	busy.RetryAfter = time.Hour
	remote.err = busy
	s.advance(delayedRetry)
	look(maxDelayedRetry)
	s.advance(maxDelayedLate)
	s.due()
	one := alice.call(200, "GET", delayedPath+"/"+id, nil)
	if why, _ := one.body["error"].(map[string]any); why["errcode"] != "M_LIMIT_EXCEEDED" || alice.scheduled() != "" {
		t.Errorf("given up: %s", one.raw)
	}
	if len(s.delayed.later) != 0 {
		t.Errorf("%d are remembered", len(s.delayed.later))
	}
}

// What no event may be is not scheduled, and what is scheduled fits into one answer.
func TestDelayedBounds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	put := func(eventType, txn, body string) answer {
		return s.send("PUT", fmt.Sprintf("/_matrix/client/unstable/org.matrix.msc4140/rooms/%s/delayed_event/%s/%s", room, eventType, txn), alice.token, body)
	}
	long := strings.Repeat("k", maxDelayedName+1)
	for eventType, body := range map[string]string{
		"x": `{"delay_ms":1000,"state_key":"` + long + `","content":{}}`, long: `{"delay_ms":1000,"content":{}}`,
	} {
		if a := put(eventType, "t", body); a.status != 413 || a.code() != "M_TOO_LARGE" {
			t.Errorf("%.20s: %d %s", eventType, a.status, a.raw)
		}
	}
	n := 0
	for ; n < maxDelayed; n++ {
		a := put("x", fmt.Sprint("t", n), `{"delay_ms":1000,"content":{"x":"`+strings.Repeat("x", maxDelayedContent-100)+`"}}`)
		if a.status == 429 && a.code() == "M_LIMIT_EXCEEDED" {
			break
		}
		if a.status != 200 {
			t.Fatal(a.raw)
		}
	}
	if n != maxDelayedBytes/maxDelayedContent {
		t.Errorf("%d events of %d bytes are scheduled", n, maxDelayedContent)
	}
}
