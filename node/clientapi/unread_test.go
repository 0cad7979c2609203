package clientapi

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A new name does not mark everything as read.
func TestUnreadSurvivesANewName(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.say(room, "before")
	bob.join(room)
	alice.say(room, "one")
	bob.call(200, "PUT", "/v3/profile/"+string(bob.user)+"/displayname", map[string]string{"displayname": "robert"})
	alice.say(room, "two")
	if counts, _ := bob.unread(room, false); counts.Notifications != 2 {
		t.Errorf("%d unread, want 2", counts.Notifications)
	}
}

// Who answered has read what was said before, also once the answer is redacted; in the thread of the answer, and in no other. A restart changes nothing in that.
func TestUnreadAfterARedactedAnswer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	inThread := func(c client, root eventgraph.EventID, body string) eventgraph.EventID {
		return c.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":%q,"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, body, root))
	}
	one := alice.say(room, "one")
	answers := []eventgraph.EventID{bob.say(room, "answer")}
	two := alice.say(room, "two")
	threaded := inThread(alice, one, "in the first thread")
	inThread(alice, two, "in the second thread")
	answers = append(answers, inThread(bob, one, "answer"))
	inThread(alice, one, "in the first thread again")
	reaction := fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"+"}}`, inThread(alice, two, "and in the second"))
	answers = append(answers, bob.message(room, reaction))
	told := func(when string) {
		t.Helper()
		bob.wantTold(when, room, []eventgraph.EventID{one, two, threaded}, two)
		all, _ := bob.unread(room, false)
		main, threads := bob.unread(room, true)
		first, second := threads[string(one)].Notifications, threads[string(two)].Notifications
		if all.Notifications != 2 || main.Notifications != 1 || first != 1 || second != 0 {
			t.Errorf("%s: %d unread, in the main thread %d, in the others %d and %d", when, all.Notifications, main.Notifications, first, second)
		}
		shown, _ := bob.notifications("")
		shown = slices.DeleteFunc(shown, func(line string) bool { return !strings.Contains(line, " false ") })
		if len(shown) != 2 || !strings.HasPrefix(shown[0], "in the first thread again ") || !strings.HasPrefix(shown[1], "two ") {
			t.Errorf("%s: not read %q", when, shown)
		}
	}
	told("at first")
	for _, id := range answers {
		bob.call(200, "PUT", "/v3/rooms/"+url.PathEscape(string(room))+"/redact/"+url.PathEscape(string(id))+"/"+string(id[1:5]), struct{}{})
	}
	told("redacted")
	s.restart()
	told("after a restart")
}

// What a message named as its thread is told as one only if it is an event ID: redaction of the message removes all else that it said.
func TestUnreadShowsNothingRedacted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	relate := func(relType, to string) eventgraph.EventID {
		return bob.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":"x","m.relates_to":{"rel_type":%q,"event_id":%q}}`, relType, to))
	}
	told := func(when string) {
		t.Helper()
		main, threads := alice.unread(room, true)
		if main.Notifications == 0 || len(threads) != 0 {
			t.Errorf("%s: %d unread in the main thread, others %v", when, main.Notifications, threads)
		}
		filter := url.QueryEscape(`{"room":{"timeline":{"unread_thread_notifications":true}}}`)
		if said := alice.call(200, "GET", "/v3/sync?filter="+filter, nil).raw; strings.Contains(string(said), "SECRET") && when != "at first" {
			t.Errorf("%s: the thread is shown in %s", when, said)
		}
	}
	for _, secret := range []string{"SECRET text", "$SECRET text", "$" + strings.Repeat("SECRET ", 20)} {
		said := relate("m.thread", secret)
		told("at first")
		alice.call(200, "PUT", "/v3/rooms/"+url.PathEscape(string(room))+"/redact/"+url.PathEscape(string(said))+"/"+string(said[1:5]), struct{}{})
		relate("m.reference", string(said))
		told("redacted")
		s.restart()
		told("after a restart")
	}
}

// What was said while the user was away, and they may not see, is not unread; what they may see is.
func TestUnreadIsVisible(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for visibility, want := range map[string]int{"joined": 1, "shared": 3} {
		room := alice.room()
		alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"`+visibility+`"}`)
		bob.join(room)
		id := alice.say(room, "one")
		bob.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(id), map[string]any{})
		bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", map[string]any{})
		alice.say(room, "while bob is away")
		alice.say(room, "as well")
		bob.join(room)
		alice.say(room, "bob is back")
		if n := bob.sync("").Rooms.Join[room].Unread.Notifications; n != want {
			t.Errorf("%s: %d unread, want %d", visibility, n, want)
		}
	}
}
