package federation

import (
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// What was asked for each event that waits. Its questions are put in rounds: each of them once, in the order of decide (fetch.go); then the event rests,
// ever longer, before all are put again. A server that is met, or is new in the room, is asked its part at once. It is kept in memory as long as
// the event waits, and nothing else makes it be forgotten: to whom a question was put is one bit, so that the 20,000 events of a full room
// (maxWaiting), each with a parent, have 3 MB of it, and not 200 bytes for each question.

// questions is what was asked for one event.
type questions struct {
	rounds int       // that have ended
	next   time.Time // when the next may begin; zero while this one goes on
	spent  uint64    // the needs (want.needs) for which nothing was left to ask; 0 if that is to be looked at
	put    []putTo   // of this round
}

// putTo says to which of 64 of the room's servers a question of an event was put, or which of them have refused it.
type putTo struct {
	question uint64
	block    int    // the servers of the numbers from 64*block
	servers  uint64 // bits
}

// refusedState is in the place of askState where it was refused.
const refusedState askKind = 255

// question is what is asked, whoever is asked.
func (i *inbox) question(a ask) uint64 {
	return maphash.Comparable(i.seed, struct {
		kind   askKind
		parent eventgraph.EventID
	}{a.kind, a.parent})
}

// number is the server's bit. Of one that is new everything may be asked.
func (r *inboxRoom) number(server eventgraph.ServerName) int {
	n, known := r.numbers[server]
	if !known {
		if r.numbers == nil {
			r.numbers = map[eventgraph.ServerName]int{}
		}
		n = len(r.numbers)
		r.numbers[server] = n
		for _, of := range r.asked {
			of.spent = 0
		}
	}
	return n
}

// has says whether the question was put to the server of that number in this round.
func (of *questions) has(question uint64, server int) bool {
	for _, p := range of.put {
		if p.question == question && p.block == server/64 {
			return p.servers&(1<<(server%64)) != 0
		}
	}
	return false
}

func (of *questions) note(question uint64, server int) {
	bit := uint64(1) << (server % 64)
	for i := range of.put {
		if p := &of.put[i]; p.question == question && p.block == server/64 {
			p.servers |= bit
			return
		}
	}
	of.put = append(of.put, putTo{question, server / 64, bit})
}

// forget lets the server of that number be asked again: one question, or with 0 all.
func (of *questions) forget(question uint64, server int) {
	for i := range of.put {
		if p := &of.put[i]; (question == 0 || p.question == question) && p.block == server/64 {
			p.servers &^= 1 << (server % 64)
		}
	}
	of.put = slices.DeleteFunc(of.put, func(p putTo) bool { return p.servers == 0 })
	of.spent = 0
}

// tried says whether the question was put in the event's round.
func (i *inbox) tried(room eventgraph.RoomID, a ask) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	of, n := r.asked[a.event], r.number(a.server)
	return of != nil && of.has(i.question(a), n)
}

// ask notes that the question is put.
func (i *inbox) ask(room eventgraph.RoomID, a ask) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	of := r.asked[a.event]
	if of == nil {
		of = &questions{}
		r.asked[a.event] = of
	}
	of.note(i.question(a), r.number(a.server))
}

// notAsked takes back ask: the question was not put after all.
func (i *inbox) notAsked(room eventgraph.RoomID, a ask) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if of := r.asked[a.event]; of != nil {
		of.forget(i.question(a), r.number(a.server))
	}
}

// refuse notes that the server has answered the question and does not give that.
func (i *inbox) refuse(room eventgraph.RoomID, a ask) {
	if a.kind != askState {
		return // nobody asks
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	if of := r.asked[a.event]; of != nil && of.has(i.question(a), r.number(a.server)) { // the server was not met meanwhile
		a.kind = refusedState
		of.note(i.question(a), r.number(a.server))
	}
}

// refusedByAll says whether each of the servers has refused the state before the event in this round.
func (i *inbox) refusedByAll(room eventgraph.RoomID, event eventgraph.EventID, servers []eventgraph.ServerName) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	of, question := r.asked[event], i.question(ask{kind: refusedState})
	return of != nil && len(servers) > 0 && !slices.ContainsFunc(servers, func(s eventgraph.ServerName) bool { return !of.has(question, r.number(s)) })
}

// standing says where an event stands among those of its giver.
type standing uint8

const (
	begun   standing = iota // its first round goes on
	fresh                   // never asked about
	again                   // its next round, or what was left of one
	resting                 // nothing is left to ask in its round
	nowhere                 // it needs nothing
)

// standing is that of an event with such needs, and since when it may be asked about again.
func (i *inbox) standing(room eventgraph.RoomID, event eventgraph.EventID, needs uint64) (standing, time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	of := i.rooms[room].asked[event]
	switch {
	case of == nil || of.rounds == 0 && len(of.put) == 0:
		return fresh, time.Time{}
	case of.spent == needs && i.now().Before(of.next):
		return resting, of.next
	case of.rounds == 0:
		return begun, time.Time{}
	}
	return again, of.next
}

// begin lets the event's next round begin if it is time.
func (i *inbox) begin(room eventgraph.RoomID, event eventgraph.EventID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if of := i.rooms[room].asked[event]; of != nil && !of.next.IsZero() && !i.now().Before(of.next) {
		*of = questions{rounds: of.rounds}
	}
}

// rest notes that nothing is to be asked for the event now: its round has ended, if it ever began. more says that there are questions that cannot be put now:
// as soon as they can be, they are.
func (i *inbox) rest(room eventgraph.RoomID, event eventgraph.EventID, needs uint64, more bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	of := i.rooms[room].asked[event]
	if of == nil || len(of.put) == 0 {
		return
	}
	if of.next.IsZero() {
		of.next = i.now().Add(backoff(of.rounds))
		of.rounds++
	}
	if of.spent = needs; more {
		of.spent = 0
	}
}

// hadTurn notes who had the turn of a question, and whether events are left that were not asked about.
func (i *inbox) hadTurn(room eventgraph.RoomID, whose []eventgraph.ServerName, left bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[room]
	r.left = left
	r.turn++
	for _, s := range whose {
		if r.turns == nil {
			r.turns = map[eventgraph.ServerName]uint64{}
		}
		r.turns[s] = r.turn
	}
}

// lastTurns is which turn was the last of each giver; 0 if it had none. What is known of others, and of events that wait no more, is forgotten.
func (i *inbox) lastTurns(w *waiting) map[eventgraph.ServerName]uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.rooms[w.room]
	maps.DeleteFunc(r.turns, func(s eventgraph.ServerName, _ uint64) bool { return s != "" && w.givers[s] == 0 })
	maps.DeleteFunc(r.asked, func(id eventgraph.EventID, _ *questions) bool { return w.events[id] == nil })
	return maps.Clone(r.turns)
}
