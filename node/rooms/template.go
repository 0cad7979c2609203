package rooms

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// Template makes the event template of make_join, make_leave and make_knock (auth-checked), for a remote user; and for our own use
// with restricted joins sets join_authorised_via_users_server. *Refusal: M_NOT_FOUND, M_FORBIDDEN, and for restricted joins
// M_UNABLE_TO_AUTHORISE_JOIN (we cannot tell, another server may) and M_UNABLE_TO_GRANT_JOIN (nobody of ours may invite).
func (r *Rooms) Template(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, membership string) (json.RawMessage, eventgraph.RoomVersion, error) {
	var proto json.RawMessage
	var version eventgraph.RoomVersion
	err := r.inTurn(ctx, room, func(run *run) error {
		if !run.live.exists {
			return refuse("M_NOT_FOUND", "room %s is not known here", room)
		}
		version = run.live.Version
		key := string(user)
		content, err := canonicaljson.Marshal(map[string]string{"membership": membership})
		if err != nil {
			return err
		}
		full, state, err := run.compose(Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: content})
		if err != nil {
			return err
		}
		// Signed by us only so that it can be checked: the auth rules do not look at signatures.
		e, err := eventgraph.Build(version, full, r.key)
		if err != nil {
			return refusal(err)
		}
		if err := auth.Check(e, state); err != nil {
			return refusal(err)
		}
		proto, err = eventgraph.Proto(version, full)
		return err
	})
	return proto, version, err
}

const authorisedVia = "join_authorised_via_users_server"

// maxAllowRules bounds the rooms that are looked at for one restricted join.
const maxAllowRules = 50

// authorisedJoin is the content of a member event; for a join that only the allow rules of a restricted room permit, with the
// local user who authorises it (SS API, Restricted rooms).
func (run *run) authorisedJoin(d Draft, state *State) (json.RawMessage, error) {
	membership, _ := field(d.Content, "membership")
	_, named := field(d.Content, authorisedVia)
	if !run.live.traits.Restricted || membership != "join" || named || d.StateKey == nil || *d.StateKey != string(d.Sender) {
		return d.Content, nil
	}
	rules, err := state.Event(eventgraph.StateTuple{Type: "m.room.join_rules"})
	if rules == nil || err != nil {
		return d.Content, err
	}
	rule, _ := canonicaljson.GetString(rules.Content(), "join_rule")
	if rule != "restricted" && !(rule == "knock_restricted" && run.live.traits.KnockRestricted) {
		return d.Content, nil
	}
	member, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: *d.StateKey})
	if err != nil {
		return nil, err
	}
	if member != nil {
		switch member.Membership() {
		case "join", "invite", "ban": // needs no rule, or none helps
			return d.Content, nil
		}
	}
	if err := run.meetsAllowRule(rules, d.Sender); err != nil {
		return nil, err
	}
	by, err := run.inviter(state)
	if err != nil {
		return nil, err
	}
	return withFields(d.Content, map[string]any{authorisedVia: by})
}

// field is a string of an object that need not be canonical.
func field(object json.RawMessage, name string) (string, bool) {
	canonical, err := canonicaljson.Canonicalize(object, canonicaljson.Lenient)
	if err != nil {
		return "", false
	}
	return canonicaljson.GetString(canonical, name)
}

// meetsAllowRule says whether the user is in one of the rooms that the join rules allow: nil, or a Refusal.
func (run *run) meetsAllowRule(rules *eventgraph.Event, user eventgraph.UserID) error {
	allow, _ := canonicaljson.Get(rules.Content(), "allow")
	conditions, _ := canonicaljson.Elements(allow)
	unknown := false
	for _, condition := range conditions[:min(len(conditions), maxAllowRules)] {
		if !canonicaljson.IsObject(condition) {
			continue
		}
		if kind, _ := canonicaljson.GetString(condition, "type"); kind != "m.room_membership" {
			continue
		}
		id, _ := canonicaljson.GetString(condition, "room_id")
		room := eventgraph.RoomID(id)
		in, known, err := run.joinedTo(room, user)
		if err != nil {
			return err
		}
		if in {
			return nil
		}
		unknown = unknown || !known
	}
	if unknown {
		return refuse("M_UNABLE_TO_AUTHORISE_JOIN", "this server is not in the rooms that would allow %s in", user)
	}
	return refuse("M_FORBIDDEN", "%s is in none of the rooms that would allow them in", user)
}

// joinedTo looks the user up in another room; known is whether we have a user in that room, and so know its state.
func (run *run) joinedTo(room eventgraph.RoomID, user eventgraph.UserID) (in, known bool, err error) {
	_, err = run.read.Room(room)
	if errors.Is(err, store.ErrNotFound) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	known = run.r.InRoom(room, run.r.key.Server)
	m, err := run.read.Member(room, user)
	if errors.Is(err, store.ErrNotFound) {
		return false, known, nil
	}
	if err != nil {
		return false, known, err
	}
	return known && m.Membership == "join" && !m.Outside, known, nil
}

// inviter is a local user joined to the room who may invite.
func (run *run) inviter(state *State) (eventgraph.UserID, error) {
	levels, err := auth.PowerLevels(state)
	if err != nil {
		return "", err
	}
	var found eventgraph.UserID
	err = run.read.MembersOf(run.rm.id, func(m *store.Member) (bool, error) {
		if m.User.Server() != run.r.key.Server || m.Membership != "join" || m.Outside {
			return true, nil
		}
		member, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(m.User)})
		if member == nil || err != nil || member.Membership() != "join" {
			return true, err
		}
		power, err := auth.UserPower(m.User, state)
		if err != nil {
			return false, err
		}
		if power.IsCreator || power.Level >= levels.Invite {
			found = m.User
		}
		return found == "", nil
	})
	if err != nil {
		return "", err
	}
	if found == "" {
		return "", refuse("M_UNABLE_TO_GRANT_JOIN", "no user of this server in the room may invite")
	}
	return found, nil
}
