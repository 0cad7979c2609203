package clientapi

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/store"
)

// cachedTokens bounds the sessions kept in memory; a device has a handful.
const cachedTokens = 1000

// tokenCache spares each request a read of its session. A session that ends is dropped from it before the
// client hears that it has ended. It is for concurrent use.
type tokenCache struct {
	mu       sync.Mutex
	ended    uint64 // counts drops: a session read before one is not put in after it
	sessions *lru.Cache[store.TokenHash, store.Session]
}

func newTokenCache() *tokenCache {
	c := &tokenCache{}
	c.sessions, _ = lru.New[store.TokenHash, store.Session](cachedTokens) // fails only on a size below 1
	return c
}

// get returns the session, or the count to hand to put.
func (c *tokenCache) get(h store.TokenHash) (store.Session, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.sessions.Get(h)
	return s, c.ended, ok
}

func (c *tokenCache) put(h store.TokenHash, s store.Session, ended uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == ended {
		c.sessions.Add(h, s)
	}
}

// drop forgets sessions after their end was committed.
func (c *tokenCache) drop(hashes ...store.TokenHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
	for _, h := range hashes {
		c.sessions.Remove(h)
	}
}

// newToken makes an access token of 256 random bits and the hash under which the store keeps its session.
func newToken() (string, store.TokenHash) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails
	token := base64.RawURLEncoding.EncodeToString(secret[:])
	return token, sha256.Sum256([]byte(token))
}

// authenticate finds the session of the token.
func (a *API) authenticate(q *request, token string) error {
	hash := store.TokenHash(sha256.Sum256([]byte(token)))
	session, ended, ok := a.tokens.get(hash)
	if !ok {
		var found *store.Session
		err := a.Store.View(func(r *store.Reader) (err error) {
			found, err = r.Session(hash)
			return err
		})
		if errors.Is(err, store.ErrNotFound) {
			return fail(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "The access token is not known.")
		}
		if err != nil {
			return err
		}
		session = *found
		a.tokens.put(hash, session, ended)
	}
	q.user, q.device = session.User, session.Device
	return nil
}
