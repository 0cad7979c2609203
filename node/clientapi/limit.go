package clientapi

import (
	"math"
	"net/http"
	"strconv"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// The limits are there so that one client gone wild cannot keep the device busy; no person meets them.
const (
	userRate, userBurst       = 100, 500 // requests of one user, each second and at once
	strangerRate, strangBurst = 20, 100  // requests of all callers without a token, together
	guessRate                 = 1.0 / 6  // wrong passwords for one account: ten a minute,
	guessBurst                = 10       // and as many at once
	reportRate, reportBurst   = 0.1, 20  // reports of one user: a person reads them
	limitedUsers              = 1000     // accounts whose counts are kept
	// Web pages from elsewhere that call without a token have a count for each origin, as much as all programs without a token: what the person looks at
	// must not keep a client from logging in. An origin that is longer counts as one that is not named.
	limitedPages, maxOrigin = 1000, 255
)

// limits counts requests and wrong passwords. It is for concurrent use.
type limits struct {
	now       func() time.Time
	strangers *rate.Limiter
	pages     *lru.Cache[string, *rate.Limiter] // by origin
	users     *lru.Cache[eventgraph.UserID, *rate.Limiter]
	guesses   *lru.Cache[string, *rate.Limiter]
	reports   *lru.Cache[eventgraph.UserID, *rate.Limiter]
}

func newLimits(now func() time.Time) *limits {
	l := &limits{now: now, strangers: rate.NewLimiter(strangerRate, strangBurst)}
	l.pages, _ = lru.New[string, *rate.Limiter](limitedPages)
	l.users, _ = lru.New[eventgraph.UserID, *rate.Limiter](limitedUsers) // fails only on a size below 1
	l.guesses, _ = lru.New[string, *rate.Limiter](limitedUsers)
	l.reports, _ = lru.New[eventgraph.UserID, *rate.Limiter](limitedUsers)
	return l
}

// request counts one request of the user ("" = a stranger).
func (l *limits) request(user eventgraph.UserID) error {
	if user == "" {
		return l.take(l.strangers)
	}
	return l.take(limiterOf(l.users, user, userRate, userBurst))
}

// page counts one request of a web page from elsewhere; origin is "" if it is not named.
func (l *limits) page(origin string) error {
	if len(origin) > maxOrigin {
		origin = ""
	}
	return l.take(limiterOf(l.pages, origin, strangerRate, strangBurst))
}

// report counts one report of the user.
func (l *limits) report(user eventgraph.UserID) error {
	return l.take(limiterOf(l.reports, user, reportRate, reportBurst))
}

// guess counts one attempt to prove oneself as who, before it is known whether it is right; right takes it back.
func (l *limits) guess(who string) (right func(), err error) {
	now := l.now()
	reservation, err := reserve(limiterOf(l.guesses, who, guessRate, guessBurst), now)
	if err != nil {
		return nil, err
	}
	return func() { reservation.CancelAt(now) }, nil
}

func limiterOf[K comparable](cache *lru.Cache[K, *rate.Limiter], key K, r rate.Limit, burst int) *rate.Limiter {
	if limiter, ok := cache.Get(key); ok {
		return limiter
	}
	limiter := rate.NewLimiter(r, burst)
	if before, ok, _ := cache.PeekOrAdd(key, limiter); ok {
		return before
	}
	return limiter
}

// take counts one request.
func (l *limits) take(limiter *rate.Limiter) error {
	_, err := reserve(limiter, l.now())
	return err
}

// reserve answers M_LIMIT_EXCEEDED if the limiter has nothing left (CS API, Rate limiting).
func reserve(limiter *rate.Limiter, now time.Time) (*rate.Reservation, error) {
	reservation := limiter.ReserveN(now, 1)
	delay := reservation.DelayFrom(now)
	if delay <= 0 {
		return reservation, nil
	}
	reservation.CancelAt(now)
	return nil, &matrixError{
		Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED", Message: "Too many requests.",
		Extra: map[string]any{"retry_after_ms": delay.Milliseconds() + 1},
	}
}

// retryAfter is the header's value for an error's retry_after_ms, in whole seconds.
func retryAfter(ms int64) string {
	return strconv.FormatInt(int64(math.Ceil(float64(ms)/1000)), 10)
}
