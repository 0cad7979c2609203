package federation

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// request is one call of the server-server API.
type request struct {
	*http.Request
	origin eventgraph.ServerName // who asks, proven; "" where the route asks for no proof
	peer   eventgraph.PeerID     // over whose connection
	body   json.RawMessage       // nil if there is none
	params map[string]string     // path parameters, decoded
}

// path is a path parameter, decoded.
func (q *request) path(name string) string { return q.params[name] }

// decode reads the JSON body into v.
func (q *request) decode(v any) error {
	if len(q.body) == 0 {
		return fail(http.StatusBadRequest, "M_NOT_JSON", "the request needs a JSON body")
	}
	if err := json.Unmarshal(q.body, v); err != nil {
		return fail(http.StatusBadRequest, "M_BAD_JSON", err.Error())
	}
	return nil
}

// authorization is the content of an X-Matrix Authorization header.
type authorization struct {
	origin, destination eventgraph.ServerName
	key                 eventgraph.KeyID
	sig                 string
}

// parseAuthorization parses "X-Matrix name=value,…" (SS API, Request Authentication; RFC 9110 section 11.4). Values may be tokens, tokens
// with colons, or quoted strings; unknown parameters are ignored.
func parseAuthorization(header string) (authorization, error) {
	var a authorization
	scheme, rest, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "X-Matrix") {
		return a, errors.New("not X-Matrix")
	}
	seen := map[string]bool{}
	for rest = strings.TrimLeft(rest, " "); rest != ""; {
		name, value, tail, err := nextParameter(rest)
		if err != nil {
			return a, err
		}
		rest = tail
		if seen[name] {
			return a, fmt.Errorf("parameter %s twice", name)
		}
		seen[name] = true
		switch name {
		case "origin":
			a.origin = eventgraph.ServerName(value)
		case "destination":
			a.destination = eventgraph.ServerName(value)
		case "key":
			a.key = eventgraph.KeyID(value)
		case "sig":
			a.sig = value
		}
	}
	if a.origin == "" || a.key == "" || a.sig == "" {
		return a, errors.New("origin, key or sig is missing")
	}
	return a, nil
}

// nextParameter splits name=value from the front, and the comma behind it.
func nextParameter(s string) (name, value, rest string, err error) {
	name, s, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", "", errors.New("parameter without a value")
	}
	name = strings.ToLower(strings.Trim(name, " \t"))
	if strings.HasPrefix(s, `"`) {
		var b strings.Builder
		i := 1
		for ; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' {
				i++
				if i == len(s) {
					break
				}
			}
			b.WriteByte(s[i])
		}
		if i >= len(s) {
			return "", "", "", errors.New("quoted value without an end")
		}
		value, s = b.String(), s[i+1:]
	} else {
		end := strings.IndexAny(s, ", \t")
		if end < 0 {
			end = len(s)
		}
		value, s = s[:end], s[end:]
	}
	s = strings.TrimLeft(s, " \t")
	if s == "" {
		return name, value, "", nil
	}
	if s[0] != ',' {
		return "", "", "", errors.New("no comma between parameters")
	}
	return name, value, strings.TrimLeft(s[1:], " \t"), nil
}

// signedRequest is what X-Matrix signs.
type signedRequest struct {
	Method      string                                                `json:"method"`
	URI         string                                                `json:"uri"`
	Origin      eventgraph.ServerName                                 `json:"origin"`
	Destination eventgraph.ServerName                                 `json:"destination"`
	Content     json.RawMessage                                       `json:"content,omitempty"`
	Signatures  map[eventgraph.ServerName]map[eventgraph.KeyID]string `json:"signatures,omitempty"`
}

// claim is who a request says it comes from, with the key that must have signed it.
type claim struct {
	authorization
	public ed25519.PublicKey
}

func deny(format string, args ...any) error {
	return fail(http.StatusUnauthorized, "M_UNAUTHORIZED", fmt.Sprintf(format, args...))
}

// claimed reads who asks from the header, before the body is read: the proven peer must speak for the origin now (design.md §6:
// X-Matrix beside the stream's proof) and the key must be valid now. Whatever is wrong is 401 M_UNAUTHORIZED; errRefused if it is a blocked server.
func (f *Federation) claimed(r *http.Request, peer eventgraph.PeerID) (*claim, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return nil, deny("the request needs one X-Matrix Authorization header")
	}
	a, err := parseAuthorization(headers[0])
	if err != nil {
		return nil, deny("Authorization header: %v", err)
	}
	if _, err := eventgraph.ParseServerName(string(a.origin)); err != nil {
		return nil, deny("origin is not a server name: %v", err)
	}
	// "Recipients should accept requests without" a destination; it is under the signature in any case.
	if a.destination != "" && a.destination != f.server {
		return nil, deny("the request is for another server")
	}
	if a.origin == f.server {
		return nil, deny("the origin is this server itself")
	}
	d, err := f.speaker(r.Context(), a.origin, peer)
	if err != nil {
		return nil, deny("%v", err)
	}
	if f.peers.isBlocked(a.origin) {
		return nil, errRefused // not before the proof: else anybody could try names to learn who is blocked here
	}
	key, err := d.KeyFor(a.key, f.Now().UnixMilli(), true)
	if err != nil {
		return nil, deny("key %s of %s: %v", a.key, a.origin, err)
	}
	return &claim{a, key}, nil
}

// verify checks the signature of the claim over the request exactly as received.
func (f *Federation) verify(c *claim, r *http.Request, body json.RawMessage) error {
	signed, err := marshal(signedRequest{
		Method: r.Method, URI: r.RequestURI, Origin: c.origin, Destination: f.server, Content: body,
		Signatures: map[eventgraph.ServerName]map[eventgraph.KeyID]string{c.origin: {c.key: c.sig}},
	})
	if err != nil {
		return deny("%v", err)
	}
	if err := eventgraph.VerifyLenient(signed, c.origin, c.key, c.public); err != nil {
		return deny("signature of the request: %v", err)
	}
	return nil
}

// speaker returns the origin's key document if by it the peer speaks for the origin now; the one held, or if that does not
// show it, one fetched from the very peer.
func (f *Federation) speaker(ctx context.Context, origin eventgraph.ServerName, peer eventgraph.PeerID) (*eventgraph.KeyDocument, error) {
	d := f.document(origin)
	if d != nil && speaksNow(d, peer, f.Now()) {
		return d, nil
	}
	unlock, err := f.asked.lock(ctx, peer) // so that a silent peer holds one slot, whatever it sends
	if err != nil {
		return nil, err
	}
	defer unlock()
	if d := f.document(origin); d != nil && speaksNow(d, peer, f.Now()) {
		return d, nil // the question before has answered this one
	}
	release, err := take(ctx, f.asking)
	if err != nil {
		return nil, err
	}
	defer release()
	d, err = f.identify(ctx, peer)
	if err != nil {
		return nil, fmt.Errorf("who speaks here is not known: %w", err)
	}
	if d.ServerName != origin || !speaksNow(d, peer, f.Now()) {
		return nil, errors.New("the peer does not speak for the origin")
	}
	return d, nil
}
