package clientapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/pushrules"
	"github.com/plexus-p2p/plexus/store"
)

// maxAccounts is far more than the people of one device; it bounds what open registration can fill. Users of application services are not
// among them: bridges make one for each person on the other side. They are bounded by store.MaxServiceUsers.
const maxAccounts = 1000

// register is POST /register.
func (a *API) register(q *request) (any, error) {
	switch q.URL.Query().Get("kind") {
	case "", "user":
	case "guest":
		return nil, fail(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "There are no guest accounts here.")
	default:
		return nil, invalidParam("kind must be user or guest.")
	}
	var body struct {
		Type         string    `json:"type"`
		Auth         *authData `json:"auth"`
		Username     *string   `json:"username"`
		Password     string    `json:"password"`
		InhibitLogin bool      `json:"inhibit_login"`
		newDevice
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Type == loginService {
		return a.registerByService(q, body.Username, body.newDevice, body.InhibitLogin)
	}
	if a.Registration == RegistrationClosed {
		return nil, forbidden("Registration is closed.")
	}
	// The name is checked before authentication, so that nobody proves anything in vain.
	var user eventgraph.UserID
	if body.Username != nil {
		var err error
		if user, err = a.newUserID(strings.ToLower(*body.Username)); err != nil { // phones type capitals
			return nil, err
		}
		if err := a.available(user, nil); err != nil {
			return nil, err
		}
	}
	if err := body.newDevice.check(); err != nil {
		return nil, err
	}

	session, err := a.interactive(q, body.Auth, "register", "", a.registrationStages()...)
	if err != nil {
		return nil, err
	}

	if user == "" {
		user = eventgraph.UserID("@" + strings.ToLower(rand.Text()[:10]) + ":" + string(a.Server))
	}
	if err := a.createAccount(q.Context(), user, body.Password, a.Terms.accepted(session.passedTS(stageTerms))); err != nil {
		return nil, err
	}
	return a.registered(q, user, body.newDevice, body.InhibitLogin)
}

// registrationStages are what a person has to pass for an account.
func (a *API) registrationStages() []string {
	stages := []string{stageDummy}
	if a.Registration == RegistrationToken {
		stages[0] = stageToken
	}
	if len(a.Terms) > 0 {
		stages = append(stages, stageTerms)
	}
	return stages
}

// registered answers with the new user, and logs them in unless the client wants none of that.
func (a *API) registered(q *request, user eventgraph.UserID, d newDevice, inhibitLogin bool) (any, error) {
	if inhibitLogin {
		return map[string]any{"user_id": user, "home_server": a.Server}, nil
	}
	return a.logIn(q, user, d)
}

// CreateUser makes an account without a client (plexus user add). Capitals become small letters, as with /register.
func (a *API) CreateUser(ctx context.Context, localpart, password string) (eventgraph.UserID, error) {
	user, err := a.newUserID(strings.ToLower(localpart))
	if err != nil {
		return "", err
	}
	if a.Services.UserTaken(user, nil) != nil {
		return "", errUserExclusive
	}
	return user, a.createAccount(ctx, user, password, nil)
}

// newUserID checks the localpart of a new account (appendices, User Identifiers): no historical characters.
func (a *API) newUserID(localpart string) (eventgraph.UserID, error) {
	if localpart == "" || !inLocalpart(localpart) {
		return "", fail(http.StatusBadRequest, "M_INVALID_USERNAME", "A user name has only a–z, 0–9 and . _ = - / +")
	}
	user, err := eventgraph.ParseUserID("@" + localpart + ":" + string(a.Server))
	if err != nil {
		return "", fail(http.StatusBadRequest, "M_INVALID_USERNAME", "The user name is too long.")
	}
	return user, nil
}

var errUserInUse = fail(http.StatusBadRequest, "M_USER_IN_USE", "That user name is taken.")

// available answers M_USER_IN_USE if the account exists, deactivated or not, or the name is the server's own, and M_EXCLUSIVE if an application service other than by, who asks
// (nil: a person), alone may make it.
func (a *API) available(user eventgraph.UserID, by *appservice.Service) error {
	if a.Services.UserTaken(user, by) != nil {
		return errUserExclusive
	}
	if user == a.serverUser() {
		return errUserInUse
	}
	_, err := a.account(user)
	switch {
	case err == nil:
		return errUserInUse
	case errors.Is(err, store.ErrNotFound):
		return nil
	default:
		return err
	}
}

// registerAvailable is GET /register/available.
func (a *API) registerAvailable(q *request) (any, error) {
	user, err := a.newUserID(strings.ToLower(q.URL.Query().Get("username")))
	if err != nil {
		return nil, err
	}
	if err := a.available(user, nil); err != nil {
		return nil, err
	}
	return map[string]bool{"available": true}, nil
}

// registrationTokenValidity is GET /register/m.login.registration_token/validity.
func (a *API) registrationTokenValidity(q *request) (any, error) {
	if a.Registration != RegistrationToken {
		return nil, forbidden("No token is needed or accepted here.")
	}
	token := q.URL.Query().Get("token")
	if token == "" {
		return nil, missingParam("token is missing.")
	}
	err := a.checkRegistrationToken(q, token)
	var refused *matrixError
	if errors.As(err, &refused) && refused.Code != "M_FORBIDDEN" {
		return nil, err
	}
	return map[string]bool{"valid": err == nil}, nil
}

// checkNewPassword answers for a password that cannot be set.
func checkNewPassword(password string) error {
	if password == "" {
		return missingParam("A password is needed.")
	}
	if len(password) > maxPassword {
		return invalidParam(fmt.Sprintf("A password has at most %d bytes.", maxPassword))
	}
	return nil
}

// createAccount makes the account with its default push rules and a display name: server names are long, so people
// would else be shown by little but their server's name. accepted are the policies that the user has accepted.
func (a *API) createAccount(ctx context.Context, user eventgraph.UserID, password string, accepted []store.AcceptedPolicy) error {
	if err := checkNewPassword(password); err != nil {
		return err
	}
	hash, err := a.hashing.hash(ctx, password)
	if err != nil {
		return err
	}
	return a.putNewAccount(ctx, &store.Account{User: user, PasswordHash: hash, Accepted: accepted})
}

// putNewAccount stores the account, and what comes with it.
func (a *API) putNewAccount(ctx context.Context, account *store.Account) error {
	user := account.User
	if user == a.serverUser() {
		return errUserInUse
	}
	name, err := json.Marshal(user.Localpart())
	if err != nil {
		return err
	}
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Account(user); !errors.Is(err, store.ErrNotFound) {
			if err == nil {
				err = errUserInUse
			}
			return err
		}
		if err := roomForAccount(tx, account.Service); err != nil {
			return err
		}
		account.CreatedTS = a.Now().UnixMilli()
		if err := tx.PutAccount(account); err != nil {
			return err
		}
		if err := a.putPushRules(tx, user, pushrules.Default(string(user))); err != nil {
			return err
		}
		_, err := tx.PutProfile(user, map[string]json.RawMessage{"displayname": name})
		return err
	})
	return err
}

// roomForAccount answers M_FORBIDDEN if a service, or with "" people, have as many accounts as they may have.
func roomForAccount(tx *store.Tx, service string) error {
	full := forbidden("There are as many accounts as this server keeps.")
	if service != "" {
		err := tx.CountServiceUser(service)
		if errors.Is(err, store.ErrTooManyUsers) {
			err = full
		}
		return err
	}
	n, err := tx.CountPerson()
	if err == nil && n > maxAccounts {
		err = full
	}
	return err
}
