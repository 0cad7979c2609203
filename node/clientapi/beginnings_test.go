package clientapi

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// To a client that goes on from before its user joined, the room's timeline is limited, also where it is shown from its beginning or
// where a filter hides parts of it; a client that begins anew has the whole of a short room.
func TestSyncNewlyJoinedIsLimited(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	for i := range 4 {
		alice.say(room, fmt.Sprint(i))
	}
	const messages = `filter={"room":{"timeline":{"limit":10,"types":["m.room.message"]},"state":{"types":[]}}}`
	since := bob.sync("", messages).NextBatch
	bob.join(room)
	got := bob.sync(since, messages).Rooms.Join[room]
	wantList(t, "timeline", names(got.Timeline.Events), "0", "1", "2", "3")
	if !got.Timeline.Limited || got.Timeline.PrevBatch == "" {
		t.Errorf("not limited: %+v", got.Timeline)
	}
	if got := bob.sync("").Rooms.Join[room]; got.Timeline.Limited {
		t.Errorf("the whole room is limited: %+v", got.Timeline)
	}
}

// The members at the point before a timeline that was shown from the room's beginning are its first, not those of now.
func TestMembersAtTheBeginning(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	at := alice.sync("").Rooms.Join[room].Timeline.PrevBatch
	bob.join(room)
	members := func(at string) (users []string) {
		a := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/members?at="+url.QueryEscape(at), nil)
		for _, e := range a.body["chunk"].([]any) {
			users = append(users, eventgraph.UserID(e.(map[string]any)["state_key"].(string)).Localpart())
		}
		return users
	}
	wantList(t, "at the beginning", members(at), "alice")
	if now := members(alice.sync("").NextBatch); len(now) != 2 {
		t.Errorf("now: %s", now)
	}
}

// Who may not read a room is told so, whatever else is wrong with the request.
func TestMessagesOfAForgottenRoom(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	path := "/v3/rooms/" + string(room) + "/messages"
	if a := bob.call(400, "GET", path, nil); a.code() != "M_MISSING_PARAM" {
		t.Errorf("without dir: %s", a.raw)
	}
	if a := bob.call(400, "GET", path+"?dir=x", nil); a.code() != "M_INVALID_PARAM" {
		t.Errorf("another dir: %s", a.raw)
	}
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/leave", nil)
	bob.call(200, "POST", "/v3/rooms/"+string(room)+"/forget", nil)
	for _, query := range []string{"", "?dir=b", "?dir=x"} {
		if a := bob.call(403, "GET", path+query, nil); a.code() != "M_FORBIDDEN" {
			t.Errorf("%s: %s", query, a.raw)
		}
	}
}
