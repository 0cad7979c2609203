package clientapi

import (
	"fmt"
	"net/url"
	"testing"
	"testing/synctest"
	"time"
)

// readsOf counts what f asks of the database.
func (s *testServer) readsOf(f func()) uint64 {
	before := s.Store.Reads()
	f()
	return s.Store.Reads() - before
}

// A client to which there is nothing to tell costs at most three reads, however many rooms it has, wherever its filter is kept.
func TestEmptySyncReads(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	for range 30 {
		room := alice.room()
		bob.join(room)
		bob.say(room, "hello")
	}
	bob.call(200, "PUT", "/v3/sendToDevice/m.dummy/1", map[string]any{
		"messages": map[string]any{string(alice.user): map[string]any{string(alice.device): map[string]any{}}},
	})
	filter := "filter=" + alice.call(200, "POST", "/v3/user/"+url.PathEscape(string(alice.user))+"/filter", map[string]any{
		"room": map[string]any{"timeline": map[string]any{"limit": 20}, "state": map[string]any{"lazy_load_members": true}},
	}).text("filter_id")
	for _, params := range [][]string{{}, {"set_presence=offline"}, {filter}, {filter, "use_state_after=true"}} {
		first := alice.sync("", params...)
		if len(first.Rooms.Join) != 30 {
			t.Fatalf("the first sync with %q has %d rooms", params, len(first.Rooms.Join))
		}
		token := alice.sync(first.NextBatch, params...).NextBatch // acknowledges the message, and tells of what the first call made new
		var body syncBody
		reads := s.readsOf(func() { body = alice.sync(token, params...) })
		if reads > 3 {
			t.Errorf("an empty /sync with %q: %d reads", params, reads)
		}
		if len(body.Rooms.Join) > 0 || len(body.Presence.Events) > 0 || len(body.ToDevice.Events) > 0 {
			t.Errorf("the sync with %q was not empty: %s", params, body.raw)
		}
	}
}

// What concerns one user wakes all long polls. Those of the others go back to sleep without a look at their rooms: they read what was
// logged and, where that is in a room, whether they are in that.
func TestWakingIdlePolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const polls, each = 100, 5
		s := newTestAPI(t, nil)
		bob := s.newClient("bob")
		own, file := bob.room(), "/v3/user/"+url.PathEscape(string(bob.user))+"/account_data/org.example.test"
		answers := make(chan syncBody, polls)
		var idle []client
		for i := range polls {
			c := s.newClient(fmt.Sprint("idle", i))
			for range each {
				c.room()
			}
			idle = append(idle, c)
		}
		say := func() { bob.say(own, "hello") }
		put := func() { bob.call(200, "PUT", file, map[string]any{"a": 1}) }
		say() // the first of a room reads more
		saying, putting := s.readsOf(say), s.readsOf(put)
		for _, c := range idle {
			token := c.sync(c.sync("", "set_presence=offline").NextBatch, "set_presence=offline").NextBatch
			go func() { answers <- c.sync(token, "set_presence=offline", "timeout=600000") }()
		}
		synctest.Wait()
		for _, change := range []struct {
			what  string
			make  func()
			alone uint64 // reads of the change itself
			most  uint64 // reads of each poll
		}{
			{"a message in a room of another", say, saying, 2},
			{"another's account data", put, putting, 1},
			{"another types", func() { s.Ephemeral.SetTyping(own, bob.user, time.Minute) }, 0, 1}, // whether they are in the room
			{"another is online", func() {
				p, _ := s.Ephemeral.Presence(bob.user)
				p.State, p.CurrentlyActive, p.LastActive, p.For = "online", true, s.time(), time.Minute
				s.Ephemeral.SetPresence(bob.user, p)
			}, 0, 3}, // the other's rooms, which is one, and whether they are in that
		} {
			reads := s.readsOf(func() {
				change.make()
				synctest.Wait()
			})
			if reads > change.alone+polls*change.most {
				t.Errorf("%s: %d reads, of which %d are its own; want at most %d of each of %d polls", change.what, reads, change.alone, change.most, polls)
			} else if reads < change.alone+polls && change.most > 1 {
				t.Errorf("%s: only %d reads: the polls did not wake", change.what, reads)
			}
		}
		if len(answers) > 0 {
			t.Fatalf("%d polls were answered: %s", len(answers), (<-answers).raw)
		}
		time.Sleep(10 * time.Minute)
		for range polls {
			<-answers
		}
	})
}

// A long poll that waits while its device is logged out, or its account locked, gives away nothing that comes after that.
func TestPollsOfWhoIsOut(t *testing.T) {
	t.Parallel()
	for name, out := range map[string]func(t *testing.T, s *testServer, c client){
		"locked": func(t *testing.T, s *testServer, c client) {
			if _, err := s.SetLocked(t.Context(), c.user, true); err != nil {
				t.Error(err)
			}
		},
		"logged out": func(_ *testing.T, _ *testServer, c client) { c.call(200, "POST", "/v3/logout", nil) },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newTestAPI(t, nil)
			alice, bob := s.newClient("alice"), s.newClient("bob")
			room := bob.room()
			alice.join(room)
			since := alice.sync(alice.sync("").NextBatch).NextBatch
			pos := alice.slide("", window(0, 9, 1, "", "")).Pos
			pos = alice.slide(pos, window(0, 9, 1, "", "")).Pos
			answers := make(chan answer, 2)
			go func() {
				answers <- s.send("GET", "/_matrix/client/v3/sync?timeout=600000&since="+since, alice.token, nil)
			}()
			go func() {
				answers <- s.send("POST", "/_matrix/client"+slidingPath+"?timeout=600000&pos="+url.QueryEscape(pos), alice.token, window(0, 9, 1, "", ""))
			}()
			synctest.Wait()
			if len(answers) != 0 {
				t.Fatalf("%s: a poll does not wait: %s", name, (<-answers).raw)
			}
			out(t, s, alice)
			bob.say(room, "a secret")
			for range 2 {
				if a := <-answers; a.status != 401 {
					t.Errorf("%s: %d %s", name, a.status, a.raw)
				}
			}
		})
	}
}
