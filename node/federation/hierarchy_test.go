package federation

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

func TestHierarchy(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	bob, alice := b.user("bob"), a.user("alice")
	space, err := a.Rooms.Create(t.Context(), rooms.CreateRequest{Creator: alice, Content: []byte(`{"type":"m.space"}`)})
	if err != nil {
		t.Fatal(err)
	}
	a.setState(space, alice, "m.room.join_rules", "", `{"join_rule":"public"}`)
	open, closed := a.create("12", "knock", "shared"), a.create("12", "invite", "shared")
	restricted, far := a.create("12", "restricted", "shared"), b.create("12", "public", "shared")
	a.setState(restricted, alice, "m.room.join_rules", "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"`+string(space)+`"}]}`)
	for _, child := range []eventgraph.RoomID{open, closed, restricted, far} {
		a.setState(space, alice, "m.space.child", string(child), `{"via":["`+string(a.server)+`"],"suggested":`+map[bool]string{true: "true", false: "false"}[child == open]+`}`)
	}
	a.setState(space, alice, "m.space.child", "no room", `{"via":["x"]}`)
	a.setState(open, alice, "m.space.child", string(far), `{"via":["x"]}`) // it is no space

	look := func(suggested bool) (children, of, inaccessible []eventgraph.RoomID) {
		t.Helper()
		answer, err := b.Hierarchy(t.Context(), space, []eventgraph.ServerName{"no server", b.server, a.server}, suggested)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range answer.Room.Children {
			children = append(children, c.Room)
		}
		for _, s := range answer.Children {
			of = append(of, s.RoomID)
		}
		slices.Sort(children)
		slices.Sort(of)
		inaccessible = slices.Sorted(slices.Values(answer.Inaccessible))
		return children, of, inaccessible
	}
	sorted := func(ids ...eventgraph.RoomID) []eventgraph.RoomID { slices.Sort(ids); return ids }
	children, of, inaccessible := look(false)
	if !slices.Equal(children, sorted(open, closed, restricted, far)) || !slices.Equal(of, sorted(open)) || !slices.Equal(inaccessible, sorted(closed, restricted)) {
		t.Errorf("space of %v, with %v, and inaccessible %v", children, of, inaccessible)
	}
	if children, of, inaccessible = look(true); !slices.Equal(children, sorted(open)) || !slices.Equal(of, sorted(open)) || len(inaccessible) > 0 {
		t.Errorf("suggested: %v, with %v, and inaccessible %v", children, of, inaccessible)
	}

	// The answer is kept for a while; afterwards, a user of b is in the space, so the restricted room is open.
	b.join(space, bob, a)
	if _, of, _ = look(false); !slices.Equal(of, sorted(open)) {
		t.Errorf("what was kept: %v", of)
	}
	b.hierarchies.Purge()
	if _, of, inaccessible = look(false); !slices.Equal(of, sorted(open, restricted)) || !slices.Equal(inaccessible, sorted(closed)) {
		t.Errorf("from inside: %v, inaccessible %v", of, inaccessible)
	}

	for _, room := range []eventgraph.RoomID{closed, far, eventgraph.RoomID("!" + strings.Repeat("A", 43))} {
		_, err := b.Hierarchy(t.Context(), room, []eventgraph.ServerName{a.server}, false)
		wantCode(t, err, "M_NOT_FOUND")
	}
	wantCode(t, b.get(a, nil, nil, "hierarchy", "x"), "M_INVALID_PARAM")
	if status, _ := b.raw(a, http.MethodGet, target(v1+"hierarchy", []string{string(space)}, nil), "", ""); status != http.StatusUnauthorized {
		t.Errorf("without a signature: %d", status)
	}
	a.setState(space, alice, "m.room.server_acl", "", `{"allow":["*"],"deny":["`+string(b.server)+`"]}`)
	wantCode(t, b.get(a, nil, nil, "hierarchy", string(space)), "M_NOT_FOUND")
}

// A server that answers for another room, or with what is no hierarchy of it, is not believed.
func TestHierarchyIsChecked(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	room := "!" + strings.Repeat("A", 43)
	child := "!" + strings.Repeat("B", 42) + "A"
	real := a.end.handler
	for answer, good := range map[string]bool{
		`{"room":{"room_id":"` + child + `","children_state":[]},"children":[]}`: false,
		`{"room":7}`:                          false,
		`{}`:                                  false,
		`{"room":{"room_id":"` + room + `"}}`: true,
		`{"room":{"room_id":"` + room + `","children_state":[{"type":"m.space.child","state_key":"x","content":{"via":["a"]}},
			{"type":"m.room.name","state_key":"` + child + `","content":{"via":["a"]}},{"type":"m.space.child","state_key":"` + child + `","content":{}},
			{"type":"m.space.child","state_key":"` + child + `","content":{"via":["a"]}}]},"children":[null,{"room_id":"y"},{"room_id":"` + child + `"}]}`: true,
	} {
		w.mu.Lock()
		a.end.handler = http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/hierarchy/") {
				out.Write([]byte(answer))
				return
			}
			real.ServeHTTP(out, req)
		})
		w.mu.Unlock()
		b.hierarchies.Purge()
		got, err := b.Hierarchy(t.Context(), eventgraph.RoomID(room), []eventgraph.ServerName{a.server}, false)
		if (err == nil) != good {
			t.Errorf("%s: %v", answer, err)
		}
		if err != nil || got.Room.Children == nil || len(got.Room.Children) == 0 {
			continue
		}
		if len(got.Room.Children) != 1 || string(got.Room.Children[0].Room) != child || len(got.Children) != 1 || string(got.Children[0].RoomID) != child {
			t.Errorf("taken in: %+v", got)
		}
	}
}
