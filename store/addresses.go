package store

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	// MaxAddressPeers is how many peers the address book holds; the one reached longest ago makes room. A person's rooms have some
	// hundred devices that were ever met, and at a start each is dialled.
	MaxAddressPeers = 512
	// MaxAddressesOfPeer is how many addresses of one peer it holds: two networks, QUIC and TCP, IPv4 and IPv6.
	MaxAddressesOfPeer = 8
	// maxAddressLength is beyond any multiaddr that a transport makes.
	maxAddressLength = 512
)

// PeerAddresses is where a peer was reached; the address book holds one for each peer.
type PeerAddresses struct {
	Peer  eventgraph.PeerID `json:"-"`
	Addrs []PeerAddress     `json:"addrs"` // the best first
}

// PeerAddress is a multiaddr without /p2p/ID. ReachedTS is when the peer was last reached there, in ms; 0 if it only said so.
type PeerAddress struct {
	Addr      string `json:"addr"`
	ReachedTS int64  `json:"reached_ts,omitempty"`
}

// reached is when the peer was last reached anywhere.
func (a *PeerAddresses) reached() (last int64) {
	for _, addr := range a.Addrs {
		last = max(last, addr.ReachedTS)
	}
	return last
}

// Addresses calls f for each entry of the address book, by peer ID.
func (r *Reader) Addresses(f func(*PeerAddresses) (bool, error)) error {
	return r.scan(key(tableAddress), nil, false, func(k, v []byte) (bool, error) {
		a := &PeerAddresses{Peer: eventgraph.PeerID(parts(k).str())}
		if err := json.Unmarshal(v, a); err != nil {
			return false, fmt.Errorf("addresses of %s in the store: %w", a.Peer, err)
		}
		return f(a)
	})
}

// PutAddresses replaces what the address book holds of a peer; no addresses: it forgets the peer. Beyond MaxAddressPeers the peer reached
// longest ago goes.
func (tx *Tx) PutAddresses(a *PeerAddresses) error {
	k := key(tableAddress).str(string(a.Peer))
	if len(a.Addrs) == 0 {
		return tx.delete(k)
	}
	kept := PeerAddresses{}
	for _, addr := range a.Addrs {
		if len(addr.Addr) <= maxAddressLength && len(kept.Addrs) < MaxAddressesOfPeer {
			kept.Addrs = append(kept.Addrs, addr)
		}
	}
	if held, err := tx.has(k); err != nil || held {
		return errors.Join(err, tx.putJSON(k, kept))
	}
	count, oldest := 0, (*PeerAddresses)(nil)
	err := tx.Addresses(func(other *PeerAddresses) (bool, error) {
		if count++; oldest == nil || other.reached() < oldest.reached() {
			oldest = other
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if count >= MaxAddressPeers {
		if err := tx.delete(key(tableAddress).str(string(oldest.Peer))); err != nil {
			return err
		}
	}
	return tx.putJSON(k, kept)
}
