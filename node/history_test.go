package node_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
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
	var second eventgraph.EventID
	var said, next struct {
		TS int64 `json:"origin_server_ts"`
	}
	in := "/rooms/" + url.PathEscape(string(room))
	for next.TS == said.TS { // of what was said in one millisecond the last is found
		second = alice.say(room, "second")
		alice.must("GET", in+"/event/"+url.PathEscape(string(second)), nil, &said)
		alice.must("GET", in+"/event/"+url.PathEscape(string(alice.say(room, "third"))), nil, &next)
	}
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
	if err != nil || near.Event != second {
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

// TestHistoryAfterReturn: who left a room, comes back after others have spoken, and pages back, sees what was said meanwhile between what is held from
// before and the return; from the timeline of a first sync, which ends at the return, too.
func TestHistoryAfterReturn(t *testing.T) {
	a, _ := runNode(t)
	b, _ := runNode(t, a.P2PAddrs()[0])
	alice, bob := register(t, a, "alice"), register(t, b, "bob")
	room := alice.create(map[string]any{"preset": "public_chat"})
	in := "/rooms/" + url.PathEscape(string(room))
	var want []string
	say := func(who *localUser, what string, n int) {
		for i := range n {
			body := fmt.Sprint(what, " ", i)
			who.say(room, body)
			want = append(want, body)
		}
	}
	join := func() {
		within(t, 20*time.Second, "bob's join", func() bool {
			status, _ := bob.do("POST", "/join/"+url.PathEscape(string(room))+"?via="+string(a.ServerName()), struct{}{})
			return status == http.StatusOK
		})
	}
	// page reads backwards from a token, at most n pages.
	page := func(from string, n int) (bodies []string, end string) {
		end = from
		for range n {
			var page struct {
				Chunk []struct {
					Content struct{ Body string }
				}
				End string
			}
			bob.must("GET", in+"/messages?dir=b&limit=10&from="+url.QueryEscape(end), nil, &page)
			for _, e := range page.Chunk {
				if e.Content.Body != "" {
					bodies = append(bodies, e.Content.Body)
				}
			}
			if end = page.End; end == "" {
				break
			}
		}
		return bodies, end
	}

	say(alice, "before bob", 5)
	join()
	say(bob, "bob", 5)
	bob.must("POST", in+"/leave", struct{}{}, nil)
	within(t, 20*time.Second, "bob's leave", func() bool {
		_, body := alice.do("GET", in+"/joined_members", nil)
		return !strings.Contains(string(body), string(bob.id))
	})
	say(alice, "meanwhile", 45)
	join()
	say(bob, "back", 2)
	slices.Reverse(want)

	var sync struct {
		Rooms struct {
			Join map[eventgraph.RoomID]struct {
				Timeline struct {
					Events []struct {
						Type    string
						Content struct{ Body string }
					}
					Limited bool
					Prev    string `json:"prev_batch"`
				}
			}
		}
	}
	bob.must("GET", "/sync", nil, &sync)
	timeline := sync.Rooms.Join[room].Timeline
	var shown []string
	for _, e := range timeline.Events {
		if e.Content.Body != "" {
			shown = append(shown, e.Content.Body)
		}
	}
	if !timeline.Limited || !slices.Equal(shown, []string{"back 0", "back 1"}) {
		t.Errorf("timeline of a first sync: limited %v, %q", timeline.Limited, shown)
	}
	for name, from := range map[string]string{"the newest": "", "the return": timeline.Prev} {
		got, end := page(from, 20)
		if from != "" {
			got = append([]string{"back 1", "back 0"}, got...)
		}
		if !slices.Equal(got, want) || end != "" {
			t.Errorf("paging back from %s: %q, token %q", name, got, end)
		}
	}
}

// TestHistoryPastMadeUpHistory: a client that pages back comes to what was said before its user joined, though a member's server has a past
// without end to give.
func TestHistoryPastMadeUpHistory(t *testing.T) {
	a, _ := runNode(t)
	b, _ := runNode(t, a.P2PAddrs()[0])
	alice, bob := register(t, a, "alice"), register(t, b, "bob")
	room := alice.create(map[string]any{"preset": "public_chat"})
	in := "/rooms/" + url.PathEscape(string(room))
	var want []string
	for i := range 60 {
		body := fmt.Sprint("true ", i)
		alice.say(room, body)
		want = append(want, body)
	}
	slices.Reverse(want)
	within(t, 20*time.Second, "bob's join", func() bool {
		status, _ := bob.do("POST", "/join/"+url.PathEscape(string(room))+"?via="+string(a.ServerName()), struct{}{})
		return status == http.StatusOK
	})

	p := newPlainPeer(t, b.ServerName(), b.P2PAddrs())
	pat := p.user("pat")
	r := p.join(room, pat)
	const length, piece = 600, 100
	below := map[eventgraph.EventID]*eventgraph.Event{} // parents of what was made up
	draft := p.draft(r, pat, "made up")
	draft.PrevEvents = []eventgraph.EventID{eventgraph.EventID("$" + strings.Repeat("A", 43))}
	top := p.build(r.version, draft)
	for range length {
		draft.PrevEvents = []eventgraph.EventID{top.ID()}
		e := p.build(r.version, draft)
		below[e.ID()], top = top, e
	}
	var state []eventgraph.EventID
	for _, e := range r.state {
		state = append(state, e.ID())
	}
	given := 0
	p.mu.Lock()
	p.answer = func(path string, query url.Values) any {
		pdus := []json.RawMessage{}
		switch {
		case strings.Contains(path, "/state_ids/"):
			return map[string]any{"pdu_ids": state, "auth_chain_ids": []string{}}
		case strings.Contains(path, "/backfill/"):
			for _, v := range query["v"] {
				for e := below[eventgraph.EventID(v)]; e != nil && len(pdus) < piece; e = below[e.ID()] {
					pdus = append(pdus, e.Raw())
				}
			}
			given += len(pdus)
			return map[string]any{"origin": p.key.Server, "origin_server_ts": 1, "pdus": pdus}
		}
		return nil
	}
	p.mu.Unlock()
	if status, answer := p.send(as{}, "1", []json.RawMessage{top.Raw()}, nil); status != 200 || answer[top.ID()].Error != "" {
		t.Fatalf("send: %d %v", status, answer)
	}
	within(t, 20*time.Second, "pat's message", func() bool { _, there := bob.shows(room, top.ID()); return there })

	var got []string
	from := ""
	for pages := 0; len(got) < len(want) && pages < 20; pages++ {
		var page struct {
			Chunk []struct{ Content struct{ Body string } }
			End   string
		}
		bob.must("GET", in+"/messages?dir=b&limit=50&from="+url.QueryEscape(from), nil, &page)
		for _, e := range page.Chunk {
			if strings.HasPrefix(e.Content.Body, "true ") {
				got = append(got, e.Content.Body)
			}
		}
		if from = page.End; from == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("bob is shown %q", got)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if given == 0 {
		t.Error("the hostile server was not asked")
	}
}
