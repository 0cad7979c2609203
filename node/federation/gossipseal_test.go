package federation

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const sealRoom eventgraph.RoomID = "!room"

// given is a server's key as it stands, as others are given it.
func given(k *sealingKey, server eventgraph.ServerName) *openingKey {
	return &openingKey{server: server, mark: k.mark, id: keyIDOf(server, sealRoom, k.mark[:]), chain: k.chain}
}

// TestSeal: a payload opens once, for who was given the key before it was sealed, on its topic, unchanged.
func TestSeal(t *testing.T) {
	t.Parallel()
	key := newSealingKey("alice", sealRoom)
	early := given(key, "alice")
	first := key.seal("topic", []byte("first"))
	late := given(key, "alice")
	second := key.seal("topic", []byte("second"))

	if id, err := sealedBy(first); err != nil || id != early.id || id != key.id {
		t.Errorf("sealed by %x, %v", id, err)
	}
	if _, err := late.open("topic", first); !errors.Is(err, errSealRepeated) {
		t.Errorf("who was given the key later opens what was sealed before: %v", err)
	}
	if _, err := early.open("another", first); !errors.Is(err, errSealBroken) {
		t.Errorf("opens on another topic: %v", err)
	}
	for i := range first {
		if _, err := sealedBy(first[:i]); err == nil && i < sealHead {
			t.Fatalf("%d bytes are taken for a payload", i)
		}
		changed := slices.Clone(first)
		changed[i] ^= 1
		if id, err := sealedBy(changed); err != nil || id != early.id {
			continue
		}
		if plain, err := early.open("topic", changed); err == nil {
			t.Fatalf("opens to %q with byte %d changed", plain, i)
		}
	}
	for _, payload := range [][]byte{second, first} { // in another order
		if _, err := early.open("topic", payload); err != nil {
			t.Fatal(err)
		}
		if _, err := early.open("topic", payload); !errors.Is(err, errSealRepeated) {
			t.Errorf("opens again: %v", err)
		}
	}
	if plain, err := late.open("topic", second); err != nil || string(plain) != "second" {
		t.Errorf("%q, %v", plain, err)
	}
	if bytes.Contains(second, []byte("second")) || bytes.Contains(second, []byte(sealRoom)) {
		t.Error("a sealed payload shows what is in it")
	}
	if other := newSealingKey("alice", sealRoom); other.id == key.id || other.key == key.key {
		t.Error("two keys are one")
	}
	if keyIDOf("mallory", sealRoom, key.mark[:]) == key.id {
		t.Error("another server's key has the same ID")
	}
}

// TestSealForged: who has been given another's key opens with it what that server publishes, and publishes nothing in its name, nor does it
// make others miss what the server publishes.
func TestSealForged(t *testing.T) {
	t.Parallel()
	key := newSealingKey("alice", sealRoom)
	mallory, bob := given(key, "alice"), given(key, "alice")
	forging := newSealingKey("mallory", sealRoom)
	forging.id, forging.chain = mallory.id, mallory.chain
	for range 2 * maxSkipped {
		if plain, err := bob.open("topic", forging.seal("topic", []byte("forged"))); !errors.Is(err, errSealForged) {
			t.Fatalf("as alice's it opens to %q, %v", plain, err)
		}
	}
	if plain, err := bob.open("topic", key.seal("topic", []byte("hers"))); err != nil || string(plain) != "hers" {
		t.Errorf("what is hers opens to %q, %v", plain, err)
	}
}

// TestSealOrder: whatever order payloads come in, how often, and which are lost: each that is not too late opens exactly once.
func TestSealOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		key := newSealingKey("alice", sealRoom)
		held := given(key, "alice")
		n := rapid.IntRange(1, 3*maxSkipped).Draw(t, "payloads")
		spread := rapid.IntRange(0, 2*maxSkipped).Draw(t, "spread")
		var sent [][]byte
		for i := range n {
			sent = append(sent, key.seal("topic", []byte(fmt.Sprint(i))))
		}
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		type arrival struct{ number, at int }
		var arrivals []arrival
		for i := range n {
			for range random.IntN(3) {
				arrivals = append(arrivals, arrival{i, i + random.IntN(spread+1)})
			}
		}
		slices.SortStableFunc(arrivals, func(a, b arrival) int { return a.at - b.at })
		seen, newest := map[int]bool{}, -1
		for _, a := range arrivals {
			plain, err := held.open("topic", sent[a.number])
			switch {
			case err == nil && string(plain) != fmt.Sprint(a.number):
				t.Fatalf("%d opens to %q", a.number, plain)
			case err == nil && seen[a.number]:
				t.Fatalf("%d opens twice", a.number)
			case err != nil && !seen[a.number] && a.number > newest-maxSkipped:
				t.Fatalf("%d does not open, the newest being %d: %v", a.number, newest, err)
			}
			seen[a.number] = seen[a.number] || err == nil
			newest = max(newest, a.number)
			if len(held.skipped) > maxSkipped {
				t.Fatalf("%d message keys are kept", len(held.skipped))
			}
		}
	})
}

// TestSealFar: a key's last payload opens though all before were lost, and a number beyond costs nothing.
func TestSealFar(t *testing.T) {
	t.Parallel()
	key := newSealingKey("alice", sealRoom)
	held := given(key, "alice")
	var last []byte
	for range keyLife {
		last = key.seal("topic", []byte("last"))
	}
	beyond := key.seal("topic", nil)
	if _, err := held.open("topic", beyond); !errors.Is(err, errSealForm) {
		t.Errorf("beyond the key's life: %v", err)
	}
	if !held.far(last) {
		t.Error("a thousand payloads on is not far")
	}
	began := time.Now()
	if _, err := held.open("topic", last); err != nil {
		t.Error(err)
	}
	t.Logf("%d steps in %v", keyLife, time.Since(began))
	if len(held.skipped) != maxSkipped {
		t.Errorf("%d message keys are kept", len(held.skipped))
	}
}

// TestSecrets: servers that exchange the secrets of their epoch in whatever order, each with some others, come to the same one; it is the one with
// the lowest hash, and they find the same topic.
func TestSecrets(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 12).Draw(t, "servers")
		var servers []eventgraph.ServerName
		for i := range n {
			servers = append(servers, eventgraph.ServerName(fmt.Sprintf("s%02d", i)))
		}
		e := epochOf(sealRoom, servers)
		rooms := make([]*gossipRoom, n)
		var lowest topicSecret
		minted := 0
		for i := range rooms {
			// Some come to the epoch before they hear of its secrets, others after.
			rooms[i] = &gossipRoom{id: sealRoom, early: map[epoch]topicSecret{}, keys: map[keyID]*openingKey{}, awake: true}
			rooms[i].update(roomChange{id: sealRoom, servers: servers[:n-1], fresh: true}, nil, time.Time{})
			if i == 0 || rapid.Bool().Draw(t, "knows") {
				rooms[i].update(roomChange{id: sealRoom, servers: servers}, nil, time.Time{})
				if i == 0 || rapid.Bool().Draw(t, "mints") {
					rooms[i].mint(time.Time{}.Add(epochSettle))
					s := rooms[i].topicOf(e).secret
					if minted == 0 || s.before(lowest) {
						lowest = s
					}
					minted++
				}
			}
		}
		known := func(r *gossipRoom) (topicSecret, bool) {
			if topic := r.topicOf(e); topic != nil {
				return topic.secret, true
			}
			s, ok := r.early[e]
			return s, ok
		}
		give := func(from, to *gossipRoom) {
			if s, ok := known(from); ok {
				to.takeSecret(e, s)
			}
		}
		for range rapid.IntRange(0, 3*n).Draw(t, "exchanges") {
			a, b := rapid.IntRange(0, n-1).Draw(t, "a"), rapid.IntRange(0, n-1).Draw(t, "b")
			give(rooms[a], rooms[b])
			give(rooms[b], rooms[a])
		}
		// Each meets its neighbours as often as it takes for news to go round.
		for range n {
			for i := range rooms {
				give(rooms[i], rooms[(i+1)%n])
				give(rooms[(i+1)%n], rooms[i])
			}
		}
		for i, r := range rooms {
			r.update(roomChange{id: sealRoom, servers: servers}, nil, time.Time{})
			topic := r.topicOf(e)
			if topic == nil || topic.secret != lowest || topic.name != topicName(lowest, e) {
				t.Fatalf("server %d of %d has not the lowest of %d secrets", i, n, minted)
			}
			if len(r.topics) > topicsOfRoom || len(r.early) > maxEarly {
				t.Fatalf("%d topics, %d early secrets", len(r.topics), len(r.early))
			}
		}
	})
}

// TestEpochs: who is joined makes the epoch; a secret is minted when that has come to rest; an older epoch serves only while nobody left.
func TestEpochs(t *testing.T) {
	t.Parallel()
	names := func(n int) (all []eventgraph.ServerName) {
		for i := range n {
			all = append(all, eventgraph.ServerName(fmt.Sprintf("s%03d", i)))
		}
		return all
	}
	at := time.Unix(0, 0)
	r := &gossipRoom{id: sealRoom, early: map[epoch]topicSecret{}, keys: map[keyID]*openingKey{}}
	minted := 0
	for n := range 200 { // one joins each second
		at = at.Add(time.Second)
		r.update(roomChange{id: sealRoom, servers: names(10 + n)}, names(10+n), at)
		before := r.minted
		r.mint(at)
		if r.minted != before {
			minted++
		}
	}
	if minted > 4 {
		t.Errorf("%d secrets were minted while 200 servers joined", minted)
	}
	at = at.Add(epochSettle)
	r.mint(at)
	if r.topicOf(r.epoch) == nil || len(r.topics) != topicsOfRoom || len(r.publishable()) != topicsOfRoom {
		t.Fatalf("%d topics, %d to publish on; want %d", len(r.topics), len(r.publishable()), topicsOfRoom)
	}
	key := r.sealing("self", at)
	r.given["p5"], r.given["p6"] = "s005", "s006"
	r.update(roomChange{id: sealRoom, servers: names(210)}, names(210), at)
	if r.sealing("self", at) != key || len(r.publishable()) != topicsOfRoom {
		t.Error("a join made a new key, or took the topics away")
	}
	r.update(roomChange{id: sealRoom, servers: names(210)}, slices.DeleteFunc(names(210), func(s eventgraph.ServerName) bool { return s == "s005" }), at)
	if r.sealing("self", at) == key || len(r.given) != 0 {
		t.Error("a server that had the key may no longer have it, and it is still the key")
	}
	r.update(roomChange{id: sealRoom, servers: names(210)[1:]}, names(210)[1:], at)
	if len(r.publishable()) != 0 {
		t.Error("what a server that has left subscribes to is still published on")
	}
	if epochOf(sealRoom, names(3)) == epochOf("!other", names(3)) || epochOf(sealRoom, names(3)) == epochOf(sealRoom, names(4)) {
		t.Error("two epochs are one")
	}
}
