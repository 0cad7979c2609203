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
