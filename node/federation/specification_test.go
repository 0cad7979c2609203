package federation

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/node/internal/specdata"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// seen keeps how the endpoints of the server-server API were answered in this run of the tests.
var seen specdata.Seen

// bySpecification checks each answer of a handler against the schema that the specification has for it, as far as it is small.
func bySpecification(t testing.TB, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := specdata.Match(r.Method, r.URL.EscapedPath())
		if e == nil {
			handler.ServeHTTP(w, r)
			return
		}
		kept := &keeper{ResponseWriter: w, status: http.StatusOK}
		handler.ServeHTTP(kept, r)
		seen.Add(e, kept.status, kept.body.Bytes())
		if kept.size > kept.body.Len() {
			return
		}
		if err := e.Check(kept.status, e.Mended(departures, kept.status, kept.body.Bytes())); err != nil {
			t.Error(err)
		}
	})
}

// maxChecked is the largest answer that is checked: larger ones are many of the same.
const maxChecked = 1 << 20

// keeper keeps what is written on its way.
type keeper struct {
	http.ResponseWriter
	status, size int
	body         bytes.Buffer
}

func (k *keeper) WriteHeader(status int) {
	k.status = status
	k.ResponseWriter.WriteHeader(status)
}

func (k *keeper) Write(p []byte) (int, error) {
	if k.size += len(p); k.size <= maxChecked {
		k.body.Write(p)
	}
	return k.ResponseWriter.Write(p)
}

func (k *keeper) Unwrap() http.ResponseWriter { return k.ResponseWriter }

// exit ends the test binary: a whole run fails unless each endpoint of the specification was seen to succeed, to refuse a request
// without a proof of who asks where it demands one, and to refuse wrong input.
func exit(code int) {
	specdata.Exit(code, func() []string {
		return append(seen.Untested("server-server", notServed, excused), seen.Empty("server-server", empty)...)
	})
}

// notServed are endpoints that answer as unknown ones do, with the reason.
var notServed = map[string]string{
	"GET /.well-known/matrix/server":                                  "names of servers are keys: nobody looks them up",
	"GET /_matrix/federation/v1/query/{queryType}":                    "of other kinds than directory and profile",
	"POST /_matrix/policy/v1/sign":                                    "no policy server",
	"PUT /_matrix/federation/v1/3pid/onbind":                          "no identity servers",
	"PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}": "no identity servers",
}

// excused are endpoints of which something cannot be shown here, with what.
var excused = map[string][]string{
	// It is for room versions 1 and 2, which are not spoken: it answers M_INCOMPATIBLE_ROOM_VERSION, which TestWrongInput shows.
	"PUT /_matrix/federation/v1/invite/{roomId}/{eventId}": {"success", "wrong input"},
	// Its wrong input is a wrong token, a 401, which TestWrongInput shows.
	"GET /_matrix/federation/v1/openid/userinfo": {"wrong input"},
}

// empty are arrays and maps of answers that hold nothing here, by endpoint: Local gives these answers, and TestAnswersToServers of
// clientapi checks them.
var empty = map[string][]string{
	"GET /_matrix/federation/v1/user/devices/{userId}": {"…"},
	"POST /_matrix/federation/v1/user/keys/claim":      {"…"},
	"POST /_matrix/federation/v1/user/keys/query":      {"…"},
}

// departures are endpoints whose answers do not fit the specification's schema in one point.
var departures = map[string]specdata.Departure{
	"GET /_matrix/federation/v1/make_join/{roomId}/{userId}":  noOrigin,
	"GET /_matrix/federation/v1/make_knock/{roomId}/{userId}": noOrigin,
	"GET /_matrix/federation/v1/make_leave/{roomId}/{userId}": noOrigin,
	"PUT /_matrix/federation/v2/invite/{roomId}/{eventId}":    noOrigin,
}

var noOrigin = specdata.Departure{
	Why: "an event has no origin: it is no field of events any more, and in a template it would be signed as one",
	Mend: func(body map[string]any) {
		if event, ok := body["event"].(map[string]any); ok && event["origin"] == nil {
			event["origin"] = "example.org"
		}
	},
}

var variable = regexp.MustCompile(`\{[^}]*\}`)

// Every endpoint that demands a proof refuses a request without one, before anything else; what is not served is unknown.
func TestProofIsDemanded(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	for _, e := range specdata.Endpoints("server-server") {
		method, path, _ := strings.Cut(e.Name, " ")
		path = variable.ReplaceAllString(path, "x")
		_, not := notServed[e.Name]
		switch status, code := a.raw(b, method, path, "", "{}"); {
		case not && (status != 404 || code != "M_UNRECOGNIZED"):
			t.Errorf("%s: %d %s, but it is not served", e.Name, status, code)
		case !not && e.Auth && (status != 401 || code != "M_UNAUTHORIZED"):
			t.Errorf("%s without a proof: %d %s", e.Name, status, code)
		}
	}
}

// The most likely wrong input of endpoints whose own tests do not show it.
func TestWrongInput(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	for _, test := range []struct{ method, path, body, code string }{
		{"GET", v1 + "openid/userinfo", "", "M_UNKNOWN_TOKEN"},
		{"GET", v1 + "publicRooms?limit=few", "", "M_INVALID_PARAM"},
		{"POST", v1 + "publicRooms", `{"limit":"few"}`, "M_BAD_JSON"},
		{"GET", v1 + "user/devices/@nobody:elsewhere", "", "M_INVALID_PARAM"},
		{"PUT", v1 + "send/1", `{"pdus":7}`, "M_BAD_JSON"},
		{"PUT", v1 + "send/2", `{"pdus":[` + strings.Repeat("{},", maxPDUs) + `{}]}`, "M_BAD_JSON"},
		{"PUT", v1 + "send_knock/!x:y/$z", `{}`, "M_NOT_FOUND"},
		{"PUT", v1 + "invite/!x:y/$z", `{}`, "M_INCOMPATIBLE_ROOM_VERSION"},
		{"POST", "/_matrix/key/v2/query", `{"server_keys":7}`, "M_BAD_JSON"},
		{"GET", "/_matrix/key/v2/query/" + string(b.server) + "?minimum_valid_until_ts=x", "", "M_INVALID_PARAM"},
		{"POST", v1 + "user/keys/claim", `[]`, "M_BAD_JSON"},
		{"POST", v1 + "user/keys/query", `[]`, "M_BAD_JSON"},
	} {
		var body any
		if test.body != "" {
			body = json.RawMessage(test.body)
		}
		err := a.do(t.Context(), b.server, test.method, test.path, body, nil)
		var refusal *rooms.Refusal
		if !errors.As(err, &refusal) || refusal.Code != test.code {
			t.Errorf("%s %s %s: %v, want %s", test.method, test.path, test.body, err, test.code)
		}
	}
}
