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
