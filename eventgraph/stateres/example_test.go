package stateres_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
)

// room keeps events and trie nodes in memory.
type room struct {
	events map[eventgraph.EventID]stateres.Held
	nodes  map[eventgraph.Hash][]byte
}

func (r *room) Event(id eventgraph.EventID) (stateres.Held, error) {
	if e, ok := r.events[id]; ok {
		return e, nil
	}
	return stateres.Held{}, errors.New("no such event")
}

func (r *room) CitedBy(id eventgraph.EventID, f func(eventgraph.EventID) bool) error {
	for by, e := range r.events {
		if slices.Contains(e.AuthEvents(), id) && !f(by) {
			break
		}
	}
	return nil
}

func (r *room) TrieNode(h eventgraph.Hash) ([]byte, error) {
	if n, ok := r.nodes[h]; ok {
		return n, nil
	}
	return nil, errors.New("no such node")
}

// send builds a state event upon a state and returns the state after it.
func (r *room) send(before eventgraph.Hash, eventType, key, content string) eventgraph.Hash {
	alice := eventgraph.SigningKey{Server: "a.example", ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}
	d := eventgraph.Draft{
		RoomID: "!r:a.example", Type: eventType, StateKey: &key, Sender: "@alice:a.example",
		Content: json.RawMessage(content), OriginServerTS: int64(len(r.events)),
	}
	trie, height := eventgraph.OpenTrie(r, before), uint32(0)
	for _, tuple := range auth.Selection("11", d) {
		id, ok, err := trie.Get(tuple)
		if err != nil {
			log.Fatal(err)
		}
		if ok {
			d.AuthEvents = append(d.AuthEvents, id)
			height = max(height, r.events[id].Height+1)
		}
	}
	e, err := eventgraph.Build("11", d, alice)
	if err != nil {
		log.Fatal(err)
	}
	r.events[e.ID()] = stateres.Held{Event: e, Height: height}
	if err := trie.Set(eventgraph.StateTuple{Type: eventType, Key: key}, e.ID(), height); err != nil {
		log.Fatal(err)
	}
	after, made := trie.Commit()
	maps.Copy(r.nodes, made)
	return after
}

// A room forks: on one side a topic is set, on the other side another one and, later, a name.
func ExampleResolve() {
	r := &room{events: map[eventgraph.EventID]stateres.Held{}, nodes: map[eventgraph.Hash][]byte{}}
	base := r.send(eventgraph.Hash{}, "m.room.create", "", `{"room_version":"11"}`)
	base = r.send(base, "m.room.member", "@alice:a.example", `{"membership":"join"}`)

	one := r.send(base, "m.room.topic", "", `{"topic":"earlier"}`)
	other := r.send(base, "m.room.topic", "", `{"topic":"later"}`)
	other = r.send(other, "m.room.name", "", `{"name":"only here"}`)

	root, made, err := stateres.Resolve("11", []eventgraph.Hash{one, other}, r, r)
	if err != nil {
		log.Fatal(err)
	}
	maps.Copy(r.nodes, made)
	for _, eventType := range []string{"m.room.topic", "m.room.name"} {
		id, _, err := eventgraph.OpenTrie(r, root).Get(eventgraph.StateTuple{Type: eventType})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", r.events[id].Content())
	}
	// Output:
	// {"topic":"later"}
	// {"name":"only here"}
}
