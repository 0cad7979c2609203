package clientapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// Purged events are as unknown to clients, by whatever endpoint they ask.
func TestPurgedEvents(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	var said []eventgraph.EventID
	for i := range 5 {
		said = append(said, alice.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":"needle %d"}`, i)))
	}
	alice.message(room, `{"body":"* x","msgtype":"m.text","m.new_content":{"body":"x","msgtype":"m.text"},"m.relates_to":{"rel_type":"m.replace","event_id":"`+string(said[4])+`"}}`)
	edited := said[4]
	since := alice.call(200, "GET", "/v3/sync", nil).text("next_batch")
	kept := alice.message(room, `{"msgtype":"m.text","body":"new"}`)
	if _, err := s.Rooms.Purge(t.Context(), room, rooms.PurgeLimit{Event: kept}, func(rooms.PurgeProgress) {}); err != nil {
		t.Fatal(err)
	}
	path := "/v3/rooms/" + string(room)
	for _, id := range said {
		for _, ask := range []string{path + "/event/" + string(id), path + "/context/" + string(id), "/v1/rooms/" + string(room) + "/relations/" + string(id)} {
			if a := alice.call(404, "GET", ask, nil); a.code() != "M_NOT_FOUND" {
				t.Errorf("%s: %s", ask, a.raw)
			}
		}
	}
	for _, ask := range []string{path + "/messages?dir=b&limit=50", path + "/messages?dir=f&limit=50", "/v3/sync", "/v3/sync?since=" + since, path + "/context/" + string(kept)} {
		a := alice.call(200, "GET", ask, nil)
		if strings.Contains(a.raw, "needle") || strings.Contains(a.raw, string(edited)) || !strings.Contains(a.raw, `"new"`) {
			t.Errorf("%s: %s", ask, a.raw)
		}
	}
	a := alice.call(200, "POST", "/v3/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{"search_term": "needle"}}})
	if strings.Contains(a.raw, `"body":"needle`) {
		t.Error(a.raw)
	}
	// Elsewhere it may still be there: it can be redacted.
	alice.call(200, "PUT", path+"/redact/"+string(said[0])+"/1", map[string]any{})
	alice.message(room, `{"msgtype":"m.text","body":"more"}`)
}
