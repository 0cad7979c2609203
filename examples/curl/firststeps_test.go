// Package curl tests the script beside it on two running nodes.
package curl

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node"
)

func TestFirstSteps(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl; scripts/test installs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	a := run(t, ctx, filepath.Join(dir, "a"))
	run(t, ctx, filepath.Join(dir, "b"), a.P2PAddrs()...)
	for _, d := range []string{"a", "b"} {
		await(t, filepath.Join(dir, d, "node.json"))
	}
	out, err := exec.CommandContext(ctx, "./first-steps", filepath.Join(dir, "a"), filepath.Join(dir, "b")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "rings") {
		t.Errorf("first-steps: %v\n%s", err, out)
	}
}

func run(t *testing.T, ctx context.Context, dir string, peers ...string) *node.Node {
	t.Helper()
	n, err := node.Open(ctx, node.Config{Dir: dir, ClientAddrs: []string{"127.0.0.1:0"}, P2PAddrs: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, NoMDNS: true, Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, n.Close()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// await waits for a file: node.json says that the node can serve.
func await(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if matches, _ := filepath.Glob(path); len(matches) > 0 {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}
