package federation

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestWaitingByClockSetRight: what was acknowledged while the clock was two months behind still waits when it has been set right.
func TestWaitingByClockSetRight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, a, b, room := giverAndTaker(t)
		b.stop()
		behind := 2 * inboxKeep
		c := b.Config
		c.Now = func() time.Time { return time.Now().Add(-behind) }
		b.renew(c)
		first := a.say(room, a.user("alice"), "first")
		last := a.say(room, a.user("alice"), "last")
		if err := a.put(b, last); err != nil {
			t.Fatal(err)
		}
		behind = 0
		b.start()
		b.waitFor("what waited", first, last)
	})
}

// takerFromOutside is a host that does not run, and what puts an event into its inbox that a server outside the room gave and whose parent is not held.
func takerFromOutside(t *testing.T) (b *memHost, room eventgraph.RoomID, put func()) {
	t.Helper()
	_, a, b, room := giverAndTaker(t)
	b.stop()
	a.say(room, a.user("alice"), "not given")
	last := a.event(a.say(room, a.user("alice"), "last"))
	return b, room, func() {
		t.Helper()
		if err := b.putInbox(t.Context(), []*store.InboxItem{{ID: last.ID(), Room: room, Origin: "outside", PDU: last.Raw()}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWaitingEnds: an event of a server that is not in the room is dropped when this node has run for inboxKeepOutside with it, however often it was
// started anew, and not while it was off.
func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, room, put := takerFromOutside(t)
		put()
		visit := func() int {
			t.Helper()
			if _, err := b.loadWaiting(t.Context(), room); err != nil {
				t.Fatal(err)
			}
			return b.waits(room)
		}
		runs := func() { // all that ages what waits
			b.inbox.wake(room)
			b.run(func(ctx context.Context) error { b.keepInboxTime(ctx); return nil })
		}
		time.Sleep(inboxKeepOutside)
		for range 3 {
			b.renew(b.Config)
			runs()
			time.Sleep(inboxKeepOutside/3 - time.Hour)
			if visit() != 1 {
				t.Fatal("it is gone before its time")
			}
			b.stop()
		}
		runs()
		if time.Sleep(4 * time.Hour); visit() != 0 {
			t.Error("it waits for ever")
		}
	})
}

// TestWaitingEndsAfterCrash: also what is put there when nothing has waited for long, and this node ends at once, is dropped in time.
func TestWaitingEndsAfterCrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, room, put := takerFromOutside(t)
		b.renew(b.Config)
		time.Sleep(2 * inboxKeepOutside)
		put()
		b.renew(b.Config) // as after a crash: nobody has run keepInboxTime to its end
		b.inbox.wake(room)
		time.Sleep(inboxKeepOutside - time.Hour)
		for _, want := range []int{1, 0} {
			if _, err := b.loadWaiting(t.Context(), room); err != nil {
				t.Fatal(err)
			}
			if waits := b.waits(room); waits != want {
				t.Errorf("%d events wait, want %d", waits, want)
			}
			time.Sleep(2 * time.Hour)
		}
	})
}

// TestWaitingOfNoRoom: what waits for a room that is neither here nor being joined goes at the next start.
func TestWaitingOfNoRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, _, b, _ := giverAndTaker(t)
		const gone eventgraph.RoomID = "!gone"
		b.update(func(tx *store.Tx) error {
			return tx.PutInbox(&store.InboxItem{ID: "$x", Room: gone, PDU: []byte("{}")})
		})
		b.restart()
		b.waitUntil("it to go", func() bool { return b.waits(gone) == 0 })
	})
}
