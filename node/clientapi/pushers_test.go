package clientapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/push"
	"github.com/plexus-p2p/plexus/store"
)

// pusher is the body that sets one.
func pusher(key string, change map[string]any) map[string]any {
	body := map[string]any{
		"kind": "http", "app_id": "org.example.app", "pushkey": key, "app_display_name": "App", "device_display_name": "Phone", "lang": "en",
		"data": map[string]any{"url": "https://push.example.org/_matrix/push/v1/notify", "format": "event_id_only"},
	}
	maps.Copy(body, change)
	return body
}

func (c client) pushers() []string {
	c.s.t.Helper()
	keys := []string{}
	for _, p := range c.call(200, "GET", "/v3/pushers", nil).body["pushers"].([]any) {
		keys = append(keys, p.(map[string]any)["pushkey"].(string))
	}
	return keys
}

func TestPushers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for _, path := range []string{"/_matrix/client/v3/pushers", "/_matrix/client/r0/pushers", "/_matrix/client/v3/notifications"} {
		wantError(t, path, s.send("GET", path, "", nil), 401, "M_MISSING_TOKEN")
	}
	wantError(t, "set", s.send("POST", "/_matrix/client/v3/pushers/set", "", pusher("k", nil)), 401, "M_MISSING_TOKEN")
	if got := alice.pushers(); len(got) != 0 {
		t.Errorf("pushers %q of a new user", got)
	}

	alice.call(200, "POST", "/v3/pushers/set", pusher("k1", map[string]any{"profile_tag": "tag"}))
	alice.call(200, "POST", "/r0/pushers/set", pusher("k2", map[string]any{"kind": "http", "data": map[string]any{"url": "https://push.example.org/_matrix/push/v1/notify", "own": []int{1}}}))
	got := alice.call(200, "GET", "/v3/pushers", nil).body["pushers"].([]any)
	want := `[{"app_display_name":"App","app_id":"org.example.app","data":{"format":"event_id_only","url":"https://push.example.org/_matrix/push/v1/notify"},"device_display_name":"Phone","kind":"http","lang":"en","profile_tag":"tag","pushkey":"k1"},` +
		`{"app_display_name":"App","app_id":"org.example.app","data":{"own":[1],"url":"https://push.example.org/_matrix/push/v1/notify"},"device_display_name":"Phone","kind":"http","lang":"en","pushkey":"k2"}]`
	if raw, _ := json.Marshal(got); string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
	// Set again, it is changed and stays one.
	alice.call(200, "POST", "/v3/pushers/set", pusher("k1", map[string]any{"lang": "de"}))
	if got := alice.pushers(); !slices.Equal(got, []string{"k1", "k2"}) {
		t.Errorf("pushers %q", got)
	}
	// Another user's of the same key comes beside it or replaces it, as they say.
	bob.call(200, "POST", "/v3/pushers/set", pusher("k1", map[string]any{"append": true}))
	if got := alice.pushers(); !slices.Equal(got, []string{"k1", "k2"}) {
		t.Errorf("after append: %q", got)
	}
	bob.call(200, "POST", "/v3/pushers/set", pusher("k1", nil))
	if got := alice.pushers(); !slices.Equal(got, []string{"k2"}) {
		t.Errorf("after it was taken over: %q", got)
	}
	// null removes; one's own only.
	remove := map[string]any{"kind": nil, "app_id": "org.example.app", "pushkey": "k1"}
	alice.call(200, "POST", "/v3/pushers/set", remove)
	if got := bob.pushers(); !slices.Equal(got, []string{"k1"}) {
		t.Errorf("bob's: %q", got)
	}
	bob.call(200, "POST", "/v3/pushers/set", remove)
	if got := bob.pushers(); len(got) != 0 {
		t.Errorf("bob's: %q", got)
	}

	for i := range store.MaxPushers - 1 {
		alice.call(200, "POST", "/v3/pushers/set", pusher(fmt.Sprintf("n%d", i), nil))
	}
	wantError(t, "one too many", alice.raw("POST", "/_matrix/client/v3/pushers/set", "", mustJSON(pusher("more", nil))), 403, "M_FORBIDDEN")
}

func mustJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func TestPusherRefused(t *testing.T) {
	t.Parallel()
	alice := newTestServer(t, nil).newClient("alice")
	data := func(address string) map[string]any { return map[string]any{"data": map[string]any{"url": address}} }
	for name, c := range map[string]struct {
		change map[string]any
		code   string
	}{
		"email":          {map[string]any{"kind": "email", "app_id": "m.email"}, "M_INVALID_PARAM"},
		"no app":         {map[string]any{"app_id": ""}, "M_MISSING_PARAM"},
		"no name":        {map[string]any{"app_display_name": nil}, "M_MISSING_PARAM"},
		"no data":        {map[string]any{"data": nil}, "M_MISSING_PARAM"},
		"no url":         {map[string]any{"data": map[string]any{}}, "M_MISSING_PARAM"},
		"data a string":  {map[string]any{"data": "x"}, "M_BAD_JSON"},
		"kind a number":  {map[string]any{"kind": 1}, "M_BAD_JSON"},
		"long app":       {map[string]any{"app_id": strings.Repeat("x", 65)}, "M_INVALID_PARAM"},
		"long key":       {map[string]any{"pushkey": strings.Repeat("x", 513)}, "M_INVALID_PARAM"},
		"long data":      {map[string]any{"data": map[string]any{"url": "https://example.org/_matrix/push/v1/notify", "x": strings.Repeat("x", maxPusherData)}}, "M_INVALID_PARAM"},
		"http":           {data("http://push.example.org/_matrix/push/v1/notify"), "M_INVALID_PARAM"},
		"other path":     {data("https://push.example.org/notify"), "M_INVALID_PARAM"},
		"query":          {data("https://push.example.org/_matrix/push/v1/notify?x"), "M_INVALID_PARAM"},
		"a user":         {data("https://me@push.example.org/_matrix/push/v1/notify"), "M_INVALID_PARAM"},
		"this machine":   {data("https://127.0.0.1/_matrix/push/v1/notify"), "M_INVALID_PARAM"},
		"a neighbour":    {data("https://192.168.1.2/_matrix/push/v1/notify"), "M_INVALID_PARAM"},
		"metadata":       {data("https://169.254.169.254/_matrix/push/v1/notify"), "M_INVALID_PARAM"},
		"no URL":         {data("::"), "M_INVALID_PARAM"},
		"url a number":   {map[string]any{"data": map[string]any{"url": 1}}, "M_BAD_JSON"},
		"append a text":  {map[string]any{"append": "yes"}, "M_BAD_JSON"},
		"long tag":       {map[string]any{"profile_tag": strings.Repeat("x", maxPusherText+1)}, "M_INVALID_PARAM"},
		"kind forgotten": {map[string]any{}, "M_MISSING_PARAM"},
	} {
		body := pusher("k", c.change)
		if name == "kind forgotten" {
			delete(body, "kind")
		}
		wantError(t, name, alice.raw("POST", "/_matrix/client/v3/pushers/set", "", mustJSON(body)), 400, c.code)
	}
	wantError(t, "no JSON", alice.raw("POST", "/_matrix/client/v3/pushers/set", "", "x"), 400, "M_NOT_JSON")
	if got := alice.pushers(); len(got) != 0 {
		t.Errorf("pushers %q", got)
	}
}

// A gateway on one's own network is allowed where the node is told so.
func TestPrivatePushGateways(t *testing.T) {
	t.Parallel()
	alice := newTestServer(t, func(c *Config) { c.PushGateways = push.Gateways{Private: true} }).newClient("alice")
	for address, want := range map[string]int{
		"http://127.0.0.1:8080/_matrix/push/v1/notify":  200,
		"https://[fd00::1]/_matrix/push/v1/notify":      200,
		"http://ntfy.local/_matrix/push/v1/notify":      200,
		"https://example.org/_matrix/push/v1/notify":    200,
		"http://8.8.8.8/_matrix/push/v1/notify":         400,
		"http://169.254.169.254/_matrix/push/v1/notify": 400,
	} {
		alice.call(want, "POST", "/v3/pushers/set", pusher("k", map[string]any{"data": map[string]any{"url": address}}))
	}
	alice = newTestServer(t, func(c *Config) { c.PushGateways = push.Gateways{Private: true, LANOnly: true} }).newClient("alice")
	for address, want := range map[string]int{
		"http://192.168.7.7/_matrix/push/v1/notify":  200,
		"https://8.8.8.8/_matrix/push/v1/notify":     400,
		"https://example.org/_matrix/push/v1/notify": 400,
	} {
		alice.call(want, "POST", "/v3/pushers/set", pusher("k", map[string]any{"data": map[string]any{"url": address}}))
	}
}

// Pushers go with the device that set them: by logout, by deletion, and by a new password, which leaves the caller's own.
func TestPushersGoWithTheirDevice(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	second, third, fourth := s.logIn("alice", ""), s.logIn("alice", ""), s.logIn("alice", "")
	for key, c := range map[string]client{"first": alice, "second": second, "third": third, "fourth": fourth} {
		c.call(200, "POST", "/v3/pushers/set", pusher(key, nil))
	}
	want := func(when string, keys ...string) {
		t.Helper()
		if got := alice.pushers(); !slices.Equal(got, keys) {
			t.Errorf("%s: %q, want %q", when, got, keys)
		}
	}
	want("at first", "first", "fourth", "second", "third")
	second.call(200, "POST", "/v3/logout", nil)
	want("after logout", "first", "fourth", "third")
	auth := map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": testPassword}
	alice.call(200, "DELETE", "/v3/devices/"+url.PathEscape(string(third.device)), map[string]any{"auth": auth})
	want("after the device was deleted", "first", "fourth")
	alice.call(200, "POST", "/v3/account/password", map[string]any{"auth": auth, "new_password": "battery staple", "logout_devices": false})
	want("after a new password that logs out nobody", "first", "fourth")
	auth["password"] = "battery staple"
	alice.call(200, "POST", "/v3/account/password", map[string]any{"auth": auth, "new_password": "another staple"})
	want("after a new password", "first")
}

func (c client) notifications(query string) (shown []string, next string) {
	c.s.t.Helper()
	a := c.call(200, "GET", "/v3/notifications"+query, nil)
	for _, n := range a.body["notifications"].([]any) {
		n := n.(map[string]any)
		event := n["event"].(map[string]any)
		body, _ := event["content"].(map[string]any)["body"].(string)
		line := fmt.Sprint(body, " ", n["read"])
		if n["room_id"] == nil || event["room_id"] != nil || n["ts"].(float64) == 0 || event["event_id"] == nil {
			c.s.t.Errorf("the form of %v", n)
		}
		shown = append(shown, line+" "+mustJSON(n["actions"]))
	}
	return shown, a.text("next_token")
}

func TestNotifications(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room, other := alice.room(), alice.room()
	alice.message(room, `{"msgtype":"m.text","body":"before"}`)
	bob.join(room)
	carol.join(room) // three members, so that messages make no sound
	alice.message(other, `{"msgtype":"m.text","body":"elsewhere"}`)
	one := alice.message(room, `{"msgtype":"m.text","body":"one"}`)
	alice.message(room, `{"msgtype":"m.notice","body":"a notice"}`)
	bob.message(room, `{"msgtype":"m.text","body":"bob's own"}`)
	alice.message(room, `{"msgtype":"m.text","body":"two","m.mentions":{"user_ids":["`+string(bob.user)+`"]}}`)
	alice.message(room, `{"msgtype":"m.text","body":"three"}`)
	bob.call(200, "POST", "/v3/rooms/"+url.PathEscape(string(room))+"/receipt/m.read/"+url.PathEscape(string(one)), struct{}{})

	const mention = `["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]`
	all := []string{`three false ["notify"]`, `two false ` + mention, `one true ["notify"]`}
	if got, next := bob.notifications(""); !slices.Equal(got, all) || next != "" {
		t.Errorf("all: %q, next %q", got, next)
	}
	if got, _ := bob.notifications("?only=highlight"); !slices.Equal(got, all[1:2]) {
		t.Errorf("highlights: %q", got)
	}
	var paged []string
	next := ""
	for range len(all) {
		var page []string
		page, next = bob.notifications("?limit=1&from=" + next)
		paged = append(paged, page...)
	}
	if !slices.Equal(paged, all) {
		t.Errorf("paged: %q", paged)
	}
	if more, end := bob.notifications("?limit=1&from=" + next); len(more) != 0 || end != "" {
		t.Errorf("after the last page: %q, next %q", more, end)
	}
	wantError(t, "from", bob.raw("GET", "/_matrix/client/v3/notifications?from=x", "", ""), 400, "M_INVALID_PARAM")
	wantError(t, "limit", bob.raw("GET", "/_matrix/client/v3/notifications?limit=x", "", ""), 400, "M_INVALID_PARAM")
}

// What is far back in the log is found by going on, and no answer looks at more than its share.
func TestNotificationsFarBack(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	alice.message(room, `{"msgtype":"m.text","body":"long ago"}`)
	_, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
		for range scanNotifications {
			if _, err := tx.Log(store.Change{Kind: store.ChangeProfile, User: eventgraph.UserID("@x:y")}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, next := bob.notifications("")
	if len(got) != 0 || next == "" {
		t.Fatalf("the first answer: %q, next %q", got, next)
	}
	if got, next = bob.notifications("?from=" + next); len(got) != 1 || next != "" {
		t.Errorf("the second answer: %q, next %q", got, next)
	}
}
