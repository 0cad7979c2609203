package federation

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// nested is that many arrays in each other.
func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// deepened is the event with another content, hashed and signed anew: Build makes none so deep.
func deepened(t *testing.T, e *eventgraph.Event, content string, key eventgraph.SigningKey) *eventgraph.Event {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(e.Raw(), &members); err != nil {
		t.Fatal(err)
	}
	delete(members, "hashes")
	delete(members, "signatures")
	members["content"] = json.RawMessage(content)
	canonical, err := canonicaljson.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(canonical)
	members["hashes"] = json.RawMessage(`{"sha256":"` + unpadded(sum[:]) + `"}`)
	members["signatures"] = json.RawMessage(`{}`)
	raw, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	made, err := eventgraph.ParseEvent(e.Version(), raw)
	if err == nil {
		made, err = made.WithSignature(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// deepMember takes a member event in at h that is as deep as an event may be, as from h's own server or one that joined by it. h's store has it as a server has
// that took it when such could still be made.
func (h *memHost) deepMember(room eventgraph.RoomID, user eventgraph.UserID, key eventgraph.SigningKey, announce bool) eventgraph.EventID {
	h.t.Helper()
	last := h.event(h.say(room, h.user("alice"), "what the deep one is built on"))
	e := deepened(h.t, h.memberOn(last, key, user, user, "join"), `{"membership":"join","x":`+nested(canonicaljson.MaxDepth-1)+`}`, key)
	if err := h.acceptOne(h.t.Context(), e, rooms.Basis{Kind: rooms.Parents, Origin: key.Server, Announce: announce}); err != nil {
		h.t.Fatalf("an event as deep as may be: %v", err)
	}
	return e.ID()
}

// TestDeepPartsHoldUpNobody: what is nested so deep that a request around it could not be signed is left out, and all else is sent.
func TestDeepPartsHoldUpNobody(t *testing.T) {
	t.Parallel()
	for name, poison := range map[string]func(a, b *memHost, room eventgraph.RoomID) (events []eventgraph.EventID){
		"device keys": func(a, b *memHost, room eventgraph.RoomID) []eventgraph.EventID {
			a.update(func(tx *store.Tx) error {
				_, err := tx.PutDeviceKeys(a.user("alice"), "PHONE", json.RawMessage(`{"x":`+nested(canonicaljson.MaxDepth-1)+`}`))
				return err
			})
			return nil
		},
		"to-device message": func(a, b *memHost, room eventgraph.RoomID) []eventgraph.EventID {
			a.queue(b.server, `{"message_id":"deep","messages":{"@b:c":{"*":`+nested(canonicaljson.MaxDepth-6)+`}}}`)
			return nil
		},
		"own event": func(a, b *memHost, room eventgraph.RoomID) []eventgraph.EventID {
			return []eventgraph.EventID{a.deepMember(room, a.user("mallory"), a.Key, false)}
		},
		"change that cannot be read": func(a, b *memHost, room eventgraph.RoomID) []eventgraph.EventID {
			a.update(func(tx *store.Tx) error {
				_, err := tx.Log(store.Change{Kind: store.ChangeDeviceList, User: a.user("alice"), Device: "PHONE", Key: "no stream ID"})
				return err
			})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := newMemHosts(t, memnet.New(), name+" a", name+" b")
			a, b := hosts[0], hosts[1]
			room := a.create("12", "public", "shared")
			b.join(room, b.user("bob"), a.host)
			events := poison(a, b, room)
			a.queue(b.server, a.encrypted("after it"))
			events = append(events, a.say(room, a.user("alice"), "after it"))
			b.waitFor("the events", events...) // also the deep one: what is not sent is asked for
			b.waitUntil("the message", func() bool { return len(b.local.came("m.direct_to_device")) > 0 })
			a.waitUntil("the queue to empty", func() bool { return len(a.outbound(b.server)) == 0 })
			if got := b.local.came("m.direct_to_device"); len(got) != 1 || !strings.Contains(got[0], "after it") {
				t.Errorf("%.200q came", got)
			}
			for _, kind := range []string{"m.device_list_update", "m.signing_key_update"} {
				if got := b.local.came(kind); len(got) != 0 {
					t.Errorf("%s: %.200q", kind, got)
				}
			}
		})
	}
}

// TestDeepJoinHoldsUpNobody: a join that another server took in, deeper than we would, reaches the room's others.
func TestDeepJoinHoldsUpNobody(t *testing.T) {
	t.Parallel()
	hosts := newMemHosts(t, memnet.New(), "deep join a", "deep join b", "deep join c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	join := a.deepMember(room, c.user("mallory"), c.Key, true)
	a.queue(b.server, a.encrypted("after it"))
	b.waitFor("the events", join, a.say(room, a.user("alice"), "after it"))
	b.waitUntil("the message", func() bool { return len(b.local.came("m.direct_to_device")) == 1 })
}

// TestDeepTransactionInFlight: one that was fixed when such were made is made anew.
func TestDeepTransactionInFlight(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "deep flight a", "deep flight b")
	a, b := hosts[0], hosts[1]
	togetherIn(a, b)
	alone(n, a, b)
	a.queue(b.server, a.encrypted("good"))
	a.stop()
	a.update(func(tx *store.Tx) error {
		d := &store.Destination{Server: b.server, Sent: a.Store.Position()}
		d.InFlight = &store.Transaction{ID: "blocked", Body: []byte(`{"edus":[{"edu_type":"m.x","content":` + nested(canonicaljson.MaxDepth-2) + `}]}`), UpTo: d.Sent}
		return tx.PutDestination(d)
	})
	a.start()
	mend(n, a, b)
	b.waitUntil("the message", func() bool { return len(b.local.came("m.direct_to_device")) == 1 })
}

// TestDeepIsRefused: what is to stand inside a signed request is refused before it is made, or taken in by a handshake.
func TestDeepIsRefused(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	deep := json.RawMessage(`{"membership":"join","x":` + nested(canonicaljson.MaxPart) + `}`)
	_, err := a.Rooms.Send(t.Context(), rooms.Draft{Room: room, Sender: a.user("alice"), Type: "m.room.message", Content: deep})
	wantCode(t, err, "M_BAD_JSON")
	_, err = a.Rooms.Create(t.Context(), rooms.CreateRequest{Version: "12", Creator: a.user("alice"), Content: deep})
	wantCode(t, err, "M_BAD_JSON")
	wantCode(t, b.Join(t.Context(), room, b.user("bob"), names(hosts[:1]), deep), "M_BAD_JSON")
	wantCode(t, b.Knock(t.Context(), a.create("12", "knock", "shared"), b.user("bob"), names(hosts[:1]), deep), "M_BAD_JSON")
	b.join(room, b.user("bob"), a)
	wantCode(t, b.Join(t.Context(), room, b.user("robert"), nil, deep), "M_BAD_JSON") // in a room that b is in
	robert := string(b.user("robert"))
	invite := json.RawMessage(`{"membership":"invite","x":` + nested(canonicaljson.MaxPart) + `}`)
	_, err = a.Invite(t.Context(), rooms.Draft{Room: room, Sender: a.user("alice"), Type: "m.room.member", StateKey: &robert, Content: invite})
	wantCode(t, err, "M_BAD_JSON")

	last := a.event(a.say(room, a.user("alice"), "the last"))
	user := c.user("carol")
	e := deepened(t, a.memberOn(last, c.Key, user, user, "join"), string(deep), c.Key)
	err = c.do(t.Context(), a.server, http.MethodPut, target(v2+"send_join", []string{string(room), string(e.ID())}, nil), json.RawMessage(e.Raw()), nil)
	wantCode(t, err, "M_BAD_JSON")
	if a.membership(room, user) != "" {
		t.Error("taken in")
	}
}

// TestInviteIntoRoomWithDeepState: an invite shows what of the room's state fits into the request.
func TestInviteIntoRoomWithDeepState(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "invite", "shared")
	last := a.event(a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"shallow"}`))
	deep := deepened(t, a.memberOn(last, a.Key, a.user("alice"), a.user("alice"), "join"), `{"membership":"join","x":`+nested(canonicaljson.MaxDepth-1)+`}`, a.Key)
	if err := a.acceptOne(t.Context(), deep, rooms.Basis{Kind: rooms.Parents, Origin: a.server}); err != nil {
		t.Fatal(err)
	}
	bob := string(b.user("bob"))
	_, err := a.Invite(t.Context(), rooms.Draft{Room: room, Sender: a.user("alice"), Type: "m.room.member", StateKey: &bob, Content: json.RawMessage(`{"membership":"invite"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.membership(room, b.user("bob")); got != "invite" {
		t.Errorf("bob's membership is %q", got)
	}
}

// TestOneUsersKeysHoldUpNobodys: keys that cannot be read, or not be signed, are not handed over; those of others are.
func TestOneUsersKeysHoldUpNobodys(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"cannot be read", "deep"} {
		hosts := newMemHosts(t, memnet.New(), bad+" keys a", bad+" keys b")
		a, b := hosts[0], hosts[1]
		a.join(togetherIn(a, b), a.user("mallory"), a.host)
		a.hasKeys("mallory", bad)
		a.hasKeys("alice", "good")
		b.waitUntil("alice's keys", func() bool { return b.handed(a.user("alice")) == "good" })
		own, err := a.ownBundles(b.server, []eventgraph.UserID{a.user("alice"), a.user("mallory")})
		if err != nil || len(own) != 1 {
			t.Errorf("bundles for carried messages: %d, %v", len(own), err)
		}
	}
}

// TestPolicyServerIsNotAskedAboutDeepEvent: it counts as declined, and the policy server goes on being asked about others.
func TestPolicyServerIsNotAskedAboutDeepEvent(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	id, err := r.send(t.Context(), "before")
	if err != nil {
		t.Fatal(err)
	}
	deep := deepened(t, r.a.memberOn(r.a.event(id), r.u.Key, r.u.user("ursula"), r.u.user("ursula"), "join"),
		`{"membership":"join","x":`+nested(canonicaljson.MaxDepth-1)+`}`, r.u.Key)
	_, err = r.a.signedFor(t.Context(), &rooms.PolicyNeeded{Event: deep, By: r.by})
	var refused *PolicyError
	if !errors.As(err, &refused) || !refused.final() {
		t.Errorf("got %v, want an end to the questions", err)
	}
	if r.a.policies.rests(r.p.server, r.a.Now()) {
		t.Error("no question is put to the policy server for a while")
	}
}
