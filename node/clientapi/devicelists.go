package clientapi

import (
	"errors"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// company is whom a user shares rooms with, as of one snapshot, and how that changed in a span: the device lists that their
// clients must follow (CS API, Tracking the device list for a user). Any shared room counts, encrypted or not: clients of a
// room that becomes encrypted then follow everybody in it already.
type company struct {
	r      *store.Reader
	user   eventgraph.UserID
	asked  int                        // rooms looked up before mine was read
	mine   map[eventgraph.RoomID]bool // nil: not read yet
	shared map[eventgraph.UserID]bool // answers given
	met    map[eventgraph.UserID]bool // new in a room of the user's
	parted map[eventgraph.UserID]bool // gone from a room of the user's
}

func newCompany(r *store.Reader, user eventgraph.UserID) *company {
	return &company{
		r: r, user: user,
		shared: map[eventgraph.UserID]bool{}, met: map[eventgraph.UserID]bool{}, parted: map[eventgraph.UserID]bool{},
	}
}

// shares says whether both are joined to a room.
func (c *company) shares(other eventgraph.UserID) (bool, error) {
	if shares, ok := c.shared[other]; ok {
		return shares, nil
	}
	shares := false
	err := c.r.RoomsOf(other, func(m *store.Member) (_ bool, err error) {
		if isJoined(m) {
			shares, err = c.isIn(m.Room)
		}
		return !shares, err
	})
	if err == nil {
		c.shared[other] = shares
	}
	return shares, err
}

// lookUps is how many rooms are looked up one by one before all rooms of the user are read: what wakes a long poll mostly concerns one other
// user, who shares few rooms or the first.
const lookUps = 20

// isIn says whether the user is joined to the room.
func (c *company) isIn(room eventgraph.RoomID) (bool, error) {
	if c.mine == nil && c.asked < lookUps {
		c.asked++
		m, err := memberOf(c.r, room, c.user)
		return err == nil && isJoined(m), err
	}
	if c.mine == nil {
		mine := map[eventgraph.RoomID]bool{}
		err := c.r.RoomsOf(c.user, func(m *store.Member) (bool, error) {
			mine[m.Room] = isJoined(m)
			return true, nil
		})
		if err != nil {
			return false, err
		}
		c.mine = mine
	}
	return c.mine[room], nil
}

// joined takes in a room that the user is joined to at the end of the span, with whose member events changed in it.
func (c *company) joined(span *roomSpan, changed []eventgraph.Difference) error {
	if span.fresh {
		return c.addMembers(span.room, c.met)
	}
	for _, d := range changed {
		before, err := c.wasJoined(d.A)
		if err != nil {
			return err
		}
		after, err := c.wasJoined(d.B)
		if err != nil {
			return err
		}
		user := eventgraph.UserID(d.Tuple.Key)
		switch {
		case before && after:
			if err := c.again(span, d); err != nil {
				return err
			}
		case after:
			c.met[user] = true
		case before:
			c.parted[user] = true
		}
	}
	return nil
}

// again takes in who was joined at both ends of the span, by different events. If they were gone in between, their server may have had no
// reason to tell us what changed in their devices meanwhile; and if it was the user who was gone, the same goes for all others.
func (c *company) again(span *roomSpan, d eventgraph.Difference) error {
	stayed, err := c.stayed(d.A, d.B)
	switch user := eventgraph.UserID(d.Tuple.Key); {
	case err != nil || stayed:
		return err
	case user == c.user:
		return c.addMembers(span.room, c.met)
	default:
		c.met[user] = true
		return nil
	}
}

// stayed says whether the one member event followed on the other by changes of the profile alone. Where that cannot be seen, they count as gone:
// to look at their devices once in vain is the lesser harm.
func (c *company) stayed(from, to eventgraph.EventID) (bool, error) {
	e, err := c.r.Event(to)
	for range rooms.MaxMemberHops {
		if err != nil || e == nil || e.Membership() != "join" || e.ID() == from {
			break
		}
		e, err = replacedState(c.r, e)
	}
	return err == nil && e != nil && e.ID() == from, err
}

// left takes in a room that the user has left in the span: whoever was in it when the span began is no company there any more, also
// who has left since; but who came since never was.
func (c *company) left(span *roomSpan) error {
	room, err := c.r.Room(span.room)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	were := map[eventgraph.UserID]bool{}
	if err := c.addMembers(span.room, were); err != nil {
		return err
	}
	err = eventgraph.Diff(c.r, span.known, room.State, func(d eventgraph.Difference) error {
		if d.Tuple.Type != "m.room.member" {
			return nil
		}
		was, err := c.wasJoined(d.A)
		if was {
			were[eventgraph.UserID(d.Tuple.Key)] = true
		} else {
			delete(were, eventgraph.UserID(d.Tuple.Key))
		}
		return err
	})
	maps.Copy(c.parted, were)
	return err
}

func (c *company) addMembers(room eventgraph.RoomID, into map[eventgraph.UserID]bool) error {
	return c.r.MembersOf(room, func(m *store.Member) (bool, error) {
		if m.Membership == "join" && m.User != c.user {
			into[m.User] = true
		}
		return true, nil
	})
}

func (c *company) wasJoined(id eventgraph.EventID) (bool, error) {
	if id == "" {
		return false, nil
	}
	e, err := c.r.Event(id)
	return err == nil && e.Membership() == "join", err
}

// deviceLists sums up, given whose keys changed.
func (c *company) deviceLists(keysChanged []eventgraph.UserID) (*deviceLists, error) {
	lists := &deviceLists{Changed: []eventgraph.UserID{}, Left: []eventgraph.UserID{}}
	for _, user := range keysChanged {
		c.met[user] = true
	}
	for user := range c.met {
		shares, err := c.shares(user)
		if err != nil {
			return nil, err
		}
		if shares || user == c.user {
			lists.Changed = append(lists.Changed, user)
		}
	}
	for user := range c.parted {
		shares, err := c.shares(user)
		if err != nil {
			return nil, err
		}
		if !shares && user != c.user {
			lists.Left = append(lists.Left, user)
		}
	}
	slices.Sort(lists.Changed)
	slices.Sort(lists.Left)
	return lists, nil
}

// keyChanges is GET /keys/changes: the device_lists that a sync between two tokens would have.
func (a *API) keyChanges(q *request) (any, error) {
	var from, to syncToken
	for name, into := range map[string]*syncToken{"from": &from, "to": &to} {
		param := q.URL.Query().Get(name)
		if param == "" {
			return nil, missingParam(name + " is missing.")
		}
		t, err := parseSyncToken(param)
		if err != nil {
			return nil, invalidParam(name + " is not a token of this server.")
		}
		if t.incarnation != a.Store.Incarnation() {
			t.pos = 0 // of an older life: everything may have changed since
		}
		*into = t
	}
	var lists *deviceLists
	err := a.Store.View(func(r *store.Reader) error {
		// "to" is a hint only (keys.yaml): all that is known now is told.
		changed := newChanges(q.user, q.device)
		if err := changed.gather(r, from.pos, r.Position()); err != nil {
			return err
		}
		company := newCompany(r, q.user)
		v := a.newViewer(q.user, q.device)
		for room := range changed.timeline {
			if err := company.takeIn(a, room, from.pos, r.Position(), v); err != nil {
				return err
			}
		}
		users := make([]eventgraph.UserID, 0, len(changed.deviceLists))
		for user := range changed.deviceLists {
			users = append(users, user)
		}
		var err error
		lists, err = company.deviceLists(users)
		return err
	})
	return lists, err
}

// takeIn looks at one room's changes of membership.
func (c *company) takeIn(a *API, room eventgraph.RoomID, since, upTo store.Position, v *viewer) error {
	m, err := c.r.Member(room, c.user)
	if isNotFound(err) || err == nil && m.Outside && m.Membership == "join" { // not there yet
		return nil
	}
	if err != nil {
		return err
	}
	span, err := a.span(c.r, m, since, upTo, v)
	if err != nil {
		return err
	}
	switch {
	case m.Membership == "join":
		changed, err := memberChanges(c.r, span)
		if err != nil {
			return err
		}
		return c.joined(span, changed)
	case !span.fresh:
		return c.left(span)
	}
	return nil
}

func isNotFound(err error) bool { return errors.Is(err, store.ErrNotFound) }
