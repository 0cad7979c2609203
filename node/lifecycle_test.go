package node_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
)

// quiet is the configuration of a node that talks to nobody.
func quiet(dir string) node.Config {
	return node.Config{Dir: dir, ClientAddrs: []string{"127.0.0.1:0"}, P2PAddrs: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, NoMDNS: true}
}

func open(t *testing.T, c node.Config) *node.Node {
	t.Helper()
	n, err := node.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestNodeFileIsThereOnlyWhileTheNodeServes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "node.json")
	if err := os.WriteFile(file, []byte(`{"pid":1}`), 0o600); err != nil { // of a process that was killed
		t.Fatal(err)
	}
	n := open(t, quiet(dir))
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an old node.json is there before the node serves: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	for { // until it is there, whole
		if resp, err := http.Get(n.ClientURL() + "/_matrix/client/versions"); err == nil {
			resp.Body.Close()
			if _, err := os.Stat(file); err == nil {
				break
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("node.json stays after a clean exit: %v", err)
	}
}

// A node that cannot say that it serves ends; it does not wait for ever.
func TestRunEndsIfTheNodeFileCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, quiet(dir))
	if err := os.MkdirAll(filepath.Join(dir, "node.json", "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := n.Run(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("Run: %v, after %v", err, ctx.Err())
	}
}

func TestSecondNodeOnTheDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, quiet(dir))
	n, err := node.Open(t.Context(), quiet(dir))
	if err == nil {
		n.Close()
		t.Fatal("two nodes on one directory")
	}
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another plexus") {
		t.Errorf("the refusal does not say what is wrong: %v", err)
	}
}

func TestDirectoryTooDeepForASocket(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	n, err := node.Open(t.Context(), quiet(dir))
	if err == nil {
		n.Close()
		t.Fatal("a socket with a path of over 200 bytes")
	}
	if !strings.Contains(err.Error(), "too long") || !strings.Contains(err.Error(), "--data") {
		t.Errorf("the refusal does not say what is wrong: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("refused, and yet wrote %q", left)
	}
}

// A first start that was cut off anywhere goes on with the keys that it had made.
func TestFirstStartCutOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n, err := node.Open(t.Context(), quiet(dir))
	if err != nil {
		t.Fatal(err)
	}
	name, peer := n.ServerName(), n.PeerID()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, missing := range [][]string{{"registration_token"}, {"registration_token", "certificate.json"}, {"registration_token", "certificate.json", "box.key"}} {
		for _, file := range missing {
			if err := os.Remove(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
		}
		n, err := node.Open(t.Context(), quiet(dir))
		if err != nil {
			t.Fatalf("without %q: %v", missing, err)
		}
		if n.ServerName() != name || n.PeerID() != peer || n.RegistrationToken() == "" {
			t.Errorf("without %q: %s %s", missing, n.ServerName(), n.PeerID())
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A device whose clock was ahead at the first start, or behind that of its peers, can be used all the same.
func TestClockSetBackAfterTheFirstStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := quiet(dir)
	n, err := node.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	c.Now = func() time.Time { return time.Now().AddDate(-1, 0, 0) }
	open(t, c)
}

// A device that slept for weeks answers with a document that is valid, and so does one whose clock was set back.
func TestKeyDocumentIsFreshAfterSleep(t *testing.T) {
	t.Parallel()
	var clock atomic.Int64
	clock.Store(time.Now().UnixMilli())
	c := quiet(t.TempDir())
	c.Now = func() time.Time { return time.UnixMilli(clock.Load()) }
	n := open(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	peer := newPlainPeer(t, n.ServerName(), n.P2PAddrs())
	for _, days := range []int64{0, 30, 30, -60} {
		now := clock.Add(days * 24 * time.Hour.Milliseconds())
		status, raw := peer.call(as{}, http.MethodGet, "/_matrix/key/v2/server", nil)
		d, err := eventgraph.ParseKeyDocument(raw)
		if status != http.StatusOK || err != nil {
			t.Fatalf("%d %s: %v", status, raw, err)
		}
		const day = 24 * 3600 * 1000
		if left := d.ValidUntilTS - now; left < 6*day-1 || left > 7*day {
			t.Errorf("after %d days: valid for %d ms more", days, left)
		}
	}
}

// The listener of a failed start is closed again.
func TestOpenFailsCleanly(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := quiet(t.TempDir())
	c.ClientAddrs = []string{taken.Addr().String()}
	if n, err := node.Open(t.Context(), c); err == nil {
		n.Close()
		t.Fatal("listens where another does")
	} else if !strings.Contains(err.Error(), "--client-addr") {
		t.Errorf("the refusal does not say what helps: %v", err)
	}
	c.ClientAddrs = []string{"127.0.0.1:0"}
	open(t, c)
}

// TestWrongTermsAreRefused: nobody could read what they are asked to accept.
func TestWrongTermsAreRefused(t *testing.T) {
	t.Parallel()
	c := quiet(t.TempDir())
	c.Terms = clientapi.Policies{"rules": {Version: "1"}}
	if n, err := node.Open(t.Context(), c); err == nil {
		n.Close()
		t.Error("opened with a policy in no language")
	} else if !strings.Contains(err.Error(), "terms.rules is in no language") {
		t.Error(err)
	}
}

// TestLANOnlyRefusesURLPreviews: previews call public addresses, so the promise of LANOnly could not be kept.
func TestLANOnlyRefusesURLPreviews(t *testing.T) {
	t.Parallel()
	c := quiet(t.TempDir())
	c.LANOnly, c.URLPreviews = true, true
	if n, err := node.Open(t.Context(), c); err == nil {
		n.Close()
		t.Fatal("opened with both")
	} else if !strings.Contains(err.Error(), "LANOnly") || !strings.Contains(err.Error(), "URLPreviews") {
		t.Errorf("the refusal does not name the two: %v", err)
	}
	c.LANOnly = false
	open(t, c)
}

// TestLostCertificate: a data directory with users never gets a second identity.
func TestLostCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := quiet(dir)
	config.Registration = clientapi.RegistrationOpen
	n, err := node.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	register(t, n, "alice")
	cancel()
	if err := errors.Join(<-ended, n.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "certificate.json")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := node.Open(t.Context(), config); err == nil {
			n.Close()
			t.Fatal("opened with a new identity")
		}
	}
}
