package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Server notices (CS API, Server Notices): what whoever runs the node tells its users, each in a room of their own with the server's user. The admin
// socket calls this; users are told nothing unless somebody asks for it.

const (
	// serverLocalpart is that of the user who sends notices, as elsewhere. They have no account, so there is nothing to log in to or to act as, and
	// nobody can make one.
	serverLocalpart = "_server"
	serverUserName  = `"This server"`

	noticeRoomName  = "Server notices"
	noticeRoomTopic = "What whoever runs this homeserver has to say to you."

	serverNoticeTag     = "m.server_notice" // of rooms
	serverNoticeType    = "m.server_notice" // msgtype
	usageLimitReached   = "m.server_notice.usage_limit_reached"
	noticeRoomRoundsMax = 3 // looks at which room is the user's, if others make one meanwhile
)

var (
	errCannotReject = fail(http.StatusForbidden, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "This invite cannot be rejected. You can leave the room once you have joined it.")
	errOtherRoom    = errors.New("the user has another room for notices")
)

func (a *API) serverUser() eventgraph.UserID {
	return eventgraph.UserID("@" + serverLocalpart + ":" + string(a.Server))
}

// mayLeave answers M_CANNOT_LEAVE_SERVER_NOTICE_ROOM to who would reject the invite to their room for notices.
func (a *API) mayLeave(room eventgraph.RoomID, user eventgraph.UserID) error {
	return a.Store.View(func(r *store.Reader) error {
		account, err := r.Account(user)
		if errors.Is(err, store.ErrNotFound) || err == nil && account.NoticeRoom != room {
			return nil
		}
		if err != nil {
			return err
		}
		m, err := memberOf(r, room, user)
		if err == nil && m != nil && m.Membership == "invite" {
			err = errCannotReject
		}
		return err
	})
}

// ServerNotice is what is told.
type ServerNotice struct {
	// Content of the m.room.message. One whose msgtype is m.server_notice is pinned until the next notice.
	Content json.RawMessage
	TxnID   string // "": none; a notice for a user with an ID that was used for one is not sent again
}

// NoticeSent says where a notice is; Error says why it is nowhere.
type NoticeSent struct {
	User  eventgraph.UserID  `json:"user_id"`
	Room  eventgraph.RoomID  `json:"room_id,omitempty"`
	Event eventgraph.EventID `json:"event_id,omitempty"`
	Error string             `json:"error,omitempty"`
}

// check answers for what is no notice (CS API, m.room.message with msgtype m.server_notice), and says whether it is to be pinned.
func (n ServerNotice) check() (pinned bool, err error) {
	var content struct {
		MsgType string `json:"msgtype"`
		Body    string `json:"body"`
		Type    string `json:"server_notice_type"`
		Contact string `json:"admin_contact"`
		Limit   string `json:"limit_type"`
	}
	if !isObject(n.Content) {
		return false, badJSON("The content of a notice must be a JSON object.")
	}
	if err := decodeJSON(n.Content, &content); err != nil {
		return false, err
	}
	pinned = content.MsgType == serverNoticeType
	switch {
	case content.MsgType == "" || content.Body == "":
		return false, missingParam("A notice needs a text, and its content msgtype and body.")
	case pinned && content.Type == "":
		return false, missingParam("A notice of the type " + serverNoticeType + " needs server_notice_type.")
	case pinned && content.Type == usageLimitReached && (content.Contact == "" || content.Limit == ""):
		return false, missingParam("A notice of a limit needs admin_contact and limit_type.")
	case len(n.TxnID) > maxTxnID:
		return false, invalidParam("The transaction ID is too long.")
	}
	return pinned, nil
}

// SendServerNotice tells a local user something: in their room for notices, which is made at the first. They are invited to it, again if they
// have left it.
func (a *API) SendServerNotice(ctx context.Context, user eventgraph.UserID, n ServerNotice) (*NoticeSent, error) {
	pinned, err := n.check()
	if err != nil {
		return nil, err
	}
	room, err := a.noticeRoom(ctx, user)
	if err != nil {
		return nil, err
	}
	d := rooms.Draft{Room: room, Sender: a.serverUser(), Type: "m.room.message", Content: n.Content}
	if n.TxnID != "" {
		d.Txn = &store.ClientTxn{User: d.Sender, TxnID: n.TxnID}
		before, err := a.Rooms.Sent(d)
		if before != "" && err == nil && pinned {
			err = a.pinRepeated(ctx, room, before)
		}
		if before != "" || err != nil {
			return &NoticeSent{User: user, Room: room, Event: before}, err
		}
	}
	if err := a.inviteToNotices(ctx, room, user); err != nil {
		return nil, err
	}
	id, err := a.remote.Send(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := a.pinNotice(ctx, room, id, pinned); err != nil {
		return nil, err
	}
	return &NoticeSent{User: user, Room: room, Event: id}, nil
}

// SendServerNotices is SendServerNotice for all people with an account. One who cannot be told does not keep the others from it.
func (a *API) SendServerNotices(ctx context.Context, n ServerNotice) ([]NoticeSent, error) {
	if _, err := n.check(); err != nil {
		return nil, err
	}
	sent := []NoticeSent{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Accounts(func(account *store.Account) (bool, error) {
			if account.Service == "" && !account.Deactivated {
				sent = append(sent, NoticeSent{User: account.User})
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	at := make([]*NoticeSent, len(sent))
	for i := range sent {
		at[i] = &sent[i]
	}
	return sent, atOnce(ctx, at, func(one *NoticeSent) error {
		told, err := a.SendServerNotice(ctx, one.User, n)
		if err != nil {
			one.Error = err.Error()
			return nil
		}
		*one = *told
		return nil
	})
}

// noticeRoom is the user's room for notices, with its tag.
func (a *API) noticeRoom(ctx context.Context, user eventgraph.UserID) (room eventgraph.RoomID, err error) {
	for range noticeRoomRoundsMax {
		var account *store.Account
		held := false
		err := a.Store.View(func(r *store.Reader) (err error) {
			if err := noPersonNamed(r, a.serverUser()); err != nil {
				return err
			}
			if account, err = r.Account(user); err != nil || account.NoticeRoom == "" {
				return err
			}
			_, err = r.Room(account.NoticeRoom)
			if held = err == nil; errors.Is(err, store.ErrNotFound) {
				err = nil
			}
			return err
		})
		switch {
		case err != nil:
			return "", err
		case account.Service != "":
			return "", fmt.Errorf("%s is a user of an application service: nobody reads notices there", user)
		case held:
			return account.NoticeRoom, a.tagNotices(ctx, account.NoticeRoom, user)
		}
		room, err := a.makeNoticeRoom(ctx, user, account.NoticeRoom)
		if !errors.Is(err, errOtherRoom) {
			return room, err
		}
	}
	return "", errOtherRoom
}

// noPersonNamed answers for an account of the server user's name, of a time when anybody could have it.
func noPersonNamed(r *store.Reader, user eventgraph.UserID) error {
	account, err := r.Account(user)
	if errors.Is(err, store.ErrNotFound) || err == nil && account.Deactivated {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("notices are sent by %s, and somebody has an account of that name: it must be deactivated first", user)
	}
	return err
}

// makeNoticeRoom makes the user's room for notices and invites them: the room, the tag, and that it is this one, in one commit. errOtherRoom, if
// the account does not say any more what it said.
func (a *API) makeNoticeRoom(ctx context.Context, user eventgraph.UserID, before eventgraph.RoomID) (eventgraph.RoomID, error) {
	if err := a.Rooms.RefuseBlocked(user); err != nil { // they would not be shown the invite
		return "", err
	}
	// Nobody else is ever in it, so it is not for other servers; and only the server's user says or changes anything in it.
	body := createRoomBody{
		Preset: "private_chat", Name: noticeRoomName, Topic: noticeRoomTopic,
		CreationContent: map[string]json.RawMessage{"m.federate": json.RawMessage("false")},
		PowerLevels:     map[string]json.RawMessage{},
	}
	for _, field := range []string{"events_default", "state_default", "invite", "kick", "ban", "redact"} {
		body.PowerLevels[field] = json.RawMessage("100")
	}
	traits, _ := a.RoomVersion.Traits()
	create := rooms.CreateRequest{
		Version: a.RoomVersion, Creator: a.serverUser(), JoinContent: json.RawMessage(`{"displayname":` + serverUserName + `}`),
		Also: func(tx *store.Tx, room eventgraph.RoomID) error {
			account, err := tx.Account(user)
			if err == nil && account.NoticeRoom != before {
				err = errOtherRoom
			}
			if err != nil {
				return err
			}
			account.NoticeRoom = room
			if err := tx.PutAccount(account); err != nil {
				return err
			}
			return a.putNoticeTag(tx, room, user)
		},
	}
	var err error
	if create.Content, err = creationContent(&body, traits, nil, false); err != nil {
		return "", err
	}
	if create.Then, err = initialState(&body, "", presets[body.Preset], traits, create.Creator, nil, false); err != nil {
		return "", err
	}
	invite, err := a.inviteDraft("", create.Creator, user, "", false)
	if err != nil {
		return "", err
	}
	create.Then = append(create.Then, invite)
	return a.Rooms.Create(ctx, create)
}

// tagNotices gives the room its tag again, where the user's client has taken it away.
func (a *API) tagNotices(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID) error {
	var tagged bool
	err := a.Store.View(func(r *store.Reader) error {
		t, err := readTags(r, user, room)
		_, tagged = t.Tags[serverNoticeTag]
		return err
	})
	if tagged || err != nil {
		return err
	}
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error { return a.putNoticeTag(tx, room, user) })
	return err
}

func (a *API) putNoticeTag(tx *store.Tx, room eventgraph.RoomID, user eventgraph.UserID) error {
	t, err := readTags(&tx.Reader, user, room)
	if err != nil {
		return err
	}
	t.Tags[serverNoticeTag] = json.RawMessage("{}")
	content, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = tx.PutAccountData(user, room, &store.AccountData{Type: typeTag, Content: content, Origin: a.Peer})
	if errors.Is(err, store.ErrAccountDataBytes) {
		return nil // the notice comes all the same
	}
	return err
}

// inviteToNotices invites a user who is not in the room, and not invited.
func (a *API) inviteToNotices(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID) error {
	m, err := a.member(room, user)
	if err != nil || m != nil && (m.Membership == "join" || m.Membership == "invite") {
		return err
	}
	d, err := a.inviteDraft(room, a.serverUser(), user, "", false)
	if err != nil {
		return err
	}
	_, err = a.sendMembership(ctx, d)
	return err
}

// pinRepeated pins a notice that was sent before, if it is the newest: the node may have been ended before it was pinned.
func (a *API) pinRepeated(ctx context.Context, room eventgraph.RoomID, id eventgraph.EventID) error {
	newest := false
	err := a.Store.View(func(r *store.Reader) error {
		return r.Timeline(room, math.MaxInt64, true, func(e *store.StoredEvent) (bool, error) {
			if e.Type() != "m.room.message" || e.Sender() != a.serverUser() {
				return true, nil
			}
			newest = e.ID() == id
			return false, nil
		})
	})
	if err != nil || !newest {
		return err
	}
	return a.pinNotice(ctx, room, id, true)
}

// pinNotice pins a notice, or unpins the one before: "Active notices are represented by the pinned events".
func (a *API) pinNotice(ctx context.Context, room eventgraph.RoomID, id eventgraph.EventID, pinned bool) error {
	const eventType = "m.room.pinned_events"
	content := json.RawMessage(`{"pinned":[]}`)
	if pinned {
		var err error
		if content, err = json.Marshal(map[string]any{"pinned": []eventgraph.EventID{id}}); err != nil {
			return err
		}
	} else {
		state, err := a.Rooms.CurrentState(room)
		if err != nil {
			return err
		}
		if before, err := state.Event(eventgraph.StateTuple{Type: eventType}); before == nil || err != nil {
			return err // nothing was ever pinned
		}
	}
	empty := ""
	_, err := a.remote.Send(ctx, rooms.Draft{Room: room, Sender: a.serverUser(), Type: eventType, StateKey: &empty, Content: content})
	return err
}
