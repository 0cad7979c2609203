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
	wantRefusal(t, b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server(), false), "M_LIMIT_EXCEEDED")
	if err := b.LeaveOutside(ctx, old, bob, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it waits already
		if err := b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server(), false); err != nil {
			t.Error(err)
		}
	}
}

// Invites by strangers wait for all local users together no more than maxStrangerInvites: the oldest goes, as if it had been rejected, and the
// user is told. Those by others are not touched.
func TestStrangersInvitesAreBounded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, users := a.user("alice"), []eventgraph.UserID{b.user("bob"), b.user("bea")}
	ctx := context.Background()
	_, err := b.store.Update(ctx, func(tx *store.Tx) error {
		for _, user := range users {
			if err := tx.PutAccount(&store.Account{User: user}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	receive := func(user eventgraph.UserID, stranger bool) eventgraph.RoomID {
		t.Helper()
		key := string(user)
		a.now = a.now.Add(1) // a room of version 12 is known by its content
		room := a.create("11", alice)
		invite, err := a.Build(ctx, Draft{Room: room, Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // once more does not count
			if err := b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server(), stranger); err != nil {
				t.Fatal(err)
			}
		}
		return room
	}
	known := receive(users[0], false)
	var all []eventgraph.RoomID
	for i := range maxStrangerInvites {
		all = append(all, receive(users[i%2], true))
	}
	position := b.store.Position()
	waiting := func(i int) string { return b.membership(all[i], users[i%2]).Membership }
	if waiting(0) != "invite" {
		t.Fatalf("the first is %s", waiting(0))
	}
	all = append(all, receive(users[0], true))
	if waiting(0) != "leave" || waiting(1) != "invite" || waiting(maxStrangerInvites) != "invite" || b.membership(known, users[0]).Membership != "invite" {
		t.Errorf("%s %s %s, of who is known %s", waiting(0), waiting(1), waiting(maxStrangerInvites), b.membership(known, users[0]).Membership)
	}
	told := 0
	for _, c := range b.changesAfter(position) {
		if c.Kind == store.ChangeMembership && c.Room == all[0] && c.User == users[0] {
			told++
		}
	}
	if m := b.membership(all[0], users[0]); told != 1 || m.Position <= position || len(m.Invite)+len(m.Stripped) != 0 {
		t.Errorf("told %d times; left is %+v", told, m)
	}
	receive(users[1], true)
	if waiting(1) != "leave" || waiting(2) != "invite" {
		t.Errorf("then: %s %s", waiting(1), waiting(2))
	}
}
