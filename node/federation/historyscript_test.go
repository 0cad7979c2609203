package federation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// The scripts of histories (history_test.go). A script is made from seed and number alone, knows nothing of what its steps will do, and each step
// stands for itself: whatever steps are left out, the others can be played.

// script is a history to play.
type script struct {
	seed, number uint64
	nodes        int
	version      eventgraph.RoomVersion
	rule         string
	visibility   string
	powers       string // "a0=100 a1=50"
	steps        []string
}

func (s *script) String() string {
	return fmt.Sprintf("room %d %s %s %s %s\n%s\n", s.nodes, s.version, s.rule, s.visibility, s.powers, strings.Join(s.steps, "\n"))
}

// parseScript reads what String gives.
func parseScript(text string) (*script, error) {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	head := strings.Fields(lines[0])
	if len(head) < 5 || head[0] != "room" {
		return nil, fmt.Errorf("a script begins with: room NODES VERSION RULE VISIBILITY [USER=POWER …], not with %q", lines[0])
	}
	nodes, err := strconv.Atoi(head[1])
	if err != nil || nodes < 1 || nodes > len(historyHosts()) {
		return nil, fmt.Errorf("number of nodes %q", head[1])
	}
	s := &script{nodes: nodes, version: eventgraph.RoomVersion(head[2]), rule: head[3], visibility: head[4], powers: strings.Join(head[5:], " ")}
	s.steps = lines[1:]
	return s, nil
}

// scripter makes one script.
type scripter struct {
	*rand.Rand
	script
	users    []string // a0, a1, b1, …
	strong   []string // those of them who have power at first
	faulty   int      // of so many requests one meets a fault; 0: none
	eager    int      // percent of the others that an act is sent to at once
	meetings int      // percent of acts after which some pair meets
}

func newScript(seed, number uint64) *script {
	g := &scripter{Rand: rand.New(rand.NewPCG(seed, number)), script: script{seed: seed, number: number}}
	g.nodes = []int{3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 7, 8}[g.IntN(20)]
	versions := []eventgraph.RoomVersion{"12", "12", "12", "12", "12", "12", "11", "11", "11", "10", "10", "10", "10", "9", "8", "7", "6", "5", "4", "3"}
	g.version = versions[g.IntN(len(versions))]
	g.rule = pick(g.Rand, "public", "public", "public", "invite", "invite", "knock")
	if v, _ := strconv.Atoi(string(g.version)); v < 7 && g.rule == "knock" {
		g.rule = "public"
	}
	g.visibility = pick(g.Rand, "shared", "shared", "shared", "shared", "joined", "joined", "invited", "world_readable")
	g.faulty = []int{0, 20, 10, 5}[g.IntN(4)]
	g.eager = []int{0, 40, 80, 100}[g.IntN(4)]
	g.meetings = []int{0, 5, 20, 50}[g.IntN(4)]
	var powers []string
	for i := range g.nodes {
		for _, letter := range []string{"a", "b"} {
			if letter == "b" && g.IntN(3) != 0 {
				continue
			}
			user := letter + strconv.Itoa(i)
			g.users = append(g.users, user)
			p := []int{100, 100, 100, 50, 50, 0, 0}[g.IntN(7)]
			if p > 0 && user != "a0" {
				powers = append(powers, fmt.Sprintf("%s=%d", user, p))
			}
			if p > 0 || user == "a0" {
				g.strong = append(g.strong, user)
			}
		}
	}
	g.powers = strings.Join(powers, " ")
	g.enter()
	for range 15 + g.IntN(40) {
		g.act()
	}
	return &g.script
}

func pick(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

func (g *scripter) add(format string, args ...any) {
	g.steps = append(g.steps, fmt.Sprintf(format, args...))
}

func (g *scripter) user() string { return g.users[g.IntN(len(g.users))] }

// doer is a user who may well do something: one with power, mostly.
func (g *scripter) doer() string {
	if g.IntN(5) > 0 {
		return g.strong[g.IntN(len(g.strong))]
	}
	return g.user()
}

func (g *scripter) node() int { return g.IntN(g.nodes) }

// home is the node of a user.
func home(user string) int { return int(user[1] - '0') }

// pair is two nodes.
func (g *scripter) pair() (a, b int) {
	a = g.node()
	b = (a + 1 + g.IntN(g.nodes-1)) % g.nodes
	return a, b
}

// fault is one of the faults of an endpoint, now and then; else nothing.
func (g *scripter) fault(endpoints ...string) string {
	if g.faulty == 0 || g.IntN(g.faulty) != 0 {
		return ""
	}
	kind := pick(g.Rand, "lose", "answer", "twice", "hold", "late")
	f := fmt.Sprintf(" %s=%s", kind, pick(g.Rand, endpoints...))
	if g.IntN(3) == 0 {
		f += ":" + strconv.Itoa(2+g.IntN(3))
	}
	return f
}

// enter brings most into the room.
func (g *scripter) enter() {
	for _, user := range g.users {
		if user == "a0" || g.IntN(8) == 0 {
			continue
		}
		if g.rule != "public" {
			g.add("invite a0 %s", user)
		}
		g.add("join %s 0", user)
		if g.IntN(3) > 0 {
			g.spread(home(user))
		}
	}
	for i := range g.nodes {
		if g.IntN(3) > 0 {
			g.spread(i)
		}
	}
}

// spread sends from a node to the others, in a random order, and lets some of them work.
func (g *scripter) spread(from int) {
	for _, to := range g.Perm(g.nodes) {
		if to == from || g.IntN(100) >= g.eager {
			continue
		}
		g.add("send %d %d%s", from, to, g.fault("send"))
		if g.IntN(4) > 0 {
			g.add("inbox %d%s", to, g.fault("get_missing_events", "event", "state_ids", "event_auth", "query"))
		}
	}
}

// act adds something that happens.
func (g *scripter) act() {
	switch n := g.IntN(100); {
	case n < 12:
		g.network()
		return
	case n < 12+g.meetings/2:
		g.meet()
		return
	case n < 20:
		a, b := g.pair()
		g.add("send %d %d%s", a, b, g.fault("send"))
		return
	case n < 24:
		g.add("inbox %d%s", g.node(), g.fault("get_missing_events", "event", "state_ids", "event_auth"))
		return
	}
	u := g.doer()
	g.deed(u)
	if g.IntN(3) == 0 { // several at the same time
		v := g.doer()
		g.deed(v)
		g.spread(home(v))
	}
	g.spread(home(u))
	if g.IntN(100) < g.meetings {
		g.meet()
	}
}

func (g *scripter) meet() {
	a, b := g.pair()
	f := g.fault("get_missing_events", "event", "state_ids")
	if g.faulty > 0 && g.IntN(g.faulty) == 0 {
		f += fmt.Sprintf(" break=:%d", 1+g.IntN(9))
	}
	g.add("meet %d %d%s", a, b, f)
}

// deed is what a user does.
func (g *scripter) deed(u string) {
	v := g.user()
	if v == u {
		v = g.user()
	}
	switch g.IntN(32) {
	case 0, 1, 2, 3, 4:
		g.add("say %s", u)
	case 5, 6, 7:
		g.add("topic %s t%d", u, g.IntN(1000))
	case 8:
		g.add("name %s n%d", u, g.IntN(1000))
	case 9, 10:
		g.add("ban %s %s", u, v)
	case 11:
		g.add("kick %s %s", u, v)
	case 12, 13:
		g.add("unban %s %s", u, v)
	case 14, 15, 16:
		g.add("power %s %s %d", u, v, []int{0, 50, 50, 99, 100}[g.IntN(5)])
	case 17:
		g.add("power %s %s %d", u, u, []int{0, 50}[g.IntN(2)])
	case 18, 19, 20, 21, 22:
		if g.IntN(3) > 0 {
			g.add("invite %s %s%s", u, v, g.fault("invite"))
		}
		g.add("join %s %d%s", v, home(u), g.fault("make_join", "send_join", "query", "state_ids"))
		g.spread(home(v))
	case 23:
		g.add("join %s %d%s", v, g.node(), g.fault("make_join", "send_join", "query", "state_ids"))
	case 24:
		g.add("leave %s%s", u, g.fault("make_leave", "send_leave"))
	case 25:
		g.add("invite %s %s%s", u, v, g.fault("invite"))
	case 26:
		g.add("redact %s %d", u, g.IntN(50))
	case 27:
		g.add("rule %s %s", u, pick(g.Rand, "public", "public", "invite", "knock"))
	case 28:
		g.add("visibility %s %s", u, pick(g.Rand, "shared", "shared", "joined", "invited", "world_readable"))
	case 29:
		if g.IntN(2) == 0 {
			g.add("knock %s %d", u, g.node())
		} else {
			g.add("level %s %s %d", u, pick(g.Rand, "state_default", "ban", "kick", "redact", "invite"), []int{0, 50, 100}[g.IntN(3)])
		}
	case 30, 31:
		g.add("fork %s %d %s %s", u, g.IntN(60), pick(g.Rand, "say", "topic", "ban", "power", "join"), v)
	}
}

// network is what the network, or a device, does.
func (g *scripter) network() {
	switch g.IntN(12) {
	case 0, 1:
		g.add("cut %d %d", first(g.pair()), g.node())
	case 2, 3, 4:
		var sides [2][]string
		for i := range g.nodes {
			side := g.IntN(2)
			sides[side] = append(sides[side], strconv.Itoa(i))
		}
		g.add("split %s | %s", strings.Join(sides[0], " "), strings.Join(sides[1], " "))
	case 5, 6:
		g.add("heal")
	case 7:
		g.add("restart %d", g.node())
	case 8:
		g.add("down %d", g.node())
		for range g.IntN(4) {
			g.act()
		}
		g.add("up")
	case 9:
		g.add("free %d", g.IntN(10))
	case 10:
		g.add("wait %d", []int{1, 15, 60, 600}[g.IntN(4)])
	case 11:
		if side := g.Perm(g.nodes)[:1+g.IntN(g.nodes-1)]; len(side) > 0 { // one side goes on by itself
			slices.Sort(side)
			in, out := []string{}, []string{}
			for i := range g.nodes {
				if slices.Contains(side, i) {
					in = append(in, strconv.Itoa(i))
				} else {
					out = append(out, strconv.Itoa(i))
				}
			}
			g.add("split %s | %s", strings.Join(in, " "), strings.Join(out, " "))
			for range 3 + g.IntN(6) {
				u := g.doer()
				g.deed(u)
				g.spread(home(u))
			}
			g.add("heal")
		}
	}
}

func first(a, _ int) int { return a }

// faultsOf reads the faults at the end of a step.
func faultsOf(words []string) (rest []string, faults []fault) {
	for _, word := range words {
		kind, what, is := strings.Cut(word, "=")
		if !is {
			rest = append(rest, word)
			continue
		}
		endpoint, number, _ := strings.Cut(what, ":")
		n, _ := strconv.Atoi(number)
		faults = append(faults, fault{faultKind(kind), endpoint, n})
	}
	return rest, faults
}
