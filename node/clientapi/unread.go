package clientapi

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/node/pushrules"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Unread counts are not stored: they follow from push rules, receipts and the room's order. What the rules made of each
// event is kept in memory, so that a new event costs one evaluation per user, and a moved receipt none.

// Bounds of counting. A client shows "99+" long before; but a person who joins a room of a million messages and reads none
// must not cost an evaluation of all.
const (
	maxUnreadScan  = 1000 // newest events of a room that are evaluated; also the highest count
	maxUnreadRooms = 1000 // (user, room) pairs whose notifications are kept, each at most 32 KB, most far less
	maxUnreadUsers = 128  // users whose rules are kept parsed, some 20 KB each
	maxThreadHops  = 3    // relations followed to find an event's thread (CS API, Marking notifications as read)
)

// unreadCounts is unread_notifications of /sync.
type unreadCounts struct {
	Highlights    int `json:"highlight_count"`
	Notifications int `json:"notification_count"`
}

func (c *unreadCounts) add(n notification) {
	c.Notifications++
	if n.highlight {
		c.Highlights++
	}
}

// mainThread is the thread of events that are in none.
const mainThread = "main"

// notification is an event that the rules notify of.
type notification struct {
	order     int64
	thread    string // root's event ID, or mainThread
	highlight bool
}

// notified is what is known of one user in one room: events with from < order ≤ upTo have been evaluated under these rules. What
// has been redacted is not in list.
type notified struct {
	rules      ruleSums
	from, upTo int64
	list       []notification
	sent       map[string]int64 // by thread, the order of the user's own newest message
}

// answered says whether the user has sent something in the thread since: sending is reading (CS API, Marking notifications as read).
func (n *notified) answered(one notification) bool { return one.order <= n.sent[one.thread] }

type unreadKey struct {
	user eventgraph.UserID
	room eventgraph.RoomID
}

// unreadCache keeps what has been evaluated. It is for concurrent use; a *notified in it is never changed.
type unreadCache struct {
	users *lru.Cache[unreadKey, *notified]
	rooms *lru.Cache[eventgraph.RoomID, *roomFacts]
	rules *lru.Cache[eventgraph.UserID, *userRules]
}

func newUnreadCache() *unreadCache {
	c := &unreadCache{}
	c.users, _ = lru.New[unreadKey, *notified](maxUnreadRooms) // fails only on a size below 1
	c.rooms, _ = lru.New[eventgraph.RoomID, *roomFacts](maxUnreadRooms)
	c.rules, _ = lru.New[eventgraph.UserID, *userRules](maxUnreadUsers)
	return c
}

// ruleSums are those of the push rules and the list of ignored users as they are stored.
type ruleSums [2][sha256.Size]byte

// userRules is what a user's account data says of notifications, parsed. It is never changed.
type userRules struct {
	sums    ruleSums
	rules   *pushrules.Ruleset
	ignored map[eventgraph.UserID]bool
}

// roomFacts is what rules ask of a room's state; it is for concurrent use.
type roomFacts struct {
	root    eventgraph.Hash
	members int

	once   sync.Once
	levels *auth.Levels
}

// unread counts a user's unread notifications as of one snapshot.
type unread struct {
	api     *API
	r       *store.Reader
	user    eventgraph.UserID
	rules   *pushrules.Ruleset
	ignored map[eventgraph.UserID]bool
	sums    ruleSums
	budget  pushrules.Budget
	ended   func() error // nil, or says that nobody waits for the counts any more
}

// newUnread reads the user's rules from the snapshot.
func (a *API) newUnread(r *store.Reader, user eventgraph.UserID) (*unread, error) {
	u := &unread{api: a, r: r, user: user}
	for i, dataType := range []string{typePushRules, typeIgnoredList} {
		var err error
		if u.sums[i], err = r.AccountDataSum(user, "", dataType); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// load parses what is needed only where there is something to evaluate.
func (u *unread) load() error {
	if u.rules != nil {
		return nil
	}
	known, ok := u.api.unreads.rules.Get(u.user)
	if !ok || known.sums != u.sums {
		ignored, err := ignoredUsers(u.r, u.user)
		if err != nil {
			return err
		}
		rules, err := readPushRules(u.r, u.user)
		if err != nil {
			return err
		}
		known = &userRules{u.sums, rules, ignored}
		u.api.unreads.rules.Add(u.user, known)
	}
	u.rules, u.ignored = known.rules, known.ignored
	return nil
}

// ignoredUsers reads m.ignored_user_list (CS API, Ignoring Users).
func ignoredUsers(r *store.Reader, user eventgraph.UserID) (map[eventgraph.UserID]bool, error) {
	data, err := r.AccountData(user, "", typeIgnoredList)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var content struct {
		Users map[eventgraph.UserID]json.RawMessage `json:"ignored_users"`
	}
	if json.Unmarshal(data.Content, &content) != nil {
		return nil, nil // a client may have put anything there
	}
	ignored := make(map[eventgraph.UserID]bool, len(content.Users))
	for other := range content.Users {
		ignored[other] = true
	}
	return ignored, nil
}

// room counts for a room that the user is joined to: over all threads or, if byThread, of the main thread and of each other
// one that has any.
func (u *unread) room(id eventgraph.RoomID, byThread bool) (unreadCounts, map[string]unreadCounts, error) {
	var counts unreadCounts
	room, err := u.r.Room(id)
	if err != nil {
		return counts, nil, err
	}
	marks, err := u.marks(id)
	if err != nil {
		return counts, nil, err
	}
	n, err := u.evaluated(room, marks.all)
	if err != nil {
		return counts, nil, err
	}
	threads := map[string]unreadCounts{}
	for _, one := range n.list {
		seen, err := marks.cover(one)
		if err != nil {
			return counts, nil, err
		}
		if seen || n.answered(one) {
			continue
		}
		if byThread && one.thread != mainThread {
			c := threads[one.thread]
			c.add(one)
			threads[one.thread] = c
		} else {
			counts.add(one)
		}
	}
	return counts, threads, nil
}

// readMarks say what a user has read of a room.
type readMarks struct {
	u       *unread
	room    eventgraph.RoomID
	all     int64            // in every thread
	threads map[string]int64 // in one, as far as it was asked for
}

// marks reads them. Who has no receipt has read what is before their joining.
func (u *unread) marks(room eventgraph.RoomID) (*readMarks, error) {
	read, err := u.r.ReadUpTo(room, u.user, "")
	if errors.Is(err, store.ErrNotFound) {
		read, err = u.joinedAt(room)
	}
	return &readMarks{u, room, read, map[string]int64{}}, err
}

// cover says whether the notification is of something that is read.
func (m *readMarks) cover(n notification) (bool, error) {
	if n.order <= m.all {
		return true, nil
	}
	upTo, ok := m.threads[n.thread]
	if !ok {
		var err error
		upTo, err = m.u.r.ReadUpTo(m.room, m.u.user, n.thread)
		if errors.Is(err, store.ErrNotFound) {
			upTo = m.all
		} else if err != nil {
			return false, err
		}
		m.threads[n.thread] = upTo
	}
	return n.order <= upTo, nil
}

// joinedAt is where reading begins for a user who has no receipt in the room: their joining, which a new name does not move.
func (u *unread) joinedAt(room eventgraph.RoomID) (int64, error) {
	member, err := u.r.Member(room, u.user)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	e, err := u.r.Event(member.Event)
	if err != nil {
		return 0, err
	}
	for range rooms.MaxMemberHops {
		before, err := replacedState(u.r, e)
		if err != nil {
			return 0, err
		}
		if before == nil || before.Membership() != "join" {
			break
		}
		e = before
	}
	return e.Order, nil
}

// evaluated returns what the rules make of the events after read, at most maxUnreadScan of them.
func (u *unread) evaluated(room *store.Room, read int64) (*notified, error) {
	newest := room.NextOrder - 1
	from := max(read, newest-maxUnreadScan)
	key := unreadKey{u.user, room.ID}
	known, ok := u.api.unreads.users.Get(key)
	if !ok || known.rules != u.sums || known.from > from {
		known = &notified{rules: u.sums, from: from, upTo: from}
	}
	if known.upTo >= newest {
		return known, nil
	}
	if err := u.load(); err != nil {
		return nil, err
	}
	next := &notified{rules: u.sums, from: max(known.from, from), upTo: newest, sent: maps.Clone(known.sent)}
	next.list = make([]notification, 0, min(len(known.list)+int(newest-known.upTo), maxUnreadScan))
	for _, one := range known.list {
		if one.order > next.from {
			next.list = append(next.list, one)
		}
	}
	context, err := u.context(room)
	if err != nil {
		return nil, err
	}
	err = u.r.Timeline(room.ID, max(known.upTo, next.from)+1, false, func(e *store.StoredEvent) (bool, error) {
		if e.Order > newest {
			return false, nil
		}
		if e.Position == 0 {
			return true, nil // of a time when nobody here was in the room
		}
		if u.ended != nil {
			if err := u.ended(); err != nil {
				return false, err
			}
		}
		return true, u.evaluate(next, room, e, context)
	})
	if err != nil {
		return nil, err
	}
	u.api.unreads.users.Add(key, next)
	return next, nil
}

// evaluate adds the next event of the room to what is known.
func (u *unread) evaluate(next *notified, room *store.Room, e *store.StoredEvent, context pushrules.Context) error {
	if redacts := e.Redacts(); redacts != "" && e.Type() == "m.room.redaction" {
		victim, err := u.r.Event(redacts)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if victim != nil && victim.RedactedBy != "" && victim.RoomID() == room.ID {
			next.list = slices.DeleteFunc(next.list, func(one notification) bool { return one.order == victim.Order })
		}
	}
	_, isState := e.StateKey()
	sent := e.Sender() == u.user && !isState && e.Type() != "m.room.redaction" // what was redacted since, too: its sender had read what is before it
	if e.RedactedBy != "" && !sent {
		return nil
	}
	outcome := u.outcome(room, ruleEvent(e.Event), context)
	if !sent && !outcome.Notify {
		return nil
	}
	if !sent && e.StateBefore != room.State { // in the state as it is now the user is joined
		if may, err := u.api.Rooms.MaySeeUser(u.user, e); err != nil || !may {
			return err
		}
	}
	thread, err := threadOf(u.r, e)
	if err != nil {
		return err
	}
	if sent {
		if next.sent == nil {
			next.sent = map[string]int64{}
		}
		next.sent[thread] = e.Order
		return nil
	}
	next.list = append(next.list, notification{e.Order, thread, outcome.Highlight})
	return nil
}

// ruleEvent is an event as rules look at it.
func ruleEvent(e *eventgraph.Event) *pushrules.Event {
	event := &pushrules.Event{
		ID: string(e.ID()), Type: e.Type(), Sender: string(e.Sender()), RoomID: string(e.RoomID()), Content: e.Content(),
		Redacts: string(e.Redacts()), OriginTS: e.OriginServerTS(),
	}
	if stateKey, ok := e.StateKey(); ok {
		event.StateKey = &stateKey
	}
	return event
}

// outcome is what the user's rules make of an event, once they are loaded; room is nil if it is not held here.
func (u *unread) outcome(room *store.Room, e *pushrules.Event, context pushrules.Context) pushrules.Outcome {
	sender := eventgraph.UserID(e.Sender)
	if sender == u.user || u.ignored[sender] || e.Type == rooms.DummyEvent {
		return pushrules.Outcome{}
	}
	if room != nil {
		context.Permission = func(key string) bool { return u.mayNotify(room, sender, key) }
	}
	context.Budget = &u.budget
	return u.rules.Evaluate(e, context)
}

// context is what the rules ask of the user and the room, but for the sender's permission.
func (u *unread) context(room *store.Room) (pushrules.Context, error) {
	context := pushrules.Context{User: string(u.user)}
	facts, err := u.facts(room)
	if err != nil {
		return context, err
	}
	context.Members = facts.members
	member, err := u.r.Member(room.ID, u.user)
	if errors.Is(err, store.ErrNotFound) {
		return context, nil
	}
	if err != nil {
		return context, err
	}
	event, err := u.r.Event(member.Event)
	if err != nil {
		return context, err
	}
	return context, optionalString(profileOfMember(event.Event)["displayname"], &context.DisplayName)
}

func optionalString(value json.RawMessage, s *string) error {
	if value == nil {
		return nil
	}
	return json.Unmarshal(value, s)
}

// facts reads what rules ask of the room's current state, or takes it from the cache if the state is still the same.
func (u *unread) facts(room *store.Room) (*roomFacts, error) {
	if facts, ok := u.api.unreads.rooms.Get(room.ID); ok && facts.root == room.State {
		return facts, nil
	}
	facts := &roomFacts{root: room.State}
	err := u.r.MembersOf(room.ID, func(m *store.Member) (bool, error) {
		if m.Membership == "join" {
			facts.members++
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	u.api.unreads.rooms.Add(room.ID, facts)
	return facts, nil
}

// defaultNotificationLevel is what a notification of any kind needs unless the power levels say otherwise
// (m.room.power_levels, notifications).
const defaultNotificationLevel = 50

// mayNotify says whether the sender's power allows notifications of that key. If the state cannot be read, it does not.
func (u *unread) mayNotify(room *store.Room, sender eventgraph.UserID, key string) bool {
	facts, err := u.facts(room)
	if err != nil {
		return false
	}
	state := u.api.Rooms.StateAt(room.ID, room.State)
	facts.once.Do(func() {
		if facts.levels, err = auth.PowerLevels(state); err != nil {
			u.api.Log.Error("power levels cannot be read", "error", err)
		}
	})
	if facts.levels == nil {
		return false
	}
	needed, ok := facts.levels.Notifications[key]
	if !ok {
		needed = defaultNotificationLevel
	}
	power, err := auth.UserPower(sender, state)
	return err == nil && (power.IsCreator || power.Level >= needed)
}

// threadOf is the root of the event's thread, or mainThread: relations are followed for a few hops, so that a reaction
// counts with the thread of what it reacts to.
func threadOf(r *store.Reader, e *store.StoredEvent) (string, error) {
	thread, _, err := threadAbove(r, e)
	if thread == "" {
		thread = mainThread
	}
	return thread, err
}

// threadAbove is threadOf with the events that lead there, e among them; "" if that is not known, for one of them is not held or they are too many.
func threadAbove(r *store.Reader, e *store.StoredEvent) (thread string, path []*store.StoredEvent, err error) {
	for range maxThreadHops {
		path = append(path, e)
		relation := e.Relation().Kept() // so that redaction changes nothing in it
		if relation.Type == "m.thread" {
			return string(relation.Parent), path, nil
		}
		if relation.Parent == "" {
			return mainThread, path, nil
		}
		parent, err := r.Event(relation.Parent)
		if errors.Is(err, store.ErrNotFound) {
			return "", path, nil
		}
		if err != nil {
			return "", nil, err
		}
		e = parent
	}
	return "", path, nil
}
