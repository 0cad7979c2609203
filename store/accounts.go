package store

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// What is kept of local users: accounts, devices, sessions, filters, profiles. Records that another device of the same
// identity could write later carry Origin, the peer ID of the device that wrote them.

// Account is a local user.
type Account struct {
	User         eventgraph.UserID
	PasswordHash string // PHC string; "" : nobody can log in with a password
	CreatedTS    int64  // ms
	Deactivated  bool
	Service      string   `json:",omitzero"` // the ID of the application service that made it; "": a person or an administrator
	Erased       Position `json:",omitzero"` // newest change when the user erased themself; 0: they have not
	Locked       bool     `json:",omitzero"` // cannot be used until it is unlocked (CS API, Account locking)
	Swept        bool     `json:",omitzero"` // Deactivated, and a start of the node since has seen that no uploads or backups are left that should go
	// NoticeRoom is where this server tells the user something (CS API, Server Notices); "": it has not yet.
	NoticeRoom eventgraph.RoomID `json:",omitzero"`
	// Accepted are the policies that the user has accepted to register (CS API, Terms of service at registration), by their IDs.
	Accepted []AcceptedPolicy `json:",omitzero"`
}

// AcceptedPolicy is a policy document that a user has accepted, in the version that was presented to them.
type AcceptedPolicy struct {
	Policy  string `json:"policy"` // its ID
	Version string `json:"version"`
	TS      int64  `json:"accepted_ts"` // ms
}

// Account reads a local account; ErrNotFound.
func (r *Reader) Account(user eventgraph.UserID) (*Account, error) {
	var a Account
	if err := r.getJSON(key(tableAccount).str(string(user)), &a); err != nil {
		return nil, err
	}
	return &a, nil
}

// Accounts calls f for each local account, by user ID.
func (r *Reader) Accounts(f func(*Account) (bool, error)) error {
	return r.scan(key(tableAccount), nil, false, func(_, value []byte) (bool, error) {
		var a Account
		if err := json.Unmarshal(value, &a); err != nil {
			return false, err
		}
		return f(&a)
	})
}

var keyPeople = key(tableMeta).str("people")

// CountPerson counts an account that is about to be made for a person, and returns how many there are with it. Those of application services are
// counted by CountServiceUser.
func (tx *Tx) CountPerson() (uint64, error) {
	n, err := tx.getNumber(keyPeople)
	if err == nil {
		n++
		err = tx.putNumber(keyPeople, n)
	}
	return n, err
}

// PutAccount writes or replaces the account.
func (tx *Tx) PutAccount(a *Account) error {
	return tx.putJSON(key(tableAccount).str(string(a.User)), a)
}

// TokenHash is the SHA-256 of an access token: the token itself is never stored.
type TokenHash [32]byte

// MarshalText makes TokenHash hexadecimal in records.
func (h TokenHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *TokenHash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return errors.New("token hash of the wrong length")
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// Session is what a token stands for. Which of the device's tokens it is, the Device says.
type Session struct {
	User   eventgraph.UserID
	Device DeviceID
}

// Session finds the session of a token; ErrNotFound.
func (r *Reader) Session(h TokenHash) (*Session, error) {
	var s Session
	if err := r.getJSON(key(tableSession).bytes(h[:]), &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// DeviceOfToken reads the device that has the token, of whichever kind; ErrNotFound.
func (r *Reader) DeviceOfToken(h TokenHash) (*Device, error) {
	s, err := r.Session(h)
	if err != nil {
		return nil, err
	}
	return r.Device(s.User, s.Device)
}

// Device is a device of a local user.
type Device struct {
	User        eventgraph.UserID
	ID          DeviceID
	CreatedTS   int64 // ms; tells the device from an earlier one that had its ID
	DisplayName string
	LastSeenTS  int64     // ms
	LastSeenIP  string    // "" if not known
	Token       TokenHash // the access token in use
	Origin      eventgraph.PeerID
	Dehydrated  string `json:",omitzero"` // device_data, JSON, of a dehydrated device (MSC3814), which has no token; else ""

	// Of a device whose client refreshes its token (CS API, Refreshing access tokens); else zero.
	Refresh TokenHash `json:",omitzero"` // the refresh token in use
	Expires int64     `json:",omitzero"` // ms, of Token; 0: never
	Next    TokenPair `json:",omitzero"` // given out for Refresh; neither has been used so far
	Prev    TokenPair `json:",omitzero"` // in use before: it serves nothing, but it is known whose it was
}

// TokenPair is an access token and the token that refreshes it.
type TokenPair struct {
	Token   TokenHash
	Refresh TokenHash
	Expires int64 // ms, of Token
}

// Rotate puts Next into use: one of its tokens has been used.
func (d *Device) Rotate() {
	d.Prev = TokenPair{d.Token, d.Refresh, d.Expires}
	d.Token, d.Refresh, d.Expires = d.Next.Token, d.Next.Refresh, d.Next.Expires
	d.Next = TokenPair{}
}

// Tokens lists all the device's tokens.
func (d *Device) Tokens() []TokenHash {
	all := []TokenHash{d.Token, d.Refresh, d.Next.Token, d.Next.Refresh, d.Prev.Token, d.Prev.Refresh}
	return slices.DeleteFunc(all, func(h TokenHash) bool { return h == TokenHash{} })
}

// Device reads a device; ErrNotFound.
func (r *Reader) Device(user eventgraph.UserID, id DeviceID) (*Device, error) {
	var d Device
	if err := r.getJSON(key(tableDevice).str(string(user)).str(string(id)), &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// Devices calls f for each device of the user, by device ID.
func (r *Reader) Devices(user eventgraph.UserID, f func(*Device) (bool, error)) error {
	return r.scan(key(tableDevice).str(string(user)), nil, false, func(_, value []byte) (bool, error) {
		var d Device
		if err := json.Unmarshal(value, &d); err != nil {
			return false, err
		}
		return f(&d)
	})
}

// PutDevice writes or replaces the device and what its tokens stand for; tokens that it no longer has are forgotten. It does not Log.
func (tx *Tx) PutDevice(d *Device) error {
	before, err := tx.Device(d.User, d.ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	tokens := d.Tokens()
	if before != nil {
		for _, h := range before.Tokens() {
			if slices.Contains(tokens, h) {
				continue
			}
			if err := tx.delete(key(tableSession).bytes(h[:])); err != nil {
				return err
			}
		}
	}
	for _, h := range tokens {
		if err := tx.putJSON(key(tableSession).bytes(h[:]), &Session{User: d.User, Device: d.ID}); err != nil {
			return err
		}
	}
	return tx.putJSON(key(tableDevice).str(string(d.User)).str(string(d.ID)), d)
}

// DeleteDevice removes the device with all its tokens; ErrNotFound. Its keys and messages are DeleteDeviceKeys'
// and DeleteDeviceQueue's.
func (tx *Tx) DeleteDevice(user eventgraph.UserID, id DeviceID) error {
	d, err := tx.Device(user, id)
	if err != nil {
		return err
	}
	for _, h := range d.Tokens() {
		if err := tx.delete(key(tableSession).bytes(h[:])); err != nil {
			return err
		}
	}
	return tx.delete(key(tableDevice).str(string(user)).str(string(id)))
}

// Filter is a user's stored filter, as the client gave it.
type Filter struct {
	ID        string
	CreatedTS int64 // ms
	Body      json.RawMessage
}

// MaxFilters bounds the filters of one user; the oldest goes. Clients upload the same few again and again.
const MaxFilters = 200

// Filter reads a filter of the user; ErrNotFound.
func (r *Reader) Filter(user eventgraph.UserID, id string) (*Filter, error) {
	var f Filter
	if err := r.getJSON(key(tableFilter).str(string(user)).str(id), &f); err != nil {
		return nil, err
	}
	return &f, nil
}

// PutFilter keeps the filter; beyond MaxFilters the user's oldest is dropped.
func (tx *Tx) PutFilter(user eventgraph.UserID, f *Filter) error {
	count, oldest := 0, (*Filter)(nil)
	err := tx.scan(key(tableFilter).str(string(user)), nil, false, func(_, value []byte) (bool, error) {
		var held Filter
		if err := json.Unmarshal(value, &held); err != nil {
			return false, err
		}
		if held.ID != f.ID {
			count++
			if oldest == nil || held.CreatedTS < oldest.CreatedTS {
				oldest = &held
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if count >= MaxFilters {
		if err := tx.delete(key(tableFilter).str(string(user)).str(oldest.ID)); err != nil {
			return err
		}
	}
	return tx.putJSON(key(tableFilter).str(string(user)).str(f.ID), f)
}

// Profile is what a local user shows of themself, by field ("displayname", "avatar_url", …); empty if nothing.
func (r *Reader) Profile(user eventgraph.UserID) (map[string]json.RawMessage, error) {
	profile := map[string]json.RawMessage{}
	if err := r.getJSON(key(tableProfile).str(string(user)), &profile); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return profile, nil
}

// PutProfile replaces the profile and logs ChangeProfile.
func (tx *Tx) PutProfile(user eventgraph.UserID, profile map[string]json.RawMessage) (Position, error) {
	if err := tx.putJSON(key(tableProfile).str(string(user)), profile); err != nil {
		return 0, err
	}
	return tx.Log(Change{Kind: ChangeProfile, User: user})
}
