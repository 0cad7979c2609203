package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What application services may do beyond users (AS API, Client-Server API Extensions).

// loginService is the type of registrations and logins by an application service.
const loginService = "m.login.application_service"

var (
	errUserExclusive  = fail(http.StatusBadRequest, "M_EXCLUSIVE", "That user name is an application service's.")
	errAliasExclusive = fail(http.StatusBadRequest, "M_EXCLUSIVE", "That alias is an application service's.")
	errNotItsUser     = fail(http.StatusBadRequest, "M_EXCLUSIVE", "That user is in none of the application service's namespaces.")
	errServiceAccount = forbidden("An application service cannot do that in the name of a user.") // AS API, Identity assertion
)

// serviceRoutes registers what is for application services alone, and the look-ups that they answer.
func (a *API) serviceRoutes() {
	a.route("POST", "/_matrix/client/v1/appservice/{appserviceId}/ping", authed, a.pingService)
	a.route("PUT", "/_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}", authed, a.putNetworkVisibility)
	a.route("GET", "/_matrix/client/v3/thirdparty/protocols", authed, a.thirdPartyProtocols)
	a.route("GET", "/_matrix/client/v3/thirdparty/protocol/{protocol}", authed, a.thirdPartyProtocol)
	for _, kind := range []appservice.Kind{appservice.Users, appservice.Locations} {
		a.route("GET", "/_matrix/client/v3/thirdparty/"+string(kind)+"/{protocol}", authed, a.thirdPartyLookUp(kind))
	}
	a.route("GET", "/_matrix/client/v3/thirdparty/location", authed, a.thirdPartyReverse(appservice.Locations, "alias"))
	a.route("GET", "/_matrix/client/v3/thirdparty/user", authed, a.thirdPartyReverse(appservice.Users, "userid"))
}

// EnsureServiceUsers makes the accounts of the services' senders, where they are not there yet.
func (a *API) EnsureServiceUsers(ctx context.Context) error {
	for _, s := range a.Services.All() {
		if s.Sender == a.serverUser() {
			return fmt.Errorf("application service %s: sender_localpart %s is the name of this server's own user", s.ID, serverLocalpart)
		}
		account, err := a.account(s.Sender)
		switch {
		case err == nil:
			if account.Service == "" {
				a.Log.Warn("the sender of an application service is the account of a person: the service acts as them", "service", s.ID, "user", s.Sender)
			}
			continue
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		err = a.putNewAccount(ctx, &store.Account{User: s.Sender, Service: s.ID})
		if errors.Is(err, store.ErrDiskFull) {
			a.Log.Warn("no room on the disk for the user of an application service: it is made at the next start", "service", s.ID)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// actAs makes the request one of the user whom the service names, or of its sender (AS API, Identity assertion).
func (a *API) actAs(q *request, s *appservice.Service) error {
	query := q.URL.Query()
	user := s.Sender
	if asked := query.Get("user_id"); asked != "" {
		var err error
		if user, err = eventgraph.ParseUserID(asked); err != nil {
			return invalidParam("user_id is not a user ID.")
		}
		if !s.HasUser(user) {
			return forbidden("The application service may not act as that user.")
		}
	}
	device := store.DeviceID(query.Get("device_id"))
	var created int64
	var account *store.Account
	err := a.Store.View(func(r *store.Reader) (err error) {
		if account, err = r.Account(user); errors.Is(err, store.ErrNotFound) {
			return forbidden("The application service has not registered that user.")
		}
		if err != nil || device == "" {
			return err
		}
		d, err := r.Device(user, device)
		if errors.Is(err, store.ErrNotFound) || err == nil && d.Dehydrated != "" {
			return fail(http.StatusBadRequest, "M_UNKNOWN_DEVICE", "The user has no such device.")
		}
		if err == nil {
			created = d.CreatedTS
		}
		return err
	})
	if err != nil {
		return err
	}
	if account.Deactivated {
		return errDeactivated
	}
	q.service, q.user, q.device, q.deviceCreated, q.locked = s, user, device, created, account.Locked
	s.Heard()
	return nil
}

// unlimited says whether the caller is an application service whose requests are not counted.
func (q *request) unlimited() bool {
	return q.service != nil && (!q.service.RateLimited || q.user == q.service.Sender)
}

// serviceOf is the application service whose token came with a request that needs no token otherwise.
func (a *API) serviceOf(q *request) (*appservice.Service, error) {
	token := q.token()
	if token == "" {
		return nil, errMissingToken
	}
	s := a.Services.ByToken(token)
	if s == nil {
		return nil, errUnknownToken
	}
	s.Heard()
	return s, nil
}

// registerByService is POST /register by an application service: of a user in its namespaces, without password.
func (a *API) registerByService(q *request, username *string, d newDevice, inhibitLogin bool) (any, error) {
	s, err := a.serviceOf(q)
	if err != nil {
		return nil, err
	}
	if username == nil {
		return nil, missingParam("username is missing.")
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	// Historical characters are allowed: a bridge has names to carry that it did not choose, and its namespace says which.
	user, err := eventgraph.ParseUserID("@" + *username + ":" + string(a.Server))
	if err != nil || strings.ContainsFunc(*username, func(c rune) bool { return c < '!' || c > '~' || c == ':' }) {
		return nil, fail(http.StatusBadRequest, "M_INVALID_USERNAME", "That is not the local part of a user ID.")
	}
	if !s.HasUser(user) {
		return nil, errNotItsUser
	}
	if err := a.available(user, s); err != nil {
		return nil, err
	}
	if err := a.putNewAccount(q.Context(), &store.Account{User: user, Service: s.ID}); err != nil {
		return nil, err
	}
	return a.registered(q, user, d, inhibitLogin)
}

// loginByService answers whom an application service may log in by that name.
func (a *API) loginByService(q *request, name string) (eventgraph.UserID, error) {
	s, err := a.serviceOf(q)
	if err != nil {
		return "", err
	}
	if name == "" {
		return "", missingParam("The user to log in is missing.")
	}
	user := eventgraph.UserID(name)
	if !strings.HasPrefix(name, "@") {
		user = eventgraph.UserID("@" + name + ":" + string(a.Server))
	}
	if !s.HasUser(user) {
		return "", errNotItsUser
	}
	account, err := a.account(user)
	if errors.Is(err, store.ErrNotFound) {
		return "", forbidden("There is no such user.")
	}
	if err != nil {
		return "", err
	}
	return user, usable(account)
}

// maxTimestamp is the greatest origin_server_ts: that of canonical JSON.
const maxTimestamp = 1<<53 - 1

// massagedTime is the time, in ms, that an application service wants an event to have; 0 if it says none, or somebody else does, for whom
// the parameter means nothing (AS API, Timestamp massaging).
func (q *request) massagedTime() (int64, error) {
	text := q.URL.Query().Get("ts")
	if q.service == nil || text == "" {
		return 0, nil
	}
	ts, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ts < 0 || ts > maxTimestamp {
		return 0, invalidParam("ts must be a time in milliseconds.")
	}
	return max(ts, 1), nil // 0 would mean now; one millisecond is nothing in 1970
}

// deviceByService makes a device that is not there yet (AS API, Creating devices), and then answers 201.
func (a *API) deviceByService(q *request, id store.DeviceID, name *string) (made bool, err error) {
	d := newDevice{DeviceID: id}
	if name != nil {
		d.DisplayName = *name
	}
	if err := d.check(); err != nil {
		return false, err
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		made = false
		if _, err := tx.Device(q.user, id); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		made = true
		device, err := a.addDevice(tx, q.user, d)
		if err != nil {
			return err
		}
		device.Origin = a.Peer
		return tx.PutDevice(device)
	})
	if made && err == nil {
		a.writeJSON(q.w, http.StatusCreated, nil)
	}
	return made, err
}

// mayMakeAlias answers M_EXCLUSIVE for an alias that another application service alone may make, and for one outside of the namespaces of
// the one that calls.
func (a *API) mayMakeAlias(q *request, alias eventgraph.RoomAlias) error {
	if a.Services.AliasTaken(alias, q.service) != nil {
		return errAliasExclusive
	}
	if q.service != nil && !q.service.HasAlias(alias) {
		return fail(http.StatusBadRequest, "M_EXCLUSIVE", "That alias is in none of the application service's namespaces.")
	}
	return nil
}

// FindAlias answers federation.Local: other servers are not told that an application service is silent.
func (a *API) FindAlias(ctx context.Context, alias eventgraph.RoomAlias) (eventgraph.RoomID, error) {
	room, err := a.localAlias(ctx, alias)
	if errors.Is(err, appservice.ErrNoAnswer) {
		err = store.ErrNotFound
	}
	return room, err
}

// localAlias finds the room of an alias of this server. An application service may make one that is looked for; store.ErrNotFound,
// appservice.ErrNoAnswer.
func (a *API) localAlias(ctx context.Context, alias eventgraph.RoomAlias) (room eventgraph.RoomID, err error) {
	look := func() error {
		return a.Store.View(func(r *store.Reader) error {
			held, err := r.Alias(alias)
			if err == nil {
				room = held.Room
			}
			return err
		})
	}
	if err = look(); !errors.Is(err, store.ErrNotFound) {
		return room, err
	}
	found, asked := a.Services.FindAlias(ctx, alias)
	switch {
	case asked != nil:
		err = asked
	case found:
		err = look()
	}
	return room, err
}

// findUser asks the application services for a user that has no account: they make it if they want to. Whether there is one then, the
// caller sees. appservice.ErrNoAnswer.
func (a *API) findUser(ctx context.Context, user eventgraph.UserID) error {
	if len(a.Services.All()) == 0 {
		return nil
	}
	if _, err := a.account(user); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	_, err := a.Services.FindUser(ctx, user)
	return err
}

// findInvited is findUser for somebody who is invited. A service that is silent gets the invite when it is back.
func (a *API) findInvited(ctx context.Context, user eventgraph.UserID) error {
	if !a.isLocal(user) {
		return nil
	}
	if err := a.findUser(ctx, user); !errors.Is(err, appservice.ErrNoAnswer) {
		return err
	}
	return nil
}

// pingService is POST /appservice/{appserviceId}/ping.
func (a *API) pingService(q *request) (any, error) {
	if q.service == nil || q.service.ID != q.path("appserviceId") {
		return nil, forbidden("The access token is not that of the application service.")
	}
	var body struct {
		TransactionID string `json:"transaction_id"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	took, err := q.service.Ping(q.Context(), body.TransactionID)
	var status *appservice.BadStatusError
	switch {
	case err == nil:
		return map[string]int64{"duration_ms": took.Milliseconds()}, nil
	case errors.Is(err, appservice.ErrNoURL):
		return nil, fail(http.StatusBadRequest, "M_URL_NOT_SET", "The application service's registration has no url.")
	case errors.As(err, &status):
		return nil, &matrixError{Status: http.StatusBadGateway, Code: "M_BAD_STATUS", Message: status.Error(),
			Extra: map[string]any{"status": status.Status, "body": status.Body}}
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fail(http.StatusGatewayTimeout, "M_CONNECTION_TIMEOUT", "The application service did not answer in time.")
	default:
		return nil, fail(http.StatusBadGateway, "M_CONNECTION_FAILED", "The application service cannot be reached: "+err.Error())
	}
}

// Bounds of what a service says of its networks.
const maxNetworkID = 255 // bytes

// putNetworkVisibility is PUT /directory/list/appservice/{networkId}/{roomId}.
func (a *API) putNetworkVisibility(q *request) (any, error) {
	if q.service == nil {
		return nil, forbidden("Only an application service has such a directory.")
	}
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	network := q.path("networkId")
	if len(network) > maxNetworkID {
		return nil, invalidParam("networkId is too long.")
	}
	var body struct {
		Visibility string `json:"visibility"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Visibility != "public" && body.Visibility != "private" {
		return nil, invalidParam("visibility must be public or private.")
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		if _, err := tx.Room(room); err != nil {
			return err
		}
		return tx.SetNetworkRoom(q.service.ID, network, room, body.Visibility == "public")
	})
	if errors.Is(err, store.ErrTooManyRooms) {
		err = forbidden("The application service publishes as many rooms as this server keeps.")
	}
	return nil, err
}

// thirdPartyProtocols is GET /thirdparty/protocols.
func (a *API) thirdPartyProtocols(q *request) (any, error) {
	return a.Services.Protocols(q.Context())
}

// thirdPartyProtocol is GET /thirdparty/protocol/{protocol}.
func (a *API) thirdPartyProtocol(q *request) (any, error) {
	p, err := a.Services.Protocol(q.Context(), q.path("protocol"))
	if err == nil && p == nil {
		err = notFound("No application service here knows that protocol.")
	}
	return p, err
}

// thirdPartyLookUp is GET /thirdparty/location/{protocol} and GET /thirdparty/user/{protocol}: by the fields that the protocol has.
func (a *API) thirdPartyLookUp(kind appservice.Kind) handler {
	return func(q *request) (any, error) { return a.lookUp(q, kind, q.path("protocol")) }
}

// thirdPartyReverse is GET /thirdparty/location and GET /thirdparty/user: what stands for a Matrix room or user.
func (a *API) thirdPartyReverse(kind appservice.Kind, param string) handler {
	return func(q *request) (any, error) {
		if q.URL.Query().Get(param) == "" {
			return nil, missingParam(param + " is missing.")
		}
		return a.lookUp(q, kind, "")
	}
}

func (a *API) lookUp(q *request, kind appservice.Kind, protocol string) (any, error) {
	found, err := a.Services.LookUp(q.Context(), kind, protocol, q.URL.Query())
	if err == nil && found == nil {
		err = notFound("No application service here knows of that.")
	}
	return found, err
}

// ServiceEvent answers appservice.Local.
func (a *API) ServiceEvent(r *store.Reader, e *store.StoredEvent) (json.RawMessage, error) {
	if e.Type() == rooms.DummyEvent {
		return nil, nil
	}
	v := a.newViewer("", "")
	v.service = true
	raw, err := a.clientEvent(r, e, v)
	if err != nil || e.Membership() != "invite" {
		return raw, err
	}
	key, _ := e.StateKey()
	m, err := r.Member(e.RoomID(), eventgraph.UserID(key))
	if errors.Is(err, store.ErrNotFound) || err == nil && m.Event != e.ID() {
		return raw, nil // no invite any more
	}
	if err != nil {
		return nil, err
	}
	return a.withInviteState(r, raw, m)
}

// maxServiceState bounds the stripped state that stands beside an invite, in bytes, so that a transaction stays below store.MaxTransactionBody:
// members of a room and other servers choose how large it is. An event that does not fit is left out.
const maxServiceState = 64 << 10

// withInviteState adds the stripped state of the room to an invite's unsigned data, as /sync shows it beside invites.
func (a *API) withInviteState(r *store.Reader, raw json.RawMessage, m *store.Member) (json.RawMessage, error) {
	state, err := a.inviteState(r, m)
	if err != nil {
		return nil, err
	}
	fits, size := []json.RawMessage{}, 0
	for _, e := range state.events {
		if size+len(e) <= maxServiceState {
			fits, size = append(fits, e), size+len(e)
		}
	}
	var event, unsigned map[string]json.RawMessage
	if err := json.Unmarshal(raw, &event); err != nil {
		return nil, err
	}
	if event["unsigned"] != nil {
		if err := json.Unmarshal(event["unsigned"], &unsigned); err != nil {
			return nil, err
		}
	} else {
		unsigned = map[string]json.RawMessage{}
	}
	if unsigned["invite_room_state"], err = plainJSON(fits); err != nil {
		return nil, err
	}
	if event["unsigned"], err = plainJSON(unsigned); err != nil {
		return nil, err
	}
	return plainJSON(event)
}

// plainJSON is v without the escaping that HTML would need, which makes six bytes of one.
func plainJSON(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// ServiceInvite answers appservice.Local.
func (a *API) ServiceInvite(r *store.Reader, m *store.Member) (json.RawMessage, error) {
	invited := m.Membership == "invite"
	if !m.Outside || !invited && (m.Membership != "leave" || len(m.Invite) == 0 || m.Forgotten) {
		return nil, nil
	}
	// The event itself came from its server; of it go the members that clients see.
	var invite struct {
		Content  json.RawMessage    `json:"content"`
		Sender   eventgraph.UserID  `json:"sender"`
		StateKey string             `json:"state_key"`
		Type     string             `json:"type"`
		TS       int64              `json:"origin_server_ts"`
		Room     eventgraph.RoomID  `json:"room_id"`
		ID       eventgraph.EventID `json:"event_id"`
	}
	if err := json.Unmarshal(m.Invite, &invite); err != nil {
		return nil, err
	}
	invite.Room, invite.ID = m.Room, m.Event
	raw, err := plainJSON(invite)
	if err != nil || !invited {
		return raw, err
	}
	return a.withInviteState(r, raw, m)
}

// ServiceReceipts answers appservice.Local.
func (a *API) ServiceReceipts(room eventgraph.RoomID, receipts []*store.Receipt) (json.RawMessage, error) {
	content := receiptContent{}
	for _, p := range receipts {
		content.add(p)
	}
	return plainJSON(map[string]any{"type": "m.receipt", "room_id": room, "content": content})
}

// ServicePresence answers appservice.Local.
func (a *API) ServicePresence(user eventgraph.UserID) (json.RawMessage, error) {
	p, ok := a.Ephemeral.Presence(user)
	if !ok {
		return nil, nil
	}
	return json.Marshal(map[string]any{"type": "m.presence", "sender": user, "content": a.presenceContent(p)})
}
