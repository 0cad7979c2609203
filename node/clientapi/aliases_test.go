package clientapi

import (
	"net/url"
	"strings"
	"testing"
)

func TestAliases(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, eve := s.newClient("alice"), s.newClient("bob"), s.newClient("eve")
	id := alice.room()
	room := string(id)
	bob.join(id)
	alias := func(name string) string { return "#" + name + ":" + string(s.Server) }
	at := func(name string) string { return "/v3/directory/room/" + url.PathEscape(alias(name)) }
	body := map[string]string{"room_id": room}

	eve.call(403, "PUT", at("eves"), body) // not in the room
	alice.call(200, "PUT", at("main"), body)
	alice.call(200, "PUT", at("alt"), body)
	bob.call(200, "PUT", at("bobs"), body)
	alice.call(409, "PUT", at("main"), body)
	if got := alice.call(200, "GET", at("main"), nil); got.text("room_id") != room {
		t.Errorf("main: %s", got.raw)
	}
	if a := alice.call(404, "GET", at("none"), nil); a.code() != "M_NOT_FOUND" {
		t.Errorf("an alias that is not there: %s", a.raw)
	}
	got, _ := bob.call(200, "GET", "/v3/rooms/"+room+"/aliases", nil).body["aliases"].([]any)
	if len(got) != 3 {
		t.Errorf("aliases: %v", got)
	}

	canonical := "/v3/rooms/" + room + "/state/m.room.canonical_alias/"
	if a := alice.call(400, "PUT", canonical, map[string]any{"alias": alias("none")}); a.code() != "M_BAD_ALIAS" {
		t.Errorf("a canonical alias that is none: %s", a.raw)
	}
	alice.call(200, "PUT", canonical, map[string]any{"alias": alias("main"), "alt_aliases": []string{alias("alt"), alias("bobs")}, "x": 1})

	// Deleted aliases leave the room's state where who deletes them may change that.
	content := func() string { return strings.TrimSpace(alice.call(200, "GET", canonical, nil).raw) }
	before := content()
	bob.call(403, "DELETE", at("main"), nil)
	bob.call(200, "DELETE", at("bobs"), nil) // his own, but the state is not his to change
	if got := content(); got != before {
		t.Errorf("after bob's: %s", got)
	}
	alice.call(200, "DELETE", at("main"), nil)
	if got, want := content(), `{"alt_aliases":["`+alias("alt")+`","`+alias("bobs")+`"],"x":1}`; got != want {
		t.Errorf("after main: %s, want %s", got, want)
	}
	alice.call(200, "DELETE", at("alt"), nil)
	if got, want := content(), `{"alt_aliases":["`+alias("bobs")+`"],"x":1}`; got != want {
		t.Errorf("after alt: %s, want %s", got, want)
	}
	alice.call(404, "GET", at("main"), nil)
	alice.call(404, "DELETE", at("main"), nil)
}
