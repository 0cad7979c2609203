package auth

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// room builds events of one room, written as lines: type, state key ("-" for none, "”" for the empty one), sender and
// content. "@name" stands for a user of server a.example, "@name:b" for one of b.example.
type room struct {
	version eventgraph.RoomVersion
	traits  eventgraph.Traits
	id      eventgraph.RoomID
	create  *eventgraph.Event
	state   given
	ts      int64
}

// given is a state.
type given map[eventgraph.StateTuple]*eventgraph.Event

func (g given) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) { return g[t], nil }

func draftOf(e *eventgraph.Event) eventgraph.Draft {
	d := eventgraph.Draft{Type: e.Type(), Sender: e.Sender(), Content: e.Content()}
	if key, ok := e.StateKey(); ok {
		d.StateKey = &key
	}
	return d
}

// base is the state that the rows start from. Only @alice has created the room, only @admin has 100.
var base = []string{
	`m.room.member @alice @alice {"membership":"join"}`,
	`m.room.power_levels '' @alice {"users":{"@admin":100,"@mod":50,"@peer":50}}`,
	`m.room.join_rules '' @alice {"join_rule":"invite"}`,
	`m.room.member @admin @admin {"membership":"join"}`,
	`m.room.member @mod @mod {"membership":"join"}`,
	`m.room.member @peer @peer {"membership":"join"}`,
	`m.room.member @carol @carol {"membership":"join"}`,
	`m.room.member @erin:b @erin:b {"membership":"join"}`,
	`m.room.member @invited @carol {"membership":"invite"}`,
	`m.room.member @banned @admin {"membership":"ban"}`,
	`m.room.member @knocker @knocker {"membership":"knock"}`,
	`m.room.member @gone @gone {"membership":"leave"}`,
}

func newRoom(t *testing.T, v eventgraph.RoomVersion, createContent string) *room {
	t.Helper()
	traits, ok := v.Traits()
	if !ok {
		t.Fatalf("room version %s is not supported", v)
	}
	r := &room{version: v, traits: traits, state: make(given)}
	if !traits.RoomIDFromCreate {
		r.id = "!room:a.example"
	}
	if createContent == "" {
		createContent = fmt.Sprintf(`{"creator":"@alice","room_version":%q}`, v)
	}
	r.create = r.event(t, `m.room.create '' @alice `+createContent, nil)
	r.id = r.create.RoomID()
	r.state[tupleCreate] = r.create
	return r
}

// with puts events into the state.
func (r *room) with(t *testing.T, lines ...string) *room {
	t.Helper()
	for _, line := range lines {
		if tuple, ok := strings.CutPrefix(line, "without "); ok {
			d := r.draft(t, tuple+" @alice {}")
			delete(r.state, eventgraph.StateTuple{Type: d.Type, Key: *d.StateKey})
			continue
		}
		e := r.event(t, line, nil)
		tuple, _ := e.Tuple()
		r.state[tuple] = e
	}
	return r
}

var userShort = regexp.MustCompile(`@(\w+)(:\w+\.example|:\w)?\b`)

func expand(s string) string {
	return userShort.ReplaceAllStringFunc(s, func(u string) string {
		if strings.HasSuffix(u, ".example") {
			return u
		}
		if name, server, ok := strings.Cut(u, ":"); ok {
			return name + ":" + server + ".example"
		}
		return u + ":a.example"
	})
}

func (r *room) draft(t *testing.T, line string) eventgraph.Draft {
	t.Helper()
	parts := strings.SplitN(expand(line), " ", 4)
	if len(parts) != 4 {
		t.Fatalf("no event: %s", line)
	}
	r.ts++
	d := eventgraph.Draft{
		RoomID: r.id, Type: parts[0], Sender: eventgraph.UserID(parts[2]), Content: json.RawMessage(parts[3]),
		OriginServerTS: r.ts, Depth: 1,
	}
	switch key := parts[1]; key {
	case "-":
	case "''":
		d.StateKey = new(string)
	default:
		d.StateKey = &key
	}
	return d
}

// event builds it, with the auth events that the room's state has for it, and changed by change.
func (r *room) event(t *testing.T, line string, change func(*eventgraph.Draft)) *eventgraph.Event {
	t.Helper()
	d := r.draft(t, line)
	if d.Type != typeCreate {
		d.PrevEvents = []eventgraph.EventID{"$" + eventgraph.EventID(strings.Repeat("A", 43))}
	}
	for _, tuple := range Selection(r.version, d) {
		if e := r.state[tuple]; e != nil {
			d.AuthEvents = append(d.AuthEvents, e.ID())
		}
	}
	if change != nil {
		change(&d)
	}
	e, err := eventgraph.Build(r.version, d, keyOf(string(d.Sender.Server())))
	if err != nil {
		t.Fatalf("building %s: %v", line, err)
	}
	return e
}

// authEvents are what CheckAuthEvents wants for e.
func (r *room) authEvents(e *eventgraph.Event) []*eventgraph.Event {
	var events []*eventgraph.Event
	for _, held := range r.state {
		for _, id := range e.AuthEvents() {
			if held.ID() == id {
				events = append(events, held)
			}
		}
	}
	if r.traits.RoomIDFromCreate {
		events = append(events, r.create)
	}
	return events
}

var keys sync.Map // of SigningKey, by server

// keyOf is the key whose seed is the server's name, padded with zero bytes.
func keyOf(server string) eventgraph.SigningKey {
	if k, ok := keys.Load(server); ok {
		return k.(eventgraph.SigningKey)
	}
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, server)
	k := eventgraph.SigningKey{Server: eventgraph.ServerName(server), ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(seed)}
	keys.Store(server, k)
	return k
}

// expect compares a verdict.
func expect(t *testing.T, err error, rule string) {
	t.Helper()
	var refused *Refused
	switch {
	case err == nil && rule == "ok":
	case err == nil:
		t.Errorf("allowed, want refused by rule %s", rule)
	case !errors.As(err, &refused):
		t.Errorf("error %v, want verdict %s", err, rule)
	case refused.Rule != rule:
		t.Errorf("%v, want %s", err, rule)
	}
}
