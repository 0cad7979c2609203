package node

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/store"
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

func (n network) Record(peer eventgraph.PeerID) ([]byte, uint64) {
	return n.t.Record(p2ptransport.PeerID(peer))
}

func (n network) RecordsChanged() <-chan struct{} { return n.t.RecordsChanged() }

func (n network) AddRecord(peer eventgraph.PeerID, record []byte) error {
	return n.t.AddRecord(p2ptransport.PeerID(peer), record)
}

func (n network) Subscribe(topic string, deliver func(from eventgraph.PeerID, payload []byte) bool) (cancel func(), err error) {
	return n.t.Subscribe(topic, func(from p2ptransport.PeerID, payload []byte) bool { return deliver(eventgraph.PeerID(from), payload) })
}

func (n network) Publish(ctx context.Context, topic string, payload []byte) error {
	return n.t.Publish(ctx, topic, payload)
}

func (n network) Subscribers(topic string) (peers []eventgraph.PeerID) {
	for _, p := range n.t.Subscribers(topic) {
		peers = append(peers, eventgraph.PeerID(p))
	}
	return peers
}

func (n network) SubscribersChanged() <-chan struct{} { return n.t.SubscribersChanged() }

func (n network) GossipChanged(peer eventgraph.PeerID) { n.t.GossipChanged(p2ptransport.PeerID(peer)) }

// addressBook keeps the transport's address book in the store.
type addressBook struct{ s *store.Store }

func (b addressBook) Load() (entries []p2ptransport.BookEntry, err error) {
	err = b.s.View(func(r *store.Reader) error {
		return r.Addresses(func(a *store.PeerAddresses) (bool, error) {
			e := p2ptransport.BookEntry{Peer: p2ptransport.PeerID(a.Peer)}
			for _, addr := range a.Addrs {
				at := p2ptransport.BookAddr{Addr: addr.Addr}
				if addr.ReachedTS > 0 {
					at.Reached = time.UnixMilli(addr.ReachedTS)
				}
				e.Addrs = append(e.Addrs, at)
			}
			entries = append(entries, e)
			return true, nil
		})
	})
	return entries, err
}

func (b addressBook) Save(ctx context.Context, changed []p2ptransport.BookEntry) error {
	_, err := b.s.Update(ctx, func(tx *store.Tx) error {
		for _, e := range changed {
			a := &store.PeerAddresses{Peer: eventgraph.PeerID(e.Peer)}
			for _, addr := range e.Addrs {
				at := store.PeerAddress{Addr: addr.Addr}
				if !addr.Reached.IsZero() {
					at.ReachedTS = addr.Reached.UnixMilli()
				}
				a.Addrs = append(a.Addrs, at)
			}
			if err := tx.PutAddresses(a); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}
