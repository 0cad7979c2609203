package clientapi

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/store"
)

// lastSeenEvery is how often a device's last use is written down: each time costs a commit.
const lastSeenEvery = time.Hour

// cachedTokens bounds the sessions kept in memory; a device has a handful.
const cachedTokens = 1000

// tokenCache spares each request a read of its session. A session that ends is dropped from it before the
// client hears that it has ended. It is for concurrent use.
type tokenCache struct {
	mu       sync.Mutex
	ended    uint64 // counts drops: a session read before one is not put in after it
	sessions *lru.Cache[store.TokenHash, cachedSession]
}

type cachedSession struct {
	store.Session
	lastSeen int64 // ms, of its device
	created  int64 // ms, likewise
	expires  int64 // ms; 0: never
	locked   bool  // the account is; whoever locks or unlocks it drops the session
}

func newTokenCache() *tokenCache {
	c := &tokenCache{}
	c.sessions, _ = lru.New[store.TokenHash, cachedSession](cachedTokens) // fails only on a size below 1
	return c
}

// over says whether its token has expired.
func (s *cachedSession) over(now int64) bool { return s.expires != 0 && now >= s.expires }

// get returns the session, or the count to hand to put.
func (c *tokenCache) get(h store.TokenHash) (cachedSession, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.sessions.Get(h)
	return s, c.ended, ok
}

func (c *tokenCache) put(h store.TokenHash, s cachedSession, ended uint64) {
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
	return token, hashOf(token)
}

func hashOf(token string) store.TokenHash { return sha256.Sum256([]byte(token)) }

// authenticate finds the session of the token, or the application service whose token it is.
func (a *API) authenticate(q *request, token string) error {
	if s := a.Services.ByToken(token); s != nil {
		return a.actAs(q, s)
	}
	hash := hashOf(token)
	session, ended, cached := a.tokens.get(hash)
	keep := !cached
	now := a.Now().UnixMilli()
	if !cached {
		var device *store.Device
		var account *store.Account
		err := a.Store.View(func(r *store.Reader) (err error) {
			if device, err = r.DeviceOfToken(hash); err == nil {
				account, err = r.Account(device.User)
			}
			return err
		})
		if errors.Is(err, store.ErrNotFound) {
			return errUnknownToken
		}
		if err != nil {
			return err
		}
		session = cachedSession{store.Session{User: device.User, Device: device.ID}, device.LastSeenTS, device.CreatedTS, device.Expires, account.Locked}
		switch hash {
		case device.Token:
		case device.Next.Token:
			session.expires = device.Next.Expires
			if !session.over(now) {
				a.rotate(q.Context(), hash)
				keep = false // not a session read before the other token was dropped
			}
		case device.Prev.Token:
			return errSoftLogout
		default:
			return errUnknownToken // a refresh token
		}
	}
	if session.over(now) {
		return errSoftLogout
	}
	seen := now-session.lastSeen >= lastSeenEvery.Milliseconds()
	if seen {
		session.lastSeen = now
	}
	if keep || seen && cached {
		a.tokens.put(hash, session, ended)
	}
	q.user, q.device, q.deviceCreated, q.locked = session.User, session.Device, session.created, session.locked
	if seen {
		a.noteUse(q, hash)
	}
	return nil
}

// noteUse writes down when and whence the device was used. That it cannot be written is no reason to refuse the request.
func (a *API) noteUse(q *request, hash store.TokenHash) {
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		d, err := tx.Device(q.user, q.device)
		if err != nil || d.Token != hash {
			return err
		}
		d.LastSeenTS, d.LastSeenIP = a.Now().UnixMilli(), remoteIP(q.Request)
		return tx.PutDevice(d)
	})
	if err != nil {
		a.Log.Debug("the last use of a device was not written down", "error", err)
	}
}
