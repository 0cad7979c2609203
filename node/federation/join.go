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
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
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
// content is that of the membership event beside membership: displayname, avatar_url, reason. It returns when the room is here, or after
// joinPatience when at least a server in the room has let the user in: then what is lacking goes on being fetched, also after a restart.
// While Run runs that is Run's work, else it is the caller's.
func (f *Federation) Join(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error {
	done := make(chan error, 1)
	join := func(ctx context.Context) {
		done <- f.join(ctx, room, user, via, content)
		if j, err := f.storedJoin(room); err != nil || j != nil {
			f.joins.begin(room, func(ctx context.Context) { f.goOn(ctx, room, joinRetry) })
		}
	}
	cancel, running := f.joins.begin(room, join)
	if !running {
		join(ctx)
		return <-done
	}
	patience := time.NewTimer(joinPatience)
	defer patience.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-patience.C:
			if f.letIn(room, user) {
				return nil
			}
			patience.Reset(joinRetry)
		case <-ctx.Done():
			if !f.letIn(room, user) {
				cancel() // nobody waits for it; if it was sent, goOn finds out what came of it
			}
			return ctx.Err()
		}
	}
}

// join is Join without its patience.
func (f *Federation) join(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error {
	unlock, err := f.joining.lock(ctx, room)
	if err != nil {
		return err
	}
	defer unlock()
	if j, err := f.storedJoin(room); err != nil {
		return err
	} else if j != nil { // begun before
		if err := f.resume(ctx, j); err != nil || j.User == user {
			return err
		}
	}
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
	err = f.handshake(ctx, servers, func(server eventgraph.ServerName) error {
		return f.joinVia(ctx, server, room, user, servers, content)
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	if j, failed := f.storedJoin(room); failed != nil {
		return failed
	} else if j != nil { // one has let the user in, of which the others have not heard
		return f.resume(ctx, j)
	}
	return err
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
	_, err = f.Send(ctx, rooms.Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: whole})
	return err
}

// memberContent is content with its membership, and with the authorising user that a template names (restricted joins).
func memberContent(membership string, content, proto json.RawMessage) (json.RawMessage, error) {
	whole := map[string]json.RawMessage{}
	if len(content) > 0 {
		if err := json.Unmarshal(content, &whole); err != nil || whole == nil {
			return nil, &rooms.Refusal{Code: "M_BAD_JSON", Reason: "content is not an object"}
		}
		if canonicaljson.Depth(content) >= canonicaljson.MaxPart { // no template is to blame
			return nil, &rooms.Refusal{Code: "M_BAD_JSON", Reason: "content is nested too deep"}
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

// joinVia joins over one server that is in the room (SS API, Joining Rooms). The others may have to give what this one does not.
func (f *Federation) joinVia(ctx context.Context, server eventgraph.ServerName, room eventgraph.RoomID, user eventgraph.UserID, others []eventgraph.ServerName, content json.RawMessage) error {
	e, err := f.make(ctx, server, "join", room, user, content)
	if err != nil {
		return err
	}
	j := &store.Join{
		Room: room, Version: e.Version(), User: user, Event: e.Raw(), Server: server, Via: others[:min(len(others), maxVia)],
		Since: f.Now().UnixMilli(), Phase: store.JoinSent,
	}
	if traits, _ := e.Version().Traits(); traits.RoomIDFromCreate {
		j.Create = auth.CreateOf(room)
	}
	if before, err := f.storedJoin(room); err != nil {
		return err
	} else if before != nil { // of which the room's servers have not heard: what they list counts from here on
		if err := f.dropJoin(ctx, room, nil); err != nil {
			return err
		}
	}
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutJoin(j) })
	if errors.Is(err, store.ErrTooManyJoins) {
		return &rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: err.Error()}
	} else if err != nil {
		return err
	}
	i := f.importOf(j, e)
	i.elsewhere = len(others) > 0 && server != others[len(others)-1]
	if err := i.send(ctx); err != nil {
		if !i.mayBeIn(ctx, err) {
			return errors.Join(err, f.dropJoin(context.WithoutCancel(ctx), room, nil))
		}
		f.Log.Info("the answer to a join broke off: the rest is asked for", "room", room, "server", server, "arrived", j.Arrived, "err", err)
	}
	return i.complete(ctx)
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
// events as soon as it has taken in the join, and that may be before we have read its answer. If it takes long, takeEarly lets them wait.
func (f *Federation) afterJoins(ctx context.Context, pdus []json.RawMessage) error {
	if f.joining.idle() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxJoinWait)
	defer cancel()
	for _, raw := range pdus {
		room := roomOf(raw)
		if !f.joining.busy(room) {
			continue
		}
		if _, held := f.versionOf(room); held {
			continue
		}
		unlock, err := f.joining.lock(ctx, room)
		if err == nil {
			unlock()
			continue
		}
		if j, err := f.storedJoin(room); err != nil {
			return err
		} else if j == nil || j.Phase == store.JoinSent {
			return &matrixError{Status: http.StatusServiceUnavailable, RetryAfterMS: maxJoinWait.Milliseconds(),
				Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "the room is being joined; send this again later"}}
		}
	}
	return nil
}

func roomOf(pdu json.RawMessage) eventgraph.RoomID {
	var frame struct {
		Room eventgraph.RoomID `json:"room_id"`
	}
	_ = json.Unmarshal(pdu, &frame) // what is no event is of no room
	return frame.Room
}

// takeEarly puts PDUs of rooms that we have been let into, and of which not all has come, into the inbox, where they wait for the room. It returns the others.
// Who is in such a room is not known yet: from servers that were not named as being in it come only so many.
func (f *Federation) takeEarly(ctx context.Context, origin eventgraph.ServerName, pdus []json.RawMessage, results map[eventgraph.EventID]pduResult) (others []json.RawMessage, err error) {
	var items []*store.InboxItem
	for _, raw := range pdus {
		room := roomOf(raw)
		var j *store.Join
		if _, held := f.versionOf(room); !held {
			if j, err = f.storedJoin(room); err != nil {
				return nil, err
			}
		}
		if j == nil || j.Phase == store.JoinSent {
			others = append(others, raw)
			continue
		}
		e, err := eventgraph.ParseEvent(j.Version, raw)
		if err != nil {
			continue // as of any PDU that is none
		}
		if _, twice := results[e.ID()]; twice {
			continue
		}
		known := origin == j.Server || slices.Contains(j.Via, origin)
		if !known && !f.fromOutside.Allow() {
			results[e.ID()] = pduResult{Error: "the origin is not known to be in the room"}
			continue
		}
		item, err := f.holdBack(ctx, room, e, giver{server: origin}, 0)
		switch {
		case errors.Is(err, errTooManyWaiting):
			results[e.ID()] = noPlace
			continue
		case err != nil:
			return nil, err
		case item != nil:
			items = append(items, item)
		}
		results[e.ID()] = pduResult{}
	}
	err = f.putInbox(ctx, items)
	if errors.Is(err, store.ErrInboxFull) {
		for _, item := range items {
			results[item.ID] = noPlace
		}
		err = nil
	}
	return others, err
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
