package p2ptransport_test

import (
	"crypto/ed25519"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/internal/transporttest"
)

func TestMain(m *testing.M) {
	if os.Getenv(nodeEnv) != "" {
		_, args, _ := strings.Cut(strings.Join(os.Args, " "), " -- ")
		runNode(args)
		return
	}
	goleak.VerifyTestMain(m)
}

func keyFromSeed(seed []byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(seed) }

var listens = map[string][]string{
	"QUIC":      {"/ip4/127.0.0.1/udp/0/quic-v1"},
	"TCP":       {"/ip4/127.0.0.1/tcp/0"},
	"WebSocket": {"/ip4/127.0.0.1/tcp/0/ws"},
}

func TestTransport(t *testing.T) {
	for name, listen := range listens {
		t.Run(name, func(t *testing.T) {
			transporttest.Run(t, func(t *testing.T) transporttest.Make {
				return func(c p2ptransport.Config) (p2ptransport.Transport, error) {
					c.Listen = listen
					return p2ptransport.New(c)
				}
			})
		})
	}
}
