package clientapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What tests read of a sync answer.
type (
	syncBody struct {
		NextBatch   string `json:"next_batch"`
		AccountData list   `json:"account_data"`
		Presence    list   `json:"presence"`
		ToDevice    list   `json:"to_device"`
		DeviceLists struct {
			Changed []eventgraph.UserID
			Left    []eventgraph.UserID
		} `json:"device_lists"`
		OneTimeKeys    map[string]int `json:"device_one_time_keys_count"`
		UnusedFallback []string       `json:"device_unused_fallback_key_types"`
		Rooms          struct {
			Join   map[eventgraph.RoomID]syncedRoom
			Leave  map[eventgraph.RoomID]syncedRoom
			Invite map[eventgraph.RoomID]struct {
				State list `json:"invite_state"`
			}
			Knock map[eventgraph.RoomID]struct {
				State list `json:"knock_state"`
			}
		}
		raw string
	}
	syncedRoom struct {
		Timeline struct {
			Events    []syncedEvent
			Limited   bool
			PrevBatch string `json:"prev_batch"`
		}
		State         *list
		StateAfter    *list `json:"state_after"`
		UnstableAfter *list `json:"org.matrix.msc4222.state_after"`
		Ephemeral     list
		AccountData   list `json:"account_data"`
		Summary       *struct {
			Heroes  []eventgraph.UserID `json:"m.heroes"`
			Joined  int                 `json:"m.joined_member_count"`
			Invited int                 `json:"m.invited_member_count"`
		}
		Unread struct {
			Notifications int `json:"notification_count"`
		} `json:"unread_notifications"`
	}
	list        struct{ Events []syncedEvent }
	syncedEvent struct {
		ID       eventgraph.EventID `json:"event_id"`
		Room     eventgraph.RoomID  `json:"room_id"`
		Type     string
		Sender   eventgraph.UserID
		StateKey *string `json:"state_key"`
		Content  map[string]any
		Unsigned struct {
			Age           *int64
			TransactionID string             `json:"transaction_id"`
			PrevContent   map[string]any     `json:"prev_content"`
			Replaces      eventgraph.EventID `json:"replaces_state"`
			Membership    string
			Because       *syncedEvent `json:"redacted_because"`
			Relations     struct {
				Replace *syncedEvent `json:"m.replace"`
				Thread  *struct {
					Latest       syncedEvent `json:"latest_event"`
					Count        int
					Participated bool `json:"current_user_participated"`
				} `json:"m.thread"`
				Reference *struct{ Chunk []syncedEvent } `json:"m.reference"`
			} `json:"m.relations"`
		}
	}
)

// names lists what the events are: a message's body, or type and state key.
func names(events []syncedEvent) []string {
	out := []string{}
	for _, e := range events {
		switch body, _ := e.Content["body"].(string); {
		case e.Type == "m.room.message":
			out = append(out, body)
		case e.StateKey != nil:
			out = append(out, strings.TrimPrefix(e.Type, "m.room.")+"/"+eventgraph.UserID(*e.StateKey).Localpart())
		default:
			out = append(out, e.Type)
		}
	}
	return out
}

func (l list) names() []string { return names(l.Events) }

func (l list) find(eventType string) *syncedEvent {
	for i, e := range l.Events {
		if e.Type == eventType {
			return &l.Events[i]
		}
	}
	return nil
}

// sync syncs from a token ("" = from the beginning) with further parameters "name=value".
func (c client) sync(since string, params ...string) syncBody {
	c.s.t.Helper()
	query := url.Values{}
	if since != "" {
		query.Set("since", since)
	}
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		query.Set(name, value)
	}
	a := c.call(200, "GET", "/v3/sync?"+query.Encode(), nil)
	body := syncBody{raw: a.raw}
	if err := json.Unmarshal([]byte(a.raw), &body); err != nil {
		c.s.t.Fatal(err)
	}
	if body.NextBatch == "" {
		c.s.t.Fatal("no next_batch")
	}
	return body
}

func wantList(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func text(body string) string { return fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, body) }

func (c client) say(room eventgraph.RoomID, body string) eventgraph.EventID {
	return c.message(room, text(body))
}

func (c client) state(room eventgraph.RoomID, eventType, key, content string) eventgraph.EventID {
	c.s.t.Helper()
	return c.event(rooms.Draft{Room: room, Type: eventType, StateKey: &key, Content: json.RawMessage(content)})
}

func (c client) member(room eventgraph.RoomID, who client, membership string) eventgraph.EventID {
	c.s.t.Helper()
	return c.state(room, "m.room.member", string(who.user), fmt.Sprintf(`{"membership":%q}`, membership))
}

const smallTimeline = `filter={"room":{"timeline":{"limit":2}}}`

func TestSyncInitialAndIncremental(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.say(room, "one")

	first := alice.sync("")
	got := first.Rooms.Join[room]
	wantList(t, "timeline", names(got.Timeline.Events), "create/", "member/alice", "power_levels/", "join_rules/", "one")
	wantList(t, "state", got.State.names())
	if got.Timeline.Limited {
		t.Error("the whole room is limited")
	}
	if got.Summary == nil || got.Summary.Joined != 1 {
		t.Errorf("summary %+v", got.Summary)
	}
	if first.AccountData.find("m.push_rules") == nil {
		t.Error("no m.push_rules")
	}
	if e := got.Timeline.Events[4]; e.Room != "" || e.Unsigned.Age == nil || e.Unsigned.Membership != "join" {
		t.Errorf("message: %+v", e)
	}

	if next := alice.sync(first.NextBatch); len(next.Rooms.Join)+len(next.AccountData.Events) > 0 {
		t.Errorf("nothing happened, but: %s", next.raw)
	}
	alice.say(room, "two")
	alice.state(room, "m.room.topic", "", `{"topic":"x"}`)
	next := alice.sync(first.NextBatch)
	got = next.Rooms.Join[room]
	wantList(t, "timeline", names(got.Timeline.Events), "two", "topic/")
	wantList(t, "state", got.State.names())
	if got.Timeline.Limited || got.Summary != nil {
		t.Errorf("limited %v, summary %v", got.Timeline.Limited, got.Summary)
	}
}

func TestSyncLimitedTellsTheGapsState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	since := alice.sync("").NextBatch
	alice.state(room, "m.room.topic", "", `{"topic":"old"}`)
	alice.state(room, "m.room.name", "", `{"name":"n"}`)
	alice.say(room, "one")
	alice.say(room, "two")
	alice.state(room, "m.room.topic", "", `{"topic":"new"}`)

	before := alice.sync(since, smallTimeline)
	got := before.Rooms.Join[room]
	wantList(t, "timeline", names(got.Timeline.Events), "two", "topic/")
	wantList(t, "state", got.State.names(), "topic/", "name/")
	if topic := got.State.find("m.room.topic"); topic.Content["topic"] != "old" {
		t.Errorf("state at the start has topic %v", topic.Content)
	}
	if !got.Timeline.Limited {
		t.Error("not limited")
	}
	err := s.Store.View(func(r *store.Reader) error {
		order, err := s.parseToken(r, room, got.Timeline.PrevBatch)
		if err != nil {
			return err
		}
		return r.Timeline(room, order, true, func(e *store.StoredEvent) (bool, error) {
			if body := string(e.Content()); !strings.Contains(body, `"one"`) {
				t.Errorf("before prev_batch stands %s", body)
			}
			return false, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}

	for _, param := range []string{"use_state_after", "org.matrix.msc4222.use_state_after"} {
		after := alice.sync(since, smallTimeline, param+"=true").Rooms.Join[room]
		state := after.StateAfter
		if param != "use_state_after" {
			state = after.UnstableAfter
		}
		if after.State != nil || state == nil {
			t.Fatalf("%s: %+v", param, after)
		}
		wantList(t, param, state.names(), "name/", "topic/")
		if topic := state.find("m.room.topic"); topic.Content["topic"] != "new" {
			t.Errorf("%s: topic %v", param, topic.Content)
		}
	}
}

func TestSyncStateHiddenByTheTimelineFilterIsTold(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	since := alice.sync("").NextBatch
	alice.say(room, "one")
	alice.state(room, "m.room.name", "", `{"name":"n"}`)
	got := alice.sync(since, `filter={"room":{"timeline":{"types":["m.room.mess*"]}}}`).Rooms.Join[room]
	wantList(t, "timeline", names(got.Timeline.Events), "one")
	wantList(t, "state", got.State.names(), "name/")
}

func TestSyncJoinInviteLeave(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.state(room, "m.room.name", "", `{"name":"hall"}`)
	alice.say(room, "before")
	token := bob.sync("").NextBatch

	alice.member(room, bob, "invite")
	body := bob.sync(token)
	invite, ok := body.Rooms.Invite[room]
	if !ok || len(body.Rooms.Join) > 0 {
		t.Fatalf("no invite: %s", body.raw)
	}
	if name := invite.State.find("m.room.name"); name == nil || name.Content["name"] != "hall" || name.ID != "" {
		t.Errorf("invite_state: %+v", invite.State)
	}
	if invite.State.find("m.room.create") == nil || invite.State.find("m.room.member") == nil {
		t.Errorf("invite_state: %q", invite.State.names())
	}
	if _, ok := bob.sync("").Rooms.Invite[room]; !ok {
		t.Error("an initial sync has not the invite")
	}

	token = body.NextBatch
	bob.member(room, bob, "join")
	body = bob.sync(token)
	joined := body.Rooms.Join[room]
	wantList(t, "timeline of the newly joined", names(joined.Timeline.Events)[:2], "create/", "member/alice")
	if len(body.Rooms.Invite) > 0 || joined.Summary.Joined != 2 {
		t.Errorf("after the join: %s", body.raw)
	}
	if !slices.Contains(body.DeviceLists.Changed, alice.user) {
		t.Error("whom one now shares a room with is not in device_lists.changed")
	}

	token = body.NextBatch
	alice.say(room, "last")
	alice.member(room, bob, "ban")
	alice.say(room, "secret")
	body = bob.sync(token)
	left, ok := body.Rooms.Leave[room]
	if !ok {
		t.Fatalf("the ban is not told: %s", body.raw)
	}
	wantList(t, "timeline of the banned", names(left.Timeline.Events), "last", "member/bob")
	if strings.Contains(body.raw, "secret") || !slices.Contains(body.DeviceLists.Left, alice.user) {
		t.Errorf("after the ban: %s", body.raw)
	}
	if again := bob.sync(body.NextBatch); len(again.Rooms.Leave) > 0 {
		t.Errorf("told twice: %s", again.raw)
	}
	if first := bob.sync(""); len(first.Rooms.Leave) > 0 {
		t.Error("an initial sync tells of rooms left")
	}
	left = bob.sync("", `filter={"room":{"include_leave":true}}`).Rooms.Leave[room]
	if n := names(left.Timeline.Events); len(n) == 0 || n[len(n)-1] != "member/bob" {
		t.Errorf("include_leave: %q", n)
	}
}

func TestSyncLazyMembers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	carol.join(room)
	alice.state(room, "m.room.name", "", `{"name":"no heroes"}`)
	alice.say(room, "1")
	bob.say(room, "2")
	lazy := func(limit int, extra string) string {
		return fmt.Sprintf(`filter={"room":{"state":{"lazy_load_members":true%s},"timeline":{"limit":%d}}}`, extra, limit)
	}
	members := func(l *list) (out []string) {
		for _, n := range l.names() {
			if strings.HasPrefix(n, "member/") {
				out = append(out, n)
			}
		}
		slices.Sort(out)
		return out
	}

	first := carol.sync("", lazy(1, ""))
	wantList(t, "the sender and oneself", members(first.Rooms.Join[room].State), "member/bob", "member/carol")

	bob.say(room, "3")
	next := carol.sync(first.NextBatch, lazy(10, ""))
	wantList(t, "redundant", members(next.Rooms.Join[room].State))
	wantList(t, "asked for", members(carol.sync(first.NextBatch, lazy(10, `,"include_redundant_members":true`)).Rooms.Join[room].State), "member/bob")

	alice.say(room, "4")
	token := next.NextBatch
	next = carol.sync(token, lazy(10, ""))
	wantList(t, "a new sender", members(next.Rooms.Join[room].State), "member/alice")
	// That answer may have been lost: the client comes again with the old token.
	next = carol.sync(token, lazy(10, ""))
	wantList(t, "repeated", members(next.Rooms.Join[room].State), "member/alice")

	alice.state(room, "m.room.member", string(alice.user), `{"membership":"join","displayname":"A"}`)
	bob.say(room, "5")
	next = carol.sync(next.NextBatch, lazy(1, ""))
	wantList(t, "changed in the gap", members(next.Rooms.Join[room].State), "member/alice")
}

func TestSyncFilters(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room, other := alice.room(), alice.room()
	bob.join(room)
	alice.say(room, "a")
	bob.say(room, "b")
	id := alice.call(200, "POST", "/v3/user/"+url.PathEscape(string(alice.user))+"/filter", map[string]any{
		"room": map[string]any{"not_rooms": []any{other}, "timeline": map[string]any{
			"types": []string{"m.room.message"}, "not_senders": []any{bob.user},
		}},
		"presence": map[string]any{"not_types": []string{"*"}}, "account_data": map[string]any{"types": []string{}},
	}).text("filter_id")
	body := alice.sync("", "filter="+id)
	if len(body.Rooms.Join) != 1 || len(body.Presence.Events)+len(body.AccountData.Events) > 0 {
		t.Errorf("filtered: %s", body.raw)
	}
	wantList(t, "timeline", names(body.Rooms.Join[room].Timeline.Events), "a")
	alice.call(404, "GET", "/v3/sync?filter=nosuch", nil)
	alice.call(400, "GET", "/v3/sync?filter=%7B%22room%22:7%7D", nil)
}

// Clients that want the state alone ask for no timeline; the token leads back from its end.
func TestSyncWithoutTimeline(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	const none = `filter={"room":{"timeline":{"limit":0}}}`
	since := ""
	for _, topic := range []string{"one", "two"} {
		alice.say(room, "said before "+topic)
		alice.state(room, "m.room.topic", "", fmt.Sprintf(`{"topic":%q}`, topic))
		body := alice.sync(since, none)
		got := body.Rooms.Join[room]
		if len(got.Timeline.Events) > 0 || !got.Timeline.Limited {
			t.Errorf("%s: timeline %+v", topic, got.Timeline)
		}
		if e := got.State.find("m.room.topic"); e == nil || e.Content["topic"] != topic {
			t.Errorf("%s: state %s", topic, body.raw)
		}
		back := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=1&from="+got.Timeline.PrevBatch, nil)
		if !strings.Contains(back.raw, fmt.Sprintf(`{"topic":%q}`, topic)) {
			t.Errorf("%s: back from prev_batch: %s", topic, back.raw)
		}
		since = body.NextBatch
	}
}

// Who meets learns how present the others are, though nothing has changed in that.
func TestSyncPresenceOfUsersNewlyMet(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alices, bobs := alice.sync("").NextBatch, bob.sync("").NextBatch
	for range 2 { // past what the first calls themselves changed
		alices, bobs = alice.sync(alices, "set_presence=offline").NextBatch, bob.sync(bobs, "set_presence=offline").NextBatch
	}
	bob.join(room)
	for who, other := range map[client]client{alice: bob, bob: alice} {
		since := alices
		if who == bob {
			since = bobs
		}
		body := who.sync(since, "set_presence=offline")
		if events := body.Presence.Events; len(events) != 1 || events[0].Sender != other.user {
			t.Errorf("%s is told %s", who.user, body.raw)
		}
		if again := who.sync(body.NextBatch, "set_presence=offline"); len(again.Presence.Events) > 0 {
			t.Errorf("%s is told again: %s", who.user, again.raw)
		}
	}
}

func TestSyncTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	token := alice.sync("").NextBatch
	parsed, err := parseSyncToken(token)
	if err != nil || parsed.String() != token {
		t.Fatalf("%s read as %s, %v", token, parsed, err)
	}
	old := parsed
	old.incarnation[0]++
	future := parsed
	future.pos += 1000
	for name, full := range map[string]syncToken{"of an older incarnation": old, "from the future": future} {
		if _, ok := alice.sync(full.String()).Rooms.Join[room]; !ok {
			t.Errorf("a token %s does not answer a full sync", name)
		}
	}
	for _, bad := range []string{"x", "s", "s1_2_3_4_5", strings.Replace(token, "_", "_x", 1), "t00000000_1"} {
		if a := alice.call(400, "GET", "/v3/sync?since="+bad, nil); a.code() != "M_INVALID_PARAM" {
			t.Errorf("%s: %s", bad, a.raw)
		}
	}
}

func TestSyncLongPollWakes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	mute := `filter={"presence":{"types":[]}}`
	wakes := []struct {
		name string
		do   func()
		seen func(syncBody) bool
	}{
		{"message", func() { bob.say(room, "hi") }, func(b syncBody) bool { return len(b.Rooms.Join[room].Timeline.Events) == 1 }},
		{"typing", func() { s.Ephemeral.SetTyping(room, bob.user, time.Minute) }, func(b syncBody) bool {
			return b.Rooms.Join[room].Ephemeral.find("m.typing") != nil
		}},
		{"receipt", func() {
			s.update(func(tx *store.Tx) error {
				_, err := tx.PutReceipt(&store.Receipt{Room: room, User: bob.user, Type: "m.read", Event: "$x", TS: 5})
				return err
			})
		}, func(b syncBody) bool { return b.Rooms.Join[room].Ephemeral.find("m.receipt") != nil }},
		{"account data", func() {
			alice.call(200, "PUT", "/v3/user/"+url.PathEscape(string(alice.user))+"/account_data/m.direct", map[string]any{})
		}, func(b syncBody) bool { return b.AccountData.find("m.direct") != nil }},
		{"to-device", func() {
			bob.call(200, "PUT", "/v3/sendToDevice/m.x/1", map[string]any{"messages": map[string]any{
				string(alice.user): map[string]any{"*": map[string]any{}}}})
		}, func(b syncBody) bool { return b.ToDevice.find("m.x") != nil }},
	}
	for _, w := range wakes {
		token := alice.sync("", mute).NextBatch
		token = alice.sync(token, mute).NextBatch // the first has taken in presence and typing
		got := make(chan syncBody, 1)
		go func() {
			defer close(got) // also where sync fails the test
			got <- alice.sync(token, mute, "timeout=30000")
		}()
		w.do()
		if body := <-got; !w.seen(body) {
			t.Errorf("%s: %s", w.name, body.raw)
		}
	}
}

func (s *testServer) update(f func(tx *store.Tx) error) {
	s.t.Helper()
	if _, err := s.Store.Update(context.Background(), f); err != nil {
		s.t.Fatal(err)
	}
}

func TestSyncTimeoutAnswersWithNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	alice.room()
	token := alice.sync(alice.sync("").NextBatch).NextBatch
	body := alice.sync(token, "timeout=10")
	if len(body.Rooms.Join) > 0 || body.UnusedFallback == nil {
		t.Errorf("%s", body.raw)
	}
}

func TestSyncPrivateReceiptsAndIgnoredUsers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	event := alice.say(room, "x")
	since := alice.sync("").NextBatch
	s.update(func(tx *store.Tx) error {
		for _, c := range []client{alice, bob} {
			if _, err := tx.PutReceipt(&store.Receipt{Room: room, User: c.user, Type: "m.read.private", Event: event, TS: 1}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, body := range []syncBody{alice.sync(since), alice.sync("")} {
		receipt := body.Rooms.Join[room].Ephemeral.find("m.receipt")
		if receipt == nil || !strings.Contains(body.raw, "m.read.private") {
			t.Fatalf("her own: %s", body.raw)
		}
		users := receipt.Content[string(event)].(map[string]any)["m.read.private"].(map[string]any)
		if len(users) != 1 || users[string(alice.user)] == nil {
			t.Errorf("private receipts of %v", users)
		}
	}

	alice.call(200, "PUT", "/v3/user/"+url.PathEscape(string(alice.user))+"/account_data/m.ignored_user_list",
		map[string]any{"ignored_users": map[string]any{string(bob.user): map[string]any{}}})
	since = alice.sync("").NextBatch
	bob.say(room, "noise")
	bob.state(room, "m.room.member", string(bob.user), `{"membership":"join","displayname":"B"}`)
	theirs := bob.room()
	bob.member(theirs, alice, "invite")
	body := alice.sync(since)
	wantList(t, "of an ignored user", names(body.Rooms.Join[room].Timeline.Events), "member/bob")
	if len(body.Rooms.Invite) > 0 {
		t.Error("an ignored user's invite")
	}
}

// A place has room for one receipt of a user: that for no thread counts more than that for a thread.
func TestSyncShowsUnthreadedReceiptsFirst(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	root := alice.say(room, "root")
	path := "/v3/rooms/" + string(room) + "/receipt/m.read/" + string(root)
	since := alice.sync("").NextBatch
	for _, body := range []string{`{}`, `{"thread_id":"main"}`} {
		alice.call(200, "POST", path, body)
		for _, from := range []string{"", since} {
			if raw := alice.sync(from).raw; !strings.Contains(raw, `{"m.read":{"`+string(alice.user)+`":{"ts":`) || strings.Contains(raw, "thread_id") {
				t.Errorf("after %s: %s", body, raw)
			}
		}
	}
}

func TestSyncUnsigned(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	second := s.logIn("alice", "OTHER")
	room := alice.room()
	since := alice.sync("").NextBatch
	alice.event(rooms.Draft{Room: room, Type: "m.room.message", Content: json.RawMessage(text("hi")),
		Txn: &store.ClientTxn{User: alice.user, Device: alice.device, TxnID: "t1"}})
	victim := alice.say(room, "regret")
	alice.event(rooms.Draft{Room: room, Type: "m.room.redaction", Content: json.RawMessage(`{"reason":"r"}`), Redacts: victim})
	alice.event(rooms.Draft{Room: room, Type: rooms.DummyEvent, Content: json.RawMessage(`{}`)})

	events := alice.sync(since).Rooms.Join[room].Timeline.Events
	if len(events) != 3 || events[0].Unsigned.TransactionID != "t1" {
		t.Fatalf("own device: %+v", events)
	}
	if b := events[1].Unsigned.Because; b == nil || len(events[1].Content) > 0 || b.Content["redacts"] != string(victim) {
		t.Errorf("redacted: %+v", events[1])
	}
	if id := second.sync(since).Rooms.Join[room].Timeline.Events[0].Unsigned.TransactionID; id != "" {
		t.Errorf("another device is told transaction ID %q", id)
	}
}

// State beside a timeline names what it replaced, too (CS API, UnsignedData, replaces_state).
func TestSyncReplacedState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	first := alice.state(room, "m.room.topic", "", `{"topic":"first"}`)
	alice.state(room, "m.room.topic", "", `{"topic":"second"}`)
	alice.state(room, "m.room.avatar", "", `{}`)
	since := alice.sync("").NextBatch
	last := alice.state(room, "m.room.avatar", "", `{"url":"mxc://x/y"}`)
	const one = `filter={"room":{"timeline":{"limit":1}}}`
	if e := alice.sync(since).Rooms.Join[room].Timeline.Events; len(e) != 1 || e[0].ID != last || e[0].Unsigned.Replaces == "" {
		t.Errorf("in the timeline: %+v", e)
	}
	alice.say(room, "after it")
	list := alice.sync("", one).Rooms.Join[room].State
	for eventType, want := range map[string]bool{"m.room.topic": true, "m.room.avatar": true, "m.room.create": false} {
		e := list.find(eventType)
		if e == nil || (e.Unsigned.Replaces != "") != want || eventType == "m.room.topic" && e.Unsigned.Replaces != first || len(e.Unsigned.PrevContent) > 0 {
			t.Errorf("%s: %+v", eventType, e)
		}
	}
	slid := alice.slide("", window(0, 9, 1, `["m.room.topic",""]`, "")).Rooms[room]
	if len(slid.State) != 1 || slid.State[0].Unsigned.Replaces != first {
		t.Errorf("sliding sync: %+v", slid.State)
	}
}

// A client that has joined a direct chat learns from its join who invited it.
func TestSyncWhoInvitedToADirectChat(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.call(200, "POST", "/v3/createRoom", map[string]any{"preset": "trusted_private_chat", "is_direct": true, "invite": []string{string(bob.user)}}).text("room_id")
	bob.join(eventgraph.RoomID(room))
	joined := bob.call(200, "GET", "/v3/rooms/"+room+"/members?membership=join", nil)
	var members struct {
		Chunk []struct {
			Sender   string
			Unsigned struct {
				Sender  string `json:"prev_sender"`
				Content struct {
					Membership string
					Direct     bool `json:"is_direct"`
				} `json:"prev_content"`
			}
		}
	}
	if err := json.Unmarshal([]byte(joined.raw), &members); err != nil {
		t.Fatal(err)
	}
	for _, m := range members.Chunk {
		if u := m.Unsigned; m.Sender == string(bob.user) && u.Sender == string(alice.user) && u.Content.Membership == "invite" && u.Content.Direct {
			return
		}
	}
	t.Errorf("bob's join does not tell: %s", joined.raw)
}

func TestSyncBundledAggregations(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	since := alice.sync("").NextBatch
	root := alice.say(room, "root")
	relate := func(c client, relType string, to eventgraph.EventID, more string) eventgraph.EventID {
		return c.message(room, fmt.Sprintf(`{"body":"child","m.relates_to":{"rel_type":%q,"event_id":%q}%s}`, relType, to, more))
	}
	relate(alice, "m.replace", root, `,"m.new_content":{"body":"better"}`)
	relate(bob, "m.replace", root, `,"m.new_content":{"body":"forged"}`) // not his message
	relate(bob, "m.thread", root, "")
	reply := relate(bob, "m.thread", root, "")
	relate(bob, "m.replace", reply, `,"m.new_content":{"body":"edited reply"}`)
	reference := relate(bob, "m.reference", root, "")

	if e := alice.sync(since).Rooms.Join[room].Timeline.Events[0]; e.Unsigned.Relations.Thread != nil {
		t.Error("aggregated though the timeline has all children")
	}
	events := alice.sync("", `filter={"room":{"timeline":{"limit":7}}}`).Rooms.Join[room].Timeline.Events
	got := events[0].Unsigned.Relations
	if got.Replace == nil || got.Replace.Content["m.new_content"].(map[string]any)["body"] != "better" {
		t.Errorf("m.replace: %+v", got.Replace)
	}
	if got.Thread == nil || got.Thread.Count != 2 || !got.Thread.Participated || got.Thread.Latest.ID != reply || got.Thread.Latest.Unsigned.Relations.Replace == nil {
		t.Errorf("m.thread: %+v", got.Thread)
	}
	if got.Reference == nil || len(got.Reference.Chunk) != 1 || got.Reference.Chunk[0].ID != reference {
		t.Errorf("m.reference: %+v", got.Reference)
	}
}

// fork accepts an event of the client's that rests on base, as if it came from a part of the network that knew no more.
func (c client) fork(base eventgraph.EventID, eventType string, stateKey *string, content string) eventgraph.EventID {
	t := c.s.t
	t.Helper()
	var event *eventgraph.Event
	err := c.s.Store.View(func(r *store.Reader) error {
		e, err := r.Event(base)
		if err != nil {
			return err
		}
		room, err := r.Room(e.RoomID())
		if err != nil {
			return err
		}
		var auth []eventgraph.EventID
		for _, tuple := range []eventgraph.StateTuple{{Type: "m.room.power_levels"}, {Type: "m.room.member", Key: string(c.user)}} {
			id, _, err := eventgraph.OpenTrie(r, e.StateAfter).Get(tuple)
			if err != nil {
				return err
			}
			auth = append(auth, id)
		}
		event, err = eventgraph.Build(room.Version, eventgraph.Draft{
			RoomID: room.ID, Type: eventType, StateKey: stateKey, Sender: c.user, Content: json.RawMessage(content),
			PrevEvents: []eventgraph.EventID{base}, AuthEvents: auth, Depth: e.Depth() + 1, OriginServerTS: c.s.time().UnixMilli(),
		}, c.s.key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.s.Rooms.Accept(context.Background(), event, rooms.Basis{}); err != nil || got.Verdict != store.Accepted {
		t.Fatalf("fork: %+v, %v", got, err)
	}
	return event.ID()
}

func TestSyncInvitesFromAfar(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	since := alice.sync("").NextBatch
	const room, knocked = eventgraph.RoomID("!far"), eventgraph.RoomID("!door")
	put := func(m store.Member) {
		t.Helper()
		s.update(func(tx *store.Tx) (err error) {
			m.User, m.Outside = alice.user, true
			if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: m.Room, User: m.User}); err != nil {
				return err
			}
			return tx.PutMember(&m)
		})
	}
	stripped := []byte(`[{"type":"m.room.name","state_key":"","sender":"@b:far","content":{"name":"far"},"event_id":"$x","unsigned":{}},
		{"type":"m.room.message","sender":"@b:far","content":{}}, 7]`)
	member := fmt.Sprintf(`{"type":"m.room.member","state_key":%q,"sender":"@b:far","content":{"membership":"invite"},"signatures":{}}`, alice.user)
	put(store.Member{Room: room, Membership: "invite", Stripped: stripped, Invite: []byte(member), Stranger: true}) // like any other
	put(store.Member{Room: knocked, Membership: "knock", Stripped: stripped})
	body := alice.sync(since)
	wantList(t, "invite_state", body.Rooms.Invite[room].State.names(), "name/", "member/alice")
	wantList(t, "knock_state", body.Rooms.Knock[knocked].State.names(), "name/")
	if strings.Contains(body.raw, "signatures") || strings.Contains(body.raw, "$x") {
		t.Errorf("passed through: %s", body.raw)
	}
	if strings.Contains(body.raw, "notification") {
		t.Errorf("an invite counts as unread: %s", body.raw)
	}
	// Its end is told with the event, if there is one.
	kick := fmt.Sprintf(`{"type":"m.room.member","state_key":%q,"sender":"@b:far","content":{"membership":"leave","reason":"r"},"origin_server_ts":7,"depth":9}`, alice.user)
	put(store.Member{Room: room, Membership: "leave", Event: "$kick", Invite: []byte(kick)})
	put(store.Member{Room: knocked, Membership: "leave"})
	next := alice.sync(body.NextBatch)
	if left, ok := next.Rooms.Leave[knocked]; !ok || len(left.Timeline.Events) > 0 || len(next.Rooms.Invite)+len(next.Rooms.Knock) > 0 {
		t.Errorf("after withdrawing: %s", next.raw)
	}
	events := next.Rooms.Leave[room].Timeline.Events
	if len(events) != 1 || events[0].ID != "$kick" || events[0].Content["reason"] != "r" || events[0].Sender != "@b:far" || strings.Contains(next.raw, "depth") {
		t.Errorf("after being kicked: %s", next.raw)
	}
	if left := alice.sync("", `filter={"room":{"include_leave":true}}`).Rooms.Leave; len(left) != 2 || len(left[room].Timeline.Events) != 1 {
		t.Errorf("a first sync with left rooms: %+v", left)
	}
	for _, filter := range []string{`{"room":{"include_leave":true}}`, `{"room":{"include_leave":true,"timeline":{"limit":0}}}`} {
		for _, token := range []string{"", body.NextBatch} {
			left := alice.sync(token, "filter="+filter, "use_state_after=true").Rooms.Leave[room]
			if left.StateAfter == nil || !slices.Equal(left.StateAfter.names(), []string{"member/alice"}) {
				t.Errorf("%s: state_after: %+v", filter, left)
			}
		}
	}
	unseen := alice.sync(body.NextBatch, `filter={"room":{"timeline":{"types":["m.room.message"]}}}`).Rooms.Leave[room]
	if len(unseen.Timeline.Events) != 0 || len(unseen.State.Events) != 1 {
		t.Errorf("hidden from the timeline: %+v", unseen)
	}
}

func TestSyncAfterAHealedPartition(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	base := alice.say(room, "base")
	alice.state(room, "m.room.topic", "", `{"topic":"ours"}`)
	token := alice.sync("").NextBatch

	// An event that does not know the topic must not take it from the client.
	theirs := alice.fork(base, "m.room.message", nil, text("theirs"))
	for _, param := range []string{"use_state_after=true", "full_state=false"} {
		got := alice.sync(token, param).Rooms.Join[room]
		wantList(t, "timeline", names(got.Timeline.Events), "theirs")
		for _, l := range []*list{got.State, got.StateAfter} {
			if l != nil {
				wantList(t, "state with "+param, l.names())
			}
		}
	}

	// Of two topics, resolution picks one; what the client is told at the end is the room's.
	empty := ""
	alice.fork(theirs, "m.room.topic", &empty, `{"topic":"theirs"}`)
	state, err := s.Rooms.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	winner, err := state.Event(eventgraph.StateTuple{Type: "m.room.topic"})
	if err != nil {
		t.Fatal(err)
	}
	got := alice.sync(token, "use_state_after=true").Rooms.Join[room]
	told := got.StateAfter.find("m.room.topic")
	if wins := strings.Contains(string(winner.Content()), "theirs"); wins && (told == nil || told.ID != winner.ID()) || !wins && told != nil {
		t.Errorf("the room's topic is %s, the client is told %+v", winner.Content(), told)
	}
	full := alice.sync("", "use_state_after=true").Rooms.Join[room].StateAfter.find("m.room.topic")
	if full == nil || full.ID != winner.ID() {
		t.Errorf("a full sync tells %+v", full)
	}
	// After one more message, the client that has followed event by event and one that begins anew agree.
	alice.say(room, "merged")
	if again := alice.sync("", "use_state_after=true").Rooms.Join[room].StateAfter.find("m.room.topic"); again == nil || again.ID != winner.ID() {
		t.Errorf("after the merge %+v", again)
	}
}

func TestSyncUnreadCounts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	since := alice.sync("").NextBatch
	event := bob.say(room, "hi")
	body := alice.sync(since)
	if n := body.Rooms.Join[room].Unread.Notifications; n != 1 {
		t.Errorf("%d unread", n)
	}
	s.update(func(tx *store.Tx) error {
		_, err := tx.PutReceipt(&store.Receipt{Room: room, User: alice.user, Type: "m.read", Event: event, TS: 1})
		return err
	})
	got, ok := alice.sync(body.NextBatch).Rooms.Join[room]
	if !ok || got.Unread.Notifications != 0 {
		t.Errorf("after reading: %v %+v", ok, got.Unread)
	}
}

func TestWildcard(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"m.room.*", "m.room.message", true}, {"m.room.*", "m.roommessage", false}, {"*", "", true}, {"a*b*c", "aXbYc", true},
		{"a*b*c", "abc", true}, {"a*bc", "abXbc", true}, {"a*b", "a", false}, {"ab*ba", "aba", false}, {"x", "xy", false},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.s, got)
		}
	}
}

func FuzzSyncToken(f *testing.F) {
	f.Add(syncToken{pos: 7, toDevice: 3, boot: 9, ephemeral: 2, device: 1}.String())
	f.Add("s0_1_2")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := parseSyncToken(s)
		if err != nil {
			return
		}
		again, err := parseSyncToken(token.String())
		if err != nil || again != token {
			t.Errorf("%q: %v, again %v, %v", s, token, again, err)
		}
	})
}
