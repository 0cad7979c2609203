package clientapi

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Stages of User-Interactive Authentication. Every flow here has exactly one, so a session is either open or done, and
// no completed stages need to be kept.
const (
	stagePassword = "m.login.password"
	stageToken    = "m.login.registration_token"
	stageDummy    = "m.login.dummy"
)

// authData is the "auth" of a request (CS API, User-interactive API in the REST API).
type authData struct {
	Type       string          `json:"type"`
	Session    string          `json:"session"`
	Identifier *userIdentifier `json:"identifier"`
	User       string          `json:"user"` // deprecated form of Identifier
	Password   string          `json:"password"`
	Token      string          `json:"token"`
}

// userIdentifier is the spec's user identifier object; only m.id.user is known here.
type userIdentifier struct {
	Type string `json:"type"`
	User string `json:"user"`
}

// named is the user that the client has named, in either form; "" if none.
func (d *authData) named() string {
	if d.Identifier != nil {
		return d.Identifier.User
	}
	return d.User
}

// Bounds of sessions: strangers can open them.
const (
	maxSessions    = 1000 // the one quiet for longest goes
	userSessions   = 20   // of one user, whose oldest goes: a client has one or two
	openSessions   = 500  // of callers that are no user yet, together
	sessionExpires = 15 * time.Minute
)

// authSession is an authentication under way, for one operation only.
type authSession struct {
	operation [sha256.Size]byte // its hash: a client chooses how long it is
	stage     string
	purpose   string            // in words for whoever is to prove it
	user      eventgraph.UserID // who is; "": any user, or nobody in particular
	expires   time.Time

	mu     sync.Mutex
	proven bool              // on the fallback page
	prover eventgraph.UserID // by password
}

// authSessions is for concurrent use.
type authSessions struct {
	now  func() time.Time
	open *shares[string, *authSession]
}

func newAuthSessions(now func() time.Time) *authSessions {
	s := &authSessions{now: now}
	s.open = newShares[string, *authSession](maxSessions, func(user eventgraph.UserID) int {
		if user == "" {
			return openSessions
		}
		return userSessions
	})
	return s
}

// begin opens a session for the operation.
func (s *authSessions) begin(operation, stage string, user eventgraph.UserID) string {
	id := rand.Text()
	s.open.add(user, id, &authSession{
		operation: sha256.Sum256([]byte(operation)), stage: stage, purpose: purposeOf(operation), user: user, expires: s.now().Add(sessionExpires),
	})
	return id
}

// get is the session, if it is open; nil if not.
func (s *authSessions) get(id string) *authSession {
	session, ok := s.open.get(id)
	if !ok || !s.now().Before(session.expires) {
		return nil
	}
	return session
}

// valid says whether the session is open and was begun for that operation.
func (s *authSessions) valid(id, operation string) bool {
	session := s.get(id)
	return session != nil && session.operation == sha256.Sum256([]byte(operation))
}

// end ends the session, and says whether it was open: what was proven on the fallback page counts once.
func (s *authSessions) end(id string) bool { return s.open.remove(id) }

// prove notes that the stage was passed, by the user if it asks for one.
func (s *authSession) prove(user eventgraph.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proven, s.prover = true, user
}

// proof says whether the stage was passed, and by whom if it asks for a user.
func (s *authSession) proof() (proven bool, user eventgraph.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proven, s.prover
}

// interactive lets a request for the operation pass if auth proves the stage, or names a session in which it was proven on the fallback page; else it
// answers the 401 that asks for it. check returns nil, an error with M_FORBIDDEN that the client may answer by trying again, or what failed.
// The operation names what is done to what by whom, so that a proof serves nothing else; user is who must prove it, "" if that is open. prover is who has proven a
// password on the fallback page, "" if check was called.
func (a *API) interactive(auth *authData, operation, stage string, user eventgraph.UserID, check func(*authData) error) (prover eventgraph.UserID, err error) {
	ask := &matrixError{Status: http.StatusUnauthorized, Extra: map[string]any{
		"flows":  []any{map[string]any{"stages": []string{stage}}},
		"params": map[string]any{},
	}}
	if auth == nil || (auth.Type == "" && auth.Session == "") {
		ask.Extra["session"] = a.auths.begin(operation, stage, user)
		return "", ask
	}
	// A client that skips the first request has no session to name.
	if auth.Session != "" && !a.auths.valid(auth.Session, operation) {
		ask.Code, ask.Message = "M_UNKNOWN", "That session is not known, or no more: start again."
		ask.Extra["session"] = a.auths.begin(operation, stage, user)
		return "", ask
	}
	if auth.Session == "" {
		auth.Session = a.auths.begin(operation, stage, user)
	}
	ask.Extra["session"] = auth.Session
	if auth.Type == "" { // "an auth dict with just the session ID"
		if session := a.auths.get(auth.Session); session != nil {
			if proven, prover := session.proof(); proven && a.auths.end(auth.Session) {
				return prover, nil
			}
		}
	}
	if auth.Type != stage {
		if auth.Type != "" {
			ask.Code, ask.Message = "M_UNRECOGNIZED", "That authentication type is not offered here."
		}
		return "", ask
	}
	err = check(auth)
	var refused *matrixError
	switch {
	case err == nil:
		a.auths.end(auth.Session)
		return "", nil
	case errors.As(err, &refused) && refused.Code == "M_FORBIDDEN":
		ask.Code, ask.Message = refused.Code, refused.Message
		return "", ask
	default:
		return "", err
	}
}

// confirm asks the caller to prove by password that they are the user of their access token. The operation need not name the
// user.
func (a *API) confirm(q *request, auth *authData, operation string) error {
	if q.service != nil {
		return nil // AS API, Device management, Cross-signing: no User-Interactive Authentication
	}
	if auth != nil {
		if name := auth.named(); name != "" && a.userNamed(name) != q.user {
			return forbidden("That is another user: only the one logged in here can confirm this.")
		}
	}
	_, err := a.interactive(auth, operation+" "+string(q.user), stagePassword, q.user, func(d *authData) error {
		_, err := a.checkPassword(q, q.user, d.Password, a.guesser(q))
		return err
	})
	return err
}

// confirmUser is confirm for requests that need no access token: without one the proof says who the caller is.
func (a *API) confirmUser(q *request, auth *authData, operation string) (user eventgraph.UserID, err error) {
	if q.service != nil {
		return "", errServiceAccount
	}
	if q.user != "" {
		return q.user, a.confirm(q, auth, operation)
	}
	prover, err := a.interactive(auth, operation, stagePassword, "", func(d *authData) error {
		account, err := a.checkPassword(q, a.userNamed(d.named()), d.Password, a.guesser(q))
		if err == nil {
			user = account.User
		}
		return err
	})
	return cmp.Or(prover, user), err
}

var (
	errDeactivated = fail(http.StatusForbidden, "M_USER_DEACTIVATED", "This account has been deactivated.")
	// errLocked: the client keeps its session and its keys, and comes again (CS API, Account locking).
	errLocked = &matrixError{Status: http.StatusUnauthorized, Code: "M_USER_LOCKED", Message: "This account has been locked.",
		Extra: map[string]any{"soft_logout": true}}
)

// usable answers errDeactivated or errLocked for an account that nobody can log in to.
func usable(account *store.Account) error {
	switch {
	case account.Deactivated:
		return errDeactivated
	case account.Locked:
		return errLocked
	}
	return nil
}

// maxUserID is the longest user ID (appendices, User Identifiers), in bytes.
const maxUserID = 255

// checkPassword returns the account if the password is its own; M_FORBIDDEN or M_USER_DEACTIVATED if not. Of a locked account it says so only to
// who knows the password. Wrong ones are counted for each user and guesser.
func (a *API) checkPassword(q *request, user eventgraph.UserID, password, guesser string) (*store.Account, error) {
	if len(user) > maxUserID { // nobody's; what is guessed about is kept in memory for a while
		return nil, forbidden("Wrong user name or password.")
	}
	right, err := a.guess(string(user) + guesser)
	if err != nil {
		return nil, err
	}
	account, err := a.account(user)
	if errors.Is(err, store.ErrNotFound) {
		return nil, forbidden("Wrong user name or password.")
	}
	if err != nil {
		return nil, err
	}
	if account.Deactivated {
		return nil, errDeactivated
	}
	ok, err := a.hashing.matches(q.Context(), account.PasswordHash, password)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, forbidden("Wrong user name or password.")
	}
	right()
	return account, usable(account)
}

// guesser tells apart who may try passwords or tokens without being kept from it by another: a device that is logged in, all web pages from elsewhere
// together, and all others. It is put behind what is guessed.
func (a *API) guesser(q *request) string {
	switch {
	case q.user != "":
		return "\x00device " + string(q.device)
	case a.foreignPage(q.Request):
		return "\x00page"
	}
	return ""
}

// fromFallback is the guesser on the fallback page of a session that a device has opened: nobody else knows the session's ID.
const fromFallback = "\x00fallback"

// guess is limits.guess where there are limits.
func (a *API) guess(who string) (right func(), err error) {
	if !a.RateLimits {
		return func() {}, nil
	}
	return a.limits.guess(who)
}

// account reads a local account; store.ErrNotFound.
func (a *API) account(user eventgraph.UserID) (account *store.Account, err error) {
	err = a.Store.View(func(r *store.Reader) (err error) {
		account, err = r.Account(user)
		return err
	})
	return account, err
}

// checkRegistrationToken answers nil if the token lets its holder register.
func (a *API) checkRegistrationToken(q *request, token string) error {
	right, err := a.guess("registration token" + a.guesser(q))
	if err != nil {
		return err
	}
	if a.RegistrationToken == "" || subtle.ConstantTimeCompare([]byte(strings.TrimSpace(token)), []byte(a.RegistrationToken)) != 1 {
		return forbidden("That is not the registration token.")
	}
	right()
	return nil
}
