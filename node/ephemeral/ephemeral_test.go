package ephemeral

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	room  = eventgraph.RoomID("!r")
	alice = eventgraph.UserID("@alice:a")
	bob   = eventgraph.UserID("@bob:b")
)

func TestTypingLapsesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Now)
		defer s.Close()
		s.SetTyping(room, bob, 30*time.Second)
		s.SetTyping(room, alice, 10*time.Second)
		users, changed := s.Typing(room)
		if !slices.Equal(users, []eventgraph.UserID{alice, bob}) || changed != 2 {
			t.Fatalf("typing %v at %d", users, changed)
		}

		start := time.Now()
		c, err := s.Wait(context.Background(), 2)
		if err != nil || c != 3 {
			t.Fatalf("Wait: %d, %v", c, err)
		}
		if after := time.Since(start); after != 10*time.Second {
			t.Errorf("alice's typing lapsed after %v, want 10s", after)
		}
		if users, _ := s.Typing(room); !slices.Equal(users, []eventgraph.UserID{bob}) {
			t.Errorf("typing %v, want bob", users)
		}
		if rooms, _ := s.Changed(2); !slices.Equal(rooms, []eventgraph.RoomID{room}) {
			t.Errorf("Changed(2) = %v", rooms)
		}
		if rooms, _ := s.Changed(3); len(rooms) != 0 {
			t.Errorf("Changed(3) = %v, want none", rooms)
		}
	})
}

func TestTypingRepeatedProlongsWithoutChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Now)
		defer s.Close()
		start := time.Now()
		s.SetTyping(room, alice, 10*time.Second)
		time.Sleep(6 * time.Second) // virtual
		s.SetTyping(room, alice, 10*time.Second)
		if s.Counter() != 1 {
			t.Errorf("repeating counted as a change: %d", s.Counter())
		}
		if _, err := s.Wait(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		if after := time.Since(start); after != 16*time.Second {
			t.Errorf("lapsed after %v, want 16s", after)
		}
		s.SetTyping(room, alice, time.Hour)
		s.SetTyping(room, alice, 0)
		if users, c := s.Typing(room); len(users) != 0 || c != 4 {
			t.Errorf("after stopping: %v at %d", users, c)
		}
	})
}

func TestTypingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Now)
		defer s.Close()
		for i := range maxTypistsOfRoom + 10 {
			s.SetTyping(room, eventgraph.UserID(fmt.Sprintf("@u%d:a", i)), time.Minute)
		}
		if users, _ := s.Typing(room); len(users) != maxTypistsOfRoom {
			t.Errorf("%d typists, want %d", len(users), maxTypistsOfRoom)
		}
		for i := range maxTypingRooms {
			s.SetTyping(eventgraph.RoomID(fmt.Sprintf("!%d", i)), alice, time.Minute)
		}
		if len(s.typing) != maxTypingRooms || s.rooms.Len() != maxTypingRooms {
			t.Errorf("%d rooms kept, want %d", len(s.typing), maxTypingRooms)
		}
		if _, c := s.Typing(room); c != 0 {
			t.Error("the room quiet for longest was kept")
		}
	})
}

func TestPresenceGoesIdleThenOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Now)
		defer s.Close()
		if _, ok := s.Presence(alice); ok {
			t.Error("presence of a user never heard of")
		}
		s.SetPresence(alice, Presence{State: "online", CurrentlyActive: true})
		s.SetPresence(alice, Presence{State: "online", CurrentlyActive: true})
		if s.Counter() != 1 {
			t.Errorf("repeating counted as a change: %d", s.Counter())
		}
		start := time.Now()
		for i, want := range []struct {
			state string
			after time.Duration
		}{{"unavailable", IdleAfter}, {"offline", OfflineAfter}} {
			c, err := s.Wait(context.Background(), Counter(i+1))
			if err != nil {
				t.Fatal(err)
			}
			p, _ := s.Presence(alice)
			if p.State != want.state || p.CurrentlyActive || p.Changed != c || time.Since(start) != want.after {
				t.Errorf("after %v: %+v, want %v after %v", time.Since(start), p, want.state, want.after)
			}
		}
		if _, users := s.Changed(0); !slices.Equal(users, []eventgraph.UserID{alice}) {
			t.Errorf("Changed: %v", users)
		}
	})
}

func TestPresenceOfASyncLapsesSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Now)
		defer s.Close()
		start := time.Now()
		s.SetPresence(alice, Presence{State: "online", StatusMsg: "here", For: time.Minute})
		if _, err := s.Wait(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		p, _ := s.Presence(alice)
		if p.State != "offline" || p.StatusMsg != "here" || time.Since(start) != time.Minute {
			t.Errorf("after %v: %+v", time.Since(start), p)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Now)
		defer s.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := s.Wait(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
	})
}
