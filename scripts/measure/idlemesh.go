package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/scripts/hosts"
)

// idleMesh is the measurement of a node that shares many rooms with many connected peers, while nothing happens: each on a host of
// its own, with the flags that people start it with. It needs root and iproute2.
type idleMesh struct {
	binary        string
	rooms, peers  int
	settle, watch time.Duration
}

// etherHeader is counted by the system for each packet and is not IP's.
const etherHeader = 14

// task is what a client does in the network namespace of its node; this program runs itself there for it.
type task struct {
	Node   *node.NodeFile
	Create int      // rooms to make
	Join   []string // rooms to join
	Via    string
}

// asClient does the task that is on standard input and prints the rooms.
func asClient(ctx context.Context, in io.Reader, out io.Writer) error {
	var t task
	if err := json.NewDecoder(in).Decode(&t); err != nil {
		return err
	}
	c, err := register(ctx, &process{ClientURL: t.Node.ClientURL, RegistrationToken: t.Node.RegistrationToken}, "someone")
	if err != nil {
		return err
	}
	for range t.Create {
		room, err := c.create(ctx)
		if err != nil {
			return err
		}
		t.Join = append(t.Join, room)
	}
	if t.Create == 0 {
		for _, room := range t.Join {
			if err := c.join(ctx, room, t.Via); err != nil {
				return err
			}
		}
	}
	return json.NewEncoder(out).Encode(t.Join)
}

// do has a task done on a host.
func (t task) do(ctx context.Context, h *hosts.Host) (rooms []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	in, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	cmd := h.Command(ctx, self, "-as-client")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("client on %s: %w", h.Addr, err)
	}
	return rooms, json.Unmarshal(raw, &rooms)
}

// run prints the figures.
func (m *idleMesh) run(ctx context.Context, dir string) (err error) {
	lan, err := hosts.New(ctx, dir, 1+m.peers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lan.Close()) }()
	var nodes []*node.NodeFile
	for _, h := range lan.Hosts {
		f, err := h.Start(ctx, m.binary, "--rate-limits=false")
		if err != nil {
			return err
		}
		nodes = append(nodes, f)
	}
	watched := &process{dir: lan.Hosts[0].Dir, pid: nodes[0].PID}
	step("%d rooms", m.rooms)
	rooms, err := task{Node: nodes[0], Create: m.rooms}.do(ctx, lan.Hosts[0])
	if err != nil {
		return err
	}
	step("%d peers join them, each its own %d", m.peers, m.rooms/m.peers)
	// One after the other: all at once, they would ask for more than two cores can answer in time.
	for i := range m.peers {
		some := rooms[i*m.rooms/m.peers : (i+1)*m.rooms/m.peers]
		if _, err := (task{Node: nodes[1+i], Join: some, Via: string(nodes[0].ServerName)}).do(ctx, lan.Hosts[1+i]); err != nil {
			return err
		}
	}
	step("settling for %s", m.settle)
	if err := pause(ctx, m.settle); err != nil {
		return err
	}
	step("watching for %s", m.watch)
	before, err := m.sample(ctx, lan.Hosts[0], watched)
	if err != nil {
		return err
	}
	if err := pause(ctx, m.watch); err != nil {
		return err
	}
	after, err := m.sample(ctx, lan.Hosts[0], watched)
	if err != nil {
		return err
	}
	if before.peers != m.peers || after.peers != m.peers {
		return fmt.Errorf("%d peers were connected at the beginning and %d at the end, not %d", before.peers, after.peers, m.peers)
	}
	took := after.at.Sub(before.at)
	fmt.Printf("A node with %d rooms and %d connected peers, idle for %s after %s:\n", m.rooms, m.peers, took.Round(time.Second), m.settle)
	fmt.Printf("  CPU                      %.2f %% of one core\n", 100*(after.cpu-before.cpu).Seconds()/took.Seconds())
	fmt.Printf("  IP and ARP, both ways    %.0f bytes/s, %.1f packets/s\n", float64(after.bytes-before.bytes)/took.Seconds(), float64(after.packets-before.packets)/took.Seconds())
	fmt.Printf("  anonymous memory         %s; resident with mapped files %s\n", mebibytes(after.anonymous), mebibytes(after.resident))
	fmt.Printf("  threads                  %d\n", after.threads)
	return nil
}

// meshSample is what the watched node has used at a time.
type meshSample struct {
	at                  time.Time
	cpu                 time.Duration
	bytes, packets      int64 // of its host's network interface, in and out, without Ethernet's headers
	anonymous, resident int64
	peers, threads      int
}

func (m *idleMesh) sample(ctx context.Context, h *hosts.Host, p *process) (s meshSample, err error) {
	// First the peers, as asking for them is work of the node.
	raw, err := exec.CommandContext(ctx, m.binary, "status", "--json", "--data", p.dir).Output()
	if err != nil {
		return s, fmt.Errorf("status: %w", err)
	}
	var status node.Status
	if err := json.Unmarshal(raw, &status); err != nil {
		return s, err
	}
	if s.peers = len(status.Peers); len(status.Rooms) != m.rooms {
		return s, fmt.Errorf("the node has %d rooms", len(status.Rooms))
	}
	tasks, err := filepath.Glob(p.proc("task/*"))
	if err != nil {
		return s, err
	}
	s.threads = len(tasks)
	if s.anonymous, s.resident, err = p.memory(); err != nil {
		return s, err
	}
	s.at = time.Now()
	used, err := p.usage()
	if err != nil {
		return s, err
	}
	s.cpu = used.cpu
	for _, direction := range []string{"rx", "tx"} {
		bytes, err := counter(ctx, h, direction+"_bytes")
		if err != nil {
			return s, err
		}
		packets, err := counter(ctx, h, direction+"_packets")
		if err != nil {
			return s, err
		}
		s.bytes += bytes - etherHeader*packets
		s.packets += packets
	}
	return s, nil
}

// counter is one of the host's interface.
func counter(ctx context.Context, h *hosts.Host, name string) (int64, error) {
	raw, err := h.Command(ctx, "cat", "/sys/class/net/eth0/statistics/"+name).Output()
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", name, h.Addr, err)
	}
	return strconv.ParseInt(string(bytes.TrimSpace(raw)), 10, 64)
}
