package clientapi

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

func TestReports(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := bob.room()
	event := bob.message(room, `{"msgtype":"m.text","body":"buy this"}`)
	reason := map[string]string{"reason": "spam"}
	roomPath := "/v3/rooms/" + string(room) + "/report"

	// Who is not joined may report the room and the user, and not the event.
	alice.call(200, "POST", roomPath, reason)
	alice.call(200, "POST", "/unstable/org.matrix.msc4151/rooms/"+string(room)+"/report", map[string]string{"reason": ""}) // instead of the first
	alice.call(200, "POST", "/v3/users/"+string(bob.user)+"/report", reason)
	alice.call(200, "POST", "/v3/users/@who:elsewhere.example/report", reason)
	for _, path := range []string{
		roomPath + "/" + string(event),
		"/v3/rooms/!none:elsewhere.example/report",
		"/v3/users/@nobody:" + string(s.Server) + "/report",
	} {
		if a := alice.call(404, "POST", path, reason); a.code() != "M_NOT_FOUND" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	alice.join(room)
	alice.call(200, "POST", roomPath+"/"+string(event), map[string]any{})
	for path, body := range map[string]any{
		roomPath + "/$none:elsewhere.example": reason,
		roomPath + "/$none":                   reason,
	} {
		if a := alice.call(404, "POST", path, body); a.code() != "M_NOT_FOUND" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	other := bob.room()
	if a := bob.call(404, "POST", "/v3/rooms/"+string(other)+"/report/"+string(event), reason); a.code() != "M_NOT_FOUND" {
		t.Errorf("an event of another room: %s", a.raw)
	}
	for _, path := range []string{roomPath, roomPath + "/" + string(event), "/v3/users/" + string(bob.user) + "/report"} {
		if a := s.send("POST", "/_matrix/client"+path, "", reason); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
			t.Errorf("%s without a token: %d %s", path, a.status, a.raw)
		}
		if a := alice.call(400, "POST", path, map[string]any{"reason": 5}); a.code() != "M_BAD_JSON" {
			t.Errorf("%s: %s", path, a.raw)
		}
		if a := alice.call(400, "POST", path, map[string]any{"reason": strings.Repeat("x", maxReason+1)}); a.code() != "M_INVALID_PARAM" {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	for _, path := range []string{roomPath, "/v3/users/" + string(bob.user) + "/report"} {
		if a := alice.call(400, "POST", path, map[string]any{}); a.code() != "M_MISSING_PARAM" {
			t.Errorf("%s without a reason: %s", path, a.raw)
		}
	}
	if a := alice.call(400, "POST", "/v3/users/bob/report", reason); a.code() != "M_INVALID_PARAM" {
		t.Errorf("no user ID: %s", a.raw)
	}

	list, err := s.Reports()
	if err != nil || len(list) != 4 {
		t.Fatalf("%+v %v", list, err)
	}
	if r := list[0]; r.Room != room || r.Event != "" || r.Reason != "" || r.Reporter != alice.user || r.TS != s.time().UnixMilli() {
		t.Errorf("%+v", r)
	}
	if r := list[1]; r.User != bob.user || r.Reason != "spam" || r.Room != "" {
		t.Errorf("%+v", r)
	}
	if r := list[3]; r.Event != event || r.Sender != bob.user || !strings.Contains(r.Content, "buy this") {
		t.Errorf("%+v", r)
	}
	if err := s.DeleteReport(t.Context(), list[1].ID); err != nil {
		t.Error(err)
	}
	if err := s.DeleteReport(t.Context(), list[1].ID); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	if list, err = s.Reports(); err != nil || len(list) != 3 {
		t.Errorf("%+v %v", list, err)
	}
}

func TestReportsAreLimited(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *Config) { c.RateLimits = true })
	alice := s.newClient("alice")
	report := func(i int) answer {
		return s.send("POST", fmt.Sprintf("/_matrix/client/v3/users/@u%d:elsewhere.example/report", i), alice.token, map[string]string{"reason": ""})
	}
	for i := range reportBurst {
		if a := report(i); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.raw)
		}
	}
	if a := report(0); a.status != 429 || a.code() != "M_LIMIT_EXCEEDED" || a.body["retry_after_ms"] == nil {
		t.Errorf("%d %s", a.status, a.raw)
	}
	alice.call(200, "GET", "/v3/account/whoami", nil)
}

func TestMutualRooms(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	path := func(user eventgraph.UserID) string { return "/v1/mutual_rooms?user_id=" + string(user) }
	if a := alice.call(200, "GET", path(bob.user), nil); strings.TrimSpace(a.raw) != `{"count":0,"joined":[]}` {
		t.Error(a.raw)
	}
	want := map[eventgraph.RoomID]bool{}
	for range mutualPage + 5 {
		room := alice.room()
		bob.join(room)
		want[room] = true
	}
	alice.room() // bob is not there
	left := alice.room()
	bob.join(left)
	key := string(bob.user)
	bob.event(rooms.Draft{Room: left, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`)})

	for _, base := range []string{path(bob.user), "/unstable/uk.half-shot.msc2666/user/mutual_rooms?user_id=" + string(bob.user)} {
		got, from := map[eventgraph.RoomID]bool{}, ""
		for pages := 1; ; pages++ {
			a := alice.call(200, "GET", base+from, nil)
			for _, room := range a.body["joined"].([]any) {
				got[eventgraph.RoomID(room.(string))] = true
			}
			if a.body["count"] != float64(len(want)) {
				t.Errorf("count: %v", a.body["count"])
			}
			if a.text("next_batch") == "" {
				if pages != 2 {
					t.Errorf("%d pages", pages)
				}
				break
			}
			from = "&from=" + a.text("next_batch")
		}
		if len(got) != len(want) {
			t.Errorf("%d rooms, want %d", len(got), len(want))
		}
		for room := range got {
			if !want[room] {
				t.Errorf("%s is not shared", room)
			}
		}
	}
	for _, query := range []string{"", "?user_id=bob", "?user_id=@Bob:elsewhere.example", "?user_id=" + string(alice.user),
		"?user_id=" + string(bob.user) + "&from=nonsense", "?user_id=@a:x.example&user_id=@b:x.example"} {
		if a := alice.call(400, "GET", "/v1/mutual_rooms"+query, nil); a.code() != "M_INVALID_PARAM" {
			t.Errorf("%s: %s", query, a.raw)
		}
	}
	alice.call(200, "GET", path("@who:elsewhere.example"), nil)
	if a := s.send("GET", "/_matrix/client"+path(bob.user), "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
