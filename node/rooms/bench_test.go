package rooms

import (
	"context"
	"fmt"
	"log/slog"
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
