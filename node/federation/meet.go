package federation

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Two nodes that meet bring each other level (design.md §6, meetings). Each asks the other, over a stream of its own:
//
//	asker  hello   its cursor: an opaque token that the giver gave it last time
//	giver  news    IDs of events after the cursor that the asker may see, in the giver's commit order, and the next cursor
//	asker  want    those that it does not hold
//	giver  events  them, in chunks, with the key documents of their senders
//	       … want and events until the asker has all of the news; it stores the cursor; hello again while there is more
//	asker  compare the extremities of the rooms that both are in
//	giver  compared those that the giver does not know, and its own
//	asker  want …
//
// What travels is never a second way in: the events go through Accept, and what misses parents into the inbox.

// protocolMeet is spoken on streams of its own; a peer that does not know it is served by the spec's endpoints alone.
const protocolMeet = "/plexus/meet/1"

const (
	// maxFrame bounds a message: maxNews IDs with their rooms, or a chunk of events.
	maxFrame = 6 << 20
	// maxNews is how many event IDs one answer lists.
	maxNews = 1000
	// maxWant is how many events one message asks for.
	maxWant = 200
	// maxQuestion bounds what a giver reads: extremities of maxCompared rooms are the longest.
	maxQuestion = 3 << 20
	// chunkBytes is the size after which a giver ends a chunk; the rest is asked for again. Key documents of as much travel with it.
	chunkBytes = 2 << 20
	// maxTurns bounds the messages of one meeting that a giver answers; the asker comes again.
	maxTurns = 5000
	// maxCompared bounds the rooms whose extremities are compared in one meeting.
	maxCompared = 2000
	// maxCursor bounds a cursor, ours are some 50 bytes.
	maxCursor = 256
	// meetTurn is how long the other side may take for one message.
	meetTurn = 30 * time.Second
	// meetAgain and meetSeldom are the shortest and longest interval between two meetings with a connected peer: it doubles
	// while nothing was new. A meeting that failed is held again after meetRetry, doubled each time: it may have been cut, or
	// the peer does not speak the protocol.
	meetRetry  = time.Second
	meetAgain  = time.Minute
	meetSeldom = 10 * time.Minute
	// askingMeetings and givingMeetings bound how many meetings go on at one time, as asker and as giver; of the latter one for each
	// peer. strangerMeetings is for all that share no room with us now: they may be owed what came before they were removed.
	askingMeetings   = 4
	givingMeetings   = 16
	strangerMeetings = 2
	// scanNews bounds the changes that a giver looks at for one answer; with none found it gives the cursor reached.
	scanNews = 50_000
)

// meetMessage is any message of the protocol; which fields are set says which.
type meetMessage struct {
	Hello   *meetHello                                 `json:"hello,omitempty"`
	News    *meetNews                                  `json:"news,omitempty"`
	Want    []eventgraph.EventID                       `json:"want,omitempty"`
	Events  *meetEvents                                `json:"events,omitempty"`
	Compare map[eventgraph.RoomID][]eventgraph.EventID `json:"compare,omitempty"`
}

type meetHello struct {
	Cursor string `json:"cursor"`
}

type meetNews struct {
	Events []meetID `json:"events"`
	Cursor string   `json:"cursor"`
	More   bool     `json:"more"`
}

type meetID struct {
	Room  eventgraph.RoomID  `json:"room"`
	Event eventgraph.EventID `json:"event"`
}

type meetEvents struct {
	Events []meetEvent       `json:"events"`
	Keys   []json.RawMessage `json:"keys,omitempty"`
	Looked int               `json:"looked"` // how many of the wanted, from the first, this answers; the others did not fit
}

type meetEvent struct {
	Room eventgraph.RoomID `json:"room"`
	PDU  json.RawMessage   `json:"pdu"`
}

// deadliner is a stream with deadlines, as streams of both transports are.
type deadliner interface{ SetDeadline(time.Time) error }

// meetStream frames messages: 4 bytes of length, big-endian, and JSON.
type meetStream struct {
	io.ReadWriteCloser
}

func (s meetStream) write(m *meetMessage) error {
	body, err := marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxFrame {
		return errTooLong
	}
	if d, ok := s.ReadWriteCloser.(deadliner); ok {
		d.SetDeadline(time.Now().Add(meetTurn))
	}
	_, err = s.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// read reads a message of at most limit bytes.
func (s meetStream) read(limit uint32) (*meetMessage, error) {
	if d, ok := s.ReadWriteCloser.(deadliner); ok {
		d.SetDeadline(time.Now().Add(meetTurn))
	}
	var head [4]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return nil, errTooLong
	}
	body, err := io.ReadAll(io.LimitReader(s, int64(n))) // grows with what comes, not with what is announced
	if err != nil {
		return nil, err
	}
	if len(body) < int(n) {
		return nil, io.ErrUnexpectedEOF
	}
	m := &meetMessage{}
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("message that is not one: %w", err)
	}
	return m, nil
}

// runMeetings brings us level with each server met, at once and then at intervals, until ctx ends.
func (f *Federation) runMeetings(ctx context.Context) error {
	g := &givers{friends: make(chan struct{}, givingMeetings), strangers: make(chan struct{}, strangerMeetings), with: map[eventgraph.PeerID]*giving{}}
	f.Transport.Handle(protocolMeet, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		if err := f.give(ctx, g, peer, meetStream{stream}); err != nil && ctx.Err() == nil {
			f.Log.Debug("meeting ended", "peer", peer, "err", err)
		}
	})
	group, ctx := errgroup.WithContext(ctx)
	asking := make(chan struct{}, askingMeetings)
	var mu sync.Mutex
	attending := map[eventgraph.PeerID]chan struct{}{} // one for each contact: bounded by the transport's connections
	f.Transport.Handle(protocolNews, func(_ context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		stream.Close()
		mu.Lock()
		defer mu.Unlock()
		if hinted := attending[peer]; hinted != nil {
			signal(hinted)
		}
	})
	group.Go(func() error {
		if err := f.hintNews(ctx); ctx.Err() == nil {
			return err
		}
		return nil
	})
	group.Go(func() error {
		turn := uint64(0)
		for {
			met, next, err := f.peers.met(ctx, turn)
			if err != nil {
				return nil
			}
			turn = next
			for _, c := range met {
				mu.Lock()
				if attending[c.Peer] == nil {
					hinted := make(chan struct{}, 1)
					attending[c.Peer] = hinted
					group.Go(func() error {
						f.attend(ctx, c, asking, hinted)
						mu.Lock()
						delete(attending, c.Peer)
						mu.Unlock()
						return nil
					})
				}
				mu.Unlock()
			}
		}
	})
	return group.Wait()
}

// attend meets a connected peer, now and again, and when it hints at news, until it goes. A peer that goes and comes at once is met anew.
func (f *Federation) attend(ctx context.Context, c contact, asking, hinted chan struct{}) {
	wait, failures := meetAgain, 0
	for {
		since, connected := f.peers.since(c.Peer)
		if !connected {
			return
		}
		if f.sharesRoom(c.Server) {
			release, err := take(ctx, asking)
			if err != nil {
				return
			}
			news, err := f.meet(ctx, c)
			release()
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				f.Log.Debug("meeting failed", "server", c.Server, "peer", c.Peer, "err", err)
				wait = min(meetRetry<<min(failures, 10), meetSeldom)
				failures++
			case news > 0 || failures > 0:
				wait, failures = meetAgain, 0
			default:
				wait = min(2*wait, meetSeldom)
			}
		}
		if !f.peers.pause(ctx, c.Peer, since, min(wait, newsDelay), nil) || !f.peers.pause(ctx, c.Peer, since, wait-min(wait, newsDelay), hinted) {
			return
		}
	}
}

// meet asks the peer for all that is new to us, and returns how many events came.
func (f *Federation) meet(ctx context.Context, c contact) (news int, err error) {
	opened, err := f.Transport.OpenStream(ctx, c.Peer, protocolMeet)
	if err != nil {
		return 0, err
	}
	defer opened.Close()
	s := meetStream{opened}
	defer s.endWith(ctx)()
	for {
		cursor, err := f.meetingCursor(c.Peer)
		if err != nil {
			return news, err
		}
		answer, err := s.ask(&meetMessage{Hello: &meetHello{cursor}})
		if err != nil {
			return news, err
		}
		if answer.News == nil || len(answer.News.Events) > maxNews || len(answer.News.Cursor) > maxCursor {
			return news, errors.New("an answer to hello that is none")
		}
		n, err := f.collect(ctx, c, s, answer.News.Events)
		news += n
		if err != nil {
			return news, err
		}
		if next := answer.News.Cursor; next != cursor {
			_, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutMeetingCursor(c.Peer, next) })
			if err != nil {
				return news, err
			}
		} else if answer.News.More {
			return news, errors.New("more news under the same cursor")
		}
		if !answer.News.More {
			break
		}
	}
	n, err := f.compare(ctx, c, s)
	return news + n, err
}

func (s meetStream) ask(m *meetMessage) (*meetMessage, error) {
	if err := s.write(m); err != nil {
		return nil, err
	}
	return s.read(maxFrame)
}

// endWith breaks the stream when ctx ends, until stop is called.
func (s meetStream) endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		if d, ok := s.ReadWriteCloser.(deadliner); ok {
			d.SetDeadline(time.Unix(1, 0)) // closing alone need not wake who reads
		}
		s.Close()
	})
}

func (f *Federation) meetingCursor(peer eventgraph.PeerID) (cursor string, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		cursor, err = r.MeetingCursor(peer)
		return err
	})
	return cursor, err
}

// collect asks for those of the events that are not held here, and takes them in, chunk by chunk.
func (f *Federation) collect(ctx context.Context, c contact, s meetStream, news []meetID) (taken int, err error) {
	want, err := f.unknown(news)
	if err != nil {
		return 0, err
	}
	for len(want) > 0 {
		part := want[:min(len(want), maxWant)]
		answer, err := s.ask(&meetMessage{Want: part})
		if err != nil {
			return taken, err
		}
		if answer.Events == nil {
			return taken, errors.New("an answer to want that is none")
		}
		n, err := f.takeChunk(ctx, c, part, answer.Events)
		taken += n
		if err != nil {
			return taken, err
		}
		if answer.Events.Looked < 1 || answer.Events.Looked > len(part) {
			return taken, errors.New("a chunk that answers nothing")
		}
		want = want[answer.Events.Looked:]
	}
	return taken, nil
}

// unknown keeps the events of rooms held here that are held in no verdict but outlier, and do not wait in the inbox.
func (f *Federation) unknown(news []meetID) (want []eventgraph.EventID, err error) {
	return want, f.Store.View(func(r *store.Reader) error {
		for _, id := range news {
			if _, err := r.Room(id.Room); errors.Is(err, store.ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
			verdict, held, err := r.HasEvent(id.Event)
			if err != nil {
				return err
			}
			waits, err := r.InboxHas(id.Room, id.Event)
			if err != nil {
				return err
			}
			if !waits && (!held || verdict == store.Outlier) {
				want = append(want, id.Event)
			}
		}
		return nil
	})
}

// takeChunk stores the key documents, then puts the events through Accept by room.
func (f *Federation) takeChunk(ctx context.Context, c contact, asked []eventgraph.EventID, chunk *meetEvents) (int, error) {
	if len(chunk.Events) > len(asked) {
		return 0, errors.New("more events than were asked for")
	}
	for _, raw := range chunk.Keys[:min(len(chunk.Keys), maxWant)] {
		d, err := eventgraph.ParseKeyDocument(raw)
		if err != nil || d.ServerName == f.server || !f.kept(d.ServerName) && !f.signs(d.ServerName, chunk) {
			continue
		}
		f.keep(ctx, d, "") // logs
	}
	var order []eventgraph.RoomID
	byRoom := map[eventgraph.RoomID][]*eventgraph.Event{}
	for _, given := range chunk.Events {
		version, ok := f.versionOf(given.Room)
		if !ok {
			continue
		}
		e, err := eventgraph.ParseEvent(version, given.PDU)
		if err != nil || e.RoomID() != given.Room || !slices.Contains(asked, e.ID()) {
			f.Log.Info("event refused at a meeting", "server", c.Server, "room", given.Room, "err", err)
			continue
		}
		if byRoom[given.Room] == nil {
			order = append(order, given.Room)
		}
		byRoom[given.Room] = append(byRoom[given.Room], e)
	}
	taken := 0
	for _, room := range order {
		refused, err := f.takeIn(ctx, room, byRoom[room], c.Server)
		if err != nil {
			return taken, err
		}
		taken += len(byRoom[room]) - len(refused)
	}
	return taken, nil
}

// signs says whether an event of the chunk is of a user of the server: other documents were not asked for.
func (f *Federation) signs(server eventgraph.ServerName, chunk *meetEvents) bool {
	return slices.ContainsFunc(chunk.Events, func(e meetEvent) bool {
		var frame struct {
			Sender eventgraph.UserID `json:"sender"`
		}
		return json.Unmarshal(e.PDU, &frame) == nil && frame.Sender.Server() == server
	})
}

// compare tells the peer our extremities in the rooms that, as we know it, both are in, and fetches those of its own that we do not
// know: what fell between two cursors is found here.
func (f *Federation) compare(ctx context.Context, c contact, s meetStream) (int, error) {
	ours, err := f.sharedExtremities(c.Server)
	if err != nil || len(ours) == 0 {
		return 0, err
	}
	answer, err := s.ask(&meetMessage{Compare: ours})
	if err != nil {
		return 0, err
	}
	var theirs []meetID
	for room, ids := range answer.Compare {
		if _, asked := ours[room]; asked {
			for _, id := range ids[:min(len(ids), maxEarliest)] {
				theirs = append(theirs, meetID{room, id})
			}
		}
	}
	return f.collect(ctx, c, s, theirs)
}

// sharedExtremities lists the forward extremities of the rooms that the server is in, at most maxCompared rooms.
func (f *Federation) sharedExtremities(server eventgraph.ServerName) (map[eventgraph.RoomID][]eventgraph.EventID, error) {
	shared := map[eventgraph.RoomID][]eventgraph.EventID{}
	return shared, f.Store.View(func(r *store.Reader) error {
		return r.Rooms(func(room *store.Room) (bool, error) {
			if f.Rooms.InRoom(room.ID, server) && f.Rooms.ServerAllowed(room.ID, server) {
				shared[room.ID] = room.Forward[:min(len(room.Forward), maxEarliest)]
			}
			return len(shared) < maxCompared, nil
		})
	})
}

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
	for range maxTurns {
		m, err := s.read(maxQuestion)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := &meetMessage{}
		switch {
		case m.Hello != nil:
			answer.News, err = f.newsFor(server, m.Hello.Cursor)
		case len(m.Want) > 0 && len(m.Want) <= maxWant:
			answer.Events, err = f.wanted(server, m.Want)
		case m.Compare != nil && len(m.Compare) <= maxCompared:
			answer.Compare, err = f.compared(server, m.Compare)
		default:
			return errors.New("a message that asks nothing")
		}
		if err != nil {
			return err
		}
		if err := s.write(answer); err != nil {
			return err
		}
	}
	return nil
}

// asker is the server that the peer speaks for; if that is not known, the peer is asked.
func (f *Federation) asker(ctx context.Context, peer eventgraph.PeerID) (eventgraph.ServerName, error) {
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

// newsFor lists what has come since the cursor and may be shown to the server, in commit order.
func (f *Federation) newsFor(server eventgraph.ServerName, cursor string) (*meetNews, error) {
	news := &meetNews{Events: []meetID{}}
	from := f.parseCursor(cursor)
	upTo := f.Store.Position()
	reached := from
	been := map[eventgraph.RoomID]bool{} // rooms that the server was in
	err := f.Store.View(func(r *store.Reader) error {
		looked := 0
		return r.Changes(from, upTo, func(at store.Position, c store.Change) (bool, error) {
			if len(news.Events) == maxNews || looked == scanNews {
				news.More = true
				return false, nil
			}
			looked++
			reached = at
			if c.Kind != store.ChangeEvent && c.Kind != store.ChangeSoftFailed {
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
			may, err := f.mayGive(r, server, e, at)
			if may {
				news.Events = append(news.Events, meetID{c.Room, c.Event})
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
// was before its time it pages back for.
func (f *Federation) mayGive(r *store.Reader, server eventgraph.ServerName, e *store.StoredEvent, at store.Position) (bool, error) {
	if !f.Rooms.ServerAllowed(e.RoomID(), server) {
		return false, nil
	}
	if !f.owedSince(r, server, e, at) {
		return false, nil
	}
	return f.Rooms.MaySeeServer(server, e)
}

// owedSince is owed for meetings: in the room before or after the event, or joined here before the event came in.
func (f *Federation) owedSince(r *store.Reader, server eventgraph.ServerName, e *store.StoredEvent, at store.Position) bool {
	if target, ok := removedServer(e); ok && target == server {
		return true
	}
	if f.Rooms.InRoomAt(e.RoomID(), e.StateBefore, server) || f.Rooms.InRoomAt(e.RoomID(), e.StateAfter, server) {
		return true
	}
	joined := false
	r.MembersOf(e.RoomID(), func(m *store.Member) (bool, error) {
		joined = m.User.Server() == server && m.Membership == "join" && m.Position < at
		return !joined, nil
	})
	return joined
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

// wanted gives events that the server may see, in order and as many as fit in a chunk. Those that it may not see, or that
// are not held, are left out without a word.
func (f *Federation) wanted(server eventgraph.ServerName, want []eventgraph.EventID) (*meetEvents, error) {
	given := &meetEvents{Events: []meetEvent{}}
	size := 0
	var signers []eventgraph.ServerName
	err := f.Store.View(func(r *store.Reader) error {
		for _, id := range want {
			if size > chunkBytes {
				break
			}
			given.Looked++
			e, err := r.Event(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !f.Rooms.ServerAllowed(e.RoomID(), server) {
				continue
			}
			if may, err := f.Rooms.MaySeeServer(server, e); err != nil {
				return err
			} else if !may {
				continue
			}
			given.Events = append(given.Events, meetEvent{e.RoomID(), e.Raw()})
			size += len(e.Raw())
			for _, s := range e.RequiredSigners() {
				if s != server && !slices.Contains(signers, s) {
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
		}
	}
	return given, err
}

// compared answers with our extremities in the rooms that both are in and that differ from the asker's.
func (f *Federation) compared(server eventgraph.ServerName, theirs map[eventgraph.RoomID][]eventgraph.EventID) (map[eventgraph.RoomID][]eventgraph.EventID, error) {
	ours, err := f.sharedExtremities(server)
	if err != nil {
		return nil, err
	}
	differ := map[eventgraph.RoomID][]eventgraph.EventID{}
	for room, ids := range ours {
		if other, ok := theirs[room]; ok && !slices.Equal(ids, other) {
			differ[room] = ids
		}
	}
	return differ, nil
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
