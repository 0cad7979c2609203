package clientapi

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// syncRound answers a sync request from one snapshot.
type syncRound struct {
	*syncRequest
	a       *API
	changes *changes
	counter ephemeral.Counter // of typing and presence, taken before they are looked at
	answer  *syncAnswer

	r       *store.Reader
	v       *viewer
	ignored map[eventgraph.UserID]bool // nil: not read yet
	typing  map[eventgraph.RoomID]bool // rooms where it changed
	foreign []eventgraph.RoomID        // changed, and nothing of the user's
	company *company
	counts  *unread
	members []*store.StoredEvent // sent with this answer
}

// begin gathers what has changed up to the snapshot. It returns whose presence did.
func (s *syncRound) begin(r *store.Reader) (present []eventgraph.UserID, err error) {
	s.r, s.v = r, s.a.newViewer(s.user, s.device)
	s.v.withoutRoom, s.v.federation = true, s.filter.EventFormat == "federation"
	if s.since == nil {
		s.changes.upTo = r.Position()
	} else if err := s.changes.gather(r, s.changes.upTo, r.Position()); err != nil {
		return nil, err
	}
	s.answer = &syncAnswer{}
	s.company = newCompany(r, s.user)
	s.typing, present = s.ephemeralChanges()
	return present, nil
}

// ignores says whether the user ignores another.
func (s *syncRound) ignores(other eventgraph.UserID) (bool, error) {
	ignored, err := s.ignoring()
	return ignored[other], err
}

// hidesInvite says whether an invite by that user is not shown: the user ignores them, or blocks all invites (CS API, Invite permission: the
// events "already in the database, or received over federation").
func (s *syncRound) hidesInvite(sender eventgraph.UserID) (bool, error) {
	if ignored, err := s.ignores(sender); ignored || err != nil {
		return ignored, err
	}
	return rooms.BlocksInvites(s.r, s.user)
}

// ignoring is whom the user ignores. It is read when something is there that it could hide.
func (s *syncRound) ignoring() (map[eventgraph.UserID]bool, error) {
	if s.ignored != nil {
		return s.ignored, nil
	}
	ignored, err := ignoredUsers(s.r, s.user)
	if err != nil {
		return nil, err
	}
	if ignored == nil {
		ignored = map[eventgraph.UserID]bool{}
	}
	s.ignored, s.v.ignored = ignored, ignored
	return ignored, nil
}

// read builds the answer. It is given to store.View.
func (s *syncRound) read(r *store.Reader) error {
	present, err := s.begin(r)
	if err != nil {
		return err
	}
	upTo := s.changes.upTo
	next := syncToken{
		incarnation: s.a.Store.Incarnation(), pos: upTo, toDevice: upTo, boot: s.a.boot, ephemeral: s.counter,
		device: deviceTag(s.user, s.device),
	}
	for _, part := range []func() error{
		s.rooms,
		s.accountData,
		func() error { return s.presence(present) },
		func() error { return s.toDevice(&next) },
		s.deviceLists,
		s.keyCounts,
	} {
		if err := part(); err != nil {
			return err
		}
	}
	s.answer.NextBatch = next.String()
	return nil
}

// empty says whether the client would learn nothing.
func (s *syncRound) empty() bool {
	a := s.answer
	return a.AccountData == nil && a.Presence == nil && a.ToDevice == nil && a.DeviceLists == nil && a.Rooms == nil &&
		!s.changes.keyCounts
}

// settle is called when the round was empty and the call goes on waiting. What did not concern the user is not looked at again: should they meet
// in a room later, that is a change of its own, and tells all that there is to tell.
func (s *syncRound) settle() {
	for _, room := range s.foreign {
		delete(s.changes.timeline, room)
		delete(s.changes.receipts, room)
	}
	clear(s.changes.deviceLists)
	s.since.ephemeral, s.restarted = s.counter, false
}

// finish is called when the answer goes out.
func (s *syncRound) finish() *syncAnswer {
	if len(s.members) > 0 {
		s.a.sent.add(s.deviceKey(), s.changes.upTo, s.members)
	}
	return s.answer
}

func (s *syncRound) ephemeralChanges() (map[eventgraph.RoomID]bool, []eventgraph.UserID) {
	after := ephemeral.Counter(0)
	if s.since != nil {
		after = s.since.ephemeral
	}
	rooms, users := s.a.Ephemeral.Changed(after)
	typing := make(map[eventgraph.RoomID]bool, len(rooms))
	for _, room := range rooms {
		typing[room] = true
	}
	return typing, users
}

// rooms fills in all rooms that have something to tell.
func (s *syncRound) rooms() error {
	out := &syncRooms{
		Join: map[eventgraph.RoomID]*joinedRoom{}, Invite: map[eventgraph.RoomID]*invitedRoom{},
		Knock: map[eventgraph.RoomID]*knockedRoom{}, Leave: map[eventgraph.RoomID]*leftRoom{},
	}
	ids, err := s.newsIn()
	if err != nil {
		return err
	}
	all := s.since == nil || s.fullState
	if !all && len(ids) == 0 {
		return nil
	}
	if all {
		err = s.allRooms(out)
	} else {
		err = s.someRooms(out, ids)
	}
	if len(out.Join)+len(out.Invite)+len(out.Knock)+len(out.Leave) > 0 {
		s.answer.Rooms = out
	}
	return err
}

// allRooms fills in all rooms of the user's.
func (s *syncRound) allRooms(out *syncRooms) error {
	coming, err := s.joinings(out)
	if err != nil {
		return err
	}
	var members []*store.Member
	err = s.r.RoomsOf(s.user, func(m *store.Member) (bool, error) {
		if !coming[m.Room] {
			members = append(members, m)
		}
		return true, nil
	})
	for _, m := range members {
		if err == nil {
			err = s.room(out, m)
		}
	}
	return err
}

// someRooms fills in those of the rooms that have something to tell to the user.
func (s *syncRound) someRooms(out *syncRooms, ids []eventgraph.RoomID) error {
	var coming map[eventgraph.RoomID]bool // nil: not asked for yet
	for _, id := range ids {
		m, err := memberOf(s.r, id, s.user)
		if err != nil {
			return err
		}
		news := s.changes.membership[id]
		if m == nil && !news {
			s.foreign = append(s.foreign, id)
			continue
		}
		if !isJoined(m) && coming == nil {
			if coming, err = s.joinings(out); err != nil {
				return err
			}
		}
		switch {
		case coming[id]:
		case m != nil:
			err = s.room(out, m)
		case s.filter.room(id): // a join that came to nothing may have been shown
			out.Leave[id] = s.gone()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// newsIn lists the rooms of which an incremental sync may have to tell something, whether they are the user's or not, sorted.
func (s *syncRound) newsIn() ([]eventgraph.RoomID, error) {
	if s.since != nil && s.restarted { // clients show somebody as typing until they are told otherwise
		in, err := joinedTo(s.r, s.user)
		if err != nil {
			return nil, err
		}
		for _, room := range in {
			s.typing[room] = true
		}
	}
	ids := s.changes.rooms()
	unhidden, err := s.unhidden()
	if err != nil {
		return nil, err
	}
	ids = append(ids, unhidden...)
	for room := range s.typing {
		ids = append(ids, room)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// unhidden lists the rooms that the user is invited to if what hides invites has changed: one that was held back is to be told now.
func (s *syncRound) unhidden() (ids []eventgraph.RoomID, err error) {
	if s.since == nil || !s.hidingChanged() {
		return nil, nil
	}
	return ids, s.r.RoomsOf(s.user, func(m *store.Member) (bool, error) {
		if m.Membership == "invite" {
			ids = append(ids, m.Room)
		}
		return true, nil
	})
}

// hidingChanged says whether the user has changed what hides invites: whom they ignore, and whether they block them all (hidesInvite).
func (s *syncRound) hidingChanged() bool {
	return slices.ContainsFunc(s.changes.accountData[""], func(dataType string) bool {
		return dataType == typeIgnoredList || dataType == rooms.InvitePermissionType
	})
}

// sincePosition is 0 for a full sync.
func (s *syncRound) sincePosition() store.Position {
	if s.since == nil {
		return 0
	}
	return s.since.pos
}

// room fills in one room of the user's.
func (s *syncRound) room(out *syncRooms, m *store.Member) error {
	moved := m.Position > s.sincePosition()
	switch m.Membership {
	case "join":
		if m.Outside {
			return nil // the room is still being brought in
		}
		room, err := s.joined(m)
		if room != nil {
			out.Join[m.Room] = room
		}
		return err
	case "invite", "knock":
		if !moved && (m.Membership == "knock" || !s.hidingChanged()) {
			return nil
		}
		was, err := s.parted(m) // removed and invited again
		if err != nil {
			return err
		}
		if !s.filter.room(m.Room) {
			return nil
		}
		stripped, err := s.a.inviteState(s.r, m)
		if err != nil {
			return err
		}
		list := emptyList()
		list.add(stripped.events...)
		if m.Membership == "knock" {
			out.Knock[m.Room] = &knockedRoom{list}
		} else if hidden, err := s.hidesInvite(stripped.sender); err != nil {
			return err
		} else if !hidden {
			out.Invite[m.Room] = &invitedRoom{list}
		} else if was { // the client must not go on showing them as joined
			out.Leave[m.Room] = s.gone()
		}
	case "leave", "ban":
		if s.since == nil && (!s.filter.Room.IncludeLeave || m.Forgotten) {
			return nil
		}
		room, err := s.left(m, moved)
		if room != nil {
			out.Leave[m.Room] = room
		}
		return err
	}
	return nil
}

// joined fills in a room that the user is joined to; nil if there is nothing to tell.
func (s *syncRound) joined(m *store.Member) (*joinedRoom, error) {
	room := &joinedRoom{Timeline: timelineBatch{Events: []json.RawMessage{}}, Ephemeral: emptyList(), AccountData: emptyList()}
	s.stateLists(&room.roomStateLists, nil)
	fresh, told := s.since == nil, false
	if fresh || s.fullState || s.changes.timeline[m.Room] {
		span, err := s.a.span(s.r, m, s.sincePosition(), s.changes.upTo, s.v)
		if err != nil {
			return nil, err
		}
		changed, err := memberChanges(s.r, span)
		if err != nil {
			return nil, err
		}
		if s.since != nil {
			if err := s.company.joined(span, changed); err != nil {
				return nil, err
			}
		}
		if !s.filter.room(m.Room) {
			return nil, nil
		}
		fresh = span.fresh
		anew, err := renamed(s.r, span)
		if err != nil {
			return nil, err
		}
		if anew || fresh || s.fullState || len(changed) > 0 {
			if room.Summary, err = summaryUnlessNamed(s.r, m.Room, span.ending, s.user); err != nil {
				return nil, err
			}
		}
		if told, err = s.events(span, room.Summary, &room.roomStateLists, &room.Timeline); err != nil {
			return nil, err
		}
		told = told || fresh || s.fullState || room.Summary != nil
	} else if !s.filter.room(m.Room) {
		return nil, nil
	}
	if err := s.ephemeral(m.Room, fresh, &room.Ephemeral); err != nil {
		return nil, err
	}
	if err := s.roomAccountData(m.Room, fresh, &room.AccountData); err != nil {
		return nil, err
	}
	read := s.changes.receipts[m.Room].of(s.user)
	if !told && !read && len(room.Ephemeral.Events) == 0 && len(room.AccountData.Events) == 0 {
		return nil, nil
	}
	return room, s.unread(m.Room, room)
}

// events fills in timeline and state; it says whether there are any.
func (s *syncRound) events(span *roomSpan, sum *roomSummary, lists *roomStateLists, batch *timelineBatch) (bool, error) {
	f := &s.filter.Room
	if _, err := s.ignoring(); err != nil {
		return false, err
	}
	show := &timelineView{s.v, &f.Timeline, f.Timeline.limit(usualTimeline, mostTimeline)}
	if !f.Timeline.room(span.room) {
		show.filter = &eventFilter{Types: []string{}}
	}
	tl, err := s.a.timeline(s.r, span, show)
	if err != nil {
		return false, err
	}
	var state []*store.StoredEvent
	if f.State.room(span.room) && (!span.left || span.gone != nil && span.gone.Position > span.since) {
		state, err = s.a.state(s.r, span, tl, s.stateWanted(span, tl, sum))
		if err != nil {
			return false, err
		}
	}
	if span.left {
		if state, err = s.withEnd(span, tl, state); err != nil {
			return false, err
		}
	}
	if batch.Events, err = s.timelineEvents(tl); err != nil {
		return false, err
	}
	batch.Limited, batch.PrevBatch = tl.limited, s.a.roomToken(tl.prev)
	raw, err := s.stateEvents(state)
	s.stateLists(lists, raw)
	return len(tl.events) > 0 || len(state) > 0 || tl.limited, err
}

// timelineEvents writes out a timeline, and remembers it as sent.
func (s *syncRound) timelineEvents(tl *roomTimeline) ([]json.RawMessage, error) {
	s.members = append(s.members, tl.events...)
	s.v.bundle = tl.limited // CS API, Aggregations of child events
	defer func() { s.v.bundle = false }()
	return s.a.clientEvents(s.r, tl.events, s.v)
}

// stateEvents writes out state beside a timeline, and remembers it as sent.
func (s *syncRound) stateEvents(state []*store.StoredEvent) ([]json.RawMessage, error) {
	s.members = append(s.members, state...)
	s.v.bare = true
	defer func() { s.v.bare = false }()
	return s.a.clientEvents(s.r, state, s.v)
}

// stateWanted says which state the client needs beside this timeline.
func (s *syncRound) stateWanted(span *roomSpan, tl *roomTimeline, sum *roomSummary) *stateWanted {
	f := &s.filter.Room.State
	w := &stateWanted{full: span.fresh || s.fullState, after: s.stateAfter || s.unstableAfter, lazy: f.LazyLoadMembers, filter: f}
	if !w.lazy {
		return w
	}
	w.members = map[eventgraph.UserID]bool{}
	for _, e := range tl.events {
		w.members[e.Sender()] = true
	}
	if w.full {
		w.members[s.user] = true
	}
	if sum != nil {
		for _, hero := range sum.Heroes {
			w.members[hero] = true
		}
	}
	w.sent = func(user eventgraph.UserID, id eventgraph.EventID) bool {
		return !w.full && !f.IncludeRedundantMembers &&
			s.a.sent.has(s.deviceKey(), s.sincePosition(), sentMember{span.room, user}, id)
	}
	return w
}

// stateLists puts the state under the names that the client asked for.
func (s *syncRound) stateLists(lists *roomStateLists, state []json.RawMessage) {
	list := emptyList()
	list.add(state...)
	*lists = roomStateLists{}
	if s.stateAfter {
		lists.StateAfter = &list
	}
	if s.unstableAfter {
		lists.UnstableAfter = &list
	}
	if !s.stateAfter && !s.unstableAfter {
		lists.State = &list
	}
}

func (s *syncRound) unread(id eventgraph.RoomID, room *joinedRoom) (err error) {
	if s.counts == nil {
		if s.counts, err = s.a.newUnread(s.r, s.user); err != nil {
			return err
		}
		s.counts.ended = s.ended
	}
	room.Unread, room.UnreadThread, err = s.counts.room(id, s.filter.Room.Timeline.UnreadThreadNotifications)
	return err
}

// accountData fills in the global account data of /sync.
func (s *syncRound) accountData() error { return s.globalAccountData(s.since == nil) }

// globalAccountData fills in the global account data: all, or what changed.
func (s *syncRound) globalAccountData(all bool) error {
	list := emptyList()
	f := &s.filter.AccountData
	add := func(d *store.AccountData) (bool, error) {
		if d.Type != typePushRules && f.kind(d.Type, "") {
			list.add(typeAndContent(d.Type, d.Content))
		}
		return true, nil
	}
	pushRules := all
	if all {
		if err := s.r.AllAccountData(s.user, "", add); err != nil {
			return err
		}
	} else {
		for _, dataType := range s.changes.accountData[""] {
			pushRules = pushRules || dataType == typePushRules
			if err := s.oneAccountData("", dataType, add); err != nil {
				return err
			}
		}
	}
	if pushRules && f.kind(typePushRules, "") {
		rules, err := readPushRules(s.r, s.user)
		if err != nil {
			return err
		}
		content, err := json.Marshal(pushRulesContent{rules})
		if err != nil {
			return err
		}
		list.add(typeAndContent(typePushRules, content))
	}
	s.answer.AccountData = list.some()
	return nil
}

// roomAccountData adds what the user keeps for one room: all, or what changed.
func (s *syncRound) roomAccountData(room eventgraph.RoomID, all bool, list *eventList) error {
	f := &s.filter.Room.AccountData
	if !f.room(room) {
		return nil
	}
	add := func(d *store.AccountData) (bool, error) {
		if f.kind(d.Type, "") {
			list.add(typeAndContent(d.Type, d.Content))
		}
		return true, nil
	}
	if all {
		return s.r.AllAccountData(s.user, room, add)
	}
	for _, dataType := range s.changes.accountData[room] {
		if err := s.oneAccountData(room, dataType, add); err != nil {
			return err
		}
	}
	return nil
}

func (s *syncRound) oneAccountData(room eventgraph.RoomID, dataType string, add func(*store.AccountData) (bool, error)) error {
	d, err := s.r.AccountData(s.user, room, dataType)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		_, err = add(d)
	}
	return err
}

// typingIn tells who types in the room, if anybody does or, unless it is told anew, that changed.
func (s *syncRound) typingIn(room eventgraph.RoomID, all bool) ([]json.RawMessage, error) {
	if !all && !s.typing[room] {
		return nil, nil
	}
	users, _ := s.a.Ephemeral.Typing(room)
	if len(users) > 0 {
		ignored, err := s.ignoring()
		if err != nil {
			return nil, err
		}
		users = slices.DeleteFunc(slices.Clone(users), func(u eventgraph.UserID) bool { return ignored[u] })
	}
	if len(users) == 0 && all {
		return nil, nil
	}
	return []json.RawMessage{typingEvent(users)}, nil
}

// ephemeral adds who types, and receipts: all, or what changed.
func (s *syncRound) ephemeral(room eventgraph.RoomID, all bool, list *eventList) error {
	f := &s.filter.Room.Ephemeral
	if !f.room(room) {
		return nil
	}
	if f.kind("m.typing", "") {
		typing, err := s.typingIn(room, all)
		if err != nil {
			return err
		}
		list.add(typing...)
	}
	if !f.kind("m.receipt", "") {
		return nil
	}
	receipts, err := s.receipts(room, all, func(*store.Receipt) bool { return true })
	if err != nil || len(receipts) == 0 {
		return err
	}
	content, err := json.Marshal(receipts)
	list.add(typeAndContent("m.receipt", content))
	return err
}

// receipts are those of the room that the user may see: all that pass, or what changed.
func (s *syncRound) receipts(room eventgraph.RoomID, all bool, passes func(*store.Receipt) bool) (receiptContent, error) {
	receipts := receiptContent{}
	if all {
		return receipts, s.r.Receipts(room, "", "", func(p *store.Receipt) (bool, error) {
			if (receiptRef{p.User, p.Type}).visibleTo(s.user) && passes(p) {
				receipts.add(p)
			}
			return true, nil
		})
	}
	for ref, at := range s.changes.receipts[room] {
		err := s.r.Receipts(room, ref.user, ref.receiptType, func(p *store.Receipt) (bool, error) {
			if at == nil || at[p.Event] {
				receipts.add(p)
			}
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return receipts, nil
}

// receiptContent is the content of m.receipt: event, type, user.
type receiptContent map[eventgraph.EventID]map[string]map[eventgraph.UserID]receiptData

type receiptData struct {
	TS     int64  `json:"ts"`
	Thread string `json:"thread_id,omitempty"`
}

func (c receiptContent) add(p *store.Receipt) {
	if c[p.Event] == nil {
		c[p.Event] = map[string]map[eventgraph.UserID]receiptData{}
	}
	if c[p.Event][p.Type] == nil {
		c[p.Event][p.Type] = map[eventgraph.UserID]receiptData{}
	}
	if held, ok := c[p.Event][p.Type][p.User]; ok && held.Thread == "" {
		return // there is room for one here, and one that is for no thread says more than one of a thread
	}
	c[p.Event][p.Type][p.User] = receiptData{p.TS, p.Thread}
}

func typingEvent(users []eventgraph.UserID) json.RawMessage {
	b := []byte(`{"content":{"user_ids":[`)
	for i, user := range users {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, string(user))
	}
	return append(b, `]},"type":"m.typing"}`...)
}

// typeAndContent is an event that has nothing else.
func typeAndContent(eventType string, content json.RawMessage) json.RawMessage {
	b := append([]byte(`{"content":`), content...)
	b = append(b, `,"type":`...)
	return append(appendString(b, eventType), '}')
}

// presence fills in the presence of those who share a room with the user: of users whose presence changed, and of those newly met.
func (s *syncRound) presence(users []eventgraph.UserID) error {
	list := emptyList()
	users = slices.AppendSeq(slices.Clone(users), maps.Keys(s.company.met))
	slices.Sort(users)
	users = slices.Compact(users)
	for _, user := range users {
		if !s.filter.Presence.kind("m.presence", user) {
			continue
		}
		if user != s.user {
			if shares, err := s.company.shares(user); err != nil {
				return err
			} else if !shares {
				continue
			}
		}
		p, ok := s.a.Ephemeral.Presence(user)
		if !ok {
			continue
		}
		event, err := json.Marshal(map[string]any{"type": "m.presence", "sender": user, "content": s.a.presenceContent(p)})
		if err != nil {
			return err
		}
		list.add(event)
	}
	s.answer.Presence = list.some()
	return nil
}

// toDevice fills in what waits for the device; if that is too much for one answer, the token says how far it went.
func (s *syncRound) toDevice(next *syncToken) error {
	after := store.Position(0)
	if s.since != nil {
		after = s.since.toDevice
		if after >= s.since.pos && !s.changes.toDevice {
			next.toDevice = s.changes.upTo // nothing was left over, and nothing has come
			return nil
		}
	}
	list, reached, err := s.waiting(after, maxToDevice)
	next.toDevice, s.answer.ToDevice = reached, list.some()
	return err
}

// waiting lists the messages to the device after the position, at most limit of them, and how far that is.
func (s *syncRound) waiting(after store.Position, limit int) (list eventList, reached store.Position, err error) {
	list, reached = emptyList(), s.changes.upTo
	last := after
	err = s.r.ToDevice(s.user, s.device, after, reached, func(m *store.ToDevice) (bool, error) {
		if len(list.Events) == limit {
			reached = last
			return false, nil
		}
		last = m.Position
		m.Origin = ""
		event, err := json.Marshal(m)
		list.add(event)
		return true, err
	})
	return list, reached, err
}

// deviceLists fills in whose keys must be looked at again, in an incremental sync.
func (s *syncRound) deviceLists() error {
	if s.since == nil {
		return nil
	}
	lists, err := s.company.deviceLists(slices.Sorted(maps.Keys(s.changes.deviceLists)))
	if err == nil && len(lists.Changed)+len(lists.Left) > 0 {
		s.answer.DeviceLists = lists
	}
	return err
}

// keyCounts fills in how many of the device's keys are left. A call reads them once, and again where they have changed.
func (s *syncRound) keyCounts() error {
	counts := s.changes.keysLeft
	if counts == nil || s.changes.keyCounts {
		var err error
		if counts, err = s.r.KeyCounts(s.user, s.device); err != nil {
			return err
		}
		s.changes.keysLeft = counts
	}
	s.answer.OneTimeKeys = counts.OneTime
	s.answer.UnusedFallback, s.answer.UnusedFallback0 = counts.UnusedFallback, counts.UnusedFallback
	return nil
}
