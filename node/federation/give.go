package federation

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// The giver's part of a meeting.

// givers bounds the meetings in which we give.
type givers struct {
	friends, strangers chan struct{}

	mu   sync.Mutex
	with map[eventgraph.PeerID]*giving
}

type giving struct{ cancel context.CancelFunc }

// begin waits for a place. It ends a meeting with the same peer that still goes on: who comes anew has lost it. The meeting is over when the
// context given ends; the caller must call end.
func (g *givers) begin(ctx context.Context, peer eventgraph.PeerID, friend bool) (_ context.Context, end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	mine := &giving{cancel}
	g.mu.Lock()
	if before := g.with[peer]; before != nil {
		before.cancel()
	}
	g.with[peer] = mine
	g.mu.Unlock()
	forget := func() {
		cancel()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.with[peer] == mine {
			delete(g.with, peer)
		}
	}
	places := g.strangers
	if friend {
		places = g.friends
	}
	release, err := take(ctx, places)
	if err != nil {
		forget()
		return nil, nil, err
	}
	return ctx, func() { release(); forget() }, nil
}

// give answers an asker's messages until it ends the stream.
func (f *Federation) give(ctx context.Context, g *givers, peer eventgraph.PeerID, s meetStream) error {
	if err := f.admitStream(ctx, peer); err != nil {
		return err
	}
	server, err := f.asker(ctx, peer)
	if err != nil {
		return fmt.Errorf("who asks is not known: %w", err)
	}
	ctx, end, err := g.begin(ctx, peer, f.sharesRoom(server))
	if err != nil {
		return err
	}
	defer end()
	defer s.endWith(ctx)()
	with := &gift{contact: contact{Server: server, Peer: peer}, told: map[eventgraph.ServerName]bool{}}
	sent := 0
	for range maxTurns {
		m, err := s.readAfter(sent, maxQuestion)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f.admitTurn(ctx, with.contact, m); err != nil {
			return err
		}
		answer, err := f.answer(with, m)
		if err != nil {
			return err
		}
		if err := s.write(answer); err != nil {
			return err
		}
		if sent = 0; answer.Events != nil {
			sent = answer.Events.size()
			f.paidEvents(with.contact, answer.Events)
		}
	}
	return nil
}

// gift is a meeting in which we give.
type gift struct {
	contact
	secret  []byte                         // of the first hello
	summary *summary                       // of the first comparison
	told    map[eventgraph.ServerName]bool // whose key documents were given, at most maxDocuments

	level     map[eventgraph.RoomID]bool // rooms of which the asker holds what we held at levelUpTo
	levelUpTo store.Position
}

func (f *Federation) answer(g *gift, m *meetMessage) (answer *meetMessage, err error) {
	answer = &meetMessage{}
	switch {
	case m.Hello != nil:
		answer.News, err = f.hello(g, m.Hello)
		return answer, err
	case len(m.Want) > 0 && len(m.Want) <= maxWant:
		answer.Events, err = f.wanted(g, m.Want, m.Bytes)
		return answer, err
	case m.Compare == nil && len(m.Rooms) == 0, g.secret == nil:
		return nil, errors.New("a message that asks nothing")
	}
	if g.summary == nil {
		if g.summary, err = f.summary(g.contact, g.secret); err != nil {
			return nil, err
		}
	}
	switch {
	case m.Compare != nil && len(m.Compare.Ranges) > 0 && len(m.Compare.Ranges) <= maxRanges:
		answer.Compared = g.summary.answer(m.Compare)
	case len(m.Rooms) > 0 && len(m.Rooms) <= roomsAtOnce:
		answer.Held, err = f.answerRooms(g.contact, g.summary, m.Rooms)
	default:
		err = errors.New("a message that asks nothing")
	}
	return answer, err
}

// asker is the server that the peer speaks for; if that is not known, the peer is asked. errRefused if it turns out to be a blocked one.
func (f *Federation) asker(ctx context.Context, peer eventgraph.PeerID) (server eventgraph.ServerName, err error) {
	if server, err = f.whoAsks(ctx, peer); err == nil && f.peers.isBlocked(server) {
		return "", errRefused
	}
	return server, err
}

func (f *Federation) whoAsks(ctx context.Context, peer eventgraph.PeerID) (eventgraph.ServerName, error) {
	if server, ok := f.ServerOf(peer); ok {
		return server, nil
	}
	unlock, err := f.asked.lock(ctx, peer)
	if err != nil {
		return "", err
	}
	defer unlock()
	release, err := take(ctx, f.asking)
	if err != nil {
		return "", err
	}
	defer release()
	d, err := f.identify(ctx, peer)
	if err != nil {
		return "", err
	}
	return d.ServerName, nil
}

// hello answers a hello: with rooms to compare first, if much is new in large ones, else with the news.
func (f *Federation) hello(g *gift, h *meetHello) (news *meetNews, err error) {
	var nonce []byte
	if g.secret == nil {
		nonce = make([]byte, nonceSize)
		rand.Read(nonce) // never fails
		g.secret = meetingSecret(h.Nonce, nonce)
		if h.Busy {
			busy, err := f.busy(g, h.Cursor)
			if err != nil {
				return nil, err
			}
			if len(busy) > 0 {
				return &meetNews{Cursor: h.Cursor, Nonce: nonce, Busy: busy}, nil
			}
		}
	}
	if err := g.takeLevel(h.Level); err != nil {
		return nil, err
	}
	news, err = f.newsFor(g, h.Cursor)
	if err == nil {
		news.Nonce = nonce
	}
	return news, err
}

// newsFor lists what has come since the cursor and may be shown to the server, in commit order.
func (f *Federation) newsFor(g *gift, cursor string) (*meetNews, error) {
	server := g.Server
	news := &meetNews{Events: []eventgraph.EventID{}}
	from := f.parseCursor(cursor)
	upTo := f.Store.Position()
	reached := from
	been := map[eventgraph.RoomID]bool{}            // rooms that the server was in
	then := map[eventgraph.RoomID]eventgraph.Hash{} // the rooms' states
	err := f.Store.View(func(r *store.Reader) error {
		looked := 0
		return r.Changes(from, upTo, func(at store.Position, c store.Change) (bool, error) {
			if len(news.Events) == maxNews || looked == scanNews {
				news.More = true
				return false, nil
			}
			looked++
			reached = at
			if c.Kind != store.ChangeEvent && c.Kind != store.ChangeSoftFailed || g.knows(c, at) {
				return true, nil
			}
			was, known := been[c.Room]
			if !known {
				was = f.Rooms.InRoom(c.Room, server) || f.wasIn(r, c.Room, server)
				been[c.Room] = was
			}
			if !was {
				return true, nil
			}
			e, err := r.Event(c.Event)
			if errors.Is(err, store.ErrNotFound) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
			may, err := f.mayGive(r, server, then, e, c, at)
			if may {
				news.add(meetID{c.Room, c.Event})
			}
			if errors.Is(err, store.ErrNotFound) {
				return true, nil // the room has gone
			}
			return true, err
		})
	})
	if !news.More {
		reached = max(reached, upTo)
	}
	news.Cursor = f.cursor(reached)
	return news, err
}

// mayGive says whether an event that came in at a position is news to the server: it may see it, and it was in the room then; what
// was before its time it pages back for. then is the state of each room at the event before, as far as known; it is brought up to this one.
func (f *Federation) mayGive(r *store.Reader, server eventgraph.ServerName, then map[eventgraph.RoomID]eventgraph.Hash, e *store.StoredEvent, c store.Change, at store.Position) (bool, error) {
	state, known := then[e.RoomID()]
	switch {
	case e.Position == at:
		state = e.RoomState
	case !known: // it is not in the timeline
		newest, err := newestAt(r, e.RoomID(), at)
		if err != nil {
			return false, err
		}
		if newest != nil {
			state = newest.RoomState
		}
	}
	then[e.RoomID()] = state
	if !f.allows(e.RoomID(), server) || !f.owedSince(server, e, c, state) {
		return false, nil
	}
	return f.Rooms.MaySeeServer(server, e)
}

// newestAt is the room's newest timeline event at or before the position; nil if there was none.
func newestAt(r *store.Reader, room eventgraph.RoomID, at store.Position) (e *store.StoredEvent, err error) {
	var id eventgraph.EventID
	err = r.RoomChanges(room, at, 0, func(_ store.Position, newest eventgraph.EventID) (bool, error) {
		id = newest
		return false, nil
	})
	if err != nil || id == "" {
		return nil, err
	}
	return r.Event(id)
}

// owedSince is owed for meetings: in the room before or after the event, or by the room's state here once the event had come in; of what is on us
// to send, by that state alone (concerned). Which members are joined now says less: a server stays in the room while one of its users leaves and
// another comes.
func (f *Federation) owedSince(server eventgraph.ServerName, e *store.StoredEvent, c store.Change, then eventgraph.Hash) bool {
	if target, ok := removedServer(e); ok && target == server {
		return true
	}
	if !f.announces(e, c) && (f.Rooms.InRoomAt(e.RoomID(), e.StateBefore, server) || f.Rooms.InRoomAt(e.RoomID(), e.StateAfter, server)) {
		return true
	}
	return then != eventgraph.Hash{} && f.Rooms.InRoomAt(e.RoomID(), then, server)
}

// wasIn says whether a user of the server has been in the room: then it may still be owed what came before its removal.
func (f *Federation) wasIn(r *store.Reader, room eventgraph.RoomID, server eventgraph.ServerName) bool {
	was := false
	r.MembersOf(room, func(m *store.Member) (bool, error) {
		was = m.User.Server() == server && m.WasJoined
		return !was, nil
	})
	return was
}

// wanted gives events that the server may see, in order and as many as fit in a chunk of that size, of chunkBytes if 0. Those that it may not
// see, or that are not held, are left out without a word.
func (f *Federation) wanted(g *gift, want []eventgraph.EventID, limit int) (*meetEvents, error) {
	if limit <= 0 || limit > chunkBytes {
		limit = chunkBytes
	}
	given := &meetEvents{Events: []meetEvent{}}
	size := 0
	var signers []eventgraph.ServerName
	err := f.Store.View(func(r *store.Reader) error {
		for _, id := range want {
			if size >= limit {
				break
			}
			e, err := r.Event(id)
			if err == nil && size > 0 && size+len(e.Raw()) > limit {
				break
			}
			given.Looked++
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !f.allows(e.RoomID(), g.Server) {
				continue
			}
			shown, err := f.seen(g.Server, e)
			if err != nil {
				return err
			}
			if shown == nil {
				continue
			}
			raw := shown.Raw()
			given.Events = append(given.Events, meetEvent{e.RoomID(), raw})
			size += len(raw)
			for _, s := range e.RequiredSigners() {
				if s != g.Server && !g.told[s] && !slices.Contains(signers, s) {
					signers = append(signers, s)
				}
			}
		}
		return nil
	})
	size = 0
	for _, s := range signers {
		if d := f.document(s); d != nil && size < chunkBytes {
			given.Keys = append(given.Keys, d.Raw)
			size += len(d.Raw)
			if len(g.told) < maxDocuments {
				g.told[s] = true
			}
		}
	}
	return given, err
}

// cursor is the token for a position of this store: another incarnation's is not taken for it.
func (f *Federation) cursor(at store.Position) string {
	incarnation := f.Store.Incarnation()
	return hex.EncodeToString(incarnation[:]) + "." + strconv.FormatUint(uint64(at), 10)
}

func (f *Federation) parseCursor(cursor string) store.Position {
	own := strings.TrimSuffix(f.cursor(0), "0")
	number, ok := strings.CutPrefix(cursor, own)
	if !ok {
		return 0
	}
	at, err := strconv.ParseUint(number, 10, 64)
	if err != nil || store.Position(at) > f.Store.Position() {
		return 0
	}
	return store.Position(at)
}
