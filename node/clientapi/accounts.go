package clientapi

import (
	"context"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What whoever runs the node does to accounts, without a client: the admin socket calls it. There are no administrators among users, so
// the spec's endpoints for them (CS API, Server administration) are not here.

// AccountStatus is a local account as "plexus user list" shows it.
type AccountStatus struct {
	User        eventgraph.UserID `json:"user_id"`
	CreatedTS   int64             `json:"created_ts"`             // ms
	LastSeenTS  int64             `json:"last_seen_ts,omitempty"` // ms, of any device, to the hour; 0: never
	Devices     int               `json:"devices"`
	Rooms       int               `json:"rooms"` // joined
	Disabled    bool              `json:"disabled,omitempty"`
	Deactivated bool              `json:"deactivated,omitempty"`
	// Accepted are the policies that the user has accepted to register, by their IDs.
	Accepted []store.AcceptedPolicy `json:"accepted_terms,omitempty"`
}

// Accounts lists the local accounts by user ID; there are at most maxAccounts.
func (a *API) Accounts() ([]AccountStatus, error) {
	list := []AccountStatus{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Accounts(func(account *store.Account) (bool, error) {
			s := AccountStatus{User: account.User, CreatedTS: account.CreatedTS, Disabled: account.Locked, Deactivated: account.Deactivated, Accepted: account.Accepted}
			err := r.Devices(account.User, func(d *store.Device) (bool, error) {
				s.Devices++
				s.LastSeenTS = max(s.LastSeenTS, d.LastSeenTS)
				return true, nil
			})
			if err != nil {
				return false, err
			}
			err = r.RoomsOf(account.User, func(m *store.Member) (bool, error) {
				if isJoined(m) {
					s.Rooms++
				}
				return true, nil
			})
			list = append(list, s)
			return true, err
		})
	})
	return list, err
}

// ResetPassword gives the account another password, and with logout ends all its sessions.
func (a *API) ResetPassword(ctx context.Context, user eventgraph.UserID, password string, logout bool) error {
	if !logout {
		return a.setPassword(ctx, user, password, nil)
	}
	return a.setPassword(ctx, user, password, func(store.DeviceID) bool { return true })
}

// SetLocked locks the account or unlocks it (CS API, Account locking): while it is locked its sessions stay, and all that they can do is to
// log out. It says whether that is a change.
func (a *API) SetLocked(ctx context.Context, user eventgraph.UserID, locked bool) (changed bool, err error) {
	var sessions []store.TokenHash
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error {
		account, err := tx.Account(user)
		if err != nil {
			return err
		}
		if account.Deactivated {
			return errDeactivated
		}
		changed, sessions = account.Locked != locked, nil
		account.Locked = locked
		if err := tx.PutAccount(account); err != nil {
			return err
		}
		return tx.Devices(user, func(d *store.Device) (bool, error) {
			sessions = append(sessions, d.Tokens()...)
			return true, nil
		})
	})
	if err != nil {
		return false, err
	}
	a.tokens.drop(sessions...)
	return changed, nil
}

// DeviceStatus is a device as "plexus device list" shows it.
type DeviceStatus struct {
	deviceJSON
	CreatedTS  int64 `json:"created_ts"`           // ms
	Dehydrated bool  `json:"dehydrated,omitempty"` // MSC3814
}

// DevicesOf lists the user's devices by ID.
func (a *API) DevicesOf(user eventgraph.UserID) ([]DeviceStatus, error) {
	list := []DeviceStatus{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Devices(user, func(d *store.Device) (bool, error) {
			list = append(list, DeviceStatus{showDevice(d), d.CreatedTS, d.Dehydrated != ""})
			return true, nil
		})
	})
	return list, err
}

// DeleteDevices logs out the user's devices and removes all that is kept of them. If one of them is not there, nothing is done.
func (a *API) DeleteDevices(ctx context.Context, user eventgraph.UserID, ids []store.DeviceID) error {
	held, err := a.deviceIDs(user)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.Contains(held, id) {
			return fmt.Errorf("%s has no device %s", user, id)
		}
	}
	return a.deleteDevices(ctx, user, ids)
}

// LeaveRoom lets a local user leave a room, or all local users if user is "", those too who are invited or knock. It returns who has left.
func (a *API) LeaveRoom(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID) ([]eventgraph.UserID, error) {
	var members []store.Member
	err := a.Store.View(func(r *store.Reader) error {
		return r.Accounts(func(account *store.Account) (bool, error) {
			if user != "" && account.User != user {
				return true, nil
			}
			m, err := memberOf(r, room, account.User)
			if err == nil && m != nil && inOrAtTheDoor(m) {
				members = append(members, *m)
			}
			return true, err
		})
	})
	left := []eventgraph.UserID{}
	if err == nil && len(members) == 0 {
		err = fmt.Errorf("nobody here is in the room %s", room)
		if user != "" {
			err = fmt.Errorf("%s is not in the room %s", user, room)
		}
	}
	if err != nil {
		return left, err
	}
	for _, m := range members {
		if err := a.leaveAs(ctx, &m); err != nil {
			return left, fmt.Errorf("%s could not leave: %w", m.User, err)
		}
		left = append(left, m.User)
	}
	return left, nil
}
