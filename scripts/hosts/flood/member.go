package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// member is a joined server of the room, with what it needs for making events.
type member struct {
	*session
	user  eventgraph.UserID
	auth  []eventgraph.EventID // power levels and its join
	join  *eventgraph.Event
	depth int64

	mu   sync.Mutex
	last eventgraph.EventID   // of its own chain
	all  []eventgraph.EventID // the newest of those made
}

func memberAttacks() map[string]attack {
	return map[string]attack{
		"member-messages":   {workers: 8, prepare: joinRoom, step: validEvents},
		"member-forks":      {workers: 8, prepare: joinRoom, step: forks},
		"member-state":      {workers: 8, prepare: joinRoom, step: stateForks},
		"member-invalid":    {workers: 8, prepare: joinRoom, step: invalidByMember},
		"member-keys":       {workers: 8, prepare: joinRoom, step: unknownKeys},
		"member-missing":    {workers: 8, prepare: joinRoom, step: missingParents},
		"member-giant":      {workers: 4, prepare: joinRoom, step: giantEvents},
		"member-edus":       {workers: workersOf, prepare: joinRoom, step: floodEDUs},
		"member-history":    {workers: workersOf, prepare: joinRoom, step: askAsMember},
		"member-meetings":   {workers: workersOf, prepare: joinRoom, step: meetAsMember},
		"member-join-leave": {workers: 8, prepare: nothing, step: joinAndLeave},
		"member-streams":    {workers: workersOf, prepare: joinRoom, step: memberStreams},
		"member-garbage":    {workers: workersOf, prepare: joinRoom, step: memberGarbage},
	}
}

func nothing(_ context.Context, f *flood) error {
	if f.room == "" {
		return errNoRoom
	}
	return nil
}

func joinRoom(ctx context.Context, f *flood) error {
	if f.room == "" {
		return errNoRoom
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s, err := f.session(ctx, nil, false)
	if err != nil {
		return err
	}
	f.member, err = s.join(ctx, "mallory")
	if err == nil {
		s.serve = f.member.answerMissing
	}
	return err
}

// join joins the room over make_join and send_join.
func (s *session) join(ctx context.Context, name string) (*member, error) {
	m := &member{session: s, user: s.userID(name)}
	room := path(string(s.f.room))
	status, raw, err := s.call(ctx, "GET", "/_matrix/federation/v1/make_join/"+room+"/"+path(string(m.user))+"?ver="+string(eventgraph.DefaultRoomVersion), nil)
	if err != nil {
		return nil, err
	}
	var made struct {
		Version eventgraph.RoomVersion `json:"room_version"`
		Event   json.RawMessage
	}
	if err := json.Unmarshal(raw, &made); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("make_join: %d %.200s", status, raw)
	}
	if m.join, err = eventgraph.Finish(made.Version, made.Event, time.Now().UnixMilli(), s.signs); err != nil {
		return nil, err
	}
	status, raw, err = s.call(ctx, "PUT", "/_matrix/federation/v2/send_join/"+room+"/"+path(string(m.join.ID())), json.RawMessage(m.join.Raw()))
	if err != nil {
		return nil, err
	}
	var answer struct{ State []json.RawMessage }
	if err := json.Unmarshal(raw, &answer); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("send_join: %d %.200s", status, raw)
	}
	for _, raw := range answer.State {
		e, err := eventgraph.ParseEvent(made.Version, raw)
		if err != nil {
			return nil, err
		}
		if e.Type() == "m.room.power_levels" {
			m.auth = append(m.auth, e.ID())
		}
	}
	m.auth = append(m.auth, m.join.ID())
	m.last, m.depth, m.all = m.join.ID(), m.join.Depth(), []eventgraph.EventID{m.join.ID()}
	return m, nil
}

// event is a message of the member's, or with a state key its membership again, after prev.
func (m *member) event(prev eventgraph.EventID, state bool, size int) (*eventgraph.Event, error) {
	n := m.f.next()
	d := eventgraph.Draft{RoomID: m.f.room, Type: "m.room.message", Sender: m.user, PrevEvents: []eventgraph.EventID{prev}, AuthEvents: m.auth,
		Depth: m.depth + n, OriginServerTS: time.Now().UnixMilli()}
	content := map[string]any{"msgtype": "m.text", "body": fmt.Sprint(n, strings.Repeat("x", size))}
	if state {
		key := string(m.user)
		d.Type, d.StateKey = "m.room.member", &key
		content = map[string]any{"membership": "join", "displayname": fmt.Sprint(n, strings.Repeat("x", size))}
		d.AuthEvents = append(d.AuthEvents[:len(d.AuthEvents):len(d.AuthEvents)], m.joinRules()...)
	}
	var err error
	if d.Content, err = json.Marshal(content); err != nil {
		return nil, err
	}
	return eventgraph.Build(eventgraph.DefaultRoomVersion, d, m.signs)
}

// joinRules are the auth events of a join beside power levels and membership: those that the victim's template named.
func (m *member) joinRules() (rules []eventgraph.EventID) {
	for _, id := range m.join.AuthEvents() {
		if id != m.auth[0] {
			rules = append(rules, id)
		}
	}
	return rules
}

// chain is n events, each after the one before.
func (m *member) chain(n int, state bool, size int) ([]json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var pdus []json.RawMessage
	for range n {
		e, err := m.event(m.last, state, size)
		if err != nil {
			return nil, err
		}
		m.last = e.ID()
		if m.all = append(m.all, e.ID()); len(m.all) > 1000 {
			m.all = m.all[500:]
		}
		pdus = append(pdus, e.Raw())
	}
	return pdus, nil
}

func (m *member) made(n int64) eventgraph.EventID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[int(n)%len(m.all)]
}

// validEvents sends a chain of messages.
func validEvents(ctx context.Context, f *flood, _ int) error {
	pdus, err := f.member.chain(50, false, 100)
	if err != nil {
		return err
	}
	return f.member.send(ctx, pdus, nil)
}

// forks sends events that are an extremity each, from anywhere in what was sent before.
func forks(ctx context.Context, f *flood, _ int) error { return f.member.sendForks(ctx, false) }

// stateForks does so with state events, which are in conflict with each other.
func stateForks(ctx context.Context, f *flood, _ int) error { return f.member.sendForks(ctx, true) }

func (m *member) sendForks(ctx context.Context, state bool) error {
	var pdus []json.RawMessage
	var ids []eventgraph.EventID
	for range 50 {
		e, err := m.event(m.made(m.f.next()*7), state, 100)
		if err != nil {
			return err
		}
		pdus, ids = append(pdus, e.Raw()), append(ids, e.ID())
	}
	if err := m.send(ctx, pdus, nil); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all = append(m.all, ids[:5]...); len(m.all) > 1000 {
		m.all = m.all[500:]
	}
	return nil
}

// invalidByMember sends what has false signatures or hashes, or is forbidden.
func invalidByMember(ctx context.Context, f *flood, _ int) error {
	m := f.member
	var pdus []json.RawMessage
	for n := range 50 {
		e, err := m.event(m.join.ID(), n%3 == 0, 100)
		if err != nil {
			return err
		}
		switch raw := json.RawMessage(e.Raw()); n % 3 {
		case 0:
			pdus = append(pdus, spoilt(raw, `"displayname":"`))
		case 1:
			pdus = append(pdus, spoilt(raw, `"ed25519:a1":"`))
		default:
			pdus = append(pdus, spoilt(raw, `"body":"`))
		}
	}
	return m.send(ctx, pdus, nil)
}

// unknownKeys sends events of servers that nobody knows, so that their keys are asked for.
func unknownKeys(ctx context.Context, f *flood, _ int) error {
	var pdus []json.RawMessage
	for range 50 {
		i, err := newIdentity()
		if err != nil {
			return err
		}
		raw, err := i.strangeEvent(f, eventgraph.DefaultRoomVersion, f.room, 100)
		if err != nil {
			return err
		}
		pdus = append(pdus, raw)
	}
	return f.member.send(ctx, pdus, nil)
}

// missingParents sends events whose parents are nowhere; asked for them, it gives more of the same.
func missingParents(ctx context.Context, f *flood, _ int) error {
	var pdus []json.RawMessage
	for range 50 {
		e, err := f.member.event(inventedID(), false, 100)
		if err != nil {
			return err
		}
		pdus = append(pdus, e.Raw())
	}
	return f.member.send(ctx, pdus, nil)
}

// answerMissing answers get_missing_events with a chain that has no end, and takes what it is sent.
func (m *member) answerMissing(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case strings.Contains(r.URL.Path, "/get_missing_events/"):
		var asked struct {
			Latest []eventgraph.EventID `json:"latest_events"`
		}
		_ = json.NewDecoder(r.Body).Decode(&asked)
		var events []json.RawMessage
		for range 20 {
			e, err := m.event(inventedID(), false, 100)
			if err != nil {
				return false
			}
			events = append(events, e.Raw())
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"events": events})
		m.f.count("get_missing_events")
	case strings.Contains(r.URL.Path, "/send/"):
		_, _ = io.WriteString(w, `{"pdus":{}}`)
	default:
		return false
	}
	return true
}

// giantEvents sends a chain of events as large as they may be, with as many and as large EDUs.
func giantEvents(ctx context.Context, f *flood, _ int) error {
	pdus, err := f.member.chain(50, f.next()%2 == 0, 60<<10)
	if err != nil {
		return err
	}
	var edus []any
	for range 100 {
		edus = append(edus, map[string]any{"edu_type": "m.typing", "content": map[string]any{"room_id": f.room, "user_id": f.member.user, "typing": true,
			"more": strings.Repeat("y", 64<<10)}})
	}
	return f.member.send(ctx, pdus, edus)
}

// floodEDUs sends EDUs, most of which are kept on disk.
func floodEDUs(ctx context.Context, f *flood, worker int) error {
	m := f.member
	var edus []any
	add := func(kind string, content map[string]any) {
		edus = append(edus, map[string]any{"edu_type": kind, "content": content})
	}
	for range 25 {
		n := f.next()
		add("m.typing", map[string]any{"room_id": f.room, "user_id": m.user, "typing": n%2 == 0})
		add("m.receipt", map[string]any{string(f.room): map[string]any{"m.read": map[string]any{string(m.user): map[string]any{
			"event_ids": []eventgraph.EventID{m.made(n)}, "data": map[string]any{"ts": n}}}}})
		add("m.direct_to_device", map[string]any{"sender": m.user, "type": "m.flood", "message_id": fmt.Sprint("m", n),
			"messages": map[string]any{string(f.user): map[string]any{"*": map[string]any{"n": n}}}})
		add("m.device_list_update", map[string]any{"user_id": m.user, "device_id": fmt.Sprint("D", n%100), "stream_id": n, "keys": map[string]any{}})
	}
	return m.send(ctx, nil, edus)
}

func askAsMember(ctx context.Context, f *flood, _ int) error {
	return f.member.askAll(ctx, f.member.join.ID())
}

// meetAsMember holds meetings from the beginning, without an end.
func meetAsMember(ctx context.Context, f *flood, _ int) error {
	st, err := f.member.open(ctx, meeting)
	if err != nil {
		return err
	}
	defer st.reset()
	for range 20 {
		if _, err := st.Write(frame(map[string]any{"hello": map[string]any{"nonce": randomBytes(16)}})); err != nil {
			return err
		}
		raw, err := st.readFrame()
		if err != nil {
			return err
		}
		var got struct {
			News struct{ Events []eventgraph.EventID }
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			return err
		}
		f.count("news")
		if len(got.News.Events) == 0 {
			continue
		}
		if _, err := st.Write(frame(map[string]any{"want": got.News.Events[:min(len(got.News.Events), 200)]})); err != nil {
			return err
		}
		if _, err := st.readFrame(); err != nil {
			return err
		}
		f.count("chunks")
	}
	return nil
}

// joinAndLeave joins the public room as a new identity each time, and leaves it.
func joinAndLeave(ctx context.Context, f *flood, worker int) error {
	s, err := f.session(ctx, nil, worker%2 == 0)
	if err != nil {
		return err
	}
	defer s.close()
	m, err := s.join(ctx, "mallory")
	if err != nil {
		return err
	}
	room := path(string(f.room))
	status, raw, err := s.call(ctx, "GET", "/_matrix/federation/v1/make_leave/"+room+"/"+path(string(m.user)), nil)
	if err != nil {
		return err
	}
	var made struct{ Event json.RawMessage }
	if err := json.Unmarshal(raw, &made); err != nil || status != http.StatusOK {
		return fmt.Errorf("make_leave: %d %.200s", status, raw)
	}
	e, err := eventgraph.Finish(eventgraph.DefaultRoomVersion, made.Event, time.Now().UnixMilli(), s.signs)
	if err != nil {
		return err
	}
	status, raw, err = s.call(ctx, "PUT", "/_matrix/federation/v2/send_leave/"+room+"/"+path(string(e.ID())), json.RawMessage(e.Raw()))
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("send_leave: %d %.200s", status, raw)
	}
	return err
}

// memberStreams opens streams on the member's connection, as fast as it can.
func memberStreams(ctx context.Context, f *flood, worker int) error {
	proto := []protocol.ID{federation, meeting, records, "/nobody/knows/1"}[worker%4]
	st, err := f.member.open(ctx, proto)
	if err != nil {
		if f.member.conn.IsClosed() {
			return errors.New("the connection was closed")
		}
		return err
	}
	_, _ = st.Write([]byte("GET "))
	if worker%2 == 0 {
		st.reset()
	} else {
		defer st.reset()
		_, _ = st.r.ReadByte()
	}
	return nil
}

// memberGarbage sends requests that are signed and wrong.
func memberGarbage(ctx context.Context, f *flood, _ int) error {
	_, _, err := f.member.call(ctx, "PUT", fmt.Sprint("/_matrix/federation/v1/send/g", f.next()), json.RawMessage(deepJSON()))
	return err
}

// deepJSON is as deep as what is signed may be, many times over.
func deepJSON() string {
	const depth = 900
	one := strings.Repeat("[", depth) + strings.Repeat("]", depth)
	return "[" + strings.Repeat(one+",", 100) + one + "]"
}

// inventedID is the ID of no event.
func inventedID() eventgraph.EventID {
	return eventgraph.EventID("$" + encodeID(randomBytes(32)))
}
