package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// kindLeave is the kind of a store.Outbound that holds a pendingLeave, for deliverOutbound.
const kindLeave = "leave"

// A join of the room may take hours: a leave waits joinEnds for its end, for what else is for the server waits behind it, and is tried again after
// leaveAgain.
const (
	joinEnds   = 100 * time.Millisecond
	leaveAgain = 5 * time.Second
)

// errJoinUnderWay: a leave cannot be sent now, for the room is being joined. The server has nothing to do with that.
var errJoinUnderWay = errors.New("the room is being joined")

// pendingLeave is a rejected invite or withdrawn knock that a server of the room has not heard of.
type pendingLeave struct {
	Room   eventgraph.RoomID `json:"room_id"`
	User   eventgraph.UserID `json:"user_id"`
	Reason string            `json:"reason,omitempty"`
}

// Leave leaves a room that we are not in (rejects an invite), or that is still coming: takes effect here at once, is delivered when a
// server is met.
func (f *Federation) Leave(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, reason string) error {
	wasIn, err := f.giveUpJoin(ctx, room, user, reason)
	if err != nil {
		return err
	}
	var member *store.Member
	err = f.Store.View(func(r *store.Reader) (err error) {
		member, err = r.Member(room, user)
		return err
	})
	waits := err == nil && member.Outside && (member.Membership == "invite" || member.Membership == "knock")
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	case wasIn && !waits:
		return nil
	case err != nil || !member.Outside:
		return &rooms.Refusal{Code: "M_NOT_FOUND", Reason: "the user has no invite to that room and has not knocked on it"}
	}
	// Queued first: after a crash in between the person still sees the invite and rejects it again, which harms nothing.
	if waits && !wasIn && member.Via != "" {
		if err := f.queueLeave(ctx, member.Via, pendingLeave{room, user, reason}); err != nil {
			return err
		}
	}
	return f.Rooms.LeaveOutside(ctx, room, user, f.rejection(member, reason))
}

// rejection is the event by which the user's other clients learn that an invite was rejected, or a knock withdrawn; nil if nothing is known of the
// room's version. It stays here: the one that the room gets is made from a template of a server that is in it, which may be away.
func (f *Federation) rejection(m *store.Member, reason string) *eventgraph.Event {
	var before struct {
		Depth int64 `json:"depth"`
	}
	if json.Unmarshal(m.Invite, &before) != nil {
		return nil
	}
	content, err := marshal(struct {
		Membership string `json:"membership"`
		Reason     string `json:"reason,omitempty"`
	}{"leave", reason})
	if err != nil {
		return nil
	}
	key, last := string(m.User), []eventgraph.EventID{m.Event}
	e, err := eventgraph.Build(strippedVersion(m.Stripped), eventgraph.Draft{
		RoomID: m.Room, Type: "m.room.member", StateKey: &key, Sender: m.User, Content: content,
		PrevEvents: last, AuthEvents: last, Depth: before.Depth + 1, OriginServerTS: f.Rooms.SigningTime(0),
	}, f.Key)
	if err != nil {
		f.Log.Debug("a rejected invite is shown without an event", "room", m.Room, "error", err)
		return nil
	}
	return e
}

// queueLeave keeps what a server in the room is to be told, unless too much waits for it.
func (f *Federation) queueLeave(ctx context.Context, server eventgraph.ServerName, p pendingLeave) error {
	tell, err := leaveFor(server, p)
	if err != nil {
		return err
	}
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.PutOutbound(tell)
		return err
	})
	if errors.Is(err, store.ErrOutboundFull) {
		f.notTold(tell, err)
		return nil
	}
	return err
}

func leaveFor(server eventgraph.ServerName, p pendingLeave) (*store.Outbound, error) {
	body, err := marshal(p)
	return &store.Outbound{Server: server, Kind: kindLeave, Body: body}, err
}

func (f *Federation) notTold(o *store.Outbound, err error) {
	f.Log.Warn("a server is not told that one of our users has left", "server", o.Server, "err", err)
}

// isBack says whether a user has joined the room, or begun to, since they left it.
func (f *Federation) isBack(room eventgraph.RoomID, user eventgraph.UserID) (back bool, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		j, err := r.Join(room)
		if back = err == nil && j.User == user; back || err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		m, err := r.Member(room, user)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		back = err == nil && m.Membership == "join" && !m.Outside
		return err
	})
	return back, err
}

// Knock asks to be let into a room, over make_knock and send_knock at one of via (or locally if we are in the room).
func (f *Federation) Knock(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName, content json.RawMessage) error {
	if f.Rooms.InRoom(room, f.server) {
		return f.sendHere(ctx, "knock", room, user, content)
	}
	servers, err := f.serversFor(room, user, via)
	if err != nil {
		return err
	}
	return f.handshake(ctx, servers, func(server eventgraph.ServerName) error {
		return f.knockVia(ctx, server, room, user, content)
	})
}

func (f *Federation) knockVia(ctx context.Context, server eventgraph.ServerName, room eventgraph.RoomID, user eventgraph.UserID, content json.RawMessage) error {
	e, err := f.make(ctx, server, "knock", room, user, content)
	if err != nil {
		return err
	}
	var answer struct {
		State []json.RawMessage `json:"knock_room_state"`
	}
	err = f.do(ctx, server, http.MethodPut, target(v1+"send_knock", []string{string(room), string(e.ID())}, nil), json.RawMessage(e.Raw()), &answer)
	if err != nil {
		return err
	}
	stripped, err := f.checkStripped(ctx, e, answer.State, server)
	if err != nil {
		return malformed(server, err.Error())
	}
	return f.Rooms.ReceiveInvite(ctx, e, stripped, server, false)
}

// deliverOutbound brings a pending invite or leave to its server. A nil error means that it is done with and can be deleted from the queue: delivered, or
// refused for good. With an error it stays: the server was not reached, or cannot answer now.
func (f *Federation) deliverOutbound(ctx context.Context, o *store.Outbound) error {
	var err error
	switch o.Kind {
	case kindInvite:
		err = f.deliverInvite(ctx, o)
	case kindLeave:
		err = f.deliverLeave(ctx, o)
	default:
		return fmt.Errorf("outbound item of kind %s is not for deliverOutbound", o.Kind)
	}
	if errors.Is(err, errUnsignable) {
		f.Log.Warn("not sent, and never can be", "kind", o.Kind, "server", o.Server, "err", err)
		return nil
	}
	var remote *remoteError
	if errors.As(err, &remote) && remote.Status < 500 && remote.Status != http.StatusTooManyRequests {
		f.Log.Info("refused by the server that it is for", "kind", o.Kind, "server", o.Server, "err", err)
		return nil
	}
	return err
}

func (f *Federation) deliverLeave(ctx context.Context, o *store.Outbound) error {
	var p pendingLeave
	if err := json.Unmarshal(o.Body, &p); err != nil {
		return fmt.Errorf("pending leave: %w", err)
	}
	if back, err := f.isBack(p.Room, p.User); back || err != nil {
		return err
	}
	if j, err := f.storedJoin(p.Room); err != nil {
		return err
	} else if j != nil { // another user's, who may be let in by another server
		return errJoinUnderWay
	}
	content, err := marshal(struct {
		Reason string `json:"reason,omitempty"`
	}{p.Reason})
	if err != nil {
		return err
	}
	e, err := f.make(ctx, o.Server, "leave", p.Room, p.User, content)
	if err != nil {
		return err
	}
	// The template may have been long in coming; and until it is known what became of the leave no join begins, which it would end.
	waiting, stop := context.WithTimeout(ctx, joinEnds)
	defer stop()
	unlock, err := f.joining.lock(waiting, p.Room)
	if err != nil && ctx.Err() == nil {
		return errJoinUnderWay
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	defer unlock()
	if back, err := f.isBack(p.Room, p.User); back || err != nil {
		return err
	}
	return f.do(ctx, o.Server, http.MethodPut, target(v2+"send_leave", []string{string(p.Room), string(e.ID())}, nil), json.RawMessage(e.Raw()), nil)
}
