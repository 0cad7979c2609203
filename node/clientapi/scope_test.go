package clientapi

import (
	"fmt"
	"strings"
	"testing"
)

// A transaction ID is good for one device and one endpoint (CS API, Transaction identifiers).
func TestTransactionIDsBelongToTheirEndpoint(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	one, other := string(alice.room()), string(alice.room())
	send := func(path string, body any) string {
		t.Helper()
		return alice.call(200, "PUT", "/v3/rooms/"+path, body).text("event_id")
	}
	hello := map[string]string{"msgtype": "m.text", "body": "hello"}
	first := send(one+"/send/m.room.message/1", hello)
	if again := send(one+"/send/m.room.message/1", hello); again != first {
		t.Errorf("a repeated request sent another event: %s, %s", first, again)
	}
	ids := map[string]string{first: "message"}
	for what, id := range map[string]string{
		"in another room":   send(other+"/send/m.room.message/1", hello),
		"of another type":   send(one+"/send/m.sticker/1", hello),
		"redaction":         send(one+"/redact/"+first+"/1", nil),
		"another redaction": send(other+"/redact/"+send(other+"/send/m.room.message/2", hello)+"/1", nil),
	} {
		if was := ids[id]; was != "" {
			t.Errorf("%s: the same event as %s", what, was)
		}
		ids[id] = what
	}
	if e := alice.call(200, "GET", "/v3/rooms/"+one+"/event/"+first, nil); strings.Contains(e.raw, "hello") {
		t.Errorf("not redacted: %s", e.raw)
	}
}

// What was redacted is shown nowhere again.
func TestRedactedStateIsGone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := string(alice.room())
	put := func(topic string) string {
		return alice.call(200, "PUT", "/v3/rooms/"+room+"/state/m.room.topic", map[string]string{"topic": topic}).text("event_id")
	}
	first := put("secret")
	second := put("other")
	alice.call(200, "PUT", "/v3/rooms/"+room+"/redact/"+first+"/1", nil)
	if e := alice.call(200, "GET", "/v3/rooms/"+room+"/event/"+second, nil); strings.Contains(e.raw, "secret") {
		t.Errorf("prev_content: %s", e.raw)
	}
	alice.call(200, "PUT", "/v3/rooms/"+room+"/redact/"+second+"/2", nil)
	if e := alice.call(200, "GET", "/v3/rooms/"+room+"/state/m.room.topic", nil); strings.Contains(e.raw, "other") {
		t.Errorf("content: %s", e.raw)
	}
	if b := alice.sync(""); strings.Contains(b.raw, "secret") || strings.Contains(b.raw, `"other"`) {
		t.Errorf("sync: %s", b.raw)
	}
}

// Of a redacted event the rules may still need what nobody else gets to see.
func TestRedactedRulesAreNotShown(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := string(alice.room())
	put := func(key string) string {
		return alice.call(200, "PUT", "/v3/rooms/"+room+"/state/m.room.third_party_invite/token", map[string]string{"public_key": key}).text("event_id")
	}
	first := put("secret1")
	second := put("secret2")
	for n, id := range []string{first, second} {
		alice.call(200, "PUT", fmt.Sprintf("/v3/rooms/%s/redact/%s/%d", room, id, n), nil)
	}
	for _, path := range []string{"state/m.room.third_party_invite/token", "event/" + second, "messages?dir=b", "context/" + second} {
		if e := alice.call(200, "GET", "/v3/rooms/"+room+"/"+path, nil); strings.Contains(e.raw, "secret") {
			t.Errorf("%s: %s", path, e.raw)
		}
	}
	if e := alice.sync(""); strings.Contains(e.raw, "secret") {
		t.Errorf("sync: %s", e.raw)
	}
}

// A device that has logged out and come back under its old ID begins its transaction IDs anew.
func TestTransactionIDsEndWithTheirDevice(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.newClient("alice")
	alice := s.logIn("alice", "PHONE")
	room := string(alice.room())
	send := func(c client, body string) string {
		t.Helper()
		return c.call(200, "PUT", "/v3/rooms/"+room+"/send/m.room.message/1", map[string]string{"body": body}).text("event_id")
	}
	first := send(alice, "first")
	if again := send(s.logIn("alice", "PHONE"), "first"); again != first {
		t.Error("a new token of the same device does not know its transaction IDs")
	}
	if other := send(s.logIn("alice", "LAPTOP"), "of another device"); other == first {
		t.Error("another device's message is lost")
	}
	s.logIn("alice", "PHONE").call(200, "POST", "/v3/logout", nil)
	s.advance(1e6)
	if second := send(s.logIn("alice", "PHONE"), "second"); second == first {
		t.Error("the message of the new device is lost")
	}
}
