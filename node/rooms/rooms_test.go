package rooms

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is one homeserver's rooms over a store in memory.
type server struct {
	*Rooms
	t     testing.TB
	store *store.Store
	key   eventgraph.SigningKey
	doc   *eventgraph.KeyDocument
	now   time.Time
}

// newServer makes a server whose keys follow from its name, and which knows those of others.
func newServer(t testing.TB, name string, others ...*server) *server {
	t.Helper()
	var seed [32]byte
	copy(seed[:], name)
	private := ed25519.NewKeyFromSeed(seed[:])
	public := private.Public().(ed25519.PublicKey)
	s := &server{t: t, now: time.UnixMilli(1_800_000_000_000)}
	s.key = eventgraph.SigningKey{
		Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private,
	}
	var err error
	if s.store, err = store.Open("", store.Options{InMemory: true}); err != nil {
		t.Fatal(err)
	}
	s.doc, err = eventgraph.SignKeyDocument(s.key.Server, []eventgraph.SigningKey{s.key}, nil, nil, s.now.Add(6*24*time.Hour).UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	s.Rooms = New(Config{Store: s.store, Key: s.key, Now: func() time.Time { return s.now }})
	t.Cleanup(func() {
		s.Close()
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, other := range others {
		s.learn(other.doc)
		other.learn(s.doc)
	}
	return s
}

func (s *server) learn(doc *eventgraph.KeyDocument) {
	s.t.Helper()
	_, err := s.store.Update(context.Background(), func(tx *store.Tx) error { return tx.PutKeyDocument(doc) })
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) user(localpart string) eventgraph.UserID {
	return eventgraph.UserID("@" + localpart + ":" + string(s.key.Server))
}

func stateKey(s string) *string { return &s }

// powers makes the drafts of power levels under which all these users have 100, and of a public join rule.
func preset(version eventgraph.RoomVersion, creator eventgraph.UserID, others ...eventgraph.UserID) []Draft {
	users := map[string]int{}
	traits, _ := version.Traits()
	if !traits.PrivilegedCreators {
		users[string(creator)] = 100
	}
	for _, u := range others {
		users[string(u)] = 100
	}
	levels, _ := json.Marshal(map[string]any{"users": users})
	return []Draft{
		{Type: "m.room.power_levels", StateKey: stateKey(""), Content: levels},
		{Type: "m.room.join_rules", StateKey: stateKey(""), Content: json.RawMessage(`{"join_rule":"public"}`)},
	}
}

func (s *server) create(version eventgraph.RoomVersion, creator eventgraph.UserID, others ...eventgraph.UserID) eventgraph.RoomID {
	s.t.Helper()
	room, err := s.Create(context.Background(), CreateRequest{Version: version, Creator: creator, Then: preset(version, creator, others...)})
	if err != nil {
		s.t.Fatalf("create: %v", err)
	}
	return room
}

func (s *server) message(room eventgraph.RoomID, user eventgraph.UserID, body string) eventgraph.EventID {
	s.t.Helper()
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	return s.send(Draft{Room: room, Sender: user, Type: "m.room.message", Content: content})
}

func (s *server) setState(room eventgraph.RoomID, user eventgraph.UserID, kind, key, content string) eventgraph.EventID {
	s.t.Helper()
	return s.send(Draft{Room: room, Sender: user, Type: kind, StateKey: &key, Content: json.RawMessage(content)})
}

func (s *server) send(d Draft) eventgraph.EventID {
	s.t.Helper()
	s.now = s.now.Add(time.Second)
	id, err := s.Send(context.Background(), d)
	if err != nil {
		s.t.Fatalf("send %s: %v", d.Type, err)
	}
	return id
}

func (s *server) event(id eventgraph.EventID) *store.StoredEvent {
	s.t.Helper()
	e, err := s.stored(id)
	if err != nil {
		s.t.Fatalf("event %s: %v", id, err)
	}
	return e
}

func (s *server) record(room eventgraph.RoomID) *store.Room {
	s.t.Helper()
	var record *store.Room
	err := s.store.View(func(r *store.Reader) (err error) { record, err = r.Room(room); return err })
	if err != nil {
		s.t.Fatal(err)
	}
	return record
}

// pdu is the event as it arrives elsewhere.
func pdu(t testing.TB, e *eventgraph.Event) *eventgraph.Event {
	t.Helper()
	parsed, err := eventgraph.ParseEvent(e.Version(), slices.Clone(e.Raw()))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// join lets user of s join a room that via is in, as over make_join and send_join.
func (s *server) join(via *server, room eventgraph.RoomID, user eventgraph.UserID) eventgraph.EventID {
	s.t.Helper()
	ctx := context.Background()
	proto, version, err := via.Template(ctx, room, user, "join")
	if err != nil {
		s.t.Fatalf("make_join: %v", err)
	}
	join, err := eventgraph.Finish(version, proto, s.now.UnixMilli(), s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	if r, err := via.Accept(ctx, pdu(s.t, join), Basis{Origin: s.key.Server}); err != nil || r.Verdict != store.Accepted {
		s.t.Fatalf("send_join: %+v, %v", r, err)
	}
	state, chain := via.stateAndChain(room, via.event(join.ID()).StateBefore)
	if err := s.takeJoin(join, state, chain); err != nil {
		s.t.Fatalf("import: %v", err)
	}
	return join.ID()
}

// takeJoin does with an answer of send_join what federation does.
func (s *server) takeJoin(join *eventgraph.Event, state, chain []*eventgraph.Event) error {
	s.t.Helper()
	n := NewRoom{Version: join.Version()}
	seen := map[eventgraph.EventID]bool{}
	var all []*eventgraph.Event
	var ids []eventgraph.EventID
	for _, e := range append(slices.Clone(chain), state...) {
		if !seen[e.ID()] {
			seen[e.ID()] = true
			all = append(all, e)
		}
	}
	for _, e := range state {
		ids = append(ids, e.ID())
		if e.Type() == "m.room.create" {
			n.Create = e.ID()
		}
	}
	for part := range slices.Chunk(eventgraph.SortTopologically(all), 100) {
		outcomes, err := s.AcceptAll(context.Background(), part, Basis{Kind: Nothing, New: &n})
		if err != nil {
			return err
		}
		for i, o := range outcomes {
			if o.Err != nil {
				s.t.Logf("left out: %s: %v", part[i].ID(), o.Err)
			}
		}
	}
	return s.Enter(context.Background(), join, n, ids)
}

func (s *server) stateAndChain(room eventgraph.RoomID, root eventgraph.Hash) (state, chain []*eventgraph.Event) {
	s.t.Helper()
	var ids []eventgraph.EventID
	err := s.StateAt(room, root).Walk(func(_ eventgraph.StateTuple, id eventgraph.EventID) error {
		ids = append(ids, id)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, id := range ids {
		state = append(state, pdu(s.t, s.event(id).Event))
	}
	events, err := s.AuthChain(ids, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, id := range events {
		chain = append(chain, pdu(s.t, s.event(id).Shown()))
	}
	return state, chain
}

// give sends to other what s has taken into its timeline after a position, and returns the newest.
func (s *server) give(other *server, room eventgraph.RoomID, after store.Position) store.Position {
	s.t.Helper()
	last := after
	var events []*eventgraph.Event
	err := s.store.View(func(r *store.Reader) error {
		return r.Changes(after, s.store.Position(), func(p store.Position, c store.Change) (bool, error) {
			last = p
			if c.Kind != store.ChangeEvent || c.Room != room {
				return true, nil
			}
			e, err := r.Event(c.Event)
			if err != nil {
				return false, err
			}
			events = append(events, pdu(s.t, e.Event))
			return true, nil
		})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	outcomes, err := other.AcceptAll(context.Background(), events, Basis{Origin: s.key.Server})
	if err != nil {
		s.t.Fatal(err)
	}
	for i, o := range outcomes {
		if o.Err != nil {
			s.t.Errorf("%s of type %s: %v", events[i].ID(), events[i].Type(), o.Err)
		}
	}
	return last
}

func (s *server) sameState(other *server, room eventgraph.RoomID) {
	s.t.Helper()
	a, b := s.record(room), other.record(room)
	if a.State != b.State {
		s.t.Errorf("state hashes differ: %x and %x", a.State[:4], b.State[:4])
	}
	if !slices.Equal(a.Forward, b.Forward) {
		s.t.Errorf("forward extremities differ: %v and %v", a.Forward, b.Forward)
	}
}

func wantRefusal(t *testing.T, err error, code string) {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Code != code {
		t.Errorf("got %v, want a Refusal with %s", err, code)
	}
}

func TestEveryRoomVersion(t *testing.T) {
	t.Parallel()
	for _, version := range eventgraph.SupportedVersions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			a := newServer(t, "a")
			b := newServer(t, "b", a)
			alice, bob := a.user("alice"), b.user("bob")
			room := a.create(version, alice, bob)
			a.setState(room, alice, "m.room.topic", "", `{"topic":"first"}`)
			before := a.store.Position()
			b.join(a, room, bob)
			after := b.store.Position()
			b.message(room, bob, "hello")
			before = a.give(b, room, before)
			after = b.give(a, room, after)
			a.sameState(b, room)

			// Both change the same on their own side, then merge.
			a.setState(room, alice, "m.room.topic", "", `{"topic":"of alice"}`)
			b.setState(room, bob, "m.room.topic", "", `{"topic":"of bob"}`)
			b.setState(room, bob, "m.room.name", "", `{"name":"of bob"}`)
			a.message(room, alice, "apart")
			a.give(b, room, before)
			b.give(a, room, after)
			a.sameState(b, room)
			if got := len(a.record(room).Forward); got != 2 {
				t.Errorf("%d forward extremities before the merge, want 2", got)
			}
			before = a.store.Position()
			a.message(room, alice, "together")
			a.give(b, room, before)
			a.sameState(b, room)
			if got := len(b.record(room).Forward); got != 1 {
				t.Errorf("%d forward extremities after the merge, want 1", got)
			}
			servers, err := b.Servers(room)
			if err != nil || len(servers) != 2 {
				t.Errorf("servers %v, %v", servers, err)
			}
		})
	}
}
