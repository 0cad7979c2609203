package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

func TestDiscovery(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	versions := s.send("GET", "/_matrix/client/versions", "", nil)
	for _, v := range []string{`"r0.6.1"`, `"v1.1"`, `"v1.16"`, `"v1.17"`, `"v1.18"`, `"v1.19"`} {
		if !strings.Contains(versions.raw, v) {
			t.Errorf("%s is missing in %s", v, versions.raw)
		}
	}
	var known struct {
		Homeserver struct {
			BaseURL string `json:"base_url"`
		} `json:"m.homeserver"`
	}
	if err := json.Unmarshal([]byte(s.send("GET", "/.well-known/matrix/client", "", nil).raw), &known); err != nil || known.Homeserver.BaseURL != s.url {
		t.Errorf("well-known: %+v, %v", known, err)
	}
	var capabilities struct {
		Capabilities struct {
			Versions struct {
				Default   string
				Available map[string]string
			} `json:"m.room_versions"`
			Password struct{ Enabled bool } `json:"m.change_password"`
		}
	}
	if err := json.Unmarshal([]byte(alice.call(200, "GET", "/v3/capabilities", nil).raw), &capabilities); err != nil {
		t.Fatal(err)
	}
	if c := capabilities.Capabilities; c.Versions.Default != "12" || c.Versions.Available["3"] != "stable" || !c.Password.Enabled {
		t.Errorf("capabilities: %+v", c)
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	peers := 0
	s := newTestServer(t, func(c *Config) { c.PeersConnected = func() int { return peers } })
	s.newClient("alice")
	page := s.send("GET", "/", "", nil)
	if page.status != 200 || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") {
		t.Fatalf("page: %d %v", page.status, page.header)
	}
	if !strings.Contains(page.header.Get("Content-Security-Policy"), "frame-ancestors 'none'") || page.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("headers: %v", page.header)
	}
	if !strings.Contains(page.raw, s.url) || !strings.Contains(page.raw, "No other device is connected") {
		t.Errorf("page: %s", page.raw)
	}
	for _, secret := range []string{testToken, "k51", "12D3", "alice", "<script", "/tmp"} {
		if strings.Contains(page.raw, secret) {
			t.Errorf("the page tells %q", secret)
		}
	}
	peers = 2
	if page := s.send("GET", "/", "", nil); !strings.Contains(page.raw, "Other devices are connected") {
		t.Errorf("with peers: %s", page.raw)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	path := "/v3/user/" + string(alice.user) + "/filter"
	const body = `{"room":{"timeline":{"limit":5}},"x":1}`
	id := alice.call(200, "POST", path, body).text("filter_id")
	if id == "" || id[0] == '{' || alice.call(200, "POST", path, body).text("filter_id") != id {
		t.Errorf("filter ID %q", id)
	}
	if got := alice.call(200, "GET", path+"/"+id, nil).raw; strings.TrimSpace(got) != body {
		t.Errorf("filter: %s", got)
	}
	// One that says everything comes back as it is.
	events := func(more string) string {
		return `{"limit":3,"types":["m.*"],"not_types":["m.x"],"senders":["@a:b"],"not_senders":["@c:d"]` + more + `}`
	}
	ofRoom := events(`,"rooms":["!a:b"],"not_rooms":["!c:d"]`)
	full := `{"event_fields":["content.body"],"event_format":"client","presence":` + events("") + `,"account_data":` + events("") +
		`,"room":{"rooms":["!a:b"],"not_rooms":["!c:d"],"include_leave":true,"timeline":` + ofRoom + `,"state":` + ofRoom + `,"ephemeral":` + ofRoom + `,"account_data":` + ofRoom + `}}`
	if got := alice.call(200, "GET", path+"/"+alice.call(200, "POST", path, full).text("filter_id"), nil).raw; strings.TrimSpace(got) != full {
		t.Errorf("filter: %s, want %s", got, full)
	}
	alice.call(404, "GET", path+"/unknown", nil)
	alice.call(400, "POST", path, `{"room":7}`)
	for _, bad := range []string{`{"timeline":{"rooms":["a"]}}`, `{"rooms":["a"]}`, `{"state":{"not_senders":["a"]}}`} {
		if a := alice.call(400, "POST", path, `{"room":`+bad+`}`); a.code() != "M_BAD_JSON" {
			t.Errorf("%s: %s", bad, a.raw)
		}
	}
	alice.call(413, "POST", path, `{"x":"`+strings.Repeat("x", maxFilter)+`"}`)
	bob.call(403, "POST", path, body)
	bob.call(403, "GET", path+"/"+id, nil)
	for i := range store.MaxFilters {
		s.advance(1e6)
		alice.call(200, "POST", path, fmt.Sprintf(`{"x":%d}`, i+2))
	}
	if a := alice.call(404, "GET", path+"/"+id, nil); a.code() != "M_NOT_FOUND" {
		t.Errorf("the oldest filter: %s", a.raw)
	}
}

func TestAccountData(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	user := "/v3/user/" + string(alice.user)
	inRoom := user + "/rooms/" + string(room)
	before := s.Store.Position()
	alice.call(200, "PUT", user+"/account_data/org.a%2Fb", `{"n":9007199254740993,"h":"<&>"}`)
	alice.call(200, "PUT", inRoom+"/account_data/org.a%2Fb", `{"room":true}`)
	if got := strings.TrimSpace(alice.call(200, "GET", user+"/account_data/org.a%2Fb", nil).raw); got != `{"n":9007199254740993,"h":"<&>"}` {
		t.Errorf("account data: %s", got)
	}
	if got := strings.TrimSpace(alice.call(200, "GET", inRoom+"/account_data/org.a%2Fb", nil).raw); got != `{"room":true}` {
		t.Errorf("account data of the room: %s", got)
	}
	var changes []store.Change
	err := s.Store.View(func(r *store.Reader) error {
		return r.Changes(before, s.Store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			changes = append(changes, c)
			return true, nil
		})
	})
	want := []store.Change{
		{Kind: store.ChangeAccountData, User: alice.user, Key: "org.a/b"},
		{Kind: store.ChangeAccountData, User: alice.user, Room: room, Key: "org.a/b"},
	}
	if err != nil || fmt.Sprint(changes) != fmt.Sprint(want) {
		t.Errorf("changes %v, want %v (%v)", changes, want, err)
	}
	for _, test := range []struct {
		who          client
		method, path string
		body         any
		status       int
		code         string
	}{
		{bob, "GET", user + "/account_data/org.a%2Fb", nil, 403, "M_FORBIDDEN"},
		{bob, "PUT", user + "/account_data/org.a%2Fb", `{}`, 403, "M_FORBIDDEN"},
		{alice, "GET", user + "/account_data/other", nil, 404, "M_NOT_FOUND"},
		{alice, "GET", inRoom + "/account_data/other", nil, 404, "M_NOT_FOUND"},
		{alice, "PUT", user + "/account_data/m.push_rules", `{}`, 405, "M_BAD_JSON"},
		{alice, "PUT", user + "/account_data/m.fully_read", `{}`, 405, "M_BAD_JSON"},
		{alice, "PUT", inRoom + "/account_data/m.fully_read", `{}`, 405, "M_BAD_JSON"},
		{alice, "PUT", user + "/account_data/x", `[]`, 400, "M_BAD_JSON"},
		{alice, "PUT", user + "/account_data/x", `x`, 400, "M_NOT_JSON"},
		{alice, "PUT", user + "/account_data/" + strings.Repeat("x", 300), `{}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", user + "/rooms/nonsense/account_data/x", `{}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", user + "/account_data/x", `{"x":"` + strings.Repeat("x", maxAccountData) + `"}`, 413, "M_TOO_LARGE"},
	} {
		if a := test.who.call(test.status, test.method, test.path, test.body); a.code() != test.code {
			t.Errorf("%s %.80s: %s, want %s", test.method, test.path, a.raw, test.code)
		}
	}
	if a := alice.call(200, "GET", user+"/account_data/m.push_rules", nil); !strings.Contains(a.raw, `".m.rule.master"`) {
		t.Errorf("m.push_rules: %s", a.raw)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	path := "/v3/user/" + string(alice.user) + "/rooms/" + string(alice.room()) + "/tags"
	if got := alice.call(200, "GET", path, nil).raw; got != "{\"tags\":{}}\n" {
		t.Errorf("no tags: %s", got)
	}
	alice.call(200, "PUT", path+"/m.favourite", `{"order":0.25}`)
	alice.call(200, "PUT", path+"/u.work%2Fplay", `{}`)
	alice.call(400, "PUT", path+"/u.x", `{"order":"first"}`)
	bob.call(403, "PUT", path+"/u.x", `{}`)
	if got := alice.call(200, "GET", path, nil).raw; got != `{"tags":{"m.favourite":{"order":0.25},"u.work/play":{}}}`+"\n" {
		t.Errorf("tags: %s", got)
	}
	alice.call(200, "DELETE", path+"/m.favourite", nil)
	alice.call(200, "DELETE", path+"/never", nil)
	data := strings.Replace(path, "/tags", "/account_data/m.tag", 1)
	if got := alice.call(200, "GET", data, nil).raw; got != `{"tags":{"u.work/play":{}}}`+"\n" {
		t.Errorf("m.tag: %s", got)
	}
}

func TestProfile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	path := "/v3/profile/" + string(alice.user)
	room := bob.room()
	alice.join(room)

	alice.call(200, "PUT", path+"/displayname", `{"displayname":"Alice <3"}`)
	alice.call(200, "PUT", path+"/avatar_url", map[string]any{"avatar_url": "mxc://a/b"})
	alice.call(200, "PUT", path+"/m.tz", map[string]any{"m.tz": "Europe/Vienna"})
	alice.call(200, "PUT", path+"/org.example.pronouns", `{"org.example.pronouns":[1,{"a":null}]}`)
	profile := bob.call(200, "GET", path, nil)
	if profile.raw != `{"avatar_url":"mxc://a/b","displayname":"Alice <3","m.tz":"Europe/Vienna","org.example.pronouns":[1,{"a":null}]}`+"\n" {
		t.Errorf("profile: %s", profile.raw)
	}
	if got := bob.call(200, "GET", path+"/displayname", nil).raw; got != `{"displayname":"Alice <3"}`+"\n" {
		t.Errorf("field: %s", got)
	}
	if got := s.memberContent(room, alice.user); got != `{"avatar_url":"mxc://a/b","displayname":"Alice <3","membership":"join"}` {
		t.Errorf("the room was told %s", got)
	}
	asked, err := s.Profile(t.Context(), alice.user, "avatar_url")
	if err != nil || string(asked) != `{"avatar_url":"mxc://a/b"}` {
		t.Errorf("for other servers: %s, %v", asked, err)
	}

	alice.call(200, "DELETE", path+"/m.tz", nil)
	alice.call(404, "GET", path+"/m.tz", nil)
	alice.call(200, "PUT", path+"/avatar_url", map[string]any{"avatar_url": ""})
	alice.call(404, "GET", path+"/avatar_url", nil)
	if got := s.memberContent(room, alice.user); got != `{"displayname":"Alice <3","membership":"join"}` {
		t.Errorf("the room was told %s", got)
	}
	for _, test := range []struct {
		who    client
		field  string
		body   string
		status int
		code   string
	}{
		{bob, "displayname", `{"displayname":"x"}`, 403, "M_FORBIDDEN"},
		{alice, "displayname", `{}`, 400, "M_MISSING_PARAM"},
		{alice, "displayname", `{"displayname":7}`, 400, "M_BAD_JSON"},
		{alice, "displayname", `{"displayname":"` + strings.Repeat("x", 300) + `"}`, 400, "M_INVALID_PARAM"},
		{alice, "Nonsense", `{"Nonsense":1}`, 400, "M_INVALID_PARAM"},
		{alice, "a." + strings.Repeat("x", 300), `{}`, 400, "M_KEY_TOO_LARGE"},
		{alice, "a.large", `{"a.large":"` + strings.Repeat("x", maxProfile) + `"}`, 400, "M_PROFILE_TOO_LARGE"},
	} {
		if a := test.who.call(test.status, "PUT", path+"/"+test.field, test.body); a.code() != test.code {
			t.Errorf("%s %.40s: %s, want %s", test.field, test.body, a.raw, test.code)
		}
	}
	bob.call(404, "GET", "/v3/profile/@nobody:"+string(s.Server), nil)
	bob.call(400, "GET", "/v3/profile/nonsense", nil)

	const far = "@carol:k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r"
	if a := bob.call(http.StatusBadGateway, "GET", "/v3/profile/"+far, nil); a.code() != "M_UNKNOWN" {
		t.Errorf("a server that is away: %s", a.raw)
	}
	_, err = s.Store.Update(t.Context(), func(tx *store.Tx) error {
		known, err := tx.Member(room, alice.user)
		if err != nil {
			return err
		}
		return tx.PutMember(&store.Member{Room: room, User: far, Membership: "join", Event: known.Event, Position: 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := bob.call(200, "GET", "/v3/profile/"+far, nil).raw; got != `{"displayname":"Alice <3"}`+"\n" {
		t.Errorf("as a room knows the user: %s", got)
	}
	s.remote.profiles = map[eventgraph.UserID]string{far: `{"displayname":"Carol"}`}
	if got := bob.call(200, "GET", "/v3/profile/"+far+"/displayname", nil).raw; got != `{"displayname":"Carol"}`+"\n" {
		t.Errorf("remote profile: %s", got)
	}
}

// memberContent is the content of the user's membership event.
func (s *testServer) memberContent(room eventgraph.RoomID, user eventgraph.UserID) string {
	s.t.Helper()
	state, err := s.Rooms.CurrentState(room)
	if err != nil {
		s.t.Fatal(err)
	}
	event, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(user)})
	if err != nil || event == nil {
		s.t.Fatal("no membership", err)
	}
	return string(event.Content())
}

func TestPresence(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	path := "/v3/presence/" + string(alice.user) + "/status"
	if got := alice.call(200, "GET", path, nil).text("presence"); got != "offline" {
		t.Errorf("at first: %q", got)
	}
	alice.call(200, "PUT", path, map[string]any{"presence": "online", "status_msg": "here"})
	bob.call(403, "GET", path, nil)
	bob.call(403, "PUT", path, map[string]any{"presence": "offline"})
	bob.join(alice.room())
	got := bob.call(200, "GET", path, nil)
	if got.text("presence") != "online" || got.text("status_msg") != "here" || got.body["currently_active"] != true || got.body["last_active_ago"] != 0.0 {
		t.Errorf("presence: %s", got.raw)
	}
	alice.call(400, "PUT", path, map[string]any{"presence": "dancing"})
	alice.call(400, "PUT", path, map[string]any{})
}

func TestUserDirectory(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	bobby, eve := s.newClient("bobby"), s.newClient("eve")
	// A local account that is in no room of the caller's, nor in a published one, is found by its whole name only.
	if a := eve.call(200, "POST", "/v3/user_directory/search", map[string]any{"search_term": "bo"}); len(a.body["results"].([]any)) != 0 {
		t.Errorf("by letters: %s", a.raw)
	}
	shared := alice.room()
	bob.join(shared)
	bobby.call(200, "POST", "/v3/createRoom", map[string]any{"visibility": "public"})
	bob.call(200, "PUT", "/v3/rooms/"+string(shared)+"/state/m.room.member/"+string(bob.user), map[string]any{"membership": "join", "displayname": "Freddy"})
	for term, want := range map[string]int{"bob": 2, "bobb": 1, "freddy": 0, string(bob.user): 1, "@bob": 1, "alice": 1, "ali": 0} {
		if a := eve.call(200, "POST", "/v3/user_directory/search", map[string]any{"search_term": term}); len(a.body["results"].([]any)) != want {
			t.Errorf("%q: %s, want %d", term, a.raw, want)
		}
	}
	if a := s.send("GET", "/_matrix/client/v3/profile/"+string(bob.user)+"/displayname", "", nil); a.status != 200 || a.text("displayname") != "bob" {
		t.Errorf("profile without a token: %d %s", a.status, a.raw)
	}
	if a := s.send("GET", "/_matrix/client/v3/profile/@x:elsewhere", "", nil); a.status != 401 {
		t.Errorf("profile elsewhere, without a token: %d %s", a.status, a.raw)
	}
	bob.call(200, "PUT", "/v3/profile/"+string(bob.user)+"/displayname", map[string]any{"displayname": "Robert"})
	search := func(term string, limit int) (users string, limited bool) {
		a := alice.call(200, "POST", "/v3/user_directory/search", map[string]any{"search_term": term, "limit": limit})
		for _, r := range a.body["results"].([]any) {
			id := eventgraph.UserID(r.(map[string]any)["user_id"].(string))
			users += id.Localpart() + " "
		}
		return users, a.body["limited"].(bool)
	}
	for _, test := range []struct {
		term    string
		limit   int
		users   string
		limited bool
	}{
		{"BOB", 10, "bob bobby ", false},
		{"bob", 1, "bob ", true},
		{"robert", 10, "bob ", false},
		{"alice", 10, "", false},
		{"k51", 10, "", false},
	} {
		if users, limited := search(test.term, test.limit); users != test.users || limited != test.limited {
			t.Errorf("%q: %q %v, want %q %v", test.term, users, limited, test.users, test.limited)
		}
	}
	alice.call(400, "POST", "/v3/user_directory/search", map[string]any{})
}

func TestPushRuleEndpoints(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	const global = "/v3/pushrules/global/"
	if a := alice.call(200, "GET", "/v3/pushrules/", nil); !strings.HasPrefix(a.raw, `{"global":{"override":[{"rule_id":".m.rule.master"`) {
		t.Errorf("rules: %.200s", a.raw)
	}
	if a := alice.call(200, "GET", global, nil); !strings.HasPrefix(a.raw, `{"override":[`) {
		t.Errorf("global rules: %.200s", a.raw)
	}
	room := alice.room()
	before := s.Store.Position()
	alice.call(200, "PUT", global+"room/"+string(room), `{"actions":["dont_notify"]}`)
	if s.Store.Position() != before+1 {
		t.Error("the change has no position for /sync")
	}
	if got := alice.call(200, "GET", global+"room/"+string(room), nil).raw; got != `{"rule_id":"`+string(room)+`","default":false,"enabled":true,"actions":["dont_notify"]}`+"\n" {
		t.Errorf("rule: %s", got)
	}
	alice.call(200, "PUT", global+"sender/@noisy:example.org", `{"actions":["notify",{"set_tweak":"sound","value":"default"}]}`)
	alice.call(200, "PUT", global+"content/cake", `{"pattern":"cake*lie","actions":["notify"]}`)
	alice.call(200, "PUT", global+"content/tea?after=cake", `{"pattern":"tea","actions":["notify"]}`)
	alice.call(200, "PUT", global+"content/milk?before=cake", `{"pattern":"milk","actions":["notify"]}`)
	raw := alice.call(200, "GET", global, nil).raw
	if m, c, e := strings.Index(raw, `"milk"`), strings.Index(raw, `"cake"`), strings.Index(raw, `"tea"`); m < 0 || c < m || e < c {
		t.Errorf("order of rules: %s", raw)
	}
	for _, path := range []string{"/v3/pushrules/", global} {
		all := alice.call(200, "GET", path, nil).raw
		for _, rule := range []string{
			`"room":[{"rule_id":"` + string(room) + `"`, `"sender":[{"rule_id":"@noisy:example.org"`, `"content":[{"rule_id":"milk"`, `"pattern":"cake*lie"`,
		} {
			if !strings.Contains(all, rule) {
				t.Errorf("%s lacks %s: %s", path, rule, all)
			}
		}
	}
	alice.call(200, "PUT", global+"content/cake/enabled", `{"enabled":false}`)
	if got := alice.call(200, "GET", global+"content/cake/enabled", nil).raw; got != `{"enabled":false}`+"\n" {
		t.Errorf("enabled: %s", got)
	}
	alice.call(200, "PUT", global+"underride/.m.rule.message/actions", `{"actions":["notify",{"set_tweak":"highlight"}]}`)
	if got := alice.call(200, "GET", global+"underride/.m.rule.message/actions", nil).raw; got != `{"actions":["notify",{"set_tweak":"highlight"}]}`+"\n" {
		t.Errorf("actions: %s", got)
	}
	alice.call(200, "DELETE", global+"content/cake", nil)
	alice.call(404, "GET", global+"content/cake", nil)
	for _, test := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"PUT", "content/x", `{"actions":["notify"]}`, 400, "M_INVALID_PARAM"},
		{"PUT", "content/x", `{"pattern":"x"}`, 400, "M_MISSING_PARAM"},
		{"PUT", "content/x", `{"pattern":"x","actions":7}`, 400, "M_BAD_JSON"},
		{"PUT", "content/x", `{"pattern":"x","actions":[7]}`, 400, "M_INVALID_PARAM"},
		{"PUT", "content/x?before=cake", `{"pattern":"x","actions":[]}`, 400, "M_UNKNOWN"},
		{"PUT", "override/.m.rule.master", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", "override/a%2Fb", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", "underfoot/x", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
		{"PUT", "override/.m.rule.master/enabled", `{}`, 400, "M_MISSING_PARAM"},
		{"PUT", "override/unknown/enabled", `{"enabled":true}`, 404, "M_NOT_FOUND"},
		{"PUT", "override/unknown/actions", `{"actions":[]}`, 404, "M_NOT_FOUND"},
		{"DELETE", "override/.m.rule.master", "", 404, "M_NOT_FOUND"},
		{"DELETE", "override/unknown", "", 404, "M_NOT_FOUND"},
		{"GET", "underfoot/x", "", 404, "M_NOT_FOUND"},
	} {
		if a := alice.call(test.status, test.method, global+test.path, test.body); a.code() != test.code {
			t.Errorf("%s %s: %s, want %s", test.method, test.path, a.raw, test.code)
		}
	}
}

// unread counts as /sync does.
func (c client) unread(room eventgraph.RoomID, byThread bool) (unreadCounts, map[string]unreadCounts) {
	c.s.t.Helper()
	var counts unreadCounts
	var threads map[string]unreadCounts
	err := c.s.Store.View(func(r *store.Reader) error {
		u, err := c.s.newUnread(r, c.user)
		if err != nil {
			return err
		}
		counts, threads, err = u.room(room, byThread)
		return err
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	return counts, threads
}

// read puts a receipt.
func (c client) read(room eventgraph.RoomID, kind string, event eventgraph.EventID, thread string) {
	c.s.t.Helper()
	_, err := c.s.Store.Update(c.s.t.Context(), func(tx *store.Tx) error {
		_, err := tx.PutReceipt(&store.Receipt{Room: room, User: c.user, Type: kind, Event: event, Thread: thread})
		return err
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
}

func TestUnread(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.message(room, `{"body":"before bob came"}`)
	bob.join(room)
	check := func(what string, highlights, notifications int) {
		t.Helper()
		if got, _ := bob.unread(room, false); got != (unreadCounts{highlights, notifications}) {
			t.Fatalf("%s: %+v, want %d highlights of %d", what, got, highlights, notifications)
		}
	}
	check("at first", 0, 0)
	first := alice.message(room, `{"body":"one"}`)
	check("a message", 0, 1)
	mention, err := json.Marshal(map[string]any{"body": "two", "m.mentions": map[string]any{"user_ids": []any{bob.user}}})
	if err != nil {
		t.Fatal(err)
	}
	second := alice.message(room, string(mention))
	alice.message(room, `{"body":"three","msgtype":"m.notice"}`)
	check("a mention, and a notice that does not count", 1, 2)
	third := alice.message(room, `{"body":"all","m.mentions":{"room":true}}`)
	check("the creator mentions the room", 2, 3)
	if got, _ := alice.unread(room, false); got.Notifications != 0 {
		t.Errorf("alice's own: %+v", got)
	}

	bob.read(room, "m.read", first, "")
	check("read to the first", 2, 2)
	bob.read(room, "m.read.private", second, "")
	check("read to the second in private", 1, 1)
	bob.read(room, "m.read", third, "")
	check("read all", 0, 0)

	alice.message(room, `{"body":"four"}`)
	check("a new message", 0, 1)
	bob.call(200, "PUT", "/v3/pushrules/global/room/"+string(room), `{"actions":[]}`)
	check("the room is muted", 0, 0)
	bob.call(200, "DELETE", "/v3/pushrules/global/room/"+string(room), nil)
	check("and no more", 0, 1)
	bob.call(200, "PUT", "/v3/user/"+string(bob.user)+"/account_data/m.ignored_user_list",
		map[string]any{"ignored_users": map[string]any{string(alice.user): map[string]any{}}})
	check("the sender is ignored", 0, 0)
}

func TestUnreadByThread(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	root := alice.message(room, `{"body":"root"}`)
	inThread := alice.message(room, fmt.Sprintf(`{"body":"in","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
	alice.message(room, fmt.Sprintf(`{"body":"about it","m.relates_to":{"rel_type":"m.reference","event_id":%q}}`, inThread))
	last := alice.message(room, `{"body":"main"}`)

	if all, _ := bob.unread(room, false); all.Notifications != 4 {
		t.Errorf("all: %+v", all)
	}
	main, threads := bob.unread(room, true)
	if main.Notifications != 2 || len(threads) != 1 || threads[string(root)].Notifications != 2 {
		t.Errorf("by thread: %+v %+v", main, threads)
	}
	bob.read(room, "m.read", last, mainThread)
	main, threads = bob.unread(room, true)
	if main.Notifications != 0 || threads[string(root)].Notifications != 2 {
		t.Errorf("main thread read: %+v %+v", main, threads)
	}
	bob.read(room, "m.read", inThread, string(root))
	if _, threads = bob.unread(room, true); threads[string(root)].Notifications != 1 {
		t.Errorf("thread read to its first: %+v", threads)
	}
	bob.read(room, "m.read", last, "")
	if all, _ := bob.unread(room, false); all.Notifications != 0 {
		t.Errorf("all read: %+v", all)
	}
}

func TestRoomMentionNeedsPower(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	carol.join(room)
	bob.message(room, `{"body":"all","m.mentions":{"room":true}}`)
	if got, _ := carol.unread(room, false); got != (unreadCounts{0, 1}) {
		t.Errorf("without power: %+v", got)
	}
	empty := ""
	alice.event(rooms.Draft{Room: room, Type: "m.room.power_levels", StateKey: &empty,
		Content: json.RawMessage(`{"users":{},"notifications":{"room":0}}`)})
	bob.message(room, `{"body":"all","m.mentions":{"room":true}}`)
	if got, _ := carol.unread(room, false); got != (unreadCounts{1, 2}) {
		t.Errorf("where nobody needs power: %+v", got)
	}
}

// Counting ends when nobody waits for it any more.
func TestCountingEnds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	bob.message(room, `{"msgtype":"m.text","body":"1"}`)
	bob.message(room, `{"msgtype":"m.text","body":"2"}`)
	err := s.Store.View(func(r *store.Reader) error {
		u, err := s.newUnread(r, alice.user)
		if err != nil {
			return err
		}
		calls := 0
		u.ended = func() error {
			if calls++; calls > 1 {
				return context.Canceled
			}
			return nil
		}
		_, _, err = u.room(room, false)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("counting ended with %v", err)
	}
}

// Account data is kept for rooms that the user has something to do with, and within a quota.
func TestAccountDataBounds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := bob.room()
	path := func(room eventgraph.RoomID, rest string) string {
		return "/v3/user/" + string(alice.user) + "/rooms/" + string(room) + rest
	}
	for _, id := range []eventgraph.RoomID{room, eventgraph.RoomID("!" + strings.Repeat("A", 43))} {
		for _, rest := range []string{"/account_data/x", "/tags/u.x"} {
			if a := alice.call(403, "PUT", path(id, rest), `{}`); a.code() != "M_FORBIDDEN" {
				t.Error(a.raw)
			}
		}
	}
	alice.join(room)
	alice.call(200, "PUT", path(room, "/account_data/x"), `{}`)
	alice.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", `{}`)
	alice.call(200, "PUT", path(room, "/tags/u.x"), `{}`)

	body := `{"x":"` + strings.Repeat("a", maxAccountData-10) + `"}`
	kept := 0
	for ; kept < 40; kept++ {
		a := s.send("PUT", fmt.Sprintf("/_matrix/client/v3/user/%s/account_data/t%d", alice.user, kept), alice.token, body)
		if a.status == 413 && a.code() == "M_TOO_LARGE" {
			break
		}
		if a.status != 200 {
			t.Fatal(a.raw)
		}
	}
	if most := store.MaxAccountDataBytes / maxAccountData; kept > most || kept < most-1 {
		t.Errorf("%d contents of %d bytes are kept, of %d", kept, maxAccountData, most)
	}
	alice.call(200, "GET", "/v3/sync", "")
}

// A room is marked as unread by room account data, which the user's other devices are told of (CS API, Unread markers).
func TestMarkedUnread(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	other := s.logIn("alice", "OTHER")
	path := "/v3/user/" + string(alice.user) + "/rooms/" + string(room) + "/account_data/m.marked_unread"
	since, bobs := other.sync("").NextBatch, bob.sync("").NextBatch
	for _, unread := range []bool{true, false} {
		alice.call(200, "PUT", path, map[string]any{"unread": unread})
		if got := alice.call(200, "GET", path, nil); got.body["unread"] != unread {
			t.Errorf("marked: %s", got.raw)
		}
		body := other.sync(since)
		since = body.NextBatch
		e := body.Rooms.Join[room].AccountData.find("m.marked_unread")
		if e == nil || e.Content["unread"] != unread {
			t.Errorf("the other device is told of %+v", e)
		}
	}
	if got := bob.sync(bobs).Rooms.Join; len(got) != 0 {
		t.Errorf("bob is told of %+v", got)
	}
	bob.call(403, "PUT", path, map[string]any{"unread": true})
}
