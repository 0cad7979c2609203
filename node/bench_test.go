package node_test

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

// reportPercentiles adds the middle and the slow end of the times of single operations to a benchmark's mean.
func reportPercentiles(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	for name, percent := range map[string]int{"p50-µs": 50, "p95-µs": 95} {
		b.ReportMetric(float64(times[len(times)*percent/100].Nanoseconds())/1e3, name)
	}
}

// BenchmarkSend is PUT /send on one node, one message after the other, over HTTP.
func BenchmarkSend(b *testing.B) {
	n, _ := runNode(b)
	alice := register(b, n, "alice")
	room := alice.create(map[string]any{"preset": "public_chat"})
	var times []time.Duration
	for b.Loop() {
		began := time.Now()
		alice.say(room, "a message of usual length, as people write them")
		times = append(times, time.Since(began))
	}
	reportPercentiles(b, times)
}

// BenchmarkSendToSync is the time from PUT /send until another user's waiting /sync shows the message.
func BenchmarkSendToSync(b *testing.B) {
	b.Run("same-node", func(b *testing.B) {
		n, _ := runNode(b)
		benchmarkSendToSync(b, n, n)
	})
	b.Run("other-node", func(b *testing.B) {
		first, _ := runNode(b)
		second, _ := runNode(b, first.P2PAddrs()...)
		benchmarkSendToSync(b, first, second)
	})
}

func benchmarkSendToSync(b *testing.B, from, to *node.Node) {
	alice, bob := register(b, from, "alice"), register(b, to, "bob")
	room := alice.create(map[string]any{"preset": "public_chat"})
	bob.must("POST", "/join/"+url.PathEscape(string(room))+"?via="+url.QueryEscape(string(from.ServerName())), map[string]any{}, nil)
	since := ""
	sync := func() string {
		var answer struct {
			Next string `json:"next_batch"`
		}
		status, raw := bob.do("GET", "/sync?timeout=30000&set_presence=offline&since="+since, nil)
		if status != 200 {
			b.Errorf("/sync: %d %s", status, raw)
		}
		if err := json.Unmarshal(raw, &answer); err != nil {
			b.Error(err)
		}
		since = answer.Next
		return string(raw)
	}
	sync()
	var times []time.Duration
	for b.Loop() {
		sent := make(chan eventgraph.EventID, 1)
		began := time.Now()
		go func() { sent <- alice.say(room, "a message of usual length, as people write them") }()
		shown := sync()
		for id := <-sent; !strings.Contains(shown, string(id)); shown = sync() {
			if time.Since(began) > 30*time.Second {
				b.Fatal("the message does not arrive")
			}
		}
		times = append(times, time.Since(began))
	}
	reportPercentiles(b, times)
}
