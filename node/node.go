// Package node is a whole plexus homeserver: Open composes store, rooms, federation, client API and transport; Run serves; Close ends
// all in the right order. It can be embedded in a Go program.
package node

import (
	"context"
	"log/slog"
	"time"

	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/p2ptransport"
)

// Config of a node. The zero value of optional fields is usable.
type Config struct {
	Dir               string // data directory; required
	ClientAddrs       []string
	P2PAddrs          []string
	Peers             []string
	NoMDNS            bool
	Registration      clientapi.Registration
	RegistrationToken string // tests and embedders; else made at first start and kept
	NoRateLimits      bool
	MemoryBudget      int64 // bytes; 0 = default
	Log               *slog.Logger
	Now               func() time.Time

	// Transport replaces libp2p (memnet, in tests and laboratories).
	Transport func(p2ptransport.Config) (p2ptransport.Transport, error)
}

type Node struct{}

func Open(ctx context.Context, c Config) (*Node, error) { panic("node: skeleton") }
func (n *Node) Run(ctx context.Context) error           { panic("node: skeleton") }
func (n *Node) Close() error                            { panic("node: skeleton") }
