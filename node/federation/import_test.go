package federation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

func TestReadObject(t *testing.T) {
	t.Parallel()
	long := `"` + strings.Repeat("x", 2*maxStreamed) + `"`
	for name, c := range map[string]struct {
		in   string
		want string // elements of "a" and "b", or "" for an error
	}{
		"plain":              {`{"a":[1,{"x":[2]}],"b":["c"]}`, `a1 a{"x":[2]} b"c"`},
		"any order, spaces":  {" {\n\"b\" : [ ] , \"a\":[3]\t}\n ", `a3`},
		"others are skipped": {`{"z":{"a":[1,[{}]]},"a":[1],"y":null,"x":"a"}`, `a1`},
		"null is empty":      {`{"a":null,"b":[1]}`, `b1`},
		"long as a whole":    {`{"z":[` + long[:maxStreamed/2] + `",` + long[:maxStreamed/2] + `",` + long[:maxStreamed/2] + `"],"a":[1]}`, `a1`},
		"no object":          {`[1]`, ""},
		"twice":              {`{"a":[1],"a":[2]}`, ""},
		"no array":           {`{"a":{"x":1}}`, ""},
		"an element is long": {`{"a":[` + long + `]}`, ""},
		"a name is long":     {`{` + long + `:1}`, ""},
		"cut in an element":  {`{"a":[1,{"x"`, ""},
		"cut in a list":      {`{"a":[1`, ""},
		"cut before the end": {`{"a":[1]`, ""},
		"more after it":      {`{"a":[1]} 2`, ""},
		"nothing":            {``, ""},
		"bad JSON":           {`{"a":[01]}`, ""},
		"a comma too many":   {`{"a":[1,]}`, ""},
	} {
		var got []string
		err := readObject(strings.NewReader(c.in), 10*maxStreamed, func(name string, s *objectStream) error {
			if name != "a" && name != "b" {
				return nil
			}
			return s.array(func(raw json.RawMessage) error {
				got = append(got, name+string(raw))
				return nil
			})
		})
		if (err != nil) != (c.want == "") || err == nil && strings.Join(got, " ") != c.want {
			t.Errorf("%s: %.100q, %v", name, strings.Join(got, " "), err)
		}
	}
	endless := io.MultiReader(strings.NewReader(`{"a":[0`), repeated(",1"))
	n := 0
	err := readObject(endless, 100_000, func(_ string, s *objectStream) error {
		return s.array(func(json.RawMessage) error { n++; return nil })
	})
	if !errors.Is(err, errTooLong) || n < 40_000 || n > 50_000 {
		t.Errorf("an answer without end: %d elements, %v", n, err)
	}
}

// repeated is a text without end.
type repeated string

func (r repeated) Read(b []byte) (n int, err error) {
	for n+len(r) <= len(b) {
		n += copy(b[n:], r)
	}
	if n == 0 {
		n = copy(b, r[:1]) // a reader must give something
	}
	return n, nil
}

// peopled is a room of host a with members of as many servers, of which a holds the key documents, and of which none is connected.
func peopled(t *testing.T, a *memHost, version eventgraph.RoomVersion, members int) eventgraph.RoomID {
	t.Helper()
	room := a.create(version, "public", "shared")
	for i := range members {
		server, peer, identity, device := newKeys(fmt.Sprint(t.Name(), " member ", i))
		d := newDocument(t, server, peer, identity, device, time.Now())
		if _, err := a.Store.Update(t.Context(), func(tx *store.Tx) error { return tx.PutKeyDocument(d) }); err != nil {
			t.Fatal(err)
		}
		user := eventgraph.UserID("@member:" + string(server))
		proto, v, err := a.Rooms.Template(t.Context(), room, user, "join")
		if err != nil {
			t.Fatal(err)
		}
		e, err := eventgraph.Finish(v, proto, time.Now().UnixMilli(), device)
		if err != nil {
			t.Fatal(err)
		}
		result, err := a.Rooms.Accept(t.Context(), e, rooms.Basis{Origin: server})
		if err != nil || result.Verdict != store.Accepted {
			t.Fatalf("member %d: %+v, %v", i, result, err)
		}
	}
	return room
}

// joinTargets counts requests of a kind.
type joinTargets struct{ sent, states, ids, events atomic.Int32 }

func (c *joinTargets) note(r *http.Request) {
	for part, n := range map[string]*atomic.Int32{"/send_join/": &c.sent, "/state/": &c.states, "/state_ids/": &c.ids, "/v1/event/": &c.events} {
		if strings.Contains(r.RequestURI, part) {
			n.Add(1)
		}
	}
}

// cutAfter answers as the handler does, and breaks off after n bytes of the body; less than nothing counts from its end.
func cutAfter(h http.Handler, w http.ResponseWriter, r *http.Request, n int) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	body := rec.Body.Bytes()
	if n < 0 {
		n += len(body)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(rec.Code)
	w.Write(body[:min(n, len(body))])
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// leftOfJoin says what a join has left in the store.
func (h *memHost) leftOfJoin(room eventgraph.RoomID) (j *store.Join, staged int) {
	h.t.Helper()
	j, err := h.storedJoin(room)
	if err != nil {
		h.t.Fatal(err)
	}
	err = h.Store.View(func(r *store.Reader) error {
		return r.Staged(room, func(*store.Staged) (bool, error) { staged++; return true, nil })
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return j, staged
}

// TestJoinCut: an answer of send_join that breaks off anywhere is completed from what any server of the room gives, without another
// send_join, to the same state; so it is when the node was ended meanwhile.
func TestJoinCut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		cut       int // bytes of the answer
		stateCuts int // bytes of each answer of /state; 0: it comes whole
		restart   bool
	}{
		{"before the first byte", 0, 0, false},
		{"in the auth chain", 3000, 0, false},
		{"in the middle", 60_000, 0, false},
		{"before the last byte", -1, 0, false},
		{"again and again", 30_000, 20_000, false},
		{"and the node was ended", 60_000, 0, true},
		{"at once, and the node was ended", 1, 30_000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := memnet.New()
			a, b := newMemHost(t, n, "a"), newMemHost(t, n, "b")
			room := peopled(t, a, "11", 100)
			a.start()
			b.start()
			b.meet(a.host)
			var asked joinTargets
			var mute atomic.Bool
			wasCut := make(chan struct{})
			a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				asked.note(r)
				switch {
				case strings.Contains(r.RequestURI, "/send_join/"):
					mute.Store(c.restart)
					defer close(wasCut)
					cutAfter(*a.handler.Load(), w, r, c.cut)
				case mute.Load() && strings.Contains(r.RequestURI, "/state"):
					panic(http.ErrAbortHandler)
				case c.stateCuts > 0 && strings.Contains(r.RequestURI, "/state/"):
					cutAfter(*a.handler.Load(), w, r, c.stateCuts)
				}
				return false
			})
			b.wait("joins to be worked on, until the end", func() bool {
				b.joins.mu.Lock()
				defer b.joins.mu.Unlock()
				return b.joins.ctx != nil
			})
			joined := make(chan error, 1)
			go func() { joined <- b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil) }()
			if c.restart {
				<-wasCut
				b.wait("the join to be known as taken in", func() bool { return b.letIn(room, b.user("bob")) })
				b.stop()
				if err := <-joined; err == nil {
					t.Fatal("joined, though nothing was given")
				}
				if b.Rooms.InRoom(room, a.server) {
					t.Fatal("half a room is shown")
				}
				mute.Store(false)
				b.renew(b.Config)
				b.start()
				b.wait("the room", func() bool { return b.membership(room, b.user("bob")) == "join" })
			} else if err := <-joined; err != nil {
				t.Fatal(err)
			}
			sameState(t, room, a, b)
			b.wait("nothing to be left", func() bool { j, staged := b.leftOfJoin(room); return j == nil && staged == 0 })
			if sent := asked.sent.Load(); sent != 1 {
				t.Errorf("%d times send_join", sent)
			}
			t.Logf("asked: %d lists, %d states, %d single events", asked.ids.Load(), asked.states.Load(), asked.events.Load())
			if c.stateCuts > 0 && asked.events.Load() == 0 {
				t.Error("no event was asked for by itself: the test does not test")
			}
		})
	}
}

// TestJoinOfPlainPeer: a server that is not plexus gives its answer as one JSON, with the state first, in any order, auth events repeated in
// the chain, and things that nobody knows.
func TestJoinOfPlainPeer(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"6", "12"} {
		n := memnet.New()
		hosts := newMemHosts(t, n, "a", "b")
		a, b := hosts[0], hosts[1]
		room := peopled(t, a, version, 30)
		var staged atomic.Int32
		a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if !strings.Contains(r.RequestURI, "/send_join/") {
				return false
			}
			rec := httptest.NewRecorder()
			(*a.handler.Load()).ServeHTTP(rec, r)
			var answer struct {
				Event json.RawMessage   `json:"event"`
				Chain []json.RawMessage `json:"auth_chain"`
				State []json.RawMessage `json:"state"`
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
				t.Error(err)
			}
			chain := slices.Concat(answer.Chain, answer.State)
			slices.Reverse(answer.State)
			rand.New(rand.NewPCG(1, 2)).Shuffle(len(chain), func(i, j int) { chain[i], chain[j] = chain[j], chain[i] })
			body, err := json.MarshalIndent(map[string]any{
				"state": answer.State, "unknown": map[string]any{"state": []int{1}}, "auth_chain": chain, "event": answer.Event, "origin": a.server,
			}, "", "  ")
			if err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusOK)
			// The state comes, and is staged, before the auth chain that it rests on.
			w.Write([]byte("{\"state\":"))
			state, _ := json.Marshal(answer.State)
			w.Write(state)
			http.NewResponseController(w).Flush()
			b.wait("the state to be staged", func() bool {
				_, n := b.leftOfJoin(room)
				staged.Store(int32(n))
				return n >= 30 || n == len(answer.State)
			})
			w.Write([]byte(","))
			w.Write([]byte(strings.Replace(string(body[1:]), `"state"`, `"not the state"`, 1)))
			return true
		})
		if err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil); err != nil {
			t.Fatal(err)
		}
		sameState(t, room, a, b)
		if staged.Load() < 30 {
			t.Errorf("%d events were staged", staged.Load())
		}
		if j, left := b.leftOfJoin(room); j != nil || left > 0 {
			t.Errorf("left: %+v, %d events", j, left)
		}
	}
}

// TestJoinRefusedLeavesNothing: neither a refusal nor an answer without the room leaves anything.
func TestJoinRefusedLeavesNothing(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("11", "public", "shared")
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a refusal": func(w http.ResponseWriter) { writeJSON(w, 403, map[string]string{"errcode": "M_FORBIDDEN"}) },
		"nothing in it": func(w http.ResponseWriter) {
			writeJSON(w, 200, map[string]any{"state": []int{}, "auth_chain": []int{}})
		},
		"members are omitted": func(w http.ResponseWriter) { writeJSON(w, 200, map[string]any{"members_omitted": true}) },
	} {
		a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			ours := strings.Contains(r.RequestURI, "/send_join/")
			if ours {
				answer(w)
			}
			return ours
		})
		if err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil); err == nil {
			t.Errorf("%s: joined", name)
		}
		if j, staged := b.leftOfJoin(room); j != nil || staged > 0 {
			t.Errorf("%s: left %+v, %d events", name, j, staged)
		}
		if b.membership(room, b.user("bob")) != "" {
			t.Errorf("%s: bob has a membership", name)
		}
	}
}

// TestBigJoin joins a room of PLEXUS_BIG_JOIN members, each of a server of its own, between stores on disk, and prints what that took.
func TestBigJoin(t *testing.T) { // not in parallel: it measures memory
	members, messages := 200, 0
	if n, err := strconv.Atoi(os.Getenv("PLEXUS_BIG_JOIN")); err == nil {
		members, messages = n, 9*n
	}
	n := memnet.New()
	a, b := newMemHostIn(t, n, "a", t.TempDir()), newMemHostIn(t, n, "b", t.TempDir())
	room := peopled(t, a, "12", members)
	var group errgroup.Group // so that commits are shared
	group.SetLimit(64)
	for i := range messages {
		group.Go(func() error {
			content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": fmt.Sprint("word ", i)})
			_, err := a.Rooms.Send(t.Context(), rooms.Draft{Room: room, Sender: a.user("alice"), Type: "m.room.message", Content: content})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	a.start()
	// Another joins first, so that what the giver's caches take is not counted.
	c := newMemHostIn(t, n, "c", t.TempDir())
	c.start()
	c.meet(a.host)
	c.join(room, c.user("carol"), a.host)
	c.arrived(room, a)
	c.stop()
	b.start()
	b.meet(a.host)
	var bytes atomic.Int64
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		(*a.handler.Load()).ServeHTTP(&countedAnswer{w, &bytes}, r)
		return true
	})

	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	live := func() int64 {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before, most := live(), int64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			most = max(most, live())
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	began := time.Now()
	b.join(room, b.user("bob"), a.host)
	b.arrived(room, a)
	took := time.Since(began)
	close(stop)
	<-stopped
	sameState(t, room, a, b)
	servers, err := b.Rooms.Servers(room)
	if err != nil || len(servers) != members+3 {
		t.Errorf("%d servers, %v", len(servers), err)
	}
	grown := float64(most-before) / (1 << 20)
	t.Logf("%d members in %v; %d bytes came, %d a member; memory in use grew by %.1f MiB",
		members, took.Round(time.Millisecond), bytes.Load(), bytes.Load()/int64(members), grown)
	if grown > maxJoinGrowth {
		t.Errorf("memory in use grew by %.1f MiB", grown)
	}
}

// arrived waits for a room that the host has joined, which may take longer than a client's patience.
func (h *memHost) arrived(room eventgraph.RoomID, other *memHost) {
	h.t.Helper()
	for {
		at := h.Store.Position()
		if h.Rooms.InRoom(room, other.server) {
			return
		}
		if _, err := h.Store.Wait(h.t.Context(), at); err != nil {
			h.t.Fatal(err)
		}
	}
}

// TestSlowJoinShowsItsRoom: what comes slowly is taken in as it comes, so that the user sees which room it is and that it goes on.
func TestSlowJoinShowsItsRoom(t *testing.T) {
	t.Parallel()
	hosts := newMemHosts(t, memnet.New(), "a", "b")
	a, b := hosts[0], hosts[1]
	var looks atomic.Int64
	slow := b.Config
	slow.Now = func() time.Time { return time.Now().Add(time.Duration(looks.Add(1)) * 100 * time.Millisecond) } // of its clock
	b.stop()
	b.renew(slow)
	b.start()
	room := peopled(t, a, "11", importBatch/8)
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.Contains(r.RequestURI, "/send_join/") {
			return false
		}
		rec := httptest.NewRecorder()
		(*a.handler.Load()).ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		last := bytes.LastIndex(body, []byte(`,{"auth_events"`))
		w.WriteHeader(rec.Code)
		w.Write(body[:last])
		http.NewResponseController(w).Flush()
		b.wait("the room to be shown before the last event has come", func() bool {
			j, _ := b.leftOfJoin(room)
			return j != nil && len(j.Show) > 0 && j.Arrived > importBatch/16 && j.Arrived < j.Expected
		})
		w.Write(body[last:])
		return true
	})
	if err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil); err != nil {
		t.Fatal(err)
	}
	sameState(t, room, a, b)
}

// maxJoinGrowth, in MiB, is for both nodes: caches of events and trie nodes (8 and 4 MiB at most in each) and of key documents, which fill, memory
// tables of the stores and the tables that they are written to, and what the join holds. Of 5,000 members it has been 35 to 46.
const maxJoinGrowth = 64

type countedAnswer struct {
	http.ResponseWriter
	bytes *atomic.Int64
}

func (c *countedAnswer) Write(b []byte) (int, error) {
	c.bytes.Add(int64(len(b)))
	return c.ResponseWriter.Write(b)
}

func (c *countedAnswer) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// halfJoined lets bob of b into a room of a, of which nothing more comes until go on is called.
func halfJoined(t *testing.T) (a, b *memHost, room eventgraph.RoomID, joined chan error, goOn func()) {
	t.Helper()
	hosts := newMemHosts(t, memnet.New(), "a", "b")
	a, b = hosts[0], hosts[1]
	room = a.create("12", "public", "shared")
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
	joined = make(chan error, 1)
	go func() { joined <- b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil) }()
	b.wait("bob to be let in", func() bool { return b.letIn(room, b.user("bob")) })
	return a, b, room, joined, func() { open.Store(true) }
}

// TestEarlyEventsWait: what is said in a room of which not all has come waits, and is there when the room is.
func TestEarlyEventsWait(t *testing.T) {
	t.Parallel()
	a, b, room, joined, goOn := halfJoined(t)
	answered := make(chan struct{}, 10)
	b.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		(*b.handler.Load()).ServeHTTP(w, r)
		if strings.Contains(r.RequestURI, "/send/") {
			answered <- struct{}{}
		}
		return true
	})
	said := a.say(room, a.user("alice"), "early")
	<-answered
	err := b.Store.View(func(r *store.Reader) error {
		waits, err := r.InboxHas(room, said)
		if !waits {
			t.Error("it does not wait")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	goOn()
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	b.waitFor("what was said meanwhile", said)
	sameState(t, room, a, b)
}

// TestJoinGivenUp: a room of which not all has come can be left.
func TestJoinGivenUp(t *testing.T) {
	t.Parallel()
	a, b, room, joined, goOn := halfJoined(t)
	if err := b.Leave(t.Context(), room, b.user("bob"), "too slow"); err != nil {
		t.Fatal(err)
	}
	if err := <-joined; err == nil {
		t.Error("joined a room that was left")
	}
	if j, staged := b.leftOfJoin(room); j != nil || staged > 0 {
		t.Errorf("left: %+v, %d events", j, staged)
	}
	goOn()
	a.wait("bob to have left", func() bool { return a.membership(room, b.user("bob")) == "leave" })
	if err := b.Leave(t.Context(), room, b.user("bob"), ""); err == nil {
		t.Error("left twice")
	}
	if err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a.host}), nil); err != nil {
		t.Fatalf("coming back: %v", err)
	}
	sameState(t, room, a, b)
}
