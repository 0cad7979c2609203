package federation

import (
	"context"
	"time"

	"github.com/plexus-p2p/plexus/store"
)

// How long an event has waited is measured by the time that this node has run: a clock that was behind and is set right, as on a device without a
// clock that goes on while it is off, would make all that was acknowledged before too old at once. While a node is off nobody brings what is missing,
// so that does not count either.

// inboxTime is the time of store.InboxItem.Since: it goes on from what was kept last, with each item (putInbox) and by keepInboxTime, so a crash makes
// what waits younger by inboxBackoff at most.
type inboxTime struct {
	before time.Duration // when this node was started
	start  time.Time     // with a monotonic reading
}

func newInboxTime(s *store.Store) (inboxTime, error) {
	t := inboxTime{start: time.Now()}
	err := s.View(func(r *store.Reader) error {
		ms, err := r.InboxTime()
		t.before = time.Duration(ms) * time.Millisecond
		return err
	})
	return t, err
}

func (t inboxTime) now() time.Duration { return t.before + time.Since(t.start) }

// waited is for how long the item has waited.
func (t inboxTime) waited(item *store.InboxItem) time.Duration {
	return t.now() - time.Duration(item.Since)*time.Millisecond
}

// keepInboxTime writes the time down while something waits, and when ctx ends.
func (f *Federation) keepInboxTime(ctx context.Context) {
	for goesOn := true; goesOn; {
		goesOn = pause(ctx, inboxBackoff, nil)
		if f.inbox.isEmpty() {
			continue
		}
		now := f.inboxTime.now().Milliseconds()
		_, err := f.Store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.PutInboxTime(now) })
		if err != nil {
			f.Log.Warn("for how long events have waited could not be kept", "err", err)
		}
	}
}
