package clientapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// searched is the part of an answer about events, with the bodies of the results.
func searched(a answer) (events map[string]any, bodies []string) {
	events, _ = a.body["search_categories"].(map[string]any)["room_events"].(map[string]any)
	results, _ := events["results"].([]any)
	for _, r := range results {
		bodies = append(bodies, bodyOf(r.(map[string]any)["result"]))
	}
	return events, bodies
}

func bodyOf(event any) string {
	content, _ := event.(map[string]any)["content"].(map[string]any)
	body, _ := content["body"].(string)
	return body
}

func TestSearch(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	say := func(body string) eventgraph.EventID {
		t.Helper()
		s.advance(time.Millisecond)
		return alice.message(room, `{"msgtype":"m.text","body":"`+body+`"}`)
	}
	for i := range 20 {
		say(fmt.Sprintf("Message number %d", i))
	}
	redacted := say("this is going to be redacted")
	say("this is not going to be redacted")
	say("Grüße, 你好世界")
	alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/redact/"+string(redacted)+"/1", `{}`)
	other := bob.room()
	bob.message(other, `{"msgtype":"m.text","body":"message 4 of bob's"}`)

	ask := func(c client, token, query string) (map[string]any, []string) {
		t.Helper()
		return searched(c.call(200, "POST", "/v3/search"+token, `{"search_categories":{"room_events":`+query+`}}`))
	}
	for query, want := range map[string]string{
		`{"search_term":"redacted","order_by":"rank"}`:                                   "this is not going to be redacted",
		`{"search_term":"REDACTED going","order_by":"recent"}`:                           "this is not going to be redacted",
		`{"search_term":"grüß"}`:                                                         "Grüße, 你好世界",
		`{"search_term":"世界"}`:                                                           "Grüße, 你好世界",
		`{"search_term":"nothing like that"}`:                                            "",
		`{"search_term":"..."}`:                                                          "",
		`{"search_term":"number 17","filter":{"rooms":["` + string(room) + `"]}}`:        "Message number 17",
		`{"search_term":"number 17","filter":{"not_rooms":["` + string(room) + `"]}}`:    "",
		`{"search_term":"number 17","filter":{"senders":["` + string(bob.user) + `"]}}`:  "",
		`{"search_term":"number 17","keys":["content.topic"]}`:                           "",
		`{"search_term":"number 17","keys":["content.body"],"filter":{"types":["m.x"]}}`: "",
		`{"search_term":"message 4","filter":{"rooms":["` + string(other) + `"]}}`:       "", // alice is not there
	} {
		if _, got := ask(alice, "", query); strings.Join(got, " | ") != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}

	events, bodies := ask(alice, "", `{"search_term":"Message 4","order_by":"recent","filter":{"limit":1},
		"event_context":{"before_limit":2,"after_limit":2,"include_profile":true},"include_state":true,"groupings":{"group_by":[{"key":"room_id"},{"key":"sender"}]}}`)
	if len(bodies) != 1 || bodies[0] != "Message number 4" || events["count"] != 1.0 || events["next_batch"] == nil || fmt.Sprint(events["highlights"]) != "[4 message]" {
		t.Fatalf("found: %v", events)
	}
	context := events["results"].([]any)[0].(map[string]any)["context"].(map[string]any)
	for side, want := range map[string]string{"events_before": "3 2", "events_after": "5 6"} {
		var got []string
		for _, e := range context[side].([]any) {
			got = append(got, strings.TrimPrefix(bodyOf(e), "Message number "))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", side, got, want)
		}
	}
	if context["start"] == nil || context["end"] == nil || context["profile_info"].(map[string]any)[string(alice.user)] == nil {
		t.Errorf("context: %v", context)
	}
	alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&from="+context["start"].(string), nil)
	if state, _ := events["state"].(map[string]any)[string(room)].([]any); len(state) < 4 {
		t.Errorf("state: %v", events["state"])
	}
	groups := events["groups"].(map[string]any)
	if groups["room_id"].(map[string]any)[string(room)] == nil || groups["sender"].(map[string]any)[string(alice.user)] == nil {
		t.Errorf("groups: %v", groups)
	}

	// Page by page, the newest first; the last page is empty.
	token, all := "", []string{}
	for range 3 {
		events, bodies := ask(alice, token, `{"search_term":"Message","order_by":"recent","filter":{"limit":10}}`)
		all = append(all, bodies...)
		next, _ := events["next_batch"].(string)
		if events["count"] != 20.0 || (next == "") != (len(bodies) == 0) {
			t.Errorf("page: %v", events)
		}
		token = "?next_batch=" + next
	}
	if len(all) != 20 || all[0] != "Message number 19" || all[19] != "Message number 0" {
		t.Errorf("pages: %v", all)
	}

	// Who has left finds what was said before; a name that was given is found too.
	bob.join(room)
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
	say("said behind the back")
	if events, got := ask(bob, "", `{"search_term":"behi"}`); len(got) != 0 || fmt.Sprint(events["highlights"]) != "[]" {
		t.Errorf("who has left finds %v, and is told of the words %v", got, events["highlights"])
	}
	if _, got := ask(bob, "", `{"search_term":"number 12"}`); len(got) != 1 {
		t.Errorf("who was there finds %v", got)
	}
	alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/m.room.name", `{"name":"Archipelago"}`)
	if events, _ := ask(alice, "", `{"search_term":"archipelago"}`); events["count"] != 1.0 {
		t.Errorf("by name: %v", events)
	}

	for query, code := range map[string]string{`{}`: "M_MISSING_PARAM", `{"search_term":7}`: "M_BAD_JSON", `{"search_term":"x","order_by":"x"}`: "M_INVALID_PARAM",
		`{"search_term":"x","keys":["x"]}`: "M_INVALID_PARAM"} {
		if a := alice.call(400, "POST", "/v3/search", `{"search_categories":{"room_events":`+query+`}}`); a.code() != code {
			t.Errorf("%s: %s, want %s", query, a.raw, code)
		}
	}
	alice.call(400, "POST", "/v3/search?next_batch=x", `{"search_categories":{"room_events":{"search_term":"x"}}}`)
	alice.call(200, "POST", "/v3/search", `{"search_categories":{}}`)
	if a := s.send("POST", "/_matrix/client/v3/search", "", `{}`); a.status != 401 {
		t.Errorf("without a token: %d", a.status)
	}
}

// A search as large as nobody's is refused before anything is looked at.
func TestLargeSearches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	c := s.newClient("alice")
	body := func(filter string) string {
		return `{"search_categories":{"room_events":{"search_term":"x","filter":{` + filter + `}}}}`
	}
	types := func(n int) string { return `"types":["*x"` + strings.Repeat(`,"*x"`, n-1) + `]` }
	for _, test := range []struct {
		body, code string
	}{
		{body(types(maxSearchTypes + 1)), "M_INVALID_PARAM"},
		{body(`"senders":["@` + strings.Repeat("x", maxSearch) + `"]`), "M_TOO_LARGE"},
		{body(types(maxSearchTypes)), ""},
	} {
		if a := s.send("POST", "/_matrix/client/v3/search", c.token, test.body); a.code() != test.code {
			t.Errorf("%.80s: %d %s", test.body, a.status, a.raw)
		}
	}
}
