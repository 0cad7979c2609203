package clientapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// farSpaces is a Remote that knows rooms, and has refused one more.
type farSpaces struct {
	*unreachable
	known map[eventgraph.RoomID]*federation.Hierarchy
	mu    sync.Mutex
	asked []string
}

func (f *farSpaces) Hierarchy(_ context.Context, room eventgraph.RoomID, via []eventgraph.ServerName, suggested bool) (*federation.Hierarchy, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprint(room, via, suggested))
	if known := f.known[room]; known != nil {
		return known, nil
	}
	return nil, &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "no such room can be shown"}
}

// farRoom is the ID of a room that is not here.
func farRoom(name string) eventgraph.RoomID {
	return eventgraph.RoomID("!" + name + strings.Repeat("A", 43-len(name)))
}

// family is a space with rooms below it:
//
//	root ── r1 (suggested), sub ── deep ── r3, r4; and r2 (suggested), which is no space but has a child
type family struct {
	s          *testServer
	alice, bob client
	names      map[string]string // of room IDs
	ids        map[string]string
}

func newFamily(t *testing.T) *family {
	t.Helper()
	s := newTestServer(t, nil)
	f := &family{s: s, alice: s.newClient("alice"), bob: s.newClient("bob"), names: map[string]string{}, ids: map[string]string{}}
	for _, name := range []string{"root", "sub", "deep", "r1", "r2", "r3"} {
		f.make(f.alice, name, "public_chat")
	}
	f.make(f.bob, "r4", "public_chat")
	f.make(f.bob, "hidden", "private_chat")
	f.child("root", "r1", `,"suggested":true`)
	f.child("root", "sub", "")
	f.child("root", "r2", `,"suggested":true`)
	f.child("r2", "r3", "")
	f.child("sub", "deep", "")
	f.child("sub", "root", "") // round in a ring
	f.child("deep", "r3", "")
	f.child("deep", "hidden", "")
	f.child("deep", "r4", "")
	return f
}

func (f *family) make(c client, name, preset string) {
	f.s.t.Helper()
	roomType := "m.space"
	if strings.HasPrefix(name, "r") && name != "root" {
		roomType = ""
	}
	id := c.call(200, "POST", "/v3/createRoom", map[string]any{"name": name, "preset": preset, "creation_content": map[string]string{"type": roomType}}).text("room_id")
	f.names[id], f.ids[name] = name, id
}

func (f *family) child(of, name, more string) {
	f.s.t.Helper()
	f.s.advance(time.Millisecond)
	f.alice.call(200, "PUT", "/v3/rooms/"+f.ids[of]+"/state/m.space.child/"+f.ids[name], `{"via":["`+string(f.s.Server)+`"]`+more+`}`)
}

// listed names the rooms of a page, each with its children.
func (f *family) listed(a answer) string {
	var all []string
	for _, r := range a.body["rooms"].([]any) {
		room := r.(map[string]any)
		text := f.names[room["room_id"].(string)]
		for i, c := range room["children_state"].([]any) {
			child := c.(map[string]any)
			text += []string{":", ","}[min(i, 1)] + f.names[child["state_key"].(string)]
			if child["type"] != "m.space.child" || child["origin_server_ts"] == nil || child["sender"] == nil || child["content"] == nil {
				text += "?"
			}
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func TestHierarchy(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	path := "/v1/rooms/" + f.ids["root"] + "/hierarchy"
	const whole = "root:r1,sub,r2 r1 sub:deep,root deep:r3,hidden,r4 r3 r4 r2"
	for query, want := range map[string]string{
		"":                                whole,
		"?max_depth=0":                    "root:r1,sub,r2",
		"?max_depth=1":                    "root:r1,sub,r2 r1 sub:deep,root r2",
		"?suggested_only=true":            "root:r1,r2 r1 r2",
		"?limit=1000&max_depth=1000":      whole,
		"?suggested_only=false&limit=100": whole,
	} {
		a := f.alice.call(200, "GET", path+query, nil)
		if got := f.listed(a); got != want || a.body["next_batch"] != nil {
			t.Errorf("%s: %s, want %s; %v", query, got, want, a.body["next_batch"])
		}
	}
	first := f.alice.call(200, "GET", path+"?limit=4&max_depth=3", nil)
	next := first.text("next_batch")
	second := f.alice.call(200, "GET", path+"?from="+next, nil)
	if got := f.listed(first) + " | " + f.listed(second); got != "root:r1,sub,r2 r1 sub:deep,root deep:r3,hidden,r4 | r3 r4 r2" || second.text("next_batch") != "" {
		t.Errorf("pages: %s", got)
	}
	// In the order that the space gives; who may get into the hidden room sees it; a link without via is none.
	f.child("root", "r2", `,"suggested":true,"order":"a"`)
	f.child("root", "sub", `,"order":"not one \u0001"`)
	f.bob.call(200, "POST", "/v3/rooms/"+f.ids["hidden"]+"/invite", map[string]any{"user_id": f.alice.user})
	f.alice.call(200, "PUT", "/v3/rooms/"+f.ids["deep"]+"/state/m.space.child/"+f.ids["r4"], `{}`)
	if got := f.listed(f.alice.call(200, "GET", path, nil)); got != "root:r2,r1,sub r2 r1 sub:deep,root deep:r3,hidden r3 hidden" {
		t.Errorf("after changes: %s", got)
	}

	for _, bad := range []string{"?limit=0", "?limit=x", "?max_depth=-1", "?from=x", "?from=0_false_3", "?max_depth=2&from=" + next, "?suggested_only=true&from=" + next} {
		if a := f.alice.call(400, "GET", path+bad, nil); a.code() != "M_INVALID_PARAM" {
			t.Errorf("%s: %s", bad, a.raw)
		}
	}
	stranger := f.s.newClient("carol")
	for _, room := range []string{f.ids["hidden"], "!" + strings.Repeat("A", 43)} {
		if a := stranger.call(403, "GET", "/v1/rooms/"+room+"/hierarchy", nil); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", room, a.raw)
		}
	}
	if a := f.s.send("GET", "/_matrix/client"+path, "", nil); a.status != 401 {
		t.Errorf("without a token: %d", a.status)
	}
}

// A restricted room is shown to who is in the room that it goes by.
func TestHierarchyRestricted(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	f.alice.call(200, "PUT", "/v3/rooms/"+f.ids["r1"]+"/state/m.room.join_rules",
		`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"`+f.ids["root"]+`"}]}`)
	path := "/v1/rooms/" + f.ids["root"] + "/hierarchy?max_depth=1"
	if got := f.listed(f.bob.call(200, "GET", path, nil)); got != "root:r1,sub,r2 sub:deep,root r2" {
		t.Errorf("from outside: %s", got)
	}
	f.bob.call(404, "GET", "/v1/room_summary/"+f.ids["r1"], nil)
	f.bob.join(eventgraph.RoomID(f.ids["root"]))
	if got := f.listed(f.bob.call(200, "GET", path, nil)); got != "root:r1,sub,r2 r1 sub:deep,root r2" {
		t.Errorf("from inside: %s", got)
	}
	a := f.bob.call(200, "GET", "/v1/room_summary/"+f.ids["r1"], nil)
	if allowed, _ := a.body["allowed_room_ids"].([]any); len(allowed) != 1 || allowed[0] != f.ids["root"] || a.text("join_rule") != "restricted" {
		t.Errorf("summary: %s", a.raw)
	}
}

// Rooms that are elsewhere are asked for by the servers that the space names; a room is not shown on another's word alone.
func TestHierarchyElsewhere(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	far, open, closed, space, gone := farRoom("far"), farRoom("open"), farRoom("closed"), farRoom("space"), farRoom("gone")
	for _, id := range []eventgraph.RoomID{far, open, closed, space, gone} {
		f.names[string(id)] = string(id)
	}
	f.ids["far"] = string(far)
	child := func(id eventgraph.RoomID) rooms.SpaceChild {
		return rooms.SpaceChild{Type: "m.space.child", Room: id, Sender: "@x:far", Content: []byte(`{"via":["far"]}`)}
	}
	remote := &farSpaces{unreachable: f.s.remote, known: map[eventgraph.RoomID]*federation.Hierarchy{
		far: {
			Room: rooms.SpaceRoom{
				Summary:  rooms.Summary{RoomID: far, RoomType: "m.space", JoinRule: "public", Name: "Far"},
				Children: []rooms.SpaceChild{child(open), child(closed), child(space), child(gone)},
			},
			Children:     []*rooms.Summary{{RoomID: open, JoinRule: "knock"}, {RoomID: space, RoomType: "m.space"}},
			Inaccessible: []eventgraph.RoomID{gone},
		},
		closed: {Room: rooms.SpaceRoom{Summary: rooms.Summary{RoomID: closed, JoinRule: "invite"}, Children: []rooms.SpaceChild{}}},
		space:  {Room: rooms.SpaceRoom{Summary: rooms.Summary{RoomID: space, RoomType: "m.space", WorldReadable: true, JoinRule: "invite"}, Children: []rooms.SpaceChild{}}},
	}}
	f.s.SetRemote(remote)
	f.child("root", "far", "")
	a := f.alice.call(200, "GET", "/v1/rooms/"+f.ids["root"]+"/hierarchy", nil)
	if got := f.listed(a); !strings.HasSuffix(got, fmt.Sprintf(" %s:%s,%s,%s,%s %s %s", far, open, closed, space, gone, open, space)) {
		t.Errorf("shown: %s", got)
	}
	want := []string{fmt.Sprintf("%s[%s] false", far, f.s.Server), string(closed) + "[far] false", string(space) + "[far] false"}
	slices.Sort(remote.asked) // several at once
	slices.Sort(want)
	if !slices.Equal(remote.asked, want) {
		t.Errorf("asked %v, want %v", remote.asked, want)
	}

	if a := f.alice.call(200, "GET", "/v1/room_summary/"+string(far)+"?via=far", nil); a.text("name") != "Far" || a.body["membership"] != nil || a.body["children_state"] != nil {
		t.Errorf("summary: %s", a.raw)
	}
	f.alice.call(404, "GET", "/v1/room_summary/"+string(closed)+"?via=far", nil)
	f.alice.call(404, "GET", "/v1/room_summary/"+string(gone)+"?via=far", nil)
	if a := f.s.send("GET", "/_matrix/client/v1/room_summary/"+string(far)+"?via=far", "", nil); a.status != 404 {
		t.Errorf("elsewhere, without a token: %d %s", a.status, a.raw)
	}
}

// silentSpaces is a Remote that says nothing of a room, at least until all others were asked for.
type silentSpaces struct {
	*farSpaces
	silent eventgraph.RoomID
	others chan struct{}
}

func (f *silentSpaces) Hierarchy(ctx context.Context, room eventgraph.RoomID, via []eventgraph.ServerName, suggested bool) (*federation.Hierarchy, error) {
	if room != f.silent {
		f.others <- struct{}{}
		return f.farSpaces.Hierarchy(ctx, room, via, suggested)
	}
	if until, ok := ctx.Deadline(); !ok || time.Until(until) > hierarchyPatience/2 {
		return nil, errors.New("one room has all the time there is")
	}
	for range cap(f.others) {
		select {
		case <-f.others:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, context.DeadlineExceeded
}

// A server that does not answer hides no rooms that come after the one that it is asked for.
func TestHierarchySilence(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	remote := &silentSpaces{farSpaces: &farSpaces{unreachable: f.s.remote, known: map[eventgraph.RoomID]*federation.Hierarchy{}}, others: make(chan struct{}, 3)}
	for i := range 4 {
		name := fmt.Sprint("far", i)
		id := farRoom(name)
		f.ids[name], f.names[string(id)] = string(id), name
		f.child("deep", name, "")
		if i == 0 {
			remote.silent = id
		} else {
			remote.known[id] = &federation.Hierarchy{Room: rooms.SpaceRoom{Summary: rooms.Summary{RoomID: id, JoinRule: "public"}, Children: []rooms.SpaceChild{}}}
		}
	}
	f.s.SetRemote(remote)
	a := f.alice.call(200, "GET", "/v1/rooms/"+f.ids["deep"]+"/hierarchy", nil)
	if got := f.listed(a); !strings.Contains(got, " far1 far2 far3") || strings.Contains(got, " far0 ") {
		t.Errorf("shown: %s", got)
	}
}

func TestRoomSummary(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	open := alice.call(200, "POST", "/v3/createRoom", `{"preset":"public_chat","name":"Open","room_version":"10","room_alias_name":"open",
		"initial_state":[{"type":"m.room.encryption","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]}`).text("room_id")
	private := alice.call(200, "POST", "/v3/createRoom", `{"preset":"private_chat"}`).text("room_id")
	for _, path := range []string{"/v1/room_summary/" + open, "/v1/room_summary/%23open:" + string(s.Server),
		"/unstable/im.nheko.summary/rooms/" + open + "/summary", "/unstable/im.nheko.summary/summary/" + open} {
		a := alice.call(200, "GET", path, nil)
		for field, want := range map[string]any{"room_id": open, "name": "Open", "membership": "join", "join_rule": "public", "room_version": "10",
			"encryption": "m.megolm.v1.aes-sha2", "num_joined_members": 1.0, "world_readable": false, "guest_can_join": false, "allowed_room_ids": nil} {
			if a.body[field] != want {
				t.Errorf("%s: %s is %v, want %v", path, field, a.body[field], want)
			}
		}
	}
	if a := s.send("GET", "/_matrix/client/v1/room_summary/"+open, "", nil); a.status != 200 || a.body["membership"] != nil {
		t.Errorf("without a token: %d %s", a.status, a.raw)
	}
	if a := s.send("GET", "/_matrix/client/v1/room_summary/"+open, "wrong", nil); a.status != 401 || a.code() != "M_UNKNOWN_TOKEN" {
		t.Errorf("with a wrong token: %d %s", a.status, a.raw)
	}
	alice.call(200, "GET", "/v1/room_summary/"+private, nil)
	if a := bob.call(404, "GET", "/v1/room_summary/"+private, nil); a.code() != "M_NOT_FOUND" {
		t.Errorf("a private room: %s", a.raw)
	}
	alice.call(200, "POST", "/v3/rooms/"+private+"/invite", map[string]any{"user_id": bob.user})
	if a := bob.call(200, "GET", "/v1/room_summary/"+private, nil); a.text("membership") != "invite" {
		t.Errorf("who is invited: %s", a.raw)
	}
	bob.call(400, "GET", "/v1/room_summary/x", nil)
}
