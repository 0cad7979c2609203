package clientapi

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// bumpTypes are the events that count as activity for a room's bump_stamp (MSC4186, RoomResult).
var bumpTypes = []string{
	"m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite", "m.poll.start", "m.beacon_info",
	"org.matrix.msc3381.poll.start", "org.matrix.msc3672.beacon_info",
}

// maxBumpScan bounds the events looked at for a bump_stamp: in rooms that only come and go, the newest of them stands for the rest.
const maxBumpScan = 100

// rooms fills in the matched rooms that have something to tell, and notes which are in the windows.
func (s *slidingRound) rooms() error {
	for _, id := range slices.Sorted(maps.Keys(s.found)) {
		if err := s.ended(); err != nil {
			return err
		}
		m, sent := s.found[id], s.conn.rooms[id]
		room, next, err := s.matchedRoom(m, sent)
		if err != nil {
			return err
		}
		next.Live, next.UpTo = true, 0
		if next != sent {
			s.delta[id] = next
		}
		if room != nil {
			s.out.Rooms[id], s.told = room, true
		}
	}
	for id, sent := range s.conn.rooms {
		if s.found[id] == nil && sent.Live {
			sent.Live, sent.UpTo = false, s.sincePosition()
			s.delta[id] = sent
		}
	}
	return nil
}

// sentUpTo is up to where the client has the room.
func (s *slidingRound) sentUpTo(sent sentRoom) store.Position {
	switch {
	case sent.Stage == notSent || sent.Stage == coming:
		return 0
	case sent.Live:
		return s.sincePosition()
	}
	return sent.UpTo
}

// matchedRoom is what there is to tell of a room; nil if nothing. next is what the client then has of it.
func (s *slidingRound) matchedRoom(m *matched, sent sentRoom) (room *slidingRoom, next sentRoom, err error) {
	l := m.room
	next = sent
	next.Stage, next.DM = l.stage, s.view.direct[l.id]
	upTo := s.sentUpTo(sent)
	changed := sent.Stage != l.stage || l.active > upTo || l.member != nil && l.member.Position > upTo
	if !changed && sent.Live && l.stage != coming { // of a room that has been left only the membership can change
		changed = s.changes.timeline[l.id] && isJoined(l.member) || s.changes.membership[l.id]
	}
	room = &slidingRoom{}
	switch {
	case l.stage != inside && (sent.Stage != l.stage || l.stage != coming && changed):
		next.Limit, next.Config = 0, s.conn.config(&roomConfig{})
		room.Initial = true
		err = s.outside(m, room)
	case l.stage != inside:
		return nil, next, nil
	default:
		told := false
		if told, err = s.insideRoom(m, sent, &next, upTo, changed, room); !told && next.DM == sent.DM {
			return nil, next, err
		}
	}
	if sent.Stage == notSent && next.DM || sent.Stage != notSent && next.DM != sent.DM || room.Initial && next.DM {
		room.IsDM = &next.DM
	}
	return room, next, err
}

// outside fills in a room of which the user sees stripped state only, or that is being joined.
func (s *slidingRound) outside(m *matched, room *slidingRoom) error {
	l := m.room
	state, err := s.strippedState(l)
	if err != nil {
		return err
	}
	room.BumpStamp = l.active
	if l.stage == stripped {
		room.Membership, room.Stripped = l.member.Membership, state
		return nil
	}
	room.Membership = "join"
	room.PrevBatch = s.a.roomToken(0)
	for _, raw := range state {
		var f strippedFields
		if json.Unmarshal(raw, &f) != nil || f.StateKey == nil {
			continue
		}
		t := eventgraph.StateTuple{Type: f.Type, Key: *f.StateKey}
		if m.config.state(t) || t.Type == "m.room.member" && t.Key == string(s.user) {
			room.RequiredState = append(room.RequiredState, raw)
		}
		if t == (eventgraph.StateTuple{Type: "m.room.name"}) {
			room.Name = textField(f.Content, "name")
		}
	}
	return nil
}

// strippedState is what a user may know of a room that they are not in; of one that is being joined, the state that has come so far.
func (s *slidingRound) strippedState(l *listedRoom) ([]json.RawMessage, error) {
	if l.stage == coming {
		j, err := joining(s.r, l.id, s.user)
		if err != nil || j == nil {
			return nil, err
		}
		s.v.bare = true
		defer func() { s.v.bare = false }()
		return s.a.joiningState(s.r, j, s.v)
	}
	if l.member.Membership == "invite" || l.member.Membership == "knock" {
		state, err := s.a.inviteState(s.r, l.member)
		if err != nil {
			return nil, err
		}
		return state.events, nil
	}
	if !l.member.Outside { // their invite was taken back, or they rejected it
		e, err := s.r.Event(l.member.Event)
		if err != nil {
			return nil, err
		}
		return []json.RawMessage{strippedEvent(e.Shown())}, nil
	}
	var end strippedState
	if end.addMember(l.member.Invite, s.user); len(end.events) > 0 {
		return end.events, nil
	}
	user, key := s.user, string(s.user)
	raw, err := json.Marshal(&strippedFields{Type: "m.room.member", StateKey: &key, Sender: user, Content: json.RawMessage(`{"membership":"leave"}`)})
	return []json.RawMessage{raw}, err
}

// insideRoom fills in a room that the user is, or was, joined to. It says whether there is anything to tell.
func (s *slidingRound) insideRoom(m *matched, sent sentRoom, next *sentRoom, upTo store.Position, changed bool, room *slidingRoom) (bool, error) {
	l, config := m.room, &m.config
	first := sent.Stage != inside
	expand := !first && config.Limit > sent.Limit
	var more roomConfig
	wider := false
	if !first {
		more, wider = config.more(&s.conn.configs[sent.Config])
	}
	read := isJoined(l.member) && s.changes.receipts[l.id].of(s.user)
	if !changed && !expand && !wider && !read {
		return false, nil
	}
	if first {
		upTo = 0
	}
	span, err := s.a.span(s.r, l.member, upTo, s.changes.upTo, s.v)
	if err != nil {
		return false, err
	}
	room.Initial = first || span.fresh
	room.Membership = l.member.Membership
	if changed || expand || wider {
		next.Config = s.conn.config(config)
		tl, err := s.slidingTimeline(span, config, expand && !room.Initial, room)
		if err != nil {
			return false, err
		}
		s.shown[l.id] = tl
		switch {
		case (room.Initial || room.Expanded) && !tl.limited:
			next.Limit = mostTimeline // the client has them all
		case room.Initial || room.Expanded:
			next.Limit = config.Limit
		case tl.limited:
			next.Limit = min(next.Limit, config.Limit)
		}
		if err := s.requiredState(span, tl, config, &more, room); err != nil {
			return false, err
		}
		if err := s.roomFields(l, span, upTo, room); err != nil {
			return false, err
		}
	}
	if !isJoined(l.member) {
		return true, nil
	}
	if s.counts == nil {
		if s.counts, err = s.a.newUnread(s.r, s.user); err != nil {
			return false, err
		}
		s.counts.ended = s.ended
	}
	counts, _, err := s.counts.room(l.id, false)
	room.unreadCounts = &counts
	return true, err
}

// slidingTimeline fills in the timeline: what is new or, if it is to be expanded, the newest events whether the client has them or not.
func (s *slidingRound) slidingTimeline(span *roomSpan, config *roomConfig, expand bool, room *slidingRoom) (*roomTimeline, error) {
	shown := span
	if expand {
		whole := *span
		whole.since, whole.fresh = 0, true
		shown, room.Expanded = &whole, true
	}
	if _, err := s.ignoring(); err != nil {
		return nil, err
	}
	tl, err := s.a.timeline(s.r, shown, &timelineView{s.v, &eventFilter{}, config.Limit})
	if err != nil {
		return nil, err
	}
	if room.Timeline, err = s.timelineEvents(tl); err != nil {
		return nil, err
	}
	room.Limited, room.PrevBatch = tl.limited, s.a.roomToken(tl.prev)
	live := 0
	for _, e := range tl.events {
		if s.since != nil && e.Position > s.since.pos {
			live++
		}
	}
	room.NumLive = &live
	return tl, nil
}

// requiredState fills in the state that the client asks for and has not got.
func (s *slidingRound) requiredState(span *roomSpan, tl *roomTimeline, config, more *roomConfig, room *slidingRoom) error {
	if span.left && (span.gone == nil || span.gone.Position <= span.since) {
		return nil
	}
	w := &stateWanted{full: room.Initial, after: true, lazy: config.Lazy, filter: &eventFilter{}, members: s.membersShown(tl, config)}
	w.wants = func(t eventgraph.StateTuple) bool { return config.state(t) || config.Lazy && t.Type == "m.room.member" }
	w.only = config.exact()
	w.sent = func(user eventgraph.UserID, id eventgraph.EventID) bool {
		return !room.Initial && s.a.sent.has(s.deviceKey(), s.sincePosition(), sentMember{span.room, user}, id)
	}
	stubs := []json.RawMessage{}
	w.gone = func(t eventgraph.StateTuple) { stubs = append(stubs, stateStub(t)) }
	state, err := s.a.state(s.r, span, tl, w)
	if err != nil {
		return err
	}
	if !room.Initial && len(more.State) > 0 {
		added, err := s.a.state(s.r, span, tl, &stateWanted{full: true, after: true, filter: &eventFilter{}, wants: more.state, only: more.exact()})
		if err != nil {
			return err
		}
		for _, e := range added {
			if !slices.ContainsFunc(state, func(held *store.StoredEvent) bool { return held.ID() == e.ID() }) {
				state = append(state, e)
			}
		}
	}
	room.RequiredState, err = s.stateEvents(state)
	room.RequiredState = append(room.RequiredState, stubs...)
	return err
}

// stateStub says that the room has no such state any more (MSC4186, StateStub): resolution has taken it away.
func stateStub(t eventgraph.StateTuple) json.RawMessage {
	b := appendString([]byte(`{"type":`), t.Type)
	return append(appendString(append(b, `,"state_key":`...), t.Key), '}')
}

// membersShown are whose member events a client that loads them lazily needs for the timeline (MSC4186, Lazy loaded memberships), and those
// asked for by name.
func (s *slidingRound) membersShown(tl *roomTimeline, config *roomConfig) map[eventgraph.UserID]bool {
	if !config.Lazy {
		return nil
	}
	members := map[eventgraph.UserID]bool{}
	for _, e := range tl.events {
		members[e.Sender()] = true
		if key, ok := e.StateKey(); ok && e.Type() == "m.room.member" {
			members[eventgraph.UserID(key)] = true
		}
	}
	for _, p := range config.State {
		if p.Key != "*" && p.Key != "" && p.matches("m.room.member", p.Key) {
			members[eventgraph.UserID(p.Key)] = true
		}
	}
	return members
}

// roomFields fills in what the server makes of the room's state for the client's list of rooms, as far as it has changed.
func (s *slidingRound) roomFields(l *listedRoom, span *roomSpan, upTo store.Position, room *slidingRoom) error {
	name, nameChanged, err := s.stateField(span, "m.room.name", room.Initial)
	if err != nil {
		return err
	}
	if text := textField(name, "name"); text != nil && *text != "" || nameChanged && !room.Initial {
		room.Name = text
		if text == nil {
			room.Name = new(string)
		}
	}
	if !nameChanged {
		room.Name = nil
	}
	avatar, changed, err := s.stateField(span, "m.room.avatar", room.Initial)
	if err != nil {
		return err
	}
	if url := textField(avatar, "url"); url != nil && changed {
		room.Avatar = appendString(nil, *url)
	} else if changed && !room.Initial {
		room.Avatar = json.RawMessage("null")
	}
	if err := s.slidingMembers(span, name, nameChanged, room); err != nil {
		return err
	}
	room.BumpStamp, err = s.bumpStamp(l, span, upTo)
	return err
}

// stateField is the content of a state event at the end of the span, and whether the client needs to be told.
func (s *slidingRound) stateField(span *roomSpan, eventType string, initial bool) (json.RawMessage, bool, error) {
	now, err := stateEvent(s.r, span.ending, eventType, "")
	if err != nil {
		return nil, false, err
	}
	changed := initial
	if !initial {
		was, err := stateEvent(s.r, span.known, eventType, "")
		if err != nil {
			return nil, false, err
		}
		changed = (was == nil) != (now == nil) || was != nil && was.ID() != now.ID()
	}
	if now == nil {
		return nil, changed, nil
	}
	return now.Shown().Content(), changed, nil
}

// textField is a string in a content; nil if there is none.
func textField(content json.RawMessage, name string) *string {
	if content == nil {
		return nil
	}
	text, ok := canonicaljson.GetString(content, name)
	if !ok {
		return nil
	}
	return &text
}

// slidingMembers fills in how many are in the room and, if it has no name, who stands for it.
func (s *slidingRound) slidingMembers(span *roomSpan, name json.RawMessage, nameChanged bool, room *slidingRoom) error {
	if span.left {
		return nil // who comes and goes is none of the user's business any more
	}
	changed, err := memberChanges(s.r, span)
	if err != nil || !room.Initial && !nameChanged && len(changed) == 0 {
		return err
	}
	sum, err := summary(s.r, span.room, s.user)
	if err != nil {
		return err
	}
	room.Joined, room.Invited = &sum.Joined, &sum.Invited
	if text := textField(name, "name"); text != nil && *text != "" {
		return nil
	}
	for _, user := range sum.Heroes {
		hero := slidingHero{User: user}
		e, err := stateEvent(s.r, span.ending, "m.room.member", string(user))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if e != nil {
			shown, err := s.a.Rooms.ShownToUser(s.user, e)
			if err != nil {
				return err
			}
			profile := profileOfMember(shown)
			hero.Name, hero.Avatar = profile["displayname"], profile["avatar_url"]
		}
		room.Heroes = append(room.Heroes, hero)
	}
	return nil
}

// bumpStamp is the position of the newest event that counts as activity; 0 if there is none that the client does not know of.
func (s *slidingRound) bumpStamp(l *listedRoom, span *roomSpan, upTo store.Position) (store.Position, error) {
	if span.left {
		return l.member.Position, nil
	}
	stamp, scanned := store.Position(0), 0
	err := s.r.RoomChanges(span.room, span.end, upTo, func(p store.Position, id eventgraph.EventID) (bool, error) {
		e, err := s.r.Event(id)
		if err != nil {
			return false, err
		}
		scanned++
		if slices.Contains(bumpTypes, e.Type()) || upTo == 0 && scanned == maxBumpScan {
			stamp = p
		}
		return stamp == 0 && scanned < maxBumpScan, nil
	})
	if stamp == 0 && upTo == 0 {
		stamp = l.member.Position
	}
	return stamp, err
}
