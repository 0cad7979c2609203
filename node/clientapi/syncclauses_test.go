package clientapi

import (
	"context"
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

func (c client) putAccountData(room eventgraph.RoomID, dataType, content string) {
	c.s.t.Helper()
	path := "/v3/user/" + url.PathEscape(string(c.user))
	if room != "" {
		path += "/rooms/" + url.PathEscape(string(room))
	}
	c.call(200, "PUT", path+"/account_data/"+dataType, content)
}

// Each field of a RoomEventFilter, on the timeline and on the state (definitions/room_event_filter.yaml, event_filter.yaml).
func TestSyncFilterFields(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	alice.say(room, "a")
	bob.say(room, "b")
	bob.message(room, `{"msgtype":"m.image","body":"pic","url":"mxc://x/y"}`)
	alice.state(room, "m.room.topic", "", `{"topic":"t"}`)
	alice.state(room, "org.example.link", "", `{"url":"mxc://x/z"}`)
	whole := []string{"create/", "member/alice", "power_levels/", "join_rules/", "member/bob", "a", "b", "pic", "topic/", "org.example.link/"}
	for name, c := range map[string]struct {
		filter   string
		timeline []string
	}{
		"all":                        {`{}`, whole},
		"types":                      {`{"types":["m.room.message"]}`, []string{"a", "b", "pic"}},
		"types with wildcards":       {`{"types":["m.*.t*c","*.link"]}`, []string{"topic/", "org.example.link/"}},
		"no types":                   {`{"types":[]}`, nil},
		"not_types":                  {`{"not_types":["m.room.*"]}`, []string{"org.example.link/"}},
		"not_types over types":       {`{"types":["m.room.topic","m.room.message"],"not_types":["m.room.message"]}`, []string{"topic/"}},
		"senders":                    {`{"senders":["@bob"]}`, []string{"member/bob", "b", "pic"}},
		"not_senders":                {`{"not_senders":["@alice"]}`, []string{"member/bob", "b", "pic"}},
		"not_senders over senders":   {`{"senders":["@alice","@bob"],"not_senders":["@bob"],"types":["m.room.message"]}`, []string{"a"}},
		"contains_url":               {`{"contains_url":true}`, []string{"pic", "org.example.link/"}},
		"not contains_url":           {`{"contains_url":false,"types":["m.room.message"]}`, []string{"a", "b"}},
		"rooms":                      {`{"rooms":["!room"],"types":["m.room.topic"]}`, []string{"topic/"}},
		"another of rooms":           {`{"rooms":["!other"]}`, nil},
		"not_rooms":                  {`{"not_rooms":["!room"]}`, nil},
		"not_rooms over rooms":       {`{"rooms":["!room"],"not_rooms":["!room"]}`, nil},
		"limit counts what is shown": {`{"types":["m.room.message"],"limit":2}`, []string{"b", "pic"}},
	} {
		ids := strings.NewReplacer(`"@alice"`, `"`+string(alice.user)+`"`, `"@bob"`, `"`+string(bob.user)+`"`, `"!room"`, `"`+string(room)+`"`)
		filter := ids.Replace(c.filter)
		got := alice.sync("", `filter={"room":{"timeline":`+filter+`}}`).Rooms.Join[room]
		wantList(t, "timeline, "+name, names(got.Timeline.Events), c.timeline...)
		if limited := strings.HasPrefix(name, "limit"); got.Timeline.Limited != limited {
			t.Errorf("%s: limited is %v", name, got.Timeline.Limited)
		}
		var state []string
		for _, n := range c.timeline {
			if strings.Contains(n, "/") {
				state = append(state, n)
			}
		}
		got = alice.sync("", `filter={"room":{"timeline":{"limit":0},"state":`+filter+`}}`).Rooms.Join[room]
		told := got.State.names()
		slices.Sort(told)
		slices.Sort(state)
		if !strings.HasPrefix(name, "limit") {
			wantList(t, "state, "+name, told, state...)
		}
		var page struct{ Chunk []syncedEvent }
		raw := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=f&limit=50&filter="+url.QueryEscape(filter), nil).raw
		if err := json.Unmarshal([]byte(raw), &page); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, "limit") {
			wantList(t, "messages, "+name, list{page.Chunk}.names(), c.timeline...)
		}
	}
}

// What passes the filters of the parts beside timeline and state.
func TestSyncFilterParts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	event := alice.say(room, "x")
	bob.read(room, "m.read", event, "")
	s.Ephemeral.SetTyping(room, bob.user, usualTyping)
	alice.putAccountData(room, "org.example.here", `{"a":1}`)
	alice.putAccountData("", "org.example.everywhere", `{"a":1}`)
	bob.sync("")
	types := func(l list) []string {
		out := []string{}
		for _, e := range l.Events {
			out = append(out, e.Type)
		}
		slices.Sort(out)
		return out
	}
	for filter, want := range map[string][4][]string{
		`{}`: {{"m.receipt", "m.typing"}, {"org.example.here"}, {"m.push_rules", "org.example.everywhere"}, {"m.presence", "m.presence"}},
		`{"room":{"ephemeral":{"types":["m.receipt"]},"account_data":{"types":["*.here"]}},"account_data":{"not_types":["m.*"]},"presence":{"senders":["` + string(bob.user) + `"]}}`: {
			{"m.receipt"}, {"org.example.here"}, {"org.example.everywhere"}, {"m.presence"}},
		`{"room":{"ephemeral":{"not_types":["m.receipt"]},"account_data":{"not_types":["*"]}},"account_data":{"types":["m.push_rules"]},"presence":{"not_senders":["` + string(bob.user) + `"]}}`: {
			{"m.typing"}, nil, {"m.push_rules"}, {"m.presence"}},
		`{"room":{"ephemeral":{"not_rooms":["` + string(room) + `"]},"account_data":{"rooms":[]}},"account_data":{"types":[]},"presence":{"types":["m.x"]}}`: {},
	} {
		body := alice.sync("", "filter="+filter)
		got := body.Rooms.Join[room]
		wantList(t, "ephemeral of "+filter, types(got.Ephemeral), want[0]...)
		wantList(t, "room account data of "+filter, types(got.AccountData), want[1]...)
		wantList(t, "account data of "+filter, types(body.AccountData), want[2]...)
		wantList(t, "presence of "+filter, types(body.Presence), want[3]...)
	}
	other := alice.room()
	for filter, want := range map[string][]eventgraph.RoomID{
		`{"room":{"rooms":["` + string(room) + `"]}}`:                                          {room},
		`{"room":{"not_rooms":["` + string(room) + `"]}}`:                                      {other},
		`{"room":{"rooms":["` + string(room) + `"],"not_rooms":["` + string(room) + `"]}}`:     {},
		`{"room":{"rooms":[]}}`:                                                                {},
		`{"room":{"not_rooms":["!elsewhere"],"timeline":{"rooms":["` + string(other) + `"]}}}`: {room, other},
	} {
		join := alice.sync("", "filter="+filter).Rooms.Join
		if len(join) != len(want) || slices.ContainsFunc(want, func(id eventgraph.RoomID) bool { _, ok := join[id]; return !ok }) {
			t.Errorf("%s passes %d rooms, want %v", filter, len(join), want)
		}
	}
}

// event_format federation gives events as servers have them (definitions/sync_filter.yaml).
func TestSyncFederationFormat(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.say(room, "x")
	raw := alice.call(200, "GET", "/v3/sync?filter="+url.QueryEscape(`{"event_format":"federation","room":{"timeline":{"limit":1}}}`), nil).raw
	if !strings.Contains(raw, `"auth_events"`) || !strings.Contains(raw, `"hashes"`) {
		t.Errorf("not as servers have it: %s", raw)
	}
	if raw := alice.sync("").raw; strings.Contains(raw, `"auth_events"`) {
		t.Errorf("as servers have it: %s", raw)
	}
}

// A gap is closed with /messages, backwards from prev_batch, and forwards from since to prev_batch (CS API, Syncing).
func TestSyncGapIsClosedByMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	since := alice.sync("").NextBatch
	var all []string
	for i := range 9 {
		all = append(all, fmt.Sprint("m", i))
		alice.say(room, all[i])
	}
	timeline := alice.sync(since, smallTimeline).Rooms.Join[room].Timeline
	if !timeline.Limited {
		t.Error("not limited")
	}
	page := func(query string) []string {
		var page struct{ Chunk []syncedEvent }
		raw := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?limit=100&"+query, nil).raw
		if err := json.Unmarshal([]byte(raw), &page); err != nil {
			t.Fatal(err)
		}
		return names(page.Chunk)
	}
	back := page("dir=b&from=" + timeline.PrevBatch + "&to=" + since)
	slices.Reverse(back)
	wantList(t, "backwards", slices.Concat(back, names(timeline.Events)), all...)
	wantList(t, "forwards", slices.Concat(page("dir=f&from="+since+"&to="+timeline.PrevBatch), names(timeline.Events)), all...)
}

// Rooms that were left carry what the user keeps for them (sync.yaml, Left Room, account_data).
func TestSyncLeftRoomsAccountData(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	bob.putAccountData(room, "org.example.x", `{"v":1}`)
	since := bob.sync("").NextBatch
	bob.member(room, bob, "leave")
	body := bob.sync(since)
	if left, ok := body.Rooms.Leave[room]; !ok || len(left.AccountData.Events) > 0 {
		t.Errorf("after leaving: %s", body.raw)
	}
	bob.putAccountData(room, "org.example.x", `{"v":2}`)
	for name, got := range map[string]syncBody{
		"a change":   bob.sync(body.NextBatch),
		"both":       bob.sync(since),
		"first sync": bob.sync("", `filter={"room":{"include_leave":true}}`),
	} {
		if e := got.Rooms.Leave[room].AccountData.find("org.example.x"); e == nil || e.Content["v"] != 2.0 {
			t.Errorf("%s: %s", name, got.raw)
		}
	}
	again := bob.sync(body.NextBatch, `filter={"room":{"account_data":{"types":[]}}}`)
	if len(again.Rooms.Leave) > 0 {
		t.Errorf("filtered: %s", again.raw)
	}
}

// Whatever the order in which people part, whom one shares no room with any more is told as left.
func TestSyncDeviceListsLeft(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]func(room eventgraph.RoomID, alice, bob client){
		"the other leaves": func(room eventgraph.RoomID, _, bob client) { bob.member(room, bob, "leave") },
		"oneself leaves":   func(room eventgraph.RoomID, alice, _ client) { alice.member(room, alice, "leave") },
		"the other, then oneself": func(room eventgraph.RoomID, alice, bob client) {
			bob.member(room, bob, "leave")
			alice.member(room, alice, "leave")
		},
		"oneself, then the other": func(room eventgraph.RoomID, alice, bob client) {
			alice.member(room, alice, "leave")
			bob.member(room, bob, "leave")
		},
		"oneself is invited again": func(room eventgraph.RoomID, alice, bob client) {
			alice.member(room, alice, "leave")
			bob.member(room, alice, "invite")
		},
		"oneself, forgetting it too": func(room eventgraph.RoomID, alice, _ client) {
			alice.member(room, alice, "leave")
			alice.call(200, "POST", "/v3/rooms/"+string(room)+"/forget", `{}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, nil)
			alice, bob := s.newClient("alice"), s.newClient("bob")
			room := bob.room()
			alice.join(room)
			since := alice.sync("").NextBatch
			slid := alice.slide("", `{"extensions":{"e2ee":{"enabled":true}}}`)
			part(room, alice, bob)
			body := alice.sync(since)
			if !slices.Equal(body.DeviceLists.Left, []eventgraph.UserID{bob.user}) {
				t.Errorf("device_lists.left of %s", body.raw)
			}
			next := alice.slide(slid.Pos, `{"extensions":{"e2ee":{"enabled":true}}}`)
			if got := next.Extensions.E2EE.DeviceLists.Left; !slices.Equal(got, []eventgraph.UserID{bob.user}) {
				t.Errorf("sliding sync: device_lists.left of %s", next.raw)
			}
			changes := alice.call(200, "GET", "/v3/keys/changes?from="+since+"&to="+body.NextBatch, nil)
			if !strings.Contains(changes.raw, `"left":["`+string(bob.user)) {
				t.Errorf("keys/changes: %s", changes.raw)
			}
		})
	}
	t.Run("another room is shared", func(t *testing.T) {
		t.Parallel()
		s := newTestServer(t, nil)
		alice, bob := s.newClient("alice"), s.newClient("bob")
		room, second := bob.room(), bob.room()
		alice.join(room)
		alice.join(second)
		since := alice.sync("").NextBatch
		alice.member(room, alice, "leave")
		if got := alice.sync(since).DeviceLists.Left; len(got) > 0 {
			t.Errorf("device_lists.left: %v", got)
		}
	})
}

// Joins and leaves between two syncs: what stands in which section.
func TestSyncMembershipWithinAGap(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		was, then      []string // alice's memberships before and after since
		section        string
		timeline, hide string
	}{
		"joined and left":              {nil, []string{"join", "leave"}, "leave", "member/alice", "later"},
		"left and joined":              {[]string{"join"}, []string{"leave", "join"}, "join", "member/alice", ""},
		"left, joined and left":        {[]string{"join"}, []string{"leave", "join", "leave"}, "leave", "member/alice", "later"},
		"invited and uninvited":        {nil, []string{"invite", "leave"}, "leave", "member/alice", "later"},
		"an invite taken back":         {[]string{"invite"}, []string{"leave"}, "leave", "member/alice", "later"},
		"invited and joined":           {nil, []string{"invite", "join"}, "join", "member/alice", ""},
		"banned before ever joining":   {nil, []string{"ban"}, "leave", "member/alice", "later"},
		"left and invited again":       {[]string{"join"}, []string{"leave", "invite"}, "invite", "", "later"},
		"joined, but nothing happened": {[]string{"join"}, nil, "join", "later", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, nil)
			alice, bob := s.newClient("alice"), s.newClient("bob")
			empty := ""
			room := bob.room(rooms.Draft{Type: "m.room.history_visibility", StateKey: &empty, Content: json.RawMessage(`{"history_visibility":"joined"}`)})
			become := func(memberships []string) {
				for i, m := range memberships {
					by := alice
					if m == "invite" || m == "ban" || m == "leave" && i == 0 && name == "an invite taken back" {
						by = bob
					}
					by.member(room, alice, m)
				}
			}
			become(c.was)
			since := alice.sync("").NextBatch
			become(c.then)
			bob.say(room, "later")
			body := alice.sync(since)
			got := map[string]string{}
			for _, r := range body.Rooms.Join {
				got["join"] = strings.Join(names(r.Timeline.Events), " ")
			}
			for _, r := range body.Rooms.Leave {
				got["leave"] = strings.Join(names(r.Timeline.Events), " ")
			}
			if len(body.Rooms.Invite) > 0 {
				got["invite"] = ""
			}
			shown, ok := got[c.section]
			if !ok || len(got) != 1 || !strings.Contains(shown, c.timeline) || c.hide != "" && strings.Contains(body.raw, c.hide) {
				t.Errorf("%v: %s", got, body.raw)
			}
		})
	}
}

// m.heroes and the counts (sync.yaml, RoomSummary).
func TestSyncSummary(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	since := alice.sync("").NextBatch
	for _, step := range []struct {
		name            string
		do              func()
		heroes          []eventgraph.UserID
		joined, invited int
		silent          bool
	}{
		{"joined", func() { bob.join(room) }, []eventgraph.UserID{bob.user}, 2, 0, false},
		{"invited", func() { alice.member(room, carol, "invite") }, []eventgraph.UserID{bob.user, carol.user}, 2, 1, false},
		{"a message", func() { bob.say(room, "x") }, nil, 0, 0, true},
		{"named", func() { alice.state(room, "m.room.name", "", `{"name":"N"}`) }, nil, 2, 1, false},
		{"one left", func() { bob.member(room, bob, "leave") }, nil, 1, 1, false},
		{"unnamed", func() { alice.state(room, "m.room.name", "", `{}`) }, []eventgraph.UserID{carol.user}, 1, 1, false},
		{"an alias", func() { alice.state(room, "m.room.canonical_alias", "", `{"alias":"#a:`+string(s.key.Server)+`"}`) }, nil, 1, 1, false},
		{"no alias", func() { alice.state(room, "m.room.canonical_alias", "", `{}`) }, []eventgraph.UserID{carol.user}, 1, 1, false},
		{"all left", func() { carol.member(room, carol, "leave") }, []eventgraph.UserID{bob.user, carol.user}, 1, 0, false},
	} {
		step.do()
		for _, from := range []string{since, ""} {
			body := alice.sync(from, `filter={"room":{"state":{"lazy_load_members":true},"timeline":{"limit":1}}}`)
			got := body.Rooms.Join[room]
			if from != "" {
				since = body.NextBatch
			}
			if step.silent {
				if from != "" && got.Summary != nil {
					t.Errorf("%s: %+v", step.name, got.Summary)
				}
				continue
			}
			if got.Summary == nil || !slices.Equal(got.Summary.Heroes, step.heroes) || got.Summary.Joined != step.joined || got.Summary.Invited != step.invited {
				t.Errorf("%s from %q: %+v, want %v, %d, %d", step.name, from, got.Summary, step.heroes, step.joined, step.invited)
			}
			if from == "" {
				for _, hero := range step.heroes {
					if !slices.ContainsFunc(append(got.State.Events, got.Timeline.Events...), func(e syncedEvent) bool { return e.StateKey != nil && *e.StateKey == string(hero) }) {
						t.Errorf("%s: the hero %s comes without member event: %s", step.name, hero, body.raw)
					}
				}
			}
		}
	}
}

// What marks notifications as read: receipts of either kind, sending an event (CS API, Marking notifications as read); and what
// takes them back.
func TestUnreadIsMarkedAsRead(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(s *testServer, alice, bob client, room eventgraph.RoomID, said []eventgraph.EventID)
		want int
	}{
		"nothing": {func(*testServer, client, client, eventgraph.RoomID, []eventgraph.EventID) {}, 3},
		"m.read": {func(_ *testServer, a, _ client, r eventgraph.RoomID, said []eventgraph.EventID) {
			a.read(r, "m.read", said[1], "")
		}, 1},
		"m.read.private": {func(_ *testServer, a, _ client, r eventgraph.RoomID, said []eventgraph.EventID) {
			a.read(r, "m.read.private", said[2], "")
		}, 0},
		"the farther of both": {func(_ *testServer, a, _ client, r eventgraph.RoomID, said []eventgraph.EventID) {
			a.read(r, "m.read", said[1], "")
			a.read(r, "m.read.private", said[0], "")
		}, 1},
		"m.fully_read": {func(_ *testServer, a, _ client, r eventgraph.RoomID, said []eventgraph.EventID) {
			a.read(r, "m.fully_read", said[2], "")
		}, 3},
		"an answer": {func(_ *testServer, a, _ client, r eventgraph.RoomID, _ []eventgraph.EventID) { a.say(r, "yes") }, 0},
		"an answer before the last": {func(_ *testServer, a, b client, r eventgraph.RoomID, _ []eventgraph.EventID) {
			a.say(r, "yes")
			b.say(r, "four")
		}, 1},
		"a state event": {func(_ *testServer, a, _ client, r eventgraph.RoomID, _ []eventgraph.EventID) {
			a.state(r, "m.room.topic", "", `{"topic":"t"}`)
		}, 3},
		"a redaction of one": {func(_ *testServer, _, b client, r eventgraph.RoomID, said []eventgraph.EventID) {
			b.event(rooms.Draft{Room: r, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: said[1]})
		}, 2},
		"all redacted before looking": {func(s *testServer, a, b client, r eventgraph.RoomID, said []eventgraph.EventID) {
			for _, id := range said {
				b.event(rooms.Draft{Room: r, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: id})
			}
			s.unreads.users.Purge()
		}, 0},
		"the sender is ignored": {func(_ *testServer, a, b client, _ eventgraph.RoomID, _ []eventgraph.EventID) {
			a.putAccountData("", "m.ignored_user_list", `{"ignored_users":{"`+string(b.user)+`":{}}}`)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, nil)
			alice, bob := s.newClient("alice"), s.newClient("bob")
			room := alice.room()
			bob.join(room)
			alice.join(alice.room())
			var said []eventgraph.EventID
			for _, body := range []string{"one", "two", "three"} {
				said = append(said, bob.say(room, body))
			}
			if name != "all redacted before looking" {
				if n, _ := alice.unread(room, false); n.Notifications != 3 {
					t.Fatalf("%d unread at first", n.Notifications)
				}
			}
			c.do(s, alice, bob, room, said)
			if n, _ := alice.unread(room, false); n.Notifications != c.want {
				t.Errorf("%d unread, want %d", n.Notifications, c.want)
			}
			s.unreads.users.Purge() // what is not remembered is found again
			if n, _ := alice.unread(room, false); n.Notifications != c.want {
				t.Errorf("%d unread when counted anew, want %d", n.Notifications, c.want)
			}
		})
	}
}

// Who is ignored: their events but state, typing, invites and knocks' unread counts (CS API, Ignoring Users).
func TestIgnoredUsersAreNotShown(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	ask := window(0, 10, 5, `["*","*"]`, `,"extensions":{"typing":{"enabled":true}}`)
	invited := bob.room()
	bob.member(invited, alice, "invite")
	since, pos := alice.sync("").NextBatch, alice.slide("", ask).Pos
	alice.putAccountData("", "m.ignored_user_list", `{"ignored_users":{"`+string(bob.user)+`":{}}}`)
	bob.say(room, "noise")
	bob.state(room, "m.room.member", string(bob.user), `{"membership":"join","displayname":"B"}`)
	s.Ephemeral.SetTyping(room, bob.user, usualTyping)
	body := alice.sync(since)
	wantList(t, "timeline", names(body.Rooms.Join[room].Timeline.Events), "member/bob")
	if e := body.Rooms.Join[room].Ephemeral.find("m.typing"); e != nil && len(e.Content["user_ids"].([]any)) > 0 {
		t.Errorf("typing: %+v", e)
	}
	slid := alice.slide(pos, ask)
	wantList(t, "sliding timeline", names(slid.Rooms[room].Timeline), "member/bob")
	if strings.Contains(slid.raw, "noise") || strings.Contains(slid.raw, `"user_ids":["`) {
		t.Errorf("sliding sync: %s", slid.raw)
	}
	if _, ok := alice.sync("").Rooms.Invite[invited]; ok {
		t.Error("the invite is shown in a first sync")
	}
	if n := alice.slide("", ask).Lists["all"].Count; n != 1 {
		t.Errorf("%d rooms in the list of a new connection", n)
	}
	// Once they are not ignored any more, what comes then is shown, and a first sync has all.
	since = body.NextBatch
	alice.putAccountData("", "m.ignored_user_list", `{"ignored_users":{}}`)
	bob.say(room, "again")
	wantList(t, "not ignored any more", names(alice.sync(since).Rooms.Join[room].Timeline.Events), "again")
	first := alice.sync("")
	if _, ok := first.Rooms.Invite[invited]; !ok || !strings.Contains(first.raw, "noise") {
		t.Errorf("a first sync: %s", first.raw)
	}
}

// What an ignored user sent is not in history or search results either; state is.
func TestIgnoredUsersAreNotInHistory(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	bob.say(room, "noise pollution")
	pivot := alice.say(room, "pivot pollution")
	bob.state(room, "m.room.member", string(bob.user), `{"membership":"join","displayname":"B"}`)
	bob.say(room, "noise again")
	read := func() map[string]string {
		return map[string]string{
			"messages": alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=50", nil).raw,
			"context":  alice.call(200, "GET", "/v3/rooms/"+string(room)+"/context/"+string(pivot)+"?limit=50", nil).raw,
			"search":   alice.call(200, "POST", "/v3/search", `{"search_categories":{"room_events":{"search_term":"pollution","event_context":{}}}}`).raw,
		}
	}
	for name, raw := range read() {
		if !strings.Contains(raw, "noise") {
			t.Errorf("%s without anybody ignored: %s", name, raw)
		}
	}
	alice.putAccountData("", "m.ignored_user_list", `{"ignored_users":{"`+string(bob.user)+`":{}}}`)
	for name, raw := range read() {
		if strings.Contains(raw, "noise") || !strings.Contains(raw, "pivot") || !strings.Contains(raw, `"displayname":"B"`) {
			t.Errorf("%s: %s", name, raw)
		}
	}
}

// A filter may choose events by what relates to them (MSC3440, Fetch all threads in a room).
func TestFilterByRelations(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	since := alice.sync("").NextBatch
	threaded, referred := alice.say(room, "threaded"), alice.say(room, "referred")
	alice.say(room, "alone")
	bob.relate(room, "m.thread", threaded, "reply")
	alice.relate(room, "m.reference", referred, "reference")
	gone := bob.relate(room, "m.thread", referred, "regretted")
	bob.event(rooms.Draft{Room: room, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: gone})
	for filter, want := range map[string][]string{
		`{"related_by_rel_types":["m.thread"]}`:                                                     {"threaded"},
		`{"related_by_rel_types":["m.thread","m.reference"]}`:                                       {"threaded", "referred"},
		`{"related_by_senders":["` + string(alice.user) + `"]}`:                                     {"referred"},
		`{"related_by_rel_types":["m.thread"],"related_by_senders":["` + string(alice.user) + `"]}`: {},
		`{"related_by_rel_types":[]}`:                                                               {},
	} {
		var page struct{ Chunk []syncedEvent }
		raw := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=f&limit=50&filter="+url.QueryEscape(filter), nil).raw
		if err := json.Unmarshal([]byte(raw), &page); err != nil {
			t.Fatal(err)
		}
		wantList(t, "messages, "+filter, names(page.Chunk), want...)
		wantList(t, "sync, "+filter, names(alice.sync(since, `filter={"room":{"timeline":`+filter+`}}`).Rooms.Join[room].Timeline.Events), want...)
	}
}

// withHistory is a Remote that has found an event by its time, and has history to give.
type withHistory struct {
	*unreachable
	event  eventgraph.EventID
	plenty bool // of history; else it is given thrice
	asked  []int
	above  []int64
}

func (w *withHistory) EventNear(context.Context, eventgraph.RoomID, int64, bool) (eventgraph.EventID, int64, error) {
	return w.event, 1, nil
}

func (w *withHistory) Backfill(_ context.Context, _ eventgraph.RoomID, limit int) (int, error) {
	w.asked = append(w.asked, limit)
	if w.plenty {
		return limit, nil
	}
	return max(0, 3-len(w.asked)), nil
}

func (w *withHistory) BackfillAbove(ctx context.Context, room eventgraph.RoomID, above int64, limit int) (int, error) {
	w.above = append(w.above, above)
	return w.Backfill(ctx, room, limit)
}

// Of an event that another server has found by its time the history is fetched, as long as there is more of it.
func TestFetchHistory(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	held := alice.say(room, "x")
	for event, want := range map[eventgraph.EventID]int{"$far": 3, held: 0} {
		remote := &withHistory{unreachable: s.remote, event: event}
		s.SetRemote(remote)
		s.fetchHistory(t.Context(), room, event)
		if len(remote.asked) != want {
			t.Errorf("%s: asked %v", event, remote.asked)
		}
	}
}

// State that resolution takes away is told by a stub (MSC4186, StateStub).
func TestSlidingStateThatIsGone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.state(room, "m.room.power_levels", "", `{"users":{"`+string(bob.user)+`":50}}`)
	bob.join(room)
	base := alice.say(room, "base")
	bob.state(room, "m.room.topic", "", `{"topic":"bob's"}`)
	ask := window(0, 9, 5, `["m.room.topic",""]`, "")
	first := alice.slide("", ask)
	wantList(t, "state", names(first.Rooms[room].State), "topic/")
	key := string(bob.user)
	alice.fork(base, "m.room.member", &key, `{"membership":"ban"}`)
	next := alice.slide(first.Pos, ask)
	if !strings.Contains(next.raw, `"required_state":[{"type":"m.room.topic","state_key":""}]`) {
		t.Errorf("after the ban that bob did not know of: %s", next.raw)
	}
}

// Who has left a room and is invited again from afar, where nobody of this server is any more, shares it with nobody.
func TestSyncDeviceListsLeftBeforeAnInviteFromAfar(t *testing.T) {
	t.Parallel()
	for _, membership := range []string{"invite", "leave"} {
		s := newTestServer(t, nil)
		alice, bob := s.newClient("alice"), s.newClient("bob")
		room := bob.room()
		alice.join(room)
		since := alice.sync("").NextBatch
		alice.member(room, alice, "leave")
		s.update(func(tx *store.Tx) error {
			m, err := tx.Member(room, alice.user)
			if err != nil {
				return err
			}
			m.Membership, m.Outside = membership, true
			if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: room, User: alice.user}); err != nil {
				return err
			}
			return tx.PutMember(m)
		})
		body := alice.sync(since)
		if !slices.Equal(body.DeviceLists.Left, []eventgraph.UserID{bob.user}) {
			t.Errorf("%s: device_lists.left of %s", membership, body.raw)
		}
		changes := alice.call(200, "GET", "/v3/keys/changes?from="+since+"&to="+body.NextBatch, nil)
		if !strings.Contains(changes.raw, `"left":["`+string(bob.user)) {
			t.Errorf("%s: keys/changes: %s", membership, changes.raw)
		}
	}
}

// Presence is of those only with whom one shares a room, now.
func TestSyncPresenceOfStrangers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	carol.room()
	since := alice.sync("").NextBatch
	for _, c := range []client{bob, carol} {
		c.call(200, "PUT", "/v3/presence/"+url.PathEscape(string(c.user))+"/status", `{"presence":"online","status_msg":"here"}`)
	}
	for _, body := range []syncBody{alice.sync(since), alice.sync("")} {
		var senders []eventgraph.UserID
		for _, e := range body.Presence.Events {
			if e.Sender != alice.user {
				senders = append(senders, e.Sender)
			}
		}
		if !slices.Equal(senders, []eventgraph.UserID{bob.user}) {
			t.Errorf("presence of %v", senders)
		}
	}
	bob.member(room, bob, "leave")
	body := alice.sync(since)
	since = body.NextBatch
	bob.call(200, "PUT", "/v3/presence/"+url.PathEscape(string(bob.user))+"/status", `{"presence":"unavailable"}`)
	if events := alice.sync(since, "set_presence=offline").Presence.Events; slices.ContainsFunc(events, func(e syncedEvent) bool { return e.Sender == bob.user }) {
		t.Errorf("presence of who has left: %v", events)
	}
}

// full_state tells all state again beside the timeline since the token, at once (sync.yaml, full_state).
func TestSyncFullState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room, quiet := alice.room(), alice.room()
	since := alice.sync("").NextBatch
	alice.say(room, "x")
	body := alice.sync(since, "full_state=true", "timeout=600000")
	wantList(t, "timeline", names(body.Rooms.Join[room].Timeline.Events), "x")
	wantList(t, "state", body.Rooms.Join[room].State.names(), "create/", "member/alice", "power_levels/", "join_rules/")
	wantList(t, "quiet timeline", names(body.Rooms.Join[quiet].Timeline.Events))
	wantList(t, "quiet state", body.Rooms.Join[quiet].State.names(), "create/", "member/alice", "power_levels/", "join_rules/")
	again := alice.sync(body.NextBatch, "full_state=true", "use_state_after=true")
	if got := again.Rooms.Join[room]; got.State != nil || len(got.StateAfter.Events) != 4 {
		t.Errorf("with use_state_after: %s", again.raw)
	}
}

// Knocks stand in a section of their own until they are answered (sync.yaml, Knocked Room).
func TestSyncKnock(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := eventgraph.RoomID(bob.call(200, "POST", "/v3/createRoom", `{"name":"hall","initial_state":[{"type":"m.room.join_rules","state_key":"","content":{"join_rule":"knock"}}]}`).text("room_id"))
	since, pos := alice.sync("").NextBatch, alice.slide("", window(0, 9, 1, "", "")).Pos
	alice.call(200, "POST", "/v3/knock/"+string(room), `{}`)
	body := alice.sync(since)
	stripped := body.Rooms.Knock[room].State
	if stripped.find("m.room.name") == nil || stripped.find("m.room.member") == nil || len(body.Rooms.Join)+len(body.Rooms.Leave)+len(body.Rooms.Invite) > 0 {
		t.Errorf("knocked: %s", body.raw)
	}
	if _, ok := alice.sync("").Rooms.Knock[room]; !ok {
		t.Error("a first sync has not the knock")
	}
	slid := alice.slide(pos, window(0, 9, 1, "", ""))
	if got := slid.Rooms[room]; got.Membership != "knock" || len(got.Stripped) == 0 {
		t.Errorf("sliding sync: %s", slid.raw)
	}
	bob.member(room, alice, "invite")
	next := alice.sync(body.NextBatch)
	if _, ok := next.Rooms.Invite[room]; !ok || len(next.Rooms.Knock) > 0 {
		t.Errorf("let in: %s", next.raw)
	}
	alice.member(room, alice, "leave")
	last := alice.sync(next.NextBatch)
	wantList(t, "declined", names(last.Rooms.Leave[room].Timeline.Events), "member/alice")
}

// A receipt that names a thread leaves the counts of the others (CS API, Threaded read receipts), in the answer too.
func TestSyncThreadCounts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	root := alice.say(room, "root")
	since := alice.sync("").NextBatch
	inThread := bob.message(room, fmt.Sprintf(`{"body":"t","msgtype":"m.text","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
	main := bob.say(room, "main")
	counts := func(filter string) (string, syncBody) {
		body := alice.sync(since, "filter="+filter)
		var raw struct {
			Rooms struct {
				Join map[eventgraph.RoomID]struct {
					Unread  json.RawMessage            `json:"unread_notifications"`
					Threads map[string]json.RawMessage `json:"unread_thread_notifications"`
				}
			}
		}
		if err := json.Unmarshal([]byte(body.raw), &raw); err != nil {
			t.Fatal(err)
		}
		got := raw.Rooms.Join[room]
		return strings.ReplaceAll(string(got.Unread)+string(got.Threads[string(root)]), "_count", ""), body
	}
	const threads = `{"room":{"timeline":{"unread_thread_notifications":true}}}`
	for _, step := range []struct {
		name           string
		do             func()
		whole, threads string
	}{
		{"both unread", func() {}, `{"highlight":0,"notification":2}`, `{"highlight":0,"notification":1}{"highlight":0,"notification":1}`},
		{"main read", func() { alice.read(room, "m.read", main, "main") }, `{"highlight":0,"notification":1}`, `{"highlight":0,"notification":0}{"highlight":0,"notification":1}`},
		{"answered in the thread", func() {
			alice.message(room, fmt.Sprintf(`{"body":"t","msgtype":"m.text","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
		}, `{"highlight":0,"notification":0}`, `{"highlight":0,"notification":0}`},
	} {
		step.do()
		if got, _ := counts(`{}`); got != step.whole {
			t.Errorf("%s: %s, want %s", step.name, got, step.whole)
		}
		if got, _ := counts(threads); got != step.threads {
			t.Errorf("%s, by thread: %s, want %s", step.name, got, step.threads)
		}
	}
	_ = inThread
}

// A pos of sliding sync and a token of /sync are as good for /messages (MSC4186, Connections).
func TestSlidingPosInMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	alice.say(room, "before")
	pos := alice.slide("", window(0, 9, 1, "", "")).Pos
	since := alice.sync("").NextBatch
	alice.say(room, "after")
	for _, from := range []string{pos, since} {
		var page struct{ Chunk []syncedEvent }
		raw := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=1&from="+from, nil).raw
		if err := json.Unmarshal([]byte(raw), &page); err != nil {
			t.Fatal(err)
		}
		wantList(t, "back from "+from, names(page.Chunk), "before")
		alice.call(200, "GET", "/v3/rooms/"+string(room)+"/members?at="+from, nil)
	}
}

// /members at a token lists those of that time.
func TestMembersAt(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	alice.say(room, "then")
	at := alice.sync("").NextBatch
	bob.member(room, bob, "leave")
	carol.join(room)
	for query, want := range map[string][]string{
		"at=" + at:                       {"member/alice", "member/bob"},
		"at=" + at + "&membership=leave": {},
		"":                               {"member/alice", "member/bob", "member/carol"},
		"membership=join":                {"member/alice", "member/carol"},
		"not_membership=join&at=" + at:   {},
		"not_membership=leave":           {"member/alice", "member/carol"},
	} {
		var page struct{ Chunk []syncedEvent }
		if err := json.Unmarshal([]byte(alice.call(200, "GET", "/v3/rooms/"+string(room)+"/members?"+query, nil).raw), &page); err != nil {
			t.Fatal(err)
		}
		got := names(page.Chunk)
		slices.Sort(got)
		wantList(t, query, got, want...)
	}
	alice.call(400, "GET", "/v3/rooms/"+string(room)+"/members?at=nonsense", nil)
}
