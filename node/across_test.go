package node_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

// TestAcrossNodes: what a client of one node is told and shown of those on another, as they come and go.
func TestAcrossNodes(t *testing.T) {
	t.Parallel()
	a, _ := runNode(t)
	b, _ := runNodeWith(t, func(c *node.Config) { c.Peers = a.P2PAddrs() })
	alice, bob := register(t, a, "alice"), register(t, b, "bob")
	t.Run("device lists", func(t *testing.T) { deviceListsAcross(t, alice, bob) })
	t.Run("history", func(t *testing.T) { historyAcross(t, alice, bob) })
	t.Run("push rules", func(t *testing.T) { pushRulesAcross(t, alice, bob) })
	t.Run("blocked invites", func(t *testing.T) { blockedInvitesAcross(t, alice, bob) })
	http.DefaultClient.CloseIdleConnections()
}

// come joins a room that another user's server has.
func (u *localUser) come(room eventgraph.RoomID, by *localUser) {
	u.t.Helper()
	until(u.t, func() bool {
		status, _ := u.do("POST", "/join/"+url.PathEscape(string(room))+"?via="+string(by.id.Server()), struct{}{})
		return status == http.StatusOK
	})
}

// leave leaves a room.
func (u *localUser) leave(room eventgraph.RoomID) {
	u.t.Helper()
	u.must("POST", "/rooms/"+url.PathEscape(string(room))+"/leave", struct{}{}, nil)
}

// newKeys uploads other keys for the user's device, and returns its ID and the key that others should see.
func (u *localUser) newKeys(seed byte) (device, key string) {
	u.t.Helper()
	var who struct {
		Device string `json:"device_id"`
	}
	u.must("GET", "/account/whoami", nil, &who)
	private := ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))
	key = base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	raw, err := json.Marshal(map[string]any{"user_id": u.id, "device_id": who.Device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": map[string]string{"ed25519:" + who.Device: key, "curve25519:" + who.Device: "AAAA"}})
	if err != nil {
		u.t.Fatal(err)
	}
	signed, err := eventgraph.SignJSON(raw, eventgraph.SigningKey{Server: eventgraph.ServerName(u.id), ID: eventgraph.KeyID("ed25519:" + who.Device), Private: private})
	if err != nil {
		u.t.Fatal(err)
	}
	u.must("POST", "/keys/upload", map[string]any{"device_keys": json.RawMessage(signed)}, nil)
	return who.Device, key
}

// deviceListsAcross: alice is told of bob's devices while they share a room, and that it has ended; his keys are shown as they are.
func deviceListsAcross(t *testing.T, alice, bob *localUser) {
	since := ""
	sync := func() (changed, left bool) {
		var body struct {
			Next  string `json:"next_batch"`
			Lists struct {
				Changed, Left []eventgraph.UserID
			} `json:"device_lists"`
		}
		alice.must("GET", "/sync?timeout=100&since="+url.QueryEscape(since), nil, &body)
		since = body.Next
		return slices.Contains(body.Lists.Changed, bob.id), slices.Contains(body.Lists.Left, bob.id)
	}
	shown := func(device string) string {
		var body struct {
			Keys map[eventgraph.UserID]map[string]struct{ Keys map[string]string } `json:"device_keys"`
		}
		alice.must("POST", "/keys/query", map[string]any{"device_keys": map[string]any{string(bob.id): []string{}}}, &body)
		return body.Keys[bob.id][device].Keys["ed25519:"+device]
	}
	var seed byte
	upload := func() (device, key string) { seed++; return bob.newKeys(seed) }
	wantKey := func(when, device, key string) {
		t.Helper()
		if got := shown(device); got != key {
			t.Errorf("%s: key %q, want %q", when, got, key)
		}
	}
	device, key := upload()
	hers, his := alice.create(map[string]any{"preset": "public_chat"}), bob.create(map[string]any{"preset": "public_chat"})
	sync()
	for _, step := range []struct {
		name     string
		do       func()
		together bool
	}{
		{"bob joins", func() { bob.come(hers, alice) }, true},
		{"bob leaves", func() { bob.leave(hers) }, false},
		{"bob comes back", func() { bob.come(hers, alice) }, true},
		{"bob leaves again", func() { bob.leave(hers) }, false},
		{"alice joins", func() { alice.come(his, bob) }, true},
		{"alice leaves", func() { alice.leave(his) }, false},
		{"alice comes back", func() { alice.come(his, bob) }, true},
	} {
		step.do()
		until(t, func() bool { changed, left := sync(); return step.together && changed || !step.together && left })
		wantKey(step.name, device, key)
		device, key = upload()
		if step.together {
			// What was told before may be told twice; what counts is that the new keys are seen.
			until(t, func() bool { changed, _ := sync(); return changed && shown(device) == key })
			continue
		}
		wantKey(step.name+", new keys", device, key)
		if changed, _ := sync(); changed {
			t.Errorf("%s: alice is told of new keys", step.name)
		}
	}
}

// historyAcross: who joins, or comes back, reads page by page all that was said while they were not there.
func historyAcross(t *testing.T, alice, bob *localUser) {
	for name, c := range map[string]struct {
		messages, limit int
		again           bool
	}{
		"in small pages":            {messages: 20, limit: 10},
		"in a large one":            {messages: 130, limit: 100},
		"by one who was there once": {messages: 20, limit: 10, again: true},
	} {
		room := alice.create(map[string]any{"preset": "public_chat"})
		path := "/rooms/" + url.PathEscape(string(room))
		if c.again {
			bob.come(room, alice)
			bob.leave(room)
			until(t, func() bool {
				var members struct{ Joined map[eventgraph.UserID]any }
				alice.must("GET", path+"/joined_members", nil, &members)
				return len(members.Joined) == 1
			})
		}
		var said, seen []eventgraph.EventID
		for i := range c.messages {
			said = append(said, alice.say(room, fmt.Sprint(i)))
		}
		bob.come(room, alice)
		for from := ""; ; {
			var page struct {
				Chunk []struct {
					ID   eventgraph.EventID `json:"event_id"`
					Type string
				}
				End string
			}
			bob.must("GET", fmt.Sprintf("%s/messages?dir=b&limit=%d%s", path, c.limit, from), nil, &page)
			for _, e := range page.Chunk {
				if e.Type == "m.room.message" {
					seen = append(seen, e.ID)
				}
			}
			if page.End == "" {
				break
			}
			from = "&from=" + url.QueryEscape(page.End)
		}
		slices.Reverse(seen)
		if !slices.Equal(seen, said) {
			var order []int
			for _, id := range seen {
				order = append(order, slices.Index(said, id))
			}
			t.Errorf("%s: of %d messages are seen, in this order: %v", name, len(said), order)
		}
	}
}

// pushRulesAcross: a rule about a room goes over to the one that replaces it, however it was made, when its user joins that.
func pushRulesAcross(t *testing.T, alice, bob *localUser) {
	for _, byHand := range []bool{false, true} {
		old := alice.create(map[string]any{"preset": "public_chat", "room_version": "10"})
		bob.come(old, alice)
		rule := func(room eventgraph.RoomID) string { return "/pushrules/global/room/" + url.PathEscape(string(room)) }
		bob.must("PUT", rule(old), map[string]any{"actions": []string{"dont_notify"}}, nil)
		path := "/rooms/" + url.PathEscape(string(old))
		var upgraded struct {
			Room eventgraph.RoomID `json:"replacement_room"`
		}
		if byHand {
			upgraded.Room = alice.create(map[string]any{"preset": "public_chat", "room_version": "11", "creation_content": map[string]any{"predecessor": map[string]any{"room_id": old}}})
			alice.must("PUT", path+"/state/m.room.tombstone", map[string]any{"body": "replaced", "replacement_room": upgraded.Room}, nil)
		} else {
			alice.must("POST", path+"/upgrade", map[string]any{"new_version": "11"}, &upgraded)
		}
		until(t, func() bool {
			status, _ := bob.do("GET", path+"/state/m.room.tombstone", nil)
			return status == http.StatusOK
		})
		bob.come(upgraded.Room, alice)
		until(t, func() bool { status, _ := bob.do("GET", rule(upgraded.Room), nil); return status == http.StatusOK })
		var kept struct{ Actions []string }
		bob.must("GET", rule(upgraded.Room), nil, &kept)
		if !slices.Equal(kept.Actions, []string{"dont_notify"}) {
			t.Errorf("by hand %v: %v", byHand, kept.Actions)
		}
	}
}

// blockedInvitesAcross: the refusal of the server whose user blocks invites comes to who invites (CS API, Invite permission).
func blockedInvitesAcross(t *testing.T, alice, bob *localUser) {
	permission := "/user/" + url.PathEscape(string(bob.id)) + "/account_data/m.invite_permission_config"
	bob.must("PUT", permission, map[string]any{"default_action": "block"}, nil)
	room := alice.create(map[string]any{"preset": "private_chat", "invite": []eventgraph.UserID{bob.id}}) // the room is made all the same
	path := "/rooms/" + url.PathEscape(string(room))
	ways := []struct {
		method, path string
		body         any
	}{
		{"POST", path + "/invite", map[string]any{"user_id": bob.id}},
		{"PUT", path + "/state/m.room.member/" + url.PathEscape(string(bob.id)), map[string]any{"membership": "invite"}},
	}
	for _, way := range ways {
		var refused struct{ Errcode string }
		status, raw := alice.do(way.method, way.path, way.body)
		if json.Unmarshal(raw, &refused) != nil || status != http.StatusForbidden || refused.Errcode != "M_INVITE_BLOCKED" {
			t.Errorf("%s %s: %d %s", way.method, way.path, status, raw)
		}
	}
	if status, raw := alice.do("GET", ways[1].path, nil); status != http.StatusNotFound {
		t.Errorf("bob is in the room's state: %d %s", status, raw)
	}
	invited := func() bool {
		var sync struct {
			Rooms struct{ Invite map[eventgraph.RoomID]any }
		}
		bob.must("GET", "/sync", nil, &sync)
		return sync.Rooms.Invite[room] != nil
	}
	if invited() {
		t.Error("bob is shown the invite")
	}
	bob.must("PUT", permission, map[string]any{}, nil)
	alice.must("POST", ways[0].path, ways[0].body, nil)
	if !invited() {
		t.Error("bob, who blocks no invites any more, is not shown one")
	}
}
