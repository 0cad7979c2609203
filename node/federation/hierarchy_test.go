package federation

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
	if answer, err := b.Hierarchy(t.Context(), restricted, []eventgraph.ServerName{a.server}, false); err != nil || !slices.Equal(answer.Room.Allowed, []eventgraph.RoomID{space}) {
		t.Errorf("a room for who is in the space: %+v, %v", answer, err)
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

// What a server answers is bounded before it is used or kept, whatever part of it is large, and what is too old is freed.
func TestHierarchyIsBounded(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	room := "!" + strings.Repeat("A", 43)
	id := func(i int) string { return fmt.Sprintf("!%039dAAAA", i) }
	list := func(n int, item func(i int) string) string {
		var all []string
		for i := range n {
			all = append(all, item(i))
		}
		return strings.Join(all, ",")
	}
	long := strings.Repeat("t", 70<<10)
	large := strings.Repeat("t", 60<<10)
	frame := func(room, about, state, children, closed string) string {
		return `{"room":{"room_id":"` + room + `"` + about + `,"children_state":[` + state + `]},"children":[` + children + `],"inaccessible_children":[` + closed + `]}`
	}
	child := func(i int, more string) string {
		return `{"type":"m.space.child","state_key":"` + id(i) + `","sender":"@a:b","content":{"via":["a"],"x":"` + more + `"}}`
	}
	for name, c := range map[string]struct {
		answer string
		good   bool
		most   int // bytes
	}{
		"a topic":           {frame(room, `,"topic":"`+long+`"`, "", "", ""), false, 0},
		"a join rule":       {frame(room, `,"join_rule":"`+long+`"`, "", "", ""), false, 0},
		"allowed rooms":     {frame(room, `,"allowed_room_ids":[`+list(5000, func(int) string { return `""` })+`]`, "", "", ""), false, 0},
		"large children":    {frame(room, "", list(100, func(i int) string { return child(i, large) }), "", ""), true, maxHierarchy},
		"too large a child": {frame(room, "", child(1, long), "", ""), true, 4096},
		"many children":     {frame(room, "", list(2000, func(i int) string { return child(i, "") }), "", ""), true, maxHierarchy},
		"large summaries": {frame(room, "", "", list(100, func(i int) string { return `{"room_id":"` + id(i) + `","name":"` + large + `"}` }), ""),
			true, maxHierarchy},
		"too large a summary": {frame(room, "", "", `{"room_id":"`+id(1)+`","avatar_url":"`+long+`"}`, ""), true, 4096},
		"closed rooms":        {frame(room, "", "", "", list(100_000, func(i int) string { return `"` + id(i) + `"` })), true, maxTheirRooms * 64},
		"long closed rooms":   {frame(room, "", "", "", list(100, func(i int) string { return `"` + long + `"` })), true, 4096},
	} {
		w.mu.Lock()
		a.end.handler = http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) { out.Write([]byte(c.answer)) })
		w.mu.Unlock()
		b.hierarchies.Purge()
		got, err := b.Hierarchy(t.Context(), eventgraph.RoomID(room), []eventgraph.ServerName{a.server}, false)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		raw, err := json.Marshal(got)
		if err != nil || len(raw) > c.most {
			t.Errorf("%s: %d bytes are used, %v", name, len(raw), err)
		}
		if kept := b.hierarchies.Len() > 0; kept && len(raw) > maxHierarchyKept+1024 {
			t.Errorf("%s: %d bytes are kept", name, len(raw))
		}
	}

	// A topic of 60 KiB is an event's, and kept; after its time it is freed by the next question, whatever that is about.
	w.mu.Lock()
	a.end.handler = http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
		asked, _ := url.PathUnescape(strings.Split(req.URL.EscapedPath(), "/")[5])
		out.Write([]byte(frame(asked, `,"topic":"`+large+`"`, "", "", "")))
	})
	w.mu.Unlock()
	b.hierarchies.Purge()
	for i := range 3 {
		if _, err := b.Hierarchy(t.Context(), eventgraph.RoomID(id(i)), []eventgraph.ServerName{a.server}, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.hierarchies.Len(); n != 3 {
		t.Errorf("%d answers are kept, not 3", n)
	}
	if _, ok := b.hierarchies.fresh(hierarchyKey{}, b.Now().Add(hierarchyKept+time.Second)); ok || b.hierarchies.Len() != 0 {
		t.Errorf("%d answers are kept beyond their time", b.hierarchies.Len())
	}
}
