package store

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	alice = eventgraph.UserID("@alice:here")
	phone = DeviceID("D")
)

func queued(t testing.TB, s *Store, after, upTo Position) (bodies []string) {
	t.Helper()
	mustView(t, s, func(r *Reader) error {
		return r.ToDevice(alice, phone, after, upTo, func(m *ToDevice) (bool, error) {
			bodies = append(bodies, string(m.Content))
			return true, nil
		})
	})
	return bodies
}

func TestToDeviceQueueIsBounded(t *testing.T) {
	s := open(t)
	const extra = 3
	n := 0
	var last Position
	for n < MaxToDevice+extra {
		last = mustUpdate(t, s, func(tx *Tx) error {
			for range 1000 {
				if n == MaxToDevice+extra {
					break
				}
				if _, err := tx.PutToDevice(alice, phone, &ToDevice{Sender: "@b:far", Type: "m.x", Content: json.RawMessage(fmt.Sprint(n))}); err != nil {
					return err
				}
				n++
			}
			return nil
		})
	}
	got := queued(t, s, 0, latest)
	if len(got) != MaxToDevice || got[0] != fmt.Sprint(extra) {
		t.Fatalf("%d messages wait, the oldest is %s", len(got), got[0])
	}
	if got := queued(t, s, last-1, latest); len(got) != 1 || got[0] != fmt.Sprint(n-1) {
		t.Errorf("after all but the last: %v", got)
	}

	// Deleting so many takes more than one transaction, in as many calls.
	for range 3 {
		mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteToDevice(alice, phone, last-1) })
	}
	if got := queued(t, s, 0, latest); len(got) != 1 {
		t.Errorf("%d are left", len(got))
	}
	mustView(t, s, func(r *Reader) error {
		if has, err := r.HasToDevice(alice, phone, last-1); has || err != nil {
			t.Errorf("messages up to %d: %v, %v", last-1, has, err)
		}
		if count, err := r.ToDeviceCount(alice, phone); count != 1 || err != nil {
			t.Errorf("the queue counts %d, %v", count, err)
		}
		return nil
	})
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteDeviceQueue(alice, phone) })
	if got := queued(t, s, 0, latest); len(got) != 0 {
		t.Errorf("%d are left", len(got))
	}
}

func TestSeenMessagesAreRememberedPerOrigin(t *testing.T) {
	s := open(t)
	see := func(origin eventgraph.ServerName, from, n int) (before int) {
		t.Helper()
		mustUpdate(t, s, func(tx *Tx) error {
			before = 0
			for i := from; i < from+n; i++ {
				seen, err := tx.SeeMessage(origin, fmt.Sprint(i))
				if err != nil {
					return err
				}
				if seen {
					before++
				}
			}
			return nil
		})
		return before
	}
	see("a", 0, 100)
	if n := see("a", 50, 100); n != 50 {
		t.Errorf("%d seen before, want 50", n)
	}
	if n := see("b", 0, 100); n != 0 {
		t.Errorf("%d seen before of another origin", n)
	}
	for i := range MaxSeenMessages / 1000 {
		see("a", 1000*(i+1), 1000)
	}
	if n := see("a", 0, 1); n != 0 {
		t.Error("the oldest is remembered beyond the bound")
	}
	if n := see("a", MaxSeenMessages, 1000); n != 1000 {
		t.Errorf("%d of the newest are remembered", n)
	}
}
