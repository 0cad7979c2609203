package federation

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// TestAttackEndlessPast: a server of the room gives an event whose parents nobody has, and to the question for them thousands of events,
// each again on parents that nobody has. Of an answer no more is taken than was asked for, the rest of the room does not wait for
// it, and questions are not repeated for each of them.
func TestAttackEndlessPast(t *testing.T) {
	t.Parallel()
	_, a, b, room := giverAndTaker(t)
	alice := a.user("alice")
	base := a.event(a.say(room, alice, "base"))
	if err := a.put(b, base.ID()); err != nil {
		t.Fatal(err)
	}
	b.waitFor("base", base.ID())

	const maxParents, endless, given = 20, 3, 1500
	n := 0
	onNothing := func() *eventgraph.Event {
		d := eventgraph.Draft{
			RoomID: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"body":"on nothing","msgtype":"m.text"}`),
			AuthEvents: base.AuthEvents(), Depth: 1 << 40, OriginServerTS: base.OriginServerTS(),
		}
		for range maxParents {
			n++
			hash := sha256.Sum256(fmt.Append(nil, n))
			d.PrevEvents = append(d.PrevEvents, eventgraph.EventID("$"+base64.RawURLEncoding.EncodeToString(hash[:])))
		}
		e, err := eventgraph.Build("12", d, a.Key)
		if err != nil {
			t.Error(err)
		}
		return e
	}
	var asked, single atomic.Int32
	first := onNothing()
	a.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case strings.Contains(r.URL.Path, "/get_missing_events/"):
			var events []json.RawMessage
			if asked.Add(1) <= endless {
				for range given {
					events = append(events, onNothing().Raw())
				}
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"events": events})
		case strings.Contains(r.URL.Path, "/event/"):
			single.Add(1)
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND"}`)
		default:
			return false
		}
		return true
	})
	body, err := marshal(transaction{Origin: a.server, PDUs: []json.RawMessage{first.Raw()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.putTransaction(t.Context(), b.server, "attack", body); err != nil {
		t.Fatal(err)
	}
	b.waitUntil("the answers", func() bool { return asked.Load() >= endless })

	honest := a.say(room, alice, "not held up")
	if err := a.put(b, honest); err != nil {
		t.Fatal(err)
	}
	b.waitFor("what rests on what is held", honest)
	b.say(room, b.user("bob"), "nor is b")
	if waits, most := b.waits(room), 1+endless*missingLimit; waits > most {
		t.Errorf("%d events wait, want at most %d", waits, most)
	}
	// Each visit of the room puts some questions; there are 6,000 parents to ask for.
	if total := asked.Load() + single.Load(); total > 5*inboxRounds {
		t.Errorf("%d questions in a few visits, of at most %d each", total, inboxRounds)
	}
}
