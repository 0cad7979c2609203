//go:build !linux

package p2ptransport

import manet "github.com/multiformats/go-multiaddr/net"

// keepLocal does nothing here: gate closes a connection from outside once it was accepted.
func keepLocal(l manet.Listener) manet.Listener { return l }
