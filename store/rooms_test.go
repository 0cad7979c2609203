package store

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestRooms(t *testing.T) {
	t.Parallel()
	s := open(t)
	rooms := []*Room{
		{ID: "!a", Version: "12", Create: "$c", Forward: []eventgraph.EventID{"$1", "$2"}, State: eventgraph.Hash{5}, NextOrder: 3, PrevOrder: -1},
		{ID: "!a\x00b", Version: "3", Backward: []eventgraph.EventID{"$0"}, Unproven: []eventgraph.EventID{"$2", "$1"}, NextOrder: 1, PrevOrder: -9},
	}
	mustUpdate(t, s, func(tx *Tx) error { return errors.Join(tx.PutRoom(rooms[1]), tx.PutRoom(rooms[0])) })
	mustView(t, s, func(r *Reader) error {
		var all []*Room
		err := r.Rooms(func(room *Room) (bool, error) { all = append(all, room); return true, nil })
		if !reflect.DeepEqual(all, rooms) {
			t.Errorf("rooms %+v, want %+v", all, rooms)
		}
		one, err2 := r.Room("!a\x00b")
		if !reflect.DeepEqual(one, rooms[1]) {
			t.Errorf("room %+v", one)
		}
		if _, err := r.Room("!"); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown room: %v", err)
		}
		return errors.Join(err, err2)
	})
}

func TestBackwardEvents(t *testing.T) {
	t.Parallel()
	s := open(t)
	first, last := message(t, `{"body":"first"}`, parentA), message(t, `{"body":"last"}`, parentB)
	for _, e := range []*eventgraph.Event{first, last} {
		mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(&StoredEvent{Event: e, Verdict: Accepted, Order: 1}) })
	}
	room := &Room{ID: testRoom, Backward: []eventgraph.EventID{"$gone", first.ID(), "$gone too", last.ID()}}
	failed := errors.New("failed")
	for _, c := range []struct {
		stopAt int
		err    error
		want   []eventgraph.EventID
	}{
		{0, nil, []eventgraph.EventID{first.ID(), last.ID()}},
		{1, nil, []eventgraph.EventID{first.ID()}},
		{1, failed, []eventgraph.EventID{first.ID()}},
		{2, ErrNotFound, []eventgraph.EventID{first.ID(), last.ID()}},
	} {
		mustView(t, s, func(r *Reader) error {
			var got []eventgraph.EventID
			err := r.BackwardEvents(room, func(e *StoredEvent) (bool, error) {
				got = append(got, e.ID())
				if len(got) == c.stopAt {
					return false, c.err
				}
				return true, nil
			})
			if !slices.Equal(got, c.want) || err != c.err {
				t.Errorf("stopped at %d with %v: events %v and %v, want %v", c.stopAt, c.err, got, err, c.want)
			}
			return nil
		})
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	s := open(t)
	full := &Member{
		Room: "!a", User: "@u:s", Membership: "invite", Event: "$e", Position: 4, Forgotten: true, Outside: true,
		Invite: []byte(`{"a": 1}`), Stripped: []byte(`[ ]`), Via: "s", WasJoined: true,
	}
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.PutMember(full),
			tx.PutMember(&Member{Room: "!a", User: "@v:s", Membership: "join"}),
			tx.PutMember(&Member{Room: "!b", User: "@u:s", Membership: "join"}),
			tx.PutMember(&Member{Room: "!b", User: "@u:s", Membership: "leave"}),
		)
	})
	list := func(read func(r *Reader, f func(*Member) (bool, error)) error) string {
		t.Helper()
		var got []string
		mustView(t, s, func(r *Reader) error {
			return read(r, func(m *Member) (bool, error) {
				got = append(got, fmt.Sprint(m.Room, m.User, m.Membership))
				return true, nil
			})
		})
		return strings.Join(got, " ")
	}
	of := func(room eventgraph.RoomID) string {
		t.Helper()
		return list(func(r *Reader, f func(*Member) (bool, error)) error { return r.MembersOf(room, f) })
	}
	roomsOf := func(u eventgraph.UserID) string {
		t.Helper()
		return list(func(r *Reader, f func(*Member) (bool, error)) error { return r.RoomsOf(u, f) })
	}
	if got, want := of("!a"), "!a@u:sinvite !a@v:sjoin"; got != want {
		t.Errorf("members: %s, want %s", got, want)
	}
	if got, want := roomsOf("@u:s"), "!a@u:sinvite !b@u:sleave"; got != want {
		t.Errorf("rooms: %s, want %s", got, want)
	}
	mustView(t, s, func(r *Reader) error {
		got, err := r.Member("!a", "@u:s")
		if !reflect.DeepEqual(got, full) {
			t.Errorf("member %+v, want %+v", got, full)
		}
		return err
	})
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteMember("!a", "@u:s") })
	if of("!a") != "!a@v:sjoin" || roomsOf("@u:s") != "!b@u:sleave" {
		t.Errorf("after a deletion: %s; %s", of("!a"), roomsOf("@u:s"))
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.PutAlias(&Alias{"#x:s", "!a", "@u:s"}), tx.PutAlias(&Alias{"#y:s", "!a", "@u:s"}),
			tx.PutAlias(&Alias{"#x:s", "!b", "@v:s"}), tx.DeleteAlias("#z:s"), tx.SetPublished("!b", true), tx.SetPublished("!c", false),
		)
	})
	mustView(t, s, func(r *Reader) error {
		a, err := r.Alias("#x:s")
		if err != nil || *a != (Alias{"#x:s", "!b", "@v:s"}) {
			t.Errorf("alias %+v, %v", a, err)
		}
		for room, want := range map[eventgraph.RoomID]string{"!a": "[#y:s]", "!b": "[#x:s]", "!c": "[]"} {
			if got, err := r.AliasesOf(room); err != nil || fmt.Sprint(got) != want {
				t.Errorf("aliases of %s: %v, %v", room, got, err)
			}
		}
		published, err := r.PublishedRooms()
		if on, _ := r.Published("!b"); !on || fmt.Sprint(published) != "[!b]" {
			t.Errorf("published: %v", published)
		}
		return err
	})
}
