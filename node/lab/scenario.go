package lab

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// Scenario is a parsed scenario file.
type Scenario struct {
	Nodes int
	Rooms int
	Seed  uint64
	Plain bool // without gossip
	steps []step
}

// step is a line after the settings.
type step struct {
	line int
	text string
	do   func(*mesh) error
}

// Bounds of a scenario, so that a slip of the pen does not fill the machine.
const (
	maxNodes = 1000
	maxRooms = 100
)

// Parse reads a scenario. An error names the line.
func Parse(text string) (*Scenario, error) {
	s := &Scenario{Nodes: 2, Rooms: 1, Seed: 1}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := s.add(number, words); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", number, strings.Join(words, " "), err)
		}
	}
	return s, nil
}

// add takes one line: a setting, or a step.
func (s *Scenario) add(number int, words []string) (err error) {
	verb, rest := words[0], words[1:]
	switch verb {
	case "nodes", "rooms", "seed":
		if len(rest) != 1 || len(s.steps) > 0 {
			return errors.New("takes one number, and stands before the first step")
		}
		n, err := strconv.ParseUint(rest[0], 10, 63)
		switch {
		case err != nil:
			return err
		case verb == "seed":
			s.Seed = n
		case n == 0, verb == "nodes" && n > maxNodes, verb == "rooms" && n > maxRooms:
			return fmt.Errorf("not between 1 and %d", map[string]int{"nodes": maxNodes, "rooms": maxRooms}[verb])
		case verb == "nodes":
			s.Nodes = int(n)
		default:
			s.Rooms = int(n)
		}
		return nil
	}
	if verb == "gossip" {
		if len(rest) != 1 || rest[0] != "on" && rest[0] != "off" || len(s.steps) > 0 {
			return errors.New("is on or off, and stands before the first step")
		}
		s.Plain = rest[0] == "off"
		return nil
	}
	do, err := s.step(verb, rest)
	if err != nil {
		return err
	}
	s.steps = append(s.steps, step{number, strings.Join(words, " "), do})
	return nil
}

// step understands one step; what it needs of the mesh, it is given when it is played.
func (s *Scenario) step(verb string, words []string) (func(*mesh) error, error) {
	switch verb {
	case "line":
		return s.line(words)
	case "link":
		return s.link(words)
	case "sessions":
		return sessions(words)
	case "messages":
		return messages(words)
	case "online", "offline":
		return s.presence(verb == "online", words)
	case "split":
		return s.split(words)
	case "heal":
		return func(m *mesh) error { m.heal(); return nil }, none(words)
	case "measure":
		return (*mesh).measure, none(words)
	case "run":
		d, err := duration(words)
		return func(m *mesh) error { return m.run(d) }, err
	case "expect":
		return s.expect(words)
	}
	return nil, errors.New("no such step")
}

// line NODES [delay D] [jitter D] [loss P] [rate R | up R] [down R]
func (s *Scenario) line(words []string) (func(*mesh) error, error) {
	if len(words) == 0 {
		return nil, errors.New("whose?")
	}
	nodes, err := s.nodes(words[0])
	if err != nil {
		return nil, err
	}
	up, down, err := way(words[1:])
	return func(m *mesh) error { m.setLine(nodes, up, down); return nil }, err
}

// link NODES NODES [delay D] [jitter D] [loss P] [rate R]
func (s *Scenario) link(words []string) (func(*mesh) error, error) {
	if len(words) < 2 {
		return nil, errors.New("between whom?")
	}
	from, err := s.nodes(words[0])
	if err != nil {
		return nil, err
	}
	to, err := s.nodes(words[1])
	if err != nil {
		return nil, err
	}
	link, down, err := way(words[2:])
	if err == nil && link != down {
		err = errors.New("a link has one rate")
	}
	return func(m *mesh) error { m.setLink(from, to, link); return nil }, err
}

// way reads what words say of a line: what goes up, and what comes down.
func way(words []string) (up, down memnet.Link, err error) {
	if len(words)%2 != 0 {
		return up, down, fmt.Errorf("%s how much?", words[len(words)-1])
	}
	for i := 0; i < len(words) && err == nil; i += 2 {
		value := words[i+1]
		switch words[i] {
		case "delay":
			up.Delay, err = time.ParseDuration(value)
			down.Delay = up.Delay
		case "jitter":
			up.Jitter, err = time.ParseDuration(value)
			down.Jitter = up.Jitter
		case "loss":
			up.Loss, err = percent(value)
			down.Loss = up.Loss
		case "rate":
			up.Rate, err = rate(value)
			down.Rate = up.Rate
		case "up":
			up.Rate, err = rate(value)
		case "down":
			down.Rate, err = rate(value)
		default:
			err = fmt.Errorf("%s is none of delay, jitter, loss, rate, up, down", words[i])
		}
	}
	if err == nil && (up.Delay < 0 || up.Jitter < 0 || up.Loss >= 1) {
		err = errors.New("out of range")
	}
	return up, down, err
}

// sessions D online P, or sessions off
func sessions(words []string) (func(*mesh) error, error) {
	if len(words) == 1 && words[0] == "off" {
		return func(m *mesh) error { m.sessions(0, 0); return nil }, nil
	}
	if len(words) != 3 || words[1] != "online" {
		return nil, errors.New(`it is "sessions 30m online 10%" or "sessions off"`)
	}
	length, err := duration(words[:1])
	if err != nil {
		return nil, err
	}
	part, err := percent(words[2])
	if err == nil && (part <= 0 || part >= 1) {
		err = errors.New("online is more than 0% and less than 100%")
	}
	return func(m *mesh) error { m.sessions(length, part); return nil }, err
}

// messages N/h [size B], or messages off
func messages(words []string) (func(*mesh) error, error) {
	if len(words) == 1 && words[0] == "off" {
		return func(m *mesh) error { m.messages(0, 0); return nil }, nil
	}
	size := len(marker(0))
	var err error
	if len(words) == 3 && words[1] == "size" {
		if size, err = strconv.Atoi(words[2]); err == nil && (size < len(marker(0)) || size > 60_000) {
			err = fmt.Errorf("a size is from %d to 60000 bytes", len(marker(0)))
		}
	} else if len(words) != 1 {
		err = errors.New(`it is "messages 60/h size 200" or "messages off"`)
	}
	if err != nil {
		return nil, err
	}
	count, per, ok := strings.Cut(words[0], "/")
	units := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}
	n, err := strconv.ParseFloat(count, 64)
	if err != nil || !ok || units[per] == 0 || n <= 0 {
		return nil, errors.New("how many per s, m or h?")
	}
	return func(m *mesh) error { m.messages(n/units[per].Seconds(), size); return nil }, nil
}

// presence is online [NODES], offline NODES.
func (s *Scenario) presence(online bool, words []string) (func(*mesh) error, error) {
	which := "all"
	switch {
	case len(words) == 1:
		which = words[0]
	case len(words) > 1 || !online:
		return nil, errors.New("which nodes?")
	}
	nodes, err := s.nodes(which)
	return func(m *mesh) error {
		if online && len(nodes) == len(m.nodes) {
			m.sessions(0, 0)
		}
		m.setOnline(nodes, online)
		return nil
	}, err
}

// split NODES / NODES [/ NODES …]
func (s *Scenario) split(words []string) (func(*mesh) error, error) {
	var groups [][]int
	for _, list := range strings.Split(strings.Join(words, ""), "/") {
		nodes, err := s.nodes(list)
		if err != nil {
			return nil, err
		}
		groups = append(groups, nodes)
	}
	return func(m *mesh) error { m.split(groups); return nil }, nil
}

// expect equal, expect delivered P, expect p50|p95|p99 D, expect within D, expect copies N
func (s *Scenario) expect(words []string) (func(*mesh) error, error) {
	if len(words) == 1 && words[0] == "equal" {
		return (*mesh).expectEqual, nil
	}
	if len(words) != 2 {
		return nil, errors.New("equal, delivered P, p50|p95|p99 D, within D or copies N")
	}
	switch words[0] {
	case "delivered":
		part, err := percent(words[1])
		return func(m *mesh) error { return m.meter.expectDelivered(part) }, err
	case "copies":
		most, err := strconv.ParseFloat(words[1], 64)
		return func(m *mesh) error { return m.meter.expectCopies(most) }, err
	case "within":
		most, err := duration(words[1:])
		return func(m *mesh) error { return m.meter.expectWithin(most) }, err
	case "p50", "p95", "p99":
		part, _ := percent(words[0][1:] + "%")
		most, err := duration(words[1:])
		return func(m *mesh) error { return m.meter.expectReach(part, most) }, err
	}
	return nil, errors.New("of this nothing can be expected")
}

// nodes reads a list of nodes: "all", or numbers and ranges as in "0-9,12".
func (s *Scenario) nodes(list string) (nodes []int, err error) {
	if list == "all" {
		list = fmt.Sprintf("0-%d", s.Nodes-1)
	}
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 0 || b < a || b >= s.Nodes {
			return nil, fmt.Errorf("%q are no nodes: there are 0 to %d", part, s.Nodes-1)
		}
		for ; a <= b; a++ {
			nodes = append(nodes, a)
		}
	}
	return nodes, nil
}

func none(words []string) error {
	if len(words) > 0 {
		return errors.New("takes nothing")
	}
	return nil
}

func duration(words []string) (time.Duration, error) {
	if len(words) != 1 {
		return 0, errors.New("how long?")
	}
	d, err := time.ParseDuration(words[0])
	if err == nil && d <= 0 {
		err = errors.New("not longer than nothing")
	}
	return d, err
}

// percent reads "10%" as 0.1.
func percent(word string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(word, "%"), 64)
	if err != nil || !strings.HasSuffix(word, "%") || n < 0 || n > 100 {
		return 0, fmt.Errorf("%q is no percentage", word)
	}
	return n / 100, nil
}

// rate reads "16kbit/s" as bytes per second.
func rate(word string) (int, error) {
	for unit, bits := range map[string]float64{"kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9} {
		if number, ok := strings.CutSuffix(word, unit); ok {
			n, err := strconv.ParseFloat(number, 64)
			if err != nil || n <= 0 || n*bits < 8 {
				break
			}
			return int(n * bits / 8), nil
		}
	}
	return 0, fmt.Errorf("%q is no rate in kbit/s, Mbit/s or Gbit/s", word)
}
