package clientapi

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

func TestUpgradeRoom(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	alice, bob, mallory := s.newClient("alice"), s.newClient("bob"), s.newClient("mallory")
	state := func(room, eventType string) answer {
		return alice.call(200, "GET", "/v3/rooms/"+room+"/state/"+eventType, nil)
	}
	for _, versions := range [][2]string{{"10", "11"}, {"11", "12"}, {"12", "12"}, {"12", "11"}, {"10", "6"}} {
		name := "v" + versions[0] + "to" + versions[1]
		old := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","visibility":"public","room_version":"`+versions[0]+`","name":"The room",
			"topic":"What it is about","room_alias_name":"`+name+`","creation_content":{"type":"m.space","m.federate":false}}`).text("room_id")
		path := "/v3/rooms/" + old
		alice.call(200, "PUT", path+"/state/m.space.child/"+string(farRoom("x")), `{"via":["far"]}`)
		alice.call(200, "PUT", path+"/state/org.example.own", `{"stays":"here"}`)
		alice.call(200, "POST", path+"/ban", map[string]any{"user_id": mallory.user, "reason": "spam"})
		if versions[0] != "12" { // its rules about knocking
			alice.call(200, "PUT", path+"/state/m.room.join_rules", `{"join_rule":"knock_restricted","allow":[]}`)
		}
		bob.call(403, "POST", path+"/upgrade", `{"new_version":"11"}`)
		if versions[0] == "12" {
			bob.join(eventgraph.RoomID(old))
			if a := bob.call(403, "POST", path+"/upgrade", `{"new_version":"11"}`); a.code() != "M_FORBIDDEN" {
				t.Errorf("by a member: %s", a.raw)
			}
		}
		body := map[string]any{"new_version": versions[1], "additional_creators": []eventgraph.UserID{bob.user}}
		room := alice.call(200, "POST", path+"/upgrade", body).text("replacement_room")

		if got := state(old, "m.room.tombstone"); got.text("replacement_room") != room {
			t.Errorf("%s: tombstone %s", name, got.raw)
		}
		create := state(room, "m.room.create")
		predecessor, _ := create.body["predecessor"].(map[string]any)
		_, named := predecessor["event_id"]
		_, creators := create.body["additional_creators"]
		if create.text("room_version") != versions[1] || create.text("type") != "m.space" || create.body["m.federate"] != false ||
			predecessor["room_id"] != old || named != (versions[1] != "12") || creators != (versions[1] == "12") {
			t.Errorf("%s: create %s", name, create.raw)
		}
		for eventType, want := range map[string]string{
			"m.room.name":                           `"The room"`,
			"m.room.topic":                          "What it is about",
			"m.room.canonical_alias":                "#" + name,
			"m.room.member/" + string(alice.user):   `"join"`,
			"m.room.member/" + string(mallory.user): `"spam"`,
			"m.space.child/" + string(farRoom("x")): "far",
			"m.room.join_rules":                     map[string]string{"6": "invite", "11": "knock_restricted", "12": "knock_restricted"}[versions[1]],
			"m.room.history_visibility":             "shared",
		} {
			if versions[0] == "12" && eventType == "m.room.join_rules" {
				want = "public"
			}
			if got := state(room, eventType); !strings.Contains(got.raw, want) {
				t.Errorf("%s: %s is %s, want %s", name, eventType, got.raw, want)
			}
		}
		alice.call(404, "GET", "/v3/rooms/"+room+"/state/org.example.own", nil)
		if users := state(room, "m.room.power_levels").body["users"].(map[string]any); (users[string(alice.user)] == nil) != (versions[1] == "12") {
			t.Errorf("%s: power of %v", name, users)
		}
		alice.call(200, "PUT", "/v3/rooms/"+room+"/state/m.room.topic", `{"topic":"goes on"}`)
		if levels := state(old, "m.room.power_levels").body; levels["events_default"] != 50.0 || levels["invite"] != 50.0 {
			t.Errorf("%s: levels of the old room: %v", name, levels)
		}
		if got := alice.call(200, "GET", "/v3/directory/room/%23"+name+":"+string(s.Server), nil); got.text("room_id") != room {
			t.Errorf("%s: the alias leads to %s", name, got.raw)
		}
		listed := strings.Join(chunk(alice.call(200, "GET", "/v3/publicRooms", nil)), " ")
		if strings.Contains(listed, old) || !strings.Contains(listed, room) {
			t.Errorf("%s: listed are %s", name, listed)
		}
	}

	room := alice.call(200, "POST", "/v3/createRoom", `{}`).text("room_id")
	for body, code := range map[string]string{`{}`: "M_MISSING_PARAM", `{"new_version":"x"}`: "M_UNSUPPORTED_ROOM_VERSION", `{"new_version":7}`: "M_BAD_JSON",
		`{"new_version":"12","additional_creators":["x"]}`: "M_INVALID_PARAM"} {
		if a := alice.call(400, "POST", "/v3/rooms/"+room+"/upgrade", body); a.code() != code {
			t.Errorf("%s: %s, want %s", body, a.raw, code)
		}
	}
	alice.call(403, "POST", "/v3/rooms/"+string(farRoom("no"))+"/upgrade", `{"new_version":"11"}`)
	if a := s.send("POST", "/_matrix/client/v3/rooms/"+room+"/upgrade", "", `{"new_version":"11"}`); a.status != 401 {
		t.Errorf("without a token: %d", a.status)
	}
}

// What a user keeps about a room goes over to its successor: for who upgrades at once, for others when they join; also where a client
// made the new room and the tombstone. A room that only claims to be the successor gets nothing.
func TestPushRulesFollowUpgrades(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for _, byHand := range []bool{false, true} {
		old := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","room_version":"10"}`).text("room_id")
		bob.call(200, "POST", "/v3/join/"+old, nil)
		for _, c := range []client{alice, bob} {
			c.call(200, "PUT", "/v3/pushrules/global/room/"+old, `{"actions":["dont_notify"]}`)
			c.call(200, "PUT", "/v3/pushrules/global/override/"+old, `{"actions":[],"conditions":[{"kind":"event_match","key":"room_id","pattern":"`+old+`"}]}`)
			c.call(200, "PUT", "/v3/user/"+string(c.user)+"/rooms/"+old+"/tags/u.work", `{"order":0.5}`)
		}
		claims := bob.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","creation_content":{"predecessor":{"room_id":"`+old+`"}}}`).text("room_id")
		alice.call(200, "POST", "/v3/join/"+claims, nil)
		alice.call(404, "GET", "/v3/pushrules/global/room/"+claims, nil)

		since := alice.call(200, "GET", "/v3/sync", nil).text("next_batch")
		var room string
		if byHand {
			room = alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","room_version":"11","creation_content":{"predecessor":{"room_id":"`+old+`"}}}`).text("room_id")
			alice.call(200, "PUT", "/v3/rooms/"+old+"/state/m.room.tombstone", `{"body":"replaced","replacement_room":"`+room+`"}`)
		} else {
			room = alice.call(200, "POST", "/v3/rooms/"+old+"/upgrade", `{"new_version":"11"}`).text("replacement_room")
		}
		bob.call(404, "GET", "/v3/pushrules/global/room/"+room, nil)
		bob.call(200, "POST", "/v3/join/"+room, nil)
		for _, c := range []client{alice, bob} {
			if a := c.call(200, "GET", "/v3/pushrules/global/room/"+room, nil); !strings.Contains(a.raw, "dont_notify") {
				t.Errorf("rule: %s", a.raw)
			}
			if a := c.call(200, "GET", "/v3/pushrules/global/override/"+room, nil); !strings.Contains(a.raw, `"pattern":"`+room) || strings.Contains(a.raw, old) {
				t.Errorf("override: %s", a.raw)
			}
			if a := c.call(200, "GET", "/v3/user/"+string(c.user)+"/rooms/"+room+"/tags", nil); !strings.Contains(a.raw, "u.work") {
				t.Errorf("tags: %s", a.raw)
			}
			c.call(200, "GET", "/v3/pushrules/global/room/"+old, nil)
		}
		if a := alice.call(200, "GET", "/v3/sync?since="+since, nil); !strings.Contains(a.raw, "m.push_rules") {
			t.Errorf("/sync does not tell: %s", a.raw)
		}
	}
}

// withoutTombstone is a Remote whose rooms' policy server declines tombstones.
type withoutTombstone struct{ *unreachable }

func (u withoutTombstone) Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	if d.Type == "m.room.tombstone" {
		return "", &rooms.Refusal{Code: "M_FORBIDDEN", Reason: "the policy server declines"}
	}
	return u.unreachable.Send(ctx, d)
}

// An upgrade whose tombstone is refused leaves aliases and directory as they were.
func TestUpgradeRefusedByThePolicyServer(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","room_alias_name":"here","visibility":"public","room_version":"11"}`).text("room_id")
	where := func() string {
		t.Helper()
		if list := alice.call(200, "GET", "/v3/directory/list/room/"+room, nil); list.text("visibility") != "public" {
			return list.raw
		}
		return alice.call(200, "GET", "/v3/directory/room/%23here:"+string(s.Server), nil).text("room_id")
	}
	s.SetRemote(withoutTombstone{s.remote})
	alice.call(403, "POST", "/v3/rooms/"+room+"/upgrade", `{"new_version":"12"}`)
	if got := where(); got != room {
		t.Errorf("the alias points to %s, want %s", got, room)
	}
}

// A direct chat stays one in the new room, for whoever upgrades and for whoever follows; the policy server goes along.
func TestUpgradeOfADirectChat(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.SetRemote(localJoins{s.remote, s.Rooms})
	alice, bob := s.newClient("alice"), s.newClient("bob")
	old := alice.call(200, "POST", "/v3/createRoom", map[string]any{"preset": "public_chat", "is_direct": true, "room_version": "11"}).text("room_id")
	alice.state(eventgraph.RoomID(old), "m.room.policy", "", `{"via":"policy.example","public_key":"x"}`)
	bob.join(eventgraph.RoomID(old))
	direct := func(c client) string { return "/v3/user/" + string(c.user) + "/account_data/m.direct" }
	alice.call(200, "PUT", direct(alice), map[string]any{string(bob.user): []string{old}, "@other:x": []string{"!other:x"}, "odd": 1})
	bob.call(200, "PUT", direct(bob), map[string]any{string(alice.user): []string{old}})
	room := alice.call(200, "POST", "/v3/rooms/"+old+"/upgrade", `{"new_version":"12"}`).text("replacement_room")
	bob.call(200, "POST", "/v3/rooms/"+room+"/join", map[string]any{})
	for c, other := range map[client]client{alice: bob, bob: alice} {
		content := c.call(200, "GET", direct(c), nil)
		ids, _ := json.Marshal(content.body[string(other.user)])
		if string(ids) != `["`+old+`","`+room+`"]` || c == alice && (content.body["odd"] != 1.0 || !strings.Contains(content.raw, `["!other:x"]`)) {
			t.Errorf("m.direct of %s: %s", c.user, content.raw)
		}
	}
	if got := alice.call(200, "GET", "/v3/rooms/"+room+"/state/m.room.policy", nil); got.text("via") != "policy.example" {
		t.Errorf("policy server: %s", got.raw)
	}
}

// Who upgrades a room from version 12 to one before it can upgrade it again, though a tombstone takes more than 100.
func TestUpgradeDownAndUp(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","room_version":"12"}`).text("room_id")
	for _, version := range []string{"11", "11", "12", "10"} {
		room = alice.call(200, "POST", "/v3/rooms/"+room+"/upgrade", map[string]any{"new_version": version}).text("replacement_room")
	}
}
