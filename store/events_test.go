package store

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// identity is a server whose identity and device key are one.
func identity(seed byte) eventgraph.SigningKey {
	private := ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
	public := private.Public().(ed25519.PublicKey)
	return eventgraph.SigningKey{
		Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private,
	}
}

const (
	testRoom = "!room:example.org"
	parentA  = eventgraph.EventID("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	parentB  = eventgraph.EventID("$BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA")
)

func message(t testing.TB, content string, prev ...eventgraph.EventID) *eventgraph.Event {
	t.Helper()
	k := identity(1)
	e, err := eventgraph.Build("11", eventgraph.Draft{
		RoomID: testRoom, Type: "m.room.message", Sender: eventgraph.UserID("@alice:" + string(k.Server)),
		Content: json.RawMessage(content), PrevEvents: prev, AuthEvents: []eventgraph.EventID{}, Depth: 1, OriginServerTS: 1,
	}, k)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// same compares what is stored of two events.
func same(t *testing.T, got, want *StoredEvent) {
	t.Helper()
	a, b := *got, *want
	if string(a.Raw()) != string(b.Raw()) || a.ID() != b.ID() || a.Version() != b.Version() || a.HashMismatch() != b.HashMismatch() {
		t.Errorf("event %s %s, want %s %s", a.ID(), a.Raw(), b.ID(), b.Raw())
	}
	if (a.SentBy == nil) != (b.SentBy == nil) || a.SentBy != nil && *a.SentBy != *b.SentBy {
		t.Errorf("sent by %v, want %v", a.SentBy, b.SentBy)
	}
	a.Event, b.Event, a.SentBy, b.SentBy, a.mismatched, b.mismatched = nil, nil, nil, nil, nil, nil
	if a != b {
		t.Errorf("event %+v, want %+v", a, b)
	}
}

func TestEventRecord(t *testing.T) {
	t.Parallel()
	h := func(b byte) eventgraph.Hash { return eventgraph.Hash{b} }
	e := message(t, `{"body":"hello","n":1}`, parentA, parentB)
	forged, err := eventgraph.ParseEvent("11", []byte(strings.Replace(string(e.Raw()), "hello", "hallo", 1)))
	if err != nil || !forged.HashMismatch() {
		t.Fatalf("forged event: %v", err)
	}
	for _, want := range []*StoredEvent{
		{Event: e, Verdict: Outlier, ReceivedTS: 5},
		{Event: forged, Verdict: Accepted, StateBefore: h(1), StateAfter: h(1), RoomState: h(1), Order: 7, Position: 9, ReceivedTS: 1 << 42},
		{Event: e, Verdict: Rejected, StateBefore: h(1), StateAfter: h(2), Order: -3, Gap: true},
		{Event: e, Verdict: Accepted, StateBefore: h(1), StateAfter: h(1), RoomState: h(3), Order: 1, RedactedBy: "$x"},
		{Event: e, Verdict: SoftFailed, Order: 2, RedactedBy: "$x", Purged: true, Related: Relation{parentA, threadRelation}},
		{Event: e, Verdict: SoftFailed, StateAfter: h(2), RoomState: h(2), SentBy: &ClientTxn{User: "@u:s", Device: "DEV", TxnID: "m1"}},
		{Event: e, Verdict: Accepted, SentBy: &ClientTxn{User: e.Sender(), Device: "DEV", TxnID: "m1"}},
		{Event: e, Verdict: Accepted, StateBefore: h(1), StateAfter: h(1)},
	} {
		got, err := decodeEvent(want.ID(), want.encode())
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
		for n := range want.encode() {
			if n < len(want.encode())-len(want.Raw()) { // in the header
				if _, err := decodeEvent(want.ID(), want.encode()[:n]); err == nil {
					t.Errorf("record cut off at %d of the header: no error", n)
				}
			}
		}
	}
}

// A record whose relation says what redaction should have removed is read without that.
func TestRecordOfABadRelation(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ held, want Relation }{
		{Relation{parentA, "m.reference"}, Relation{Parent: parentA}},
		{Relation{"secret", threadRelation}, Relation{}},
		{Relation{"", "secret"}, Relation{}},
	} {
		e := &StoredEvent{Event: message(t, `{}`, parentA), Verdict: Accepted, RedactedBy: "$x", Related: test.held}
		got, err := decodeEvent(e.ID(), e.encode())
		if err != nil {
			t.Fatal(err)
		}
		if got.Related != test.want || got.RedactedBy != "$x" {
			t.Errorf("%q is read as %q", test.held, got.Related)
		}
	}
}

func TestEventsAreReadBack(t *testing.T) {
	t.Parallel()
	s := open(t)
	e := message(t, `{"body":"hello"}`, parentA, parentB)
	outlier := &StoredEvent{Event: e, Verdict: Outlier}
	placed := &StoredEvent{Event: e, Verdict: Accepted, Aside: true, Order: 4, StateBefore: eventgraph.Hash{1}, StateAfter: eventgraph.Hash{1}, Position: 1}
	check := func(r *Reader, want *StoredEvent) {
		t.Helper()
		got, err := r.Event(e.ID())
		if want == nil {
			if v, ok, err := r.HasEvent(e.ID()); ok || err != nil {
				t.Errorf("has event: %v %v %v", v, ok, err)
			}
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("event: %v, want ErrNotFound", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
		if v, ok, err := r.HasEvent(e.ID()); v != want.Verdict || !ok || err != nil {
			t.Errorf("has event: %v %v %v", v, ok, err)
		}
		got.Verdict = 99 // it is the caller's
	}
	mustView(t, s, func(r *Reader) error { check(r, nil); return nil })
	mustUpdate(t, s, func(tx *Tx) error {
		err := tx.PutEvent(outlier)
		check(&tx.Reader, outlier)
		return err
	})
	mustView(t, s, func(before *Reader) error {
		check(before, outlier)
		check(before, outlier)
		// A function that fails leaves nothing, in caches neither.
		_, err := s.Update(context.Background(), func(tx *Tx) error {
			if err := tx.PutEvent(placed); err != nil {
				return err
			}
			check(&tx.Reader, placed)
			return context.Canceled
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("failing update: %v", err)
		}
		mustUpdate(t, s, func(tx *Tx) error { check(&tx.Reader, outlier); return nil })
		mustUpdate(t, s, func(tx *Tx) error { return tx.PutEvent(placed) })
		check(before, outlier) // a snapshot stays as it is
		mustView(t, s, func(r *Reader) error { check(r, placed); return nil })
		check(before, outlier)
		return nil
	})
	mustView(t, s, func(r *Reader) error {
		for _, parent := range []eventgraph.EventID{parentA, parentB} {
			var c []eventgraph.EventID
			err := r.Children(parent, func(child eventgraph.EventID) (bool, error) { c = append(c, child); return true, nil })
			if err != nil || !slices.Equal(c, []eventgraph.EventID{e.ID()}) {
				t.Errorf("children of %s: %v, %v", parent, c, err)
			}
		}
		return nil
	})
}

func TestTimelineAndRelations(t *testing.T) {
	t.Parallel()
	s := open(t)
	root := message(t, `{"body":"root"}`)
	events := map[int64]*eventgraph.Event{}
	mustUpdate(t, s, func(tx *Tx) error {
		var errs []error
		for order := int64(-3); order <= 6; order++ {
			if order == 0 {
				continue
			}
			rel := "m.thread"
			if order%2 == 0 {
				rel = "m.annotation"
			}
			e := message(t, fmt.Sprintf(`{"body":"%d","m.relates_to":{"rel_type":%q,"event_id":%q}}`, order, rel, root.ID()))
			events[order] = e
			verdict := Accepted
			if order == 3 {
				verdict = SoftFailed
			}
			errs = append(errs, tx.PutEvent(&StoredEvent{Event: e, Verdict: verdict, Order: order}))
		}
		return errors.Join(errs...)
	})
	read := func(f func(r *Reader, visit func(*StoredEvent) (bool, error)) error) string {
		t.Helper()
		var orders []string
		mustView(t, s, func(r *Reader) error {
			return f(r, func(e *StoredEvent) (bool, error) {
				orders = append(orders, fmt.Sprint(e.Order))
				return len(orders) < 5, nil
			})
		})
		return strings.Join(orders, " ")
	}
	timeline := func(from int64, backwards bool) string {
		t.Helper()
		return read(func(r *Reader, f func(*StoredEvent) (bool, error)) error {
			return r.Timeline(testRoom, from, backwards, f)
		})
	}
	relations := func(rel, typ string) string {
		t.Helper()
		return read(func(r *Reader, f func(*StoredEvent) (bool, error)) error { return r.Relations(root.ID(), rel, typ, f) })
	}
	related := func(from int64, backwards bool) string {
		t.Helper()
		var orders []string
		mustView(t, s, func(r *Reader) error {
			return r.Related(root.ID(), from, backwards, func(c Related) (bool, error) {
				orders = append(orders, fmt.Sprint(c.Order))
				if c.ID != events[c.Order].ID() || c.Type != "m.room.message" || (c.RelType == "m.thread") != (c.Order%2 != 0) {
					t.Errorf("entry %+v", c)
				}
				return true, nil
			})
		})
		return strings.Join(orders, " ")
	}
	replies := func(from int64) string {
		t.Helper()
		var orders []string
		mustView(t, s, func(r *Reader) error {
			return r.ThreadReplies(testRoom, from, func(order int64, id eventgraph.EventID) (bool, error) {
				orders = append(orders, fmt.Sprint(order))
				if id != root.ID() {
					t.Errorf("%d is in the thread %s", order, id)
				}
				return true, nil
			})
		})
		return strings.Join(orders, " ")
	}
	for _, c := range []struct{ what, got, want string }{
		{"forwards", timeline(-2, false), "-2 -1 1 2 4"},
		{"backwards", timeline(4, true), "4 2 1 -1 -2"},
		{"backwards from between", timeline(3, true), "2 1 -1 -2 -3"},
		{"behind the end", timeline(7, false), ""},
		{"all relations", relations("", ""), "6 5 4 2 1"},
		{"threads", relations("m.thread", "m.room.message"), "5 1 -1 -3"},
		{"of another type", relations("", "m.reaction"), ""},
		{"forwards from an order", related(2, false), "2 4 5 6"},
		{"backwards from an order", related(1, true), "1 -1 -2 -3"},
		{"replies in threads", replies(4), "1 -1 -3"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	// Redacted, an event relates to nothing; it stays in the timeline.
	mustUpdate(t, s, func(tx *Tx) error {
		e, err := tx.Event(events[5].ID())
		if err != nil {
			return err
		}
		e.Event, e.RedactedBy = e.Redact(), "$r"
		return tx.PutEvent(e)
	})
	if got := relations("m.thread", ""); got != "1 -1 -3" {
		t.Errorf("threads after a redaction: %s", got)
	}
	if got := replies(6); got != "1 -1 -3" {
		t.Errorf("replies in threads after a redaction: %s", got)
	}
	if got := timeline(4, false); got != "4 5 6" {
		t.Errorf("timeline after a redaction: %s", got)
	}
}

func TestRoomChanges(t *testing.T) {
	t.Parallel()
	s := open(t)
	for i := range 10 {
		mustUpdate(t, s, func(tx *Tx) error {
			room := eventgraph.RoomID(fmt.Sprint("!", i%2))
			_, err := tx.Log(Change{Kind: ChangeEvent, Room: room, Event: eventgraph.EventID(fmt.Sprint("$", i+1))})
			return err
		})
	}
	for _, c := range []struct {
		after, upTo Position
		want        string
	}{
		{0, 10, "1$1 3$3 5$5 7$7 9$9"},
		{3, 8, "5$5 7$7"},
		{7, 7, ""},
		{9, 3, "9$9 7$7 5$5"},
		{10, 0, "9$9 7$7 5$5 3$3 1$1"},
	} {
		var got []string
		mustView(t, s, func(r *Reader) error {
			return r.RoomChanges("!0", c.after, c.upTo, func(p Position, id eventgraph.EventID) (bool, error) {
				got = append(got, fmt.Sprint(p, id))
				return true, nil
			})
		})
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("after %d up to %d: %s, want %s", c.after, c.upTo, g, c.want)
		}
	}
}

// citing is an event of the test room that cites others, a state event if it has a key.
func citing(t testing.TB, version eventgraph.RoomVersion, body string, stateKey *string, auth ...eventgraph.EventID) *eventgraph.Event {
	t.Helper()
	k := identity(1)
	e, err := eventgraph.Build(version, eventgraph.Draft{
		RoomID: testRoom, Type: "org.example.note", StateKey: stateKey, Sender: eventgraph.UserID("@alice:" + string(k.Server)),
		Content: json.RawMessage(fmt.Sprintf(`{"body":%q}`, body)), AuthEvents: auth, Depth: 1, OriginServerTS: 1,
	}, k)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCitedBy(t *testing.T) {
	t.Parallel()
	for _, version := range []eventgraph.RoomVersion{"3", "11"} {
		s := open(t)
		want := func(r *Reader, id eventgraph.EventID, all ...*eventgraph.Event) {
			t.Helper()
			got, wanted := []eventgraph.EventID{}, []eventgraph.EventID{}
			err := r.CitedBy(id, func(by eventgraph.EventID) bool { got = append(got, by); return true })
			for _, e := range all {
				wanted = append(wanted, e.ID())
			}
			slices.Sort(got)
			slices.Sort(wanted)
			if err != nil || !slices.Equal(got, wanted) {
				t.Errorf("version %s: cited by %v, %v, want %v", version, got, err, wanted)
			}
		}
		key := new(string)
		put := func(tx *Tx, events ...*eventgraph.Event) error {
			var errs []error
			for _, e := range events {
				errs = append(errs, tx.PutEvent(&StoredEvent{Event: e, Verdict: Outlier}), tx.PutEvent(&StoredEvent{Event: e, Verdict: Accepted, Order: 1}))
			}
			return errors.Join(errs...)
		}
		root := citing(t, version, "root", key)
		var notes []*eventgraph.Event
		for i := range 20 {
			notes = append(notes, citing(t, version, fmt.Sprint(i), key, root.ID()))
		}
		message := citing(t, version, "message", nil, notes[0].ID(), root.ID())
		mustUpdate(t, s, func(tx *Tx) error {
			err := put(tx, root, notes[0])
			want(&tx.Reader, root.ID(), notes[0])
			return errors.Join(err, put(tx, notes[1:]...), put(tx, message))
		})
		mustView(t, s, func(r *Reader) error {
			want(r, root.ID(), notes...)
			want(r, notes[0].ID()) // messages are many, and in no auth chain
			n := 0
			err := r.CitedBy(root.ID(), func(eventgraph.EventID) bool { n++; return n < 3 })
			if n != 3 {
				t.Errorf("version %s: %d calls after the third said no", version, n)
			}
			return err
		})

		// Messages that somebody cites are in auth chains.
		second := citing(t, version, "second message", nil, message.ID())
		third := citing(t, version, "third message", nil, second.ID())
		mustUpdate(t, s, func(tx *Tx) error { return put(tx, second, third) })
		state := citing(t, version, "state", key, third.ID())
		mustUpdate(t, s, func(tx *Tx) error { return put(tx, state) })
		mustView(t, s, func(r *Reader) error {
			want(r, third.ID(), state)
			want(r, second.ID(), third)
			want(r, message.ID(), second)
			want(r, notes[0].ID(), message)
			want(r, root.ID(), append(notes, message)...)
			return nil
		})
	}
}

func TestShortIDs(t *testing.T) {
	t.Parallel()
	hash := func(s string) eventgraph.EventID { return eventgraph.EventID("$" + strings.Repeat(s, 42) + "A") }
	for id, size := range map[eventgraph.EventID]int{
		hash("a"): 33, hash("-"): 33, hash("_"): 33, hash("+"): 33, hash("/"): 33,
		"": 3, "$": 4, "$\x00": 6, "a" + hash("a"): 48,
		hash("a")[:43]: 46, hash("a") + "A": 48, hash("a")[:43] + "B": 47, // not all bits, too many, some that do not count
		hash("a")[:39] + "\r\nAAA": 47, hash("+")[:20] + hash("-")[20:]: 47,
	} {
		k := key(tableCitedBy).id(id).id(id)
		p := parts(k)
		if a, b := p.id(), p.id(); a != id || b != id || !p.ok || len(p.rest) != 0 || len(k) != 1+2*size {
			t.Errorf("%q: %q, %q, %v, %d bytes", id, a, b, p.ok, len(k))
		}
		for n := 1; n < size; n++ {
			if p := parts(k[:n]); p.id() != "" && p.ok {
				t.Errorf("%q cut off at %d is an ID", id, n)
			}
		}
	}
	if p := parts([]byte{byte(tableCitedBy), 9, 0, 1}); p.id() != "" || p.ok {
		t.Error("took an ID of an unknown form")
	}
}
