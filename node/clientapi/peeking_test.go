package clientapi

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// Who is not in a room may look into it where its history is world-readable: its state and newest messages, and what comes then.
func TestPeeking(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room, closed := alice.room(), alice.room()
	alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
	for i := range 6 {
		alice.say(room, fmt.Sprint(i))
	}
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/rooms/"+string(room)+"/account_data/org.example.own", map[string]any{"a": 1})
	initial := "/v3/rooms/" + string(room) + "/initialSync"
	bodies := func(chunk any) (got []string) {
		for _, e := range chunk.([]any) {
			body, _ := e.(map[string]any)["content"].(map[string]any)["body"].(string)
			got = append(got, body)
		}
		return got
	}
	for who, c := range map[string]client{"a member": alice, "another": bob} {
		a := c.call(200, "GET", initial+"?limit=4", nil)
		messages := a.body["messages"].(map[string]any)
		wantList(t, who, bodies(messages["chunk"]), "2", "3", "4", "5")
		membership, _ := a.body["membership"].(string)
		if state := a.body["state"].([]any); len(state) < 5 || a.text("room_id") != string(room) || a.text("visibility") != "private" || (membership == "join") != (c == alice) || len(a.body["account_data"].([]any)) > 0 != (c == alice) {
			t.Errorf("%s: %s", who, a.raw)
		}
		older := c.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=2&from="+messages["start"].(string), nil)
		wantList(t, who+", older", bodies(older.body["chunk"]), "1", "0")
		page := c.call(200, "GET", "/v3/events?room_id="+string(room)+"&from="+messages["end"].(string), nil)
		if chunk := page.body["chunk"].([]any); len(chunk) > 0 {
			t.Errorf("%s: /events after the end: %s", who, page.raw)
		}
		page = c.call(200, "GET", "/v3/events?room_id="+string(room)+"&from="+messages["start"].(string), nil)
		wantList(t, who+", from the start", bodies(page.body["chunk"]), "2", "3", "4", "5")
	}
	if a := alice.call(200, "GET", initial+"?limit=0", nil); len(a.body["messages"].(map[string]any)["chunk"].([]any)) > 0 {
		t.Errorf("limit 0: %s", a.raw)
	}
	for i := range peekPage + 1 {
		alice.say(room, fmt.Sprint("more ", i))
	}
	got := 0
	for token := bob.call(200, "GET", initial+"?limit=105", nil).body["messages"].(map[string]any)["start"].(string); ; {
		page := bob.call(200, "GET", "/v3/events?room_id="+string(room)+"&from="+token, nil)
		n := len(page.body["chunk"].([]any))
		if got += n; n == 0 {
			break
		}
		if token = page.text("end"); n > peekPage {
			t.Errorf("%d events at once", n)
		}
	}
	if got != 105 {
		t.Errorf("%d events in pages, want 105", got)
	}

	for path, want := range map[string]string{
		"/v3/rooms/" + string(closed) + "/initialSync":    "M_FORBIDDEN",
		"/v3/rooms/!nowhere:x/initialSync":                "M_FORBIDDEN",
		"/v3/rooms/x/initialSync":                         "M_INVALID_PARAM",
		initial + "?limit=x":                              "M_INVALID_PARAM",
		"/v3/events?room_id=" + string(closed):            "M_FORBIDDEN",
		"/v3/events":                                      "M_MISSING_PARAM",
		"/v3/events?room_id=x":                            "M_INVALID_PARAM",
		"/v3/events?from=x&room_id=" + string(room):       "M_INVALID_PARAM",
		"/v3/events?timeout=long&room_id=" + string(room): "M_INVALID_PARAM",
	} {
		if a := s.send("GET", "/_matrix/client"+path, bob.token, nil); a.code() != want {
			t.Errorf("%s: %d %s, want %s", path, a.status, a.raw, want)
		}
	}
	for _, path := range []string{initial, "/v3/events?room_id=" + string(room)} {
		if a := s.send("GET", "/_matrix/client"+path, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
			t.Errorf("%s without a token: %d %s", path, a.status, a.raw)
		}
	}
}

// A poll of /events waits for the room's next event, without looking at what happens elsewhere; it ends when the room is world-readable no more.
func TestPeekingWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestAPI(t, nil)
		alice, bob := s.newClient("alice"), s.newClient("bob")
		room, other := alice.room(), alice.room()
		alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
		poll := func(from string) <-chan answer {
			path := "/_matrix/client/v3/events?timeout=30000&room_id=" + string(room)
			if from != "" {
				path += "&from=" + from
			}
			out := make(chan answer, 1)
			go func() { out <- s.send("GET", path, bob.token, nil) }()
			synctest.Wait()
			return out
		}
		first := poll("")
		alice.say(other, "elsewhere")
		synctest.Wait()
		if len(first) > 0 {
			t.Fatalf("answered: %s", (<-first).raw)
		}
		alice.say(room, "here")
		a := <-first
		if chunk := a.body["chunk"].([]any); a.status != 200 || len(chunk) != 1 || chunk[0].(map[string]any)["content"].(map[string]any)["body"] != "here" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		began := time.Now()
		if b := <-poll(a.text("end")); b.status != 200 || b.text("end") != a.text("end") || time.Since(began) != 30*time.Second {
			t.Errorf("after %v: %s", time.Since(began), b.raw)
		}
		last := poll(a.text("end"))
		alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"shared"}`)
		if b := <-last; b.code() != "M_FORBIDDEN" {
			t.Errorf("closed: %d %s", b.status, b.raw)
		}
	})
}
