package node_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

// TestApplicationService: a whole node with a bridge. Somebody on another node invites a user whom the bridge makes when it is asked; the bridge
// is told of the invite and of what is said, and answers; and it may read by /sync.
func TestApplicationService(t *testing.T) {
	t.Parallel()
	type event struct {
		Type     string
		Room     eventgraph.RoomID  `json:"room_id"`
		ID       eventgraph.EventID `json:"event_id"`
		Sender   eventgraph.UserID
		StateKey string `json:"state_key"`
		Content  struct{ Membership, Body string }
	}
	told := make(chan event, 1000)
	bridge := &localUser{t: t, token: "as-secret"}
	ask := make(chan string, 100) // what it is asked for
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer hs-secret" {
			t.Errorf("%s without the hs_token", r.URL.Path)
		}
		if user, is := strings.CutPrefix(r.URL.Path, "/_matrix/app/v1/users/"); is {
			ask <- user
			name, _, _ := strings.Cut(strings.TrimPrefix(user, "@"), ":")
			status, raw := http.StatusNotFound, []byte(`{"errcode":"M_NOT_FOUND"}`)
			if !strings.HasPrefix(name, "irc_no") {
				status, raw = bridge.do("POST", "/register", map[string]any{"type": "m.login.application_service", "username": name, "inhibit_login": true})
			}
			w.WriteHeader(status)
			w.Write(raw)
			return
		}
		body, err := io.ReadAll(r.Body)
		var transaction struct{ Events []event }
		if err != nil || json.Unmarshal(body, &transaction) != nil || !strings.HasPrefix(r.URL.Path, "/_matrix/app/v1/transactions/") {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		for _, e := range transaction.Events {
			told <- e
		}
		io.WriteString(w, `{}`)
	}))
	t.Cleanup(service.Close)
	next := func(what string, is func(event) bool) event {
		t.Helper()
		for end := time.After(20 * time.Second); ; {
			select {
			case e := <-told:
				if is(e) {
					return e
				}
			case <-end:
				t.Fatalf("the service was not told of %s", what)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "irc.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
id: irc
url: %s
as_token: as-secret
hs_token: hs-secret
sender_localpart: ircbot
namespaces: {users: [{exclusive: true, regex: "@irc_.*"}]}
`, service.URL), 0o600); err != nil {
		t.Fatal(err)
	}

	far, _ := runNode(t)
	home, _ := runNodeWith(t, func(c *node.Config) { c.Peers, c.AppServices = far.P2PAddrs(), []string{file} })
	bridge.base = home.ClientURL()
	alice := register(t, far, "alice")
	nick := eventgraph.UserID("@irc_nick:" + home.ServerName())
	nobody := eventgraph.UserID("@irc_nobody:" + home.ServerName())
	as := "user_id=" + url.QueryEscape(string(nick))
	room := alice.create(map[string]any{"preset": "private_chat", "name": "Den"})
	path := "/rooms/" + url.PathEscape(string(room))
	until(t, func() bool { // the nodes have met
		status, _ := alice.do("GET", "/profile/"+url.PathEscape("@ircbot:"+string(home.ServerName())), nil)
		return status == http.StatusOK
	})

	if status, raw := alice.do("POST", path+"/invite", map[string]any{"user_id": nobody}); status == http.StatusOK {
		t.Errorf("somebody whom the service does not make was invited: %s", raw)
	}
	alice.must("POST", path+"/invite", map[string]any{"user_id": nick}, nil)
	if asked := []string{<-ask, <-ask}; !slices.Equal(asked, []string{string(nobody), string(nick)}) {
		t.Errorf("it was asked for %q", asked)
	}
	invite := next("the invite", func(e event) bool { return e.Type == "m.room.member" && e.StateKey == string(nick) })
	if invite.Room != room || invite.Sender != alice.id || invite.Content.Membership != "invite" {
		t.Errorf("the invite: %+v", invite)
	}

	type sync struct {
		Next  string `json:"next_batch"`
		Rooms struct {
			Invite map[eventgraph.RoomID]any
			Join   map[eventgraph.RoomID]struct{ Timeline struct{ Events []event } }
		}
	}
	var s sync
	bridge.must("GET", "/sync?"+as, nil, &s)
	if s.Rooms.Invite[room] == nil {
		t.Errorf("/sync of the invited: %+v", s)
	}
	until(t, func() bool {
		status, _ := bridge.do("POST", path+"/join?"+as, struct{}{})
		return status == http.StatusOK
	})
	said := alice.say(room, "hello IRC")
	if e := next("what was said", func(e event) bool { return e.ID == said }); e.Content.Body != "hello IRC" || e.Room != room {
		t.Errorf("what was said: %+v", e)
	}
	found := false
	for !found { // waits in /sync; the test's own time is the bound
		var now sync
		bridge.must("GET", "/sync?timeout=5000&since="+url.QueryEscape(s.Next)+"&"+as, nil, &now)
		s.Next = now.Next
		found = slices.ContainsFunc(now.Rooms.Join[room].Timeline.Events, func(e event) bool { return e.ID == said })
	}
	var sent struct {
		Event eventgraph.EventID `json:"event_id"`
	}
	bridge.must("PUT", path+"/send/m.room.message/1?"+as, map[string]string{"msgtype": "m.text", "body": "hello Matrix"}, &sent)
	until(t, func() bool { body, ok := alice.shows(room, sent.Event); return ok && body == "hello Matrix" })
	http.DefaultClient.CloseIdleConnections()
}
