package hosts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

var binary string

func TestMain(m *testing.M) {
	os.Exit(build(m))
}

// build makes the binary once for all tests; they run it as a person would.
func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "plexus-hosts-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "plexus")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/plexus").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build plexus: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// lan makes n hosts; on failure the nodes' logs are shown.
func lan(t *testing.T, n int) *LAN {
	t.Helper()
	needHosts(t)
	dir := t.TempDir()
	l, err := New(t.Context(), dir, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range l.Hosts {
			raw, _ := os.ReadFile(h.logFile())
			if logs != "" {
				name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
				_ = os.WriteFile(filepath.Join(logs, fmt.Sprintf("%s-%d.log", name, h.number)), raw, 0o600)
			}
			if t.Failed() {
				t.Logf("end of the log of host %d:\n%s", h.number, raw[max(0, len(raw)-4000):])
			}
		}
	})
	return l
}

// logs is a directory where the nodes' logs are kept, and then they are long (PLEXUS_HOST_LOGS).
var logs = os.Getenv("PLEXUS_HOST_LOGS")

func (h *Host) start(t *testing.T, flags ...string) *node.NodeFile {
	t.Helper()
	if logs != "" {
		flags = append(flags, "--verbose")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	f, err := h.Start(ctx, binary, flags...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (h *Host) status(t *testing.T) *node.Status {
	t.Helper()
	out, err := h.Command(t.Context(), binary, "status", "--json", "--data", h.Dir).Output()
	if err != nil {
		t.Fatalf("plexus status on host %d: %v", h.number, err)
	}
	var s node.Status
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// eventually asks check until it is true. What it asks about happens in other processes, which have no event to wait for here.
func eventually(t *testing.T, limit time.Duration, what string, check func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
	return time.Since(began)
}

func connected(t *testing.T, h *Host, peers ...eventgraph.PeerID) bool {
	s := h.status(t)
	for _, p := range peers {
		if !slices.ContainsFunc(s.Peers, func(q node.PeerStatus) bool { return q.PeerID == p }) {
			return false
		}
	}
	return true
}

func equalState(t *testing.T, room string, hosts ...*Host) func() bool {
	return func() bool {
		first := ""
		for _, h := range hosts {
			r := h.status(t).Rooms[eventgraph.RoomID(room)]
			if r == nil || first != "" && r.StateHash != first {
				return false
			}
			first = r.StateHash
		}
		return true
	}
}

// The limit that a person was promised: nodes on one LAN are connected within 3 s of the second's start.
const discoveryLimit = 3 * time.Second

func TestDiscovery(t *testing.T) {
	t.Run("mdns", func(t *testing.T) {
		l := lan(t, 2)
		a := l.Hosts[0].start(t)
		b := l.Hosts[1].start(t)
		took := eventually(t, discoveryLimit, "two nodes connected by mDNS", func() bool {
			return connected(t, l.Hosts[0], b.PeerID) && connected(t, l.Hosts[1], a.PeerID)
		})
		t.Logf("connected %v after the second node could serve", took)
	})
	t.Run("static peer", func(t *testing.T) {
		l := lan(t, 2)
		a := l.Hosts[0].start(t, "--mdns=false")
		b := l.Hosts[1].start(t, "--mdns=false", "--peer", addrOf(t, a, l.Hosts[0]))
		eventually(t, discoveryLimit, "two nodes connected by --peer", func() bool { return connected(t, l.Hosts[0], b.PeerID) })
	})
	t.Run("peers add", func(t *testing.T) {
		l := lan(t, 2)
		a := l.Hosts[0].start(t, "--mdns=false")
		b := l.Hosts[1].start(t, "--mdns=false")
		if out, err := l.Hosts[1].Command(t.Context(), binary, "peers", "add", addrOf(t, a, l.Hosts[0]), "--data", l.Hosts[1].Dir).CombinedOutput(); err != nil {
			t.Fatalf("peers add: %v: %s", err, out)
		}
		if !connected(t, l.Hosts[0], b.PeerID) {
			t.Error("peers add returned before the peer was connected")
		}
	})
}

// addrOf picks the node's address on the LAN from node.json.
func addrOf(t *testing.T, f *node.NodeFile, h *Host) string {
	t.Helper()
	for _, a := range f.P2PAddrs {
		if strings.HasPrefix(a, "/ip4/"+h.Addr+"/") {
			return a
		}
	}
	t.Fatalf("no address of %s in %v", h.Addr, f.P2PAddrs)
	return ""
}

// TestChat is the main job: two clients on two nodes, a room, 100 messages each way, history, a third node, encryption.
func TestChat(t *testing.T) {
	l := lan(t, 3)
	hostA, hostB, hostC := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	fileA, fileB := hostA.start(t), hostB.start(t)
	a, b := sdkClient(t, hostA), sdkClient(t, hostB)
	a.enter(fileA, "alice", true)
	b.enter(fileB, "bob", true)
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, hostA, fileB.PeerID) })

	room := meet(t, a, b, args{"name": "Harbour"})
	exchange(t, room, a, b, 100)

	var history struct{ Events []struct{ Type, Body string } }
	b.do("history", args{"room": room}, &history)
	if len(history.Events) < 200 || history.Events[0].Type != "m.room.create" {
		t.Errorf("bob's history has %d events and begins with %v; want more than 200, from the create event", len(history.Events), history.Events[:min(1, len(history.Events))])
	}
	exchangeEncrypted(t, a, b)

	// A third node joins through B while A is off, and reads everything.
	eventually(t, 20*time.Second, "equal state", equalState(t, room, hostA, hostB))
	fileC := hostC.start(t)
	c := sdkClient(t, hostC)
	c.enter(fileC, "carol", false)
	eventually(t, 10*time.Second, "C connected to B", func() bool { return connected(t, hostC, fileB.PeerID) })
	if err := hostA.Stop(); err != nil {
		t.Fatal(err)
	}
	b.do("invite", args{"room": room, "user": c.User}, nil)
	c.do("waitInvite", args{"room": room}, nil)
	c.do("join", args{"room": room, "via": []string{string(fileB.ServerName)}}, nil)
	c.do("waitMember", args{"room": room, "user": b.User}, nil)
	c.do("history", args{"room": room}, &history)
	got := map[string]int{}
	for _, e := range history.Events {
		if e.Type == "m.room.message" {
			got[strings.Fields(e.Body)[0]]++
		}
	}
	if got["from-a"] != 100 || got["from-b"] != 100 || history.Events[0].Type != "m.room.create" {
		t.Errorf("carol's history has %v of 100 messages each and begins with %s", got, history.Events[0].Type)
	}
}

// TestChatWithNio is the conversation between python3-matrix-nio and matrix-js-sdk.
func TestChatWithNio(t *testing.T) {
	l := lan(t, 2)
	fileA, fileB := l.Hosts[0].start(t), l.Hosts[1].start(t)
	a, b := nioClient(t, l.Hosts[0]), sdkClient(t, l.Hosts[1])
	a.enter(fileA, "alice", true)
	b.enter(fileB, "bob", true)
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, l.Hosts[0], fileB.PeerID) })
	room := meet(t, a, b, args{"name": "Harbour"})
	exchange(t, room, a, b, 100)
	exchangeEncrypted(t, a, b)
	exchangeEncrypted(t, b, a)
}

// meet makes a room by a, invites b, and returns when both see both.
func meet(t *testing.T, a, b *client, create args) string {
	t.Helper()
	var made struct{ Room string }
	a.do("createRoom", create, &made)
	a.do("invite", args{"room": made.Room, "user": b.User}, nil)
	const patience = 60_000 // ms, on a slow link
	b.do("waitInvite", args{"room": made.Room, "timeout": patience}, nil)
	b.do("join", args{"room": made.Room}, nil)
	b.do("waitMember", args{"room": made.Room, "user": a.User, "timeout": patience}, nil)
	a.do("waitMember", args{"room": made.Room, "user": b.User, "timeout": patience}, nil)
	return made.Room
}

// exchange sends count messages each way at the same time, checks that each sender's come in order, and prints the delivery time.
func exchange(t *testing.T, room string, a, b *client, count int) {
	t.Helper()
	var sentA, sentB []sent
	var wait sync.WaitGroup
	wait.Go(func() { sentA = a.sendMany(room, "from-a", count) })
	wait.Go(func() { sentB = b.sendMany(room, "from-b", count) })
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	gotB, gotA := b.waitMessages(room, "from-a", count), a.waitMessages(room, "from-b", count)
	times := append(inOrder(t, "from-a", sentA, gotB), inOrder(t, "from-b", sentB, gotA)...)
	slices.Sort(times)
	t.Logf("send to the other client's /sync, %d messages each way at once: p50 %.1f ms, p95 %.1f ms", count, times[len(times)/2], times[len(times)*95/100])
}

// inOrder checks that what was received is what was sent, in order and once, and returns the delivery times in ms.
func inOrder(t *testing.T, prefix string, s []sent, got []message) []float64 {
	t.Helper()
	var times []float64
	if len(got) != len(s) {
		t.Fatalf("%s: %d messages came, %d were sent", prefix, len(got), len(s))
	}
	for i, m := range got {
		if want := fmt.Sprintf("%s %d", prefix, i); m.Body != want || m.EventID != s[i].EventID {
			t.Fatalf("message %d is %q (%s), want %q (%s)", i, m.Body, m.EventID, want, s[i].EventID)
		}
		times = append(times, m.At-s[i].At)
	}
	return times
}

// exchangeEncrypted makes a second, encrypted room in which both read each other.
func exchangeEncrypted(t *testing.T, a, b *client) string {
	t.Helper()
	room := meet(t, a, b, args{"name": "Sealed", "encrypted": true})
	a.do("waitEncrypted", args{"room": room}, nil)
	b.do("waitEncrypted", args{"room": room}, nil)
	for i := range 3 {
		a.do("send", args{"room": room, "body": fmt.Sprintf("sealed-a %d", i)}, nil)
		b.do("send", args{"room": room, "body": fmt.Sprintf("sealed-b %d", i)}, nil)
	}
	for _, m := range append(b.waitMessages(room, "sealed-a", 3), a.waitMessages(room, "sealed-b", 3)...) {
		if !m.Encrypted {
			t.Errorf("%s came in the clear", m.Body)
		}
	}
	return room
}

// TestSplit cuts the cable, lets both sides go on, and wants one room afterwards.
func TestSplit(t *testing.T) {
	l := lan(t, 2)
	hostA, hostB := l.Hosts[0], l.Hosts[1]
	fileA, fileB := hostA.start(t), hostB.start(t)
	a, b := sdkClient(t, hostA), sdkClient(t, hostB)
	a.enter(fileA, "alice", false)
	b.enter(fileB, "bob", false)
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, hostA, fileB.PeerID) })
	// v12 creators are above all levels; room creation with additional_creators would do, power 100 for both needs version 11.
	room := meet(t, a, b, args{"name": "Harbour"})
	levels := args{}
	a.do("getState", args{"room": room, "type": "m.room.power_levels"}, &levels)
	users, _ := levels["users"].(map[string]any)
	if users == nil {
		users = map[string]any{}
	}
	users[b.User] = 100
	levels["users"] = users
	a.do("state", args{"room": room, "type": "m.room.power_levels", "content": levels}, nil)
	eventually(t, 10*time.Second, "equal state before the cut", equalState(t, room, hostA, hostB))

	if err := hostB.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for _, side := range []struct {
		c    *client
		name string
		ban  int
	}{{a, "split-a", 60}, {b, "split-b", 70}} {
		wait.Go(func() {
			side.c.sendMany(room, side.name, 50)
			side.c.do("state", args{"room": room, "type": "m.room.topic", "content": args{"topic": "by " + side.name}}, nil)
			mine := args{}
			raw, _ := json.Marshal(levels)
			json.Unmarshal(raw, &mine)
			mine["ban"] = side.ban
			side.c.do("state", args{"room": room, "type": "m.room.power_levels", "content": mine}, nil)
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if err := hostB.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	mended := time.Now()
	a.waitMessages(room, "split-b", 50)
	b.waitMessages(room, "split-a", 50)
	took := time.Since(mended)
	t.Logf("all messages of both sides on both %v after the link came back", took)
	if took > 10*time.Second {
		t.Errorf("it took %v, more than 10 s", took)
	}
	a.do("send", args{"room": room, "body": "after 0"}, nil)
	b.waitMessages(room, "after", 1)
	eventually(t, 10*time.Second, "equal state after the split", equalState(t, room, hostA, hostB))
}

// TestInviteAway invites somebody whose device is away, and somebody whom the other has never met.
func TestInviteAway(t *testing.T) {
	l := lan(t, 2)
	hostA, hostB := l.Hosts[0], l.Hosts[1]
	fileB := hostB.start(t)
	b := sdkClient(t, hostB)
	b.enter(fileB, "bob", false)
	if err := hostB.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	fileA := hostA.start(t)
	a := sdkClient(t, hostA)
	a.enter(fileA, "alice", false)
	var made struct{ Room string }
	a.do("createRoom", args{"name": "Harbour", "invite": []string{b.User}}, &made)
	a.do("send", args{"room": made.Room, "body": "early 0"}, nil)
	if err := hostB.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.do("waitInvite", args{"room": made.Room}, nil)
	b.do("join", args{"room": made.Room}, nil)
	a.do("waitMember", args{"room": made.Room, "user": b.User}, nil)
	exchange(t, made.Room, a, b, 5)
}

// TestKill kills the node right after the last acknowledged send, 50 times.
func TestKill(t *testing.T) {
	l := lan(t, 2)
	hostA, hostB := l.Hosts[0], l.Hosts[1]
	flags := []string{"--rate-limits=false"}
	fileA, fileB := hostA.start(t, flags...), hostB.start(t, flags...)
	b := sdkClient(t, hostB)
	b.enter(fileB, "bob", false)
	alice := newCurl(t, hostA, fileA)
	alice.register("alice")
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, hostA, fileB.PeerID) })
	room := alice.create(b.User)
	b.do("waitInvite", args{"room": room}, nil)
	b.do("join", args{"room": room}, nil)

	const rounds, each = 50, 3
	var acked []string
	for i := range rounds {
		for j := range each {
			acked = append(acked, alice.send(room, fmt.Sprintf("kill-%d-%d", i, j), fmt.Sprintf("kill %d", i*each+j)))
		}
		if err := hostA.Kill(); err != nil {
			t.Fatal(err)
		}
		alice.node = hostA.start(t, flags...)
	}
	for _, id := range acked {
		if !alice.has(room, id) {
			t.Errorf("event %s was acknowledged and is not on the node's own disk", id)
		}
	}
	got := map[string]bool{}
	for _, m := range b.waitMessages(room, "kill", len(acked)) {
		got[m.EventID] = true
	}
	for _, id := range acked {
		if !got[id] {
			t.Errorf("event %s was acknowledged and never reached the peer", id)
		}
	}
}

// curl is a client that is nothing but HTTP requests, made on the host.
type curl struct {
	t     *testing.T
	host  *Host
	node  *node.NodeFile
	token string
}

func newCurl(t *testing.T, h *Host, n *node.NodeFile) *curl { return &curl{t: t, host: h, node: n} }

func (c *curl) do(method, path string, body, out any) int {
	c.t.Helper()
	raw, _ := json.Marshal(body)
	cmd := c.host.Command(c.t.Context(), "curl", "-s", "-X", method, "-w", "\n%{http_code}", "-H", "Authorization: Bearer "+c.token,
		"-H", "Content-Type: application/json", "--data-binary", "@-", c.node.ClientURL+"/_matrix/client/v3"+path)
	cmd.Stdin = bytes.NewReader(raw)
	answer, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("curl %s: %v", path, err)
	}
	i := bytes.LastIndexByte(answer, '\n')
	var code int
	fmt.Sscan(string(answer[i+1:]), &code)
	if out != nil {
		if err := json.Unmarshal(answer[:i], out); err != nil {
			c.t.Fatalf("%s %s: %d %s", method, path, code, answer)
		}
	}
	return code
}

func (c *curl) register(user string) {
	c.t.Helper()
	var first struct{ Session string }
	c.do("POST", "/register", args{"username": user, "password": "correct horse battery"}, &first)
	var done struct {
		AccessToken string `json:"access_token"`
	}
	if code := c.do("POST", "/register", args{"username": user, "password": "correct horse battery",
		"auth": args{"type": "m.login.registration_token", "token": c.node.RegistrationToken, "session": first.Session}}, &done); code != 200 {
		c.t.Fatalf("register: %d", code)
	}
	c.token = done.AccessToken
}

func (c *curl) create(invite string) string {
	c.t.Helper()
	var made struct {
		RoomID string `json:"room_id"`
	}
	if code := c.do("POST", "/createRoom", args{"preset": "private_chat", "invite": []string{invite}}, &made); code != 200 {
		c.t.Fatalf("createRoom: %d", code)
	}
	return made.RoomID
}

func (c *curl) send(room, txn, body string) string {
	c.t.Helper()
	var sent struct {
		EventID string `json:"event_id"`
	}
	if code := c.do("PUT", "/rooms/"+room+"/send/m.room.message/"+txn, args{"msgtype": "m.text", "body": body}, &sent); code != 200 {
		c.t.Fatalf("send: %d", code)
	}
	return sent.EventID
}

func (c *curl) has(room, event string) bool {
	c.t.Helper()
	return c.do("GET", "/rooms/"+room+"/event/"+event, nil, nil) == 200
}

// login is for a user whom a client of client_test.go has registered.
func (c *curl) login(user string) {
	c.t.Helper()
	var in struct {
		AccessToken string `json:"access_token"`
	}
	if code := c.do("POST", "/login", args{"type": "m.login.password", "identifier": args{"type": "m.id.user", "user": user},
		"password": passwordOf(user)}, &in); code != 200 {
		c.t.Fatalf("login: %d", code)
	}
	c.token = in.AccessToken
}

// shows says whether a message is among the room's newest hundred.
func (c *curl) shows(room, body string) bool {
	c.t.Helper()
	var page struct {
		Chunk []struct{ Content struct{ Body string } }
	}
	if c.do("GET", "/rooms/"+room+"/messages?limit=100&dir=b", nil, &page) != 200 {
		return false
	}
	for _, e := range page.Chunk {
		if e.Content.Body == body {
			return true
		}
	}
	return false
}
