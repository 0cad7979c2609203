package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestReceiptsOfOthersAreBounded: what another server puts into a receipt becomes a key of the store. Of one EDU the receipts
// that are in order are kept, the others hold up nothing.
func TestReceiptsOfOthersAreBounded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	const room = eventgraph.RoomID("!room:remote")
	event := "$" + strings.Repeat("e", 43)
	long := strings.Repeat("x", 70_000)
	receipt := func(event, thread string) string {
		return fmt.Sprintf(`{"event_ids":[%q],"data":{"ts":1,"thread_id":%q}}`, event, thread)
	}
	content := fmt.Sprintf(`{%q:{"m.read":{"@long:remote":%s,"@odd:remote":%s,"@good:remote":%s}}}`,
		room, receipt(event, long), receipt("$"+long, "main"), receipt(event, "main"))
	if err := s.ReceiveEDU(context.Background(), "remote", "m.receipt", json.RawMessage(content)); err != nil {
		t.Fatal(err)
	}
	err := s.Store.View(func(r *store.Reader) error {
		if _, err := r.Receipt(room, "@good:remote", "m.read", "main"); err != nil {
			t.Errorf("the receipt in order: %v", err)
		}
		for user, thread := range map[eventgraph.UserID]string{"@long:remote": long, "@odd:remote": "main"} {
			if _, err := r.Receipt(room, user, "m.read", thread); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("receipt of %s: %v, want none", user, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRepeatsOfFormerFriends: a message that comes again is known also if the last room was left in between.
func TestRepeatsOfFormerFriends(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	since := alice.sync("").NextBatch
	send := func(id string) {
		t.Helper()
		edu := fmt.Sprintf(`{"sender":"@rita:remote","type":"m.test","message_id":%q,"messages":{%q:{"*":{}}}}`, id, alice.user)
		if err := s.ReceiveEDU(context.Background(), "remote", "m.direct_to_device", json.RawMessage(edu)); err != nil {
			t.Fatal(err)
		}
	}
	s.update(func(tx *store.Tx) error { // as it was put while a room was shared that has been left since
		_, err := tx.SeeMessage("remote", "of a friend 0")
		return err
	})
	send("of a friend")
	if got := alice.sync(since).ToDevice.Events; len(got) != 0 {
		t.Errorf("a message of a former friend came twice: %d", len(got))
	}
	send("of a stranger")
	send("of a stranger")
	if got := alice.sync(since).ToDevice.Events; len(got) != 1 {
		t.Errorf("%d came, of one twice", len(got))
	}
}

// TestStrangersPushOutNothing: behind a long queue no more messages are put from servers that share no room with us.
func TestStrangersPushOutNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	since := alice.sync("").NextBatch
	send := func(id int) {
		t.Helper()
		messages := map[eventgraph.UserID]any{alice.user: map[string]any{"*": map[string]any{"n": id}}}
		edu, err := json.Marshal(map[string]any{"sender": "@x:far", "type": "m.test", "message_id": fmt.Sprint(id), "messages": messages})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.ReceiveEDU(context.Background(), "far", "m.direct_to_device", edu); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxStrangers + 5 {
		send(i)
	}
	var waiting uint64
	err := s.Store.View(func(r *store.Reader) (err error) {
		waiting, err = r.ToDeviceCount(alice.user, alice.device)
		return err
	})
	if err != nil || waiting != maxStrangers+1 {
		t.Errorf("%d messages wait, %v", waiting, err)
	}
	if got := alice.sync(since).ToDevice.Events; len(got) != maxToDevice {
		t.Errorf("%d messages come", len(got))
	}
}
