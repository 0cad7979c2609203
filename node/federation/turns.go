package federation

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Who is asked for what waiting events miss may be slow, or make as if: it must not keep the workers of the inbox from other rooms. turns are the
// places of questions that are being put, to policy servers and to all others; rests say who is not to be asked for a while.

const (
	// slowQuestions is how many questions that may take long are put at one time, each to another server.
	slowQuestions = inboxWorkers / 3
	// questionsOfOne is how many others a server is asked at one time.
	questionsOfOne = inboxWorkers / 2
	// tellWaiting is how many rooms that wait for a place are told when one has had its turn: told all, most would be read in vain. Each of them tells
	// others, if it asks.
	tellWaiting = 2 * inboxWorkers
	// quickTurn is from when on a question makes its room go on after those that wait.
	quickTurn = time.Second
	// maxResting bounds the servers of which is remembered that they do not answer.
	maxResting = 256
)

// turns are places of questions. The zero value is ready.
type turns[K comparable] struct {
	mu      sync.Mutex
	asked   map[K]int                  // how many questions; at most questionsOfOne
	slow    map[K]bool                 // whose one question may take long; at most slowQuestions
	waiting map[eventgraph.RoomID]bool // to be visited when a question has ended; bounded by the inbox
	ended   chan struct{}              // closed when a question ends; nil while nobody awaits that
}

// begin takes the place of a question; if there is none the room waits, see waited.
func (t *turns[K]) begin(of K, room eventgraph.RoomID, slow bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isFull(of, room, slow) {
		return false
	}
	t.take(of, slow)
	return true
}

// await is begin for who has time: it takes the place as soon as there is one, unless ctx ends before.
func (t *turns[K]) await(ctx context.Context, of K, slow bool) error {
	for ctx.Err() == nil {
		t.mu.Lock()
		if t.hasPlace(of, slow) {
			t.take(of, slow)
			t.mu.Unlock()
			return nil
		}
		if t.ended == nil {
			t.ended = make(chan struct{})
		}
		ended := t.ended
		t.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-ended:
		}
	}
	return ctx.Err()
}

// hasPlace and take are parts of begin; mu is held.
func (t *turns[K]) hasPlace(of K, slow bool) bool {
	if slow {
		return t.asked[of] == 0 && len(t.slow) < slowQuestions
	}
	return t.asked[of] < questionsOfOne && !t.slow[of]
}

func (t *turns[K]) take(of K, slow bool) {
	if t.asked == nil {
		t.asked, t.slow = map[K]int{}, map[K]bool{}
	}
	t.asked[of]++
	if slow {
		t.slow[of] = true
	}
}

// full says whether begin would fail. Then the room waits.
func (t *turns[K]) full(of K, room eventgraph.RoomID, slow bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.isFull(of, room, slow)
}

func (t *turns[K]) isFull(of K, room eventgraph.RoomID, slow bool) bool {
	if t.hasPlace(of, slow) {
		return false
	}
	if t.waiting == nil {
		t.waiting = map[eventgraph.RoomID]bool{}
	}
	t.waiting[room] = true
	return true
}

// end gives the place back.
func (t *turns[K]) end(of K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked[of]--; t.asked[of] <= 0 {
		delete(t.asked, of)
	}
	delete(t.slow, of) // a slow question is the only one
	if t.ended != nil {
		close(t.ended)
		t.ended = nil
	}
}

// waited takes out at most so many of the rooms that wait for a place, for which the caller has them visited. They may find none and wait again.
func (t *turns[K]) waited(most int) (rooms []eventgraph.RoomID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for room := range t.waiting {
		if len(rooms) == most {
			break
		}
		rooms = append(rooms, room)
		delete(t.waiting, room)
	}
	return rooms
}

// rests are at most maxResting who are not to be asked now.
type rests[K comparable] map[K]rest

type rest struct {
	until time.Time
	n     int // how often in a row, where that counts
}

// put notes a rest. To make place others are forgotten, first those whose rest is over.
func (r *rests[K]) put(of K, next rest, now time.Time) {
	if *r == nil {
		*r = rests[K]{}
	}
	if _, known := (*r)[of]; !known && len(*r) >= maxResting {
		for k, before := range *r {
			if !before.until.After(now) {
				delete(*r, k)
			}
		}
		for k := range *r {
			if len(*r) < maxResting {
				break
			}
			delete(*r, k)
		}
	}
	(*r)[of] = next
}

// answerer is who is answerable for how long a question takes: the server that is asked; for key documents, which several may be asked for, who
// gave the event that needs them.
type answerer struct {
	server eventgraph.ServerName
	keys   bool
}

const (
	// slowAnswer is from when on an answer counts as slow.
	slowAnswer = 5 * time.Second
	// questionTime is how long a question may take with all the requests that it is made of, and stateQuestionTime one for an auth chain or a state.
	questionTime      = stateTimeout
	stateQuestionTime = 5 * time.Minute
	// firstRest and longestRest are for how long a server is not asked that let a question end without an answer, unless it is met: twice as long
	// each time, until it answers.
	firstRest   = time.Minute
	longestRest = 10 * time.Minute
)

// answerers are the places of the inbox's questions, and who is slow to answer them.
type answerers struct {
	turns turns[answerer]

	mu   sync.Mutex
	slow rests[answerer] // also of those that may be asked again
}

// isSlow says whether who was asked last took long.
func (s *answerers) isSlow(of answerer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, slow := s.slow[of]
	return slow
}

// rests says whether it is not to be asked now.
func (s *answerers) rests(of answerer, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slow[of].until.After(now)
}

// note takes account of how a question ended, and how long it took.
func (s *answerers) note(of answerer, took time.Duration, failed bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case took < slowAnswer && failed: // it is not there
	case took < slowAnswer:
		delete(s.slow, of)
	case failed:
		n := s.slow[of].n
		s.slow.put(of, rest{now.Add(min(firstRest<<min(n, 8), longestRest)), n + 1}, now)
	default:
		s.slow.put(of, rest{}, now)
	}
}

// met lets a server be asked again, and anybody for key documents, which may be its own; it still counts as slow.
func (s *answerers) met(server eventgraph.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for of, r := range s.slow {
		if of.server == server || of.keys {
			r.until = time.Time{}
			s.slow[of] = r
		}
	}
}

// errTurn: who is to be asked has been asked something else since nextQuestion looked. The room waits for its turn.
var errTurn = errors.New("it is not the turn of this question")

// endAsking takes account of how a question ended and gives its place back. If it took long and others wait, the room itself goes on after them.
func (f *Federation) endAsking(w *waiting, of answerer, began time.Time, err error) {
	switch {
	case errors.Is(err, errPolicyTurn), errors.Is(err, errAskedEnough), errors.Is(err, store.ErrNotFound), errors.Is(err, context.Canceled): // not asked
	default:
		failed := errors.Is(err, ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, eventgraph.ErrKeyUnknown)
		f.answerers.note(of, f.Now().Sub(began), failed, f.Now())
	}
	f.answerers.turns.end(of)
	if w.hasAsked = true; f.Now().Sub(began) >= quickTurn && f.tellTurn() {
		f.inbox.nudge(w.room)
	}
}

// tellTurn has rooms visited that wait for the place of a question, and says whether there are such.
func (f *Federation) tellTurn() bool {
	waited := f.answerers.turns.waited(tellWaiting)
	for _, room := range waited {
		f.inbox.nudge(room)
	}
	return len(waited) > 0
}

// answerer is who has to answer a question.
func (w *waiting) answerer(a ask) answerer {
	if e := w.events[a.event]; a.kind == askKeys && e != nil {
		return answerer{e.origin, true}
	}
	return answerer{server: a.server}
}

// isSlow says whether the question may take long: by what is asked for, or by who is asked.
func (f *Federation) isSlow(of answerer, a ask) bool {
	return a.isLarge() || f.answerers.isSlow(of)
}

// isLarge says whether the answer holds an auth chain or a state.
func (a ask) isLarge() bool { return a.kind == askState || a.kind == askAuth }

// time is how long the question may take.
func (a ask) time() time.Duration {
	if a.isLarge() {
		return stateQuestionTime
	}
	return questionTime
}
