package rooms

import (
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// MaySeeServer applies auth.MaySee to a held event, for a server. Every answer to a peer goes through it. Soft-failed events
// are seen by the same rules as others (SS API, Soft failure), rejected ones by nobody. An outlier, of which no state is
// known, is part of the room's state or its auth chain: servers in the room now may have it. And they may have the forward extremities,
// whatever history visibility says of them: no server's joining is behind those, and who does not know them has not the room's state.
// Purged events are seen by nobody.
func (r *Rooms) MaySeeServer(server eventgraph.ServerName, e *store.StoredEvent) (bool, error) {
	if e.Verdict == store.Rejected {
		return false, nil
	}
	return r.MaySeePlace(server, e)
}

// MaySeePlace is MaySeeServer of a rejected event too, as far as it is about the event's place in the graph and the state there.
func (r *Rooms) MaySeePlace(server eventgraph.ServerName, e *store.StoredEvent) (bool, error) {
	if e.Purged {
		return false, nil
	}
	if server == r.key.Server {
		return true, nil
	}
	l, err := r.liveRoom(e.RoomID())
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := r.serverSight(l.ID, l.State, server)
	if err != nil {
		return false, err
	}
	if !placed(e) {
		return now.Joined, nil
	}
	if now.Joined && (e.StateBefore == l.State && e.StateAfter == l.State || slices.Contains(l.Forward, e.ID())) {
		return true, nil
	}
	before, err := r.serverSight(l.ID, e.StateBefore, server)
	if err != nil {
		return false, err
	}
	after := before
	if e.StateAfter != e.StateBefore {
		if after, err = r.serverSight(l.ID, e.StateAfter, server); err != nil {
			return false, err
		}
	}
	own := false
	if tuple, ok := e.Tuple(); ok && tuple.Type == "m.room.member" {
		own = eventgraph.UserID(tuple.Key).Server() == server
	}
	return auth.MaySee(before, after, now, own), nil
}

// GivenToServer is an event as a server may have it. What it may see (MaySeeServer) is given as it is shown to anybody; the rest not at all, or, to a
// server in the room now, redacted: so its graph stays whole. But two kinds of state events are given to such a server as they are, for it would
// have the whole of them with /send_join or /state, and without it another state than the room's: what is in the current state, and what of
// redaction drops what the authorization rules look at. So it is for rejected events that have their place, which is never shown: what was built on
// them may rest on nothing else. Nil: it is not given.
func (r *Rooms) GivenToServer(server eventgraph.ServerName, e *store.StoredEvent) (*eventgraph.Event, error) {
	switch may, err := r.MaySeeServer(server, e); {
	case err != nil:
		return nil, err
	case may:
		return r.ShownToServer(server, e)
	case e.Verdict == store.Rejected && !placed(e) || !r.InRoom(e.RoomID(), server):
		return nil, nil
	}
	tuple, ok := e.Tuple()
	if !ok {
		return e.Redact(), nil
	}
	if e.RedactionLosesRules() {
		return e.Shown(), nil
	}
	l, err := r.liveRoom(e.RoomID())
	if err != nil {
		return nil, err
	}
	current, there, err := newState(r, l.State).EventID(tuple)
	if err != nil {
		return nil, err
	}
	if there && current == e.ID() {
		return e.Shown(), nil
	}
	return e.Redact(), nil
}

func (r *Rooms) serverSight(room eventgraph.RoomID, root eventgraph.Hash, server eventgraph.ServerName) (auth.Sight, error) {
	c, err := r.census(room, root)
	if err != nil {
		return auth.Sight{}, err
	}
	sight := auth.Sight{Joined: c.joined[server] > 0, Invited: c.invited[server] > 0}
	if c.visibility == "" {
		return sight, nil
	}
	e, err := r.stored(c.visibility)
	if err != nil {
		return auth.Sight{}, err
	}
	sight.Visibility, _ = canonicaljson.GetString(e.Content(), "history_visibility")
	return sight, nil
}

// MaySeeUser applies auth.MaySee to a held event, for a user. Every answer to a client goes through it. Soft-failed events are
// not shown to clients, nor purged ones, nor are redactions that do not apply to an event that is here (room version 3, Handling
// redactions).
func (r *Rooms) MaySeeUser(user eventgraph.UserID, e *store.StoredEvent) (bool, error) {
	if e.Verdict == store.Rejected || e.Verdict == store.SoftFailed || e.Purged {
		return false, nil
	}
	l, err := r.liveRoom(e.RoomID())
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := r.userSight(l.State, user)
	if err != nil {
		return false, err
	}
	if !placed(e) {
		return now.Joined, nil
	}
	if e.Type() == "m.room.redaction" {
		if shown, err := r.applies(e); !shown || err != nil {
			return false, err
		}
	}
	before, err := r.userSight(e.StateBefore, user)
	if err != nil {
		return false, err
	}
	after := before
	if e.StateAfter != e.StateBefore {
		if after, err = r.userSight(e.StateAfter, user); err != nil {
			return false, err
		}
	}
	tuple, isState := e.Tuple()
	own := isState && tuple.Type == "m.room.member" && tuple.Key == string(user)
	if auth.MaySee(before, after, now, own) {
		return true, nil
	}
	if now.Joined, err = r.joinedSince(l.ID, user, e); err != nil {
		return false, err
	}
	return now.Joined && auth.MaySee(before, after, now, own), nil
}

// MaxMemberHops bounds how far back a user's leaving is looked for among their member events: bans, invites, and what ended them.
const MaxMemberHops = 100

// joinedSince says whether a user who has left again was joined at some time after the event: then it is as if they
// were joined now. Later bans, invites and their refusals change nothing in that.
func (r *Rooms) joinedSince(room eventgraph.RoomID, user eventgraph.UserID, e *store.StoredEvent) (bool, error) {
	m, err := r.member(room, user)
	if m == nil || err != nil || !m.WasJoined || m.Event == "" {
		return false, err
	}
	id := m.Event
	for range MaxMemberHops {
		then, err := r.stored(id)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		if err != nil || !placed(then) || then.Order <= e.Order {
			return false, err
		}
		before, err := r.userSight(then.StateBefore, user)
		if err != nil || before.Joined {
			return err == nil, err
		}
		replaced, ok, err := newState(r, then.StateBefore).EventID(eventgraph.StateTuple{Type: "m.room.member", Key: string(user)})
		if err != nil || !ok || replaced == id {
			return false, err
		}
		id = replaced
	}
	return false, nil
}

// seenBy names a state and who looks at it. A state is named by its content, and redaction leaves memberships and visibilities as they are, so
// what is kept under it holds for good.
type seenBy struct {
	root eventgraph.Hash
	user eventgraph.UserID
}

func (r *Rooms) userSight(root eventgraph.Hash, user eventgraph.UserID) (auth.Sight, error) {
	key := seenBy{root, user}
	if sight, ok := r.sights.Get(key); ok {
		return sight, nil
	}
	state := newState(r, root)
	visibility, err := historyVisibility(state)
	if err != nil {
		return auth.Sight{}, err
	}
	member, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(user)})
	if err != nil {
		return auth.Sight{}, err
	}
	sight := auth.Sight{Visibility: visibility}
	if member != nil {
		sight.Joined, sight.Invited = member.Membership() == "join", member.Membership() == "invite"
	}
	r.sights.Add(key, sight)
	return sight, nil
}

func historyVisibility(s *State) (string, error) {
	e, err := s.Event(eventgraph.StateTuple{Type: "m.room.history_visibility"})
	if e == nil || err != nil {
		return "", err
	}
	visibility, _ := canonicaljson.GetString(e.Content(), "history_visibility")
	return visibility, nil
}

// applies says whether a redaction's target is here and the redaction may redact it.
func (r *Rooms) applies(redaction *store.StoredEvent) (bool, error) {
	target, err := r.stored(redaction.Redacts())
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if target.RedactedBy == redaction.ID() {
		return true, nil
	}
	return mayRedact(newState(r, redaction.StateBefore), redaction.Event, target)
}
