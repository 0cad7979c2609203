package clientapi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"net/http"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// chunk lists the room IDs of a page of the directory.
func chunk(a answer) (ids []string) {
	for _, room := range a.body["chunk"].([]any) {
		ids = append(ids, room.(map[string]any)["room_id"].(string))
	}
	return ids
}

func TestPublicRooms(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	made := func(body string) string { return alice.call(200, "POST", "/v3/createRoom", body).text("room_id") }
	small := made(`{"visibility":"public","name":"un nom français","topic":"Test Topic Wombles","room_alias_name":"small"}`)
	space := made(`{"visibility":"public","creation_content":{"type":"m.space"},"initial_state":[
		{"type":"m.room.history_visibility","content":{"history_visibility":"world_readable"}},
		{"type":"m.room.guest_access","content":{"guest_access":"can_join"}}]}`)
	large := made(`{"visibility":"public"}`)
	bob.join(eventgraph.RoomID(large))
	private := made(`{"name":"private wombles"}`)

	all := alice.call(200, "GET", "/v3/publicRooms", nil)
	ids := chunk(all)
	if len(ids) != 3 || ids[0] != large || all.body["total_room_count_estimate"] != 3.0 || all.body["next_batch"] != nil {
		t.Errorf("all: %s", all.raw)
	}
	if strings.Contains(all.raw, private) {
		t.Error("a private room is listed")
	}
	for _, entry := range all.body["chunk"].([]any) {
		room := entry.(map[string]any)
		want := map[string]any{"room_id": small, "name": "un nom français", "topic": "Test Topic Wombles", "join_rule": "public",
			"canonical_alias": "#small:" + string(s.Server), "num_joined_members": 1.0, "world_readable": false, "guest_can_join": false}
		switch room["room_id"] {
		case space:
			want = map[string]any{"room_type": "m.space", "world_readable": true, "guest_can_join": true, "name": nil, "topic": nil, "canonical_alias": nil}
		case large:
			want = map[string]any{"num_joined_members": 2.0, "room_type": nil}
		}
		for field, value := range want {
			if room[field] != value {
				t.Errorf("%s of %v is %v, want %v", field, room["room_id"], room[field], value)
			}
		}
	}

	// Pages, forwards and back.
	first := alice.call(200, "GET", "/v3/publicRooms?limit=2", nil)
	second := alice.call(200, "GET", "/v3/publicRooms?limit=2&since="+first.text("next_batch"), nil)
	if got := append(chunk(first), chunk(second)...); strings.Join(got, " ") != strings.Join(ids, " ") || second.text("next_batch") != "" {
		t.Errorf("pages: %v, want %v", got, ids)
	}
	if back := alice.call(200, "GET", "/v3/publicRooms?limit=2&since="+second.text("prev_batch"), nil); back.raw != first.raw {
		t.Errorf("back: %s, want %s", back.raw, first.raw)
	}

	for body, want := range map[string]string{
		`{"filter":{"generic_search_term":"wombles"}}`:                          small,
		`{"filter":{"generic_search_term":"FRANÇAIS"}}`:                         small,
		`{"filter":{"room_types":["m.space"]}}`:                                 space,
		`{"filter":{"room_types":[null]},"limit":1}`:                            large,
		`{"filter":{"room_types":[null, "m.space"]},"limit":1,"since":"0"}`:     large,
		`{"filter":{"generic_search_term":"wombles","room_types":["m.space"]}}`: "",
		`{"filter":{"generic_search_term":"nothing has that"}}`:                 "",
	} {
		if got := strings.Join(chunk(bob.call(200, "POST", "/v3/publicRooms", body)), " "); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}

	// A room that is no more published, or renamed, is so at once.
	alice.call(200, "PUT", "/v3/directory/list/room/"+small, `{"visibility":"private"}`)
	alice.call(200, "PUT", "/v3/rooms/"+large+"/state/m.room.name", `{"name":"Now it has a name"}`)
	if now := alice.call(200, "GET", "/v3/publicRooms", nil); strings.Contains(now.raw, small) || !strings.Contains(now.raw, "Now it has a name") {
		t.Errorf("after changes: %s", now.raw)
	}

	for _, bad := range []string{"?limit=x", "?limit=-1", "?since=x", "?since=-1", "?server=!"} {
		if a := alice.call(400, "GET", "/v3/publicRooms"+bad, nil); a.code() != "M_INVALID_PARAM" {
			t.Errorf("%s: %s", bad, a.raw)
		}
	}
	if a := alice.call(400, "POST", "/v3/publicRooms", `{"filter":7}`); a.code() != "M_BAD_JSON" {
		t.Errorf("wrong type: %s", a.raw)
	}
	if a := s.send("POST", "/_matrix/client/v3/publicRooms", "", "{}"); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
		t.Errorf("POST without a token: %d %s", a.status, a.raw)
	}
}

// What needs no token by the spec is answered so to programs on the machine, not to web pages.
func TestWithoutTokenFromPages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	for _, c := range []struct {
		header, value string
		want          int
	}{
		{"", "", 200},
		{"Sec-Fetch-Site", "none", 200},
		{"Sec-Fetch-Site", "same-origin", 200},
		{"Sec-Fetch-Site", "cross-site", 401},
		{"Sec-Fetch-Site", "same-site", 401},
		{"Origin", "https://example.org", 401},
		{"Origin", "null", 401},
	} {
		req, err := http.NewRequest("GET", s.url+"/_matrix/client/v3/publicRooms", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.header != "" {
			req.Header.Set(c.header, c.value)
		}
		if a := s.do(req); a.status != c.want || c.want == 401 && a.code() != "M_MISSING_TOKEN" {
			t.Errorf("%s %s: %d %s", c.header, c.value, a.status, a.raw)
		}
	}
}

// farDirectory is a Remote with a directory.
type farDirectory struct {
	*unreachable
	server eventgraph.ServerName
	asked  rooms.PublicQuery
}

func (d *farDirectory) PublicRooms(_ context.Context, server eventgraph.ServerName, q rooms.PublicQuery) (*rooms.PublicPage, error) {
	d.server, d.asked = server, q
	return &rooms.PublicPage{Chunk: []*rooms.Summary{{RoomID: "!far"}}, NextBatch: "theirs"}, nil
}

func TestPublicRoomsElsewhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	other := eventgraph.NewServerName(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)).Public().(ed25519.PublicKey))
	if a := alice.call(502, "GET", "/v3/publicRooms?server="+string(other), nil); a.code() != "M_UNKNOWN" {
		t.Errorf("a server that is away: %s", a.raw)
	}
	remote := &farDirectory{unreachable: s.remote}
	s.SetRemote(remote)
	a := alice.call(200, "POST", "/v3/publicRooms?server="+string(other), `{"limit":5,"since":"s","filter":{"generic_search_term":"x"}}`)
	if strings.Join(chunk(a), " ") != "!far" || a.text("next_batch") != "theirs" {
		t.Errorf("answer: %s", a.raw)
	}
	if remote.server != other || remote.asked.Limit != 5 || remote.asked.Since != "s" || remote.asked.Filter.Term != "x" {
		t.Errorf("asked %s for %+v", remote.server, remote.asked)
	}
	if a := s.send("GET", "/_matrix/client/v3/publicRooms?server="+string(other), "", nil); a.status != 401 {
		t.Errorf("without a token: %d %s", a.status, a.raw)
	}
}

// A term or types of a length that nobody asks for are refused, whether for our directory or another's.
func TestPublicRoomsBounds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	c := s.newClient("alice")
	for _, server := range []string{"", "?server=elsewhere"} {
		for _, filter := range []string{
			`"generic_search_term":"` + strings.Repeat("É", 600) + `"`, `"room_types":[` + strings.Repeat(`"a",`, 100) + `"a"]`,
		} {
			a := s.send("POST", "/_matrix/client/v3/publicRooms"+server, c.token, `{"filter":{`+filter+`}}`)
			if a.status != 400 || a.code() != "M_INVALID_PARAM" {
				t.Errorf("%q, %.30s: %d %s", server, filter, a.status, a.raw)
			}
		}
	}
}
