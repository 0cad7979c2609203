package federation

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

var errCutHere = errors.New("cut here")

// framed is an asker's stream of which f sees each message: those asked before they are sent, those answered before they are
// read. After an error nothing more is sent, or half of the answer is read.
type framed struct {
	io.ReadWriteCloser
	f    func(m *meetMessage, answer bool) error
	rest []byte // of the answer being read
	err  error  // after rest
}

func (s *framed) Write(b []byte) (int, error) {
	m := &meetMessage{}
	if err := json.Unmarshal(b[4:], m); err != nil {
		return 0, err
	}
	if err := s.f(m, false); err != nil {
		return 0, err
	}
	return s.ReadWriteCloser.Write(b)
}

func (s *framed) Read(b []byte) (int, error) {
	if len(s.rest) == 0 && s.err == nil {
		head := make([]byte, 4)
		if _, err := io.ReadFull(s.ReadWriteCloser, head); err != nil {
			return 0, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(s.ReadWriteCloser, body); err != nil {
			return 0, err
		}
		m := &meetMessage{}
		if err := json.Unmarshal(body, m); err != nil {
			return 0, err
		}
		s.rest = append(head, body...)
		if s.err = s.f(m, true); s.err != nil {
			s.rest = s.rest[:len(s.rest)/2]
		}
	}
	if len(s.rest) == 0 {
		return 0, s.err
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// fetched counts what came in whole answers, by event and by giver.
type fetched struct {
	mu    sync.Mutex
	times map[eventgraph.EventID]int
	from  map[eventgraph.PeerID]int
	twice int
}

func (c *fetched) note(version eventgraph.RoomVersion, from eventgraph.PeerID, chunk *meetEvents) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, given := range chunk.Events {
		e, err := eventgraph.ParseEvent(version, given.PDU)
		if err != nil {
			panic(err)
		}
		if c.times[e.ID()]++; c.times[e.ID()] > 1 {
			c.twice++
		}
		c.from[from]++
	}
}

func newFetched() *fetched {
	return &fetched{times: map[eventgraph.EventID]int{}, from: map[eventgraph.PeerID]int{}}
}

// givingHosts are servers that give at meetings and do nothing by themselves; they know each other.
func givingHosts(t *testing.T, n *memnet.Network, names ...string) (all []*memHost) {
	t.Helper()
	for _, name := range names {
		h := newMemHost(t, n, name)
		h.handleMeetings()
		all = append(all, h)
	}
	for _, h := range all {
		for _, other := range all {
			if other == h {
				continue
			}
			if _, err := h.identify(t.Context(), other.peer); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// TestCutAtEachChunk: meetings that are cut in each chunk but the first bring a gap of some thousand events chunk by chunk, and nothing comes twice but
// the chunk that was cut.
func TestCutAtEachChunk(t *testing.T) {
	if testing.Short() {
		t.Skip("large: plays without the race detector, in scripts/test")
	}
	t.Parallel()
	a, b, room := givingOnly(t)
	if _, err := b.meetOnce(a, nil); err != nil {
		t.Fatal(err)
	}
	said := a.sayMany(room, "alice", 2500)
	came, asked := newFetched(), map[eventgraph.EventID]int{}
	meetings := 0
	for ; !b.holds(said...); meetings++ {
		before := len(came.times)
		chunks := 0
		_, err := b.meetOnce(a, func(s io.ReadWriteCloser) io.ReadWriteCloser {
			return &framed{ReadWriteCloser: s, f: func(m *meetMessage, answer bool) error {
				for _, id := range m.Want {
					asked[id]++
				}
				if !answer || m.Events == nil {
					return nil
				}
				if chunks++; chunks == 2 {
					return errCutHere
				}
				came.note("12", a.peer, m.Events)
				return nil
			}}
		})
		if err != nil && !errors.Is(err, errCutHere) {
			t.Fatal(err)
		}
		if len(came.times) == before {
			t.Fatalf("nothing came at meeting %d", meetings)
		}
	}
	most := 0
	for _, n := range asked {
		most = max(most, n)
	}
	t.Logf("%d meetings, each event asked for at most %d times", meetings, most)
	if came.twice > 0 || most > 2 || len(came.times) != len(said) {
		t.Errorf("%d events came, %d twice; one was asked for %d times", len(came.times), came.twice, most)
	}
	if want := len(said)/maxWant + len(said)/maxNews + 1; meetings > want { // the end of each news is a chunk too
		t.Errorf("%d meetings, want at most %d", meetings, want)
	}
	sameState(t, room, a, b)
}

// TestSeveralHolders: a gap whose origin is away comes from all that hold it at once, no event twice.
func TestSeveralHolders(t *testing.T) {
	if testing.Short() {
		t.Skip("large: plays without the race detector, in scripts/test")
	}
	t.Parallel()
	n := memnet.New()
	all := givingHosts(t, n, "a", "b", "c", "d", "e")
	a, b, holders := all[0], all[1], all[2:]
	room := a.create("12", "public", "shared")
	for _, h := range all[1:] {
		h.join(room, h.user("user"), a.host)
	}
	for _, h := range all[1:] { // the joins of those who came later
		if _, err := h.meetOnce(a, nil); err != nil {
			t.Fatal(err)
		}
	}
	said := a.sayMany(room, "alice", 2000)
	for _, h := range holders {
		if _, err := h.meetOnce(a, nil); err != nil || !h.holds(said...) {
			t.Fatal(err)
		}
		n.SetLink(p2ptransport.PeerID(h.peer), p2ptransport.PeerID(b.peer), memnet.Link{Delay: 20 * time.Millisecond})
	}
	a.handler.Store(nil)
	for _, h := range all[1:] {
		cut(n, a, h)
	}
	came := newFetched()
	noted := func(peer eventgraph.PeerID, s io.ReadWriteCloser) io.ReadWriteCloser {
		return &framed{ReadWriteCloser: s, f: func(m *meetMessage, answer bool) error {
			if m.Events != nil {
				came.note("12", peer, m.Events)
			}
			return nil
		}}
	}
	b.streams.f.Store(&noted)
	var group sync.WaitGroup
	for _, holder := range holders {
		group.Go(func() {
			m := &meeting{pace: &pace{in: chunkBytes, out: chunkBytes}, until: time.Now().Add(meetSlice)}
			if _, err := b.Federation.meet(t.Context(), contact{Server: holder.server, Peer: holder.peer}, m); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if !b.holds(said...) {
		t.Fatal("not all came")
	}
	t.Logf("%v, twice %d", came.from, came.twice)
	if came.twice > 0 {
		t.Errorf("%d events came twice", came.twice)
	}
	for _, holder := range holders {
		if came.from[holder.peer] < len(said)/10 {
			t.Errorf("%s gave %d of %d", holder.server.Tail(), came.from[holder.peer], len(said))
		}
	}
	sameState(t, room, b, holders[0])
}

// TestCameMeanwhile: what another meeting takes in between the look at what is lacking and the claim is not asked for again; the rest is.
func TestCameMeanwhile(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	if _, err := b.meetOnce(a, nil); err != nil {
		t.Fatal(err)
	}
	said := a.sayMany(room, "alice", 30)
	others := []*eventgraph.Event{}
	for _, id := range said[:20] {
		others = append(others, a.event(id).Event)
	}
	came := false
	b.meetings.claims.now = func() time.Time { // which is asked the time while a claim is made
		if !came {
			came = true
			if refused, err := b.takeIn(t.Context(), room, others, a.server); err != nil || len(refused) > 0 {
				t.Errorf("%v, %v", refused, err)
			}
		}
		return time.Now()
	}
	asked := 0
	taken, err := b.meetOnce(a, func(s io.ReadWriteCloser) io.ReadWriteCloser {
		return &framed{ReadWriteCloser: s, f: func(m *meetMessage, _ bool) error { asked += len(m.Want); return nil }}
	})
	if err != nil || !b.holds(said...) {
		t.Fatal(err)
	}
	if rest := len(said) - len(others); asked != rest || taken != rest {
		t.Errorf("%d events were asked for and %d taken in, want %d", asked, taken, rest)
	}
}

// TestStalledHolder: a holder that claims and never gives holds up the others for claimPatience, once.
func TestStalledHolder(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := newClaims(func() time.Time { return now })
	slow, quick := &meeting{}, &meeting{}
	want := make([]eventgraph.EventID, 3*maxWant)
	for i := range want {
		want[i] = eventgraph.EventID(fmt.Sprint("$", i))
	}
	part, _, _ := c.take(slow, want)
	if len(part) != maxWant {
		t.Fatalf("%d claimed", len(part))
	}
	if part, _, _ = c.take(quick, want); part[0] != want[maxWant] {
		t.Errorf("the quick one got %s, which is claimed", part[0])
	}
	c.release(quick)
	now = now.Add(claimPatience)
	if part, _, _ = c.take(quick, want); part[0] != want[0] || !slow.overtaken {
		t.Errorf("the quick one got %s; overtaken %v", part[0], slow.overtaken)
	}
	c.release(slow)
	if part, _, _ := c.take(slow, want); len(part) != 0 {
		t.Errorf("who was overtaken got %d while others fetch", len(part))
	}
	c.release(quick)
	if part, _, _ := c.take(slow, want); len(part) != maxWant {
		t.Errorf("who was overtaken got %d when nobody else fetches", len(part))
	}
	if len(c.of) != maxWant {
		t.Errorf("%d claims are left", len(c.of))
	}
}

// TestGapIsFilledAtMeeting: what nobody had when it was missed is done without, and filled when somebody comes who has it.
func TestGapIsFilledAtMeeting(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	all := givingHosts(t, n, "a", "b", "c")
	a, b, c := all[0], all[1], all[2]
	b.run(b.runInbox)
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	c.join(room, c.user("carol"), a.host)
	for _, pair := range [][2]*memHost{{b, a}, {b, c}, {c, a}} {
		if _, err := pair[0].meetOnce(pair[1], nil); err != nil {
			t.Fatal(err)
		}
	}
	lost := a.sayMany(room, "alice", 30)
	if _, err := c.meetOnce(a, nil); err != nil || !c.holds(lost...) {
		t.Fatal(err)
	}
	last := a.say(room, a.user("alice"), "after them")
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if strings.Contains(r.URL.Path, "/get_missing_events/") {
			fmt.Fprint(w, `{"events":[]}`)
			return true
		}
		for _, id := range lost {
			if strings.HasSuffix(r.URL.Path, "/event/"+string(id)) {
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
				return true
			}
		}
		return false
	})
	a.Transport.Handle(protocolMeet, givingAs(func(m *meetMessage) *meetMessage {
		answer := &meetMessage{}
		switch {
		case m.Hello != nil:
			answer.News = &meetNews{Cursor: "x"}
			answer.News.add(meetID{room, last})
		case m.Want != nil:
			answer.Events = &meetEvents{Looked: len(m.Want), Events: []meetEvent{{room, a.event(last).Raw()}}}
		case m.Compare != nil:
			answer.Compared = &meetCompared{Ranges: []meetRange{{Same: true}}}
		}
		return answer
	}))
	cut(n, b, c)
	b.peers.connected(a.peer)
	if came, err := b.meetOnce(a, nil); err != nil || came != 1 {
		t.Fatalf("%d came, %v", came, err)
	}
	b.waitFor("the event after the gap", last)
	if !b.event(last).Gap || b.holds(lost[0]) {
		t.Errorf("gap %v; what was lost is held: %v", b.event(last).Gap, b.holds(lost[0]))
	}
	mend(n, b, c)
	if came, err := b.meetOnce(c, nil); err != nil || came != len(lost) {
		t.Errorf("%d came, %v; want the %d that were lost", came, err, len(lost))
	}
	if !b.holds(lost...) {
		t.Error("the gap is not filled")
	}
	held, _, err := b.backwards(room)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range held.Backward {
		if id == last {
			t.Error("the event after the gap is a backward extremity still")
		}
	}
	sameState(t, room, a, b, c)
}

// inUse is the heap in use as of the last collections, by who allocated it: Badger, for tables of the size that it is set to, and all else.
func inUse() (badger, rest float64) {
	var records []runtime.MemProfileRecord
	for n, ok := runtime.MemProfile(nil, false); !ok; {
		records = make([]runtime.MemProfileRecord, n+100)
		n, ok = runtime.MemProfile(records, false)
		records = records[:min(n, len(records))]
	}
	for _, r := range records {
		if r.InUseObjects() == 0 {
			continue
		}
		size := float64(r.InUseBytes()) // of those sampled: of an object of x bytes, 1-e^(-x/rate)
		size /= 1 - math.Exp(-size/float64(r.InUseObjects())/float64(runtime.MemProfileRate))
		of := &rest
		for frames := runtime.CallersFrames(r.Stack()); ; {
			frame, more := frames.Next()
			if strings.Contains(frame.Function, "/dgraph-io/") {
				of = &badger
			}
			if !more || of == &badger || strings.Contains(frame.Function, "/plexus") {
				break // the innermost of either: what reads in Badger's callback is ours
			}
		}
		*of += size
	}
	return badger, rest
}

// TestLargeGap fetches a gap of PLEXUS_GAP events, between stores on disk, from a server that is not their origin, which is away; it prints
// how long that took and by how much the memory in use grew. That of all but Badger is bounded by the asker's caches of events and trie nodes, 12 MiB,
// however large the gap is.
func TestLargeGap(t *testing.T) {
	events, err := strconv.Atoi(os.Getenv("PLEXUS_GAP"))
	if err != nil {
		t.Skip("PLEXUS_GAP is the number of events: 5000 in scripts/test, 3 s; 50000 in ARCHITECTURE.md, a minute or two")
	}
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 128 << 10
	n := memnet.New()
	var all []*memHost
	for _, name := range []string{"a", "b", "c"} {
		h := newMemHostIn(t, n, name, t.TempDir())
		h.handleMeetings()
		all = append(all, h)
	}
	a, b, c := all[0], all[1], all[2]
	for _, pair := range [][2]*memHost{{a, b}, {b, a}, {a, c}, {c, a}, {b, c}, {c, b}} {
		if _, err := pair[0].identify(t.Context(), pair[1].peer); err != nil {
			t.Fatal(err)
		}
	}
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	c.join(room, c.user("carol"), a.host)
	if _, err := b.meetOnce(a, nil); err != nil {
		t.Fatal(err)
	}
	var last eventgraph.EventID
	var group errgroup.Group // so that commits are shared
	group.SetLimit(64)
	for i := range events {
		group.Go(func() error {
			content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": fmt.Sprint("word ", i)})
			_, err := a.Rooms.Send(t.Context(), rooms.Draft{Room: room, Sender: a.user("alice"), Type: "m.room.message", Content: content})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	last = a.say(room, a.user("alice"), "last")
	for err := errLater; errors.Is(err, errLater); {
		_, err = c.meetOnce(a, nil)
		if err != nil && !errors.Is(err, errLater) {
			t.Fatal(err)
		}
	}
	cut(n, a, b)
	runtime.GC()
	badgerBefore, restBefore := inUse()
	badgerMost, restMost, looked := badgerBefore, restBefore, uint32(0)
	look := func() {
		var collections runtime.MemStats
		if runtime.ReadMemStats(&collections); collections.NumGC == looked {
			return
		}
		looked = collections.NumGC
		badger, rest := inUse()
		badgerMost, restMost = max(badgerMost, badger), max(restMost, rest)
	}
	var in, out atomic.Int64
	began, meetings := time.Now(), 0
	for err := errLater; errors.Is(err, errLater); meetings++ {
		_, err = b.meetOnce(c, func(s io.ReadWriteCloser) io.ReadWriteCloser {
			return &framed{ReadWriteCloser: counted{s, &in, &out}, f: func(*meetMessage, bool) error {
				look()
				return nil
			}}
		})
		if err != nil && !errors.Is(err, errLater) {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	if !b.holds(last) {
		t.Fatal("the last event is not held")
	}
	sameState(t, room, b, c)
	badger, rest := (badgerMost-badgerBefore)/(1<<20), (restMost-restBefore)/(1<<20)
	t.Logf("%d events in %v, %.0f a second, at %d meetings; %d bytes in, %d out for each; memory in use grew by %.1f MiB, and Badger's from %.1f by %.1f MiB",
		events, took.Round(time.Millisecond), float64(events)/took.Seconds(), meetings, in.Load()/int64(events), out.Load()/int64(events),
		rest, badgerBefore/(1<<20), badger)
	if rest > 24 || badger > 96 { // 12 MiB are the caches; what is on its way is a chunk, in some forms
		t.Errorf("memory in use grew by %.1f and %.1f MiB", rest, badger)
	}
}
