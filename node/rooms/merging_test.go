package rooms

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// crowdIn lets n users, each of a server of their own that is never here, join the room on each of the servers, and returns those servers.
// To them everything is known that the first server holds.
func crowdIn(room eventgraph.RoomID, n int, servers ...*server) (away []*server) {
	first := servers[0]
	var joins []*eventgraph.Event
	for i := range n {
		var seed [32]byte
		copy(seed[:], fmt.Sprint("away ", i))
		private := ed25519.NewKeyFromSeed(seed[:])
		public := private.Public().(ed25519.PublicKey)
		s := &server{t: first.t, now: first.now}
		s.key = eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private}
		var err error
		s.doc, err = eventgraph.SignKeyDocument(s.key.Server, []eventgraph.SigningKey{s.key}, nil, nil, s.now.Add(6*24*time.Hour).UnixMilli())
		if err != nil {
			first.t.Fatal(err)
		}
		for _, here := range servers {
			here.learn(s.doc)
		}
		user := s.user("away")
		join := s.lie(first, member(room, user, user, "join"), claim{depth: 10, ts: s.now, parents: first.record(room).Forward})
		first.accept(join, Basis{}, store.Accepted)
		away, joins = append(away, s), append(joins, join)
	}
	for _, here := range servers[1:] {
		for _, join := range joins {
			here.accept(join, Basis{}, store.Accepted)
		}
	}
	return away
}

// forksOf makes each events of each of the servers on what holder has now: messages, and one that changes the room's state.
func forksOf(away []*server, each int, holder *server, room eventgraph.RoomID) (forks []*eventgraph.Event) {
	at := claim{depth: 100, ts: holder.now, parents: holder.record(room).Forward}
	for _, s := range away {
		user := s.user("away")
		for i := range each {
			d := said(room, user, fmt.Sprint(i))
			if i == 1 {
				d = member(room, user, user, "join")
				d.Content = json.RawMessage(`{"membership":"join","displayname":"with a name"}`)
			}
			forks = append(forks, s.lie(holder, d, at))
		}
	}
	return forks
}

func (s *server) takeAll(events []*eventgraph.Event) {
	s.t.Helper()
	outcomes, err := s.AcceptAll(context.Background(), events, Basis{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, o := range outcomes {
		if o.Err != nil {
			s.t.Fatal(o.Err)
		}
	}
}

// merging runs the servers' merging until stop is called.
func merging(t *testing.T, servers ...*server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() { ended <- s.RunMerging(ctx) }()
	}
	return func() {
		cancel()
		for range servers {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
}

// merges counts the merging events of a server's timeline by who made them.
func (s *server) merges(room eventgraph.RoomID) map[eventgraph.ServerName]int {
	s.t.Helper()
	of := map[eventgraph.ServerName]int{}
	for _, c := range s.changesAfter(0) {
		if c.Kind == store.ChangeEvent && c.Room == room {
			if e := s.event(c.Event); e.Type() == DummyEvent {
				of[e.Sender().Server()]++
			}
		}
	}
	return of
}

// mesh gives every server what the others have taken in since the last time.
type mesh map[*server]store.Position

func (m mesh) spread(room eventgraph.RoomID) {
	for s, from := range m {
		for other := range m {
			if other != s {
				m[s] = s.give(other, room, from)
			}
		}
	}
}

// inOrder sorts the servers as they wait for each other to merge.
func inOrder(t *testing.T, room eventgraph.RoomID, servers ...*server) []*server {
	t.Helper()
	delay := func(s *server) time.Duration {
		d, joined, err := s.mergeDelay(room)
		if err != nil || !joined {
			t.Fatal(joined, err)
		}
		return d
	}
	slices.SortFunc(servers, func(a, b *server) int { return int(delay(a) - delay(b)) })
	return servers
}

// 196 extremities by 40 servers of which three are here come down to one, by one server's few events, on all three.
func TestMergingManyExtremities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, _, room := shared(t, "12")
		c := newServer(t, "c", a, b)
		position := a.store.Position()
		c.join(a, room, c.user("carol"))
		a.give(b, room, position)
		away := crowdIn(room, 37, a, b, c)
		forks := forksOf(away, 5, a, room)
		all := mesh{}
		for _, s := range []*server{a, b, c} {
			s.takeAll(forks)
			all[s] = s.store.Position()
			if n := len(s.record(room).Forward); n != len(forks) {
				t.Fatalf("%d extremities of %d", n, len(forks))
			}
		}
		first := inOrder(t, room, a, b, c)[0]
		began := time.Now()
		defer merging(t, a, b, c)()
		time.Sleep(mergeAfter - time.Second)
		if got := a.merges(room); len(got) != 0 {
			t.Fatalf("merged at once: %v", got)
		}
		for time.Since(began) < time.Hour {
			time.Sleep(time.Second)
			all.spread(room)
		}
		for _, s := range []*server{a, b, c} {
			if n := len(s.record(room).Forward); n != 1 {
				t.Errorf("%d extremities are left", n)
			}
			if got := s.merges(room); len(got) != 1 || got[first.Server()] != maxMerges-1 {
				t.Errorf("merged by %v, want %d by %s", got, maxMerges-1, first.Server())
			}
		}
		a.sameState(b, room)
		a.sameState(c, room)
	})
}

// Two servers that do not hear of each other merge both. When they meet, neither does it again, and the next message is on one line.
func TestMergingInASplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, alice, _, room := shared(t, "11")
		away := crowdIn(room, 6, a, b)
		all := mesh{}
		forks := forksOf(away, 6, a, room)
		for _, s := range []*server{a, b} {
			s.takeAll(forks)
			all[s] = s.store.Position()
		}
		defer merging(t, a, b)()
		time.Sleep(time.Hour)
		for range 3 {
			time.Sleep(time.Hour)
			all.spread(room)
		}
		want := map[eventgraph.ServerName]int{a.Server(): 2, b.Server(): 2}
		for _, s := range []*server{a, b} {
			if got := s.merges(room); len(got) != 2 || got[a.Server()] != want[a.Server()] || got[b.Server()] != want[b.Server()] {
				t.Errorf("merged by %v, want %v", got, want)
			}
		}
		a.message(room, alice, "on both")
		all.spread(room)
		a.sameState(b, room)
		if n := len(b.record(room).Forward); n != 1 {
			t.Errorf("%d extremities", n)
		}
	})
}

// Who merges, and when: of two servers, one after the other in the order, in a room with others who are away.
func TestWhoMerges(t *testing.T) {
	const long, most = 2 * time.Hour, mergeAbove + 1
	all := func(power int) string { return fmt.Sprintf(`{"events":{"org.matrix.dummy_event":%d}}`, power) }
	for name, c := range map[string]struct {
		forks   int
		wait    time.Duration
		running []int
		levels  string // but for those of users
		power   int    // of the second server's user
		left    bool   // the first server's user has left
		want    [2]int // merging events of each
	}{
		"few extremities":    {forks: mergeAbove, wait: long, running: []int{0, 1}, levels: all(0)},
		"not for long":       {forks: most, wait: mergeAfter - time.Second, running: []int{0, 1}, levels: all(0)},
		"the first":          {forks: most, wait: long, running: []int{0, 1}, levels: all(0), want: [2]int{1, 0}},
		"the first is away":  {forks: most, wait: long, running: []int{1}, levels: all(0), want: [2]int{0, 1}},
		"the first has left": {forks: most, wait: long, running: []int{0, 1}, levels: all(0), left: true, want: [2]int{0, 1}},
		"the first may not":  {forks: most, wait: long, running: []int{0, 1}, levels: all(50), power: 50, want: [2]int{0, 1}},
		"nobody here may":    {forks: most, wait: long, running: []int{0, 1}, levels: all(50)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newServer(t, "a")
				alice := a.user("alice")
				room := a.create("11", alice)
				position := a.store.Position()
				b, d := newServer(t, "b", a), newServer(t, "d", a)
				b.learn(d.doc)
				d.learn(b.doc)
				here := []*server{b, d}
				for _, s := range here {
					s.join(a, room, s.user("somebody"))
				}
				a.give(b, room, position) // who joined last
				here = inOrder(t, room, a, b, d)
				here = slices.DeleteFunc(here, func(s *server) bool { return s == a })
				away := crowdIn(room, 2, a)
				content := map[string]any{}
				if err := json.Unmarshal([]byte(c.levels), &content); err != nil {
					t.Fatal(err)
				}
				content["users"] = map[eventgraph.UserID]int{alice: 100, here[1].user("somebody"): c.power}
				levels, _ := json.Marshal(content)
				a.setState(room, alice, "m.room.power_levels", "", string(levels))
				if c.left {
					somebody := here[0].user("somebody")
					a.setState(room, alice, "m.room.member", string(somebody), `{"membership":"leave"}`)
				}
				for _, s := range here {
					for _, other := range away {
						s.learn(other.doc)
					}
				}
				forks := forksOf(away, 10, a, room)[:c.forks]
				all := mesh{a: position}
				for _, s := range here {
					all[s] = s.store.Position()
				}
				all.spread(room)
				var running []*server
				for _, i := range c.running {
					running = append(running, here[i])
				}
				defer merging(t, running...)()
				for _, s := range []*server{a, b, d} {
					s.takeAll(forks)
					all[s] = s.store.Position()
				}
				for began := time.Now(); time.Since(began) < c.wait; {
					time.Sleep(min(5*time.Second, c.wait-time.Since(began))) // two turns are no closer
					all.spread(room)
				}
				got := a.merges(room)
				if [2]int{got[here[0].Server()], got[here[1].Server()]} != c.want {
					t.Errorf("merged by %v, want %v", got, c.want)
				}
			})
		})
	}
}

// A merging event that is soft-failed elsewhere, for its sender has been banned there, merges nothing there: that server merges itself, and
// does so too when it was started only after the extremities came.
func TestMergingEventSoftFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, alice, bob, room := shared(t, "11")
		away := crowdIn(room, 2, a, b)
		all := mesh{a: a.store.Position(), b: b.store.Position()}
		forks := forksOf(away, 6, a, room)
		a.setState(room, alice, "m.room.member", string(bob), `{"membership":"ban"}`)
		a.takeAll(forks)
		b.takeAll(forks)
		again := &server{t: t, store: a.store, key: a.key}
		again.Rooms = New(Config{Store: a.store, Key: a.key, Now: func() time.Time { return a.now }})

		stop := merging(t, b)
		time.Sleep(time.Hour)
		stop()
		if got := b.merges(room); got[b.Server()] != 1 {
			t.Fatalf("merged by %v", got)
		}
		b.give(a, room, all[b])
		if n := len(a.record(room).Forward); n != len(forks)+1 {
			t.Fatalf("%d extremities, want the ban and the forks", n)
		}
		stop = merging(t, again)
		time.Sleep(time.Hour)
		stop()
		if got := again.merges(room); len(got) != 1 || got[a.Server()] != 1 {
			t.Errorf("merged by %v", got)
		}
		if n := len(again.record(room).Forward); n != 1 {
			t.Errorf("%d extremities", n)
		}
	})
}
