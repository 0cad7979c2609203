package federation

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Two nodes that meet bring each other level (design.md §6, meetings). Each asks the other, over a stream of its own:
//
//	asker  hello   its cursor: an opaque token that the giver gave it last time
//	giver  news    of large rooms with much news, prints of what it holds; the asker says hello again, and which of them it holds the same of
//	giver  news    IDs of events after the cursor that the asker may see, in the giver's commit order, and the next cursor; none of rooms that
//	               were found to be the same
//	asker  want    those that it does not hold
//	giver  events  them, in chunks, with the key documents of their senders
//	       … want and events until the asker has all of the news; it stores the cursor; hello again while there is more
//	asker  compare what it holds of the rooms that both are in, as fingerprints
//	giver  compared …                                                                  both in summary.go
//	asker  rooms   the extremities of those that differ
//	giver  held    its own of them
//	asker  want …
//
// The asker's part is here, in collect.go and in compare.go, the giver's in give.go. What travels is never a second way in: the events go
// through Accept, and what misses parents into the inbox.

// protocolMeet is spoken on streams of its own; a peer that does not know it is served by the spec's endpoints alone.
const protocolMeet = "/plexus/meet/1"

const (
	// maxFrame bounds a message: a chunk of events and the key documents with it.
	maxFrame = 6 << 20
	// maxNews is how many event IDs one answer lists: after a cut they are listed again, some 25 KB.
	maxNews = 500
	// maxWant is how many events one message asks for.
	maxWant = 200
	// maxQuestion bounds what a giver reads: the extremities of roomsAtOnce rooms are the longest.
	maxQuestion = 1 << 20
	// chunkBytes is the size after which a giver ends a chunk; the rest is asked for again. Key documents of as much travel with it.
	chunkBytes = 2 << 20
	// maxTurns bounds the messages of one meeting on either side; the asker comes again.
	maxTurns = 5000
	// maxCursor bounds a cursor, ours are some 50 bytes.
	maxCursor = 256
	// meetTurn is how long the other side may take for one message, and it may take longer for what passes meanwhile: see passing. That
	// is looked at after each readStep bytes.
	meetTurn = 30 * time.Second
	readStep = 4 << 10
	// meetSlice is how long one meeting may go on. Then others have their turn, and it goes on from where it was.
	meetSlice = time.Minute
	// meetAgain and meetSeldom are the shortest and longest interval between two meetings with a connected peer: it doubles
	// while nothing has changed on either side. A meeting that failed is held again after meetRetry, doubled each time: it may have been
	// cut, or the peer does not speak the protocol.
	meetRetry  = time.Second
	meetAgain  = time.Minute
	meetSeldom = 10 * time.Minute
	// meetCrowd contacts are each met at those intervals; of more, each is met the more seldom, so that there are not more meetings: what
	// one contact has that we miss, others have too.
	meetCrowd = 8
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
	Hello    *meetHello           `json:"hello,omitempty"`
	News     *meetNews            `json:"news,omitempty"`
	Want     []eventgraph.EventID `json:"want,omitempty"`
	Bytes    int                  `json:"bytes,omitempty"` // with Want: after how many the giver is to end the chunk
	Events   *meetEvents          `json:"events,omitempty"`
	Compare  *meetCompare         `json:"compare,omitempty"`
	Compared *meetCompared        `json:"compared,omitempty"`
	Rooms    []meetRoom           `json:"rooms,omitempty"`
	Held     []meetRoom           `json:"held,omitempty"`
	Gossip   *gossipOffers        `json:"gossip,omitempty"` // on streams of protocolKeys
}

// meetHello and its answer bring at their first exchange what each side adds to the secret of the meeting.
type meetHello struct {
	Cursor string `json:"cursor,omitempty"`
	Nonce  []byte `json:"nonce,omitempty"`
	Busy   bool   `json:"busy,omitempty"`  // the answer may be busy rooms
	Level  []byte `json:"level,omitempty"` // the IDs of those of the busy rooms of which both hold the same
}

// meetNews lists events; In says for each the place of its room in Rooms.
type meetNews struct {
	Rooms  []eventgraph.RoomID  `json:"rooms,omitempty"`
	Events []eventgraph.EventID `json:"events,omitempty"`
	In     []int                `json:"in,omitempty"`
	Cursor string               `json:"cursor"`
	More   bool                 `json:"more,omitempty"`
	Nonce  []byte               `json:"nonce,omitempty"`
	Busy   []byte               `json:"busy,omitempty"` // IDs and prints of rooms (summary.go); then there are no events, and the cursor is that asked for
}

type meetID struct {
	Room  eventgraph.RoomID
	Event eventgraph.EventID
}

func (n *meetNews) add(id meetID) {
	at := slices.Index(n.Rooms, id.Room)
	if at < 0 {
		at = len(n.Rooms)
		n.Rooms = append(n.Rooms, id.Room)
	}
	n.Events = append(n.Events, id.Event)
	n.In = append(n.In, at)
}

// list is the events with their rooms; false if it is not in order.
func (n *meetNews) list() ([]meetID, bool) {
	if len(n.Events) > maxNews || len(n.In) != len(n.Events) || len(n.Cursor) > maxCursor {
		return nil, false
	}
	all := make([]meetID, len(n.Events))
	for i, id := range n.Events {
		if n.In[i] < 0 || n.In[i] >= len(n.Rooms) {
			return nil, false
		}
		all[i] = meetID{n.Rooms[n.In[i]], id}
	}
	return all, true
}

type meetEvents struct {
	Events []meetEvent       `json:"events"`
	Keys   []json.RawMessage `json:"keys,omitempty"`
	Looked int               `json:"looked"` // how many of the wanted, from the first, this answers; the others did not fit
}

// size is the bytes of what it holds.
func (m *meetEvents) size() (n int) {
	for _, e := range m.Events {
		n += len(e.PDU)
	}
	for _, k := range m.Keys {
		n += len(k)
	}
	return n
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
	return s.writeBody(body)
}

func (s meetStream) writeBody(body []byte) error {
	if len(body) > maxFrame {
		return errTooLong
	}
	s.setDeadline(time.Now().Add(meetTurn + passing(len(body))))
	_, err := s.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func (s meetStream) setDeadline(t time.Time) {
	if d, ok := s.ReadWriteCloser.(deadliner); ok {
		d.SetDeadline(t)
	}
}

// read reads a message of at most limit bytes.
func (s meetStream) read(limit uint32) (*meetMessage, error) { return s.readAfter(0, limit) }

// readAfter is read of the answer to a message of so many bytes, which may still be on their way.
func (s meetStream) readAfter(sent int, limit uint32) (*meetMessage, error) {
	body, err := s.readBody(sent, limit)
	if err != nil {
		return nil, err
	}
	m := &meetMessage{}
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("message that is not one: %w", err)
	}
	return m, nil
}

func (s meetStream) readBody(sent int, limit uint32) ([]byte, error) {
	until := time.Now().Add(meetTurn + passing(sent))
	s.setDeadline(until)
	var head [4]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return nil, errTooLong
	}
	var body bytes.Buffer // grows with what comes, not with what is announced
	for rest := int64(n); rest > 0; rest = int64(n) - int64(body.Len()) {
		if _, err := io.CopyN(&body, s, min(rest, readStep)); errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		} else if err != nil {
			return nil, err
		}
		s.setDeadline(until.Add(passing(body.Len())))
	}
	return body.Bytes(), nil
}

// meetings is what is known of all meetings in which we ask.
type meetings struct {
	claims     *claims
	agreements *agreements
	sharing    *sharing

	mu        sync.Mutex
	attending map[eventgraph.PeerID]chan struct{} // a hint for each contact: bounded by the transport's connections
	friends   map[eventgraph.PeerID]bool          // of these, those that share a room with us
}

func newMeetings(c Config) *meetings {
	return &meetings{
		claims: newClaims(c.Now), agreements: newAgreements(), sharing: newSharing(c),
		attending: map[eventgraph.PeerID]chan struct{}{}, friends: map[eventgraph.PeerID]bool{},
	}
}

// hint lets the next meeting with the peer be soon.
func (m *meetings) hint(peer eventgraph.PeerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if hinted := m.attending[peer]; hinted != nil {
		signal(hinted)
	}
}

// rally hints for all peers but one.
func (m *meetings) rally(but eventgraph.PeerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for peer, hinted := range m.attending {
		if peer != but {
			signal(hinted)
		}
	}
}

// handleMeetings answers those who ask, and heeds hints.
func (f *Federation) handleMeetings() {
	g := &givers{friends: make(chan struct{}, givingMeetings), strangers: make(chan struct{}, strangerMeetings), with: map[eventgraph.PeerID]*giving{}}
	f.Transport.Handle(protocolMeet, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		if err := f.give(ctx, g, peer, meetStream{stream}); err != nil && ctx.Err() == nil {
			f.Log.Debug("meeting ended", "peer", peer, "err", err)
		}
	})
	f.Transport.Handle(protocolNews, func(_ context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		stream.Close()
		f.meetings.hint(peer)
	})
}

// runMeetings brings us level with each server met, at once and then at intervals, until ctx ends.
func (f *Federation) runMeetings(ctx context.Context) error {
	f.handleMeetings()
	group, ctx := errgroup.WithContext(ctx)
	asking := make(chan struct{}, askingMeetings)
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
				hinted, fresh := f.meetings.attend(c.Peer)
				if !fresh {
					continue // it looks itself whether the peer was met anew
				}
				group.Go(func() error {
					for {
						f.attend(ctx, c, asking, hinted)
						if f.meetings.leave(c.Peer, func() bool {
							_, back := f.peers.since(c.Peer)
							return ctx.Err() != nil || !back
						}) {
							return nil
						}
					}
				})
			}
		}
	})
	return group.Wait()
}

func (m *meetings) attend(peer eventgraph.PeerID) (hinted chan struct{}, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if hinted = m.attending[peer]; hinted == nil {
		hinted, fresh = make(chan struct{}, 1), true
		m.attending[peer] = hinted
	}
	return hinted, fresh
}

// leave ends the attending if that is still right: one who comes back later is found not to be attended.
func (m *meetings) leave(peer eventgraph.PeerID, gone func() bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !gone() {
		return false
	}
	delete(m.attending, peer)
	delete(m.friends, peer)
	return true
}

// befriend notes whether an attended peer shares a room with us, and says how many do.
func (m *meetings) befriend(peer eventgraph.PeerID, shares bool) (friends int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if shares {
		m.friends[peer] = true
	} else {
		delete(m.friends, peer)
	}
	return len(m.friends)
}

// inCrowd is the interval with each of so many contacts. Up to a quarter of it is left out by lot: all are met at once
// by who has just come, and would be for ever.
func inCrowd(wait time.Duration, contacts int) time.Duration {
	if contacts <= meetCrowd {
		return wait
	}
	wait = min(wait*time.Duration(contacts)/meetCrowd, meetSeldom)
	return wait - mrand.N(wait/4)
}

// interval is when the next meeting with a peer is due.
type interval struct {
	wait     time.Duration
	failures int
}

// next is the wait after a meeting: changed says that something was not as at the one before, more that it ended before its time.
func (i *interval) next(changed, more, failed bool) time.Duration {
	switch {
	case failed && !changed:
		i.wait = min(meetRetry<<min(i.failures, 10), meetSeldom)
		i.failures++
	case failed || more:
		i.wait, i.failures = meetRetry, 1 // it has come further
	case changed || i.failures > 0 || i.wait == 0:
		i.wait, i.failures = meetAgain, 0
	default:
		i.wait = min(2*i.wait, meetSeldom)
	}
	return i.wait
}

// attend meets a connected peer, now and again, and when it hints at news, until it goes. A peer that goes and comes at once is met anew.
func (f *Federation) attend(ctx context.Context, c contact, asking, hinted chan struct{}) {
	var when interval
	var met uint64
	var own held // what we held when we last met
	var pace *pace
	for {
		since, connected := f.peers.since(c.Peer)
		if !connected {
			return
		}
		if since != met {
			met, when, pace = since, interval{}, f.peers.paceOf(c.Peer)
			c.Server, _ = f.ServerOf(c.Peer)
		}
		wait := meetAgain
		shares := f.sharesRoom(c.Server)
		if friends := f.meetings.befriend(c.Peer, shares); shares {
			release, err := take(ctx, asking)
			if err != nil {
				return
			}
			m := &meeting{pace: pace, until: f.Now().Add(meetSlice)}
			changed, err := f.meet(ctx, c, m)
			release()
			if ctx.Err() != nil {
				return
			}
			more := errors.Is(err, errLater)
			if err != nil && !more {
				f.Log.Debug("meeting failed", "server", c.Server, "peer", c.Peer, "err", err)
			}
			if changed = changed || m.taken > 0; err == nil {
				changed = changed || m.own != own
				own = m.own
			}
			if wait = when.next(changed, more && changed, err != nil && !(more && changed)); err == nil {
				wait = inCrowd(wait, friends)
			}
		}
		if !f.peers.pause(ctx, c.Peer, since, min(wait, newsDelay), nil) || !f.peers.pause(ctx, c.Peer, since, wait-min(wait, newsDelay), hinted) {
			return
		}
	}
}

// errLater ends a meeting whose time is over; the next goes on.
var errLater = errors.New("the meeting goes on later")

// meet asks the peer for all that is new to us. It says whether there was something new beside the events that came.
func (f *Federation) meet(ctx context.Context, c contact, m *meeting) (changed bool, err error) {
	opened, err := f.Transport.OpenStream(ctx, c.Peer, protocolMeet)
	if err != nil {
		return false, err
	}
	defer opened.Close()
	m.meetStream = meetStream{opened}
	defer m.endWith(ctx)()
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails
	var level []byte
	for {
		cursor, err := f.meetingCursor(c)
		if err != nil {
			return false, err
		}
		hello := &meetHello{Cursor: cursor}
		if m.secret == nil {
			hello.Nonce, hello.Busy = nonce, true
		}
		hello.Level, level = level, nil
		answer, err := m.ask(&meetMessage{Hello: hello})
		if err != nil {
			return false, err
		}
		if answer.News == nil {
			return false, errors.New("an answer to hello that is none")
		}
		events, ok := answer.News.list()
		if !ok {
			return false, errors.New("news that are not in order")
		}
		if m.secret == nil {
			m.secret = meetingSecret(nonce, answer.News.Nonce)
			if len(answer.News.Busy) > 0 {
				if level, err = f.level(c, m, answer.News.Busy); err != nil {
					return false, err
				}
				continue
			}
		}
		if err := f.collect(ctx, c, m, events); err != nil {
			return false, err
		}
		if next := answer.News.Cursor; next != cursor {
			_, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutMeetingCursor(c.Server, c.Peer, next) })
			if err != nil {
				return false, err
			}
		} else if answer.News.More {
			return false, errors.New("more news under the same cursor")
		}
		if !answer.News.More {
			break
		}
		if f.Now().After(m.until) {
			return false, errLater
		}
	}
	return f.compare(ctx, c, m)
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

func (f *Federation) meetingCursor(c contact) (cursor string, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		cursor, err = r.MeetingCursor(c.Server, c.Peer)
		return err
	})
	return cursor, err
}
