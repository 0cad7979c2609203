package rooms

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// room is the place where the writers of one room queue up.
//
//	inTurn ──▶ waiting ──▶ the first to come leads: takes all that wait as one run, works, commits, answers
//	                       ──▶ then the first of those that came meanwhile leads
type room struct {
	id eventgraph.RoomID

	// Guarded by Rooms.mu.
	users int // calls that hold this room; when 0 it may be dropped from memory
	tied  int // what it has in Rooms.tied

	mu      sync.Mutex
	waiting []*task
	busy    bool    // somebody leads
	live    *live   // what is durable; nil: not read yet
	next    *live   // what a commit under way makes durable; nil: none is. See liveRoom
	census  *census // the newest made: see servers.go

	// Only for who leads.
	resolved map[string]resolution // see merge
	ties     ties
}

// live is a room as of some commit. It is immutable once it can be seen by others.
type live struct {
	store.Room       // slices are replaced, never changed in place
	tips       []tip // the forward extremities, in the order of Room.Forward
	exists     bool  // false: no such room here
	traits     eventgraph.Traits
}

// task is one caller's work in a run.
type task struct {
	work  func(*run) error
	alone bool          // in a run without others
	turn  chan struct{} // its caller is to lead now
	done  chan struct{}

	leading bool // guarded by room.mu: turn has been given

	// Set before done is closed.
	err    error
	shared bool // it was done in a run with others
}

// maxRunTasks bounds a run, so that the first in it does not wait for long.
const maxRunTasks = 128

// maxRunBytes is when a run is committed before all its work is done. The store takes about 1.1 MB in one transaction,
// of which one event with its indexes and trie nodes may need 150 kB.
const maxRunBytes = 500_000

// citedBytes is what the store takes to note one auth event of an event that is cited and is not of state.
const citedBytes = 150

// inTurn runs work as the room's only writer, alone or in a run with others, and returns when what it did is durable, or its
// error. If work fails it must have changed nothing in the run. It is run again, alone, if the run was too much for one commit; errTooMuch
// says that it is so then, too. Once work has begun, ctx no longer counts.
func (r *Rooms) inTurn(ctx context.Context, id eventgraph.RoomID, work func(*run) error) error {
	t := &task{work: work}
	err := r.doTask(ctx, id, t)
	if t.shared && errors.Is(err, store.ErrTooLarge) {
		err = r.doTask(ctx, id, &task{work: work, alone: true})
	}
	if errors.Is(err, store.ErrTooLarge) {
		return errTooMuch
	}
	return err
}

// doTask has the task done when its turn comes, and returns its error.
func (r *Rooms) doTask(ctx context.Context, id eventgraph.RoomID, t *task) error {
	rm, err := r.enter(id)
	if err != nil {
		return err
	}
	defer r.leave(rm)

	t.turn, t.done = make(chan struct{}, 1), make(chan struct{})
	rm.mu.Lock()
	rm.waiting = append(rm.waiting, t)
	leads := !rm.busy
	rm.busy = true
	rm.mu.Unlock()
	if leads {
		r.lead(ctx, rm)
		return t.err
	}
	select {
	case <-t.done:
		return t.err
	case <-t.turn:
	case <-ctx.Done():
		if rm.withdraw(t) {
			return ctx.Err()
		}
		select {
		case <-t.done:
			return t.err
		case <-t.turn:
		}
	}
	r.lead(ctx, rm)
	return t.err
}

// withdraw takes back a task that no run has taken and whose caller does not lead.
func (rm *room) withdraw(t *task) bool {
	rm.mu.Lock()
	defer rm.mu.Unlock()
	i := slices.Index(rm.waiting, t)
	if i < 0 || t.leading {
		return false
	}
	rm.waiting = slices.Delete(rm.waiting, i, i+1)
	return true
}

var errPanicked = errors.New("rooms: a writer panicked")

// lead works on one run of those that wait, first of all the caller's own, and then hands on.
func (r *Rooms) lead(ctx context.Context, rm *room) {
	rm.mu.Lock()
	n := 1
	for n < min(len(rm.waiting), maxRunTasks) && !rm.waiting[0].alone && !rm.waiting[n].alone {
		n++
	}
	tasks := slices.Clone(rm.waiting[:n])
	rm.waiting = slices.Delete(rm.waiting, 0, n)
	rm.mu.Unlock()

	for _, t := range tasks {
		t.shared = n > 1
		t.err = errPanicked // stands only if the work below does not return
	}
	defer func() {
		rm.mu.Lock()
		rm.busy = len(rm.waiting) > 0
		if rm.busy {
			rm.waiting[0].leading = true
			rm.waiting[0].turn <- struct{}{}
		}
		rm.mu.Unlock()
		for _, t := range tasks {
			close(t.done)
		}
	}()
	err := r.store.View(func(read *store.Reader) error {
		run, err := r.newRun(context.WithoutCancel(ctx), rm, read)
		if err != nil {
			return err
		}
		run.work(tasks)
		return nil
	})
	if err != nil {
		for _, t := range tasks {
			t.err = err
		}
	}
}

// work does the tasks in order and commits what they did, sharing commits. Each gets the error of its own work, or of a commit
// that it had a part in.
func (run *run) work(tasks []*task) {
	open := 0 // tasks[open:i] wait for a commit
	settle := func(upTo int, err error) {
		for _, t := range tasks[open:upTo] {
			if t.err == nil {
				t.err = err
			}
		}
		open = upTo
	}
	for i, t := range tasks {
		if run.broken != nil {
			t.err = run.broken
			continue
		}
		commits := run.commits
		t.err = t.work(run)
		switch {
		case run.broken != nil: // by a commit in the middle of this work
			settle(i+1, run.broken)
		case run.commits > commits:
			open = i // those before had a part in that one
		}
		if run.broken == nil && run.size >= maxRunBytes {
			settle(i+1, run.commit())
		}
	}
	if run.broken == nil {
		settle(len(tasks), run.commit())
	}
	if run.broken == nil {
		run.rm.ties = run.ties // else they may be by events that are not held
	}
}

// enter takes the room into memory until leave.
func (r *Rooms) enter(id eventgraph.RoomID) (*room, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	rm := r.rooms[id]
	if rm == nil {
		rm = &room{id: id}
		r.rooms[id] = rm
	}
	rm.users++
	r.active.Add(1)
	return rm, nil
}

// leave ends enter. Of rooms that nobody uses, maxIdleRooms stay in memory.
func (r *Rooms) leave(rm *room) {
	defer r.active.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	if rm.users--; rm.users > 0 {
		return
	}
	r.countTies(rm)
	if len(r.rooms) > maxIdleRooms {
		for id, other := range r.rooms { // any: it is a cache
			if other.users == 0 && other != rm {
				r.tied -= other.tied
				delete(r.rooms, id)
				break
			}
		}
	}
}

// countTies counts the ties of a room that has become idle, and has other idle ones forget theirs if they are too many. r.mu is held.
func (r *Rooms) countTies(rm *room) {
	r.tied += rm.ties.size() - rm.tied
	rm.tied = rm.ties.size()
	if r.tied <= maxAllTies {
		return
	}
	for _, other := range r.rooms { // any: it is a cache
		if other.users == 0 && other != rm && other.tied > 0 {
			r.tied -= other.tied
			other.ties, other.tied = ties{}, 0
			if r.tied <= maxAllTies {
				return
			}
		}
	}
}
