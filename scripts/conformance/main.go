// Command conformance starts one homeserver for a conformance suite and prints where it is; see scripts/conformance-launcher.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startTimeout is how long a server may take until it serves; the suite waits for 30 s.
const startTimeout = 30 * time.Second

// roomVersion is the default of the servers: the suite writes the creator into the users of m.room.power_levels, which room version 12
// refuses. Rooms of that version it makes by name.
const roomVersion = "11"

func main() {
	binary := flag.String("plexus", "plexus", "the plexus `binary`")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: conformance [-plexus BINARY] DIR")
		os.Exit(2)
	}
	if err := start(*binary, flag.Arg(0), os.Getenv("HARNESS_HS_NAME"), os.Getenv("HARNESS_DEPLOY_DIR")); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// node is what is used of node.json.
type node struct {
	ServerName string   `json:"server_name"`
	PeerID     string   `json:"peer_id"`
	ClientURL  string   `json:"client_url"`
	P2PAddrs   []string `json:"p2p_addrs"`
	PID        int      `json:"pid"`
}

// start runs plexus with its data in dir until it serves, leaves it running, and prints the line of the contract. name is the
// server's in its deployment, and shared the deployment's folder, in which the addresses of its servers are kept.
func start(binary, dir, name, shared string) error {
	if name == "" || shared == "" {
		return errors.New("HARNESS_HS_NAME and HARNESS_DEPLOY_DIR must be set")
	}
	// One server starts at a time, so that each knows those before it.
	unlock, err := lock(filepath.Join(shared, "plexus.lock"))
	if err != nil {
		return err
	}
	defer unlock()

	data := filepath.Join(dir, "data")
	args := []string{
		"--data", data, "--client-addr", "127.0.0.1:0", "--p2p-addr", "/ip4/127.0.0.1/udp/0/quic-v1",
		"--registration", "open", "--rate-limits=false", "--mdns=false", "--default-room-version", roomVersion,
	}
	services, err := filepath.Glob(filepath.Join(dir, "appservices", "*.yaml"))
	if err != nil {
		return err
	}
	for _, s := range services {
		args = append(args, "--appservice", s)
	}
	peers, err := others(shared, name)
	if err != nil {
		return err
	}
	for _, p := range peers {
		args = append(args, "--peer", p)
	}
	n, err := run(binary, args, dir, data)
	if err != nil {
		return err
	}
	if err := os.WriteFile(addressFile(shared, name), []byte(strings.Join(n.P2PAddrs, "\n")), 0o600); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"server_name": n.ServerName, "client_url": n.ClientURL, "federation_addr": "", "pid": n.PID,
	})
}

func addressFile(shared, name string) string { return filepath.Join(shared, "plexus-"+name+".addrs") }

// others are the addresses of the servers of the deployment that were started before.
func others(shared, name string) ([]string, error) {
	files, err := filepath.Glob(addressFile(shared, "*"))
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, f := range files {
		if f == addressFile(shared, name) {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, strings.Fields(string(text))...)
	}
	return addrs, nil
}

// run starts the server and waits until it has written its node.json.
func run(binary string, args []string, dir, data string) (*node, error) {
	file := filepath.Join(data, "node.json")
	// One that was killed leaves its own behind.
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	late := time.After(startTimeout)
	for {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("plexus ended (%v); see %s", err, log.Name())
		case <-late:
			return nil, errors.Join(fmt.Errorf("plexus did not serve within %s; see %s", startTimeout, log.Name()), cmd.Process.Kill())
		case <-look.C:
		}
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n := new(node)
		if err := json.Unmarshal(text, n); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return n, nil
	}
}

// lock waits for the file's lock and returns how to let go of it.
func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
