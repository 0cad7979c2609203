package rooms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// purge purges all the way.
func (s *server) purge(room eventgraph.RoomID, limit PurgeLimit) PurgeProgress {
	s.t.Helper()
	done, err := s.Purge(context.Background(), room, limit, func(PurgeProgress) {})
	if err != nil {
		s.t.Fatal(err)
	}
	return done
}

// TestPurge: of a room with forks, redactions and relations all messages before one go, and nothing else. The room is the same room after it, also
// after a collection of trie nodes: events that rest on purged ones are taken in, and what was purged does not come back.
func TestPurge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newServer(t, "a")
	a.reopen(dir)
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create("12", alice, bob)
	b.join(a, room, bob)
	atA, atB := a.store.Position(), b.store.Position()
	var old, kept []eventgraph.EventID
	for i := range 5 { // apart, each time
		old = append(old, a.message(room, alice, fmt.Sprint("a secret ", i)), b.message(room, bob, fmt.Sprint("b secret ", i)))
		kept = append(kept, a.setState(room, alice, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, i)))
		kept = append(kept, b.setState(room, bob, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d of bob"}`, i)))
		atA, atB = a.give(b, room, atA), b.give(a, room, atB)
	}
	reply := a.send(Draft{Room: room, Sender: alice, Type: "m.room.message",
		Content: json.RawMessage(`{"body":"a secret reply","m.relates_to":{"rel_type":"m.thread","event_id":"` + string(old[0]) + `"}}`)})
	gone := a.send(redaction(room, alice, old[0]))
	topicGone := a.send(redaction(room, alice, kept[0]))
	old, kept = append(old, reply, gone), append(kept, topicGone)
	limit := a.message(room, alice, "not old")
	later := a.send(Draft{Room: room, Sender: alice, Type: "m.room.message",
		Content: json.RawMessage(`{"body":"x","m.relates_to":{"rel_type":"m.thread","event_id":"` + string(old[1]) + `"}}`)})
	kept = append(kept, limit, later)
	atA = a.give(b, room, atA)

	var shown, original []*eventgraph.Event
	for _, id := range kept {
		shown = append(shown, a.event(id).Event)
	}
	for _, id := range old {
		original = append(original, pdu(t, b.event(id).Event))
	}
	states, record := a.heldStates(room), a.record(room)
	if done := a.purge(room, PurgeLimit{Event: limit}); done.Purged != len(old) || done.Looked < len(old) {
		t.Errorf("%+v, want %d purged", done, len(old))
	}
	check := func() {
		t.Helper()
		for _, id := range old {
			e := a.event(id)
			if !e.Purged || bytes.Contains(e.Raw(), []byte("secret")) || e.SentBy != nil {
				t.Errorf("%s of type %s: purged %v: %s", id, e.Type(), e.Purged, e.Raw())
			}
			if v, held := a.has(id); v != store.Accepted || !held {
				t.Errorf("%s: verdict %d", id, v)
			}
			if see, err := a.MaySeeUser(alice, e); see || err != nil {
				t.Errorf("a client sees %s: %v", id, err)
			}
			if see, err := a.MaySeeServer(b.key.Server, e); see || err != nil {
				t.Errorf("a server sees %s: %v", id, err)
			}
		}
		for i, id := range kept {
			if e := a.event(id); e.Purged || !bytes.Equal(e.Raw(), shown[i].Raw()) {
				t.Errorf("%s of type %s has changed", id, e.Type())
			}
		}
		err := a.store.View(func(r *store.Reader) error {
			err := r.ThreadReplies(room, 1<<40, func(_ int64, root eventgraph.EventID) (bool, error) {
				if root != old[1] {
					t.Errorf("a purged reply stands in the thread of %s", root)
				}
				return true, nil
			})
			if err != nil {
				return err
			}
			return r.Timeline(room, -1<<40, false, func(e *store.StoredEvent) (bool, error) {
				if e.Purged {
					t.Errorf("%s is in the timeline", e.ID())
				}
				return true, nil
			})
		})
		if err != nil {
			t.Error(err)
		}
		now := a.record(room)
		if now.State != record.State || !slices.Equal(now.Forward, record.Forward) || !slices.Equal(now.Backward, record.Backward) || now.NextOrder != record.NextOrder {
			t.Errorf("the room has changed: %+v, was %+v", now, record)
		}
		if now.Purged != int64(len(old)) || now.PurgedTo != a.event(gone).Order || !now.Ends(a.event(gone).Order) || now.Ends(a.event(limit).Order) {
			t.Errorf("purged %d, to %d", now.Purged, now.PurgedTo)
		}
	}
	check()
	a.reopen(dir)
	if _, err := a.store.CollectTrieNodes(t.Context(), a.now); err != nil {
		t.Fatal(err)
	}
	a.reopen(dir)
	check()
	for root, entries := range a.heldStates(room) {
		if entries != states[root] {
			t.Errorf("state %x has %d entries, had %d", root[:4], entries, states[root])
		}
	}

	// Again there is nothing to do; and what comes again stays purged.
	if done := a.purge(room, PurgeLimit{Event: limit}); done.Purged != 0 {
		t.Errorf("purged twice: %+v", done)
	}
	for _, e := range original {
		if r, err := a.Accept(t.Context(), e, Basis{Origin: b.key.Server}); err != nil || !r.Already {
			t.Errorf("%+v %v", r, err)
		}
	}
	check()

	// Somebody builds on what was purged: all come to the same state.
	late := b.forge(Draft{Room: room, Sender: bob, Type: "m.room.name", StateKey: stateKey(""), Content: json.RawMessage(`{"name":"late"}`)}, old[2:4])
	for _, s := range []*server{a, b} {
		s.accept(pdu(t, late), Basis{Origin: b.key.Server}, store.Accepted)
	}
	a.message(room, alice, "after")
	a.give(b, room, atA)
	a.sameState(b, room)
	if got := a.current(room, "m.room.name", "").ID(); got != late.ID() {
		t.Errorf("the name is %s", got)
	}
}

// A time is that at which an event was sent, as its sender says, or came, whichever is earlier. The newest event stays, or there would be nothing to
// build on that can be shown.
func TestPurgeByTime(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	before := a.message(room, alice, "before")
	a.now = a.now.Add(time.Hour)
	when := a.now
	after := a.message(room, alice, "after")
	last := a.message(room, alice, "last")
	if done := a.purge(room, PurgeLimit{Time: when.UnixMilli()}); done.Purged != 1 || !a.event(before).Purged || a.event(after).Purged {
		t.Errorf("%+v", done)
	}
	if done := a.purge(room, PurgeLimit{Time: when.Add(24 * time.Hour).UnixMilli()}); done.Purged != 1 || !a.event(after).Purged || a.event(last).Purged {
		t.Errorf("%+v", done)
	}
	a.now = when.Add(50 * time.Hour)
	ahead := a.forge(Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("from the future")}, a.record(room).Forward)
	a.now = when.Add(49 * time.Hour)
	a.accept(ahead, Basis{}, store.Accepted)
	a.message(room, alice, "more")
	a.purge(room, PurgeLimit{Time: when.Add(49*time.Hour + time.Minute).UnixMilli()})
	if !a.event(ahead.ID()).Purged {
		t.Error("a time that has not come keeps a message")
	}

	_, err := a.Purge(t.Context(), room, PurgeLimit{Event: "$none"}, nil)
	wantRefusal(t, err, "M_NOT_FOUND")
	other := a.create("12", alice)
	_, err = a.Purge(t.Context(), other, PurgeLimit{Event: last}, nil)
	wantRefusal(t, err, "M_NOT_FOUND")
	if _, err := a.Purge(t.Context(), "!none", PurgeLimit{Time: 1}, nil); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
}

// TestPurgeGoesOn: a purge that is ended in the middle has done part of its work, and goes on when it is asked for again; others write to the room
// meanwhile.
func TestPurgeGoesOn(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	const messages = 3*purgeWrites + 7
	for i := range messages {
		a.message(room, alice, fmt.Sprint(i))
	}
	limit := a.message(room, alice, "limit")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	steps := 0
	done, err := a.Purge(ctx, room, PurgeLimit{Event: limit}, func(p PurgeProgress) {
		if steps++; steps == 2 {
			cancel()
		}
		a.message(room, alice, "meanwhile")
	})
	if !errors.Is(err, context.Canceled) || steps != 2 || done.Purged != 2*purgeWrites {
		t.Fatalf("%d steps, %+v, %v", steps, done, err)
	}
	if again := a.purge(room, PurgeLimit{Event: limit}); again.Purged != messages-done.Purged || a.record(room).Purged != messages {
		t.Errorf("%+v, then %+v; in all %d", done, again, a.record(room).Purged)
	}
}
