package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// TestInvitesAreBounded: no more than maxInvites wait for one user; answering one makes room for another.
func TestInvitesAreBounded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	ctx := context.Background()
	old := eventgraph.RoomID("!0:" + string(a.Server()))
	_, err := b.store.Update(ctx, func(tx *store.Tx) error {
		for i := range maxInvites {
			room := eventgraph.RoomID(fmt.Sprintf("!%d:%s", i, a.Server()))
			if err := tx.PutMember(&store.Member{Room: room, User: bob, Membership: "invite", Outside: true}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	key := string(bob)
	invite, err := a.Build(ctx, Draft{Room: a.create("12", alice), Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server()), "M_LIMIT_EXCEEDED")
	if err := b.LeaveOutside(ctx, old, bob); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it waits already
		if err := b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server()); err != nil {
			t.Error(err)
		}
	}
}
