package rooms

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crypto/ed25519"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// BenchmarkSend sends messages to one room on a real disk, one after the other and 16 at a time.
func BenchmarkSend(b *testing.B) {
	for _, senders := range []int{1, 16} {
		b.Run(fmt.Sprintf("senders=%d", senders), func(b *testing.B) {
			db, err := store.Open(b.TempDir(), store.Options{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			public, private, err := ed25519.GenerateKey(nil)
			if err != nil {
				b.Fatal(err)
			}
			key := eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private}
			r := New(Config{Store: db, Key: key, Now: time.Now})
			defer r.Close()
			alice := eventgraph.UserID("@alice:" + string(key.Server))
			room, err := r.Create(context.Background(), CreateRequest{Creator: alice, Then: preset("12", alice)})
			if err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			var n atomic.Int64
			var wait sync.WaitGroup
			for range senders {
				wait.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						_, err := r.Send(context.Background(), Draft{Room: room, Sender: alice, Type: "m.room.message", Content: text(fmt.Sprint("message ", i))})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wait.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkEnter takes in a room of 1,000 members from the answer of send_join.
func BenchmarkEnter(b *testing.B) {
	a := newServer(b, "a")
	alice := a.user("alice")
	room := a.create("12", alice)
	err := a.inTurn(context.Background(), room, func(run *run) error {
		for i := range 1000 {
			user := a.user(fmt.Sprintf("user%d", i))
			key := string(user)
			_, err := run.send(Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`)})
			if err == nil && run.size > maxRunBytes {
				err = run.commit()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		joiner := newServer(b, "b", a)
		proto, version, err := a.Template(context.Background(), room, joiner.user("bob"), "join")
		if err != nil {
			b.Fatal(err)
		}
		join, err := eventgraph.Finish(version, proto, joiner.now.UnixMilli(), joiner.key)
		if err != nil {
			b.Fatal(err)
		}
		state, chain := a.stateAndChain(room, a.record(room).State)
		b.StartTimer()
		if err := joiner.takeJoin(join, state, chain); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMaySeeServer asks for each event of a timeline in which members come, as backfill does.
func BenchmarkMaySeeServer(b *testing.B) {
	a := newServer(b, "a")
	other := newServer(b, "b", a)
	alice := a.user("alice")
	room := a.create("12", alice)
	other.join(a, room, other.user("bob"))
	var events []*store.StoredEvent
	for i := range 200 {
		user := a.user(fmt.Sprintf("user%d", i))
		a.setState(room, user, "m.room.member", string(user), `{"membership":"join"}`)
		events = append(events, a.event(a.message(room, user, "hello")))
	}
	for b.Loop() {
		for _, e := range events {
			if may, err := a.MaySeeServer(other.Server(), e); !may || err != nil {
				b.Fatal(may, err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(events)), "µs/event")
}

// BenchmarkVerifyAll checks the signatures of a run of events, as AcceptAll does; with -cpu 1,2,… it shows what more cores give.
// Measured in turns, in the median: wall time per event as a multiple of one bare ed25519 verification on one core
// (verifications/event), and as a multiple of what bare verifications take that are spread over the same cores (of-bare): where
// other work holds the cores, that still tells what is lost to the spreading.
func BenchmarkVerifyAll(b *testing.B) {
	const n, floors = 200, 50
	a := newServer(b, "a")
	other := newServer(b, "b", a)
	alice := a.user("alice")
	room := a.create("12", alice)
	tip := a.record(room).Forward
	events := make([]*eventgraph.Event, n)
	for i := range events {
		e, err := eventgraph.Build("12", eventgraph.Draft{
			RoomID: room, Sender: alice, Type: "m.room.message", Content: text(fmt.Sprintf("%0500d", i)),
			PrevEvents: tip, AuthEvents: tip, Depth: 10, OriginServerTS: a.now.UnixMilli(),
		}, a.key)
		if err != nil {
			b.Fatal(err)
		}
		events[i] = e
	}
	public, message := a.key.Private.Public().(ed25519.PublicKey), make([]byte, 700)
	signature := ed25519.Sign(a.key.Private, message)
	bare := func(times int) {
		for range times {
			if !ed25519.Verify(public, message, signature) {
				b.Error("the floor does not verify")
			}
		}
	}
	var ratios, ofBare, times []float64
	for b.Loop() {
		start := time.Now()
		bare(floors)
		floor := float64(time.Since(start)) / floors
		start = time.Now()
		var wait sync.WaitGroup
		cores := runtime.GOMAXPROCS(0)
		for range cores {
			wait.Go(func() { bare(n / cores) })
		}
		wait.Wait()
		spread := float64(time.Since(start)) / n
		start = time.Now()
		found, err := other.verifyAll(context.Background(), events)
		if err != nil {
			b.Fatal(err)
		}
		each := float64(time.Since(start)) / n
		for _, err := range found {
			if err != nil {
				b.Fatal(err)
			}
		}
		ratios, ofBare, times = append(ratios, each/floor), append(ofBare, each/spread), append(times, each)
	}
	for unit, list := range map[string][]float64{"verifications/event": ratios, "of-bare": ofBare, "ns/event": times} {
		slices.Sort(list)
		b.ReportMetric(list[len(list)/2], unit)
	}
}
