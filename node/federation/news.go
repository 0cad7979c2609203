package federation

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Events that we did not make travel by meetings, of which there may be one in ten minutes. Where two servers of a room do not reach
// each other, and a third reaches both, that is long: so the third hints. A hint is a stream opened and closed, and says "ask me
// again"; what it costs who gets it is one meeting in newsDelay at most.

// protocolNews is spoken on streams of its own; who does not know it waits for the next meeting.
const protocolNews = "/plexus/news/1"

const (
	// newsDelay is how long a hint waits, so that it tells of several events, and of those that come straight from their servers
	// only as of others: they are held by then.
	newsDelay = 3 * time.Second
	// maxHinted is the size in servers of rooms beyond which nobody hints at each event: there each would hint to each. gossipcheck.go
	// does there.
	maxHinted = gossipAbove
	// hintsAtOnce and hintTimeout bound the streams being opened for hints.
	hintsAtOnce = 4
	hintTimeout = 5 * time.Second
)

// hintNews tells the connected servers of small rooms when others' events have come, until ctx ends.
func (f *Federation) hintNews(ctx context.Context) error {
	from := f.Store.Position()
	for {
		if _, err := f.Store.Wait(ctx, from); err != nil {
			return err
		}
		select {
		case <-time.After(newsDelay):
		case <-ctx.Done():
			return ctx.Err()
		}
		upTo := f.Store.Position()
		concerned := map[eventgraph.ServerName]bool{}
		err := f.Store.View(func(r *store.Reader) error {
			return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
				err := f.hinted(r, c, concerned)
				if errors.Is(err, store.ErrNotFound) {
					err = nil // the room or the event has gone
				}
				return ctx.Err() == nil, err
			})
		})
		if err != nil {
			return err
		}
		from = upTo
		var group errgroup.Group
		group.SetLimit(hintsAtOnce)
		for server := range concerned {
			for _, peer := range f.peers.of(server) {
				group.Go(func() error {
					f.hintTo(ctx, peer)
					return nil
				})
			}
		}
		group.Wait()
	}
}

func (f *Federation) hintTo(ctx context.Context, peer eventgraph.PeerID) {
	ctx, cancel := context.WithTimeout(ctx, hintTimeout)
	defer cancel()
	if s, err := f.Transport.OpenStream(ctx, peer, protocolNews); err == nil {
		s.Close()
	}
}

// hinted adds the servers that a change is news to and that we do not send it.
func (f *Federation) hinted(r *store.Reader, c store.Change, concerned map[eventgraph.ServerName]bool) error {
	if c.Kind != store.ChangeEvent {
		return nil
	}
	e, err := r.Event(c.Event)
	if err != nil || f.announces(e, c) {
		return err
	}
	servers, err := f.Rooms.Servers(c.Room)
	if err != nil || len(servers) > maxHinted || len(servers) < 3 {
		return err
	}
	for _, s := range servers {
		if s != f.server && s != e.Sender().Server() && f.allows(c.Room, s) {
			concerned[s] = true
		}
	}
	return nil
}
