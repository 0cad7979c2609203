package clientapi

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// accountRoutes registers what concerns accounts, devices and the data that users keep.
func (a *API) accountRoutes() {
	a.route("GET", "/_matrix/client/v3/login", public, a.loginFlows)
	a.route("POST", "/_matrix/client/v3/login", public, a.login)
	a.route("GET", "/_matrix/static/client/login/", public, a.loginPage)
	a.route("GET", "/_matrix/client/v3/auth/{authType}/fallback/web", public, a.authPage)
	a.route("POST", "/_matrix/client/v3/auth/{authType}/fallback/web", public, a.authForm)
	a.route("POST", "/_matrix/client/v3/refresh", public, a.refresh)
	a.route("POST", unstableRefresh, public, a.refresh)
	a.route("POST", "/_matrix/client/v1/login/get_token", authed, a.getLoginToken)
	a.route("POST", "/_matrix/client/v3/user/{userId}/openid/request_token", authed, a.requestOpenIDToken)
	a.route("GET", "/_matrix/federation/v1/openid/userinfo", public, a.openIDUser)
	a.route("POST", "/_matrix/client/v3/logout", authed, a.logout)
	a.route("POST", "/_matrix/client/v3/logout/all", authed, a.logoutAll)
	a.route("POST", "/_matrix/client/v3/register", public, a.register)
	a.route("GET", "/_matrix/client/v3/register/available", public, a.registerAvailable)
	a.route("GET", "/_matrix/client/v1/register/m.login.registration_token/validity", public, a.registrationTokenValidity)
	a.route("GET", "/_matrix/client/v3/account/whoami", authed, a.whoami)
	a.route("POST", "/_matrix/client/v3/account/password", optional, a.changePassword)
	a.route("POST", "/_matrix/client/v3/account/deactivate", optional, a.deactivate)
	a.thirdPartyIDRoutes()
	a.route("GET", "/_matrix/client/v3/admin/whois/{userId}", authed, a.whois)

	a.route("GET", "/_matrix/client/v3/devices", authed, a.getDevices)
	a.route("GET", "/_matrix/client/v3/devices/{deviceId}", authed, a.getDevice)
	a.route("PUT", "/_matrix/client/v3/devices/{deviceId}", authed, a.putDevice)
	a.route("DELETE", "/_matrix/client/v3/devices/{deviceId}", authed, a.deleteDevice)
	a.route("POST", "/_matrix/client/v3/delete_devices", authed, a.postDeleteDevices)

	a.route("POST", "/_matrix/client/v3/user/{userId}/filter", authed, a.postFilter)
	a.route("GET", "/_matrix/client/v3/user/{userId}/filter/{filterId}", authed, a.getFilter)
	a.route("GET", "/_matrix/client/v3/user/{userId}/account_data/{type}", authed, a.getAccountData(globalData))
	a.route("PUT", "/_matrix/client/v3/user/{userId}/account_data/{type}", authed, a.putAccountData(globalData))
	a.route("GET", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}", authed, a.getAccountData(roomData))
	a.route("PUT", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}", authed, a.ofKnownRoom(a.putAccountData(roomData)))
	a.route("GET", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags", authed, a.getTags)
	a.route("PUT", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", authed, a.ofKnownRoom(a.putTag))
	a.route("DELETE", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", authed, a.ofKnownRoom(a.deleteTag))

	a.route("GET", "/_matrix/client/v3/profile/{userId}", programs, a.getProfile)
	for _, field := range []string{"/_matrix/client/v3/profile/{userId}/{keyName}", "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{userId}/{keyName}"} {
		a.route("GET", field, programs, a.getProfileField)
		a.route("PUT", field, authed, a.putProfileField)
		a.route("DELETE", field, authed, a.deleteProfileField)
	}
	a.route("GET", "/_matrix/client/v3/presence/{userId}/status", authed, a.getPresence)
	a.route("PUT", "/_matrix/client/v3/presence/{userId}/status", authed, a.putPresence)
	a.route("POST", "/_matrix/client/v3/user_directory/search", authed, a.searchUsers)

	a.pushRuleRoutes()
}

// whoami is GET /account/whoami. An application service that names no device has none.
func (a *API) whoami(q *request) (any, error) {
	return struct {
		User    eventgraph.UserID `json:"user_id"`
		Device  store.DeviceID    `json:"device_id,omitempty"`
		IsGuest bool              `json:"is_guest"`
	}{q.user, q.device, false}, nil
}

// changePassword is POST /account/password. The caller's own device stays logged in, if there is an access token of it.
func (a *API) changePassword(q *request) (any, error) {
	var body struct {
		Auth          *authData `json:"auth"`
		NewPassword   string    `json:"new_password"`
		LogoutDevices *bool     `json:"logout_devices"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	user, err := a.confirmUser(q, body.Auth, "change password")
	if err != nil {
		return nil, err
	}
	if body.LogoutDevices != nil && !*body.LogoutDevices {
		return nil, a.setPassword(q.Context(), user, body.NewPassword, nil)
	}
	return nil, a.setPassword(q.Context(), user, body.NewPassword, func(id store.DeviceID) bool { return q.user == "" || id != q.device })
}

// setPassword gives the account another password, and logs out those of its devices that ends names (nil: none).
func (a *API) setPassword(ctx context.Context, user eventgraph.UserID, password string, ends func(store.DeviceID) bool) error {
	if err := checkNewPassword(password); err != nil {
		return err
	}
	hash, err := a.hashing.hash(ctx, password)
	if err != nil {
		return err
	}
	var others []store.DeviceID
	if ends != nil {
		if others, err = a.deviceIDs(user); err != nil {
			return err
		}
		others = slices.DeleteFunc(others, func(id store.DeviceID) bool { return !ends(id) })
	}
	var ended []store.TokenHash
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error {
		account, err := tx.Account(user)
		if err != nil {
			return err
		}
		if account.Deactivated { // meanwhile
			return errDeactivated
		}
		account.PasswordHash = hash
		if err := tx.PutAccount(account); err != nil {
			return err
		}
		ended, err = removeDevices(tx, user, others)
		return err
	})
	if err != nil {
		return err
	}
	a.tokens.drop(ended...)
	return nil
}

// deactivate is POST /account/deactivate: the account can never be used again, its name stays taken, its devices, keys, backups and pushers go, and
// the user leaves all rooms and rejects invites. With erase, what else no event holds (profile, account data, uploads, reports) is removed too,
// and who comes to a room later is shown what the user said there redacted (rooms.ShownToUser).
func (a *API) deactivate(q *request) (any, error) {
	var body struct {
		Auth  *authData `json:"auth"`
		Erase bool      `json:"erase"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	user, err := a.confirmUser(q, body.Auth, "deactivate")
	if err != nil {
		return nil, err
	}
	if err := a.deactivateAccount(q.Context(), user, body.Erase); err != nil {
		return nil, err
	}
	a.finishDeactivation(context.WithoutCancel(q.Context()), user, body.Erase) // the client's tokens have ended: it could not ask again
	return map[string]string{"id_server_unbind_result": "success"}, nil
}

// finishDeactivation does what takes longer than the commit that ends an account: it leaves the rooms and sweeps. What does not succeed is logged,
// and done at the next start.
func (a *API) finishDeactivation(ctx context.Context, user eventgraph.UserID, erased bool) {
	a.leaveAll(ctx, user)
	a.sweepAccount(ctx, user, erased)
}

// sweepAccount removes what is left of a deactivated user's backups and, if they are erased, their uploads, which takes a look at all
// files. It says whether all is gone.
func (a *API) sweepAccount(ctx context.Context, user eventgraph.UserID, erased bool) bool {
	if swept := a.sweepKeyBackups(ctx, user); !swept || !erased {
		return swept
	}
	theirs := func(m *store.Media) bool { return m.User == user && m.Server == a.Server }
	err := a.Media.Remove(ctx, theirs, func(int64) {})
	if err != nil {
		a.Log.Error("uploads of an erased user stay", "error", err)
	}
	return err == nil
}

// FinishDeactivations ends what a stop of the node left undone of deactivations: nobody can ask for it again. What does not
// succeed is logged. A deactivated user is swept at one start only: then no upload is under way any more that began before. Their rooms are looked at
// each time: one may not have let them go, or have them back since, when two histories became one. That comes last, as other servers may have to be asked.
func (a *API) FinishDeactivations(ctx context.Context) {
	var ended []*store.Account
	err := a.Store.View(func(r *store.Reader) error {
		return r.Accounts(func(account *store.Account) (bool, error) {
			if account.Deactivated {
				ended = append(ended, account)
			}
			return true, nil
		})
	})
	if err != nil {
		a.Log.Error("deactivations that were cut off are not finished", "error", err)
	}
	for _, account := range ended {
		if account.Swept || !a.sweepAccount(ctx, account.User, account.Erased != 0) {
			continue
		}
		if err := a.noteSwept(ctx, account.User); err != nil {
			a.Log.Error("a deactivated user will be swept again", "error", err)
		}
	}
	for _, account := range ended {
		if ctx.Err() != nil {
			return
		}
		a.leaveAll(ctx, account.User)
	}
}

func (a *API) noteSwept(ctx context.Context, user eventgraph.UserID) error {
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		account, err := tx.Account(user)
		if err != nil {
			return err
		}
		account.Swept = true
		return tx.PutAccount(account)
	})
	return err
}

// deactivateAccount removes what is to go at once.
func (a *API) deactivateAccount(ctx context.Context, user eventgraph.UserID, erase bool) error {
	var ended []store.TokenHash
	var erased store.Position
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		account, err := tx.Account(user)
		if err != nil {
			return err
		}
		account.Deactivated, account.PasswordHash = true, ""
		if erase {
			if erased, err = eraseUser(tx, user); err != nil {
				return err
			}
			account.Erased = erased
		}
		if err := tx.PutAccount(account); err != nil {
			return err
		}
		if err := tx.DropKeyBackups(user); err != nil { // no device is left that could read them
			return err
		}
		if err := tx.DropDelayedEvents(user); err != nil {
			return err
		}
		var ids []store.DeviceID
		err = tx.Devices(user, func(d *store.Device) (bool, error) {
			ids = append(ids, d.ID)
			return true, nil
		})
		if err != nil {
			return err
		}
		ended, err = removeDevices(tx, user, ids)
		return err
	})
	if err != nil {
		return err
	}
	a.tokens.drop(ended...)
	if erase {
		a.Rooms.NoteErased(user, erased)
	}
	return nil
}

// eraseUser removes what is kept of a user beside events, devices and files, and returns the position of that change.
func eraseUser(tx *store.Tx, user eventgraph.UserID) (store.Position, error) {
	if err := tx.DeleteAllAccountData(user); err != nil {
		return 0, err
	}
	if err := tx.DeleteCrossSigning(user); err != nil {
		return 0, err
	}
	err := tx.Reports(func(report *store.Report) (bool, error) {
		if report.Reporter != user {
			return true, nil
		}
		return true, tx.DeleteReport(report.ID)
	})
	if err != nil {
		return 0, err
	}
	return tx.PutProfile(user, nil)
}

// leaveAll lets the user leave every room that they are in or invited to. A room that cannot be left is logged and passed
// over: the account is deactivated already.
func (a *API) leaveAll(ctx context.Context, user eventgraph.UserID) {
	var members []store.Member
	err := a.Store.View(func(r *store.Reader) error {
		return r.RoomsOf(user, func(m *store.Member) (bool, error) {
			if inOrAtTheDoor(m) {
				members = append(members, *m)
			}
			return true, nil
		})
	})
	if err != nil {
		a.Log.Error("a deactivated user stays in rooms", "error", err)
		return
	}
	err = atOnce(ctx, members, func(m store.Member) error {
		err := a.leaveAs(ctx, &m)
		if err != nil {
			a.Log.Warn("a deactivated user stays in a room", "error", err)
		}
		return nil
	})
	if err != nil {
		a.Log.Info("a deactivated user's rooms are left at the next start", "error", err)
	}
}

// inOrAtTheDoor says whether there is something to leave.
func inOrAtTheDoor(m *store.Member) bool {
	return m.Membership == "join" || m.Membership == "invite" || m.Membership == "knock"
}

// leaveAs lets a local user leave a room, or reject an invite, or take back a knock.
func (a *API) leaveAs(ctx context.Context, m *store.Member) error {
	if m.Outside {
		return a.remote.Leave(ctx, m.Room, m.User, "")
	}
	stateKey := string(m.User)
	_, err := a.remote.Send(ctx, rooms.Draft{
		Room: m.Room, Sender: m.User, Type: "m.room.member", StateKey: &stateKey,
		Content: json.RawMessage(`{"membership":"leave"}`),
	})
	return err
}

// isLocal says whether the user belongs to this server; the account need not exist.
func (a *API) isLocal(user eventgraph.UserID) bool { return user.Server() == a.Server }
