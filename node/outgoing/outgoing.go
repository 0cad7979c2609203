// Package outgoing makes HTTP clients for addresses that somebody else has named: a link in a message, a user's push gateway. Which part of
// the network they may reach is looked at when a connection is made and its address is known, so neither a redirect nor a name that resolves to
// something else the second time leads elsewhere.
package outgoing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// Reach says where connections may go. The zero value is nowhere.
type Reach struct {
	Public  bool // addresses that are meant to be reached from everywhere
	Private bool // this machine, and the private networks that it may be in
	Names   bool // host names are looked up; else the host must be an IP address
}

// ErrOutOfReach is what asks for an address that Reach does not hold.
var ErrOutOfReach = errors.New("this address may not be called")

// maxHeader bounds the header of an answer, in bytes.
const maxHeader = 64 << 10

// Transport makes a transport that connects within r only, each step of it (connecting, TLS, the answer's header) in so much time. It asks no
// proxy, which would connect for it.
func (r Reach) Transport(timeout time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: timeout, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !r.holds(at.Addr()) {
			return ErrOutOfReach
		}
		return nil
	}}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			if err := r.checkHost(host); err != nil {
				return nil, err
			}
			return dialer.DialContext(ctx, network, address)
		},
		TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: maxHeader,
	}
}

// Check says what of an address can be said without looking up its name: that it is an http or https URL without a user, and of a host that
// may be within reach. The error wraps ErrOutOfReach.
func (r Reach) Check(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return fmt.Errorf("%w: it is no http or https URL", ErrOutOfReach)
	}
	return r.checkHost(u.Hostname())
}

// checkHost is Check for the host alone.
func (r Reach) checkHost(host string) error {
	ip, err := netip.ParseAddr(host)
	switch {
	case err == nil && !r.holds(ip):
		return fmt.Errorf("%w: it is outside of the networks that may be", ErrOutOfReach)
	case err != nil && !r.Names:
		return fmt.Errorf("%w: no names are looked up here", ErrOutOfReach)
	}
	return nil
}

func (r Reach) holds(ip netip.Addr) bool {
	return r.Public && isPublic(ip) || r.Private && isPrivate(ip)
}

// isPrivate is for what has a lasting address in one's own network. Link-local addresses are not meant: on rented machines one of them gives out the
// machine's credentials.
func isPrivate(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.IsPrivate() || ip.IsLoopback()
}

// notPublic are the ranges that netip does not name (IANA special-purpose address registries): shared, documentation, benchmarks, reserved, and those in which
// an IPv4 address stands, behind which there may be a private one.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("fec0::/10"),
}

func isPublic(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}
