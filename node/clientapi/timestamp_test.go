package clientapi

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// near asks for the event closest in time; "" if there is none.
func (c client) near(room eventgraph.RoomID, ts int64, dir string) string {
	c.s.t.Helper()
	a := c.s.send("GET", fmt.Sprintf("/_matrix/client/v1/rooms/%s/timestamp_to_event?ts=%d&dir=%s", room, ts, dir), c.token, nil)
	if a.status != 200 && (a.status != 404 || a.code() != "M_NOT_FOUND") {
		c.s.t.Errorf("%d %s", a.status, a.raw)
	}
	return a.text("event_id")
}

// The closest event is the closest of those that the user may see.
func TestTimestampAndVisibility(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
	begin := s.time().UnixMilli()
	s.advance(time.Hour)
	hidden := alice.say(room, "before bob")
	s.advance(time.Hour)
	bob.join(room)
	s.advance(time.Hour)
	with := alice.say(room, "with bob")
	leave := alice.member(room, bob, "leave")
	s.advance(time.Hour)
	after := alice.say(room, "without bob")
	now := s.time().UnixMilli()
	if got := alice.near(room, begin+1, "f"); got != string(hidden) {
		t.Errorf("alice, forwards: %s", got)
	}
	if got := alice.near(room, now, "b"); got != string(after) {
		t.Errorf("alice, backwards: %s", got)
	}
	got := bob.near(room, begin+1, "f")
	if e := bob.call(200, "GET", "/v3/rooms/"+string(room)+"/event/"+got, nil); e.text("type") != "m.room.member" {
		t.Errorf("bob, forwards: %s", e.raw)
	}
	if got := bob.near(room, now, "b"); got != string(leave) {
		t.Errorf("bob, backwards: %s, want his leaving", got)
	}
	if got := bob.near(room, now, "f"); got != "" {
		t.Errorf("bob, after his leaving: %s", got)
	}
	if got := bob.near(room, now-2*time.Hour.Milliseconds()+1, "f"); got != string(with) {
		t.Errorf("bob, forwards from his joining: %s", got)
	}
}

// foundNear is a Remote that has found an event by its time.
type foundNear struct {
	*unreachable
	id eventgraph.EventID
	ts int64
}

func (u foundNear) EventNear(context.Context, eventgraph.RoomID, int64, bool) (eventgraph.EventID, int64, error) {
	return u.id, u.ts, nil
}

// Of an event that another server has found nothing is told before it is here and the user may see it.
func TestTimestampOfAnotherServer(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.state(room, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
	s.advance(time.Hour)
	ts := s.time().UnixMilli()
	hidden := alice.say(room, "hidden")
	s.advance(time.Hour)
	bob.join(room)
	s.update(func(tx *store.Tx) error {
		record, err := tx.Room(room)
		if err != nil {
			return err
		}
		record.Backward = []eventgraph.EventID{hidden}
		return tx.PutRoom(record)
	})
	for _, found := range []eventgraph.EventID{hidden, "$far"} {
		s.SetRemote(foundNear{s.remote, found, ts})
		if got := bob.near(room, ts, "f"); got == string(found) || got == "" {
			t.Errorf("another server found %s: bob is told of %q", found, got)
		}
		if got := alice.near(room, ts, "f"); got != string(hidden) {
			t.Errorf("another server found %s: alice is told of %q", found, got)
		}
	}
}
