package clientapi

import (
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// With state_after a client takes its own membership from there: the end of an invite, a knock or a ban of somebody who is not in the room is
// told in it, whatever the timeline shows; without, in the timeline or else in state (CS API, GET /sync, use_state_after).
func TestSyncStateAfterTellsHowItEnded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, end func(alice, bob client, room eventgraph.RoomID)
		want        string
	}{
		"invite rejected": {
			before: func(alice, bob client, room eventgraph.RoomID) { alice.invite(room, bob) },
			end:    func(alice, bob client, room eventgraph.RoomID) { bob.inRoom(200, room, "leave", nil) },
			want:   "leave",
		},
		"invite taken back": {
			before: func(alice, bob client, room eventgraph.RoomID) { alice.invite(room, bob) },
			end:    func(alice, bob client, room eventgraph.RoomID) { alice.member(room, bob, "leave") },
			want:   "leave",
		},
		"banned while invited": {
			before: func(alice, bob client, room eventgraph.RoomID) { alice.invite(room, bob) },
			end:    func(alice, bob client, room eventgraph.RoomID) { alice.member(room, bob, "ban") },
			want:   "ban",
		},
		"knock withdrawn": {
			before: func(alice, bob client, room eventgraph.RoomID) {
				alice.state(room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
				bob.call(200, "POST", "/v3/knock/"+string(room), nil)
			},
			end:  func(alice, bob client, room eventgraph.RoomID) { bob.inRoom(200, room, "leave", nil) },
			want: "leave",
		},
		"ban ended": {
			before: func(alice, bob client, room eventgraph.RoomID) { alice.member(room, bob, "ban") },
			end:    func(alice, bob client, room eventgraph.RoomID) { alice.member(room, bob, "leave") },
			want:   "leave",
		},
		"banned after leaving": {
			before: func(alice, bob client, room eventgraph.RoomID) { bob.join(room) },
			end: func(alice, bob client, room eventgraph.RoomID) {
				bob.inRoom(200, room, "leave", nil)
				alice.member(room, bob, "ban")
			},
			want: "ban",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, alice, bob, _ := newMeeting(t)
			room := alice.createRoom(`{"preset":"public_chat"}`)
			c.before(alice, bob, room)
			since := bob.sync("").NextBatch
			c.end(alice, bob, room)
			own := func(events []syncedEvent) (last string) {
				for _, e := range events {
					if e.Type == "m.room.member" && e.StateKey != nil && *e.StateKey == string(bob.user) {
						last, _ = e.Content["membership"].(string)
					}
				}
				return last
			}
			for _, how := range []struct{ since, filter string }{
				{since, `{"room":{}}`}, {since, `{"room":{"timeline":{"limit":0}}}`}, {since, `{"room":{"timeline":{"types":["m.room.message"]}}}`},
				{since, `{"room":{"state":{"lazy_load_members":true}}}`}, {"", `{"room":{"include_leave":true}}`},
				{"", `{"room":{"include_leave":true,"timeline":{"types":[]}}}`},
			} {
				filter := "filter=" + how.filter
				plain := bob.sync(how.since, filter)
				left := plain.Rooms.Leave[room]
				if got := own(append(left.State.Events, left.Timeline.Events...)); got != c.want {
					t.Errorf("%s: state and timeline end with %q: %s", how.filter, got, plain.raw)
				}
				stable := bob.sync(how.since, filter, "use_state_after=true")
				if after := stable.Rooms.Leave[room].StateAfter; after == nil || own(after.Events) != c.want {
					t.Errorf("%s: state_after: %s", how.filter, stable.raw)
				}
				unstable := bob.sync(how.since, filter, "org.matrix.msc4222.use_state_after=true")
				if after := unstable.Rooms.Leave[room].UnstableAfter; after == nil || own(after.Events) != c.want {
					t.Errorf("%s: %s", how.filter, unstable.raw)
				}
			}
			hidden := bob.sync(since, `filter={"room":{"state":{"types":[]},"timeline":{"types":[]}}}`, "use_state_after=true").Rooms.Leave[room]
			if hidden.StateAfter == nil || len(hidden.StateAfter.Events) > 0 {
				t.Errorf("a filter that lets no state pass: %+v", hidden)
			}
		})
	}
}
