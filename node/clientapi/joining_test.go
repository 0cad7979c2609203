package clientapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// joiningServer is a server of which a user is let into a room of another, and which can do the steps of the join.
type joiningServer struct {
	*testServer
	room  eventgraph.RoomID
	join  *eventgraph.Event
	state []*eventgraph.Event // parents first
}

// elsewhere makes a room with a name on another server, which bob of s is to join.
func elsewhere(t *testing.T, s *testServer, bob client) *joiningServer {
	t.Helper()
	other := newTestAPI(t, nil)
	alice := other.newClient("alice")
	empty := ""
	room := alice.room(rooms.Draft{Type: "m.room.name", StateKey: &empty, Content: json.RawMessage(`{"name":"Far away"}`)})
	key := string(bob.user)
	join, err := other.Rooms.Build(t.Context(), rooms.Draft{
		Room: room, Sender: bob.user, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	j := &joiningServer{testServer: s, room: room, join: join}
	current, err := other.Rooms.CurrentState(room)
	if err != nil {
		t.Fatal(err)
	}
	err = current.Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error {
		held, err := other.Rooms.Event(id)
		j.state = append(j.state, held.Event)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	j.state = eventgraph.SortTopologically(j.state)
	return j
}

func (j *joiningServer) newRoom() rooms.NewRoom {
	return rooms.NewRoom{Version: j.join.Version(), Create: j.state[0].ID()}
}

// note does what federation does as a join goes on.
func (j *joiningServer) note(change func(*store.Join)) {
	j.t.Helper()
	key, _ := j.join.StateKey()
	record := &store.Join{Room: j.room, Version: j.join.Version(), User: eventgraph.UserID(key), Event: j.join.Raw(), Server: j.Server, Phase: store.JoinTaken}
	change(record)
	_, err := j.Store.Update(context.Background(), func(tx *store.Tx) error {
		if _, err := tx.Log(store.Change{Kind: store.ChangeMembership, Room: j.room, User: record.User}); err != nil {
			return err
		}
		if record.Phase == "" {
			return tx.DeleteJoin(j.room)
		}
		return tx.PutJoin(record)
	})
	if err != nil {
		j.t.Fatal(err)
	}
}

// sync returns the part of /sync that is about the room, and the next token.
func (j *joiningServer) sync(c client, since string) (part map[string]any, membership, next string) {
	j.t.Helper()
	a := c.call(200, "GET", "/v3/sync?since="+since, nil)
	all, _ := a.body["rooms"].(map[string]any)
	for kind, rooms := range all {
		if room, ok := rooms.(map[string]any)[string(j.room)].(map[string]any); ok {
			if part != nil {
				j.t.Errorf("the room is under %s and %s", membership, kind)
			}
			part, membership = room, kind
		}
	}
	return part, membership, a.text("next_batch")
}

func TestRoomThatIsStillComing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bob, berta := s.newClient("bob"), s.newClient("berta")
	j := elsewhere(t, s, bob)
	_, _, since := j.sync(bob, "")
	path := "/v3/rooms/" + string(j.room)

	// Sent, and not known to be taken in: nothing is shown.
	j.note(func(r *store.Join) { r.Phase = store.JoinSent })
	part, _, since := j.sync(bob, since)
	if part != nil && part["timeline"] != nil && len(part["state"].(map[string]any)["events"].([]any)) > 0 {
		t.Errorf("shown before the room let bob in: %v", part)
	}
	bob.call(403, "GET", path+"/state", nil)

	// Some of its state has come.
	basis := rooms.Basis{Kind: rooms.Nothing}
	n := j.newRoom()
	basis.New = &n
	if _, err := s.Rooms.AcceptAll(t.Context(), j.state, basis); err != nil {
		t.Fatal(err)
	}
	var show []eventgraph.EventID
	for _, e := range j.state {
		if e.Type() == "m.room.name" || e.Type() == "m.room.create" {
			show = append(show, e.ID())
		}
	}
	j.note(func(r *store.Join) { r.Show, r.Arrived, r.Expected = show, 40, 100 })
	for _, since := range []string{"", since} {
		part, membership, _ := j.sync(bob, since)
		text := fmt.Sprint(part)
		if membership != "join" || !strings.Contains(text, "Far away") || !strings.Contains(text, "plexus.joining") ||
			!strings.Contains(text, string(bob.user)) || !strings.Contains(text, "expected:100") {
			t.Errorf("shown as %s: %s", membership, text)
		}
	}
	_, _, since = j.sync(bob, since)
	if part, _, _ := j.sync(bob, since); part != nil {
		t.Errorf("shown again though nothing came: %v", part)
	}
	if part, _, _ := j.sync(berta, ""); part != nil {
		t.Errorf("shown to somebody else: %v", part)
	}
	a := bob.call(429, "PUT", path+"/send/m.room.message/1", `{"msgtype":"m.text","body":"x"}`)
	if !strings.Contains(a.text("error"), "40 %") || a.body["retry_after_ms"] == nil {
		t.Errorf("a message is answered with %s", a.raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/_matrix/client"+path+"/state", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bob.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if raw, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(raw), "Far away") {
		t.Errorf("state: %s, %v", raw, err)
	}
	berta.call(403, "GET", path+"/state", nil)
	bob.call(200, "PUT", "/v3/user/"+string(bob.user)+"/rooms/"+string(j.room)+"/tags/u.later", `{}`)

	// All has come.
	var ids []eventgraph.EventID
	for _, e := range j.state {
		ids = append(ids, e.ID())
	}
	if err := s.Rooms.Enter(t.Context(), j.join, n, ids); err != nil {
		t.Fatal(err)
	}
	part, membership, since := j.sync(bob, since)
	if text := fmt.Sprint(part); membership != "join" || !strings.Contains(text, "m.room.power_levels") || strings.Contains(text, "plexus.joining") {
		t.Errorf("the whole room is shown as %s: %s", membership, text)
	}
	j.note(func(r *store.Join) { r.Phase = "" })
	if part, _, _ := j.sync(bob, since); part != nil {
		t.Errorf("shown again: %v", part)
	}
	bob.call(200, "PUT", path+"/send/m.room.message/1", `{"msgtype":"m.text","body":"x"}`)
}

// A join that comes to nothing after it was shown takes the room away again.
func TestRoomThatDidNotCome(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bob := s.newClient("bob")
	j := elsewhere(t, s, bob)
	j.note(func(*store.Join) {})
	_, membership, since := j.sync(bob, "")
	if membership != "join" {
		t.Fatalf("shown as %q", membership)
	}
	left := &leftTo{unreachable: s.remote}
	s.SetRemote(left)
	bob.call(200, "POST", "/v3/rooms/"+string(j.room)+"/leave", nil)
	if left.room != j.room {
		t.Errorf("leaving a room that is still coming went to %q", left.room)
	}
	j.note(func(r *store.Join) { r.Phase = "" })
	if _, membership, _ = j.sync(bob, since); membership != "leave" {
		t.Errorf("shown as %q", membership)
	}
	if _, membership, _ = j.sync(bob, ""); membership != "" {
		t.Errorf("shown anew as %q", membership)
	}
}

// A room whose last piece comes while it is being left is left as any other.
func TestRoomThatComesWhileLeft(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bob := s.newClient("bob")
	j := elsewhere(t, s, bob)
	j.note(func(*store.Join) {})
	s.SetRemote(&tooLate{unreachable: s.remote, enter: func() {
		n := j.newRoom()
		if _, err := s.Rooms.AcceptAll(t.Context(), j.state, rooms.Basis{Kind: rooms.Nothing, New: &n}); err != nil {
			t.Fatal(err)
		}
		var ids []eventgraph.EventID
		for _, e := range j.state {
			ids = append(ids, e.ID())
		}
		if err := s.Rooms.Enter(t.Context(), j.join, n, ids); err != nil {
			t.Fatal(err)
		}
		j.note(func(r *store.Join) { r.Phase = "" })
	}})
	bob.call(200, "POST", "/v3/rooms/"+string(j.room)+"/leave", nil)
	if m, err := s.member(j.room, bob.user); err != nil || m == nil || m.Membership != "leave" {
		t.Errorf("bob: %+v, %v", m, err)
	}
}

// tooLate is a Remote to which all has come before it could give up.
type tooLate struct {
	*unreachable
	enter func()
}

func (l *tooLate) Leave(context.Context, eventgraph.RoomID, eventgraph.UserID, string) error {
	l.enter()
	return &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "no such join"}
}

// leftTo is a Remote that notes what is left.
type leftTo struct {
	*unreachable
	room eventgraph.RoomID
}

func (l *leftTo) Leave(_ context.Context, room eventgraph.RoomID, _ eventgraph.UserID, _ string) error {
	l.room = room
	return nil
}

// The members of a room come in many pieces, as one JSON.
func TestManyMembers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	const others = 2*streamPiece + 7
	for i := range others {
		user := eventgraph.UserID(fmt.Sprintf("@user%d:%s", i, s.Server))
		key := string(user)
		content := `{"membership":"join","displayname":"User \"` + fmt.Sprint(i) + `\""}`
		if i%3 == 0 {
			content = `{"membership":"leave"}`
		}
		d := rooms.Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`)}
		for _, d.Content = range []json.RawMessage{d.Content, json.RawMessage(content)} {
			if _, err := s.Rooms.Send(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
	}
	path := "/v3/rooms/" + string(room)
	gone := (others + 2) / 3
	for query, want := range map[string]int{"": others + 1, "?membership=leave": gone, "?not_membership=leave": others + 1 - gone, "?membership=ban": 0} {
		if got := len(alice.call(200, "GET", path+"/members"+query, nil).body["chunk"].([]any)); got != want {
			t.Errorf("%q: %d members, want %d", query, got, want)
		}
	}
	joined := alice.call(200, "GET", path+"/joined_members", nil).body["joined"].(map[string]any)
	if len(joined) != others+1-gone {
		t.Errorf("%d are joined", len(joined))
	}
	if one, _ := joined["@user1:"+string(s.Server)].(map[string]any); one["display_name"] != `User "1"` {
		t.Errorf("user1 is %v", one)
	}
}
