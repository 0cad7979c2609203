package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxVia is how many servers are tried in turn for a handshake.
	maxVia = 20
	// makeTimeout is how long one server may take to answer make_join, dialling included: the next may be quicker.
	makeTimeout = 10 * time.Second
)

// Join joins a local user to a room over make_join and send_join at one of via (or locally if we are in the room).
// content is that of the membership event beside membership: displayname, avatar_url, reason.
func (f *Federation) Join(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error {
	unlock, err := f.joining.lock(ctx, room)
	if err != nil {
		return err
	}
	defer unlock()
	if f.Rooms.InRoom(room, f.server) {
		err := f.sendHere(ctx, "join", room, user, content)
		if !triesElsewhere(err) {
			return err
		}
	}
	servers, err := f.serversFor(room, user, via)
	if err != nil {
		return err
	}
	return f.handshake(ctx, servers, func(server eventgraph.ServerName) error {
		return f.joinVia(ctx, server, room, user, content)
	})
}

// handshake tries the servers in turn until one lets us act: on its answer the act is done. The error is the first
// that a server answered with, else ErrUnreachable.
func (f *Federation) handshake(ctx context.Context, servers []eventgraph.ServerName, act func(server eventgraph.ServerName) error) error {
	var refused, failed error
	for _, server := range servers {
		err := act(server)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.Log.Info("handshake with a room's server failed", "server", server, "err", err)
		var refusal *rooms.Refusal
		if errors.As(err, &refusal) && (refused == nil || triesElsewhere(refused)) {
			refused = err
		}
		failed = err
	}
	switch {
	case refused != nil:
		return refused
	case failed != nil:
		return fmt.Errorf("%w: none of %d servers of the room, the last because: %v", ErrUnreachable, len(servers), failed)
	}
	return &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "no server is known that is in the room"}
}

// triesElsewhere says whether a refusal means that another server might let the user in (SS API, Restricted rooms).
func triesElsewhere(err error) bool {
	var refusal *rooms.Refusal
	return errors.As(err, &refusal) && (refusal.Code == "M_UNABLE_TO_AUTHORISE_JOIN" || refusal.Code == "M_UNABLE_TO_GRANT_JOIN")
}

// sendHere makes the membership event of a user in a room that we are in. Rooms names who authorises a restricted join.
func (f *Federation) sendHere(ctx context.Context, membership string, room eventgraph.RoomID, user eventgraph.UserID, content json.RawMessage) error {
	whole, err := memberContent(membership, content, json.RawMessage("{}"))
	if err != nil {
		return err
	}
	key := string(user)
	_, err = f.Rooms.Send(ctx, rooms.Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: whole})
	return err
}

// memberContent is content with its membership, and with the authorising user that a template names (restricted joins).
func memberContent(membership string, content, proto json.RawMessage) (json.RawMessage, error) {
	whole := map[string]json.RawMessage{}
	if len(content) > 0 {
		if err := json.Unmarshal(content, &whole); err != nil || whole == nil {
			return nil, &rooms.Refusal{Code: "M_BAD_JSON", Reason: "content is not an object"}
		}
	}
	var template struct {
		Content map[string]json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(proto, &template); err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	const authoriser = "join_authorised_via_users_server"
	delete(whole, authoriser)
	if named, ok := template.Content[authoriser]; ok && membership == "join" {
		whole[authoriser] = named
	}
	whole["membership"] = json.RawMessage(`"` + membership + `"`)
	return marshal(whole)
}

// serversFor lists the servers that may help a user with a room: those named, who invited, those known to be in it; the
// connected ones first.
func (f *Federation) serversFor(room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName) ([]eventgraph.ServerName, error) {
	servers := slices.Clone(via[:min(len(via), maxVia)])
	var member *store.Member
	err := f.Store.View(func(r *store.Reader) (err error) {
		member, err = r.Member(room, user)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if member != nil && member.Outside && member.Via != "" {
		servers = append(servers, member.Via)
	}
	if known, err := f.Rooms.Servers(room); err == nil {
		servers = append(servers, known...)
	} else if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	servers = f.connectedFirst(servers)
	return servers[:min(len(servers), maxVia)], nil
}

// proto is an event template as far as we take it over.
type proto struct {
	RoomID     eventgraph.RoomID    `json:"room_id"`
	Type       string               `json:"type"`
	StateKey   *string              `json:"state_key"`
	Sender     eventgraph.UserID    `json:"sender"`
	Content    json.RawMessage      `json:"content"`
	PrevEvents []eventgraph.EventID `json:"prev_events"`
	AuthEvents []eventgraph.EventID `json:"auth_events"`
	Depth      int64                `json:"depth"`
}

// make asks a server for a template, checks it as the spec demands, and returns the event made from it: finished and signed.
// Of the template only what an event needs is taken over; its content is ours.
func (f *Federation) make(ctx context.Context, server eventgraph.ServerName, membership string, room eventgraph.RoomID, user eventgraph.UserID, content json.RawMessage) (*eventgraph.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	query := url.Values{}
	if membership != "leave" {
		for _, v := range eventgraph.SupportedVersions() {
			query.Add("ver", string(v))
		}
	}
	var answer template
	if err := f.do(ctx, server, http.MethodGet, target(v1+"make_"+membership, []string{string(room), string(user)}, query), nil, &answer); err != nil {
		return nil, err
	}
	if _, ok := answer.Version.Traits(); !ok {
		return nil, &rooms.Refusal{Code: "M_INCOMPATIBLE_ROOM_VERSION", Reason: fmt.Sprintf("room version %q is not supported", answer.Version)}
	}
	var p proto
	if err := json.Unmarshal(answer.Event, &p); err != nil {
		return nil, malformed(server, err.Error())
	}
	var given struct {
		Membership string `json:"membership"`
	}
	switch err := json.Unmarshal(p.Content, &given); {
	case err != nil:
		return nil, malformed(server, err.Error())
	case p.RoomID != room:
		return nil, malformed(server, "template of another room")
	case p.Sender != user || p.StateKey == nil || *p.StateKey != string(user):
		return nil, malformed(server, "template for another user")
	case p.Type != "m.room.member" || given.Membership != membership:
		return nil, malformed(server, "not a template of kind "+membership)
	}
	var err error
	if p.Content, err = memberContent(membership, content, answer.Event); err != nil {
		return nil, err
	}
	finished, err := marshal(p)
	if err != nil {
		return nil, err
	}
	e, err := eventgraph.Finish(answer.Version, finished, f.Rooms.SigningTime(0), f.Key)
	if err != nil {
		return nil, malformed(server, err.Error())
	}
	return e, nil
}

// malformed is an answer that is not what the spec says: as good as none.
func malformed(server eventgraph.ServerName, reason string) error {
	return fmt.Errorf("%w: answer of %s: %s", ErrUnreachable, server, reason)
}

// joinVia joins over one server that is in the room (SS API, Joining Rooms).
func (f *Federation) joinVia(ctx context.Context, server eventgraph.ServerName, room eventgraph.RoomID, user eventgraph.UserID, content json.RawMessage) error {
	e, err := f.make(ctx, server, "join", room, user, content)
	if err != nil {
		return err
	}
	var answer joined
	err = f.doLarge(ctx, server, http.MethodPut, target(v2+"send_join", []string{string(room), string(e.ID())}, nil), json.RawMessage(e.Raw()), &answer, maxState)
	if err != nil {
		return err
	}
	if answer.MembersOmitted {
		return malformed(server, "members omitted, which was not asked for")
	}
	if e, err = withTheirSignature(e, answer.Event); err != nil {
		return malformed(server, err.Error())
	}
	state, chain := parseAll(e.Version(), answer.State), parseAll(e.Version(), answer.AuthChain)
	answer.State, answer.AuthChain = nil, nil // a large room's events are held once
	hints := append([]eventgraph.ServerName{server}, answer.Servers...)
	needed := keysOf(append(append([]*eventgraph.Event{e}, state...), chain...)...)
	if err := f.ensureKeys(ctx, needed, hints); err != nil {
		f.Log.Info("joining with keys missing", "room", room, "err", err) // ImportJoin leaves out what cannot be verified
	}
	return f.Rooms.ImportJoin(ctx, e, state, chain)
}

// withTheirSignature returns the event as the other server gives it back, if it is our event with signatures added (needed for
// restricted joins and invites); without one ours stands.
func withTheirSignature(ours *eventgraph.Event, returned json.RawMessage) (*eventgraph.Event, error) {
	if len(returned) == 0 || string(returned) == "null" {
		return ours, nil
	}
	theirs, err := eventgraph.ParseEvent(ours.Version(), returned)
	if err != nil {
		return nil, err
	}
	if theirs.ID() != ours.ID() || theirs.HashMismatch() {
		return nil, errors.New("the event returned is not the one sent")
	}
	return theirs, nil
}

// parseAll parses the events of a large answer on all cores; those that are not events of the room version are left out.
func parseAll(v eventgraph.RoomVersion, raws []json.RawMessage) []*eventgraph.Event {
	parsed := make([]*eventgraph.Event, len(raws))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	const run = 256
	for from := 0; from < len(raws); from += run {
		group.Go(func() error {
			for i := from; i < min(from+run, len(raws)); i++ {
				if e, err := eventgraph.ParseEvent(v, raws[i]); err == nil {
					parsed[i] = e
				}
			}
			return nil
		})
	}
	group.Wait()
	return slices.DeleteFunc(parsed, func(e *eventgraph.Event) bool { return e == nil })
}

// maxJoinWait is how long a transaction waits for the join of a room that it speaks of: well below its sender's patience.
const maxJoinWait = 5 * time.Second

// afterJoins waits while rooms that the PDUs are of, and that are not held yet, are being joined: a resident sends us the room's
// events as soon as it has taken in the join, and that may be before we have read its answer. If it takes long, the transaction is to be repeated.
func (f *Federation) afterJoins(ctx context.Context, pdus []json.RawMessage) error {
	if f.joining.idle() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxJoinWait)
	defer cancel()
	for _, raw := range pdus {
		var frame struct {
			Room eventgraph.RoomID `json:"room_id"`
		}
		if json.Unmarshal(raw, &frame) != nil || !f.joining.busy(frame.Room) {
			continue
		}
		if _, held := f.versionOf(frame.Room); held {
			continue
		}
		unlock, err := f.joining.lock(ctx, frame.Room)
		if err != nil {
			return &matrixError{Status: http.StatusServiceUnavailable, RetryAfterMS: maxJoinWait.Milliseconds(),
				Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "the room is being joined; send this again later"}}
		}
		unlock()
	}
	return nil
}

// keyedLock is a lock for each room, or server, that somebody waits for. The zero value is ready.
type keyedLock[K comparable] struct {
	mu   sync.Mutex
	held map[K]*waited
}

type waited struct {
	free  chan struct{} // holds one token while nobody has the lock
	users int           // who have it or wait for it
}

func (k *keyedLock[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[K]*waited{}
	}
	w := k.held[key]
	if w == nil {
		w = &waited{free: make(chan struct{}, 1)}
		w.free <- struct{}{}
		k.held[key] = w
	}
	w.users++
	k.mu.Unlock()

	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if w.users--; w.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case <-w.free:
		return func() { w.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// idle says whether nobody has a lock.
func (k *keyedLock[K]) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held) == 0
}

// busy says whether somebody has the lock or waits for it.
func (k *keyedLock[K]) busy(key K) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[key] != nil
}
