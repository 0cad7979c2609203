package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// No more than maxInvites wait for one user, and of one server maxInvitesOf: the oldest of it goes or, of all, of the server that has most.
func TestInvitesAreBounded(t *testing.T) {
	t.Parallel()
	a := newServer(t, "a")
	b := newServer(t, "b", a)
	alice, bob := a.user("alice"), b.user("bob")
	ctx := context.Background()
	room := func(server string, i int) eventgraph.RoomID {
		return eventgraph.RoomID(fmt.Sprintf("!%d:%s", i, server))
	}
	put := func(server string, from, to int) {
		t.Helper()
		_, err := b.store.Update(ctx, func(tx *store.Tx) error {
			for i := from; i < to; i++ {
				m := &store.Member{Room: room(server, i), User: bob, Membership: "invite", Outside: true, Via: eventgraph.ServerName(server)}
				var err error
				if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: m.Room, User: bob}); err != nil {
					return err
				}
				if err := tx.PutMember(m); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	receive := func() eventgraph.RoomID {
		t.Helper()
		key := string(bob)
		a.now = a.now.Add(1)
		invite, err := a.Build(ctx, Draft{Room: a.create("12", alice), Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it waits already
			if err := b.ReceiveInvite(ctx, pdu(t, invite), nil, a.Server(), false); err != nil {
				t.Fatal(err)
			}
		}
		return invite.RoomID()
	}
	left := func(server string, n int) (gone []int) {
		for i := range n {
			if b.membership(room(server, i), bob).Membership == "leave" {
				gone = append(gone, i)
			}
		}
		return gone
	}
	own := string(a.Server())
	put(own, 0, maxInvitesOf)
	put("other", 0, maxInvitesOf)
	if next := receive(); b.membership(next, bob).Membership != "invite" {
		t.Error("one more than a server's share does not wait")
	}
	if gone, others := left(own, maxInvitesOf), left("other", maxInvitesOf); !slices.Equal(gone, []int{0}) || len(others) > 0 {
		t.Errorf("gone are %v, and of another server %v", gone, others)
	}

	put("many", 0, maxInvites-2*maxInvitesOf)
	for i := 1; i < maxInvitesOf; i++ { // the server has one left, the new one
		if err := b.LeaveOutside(ctx, room(own, i), bob, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("last", 0, maxInvitesOf-1)
	if next := receive(); b.membership(next, bob).Membership != "invite" {
		t.Error("one more than all does not wait")
	}
	if gone := left("many", maxInvites-2*maxInvitesOf); !slices.Equal(gone, []int{0}) {
		t.Errorf("of the server with most, %v are gone", gone)
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
