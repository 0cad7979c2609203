package federation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// inPoliced runs a test in a room with a policy server, in virtual time.
func inPoliced(t *testing.T, test func(t *testing.T, r *policed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newPoliced(t, "12")
		test(t, r)
		for _, h := range []*memHost{r.a, r.u, r.p} {
			h.stop()
		}
	})
}

// takes makes the policy server answer each question after so long.
func (r *policed) takes(delay time.Duration) {
	answer := *r.p.intercept.Load()
	r.p.on(func(w http.ResponseWriter, q *http.Request, body []byte) bool {
		if q.URL.Path == policySign {
			select {
			case <-time.After(delay):
			case <-q.Context().Done():
			}
		}
		return answer(w, q, body)
	})
}

// member makes an event of a user's own membership, and says how long that took.
func (r *policed) member(user eventgraph.UserID, membership string) (eventgraph.EventID, time.Duration) {
	r.a.t.Helper()
	key, began := string(user), time.Now()
	id, err := r.a.Send(r.a.t.Context(), rooms.Draft{Room: r.room, Sender: user, Type: "m.room.member", StateKey: &key,
		Content: json.RawMessage(fmt.Sprintf(`{"membership":%q}`, membership))})
	if err != nil {
		r.a.t.Fatal(err)
	}
	return id, time.Since(began)
}

// A policy server gets a leave's whole patience, whoever was before it in the room; and one that is slower than that is still good enough for all else.
func TestLeavesGiveThePolicyServerAFairTrial(t *testing.T) {
	inPoliced(t, func(t *testing.T, r *policed) {
		carol, dora, emil := r.a.user("carol"), r.a.user("dora"), r.a.user("emil")
		for _, user := range []eventgraph.UserID{carol, dora, emil} {
			r.member(user, "join")
		}
		r.takes(leavePatience - 100*time.Millisecond)
		said := make(chan error, 1)
		go func() {
			_, err := r.send(t.Context(), "hello")
			said <- err
		}()
		synctest.Wait() // it has the room's turn
		id, _ := r.member(carol, "leave")
		if err := <-said; err != nil || !r.signed(r.a, id) {
			t.Errorf("a leave behind a message: signed %v; the message: %v", r.signed(r.a, id), err)
		}
		if r.a.policies.rests(r.p.server, time.Now()) {
			t.Error("a policy server that has answered all questions rests")
		}

		r.takes(leavePatience + time.Second) // in addition
		if id, took := r.member(dora, "leave"); r.signed(r.a, id) || took != leavePatience {
			t.Errorf("a leave before a slow policy server took %v, signed %v", took, r.signed(r.a, id))
		}
		if id, took := r.member(emil, "leave"); r.signed(r.a, id) || took != 0 {
			t.Errorf("the next leave took %v, signed %v", took, r.signed(r.a, id))
		}
		fine := r.unsigned("from elsewhere")
		time.Sleep(policyTimeout)
		if !r.a.holds(fine) || !r.signed(r.a, fine) {
			t.Error("what others sent waits because leaves are impatient")
		}
		r.a.policies.met(r.p.server)
		if r.a.policies.isSlow(r.p.server, time.Now()) {
			t.Error("met, it is still too slow for leaves")
		}
	})
}

// withPast lets a room have history that the policy server was not asked about; h has joined and is to fetch it.
func (r *policed) withPast(events int) (h *memHost, past []*eventgraph.Event) {
	t := r.a.t
	t.Helper()
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", `{}`)
	for i := range events {
		id, err := r.send(t.Context(), fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		past = append(past, r.a.event(id).Event)
	}
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.p.server, unpadded(r.by.Key)))
	h = newMemHost(t, r.n, "joiner")
	h.start()
	h.meet(r.a.host)
	h.meet(r.p.host)
	h.join(r.room, h.user("jane"), r.a.host)
	return h, past
}

// Who fetches history waits for pastPatience at most, however many pages come, and a policy server does not rest for what it did not answer there.
func TestHistoryIsNoTrialOfThePolicyServer(t *testing.T) {
	const events = 3 * pastAtOnce
	check := func(t *testing.T, r *policed, h *memHost, past []*eventgraph.Event, took time.Duration) {
		t.Helper()
		r.asked.Store(0)
		began := time.Now()
		if n, err := h.Backfill(t.Context(), r.room, 100); n < events || err != nil {
			t.Fatalf("backfill: %d, %v", n, err)
		}
		if is := time.Since(began); is != took {
			t.Errorf("history took %v, not %v", is, took)
		}
		if n := r.asked.Load(); n > pastAtOnce {
			t.Errorf("asked %d times, though there was no answer", n)
		}
		for _, e := range past {
			if v := h.event(e.ID()).Verdict; v != store.Accepted {
				t.Errorf("verdict %d", v)
			}
		}
		if h.policies.rests(r.p.server, time.Now()) || h.policies.full(r.p.server, r.room) {
			t.Error("the policy server rests, or the place of the question is not given back")
		}
	}
	t.Run("slow", func(t *testing.T) {
		inPoliced(t, func(t *testing.T, r *policed) {
			h, past := r.withPast(events)
			r.takes(pastPatience + time.Second)
			check(t, r, h, past, pastPatience)
			h.stop()
		})
	})
	t.Run("busy", func(t *testing.T) {
		inPoliced(t, func(t *testing.T, r *policed) {
			h, past := r.withPast(events)
			r.mode.Store(isBusy)
			check(t, r, h, past, 0)
			h.stop()
		})
	})
	t.Run("forged", func(t *testing.T) {
		inPoliced(t, func(t *testing.T, r *policed) {
			h, past := r.withPast(2)
			var forged []*eventgraph.Event
			for _, e := range past {
				var of struct {
					Signatures map[string]map[string]string `json:"signatures"`
				}
				if err := json.Unmarshal(e.Raw(), &of); err != nil {
					t.Fatal(err)
				}
				raw := e.Raw()
				for _, signature := range of.Signatures[string(r.a.server)] {
					raw = bytes.Replace(raw, []byte(signature), []byte(strings.Repeat("A", len(signature))), 1)
				}
				f, err := eventgraph.ParseEvent("12", raw)
				if err != nil {
					t.Fatal(err)
				}
				forged = append(forged, f)
			}
			r.asked.Store(0)
			patience := pastPatience
			if page, _, err := h.signPast(t.Context(), r.room, append(forged, past[0]), &patience); err != nil || len(page) != 3 || r.asked.Load() != 1 {
				t.Errorf("%d events, %v; asked %d times about one event", len(page), err, r.asked.Load())
			}
			h.stop()
		})
	})
	t.Run("asked about something else", func(t *testing.T) {
		inPoliced(t, func(t *testing.T, r *policed) {
			h, past := r.withPast(events)
			if !h.policies.begin(r.p.server, "!other") {
				t.Fatal("no place")
			}
			patience := pastPatience
			if signed, _, err := h.signPast(t.Context(), r.room, past, &patience); err != nil || len(signed) != events || r.asked.Load() != 1 || patience != 0 {
				t.Errorf("%d events, %v; asked %d times; patience %v", len(signed), err, r.asked.Load(), patience)
			}
			time.AfterFunc(time.Second, func() { h.endQuestion(r.p.server) })
			patience = pastPatience
			signed, _, err := h.signPast(t.Context(), r.room, past, &patience)
			if err != nil || patience != pastPatience-time.Second || r.asked.Load() != events+1 {
				t.Errorf("%v; asked %d times; patience %v", err, r.asked.Load(), patience)
			}
			for _, e := range signed {
				if e.VerifyPolicySignature(r.by) != nil {
					t.Error("not signed")
				}
			}
			h.stop()
		})
	})
}

// TestPolicyServerAndHiddenHistory: of history the policy server is asked about what it may see: not about what was said while it was out, or before it
// came, where that is hidden from those who come later.
func TestPolicyServerAndHiddenHistory(t *testing.T) {
	inPoliced(t, func(t *testing.T, r *policed) {
		alice, police := r.a.user("alice"), string(r.p.user("police"))
		r.a.setState(r.room, alice, eventgraph.PolicyType, "", `{}`)
		h := newMemHost(t, r.n, "joiner")
		h.start()
		h.meet(r.a.host)
		h.meet(r.p.host)
		if _, err := r.a.inviteOf(r.room, h.user("jane")); err != nil { // so h sees all of it
			t.Fatal(err)
		}
		r.a.setState(r.room, alice, "m.room.history_visibility", "", `{"history_visibility":"invited"}`)
		before := r.a.say(r.room, alice, "while it is there")
		kick := r.a.setState(r.room, alice, "m.room.member", police, `{"membership":"leave"}`)
		secret := r.a.say(r.room, alice, "while it is out")
		r.p.waitUntil("the kick", func() bool { return !r.p.Rooms.InRoom(r.room, r.p.server) })
		r.p.join(r.room, r.p.user("police"), r.a.host)
		after := r.a.say(r.room, alice, "when it is back")
		r.a.setState(r.room, alice, eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.p.server, unpadded(r.by.Key)))
		h.join(r.room, h.user("jane"), r.a.host)

		asked := map[eventgraph.EventID]bool{}
		var mu sync.Mutex
		answer := *r.p.intercept.Load()
		r.p.on(func(w http.ResponseWriter, q *http.Request, body []byte) bool {
			if q.URL.Path == policySign {
				e, err := eventgraph.ParseEvent("12", body)
				if err != nil {
					t.Error(err)
					return true
				}
				mu.Lock()
				asked[e.ID()] = true
				mu.Unlock()
			}
			return answer(w, q, body)
		})
		if _, err := h.Backfill(t.Context(), r.room, 100); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if !asked[after] || !asked[kick] || asked[secret] || asked[before] { // of the state before the kick too little is known when the page comes
			t.Errorf("asked about what came after: %v, its kick: %v, what was hidden: %v, what was before: %v", asked[after], asked[kick], asked[secret], asked[before])
		}
		for _, id := range []eventgraph.EventID{before, secret, after} {
			if e := h.event(id); e.Verdict != store.Accepted {
				t.Errorf("%s has verdict %d", id, e.Verdict)
			}
		}
		// Once it is held, its states are known.
		page := []*eventgraph.Event{r.a.event(before).Event, r.a.event(secret).Event}
		if visible, err := r.a.visiblePast(r.p.server, r.room, page); err != nil || !visible[before] || visible[secret] {
			t.Errorf("%v, %v", visible, err)
		}
		h.stop()
	})
}

// policedInbox is newPoliced, with the inbox of a stopped: its steps are done one by one.
func policedInbox(t *testing.T) *policed {
	t.Helper()
	r := newPoliced(t, "12")
	r.a.stop()
	return r
}

func (r *policed) load(room eventgraph.RoomID) *waiting {
	r.a.t.Helper()
	r.a.inbox.wake(room)
	w, err := r.a.loadWaiting(r.a.t.Context(), room)
	if err == nil {
		_, err = r.a.takeReady(r.a.t.Context(), w)
	}
	if err != nil || len(w.events) == 0 {
		r.a.t.Fatalf("%d events wait: %v", len(w.events), err)
	}
	return w
}

// Of several rooms that are visited at a time one gets the next question to their policy server, and the others none: they wait for its end,
// without having asked.
func TestPolicyQuestionIsReserved(t *testing.T) {
	t.Parallel()
	r := policedInbox(t)
	ursula := r.u.user("ursula")
	other := r.a.create("12", "public", "shared")
	r.p.join(other, r.p.user("police"), r.a.host)
	r.u.join(other, ursula, r.a.host)
	r.a.setState(other, r.a.user("alice"), eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.p.server, unpadded(r.by.Key)))
	first := r.unsigned("in the one room")
	if err := r.u.put(r.a, r.u.say(other, ursula, "in the other")); err != nil {
		t.Fatal(err)
	}
	one, two := r.load(r.room), r.load(other)
	next, ok := r.a.nextQuestion(one)
	if want := (ask{askPolicy, r.p.server, first, first}); !ok || next != want {
		t.Fatalf("the next question is %+v", next)
	}
	if next, ok := r.a.nextQuestion(two); ok {
		t.Errorf("a second question to the same policy server: %+v", next)
	}
	if err := r.a.putQuestion(t.Context(), one, next); err != nil {
		t.Error(err)
	}
	if next, ok := r.a.nextQuestion(r.load(other)); !ok || next.kind != askPolicy {
		t.Errorf("on the next visit, when the first has ended: %+v, %v", next, ok)
	}
}

// A question that was not put, because the policy server is asked something else or the giver has had its share, counts as never put; the state before
// an event is not asked for in vain.
func TestQuestionNotPut(t *testing.T) {
	t.Parallel()
	r := policedInbox(t)
	var states atomic.Int32
	deaf := *r.u.intercept.Load()
	r.u.on(func(w http.ResponseWriter, q *http.Request, body []byte) bool {
		if strings.Contains(q.URL.Path, "/state") {
			states.Add(1)
		}
		return deaf(w, q, body)
	})
	id := r.unsigned("hello")
	w := r.load(r.room)
	limit := r.a.budgets.friend(r.u.server)
	limit.SetLimit(0)
	for limit.AllowN(time.Now(), costPolicy) {
	}
	for _, c := range []struct {
		kind  askKind
		share bool
		want  error
	}{{askPolicy, false, errAskedEnough}, {askState, false, errAskedEnough}, {askState, true, errPolicyTurn}} {
		if c.share {
			limit.SetLimit(rate.Inf)
		}
		a := ask{kind: c.kind, server: r.u.server, event: id}
		if c.kind == askPolicy {
			next, ok := r.a.nextQuestion(w)
			if a = next; !ok || a.kind != askPolicy {
				t.Fatalf("the next question is %+v", a)
			}
		} else if c.share && !r.a.policies.begin(r.p.server, "!other") {
			t.Fatal("no place")
		}
		for range 5 {
			if err := r.a.putQuestion(t.Context(), w, a); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		}
		if r.a.inbox.tried(r.room, a) {
			t.Errorf("kind %d: was not put, and counts as put", c.kind)
		}
		if next, ok := r.a.nextQuestion(w); ok && next == a {
			t.Errorf("kind %d: tried again in the same visit", c.kind)
		}
	}
	if states.Load() != 0 || r.asked.Load() != 0 {
		t.Errorf("asked for the state %d times, the policy server %d times", states.Load(), r.asked.Load())
	}
	r.a.policies.end(r.p.server)
	w = r.load(r.room) // the next visit
	next, ok := r.a.nextQuestion(w)
	if !ok || next.kind != askPolicy {
		t.Fatalf("the next question is %+v", next)
	}
	if err := r.a.putQuestion(t.Context(), w, next); err != nil || !r.signed(r.a, id) {
		t.Errorf("in the end: %v", err)
	}
}

// A handshake waits for the policy server's turn, within one bound, and is told when to try again.
func TestHandshakeWaitsForThePolicyServersTurn(t *testing.T) {
	for _, c := range []struct {
		name   string
		rests  int           // on so many events that have no place yet
		each   time.Duration // that the policy server takes
		free   time.Duration // when the other question ends; 0: never
		spent  bool          // the joiner has had its share of questions
		took   time.Duration
		status int
		code   string
	}{
		{"free in time", 1, 0, 3 * time.Second, false, 3 * time.Second, 200, ""},
		{"busy", 1, 0, 0, false, policyTimeout, 503, "M_UNKNOWN"},
		{"slow", 3, 6 * time.Second, time.Second, false, 13 * time.Second, 503, "M_UNKNOWN"},
		{"share spent", 1, 0, time.Second, true, time.Second, 429, "M_LIMIT_EXCEEDED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inPoliced(t, func(t *testing.T, r *policed) {
				var base eventgraph.EventID
				for range c.rests {
					base = r.u.say(r.room, r.u.user("ursula"), "hello")
					if err := r.a.acceptOutliers(t.Context(), r.u.server, r.u.event(base).Event); err != nil {
						t.Fatal(err)
					}
				}
				r.takes(c.each)
				j := newMemHost(t, r.n, "joiner")
				j.start()
				j.meet(r.a.host)
				var status int
				var body struct {
					Code  string `json:"errcode"`
					Retry int64  `json:"retry_after_ms"`
				}
				var took time.Duration
				rest := r.joinsRestOn(base)
				r.a.on(func(w http.ResponseWriter, q *http.Request, b []byte) bool {
					if !strings.Contains(q.URL.Path, "/send_join/") || status != 0 {
						return rest(w, q, b)
					}
					began, made := time.Now(), httptest.NewRecorder()
					(*r.a.handler.Load()).ServeHTTP(made, q)
					took, status = time.Since(began), made.Code
					if status != 200 {
						json.Unmarshal(made.Body.Bytes(), &body)
					}
					w.WriteHeader(status)
					w.Write(made.Body.Bytes())
					return true
				})
				if !r.a.policies.begin(r.p.server, "!other") {
					t.Fatal("no place")
				}
				if c.spent {
					r.a.budgets.friend(j.server).SetBurst(costPolicy - 1)
				}
				if c.free > 0 {
					time.AfterFunc(c.free, func() { r.a.endQuestion(r.p.server) })
				}
				err := j.Join(t.Context(), r.room, j.user("jane"), names([]*host{r.a.host}), nil)
				if (err == nil) != (c.status == 200) {
					t.Errorf("join: %v", err)
				}
				if status != c.status || body.Code != c.code || (body.Retry > 0) != (c.status != 200) || took != c.took {
					t.Errorf("%d %+v after %v", status, body, took)
				}
				if r.a.policies.rests(r.p.server, time.Now()) {
					t.Error("the policy server rests")
				}
				j.stop()
			})
		})
	}
}

// joinsRestOn makes a hand out templates of joins that rest on an event.
func (r *policed) joinsRestOn(base eventgraph.EventID) func(w http.ResponseWriter, q *http.Request, body []byte) bool {
	return func(w http.ResponseWriter, q *http.Request, _ []byte) bool {
		if !strings.Contains(q.URL.Path, "/make_join/") {
			return false
		}
		made := httptest.NewRecorder()
		(*r.a.handler.Load()).ServeHTTP(made, q)
		var template struct {
			Event   map[string]any         `json:"event"`
			Version eventgraph.RoomVersion `json:"room_version"`
		}
		if err := json.Unmarshal(made.Body.Bytes(), &template); err != nil {
			r.a.t.Error(err)
		}
		template.Event["prev_events"] = []eventgraph.EventID{base}
		template.Event["depth"] = r.u.event(base).Depth() + 1
		answer, _ := json.Marshal(template)
		w.Write(answer)
		return true
	}
}
