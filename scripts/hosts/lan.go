// Package hosts puts plexus on several hosts of one LAN, all on this machine: network namespaces joined by a bridge, each
// with an address of its own and no default route, with one plexus in each. The host tests drive real clients in
// them; scripts/lan gives a person the same.
//
// The bridge has a namespace too, so nothing outside what New made is touched. It needs root and iproute2.
package hosts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plexus-p2p/plexus/node"
)

// lans counts those of this process, whose namespaces need names of their own.
var lans atomic.Int64

// MaxHosts keeps addresses within one /24.
const MaxHosts = 200

// LAN is a bridge and its hosts, numbered from 1.
type LAN struct {
	name  string // prefix of the namespaces' names
	Hosts []*Host
}

// Host is a network namespace with the address 10.77.0.N.
type Host struct {
	Namespace string
	Addr      string
	Dir       string // data directory of its plexus

	lan    *LAN
	number int
	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	log    *os.File
}

// New makes the namespaces of n hosts, with data directories below dir. Close removes the namespaces; dir stays.
func New(ctx context.Context, dir string, n int) (_ *LAN, err error) {
	if n < 1 || n > MaxHosts {
		return nil, fmt.Errorf("a LAN has 1 to %d hosts, not %d", MaxHosts, n)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root; run this as root or in a container that allows it")
	}
	l := &LAN{name: fmt.Sprintf("plx%d.%d", os.Getpid(), lans.Add(1))}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	br := l.bridge()
	if err := ip(ctx, "netns", "add", br); err != nil {
		return nil, err
	}
	if err := ip(ctx, "-n", br, "link", "add", "br0", "type", "bridge"); err != nil {
		return nil, err
	}
	if err := ip(ctx, "-n", br, "link", "set", "br0", "up"); err != nil {
		return nil, err
	}
	for i := 1; i <= n; i++ {
		h := &Host{Namespace: fmt.Sprintf("%s-%d", l.name, i), Addr: fmt.Sprintf("10.77.0.%d", i), lan: l, number: i}
		h.Dir = filepath.Join(dir, fmt.Sprintf("host%d", i))
		if err := os.MkdirAll(h.Dir, 0o700); err != nil {
			return nil, err
		}
		l.Hosts = append(l.Hosts, h)
		for _, args := range [][]string{
			{"netns", "add", h.Namespace},
			{"-n", br, "link", "add", h.port(), "type", "veth", "peer", "name", "eth0", "netns", h.Namespace},
			{"-n", br, "link", "set", h.port(), "master", "br0", "up"},
			{"-n", h.Namespace, "addr", "add", h.Addr + "/24", "dev", "eth0"},
			{"-n", h.Namespace, "link", "set", "lo", "up"},
			{"-n", h.Namespace, "link", "set", "eth0", "up"},
		} {
			if err := ip(ctx, args...); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

func (l *LAN) bridge() string { return l.name + "-br" }
func (h *Host) port() string  { return fmt.Sprintf("port%d", h.number) }

// Close ends the nodes that still run and removes the namespaces.
func (l *LAN) Close() error {
	var errs []error
	for _, h := range l.Hosts {
		errs = append(errs, h.Stop())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // also after the caller's end
	defer cancel()
	for _, h := range l.Hosts {
		errs = append(errs, ip(ctx, "netns", "del", h.Namespace))
	}
	return errors.Join(append(errs, ip(ctx, "netns", "del", l.bridge()))...)
}

// Cut pulls the host's cable at the bridge; Mend puts it back.
func (h *Host) Cut(ctx context.Context) error {
	return ip(ctx, "-n", h.lan.bridge(), "link", "set", h.port(), "down")
}

func (h *Host) Mend(ctx context.Context) error {
	return ip(ctx, "-n", h.lan.bridge(), "link", "set", h.port(), "up")
}

// Command is a command that will run on the host.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.Namespace, name}, args...)...)
}

// logFile has what the node prints, over all its starts.
func (h *Host) logFile() string {
	return filepath.Join(filepath.Dir(h.Dir), filepath.Base(h.Dir)+".log")
}

// Start starts the binary on the host and returns when it can serve. flags follow --data.
func (h *Host) Start(ctx context.Context, binary string, flags ...string) (*node.NodeFile, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		return nil, fmt.Errorf("host %d runs already", h.number)
	}
	ready := filepath.Join(h.Dir, "node.json")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) { // left by a kill
		return nil, err
	}
	log, err := os.OpenFile(h.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	h.cmd = h.Command(context.WithoutCancel(ctx), binary, append([]string{"run", "--data", h.Dir}, flags...)...)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.log, h.exited = log, make(chan struct{})
	if err := h.cmd.Start(); err != nil {
		h.cmd = nil
		return nil, errors.Join(err, log.Close())
	}
	go func(cmd *exec.Cmd, exited chan struct{}) { // ends with the process, which Stop and Kill wait for
		cmd.Wait()
		close(exited)
	}(h.cmd, h.exited)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		raw, err := os.ReadFile(ready)
		if err == nil {
			var f node.NodeFile
			if err := json.Unmarshal(raw, &f); err != nil {
				return nil, fmt.Errorf("host %d: node.json: %w", h.number, err)
			}
			return &f, nil
		}
		select {
		case <-h.exited:
			h.cmd = nil
			tail, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("host %d: plexus ended at its start: %s", h.number, lastLines(tail)), log.Close())
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// Stop asks the node to end and waits; a node that has not ended after 10 s is killed, which is an error.
func (h *Host) Stop() error { return h.end(os.Interrupt) }

// Kill ends the node as kill -9 does, and waits.
func (h *Host) Kill() error { return h.end(os.Kill) }

func (h *Host) end(sig os.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd == nil {
		return nil
	}
	err := h.cmd.Process.Signal(sig) // "ip netns exec" has become plexus: the same pid
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-h.exited:
	case <-time.After(10 * time.Second):
		h.cmd.Process.Kill()
		<-h.exited
		err = errors.Join(err, fmt.Errorf("host %d: plexus did not end within 10 s of %v", h.number, sig))
	}
	if sig != os.Kill && err == nil && h.cmd.ProcessState.ExitCode() != 0 {
		err = fmt.Errorf("host %d: plexus ended with code %d", h.number, h.cmd.ProcessState.ExitCode())
	}
	h.cmd = nil
	return errors.Join(err, h.log.Close())
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func lastLines(log []byte) string {
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], " | ")
}
