package clientapi

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Stages of User-Interactive Authentication. Each operation has one flow, of one stage or several; those of a flow may be passed in any order.
const (
	stagePassword = "m.login.password"
	stageToken    = "m.login.registration_token"
	stageDummy    = "m.login.dummy"
	stageTerms    = "m.login.terms"
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
	id        string
	operation [sha256.Size]byte // its hash: a client chooses how long it is
	stages    []string          // all of them are asked for
	purpose   string            // in words for whoever is to prove it
	user      eventgraph.UserID // who is; "": any user, or nobody in particular
	expires   time.Time

	mu     sync.Mutex
	passed []passedStage
	prover eventgraph.UserID // by password
	spent  bool
}

// passedStage is a stage that was passed, by a request or on its fallback page.
type passedStage struct {
	stage string
	ts    int64 // ms
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
func (s *authSessions) begin(operation string, user eventgraph.UserID, stages []string) *authSession {
	session := &authSession{
		id: rand.Text(), operation: sha256.Sum256([]byte(operation)), stages: stages, purpose: purposeOf(operation), user: user, expires: s.now().Add(sessionExpires),
	}
	s.open.add(user, session.id, session)
	return session
}

// get is the session, if it is open; nil if not.
func (s *authSessions) get(id string) *authSession {
	session, ok := s.open.get(id)
	if !ok || !s.now().Before(session.expires) {
		return nil
	}
	return session
}

// of is the session, if it is open and was begun for that operation; nil if not.
func (s *authSessions) of(id, operation string) *authSession {
	session := s.get(id)
	if session == nil || session.operation != sha256.Sum256([]byte(operation)) {
		return nil
	}
	return session
}

// end ends the session if all of its stages were passed, and says whether it has: they count for one request.
func (s *authSessions) end(session *authSession) bool {
	session.mu.Lock()
	defer session.mu.Unlock()
	if session.spent || len(session.passed) < len(session.stages) {
		return false
	}
	session.spent = true
	s.open.remove(session.id)
	return true
}

// pass notes that the stage was passed at a time in ms, by the user if it asks for one. A stage counts once, however often it is passed.
func (s *authSession) pass(stage string, user eventgraph.UserID, ts int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if user != "" {
		s.prover = user
	}
	if !slices.ContainsFunc(s.passed, func(p passedStage) bool { return p.stage == stage }) {
		s.passed = append(s.passed, passedStage{stage, ts})
	}
}

// completed lists the stages that were passed, in the order in which they were.
func (s *authSession) completed() (stages []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.passed {
		stages = append(stages, p.stage)
	}
	return stages
}

// passedTS is when the stage was passed, in ms; 0: it was not.
func (s *authSession) passedTS(stage string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.passed {
		if p.stage == stage {
			return p.ts
		}
	}
	return 0
}

// provenBy is the user whose password was proven; "" if the session asks for none.
func (s *authSession) provenBy() eventgraph.UserID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prover
}

// interactive lets a request for the operation pass once all stages are passed in its session, the last of them by this request or on the fallback page;
// until then it answers the 401 that asks for them. It returns the session, which has ended.
// The operation names what is done to what by whom, so that a proof serves nothing else; user is who must prove it, "" if that is open.
func (a *API) interactive(q *request, auth *authData, operation string, user eventgraph.UserID, stages ...string) (*authSession, error) {
	if auth == nil || (auth.Type == "" && auth.Session == "") {
		return nil, a.askFor(a.auths.begin(operation, user, stages), "", "")
	}
	session := a.auths.of(auth.Session, operation)
	switch {
	case auth.Session == "": // a client that skips the first request has none to name
		session = a.auths.begin(operation, user, stages)
	case session == nil:
		return nil, a.askAgain(operation, user, stages)
	}
	if auth.Type != "" { // else "an auth dict with just the session ID"
		if !slices.Contains(stages, auth.Type) {
			return nil, a.askFor(session, "M_UNRECOGNIZED", "That authentication type is not offered here.")
		}
		err := a.passStage(q, session, auth, a.guesser(q))
		var refused *matrixError
		switch {
		case err == nil:
		case errors.As(err, &refused) && refused.Code == "M_FORBIDDEN": // the client may try again
			return nil, a.askFor(session, refused.Code, refused.Message)
		default:
			return nil, err
		}
	}
	if a.auths.end(session) {
		return session, nil
	}
	if len(session.completed()) == len(stages) { // another request has just used it
		return nil, a.askAgain(operation, user, stages)
	}
	return nil, a.askFor(session, "", "")
}

// askFor is the 401 that asks for the stages of the session. With a code it says what was wrong with the last attempt.
func (a *API) askFor(session *authSession, code, message string) error {
	params := map[string]any{}
	if slices.Contains(session.stages, stageTerms) {
		params[stageTerms] = map[string]any{"policies": a.Terms}
	}
	ask := &matrixError{Status: http.StatusUnauthorized, Code: code, Message: message, Extra: map[string]any{
		"flows":   []any{map[string]any{"stages": session.stages}},
		"params":  params,
		"session": session.id,
	}}
	if completed := session.completed(); len(completed) > 0 {
		ask.Extra["completed"] = completed
	}
	return ask
}

// askAgain is askFor after a session that is not open, with another one.
func (a *API) askAgain(operation string, user eventgraph.UserID, stages []string) error {
	return a.askFor(a.auths.begin(operation, user, stages), "M_UNKNOWN", "That session is not known, or no more: start again.")
}

// passStage checks what auth says for the stage that it names, one of the session's; guesser is who may have tried passwords before. It answers M_FORBIDDEN for what the person may try again.
func (a *API) passStage(q *request, session *authSession, auth *authData, guesser string) error {
	var prover eventgraph.UserID
	switch auth.Type {
	case stageToken:
		if err := a.checkRegistrationToken(q, auth.Token); err != nil {
			return err
		}
	case stagePassword:
		account, err := a.checkPassword(q, cmp.Or(session.user, a.userNamed(auth.named())), auth.Password, guesser)
		if err != nil {
			return err
		}
		prover = account.User
	} // m.login.terms: "an auth dict with just the type and session"
	session.pass(auth.Type, prover, a.Now().UnixMilli())
	return nil
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
	_, err := a.interactive(q, auth, operation+" "+string(q.user), q.user, stagePassword)
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
	session, err := a.interactive(q, auth, operation, "", stagePassword)
	if err != nil {
		return "", err
	}
	return session.provenBy(), nil
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
