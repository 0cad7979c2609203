package store

import (
	"errors"
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A device has MaxSlidingConnections connections, of which the one written first goes; those of other devices are not counted, and
// they go with their device.
func TestSlidingConnections(t *testing.T) {
	t.Parallel()
	s := open(t)
	const user = eventgraph.UserID("@a:x")
	put := func(device DeviceID, id string, ts int64) {
		mustUpdate(t, s, func(tx *Tx) error {
			return tx.PutSlidingConnection(user, device, &SlidingConnection{ID: id, WrittenTS: ts, Body: []byte(`{"of":"` + id + `"}`)})
		})
	}
	has := func(device DeviceID, id string) (found bool) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			c, err := r.SlidingConnection(user, device, id)
			if found = err == nil; found && string(c.Body) != `{"of":"`+id+`"}` {
				t.Errorf("%s holds %s", id, c.Body)
			}
			if errors.Is(err, ErrNotFound) {
				return nil
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	put("B", "0", 1)
	for i := range MaxSlidingConnections {
		put("A", fmt.Sprint(i), int64(10+i))
	}
	put("A", "0", 100) // again: there are no more for it
	if !has("A", "1") {
		t.Error("writing a connection again dropped another")
	}
	put("A", "more", 50)
	if has("A", "1") || !has("A", "0") || !has("A", "2") || !has("A", "more") || !has("B", "0") {
		t.Error("not the oldest was dropped")
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteSlidingConnections(user, "A") })
	if has("A", "0") || !has("B", "0") {
		t.Error("not the device's connections were deleted")
	}
}
