package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// bench runs the scenarios and gathers the table.
type bench struct {
	dir, binary string
	idle        time.Duration
	together    time.Duration // how long two idle peers are watched once they meet seldom; 0: not
	load        string
	floor       floor
	rows        []row
	running     []*process

	a, b       *process
	alice, bob *client // at a, and at b
	room       string  // of both
}

// row is a line of the table. The aim is what the line is to be, in the same units and order as the figure.
type row struct{ what, figure, floor, ratio, aim string }

// note adds a line that no floor stands under.
func (b *bench) note(what, figure, aim string) {
	b.rows = append(b.rows, row{what: what, figure: figure, aim: aim})
}

// beside adds a line with a floor that is no time.
func (b *bench) beside(what, figure, floor, aim string) {
	b.rows = append(b.rows, row{what: what, figure: figure, floor: floor, aim: aim})
}

// compare adds a line with the floor under it.
func (b *bench) compare(what, figure string, took, floor time.Duration, aim string) {
	b.rows = append(b.rows, row{what, figure, show(floor), fmt.Sprintf("%.1f", float64(took)/float64(floor)), aim})
}

// rate adds a line with events per second; the floor is plain HTTP requests.
func (b *bench) rate(what, figure string, rate float64, aim string) {
	b.rows = append(b.rows, row{what, figure, fmt.Sprintf("%.0f", b.floor.perSecond), fmt.Sprintf("1/%.1f", b.floor.perSecond/rate), aim})
}

func (b *bench) print(w io.Writer) {
	fmt.Fprintln(w, "| what | plexus | floor | ratio | aim |\n|---|--:|--:|--:|--:|")
	for _, r := range b.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", r.what, r.figure, r.floor, r.ratio, r.aim)
	}
	f := b.floor
	fmt.Fprintf(w, "\nThe floor: ed25519 sign %s, verify %s (600 B); SHA-256 of 1 KiB %s; 1 KiB append + fsync p50 %s, p99 %s; HTTP round trip p50 %s, %.0f/s with %d in flight.\n",
		show(f.sign), show(f.verify), show(f.hash), show(f.sync.at(50)), show(f.sync.at(99)), show(f.http.at(50)), f.perSecond, inFlight)
}

// show rounds to what can be read.
func show(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.1f µs", float64(d.Nanoseconds())/1e3)
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1e3)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// table runs all scenarios and prints what they measured.
func (b *bench) table(ctx context.Context) error {
	if err := b.all(ctx); err != nil {
		return err
	}
	fmt.Printf("%s, %s/%s, %d cores, %s; load of the machine before: %s\n\n", time.Now().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU(), runtime.Version(), b.load)
	b.print(os.Stdout)
	return nil
}

// all runs everything, in an order in which nothing disturbs what comes after it.
func (b *bench) all(ctx context.Context) (err error) {
	b.load = loadAverage()
	defer func() {
		for _, p := range b.running {
			if err != nil {
				p.kill()
			} else {
				err = errors.Join(err, p.stop())
			}
		}
	}()
	step("the machine's floor")
	if b.floor, err = measureFloor(ctx, b.dir); err != nil {
		return err
	}
	for _, scenario := range []func(context.Context) error{
		b.starts, b.idleAlone, b.onOneNode, b.firstSync, b.restarts, b.killed, b.twoNodes, b.joins, b.joinLarge, b.idleTogether,
	} {
		if err := scenario(ctx); err != nil {
			return err
		}
	}
	info, err := os.Stat(b.binary)
	if err != nil {
		return err
	}
	b.note("binary, stripped", mebibytes(info.Size()), "≤ 36 MiB")
	return nil
}

// start runs a node that all stops.
func (b *bench) start(ctx context.Context, name string, peers ...string) (*process, error) {
	p, err := start(ctx, b.binary, filepath.Join(b.dir, name), peers...)
	if err == nil {
		b.running = append(b.running, p)
	}
	return p, err
}

// startTries is odd, for a middle one.
const startTries = 5

func (b *bench) starts(ctx context.Context) (err error) {
	step("first starts")
	var first durations
	for i := range startTries {
		p, err := b.start(ctx, fmt.Sprint("first", i))
		if err != nil {
			return err
		}
		first = append(first, p.answered)
		if err := p.stop(); err != nil {
			return err
		}
	}
	b.note("first start to first answer", show(first.at(50)), "≤ 200 ms")
	b.a, err = b.start(ctx, "a")
	return err
}

func (b *bench) idleAlone(ctx context.Context) error {
	step("a node without peers is idle for %s", b.idle)
	if err := pause(ctx, settle); err != nil {
		return err
	}
	cpu, err := b.idleCPU(ctx, b.a)
	if err != nil {
		return err
	}
	anon, resident, err := b.a.memory()
	if err != nil {
		return err
	}
	bareAnon, bareResident, err := bareMemory(ctx)
	if err != nil {
		return err
	}
	b.beside("idle: anonymous memory; resident; floor: a Go program that listens", mebibytes(anon)+"; "+mebibytes(resident),
		mebibytes(bareAnon)+"; "+mebibytes(bareResident), "≤ 16 MiB; –")
	b.note("idle, no peer: CPU per minute", show(cpu[0]), "≤ 100 ms")
	return nil
}

// idleCPU watches nodes and scales to a minute.
func (b *bench) idleCPU(ctx context.Context, nodes ...*process) (cpu []time.Duration, err error) {
	var before []usage
	for _, p := range nodes {
		u, err := p.usage()
		if err != nil {
			return nil, err
		}
		before = append(before, u)
	}
	began := time.Now()
	if err := pause(ctx, b.idle); err != nil {
		return nil, err
	}
	for i, p := range nodes {
		u, err := p.usage()
		if err != nil {
			return nil, err
		}
		used := u.since(before[i]).cpu
		cpu = append(cpu, time.Duration(float64(used)*float64(time.Minute)/float64(time.Since(began))))
	}
	return cpu, nil
}

// settle is how long a node may go on with what came before it counts as idle.
const settle = 12 * time.Second

// pause lets a time pass in which nothing is asked of the nodes.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// How much each scenario sends.
const (
	warmUp     = 100
	sequential = 1000
	underLoad  = 4000
	watched    = 300
	users      = 20
)

func (b *bench) onOneNode(ctx context.Context) (err error) {
	step("registering %d users", users)
	var people []*client
	for i := range users {
		c, err := register(ctx, b.a, fmt.Sprint("user", i))
		if err != nil {
			return err
		}
		people = append(people, c)
	}
	b.alice = people[0]
	if b.room, err = b.alice.create(ctx); err != nil {
		return err
	}
	say := func() error { _, err := b.alice.say(ctx, b.room); return err }
	if _, err := inSequence(warmUp, say); err != nil {
		return err
	}

	step("1 user sends %d messages, one after the other", sequential)
	before, err := b.a.usage()
	if err != nil {
		return err
	}
	d, err := inSequence(sequential, say)
	if err != nil {
		return err
	}
	after, err := b.a.usage()
	if err != nil {
		return err
	}
	used := after.since(before)
	b.compare(fmt.Sprintf("1 user sends %d messages in sequence: p50; p99", sequential), show(d.at(50))+"; "+show(d.at(99)), d.at(50), b.floor.send(), "≤ 0.6; 2 ms")
	b.note("… CPU per 1,000; bytes written per message", fmt.Sprintf("%s; %d", show(used.cpu*1000/sequential), used.written/sequential), "≤ 600 ms; 8000")

	for _, senders := range []struct {
		what, aim, costs string
		people           []*client
	}{{"1 user", "≥ 3000; –", "", people[:1]}, {fmt.Sprint(users, " users in one room"), "≥ 2500; ≤ 15 ms", "≤ 800 ms; –; ≤ 1200", people}} {
		step("%s, %d in flight, %d messages", senders.what, inFlight, underLoad)
		for _, c := range senders.people[1:] {
			if err := c.join(ctx, b.room, ""); err != nil {
				return err
			}
		}
		if before, err = b.a.usage(); err != nil {
			return err
		}
		had, err := b.a.onDisk()
		if err != nil {
			return err
		}
		d, rate, err := atOnce(underLoad, func(i int) error {
			_, err := senders.people[i%len(senders.people)].say(ctx, b.room)
			return err
		})
		if err != nil {
			return err
		}
		if after, err = b.a.usage(); err != nil {
			return err
		}
		used := after.since(before)
		b.rate(fmt.Sprintf("%s, %d in flight: events/s; p99", senders.what, inFlight), fmt.Sprintf("%.0f; %s", rate, show(d.at(99))), rate, senders.aim)
		has, err := b.a.onDisk()
		if err != nil {
			return err
		}
		b.note("… CPU per 1,000; bytes written per message; the directory grew by, per message",
			fmt.Sprintf("%s; %d; %d", show(used.cpu*1000/underLoad), used.written/underLoad, (has-had)/underLoad), senders.costs)
	}
	anon, resident, err := b.a.memory()
	if err != nil {
		return err
	}
	b.note("… anonymous memory afterwards; resident", mebibytes(anon)+"; "+mebibytes(resident), "≤ 48 MiB; –")

	step("from send to another user's /sync, %d times", watched)
	d, err = b.arrivals(ctx, people[1])
	if err != nil {
		return err
	}
	b.compare("send to another user's /sync, same node: p50; p95", show(d.at(50))+"; "+show(d.at(95)), d.at(50), b.floor.send()+b.floor.http.at(50), "≤ 0.8; 2 ms")

	if d, err = inSequence(1000, func() error { _, _, err := people[1].sync(ctx, b.room, 0); return err }); err != nil {
		return err
	}
	b.compare("/sync when nothing is new: p50", show(d.at(50)), d.at(50), b.floor.http.at(50), "≤ 0.3 ms")
	return nil
}

// arrivals times messages of alice from before the request until the reader's /sync has shown them.
func (b *bench) arrivals(ctx context.Context, reader *client) (durations, error) {
	if _, _, err := reader.sync(ctx, b.room, 0); err != nil {
		return nil, err
	}
	var d durations
	for range watched {
		// The reader polls before the message is sent, as a client does.
		type arrival struct {
			ids []string
			at  time.Time
			err error
		}
		polled := make(chan arrival, 1)
		go func() {
			ids, _, err := reader.sync(ctx, b.room, arriveLimit)
			polled <- arrival{ids, time.Now(), err}
		}()
		if err := pause(ctx, 3*time.Millisecond); err != nil {
			<-polled
			return nil, err
		}
		began := time.Now()
		id, err := b.alice.say(ctx, b.room)
		if err != nil {
			<-polled
			return nil, err
		}
		got := <-polled
		for range 100 {
			if got.err != nil {
				return nil, got.err
			}
			shown := false
			for _, other := range got.ids {
				shown = shown || other == id
			}
			if shown {
				break
			}
			got.ids, _, got.err = reader.sync(ctx, b.room, arriveLimit)
			got.at = time.Now()
		}
		d = append(d, got.at.Sub(began))
	}
	return d, nil
}

func (b *bench) restarts(ctx context.Context) error {
	step("starts with data")
	var d durations
	for range startTries {
		if err := b.a.stop(); err != nil {
			return err
		}
		var err error
		if b.a, err = b.start(ctx, "a"); err != nil {
			return err
		}
		d = append(d, b.a.answered)
	}
	b.alice.base = b.a.ClientURL
	b.note("start to first answer, with that data", show(d.at(50)), "≤ 50 ms")
	return nil
}

func (b *bench) twoNodes(ctx context.Context) (err error) {
	step("a second node joins")
	if b.b, err = b.start(ctx, "b", b.a.P2PAddrs...); err != nil {
		return err
	}
	if b.bob, err = register(ctx, b.b, "bob"); err != nil {
		return err
	}
	if b.room, err = b.alice.create(ctx); err != nil {
		return err
	}
	if err := b.bob.join(ctx, b.room, b.a.ServerName); err != nil {
		return err
	}
	if err := b.bob.until(ctx, b.room, ""); err != nil {
		return err
	}
	for range warmUp {
		id, err := b.alice.say(ctx, b.room)
		if err != nil {
			return err
		}
		if err := b.bob.until(ctx, b.room, id); err != nil {
			return err
		}
	}
	step("from send to the other node's /sync, %d times", watched)
	d, err := b.arrivals(ctx, b.bob)
	if err != nil {
		return err
	}
	b.compare("send to another user's /sync, other node: p50; p95", show(d.at(50))+"; "+show(d.at(95)), d.at(50), b.floor.across(), "≤ 2.5; 5 ms")

	step("node to node, %d in flight, %d messages", inFlight, underLoad)
	had, err := b.bob.count(ctx, b.room)
	if err != nil {
		return err
	}
	var before, after [2]usage
	for i, p := range []*process{b.a, b.b} {
		if before[i], err = p.usage(); err != nil {
			return err
		}
	}
	began := time.Now()
	if _, _, err = atOnce(underLoad, func(int) error { _, err := b.alice.say(ctx, b.room); return err }); err != nil {
		return err
	}
	last, err := b.alice.say(ctx, b.room)
	if err != nil {
		return err
	}
	sent := time.Since(began)
	if err := b.bob.until(ctx, b.room, last); err != nil {
		return err
	}
	took := time.Since(began)
	for i, p := range []*process{b.a, b.b} {
		if after[i], err = p.usage(); err != nil {
			return err
		}
	}
	if has, err := b.bob.count(ctx, b.room); err != nil {
		return err
	} else if has != had+underLoad+1 {
		return fmt.Errorf("of %d messages %d arrived", underLoad+1, has-had)
	}
	rate := float64(underLoad+1) / took.Seconds()
	b.rate(fmt.Sprintf("node to node, %d in flight: events/s until all are there; until all were sent", inFlight), fmt.Sprintf("%.0f; %.0f", rate, underLoad/sent.Seconds()), rate, "≥ 2000")
	cpu := after[0].since(before[0]).cpu + after[1].since(before[1]).cpu
	b.note("… CPU of both per 1,000", show(cpu*1000/underLoad), "≤ 1500 ms")
	return nil
}

func (b *bench) joins(ctx context.Context) error {
	const rooms, messages, states = 5, 200, 50
	step("joining %d rooms of %d messages and %d state events", rooms, messages, states)
	var made []string
	for range rooms {
		room, err := b.alice.create(ctx)
		if err != nil {
			return err
		}
		for i := range states {
			if err := b.alice.call(ctx, "PUT", fmt.Sprintf("/rooms/%s/state/org.example.bench/%d", url.PathEscape(room), i), map[string]int{"n": i}, nil); err != nil {
				return err
			}
		}
		for range messages {
			if _, err := b.alice.say(ctx, room); err != nil {
				return err
			}
		}
		made = append(made, room)
	}
	var d, paged durations
	for _, room := range made {
		began := time.Now()
		if err := b.bob.join(ctx, room, b.a.ServerName); err != nil {
			return err
		}
		if err := b.bob.until(ctx, room, ""); err != nil {
			return err
		}
		d = append(d, time.Since(began))
		began = time.Now()
		n, err := b.bob.count(ctx, room)
		if err != nil {
			return err
		}
		if n != messages {
			return fmt.Errorf("after the join there are %d of %d messages", n, messages)
		}
		paged = append(paged, time.Since(began))
	}
	b.compare(fmt.Sprintf("join over federation, %d messages and %d state events, to the first /sync", messages, states), show(d.at(50)), d.at(50), 300*b.floor.verify, "≤ 60 ms")
	b.note("… then paging back to the first event", show(paged.at(50)), "")
	return nil
}
