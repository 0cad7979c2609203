package eventgraph_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// oneKey is a ring that knows one key of one server.
type oneKey eventgraph.SigningKey

func (k oneKey) Key(server eventgraph.ServerName, id eventgraph.KeyID, _ int64, _ bool) (ed25519.PublicKey, error) {
	if server != k.Server || id != k.ID {
		return nil, eventgraph.ErrKeyUnknown
	}
	return k.Private.Public().(ed25519.PublicKey), nil
}

// An event is built and signed on one server, and parsed and checked on another.
func Example() {
	key := eventgraph.SigningKey{Server: "a.example", ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}
	built, err := eventgraph.Build("12", eventgraph.Draft{
		RoomID:         "!wbtGSc5hEwWlgFvzIxYxKFyp2HoVlktoVkTUIDJpdP8",
		Type:           "m.room.message",
		Sender:         "@alice:a.example",
		Content:        json.RawMessage(`{"msgtype": "m.text", "body": "hello"}`),
		Depth:          7,
		OriginServerTS: 1_700_000_000_000,
	}, key)
	if err != nil {
		log.Fatal(err)
	}

	received, err := eventgraph.ParseEvent("12", built.Raw())
	if err != nil {
		log.Fatal(err) // not an event of that room version, or too large
	}
	fmt.Println("same ID:", received.ID() == built.ID())
	fmt.Println("content hash fits:", !received.HashMismatch())
	fmt.Println("must be signed by:", received.RequiredSigners())
	fmt.Println("signature:", received.VerifySignatures(oneKey(key)))
	fmt.Printf("content: %s\n", received.Content())
	fmt.Printf("redacted: %s\n", received.Redact().Content())

	key.Server = "b.example"
	err = received.VerifySignatures(oneKey(key))
	fmt.Println("key must be fetched:", errors.Is(err, eventgraph.ErrKeyUnknown))
	// Output:
	// same ID: true
	// content hash fits: true
	// must be signed by: [a.example]
	// signature: <nil>
	// content: {"body":"hello","msgtype":"m.text"}
	// redacted: {}
	// key must be fetched: true
}

// memory keeps trie nodes.
type memory map[eventgraph.Hash][]byte

func (m memory) TrieNode(h eventgraph.Hash) ([]byte, error) {
	if node, ok := m[h]; ok {
		return node, nil
	}
	return nil, errors.New("no such node")
}

// Room state as a trie: a change makes a few new nodes and shares the others, and two states differ by what Diff says.
func ExampleTrie() {
	nodes := memory{}
	commit := func(t *eventgraph.Trie) eventgraph.Hash {
		root, made := t.Commit()
		for h, node := range made {
			nodes[h] = node
		}
		return root
	}

	state := eventgraph.OpenTrie(nodes, eventgraph.Hash{})
	for i, tuple := range []eventgraph.StateTuple{
		{Type: "m.room.create"}, {Type: "m.room.member", Key: "@alice:a.example"}, {Type: "m.room.topic"},
	} {
		if err := state.Set(tuple, eventgraph.EventID(fmt.Sprintf("$event%d", i)), uint32(i)); err != nil {
			log.Fatal(err)
		}
	}
	before := commit(state)
	if err := state.Set(eventgraph.StateTuple{Type: "m.room.topic"}, "$event3", 2); err != nil {
		log.Fatal(err)
	}
	after := commit(state)

	err := eventgraph.Diff(nodes, before, after, func(d eventgraph.Difference) error {
		fmt.Println(d.Tuple.Type, d.A, "->", d.B)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// m.room.topic $event2 -> $event3
}
