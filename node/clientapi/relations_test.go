package clientapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// relate sends a message that relates to another.
func (c client) relate(room eventgraph.RoomID, relType string, to eventgraph.EventID, body string) eventgraph.EventID {
	c.s.t.Helper()
	return c.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":%q,"m.relates_to":{"rel_type":%q,"event_id":%q}}`, body, relType, to))
}

// chunkOf lists the bodies of the events of an answer, and the body of the newest reply behind a colon.
func chunkOf(a answer) string {
	var bodies []string
	for _, e := range a.body["chunk"].([]any) {
		event := e.(map[string]any)
		content := event["content"].(map[string]any)
		body := fmt.Sprint(content["body"])
		unsigned, _ := event["unsigned"].(map[string]any)
		if rel, ok := unsigned["m.relations"].(map[string]any); ok && rel["m.thread"] != nil {
			latest := rel["m.thread"].(map[string]any)["latest_event"].(map[string]any)
			body += ":" + fmt.Sprint(latest["content"].(map[string]any)["body"])
		}
		bodies = append(bodies, body)
	}
	return strings.Join(bodies, " ")
}

// CS API, Relationships API.
func TestRelations(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	root := alice.say(room, "root")
	for i := range 5 {
		alice.relate(room, "m.thread", root, fmt.Sprint("t", i))
	}
	token := alice.sync("").NextBatch
	note := bob.relate(room, "m.reference", root, "ref")
	deep := bob.relate(room, "m.reference", note, "deep")
	bob.relate(room, "m.thread", deep, "deeper")
	gone := bob.relate(room, "m.thread", root, "gone")
	bob.call(200, "PUT", "/v3/rooms/"+string(room)+"/redact/"+string(gone)+"/1", map[string]any{})
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/m.ignored_user_list", map[string]any{"ignored_users": map[string]any{"@x:y": map[string]any{}}})

	path := "/v1/rooms/" + string(room) + "/relations/" + string(root)
	for _, c := range []struct{ query, want string }{
		{"", "ref t4 t3 t2 t1 t0"},
		{"?dir=f", "t0 t1 t2 t3 t4 ref"},
		{"/m.thread?limit=2", "t4 t3"},
		{"/m.reference", "ref"},
		{"/m.thread/m.room.message?dir=f&limit=1", "t0"},
		{"/m.thread/m.sticker", ""},
		{"?recurse=true", "deeper deep:deeper ref t4 t3 t2 t1 t0"},
		{"/m.thread?recurse=true&limit=2", "deeper t4"},
		{"?dir=f&from=" + token, "ref"},
		{"?to=" + token, "ref"},
		{"?limit=0", "ref"},
	} {
		a := bob.call(200, "GET", path+c.query, nil)
		if got := chunkOf(a); got != c.want {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
		if depth, ok := a.body["recursion_depth"]; ok != strings.Contains(c.query, "recurse") || ok && depth != float64(relationDepth) {
			t.Errorf("%s: recursion_depth %v", c.query, depth)
		}
	}
	for _, dir := range []string{"b", "f"} {
		var pages []string
		next := ""
		for {
			a := bob.call(200, "GET", path+"?limit=4&dir="+dir+next, nil)
			pages = append(pages, chunkOf(a))
			if a.body["next_batch"] == nil {
				break
			}
			next = "&from=" + a.text("next_batch")
		}
		want := []string{"ref t4 t3 t2", "t1 t0"}
		if dir == "f" {
			want = []string{"t0 t1 t2 t3", "t4 ref"}
		}
		if !slices.Equal(pages, want) {
			t.Errorf("pages %s: %q", dir, pages)
		}
	}
	// Who ignores bob is not shown what he relates to the root.
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/m.ignored_user_list",
		map[string]any{"ignored_users": map[string]any{string(bob.user): map[string]any{}}})
	if got := chunkOf(alice.call(200, "GET", path, nil)); got != "t4 t3 t2 t1 t0" {
		t.Errorf("bob ignored: %q", got)
	}
	for _, c := range []struct {
		who    client
		status int
		path   string
		code   string
	}{
		{carol, 404, path, "M_NOT_FOUND"},
		{bob, 404, "/v1/rooms/" + string(room) + "/relations/$nothing", "M_NOT_FOUND"},
		{bob, 400, path + "?dir=x", "M_INVALID_PARAM"},
		{bob, 400, path + "?limit=x", "M_INVALID_PARAM"},
		{bob, 400, path + "?recurse=x", "M_INVALID_PARAM"},
		{bob, 400, path + "?from=x", "M_INVALID_PARAM"},
		{client{s: s}, 401, path, "M_MISSING_TOKEN"},
		{client{s: s}, 401, "/v1/rooms/" + string(room) + "/threads", "M_MISSING_TOKEN"},
		{carol, 403, "/v1/rooms/" + string(room) + "/threads", "M_FORBIDDEN"},
		{bob, 400, "/v1/rooms/" + string(room) + "/threads?include=x", "M_INVALID_PARAM"},
		{bob, 400, "/v1/rooms/" + string(room) + "/threads?from=x", "M_INVALID_PARAM"},
	} {
		if a := c.who.call(c.status, "GET", c.path, nil); a.code() != c.code {
			t.Errorf("%s: %s", c.path, a.raw)
		}
	}
}

// CS API, Threading: roots are listed by their newest reply that the user is shown.
func TestThreads(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	one, two := alice.say(room, "one"), bob.say(room, "two")
	alice.relate(room, "m.thread", one, "a")
	alice.relate(room, "m.thread", two, "b")
	alice.relate(room, "m.reference", one, "no-thread")
	path := "/v1/rooms/" + string(room) + "/threads"
	list := func(c client, query, want string) answer {
		t.Helper()
		a := c.call(200, "GET", path+query, nil)
		if got := chunkOf(a); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
		return a
	}
	list(alice, "", "two:b one:a")
	last := bob.relate(room, "m.thread", one, "c")
	a := list(alice, "?limit=1", "one:c")
	a = list(alice, "?limit=1&from="+a.text("next_batch"), "two:b")
	if a.body["next_batch"] != nil {
		list(alice, "?from="+a.text("next_batch"), "")
	}
	list(bob, "?include=participated", "one:c two:b")
	bob.call(200, "PUT", "/v3/rooms/"+string(room)+"/redact/"+string(last)+"/1", map[string]any{})
	list(alice, "", "two:b one:a")
	list(bob, "?include=participated", "two:b")
	// What an ignored user said is shown as if it had been redacted, and their replies do not count.
	bob.relate(room, "m.thread", one, "d")
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/m.ignored_user_list",
		map[string]any{"ignored_users": map[string]any{string(bob.user): map[string]any{}}})
	list(alice, "", "<nil>:b one:a")
}

// CS API, Threading and Event annotations: what clients may not relate, by whichever way they send it.
func TestRelationsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	relating := func(kind string, to any, more string) string {
		return fmt.Sprintf(`{"msgtype":"m.text","body":"t","m.relates_to":{"rel_type":%q,"event_id":%q%s}}`, kind, to, more)
	}
	path, n := "/v3/rooms/"+string(room)+"/send/", 0
	send := func(c client, kind, content, want string) string {
		t.Helper()
		n++
		a := s.send("PUT", fmt.Sprintf("/_matrix/client%s%s/%d", path, kind, n), c.token, content)
		if a.code() != want || want != "" && a.status != 400 {
			t.Errorf("%s: %d %s, want %q", content, a.status, a.raw, want)
		}
		return a.text("event_id")
	}
	root := string(alice.say(room, "root"))
	reply := send(alice, "m.room.message", relating("m.thread", root, ""), "")
	send(alice, "m.room.message", relating("m.thread", reply, ""), "M_UNKNOWN")
	send(alice, "m.room.message", relating("m.thread", send(alice, "m.room.message", relating("m.reference", root, ""), ""), ""), "M_UNKNOWN")
	answer := send(alice, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"t","m.relates_to":{"m.in_reply_to":{"event_id":%q}}}`, root), "")
	send(alice, "m.room.message", relating("m.thread", answer, ""), "") // a reply is no child
	send(alice, "m.room.message", relating("m.thread", "$"+strings.Repeat("a", 43), ""), "")

	plus := relating("m.annotation", root, `,"key":"+"`)
	first := send(alice, "m.reaction", plus, "")
	send(alice, "m.reaction", plus, "M_DUPLICATE_ANNOTATION")
	if again := alice.call(200, "PUT", fmt.Sprintf("%sm.reaction/%d", path, n-1), plus).text("event_id"); again != first {
		t.Errorf("the same request again: %s, want %s", again, first)
	}
	send(alice, "m.reaction", relating("m.annotation", root, `,"key":"-"`), "")
	send(alice, "m.reaction", relating("m.annotation", reply, `,"key":"+"`), "")
	send(alice, "org.example.reaction", plus, "")
	send(bob, "m.reaction", plus, "")
	late := alice.call(200, "PUT", path+"m.reaction/late?org.matrix.msc4140.delay=1", plus).text("delay_id")
	s.advance(time.Millisecond)
	s.due()
	if a := alice.call(200, "GET", delayedPath+"/"+late, nil); !strings.Contains(a.raw, "M_DUPLICATE_ANNOTATION") {
		t.Errorf("sent later: %s", a.raw)
	}
	alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/redact/"+first+"/1", map[string]any{})
	send(alice, "m.reaction", plus, "")
	send(alice, "m.reaction", plus, "M_DUPLICATE_ANNOTATION")
}

// The same request that comes again while the first one is under way is no second annotation.
func TestAnnotationRepeatedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	for i := range 20 {
		root := alice.say(room, "root")
		body := fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"+"}}`, root)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				a := s.send("PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.reaction/t%d", room, i), alice.token, body)
				if a.status != 200 {
					t.Errorf("%d %s", a.status, a.raw)
				}
			})
		}
		group.Wait()
	}
}

// Who may not see an event learns nothing of what it relates to by what they are refused.
func TestRelationToWhatIsNotSeen(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, mallory := s.newClient("alice"), s.newClient("mallory")
	room := alice.room()
	root := alice.say(room, "root")
	child := alice.relate(room, "m.thread", root, "child")
	for i, to := range []eventgraph.EventID{root, child} {
		content := fmt.Sprintf(`{"msgtype":"m.text","body":"t","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, to)
		if a := mallory.call(403, "PUT", fmt.Sprintf("/v3/rooms/%s/send/m.room.message/%d", room, i), content); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s", a.raw)
		}
	}
}

// A thread may begin at a state event, and is shown with it as with any other; an edit of it is none.
func TestThreadAtAStateEvent(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	root := alice.state(room, "m.room.topic", "", `{"topic":"x"}`)
	relates := func(kind string) string {
		return `{"msgtype":"m.text","body":"t","m.new_content":{"body":"t"},"m.relates_to":{"rel_type":"` + kind + `","event_id":"` + string(root) + `"}}`
	}
	alice.message(room, relates("m.thread"))
	alice.event(rooms.Draft{Room: room, Type: "m.room.topic", Content: json.RawMessage(relates("m.replace"))})
	for _, path := range []string{"/v1/rooms/" + string(room) + "/threads", "/v3/rooms/" + string(room) + "/event/" + string(root)} {
		if a := alice.call(200, "GET", path, nil); !strings.Contains(a.raw, `"m.thread":{"latest_event":`) || strings.Contains(a.raw, `"m.replace":`) {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
}
