package auth_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// state is a room state in memory.
type state map[eventgraph.StateTuple]*eventgraph.Event

func (s state) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) { return s[t], nil }

// A room of one: its creator may speak, somebody else may not.
func ExampleCheck() {
	key := eventgraph.SigningKey{Server: "a.example", ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}
	room := state{}
	var last []eventgraph.EventID
	send := func(d eventgraph.Draft) error {
		if create := room[eventgraph.StateTuple{Type: "m.room.create"}]; create != nil {
			d.RoomID = create.RoomID()
		}
		d.PrevEvents = last
		for _, tuple := range auth.Selection("12", d) {
			if e := room[tuple]; e != nil {
				d.AuthEvents = append(d.AuthEvents, e.ID())
			}
		}
		e, err := eventgraph.Build("12", d, key)
		if err != nil {
			log.Fatal(err)
		}
		if err := auth.Check(e, room); err != nil {
			return err
		}
		last = []eventgraph.EventID{e.ID()}
		if tuple, ok := e.Tuple(); ok {
			room[tuple] = e
		}
		return nil
	}
	alice, none := "@alice:a.example", ""

	fmt.Println(send(eventgraph.Draft{
		Type: "m.room.create", StateKey: &none, Sender: "@alice:a.example", Content: json.RawMessage(`{"room_version":"12"}`),
	}))
	fmt.Println(send(eventgraph.Draft{
		Type: "m.room.member", StateKey: &alice, Sender: "@alice:a.example", Content: json.RawMessage(`{"membership":"join"}`),
	}))
	message := eventgraph.Draft{Type: "m.room.message", Sender: "@alice:a.example", Content: json.RawMessage(`{"body":"hello"}`)}
	fmt.Println(send(message))
	message.Sender = "@mallory:a.example"
	err := send(message)
	fmt.Println(err)
	var refused *auth.Refused
	fmt.Println(errors.As(err, &refused), refused.Rule)
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// not authorized by rule 6: the sender is not joined
	// true 6
}
