package clientapi

import (
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// who lists the memberships of an answer of /members as "localpart membership".
func who(a answer) (out []string) {
	for _, e := range a.body["chunk"].([]any) {
		event := e.(map[string]any)
		out = append(out, eventgraph.UserID(event["state_key"].(string)).Localpart()+" "+event["content"].(map[string]any)["membership"].(string))
	}
	slices.Sort(out)
	return out
}

// Who has left reads the room as it was then: its state, its members, and what was said, backwards; forwards there is nothing
// (CS API, Room history visibility).
func TestDepartedRoom(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat","initial_state":[{"type":"m.room.history_visibility","content":{"history_visibility":"joined"}}]}`)
	bob.inRoom(200, room, "join", nil)
	put := func(n string) {
		alice.state(room, "m.room.name", "", `{"name":"N`+n+`"}`)
		alice.state(room, "test.state", "", `{"body":"S`+n+`"}`)
		alice.say(room, "M"+n)
	}
	put("1")
	alice.say(room, "M1b")
	inside := bob.sync("").NextBatch
	bob.inRoom(200, room, "leave", nil)
	gone := bob.sync(inside).NextBatch
	put("2")
	carol.inRoom(200, room, "join", nil)

	base := "/v3/rooms/" + string(room)
	for reader, want := range map[client][]string{bob: {"N1", "S1"}, alice: {"N2", "S2"}} {
		if name, state := reader.stateOf(string(room), "m.room.name")["name"], reader.stateOf(string(room), "test.state")["body"]; name != want[0] || state != want[1] {
			t.Errorf("%s reads %v and %v", reader.user, name, state)
		}
	}
	wantList(t, "members", who(bob.call(200, "GET", base+"/members", nil)), "alice join", "bob leave")
	wantList(t, "members who have left", who(alice.call(200, "GET", base+"/members?membership=leave", nil)), "bob leave")
	wantList(t, "members who are there", who(alice.call(200, "GET", base+"/members?membership=join", nil)), "alice join", "carol join")
	wantList(t, "members who have not", who(alice.call(200, "GET", base+"/members?not_membership=leave", nil)), "alice join", "carol join")
	for query, want := range map[string][]string{
		"dir=b&limit=3&from=" + gone:     {"", "M1b", "M1"},
		"dir=b&limit=3":                  {"", "M1b", "M1"},
		"dir=f&limit=100&from=" + gone:   nil,
		"dir=f&limit=100&from=" + inside: {""},
	} {
		var got []string
		for _, e := range bob.call(200, "GET", base+"/messages?"+query, nil).body["chunk"].([]any) {
			got = append(got, bodyOf(e))
		}
		wantList(t, query, got, want...)
	}
}

// A sync shows of a room left what was there before, whether its timeline has events or, by its filter, has none.
func TestSyncOfDepartedRoom(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat"}`)
	bob.inRoom(200, room, "join", nil)
	since := bob.sync("").NextBatch
	for _, when := range []string{"before", "after"} {
		alice.say(room, when)
		alice.state(room, "test.state", "", `{"key":"`+when+`"}`)
		if when == "before" {
			bob.inRoom(200, room, "leave", nil)
		}
	}
	const some = `filter={"room":{"timeline":{"types":["m.room.message","test.state"]},"state":{"types":["test.state"]},"include_leave":true}}`
	const none = `filter={"room":{"timeline":{"limit":0},"include_leave":true}}`
	for what, token := range map[string]string{"initial": "", "incremental": since} {
		left := bob.sync(token, some).Rooms.Leave[room]
		wantList(t, what+": timeline", names(left.Timeline.Events), "before", "test.state/")
		wantList(t, what+": state", left.State.names())
		left = bob.sync(token, none).Rooms.Leave[room]
		if len(left.Timeline.Events) > 0 || left.State == nil {
			t.Fatalf("%s: %+v", what, left)
		}
		member := slices.IndexFunc(left.State.Events, func(e syncedEvent) bool { return e.StateKey != nil && *e.StateKey == string(bob.user) })
		if e := left.State.find("test.state"); e == nil || e.Content["key"] != "before" || member < 0 || left.State.Events[member].Content["membership"] != "leave" {
			t.Errorf("%s, without a timeline: %+v", what, left.State)
		}
	}
}

// The leaving itself is shown to who leaves, in whatever way the client goes on, once, and however much is said elsewhere meanwhile.
func TestSyncOwnLeaving(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat","initial_state":[{"type":"m.room.history_visibility","content":{"history_visibility":"joined"}}]}`)
	other := alice.createRoom(`{"preset":"public_chat"}`)
	bob.inRoom(200, room, "join", nil)
	const gappy = `filter={"room":{"timeline":{"limit":1},"include_leave":true}}`
	since := alice.sync("").NextBatch
	alice.inRoom(200, room, "leave", nil)
	for range 20 {
		alice.say(other, "filler")
	}
	for what, body := range map[string]syncBody{
		"first":                      alice.sync("", withLeftRooms),
		"full state":                 alice.sync(since, withLeftRooms, "full_state=true"),
		"incremental":                alice.sync(since),
		"incremental, and left ones": alice.sync(since, withLeftRooms),
		"in a gap":                   alice.sync(since, gappy),
	} {
		left, ok := body.Rooms.Leave[room]
		events := left.Timeline.Events
		if _, joined := body.Rooms.Join[room]; !ok || joined || len(events) == 0 || events[len(events)-1].Sender != alice.user || events[len(events)-1].Content["membership"] != "leave" {
			t.Errorf("%s: %s", what, body.raw)
		}
		if what[:2] == "in" && (len(events) != 1 || len(left.State.Events) > 0) {
			t.Errorf("%s: more than the leaving: %+v", what, left)
		}
	}
	next := alice.sync(since, gappy).NextBatch
	bob.state(room, "m.room.member", string(bob.user), `{"membership":"join","filler":"welcome back"}`)
	for range 20 {
		alice.say(other, "filler")
	}
	if body := alice.sync(next, gappy); len(body.Rooms.Leave) > 0 {
		t.Errorf("told again: %s", body.raw)
	}
}

// full_state tells of the rooms where nothing has happened, too; a change of a profile is told as the member's (CS API, sync; PUT profile).
func TestSyncFullStateAndProfile(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	start := alice.sync("").NextBatch
	room := alice.createRoom(`{"preset":"public_chat","topic":"T","invite":["` + string(bob.user) + `"]}`)
	made := alice.sync(start)
	if got := made.Rooms.Join[room]; got.Summary == nil || got.Summary.Joined != 1 || got.Summary.Invited != 1 {
		t.Errorf("summary: %s", made.raw)
	} else {
		wantList(t, "what makes the room", names(got.Timeline.Events)[:2], "create/", "member/alice")
	}
	since := made.NextBatch
	if got := alice.sync(since, "full_state=true").Rooms.Join[room]; got.State.find("m.room.create") == nil && !slices.Contains(names(got.Timeline.Events), "create/") {
		t.Errorf("full state: %+v", got)
	}
	if body := alice.sync(since); len(body.Rooms.Join) > 0 {
		t.Errorf("unchanged: %s", body.raw)
	}
	bob.inRoom(200, room, "join", nil)
	for reader, token := range map[client]string{alice: since, bob: start} {
		if got := reader.sync(token).Rooms.Join[room].Summary; got == nil || got.Joined != 2 || got.Invited != 0 {
			t.Errorf("%s: summary %+v", reader.user, got)
		}
	}
	for _, field := range []string{"displayname", "avatar_url"} {
		token := bob.sync("").NextBatch
		alice.call(200, "PUT", "/v3/profile/"+string(alice.user)+"/"+field, map[string]string{field: "mxc://x/Lemur"})
		events := bob.sync(token).Rooms.Join[room].Timeline.Events
		if len(events) != 1 || events[0].Type != "m.room.member" || events[0].Sender != alice.user || events[0].Content[field] != "mxc://x/Lemur" {
			t.Errorf("%s: %+v", field, events)
		}
	}
}

// Members are loaded with the messages of those who sent them (CS API, Lazy-loading room members).
func TestMessagesLazyMembers(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat"}`)
	bob.inRoom(200, room, "join", nil)
	carol.inRoom(200, room, "join", nil)
	bob.say(room, "one")
	from := alice.sync("").NextBatch
	carol.say(room, "two")
	to := alice.sync(from).NextBatch
	const lazy = `&filter={"lazy_load_members":true}`
	for query, want := range map[string]string{
		"?dir=f&from=" + from + "&to=" + to: "carol join",
		"?dir=b&limit=1&from=" + from:       "bob join",
		"?dir=b&limit=1&from=" + to:         "carol join",
	} {
		a := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages"+query+lazy, nil)
		if got := who(answer{body: map[string]any{"chunk": a.body["state"]}}); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}
	// In a room with oneself alone there is oneself.
	own := alice.createRoom(`{}`)
	alice.say(own, "one")
	a := alice.call(200, "GET", "/v3/rooms/"+string(own)+"/messages?dir=b"+lazy+"&from="+alice.sync("").NextBatch, nil)
	if got := who(answer{body: map[string]any{"chunk": a.body["state"]}}); len(got) != 1 || got[0] != "alice join" {
		t.Errorf("alone: %v", got)
	}
}
