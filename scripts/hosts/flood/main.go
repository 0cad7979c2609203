// Command flood attacks a node that it was told of, as hard as it can, in one of several ways; for the host tests, which measure
// what an honest conversation has left meanwhile. It speaks libp2p and the server-server API by itself, and makes an identity for each
// connection where that is worth more than keeping one.
//
//	flood -peer MULTIADDR[,MULTIADDR…] -server NAME [-room ID] [-user ID] MODE
//
// It goes on until its standard input ends, and then prints what it did as one line of JSON. Whoever runs it bounds its CPU.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Report is what a flood did.
type Report struct {
	Mode    string           `json:"mode"`
	Seconds float64          `json:"seconds"`
	Done    int64            `json:"done"`   // attacks that went through: what one is depends on the mode
	Failed  int64            `json:"failed"` // those refused on the way, or unanswered
	Answers map[string]int64 `json:"answers"`
	Error   string           `json:"error,omitempty"` // one of the failures
}

// target is whom to attack.
type target struct {
	server eventgraph.ServerName
	peer   peer.ID
	quic   ma.Multiaddr
	tcp    ma.Multiaddr
	room   eventgraph.RoomID
	user   eventgraph.UserID // a local user there
}

// attack is one way to do it: prepare once, then step by so many workers as fast as they can.
type attack struct {
	workers int
	prepare func(context.Context, *flood) error
	step    func(ctx context.Context, f *flood, worker int) error
}

// flood is one run of one attack.
type flood struct {
	target
	done, failed atomic.Int64
	serial       atomic.Int64 // of whatever must differ

	mu      sync.Mutex
	answers map[string]int64
	failure string

	member *member // of the modes that are a room member's

	perWorker []*session // where a worker keeps a connection for a while
	used      []int
}

func (f *flood) next() int64 { return f.serial.Add(1) }

// count notes an answer.
func (f *flood) count(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[what]++
}

func (f *flood) fail(err error) {
	f.failed.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failure = err.Error()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

func run() error {
	addrs := flag.String("peer", "", "`multiaddrs` of the victim, with /p2p/ID, separated by commas")
	server := flag.String("server", "", "server `name` of the victim")
	room := flag.String("room", "", "`ID` of a public room that it is in")
	user := flag.String("user", "", "`ID` of one of its users")
	flag.Parse()
	all := attacks()
	mode := flag.Arg(0)
	a, ok := all[mode]
	if !ok {
		return fmt.Errorf("no mode %q; there are %s", mode, strings.Join(slices.Sorted(maps.Keys(all)), " "))
	}
	f := &flood{answers: map[string]int64{}, perWorker: make([]*session, a.workers), used: make([]int, a.workers)}
	f.server, f.room, f.user = eventgraph.ServerName(*server), eventgraph.RoomID(*room), eventgraph.UserID(*user)
	for s := range strings.SplitSeq(*addrs, ",") {
		addr, err := ma.NewMultiaddr(s)
		if err != nil {
			return err
		}
		plain, id := peer.SplitAddr(addr)
		f.peer = id
		if _, err := plain.ValueForProtocol(ma.P_QUIC_V1); err == nil && f.quic == nil {
			f.quic = plain
		} else if _, err := plain.ValueForProtocol(ma.P_TCP); err == nil && f.tcp == nil {
			if _, err := plain.ValueForProtocol(ma.P_WS); err != nil {
				f.tcp = plain
			}
		}
	}
	if f.quic == nil || f.tcp == nil {
		return errors.New("-peer needs an address for QUIC and one for TCP")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with the input, and the process soon after
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if a.prepare != nil {
		if err := a.prepare(ctx, f); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	fmt.Println("ready")
	began := time.Now()
	f.work(ctx, a)
	return json.NewEncoder(os.Stdout).Encode(Report{Mode: mode, Seconds: time.Since(began).Seconds(),
		Done: f.done.Load(), Failed: f.failed.Load(), Answers: f.answers, Error: f.failure})
}

// stepTimeout is how long one step may take: who is kept waiting has better things to do.
const stepTimeout = 10 * time.Second

// pauseAfterFailure keeps a worker whose steps fail at once from attacking nobody but itself.
const pauseAfterFailure = 2 * time.Millisecond

func (f *flood) work(ctx context.Context, a attack) {
	var workers sync.WaitGroup
	for i := range a.workers {
		workers.Go(func() {
			for ctx.Err() == nil {
				step, cancel := context.WithTimeout(ctx, stepTimeout)
				err := a.step(step, f, i)
				cancel()
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					f.done.Add(1)
					continue
				}
				f.fail(err)
				select {
				case <-time.After(pauseAfterFailure):
				case <-ctx.Done():
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { workers.Wait(); close(ended) }()
	<-ctx.Done()
	select { // a worker may be stuck in a handshake
	case <-ended:
	case <-time.After(time.Second):
	}
}

func attacks() map[string]attack {
	all := strangerAttacks()
	maps.Copy(all, memberAttacks())
	return all
}
