package rooms

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// InvitePermissionType is the account data in which a user says whether they want to be invited (CS API, Invite permission).
const InvitePermissionType = "m.invite_permission_config"

// BlocksInvites says whether the user, who is one of this server, lets nobody invite them. What their client has put there that is not
// understood means that they can be invited, as the spec has it.
func BlocksInvites(r *store.Reader, user eventgraph.UserID) (bool, error) {
	data, err := r.AccountData(user, "", InvitePermissionType)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var content struct {
		Default json.RawMessage `json:"default_action"`
	}
	return json.Unmarshal(data.Content, &content) == nil && string(content.Default) == `"block"`, nil
}

// RefuseBlocked is asked before a local user is invited, from here or from elsewhere: a Refusal M_INVITE_BLOCKED if they block invites.
func (r *Rooms) RefuseBlocked(user eventgraph.UserID) error {
	return r.store.View(func(read *store.Reader) error {
		blocked, err := BlocksInvites(read, user)
		if err == nil && blocked {
			return refuse("M_INVITE_BLOCKED", "%s does not want to be invited", user)
		}
		return err
	})
}

// maxStripped bounds the stripped state kept with an invite; the spec recommends some eight events.
const maxStripped = 64 << 10

// maxInvites bounds the invites to rooms that we are not in, and the knocks on such, that wait for one user: each may take 128 KiB, and
// anybody can send them.
const maxInvites = 500

// maxInvitesOf is the share of one inviting server in these; beyond it, its oldest goes. A community invites to a space and some rooms of it.
const maxInvitesOf = 50

// maxStrangerInvites bounds the invites by servers that share no room with us, of all local users together: identities are free. Beyond it
// the oldest goes, so that a person who is invited today is asked, whoever asked a thousand times yesterday.
const maxStrangerInvites = 100

// ReceiveInvite keeps an invite (or, for a knock we sent, its stripped state) for a local user to a room that we are not in.
// The event's signatures are checked. An invite to a room that we are in is put through Accept instead, by its parents. That of a stranger
// is kept like any other, but all of these have one bound.
func (r *Rooms) ReceiveInvite(ctx context.Context, invite *eventgraph.Event, stripped []json.RawMessage, via eventgraph.ServerName, stranger bool) error {
	key, isState := invite.StateKey()
	user := eventgraph.UserID(key)
	membership := invite.Membership()
	if !isState || invite.Type() != "m.room.member" || membership != "invite" && membership != "knock" {
		return refuse("M_BAD_JSON", "not an invite or knock")
	}
	if user.Server() != r.key.Server {
		return refuse("M_FORBIDDEN", "%s is no user of this server", user)
	}
	if r.InRoom(invite.RoomID(), r.key.Server) {
		_, err := r.Accept(ctx, invite, Basis{Kind: Parents, Origin: via})
		return err
	}
	if err := r.verify(invite); err != nil {
		return err
	}
	state, err := strippedArray(stripped)
	if err != nil {
		return err
	}
	return r.setOutside(ctx, invite.RoomID(), user, func(tx *store.Tx, m *store.Member) error {
		if !waits(m) {
			if err := makeRoomForInvite(tx, m, via, membership == "invite" && !stranger); err != nil {
				return err
			}
		}
		m.Membership, m.Event, m.Invite = membership, invite.ID(), invite.Raw()
		m.Stripped, m.Via, m.Forgotten, m.Stranger = state, via, false, stranger
		if !stranger {
			return nil
		}
		return dropOldestStranger(tx, m)
	})
}

// strippedArray is a JSON array of as many of the events as fit.
func strippedArray(stripped []json.RawMessage) ([]byte, error) {
	kept := []json.RawMessage{}
	size := 0
	for _, s := range stripped {
		if size += len(s); size > maxStripped {
			break
		}
		kept = append(kept, s)
	}
	raw, err := json.Marshal(kept)
	if err != nil {
		return nil, refuse("M_BAD_JSON", "stripped state: %s", err)
	}
	return raw, nil
}

// maxEnd bounds the event that is kept of the end of an invite: they stay.
const maxEnd = 4 << 10

// LeaveOutside records that a local user has rejected an invite to (or withdrawn a knock from) a room that we are not in, or that it was
// taken back. end is the event that says so to the user's clients; nil if there is none.
func (r *Rooms) LeaveOutside(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, end *eventgraph.Event) error {
	return r.setOutside(ctx, room, user, func(_ *store.Tx, m *store.Member) error {
		if !waits(m) {
			return refuse("M_NOT_FOUND", "%s has no invite to %s", user, room)
		}
		m.Membership, m.Invite, m.Stripped = "leave", nil, nil
		if end != nil && len(end.Raw()) <= maxEnd {
			m.Event, m.Invite = end.ID(), end.Raw()
		}
		return nil
	})
}

// waits says whether m is an invite to, or a knock on, a room that we are not in, and is not answered.
func waits(m *store.Member) bool {
	return m.Outside && (m.Membership == "invite" || m.Membership == "knock")
}

// Follows says whether e came after the invite (or knock) that m is, so that it may end it: who was banned and let in again is invited
// after the end of the ban, which may be heard of later. Depth is the word of who invites, and so is the invite.
func Follows(m *store.Member, e *eventgraph.Event) bool {
	var invite struct {
		Depth int64 `json:"depth"`
	}
	return json.Unmarshal(m.Invite, &invite) == nil && e.Depth() > invite.Depth
}

// makeRoomForInvite rejects the oldest invite of the server from which the next one comes, if it has its share of those that wait for the user; or,
// if as many wait as may, the oldest of the server that has most. Strangers' have a bound of their own, and are as of one server here.
func makeRoomForInvite(tx *store.Tx, next *store.Member, via eventgraph.ServerName, shared bool) error {
	const strangers eventgraph.ServerName = ""
	total := 0
	by := map[eventgraph.ServerName][]*store.Member{}
	err := tx.RoomsOf(next.User, func(m *store.Member) (bool, error) {
		if waits(m) {
			total++
			server := m.Via
			if m.Stranger {
				server = strangers
			}
			if m.Membership == "invite" {
				by[server] = append(by[server], m)
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	crowd := by[via]
	if !shared || len(crowd) < maxInvitesOf {
		if total < maxInvites {
			return nil
		}
		for _, server := range slices.Sorted(maps.Keys(by)) {
			if len(by[server]) > len(crowd) {
				crowd = by[server]
			}
		}
	}
	if len(crowd) == 0 {
		return refuse("M_LIMIT_EXCEEDED", "too many knocks of %s wait", next.User)
	}
	return rejectOutside(tx, slices.MinFunc(crowd, func(x, y *store.Member) int { return cmp.Compare(x.Position, y.Position) }))
}

// rejectOutside is as if the user had rejected the invite, and they are told.
func rejectOutside(tx *store.Tx, m *store.Member) (err error) {
	m.Membership, m.Invite, m.Stripped = "leave", nil, nil
	if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: m.Room, User: m.User}); err != nil {
		return err
	}
	return tx.PutMember(m)
}

// dropOldestStranger makes room for the invite of one more stranger, as if the user had rejected the oldest.
func dropOldestStranger(tx *store.Tx, next *store.Member) error {
	count, oldest := 0, (*store.Member)(nil)
	err := tx.Accounts(func(a *store.Account) (bool, error) {
		return true, tx.RoomsOf(a.User, func(m *store.Member) (bool, error) {
			if waits(m) && m.Stranger && (m.Room != next.Room || m.User != next.User) {
				if count++; oldest == nil || m.Position < oldest.Position {
					oldest = m
				}
			}
			return true, nil
		})
	})
	if err != nil || count < maxStrangerInvites {
		return err
	}
	return rejectOutside(tx, oldest)
}

// setOutside changes a membership that no room held here speaks of, and logs it.
func (r *Rooms) setOutside(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, change func(*store.Tx, *store.Member) error) error {
	_, err := r.store.Update(ctx, func(tx *store.Tx) error {
		m, err := tx.Member(room, user)
		if errors.Is(err, store.ErrNotFound) {
			m, err = &store.Member{Room: room, User: user}, nil
		}
		if err != nil {
			return err
		}
		if err := change(tx, m); err != nil {
			return err
		}
		m.Outside = true
		if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: room, User: user}); err != nil {
			return err
		}
		return tx.PutMember(m)
	})
	return err
}
