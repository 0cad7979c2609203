package p2ptransport

import (
	"fmt"
	"net"
	"slices"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func TestBroadcastOf(t *testing.T) {
	t.Parallel()
	for cidr, want := range map[string]string{
		"10.77.0.1/24": "10.77.0.255", "192.168.7.9/20": "192.168.15.255", "10.0.0.1/30": "10.0.0.3",
		"10.0.0.1/31": "<nil>", "10.0.0.1/32": "<nil>", "fe80::1/64": "<nil>",
	} {
		ip, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		if got := broadcastOf(n).String(); got != want {
			t.Errorf("%s: %s, want %s", cidr, got, want)
		}
	}
	if !wasBroadcast(net.IPv4bcast, net.Interface{}) || !wasBroadcast(nil, net.Interface{}) {
		t.Error("a broadcast is taken for something else")
	}
	if wasBroadcast(net.IPv4(10, 77, 0, 1), net.Interface{Flags: net.FlagBroadcast}) {
		t.Error("a packet to one machine is taken for a broadcast")
	}
}

// TestBeaconFits: with however many addresses, sealed or not, a beacon is one packet, and names IPv4 addresses before others.
func TestBeaconFits(t *testing.T) {
	t.Parallel()
	var addrs []ma.Multiaddr
	for i := range mdnsAddrs {
		addrs = append(addrs, ma.StringCast(fmt.Sprintf("/ip6/2001:db8:1111:2222:3333:4444:5555:%x/udp/40001/quic-v1/p2p/%s", 0x1000+i, peerA)))
	}
	addrs = append(addrs, ma.StringCast("/ip4/192.168.100.100/udp/40001/quic-v1/p2p/"+peerA))
	for _, d := range []dialect{dialectOf(nil), dialectOf(NewMeshKey())} {
		msg, err := beaconMessage(d, "abcdefghijklmnopqrstuvwxyz."+d.service, slices.Clone(addrs))
		if err != nil {
			t.Fatal(err)
		}
		_, peers := d.read(msg)
		if len(msg) > beaconSize || len(peers) != 1 || len(peers[0].peer.Addrs) < 4 || peers[0].peer.Addrs[0].String() != "/ip4/192.168.100.100/udp/40001/quic-v1" {
			t.Errorf("%d bytes, read as %+v", len(msg), peers)
		}
	}
	if msg, err := beaconMessage(dialectOf(nil), "x."+mdnsService, nil); msg != nil || err != nil {
		t.Errorf("with no address: %d bytes, %v", len(msg), err)
	}
}
