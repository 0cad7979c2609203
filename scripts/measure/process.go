package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a running plexus.
type process struct {
	dir string
	cmd *exec.Cmd
	pid int
	log *os.File

	// Of node.json.
	ClientURL         string   `json:"client_url"`
	P2PAddrs          []string `json:"p2p_addrs"`
	ServerName        string   `json:"server_name"`
	RegistrationToken string   `json:"registration_token"`

	answered time.Duration // from start to the first answer to a client
}

// startLimit is how long a node may take to answer.
const startLimit = 20 * time.Second

// start runs plexus on a data directory and waits until it answers a client.
func start(ctx context.Context, binary, dir string, peers ...string) (_ *process, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(dir, "node.json")); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		return nil, err
	}
	p := &process{dir: dir}
	if p.log, err = os.OpenFile(dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	args := []string{"run", "--data", dir, "--client-addr", "127.0.0.1:0", "--mdns=false", "--rate-limits=false",
		"--p2p-addr", "/ip4/127.0.0.1/udp/0/quic-v1", "--p2p-addr", "/ip4/127.0.0.1/tcp/0"}
	for _, peer := range peers {
		args = append(args, "--peer", peer)
	}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.pid = p.cmd.Process.Pid
	defer func() {
		if err != nil {
			p.kill()
		}
	}()
	for {
		raw, err := os.ReadFile(filepath.Join(dir, "node.json"))
		if err == nil {
			if err := json.Unmarshal(raw, p); err != nil {
				return nil, err
			}
			break
		}
		if time.Since(began) > startLimit || ctx.Err() != nil {
			return nil, fmt.Errorf("plexus did not start: see %s", p.log.Name())
		}
		time.Sleep(500 * time.Microsecond)
	}
	res, err := http.Get(p.ClientURL + "/_matrix/client/versions")
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	p.answered = time.Since(began)
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET versions: %s", res.Status)
	}
	return p, nil
}

func (p *process) kill() {
	if p.cmd.ProcessState == nil && p.cmd.Process.Kill() == nil {
		_ = p.cmd.Wait()
	}
	p.log.Close()
}

// stop ends the node as Ctrl-C would.
func (p *process) stop() error {
	if p.cmd.ProcessState != nil {
		return nil
	}
	defer p.log.Close()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	return p.cmd.Wait()
}

// usage is what a process has used so far.
type usage struct {
	cpu     time.Duration
	written int64 // bytes that it had written to the disk
}

func (u usage) since(before usage) usage {
	return usage{u.cpu - before.cpu, u.written - before.written}
}

// usage reads /proc. The scheduler's figures are in ns, those of /proc/PID/stat only in units of 10 ms.
func (p *process) usage() (u usage, err error) {
	files, err := filepath.Glob(p.proc("task/*/schedstat"))
	if err != nil || len(files) == 0 {
		return u, errors.New("no scheduler statistics in /proc; the bench needs Linux")
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return u, err
		}
		first, _, _ := strings.Cut(string(raw), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ns)
	}
	u.written, err = field(p.proc("io"), "write_bytes:")
	return u, err
}

// memory is in bytes: anonymous, and all that is resident, mapped files with it.
func (p *process) memory() (anon, resident int64, err error) {
	if anon, err = field(p.proc("status"), "RssAnon:"); err != nil {
		return 0, 0, err
	}
	resident, err = field(p.proc("status"), "VmRSS:")
	return anon << 10, resident << 10, err
}

func (p *process) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.pid), name)
}

// field is the number behind a name in a file of /proc.
func field(path, name string) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(raw) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in %s", name, path)
}
