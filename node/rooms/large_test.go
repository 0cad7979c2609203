package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// largest makes a message like e on those parents, as large as an event may be.
func (s *server) largest(e *eventgraph.Event, what string, parents ...eventgraph.EventID) *eventgraph.Event {
	s.t.Helper()
	const limit = 65536 // CS API, Size limits
	room := limit - len(s.on(e, what, parents...).Raw())
	e = s.on(e, what+strings.Repeat("x", room), parents...)
	if len(e.Raw()) != limit {
		s.t.Fatalf("an event of %d bytes", len(e.Raw()))
	}
	return e
}

// rowOfOutliers gives a a row of the largest messages of b, on what a holds, as outliers, and returns them.
func rowOfOutliers(a, b *server, room eventgraph.RoomID, bob eventgraph.UserID, n int) (row []*eventgraph.Event, message *eventgraph.Event) {
	a.t.Helper()
	under := a.record(room).Forward
	message = b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: under})
	for i := range n {
		e := b.largest(message, fmt.Sprint(i), under...)
		a.accept(e, Basis{Kind: Nothing, Origin: b.Server()}, store.Outlier)
		row, under = append(row, e), []eventgraph.EventID{e.ID()}
	}
	return row, message
}

// wantRow: the events have their place, one after the other.
func (s *server) wantRow(row []*eventgraph.Event) {
	s.t.Helper()
	last := int64(0)
	for i, e := range row {
		held := s.event(e.ID())
		if held.Verdict != store.Accepted || held.Position == 0 || held.Order <= last {
			s.t.Fatalf("event %d of %d: verdict %d, position %d, order %d after %d", i, len(row), held.Verdict, held.Position, held.Order, last)
		}
		last = held.Order
	}
}

// An event on many outliers, each as large as may be, gets its place with them though they are too much for one commit.
func TestAttackEventOnLargeOutliers(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	row, message := rowOfOutliers(a, b, room, bob, 40)
	top := b.on(message, "on top", row[len(row)-1].ID())
	r := a.accept(top, Basis{Origin: b.Server()}, store.Accepted)
	a.wantRow(append(row, top))
	if got := a.record(room).Forward; !slices.Equal(got, []eventgraph.EventID{top.ID()}) || r.Position != a.event(top.ID()).Position {
		t.Errorf("extremities %v, position %d", got, r.Position)
	}
	a.message(room, alice, "on all of it")
}

// Nobody lies: many join while d is away. d sees something first that rests on the last of these joins, which it holds as outliers then.
func TestEventOnManyJoins(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	d, _ := doraIn(a, b, room, alice)
	const joins = 150 // with long names; with short ones some 900 are as much
	for i := range joins {
		who := a.user(fmt.Sprint("user", i))
		a.setState(room, who, "m.room.member", string(who), `{"membership":"join","displayname":"`+strings.Repeat("long ", 2000)+`"}`)
	}
	id := a.message(room, alice, "after all")
	e := a.event(id)
	state, chain := a.stateAndChain(room, e.StateBefore)
	for some := range slices.Chunk(unique(append(chain, state...)), 50) {
		if _, err := d.AcceptAll(t.Context(), some, Basis{Kind: Nothing, Origin: a.Server()}); err != nil {
			t.Fatal(err)
		}
	}
	d.accept(e.Event, Basis{Origin: a.Server()}, store.Accepted)
	d.sameState(a, room)
	d.wantMember(room, a.user(fmt.Sprint("user", joins-1)), "join")
}

// What shares a call or a run with an event on many outliers is taken in and sent as if that were not there.
func TestAttackCompanionsOfMuch(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	old := a.record(room).Forward
	row, message := rowOfOutliers(a, b, room, bob, 30)
	top := b.on(message, "on top", row[len(row)-1].ID())
	honest := b.on(message, "honest", old...)
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			_, err := a.Send(t.Context(), Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text(fmt.Sprint("hello", i))})
			if err != nil {
				t.Error(err)
			}
		})
	}
	outcomes, err := a.AcceptAll(t.Context(), []*eventgraph.Event{honest, top}, Basis{Origin: b.Server()})
	wait.Wait()
	if err != nil || len(outcomes) != 2 || outcomes[0].Err != nil || outcomes[1].Err != nil {
		t.Fatalf("%+v, %v", outcomes, err)
	}
	a.accept(top, Basis{Origin: b.Server()}, store.Accepted)
	a.accept(honest, Basis{Origin: b.Server()}, store.Accepted)
}

// A device that dies between the commits of one event goes on where it was, as often as it dies, and comes to what another has that did not.
func TestDeathBetweenTheCommitsOfAnEvent(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	twin := newServer(t, "twin", a, b)
	twin.join(a, room, twin.user("theo"))
	b.accept(a.event(a.record(room).Forward[0]).Event, Basis{Origin: a.Server()}, store.Accepted)
	at := b.store.Position()
	for i := range 40 {
		if i%5 == 4 {
			b.setState(room, bob, "m.room.member", string(bob), fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, i))
		} else {
			b.message(room, bob, strings.Repeat(fmt.Sprintf("%02d", i), 30_000))
		}
	}
	top := b.event(b.message(room, bob, "on top")).Event
	var row []*eventgraph.Event
	for _, c := range b.changesAfter(at) {
		if c.Kind == store.ChangeEvent && c.Event != top.ID() {
			row = append(row, pdu(t, b.event(c.Event).Event))
		}
	}
	for _, s := range []*server{a, twin} {
		for _, e := range row {
			s.accept(e, Basis{Kind: Nothing, Origin: b.Server()}, store.Outlier)
		}
	}
	waiting := func() (n int) {
		for _, e := range row {
			if a.event(e.ID()).Verdict == store.Outlier {
				n++
			}
		}
		return n
	}
	// The clock is read once for each event that gets its place.
	deaths, left := 0, waiting()
	for clock := a.Rooms.now; ; {
		reads := 0
		a.Rooms.now = func() time.Time {
			if reads++; reads == 15 {
				panic("no battery")
			}
			return clock()
		}
		died := func() (died bool) {
			defer func() { died = recover() != nil }()
			a.accept(top, Basis{Origin: b.Server()}, store.Accepted)
			return false
		}()
		a.Rooms.now = clock
		if !died {
			break
		}
		a.restarted()
		if now := waiting(); now >= left {
			t.Fatalf("%d have no place, as before", now)
		} else if left = now; left == 0 {
			t.Fatal("dies though nothing is left to do")
		}
		if _, held := a.has(top.ID()); held {
			t.Fatal("the event is held before what it rests on has its place")
		}
		a.checkTips(room)
		deaths++
	}
	if deaths < 2 {
		t.Fatalf("died %d times: the test does not test", deaths)
	}
	twin.accept(top, Basis{Origin: b.Server()}, store.Accepted)
	a.wantRow(append(row, top))
	a.sameState(twin, room)
	a.sameState(b, room)
	a.message(room, alice, "on all of it")
}

// Where an event comes for which many of the largest have waited, and with it, it is taken in at once: nothing that the bounds let one event carry is
// too much for a commit.
func TestAttackLargestEventsCarried(t *testing.T) {
	t.Parallel()
	a, b, _, bob, room := shared(t, "12")
	old := a.record(room).Forward
	state, _ := a.stateAndChain(room, a.record(room).State)
	message := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
	target := b.largest(message, "target", old...)
	// Redactions of what is not here yet, each in the timeline's reach.
	redacts := b.lie(a, redaction(room, bob, target.ID()), claim{ts: b.now, parents: old})
	full := func(i int) *eventgraph.Event {
		content, _ := json.Marshal(map[string]string{"redacts": string(target.ID()), "reason": fmt.Sprint(i) + strings.Repeat("x", 64_000)})
		e, err := eventgraph.Build(redacts.Version(), eventgraph.Draft{
			RoomID: room, Type: redacts.Type(), Sender: bob, Content: content, PrevEvents: a.record(room).Forward,
			AuthEvents: redacts.AuthEvents(), Depth: redacts.Depth(), OriginServerTS: redacts.OriginServerTS(),
		}, b.key)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for i := range 40 {
		a.accept(full(i), Basis{Origin: b.Server()}, store.Accepted)
	}
	// Events on a claim that wait for it, too.
	var across []*eventgraph.Event
	for i := range 20 {
		e := b.largest(message, fmt.Sprint("across", i), target.ID())
		a.accept(e, Basis{Kind: Claimed, State: ids(state), Origin: b.Server()}, store.Accepted)
		across = append(across, e)
	}
	// It comes after as much as a run may have before it.
	var run []*eventgraph.Event
	for i := range 7 {
		run = append(run, b.largest(message, fmt.Sprint("before", i), old...))
	}
	at := a.store.Position()
	err := func() error {
		outcomes, err := a.acceptRun(t.Context(), append(run, target), make([]error, 8), Basis{Origin: b.Server()}, nil)
		for _, o := range outcomes {
			err = errors.Join(err, o.Err)
		}
		return err
	}()
	if err != nil {
		t.Fatal(err)
	}
	if a.event(target.ID()).RedactedBy == "" {
		t.Error("not redacted")
	}
	shown := 0
	for _, c := range a.changesAfter(at) {
		if c.Kind == store.ChangeEvent && a.event(c.Event).Type() == "m.room.redaction" {
			shown++
		}
	}
	proven := 0
	for _, e := range across {
		if !a.event(e.ID()).Gap {
			proven++
		}
	}
	if shown == 0 && proven == 0 || shown+proven > 2 {
		t.Errorf("%d redactions shown, %d claims found true; both count against one bound of two of the largest", shown, proven)
	}
	err = a.store.View(func(r *store.Reader) error {
		waiting, err := r.WaitingRedactions(target.ID())
		if len(waiting) > 0 {
			t.Errorf("%d redactions wait still", len(waiting))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if left := a.record(room).Backward; len(left) != 0 {
		t.Errorf("backward extremities %v", left)
	}
}

// What alone is too much for a commit, whatever made it so, is refused for good; the rest of its call, and what others write meanwhile, is not.
func TestTooMuchIsRefusedAlone(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	one := a.record(room).Forward
	two := []eventgraph.EventID{a.setState(room, alice, "m.room.topic", "", `{"topic":"x"}`)}
	a.setState(room, alice, "m.room.name", "", `{"name":"x"}`)
	message := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: one})
	poison := b.on(message, "poison", append(one, two...)...)
	events := []*eventgraph.Event{b.on(message, "first", one...), poison, b.on(message, "last", two...), b.on(message, "on it", poison.ID())}

	// The resolution that poison asks for has a node that no write can take.
	rm, err := a.enter(room)
	if err != nil {
		t.Fatal(err)
	}
	defer a.leave(rm)
	began, others := make(chan struct{}), make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		err := a.inTurn(context.Background(), room, func(run *run) error {
			rm.resolved = nil
			root, err := run.merge([]eventgraph.Hash{a.event(one[0]).StateAfter, a.event(two[0]).StateAfter})
			for key := range rm.resolved {
				rm.resolved[key] = resolution{root, map[eventgraph.Hash][]byte{{1}: make([]byte, 2<<20)}}
			}
			close(began)
			<-others
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-began
	var outcomes []Outcome
	wait.Go(func() {
		var err error
		if outcomes, err = a.AcceptAll(context.Background(), events, Basis{Origin: b.Server()}); err != nil {
			t.Error(err)
		}
	})
	for i := range 5 {
		wait.Go(func() {
			_, err := a.Send(context.Background(), Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text(fmt.Sprint("hello", i))})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for queued := 0; queued < 6; { // all wait for their turn, and share a run
		rm.mu.Lock()
		queued = len(rm.waiting)
		rm.mu.Unlock()
		runtime.Gosched()
	}
	close(others)
	wait.Wait()
	if len(outcomes) != len(events) {
		t.Fatalf("%d outcomes", len(outcomes))
	}
	for i, o := range outcomes {
		var missing *MissingError
		switch {
		case i == 1:
			wantRefusal(t, o.Err, "M_TOO_LARGE")
		case i == 3:
			if !errors.As(o.Err, &missing) || !slices.Equal(missing.Events, []eventgraph.EventID{poison.ID()}) {
				t.Errorf("what rests on it: %v", o.Err)
			}
		case o.Err != nil || o.Verdict != store.Accepted:
			t.Errorf("event %d: %+v", i, o)
		}
	}
}
