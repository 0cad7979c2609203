package rooms

import (
	"context"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Whose clock counts: ours is shown as off, and stamps are taken back, where most of at least two others say so.
func TestClockRule(t *testing.T) {
	t.Parallel()
	const year, week = 365 * 24 * time.Hour, 7 * 24 * time.Hour
	for name, c := range map[string]struct {
		ours   time.Duration // how far our clock is from the right time
		theirs []time.Duration
		ahead  time.Duration // as shown
		signed time.Duration // from the right time; a second after it an event was signed before
	}{
		"nobody heard":                       {ours: year, signed: year},
		"one right":                          {ours: year, theirs: []time.Duration{0}, signed: year},
		"one slow":                           {theirs: []time.Duration{-year}},
		"one fast":                           {theirs: []time.Duration{year}},
		"a slow one and a right one":         {theirs: []time.Duration{-year, 0}},
		"a fast one and a right one":         {theirs: []time.Duration{0, year}},
		"two right":                          {ours: year, theirs: []time.Duration{0, time.Minute}, ahead: year - time.Minute, signed: time.Hour + time.Minute},
		"two right, ours not by much":        {ours: 59 * time.Minute, theirs: []time.Duration{0, 0}, signed: 59 * time.Minute},
		"two right, ours slow":               {ours: -week, theirs: []time.Duration{0, 0}, ahead: -week, signed: -week},
		"two right, one fast":                {ours: year, theirs: []time.Duration{0, year, 0}, ahead: year, signed: time.Hour},
		"two right, one slow":                {ours: year, theirs: []time.Duration{0, -year, 0}, ahead: year, signed: time.Hour},
		"two right, one slow, ours right":    {theirs: []time.Duration{0, -year, 0}},
		"two right, two fast":                {ours: year, theirs: []time.Duration{year, 0, year, 0}, signed: year},
		"three slow ones agree, ours right":  {ours: time.Minute, theirs: []time.Duration{-year, -year, -year}, ahead: year + time.Minute, signed: time.Second},
		"one is as fast as ours, one right":  {ours: year, theirs: []time.Duration{year, 0}, signed: year},
		"everybody is somewhere, ours right": {theirs: []time.Duration{-week, -year, 0, week, year}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newServer(t, "a")
			alice := a.user("alice")
			right := a.now
			room := a.create("12", alice)
			a.message(room, alice, "signed while all was well")
			for _, s := range crowdIn(room, len(c.theirs), a) {
				theirs := c.theirs[0]
				c.theirs = c.theirs[1:]
				a.now = right.Add(c.ours)
				a.PeerClock(s.key.Server, right.Add(theirs))
			}
			a.now = right.Add(c.ours)
			// Started anew: the floor is what the store tells.
			a.clocks.mu.Lock()
			a.clocks.newest, a.clocks.read = 0, false
			a.clocks.mu.Unlock()
			if got := a.ClockAhead(); got != c.ahead {
				t.Errorf("ahead by %s, want %s", got, c.ahead)
			}
			id, err := a.Send(context.Background(), Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("x")})
			if err != nil {
				t.Fatal(err)
			}
			if got := time.UnixMilli(a.event(id).OriginServerTS()).Sub(right); got != c.signed {
				t.Errorf("signed for %s from the right time, want %s", got, c.signed)
			}
		})
	}
}

// What does not count: clocks of strangers, old readings, and readings from before our clock was set or the device slept.
func TestClocksThatDoNotCount(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	right := a.now
	a.now = right.Add(24 * time.Hour)
	for _, stranger := range []string{"x", "y", "z"} {
		a.PeerClock(eventgraph.ServerName(stranger), right)
	}
	if got := a.ClockAhead(); got != 0 || len(a.clocks.heard) != 0 {
		t.Errorf("strangers' clocks say that ours is ahead by %s", got)
	}
	for _, s := range crowdIn(room, 3, a) {
		a.PeerClock(s.key.Server, right)
	}
	if got := a.ClockAhead(); got != 24*time.Hour {
		t.Errorf("ahead by %s", got)
	}
	now := a.now
	for name, c := range map[string]struct {
		now    time.Time
		counts bool
	}{
		"soon":      {now.Add(clockKept - time.Second), true},
		"too late":  {now.Add(clockKept), false},
		"set back":  {now.Add(-time.Second), false},
		"the right": {now, true},
	} {
		a.now = c.now
		if got := a.ClockAhead() != 0; got != c.counts {
			t.Errorf("%s: the readings count: %v", name, got)
		}
	}
	// A clock that shows another time than has passed: after sleep, or set by somebody.
	begun := time.Now()
	if d := (reading{at: begun}); !d.counts(begun.Add(time.Minute)) || d.counts(begun.Round(0).Add(2*clockKept)) {
		t.Error("by the monotonic clock")
	}

	// A time asked for, as application services may, is bounded by our own clock.
	a.now = now
	ahead := a.send(Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("x"), TS: now.Add(5 * time.Hour).UnixMilli()})
	if got, most := a.event(ahead).OriginServerTS(), a.now.Add(maxAheadOfPeers).UnixMilli(); got > most {
		t.Errorf("signed for %d ms after what may be", got-most)
	}
	old := a.send(Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("x"), TS: 1000})
	if got := a.event(old).OriginServerTS(); got != 1000 {
		t.Errorf("a time in the past was changed to %d", got)
	}
	if n := len(a.clocks.heard); n != 3 {
		t.Errorf("%d clocks", n)
	}
	for _, s := range crowdIn(room, maxClocks+5, a) {
		a.PeerClock(s.key.Server, now)
	}
	if n := len(a.clocks.heard); n != maxClocks {
		t.Errorf("%d clocks remembered, want %d", n, maxClocks)
	}
}
