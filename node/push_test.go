package node_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

// TestPushAcrossNodes: what is said on one node is told to the push gateway of a user of another; what they read, too. Calls pass as they are,
// in the room and to the device.
func TestPushAcrossNodes(t *testing.T) {
	t.Parallel()
	type pushed struct {
		Event      eventgraph.EventID `json:"event_id"`
		Room       eventgraph.RoomID  `json:"room_id"`
		Target     bool               `json:"user_is_target"`
		Type, Prio string
		Sender     eventgraph.UserID
		RoomName   string `json:"room_name"`
		Content    json.RawMessage
		Counts     struct{ Unread int }
		Devices    []struct {
			Pushkey string
			Data    json.RawMessage
			Tweaks  struct{ Sound string }
		}
	}
	notified := make(chan pushed, 100)
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Notification pushed }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.URL.Path != "/_matrix/push/v1/notify" || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s %v: %v", r.Method, r.URL, r.Header, err)
		}
		notified <- body.Notification
		w.Write([]byte(`{"rejected":[]}`))
	}))
	t.Cleanup(gateway.Close)
	next := func(what string, is func(p pushed) bool) pushed {
		t.Helper()
		for end := time.After(20 * time.Second); ; {
			select {
			case p := <-notified:
				if is(p) {
					return p
				}
			case <-end:
				t.Fatalf("%s: nothing was pushed", what)
			}
		}
	}

	a, _ := runNode(t)
	b, _ := runNodeWith(t, func(c *node.Config) { c.Peers, c.PrivateGateways = a.P2PAddrs(), true })
	alice, bob := register(t, a, "alice"), register(t, b, "bob")
	bob.must("POST", "/pushers/set", map[string]any{
		"kind": "http", "app_id": "app", "pushkey": "key", "app_display_name": "App", "device_display_name": "Phone", "lang": "en",
		"data": map[string]any{"url": gateway.URL + "/_matrix/push/v1/notify", "own": true},
	}, nil)
	room := alice.create(map[string]any{"preset": "private_chat", "name": "Den"})
	path := "/rooms/" + url.PathEscape(string(room))
	until(t, func() bool {
		status, _ := alice.do("POST", path+"/invite", map[string]any{"user_id": bob.id})
		return status == http.StatusOK
	})
	until(t, func() bool { status, _ := bob.do("POST", path+"/join", struct{}{}); return status == http.StatusOK })
	said := alice.say(room, "hello")
	p := next("a message", func(p pushed) bool { return p.Event == said })
	if p.Sender != alice.id || p.RoomName != "Den" || p.Counts.Unread != 1 || len(p.Devices) != 1 || p.Devices[0].Pushkey != "key" || string(p.Devices[0].Data) != `{"own":true}` {
		t.Errorf("a message: %+v", p)
	}
	bob.must("POST", path+"/receipt/m.read/"+url.PathEscape(string(said)), struct{}{}, nil)
	next("what was read", func(p pushed) bool { return p.Event == "" && p.Counts.Unread == 0 })

	// Alice is no stranger any more: her next invite is told.
	attic := alice.create(map[string]any{"preset": "private_chat", "name": "Attic", "invite": []eventgraph.UserID{bob.id}})
	if p := next("the invite", func(p pushed) bool { return p.Type == "m.room.member" }); p.Room != attic || p.RoomName != "Attic" || p.Sender != alice.id || !p.Target {
		t.Errorf("the invite: %+v", p)
	}

	// A call rings, and its content is as it was.
	content := `{"call_id":"c1","lifetime":60000,"offer":{"sdp":"v=0\r\n<&>","type":"offer"},"party_id":"p1","version":"1"}`
	var sent struct {
		Event eventgraph.EventID `json:"event_id"`
	}
	alice.must("PUT", path+"/send/m.call.invite/call1", json.RawMessage(content), &sent)
	p = next("a call", func(p pushed) bool { return p.Event == sent.Event })
	if p.Prio != "high" || p.Devices[0].Tweaks.Sound != "ring" || !sameJSON(t, p.Content, content) {
		t.Errorf("a call: %+v", p)
	}
	toDevice := `{"call_id":"c1","conf_id":"x","dest_session_id":"s","seq":0}`
	alice.must("PUT", "/sendToDevice/m.call.candidates/1", map[string]any{"messages": map[string]any{string(bob.id): map[string]any{"*": json.RawMessage(toDevice)}}}, nil)
	since := ""
	until(t, func() bool {
		var answer struct {
			Next     string `json:"next_batch"`
			ToDevice struct {
				Events []struct {
					Type    string
					Content json.RawMessage
				}
			} `json:"to_device"`
		}
		bob.must("GET", "/sync?timeout=500&since="+url.QueryEscape(since), nil, &answer)
		since = answer.Next
		for _, e := range answer.ToDevice.Events {
			if e.Type == "m.call.candidates" && sameJSON(t, e.Content, toDevice) {
				return true
			}
		}
		return false
	})
	http.DefaultClient.CloseIdleConnections()
}

// until asks again until the answer is yes.
func until(t testing.TB, ask func() bool) {
	t.Helper()
	err := errors.New("not in time")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		if ask() {
			return
		}
	}
	t.Fatal(err)
}

// sameJSON compares without regard to the order of members.
func sameJSON(t testing.TB, a json.RawMessage, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	first, _ := json.Marshal(x)
	second, _ := json.Marshal(y)
	return string(first) == string(second)
}
