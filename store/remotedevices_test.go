package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// TestRemoteDevicesBounds: what is kept of other servers' users' devices has a bound for each user and each server, and what is forgotten makes room.
func TestRemoteDevicesBounds(t *testing.T) {
	t.Parallel()
	s := open(t)
	list := func(user string, bytes int) *RemoteDevices {
		keys := json.RawMessage(`"` + strings.Repeat("x", bytes) + `"`)
		return &RemoteDevices{User: eventgraph.UserID(user), Devices: map[DeviceID]RemoteDevice{"D": {Keys: keys}}}
	}
	update := func(f func(tx *Tx) error) {
		t.Helper()
		if _, err := s.Update(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	full := func(l *RemoteDevices) bool {
		_, err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutRemoteDevices(l) })
		if err != nil && !errors.Is(err, ErrTooManyKeys) {
			t.Fatal(err)
		}
		return err != nil
	}
	if !full(list("@a:remote", MaxRemoteDeviceList)) {
		t.Error("a list that is too large is kept")
	}
	const size = MaxRemoteDeviceList - 1000
	n := 0
	for !full(list(fmt.Sprintf("@u%d:remote", n), size)) {
		if n++; n > MaxRemoteBytes/size {
			t.Fatal("one server fills the disk")
		}
	}
	if n < MaxRemoteBytes/MaxRemoteDeviceList {
		t.Errorf("%d lists are kept", n)
	}
	if full(list("@a:other", size)) {
		t.Error("another server's are not kept")
	}
	if full(list("@u0:remote", size)) || full(list("@u0:remote", 10)) {
		t.Error("a list of the same size, or smaller, does not take the place of the one before")
	}
	update(func(tx *Tx) error { return tx.DeleteRemoteDevices("@u1:remote") })
	if full(list("@new:remote", size)) {
		t.Error("what was forgotten makes no room")
	}
}
