package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Scenarios about much: many rooms, a long history, an end without warning, and about nothing: two peers that are idle.

// firstSync is of a user who is in many rooms, and what the node holds after it.
func (b *bench) firstSync(ctx context.Context) error {
	const rooms, messages = 200, 20
	step("filling %d rooms with %d messages each", rooms, messages)
	c, err := register(ctx, b.a, "collector")
	if err != nil {
		return err
	}
	ids := make([]string, rooms)
	if _, _, err = atOnce(rooms, func(i int) (err error) { ids[i-1], err = c.create(ctx); return err }); err != nil {
		return err
	}
	if _, _, err = atOnce(rooms*messages, func(i int) error { _, err := c.say(ctx, ids[i%rooms]); return err }); err != nil {
		return err
	}
	step("first /sync")
	size, parsed := 0, json.RawMessage(nil)
	filter := url.QueryEscape(fmt.Sprintf(`{"room":{"timeline":{"limit":%d}}}`, messages))
	d, err := inSequence(startTries, func() error {
		parsed = nil
		err := c.call(ctx, "GET", "/sync?set_presence=offline&filter="+filter, nil, &parsed)
		size = len(parsed)
		return err
	})
	if err != nil {
		return err
	}
	// The floor is the serialising of that answer alone.
	var answer any
	if err := json.Unmarshal(parsed, &answer); err != nil {
		return err
	}
	marshal := each(startTries, func() { _, _ = json.Marshal(answer) })
	b.compare(fmt.Sprintf("first /sync with %d rooms of %d messages, once; floor: encoding/json of that answer", rooms, messages), show(d[0]), d[0], marshal, "≤ 80 ms")
	b.note("… the middle of five; size", fmt.Sprintf("%s; %.2f MB", show(d.at(50)), float64(size)/1e6), "≤ 80 ms; –")
	anon, resident, err := b.a.memory()
	if err != nil {
		return err
	}
	b.note("… anonymous memory afterwards; resident", mebibytes(anon)+"; "+mebibytes(resident), "≤ 64 MiB; –")
	return nil
}

// killed ends a node without warning after it has acknowledged messages, and looks for them.
func (b *bench) killed(ctx context.Context) error {
	const messages = 500
	step("kill -9 after %d acknowledged messages", messages)
	room, err := b.alice.create(ctx)
	if err != nil {
		return err
	}
	if _, _, err := atOnce(messages, func(int) error { _, err := b.alice.say(ctx, room); return err }); err != nil {
		return err
	}
	b.a.kill()
	if b.a, err = b.start(ctx, "a"); err != nil {
		return err
	}
	b.alice.base = b.a.ClientURL
	n, err := b.alice.count(ctx, room)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("kill -9 after %d acknowledged messages: missing; restart to first answer", messages), fmt.Sprintf("%d; %s", messages-n, show(b.a.answered)), "0; ≤ 60 ms")
	return nil
}

// joinLarge joins one room of a long history and a large state, and pages back in it.
func (b *bench) joinLarge(ctx context.Context) error {
	const messages, states, back = 2000, 1000, 500
	step("joining a room of %d messages and %d state events", messages, states)
	room, err := b.alice.create(ctx)
	if err != nil {
		return err
	}
	_, _, err = atOnce(states, func(i int) error {
		return b.alice.call(ctx, "PUT", fmt.Sprintf("/rooms/%s/state/org.example.bench/%d", url.PathEscape(room), i), map[string]int{"n": i}, nil)
	})
	if err != nil {
		return err
	}
	if _, _, err := atOnce(messages, func(int) error { _, err := b.alice.say(ctx, room); return err }); err != nil {
		return err
	}
	began := time.Now()
	if err := b.bob.join(ctx, room, b.a.ServerName); err != nil {
		return err
	}
	if err := b.bob.until(ctx, room, ""); err != nil {
		return err
	}
	took := time.Since(began)
	b.compare(fmt.Sprintf("join, %d messages and %d state events", messages, states), show(took), took, (messages+states)*b.floor.verify, "≤ 300 ms")
	began = time.Now()
	if n, err := b.bob.page(ctx, room, back); err != nil {
		return err
	} else if n < back {
		return fmt.Errorf("paging back ended after %d messages", n)
	}
	b.note(fmt.Sprintf("page %d messages backwards after the join, 100 at a time", back), show(time.Since(began)), "≤ 250 ms")
	return nil
}

// idleTogether watches two nodes that share a room, and every datagram between them.
func (b *bench) idleTogether(ctx context.Context) error {
	step("two connected nodes are idle for %s", b.idle)
	c, err := b.start(ctx, "c")
	if err != nil {
		return err
	}
	between, err := relayUDP(c.P2PAddrs)
	if err != nil {
		return err
	}
	defer between.close()
	d, err := b.start(ctx, "d", between.addr)
	if err != nil {
		return err
	}
	carol, err := register(ctx, c, "carol")
	if err != nil {
		return err
	}
	dave, err := register(ctx, d, "dave")
	if err != nil {
		return err
	}
	room, err := carol.create(ctx)
	if err != nil {
		return err
	}
	if err := dave.join(ctx, room, c.ServerName); err != nil {
		return err
	}
	said, err := carol.say(ctx, room)
	if err != nil {
		return err
	}
	if err := dave.until(ctx, room, said); err != nil {
		return err
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	traffic := between.perMinute()
	cpu, err := b.idleCPU(ctx, c, d)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("idle, two connected peers, from %s after they met: CPU per minute of both; IP traffic per minute, both ways", settle),
		fmt.Sprintf("%s; %s", show(cpu[0]+cpu[1]), traffic()), "≤ 150 ms; ≤ 1 kB")
	if b.together == 0 {
		return nil
	}
	step("they stay so for %s, and %s more", settleTogether, b.together)
	if err := pause(ctx, settleTogether); err != nil {
		return err
	}
	traffic = between.perMinute()
	if err := pause(ctx, b.together); err != nil {
		return err
	}
	b.note(fmt.Sprintf("… for %s, %s later: IP traffic per minute", b.together, settleTogether), traffic(), "≤ 1 kB")
	return nil
}

// settleTogether is until meetings have become rare: they come after 1, 2, 4 and 8 minutes, and then every ten.
const settleTogether = 5 * time.Minute

// page reads messages of a room backwards, 100 at a time, until it has n of them or the history ends.
func (c *client) page(ctx context.Context, room string, n int) (had int, err error) {
	from := ""
	for range n {
		var page struct {
			Chunk []json.RawMessage
			End   string
		}
		if err := c.call(ctx, "GET", "/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=100"+from, nil, &page); err != nil {
			return had, err
		}
		if had += len(page.Chunk); had >= n || page.End == "" {
			return had, nil
		}
		from = "&from=" + url.QueryEscape(page.End)
	}
	return had, nil
}

// onDisk is what the data directory takes of the disk, in bytes.
func (p *process) onDisk() (n int64, err error) {
	err = filepath.WalkDir(p.dir, func(path string, _ os.DirEntry, err error) error {
		var s syscall.Stat_t
		if err == nil && syscall.Lstat(path, &s) == nil { // else it has just gone
			n += s.Blocks * 512
		}
		return nil
	})
	return n, err
}

// bareMemory is what a Go program needs that does nothing but listen for HTTP.
func bareMemory(ctx context.Context) (anon, resident int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, self, "-bare")
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return 0, 0, err
	}
	p := &process{pid: cmd.Process.Pid}
	return p.memory()
}

// serveNothing is that program: it ends with its standard input.
func serveNothing(ctx context.Context) error {
	server := &http.Server{Addr: "127.0.0.1:0", Handler: http.NotFoundHandler()}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	res, err := http.Get("http://127.0.0.1:1/") // the client's part is there, too
	if err == nil {
		res.Body.Close()
	}
	if _, err := os.Stdout.WriteString("."); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
	<-ended
	return ctx.Err()
}
