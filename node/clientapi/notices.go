package clientapi

import (
	"encoding/json"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/push"
	"github.com/plexus-p2p/plexus/node/pushrules"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// The API is the push.Source of a node: what counts as unread is what is told, by the same rules.

// Notices is push.Source's.
func (a *API) Notices(r *store.Reader, user eventgraph.UserID, id eventgraph.RoomID, events []eventgraph.EventID, most int) ([]push.Notice, error) {
	n, err := a.notices(r, user, id)
	if n == nil || err != nil {
		return nil, err
	}
	var found []push.Notice
	for _, event := range slices.Backward(events) {
		if len(found) == most {
			break
		}
		e, err := r.Event(event)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		outcome, told, err := n.told(e)
		if err != nil {
			return nil, err
		}
		if !outcome.Notify || told {
			continue
		}
		notice, err := n.notice(e, outcome)
		if err != nil {
			return nil, err
		}
		found = append(found, *notice)
	}
	slices.Reverse(found)
	return found, nil
}

// notices judges events of one room for one user.
type notices struct {
	*unread
	room    *store.Room
	member  *store.Member
	context pushrules.Context
	reading *readMarks // nil for who is only invited
	since   int64      // where their joining stands, if it was asked for
}

// notices begins; nil if nothing of the room is told to the user, who is neither joined nor invited, or is invited and blocks invites.
func (a *API) notices(r *store.Reader, user eventgraph.UserID, id eventgraph.RoomID) (*notices, error) {
	n := &notices{}
	var err error
	if n.member, err = r.Member(id, user); errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil || n.member.Outside || n.member.Membership != "join" && n.member.Membership != "invite" {
		return nil, err
	}
	if n.member.Membership == "invite" {
		if blocked, err := rooms.BlocksInvites(r, user); blocked || err != nil {
			return nil, err
		}
	}
	if n.unread, err = a.newUnread(r, user); err != nil {
		return nil, err
	}
	if n.room, err = r.Room(id); errors.Is(err, store.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := n.load(); err != nil {
		return nil, err
	}
	if n.context, err = n.unread.context(n.room); err != nil || n.member.Membership == "invite" {
		return n, err
	}
	n.reading, err = n.marks(id)
	return n, err
}

// told says what the rules make of an event, and whether the user has read it. Of a room that they are invited to they are
// told that alone; of what has been redacted, nothing.
func (n *notices) told(e *store.StoredEvent) (outcome pushrules.Outcome, read bool, err error) {
	invited := n.member.Membership == "invite"
	if invited && e.ID() != n.member.Event || e.RedactedBy != "" {
		return outcome, false, nil
	}
	outcome = n.outcome(n.room, ruleEvent(e.Shown()), n.context)
	if !outcome.Notify || invited {
		return outcome, false, nil
	}
	if may, err := n.api.Rooms.MaySeeUser(n.user, e); !may || err != nil {
		return pushrules.Outcome{}, false, err
	}
	thread, err := threadOf(n.r, e)
	if err != nil {
		return outcome, false, err
	}
	one := notification{order: e.Order, thread: thread}
	if read, err = n.reading.cover(one); err != nil || read {
		return outcome, read, err
	}
	known, err := n.evaluated(n.room, n.reading.all)
	return outcome, err == nil && known.answered(one), err
}

// notice puts together what is told of an event.
func (n *notices) notice(e *store.StoredEvent, outcome pushrules.Outcome) (*push.Notice, error) {
	notice := newNotice(ruleEvent(e.Shown()), n.user, outcome)
	notice.Position, notice.ReceivedTS = e.Position, e.ReceivedTS
	for _, field := range []struct {
		eventType, key, name string
		to                   *string
	}{
		{"m.room.name", "", "name", &notice.RoomName},
		{"m.room.canonical_alias", "", "alias", &notice.RoomAlias},
		{"m.room.member", string(e.Sender()), "displayname", &notice.SenderName},
	} {
		state, err := stateEvent(n.r, n.room.State, field.eventType, field.key)
		if err != nil {
			return nil, err
		}
		if state != nil {
			*field.to, _ = canonicaljson.GetString(state.Shown().Content(), field.name)
		}
	}
	return notice, nil
}

// newNotice is what the event itself says.
func newNotice(e *pushrules.Event, user eventgraph.UserID, outcome pushrules.Outcome) *push.Notice {
	tweaks := outcome.Tweaks()
	_, sound := tweaks["sound"]
	return &push.Notice{
		Event: eventgraph.EventID(e.ID), Room: eventgraph.RoomID(e.RoomID), Type: e.Type, Sender: eventgraph.UserID(e.Sender), Content: e.Content,
		Target: e.Type == "m.room.member" && e.StateKey != nil && *e.StateKey == string(user),
		// What is in an encrypted event only its reader can know, so it counts as urgent.
		Urgent: outcome.Highlight || sound || e.Type == "m.room.encrypted",
		Tweaks: tweaks,
	}
}

// Invitation is push.Source's.
func (a *API) Invitation(r *store.Reader, m *store.Member) (*push.Notice, error) {
	if !m.Outside || m.Membership != "invite" || m.Stranger {
		return nil, nil
	}
	if blocked, err := rooms.BlocksInvites(r, m.User); blocked || err != nil {
		return nil, err
	}
	var invite strippedFields
	if json.Unmarshal(m.Invite, &invite) != nil || !invite.valid() {
		return nil, nil
	}
	e := &pushrules.Event{
		ID: string(m.Event), Type: invite.Type, Sender: string(invite.Sender), RoomID: string(m.Room), StateKey: invite.StateKey, Content: invite.Content,
	}
	u, err := a.newUnread(r, m.User)
	if err != nil {
		return nil, err
	}
	if err := u.load(); err != nil {
		return nil, err
	}
	outcome := u.outcome(nil, e, pushrules.Context{User: string(m.User)})
	if !outcome.Notify {
		return nil, nil
	}
	notice := newNotice(e, m.User, outcome)
	notice.Position = m.Position
	state, err := a.inviteState(r, m)
	if err != nil {
		return nil, err
	}
	for _, raw := range state.events {
		var s strippedFields
		if json.Unmarshal(raw, &s) != nil {
			continue
		}
		switch {
		case s.Type == "m.room.name" && *s.StateKey == "":
			notice.RoomName, _ = canonicaljson.GetString(s.Content, "name")
		case s.Type == "m.room.canonical_alias" && *s.StateKey == "":
			notice.RoomAlias, _ = canonicaljson.GetString(s.Content, "alias")
		case s.Type == "m.room.member" && *s.StateKey == e.Sender:
			notice.SenderName, _ = canonicaljson.GetString(s.Content, "displayname")
		}
	}
	return notice, nil
}

// Unread is push.Source's.
func (a *API) Unread(r *store.Reader, user eventgraph.UserID, room eventgraph.RoomID) (int, error) {
	m, err := r.Member(room, user)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil || m.Membership != "join" || m.Outside {
		return 0, err
	}
	u, err := a.newUnread(r, user)
	if err != nil {
		return 0, err
	}
	counts, _, err := u.room(room, false)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	return counts.Notifications, err
}
