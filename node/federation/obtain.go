package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What decide (fetch.go) says is to be asked for is asked for here; what comes goes through Accept, or waits too.

const (
	// missingLimit is how many events one get_missing_events asks for; the spec lets servers give fewer.
	missingLimit = 100
	// maxEarliest bounds the extremities named in get_missing_events: they only spare repetition.
	maxEarliest = 20
)

var (
	errNothingNew     = errors.New("the answer held nothing new")
	errTooManyWaiting = errors.New("too many events of the room wait already")
)

// obtain asks one question, stores what the answer brings, and marks as ready what may go on by it.
func (f *Federation) obtain(ctx context.Context, w *waiting, a ask) error {
	var item *store.InboxItem
	err := f.Store.View(func(r *store.Reader) (err error) {
		item, err = r.InboxItem(w.room, a.event)
		return err
	})
	if err != nil {
		return err
	}
	e, err := eventgraph.ParseEvent(w.version, item.PDU)
	if err != nil {
		return err
	}
	room, _, err := f.backwards(w.room)
	if err != nil {
		return err
	}
	switch a.kind {
	case askKeys:
		needed := w.events[a.event].keys
		err = f.ensureKeys(ctx, needed, f.holders(w).about(item.Origin))
		f.keysCame(w, needed)
		return err
	case askMissing:
		return f.askMissing(ctx, w, room, a.server, e)
	case askAuth:
		chain, err := f.askAuth(ctx, w.room, a.server, e)
		return errors.Join(err, f.eventsCame(w, chain))
	case askEvent:
		parent, err := f.fetchEvent(ctx, a.server, room, a.parent)
		if err != nil {
			return err
		}
		return f.await(ctx, w, a.server, []*eventgraph.Event{parent})
	case askState:
		if err := f.askState(ctx, room, a.server, e, f.inboxTime.waited(item)); err != nil {
			return err
		}
		w.ready = append(w.ready, e.ID()) // with its verdict now
		return nil
	case askPolicy:
		need := w.events[a.event].policy
		if err := f.takeUnsigned(ctx, need, rooms.Basis{Kind: rooms.Parents, Origin: item.Origin}, f.inboxTime.waited(item)); err != nil {
			return err
		}
		w.events[a.event].policy = nil
		w.ready = append(w.ready, e.ID()) // with its verdict now, or what it rests on has its
		return nil
	}
	panic(fmt.Sprintf("federation: ask of kind %d", a.kind))
}

// isRefusal says whether an error is the server's answer that it does not have, or does not give, what it was asked for.
func isRefusal(err error) bool {
	var remote *remoteError
	return errors.As(err, &remote) && (remote.Status == http.StatusForbidden || remote.Status == http.StatusNotFound)
}

// keysCame lets those events go on that waited for one of the keys, if it has come.
func (f *Federation) keysCame(w *waiting, asked []rooms.KeyNeeded) {
	for _, k := range asked {
		if len(f.lacking([]rooms.KeyNeeded{k})) > 0 {
			continue
		}
		key := neededKey{k.Server, k.ID}
		waited := w.keyless[key]
		delete(w.keyless, key)
		for _, id := range waited {
			e := w.events[id]
			if e == nil || len(e.keys) == 0 {
				continue
			}
			if len(f.lacking(e.keys)) > 0 {
				w.keyless[key] = append(w.keyless[key], id) // it needs others, or the key at another time
				continue
			}
			if e.keys = nil; len(e.lacks) == 0 {
				w.ready = append(w.ready, id)
			}
			w.enqueue(id)
		}
	}
}

// eventsCame lets those events go on that lacked one that is held now.
func (f *Federation) eventsCame(w *waiting, came []*eventgraph.Event) error {
	return f.Store.View(func(r *store.Reader) error {
		for _, e := range came {
			if w.events[e.ID()] != nil || len(w.children[e.ID()]) == 0 {
				continue
			}
			if _, held, err := r.HasEvent(e.ID()); err != nil {
				return err
			} else if !held {
				continue
			}
			for _, child := range w.childrenOf(e.ID()) {
				w.nowHeld(child, e.ID())
				w.enqueue(child.id)
			}
			delete(w.children, e.ID())
		}
		return nil
	})
}

// askMissing asks for the events between our extremities and the waiting event (SS API, Retrieving missing events).
func (f *Federation) askMissing(ctx context.Context, w *waiting, room *store.Room, server eventgraph.ServerName, e *eventgraph.Event) error {
	body := struct {
		Earliest []eventgraph.EventID `json:"earliest_events"`
		Latest   []eventgraph.EventID `json:"latest_events"`
		Limit    int                  `json:"limit"`
	}{room.Forward[:min(len(room.Forward), maxEarliest)], []eventgraph.EventID{e.ID()}, missingLimit}
	var answer struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := f.do(ctx, server, http.MethodPost, target(v1+"get_missing_events", []string{string(room.ID)}, nil), body, &answer); err != nil {
		return err
	}
	parents := parseAll(e.Version(), answer.Events[:min(len(answer.Events), missingLimit)])
	return f.await(ctx, w, server, slices.DeleteFunc(parents, func(p *eventgraph.Event) bool { return p.RoomID() != room.ID }))
}

// await puts events that were asked for into the inbox, where the visit goes on with them; those held already, or waiting, add nothing.
func (f *Federation) await(ctx context.Context, w *waiting, server eventgraph.ServerName, events []*eventgraph.Event) error {
	var items []*store.InboxItem
	var news []*eventgraph.Event
	from := f.giver(w.room, server)
	full := false
	err := f.Store.View(func(r *store.Reader) error {
		for _, e := range unique(events) {
			verdict, held, err := r.HasEvent(e.ID())
			if err != nil {
				return err
			}
			waits, err := r.InboxHas(w.room, e.ID())
			if err != nil {
				return err
			}
			if !waits && (!held || verdict == store.Outlier) && !f.inbox.wasRefused(e.ID(), server) {
				if full = !f.inbox.reserve(w.room, len(e.Raw()), from); full {
					break // what has a place was not obtained in vain
				}
				items = append(items, &store.InboxItem{ID: e.ID(), Room: w.room, Origin: server, PDU: e.Raw()})
				news = append(news, e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(items) == 0 && full {
		return errTooManyWaiting // the state is asked for instead, of the room's servers
	}
	if len(items) == 0 {
		return errNothingNew
	}
	if err := f.putInbox(ctx, items); err != nil {
		return err
	}
	return f.Store.View(func(r *store.Reader) error {
		for _, e := range news {
			if err := w.add(r, e, server); err != nil {
				return err
			}
		}
		return nil
	})
}

// askAuth fetches the auth chain of a waiting event and keeps it as outliers. It returns what came.
func (f *Federation) askAuth(ctx context.Context, room eventgraph.RoomID, server eventgraph.ServerName, e *eventgraph.Event) ([]*eventgraph.Event, error) {
	var answer struct {
		AuthChain []json.RawMessage `json:"auth_chain"`
	}
	if err := f.doLarge(ctx, server, http.MethodGet, target(v1+"event_auth", []string{string(room), string(e.ID())}, nil), nil, &answer, maxState); err != nil {
		return nil, err
	}
	events := slices.DeleteFunc(parseAll(e.Version(), answer.AuthChain), func(a *eventgraph.Event) bool { return a.RoomID() != room })
	return events, f.acceptOutliers(ctx, server, events...)
}

// askState takes the event in on the state before it as the server claims it: its parents are not to be had. The event carries a gap
// marker (design.md §3.1 b). Where the room's policy server must sign it and cannot be asked now, the state is not asked for either.
func (f *Federation) askState(ctx context.Context, room *store.Room, server eventgraph.ServerName, e *eventgraph.Event, waited time.Duration) error {
	lack, err := f.Rooms.Unsigned(ctx, room.ID, []*eventgraph.Event{e})
	if err != nil {
		return err
	}
	if len(lack) > 0 && f.policies.full(lack[0].By.Name, room.ID) {
		return errPolicyTurn
	}
	if len(lack) > 0 && f.budgets.friend(server).TokensAt(time.Now()) < costPolicy {
		return errAskedEnough
	}
	state, err := f.claimedState(ctx, server, room, e.ID())
	if err != nil {
		return err
	}
	basis := rooms.Basis{Kind: rooms.Claimed, State: state, Origin: server}
	result, err := f.Rooms.Accept(ctx, e, basis)
	if need := policyOf(err); need != nil {
		if !f.policies.begin(need.By.Name, room.ID) {
			return errPolicyTurn
		}
		err := f.takeUnsigned(ctx, need, basis, waited)
		f.endTurn(need.By.Name, room.ID, err)
		return err
	}
	f.logOutcome(e, server, rooms.Outcome{Result: result, Err: err})
	return err
}
