package clientapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// typeDirect is the account data that says which rooms are direct messages.
const typeDirect = "m.direct"

// slidingView is a connection's list of the user's rooms as of a position. From one call to the next only what changed is read again.
type slidingView struct {
	pos    store.Position
	conn   *slidingConn // what the client has
	rooms  map[eventgraph.RoomID]*listedRoom
	direct map[eventgraph.RoomID]bool
}

// listedRoom is one of the user's rooms.
type listedRoom struct {
	id     eventgraph.RoomID
	member *store.Member // nil: the room is being joined, and nothing was known before
	stage  sentStage
	active store.Position // of its newest event, or of the change of membership that a user outside sees last
	kicked bool           // the user is out of it, not of their own will
	sender eventgraph.UserID

	known     bool // what follows has been read
	encrypted bool
	roomType  string
}

// matched is why a room is sent, and what of it.
type matched struct {
	room       *listedRoom
	lists      []string
	subscribed bool
	config     roomConfig
}

// look brings the view up to the snapshot, reading the rooms that have changed, or all. It says whether anything has changed that the lists
// depend on.
func (s *slidingRound) look() (bool, error) {
	hiding := func(dataType string) bool {
		return dataType == typeIgnoredList || dataType == rooms.InvitePermissionType
	}
	if s.view == nil || slices.ContainsFunc(s.changes.accountData[""], hiding) {
		return true, s.lookAtAll()
	}
	changed := false
	for _, ids := range []map[eventgraph.RoomID]bool{s.changes.timeline, s.changes.membership} {
		for id := range ids {
			was := s.view.rooms[id] != nil
			m, err := memberOf(s.r, id, s.user)
			if err != nil {
				return false, err
			}
			if err := s.list(id, m); err != nil {
				return false, err
			}
			changed = changed || was || s.view.rooms[id] != nil
		}
	}
	for room, types := range s.changes.accountData {
		changed = changed || room != "" && slices.Contains(types, typeTag)
	}
	if slices.Contains(s.changes.accountData[""], typeDirect) {
		changed = true
		if err := s.lookAtDirect(); err != nil {
			return false, err
		}
	}
	s.view.pos = s.changes.upTo
	return changed, nil
}

func (s *slidingRound) lookAtAll() error {
	s.view = &slidingView{pos: s.changes.upTo, rooms: map[eventgraph.RoomID]*listedRoom{}}
	var members []*store.Member
	err := s.r.RoomsOf(s.user, func(m *store.Member) (bool, error) {
		members = append(members, m)
		return true, nil
	})
	for _, m := range members {
		if err == nil {
			err = s.list(m.Room, m)
		}
	}
	if err != nil {
		return err
	}
	err = s.r.Joins(func(j *store.Join) (bool, error) {
		if s.view.rooms[j.Room] != nil {
			return true, nil
		}
		return true, s.list(j.Room, nil)
	})
	if err != nil {
		return err
	}
	return s.lookAtDirect()
}

// lookAtDirect reads m.direct (CS API, Direct Messaging): a client may have put anything there.
func (s *slidingRound) lookAtDirect() error {
	s.view.direct = map[eventgraph.RoomID]bool{}
	data, err := s.r.AccountData(s.user, "", typeDirect)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var content map[string]json.RawMessage
	if json.Unmarshal(data.Content, &content) != nil {
		return nil
	}
	for _, raw := range content {
		var rooms []eventgraph.RoomID
		if json.Unmarshal(raw, &rooms) == nil {
			for _, room := range rooms {
				s.view.direct[room] = true
			}
		}
	}
	return nil
}

// list puts the room into the view as it stands now, or takes it out. m is nil if the user has no membership there.
func (s *slidingRound) list(id eventgraph.RoomID, m *store.Member) error {
	l, err := s.listed(id, m)
	if err != nil {
		return err
	}
	if l == nil {
		delete(s.view.rooms, id)
	} else {
		s.view.rooms[id] = l
	}
	return nil
}

// listed is the room as it stands in the user's list; nil if it does not (MSC4186, Lists).
func (s *slidingRound) listed(id eventgraph.RoomID, m *store.Member) (*listedRoom, error) {
	l := &listedRoom{id: id, member: m}
	if !isJoined(m) {
		j, err := joining(s.r, id, s.user)
		if err != nil {
			return nil, err
		}
		if j != nil {
			l.stage, l.active = coming, s.changes.upTo
			if was := s.view.rooms[id]; was != nil && was.stage == coming {
				l.active = was.active // progress moves no room
			}
			return l, nil
		}
	}
	if m == nil {
		return nil, nil
	}
	l.active = m.Position
	switch m.Membership {
	case "join":
		if m.Outside {
			return nil, nil // the room is still being brought in
		}
		l.stage = inside
		return l, s.r.RoomChanges(id, latestPosition, 0, func(p store.Position, _ eventgraph.EventID) (bool, error) {
			l.active = max(l.active, p)
			return false, nil
		})
	case "invite", "knock":
		l.stage = stripped
		var err error
		if l.sender, err = s.memberSender(m); err != nil || m.Membership != "invite" {
			return l, err
		}
		if hidden, err := s.hidesInvite(l.sender); err != nil || hidden {
			return nil, err
		}
		return l, nil
	}
	l.stage = stripped
	if m.WasJoined && !m.Outside {
		l.stage = inside
		var err error
		if l.sender, err = s.memberSender(m); err != nil {
			return nil, err
		}
		l.kicked = l.sender != s.user
	}
	if m.Forgotten {
		l.kicked = false
	}
	return l, nil
}

// memberSender is who made the user's membership what it is.
func (s *slidingRound) memberSender(m *store.Member) (eventgraph.UserID, error) {
	if m.Outside {
		var f strippedFields
		if json.Unmarshal(m.Invite, &f) != nil {
			return s.user, nil
		}
		return f.Sender, nil
	}
	e, err := s.r.Event(m.Event)
	if err != nil {
		return "", err
	}
	return e.Sender(), nil
}

// isIn says whether the room is in the lists of this connection: one that the user has left only if the client knows it otherwise.
func (s *slidingRound) isIn(l *listedRoom) bool {
	if l.stage == coming || l.kicked {
		return true
	}
	if l.member.Membership == "leave" || l.member.Membership == "ban" {
		return s.conn.rooms[l.id].Stage != notSent
	}
	return true
}

// match finds the rooms that the request's rules match, and counts those of the lists.
func (s *slidingRound) match() (map[eventgraph.RoomID]*matched, error) {
	var order []*listedRoom
	for _, l := range s.view.rooms {
		if s.isIn(l) {
			order = append(order, l)
		}
	}
	slices.SortFunc(order, func(x, y *listedRoom) int { return cmp.Or(cmp.Compare(y.active, x.active), cmp.Compare(x.id, y.id)) })
	found := map[eventgraph.RoomID]*matched{}
	add := func(l *listedRoom) *matched {
		m := found[l.id]
		if m == nil {
			m = &matched{room: l}
			found[l.id] = m
		}
		return m
	}
	reads := &filterReads{children: map[eventgraph.RoomID]map[eventgraph.RoomID]bool{}, tags: map[eventgraph.RoomID]tags{}}
	for _, name := range s.req.listNames() {
		list := s.req.Lists[name]
		passes, err := s.passing(&list.Filters, reads)
		if err != nil {
			return nil, err
		}
		count := 0
		for _, l := range order {
			if err := s.ended(); err != nil {
				return nil, err
			}
			ok, err := passes(l)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			if list.has(count) {
				m := add(l)
				m.lists = append(m.lists, name)
			}
			count++
		}
		s.out.Lists[name] = slidingCount{count}
	}
	for room, subscription := range s.req.Subscriptions {
		if l := s.view.rooms[room]; l != nil && s.isIn(l) {
			m := add(l)
			m.subscribed, m.config = true, subscription.config
		}
	}
	return found, s.configure(found)
}

// configure puts together what is sent of each room. Most rooms are in the same lists as others, whose union is made once.
func (s *slidingRound) configure(found map[eventgraph.RoomID]*matched) error {
	unions := map[string]*roomConfig{}
	for _, m := range found {
		if len(m.lists) == 0 {
			continue
		}
		key := fmt.Sprintf("%q", m.lists)
		union := unions[key]
		if union == nil {
			union = &roomConfig{}
			for _, name := range m.lists {
				if err := s.ended(); err != nil {
					return err
				}
				union.add(&s.req.Lists[name].config)
			}
			unions[key] = union
		}
		if m.subscribed {
			m.config.add(union)
		} else {
			m.config = *union
		}
	}
	return nil
}

// filterReads is what the filters of several lists have read of one snapshot.
type filterReads struct {
	children map[eventgraph.RoomID]map[eventgraph.RoomID]bool // of a space
	tags     map[eventgraph.RoomID]tags
}

// has says whether the index is in the list's windows.
func (l *slidingList) has(index int) bool {
	return len(l.Ranges) == 0 || slices.ContainsFunc(l.Ranges, func(r [2]int) bool { return r[0] <= index && index <= r[1] })
}

// passing makes the test that rooms of a list pass (MSC4186, SlidingRoomFilter).
func (s *slidingRound) passing(f *slidingFilters, reads *filterReads) (func(*listedRoom) (bool, error), error) {
	for _, space := range f.Spaces {
		if err := s.children(space, reads); err != nil {
			return nil, err
		}
	}
	inSpace := func(id eventgraph.RoomID) bool {
		return slices.ContainsFunc(f.Spaces, func(space eventgraph.RoomID) bool { return reads.children[space][id] })
	}
	return func(l *listedRoom) (bool, error) {
		invite := l.member != nil && l.stage == stripped && l.member.Membership == "invite"
		switch {
		case f.IsDM != nil && *f.IsDM != s.view.direct[l.id],
			f.IsInvite != nil && *f.IsInvite != invite,
			f.Spaces != nil && !inSpace(l.id):
			return false, nil
		}
		if f.IsEncrypted != nil || f.RoomTypes != nil || f.NotRoomTypes != nil {
			if err := s.facts(l); err != nil {
				return false, err
			}
		}
		ofType := func(t *string) bool { return t == nil && l.roomType == "" || t != nil && *t == l.roomType }
		switch {
		case f.IsEncrypted != nil && *f.IsEncrypted != l.encrypted,
			f.RoomTypes != nil && !slices.ContainsFunc(f.RoomTypes, ofType),
			slices.ContainsFunc(f.NotRoomTypes, ofType):
			return false, nil
		case f.Tags == nil && f.NotTags == nil:
			return true, nil
		}
		held, known := reads.tags[l.id]
		if !known {
			var err error
			if held, err = readTags(s.r, s.user, l.id); err != nil {
				return false, err
			}
			reads.tags[l.id] = held
		}
		tagged := func(tag string) bool { return held.Tags[tag] != nil }
		return (f.Tags == nil || slices.ContainsFunc(f.Tags, tagged)) && !slices.ContainsFunc(f.NotTags, tagged), nil
	}, nil
}

// children reads which rooms a space names; none if the user is not joined to it.
func (s *slidingRound) children(space eventgraph.RoomID, reads *filterReads) error {
	if reads.children[space] != nil {
		return nil
	}
	children := map[eventgraph.RoomID]bool{}
	reads.children[space] = children
	l := s.view.rooms[space]
	if l == nil || !isJoined(l.member) {
		return nil
	}
	room, err := s.r.Room(space)
	if err != nil {
		return err
	}
	return eventgraph.OpenTrie(s.r, room.State).Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		if t.Type != "m.space.child" || s.view.rooms[eventgraph.RoomID(t.Key)] == nil {
			return nil // what the user is not in is in no list
		}
		if err := s.ended(); err != nil {
			return err
		}
		e, err := s.r.Event(id)
		if err != nil {
			return err
		}
		var content struct {
			Via []string `json:"via"`
		}
		// Without via it is no child any more (CS API, m.space.child).
		children[eventgraph.RoomID(t.Key)] = json.Unmarshal(e.Content(), &content) == nil && len(content.Via) > 0
		return nil
	})
}

// facts reads what filters ask of the room: of its state as the user may know it.
func (s *slidingRound) facts(l *listedRoom) error {
	if l.known {
		return nil
	}
	l.known = true
	if l.stage != inside {
		events, err := s.strippedState(l)
		for _, raw := range events {
			var f strippedFields
			if json.Unmarshal(raw, &f) == nil {
				l.learn(f.Type, f.Content)
			}
		}
		return err
	}
	span, err := s.a.span(s.r, l.member, 0, s.changes.upTo, s.v)
	if err != nil {
		return err
	}
	for _, eventType := range []string{"m.room.create", "m.room.encryption"} {
		e, err := stateEvent(s.r, span.ending, eventType, "")
		if err != nil {
			return err
		}
		if e != nil {
			l.learn(eventType, e.Content())
		}
	}
	return nil
}

func (l *listedRoom) learn(eventType string, content json.RawMessage) {
	switch eventType {
	case "m.room.create":
		l.roomType, _ = canonicaljson.GetString(content, "type")
	case "m.room.encryption":
		l.encrypted = true
	}
}
