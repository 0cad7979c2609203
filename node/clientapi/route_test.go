package clientapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

func TestRoutes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	for _, test := range []struct {
		method, path, token string
		body                any
		status              int
		code                string
	}{
		{"GET", "/_matrix/client/versions", "", nil, 200, ""},
		{"GET", "/_matrix/client/r0/login", "", nil, 200, ""},
		{"GET", "/_matrix/client/v3/login", "", nil, 200, ""},
		{"GET", "/_matrix/client/v3/login/", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v9/login", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3//login", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v1/auth_metadata", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/unstable/org.matrix.msc2697.v2/dehydrated_device", alice.token, nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/index.html", "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/" + strings.Repeat("a/", 100), "", nil, 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/profile/%ff", "", nil, 404, "M_UNRECOGNIZED"},
		{"DELETE", "/_matrix/client/v3/login", "", nil, 405, "M_UNRECOGNIZED"},
		{"POST", "/", "", nil, 405, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/account/whoami", "", nil, 401, "M_MISSING_TOKEN"},
		{"GET", "/_matrix/client/v3/account/whoami", "nonsense", nil, 401, "M_UNKNOWN_TOKEN"},
		{"GET", "/_matrix/client/v3/account/whoami", alice.token, nil, 200, ""},
		{"GET", "/_matrix/client/r0/account/whoami?access_token=" + alice.token, "", nil, 200, ""},
		{"POST", "/_matrix/client/v3/login", "", `{"type":`, 400, "M_NOT_JSON"},
		{"POST", "/_matrix/client/v3/login", "", "{\"type\":\"\xff\"}", 400, "M_NOT_JSON"},
		{"POST", "/_matrix/client/v3/login", "", `{} {}`, 400, "M_NOT_JSON"},
		{"POST", "/_matrix/client/v3/login", "", `[]`, 400, "M_BAD_JSON"},
		{"POST", "/_matrix/client/v3/login", "", ` "x"`, 400, "M_BAD_JSON"},
		{"POST", "/_matrix/client/v3/login", "", `{"type":7}`, 400, "M_BAD_JSON"},
		{"POST", "/_matrix/client/v3/login", "", `{"x":"` + strings.Repeat("x", maxPublicBody) + `"}`, 413, "M_TOO_LARGE"},
		{"GET", "/_matrix/client/v3/room_keys/version", alice.token, nil, 404, "M_NOT_FOUND"},
		{"GET", "/_matrix/client/v3/voip/turnServer", alice.token, nil, 200, ""},
		{"GET", "/_matrix/client/v3/thirdparty/protocols", alice.token, nil, 200, ""},
		{"GET", "/_matrix/client/v3/account/3pid", alice.token, nil, 200, ""},
		{"GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", alice.token, nil, 200, ""},
	} {
		a := s.send(test.method, test.path, test.token, test.body)
		if a.status != test.status || a.code() != test.code {
			t.Errorf("%s %.60s: %d %s, want %d %s", test.method, test.path, a.status, a.raw, test.status, test.code)
		}
		if a.status >= 400 && a.text("error") == "" {
			t.Errorf("%s %.60s: no error text in %s", test.method, test.path, a.raw)
		}
		if _, soft := a.body["soft_logout"]; soft {
			t.Errorf("%s %.60s: soft_logout", test.method, test.path)
		}
		if test.path == "/" {
			continue
		}
		if a.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %.60s: no CORS headers", test.method, test.path)
		}
	}
	if allow := s.send("DELETE", "/_matrix/client/v3/login", "", nil).header.Values("Allow"); len(allow) != 2 {
		t.Errorf("Allow: %v", allow)
	}
	if log := s.log.String(); log != "" {
		t.Errorf("wrong input was logged: %s", log)
	}
}

func TestOptionsAsksNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	for _, path := range []string{"/_matrix/client/v3/logout", "/_matrix/client/v3/unknown"} {
		a := s.send("OPTIONS", path, "nonsense", nil)
		if a.status != http.StatusNoContent || a.raw != "" {
			t.Errorf("OPTIONS %s: %d %s", path, a.status, a.raw)
		}
		for key, want := range map[string]string{
			"Access-Control-Allow-Origin":  "*",
			"Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
			"Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization",
		} {
			if got := a.header.Get(key); got != want {
				t.Errorf("%s: %q, want %q", key, got, want)
			}
		}
	}
}

func TestPathParameters(t *testing.T) {
	t.Parallel()
	var a API
	var got []string
	remember := func(q *request) (any, error) {
		got = nil
		for _, p := range q.params {
			got = append(got, p.name+"="+q.path(p.name))
		}
		return nil, nil
	}
	for _, path := range []string{
		"/_matrix/client/v3/rooms/{roomId}/state/{eventType}",
		"/_matrix/client/v3/rooms/{roomId}/state/{eventType}/",
		"/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
		"/_matrix/client/v3/join/{roomIdOrAlias}",
		"/_matrix/client/v3/rooms/{room}/{any}/known",
	} {
		a.route("GET", path, public, remember)
	}
	for _, test := range []struct {
		path string
		want []string
	}{
		{"/_matrix/client/v3/join/%23a%2Fb%3Ac", []string{"roomIdOrAlias=#a/b:c"}},
		{"/_matrix/client/v3/join/!a:b", []string{"roomIdOrAlias=!a:b"}},
		{"/_matrix/client/r0/join/a+b%20c", []string{"roomIdOrAlias=a+b c"}},
		{"/_matrix/client/v3/rooms/!r/state/m.t", []string{"roomId=!r", "eventType=m.t"}},
		{"/_matrix/client/v3/rooms/!r/state/m.t/", []string{"roomId=!r", "eventType=m.t"}},
		{"/_matrix/client/v3/rooms/!r/state/m.t/%40a", []string{"roomId=!r", "eventType=m.t", "stateKey=@a"}},
		{"/_matrix/client/v3/rooms/!r/state/known", []string{"roomId=!r", "eventType=known"}},
		{"/_matrix/client/v3/rooms/!r/other/known", []string{"room=!r", "any=other"}},
	} {
		calls, values := a.routes.find(segments(test.path), nil)
		if calls == nil {
			t.Errorf("%s: not found", test.path)
			continue
		}
		q := &request{}
		for i, name := range calls["GET"].names {
			q.params = append(q.params, param{name, values[i]})
		}
		if calls["GET"].handler(q); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.path, got, test.want)
		}
	}
	for _, path := range []string{"/_matrix/client/v3/join/", "/_matrix/client/v3/join", "/_matrix/client/v3/join/a/b", "/_matrix/client/v3/join/%zz"} {
		if calls, _ := a.routes.find(segments(path), nil); calls != nil {
			t.Errorf("%s: found", path)
		}
	}
}

func TestHostHeader(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		host  string
		hosts []string
		want  bool
	}{
		{"127.0.0.1:8008", nil, true},
		{"127.3.2.1", nil, true},
		{"[::1]:8008", nil, true},
		{"[::ffff:127.0.0.1]:8008", nil, true},
		{"localhost", nil, true},
		{"LOCALHOST.:8008", nil, true},
		{"evil.example:8008", nil, false},
		{"localhost.evil.example", nil, false},
		{"127.0.0.1.evil.example", nil, false},
		{"192.168.1.4:8008", nil, false},
		{"192.168.1.4:8008", []string{"192.168.1.4"}, true},
		{"192.168.1.5:8008", []string{"192.168.1.4"}, false},
		{"192.168.1.5:8008", []string{"0.0.0.0"}, true},
		{"evil.example", []string{"0.0.0.0"}, false},
		{"evil.example", []string{""}, false},
		{"[fe80::1]:8008", []string{"::"}, true},
		{"tablet.lan:8008", []string{"tablet.lan"}, true},
		{"", []string{"0.0.0.0"}, false},
	} {
		s := &API{Config: Config{Hosts: test.hosts}}
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = test.host
		if got := s.hostAllowed(r); got != test.want {
			t.Errorf("Host %q with %q: %v", test.host, test.hosts, got)
		}
	}
	s := newTestServer(t, nil)
	req, err := http.NewRequest("GET", s.url+"/_matrix/client/versions", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example"
	if a := s.do(req); a.status != 403 || a.code() != "M_FORBIDDEN" || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a rebound name: %d %s %v", a.status, a.raw, a.header)
	}
}

func TestTokenInQueryOnlyFromLoopback(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"127.0.0.1:5": "secret", "[::1]:5": "secret", "[::ffff:127.0.0.1]:5": "secret",
		"192.168.1.4:5": "", "[fe80::1%eth0]:5": "", "": "",
	} {
		r := httptest.NewRequest("GET", "/?access_token=secret", nil)
		r.RemoteAddr = remote
		if got := (&request{Request: r}).token(); got != want {
			t.Errorf("from %q: %q, want %q", remote, got, want)
		}
	}
}

func TestErrorsInSpecForm(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		status int
		code   string
	}{
		{&rooms.Refusal{Code: "M_FORBIDDEN", Reason: "x"}, 403, "M_FORBIDDEN"},
		{&rooms.Refusal{Code: "M_TOO_LARGE", Reason: "x"}, 413, "M_TOO_LARGE"},
		{&rooms.Refusal{Code: "M_UNSUPPORTED_ROOM_VERSION", Reason: "x"}, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{fmt.Errorf("send: %w", &rooms.Refusal{Code: "M_NOT_FOUND"}), 404, "M_NOT_FOUND"},
		{&rooms.Refusal{Code: "M_UNKNOWN_TOKEN", Reason: "from another server"}, 400, "M_UNKNOWN"},
		{&rooms.MissingError{StateBefore: true}, 503, "M_UNKNOWN"},
		{fmt.Errorf("read: %w", store.ErrNotFound), 404, "M_NOT_FOUND"},
		{store.ErrDiskFull, 507, "M_UNKNOWN"},
		{store.ErrOutboundFull, 429, "M_LIMIT_EXCEEDED"},
		{store.ErrClosed, 503, "M_UNKNOWN"},
		{federation.ErrUnreachable, 502, "M_UNKNOWN"},
		{context.DeadlineExceeded, 504, "M_UNKNOWN"},
	} {
		e := asMatrixError(test.err)
		if e == nil || e.Status != test.status || e.Code != test.code {
			t.Errorf("%v: %+v, want %d %s", test.err, e, test.status, test.code)
		}
	}
	if e := asMatrixError(errors.New("the disk burns")); e != nil {
		t.Errorf("an error of our own became %+v", e)
	}
}

// A poll that the server's stopping ends is told so: clients come again then. 504 is for what took too long.
func TestPollsWhileTheServerStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestAPI(t, nil)
		alice := s.newClient("alice")
		since := alice.sync(alice.sync("").NextBatch).NextBatch
		pos := alice.slide("", window(0, 9, 1, "", "")).Pos
		ctx, stop := context.WithCancel(t.Context())
		codes := make(chan int, 2)
		for _, c := range [][3]string{{"GET", "/v3/sync?timeout=30000&since=" + since}, {"POST", slidingPath + "?timeout=30000&pos=" + pos, window(0, 9, 1, "", "")}} {
			req, err := http.NewRequestWithContext(ctx, c[0], s.url+"/_matrix/client"+c[1], strings.NewReader(c[2]))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+alice.token)
			go func() {
				w := httptest.NewRecorder()
				s.Handler().ServeHTTP(w, req)
				codes <- w.Code
			}()
		}
		synctest.Wait()
		stop()
		for range 2 {
			if code := <-codes; code != http.StatusServiceUnavailable {
				t.Errorf("answered with %d", code)
			}
		}
	})
}

func TestPanicsAndDefectsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.route("GET", "/_matrix/client/v3/panic", public, func(*request) (any, error) { panic("ouch") })
	s.route("GET", "/_matrix/client/v3/defect", public, func(*request) (any, error) { return nil, errors.New("secret path") })
	s.route("GET", "/_matrix/client/v3/html", public, func(*request) (any, error) { return map[string]string{"a": "<&>"}, nil })
	for _, name := range []string{"panic", "defect"} {
		a := s.send("GET", "/_matrix/client/v3/"+name, "", nil)
		if a.status != 500 || a.code() != "M_UNKNOWN" || strings.Contains(a.raw, "ouch") || strings.Contains(a.raw, "secret") {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
		if n := strings.Count(s.log.String(), "route=/_matrix/client/v3/"+name); n != 1 {
			t.Errorf("%s was logged %d times: %s", name, n, s.log)
		}
	}
	if a := s.send("GET", "/_matrix/client/v3/html", "", nil); a.raw != "{\"a\":\"<&>\"}\n" {
		t.Errorf("HTML characters: %s", a.raw)
	}
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.RateLimits = true })
	for range strangBurst {
		if a := s.send("GET", "/_matrix/client/versions", "", nil); a.status != 200 {
			t.Fatalf("within the burst: %d %s", a.status, a.raw)
		}
	}
	a := s.send("GET", "/_matrix/client/versions", "", nil)
	ms, _ := a.body["retry_after_ms"].(float64)
	if a.status != 429 || a.code() != "M_LIMIT_EXCEEDED" || ms <= 0 || a.header.Get("Retry-After") != "1" {
		t.Errorf("after the burst: %d %s, Retry-After %q", a.status, a.raw, a.header.Get("Retry-After"))
	}
	s.advance(time.Duration(ms) * time.Millisecond)
	if a := s.send("GET", "/_matrix/client/versions", "", nil); a.status != 200 {
		t.Errorf("after waiting: %d %s", a.status, a.raw)
	}
	s.advance(time.Minute)
	alice := s.newClient("alice")
	for range 2 * guessBurst { // the right password is no guess
		s.logIn("alice", "A")
	}
	wrong := map[string]any{"type": "m.login.password", "user": "alice", "password": "wrong"}
	for range guessBurst {
		if a := s.send("POST", "/_matrix/client/v3/login", "", wrong); a.code() != "M_FORBIDDEN" {
			t.Fatalf("wrong password: %d %s", a.status, a.raw)
		}
	}
	if a := s.send("POST", "/_matrix/client/v3/login", "", wrong); a.code() != "M_LIMIT_EXCEEDED" {
		t.Errorf("too many guesses: %d %s", a.status, a.raw)
	}
	alice.call(200, "GET", "/v3/account/whoami", nil)
}

func FuzzSegments(f *testing.F) {
	f.Add("/_matrix/client/r0/rooms/%21a%2Fb/state/m.room.name/")
	f.Add("/%zz//")
	f.Add("")
	f.Fuzz(func(t *testing.T, path string) {
		if parts := segments(path); len(parts) > maxSegments {
			t.Errorf("%d segments", len(parts))
		}
	})
}
