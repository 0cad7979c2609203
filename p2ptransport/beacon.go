package p2ptransport

import (
	"net"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/ipv4"
)

// Some access points and switches pass no multicast. So what mDNS announces is sent as an IPv4 broadcast too, to a port of its own:
// the same message, in the same dialect, read by the same code. It asks for no answer. Who hears a peer dials it, and that proves
// who it is; a false beacon costs a dial, of those that the keeper makes last.

const (
	// beaconPort is in the user range (RFC 6335) and assigned to nobody.
	beaconPort = 18449
	// beaconFirst after the start or a change of networks, doubled up to beaconSeldom: who comes is heard by those who are there,
	// so the later ones only make good what was lost.
	beaconFirst  = time.Second
	beaconSeldom = 2 * time.Minute
	// beaconCrowd connected peers make the beacons half as frequent, twice as many a third: what all send together stays what it is.
	beaconCrowd = 4
	// beaconSize is below the 1472 bytes that an Ethernet packet carries beside its headers, also through a tunnel: of fragments
	// one is lost more easily, and then all are.
	beaconSize = 1400
)

// beacon is the part of mdns that broadcasts. mdns.run owns it.
type beacon struct {
	sock *ipv4.PacketConn // nil: not to be had so far
	wait time.Duration    // until the next one
}

// open gets the socket if it is missing, and reads from it.
func (b *beacon) open(m *mdns) {
	if b.sock != nil {
		return
	}
	// As in mdns.open: for a multicast address net lets several processes have the port, and binds it on all addresses. Go lets
	// each UDP socket send broadcasts.
	c, err := net.ListenPacket("udp4", net.JoinHostPort("224.0.0.0", "18449"))
	if err != nil {
		m.log.Debug("no beacon", "error", err)
		return
	}
	b.sock = ipv4.NewPacketConn(c)
	_ = b.sock.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
	sock := b.sock
	m.h.work.start(func() {
		m.read(func(buf []byte) (packet, int, error) {
			n, cm, from, err := sock.ReadFrom(buf)
			p := packet{from: from, beacon: true}
			if cm != nil {
				p.iface, p.to = cm.IfIndex, cm.Dst
			}
			return p, n, err
		})
	})
}

// send broadcasts the announcement on each interface and says when to do so again.
func (b *beacon) send(m *mdns) (again time.Duration) {
	again = b.wait
	b.wait = min(2*b.wait, beaconSeldom*time.Duration(1+len(m.h.roster.Peers())/beaconCrowd))
	b.open(m)
	if b.sock == nil {
		return again
	}
	for _, i := range m.ifaces {
		to := broadcasts(i.Interface)
		if m.h.gate.lanOnly {
			to = slices.DeleteFunc(to, func(ip net.IP) bool { return !localIP(ip) })
		}
		if len(to) == 0 {
			continue
		}
		msg, err := beaconMessage(m.dialect, m.instance, m.addrsOn(i))
		if err != nil {
			m.log.Error("beacon", "error", err)
		}
		if msg == nil {
			continue
		}
		for _, ip := range to {
			if _, err := b.sock.WriteTo(msg, &ipv4.ControlMessage{IfIndex: i.Index}, &net.UDPAddr{IP: ip, Port: beaconPort}); err != nil {
				m.log.Debug("beacon", "interface", i.Name, "error", err)
			}
		}
	}
	return again
}

// beaconMessage announces as many of the addresses as fit, those of IPv4, which broadcasts are of, first; nil if none does.
func beaconMessage(d dialect, instance string, addrs []ma.Multiaddr) ([]byte, error) {
	slices.SortStableFunc(addrs, func(x, y ma.Multiaddr) int { return versionOf(x) - versionOf(y) })
	for n := len(addrs); n > 0; n-- {
		msg, err := d.announcement(instance, addrs[:n])
		if err != nil || len(msg) <= beaconSize {
			return msg, err
		}
	}
	return nil, nil
}

func (b *beacon) close() {
	if b.sock != nil {
		_ = b.sock.Close()
	}
}

func versionOf(a ma.Multiaddr) int {
	if ip, err := manet.ToIP(a); err == nil && ip.To4() != nil {
		return 4
	}
	return 6
}

func localIP(ip net.IP) bool {
	a, err := manet.FromIP(ip)
	return err == nil && localAddr(a)
}

// broadcasts are the broadcast addresses of the networks that an interface is in.
func broadcasts(i net.Interface) (ips []net.IP) {
	if i.Flags&net.FlagBroadcast == 0 {
		return nil
	}
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip := broadcastOf(n); ip != nil {
				ips = append(ips, ip)
			}
		}
	}
	return ips
}

// broadcastOf is the last address of an IPv4 network; nil for others, and for those without a place for it (RFC 3021).
func broadcastOf(n *net.IPNet) net.IP {
	ip := n.IP.To4()
	ones, bits := n.Mask.Size()
	if ip == nil || bits != 32 || ones > 30 {
		return nil
	}
	last := make(net.IP, net.IPv4len)
	for i := range last {
		last[i] = ip[i] | ^n.Mask[i]
	}
	return last
}

// wasBroadcast says whether a packet came to a broadcast address of the interface: what comes by unicast may come from anywhere. A
// system that does not tell is believed.
func wasBroadcast(to net.IP, i net.Interface) bool {
	return to == nil || to.Equal(net.IPv4bcast) || slices.ContainsFunc(broadcasts(i), to.Equal)
}
