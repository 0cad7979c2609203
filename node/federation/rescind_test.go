package federation

import (
	"encoding/json"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// TestRescind: an invite that is taken back, by a kick or a ban, is gone where the invited user is; nobody else can take it back.
func TestRescind(t *testing.T) {
	t.Parallel()
	for _, membership := range []string{"leave", "ban"} {
		t.Run(membership, func(t *testing.T) {
			t.Parallel()
			n := memnet.New()
			a, b, c := newMemHost(t, n, "a"), newMemHost(t, n, "b"), newMemHost(t, n, "c")
			a.start()
			b.start()
			c.start()
			a.meet(b.host)
			c.meet(b.host)
			room := a.create("12", "invite", "shared")
			alice, bob := a.user("alice"), b.user("bob")
			if _, err := a.Invite(t.Context(), inviteOf(room, alice, bob)); err != nil {
				t.Fatal(err)
			}
			if got := b.membership(room, bob); got != "invite" {
				t.Fatalf("bob has %q", got)
			}

			key := string(bob)
			forged, err := eventgraph.Build("12", eventgraph.Draft{
				RoomID: room, Type: "m.room.member", StateKey: &key, Sender: c.user("mallory"), Content: json.RawMessage(`{"membership":"leave"}`),
				PrevEvents: []eventgraph.EventID{a.extremity(room)}, Depth: 9, OriginServerTS: a.Now().UnixMilli(),
			}, c.Key)
			if err != nil {
				t.Fatal(err)
			}
			body, err := marshal(transaction{Origin: c.server, PDUs: []json.RawMessage{forged.Raw()}})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.putTransaction(t.Context(), b.server, "forged", body); err != nil {
				t.Fatal(err)
			}
			if got := b.membership(room, bob); got != "invite" {
				t.Errorf("after somebody else's event bob has %q", got)
			}

			if _, err := a.Rooms.Send(t.Context(), rooms.Draft{
				Room: room, Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"` + membership + `"}`),
			}); err != nil {
				t.Fatal(err)
			}
			b.waitUntil("the invite to go", func() bool { return b.membership(room, bob) == "leave" })
		})
	}
}

// An event from before the invite, such as the end of an earlier ban, does not take it back, though it comes after it.
func TestRescindedByNothingOlder(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	a, b := newMemHost(t, n, "a"), newMemHost(t, n, "b")
	a.start()
	b.start()
	a.meet(b.host)
	room := a.create("12", "public", "shared")
	alice, bob := a.user("alice"), b.user("bob")
	key := string(bob)
	set := func(membership string) eventgraph.EventID {
		t.Helper()
		id, err := a.Rooms.Send(t.Context(), rooms.Draft{
			Room: room, Sender: alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"` + membership + `"}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	set("ban")
	unban := set("leave")
	if _, err := a.Invite(t.Context(), inviteOf(room, alice, bob)); err != nil {
		t.Fatal(err)
	}
	var raw json.RawMessage
	if err := a.Store.View(func(r *store.Reader) error {
		e, err := r.Event(unban)
		if err == nil {
			raw = e.Raw()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	body, err := marshal(transaction{Origin: a.server, PDUs: []json.RawMessage{raw}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.putTransaction(t.Context(), b.server, "late", body); err != nil {
		t.Fatal(err)
	}
	if got := b.membership(room, bob); got != "invite" {
		t.Errorf("bob has %q", got)
	}
	set("leave")
	b.waitUntil("the invite to go", func() bool { return b.membership(room, bob) == "leave" })
}

// extremity is one of the room's forward extremities.
func (h *memHost) extremity(room eventgraph.RoomID) (id eventgraph.EventID) {
	h.t.Helper()
	err := h.Store.View(func(r *store.Reader) error {
		held, err := r.Room(room)
		if err == nil {
			id = held.Forward[0]
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}
