package federation

import (
	"context"
	"errors"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// How much of the inbox is whose. A room has a fifth of it. Of a room's part, and of the whole, a server may have filled as much as is left: one alone a half,
// two a third each, and who has given little finds place beside as many as may be. So no member of a room, and nobody over many rooms, keeps out the others.
// What finds no place its giver is to send again, for a while (postponed).

// Bounds of what may wait in one room, so that one does not take the place of all others; and the part of that for all servers together that
// are not in the room, one of so many: they may have been let in once only to fill it. Of that one of them has a part, else it would keep out
// those who were left out by one side of a fork.
const (
	maxWaiting      = store.InboxMaxItems / 5
	maxWaitingBytes = store.InboxMaxBytes / 5
	outsidePart     = 20
	outsideOnePart  = 4 * outsidePart
)

const (
	// fullPatience is for how long a server is told to repeat transactions that hold an event without a place (design.md §3.6): what waits may
	// be taken in soon. It sends nothing else before they are answered (SS API, PUT /send), so for fullRefusal after that such events are refused by
	// name, and it goes on; what rests on them names them.
	fullPatience = 10 * time.Minute
	fullRefusal  = time.Hour
	// maxPostponed bounds the servers of which is remembered since when; of others the patience begins anew.
	maxPostponed = 1000
)

// load counts events and the bytes of their PDUs.
type load struct{ items, bytes int }

func (t load) plus(n load) load  { return load{t.items + n.items, t.bytes + n.bytes} }
func (t load) minus(n load) load { return load{max(0, t.items-n.items), max(0, t.bytes-n.bytes)} }

// fits says whether it is within one part of so many of a bound.
func (t load) fits(of load, parts int) bool {
	return t.items <= of.items/parts && t.bytes <= of.bytes/parts
}

// loads are what servers gave; no more servers than events are counted.
type loads struct {
	all  load
	each map[eventgraph.ServerName]load
}

func newLoads() loads { return loads{each: map[eventgraph.ServerName]load{}} }

func (l *loads) add(server eventgraph.ServerName, n load) {
	l.all = l.all.plus(n)
	l.each[server] = l.each[server].plus(n)
}

func (l *loads) remove(server eventgraph.ServerName, n load) {
	l.all = l.all.minus(n)
	if l.each[server] = l.each[server].minus(n); l.each[server] == (load{}) {
		delete(l.each, server)
	}
}

// leaves says whether the server may add so much, by what is left of a bound.
func (l *loads) leaves(server eventgraph.ServerName, n, of load) bool {
	return l.each[server].plus(n).fits(of.minus(l.all), 1)
}

// giver is who gives an event of a room.
type giver struct {
	server  eventgraph.ServerName
	outside bool // is not in the room
}

func (f *Federation) giver(room eventgraph.RoomID, server eventgraph.ServerName) giver {
	return giver{server, !f.Rooms.InRoom(room, server)}
}

// reserve says whether one more event may wait in the room, and counts it.
func (i *inbox) reserve(room eventgraph.RoomID, bytes int, from giver) bool {
	return i.reservePatiently(room, bytes, from, 0)
}

// reservePatiently is reserve; if the event is the first that waits, nothing is asked for in the room while patience lasts.
func (i *inbox) reservePatiently(room eventgraph.RoomID, bytes int, from giver, patience time.Duration) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if r == nil {
		r = newInboxRoom(i.now())
		i.rooms[room] = r
	}
	one, most := load{1, bytes}, load{maxWaiting, maxWaitingBytes}
	if !r.waits.leaves(from.server, one, most) || !i.waits.leaves(from.server, one, load{store.InboxMaxItems, store.InboxMaxBytes}) {
		return false
	}
	if from.outside && !(r.outside.plus(one).fits(most, outsidePart) && r.waits.each[from.server].plus(one).fits(most, outsideOnePart)) {
		return false
	}
	if r.waits.all.items == 0 {
		r.patient = i.now().Add(patience)
	}
	r.waits.add(from.server, one)
	i.waits.add(from.server, one)
	if from.outside {
		r.outside = r.outside.plus(one)
	}
	return true
}

// release takes back reserve for events that wait no more.
func (i *inbox) release(room eventgraph.RoomID, gone loads, isIn func(eventgraph.ServerName) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if r == nil {
		return // a visit has found nothing meanwhile, and taken all of it back
	}
	for server, n := range gone.each {
		n.items, n.bytes = min(n.items, r.waits.each[server].items), min(n.bytes, r.waits.each[server].bytes)
		r.waits.remove(server, n)
		i.waits.remove(server, n)
		if !isIn(server) {
			r.outside = r.outside.minus(n)
		}
	}
}

// counted notes what waits in a room that is visited, and how much of that servers gave that are not in the room.
func (i *inbox) counted(room eventgraph.RoomID, waits loads, outside load) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	i.recount(r, waits)
	r.outside = outside
}

func (i *inbox) recount(r *inboxRoom, waits loads) {
	for server, n := range r.waits.each {
		i.waits.remove(server, n)
	}
	for server, n := range waits.each {
		i.waits.add(server, n)
	}
	r.waits = waits
}

// postpones says whether a server of whose events one found no place is to send them again; else they are refused.
func (i *inbox) postpones(server eventgraph.ServerName) bool {
	now := i.now()
	since, known := i.postponed.Get(server)
	if !known || now.Sub(since) >= fullPatience+fullRefusal {
		i.postponed.Add(server, now)
		return true
	}
	return now.Sub(since) < fullPatience
}

// holdBack finds a place among what waits for an event that misses something. It returns what is to be put there: nil if it waits already. A server's own
// event that another gave takes its place anew when it gives it itself: what another gave may be forged, and waits with its other events.
func (f *Federation) holdBack(ctx context.Context, room eventgraph.RoomID, e *eventgraph.Event, from giver, patience time.Duration) (*store.InboxItem, error) {
	var before *store.InboxItem
	err := f.Store.View(func(r *store.Reader) (err error) {
		before, err = r.InboxItem(room, e.ID())
		return err
	})
	waits := err == nil
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return nil, err
	case waits && (before.Origin == from.server || e.Sender().Server() != from.server):
		return nil, nil
	case f.inbox.reservePatiently(room, len(e.Raw()), from, patience):
	case waits:
		return nil, nil
	default:
		return nil, errTooManyWaiting
	}
	if waits {
		// If we end here it is lost, and comes again: its own server has no answer yet.
		if err := f.dropInbox(ctx, room, []eventgraph.EventID{e.ID()}); err != nil {
			return nil, err
		}
		gone := newLoads()
		gone.add(before.Origin, load{1, len(before.PDU)})
		f.inbox.release(room, gone, func(s eventgraph.ServerName) bool { return f.Rooms.InRoom(room, s) })
	}
	return &store.InboxItem{ID: e.ID(), Room: room, Origin: from.server, PDU: e.Raw()}, nil
}
