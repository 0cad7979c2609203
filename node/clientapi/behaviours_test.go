package clientapi

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A device is deleted by who owns it, by their own password, also where the client names no session at first (CS API, User-interactive API).
func TestDeleteDeviceWithoutSession(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	a := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{"type": stagePassword, "user": "alice", "password": testPassword,
		"device_id": "PHONE", "initial_device_display_name": "the phone"})
	phone := client{s, alice.user, "PHONE", a.text("access_token")}
	if got := alice.call(200, "GET", "/v3/devices/PHONE", nil); got.text("device_id") != "PHONE" || got.text("display_name") != "the phone" {
		t.Errorf("as it logged in: %s", got.raw)
	}
	proof := func(user eventgraph.UserID, password string) map[string]any {
		return map[string]any{"auth": map[string]any{"type": stagePassword, "password": password, "identifier": map[string]any{"type": "m.id.user", "user": user}}}
	}
	const path = "/v3/devices/PHONE"
	if ask := alice.call(401, "DELETE", path, nil); ask.text("session") == "" || ask.body["flows"] == nil || ask.body["params"] == nil {
		t.Errorf("without a body: %s", ask.raw)
	}
	wrong := alice.call(401, "DELETE", path, proof(alice.user, "wrong"))
	if wrong.code() != "M_FORBIDDEN" || wrong.text("session") == "" || wrong.body["flows"] == nil || wrong.body["params"] == nil || wrong.text("error") == "" {
		t.Errorf("a wrong password: %s", wrong.raw)
	}
	if a := alice.call(403, "DELETE", path, proof(bob.user, testPassword)); a.code() != "M_FORBIDDEN" {
		t.Errorf("bob's proof: %s", a.raw)
	}
	bob.call(200, "DELETE", path, proof(bob.user, testPassword)) // a device of his, which is not there
	phone.call(200, "GET", "/v3/account/whoami", nil)
	alice.call(200, "DELETE", path, proof(alice.user, testPassword))
	alice.call(404, "GET", path, nil)
	phone.call(401, "GET", "/v3/account/whoami", nil)

	if a := alice.call(401, "POST", "/v3/account/deactivate", proof(alice.user, "wrong")); a.code() != "M_FORBIDDEN" {
		t.Errorf("deactivated with a wrong password: %s", a.raw)
	}
	s.logIn("alice", "")
}

// An event shows its transaction ID to the device that sent it, also under a new token (CS API, UnsignedData).
func TestTransactionIDIsShownToItsDevice(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := string(alice.room())
	id := alice.call(200, "PUT", "/v3/rooms/"+room+"/send/m.room.message/abc", `{"msgtype":"m.text","body":"first"}`).text("event_id")
	shown := func(c client) []string {
		unsigned, _ := c.call(200, "GET", "/v3/rooms/"+room+"/event/"+id, nil).body["unsigned"].(map[string]any)
		single, _ := unsigned["transaction_id"].(string)
		events := c.sync("").Rooms.Join[eventgraph.RoomID(room)].Timeline.Events
		return []string{single, events[len(events)-1].Unsigned.TransactionID}
	}
	wantList(t, "to the device", shown(alice), "abc", "abc")
	wantList(t, "to the device with a new token", shown(s.logIn("alice", string(alice.device))), "abc", "abc")
	wantList(t, "to another", shown(s.logIn("alice", "OTHER")), "", "")
}

// A redaction of what nobody knows does not stop those who sync from it.
func TestSyncFromARedactionOfAnUnknownEvent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	base := alice.say(room, "base")
	alice.fork(base, "m.room.redaction", nil, `{"redacts":"$`+strings.Repeat("a", 43)+`"}`)
	since := alice.sync("").NextBatch
	for range 10 {
		alice.say(room, "filler")
	}
	last := alice.say(room, "last")
	got := alice.sync(since, `filter={"room":{"timeline":{"limit":10}}}`).Rooms.Join[room].Timeline
	if n := len(got.Events); n != 10 || got.Events[n-1].ID != last || !got.Limited {
		t.Errorf("%d events, limited %v", n, got.Limited)
	}
}

// What nobody can read as a filter is refused when it is uploaded, and JSON must be UTF-8 wherever it comes.
func TestRefusedFiltersAndEncodings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	bad := []string{`{"presence":"x"}`, `{"room":{"timeline":{"types":[1]}}}`}
	for _, part := range []string{"timeline", "state", "ephemeral", "account_data"} {
		bad = append(bad, `{"room":{"`+part+`":"x"}}`)
	}
	for _, list := range []string{"rooms", "not_rooms", "senders", "not_senders", "types", "not_types"} {
		bad = append(bad, `{"room":{"timeline":{"`+list+`":"x"}}}`)
	}
	for _, body := range bad {
		if a := alice.call(400, "POST", "/v3/user/"+string(alice.user)+"/filter", body); a.code() != "M_BAD_JSON" {
			t.Errorf("%s: %s", body, a.raw)
		}
		if a := alice.call(400, "GET", "/v3/sync?filter="+url.QueryEscape(body), nil); !strings.HasPrefix(a.code(), "M_") {
			t.Errorf("%s in a sync: %s", body, a.raw)
		}
	}
	if a := s.send("POST", "/_matrix/client/v3/register", "", "{\"test\":\"a\x81\"}"); a.status != 400 || a.code() != "M_NOT_JSON" {
		t.Errorf("not UTF-8: %d %s", a.status, a.raw)
	}
}

// Search goes over a room and the one that it was upgraded to.
func TestSearchAcrossAnUpgrade(t *testing.T) {
	t.Parallel()
	_, alice, _, _ := newMeeting(t)
	old := alice.createRoom(`{"preset":"private_chat","room_version":"8"}`)
	before := alice.say(old, "Message before upgrade")
	room := eventgraph.RoomID(alice.inRoom(200, old, "upgrade", `{"new_version":"9"}`).text("replacement_room"))
	after := alice.say(room, "Message after upgrade")
	events, _ := searched(alice.call(200, "POST", "/v3/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{
		"keys": []string{"content.body"}, "search_term": "upgrade", "filter": map[string]any{"rooms": []eventgraph.RoomID{old, room}}}}}))
	var ids []string
	for _, r := range events["results"].([]any) {
		ids = append(ids, r.(map[string]any)["result"].(map[string]any)["event_id"].(string))
	}
	want := []string{string(before), string(after)}
	slices.Sort(ids)
	slices.Sort(want)
	wantList(t, "found", ids, want...)
	if events["count"] != 2.0 {
		t.Errorf("count %v", events["count"])
	}
}

// Aliases are deleted by who made them, without power in the room, even if canonical, and by who has the power (CS API, DELETE /directory/room).
func TestWhoDeletesAliases(t *testing.T) {
	t.Parallel()
	s, alice, bob, carol := newMeeting(t)
	room := alice.createRoom(`{"preset":"public_chat","power_level_content_override":{"events":{"m.room.aliases":50}}}`)
	alias := func(name string) string { return "#" + name + ":" + string(s.Server) }
	at := func(name string) string { return "/v3/directory/room/" + url.PathEscape(alias(name)) }
	for _, c := range []client{bob, carol} {
		c.inRoom(200, room, "join", nil)
	}
	for _, name := range []string{"one", "two"} {
		bob.call(200, "PUT", at(name), map[string]any{"room_id": room})
		alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/m.room.canonical_alias", map[string]string{"alias": alias(name)})
		if a := carol.call(403, "DELETE", at(name), nil); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	bob.call(200, "DELETE", at("two"), nil)
	alice.call(200, "DELETE", at("one"), nil)
	for _, name := range []string{"one", "two", "none"} {
		if a := alice.call(404, "DELETE", at(name), nil); a.code() != "M_NOT_FOUND" {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
}
