package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func TestConcurrentSends(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	rooms := []eventgraph.RoomID{a.create("12", alice), a.create("12", alice)}
	const senders, each = 16, 20
	sent := make([][]eventgraph.EventID, senders)
	var wait sync.WaitGroup
	for i := range senders {
		wait.Go(func() {
			for n := range each {
				id, err := a.Send(context.Background(), Draft{
					Room: rooms[i%2], Sender: alice, Type: "m.room.message", Content: text(fmt.Sprint(i, n)),
				})
				if err != nil {
					t.Error(err)
					return
				}
				if v, held := a.has(id); !held || v != store.Accepted {
					t.Errorf("%s is answered but not held", id)
				}
				sent[i] = append(sent[i], id)
			}
		})
	}
	wait.Wait()
	for _, room := range rooms {
		if got := len(a.record(room).Forward); got != 1 {
			t.Errorf("%d forward extremities", got)
		}
		var timeline []eventgraph.EventID
		var parent eventgraph.EventID
		err := a.store.View(func(r *store.Reader) error {
			return r.Timeline(room, 1, false, func(e *store.StoredEvent) (bool, error) {
				if prev := e.PrevEvents(); parent != "" && !slices.Equal(prev, []eventgraph.EventID{parent}) {
					t.Errorf("event %d of the room is not on the one before", e.Order)
				}
				parent = e.ID()
				timeline = append(timeline, e.ID())
				return true, nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := 4 + senders*each/2; len(timeline) != want {
			t.Errorf("%d events in the room, want %d", len(timeline), want)
		}
		for i := range senders {
			if rooms[i%2] != room {
				continue
			}
			last := -1
			for _, id := range sent[i] {
				at := slices.Index(timeline, id)
				if at <= last {
					t.Errorf("events of sender %d are out of order", i)
				}
				last = at
			}
		}
	}
}

func TestTransactionIDIsSentOnce(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	d := Draft{
		Room: room, Sender: alice, Type: "m.room.message", Content: text("once"),
		Txn: &store.ClientTxn{User: alice, Device: "D", TxnID: "t1"},
	}
	ids := make([]eventgraph.EventID, 8)
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() {
			var err error
			if ids[i], err = a.Send(context.Background(), d); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if got := slices.Compact(ids); len(got) != 1 {
		t.Errorf("events %v, want one", got)
	}
	if got := a.event(ids[0]).SentBy; got == nil || *got != *d.Txn {
		t.Errorf("SentBy %v", got)
	}

	// In another room, or with another type, it is another request.
	elsewhere, otherType := d, d
	elsewhere.Room, otherType.Type = a.create("12", alice), "m.sticker"
	for _, other := range []Draft{elsewhere, otherType} {
		id, err := a.Send(context.Background(), other)
		if err != nil {
			t.Fatal(err)
		}
		if id == ids[0] {
			t.Errorf("%s in %s: the ID of the first message again", other.Type, other.Room)
		}
	}

	topic := a.setState(room, alice, "m.room.topic", "", `{ "topic": "same" }`)
	if again := a.setState(room, alice, "m.room.topic", "", `{"topic":"same"}`); again != topic {
		t.Error("the same state again made a new event")
	}
}

func TestFailedCommitIsDiscarded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	before, position := a.record(room), a.store.Position()
	root := before.State

	failure := errors.New("disk on fire")
	var lost eventgraph.EventID
	err := a.inTurn(context.Background(), room, func(run *run) (err error) {
		lost, err = run.send(Draft{Room: room, Sender: alice, Type: "m.room.name", StateKey: stateKey(""), Content: []byte(`{"name":"lost"}`)})
		run.put(&write{also: func(*store.Tx) error { return failure }})
		return err
	})
	if !errors.Is(err, failure) {
		t.Fatalf("got %v", err)
	}
	if _, held := a.has(lost); held || a.store.Position() != position {
		t.Error("something of a failed commit is on disk")
	}
	state, err := a.CurrentState(room)
	if err != nil || state.Root() != root {
		t.Errorf("state after a failed commit: %v", err)
	}
	next := a.message(room, alice, "next")
	if prev := a.event(next).PrevEvents(); !slices.Equal(prev, before.Forward) {
		t.Errorf("builds on %v, which is not on disk", prev)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "11")
	a.setState(room, alice, "m.room.topic", "", `{"topic":"x"}`)
	b.message(room, bob, "apart")
	again := New(Config{Store: a.store, Key: a.key, Now: a.Rooms.now})
	a.Rooms.Close()
	a.Rooms = again
	state, err := a.CurrentState(room)
	if err != nil || state.Root() != a.record(room).State {
		t.Errorf("state after a restart: %v", err)
	}
	a.accept(b.event(b.record(room).Forward[0]).Event, Basis{}, store.Accepted)
	merged := a.message(room, alice, "merged")
	if got := len(a.event(merged).PrevEvents()); got != 2 {
		t.Errorf("%d prev events, want 2", got)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	a.Close()
	if _, err := a.Send(context.Background(), Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("x")}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	began, end := make(chan struct{}), make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		err := a.inTurn(context.Background(), room, func(*run) error { close(began); <-end; return nil })
		if err != nil {
			t.Error(err)
		}
	})
	<-began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := a.Send(ctx, Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("x")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(end)
	wait.Wait()
	a.message(room, alice, "the room goes on")
}

func TestPanicLeavesTheRoomUsable(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = a.inTurn(context.Background(), room, func(*run) error { panic("defect") })
	}()
	a.message(room, alice, "the room goes on")
}

// An event whose consequences cannot be told, here because its state cites what is not held, leaves nothing behind: half of it would
// be an event that is shown and is no extremity.
func TestNoHalfAnEvent(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "11")
	levels := a.eventOfType(room, "m.room.power_levels")
	users, _ := json.Marshal(map[string]any{"users": map[string]int{string(alice): 100}, "ban": 60})
	a.setState(room, alice, "m.room.power_levels", "", string(users)) // b never gets this one
	topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"rests on it"}`)
	outlier := &store.StoredEvent{Event: pdu(t, a.event(topic).Event), Verdict: store.Outlier} // Accept would not have it
	_, err := b.store.Update(context.Background(), func(tx *store.Tx) error { return tx.PutEvent(outlier) })
	if err != nil {
		t.Fatal(err)
	}
	b.message(room, bob, "an extremity that is no state, to be merged with")
	before := b.record(room)
	state := []eventgraph.EventID{topic}
	err = b.StateAt(room, before.State).Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error {
		state = append(state, id)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e := a.forge(Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("on the topic")}, []eventgraph.EventID{topic},
		before.Create, levels, a.memberEvent(room, alice))
	err = b.inTurn(context.Background(), room, func(run *run) error {
		return run.accept(incoming{event: pdu(t, e), basis: Basis{Kind: Claimed, State: state}, join: true})
	})
	if err == nil {
		t.Fatal("accepted: the test does not test")
	}
	if _, held := b.has(e.ID()); held {
		t.Errorf("half of it is stored, after: %v", err)
	}
	if after := b.record(room); after.State != before.State || !slices.Equal(after.Forward, before.Forward) {
		t.Error("the room has changed")
	}
	b.message(room, bob, "still here")
}

// TestWhoIsWokenSeesTheCommit: who waits for a position finds the room as that commit left it, also before Send has returned.
func TestWhoIsWokenSeesTheCommit(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	for i := range 200 {
		before := a.store.Position()
		var wait sync.WaitGroup
		wait.Go(func() {
			if _, err := a.store.Wait(t.Context(), before); err != nil {
				t.Error(err)
				return
			}
			state, err := a.CurrentState(room)
			if err != nil {
				t.Error(err)
				return
			}
			if got, want := state.Root(), a.record(room).State; got != want {
				t.Errorf("change %d: the room's state is %x, the store has %x", i, got[:4], want[:4])
			}
		})
		a.setState(room, alice, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, i))
		wait.Wait()
		if t.Failed() {
			return
		}
	}
}

// TestRoomIsNeverOlder: who has seen a commit in the store is not shown the room as it was before, however many commits follow each other.
func TestRoomIsNeverOlder(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	done := make(chan struct{})
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				seen := a.record(room).NextOrder
				l, err := a.liveRoom(room)
				if err != nil || l.NextOrder < seen {
					t.Errorf("the room with %d after %d was stored (%v)", l.NextOrder, seen, err)
					return
				}
			}
		})
	}
	var senders sync.WaitGroup
	for range 3 {
		senders.Go(func() {
			for n := range 150 {
				if _, err := a.Send(context.Background(), Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text(fmt.Sprint(n))}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	senders.Wait()
	close(done)
	wait.Wait()
}
