package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/node/search"
	"github.com/plexus-p2p/plexus/store"
)

// longRoom is a room whose timeline is written into the store as it is: not sent, nor signed. Nobody may send to it.
type longRoom struct {
	t      testing.TB
	s      *testServer
	id     eventgraph.RoomID
	roots  []eventgraph.Hash // states that events can rest on
	newest int64             // order
	oldest int64
	rows   []*store.StoredEvent
	put    []*store.StoredEvent // to be written
}

func newLongRoom(t testing.TB, s *testServer, room eventgraph.RoomID) *longRoom {
	t.Helper()
	l := &longRoom{t: t, s: s, id: room, oldest: -1}
	l.view(func(r *store.Reader) error {
		now, err := r.Room(room)
		l.newest = now.NextOrder
		l.roots = []eventgraph.Hash{now.State}
		return err
	})
	return l
}

func (l *longRoom) view(f func(r *store.Reader) error) {
	l.t.Helper()
	if err := l.s.Store.View(f); err != nil {
		l.t.Fatal(err)
	}
}

// say adds an event at an order, by a user; flush writes it.
func (l *longRoom) say(order int64, root int, sender eventgraph.UserID, eventType, content string) *store.StoredEvent {
	l.t.Helper()
	raw := fmt.Sprintf(`{"auth_events":[],"content":%s,"depth":1,"hashes":{"sha256":"x"},"origin_server_ts":%d,"prev_events":[],"room_id":%q,"sender":%q,"type":%q}`,
		content, 1_800_000_000_000+order%1_000_000, l.id, sender, eventType)
	e, err := eventgraph.LoadEvent("12", eventgraph.EventID(fmt.Sprintf("$%s%033d", l.id[1:11], len(l.rows))), []byte(raw))
	if err != nil {
		l.t.Fatal(err)
	}
	row := &store.StoredEvent{Event: e, Verdict: store.Accepted, Order: order, StateBefore: l.roots[root], StateAfter: l.roots[root], RoomState: l.roots[root]}
	l.rows = append(l.rows, row)
	l.again(row)
	return row
}

// again has an event written again.
func (l *longRoom) again(e *store.StoredEvent) {
	if l.put = append(l.put, e); len(l.put) == 200 {
		l.flush()
	}
}

func (l *longRoom) flush() {
	l.t.Helper()
	_, err := l.s.Store.Update(l.t.Context(), func(tx *store.Tx) error {
		for _, e := range l.put {
			if err := tx.PutEvent(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.put = nil
}

func (l *longRoom) index() {
	l.t.Helper()
	if err := search.NewIndexer(l.s.Store, nil).Index(l.t.Context(), l.id); err != nil {
		l.t.Fatal(err)
	}
}

// live adds n messages of a's.
func (l *longRoom) live(sender eventgraph.UserID, n int, body func(i int) string) {
	l.t.Helper()
	for i := range n {
		l.newest++
		l.say(l.newest, 0, sender, "m.room.message", text(body(i)))
	}
	l.flush()
}

// asked is a search as it comes from a client.
func asked(t testing.TB, query string) *searchQuery {
	t.Helper()
	var s searchQuery
	if err := json.Unmarshal([]byte(query), &s); err != nil {
		t.Fatal(err)
	}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	return &s
}

// finds is what a search finds, with the index where there is one.
func (c client) finds(t testing.TB, query string) (all []found, highlights []string) {
	t.Helper()
	q := &request{Request: httptest.NewRequest("POST", "/", nil), user: c.user, device: c.device}
	err := c.s.Store.View(func(r *store.Reader) (err error) {
		all, highlights, err = c.s.find(q, r, asked(t, query))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, highlights
}

// scans is what looking at each event of a room finds.
func (c client) scans(t testing.TB, room eventgraph.RoomID, query string) (all []found, highlights []string) {
	t.Helper()
	s, v := asked(t, query), c.s.newViewer(c.user, c.device)
	err := c.s.Store.View(func(r *store.Reader) error {
		return r.Timeline(room, math.MaxInt64, true, func(e *store.StoredEvent) (bool, error) {
			shown, err := c.s.Rooms.ShownToUser(c.user, e)
			if err != nil || v.hides(r, e) {
				return true, err
			}
			rank, words := s.match(shown)
			if rank == 0 {
				return true, nil
			}
			see, err := c.s.Rooms.MaySeeUser(c.user, e)
			if see {
				all = append(all, found{e.ID(), room, e.Sender(), e.OriginServerTS(), rank})
				highlights = append(highlights, words...)
			}
			return true, err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(highlights)
	return all, slices.Compact(highlights)
}

// TestSearchFindsTheSame: whatever happens to a room, and whatever of it is indexed, a search finds what looking at each event finds: the same events,
// ranks, order and highlights; for who may see all, for who may not, and for who ignores somebody.
func TestSearchFindsTheSame(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	carol := eventgraph.UserID("@carol:" + string(s.key.Server))
	empty := ""
	room := alice.room(rooms.Draft{Type: "m.room.history_visibility", StateKey: &empty, Content: json.RawMessage(`{"history_visibility":"joined"}`)})
	before := newLongRoom(t, s, room).roots[0]
	bob.join(room)
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/m.ignored_user_list", `{"ignored_users":{"`+string(carol)+`":{}}}`)
	l := newLongRoom(t, s, room)
	l.roots = append(l.roots, before)

	r := rand.New(rand.NewPCG(7, 8))
	vocabulary := []string{"sea", "Season", "seasonal", "stars", "Start", "Österreich", "öl", "你好世界", "世界", "再见", "one", "two", "3rd", "a", "x" + strings.Repeat("y", 600)}
	body := func(int) string {
		words := make([]string, r.IntN(6))
		for i := range words {
			words[i] = vocabulary[min(r.IntN(len(vocabulary)), r.IntN(len(vocabulary)))]
		}
		return strings.Join(words, " ")
	}
	sender := func() eventgraph.UserID { return []eventgraph.UserID{alice.user, bob.user, carol}[r.IntN(3)] }
	steps := []func(){
		func() { // new ones
			for range 100 + r.IntN(200) {
				l.newest++
				switch r.IntN(12) {
				case 0:
					l.say(l.newest, 0, sender(), "m.room.encrypted", `{"ciphertext":"sea"}`)
				case 1:
					l.say(l.newest, 0, sender(), "m.room.topic", `{"topic":"`+body(0)+`"}`)
				case 2:
					of := l.rows[r.IntN(len(l.rows))]
					l.say(l.newest, 0, sender(), "m.room.message",
						fmt.Sprintf(`{"body":%q,"m.new_content":{"body":"sea"},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, "* "+body(0), of.ID()))
				case 3:
					l.say(l.newest, 0, sender(), "m.room.message", text(body(0))).Verdict = store.SoftFailed
				default:
					l.say(l.newest, r.IntN(2), sender(), "m.room.message", text(body(0)))
				}
			}
		},
		func() { // history
			for range 100 + r.IntN(300) {
				l.oldest -= 1 << 36
				l.say(l.oldest, r.IntN(2), sender(), "m.room.message", text(body(0)))
			}
		},
		func() { // between
			taken := map[int64]bool{}
			for _, row := range l.rows {
				taken[row.Order] = true
			}
			for range 1 + r.IntN(20) {
				if at := l.rows[r.IntN(len(l.rows))].Order - 1 - r.Int64N(1000); at < -1 && !taken[at] {
					taken[at] = true
					l.say(at, 0, sender(), "m.room.message", text(body(0)))
				}
			}
		},
		func() { // redactions, purges, right copies
			for range r.IntN(6) {
				row := l.rows[r.IntN(len(l.rows))]
				switch r.IntN(3) {
				case 0:
					row.RedactedBy, row.Event = "$x", row.RedactKeepingRules()
				case 1:
					row.Purged, row.Event = true, row.Redact()
				}
				l.again(row)
			}
		},
		func() { l.index() },
		func() { l.index() },
	}
	l.live(alice.user, 1200, body)
	l.index()
	found := 0
	same := func(query string) {
		t.Helper()
		for _, c := range []client{alice, bob} {
			all, highlights := c.finds(t, query)
			want, words := c.scans(t, room, query)
			if !slices.Equal(all, want) || !slices.Equal(highlights, append([]string{}, words...)) {
				t.Fatalf("%s finds %d with %s, want %d; highlights %q, want %q", c.user, len(all), query, len(want), highlights, words)
			}
			found += len(all)
		}
	}
	for range 8 {
		for range 3 {
			steps[r.IntN(len(steps))]()
			l.flush()
		}
		for range 2 {
			term := vocabulary[r.IntN(len(vocabulary))]
			if r.IntN(2) == 0 {
				term += " " + vocabulary[r.IntN(len(vocabulary))]
			}
			if runes := []rune(term); r.IntN(3) == 0 {
				term = string(runes[:1+r.IntN(len(runes))])
			}
			query := fmt.Sprintf(`{"search_term":%q,"order_by":%q}`, term, []string{"rank", "recent"}[r.IntN(2)])
			if r.IntN(4) == 0 {
				query = fmt.Sprintf(`{"search_term":%q,"keys":["content.topic"]}`, term)
			}
			same(query)
		}
	}
	l.index()
	for _, term := range []string{"世界", "好世", "世", "ÖST", "sea", "x" + strings.Repeat("y", 520), "x" + strings.Repeat("y", 601)} {
		same(fmt.Sprintf(`{"search_term":%q}`, term))
	}
	l.view(func(r *store.Reader) error {
		segments, bytes, rows, err := r.IndexSize(room)
		t.Logf("%d found; %d events, %d of them in %d segments of %d bytes", found, len(l.rows), rows, segments, bytes)
		if segments < 3 || rows < 1000 || found < 1000 {
			t.Error("hardly anything was searched for")
		}
		return err
	})
}

// Of a room that is longer than what a search reads, the index finds what was said long ago, and the bounds end what would take too long: the newest is
// found then.
func TestSearchBounds(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	l := newLongRoom(t, s, alice.room())
	l.live(alice.user, 1500, func(i int) string { return fmt.Sprintf("common %d", i) })
	l.index()
	l.live(alice.user, 200, func(i int) string { return fmt.Sprintf("common %d", 1500+i) })
	walk := func(term string, events, candidates, segments int) (n int, newest, oldest string) {
		t.Helper()
		l.view(func(r *store.Reader) error {
			w := &searchWalk{ctx: t.Context(), read: r, room: l.id, words: search.Words(term), events: events, candidates: candidates, segments: segments}
			err := w.walk(func(e *store.StoredEvent) error {
				if key, text := search.Said(e.Event); key != "" && slices.Contains(search.Words(text), w.words[0]) {
					oldest = text
					if n++; n == 1 {
						newest = text
					}
				}
				return nil
			})
			if w.events < 0 || w.candidates < 0 || w.segments < 0 {
				t.Errorf("more than was allowed: %+v", w)
			}
			return err
		})
		return n, newest, oldest
	}
	for _, c := range []struct {
		term                         string
		events, candidates, segments int
		want                         string
	}{
		{"common", 10_000, 10_000, 100, "1700 1699 0"},
		{"7", 10_000, 10_000, 100, "1 7 7"},
		{"7", 200, 1000, 100, "1 7 7"},
		{"common", 10_000, 300, 100, "500 1699 1200"},  // candidates
		{"common", 50, 10_000, 100, "1550 1699 0"},     // events without a segment, and on to what is old
		{"common", 10_000, 10_000, 1, "1224 1699 476"}, // segments
		{"7", 10_000, 10_000, 1, "0"},
		{"common", 10_000, 0, 100, "200 1699 1500"},
	} {
		n, newest, oldest := walk(c.term, c.events, c.candidates, c.segments)
		if got := fmt.Sprint(n, strings.TrimPrefix(newest, "common"), strings.TrimPrefix(oldest, "common")); got != c.want {
			t.Errorf("%q in %d, %d, %d: %s, want %s", c.term, c.events, c.candidates, c.segments, got, c.want)
		}
	}
	// A request that has ended ends the walk.
	q := &request{Request: httptest.NewRequest("POST", "/", nil), user: alice.user, device: alice.device}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	q.Request = q.WithContext(ctx)
	err := s.Store.View(func(r *store.Reader) error {
		_, _, err := s.find(q, r, asked(t, `{"search_term":"common"}`))
		return err
	})
	if err == nil {
		t.Error("a search goes on after its request")
	}
}

// The next page goes on behind the last result, whatever was said or redacted meanwhile.
func TestSearchPagesDoNotShift(t *testing.T) {
	t.Parallel()
	for order, want := range map[string]string{"recent": "8 7 6 5 4 3 2 1 0", "rank": "6 3 0 7 4 1 8 5 2"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, nil)
			alice := s.newClient("alice")
			room := alice.room()
			var ids []eventgraph.EventID
			for i := range 9 {
				s.advance(time.Millisecond)
				ids = append(ids, alice.say(room, fmt.Sprintf("page %d%s", i, strings.Repeat(" more", i%3))))
			}
			token := ""
			var all []string
			for page := range 4 {
				events, bodies := searched(alice.call(200, "POST", "/v3/search"+token,
					`{"search_categories":{"room_events":{"search_term":"page","order_by":"`+order+`","filter":{"limit":3}}}}`))
				for _, body := range bodies {
					all = append(all, strings.Fields(body)[1])
				}
				if events["count"] != 9.0 { // one more and one less, each time
					t.Errorf("page %d: count %v", page, events["count"])
				}
				next, _ := events["next_batch"].(string)
				if (next == "") != (len(bodies) < 3) {
					t.Errorf("page %d of %d: next_batch %q", page, len(bodies), next)
				}
				token = "?next_batch=" + next
				if page == 3 {
					break
				}
				// Something new stands above the pages, and the last that was shown goes.
				s.advance(time.Millisecond)
				alice.say(room, "page")
				last := map[string][]int{"recent": {6, 3, 0}, "rank": {0, 1, 2}}[order][page]
				alice.call(200, "PUT", fmt.Sprintf("/v3/rooms/%s/redact/%s/%d", room, ids[last], page), `{}`)
			}
			if got := strings.Join(all, " "); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			for _, token := range []string{"10", "x", "%20", "MSAy", "TmFOIDEgJHg"} { // the last: a rank that is no number
				alice.call(400, "POST", "/v3/search?next_batch="+token, `{"search_categories":{"room_events":{"search_term":"x"}}}`)
			}
		})
	}
}

// BenchmarkSearch searches a room of 200,000 messages of some twelve words for a word that is in few, one that is in many, one that is in nearly all
// and one that is in none, with the index and by looking at each event. Compare the figures of one run.
func BenchmarkSearch(b *testing.B) {
	const messages = 200_000
	s := newTestAPI(b, nil)
	alice := s.newClient("alice")
	l := newLongRoom(b, s, alice.room())
	r := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(r, 1.1, 4, 50_000)
	l.live(alice.user, messages, func(i int) string {
		words := make([]string, 4+r.IntN(16))
		for i := range words {
			words[i] = fmt.Sprintf("w%d", zipf.Uint64())
		}
		switch {
		case i%(messages/20) == 0:
			words = append(words, "rarely")
		case i%20 == 0:
			words = append(words, "commonly")
		}
		return strings.Join(words, " ")
	})
	l.rows = nil
	began := time.Now()
	l.index()
	made := time.Since(began)
	l.view(func(r *store.Reader) error {
		segments, bytes, rows, err := r.IndexSize(l.id)
		b.Logf("%d messages are in %d segments of %.1f bytes a message, made in %.1f µs each", rows, segments, float64(bytes)/float64(rows), made.Seconds()*1e6/float64(rows))
		return err
	})
	for _, term := range []string{"rarely", "commonly", "w1", "nowhere"} {
		query := fmt.Sprintf(`{"search_term":%q,"order_by":"recent"}`, term)
		b.Run(term+"/index", func(b *testing.B) {
			n := 0
			for b.Loop() {
				all, _ := alice.finds(b, query)
				n = len(all)
			}
			b.ReportMetric(float64(n), "found")
		})
		b.Run(term+"/scan", func(b *testing.B) {
			n := 0
			for b.Loop() {
				all, _ := alice.scans(b, l.id, query)
				n = len(all)
			}
			b.ReportMetric(float64(n), "found")
		})
	}
}

// What was redacted or purged is in the index no more once the request is answered, nor found; the rest is, by the index as before it was made.
func TestRedactedWordsLeaveTheIndex(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	var ids []eventgraph.EventID
	for i := range 300 {
		body := fmt.Sprintf("number %d", i)
		switch i {
		case 100:
			body = "a topsecret word"
		case 20:
			body = "an oldsecret word"
		}
		ids = append(ids, alice.say(room, body))
	}
	indexer := search.NewIndexer(s.Store, nil)
	inIndex := func(word string) (in, segments int) {
		t.Helper()
		if err := s.Store.View(func(r *store.Reader) error {
			return r.Segments(room, math.MaxInt64, func(seg *store.Segment) (bool, error) {
				segments++
				in += bytes.Count(seg.Index, []byte(word))
				return true, nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		return in, segments
	}
	finds := func(term string) int {
		t.Helper()
		events, _ := searched(alice.call(200, "POST", "/v3/search", `{"search_categories":{"room_events":{"search_term":"`+term+`"}}}`))
		return int(events["count"].(float64))
	}
	check := func(when string, word string, in, segments int) {
		t.Helper()
		if gotIn, gotSegments := inIndex(word); gotIn != in || gotSegments != segments {
			t.Errorf("%s: %q stands %d times in %d segments, want %d, %d", when, word, gotIn, gotSegments, in, segments)
		}
	}
	index := func() {
		t.Helper()
		if err := indexer.Index(t.Context(), room); err != nil {
			t.Fatal(err)
		}
	}
	index()
	check("at first", "topsecret", 1, 1)
	alice.call(200, "PUT", fmt.Sprintf("/v3/rooms/%s/redact/%s/1", room, ids[100]), `{}`)
	check("redacted", "topsecret", 0, 0)
	if n := finds("topsecret"); n != 0 {
		t.Errorf("%d redacted events are found", n)
	}
	index()
	check("made anew", "topsecret", 0, 1)
	check("made anew", "oldsecret", 1, 1)
	if n := finds("number 29"); n != 11 { // 29, and 290 to 299
		t.Errorf("%d events are found", n)
	}
	if _, err := s.Rooms.Purge(t.Context(), room, rooms.PurgeLimit{Event: ids[50]}, func(rooms.PurgeProgress) {}); err != nil {
		t.Fatal(err)
	}
	check("purged", "oldsecret", 0, 0)
	if n := finds("oldsecret"); n != 0 {
		t.Errorf("%d purged events are found", n)
	}
	index()
	check("made anew", "oldsecret", 0, 1)
	if n := finds("number 29"); n != 10 {
		t.Errorf("%d events are found", n)
	}
}
