package clientapi

import (
	"encoding/json"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const slidingPath = "/unstable/org.matrix.simplified_msc3575/sync"

// What tests read of a sliding sync answer.
type (
	slidingBody struct {
		Pos        string
		Lists      map[string]struct{ Count int }
		Rooms      map[eventgraph.RoomID]slidRoom
		Extensions struct {
			ToDevice *struct {
				NextBatch string `json:"next_batch"`
				Events    []syncedEvent
			} `json:"to_device"`
			E2EE *struct {
				DeviceLists struct {
					Changed []eventgraph.UserID
					Left    []eventgraph.UserID
				} `json:"device_lists"`
				OneTimeKeys    map[string]int `json:"device_one_time_keys_count"`
				UnusedFallback []string       `json:"device_unused_fallback_key_types"`
			}
			AccountData *struct {
				Global []syncedEvent
				Rooms  map[eventgraph.RoomID][]syncedEvent
			} `json:"account_data"`
			Receipts, Typing *struct {
				Rooms map[eventgraph.RoomID]syncedEvent
			}
		}
		raw string
	}
	slidRoom struct {
		Initial    bool
		Membership string
		Name       *string
		Avatar     *string
		Heroes     []struct {
			User eventgraph.UserID `json:"user_id"`
			Name string            `json:"displayname"`
		}
		IsDM     *bool         `json:"is_dm"`
		Bump     int           `json:"bump_stamp"`
		State    []syncedEvent `json:"required_state"`
		Timeline []syncedEvent
		Expanded bool `json:"unstable_expanded_timeline"`
		Limited  bool
		Prev     string        `json:"prev_batch"`
		Live     int           `json:"num_live"`
		Joined   int           `json:"joined_count"`
		Invited  int           `json:"invited_count"`
		Stripped []syncedEvent `json:"invite_state"`
		Unread   *int          `json:"notification_count"`
	}
)

// slide makes a call of sliding sync; body is JSON.
func (c client) slide(pos, body string, params ...string) slidingBody {
	c.s.t.Helper()
	a := c.trySlide(200, pos, body, params...)
	out := slidingBody{raw: a.raw}
	if err := json.Unmarshal([]byte(a.raw), &out); err != nil {
		c.s.t.Fatal(err)
	}
	if out.Pos == "" {
		c.s.t.Fatal("no pos")
	}
	return out
}

func (c client) trySlide(want int, pos, body string, params ...string) answer {
	c.s.t.Helper()
	query := url.Values{}
	if pos != "" {
		query.Set("pos", pos)
	}
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		query.Set(name, value)
	}
	return c.call(want, "POST", slidingPath+"?"+query.Encode(), body)
}

func (b slidingBody) ids() []string {
	ids := []string{}
	for id := range b.Rooms {
		ids = append(ids, string(id))
	}
	slices.Sort(ids)
	return ids
}

func idsOf(rooms ...eventgraph.RoomID) []string {
	ids := []string{}
	for _, id := range rooms {
		ids = append(ids, string(id))
	}
	slices.Sort(ids)
	return ids
}

// window is a request for one list "all".
func window(from, to, limit int, state, more string) string {
	return fmt.Sprintf(`{"conn_id":"room-list","lists":{"all":{"ranges":[[%d,%d]],"timeline_limit":%d,"required_state":[%s]}}%s}`, from, to, limit, state, more)
}

// A window gives the rooms of the newest activity; each is sent once, then what changes in it; a larger window brings those that are new to it.
func TestSlidingWindow(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	var rooms []eventgraph.RoomID
	for i := range 5 {
		room := alice.room()
		alice.state(room, "m.room.name", "", fmt.Sprintf(`{"name":"room %d"}`, i))
		alice.say(room, fmt.Sprint("hello ", i))
		rooms = append(rooms, room)
	}
	bob.join(rooms[4])
	first := alice.slide("", window(0, 1, 1, `["m.room.create",""],["m.room.member","$LAZY"],["m.room.member","$ME"]`, ""))
	if first.Lists["all"].Count != 5 {
		t.Errorf("count %d", first.Lists["all"].Count)
	}
	wantList(t, "rooms", first.ids(), idsOf(rooms[4], rooms[3])...)
	room := first.Rooms[rooms[4]]
	if !room.Initial || !room.Limited || room.Prev == "" || room.Live != 0 || room.Joined != 2 || *room.Name != "room 4" || room.Membership != "join" || room.Bump == 0 {
		t.Errorf("a room: %+v", room)
	}
	wantList(t, "timeline", names(room.Timeline), "member/bob")
	wantList(t, "state", names(room.State), "create/", "member/alice", "member/bob")

	// Nothing new; the same again for one who comes again with the same pos.
	for range 2 {
		if again := alice.slide(first.Pos, window(0, 1, 1, `["m.room.create",""]`, "")); len(again.Rooms) != 0 || again.Lists["all"].Count != 5 {
			t.Errorf("nothing new: %s", again.raw)
		}
	}
	more := alice.slide(first.Pos, window(0, 4, 1, `["m.room.create",""]`, ""))
	wantList(t, "rooms of a larger window", more.ids(), idsOf(rooms[:3]...)...)

	bob.say(rooms[4], "news")
	bob.say(rooms[4], "more news")
	next := alice.slide(more.Pos, window(0, 4, 10, `["m.room.create",""]`, ""))
	if room := next.Rooms[rooms[4]]; room.Initial || room.Live != 2 || room.Name != nil || len(room.State) != 0 {
		t.Errorf("an update: %+v", room)
	}
	// The client retries, and gets the same.
	again := alice.slide(more.Pos, window(0, 4, 10, `["m.room.create",""]`, ""))
	if !slices.Equal(again.ids(), next.ids()) || len(again.Rooms[rooms[4]].Timeline) != len(next.Rooms[rooms[4]].Timeline) {
		t.Errorf("retried: %s, before: %s", again.raw, next.raw)
	}
	// A pos serves where a token of /sync does.
	alice.call(200, "GET", "/v3/rooms/"+string(rooms[4])+"/messages?dir=b&from="+url.QueryEscape(again.Pos), nil)
}

// Rooms that fall out of a window bring what was missed when they come in again.
func TestSlidingWindowAgain(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	a, b := alice.room(), alice.room()
	list := window(0, 0, 5, `["m.room.topic",""]`, "")
	pos := alice.slide("", list).Pos // b
	alice.say(a, "one")
	body := alice.slide(pos, list)
	wantList(t, "rooms", body.ids(), string(a))
	alice.state(b, "m.room.topic", "", `{"topic":"new"}`)
	alice.say(b, "two")
	alice.say(a, "three")
	body = alice.slide(body.Pos, list)
	wantList(t, "a goes on", names(body.Rooms[a].Timeline), "three")
	alice.say(b, "four")
	body = alice.slide(body.Pos, list)
	wantList(t, "rooms", body.ids(), string(b))
	if body.Rooms[b].Initial {
		t.Error("a known room comes as new")
	}
	wantList(t, "what b brings", names(body.Rooms[b].Timeline), "topic/", "two", "four")
	wantList(t, "state of b", names(body.Rooms[b].State), "topic/")
}

// A pos survives a restart, also the one before the newest; one that was never given, or to another device or connection, is unknown.
func TestSlidingPos(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	list := window(0, 9, 1, "", "")
	first := alice.slide("", list)
	alice.say(room, "one")
	s.restart()
	s.API.sliding = newSlidingConnections()
	second := alice.slide(first.Pos, list)
	wantList(t, "after a restart", names(second.Rooms[room].Timeline), "one")
	other := alice.room()
	third := alice.slide(second.Pos, list)
	wantList(t, "new", third.ids(), string(other))
	s.API.sliding = newSlidingConnections()
	wantList(t, "again", alice.slide(second.Pos, list).ids(), string(other))

	unknown := func(c client, pos, body string) {
		t.Helper()
		if a := c.trySlide(400, pos, body); a.code() != "M_UNKNOWN_POS" {
			t.Errorf("%s: %s", pos, a.raw)
		}
	}
	unknown(alice, third.Pos, list) // another answer was made in its place
	unknown(alice, "nonsense", list)
	unknown(bob, second.Pos, list)
	unknown(s.logIn("alice", ""), second.Pos, list)
	unknown(alice, second.Pos, strings.Replace(list, "room-list", "other", 1))
	alice.slide("", list)
	unknown(alice, second.Pos, list) // begun anew
}

// Filters choose rooms.
func TestSlidingFilters(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	plain, secret, direct := alice.room(), alice.room(), alice.room()
	alice.state(secret, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
	space := eventgraph.RoomID(alice.call(200, "POST", "/v3/createRoom", map[string]any{"creation_content": map[string]any{"type": "m.space"}}).text("room_id"))
	alice.state(space, "m.space.child", string(plain), `{"via":["x"]}`)
	alice.state(space, "m.space.child", string(secret), `{}`)
	invited := bob.room()
	bob.state(invited, "m.room.member", string(alice.user), `{"membership":"invite"}`)
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/m.direct", map[string]any{string(bob.user): []any{direct}})
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/rooms/"+string(plain)+"/tags/u.work", map[string]any{})
	for filter, want := range map[string][]string{
		`{}`:                             idsOf(plain, secret, direct, space, invited),
		`{"is_dm":true}`:                 idsOf(direct),
		`{"is_dm":false}`:                idsOf(plain, secret, space, invited),
		`{"is_encrypted":true}`:          idsOf(secret),
		`{"is_invite":true}`:             idsOf(invited),
		`{"is_invite":false}`:            idsOf(plain, secret, direct, space),
		`{"room_types":["m.space"]}`:     idsOf(space),
		`{"room_types":[null]}`:          idsOf(plain, secret, direct, invited),
		`{"not_room_types":["m.space"]}`: idsOf(plain, secret, direct, invited),
		`{"room_types":["m.space"],"not_room_types":["m.space"]}`: {},
		fmt.Sprintf(`{"spaces":[%q]}`, space):                     idsOf(plain),
		`{"tags":["u.work"]}`:                                     idsOf(plain),
		`{"not_tags":["u.work"]}`:                                 idsOf(secret, direct, space, invited),
	} {
		body := alice.slide("", `{"lists":{"l":{"ranges":[[0,20]],"timeline_limit":0,"filters":`+filter+`}}}`)
		wantList(t, filter, body.ids(), want...)
		if body.Lists["l"].Count != len(want) {
			t.Errorf("%s counts %d", filter, body.Lists["l"].Count)
		}
	}
}

// required_state: single events, wildcards, and those of lazily loaded members.
func TestSlidingRequiredState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	carol.join(room)
	alice.state(room, "x.pin", "1", `{}`)
	alice.state(room, "x.pin", "2", `{}`)
	bob.say(room, "hello")
	for state, want := range map[string][]string{
		``:                                    {},
		`["x.pin","1"]`:                       {"x.pin/"},
		`["x.pin","*"]`:                       {"x.pin/", "x.pin/"},
		`["*",""]`:                            {"create/", "join_rules/", "power_levels/"},
		`["m.room.member","$ME"]`:             {"member/alice"},
		`["m.room.member","$LAZY"]`:           {"member/bob"},
		`["m.room.member","*"]`:               {"member/alice", "member/bob", "member/carol"},
		`["*","*"],["m.room.member","$LAZY"]`: {"create/", "join_rules/", "member/bob", "power_levels/", "x.pin/", "x.pin/"},
		`["m.room.name",""],["m.room.member","$LAZY"],["m.room.member","$ME"]`: {"member/alice", "member/bob"},
	} {
		body := alice.slide("", window(0, 0, 1, state, ""))
		got := names(body.Rooms[room].State)
		slices.Sort(got)
		wantList(t, state, got, want...)
	}
	all := alice.slide("", `{"lists":{"l":{"timeline_limit":0,"required_state":[["*","*"]]}}}`)
	if len(all.Rooms[room].State) != 8 {
		t.Errorf("all state: %s", names(all.Rooms[room].State))
	}

	// More is asked for: what the client has not got comes at once.
	few := alice.slide("", window(0, 0, 1, `["x.pin","1"]`, ""))
	more := alice.slide(few.Pos, window(0, 0, 1, `["x.pin","*"]`, ""), "timeout=5000")
	if got := more.Rooms[room]; got.Initial || len(got.State) != 2 || len(got.Timeline) != 0 {
		t.Errorf("more state: %+v", got)
	}
	alice.state(room, "x.pin", "2", `{"new":true}`)
	next := alice.slide(more.Pos, window(0, 0, 1, `["x.pin","*"]`, ""))
	if got := next.Rooms[room]; len(got.State) != 1 || *got.State[0].StateKey != "2" {
		t.Errorf("changed state: %+v", got)
	}
}

// A subscription with a larger timeline_limit sends the newest events again; one to a room that is not the user's is passed over.
func TestSlidingSubscription(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room, foreign := alice.room(), bob.room()
	for i := range 5 {
		alice.say(room, fmt.Sprint(i))
	}
	first := alice.slide("", window(0, 9, 1, "", ""))
	wantList(t, "timeline", names(first.Rooms[room].Timeline), "4")
	subscribe := fmt.Sprintf(`,"room_subscriptions":{%q:{"timeline_limit":3,"required_state":[["m.room.create",""]]},%q:{"timeline_limit":3}}`, room, foreign)
	second := alice.slide(first.Pos, window(0, 9, 1, "", subscribe), "timeout=5000")
	wantList(t, "rooms", second.ids(), string(room))
	got := second.Rooms[room]
	wantList(t, "expanded", names(got.Timeline), "2", "3", "4")
	wantList(t, "state", names(got.State), "create/")
	if !got.Expanded || !got.Limited || got.Initial || got.Live != 0 {
		t.Errorf("%+v", got)
	}
	alice.say(room, "5")
	third := alice.slide(second.Pos, window(0, 9, 1, "", subscribe))
	if got := third.Rooms[room]; got.Expanded || len(got.Timeline) != 1 || got.Live != 1 {
		t.Errorf("%+v", got)
	}
	// Without the subscription and with it again: the client has these events.
	fourth := alice.slide(third.Pos, window(0, 9, 1, "", ""))
	if fifth := alice.slide(fourth.Pos, window(0, 9, 1, "", subscribe)); len(fifth.Rooms) != 0 {
		t.Errorf("sent again: %s", fifth.raw)
	}
}

// A room goes from invited to joined to left.
func TestSlidingMembership(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	list := window(0, 9, 5, `["m.room.member","$ME"]`, "")
	pos := bob.slide("", list).Pos
	room := alice.room()
	alice.say(room, "before")
	invite := func() { alice.state(room, "m.room.member", string(bob.user), `{"membership":"invite"}`) }
	invite()
	step := func(what string) slidRoom {
		t.Helper()
		body := bob.slide(pos, list)
		pos = body.Pos
		got, ok := body.Rooms[room]
		if !ok {
			t.Fatalf("%s is not told: %s", what, body.raw)
		}
		return got
	}
	got := step("the invite")
	if got.Membership != "invite" || !got.Initial || len(got.Stripped) == 0 || len(got.Timeline) != 0 || len(got.State) != 0 {
		t.Errorf("invite: %+v", got)
	}
	if !slices.Contains(names(got.Stripped), "member/bob") {
		t.Errorf("stripped state: %s", names(got.Stripped))
	}
	bob.join(room)
	got = step("the join")
	if got.Membership != "join" || !got.Initial || len(got.Stripped) != 0 || got.Joined != 2 || !slices.Contains(names(got.State), "member/bob") || len(got.Heroes) != 1 || got.Heroes[0].User != alice.user {
		t.Errorf("join: %+v", got)
	}
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
	got = step("leaving")
	if got.Membership != "leave" || got.Initial || !slices.Equal(names(got.Timeline), []string{"member/bob"}) || !slices.Equal(names(got.State), []string{"member/bob"}) {
		t.Errorf("leave: %+v", got)
	}
	alice.say(room, "after")
	if body := bob.slide(pos, list); len(body.Rooms) != 0 {
		t.Errorf("what is none of bob's business any more: %s", body.raw)
	}
	if body := bob.slide("", list); len(body.Rooms) != 0 {
		t.Errorf("a room that was left comes to a new connection: %s", body.raw)
	}
	invite()
	if got = step("another invite"); got.Membership != "invite" || len(got.Stripped) == 0 {
		t.Errorf("invite: %+v", got)
	}
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
	if got = step("rejecting"); got.Membership != "leave" || slices.Contains(names(got.Timeline), "after") {
		t.Errorf("reject: %+v", got)
	}
	// Who is put out is told so, on a new connection too.
	bob.join(room)
	alice.state(room, "m.room.member", string(bob.user), `{"membership":"ban"}`)
	alice.say(room, "not for bob")
	got = bob.slide("", list).Rooms[room]
	if got.Membership != "ban" || slices.Contains(names(got.Timeline), "not for bob") {
		t.Errorf("ban: %+v", got)
	}
}

// What the room list shows changes with the room: name, avatar, is_dm, bump_stamp, counts.
func TestSlidingRoomFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	list := window(0, 9, 5, "", "")
	body := alice.slide("", list)
	got := body.Rooms[room]
	if got.Name != nil || got.Avatar != nil || got.IsDM != nil || len(got.Heroes) != 1 || got.Heroes[0].User != bob.user {
		t.Errorf("at first: %+v", got)
	}
	bump := got.Bump
	alice.state(room, "m.room.name", "", `{"name":"N"}`)
	alice.state(room, "m.room.avatar", "", `{"url":"mxc://x/y"}`)
	body = alice.slide(body.Pos, list)
	if got = body.Rooms[room]; got.Name == nil || *got.Name != "N" || got.Avatar == nil || *got.Avatar != "mxc://x/y" || got.Bump != 0 || len(got.Heroes) != 0 {
		t.Errorf("named: %+v", got)
	}
	bob.say(room, "hello")
	alice.state(room, "m.room.name", "", `{}`)
	body = alice.slide(body.Pos, list)
	if got = body.Rooms[room]; got.Name == nil || *got.Name != "" || got.Bump <= bump || *got.Unread != 1 || len(got.Heroes) != 1 {
		t.Errorf("unnamed: %+v", got)
	}
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/m.direct", map[string]any{string(bob.user): []any{room}})
	body = alice.slide(body.Pos, list, "timeout=5000")
	if got = body.Rooms[room]; got.IsDM == nil || !*got.IsDM || len(got.Timeline) != 0 {
		t.Errorf("direct: %+v", got)
	}
	id := bob.say(room, "again")
	body = alice.slide(body.Pos, list)
	alice.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(id), map[string]any{})
	body = alice.slide(body.Pos, list, "timeout=5000")
	if got = body.Rooms[room]; got.Unread == nil || *got.Unread != 0 {
		t.Errorf("read: %s", body.raw)
	}
}

// Extensions: account data, receipts, typing, of the rooms in the windows.
func TestSlidingRoomExtensions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	id := alice.say(room, "hello")
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(id), map[string]any{})
	tag := func(name string) {
		alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/rooms/"+string(room)+"/tags/"+name, map[string]any{})
	}
	tag("u.a")
	on := window(0, 9, 1, "", `,"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true},"typing":{"enabled":true}}`)
	first := alice.slide("", window(0, 9, 1, "", ""))
	if x := first.Extensions; x.AccountData != nil || x.Receipts != nil || x.Typing != nil || x.E2EE != nil || x.ToDevice != nil {
		t.Errorf("not asked for: %s", first.raw)
	}
	body := alice.slide(first.Pos, on, "timeout=5000") // they are asked for now
	x := body.Extensions
	if (list{x.AccountData.Global}).find("m.push_rules") == nil || (list{x.AccountData.Rooms[room]}).find("m.tag") == nil {
		t.Errorf("account data: %s", body.raw)
	}
	if x.Receipts.Rooms[room].Type != "" { // bob's is at an event that this answer does not show
		t.Errorf("receipts: %s", body.raw)
	}
	if fresh := alice.slide("", on); fresh.Extensions.Receipts.Rooms[room].Content[string(id)] == nil {
		t.Errorf("bob's receipt is missing: %s", fresh.raw)
	}
	body = alice.slide("", on)
	quiet := alice.slide(body.Pos, on)
	if x := quiet.Extensions; len(x.AccountData.Global)+len(x.AccountData.Rooms)+len(x.Receipts.Rooms)+len(x.Typing.Rooms) != 0 {
		t.Errorf("nothing new: %s", quiet.raw)
	}
	tag("u.b")
	body = alice.slide(quiet.Pos, on, "timeout=5000")
	if (list{body.Extensions.AccountData.Rooms[room]}).find("m.tag") == nil || len(body.Extensions.AccountData.Global) != 0 {
		t.Errorf("a new tag: %s", body.raw)
	}
	next := alice.say(room, "more")
	body = alice.slide(body.Pos, on)
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(next), map[string]any{})
	body = alice.slide(body.Pos, on, "timeout=5000")
	if body.Extensions.Receipts.Rooms[room].Content[string(next)] == nil || len(body.Rooms) != 0 {
		t.Errorf("a new receipt: %s", body.raw)
	}
	bob.call(200, "PUT", "/v3/rooms/"+string(room)+"/typing/"+string(bob.user), map[string]any{"typing": true})
	body = alice.slide(body.Pos, on, "timeout=5000")
	if users := body.Extensions.Typing.Rooms[room].Content["user_ids"]; fmt.Sprint(users) != fmt.Sprint([]any{string(bob.user)}) {
		t.Errorf("typing: %s", body.raw)
	}
	s.restart()
	body = alice.slide(body.Pos, on, "timeout=5000")
	if users := body.Extensions.Typing.Rooms[room].Content["user_ids"]; fmt.Sprint(users) != "[]" {
		t.Errorf("typing after a restart: %s", body.raw)
	}
	// Of lists and subscriptions that an extension does not name it tells nothing.
	off := window(0, 9, 1, "", `,"extensions":{"account_data":{"enabled":true,"lists":[]},"typing":{"enabled":true,"lists":["other"],"rooms":["*"]}}`)
	if body := alice.slide("", off); len(body.Extensions.AccountData.Rooms) != 0 || len(body.Extensions.AccountData.Global) == 0 {
		t.Errorf("not asked for: %s", body.raw)
	}
}

// Extensions of end-to-end encryption: a connection of its own, without rooms. To-device messages go when their token comes back.
func TestSlidingEncryptionExtensions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	ask := func(since string) string {
		return `{"conn_id":"encryption","extensions":{"e2ee":{"enabled":true},"to_device":{"enabled":true` + since + `}}}`
	}
	first := alice.slide("", ask(""))
	if x := first.Extensions; x.ToDevice == nil || x.ToDevice.NextBatch == "" || len(x.ToDevice.Events) != 0 || x.E2EE == nil || x.E2EE.OneTimeKeys == nil || x.E2EE.UnusedFallback == nil {
		t.Fatalf("at first: %s", first.raw)
	}
	since := func(b slidingBody) string { return fmt.Sprintf(`,"since":%q`, b.Extensions.ToDevice.NextBatch) }
	send := func(n int) {
		bob.call(200, "PUT", fmt.Sprint("/v3/sendToDevice/m.x/", n), map[string]any{"messages": map[string]any{
			string(alice.user): map[string]any{string(alice.device): map[string]any{"body": fmt.Sprint(n)}},
		}})
	}
	send(1)
	body := alice.slide(first.Pos, ask(since(first)), "timeout=5000")
	if len(body.Extensions.ToDevice.Events) != 1 {
		t.Fatalf("a message: %s", body.raw)
	}
	if again := alice.slide(body.Pos, ask(since(first))); len(again.Extensions.ToDevice.Events) != 1 {
		t.Errorf("not acknowledged, but gone: %s", again.raw)
	}
	send(2)
	send(3)
	next := alice.slide(body.Pos, ask(since(body)+`,"limit":1`))
	if e := next.Extensions.ToDevice.Events; len(e) != 1 || e[0].Content["body"] != "2" {
		t.Errorf("the next: %s", next.raw)
	}
	if anew := alice.slide("", ask("")); len(anew.Extensions.ToDevice.Events) != 2 {
		t.Errorf("the first was acknowledged: %s", anew.raw)
	}
	bob.join(room)
	met := alice.slide(next.Pos, ask(since(next)))
	wantList(t, "device lists", []string{fmt.Sprint(met.Extensions.E2EE.DeviceLists.Changed)}, fmt.Sprint([]eventgraph.UserID{bob.user}))
	if a := alice.trySlide(400, "", ask(`,"since":"x"`)); a.code() != "M_INVALID_PARAM" {
		t.Error(a.raw)
	}
	if other := bob.slide("", ask(since(met))); len(other.Extensions.ToDevice.Events) != 0 {
		t.Error("another's token")
	}
}

// A long poll ends with what it waits for, and does not with what concerns others.
func TestSlidingLongPoll(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room, foreign := alice.room(), bob.room()
	list := window(0, 9, 1, "", "")
	pos := alice.slide("", list).Pos
	got := make(chan slidingBody)
	go func() { got <- alice.slide(pos, list, "timeout=20000") }()
	bob.say(foreign, "none of alice's business")
	alice.say(room, "hello")
	body := <-got
	wantList(t, "rooms", body.ids(), string(room))
	wantList(t, "timeline", names(body.Rooms[room].Timeline), "hello")
	if quiet := alice.slide(body.Pos, list, "timeout=30"); len(quiet.Rooms) != 0 || quiet.Lists["all"].Count != 1 {
		t.Errorf("the time is over: %s", quiet.raw)
	}
	// A new room of the user's ends it too.
	go func() { got <- alice.slide(body.Pos, list, "timeout=20000") }()
	alice.join(foreign)
	wantList(t, "rooms", (<-got).ids(), string(foreign))
}

// A connection has one call at a time: a new one ends the one before, and goes on from the same pos.
func TestSlidingOneCallAtATime(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	list := window(0, 9, 1, "", "")
	pos := alice.slide("", list).Pos
	first := make(chan answer)
	go func() {
		first <- s.send("POST", "/_matrix/client"+slidingPath+"?timeout=60000&pos="+pos, alice.token, list)
	}()
	for waiting := false; !waiting; runtime.Gosched() {
		s.sliding.mu.Lock()
		waiting = len(s.sliding.calls) == 1
		s.sliding.mu.Unlock()
	}
	if second := alice.slide(pos, list); len(second.Rooms) != 0 {
		t.Errorf("the second call: %s", second.raw)
	}
	if a := <-first; a.status != 400 || a.code() != "M_UNKNOWN_POS" {
		t.Errorf("the first call: %d %s", a.status, a.raw)
	}
	alice.say(room, "hello")
	wantList(t, "rooms", alice.slide(pos, list).ids(), string(room))
}

func TestSlidingRefusals(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	if a := s.send("POST", "/_matrix/client"+slidingPath, "", `{}`); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Error(a.raw)
	}
	many := map[string]any{}
	for i := range maxSlidingLists + 1 {
		many[fmt.Sprint("!", i)] = map[string]any{"timeline_limit": 1}
	}
	lists, _ := json.Marshal(map[string]any{"lists": many})
	subscriptions, _ := json.Marshal(map[string]any{"room_subscriptions": many})
	names := func(n int) string { return `["` + strings.Repeat(`x","`, n-1) + `x"]` }
	for _, filter := range []string{"room_types", "not_room_types", "spaces", "tags", "not_tags"} {
		body := `{"lists":{"a":{"timeline_limit":1,"required_state":[],"filters":{"` + filter + `":`
		if a := alice.trySlide(400, "", body+names(maxFilterNames+1)+`}}}}`); a.code() != "M_INVALID_PARAM" {
			t.Errorf("%s: %s", filter, a.raw)
		}
		alice.trySlide(200, "", body+names(maxFilterNames)+`}}}}`)
	}
	for _, extension := range []string{"account_data", "receipts", "typing"} {
		for _, list := range []string{"lists", "rooms"} {
			body := `{"extensions":{"` + extension + `":{"enabled":true,"` + list + `":`
			if a := alice.trySlide(400, "", body+names(maxCovered+1)+`}}}`); a.code() != "M_INVALID_PARAM" {
				t.Errorf("%s %s: %s", extension, list, a.raw)
			}
			alice.trySlide(200, "", body+names(maxCovered)+`}}}`)
		}
	}
	for body, code := range map[string]string{
		`{`:                                     "M_NOT_JSON",
		`{"lists":[]}`:                          "M_BAD_JSON",
		`{"lists":{"a":null}}`:                  "M_BAD_JSON",
		`{"room_subscriptions":{"x":{}}}`:       "M_BAD_JSON",
		`{"lists":{"a":{"ranges":[[2,1]]}}}`:    "M_INVALID_PARAM",
		`{"lists":{"a":{"timeline_limit":-1}}}`: "M_INVALID_PARAM",
		`{"conn_id":"` + strings.Repeat("x", maxConnID+1) + `"}`: "M_INVALID_PARAM",
		string(lists):         "M_INVALID_PARAM",
		string(subscriptions): "M_INVALID_PARAM",
	} {
		if a := alice.trySlide(400, "", body); a.code() != code {
			t.Errorf("%.60s: %s, want %s", body, a.raw, code)
		}
	}
	if a := alice.trySlide(400, "", `{}`, "timeout=x"); a.code() != "M_INVALID_PARAM" {
		t.Error(a.raw)
	}
	features := s.send("GET", "/_matrix/client/versions", "", nil).body["unstable_features"].(map[string]any)
	if features["org.matrix.simplified_msc3575"] != true {
		t.Errorf("unstable_features: %v", features)
	}
}

// A device that has gone leaves no connection behind.
func TestSlidingConnectionGoesWithItsDevice(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	alice.room()
	alice.slide("", window(0, 9, 1, "", ""))
	held := func() (err error) {
		return s.Store.View(func(r *store.Reader) error {
			_, err := r.SlidingConnection(alice.user, alice.device, "room-list")
			return err
		})
	}
	if err := held(); err != nil {
		t.Fatal(err)
	}
	alice.call(200, "POST", "/v3/logout", nil)
	if err := held(); !isNotFound(err) {
		t.Errorf("after logging out: %v", err)
	}
}

// A connection that grows forgets the rooms that have been out of its windows for longest.
func TestSlidingForgetsRooms(t *testing.T) {
	t.Parallel()
	rooms, delta := map[eventgraph.RoomID]sentRoom{}, map[eventgraph.RoomID]sentRoom{}
	for i := range maxSlidingRooms {
		rooms[eventgraph.RoomID(fmt.Sprint(i))] = sentRoom{Stage: inside, Live: i == 0, UpTo: store.Position(i)}
	}
	delta["new"], delta["newer"] = sentRoom{Stage: inside, Live: true}, sentRoom{Stage: inside, Live: true}
	forgetRooms(rooms, delta)
	if len(delta) != 4 || delta["1"].Stage != notSent || delta["2"].Stage != notSent || len(withDelta(rooms, delta)) != maxSlidingRooms {
		t.Errorf("%v", delta)
	}
}
