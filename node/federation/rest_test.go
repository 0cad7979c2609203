package federation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// TestJoinCutSmall: of a small room all can be had one by one, the create event too, whatever its version.
func TestJoinCutSmall(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"6", "11", "12"} {
		hosts := newMemHosts(t, memnet.New(), "a", "b")
		a, b := hosts[0], hosts[1]
		room := a.create(version, "public", "shared")
		var asked joinTargets
		a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			asked.note(r)
			if strings.Contains(r.RequestURI, "/send_join/") {
				cutAfter(*a.handler.Load(), w, r, 1)
			}
			return false
		})
		if err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil); err != nil {
			t.Fatalf("version %s: %v", version, err)
		}
		sameState(t, room, a, b)
		if asked.states.Load() > 0 || asked.events.Load() == 0 {
			t.Errorf("version %s: %d states, %d single events asked for: the test does not test", version, asked.states.Load(), asked.events.Load())
		}
	}
}

// TestJoinOthersHaveNotHeard: that servers of the room refuse what they have not heard of ends no join while the one that took it in is away,
// though none of them would let the user in.
func TestJoinOthersHaveNotHeard(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	c.join(room, c.user("carol"), a.host)
	var away atomic.Bool
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case strings.Contains(r.RequestURI, "/send_join/"):
			away.Store(true)
			cutAfter(*a.handler.Load(), w, r, 100)
		case away.Load():
			panic(http.ErrAbortHandler)
		}
		return false
	})
	refused := make(chan struct{}, 100)
	c.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		lists := strings.Contains(r.RequestURI, "/state_ids/")
		refuses := lists || strings.Contains(r.RequestURI, "/make_join/")
		if lists {
			refused <- struct{}{}
		}
		if refuses {
			writeJSON(w, http.StatusForbidden, map[string]string{"errcode": "M_FORBIDDEN"})
		}
		return refuses
	})
	joined := make(chan error, 1)
	go func() { joined <- b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host, c.host}), nil) }()
	for round := range vainRounds + 1 {
		select {
		case <-refused:
		case err := <-joined:
			t.Fatalf("after %d refusals: %v", round, err)
		}
		cut(n, b, c)
		b.gone(c)
		mend(n, b, c) // who is met is asked at once
	}
	away.Store(false)
	cut(n, a, b)
	b.gone(a)
	mend(n, a, b)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	sameState(t, room, a, b)
}

// TestJoinGoesOnAlone: a join that may have been taken in goes on though who asked for it has gone, also if it was asked for before Run ran, and of which nothing
// was stored when Run read which joins are under way.
func TestJoinGoesOnAlone(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("early=%t", early), func(t *testing.T) {
			t.Parallel()
			hosts := newMemHosts(t, memnet.New(), "a", "b")
			a, b := hosts[0], hosts[1]
			room := a.create("12", "public", "shared")
			ctx, cancel := context.WithCancel(t.Context())
			if early {
				b.joins.end() // as before Run
			}
			var working sync.WaitGroup
			running, end := context.WithCancel(t.Context())
			defer working.Wait()
			defer end()
			a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				switch {
				case early && strings.Contains(r.RequestURI, "/make_join/"):
					b.joins.open(running, &working)
				case strings.Contains(r.RequestURI, "/send_join/"):
					(*a.handler.Load()).ServeHTTP(httptest.NewRecorder(), r)
					cancel()
					<-r.Context().Done() // nothing is answered
					panic(http.ErrAbortHandler)
				}
				return false
			})
			if err := b.Join(ctx, room, b.user("bob"), names([]*host{a.host}), nil); err == nil {
				t.Fatal("joined, though nothing was answered")
			}
			b.wait("the room", func() bool { return b.membership(room, b.user("bob")) == "join" })
			sameState(t, room, a, b)
		})
	}
}

// TestListsOfJoinAreReplaced: the state of a room that is being joined is as one server lists it, and what nobody gives does not heap up.
func TestListsOfJoinAreReplaced(t *testing.T) {
	t.Parallel()
	hosts := newMemHosts(t, memnet.New(), "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	e, err := b.make(t.Context(), a.server, "join", room, b.user("bob"), nil)
	if err != nil {
		t.Fatal(err)
	}
	j := &store.Join{Room: room, Version: "12", User: b.user("bob"), Event: e.Raw(), Server: a.server, Phase: store.JoinTaken}
	b.update(func(tx *store.Tx) error {
		return errors.Join(tx.PutJoin(j), tx.PutStaged(room, &store.Staged{ID: "$came", State: true, PDU: []byte("{}")}),
			tx.PutStaged(room, &store.Staged{ID: "$judged", State: true, Settled: true}))
	})
	i := b.importOf(j, e)
	for _, listed := range []map[eventgraph.EventID]bool{{"$one": true, "$two": false, "$judged": true}, {"$three": true, "$came": true}} {
		want := maps.Clone(listed)
		if err := i.want(t.Context(), listed); err != nil {
			t.Fatal(err)
		}
		if _, is := want["$came"]; !is {
			want["$came"] = false
		}
		if _, is := want["$judged"]; !is {
			want["$judged"] = false
		}
		got := map[eventgraph.EventID]bool{}
		err := b.Store.View(func(r *store.Reader) error {
			return r.Staged(room, func(s *store.Staged) (bool, error) {
				if got[s.ID] = s.State; s.ID == "$came" && string(s.PDU) != "{}" || s.Settled != (s.ID == "$judged") {
					t.Errorf("staged: %+v", s)
				}
				return true, nil
			})
		})
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("staged %v, want %v; %v", got, want, err)
		}
	}
}

// TestMetWhileJoining: what a meeting brings of a room that is still coming waits for it.
func TestMetWhileJoining(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	b.join(a.create("12", "public", "shared"), b.user("bob"), a.host) // else they would have no reason to meet
	room := a.create("12", "public", "shared")
	c.join(room, c.user("carol"), a.host)
	cut(n, b, c)
	var open atomic.Bool
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case open.Load():
		case strings.Contains(r.RequestURI, "/send_join/"):
			cutAfter(*a.handler.Load(), w, r, 100)
		case strings.Contains(r.RequestURI, "/state"):
			panic(http.ErrAbortHandler)
		}
		return false
	})
	joined := make(chan error, 1)
	go func() { joined <- b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil) }()
	b.wait("bob to be let in", func() bool { return b.letIn(room, b.user("bob")) })
	said := c.say(room, c.user("carol"), "to a alone")
	b.waitUntil("it to wait", func() bool { return b.waits(room) > 0 })
	open.Store(true)
	cut(n, a, b)
	b.gone(a)
	mend(n, a, b) // who is met is asked at once
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	b.waitFor("what was said meanwhile", said)
}

// TestLeaveIsOvertakenByJoin: who gave up a join, and has joined since, is not thrown out when the server that is to be told of the first is met.
func TestLeaveIsOvertakenByJoin(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} { // the template of the leave is not given, or too late
		t.Run(fmt.Sprintf("late=%t", late), func(t *testing.T) {
			t.Parallel()
			leaveIsOvertaken(t, late)
		})
	}
}

// TestLeaveWaitsForJoin: while another user joins the room, which may take long, a leave waits, and what else is for its server does not.
func TestLeaveWaitsForJoin(t *testing.T) {
	t.Parallel()
	hosts := newMemHosts(t, memnet.New(), "a", "b")
	a, b := hosts[0], hosts[1]
	bob := b.user("bob")
	shared, other := a.create("12", "public", "shared"), a.create("12", "invite", "shared")
	b.join(shared, bob, a.host)
	if _, err := a.inviteOf(other, bob); err != nil {
		t.Fatal(err)
	}
	unlock, err := b.joining.lock(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Leave(t.Context(), other, bob, ""); err != nil {
		t.Fatal(err)
	}
	const most = 20 * time.Second // each took makeTimeout and more, when they waited for the leave
	began := time.Now()
	for i := range 3 {
		a.waitFor("what is said meanwhile", b.say(shared, bob, strconv.Itoa(i)))
	}
	if took := time.Since(began); took > most {
		t.Errorf("three messages took %v", took)
	}
	if len(b.outbound(a.server)) != 1 {
		t.Error("the leave does not wait: the test does not test")
	}
	unlock()
	b.waitUntil("the leave to be sent", func() bool { return len(b.outbound(a.server)) == 0 })
	if got := a.membership(other, bob); got != "leave" {
		t.Errorf("bob is %q", got)
	}
}

func leaveIsOvertaken(t *testing.T, late bool) {
	hosts := newMemHosts(t, memnet.New(), "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	c.join(room, c.user("carol"), a.host)
	var open atomic.Bool
	asked, opened := make(chan struct{}, 100), make(chan struct{})
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case open.Load():
		case strings.Contains(r.RequestURI, "/send_join/"):
			cutAfter(*a.handler.Load(), w, r, 100)
		case late && strings.Contains(r.RequestURI, "/make_leave/"):
			asked <- struct{}{}
			<-opened
		case strings.Contains(r.RequestURI, "/state"), strings.Contains(r.RequestURI, "/make_leave/"):
			panic(http.ErrAbortHandler)
		}
		return false
	})
	c.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if strings.Contains(r.RequestURI, "/state") {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	bob := b.user("bob")
	joined := make(chan error, 1)
	go func() { joined <- b.Join(t.Context(), room, bob, names([]*host{a.host}), nil) }()
	b.wait("bob to be let in", func() bool { return b.letIn(room, bob) })
	if err := b.Leave(t.Context(), room, bob, ""); err != nil {
		t.Fatal(err)
	}
	if err := <-joined; err == nil {
		t.Error("joined a room that was left")
	}
	if len(b.outbound(a.server)) == 0 { // before the join: what it overtakes may go at once
		t.Fatal("nothing waits: the test does not test")
	}
	if late {
		<-asked
	}
	b.join(room, bob, c.host)
	open.Store(true)
	close(opened)
	b.waitUntil("the queue to be empty", func() bool { return len(b.outbound(a.server)) == 0 })
	b.waitUntil("both to have the same state", func() bool {
		here, err := b.Rooms.CurrentState(room)
		there, failed := a.Rooms.CurrentState(room)
		return errors.Join(err, failed) == nil && here.Root() == there.Root()
	})
	if is := a.membership(room, bob); is != "join" {
		t.Errorf("bob: %s", is)
	}
}
