package stateres

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// state is a whole room state.
type state map[eventgraph.StateTuple]eventgraph.EventID

// world is a room with all its events and trie nodes. It is the NodeReader and the EventReader.
type world struct {
	t        fataler
	version  eventgraph.RoomVersion
	room     eventgraph.RoomID
	events   map[eventgraph.EventID]*eventgraph.Event
	named    map[string]*eventgraph.Event
	names    map[eventgraph.EventID]string
	rejected map[eventgraph.EventID]bool
	heights  map[eventgraph.EventID]uint32
	citers   map[eventgraph.EventID][]eventgraph.EventID // of each event
	nodes    map[eventgraph.Hash][]byte
	reads    map[eventgraph.EventID]int
}

func newWorld(t fataler, v eventgraph.RoomVersion) *world {
	return &world{
		t: t, version: v,
		events:   make(map[eventgraph.EventID]*eventgraph.Event),
		named:    make(map[string]*eventgraph.Event),
		names:    make(map[eventgraph.EventID]string),
		rejected: make(map[eventgraph.EventID]bool),
		heights:  make(map[eventgraph.EventID]uint32),
		citers:   make(map[eventgraph.EventID][]eventgraph.EventID),
		nodes:    make(map[eventgraph.Hash][]byte),
		reads:    make(map[eventgraph.EventID]int),
	}
}

func (w *world) TrieNode(h eventgraph.Hash) ([]byte, error) {
	n, ok := w.nodes[h]
	if !ok {
		return nil, fmt.Errorf("no trie node %x", h)
	}
	return n, nil
}

var errNoEvent = errors.New("no such event")

func (w *world) Event(id eventgraph.EventID) (Held, error) {
	e, ok := w.events[id]
	if !ok {
		return Held{}, fmt.Errorf("%w: %s", errNoEvent, id)
	}
	w.reads[id]++
	return Held{e, w.rejected[id], w.heights[id]}, nil
}

func (w *world) CitedBy(id eventgraph.EventID, f func(eventgraph.EventID) bool) error {
	for _, by := range w.citers[id] {
		if !f(by) {
			break
		}
	}
	return nil
}

// place links an event to its auth events.
func (w *world) place(e *eventgraph.Event) {
	for _, id := range e.AuthEvents() {
		w.heights[e.ID()] = max(w.heights[e.ID()], w.heights[id]+1)
		w.citers[id] = append(w.citers[id], e.ID())
	}
}

// checked is a state as the auth rules want it.
type checked struct {
	w *world
	s state
}

func (c checked) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	return c.w.events[c.s[t]], nil
}

var userShort = regexp.MustCompile(`@(\w+)`)

// send builds an event written as "name@ts type key sender content": the key ” is the empty one, - none; @user is of
// a.example. It takes its auth events from s, without those named in a "-name" or with those in a "+name" before the
// type, and puts it into s if it is a state event.
func (w *world) send(s state, line string) *eventgraph.Event {
	w.t.Helper()
	words := strings.Fields(line)
	name, ts, _ := strings.Cut(words[0], "@")
	words = words[1:]
	var plus, minus []eventgraph.EventID
	for strings.HasPrefix(words[0], "+") || strings.HasPrefix(words[0], "-") {
		if words[0][0] == '+' {
			plus = append(plus, w.id(words[0][1:]))
		} else {
			minus = append(minus, w.id(words[0][1:]))
		}
		words = words[1:]
	}
	user := func(s string) string { return userShort.ReplaceAllString(s, "@$1:a.example") }
	d := eventgraph.Draft{
		RoomID: w.room, Type: words[0], Sender: eventgraph.UserID(user(words[2])),
		Content: json.RawMessage(user(strings.Join(words[3:], " "))), Depth: 1,
	}
	var err error
	if d.OriginServerTS, err = strconv.ParseInt(ts, 10, 64); err != nil {
		w.t.Fatalf("%s: %v", line, err)
	}
	if key := user(words[1]); key == "''" {
		d.StateKey = new(string)
	} else if key != "-" {
		d.StateKey = &key
	}
	for _, tuple := range auth.Selection(w.version, d) {
		if id := s[tuple]; id != "" && !slices.Contains(minus, id) {
			d.AuthEvents = append(d.AuthEvents, id)
		}
	}
	d.AuthEvents = append(d.AuthEvents, plus...)
	if len(w.events) == 1 {
		d.PrevEvents = []eventgraph.EventID{w.id("create")} // the rule for the creator's join looks at it
	}

	e, err := eventgraph.Build(w.version, d, signer)
	if err != nil {
		w.t.Fatalf("%s: %v", line, err)
	}
	if name != "" && w.named[name] != nil {
		w.t.Fatalf("two events of the name %s", name)
	}
	w.events[e.ID()], w.named[name], w.names[e.ID()] = e, e, name
	w.place(e)
	if d.Type == "m.room.create" {
		w.room = e.RoomID()
	}
	if tuple, ok := e.Tuple(); ok {
		s[tuple] = e.ID()
	}
	return e
}

var signer = eventgraph.SigningKey{Server: "a.example", ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}

func (w *world) id(name string) eventgraph.EventID {
	w.t.Helper()
	e := w.named[name]
	if e == nil {
		w.t.Fatalf("no event of the name %s", name)
	}
	return e.ID()
}

// begin is the room that most scenarios fork: public, @alice its creator and everything, @bob and @dave with 50, @carol with none.
// Before version 12 @alice has 100.
func (w *world) begin() state {
	w.t.Helper()
	s := make(state)
	w.create(s)
	w.send(s, `P1@3 m.room.power_levels '' @alice `+w.levels(`"@bob":50,"@dave":50`, ``))
	w.send(s, `JR@4 m.room.join_rules '' @alice {"join_rule":"public"}`)
	for i, user := range []string{"bob", "carol", "dave"} {
		w.send(s, fmt.Sprintf(`%s@%d m.room.member @%s @%s {"membership":"join"}`, user, 5+i, user, user))
	}
	w.send(s, `T0@8 m.room.topic '' @alice {"topic":"0"}`)
	return s
}

func (w *world) create(s state) {
	w.t.Helper()
	traits, ok := w.version.Traits()
	if !ok {
		w.t.Fatalf("room version %s is not supported", w.version)
	}
	if !traits.RoomIDFromCreate {
		w.room = "!room:a.example"
	}
	w.send(s, fmt.Sprintf(`create@1 m.room.create '' @alice {"creator":"@alice","room_version":%q}`, w.version))
	w.send(s, `alice@2 m.room.member @alice @alice {"membership":"join"}`)
}

// levels is the content of power levels with these users beside @alice, and more.
func (w *world) levels(users, more string) string {
	if traits, _ := w.version.Traits(); !traits.PrivilegedCreators {
		users = strings.TrimSuffix(`"@alice":100,`+users, ",")
	}
	return `{"users":{` + users + `}` + more + `}`
}

// root stores a state.
func (w *world) root(s state) eventgraph.Hash {
	w.t.Helper()
	trie := eventgraph.OpenTrie(w, eventgraph.Hash{})
	for tuple, id := range s {
		if err := trie.Set(tuple, id, w.heights[id]); err != nil {
			w.t.Fatalf("%v", err)
		}
	}
	h, made := trie.Commit()
	maps.Copy(w.nodes, made)
	return h
}

// resolve resolves in every order of the states (of up to four), and with one of them twice.
func (w *world) resolve(states ...state) state {
	w.t.Helper()
	roots := make([]eventgraph.Hash, len(states))
	for i, s := range states {
		roots[i] = w.root(s)
	}
	var result eventgraph.Hash
	for i, order := range orders(roots) {
		root, made, err := Resolve(w.version, append(order, order[0]), w, w)
		if err != nil {
			w.t.Fatalf("Resolve: %v", err)
		}
		maps.Copy(w.nodes, made)
		if i > 0 && root != result {
			w.t.Errorf("the result depends on the order of the states")
		}
		result = root
	}
	return w.read(result)
}

// resolver is that of two states.
func (w *world) resolver(a, b state) *resolver {
	w.t.Helper()
	return newResolver(w.version, []eventgraph.Hash{w.root(a), w.root(b)}, w, w)
}

func (w *world) read(root eventgraph.Hash) state {
	w.t.Helper()
	s := make(state)
	err := eventgraph.OpenTrie(w, root).Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		s[t] = id
		return nil
	})
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	return s
}

func orders(roots []eventgraph.Hash) [][]eventgraph.Hash {
	if len(roots) <= 1 || len(roots) > 4 {
		return [][]eventgraph.Hash{slices.Clone(roots)}
	}
	var all [][]eventgraph.Hash
	for i := range roots {
		rest := slices.Delete(slices.Clone(roots), i, i+1)
		for _, o := range orders(rest) {
			all = append(all, append([]eventgraph.Hash{roots[i]}, o...))
		}
	}
	return all
}

// where reads "m.room.topic" or "@bob" as a tuple.
func where(place string) eventgraph.StateTuple {
	if strings.HasPrefix(place, "@") {
		return eventgraph.StateTuple{Type: "m.room.member", Key: place + ":a.example"}
	}
	return eventgraph.StateTuple{Type: place}
}
