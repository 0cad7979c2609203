package eventgraph_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// BenchmarkRatios prints what is done to each event as multiples of one ed25519 verification, of a message as long as that
// which is signed, and of one SHA-256 of 1 KiB. The three are measured in turns of a fraction of a millisecond, and what is
// printed is the median over the turns: so the ratios hold on a machine that has other work too. ns/op, B/op and allocs/op
// are of the subject alone.
func BenchmarkRatios(b *testing.B) {
	small, large := newBenchRoom(b, 5), newBenchRoom(b, 500)
	message := small.message
	for _, subject := range []struct {
		name string
		run  func() error
	}{
		{"Parse", func() error { _, err := eventgraph.ParseEvent("12", message.Raw()); return err }},
		{"ParseAndVerify", func() error {
			e, err := eventgraph.ParseEvent("12", message.Raw())
			if err != nil {
				return err
			}
			return e.VerifySignatures(small)
		}},
		{"ParseUnsortedWithUnsigned", func() error { _, err := eventgraph.ParseEvent("12", small.unsorted); return err }},
		{"ParseIndentedWithUnsigned", func() error { _, err := eventgraph.ParseEvent("12", small.indented); return err }},
		{"Load", func() error { _, err := eventgraph.LoadEvent("12", message.ID(), message.Raw()); return err }},
		{"Redact", func() error { message.Redact(); return nil }},
		{"Build", func() error { _, err := eventgraph.Build("12", small.draft, small.key); return err }},
		{"Check/message", small.check(small.message)},
		{"Check/state", small.check(small.topic)},
		{"Check/join", small.check(small.join)},
		{"Check/message/500users", large.check(large.message)},
		{"Check/powerLevels/500users", large.check(large.levels)},
		{"CheckAuthEvents/message", small.checkAuthEvents(small.message)},
		{"CheckAuthEvents/state", small.checkAuthEvents(small.topic)},
		{"CheckAuthEvents/join", small.checkAuthEvents(small.join)},
		{"CheckAuthEvents/message/500users", large.checkAuthEvents(large.message)},
	} {
		b.Run(subject.name, func(b *testing.B) { ratios(b, small, subject.run) })
	}
}

// ratios measures one subject.
func ratios(b *testing.B, r *benchRoom, run func() error) {
	const turn = 300 * time.Microsecond
	public := r.key.Private.Public().(ed25519.PublicKey)
	signed := []byte(strings.Repeat("x", signedLen(r.message)))
	signature := ed25519.Sign(r.key.Private, signed)
	var block [1024]byte
	works := [3]func(){
		func() {
			if err := run(); err != nil {
				b.Fatal(err)
			}
		},
		func() {
			if !ed25519.Verify(public, signed, signature) {
				b.Fatal("the floor does not verify")
			}
		},
		func() { sha256.Sum256(block[:]) },
	}
	var times [3]int // a turn has
	for i, work := range works {
		work()
		times[i] = 1
		for took(work, times[i]) < turn {
			times[i] *= 2
		}
	}
	allocs, bytes := allocated(works[0], 1000)

	var own, verifications, hashes []float64
	for b.Loop() {
		var per [3]float64
		for i, work := range works {
			per[i] = float64(took(work, times[i]).Nanoseconds()) / float64(times[i])
		}
		own, verifications, hashes = append(own, per[0]), append(verifications, per[0]/per[1]), append(hashes, per[0]/per[2])
	}
	b.ReportMetric(median(own), "ns/op")
	b.ReportMetric(median(verifications), "verifications")
	b.ReportMetric(median(hashes), "sha256s")
	b.ReportMetric(allocs, "allocs/op")
	b.ReportMetric(bytes, "B/op")
}

func took(work func(), times int) time.Duration {
	start := time.Now()
	for range times {
		work()
	}
	return time.Since(start)
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// allocated tells allocations and bytes of one run of work.
func allocated(work func(), times int) (allocs, bytes float64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		work()
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / uint64(times)), float64((after.TotalAlloc - before.TotalAlloc) / uint64(times))
}

// signedLen is how long the message is that the signature of an m.room.message covers.
func signedLen(e *eventgraph.Event) int {
	var signatures struct{ Signatures json.RawMessage }
	if err := json.Unmarshal(e.Raw(), &signatures); err != nil {
		panic(err)
	}
	return len(e.Redact().Raw()) - len(`"signatures":,`) - len(signatures.Signatures)
}

// benchRoom is a room of version 12: its state, and events that it allows. It is the KeyRing and the State too.
type benchRoom struct {
	key                            eventgraph.SigningKey
	state                          map[eventgraph.StateTuple]*eventgraph.Event
	create                         *eventgraph.Event
	message, topic, join, levels   *eventgraph.Event
	draft                          eventgraph.Draft // of the message
	indented, unsorted             []byte           // the message, as JSON that is far from canonical, and as servers send it
	messages                       int
	alice, bob                     eventgraph.UserID
	powerID, aliceID, bobID, rules eventgraph.EventID
}

func (r *benchRoom) Key(eventgraph.ServerName, eventgraph.KeyID, int64, bool) (ed25519.PublicKey, error) {
	return r.key.Private.Public().(ed25519.PublicKey), nil
}

func (r *benchRoom) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) { return r.state[t], nil }

func (r *benchRoom) check(e *eventgraph.Event) func() error {
	return func() error { return auth.Check(e, r) }
}

func (r *benchRoom) checkAuthEvents(e *eventgraph.Event) func() error {
	given := []*eventgraph.Event{r.create}
	for _, s := range r.state {
		if slices.Contains(e.AuthEvents(), s.ID()) {
			given = append(given, s)
		}
	}
	return func() error { return auth.CheckAuthEvents(e, given, func(eventgraph.EventID) bool { return false }) }
}

// newBenchRoom has power levels for so many users.
func newBenchRoom(b testing.TB, users int) *benchRoom {
	private := ed25519.NewKeyFromSeed([]byte("0123456789abcdef0123456789abcdef"))
	public := private.Public().(ed25519.PublicKey)
	r := &benchRoom{
		key:   eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private},
		state: map[eventgraph.StateTuple]*eventgraph.Event{},
	}
	r.alice, r.bob = eventgraph.UserID("@alice:"+string(r.key.Server)), eventgraph.UserID("@bob:"+string(r.key.Server))
	r.create = r.build(b, "m.room.create", "", r.alice, `{"room_version":"12"}`)
	r.aliceID = r.build(b, "m.room.member", string(r.alice), r.alice, `{"membership":"join"}`, r.create.ID()).ID()
	r.powerID = r.build(b, "m.room.power_levels", "", r.alice, r.levelsContent(users, 50), r.aliceID).ID()
	r.rules = r.build(b, "m.room.join_rules", "", r.alice, `{"join_rule":"public"}`, r.aliceID, r.powerID).ID()
	r.bobID = r.build(b, "m.room.member", string(r.bob), r.bob, `{"membership":"join"}`, r.rules, r.powerID).ID()

	r.topic = r.keep(r.build(b, "m.room.topic", "", r.bob, `{"topic":"of the benchmark"}`, r.powerID, r.bobID))
	r.message = r.newMessage(b)
	carol := "@carol:" + string(r.key.Server)
	r.join = r.keep(r.build(b, "m.room.member", carol, eventgraph.UserID(carol), `{"membership":"join"}`, r.powerID, r.rules))
	power := r.state[eventgraph.StateTuple{Type: "m.room.power_levels"}]
	r.levels = r.build(b, "m.room.power_levels", "", r.alice, r.levelsContent(users, 51), r.aliceID, r.powerID)
	r.keep(power)

	var indented any
	if err := json.Unmarshal(r.message.Raw(), &indented); err != nil {
		b.Fatal(err)
	}
	indented.(map[string]any)["unsigned"] = map[string]any{"age": 1.5}
	members, err := canonicaljson.Split(r.message.Raw())
	if err != nil || len(members)%3 == 0 {
		b.Fatal(len(members), err)
	}
	r.unsorted = []byte(`{"unsigned":{"age":5}`)
	for i := range members {
		m := members[i*3%len(members)]
		r.unsorted = fmt.Appendf(r.unsorted, `,"%s":%s`, m.Key, m.Value)
	}
	r.unsorted = append(r.unsorted, '}')
	if r.indented, err = json.MarshalIndent(indented, "", "  "); err != nil {
		b.Fatal(err)
	}
	return r
}

// levelsContent gives levels to bob and to others until there are so many users.
func (r *benchRoom) levelsContent(users int, level int) string {
	var s strings.Builder
	fmt.Fprintf(&s, `{"events":{"m.room.name":50,"m.room.power_levels":100},"users_default":0,"users":{"%s":50`, r.bob)
	for i := range users - 1 {
		fmt.Fprintf(&s, `,"@member%d:%s":%d`, i, r.key.Server, level)
	}
	return s.String() + `}}`
}

// newMessage is a message of bob of 1 KiB, other than those before.
func (r *benchRoom) newMessage(b testing.TB) *eventgraph.Event {
	const size = 1024
	r.messages++
	r.draft = eventgraph.Draft{
		RoomID: r.create.RoomID(), Type: "m.room.message", Sender: r.bob, Depth: 1_000_000, OriginServerTS: 1_700_000_000_000 + int64(r.messages),
		PrevEvents: []eventgraph.EventID{r.topic.ID()}, AuthEvents: []eventgraph.EventID{r.powerID, r.bobID},
	}
	for text := ""; ; text += "x" {
		content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": "What is said here is of no importance. " + text})
		if err != nil {
			b.Fatal(err)
		}
		r.draft.Content = content
		e, err := eventgraph.Build("12", r.draft, r.key)
		if err != nil {
			b.Fatal(err)
		}
		if n := size - len(e.Raw()); n <= 0 {
			return e
		} else {
			text = strings.Repeat("x", n-1)
		}
	}
}

// build makes a state event and puts it into the state.
func (r *benchRoom) build(b testing.TB, eventType, stateKey string, sender eventgraph.UserID, content string, authEvents ...eventgraph.EventID) *eventgraph.Event {
	d := eventgraph.Draft{Type: eventType, StateKey: &stateKey, Sender: sender, Content: json.RawMessage(content), Depth: 1, OriginServerTS: 1_700_000_000_000}
	if r.create != nil {
		d.RoomID, d.PrevEvents = r.create.RoomID(), []eventgraph.EventID{r.create.ID()}
		d.AuthEvents = slices.DeleteFunc(authEvents, func(id eventgraph.EventID) bool { return id == r.create.ID() })
	}
	e, err := eventgraph.Build("12", d, r.key)
	if err != nil {
		b.Fatal(err)
	}
	return r.keep(e)
}

func (r *benchRoom) keep(e *eventgraph.Event) *eventgraph.Event {
	t, _ := e.Tuple()
	r.state[t] = e
	return e
}

// BenchmarkMemory holds events of 1 KiB as they come from a peer and as they come from the disk, and tells the bytes that
// one takes, all that it refers to included.
func BenchmarkMemory(b *testing.B) {
	r := newBenchRoom(b, 5)
	const n = 500
	raws := make([][]byte, n)
	ids := make([]eventgraph.EventID, n)
	for i := range raws {
		e := r.newMessage(b)
		raws[i], ids[i] = append([]byte(" "), e.Raw()...), e.ID()
	}
	for name, make := range map[string]func(i int) (*eventgraph.Event, error){
		"Parsed": func(i int) (*eventgraph.Event, error) { return eventgraph.ParseEvent("12", raws[i]) },
		"Loaded": func(i int) (*eventgraph.Event, error) {
			return eventgraph.LoadEvent("12", ids[i], slices.Clone(raws[i][1:]))
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				held := [n]*eventgraph.Event{}
				before := heap()
				for i := range held {
					e, err := make(i)
					if err != nil {
						b.Fatal(err)
					}
					held[i] = e
				}
				b.ReportMetric(float64(heap()-before)/n, "B/event")
				runtime.KeepAlive(held)
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
