package federation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// A blocked server gets no answer from us and nothing is asked of it: no request, stream, transaction, meeting or hint goes either way. It
// stays a member of the rooms that it is in. What its users say there still comes from other servers, for a room in which some events
// are missing for us alone would come apart; and what ours say may reach it through others. Only those who govern a room can put
// it out of the room, by a ban or a server ACL.
//
// The block stands in four places: who asks (serve.go, verify.go, asker), what leaves (blockable, doLarge), who is met (peers), on which the sender, meetings,
// hints and records go, and the transport, which keeps no connection to a peer that Refuses names.

// maxRefusedPeers devices of blocked servers are remembered because they have come; who makes more of them is connected, and gets no answer.
const maxRefusedPeers = 4096

// ErrBlocked: the server is blocked here, so nothing is sent to it. It is an ErrUnreachable.
var ErrBlocked = fmt.Errorf("%w: it is blocked here", ErrUnreachable)

// errRefused: it is a blocked server that asks. It gets no answer; the stream is broken off.
var errRefused = errors.New("of a blocked server")

// Block ends all dealings with a server, until Unblock. Errors: *rooms.Refusal if the name is none, or our own; store.ErrTooManyBlocked.
func (f *Federation) Block(ctx context.Context, server eventgraph.ServerName) error {
	if _, err := eventgraph.ParseServerName(string(server)); err != nil {
		return &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: fmt.Sprintf("%q is not a server name: %v", server, err)}
	}
	if server == f.server {
		return &rooms.Refusal{Code: "M_INVALID_PARAM", Reason: "that is this server itself"}
	}
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.Block(server, f.Now().UnixMilli()) })
	if err != nil {
		return err
	}
	f.document(server) // so that its devices are known
	f.peers.block(server)
	f.dropRefused()
	f.Log.Info("server blocked", "server", server)
	return nil
}

// Unblock ends Block: the server is met and sent to again, from where it was left. Error: store.ErrNotFound.
func (f *Federation) Unblock(ctx context.Context, server eventgraph.ServerName) error {
	if _, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.Unblock(server) }); err != nil {
		return err
	}
	for _, peer := range f.peers.unblock(server) {
		if f.RefusalChanged != nil {
			f.RefusalChanged(peer)
		}
	}
	f.Log.Info("server unblocked", "server", server)
	return nil
}

// Blocked lists the blocked servers by name.
func (f *Federation) Blocked() (servers []eventgraph.ServerName, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		return r.Blocked(func(server eventgraph.ServerName, _ int64) (bool, error) {
			servers = append(servers, server)
			return true, nil
		})
	})
	return servers, err
}

// loadBlocked reads what is blocked, before anybody is served.
func (f *Federation) loadBlocked() error {
	servers, err := f.Blocked()
	for _, server := range servers {
		f.peers.block(server)
	}
	return err
}

// block makes the server one that is not met.
func (p *peers) block(server eventgraph.ServerName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blocked[server] = true
	if key := server.PublicKey(); key != nil {
		p.refused[eventgraph.NewPeerID(key)] = server
	}
	if d, ok := p.documents.Peek(server); ok {
		p.refuseDevices(d)
	}
	p.advance()
}

// refuseDevices notes the devices of a blocked server, so that they are known before they say for whom they speak. Only those that have
// signed the document: its certificate could name anybody's. mu is held.
func (p *peers) refuseDevices(d *eventgraph.KeyDocument) {
	if d.Certificate == nil {
		return
	}
	for _, device := range d.Certificate.Devices {
		if consents(d, device.PeerID) {
			p.refused[device.PeerID] = d.ServerName
		}
	}
}

// unblock ends block; the server's connected peers are met anew. It returns those that were refused.
func (p *peers) unblock(server eventgraph.ServerName) (devices []eventgraph.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.blocked, server)
	for peer, of := range p.refused {
		if of == server {
			delete(p.refused, peer)
			devices = append(devices, peer)
		}
	}
	for _, l := range p.links {
		if l.server == server {
			l.since = p.turn + 1
		}
	}
	p.advance()
	return devices
}

// isBlocked says whether nothing is to be had with the server.
func (p *peers) isBlocked(server eventgraph.ServerName) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blocked[server]
}

// refuses says whether the peer is known to be of a blocked server.
func (p *peers) refuses(peer eventgraph.PeerID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, is := p.refused[peer]; is {
		return true
	}
	l := p.links[peer]
	return l != nil && p.blocked[l.server]
}

// Refuses says whether the peer is of a blocked server, for p2ptransport.Config: no connection to it is kept.
func (f *Federation) Refuses(peer eventgraph.PeerID) bool { return f.peers.refuses(peer) }

// dropRefused has the connections of blocked servers closed. A peer whose server is found out when it is connected is remembered, so that it
// is refused when it comes again.
func (f *Federation) dropRefused() {
	if f.RefusalChanged == nil {
		return
	}
	for _, peer := range f.peers.refuseConnected() {
		f.RefusalChanged(peer)
	}
}

// refuseConnected lists the connected peers of blocked servers, and remembers them as their devices.
func (p *peers) refuseConnected() (connected []eventgraph.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for peer, l := range p.links {
		if p.blocked[l.server] && len(p.refused) < maxRefusedPeers {
			p.refused[peer] = l.server
		}
		if _, is := p.refused[peer]; is {
			connected = append(connected, peer)
		}
	}
	return connected
}

// blockable is a Transport over which nothing is said to peers of blocked servers, nor heard from them.
type blockable struct {
	Transport
	peers *peers
}

func (b blockable) Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error) {
	if b.peers.refuses(peer) {
		return nil, ErrBlocked
	}
	return b.Transport.Do(ctx, peer, req)
}

func (b blockable) OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error) {
	if b.peers.refuses(peer) {
		return nil, ErrBlocked
	}
	return b.Transport.OpenStream(ctx, peer, protocol)
}

func (b blockable) Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)) {
	b.Transport.Handle(protocol, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		if b.peers.refuses(peer) {
			stream.Close()
			return
		}
		h(ctx, peer, stream)
	})
}
