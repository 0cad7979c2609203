package clientapi

import (
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/push"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// permission sets m.invite_permission_config.
func (c client) permission(content string) {
	c.s.t.Helper()
	c.call(200, "PUT", "/v3/user/"+string(c.user)+"/account_data/"+rooms.InvitePermissionType, content)
}

// invites says whether /sync shows the invite, and sliding sync; the two must agree.
func (c client) invites(since string, room eventgraph.RoomID) bool {
	c.s.t.Helper()
	_, shown := c.sync(since).Rooms.Invite[room]
	if since == "" {
		if _, listed := c.slide("", window(0, 99, 1, "", "")).Rooms[room]; listed != shown {
			c.s.t.Errorf("/sync shows the invite: %v, sliding sync: %v", shown, listed)
		}
	}
	return shown
}

// Who blocks invites cannot be invited (CS API, Invite permission).
func TestInvitesBlocked(t *testing.T) {
	t.Parallel()
	_, alice, bob, carol := newMeeting(t)
	room := alice.createRoom(`{}`)
	ways := []struct{ method, path, body string }{
		{"POST", "/v3/rooms/" + string(room) + "/invite", fmt.Sprintf(`{"user_id":%q}`, bob.user)},
		{"PUT", "/v3/rooms/" + string(room) + "/state/m.room.member/" + string(bob.user), `{"membership":"invite"}`},
		{"POST", "/v3/createRoom", fmt.Sprintf(`{"invite":[%q,%q],"room_alias_name":"blocked"}`, carol.user, bob.user)},
	}
	for range 2 {
		bob.permission(`{"default_action":"block"}`)
		for _, way := range ways {
			if a := alice.call(403, way.method, way.path, way.body); a.code() != "M_INVITE_BLOCKED" {
				t.Errorf("%s %s: %s", way.method, way.path, a.raw)
			}
		}
		if n := len(bob.sync("").Rooms.Invite) + len(carol.sync("").Rooms.Invite); n > 0 {
			t.Errorf("%d invites all the same", n)
		}
		alice.call(404, "GET", "/v3/directory/room/%23blocked:"+string(alice.s.Server), nil)
		alice.call(404, "GET", ways[1].path, nil)
	}
	// Bans and what is no invite go on.
	alice.inRoom(200, room, "ban", map[string]any{"user_id": bob.user})
	alice.inRoom(200, room, "unban", map[string]any{"user_id": bob.user})
	for _, content := range []string{`{}`, `{"default_action":"allow"}`, `{"default_action":["block"]}`, `{"default_action":null}`} {
		bob.permission(content)
		alice.invite(room, bob)
		if !bob.invites("", room) {
			t.Errorf("%s: no invite is shown", content)
		}
		bob.inRoom(200, room, "leave", nil)
	}
}

// Invites that are there, or come all the same, are not shown while they are blocked; the room's state has them.
func TestBlockedInvitesAreNotShown(t *testing.T) {
	t.Parallel()
	s, alice, bob, _ := newMeeting(t)
	room := alice.createRoom(`{"preset":"private_chat"}`)
	alice.invite(room, bob)
	bob.permission(`{"default_action":"block"}`)
	if bob.invites("", room) {
		t.Error("an invite from before is shown")
	}
	if member := alice.stateOf(string(room), "m.room.member/"+string(bob.user)); member["membership"] != "invite" {
		t.Errorf("the room's state: %v", member)
	}
	late, since := alice.room(), bob.sync("").NextBatch
	list := window(0, 99, 1, "", "")
	pos := bob.slide("", list).Pos
	invite := alice.member(late, bob, "invite") // as it comes from another server of the room
	if bob.invites(since, late) {
		t.Error("an invite that came all the same is shown")
	}
	if body := bob.slide(pos, list); len(body.Rooms) > 0 {
		t.Errorf("sliding sync: %s", body.raw)
	}
	bob.wantTold("blocked", late, []eventgraph.EventID{invite})
	afar := store.Member{
		Room: "!far", User: bob.user, Membership: "invite", Event: "$invite", Position: 7, Outside: true,
		Invite: fmt.Appendf(nil, `{"type":"m.room.member","state_key":%q,"sender":"@a:far","content":{"membership":"invite"}}`, bob.user),
	}
	toldFromAfar := func() (n *push.Notice) {
		t.Helper()
		if err := s.Store.View(func(r *store.Reader) (err error) { n, err = s.Invitation(r, &afar); return err }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := toldFromAfar(); n != nil {
		t.Errorf("a push gateway is told: %+v", n)
	}
	// A connection of sliding sync that goes on sees what is no longer blocked, and the other way round.
	pos = bob.slide("", list).Pos
	bob.permission(`{}`)
	body := bob.slide(pos, list)
	if len(body.Rooms) != 2 || body.Rooms[late].Membership != "invite" {
		t.Errorf("unblocked: %s", body.raw)
	}
	bob.permission(`{"default_action":"block"}`)
	if lists := bob.slide(body.Pos, list).Lists; body.Lists["all"].Count != 2 || lists["all"].Count != 0 {
		t.Errorf("the list had %d rooms, and has %d", body.Lists["all"].Count, lists["all"].Count)
	}
	bob.permission(`{}`)
	if !bob.invites("", room) || !bob.invites("", late) || toldFromAfar() == nil {
		t.Error("what is no longer blocked is not shown")
	}
	bob.wantTold("unblocked", late, []eventgraph.EventID{invite}, invite)
	bob.permission(`{"default_action":"block"}`)
	// Who is put out and invited again at once is out: the invite is not shown, but the client must not think them joined.
	bob.join(late)
	since = bob.sync("").NextBatch
	alice.member(late, bob, "leave")
	alice.member(late, bob, "invite")
	again := bob.sync(since)
	if _, out := again.Rooms.Leave[late]; !out || len(again.Rooms.Invite) > 0 {
		t.Errorf("put out and invited again: %s", again.raw)
	}
}

// Application services are told of blocked invites as of all others (CS API, Invite permission).
func TestServicesAreToldOfBlockedInvites(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "")
	ghost := bridge{client: bot}.ghost("irc_nick")
	alice := r.newClient("alice")
	bot.call(200, "PUT", "/v3/user/"+string(ghost)+"/account_data/"+rooms.InvitePermissionType+"?"+as(ghost), `{"default_action":"block"}`)
	r.run(t)
	alice.member(alice.room(), client{s: r.testServer, user: ghost}, "invite")
	for _, e := range r.collect(t, `"invite"`) {
		if key, _ := e["state_key"].(string); key == string(ghost) {
			return
		}
	}
	t.Error("the service is not told")
}

// An invite that was held back is told once its sender is not ignored any more, or invites are not blocked (CS API, Ignoring Users).
func TestInviteHeldBackIsTold(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	set := func(dataType string, content map[string]any) {
		t.Helper()
		bob.call(200, "PUT", "/v3/user/"+string(bob.user)+"/account_data/"+dataType, content)
	}
	ignore := func(users map[string]any) { set("m.ignored_user_list", map[string]any{"ignored_users": users}) }
	ignore(map[string]any{string(alice.user): map[string]any{}})
	room := alice.room()
	alice.member(room, bob, "invite")
	since := ""
	told := func(when string, want int) {
		t.Helper()
		body := bob.sync(since)
		since = body.NextBatch
		if n := len(body.Rooms.Invite); n != want {
			t.Errorf("%s: %d invites, want %d", when, n, want)
		}
	}
	told("ignored", 0)
	set("org.example.other", map[string]any{})
	told("other account data", 0)
	ignore(map[string]any{})
	told("not ignored any more", 1)
	told("told once", 0)
	set("m.invite_permission_config", map[string]any{"default_action": "block"})
	told("all are blocked", 0)
	set("m.invite_permission_config", map[string]any{})
	told("not blocked any more", 1)
}
