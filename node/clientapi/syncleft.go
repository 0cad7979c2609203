package clientapi

import (
	"encoding/json"
	"slices"

	"github.com/plexus-p2p/plexus/store"
)

// gone is a room that the user has left, of which there is nothing to show.
func (s *syncRound) gone() *leftRoom {
	room := &leftRoom{Timeline: timelineBatch{Events: []json.RawMessage{}}, AccountData: emptyList()}
	s.stateLists(&room.roomStateLists, nil)
	return room
}

// parted takes in whom the user shared a room with that they were joined to at the since token; was says whether they were.
func (s *syncRound) parted(m *store.Member) (was bool, err error) {
	if s.since == nil || !m.WasJoined {
		return false, nil
	}
	span, err := s.a.span(s.r, m, s.since.pos, s.changes.upTo, s.v)
	if err != nil || span.fresh {
		return false, err
	}
	return true, s.company.left(span)
}

// left fills in a room that the user has left or was removed from; nil if there is nothing to tell. moved says that this is new.
func (s *syncRound) left(m *store.Member, moved bool) (*leftRoom, error) {
	room := s.gone()
	all := s.since == nil
	if moved && !m.Outside {
		span, err := s.a.span(s.r, m, s.sincePosition(), s.changes.upTo, s.v)
		if err != nil {
			return nil, err
		}
		if !span.fresh {
			if err := s.company.left(span); err != nil {
				return nil, err
			}
		}
		if m.Forgotten && span.fresh || !s.filter.room(m.Room) {
			return nil, nil
		}
		if _, err = s.events(span, nil, &room.roomStateLists, &room.Timeline); err != nil {
			return nil, err
		}
		all = span.fresh
	} else if moved { // an invite rejected, a knock withdrawn
		if _, err := s.parted(m); err != nil {
			return nil, err
		}
		s.endOutside(m, room)
	}
	if (!moved || m.Outside) && (m.Forgotten || !s.filter.room(m.Room)) {
		return nil, nil
	}
	err := s.roomAccountData(m.Room, all, &room.AccountData)
	if err != nil || !moved && len(room.AccountData.Events) == 0 {
		return nil, err
	}
	return room, nil
}

// withEnd makes the event by which the user's membership ended part of the state that is told: of a room that they were not joined to when it
// did (an invite rejected or taken back, a ban after they had left), state tells nothing else. With state_after clients take it from there,
// whatever the timeline shows (CS API, GET /sync, use_state_after); without, it is in the timeline, or else in state.
func (s *syncRound) withEnd(span *roomSpan, tl *roomTimeline, state []*store.StoredEvent) ([]*store.StoredEvent, error) {
	id, f := span.member.Event, &s.filter.Room.State
	same := func(e *store.StoredEvent) bool { return e.ID() == id }
	if slices.ContainsFunc(state, same) || !s.stateAfter && !s.unstableAfter && slices.ContainsFunc(tl.events, same) {
		return state, nil
	}
	end, err := s.r.Event(id)
	if isNotFound(err) || err == nil && (end.Position <= span.since || !f.room(span.room) || !f.event(end.Event)) {
		return state, nil
	}
	if err != nil {
		return nil, err
	}
	older := func(e *store.StoredEvent) bool {
		key, ok := e.StateKey()
		return ok && e.Type() == "m.room.member" && key == string(s.user)
	}
	return append(slices.DeleteFunc(state, older), end), nil
}

// endOutside tells how an invite to a room that is not held here ended, or a knock on one, as withEnd does.
func (s *syncRound) endOutside(m *store.Member, room *leftRoom) {
	end, sender := outsideEnd(m, s.v.now)
	if end == nil {
		return
	}
	f := &s.filter.Room
	passes := func(f *eventFilter) bool { return f.room(m.Room) && f.kind("m.room.member", sender) }
	shown := passes(&f.Timeline) && f.Timeline.limit(usualTimeline, mostTimeline) > 0
	if shown {
		room.Timeline.Events = append(room.Timeline.Events, end)
	}
	if passes(&f.State) && (!shown || s.stateAfter || s.unstableAfter) {
		s.stateLists(&room.roomStateLists, []json.RawMessage{end})
	}
}
