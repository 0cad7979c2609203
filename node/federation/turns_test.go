package federation

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// orphans sends b events of the room that rest on events which do not exist.
func (h *memHost) orphans(b *memHost, room eventgraph.RoomID, n int) {
	h.t.Helper()
	tip := h.event(h.say(room, h.user("alice"), "a parent"))
	t := transaction{Origin: h.server, PDUs: []json.RawMessage{tip.Raw()}}
	for i := range n {
		e, err := eventgraph.Build(tip.Version(), eventgraph.Draft{
			RoomID: room, Sender: h.user("alice"), Type: "m.room.message", Content: json.RawMessage(fmt.Sprintf(`{"body":"%d"}`, i)), Depth: tip.Depth() + 9,
			PrevEvents: []eventgraph.EventID{eventgraph.EventID(fmt.Sprintf("$%042dA", i))}, AuthEvents: tip.AuthEvents(), OriginServerTS: tip.OriginServerTS(),
		}, h.Key)
		if err != nil {
			h.t.Fatal(err)
		}
		t.PDUs = append(t.PDUs, e.Raw())
	}
	if _, err := h.identify(h.t.Context(), b.peer); err != nil {
		h.t.Fatal(err)
	}
	body, err := marshal(t)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.putTransaction(h.t.Context(), b.server, "orphans"+string(room[1:9]), body); err != nil {
		h.t.Fatal(err)
	}
}

// slowGiver is a server in so many rooms with b, which it has given orphans in each, and answers no question about them: it is silent, or
// gives the state before them byte by byte. asked counts the questions.
func slowGiver(n *memnet.Network, b *memHost, name string, rooms, each int, trickles bool) (m *memHost, all []eventgraph.RoomID, asked *atomic.Int32) {
	m = newMemHost(b.t, n, name)
	m.run(m.runPeers)
	m.meet(b.host)
	b.meet(m.host)
	for range rooms {
		room := m.create("12", "public", "shared")
		b.join(room, b.user("bob"), m.host)
		all = append(all, room)
	}
	asked = new(atomic.Int32)
	m.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		state := strings.Contains(r.URL.Path, "/state")
		switch {
		case !state && !strings.Contains(r.URL.Path, "/get_missing_events/") && !strings.Contains(r.URL.Path, "/event/"):
			return false
		case !trickles:
			asked.Add(1)
			<-r.Context().Done()
		case state:
			asked.Add(1)
			fmt.Fprint(w, `{"pdu_ids":[`)
			for w.(http.Flusher).Flush(); pause(r.Context(), stallTimeout-5*time.Second, nil); w.(http.Flusher).Flush() {
				if _, err := w.Write([]byte(" ")); err != nil {
					return true
				}
			}
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
		}
		return true
	})
	for _, room := range all {
		m.orphans(b, room, each)
	}
	return m, all, asked
}

// takesIn fails the test if b has not taken the events in soon.
func (h *memHost) takesIn(what string, soon time.Duration, events ...eventgraph.EventID) {
	h.t.Helper()
	for began := time.Now(); !h.holds(events...); time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > soon {
			h.t.Errorf("%s: not after %v", what, soon)
			return
		}
	}
}

// A server that does not answer, or byte by byte, keeps few of those who ask, in however many rooms events wait for it: what misses something in
// another room is asked for, of others. And it is asked ever less.
func TestSlowGiverHoldsUpNoOtherRooms(t *testing.T) {
	t.Parallel()
	for _, trickles := range []bool{false, true} {
		t.Run(fmt.Sprint("trickles ", trickles), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b, room := giverAndTaker(t)
				_, _, asked := slowGiver(n, b, "m", 2*inboxWorkers, 20, trickles)
				for range 3 {
					time.Sleep(time.Minute)
					first := a.say(room, a.user("alice"), "first")
					last := a.say(room, a.user("alice"), "last")
					if err := a.put(b, last); err != nil {
						t.Fatal(err)
					}
					b.takesIn("an event whose parent must be asked for", 3*time.Second, first, last)
				}
				was := asked.Load()
				time.Sleep(time.Hour)
				if n := asked.Load() - was; n == 0 || n > 20 {
					t.Errorf("asked %d times in an hour", n)
				}
			})
		})
	}
}

// What misses nothing any more is taken in while all who ask wait for answers, also in a room of those that they ask for.
func TestReadyWhileAllAsk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := giverAndTaker(t)
		busy := 0
		var asked []*atomic.Int32
		for i := range inboxWorkers { // each for the first time, so none is known to be slow
			_, _, n := slowGiver(n, b, fmt.Sprint("m", i), 1, 1, false)
			asked = append(asked, n)
		}
		time.Sleep(time.Second)
		for _, n := range asked {
			busy += int(n.Load())
		}
		if busy != inboxWorkers {
			t.Fatalf("%d questions are being put", busy)
		}
		began := time.Now()
		first, last := a.say(room, a.user("alice"), "first"), a.say(room, a.user("alice"), "last")
		for _, id := range []eventgraph.EventID{last, first} {
			if err := a.put(b, id); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if !b.holds(first, last) {
			t.Error("what misses nothing waits for those who ask")
		}
		// Now b is asking, for ever, for the parent of an event in that room, too.
		a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			is := strings.Contains(r.URL.Path, "/get_missing_events/")
			if is {
				<-r.Context().Done()
			}
			return is
		})
		time.Sleep(attemptTimeout)
		a.orphans(b, room, 1)
		time.Sleep(time.Second)
		first, last = a.say(room, a.user("alice"), "one more"), a.say(room, a.user("alice"), "and another")
		for _, id := range []eventgraph.EventID{last, first} {
			if err := a.put(b, id); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if !b.holds(first, last) {
			t.Error("what misses nothing waits for a question in its room")
		}
		if took := time.Since(began); took > 2*attemptTimeout {
			t.Errorf("the test takes %v: the questions are over", took)
		}
	})
}

// Over a link of 16 kbit/s and 2 s each way, more is asked for than passes in the time that a short answer has: it comes, and no state is claimed.
func TestSlowLinkIsAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := giverAndTaker(t)
		a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if strings.Contains(r.URL.Path, "/state") {
				t.Error("the state was asked for, though all parents are to be had")
			}
			return false
		})
		n.SetLink(p2ptransport.PeerID(a.peer), p2ptransport.PeerID(b.peer), memnet.Link{Delay: 2 * time.Second, Rate: 2000})
		var said []eventgraph.EventID
		for i := range 250 {
			said = append(said, a.say(room, a.user("alice"), fmt.Sprint(i, strings.Repeat(" and so on", 20))))
		}
		if err := a.put(b, said[len(said)-1]); err != nil {
			t.Fatal(err)
		}
		b.takesIn("a row of events", 6*time.Minute, said...)
		for _, id := range said {
			if e := b.event(id); e.Gap || e.Verdict != store.Accepted {
				t.Fatalf("%s: gap %v, verdict %v", id, e.Gap, e.Verdict)
			}
		}
	})
}

// A slow question has its server to itself and a place of few; other servers are asked beside it. Who waits is told.
func TestTurns(t *testing.T) {
	t.Parallel()
	var p turns[string]
	for range questionsOfOne {
		if !p.begin("quick", "!1", false) {
			t.Fatal("no place for a question to a server that answers")
		}
	}
	if p.begin("quick", "!2", false) || p.full("other", "!3", false) {
		t.Error("one server is asked too much, or another not")
	}
	if p.begin("quick", "!4", true) {
		t.Error("a slow question beside others to that server")
	}
	for i := range slowQuestions {
		if !p.begin(fmt.Sprint("slow", i), "!5", true) {
			t.Fatal("no place for a slow question")
		}
	}
	if p.begin("slow0", "!6", false) || p.begin("another", "!7", true) {
		t.Error("too many slow questions, or others beside one")
	}
	p.end("slow0")
	p.end("quick")
	waited := append(p.waited(1), p.waited(9)...)
	slices.Sort(waited)
	if want := []eventgraph.RoomID{"!2", "!4", "!6", "!7"}; !slices.Equal(waited, want) || len(p.waited(9)) != 0 {
		t.Errorf("%v waited, want %v", waited, want)
	}
	if p.full("another", "!7", true) || p.full("quick", "!2", false) {
		t.Error("no place after others have ended")
	}
}

// Who lets questions end without an answer rests ever longer, until it is met, and counts as slow until it answers quickly. Only so many are remembered.
func TestSlowToAnswer(t *testing.T) {
	t.Parallel()
	var s answerers
	now := time.Unix(1_000_000, 0)
	m := answerer{server: "m"}
	s.note(m, slowAnswer-1, true, now)
	if s.isSlow(m) || s.rests(m, now) {
		t.Error("who could not be reached counts as slow")
	}
	for _, want := range []time.Duration{firstRest, 2 * firstRest, 4 * firstRest, 8 * firstRest, longestRest, longestRest} {
		s.note(m, attemptTimeout, true, now)
		if !s.isSlow(m) || !s.rests(m, now.Add(want-1)) || s.rests(m, now.Add(want)) {
			t.Errorf("does not rest for %v", want)
		}
		now = now.Add(want)
	}
	s.note(m, attemptTimeout, true, now)
	s.met("n")
	if !s.rests(m, now) {
		t.Error("another that is met ends its rest")
	}
	if s.met("m"); s.rests(m, now) || !s.isSlow(m) {
		t.Error("met, it rests, or is not slow any more")
	}
	keys := answerer{"m", true}
	s.note(keys, attemptTimeout, true, now)
	if s.met("n"); s.rests(keys, now) {
		t.Error("key documents are not asked for, though their owner may have been met")
	}
	if s.note(m, attemptTimeout, false, now); s.rests(m, now) || !s.isSlow(m) {
		t.Error("who answers slowly rests, or is not slow")
	}
	if s.note(m, slowAnswer-1, false, now); s.isSlow(m) {
		t.Error("who answers quickly is slow")
	}
	for i := range 2 * maxResting {
		s.note(answerer{server: eventgraph.ServerName(fmt.Sprint(i))}, attemptTimeout, true, now)
	}
	if len(s.slow) > maxResting {
		t.Errorf("%d are remembered", len(s.slow))
	}
}
