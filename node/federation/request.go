package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
)

const (
	// maxAnswer bounds the answer to a request: 100 events of 64 KiB and their frame.
	maxAnswer = 8 << 20
	// maxState bounds an answer that holds the whole state of a room with its auth chain.
	maxState = 96 << 20
	// maxErrorBody bounds what is read of an answer that is an error.
	maxErrorBody = 64 << 10
	// attemptTimeout is how long one peer may take to answer, from dialling to the last byte, beside what a long body needs to pass, and up to stateTimeout
	// in all what has come of the answer.
	attemptTimeout = 30 * time.Second
	// stateTimeout is the same for answers that name the whole state of a room.
	stateTimeout = 2 * time.Minute
	// streamTimeout is the same for those that hold it and are read as they come: 4 MB at 16 kbit/s, and some more.
	streamTimeout = time.Hour
)

// remoteError is an error that a server answered with. It is a *rooms.Refusal to errors.As.
type remoteError struct {
	Status     int
	Refusal    rooms.Refusal
	RetryAfter time.Duration // 0: not said
	Version    string        // room_version, with M_INCOMPATIBLE_ROOM_VERSION
}

func (e *remoteError) Error() string { return fmt.Sprintf("status %d: %v", e.Status, &e.Refusal) }
func (e *remoteError) Unwrap() error { return &e.Refusal }

// target joins a path from parts, each percent-encoded by itself, and a query.
func target(prefix string, parts []string, query url.Values) string {
	var b bytes.Buffer
	b.WriteString(prefix)
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	if len(query) > 0 {
		b.WriteByte('?')
		b.WriteString(query.Encode())
	}
	return b.String()
}

const (
	v1 = "/_matrix/federation/v1/"
	v2 = "/_matrix/federation/v2/"
)

// do sends a signed request to the server: to its connected peers, then by dialling those that its document names. The target goes out
// and is signed as given, percent-encoded. body may be nil; out may be nil. Errors are *remoteError (a *rooms.Refusal)
// where the server answered with one, else ErrUnreachable (ErrBlocked), errUnsignable, or that of ctx.
func (f *Federation) do(ctx context.Context, server eventgraph.ServerName, method, target string, body, out any) error {
	return f.doLarge(ctx, server, method, target, body, out, maxAnswer)
}

// doLarge is do with a bound of its own on the answer.
func (f *Federation) doLarge(ctx context.Context, server eventgraph.ServerName, method, target string, body, out any, limit int64) error {
	timeout := attemptTimeout
	if limit > maxAnswer {
		timeout = stateTimeout
	}
	if raw, ok := body.(json.RawMessage); ok {
		timeout += passing(len(raw))
	}
	return f.request(ctx, server, method, target, body, func(attempt context.Context, send sender) (bool, error) {
		attempt, flow, stop := newPassing(attempt, timeout)
		defer stop()
		return send(attempt, func(res *http.Response) (bool, error) {
			flow.from = res.Body
			raw, err := readBounded(flow, limit)
			switch {
			case errors.Is(err, errTooLong):
				return true, fmt.Errorf("%w: the answer of %s is longer than %d bytes", ErrUnreachable, server, limit)
			case err != nil:
				return false, err
			case out == nil:
				return true, nil
			}
			if err := json.Unmarshal(raw, out); err != nil {
				return true, fmt.Errorf("%w: answer of %s: %v", ErrUnreachable, server, err)
			}
			return true, nil
		})
	})
}

// doStream is do for an answer that read takes as it comes. Once a peer has begun to answer no other is tried, and the error is read's: it has
// seen how far it came. It may take streamTimeout, as long as something comes every stallTimeout.
func (f *Federation) doStream(ctx context.Context, server eventgraph.ServerName, method, target string, body any, read func(io.Reader) error) error {
	return f.request(ctx, server, method, target, body, func(attempt context.Context, send sender) (bool, error) {
		attempt, cancel := context.WithTimeout(attempt, streamTimeout)
		defer cancel()
		attempt, flow, stop := newPatient(attempt)
		defer stop()
		return send(attempt, func(res *http.Response) (bool, error) {
			flow.from = res.Body
			return true, read(flow)
		})
	})
}

// sender sends a request to the peer that is tried and hands over an answer of success, to be read at once. It returns false if the peer was not
// reached or broke off, so that another may be tried.
type sender func(ctx context.Context, read func(*http.Response) (answered bool, err error)) (answered bool, err error)

// request tries the peers that may speak for the server in turn.
func (f *Federation) request(ctx context.Context, server eventgraph.ServerName, method, target string, body any, try func(context.Context, sender) (bool, error)) error {
	var content []byte
	if body != nil {
		var err error
		if content, err = marshal(body); err != nil {
			return err
		}
	}
	if f.peers.isBlocked(server) {
		return fmt.Errorf("%w: %s", ErrBlocked, server)
	}
	authorization, err := f.authorize(server, method, target, content)
	if err != nil {
		return err
	}
	f.seek(ctx, server)
	var last error
	for _, peer := range f.candidates(server) {
		answered, err := try(ctx, func(ctx context.Context, read func(*http.Response) (bool, error)) (bool, error) {
			return f.attempt(ctx, peer, server, method, target, authorization, content, read)
		})
		if answered || ctx.Err() != nil {
			return err
		}
		last = err
	}
	if last == nil {
		last = errors.New("no peer is known to speak for it")
	}
	return fmt.Errorf("%w: %s: %v", ErrUnreachable, server, last)
}

// attempt asks one peer. answered is false if the peer was not reached or broke off, so that another may be tried.
func (f *Federation) attempt(ctx context.Context, peer eventgraph.PeerID, server eventgraph.ServerName, method, target, authorization string, content []byte, read func(*http.Response) (bool, error)) (answered bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+string(server)+target, bytes.NewReader(content))
	if err != nil {
		return true, err
	}
	if len(content) == 0 {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", authorization)
	res, err := f.Transport.Do(ctx, peer, req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	f.hearClock(server, res)
	if res.StatusCode/100 != 2 {
		return true, readError(res)
	}
	return read(res)
}

// readError reads the error in the spec's form; an answer without one is named by its status.
func readError(res *http.Response) error {
	e := &remoteError{Status: res.StatusCode}
	var body struct {
		Code         string `json:"errcode"`
		Reason       string `json:"error"`
		RetryAfterMS int64  `json:"retry_after_ms"`
		Version      string `json:"room_version"`
	}
	if raw, err := readBounded(res.Body, maxErrorBody); err == nil {
		json.Unmarshal(raw, &body) // whatever it holds: the status stands
	}
	if body.Code == "" {
		body.Code = "M_UNKNOWN"
		if res.StatusCode == http.StatusNotFound {
			body.Code = "M_UNRECOGNIZED"
		}
		body.Reason = "the other server answered " + strconv.Itoa(res.StatusCode)
	}
	e.Refusal = rooms.Refusal{Code: body.Code, Reason: body.Reason}
	e.Version = body.Version
	e.RetryAfter = max(0, time.Duration(min(body.RetryAfterMS, int64(time.Hour/time.Millisecond)))*time.Millisecond)
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = max(e.RetryAfter, time.Duration(min(seconds, 3600))*time.Second)
	}
	return e
}

// How many levels of a request, as it is signed, stand around its body, around a PDU or EDU in a transaction or invite, and around what is signed
// alone: what others have made may be as deep as may be signed, and deeper with these.
const (
	wrapsOfBody = 1 // {"content":…}
	wrapsOfPDU  = 3 // {"content":{"pdus":[…
	wrapsOfEDU  = 4 // {"content":{"edus":[{"content":…
)

// errUnsignable: a request cannot be signed, now or later, for what is in it.
var errUnsignable = errors.New("the request cannot be signed")

// signable says whether the content can be signed within so many levels more: it has a canonical form by the rules, where clients, and events of
// room versions 3 to 5, may have numbers that have none, and is not too deep.
func signable(content []byte, rules canonicaljson.Rules, wraps int) bool {
	if !shallow(content, wraps) {
		return false
	}
	_, err := canonicaljson.Canonicalize(content, rules)
	return err == nil
}

// shallow is signable of what has a canonical form.
func shallow(content []byte, wraps int) bool {
	return canonicaljson.Depth(content)+wraps <= canonicaljson.MaxDepth
}

// authorize makes the X-Matrix header of a request (SS API, Request Authentication).
func (f *Federation) authorize(server eventgraph.ServerName, method, target string, content []byte) (string, error) {
	object, err := marshal(signedRequest{Method: method, URI: target, Origin: f.server, Destination: server, Content: content})
	if err != nil {
		return "", err
	}
	signed, err := eventgraph.SignLenient(object, f.Key)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnsignable, err)
	}
	var with signedRequest
	if err := json.Unmarshal(signed, &with); err != nil {
		return "", err
	}
	return fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`,
		f.server, server, f.Key.ID, with.Signatures[f.server][f.Key.ID]), nil
}
