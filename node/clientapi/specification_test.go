package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/internal/specdata"
)

// seen keeps how the endpoints of the specification were answered in this run of the tests. Each answer was checked against the
// specification's schema when it came (testServer.do).
var seen specdata.Seen

// exit ends the test binary: a whole run fails unless each endpoint of the specification was seen to succeed, to refuse a request
// without a proof of who asks where it demands one, and to refuse wrong input.
func exit(code int) {
	specdata.Exit(code, func() []string {
		return append(seen.Untested("client-server", notServed, excused), seen.Empty("client-server", empty)...)
	})
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

// empty are arrays and maps of answers that never hold anything, by endpoint.
var empty = map[string][]string{
	"GET /_matrix/client/v3/account/3pid": {".threepids[]"}, // there are none (excused)
	// Every field of a profile may be set, so none is named.
	"GET /_matrix/client/v3/capabilities": {".capabilities.m.profile_fields.allowed[]", ".capabilities.m.profile_fields.disallowed[]"},
	// Only override and underride rules have conditions.
	"GET /_matrix/client/v3/pushrules/":        {".global.content[].conditions[]", ".global.room[].conditions[]", ".global.sender[].conditions[]"},
	"GET /_matrix/client/v3/pushrules/global/": {".content[].conditions[]", ".room[].conditions[]", ".sender[].conditions[]"},
}

// departures are endpoints whose answers do not fit the specification's schema in one point.
var departures = map[string]specdata.Departure{
	"GET /_matrix/client/v3/rooms/{roomId}/joined_members": {
		Why: "what is missing of a profile is null: matrix-nio refuses the whole answer without it",
		Mend: func(body map[string]any) {
			joined, _ := body["joined"].(map[string]any)
			for _, profile := range joined {
				profile, _ := profile.(map[string]any)
				maps.DeleteFunc(profile, func(_ string, value any) bool { return value == nil })
			}
		},
	},
	"GET /_matrix/client/v3/voip/turnServer": {
		Why: "{} where no TURN server is configured, as other servers answer and clients expect",
		Mend: func(body map[string]any) {
			if len(body) == 0 {
				maps.Copy(body, map[string]any{"username": "", "password": "", "uris": []any{}, "ttl": 0})
			}
		},
	},
}

// checkAnswer checks an answer against the specification's schema, after what the departures name, and what parameters change that the
// schema does not know: only that.
func checkAnswer(e *specdata.Endpoint, query url.Values, status int, raw []byte) error {
	named := departures
	mend := func(mend func(map[string]any)) { named = map[string]specdata.Departure{e.Name: {Mend: mend}} }
	switch {
	case status != http.StatusOK:
	case query.Get("format") == "event" && strings.HasPrefix(e.Name, "GET /_matrix/client/v3/rooms/{roomId}/state/"):
		// The schema demands that it is either a content or an event, and every event fits what is said of a content too.
		e = specdata.Match("GET", "/_matrix/client/v3/rooms/!room/event/$event")
	case query.Get("org.matrix.msc4140.delay") != "":
		mend(func(body map[string]any) { // MSC4140: there is no event yet
			if id, ok := body["delay_id"].(string); ok && id != "" {
				delete(body, "delay_id")
				body["event_id"] = "$event"
			}
		})
	case strings.Contains(query.Get("filter"), `"event_format":"federation"`):
		mend(func(body map[string]any) { giveEventIDs(body) })
	}
	return e.Check(status, e.Mended(named, status, raw))
}

// giveEventIDs gives each event in the format of federation what that lacks against the other: its event_id.
func giveEventIDs(value any) {
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			giveEventIDs(item)
		}
	case map[string]any:
		if value["auth_events"] != nil && value["event_id"] == nil {
			value["event_id"] = "$event"
		}
		for _, member := range value {
			giveEventIDs(member)
		}
	}
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
	"GET /_matrix/client/v3/events/{eventId}":           "deprecated; rooms/{roomId}/event has it",
	"GET /_matrix/client/v3/initialSync":                "deprecated; /sync has it all",
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
		{"POST", "/v3/keys/claim", `{"one_time_keys":`, 400, "M_NOT_JSON"},
		{"POST", "/v3/keys/claim", `{}`, 400, "M_MISSING_PARAM"},
		{"POST", "/v3/keys/query", `{"device_keys":{"@a:b":"all"}}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/keys/query", `{"device_keys":[]}`, 400, "M_BAD_JSON"},
		{"POST", "/v3/keys/query", `{"device_keys":`, 400, "M_NOT_JSON"},
		{"POST", "/v3/keys/query", `{}`, 400, "M_MISSING_PARAM"},
		{"POST", "/v3/keys/signatures/upload", `[]`, 400, "M_BAD_JSON"},
		{"POST", room + "/ban", `{}`, 400, "M_MISSING_PARAM"},
		{"POST", room + "/ban", `{"user_id":"` + string(alice.user) + `"}`, 403, "M_FORBIDDEN"},
		{"POST", room + "/kick", `{"user_id":7}`, 400, "M_BAD_JSON"},
		{"POST", room + "/unban", `{"user_id":"bob"}`, 400, "M_INVALID_PARAM"},
		{"POST", room + "/invite", `{"user_id":"bob"}`, 400, "M_INVALID_PARAM"},
		{"POST", room + "/invite", `{"user_id":"` + string(alice.user) + `"}`, 403, "M_FORBIDDEN"},
		{"POST", own + "/forget", `{}`, 400, "M_UNKNOWN"},
		{"POST", "/v3/rooms/nothing/forget", `{}`, 400, "M_INVALID_PARAM"},
		{"GET", "/v3/directory/room/nothing", "", 400, "M_INVALID_PARAM"},
		{"PUT", "/v3/directory/room/nothing", `{"room_id":"` + id + `"}`, 400, "M_INVALID_PARAM"},
		{"DELETE", "/v3/directory/room/nothing", "", 400, "M_INVALID_PARAM"},
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

// What other servers ask of keys is read here: of the wrong form it is refused.
func TestWrongKeyQuestions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	for _, body := range []string{`{"one_time_keys":[]}`, `{"one_time_keys":{"@a:b":7}}`, `{"device_keys":[]}`, `{"device_keys":{"@a:b":"all"}}`, `[]`} {
		for name, ask := range map[string]func(context.Context, eventgraph.ServerName, json.RawMessage) (json.RawMessage, error){"claim": s.ClaimKeys, "query": s.QueryKeys} {
			if strings.Contains(body, "one_time_keys") && name != "claim" || strings.Contains(body, "device_keys") && name != "query" {
				continue
			}
			_, err := ask(t.Context(), "example.org", json.RawMessage(body))
			var refused *matrixError
			if !errors.As(err, &refused) || refused.Status != 400 || refused.Code != "M_BAD_JSON" {
				t.Errorf("%s %s: %v, want 400 M_BAD_JSON", name, body, err)
			}
		}
	}
}

// What other servers are told of users and their keys fits the server-server API's schemas, with something in each array and map.
func TestAnswersToServers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	device := alice.withKeys(1, 1)
	master, self := newKeyPair(alice.user, "", 2), newKeyPair(alice.user, "", 3)
	alice.call(200, "POST", "/v3/keys/device_signing/upload", map[string]any{
		"master_key": master.crossSigning(t, "master", nil), "self_signing_key": self.crossSigning(t, "self_signing", &master),
	})
	alice.call(200, "PUT", "/v3/profile/"+string(alice.user)+"/avatar_url", map[string]string{"avatar_url": "mxc://example.org/a"})
	user := string(alice.user)
	var told specdata.Seen
	for _, c := range []struct {
		method, path string
		answer       func() (json.RawMessage, error)
		with         []string // what the answer has in it
	}{
		{"GET", "user/devices/" + user, func() (json.RawMessage, error) { return s.Devices(t.Context(), alice.user) },
			[]string{device.public(), master.public(), self.public()}},
		{"POST", "user/keys/query", func() (json.RawMessage, error) {
			return s.QueryKeys(t.Context(), "example.org", json.RawMessage(`{"device_keys":{"`+user+`":[]}}`))
		}, []string{device.public(), master.public(), self.public()}},
		{"POST", "user/keys/claim", func() (json.RawMessage, error) {
			return s.ClaimKeys(t.Context(), "example.org", json.RawMessage(`{"one_time_keys":{"`+user+`":{"`+string(alice.device)+`":"signed_curve25519"}}}`))
		}, []string{"signed_curve25519:K000"}},
		{"GET", "query/profile", func() (json.RawMessage, error) { return s.Profile(t.Context(), alice.user, "") },
			[]string{`"displayname":"alice"`, `"avatar_url":"mxc://example.org/a"`}},
	} {
		answer, err := c.answer()
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		e := specdata.Match(c.method, "/_matrix/federation/v1/"+c.path)
		told.Add(e, 200, answer)
		if err := e.Check(200, answer); err != nil {
			t.Error(err)
		}
		for _, with := range c.with {
			if !strings.Contains(string(answer), with) {
				t.Errorf("%s lacks %s: %s", c.path, with, answer)
			}
		}
	}
	for _, line := range told.Empty("server-server", nil) {
		t.Errorf("no answer has %s", line)
	}
}
