package hosts

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plexus-p2p/plexus/node"
)

const (
	// floodMemory is what a node under any of these floods stays below, of anonymous memory (ARCHITECTURE.md, section 7).
	floodMemory = 256 << 20
	// An honest conversation's p95 is at most so many times that of quiet times, or floodLatency if that is more. Asserted by the full
	// run alone: on a machine that others use at the same time a latency says nothing.
	floodTimes   = 2
	floodLatency = 50 * time.Millisecond
)

// floodsInCI are those that cost a node most, for a run of seconds.
var floodsInCI = []string{"slow-bodies", "events", "member-state", "member-giant"}

// allFloods are the modes of scripts/hosts/flood.
var allFloods = append([]string{"connect-quic", "connect-tcp", "half-open", "streams", "garbage", "keys", "giant", "invites", "meetings", "history", "tokens", "beacons",
	"member-messages", "member-forks", "member-invalid", "member-keys", "member-missing", "member-edus", "member-history", "member-meetings", "member-join-leave",
	"member-streams", "member-garbage"}, floodsInCI...)

// TestFloods has two honest users talk while an attacker with half a core floods the node of one of them.
//
//	PLEXUS_HOST_FULL=1 go test -run TestFloods -v -timeout 30m ./scripts/hosts         all modes; PLEXUS_FLOODS=MODE,… those
func TestFloods(t *testing.T) {
	needHosts(t)
	modes, quiet, flooded := floodsInCI, 2*time.Second, 4*time.Second
	full := os.Getenv("PLEXUS_HOST_FULL") != ""
	if full {
		modes, quiet, flooded = allFloods, 5*time.Second, 10*time.Second
	}
	if s := os.Getenv("PLEXUS_FLOODS"); s != "" {
		modes = strings.Split(s, ",")
	}
	program := filepath.Join(t.TempDir(), "flood")
	if out, err := exec.Command("go", "build", "-o", program, "./flood").CombinedOutput(); err != nil {
		t.Fatalf("build the attacker: %v\n%s", err, out)
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			l := lan(t, 3)
			hostA, hostB := l.Hosts[0], l.Hosts[1]
			fileA, fileB := hostA.start(t), hostB.start(t)
			a, b := newTalker(t, hostA, fileA, "alice"), newTalker(t, hostB, fileB, "bob")
			eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, hostA, fileB.PeerID) })
			room := a.createRoom()
			b.join(room, fileA)
			talk(t, room, time.Second, a, b) // the first messages open streams and warm caches
			calm := talk(t, room, quiet, a, b)

			attacker := startFlood(t, program, l.Hosts[2], hostA, fileA, mode, room, a.user)
			usedA, usedB, began := cpuTime(t, fileA.PID), cpuTime(t, fileB.PID), time.Now()
			memory := watchMemory(t, fileA.PID)
			under := talk(t, room, flooded, a, b)
			took := time.Since(began)
			usedA, usedB = cpuTime(t, fileA.PID)-usedA, cpuTime(t, fileB.PID)-usedB
			peak := memory()
			report := attacker()
			share := func(d time.Duration) float64 { return 100 * d.Seconds() / took.Seconds() }
			t.Logf("%-18s quiet p95 %v, flooded p50 %v p95 %v max %v of %d messages; %.0f attacks/s (%.0f refused/s, %v, %s); CPU of A %.0f %%, of B %.0f %%; anonymous memory of A %d MiB",
				mode, calm.percentile(95), under.percentile(50), under.percentile(95), under.percentile(100), len(under),
				float64(report.Done)/report.Seconds, float64(report.Failed)/report.Seconds, report.Answers, report.Error, share(usedA), share(usedB), peak>>20)
			if peak > floodMemory {
				t.Errorf("A had %d MiB of anonymous memory, more than %d", peak>>20, floodMemory>>20)
			}
			if limit := max(floodTimes*calm.percentile(95), floodLatency); full && under.percentile(95) > limit {
				t.Errorf("p95 of the flooded conversation is %v, more than %v", under.percentile(95), limit)
			}
		})
	}
}

// floodReport is what scripts/hosts/flood prints.
type floodReport struct {
	Seconds      float64
	Done, Failed int64
	Answers      map[string]int64
	Error        string
}

// startFlood starts the attacker on its host, with half a core, and returns what ends it.
func startFlood(t *testing.T, program string, from, victim *Host, f *node.NodeFile, mode, room, user string) func() floodReport {
	t.Helper()
	var addrs []string
	for _, a := range f.P2PAddrs {
		if strings.HasPrefix(a, "/ip4/"+victim.Addr+"/") {
			addrs = append(addrs, a)
		}
	}
	cmd := from.Command(t.Context(), program, "-peer", strings.Join(addrs, ","), "-server", string(f.ServerName), "-room", room, "-user", user, mode)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	halfCore(t, cmd.Process.Pid)
	lines := bufio.NewReader(out)
	end := sync.OnceValues(func() (floodReport, error) {
		var r floodReport
		in.Close()
		stuck := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer stuck.Stop()
		line, _ := lines.ReadBytes('\n')
		if err := cmd.Wait(); err != nil {
			return r, fmt.Errorf("the attacker: %w: %s", err, complaints.Bytes())
		}
		return r, json.Unmarshal(line, &r)
	})
	t.Cleanup(func() { end() })
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		_, ended := end()
		t.Fatalf("the attacker said %q: %v, %v", line, err, ended)
	}
	return func() floodReport {
		t.Helper()
		r, err := end()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// halfCore bounds a process to half a core: by a control group where the machine lets us make one, else by stopping it half of the time. In
// short periods, so that it does not use both cores for a while and then none.
func halfCore(t *testing.T, pid int) {
	t.Helper()
	const period, quota = "10000", "5000" // µs
	for root, set := range map[string]map[string]string{
		"/sys/fs/cgroup":                     {"cpu.max": quota + " " + period},
		"/sys/fs/cgroup/cpu" + ownCPUGroup(): {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota},
	} {
		group := filepath.Join(root, fmt.Sprintf("plexus-flood-%d", pid))
		if os.Mkdir(group, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(group) }) // after the process has ended, whose clean-up comes first
		err := error(nil)
		for name, value := range set {
			if _, exists := os.Stat(filepath.Join(group, name)); exists != nil {
				err = exists
				continue
			}
			err = errors.Join(err, os.WriteFile(filepath.Join(group, name), []byte(value), 0))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		if err == nil {
			return
		}
		os.Remove(group)
	}
	t.Log("no control groups here: the attacker is stopped half of the time instead, on one core")
	if one := (&unix.CPUSet{}); true {
		one.Set(0)
		if err := unix.SchedSetaffinity(pid, one); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var stopping sync.WaitGroup
	stopping.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for stopped := false; ctx.Err() == nil; stopped = !stopped {
			signal := unix.SIGSTOP
			if stopped {
				signal = unix.SIGCONT
			}
			if unix.Kill(pid, signal) != nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		unix.Kill(pid, unix.SIGCONT)
	})
	t.Cleanup(func() { cancel(); stopping.Wait() })
}

// ownCPUGroup is the control group of version 1 that this process is in.
func ownCPUGroup() string {
	raw, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), "cpu") {
			return f[2]
		}
	}
	return ""
}

// cpuTime is what the process has used of all cores.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // proc(5): from field 3 on
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	const perSecond = 100 // USER_HZ
	return time.Duration(user+system) * (time.Second / perSecond)
}

// watchMemory looks at the process's anonymous memory until its result is called, which returns the most there was.
func watchMemory(t *testing.T, pid int) func() int64 {
	t.Helper()
	var peak int64
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
			for line := range strings.Lines(string(raw)) {
				if f := strings.Fields(line); len(f) == 3 && f[0] == "Anonymous:" {
					kib, _ := strconv.ParseInt(f[1], 10, 64)
					peak = max(peak, kib<<10)
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(cancel)
	return func() int64 {
		cancel()
		watching.Wait()
		return peak
	}
}

// talker is a user in this process whose connections are made on the user's host: latencies are then taken with one clock, and by a client
// that adds nothing to them.
type talker struct {
	t     *testing.T
	name  string
	user  string
	base  string
	token string
	web   *http.Client
	since string
	sent  int
}

func newTalker(t *testing.T, h *Host, f *node.NodeFile, name string) *talker {
	t.Helper()
	k := &talker{t: t, name: name, base: f.ClientURL, web: &http.Client{Transport: &http.Transport{DialContext: h.dial, MaxIdleConnsPerHost: 64}}}
	t.Cleanup(k.web.CloseIdleConnections)
	var uia struct{ Session string }
	body := map[string]any{"username": name, "password": "correct horse battery " + name}
	if err := k.call(t.Context(), "POST", "/register", body, &uia, http.StatusUnauthorized); err != nil {
		t.Fatal(err)
	}
	body["auth"] = map[string]string{"type": "m.login.registration_token", "token": f.RegistrationToken, "session": uia.Session}
	var account struct {
		User  string `json:"user_id"`
		Token string `json:"access_token"`
	}
	if err := k.call(t.Context(), "POST", "/register", body, &account); err != nil {
		t.Fatal(err)
	}
	k.user, k.token = account.User, account.Token
	return k
}

// dial connects from within the host's namespace: the thread goes there to make the socket, which stays there, and back.
func (h *Host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	runtime.LockOSThread() // left locked if the way back fails: the thread ends with the goroutine then
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	there, err := os.Open("/run/netns/" + h.Namespace)
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	c, err := new(net.Dialer).DialContext(ctx, network, addr) // an address, so it is dialled by this goroutine
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		return nil, errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return c, err
}

// call makes a request; every status but 200 is an error, unless accept names it.
func (k *talker) call(ctx context.Context, method, path string, body, out any, accept ...int) error {
	var send io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.base+"/_matrix/client/v3"+path, send)
	if err != nil {
		return err
	}
	if k.token != "" {
		req.Header.Set("Authorization", "Bearer "+k.token)
	}
	res, err := k.web.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode == http.StatusTooManyRequests {
		busy := &tooOften{}
		return errors.Join(busy, json.Unmarshal(raw, busy))
	}
	if res.StatusCode != http.StatusOK && !slices.Contains(accept, res.StatusCode) {
		return fmt.Errorf("%s: %s %s: %s %s", k.name, method, path, res.Status, raw)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// tooOften is a 429.
type tooOften struct {
	RetryAfterMS int `json:"retry_after_ms"`
}

func (t *tooOften) Error() string { return fmt.Sprintf("too many requests, for %d ms", t.RetryAfterMS) }

// createRoom makes a public room.
func (k *talker) createRoom() string {
	k.t.Helper()
	var made struct {
		Room string `json:"room_id"`
	}
	if err := k.call(k.t.Context(), "POST", "/createRoom", map[string]any{"preset": "public_chat", "name": "Harbour"}, &made); err != nil {
		k.t.Fatal(err)
	}
	return made.Room
}

func (k *talker) join(room string, via *node.NodeFile) {
	k.t.Helper()
	if err := k.call(k.t.Context(), "POST", "/join/"+url.PathEscape(room)+"?via="+url.QueryEscape(string(via.ServerName)), map[string]any{}, nil); err != nil {
		k.t.Fatal(err)
	}
}

// latencies of messages, from when they were to be sent until the other's /sync showed them.
type latencies []time.Duration

func (l latencies) percentile(p int) time.Duration {
	sorted := slices.Sorted(slices.Values(l))
	return sorted[max(0, (len(sorted)*p+99)/100-1)].Round(100 * time.Microsecond)
}

const (
	// betweenMessages of one talker.
	betweenMessages = 100 * time.Millisecond
	// lastArrives is how long the last message may take.
	lastArrives = 30 * time.Second
)

// talk has both say something every betweenMessages for so long, whatever becomes of what they said before, and fails if anything
// does not arrive.
func talk(t *testing.T, room string, long time.Duration, talkers ...*talker) latencies {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long+lastArrives)
	defer cancel()
	type said struct {
		at time.Time
		by *talker
	}
	var (
		mu       sync.Mutex
		under    = map[string]said{} // said, and not arrived
		measured latencies
		failures []error
		speaking sync.WaitGroup
		saying   sync.WaitGroup
		hearing  sync.WaitGroup
	)
	over := make(chan struct{}) // all has been said
	for _, k := range talkers {
		speaking.Go(func() {
			tick := time.NewTicker(betweenMessages)
			defer tick.Stop()
			for range int(long / betweenMessages) {
				<-tick.C
				k.sent++
				body := fmt.Sprintf("%s %d", k.name, k.sent)
				mu.Lock()
				under[body] = said{time.Now(), k}
				mu.Unlock()
				n := k.sent
				saying.Go(func() {
					err := k.call(ctx, "PUT", fmt.Sprintf("/rooms/%s/send/m.room.message/%d", url.PathEscape(room), n), map[string]string{"msgtype": "m.text", "body": body}, nil)
					if err != nil {
						mu.Lock()
						defer mu.Unlock()
						failures = append(failures, err)
					}
				})
			}
		})
		hearing.Go(func() {
			for ctx.Err() == nil {
				bodies, err := k.sync(ctx, room, talkers)
				if busy := (*tooOften)(nil); errors.As(err, &busy) { // as any client: later
					select {
					case <-time.After(time.Duration(busy.RetryAfterMS) * time.Millisecond):
					case <-ctx.Done():
					}
					continue
				}
				mu.Lock()
				for _, body := range bodies {
					if s, ok := under[body]; ok && s.by != k {
						measured = append(measured, time.Since(s.at))
						delete(under, body)
					}
				}
				if err != nil && ctx.Err() == nil {
					failures = append(failures, err)
					cancel()
				}
				left := len(under)
				mu.Unlock()
				select {
				case <-over:
					if left == 0 {
						cancel() // ends the other's /sync
						return
					}
				default:
				}
			}
		})
	}
	speaking.Wait()
	saying.Wait()
	close(over)
	mu.Lock()
	if len(under) == 0 {
		cancel()
	}
	mu.Unlock()
	hearing.Wait()
	if len(failures) > 0 {
		t.Fatalf("%d failures in the conversation, the first: %v", len(failures), failures[0])
	}
	if len(under) > 0 {
		t.Fatalf("%d messages have not arrived %v after the last: %v", len(under), lastArrives, under)
	}
	return measured
}

// sync is one /sync: what the talkers have said.
func (k *talker) sync(ctx context.Context, room string, talkers []*talker) (bodies []string, err error) {
	var users []string
	for _, other := range talkers {
		users = append(users, other.user)
	}
	filter, err := json.Marshal(map[string]any{"room": map[string]any{"timeline": map[string]any{"limit": 1000, "senders": users, "types": []string{"m.room.message"}}}})
	if err != nil {
		return nil, err
	}
	q := url.Values{"filter": {string(filter)}, "timeout": {"1000"}, "set_presence": {"offline"}}
	if k.since != "" {
		q.Set("since", k.since)
	}
	var answer struct {
		Next  string `json:"next_batch"`
		Rooms struct {
			Join map[string]struct {
				Timeline struct {
					Events []struct{ Content struct{ Body string } }
				}
			}
		}
	}
	if err := k.call(ctx, "GET", "/sync?"+q.Encode(), nil, &answer); err != nil {
		return nil, err
	}
	k.since = answer.Next
	for _, e := range answer.Rooms.Join[room].Timeline.Events {
		bodies = append(bodies, e.Content.Body)
	}
	return bodies, nil
}
