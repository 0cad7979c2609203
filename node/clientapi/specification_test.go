package clientapi

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/node/internal/specdata"
)

// seen keeps how the endpoints of the specification were answered in this run of the tests. Each answer was checked against the
// specification's schema when it came (testServer.do).
var seen specdata.Seen

// exit ends the test binary: a whole run fails unless each endpoint of the specification was seen to succeed, to refuse a request
// without a proof of who asks where it demands one, and to refuse wrong input.
func exit(code int) {
	specdata.Exit(code, func() []string { return seen.Untested("client-server", notServed, excused) })
}

// excused are endpoints of which something cannot be shown, with what.
var excused = map[string][]string{
	// No mail, no telephone, no identity server: refused, which TestThirdPartyIDsAreRefused shows.
	"POST /_matrix/client/v3/account/3pid":                         {"success"},
	"POST /_matrix/client/v3/account/3pid/add":                     {"success"},
	"POST /_matrix/client/v3/account/3pid/bind":                    {"success"},
	"POST /_matrix/client/v3/account/3pid/delete":                  {"success"},
	"POST /_matrix/client/v3/account/3pid/email/requestToken":      {"success"},
	"POST /_matrix/client/v3/account/3pid/msisdn/requestToken":     {"success"},
	"POST /_matrix/client/v3/account/3pid/unbind":                  {"success"},
	"POST /_matrix/client/v3/account/password/email/requestToken":  {"success"},
	"POST /_matrix/client/v3/account/password/msisdn/requestToken": {"success"},
	"POST /_matrix/client/v3/register/email/requestToken":          {"success"},
	"POST /_matrix/client/v3/register/msisdn/requestToken":         {"success"},
}

// departures are endpoints whose answers are let be though they do not fit the specification's schema, with the reason.
var departures = map[string]string{
	"GET /_matrix/client/v3/rooms/{roomId}/joined_members": "what is missing of a profile is null: matrix-nio refuses the whole answer without it",
	"GET /_matrix/client/v3/voip/turnServer":               "{} where no TURN server is configured, as other servers answer and clients expect",
}

// notServed are endpoints that answer as unknown ones do, with the reason.
var notServed = map[string]string{
	"GET /.well-known/matrix/policy_server":             "no policy server",
	"GET /.well-known/matrix/support":                   "nobody runs this server for others",
	"GET /_matrix/client/v1/admin/lock/{userId}":        "no user is an administrator: that is who can reach the admin socket",
	"GET /_matrix/client/v1/admin/suspend/{userId}":     "no user is an administrator",
	"PUT /_matrix/client/v1/admin/lock/{userId}":        "no user is an administrator",
	"PUT /_matrix/client/v1/admin/suspend/{userId}":     "no user is an administrator",
	"GET /_matrix/client/v1/auth_metadata":              "no OAuth 2.0: the specification's 404 says so",
	"GET /_matrix/client/v3/events":                     "deprecated; /sync has it all",
	"GET /_matrix/client/v3/events/{eventId}":           "deprecated; rooms/{roomId}/event has it",
	"GET /_matrix/client/v3/initialSync":                "deprecated; /sync has it all",
	"GET /_matrix/client/v3/rooms/{roomId}/initialSync": "deprecated; /sync has it all",
	"GET /_matrix/client/v3/login/sso/redirect":         "no single sign-on is offered by GET /login",
	"GET /_matrix/client/v3/login/sso/redirect/{idpId}": "no single sign-on is offered by GET /login",
}

// Every endpoint that demands a token refuses a request without one and one with a token that nobody has, before anything else.
func TestTokensAreDemanded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	for _, e := range specdata.Endpoints("client-server") {
		if _, not := notServed[e.Name]; not || !e.Auth || mayComeWithout[e.Name] {
			continue
		}
		method, path, _ := strings.Cut(e.Name, " ")
		path = variable.ReplaceAllString(path, "x")
		var body any
		if method != "GET" {
			body = "{}"
		}
		if a := s.send(method, path, "", body); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
			t.Errorf("%s without a token: %d %s", e.Name, a.status, a.raw)
		}
		if a := s.send(method, path, "nobodys", body); a.status != 401 || a.code() != "M_UNKNOWN_TOKEN" {
			t.Errorf("%s with nobody's token: %d %s", e.Name, a.status, a.raw)
		}
	}
}

var variable = regexp.MustCompile(`\{[^}]*\}`)

// mayComeWithout are endpoints that may be asked without a token though the specification demands one.
var mayComeWithout = map[string]bool{
	"GET /_matrix/client/v1/room_summary/{roomIdOrAlias}": true, // programs of this machine may (access programs)
}

// What is not served answers as what the specification says of unknown endpoints.
func TestNotServed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	for name := range notServed {
		method, path, _ := strings.Cut(name, " ")
		if a := s.send(method, variable.ReplaceAllString(path, "x"), alice.token, nil); a.status != 404 || a.code() != "M_UNRECOGNIZED" {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
}

// The most likely wrong input of endpoints whose own tests do not show it.
func TestWrongInput(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	id := string(alice.room())
	room, own := "/v3/rooms/"+id, "/v3/rooms/"+string(bob.room())
	elsewhere := "/v3/rooms/!nowhere:elsewhere"
	other := "/v3/user/" + string(alice.user)
	for _, test := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"DELETE", "/v3/profile/" + string(alice.user) + "/displayname", "", 403, "M_FORBIDDEN"},
		{"DELETE", other + "/rooms/!x:y/tags/u.work", "", 403, "M_FORBIDDEN"},
		{"GET", other + "/rooms/!x:y/tags", "", 403, "M_FORBIDDEN"},
		{"GET", "/v1/rooms/!nowhere:elsewhere/relations/$x/m.thread", "", 404, "M_NOT_FOUND"},
		{"GET", "/v1/rooms/!nowhere:elsewhere/relations/$x/m.thread/m.room.message", "", 404, "M_NOT_FOUND"},
		{"GET", "/v1" + elsewhere[3:] + "/timestamp_to_event?ts=1&dir=f", "", 403, "M_FORBIDDEN"},
		{"GET", "/v1" + own[3:] + "/timestamp_to_event?ts=early&dir=f", "", 400, "M_INVALID_PARAM"},
		{"GET", "/v3/directory/list/room/!nowhere:elsewhere", "", 404, "M_NOT_FOUND"},
		{"PUT", "/v3/directory/list/room/!nowhere:elsewhere", `{"visibility":"public"}`, 404, "M_NOT_FOUND"},
		{"PUT", "/v3/directory/list/room/" + id, `{"visibility":"shown"}`, 400, "M_INVALID_PARAM"},
		{"GET", "/v3/keys/changes?from=x&to=y", "", 400, "M_INVALID_PARAM"},
		{"GET", "/v3/pushrules/global/override/none/actions", "", 404, "M_NOT_FOUND"},
		{"GET", "/v3/pushrules/global/override/none/enabled", "", 404, "M_NOT_FOUND"},
		{"GET", elsewhere + "/aliases", "", 403, "M_FORBIDDEN"},
		{"GET", elsewhere + "/context/$x", "", 404, "M_NOT_FOUND"},
		{"GET", elsewhere + "/event/$x", "", 404, "M_NOT_FOUND"},
		{"GET", elsewhere + "/state", "", 403, "M_FORBIDDEN"},
		{"POST", "/v1/login/get_token", `{"auth":7}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/account/deactivate", `{"auth":7}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/delete_devices", `{"devices":7}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/keys/claim", `{"one_time_keys":[]}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/keys/query", `{"device_keys":{"@a:b":"all"}}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/keys/signatures/upload", `[]`, 400, "M_BAD_JSON"},
		{"POST", room + "/ban", `{}`, 400, "M_MISSING_PARAM"},
		{"POST", room + "/ban", `{"user_id":"` + string(alice.user) + `"}`, 403, "M_FORBIDDEN"},
		{"POST", room + "/kick", `{"user_id":7}`, 400, "M_BAD_JSON"},
		{"POST", room + "/unban", `{"user_id":"bob"}`, 400, "M_INVALID_PARAM"},
		{"POST", room + "/invite", `{"user_id":"bob"}`, 400, "M_INVALID_PARAM"},
		{"POST", room + "/invite", `{"user_id":"` + string(alice.user) + `"}`, 403, "M_FORBIDDEN"},
		{"POST", own + "/forget", `{}`, 400, "M_UNKNOWN"},
		{"POST", room + "/join", `{"reason":7}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/rooms/nothing/join", `{}`, 400, "M_INVALID_PARAM"},
		{"POST", elsewhere + "/leave", `{}`, 404, "M_NOT_FOUND"},
		{"POST", own + "/read_markers", `{"m.fully_read":7}`, 400, "M_BAD_JSON"},
		{"POST", room + "/read_markers", `{"m.fully_read":"$x"}`, 403, "M_FORBIDDEN"},
		{"POST", own + "/receipt/m.seen/$x", `{}`, 400, "M_INVALID_PARAM"},
		{"PUT", elsewhere + "/redact/$x/1", `{}`, 404, "M_NOT_FOUND"},
		{"PUT", room + "/typing/" + string(alice.user), `{"typing":true}`, 403, "M_FORBIDDEN"},
		{"PUT", own + "/typing/" + string(bob.user), `{"typing":"yes"}`, 400, "M_BAD_JSON"},
	} {
		var body any
		if test.body != "" {
			body = test.body
		}
		if a := s.send(test.method, "/_matrix/client"+test.path, bob.token, body); a.status != test.status || a.code() != test.code {
			t.Errorf("%s %s %s: %d %s, want %d %s", test.method, test.path, test.body, a.status, a.raw, test.status, test.code)
		}
	}
}

// What other tests of this package use without the endpoint, in one small room.
func TestSmallSuccesses(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	base := "/v3/rooms/" + string(room)
	event := alice.message(room, `{"msgtype":"m.text","body":"hello"}`)

	var state []map[string]any
	if err := json.Unmarshal([]byte(alice.call(200, "GET", base+"/state", nil).raw), &state); err != nil || len(state) != 4 {
		t.Errorf("state: %d events, %v", len(state), err)
	}
	if a := alice.call(200, "GET", "/v1"+base[3:]+"/timestamp_to_event?dir=b&ts="+strconv.FormatInt(s.time().UnixMilli(), 10), nil); a.text("event_id") != string(event) {
		t.Errorf("timestamp_to_event: %s, want %s", a.raw, event)
	}
	list := "/v3/directory/list/room/" + string(room)
	if a := alice.call(200, "GET", list, nil); a.text("visibility") != "private" {
		t.Errorf("visibility at first: %s", a.raw)
	}
	alice.call(200, "PUT", list, `{"visibility":"public"}`)
	if a := alice.call(200, "GET", list, nil); a.text("visibility") != "public" {
		t.Errorf("visibility then: %s", a.raw)
	}
	alice.call(200, "POST", base+"/read_markers", map[string]any{"m.fully_read": event, "m.read": event})
	if a := alice.call(200, "GET", "/v3/user/"+string(alice.user)+"/rooms/"+string(room)+"/account_data/m.fully_read", nil); a.text("event_id") != string(event) {
		t.Errorf("m.fully_read: %s", a.raw)
	}
}
