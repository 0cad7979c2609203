package clientapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/store"
)

// Refresh tokens (CS API, Refreshing access tokens). A device has a pair of tokens in use. POST /refresh gives out the next
// pair; both pairs serve until one of the next is used:
//
//	            /refresh                    a token of the next pair is used
//	in use: A1 ─────────► in use A1, next A2 ───────────────────────────────► in use A2, previous A1
//	                       │  ▲
//	                       └──┘ /refresh again: the answer was lost, another next pair is made
//
// Of the previous pair it stays known whose it was, so that a request that was under way does not log the client out for good.

// accessTokenLives is how long the access token of a client lives that can refresh it. Each refresh costs two commits, and who can
// read the token on this machine can read the refresh token beside it.
const accessTokenLives = time.Hour

// unstableRefresh is the path of /refresh before spec v1.3 (MSC2918, Unstable prefix).
const unstableRefresh = "/_matrix/client/unstable/org.matrix.msc2918/refresh"

var (
	errUnknownToken = fail(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "The token is not known.")
	// errSoftLogout: the client keeps its device and its keys, and refreshes its token or logs in again.
	errSoftLogout = &matrixError{Status: http.StatusUnauthorized, Code: "M_UNKNOWN_TOKEN", Message: "The token serves no more.",
		Extra: map[string]any{"soft_logout": true}}
)

// newPair makes two tokens and tells them to the client.
func (a *API) newPair(answer map[string]any) (pair store.TokenPair) {
	answer["access_token"], pair.Token = newToken()
	answer["refresh_token"], pair.Refresh = newToken()
	answer["expires_in_ms"] = accessTokenLives.Milliseconds()
	pair.Expires = a.Now().Add(accessTokenLives).UnixMilli()
	return pair
}

// rotate puts the pair of the access token used into use, the next of its device. That it cannot be written is no reason to refuse
// the request.
func (a *API) rotate(ctx context.Context, used store.TokenHash) {
	var before store.TokenHash
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		d, err := tx.DeviceOfToken(used)
		if err != nil || d.Next.Token != used {
			return err // another request has done it
		}
		d.Rotate()
		before = d.Prev.Token
		return tx.PutDevice(d)
	})
	if err != nil {
		a.Log.Debug("a new access token was not put into use", "error", err)
		return
	}
	a.tokens.drop(before)
}

// refresh is POST /refresh.
func (a *API) refresh(q *request) (any, error) {
	var body struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.RefreshToken == "" {
		return nil, missingParam("refresh_token is missing.")
	}
	hash := hashOf(body.RefreshToken)
	if err := a.limitRefresh(q, hash); err != nil {
		return nil, err
	}
	answer := map[string]any{}
	next := a.newPair(answer)
	var ended []store.TokenHash
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		ended = nil
		d, err := tx.DeviceOfToken(hash)
		if errors.Is(err, store.ErrNotFound) {
			return errUnknownToken
		}
		if err != nil {
			return err
		}
		if account, err := tx.Account(d.User); err != nil {
			return err
		} else if account.Locked {
			return errLocked
		}
		switch hash {
		case d.Refresh:
			ended = append(ended, d.Next.Token)
		case d.Next.Refresh:
			ended = append(ended, d.Token)
			d.Rotate()
		case d.Prev.Refresh:
			return errSoftLogout
		default:
			return errUnknownToken // an access token
		}
		d.Next = next
		return tx.PutDevice(d)
	})
	if err != nil {
		return nil, err
	}
	a.tokens.drop(ended...)
	return answer, nil
}

// limitRefresh counts the request as the user's whose token it is: others that call without a token keep nobody from refreshing.
func (a *API) limitRefresh(q *request, token store.TokenHash) error {
	var d *store.Device
	err := a.Store.View(func(r *store.Reader) (err error) {
		d, err = r.DeviceOfToken(token)
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return a.limit(q)
	case err != nil || !a.RateLimits:
		return err
	}
	return a.limits.request(d.User)
}
