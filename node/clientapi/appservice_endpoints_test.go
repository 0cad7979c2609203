package clientapi

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node/internal/specdata"
)

// Each endpoint of the application service API: what becomes of the service's success, of its refusals, and of an answer that is wrong;
// and that it is asked at the path of older drafts if it does not know the other (AS API, Legacy routes).
func TestServiceEndpoints(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	b.join(room)
	server := string(s.Server)
	n := 0
	type row struct {
		endpoint string // of the service
		// ask makes the server ask the service for what nobody has asked for yet, and says for what.
		ask     func() (answer, string)
		good    string // what the service answers
		made    func(what string)
		wrong   string // what it answers instead, with 200
		refused string // the errcode then, and after a refusal
		legacy  string // the beginning of the older path
	}
	lookUp := func(path string) func() (answer, string) {
		return func() (answer, string) {
			return s.send("GET", "/_matrix/client/v3/thirdparty/"+path, alice.token, nil), ""
		}
	}
	const protocol = `{"user_fields":["nick"],"location_fields":["channel"],"icon":"mxc://a/b","field_types":{"nick":{"regexp":"x","placeholder":"x"}},"instances":[{"network_id":"home","desc":"Home","fields":{"a":"b"}}]}`
	const locations, users = `[{"alias":"#irc_x:s","protocol":"irc","fields":{"a":"b"}}]`, `[{"userid":"@irc_x:s","protocol":"irc","fields":{"a":"b"}}]`
	const app, unstable = "/_matrix/app/v1", "/_matrix/app/unstable"
	rows := []row{
		{"GET " + app + "/users/{userId}", func() (answer, string) {
			n++
			user := fmt.Sprintf("@irc_e%d:%s", n, server)
			return s.send("GET", "/_matrix/client/v3/profile/"+url.PathEscape(user), alice.token, nil), user
		}, `{}`, func(user string) { b.ghost(strings.TrimPrefix(strings.TrimSuffix(user, ":"+server), "@")) }, `{}`, "M_NOT_FOUND", "/users/"},
		{"GET " + app + "/rooms/{roomAlias}", func() (answer, string) {
			n++
			alias := fmt.Sprintf("#irc_e%d:%s", n, server)
			return s.send("GET", "/_matrix/client/v3/directory/room/"+url.PathEscape(alias), alice.token, nil), alias
		}, `{}`, func(alias string) {
			b.call(200, "PUT", "/v3/directory/room/"+url.PathEscape(alias), map[string]any{"room_id": room})
		}, `{}`, "M_NOT_FOUND", "/rooms/"},
		{"GET " + app + "/thirdparty/protocol/{protocol}", lookUp("protocol/irc"), protocol, nil, `[7]`, "M_NOT_FOUND", unstable + "/thirdparty/protocol/"},
		{"GET " + app + "/thirdparty/location/{protocol}", lookUp("location/irc?channel=x"), locations, nil, `{"a":7}`, "M_NOT_FOUND", unstable + "/thirdparty/location/"},
		{"GET " + app + "/thirdparty/user/{protocol}", lookUp("user/irc?nick=x"), users, nil, `nothing`, "M_NOT_FOUND", unstable + "/thirdparty/user/"},
		{"GET " + app + "/thirdparty/location", lookUp("location?alias=%23irc_x:s"), locations, nil, `{"a":7}`, "M_NOT_FOUND", unstable + "/thirdparty/location?"},
		{"GET " + app + "/thirdparty/user", lookUp("user?userid=@irc_x:s"), users, nil, `nothing`, "M_NOT_FOUND", unstable + "/thirdparty/user?"},
	}
	// TestServicePing and TestServicePingTimesOut, TestRefusedTransactions and TestOldTransactions.
	elsewhere := []string{"POST " + app + "/ping", "PUT " + app + "/transactions/{txnId}"}
	for _, e := range specdata.Endpoints("application-service") {
		if strings.Contains(e.Name, app) && !slices.Contains(elsewhere, e.Name) && !slices.ContainsFunc(rows, func(r row) bool { return r.endpoint == e.Name }) {
			t.Errorf("%s is tested nowhere", e.Name)
		}
	}
	for _, r := range rows {
		success := func(method, path string) (int, string) {
			if r.made != nil {
				r.made(path[strings.LastIndex(path, "/")+1:])
			}
			if e := specdata.Match(method, path); e == nil || e.Name != r.endpoint {
				t.Errorf("%s: the service was asked %s %s", r.endpoint, method, path)
			} else if err := e.Check(200, []byte(r.good)); err != nil {
				t.Error(err) // the test's own answer
			}
			return 200, r.good
		}
		b.service.answers(success)
		if a, _ := r.ask(); a.status != 200 || len(b.service.questions()) != 1 {
			t.Errorf("%s: %d %s after %q", r.endpoint, a.status, a.raw, b.service.questions())
		}
		for _, c := range []struct {
			status int
			body   string
		}{{401, `{"errcode":"M_MISSING_TOKEN"}`}, {403, `{"errcode":"M_FORBIDDEN"}`}, {404, `{"errcode":"M_NOT_FOUND"}`}, {500, `{"errcode":"M_UNKNOWN"}`}, {200, r.wrong}} {
			b.service.answers(func(string, string) (int, string) { return c.status, c.body })
			if a, what := r.ask(); a.status != 404 || a.code() != r.refused || len(b.service.questions()) != 1 {
				t.Errorf("%s %s, answered with %d %s: %d %s, after %q", r.endpoint, what, c.status, c.body, a.status, a.raw, b.service.questions())
			}
		}
		// A service that knows only the older path.
		b.service.answers(func(method, path string) (int, string) {
			if strings.HasPrefix(path, app) {
				return 404, `{"errcode":"M_UNRECOGNIZED"}`
			}
			if r.made != nil {
				r.made(path[strings.LastIndex(path, "/")+1:])
			}
			return 200, r.good
		})
		if a, _ := r.ask(); a.status != 200 {
			t.Errorf("%s of an old service: %d %s", r.endpoint, a.status, a.raw)
		}
		if q := b.service.questions(); len(q) != 2 || !strings.HasPrefix(q[1], "GET "+r.legacy) {
			t.Errorf("%s: an old service was asked %q", r.endpoint, q)
		}
	}
}

// A service that does not answer a ping in time is told from one that cannot be reached.
func TestServicePingTimesOut(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	asked := make(chan struct{})
	over := make(chan struct{})
	b.service.answers(func(string, string) (int, string) {
		close(asked)
		<-over
		return 200, `{}`
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	inTime, end := deadlineAfter(ctx, asked)
	defer end()
	req := httptest.NewRequestWithContext(inTime, "POST", s.url+"/_matrix/client/v1/appservice/irc/ping", strings.NewReader(`{}`))
	req.Header.Set("Authorization", "Bearer "+b.token)
	recorder := httptest.NewRecorder()
	s.Handler().ServeHTTP(recorder, req)
	close(over)
	if recorder.Code != http.StatusGatewayTimeout || !strings.Contains(recorder.Body.String(), `"M_CONNECTION_TIMEOUT"`) {
		t.Errorf("%d %s", recorder.Code, recorder.Body)
	}
}

// lateContext is a context whose deadline has come once it is closed.
type lateContext struct {
	context.Context
	done chan struct{}
}

func (c lateContext) Done() <-chan struct{} { return c.done }

func (c lateContext) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// deadlineAfter returns a context whose deadline comes when something happened.
func deadlineAfter(ctx context.Context, happened <-chan struct{}) (context.Context, func()) {
	late := lateContext{ctx, make(chan struct{})}
	gone := make(chan struct{})
	go func() {
		select {
		case <-happened:
			close(late.done)
		case <-ctx.Done():
		}
		close(gone)
	}()
	return late, func() { <-gone }
}

// A transaction that the service refuses, for whatever reason, is repeated as it was until it takes it.
func TestRefusedTransactions(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "")
	alice := r.newClient("alice")
	room := alice.room()
	bot.join(room)
	r.run(t)
	alice.message(room, text("stubborn"))
	first := r.next(t)
	if events, _ := first.body(t); !slices.Equal(bodies(events), []string{"stubborn"}) {
		t.Errorf("told of %s", first.raw)
	}
	first.answer <- 401
	for _, status := range []int{403, 200} {
		again := r.next(t)
		if again.id != first.id || again.raw != first.raw {
			t.Errorf("repeated as %s %s, was %s %s", again.id, again.raw, first.id, first.raw)
		}
		again.answer <- status
	}
	alice.message(room, text("next"))
	x := r.next(t)
	if events, _ := x.body(t); x.id == first.id || !slices.Equal(bodies(events), []string{"next"}) {
		t.Errorf("then told of %s %s", x.id, x.raw)
	}
	x.answer <- 200
}

// A service that knows only the path of older drafts gets its transactions there.
func TestOldTransactions(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	b.join(room)
	came := make(chan string, 100)
	b.service.answers(func(method, path string) (int, string) {
		if strings.HasPrefix(path, "/_matrix/app/v1/") {
			return 404, `{"errcode":"M_UNRECOGNIZED"}`
		}
		came <- method + " " + path
		return 200, `{}`
	})
	(&receiver{testServer: s}).run(t)
	for _, said := range []string{"one", "two"} { // the second comes once the first is taken
		alice.message(room, text(said))
		select {
		case path := <-came:
			if !strings.HasPrefix(path, "PUT /transactions/") {
				t.Errorf("%s: an old service was sent %s", said, path)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: an old service was sent nothing", said)
		}
	}
}

// A service replaces its users' cross-signing keys without User-Interactive Authentication (AS API, Cross-signing), where a person is
// asked for it.
func TestServiceReplacesCrossSigningKeys(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	nick := b.ghost("irc_nick")
	const upload = "/v3/keys/device_signing/upload"
	for seed := byte(1); seed <= 2; seed++ {
		mine, its := newKeyPair(alice.user, "", seed), newKeyPair(nick, "", seed)
		alice.call(map[byte]int{1: 200, 2: 401}[seed], "POST", upload, map[string]any{"master_key": mine.crossSigning(t, "master", nil)})
		b.call(200, "POST", upload+"?"+as(nick), map[string]any{"master_key": its.crossSigning(t, "master", nil)})
		if got := alice.queryKeys(nick); !strings.Contains(string(got.MasterKeys[nick]), its.public()) {
			t.Errorf("key %d is not that of the user: %s", seed, got.MasterKeys[nick])
		}
	}
}
