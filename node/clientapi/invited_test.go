package clientapi

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const withLeftRooms = `filter={"room":{"include_leave":true}}`

// newMeeting is a server where alice, bob and carol can come to rooms that are held here.
func newMeeting(t *testing.T) (s *testServer, alice, bob, carol client) {
	t.Helper()
	s = newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	return s, s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
}

// createRoom makes a room as clients do.
func (c client) createRoom(body string) eventgraph.RoomID {
	c.s.t.Helper()
	return eventgraph.RoomID(c.call(200, "POST", "/v3/createRoom", body).text("room_id"))
}

// inRoom posts to one of a room's endpoints.
func (c client) inRoom(want int, room eventgraph.RoomID, action string, body any) answer {
	c.s.t.Helper()
	return c.call(want, "POST", "/v3/rooms/"+string(room)+"/"+action, body)
}

func (c client) invite(room eventgraph.RoomID, who client) {
	c.s.t.Helper()
	c.inRoom(200, room, "invite", map[string]any{"user_id": who.user})
}

// A room is joined by its alias as by its ID, with what else the body says (CS API, POST /join/{roomIdOrAlias}).
func TestJoinByAlias(t *testing.T) {
	t.Parallel()
	s, alice, bob, _ := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat","room_alias_name":"den"}`)
	path := "/v3/join/" + url.PathEscape("#den:"+string(s.Server))
	for body, want := range map[string]string{"": "", `{"foo":"bar"}`: "bar"} {
		var sent any
		if body != "" {
			sent = body
		}
		if a := bob.call(200, "POST", path, sent); a.text("room_id") != string(room) {
			t.Errorf("%s", a.raw)
		}
		member := bob.stateOf(string(room), "m.room.member/"+string(bob.user))
		if foo, _ := member["foo"].(string); foo != want || member["membership"] != "join" {
			t.Errorf("%s: %v", body, member)
		}
		if _, ok := bob.sync("").Rooms.Join[room]; !ok {
			t.Error("bob's sync has not the room")
		}
		bob.inRoom(200, room, "leave", nil)
	}
	if a := bob.call(404, "POST", "/v3/join/"+url.PathEscape("#none:"+string(s.Server)), nil); a.code() != "M_NOT_FOUND" {
		t.Errorf("an alias that is none: %s", a.raw)
	}
	if a := bob.call(400, "POST", "/v3/join/den", nil); a.code() != "M_INVALID_PARAM" {
		t.Errorf("neither ID nor alias: %s", a.raw)
	}
}

// To join twice, or to set what is set, makes no second event.
func TestDoneAlready(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat"}`)
	bob.call(200, "POST", "/v3/join/"+string(room), nil)
	topic := func() string {
		return alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/m.room.topic", `{"topic":"T"}`).text("event_id")
	}
	before := alice.sync("").NextBatch
	first := topic()
	told := alice.sync(before)
	since := told.NextBatch
	wantList(t, "the topic is told", names(told.Rooms.Join[room].Timeline.Events), "topic/")
	if a := bob.call(200, "POST", "/v3/join/"+string(room), nil); a.text("room_id") != string(room) {
		t.Errorf("the second join: %s", a.raw)
	}
	if again := topic(); again != first {
		t.Errorf("set again as %s, first as %s", again, first)
	}
	if body := alice.sync(since); len(body.Rooms.Join) > 0 {
		t.Errorf("alice is told %s", body.raw)
	}
}

// Who is not invited does not get in; who is, does, and is told that, as are those who are there.
func TestInviteOnlyRoom(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	room := alice.createRoom(`{"preset":"private_chat","name":"Invites room"}`)
	for _, path := range []string{"/v3/join/" + string(room), "/v3/rooms/" + string(room) + "/join"} {
		if a := carol.call(403, "POST", path, nil); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	since := alice.sync("").NextBatch
	alice.invite(room, bob)
	state := bob.sync("").Rooms.Invite[room].State
	if name, rules := state.find("m.room.name"), state.find("m.room.join_rules"); name == nil || name.Content["name"] != "Invites room" ||
		rules == nil || rules.Content["join_rule"] != "invite" {
		t.Errorf("an invite shows %q", state.names())
	}
	bob.call(200, "POST", "/v3/join/"+string(room), nil)
	if _, ok := bob.sync("").Rooms.Join[room]; !ok {
		t.Error("bob has not joined")
	}
	wantList(t, "alice is told", names(alice.sync(since).Rooms.Join[room].Timeline.Events), "member/bob", "member/bob")
	if a := alice.inRoom(403, room, "invite", map[string]any{"user_id": bob.user}); a.code() != "M_FORBIDDEN" {
		t.Errorf("who is there already: %s", a.raw)
	}
	// Who made the room, left, and is invited again can come back.
	alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/m.room.power_levels", map[string]any{"users": map[string]int{string(bob.user): 100}})
	alice.inRoom(200, room, "leave", nil)
	bob.invite(room, alice)
	alice.call(200, "POST", "/v3/join/"+string(room), nil)
	if _, ok := alice.sync("").Rooms.Join[room]; !ok {
		t.Error("alice is not back")
	}
}

// A rejected invite is a room left, also if nobody is there any more or its history is for members only; who comes after all is in it.
func TestRejectInvite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body         string
		empty, comes bool
	}{
		"someone there":    {body: `{"preset":"private_chat"}`},
		"nobody there":     {body: `{"preset":"private_chat"}`, empty: true},
		"joined only":      {body: `{"initial_state":[{"type":"m.room.history_visibility","content":{"history_visibility":"joined"}}]}`},
		"and comes anyway": {body: `{"preset":"public_chat"}`, comes: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, alice, bob, _ := newMeeting(t)
			room := alice.createRoom(c.body)
			start := bob.sync("").NextBatch
			alice.invite(room, bob)
			invited := bob.sync(start)
			if _, ok := invited.Rooms.Invite[room]; !ok {
				t.Fatalf("no invite: %s", invited.raw)
			}
			since := alice.sync("").NextBatch
			if c.empty {
				alice.inRoom(200, room, "leave", nil)
			}
			bob.inRoom(200, room, "leave", nil)
			if got := names(alice.sync(since).Rooms.Join[room].Timeline.Events); !c.empty && !slices.Equal(got, []string{"member/bob"}) {
				t.Errorf("alice is told %q", got)
			}
			for what, body := range map[string]syncBody{
				"goes on": bob.sync(invited.NextBatch), "from before the invite": bob.sync(start), "full state": bob.sync(invited.NextBatch, "full_state=true"),
			} {
				left, ok := body.Rooms.Leave[room]
				if n := len(left.Timeline.Events); !ok || n == 0 || left.Timeline.Events[n-1].Content["membership"] != "leave" || len(body.Rooms.Invite) > 0 {
					t.Errorf("%s: %s", what, body.raw)
				}
				if again := bob.sync(body.NextBatch); len(again.Rooms.Invite)+len(again.Rooms.Leave) > 0 {
					t.Errorf("%s, and once more: %s", what, again.raw)
				}
			}
			if c.comes {
				since := bob.sync("").NextBatch
				bob.call(200, "POST", "/v3/join/"+string(room), nil)
				for _, token := range []string{since, invited.NextBatch, ""} {
					body := bob.sync(token, "full_state=true", withLeftRooms)
					if _, ok := body.Rooms.Join[room]; !ok || len(body.Rooms.Leave) > 0 {
						t.Errorf("after the join: %s", body.raw)
					}
				}
			}
		})
	}
}

// Who leaves and comes back between two syncs is in the room.
func TestLeaveAndComeBackUnseen(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat"}`)
	since := bob.sync("").NextBatch
	for _, action := range []string{"join", "leave", "join"} {
		bob.inRoom(200, room, action, nil)
	}
	for _, token := range []string{"", since} {
		body := bob.sync(token, withLeftRooms)
		if _, ok := body.Rooms.Join[room]; !ok || len(body.Rooms.Leave) > 0 {
			t.Errorf("%s", body.raw)
		}
	}
}

// A room may be forgotten by who was kicked, or only invited, or made it; it is in no sync then, but for the leaving itself, and is a room as
// any other to who is invited again (CS API, Leaving rooms).
func TestForget(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	if a := alice.inRoom(400, alice.createRoom(`{}`), "forget", nil); a.code() != "M_UNKNOWN" {
		t.Errorf("still there: %s", a.raw)
	}
	room := alice.createRoom(`{"preset":"private_chat"}`)
	alice.invite(room, bob)
	alice.invite(room, carol)
	carol.inRoom(200, room, "leave", nil)
	carol.inRoom(200, room, "forget", nil) // has never been a member
	bob.inRoom(200, room, "join", nil)
	said := alice.say(room, "before")
	inside := bob.sync("").NextBatch
	alice.inRoom(200, room, "kick", map[string]any{"user_id": bob.user})
	bob.inRoom(200, room, "forget", nil)
	alice.say(room, "behind his back")
	for _, who := range []client{bob, carol} {
		if body := who.sync("", withLeftRooms); strings.Contains(body.raw, string(room)) {
			t.Errorf("a first sync of %s: %s", who.user, body.raw)
		}
	}
	if body := bob.sync(inside, withLeftRooms); strings.Contains(body.raw, "behind") {
		t.Errorf("%s", body.raw)
	} else if _, ok := body.Rooms.Leave[room]; !ok {
		t.Errorf("the leaving is not told: %s", body.raw)
	}
	if a := bob.inRoom(403, room, "join", nil); a.code() != "M_FORBIDDEN" {
		t.Errorf("back without an invite: %s", a.raw)
	}
	alice.invite(room, bob)
	bob.inRoom(200, room, "join", nil)
	last := alice.say(room, "after")
	path := "/v3/rooms/" + string(room) + "/messages?dir=b&limit="
	if a := bob.call(200, "GET", path+"100", nil); !strings.Contains(a.raw, string(said)) {
		t.Errorf("what was said before he left: %s", a.raw)
	}
	if a := bob.call(200, "GET", path+"1", nil); !strings.Contains(a.raw, string(last)) {
		t.Errorf("what was said after he came: %s", a.raw)
	}
	bob.inRoom(200, room, "leave", nil)
	alice.inRoom(200, room, "leave", nil)
	alice.inRoom(200, room, "forget", nil)
}
