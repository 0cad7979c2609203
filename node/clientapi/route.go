package clientapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds on a request's body. Key uploads and account data of long-lived accounts reach some 100 KiB.
const (
	maxBody       = 4 << 20  // of a caller with a token
	maxPublicBody = 64 << 10 // of a caller without
	// bodyStall is for each piece of a body, bodyGrace for the whole beside what media.Pace gives its bytes.
	bodyStall, bodyGrace = 30 * time.Second, 30 * time.Second
)

// request is one call of the client API, authenticated as its route demands.
type request struct {
	*http.Request
	user   eventgraph.UserID
	device store.DeviceID
	// deviceCreated is the time, in ms, that tells the device from an earlier one of the same ID.
	deviceCreated int64
	locked        bool // the account is

	service *appservice.Service // that acts as user; nil: the user does

	w      http.ResponseWriter // for the few that stream or set headers
	params []param
}

type param struct{ name, value string }

// path is a path parameter, decoded.
func (q *request) path(name string) string {
	for _, p := range q.params {
		if p.name == name {
			return p.value
		}
	}
	panic("clientapi: the route has no parameter " + name)
}

// decode reads the JSON body, at most maxBody bytes, into v: M_NOT_JSON, M_BAD_JSON or M_TOO_LARGE.
// An empty body counts as {}: several clients send none where they have nothing to say.
func (q *request) decode(v any) error {
	body, err := q.body()
	if err != nil {
		return err
	}
	return decodeJSON(body, v)
}

// body reads the whole body; {} if it is empty. It must be a JSON object in UTF-8.
func (q *request) body() (json.RawMessage, error) {
	limit := int64(maxBody)
	if q.user == "" {
		limit = maxPublicBody
	}
	deadline := http.NewResponseController(q.w)
	paced := pacedReader{q.Body, deadline, &media.Pace{Stall: bodyStall, Grace: bodyGrace}}
	body, err := io.ReadAll(http.MaxBytesReader(q.w, io.NopCloser(paced), limit))
	deadline.SetReadDeadline(time.Time{}) // what follows may wait
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The body is too large.")
		}
		return nil, fail(http.StatusBadRequest, "M_UNKNOWN", "The body could not be read.")
	}
	if len(body) == 0 {
		return json.RawMessage("{}"), nil
	}
	if !utf8.Valid(body) || !json.Valid(body) {
		return nil, fail(http.StatusBadRequest, "M_NOT_JSON", "The body is not valid JSON.")
	}
	if !isObject(body) {
		return nil, fail(http.StatusBadRequest, "M_BAD_JSON", "The body must be a JSON object.")
	}
	return body, nil
}

// decodeJSON is json.Unmarshal with errors in the spec's form.
func decodeJSON(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	var wrongType *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrongType):
		return fail(http.StatusBadRequest, "M_BAD_JSON", fmt.Sprintf("%q has the wrong type.", wrongType.Field))
	case isSyntaxError(err):
		return fail(http.StatusBadRequest, "M_NOT_JSON", "The body is not valid JSON.")
	default:
		return fail(http.StatusBadRequest, "M_BAD_JSON", "The body is not of the expected form.")
	}
}

func isSyntaxError(err error) bool {
	var syntax *json.SyntaxError
	return errors.As(err, &syntax)
}

// isObject says whether valid JSON is an object.
func isObject(valid []byte) bool {
	return strings.HasPrefix(strings.TrimLeft(string(valid[:min(len(valid), 64)]), " \t\r\n"), "{")
}

// handler answers with what becomes the JSON body of a 200 (nil: {}), or an error that writeError turns into the
// spec's form. One that has written its response itself returns written{}.
type handler func(q *request) (any, error)

// written is what a handler returns that has answered by itself.
type written struct{}

// access is what a route asks of its caller.
type access uint8

const (
	public   access = iota
	optional        // a token is looked at if there is one
	// programs is optional for programs on this machine; web pages need a token. What the spec answers without one would tell any page that the
	// person looks at who they are, and it can call here.
	programs
	authed
)

// routeTree is the routes by path segment. Segments are compared after decoding, so a parameter may hold "/".
type routeTree struct {
	static map[string]*routeTree
	param  *routeTree // any one segment that is not empty
	calls  map[string]*call
}

// call is one method of one path.
type call struct {
	names   []string // of the parameters, in the order of the path
	need    access
	inside  insideCall // of a room, which may be still coming
	locked  bool       // serves locked accounts too
	limits  bool       // its handler counts the request
	sends   bool       // makes events
	handler handler
}

// route adds a handler under the path as the spec writes it, "/_matrix/client/v3/rooms/{roomId}/leave"; what is
// given as v3 answers under r0 too. A parameter never matches an empty segment, so a path with a slash at its end is a
// route of its own.
func (a *API) route(method, path string, need access, h handler) {
	t, c := &a.routes, &call{need: need, inside: whileJoining(method, path), locked: whileLocked(path), sends: makesEvents(method, path), limits: limitsItself(path), handler: h}
	for _, segment := range strings.Split(path[1:], "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			c.names = append(c.names, strings.TrimSuffix(name, "}"))
			if t.param == nil {
				t.param = &routeTree{}
			}
			t = t.param
			continue
		}
		if t.static == nil {
			t.static = map[string]*routeTree{}
		}
		if t.static[segment] == nil {
			t.static[segment] = &routeTree{}
		}
		t = t.static[segment]
	}
	if t.calls == nil {
		t.calls = map[string]*call{}
	}
	if t.calls[method] != nil {
		panic("clientapi: two handlers for " + method + " " + path)
	}
	t.calls[method] = c
}

// find returns the calls at a path and the values of its parameters; static segments win over parameters.
func (t *routeTree) find(segments []string, values []string) (map[string]*call, []string) {
	if len(segments) == 0 {
		return t.calls, values
	}
	if next := t.static[segments[0]]; next != nil {
		if calls, values := next.find(segments[1:], values); calls != nil {
			return calls, values
		}
	}
	if t.param != nil && segments[0] != "" {
		return t.param.find(segments[1:], append(values, segments[0]))
	}
	return nil, nil
}

// maxSegments is far beyond the longest path of the spec.
const maxSegments = 16

// segments splits an escaped path and decodes its parts; nil if it is malformed. r0 is read as v3: both name the same calls
// (the v3 API is r0.6.1 renamed).
func segments(escaped string) []string {
	parts := strings.SplitN(strings.TrimPrefix(escaped, "/"), "/", maxSegments+1)
	if len(parts) > maxSegments {
		return nil
	}
	for i, part := range parts {
		decoded, err := url.PathUnescape(part)
		if err != nil || !utf8.ValidString(decoded) {
			return nil
		}
		parts[i] = decoded
	}
	if len(parts) > 2 && parts[0] == "_matrix" && parts[2] == "r0" {
		parts[2] = "v3"
	}
	return parts
}

// serve answers one HTTP request.
func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			a.Log.Error("a request panicked", "method", r.Method, "route", routeForLog(r), "panic", p, "stack", string(debug.Stack()))
			a.writeError(w, r, fail(http.StatusInternalServerError, "M_UNKNOWN", "Internal error."))
		}
	}()
	if !a.hostAllowed(r) {
		a.writeError(w, r, fail(http.StatusForbidden, "M_FORBIDDEN", "This server does not answer under that host name."))
		return
	}
	if r.URL.Path == "/" {
		a.page(w, r)
		return
	}
	// CS API, Web Browser Clients.
	header := w.Header()
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
	header.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization")
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return
	}

	calls, values := a.routes.find(segments(r.URL.EscapedPath()), nil)
	if calls == nil {
		a.writeError(w, r, errUnrecognized)
		return
	}
	c := calls[r.Method]
	if c == nil {
		for method := range calls {
			header.Add("Allow", method)
		}
		a.writeError(w, r, fail(http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "This endpoint does not know that method."))
		return
	}
	q := &request{Request: r, w: w}
	for i, name := range c.names {
		q.params = append(q.params, param{name, values[i]})
	}
	if err := a.admit(q, c); err != nil {
		a.writeError(w, r, err)
		return
	}
	if c.sends {
		defer a.open.begin(q)()
	}
	var answer any
	var answered bool
	var err error
	if c.inside != notInside && q.user != "" {
		answer, answered, err = a.awaitJoin(q, c.inside)
	}
	if !answered && err == nil {
		answer, err = c.handler(q)
	}
	if err != nil {
		a.writeError(w, r, err)
		return
	}
	if _, ok := answer.(written); ok {
		return
	}
	if c.sends {
		a.writeAtOnce(w, answer)
		return
	}
	a.writeJSON(w, http.StatusOK, answer)
}

// whileLocked says whether a route serves a locked account too: it can log out, and nothing else (CS API, Account locking).
func whileLocked(path string) bool {
	return path == "/_matrix/client/v3/logout" || path == "/_matrix/client/v3/logout/all"
}

// admit finds out who calls, as the route needs it, and whether it is not too often.
func (a *API) admit(q *request, c *call) error {
	if c.need != public {
		token := q.token()
		switch {
		case token != "":
			if err := a.authenticate(q, token); err != nil {
				return err
			}
			if q.locked && !c.locked {
				return errLocked
			}
		case c.need == authed, c.need == programs && fromPage(q.Request):
			return errMissingToken
		}
	}
	if !a.RateLimits || q.unlimited() || c.need == public && a.Services.ByToken(q.token()) != nil {
		return nil // where no token is needed, a service that registers or logs in its users calls as itself
	}
	if c.limits {
		return nil
	}
	return a.limit(q)
}

// limit counts a request: as its user's or, without one, as the page's that sends it or as one of all others.
func (a *API) limit(q *request) error {
	switch {
	case !a.RateLimits:
		return nil
	case q.user == "" && a.foreignPage(q.Request):
		return a.limits.page(q.Header.Get("Origin"))
	}
	return a.limits.request(q.user)
}

// limitsItself says whether a route's handler counts the request: a refresh token tells whose it is.
func limitsItself(path string) bool {
	return path == "/_matrix/client/v3/refresh" || path == unstableRefresh
}

var errMissingToken = fail(http.StatusUnauthorized, "M_MISSING_TOKEN", "An access token is needed.")

// fromPage says whether a web page that is not ours has made the request: browsers say so (Fetch, Origin header; Fetch Metadata,
// Sec-Fetch-Site), and no page can keep them from it.
func fromPage(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return r.Header.Get("Origin") != "" || site != "" && site != "none" && site != "same-origin"
}

// token is the access token: in the Authorization header, or, for the clients that knew no better, in the query; the latter
// from this machine only, where no proxy logs it.
func (q *request) token() string {
	if h := q.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	if remote, err := netip.ParseAddrPort(q.RemoteAddr); err == nil && remote.Addr().Unmap().IsLoopback() {
		return q.URL.Query().Get("access_token")
	}
	return ""
}

// hostAllowed checks the Host header: a web page anywhere can make its own name resolve to a loopback address (DNS
// rebinding), but then its name stands here. IP literals cannot be rebound.
func (a *API) hostAllowed(r *http.Request) bool {
	host := hostOf(r.Host)
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return slices.ContainsFunc(a.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsLoopback() {
		return true
	}
	return slices.ContainsFunc(a.Hosts, func(h string) bool {
		if h == "" { // ":8008": every address
			return true
		}
		allowed, err := netip.ParseAddr(h)
		return err == nil && (allowed.IsUnspecified() || allowed.Unmap().WithZone("") == ip)
	})
}

// hostOf strips the port, the brackets of an IPv6 address, and the root's dot.
func hostOf(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// writeJSON answers with v as JSON, without the escaping that HTML would need.
func (a *API) writeJSON(w http.ResponseWriter, status int, v any) {
	if v == nil {
		v = struct{}{}
	}
	jsonHeader(w)
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		// Either the client has gone, or a handler answered with what is no JSON: the latter is our defect.
		var unsupported *json.MarshalerError
		if errors.As(err, &unsupported) {
			a.Log.Error("a response could not be encoded", "error", err)
		}
	}
}

func jsonHeader(w http.ResponseWriter) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
}

// routeForLog is the request's path without what names rooms, users and events.
func routeForLog(r *http.Request) string {
	parts := strings.Split(r.URL.Path, "/")
	for i, part := range parts {
		if i > 4 && strings.ContainsAny(part, "@!#$:") {
			parts[i] = "…"
		}
	}
	return strings.Join(parts, "/")
}
