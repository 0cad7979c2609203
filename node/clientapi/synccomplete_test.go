package clientapi

import (
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// While several send at once, in several rooms, one who syncs gets each event once: in timelines, or in the pages that lead back
// from a limited one.
func TestSyncIsCompleteWhileOthersSend(t *testing.T) {
	t.Parallel()
	const senders, messages = 4, 60
	s := newTestServer(t, nil)
	bob := s.newClient("bob")
	alice := s.newClient("alice")
	in := []eventgraph.RoomID{alice.room(), alice.room()}
	for _, room := range in {
		bob.join(room)
	}
	token := bob.sync("").NextBatch

	var work sync.WaitGroup
	for n := range senders {
		work.Go(func() {
			for i := range messages {
				d := rooms.Draft{Room: in[(n+i)%len(in)], Sender: alice.user, Type: "m.room.message", Content: []byte(text(fmt.Sprintf("%d.%d", n, i)))}
				if _, err := s.Rooms.Send(t.Context(), d); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer work.Wait()

	got := map[eventgraph.EventID]string{}
	take := func(how string, e syncedEvent) {
		if e.Type != "m.room.message" {
			return
		}
		if was := got[e.ID]; was != "" {
			t.Errorf("%s comes twice: in %s and in %s", e.Content["body"], was, how)
		}
		got[e.ID] = how
	}
	for len(got) < senders*messages && !t.Failed() {
		body := bob.sync(token, "timeout=5000")
		if len(body.Rooms.Join) == 0 {
			t.Fatalf("only %d of %d messages came", len(got), senders*messages)
		}
		for room, r := range body.Rooms.Join {
			for from := r.Timeline.PrevBatch; r.Timeline.Limited && from != ""; {
				page := bob.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?"+url.Values{
					"dir": {"b"}, "from": {from}, "to": {token}, "limit": {"7"},
				}.Encode(), nil)
				for _, e := range page.body["chunk"].([]any) {
					e := e.(map[string]any)
					take("a page", syncedEvent{ID: eventgraph.EventID(e["event_id"].(string)), Type: e["type"].(string), Content: e["content"].(map[string]any)})
				}
				from = page.text("end")
			}
			for _, e := range r.Timeline.Events {
				take("a timeline", e)
			}
		}
		token = body.NextBatch
	}
}
