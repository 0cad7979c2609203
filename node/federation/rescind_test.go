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
			if end := b.memberEvent(room, bob); end.Sender != alice || end.Content.Membership != membership {
				t.Errorf("bob is shown %+v", end)
			}
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

// shownEnd is what of the end of an invite matters to the user.
type shownEnd struct {
	Sender  eventgraph.UserID
	Depth   int64
	Content struct{ Membership, Reason string }
}

// memberEvent is the event that is kept of a membership outside of any room.
func (h *memHost) memberEvent(room eventgraph.RoomID, user eventgraph.UserID) (end shownEnd) {
	h.t.Helper()
	if err := h.Store.View(func(r *store.Reader) error {
		m, err := r.Member(room, user)
		if err != nil {
			return err
		}
		return json.Unmarshal(m.Invite, &end)
	}); err != nil {
		h.t.Fatal(err)
	}
	return end
}

// An invite that its user rejects ends with an event of theirs, with their reason, though nobody can be asked for a template.
func TestRejectionIsShown(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	a, b := newMemHost(t, n, "a"), newMemHost(t, n, "b")
	a.start()
	b.start()
	a.meet(b.host)
	room := a.create("12", "invite", "shared")
	bob := b.user("bob")
	if _, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), bob)); err != nil {
		t.Fatal(err)
	}
	invite := b.memberEvent(room, bob)
	if err := b.Leave(t.Context(), room, bob, "busy"); err != nil {
		t.Fatal(err)
	}
	if end := b.memberEvent(room, bob); end.Sender != bob || end.Content.Membership != "leave" || end.Content.Reason != "busy" || end.Depth != invite.Depth+1 {
		t.Errorf("bob's clients are shown %+v after %+v", end, invite)
	}
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
