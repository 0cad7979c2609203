package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What other servers' users do with rooms that we are in: join, leave and knock by a template that we make and an event that they sign.
// We add our signature to the event ("the resident homeserver then adds its signature"), and it is ours to send on
// to the room's other servers (design.md §3.3).

// maxStrippedState bounds the state that comes with an invite: the recommended events and some more.
const maxStrippedState = 64

func (f *Federation) memberRoutes(r *router) {
	r.add(http.MethodGet, "/_matrix/federation/v1/make_join/{roomId}/{userId}", f.serveMake("join"))
	r.add(http.MethodGet, "/_matrix/federation/v1/make_leave/{roomId}/{userId}", f.serveMake("leave"))
	r.add(http.MethodGet, "/_matrix/federation/v1/make_knock/{roomId}/{userId}", f.serveMake("knock"))
	r.add(http.MethodPut, "/_matrix/federation/v1/send_join/{roomId}/{eventId}", inArray(f.serveSendJoin))
	r.add(http.MethodPut, "/_matrix/federation/v2/send_join/{roomId}/{eventId}", f.serveSendJoin)
	r.add(http.MethodPut, "/_matrix/federation/v1/send_leave/{roomId}/{eventId}", inArray(f.serveSendLeave))
	r.add(http.MethodPut, "/_matrix/federation/v2/send_leave/{roomId}/{eventId}", f.serveSendLeave)
	r.add(http.MethodPut, "/_matrix/federation/v1/send_knock/{roomId}/{eventId}", f.serveSendKnock)
	r.add(http.MethodPut, "/_matrix/federation/v1/invite/{roomId}/{eventId}", f.serveInviteV1)
	r.add(http.MethodPut, "/_matrix/federation/v2/invite/{roomId}/{eventId}", f.serveInvite)
}

// inArray is the form of the answers of version 1: [200, answer].
func inArray(h handler) handler {
	return func(q *request) (any, error) {
		answer, err := h(q)
		if err != nil {
			return nil, err
		}
		if write, ok := answer.(streamed); ok {
			return streamed(func(w io.Writer) error {
				if _, err := io.WriteString(w, "[200,"); err != nil {
					return err
				}
				if err := write(w); err != nil {
					return err
				}
				_, err := io.WriteString(w, "]")
				return err
			}), nil
		}
		return []any{http.StatusOK, answer}, nil
	}
}

// resident returns the room if one of our users is joined to it, so that we may speak for it, and the ACL allows the origin.
func (f *Federation) resident(q *request) (*store.Room, error) {
	id, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
	}
	var room *store.Room
	if err := f.Store.View(func(r *store.Reader) error {
		room, err = r.Room(id)
		return err
	}); err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if room == nil || !f.Rooms.InRoom(id, f.server) {
		return nil, fail(http.StatusNotFound, "M_NOT_FOUND", "this server is not in that room")
	}
	if !f.allows(id, q.origin) {
		return nil, errDenied
	}
	return room, nil
}

// errDenied is the answer to servers that a room's ACL denies (SS API, Server Access Control Lists).
var errDenied = fail(http.StatusForbidden, "M_FORBIDDEN", "the server is denied by the room's access control list")

// template is the answer of make_join, make_leave and make_knock.
type template struct {
	Version eventgraph.RoomVersion `json:"room_version"`
	Event   json.RawMessage        `json:"event"`
}

func (f *Federation) serveMake(membership string) handler {
	return func(q *request) (any, error) {
		room, err := f.resident(q)
		if err != nil {
			return nil, err
		}
		user, err := eventgraph.ParseUserID(q.path("userId"))
		if err != nil {
			return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
		}
		if user.Server() != q.origin {
			return nil, fail(http.StatusForbidden, "M_FORBIDDEN", "the user is not of the asking server")
		}
		// make_leave has no "ver": who was invited knows the version.
		if versions := q.URL.Query()["ver"]; membership != "leave" && !slices.Contains(versions, string(room.Version)) {
			return nil, incompatible(room.Version)
		}
		release, err := f.act(q)
		if err != nil {
			return nil, err
		}
		defer release()
		proto, version, err := f.Rooms.Template(q.Context(), room.ID, user, membership)
		if err != nil {
			return nil, err
		}
		return template{version, proto}, nil
	}
}

func incompatible(v eventgraph.RoomVersion) error {
	return &matrixError{
		Status:  http.StatusBadRequest,
		Refusal: rooms.Refusal{Code: "M_INCOMPATIBLE_ROOM_VERSION", Reason: "the asking server does not support room version " + string(v)},
		Version: v,
	}
}

// membershipEvent parses the body as the membership event that the path names, and makes the checks that the spec
// lists for send_join, send_leave and send_knock.
func (f *Federation) membershipEvent(q *request, v eventgraph.RoomVersion, raw []byte, membership string) (*eventgraph.Event, error) {
	invalid := func(reason string) (*eventgraph.Event, error) {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", reason)
	}
	e, err := eventgraph.ParseEvent(v, raw)
	if errors.Is(err, eventgraph.ErrTooLarge) {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", err.Error())
	} else if err != nil {
		return nil, fail(http.StatusBadRequest, "M_BAD_JSON", err.Error())
	}
	if canonicaljson.Depth(raw) > canonicaljson.MaxPart { // it is for us to send on, and in a room it could be as deep as may be
		return nil, fail(http.StatusBadRequest, "M_BAD_JSON", "the event is nested too deep")
	}
	stateKey, isState := e.StateKey()
	switch {
	case string(e.ID()) != q.path("eventId"):
		return invalid("the event's ID is not that of the path")
	case string(e.RoomID()) != q.path("roomId"):
		return invalid("the event is of another room")
	case e.HashMismatch():
		return invalid("the content hash is wrong")
	case e.Type() != "m.room.member" || !isState || e.Membership() != membership:
		return invalid("not a membership event of kind " + membership)
	case e.Sender().Server() != q.origin:
		return invalid("the sender is not a user of the asking server")
	case membership != "invite" && stateKey != string(e.Sender()):
		return invalid("the state key is not the sender")
	}
	err = f.verifySignatures(q.Context(), e, q.origin)
	if errors.Is(err, eventgraph.ErrSignature) || errors.Is(err, eventgraph.ErrKeyUnknown) || errors.Is(err, eventgraph.ErrKeyNotValid) {
		return invalid(err.Error())
	}
	return e, err
}

// commitMembership adds our signature to a membership event made by our template, and commits it, before anybody is answered.
func (f *Federation) commitMembership(q *request, membership string) (*eventgraph.Event, *store.StoredEvent, error) {
	room, err := f.resident(q)
	if err != nil {
		return nil, nil, err
	}
	release, err := f.act(q)
	if err != nil {
		return nil, nil, err
	}
	defer release()

	// Refused before anything is kept of its sender, unless it is repeated because our answer was lost.
	if held, err := f.held(eventgraph.EventID(q.path("eventId"))); err != nil && !errors.Is(err, errNoEvent) {
		return nil, nil, err
	} else if held == nil || held.Verdict != store.Accepted {
		if err := f.permits(q, room, membership); err != nil {
			return nil, nil, err
		}
	}
	e, err := f.signedBySender(q, room, membership)
	if err != nil {
		return nil, nil, err
	}
	if e, err = e.WithSignature(f.Key); err != nil {
		return nil, nil, err
	}
	if err := f.acceptOne(q.Context(), e, rooms.Basis{Kind: rooms.Parents, Origin: q.origin, Announce: true}); err != nil {
		return nil, nil, err
	}
	var stored *store.StoredEvent
	err = f.Store.View(func(r *store.Reader) error {
		stored, err = r.Event(e.ID())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return stored.Event, stored, nil // with the signature of the room's policy server, too
}

// claimedEvent is what a membership event says of itself, before it is checked.
type claimedEvent struct {
	Sender  eventgraph.UserID `json:"sender"`
	Content struct {
		Authoriser eventgraph.UserID `json:"join_authorised_via_users_server"`
	} `json:"content"`
}

// permits says whether the room now lets the sender do what the event says: for restricted joins that is the resident's to
// check (SS API, Restricted rooms), and the conditions must be met now, not only when the template was made.
func (f *Federation) permits(q *request, room *store.Room, membership string) error {
	var event claimedEvent
	if err := q.decode(&event); err != nil {
		return err
	}
	if _, err := eventgraph.ParseUserID(string(event.Sender)); err != nil || event.Sender.Server() != q.origin {
		return fail(http.StatusBadRequest, "M_INVALID_PARAM", "the sender is not a user of the asking server")
	}
	_, _, err := f.Rooms.Template(q.Context(), room.ID, event.Sender, membership)
	return err
}

// signedBySender checks the event of a send_join, send_leave or send_knock as far as its sender has signed it.
func (f *Federation) signedBySender(q *request, room *store.Room, membership string) (*eventgraph.Event, error) {
	raw := []byte(q.body)
	var event claimedEvent
	if membership == "join" && json.Unmarshal(raw, &event) == nil && event.Content.Authoriser.Server() == f.server {
		// The signature that the restricted join asks of us is not there yet: with it, the rest can be checked.
		e, err := eventgraph.ParseEvent(room.Version, raw)
		if err != nil {
			return nil, fail(http.StatusBadRequest, "M_BAD_JSON", err.Error())
		}
		if e, err = e.WithSignature(f.Key); err != nil {
			return nil, err
		}
		raw = e.Raw()
	}
	return f.membershipEvent(q, room.Version, raw, membership)
}

// maxUnsigned bounds the questions to a policy server for one handshake: its event, and what that rests on and is held without a place.
const maxUnsigned = 10

// acceptOne puts an event through Accept, with key documents, and the signature of the room's policy server, fetched where they are missing;
// other things missing, and any verdict but accepted, are refusals. No question to the policy server begins later than policyTimeout.
func (f *Federation) acceptOne(ctx context.Context, e *eventgraph.Event, b rooms.Basis) error {
	result, err := f.Rooms.Accept(ctx, e, b)
	var missing *rooms.MissingError
	if errors.As(err, &missing) && len(missing.Keys) > 0 {
		if err := f.ensureKeys(ctx, missing.Keys, []eventgraph.ServerName{b.Origin}); err != nil {
			return &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: err.Error()}
		}
		result, err = f.Rooms.Accept(ctx, e, b)
	}
	within, cancel := context.WithTimeout(ctx, policyTimeout) // each question has its own time, so that it is a fair trial
	defer cancel()
	for range maxUnsigned {
		need := policyOf(err)
		if need == nil {
			break
		}
		if within.Err() != nil {
			return notYetAsked(need.By.Name)
		}
		if need.Event.ID() != e.ID() {
			// Held, without a place yet: it is taken in before, for what it is.
			if err := f.takeInTurn(ctx, within, need, rooms.Basis{Kind: rooms.Parents, Origin: b.Origin}); err != nil {
				return err
			}
		} else if e, err = f.signedFor(ctx, need); err != nil {
			return err // who declines the event makes the whole handshake fail (MSC4284)
		}
		result, err = f.Rooms.Accept(ctx, e, b)
	}
	if errors.As(err, &missing) {
		return &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: "the event rests on what is not known here: " + missing.Error()}
	}
	if err != nil {
		return err
	}
	if result.Verdict != store.Accepted {
		return &rooms.Refusal{Code: "M_FORBIDDEN", Reason: result.Reason}
	}
	return nil
}

// joined is the answer of send_join, before the lists of events.
type joined struct {
	Event          json.RawMessage         `json:"event"`
	MembersOmitted bool                    `json:"members_omitted"`
	Servers        []eventgraph.ServerName `json:"servers_in_room,omitempty"`
	Events         int                     `json:"plexus.events"` // how many come, so that who joins can be told how far it is
}

// serveSendJoin takes in a join and answers with the whole state before it; members are never omitted ("may").
func (f *Federation) serveSendJoin(q *request) (any, error) {
	e, stored, err := f.commitMembership(q, "join")
	if err != nil {
		return nil, err
	}
	state, chain, err := f.stateWithChain(q.Context(), e.RoomID(), stored.StateBefore, e.AuthEvents())
	if err != nil {
		return nil, err
	}
	servers, err := f.Rooms.Servers(e.RoomID())
	if err != nil {
		return nil, err
	}
	head := joined{Event: e.Raw(), Servers: f.named(servers), Events: len(state) + len(chain)}
	return f.stream(q.Context(), eventLists{head, []eventList{{"auth_chain", chain}, {"state", state}}}), nil
}

func (f *Federation) serveSendLeave(q *request) (any, error) {
	if _, _, err := f.commitMembership(q, "leave"); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

func (f *Federation) serveSendKnock(q *request) (any, error) {
	e, _, err := f.commitMembership(q, "knock")
	if err != nil {
		return nil, err
	}
	stripped, err := f.strippedState(e.RoomID(), "")
	if err != nil {
		return nil, err
	}
	return map[string][]json.RawMessage{"knock_room_state": stripped}, nil
}

// strippedTypes is the state that shows a room to who is not in it (CS API, Stripped state), in the order of sending.
var strippedTypes = []string{
	"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules", "m.room.canonical_alias", "m.room.encryption",
}

// strippedState is what the room shows to somebody invited by sender, or who knocks: whole PDUs, as asked for since v1.16.
func (f *Federation) strippedState(room eventgraph.RoomID, sender eventgraph.UserID) ([]json.RawMessage, error) {
	state, err := f.Rooms.CurrentState(room)
	if err != nil {
		return nil, err
	}
	tuples := make([]eventgraph.StateTuple, 0, len(strippedTypes)+1)
	for _, t := range strippedTypes {
		tuples = append(tuples, eventgraph.StateTuple{Type: t})
	}
	if sender != "" {
		tuples = append(tuples, eventgraph.StateTuple{Type: "m.room.member", Key: string(sender)})
	}
	events := []json.RawMessage{}
	for _, t := range tuples {
		id, ok, err := state.EventID(t)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		err = f.Store.View(func(r *store.Reader) error {
			e, err := r.Event(id)
			if err != nil {
				return err
			}
			if shown := e.Shown().Raw(); shallow(shown, wrapsOfPDU) {
				events = append(events, shown)
			} else {
				f.Log.Warn("an invite does not show an event: it is nested too deep for a request", "event", id, "room", room)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return events, nil
}

// invitation is the body of PUT /_matrix/federation/v2/invite.
type invitation struct {
	Version eventgraph.RoomVersion `json:"room_version"`
	Event   json.RawMessage        `json:"event"`
	State   []json.RawMessage      `json:"invite_room_state"`
}

// serveInviteV1 answers that we are in no such room: version 1 of the endpoint is for room versions 1 and 2 alone. Who blocks invites does so
// there too (CS API, Invite permission).
func (f *Federation) serveInviteV1(q *request) (any, error) {
	var body struct {
		Invited string `json:"state_key"`
	}
	if q.decode(&body) == nil {
		if user, err := f.localUser(body.Invited); err == nil {
			if err := f.Rooms.RefuseBlocked(user); err != nil {
				return nil, err
			}
		}
	}
	return nil, incompatible("1")
}

// serveInvite signs an invite for one of our users, and keeps it if we are not in the room; in a room that we are in it comes again,
// in a transaction.
func (f *Federation) serveInvite(q *request) (any, error) {
	var body invitation
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if _, ok := body.Version.Traits(); !ok {
		return nil, incompatible(body.Version)
	}
	release, err := f.act(q)
	if err != nil {
		return nil, err
	}
	defer release()
	room, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", err.Error())
	}
	inRoom := f.Rooms.InRoom(room, f.server)
	if inRoom && !f.allows(room, q.origin) {
		return nil, errDenied
	}
	stranger := !inRoom && !f.sharesRoom(q.origin) && !f.invited(q.origin)
	if stranger && !f.invites.AllowN(f.Now(), 1) {
		return nil, &matrixError{
			Status:       http.StatusTooManyRequests,
			Refusal:      rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "too many invites from servers that share no room with this one"},
			RetryAfterMS: strangerInviteEvery.Milliseconds(),
		}
	}
	e, err := f.membershipEvent(q, body.Version, body.Event, "invite")
	if err != nil {
		return nil, err
	}
	invited, _ := e.StateKey()
	user, err := f.localUser(invited)
	if err != nil {
		return nil, err
	}
	if _, err := f.Local.Profile(q.Context(), user, ""); errors.Is(err, store.ErrNotFound) {
		return nil, fail(http.StatusForbidden, "M_FORBIDDEN", "there is no such user")
	} else if err != nil {
		return nil, err
	}
	if err := f.Rooms.RefuseBlocked(user); err != nil {
		return nil, err
	}
	if e, err = e.WithSignature(f.Key); err != nil {
		return nil, err
	}
	if !inRoom {
		stripped, err := f.checkStripped(q.Context(), e, body.State, q.origin)
		if err != nil {
			return nil, err
		}
		if err := f.Rooms.ReceiveInvite(q.Context(), e, stripped, q.origin, stranger); err != nil {
			return nil, err
		}
	}
	return map[string]json.RawMessage{"event": e.Raw()}, nil
}

// checkStripped checks the state that came with an invite or the answer to a knock, and reduces it to what clients get. For rooms of version 12, whose
// ID is that of the create event, all must be events of the room and rightly signed, and the create event among them; in
// older versions servers may still send the reduced form, which proves nothing.
func (f *Federation) checkStripped(ctx context.Context, about *eventgraph.Event, state []json.RawMessage, from eventgraph.ServerName) ([]json.RawMessage, error) {
	invalid := func(reason string) ([]json.RawMessage, error) {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "room state: "+reason)
	}
	if len(state) > maxStrippedState {
		return invalid("too many events")
	}
	traits, _ := about.Version().Traits()
	created := false
	var stripped []json.RawMessage
	for _, raw := range state {
		if traits.RoomIDFromCreate {
			e, err := eventgraph.ParseEvent(about.Version(), raw)
			if err != nil {
				return invalid(err.Error())
			}
			if e.RoomID() != about.RoomID() {
				return invalid("an event of another room")
			}
			created = created || e.Type() == "m.room.create"
			if err := f.verifySignatures(ctx, e, from); errors.Is(err, eventgraph.ErrSignature) {
				return invalid(err.Error())
			} else if err != nil {
				continue // its signer's key is not to be had now: left out, the invite itself is checked
			}
		}
		s, err := strip(raw)
		if err != nil {
			return invalid(err.Error())
		}
		stripped = append(stripped, s)
	}
	if traits.RoomIDFromCreate && !created {
		return nil, fail(http.StatusBadRequest, "M_MISSING_PARAM", "room state: the create event is missing")
	}
	return stripped, nil
}

// strip reduces a state event to its stripped form (CS API, Stripped state).
func strip(raw json.RawMessage) (json.RawMessage, error) {
	var s struct {
		Type     *string         `json:"type"`
		StateKey *string         `json:"state_key"`
		Sender   *string         `json:"sender"`
		Content  json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	if s.Type == nil || s.StateKey == nil || s.Sender == nil || !bytes.HasPrefix(bytes.TrimSpace(s.Content), []byte("{")) {
		return nil, errors.New("not a state event")
	}
	return marshal(s)
}
