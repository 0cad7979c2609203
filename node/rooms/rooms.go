// Package rooms decides what enters a room: Send for events made here, Accept for every event. It is the only writer of
// events, and knows no network: Accept says what is missing, its caller fetches it.
//
// Each room has one writer at a time; it takes events in runs, each on the uncommitted result of the one before,
// and commits a run together. Readers use snapshots.
package rooms

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

type Config struct {
	Store *store.Store
	Key   eventgraph.SigningKey // the device key under our server name
	Now   func() time.Time
	Log   *slog.Logger
}

// Rooms is for concurrent use.
type Rooms struct{}

func New(c Config) *Rooms                      { panic("rooms: skeleton") }
func (r *Rooms) Close()                        { panic("rooms: skeleton") } // waits for writers
func (r *Rooms) Server() eventgraph.ServerName { panic("rooms: skeleton") }

// Key makes Rooms an eventgraph.KeyRing over the key documents that the store keeps.
func (r *Rooms) Key(server eventgraph.ServerName, id eventgraph.KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	panic("rooms: skeleton")
}

// Refusal is why an event cannot be sent or taken in; clientapi turns Code into a Matrix error.
type Refusal struct {
	Code   string // M_FORBIDDEN, M_NOT_FOUND, M_TOO_LARGE, M_BAD_JSON, M_UNSUPPORTED_ROOM_VERSION, …
	Reason string // plain words
}

func (r *Refusal) Error() string { return r.Code + ": " + r.Reason }

// MissingError is what must be obtained before Accept can go on.
type MissingError struct {
	Events      []eventgraph.EventID // not held in any verdict: prev or auth events
	Keys        []KeyNeeded
	StateBefore bool // parents were not to be had: call again with Claimed
}

type KeyNeeded struct {
	Server eventgraph.ServerName
	ID     eventgraph.KeyID
	TS     int64 // must be valid then (ms)
}

func (m *MissingError) Error() string {
	return fmt.Sprintf("missing %d events, %d keys", len(m.Events), len(m.Keys))
}

// BasisKind is what an event rests on (design.md §3.1).
type BasisKind uint8

const (
	Parents BasisKind = iota // its prev_events, all held
	Claimed                  // the state before it as a room server claims it
	Nothing                  // nothing: an outlier
)

type Basis struct {
	Kind     BasisKind
	State    []eventgraph.EventID  // Claimed: all held, at least as outliers
	Backfill bool                  // before the timeline: moves backward extremities, makes no ChangeEvent
	Origin   eventgraph.ServerName // whence it came, for the log
}

// Result of Accept. Already: the event was held with this verdict before (an outlier that gets its place is not Already).
type Result struct {
	Verdict  store.Verdict
	Reason   string // why rejected or soft-failed
	Already  bool
	Position store.Position
}

// Accept is the only way in: signatures, content hash, auth by auth events, by the state before, by the current state; then one commit.
// It returns *MissingError, *Refusal (nothing stored: bad signature, room unknown, sender's server
// denied by ACL, too large), or errors of the store. A rejected or soft-failed event is stored and is no error.
func (r *Rooms) Accept(ctx context.Context, e *eventgraph.Event, b Basis) (Result, error) {
	panic("rooms: skeleton")
}

// AcceptAll is Accept for a run of events of one room, in order; it stops at the first that cannot be taken in now (Missing),
// after committing those before; a Refusal is in its Outcome and the run goes on.
func (r *Rooms) AcceptAll(ctx context.Context, events []*eventgraph.Event, b Basis) ([]Outcome, error) {
	panic("rooms: skeleton")
}

type Outcome struct {
	Result
	Err error // *Refusal or *MissingError
}

// Draft is what a local user wants to send.
type Draft struct {
	Room     eventgraph.RoomID
	Sender   eventgraph.UserID
	Type     string
	StateKey *string
	Content  json.RawMessage
	Redacts  eventgraph.EventID
	Txn      *store.ClientTxn // recorded with the event, under endpoint "send"
	TS       int64            // ms; 0 = now (application services may set it)
}

// Send builds on at most 20 forward extremities, signs, and puts it through Accept. Sending a state event equal to the current
// one answers that one's ID without a new event. *Refusal says why not (auth rules, not in the room, too large).
func (r *Rooms) Send(ctx context.Context, d Draft) (eventgraph.EventID, error) {
	panic("rooms: skeleton")
}

// Build is Send without Accept: for invites that a remote server must sign first; Accept it with Parents afterwards.
func (r *Rooms) Build(ctx context.Context, d Draft) (*eventgraph.Event, error) {
	panic("rooms: skeleton")
}

// CreateRequest makes a room. Drafts after the create event and the creator's join are sent in order in one run: power levels,
// preset state, initial_state, name, topic, invites of local users. Room and sender are filled in.
type CreateRequest struct {
	Version     eventgraph.RoomVersion // "" = default
	Creator     eventgraph.UserID
	Content     json.RawMessage // of m.room.create; may carry additional_creators, type, predecessor
	JoinContent json.RawMessage // of the creator's m.room.member: displayname, avatar_url
	Then        []Draft
	// Alias, Published: recorded in the same commit.
	Alias     eventgraph.RoomAlias
	Published bool
}

// Create makes the whole room in one commit.
func (r *Rooms) Create(ctx context.Context, c CreateRequest) (eventgraph.RoomID, error) {
	panic("rooms: skeleton")
}

// Template makes the event template of make_join, make_leave and make_knock (auth-checked), for a remote user; and for our own use
// with restricted joins sets join_authorised_via_users_server. reason in *Refusal, Code M_UNABLE_TO_AUTHORISE_JOIN, M_FORBIDDEN, ….
func (r *Rooms) Template(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, membership string) (json.RawMessage, eventgraph.RoomVersion, error) {
	panic("rooms: skeleton")
}

// ImportJoin makes a room exist here from the answer of send_join: verifies all (all cores), stores in invisible batches, and one last small
// transaction makes the room and the join visible. Events that fail signature or auth are dropped, and with them what rests on
// them; it fails if the join itself is not allowed by the state so checked. If the room already exists here, the join is
// accepted with basis Claimed.
func (r *Rooms) ImportJoin(ctx context.Context, join *eventgraph.Event, state, authChain []*eventgraph.Event) error {
	panic("rooms: skeleton")
}

// ReceiveInvite keeps an invite (or, for a knock we sent, its stripped state) for a local user to a room that we are not in.
func (r *Rooms) ReceiveInvite(ctx context.Context, invite *eventgraph.Event, stripped []json.RawMessage, via eventgraph.ServerName) error {
	panic("rooms: skeleton")
}

// LeaveOutside records that a local user has rejected an invite to (or withdrawn a knock from) a room that we are not in.
func (r *Rooms) LeaveOutside(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID) error {
	panic("rooms: skeleton")
}

// State is the state of a room at one root, read lazily from a snapshot of the store; an auth.State.
// It may be used after the snapshot that it was taken from: nodes and events of current and event states are kept.
type State struct{}

func (r *Rooms) CurrentState(room eventgraph.RoomID) (*State, error) { panic("rooms: skeleton") } // ErrNotFound
func (r *Rooms) StateAt(room eventgraph.RoomID, root eventgraph.Hash) *State {
	panic("rooms: skeleton")
}
func (s *State) Root() eventgraph.Hash                                    { panic("rooms: skeleton") }
func (s *State) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) { panic("rooms: skeleton") }
func (s *State) EventID(t eventgraph.StateTuple) (eventgraph.EventID, bool, error) {
	panic("rooms: skeleton")
}
func (s *State) Walk(f func(t eventgraph.StateTuple, id eventgraph.EventID) error) error {
	panic("rooms: skeleton")
}

// Servers lists the servers with a joined user, sorted; InRoom answers for one (cached, cheap).
func (r *Rooms) Servers(room eventgraph.RoomID) ([]eventgraph.ServerName, error) {
	panic("rooms: skeleton")
}
func (r *Rooms) InRoom(room eventgraph.RoomID, server eventgraph.ServerName) bool {
	panic("rooms: skeleton")
}

// ServerAllowed applies the room's current m.room.server_acl.
func (r *Rooms) ServerAllowed(room eventgraph.RoomID, server eventgraph.ServerName) bool {
	panic("rooms: skeleton")
}

// MaySeeServer and MaySeeUser apply auth.MaySee to a held event. Every answer to a peer or client goes through one of them.
func (r *Rooms) MaySeeServer(server eventgraph.ServerName, e *store.StoredEvent) (bool, error) {
	panic("rooms: skeleton")
}
func (r *Rooms) MaySeeUser(user eventgraph.UserID, e *store.StoredEvent) (bool, error) {
	panic("rooms: skeleton")
}

// AuthChain returns the events of the auth chains of ids, without ids, bounded by limit (0: none).
func (r *Rooms) AuthChain(ids []eventgraph.EventID, limit int) ([]*eventgraph.Event, error) {
	panic("rooms: skeleton")
}

// EventNear is the event closest in time to ts (ms), forwards or backwards (timestamp_to_event); ErrNotFound.
func (r *Rooms) EventNear(room eventgraph.RoomID, ts int64, forwards bool) (*store.StoredEvent, error) {
	panic("rooms: skeleton")
}
