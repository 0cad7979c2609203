package federation

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// What the asker of a meeting lacks is fetched here: in the giver's commit order, chunk by chunk, each taken in before the next is asked
// for. So what is in memory is one chunk, and after a cut what came before it is held.
//
// When several givers have the same events, as after a long absence, each meeting claims what it asks for: no event is
// asked of two, and the meetings share the work. A chunk is taken in after those that were claimed before it and precede it in its giver's
// order, so that its events find their parents. Whoever is slow is overtaken: after claimPatience others ask for what it has claimed.

// claimPatience is how long others leave a claimed event to whom it is asked of, and wait with theirs for it. Chunks are as large as
// comes well within it (pace.go).
const claimPatience = 10 * time.Second

// meeting is one in which we ask.
type meeting struct {
	meetStream
	secret []byte    // of this meeting, for comparing
	pace   *pace     // of the contact, over all meetings
	until  time.Time // the end of its slice
	turns  int       // questions asked
	taken  int       // events that came
	own    held      // all that we hold of the rooms that are shared

	overtaken bool // somebody else had to ask for what this one has claimed; guarded by claims.mu
}

// ask puts a question and reads the answer.
func (m *meeting) ask(q *meetMessage) (*meetMessage, error) {
	if m.turns++; m.turns > maxTurns {
		return nil, errLater
	}
	if err := m.write(q); err != nil {
		return nil, err
	}
	return m.read(maxFrame)
}

// claims says which events are being fetched, and at which meeting.
type claims struct {
	now func() time.Time

	mu      sync.Mutex
	of      map[eventgraph.EventID]claimed // at most maxWant for each of askingMeetings
	last    uint64
	changed chan struct{} // closed and replaced when claims end
}

type claimed struct {
	by     *meeting
	number uint64 // the order of claiming
	since  time.Time
}

func newClaims(now func() time.Time) *claims {
	return &claims{now: now, of: map[eventgraph.EventID]claimed{}, changed: make(chan struct{})}
}

// take claims the first of the events that nobody else is fetching, at most maxWant; number is that of the claim. With none to be had,
// or none for who was overtaken, wait for changed.
func (c *claims) take(m *meeting, want []eventgraph.EventID) (part []eventgraph.EventID, number uint64, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for _, id := range want {
		if held, taken := c.of[id]; taken && now.Sub(held.since) < claimPatience {
			if m.overtaken {
				return nil, 0, c.changed
			}
		} else if len(part) < maxWant {
			part = append(part, id)
		}
	}
	c.last++
	for _, id := range part {
		if held, taken := c.of[id]; taken {
			held.by.overtaken = true
		}
		c.of[id] = claimed{m, c.last, now}
	}
	return part, c.last, c.changed
}

// renew notes that what the meeting has claimed has come and will be taken in.
func (c *claims) renew(m *meeting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, held := range c.of {
		if held.by == m {
			held.since = c.now()
			c.of[id] = held
		}
	}
}

// release ends the meeting's claims.
func (c *claims) release(m *meeting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, held := range c.of {
		if held.by == m {
			delete(c.of, id)
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// await waits until none of the events is claimed by a claim before the number, at most claimPatience. Only for earlier claims: so no two wait
// for each other.
func (c *claims) await(ctx context.Context, events []eventgraph.EventID, number uint64) error {
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()
	for {
		c.mu.Lock()
		changed := c.changed
		earlier := slices.ContainsFunc(events, func(id eventgraph.EventID) bool {
			held, taken := c.of[id]
			return taken && held.number < number
		})
		c.mu.Unlock()
		if !earlier {
			return nil
		}
		select {
		case <-changed:
		case <-patience.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// collect asks for those of the events that are not held here, and takes them in, chunk by chunk.
func (f *Federation) collect(ctx context.Context, c contact, m *meeting, news []meetID) error {
	defer f.meetings.claims.release(m)
	for {
		lacking, err := f.unknown(c.Server, news)
		if err != nil || len(lacking) == 0 {
			return err
		}
		want := make([]eventgraph.EventID, len(lacking))
		for i, n := range lacking {
			want[i] = n.Event
		}
		if f.Now().After(m.until) {
			return errLater
		}
		part, number, changed := f.meetings.claims.take(m, want)
		if len(part) == 0 {
			timer := time.NewTimer(claimPatience)
			select {
			case <-changed:
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
			if err := ctx.Err(); err != nil {
				return err
			}
			news = lacking
			continue
		}
		if came, err := f.cameMeanwhile(c.Server, lacking, part); came || err != nil {
			f.meetings.claims.release(m)
			if err != nil {
				return err
			}
			news = lacking
			continue
		}
		looked, err := f.fetchChunk(ctx, c, m, want, part, number)
		f.meetings.claims.release(m)
		if err != nil {
			return err
		}
		// What the giver has not given though it looked, it will not give if asked again.
		asked := make(map[eventgraph.EventID]bool, looked)
		for _, id := range part[:looked] {
			asked[id] = true
		}
		news = slices.DeleteFunc(lacking, func(n meetID) bool { return asked[n.Event] })
		if len(news) > maxWant && m.taken > 0 {
			f.meetings.rally(c.Peer) // others may have the same events
		}
	}
}

// cameMeanwhile says whether some of the part that was claimed is held: another meeting has taken it in and ended its claim after we had looked.
// From the claim on nobody else takes it in.
func (f *Federation) cameMeanwhile(giver eventgraph.ServerName, lacking []meetID, part []eventgraph.EventID) (bool, error) {
	claimed := make([]meetID, 0, len(part))
	for _, id := range lacking { // part is in its order
		if len(claimed) < len(part) && id.Event == part[len(claimed)] {
			claimed = append(claimed, id)
		}
	}
	still, err := f.unknown(giver, claimed)
	return len(still) < len(claimed), err
}

// fetchChunk asks for a part of what is wanted and takes in what comes. It returns how many of the part were answered.
func (f *Federation) fetchChunk(ctx context.Context, c contact, m *meeting, want, part []eventgraph.EventID, number uint64) (looked int, err error) {
	began := f.Now()
	answer, err := m.ask(&meetMessage{Want: part, Bytes: m.pace.chunk(chunkBytes)})
	took := f.Now().Sub(began)
	if err != nil {
		m.pace.came(0, took, true)
		return 0, err
	}
	chunk := answer.Events
	if chunk == nil || len(chunk.Events) > len(part) {
		return 0, errors.New("an answer to want that is none")
	}
	m.pace.came(chunk.size(), took, false)
	f.meetings.claims.renew(m)
	end := part[max(0, min(chunk.Looked, len(part))-1)]
	if err := f.meetings.claims.await(ctx, want[:slices.Index(want, end)], number); err != nil {
		return 0, err
	}
	n, err := f.takeChunk(ctx, c, part, chunk)
	m.taken += n
	if err != nil {
		return 0, err
	}
	if chunk.Looked < 1 || chunk.Looked > len(part) {
		return 0, errors.New("a chunk that answers nothing")
	}
	return chunk.Looked, nil
}

// unknown keeps the events of rooms that are held here, or are coming, that are held in no verdict but outlier, do not wait in the inbox, and were not refused
// lately as this giver has them.
func (f *Federation) unknown(giver eventgraph.ServerName, news []meetID) (lacking []meetID, err error) {
	rooms := map[eventgraph.RoomID]bool{} // whether held or coming
	err = f.Store.View(func(r *store.Reader) error {
		for _, id := range news {
			here, looked := rooms[id.Room]
			if !looked {
				_, err := r.Room(id.Room)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				if here = err == nil; !here {
					j, err := r.Join(id.Room)
					if err != nil && !errors.Is(err, store.ErrNotFound) {
						return err
					}
					here = err == nil && j.Phase != store.JoinSent
				}
				rooms[id.Room] = here
			}
			if !here || f.inbox.wasRefused(id.Event, giver) {
				continue
			}
			verdict, held, err := r.HasEvent(id.Event)
			if err != nil {
				return err
			}
			if held && verdict != store.Outlier {
				continue
			}
			waits, err := r.InboxHas(id.Room, id.Event)
			if err != nil {
				return err
			}
			if !waits {
				lacking = append(lacking, id)
			}
		}
		return nil
	})
	return lacking, err
}

// takeChunk stores the key documents, then puts the events through Accept by room.
func (f *Federation) takeChunk(ctx context.Context, c contact, asked []eventgraph.EventID, chunk *meetEvents) (int, error) {
	for _, raw := range chunk.Keys[:min(len(chunk.Keys), maxWant)] {
		d, err := eventgraph.ParseKeyDocument(raw)
		if err != nil || d.ServerName == f.server || !f.kept(d.ServerName) && !f.signs(d.ServerName, chunk) {
			continue
		}
		f.keep(ctx, d, "") // logs
	}
	var order []eventgraph.RoomID
	byRoom := map[eventgraph.RoomID][]*eventgraph.Event{}
	var early []json.RawMessage
	for _, given := range chunk.Events {
		version, ok := f.versionOf(given.Room)
		if !ok {
			early = append(early, given.PDU)
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
	if _, err := f.takeEarly(ctx, c.Server, early, map[eventgraph.EventID]pduResult{}); err != nil {
		return 0, err
	}
	taken := 0
	for _, room := range order {
		refused, err := f.takeIn(ctx, room, byRoom[room], c.Server)
		if err != nil {
			return taken, err
		}
		if n := len(byRoom[room]) - len(refused); n > 0 {
			taken += n
			f.gossip.missed(room) // others may have missed it too
		}
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
