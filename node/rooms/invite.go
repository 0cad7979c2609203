package rooms

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// maxStripped bounds the stripped state kept with an invite; the spec recommends some eight events.
const maxStripped = 64 << 10

// ReceiveInvite keeps an invite (or, for a knock we sent, its stripped state) for a local user to a room that we are not in.
// The event's signatures are checked. An invite to a room that we are in is put through Accept instead, by its parents.
func (r *Rooms) ReceiveInvite(ctx context.Context, invite *eventgraph.Event, stripped []json.RawMessage, via eventgraph.ServerName) error {
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
	return r.setOutside(ctx, invite.RoomID(), user, func(m *store.Member) error {
		m.Membership, m.Event, m.Invite = membership, invite.ID(), invite.Raw()
		m.Stripped, m.Via, m.Forgotten = state, via, false
		return nil
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

// LeaveOutside records that a local user has rejected an invite to (or withdrawn a knock from) a room that we are not in.
func (r *Rooms) LeaveOutside(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID) error {
	return r.setOutside(ctx, room, user, func(m *store.Member) error {
		if !m.Outside || m.Membership != "invite" && m.Membership != "knock" {
			return refuse("M_NOT_FOUND", "%s has no invite to %s", user, room)
		}
		m.Membership = "leave"
		return nil
	})
}

// setOutside changes a membership that no room held here speaks of, and logs it.
func (r *Rooms) setOutside(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, change func(*store.Member) error) error {
	_, err := r.store.Update(ctx, func(tx *store.Tx) error {
		m, err := tx.Member(room, user)
		if errors.Is(err, store.ErrNotFound) {
			m, err = &store.Member{Room: room, User: user}, nil
		}
		if err != nil {
			return err
		}
		if err := change(m); err != nil {
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
