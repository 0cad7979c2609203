package federation

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// takeRescinded takes out of a transaction's PDUs those that take back an invite to a room that we are not in: the invited user is no
// longer shown it. Such an event cannot go through Accept, for nothing is held of its room; it is believed if its signature is right
// and it comes from who brought the invite, who could as well not have invited, unless it is from before the invite.
func (f *Federation) takeRescinded(ctx context.Context, origin eventgraph.ServerName, pdus []json.RawMessage) ([]json.RawMessage, error) {
	var failed error
	rest := slices.DeleteFunc(slices.Clone(pdus), func(raw json.RawMessage) bool {
		taken, err := f.rescind(ctx, origin, raw)
		failed = errors.Join(failed, err)
		return taken
	})
	return rest, failed
}

// rescind says whether the PDU took back an invite. An error is one of the store.
func (f *Federation) rescind(ctx context.Context, origin eventgraph.ServerName, raw json.RawMessage) (bool, error) {
	var frame struct {
		Room eventgraph.RoomID `json:"room_id"`
		Type string            `json:"type"`
		Key  eventgraph.UserID `json:"state_key"`
	}
	if json.Unmarshal(raw, &frame) != nil || frame.Type != "m.room.member" || frame.Key.Server() != f.server {
		return false, nil
	}
	var invited *store.Member
	err := f.Store.View(func(r *store.Reader) (err error) {
		invited, err = r.Member(frame.Room, frame.Key)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !invited.Outside || invited.Membership != "invite" || invited.Via != origin || f.Rooms.InRoom(frame.Room, f.server) {
		return false, nil
	}
	e, err := eventgraph.ParseEvent(strippedVersion(invited.Stripped), raw)
	if err != nil || e.HashMismatch() || e.Sender().Server() != origin || e.Membership() != "leave" && e.Membership() != "ban" || !rooms.Follows(invited, e) {
		return false, nil
	}
	if err := f.verifySignatures(ctx, e, origin); err != nil {
		f.Log.Info("an invite was not taken back", "room", frame.Room, "event", e.ID(), "origin", origin, "err", err)
		return true, nil
	}
	return true, f.Rooms.LeaveOutside(ctx, frame.Room, frame.Key, e)
}

// strippedVersion is the room's version by the stripped state of an invite; "1", which is not supported, where it says none (CS API,
// m.room.create).
func strippedVersion(stripped []byte) eventgraph.RoomVersion {
	var events []struct {
		Type    string `json:"type"`
		Content struct {
			Version eventgraph.RoomVersion `json:"room_version"`
		} `json:"content"`
	}
	if json.Unmarshal(stripped, &events) == nil {
		for _, e := range events {
			if e.Type == "m.room.create" && e.Content.Version != "" {
				return e.Content.Version
			}
		}
	}
	return "1"
}
