package clientapi

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// matrixError is an error in the spec's form (CS API, Standard error response). extra fields are added to the body.
type matrixError struct {
	Status  int
	Code    string // "": the body has no errcode (User-Interactive Authentication, first answer)
	Message string
	Extra   map[string]any
}

func (e *matrixError) Error() string { return e.Code + ": " + e.Message }

func fail(status int, code, message string) error {
	return &matrixError{Status: status, Code: code, Message: message}
}

func forbidden(message string) error { return fail(http.StatusForbidden, "M_FORBIDDEN", message) }
func notFound(message string) error  { return fail(http.StatusNotFound, "M_NOT_FOUND", message) }
func badJSON(message string) error   { return fail(http.StatusBadRequest, "M_BAD_JSON", message) }
func invalidParam(message string) error {
	return fail(http.StatusBadRequest, "M_INVALID_PARAM", message)
}
func missingParam(message string) error {
	return fail(http.StatusBadRequest, "M_MISSING_PARAM", message)
}

// errNoDevice is the answer to an application service about what only a device has (AS API, Identity assertion).
var errNoDevice = missingParam("An application service must say for which device: device_id is missing.")

var errUnrecognized = fail(http.StatusNotFound, "M_UNRECOGNIZED", "There is no such endpoint here.")

// refusalStatus is the HTTP status of each rooms.Refusal.Code that a client may see. Some refusals come from other
// servers: a code not named here becomes M_UNKNOWN, or a peer could answer M_UNKNOWN_TOKEN and log our users out.
var refusalStatus = map[string]int{
	"M_BAD_JSON":                  http.StatusBadRequest,
	"M_BAD_STATE":                 http.StatusForbidden,
	"M_FORBIDDEN":                 http.StatusForbidden,
	"M_INCOMPATIBLE_ROOM_VERSION": http.StatusBadRequest,
	"M_INVALID_PARAM":             http.StatusBadRequest,
	"M_INVALID_ROOM_STATE":        http.StatusBadRequest,
	"M_INVITE_BLOCKED":            http.StatusForbidden,
	"M_LIMIT_EXCEEDED":            http.StatusTooManyRequests,
	"M_MISSING_PARAM":             http.StatusBadRequest,
	"M_NOT_FOUND":                 http.StatusNotFound,
	"M_ROOM_IN_USE":               http.StatusBadRequest,
	"M_TOO_LARGE":                 http.StatusRequestEntityTooLarge,
	"M_UNABLE_TO_AUTHORISE_JOIN":  http.StatusBadRequest,
	"M_UNABLE_TO_GRANT_JOIN":      http.StatusBadRequest,
	"M_UNSUPPORTED_ROOM_VERSION":  http.StatusBadRequest,
}

// asMatrixError turns any error that a handler may return into the spec's form; nil for one that is nobody's fault but ours.
func asMatrixError(err error) *matrixError {
	var (
		matrix  *matrixError
		refusal *rooms.Refusal
		missing *rooms.MissingError
		policy  *federation.PolicyError
	)
	switch {
	case errors.As(err, &matrix):
		return matrix
	case errors.As(err, &policy):
		return policyError(policy)
	case errors.As(err, &refusal):
		if status, ok := refusalStatus[refusal.Code]; ok {
			return &matrixError{Status: status, Code: refusal.Code, Message: refusal.Reason}
		}
		return &matrixError{Status: http.StatusBadRequest, Code: "M_UNKNOWN", Message: refusal.Reason}
	case errors.As(err, &missing):
		return &matrixError{Status: http.StatusServiceUnavailable, Code: "M_UNKNOWN", Message: "Not all that this needs could be had from other servers yet."}
	case errors.Is(err, appservice.ErrNoAnswer):
		return &matrixError{Status: http.StatusRequestTimeout, Code: "M_UNKNOWN", Message: "The application service that would know does not answer."}
	case errors.Is(err, store.ErrNotFound):
		return &matrixError{Status: http.StatusNotFound, Code: "M_NOT_FOUND", Message: "Not found."}
	case errors.Is(err, store.ErrDiskFull):
		return &matrixError{Status: http.StatusInsufficientStorage, Code: "M_UNKNOWN", Message: "The disk of this device is nearly full: nothing can be written until there is room."}
	case errors.Is(err, store.ErrOutboundFull):
		return &matrixError{Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED", Message: "Too much waits for a server that is away. What was for other servers is sent.",
			Extra: map[string]any{"retry_after_ms": outboundFullRetry.Milliseconds()}}
	case errors.Is(err, store.ErrClosed):
		return &matrixError{Status: http.StatusServiceUnavailable, Code: "M_UNKNOWN", Message: "The server is shutting down."}
	case errors.Is(err, federation.ErrUnreachable):
		return &matrixError{Status: http.StatusBadGateway, Code: "M_UNKNOWN", Message: "No server that could answer this can be reached now."}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &matrixError{Status: http.StatusGatewayTimeout, Code: "M_UNKNOWN", Message: "It took too long."}
	}
	return nil
}

// policyError is what a policy server has against an event, "verbatim" (SS API, Validating Policy Server signatures) as far as it may say that;
// or why it could not be asked.
func policyError(p *federation.PolicyError) *matrixError {
	e := &matrixError{Status: p.Status, Code: p.Refusal.Code, Message: p.Refusal.Reason}
	switch p.Status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound: // as the endpoint is specified
	case http.StatusTooManyRequests:
		e.Extra = map[string]any{"retry_after_ms": max(p.RetryAfter, policyRetry).Milliseconds()}
	case 0:
		e.Status = http.StatusForbidden
		if errors.Is(p, federation.ErrUnreachable) {
			e.Status = http.StatusBadGateway
		}
	default:
		e.Status = http.StatusForbidden
	}
	if _, known := refusalStatus[e.Code]; !known && e.Code != "M_NOT_JSON" && e.Code != "M_UNKNOWN" && strings.HasPrefix(e.Code, "M_") {
		e.Code = "M_FORBIDDEN" // some codes speak of the user's session here
	}
	return e
}

// policyRetry is when a client may ask again for what a policy server was too busy for, if that has not said.
const policyRetry = time.Second

// outboundFullRetry is when a client may repeat what found store.ErrOutboundFull: it takes a meeting with the server.
const outboundFullRetry = time.Minute

// writeError answers with the error in the spec's form. An error that only a defect or a broken store explains is logged
// here, once, and told to the client without its details.
func (a *API) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := asMatrixError(err)
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil { // a client that has gone does not read this
		e = asMatrixError(store.ErrClosed)
	}
	if e == nil {
		a.Log.Error("a request failed", "method", r.Method, "route", routeForLog(r), "error", err)
		e = &matrixError{Status: http.StatusInternalServerError, Code: "M_UNKNOWN", Message: "Internal error."}
	}
	body := map[string]any{}
	maps.Copy(body, e.Extra)
	if e.Code != "" {
		body["errcode"], body["error"] = e.Code, e.Message
	}
	if ms, ok := body["retry_after_ms"].(int64); ok {
		w.Header().Set("Retry-After", retryAfter(ms))
	}
	a.writeJSON(w, e.Status, body)
}
