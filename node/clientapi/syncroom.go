package clientapi

import (
	"cmp"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What changed for one user in one room between two positions. Everything that tells clients of rooms is made from
// it; it knows nothing of the form in which /sync answers.
//
//	 since                                             end
//	   |  gap: events not shown, if limited  |  timeline  |
//	 known ------------------------------> start -------> ending     room states
//
// known, start and ending are the room's resolved states at those places, not the states that single events rest on: with
// several forward extremities an event's own state may lack what the client has known for long.

// maxTimelineScan bounds the events looked at for one room's timeline, when a filter or the history's visibility
// hides most of them.
const maxTimelineScan = 1000

// roomSpan is one room, one user, two positions.
type roomSpan struct {
	room   eventgraph.RoomID
	member *store.Member
	since  store.Position // 0: from the beginning
	end    store.Position // of the user's membership, if they are not joined
	before *store.StoredEvent
	last   *store.StoredEvent // newest timeline event at end; nil: the room has none, or is not held
	known  eventgraph.Hash    // state at since; zero if the client does not have the room
	ending eventgraph.Hash
	fresh  bool               // the client does not have the room: it was not joined at since
	left   bool               // the user is not joined at end
	gone   *store.StoredEvent // if left: what ended their being joined; nil if they never were
}

// span looks up the ends of a span.
func (a *API) span(r *store.Reader, member *store.Member, since, upTo store.Position, v *viewer) (*roomSpan, error) {
	s := &roomSpan{room: member.Room, member: member, since: since, end: upTo, fresh: true}
	if member.Membership == "leave" || member.Membership == "ban" {
		s.end, s.left = min(upTo, member.Position), true
		switch e, err := r.Event(member.Event); {
		case err == nil: // forgetting has moved member.Position, but not this
			s.end = min(upTo, e.Position)
		case !isNotFound(err):
			return nil, err
		}
		var err error
		if s.gone, err = leaving(r, member); err != nil {
			return nil, err
		}
	}
	var err error
	if s.last, err = eventAt(r, s.room, s.end); err != nil || s.last == nil {
		return s, err
	}
	switch {
	case !s.left:
		s.ending = stateRoot(s.last)
	case s.gone != nil:
		s.ending = stateRoot(s.gone)
	}
	if since == 0 {
		return s, nil
	}
	if s.before, err = eventAt(r, s.room, since); err != nil || s.before == nil {
		return s, err
	}
	known := stateRoot(s.before)
	was, err := v.membershipIn(r, known)
	if err != nil {
		return nil, err
	}
	if was == "join" {
		s.fresh, s.known = false, known
	}
	return s, nil
}

// roomTimeline is the end of a span that is shown event by event.
type roomTimeline struct {
	events  []*store.StoredEvent // oldest first
	limited bool
	prev    int64           // the point before it, for roomToken
	start   eventgraph.Hash // the room's state before it
}

// timelineView says which events of a timeline are shown.
type timelineView struct {
	*viewer
	filter *eventFilter
	limit  int
}

func (a *API) shows(r *store.Reader, t *timelineView, e *store.StoredEvent) (bool, error) {
	key, _ := e.StateKey()
	if e.Type() == rooms.DummyEvent || !t.filter.event(e.Event) || t.hides(r, e) {
		return false, nil
	}
	if passes, err := a.relatedPass(r, t.filter, e, t.viewer); err != nil || !passes {
		return false, err
	}
	if e.Type() == "m.room.member" && key == string(t.user) {
		return true, nil // whoever is removed is told so
	}
	return a.Rooms.MaySeeUser(t.user, e)
}

// timeline collects the newest events of the span.
func (a *API) timeline(r *store.Reader, s *roomSpan, t *timelineView) (*roomTimeline, error) {
	tl := &roomTimeline{start: s.known}
	if s.last == nil {
		tl.limited = true
		return tl, nil
	}
	var first *store.StoredEvent   // the oldest looked at
	var stopped *store.StoredEvent // where looking ended
	scanned := 0
	held, err := r.Room(s.room)
	if err != nil {
		return nil, err
	}
	var breaks []store.Break
	opened := false
	look := func(e *store.StoredEvent) (bool, error) {
		if first != nil && store.Between(held.Breaks, e.Order, first.Order) {
			if !opened { // only now, and once: that reads all backward extremities
				var err error
				if breaks, err = openBreaks(r, held); err != nil {
					return false, err
				}
				opened = true
			}
			if store.Between(breaks, e.Order, first.Order) {
				tl.limited = true
				return false, nil
			}
		}
		show, err := a.shows(r, t, e)
		if err != nil {
			return false, err
		}
		if scanned++; scanned > maxTimelineScan || show && len(tl.events) == t.limit {
			tl.limited, stopped = true, e
			return false, nil
		}
		first = e
		if show {
			tl.events = append(tl.events, e)
		}
		return true, nil
	}
	if s.fresh && !(s.left && s.since > 0) {
		err = r.Timeline(s.room, s.last.Order, true, look)
		// What lies before the oldest event held must be fetched, unless nothing does. To a client that goes on from a position
		// before the user joined, the room's earlier history is a gap in any case.
		tl.limited = tl.limited || s.since > 0 || first == nil || first.Type() != "m.room.create"
	} else {
		err = r.RoomChanges(s.room, s.end, s.since, func(_ store.Position, id eventgraph.EventID) (bool, error) {
			e, err := r.Event(id)
			if err != nil {
				return false, err
			}
			return look(e)
		})
	}
	if err != nil {
		return nil, err
	}
	slices.Reverse(tl.events)
	switch {
	case first == nil && stopped != nil:
		tl.prev = stopped.Order
	case first == nil && s.before != nil:
		tl.prev = s.before.Order
	case first == nil:
		tl.prev = s.last.Order
	default:
		tl.prev = first.Order - 1
	}
	switch {
	case s.gone != nil && (first == nil || first.Position > s.gone.Position):
		tl.start = s.ending
	case s.fresh || tl.limited:
		tl.start, err = stateBefore(r, held, tl.prev, first)
	}
	return tl, err
}

// stateBefore is the room's state at the point before its event first.
func stateBefore(r *store.Reader, room *store.Room, point int64, first *store.StoredEvent) (eventgraph.Hash, error) {
	var previous *store.StoredEvent
	err := r.Timeline(room.ID, point, true, func(e *store.StoredEvent) (bool, error) {
		previous = e
		return false, nil
	})
	switch {
	case err != nil:
		return eventgraph.Hash{}, err
	case previous != nil && previous.Position != 0 && !(first != nil && store.Between(room.Breaks, previous.Order, first.Order)):
		return stateRoot(previous), nil
	case first != nil: // joined here, or among backfilled events
		return first.StateBefore, nil
	case previous != nil:
		return previous.StateAfter, nil
	}
	return eventgraph.Hash{}, nil
}

// stateWanted says which part of the state is sent.
type stateWanted struct {
	full    bool // all of it, not only what the client does not know
	after   bool // up to the end of the timeline instead of its start (use_state_after)
	lazy    bool // of members only those needed, and those that changed in what the client had
	members map[eventgraph.UserID]bool
	filter  *eventFilter
	wants   func(eventgraph.StateTuple) bool                 // beside the filter; nil: all
	only    []eventgraph.StateTuple                          // if not nil: wants is true of no others but members
	sent    func(eventgraph.UserID, eventgraph.EventID) bool // the client has this member event already
	gone    func(eventgraph.StateTuple)                      // if not nil, told of what is no state any more
}

// state lists the state events that bring a client from what it knows to the start of the timeline, from where the
// timeline's own events bring it to the end; or, with after, to the end at once.
func (a *API) state(r *store.Reader, s *roomSpan, tl *roomTimeline, w *stateWanted) ([]*store.StoredEvent, error) {
	known := s.known
	if w.full {
		known = eventgraph.Hash{}
	}
	nothingKnown := known == eventgraph.Hash{}
	ids := map[eventgraph.StateTuple]eventgraph.EventID{}
	add := func(t eventgraph.StateTuple, id eventgraph.EventID) {
		switch {
		case id == "": // gone by resolution: no event says so
			if w.gone != nil && w.wants(t) {
				w.gone(t)
			}
		case w.wants != nil && !w.wants(t):
		case w.lazy && nothingKnown && t.Type == "m.room.member" && !w.members[eventgraph.UserID(t.Key)]:
		default:
			ids[t] = id
		}
	}
	target := tl.start
	if w.after {
		target = s.ending
	}
	var err error
	if nothingKnown && w.only != nil {
		err = lookUp(r, target, w.only, add)
	} else {
		err = eventgraph.Diff(r, known, target, func(d eventgraph.Difference) error { add(d.Tuple, d.B); return nil })
	}
	if err != nil {
		return nil, err
	}
	shown := map[eventgraph.EventID]bool{}
	if !w.after {
		// What the timeline's events leave different from the state at the end: state changed by resolution, or by
		// events that the timeline's filter hides.
		told := map[eventgraph.StateTuple]bool{}
		for _, e := range tl.events {
			shown[e.ID()] = true
			if t, ok := e.Tuple(); ok {
				told[t] = true
			}
		}
		err := eventgraph.Diff(r, tl.start, s.ending, func(d eventgraph.Difference) error {
			if !told[d.Tuple] && d.B != "" {
				add(d.Tuple, d.B)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if w.lazy {
		if err := addMembers(r, target, ids, w); err != nil {
			return nil, err
		}
	}
	return loadState(r, ids, shown, w.filter)
}

// lookUp calls add for those of the tuples that are in the state at root.
func lookUp(r *store.Reader, root eventgraph.Hash, tuples []eventgraph.StateTuple, add func(eventgraph.StateTuple, eventgraph.EventID)) error {
	trie := eventgraph.OpenTrie(r, root)
	for _, t := range tuples {
		id, ok, err := trie.Get(t)
		if err != nil {
			return err
		}
		if ok {
			add(t, id)
		}
	}
	return nil
}

// addMembers adds the member events of those needed whom the client has not got yet.
func addMembers(r *store.Reader, root eventgraph.Hash, ids map[eventgraph.StateTuple]eventgraph.EventID, w *stateWanted) error {
	trie := eventgraph.OpenTrie(r, root)
	for user := range w.members {
		t := eventgraph.StateTuple{Type: "m.room.member", Key: string(user)}
		if ids[t] != "" {
			continue
		}
		id, ok, err := trie.Get(t)
		if err != nil {
			return err
		}
		if ok && !w.sent(user, id) {
			ids[t] = id
		}
	}
	return nil
}

// loadState reads the events, but for those shown elsewhere, in the order in which the room had them.
func loadState(r *store.Reader, ids map[eventgraph.StateTuple]eventgraph.EventID, shown map[eventgraph.EventID]bool, f *eventFilter) ([]*store.StoredEvent, error) {
	events := make([]*store.StoredEvent, 0, len(ids))
	for tuple, id := range ids {
		if shown[id] || !f.kind(tuple.Type, "") {
			continue
		}
		e, err := r.Event(id)
		if err != nil {
			return nil, err
		}
		if f.event(e.Event) {
			events = append(events, e)
		}
	}
	slices.SortFunc(events, func(x, y *store.StoredEvent) int {
		return cmp.Or(cmp.Compare(x.Depth(), y.Depth()), cmp.Compare(x.ID(), y.ID()))
	})
	return events, nil
}

// memberChanges lists users whose member event the span replaced; nil for a fresh room, where all are new.
func memberChanges(r *store.Reader, s *roomSpan) ([]eventgraph.Difference, error) {
	if s.fresh || s.known == s.ending {
		return nil, nil
	}
	var changed []eventgraph.Difference
	err := eventgraph.Diff(r, s.known, s.ending, func(d eventgraph.Difference) error {
		if d.Tuple.Type == "m.room.member" {
			changed = append(changed, d)
		}
		return nil
	})
	return changed, err
}

// renamed says whether the span changed what tells whether the room needs heroes: its name or its alias.
func renamed(r *store.Reader, s *roomSpan) (bool, error) {
	if s.fresh || s.known == s.ending {
		return false, nil
	}
	before, after := eventgraph.OpenTrie(r, s.known), eventgraph.OpenTrie(r, s.ending)
	for _, eventType := range []string{"m.room.name", "m.room.canonical_alias"} {
		was, _, err := before.Get(eventgraph.StateTuple{Type: eventType})
		if err != nil {
			return false, err
		}
		if is, _, err := after.Get(eventgraph.StateTuple{Type: eventType}); err != nil || is != was {
			return true, err
		}
	}
	return false, nil
}

// maxHeroes is how many users may stand for a room's name.
const maxHeroes = 5

// roomSummary is a RoomSummary (CS API, GET sync).
type roomSummary struct {
	Heroes  []eventgraph.UserID `json:"m.heroes,omitempty"`
	Joined  int                 `json:"m.joined_member_count"`
	Invited int                 `json:"m.invited_member_count"`
}

// summaryUnlessNamed is summary without heroes where the room has a name or an alias.
func summaryUnlessNamed(r *store.Reader, room eventgraph.RoomID, root eventgraph.Hash, user eventgraph.UserID) (*roomSummary, error) {
	sum, err := summary(r, room, user)
	if err != nil {
		return nil, err
	}
	named, err := hasName(r, root)
	if named {
		sum.Heroes = nil
	}
	return sum, err
}

// summary counts the room's members and picks its heroes: those joined or invited first, or else those who have left.
func summary(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID) (*roomSummary, error) {
	var sum roomSummary
	var here, gone []store.Member
	err := r.MembersOf(room, func(m *store.Member) (bool, error) {
		switch m.Membership {
		case "join":
			sum.Joined++
		case "invite":
			sum.Invited++
		}
		switch {
		case m.User == user:
		case m.Membership == "join" || m.Membership == "invite":
			here = firstMembers(here, m)
		case m.Membership == "leave" || m.Membership == "ban":
			gone = firstMembers(gone, m)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if len(here) == 0 {
		here = gone
	}
	for _, m := range here {
		sum.Heroes = append(sum.Heroes, m.User)
	}
	return &sum, nil
}

// firstMembers keeps the maxHeroes members with the lowest positions.
func firstMembers(kept []store.Member, m *store.Member) []store.Member {
	i, _ := slices.BinarySearchFunc(kept, m, func(k store.Member, m *store.Member) int {
		return cmp.Or(cmp.Compare(k.Position, m.Position), cmp.Compare(k.User, m.User))
	})
	if i == maxHeroes {
		return kept
	}
	kept = slices.Insert(kept, i, *m)
	return kept[:min(len(kept), maxHeroes)]
}

// hasName says whether clients name the room after m.room.name or m.room.canonical_alias.
func hasName(r *store.Reader, root eventgraph.Hash) (bool, error) {
	for eventType, field := range map[string]string{"m.room.name": "name", "m.room.canonical_alias": "alias"} {
		e, err := stateEvent(r, root, eventType, "")
		if err != nil {
			return false, err
		}
		if e != nil {
			if name, _ := canonicaljson.GetString(e.Content(), field); name != "" {
				return true, nil
			}
		}
	}
	return false, nil
}

// stateEvent reads one event of a room's state; nil if there is none.
func stateEvent(r *store.Reader, root eventgraph.Hash, eventType, key string) (*store.StoredEvent, error) {
	id, ok, err := eventgraph.OpenTrie(r, root).Get(eventgraph.StateTuple{Type: eventType, Key: key})
	if err != nil || !ok {
		return nil, err
	}
	return r.Event(id)
}

// inviteState is the stripped state that comes with an invite or a knock: what the inviting server said of a room that we are
// not in, pruned, or what our own state of the room says; and the member event itself (CS API, Stripped state).
func (a *API) inviteState(r *store.Reader, m *store.Member) (*strippedState, error) {
	out := &strippedState{}
	if m.Outside {
		out.addForeign(m.Stripped)
		out.addMember(m.Invite, m.User)
		return out, nil
	}
	room, err := r.Room(m.Room)
	if errors.Is(err, store.ErrNotFound) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	tuples := make([]eventgraph.StateTuple, 0, len(strippedTypes)+2)
	for _, eventType := range strippedTypes {
		tuples = append(tuples, eventgraph.StateTuple{Type: eventType})
	}
	member, err := r.Event(m.Event)
	if err != nil {
		return nil, err
	}
	if member.Sender() != m.User { // who invites, and how they call themself
		tuples = append(tuples, eventgraph.StateTuple{Type: "m.room.member", Key: string(member.Sender())})
	}
	for _, t := range tuples {
		e, err := stateEvent(r, room.State, t.Type, t.Key)
		if err != nil {
			return nil, err
		}
		if e != nil {
			out.events = append(out.events, strippedEvent(e.Shown()))
		}
	}
	out.events = append(out.events, strippedEvent(member.Shown()))
	out.sender = member.Sender()
	return out, nil
}
