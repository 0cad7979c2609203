package node_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// TestHistoryByTime: an event from before a user came, found by its time at another server, can be read around.
func TestHistoryByTime(t *testing.T) {
	a, _ := runNode(t)
	b, _ := runNode(t, a.P2PAddrs()[0])
	alice, bob := register(t, a, "alice"), register(t, b, "bob")
	room := alice.create(map[string]any{"preset": "public_chat"})
	first := alice.say(room, "first")
	second := alice.say(room, "second")
	var said struct {
		TS int64 `json:"origin_server_ts"`
	}
	in := "/rooms/" + url.PathEscape(string(room))
	alice.must("GET", in+"/event/"+url.PathEscape(string(second)), nil, &said)
	for i := range 30 {
		alice.say(room, fmt.Sprint("later ", i))
	}
	within(t, 20*time.Second, "bob's join", func() bool {
		status, _ := bob.do("POST", "/join/"+url.PathEscape(string(room))+"?via="+string(a.ServerName()), struct{}{})
		return status == http.StatusOK
	})
	var near struct {
		Event eventgraph.EventID `json:"event_id"`
	}
	err := bob.media("GET", fmt.Sprintf("/_matrix/client/v1%s/timestamp_to_event?dir=b&ts=%d", in, said.TS), nil, func(res *http.Response) error {
		return json.NewDecoder(res.Body).Decode(&near)
	})
	if err != nil || near.Event != second && near.Event != first { // they may have been said in the same millisecond
		t.Fatalf("found %s, want %s; %v", near.Event, second, err)
	}
	var around struct{ Start, End string }
	bob.must("GET", in+"/context/"+url.PathEscape(string(second))+"?limit=0", nil, &around)
	_, page := bob.do("GET", in+"/messages?dir=b&limit=100&from="+around.End, nil)
	if !strings.Contains(string(page), string(first)) || !strings.Contains(string(page), string(second)) || strings.Contains(string(page), "later") {
		t.Errorf("before the end of the context: %s", page)
	}
	_, page = bob.do("GET", in+"/messages?dir=f&limit=100&from="+around.Start, nil)
	if strings.Contains(string(page), string(first)) || !strings.Contains(string(page), string(second)) || !strings.Contains(string(page), "later 29") {
		t.Errorf("after the start of the context: %s", page)
	}
}
