package clientapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
)

// testService is an application service: what it was asked, and how it answers.
type testService struct {
	url string

	mu     sync.Mutex
	asked  []string // method and path with query
	answer func(method, path string) (int, string)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newTestService(t *testing.T) *testService {
	s := &testService{answer: func(string, string) (int, string) { return 404, `{"errcode":"M_NOT_FOUND"}` }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI())
		answer := s.answer
		s.mu.Unlock()
		status, body := 403, `{"errcode":"M_FORBIDDEN"}`
		if r.Header.Get("Authorization") == "Bearer hs-secret" {
			status, body = answer(r.Method, r.URL.Path)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *testService) answers(f func(method, path string) (int, string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.answer = nil, f
}

func (s *testService) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// bridge is the client of the application service in newBridged, acting as its sender.
type bridge struct {
	client
	service *testService
}

// newBridged starts a server with an IRC bridge and a second service without URL.
func newBridged(t *testing.T, change func(*Config)) (*testServer, bridge) {
	t.Helper()
	service := newTestService(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, text)
		return path
	}
	files := []string{
		write("irc.yaml", `
id: irc
url: `+service.url+`
as_token: as-secret
hs_token: hs-secret
sender_localpart: ircbot
rate_limited: false
protocols: [irc]
namespaces:
  users: [{exclusive: true, regex: "@irc_.*"}]
  aliases: [{exclusive: true, regex: "#irc_.*"}]
  rooms: []
`),
		write("quiet.yaml", `
id: quiet
url: null
as_token: quiet-secret
hs_token: hs-quiet
sender_localpart: quietbot
namespaces:
  users: [{exclusive: false, regex: "@quiet_.*"}]
`),
	}
	s := newTestServer(t, func(c *Config) {
		var err error
		if c.Services, err = appservice.Load(files, c.Server, false); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Services.Close)
		if change != nil {
			change(c)
		}
	})
	if err := s.EnsureServiceUsers(t.Context()); err != nil {
		t.Fatal(err)
	}
	sender := eventgraph.UserID("@ircbot:" + string(s.Server))
	return s, bridge{client{s: s, user: sender, token: "as-secret"}, service}
}

// ghost registers a user of the bridge.
func (b bridge) ghost(name string) eventgraph.UserID {
	b.s.t.Helper()
	a := b.call(200, "POST", "/v3/register", map[string]any{"type": loginService, "username": name, "inhibit_login": true})
	if a.body["access_token"] != nil {
		b.s.t.Errorf("logged in although inhibit_login: %s", a.raw)
	}
	return eventgraph.UserID(a.text("user_id"))
}

func as(user eventgraph.UserID) string { return "user_id=" + url.QueryEscape(string(user)) }

func TestServiceRegistersAndLogsIn(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, func(c *Config) { c.Registration = RegistrationClosed })
	nick := b.ghost("irc_Nick[m]") // what people may not choose a bridge has to carry
	for _, c := range []struct {
		what, path, token string
		body              map[string]any
		status            int
		code              string
	}{
		{"register again", "register", "as-secret", map[string]any{"type": loginService, "username": "irc_Nick[m]"}, 400, "M_USER_IN_USE"},
		{"register outside", "register", "as-secret", map[string]any{"type": loginService, "username": "alice"}, 400, "M_EXCLUSIVE"},
		{"register in another's", "register", "quiet-secret", map[string]any{"type": loginService, "username": "irc_x"}, 400, "M_EXCLUSIVE"},
		{"register nobody", "register", "as-secret", map[string]any{"type": loginService}, 400, "M_MISSING_PARAM"},
		{"register no name", "register", "as-secret", map[string]any{"type": loginService, "username": "irc_a:b"}, 400, "M_INVALID_USERNAME"},
		{"register without token", "register", "", map[string]any{"type": loginService, "username": "irc_x"}, 401, "M_MISSING_TOKEN"},
		{"register with a wrong one", "register", "hs-secret", map[string]any{"type": loginService, "username": "irc_x"}, 401, "M_UNKNOWN_TOKEN"},
		{"person, closed", "register", "", map[string]any{"username": "alice", "password": "x"}, 403, "M_FORBIDDEN"},
		{"login", "login", "as-secret", map[string]any{"type": loginService, "identifier": map[string]any{"type": "m.id.user", "user": string(nick)}}, 200, ""},
		{"login by localpart", "login", "as-secret", map[string]any{"type": loginService, "identifier": map[string]any{"type": "m.id.user", "user": "irc_Nick[m]"}}, 200, ""},
		{"login outside", "login", "as-secret", map[string]any{"type": loginService, "identifier": map[string]any{"type": "m.id.user", "user": "alice"}}, 400, "M_EXCLUSIVE"},
		{"login of nobody", "login", "as-secret", map[string]any{"type": loginService, "identifier": map[string]any{"type": "m.id.user", "user": "irc_x"}}, 403, "M_FORBIDDEN"},
		{"login without a name", "login", "as-secret", map[string]any{"type": loginService}, 400, "M_MISSING_PARAM"},
		{"login without token", "login", "", map[string]any{"type": loginService, "identifier": map[string]any{"type": "m.id.user", "user": "irc_x"}}, 401, "M_MISSING_TOKEN"},
		{"login with a wrong one", "login", "x", map[string]any{"type": loginService, "identifier": map[string]any{"type": "m.id.user", "user": "irc_x"}}, 401, "M_UNKNOWN_TOKEN"},
		{"login with an empty password", "login", "", map[string]any{"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": "ircbot"}, "password": ""}, 403, "M_FORBIDDEN"},
	} {
		a := s.send("POST", "/_matrix/client/v3/"+c.path, c.token, c.body)
		if a.status != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.what, a.status, a.raw, c.status, c.code)
		}
		if c.status == 200 {
			if who := s.send("GET", "/_matrix/client/v3/account/whoami", a.text("access_token"), nil); who.text("user_id") != string(nick) {
				t.Errorf("%s: its token is that of %s", c.what, who.raw)
			}
		}
	}
	if a := s.send("GET", "/_matrix/client/v3/login", "", nil); !strings.Contains(a.raw, loginService) {
		t.Errorf("login flows: %s", a.raw)
	}
}

func TestServiceActsAsItsUsers(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	nick := b.ghost("irc_nick")
	b.call(201, "PUT", "/v3/devices/BRIDGE?"+as(nick), map[string]any{"display_name": "IRC"})
	b.call(200, "PUT", "/v3/devices/BRIDGE?"+as(nick), map[string]any{"display_name": "ngircd"})
	if a := b.call(200, "GET", "/v3/devices/BRIDGE?"+as(nick), nil); a.text("display_name") != "ngircd" {
		t.Errorf("the device it made: %s", a.raw)
	}
	for _, c := range []struct {
		what, query  string
		status       int
		user, device string
		code         string
	}{
		{"sender", "", 200, string(b.user), "", ""},
		{"ghost", as(nick), 200, string(nick), "", ""},
		{"ghost's device", as(nick) + "&device_id=BRIDGE", 200, string(nick), "BRIDGE", ""},
		{"no such device", as(nick) + "&device_id=OTHER", 400, "", "", "M_UNKNOWN_DEVICE"},
		{"not the sender's device", "device_id=BRIDGE", 400, "", "", "M_UNKNOWN_DEVICE"},
		{"outside", as(alice.user), 403, "", "", "M_FORBIDDEN"},
		{"not registered", as("@irc_x:" + eventgraph.UserID(s.Server)), 403, "", "", "M_FORBIDDEN"},
		{"remote", as("@irc_nick:example.org"), 403, "", "", "M_FORBIDDEN"},
		{"nonsense", "user_id=irc_nick", 400, "", "", "M_INVALID_PARAM"},
	} {
		a := s.send("GET", "/_matrix/client/v3/account/whoami?"+c.query, b.token, nil)
		if a.status != c.status || a.code() != c.code || c.status == 200 && (a.text("user_id") != c.user || a.text("device_id") != c.device) {
			t.Errorf("%s: %d %s", c.what, a.status, a.raw)
		}
		if _, has := a.body["device_id"]; has != (c.device != "") { // left out where there is none
			t.Errorf("%s: %s", c.what, a.raw)
		}
	}
	// A person's token gives nobody else's voice, whatever the query says.
	if a := alice.call(200, "GET", "/v3/account/whoami?"+as(nick), nil); a.text("user_id") != string(alice.user) {
		t.Errorf("alice became %s", a.raw)
	}
	// What it may do without User-Interactive Authentication, and what it may not do at all.
	b.call(200, "DELETE", "/v3/devices/BRIDGE?"+as(nick), map[string]any{})
	b.call(201, "PUT", "/v3/devices/AGAIN?"+as(nick), map[string]any{})
	b.call(200, "POST", "/v3/delete_devices?"+as(nick), map[string]any{"devices": []string{"AGAIN"}})
	b.call(404, "GET", "/v3/devices/AGAIN?"+as(nick), nil)
	for _, path := range []string{"/v3/account/password", "/v3/account/deactivate", "/v1/login/get_token"} {
		if a := b.call(403, "POST", path+"?"+as(nick), map[string]any{"new_password": "x"}); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	if a := b.call(400, "POST", "/v3/keys/upload?"+as(nick), map[string]any{}); a.code() != "M_MISSING_PARAM" {
		t.Errorf("keys without a device: %s", a.raw)
	}
	if a := b.call(400, "POST", "/v3/pushers/set?"+as(nick), pusher("k", nil)); a.code() != "M_MISSING_PARAM" {
		t.Errorf("a pusher without a device: %s", a.raw)
	}
	// A person cannot make a device so.
	alice.call(404, "PUT", "/v3/devices/BRIDGE", map[string]any{"display_name": "x"})
}

func TestServiceTimestamps(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	nick := b.ghost("irc_nick")
	client{s: s, user: nick}.join(room)
	for i, c := range []struct {
		caller client
		path   string
		want   int64 // 0: now
	}{
		{b.client, "send/m.room.message/1?ts=1500000000000&" + as(nick), 1_500_000_000_000},
		{b.client, "state/org.example.seen/x?ts=1600000000000&" + as(nick), 1_600_000_000_000},
		{b.client, "send/m.room.message/2?ts=0&" + as(nick), 1},
		{b.client, "send/m.room.message/3?" + as(nick), 0},
		{alice, "send/m.room.message/4?ts=1500000000000", 0},
	} {
		if strings.HasPrefix(c.path, "state/") {
			alice.state(room, "m.room.power_levels", "", `{"users":{"`+string(nick)+`":50}}`)
		}
		a := c.caller.call(200, "PUT", "/v3/rooms/"+string(room)+"/"+c.path, map[string]any{"msgtype": "m.text", "body": fmt.Sprint(i)})
		event := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/event/"+a.text("event_id"), nil)
		got := int64(event.body["origin_server_ts"].(float64))
		if c.want == 0 {
			c.want = s.time().UnixMilli()
		}
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.path, got, c.want)
		}
	}
	for _, ts := range []string{"-1", "yesterday", "9007199254740992", "1.5"} {
		a := b.call(400, "PUT", "/v3/rooms/"+string(room)+"/send/m.room.message/5?ts="+ts+"&"+as(nick), map[string]any{"msgtype": "m.text", "body": "x"})
		if a.code() != "M_INVALID_PARAM" {
			t.Errorf("ts=%s: %s", ts, a.raw)
		}
	}
}

func TestServiceNamespacesAreExclusive(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, func(c *Config) { c.Registration = RegistrationOpen })
	alice := s.newClient("alice")
	room := alice.room()
	alias := func(name string) string { return url.PathEscape("#" + name + ":" + string(s.Server)) }
	body := map[string]any{"room_id": room}
	register := func(name string) map[string]any {
		return map[string]any{"username": name, "password": "correct horse", "auth": map[string]string{"type": stageDummy}}
	}
	b.join(room)
	for _, c := range []struct {
		what         string
		caller       client
		method, path string
		body         any
		status       int
		code         string
	}{
		{"person registers a ghost", client{s: s}, "POST", "/v3/register", register("irc_eve"), 400, "M_EXCLUSIVE"},
		{"person registers the sender", client{s: s}, "POST", "/v3/register", register("ircbot"), 400, "M_EXCLUSIVE"},
		{"person asks for a ghost's name", client{s: s}, "GET", "/v3/register/available?username=irc_eve", nil, 400, "M_EXCLUSIVE"},
		{"a name in a namespace that is not exclusive", client{s: s}, "POST", "/v3/register", register("quiet_eve"), 200, ""},
		{"person's alias in the namespace", alice, "PUT", "/v3/directory/room/" + alias("irc_room"), body, 400, "M_EXCLUSIVE"},
		{"person's alias in a new room", alice, "POST", "/v3/createRoom", map[string]any{"room_alias_name": "irc_room"}, 400, "M_EXCLUSIVE"},
		{"service's alias outside", b.client, "PUT", "/v3/directory/room/" + alias("room"), body, 400, "M_EXCLUSIVE"},
		{"service's alias", b.client, "PUT", "/v3/directory/room/" + alias("irc_room"), body, 200, ""},
		{"person deletes it", alice, "DELETE", "/v3/directory/room/" + alias("irc_room"), nil, 400, "M_EXCLUSIVE"},
		{"service deletes it", b.client, "DELETE", "/v3/directory/room/" + alias("irc_room"), nil, 200, ""},
	} {
		a := s.send(c.method, "/_matrix/client"+c.path, c.caller.token, c.body)
		if a.status != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.what, a.status, a.raw, c.status, c.code)
		}
	}
	if _, err := s.CreateUser(t.Context(), "irc_eve", "correct horse"); err == nil {
		t.Error("an administrator made a user in an exclusive namespace")
	}
}

func TestServiceRateLimits(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, func(c *Config) { c.RateLimits = true })
	limited := func(token string) bool {
		for range userBurst + 1 {
			if s.send("GET", "/_matrix/client/v3/account/whoami", token, nil).status == 429 {
				return true
			}
		}
		return false
	}
	if limited(b.token) {
		t.Error("a service with rate_limited: false was limited")
	}
	if limited("quiet-secret") {
		t.Error("a service's sender was limited")
	}
	quiet := s.send("POST", "/_matrix/client/v3/register", "quiet-secret", map[string]any{"type": loginService, "username": "quiet_a", "inhibit_login": true})
	was := false
	for range userBurst + 1 {
		was = was || s.send("GET", "/_matrix/client/v3/account/whoami?"+as(eventgraph.UserID(quiet.text("user_id"))), "quiet-secret", nil).status == 429
	}
	if !was {
		t.Error("a user of a service that is rate limited was not")
	}
	// A service that makes its users calls as itself, not as a stranger.
	for i := range strangBurst + 1 {
		a := s.send("POST", "/_matrix/client/v3/register", b.token, map[string]any{"type": loginService, "username": fmt.Sprint("irc_", i), "inhibit_login": true})
		if a.status != 200 {
			t.Fatalf("user %d: %d %s", i, a.status, a.raw)
		}
	}
}

func TestServiceIsAskedForUsersAndAliases(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	server := string(s.Server)
	b.join(room)
	nobody := url.PathEscape("@irc_nobody:" + server)
	alice.call(404, "GET", "/v3/profile/"+nobody, nil)
	if q := b.service.questions(); len(q) != 1 || q[0] != "GET /_matrix/app/v1/users/"+nobody {
		t.Fatalf("it was asked %q", q)
	}
	// It makes what it is asked for, while the question waits.
	b.service.answers(func(_, path string) (int, string) {
		name, _ := url.PathUnescape(path[strings.LastIndex(path, "/")+1:])
		switch {
		case strings.HasPrefix(name, "@irc_new"):
			b.ghost(strings.TrimPrefix(strings.TrimSuffix(name, ":"+server), "@"))
		case strings.HasPrefix(name, "#irc_new"):
			b.call(200, "PUT", "/v3/directory/room/"+url.PathEscape(name), map[string]any{"room_id": room})
		default:
			return 404, `{}`
		}
		return 200, `{}`
	})
	if a := alice.call(200, "GET", "/v3/profile/"+url.PathEscape("@irc_new:"+server), nil); a.text("displayname") != "irc_new" {
		t.Errorf("profile of a user just made: %s", a.raw)
	}
	alice.call(200, "POST", "/v3/rooms/"+string(room)+"/invite", map[string]any{"user_id": "@irc_new2:" + server})
	b.call(200, "GET", "/v3/account/whoami?"+as(eventgraph.UserID("@irc_new2:"+server)), nil)
	if a := alice.call(200, "GET", "/v3/directory/room/"+url.PathEscape("#irc_new:"+server), nil); a.text("room_id") != string(room) {
		t.Errorf("alias just made: %s", a.raw)
	}
	if a := alice.call(200, "POST", "/v3/join/"+url.PathEscape("#irc_new3:"+server), nil); a.text("room_id") != string(room) {
		t.Errorf("join by an alias just made: %s", a.raw)
	}
	if got, err := s.FindAlias(t.Context(), eventgraph.RoomAlias("#irc_new4:"+server)); err != nil || got != room {
		t.Errorf("another server asks: %s, %v", got, err)
	}
	// The older paths are tried where the newer are not known.
	b.service.answers(func(_, path string) (int, string) { return 404, `{"errcode":"M_UNRECOGNIZED"}` })
	alice.call(404, "GET", "/v3/directory/room/"+url.PathEscape("#irc_gone:"+server), nil)
	if q := b.service.questions(); len(q) != 2 || !strings.HasPrefix(q[1], "GET /rooms/%23irc_gone") {
		t.Errorf("an old service was asked %q", q)
	}
	// It is asked for nothing outside of its namespaces, nor for what is there.
	b.service.answers(func(string, string) (int, string) { return 200, `{}` })
	alice.call(404, "GET", "/v3/profile/"+url.PathEscape("@somebody:"+server), nil)
	alice.call(404, "GET", "/v3/directory/room/"+url.PathEscape("#some:"+server), nil)
	alice.call(200, "GET", "/v3/profile/"+url.PathEscape("@irc_new:"+server), nil)
	if q := b.service.questions(); len(q) != 0 {
		t.Errorf("it was asked %q", q)
	}
}

// A service whose answer is missing is a 408 for who needs it, and no obstacle to an invite.
func TestSilentService(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	file := filepath.Join(dir, "dead.yaml")
	text := "id: dead\nurl: " + dead.URL + "\nas_token: a\nhs_token: b\nsender_localpart: deadbot\nnamespaces: {users: [{regex: '@dead_.*'}], aliases: [{regex: '#dead_.*'}]}\n"
	writeFile(t, file, text)
	s := newTestServer(t, func(c *Config) {
		var err error
		if c.Services, err = appservice.Load([]string{file}, c.Server, true); err != nil {
			t.Fatal(err)
		}
	})
	if err := s.EnsureServiceUsers(t.Context()); err != nil {
		t.Fatal(err)
	}
	alice := s.newClient("alice")
	room := alice.room()
	alice.call(408, "GET", "/v3/directory/room/"+url.PathEscape("#dead_x:"+string(s.Server)), nil)
	alice.call(200, "POST", "/v3/rooms/"+string(room)+"/invite", map[string]any{"user_id": "@dead_x:" + string(s.Server)})
	dead2 := client{s: s, token: "a"}
	if a := dead2.call(502, "POST", "/v1/appservice/dead/ping", map[string]any{}); a.code() != "M_CONNECTION_FAILED" {
		t.Errorf("ping: %s", a.raw)
	}
}

func TestServicePing(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	b.service.answers(func(method, path string) (int, string) { return 200, `{}` })
	a := b.call(200, "POST", "/v1/appservice/irc/ping", map[string]any{"transaction_id": "meow"})
	if _, ok := a.body["duration_ms"].(float64); !ok {
		t.Errorf("ping: %s", a.raw)
	}
	if q := b.service.questions(); len(q) != 1 || q[0] != "POST /_matrix/app/v1/ping" {
		t.Errorf("it was asked %q", q)
	}
	b.service.answers(func(string, string) (int, string) { return 401, `{"errcode":"M_UNKNOWN_TOKEN"}` })
	a = b.call(502, "POST", "/v1/appservice/irc/ping", map[string]any{})
	if a.code() != "M_BAD_STATUS" || a.body["status"] != 401.0 || a.text("body") != `{"errcode":"M_UNKNOWN_TOKEN"}` {
		t.Errorf("ping of a service that refuses: %s", a.raw)
	}
	// A redirect is an answer, and not followed.
	b.service.answers(func(string, string) (int, string) { return 302, `` })
	if a := b.call(502, "POST", "/v1/appservice/irc/ping", map[string]any{}); a.body["status"] != 302.0 {
		t.Errorf("ping of a service that redirects: %s", a.raw)
	}
	for _, c := range []struct {
		token, id string
		status    int
		code      string
	}{
		{"", "irc", 401, "M_MISSING_TOKEN"}, {alice.token, "irc", 403, "M_FORBIDDEN"}, {"quiet-secret", "irc", 403, "M_FORBIDDEN"},
		{"quiet-secret", "quiet", 400, "M_URL_NOT_SET"},
	} {
		if a := s.send("POST", "/_matrix/client/v1/appservice/"+c.id+"/ping", c.token, map[string]any{}); a.status != c.status || a.code() != c.code {
			t.Errorf("ping of %s: %d %s, want %d %s", c.id, a.status, a.raw, c.status, c.code)
		}
	}
	if a := b.call(400, "POST", "/v1/appservice/irc/ping", map[string]any{"transaction_id": 1}); a.code() != "M_BAD_JSON" {
		t.Errorf("ping with a number: %s", a.raw)
	}
}

func TestThirdPartyNetworks(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, nil)
	alice := s.newClient("alice")
	b.service.answers(func(_, path string) (int, string) {
		switch path {
		case "/_matrix/app/v1/thirdparty/protocol/irc":
			return 200, `{"user_fields":["nick"],"location_fields":["channel"],"icon":"mxc://a/b","field_types":{"nick":{"regexp":"[^ ]+","placeholder":"nick"}},"instances":[{"network_id":"home","desc":"Home","fields":{}}]}`
		case "/_matrix/app/v1/thirdparty/location/irc", "/_matrix/app/v1/thirdparty/location":
			return 200, `[{"alias":"#irc_x:s","protocol":"irc","fields":{}}, "nonsense"]`
		case "/_matrix/app/v1/thirdparty/user/irc", "/_matrix/app/v1/thirdparty/user":
			return 200, `[{"userid":"@irc_x:s","protocol":"irc","fields":{}}]`
		}
		return 404, `{"errcode":"M_NOT_FOUND"}`
	})
	all := alice.call(200, "GET", "/v3/thirdparty/protocols", nil)
	one := alice.call(200, "GET", "/v3/thirdparty/protocol/irc", nil)
	instance := one.body["instances"].([]any)[0].(map[string]any)["instance_id"].(string)
	if instance != "irc|home" || !strings.Contains(all.raw, `"instance_id":"irc|home"`) {
		t.Errorf("protocols %s, one %s", all.raw, one.raw)
	}
	alice.call(404, "GET", "/v3/thirdparty/protocol/xmpp", nil)
	for path, want := range map[string]string{
		"location/irc?channel=%23x": "location/irc?channel=%23x", "user/irc?nick=x": "user/irc?nick=x",
		"location?alias=%23irc_x:s": "location?alias=%23irc_x%3As", "user?userid=@irc_x:s": "user?userid=%40irc_x%3As",
	} {
		got := alice.call(200, "GET", "/v3/thirdparty/"+path, nil).raw
		q := b.service.questions()
		if !strings.HasPrefix(got, `[{"`) || strings.Contains(got, "nonsense") || q[len(q)-1] != "GET /_matrix/app/v1/thirdparty/"+want {
			t.Errorf("%s: %s; it was asked %q", path, got, q[len(q)-1])
		}
	}
	for path, want := range map[string]string{"location/xmpp": "M_NOT_FOUND", "user/xmpp": "M_NOT_FOUND", "location": "M_MISSING_PARAM", "user": "M_MISSING_PARAM"} {
		if a := s.send("GET", "/_matrix/client/v3/thirdparty/"+path, alice.token, nil); a.code() != want {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	for _, path := range []string{"protocols", "protocol/irc", "location/irc", "user/irc", "location?alias=x", "user?userid=x"} {
		if a := s.send("GET", "/_matrix/client/v3/thirdparty/"+path, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
			t.Errorf("%s without a token: %d %s", path, a.status, a.raw)
		}
	}
	// Its own directory of rooms.
	room := string(alice.room())
	b.call(200, "PUT", "/v3/directory/list/appservice/home/"+room, map[string]any{"visibility": "public"})
	listed := func(query map[string]any) bool {
		return strings.Contains(alice.call(200, "POST", "/v3/publicRooms", query).raw, room)
	}
	if listed(map[string]any{}) || !listed(map[string]any{"third_party_instance_id": instance}) || !listed(map[string]any{"include_all_networks": true}) || listed(map[string]any{"third_party_instance_id": "irc|away"}) {
		t.Error("the room is not listed where it should be, or where it should not be")
	}
	for _, c := range []struct {
		token  string
		body   string
		status int
		code   string
	}{{"", `{"visibility":"public"}`, 401, "M_MISSING_TOKEN"}, {alice.token, `{"visibility":"public"}`, 403, "M_FORBIDDEN"}, {b.token, `{"visibility":"dim"}`, 400, "M_INVALID_PARAM"}, {b.token, `{}`, 400, "M_INVALID_PARAM"}} {
		if a := s.send("PUT", "/_matrix/client/v3/directory/list/appservice/home/"+room, c.token, c.body); a.status != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s", c.body, a.status, a.raw)
		}
	}
	b.call(200, "PUT", "/v3/directory/list/appservice/home/"+room, map[string]any{"visibility": "private"})
	if listed(map[string]any{"third_party_instance_id": instance}) {
		t.Error("a room taken out is still listed")
	}
}
