package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/p2ptransport"
)

// memoryLimit is the soft limit of the Go heap unless GOMEMLIMIT is set: enough for a busy node, and low enough that the
// collector works harder before a phone kills the process.
const memoryLimit = 192 << 20

// gcPercent replaces Go's 100 unless GOGC is set: on a device memory is dearer than the little time that the collector takes. At 50 a
// fifth less passed between two nodes in a second, at 60 no difference was seen.
const gcPercent = 60

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	s, err := parse(args, os.Environ(), errOut)
	if err != nil {
		return err
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	level := slog.LevelWarn
	if s.verbose {
		level = slog.LevelDebug
	}
	var key *p2ptransport.MeshKey
	if s.meshKey != "" {
		if key, err = readMeshKey(s.meshKey); err != nil {
			return err
		}
	}
	n, err := node.Open(ctx, node.Config{
		Dir: s.data, ClientAddrs: s.clientAddrs.values, P2PAddrs: s.p2pAddrs.values, Peers: s.peers.values, NoMDNS: !s.mdns,
		Registration: clientapi.Registration(s.registration), Terms: s.terms, RoomVersion: eventgraph.RoomVersion(s.roomVersion), NoRateLimits: !s.rateLimits, AppServices: s.appservices.values,
		Relay: s.relay, MeshKey: key, LANOnly: s.lanOnly, URLPreviews: s.urlPreviews, PrivateGateways: s.privateGateways, TURN: s.turn(),
		Media: media.Limits{Upload: int64(s.maxUpload), User: int64(s.userMedia), Local: int64(s.allMedia), Cache: int64(s.mediaCache)},
		Log:   slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		return err
	}
	greet(out, n, s)
	// The watcher ends with the run, and its own context lets it end when Run fails.
	watch, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		n.WatchPeers(watch, func(e p2ptransport.PeerEvent) { announce(out, e) })
	}()
	err = n.Run(ctx)
	stop()
	<-watched
	return errors.Join(err, n.Close())
}

// greet tells a person what is needed to begin.
func greet(out io.Writer, n *node.Node, s *settings) {
	if n.FirstRun() {
		fmt.Fprintf(out, "Welcome to plexus. This device is now a Matrix homeserver.\n\n")
	}
	fmt.Fprintf(out, "Matrix client   enter this as homeserver: %s\n", n.ClientURL())
	if s.registration == string(clientapi.RegistrationToken) {
		fmt.Fprintf(out, "Registration    the client asks for this token: %s\n", n.RegistrationToken())
	}
	if len(s.terms) > 0 && s.registration != string(clientapi.RegistrationClosed) {
		fmt.Fprintf(out, "Terms           to be accepted by whoever registers: %s\n", strings.Join(slices.Sorted(maps.Keys(s.terms)), ", "))
	}
	fmt.Fprintf(out, "Server name     …%s   (whole: %s)\n", n.ServerName().Tail(), n.ServerName())
	if s.meshKey != "" {
		fmt.Fprintf(out, "Private mesh    only nodes with the key in %s\n", s.meshKey)
	}
	if s.lanOnly {
		fmt.Fprintf(out, "LAN only        nothing is sent outside of private address ranges\n")
	}
	dir, err := filepath.Abs(s.data)
	if err != nil {
		dir = s.data
	}
	fmt.Fprintf(out, "Data            %s\n", dir)
	if loss := n.Loss(); loss != "" {
		fmt.Fprintf(out, "Attention       %s\n", loss)
	}
	switch {
	case s.mdns:
		fmt.Fprintf(out, "Peers           looking on the LAN; they are listed here as they are found. Ctrl-C stops.\n\n")
	case len(s.peers.values) > 0:
		fmt.Fprintf(out, "Peers           dialling %d; they are listed here as they connect. Ctrl-C stops.\n\n", len(s.peers.values))
	default:
		fmt.Fprintf(out, "Peers           none is looked for (--mdns=false and no --peer). Ctrl-C stops.\n\n")
	}
}

func announce(out io.Writer, e p2ptransport.PeerEvent) {
	id := string(e.Peer)
	if len(id) > 8 {
		id = id[len(id)-8:]
	}
	if e.Connected {
		fmt.Fprintf(out, "peer …%s connected (%s)\n", id, e.Addr)
	} else {
		fmt.Fprintf(out, "peer …%s gone\n", id)
	}
}
