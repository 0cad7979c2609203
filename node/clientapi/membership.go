package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// maxVia bounds the servers that a client names for a join.
const maxVia = 20

// roomOf is the request's room ID.
func roomOf(q *request) (eventgraph.RoomID, error) {
	room, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return "", invalidParam("That is not a room ID.")
	}
	return room, nil
}

// joinRoom is POST /rooms/{roomId}/join.
func (a *API) joinRoom(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	return a.join(q, room, nil)
}

// joinByIDOrAlias is POST /join/{roomIdOrAlias}.
func (a *API) joinByIDOrAlias(q *request) (any, error) {
	room, via, err := a.roomIDOrAlias(q)
	if err != nil {
		return nil, err
	}
	return a.join(q, room, via)
}

// roomIDOrAlias is the room that the path names, and the servers that the query and the alias say know it.
func (a *API) roomIDOrAlias(q *request) (room eventgraph.RoomID, via []eventgraph.ServerName, err error) {
	query := q.URL.Query()
	for _, s := range append(query["via"], query["server_name"]...) { // the latter is the old name
		if len(via) < maxVia && s != "" {
			via = append(via, eventgraph.ServerName(s))
		}
	}
	target := q.path("roomIdOrAlias")
	if !strings.HasPrefix(target, "#") {
		room, err := eventgraph.ParseRoomID(target)
		if err != nil {
			return "", nil, invalidParam("That is neither a room ID nor an alias.")
		}
		return room, via, nil
	}
	alias, err := eventgraph.ParseRoomAlias(target)
	if err != nil {
		return "", nil, invalidParam("That is not a room alias.")
	}
	room, servers, err := a.resolveAlias(q.Context(), alias)
	return room, append(via, servers...), err
}

// knock is POST /knock/{roomIdOrAlias}.
func (a *API) knock(q *request) (any, error) {
	room, via, err := a.roomIDOrAlias(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Reason string `json:"reason"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	content, err := a.membershipContent(q.user, "knock", body.Reason)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room}, a.remote.Knock(q.Context(), room, q.user, via, content)
}

func (a *API) join(q *request, room eventgraph.RoomID, via []eventgraph.ServerName) (any, error) {
	var body map[string]json.RawMessage
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	var reason string
	if raw, ok := body["reason"]; ok {
		if err := decodeJSON(raw, &reason); err != nil {
			return nil, err
		}
	}
	member, err := a.member(room, q.user)
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"room_id": room}
	if isJoined(member) {
		return answer, nil
	}
	content, err := a.membershipContent(q.user, "join", reason)
	if err != nil {
		return nil, err
	}
	if content, err = withCustomContent(content, body); err != nil {
		return nil, err
	}
	if err := a.remote.Join(q.Context(), room, q.user, via, content); err != nil {
		return nil, err
	}
	a.carryOver(q.Context(), q.user, room)
	return answer, nil
}

// withCustomContent adds what else a client puts into the body of a join, as other servers let it: a name for this room alone, or
// fields of the client's own. What servers or the authorization rules look at is not the client's to say.
func withCustomContent(content json.RawMessage, body map[string]json.RawMessage) (json.RawMessage, error) {
	for _, field := range []string{"membership", "reason", "third_party_signed", "third_party_invite", "join_authorised_via_users_server"} {
		delete(body, field)
	}
	if len(body) == 0 {
		return content, nil
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(content, &fields); err != nil {
		return nil, err
	}
	maps.Copy(fields, body)
	return json.Marshal(fields)
}

// member is the user's membership record; nil if there is none.
func (a *API) member(room eventgraph.RoomID, user eventgraph.UserID) (m *store.Member, err error) {
	err = a.Store.View(func(r *store.Reader) error {
		m, err = memberOf(r, room, user)
		return err
	})
	return m, err
}

func memberOf(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID) (*store.Member, error) {
	m, err := r.Member(room, user)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return m, err
}

// isJoined says whether a membership record, which may be nil, is that of a member of a room held here.
func isJoined(m *store.Member) bool { return m != nil && m.Membership == "join" && !m.Outside }

// joinedTo lists the rooms held here that the user is joined to.
func joinedTo(r *store.Reader, user eventgraph.UserID) ([]eventgraph.RoomID, error) {
	rooms := []eventgraph.RoomID{}
	err := r.RoomsOf(user, func(m *store.Member) (bool, error) {
		if isJoined(m) {
			rooms = append(rooms, m.Room)
		}
		return true, nil
	})
	return rooms, err
}

// leaveRoom is POST /rooms/{roomId}/leave: from inside, or of an invite or knock to a room that this server is not in.
func (a *API) leaveRoom(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	var body struct {
		Reason string `json:"reason"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	m, err := a.member(room, q.user)
	if err != nil {
		return nil, err
	}
	var coming *store.Join
	err = a.Store.View(func(r *store.Reader) (err error) {
		coming, err = joining(r, room, q.user)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case coming != nil:
		err := a.remote.Leave(q.Context(), room, q.user, body.Reason)
		if m, failed := a.member(room, q.user); failed != nil || !isJoined(m) {
			return nil, err
		} // else all has come meanwhile
	case m == nil:
		return nil, notFound("You are not in that room.")
	case m.Membership == "leave":
		return nil, nil // leaving twice is no error for any client
	case m.Outside:
		return nil, a.remote.Leave(q.Context(), room, q.user, body.Reason)
	}
	return nil, a.setMembership(q, room, q.user, "leave", body.Reason)
}

// forgetRoom is POST /rooms/{roomId}/forget.
func (a *API) forgetRoom(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		m, err := memberOf(&tx.Reader, room, q.user)
		switch {
		case err != nil:
			return err
		case m == nil || m.Forgotten:
			return nil
		case m.Membership != "leave" && m.Membership != "ban":
			return fail(http.StatusBadRequest, "M_UNKNOWN", "Leave the room before you forget it.")
		}
		m.Forgotten = true
		if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: room, User: q.user}); err != nil {
			return err
		}
		return tx.PutMember(m)
	})
	return nil, err
}

// membershipBody is the body of invite, kick, ban and unban.
type membershipBody struct {
	User   string `json:"user_id"`
	Reason string `json:"reason"`
}

func (q *request) membershipBody() (room eventgraph.RoomID, target eventgraph.UserID, reason string, err error) {
	if room, err = roomOf(q); err != nil {
		return "", "", "", err
	}
	var body membershipBody
	if err = q.decode(&body); err != nil {
		return "", "", "", err
	}
	if body.User == "" {
		return "", "", "", missingParam("user_id is missing.")
	}
	if target, err = eventgraph.ParseUserID(body.User); err != nil {
		return "", "", "", invalidParam("user_id is not a user ID.")
	}
	return room, target, body.Reason, nil
}

// invite is POST /rooms/{roomId}/invite.
func (a *API) invite(q *request) (any, error) {
	room, target, reason, err := q.membershipBody()
	if err != nil {
		return nil, err
	}
	if err := a.findInvited(q.Context(), target); err != nil {
		return nil, err
	}
	d, err := a.inviteDraft(room, q.user, target, reason, false)
	if err != nil {
		return nil, err
	}
	_, err = a.sendMembership(q.Context(), d)
	return nil, err
}

// inviteDraft is an invite. The profile of a local user goes with it.
func (a *API) inviteDraft(room eventgraph.RoomID, sender, target eventgraph.UserID, reason string, direct bool) (rooms.Draft, error) {
	content := json.RawMessage(`{"membership":"invite"}`)
	var err error
	if target.Server() == a.Server {
		content, err = a.membershipContent(target, "invite", reason)
	} else if reason != "" {
		content, err = json.Marshal(map[string]string{"membership": "invite", "reason": reason})
	}
	if err == nil && direct {
		var fields map[string]any
		if err = json.Unmarshal(content, &fields); err == nil {
			fields["is_direct"] = true
			content, err = json.Marshal(fields)
		}
	}
	key := string(target)
	return rooms.Draft{Room: room, Sender: sender, Type: "m.room.member", StateKey: &key, Content: content}, err
}

// sendMembership sends a membership event; an invite of another server's user goes there to be signed first, and it is that server which
// refuses if they block invites.
func (a *API) sendMembership(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	var content struct {
		Membership string `json:"membership"`
	}
	if err := decodeJSON(d.Content, &content); err != nil {
		return "", err
	}
	if user := eventgraph.UserID(*d.StateKey); content.Membership == "invite" {
		if user.Server() != a.Server {
			return a.remote.Invite(ctx, d)
		}
		if err := a.Rooms.RefuseBlocked(user); err != nil {
			return "", err
		}
	} else if content.Membership == "leave" && user == d.Sender {
		if err := a.mayLeave(d.Room, user); err != nil {
			return "", err
		}
	}
	return a.remote.Send(ctx, d)
}

// setMembership changes a user's membership by the caller.
func (a *API) setMembership(q *request, room eventgraph.RoomID, target eventgraph.UserID, membership, reason string) error {
	content := map[string]string{"membership": membership}
	if reason != "" {
		content["reason"] = reason
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	key := string(target)
	_, err = a.sendMembership(q.Context(), rooms.Draft{Room: room, Sender: q.user, Type: "m.room.member", StateKey: &key, Content: raw})
	return err
}

// kick is POST /rooms/{roomId}/kick.
func (a *API) kick(q *request) (any, error) {
	return a.removal(q, "leave", func(m *store.Member) bool {
		return m != nil && (m.Membership == "join" || m.Membership == "invite" || m.Membership == "knock")
	}, "That user is not in the room.")
}

// ban is POST /rooms/{roomId}/ban.
func (a *API) ban(q *request) (any, error) {
	return a.removal(q, "ban", func(*store.Member) bool { return true }, "")
}

// unban is POST /rooms/{roomId}/unban.
func (a *API) unban(q *request) (any, error) {
	return a.removal(q, "leave", func(m *store.Member) bool { return m != nil && m.Membership == "ban" }, "That user is not banned.")
}

// removal sets the target's membership if it is one that can be so changed.
func (a *API) removal(q *request, membership string, from func(*store.Member) bool, otherwise string) (any, error) {
	room, target, reason, err := q.membershipBody()
	if err != nil {
		return nil, err
	}
	m, err := a.member(room, target)
	if err != nil {
		return nil, err
	}
	if !from(m) {
		return nil, forbidden(otherwise)
	}
	return nil, a.setMembership(q, room, target, membership, reason)
}

// joinedRooms is GET /joined_rooms.
func (a *API) joinedRooms(q *request) (any, error) {
	var rooms []eventgraph.RoomID
	err := a.Store.View(func(r *store.Reader) (err error) {
		rooms, err = joinedTo(r, q.user)
		return err
	})
	return map[string]any{"joined_rooms": rooms}, err
}
