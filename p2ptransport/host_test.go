package p2ptransport_test

import (
	"crypto/ed25519"
	"flag"
	"os"
	"runtime"
	"strconv"
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
	// Most of these tests wait, for a dead link to be noticed or a dial to fail: more of them at a time than there are processors.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(max(6, runtime.GOMAXPROCS(0))))
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
