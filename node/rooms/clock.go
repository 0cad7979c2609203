package rooms

import (
	"slices"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// The clock rule (design.md §4): no event is signed more than an hour ahead of the highest plausible time. An event from the future
// waits everywhere, with all that builds on it.
//
// What is plausible is a vote. Our own clock has one voice, and each server that shares a room with us and whose clock we heard lately
// has one. Most of the peers, two at least, must find our clock more than an hour ahead before it gives way, and then to the middle one of
// them, of two the higher:
//
//	heard             our clock right, one peer slow    one peer fast                 our clock fast
//	nobody            our clock counts                  –                             our clock counts
//	one peer          our clock counts                  our clock counts              our clock counts: two clocks, and nobody knows
//	two peers         our clock counts                  our clock counts              theirs + 1 h; but not if one of them is as fast
//	three and more    our clock counts                  our clock counts              the middle one + 1 h, also if one is as fast or slow
//
// So one slow clock never drags our stamps back, and one fast clock never lets us sign far ahead where two others know better. A fast peer
// can do no more than what our own clock says: the rule takes time off, and never adds any. Identities are free, so in an open room
// many servers could agree on a time long past; by the rule they get our stamps no further back than to that of our own newest event.
// (Before that lies the beginning of our key's validity, and an event from before it would count nowhere.) The price is that a node that
// signed far ahead while it was alone stays at that stamp until its clock is set; it is told to the person, with how far the clock is off.
//
// Times of events are no evidence: any member of any room can make them.

const (
	// maxAheadOfPeers is how far ahead of the plausible time we sign.
	maxAheadOfPeers = time.Hour
	// clockKept is for how long a reading counts; with a connected peer there is a request in ten minutes at least.
	clockKept = time.Hour
	// clockEvery is how often a server's clock is looked at: between two looks an answer costs nothing.
	clockEvery = time.Minute
	// clockStep is by how much our clock may have been set, or stood still in sleep, since a reading: then it says nothing any more.
	clockStep = time.Minute
	// maxClocks bounds the servers remembered; of more, those heard last have the vote.
	maxClocks = 64
	// ownLookBack bounds the changes looked through for our newest event.
	ownLookBack = 20_000
)

// reading is what a server's clock showed.
type reading struct {
	ahead time.Duration // of our clock; less than zero: ours was behind
	at    time.Time     // by our clock, with its monotonic part
}

// counts says whether the reading is new enough, and our clock has gone evenly since.
func (d reading) counts(now time.Time) bool {
	passed, shown := now.Sub(d.at), now.Round(0).Sub(d.at.Round(0))
	return passed >= 0 && passed < clockKept && (shown-passed).Abs() <= clockStep
}

// clocks are the clocks of servers that share a room with us, and what we have signed ourselves.
type clocks struct {
	mu     sync.Mutex
	heard  map[eventgraph.ServerName]reading
	newest int64 // ms; stamp of our newest event, as far as known
	read   bool  // newest counts what the store holds
	warned bool  // the person has been told that our clock is off
}

// ahead is by how much our clock is ahead of the plausible time, or, less than zero, behind it; 0 if that is within an hour or not
// known. mu is held.
func (c *clocks) ahead(now time.Time) time.Duration {
	var all []time.Duration
	for _, d := range c.heard {
		if d.counts(now) {
			all = append(all, d.ahead)
		}
	}
	if len(all) < 2 {
		return 0
	}
	slices.Sort(all)
	if least := all[(len(all)-1)/2]; least > maxAheadOfPeers {
		return least
	}
	if most := all[len(all)/2]; most < -maxAheadOfPeers {
		return most
	}
	return 0
}

// PeerClock notes what a server's clock shows. Only those count that share a room with us.
func (r *Rooms) PeerClock(server eventgraph.ServerName, t time.Time) {
	now := r.now()
	r.clocks.mu.Lock()
	last, heard := r.clocks.heard[server]
	r.clocks.mu.Unlock()
	if heard && last.counts(now) && now.Sub(last.at) < clockEvery || !r.SharesRoom(server) {
		return
	}

	r.clocks.mu.Lock()
	defer r.clocks.mu.Unlock()
	r.clocks.heard[server] = reading{ahead: now.Round(0).Sub(t), at: now}
	if len(r.clocks.heard) > maxClocks {
		oldest := server
		for s, d := range r.clocks.heard {
			if d.at.Before(r.clocks.heard[oldest].at) {
				oldest = s
			}
		}
		delete(r.clocks.heard, oldest)
	}
	ahead := r.clocks.ahead(now)
	if (ahead != 0) == r.clocks.warned {
		return
	}
	switch r.clocks.warned = ahead != 0; {
	case ahead > 0:
		r.log.Warn("this device's clock is ahead of those of most peers: set it right. Until then messages carry an earlier time than it shows", "ahead", ahead.Round(time.Second))
	case ahead < 0:
		r.log.Warn("this device's clock is behind those of most peers: set it right. Until then messages carry a wrong time", "behind", -ahead.Round(time.Second))
	default:
		r.log.Info("this device's clock agrees with those of its peers again")
	}
}

// ClockAhead is by how much our clock is ahead of those of most peers, or, less than zero, behind them; 0 if that is within an hour, or
// too few were heard lately.
func (r *Rooms) ClockAhead() time.Duration {
	r.clocks.mu.Lock()
	defer r.clocks.mu.Unlock()
	return r.clocks.ahead(r.now())
}

// SigningTime is the time to sign an event for, in ms: ts, or now if that is 0, but not more than an hour ahead of the highest
// plausible time.
func (r *Rooms) SigningTime(ts int64) int64 {
	now := r.now()
	if ts == 0 {
		ts = now.UnixMilli()
	}
	r.clocks.mu.Lock()
	ahead := r.clocks.ahead(now)
	read := ahead <= 0 || r.clocks.read
	r.clocks.mu.Unlock()
	stored := int64(0)
	if !read {
		stored = r.newestStored()
	}

	r.clocks.mu.Lock()
	defer r.clocks.mu.Unlock()
	if !read {
		r.clocks.newest, r.clocks.read = max(r.clocks.newest, stored), true
	}
	most := now.Add(maxAheadOfPeers).UnixMilli()
	if ahead > 0 {
		most = max(now.Add(maxAheadOfPeers-ahead).UnixMilli(), min(r.clocks.newest, most))
	}
	ts = min(ts, most)
	r.clocks.newest = max(r.clocks.newest, ts)
	return ts
}

// newestStored is the stamp of the newest event in the store that we made; 0 if there is none among the last changes.
func (r *Rooms) newestStored() (newest int64) {
	err := r.store.View(func(read *store.Reader) error {
		upTo := r.store.Position()
		return read.Changes(upTo-min(upTo, ownLookBack), upTo, func(_ store.Position, c store.Change) (bool, error) {
			if c.Kind != store.ChangeEvent {
				return true, nil
			}
			e, err := read.Event(c.Event)
			if err == nil && e.Sender().Server() == r.key.Server {
				newest = max(newest, e.OriginServerTS())
			}
			return true, err
		})
	})
	if err != nil {
		r.log.Error("cannot tell when this server made its newest event", "err", err)
	}
	return newest
}
