package clientapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Short tokens prove for a short time who somebody is, and serve for nothing else. They do not outlast the process.

const (
	loginTokenLives = 2 * time.Minute // as the spec recommends
	openIDLives     = time.Hour
	maxShortTokens  = 1000 // of one kind; the oldest goes
	userShortTokens = 50   // of these of one user: clients ask for one OpenID token for each widget and call
)

// loginToken is the type of logging in with a short token (CS API, Token-based).
const loginToken = "m.login.token"

// tokenHolder says whom a token stands for.
type tokenHolder struct {
	user    eventgraph.UserID
	device  store.DeviceID // that has asked for it, created at
	created int64          // ms
	expires time.Time
}

// shortTokens are the tokens of one kind, for concurrent use.
type shortTokens struct {
	now   func() time.Time
	lives time.Duration
	held  *shares[store.TokenHash, tokenHolder]
}

func newShortTokens(now func() time.Time, lives time.Duration) *shortTokens {
	t := &shortTokens{now: now, lives: lives}
	t.held = newShares[store.TokenHash, tokenHolder](maxShortTokens, func(eventgraph.UserID) int { return userShortTokens })
	return t
}

// add makes a token for the caller.
func (t *shortTokens) add(q *request) string {
	token, hash := newToken()
	t.held.add(q.user, hash, tokenHolder{q.user, q.device, q.deviceCreated, t.now().Add(t.lives)})
	return token
}

// find looks at a token.
func (t *shortTokens) find(token string) (tokenHolder, bool) {
	found, ok := t.held.get(hashOf(token))
	return found, ok && t.now().Before(found.expires)
}

// take finds a token that serves once.
func (t *shortTokens) take(token string) (tokenHolder, bool) {
	found, ok := t.find(token)
	return found, t.held.remove(hashOf(token)) && ok // of two that take it at once, one has removed it
}

// valid says whether the device that has asked for the token is still logged in, and the account in use.
func (a *API) valid(p tokenHolder) (bool, error) {
	err := a.Store.View(func(r *store.Reader) error {
		account, err := r.Account(p.user)
		if err != nil {
			return err
		}
		if account.Deactivated || account.Locked {
			return store.ErrNotFound
		}
		if p.device == "" { // asked for by an application service
			return nil
		}
		d, err := r.Device(p.user, p.device)
		if err == nil && d.CreatedTS != p.created {
			err = store.ErrNotFound
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// getLoginToken is POST /login/get_token: what another client can log in with as the same user, once. The user is asked for the
// password each time.
func (a *API) getLoginToken(q *request) (any, error) {
	var body struct {
		Auth *authData `json:"auth"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if q.service != nil {
		return nil, errServiceAccount
	}
	if err := a.confirm(q, body.Auth, "get login token"); err != nil {
		return nil, err
	}
	return map[string]any{"login_token": a.loginTokens.add(q), "expires_in_ms": loginTokenLives.Milliseconds()}, nil
}

// redeemLoginToken answers whom a login token stands for; M_FORBIDDEN.
func (a *API) redeemLoginToken(token string) (eventgraph.UserID, error) {
	refused := forbidden("The login token is not known, or no more.")
	p, ok := a.loginTokens.take(token)
	if !ok {
		return "", refused
	}
	if ok, err := a.valid(p); err != nil || !ok {
		if err == nil {
			err = refused
		}
		return "", err
	}
	return p.user, nil
}

// requestOpenIDToken is POST /user/{userId}/openid/request_token.
func (a *API) requestOpenIDToken(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	if _, err := q.body(); err != nil {
		return nil, err
	}
	return map[string]any{
		"access_token": a.openIDTokens.add(q), "token_type": "Bearer", "matrix_server_name": a.Server,
		"expires_in": int(openIDLives.Seconds()),
	}, nil
}

// openIDUser is GET /_matrix/federation/v1/openid/userinfo: a service that a user has given an OpenID token asks whose it is. On
// this listener it answers for services on this machine; servers ask over the transport.
func (a *API) openIDUser(q *request) (any, error) {
	token := q.URL.Query().Get("access_token")
	if token == "" {
		return nil, fail(http.StatusUnauthorized, "M_MISSING_TOKEN", "access_token is missing.")
	}
	user, err := a.OpenIDUser(token)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errUnknownToken
	}
	return map[string]any{"sub": user}, err
}

// OpenIDUser is whom an OpenID token stands for; store.ErrNotFound.
func (a *API) OpenIDUser(token string) (eventgraph.UserID, error) {
	p, ok := a.openIDTokens.find(token)
	if !ok {
		return "", store.ErrNotFound
	}
	ok, err := a.valid(p)
	if err == nil && !ok {
		err = store.ErrNotFound
	}
	return p.user, err
}
