// Package lab is the mesh laboratory: whole nodes in one process on a simulated network, in virtual time, that play a scenario and are
// measured. scripts/lab runs one:
//
//	scripts/lab node/lab/scenarios/two-segments-heal.txt
//
// # Scenarios
//
// A scenario is a line for each setting or step; what stands behind # is a comment. Settings come first:
//
//	nodes 100              numbered from 0; default 2
//	rooms 1                all nodes are in all rooms
//	seed 1
//	gossip on              or off: then who sends a message sends it to each server of the room
//
// Then the nodes are started, on lines without delay, and brought into the rooms. What that costs is not measured. The steps follow:
//
//	line NODES [delay D] [jitter D] [loss P] [rate R] [up R] [down R]
//	                       the nodes' own lines, in each direction, which all their links share. What is not said is none:
//	                       no delay, no loss, no bound. A message passes the lines of both nodes, so delays add up
//	link NODES NODES [delay D] [jitter D] [loss P] [rate R]
//	                       the links between nodes of the two lists, each for itself, beside their lines
//	sessions D online P    from now on nodes come and go: each is online for D, then away for a random time, so that a part of P
//	                       of them is online on average
//	messages N/h [size B]  from now on messages are sent at random times, N an hour (or N/m, N/s), each by a random node that is
//	                       online, to a random room
//	sessions off, messages off
//	offline NODES          off the network, running; online NODES: back
//	online                 all of them, and sessions off
//	split NODES / NODES …  cuts all links between the groups; heal: mends all links
//	run D                  lets time pass
//	measure                forgets what was measured so far; before the first message
//	expect equal           all nodes have the same state hash and hold all messages
//	expect delivered P     so many of all pairs of message and node
//	expect p50|p95|p99 D   so many deliveries at most so long after coming into reach
//	expect within D        whatever a node in contact held was delivered within D of its coming into reach, always: no contact that
//	                       lasted longer ended without, and nobody waits longer at the end
//	expect copies N        of each message to each other node at most so many, on average
//
// NODES is "all" or numbers and ranges: 0-9,12. D is a duration as Go writes it: 1h30m, 20ms. P is a percentage: 10%. R is a rate: 16kbit/s,
// 20Mbit/s. An expectation that is not met does not end the play.
//
// # What is measured
//
// A message is delivered to a node when the node has committed it: from then on its client sees it. Its delay is given since it was
// sent, and since it came into reach: since the node's present contact with any node that holds the message began, or, if that was later,
// since one of those it was in contact with got it. Contact is that both are online and in one segment. Copies are found by a marker in the bytes of all
// streams; in gossip, which is sealed, by the end of the payload, which is taken to hold what its publisher had just sent. Bytes are those of the streams, repeated packets among them: no QUIC, TCP or IP
// headers, handshakes or encryption. How many packets they would be is estimated, and what they are with their headers; handshakes and keep-alives
// are not in that. CPU is that of the whole process.
//
// # What is simulated how
//
// The network is p2ptransport/memnet: nodes that can reach each other are connected after 20 ms, by mDNS, as it were; a node that goes offline is
// missed at once, as if it had said so, and goes on running. Loss is a delay of a round trip and repeated bytes; there is no congestion
// control. Computing takes no time: the clock stands while anybody computes. Stores are in memory. So delays are those of
// network and protocol alone, and do not depend on the machine.
//
// # What is reproducible
//
// From the seed follow who is online when, who sends what when, and how long random pauses are. Not reproducible are the nodes' keys, and so
// all IDs; the order of goroutines that run at the same moment, and with it jitter and loss, which follow the order of
// writes; and what depends on map order. So two runs of one seed have the same messages and contacts, and differ a little in delays and bytes.
package lab
