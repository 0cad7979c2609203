package rooms

import (
	"cmp"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds on a room's extremities. Peers make them grow: whoever is in a room may build on whatever is old.
const (
	// maxForward bounds the states to resolve into the current one. A resolution looks at each conflicted tuple in each of them.
	maxForward = 200
	// maxForwardOf bounds the forward extremities by one server's users. A server builds on its own events, so an honest one has
	// one or two, as many as events are made on its devices at the same time. Above mergeAbove, so that they do not stay so many.
	maxForwardOf = mergeAbove + 1
	// maxBackward bounds the backward extremities. If there are more, they become keptBackward: each time all of them are read.
	maxBackward  = 1000
	keptBackward = maxBackward * 9 / 10
)

// tip is a forward extremity.
type tip struct {
	id     eventgraph.EventID
	server eventgraph.ServerName // of the sender
	order  int64                 // when it got its place here
	depth  int64                 // as its sender claims
	after  eventgraph.Hash
	alone  bool // it took the place of no tip but such of its own server, and may be pushed out. Not kept on disk: what is read from there is taken for built on others
}

func newTip(s *store.StoredEvent) tip {
	return tip{id: s.ID(), server: s.Sender().Server(), order: s.Order, depth: s.Depth(), after: s.StateAfter}
}

// admitted adds the newest tip if there are not too many then. If there are, it tells which is out: either the newest, and so do not count
// what it would have taken the place of as built on; or, where another server has more, the newest by the server that has the most goes.
// Neither depth nor time decides, which a sender chooses: a flood of forks could then push out what it forks from, and a ban be
// forgotten that nobody took back. For the same reason only a tip that is alone ever goes: what others did, and it was built
// on, would be forgotten with it. By this rule a server can only push out what its own users did.
//
// An event left out stays in the graph, accepted (store.StoredEvent.Aside); the room's current state comes to know of it with the first event that
// builds on it. Until then it ties nothing to the timeline.
func admitted(tips []tip, newest tip) (_ []tip, aside eventgraph.EventID) {
	tips = append(slices.Clone(tips), newest)
	of := make(map[eventgraph.ServerName]int, len(tips))
	most := 0
	for _, t := range tips {
		of[t.server]++
		most = max(most, of[t.server])
	}
	if len(tips) <= maxForward && most <= maxForwardOf {
		return tips, ""
	}
	out := len(tips) - 1
	if of[newest.server] < most {
		for i, t := range tips {
			if t.alone && of[t.server] == most && (tips[out].id == newest.id || t.order > tips[out].order) {
				out = i
			}
		}
	}
	aside = tips[out].id
	return slices.Delete(tips, out, out+1), aside
}

// fairly orders tips for building on the first of them: our own before all, then one of each server in turn, the oldest first.
// However many one server has made, and however deep it says they are, those of others are merged, and what our users rest on is.
func fairly(tips []tip, own eventgraph.ServerName) []tip {
	tips = slices.Clone(tips)
	slices.SortFunc(tips, func(a, b tip) int { return cmp.Compare(a.order, b.order) })
	turn := make(map[eventgraph.EventID]int, len(tips))
	of := make(map[eventgraph.ServerName]int)
	for _, t := range tips {
		if t.server != own {
			of[t.server]++
			turn[t.id] = of[t.server]
		}
	}
	slices.SortStableFunc(tips, func(a, b tip) int { return cmp.Compare(turn[a.id], turn[b.id]) })
	return tips
}

// gap is a backward extremity.
type gap struct {
	id     eventgraph.EventID
	server eventgraph.ServerName // store.GapOf
	order  int64
	away   bool // in the room's order it lies in a break
}

// fewerGaps leaves keptBackward of too many backward extremities.
func (run *run) fewerGaps(back []eventgraph.EventID) ([]eventgraph.EventID, error) {
	gaps := make([]gap, len(back))
	for i, id := range back {
		s, err := run.stored(id)
		if err != nil {
			return nil, err
		}
		gaps[i] = gap{id, store.GapOf(s), s.Order, slices.ContainsFunc(run.live.Breaks, func(b store.Break) bool { return b.Holds(s.Order) })}
	}
	kept := make([]eventgraph.EventID, keptBackward)
	for i, g := range keepFirst(gaps, run.r.key.Server)[:keptBackward] {
		kept[i] = g.id
	}
	return kept, nil
}

// keepFirst orders backward extremities, first those to keep: by our own users all, for with our joins what was before us would be lost; then one of
// each server in turn, so that whoever makes many loses his own. Of one server's those in breaks come before others, and the older ones in the
// room's order before the newer: what was fetched in the place of another is older than that.
func keepFirst(gaps []gap, own eventgraph.ServerName) []gap {
	gaps = slices.Clone(gaps)
	slices.SortFunc(gaps, func(a, b gap) int {
		if a.away != b.away {
			if a.away {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.id, b.id))
	})
	turn := make(map[eventgraph.EventID]int, len(gaps))
	of := make(map[eventgraph.ServerName]int)
	for _, g := range gaps {
		if g.server != own {
			of[g.server]++
			turn[g.id] = of[g.server]
		}
	}
	slices.SortStableFunc(gaps, func(a, b gap) int { return cmp.Compare(turn[a.id], turn[b.id]) })
	return gaps
}
