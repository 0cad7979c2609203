package clientapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What others can make large (an invite with its state, what a topic replaced, receipts in threads) still fits into a transaction.
func TestLargestTransactions(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "receive_ephemeral: true")
	alice := r.newClient("alice")
	ghost := client{s: r.testServer, user: bridge{client: bot}.ghost("irc_nick")}
	r.run(t)
	wide := strings.Repeat("<", 60_000) // HTML's escaping would make six bytes of each

	const far = eventgraph.RoomID("!far")
	invite := fmt.Sprintf(`{"type":"m.room.member","state_key":%q,"sender":"@b:far","content":{"membership":"invite","reason":%q},"origin_server_ts":1,"depth":1}`, ghost.user, wide)
	topic := json.RawMessage(`{"type":"m.room.topic","state_key":"","sender":"@b:far","content":{"topic":"` + wide + `"}}`)
	name := json.RawMessage(`{"type":"m.room.name","state_key":"","sender":"@b:far","content":{"name":"Far"}}`)
	stripped, err := json.Marshal([]json.RawMessage{topic, name}) // as it is stored
	if err != nil {
		t.Fatal(err)
	}
	r.update(func(tx *store.Tx) error {
		m := store.Member{Room: far, User: ghost.user, Membership: "invite", Event: "$invite", Outside: true, Stripped: stripped, Invite: []byte(invite)}
		var err error
		if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: far, User: ghost.user}); err != nil {
			return err
		}
		return tx.PutMember(&m)
	})
	found := false
	for _, e := range r.collect(t, `"!far"`) {
		if e["room_id"] != string(far) {
			continue
		}
		state := fmt.Sprint(e["unsigned"].(map[string]any)["invite_room_state"])
		found = e["content"].(map[string]any)["reason"] == wide && strings.Contains(state, "Far")
	}
	if !found {
		t.Error("the invite from afar came otherwise, or without the state that fits")
	}

	room := alice.room()
	for _, kind := range []string{"name", "topic", "avatar", "server_acl"} {
		content := `{"` + kind + `":"` + wide + `"}`
		if kind == "server_acl" {
			content = `{"allow":["*"],"deny":[],"more":"` + wide + `"}`
		}
		alice.state(room, "m.room."+kind, "", content)
		alice.state(room, "m.room."+kind, "", content[:len(content)-1]+`,"again":1}`)
	}
	key := string(ghost.user)
	alice.event(rooms.Draft{Room: room, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite","reason":"` + wide + `"}`)})
	found = false
	for _, e := range r.collect(t, `"invite_room_state"`) {
		found = found || e["room_id"] == string(room) && e["content"].(map[string]any)["reason"] == wide
	}
	if !found {
		t.Error("the invite to a room with large state did not come")
	}

	id := alice.message(room, text("hello"))
	bot.join(room)
	r.collect(t, "@ircbot:")
	r.update(func(tx *store.Tx) error {
		for i := range 400 {
			thread := fmt.Sprintf("$%d%s", i, strings.Repeat("<", 240))
			event := eventgraph.EventID(fmt.Sprintf("$e%d%s", i, strings.Repeat("<", 240)))
			if _, err := tx.PutReceipt(&store.Receipt{Room: room, User: "@far:far", Type: "m.read", Event: event, Thread: thread, TS: int64(i + 1)}); err != nil {
				return err
			}
		}
		_, err := tx.PutReceipt(&store.Receipt{Room: room, User: "@far:far", Type: "m.read", Event: id, TS: 1000})
		return err
	})
	newest := false
	for _, e := range r.collect(t, "$e399") {
		newest = newest || e["type"] == "m.receipt" && strings.Contains(fmt.Sprint(e["content"]), string(id))
	}
	if !newest {
		t.Error("the newest receipt is missing")
	}
}
