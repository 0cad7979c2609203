package clientapi

import (
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// request is one call of the client API, authenticated as its route demands.
type request struct {
	*http.Request
	user   eventgraph.UserID
	device store.DeviceID
	w      http.ResponseWriter // for the few that stream or set headers
}

// path is a path parameter, decoded.
func (q *request) path(name string) string { panic("clientapi: skeleton") }

// decode reads the JSON body, at most maxBody bytes, into v: M_NOT_JSON, M_BAD_JSON or M_TOO_LARGE.
func (q *request) decode(v any) error { panic("clientapi: skeleton") }

// handler answers with what becomes the JSON body of a 200, or an error that writeError turns into the spec's form.
type handler func(q *request) (any, error)

// access is what a route asks of its caller.
type access uint8

const (
	public   access = iota
	optional        // a token is looked at if there is one
	authed
)

// route adds a handler for /_matrix/client/{v3,v1}/… given with its spec version; r0 answers as alias of v3. The path has {name} parameters.
func (a *API) route(method, path string, need access, h handler) { panic("clientapi: skeleton") }

// matrixError is an error in the spec's form (CS API, Standard error response). extra fields are added to the body.
type matrixError struct {
	Status  int
	Code    string
	Message string
	Extra   map[string]any
}

func (e *matrixError) Error() string { return e.Code + ": " + e.Message }

func fail(status int, code, message string) error {
	return &matrixError{Status: status, Code: code, Message: message}
}
