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
