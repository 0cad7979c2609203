package node_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// sleeper is a node that is stopped and started again.
type sleeper struct {
	*node.Node
	t    *testing.T
	net  *memnet.Network
	dir  string
	logs *logs
	stop func()
}

func newSleeper(t *testing.T, net *memnet.Network) *sleeper {
	s := &sleeper{t: t, net: net, dir: t.TempDir(), logs: &logs{}}
	s.wake()
	t.Cleanup(func() {
		s.sleep()
		if t.Failed() {
			t.Log(s.logs.all.String())
		}
	})
	return s
}

func (s *sleeper) wake() {
	s.t.Helper()
	n, err := node.Open(context.Background(), node.Config{
		Dir: s.dir, ClientAddrs: []string{"127.0.0.1:0"}, Registration: clientapi.RegistrationOpen, NoRateLimits: true,
		Log:       slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Transport: func(c p2ptransport.Config) (p2ptransport.Transport, error) { return s.net.Node(c) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	s.Node = n
	s.stop = func() {
		cancel()
		if err := errors.Join(<-ended, n.Close()); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *sleeper) sleep() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// logged waits until the node has logged so many lines with all the words.
func (s *sleeper) logged(n int, words ...string) {
	s.t.Helper()
	s.until(fmt.Sprint("log ", words), func() bool { return s.logs.lines(words...) >= n })
}

func (s *sleeper) until(what string, check func() bool) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); !check(); {
		select {
		case <-tick.C:
		case <-limit:
			s.t.Fatalf("%s: not in time", what)
		}
	}
}

// uploads keys for a device as a client does: identity keys, one-time keys and a fallback key.
func (u *localUser) uploads(device string) {
	u.t.Helper()
	private := ed25519.NewKeyFromSeed(make([]byte, 32))
	public := base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	sign := func(object any) json.RawMessage {
		raw, err := json.Marshal(object)
		if err != nil {
			u.t.Fatal(err)
		}
		signed, err := eventgraph.SignJSON(raw, eventgraph.SigningKey{
			Server: eventgraph.ServerName(u.id), ID: eventgraph.KeyID("ed25519:" + device), Private: private})
		if err != nil {
			u.t.Fatal(err)
		}
		return signed
	}
	u.must("POST", "/keys/upload", map[string]any{
		"device_keys": sign(map[string]any{"user_id": u.id, "device_id": device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
			"keys": map[string]string{"ed25519:" + device: public, "curve25519:" + device: "AAAA"}}),
		"one_time_keys": map[string]any{"signed_curve25519:AAA": sign(map[string]any{"key": "one-time"})},
		"fallback_keys": map[string]any{"signed_curve25519:BBB": sign(map[string]any{"key": "fallback", "fallback": true})},
	}, nil)
}

// received takes what waits for the user's device.
func (u *localUser) received(since *string) (bodies []string) {
	u.t.Helper()
	var sync struct {
		Next     string `json:"next_batch"`
		ToDevice struct {
			Events []struct {
				Type    string
				Content struct{ Body string }
			}
		} `json:"to_device"`
	}
	u.must("GET", "/sync?since="+url.QueryEscape(*since), nil, &sync)
	*since = sync.Next
	for _, e := range sync.ToDevice.Events {
		bodies = append(bodies, e.Type+" "+e.Content.Body)
	}
	return bodies
}

// TestFirstContactWhileAway: somebody whose server sleeps is written to for the first time; the sender's server goes to sleep, too; a third carries the message,
// over a restart of its own; the receiver wakes, and has it once, also when the sender is back.
func TestFirstContactWhileAway(t *testing.T) {
	t.Parallel()
	net := memnet.New()
	a, b, c := newSleeper(t, net), newSleeper(t, net), newSleeper(t, net)
	alice, bob, carol := register(t, a.Node, "alice"), register(t, b.Node, "bob"), register(t, c.Node, "carol")
	var who struct {
		Device string `json:"device_id"`
	}
	bob.must("GET", "/account/whoami", nil, &who)
	bob.uploads(who.Device)
	room := alice.create(map[string]any{"preset": "public_chat"})
	bob.joins(room, a.Node)
	carol.joins(room, a.Node)
	a.logged(1, "keys handed over", string(bob.id))
	c.until("carol's server to know of bob", func() bool {
		var members struct{ Joined map[eventgraph.UserID]any }
		carol.must("GET", "/rooms/"+url.PathEscape(string(room))+"/joined_members", nil, &members)
		return len(members.Joined) == 3
	})
	var since string
	bob.received(&since)
	b.sleep()

	var query struct {
		Failures map[string]any
		Devices  map[eventgraph.UserID]map[string]json.RawMessage `json:"device_keys"`
	}
	a.until("bob to be away", func() bool {
		status, err := a.Status()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range status.Peers {
			if p.ServerName == b.ServerName() {
				return false
			}
		}
		return true
	})
	alice.must("POST", "/keys/query", map[string]any{"device_keys": map[eventgraph.UserID]any{bob.id: []string{}}}, &query)
	if len(query.Failures) > 0 || query.Devices[bob.id][who.Device] == nil {
		t.Fatalf("bob's devices: %+v", query)
	}
	var claim struct {
		Failures map[string]any
		Keys     map[eventgraph.UserID]map[string]map[string]struct{ Key string } `json:"one_time_keys"`
	}
	began := time.Now()
	alice.must("POST", "/keys/claim", map[string]any{"timeout": 2000,
		"one_time_keys": map[eventgraph.UserID]any{bob.id: map[string]string{who.Device: "signed_curve25519"}}}, &claim)
	if took := time.Since(began); took >= 10*time.Second { // as it takes who does not heed the timeout
		t.Errorf("the claim took %v of its 2 s", took)
	}
	if len(claim.Failures) > 0 || claim.Keys[bob.id][who.Device]["signed_curve25519:BBB"].Key != "fallback" {
		t.Fatalf("a key of bob's device: %+v", claim)
	}
	// What she writes comes from a device that bob's server has never heard of.
	var laptop struct {
		Device string `json:"device_id"`
		Token  string `json:"access_token"`
	}
	alice.must("POST", "/login", map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"},
		"password": "a password for alice"}, &laptop)
	alice.token = laptop.Token
	alice.uploads(laptop.Device)
	send := func(id, eventType string) {
		alice.must("PUT", "/sendToDevice/"+eventType+"/"+id, map[string]any{"messages": map[eventgraph.UserID]any{
			bob.id: map[string]any{who.Device: map[string]string{"body": id}}}}, nil)
	}
	send("first", "m.room.encrypted")
	send("plain", "m.plain")
	c.logged(1, "messages are kept for other servers", "messages=1")
	a.sleep()
	c.sleep()
	c.wake()
	b.wake()
	bob.base = b.ClientURL()
	b.logged(1, "a carried message has come")
	var got []string
	begin := since
	b.until("the message", func() bool { got = append(got, bob.received(&since)...); return len(got) > 0 })
	var told struct {
		Lists struct{ Changed []eventgraph.UserID } `json:"device_lists"`
	}
	bob.must("GET", "/sync?timeout=0&since="+url.QueryEscape(begin), nil, &told)
	if !slices.Contains(told.Lists.Changed, alice.id) {
		t.Errorf("with the message bob was told of the devices of %v", told.Lists.Changed)
	}
	query.Devices = nil
	bob.must("POST", "/keys/query", map[string]any{"timeout": 2000, "device_keys": map[eventgraph.UserID]any{alice.id: []string{}}}, &query)
	if query.Devices[alice.id][laptop.Device] == nil {
		t.Errorf("the device that wrote is not among alice's: %+v", query)
	}
	a.wake()
	b.until("what was not carried", func() bool { got = append(got, bob.received(&since)...); return len(got) > 1 })
	send2 := *alice
	send2.base = a.ClientURL()
	alice = &send2
	send("last", "m.room.encrypted")
	b.until("the last", func() bool { got = append(got, bob.received(&since)...); return len(got) > 2 })
	if want := "m.room.encrypted first, m.plain plain, m.room.encrypted last"; strings.Join(got, ", ") != want {
		t.Errorf("bob has %q, want %s", got, want)
	}
}
