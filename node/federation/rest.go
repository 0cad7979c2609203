package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// What an answer of send_join lacked is asked of any server in the room: first which events the state before our join is made of (/state_ids),
// then, of one server each, those that are missing: all at once where they are many, else one by one.

// mayBeIn says whether a server may have taken in our join, though err came instead of its answer. Where nothing came, not even a status,
// it is asked: whoever is not in the room is told nothing of it.
func (i *importing) mayBeIn(ctx context.Context, err error) bool {
	if i.join.Phase != store.JoinSent {
		return true
	}
	var remote *remoteError
	if errors.As(err, &remote) && remote.Status < http.StatusInternalServerError {
		return false // it has answered, with a refusal
	}
	if ctx.Err() != nil {
		return true // nobody waits any more, but the answer may be on its way: to be found out another time
	}
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	i.listRest(ctx, i.join.Server) // as far as it comes in that time: its beginning is enough
	return i.join.Phase != store.JoinSent
}

// fetchRest fetches what is missing until all has come, or nobody has the rest.
func (i *importing) fetchRest(ctx context.Context) error {
	wait := joinRetry
	vain := 0
	turn := i.f.peers.latest()
	for ; i.join.Phase != store.JoinWhole; wait = min(2*wait, joinRetryMost) {
		before := i.join.Arrived
		worst, err := i.askAround(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			return i.note(ctx, func() { i.join.Phase = store.JoinWhole })
		case i.f.Now().Sub(time.UnixMilli(i.join.Since)) > joinKeep:
			return &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "the room's servers have not given it for too long"}
		case i.join.Arrived > before:
			wait, vain = joinRetry/2, 0
			continue
		case worst > notHeard || worst == notHeard && i.elsewhere:
			vain++
		}
		switch {
		case vain < vainRounds:
		case worst == notGiven:
			i.f.Log.Warn("joining a room without events that nobody gave", "room", i.join.Room, "err", err)
			return i.note(ctx, func() { i.join.Phase = store.JoinWhole })
		case worst == refused:
			return err
		case worst == notHeard && i.elsewhere:
			return fmt.Errorf("%w: %w", errNotHeard, err)
		}
		i.f.Log.Info("the rest of a room is not to be had now", "room", i.join.Room, "arrived", i.join.Arrived, "of", i.join.Expected, "err", err)
		met, cancel := context.WithTimeout(ctx, wait)
		if _, turn, err = i.f.peers.met(met, turn); err == nil {
			wait = joinRetry / 2
		}
		cancel()
	}
	return nil
}

var (
	// errNotGiven: a server of the room does not have, or does not show, what is missing.
	errNotGiven = errors.New("not given")
	// errNotHeard: of the room's servers that are here none has heard of our join, and the one that took it in is away.
	errNotHeard = errors.New("not heard of")
)

// shortfall is what came of asking for the rest in vain; the larger says more.
type shortfall int

const (
	unreached shortfall = iota // no answer, or one that says to come again
	notHeard                   // refused, by another server than that which took our join in: it may not have heard of it yet
	refused
	notGiven
)

func (i *importing) shortfallOf(server eventgraph.ServerName, err error) shortfall {
	var remote *remoteError
	var refusal *rooms.Refusal
	switch {
	case errors.Is(err, errNotGiven):
		return notGiven
	case errors.As(err, &remote) && (remote.Status >= http.StatusInternalServerError || remote.Status == http.StatusTooManyRequests):
		return unreached
	case remote != nil && server != i.join.Server:
		return notHeard
	case errors.As(err, &refusal):
		return refused
	}
	return unreached
}

// askAround asks the room's servers in turn until nothing is missing. Else it returns the error that says most.
func (i *importing) askAround(ctx context.Context) (most shortfall, err error) {
	err = fmt.Errorf("%w: no server of the room is known", ErrUnreachable)
	for _, server := range i.f.connectedFirst(i.servers) {
		failed := i.askRest(ctx, server)
		if failed == nil || ctx.Err() != nil {
			return unreached, failed
		}
		if what := i.shortfallOf(server, failed); what >= most {
			most, err = what, failed
		}
	}
	return most, err
}

// askRest asks one server for all that is missing.
func (i *importing) askRest(ctx context.Context, server eventgraph.ServerName) error {
	if err := i.listRest(ctx, server); err != nil {
		return err
	}
	missing, err := i.missing()
	if err != nil {
		return err
	}
	if len(missing) > maxSingly && 2*len(missing) > i.join.Expected {
		query := url.Values{"event_id": {string(i.event.ID())}}
		err := i.f.doStream(ctx, server, http.MethodGet, target(v1+"state", []string{string(i.join.Room)}, query), nil, func(answer io.Reader) error {
			return readObject(answer, maxState, func(name string, s *objectStream) error {
				switch name {
				case "auth_chain", "pdus":
					return i.takeList(ctx, s, false) // the list has told which are of the state
				}
				return nil
			})
		})
		if err != nil {
			i.f.Log.Info("the state of a room broke off", "room", i.join.Room, "server", server, "err", err)
		}
		if missing, err = i.missing(); err != nil {
			return err
		}
	}
	for len(missing) > 0 {
		part := missing[:min(len(missing), maxSingly)]
		missing = missing[len(part):]
		if err := i.fetchSingly(ctx, server, part); err != nil {
			return err
		}
	}
	if missing, err = i.missing(); err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: %d events of %s by %s", errNotGiven, len(missing), i.join.Room, server)
	}
	return err
}

// listRest asks of what the state before our join is made, and keeps what of it has not come. That a server answers at all says that our join was
// taken in.
func (i *importing) listRest(ctx context.Context, server eventgraph.ServerName) error {
	query := url.Values{"event_id": {string(i.event.ID())}}
	listed := map[eventgraph.EventID]bool{}
	err := i.f.doStream(ctx, server, http.MethodGet, target(v1+"state_ids", []string{string(i.join.Room)}, query), nil, func(answer io.Reader) error {
		if i.join.Phase == store.JoinSent {
			if err := i.note(ctx, func() { i.join.Phase = store.JoinTaken }); err != nil {
				return err
			}
		}
		return readObject(answer, maxAnswer, func(name string, s *objectStream) error {
			if name != "pdu_ids" && name != "auth_chain_ids" {
				return nil
			}
			return s.array(func(raw json.RawMessage) error {
				var named string
				if err := json.Unmarshal(raw, &named); err != nil {
					return err
				}
				id, err := eventgraph.ParseEventID(named)
				if err != nil {
					return malformed(server, err.Error())
				}
				if listed[id] = listed[id] || name == "pdu_ids"; len(listed) > maxImported {
					return malformed(server, "too many events")
				}
				return nil
			})
		})
	})
	if err != nil {
		return err
	}
	expected := len(listed)
	if err := i.want(ctx, listed); err != nil {
		return err
	}
	return i.note(ctx, func() { i.join.Expected = expected })
}

// want makes what a server has listed, true what is of the room's state, what is wanted; it uses up the list. What another server listed before and
// has not come is wanted no more, nor is it of the state: there is one server's claim, not some of each.
func (i *importing) want(ctx context.Context, listed map[eventgraph.EventID]bool) error {
	changed := map[eventgraph.EventID]bool{} // what of is staged: whether it is of the state
	var dropped []eventgraph.EventID
	err := i.f.Store.View(func(r *store.Reader) error {
		return r.Staged(i.join.Room, func(s *store.Staged) (bool, error) {
			state, is := listed[s.ID]
			delete(listed, s.ID)
			if !is && !s.Settled && s.PDU == nil {
				dropped = append(dropped, s.ID)
			} else if s.State != state {
				changed[s.ID] = state
			}
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(dropped, dropStaged) {
		_, err := i.f.Store.Update(ctx, func(tx *store.Tx) error {
			for _, id := range part {
				if err := tx.DeleteStagedEvent(i.join.Room, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := i.mark(ctx, changed); err != nil {
		return err
	}
	return i.mark(ctx, listed)
}

// mark stages events, true those that are of the room's state, a few at a time.
func (i *importing) mark(ctx context.Context, events map[eventgraph.EventID]bool) error {
	ids := slices.Collect(maps.Keys(events))
	for len(ids) > 0 {
		var marked []*store.Staged
		err := i.f.Store.View(func(r *store.Reader) error {
			for size := 0; len(ids) > 0 && len(marked) < importBatch && size < importBytes; ids = ids[1:] {
				s, err := r.StagedEvent(i.join.Room, ids[0])
				if errors.Is(err, store.ErrNotFound) {
					s = &store.Staged{ID: ids[0]}
					_, s.Settled, err = r.HasEvent(ids[0])
				}
				if err != nil {
					return err
				}
				s.State = events[s.ID]
				s.PDU = slices.Clone(s.PDU)
				size += len(s.PDU)
				marked = append(marked, s)
			}
			return nil
		})
		if err == nil {
			err = i.keep(ctx, marked)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// missing lists what has not come.
func (i *importing) missing() (ids []eventgraph.EventID, err error) {
	err = i.f.Store.View(func(r *store.Reader) error {
		return r.Staged(i.join.Room, func(s *store.Staged) (bool, error) {
			if !s.Settled && s.PDU == nil {
				ids = append(ids, s.ID)
			}
			return true, nil
		})
	})
	return ids, err
}

// fetchSingly fetches events one by one and takes them in together. That the server does not give some is no error.
func (i *importing) fetchSingly(ctx context.Context, server eventgraph.ServerName, ids []eventgraph.EventID) error {
	room := &store.Room{ID: i.join.Room, Version: i.join.Version}
	var mu sync.Mutex // of got and failed
	var got []*eventgraph.Event
	var failed error
	var wait sync.WaitGroup
	slots := make(chan struct{}, singlyAtOnce)
	for _, id := range ids {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			e, err := i.f.fetchEvent(ctx, server, room, id)
			mu.Lock()
			defer mu.Unlock()
			var refusal *rooms.Refusal
			switch {
			case err == nil:
				got = append(got, e)
			case !errors.As(err, &refusal):
				failed = err
			}
		})
	}
	wait.Wait()
	i.learnCreate(got)
	if err := i.take(ctx, unique(got), false); err != nil {
		return err
	}
	return failed
}
