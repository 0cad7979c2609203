package federation

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// TestBudgetOfStrangers: strangers who have used up what all of them have together are sent away, whoever they are; a friend is not, and has a
// budget that another friend's requests take nothing of.
func TestBudgetOfStrangers(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "c", "d")
	a, b, c, d := hosts[0], hosts[1], hosts[2], hosts[3]
	b.join(a.create("12", "public", "shared"), b.user("bob"), a)
	ask := func(from *host) error {
		return from.do(t.Context(), a.server, http.MethodPost, v1+"user/keys/query", map[string]any{"device_keys": map[string]any{}}, nil)
	}
	if err := ask(c); err != nil {
		t.Fatal(err)
	}
	for range 3 { // that much in advance
		a.budgets.strangers.ReserveN(time.Now(), strangeSaved)
	}
	for _, stranger := range []*host{c, d} {
		wantBusy(t, ask(stranger))
	}
	if err := ask(b); err != nil {
		t.Errorf("who shares a room: %v", err)
	}
	_, peer, _, _ := newKeys("b")
	l, stranger := a.budgetOf(peer)
	if stranger {
		t.Fatal("who shares a room has the strangers' budget")
	}
	for range 5 {
		l.ReserveN(time.Now(), friendSaved)
	}
	wantBusy(t, ask(b))
}

// TestBudgetAtMeetings: who shares a room pays for a gap out of its own budget, though strangers have used up theirs and nobody has noted yet that
// it is connected; and it pays for what it was given, not for what it asked for.
func TestBudgetAtMeetings(t *testing.T) {
	t.Parallel()
	all := givingHosts(t, memnet.New(), "a", "b")
	a, b := all[0], all[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	said := a.sayMany(room, "alice", 60)
	for range 100 { // that much in advance: more than a meeting waits for
		a.budgets.strangers.ReserveN(time.Now(), strangeSaved)
	}
	a.peers.disconnected(b.peer)
	if a.Friend(b.peer) {
		t.Fatal("the peer is noted as connected")
	}
	with := contact{Server: b.server, Peer: b.peer}
	answer, err := a.answer(&gift{contact: with, told: map[eventgraph.ServerName]bool{}}, &meetMessage{Want: said, Bytes: 1})
	if err != nil || answer.Events.Looked != 1 {
		t.Fatalf("%+v, %v", answer, err)
	}
	if err := a.admitTurn(t.Context(), with, &meetMessage{Want: said}); err != nil {
		t.Errorf("a friend waits for strangers: %v", err)
	}
	l := a.budgets.friend(b.server)
	before := l.Tokens()
	a.paidEvents(with, answer.Events)
	if spent := before - l.Tokens(); spent >= 1 {
		t.Errorf("one event of those asked for cost %.1f units", spent)
	}
	a.paidEvents(with, &meetEvents{Looked: maxWant})
	if spent := before - l.Tokens(); spent < maxWant/costEvents-1 {
		t.Errorf("%d events cost %.1f units", maxWant, spent)
	}
}

// wantBusy wants the answer 429, with a time.
func wantBusy(t *testing.T, err error) {
	t.Helper()
	var here *matrixError
	var remote *remoteError
	switch {
	case errors.As(err, &here) && here.Status == http.StatusTooManyRequests && here.RetryAfterMS > 0:
	case errors.As(err, &remote) && remote.Status == http.StatusTooManyRequests && remote.RetryAfter > 0:
	default:
		t.Errorf("got %v, want 429 with a time", err)
	}
}

// TestTalkers: a server's events are held up only while others say something in the same room.
func TestTalkers(t *testing.T) {
	t.Parallel()
	b := newBudgets()
	now := time.Now()
	const room = "!a:b"
	if b.talks(room, "x", now) != nil || b.talks(room, "x", now.Add(time.Minute)) != nil {
		t.Error("who is alone in a room is held up")
	}
	now = now.Add(time.Minute)
	b.talks(room, "y", now)
	if b.talks("!other:b", "x", now) != nil {
		t.Error("held up for talk in another room")
	}
	limit := b.talks(room, "x", now.Add(talking))
	if limit == nil {
		t.Fatal("not held up while another talks")
	}
	if err := spend(t.Context(), limit, talkSaved, 0); err != nil {
		t.Errorf("the first events: %v", err)
	}
	wantBusy(t, spend(t.Context(), limit, talkSaved, 0))
	if other := b.talks(room, "y", now.Add(talking)); other == nil || other == limit {
		t.Error("the other has no limit of its own")
	}
	if b.talks(room, "x", now.Add(3*talking)) != nil {
		t.Error("held up long after the other's last event")
	}

	for i := range 2 * maxTalks {
		b.talks(eventgraph.RoomID(fmt.Sprint("!", i)), "x", now)
	}
	if len(b.rooms) > maxTalks {
		t.Errorf("%d rooms are kept", len(b.rooms))
	}
	for i := range 2 * maxTalkers {
		b.talks("!1", eventgraph.ServerName(fmt.Sprint(i)), now)
	}
	if r := b.rooms["!1"]; r != nil && len(r.limits) > maxTalkers {
		t.Errorf("%d servers of a room are kept", len(r.limits))
	}
}

// TestLargeEventsAreDebts: a transaction of more than can be saved is taken in, and those that come next wait for all of it.
func TestLargeEventsAreDebts(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a)
	large := run{room: room}
	for range 4 {
		large.events = append(large.events, a.event(a.say(room, a.user("alice"), strings.Repeat("x", 60<<10))).Event)
	}
	for range 4 {
		large.events = append(large.events, large.events...)
	}
	a.budgets.talks(room, a.server, time.Now())
	if err := a.admitEvents(t.Context(), b.server, large, budgetWait); err != nil {
		t.Fatal(err)
	}
	left := a.budgets.talks(room, b.server, time.Now()).Tokens()
	if want := talkSaved - float64(len(large.events)*29); left > want {
		t.Errorf("after %d events of 60 KiB %.0f units are left, want at most %.0f", len(large.events), left, want)
	}
}
