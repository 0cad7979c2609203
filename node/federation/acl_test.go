package federation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// sentTo is what has come to a host in transactions.
type sentTo struct {
	mu     sync.Mutex
	events []eventgraph.EventID
	edus   []string // types
}

// note begins to write down what comes to the host.
func (s *sentTo) note(h *memHost) {
	h.on(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if t, ok := transactionOf(r, body); ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range parseAll("12", t.PDUs) {
				s.events = append(s.events, e.ID())
			}
			for _, e := range t.EDUs {
				s.edus = append(s.edus, e.Type)
			}
		}
		return false
	})
}

// took is what has come since it was called last.
func (s *sentTo) took() (events []eventgraph.EventID, edus []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events, edus = s.events, s.edus
	s.events, s.edus = nil, nil
	slices.Sort(edus)
	return events, slices.Compact(edus)
}

// denyingAndDenied are two hosts with a room of a's alice in which both are, all that the join has brought with it having been sent.
func denyingAndDenied(t *testing.T) (n *memnet.Network, a, b *memHost, alice eventgraph.UserID, room eventgraph.RoomID) {
	t.Helper()
	n = memnet.New()
	hosts := newMemHosts(t, n, "denying a", "denied b")
	a, b = hosts[0], hosts[1]
	room = togetherIn(a, b)
	time.Sleep(time.Minute)
	return n, a, b, a.user("alice"), room
}

// deny makes the room's ACL deny a host, or nobody.
func (h *memHost) deny(room eventgraph.RoomID, who *memHost) eventgraph.EventID {
	name := ""
	if who != nil {
		name = string(who.server)
	}
	return h.setState(room, h.user("alice"), "m.room.server_acl", "", fmt.Sprintf(`{"allow":["*"],"deny":[%q]}`, name))
}

// inviteOf invites a user of another host to a room of alice's.
func (h *memHost) inviteOf(room eventgraph.RoomID, user eventgraph.UserID) (eventgraph.EventID, error) {
	key := string(user)
	return h.Invite(h.t.Context(), rooms.Draft{Room: room, Sender: h.user("alice"), Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
}

// TestNothingOfARoomForADeniedServer: whom the room's ACL denies, though its user is joined, is sent the ACL and its own removal, and nothing else of the
// room; of our users what concerns them as long as another room is shared.
func TestNothingOfARoomForADeniedServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, alice, room := denyingAndDenied(t)
		var sent sentTo
		sent.note(b)

		device := 0
		act := func() (said eventgraph.EventID) {
			device++
			said = a.say(room, alice, "not for everybody")
			a.update(func(tx *store.Tx) error {
				_, err := tx.PutReceipt(&store.Receipt{Room: room, User: alice, Type: "m.read", Event: said, TS: int64(device)})
				return err
			})
			a.update(func(tx *store.Tx) error {
				id := store.DeviceID(fmt.Sprint("D", device))
				if err := tx.PutDevice(&store.Device{User: alice, ID: id}); err != nil {
					return err
				}
				_, err := tx.PutDeviceKeys(alice, id, json.RawMessage(fmt.Sprintf(`{"algorithms":[],"device_id":%q,"keys":{},"signatures":{},"user_id":%q}`, id, alice)))
				return err
			})
			a.Ephemeral.SetTyping(room, alice, time.Second)
			a.Ephemeral.SetPresence(alice, ephemeral.Presence{State: "online", StatusMsg: fmt.Sprint(device)})
			a.queue(b.server, a.encrypted(fmt.Sprint("message ", device)))
			time.Sleep(10 * time.Second)
			return said
		}
		const direct, list, now, read, typing = "m.direct_to_device", "m.device_list_update", "m.presence", "m.receipt", "m.typing"
		want := func(when string, events []eventgraph.EventID, edus ...string) {
			t.Helper()
			gotEvents, gotEDUs := sent.took()
			if !slices.Equal(gotEvents, events) || !slices.Equal(gotEDUs, edus) {
				t.Errorf("%s: b was sent %v and %v, want %v and %v", when, gotEvents, gotEDUs, events, edus)
			}
		}

		said := act()
		want("allowed", []eventgraph.EventID{said}, list, direct, now, read, typing)

		acl := a.deny(room, b)
		act()
		want("denied", []eventgraph.EventID{acl}, direct)
		_, err := a.inviteOf(room, b.user("carol"))
		var refusal *rooms.Refusal
		if !errors.As(err, &refusal) || refusal.Code != "M_FORBIDDEN" || !strings.Contains(refusal.Reason, "ACL") {
			t.Errorf("an invite of its user: %v", err)
		}

		other := togetherIn(a, b)
		a.say(other, alice, "after which b may be sent what its join has brought it")
		time.Sleep(time.Minute)
		sent.took()
		said = a.say(other, alice, "for both")
		act()
		want("denied in one room of two", []eventgraph.EventID{said}, list, direct, now)

		again := a.deny(room, nil)
		said = act()
		want("allowed again", []eventgraph.EventID{again, said}, list, direct, now, read, typing)
		if !b.holds(said) {
			t.Error("b does not hold what was said after it was allowed again")
		}

		acl = a.deny(room, b)
		kick := a.setState(room, alice, "m.room.member", string(b.user("alice")), `{"membership":"leave"}`)
		act()
		want("denied and removed", []eventgraph.EventID{acl, kick}, list, direct, now)
	})
}

// TestDeniedWhileAway: of what was said before a server was denied, it is sent nothing afterwards, nor an invite that waited for it.
func TestDeniedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, alice, room := denyingAndDenied(t)
		alone(n, b, a)
		a.say(room, alice, "while b is away")
		_, err := a.inviteOf(room, b.user("carol"))
		if err != nil {
			t.Fatal(err)
		}
		acl := a.deny(room, b)
		var sent sentTo
		sent.note(b)
		mend(n, a, b)
		time.Sleep(10 * time.Minute)
		if got, _ := sent.took(); !slices.Equal(got, []eventgraph.EventID{acl}) {
			t.Errorf("b was sent %v, want its ACL alone, %s", got, acl)
		}
		if got := b.membership(room, b.user("carol")); got != "" {
			t.Errorf("carol's membership at b is %q", got)
		}
		if left := a.outbound(b.server); len(left) > 0 {
			t.Errorf("%d are left in the outbox", len(left))
		}
	})
}

// TestDeniedServerIsNoRoommate: through a room whose ACL denies a server it is no friend, is not told where others of the room are, who is missed nor that
// there is news, and is not asked for others' files; others are not told where it is. It counts as before where another room is shared, and when it is let
// in again. What belongs to its users is taken from it all the while, as it is not local to a room.
func TestDeniedServerIsNoRoommate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		hosts := newMemHosts(t, n, "denying a", "denied b", "allowed c")
		a, b, c := hosts[0], hosts[1], hosts[2]
		room := togetherIn(a, b, c)
		time.Sleep(time.Minute)
		given := func(to *memHost, of *memHost) (answered, record bool) {
			answer, err := exchange(to, a, &peersMessage{Want: map[eventgraph.PeerID]uint64{of.peer: 0}})
			return err == nil, err == nil && len(answer.Records[of.peer]) > 0
		}
		check := func(when string, friend, mate bool) {
			t.Helper()
			answered, record := given(b, c)
			if answered != friend || record != mate {
				t.Errorf("%s: b was answered: %v, and given c's record: %v", when, answered, record)
			}
			if _, record := given(c, b); record != mate {
				t.Errorf("%s: c was given b's record: %v", when, record)
			}
			if _, stranger := a.budgetOf(b.peer); a.Friend(b.peer) != friend || stranger == friend {
				t.Errorf("%s: b is a friend: %v, has the strangers' budget: %v", when, !friend, stranger)
			}
			if !a.Friend(c.peer) {
				t.Errorf("%s: c is no friend", when)
			}
			if is := slices.Contains(a.mediaGivers(c.server), b.peer); is != mate {
				t.Errorf("%s: b is asked for c's files: %v", when, is)
			}
			if !slices.Contains(a.mediaGivers(b.server), c.peer) { // which are in messages that stay
				t.Errorf("%s: c is not asked for b's files", when)
			}
			said, hinted := c.say(room, c.user("alice"), when), map[eventgraph.ServerName]bool{}
			a.waitFor("what c says", said)
			err := a.Store.View(func(r *store.Reader) error {
				return a.hinted(r, store.Change{Kind: store.ChangeEvent, Room: room, Event: said}, hinted)
			})
			if err != nil || hinted[b.server] != mate {
				t.Errorf("%s: b is told that there is news of c: %v, %v", when, hinted[b.server], err)
			}
			cut(n, a, b)
			a.gone(b)
			if a.missed(c.server)[b.peer] != mate {
				t.Errorf("%s: c is asked for b: %v", when, !mate)
			}
			mend(n, a, b)
			time.Sleep(10 * time.Second)
			cut(n, a, c)
			a.gone(c)
			if a.missed(b.server)[c.peer] != mate {
				t.Errorf("%s: b is asked for c: %v", when, !mate)
			}
			mend(n, a, c)
			time.Sleep(time.Minute)
		}
		check("allowed", true, true)
		a.deny(room, b)
		time.Sleep(time.Minute)
		check("denied", false, false)
		if !a.kept(b.server) {
			t.Error("b's keys are not kept, by which what others bring of it is judged")
		}
		list := []byte(fmt.Sprintf(`{"user_id":%q,"device_id":"D","stream_id":1,"prev_id":[]}`, b.user("alice")))
		if err := a.receiveEDU(t.Context(), b.server, edu{Type: "m.device_list_update", Content: list}); err != nil {
			t.Fatal(err)
		}
		a.local.mu.Lock()
		if taken := a.local.edus; !slices.Contains(taken, "m.device_list_update "+string(list)) {
			t.Errorf("b's device list was not taken, and would be wrong when b is let in again; taken are %q", taken)
		}
		a.local.mu.Unlock()
		togetherIn(a, b)
		time.Sleep(time.Minute)
		check("denied in one room of two", true, false)
		a.deny(room, nil)
		time.Sleep(time.Minute)
		check("allowed again", true, true)
	})
}

// TestDeniedPolicyServerIsAsked: that a room uses a policy server does not depend on its ACL, which does not protect /sign either (SS API, Determining if
// a Policy Server is enabled in a room; MSC4284). The server is asked, and sent nothing.
func TestDeniedPolicyServerIsAsked(t *testing.T) {
	inPoliced(t, func(t *testing.T, r *policed) {
		time.Sleep(time.Minute)
		acl, err := r.a.Send(t.Context(), rooms.Draft{Room: r.room, Sender: r.a.user("alice"), Type: "m.room.server_acl", StateKey: new(string),
			Content: json.RawMessage(fmt.Sprintf(`{"allow":["*"],"deny":[%q]}`, r.p.server))})
		if err != nil {
			t.Fatal(err)
		}
		r.asked.Store(0)
		said, err := r.send(t.Context(), "hello")
		if err != nil || r.asked.Load() != 1 || !r.signed(r.a, said) {
			t.Errorf("%v; asked %d times", err, r.asked.Load())
		}
		time.Sleep(time.Minute)
		if !r.p.holds(acl) || r.p.holds(said) {
			t.Errorf("the policy server holds its ACL: %v, and what was said then: %v", r.p.holds(acl), r.p.holds(said))
		}
	})
}

// TestACLIsReadOnce: a room's ACL is read once for as long as it counts, and asked once of each server, whatever else of the room's state changes; and
// meanwhile others can ask who shares a room.
func TestACLIsReadOnce(t *testing.T) {
	t.Parallel()
	a := newMemHost(t, memnet.New(), "a")
	alice := a.user("alice")
	const members = 20
	room := peopled(t, a, "12", members)
	named := func(i int) eventgraph.ServerName {
		server, _, _, _ := newKeys(fmt.Sprint(t.Name(), " member ", i))
		return server
	}
	s := a.meetings.sharing
	read := s.event
	var reads atomic.Int32
	s.event = func(id eventgraph.EventID) (*store.StoredEvent, error) {
		reads.Add(1)
		free := make(chan struct{})
		go func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			close(free)
		}()
		select {
		case <-free:
		case <-time.After(10 * time.Second):
			t.Error("who asks for anything else waits until the ACL is read")
		}
		return read(id)
	}
	kept := func() *roomACL {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.rooms[room].acl
	}
	check := func(when string, wantReads int32, wantMates int) {
		t.Helper()
		if mates := a.roommates(named(0)); len(mates) != wantMates {
			t.Errorf("%s: %d roommates, want %d", when, len(mates), wantMates)
		}
		a.sharesRoom(named(0))
		if _, err := s.among([]eventgraph.RoomID{room}); err != nil {
			t.Error(err)
		}
		if n := reads.Load(); n != wantReads {
			t.Errorf("%s: the ACL was read %d times, want %d", when, n, wantReads)
		}
	}
	check("without an ACL", 0, members+1)
	a.setState(room, alice, "m.room.server_acl", "", fmt.Sprintf(`{"allow":["*"],"deny":[%q]}`, named(1)))
	check("with an ACL", 1, members)
	first := kept()
	first.mu.Lock()
	if len(first.answers) != members+1 {
		t.Errorf("%d answers are kept", len(first.answers))
	}
	first.answers[named(2)] = false // to be seen again if it is not asked a second time
	first.mu.Unlock()
	for i := range 3 {
		a.setState(room, alice, "org.example.x", "", fmt.Sprintf(`{"a":%d}`, i))
		check("after another change of the state", 1, members-1)
	}
	for i := range 1000 {
		if !a.allows(room, eventgraph.ServerName(fmt.Sprint("stranger", i))) {
			t.Fatal("a stranger is denied")
		}
	}
	first.mu.Lock()
	if n, most := len(first.answers), 2*(members+1)+spareACLAnswers; n > most {
		t.Errorf("%d answers are kept, want %d at most", n, most)
	}
	first.mu.Unlock()
	a.setState(room, alice, "m.room.server_acl", "", fmt.Sprintf(`{"allow":["*"],"deny":[%q,%q]}`, named(1), named(2)))
	check("after a change of the ACL", 2, members-1)
	acl := a.setState(room, alice, "m.room.server_acl", "", `{"allow":["*"]}`)
	check("after a second change of the ACL", 3, members+1)
	if _, err := a.Send(t.Context(), rooms.Draft{Room: room, Sender: alice, Type: "m.room.redaction", Redacts: acl, Content: json.RawMessage(fmt.Sprintf(`{"redacts":%q}`, acl))}); err != nil {
		t.Fatal(err)
	}
	check("after the ACL's redaction", 4, 0) // it allows nobody any more
	if a.sharesRoom(named(0)) {
		t.Error("a server is let in by an ACL that was redacted")
	}
}
