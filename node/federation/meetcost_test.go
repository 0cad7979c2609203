package federation

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// counted is a stream that counts what passes.
type counted struct {
	io.ReadWriteCloser
	in, out *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(b)
	c.in.Add(int64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Write(b)
	c.out.Add(int64(n))
	return n, err
}

// costOfMeeting is the bytes both ways of a meeting at which nothing may come.
func (h *memHost) costOfMeeting(with *memHost) int64 {
	h.t.Helper()
	var in, out atomic.Int64
	came, err := h.meetOnce(with, func(s io.ReadWriteCloser) io.ReadWriteCloser { return counted{s, &in, &out} })
	if err != nil || came != 0 {
		h.t.Fatalf("%d came, %v", came, err)
	}
	return in.Load() + out.Load()
}

// multiply makes the hosts hold n copies of a room, under other IDs; nothing can be done in them.
func multiply(room eventgraph.RoomID, n int, hosts ...*memHost) {
	for _, h := range hosts {
		held, _, err := h.backwards(room)
		if err != nil {
			h.t.Fatal(err)
		}
		h.update(func(tx *store.Tx) error {
			for i := range n {
				other := *held
				other.ID = eventgraph.RoomID(fmt.Sprintf("!copy%d", i))
				if err := tx.PutRoom(&other); err != nil {
					return err
				}
				if _, err := tx.Log(store.Change{Kind: store.ChangeBackfill, Room: other.ID}); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// TestIdleMeetings: 1,000 shared rooms in which nothing happens cost less than 1 KiB at a meeting, and 20 peers less than 400 KiB in an hour.
func TestIdleMeetings(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	if _, err := b.meetOnce(a, nil); err != nil {
		t.Fatal(err)
	}
	multiply(room, 999, a, b)
	b.costOfMeeting(a) // reads all the rooms for the first time
	began := time.Now()
	idle := b.costOfMeeting(a)
	t.Logf("an idle meeting: %d bytes, %v for both sides", idle, time.Since(began))
	if idle > 1<<10 {
		t.Errorf("an idle meeting costs %d bytes", idle)
	}
	if s, err := b.summary(contact{Server: a.server, Peer: a.peer}, nil); err != nil || len(s.items) != 1000 {
		t.Fatalf("%d rooms are compared, %v", len(s.items), err)
	}
	const peers, hour = 20, time.Hour
	meetings := 0
	var when interval
	for at := time.Duration(0); at < hour; at += when.next(false, false, false) {
		meetings++
	}
	total := 2 * peers * int64(meetings) * idle // each side asks
	t.Logf("%d peers in an hour: %d meetings each way, %d bytes, %.1f B/s", peers, meetings, total, float64(total)/hour.Seconds())
	if total > 400<<10 {
		t.Errorf("%d peers cost %d bytes in an hour", peers, total)
	}

	// One room that differs is found, at the cost of the way to it.
	said := a.say(room, a.user("alice"), "something")
	cursor, err := b.meetingCursor(contact{Server: a.server, Peer: a.peer})
	if err != nil {
		t.Fatal(err)
	}
	past := a.cursor(a.Store.Position())
	b.update(func(tx *store.Tx) error { return tx.PutMeetingCursor(a.server, a.peer, past) }) // as if it had fallen between two cursors
	if past == cursor {
		t.Fatal("nothing has happened")
	}
	var in, out atomic.Int64
	came, err := b.meetOnce(a, func(s io.ReadWriteCloser) io.ReadWriteCloser { return counted{s, &in, &out} })
	if err != nil || came != 1 || !b.holds(said) {
		t.Errorf("%d came, %v; want the one event", came, err)
	}
	t.Logf("one room that differs: %d bytes", in.Load()+out.Load())
	if sum := in.Load() + out.Load(); sum > 8<<10 {
		t.Errorf("one room that differs costs %d bytes", sum)
	}
}

// TestInterval: it grows to ten minutes while nothing changes, and is short again when something has, or a meeting has come further.
func TestInterval(t *testing.T) {
	t.Parallel()
	var i interval
	for n, step := range []struct {
		changed, more, failed bool
		want                  time.Duration
	}{
		{want: meetAgain}, {want: 2 * meetAgain}, {want: 4 * meetAgain}, {want: 8 * meetAgain}, {want: meetSeldom}, {want: meetSeldom},
		{changed: true, want: meetAgain}, {want: 2 * meetAgain},
		{changed: true, more: true, want: meetRetry}, {changed: true, more: true, want: meetRetry}, {want: meetAgain},
		{failed: true, want: meetRetry}, {failed: true, want: 2 * meetRetry}, {failed: true, want: 4 * meetRetry},
		{changed: true, failed: true, want: meetRetry}, {failed: true, want: 2 * meetRetry}, {want: meetAgain}, {want: 2 * meetAgain},
	} {
		if got := i.next(step.changed, step.more, step.failed); got != step.want {
			t.Errorf("step %d: %v, want %v", n, got, step.want)
		}
	}
	for range 20 {
		i.next(false, false, true)
	}
	if got := i.next(false, false, true); got != meetSeldom {
		t.Errorf("after many failures %v, want %v", got, meetSeldom)
	}
}

// TestInCrowd: with many contacts there are about as many meetings in a minute as with meetCrowd, and none later than at the longest
// interval; with few each is met at its time.
func TestInCrowd(t *testing.T) {
	t.Parallel()
	if got := inCrowd(meetAgain, meetCrowd); got != meetAgain {
		t.Errorf("with %d contacts %v, want %v", meetCrowd, got, meetAgain)
	}
	for _, contacts := range []int{2 * meetCrowd, 5 * meetCrowd} {
		sum, n := time.Duration(0), 2000
		for range n {
			got := inCrowd(meetAgain, contacts)
			if got > meetAgain*time.Duration(contacts)/meetCrowd || got < meetAgain {
				t.Fatalf("with %d contacts %v", contacts, got)
			}
			sum += got
		}
		if most, mean := meetAgain*time.Duration(contacts)/meetCrowd, sum/time.Duration(n); mean < most*8/10 || mean > most*95/100 {
			t.Errorf("with %d contacts %v on average, at most %v", contacts, mean, most)
		}
	}
	if got := inCrowd(meetSeldom, 100*meetCrowd); got > meetSeldom || got < meetSeldom*3/4 {
		t.Errorf("with a great crowd %v", got)
	}
}

// TestKnownDifference: two servers whose extremities differ for ever, though each knows all of the other's, find it out once each.
func TestKnownDifference(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	b.handleMeetings() // gives too
	hears := func(from, to *memHost) {
		t.Helper()
		if _, err := from.meetOnce(to, nil); err != nil {
			t.Fatal(err)
		}
	}
	hears(b, a)
	hears(a, b)
	// b is banned at a, and says something before it hears of it: that is soft-failed at a.
	mallory := b.user("mallory")
	b.join(room, mallory, a.host)
	hears(b, a)
	hears(a, b)
	word := b.say(room, mallory, "before I knew")
	a.setState(room, a.user("alice"), "m.room.member", string(mallory), `{"membership":"ban"}`)
	hears(a, b)
	hears(b, a)
	if got := a.event(word).Verdict; got != store.SoftFailed {
		t.Fatalf("the word has verdict %v at a, want soft-failed", got)
	}
	forward := func(h *memHost) []eventgraph.EventID {
		held, _, err := h.backwards(room)
		if err != nil {
			t.Fatal(err)
		}
		return held.Forward
	}
	if slices.Equal(forward(a), forward(b)) {
		t.Fatal("the extremities are the same")
	}
	hears(a, b) // finds it out, if it had not
	hears(b, a)
	hears(a, b)
	first := a.costOfMeeting(b)
	multiply(room, 0, a)
	for _, pair := range [][2]*memHost{{a, b}, {b, a}} {
		if cost := pair[0].costOfMeeting(pair[1]); cost > 500 {
			t.Errorf("a room that differs and is known costs %d bytes", cost)
		}
	}
	// It is found again when one side changes, and after a restart.
	b.meetings.agreements = newAgreements()
	if cost := a.costOfMeeting(b); cost <= first {
		t.Errorf("%d bytes after b has forgotten, %d before", cost, first)
	}
	b.costOfMeeting(a)
	a.costOfMeeting(b)
	if cost := a.costOfMeeting(b); cost > 500 {
		t.Errorf("%d bytes when it is known again", cost)
	}
	said := b.say(room, b.user("bob"), "more")
	hears(a, b)
	if !a.holds(said) {
		t.Error("what changed was not found")
	}
}

// TestOneSideOnly: a room that only one side takes for shared costs nothing once that is known, and is found when the other side knows.
func TestOneSideOnly(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	b.handleMeetings()
	for _, pair := range [][2]*memHost{{a, b}, {b, a}} {
		if _, err := pair[0].meetOnce(pair[1], nil); err != nil {
			t.Fatal(err)
		}
	}
	base := b.costOfMeeting(a)
	multiply(room, 30, b) // that a shares them only b knows
	if cost := b.costOfMeeting(a); cost < base+500 {
		t.Errorf("%d bytes, %d before: nothing was asked of the new rooms", cost, base)
	}
	if cost := b.costOfMeeting(a); cost > base+20 {
		t.Errorf("%d bytes, %d before the rooms that a does not share", cost, base)
	}
	multiply(room, 30, a)
	a.costOfMeeting(b)
	b.costOfMeeting(a)
	for _, pair := range [][2]*memHost{{a, b}, {b, a}} {
		if cost := pair[0].costOfMeeting(pair[1]); cost > base+20 {
			t.Errorf("%d bytes, %d before the rooms that both share now", cost, base)
		}
		with := contact{Server: pair[1].server, Peer: pair[1].peer}
		if s, err := pair[0].summary(with, nil); err != nil || len(s.items) != 31 {
			t.Errorf("%d rooms are compared, %v; want 31", len(s.items), err)
		}
	}
}

// TestHostileComparer: who asks about rooms that it made up learns nothing, nor does who asks for more at once than is answered.
func TestHostileComparer(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	a.say(room, a.user("alice"), "hidden")
	secretRoom := a.create("12", "invite", "shared")
	a.say(secretRoom, a.user("alice"), "secret")
	meeting := func(then ...*meetMessage) (answers []*meetMessage, err error) {
		t.Helper()
		opened, err := b.Transport.OpenStream(t.Context(), a.peer, protocolMeet)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		s := meetStream{opened}
		for _, m := range then {
			if err := s.write(m); err != nil {
				return answers, err
			}
			answer, err := s.read(maxFrame)
			if err != nil {
				return answers, err
			}
			answers = append(answers, answer)
		}
		return answers, nil
	}
	hello := &meetMessage{Hello: &meetHello{Nonce: make([]byte, nonceSize)}}
	answers, err := meeting(hello, &meetMessage{Compare: &meetCompare{Ranges: []string{""}}})
	if err != nil || len(answers[1].Compared.Ranges) != 1 {
		t.Fatalf("%+v, %v", answers, err)
	}
	if items := answers[1].Compared.Ranges[0].Items; len(items) != 2*itemSize {
		t.Errorf("%d bytes of items, want those of one room: the other is not shared", len(items))
	}
	secret := meetingSecret(hello.Hello.Nonce, answers[0].News.Nonce)
	for id := range newSummary(secret, []*sharedRoom{{id: secretRoom}}).rooms {
		answers, err = meeting(hello, &meetMessage{Rooms: []meetRoom{{ID: id[:]}, {ID: make([]byte, itemSize)}}})
	}
	if err != nil || len(answers[1].Held) != 2 || answers[1].Held[0].Value != nil || answers[1].Held[0].Have != nil || answers[1].Held[1].Value != nil {
		t.Errorf("rooms that are not shared: %+v, %v", answers[1], err)
	}
	for name, m := range map[string]*meetMessage{
		"too many ranges": {Compare: &meetCompare{Ranges: make([]string, maxRanges+1)}},
		"no range":        {Compare: &meetCompare{}},
		"too many rooms":  {Rooms: make([]meetRoom, roomsAtOnce+1)},
		"a short ID":      {Rooms: []meetRoom{{ID: []byte{1}}}},
		"a long value":    {Rooms: []meetRoom{{ID: make([]byte, itemSize), Value: make([]byte, 99)}}},
		"too much":        {Rooms: []meetRoom{{ID: make([]byte, itemSize), Have: make([]eventgraph.EventID, maxTips+1)}}},
	} {
		if answers, err := meeting(hello, m); err == nil {
			t.Errorf("%s: answered %+v", name, answers[1])
		}
		if answers, err := meeting(m); err == nil {
			t.Errorf("%s, without hello: answered %+v", name, answers[0])
		}
	}
}

// TestGiverWhoDiffersForEver: a giver that claims other values at each meeting, and never gives what it names, costs a bounded number of turns.
func TestGiverWhoDiffersForEver(t *testing.T) {
	t.Parallel()
	a, b, room := givingOnly(t)
	multiply(room, 200, b)
	turns := 0
	a.Transport.Handle(protocolMeet, givingAs(func(m *meetMessage) *meetMessage {
		turns++
		answer := &meetMessage{}
		switch {
		case m.Hello != nil:
			answer.News = &meetNews{Cursor: "1"}
		case m.Compare != nil:
			answer.Compared = &meetCompared{}
			for range m.Compare.Ranges {
				answer.Compared.Ranges = append(answer.Compared.Ranges, meetRange{Split: slices.Repeat([]byte{byte(turns)}, rangeFan*itemSize)})
			}
			if turns > 8 {
				answer.Compared.Ranges = []meetRange{{}}
			}
		case m.Rooms != nil:
			for i := range m.Rooms {
				answer.Held = append(answer.Held, meetRoom{Value: slices.Repeat([]byte{byte(turns)}, len(held{})), Have: []eventgraph.EventID{eventgraph.EventID(fmt.Sprint("$", turns, "-", i))}})
			}
		default:
			answer.Events = &meetEvents{Looked: len(m.Want)}
		}
		return answer
	}))
	if came, err := b.meetOnce(a, nil); came != 0 || err != nil {
		t.Errorf("%d came, %v", came, err)
	}
	t.Logf("%d turns for 201 rooms", turns)
	if turns > maxSummaryTurns+2*201/roomsAtOnce+5 {
		t.Errorf("%d turns", turns)
	}
}

// TestEndlessGiver: news without end, with nothing in them, end the meeting as later, and it does not count as one that came further.
func TestEndlessGiver(t *testing.T) {
	t.Parallel()
	a, b, _ := givingOnly(t)
	n := 0
	a.Transport.Handle(protocolMeet, givingAs(func(*meetMessage) *meetMessage {
		n++
		return &meetMessage{News: &meetNews{Cursor: fmt.Sprint(n), More: true}}
	}))
	if came, err := b.meetOnce(a, nil); came != 0 || !errors.Is(err, errLater) {
		t.Errorf("%d came, %v; want that it ends", came, err)
	}
	if n > maxTurns {
		t.Errorf("%d turns", n)
	}
}
