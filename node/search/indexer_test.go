package search

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open("", store.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// event is one that is not signed, of a number, which gives its ID and order.
func event(t testing.TB, room eventgraph.RoomID, n int, eventType, content string) *store.StoredEvent {
	t.Helper()
	raw := fmt.Sprintf(`{"auth_events":[],"content":%s,"depth":1,"hashes":{"sha256":"x"},"origin_server_ts":1,"prev_events":[],"room_id":%q,"sender":"@a:example.org","type":%q}`,
		content, room, eventType)
	id := eventgraph.EventID(fmt.Sprintf("$%s%042d", string(room[1]), n))
	e, err := eventgraph.LoadEvent("11", id, []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return &store.StoredEvent{Event: e, Verdict: store.Accepted, Order: int64(n)}
}

func put(t testing.TB, s *store.Store, events ...*store.StoredEvent) {
	t.Helper()
	for batch := range slices.Chunk(events, 40) {
		_, err := s.Update(t.Context(), func(tx *store.Tx) error {
			for _, e := range batch {
				if err := tx.PutRoom(&store.Room{ID: e.RoomID(), Version: "11"}); err != nil {
					return err
				}
				if err := tx.PutEvent(e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// say puts n messages from a number on.
func say(t testing.TB, s *store.Store, room eventgraph.RoomID, first, n int) {
	t.Helper()
	var events []*store.StoredEvent
	for i := range n {
		events = append(events, event(t, room, first+i, "m.room.message", fmt.Sprintf(`{"body":"number %d"}`, first+i)))
	}
	put(t, s, events...)
}

// indexed is the segments of a room, from the newest on, as "low..high", with what is found in them.
func indexed(t testing.TB, s *store.Store, room eventgraph.RoomID, term string) (segments []string, found []int64) {
	t.Helper()
	err := s.View(func(r *store.Reader) error {
		return r.Segments(room, 1<<60, func(seg *store.Segment) (bool, error) {
			orders, err := Candidates(seg.Index, Words(term))
			segments, found = append(segments, fmt.Sprintf("%d..%d", seg.Low, seg.High)), append(found, orders...)
			return true, err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return segments, found
}

// What is said in messages, names and topics is indexed, and nothing else.
func TestIndex(t *testing.T) {
	t.Parallel()
	s := open(t)
	defer s.Close()
	say(t, s, "!a:x", 1, 300)
	redacted := event(t, "!a:x", 50, "m.room.message", `{"body":"secret"}`)
	redacted.RedactedBy = "$x"
	purged := event(t, "!a:x", 51, "m.room.message", `{"body":"secret"}`)
	purged.Purged = true
	refused := event(t, "!a:x", 52, "m.room.message", `{"body":"secret"}`)
	refused.Verdict = store.SoftFailed
	put(t, s, redacted, purged, refused,
		event(t, "!a:x", 301, "m.room.topic", `{"topic":"A Secret","body":"no"}`),
		event(t, "!a:x", 302, "m.room.name", `{"name":"secret"}`),
		event(t, "!a:x", 303, "m.room.encrypted", `{"body":"secret","ciphertext":"secret"}`),
		event(t, "!a:x", 304, "m.room.message", `{"body":["secret"]}`),
		event(t, "!a:x", 305, "m.room.member", `{"displayname":"secret"}`),
		event(t, "!a:x", 306, "m.room.message", `{"body":"no secrets"}`),
	)
	if err := NewIndexer(s, nil).Index(t.Context(), "!a:x"); err != nil {
		t.Fatal(err)
	}
	segments, found := indexed(t, s, "!a:x", "secret")
	if want := []int64{306, 302, 301}; !slices.Equal(found, want) || !slices.Equal(segments, []string{"1..306"}) {
		t.Errorf("in segments %v: %v, want %v", segments, found, want)
	}
	if _, found := indexed(t, s, "!a:x", "number 17"); fmt.Sprint(found) != "[179 178 177 176 175 174 173 172 171 170 17]" {
		t.Errorf("messages: %v", found)
	}
	// With the redaction's commit the word is in no segment.
	redacted = event(t, "!a:x", 17, "m.room.message", `{"body":"number 17"}`)
	redacted.RedactedBy = "$x"
	put(t, s, redacted)
	if segments, _ := indexed(t, s, "!a:x", "number"); len(segments) != 0 {
		t.Errorf("segments %v after a redaction", segments)
	}
	if err := NewIndexer(s, nil).Index(t.Context(), "!a:x"); err != nil {
		t.Fatal(err)
	}
	if _, found := indexed(t, s, "!a:x", "number 17"); fmt.Sprint(found) != "[179 178 177 176 175 174 173 172 171 170]" {
		t.Errorf("messages: %v", found)
	}
}

// Much text makes segments of fewer events, each within the bound.
func TestIndexOfMuchText(t *testing.T) {
	t.Parallel()
	s := open(t)
	defer s.Close()
	var events []*store.StoredEvent
	for i := range 300 {
		var words []string
		for j := range 700 {
			words = append(words, fmt.Sprintf("%x", (i*700+j)*7919))
		}
		events = append(events, event(t, "!a:x", i+1, "m.room.message", `{"body":"number `+strings.Join(words, " ")+`"}`))
	}
	put(t, s, events...)
	if err := NewIndexer(s, nil).Index(t.Context(), "!a:x"); err != nil {
		t.Fatal(err)
	}
	segments, found := indexed(t, s, "!a:x", "number")
	if len(segments) < 10 || len(found) != 300 {
		t.Errorf("%d events in segments %v", len(found), segments)
	}
}

// TestIndexerRuns: a run looks at all rooms some time after its start, then at those that get many events; it ends with its context, and while
// nothing happens it sleeps.
func TestIndexerRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t)
		defer s.Close()
		say(t, s, "!a:x", 1, 3000)
		say(t, s, "!b:x", 1, 100)
		say(t, s, "!c:x", 1, 400)
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() { defer close(ended); NewIndexer(s, nil).Run(ctx) }()
			return func() { cancel(); <-ended }
		}
		want := func(when string, a, b, c int) {
			t.Helper()
			for room, want := range map[eventgraph.RoomID]int{"!a:x": a, "!b:x": b, "!c:x": c} {
				if segments, _ := indexed(t, s, room, "number"); len(segments) != want {
					t.Errorf("%s, %s has segments %v, want %d", when, room, segments, want)
				}
			}
		}
		stop := run()
		time.Sleep(startAfter - time.Second)
		want("before its time", 0, 0, 0)
		stop()
		stop = run()
		time.Sleep(startAfter + settle + time.Second)
		want("at the start", 3, 0, 1)
		say(t, s, "!b:x", 101, 155)
		time.Sleep(time.Hour)
		want("with one too few", 3, 0, 1)
		say(t, s, "!b:x", 256, 1)
		time.Sleep(settle - time.Second)
		want("before it settles", 3, 0, 1)
		time.Sleep(2 * time.Second)
		want("with many", 3, 1, 1)
		redacted := event(t, "!a:x", 17, "m.room.message", `{"body":"number 17"}`)
		redacted.RedactedBy = "$x"
		put(t, s, redacted)
		want("after a redaction", 2, 1, 1)
		time.Sleep(settle + time.Second)
		want("a while after", 3, 1, 1)
		stop()
	})
}

// TestChangedWhileIndexed: what is redacted while its segment is made, which is then not written, is looked at again, though nothing new is said.
func TestChangedWhileIndexed(t *testing.T) {
	t.Parallel()
	s := open(t)
	defer s.Close()
	say(t, s, "!a:x", 1, 300)
	named, err := s.Unindexed(t.Context()) // as a run does before it looks
	if err != nil || !slices.Equal(named, []eventgraph.RoomID{"!a:x"}) {
		t.Fatalf("%v, %v", named, err)
	}
	var stretch *store.Stretch
	err = s.View(func(r *store.Reader) (err error) { stretch, _, err = r.NextStretch("!a:x", math.MaxInt64); return err })
	if err != nil {
		t.Fatal(err)
	}
	redacted := event(t, "!a:x", 17, "m.room.message", `{"body":"number 17"}`)
	redacted.RedactedBy = "$x"
	put(t, s, redacted)
	if _, err := NewIndexer(s, nil).make(t.Context(), stretch); err != nil {
		t.Fatal(err)
	}
	if segments, _ := indexed(t, s, "!a:x", "number"); len(segments) != 0 {
		t.Fatalf("segments %v of what has changed", segments)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if named, err = s.Unindexed(ctx); err != nil || !slices.Equal(named, []eventgraph.RoomID{"!a:x"}) {
		t.Errorf("to be looked at again: %v, %v", named, err)
	}
}

// BenchmarkLook looks at a room in which there is nothing to do, as each start does with each room: a short one, and one of 50,000 events.
func BenchmarkLook(b *testing.B) {
	s := open(b)
	defer s.Close()
	say(b, s, "!a:x", 1, 200)
	say(b, s, "!b:x", 1, 50_000)
	x := NewIndexer(s, nil)
	for events, room := range map[string]eventgraph.RoomID{"200": "!a:x", "50000": "!b:x"} {
		if err := x.Index(b.Context(), room); err != nil {
			b.Fatal(err)
		}
		b.Run(events, func(b *testing.B) {
			for b.Loop() {
				if err := x.Index(b.Context(), room); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
