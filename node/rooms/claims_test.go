package rooms

import (
	"encoding/json"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// without is the IDs of a state but for one tuple's.
func without(state []*eventgraph.Event, kind, key string) (ids []eventgraph.EventID) {
	for _, e := range state {
		if tuple, _ := e.Tuple(); tuple.Type != kind || tuple.Key != key {
			ids = append(ids, e.ID())
		}
	}
	return ids
}

// What a claim says to be in the state before an event takes no extremity away where the event becomes none itself: here it names the one
// that there is, and the room would be without any.
func TestAttackClaimOfTheLastExtremity(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		last := a.message(room, alice, "last")
		state, _ := a.stateAndChain(room, a.event(last).StateAfter)
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: []eventgraph.EventID{last}})
		below := b.on(base, "below", b.on(base, "never given", last).ID())
		renamed := b.lie(a, Draft{
			Room: room, Sender: bob, Type: "m.room.member", StateKey: stateKey(string(bob)), Content: json.RawMessage(`{"membership":"join","displayname":"b"}`),
		}, claim{ts: b.now, parents: []eventgraph.EventID{last, below.ID()}})
		a.accept(renamed, Basis{Kind: Claimed, State: ids(state), Origin: b.Server()}, store.Accepted)
		lie := append(without(state, "m.room.member", string(bob)), renamed.ID())
		a.accept(below, Basis{Kind: Claimed, State: lie, Origin: b.Server()}, store.Accepted)

		if got := a.record(room); len(got.Forward) == 0 || got.State == (eventgraph.Hash{}) {
			t.Fatalf("extremities %v, state %x", got.Forward, got.State)
		}
		a.message(room, alice, "the room is alive")
		a.checkTips(room)
	})
}

// A claim says nothing against what the held ones among the parents tell: here it is the state from before the ban that one of them knows of.
func TestAttackClaimBesideHeldParent(t *testing.T) {
	underAttack(t, func(t *testing.T, version eventgraph.RoomVersion) {
		a, b, alice, bob, room := shared(t, version)
		c := newServer(t, "c", a, b)
		carol := c.user("carol")
		c.join(a, room, carol)
		old := a.record(room).Forward
		oldState, _ := a.stateAndChain(room, a.event(old[0]).StateAfter)
		a.setState(room, alice, "m.room.member", string(carol), `{"membership":"ban"}`)
		known := a.message(room, alice, "after the ban")
		base := b.lie(a, said(room, bob, ""), claim{ts: b.now, parents: old})
		above := b.on(base, "above", known, b.on(base, "never given", old...).ID())
		a.accept(above, Basis{Kind: Claimed, State: ids(oldState), Origin: b.Server()}, store.Accepted)
		a.wantMember(room, carol, "ban")
		if at, err := a.StateAt(room, a.event(above.ID()).StateBefore).Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(carol)}); err != nil || at == nil || at.Membership() != "ban" {
			t.Errorf("before the event carol is no more banned: %v", err)
		}
		a.message(room, alice, "on")
		a.wantMember(room, carol, "ban")
	})
}
