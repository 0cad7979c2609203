package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
	if errors.As(err, &remote) {
		return false // it has answered, with a refusal
	}
	if ctx.Err() != nil {
		return true // nobody waits any more, but the answer may be on its way: to be found out another time
	}
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	return i.listRest(ctx, i.join.Server) == nil
}

// fetchRest fetches what is missing until all has come, or nobody has the rest.
func (i *importing) fetchRest(ctx context.Context) error {
	wait := joinRetry
	vain := 0
	turn := i.f.peers.latest()
	var err error
	for ; i.join.Phase != store.JoinWhole; wait = min(2*wait, joinRetryMost) {
		before := i.join.Arrived
		asked := 0
		asked, err = i.askAround(ctx)
		var refusal *rooms.Refusal
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			return i.note(ctx, func() { i.join.Phase = store.JoinWhole })
		case i.join.Arrived > before:
			wait, vain = joinRetry/2, 0
			continue
		case errors.Is(err, errNotGiven) && asked > 0:
			if vain++; vain == vainRounds {
				i.f.Log.Warn("joining a room without events that nobody gave", "room", i.join.Room, "err", err)
				return i.note(ctx, func() { i.join.Phase = store.JoinWhole })
			}
		case errors.As(err, &refusal) && asked > 0:
			if vain++; vain == vainRounds {
				return err
			}
		}
		if i.f.Now().Sub(time.UnixMilli(i.join.Since)) > joinKeep {
			return &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "no server of the room could be reached for too long"}
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

// errNotGiven: a server of the room does not have, or does not show, what is missing.
var errNotGiven = errors.New("not given")

// askAround asks the room's servers in turn until nothing is missing. It returns how many have answered, and the last error.
func (i *importing) askAround(ctx context.Context) (asked int, err error) {
	err = fmt.Errorf("%w: no server of the room is known", ErrUnreachable)
	for _, server := range i.f.connectedFirst(i.servers) {
		var refusal *rooms.Refusal
		was := err
		err = i.askRest(ctx, server)
		if err == nil || ctx.Err() != nil {
			return asked, err
		}
		if errors.Is(err, errNotGiven) || errors.As(err, &refusal) {
			asked++
		} else if asked > 0 {
			err = was // one that answered says more
		}
	}
	return asked, err
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
				case "auth_chain":
					return i.takeList(ctx, s, false)
				case "pdus":
					return i.takeList(ctx, s, true)
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

// listRest asks of what the state before our join is made, and keeps what of it has not come.
func (i *importing) listRest(ctx context.Context, server eventgraph.ServerName) error {
	query := url.Values{"event_id": {string(i.event.ID())}}
	total := 0
	err := i.f.doStream(ctx, server, http.MethodGet, target(v1+"state_ids", []string{string(i.join.Room)}, query), nil, func(answer io.Reader) error {
		return readObject(answer, maxAnswer, func(name string, s *objectStream) error {
			if name != "pdu_ids" && name != "auth_chain_ids" {
				return nil
			}
			var ids []eventgraph.EventID
			flush := func() error {
				part := ids
				ids = nil
				return i.want(ctx, part, name == "pdu_ids")
			}
			err := s.array(func(raw json.RawMessage) error {
				var name string
				if err := json.Unmarshal(raw, &name); err != nil {
					return err
				}
				id, err := eventgraph.ParseEventID(name)
				if err != nil {
					return malformed(server, err.Error())
				}
				if total++; total > maxImported {
					return malformed(server, "too many events")
				}
				if ids = append(ids, id); len(ids) < importBatch {
					return nil
				}
				return flush()
			})
			if err != nil {
				return err
			}
			return flush()
		})
	})
	if err != nil {
		return err
	}
	return i.note(ctx, func() {
		i.join.Expected = total
		if i.join.Phase == store.JoinSent {
			i.join.Phase = store.JoinTaken
		}
	})
}

// want notes which events are of the room's state or auth chains.
func (i *importing) want(ctx context.Context, ids []eventgraph.EventID, state bool) error {
	var changed []*store.Staged
	err := i.f.Store.View(func(r *store.Reader) error {
		for _, id := range ids {
			s, err := r.StagedEvent(i.join.Room, id)
			if errors.Is(err, store.ErrNotFound) {
				s = &store.Staged{ID: id, State: state}
				_, s.Settled, err = r.HasEvent(id)
				changed = append(changed, s)
			} else if err == nil && state && !s.State {
				s.State = true
				changed = append(changed, s)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return i.keep(ctx, changed)
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
	if err := i.take(ctx, unique(got), false); err != nil {
		return err
	}
	return failed
}
