package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// TestAddressBookIsBounded: per peer and in total, and who was reached longest ago makes room for a new peer, not for a known one.
func TestAddressBookIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	put := func(peer string, addrs ...PeerAddress) {
		t.Helper()
		mustUpdate(t, s, func(tx *Tx) error {
			return tx.PutAddresses(&PeerAddresses{Peer: eventgraph.PeerID(peer), Addrs: addrs})
		})
	}
	held := func() map[eventgraph.PeerID][]PeerAddress {
		t.Helper()
		all := map[eventgraph.PeerID][]PeerAddress{}
		mustView(t, s, func(r *Reader) error {
			return r.Addresses(func(a *PeerAddresses) (bool, error) { all[a.Peer] = a.Addrs; return true, nil })
		})
		return all
	}
	for i := range MaxAddressPeers {
		put(fmt.Sprint("peer ", i), PeerAddress{"/ip4/10.0.0.1/tcp/1", 0}, PeerAddress{"/ip4/10.0.0.2/tcp/1", int64(1000 + i)})
	}
	put("peer 0", PeerAddress{"/ip4/10.0.0.3/tcp/1", 5000})
	if all := held(); len(all) != MaxAddressPeers || !slices.Equal(all["peer 0"], []PeerAddress{{"/ip4/10.0.0.3/tcp/1", 5000}}) {
		t.Fatalf("%d peers, peer 0 at %v", len(all), all["peer 0"])
	}
	put("one more", PeerAddress{"/ip4/10.0.0.4/tcp/1", 1})
	all := held()
	if _, there := all["peer 1"]; len(all) != MaxAddressPeers || there || all["one more"] == nil {
		t.Errorf("%d peers; the one reached longest ago is there: %v", len(all), there)
	}
	many := []PeerAddress{{strings.Repeat("x", maxAddressLength+1), 1}}
	for i := range 2 * MaxAddressesOfPeer {
		many = append(many, PeerAddress{fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", i), 1})
	}
	put("one more", many...)
	if got := held()["one more"]; !slices.Equal(got, many[1:1+MaxAddressesOfPeer]) {
		t.Errorf("of one peer: %v", got)
	}
	put("one more")
	if _, there := held()["one more"]; there {
		t.Error("a peer without addresses is still there")
	}
}

// TestInviteTokens: valid until they expire or are revoked, for a bounded number of peers, and in a bounded number.
func TestInviteTokens(t *testing.T) {
	t.Parallel()
	s := open(t)
	present := func(h TokenHash, peer string, now int64) (got *InviteToken, err error) {
		_, err = s.Update(t.Context(), func(tx *Tx) (err error) {
			got, err = tx.PresentInviteToken(h, eventgraph.PeerID(peer), now)
			return err
		})
		return got, err
	}
	add := func(n byte, created int64) error {
		_, err := s.Update(t.Context(), func(tx *Tx) error {
			return tx.AddInviteToken(&InviteToken{Hash: TokenHash{n}, For: "@a:b", CreatedTS: created, ExpiresTS: created + 100})
		})
		return err
	}
	for i := range MaxInviteTokens {
		if err := add(byte(i), int64(1000+i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(200, 1099); !errors.Is(err, ErrTooManyTokens) {
		t.Errorf("one too many: %v", err)
	}
	if err := add(200, 1100); err != nil { // token 0 has expired
		t.Error(err)
	}
	for i := range MaxTokenHolders {
		if _, err := present(TokenHash{1}, fmt.Sprint("peer ", i), 1050); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := present(TokenHash{1}, "one more", 1050); !errors.Is(err, ErrTokenUsedUp) {
		t.Errorf("one peer too many: %v", err)
	}
	if got, err := present(TokenHash{1}, "peer 3", 1100); err != nil || len(got.Holders) != MaxTokenHolders {
		t.Errorf("the same peer again: %+v, %v", got, err)
	}
	if _, err := present(TokenHash{1}, "peer 3", 1101); !errors.Is(err, ErrNotFound) {
		t.Errorf("expired: %v", err)
	}
	if _, err := present(TokenHash{99}, "peer 3", 1101); !errors.Is(err, ErrNotFound) {
		t.Errorf("never made: %v", err)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteInviteToken(TokenHash{2}) })
	if _, err := present(TokenHash{2}, "peer", 1050); !errors.Is(err, ErrNotFound) {
		t.Errorf("revoked: %v", err)
	}
}
