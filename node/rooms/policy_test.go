package rooms

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// policed is a room of alice on a and bob on b, with a policy server p in it that alice has named.
type policed struct {
	a, b, p    *server
	alice, bob eventgraph.UserID
	room       eventgraph.RoomID
	key        ed25519.PrivateKey
	named      eventgraph.EventID
}

func newPoliced(t *testing.T, version eventgraph.RoomVersion) *policed {
	t.Helper()
	a, b, alice, bob, room := shared(t, version)
	p := newServer(t, "policy", a, b)
	before := a.store.Position()
	p.join(a, room, p.user("police"))
	a.give(b, room, before)
	r := &policed{a: a, b: b, p: p, alice: alice, bob: bob, room: room, key: ed25519.NewKeyFromSeed(make([]byte, 32))}
	r.named = r.name(p.key.Server, r.key)
	return r
}

func policyContent(server eventgraph.ServerName, key ed25519.PrivateKey) string {
	public := base64.RawStdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	return fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, server, public)
}

func (r *policed) name(server eventgraph.ServerName, key ed25519.PrivateKey) eventgraph.EventID {
	r.a.t.Helper()
	return r.a.setState(r.room, r.alice, eventgraph.PolicyType, "", policyContent(server, key))
}

// sign is what the policy server does with an event.
func (r *policed) sign(e *eventgraph.Event) *eventgraph.Event {
	r.a.t.Helper()
	signed, err := e.WithSignature(eventgraph.SigningKey{Server: r.p.key.Server, ID: eventgraph.PolicyKeyID, Private: r.key})
	if err != nil {
		r.a.t.Fatal(err)
	}
	return signed
}

func wantUnsigned(t *testing.T, err error) *eventgraph.Event {
	t.Helper()
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Policy == nil {
		t.Fatalf("got %v, want MissingError with Policy", err)
	}
	return missing.Policy.Event
}

func TestSentEventsAreSignedByThePolicyServer(t *testing.T) {
	t.Parallel()
	for _, version := range eventgraph.SupportedVersions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			r := newPoliced(t, version)
			txn := &store.ClientTxn{User: r.alice, Device: "D", TxnID: "1"}
			draft := Draft{Room: r.room, Sender: r.alice, Type: "m.room.message", Content: text("hello"), Txn: txn}
			was := r.a.store.Position()
			_, err := r.a.Send(ctx, draft)
			e := wantUnsigned(t, err)
			if _, held := r.a.has(e.ID()); held || r.a.store.Position() != was {
				t.Fatal("an event that the policy server has not signed is kept")
			}
			_, err = r.a.SendSigned(ctx, draft, e)
			wantUnsigned(t, err)
			// Others may write meanwhile; the event stands beside theirs.
			other := r.a.setState(r.room, r.alice, eventgraph.PolicyType, "", policyContent(r.p.key.Server, r.key)[:1]+`"more":1,`+policyContent(r.p.key.Server, r.key)[1:])
			id, err := r.a.SendSigned(ctx, draft, r.sign(e))
			if err != nil || id != e.ID() || r.a.event(id).Verdict != store.Accepted {
				t.Fatalf("%s, %v", id, err)
			}
			if forward := r.a.record(r.room).Forward; len(forward) != 2 {
				t.Errorf("forward extremities %v, want %s and %s", forward, id, other)
			}
			for _, again := range []func() (eventgraph.EventID, error){
				func() (eventgraph.EventID, error) { return r.a.Send(ctx, draft) },
				func() (eventgraph.EventID, error) { return r.a.SendSigned(ctx, draft, r.sign(e)) },
			} {
				if repeated, err := again(); err != nil || repeated != id {
					t.Errorf("the same transaction ID: %s, %v", repeated, err)
				}
			}
			// Membership events and policies under other keys too.
			key := string(r.alice)
			for _, d := range []Draft{
				{Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"join","displayname":"Al"}`)},
				{Type: eventgraph.PolicyType, StateKey: &key, Content: json.RawMessage(`{}`)},
				{Type: eventgraph.PolicyType, Content: json.RawMessage(`{}`)},
			} {
				d.Room, d.Sender = r.room, r.alice
				_, err := r.a.Send(ctx, d)
				wantUnsigned(t, err)
			}
			// What the rules forbid is not even asked for.
			_, err = r.a.Send(ctx, Draft{Room: r.room, Sender: r.a.user("nobody"), Type: "m.room.message", Content: text("x")})
			wantRefusal(t, err, "M_FORBIDDEN")
			// The room can be rid of it at once.
			r.a.setState(r.room, r.alice, eventgraph.PolicyType, "", `{}`)
			r.a.message(r.room, r.alice, "free")
		})
	}
}

func TestSignedMeanwhileForbidden(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newPoliced(t, "12")
	carol := r.a.user("carol")
	key := string(carol)
	r.a.setState(r.room, r.alice, eventgraph.PolicyType, "", `{}`)
	r.a.setState(r.room, carol, "m.room.member", key, `{"membership":"join"}`)
	r.name(r.p.key.Server, r.key)
	draft := Draft{Room: r.room, Sender: carol, Type: "m.room.message", Content: text("hello")}
	_, err := r.a.Send(ctx, draft)
	e := wantUnsigned(t, err)
	_, err = r.a.Send(ctx, Draft{Room: r.room, Sender: r.alice, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"ban"}`)})
	ban := r.sign(wantUnsigned(t, err))
	r.a.accept(ban, Basis{}, store.Accepted)
	_, err = r.a.SendSigned(ctx, draft, r.sign(e))
	wantRefusal(t, err, "M_FORBIDDEN")
	if _, held := r.a.has(e.ID()); held {
		t.Error("kept though its sender is banned")
	}
	// Nothing but what was asked for can be sent so.
	if _, err := r.a.SendSigned(ctx, Draft{Room: r.room, Sender: r.alice}, r.sign(e)); err == nil {
		t.Error("another user's event is sent")
	}
}

// A leave waits for no policy server. What would bring its sender back, and was being signed meanwhile, comes too late.
func TestSignedMeanwhileLeft(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newPoliced(t, "12")
	carol := r.a.user("carol")
	key := string(carol)
	r.a.setState(r.room, r.alice, eventgraph.PolicyType, "", `{}`)
	r.a.setState(r.room, carol, "m.room.member", key, `{"membership":"join"}`)
	r.name(r.p.key.Server, r.key)
	name := Draft{Room: r.room, Sender: carol, Type: "m.room.member", StateKey: &key, Joined: true, Content: json.RawMessage(`{"displayname":"C","membership":"join"}`)}
	_, err := r.a.Send(ctx, name)
	e := wantUnsigned(t, err)
	leave := Draft{Room: r.room, Sender: carol, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"leave"}`)}
	if _, err := r.a.LeaveUnsigned(ctx, leave); err != nil {
		t.Fatal(err)
	}
	_, err = r.a.SendSigned(ctx, name, r.sign(e))
	wantRefusal(t, err, "M_FORBIDDEN")
	_, err = r.a.Send(ctx, name)
	wantRefusal(t, err, "M_FORBIDDEN")
	if got := r.a.current(r.room, "m.room.member", key).Membership(); got != "leave" {
		t.Errorf("membership %s", got)
	}
	name.Joined = false // she may come back when she wants to
	_, err = r.a.Send(ctx, name)
	wantUnsigned(t, err)
}

// State that was to be set earlier is not set over what came since, whether it waited before it was signed or while it was. What came until then is
// overwritten.
func TestSignedMeanwhileSetAnew(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newPoliced(t, "12")
	key := ""
	set := func(topic string) {
		t.Helper()
		_, err := r.a.Send(ctx, Draft{Room: r.room, Sender: r.alice, Type: "m.room.topic", StateKey: &key, Content: json.RawMessage(`{"topic":"` + topic + `"}`)})
		r.a.accept(r.sign(wantUnsigned(t, err)), Basis{}, store.Accepted)
	}
	late := Draft{Room: r.room, Sender: r.alice, Type: "m.room.topic", StateKey: &key, Due: r.a.now.UnixMilli(), Content: json.RawMessage(`{"topic":"late"}`)}
	set("in time")
	_, err := r.a.Send(ctx, late)
	e := wantUnsigned(t, err)
	r.a.now = r.a.now.Add(time.Millisecond)
	set("later")
	for what, send := range map[string]func() error{
		"signed": func() error { _, err := r.a.SendSigned(ctx, late, r.sign(e)); return err },
		"sent":   func() error { _, err := r.a.Send(ctx, late); return err },
		"built":  func() error { _, err := r.a.Build(ctx, late); return err },
	} {
		var refused *Refusal
		if err := send(); !errors.As(err, &refused) || refused.Code != "M_BAD_STATE" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReceivedWithoutPolicySignature(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	ctx := context.Background()
	// b has not heard of the policy server.
	first := r.b.message(r.room, r.bob, "signed")
	second := r.b.message(r.room, r.bob, "refused")
	third := r.b.setState(r.room, r.bob, "m.room.member", string(r.bob), `{"membership":"join","displayname":"Bob"}`)
	from := Basis{Origin: r.b.key.Server}

	_, err := r.a.Accept(ctx, pdu(t, r.b.event(first).Event), from)
	if e := wantUnsigned(t, err); e.ID() != first {
		t.Errorf("%s is to be signed", e.ID())
	}
	if _, held := r.a.has(first); held {
		t.Error("held though not signed")
	}
	r.a.accept(r.sign(r.b.event(first).Event), from, store.Accepted)
	unsigned := from
	unsigned.Unsigned = true
	before := r.a.record(r.room).State
	r.a.accept(r.b.event(second).Event, unsigned, store.SoftFailed)
	// One that is soft-failed is in the graph: what rests on it, and is signed, is not hindered. State goes by the graph alone.
	_, err = r.a.Accept(ctx, pdu(t, r.b.event(third).Event), from)
	wantUnsigned(t, err)
	r.a.accept(r.sign(r.b.event(third).Event), from, store.Accepted)
	if r.a.record(r.room).State == before {
		t.Error("the signed state event has no effect")
	}
	// Unsigned is no verdict on what needs no signature, or has one.
	fourth := r.b.message(r.room, r.bob, "signed, though it was said not to be")
	r.a.accept(r.sign(r.b.event(fourth).Event), unsigned, store.Accepted)
	r.b.accept(r.a.event(r.named).Event, Basis{Origin: r.a.key.Server, Unsigned: true}, store.Accepted)
}

// Verdicts by the policy server change no state: who has asked it, who was refused and who does not know it come to the same.
func TestPolicyDoesNotTouchState(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	topic := r.b.setState(r.room, r.bob, "m.room.member", string(r.bob), `{"membership":"join","displayname":"Bob"}`)
	r.a.accept(r.b.event(topic).Event, Basis{Origin: r.b.key.Server, Unsigned: true}, store.SoftFailed)
	r.b.accept(r.a.event(r.named).Event, Basis{Origin: r.a.key.Server}, store.Accepted)
	_, err := r.b.Send(context.Background(), Draft{Room: r.room, Sender: r.bob, Type: "m.room.message", Content: text("on both")})
	both := r.sign(wantUnsigned(t, err))
	r.a.accept(both, Basis{Origin: r.b.key.Server}, store.Accepted)
	r.b.accept(both, Basis{Origin: r.b.key.Server}, store.Accepted)
	r.a.sameState(r.b, r.room)
}

func TestPolicyServerNotInUse(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	elsewhere := newServer(t, "elsewhere", r.a)
	r.name(elsewhere.key.Server, r.key) // which nobody in the room is of
	r.a.message(r.room, r.alice, "as ever")
	r.name(r.p.key.Server, r.key)
	_, err := r.a.Send(context.Background(), Draft{Room: r.room, Sender: r.alice, Type: "m.room.message", Content: text("x")})
	wantUnsigned(t, err)
	// It goes, by an event that it signs itself, as all others.
	key := string(r.p.user("police"))
	leave := r.p.forge(Draft{Room: r.room, Sender: r.p.user("police"), Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"leave"}`)},
		r.p.record(r.room).Forward)
	_, err = r.a.Accept(context.Background(), pdu(t, leave), Basis{Origin: r.p.key.Server})
	wantUnsigned(t, err)
	r.a.accept(r.sign(leave), Basis{Origin: r.p.key.Server}, store.Accepted)
	r.a.message(r.room, r.alice, "free")
}

// A room that takes another key wants signatures by that, and what was held as an outlier takes the signature that a later copy brings.
func TestPolicyKeyChanges(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newPoliced(t, "12")
	old := r.b.message(r.room, r.bob, "hello")
	signed := r.sign(r.b.event(old).Event)
	r.key = ed25519.NewKeyFromSeed([]byte("another key of the policy server"))
	r.name(r.p.key.Server, r.key)
	_, err := r.a.Accept(ctx, pdu(t, signed), Basis{Origin: r.b.key.Server})
	wantUnsigned(t, err)
	r.a.accept(r.b.event(old).Event, Basis{Kind: Nothing, Origin: r.b.key.Server}, store.Outlier)
	_, err = r.a.Accept(ctx, pdu(t, signed), Basis{Origin: r.b.key.Server})
	wantUnsigned(t, err)
	r.a.accept(r.sign(signed), Basis{Origin: r.b.key.Server}, store.Accepted)
	by := eventgraph.PolicyServer{Name: r.p.key.Server, Key: r.key.Public().(ed25519.PublicKey)}
	if err := r.a.event(old).VerifyPolicySignature(by); err != nil {
		t.Error("the signature that a copy brought is not kept")
	}
}
