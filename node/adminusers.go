package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// userID is the local user whom a person calls name: a user ID as it is, or a name, whose capitals are small letters in accounts.
func (n *Node) userID(name string) eventgraph.UserID {
	if strings.HasPrefix(name, "@") {
		return eventgraph.UserID(name)
	}
	return eventgraph.UserID("@" + strings.ToLower(name) + ":" + string(n.keys.server))
}

// account finds a local account by name or ID, a deactivated one too.
func (n *Node) account(name string) (account *store.Account, err error) {
	user := n.userID(name)
	err = n.store.View(func(r *store.Reader) error {
		account, err = r.Account(user)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("this node has no user %s", user)
	}
	return account, err
}

// adminAccount calls f with the account that the path names, and answers what it answers.
func (n *Node) adminAccount(f func(r *http.Request, user eventgraph.UserID) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		account, err := n.account(r.PathValue("user"))
		if err == nil && account.Deactivated {
			err = fmt.Errorf("%s has been deactivated, and cannot be used again", account.User)
		}
		var answer any
		if err == nil {
			r.Body = http.MaxBytesReader(w, r.Body, maxAdminBody)
			answer, err = f(r, account.User)
		}
		answerAdmin(w, answer, err)
	}
}

// UserAnswer is what the calls about one user answer.
type UserAnswer struct {
	User    eventgraph.UserID `json:"user_id"`
	Changed bool              `json:"changed"` // false: it was so already
}

// adminUsers adds what "plexus user" and "plexus device" ask for.
func (n *Node) adminUsers(mux *http.ServeMux) {
	mux.HandleFunc("GET /users", func(w http.ResponseWriter, r *http.Request) {
		users, err := n.api.Accounts()
		answerAdmin(w, users, err)
	})
	mux.HandleFunc("POST /users", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Name, Password string }
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(&body)
		var user eventgraph.UserID
		if err == nil {
			user, err = n.api.CreateUser(r.Context(), body.Name, body.Password)
		}
		answerAdmin(w, UserAnswer{user, true}, err)
	})
	mux.HandleFunc("PUT /users/{user}/password", n.adminAccount(func(r *http.Request, user eventgraph.UserID) (any, error) {
		var body struct {
			Password string `json:"password"`
			Logout   bool   `json:"logout"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		return UserAnswer{user, true}, n.api.ResetPassword(r.Context(), user, body.Password, body.Logout)
	}))
	mux.HandleFunc("PUT /users/{user}/disabled", n.adminAccount(func(r *http.Request, user eventgraph.UserID) (any, error) {
		var body struct {
			Disabled bool `json:"disabled"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		changed, err := n.api.SetLocked(r.Context(), user, body.Disabled)
		return UserAnswer{user, changed}, err
	}))
	mux.HandleFunc("GET /users/{user}/devices", n.adminAccount(func(r *http.Request, user eventgraph.UserID) (any, error) {
		return n.api.DevicesOf(user)
	}))
	mux.HandleFunc("POST /users/{user}/devices/delete", n.adminAccount(func(r *http.Request, user eventgraph.UserID) (any, error) {
		var body struct {
			Devices []store.DeviceID `json:"devices"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		return UserAnswer{user, true}, n.api.DeleteDevices(r.Context(), user, body.Devices)
	}))
}
