package federation

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What of a room's history is asked about, and whom. One request names few backward extremities, and a member's server can make many, with or without
// events below them that it alone has. So that the history of others is found among them:
//
//	a round   names a batch: our joins, some in breaks, then one of each sender's server in turn; of one server's those that have waited longest
//	          ── asks the connected servers about it, one after the other, until all have been asked
//	          ── where some of the batch is missing its past still, asks one of the others
//	          ── puts the batch to the back
//
// Where there is but one extremity and who was asked gives plenty before it, it is asked on.

const (
	// maxBackfillFrom is how many backward extremities one request names.
	maxBackfillFrom = 20
	// maxFromOwn and maxFromBreaks is how many of them are our own users', and then in breaks, before all others. The rest is shared.
	maxFromOwn    = 5
	maxFromBreaks = 5
	// maxQuests is for how many rooms it is remembered who has been asked about what. Of others it begins anew.
	maxQuests = 64
	// maxQuestServers is of how many servers of a room it is remembered when they were asked.
	maxQuestServers = 1000
)

// extremity is a backward extremity that may be asked about.
type extremity struct {
	id      eventgraph.EventID
	server  eventgraph.ServerName // store.GapOf
	order   int64
	inBreak bool
}

// past is what is to be asked about in a room.
type past struct {
	room *store.Room
	from []extremity
	// linked are the parents of all backward extremities.
	linked map[eventgraph.EventID]bool
}

// backwardsAbove reads a room and its backward extremities, without those where a purge has ended the history: those first that BackfillAbove
// asks about; those below come last, nearest first.
func (f *Federation) backwardsAbove(room eventgraph.RoomID, above int64) (*past, error) {
	p := &past{linked: map[eventgraph.EventID]bool{}}
	err := f.Store.View(func(r *store.Reader) (err error) {
		if p.room, err = r.Room(room); err != nil {
			return err
		}
		return r.BackwardEvents(p.room, func(e *store.StoredEvent) (bool, error) {
			if p.room.Ends(e.Order) {
				return true, nil
			}
			inBreak := slices.ContainsFunc(p.room.Breaks, func(b store.Break) bool { return b.Holds(e.Order) })
			p.from = append(p.from, extremity{e.ID(), store.GapOf(e), e.Order, inBreak})
			for _, parent := range e.PrevEvents() {
				p.linked[parent] = true
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(p.from, func(a, b extremity) int {
		x, y := a.order, b.order
		switch {
		case (x > above) != (y > above):
			return cmp.Compare(y, x)
		case x <= above:
			x, y = y, x
		}
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a.id, b.id))
	})
	if len(p.from) > 0 && above != math.MinInt64 {
		at := slices.IndexFunc(p.room.Breaks, func(b store.Break) bool { return b.Holds(p.from[0].order) })
		if at >= 0 {
			p.from = slices.DeleteFunc(p.from, func(e extremity) bool { return !p.room.Breaks[at].Holds(e.order) })
		}
	}
	return p, nil
}

// ahead leaves of a page, sorted, what the extremities rest on, link by link. Else a server could have anything placed here that was ever said.
func (p *past) ahead(page []*eventgraph.Event) []*eventgraph.Event {
	linked := maps.Clone(p.linked)
	var kept []*eventgraph.Event
	for _, e := range slices.Backward(page) {
		if !linked[e.ID()] {
			continue
		}
		kept = append(kept, e)
		for _, parent := range e.PrevEvents() {
			linked[parent] = true
		}
	}
	slices.Reverse(kept)
	return kept
}

// quests remembers for rooms who has been asked about what.
type quests struct {
	mu   sync.Mutex
	of   *lru.Cache[eventgraph.RoomID, *quest]
	away rests[eventgraph.ServerName] // who could not be reached
}

// maxAwayAsked is how many servers that are not connected one Backfill tries: each may take streamTimeout to find out, and somebody waits for
// the page. awayRest is for how long one that was not there is not tried again, unless it comes by itself.
const (
	maxAwayAsked = 2
	awayRest     = 3 * time.Minute
)

// worthAsking leaves of the servers those that are connected, and a few others that were not tried lately.
func (s *quests) worthAsking(servers []eventgraph.ServerName, connected func(eventgraph.ServerName) bool, now time.Time) []eventgraph.ServerName {
	s.mu.Lock()
	defer s.mu.Unlock()
	tried := 0
	return slices.DeleteFunc(slices.Clone(servers), func(server eventgraph.ServerName) bool {
		if connected(server) {
			return false
		}
		if now.Before(s.away[server].until) {
			return true
		}
		tried++
		return tried > maxAwayAsked
	})
}

// notThere notes that a server could not be reached.
func (s *quests) notThere(server eventgraph.ServerName, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away.put(server, rest{until: now.Add(awayRest)}, now)
}

// quest is the asking in one room.
type quest struct {
	round   int
	batch   []eventgraph.EventID          // of this round; nil: not chosen yet
	waiting map[eventgraph.EventID]int    // since which round
	asks    int                           // so many have been made
	began   int                           // after so many this round did
	asked   map[eventgraph.ServerName]int // which of them was a server's last one
	dialed  bool                          // one that was not connected has been asked in this round
}

func newQuests() *quests {
	s := &quests{}
	s.of, _ = lru.New[eventgraph.RoomID, *quest](maxQuests) // fails for sizes below 1 only
	return s
}

// get is the quest in a room. s.mu is held.
func (s *quests) get(room eventgraph.RoomID) *quest {
	found, ok := s.of.Get(room)
	if !ok {
		found = &quest{waiting: map[eventgraph.EventID]int{}, asked: map[eventgraph.ServerName]int{}}
		s.of.Add(room, found)
	}
	return found
}

// next tells what to name in a request now, and which of the servers, of which there is one at least, to ask.
func (s *quests) next(p *past, own eventgraph.ServerName, servers []eventgraph.ServerName, connected func(eventgraph.ServerName) bool) ([]eventgraph.EventID, eventgraph.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.get(p.room.ID)
	var here, away []eventgraph.ServerName
	for _, server := range servers {
		if connected(server) {
			here = append(here, server)
		} else {
			away = append(away, server)
		}
	}
	byLast := func(a, b eventgraph.ServerName) int { return cmp.Compare(r.asked[a], r.asked[b]) }
	slices.SortStableFunc(here, byLast)
	slices.SortStableFunc(away, byLast)

	from, server := r.names(p, own), eventgraph.ServerName("")
	switch through := len(here) == 0 || r.asked[here[0]] > r.began; {
	case !through:
		server = here[0]
	case !r.dialed && len(away) > 0 && slices.ContainsFunc(from, func(id eventgraph.EventID) bool { return slices.Contains(r.batch, id) }):
		server, r.dialed = away[0], true
	default:
		r.turn()
		from, server = r.names(p, own), append(here, away...)[0]
	}
	if len(r.asked) >= maxQuestServers {
		clear(r.asked)
	}
	r.asks++
	r.asked[server] = r.asks
	return from, server
}

// askOn is for when a server has given much before the only extremity: it has its turn still.
func (s *quests) askOn(room eventgraph.RoomID, server eventgraph.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.get(room).asked, server)
}

// turn ends a round.
func (r *quest) turn() {
	r.round++
	for _, id := range r.batch {
		if _, waits := r.waiting[id]; waits {
			r.waiting[id] = r.round
		}
	}
	r.batch, r.began, r.dialed = nil, r.asks, false
}

// names is what to name in a request: what is left of the batch, and what would be named next.
func (r *quest) names(p *past, own eventgraph.ServerName) []eventgraph.EventID {
	for _, e := range p.from {
		if _, known := r.waiting[e.id]; !known {
			r.waiting[e.id] = r.round
		}
	}
	maps.DeleteFunc(r.waiting, func(id eventgraph.EventID, _ int) bool {
		_, is := slices.BinarySearch(p.room.Backward, id)
		return !is
	})
	if r.batch == nil {
		r.batch = r.choose(p.from, own, maxBackfillFrom)
	}
	var left, others []extremity
	for _, e := range p.from {
		if slices.Contains(r.batch, e.id) {
			left = append(left, e)
		} else {
			others = append(others, e)
		}
	}
	return append(r.choose(left, own, len(left)), r.choose(others, own, maxBackfillFrom-len(left))...)
}

// choose is which of the extremities are named if there is room for n. They come as they are preferred where they have waited equally long.
func (r *quest) choose(from []extremity, own eventgraph.ServerName, n int) []eventgraph.EventID {
	from = slices.Clone(from)
	slices.SortStableFunc(from, func(a, b extremity) int { return cmp.Compare(r.waiting[a.id], r.waiting[b.id]) })
	var chosen []eventgraph.EventID
	add := func(most int, which func(extremity) bool) {
		turn := map[eventgraph.EventID]int{}
		of := map[eventgraph.ServerName]int{}
		var some []extremity
		for _, e := range from {
			if which(e) && !slices.Contains(chosen, e.id) {
				of[e.server]++
				turn[e.id] = of[e.server]
				some = append(some, e)
			}
		}
		slices.SortStableFunc(some, func(a, b extremity) int { return cmp.Compare(turn[a.id], turn[b.id]) })
		for _, e := range some[:min(len(some), most, n-len(chosen))] {
			chosen = append(chosen, e.id)
		}
	}
	if len(from) > n {
		add(maxFromOwn, func(e extremity) bool { return e.server == own })
		add(maxFromBreaks, func(e extremity) bool { return e.inBreak })
	}
	add(n, func(extremity) bool { return true })
	return chosen
}
