package rooms

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// redaction is a draft that works in every room version: the target stands in content from version 11 on.
func redaction(room eventgraph.RoomID, by eventgraph.UserID, target eventgraph.EventID) Draft {
	return Draft{Room: room, Sender: by, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: target}
}

func (s *server) changesAfter(after store.Position) (changes []store.Change) {
	s.t.Helper()
	err := s.store.View(func(r *store.Reader) error {
		return r.Changes(after, s.store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			changes = append(changes, c)
			return true, nil
		})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return changes
}

func TestRedaction(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"10", "12"} {
		a, b, alice, bob, room := shared(t, version)
		said := b.message(room, bob, "secret")
		a.accept(b.event(said).Event, Basis{}, store.Accepted)
		shown := a.event(said).Position

		// bob may not redact what alice says, and says so to no avail.
		answer := a.message(room, alice, "answer")
		b.accept(a.event(answer).Event, Basis{}, store.Accepted)
		_, err := b.Send(context.Background(), redaction(room, bob, answer))
		wantRefusal(t, err, "M_FORBIDDEN")
		forbidden := b.forge(redaction(room, bob, answer), []eventgraph.EventID{answer})
		position := a.store.Position()
		a.accept(forbidden, Basis{}, store.Accepted)
		if a.event(answer).RedactedBy != "" {
			t.Error("redacted without power")
		}
		if changes := a.changesAfter(position); len(changes) != 1 || changes[0].Kind != store.ChangeSoftFailed {
			t.Errorf("changes %+v of a redaction that does not apply", changes)
		}
		if see, err := a.MaySeeUser(alice, a.event(forbidden.ID())); see || err != nil {
			t.Errorf("a redaction that does not apply is shown: %v, %v", see, err)
		}

		// alice may.
		position = a.store.Position()
		by := a.send(redaction(room, alice, said))
		held := a.event(said)
		if held.RedactedBy != by || bytes.Contains(held.Content(), []byte("secret")) || held.Position != shown {
			t.Errorf("redacted by %q, position %d, was %d: %s", held.RedactedBy, held.Position, shown, held.Content())
		}
		changes := a.changesAfter(position)
		if len(changes) != 2 || changes[0].Event != by || changes[1].Kind != store.ChangeRedaction || changes[1].Event != said {
			t.Errorf("changes %+v", changes)
		}
		if see, err := a.MaySeeUser(alice, a.event(by)); !see || err != nil {
			t.Errorf("the redaction is not shown: %v, %v", see, err)
		}
		b.accept(forbidden, Basis{}, store.Accepted)
		b.accept(a.event(by).Event, Basis{}, store.Accepted)
		if got := b.event(said).RedactedBy; got != by {
			t.Errorf("elsewhere redacted by %q", got)
		}
	}
}

func TestRedactionInOneRunWithItsTarget(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	after := a.store.Position()
	said := a.message(room, alice, "secret")
	by := a.send(redaction(room, alice, said))
	// The target comes in its original form, as from a server that has not seen the redaction.
	c := b.store.Position()
	original := a.forge(Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text("also secret")}, a.record(room).Forward)
	both := forgeAfter(t, a, redaction(room, alice, original.ID()), original)
	a.give(b, room, after)
	outcomes, err := b.AcceptAll(context.Background(), []*eventgraph.Event{pdu(t, original), pdu(t, both)}, Basis{})
	if err != nil || outcomes[0].Verdict != store.Accepted || outcomes[1].Verdict != store.Accepted {
		t.Fatalf("%+v, %v", outcomes, err)
	}
	held := b.event(original.ID())
	if held.RedactedBy != both.ID() || held.Position == 0 || held.Position != outcomes[0].Position || held.Position <= c {
		t.Errorf("redacted by %q, position %d", held.RedactedBy, held.Position)
	}
	if got := b.event(said).RedactedBy; got != by {
		t.Errorf("redacted by %q", got)
	}
}

// forgeAfter makes an event of s on a parent that is held nowhere yet, which is no state event.
func forgeAfter(t *testing.T, s *server, d Draft, parent *eventgraph.Event) *eventgraph.Event {
	t.Helper()
	e, err := eventgraph.Build(parent.Version(), eventgraph.Draft{
		RoomID: d.Room, Type: d.Type, Sender: d.Sender, Content: d.Content, Redacts: d.Redacts,
		PrevEvents: []eventgraph.EventID{parent.ID()}, AuthEvents: parent.AuthEvents(), Depth: parent.Depth() + 1,
		OriginServerTS: parent.OriginServerTS() + 1,
	}, s.key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRedactionBeforeItsTarget(t *testing.T) {
	t.Parallel()
	for _, inOneRun := range []bool{false, true} {
		a, b, alice, bob, room := shared(t, "12")
		fork := a.record(room).Forward
		// bob's message and its redaction stand on different branches, so that they can come in any order.
		said := b.forge(Draft{Room: room, Sender: bob, Type: "m.room.message", Content: text("secret")}, fork)
		by := b.forge(redaction(room, bob, said.ID()), fork)

		position := a.store.Position()
		if inOneRun {
			outcomes, err := a.AcceptAll(context.Background(), []*eventgraph.Event{pdu(t, by), pdu(t, said)}, Basis{})
			if err != nil || outcomes[1].Verdict != store.Accepted {
				t.Fatalf("%+v, %v", outcomes, err)
			}
		} else {
			a.accept(by, Basis{}, store.Accepted)
			if see, err := a.MaySeeUser(alice, a.event(by.ID())); see || err != nil {
				t.Errorf("a redaction without its target is shown: %v, %v", see, err)
			}
			a.accept(said, Basis{}, store.Accepted)
		}
		held := a.event(said.ID())
		if held.RedactedBy != by.ID() || bytes.Contains(held.Content(), []byte("secret")) {
			t.Errorf("redacted by %q: %s", held.RedactedBy, held.Content())
		}
		if a.event(by.ID()).Position == 0 {
			t.Error("the redaction has not come into the timeline with its target")
		}
		shown := 0
		for _, c := range a.changesAfter(position) {
			if c.Kind == store.ChangeEvent && c.Event == by.ID() {
				shown++
			}
		}
		if shown != 1 {
			t.Errorf("the redaction is %d times in the timeline, want once", shown)
		}
		err := a.store.View(func(r *store.Reader) error {
			waiting, err := r.WaitingRedactions(said.ID())
			if len(waiting) != 0 {
				t.Errorf("still waiting: %v", waiting)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// An import brings the right copy of an event that was held without its content, and has been redacted since.
func TestImportDoesNotUndoRedaction(t *testing.T) {
	t.Parallel()
	a, b, alice, _, room := shared(t, "12")
	topic := a.setState(room, alice, "m.room.topic", "", `{"topic":"to be redacted"}`)
	right := a.event(topic).Event
	altered, err := eventgraph.ParseEvent("12", bytes.Replace(right.Raw(), []byte("to be redacted"), []byte("altered"), 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Accept(context.Background(), altered, Basis{}); err != nil {
		t.Fatal(err)
	}
	b.accept(a.event(a.send(redaction(room, alice, topic))).Event, Basis{}, store.Accepted)
	n := NewRoom{Version: "12", Create: b.record(room).Create}
	if _, err := b.Accept(context.Background(), pdu(t, right), Basis{Kind: Nothing, New: &n}); err != nil {
		t.Fatal(err)
	}
	if held := b.event(topic); held.HashMismatch() || held.RedactedBy == "" || bytes.Contains(held.Content(), []byte("to be redacted")) {
		t.Errorf("held as %s, redacted by %q", held.Content(), held.RedactedBy)
	}
}

// Of what a redacted event related to there stays the event's ID, and whether that made a thread: neither a type of a client's own nor what is no event ID.
// It stays as an outlier gets its place, until the event is purged.
func TestRedactionKeepsNoMoreOfARelation(t *testing.T) {
	t.Parallel()
	a, b, alice, bob, room := shared(t, "12")
	root := a.message(room, alice, "root")
	relate := func(relType, to string) eventgraph.EventID {
		content := fmt.Sprintf(`{"body":"x","m.relates_to":{"rel_type":%q,"event_id":%q}}`, relType, to)
		return a.send(Draft{Room: room, Sender: alice, Type: "m.room.message", Content: json.RawMessage(content)})
	}
	long := strings.Repeat("secret ", 8000)
	var redacted []eventgraph.EventID
	for _, test := range []struct {
		relType, to string
		want        store.Relation
	}{
		{"m.thread", string(root), store.Relation{Type: "m.thread", Parent: root}},
		{"m.reference", string(root), store.Relation{Parent: root}},
		{long, string(root), store.Relation{Parent: root}},
		{"m.thread", "secret", store.Relation{}},
		{"m.thread", "$secret", store.Relation{}},
		{"m.thread", "$" + strings.Repeat("secret ", 6) + "s", store.Relation{}},
		{"m.thread", long, store.Relation{}},
	} {
		said := relate(test.relType, test.to)
		a.send(redaction(room, alice, said))
		if got := a.event(said).Related; got != test.want {
			t.Errorf("%.20q to %.20q: kept %.60q", test.relType, test.to, got)
		}
		redacted = append(redacted, said)
	}

	// An outlier that has been redacted gets its place, as it is held or as a right copy of it comes.
	want := store.Relation{Type: "m.thread", Parent: root}
	for _, altered := range []bool{false, true} {
		fork := b.record(room).Forward
		said := b.forge(Draft{Room: room, Sender: bob, Type: "m.room.message",
			Content: json.RawMessage(`{"body":"secret","m.relates_to":{"rel_type":"m.thread","event_id":"` + string(root) + `"}}`)}, fork)
		by := b.forge(redaction(room, bob, said.ID()), fork)
		first := pdu(t, said)
		if altered {
			first = pdu(t, said.Redact())
		}
		a.accept(first, Basis{Kind: Nothing}, store.Outlier)
		a.accept(by, Basis{}, store.Accepted)
		if e := a.event(said.ID()); e.RedactedBy != by.ID() || e.HashMismatch() != altered || !altered && e.Related != want {
			t.Fatalf("the outlier is redacted by %q and related to %q", e.RedactedBy, e.Related)
		}
		a.accept(pdu(t, said), Basis{}, store.Accepted)
		if e := a.event(said.ID()); e.Order == 0 || e.RedactedBy != by.ID() || e.Related != want || bytes.Contains(e.Content(), []byte("secret")) {
			t.Errorf("at its place it is redacted by %q, related to %q: %s", e.RedactedBy, e.Related, e.Content())
		}
		redacted = append(redacted, said.ID())
	}

	if done := a.purge(room, PurgeLimit{Event: a.message(room, alice, "limit")}); done.Purged == 0 {
		t.Fatal("nothing is purged")
	}
	for _, id := range redacted {
		if e := a.event(id); !e.Purged || e.Related != (store.Relation{}) {
			t.Errorf("purged %v, related to %q", e.Purged, e.Related)
		}
	}
}
