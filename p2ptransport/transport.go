// Package p2ptransport carries opaque bytes between proven peers over libp2p: a host with the device
// key, discovery, dialling, and request streams. It knows neither rooms nor a database; whom to serve and
// where peers were last seen it asks through small interfaces.
//
// Beside requests and streams there is gossip of payloads to all that take part in a topic (gossip.go).
package p2ptransport

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/http"
)

// PeerID is libp2p's name of a device key, in base58 ("12D3KooW…").
type PeerID string

// ProtocolFederation carries the Matrix server-server API as plain HTTP/1.1 (design.md §6).
const ProtocolFederation = "/matrix/federation/1"

var (
	// ErrUnreachable: no connection and no address that answers.
	ErrUnreachable = errors.New("peer cannot be reached")
	// ErrNotHere: the peer does not speak that protocol.
	ErrNotHere = errors.New("peer does not speak that protocol")
	ErrClosed  = errors.New("transport is closed")
)

// Config of New. The zero value of optional fields is usable.
type Config struct {
	Key         ed25519.PrivateKey // device key
	Listen      []string           // multiaddrs; default QUIC and TCP on all interfaces, IPv4 and IPv6
	StaticPeers []string           // multiaddrs with /p2p/ID, dialled and kept
	MDNS        bool
	Handler     http.Handler // serves ProtocolFederation; the request's context carries the peer (PeerFrom)
	// Friend says whether a peer that opens a stream is one that need not wait behind strangers, who share a part of the
	// server's bounds (design.md §7). It must not block. nil: all are friends.
	Friend func(PeerID) bool
	// Gossip says whether a peer takes part in gossip, for example because it shares a large room: to others no topic is announced, and
	// nothing that they gossip is looked at. It must not block; GossipChanged has it asked again. nil: nobody takes part.
	Gossip func(PeerID) bool
	// Refuse names the peers to which no connection is kept: they are not dialled, and are disconnected when they come. It must not block;
	// RefusalChanged has it asked again. nil: none.
	Refuse func(PeerID) bool
	// AddressBook keeps where friends and static peers were reached; nil: nothing outlives the host.
	AddressBook AddressBook
	// Relay makes this node carry connections between friends that cannot reach each other; see relay.go for how much. Its own
	// use of friends' relays does not depend on it.
	Relay bool
	// Guest says whether a peer that is no friend may nevertheless reach one through this relay. It must not block. nil: none may.
	Guest func(from, to PeerID) bool
	// MeshKey makes the node part of a private mesh: only those that hold the key are talked to, over TCP and WebSocket.
	MeshKey *MeshKey
	// LANOnly keeps the node from sending any packet outside of private address ranges; see lanonly.go.
	LANOnly bool
	Log     *slog.Logger
}

// Transport is what both implementations offer: Host over libp2p, and memnet's.
type Transport interface {
	ID() PeerID
	Addrs() []string // multiaddrs with /p2p/ID that others can dial
	// Do sends an HTTP request to the peer over ProtocolFederation on a kept-alive stream. The URL's scheme and host are ignored; its
	// path goes out exactly as given (Opaque or RawPath). ErrUnreachable, ErrNotHere, or ctx's error.
	Do(ctx context.Context, peer PeerID, req *http.Request) (*http.Response, error)
	// OpenStream opens a stream of another protocol; both ends close it.
	OpenStream(ctx context.Context, peer PeerID, protocol string) (net.Conn, error)
	// Handle serves streams of a protocol; each call of h runs in a goroutine of the transport, and Close waits for it. h closes the stream.
	Handle(protocol string, h func(ctx context.Context, peer PeerID, stream net.Conn))
	Peers() []Peer
	// Watch calls f for each connect and disconnect, from one goroutine, until ctx ends; f first gets the peers connected now. A connected
	// peer that is now reached directly and was through relays only, or the other way, is told again as connected.
	Watch(ctx context.Context, f func(PeerEvent))
	AddPeer(ctx context.Context, multiaddr string) error // dial now, and keep as a static peer
	AddAddrs(peer PeerID, addrs []string)                // addresses to try when it is needed
	// Record is the newest signed peer record held of a peer that was connected or that AddRecord brought, for handing on, and
	// its seq; nil and 0 if there is none. The bytes are not to be changed. RecordsChanged is closed when one is taken in after the call.
	Record(peer PeerID) (record []byte, seq uint64)
	RecordsChanged() <-chan struct{}
	// AddRecord takes in a record that another peer handed on; if it is newer than the one held, the peer is dialled there.
	// ErrRecord, ErrOldRecord.
	AddRecord(peer PeerID, record []byte) error

	// Subscribe takes part in a gossip topic, of at most MaxGossipTopic bytes, until cancel is called. deliver gets each payload of others
	// once, from one goroutine, in no certain order; from is the neighbour that it came through, not who made it. It must not block
	// nor change or keep the bytes, and answers whether the payload is to be forwarded; once refused it comes not again for two minutes.
	// deliver may still be called once when cancel has returned. What was published before comes to nobody.
	Subscribe(topic string, deliver func(from PeerID, payload []byte) (forward bool)) (cancel func(), err error)
	// Publish sends a payload of at most MaxGossipPayload bytes to a topic that is subscribed. nil: some neighbour is being sent it, and
	// those pass it on, with no certainty that it reaches all subscribers. ErrPayloadTooLarge, ErrNotSubscribed, ErrNobody.
	Publish(ctx context.Context, topic string, payload []byte) error
	// Subscribers are the connected peers that have announced a topic that is subscribed here, ordered by ID.
	Subscribers(topic string) []PeerID
	// SubscribersChanged is closed when the Subscribers of any topic change after the call.
	SubscribersChanged() <-chan struct{}
	// GossipChanged has Config.Gossip asked again about a peer.
	GossipChanged(peer PeerID)

	// RefusalChanged has Config.Refuse asked again about a peer: if it is refused its connections are closed, else it is dialled soon.
	RefusalChanged(peer PeerID)

	Close() error
}

// Peer is a connected peer.
type Peer struct {
	ID    PeerID
	Addr  string // remote multiaddr of the best connection
	Relay bool
}

// PeerEvent is a connect or disconnect, or that a connected peer is reached otherwise.
type PeerEvent struct {
	Peer      PeerID
	Connected bool
	Addr      string
	Relay     bool // through relays only
}

type peerKey struct{}

// PeerFrom is the proven peer of a request that Handler serves.
func PeerFrom(ctx context.Context) (PeerID, bool) {
	p, ok := ctx.Value(peerKey{}).(PeerID)
	return p, ok
}

// WithPeer puts the proven peer into a request's context; for implementations of Transport.
func WithPeer(ctx context.Context, p PeerID) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}
