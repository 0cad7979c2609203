// Package nodetest runs whole nodes in one process over a network in memory, and scenarios in readable text on them.
//
// A scenario is a line for each step; a line that begins with "| " is what the step before it shows:
//
//	nodes a b
//	alice@a creates room
//	alice@a invites bob@b
//	bob@b joins
//	cut a b
//	alice@a says hello
//	mend
//	bob@b sees hello
//	equal
//	bob@b looks
//	| members: alice@a join, bob@b join
//
// All steps are in Scenario.step. Each step happens a second after the one before, by the nodes' clock, so that what depends on
// timestamps comes out the same each time. There is one room.
package nodetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// patience is how long a step waits for what it expects.
const patience = 20 * time.Second

// Scenario is some nodes, their users and one room.
type Scenario struct {
	t     testing.TB
	net   *memnet.Network
	dir   string
	nodes map[string]*runningNode
	users map[string]*user // by "alice@a"
	names map[eventgraph.UserID]string
	room  eventgraph.RoomID
	ahead atomic.Int64 // of the nodes' clock, in seconds
	log   *slog.Logger
}

type runningNode struct {
	name string
	*node.Node
	stop func() error // nil while it does not run
}

// Run takes a scenario through its steps and returns it with what each step has shown; for the test to compare. A step that fails, or
// waits in vain, fails the test.
func Run(t testing.TB, scenario string) string {
	t.Helper()
	s := &Scenario{
		t: t, net: memnet.New(), dir: t.TempDir(),
		nodes: map[string]*runningNode{}, users: map[string]*user{}, names: map[eventgraph.UserID]string{},
	}
	logged := &bytes.Buffer{}
	s.log = slog.New(slog.NewTextHandler(&locked{w: logged}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() {
		for _, n := range s.nodes {
			if err := n.end(); err != nil {
				t.Errorf("node %s: %v", n.name, err)
			}
		}
		if t.Failed() {
			t.Log(logged.String())
		}
	})
	var shown strings.Builder
	for line := range strings.Lines(scenario) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "| ") {
			continue
		}
		shown.WriteString(line + "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		s.ahead.Add(1)
		out, err := s.step(strings.Fields(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for l := range strings.Lines(out) {
			shown.WriteString("| " + l)
		}
	}
	return shown.String()
}

// step does one step and returns what it shows.
func (s *Scenario) step(words []string) (string, error) {
	switch words[0] {
	case "nodes": // nodes a b c
		for _, name := range words[1:] {
			s.nodes[name] = &runningNode{name: name}
			if err := s.start(s.nodes[name]); err != nil {
				return "", err
			}
		}
		return "", s.connected()
	case "cut", "mend": // cut a b, mend a b, mend
		return "", s.link(words[0] == "cut", words[1:])
	case "stop": // stop a
		return "", s.nodes[words[1]].end()
	case "start": // start a
		return "", s.start(s.nodes[words[1]])
	case "equal": // equal, equal a b: the nodes come to the same state
		return "", s.equal(words[1:])
	}
	u, err := s.user(words[0])
	if err != nil {
		return "", err
	}
	if len(words) < 2 {
		return "", errors.New("does what?")
	}
	return s.act(u, words[1], words[2:])
}

// act does what a user does.
func (s *Scenario) act(u *user, verb string, words []string) (string, error) {
	text := strings.Join(words, " ")
	room := "/rooms/" + url.PathEscape(string(s.room))
	switch verb {
	case "creates": // creates room, creates private room, creates room version 10
		return "", s.create(u, text)
	case "joins": // joins, joins via b
		via := url.Values{}
		for name, n := range s.nodes {
			if len(words) == 0 || words[1] == name {
				via.Add("via", string(n.ServerName()))
			}
		}
		return "", u.call("POST", "/join/"+url.PathEscape(string(s.room))+"?"+via.Encode(), struct{}{}, nil)
	case "leaves":
		return "", u.call("POST", room+"/leave", struct{}{}, nil)
	case "invites", "kicks", "bans", "unbans": // bans bob@b
		other, err := s.user(text)
		if err != nil {
			return "", err
		}
		return "", u.call("POST", room+"/"+strings.TrimSuffix(verb, "s"), map[string]any{"user_id": other.id}, nil)
	case "sets": // sets topic of the day
		return "", u.call("PUT", room+"/state/m.room."+words[0]+"/", map[string]string{words[0]: strings.Join(words[1:], " ")}, nil)
	case "gives": // gives bob@b power 50
		return "", s.empower(u, words)
	case "says": // says hello
		return "", s.say(u, text)
	case "repeats": // repeats 50 hello: "hello 1" to "hello 50"
		n, err := strconv.Atoi(words[0])
		for i := 1; i <= n && err == nil; i++ {
			err = s.say(u, strings.Join(words[1:], " ")+" "+strconv.Itoa(i))
		}
		return "", err
	case "sees": // sees hello: waits for the message
		return "", u.until(func() (bool, error) {
			seen, err := s.messages(u)
			return slices.Contains(seen, text), err
		})
	case "is": // is ban: waits for the user's membership as its own node has it
		return "", u.until(func() (bool, error) { got, err := s.membership(u, u); return got == text, err })
	case "knows": // knows bob@b is leave
		other, err := s.user(words[0])
		if err != nil {
			return "", err
		}
		return "", u.until(func() (bool, error) { got, err := s.membership(u, other); return got == words[2], err })
	case "cannot": // cannot says hello: is refused
		_, err := s.act(u, words[0], words[1:])
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			return refused.Code + "\n", nil
		}
		return "", fmt.Errorf("it was not refused: %v", err)
	case "looks": // shows the state of the room as the user sees it
		return s.look(u)
	}
	return "", fmt.Errorf("no such step: %s", verb)
}

func (s *Scenario) create(u *user, what string) error {
	body := map[string]any{"preset": "public_chat"}
	if strings.HasPrefix(what, "private") {
		body["preset"] = "private_chat"
	}
	if _, version, ok := strings.Cut(what, "version "); ok {
		body["room_version"] = version
	}
	var made struct {
		Room eventgraph.RoomID `json:"room_id"`
	}
	err := u.call("POST", "/createRoom", body, &made)
	s.room = made.Room
	return err
}

func (s *Scenario) say(u *user, text string) error {
	u.sent++
	path := fmt.Sprintf("/rooms/%s/send/m.room.message/%d", url.PathEscape(string(s.room)), u.sent)
	return u.call("PUT", path, map[string]string{"msgtype": "m.text", "body": text}, nil)
}

// empower changes one user's power level.
func (s *Scenario) empower(u *user, words []string) error {
	other, err := s.user(words[0])
	if err != nil {
		return err
	}
	power, err := strconv.ParseInt(words[2], 10, 64)
	if err != nil {
		return err
	}
	path := "/rooms/" + url.PathEscape(string(s.room)) + "/state/m.room.power_levels/"
	var levels map[string]json.RawMessage
	if err := u.call("GET", path, nil, &levels); err != nil {
		return err
	}
	users := map[eventgraph.UserID]int64{}
	if levels["users"] != nil {
		if err := json.Unmarshal(levels["users"], &users); err != nil {
			return err
		}
	}
	users[other.id] = power
	if levels["users"], err = json.Marshal(users); err != nil {
		return err
	}
	return u.call("PUT", path, levels, nil)
}

// messages lists the bodies of the messages that the user is shown.
func (s *Scenario) messages(u *user) (bodies []string, err error) {
	from := ""
	for {
		var page struct {
			Chunk []struct {
				Type    string
				Content struct{ Body string }
			}
			End string
		}
		query := url.Values{"dir": {"b"}, "limit": {"1000"}}
		if from != "" {
			query.Set("from", from)
		}
		if err := u.call("GET", "/rooms/"+url.PathEscape(string(s.room))+"/messages?"+query.Encode(), nil, &page); err != nil {
			return nil, ignoreRefusal(err)
		}
		for _, e := range page.Chunk {
			if e.Type == "m.room.message" {
				bodies = append(bodies, e.Content.Body)
			}
		}
		if from = page.End; from == "" || len(page.Chunk) == 0 {
			return bodies, nil
		}
	}
}

// membership is that of other in the room as u is told; of an invite to a room that it is not in, a user is told by /sync.
func (s *Scenario) membership(u, other *user) (string, error) {
	var m struct{ Membership string }
	path := "/rooms/" + url.PathEscape(string(s.room)) + "/state/m.room.member/" + url.PathEscape(string(other.id))
	if err := u.call("GET", path, nil, &m); err == nil || u != other {
		return m.Membership, ignoreRefusal(err)
	}
	var sync struct {
		Rooms struct {
			Invite map[eventgraph.RoomID]json.RawMessage
		}
	}
	if err := u.call("GET", "/sync", nil, &sync); err != nil {
		return "", err
	}
	if sync.Rooms.Invite[s.room] != nil {
		return "invite", nil
	}
	return "leave", nil
}

// look shows topic, name, power, members and messages, in an order that is the same on all nodes.
func (s *Scenario) look(u *user) (string, error) {
	var state []struct {
		Type     string
		StateKey string `json:"state_key"`
		Content  struct {
			Topic, Name, Membership string
			Users                   map[eventgraph.UserID]int64
		}
	}
	if err := u.call("GET", "/rooms/"+url.PathEscape(string(s.room))+"/state", nil, &state); err != nil {
		return "", err
	}
	var members, power []string
	var out strings.Builder
	for _, e := range state {
		switch e.Type {
		case "m.room.topic":
			fmt.Fprintf(&out, "topic: %s\n", e.Content.Topic)
		case "m.room.name":
			fmt.Fprintf(&out, "name: %s\n", e.Content.Name)
		case "m.room.member":
			members = append(members, s.names[eventgraph.UserID(e.StateKey)]+" "+e.Content.Membership)
		case "m.room.power_levels":
			for id, level := range e.Content.Users {
				power = append(power, fmt.Sprintf("%s %d", s.names[id], level))
			}
		}
	}
	seen, err := s.messages(u)
	if err != nil {
		return "", err
	}
	slices.Sort(members)
	slices.Sort(power)
	fmt.Fprintf(&out, "members: %s\npower: %s\nmessages: %d\n", strings.Join(members, ", "), strings.Join(power, ", "), len(seen))
	lines := slices.Sorted(strings.Lines(out.String()))
	return strings.Join(lines, ""), nil
}

// equal waits until the nodes, by default all that run, have the same state of the room.
func (s *Scenario) equal(names []string) error {
	if len(names) == 0 {
		for name, n := range s.nodes {
			if n.stop != nil {
				names = append(names, name)
			}
		}
	}
	return s.wait(func() (bool, error) {
		hashes := map[string]bool{}
		for _, name := range names {
			status, err := s.nodes[name].Status()
			if err != nil {
				return false, err
			}
			if room := status.Rooms[s.room]; room != nil {
				hashes[room.StateHash] = true
			} else {
				hashes[""] = true
			}
		}
		return len(hashes) == 1 && !hashes[""], nil
	})
}

// connected waits until all nodes that run, and are not cut off, know each other.
func (s *Scenario) connected() error {
	return s.wait(func() (bool, error) {
		for _, n := range s.nodes {
			status, err := n.Status()
			if err != nil {
				return false, err
			}
			known := 0
			for _, p := range status.Peers {
				if p.ServerName != "" {
					known++
				}
			}
			if known < len(s.nodes)-1 {
				return false, nil
			}
		}
		return true, nil
	})
}

// wait looks again and again until check is true.
func (s *Scenario) wait(check func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); ; {
		if ok, err := check(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-limit:
			return errors.New("not in time")
		}
	}
}

// link cuts or mends links between all of the nodes named, by default between all.
func (s *Scenario) link(cut bool, names []string) error {
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(s.nodes))
	}
	for i, a := range names {
		for _, b := range names[i+1:] {
			x, y := s.nodes[a], s.nodes[b]
			if x == nil || y == nil {
				return fmt.Errorf("no such nodes: %s, %s", a, b)
			}
			if cut {
				s.net.Cut(p2ptransport.PeerID(x.PeerID()), p2ptransport.PeerID(y.PeerID()))
			} else {
				s.net.Heal(p2ptransport.PeerID(x.PeerID()), p2ptransport.PeerID(y.PeerID()))
			}
		}
	}
	return nil
}

// start opens a node on its directory and runs it.
func (s *Scenario) start(n *runningNode) error {
	opened, err := node.Open(context.Background(), node.Config{
		Dir: filepath.Join(s.dir, n.name), ClientAddrs: []string{"127.0.0.1:0"},
		Registration: clientapi.RegistrationOpen, NoRateLimits: true, Log: s.log.With("node", n.name),
		Now:       func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load()) * time.Second) },
		Transport: func(c p2ptransport.Config) (p2ptransport.Transport, error) { return s.net.Node(c) },
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- opened.Run(ctx) }()
	n.Node = opened
	n.stop = func() error {
		cancel()
		return errors.Join(<-ended, opened.Close())
	}
	return nil
}

func (n *runningNode) end() error {
	if n.stop == nil {
		return nil
	}
	stop := n.stop
	n.stop = nil
	return stop()
}

// locked is a writer for several nodes.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
