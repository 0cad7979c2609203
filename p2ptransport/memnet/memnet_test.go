package memnet_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/internal/transporttest"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTransport(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Make {
		n := memnet.New()
		return func(c p2ptransport.Config) (p2ptransport.Transport, error) { return n.Node(c) }
	})
}
