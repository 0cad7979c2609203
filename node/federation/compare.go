package federation

import (
	"context"
	"errors"
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// After the news the asker compares what both hold of the rooms that both are in (summary.go), and fetches those of the giver's
// extremities that it does not know: what fell between two cursors is found here.

// maxAgreements bounds what is remembered of rooms that differ, of all peers: some 200 bytes each. What is forgotten is found out again.
const maxAgreements = 10_000

// agreements remembers, of rooms in which we hold something else than a peer, that nothing is to be fetched: so such a room costs
// nothing while neither side changes. It is lost at a restart, and then found out once more.
type agreements struct {
	mu    sync.Mutex // for reading and then writing
	known *lru.Cache[agreementKey, agreement]
}

type agreementKey struct {
	peer eventgraph.PeerID
	room eventgraph.RoomID
}

// agreement is about these two values and no others.
type agreement struct {
	own, theirs held
	// found: each side knows the other's extremities, in whatever verdict; we have seen it ourselves.
	found bool
	// silent: the peer does not share the room; theirs is nothing.
	silent bool
}

func newAgreements() *agreements {
	known, err := lru.New[agreementKey, agreement](maxAgreements)
	if err != nil {
		panic("federation: agreements: " + err.Error()) // only for a size below 1
	}
	return &agreements{known: known}
}

// show sets what of a room is shown to the peer.
func (a *agreements) show(peer eventgraph.PeerID, r *sharedRoom) {
	r.shown = r.own
	if g, ok := a.known.Get(agreementKey{peer, r.id}); ok && g.own == r.own {
		r.silent = g.silent
		if g.found {
			r.shown = both(g.own, g.theirs)
		}
	}
}

// put remembers an agreement. It says whether it is of other values than the one before.
func (a *agreements) put(peer eventgraph.PeerID, room eventgraph.RoomID, g agreement) (fresh bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := agreementKey{peer, room}
	before, ok := a.known.Get(k)
	fresh = !ok || before.own != g.own || before.theirs != g.theirs || before.silent != g.silent
	switch {
	case g.own == g.theirs && !g.silent:
		a.known.Remove(k) // equal needs no remembering
	case fresh || g.found:
		a.known.Add(k, g)
	}
	return fresh
}

// summary makes items of the rooms that the peer's server is in.
func (f *Federation) summary(c contact, secret []byte) (*summary, error) {
	shared, err := f.meetings.sharing.with(c.Server)
	for _, r := range shared {
		f.meetings.agreements.show(c.Peer, r)
	}
	return newSummary(secret, shared), err
}

// compare finds the rooms of which the giver holds something else, and fetches what we lack. It says whether something is not
// as it was at the last meeting.
func (f *Federation) compare(ctx context.Context, c contact, m *meeting) (changed bool, err error) {
	own, err := f.summary(c, m.secret)
	if err == nil {
		m.own = own.held
	}
	if err != nil || len(own.rooms) == 0 {
		return false, err
	}
	q := newSearch(own)
	for question := q.next(); question != nil; question = q.next() {
		answer, err := m.ask(&meetMessage{Compare: question})
		if err != nil {
			return changed, err
		}
		if !q.take(answer.Compared) {
			return changed, errors.New("an answer to ranges that is none")
		}
	}
	for part := range slices.Chunk(q.found(), roomsAtOnce) {
		fresh, err := f.settle(ctx, c, m, own, part)
		changed = changed || fresh
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// settle exchanges what is held of rooms that differ.
func (f *Federation) settle(ctx context.Context, c contact, m *meeting, own *summary, ids []itemID) (changed bool, err error) {
	question := &meetMessage{}
	for _, id := range ids {
		room := meetRoom{ID: id[:]}
		if r := own.rooms[id]; !r.silent { // of a silent one it is only asked whether it is shared now
			room.Value = r.own[:]
			if room.Have, err = f.visible(c.Server, r.id); err != nil {
				return false, err
			}
		}
		question.Rooms = append(question.Rooms, room)
	}
	answer, err := m.ask(question)
	if err != nil {
		return false, err
	}
	if len(answer.Held) != len(ids) {
		return false, errors.New("an answer to rooms that is none")
	}
	var lacking []meetID
	for i, id := range ids {
		for _, event := range answer.Held[i].Have[:min(len(answer.Held[i].Have), maxTips)] {
			lacking = append(lacking, meetID{own.rooms[id].id, event})
		}
	}
	if err := f.collect(ctx, c, m, lacking); err != nil {
		return changed, err
	}
	for i, id := range ids {
		r, theirs := own.rooms[id], answer.Held[i]
		g := agreement{own: r.own}
		switch {
		case len(theirs.Value) != len(held{}):
			g.silent = true
		case r.silent:
			f.meetings.agreements.put(c.Peer, r.id, agreement{own: r.own, theirs: held(theirs.Value)})
			changed = true // at the next meeting it is a room like others
			continue
		default:
			g.theirs = held(theirs.Value)
			known, err := f.knows(c.Server, theirs.Have)
			if err != nil {
				return changed, err
			}
			g.found = known && !theirs.Lacks && len(theirs.Have) <= maxTips
		}
		if f.meetings.agreements.put(c.Peer, r.id, g) {
			changed = true
		}
	}
	return changed, nil
}

// answerRooms is the giver's part of settle. If what the asker holds is news to us, we are soon to ask in our turn.
func (f *Federation) answerRooms(c contact, own *summary, asked []meetRoom) (answer []meetRoom, err error) {
	for _, q := range asked {
		if len(q.ID) != itemSize || len(q.Have) > maxTips || len(q.Value) != 0 && len(q.Value) != len(held{}) {
			return nil, errors.New("a question about rooms that is none")
		}
		r := own.rooms[itemID(q.ID)]
		if r == nil {
			answer = append(answer, meetRoom{})
			continue
		}
		a := meetRoom{Value: r.own[:]}
		if a.Have, err = f.visible(c.Server, r.id); err != nil {
			return nil, err
		}
		known, err := f.knows(c.Server, q.Have)
		if err != nil {
			return nil, err
		}
		a.Lacks = !known
		answer = append(answer, a)
		if len(q.Value) == len(held{}) && f.meetings.agreements.put(c.Peer, r.id, agreement{own: r.own, theirs: held(q.Value)}) {
			f.meetings.hint(c.Peer)
		}
	}
	return answer, nil
}

// visible lists those of a room's extremities that the server may see.
func (f *Federation) visible(server eventgraph.ServerName, room eventgraph.RoomID) (ids []eventgraph.EventID, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		held, err := r.Room(room)
		if err != nil {
			return err
		}
		for _, id := range held.Forward[:min(len(held.Forward), maxTips)] {
			e, err := r.Event(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if may, err := f.Rooms.MaySeeServer(server, e); err != nil {
				return err
			} else if may {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// knows says whether each of the events has a verdict here: it is held with its place, or was refused.
func (f *Federation) knows(giver eventgraph.ServerName, ids []eventgraph.EventID) (all bool, err error) {
	all = true
	err = f.Store.View(func(r *store.Reader) error {
		for _, id := range ids {
			verdict, held, err := r.HasEvent(id)
			if err != nil {
				return err
			}
			if (!held || verdict == store.Outlier) && !f.inbox.wasRefused(id, giver) {
				all = false
			}
		}
		return nil
	})
	return all, err
}
