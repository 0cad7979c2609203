package rooms

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// NewRoom is what is known of a room that is being joined and is not here yet. The events of its state and their auth chains are accepted on
// no basis (Basis.New), in as many runs as it takes: nobody sees them while there is no room. Enter then makes it exist.
type NewRoom struct {
	Version eventgraph.RoomVersion
	Create  eventgraph.EventID
}

// unborn is the room as it is while it is being joined.
func (n *NewRoom) unborn(id eventgraph.RoomID) (live, error) {
	traits, known := n.Version.Traits()
	if !known {
		return live{}, refuse("M_UNSUPPORTED_ROOM_VERSION", "room version %q is not supported", n.Version)
	}
	return live{traits: traits, Room: store.Room{ID: id, Version: n.Version, Create: n.Create, NextOrder: 1, PrevOrder: -1}}, nil
}

// Enter accepts the join by which we come into a room, on the state before it as a server of the room gave it; with the same commit the room
// exists here. Of the state counts what is held: accepted before as outliers, signatures, hashes and auth events
// checked. It fails, with *Refusal or *MissingError, if the join is not allowed by that. If the room is here already, it is a join like any
// other, on a claimed state.
func (r *Rooms) Enter(ctx context.Context, join *eventgraph.Event, n NewRoom, state []eventgraph.EventID) error {
	born, err := n.unborn(join.RoomID())
	if err != nil {
		return err
	}
	born.exists = true
	if join.Membership() != "join" || join.Version() != n.Version {
		return refuse("M_BAD_JSON", "not a join of that room")
	}
	if err := r.verify(join); err != nil {
		return err
	}
	if state, err = r.heldState(join.RoomID(), n, state); err != nil {
		return err
	}
	if err := r.dropLeftMembers(ctx, join.RoomID(), state); err != nil {
		return err
	}
	return r.inTurn(ctx, join.RoomID(), func(run *run) error {
		in := incoming{event: join, basis: Basis{Kind: Claimed, State: state}, join: true, result: new(Result)}
		if run.live.exists {
			return run.enter(in)
		}
		run.live = born
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

// heldState keeps of a room's state what is held and was not rejected, and sees that the create event in it is the room's.
func (r *Rooms) heldState(room eventgraph.RoomID, n NewRoom, state []eventgraph.EventID) ([]eventgraph.EventID, error) {
	held := make([]eventgraph.EventID, 0, len(state))
	created := false
	err := r.store.View(func(read *store.Reader) error {
		for _, id := range state {
			e, err := read.Event(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			tuple, ok := e.Tuple()
			if !ok || e.RoomID() != room || e.Verdict == store.Rejected {
				continue
			}
			if tuple.Type == "m.room.create" {
				version, ok := canonicaljson.GetString(e.Content(), "room_version")
				if !ok || version != string(n.Version) {
					return refuse("M_INCOMPATIBLE_ROOM_VERSION", "the room was created as version %q, not %s", version, n.Version)
				}
				created = created || id == n.Create
			}
			held = append(held, id)
		}
		return nil
	})
	if err == nil && !created {
		err = refuse("M_FORBIDDEN", "no valid create event in the state of %s", room)
	}
	if left := len(state) - len(held); left > 0 {
		r.log.Info("left out of the state of a joined room", "room", room, "events", left)
	}
	return held, err
}

// Sizes of what is written ahead of a large commit, in each write; in a commit of more than fullCommit all is that can be.
const (
	stageBytes   = 400_000
	stageMembers = 500
	fullCommit   = 800_000
	fewMembers   = 50 // of one event: not worth a write of their own even then
)

// dropLeftMembers drops what an earlier join that came to nothing left in the member index.
func (r *Rooms) dropLeftMembers(ctx context.Context, room eventgraph.RoomID, state []eventgraph.EventID) error {
	left := map[string]bool{}
	err := r.store.View(func(read *store.Reader) error {
		if _, err := read.Room(room); !errors.Is(err, store.ErrNotFound) {
			return err // the room is here: its index is right
		}
		err := read.MembersOf(room, func(m *store.Member) (bool, error) {
			if !m.Outside {
				left[string(m.User)] = true
			}
			return true, nil
		})
		if err != nil || len(left) == 0 {
			return err
		}
		for _, id := range state {
			e, err := read.Event(id)
			if err != nil {
				return err
			}
			if key, ok := e.StateKey(); ok && e.Type() == "m.room.member" {
				delete(left, key)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for gone := range slices.Chunk(slices.Sorted(maps.Keys(left)), stageMembers) {
		_, err := r.store.Update(ctx, func(tx *store.Tx) error {
			for _, user := range gone {
				if err := tx.DeleteMember(room, eventgraph.UserID(user)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// stageLarge writes ahead of the commit what would be too much for it and is seen by nobody before it: trie nodes, and the
// memberships of other servers' users where many change at once (a join, a merge after a long time apart).
func (run *run) stageLarge() error {
	size := 0
	for _, node := range run.fresh {
		size += len(node) + 64
	}
	full := run.size > fullCommit
	if size > stageBytes || full {
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
		if len(w.members) <= stageMembers && (!full || len(w.members) <= fewMembers) {
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
