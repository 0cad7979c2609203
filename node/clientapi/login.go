package clientapi

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of devices: a client chooses their IDs and names, and each login may make one.
const (
	maxDeviceID   = 255  // bytes
	maxDeviceName = 1000 // bytes
	maxDevices    = 200  // of one user
)

// loginFlows is GET /login.
func (a *API) loginFlows(*request) (any, error) {
	flows := []any{
		map[string]any{"type": stagePassword},
		map[string]any{"type": loginToken, "get_login_token": true},
	}
	if len(a.Services.All()) > 0 {
		flows = append(flows, map[string]any{"type": loginService})
	}
	return map[string]any{"flows": flows}, nil
}

// login is POST /login (CS API, Login), by password, by a token that another device of the user has got, or by an
// application service.
func (a *API) login(q *request) (any, error) {
	var body struct {
		authData
		newDevice
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if err := body.newDevice.check(); err != nil {
		return nil, err
	}
	switch body.Type {
	case stagePassword:
	case loginToken:
		user, err := a.redeemLoginToken(body.Token)
		if err != nil {
			return nil, err
		}
		return a.logIn(q, user, body.newDevice)
	case loginService:
		user, err := a.loginByService(q, body.named())
		if err != nil {
			return nil, err
		}
		return a.logIn(q, user, body.newDevice)
	default:
		return nil, fail(http.StatusBadRequest, "M_UNKNOWN", "Only "+stagePassword+" and "+loginToken+" can be used to log in here.")
	}
	if id := body.Identifier; id != nil && id.Type != "" && id.Type != "m.id.user" {
		return nil, forbidden("Log in with a user name: other identifiers are not known here.")
	}
	name := body.named()
	if name == "" {
		return nil, missingParam("The user to log in is missing.")
	}
	account, err := a.checkPassword(q, a.userNamed(name), body.Password, a.guesser(q))
	if err != nil {
		return nil, err
	}
	return a.logIn(q, account.User, body.newDevice)
}

// userNamed is the local user of a full ID or localpart. Localparts have no capitals here, but phones type them.
func (a *API) userNamed(name string) eventgraph.UserID {
	name = strings.ToLower(strings.TrimSpace(name))
	if strings.HasPrefix(name, "@") {
		return eventgraph.UserID(name)
	}
	return eventgraph.UserID("@" + name + ":" + string(a.Server))
}

// newDevice is what login and registration say of the device.
type newDevice struct {
	DeviceID    store.DeviceID `json:"device_id"`
	DisplayName string         `json:"initial_device_display_name"`
	Refresh     bool           `json:"refresh_token"` // the client can refresh its token
	// UnstableRefresh is the same as clients say it that know it by MSC2918 only.
	UnstableRefresh bool `json:"org.matrix.msc2918.refresh_token"`
}

// refreshes says whether the client can refresh its token.
func (d newDevice) refreshes() bool { return d.Refresh || d.UnstableRefresh }

func (d newDevice) check() error {
	if len(d.DeviceID) > maxDeviceID {
		return invalidParam("device_id is too long.")
	}
	if len(d.DisplayName) > maxDeviceName {
		return invalidParam("initial_device_display_name is too long.")
	}
	return nil
}

// logIn gives the user's device, new or known, a new access token; its older ones end.
func (a *API) logIn(q *request, user eventgraph.UserID, d newDevice) (any, error) {
	if d.DeviceID == "" {
		d.DeviceID = store.DeviceID(rand.Text()[:10])
	}
	answer := map[string]any{"user_id": user, "device_id": d.DeviceID, "home_server": a.Server}
	var pair store.TokenPair
	if d.refreshes() {
		pair = a.newPair(answer)
	} else {
		answer["access_token"], pair.Token = newToken()
	}
	var ended []store.TokenHash
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		ended = ended[:0]
		account, err := tx.Account(user)
		if err != nil {
			return err
		}
		if err := usable(account); err != nil {
			return err
		}
		device, err := tx.Device(user, d.DeviceID)
		switch {
		case err == nil && device.Dehydrated != "":
			return forbidden("That is the ID of the dehydrated device.")
		case err == nil:
			ended = append(ended, device.Tokens()...)
		case errors.Is(err, store.ErrNotFound):
			if device, err = a.addDevice(tx, user, d); err != nil {
				return err
			}
		default:
			return err
		}
		device.Token, device.Refresh, device.Expires, device.Origin = pair.Token, pair.Refresh, pair.Expires, a.Peer
		device.Next, device.Prev = store.TokenPair{}, store.TokenPair{}
		device.LastSeenTS, device.LastSeenIP = a.Now().UnixMilli(), remoteIP(q.Request)
		return tx.PutDevice(device)
	})
	if err != nil {
		return nil, err
	}
	a.tokens.drop(ended...)
	return answer, nil
}

// addDevice makes a device that the user does not have yet. The caller stores it.
func (a *API) addDevice(tx *store.Tx, user eventgraph.UserID, d newDevice) (*store.Device, error) {
	if err := notCrossSigningKey(tx, user, d.DeviceID); err != nil {
		return nil, err
	}
	count := 0
	if err := tx.Devices(user, func(*store.Device) (bool, error) { count++; return true, nil }); err != nil {
		return nil, err
	}
	if count >= maxDevices {
		return nil, forbidden("The account has too many devices: log one out first.")
	}
	return &store.Device{User: user, ID: d.DeviceID, CreatedTS: a.Now().UnixMilli(), DisplayName: d.DisplayName}, nil
}

// notCrossSigningKey refuses a device ID that is a cross-signing key's: signatures could not tell them apart (CS API,
// POST /login).
func notCrossSigningKey(tx *store.Tx, user eventgraph.UserID, id store.DeviceID) error {
	for _, usage := range []string{"master", "self_signing", "user_signing"} {
		key, err := tx.CrossSigningKey(user, usage, user)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if store.CrossSigningPublicKey(key) == string(id) {
			return forbidden("A device ID must not be that of a cross-signing key.")
		}
	}
	return nil
}

// remoteIP is the caller's address without its port.
func remoteIP(r *http.Request) string {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return remote.Addr().Unmap().WithZone("").String()
}

// logout is POST /logout: the token and its device with all its keys go.
func (a *API) logout(q *request) (any, error) {
	return nil, a.deleteDevices(q.Context(), q.user, []store.DeviceID{q.device})
}

// logoutAll is POST /logout/all. A dehydrated device stays: it has no token, and is there for the time when nobody is logged in.
func (a *API) logoutAll(q *request) (any, error) {
	var ids []store.DeviceID
	err := a.Store.View(func(r *store.Reader) error {
		return r.Devices(q.user, func(d *store.Device) (bool, error) {
			if d.Dehydrated == "" {
				ids = append(ids, d.ID)
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	return nil, a.deleteDevices(q.Context(), q.user, ids)
}
