package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

// binary is a built plexus, and where its nodes keep their data.
type binary struct {
	t    *testing.T
	path string
}

// built is the command, linked once for all tests, and the directory that it lies in.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func build(t *testing.T) *binary {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "plexus-test-"); built.err != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(built.dir, "plexus"), ".").CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return &binary{t, filepath.Join(built.dir, "plexus")}
}

// run runs a subcommand to its end.
func (b *binary) run(stdin string, args ...string) (out, errOut string, code int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, b.path, args...)
	var o, e bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &o, &e
	var exit *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return o.String(), e.String(), c.ProcessState.ExitCode()
}

// process is a running node.
type process struct {
	*exec.Cmd
	t      *testing.T
	dir    string
	lines  *bufio.Scanner // of its standard output
	errOut bytes.Buffer
}

func (b *binary) start(dir string, args ...string) *process {
	b.t.Helper()
	args = append([]string{"run", "--data", dir, "--client-addr", "127.0.0.1:0", "--p2p-addr", "/ip4/127.0.0.1/udp/0/quic-v1", "--mdns=false"}, args...)
	p := &process{t: b.t, dir: dir, Cmd: exec.Command(b.path, args...)}
	p.Stderr = &p.errOut
	out, err := p.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if p.ProcessState == nil {
			p.Process.Kill()
			p.Wait()
		}
	})
	return p
}

// until reads the output up to the line with the words.
func (p *process) until(words string) (text string) {
	p.t.Helper()
	for p.lines.Scan() {
		text += p.lines.Text() + "\n"
		if strings.Contains(p.lines.Text(), words) {
			return text
		}
	}
	p.t.Fatalf("the output ended without %q:\n%s%s", words, text, p.errOut.String())
	return ""
}

// file is node.json, once it is there. Asking for the status until then takes as long as the node takes to serve.
func (p *process) file(b *binary) (f node.NodeFile) {
	p.t.Helper()
	for range 100 {
		if out, errOut, code := b.run("", "status", "--json", "--data", p.dir); code != 0 {
			p.t.Fatalf("status: %d %s%s", code, out, errOut)
		}
		raw, err := os.ReadFile(filepath.Join(p.dir, "node.json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(raw, &f)
		}
		if err != nil {
			p.t.Fatal(err)
		}
		return f
	}
	p.t.Fatal("no node.json")
	return f
}

// end sends the signal and demands what scripts rely on (design.md §8): exit code 0 within five seconds.
func (p *process) end(s os.Signal) {
	p.t.Helper()
	began := time.Now()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	for p.lines.Scan() {
	}
	err := p.Wait()
	if took := time.Since(began); err != nil || took > 5*time.Second {
		p.t.Errorf("%v after %v: %v\n%s", s, took, err, p.errOut.String())
	}
	for _, left := range []string{"node.json", "admin.sock"} {
		if _, err := os.Stat(filepath.Join(p.dir, left)); !errors.Is(err, os.ErrNotExist) {
			p.t.Errorf("%s stays after a clean exit: %v", left, err)
		}
	}
}

func TestBinary(t *testing.T) {
	t.Parallel()
	b := build(t)
	dir := t.TempDir()
	first := b.start(dir)
	greeting := first.until("Peers")
	f := first.file(b)
	for _, words := range []string{"Welcome", f.ClientURL, f.RegistrationToken, f.ServerName.Tail(), dir} {
		if words == "" || !strings.Contains(greeting, words) {
			t.Errorf("the greeting lacks %q:\n%s", words, greeting)
		}
	}
	if f.PID != first.Process.Pid || len(f.P2PAddrs) == 0 || f.Version != node.Version {
		t.Errorf("node.json: %+v", f)
	}
	if info, err := os.Stat(filepath.Join(dir, "node.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("node.json: %v %v", info, err)
	}

	// Another process on the same directory is told why it cannot, at once, and does the first no harm.
	began := time.Now()
	out, errOut, code := b.run("", "run", "--data", dir, "--client-addr", "127.0.0.1:0", "--mdns=false")
	if code != 1 || !strings.Contains(errOut, dir) || !strings.Contains(errOut, "another plexus") || time.Since(began) > 5*time.Second {
		t.Errorf("a second process: %d after %v\n%s%s", code, time.Since(began), out, errOut)
	}

	for _, name := range []string{"run", "status"} {
		if _, errOut, code := b.run("", name, "-h"); code != 0 || !strings.Contains(errOut, "-data") || strings.Contains(errOut, "plexus: ") {
			t.Errorf("%s -h: %d %s", name, code, errOut)
		}
	}

	var status node.Status
	out, errOut, code = b.run("", "status", "--json", "--data", dir)
	if err := json.Unmarshal([]byte(out), &status); err != nil || code != 0 || status.ServerName != f.ServerName || status.PeerID != f.PeerID || status.Peers == nil || status.Rooms == nil {
		t.Errorf("status --json: %d %v %s%s", code, err, out, errOut)
	}
	if out, _, code = b.run("hunter2 hunter2\n", "user", "add", "alice", "--data", dir); code != 0 || out != "@alice:"+string(f.ServerName)+"\n" {
		t.Errorf("user add: %d %q", code, out)
	}
	if _, errOut, code = b.run("other\n", "user", "--data", dir, "add", "alice"); code != 1 || !strings.Contains(errOut, "taken") {
		t.Errorf("user add of a name that is taken: %d %q", code, errOut)
	}

	// A second node, with the first as its peer.
	second := b.start(t.TempDir(), "--peer", f.P2PAddrs[0])
	second.until("connected")
	first.until("connected")
	if out, _, code = b.run("", "peers", "--data", dir); code != 0 || !strings.Contains(out, string(second.file(b).PeerID)) {
		t.Errorf("peers: %d %q", code, out)
	}

	// Blocked, it is named; and no longer after unblock.
	blocked := second.file(b).ServerName
	if _, errOut, code = b.run("", "block", "nobody", "--data", dir); code != 1 || !strings.Contains(errOut, "not a server name") {
		t.Errorf("block nobody: %d %q", code, errOut)
	}
	if out, errOut, code = b.run("", "block", string(blocked), "--data", dir); code != 0 || !strings.Contains(out, "is blocked") {
		t.Errorf("block: %d %q %q", code, out, errOut)
	}
	if out, _, code = b.run("", "block", "--data", dir); code != 0 || out != string(blocked)+"\n" {
		t.Errorf("block without a name: %d %q", code, out)
	}
	if out, _, _ = b.run("", "status", "--json", "--data", dir); json.Unmarshal([]byte(out), &status) != nil || !slices.Equal(status.Blocked, []eventgraph.ServerName{blocked}) {
		t.Errorf("status --json: %s", out)
	}
	if out, _, code = b.run("", "unblock", string(blocked), "--data", dir); code != 0 {
		t.Errorf("unblock: %d %q", code, out)
	}
	if _, errOut, code = b.run("", "unblock", string(blocked), "--data", dir); code != 1 || !strings.Contains(errOut, "is not blocked") {
		t.Errorf("unblock twice: %d %q", code, errOut)
	}

	// Both end in time, though a client waits in /sync and they are connected.
	hung := longPoll(t, f.ClientURL, "alice", "hunter2 hunter2")
	first.end(syscall.SIGTERM)
	<-hung
	second.end(os.Interrupt)
	if _, errOut, code = b.run("", "status", "--data", dir); code != 1 || !strings.Contains(errOut, "no node is running") {
		t.Errorf("status of a node that does not run: %d %s", code, errOut)
	}

	// The second start knows itself again and does not greet as at the first.
	again := b.start(dir)
	if greeting := again.until("Peers"); strings.Contains(greeting, "Welcome") || !strings.Contains(greeting, string(f.ServerName)) || !strings.Contains(greeting, f.RegistrationToken) {
		t.Errorf("the second greeting:\n%s", greeting)
	}
	again.end(syscall.SIGTERM)
}

// testClient is a logged-in client of a node.
type testClient struct {
	t           *testing.T
	base, token string
}

// request makes one request; body is sent as JSON.
func (c testClient) request(ctx context.Context, method, path string, body any) (status int, answer string, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/_matrix/client/v3"+path, bytes.NewReader(raw))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err = io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

func (c testClient) call(method, path string, body any) (status int, answer string) {
	c.t.Helper()
	if body == nil {
		body = struct{}{}
	}
	status, answer, err := c.request(c.t.Context(), method, path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	return status, answer
}

// must is call, demands success, and returns the string of that name in the answer.
func (c testClient) must(method, path string, body any, name string) string {
	c.t.Helper()
	status, raw := c.call(method, path, body)
	var answer map[string]any
	if err := json.Unmarshal([]byte(raw), &answer); err != nil || status != http.StatusOK {
		c.t.Fatalf("%s %s: %d %s", method, path, status, raw)
	}
	text, _ := answer[name].(string)
	return text
}

func logIn(t *testing.T, base, user, password string) testClient {
	t.Helper()
	c := testClient{t: t, base: base}
	c.token = c.must("POST", "/login", map[string]string{"type": "m.login.password", "user": user, "password": password}, "access_token")
	return c
}

// longPoll logs in and waits in /sync; when it returns the request is on its way, when the channel closes it has ended.
func longPoll(t *testing.T, base, user, password string) <-chan struct{} {
	t.Helper()
	c := logIn(t, base, user, password)
	next := c.must("GET", "/sync", nil, "next_batch")
	sent, done := make(chan struct{}), make(chan struct{})
	trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(sent) }})
	go func() {
		defer close(done)
		c.request(trace, "GET", "/sync?timeout=60000&since="+next, nil) // ends as the server ends it
	}()
	<-sent
	return done
}

func TestCommandLineErrors(t *testing.T) {
	t.Parallel()
	for line, words := range map[string]string{
		"frobnicate":             `no subcommand "frobnicate"`,
		"status extra":           `unexpected argument "extra"`,
		"peers remove x":         "usage: plexus peers",
		"user add":               "usage: plexus user list",
		"status --data /no/such": "no node is running on /no/such",
	} {
		err := command(t.Context(), strings.Fields(line), strings.NewReader(""), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("plexus %s: %v, want %q", line, err, words)
		}
	}
}

func TestAdminCommandsTakeTheDirectoryFromTheEnvironment(t *testing.T) {
	t.Setenv("PLEXUS_DATA", "/from/env")
	dir, _, err := adminFlags("status", nil, nil)
	if err != nil || dir != "/from/env" {
		t.Errorf("%q %v", dir, err)
	}
	if dir, _, _ = adminFlags("status", []string{"--data", "/from/flag"}, nil); dir != "/from/flag" {
		t.Errorf("%q", dir)
	}
}
