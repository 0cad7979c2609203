package federation

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// What a server may have us do. Identities are free, so all that are not friends (Friend) have one budget together, from which they cannot take a
// friend's; a friend has its own. It is counted in units of work, by what is asked, for time would depend on who else is at work here: one is
// about 0.3 ms of a core, so a friend's is a tenth of one and strangers' a sixtieth.
const (
	friendUnits  = 300 // a second
	friendSaved  = 2000
	strangeUnits = 50 // a second, of all strangers together
	strangeSaved = 300

	costRequest   = 1       // its signature
	costHistory   = 10      // state, auth chains, pages of events, the directory: each published room is looked at
	costMember    = 10      // templates, joins, leaves, knocks, invites: each builds on the room's state, and most commit
	costIdentify  = 3       // asking a stranger who it is
	costBody      = 8 << 10 // bytes that are one unit
	costBodyOuter = 4 << 10 // a stranger's: bytes that are one unit
	costEDU       = 10      // one that is kept: a commit of its own
	costEvents    = 20      // events given at a meeting that are one unit

	costStrangePDUs = 5 // a stranger's PDUs that are one unit

	// budgetWait is how long a request waits for its turn before it is answered 429.
	budgetWait = 3 * time.Second
	// maxBudgets are kept of friends; of those that have not asked for long, which are full again, any goes first.
	maxBudgets = 1024
)

// A server's events in a room, while others talk there. Whoever is alone in a room may be as quick as this device; but if somebody else here or
// elsewhere is saying something, their events will rest on those, and nobody who lacks them can show it before they are fetched. Bytes count as
// events of talkBytes.
const (
	talkEvents = 100 // a second
	talkSaved  = 200
	talkBytes  = 2 << 10
	// talking is how long somebody counts as saying something.
	talking = 5 * time.Second
	// maxTalks rooms in which somebody is, and servers of each; beyond these nobody is held up.
	maxTalks   = 1024
	maxTalkers = 256
)

// budgets of all servers.
type budgets struct {
	ofFriend, ofTalker allowance // as the constants say, but for tests of other things

	strangers *rate.Limiter

	mu      sync.Mutex
	friends map[eventgraph.ServerName]*rate.Limiter
	rooms   map[eventgraph.RoomID]*talk
}

// allowance is so many units or events a second, of which so many may be saved up.
type allowance struct {
	rate  rate.Limit
	saved int
}

func (a allowance) limiter() *rate.Limiter { return rate.NewLimiter(a.rate, a.saved) }

// talk is who says something in a room: the last, and the last of the others.
type talk struct {
	last, other     eventgraph.ServerName
	lastAt, otherAt time.Time
	limits          map[eventgraph.ServerName]*rate.Limiter
}

func newBudgets() *budgets {
	return &budgets{ofFriend: allowance{friendUnits, friendSaved}, ofTalker: allowance{talkEvents, talkSaved},
		strangers: rate.NewLimiter(strangeUnits, strangeSaved),
		friends:   map[eventgraph.ServerName]*rate.Limiter{}, rooms: map[eventgraph.RoomID]*talk{}}
}

// budgetOf is the budget of a peer: its server's, or that of all strangers.
func (f *Federation) budgetOf(peer eventgraph.PeerID) (l *rate.Limiter, stranger bool) {
	if !f.Friend(peer) {
		return f.budgets.strangers, true
	}
	server, known := f.ServerOf(peer)
	if !known {
		server = eventgraph.ServerName(peer) // who holds an invite token, and has not been asked who it is
	}
	return f.budgets.friend(server), false
}

// friend is a friend's budget.
func (b *budgets) friend(server eventgraph.ServerName) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.friends[server]
	if l == nil {
		if len(b.friends) >= maxBudgets {
			maps.DeleteFunc(b.friends, func(_ eventgraph.ServerName, l *rate.Limiter) bool { return l.Tokens() >= float64(l.Burst()) })
		}
		l = b.ofFriend.limiter()
		b.friends[server] = l
	}
	return l
}

// spend waits for so many units, at most so long; more than can be saved are as much as can be.
func spend(ctx context.Context, l *rate.Limiter, units int, patience time.Duration) error {
	now := time.Now()
	r := l.ReserveN(now, min(units, l.Burst()))
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	if wait > patience {
		r.CancelAt(now)
		return &matrixError{Status: http.StatusTooManyRequests, RetryAfterMS: wait.Milliseconds(),
			Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "too many requests; send this again later"}}
	}
	turn := time.NewTimer(wait)
	defer turn.Stop()
	select {
	case <-turn.C:
		return nil
	case <-ctx.Done():
		r.CancelAt(time.Now())
		return ctx.Err()
	}
}

// admit waits until the peer may have a request served whose body is so long.
func (f *Federation) admit(ctx context.Context, peer eventgraph.PeerID, route *route, size int64) error {
	l, stranger := f.budgetOf(peer)
	units := route.cost
	if stranger {
		units += int(size / costBodyOuter)
		if !route.open {
			units += costIdentify
		}
	} else {
		units += int(size / costBody)
	}
	return spend(ctx, l, units, budgetWait)
}

// admitParts makes the peer pay for what of a transaction costs more than its bytes: EDUs that are kept, each in a commit; and a stranger for
// events, that are parsed before it is known whether they are of use.
func (f *Federation) admitParts(q *request, t *transaction) error {
	l, stranger := f.budgetOf(q.peer)
	units := 0
	if stranger {
		units = len(t.PDUs) / costStrangePDUs
	}
	for _, e := range t.EDUs {
		if e.lasts() {
			units += costEDU
		}
	}
	if units == 0 {
		return nil
	}
	return spend(q.Context(), l, units, budgetWait)
}

// lasts says whether a commit may come of it.
func (e *edu) lasts() bool { return e.Type != "m.typing" && e.Type != "m.presence" }

// admitStream waits until the peer may be listened to on a stream of ours: a stranger may have to be asked who it is.
func (f *Federation) admitStream(ctx context.Context, peer eventgraph.PeerID) error {
	l, stranger := f.budgetOf(peer)
	units := costRequest
	if stranger {
		units += costIdentify
	}
	return spend(ctx, l, units, budgetWait)
}

// admitTurn waits until who asks at a meeting may have its message answered. Events are paid for by what comes after them (paidEvents): how
// many fit into a chunk is not known before, and on a slow link it is few of those that were asked for.
func (f *Federation) admitTurn(ctx context.Context, c contact, m *meetMessage) error {
	units := costHistory
	if len(m.Want) > 0 {
		units = 1
	}
	return spend(ctx, f.budgetAtMeeting(c), units, meetTurn/2) // the asker waits for meetTurn
}

// paidEvents makes who asks at a meeting owe what the events cost that it was given.
func (f *Federation) paidEvents(c contact, events *meetEvents) {
	if units := events.Looked / costEvents; units > 0 {
		f.budgetAtMeeting(c).ReserveN(time.Now(), units)
	}
}

// budgetAtMeeting is the budget of who asks at a meeting: it has been found out who that is, though it may not be noted yet that it is connected.
func (f *Federation) budgetAtMeeting(c contact) *rate.Limiter {
	if !f.peers.refuses(c.Peer) && f.sharesRoom(c.Server) {
		return f.budgets.friend(c.Server)
	}
	l, _ := f.budgetOf(c.Peer)
	return l
}

// talks notes that a server says something in a room, and returns its limit if another does, too.
func (b *budgets) talks(room eventgraph.RoomID, server eventgraph.ServerName, now time.Time) (limit *rate.Limiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.rooms[room]
	if t == nil {
		if len(b.rooms) >= maxTalks {
			maps.DeleteFunc(b.rooms, func(_ eventgraph.RoomID, t *talk) bool { return now.Sub(t.lastAt) > talking })
		}
		if len(b.rooms) >= maxTalks {
			return nil
		}
		t = &talk{limits: map[eventgraph.ServerName]*rate.Limiter{}}
		b.rooms[room] = t
	}
	if t.last != server {
		t.last, t.lastAt, t.other, t.otherAt = server, now, t.last, t.lastAt
	} else {
		t.lastAt = now
	}
	if t.other == "" || now.Sub(t.otherAt) > talking {
		return nil
	}
	if limit = t.limits[server]; limit == nil {
		if len(t.limits) >= maxTalkers {
			maps.DeleteFunc(t.limits, func(_ eventgraph.ServerName, l *rate.Limiter) bool { return l.TokensAt(now) >= float64(l.Burst()) })
		}
		if len(t.limits) >= maxTalkers {
			return nil
		}
		limit = b.ofTalker.limiter()
		t.limits[server] = limit
	}
	return limit
}

// admitEvents waits, at most so long, until a server's events of a room may be taken in.
func (f *Federation) admitEvents(ctx context.Context, origin eventgraph.ServerName, r run, patience time.Duration) error {
	limit := f.budgets.talks(r.room, origin, time.Now())
	if limit == nil {
		return nil
	}
	units := 0
	for _, e := range r.events {
		units += 1 + len(e.Raw())/talkBytes
	}
	if err := spend(ctx, limit, units, patience); err != nil {
		return err
	}
	// What is more than can be saved is paid for by those that come next.
	for rest := units - talkSaved; rest > 0; rest -= talkSaved {
		limit.ReserveN(time.Now(), min(rest, talkSaved))
	}
	return nil
}
