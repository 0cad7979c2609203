package hosts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node"
)

// client is a real Matrix client in a process of its own on a host, driven by lines of JSON (clients/sdk.mjs, clients/nio_client.py).
type client struct {
	t    *testing.T
	name string
	User string
	// Device is empty until the client has entered.
	Device string

	mu      sync.Mutex
	in      io.Writer
	next    int
	pending map[int]chan answer
	ended   error
}

type answer struct {
	ID    int             `json:"id"`
	OK    json.RawMessage `json:"ok"`
	Error string          `json:"error"`
}

type args map[string]any

func sdkClient(t *testing.T, h *Host) *client {
	t.Helper()
	return startClient(t, h, "node", filepath.Join("clients", "sdk.mjs"))
}

func nioClient(t *testing.T, h *Host) *client {
	t.Helper()
	return startClient(t, h, "/usr/bin/python3", filepath.Join("clients", "nio_client.py"))
}

func startClient(t *testing.T, h *Host, program string, script string) *client {
	t.Helper()
	cmd := h.Command(t.Context(), program, script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, name: fmt.Sprintf("%s on host %d", filepath.Base(script), h.number), in: in, pending: map[int]chan answer{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.read(out)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		in.Close() // both clients end when their input does
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-done
		}
	})
	return c
}

func (c *client) read(out io.Reader) {
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			c.mu.Lock()
			c.ended = errors.New("the client's process ended")
			for _, p := range c.pending {
				close(p)
			}
			c.mu.Unlock()
			return
		}
		var a answer
		if json.Unmarshal(line, &a) != nil {
			continue // something that a library printed
		}
		c.mu.Lock()
		p := c.pending[a.ID]
		delete(c.pending, a.ID)
		c.mu.Unlock()
		if p != nil {
			p <- a
		}
	}
}

// call asks the client and decodes its answer into out (nil: not wanted).
func (c *client) call(ctx context.Context, op string, a args, out any) error {
	c.mu.Lock()
	if c.ended != nil {
		c.mu.Unlock()
		return fmt.Errorf("%s: %s: %w", c.name, op, c.ended)
	}
	c.next++
	request := args{"id": c.next, "op": op}
	for k, v := range a {
		request[k] = v
	}
	line, err := json.Marshal(request)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	p := make(chan answer, 1)
	c.pending[c.next] = p
	_, err = c.in.Write(append(line, '\n'))
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %s: %w", c.name, op, err)
	}
	select {
	case a, ok := <-p:
		if !ok || a.Error != "" {
			return fmt.Errorf("%s: %s: %s", c.name, op, a.Error)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(a.OK, out)
	case <-ctx.Done():
		return fmt.Errorf("%s: %s: %w", c.name, op, ctx.Err())
	}
}

// do is call that ends the test on failure.
func (c *client) do(op string, a args, out any) {
	c.t.Helper()
	c.doWithin(90*time.Second, op, a, out)
}

func (c *client) doWithin(limit time.Duration, op string, a args, out any) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	defer cancel()
	if err := c.call(ctx, op, a, out); err != nil {
		c.t.Fatal(err)
	}
}

// timelineLimit is more than any test sends at one go, so that the client shows it all without paging back.
const timelineLimit = 400

// enter registers a user at the host's node and starts to sync.
func (c *client) enter(n *node.NodeFile, user string, crypto bool) {
	c.t.Helper()
	session := c.register(n, user)
	if filepath.Ext(c.name[:len("nio_client.py")]) == ".py" {
		c.do("login", args{"url": n.ClientURL, "user": user, "password": passwordOf(user), "store": c.t.TempDir()}, &session)
	}
	c.begin(session, args{"crypto": crypto})
}

// register makes a user at the node, with a first device.
func (c *client) register(n *node.NodeFile, user string) map[string]any {
	c.t.Helper()
	var session map[string]any
	c.do("register", args{"url": n.ClientURL, "user": user, "password": passwordOf(user), "token": n.RegistrationToken}, &session)
	return session
}

// logIn makes another device of a user that a client has registered, and starts to sync.
func (c *client) logIn(n *node.NodeFile, user string, more args) {
	c.t.Helper()
	var session map[string]any
	c.do("login", args{"url": n.ClientURL, "user": user, "password": passwordOf(user)}, &session)
	c.begin(session, more)
}

// begin starts to sync as the user of a login.
func (c *client) begin(session map[string]any, more args) {
	c.t.Helper()
	c.User, _ = session["user_id"].(string)
	c.Device, _ = session["device_id"].(string)
	local, _, _ := strings.Cut(c.User, ":")
	c.name += fmt.Sprintf(" (%s, device %s)", local, c.Device)
	start := args{"session": session, "limit": timelineLimit}
	for k, v := range more {
		start[k] = v
	}
	c.do("start", start, nil)
}

func passwordOf(user string) string { return "correct horse battery " + user }

type message struct {
	Sender    string  `json:"sender"`
	Body      string  `json:"body"`
	At        float64 `json:"at"` // ms
	EventID   string  `json:"event_id"`
	Encrypted bool    `json:"encrypted"`
}

func (c *client) waitMessages(room, prefix string, count int) []message {
	c.t.Helper()
	return c.waitWithin(room, prefix, count, time.Minute)
}

func (c *client) waitWithin(room, prefix string, count int, within time.Duration) []message {
	c.t.Helper()
	var out struct{ Messages []message }
	c.doWithin(within+20*time.Second, "waitMessages", args{"room": room, "prefix": prefix, "count": count, "timeout": within.Milliseconds()}, &out)
	return out.Messages
}

type sent struct {
	EventID string  `json:"event_id"`
	At      float64 `json:"at"`
	Acked   float64 `json:"acked"`
}

func (c *client) sendMany(room, prefix string, count int) []sent {
	c.t.Helper()
	var out struct{ Sent []sent }
	c.do("sendMany", args{"room": room, "prefix": prefix, "count": count}, &out)
	return out.Sent
}

// needHosts says whether host tests can run here; with PLEXUS_HOST_TESTS=1 (scripts/test) they must.
func needHosts(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root for network namespaces"
	} else if _, err := exec.LookPath("ip"); err != nil {
		why = "needs iproute2"
	} else if _, err := os.Stat("clients/node_modules/matrix-js-sdk"); err != nil {
		why = "needs matrix-js-sdk; scripts/test installs it"
	} else if exec.Command("/usr/bin/python3", "-c", "import nio, olm").Run() != nil {
		why = "needs python3-matrix-nio; scripts/test installs it"
	}
	if why == "" {
		return
	}
	if os.Getenv("PLEXUS_HOST_TESTS") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
