package clientapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// What could not be sent in time is not sent over state that came since: it would throw out of their call whoever came back to it. What came before
// it was due is overwritten (MSC4140, Conflicting delayed state events).
func TestDelayedStateComesTooLate(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	set := func(key, content string) {
		t.Helper()
		alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/state/com.example.call/"+key, content)
	}
	away := &federation.PolicyError{Refusal: rooms.Refusal{Code: "M_UNKNOWN", Reason: "it is away"}, Cause: context.DeadlineExceeded}
	late := alice.later(room, "late", 2*time.Second, `{}`)
	byHand := alice.later(room, "by hand", 2*time.Second, `{}`)
	alice.later(room, "before", 2*time.Second, `{}`)
	s.advance(time.Second)
	set("before", `{"in":true}`)
	s.advance(time.Second)
	s.SetRemote(&declining{s.remote, away})
	s.due()
	s.SetRemote(s.remote)
	s.advance(time.Second)
	set("late", `{"in":true}`)
	set("by%20hand", `{"in":true}`)
	alice.call(200, "POST", delayedPath+"/"+byHand+"/send", nil) // that is what the client wants now
	s.advance(delayedRetry)
	s.due()
	for key, want := range map[string]string{"late": `{"in":true}`, "before": "{}", "by%20hand": "{}"} {
		if got := alice.callState(room, key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
	one := alice.call(200, "GET", delayedPath+"/"+late, nil)
	if why, _ := one.body["error"].(map[string]any); why["errcode"] != "M_BAD_STATE" || one.body["event_id"] != nil {
		t.Errorf("what has become of it: %s", one.raw)
	}
	if got := alice.scheduled(); got != "" {
		t.Errorf("scheduled: %s", got)
	}
}

// faulty is a Remote that fails with what is ours for the state keys that begin so.
type faulty struct {
	*unreachable
	prefix string
	tried  int
}

func (f *faulty) Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	if d.StateKey != nil && strings.HasPrefix(*d.StateKey, f.prefix) {
		f.tried++
		return "", errors.New("the disk has an error")
	}
	return f.unreachable.Send(ctx, d)
}

// One that fails is tried again later, and keeps no others waiting that are due before that.
func TestDelayedEventThatFails(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	remote := &faulty{unreachable: s.remote, prefix: "bad"}
	s.SetRemote(remote)
	look := func(want time.Duration, tried int) {
		t.Helper()
		next, _ := s.sendDue(context.Background())
		if got := next.Sub(s.Now()); got != want || remote.tried != tried {
			t.Errorf("looks again after %s, want %s; tried %d times, want %d", got, want, remote.tried, tried)
		}
	}
	alice.later(room, "bad", time.Second, `{}`)
	alice.later(room, "good", 3*time.Second, `{}`)
	s.advance(time.Second)
	look(2*time.Second, 1)
	s.advance(2 * time.Second)
	look(delayedRetry-2*time.Second, 1)
	if alice.callState(room, "good") != "{}" {
		t.Error("the other one is not sent")
	}
	s.advance(delayedRetry - 2*time.Second)
	look(delayedRetry, 2)
	remote.prefix = "no more"
	s.advance(delayedRetry)
	s.due()
	if alice.callState(room, "bad") != "{}" || len(s.delayed.later) != 0 {
		t.Errorf("not sent in the end: %s", alice.scheduled())
	}
}
