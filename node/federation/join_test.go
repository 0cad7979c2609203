package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

func TestJoin(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"3", "6", "10", "11", "12"} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			w := newWire()
			hosts := newHosts(t, w, "a", "b")
			a, b := hosts[0], hosts[1]
			room := a.create(version, "public", "shared")
			said := a.say(room, a.user("alice"), "before")
			err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a}), json.RawMessage(`{"displayname":"Bob"}`))
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range []*host{a, b} {
				if got := h.membership(room, b.user("bob")); got != "join" {
					t.Errorf("bob is %q at %s", got, h.server.Tail())
				}
				if got := h.membership(room, a.user("alice")); got != "join" {
					t.Errorf("alice is %q at %s", got, h.server.Tail())
				}
			}
			mine, err := a.Rooms.CurrentState(room)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := b.Rooms.CurrentState(room)
			if err != nil {
				t.Fatal(err)
			}
			if mine.Root() != theirs.Root() {
				t.Error("the states differ")
			}
			member, err := mine.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(b.user("bob"))})
			if err != nil || !strings.Contains(string(member.Content()), `"displayname":"Bob"`) {
				t.Errorf("bob's membership is %s, %v", member.Raw(), err)
			}
			if len(member.SignedBy(a.server)) == 0 {
				t.Error("the resident has not signed the join")
			}

			// Another user of b joins without asking anybody.
			w.setAway(a.end.id, true)
			if err := b.Join(t.Context(), room, b.user("berta"), nil, nil); err != nil {
				t.Fatal(err)
			}
			if got := b.membership(room, b.user("berta")); got != "join" {
				t.Errorf("berta is %q", got)
			}
			w.setAway(a.end.id, false)

			// What was before is fetched on demand, to the first event.
			n, err := b.Backfill(t.Context(), room, 100)
			if err != nil || n == 0 {
				t.Fatalf("backfill: %d, %v", n, err)
			}
			if e := b.event(said); e.Verdict != store.Accepted || e.Order >= 0 || e.StateBefore != a.event(said).StateBefore {
				t.Errorf("the event before the join: %+v", e)
			}
			if again, err := b.Backfill(t.Context(), room, 100); err != nil || again != 0 {
				t.Errorf("backfill beyond the first event: %d, %v", again, err)
			}
			id, ts, err := b.EventNear(t.Context(), room, 0, true)
			create, _ := mine.Event(eventgraph.StateTuple{Type: "m.room.create"})
			if err != nil || id != create.ID() || ts != create.OriginServerTS() {
				t.Errorf("the first event is %s at %d, %v", id, ts, err)
			}
		})
	}
}

func TestJoinRefused(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	closed := a.create("12", "invite", "shared")
	wantCode(t, b.Join(t.Context(), closed, b.user("bob"), names([]*host{a}), nil), "M_FORBIDDEN")

	denied := a.create("12", "public", "shared")
	a.setState(denied, a.user("alice"), "m.room.server_acl", "", `{"allow":["*"],"deny":["`+string(b.server)+`"]}`)
	wantCode(t, b.Join(t.Context(), denied, b.user("bob"), names([]*host{a}), nil), "M_FORBIDDEN")

	wantCode(t, b.Join(t.Context(), "!unknown:"+eventgraph.RoomID(a.server), b.user("bob"), names([]*host{a}), nil), "M_NOT_FOUND")

	away, _, _, _ := newKeys("nobody there")
	err := b.Join(t.Context(), closed, b.user("bob"), []eventgraph.ServerName{away}, nil)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("join over a server that is away: %v", err)
	}
	for _, room := range []eventgraph.RoomID{closed, denied} {
		if got := a.membership(room, b.user("bob")); got != "" {
			t.Errorf("bob is %q", got)
		}
	}
}

// TestJoinThroughThird: a room does not need its creator's server to be joined, with the keys of who is away.
func TestJoinThroughThird(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	if _, err := b.Backfill(t.Context(), room, 100); err != nil {
		t.Fatal(err)
	}
	w.setAway(a.end.id, true)
	c.join(room, c.user("carol"), a, b)
	if n, err := c.Backfill(t.Context(), room, 100); err != nil || n == 0 {
		t.Fatalf("backfill: %d, %v", n, err)
	}
	if !c.Rooms.InRoom(room, a.server) || !b.Rooms.InRoom(room, c.server) {
		t.Error("the servers do not see each other")
	}
}

// Who is in the room that the rule names may join; others may not, but by knock_restricted they may knock.
func TestRestrictedJoin(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{"restricted", "knock_restricted"} {
		w := newWire()
		hosts := newHosts(t, w, "a", "b")
		a, b := hosts[0], hosts[1]
		bob, carol := b.user("bob"), b.user("carol")
		club := a.create("12", "public", "shared")
		room := a.create("12", "invite", "shared")
		a.setState(room, a.user("alice"), "m.room.join_rules", "",
			`{"join_rule":"`+rule+`","allow":[{"type":"m.room_membership","room_id":"`+string(club)+`"}]}`)
		wantCode(t, b.Join(t.Context(), room, bob, names([]*host{a}), nil), "M_FORBIDDEN")
		if rule == "knock_restricted" {
			if err := b.Knock(t.Context(), room, carol, names([]*host{a}), nil); err != nil {
				t.Errorf("knocking: %v", err)
			}
			if got := a.membership(room, carol); got != "knock" {
				t.Errorf("who knocks is %q", got)
			}
		} else {
			wantCode(t, b.Knock(t.Context(), room, carol, names([]*host{a}), nil), "M_FORBIDDEN")
		}
		b.join(club, bob, a)
		a.wait("bob in the club", func() bool { return a.membership(club, bob) == "join" })
		b.join(room, bob, a)
		if got := b.membership(room, bob); got != "join" {
			t.Errorf("%s: bob is %q", rule, got)
		}
		state, err := a.Rooms.CurrentState(room)
		if err != nil {
			t.Fatal(err)
		}
		e, _ := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(bob)})
		if e == nil || !strings.Contains(string(e.Content()), `"join_authorised_via_users_server":"`+string(a.user("alice"))) {
			t.Errorf("%s: nobody has let bob in: %v", rule, e)
		}
	}
}

func TestSendJoinChecks(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	e, err := b.make(t.Context(), a.server, "join", room, b.user("bob"), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := func(endpoint string, id eventgraph.EventID) string {
		return target(v2+endpoint, []string{string(room), string(id)}, nil)
	}
	put := func(from *host, path string, body any) error {
		return from.do(t.Context(), a.server, http.MethodPut, path, body, nil)
	}
	raw := json.RawMessage(e.Raw())
	changed := json.RawMessage(strings.Replace(string(raw), `"membership":"join"`, `"displayname":"x","membership":"join"`, 1))
	wantCode(t, put(c, path("send_join", e.ID()), raw), "M_INVALID_PARAM")                                         // another's user
	wantCode(t, put(b, path("send_join", "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), raw), "M_INVALID_PARAM") // another event
	wantCode(t, put(b, path("send_leave", e.ID()), raw), "M_FORBIDDEN")                                            // nothing to leave
	wantCode(t, put(b, path("send_join", e.ID()), changed), "M_INVALID_PARAM")                                     // wrong content hash
	wantCode(t, put(b, path("send_join", e.ID()), json.RawMessage(`{"sender":"`+string(b.user("bob"))+`"}`)), "M_BAD_JSON")

	unsigned, err := eventgraph.Finish("12", e.Raw(), e.OriginServerTS(), eventgraph.SigningKey{
		Server: b.server, ID: b.Key.ID, Private: testKey("somebody else"),
	})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, put(b, path("send_join", unsigned.ID()), json.RawMessage(unsigned.Raw())), "M_INVALID_PARAM")
	if got := a.membership(room, b.user("bob")); got != "" {
		t.Fatalf("bob is %q", got)
	}
	if err := put(b, path("send_join", e.ID()), raw); err != nil {
		t.Fatal(err)
	}
	if got := a.membership(room, b.user("bob")); got != "join" {
		t.Fatalf("bob is %q", got)
	}
	if err := put(b, path("send_join", e.ID()), raw); err != nil {
		t.Errorf("the same once more, as if the answer was lost: %v", err)
	}
	wantCode(t, put(b, path("send_leave", e.ID()), raw), "M_INVALID_PARAM") // not a leave

	leave, err := b.make(t.Context(), a.server, "leave", room, b.user("bob"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := put(b, path("send_leave", leave.ID()), json.RawMessage(leave.Raw())); err != nil {
			t.Error(err)
		}
	}
	if got := a.membership(room, b.user("bob")); got != "leave" {
		t.Errorf("bob is %q", got)
	}
}

func TestInvite(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"9", "12"} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			w := newWire()
			hosts := newHosts(t, w, "a", "b")
			a, b := hosts[0], hosts[1]
			room := a.create(version, "invite", "shared")
			bob := b.user("bob")
			id, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), bob))
			if err != nil {
				t.Fatal(err)
			}
			if e := a.event(id); len(e.SignedBy(b.server)) == 0 || e.Verdict != store.Accepted {
				t.Error("the invite is not accepted with the signature of the invited server")
			}
			if got := b.membership(room, bob); got != "invite" {
				t.Fatalf("bob is %q at home", got)
			}
			var m *store.Member
			b.Store.View(func(r *store.Reader) (err error) {
				m, err = r.Member(room, bob)
				return err
			})
			if !m.Outside || m.Via != a.server || !strings.Contains(string(m.Stripped), "The room") || strings.Contains(string(m.Stripped), "signatures") {
				t.Errorf("invite kept as %+v", m)
			}
			if err := b.Join(t.Context(), room, bob, nil, nil); err != nil { // over who invited
				t.Fatal(err)
			}
			if got := a.membership(room, bob); got != "join" {
				t.Errorf("bob is %q", got)
			}
		})
	}
}

func inviteOf(room eventgraph.RoomID, by, user eventgraph.UserID) rooms.Draft {
	key := string(user)
	return rooms.Draft{Room: room, Sender: by, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)}
}

func TestInviteRefused(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "invite", "shared")
	_, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), b.user("nobody")))
	wantCode(t, err, "M_FORBIDDEN")
	if got := a.membership(room, b.user("nobody")); got != "" {
		t.Errorf("invited all the same: %q", got)
	}
	_, err = a.Invite(t.Context(), inviteOf(room, a.user("mallory"), b.user("bob")))
	wantCode(t, err, "M_FORBIDDEN")

	// Events that are no invites for a user of b by a user of a are not signed.
	e, err := a.Rooms.Build(t.Context(), inviteOf(room, a.user("alice"), b.user("bob")))
	if err != nil {
		t.Fatal(err)
	}
	state, err := a.strippedState(room, a.user("alice"))
	if err != nil {
		t.Fatal(err)
	}
	leave, err := a.Rooms.Build(t.Context(), rooms.Draft{
		Room: room, Sender: a.user("alice"), Type: "m.room.topic", StateKey: new(string), Content: json.RawMessage(`{"topic":"x"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	put := func(e *eventgraph.Event, body any) error {
		return a.do(t.Context(), b.server, http.MethodPut, target(v2+"invite", []string{string(room), string(e.ID())}, nil), body, nil)
	}
	wantCode(t, put(leave, invitation{"12", leave.Raw(), state}), "M_INVALID_PARAM")
	wantCode(t, put(e, invitation{"99", e.Raw(), state}), "M_INCOMPATIBLE_ROOM_VERSION")
	wantCode(t, put(e, invitation{"12", e.Raw(), state[1:]}), "M_MISSING_PARAM") // no create event
	wantCode(t, put(e, invitation{"12", e.Raw(), []json.RawMessage{json.RawMessage(`{"type":"m.room.create"}`)}}), "M_INVALID_PARAM")
	if got := b.membership(room, b.user("bob")); got != "" {
		t.Errorf("bob is %q", got)
	}
	if err := put(e, invitation{"12", e.Raw(), state}); err != nil {
		t.Fatal(err)
	}
}

// TestInviteBlocked: who blocks invites is invited by nobody, to whatever room (CS API, Invite permission).
func TestInviteBlocked(t *testing.T) {
	t.Parallel()
	w := newWire()
	a, b := idleHost(t, w, "a"), idleHost(t, w, "b")
	for from, to := range map[*host]*host{a: b, b: a} {
		if _, err := from.identify(t.Context(), to.end.id); err != nil {
			t.Fatal(err)
		}
	}
	room := a.create("12", "invite", "shared")
	bob, carol := b.user("bob"), b.user("carol")
	block := func(content string) {
		t.Helper()
		_, err := b.Store.Update(t.Context(), func(tx *store.Tx) error {
			_, err := tx.PutAccountData(bob, "", &store.AccountData{Type: rooms.InvitePermissionType, Content: json.RawMessage(content)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	block(`{"default_action":"block"}`)
	uninvited := func(what string) {
		t.Helper()
		_, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), bob))
		wantCode(t, err, "M_INVITE_BLOCKED")
		for _, h := range []*host{a, b} {
			if got := h.membership(room, bob); got != "" {
				t.Errorf("%s: bob is %q", what, got)
			}
		}
	}
	uninvited("a room that is not held here")
	v1 := target(v1+"invite", []string{string(room), "$e"}, nil)
	wantCode(t, a.do(t.Context(), b.server, http.MethodPut, v1, map[string]any{"state_key": bob}, nil), "M_INVITE_BLOCKED")
	wantCode(t, a.do(t.Context(), b.server, http.MethodPut, v1, map[string]any{"state_key": carol}, nil), "M_INCOMPATIBLE_ROOM_VERSION")

	if _, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), carol)); err != nil {
		t.Fatal(err)
	}
	if err := b.Join(t.Context(), room, carol, nil, nil); err != nil {
		t.Fatal(err)
	}
	uninvited("a room that is held here")

	// An invite that was made while b was away is refused once, and not brought again.
	other := a.create("12", "invite", "shared")
	w.setAway(b.end.id, true)
	if _, err := a.Invite(t.Context(), inviteOf(other, a.user("alice"), bob)); err != nil {
		t.Fatal(err)
	}
	w.setAway(b.end.id, false)
	if _, err := a.identify(t.Context(), b.end.id); err != nil {
		t.Fatal(err)
	}
	for _, o := range a.outbound(b.server) {
		if err := a.deliverOutbound(t.Context(), o); o.Kind == kindInvite && err != nil {
			t.Errorf("the invite will be brought again: %v", err)
		}
	}
	if got := b.membership(other, bob); got != "" {
		t.Errorf("bob is %q", got)
	}
	block(`{"default_action":"ask"}`)
	if _, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), bob)); err != nil {
		t.Error(err)
	}
}

// TestInviteAway: an invite to a server that is away is in the room at once, and is delivered later.
func TestInviteAway(t *testing.T) {
	t.Parallel()
	w := newWire()
	a, b := idleHost(t, w, "a"), idleHost(t, w, "b")
	w.setAway(b.end.id, true)
	room := a.create("12", "invite", "shared")
	bob := b.user("bob")
	if _, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), bob)); err != nil {
		t.Fatal(err)
	}
	if got := a.membership(room, bob); got != "invite" {
		t.Fatalf("bob is %q", got)
	}
	queued := a.outbound(b.server)
	if len(queued) != 1 || queued[0].Kind != kindInvite {
		t.Fatalf("queued: %+v", queued)
	}
	if err := a.deliverOutbound(t.Context(), queued[0]); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("delivery to a server that is away: %v", err)
	}
	w.setAway(b.end.id, false)
	if _, err := a.identify(t.Context(), b.end.id); err != nil {
		t.Fatal(err)
	}
	if err := a.deliverOutbound(t.Context(), queued[0]); err != nil {
		t.Fatal(err)
	}
	if got := b.membership(room, bob); got != "invite" {
		t.Fatalf("bob is %q at home", got)
	}

	// Bob rejects it while a is away: at once at home, later at a.
	w.setAway(a.end.id, true)
	if err := b.Leave(t.Context(), room, bob, "no time"); err != nil {
		t.Fatal(err)
	}
	if got := b.membership(room, bob); got != "leave" {
		t.Fatalf("bob is %q at home", got)
	}
	queued = b.outbound(a.server)
	if len(queued) != 1 || queued[0].Kind != kindLeave {
		t.Fatalf("queued: %+v", queued)
	}
	w.setAway(a.end.id, false)
	if err := b.deliverOutbound(t.Context(), queued[0]); err != nil {
		t.Fatal(err)
	}
	if got := a.membership(room, bob); got != "leave" {
		t.Fatalf("bob is %q", got)
	}
	// A second time there is nothing to leave; the item is done with all the same.
	if err := b.deliverOutbound(t.Context(), queued[0]); err != nil {
		t.Fatal(err)
	}
}

func (h *host) outbound(server eventgraph.ServerName) []*store.Outbound {
	h.t.Helper()
	var all []*store.Outbound
	if err := h.Store.View(func(r *store.Reader) error {
		return r.Outbound(server, 0, func(o *store.Outbound) (bool, error) {
			all = append(all, o)
			return true, nil
		})
	}); err != nil {
		h.t.Fatal(err)
	}
	return all
}

func TestKnock(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "knock", "shared")
	bob := b.user("bob")
	if err := b.Knock(t.Context(), room, bob, names([]*host{a}), json.RawMessage(`{"reason":"please"}`)); err != nil {
		t.Fatal(err)
	}
	if got := a.membership(room, bob); got != "knock" {
		t.Errorf("bob is %q", got)
	}
	if got := b.membership(room, bob); got != "knock" {
		t.Errorf("bob is %q at home", got)
	}
	if _, err := a.Invite(t.Context(), inviteOf(room, a.user("alice"), bob)); err != nil {
		t.Fatal(err)
	}
	b.join(room, bob)
	if got := a.membership(room, bob); got != "join" {
		t.Errorf("bob is %q", got)
	}
	closed := a.create("12", "invite", "shared")
	wantCode(t, b.Knock(t.Context(), closed, bob, names([]*host{a}), nil), "M_FORBIDDEN")
}

// TestTemplateIsChecked: a resident that answers with a template for something else is not believed.
func TestTemplateIsChecked(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	room, other := a.create("12", "public", "shared"), a.create("12", "public", "shared")
	true_ := a.end.handler
	for name, change := range map[string]func(string) string{
		"another room": func(s string) string { return strings.ReplaceAll(s, string(room), string(other)) },
		"another user": func(s string) string { return strings.ReplaceAll(s, "@bob:", "@eve:") },
		"another kind": func(s string) string { return strings.ReplaceAll(s, `"join"`, `"leave"`) },
		"another type": func(s string) string { return strings.ReplaceAll(s, "m.room.member", "m.room.topic") },
		"no version":   func(s string) string { return strings.ReplaceAll(s, `"room_version":"12"`, `"room_version":"1"`) },
	} {
		w.mu.Lock()
		a.end.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := &rewriter{header: w.Header()}
			true_.ServeHTTP(rec, r)
			w.WriteHeader(rec.status)
			w.Write([]byte(change(string(rec.body))))
		})
		w.mu.Unlock()
		if err := b.Join(t.Context(), room, b.user("bob"), names([]*host{a}), nil); err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	if asked := slices.ContainsFunc(a.end.asked, func(s string) bool { return strings.Contains(s, "send_") }); asked {
		t.Error("an event was signed and sent")
	}
}

type rewriter struct {
	header http.Header
	status int
	body   []byte
}

func (r *rewriter) Header() http.Header         { return r.header }
func (r *rewriter) WriteHeader(status int)      { r.status = status }
func (r *rewriter) Write(b []byte) (int, error) { r.body = append(r.body, b...); return len(b), nil }

// TestTalkWhileJoining: what is said while another server joins, before it has read the answer of send_join, arrives there.
func TestTalkWhileJoining(t *testing.T) {
	t.Parallel()
	w := newWire()
	a, b := newHost(t, w, "a"), newHost(t, w, "b")
	b.meet(a)
	room := a.create("12", "public", "shared")
	var said []eventgraph.EventID
	answer := a.end.handler
	w.mu.Lock()
	a.end.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer.ServeHTTP(w, r)
		if strings.Contains(r.RequestURI, "/send_join/") {
			for i := range 5 {
				said = append(said, a.say(room, a.user("alice"), strconv.Itoa(i)))
			}
			a.delivering(b)
		}
	})
	w.mu.Unlock()
	b.join(room, b.user("bob"), a)
	for _, id := range said {
		b.wait("the messages", func() bool {
			e, err := b.held(id)
			return err == nil && e.Verdict == store.Accepted
		})
	}
}

// delivering waits until h has sent a transaction to the other.
func (h *host) delivering(other *host) {
	h.t.Helper()
	for {
		h.end.wire.mu.Lock()
		sent := slices.ContainsFunc(other.end.asked, func(s string) bool { return strings.Contains(s, "/send/") })
		news := other.end.news
		h.end.wire.mu.Unlock()
		if sent {
			return
		}
		select {
		case <-news:
		case <-h.t.Context().Done():
			h.t.Fatal("nothing sent")
		}
	}
}

// Who comes back after very many have joined, and hears something said while he does, holds these joins as outliers in a row on what he held: they
// get their place with it, though they are too much for one commit.
func TestRejoinAfterManyJoins(t *testing.T) {
	t.Parallel()
	const joins = 150 // with long names; with short ones some 950 are as much
	all := newMemHosts(t, memnet.New(), "a", "b")
	a, b := all[0], all[1]
	room := a.create("12", "public", "shared")
	alice, bob := a.user("alice"), b.user("bob")
	b.join(room, bob, a.host)
	a.waitFor("leave", b.setState(room, bob, "m.room.member", string(bob), `{"membership":"leave"}`))
	for i := range joins {
		who := string(a.user(fmt.Sprint("user", i)))
		a.setState(room, eventgraph.UserID(who), "m.room.member", who, fmt.Sprintf(`{"membership":"join","displayname":"%010000d"}`, i))
	}
	var meanwhile eventgraph.EventID
	var once sync.Once
	a.on(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if strings.Contains(r.URL.Path, "/send_join/") {
			once.Do(func() { meanwhile = a.say(room, alice, "meanwhile") })
		}
		return false
	})
	b.join(room, bob, a.host)
	later := a.say(room, alice, "later")
	b.waitFor("what was said meanwhile and later", meanwhile, later)
	b.waitUntil("nothing waits", func() bool { return b.waits(room) == 0 })
	sameState(t, room, a, b)
}
