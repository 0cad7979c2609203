package clientapi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// What somebody has scheduled is not sent while their account is locked, nor after, and they are told why.
func TestDelayedEventsOfLockedAccount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	id := alice.later(room, "spam", time.Second, `{}`)
	if changed, err := s.SetLocked(t.Context(), alice.user, true); !changed || err != nil {
		t.Fatal(changed, err)
	}
	s.advance(time.Minute)
	s.due()
	if got := bob.callState(room, "spam"); got != "" {
		t.Errorf("a locked user still sends: %s", got)
	}
	if _, err := s.SetLocked(t.Context(), alice.user, false); err != nil {
		t.Fatal(err)
	}
	s.due()
	if got := bob.callState(room, "spam"); got != "" {
		t.Errorf("sent once the account was unlocked: %s", got)
	}
	if a := alice.call(200, "GET", delayedPath+"/"+id, nil); !strings.Contains(a.raw, "M_USER_LOCKED") {
		t.Errorf("what has become of it: %s", a.raw)
	}
}

// slowInvites is a Remote on which each invite takes five seconds.
type slowInvites struct {
	*unreachable
	s       *testServer
	invited int
}

func (r *slowInvites) Invite(context.Context, rooms.Draft) (eventgraph.EventID, error) {
	r.invited++
	r.s.advance(5 * time.Second)
	return "$invite", nil
}

// Whoever has scheduled what takes long, such as invites to servers that are away, keeps others waiting for one of them, not for all.
func TestSlowDelayedEvents(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	remote := &slowInvites{unreachable: s.remote, s: s}
	s.SetRemote(remote)
	room, other := alice.room(), bob.room()
	alice.join(other)
	const invites = 20
	for i := range invites {
		key := "@x" + string(rune('a'+i)) + ":example.org"
		alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/m.room.member/"+key+"?org.matrix.msc4140.delay=1", map[string]any{"membership": "invite"})
	}
	bob.later(other, "leaves", 2*time.Millisecond, `{}`)
	s.advance(time.Second)
	next, err := s.sendDue(t.Context())
	if err != nil || next.IsZero() || next.After(s.time()) {
		t.Fatalf("looks again at %v, it is %v; %v", next, s.time(), err)
	}
	if remote.invited != 1 || alice.callState(other, "leaves") == "" {
		t.Errorf("%d slow ones, then the other: %q", remote.invited, alice.callState(other, "leaves"))
	}
	for range invites {
		s.due()
	}
	if remote.invited != invites {
		t.Errorf("%d of %d invites", remote.invited, invites)
	}
}
