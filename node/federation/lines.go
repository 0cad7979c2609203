package federation

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Which of a room's waiting events is asked about next. Those who gave them take turns, a question each; all that are not in the room have one
// turn together, and share it in the same way. A giver's own events come one after another, each with all questions of its round (questions.go): first those
// that were never asked about, in the order in which they came, then those that have rested, the longest due first.
//
// So with G givers and Q questions a round (a few for each server that is connected and each missing parent), the event that is the k-th of its giver's that were never
// asked about has its first question among the next G·Q·k, and its whole round among the next G·Q·(k+1), whatever the others have given and give. A visit puts up to
// inboxRounds questions, and at least one; the next is at most inboxLeft later while there are events that were not asked about. An event that has rested
// waits besides for those that its own giver has brought meanwhile, and for nobody else's. What a giver's events rest on, of what others gave, stands in its
// line as well as in theirs (lean).
//
// The lines are made once a visit, in one pass; after that an event is looked at again only when what it needs has changed or something is asked
// for it. What that takes counts as reading (inboxShare).

// lines are of those who have given something that waits.
type lines struct {
	all []*line
	of  map[eventgraph.ServerName]*line
	at  int // whose turn it is
}

// line is what one giver has given, or of several, who share a turn, their lines.
type line struct {
	giver  eventgraph.ServerName // "" for all that are not in the room
	within *lines
	events [resting][]eventgraph.EventID // by standing
}

// place is that of an event in a giver's line.
type place struct {
	giver eventgraph.ServerName
	event eventgraph.EventID
}

// next is the next question: look says what is to be asked about an event.
func (t *lines) next(look func(place) (ask, bool)) (a ask, whose []eventgraph.ServerName, found bool) {
	for range t.all {
		l := t.all[t.at]
		t.at = (t.at + 1) % len(t.all)
		if l.within != nil {
			a, whose, found = l.within.next(look)
		} else {
			a, found = l.next(look)
		}
		if found {
			return a, append(whose, l.giver), true
		}
	}
	return ask{}, nil, false
}

// next keeps an event in front until there is nothing left to ask for it.
func (l *line) next(look func(place) (ask, bool)) (ask, bool) {
	for i := 0; i < len(l.events); {
		events := &l.events[i]
		if len(*events) == 0 {
			i++
			continue
		}
		if a, ok := look(place{l.giver, (*events)[0]}); ok {
			return a, true
		}
		*events = (*events)[1:] // look may have added some
		i = 0
	}
	return ask{}, false
}

// add puts an event behind the others of its standing.
func (t *lines) add(giver eventgraph.ServerName, outside bool, event eventgraph.EventID, at standing) {
	if outside {
		l := t.line("")
		if l.within == nil {
			l.within = &lines{}
		}
		l.within.add(giver, false, event, at)
		return
	}
	l := t.line(giver)
	l.events[at] = append(l.events[at], event)
}

func (t *lines) line(giver eventgraph.ServerName) *line {
	l := t.of[giver]
	if l == nil {
		if t.of == nil {
			t.of = map[eventgraph.ServerName]*line{}
		}
		l = &line{giver: giver}
		t.of[giver] = l
		t.all = append(t.all, l)
	}
	return l
}

// sort lets those begin whose last turn is the longest ago.
func (t *lines) sort(last map[eventgraph.ServerName]uint64) {
	slices.SortFunc(t.all, func(a, b *line) int {
		return cmp.Or(cmp.Compare(last[a.giver], last[b.giver]), cmp.Compare(a.giver, b.giver))
	})
	for _, l := range t.all {
		if l.within != nil {
			l.within.sort(last)
		}
	}
}

// lineUp gives each event about which something is to be asked its place.
func (w *waiting) lineUp() {
	w.lines = &lines{}
	w.inLine, w.leaned, w.leans = map[place]standing{}, map[place]bool{}, map[eventgraph.ServerName]int{}
	var rested, leaning []eventgraph.EventID
	since := map[eventgraph.EventID]time.Time{}
	for _, id := range w.order {
		x, wants := w.want(id)
		if !wants {
			leaning = append(leaning, id)
			continue
		}
		if at, when := w.inbox.standing(w.room, id, w.needs(x)); at == again {
			rested = append(rested, id)
			since[id] = when
			continue
		}
		w.enqueue(id)
	}
	slices.SortStableFunc(rested, func(a, b eventgraph.EventID) int { return since[a].Compare(since[b]) })
	for _, id := range rested {
		w.enqueue(id)
	}
	for _, id := range leaning {
		if e := w.events[id]; e != nil {
			w.lean(e.origin, id)
		}
	}
	w.lines.sort(w.inbox.lastTurns(w))
}

// enqueue gives an event its place in the line of its giver, if something is to be asked about it.
func (w *waiting) enqueue(id eventgraph.EventID) {
	if w.lines != nil && w.place(id) == resting { // else lineUp comes
		w.getStuck(id)
	}
}

func (w *waiting) place(id eventgraph.EventID) standing {
	e := w.events[id]
	if e == nil {
		return nowhere
	}
	at := w.placeIn(place{e.origin, id})
	if at == nowhere {
		w.lean(e.origin, id)
	}
	return at
}

func (w *waiting) placeIn(p place) standing {
	if at, queued := w.inLine[p]; queued {
		return at
	}
	x, wants := w.want(p.event)
	if !wants {
		return nowhere
	}
	at, _ := w.inbox.standing(w.room, p.event, w.needs(x))
	if at == resting {
		return at
	}
	w.inLine[p] = at
	if at < again {
		w.unasked++
	}
	w.lines.add(p.giver, !w.isIn(p.giver), p.event, at)
	return at
}

// maxLeans bounds the events of others that a giver's rest on, and that have a place in its line, in a visit.
const maxLeans = maxWaiting / 10

// lean gives what an event waits for, and others gave, a place in its giver's line, too: else it would wait for all that those have given.
func (w *waiting) lean(giver eventgraph.ServerName, id eventgraph.EventID) {
	for on := []eventgraph.EventID{id}; len(on) > 0; {
		e := w.events[on[len(on)-1]]
		on = on[:len(on)-1]
		if e == nil {
			continue
		}
		for _, l := range slices.Sorted(maps.Keys(e.lacks)) {
			p := place{giver, l}
			if other := w.events[l]; other == nil || other.origin == giver || w.leaned[p] || w.leans[giver] == maxLeans {
				continue
			}
			w.leaned[p] = true
			if w.leans[giver]++; w.placeIn(p) == nowhere {
				on = append(on, l)
			}
		}
	}
}

// leaveLine is the end of placeIn.
func (w *waiting) leaveLine(p place) {
	if w.inLine[p] < again {
		w.unasked--
	}
	delete(w.inLine, p)
}

// nextQuestion is what decide says about the event that has its turn. A question to a policy server has its place by then. Who did not answer a moment
// ago is left out, as who is not connected is; for who has no place now, the event waits: the state before it is asked for, of whomever, only after
// all have been asked for its parents.
func (f *Federation) nextQuestion(w *waiting) (ask, bool) {
	began := time.Now()
	defer func() { w.spent += time.Since(began) }()
	w.holders = f.holders(w)
	if w.lines == nil {
		w.lineUp()
	}
	for len(w.inLine) > 0 {
		next, whose, found := w.lines.next(func(p place) (ask, bool) { return f.questionAbout(w, p) })
		if found {
			f.inbox.hadTurn(w.room, whose, w.unasked > 0)
			return next, true
		}
	}
	f.inbox.hadTurn(w.room, nil, false)
	return ask{}, false
}

// questionAbout is the next question about an event that stands in line; if there is none now, the event rests.
func (f *Federation) questionAbout(w *waiting, p place) (ask, bool) {
	w.looked++
	id := p.event
	x, wants := w.want(id)
	if !wants {
		w.leaveLine(p)
		w.lean(p.giver, id)
		return ask{}, false
	}
	f.inbox.begin(w.room, id)
	needs, later, mustWait := w.needs(x), false, false
	tried := func(a ask) bool { // decide takes the first that was not
		if f.inbox.tried(w.room, a) {
			return true
		}
		cannot := w.notAsked[a] || a.kind == askState && mustWait
		switch of := w.answerer(a); {
		case cannot:
		case a.kind == askPolicy:
			cannot = f.policies.rests(a.server, f.Now()) || !f.policies.begin(a.server, w.room)
		case f.answerers.rests(of, f.Now()):
			cannot = true
		case f.answerers.turns.full(of, w.room, f.isSlow(of, a)):
			cannot, mustWait = true, true
		}
		later = later || cannot
		return cannot
	}
	if at, _ := f.inbox.standing(w.room, id, needs); at != resting {
		if next, ok := decide([]want{x}, w.holders, tried); ok {
			return next, true
		}
		f.inbox.rest(w.room, id, needs, later)
	}
	w.leaveLine(p)
	w.getStuck(id)
	return ask{}, false
}

// want is what is to be asked for about an event: what it misses and does not wait itself; or the state before it, if all that it misses is stuck. A server may be
// told of the state before a later event where it is not told of that before an earlier one: it was out of the room there, by the giver's side of a
// fork. So these events are let in by the state before them, like those whose parents nobody has.
func (w *waiting) want(id eventgraph.EventID) (x want, wants bool) {
	e := w.events[id]
	if e == nil {
		return want{}, false
	}
	x = want{event: id, prev: e.prev, origin: e.origin}
	for l := range e.lacks {
		if w.events[l] == nil {
			x.Events = append(x.Events, l)
		}
	}
	slices.Sort(x.Events)
	x.Keys, x.StateBefore, x.Policy = e.keys, e.stateBefore, e.policy
	wants = len(x.Events) > 0 || len(x.Keys) > 0 || x.StateBefore || x.Policy != nil
	if !wants && e.isBehind() {
		x.StateBefore, wants = true, true
	}
	return x, wants
}

// isBehind says whether all that an event lacks is stuck.
func (e *waitingEvent) isBehind() bool {
	return len(e.lacks) > 0 && len(e.keys) == 0 && e.behind == len(e.lacks)
}

// needs is a number for what an event wants: what was asked about it with other needs is not all that can be asked.
func (w *waiting) needs(x want) uint64 {
	h := func(of string) uint64 { return maphash.String(w.inbox.seed, of) }
	sum := uint64(len(x.Keys))
	for _, id := range x.Events {
		sum ^= h(string(id))
	}
	if x.StateBefore {
		sum ^= h("state")
	}
	if x.Policy != nil {
		sum ^= h(string(x.Policy.By.Name)) ^ h(string(x.Policy.Event.ID()))
	}
	return sum | 1
}

// getStuck notes that an event is stuck, if it is: all of the room's servers have refused the state before it, which is the last that is asked for. What
// lacks nothing but such events is asked about itself.
func (w *waiting) getStuck(id eventgraph.EventID) {
	for at := []eventgraph.EventID{id}; len(at) > 0; {
		id, at = at[len(at)-1], at[:len(at)-1]
		e := w.events[id]
		if e == nil || e.stuck || len(e.keys) > 0 || !w.inbox.refusedByAll(w.room, id, w.holders.room) {
			continue
		}
		e.stuck = true
		for _, child := range w.childrenOf(id) {
			if child.behind++; child.isBehind() && w.place(child.id) == resting {
				at = append(at, child.id)
			}
		}
	}
}
