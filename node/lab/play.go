package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// Options of Run.
type Options struct {
	Dir      string       // for keys and small files; required
	Log      *slog.Logger // of all nodes; nil: none
	Progress io.Writer    // gets a line for each hour played; nil: none
}

// Run plays the scenario and returns what was measured. It must be called in a synctest bubble, unless one has the time. An error is
// a failure of the laboratory; expectations that were not met are in the result.
func (s *Scenario) Run(ctx context.Context, o Options) (_ *Result, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	m := &mesh{
		ctx: ctx, scenario: s, net: memnet.New(), progress: o.Progress,
		random: rand.New(rand.NewPCG(s.Seed, 0)), turns: make([]time.Time, s.Nodes),
	}
	m.net.SetSeed(s.Seed)
	for i := range s.Nodes {
		m.presence = append(m.presence, rand.New(rand.NewPCG(s.Seed, uint64(i)+1)))
	}
	m.meter = newMeter(s.Nodes)
	m.net.Observe(m.meter.observe)
	defer func() { err = errors.Join(err, m.close()) }()

	began := time.Now()
	if err := m.setup(o.Dir, o.Log); err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer m.meter.watchers.Wait()
	defer stopWatching()
	m.meter.watchAll(watching, m.nodes)
	if err := m.measure(); err != nil {
		return nil, err
	}
	fmt.Fprintf(m.progress, "all have the same state after %v, %v of CPU time: the play begins\n", time.Since(began), processCPU().Round(time.Second))
	var failures []string
	for _, step := range s.steps {
		err := step.do(m)
		switch {
		case err == nil:
		case strings.HasPrefix(step.text, "expect"):
			failures = append(failures, fmt.Sprintf("line %d: %s: %v", step.line, step.text, err))
		default:
			return nil, fmt.Errorf("line %d: %s: %w", step.line, step.text, err)
		}
	}
	r := m.meter.result()
	r.Scenario, r.Failures, r.Virtual = s, failures, time.Since(m.begun)
	return r, nil
}

// run lets time pass, in which nodes come and go and messages are sent.
func (m *mesh) run(d time.Duration) error {
	end := time.Now().Add(d)
	for {
		at, what := end, func() {}
		if !m.next.IsZero() && m.next.Before(at) {
			at, what = m.next, m.send
		}
		for i, turn := range m.turns {
			if !turn.IsZero() && turn.Before(at) {
				at, what = turn, func() { m.turn(i) }
			}
		}
		if m.hour.Before(at) {
			at, what = m.hour, func() { m.hour = m.hour.Add(time.Hour); m.meter.tell(m.progress, time.Since(m.begun)) }
		}
		time.Sleep(time.Until(at))
		what()
		if err := m.meter.failed(); err != nil || m.ctx.Err() != nil {
			return errors.Join(err, m.ctx.Err())
		}
		if at.Equal(end) {
			return nil
		}
	}
}

// measure forgets what was measured so far.
func (m *mesh) measure() error {
	m.begun = time.Now()
	m.hour = m.begun.Add(time.Hour)
	return m.meter.start()
}

// sessions has nodes come and go from now on: online for length, then away so long that part of them is online on average. A length of
// 0 ends it; everybody stays as they are.
func (m *mesh) sessions(length time.Duration, part float64) {
	m.length, m.part = length, part
	for i := range m.turns {
		if length == 0 {
			m.turns[i] = time.Time{}
			continue
		}
		r := m.presence[i]
		online := r.Float64() < part
		m.setOnline([]int{i}, online)
		m.turns[i] = time.Now().Add(m.away(r))
		if online { // in the middle of a session
			m.turns[i] = time.Now().Add(time.Duration(r.Float64() * float64(length)))
		}
	}
}

// away is how long a node stays away: exponentially distributed, so that nobody's coming tells of anybody else's.
func (m *mesh) away(r *rand.Rand) time.Duration {
	return time.Duration(r.ExpFloat64() * float64(m.length) * (1 - m.part) / m.part)
}

// turn brings a node to the network, or takes it off.
func (m *mesh) turn(i int) {
	online := !m.meter.isOnline(i)
	m.setOnline([]int{i}, online)
	if online {
		m.turns[i] = time.Now().Add(m.length)
	} else {
		m.turns[i] = time.Now().Add(m.away(m.presence[i]))
	}
}

func (m *mesh) setOnline(nodes []int, online bool) {
	for _, i := range nodes {
		if m.meter.isOnline(i) == online {
			continue
		}
		m.meter.setOnline(i, online)
		if online {
			m.net.Attach(m.nodes[i].peer)
		} else {
			m.net.Detach(m.nodes[i].peer)
		}
	}
}

// split cuts all links between nodes of different groups. Nodes in none are a group of their own.
func (m *mesh) split(groups [][]int) {
	group := make([]int, len(m.nodes))
	for g, nodes := range groups {
		for _, i := range nodes {
			group[i] = g + 1
		}
	}
	for i, a := range m.nodes {
		for j, b := range m.nodes[:i] {
			if group[i] != group[j] {
				m.net.Cut(a.peer, b.peer)
			} else {
				m.net.Heal(a.peer, b.peer)
			}
		}
	}
	m.meter.setGroups(group)
}

func (m *mesh) heal() {
	m.net.HealAll()
	m.meter.setGroups(make([]int, len(m.nodes)))
}

func (m *mesh) setLine(nodes []int, up, down memnet.Link) {
	for _, i := range nodes {
		m.net.SetAccess(m.nodes[i].peer, up, down)
	}
}

func (m *mesh) setLink(from, to []int, l memnet.Link) {
	for _, i := range from {
		for _, j := range to {
			if i != j {
				m.net.SetLink(m.nodes[i].peer, m.nodes[j].peer, l)
			}
		}
	}
}

// messages has so many messages a second sent from now on, of size bytes; 0: none.
func (m *mesh) messages(every float64, size int) {
	m.every, m.size, m.next = every, size, time.Time{}
	if every > 0 {
		m.next = time.Now().Add(m.pause())
	}
}

func (m *mesh) pause() time.Duration {
	return time.Duration(m.random.ExpFloat64() / m.every * float64(time.Second))
}

// send has a node that is online send a message to a room. Where all are away, nobody speaks.
func (m *mesh) send() {
	m.next = time.Now().Add(m.pause())
	author, room := m.random.IntN(len(m.nodes)), m.rooms[m.random.IntN(len(m.rooms))]
	for range m.nodes {
		if m.meter.isOnline(author) {
			break
		}
		author = (author + 1) % len(m.nodes)
	}
	if !m.meter.isOnline(author) {
		return
	}
	number, ok := m.meter.sends(author)
	if !ok {
		return
	}
	n := m.nodes[author]
	text := marker(number) + strings.Repeat(".", m.size-len(marker(number)))
	if err := n.say(m.ctx, room, text); err != nil {
		m.meter.fail(fmt.Errorf("message %d of node %d: %w", number, author, err))
	}
}
