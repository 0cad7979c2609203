//go:build !linux

package p2ptransport

import "net"

// keepLocal does nothing here: gate closes a connection from outside once it was accepted.
func keepLocal(net.Listener) {}
