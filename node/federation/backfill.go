package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxBackfillPages bounds the requests of one Backfill.
	maxBackfillPages = 20
	// maxWidening is how often a page is made longer because it ends in several branches: a run can rest on one claimed state
	// only, at its first event.
	maxWidening = 4
	// maxEdges is how many claimed states are asked for to take in one page. What is left comes with the next.
	maxEdges = 10
	// maxSingly is how many events of a claimed state are fetched one by one; if more are missing the whole state is.
	maxSingly = 40
	// singlyAtOnce is how many of them are asked for at one time.
	singlyAtOnce = 4
	// maxAuthRounds bounds the steps up an auth chain of events fetched one by one.
	maxAuthRounds = 20
)

// Backfill asks room servers for events before the room's backward extremities, those farthest back first, at least limit if they exist, and accepts
// them. It returns how many were taken in.
func (f *Federation) Backfill(ctx context.Context, room eventgraph.RoomID, limit int) (int, error) {
	return f.BackfillAbove(ctx, room, math.MinInt64, limit)
}

// BackfillAbove is Backfill for who reads backwards down to that order of the room: the extremities nearest above it come first. If those lie in a break
// of the history (store.Break) no others are asked about until it is closed: more than none taken in means that it has become smaller, from servers that
// answer what they are asked.
func (f *Federation) BackfillAbove(ctx context.Context, room eventgraph.RoomID, above int64, limit int) (int, error) {
	patience := pastPatience
	taken, err := f.takeHeldPast(ctx, room, &patience)
	if ctx.Err() != nil || taken >= limit {
		return taken, ctx.Err()
	}
	if err != nil {
		f.Log.Warn("held history was not taken in", "room", room, "err", err)
	}
	servers, err := f.otherServers(room)
	if err == nil {
		servers = f.quests.worthAsking(servers, f.peers.isConnected, f.Now())
		if len(servers) == 0 {
			err = fmt.Errorf("%w: all in the room were tried within the last %v; ask again later, or when one of them is connected", ErrUnreachable, awayRest)
		}
	}
	if taken > 0 && err != nil {
		return taken, nil
	} else if err != nil {
		return 0, err
	}
	var failed error
	silent := map[eventgraph.ServerName]bool{} // since something came
	named := map[eventgraph.EventID]bool{}
	for range maxBackfillPages {
		p, err := f.backwardsAbove(room, above)
		if err != nil || len(p.from) == 0 {
			return taken, err
		}
		if len(silent) >= min(len(servers), maxAsked) { // nobody has anything before those: on to others
			if len(servers) == 0 || !slices.ContainsFunc(p.from, func(e extremity) bool { return !named[e.id] }) {
				break
			}
			clear(silent)
		}
		left := slices.DeleteFunc(slices.Clone(servers), func(server eventgraph.ServerName) bool { return silent[server] })
		from, server := f.quests.next(p, f.server, left, f.peers.isConnected)
		for _, id := range from {
			named[id] = true
		}
		wanted := min(max(limit-taken, defaultMissing), maxEvents)
		n, err := f.backfillPage(ctx, server, p, from, wanted, &patience)
		if ctx.Err() != nil {
			return taken, ctx.Err()
		}
		if err != nil {
			failed = err
		}
		switch {
		case err != nil && !f.peers.isConnected(server): // to try again would take long
			f.quests.notThere(server, f.Now())
			servers = slices.DeleteFunc(servers, func(other eventgraph.ServerName) bool { return other == server })
		case err != nil || n == 0:
			silent[server] = true
		default:
			clear(silent)
			if len(from) == 1 && n >= wanted/2 {
				f.quests.askOn(room, server)
			}
		}
		if taken += n; taken >= limit {
			break
		}
	}
	if taken == 0 && failed != nil {
		return 0, failed
	}
	return taken, nil
}

// maxHeldPast bounds how many outliers takeHeldPast looks at.
const maxHeldPast = 1000

// takeHeldPast takes in what the room's backward extremities, all of them, rest on, as far as that is held, if only as outliers, and all that it
// rests on: a room's first events are part of its state, so who has joined since has them. Nobody need be asked for it.
func (f *Federation) takeHeldPast(ctx context.Context, room eventgraph.RoomID, patience *time.Duration) (int, error) {
	p, err := f.backwardsAbove(room, math.MinInt64)
	if err != nil {
		return 0, err
	}
	var held []*eventgraph.Event
	err = f.Store.View(func(r *store.Reader) error {
		seen := map[eventgraph.EventID]bool{}
		todo := slices.Sorted(maps.Keys(p.linked))
		for len(todo) > 0 && len(held) < maxHeldPast {
			id := todo[0]
			todo = todo[1:]
			if seen[id] {
				continue
			}
			seen[id] = true
			e, err := r.Event(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !hasPlace(e) && e.RoomID() == room {
				held = append(held, e.Event)
				todo = append(todo, e.PrevEvents()...)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	var page []*eventgraph.Event
	whole := map[eventgraph.EventID]bool{}
	for _, e := range unique(held) {
		rests, err := f.restsOn(e, whole)
		if err != nil {
			return 0, err
		}
		if rests {
			whole[e.ID()] = true
			page = append(page, e)
		}
	}
	if len(page) == 0 {
		return 0, nil
	}
	return f.takePage(ctx, f.server, p.room, page, patience)
}

// backwards reads the room and its backward extremities, those farthest back first, without those where a purge has ended the history.
func (f *Federation) backwards(room eventgraph.RoomID) (*store.Room, []eventgraph.EventID, error) {
	p, err := f.backwardsAbove(room, math.MinInt64)
	if err != nil {
		return nil, nil, err
	}
	var from []eventgraph.EventID
	for _, e := range p.from {
		from = append(from, e.id)
	}
	return p.room, from, nil
}

// backfillPage asks one server for events before from and takes them in, oldest first. The patience is that of signPast.
func (f *Federation) backfillPage(ctx context.Context, server eventgraph.ServerName, p *past, from []eventgraph.EventID, limit int, patience *time.Duration) (int, error) {
	room := p.room
	// The answer holds from too, as far as the server has it.
	page, err := f.askBackfill(ctx, server, room, from, min(limit+len(from), maxEvents))
	if err != nil {
		return 0, err
	}
	page = p.ahead(unique(page))
	for range maxWidening {
		edges, err := f.edges(page)
		if err != nil {
			return 0, err
		}
		if edges = slices.DeleteFunc(edges, func(id eventgraph.EventID) bool { return id == page[0].ID() }); len(edges) == 0 {
			break
		}
		more, err := f.askBackfill(ctx, server, room, edges, maxEvents)
		if err != nil || len(more) == 0 {
			break
		}
		page = p.ahead(unique(append(page, more...)))
	}
	return f.takePage(ctx, server, room, page, patience)
}

// askBackfill returns the events of an answer to /backfill that have no place here yet.
func (f *Federation) askBackfill(ctx context.Context, server eventgraph.ServerName, room *store.Room, from []eventgraph.EventID, limit int) ([]*eventgraph.Event, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, id := range from[:min(len(from), maxBackfillFrom)] {
		query.Add("v", string(id))
	}
	var answer pdus
	if err := f.do(ctx, server, http.MethodGet, target(v1+"backfill", []string{string(room.ID)}, query), nil, &answer); err != nil {
		return nil, err
	}
	if len(answer.PDUs) > maxEvents {
		return nil, malformed(server, "more events than asked for")
	}
	var news []*eventgraph.Event
	for _, e := range parseAll(room.Version, answer.PDUs) {
		if e.RoomID() != room.ID {
			continue
		}
		if placed, err := f.placed(e.ID()); err != nil {
			return nil, err
		} else if !placed {
			news = append(news, e)
		}
	}
	return news, nil
}

// placed says whether an event is held and has its place in the graph.
func (f *Federation) placed(id eventgraph.EventID) (is bool, err error) {
	return is, f.Store.View(func(r *store.Reader) error {
		verdict, held, err := r.HasEvent(id)
		if err != nil || !held || verdict != store.Rejected {
			is = held && verdict != store.Outlier
			return err
		}
		e, err := r.Event(id)
		is = err == nil && hasPlace(e)
		return err
	})
}

// hasPlace is placed of an event that is held. One that was rejected as an outlier has none.
func hasPlace(e *store.StoredEvent) bool {
	return e.Verdict != store.Outlier && (e.Verdict != store.Rejected || e.StateAfter != eventgraph.Hash{})
}

// unique drops repeated events and sorts the others, parents first.
func unique(events []*eventgraph.Event) []*eventgraph.Event {
	seen := map[eventgraph.EventID]bool{}
	return eventgraph.SortTopologically(slices.DeleteFunc(events, func(e *eventgraph.Event) bool {
		again := seen[e.ID()]
		seen[e.ID()] = true
		return again
	}))
}

// edges lists the events of a page that rest on parents neither in it nor placed here, in the order of the page.
func (f *Federation) edges(page []*eventgraph.Event) ([]eventgraph.EventID, error) {
	in := map[eventgraph.EventID]bool{}
	for _, e := range page {
		in[e.ID()] = true
	}
	var edges []eventgraph.EventID
	for _, e := range page {
		rests, err := f.restsOn(e, in)
		if err != nil {
			return nil, err
		}
		if !rests {
			edges = append(edges, e.ID())
		}
	}
	return edges, nil
}

// restsOn says whether all parents of e are in the set or placed here.
func (f *Federation) restsOn(e *eventgraph.Event, in map[eventgraph.EventID]bool) (bool, error) {
	for _, id := range e.PrevEvents() {
		if in[id] {
			continue
		}
		if placed, err := f.placed(id); err != nil || !placed {
			return false, err
		}
	}
	return true, nil
}

// takePage puts a page, sorted, through Accept. As far as all of it rests on its first event it is one run; otherwise
// it falls into chains, the newest first, because each run gets its place below all that is held.
func (f *Federation) takePage(ctx context.Context, server eventgraph.ServerName, room *store.Room, page []*eventgraph.Event, patience *time.Duration) (int, error) {
	page, err := f.judgeable(ctx, server, room, page)
	if err != nil {
		return 0, err
	}
	page, declined, err := f.signPast(ctx, room.ID, page, patience)
	if err != nil {
		return 0, err
	}
	edges, err := f.edges(page)
	if err != nil {
		return 0, err
	}
	runs := [][]*eventgraph.Event{page}
	if len(edges) > 1 || len(edges) == 1 && edges[0] != page[0].ID() {
		runs = chains(page)
	}
	taken := 0
	var refused error
	for _, run := range runs[:min(len(runs), maxEdges)] {
		n, err := f.takeRun(ctx, server, room, run, declined)
		if taken += n; isRefusal(err) {
			refused = err
		} else if err != nil {
			return taken, err
		}
	}
	if taken > 0 {
		refused = nil
	}
	return taken, refused
}

// judgeable obtains the keys and auth events that a page needs, and leaves out the events for which they are not to be had: what rests
// on those will rest on a claim.
func (f *Federation) judgeable(ctx context.Context, server eventgraph.ServerName, room *store.Room, page []*eventgraph.Event) ([]*eventgraph.Event, error) {
	if err := f.ensureKeys(ctx, keysOf(page...), []eventgraph.ServerName{server}); err != nil {
		f.Log.Info("backfilling with keys missing", "room", room.ID, "err", err)
		page = slices.DeleteFunc(page, func(e *eventgraph.Event) bool { return len(f.lacking(keysOf(e))) > 0 })
	}
	missing, err := f.missingAuth(page)
	if err != nil || len(missing) == 0 {
		return page, err
	}
	if err := f.fetchOutliers(ctx, server, room, missing[:min(len(missing), maxSingly)]); err != nil {
		return nil, err
	}
	for { // leaving one out may leave others without their auth events
		missing, err = f.missingAuth(page)
		if err != nil || len(missing) == 0 {
			return page, err
		}
		page = slices.DeleteFunc(page, func(e *eventgraph.Event) bool {
			return slices.ContainsFunc(e.AuthEvents(), func(id eventgraph.EventID) bool { return slices.Contains(missing, id) })
		})
	}
}

// missingAuth lists the auth events of a page that are neither held nor in it.
func (f *Federation) missingAuth(page []*eventgraph.Event) ([]eventgraph.EventID, error) {
	known := map[eventgraph.EventID]bool{}
	for _, e := range page {
		known[e.ID()] = true
	}
	var asked []eventgraph.EventID
	for _, e := range page {
		for _, id := range e.AuthEvents() {
			if !known[id] {
				known[id] = true
				asked = append(asked, id)
			}
		}
	}
	return f.notHeld(asked)
}

// chains cuts a sorted page into runs of which each event but the first rests on the one before it alone, in an order such that the
// parents of an event are in its own run or in a later one.
func chains(page []*eventgraph.Event) [][]*eventgraph.Event {
	in := map[eventgraph.EventID]*eventgraph.Event{}
	children := map[eventgraph.EventID]int{} // in no run yet
	for _, e := range page {
		in[e.ID()] = e
		for _, id := range e.PrevEvents() {
			children[id]++
		}
	}
	var runs [][]*eventgraph.Event
	for i := len(page) - 1; i >= 0; i-- {
		e := page[i] // its children come after it in the page, and so are in runs
		var run []*eventgraph.Event
		for e != nil && in[e.ID()] != nil {
			run = append(run, e)
			delete(in, e.ID())
			for _, id := range e.PrevEvents() {
				children[id]--
			}
			if len(e.PrevEvents()) != 1 || children[e.PrevEvents()[0]] > 0 {
				break
			}
			e = in[e.PrevEvents()[0]]
		}
		if len(run) > 0 {
			slices.Reverse(run)
			runs = append(runs, run)
		}
	}
	return runs
}

// takeRun puts events, parents first, through Accept: the first on its parents if they are here, else on the state that the server claims
// before it. One before which the server does not tell the state, as history visibility hides it, is left out: others need not rest on it. The
// refusal is returned if nothing was taken. declined is what the room's policy server has declined to sign.
func (f *Federation) takeRun(ctx context.Context, server eventgraph.ServerName, room *store.Room, run []*eventgraph.Event, declined map[eventgraph.EventID]bool) (int, error) {
	taken := 0
	var refused error
	for tries := 0; len(run) > 0 && tries < maxEdges; tries++ {
		basis := rooms.Basis{Kind: rooms.Parents, Backfill: true, Origin: server, Declined: declined}
		rests, err := f.restsOn(run[0], nil)
		if err != nil {
			return taken, err
		}
		if !rests && server == f.server {
			break // nobody claims a state to themselves
		}
		if !rests {
			basis.Kind = rooms.Claimed
			if basis.State, err = f.claimedState(ctx, server, room, run[0].ID()); isRefusal(err) {
				refused, run = err, run[1:]
				continue
			} else if err != nil {
				return taken, err
			}
		}
		outcomes, err := f.Rooms.AcceptAll(ctx, run, basis)
		if err != nil {
			return taken, err
		}
		for _, o := range outcomes {
			if o.Err == nil && !o.Already {
				taken++
			}
		}
		// One that was refused leaves those behind it without a parent: they go on from a claim.
		var missing *rooms.MissingError
		if len(outcomes) == 0 || !errors.As(outcomes[len(outcomes)-1].Err, &missing) {
			break
		}
		f.Log.Info("event of a backfill must wait", "event", run[len(outcomes)-1].ID(), "server", server, "err", missing)
		if len(outcomes) == 1 {
			run = run[1:]
		} else {
			run = run[len(outcomes)-1:]
		}
	}
	if taken > 0 {
		refused = nil
	}
	return taken, refused
}

// claimedState asks a server for the state before an event and makes all of it held here, at least as outliers.
func (f *Federation) claimedState(ctx context.Context, server eventgraph.ServerName, room *store.Room, id eventgraph.EventID) ([]eventgraph.EventID, error) {
	query := url.Values{"event_id": {string(id)}}
	var ids stateIDsAnswer
	if err := f.doLarge(ctx, server, http.MethodGet, target(v1+"state_ids", []string{string(room.ID)}, query), nil, &ids, maxState); err != nil {
		return nil, err
	}
	missing, err := f.notHeld(append(slices.Clone(ids.PDUIDs), ids.AuthChainIDs...))
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 && len(missing) <= maxSingly {
		if err := f.fetchOutliers(ctx, server, room, missing); err != nil {
			return nil, err
		}
		// An event of the state may be hidden from us by history visibility, or lost on the way; the state as such is not.
		if missing, err = f.notHeld(ids.PDUIDs); err != nil {
			return nil, err
		}
	}
	if len(missing) > 0 {
		var whole struct {
			AuthChain []json.RawMessage `json:"auth_chain"`
			PDUs      []json.RawMessage `json:"pdus"`
		}
		if err := f.doLarge(ctx, server, http.MethodGet, target(v1+"state", []string{string(room.ID)}, query), nil, &whole, maxState); err != nil {
			return nil, err
		}
		events := append(parseAll(room.Version, whole.AuthChain), parseAll(room.Version, whole.PDUs)...)
		if err := f.acceptOutliers(ctx, server, events...); err != nil {
			return nil, err
		}
	}
	missing, err = f.notHeld(ids.PDUIDs)
	if err != nil {
		return nil, err
	}
	// What nobody can supply in a form that stands its checks is no part of the state.
	if len(missing) > 0 {
		f.Log.Info("claimed state with events missing", "room", room.ID, "event", id, "server", server, "missing", len(missing))
	}
	return slices.DeleteFunc(ids.PDUIDs, func(id eventgraph.EventID) bool { return slices.Contains(missing, id) }), nil
}

// notHeld keeps the IDs of events that are not held in any verdict.
func (f *Federation) notHeld(ids []eventgraph.EventID) ([]eventgraph.EventID, error) {
	var missing []eventgraph.EventID
	return missing, f.Store.View(func(r *store.Reader) error {
		for _, id := range ids {
			if _, held, err := r.HasEvent(id); err != nil {
				return err
			} else if !held {
				missing = append(missing, id)
			}
		}
		return nil
	})
}

// fetchOutliers fetches events, and what is missing of their auth chains, one by one from a server, and keeps them as outliers. That some cannot
// be had is no error.
func (f *Federation) fetchOutliers(ctx context.Context, server eventgraph.ServerName, room *store.Room, ids []eventgraph.EventID) error {
	asked := map[eventgraph.EventID]bool{}
	var events []*eventgraph.Event
	for round := 0; len(ids) > 0 && round < maxAuthRounds; round++ {
		got := make([]*eventgraph.Event, len(ids))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(singlyAtOnce)
		for i, id := range ids {
			asked[id] = true
			group.Go(func() error {
				e, err := f.fetchEvent(ctx, server, room, id)
				if err != nil {
					f.Log.Debug("event not to be had", "event", id, "server", server, "err", err)
				}
				got[i] = e
				return ctx.Err()
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		var next []eventgraph.EventID
		for _, e := range got {
			if e == nil {
				continue
			}
			events = append(events, e)
			for _, id := range e.AuthEvents() {
				if !asked[id] && !slices.Contains(next, id) {
					next = append(next, id)
				}
			}
		}
		var err error
		if ids, err = f.notHeld(next); err != nil {
			return err
		}
		ids = ids[:min(len(ids), maxSingly)]
	}
	return f.acceptOutliers(ctx, server, events...)
}

// fetchEvent fetches one event of a room from a server.
func (f *Federation) fetchEvent(ctx context.Context, server eventgraph.ServerName, room *store.Room, id eventgraph.EventID) (*eventgraph.Event, error) {
	var answer pdus
	if err := f.do(ctx, server, http.MethodGet, target(v1+"event", []string{string(id)}, nil), nil, &answer); err != nil {
		return nil, err
	}
	if len(answer.PDUs) != 1 {
		return nil, malformed(server, "not one event")
	}
	e, err := eventgraph.ParseEvent(room.Version, answer.PDUs[0])
	if err != nil {
		return nil, malformed(server, err.Error())
	}
	if e.ID() != id || e.RoomID() != room.ID {
		return nil, malformed(server, "another event than asked for")
	}
	return e, nil
}

// acceptOutliers puts events of one room that come from a server through Accept on no basis, in the order of their auth events, with the key documents they need. Those
// that cannot be taken in are logged and left out.
func (f *Federation) acceptOutliers(ctx context.Context, from eventgraph.ServerName, events ...*eventgraph.Event) error {
	if err := f.ensureKeys(ctx, keysOf(events...), []eventgraph.ServerName{from}); err != nil {
		f.Log.Info("events with keys missing", "server", from, "err", err)
	}
	events = unique(events)
	for len(events) > 0 {
		outcomes, err := f.Rooms.AcceptAll(ctx, events, rooms.Basis{Kind: rooms.Nothing, Origin: from})
		if err != nil {
			return fmt.Errorf("outliers: %w", err)
		}
		for i, o := range outcomes {
			if o.Err != nil {
				f.Log.Info("event of an auth chain or state left out", "event", events[i].ID(), "server", from, "err", o.Err)
			}
		}
		if len(outcomes) == 0 {
			break
		}
		events = events[len(outcomes):]
	}
	return nil
}
