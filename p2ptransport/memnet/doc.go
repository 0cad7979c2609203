// Package memnet is a network in memory whose nodes implement p2ptransport.Transport: for tests of what stands on the
// transport, with cuts, delay and streams that break. It uses goroutines, timers and channels only, so that whole
// nodes run inside testing/synctest.
//
// A node dials as the libp2p host does: with MDNS it is connected to every other node that has it, unless cut off;
// static peers and peers it was connected to are dialled again when they can be reached. There is no real
// cryptography: the network itself vouches for the peer of a stream.
//
// Links and the nodes' own lines have delay, jitter, rate and loss (link.go). What is not modelled: handshakes, headers and
// acknowledgements of a real transport, congestion control, and the time in which a broken connection goes unnoticed (Stall does that).
package memnet
