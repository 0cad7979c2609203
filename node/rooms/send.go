package rooms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// Draft is what a local user wants to send.
type Draft struct {
	Room     eventgraph.RoomID
	Sender   eventgraph.UserID
	Type     string
	StateKey *string
	Content  json.RawMessage
	Redacts  eventgraph.EventID
	Txn      *store.ClientTxn // recorded with the event, in the scope of txnEndpoint
	TS       int64            // ms; 0 = now (application services may set it)
	Joined   bool             // refused with M_FORBIDDEN where its sender is not in the room, or not any more when its turn comes
	Due      int64            // ms; a state event is refused with M_BAD_STATE where the current one came here later; 0: never
	unsigned bool             // LeaveUnsigned: it needs no signature of the room's policy server
}

// Send builds on at most 20 forward extremities, signs, and puts it through Accept. Sending a state event equal to the current
// one answers that one's ID without a new event. *Refusal says why not (auth rules, not in the room, too large). *MissingError with Policy: the room
// uses a policy server, which must sign the event first (SendSigned); nothing is kept.
func (r *Rooms) Send(ctx context.Context, d Draft) (eventgraph.EventID, error) {
	if d.Sender.Server() != r.key.Server {
		return "", refuse("M_FORBIDDEN", "%s is no user of this server", d.Sender)
	}
	var id eventgraph.EventID
	err := r.inTurn(ctx, d.Room, func(run *run) (err error) {
		id, err = run.send(d)
		return err
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

// Build is Send without Accept: for invites that a remote server must sign first; Accept it with Parents afterwards. *MissingError
// with Policy: the event is in it, and the room's policy server must sign it before all.
func (r *Rooms) Build(ctx context.Context, d Draft) (*eventgraph.Event, error) {
	if d.Sender.Server() != r.key.Server {
		return nil, refuse("M_FORBIDDEN", "%s is no user of this server", d.Sender)
	}
	var e *eventgraph.Event
	err := r.inTurn(ctx, d.Room, func(run *run) (err error) {
		e, err = run.buildAllowed(d)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Sent is the event that the draft's transaction ID has sent already; "" if none.
func (r *Rooms) Sent(d Draft) (id eventgraph.EventID, err error) {
	err = r.store.View(func(read *store.Reader) error {
		sent, err := read.ClientTxnResult(*d.Txn, txnEndpoint(d.Room, d.Type, d.Redacts))
		id = eventgraph.EventID(sent)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return id, err
}

// sentAs is a client's transaction ID in the scope of what it was used for.
type sentAs struct {
	txn      store.ClientTxn
	endpoint string
}

// txnEndpoint stands for the path of the request that sends such an event: a transaction ID counts again in another room,
// for another type of event, or for another event to redact (CS API, Transaction identifiers).
func txnEndpoint(room eventgraph.RoomID, eventType string, redacts eventgraph.EventID) string {
	return "send " + string(room) + " " + eventType + " " + string(redacts)
}

// send makes one event within a run.
func (run *run) send(d Draft) (eventgraph.EventID, error) {
	if d.Txn != nil {
		endpoint := txnEndpoint(d.Room, d.Type, d.Redacts)
		id, err := run.sentBefore(*d.Txn, endpoint)
		if id != "" || err != nil {
			return id, err
		}
	}
	if !run.live.exists {
		return "", refuse("M_FORBIDDEN", "nobody here is in room %s", run.rm.id)
	}
	if d.StateKey != nil {
		id, err := run.sameState(d)
		if id != "" || err != nil {
			return id, err
		}
	}
	e, _, err := run.build(d)
	if err != nil {
		return "", err
	}
	if err := run.mayRedactHere(e); err != nil {
		return "", err
	}
	if err := run.accept(incoming{event: e, basis: Basis{Unsigned: d.unsigned}, local: true, txn: d.Txn}); err != nil {
		return "", err
	}
	return e.ID(), nil
}

// sameState answers the current state event's ID if the draft says nothing new.
func (run *run) sameState(d Draft) (eventgraph.EventID, error) {
	e, err := run.state(run.live.State).Event(eventgraph.StateTuple{Type: d.Type, Key: *d.StateKey})
	if e == nil || err != nil || e.Sender() != d.Sender {
		return "", err
	}
	content, err := canonicaljson.Canonicalize(d.Content, canonicaljson.Lenient)
	if err != nil || !bytes.Equal(content, e.Content()) {
		return "", nil // what is wrong with it, build says
	}
	return e.ID(), nil
}

// inTime refuses a draft that waited for too long: for its turn, or for what others have to sign.
func (run *run) inTime(d Draft) error {
	state := run.state(run.live.State)
	if d.Joined {
		member, err := state.Event(eventgraph.StateTuple{Type: "m.room.member", Key: string(d.Sender)})
		if err != nil {
			return err
		}
		if member == nil || member.Membership() != "join" {
			return refuse("M_FORBIDDEN", "%s is not in room %s", d.Sender, run.rm.id)
		}
	}
	if d.Due != 0 && d.StateKey != nil {
		id, set, err := state.EventID(eventgraph.StateTuple{Type: d.Type, Key: *d.StateKey})
		if !set || err != nil {
			return err
		}
		current, err := run.stored(id)
		if err != nil {
			return err
		}
		if current.ReceivedTS > d.Due {
			return refuse("M_BAD_STATE", "the state was set anew after this was to be sent")
		}
	}
	return nil
}

// mayRedactHere refuses what a local user may not redact: what another user sent, here or elsewhere, takes the "redact" level (CS API, PUT redact).
// That servers apply the redaction of an event by any user of its server (mayRedact) is for peers, who cannot ask the user's own server. What is
// not held may be anybody's. And it refuses a redaction that would not apply: nobody would ever see it.
func (run *run) mayRedactHere(e *eventgraph.Event) error {
	if e.Type() != "m.room.redaction" || e.Redacts() == "" {
		return nil
	}
	may := false
	target, err := run.stored(e.Redacts())
	switch {
	case err == nil && target.Sender() == e.Sender():
		may, err = mayRedact(run.state(run.live.State), e, target)
	case err == nil && (target.RoomID() != e.RoomID() || target.Verdict == store.Rejected):
	case err == nil || errors.Is(err, store.ErrNotFound):
		may, err = hasRedactLevel(run.state(run.live.State), e.Sender())
	}
	if err != nil {
		return err
	}
	if !may {
		return refuse("M_FORBIDDEN", "%s may not redact %s", e.Sender(), e.Redacts())
	}
	return nil
}

// maxPrevEvents is how many forward extremities an event merges (the spec's limit on prev_events).
const maxPrevEvents = 20

// maxDepth is the largest integer of canonical JSON.
const maxDepth = 1<<53 - 1

// parents chooses the forward extremities to build on, of more than maxPrevEvents the first in fair order, and the depth of an event on
// them.
func (run *run) parents() (ids []eventgraph.EventID, states []eventgraph.Hash, depth int64) {
	tips := fairly(run.live.tips, run.r.key.Server)
	for _, t := range tips[:min(len(tips), maxPrevEvents)] {
		ids, states, depth = append(ids, t.id), append(states, t.after), max(depth, t.depth)
	}
	return ids, states, min(depth, maxDepth-1) + 1 // a peer's depth may be the greatest int64 (room versions 3 to 5)
}

// compose fills in what the room decides of an event: parents, depth, auth events. It returns the state that the event is to be
// checked against.
func (run *run) compose(d Draft) (eventgraph.Draft, *State, error) {
	ids, states, depth := run.parents()
	before, err := run.merge(states)
	if err != nil {
		return eventgraph.Draft{}, nil, err
	}
	state := run.state(before)
	content := d.Content
	if d.Type == "m.room.member" {
		if content, err = run.authorisedJoin(d, state); err != nil {
			return eventgraph.Draft{}, nil, err
		}
	}
	full := eventgraph.Draft{
		RoomID: run.rm.id, Type: d.Type, StateKey: d.StateKey, Sender: d.Sender, Content: content, Redacts: d.Redacts,
		PrevEvents: ids, Depth: depth, OriginServerTS: run.r.SigningTime(d.TS),
	}
	for _, t := range auth.Selection(run.live.Version, full) {
		id, ok, err := state.EventID(t)
		if err != nil {
			return eventgraph.Draft{}, nil, err
		}
		if ok {
			full.AuthEvents = append(full.AuthEvents, id)
		}
	}
	return full, state, nil
}

// build makes and signs an event on the room as it is in this run.
func (run *run) build(d Draft) (*eventgraph.Event, *State, error) {
	if !run.live.exists {
		return nil, nil, refuse("M_FORBIDDEN", "nobody here is in room %s", run.rm.id)
	}
	if err := run.inTime(d); err != nil {
		return nil, nil, err
	}
	full, state, err := run.compose(d)
	if err != nil {
		return nil, nil, err
	}
	e, err := eventgraph.Build(run.live.Version, full, run.r.key)
	if err != nil {
		return nil, nil, refusal(err)
	}
	return e, state, nil
}

// refusal turns what the pure packages find wrong with an event into a Refusal.
func refusal(err error) error {
	var refused *auth.Refused
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refuse("M_FORBIDDEN", "%s", refused.Error())
	case errors.Is(err, eventgraph.ErrTooLarge):
		return refuse("M_TOO_LARGE", "%s", err)
	case errors.Is(err, eventgraph.ErrFormat):
		return refuse("M_BAD_JSON", "%s", err)
	}
	return err
}
