package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// Rooms that use a policy server (SS API, Policy Servers): what is sent here is signed by it before anybody sees it, and of what comes without
// its signature it is asked. rooms says what must be signed (rooms.MissingError, Policy), and commits; it is asked here, while the room goes on.
// plexus is no policy server itself: POST /_matrix/policy/v1/sign answers as endpoints do that are not there.

const (
	// policyTimeout is how long who sends something waits for the policy server, and for those before them in the room.
	policyTimeout = 10 * time.Second
	// leavePatience is how long a user's own leave waits for those before it in the room, and then for the policy server; after either it goes
	// out without the signature.
	leavePatience = 3 * time.Second
	// policyTries is how often something to send is made anew because the room has named another policy server, or key, meanwhile.
	policyTries = 3
	// policyRest is for how long a policy server that did not answer is not asked about what others sent, unless it is met.
	policyRest = time.Minute
	// maxPolicyRest bounds what a policy server may ask for with 429.
	maxPolicyRest = 10 * time.Minute
	// policyPatience is how long an event of others waits, while this node runs, for a policy server that cannot be reached, before it is soft-failed: a verdict is
	// for good, and who meets on a journey is at home again on the next day.
	policyPatience = 24 * time.Hour
	// pastPatience is how long who fetches history waits for the policy server, and pastAtOnce about how much of it that is asked at one time.
	pastPatience = 5 * time.Second
	pastAtOnce   = 4
	// handshakeRetry is when a handshake may be tried again whose questions to the policy server had to wait for too long.
	handshakeRetry = 5 * time.Second
	// costPolicy is what it costs the giver of an unsigned event that we ask about it: five a second.
	costPolicy = 60
)

const policySign = "/_matrix/policy/v1/sign"

// PolicyError is why an event has no signature of its room's policy server. It is a *rooms.Refusal to errors.As, and is ErrUnreachable where the
// policy server could not be asked.
type PolicyError struct {
	Server eventgraph.ServerName
	// Status is that of its answer, if it declined with an error of the spec's; else 0.
	Status     int
	Refusal    rooms.Refusal // its error as it gave it, or what is wrong, in plain words
	RetryAfter time.Duration // with status 429, or a Cause; 0: not said
	Cause      error         // why it could not be asked; nil if it answered
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("policy server %s: %v", e.Server, &e.Refusal)
}

func (e *PolicyError) Unwrap() []error {
	if e.Cause != nil {
		return []error{&e.Refusal, ErrUnreachable}
	}
	return []error{&e.Refusal}
}

// final says whether the policy server has looked at the event and said no. Other refusals pass: it may not know yet that it serves
// the room (404), or lack our key document (401).
func (e *PolicyError) final() bool {
	switch e.Refusal.Code {
	case "M_FORBIDDEN", "M_BAD_JSON", "M_NOT_JSON":
		return e.Cause == nil && (e.Status == http.StatusForbidden || e.Status == http.StatusBadRequest)
	}
	return false
}

// toPeer is the error to who wanted a room's resident to take in a membership event.
func (e *PolicyError) toPeer() *matrixError {
	m := &matrixError{Status: e.Status, Refusal: e.Refusal}
	switch {
	case e.Cause != nil:
		m.Status = http.StatusServiceUnavailable
		m.RetryAfterMS = e.RetryAfter.Milliseconds()
	case e.Status == http.StatusTooManyRequests:
		m.RetryAfterMS = e.RetryAfter.Milliseconds()
	default:
		m.Status = statusOf(e.Refusal.Code)
	}
	return m
}

// whatToDo is for people whose room's policy server does not do its work (CS API, Policy Servers, Security considerations).
const whatToDo = "whoever may change this room's settings can take it out of use by sending the state event m.room.policy with empty content, which needs no signature"

// policyOf is what err says that a policy server must sign; nil if it says something else.
func policyOf(err error) *rooms.PolicyNeeded {
	var missing *rooms.MissingError
	if errors.As(err, &missing) {
		return missing.Policy
	}
	return nil
}

// Send is rooms.Send, with the signature of the policy server if the room uses one: nothing is kept or shown before it has come. *PolicyError says
// why it has not. A user's own leave is kept and sent without the signature, too: nobody can be held in a room.
func (f *Federation) Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	id, err := f.Rooms.Send(ctx, d)
	need := policyOf(err)
	switch {
	case need == nil:
		return id, err
	case !d.IsOwnLeave():
		return f.sendSigned(ctx, d, need, policyTimeout)
	case f.policies.rests(need.By.Name, f.Now()), f.policies.isSlow(need.By.Name, f.Now()): // leaving many of its rooms takes no longer than leaving one
		return f.Rooms.LeaveUnsigned(ctx, d)
	}
	id, err = f.sendSigned(ctx, d, need, leavePatience)
	var p *PolicyError
	if !errors.As(err, &p) {
		return id, err
	}
	f.Log.Info("leave without the signature of the room's policy server", "room", d.Room, "err", err)
	return f.Rooms.LeaveUnsigned(ctx, d)
}

// sendSigned is Send where the policy server must sign. Of such a room one event is on its way at a time, or each would make a forward extremity of
// its own.
func (f *Federation) sendSigned(ctx context.Context, d rooms.Draft, need *rooms.PolicyNeeded, patience time.Duration) (eventgraph.EventID, error) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	unlock, err := f.signing.lock(within, d.Room)
	if err != nil {
		if ctx.Err() == nil {
			err = notAsked(need.By.Name, err)
		}
		return "", err
	}
	defer unlock()
	if d.IsOwnLeave() { // what others' events have taken of the time is not the policy server's fault
		within, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for try := range policyTries {
		id, err := f.Rooms.Send(ctx, d) // on what has come meanwhile
		if need = policyOf(err); need == nil {
			return id, err
		}
		signed, err := f.policySignature(within, need)
		if err != nil {
			switch {
			case !d.IsOwnLeave():
			case within.Err() == nil: // it answered, or there is no way to it
				f.noteRest(err)
			case ctx.Err() == nil && try == 0: // it has had all the patience of a leave, which is not that of others
				f.policies.noteSlow(need.By.Name, f.Now().Add(policyRest), f.Now())
			}
			return "", err
		}
		id, err = f.Rooms.SendSigned(ctx, d, signed)
		if policyOf(err) == nil {
			return id, err
		}
	}
	return "", notAsked(need.By.Name, errors.New("the room names another one each time"))
}

// policySignature asks the policy server to sign an event, and returns it signed. The error is a *PolicyError, or that of ctx where it was cancelled.
func (f *Federation) policySignature(ctx context.Context, need *rooms.PolicyNeeded) (*eventgraph.Event, error) {
	server := need.By.Name
	if server == f.server {
		return nil, &PolicyError{Server: server, Refusal: rooms.Refusal{Code: "M_FORBIDDEN",
			Reason: "the room names this server as its policy server, which it is not; " + whatToDo}}
	}
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	var answer json.RawMessage
	err := f.do(ctx, server, http.MethodPost, policySign, json.RawMessage(need.Event.Raw()), &answer)
	var remote *remoteError
	switch {
	case errors.As(err, &remote) && remote.Status < 500:
		return nil, declined(server, remote)
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, ctx.Err()
	case errors.Is(err, errUnsignable): // the event alone is to blame, and nobody else is to wait for it
		return nil, &PolicyError{Server: server, Status: http.StatusBadRequest, Refusal: rooms.Refusal{Code: "M_BAD_JSON",
			Reason: "the policy server of this room, " + string(server) + ", cannot be asked about the event: it is nested too deep"}}
	case err != nil:
		return nil, notAsked(server, err)
	}
	signed, err := need.Event.WithPolicySignature(need.By, answer)
	if err != nil {
		return nil, &PolicyError{Server: server, Refusal: rooms.Refusal{Code: "M_FORBIDDEN",
			Reason: fmt.Sprintf("what the room's policy server %s answered is no signature by the key that the room names (%v); %s", server, err, whatToDo)}}
	}
	return signed, nil
}

// declined is the error that the policy server gave, as it is; but for that of a server that does not know the endpoint, which a client would take
// for our own.
func declined(server eventgraph.ServerName, remote *remoteError) *PolicyError {
	e := &PolicyError{Server: server, Status: remote.Status, Refusal: remote.Refusal, RetryAfter: remote.RetryAfter}
	if remote.Refusal.Code == "M_UNRECOGNIZED" {
		e.Status = 0
		e.Refusal = rooms.Refusal{Code: "M_FORBIDDEN", Reason: fmt.Sprintf("the server %s, which the room names as its policy server, is none; %s", server, whatToDo)}
	}
	return e
}

func notAsked(server eventgraph.ServerName, err error) *PolicyError {
	return &PolicyError{Server: server, Cause: err, Refusal: rooms.Refusal{Code: "M_UNKNOWN",
		Reason: fmt.Sprintf("the policy server of this room, %s, cannot be reached now, and nothing can be sent here without its signature: try again later; %s", server, whatToDo)}}
}

// signedFor is an event of another server's user, or an invite, for which somebody waits: with the policy server's signature. One that did not
// answer a moment ago is not asked again.
func (f *Federation) signedFor(ctx context.Context, need *rooms.PolicyNeeded) (*eventgraph.Event, error) {
	if f.policies.rests(need.By.Name, f.Now()) {
		return nil, notAsked(need.By.Name, errors.New("it did not answer a moment ago"))
	}
	signed, err := f.policySignature(ctx, need)
	f.noteRest(err)
	return signed, err
}

// noteRest remembers a policy server that did not answer, or asks for patience.
func (f *Federation) noteRest(err error) {
	var p *PolicyError
	if errors.As(err, &p) && !p.final() {
		f.policies.rest(p.Server, f.Now().Add(min(max(policyRest, p.RetryAfter), maxPolicyRest)), f.Now())
	}
}

var (
	errAskedEnough = errors.New("the giver of unsigned events has had its share of questions to policy servers")
	errPolicyTurn  = errors.New("the policy server is being asked about another event, or as many as may be are")
)

// takeInTurn is takeUnsigned for a handshake, which waits for the place of its question until within ends. The error is a *PolicyError.
func (f *Federation) takeInTurn(ctx, within context.Context, need *rooms.PolicyNeeded, b rooms.Basis) error {
	server := need.By.Name
	if f.policies.await(within, server) != nil {
		return notYetAsked(server)
	}
	defer f.endQuestion(server)
	err := f.takeUnsigned(ctx, need, b, 0)
	if errors.Is(err, errAskedEnough) {
		return &PolicyError{Server: server, Status: http.StatusTooManyRequests, RetryAfter: handshakeRetry,
			Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: err.Error()}}
	}
	return err
}

// notYetAsked is what a handshake is told whose questions have not all had their turn.
func notYetAsked(server eventgraph.ServerName) *PolicyError {
	return &PolicyError{Server: server, Cause: errPolicyTurn, RetryAfter: handshakeRetry, Refusal: rooms.Refusal{Code: "M_UNKNOWN",
		Reason: fmt.Sprintf("the policy server of this room, %s, is still being asked about other events: try again", server)}}
}

// takeUnsigned asks the policy server about an event of others, and takes it in: with its signature, or, if it declined or was not to be reached
// while the event has waited for policyPatience, as one that it has not signed. The giver pays for the question; the caller has its place.
func (f *Federation) takeUnsigned(ctx context.Context, need *rooms.PolicyNeeded, b rooms.Basis, waited time.Duration) error {
	if !f.budgets.friend(b.Origin).AllowN(time.Now(), costPolicy) {
		return errAskedEnough
	}
	e, err := f.signedFor(ctx, need)
	if err != nil {
		var p *PolicyError
		if !errors.As(err, &p) || !p.final() && waited < policyPatience {
			return err
		}
		f.Log.Info("event without the signature of the room's policy server", "room", need.Event.RoomID(), "event", need.Event.ID(), "origin", b.Origin, "err", err)
		e, b.Unsigned = need.Event, true
	}
	result, err := f.Rooms.Accept(ctx, e, b)
	f.logOutcome(e, b.Origin, rooms.Outcome{Result: result, Err: err})
	return err
}

// endQuestion gives back the place of a question and wakes the rooms that waited for one, if there are such.
func (f *Federation) endQuestion(server eventgraph.ServerName) (waited bool) {
	waiting := f.policies.end(server)
	for _, room := range waiting {
		f.inbox.nudge(room)
	}
	return len(waiting) > 0
}

// endTurn is endQuestion for the inbox. If others waited, the room itself goes on after them; not if its giver has had its share, or two such
// rooms would wake each other all the time.
func (f *Federation) endTurn(server eventgraph.ServerName, room eventgraph.RoomID, err error) {
	if f.endQuestion(server) && !errors.Is(err, errAskedEnough) {
		f.inbox.nudge(room)
	}
}

// signPast asks the policy server about a page of history that it has not signed, the newest first: events are measured by the room's policy server of
// now, also those from before it was named (CS API, Policy Servers, Server behaviour; MSC4284). It returns the page with the signatures, and what was
// declined. It is not asked about what it may not see. History does not wait: what it could not be asked about, or not within the patience that is left,
// is taken in as it is. The patience is
// that of all pages of one Backfill; it ends with the first answer that is none.
func (f *Federation) signPast(ctx context.Context, room eventgraph.RoomID, page []*eventgraph.Event, patience *time.Duration) (signed []*eventgraph.Event, declined map[eventgraph.EventID]bool, err error) {
	lack, err := f.Rooms.Unsigned(ctx, room, page)
	if err != nil {
		return nil, nil, err
	}
	// What its own server has not signed is nothing to ask about: the giver could have made it.
	lack = slices.DeleteFunc(lack, func(need rooms.PolicyNeeded) bool { return need.Event.VerifySignatures(f.Rooms) != nil })
	if len(lack) == 0 {
		return page, nil, nil
	}
	visible, err := f.visiblePast(lack[0].By.Name, room, page)
	if err != nil {
		return nil, nil, err
	}
	lack = slices.DeleteFunc(lack, func(need rooms.PolicyNeeded) bool { return !visible[need.Event.ID()] })
	if len(lack) == 0 {
		return page, nil, nil
	}
	answers, declined := f.askPast(ctx, lack, patience)
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if n := len(lack) - len(answers) - len(declined); n > 0 {
		f.Log.Info("history that the room's policy server could not be asked about", "room", room, "events", n)
	}
	signed = slices.Clone(page)
	for i, e := range signed {
		if better := answers[e.ID()]; better != nil {
			signed[i] = better
		}
	}
	return signed, declined, nil
}

// askPast asks the room's policy server about history, as far as the patience goes, in the place of one question. That it does not answer says
// nothing about it: many questions come at once, and nobody gave it the time that live events give it. So it does not rest for that.
func (f *Federation) askPast(ctx context.Context, lack []rooms.PolicyNeeded, patience *time.Duration) (answers map[eventgraph.EventID]*eventgraph.Event, declined map[eventgraph.EventID]bool) {
	answers, declined = map[eventgraph.EventID]*eventgraph.Event{}, map[eventgraph.EventID]bool{}
	server, began := lack[0].By.Name, time.Now() // the room has one
	within, cancel := context.WithTimeout(ctx, *patience)
	defer cancel()
	defer func() { *patience = max(0, *patience-time.Since(began)) }()
	if f.policies.rests(server, f.Now()) || f.policies.await(within, server) != nil {
		return answers, declined
	}
	defer f.endQuestion(server)
	var mu sync.Mutex
	stopped := false
	var group errgroup.Group
	group.SetLimit(pastAtOnce)
	for _, need := range slices.Backward(lack) {
		group.Go(func() error {
			mu.Lock()
			stop := stopped || within.Err() != nil
			mu.Unlock()
			if stop {
				return nil
			}
			e, err := f.policySignature(within, &need)
			var p *PolicyError
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				answers[e.ID()] = e
			case errors.As(err, &p) && p.final():
				declined[need.Event.ID()] = true
			default:
				stopped = true
			}
			return nil
		})
	}
	group.Wait()
	if stopped {
		*patience = 0
	}
	return answers, declined
}

// policies remembers which policy servers are not to be asked about what others sent, and until when, and which are being asked: each may be slow.
type policies struct {
	turns turns[eventgraph.ServerName]

	mu    sync.Mutex
	until rests[eventgraph.ServerName]
	slow  rests[eventgraph.ServerName] // those that leaves alone do not wait for
}

// begin, await and full are those of turns.
func (p *policies) begin(server eventgraph.ServerName, room eventgraph.RoomID) bool {
	return p.turns.begin(server, room, true)
}

func (p *policies) await(ctx context.Context, server eventgraph.ServerName) error {
	return p.turns.await(ctx, server, true)
}

func (p *policies) full(server eventgraph.ServerName, room eventgraph.RoomID) bool {
	return p.turns.full(server, room, true)
}

// end gives the place of a question back and returns the rooms that waited for one.
func (p *policies) end(server eventgraph.ServerName) []eventgraph.RoomID {
	p.turns.end(server)
	return p.turns.waited(math.MaxInt)
}

func (p *policies) rest(server eventgraph.ServerName, until, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until.put(server, rest{until: until}, now)
}

func (p *policies) rests(server eventgraph.ServerName, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until[server].until.After(now)
}

// noteSlow is rest for leaves alone: who is slower than they wait may still be fast enough for others.
func (p *policies) noteSlow(server eventgraph.ServerName, until, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow.put(server, rest{until: until}, now)
}

func (p *policies) isSlow(server eventgraph.ServerName, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slow[server].until.After(now)
}

// met lets a server be asked again.
func (p *policies) met(server eventgraph.ServerName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.until, server)
	delete(p.slow, server)
}
