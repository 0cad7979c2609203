package federation

import (
	"net/http"
	"testing"
	"time"
)

// The clocks of servers that share a room are read off their answers, whatever is asked; then we sign no more than an hour ahead of them.
func TestPeersClocksAreHeard(t *testing.T) {
	t.Parallel()
	w := newWire()
	a, b, c, stranger := idleHost(t, w, "a"), idleHost(t, w, "b"), idleHost(t, w, "c"), idleHost(t, w, "d")
	const slow = 3 * time.Hour
	for _, h := range []*host{b, c, stranger} {
		h.Federation.Now = func() time.Time { return time.Now().Add(-slow) }
	}
	for _, h := range []*host{b, c, stranger} { // after that: they ask each other who they are
		h.run(h.runPeers)
	}
	a.run(a.runPeers)
	for _, h := range []*host{b, c, stranger} {
		h.meet(a)
		a.meet(h)
	}
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	ask := func(h *host) {
		t.Helper()
		if err := a.do(t.Context(), h.server, http.MethodGet, v1+"version", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	ask(b)
	ask(stranger)
	if off := a.Rooms.ClockAhead(); off != 0 {
		t.Fatalf("by one peer and a stranger the clock is off by %s", off)
	}
	if off := time.Since(time.UnixMilli(a.event(a.say(room, a.user("alice"), "x")).OriginServerTS())); off > time.Minute {
		t.Errorf("signed %s ago", off)
	}
	c.join(room, c.user("carol"), a)
	if err := a.do(t.Context(), c.server, http.MethodGet, v1+"event/$none", nil, nil); err == nil {
		t.Fatal("no error")
	} // errors have a date too
	if off := a.Rooms.ClockAhead(); off < slow || off > slow+time.Minute {
		t.Errorf("by two peers the clock is off by %s", off)
	}
	floor := a.Rooms.SigningTime(0)
	if now := time.Now().UnixMilli(); floor > now || now-floor > time.Minute.Milliseconds() {
		t.Errorf("signs %d ms back, behind what it has signed before", now-floor)
	}
}
