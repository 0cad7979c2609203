package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const segmentRoom = eventgraph.RoomID("!said:example.org")

// saidEvent is an event of segmentRoom at an order; it is not signed. Its ID is that of its number.
func saidEvent(n int, order int64) (*StoredEvent, error) {
	raw := fmt.Sprintf(`{"auth_events":[],"content":{"body":"word%d","msgtype":"m.text"},"depth":1,"hashes":{"sha256":"x"},"origin_server_ts":1,`+
		`"prev_events":[],"room_id":%q,"sender":"@a:example.org","type":"m.room.message"}`, n, segmentRoom)
	e, err := eventgraph.LoadEvent("11", eventgraph.EventID(fmt.Sprintf("$%043d", n)), []byte(raw))
	return &StoredEvent{Event: e, Verdict: Accepted, Order: order}, err
}

func said(t testing.TB, n int, order int64) *StoredEvent {
	t.Helper()
	e, err := saidEvent(n, order)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sayAll puts events numbered from first on, at the orders.
func sayAll(t testing.TB, s *Store, first int, orders ...int64) {
	t.Helper()
	for i := 0; i < len(orders); i += 200 {
		mustUpdate(t, s, func(tx *Tx) error {
			for j := i; j < min(i+200, len(orders)); j++ {
				if err := tx.PutEvent(said(t, first+j, orders[j])); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// ordersFrom are n orders from low on, step apart.
func ordersFrom(low int64, n int, step int64) (orders []int64) {
	for i := range n {
		orders = append(orders, low+int64(i)*step)
	}
	return orders
}

// index makes all segments that segmentRoom lacks; the index of each names the events in it. It returns how many it made.
func index(t testing.TB, s *Store) (made int) {
	t.Helper()
	for from := int64(math.MaxInt64); ; {
		stretch, put := indexNext(t, s, from)
		if stretch == nil {
			return made
		}
		if !put {
			t.Fatalf("a stretch of what has not changed was refused: %+v", stretch)
		}
		made, from = made+1, stretch.Low-1
	}
}

func indexNext(t testing.TB, s *Store, from int64) (stretch *Stretch, put bool) {
	t.Helper()
	stretch, put, err := makeSegment(s, from)
	if err != nil {
		t.Fatal(err)
	}
	return stretch, put
}

func makeSegment(s *Store, from int64) (stretch *Stretch, put bool, err error) {
	var bodies []string
	err = s.View(func(r *Reader) (err error) {
		if stretch, _, err = r.NextStretch(segmentRoom, from); stretch == nil {
			return err
		}
		_, err = r.Said(stretch, func(e *StoredEvent) (bool, error) {
			bodies = append(bodies, fmt.Sprintf("%d:%s", e.Order, e.Content()))
			return true, nil
		})
		return err
	})
	if err != nil || stretch == nil {
		return nil, false, err
	}
	_, err = s.Update(context.Background(), func(tx *Tx) (err error) {
		put, err = tx.PutSegment(stretch, []byte(strings.Join(bodies, "\n")))
		return err
	})
	return stretch, put, err
}

// checkSegments compares each segment with the timeline: what is in it is what is there now, no two overlap. It returns them as "low..high/rows", from
// the oldest on.
func checkSegments(t testing.TB, s *Store) (segments []string) {
	t.Helper()
	mustView(t, s, func(r *Reader) error {
		above := int64(math.MaxInt64)
		return r.Segments(segmentRoom, math.MaxInt64, func(seg *Segment) (bool, error) {
			if seg.Low > seg.High || seg.High >= above {
				t.Errorf("segment %d..%d below %d", seg.Low, seg.High, above)
			}
			above = seg.Low
			var bodies []string
			rows := 0
			err := r.Ordered(segmentRoom, seg.Low, func(order int64, id eventgraph.EventID, purged bool) (bool, error) {
				if order > seg.High {
					return false, nil
				}
				rows++
				e, err := r.At(segmentRoom, order)
				if errors.Is(err, ErrNotFound) {
					return true, nil // purged, or not accepted
				}
				if err == nil {
					bodies = append(bodies, fmt.Sprintf("%d:%s", order, e.Content()))
				}
				return true, err
			})
			slices.Reverse(bodies)
			if want := strings.Join(bodies, "\n"); string(seg.Index) != want || rows != seg.Rows {
				t.Errorf("segment %d..%d of %d events is not true: %d events, the index has %d bytes, want %d", seg.Low, seg.High, seg.Rows, rows, len(seg.Index), len(want))
			}
			segments = append(segments, fmt.Sprintf("%d..%d/%d", seg.Low, seg.High, seg.Rows))
			return true, err
		})
	})
	slices.Reverse(segments)
	return segments
}

func wantSegments(t testing.TB, s *Store, want ...string) {
	t.Helper()
	if got := checkSegments(t, s); !slices.Equal(got, want) {
		t.Errorf("segments %v, want %v", got, want)
	}
}

// Segments grow with the room: a quarter at a time, until they are full; history that comes below makes its own.
func TestSegmentsGrow(t *testing.T) {
	t.Parallel()
	s := open(t)
	sayAll(t, s, 0, ordersFrom(1, segmentAfter-1, 1)...)
	if made := index(t, s); made != 0 {
		t.Errorf("%d segments of few events", made)
	}
	sayAll(t, s, 1000, segmentAfter)
	index(t, s)
	wantSegments(t, s, "1..256/256")
	sayAll(t, s, 2000, ordersFrom(257, 300, 1)...)
	index(t, s)
	wantSegments(t, s, "1..556/556")
	sayAll(t, s, 3000, ordersFrom(557, 600, 1)...) // together more than a segment
	index(t, s)
	wantSegments(t, s, "1..556/556", "557..1156/600")
	sayAll(t, s, 5000, ordersFrom(1157, 3000, 1)...) // at once: the newest first, the rest in one
	index(t, s)
	wantSegments(t, s, "1..556/556", "557..1156/600", "1157..2108/952", "2109..3132/1024", "3133..4156/1024")
	const spacing = 1 << 36
	sayAll(t, s, 9000, ordersFrom(-300*spacing, 300, spacing)...)
	index(t, s)
	wantSegments(t, s, fmt.Sprintf("%d..556/856", -300*spacing), "557..1156/600", "1157..2108/952", "2109..3132/1024", "3133..4156/1024")
}

// Whatever is written into a segment's stretch deletes it, in the same commit, and nothing else does.
func TestSegmentsAreNeverStale(t *testing.T) {
	t.Parallel()
	const first, second = "10..6000/600", "6010..12000/600"
	redacted := said(t, 17, 180)
	redacted.RedactedBy, redacted.Event = "$x", redacted.RedactKeepingRules()
	purged := said(t, 18, 190)
	purged.Purged, purged.Event = true, purged.Redact()
	outlier := said(t, 9000, 0)
	outlier.Verdict = Outlier
	for _, c := range []struct {
		name string
		put  *StoredEvent
		want []string
	}{
		{"new", said(t, 5000, 20_000), []string{first, second}},
		{"older than all", said(t, 5001, 5), []string{first, second}},
		{"between two segments", said(t, 5001, 6005), []string{first, second}},
		{"without a place", outlier, []string{first, second}},
		{"redacted", redacted, []string{second}},
		{"purged", purged, []string{second}},
		{"a right copy", said(t, 19, 200), []string{second}},
		{"the oldest of a segment", said(t, 0, 10), []string{second}},
		{"the newest of a segment", said(t, 599, 6000), []string{second}},
		{"the oldest of the other", said(t, 600, 6010), []string{first}},
		{"between two events", said(t, 5002, 6155), []string{first}},
		{"it gets another place", said(t, 20, 20_000), []string{second}},
		{"it goes to the other", said(t, 20, 7005), nil},
		{"it gets a place", said(t, 8000, 6165), []string{first}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			unplaced := said(t, 8000, 0)
			unplaced.Verdict = Outlier
			mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(unplaced) })
			sayAll(t, s, 0, ordersFrom(10, 600, 10)...)
			index(t, s)
			sayAll(t, s, 600, ordersFrom(6010, 600, 10)...)
			index(t, s)
			wantSegments(t, s, first, second)
			mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(c.put) })
			wantSegments(t, s, c.want...)
			index(t, s)
			if got := checkSegments(t, s); len(got) != 2 && c.want != nil {
				t.Errorf("made anew: %v", got)
			}
		})
	}
}

// What was written while a segment was made, or in the same group, keeps it from being written.
func TestSegmentOfWhatHasChanged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		put  *StoredEvent
		want bool
	}{
		{"new", said(t, 900, 3010), true},
		{"older than all", said(t, 901, 5), true},
		{"the oldest again", said(t, 0, 10), false},
		{"again", said(t, 1, 20), false},
		{"the newest again", said(t, 299, 3000), false},
		{"between", said(t, 902, 25), false},
		{"it went elsewhere", said(t, 40, -5), false},
	} {
		for _, together := range []bool{false, true} {
			s := open(t)
			sayAll(t, s, 0, ordersFrom(10, 300, 10)...)
			var stretch *Stretch
			mustView(t, s, func(r *Reader) (err error) { stretch, _, err = r.NextStretch(segmentRoom, math.MaxInt64); return err })
			if !together {
				mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(c.put) })
			}
			mustUpdate(t, s, func(tx *Tx) error {
				if together {
					if err := tx.PutEvent(c.put); err != nil {
						return err
					}
				}
				put, err := tx.PutSegment(stretch, nil)
				if put != c.want {
					t.Errorf("%s, in one commit %v: written is %v", c.name, together, put)
				}
				return err
			})
		}
	}
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error {
		if _, err := tx.PutSegment(&Stretch{Room: segmentRoom}, make([]byte, MaxSegment+1)); err == nil {
			t.Error("a segment of any size is written")
		}
		return nil
	})
}

// What a function has deleted or written that fails is as before, for the top that is kept in memory, too.
func TestSegmentsAfterFailure(t *testing.T) {
	t.Parallel()
	s := open(t)
	sayAll(t, s, 0, ordersFrom(1, 300, 1)...)
	index(t, s)
	boom := errors.New("boom")
	for range 2 {
		_, err := s.Update(context.Background(), func(tx *Tx) error {
			if err := tx.PutEvent(said(t, 7, 8)); err != nil {
				return err
			}
			tx.s.indexing.spans.Purge() // as if many rooms had come between
			return errors.Join(tx.PutEvent(said(t, 8, 9)), boom)
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		wantSegments(t, s, "1..300/300")
	}
	e := said(t, 9, 10)
	e.RedactedBy, e.Event = "$x", e.RedactKeepingRules()
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(e) })
	wantSegments(t, s)
}

// Events above all segments, or below, cost no look at them, not even after a look at none: it is known where segments are.
func TestNewEventsReadNoSegments(t *testing.T) {
	t.Parallel()
	s := open(t)
	known := func(want span) {
		t.Helper()
		mustUpdate(t, s, func(tx *Tx) error {
			got, err := tx.segmentSpan(segmentRoom)
			if got != want {
				t.Errorf("segments are known between %v, want %v", got, want)
			}
			return err
		})
	}
	sayAll(t, s, 0, ordersFrom(1, 300, 1)...)
	known(noSpan)
	index(t, s)
	known(noSpan.with(1, 300))
	sayAll(t, s, 1000, ordersFrom(301, 300, 1)...)
	sayAll(t, s, 2000, ordersFrom(-3000, 300, 10)...)
	index(t, s)
	known(noSpan.with(-3000, 600))
	wantSegments(t, s, "-3000..-10/300", "1..600/600")
	sayAll(t, s, 3000, ordersFrom(601, 300, 1)...)
	index(t, s)
	wantSegments(t, s, "-3000..-10/300", "1..900/900")
	mustUpdate(t, s, func(tx *Tx) error { tx.s.indexing.spans.Purge(); return nil })
	known(noSpan.with(-3000, 900))
	// Nothing that could be read says where segments are any more.
	mustUpdate(t, s, func(tx *Tx) error { return tx.deletePrefix(segmentPrefix(segmentRoom)) })
	known(noSpan.with(-3000, 900))
}

// Rooms are named when they have many events without a segment, once.
func TestUnindexed(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	named := func() string {
		rooms, err := s.Unindexed(ctx)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(rooms)
	}
	const room = "[" + string(segmentRoom) + "]"
	sayAll(t, s, 0, ordersFrom(1, segmentAfter, 1)...)
	if got := named(); got != room {
		t.Error(got)
	}
	index(t, s)
	sayAll(t, s, 1000, ordersFrom(1000, segmentAfter-10, 1)...)
	s.LeftUnindexed(segmentRoom, 10)
	if got := named(); got != room {
		t.Error("after what was left: ", got)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(said(t, 3, 4)) }) // within a segment
	if got := named(); got != room {
		t.Error("after a change: ", got)
	}
	sayAll(t, s, 5000, 5000)
	cancel()
	if got := named(); got != context.Canceled.Error() {
		t.Error(got)
	}
}

// Writers, purges and indexers at once: whatever a reader sees of segments is true.
func TestSegmentsBesideWriters(t *testing.T) {
	t.Parallel()
	s := open(t)
	sayAll(t, s, 0, ordersFrom(0, 2000, 100)...)
	var wg sync.WaitGroup
	var refused atomic.Int64
	for w := range 3 {
		wg.Go(func() {
			for i := range 60 {
				switch w {
				case 0: // again, and between
					sayAll(t, s, i*33, int64(i*33)*100)
					sayAll(t, s, 10_000+i, int64(i)*3300+1)
				case 1:
					sayAll(t, s, 20_000+i, int64(200_000+i))
				default:
					if stretch, put := indexNext(t, s, math.MaxInt64); stretch != nil && !put {
						refused.Add(1)
					}
					checkSegments(t, s)
				}
			}
		})
	}
	wg.Wait()
	index(t, s)
	if got := checkSegments(t, s); len(got) < 2 {
		t.Errorf("segments %v", got)
	}
	t.Logf("%d of 60 were refused, as events were written meanwhile", refused.Load())
}

// segmentWriter is the process that TestSegmentsAfterKill kills: it writes events, some again, and makes segments, and says when it has done both.
func segmentWriter(dir string) error {
	s, err := Open(dir, Options{small: true})
	if err != nil {
		return err
	}
	if s.Loss() != "" {
		return errors.New(s.Loss())
	}
	next := 0
	err = s.View(func(r *Reader) error {
		return r.Ordered(segmentRoom, math.MinInt64, func(int64, eventgraph.EventID, bool) (bool, error) { next++; return true, nil })
	})
	for ; err == nil; next += 100 {
		_, err = s.Update(context.Background(), func(tx *Tx) error {
			for _, n := range append([]int{next / 3, next / 7 * 5}, seq(next, 100)...) {
				e, err := saidEvent(n, int64(n)+1)
				if err := errors.Join(err, tx.PutEvent(e)); err != nil {
					return err
				}
			}
			return nil
		})
		var stretch *Stretch
		for from := int64(math.MaxInt64); err == nil; from = stretch.Low - 1 {
			if stretch, _, err = makeSegment(s, from); stretch == nil {
				break
			}
			fmt.Println("made")
		}
	}
	return err
}

func seq(from, n int) (numbers []int) {
	for i := range n {
		numbers = append(numbers, from+i)
	}
	return numbers
}

// TestSegmentsAfterKill kills a process that writes events and segments; whatever segments are there then are true.
func TestSegmentsAfterKill(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	seen := 0
	for i := range 5 {
		cmd := child("segments", dir)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for stop := 3 + 2*i; lines.Scan(); stop-- {
			if stop == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if errs.Len() > 0 {
			t.Fatal(errs.String())
		}
		s, err := Open(dir, Options{small: true})
		if err != nil {
			t.Fatal(err)
		}
		seen += len(checkSegments(t, s))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if seen == 0 {
		t.Error("no segments were made")
	}
}

func TestSegmentRecords(t *testing.T) {
	t.Parallel()
	s := open(t)
	mustUpdate(t, s, func(tx *Tx) error { return tx.put(segmentPrefix(segmentRoom).i64(5), []byte{0x80}) })
	mustView(t, s, func(r *Reader) error {
		if err := r.Segments(segmentRoom, 9, func(*Segment) (bool, error) { return true, nil }); !errors.Is(err, errCutOff) {
			t.Errorf("a record that is cut off: %v", err)
		}
		if _, err := r.At(segmentRoom, 5); !errors.Is(err, ErrNotFound) {
			t.Errorf("no event at that order: %v", err)
		}
		return nil
	})
}

// A store of schema 5 knew no segments; the next Open brings it up to date, and what does not know them does not open it any more.
func TestMigrateSegments(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s, err := Open(dir, Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.put(keySchema, []byte("5")) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, Options{small: true})
	mustView(t, s, func(r *Reader) error {
		v, err := r.get(keySchema)
		if n, _ := json.Number(v).Int64(); n < 6 {
			t.Errorf("schema %s", v)
		}
		return err
	})
}

// BenchmarkPutEvent is what an event costs the committer, without the disk: a new one; one at whose place there may be a segment.
func BenchmarkPutEvent(b *testing.B) {
	s := open(b)
	sayAll(b, s, 0, ordersFrom(1, 1000, 1)...)
	index(b, s)
	put := func(b *testing.B, order func(i int) int64) {
		events := make([]*StoredEvent, b.N)
		for i := range events {
			events[i] = said(b, 1_000_000+i, order(i))
		}
		b.ResetTimer()
		for i := 0; i < b.N; i += 100 {
			mustUpdate(b, s, func(tx *Tx) error {
				for _, e := range events[i:min(i+100, b.N)] {
					if err := tx.PutEvent(e); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	b.Run("new", func(b *testing.B) { put(b, func(i int) int64 { return int64(10_000 + i) }) })
	b.Run("old", func(b *testing.B) { put(b, func(i int) int64 { return int64(-10_000 - i) }) })
}
