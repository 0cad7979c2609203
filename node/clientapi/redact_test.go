package clientapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// What another user sent takes the "redact" level, also if both are users of this server and by whichever way the redaction is sent (CS API, PUT redact).
func TestRedactingOthersTakesTheLevel(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	carol.join(room)
	path := "/v3/rooms/" + string(room)
	targets := []eventgraph.EventID{
		alice.say(room, "one"),
		alice.state(room, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`),
		alice.state(room, "m.room.server_acl", "", `{"allow":["*"],"deny":["evil.example"]}`),
	}
	for i, id := range targets {
		if a := bob.call(403, "PUT", fmt.Sprintf("%s/redact/%s/%d", path, id, i), map[string]any{}); a.code() != "M_FORBIDDEN" {
			t.Errorf("redacted by /redact: %s", a.raw)
		}
		body := map[string]any{"redacts": id}
		if a := bob.call(403, "PUT", fmt.Sprintf("%s/send/m.room.redaction/%d", path, i), body); a.code() != "M_FORBIDDEN" {
			t.Errorf("redacted by /send: %s", a.raw)
		}
		bob.call(403, "PUT", path+"/state/m.room.redaction/x", body) // the content names it from version 11 on
		bob.call(200, "PUT", fmt.Sprintf("%s/send/m.room.redaction/late%d?org.matrix.msc4140.delay=1", path, i), body)
	}
	// What is not here may be anybody's: an event of history that is fetched later, say.
	unknown := "$" + strings.Repeat("a", 43)
	bob.call(403, "PUT", path+"/send/m.room.redaction/unknown", map[string]any{"redacts": unknown})
	bob.call(404, "PUT", path+"/redact/"+unknown+"/unknown", map[string]any{})
	s.advance(2 * time.Millisecond)
	s.due()
	for _, id := range targets {
		if a := bob.call(200, "GET", path+"/event/"+string(id), nil); strings.Contains(a.raw, "redacted_because") {
			t.Errorf("redacted: %s", a.raw)
		}
	}

	bob.call(200, "PUT", path+"/redact/"+string(bob.say(room, "his own"))+"/1", map[string]any{})
	alice.call(200, "PUT", path+"/redact/"+string(bob.say(room, "for the creator"))+"/1", map[string]any{})
	alice.state(room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:50}}`, carol.user))
	carol.call(200, "PUT", path+"/redact/"+string(targets[0])+"/1", map[string]any{})
	alice.state(room, "m.room.power_levels", "", fmt.Sprintf(`{"redact":51,"users":{%q:50}}`, carol.user))
	carol.call(403, "PUT", path+"/redact/"+string(bob.say(room, "not for carol now"))+"/2", map[string]any{})
}

// An application service redacts as the user that it acts as.
func TestServiceRedactsAsItsUsers(t *testing.T) {
	t.Parallel()
	s, bridge := newBridged(t, nil)
	alice := s.newClient("alice")
	nick, other := bridge.ghost("irc_nick"), bridge.ghost("irc_other")
	room := alice.room()
	ids := map[eventgraph.UserID]eventgraph.EventID{alice.user: alice.say(room, "hello")}
	for _, ghost := range []eventgraph.UserID{nick, other} {
		key := string(ghost)
		ghostly := client{s: s, user: ghost}
		ghostly.event(rooms.Draft{Room: room, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`)})
		ids[ghost] = ghostly.say(room, "from afar")
	}
	for target, want := range map[eventgraph.UserID]int{nick: 200, other: 403, alice.user: 403} {
		bridge.call(want, "PUT", fmt.Sprintf("/v3/rooms/%s/redact/%s/1?%s", room, ids[target], as(nick)), map[string]any{})
	}
}

// Who had left when an event was redacted sees that it is, and not by whom and why.
func TestRedactedBecauseIsVisible(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	path := "/v3/rooms/" + string(room)
	early, late := alice.say(room, "one"), alice.say(room, "two")
	alice.call(200, "PUT", path+"/redact/"+string(early)+"/1", map[string]any{"reason": "hush"})
	bob.call(200, "POST", path+"/leave", map[string]any{})
	alice.call(200, "PUT", path+"/redact/"+string(late)+"/2", map[string]any{"reason": "hush"})
	for id, want := range map[eventgraph.EventID]bool{early: true, late: false} {
		a := bob.call(200, "GET", path+"/event/"+string(id), nil)
		if strings.Contains(a.raw, "hush") != want || strings.Contains(a.raw, "redacted_because") != want || !strings.Contains(a.raw, `"content":{}`) {
			t.Errorf("shown %v: %s", want, a.raw)
		}
		if a := alice.call(200, "GET", path+"/event/"+string(id), nil); !strings.Contains(a.raw, "hush") {
			t.Errorf("alice: %s", a.raw)
		}
	}
}
