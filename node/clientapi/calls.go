package clientapi

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
)

// TURN is a relay through which calls pass that find no other way (CS API, Voice over IP). plexus does not run one; it tells clients of one that
// is there, with either a fixed user and password, or a secret that it shares with the relay.
type TURN struct {
	URIs           []string // turn: and turns:
	User, Password string
	Secret         string        // then User and Password are made of it for each client, and serve for TTL
	TTL            time.Duration // how long clients may use what they are given; at least a second
}

// Check says what is wrong with the configuration.
func (t *TURN) Check() error {
	if len(t.URIs) == 0 {
		return errors.New("a relay for calls has no URI")
	}
	for _, uri := range t.URIs {
		scheme, rest, _ := strings.Cut(uri, ":")
		if scheme != "turn" && scheme != "turns" {
			return fmt.Errorf("%q is no URI of a relay for calls: neither turn: nor turns: stands at its beginning", uri)
		}
		if rest == "" || strings.HasPrefix(rest, "//") { // RFC 7065
			return fmt.Errorf("%q is no URI of a relay for calls: the host comes right after the colon", uri)
		}
	}
	switch fixed := t.User != "" || t.Password != ""; {
	case fixed && t.Secret != "":
		return errors.New("a relay for calls has either a user and password or a secret")
	case fixed && (t.User == "" || t.Password == ""):
		return errors.New("a relay for calls needs both a user and a password")
	case !fixed && t.Secret == "":
		return errors.New("a relay for calls needs a user and password, or a secret")
	}
	if t.TTL < time.Second {
		return errors.New("what clients are given for a relay for calls must serve for a second at least")
	}
	return nil
}

// callRoutes registers what calls need. Their events and messages are like any others.
func (a *API) callRoutes() {
	a.route("GET", "/_matrix/client/v3/voip/turnServer", authed, a.turnServer)
	a.route("GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", authed, a.rtcTransports)
}

// turnServer is GET /voip/turnServer; {} if no relay is configured: calls between devices of one network need none.
func (a *API) turnServer(q *request) (any, error) {
	t := a.TURN
	if t == nil {
		return nil, nil
	}
	user, password := t.User, t.Password
	if t.Secret != "" {
		// "REST API for access to TURN services": the name holds the end in Unix seconds, the password is the relay's own computation over it.
		user = fmt.Sprintf("%d:%s", a.Now().Add(t.TTL).Unix(), q.user)
		mac := hmac.New(sha1.New, []byte(t.Secret))
		mac.Write([]byte(user))
		password = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return map[string]any{"username": user, "password": password, "uris": t.URIs, "ttl": int64(t.TTL / time.Second)}, nil
}

// rtcTransports lists no selective forwarding unit (MSC4143).
func (a *API) rtcTransports(*request) (any, error) {
	return map[string]any{"rtc_transports": []any{}}, nil
}
