package federation

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxBody bounds a request's body: 50 PDUs of 64 KiB and 100 EDUs of as much.
	maxBody = 12 << 20
	// smallBody is a body that is not counted against maxBodies: those of all requests but transactions.
	smallBody = 64 << 10
	// bodyTimeout is how long a body may take to arrive, over a slow link too: it holds its share of maxBodies meanwhile.
	bodyTimeout = 30 * time.Second
	// maxURI bounds a request's target: /backfill and /get_missing_events name a few hundred events at most.
	maxURI = 32 << 10
)

// handler answers with what becomes the JSON body of a 200, or an error that writeError turns into the spec's form. An answer that
// may be large is streamed.
type handler func(q *request) (any, error)

// route is one endpoint. Path parts in braces are parameters.
type route struct {
	method string
	parts  []string
	open   bool // no X-Matrix asked for
	cost   int  // units of the peer's budget
	serve  handler
}

// matrixError is an error in the spec's form with its HTTP status.
type matrixError struct {
	Status int
	rooms.Refusal
	RetryAfterMS int64                  // 0: not said
	Version      eventgraph.RoomVersion // room_version, with M_INCOMPATIBLE_ROOM_VERSION
}

func fail(status int, code, reason string) error {
	return &matrixError{Status: status, Refusal: rooms.Refusal{Code: code, Reason: reason}}
}

// router finds the route of a path as received: each part is decoded by itself, nothing is cleaned or redirected.
type router struct {
	f      *Federation
	routes []route
	cost   int // of the routes being added
}

func (r *router) add(method, path string, serve handler) {
	r.routes = append(r.routes, route{method: method, parts: strings.Split(path, "/"), cost: r.cost, serve: serve})
}

func (r *router) addOpen(method, path string, serve handler) {
	r.add(method, path, serve)
	r.routes[len(r.routes)-1].open = true
}

func (r *router) find(method, path string) (*route, map[string]string, error) {
	parts := strings.Split(path, "/")
	known := false
	for i := range r.routes {
		params, ok := r.routes[i].match(parts)
		if !ok {
			continue
		}
		if r.routes[i].method == method {
			return &r.routes[i], params, nil
		}
		known = true
	}
	if known {
		return nil, nil, fail(http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "this endpoint has no such method")
	}
	return nil, nil, fail(http.StatusNotFound, "M_UNRECOGNIZED", "there is no such endpoint")
}

func (r *route) match(parts []string) (map[string]string, bool) {
	if len(parts) != len(r.parts) {
		return nil, false
	}
	var params map[string]string
	for i, want := range r.parts {
		name, isParam := strings.CutPrefix(want, "{")
		if !isParam {
			if parts[i] != want {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(parts[i])
		if err != nil || value == "" {
			return nil, false
		}
		if params == nil {
			params = map[string]string{}
		}
		params[strings.TrimSuffix(name, "}")] = value
	}
	return params, true
}

// ServeHTTP takes a request through its steps: which peer, route, body, who asks, answer.
func (r *router) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	// By the clock that signs our events, not that of net/http: who asks judges ours by it (rooms.PeerClock).
	w.Header().Set("Date", r.f.Now().UTC().Format(http.TimeFormat))
	answer, err := r.serve(w, req)
	if errors.Is(err, errRefused) {
		r.f.Log.Debug("request not answered", "method", req.Method, "path", req.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		r.f.writeError(w, req, err)
		return
	}
	if write, ok := answer.(streamed); ok {
		r.f.writeStreamed(w, req, write)
		return
	}
	if write, ok := answer.(direct); ok {
		if err := write(w); err != nil {
			r.f.Log.Debug("answer broken off", "method", req.Method, "path", req.URL.Path, "err", err)
			panic(http.ErrAbortHandler)
		}
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

func (r *router) serve(w http.ResponseWriter, req *http.Request) (any, error) {
	peer, ok := r.f.PeerOf(req.Context())
	if !ok {
		return nil, fail(http.StatusUnauthorized, "M_UNAUTHORIZED", "no proven peer")
	}
	if r.f.peers.refuses(peer) {
		return nil, errRefused
	}
	if len(req.RequestURI) > maxURI {
		return nil, fail(http.StatusRequestURITooLong, "M_TOO_LARGE", "the request target is too long")
	}
	path, _, _ := strings.Cut(req.RequestURI, "?")
	route, params, err := r.find(req.Method, path)
	if err != nil {
		return nil, err
	}
	size := req.ContentLength
	if size > maxBody {
		return nil, errBodyTooLarge
	} else if size < 0 {
		size = maxBody // not told
	}
	if err := r.f.admit(req.Context(), peer, route, size); err != nil {
		return nil, err
	}
	q := &request{Request: req, peer: peer, params: params}
	var c *claim
	if !route.open {
		if c, err = r.f.claimed(req, peer); err != nil {
			return nil, err
		}
	}
	if size > smallBody {
		held := r.f.outerBodies
		if c != nil && (r.f.sharesRoom(c.origin) || r.f.invited(c.origin)) {
			held = r.f.bodies
		}
		if err := held.Acquire(req.Context(), size); err != nil {
			return nil, err
		}
		defer held.Release(size)
	}
	if q.body, err = readBody(w, req); err != nil {
		return nil, err
	}
	if c != nil {
		if err := r.f.verify(c, req, q.body); err != nil {
			return nil, err
		}
		q.origin = c.origin
	}
	return route.serve(q)
}

var errBodyTooLarge = fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "the body is too large")

func readBody(w http.ResponseWriter, req *http.Request) (json.RawMessage, error) {
	deadline := http.NewResponseController(w)
	if deadline.SetReadDeadline(time.Now().Add(bodyTimeout)) == nil { // not on connections that know no deadlines
		defer deadline.SetReadDeadline(time.Time{})
	}
	body, err := readBounded(http.MaxBytesReader(w, req.Body, maxBody+1), maxBody)
	switch {
	case errors.Is(err, errTooLong):
		return nil, errBodyTooLarge
	case err != nil:
		return nil, fail(http.StatusBadRequest, "M_NOT_JSON", "the body did not arrive whole")
	case len(bytes.TrimSpace(body)) == 0:
		return nil, nil
	case !json.Valid(body):
		return nil, fail(http.StatusBadRequest, "M_NOT_JSON", "the body is not JSON")
	}
	return body, nil
}

// statusOf is the HTTP status of a Matrix error code where the spec does not say another.
func statusOf(code string) int {
	switch code {
	case "M_FORBIDDEN":
		return http.StatusForbidden
	case "M_NOT_FOUND":
		return http.StatusNotFound
	case "M_TOO_LARGE":
		return http.StatusRequestEntityTooLarge
	case "M_LIMIT_EXCEEDED":
		return http.StatusTooManyRequests
	}
	return http.StatusBadRequest
}

// writeError answers with an error in the spec's form. What is our own fault is logged here, once, and not told.
func (f *Federation) writeError(w http.ResponseWriter, req *http.Request, err error) {
	var known *matrixError
	var refusal *rooms.Refusal
	var policy *PolicyError
	switch {
	case errors.As(err, &known):
	case errors.As(err, &policy):
		known = policy.toPeer()
	case errors.As(err, &refusal):
		known = &matrixError{Status: statusOf(refusal.Code), Refusal: *refusal}
	case errors.Is(err, store.ErrNotFound):
		known = &matrixError{Status: http.StatusNotFound, Refusal: rooms.Refusal{Code: "M_NOT_FOUND", Reason: "not found"}}
	case errors.Is(err, store.ErrDiskFull):
		known = &matrixError{Status: http.StatusServiceUnavailable, Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "the disk is full"}}
	case req.Context().Err() != nil:
		known = &matrixError{Status: http.StatusServiceUnavailable, Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "too late"}}
	default:
		f.Log.Error("request of a peer failed", "method", req.Method, "path", req.URL.Path, "err", err)
		known = &matrixError{Status: http.StatusInternalServerError, Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "internal error"}}
	}
	if known.Status < 500 {
		f.Log.Debug("request of a peer refused", "method", req.Method, "path", req.URL.Path, "err", err)
	}
	body := struct {
		Code         string                 `json:"errcode"`
		Reason       string                 `json:"error"`
		RetryAfterMS int64                  `json:"retry_after_ms,omitempty"`
		Version      eventgraph.RoomVersion `json:"room_version,omitempty"`
	}{known.Code, known.Reason, known.RetryAfterMS, known.Version}
	writeJSON(w, known.Status, body)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := marshal(v)
	if err != nil {
		panic("federation: an answer that is not JSON: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// streamed writes an answer, one JSON value, piece by piece. If it fails half-way the connection is broken off, so that what came does
// not pass for the whole.
type streamed func(w io.Writer) error

func (f *Federation) writeStreamed(w http.ResponseWriter, req *http.Request, write streamed) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	b := bufio.NewWriterSize(w, streamBuffer)
	err := write(b)
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		f.Log.Debug("answer broken off", "method", req.Method, "path", req.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// direct writes an answer that is not JSON, with its headers. If it fails the connection is broken off, as with streamed.
type direct func(w http.ResponseWriter) error

// streamBuffer is how much of a streamed answer is written at once.
const streamBuffer = 32 << 10

// marshal is json.Marshal without the escaping for HTML, which would copy each event once more.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// routes is the server-server API as served here; each group stands in the file of its handlers.
func (f *Federation) routes() http.Handler {
	r := &router{f: f, cost: costRequest}
	f.sendRoutes(r)
	f.keyRoutes(r)
	f.queryRoutes(r)
	f.mediaRoutes(r)
	r.cost = costMember
	f.memberRoutes(r)
	f.hierarchyRoutes(r)
	r.cost = costHistory
	f.directoryRoutes(r)
	f.eventRoutes(r)
	return r
}
