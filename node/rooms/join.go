package rooms

import (
	"context"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// ImportJoin makes a room exist here from the answer of send_join: verifies all (all cores), stores in invisible batches, and one last small
// transaction makes the room and the join visible. Events that fail signature (or whose key is not known here: fetch keys
// before) or auth are dropped, and with them what rests on them; it fails, with *Refusal or *MissingError, if the join
// itself is not allowed by the state so checked. If the room already exists here, the join is accepted with basis Claimed.
func (r *Rooms) ImportJoin(ctx context.Context, join *eventgraph.Event, state, authChain []*eventgraph.Event) error {
	i, err := r.examine(ctx, join, state, authChain)
	if err != nil {
		return err
	}
	if err := r.stage(ctx, i); err != nil {
		return err
	}
	return r.inTurn(ctx, join.RoomID(), func(run *run) error {
		in := incoming{event: join, basis: Basis{Kind: Claimed, State: i.state}, join: true, result: new(Result)}
		if run.live.exists {
			return run.enter(in)
		}
		run.live = live{exists: true, traits: i.traits, Room: store.Room{
			ID: join.RoomID(), Version: join.Version(), Create: i.create, NextOrder: 1, PrevOrder: -1,
		}}
		err := run.enter(in)
		if err != nil { // the room is new: nobody else's work is in this run
			run.reset()
			run.live = live{}
		}
		return err
	})
}

// enter accepts the join by which we come: in another verdict it is no join.
func (run *run) enter(in incoming) error {
	err := run.accept(in)
	if err == nil && in.result.Verdict != store.Accepted {
		err = refuse("M_FORBIDDEN", "the join does not stand by what is held of %s: %s", run.rm.id, in.result.Reason)
	}
	return err
}

// imported is what stood the checks of an answer to send_join.
type imported struct {
	room   eventgraph.RoomID
	traits eventgraph.Traits
	create eventgraph.EventID
	events []*eventgraph.Event  // parents first
	state  []eventgraph.EventID // before the join
	users  map[string]bool      // with a member event in that state
}

// examine checks what send_join answered, without the store: signatures, auth by auth events of each, and that the join is allowed.
func (r *Rooms) examine(ctx context.Context, join *eventgraph.Event, state, authChain []*eventgraph.Event) (*imported, error) {
	i := &imported{room: join.RoomID(), users: map[string]bool{}}
	var known bool
	if i.traits, known = join.Version().Traits(); !known {
		return nil, refuse("M_UNSUPPORTED_ROOM_VERSION", "room version %q is not supported", join.Version())
	}
	if join.Membership() != "join" {
		return nil, refuse("M_BAD_JSON", "not a join")
	}
	if err := r.verify(join); err != nil {
		return nil, err
	}

	var all []*eventgraph.Event
	seen := map[eventgraph.EventID]bool{join.ID(): true}
	for _, events := range [][]*eventgraph.Event{authChain, state} {
		for _, e := range events {
			if !seen[e.ID()] && e.RoomID() == i.room && e.Version() == join.Version() {
				seen[e.ID()] = true
				all = append(all, e)
			}
		}
	}
	verified, err := r.verifyAll(ctx, all)
	if err != nil {
		return nil, err
	}
	good := map[eventgraph.EventID]bool{}
	for n, e := range all {
		if verified[n] != nil {
			if !isOutcome(verified[n]) {
				return nil, verified[n]
			}
			r.log.Info("left out of an imported room", "room", i.room, "event", e.ID(), "reason", verified[n])
			continue
		}
		good[e.ID()] = true
	}

	kept := map[eventgraph.EventID]*eventgraph.Event{}
	for _, e := range eventgraph.SortTopologically(all) {
		if !good[e.ID()] {
			continue
		}
		if err := checkImported(e, kept); err != nil {
			r.log.Info("left out of an imported room", "room", i.room, "event", e.ID(), "reason", err)
			continue
		}
		kept[e.ID()] = e
		i.events = append(i.events, e)
	}
	if err := i.takeState(state, kept); err != nil {
		return nil, err
	}
	if err := checkImported(join, kept); err != nil {
		return nil, refuse("M_FORBIDDEN", "join of %s: %s", i.room, err)
	}
	return i, nil
}

// checkImported applies the rules on auth events among the events that have been kept.
func checkImported(e *eventgraph.Event, kept map[eventgraph.EventID]*eventgraph.Event) error {
	ids := e.AuthEvents()
	if traits, _ := e.Version().Traits(); traits.RoomIDFromCreate && e.Type() != "m.room.create" {
		ids = append(ids[:len(ids):len(ids)], auth.CreateOf(e.RoomID()))
	}
	events := make([]*eventgraph.Event, len(ids))
	for n, id := range ids {
		if events[n] = kept[id]; events[n] == nil {
			return fmt.Errorf("rests on %s, which is not there or was left out", id)
		}
	}
	return auth.CheckAuthEvents(e, events, func(eventgraph.EventID) bool { return false })
}

// takeState notes the state before the join, as far as its events were kept, and the room's create event.
func (i *imported) takeState(state []*eventgraph.Event, kept map[eventgraph.EventID]*eventgraph.Event) error {
	for _, e := range state {
		tuple, ok := e.Tuple()
		if !ok || kept[e.ID()] == nil {
			continue
		}
		i.state = append(i.state, e.ID())
		switch tuple.Type {
		case "m.room.create":
			version, ok := canonicaljson.GetString(e.Content(), "room_version")
			if !ok || version != string(e.Version()) {
				return refuse("M_INCOMPATIBLE_ROOM_VERSION", "the room was created as version %q, not %s", version, e.Version())
			}
			i.create = e.ID()
		case "m.room.member":
			i.users[tuple.Key] = true
		}
	}
	if i.create == "" {
		return refuse("M_FORBIDDEN", "no valid create event in the state of %s", i.room)
	}
	return nil
}

// Sizes of the invisible batches of an import.
const (
	stageBytes   = 400_000
	stageMembers = 500
)

// stage stores the events of an import as outliers, which nobody sees while there is no room. What an earlier import that came to
// nothing left in the member index goes.
func (r *Rooms) stage(ctx context.Context, i *imported) error {
	now := r.now().UnixMilli()
	for rest := i.events; len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size < stageBytes) {
			size += len(rest[n].Raw()) + 512*(1+len(rest[n].PrevEvents()))
			n++
		}
		batch := rest[:n]
		rest = rest[n:]
		_, err := r.store.Update(ctx, func(tx *store.Tx) error {
			for _, e := range batch {
				held, err := tx.Event(e.ID())
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				if held != nil && (!held.HashMismatch() || e.HashMismatch()) {
					continue
				}
				s := &store.StoredEvent{Event: e, Verdict: store.Outlier, ReceivedTS: now}
				if s.Height, err = heightOf(e, tx.Event); err != nil {
					return err
				}
				if held != nil { // the right copy of an event held without its content
					*s = *held
					if s.Event = e; s.RedactedBy != "" {
						s.Event = e.RedactKeepingRules()
					}
				}
				if err := tx.PutEvent(s); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("import %s: %w", i.room, err)
		}
	}
	return r.dropLeftMembers(ctx, i)
}

func (r *Rooms) dropLeftMembers(ctx context.Context, i *imported) error {
	var gone []eventgraph.UserID
	err := r.store.View(func(read *store.Reader) error {
		if _, err := read.Room(i.room); !errors.Is(err, store.ErrNotFound) {
			return err // the room is here: its index is right
		}
		return read.MembersOf(i.room, func(m *store.Member) (bool, error) {
			if !m.Outside && !i.users[string(m.User)] {
				gone = append(gone, m.User)
			}
			return true, nil
		})
	})
	for err == nil && len(gone) > 0 {
		batch := gone[:min(len(gone), stageMembers)]
		gone = gone[len(batch):]
		_, err = r.store.Update(ctx, func(tx *store.Tx) error {
			for _, user := range batch {
				if err := tx.DeleteMember(i.room, user); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return err
}

// stageLarge writes ahead of the commit what would be too much for it and is seen by nobody before it: trie nodes, and the
// memberships of other servers' users where many change at once (a join, a merge after a long time apart).
func (run *run) stageLarge() error {
	size := 0
	for _, node := range run.fresh {
		size += len(node) + 64
	}
	if size > stageBytes {
		for h, node := range run.fresh {
			batch := map[eventgraph.Hash][]byte{h: node}
			delete(run.fresh, h)
			size := len(node)
			for h, node := range run.fresh {
				if size += len(node) + 64; size > stageBytes {
					break
				}
				batch[h] = node
				delete(run.fresh, h)
			}
			_, err := run.r.store.Update(run.ctx, func(tx *store.Tx) error { return tx.StageTrieNodes(batch) })
			if err != nil {
				return err
			}
		}
	}
	for _, w := range run.writes {
		if len(w.members) <= stageMembers {
			continue
		}
		var local, remote []memberChange
		for _, m := range w.members {
			if m.user.Server() == run.r.key.Server {
				local = append(local, m)
			} else {
				remote = append(remote, m)
			}
		}
		for len(remote) > 0 {
			batch := remote[:min(len(remote), stageMembers)]
			remote = remote[len(batch):]
			at := run.r.store.Position() + 1 // about where the commit will be
			_, err := run.r.store.Update(run.ctx, func(tx *store.Tx) error {
				for _, m := range batch {
					if err := run.applyMember(tx, m, w.event, at); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		w.members = local
	}
	return nil
}
