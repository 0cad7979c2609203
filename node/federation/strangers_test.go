package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestStrangersShareOneMemory: a transaction that is repeated is known again, but what is remembered of servers that share no
// room with us is bounded for all of them together.
func TestStrangersShareOneMemory(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	send := func(from *host, id string) {
		t.Helper()
		body := transaction{Origin: from.server, EDUs: []edu{{"m.direct_to_device", json.RawMessage(fmt.Sprintf(`{"sender":%q}`, from.user("x")))}}}
		if err := from.do(t.Context(), a.server, http.MethodPut, target(v1+"send", []string{id}, nil), body, nil); err != nil {
			t.Fatal(err)
		}
	}
	taken := func() int {
		a.local.mu.Lock()
		defer a.local.mu.Unlock()
		return len(a.local.edus)
	}
	send(b, "first")
	send(b, "first")
	if n := taken(); n != 1 {
		t.Fatalf("a transaction sent twice was taken in %d times", n)
	}
	for i := range 64 {
		send(c, fmt.Sprint("other ", i))
	}
	before := taken()
	send(b, "first")
	if taken() != before+1 {
		t.Error("strangers have memories of their own")
	}
}

// TestPresenceOfNobody: only presence of what can be a user is kept.
func TestPresenceOfNobody(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b")
	a, b := hosts[0], hosts[1]
	b.join(a.create("12", "public", "shared"), b.user("bob"), a)
	long := "@" + strings.Repeat("x", 1000) + ":" + string(b.server)
	content := fmt.Sprintf(`{"push":[{"user_id":%q,"presence":"online"},{"user_id":%q,"presence":"online"}]}`, long, b.user("bob"))
	if err := a.receivePresence(b.server, json.RawMessage(content)); err != nil {
		t.Fatal(err)
	}
	if _, users := a.Ephemeral.Changed(0); len(users) != 1 || users[0] != b.user("bob") {
		t.Errorf("presence of %d users is kept, want bob's alone", len(users))
	}
}

// TestLongBodiesOfStrangers: who shares a room with us does not wait behind the long bodies of those who do not.
func TestLongBodiesOfStrangers(t *testing.T) {
	t.Parallel()
	hosts := newHosts(t, newWire(), "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	b.join(a.create("12", "public", "shared"), b.user("bob"), a)
	long := map[string]string{"device_keys": strings.Repeat("x", smallBody)}
	if err := a.outerBodies.Acquire(t.Context(), maxBody); err != nil {
		t.Fatal(err)
	}
	query := func(ctx context.Context, from *host) error {
		return from.do(ctx, a.server, http.MethodPost, v1+"user/keys/query", long, nil)
	}
	if err := query(t.Context(), b); err != nil {
		t.Errorf("who shares a room: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := query(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stranger does not wait: %v", err)
	}
	a.outerBodies.Release(maxBody)
	if err := query(t.Context(), c); err != nil {
		t.Errorf("a stranger: %v", err)
	}
}
