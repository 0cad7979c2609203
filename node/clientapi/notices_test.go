package clientapi

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/push"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// told is what the user would be told of these events.
func (c client) told(room eventgraph.RoomID, most int, events ...eventgraph.EventID) (notices []push.Notice) {
	c.s.t.Helper()
	err := c.s.Store.View(func(r *store.Reader) (err error) {
		notices, err = c.s.Notices(r, c.user, room, events, most)
		return err
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	return notices
}

func (c client) wantTold(what string, room eventgraph.RoomID, events []eventgraph.EventID, want ...eventgraph.EventID) {
	c.s.t.Helper()
	var got []eventgraph.EventID
	for _, n := range c.told(room, 100, events...) {
		got = append(got, n.Event)
	}
	if !slices.Equal(got, want) {
		c.s.t.Errorf("%s: told of %q, want %q", what, got, want)
	}
}

func TestNotices(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol, dave := s.newClient("alice"), s.newClient("bob"), s.newClient("carol"), s.newClient("dave")
	alice.call(200, "PUT", "/v3/profile/"+string(alice.user)+"/displayname", map[string]string{"displayname": "Alice"})
	var made struct {
		Room eventgraph.RoomID `json:"room_id"`
	}
	json.Unmarshal([]byte(alice.call(200, "POST", "/v3/createRoom", map[string]any{"preset": "public_chat", "name": "Den", "room_alias_name": "den"}).raw), &made)
	room := made.Room
	early := alice.say(room, "before")
	bob.join(room)
	carol.join(room)

	own := bob.say(room, "mine")
	plain := alice.say(room, "one")
	secret := alice.event(rooms.Draft{Room: room, Type: "m.room.encrypted", Content: json.RawMessage(`{"ciphertext":"x"}`)})
	notice := alice.message(room, `{"msgtype":"m.notice","body":"two"}`)
	reply := alice.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":"in a thread","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, plain))
	last := carol.say(room, "three")
	all := []eventgraph.EventID{early, own, plain, secret, notice, reply, last}
	bob.wantTold("all", room, all, plain, secret, reply, last)
	bob.wantTold("none that is held", room, []eventgraph.EventID{"$nothing"})

	notices := bob.told(room, 100, plain, secret)
	var stored *store.StoredEvent
	if err := s.Store.View(func(r *store.Reader) (err error) { stored, err = r.Event(plain); return err }); err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(notices[0])
	want, _ := json.Marshal(push.Notice{
		Position: stored.Position, ReceivedTS: 1_800_000_000_000, Event: plain, Room: room, Type: "m.room.message", Sender: alice.user, SenderName: "Alice",
		RoomName: "Den", RoomAlias: "#den:" + string(s.Server), Content: json.RawMessage(text("one")), Tweaks: map[string]json.RawMessage{},
	})
	if !sameObject(t, got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !notices[1].Urgent {
		t.Error("an encrypted message is not urgent")
	}
	if few := bob.told(room, 2, all...); len(few) != 2 || few[0].Event != reply || few[1].Event != last {
		t.Errorf("the newest two: %+v", few)
	}

	// What was read is told no more: in its thread, or in all.
	receipt := "/v3/rooms/" + url.PathEscape(string(room)) + "/receipt/m.read.private/"
	bob.call(200, "POST", receipt+url.PathEscape(string(reply)), map[string]string{"thread_id": string(plain)})
	bob.wantTold("the thread is read", room, all, plain, secret, last)
	bob.call(200, "POST", receipt+url.PathEscape(string(secret)), struct{}{})
	bob.wantTold("the beginning is read", room, all, last)

	// Somebody who is ignored is not heard, and of a redacted message nothing is given away.
	ringing := carol.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":"bob!","m.mentions":{"user_ids":[%q]}}`, bob.user))
	if n := bob.told(room, 1, ringing)[0]; !n.Urgent || string(n.Tweaks["highlight"]) != "true" || string(n.Tweaks["sound"]) != `"default"` {
		t.Errorf("a mention: %+v", n)
	}
	carol.call(200, "PUT", "/v3/rooms/"+url.PathEscape(string(room))+"/redact/"+url.PathEscape(string(ringing))+"/r1", struct{}{})
	for _, n := range bob.told(room, 1, ringing) {
		if string(n.Content) != "{}" || n.Urgent {
			t.Errorf("a redacted mention: %+v", n)
		}
	}
	bob.call(200, "PUT", "/v3/user/"+string(bob.user)+"/account_data/m.ignored_user_list", map[string]any{"ignored_users": map[string]any{string(carol.user): map[string]any{}}})
	bob.wantTold("carol is ignored", room, all)

	// Who is invited is told that, and nothing of what is said there; who has nothing to do with the room, nothing.
	invite := alice.member(room, dave, "invite")
	unseen := alice.say(room, "four")
	dave.wantTold("an invite", room, []eventgraph.EventID{last, invite, unseen}, invite)
	if n := dave.told(room, 1, invite)[0]; !n.Target || !n.Urgent {
		t.Errorf("an invite: %+v", n)
	}
	bob.wantTold("another's invite", room, []eventgraph.EventID{invite})
	dave.member(room, dave, "leave")
	dave.wantTold("after leaving", room, []eventgraph.EventID{invite, unseen})
	s.newClient("erin").wantTold("not there", room, all)

	for who, want := range map[client]int{bob: 1, dave: 0} { // "four"
		err := s.Store.View(func(r *store.Reader) error {
			n, err := s.Unread(r, who.user, room)
			if n != want {
				t.Errorf("%s has %d unread, want %d", who.user, n, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// sameObject compares JSON without regard to the order of members.
func sameObject(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y map[string]any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		t.Fatalf("%s or %s is no object", a, b)
	}
	return mustJSON(x) == mustJSON(y)
}

func TestInvitationsFromAfar(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bob := s.newClient("bob")
	member := fmt.Sprintf(`{"type":"m.room.member","state_key":%q,"sender":"@a:far","content":{"membership":"invite"},"more":1}`, bob.user)
	m := store.Member{
		Room: "!far", User: bob.user, Membership: "invite", Event: "$invite", Position: 7, Outside: true, Invite: []byte(member),
		Stripped: []byte(`[{"type":"m.room.name","state_key":"","sender":"@a:far","content":{"name":"Far"}},
			{"type":"m.room.canonical_alias","state_key":"","sender":"@a:far","content":{"alias":"#far:far"}},
			{"type":"m.room.member","state_key":"@a:far","sender":"@a:far","content":{"membership":"join","displayname":"A"}}]`),
	}
	told := func(m store.Member) (n *push.Notice) {
		t.Helper()
		if err := s.Store.View(func(r *store.Reader) (err error) { n, err = s.Invitation(r, &m); return err }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := told(m)
	if n == nil || n.Event != "$invite" || n.Room != "!far" || n.Position != 7 || n.Sender != "@a:far" || n.SenderName != "A" || n.RoomName != "Far" ||
		n.RoomAlias != "#far:far" || !n.Target || !n.Urgent || string(n.Content) != `{"membership":"invite"}` {
		t.Errorf("an invite: %+v", n)
	}
	for what, change := range map[string]func(*store.Member){
		"a stranger's":     func(m *store.Member) { m.Stranger = true },
		"one that is over": func(m *store.Member) { m.Membership = "leave" },
		"what is none":     func(m *store.Member) { m.Invite = []byte(`{"type":1}`) },
		"one that is here": func(m *store.Member) { m.Outside = false },
	} {
		other := m
		change(&other)
		if n := told(other); n != nil {
			t.Errorf("%s is told: %+v", what, n)
		}
	}
	bob.call(200, "PUT", "/v3/pushrules/global/override/.m.rule.invite_for_me/enabled", map[string]bool{"enabled": false})
	if n := told(m); n != nil {
		t.Errorf("told against the rules: %+v", n)
	}
}
