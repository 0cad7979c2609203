package federation

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// anyNumbers is content that events of room versions 3 to 5 may have, though it has no canonical form.
const anyNumbers = `{"body":"numbers","msgtype":"m.text","float":1.50,"large":12345678901234567890,"exponent":1e3,"zero":-0}`

func (h *memHost) sayNumbers(room eventgraph.RoomID) eventgraph.EventID {
	h.t.Helper()
	id, err := h.Rooms.Send(h.t.Context(), rooms.Draft{Room: room, Sender: h.user("alice"), Type: "m.room.message", Content: json.RawMessage(anyNumbers)})
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// sent counts how often an event came by PUT /send.
func (a *arrivals) sent(id eventgraph.EventID) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count[id]
}

// TestAnyNumbers: requests that hold events of room versions 3 to 5 are signed, and taken, with the numbers that these may hold (appendices,
// Canonical JSON: "servers should be capable of handling JSON which is considered invalid by these restrictions where possible").
func TestAnyNumbers(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"3", "4", "5"} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			hosts := newMemHosts(t, memnet.New(), "a", "b")
			a, b := hosts[0], hosts[1]
			room := a.create(version, "invite", "shared")
			bob := b.user("bob")
			key := string(bob)
			if _, err := a.Invite(t.Context(), rooms.Draft{
				Room: room, Sender: a.user("alice"), Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite","float":0.5}`),
			}); err != nil {
				t.Fatal(err)
			}
			if got := b.membership(room, bob); got != "invite" {
				t.Errorf("an invite with a float in it: the invited is %q", got)
			}
			b.join(room, bob, a.host)
			came := b.hear(version)
			numbers := a.sayNumbers(room)
			last := a.say(room, a.user("alice"), "after it")
			a.acknowledged(b, last)
			for _, id := range []eventgraph.EventID{numbers, last} {
				if came.sent(id) != 1 {
					t.Errorf("%s came %d times in transactions", id, came.sent(id))
				}
			}
			b.waitFor("both", numbers, last)
			if got, want := b.event(numbers).Raw(), a.event(numbers).Raw(); string(got) != string(want) {
				t.Errorf("held as %s, sent as %s", got, want)
			}
			for _, path := range []string{
				target(v1+"event", []string{string(numbers)}, nil),
				target(v1+"backfill", []string{string(room)}, url.Values{"v": {string(last)}, "limit": {"2"}}),
			} {
				var answer transaction
				if err := b.do(t.Context(), a.server, http.MethodGet, path, nil, &answer); err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(answer.PDUs, func(raw json.RawMessage) bool { return strings.Contains(string(raw), "1.50") }) {
					t.Errorf("%s: not among %s", path, answer.PDUs)
				}
			}
		})
	}
}

// TestAnyNumbersRefused: a server that does not take such numbers gets what else there is, in order; the event with them can be asked for.
func TestAnyNumbersRefused(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusBadRequest} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			n := memnet.New()
			hosts := newMemHosts(t, n, "a", "b")
			a, b := hosts[0], hosts[1]
			room := a.create("5", "public", "shared")
			b.join(room, b.user("bob"), a.host)
			came := b.hear("5")
			hear := *b.intercept.Load()
			b.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				if _, ok := transactionOf(r, body); ok {
					if _, err := canonicaljson.Canonicalize(body, canonicaljson.Strict); err != nil {
						w.WriteHeader(status)
						fmt.Fprint(w, `{"errcode":"M_UNAUTHORIZED","error":"the signature does not fit"}`)
						return true
					}
				}
				return hear(w, r, body)
			})
			cut(n, a, b)
			a.gone(b)
			said := []eventgraph.EventID{a.say(room, a.user("alice"), "before")}
			numbers := a.sayNumbers(room)
			said = append(said, a.say(room, a.user("alice"), "after"))
			a.queue(b.server, fmt.Sprintf(`{"sender":%q,"n":1}`, a.user("alice")))
			mend(n, a, b)
			a.acknowledged(b, said[1])
			only := a.sayNumbers(room) // in a transaction of its own
			said = append(said, a.say(room, a.user("alice"), "and more"))
			a.acknowledged(b, said[2])
			a.waitUntil("the queue to empty", func() bool { return len(a.outbound(b.server)) == 0 })
			came.mu.Lock()
			order := slices.Clone(came.order)
			came.mu.Unlock()
			if !slices.Equal(order, said) {
				t.Errorf("in transactions came %v, want %v", order, said)
			}
			if got := b.local.came("m.direct_to_device"); len(got) != 1 {
				t.Errorf("%d EDUs came", len(got))
			}
			b.waitFor("the others, by other ways", numbers, only)
		})
	}
}

// TestAnyNumbersDeniedOnce: a denial that passes, for a key document that had expired, say, is no refusal of numbers: they come in a transaction.
func TestAnyNumbersDeniedOnce(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &crowd{t: t, net: memnet.New()}
				for _, name := range []string{"a", "b"} {
					c.add(t.Name()+name, nil)
				}
				a, b := c.hosts[0], c.hosts[1]
				room := a.create("5", "public", "shared")
				c.joinAll(room, c.hosts...)
				time.Sleep(time.Minute)
				came := b.hear("5")
				hear := *b.intercept.Load()
				var denied atomic.Int32
				b.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
					if _, ok := transactionOf(r, body); ok && denied.CompareAndSwap(0, 1) {
						w.WriteHeader(status)
						fmt.Fprint(w, `{"errcode":"M_FORBIDDEN","error":"not now"}`)
						return true
					}
					return hear(w, r, body)
				})
				numbers := a.sayNumbers(room)
				time.Sleep(time.Minute)
				if denied.Load() != 1 || came.sent(numbers) != 1 {
					t.Errorf("denied %d times, the event came %d times in transactions", denied.Load(), came.sent(numbers))
				}
			})
		})
	}
}
