package auth

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// TestFactsAreShared: many goroutines that judge by one power levels event all see the same levels, read once or not.
func TestFactsAreShared(t *testing.T) {
	t.Parallel()
	r := newRoom(t, "12", "").with(t, base...)
	var wait sync.WaitGroup
	levels := make([]*Levels, 8)
	for i := range levels {
		wait.Go(func() {
			var err error
			if levels[i], err = PowerLevels(r.state); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, l := range levels {
		if l != levels[0] || l.User("@mod:a.example") != 50 {
			t.Fatalf("levels %v, %v", l, levels[0])
		}
	}
}

// TestFactsOfOtherTypes: a state that answers with events of other types than it was asked for is judged by what stands in
// them, and nothing panics.
func TestFactsOfOtherTypes(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"3", "11", "12"} {
		r := newRoom(t, version, "").with(t, base...)
		odd := r.event(t, `m.room.topic '' @alice {"users":{"@mod":7},"join_rule":"public","creator":"@mod"}`, nil)
		for range 2 {
			levels, err := PowerLevels(given{tupleCreate: odd, tuplePower: odd})
			if err != nil || levels.User("@mod:a.example") != 7 || levels.Ban != 50 {
				t.Errorf("version %s: %v, %v", version, levels, err)
			}
			if rule := joinFactsOf(odd).rule; rule != "public" {
				t.Errorf("version %s: join rule %q", version, rule)
			}
			if c := createFactsOf(odd); c.local {
				t.Errorf("version %s: %v", version, c)
			}
		}
	}
}

// TestThirdPartyKeysAreBounded: of many keys no more are read than are tried, and each of them once.
func TestThirdPartyKeysAreBounded(t *testing.T) {
	t.Parallel()
	r := newRoom(t, "12", "").with(t, base...)
	var keys []string
	for i := range 400 {
		key := fmt.Sprintf(`{"public_key":"%043d"}`, i*4)
		keys = append(keys, key, key)
	}
	invite := r.event(t, `m.room.third_party_invite token @alice {"public_keys":[`+strings.Join(keys, ",")+`]}`, nil)
	seen := map[string]bool{}
	for _, key := range inviteKeys(invite) {
		seen[string(key)] = true
	}
	if len(seen) != maxInviteVerifications {
		t.Errorf("%d keys", len(seen))
	}
}
