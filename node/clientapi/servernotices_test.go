package clientapi

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/store"
)

// notify sends a notice to the client's user.
func (c client) notify(body, txn string) *NoticeSent {
	c.s.t.Helper()
	sent, err := c.s.SendServerNotice(c.s.t.Context(), c.user, ServerNotice{Content: json.RawMessage(text(body)), TxnID: txn})
	if err != nil {
		c.s.t.Fatal(err)
	}
	return sent
}

// noticeInvite is the room that the server's user has invited the client's user to.
func (c client) noticeInvite(since string) (room eventgraph.RoomID) {
	c.s.t.Helper()
	for id, invite := range c.sync(since).Rooms.Invite {
		if e := invite.State.find("m.room.member"); e != nil && slices.ContainsFunc(invite.State.Events, func(e syncedEvent) bool {
			return e.Type == "m.room.member" && e.Sender == c.s.serverUser() && *e.StateKey == string(c.user) && e.Content["membership"] == "invite"
		}) {
			room = id
		}
	}
	return room
}

// CS API, Server Notices: an invite that cannot be rejected, to a room that can be left, and that stays the only one.
func TestServerNotices(t *testing.T) {
	t.Parallel()
	s, alice, bob, _ := newMeeting(t)
	for _, path := range []string{"/_synapse/admin/v1/send_server_notice", "/notices"} { // for users there is no way to send one
		if a := s.send("POST", path, alice.token, map[string]any{"user": "bob", "text": "x"}); a.status != 404 || a.code() != "M_UNRECOGNIZED" {
			t.Errorf("%s: %d %s", path, a.status, a.raw)
		}
	}
	first := alice.notify("the first", "")
	room := alice.noticeInvite("")
	if room == "" || room != first.Room || first.User != alice.user {
		t.Fatalf("%+v, invited to %q", first, room)
	}
	invite := alice.sync("").Rooms.Invite[room].State
	if name, create := invite.find("m.room.name"), invite.find("m.room.create"); name == nil || name.Content["name"] != noticeRoomName || create == nil || create.Content["m.federate"] != false {
		t.Errorf("stripped state: %+v", invite)
	}
	reject := func() {
		t.Helper()
		if a := alice.inRoom(403, room, "leave", nil); a.code() != "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM" {
			t.Errorf("rejected: %s", a.raw)
		}
		if a := alice.inRoom(403, room, "kick", map[string]any{"user_id": alice.user}); a.code() != "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM" {
			t.Errorf("kicked oneself: %s", a.raw)
		}
		path := "/v3/rooms/" + string(room) + "/state/m.room.member/" + string(alice.user)
		if a := alice.call(403, "PUT", path, `{"membership":"leave"}`); a.code() != "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM" {
			t.Errorf("left as a state event: %s", a.raw)
		}
		if alice.noticeInvite("") != room {
			t.Error("the invite has gone")
		}
	}
	reject()
	alice.inRoom(200, room, "join", nil)
	synced := alice.sync("").Rooms.Join[room]
	if !slices.ContainsFunc(synced.Timeline.Events, func(e syncedEvent) bool { return e.ID == first.Event && e.Content["msgtype"] == "m.text" }) {
		t.Errorf("the notice is not in %q", names(synced.Timeline.Events))
	}
	if tag := synced.AccountData.find("m.tag"); tag == nil || tag.Content["tags"].(map[string]any)["m.server_notice"] == nil {
		t.Errorf("no tag in %+v", synced.AccountData)
	}
	for _, what := range []string{"send/m.room.message/1", "state/m.room.encryption/", "state/m.room.name/", "send/m.reaction/1"} {
		if a := alice.call(403, "PUT", "/v3/rooms/"+string(room)+"/"+what, text("x")); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", what, a.raw)
		}
	}
	if a := alice.inRoom(403, room, "invite", map[string]any{"user_id": bob.user}); a.code() != "M_FORBIDDEN" {
		t.Errorf("invited: %s", a.raw)
	}

	alice.inRoom(200, room, "leave", nil)
	alice.call(200, "DELETE", "/v3/user/"+string(alice.user)+"/rooms/"+string(room)+"/tags/m.server_notice", nil)
	alice.inRoom(200, room, "forget", nil)
	since := alice.sync("").NextBatch
	second := alice.notify("the second", "")
	if second.Room != room || alice.noticeInvite(since) != room || second.Event == first.Event {
		t.Errorf("after leaving: %+v", second)
	}
	reject()
	alice.inRoom(200, room, "join", nil)
	if a := alice.call(200, "GET", "/v3/user/"+string(alice.user)+"/rooms/"+string(room)+"/tags", nil); !strings.Contains(a.raw, "m.server_notice") {
		t.Errorf("the tag has not come back: %s", a.raw)
	}
	since = alice.sync("").NextBatch
	third := alice.notify("the third", "")
	wantList(t, "who is joined", names(alice.sync(since).Rooms.Join[room].Timeline.Events), "the third")

	if other := bob.notify("the first", ""); other.Room == third.Room || bob.noticeInvite("") != other.Room {
		t.Errorf("bob's: %+v", other)
	}
	var joined []eventgraph.RoomID
	if err := s.Store.View(func(r *store.Reader) (err error) { joined, err = joinedTo(r, s.serverUser()); return err }); err != nil || len(joined) != 2 {
		t.Errorf("rooms for notices: %q %v", joined, err)
	}
	if profile := alice.call(200, "GET", "/v3/profile/"+string(s.serverUser()), nil); profile.text("displayname") != "This server" {
		t.Error(profile.raw)
	}
}

// The same transaction ID sends nothing again, though the user has left since; for another user it is another notice.
func TestServerNoticeTwice(t *testing.T) {
	t.Parallel()
	_, alice, bob, _ := newMeeting(t)
	first := alice.notify("once", "1")
	alice.inRoom(200, first.Room, "join", nil)
	alice.inRoom(200, first.Room, "leave", nil)
	since := alice.sync("").NextBatch
	if again := alice.notify("once", "1"); *again != *first || alice.noticeInvite(since) != "" {
		t.Errorf("%+v and then %+v", first, again)
	}
	if other := alice.notify("once", "2"); other.Event == first.Event {
		t.Error("another ID is the same notice")
	}
	if bobs := bob.notify("once", "1"); bobs.Event == first.Event || bob.noticeInvite("") == "" {
		t.Errorf("bob: %+v", bobs)
	}
}

// Notices sent at the same moment share one room, with all of them in it.
func TestServerNoticesAtOnce(t *testing.T) {
	t.Parallel()
	s, alice, bob, _ := newMeeting(t)
	var all sync.WaitGroup
	rooms, events := make([]eventgraph.RoomID, 8), make([]eventgraph.EventID, 8)
	for i := range rooms {
		all.Go(func() {
			sent, err := s.SendServerNotice(t.Context(), alice.user, ServerNotice{Content: json.RawMessage(text("x"))})
			if err != nil {
				t.Error(err)
				return
			}
			rooms[i], events[i] = sent.Room, sent.Event
		})
	}
	all.Wait()
	slices.Sort(events)
	if len(slices.Compact(rooms)) != 1 || len(slices.Compact(events)) != 8 {
		t.Errorf("%q %q", rooms, events)
	}

	dave := s.newClient("dave")
	davesRoom := dave.notify("x", "").Room
	dave.prove("POST", "/v3/account/deactivate", map[string]any{}) // ends the invite, as all
	if m, err := s.member(davesRoom, dave.user); err != nil || m.Membership != "leave" {
		t.Errorf("%+v %v", m, err)
	}
	sent, err := s.SendServerNotices(t.Context(), ServerNotice{Content: json.RawMessage(text("to all")), TxnID: "1"})
	if err != nil || len(sent) != 3 || sent[0].User != alice.user || sent[0].Room != rooms[0] || sent[1].User != bob.user || sent[1].Event == "" || sent[2].Error != "" {
		t.Errorf("%+v %v", sent, err)
	}
	again, err := s.SendServerNotices(t.Context(), ServerNotice{Content: json.RawMessage(text("to all")), TxnID: "1"})
	if err != nil || !slices.Equal(sent, again) {
		t.Errorf("again %+v %v", again, err)
	}
}

// Who blocks invites is shown none, so whoever would tell them something learns that it does not come; in the room they are told (CS API, Invite
// permission).
func TestServerNoticeForWhoBlocksInvites(t *testing.T) {
	t.Parallel()
	s, alice, _, _ := newMeeting(t)
	refused := func() {
		t.Helper()
		_, err := s.SendServerNotice(t.Context(), alice.user, ServerNotice{Content: json.RawMessage(text("x"))})
		if e := asMatrixError(err); e == nil || e.Code != "M_INVITE_BLOCKED" {
			t.Errorf("%v", err)
		}
	}
	block := func(on bool) {
		t.Helper()
		content := `{}`
		if on {
			content = `{"default_action":"block"}`
		}
		alice.putAccountData("", "m.invite_permission_config", content)
	}
	block(true)
	refused()
	block(false)
	room := alice.notify("x", "").Room
	alice.inRoom(200, room, "join", nil)
	block(true)
	alice.notify("x", "")
	alice.inRoom(200, room, "leave", nil)
	refused()
}

// A notice of the type m.server_notice is pinned until the next notice, and has what the specification demands of it.
func TestServerNoticeOfALimit(t *testing.T) {
	t.Parallel()
	s, alice, _, _ := newMeeting(t)
	tell := func(content string) (*NoticeSent, error) {
		return s.SendServerNotice(t.Context(), alice.user, ServerNotice{Content: json.RawMessage(content)})
	}
	for content, code := range map[string]string{
		`[]`:                   "M_BAD_JSON",
		`{"msgtype":1}`:        "M_BAD_JSON",
		`{"msgtype":"m.text"}`: "M_MISSING_PARAM",
		`{"body":"x"}`:         "M_MISSING_PARAM",
		`{"msgtype":"m.text","body":"` + strings.Repeat("x", 65<<10) + `"}`: "M_TOO_LARGE",
		`{"msgtype":"m.server_notice","body":"x"}`:                          "M_MISSING_PARAM",
		`{"msgtype":"m.server_notice","body":"x","server_notice_type":"m.server_notice.usage_limit_reached","admin_contact":"mailto:a@x.example"}`:      "M_MISSING_PARAM",
		`{"msgtype":"m.server_notice","body":"x","server_notice_type":"m.server_notice.usage_limit_reached","limit_type":"monthly_active_user"}`:        "M_MISSING_PARAM",
		`{"msgtype":"m.server_notice","body":"x","server_notice_type":"m.server_notice.usage_limit_reached","limit_type":1,"admin_contact":"mailto:a"}`: "M_BAD_JSON",
	} {
		_, err := tell(content)
		if e := asMatrixError(err); e == nil || e.Code != code {
			t.Errorf("%.80s: %v, want %s", content, err, code)
		}
	}
	if _, err := s.SendServerNotice(t.Context(), alice.user, ServerNotice{Content: json.RawMessage(text("x")), TxnID: strings.Repeat("x", maxTxnID+1)}); asMatrixError(err).Code != "M_INVALID_PARAM" {
		t.Error(err)
	}
	atLimit := func() *NoticeSent {
		t.Helper()
		sent, err := s.SendServerNotice(t.Context(), alice.user, ServerNotice{TxnID: "limit", Content: json.RawMessage(
			`{"msgtype":"m.server_notice","body":"x","server_notice_type":"m.server_notice.usage_limit_reached","limit_type":"monthly_active_user","admin_contact":"mailto:a@x.example"}`)})
		if err != nil {
			t.Fatal(err)
		}
		return sent
	}
	limit := atLimit()
	alice.inRoom(200, limit.Room, "join", nil)
	pinned := func() string {
		t.Helper()
		return alice.call(200, "GET", "/v3/rooms/"+string(limit.Room)+"/state/m.room.pinned_events/", nil).raw
	}
	if got := pinned(); !strings.Contains(got, string(limit.Event)) {
		t.Errorf("pinned is %s", got)
	}
	if err := s.pinNotice(t.Context(), limit.Room, "", false); err != nil { // as if the node had been ended before it was pinned
		t.Fatal(err)
	}
	if again := atLimit(); again.Event != limit.Event || !strings.Contains(pinned(), string(limit.Event)) {
		t.Errorf("repeated: %+v, pinned is %s", again, pinned())
	}
	alice.notify("it is well again", "")
	if got := strings.TrimSpace(pinned()); got != `{"pinned":[]}` {
		t.Errorf("after another notice is pinned %s", got)
	}
	if atLimit(); strings.Contains(pinned(), string(limit.Event)) {
		t.Error("an old notice is pinned again")
	}
}

// In every version of rooms the server's user may say all, and the user nothing.
func TestServerNoticeInAnyRoomVersion(t *testing.T) {
	t.Parallel()
	for _, version := range eventgraph.SupportedVersions() {
		s := newTestServer(t, func(c *Config) { c.RoomVersion = version })
		s.SetRemote(localJoins{s.remote, s.Rooms})
		alice := s.newClient("alice")
		room := alice.notify("first", "").Room
		alice.inRoom(200, room, "join", nil)
		if a := alice.call(403, "PUT", "/v3/rooms/"+string(room)+"/send/m.room.message/1", text("x")); a.code() != "M_FORBIDDEN" {
			t.Errorf("version %s: %s", version, a.raw)
		}
		alice.inRoom(200, room, "leave", nil)
		if again := alice.notify("second", ""); again.Room != room {
			t.Errorf("version %s: %+v", version, again)
		}
	}
}

// Nobody can have the name of the server's user, log in by it, or act as it.
func TestServerUserIsNobodys(t *testing.T) {
	t.Parallel()
	s, b := newBridged(t, func(c *Config) { c.Registration = RegistrationOpen })
	register := map[string]any{"username": "_server", "password": "x", "auth": map[string]any{"type": stageDummy}}
	if a := s.send("POST", "/_matrix/client/v3/register", "", register); a.status != 400 || a.code() != "M_USER_IN_USE" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := s.send("GET", "/_matrix/client/v3/register/available?username=_Server", "", nil); a.status != 400 || a.code() != "M_USER_IN_USE" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if _, err := s.CreateUser(t.Context(), "_server", testPassword); asMatrixError(err) == nil || asMatrixError(err).Code != "M_USER_IN_USE" {
		t.Error(err)
	}
	alice := s.newClient("alice")
	alice.notify("x", "")
	login := map[string]any{"type": stagePassword, "user": "_server", "password": ""}
	if a := s.send("POST", "/_matrix/client/v3/login", "", login); a.status != 403 || a.code() != "M_FORBIDDEN" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if _, err := s.SendServerNotice(t.Context(), b.user, ServerNotice{Content: json.RawMessage(text("x"))}); err == nil {
		t.Error("a notice for a user of an application service")
	}

	// A service that says that all names are its own is no exception.
	greedy := t.TempDir() + "/greedy.yaml"
	registration := "id: greedy\nurl: null\nas_token: greedy-as\nhs_token: greedy-hs\nnamespaces: {users: [{exclusive: false, regex: \"@.*\"}]}\nsender_localpart: "
	for sender, fits := range map[string]bool{"greedy": true, serverLocalpart: false} {
		writeFile(t, greedy, registration+sender+"\n")
		other := newTestServer(t, func(c *Config) {
			var err error
			if c.Services, err = appservice.Load([]string{greedy}, c.Server, false); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Services.Close)
		})
		if err := other.EnsureServiceUsers(t.Context()); (err == nil) != fits {
			t.Errorf("a service with the sender %s: %v", sender, err)
		}
		if !fits {
			continue
		}
		if a := other.send("POST", "/_matrix/client/v3/register", "greedy-as", map[string]any{"type": loginService, "username": "_server"}); a.status != 400 || a.code() != "M_USER_IN_USE" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		who := "/_matrix/client/v3/account/whoami?user_id=" + url.QueryEscape(string(other.serverUser()))
		if a := other.send("GET", who, "greedy-as", nil); a.status != 403 || a.code() != "M_FORBIDDEN" {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
}

// An account of the name, from when anybody could have it, keeps notices from being sent: they would be its own.
func TestServerUserOfAnEarlierTime(t *testing.T) {
	t.Parallel()
	s, alice, _, _ := newMeeting(t)
	put := func(deactivated bool) {
		t.Helper()
		_, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
			return tx.PutAccount(&store.Account{User: s.serverUser(), Deactivated: deactivated})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(false)
	if _, err := s.SendServerNotice(t.Context(), alice.user, ServerNotice{Content: json.RawMessage(text("x"))}); err == nil || !strings.Contains(err.Error(), "deactivated first") {
		t.Error(err)
	}
	put(true)
	alice.notify("x", "")
}
