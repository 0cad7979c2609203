package federation

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Meetings of those who share large rooms alone become seldom, for gossip leaves them nothing to bring. So that what gossip has lost does
// not wait for them, whoever has published hints to a few (news.go) that they ask; if one of them had missed something, it hints to a few
// in its turn. What reached nobody goes round in a minute or so; where nothing is lost, it costs a few meetings in checkEvery.

const (
	// checkDelay is how long gossip is given before others are told to ask.
	checkDelay = 3 * time.Second
	// checkEvery is the shortest time between two such hints.
	checkEvery = 30 * time.Second
	// checkedBy is how many servers of a room are hinted to at a time: once by who has published, checksOfMissed times by who had missed
	// something. With six hints from each who learns of an event, one server in 400 is not reached.
	checkedBy      = 3
	checksOfMissed = 2
)

// published lets a few of the room's servers soon be told to ask for what they may have missed.
func (g *gossip) published(room eventgraph.RoomID) { g.check(room, 1) }

// missed does the same when we had missed something.
func (g *gossip) missed(room eventgraph.RoomID) { g.check(room, checksOfMissed) }

func (g *gossip) check(room eventgraph.RoomID, times int) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rooms[room] != nil {
		g.unchecked[room] = max(g.unchecked[room], times)
		signal(g.checking)
	}
}

// runChecks hints to some of those who should have got what was published, until ctx ends.
func (f *Federation) runChecks(ctx context.Context) error {
	g := f.gossip
	for {
		select {
		case <-g.checking:
		case <-ctx.Done():
			return nil
		}
		if !pause(ctx, checkDelay, nil) {
			return nil
		}
		for _, peer := range f.toCheck() {
			f.hintTo(ctx, peer)
		}
		if !pause(ctx, checkEvery, nil) {
			return nil
		}
	}
}

// toCheck chooses a few connected peers of each room.
func (f *Federation) toCheck() (peers []eventgraph.PeerID) {
	g := f.gossip
	contacts := f.peers.contacts()
	rand.Shuffle(len(contacts), func(i, j int) { contacts[i], contacts[j] = contacts[j], contacts[i] })
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.unchecked {
		n := 0
		for _, c := range contacts {
			if r := g.rooms[id]; n < checkedBy && r != nil && r.isMember(c.Server) {
				n++
				if !slices.Contains(peers, c.Peer) {
					peers = append(peers, c.Peer)
				}
			}
		}
	}
	maps.DeleteFunc(g.unchecked, func(_ eventgraph.RoomID, times int) bool { return times <= 1 })
	for id := range g.unchecked {
		g.unchecked[id]--
		signal(g.checking)
	}
	return peers
}
