package rooms

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// A room that uses a policy server shows only what that has signed (SS API, Policy Servers). Accept looks for the signature as step 7, and says
// whose is missing; node/federation asks for it, without holding up the room, and comes again:
//
//	sent here  Send ──▶ MissingError{Policy} ──▶ signed: SendSigned commits   declined, or not reached: the client is told; nothing was kept
//	own leave                                                                 declined, or not reached: LeaveUnsigned commits
//	received   Accept ─▶ MissingError{Policy} ──▶ signed: Accept again        declined: Accept with Basis.Unsigned, soft-failed

// PolicyNeeded is an event that the room's policy server has not signed, or not with the key that the room names now.
type PolicyNeeded struct {
	Event *eventgraph.Event
	By    eventgraph.PolicyServer
}

// policyServer is the policy server that the room uses in the state at root: named by a valid m.room.policy, and with a joined user (SS API,
// Determining if a Policy Server is enabled in a room).
func (run *run) policyServer(root eventgraph.Hash) (p eventgraph.PolicyServer, used bool, err error) {
	e, err := run.state(root).Event(eventgraph.StateTuple{Type: eventgraph.PolicyType})
	if e == nil || err != nil {
		return p, false, err
	}
	if p, used = e.PolicyServer(); !used {
		return p, false, nil
	}
	c, err := run.census(root)
	if err != nil {
		return p, false, err
	}
	return p, c.joined[p.Name] > 0, nil
}

// census counts a state that may be known to this run alone.
func (run *run) census(root eventgraph.Hash) (*census, error) {
	if c, ok := run.r.censuses.Get(root); ok {
		return c, nil
	}
	if run.counted == nil {
		run.rm.mu.Lock()
		run.counted = run.rm.census
		run.rm.mu.Unlock()
	}
	if run.counted == nil {
		run.counted = &census{}
	}
	if run.counted.root == root {
		return run.counted, nil
	}
	c, err := countFrom(run, run.counted, root)
	if err != nil && run.counted.root != (eventgraph.Hash{}) {
		c, err = countFrom(run, &census{}, root) // the other state may not be kept any more
	}
	if err == nil {
		run.counted = c
	}
	return c, err
}

// bySignature makes step 7: nil, or a *MissingError with Policy, if the policy server that the room uses in the state at root has not signed the
// event. better is a copy that has come with other signatures, nil if none has; what it brings of the policy server's is taken over: the
// event to go on with is returned.
func (run *run) bySignature(e, better *eventgraph.Event, root eventgraph.Hash) (*eventgraph.Event, error) {
	if !e.NeedsPolicySignature() {
		return e, nil
	}
	p, used, err := run.policyServer(root)
	if !used || err != nil {
		return e, err
	}
	if e.VerifyPolicySignature(p) == nil {
		return e, nil
	}
	if better != nil && better.VerifyPolicySignature(p) == nil {
		signed, err := e.WithPolicySignature(p, better.Signatures())
		if err == nil {
			return signed, nil
		}
	}
	return e, &MissingError{Policy: &PolicyNeeded{Event: e, By: p}}
}

// Unsigned lists those of the events, which need not be held, that the policy server that the room uses now must sign and has not.
func (r *Rooms) Unsigned(ctx context.Context, room eventgraph.RoomID, events []*eventgraph.Event) (lack []PolicyNeeded, err error) {
	err = r.inTurn(ctx, room, func(run *run) error {
		lack = nil
		if !run.live.exists {
			return nil
		}
		p, used, err := run.policyServer(run.live.State)
		if !used || err != nil {
			return err
		}
		for _, e := range events {
			if e.Type() != "m.room.create" && e.NeedsPolicySignature() && e.VerifyPolicySignature(p) != nil {
				lack = append(lack, PolicyNeeded{Event: e, By: p})
			}
		}
		return nil
	})
	return lack, err
}

// SendSigned is Send of an event that Send (or Build) made and the room's policy server has signed since. Others may have written meanwhile:
// it is judged by the room as it is now, and *MissingError says that the room names another policy server, or another key.
func (r *Rooms) SendSigned(ctx context.Context, d Draft, e *eventgraph.Event) (eventgraph.EventID, error) {
	if e.RoomID() != d.Room || e.Sender() != d.Sender || e.Sender().Server() != r.key.Server {
		return "", errors.New("signed by a policy server: another event than was to be sent")
	}
	if err := r.verify(e); err != nil {
		return "", err
	}
	id := e.ID()
	err := r.inTurn(ctx, d.Room, func(run *run) error {
		if d.Txn != nil {
			before, err := run.sentBefore(*d.Txn, txnEndpoint(d.Room, d.Type, d.Redacts))
			if err != nil || before != "" {
				id = before
				return err
			}
		}
		if err := run.inTime(d); err != nil {
			return err
		}
		if err := run.mayRedactHere(e); err != nil {
			return err
		}
		return run.accept(incoming{event: e, local: true, txn: d.Txn})
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

// IsOwnLeave says whether the draft is a user's leaving, or their declining an invite or taking back a knock.
func (d Draft) IsOwnLeave() bool {
	if d.Type != "m.room.member" || d.StateKey == nil || *d.StateKey != string(d.Sender) {
		return false
	}
	content, err := canonicaljson.Canonicalize(d.Content, canonicaljson.Lenient)
	if err != nil {
		return false
	}
	membership, _ := canonicaljson.GetString(content, "membership")
	return membership == "leave"
}

// LeaveUnsigned is Send of a user's own leave that the room's policy server did not sign, without its reason, which may be what that has against it. A policy
// server decides what a room shows, not who stays in it. The leave is accepted here, or nobody would be rid of the room. Elsewhere it is soft-failed
// (SS API, Validating Policy Server signatures: "or the homeserver sends a local client's event anyway"), unless the policy server signs it there.
func (r *Rooms) LeaveUnsigned(ctx context.Context, d Draft) (id eventgraph.EventID, err error) {
	if d.Sender.Server() != r.key.Server || !d.IsOwnLeave() {
		return "", refuse("M_FORBIDDEN", "only the own leave can do without the signature of the room's policy server")
	}
	d.unsigned, d.Content = true, json.RawMessage(`{"membership":"leave"}`)
	err = r.inTurn(ctx, d.Room, func(run *run) (err error) {
		id, err = run.send(d)
		return err
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

// buildAllowed is Build within a run.
func (run *run) buildAllowed(d Draft) (*eventgraph.Event, error) {
	e, state, err := run.build(d)
	if err != nil {
		return nil, err
	}
	if err := refusal(auth.Check(e, state)); err != nil {
		return nil, err
	}
	_, err = run.bySignature(e, nil, run.live.State)
	return e, err
}

// sentBefore is the event that a client's transaction ID has sent already; "" if none.
func (run *run) sentBefore(txn store.ClientTxn, endpoint string) (eventgraph.EventID, error) {
	if id, ok := run.txns[sentAs{txn, endpoint}]; ok {
		return id, nil
	}
	id, err := run.read.ClientTxnResult(txn, endpoint)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	return eventgraph.EventID(id), err
}
