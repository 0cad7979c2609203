//go:build linux

package p2ptransport_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/internal/transporttest"
)

// nodeEnv makes the test binary a node in a process of its own, so that it can run in a network namespace. It reads
// commands from stdin and writes what happens to stdout; see runNode.
const nodeEnv = "PLEXUS_TEST_NODE"

// line is what a node writes.
type line struct {
	ID        string   `json:"id,omitempty"` // first of all, with Addrs
	Addrs     []string `json:"addrs,omitempty"`
	Peer      string   `json:"peer,omitempty"` // an event of Watch
	Connected bool     `json:"connected,omitempty"`
	Addr      string   `json:"addr,omitempty"`
	Answer    string   `json:"answer,omitempty"`  // to "get PEER"
	Relay     string   `json:"relay,omitempty"`   // to "relay PEER": yes, no, or away
	Outside   string   `json:"outside,omitempty"` // from "sniff": where a packet went
	Error     string   `json:"error,omitempty"`
}

// silentProtocol is one whose streams are accepted and never answered.
const silentProtocol = "/plexus-test/silent/1"

// runNode runs a node until stdin ends. Commands: "get PEER" sends a request, "wait PEER" reads a stream of silentProtocol, "relay PEER" asks whether it is reached through a
// relay. With the argument sniff it runs no node, but tells what is sent outside.
func runNode(args string) {
	if args == "sniff" {
		sniff()
		return
	}
	seed, err := hex.DecodeString(os.Getenv(nodeEnv))
	if err != nil {
		panic(err)
	}
	c := p2ptransport.Config{Key: keyFromSeed(seed), MDNS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "here")
	})}
	for _, a := range strings.Fields(args) {
		if a == "nomdns" {
			c.MDNS = false
		} else if a == "relay" {
			c.Relay = true
		} else if port, ok := strings.CutPrefix(a, "port="); ok {
			c.Listen = []string{"/ip4/0.0.0.0/udp/" + port + "/quic-v1", "/ip4/0.0.0.0/tcp/" + port}
		} else if a == "lanonly" {
			c.LANOnly = true
		} else if key, ok := strings.CutPrefix(a, "mesh="); ok {
			c.MeshKey = new(p2ptransport.MeshKey)
			_, _ = hex.Decode(c.MeshKey[:], []byte(key))
		} else {
			c.StaticPeers = append(c.StaticPeers, a)
		}
	}
	if os.Getenv("PLEXUS_TEST_LOG") != "" {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	lines := make(chan line)
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(reachLog(lines), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	h, err := p2ptransport.New(c)
	if err != nil {
		panic(err)
	}
	h.Handle(silentProtocol, func(ctx context.Context, _ p2ptransport.PeerID, s net.Conn) { <-ctx.Done() })
	out := json.NewEncoder(os.Stdout)
	ctx, cancel := context.WithCancel(context.Background())
	go h.Watch(ctx, func(e p2ptransport.PeerEvent) {
		lines <- line{Peer: string(e.Peer), Connected: e.Connected, Addr: e.Addr}
	})
	go func() {
		defer cancel()
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			verb, arg, _ := strings.Cut(in.Text(), " ")
			switch verb {
			case "relay":
				answer := "away"
				for _, p := range h.Peers() {
					if string(p.ID) == arg {
						answer = map[bool]string{true: "yes", false: "no"}[p.Relay]
					}
				}
				lines <- line{Relay: answer}
			case "addrs":
				lines <- line{Addrs: h.Addrs()}
			case "wait":
				go func() {
					s, err := h.OpenStream(ctx, p2ptransport.PeerID(arg), silentProtocol)
					if err != nil {
						lines <- line{Answer: "failed", Error: err.Error()}
						return
					}
					if _, err = s.Read(make([]byte, 1)); err != nil {
						lines <- line{Answer: "broken", Error: err.Error()}
					}
				}()
			case "get":
				go func() {
					ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
					defer cancel()
					r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
					resp, err := h.Do(ctx, p2ptransport.PeerID(arg), r)
					if err != nil {
						lines <- line{Answer: "failed", Error: err.Error()}
						return
					}
					body, _ := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					lines <- line{Answer: string(body)}
				}()
			}
		}
	}()
	_ = out.Encode(line{ID: string(h.ID()), Addrs: h.Addrs()})
	for ctx.Err() == nil {
		select {
		case l := <-lines:
			_ = out.Encode(l)
		case <-ctx.Done():
		}
	}
	_ = h.Close()
}

// reachLog tells what was found out about addresses outside, which nothing else shows if they cannot be reached.
type reachLog chan<- line

func (l reachLog) Write(b []byte) (int, error) {
	if said := string(b); strings.Contains(said, "an address from outside") {
		go func() { l <- line{Outside: said} }()
	}
	return len(b), nil
}

// lan is a bridge in a namespace of its own and, in another for each machine, an end of a cable to it. Nothing has a
// default route.
type lan struct {
	t      *testing.T
	prefix string
	count  int
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command")
	}
	b := make([]byte, 3)
	_, _ = rand.Read(b)
	l := &lan{t: t, prefix: "plx-t-" + hex.EncodeToString(b)}
	if out, err := exec.Command("ip", "netns", "add", l.bridge()).CombinedOutput(); err != nil {
		t.Skipf("cannot make network namespaces: %v: %s", err, out)
	}
	t.Cleanup(func() { l.ip("netns", "del", l.bridge()) })
	l.ip("-n", l.bridge(), "link", "add", "br0", "type", "bridge")
	l.ip("-n", l.bridge(), "link", "set", "br0", "up")
	return l
}

func (l *lan) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (l *lan) bridge() string { return l.prefix + "-br" }

// machine is a namespace on the LAN with one interface.
type machine struct {
	l     *lan
	ns    string
	cable string // the bridge's end
}

// machine adds a machine with an IPv4 address, or with none but IPv6's link-local one.
func (l *lan) machine(ipv4 bool) *machine {
	l.t.Helper()
	l.count++
	m := &machine{l, fmt.Sprintf("%s-%d", l.prefix, l.count), fmt.Sprintf("port%d", l.count)}
	l.ip("netns", "add", m.ns)
	l.t.Cleanup(func() { l.ip("netns", "del", m.ns) })
	l.ip("-n", l.bridge(), "link", "add", m.cable, "type", "veth", "peer", "name", "eth0", "netns", m.ns)
	l.ip("-n", l.bridge(), "link", "set", m.cable, "master", "br0")
	l.ip("-n", m.ns, "link", "set", "lo", "up")
	if ipv4 {
		l.ip("-n", m.ns, "addr", "add", fmt.Sprintf("10.77.0.%d/24", l.count), "dev", "eth0")
	}
	l.ip("-n", m.ns, "link", "set", "eth0", "up")
	m.plug()
	return m
}

func (m *machine) plug()   { m.l.ip("-n", m.l.bridge(), "link", "set", m.cable, "up") }
func (m *machine) unplug() { m.l.ip("-n", m.l.bridge(), "link", "set", m.cable, "down") }

// process is a node on a machine.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan line
	line
}

func (m *machine) start(key string, args ...string) *process {
	t := m.l.t
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", m.ns, self, "--"}, args...)...)
	cmd.Env = append(os.Environ(), nodeEnv+"="+key)
	cmd.Stderr = os.Stderr
	p := &process{t: t, cmd: cmd, lines: make(chan line, 100)}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for in := bufio.NewScanner(stdout); in.Scan(); {
			var l line
			if json.Unmarshal(in.Bytes(), &l) == nil {
				p.lines <- l
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.stdin.Close()
		<-read
		_ = cmd.Wait()
	})
	p.line = p.next(10 * time.Second)
	return p
}

func (p *process) next(within time.Duration) line {
	p.t.Helper()
	select {
	case l := <-p.lines:
		return l
	case <-time.After(within):
		p.t.Fatalf("nothing from the node within %v", within)
		return line{}
	}
}

// await waits for a line.
func (p *process) await(within time.Duration, what string, match func(line) bool) (line, time.Duration) {
	p.t.Helper()
	begin := time.Now()
	for {
		l := p.next(within - time.Since(begin))
		if match(l) {
			p.t.Logf("%s after %v: %+v", what, time.Since(begin).Round(time.Millisecond), l)
			return l, time.Since(begin)
		}
	}
}

func (p *process) awaitPeer(within time.Duration, peer string) line {
	p.t.Helper()
	l, _ := p.await(within, "connected", func(l line) bool { return l.Peer == peer && l.Connected })
	return l
}

// get sends a request that must succeed within the time.
func (p *process) get(within time.Duration, peer string) {
	p.t.Helper()
	for begin := time.Now(); ; {
		if _, err := fmt.Fprintln(p.stdin, "get", peer); err != nil {
			p.t.Fatal(err)
		}
		l, _ := p.await(within-time.Since(begin), "answer", func(l line) bool { return l.Answer != "" })
		if l.Error == "" {
			return
		}
	}
}

func seed(t *testing.T) string {
	return hex.EncodeToString(transporttest.Key(t).Seed())
}

// TestLAN: two machines on a LAN without a default route are connected within 3 s of the second start, and again
// within as much after a cable was pulled and put back, and after one of them was killed and started anew.
func TestLAN(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	a := ma.start(seed(t))
	begin := time.Now()
	key := seed(t)
	b := mb.start(key)
	a.awaitPeer(3*time.Second-time.Since(begin), b.ID)
	b.awaitPeer(3*time.Second-time.Since(begin), a.ID)
	a.get(time.Second, b.ID)
	b.get(time.Second, a.ID)

	ma.unplug()
	// One request finds out that the connection is dead.
	_, _ = fmt.Fprintln(a.stdin, "get", b.ID)
	a.await(15*time.Second, "loss", func(l line) bool { return l.Peer == b.ID && !l.Connected })
	ma.plug()
	a.awaitPeer(3*time.Second, b.ID)
	a.get(3*time.Second, b.ID)
	b.get(3*time.Second, a.ID)

	_ = b.cmd.Process.Kill()
	again := mb.start(key)
	again.awaitPeer(3*time.Second, a.ID)
	a.get(3*time.Second, b.ID)
	again.get(time.Second, a.ID)
}

// TestLANWithoutIPv4: machines with nothing but link-local addresses.
func TestLANWithoutIPv4(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(false), l.machine(false)
	a, b := ma.start(seed(t)), mb.start(seed(t))
	// The kernel needs a second or two to find that nobody else has the address.
	a.awaitPeer(6*time.Second, b.ID)
	b.awaitPeer(6*time.Second, a.ID)
	a.get(time.Second, b.ID)
	b.get(time.Second, a.ID)
}

// TestLANWithoutIPv6: where IPv6 is switched off, mDNS works over IPv4 alone.
func TestLANWithoutIPv6(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	for _, m := range []*machine{ma, mb} {
		l.ip("netns", "exec", m.ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	}
	a, b := ma.start(seed(t)), mb.start(seed(t))
	a.awaitPeer(3*time.Second, b.ID)
	b.awaitPeer(3*time.Second, a.ID)
	a.get(time.Second, b.ID)
}

// TestLANLater: nodes that start before their machines are on any network find each other when they are, at whatever
// address, and two nodes on one machine without any network find each other too.
func TestLANLater(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	l.ip("-n", ma.ns, "link", "set", "eth0", "down")
	l.ip("-n", ma.ns, "addr", "flush", "dev", "eth0")
	a, neighbour := ma.start(seed(t)), ma.start(seed(t))
	a.awaitPeer(3*time.Second, neighbour.ID)

	b := mb.start(seed(t))
	l.ip("-n", ma.ns, "addr", "add", "10.77.0.99/24", "dev", "eth0")
	l.ip("-n", ma.ns, "link", "set", "eth0", "up")
	both := map[string]bool{a.ID: true, neighbour.ID: true}
	b.await(4*time.Second, "both", func(l line) bool {
		if l.Connected {
			delete(both, l.Peer)
		}
		return len(both) == 0
	})

	b.get(10*time.Second, a.ID) // a connection that has never answered is given longer

	// Another address, and the old one is gone.
	l.ip("-n", ma.ns, "addr", "flush", "dev", "eth0")
	l.ip("-n", ma.ns, "addr", "add", "10.77.0.98/24", "dev", "eth0")
	b.get(20*time.Second, a.ID)
}

// TestLANCutInTheMiddle: a cut that no machine's interface shows. Whoever waits for an answer finds the connection dead
// in seconds, and when the cut is mended the peers find each other again in seconds.
func TestLANCutInTheMiddle(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	a, b := ma.start(seed(t)), mb.start(seed(t))
	a.awaitPeer(3*time.Second, b.ID)
	a.get(3*time.Second, b.ID) // a connection that has never answered is given longer
	l.ip("-n", l.bridge(), "link", "set", "br0", "down")
	_, _ = fmt.Fprintln(a.stdin, "get", b.ID)
	a.await(20*time.Second, "loss", func(l line) bool { return l.Peer == b.ID && !l.Connected })
	l.ip("-n", l.bridge(), "link", "set", "br0", "up")
	a.get(20*time.Second, b.ID)
	b.get(20*time.Second, a.ID)
}

// TestStaticPeer: without mDNS, at a given address, before and after that peer runs.
func TestStaticPeer(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ma, mb := l.machine(true), l.machine(true)
	b := mb.start(seed(t), "nomdns")
	if !strings.HasPrefix(b.Addrs[0], "/ip4/10.77.0.2/") {
		t.Errorf("the first address is %s", b.Addrs[0])
	}
	a := ma.start(seed(t), "nomdns", b.Addrs[0])
	a.awaitPeer(3*time.Second, b.ID)
	b.get(time.Second, a.ID)

	ma.unplug()
	_, _ = fmt.Fprintln(a.stdin, "get", b.ID)
	a.await(15*time.Second, "loss", func(l line) bool { return l.Peer == b.ID && !l.Connected })
	ma.plug()
	a.awaitPeer(3*time.Second, b.ID)
}
