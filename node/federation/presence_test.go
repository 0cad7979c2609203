package federation

import (
	"bytes"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// is is a client that says so, and that it will say so again within a minute and a half.
func (h *memHost) is(user eventgraph.UserID, state string) {
	h.Ephemeral.SetPresence(user, ephemeral.Presence{State: state, CurrentlyActive: state == "online", LastActive: time.Now(), For: 90 * time.Second})
}

// sees is what the server knows of the user's presence.
func (h *memHost) sees(user eventgraph.UserID) string {
	p, ok := h.Ephemeral.Presence(user)
	if !ok {
		return "nothing"
	}
	return p.State
}

// Who is online stays so on other servers: also for a server with which a room is shared later, for one that has forgotten, and as long as the client
// goes on. Of users who are idle or away little is said.
func TestPresenceIsKeptElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		hosts := newMemHosts(t, n, "a", "b")
		a, b := hosts[0], hosts[1]
		alice, ann, bob := a.user("alice"), a.user("ann"), b.user("bob")
		var told atomic.Int32
		b.on(func(_ http.ResponseWriter, _ *http.Request, body []byte) bool {
			if bytes.Contains(body, []byte(`"m.presence"`)) {
				told.Add(1)
			}
			return false
		})
		check := func(when string, h *memHost, user eventgraph.UserID, want string) {
			t.Helper()
			if got := h.sees(user); got != want {
				t.Errorf("%s: %s is %s, want %s", when, user, got, want)
			}
		}
		goOn := func(d time.Duration, each func()) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(30 * time.Second) {
				each()
			}
		}
		a.is(alice, "online")
		b.is(bob, "online")
		time.Sleep(time.Second)
		check("before a room is shared", b, alice, "nothing")

		room := a.create("12", "public", "shared")
		b.join(room, bob, a.host)
		time.Sleep(time.Second)
		check("after the join", b, alice, "online")
		check("after the join", a, bob, "online")

		a.join(room, ann)
		a.is(ann, "unavailable")
		told.Store(0)
		goOn(2*ephemeral.OfflineAfter, func() {
			a.is(alice, "online")
			a.is(ann, "unavailable")
			check("as long as the client goes on", b, alice, "online")
			check("as long as the client goes on", a, alice, "online")
		})
		check("who is idle", b, ann, "unavailable")
		if most := int32(2*ephemeral.OfflineAfter/repeatActive) + 4; told.Load() > most {
			t.Errorf("presence was told %d times in an hour, want %d at most", told.Load(), most)
		}

		cut(n, a, b)
		a.gone(b)
		b.stop()
		b.Ephemeral.Close()
		b.Config.Ephemeral = ephemeral.New(time.Now)
		b.renew(b.Config)
		b.start()
		defer b.Config.Ephemeral.Close()
		a.is(alice, "online")
		mend(n, a, b)
		goOn(time.Minute, func() { a.is(alice, "online") })
		check("after the other has forgotten", b, alice, "online")

		time.Sleep(2 * time.Minute) // the clients have gone
		check("who has gone", b, alice, "offline")
		told.Store(0)
		time.Sleep(2 * time.Hour)
		if told.Load() > 0 {
			t.Errorf("presence of who is away was told %d times", told.Load())
		}
		for _, h := range hosts {
			h.stop()
		}
	})
}
