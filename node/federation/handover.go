package federation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// So that somebody can be written to for the first time while their server is away, each server hands over to those with which it shares a room
// what such a message needs: of each local user who is in a shared room the key bundle (Local), signed by the server. It does so when it meets one,
// and when keys or memberships have changed since:
//
//	giver  sum       of all that it would give
//	taker  level     it has that: the end, after some 100 bytes
//	       or empty
//	giver  users     each with the digest of the bundle
//	taker  want      those that it has not
//	giver  keys      them, in chunks
//	taker  level     if all was in order
//
// What was taken can be handed on, since it is signed: who misses it asks (Want at the beginning) a server that shares a room with the user.

// protocolHandover is spoken on streams of its own; who does not know it is asked for keys by the spec's endpoints alone.
const protocolHandover = "/plexus/keys/1"

const (
	// handoverChunk is the size after which a message of bundles ends: 16 s at 16 kbit/s.
	handoverChunk = 32 << 10
	// maxHandoverMessage bounds a message: a list of store.MaxHandedUsers users, or a chunk and one bundle more.
	maxHandoverMessage = 512 << 10
	// maxAskedBundles is how many users one question to a third server names, and maxBundleGivers how many servers are asked.
	maxAskedBundles = 100
	maxBundleGivers = 3
	// handoversAtOnce and handoversServed bound the exchanges that go on, as giver and as taker (slots).
	handoversAtOnce = 4
	handoversServed = 8
	// maxHandoverAnswer bounds the answer to a sum.
	maxHandoverAnswer = 1 << 10
	// handoverDelay gathers what changes together; a client uploads several keys one after the other.
	handoverDelay = 3 * time.Second
	// handoverSoon gathers those who are met together.
	handoverSoon = 300 * time.Millisecond
	// handoverRetry and handoverSeldom bound the time until a peer that did not take all is tried again.
	handoverRetry  = 10 * time.Second
	handoverSeldom = 10 * time.Minute
	// digestSize is the bytes of a digest or sum: nobody gains by a collision, for bundles are the giver's own.
	digestSize = 16
)

// keysMessage is any message of the protocol.
type keysMessage struct {
	Sum   []byte                       `json:"sum,omitempty"`
	Level bool                         `json:"level,omitempty"`
	Users map[eventgraph.UserID][]byte `json:"users,omitempty"`
	Want  []eventgraph.UserID          `json:"want,omitempty"`
	Keys  []json.RawMessage            `json:"keys,omitempty"`
	More  bool                         `json:"more,omitempty"`
}

// signedBundle is a bundle as signed by the user's server.
type signedBundle struct {
	User       eventgraph.UserID `json:"user_id"`
	TS         int64             `json:"origin_server_ts"`
	Bundle     json.RawMessage   `json:"bundle"`
	Signatures json.RawMessage   `json:"signatures,omitempty"`
}

// ownBundle is a local user's.
type ownBundle struct {
	raw    json.RawMessage // canonical; nil: there is nothing to give
	digest []byte
}

// handover hands our users' keys over.
type handover struct {
	f       *Federation
	giving  *slots
	changed chan struct{} // holds a token when keys or memberships have changed

	mu    sync.Mutex
	stale map[eventgraph.UserID]bool // whose bundle has changed
	now   *ownKeys                   // what is handed over
}

// ownKeys are the bundles of the local users who have one, with the rooms that they are in. It is immutable.
type ownKeys struct {
	bundles map[eventgraph.UserID]*ownBundle // also of those who have none
	rooms   map[eventgraph.UserID][]eventgraph.RoomID
}

func newHandover(f *Federation) *handover {
	return &handover{f: f, giving: newSlots(handoversAtOnce), changed: make(chan struct{}, 1), stale: map[eventgraph.UserID]bool{}, now: &ownKeys{}}
}

// handedTo is what a peer was given over a connection.
type handedTo struct {
	sum    []byte
	failed int
	next   time.Time // not before, if it failed
}

// runHandover hands keys over and takes them, until ctx ends.
func (f *Federation) runHandover(ctx context.Context) error {
	h := newHandover(f)
	f.serveExchanges(protocolHandover, "keys", newSlots(handoversServed), h.serve)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.follow(ctx, f.Store.Position()) })
	group.Go(func() error {
		v := &visits{f: f, changed: h.changed, soon: handoverSoon, later: handoverDelay, seldom: handoverSeldom, prepare: h.refresh}
		v.begin = func(c contact) func(context.Context) time.Duration {
			t := &handedTo{}
			return func(ctx context.Context) time.Duration { return h.visit(ctx, c, t) }
		}
		return v.run(ctx)
	})
	return group.Wait()
}

// follow notes whose bundles have changed, and that rooms are shared with others than before.
func (h *handover) follow(ctx context.Context, from store.Position) error {
	for {
		upTo, err := h.f.Store.Wait(ctx, from)
		if err != nil {
			return err
		}
		news := false
		err = h.f.Store.View(func(r *store.Reader) error {
			return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
				switch c.Kind {
				case store.ChangeDeviceList, store.ChangeDeviceUnused:
					if c.User.Server() == h.f.server {
						h.mu.Lock()
						h.stale[c.User] = true
						h.mu.Unlock()
						news = true
					}
				case store.ChangeEvent:
					if news {
						return true, nil
					}
					e, err := r.Event(c.Event)
					if errors.Is(err, store.ErrNotFound) {
						return true, nil
					}
					news = err == nil && e.Type() == "m.room.member"
					return true, err
				}
				return true, nil
			})
		})
		if err != nil {
			return err
		}
		if from = upTo; news {
			signal(h.changed)
		}
	}
}

// visit gives a contact what it may not have, and says when the next visit is due.
func (h *handover) visit(ctx context.Context, c contact, t *handedTo) (again time.Duration) {
	f := h.f
	h.mu.Lock()
	keys := h.now
	h.mu.Unlock()
	digests, err := h.digestsFor(c.Server, keys)
	if err != nil {
		f.Log.Error("cannot tell whose keys to hand over", "err", err)
		return handoverSeldom
	}
	sum := sumOf(digests)
	if bytes.Equal(t.sum, sum) && t.failed == 0 || len(digests) == 0 && t.sum == nil {
		return handoverSeldom
	}
	if !bytes.Equal(t.sum, sum) {
		t.sum, t.failed, t.next = sum, 0, time.Time{}
	}
	if later := t.next.Sub(f.Now()); later > 0 {
		return later
	}
	if err := h.give(ctx, c, keys, digests, sum); err != nil {
		if ctx.Err() == nil {
			f.Log.Debug("keys not handed over", "server", c.Server, "peer", c.Peer, "err", err)
		}
		again = min(handoverRetry<<min(t.failed, 10), handoverSeldom)
		t.next = f.Now().Add(again)
		t.failed++
		return again
	}
	t.failed = 0
	return handoverSeldom
}

// refresh reads the bundles that have changed, and who is in which rooms.
func (h *handover) refresh() error {
	h.mu.Lock()
	bundles := maps.Clone(h.now.bundles)
	if bundles == nil {
		bundles = map[eventgraph.UserID]*ownBundle{}
	}
	stale := h.stale
	for user := range stale {
		delete(bundles, user)
	}
	h.stale = map[eventgraph.UserID]bool{}
	h.mu.Unlock()
	keys := &ownKeys{bundles: bundles, rooms: map[eventgraph.UserID][]eventgraph.RoomID{}}
	err := h.f.Store.View(func(r *store.Reader) error {
		return r.Accounts(func(a *store.Account) (bool, error) {
			b := bundles[a.User]
			if b == nil {
				raw, ok := h.f.ownBundle(a.User)
				b = &ownBundle{raw: raw, digest: digestOf(raw)}
				if ok {
					bundles[a.User] = b
				}
			}
			if b.raw == nil {
				return true, nil
			}
			err := r.RoomsOf(a.User, func(m *store.Member) (bool, error) {
				if m.Membership == "join" && !m.Outside {
					keys.rooms[a.User] = append(keys.rooms[a.User], m.Room)
				}
				return true, nil
			})
			return true, err
		})
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		maps.Copy(h.stale, stale)
		return err
	}
	h.now = keys
	return nil
}

// digestsFor are those of the bundles of users in a room with the server, by whose ACL it is not denied.
func (h *handover) digestsFor(server eventgraph.ServerName, keys *ownKeys) (map[eventgraph.UserID][]byte, error) {
	if len(keys.rooms) == 0 {
		return nil, nil
	}
	shared, err := h.f.meetings.sharing.roomsWith(server)
	if err != nil {
		return nil, err
	}
	digests := map[eventgraph.UserID][]byte{}
	for _, user := range slices.Sorted(maps.Keys(keys.rooms)) {
		if len(digests) < store.MaxHandedUsers && slices.ContainsFunc(keys.rooms[user], func(room eventgraph.RoomID) bool { return shared[room] }) {
			digests[user] = keys.bundles[user].digest
		}
	}
	return digests, nil
}

func digestOf(bundle []byte) []byte {
	sum := sha256.Sum256(bundle)
	return sum[:digestSize]
}

// sumOf is the digest of all of them; each name ends where its digest, of fixed length, begins.
func sumOf(digests map[eventgraph.UserID][]byte) []byte {
	sum := sha256.New()
	for _, user := range slices.Sorted(maps.Keys(digests)) {
		fmt.Fprintf(sum, "%s %x\n", user, digests[user])
	}
	return sum.Sum(nil)[:digestSize]
}

// give hands over to a contact what it has not.
func (h *handover) give(ctx context.Context, c contact, keys *ownKeys, digests map[eventgraph.UserID][]byte, sum []byte) error {
	ctx, mine, err := h.giving.take(ctx, ctx, c.Server)
	if err != nil {
		return err
	}
	defer mine.release()
	x, stop, err := h.f.openExchange(ctx, c.Peer, protocolHandover, mine)
	if err != nil {
		return err
	}
	defer stop()
	var answer keysMessage
	if err := x.say(&keysMessage{Sum: sum}, maxHandoverAnswer, &answer); err != nil || answer.Level {
		return err
	}
	answer = keysMessage{}
	if err := x.say(&keysMessage{Users: digests}, maxHandoverMessage, &answer); err != nil {
		return err
	}
	for i, user := range answer.Want {
		if digests[user] == nil || slices.Contains(answer.Want[:i], user) {
			return errors.New("it wants what was not offered")
		}
	}
	err = giveBundles(x, answer.Want, func(user eventgraph.UserID) (json.RawMessage, error) {
		return h.f.signBundle(user, keys.bundles[user].raw)
	})
	if err != nil {
		return err
	}
	answer = keysMessage{}
	if err := x.read(maxHandoverAnswer, &answer); err != nil {
		return err
	}
	if !answer.Level {
		return errors.New("not all was taken")
	}
	return nil
}

// giveBundles writes the signed bundles of the users, in chunks.
func giveBundles(x *exchangeStream, users []eventgraph.UserID, signed func(eventgraph.UserID) (json.RawMessage, error)) error {
	message, size := &keysMessage{}, 0
	for _, user := range users {
		raw, err := signed(user)
		if err != nil {
			return err
		}
		if size > 0 && size+len(raw) > handoverChunk {
			message.More = true
			if err := x.write(message); err != nil {
				return err
			}
			message, size = &keysMessage{}, 0
		}
		message.Keys = append(message.Keys, raw)
		size += len(raw)
	}
	return x.write(message)
}

// takeBundles reads what giveBundles writes, at most so many, and hands each to take.
func (f *Federation) takeBundles(ctx context.Context, x *exchangeStream, peer eventgraph.PeerID, most int, take func(json.RawMessage) error) error {
	for more := true; more; {
		var m keysMessage
		if err := x.read(maxHandoverMessage, &m); err != nil {
			return err
		}
		if more = m.More; len(m.Keys) > most || more && len(m.Keys) == 0 {
			return errors.New("more than was asked for")
		}
		most -= len(m.Keys)
		if err := f.spendOn(ctx, peer, costRequest+len(m.Keys)); err != nil {
			return err
		}
		for _, raw := range m.Keys {
			if err := take(raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// ownBundle is the bundle of a local user; nil if there is nothing to hand over. One that cannot be read, or not be signed, is not ok: others' keys do
// not wait for it.
func (f *Federation) ownBundle(user eventgraph.UserID) (raw json.RawMessage, ok bool) {
	raw, err := f.Local.KeyBundle(user)
	if err == nil && raw != nil && !signable(raw, canonicaljson.Strict, wrapsOfBody) {
		err = errUnsignable
	}
	if err != nil {
		f.Log.Error("a user's keys are not handed over", "user", user, "err", err)
		return nil, false
	}
	return raw, true
}

// signBundle signs the bundle of a local user.
func (f *Federation) signBundle(user eventgraph.UserID, bundle json.RawMessage) (json.RawMessage, error) {
	object, err := marshal(signedBundle{User: user, TS: f.Now().UnixMilli(), Bundle: bundle})
	if err != nil {
		return nil, err
	}
	return eventgraph.SignJSON(object, f.Key)
}

// serve takes what a peer hands over, or gives it what others have.
func (h *handover) serve(ctx context.Context, from contact, x *exchangeStream) error {
	f := h.f
	var m keysMessage
	if err := x.read(maxHandoverMessage, &m); err != nil {
		return err
	}
	switch {
	case len(m.Want) > maxAskedBundles || len(m.Sum) != digestSize && len(m.Want) == 0:
		return errors.New("a message that is not in order")
	case len(m.Want) > 0:
		if err := f.spendOn(ctx, from.Peer, costHistory); err != nil {
			return err
		}
		bundles, err := f.bundlesFor(from.Server, m.Want)
		if err != nil {
			return err
		}
		return x.write(&keysMessage{Keys: bundles})
	}
	return h.take(ctx, x, from, m.Sum)
}

// spendOn makes the peer pay for what it asks.
func (f *Federation) spendOn(ctx context.Context, peer eventgraph.PeerID, units int) error {
	l, _ := f.budgetOf(peer)
	return spend(ctx, l, units, budgetWait)
}

// take takes in what a server hands over of its users.
func (h *handover) take(ctx context.Context, x *exchangeStream, c contact, sum []byte) error {
	f := h.f
	held, heldSum, err := f.handedBy(c.Server)
	if err != nil {
		return err
	}
	if bytes.Equal(sum, heldSum) {
		return x.write(&keysMessage{Level: true})
	}
	var offer keysMessage
	if err := x.say(&keysMessage{}, maxHandoverMessage, &offer); err != nil {
		return err
	}
	if len(offer.Users) > store.MaxHandedUsers || !bytes.Equal(sumOf(offer.Users), sum) {
		return errors.New("an offer that is not in order")
	}
	wanted := map[eventgraph.UserID]bool{}
	for user, digest := range offer.Users {
		if _, err := eventgraph.ParseUserID(string(user)); err != nil || user.Server() != c.Server || len(digest) != digestSize {
			return fmt.Errorf("it offers keys of %.80q", user)
		}
		if !bytes.Equal(digest, held[user]) {
			wanted[user] = true
		}
	}
	if err := x.write(&keysMessage{Want: slices.Sorted(maps.Keys(wanted))}); err != nil {
		return err
	}
	whole := true
	err = f.takeBundles(ctx, x, c.Peer, len(wanted), func(raw json.RawMessage) error {
		b, err := f.checkBundle(ctx, raw, c.Server)
		if err != nil || !wanted[b.User] || !bytes.Equal(b.Digest, offer.Users[b.User]) {
			f.Log.Info("keys refused that were handed over", "server", c.Server, "err", err)
			whole = false
			return nil
		}
		delete(wanted, b.User)
		return f.keepBundle(ctx, b)
	})
	if err != nil {
		return err
	}
	whole = whole && len(wanted) == 0
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error {
		for user := range held {
			if offer.Users[user] == nil {
				if err := tx.DeleteHandedKeys(user); err != nil {
					return err
				}
			}
		}
		switch {
		case !whole:
			return nil
		case len(offer.Users) == 0:
			sum = nil // as before the first time: nothing is left
		}
		return tx.PutHandedSum(c.Server, sum)
	})
	if err != nil {
		return err
	}
	return x.write(&keysMessage{Level: whole})
}

// keepBundle keeps a bundle. Where there is no room it is left out, and not asked for again before something changes.
func (f *Federation) keepBundle(ctx context.Context, b *store.HandedKeys) error {
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutHandedKeys(b) })
	if errors.Is(err, store.ErrHandedFull) {
		f.Log.Info("no room for keys handed over", "user", b.User)
		return nil
	}
	if err == nil {
		f.Log.Debug("keys handed over", "user", b.User)
	}
	return err
}

// handedBy is what is held of a server's users, by digest, and the sum of the last hand-over.
func (f *Federation) handedBy(server eventgraph.ServerName) (held map[eventgraph.UserID][]byte, sum []byte, err error) {
	held = map[eventgraph.UserID][]byte{}
	err = f.Store.View(func(r *store.Reader) (err error) {
		if sum, err = r.HandedSum(server); err != nil {
			return err
		}
		return r.HandedBy(server, func(h *store.HandedKeys) (bool, error) {
			held[h.User] = h.Digest
			return true, nil
		})
	})
	if sum == nil {
		sum = sumOf(nil)
	}
	return held, sum, err
}

// checkBundle checks the signature of the user's server, by a key valid when it signed, and the bundle. from gave it.
func (f *Federation) checkBundle(ctx context.Context, raw json.RawMessage, from eventgraph.ServerName) (*store.HandedKeys, error) {
	var b signedBundle
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, err
	}
	if _, err := eventgraph.ParseUserID(string(b.User)); err != nil {
		return nil, err
	}
	if err := f.verifyObject(ctx, raw, b.User.Server(), b.TS, from); err != nil {
		return nil, err
	}
	canonical, err := canonicaljson.Canonicalize(b.Bundle, canonicaljson.Strict)
	if err != nil {
		return nil, err
	}
	if err := f.Local.CheckKeyBundle(b.User, canonical); err != nil {
		return nil, err
	}
	return &store.HandedKeys{User: b.User, Digest: digestOf(canonical), TS: b.TS, Signed: raw, Bundle: canonical}, nil
}

// verifyObject checks that a server has signed an object, by a key valid at ts; its key document is fetched if need be, from hint too. Errors:
// eventgraph.ErrKeyUnknown, ErrKeyNotValid, ErrSignature.
func (f *Federation) verifyObject(ctx context.Context, raw json.RawMessage, server eventgraph.ServerName, ts int64, hint eventgraph.ServerName) error {
	var with struct {
		Signatures map[eventgraph.ServerName]map[eventgraph.KeyID]string `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &with); err != nil {
		return err
	}
	keys := slices.Sorted(maps.Keys(with.Signatures[server]))
	keys = keys[:min(len(keys), maxProofKeys)]
	var needed []rooms.KeyNeeded
	for _, id := range keys {
		needed = append(needed, rooms.KeyNeeded{Server: server, ID: id, TS: ts})
	}
	if len(f.lacking(needed)) == len(needed) {
		if err := f.ensureKeys(ctx, needed, []eventgraph.ServerName{hint}); err != nil {
			return err
		}
	}
	err := fmt.Errorf("%w: none of %s", eventgraph.ErrSignature, server)
	for _, id := range keys {
		public, keyErr := f.Rooms.Key(server, id, ts, true)
		if keyErr != nil {
			err = keyErr
			continue
		}
		if err = eventgraph.VerifyJSON(raw, server, id, public); err == nil {
			return nil
		}
	}
	return err
}

// bundlesFor are those that were handed over of the users, for a third server that is in a room with them; of many, as much as goes into one chunk.
func (f *Federation) bundlesFor(server eventgraph.ServerName, users []eventgraph.UserID) (bundles []json.RawMessage, err error) {
	held, err := f.heldFor(server, users)
	size := 0
	for _, user := range users {
		if h := held[user]; h != nil && (size == 0 || size+len(h.Signed) <= handoverChunk) {
			size += len(h.Signed)
			bundles = append(bundles, h.Signed)
			delete(held, user) // once
		}
	}
	return bundles, err
}

// heldFor is what was handed over of those users who are in a room with the server, by whose ACL it is not denied.
func (f *Federation) heldFor(server eventgraph.ServerName, users []eventgraph.UserID) (map[eventgraph.UserID]*store.HandedKeys, error) {
	shared, err := f.meetings.sharing.roomsWith(server)
	if err != nil {
		return nil, err
	}
	held := map[eventgraph.UserID]*store.HandedKeys{}
	err = f.Store.View(func(r *store.Reader) error {
		for _, user := range users {
			if in, err := isInOne(r, user, shared); err != nil {
				return err
			} else if !in {
				continue
			}
			h, err := r.HandedKeys(user)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			held[user] = h
		}
		return nil
	})
	return held, err
}

// isInOne says whether the user is joined to one of the rooms.
func isInOne(r *store.Reader, user eventgraph.UserID, rooms map[eventgraph.RoomID]bool) (in bool, err error) {
	err = r.RoomsOf(user, func(m *store.Member) (bool, error) {
		in = m.Membership == "join" && !m.Outside && rooms[m.Room]
		return !in, nil
	})
	return in, err
}

// AskKeyBundles asks connected servers for what was handed over to them of users whose servers are away, until ctx ends. What comes is in the store
// (store.HandedKeys).
func (f *Federation) AskKeyBundles(ctx context.Context, users []eventgraph.UserID) {
	of := map[eventgraph.ServerName][]eventgraph.UserID{}
	for _, user := range users {
		of[user.Server()] = append(of[user.Server()], user)
	}
	for server, missing := range of {
		if !f.sharesRoom(server) {
			continue
		}
		asked := 0
		for _, c := range f.peers.contacts() {
			if asked == maxBundleGivers || len(missing) == 0 || ctx.Err() != nil {
				break
			}
			if c.Server == server || !f.shareRoom(c.Server, server) {
				continue
			}
			asked++
			if err := f.askBundles(ctx, c, &missing); err != nil {
				f.Log.Debug("keys of others not had", "server", c.Server, "err", err)
			}
		}
	}
}

// askBundles asks one contact, and takes from missing whose keys came.
func (f *Federation) askBundles(ctx context.Context, c contact, missing *[]eventgraph.UserID) error {
	x, stop, err := f.openExchange(ctx, c.Peer, protocolHandover, nil) // somebody waits for it, within the time of ctx
	if err != nil {
		return err
	}
	defer stop()
	var answer keysMessage
	if err := x.say(&keysMessage{Want: (*missing)[:min(len(*missing), maxAskedBundles)]}, maxHandoverMessage, &answer); err != nil {
		return err
	}
	for _, raw := range answer.Keys[:min(len(answer.Keys), maxAskedBundles)] {
		b, err := f.checkBundle(ctx, raw, c.Server)
		if err != nil {
			return err
		}
		at := slices.Index(*missing, b.User)
		if at < 0 {
			return fmt.Errorf("keys of %s, who was not asked for", b.User)
		}
		*missing = slices.Delete(slices.Clone(*missing), at, at+1)
		if err := f.keepNewer(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// keepNewer keeps a bundle that another than its server gave, if it was signed after the one held.
func (f *Federation) keepNewer(ctx context.Context, b *store.HandedKeys) error {
	newer := false
	err := f.Store.View(func(r *store.Reader) error {
		held, err := r.HandedKeys(b.User)
		newer = errors.Is(err, store.ErrNotFound) || err == nil && held.TS < b.TS
		if newer {
			err = nil
		}
		return err
	})
	if err != nil || !newer {
		return err
	}
	return f.keepBundle(ctx, b)
}

// IsConnected says whether some peer of the server is connected.
func (f *Federation) IsConnected(server eventgraph.ServerName) bool {
	return f.peers.isConnected(server)
}

// shareRoom says whether two servers are in a room with us, neither of them denied by its ACL.
func (f *Federation) shareRoom(one, other eventgraph.ServerName) bool {
	ofOne, err := f.meetings.sharing.roomsWith(one)
	if err == nil && len(ofOne) > 0 {
		var ofOther map[eventgraph.RoomID]bool
		ofOther, err = f.meetings.sharing.roomsWith(other)
		for room := range ofOne {
			if ofOther[room] && f.Rooms.InRoom(room, f.server) {
				return true
			}
		}
	}
	if err != nil {
		f.Log.Error("cannot tell who shares a room", "err", err)
	}
	return false
}
