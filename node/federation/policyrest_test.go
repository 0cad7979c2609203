package federation

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

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
			go func() {
				time.Sleep(time.Second)
				h.endQuestion(r.p.server)
			}()
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
