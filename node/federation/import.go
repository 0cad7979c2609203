package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// How a room comes here:
//
//	sent ──▶ taken ──▶ whole ──▶ the room
//
// The join's record (store.Join) is on disk before our event leaves. From "taken" on nothing is sent again: a server in the room has let us
// in, and what its answer lacked, because it broke off or because this node was ended, any server in the room may give. What comes is put
// through Accept as outliers at once, batch by batch; what rests on events that have not come, or on keys that are not known, is
// kept with the record (store.Staged) and judged when all is there.

const (
	// maxImported bounds the events of a room's state with their auth chains.
	maxImported = 100_000
	// importBatch and importBytes are how many events are parsed, verified and accepted together.
	importBatch = 256
	importBytes = 512 << 10
	// importWait is after how long events that come slowly are taken in without being so many: from them the user learns what room it is.
	importWait = 2 * time.Second
	// joinPatience is how long a client waits for a room that it was let into.
	joinPatience = time.Minute
	// joinKeep is how long the rest of a room is asked for: as long as events wait for what they rest on, for devices are off for days. Who does
	// not want to wait leaves.
	joinKeep = inboxKeep
	// joinRetry and joinRetryMost are the first and the longest wait before the room's servers are asked again, unless one is met.
	joinRetry     = 2 * time.Second
	joinRetryMost = time.Minute
	// keyPatience is how long a room waits for key documents that none of its servers had when first asked.
	keyPatience = 30 * time.Second
	// vainRounds is how often all servers that answer are asked for events that none of them gives.
	vainRounds = 3
	// dropStaged is how much of what a join staged is dropped in one write.
	dropStaged = 1000
	// joinNews is at which parts of a room's events its user is told how far the join is: every twentieth.
	joinNews = 20
)

// joins is where the work on joins runs: under Run, if that runs.
type joins struct {
	mu      sync.Mutex
	ctx     context.Context // of Run; nil: Run does not run
	working *sync.WaitGroup
	cancels map[eventgraph.RoomID]map[*context.CancelFunc]bool // of the work on each room
}

// begin starts work on a room that ends with Run, or when cancel is called; false if Run does not run.
func (j *joins) begin(room eventgraph.RoomID, work func(ctx context.Context)) (cancel context.CancelFunc, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ctx == nil {
		return nil, false
	}
	ctx, cancel := context.WithCancel(j.ctx)
	if j.cancels[room] == nil {
		j.cancels[room] = map[*context.CancelFunc]bool{}
	}
	j.cancels[room][&cancel] = true
	j.working.Go(func() {
		defer func() {
			cancel()
			j.mu.Lock()
			defer j.mu.Unlock()
			if delete(j.cancels[room], &cancel); len(j.cancels[room]) == 0 {
				delete(j.cancels, room)
			}
		}()
		work(ctx)
	})
	return cancel, true
}

// cancel ends the work on a room, soon.
func (j *joins) cancel(room eventgraph.RoomID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for cancel := range j.cancels[room] {
		(*cancel)()
	}
}

// open lets work begin, until end.
func (j *joins) open(ctx context.Context, working *sync.WaitGroup) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ctx, j.working, j.cancels = ctx, working, map[eventgraph.RoomID]map[*context.CancelFunc]bool{}
}

func (j *joins) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ctx = nil
}

// runJoins works on joins until ctx ends, first on those that an earlier run left.
func (f *Federation) runJoins(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	defer f.joins.end()
	f.joins.open(ctx, &working) // before they are read: a join that is given up meanwhile is seen here, or goes on by itself
	var left []*store.Join
	err := f.Store.View(func(r *store.Reader) error {
		return r.Joins(func(j *store.Join) (bool, error) { left = append(left, j); return true, nil })
	})
	if err != nil {
		return fmt.Errorf("read joins: %w", err)
	}
	for _, j := range left {
		f.joins.begin(j.Room, func(ctx context.Context) { f.goOn(ctx, j.Room, 0) })
	}
	<-ctx.Done()
	return nil
}

// goOn works on a join on which nobody works any more, after wait, until it has come to an end: this node was ended, or who asked for it has gone,
// or the store could not be written.
func (f *Federation) goOn(ctx context.Context, room eventgraph.RoomID, wait time.Duration) {
	for ; ; wait = max(joinRetry, min(2*wait, joinRetryMost)) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		err := f.resumeStored(ctx, room)
		j, failed := f.storedJoin(room)
		switch {
		case ctx.Err() != nil || failed == nil && j == nil && err == nil:
			return
		case failed == nil && j == nil:
			f.Log.Warn("a join that had begun came to nothing", "room", room, "err", err)
			return
		}
		f.Log.Warn("a join could not go on", "room", room, "err", errors.Join(err, failed))
	}
}

// resumeStored goes on with a room's join if there is one.
func (f *Federation) resumeStored(ctx context.Context, room eventgraph.RoomID) error {
	unlock, err := f.joining.lock(ctx, room)
	if err != nil {
		return err
	}
	defer unlock()
	j, err := f.storedJoin(room)
	if err != nil || j == nil {
		return err
	}
	return f.resume(ctx, j)
}

// storedJoin is the join of a room that is under way; nil if none is.
func (f *Federation) storedJoin(room eventgraph.RoomID) (j *store.Join, err error) {
	err = f.Store.View(func(r *store.Reader) (err error) {
		j, err = r.Join(room)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return j, err
}

// letIn says whether a server in the room has taken in the user's join, of which not all has come yet.
func (f *Federation) letIn(room eventgraph.RoomID, user eventgraph.UserID) bool {
	j, err := f.storedJoin(room)
	return err == nil && j != nil && j.User == user && j.Phase != store.JoinSent
}

// importing is the work on one join. It is for one goroutine.
type importing struct {
	f       *Federation
	join    *store.Join
	event   *eventgraph.Event
	batch   []json.RawMessage
	state   bool      // the batch is of the room's state
	size    int       // of the batch, in bytes
	began   time.Time // the batch
	servers []eventgraph.ServerName
	keyless map[eventgraph.ServerName]bool // asked for in vain
	told    int                            // joinNews parts of which the user has been told

	elsewhere bool // there are servers over which the user may still join
}

func (f *Federation) importOf(j *store.Join, e *eventgraph.Event) *importing {
	servers := append([]eventgraph.ServerName{j.Server}, j.Via...)
	return &importing{f: f, join: j, event: e, servers: servers, keyless: map[eventgraph.ServerName]bool{}}
}

// resume goes on with a join that had begun.
func (f *Federation) resume(ctx context.Context, j *store.Join) error {
	if f.Rooms.InRoom(j.Room, f.server) {
		return f.dropJoin(ctx, j.Room, nil) // only this was not done any more
	}
	e, err := eventgraph.ParseEvent(j.Version, j.Event)
	if err != nil {
		return errors.Join(fmt.Errorf("stored join of %s: %w", j.Room, err), f.dropJoin(ctx, j.Room, nil))
	}
	f.Log.Info("going on with a join", "room", j.Room, "user", j.User, "phase", j.Phase, "arrived", j.Arrived)
	i := f.importOf(j, e)
	if j.Phase == store.JoinSent {
		if err := errors.New("it is not known whether it was taken in"); !i.mayBeIn(ctx, err) {
			return errors.Join(f.dropJoin(context.WithoutCancel(ctx), j.Room, nil), fmt.Errorf("%w: join of %s: %w", ErrUnreachable, j.Room, err))
		}
	}
	return i.complete(ctx)
}

// send sends our event and takes in the answer as it comes.
func (i *importing) send(ctx context.Context) error {
	j := i.join
	path := target(v2+"send_join", []string{string(j.Room), string(i.event.ID())}, nil)
	err := i.f.doStream(ctx, j.Server, http.MethodPut, path, json.RawMessage(j.Event), func(answer io.Reader) error {
		if err := i.note(ctx, func() { j.Phase = store.JoinTaken }); err != nil {
			return err
		}
		return i.takeAnswer(ctx, answer)
	})
	if err != nil {
		return err
	}
	return i.note(ctx, func() { j.Phase = store.JoinWhole })
}

// takeAnswer reads an answer of send_join.
func (i *importing) takeAnswer(ctx context.Context, answer io.Reader) error {
	there := map[string]bool{}
	err := readObject(answer, maxState, func(name string, s *objectStream) error {
		there[name] = true
		switch name {
		case "event":
			var returned json.RawMessage
			if err := s.value(&returned); err != nil {
				return err
			}
			e, err := withTheirSignature(i.event, returned)
			if err != nil {
				return malformed(i.join.Server, err.Error())
			}
			i.event = e
			return i.note(ctx, func() { i.join.Event = e.Raw() })
		case "members_omitted":
			var omitted bool
			if err := s.value(&omitted); err != nil || omitted {
				return errors.New("members omitted, which was not asked for")
			}
		case "plexus.events":
			var n int
			if err := s.value(&n); err == nil && n > 0 && n <= maxImported {
				i.join.Expected = n
			}
		case "servers_in_room":
			return s.array(func(raw json.RawMessage) error { i.learnServer(raw); return nil })
		case "auth_chain":
			return i.takeList(ctx, s, false)
		case "state":
			return i.takeList(ctx, s, true)
		}
		return nil
	})
	if err == nil && !(there["auth_chain"] && there["state"]) {
		err = malformed(i.join.Server, "no state or no auth chain")
	}
	return err
}

// learnServer notes who else is in the room, as far as maxVia goes.
func (i *importing) learnServer(raw json.RawMessage) {
	var name string
	if json.Unmarshal(raw, &name) != nil || len(i.join.Via) >= maxVia {
		return
	}
	if server, err := eventgraph.ParseServerName(name); err == nil && server != i.f.server && !slices.Contains(i.servers, server) {
		i.join.Via = append(i.join.Via, server)
		i.servers = append(i.servers, server)
	}
}

// takeList takes in a list of events as it comes. What came before an error stays.
func (i *importing) takeList(ctx context.Context, s *objectStream, state bool) error {
	i.state = state
	err := s.array(func(raw json.RawMessage) error { return i.add(ctx, raw) })
	if flushed := i.flush(ctx); flushed != nil {
		return flushed
	}
	return err
}

func (i *importing) add(ctx context.Context, raw json.RawMessage) error {
	now := i.f.Now()
	if len(i.batch) == 0 {
		i.began = now
	}
	i.batch = append(i.batch, raw)
	i.size += len(raw)
	if len(i.batch) < importBatch && i.size < importBytes && now.Sub(i.began) < importWait {
		return nil
	}
	return i.flush(ctx)
}

// flush takes in what add has gathered.
func (i *importing) flush(ctx context.Context) error {
	raws := i.batch
	i.batch, i.size = nil, 0
	if len(raws) == 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	events := parseAll(i.join.Version, raws)
	events = slices.DeleteFunc(events, func(e *eventgraph.Event) bool { return e.RoomID() != i.join.Room || e.ID() == i.event.ID() })
	i.learnCreate(events)
	events = slices.DeleteFunc(events, func(e *eventgraph.Event) bool { return isCreate(e) && e.ID() != i.join.Create })
	return i.take(ctx, unique(events), i.state)
}

// learnCreate notes the room's create event, if it is not known and among the events.
func (i *importing) learnCreate(events []*eventgraph.Event) {
	if at := slices.IndexFunc(events, isCreate); at >= 0 && i.join.Create == "" {
		i.join.Create = events[at].ID()
	}
}

func isCreate(e *eventgraph.Event) bool {
	key, ok := e.StateKey()
	return ok && key == "" && e.Type() == "m.room.create"
}

// take puts events, in the order of their auth events, through Accept as outliers, and keeps what must wait. state says that they are of the
// room's state; those of which that was known before, are so.
func (i *importing) take(ctx context.Context, events []*eventgraph.Event, state bool) error {
	before := map[eventgraph.EventID]*store.Staged{}
	var news []*eventgraph.Event
	err := i.f.Store.View(func(r *store.Reader) error {
		for _, e := range events {
			s, err := r.StagedEvent(i.join.Room, e.ID())
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if before[e.ID()] = s; s == nil || !s.Settled {
				news = append(news, e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	settled, err := i.accept(ctx, news)
	if err != nil {
		return err
	}
	var changed []*store.Staged
	for _, e := range events {
		was := before[e.ID()]
		if was == nil {
			was = &store.Staged{}
		}
		now := &store.Staged{ID: e.ID(), State: state || was.State, Settled: was.Settled || settled[e.ID()]}
		if !now.Settled {
			now.PDU = e.Raw()
		}
		if was.ID == "" || was.State != now.State || was.Settled != now.Settled || now.PDU != nil {
			changed = append(changed, now)
		}
		if was.ID == "" || !was.Settled && was.PDU == nil {
			i.join.Arrived++
		}
		if now.State && now.Settled {
			i.show(e)
		}
	}
	if i.join.Arrived > maxImported {
		return &rooms.Refusal{Code: "M_TOO_LARGE", Reason: fmt.Sprintf("the room has more than %d events of state and auth chain", maxImported)}
	}
	return i.keep(ctx, changed)
}

// show notes state that tells what room it is, if it was accepted as such.
func (i *importing) show(e *eventgraph.Event) {
	if key, _ := e.StateKey(); key != "" || !slices.Contains(strippedTypes, e.Type()) || slices.Contains(i.join.Show, e.ID()) {
		return
	}
	err := i.f.Store.View(func(r *store.Reader) error {
		verdict, held, err := r.HasEvent(e.ID())
		if held && verdict != store.Rejected {
			i.join.Show = append(i.join.Show, e.ID())
		}
		return err
	})
	if err != nil {
		i.f.Log.Warn("cannot tell what a room that is being joined is called", "room", i.join.Room, "err", err)
	}
}

// accept puts events through Accept and returns those that need not come again: held now, or refused.
func (i *importing) accept(ctx context.Context, events []*eventgraph.Event) (settled map[eventgraph.EventID]bool, err error) {
	settled = map[eventgraph.EventID]bool{}
	if len(events) == 0 || i.join.Create == "" {
		return settled, nil
	}
	i.obtainKeys(ctx, events)
	basis := rooms.Basis{Kind: rooms.Nothing, New: &rooms.NewRoom{Version: i.join.Version, Create: i.join.Create}}
	outcomes, err := i.f.Rooms.AcceptAll(ctx, events, basis)
	if err != nil {
		return nil, err
	}
	for n, o := range outcomes {
		var refusal *rooms.Refusal
		if errors.As(o.Err, &refusal) {
			i.f.Log.Info("left out of a room that is being joined", "room", i.join.Room, "event", events[n].ID(), "err", refusal)
		}
		settled[events[n].ID()] = o.Err == nil || refusal != nil
	}
	return settled, nil
}

// obtainKeys asks for the key documents that events need, once for each server that they are of.
func (i *importing) obtainKeys(ctx context.Context, events []*eventgraph.Event) {
	needed := slices.DeleteFunc(keysOf(events...), func(n rooms.KeyNeeded) bool { return i.keyless[n.Server] })
	if err := i.f.ensureKeys(ctx, needed, i.servers); err == nil {
		return
	}
	for _, n := range i.f.lacking(needed) {
		i.keyless[n.Server] = true
	}
}

// keep writes what is known of some events, and the join's record. Now and then its user is told.
func (i *importing) keep(ctx context.Context, changed []*store.Staged) error {
	news := len(i.join.Show) * (joinNews + 1) // each thing to show is news too
	if i.join.Expected > 0 {
		news += i.join.Arrived * joinNews / i.join.Expected
	}
	tell := news > i.told
	_, err := i.f.Store.Update(ctx, func(tx *store.Tx) error {
		for _, s := range changed {
			if err := tx.PutStaged(i.join.Room, s); err != nil {
				return err
			}
		}
		if tell {
			if _, err := tx.Log(store.Change{Kind: store.ChangeMembership, Room: i.join.Room, User: i.join.User}); err != nil {
				return err
			}
		}
		return tx.PutJoin(i.join)
	})
	if err == nil && tell {
		i.told = news
		if i.join.Arrived >= logImport {
			i.f.Log.Info("a room is being joined", "room", i.join.Room, "events", i.join.Arrived, "of", i.join.Expected)
		}
	}
	return err
}

// logImport is from how many events on a room is so large that its coming is logged.
const logImport = 1000

// note changes the join's record, and tells its user.
func (i *importing) note(ctx context.Context, change func()) error {
	change()
	i.told = -1
	return i.keep(ctx, nil)
}

// judge puts what waits through Accept, each event after those that it rests on.
func (i *importing) judge(ctx context.Context) error {
	until := i.f.Now().Add(keyPatience)
	for turn := uint64(0); ; {
		waits, err := i.judgeOnce(ctx)
		if err != nil || waits == 0 {
			return err
		}
		left := until.Sub(i.f.Now())
		if len(i.keyless) == 0 || left <= 0 {
			i.f.Log.Warn("joining a room without events that could not be checked", "room", i.join.Room, "events", waits, "servers", len(i.keyless))
			return nil
		}
		// Their keys are asked of whoever is met meanwhile.
		met, cancel := context.WithTimeout(ctx, left)
		var contacts []contact
		contacts, turn, _ = i.f.peers.met(met, turn)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, c := range contacts {
			if !slices.Contains(i.servers, c.Server) && i.keyless[c.Server] {
				i.servers = append(i.servers, c.Server)
			}
		}
		clear(i.keyless)
		i.servers = append(i.servers[min(maxKeyHints, len(i.servers)):], i.servers[:min(maxKeyHints, len(i.servers))]...) // others first
	}
}

// judgeOnce returns how many events still wait. In memory are the IDs of those that do, with those that they rest on.
func (i *importing) judgeOnce(ctx context.Context) (waits int, err error) {
	rests := map[eventgraph.EventID][]eventgraph.EventID{}
	err = i.f.Store.View(func(r *store.Reader) error {
		return r.Staged(i.join.Room, func(s *store.Staged) (bool, error) {
			if s.PDU == nil {
				return true, nil
			}
			e, err := eventgraph.ParseEvent(i.join.Version, s.PDU)
			if err != nil {
				return false, fmt.Errorf("staged event %s: %w", s.ID, err)
			}
			rests[s.ID] = slices.Clone(e.AuthEvents())
			return true, nil
		})
	})
	if err != nil {
		return 0, err
	}
	for part := range slices.Chunk(restedOnFirst(rests), importBatch) {
		for len(part) > 0 {
			events, n, err := i.staged(part)
			if err != nil {
				return 0, err
			}
			part = part[n:]
			if err := i.take(ctx, events, false); err != nil {
				return 0, err
			}
		}
	}
	err = i.f.Store.View(func(r *store.Reader) error {
		return r.Staged(i.join.Room, func(s *store.Staged) (bool, error) {
			if s.PDU != nil {
				waits++
			}
			return true, nil
		})
	})
	return waits, err
}

// staged reads the first of some events that wait, as far as importBytes go, and says how many they are.
func (i *importing) staged(ids []eventgraph.EventID) (events []*eventgraph.Event, n int, err error) {
	err = i.f.Store.View(func(r *store.Reader) error {
		for size := 0; n < len(ids) && size < importBytes; n++ {
			s, err := r.StagedEvent(i.join.Room, ids[n])
			if err != nil {
				return err
			}
			e, err := eventgraph.ParseEvent(i.join.Version, s.PDU)
			if err != nil {
				return fmt.Errorf("staged event %s: %w", s.ID, err)
			}
			size += len(s.PDU)
			events = append(events, e)
		}
		return nil
	})
	return events, n, err
}

// restedOnFirst orders events so that each comes after those that it rests on. In a circle, which no honest events make, any may be first.
func restedOnFirst(rests map[eventgraph.EventID][]eventgraph.EventID) []eventgraph.EventID {
	type visit struct {
		id   eventgraph.EventID
		next int
	}
	order := make([]eventgraph.EventID, 0, len(rests))
	seen := make(map[eventgraph.EventID]bool, len(rests))
	for _, id := range slices.Sorted(maps.Keys(rests)) {
		if seen[id] {
			continue
		}
		seen[id] = true
		for stack := []visit{{id: id}}; len(stack) > 0; {
			v := &stack[len(stack)-1]
			if v.next == len(rests[v.id]) {
				order = append(order, v.id)
				stack = stack[:len(stack)-1]
				continue
			}
			on := rests[v.id][v.next]
			v.next++
			if _, waits := rests[on]; waits && !seen[on] {
				seen[on] = true
				stack = append(stack, visit{id: on})
			}
		}
	}
	return order
}

// complete fetches what has not come, judges what waits, and enters the room.
func (i *importing) complete(ctx context.Context) error {
	err := i.fetchRest(ctx)
	if err == nil {
		err = i.judge(ctx)
	}
	if err == nil {
		err = i.enter(ctx)
	}
	var refusal *rooms.Refusal
	var missing *rooms.MissingError
	switch {
	case errors.Is(err, errNotHeard):
		return err // it goes on if no other server lets the user in
	case err == nil:
		i.f.Log.Info("a room was joined", "room", i.join.Room, "events", i.join.Arrived, "took", i.f.Now().Sub(time.UnixMilli(i.join.Since)))
	case errors.As(err, &missing):
		err = &rooms.Refusal{Code: "M_FORBIDDEN", Reason: "the join rests on what the room's servers did not give: " + missing.Error()}
	case !errors.As(err, &refusal):
		return err // ended, or the store's: it goes on another time
	}
	return errors.Join(err, i.f.dropJoin(context.WithoutCancel(ctx), i.join.Room, nil))
}

// enter makes the room exist.
func (i *importing) enter(ctx context.Context) error {
	if err := i.f.ensureKeys(ctx, keysOf(i.event), i.servers); err != nil {
		i.f.Log.Info("joining with keys missing", "room", i.join.Room, "err", err)
	}
	var state []eventgraph.EventID
	err := i.f.Store.View(func(r *store.Reader) error {
		return r.Staged(i.join.Room, func(s *store.Staged) (bool, error) {
			if s.State && s.Settled {
				state = append(state, s.ID)
			}
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	return i.f.Rooms.Enter(ctx, i.event, rooms.NewRoom{Version: i.join.Version, Create: i.join.Create}, state)
}

// dropJoin forgets a join, and what it staged; if there is no room, also what waited for it. What waited for a room that is here is taken in now.
// What is to be told of it, if it is not nil, is queued in the same write.
func (f *Federation) dropJoin(ctx context.Context, room eventgraph.RoomID, tell *store.Outbound) error {
	for left := true; left; {
		_, err := f.Store.Update(ctx, func(tx *store.Tx) (err error) {
			left, err = tx.DeleteStaged(room, dropStaged)
			return err
		})
		if err != nil {
			return err
		}
	}
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
		j, err := tx.Join(room)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		at, err := tx.Log(store.Change{Kind: store.ChangeMembership, Room: room, User: j.User})
		if err != nil {
			return err
		}
		// If it came to nothing, the invite that the user had is shown again.
		m, err := tx.Member(room, j.User)
		if err == nil && m.Outside {
			m.Position = at
			err = tx.PutMember(m)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if tell != nil {
			if _, err := tx.PutOutbound(tell); err != nil {
				return err
			}
		}
		return tx.DeleteJoin(room)
	})
	f.inbox.wake(room)
	return err
}

// giveUpJoin ends the join of a room of which not all has come, and lets the server that took the user in know that they are gone. It says
// whether there was such a join.
func (f *Federation) giveUpJoin(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, reason string) (bool, error) {
	if !f.letIn(room, user) {
		return false, nil
	}
	f.joins.cancel(room)
	unlock, err := f.joining.lock(ctx, room)
	if err != nil {
		return true, err
	}
	defer unlock()
	j, err := f.storedJoin(room)
	if err != nil || j == nil || f.Rooms.InRoom(room, f.server) { // all had come
		return false, err
	}
	tell, err := leaveFor(j.Server, pendingLeave{room, user, reason})
	if err != nil {
		return true, err
	}
	if err = f.dropJoin(ctx, room, tell); errors.Is(err, store.ErrOutboundFull) {
		f.notTold(tell, err)
		err = f.dropJoin(ctx, room, nil)
	}
	return true, err
}
