package node

import (
	"context"
	"io"
	"net"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
)

// network gives federation the transport in federation's own words.
type network struct{ t p2ptransport.Transport }

func (n network) Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error) {
	return n.t.Do(ctx, p2ptransport.PeerID(peer), req)
}

func (n network) OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error) {
	return n.t.OpenStream(ctx, p2ptransport.PeerID(peer), protocol)
}

func (n network) Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)) {
	n.t.Handle(protocol, func(ctx context.Context, peer p2ptransport.PeerID, stream net.Conn) {
		h(ctx, eventgraph.PeerID(peer), stream)
	})
}

func (n network) Watch(ctx context.Context, f func(peer eventgraph.PeerID, connected bool)) {
	n.t.Watch(ctx, func(e p2ptransport.PeerEvent) { f(eventgraph.PeerID(e.Peer), e.Connected) })
}
