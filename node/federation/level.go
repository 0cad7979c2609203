package federation

import (
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// In a large room each server hears of each event many times over, since everybody meets everybody. So before the giver of a meeting lists what
// is new in large rooms, it shows a print of what it holds of them (summary.go); of those of which the asker holds the same it lists nothing,
// and the cursor passes what it would have listed.

const (
	// busyFrom is from how many events on a room is busy; listing fewer costs less than comparing.
	busyFrom = 6
	// maxBusy bounds the rooms that are compared before the news.
	maxBusy = 100
)

// busy lists the large rooms with much news after the cursor, IDs and prints.
func (f *Federation) busy(g *gift, cursor string) (busy []byte, err error) {
	from := f.parseCursor(cursor)
	upTo := f.Store.Position()
	count := map[eventgraph.RoomID]int{}
	err = f.Store.View(func(r *store.Reader) error {
		looked := 0
		return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
			if c.Kind == store.ChangeEvent {
				count[c.Room]++
			}
			looked++
			return looked < scanNews, nil
		})
	})
	for room, n := range count {
		if n < busyFrom {
			delete(count, room)
		}
	}
	if err != nil || len(count) == 0 {
		return nil, err
	}
	if g.summary, err = f.summary(g.contact, g.secret); err != nil {
		return nil, err
	}
	g.levelUpTo = upTo // what the summary shows is as new as that, or newer
	for _, item := range g.summary.items {
		if r := g.summary.rooms[item.id]; r.large && count[r.id] > 0 && len(busy) < maxBusy*2*itemSize {
			busy = append(append(busy, item.id[:]...), item.print[:]...)
		}
	}
	return busy, nil
}

// takeLevel notes in which of the rooms shown the asker needs no news. What is compared after the news, is compared as it is then.
func (g *gift) takeLevel(ids []byte) error {
	if len(ids)%itemSize != 0 || len(ids) > maxBusy*itemSize || len(ids) > 0 && g.summary == nil {
		return errors.New("rooms said to be level that were not shown")
	}
	for id := range slices.Chunk(ids, itemSize) {
		if r := g.summary.rooms[itemID(id)]; r != nil && r.large {
			if g.level == nil {
				g.level = map[eventgraph.RoomID]bool{}
			}
			g.level[r.id] = true
		}
	}
	g.summary = nil
	return nil
}

// knows says whether the asker was found to hold the event of a change. What is soft-failed is in no print.
func (g *gift) knows(c store.Change, at store.Position) bool {
	return c.Kind == store.ChangeEvent && at <= g.levelUpTo && g.level[c.Room]
}

// level is the asker's part: it returns the IDs of those of the busy rooms of which both hold the same.
func (f *Federation) level(c contact, m *meeting, busy []byte) (ids []byte, err error) {
	if len(busy)%(2*itemSize) != 0 || len(busy) > maxBusy*2*itemSize {
		return nil, errors.New("busy rooms that are none")
	}
	own, err := f.summary(c, m.secret)
	if err != nil {
		return nil, err
	}
	for shown := range slices.Chunk(busy, 2*itemSize) {
		id := itemID(shown)
		item, ok := own.of(id)
		if !ok || item.print != fingerprint(shown[itemSize:]) {
			continue
		}
		whole, err := f.isWhole(own.rooms[id].id)
		if err != nil {
			return nil, err
		}
		if whole {
			ids = append(ids, id[:]...)
		}
	}
	return ids, nil
}

// isWhole says whether we hold all that is behind a room's extremities, from our joins on: in a gap something may be missing though
// the extremities are all known.
func (f *Federation) isWhole(room eventgraph.RoomID) (whole bool, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		held, err := r.Room(room)
		if err != nil {
			return err
		}
		whole = true
		return r.BackwardEvents(held, func(e *store.StoredEvent) (bool, error) {
			key, _ := e.StateKey()
			ours := e.Membership() == "join" && eventgraph.UserID(key).Server() == f.server && !f.Rooms.InRoomAt(room, e.StateBefore, f.server)
			whole = e.Order <= 0 || ours || inBreak(held.Breaks, e.Order)
			return whole, nil
		})
	})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return whole && err == nil, err
}

// inBreak says whether what has that order was fetched of a time while we were away. What took place before us never has it, whatever became of it
// and whether or not it was logged.
func inBreak(breaks []store.Break, order int64) bool {
	return slices.ContainsFunc(breaks, func(b store.Break) bool { return b.After < order && order < b.Before })
}
