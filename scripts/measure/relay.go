package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// relay stands between a node and one that dials it, and counts what passes.
type relay struct {
	addr  string       // to dial, instead of the node's
	bytes atomic.Int64 // of the datagrams, with their headers

	near, far *net.UDPConn
	group     sync.WaitGroup
}

// datagramHeaders is what IPv4 and UDP add to each.
const datagramHeaders = 20 + 8

var quicAddr = regexp.MustCompile(`^/ip4/127\.0\.0\.1/udp/(\d+)(/quic-v1/p2p/.*)$`)

// relayUDP begins to relay to the one of the addresses that is QUIC on loopback.
func relayUDP(addrs []string) (*relay, error) {
	for _, addr := range addrs {
		parts := quicAddr.FindStringSubmatch(addr)
		if parts == nil {
			continue
		}
		port, err := strconv.ParseUint(parts[1], 10, 16)
		if err != nil {
			return nil, err
		}
		r := &relay{}
		loopback := netip.MustParseAddr("127.0.0.1")
		if r.near, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0))); err != nil {
			return nil, err
		}
		if r.far, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, uint16(port)))); err != nil {
			r.near.Close()
			return nil, err
		}
		r.addr = fmt.Sprintf("/ip4/127.0.0.1/udp/%d%s", r.near.LocalAddr().(*net.UDPAddr).Port, parts[2])
		var dialer atomic.Pointer[netip.AddrPort]
		r.group.Go(func() {
			pump(r.near, func(b []byte, from netip.AddrPort) {
				dialer.Store(&from)
				r.count(b)
				_, _ = r.far.Write(b)
			})
		})
		r.group.Go(func() {
			pump(r.far, func(b []byte, _ netip.AddrPort) {
				if to := dialer.Load(); to != nil {
					r.count(b)
					_, _ = r.near.WriteToUDPAddrPort(b, *to)
				}
			})
		})
		return r, nil
	}
	return nil, errors.New("the node does not listen on QUIC")
}

func (r *relay) count(b []byte) { r.bytes.Add(int64(len(b) + datagramHeaders)) }

// perMinute begins to count; what it returns says how much has passed in a minute since.
func (r *relay) perMinute() func() string {
	began, had := time.Now(), r.bytes.Load()
	return func() string {
		return fmt.Sprintf("%.2f kB", float64(r.bytes.Load()-had)/1000*float64(time.Minute)/float64(time.Since(began)))
	}
}

// pump hands over what comes until the socket is closed.
func pump(c *net.UDPConn, take func([]byte, netip.AddrPort)) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			take(b[:n], from)
		}
	}
}

func (r *relay) close() {
	r.near.Close()
	r.far.Close()
	r.group.Wait()
}
