package federation

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A peer that has moved is found again by whom it knows and can reach. Others learn from those: A, who misses C, asks each server that
// shares a room with it for the records of C's devices; B, who is connected to C, hands on the record that C has signed, at once or
// when C comes.
//
//	A  want     {C: the seq of the record that A holds}
//	B  records  {C: its signed record}       now, if C is connected to B and its record is newer
//	B  records  {C: …}                       on a stream of B's own, when C comes or has other addresses
//	A  want     {D: …}, more, found [C]      later, over the same connection: only who is missed now and was not, and who no longer
//
// Nobody is told of a server that shares no room with it, nor asked about one that shares no room with who is asked. A room whose ACL denies one of
// them does not count.

// protocolPeers is spoken on streams of its own, each for one message and its answer.
const protocolPeers = "/plexus/peers/1"

const (
	// maxMissed is how many peers one message asks for; others have their turn with other contacts, and later.
	maxMissed = 128
	// maxHandedOn is how many records one message carries, of 300 bytes each if they are ordinary.
	maxHandedOn = 32
	// maxPeersMessage bounds a message: maxHandedOn records of 4 KiB, which the transport allows, in base64.
	maxPeersMessage = 192 << 10
	// askedContacts is how many contacts are asked when peers have gone. Those newly met are all asked.
	askedContacts = 16
	// peersAtOnce messages are sent at one time, and as many served.
	peersAtOnce = 4
	// peersTimeout is for a message and its answer.
	peersTimeout = 10 * time.Second
	// recordsDelay gathers what changes together: a network that comes or goes takes many peers with it.
	recordsDelay = time.Second
	// recordsRest is the shortest time between two questions to all contacts, however many come, go and join.
	recordsRest = 10 * time.Second
	// recordsAgain is when everybody is asked anew for who is still missed; and when a contact is next told of all of them.
	recordsAgain = 10 * time.Minute
	// peersMessageEvery and peersMessageBurst of one peer are served.
	peersMessageEvery = time.Second
	peersMessageBurst = 10
)

// PeerRecords is what the transport knows of signed peer records: the newest one of a peer and its seq (nil and 0 if none), a channel that is
// closed when one comes, and what takes in one that was handed on, which finds out whether it is the peer's and new.
type PeerRecords interface {
	Record(peer eventgraph.PeerID) (record []byte, seq uint64)
	RecordsChanged() <-chan struct{}
	AddRecord(peer eventgraph.PeerID, record []byte) error
}

// peersMessage asks, or hands on, or both.
type peersMessage struct {
	Want    map[eventgraph.PeerID]uint64 `json:"want,omitempty"`   // peers missed, and the seq of the record held
	More    bool                         `json:"more,omitempty"`   // those of the questions before on this connection are missed still
	Found   []eventgraph.PeerID          `json:"found,omitempty"`  // with More: but for these
	Forgot  bool                         `json:"forgot,omitempty"` // in an answer: the questions before are not known, so all is to be asked again
	Records map[eventgraph.PeerID][]byte `json:"records,omitempty"`
}

// introducer hands records on and asks for them.
type introducer struct {
	f       *Federation
	serving chan struct{}

	mu     sync.Mutex
	askers map[eventgraph.PeerID]*recordAsker // connected ones: bounded by the transport

	// Owned by run.
	met   map[eventgraph.PeerID]uint64    // contacts at the last round, by the turn at which they were met
	of    map[eventgraph.PeerID]*askedFor // what contacts were asked for
	asked time.Time                       // when all were asked last
	due   bool                            // all are to be asked: somebody has gone, or joined a room
}

// askedFor is whom a contact was asked for over a connection, as it remembers too.
type askedFor struct {
	since  uint64                     // the turn at which the contact was met
	whole  time.Time                  // when it was last told of all
	missed map[eventgraph.PeerID]bool // at most maxMissed
}

// recordAsker is a peer that has sent a message.
type recordAsker struct {
	limit *rate.Limiter
	want  map[eventgraph.PeerID]uint64 // of its last question, with what it was given since
}

func newIntroducer(f *Federation) *introducer {
	return &introducer{f: f, serving: make(chan struct{}, peersAtOnce),
		askers: map[eventgraph.PeerID]*recordAsker{}, of: map[eventgraph.PeerID]*askedFor{}}
}

// runRecords asks for those who are missed and tells others of those who have come, until ctx ends.
func (f *Federation) runRecords(ctx context.Context) error {
	if f.Records == nil {
		return nil
	}
	in := newIntroducer(f)
	f.Transport.Handle(protocolPeers, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		if err := in.serve(ctx, peer, stream); err != nil && ctx.Err() == nil {
			reset(stream) // what it still writes is not read
			f.Log.Debug("question for peers", "peer", peer, "err", err)
		}
	})
	group, ctx := errgroup.WithContext(ctx)
	joined := make(chan struct{}, 1)
	group.Go(func() error { return f.watchJoins(ctx, joined) })
	group.Go(func() error {
		for {
			f.peers.mu.Lock()
			changed := f.peers.changed
			f.peers.mu.Unlock()
			records := f.Records.RecordsChanged()
			again := time.NewTimer(in.round(ctx))
			select {
			case <-ctx.Done():
			case <-changed:
			case <-records:
			case <-joined:
				in.due = true
			case <-again.C:
			}
			again.Reset(recordsDelay)
			select {
			case <-ctx.Done():
				again.Stop()
				return ctx.Err()
			case <-again.C:
			}
		}
	})
	return group.Wait()
}

// watchJoins tells when memberships of rooms have changed, until ctx ends: there may be somebody new to miss.
func (f *Federation) watchJoins(ctx context.Context, joined chan<- struct{}) error {
	from := f.Store.Position()
	for {
		if _, err := f.Store.Wait(ctx, from); err != nil {
			return err
		}
		upTo, news := f.Store.Position(), false
		err := f.Store.View(func(r *store.Reader) error {
			return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
				if c.Kind != store.ChangeEvent {
					return true, nil
				}
				e, err := r.Event(c.Event)
				if errors.Is(err, store.ErrNotFound) {
					return true, nil
				}
				news = err == nil && e.Type() == "m.room.member"
				return !news, err
			})
		})
		if err != nil {
			return err
		}
		from = upTo
		if news {
			select {
			case joined <- struct{}{}:
			default:
			}
		}
	}
}

// round asks the contacts that are new, or all if that is due, hands on what others asked for, and says when the next round is due.
func (in *introducer) round(ctx context.Context) (wait time.Duration) {
	f := in.f
	contacts := f.peers.contacts()
	before, now := in.met, map[eventgraph.PeerID]uint64{}
	var came, others []contact
	for _, c := range contacts {
		now[c.Peer] = c.Since
		if since, known := before[c.Peer]; !known || since != c.Since {
			came = append(came, c)
		} else {
			others = append(others, c)
		}
	}
	in.met = now
	for peer := range before {
		_, there := now[peer]
		in.due = in.due || !there
	}
	ask := came
	wait = recordsAgain
	switch since := f.Now().Sub(in.asked); {
	case in.due && since >= 0 && since < recordsRest:
		wait = recordsRest - since
	case in.due || since < 0 || since >= recordsAgain:
		in.asked, in.due = f.Now(), false
		rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		ask = append(ask, others[:min(len(others), askedContacts)]...)
	}
	maps.DeleteFunc(in.of, func(p eventgraph.PeerID, t *askedFor) bool {
		since, there := now[p]
		return !there || since != t.since
	})
	var group errgroup.Group
	group.SetLimit(peersAtOnce)
	for _, c := range ask {
		t := in.of[c.Peer]
		if t == nil {
			t = &askedFor{since: c.Since}
			in.of[c.Peer] = t
		}
		group.Go(func() error { in.ask(ctx, c, t); return nil })
	}
	for _, c := range contacts {
		if records := in.news(c, now); len(records) > 0 {
			group.Go(func() error {
				if in.say(ctx, c, &peersMessage{Records: records}) == nil {
					in.forget(c.Peer) // it may not have them
				}
				return nil
			})
		}
	}
	group.Wait()
	return wait
}

// ask asks a contact for who is missed and was not when it was asked last; for all, once more, if it does not know of that.
func (in *introducer) ask(ctx context.Context, c contact, t *askedFor) {
	for range 2 {
		m := in.question(c, t)
		if m == nil {
			return
		}
		answer := in.say(ctx, c, m)
		if answer != nil && !answer.Forgot {
			return
		}
		if t.missed = nil; answer == nil {
			return
		}
	}
}

// question is what there is to ask of a contact, nil if nothing; t is then as the contact will remember it.
func (in *introducer) question(c contact, t *askedFor) *peersMessage {
	f := in.f
	missed, now := f.missed(c.Server), f.Now()
	m := &peersMessage{Want: map[eventgraph.PeerID]uint64{}}
	if since := now.Sub(t.whole); t.missed == nil || since < 0 || since >= recordsAgain {
		t.missed, t.whole = map[eventgraph.PeerID]bool{}, now
	} else {
		m.More = true
		for p := range t.missed {
			if !missed[p] {
				m.Found = append(m.Found, p)
			}
		}
	}
	room := maxMissed - len(t.missed) + len(m.Found)
	for p := range missed {
		if len(m.Want) == room {
			break
		}
		if !t.missed[p] {
			_, m.Want[p] = f.Records.Record(p)
		}
	}
	if len(m.Want) == 0 { // who is found is told of with who is missed next
		if !m.More {
			t.missed = nil
		}
		return nil
	}
	for _, p := range m.Found {
		delete(t.missed, p)
	}
	for p := range m.Want {
		t.missed[p] = true
	}
	return m
}

// say sends one message and takes in the answer, which it returns; nil if there was none.
func (in *introducer) say(ctx context.Context, c contact, m *peersMessage) *peersMessage {
	f := in.f
	ctx, cancel := context.WithTimeout(ctx, peersTimeout)
	defer cancel()
	s, err := f.Transport.OpenStream(ctx, c.Peer, protocolPeers)
	if err != nil {
		return nil // gone, or it does not speak this
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { reset(s) })()
	if err := writeMessage(s, m); err != nil {
		return nil
	}
	var answer peersMessage
	if err := readMessage(s, maxPeersMessage, &answer); err != nil {
		f.Log.Debug("question for peers not answered", "server", c.Server, "err", err)
		return nil
	}
	in.takeRecords(c.Server, answer.Records)
	return &answer
}

// missed are the peers that are not connected, of servers that share a room with us and with the server. A peer is a server's if its certificate
// says so.
func (f *Federation) missed(server eventgraph.ServerName) map[eventgraph.PeerID]bool {
	missed := map[eventgraph.PeerID]bool{}
	connected := f.peers.servers()
	for other := range f.roommates(server) {
		if other == server || other == f.server || connected[other] {
			continue
		}
		for _, peer := range f.devices(other) {
			missed[peer] = true
		}
	}
	return missed
}

// roommates are the servers in our rooms that the server is in, neither it nor they being denied by the room's ACL: who is denied is told of nobody in the
// room and nobody of it.
func (f *Federation) roommates(server eventgraph.ServerName) map[eventgraph.ServerName]bool {
	mates, err := f.meetings.sharing.mates(f.server, server, false)
	if err != nil {
		f.Log.Error("cannot tell who shares a room", "server", server, "err", err)
	}
	return mates
}

// serve takes one message of a peer and answers it. Who shares no room with us learns nothing, not even whether its message was read.
func (in *introducer) serve(ctx context.Context, peer eventgraph.PeerID, s io.ReadWriteCloser) error {
	f := in.f
	ctx, cancel := context.WithTimeout(ctx, peersTimeout)
	defer cancel()
	server, err := f.asker(ctx, peer)
	if err != nil {
		return err
	}
	if !f.sharesRoom(server) {
		return errors.New("it shares no room with us")
	}
	if !in.admit(peer) {
		return errors.New("it asks too often")
	}
	release, err := take(ctx, in.serving)
	if err != nil {
		return err
	}
	defer release()
	defer context.AfterFunc(ctx, func() { reset(s) })()
	var m peersMessage
	if err := readMessage(s, maxPeersMessage, &m); err != nil {
		return err
	}
	if len(m.Want) > maxMissed || len(m.Found) > maxMissed || len(m.Records) > maxHandedOn {
		return errTooLong
	}
	in.takeRecords(server, m.Records)
	answer := &peersMessage{}
	if len(m.Want) > 0 {
		answer.Records = f.newer(server, m.Want)
		answer.Forgot = !in.remember(peer, &m, answer.Records)
	}
	return writeMessage(s, answer)
}

// admit says whether the peer may send a message now.
func (in *introducer) admit(peer eventgraph.PeerID) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	a := in.askers[peer]
	if a == nil {
		a = &recordAsker{limit: rate.NewLimiter(rate.Every(peersMessageEvery), peersMessageBurst)}
		in.askers[peer] = a
	}
	return a.limit.AllowN(in.f.Now(), 1)
}

// remember notes what the peer misses, and that it was given some of it. False means that the peer adds to a question that is not known, or adds too
// much.
func (in *introducer) remember(peer eventgraph.PeerID, m *peersMessage, given map[eventgraph.PeerID][]byte) bool {
	for p := range given {
		_, m.Want[p] = in.f.Records.Record(p)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	a := in.askers[peer]
	if a == nil {
		return !m.More // it has gone
	}
	if !m.More {
		a.want = m.Want
		return true
	}
	if a.want == nil {
		return false
	}
	for _, p := range m.Found {
		delete(a.want, p)
	}
	maps.Copy(a.want, m.Want)
	if len(a.want) > maxMissed {
		a.want = nil
	}
	return a.want != nil
}

// forget makes the peer ask for all again when it next asks.
func (in *introducer) forget(peer eventgraph.PeerID) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if a := in.askers[peer]; a != nil {
		a.want = nil
	}
}

// newer are the records, newer than those with the seqs given, of connected peers of servers that share a room with us and the server.
func (f *Federation) newer(server eventgraph.ServerName, want map[eventgraph.PeerID]uint64) map[eventgraph.PeerID][]byte {
	var mates map[eventgraph.ServerName]bool
	found := map[eventgraph.PeerID][]byte{}
	for p, held := range want {
		of, connected := f.ServerOf(p)
		if !connected || len(found) == maxHandedOn {
			continue
		}
		raw, seq := f.Records.Record(p)
		if raw == nil || seq <= held {
			continue
		}
		if mates == nil {
			mates = f.roommates(server)
		}
		if mates[of] && mates[server] {
			found[p] = raw
		}
	}
	return found
}

// news are the records that a contact asked for and that have come since. Askers that are not connected any more are forgotten.
func (in *introducer) news(c contact, connected map[eventgraph.PeerID]uint64) map[eventgraph.PeerID][]byte {
	in.mu.Lock()
	for p := range in.askers {
		if _, there := connected[p]; !there {
			delete(in.askers, p)
		}
	}
	var want map[eventgraph.PeerID]uint64
	if a := in.askers[c.Peer]; a != nil {
		want = maps.Clone(a.want)
	}
	in.mu.Unlock()
	if len(want) == 0 {
		return nil
	}
	records := in.f.newer(c.Server, want)
	in.mu.Lock()
	defer in.mu.Unlock()
	if a := in.askers[c.Peer]; a != nil {
		for p := range records {
			if _, still := a.want[p]; still {
				_, a.want[p] = in.f.Records.Record(p)
			}
		}
	}
	return records
}

// takeRecords takes in records that a server handed on, of peers that are missed: no others count.
func (in *introducer) takeRecords(from eventgraph.ServerName, records map[eventgraph.PeerID][]byte) {
	if len(records) == 0 || len(records) > maxHandedOn {
		return
	}
	f := in.f
	mates, connected := f.roommates(from), f.peers.servers()
	for peer, raw := range records {
		missed := false
		for mate := range mates {
			missed = missed || mate != f.server && !connected[mate] && slices.Contains(f.candidates(mate), peer)
		}
		if !missed {
			continue
		}
		if err := f.Records.AddRecord(peer, raw); err != nil {
			f.Log.Debug("peer record handed on", "peer", peer, "by", from, "err", err)
		}
	}
}

// reset breaks a stream, so that who reads or writes it stops.
func reset(s io.Closer) {
	if r, ok := s.(interface{ Reset() error }); ok {
		r.Reset()
		return
	}
	s.Close()
}

// writeMessage and readMessage frame one JSON message: 4 bytes of length, big-endian, before it. The caller bounds the time.
func writeMessage(w io.Writer, m any) error {
	body, err := marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readMessage(r io.Reader, limit uint32, m any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return errTooLong
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n))) // grows with what comes, not with what is announced
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(body, m); err != nil {
		return fmt.Errorf("message that is not one: %w", err)
	}
	return nil
}
