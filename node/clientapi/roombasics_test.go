package clientapi

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// stateOf is the content of a state event.
func (c client) stateOf(room, event string) map[string]any {
	c.s.t.Helper()
	return c.call(200, "GET", "/v3/rooms/"+room+"/state/"+event, nil).body
}

// What createRoom is asked for is the room's state afterwards, in the order that the spec gives (CS API, createRoom).
func TestCreateRoomFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for name, c := range map[string]struct {
		body, event string
		want        string // content, as JSON
	}{
		"name":                          {`{"name":"Test Room"}`, "m.room.name", `{"name":"Test Room"}`},
		"topic":                         {`{"topic":"T"}`, "m.room.topic", `{"m.topic":{"m.text":[{"body":"T"}]},"topic":"T"}`},
		"topic by initial_state":        {`{"initial_state":[{"type":"m.room.topic","content":{"topic":"T"}}]}`, "m.room.topic", `{"topic":"T"}`},
		"initial_state, then topic":     {`{"topic":"T","initial_state":[{"type":"m.room.topic","content":{"topic":"S"}}]}`, "m.room.topic", `{"m.topic":{"m.text":[{"body":"T"}]},"topic":"T"}`},
		"preset, then initial_state":    {`{"preset":"public_chat","initial_state":[{"type":"m.room.join_rules","content":{"join_rule":"knock"}}]}`, "m.room.join_rules", `{"join_rule":"knock"}`},
		"creation_content":              {`{"room_version":"11","creation_content":{"m.federate":false}}`, "m.room.create", `{"m.federate":false,"room_version":"11"}`},
		"version in creation_content":   {`{"room_version":"11","creation_content":{"room_version":"6"}}`, "m.room.create", `{"room_version":"11"}`},
		"private":                       {`{"visibility":"private"}`, "m.room.join_rules", `{"join_rule":"invite"}`},
		"public":                        {`{"visibility":"public"}`, "m.room.join_rules", `{"join_rule":"public"}`},
		"invited, and in a direct chat": {`{"is_direct":true,"invite":["` + string(bob.user) + `"]}`, "m.room.member/" + string(bob.user), `{"is_direct":true,"membership":"invite"}`},
	} {
		room := alice.call(200, "POST", "/v3/createRoom", c.body).text("room_id")
		got := alice.stateOf(room, c.event)
		delete(got, "displayname")
		if raw, _ := json.Marshal(got); string(raw) != c.want {
			t.Errorf("%s: %s, want %s", name, raw, c.want)
		}
	}
	for name, c := range map[string]struct{ body, code string }{
		"a numeric version":  {`{"room_version":1}`, "M_BAD_JSON"},
		"an unknown version": {`{"room_version":"ahfgwjyerhgiuveisbruvybseyrugvi"}`, "M_UNSUPPORTED_ROOM_VERSION"},
		"no such preset":     {`{"preset":"x"}`, "M_INVALID_PARAM"},
		"no user":            {`{"invite":["bob"]}`, "M_INVALID_PARAM"},
	} {
		if a := alice.call(400, "POST", "/v3/createRoom", c.body); a.code() != c.code {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	if len(bob.sync("").Rooms.Invite) != 1 {
		t.Error("the invited user is not told")
	}
	if rooms := alice.call(200, "GET", "/v3/joined_rooms", nil).body["joined_rooms"].([]any); len(rooms) != 10 {
		t.Errorf("alice is in %d rooms", len(rooms))
	}
}

// State is read as content or as the whole event, and by who is not in the room not at all.
func TestReadState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.call(200, "POST", "/v3/createRoom", `{"name":"N","preset":"public_chat"}`).text("room_id")
	self := "m.room.member/" + url.PathEscape(string(alice.user))
	if got := alice.stateOf(room, self); got["membership"] != "join" {
		t.Errorf("own membership: %v", got)
	}
	if got := alice.stateOf(room, self+"?format=event"); got["type"] != "m.room.member" || got["room_id"] != room || got["sender"] != string(alice.user) ||
		got["content"].(map[string]any)["membership"] != "join" || got["event_id"] == "" {
		t.Errorf("as an event: %v", got)
	}
	for event, field := range map[string]string{"m.room.power_levels": "events", "m.room.name": "name", "m.room.join_rules": "join_rule"} {
		if got := alice.stateOf(room, event); got[field] == nil {
			t.Errorf("%s: %v", event, got)
		}
	}
	path := "/v3/rooms/" + room
	for name, c := range map[string]struct {
		who    client
		path   string
		status int
		code   string
	}{
		"none of that type":              {alice, path + "/state/m.room.topic", 404, "M_NOT_FOUND"},
		"from outside":                   {bob, path + "/state/m.room.name", 403, "M_FORBIDDEN"},
		"all of it from outside":         {bob, path + "/state", 403, "M_FORBIDDEN"},
		"members from outside":           {bob, path + "/members", 403, "M_FORBIDDEN"},
		"joined members from outside":    {bob, path + "/joined_members", 403, "M_FORBIDDEN"},
		"messages from outside":          {bob, path + "/messages?dir=b", 403, "M_FORBIDDEN"},
		"messages of no room":            {alice, "/v3/rooms/!nowhere:" + string(s.Server) + "/messages?dir=b", 403, "M_FORBIDDEN"},
		"aliases from outside":           {bob, path + "/aliases", 403, "M_FORBIDDEN"},
		"a state event that is no state": {alice, path + "/state/m.room.member/x", 404, "M_NOT_FOUND"},
	} {
		if a := c.who.call(c.status, "GET", c.path, nil); a.code() != c.code {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	for event, content := range map[string]map[string]any{"m.room.topic": {"topic": "T"}, "m.room.name": {"name": "M"}} {
		alice.call(200, "PUT", path+"/state/"+event, content)
		if got := alice.stateOf(room, event); fmt.Sprint(got) != fmt.Sprint(content) {
			t.Errorf("%s was set to %v, and is %v", event, content, got)
		}
	}
	bob.join(eventgraph.RoomID(room))
	if got := bob.call(200, "GET", path+"/joined_members", nil).body["joined"].(map[string]any); len(got) != 2 {
		t.Errorf("joined: %v", got)
	}
	bob.call(200, "POST", path+"/leave", nil)
	if a := bob.call(403, "GET", path+"/joined_members", nil); a.code() != "M_FORBIDDEN" {
		t.Errorf("joined members after leaving: %s", a.raw)
	}
}

// Who may not invite, kick or ban is refused, and so is what makes no sense.
func TestMembershipRefused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, eve := s.newClient("alice"), s.newClient("bob"), s.newClient("eve")
	room := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat"}`).text("room_id")
	bob.join(eventgraph.RoomID(room))
	bob.call(200, "POST", "/v3/rooms/"+room+"/leave", nil)
	for name, c := range map[string]struct {
		who    client
		action string
		target eventgraph.UserID
	}{
		"kick who has left":            {alice, "kick", bob.user},
		"kick who never came":          {alice, "kick", eve.user},
		"ban by one who is not there":  {eve, "ban", alice.user},
		"kick by one who is not there": {eve, "kick", alice.user},
		"invite by one who has left":   {bob, "invite", eve.user},
		"invite oneself":               {alice, "invite", alice.user},
		"unban who is not banned":      {alice, "unban", bob.user},
	} {
		if a := c.who.call(403, "POST", "/v3/rooms/"+room+"/"+c.action, map[string]any{"user_id": c.target}); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	// A creator who has left can be invited again by who stayed with the power for it.
	bob.join(eventgraph.RoomID(room))
	alice.call(200, "PUT", "/v3/rooms/"+room+"/state/m.room.power_levels/", map[string]any{"users": map[string]int{string(bob.user): 100}, "invite": 50})
	if a := bob.call(403, "POST", "/v3/rooms/"+room+"/invite", map[string]any{"user_id": alice.user}); a.code() != "M_FORBIDDEN" {
		t.Errorf("invite who is in the room: %s", a.raw)
	}
	alice.call(200, "POST", "/v3/rooms/"+room+"/leave", nil)
	bob.call(200, "POST", "/v3/rooms/"+room+"/invite", map[string]any{"user_id": alice.user})
	if got := alice.sync("").Rooms.Invite; len(got) != 1 {
		t.Errorf("alice is invited to %v", got)
	}
	bob.call(200, "POST", "/v3/rooms/"+room+"/ban", map[string]any{"user_id": eve.user})
	if got := bob.stateOf(room, "m.room.member/"+url.PathEscape(string(eve.user))); got["membership"] != "ban" {
		t.Errorf("who was banned: %v", got)
	}
}

// Power levels are read and set, without any before them too, and a lower default takes away the power of those who are not named.
func TestPowerLevels(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for _, version := range []string{"11", "12"} {
		room := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","room_version":"`+version+`"}`).text("room_id")
		bob.join(eventgraph.RoomID(room))
		const levels = "m.room.power_levels"
		path := "/v3/rooms/" + room + "/state/" + levels
		users := map[string]int{}
		if version == "11" {
			users[string(alice.user)] = 100
		}
		alice.call(200, "PUT", path, map[string]any{"users": users, "users_default": 100})
		bob.call(200, "PUT", "/v3/rooms/"+room+"/state/m.room.name", `{"name":"bob's"}`)
		alice.call(200, "PUT", path, map[string]any{"users": users, "users_default": 40})
		if got := alice.stateOf(room, levels); got["users_default"] != 40.0 {
			t.Errorf("version %s: %v", version, got)
		}
		if a := bob.call(403, "PUT", "/v3/rooms/"+room+"/state/m.room.name", `{"name":"again"}`); a.code() != "M_FORBIDDEN" {
			t.Errorf("version %s, after the demotion: %s", version, a.raw)
		}
		alice.call(200, "PUT", path, map[string]any{"users": users})
		alice.call(200, "PUT", path, map[string]any{"users": users, "ban": 60})
	}
}

// An event is too large with its 64 KiB, state as any other (CS API, Size limits).
func TestEventsTooLarge(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := "/v3/rooms/" + string(alice.room())
	body := map[string]any{"msgtype": "m.text", "body": strings.Repeat("and they dont stop coming ", 2700)}
	for _, path := range []string{room + "/send/m.room.message/1", room + "/state/marker/x"} {
		if a := alice.call(413, "PUT", path, body); a.code() != "M_TOO_LARGE" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
}

// A filter of messages may ask for those with files only, or for those without (CS API, RoomEventFilter, contains_url).
func TestMessagesWithURL(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	plain := alice.say(room, "hi")
	file := alice.message(room, `{"body":"test.png","msgtype":"m.file","url":"mxc://x/y"}`)
	for filter, want := range map[string]eventgraph.EventID{
		`{"contains_url":true}`:                             file,
		`{"contains_url":false,"types":["m.room.message"]}`: plain,
	} {
		a := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&filter="+url.QueryEscape(filter), nil)
		chunk := a.body["chunk"].([]any)
		if len(chunk) != 1 || chunk[0].(map[string]any)["event_id"] != string(want) {
			t.Errorf("%s: %s", filter, a.raw)
		}
		// The start of the room was reached: there is no token for more (CS API, messages).
		if a.text("start") == "" || a.body["end"] != nil {
			t.Errorf("%s: start %v, end %v", filter, a.body["start"], a.body["end"])
		}
	}
}

// Each change of a push rule wakes a sync, and the rules come whole.
func TestPushRulesInSync(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	first := alice.sync("")
	if !strings.Contains(first.raw, `"m.push_rules"`) {
		t.Errorf("not in the first: %s", first.raw)
	}
	since := first.NextBatch
	const rule = "/v3/pushrules/global/room/!foo:example.com"
	for _, step := range []struct{ path, body, want string }{
		{rule, `{"actions":["notify"]}`, `"rule_id":"!foo:example.com"`},
		{rule + "/actions", `{"actions":[]}`, `"actions":[]`},
		{rule + "/enabled", `{"enabled":false}`, `"enabled":false`},
		{rule + "/enabled", `{"enabled":true}`, `"rule_id":"!foo:example.com"`},
	} {
		alice.call(200, "PUT", step.path, step.body)
		got := alice.sync(since)
		since = got.NextBatch
		if !strings.Contains(got.raw, `"m.push_rules"`) || !strings.Contains(got.raw, step.want) {
			t.Errorf("%s: %s", step.path, got.raw)
		}
	}
}

// Read markers set the receipts and the private marker together, and are refused for what is no event of the room.
func TestReadMarkers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	id := bob.say(room, "read me")
	since, theirs := alice.sync("").NextBatch, bob.sync("").NextBatch
	path := "/v3/rooms/" + string(room) + "/read_markers"
	alice.call(200, "POST", path, map[string]any{"m.fully_read": id, "m.read": id})
	if got := alice.sync(since).raw; !strings.Contains(got, "m.fully_read") || !strings.Contains(got, string(id)) {
		t.Errorf("alice: %s", got)
	}
	if got := bob.sync(theirs).raw; !strings.Contains(got, "m.receipt") || strings.Contains(got, "m.fully_read") {
		t.Errorf("bob: %s", got)
	}
	alice.s.send("POST", "/_matrix/client"+path, "", nil)
	if a := s.send("POST", "/_matrix/client"+path, "", map[string]any{"m.read": id}); a.status != 401 {
		t.Errorf("without a token: %d", a.status)
	}
}

// Clients are told with each event what they were in the room when it was sent (CS API, UnsignedData, membership).
func TestMembershipOnEvents(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	before := alice.say(room, "before")
	bob.join(room)
	after := alice.say(room, "after")
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
	for id, want := range map[eventgraph.EventID]string{before: "leave", after: "join"} {
		a := bob.call(200, "GET", fmt.Sprintf("/v3/rooms/%s/event/%s", room, id), nil)
		if got := a.body["unsigned"].(map[string]any)["membership"]; got != want {
			t.Errorf("%s: %v", a.raw, got)
		}
	}
}

// An event of the past is found by who may see it, by the history's visibility and their membership then.
func TestFetchEvent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for _, c := range []struct {
		visibility                            string
		outside, beforeInvite, invited, after int // status: before bob is anything, and then, as a member, of events of these times
	}{
		{"world_readable", 200, 200, 200, 200},
		{"shared", 404, 200, 200, 200},
		{"invited", 404, 404, 200, 200},
		{"joined", 404, 404, 404, 200},
	} {
		room := alice.room()
		alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"`+c.visibility+`"}`)
		get := func(id eventgraph.EventID, want int, when string) {
			t.Helper()
			a := s.send("GET", fmt.Sprintf("/_matrix/client/v3/rooms/%s/event/%s", room, id), bob.token, nil)
			if a.status != want && (want != 404 || a.status != 403) {
				t.Errorf("%s, %s: %d %s, want %d", c.visibility, when, a.status, a.raw, want)
			}
		}
		first := alice.say(room, "first")
		get(first, c.outside, "from outside")
		alice.call(200, "POST", "/v3/rooms/"+string(room)+"/invite", map[string]any{"user_id": bob.user})
		second := alice.say(room, "second")
		bob.join(room)
		third := alice.say(room, "third")
		get(first, c.beforeInvite, "of before the invite")
		get(second, c.invited, "of between invite and join")
		get(third, c.after, "of after the join")
		get(eventgraph.EventID("$"+strings.Repeat("a", 43)), 404, "that is none")
	}
}

// User names are of the spec's alphabet, and lower case whatever is typed (Appendices, User Identifiers; CS API, register).
func TestUserNames(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.Registration = RegistrationOpen })
	register := func(name string) answer {
		return s.send("POST", "/_matrix/client/v3/register", "", map[string]any{"username": name, "password": "ünïcode", "auth": map[string]any{"type": stageDummy}})
	}
	for _, name := range []string{"qx", "q-x", "q.x", "q/x", "q3x", "q=x", "q_x", "UPPER"} {
		if a := register(name); a.status != 200 || a.text("user_id") != "@"+strings.ToLower(name)+":"+string(s.Server) {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	for _, c := range "!\":?\\@[]{|}£é\n'" {
		if a := register("q" + string(c) + "x"); a.status != 400 || a.code() != "M_INVALID_USERNAME" {
			t.Errorf("%q: %d %s", c, a.status, a.raw)
		}
	}
}

// A room's canonical alias and its others must be aliases, and lead to the room, when they are set (CS API, m.room.canonical_alias).
func TestCanonicalAlias(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room, other := string(alice.room()), string(alice.room())
	alias := func(name string) string { return "#" + name + ":" + string(s.Server) }
	at := func(name string) string { return "/v3/directory/room/" + url.PathEscape(alias(name)) }
	const unicode = "老虎Â£я🤨👉ඞ"
	for name, to := range map[string]string{"mine": room, "other": other, "gone": room, unicode: room} {
		alice.call(200, "PUT", at(name), map[string]string{"room_id": to})
	}
	if a := alice.call(200, "GET", at(unicode), nil); a.text("room_id") != room {
		t.Errorf("an alias in Unicode: %s", a.raw)
	}
	alice.call(200, "DELETE", at("gone"), nil)
	path := "/v3/rooms/" + room + "/state/m.room.canonical_alias"
	alice.call(200, "PUT", path, map[string]any{"alias": alias("mine"), "alt_aliases": []string{alias(unicode)}})
	for name, code := range map[string]string{
		alias("none"): "M_BAD_ALIAS", alias("other"): "M_BAD_ALIAS", alias("gone"): "M_BAD_ALIAS", "mine": "M_INVALID_PARAM", "%": "M_INVALID_PARAM",
	} {
		for _, body := range []map[string]any{{"alias": name}, {"alt_aliases": []string{name}}} {
			if a := alice.call(400, "PUT", path, body); a.code() != code {
				t.Errorf("%v: %s, want %s", body, a.raw, code)
			}
		}
	}
}

// Numbers that canonical JSON has not, and what is no JSON, are refused where an event is sent (room versions from 6 on).
func TestEventsWithoutCanonicalJSON(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	path := "/v3/rooms/" + string(alice.room()) + "/send/complement.dummy/"
	for i, c := range []struct{ body, code string }{
		{`{"a":1.1}`, "M_BAD_JSON"}, {`{"a":9007199254740992}`, "M_BAD_JSON"}, {`{"a":-9007199254740992}`, "M_BAD_JSON"}, {`{"a":1e5}`, "M_BAD_JSON"},
		{`{"a":NaN}`, "M_NOT_JSON"}, {`{"a":Infinity}`, "M_NOT_JSON"}, {`{"a":-Infinity}`, "M_NOT_JSON"}, {"{\"a\":\"\x81\"}", "M_NOT_JSON"},
	} {
		if a := alice.call(400, "PUT", path+fmt.Sprint(i), c.body); a.code() != c.code {
			t.Errorf("%q: %s, want %s", c.body, a.raw, c.code)
		}
	}
}

// Receipts in threads and for the whole room, as they take away notifications: A, then B and C (which mentions) in its thread, D (which mentions) and F,
// a reference to A, outside of it, and E in the thread again. A reaction counts nowhere.
func TestThreadedReceipts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	send := func(body string) eventgraph.EventID { return alice.message(room, `{"msgtype":"m.text",`+body+`}`) }
	mention := `"m.mentions":{"user_ids":["` + string(bob.user) + `"]}`
	since := bob.sync("").NextBatch
	a := send(`"body":"A"`)
	thread := `"m.relates_to":{"rel_type":"m.thread","event_id":"` + string(a) + `"}`
	b := send(`"body":"B",` + thread)
	send(`"body":"C",` + mention + `,` + thread)
	d := send(`"body":"D",` + mention)
	send(`"body":"E",` + thread)
	f := send(`"body":"F","m.relates_to":{"rel_type":"m.reference","event_id":"` + string(a) + `"}`)
	g := alice.event(draftOf(room, "m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"`+string(f)+`","key":"x"}}`))

	check := func(when string, all, main, inThread [2]int) {
		t.Helper()
		var answer struct {
			Rooms struct {
				Join map[eventgraph.RoomID]struct {
					Unread  unreadJSON                        `json:"unread_notifications"`
					Threads map[eventgraph.EventID]unreadJSON `json:"unread_thread_notifications"`
				}
			}
		}
		for filter, want := range map[string][2]int{"": all, `filter={"room":{"timeline":{"unread_thread_notifications":true}}}`: main} {
			clear(answer.Rooms.Join)
			if err := json.Unmarshal([]byte(bob.sync(since, filter).raw), &answer); err != nil {
				t.Fatal(err)
			}
			got := answer.Rooms.Join[room]
			if n := ([2]int{got.Unread.Count, got.Unread.Highlights}); n != want {
				t.Errorf("%s %s: %v, want %v", when, filter, n, want)
			}
			if n := ([2]int{got.Threads[a].Count, got.Threads[a].Highlights}); filter != "" && n != inThread || filter == "" && got.Threads != nil {
				t.Errorf("%s %s: in the thread %v, want %v", when, filter, n, inThread)
			}
		}
	}
	read := func(id eventgraph.EventID, body string) {
		t.Helper()
		bob.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(id), body)
	}
	check("unread", [2]int{6, 2}, [2]int{3, 1}, [2]int{3, 1})
	read(a, `{"thread_id":"main"}`)
	check("A in main", [2]int{5, 2}, [2]int{2, 1}, [2]int{3, 1})
	read(b, `{"thread_id":"`+string(a)+`"}`)
	check("B in the thread", [2]int{4, 2}, [2]int{2, 1}, [2]int{2, 1})
	read(d, `{}`)
	check("all up to D", [2]int{2, 0}, [2]int{1, 0}, [2]int{1, 0})
	read(g, `{"thread_id":"main"}`)
	check("G in main", [2]int{1, 0}, [2]int{0, 0}, [2]int{1, 0})
	read(g, `{}`)
	check("all", [2]int{0, 0}, [2]int{0, 0}, [2]int{0, 0})
}

type unreadJSON struct {
	Count      int `json:"notification_count"`
	Highlights int `json:"highlight_count"`
}

func draftOf(room eventgraph.RoomID, eventType, content string) rooms.Draft {
	return rooms.Draft{Room: room, Type: eventType, Content: json.RawMessage(content)}
}

// A page ends at a break in the room's history. The next one asks other servers for it, and goes on across it if they are away.
func TestMessagesAcrossABreak(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.say(room, "held before")
	back, last := alice.say(room, "back"), alice.say(room, "last")
	var after int64
	_, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
		record, err := tx.Room(room)
		if err != nil {
			return err
		}
		const away = 1000
		for _, id := range []eventgraph.EventID{back, last} {
			e, err := tx.Event(id)
			if err != nil {
				return err
			}
			if id == back {
				after = e.Order - 1
				record.Breaks = []store.Break{{After: e.Order - 1, Next: e.Order + away - 1, Before: e.Order + away}}
			}
			e.Order += away
			if err := tx.PutEvent(e); err != nil {
				return err
			}
		}
		record.Backward = []eventgraph.EventID{back}
		return tx.PutRoom(record)
	})
	if err != nil {
		t.Fatal(err)
	}
	remote := &withHistory{unreachable: s.remote}
	s.SetRemote(remote)
	page := func(from string) (bodies []string, end string) {
		var answer struct {
			Chunk []struct{ Content struct{ Body string } }
			End   string
		}
		got := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=50&from="+from, nil)
		if err := json.Unmarshal([]byte(got.raw), &answer); err != nil {
			t.Fatal(err)
		}
		for _, e := range answer.Chunk {
			if e.Content.Body != "" {
				bodies = append(bodies, e.Content.Body)
			}
		}
		return bodies, answer.End
	}
	first, end := page("")
	wantList(t, "first page", first, "last", "back")
	// What comes belongs elsewhere at first, again and again. That is no reason to go on.
	remote.plenty = true
	if second, again := page(end); len(second) != 0 || again != end {
		t.Errorf("a page across the break before it is known that nobody has what belongs there: %v, on to %s", second, again)
	}
	remote.plenty, remote.asked = false, make([]int, 1) // once more, then they have nothing
	second, _ := page(end)
	wantList(t, "second page", second, "held before")
	if len(remote.asked) != 3 || slices.ContainsFunc(remote.above, func(above int64) bool { return above != after }) {
		t.Errorf("asked %v above %v, want %d", remote.asked, remote.above, after)
	}
	timeline := alice.sync("").Rooms.Join[room].Timeline
	if !timeline.Limited || len(timeline.Events) != 2 || timeline.PrevBatch != end {
		t.Errorf("a first sync's timeline: %+v, want it to begin at %s", timeline, end)
	}
}

// A sync that does not come to a break in the room's history does not look for what lies behind it, however much that is. One that comes to it can
// do without backward extremities that are not held any more.
func TestSyncBesideABreak(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.say(room, "held before")
	back := alice.say(room, "back")
	for n := range 3 {
		alice.say(room, fmt.Sprint("last ", n))
	}
	behind := func(gone int) {
		_, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
			record, err := tx.Room(room)
			if err != nil {
				return err
			}
			e, err := tx.Event(back)
			if err != nil {
				return err
			}
			record.Breaks = []store.Break{{After: e.Order - 1, Next: e.Order, Before: e.Order}}
			record.Backward = nil
			for n := range gone {
				record.Backward = append(record.Backward, eventgraph.EventID(fmt.Sprintf("$%043d", n)))
			}
			record.Backward = append(record.Backward, back)
			return tx.PutRoom(record)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	reads := func(limit int) (n uint64, events int) {
		filter := fmt.Sprintf(`filter={"room":{"timeline":{"limit":%d}}}`, limit)
		n = s.readsOf(func() { events = len(alice.sync("", filter).Rooms.Join[room].Timeline.Events) })
		return n, events
	}
	const many = 500
	behind(1)
	few, _ := reads(2)
	behind(many)
	if n, _ := reads(2); n > few+many/10 {
		t.Errorf("%d reads with %d backward extremities, %d with one", n, many, few)
	}
	if _, events := reads(20); events != 4 {
		t.Errorf("%d events above the break, want 4", events)
	}
	alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=50", nil)
}
