package rooms

import (
	"context"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/stateres"
	"github.com/plexus-p2p/plexus/store"
)

// run is the work on one room between two commits: what is durable, and over it what is decided but not written yet.
// Nobody else sees any of it before the commit. It is for one goroutine.
type run struct {
	r    *Rooms
	rm   *room
	ctx  context.Context
	read *store.Reader // a snapshot from when the run began; the run is the only writer of this room

	live    live                                        // with the work of this run
	events  map[eventgraph.EventID]*store.StoredEvent   // new or changed in this run
	edges   map[eventgraph.EventID][]eventgraph.EventID // to events new in this run, by parent
	citers  map[eventgraph.EventID][]eventgraph.EventID // events of this run, by auth event; filled in when somebody asks
	citing  []*eventgraph.Event                         // of this run, not in citers yet
	waits   map[eventgraph.EventID][]eventgraph.EventID // redactions new in this run whose target is not here, by target
	nodes   map[eventgraph.Hash][]byte                  // trie nodes new in this run
	states  map[eventgraph.Hash]*State
	counted *census // the last that this run made
	ties    ties    // the room's; it has them again when the run has ended well
	orders  []int64 // given to events of the past in this run, sorted
	placing int     // how deep placeAuthEvents is in auth events of auth events
	carried int     // bytes of others that the event now taken in changes; see maxCarried
	txns    map[sentAs]eventgraph.EventID

	// To be written by the next commit.
	writes  []*write
	pending map[eventgraph.EventID]bool // their events
	fresh   map[eventgraph.Hash][]byte  // trie nodes
	dirty   bool                        // live has changed
	size    int                         // estimate of the bytes to write
	commits int                         // made by this run
	broken  error                       // of a commit, or in the middle of an event: nothing more may be done or written
}

// write is one step of a commit.
type write struct {
	event   *store.StoredEvent // nil: none
	change  store.ChangeKind   // logged for the event; 0: none
	key     string             // of the change: store.KeyHandshake or ""
	members []memberChange     // by this event, in the current resolved state
	txn     *store.ClientTxn
	result  *Result                  // gets the position
	redact  eventgraph.EventID       // event is a redaction that waits for this target
	also    func(tx *store.Tx) error // what else belongs into the same commit
}

// memberChange is a membership that the current resolved state has changed; event "": the tuple is gone.
type memberChange struct {
	user       eventgraph.UserID
	event      eventgraph.EventID
	membership string // by the event
}

func (r *Rooms) newRun(ctx context.Context, rm *room, read *store.Reader) (*run, error) {
	run := &run{r: r, rm: rm, ctx: ctx, read: read}
	run.reset()
	l, err := rm.loaded(read)
	if err != nil {
		return nil, err
	}
	run.live = *l
	run.ties, rm.ties = rm.ties, ties{}
	return run, nil
}

// reset forgets all that is not durable, except for live.
func (run *run) reset() {
	run.events = map[eventgraph.EventID]*store.StoredEvent{}
	run.edges = map[eventgraph.EventID][]eventgraph.EventID{}
	run.citers = map[eventgraph.EventID][]eventgraph.EventID{}
	run.citing = nil
	run.orders = nil
	run.waits = map[eventgraph.EventID][]eventgraph.EventID{}
	run.nodes = map[eventgraph.Hash][]byte{}
	run.fresh = map[eventgraph.Hash][]byte{}
	run.states = map[eventgraph.Hash]*State{}
	run.txns = map[sentAs]eventgraph.EventID{}
	run.pending = map[eventgraph.EventID]bool{}
	run.writes, run.dirty, run.size = nil, false, 0
}

// loaded is the durable room, read once and then kept by commits.
func (rm *room) loaded(read *store.Reader) (*live, error) {
	rm.mu.Lock()
	defer rm.mu.Unlock()
	if rm.live != nil {
		return rm.live, nil
	}
	l := &live{}
	record, err := read.Room(rm.id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return l, nil // not kept: a join makes the room without passing here
	case err != nil:
		return nil, err
	}
	l.Room, l.exists = *record, true
	var known bool
	if l.traits, known = record.Version.Traits(); !known {
		return nil, fmt.Errorf("room %s has version %q, which this plexus does not know", rm.id, record.Version)
	}
	for _, id := range record.Forward {
		e, err := read.Event(id)
		if err != nil {
			return nil, fmt.Errorf("extremity %s of %s: %w", id, rm.id, err)
		}
		l.tips = append(l.tips, newTip(e))
	}
	rm.live = l
	return l, nil
}

// put adds a step to the next commit and makes its event part of the run.
func (run *run) put(w *write) {
	if w.event != nil {
		if _, again := run.events[w.event.ID()]; !again {
			for _, parent := range w.event.PrevEvents() {
				run.edges[parent] = append(run.edges[parent], w.event.ID())
			}
			run.citing = append(run.citing, w.event.Event)
		}
		run.events[w.event.ID()] = w.event
		run.pending[w.event.ID()] = true
		run.size += len(w.event.Raw()) + 512*(2+len(w.event.PrevEvents()))
	}
	if w.txn != nil {
		run.txns[sentAs{*w.txn, txnEndpoint(run.rm.id, w.event.Type(), w.event.Redacts())}] = w.event.ID()
	}
	run.size += 600 * len(w.members)
	run.writes = append(run.writes, w)
}

// putNodes makes trie nodes part of the run.
func (run *run) putNodes(nodes map[eventgraph.Hash][]byte) {
	for h, node := range nodes {
		if _, had := run.nodes[h]; !had {
			run.size += len(node) + 64
		}
		run.nodes[h], run.fresh[h] = node, node
	}
}

// commit writes what the run has decided, in one transaction, and only then shows it to others. If it fails, all of it is
// discarded: nothing more is done in this run, and the next one starts from the disk.
func (run *run) commit() error {
	if len(run.writes) == 0 && !run.dirty {
		return nil
	}
	if err := run.stageLarge(); err != nil {
		run.broken = err
		return err
	}
	published := run.live
	run.rm.publish(nil, &published)
	_, err := run.r.store.Update(run.ctx, func(tx *store.Tx) error {
		if err := tx.PutTrieNodes(run.fresh); err != nil {
			return err
		}
		for _, w := range run.writes {
			if err := run.apply(tx, w); err != nil {
				return err
			}
		}
		if !run.dirty {
			return nil
		}
		record := run.live.Room
		return tx.PutRoom(&record)
	})
	if err != nil {
		run.rm.publish(nil, nil)
		run.broken = err
		return err
	}
	for _, w := range run.writes {
		if w.result != nil && w.event != nil {
			w.result.Position = w.event.Position
		}
	}
	if run.dirty {
		run.rm.publish(&published, nil)
		run.r.crowds.note(run.rm.id, len(published.tips))
	} else {
		run.rm.publish(nil, nil)
	}
	run.commits++
	run.writes, run.dirty, run.size = nil, false, 0
	run.pending = map[eventgraph.EventID]bool{}
	run.fresh = map[eventgraph.Hash][]byte{}
	return nil
}

// publish sets what readers see of the room, unless now is nil, and what a commit under way is about to make durable.
func (rm *room) publish(now, next *live) {
	rm.mu.Lock()
	defer rm.mu.Unlock()
	if now != nil {
		rm.live = now
	}
	rm.next = next
}

// apply writes one step. It may run several times, each in a transaction of its own.
func (run *run) apply(tx *store.Tx, w *write) error {
	var logged store.Position
	if w.change != 0 {
		var err error
		if logged, err = tx.Log(store.Change{Kind: w.change, Room: run.rm.id, Event: w.event.ID(), Key: w.key}); err != nil {
			return err
		}
		if w.change == store.ChangeEvent {
			w.event.Position = logged
		}
	}
	if w.event != nil {
		if err := tx.PutEvent(w.event); err != nil {
			return err
		}
	}
	if w.txn != nil {
		if err := tx.PutClientTxn(*w.txn, txnEndpoint(run.rm.id, w.event.Type(), w.event.Redacts()), string(w.event.ID())); err != nil {
			return err
		}
	}
	if w.redact != "" {
		if err := tx.PutWaitingRedaction(w.redact, w.event.ID()); err != nil {
			return err
		}
	}
	for _, m := range w.members {
		if err := run.applyMember(tx, m, w.event, logged); err != nil {
			return err
		}
	}
	if w.also != nil {
		return w.also(tx)
	}
	return nil
}

// applyMember brings the member index up to the current resolved state. by is the event that changed that state.
func (run *run) applyMember(tx *store.Tx, m memberChange, by *store.StoredEvent, at store.Position) error {
	was, err := tx.Member(run.rm.id, m.user)
	if errors.Is(err, store.ErrNotFound) {
		was, err = &store.Member{}, nil
	}
	if err != nil {
		return err
	}
	now := &store.Member{
		Room: run.rm.id, User: m.user, Membership: "leave",
		Position: at, Forgotten: was.Forgotten, WasJoined: was.WasJoined,
	}
	if m.event != "" {
		now.Membership, now.Event = m.membership, m.event
	}
	switch now.Membership {
	case "join":
		now.WasJoined, now.Forgotten = true, false
	case "invite", "knock":
		now.Forgotten = false
	}
	if waits(was) && (now.Membership == "leave" || now.Membership == "ban") && (by == nil || m.event != by.ID() || !Follows(was, by.Event)) {
		return nil // the past of a room that the user was in, which says nothing of the invite
	}
	flipped := by == nil || m.event == "" || m.event != by.ID()
	if flipped && m.user.Server() == run.r.key.Server {
		// State resolution changed it: no event of the timeline says so to the user.
		p, err := tx.Log(store.Change{Kind: store.ChangeMembership, Room: run.rm.id, User: m.user})
		if err != nil {
			return err
		}
		now.Position = p
	}
	return tx.PutMember(now)
}

// TrieNode makes a run an eventgraph.NodeReader.
func (run *run) TrieNode(h eventgraph.Hash) ([]byte, error) {
	if node, ok := run.nodes[h]; ok {
		return node, nil
	}
	return run.read.TrieNode(h)
}

// stored reads an event as this run leaves it; store.ErrNotFound.
func (run *run) stored(id eventgraph.EventID) (*store.StoredEvent, error) {
	if e, ok := run.events[id]; ok {
		return e, nil
	}
	return run.read.Event(id)
}

// Event makes a run a stateres.EventReader.
func (run *run) Event(id eventgraph.EventID) (stateres.Held, error) {
	e, err := run.stored(id)
	if err != nil {
		return stateres.Held{}, err
	}
	return held(e), nil
}

// CitedBy is that of a stateres.EventReader.
func (run *run) CitedBy(id eventgraph.EventID, f func(by eventgraph.EventID) bool) error {
	if err := run.cite(); err != nil {
		return err
	}
	for _, by := range run.citers[id] {
		if !f(by) {
			return nil
		}
	}
	return run.read.CitedBy(id, f)
}

// cite fills in citers: with state events, those that are cited though they are not of state, and those that cite them (as
// store.Tx.PutEvent will).
func (run *run) cite() error {
	add := func(e *eventgraph.Event) {
		for _, id := range e.AuthEvents() {
			run.citers[id] = append(run.citers[id], e.ID())
		}
	}
	for ; len(run.citing) > 0; run.citing = run.citing[1:] {
		e := run.citing[0]
		_, needed := e.Tuple()
		for _, id := range e.AuthEvents() {
			cited, err := run.stored(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if _, ok := cited.Tuple(); !ok {
				add(cited.Event)
				needed = true
			}
		}
		if needed {
			add(e)
		}
	}
	return nil
}

func held(e *store.StoredEvent) stateres.Held {
	return stateres.Held{Event: e.Event, Rejected: e.Verdict == store.Rejected, Height: e.Height}
}

// children calls f for the events held, in whatever verdict, that name id as a parent, until f wants no more; for some perhaps twice.
func (run *run) children(id eventgraph.EventID, f func(child eventgraph.EventID) (more bool, err error)) error {
	for _, child := range run.edges[id] {
		if more, err := f(child); !more || err != nil {
			return err
		}
	}
	return run.read.Children(id, f)
}
