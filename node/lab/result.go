package lab

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Result is what was measured while a scenario was played, its setup apart. Bytes are those of the streams, lost packets that were sent
// again among them; the headers of a real transport are not.
type Result struct {
	Scenario *Scenario
	Failures []string      // expectations that were not met
	Virtual  time.Duration // as the nodes saw it
	CPU      time.Duration // of the process: the nodes and the laboratory; 0 where it is not known

	Messages   int
	Pairs      int             // of messages and nodes other than their authors
	SinceSent  []time.Duration // of each delivery, sorted
	SinceReach []time.Duration // of each delivery: since the node was in contact with one that held the message; sorted
	Missed     []time.Duration // contacts with a holder that ended before delivery; sorted
	Settled    time.Duration   // from the network's last change to the last delivery; negative: that was before it
	Copies     int             // of messages, put on the wire
	Bytes      map[string]int  // by endpoint or protocol
	BytesBy    []int           // sent by each node
	Packets    int             // that a real transport would have put the bytes in: each write its own, the longer ones cut at packetBytes
	Reached    [][]int         // [from][to]: how many messages a node got first from which
}

// What a packet costs beside what it carries, for an estimate: IPv4 and UDP 28 bytes, of QUIC's short header 7 (a connection ID of 4), of a
// stream's frame 6, 16 that authenticate. An acknowledgement in a packet of its own is as long as such a packet with nothing in it; each packet brings one
// at most.
const (
	packetBytes  = 1200
	packetHeader = 57
)

func (m *meter) result() *Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &Result{
		CPU: processCPU() - m.cpu, Messages: len(m.messages), Pairs: len(m.messages) * (m.n - 1),
		SinceSent: slices.Sorted(slices.Values(m.sinceSent)), SinceReach: slices.Sorted(slices.Values(m.sinceReach)),
		Missed: slices.Sorted(slices.Values(m.missed)), Settled: m.delivered.Sub(m.changed), Copies: m.copies,
		Bytes: maps.Clone(m.bytes), BytesBy: slices.Clone(m.by), Packets: m.packets,
	}
	for _, row := range m.reached {
		r.Reached = append(r.Reached, slices.Clone(row))
	}
	return r
}

// Percentile of sorted durations; 0 of none.
func Percentile(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// expectDelivered wants that part of all pairs of message and node delivered.
func (m *meter) expectDelivered(part float64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := 0
	for _, msg := range m.messages {
		held += msg.held()
	}
	if want := part * float64(len(m.messages)*m.n); float64(held) < want {
		return fmt.Errorf("%d of %d pairs of message and node", held, len(m.messages)*m.n)
	}
	return nil
}

// expectReach wants that part of the deliveries within a time of coming into reach.
func (m *meter) expectReach(part float64, most time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := Percentile(slices.Sorted(slices.Values(m.sinceReach)), part); got > most {
		return fmt.Errorf("it was %v", round(got))
	}
	return nil
}

// expectWithin wants that whatever a node could get from one it was in contact with it got within a time: no delivery took longer, no
// contact that lasted longer ended without, and nobody waits longer now.
func (m *meter) expectWithin(most time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	late, longest := 0, time.Duration(0)
	count := func(took time.Duration) {
		if longest = max(longest, took); took > most {
			late++
		}
	}
	for _, took := range slices.Concat(m.sinceReach, m.missed) {
		count(took)
	}
	for _, msg := range m.messages {
		for node, since := range msg.inReach {
			if !since.IsZero() && !msg.holders.has(node) {
				count(now.Sub(since))
			}
		}
	}
	if late > 0 {
		return fmt.Errorf("%d times it was more, at most %v", late, round(longest))
	}
	return nil
}

// expectCopies wants at most so many copies for each pair of message and other node.
func (m *meter) expectCopies(most float64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := each(m.copies, len(m.messages)*(m.n-1)); got > most {
		return fmt.Errorf("there were %.2f", got)
	}
	return nil
}

func each(n, of int) float64 { return float64(n) / float64(max(of, 1)) }

// round leaves three digits or so.
func round(d time.Duration) time.Duration {
	for unit := time.Hour; unit > time.Microsecond; unit /= 10 {
		if d >= unit {
			return d.Round(unit / 100)
		}
	}
	return d
}

// Write writes the result as a table.
func (r *Result) Write(w io.Writer) {
	n := r.Scenario.Nodes
	fmt.Fprintf(w, "%d nodes, %d rooms, seed %d: %v as the nodes saw it, %v of CPU time\n",
		n, r.Scenario.Rooms, r.Scenario.Seed, r.Virtual.Round(time.Second), r.CPU.Round(100*time.Millisecond))
	fmt.Fprintf(w, "delivered       %d of %d pairs of message and other node; %d messages; the last %v after the network's last change\n",
		len(r.SinceSent), r.Pairs, r.Messages, round(r.Settled))
	percentiles := func(of string, d []time.Duration) {
		fmt.Fprintf(w, "%-15s p50 %v, p95 %v, p99 %v, most %v\n", of,
			round(Percentile(d, 0.5)), round(Percentile(d, 0.95)), round(Percentile(d, 0.99)), round(Percentile(d, 1)))
	}
	percentiles("… since sent", r.SinceSent)
	percentiles("… since reach", r.SinceReach)
	fmt.Fprintf(w, "missed          %d times a contact with a holder ended before delivery; the longest took %v\n",
		len(r.Missed), round(Percentile(r.Missed, 1)))
	fmt.Fprintf(w, "copies          %.2f sent per node and message\n", each(r.Copies, r.Pairs))
	sum := 0
	for _, b := range r.Bytes {
		sum += b
	}
	fmt.Fprintf(w, "bytes           %.0f per message; %.0f per message and other node; by one node at most %.1f %% of all\n",
		each(sum, r.Messages), each(sum, r.Pairs), 100*each(slices.Max(r.BytesBy), sum))
	purposes := slices.SortedFunc(maps.Keys(r.Bytes), func(a, b string) int { return cmp.Or(r.Bytes[b]-r.Bytes[a], cmp.Compare(a, b)) })
	for _, p := range purposes {
		fmt.Fprintf(w, "  %-32s %12d, %.0f per message\n", p, r.Bytes[p], each(r.Bytes[p], r.Messages))
	}
	headers := each(r.Packets, r.Messages) * packetHeader
	fmt.Fprintf(w, "packets         %.0f per message, about; with their headers, and with as many acknowledgements, %.0f and %.0f bytes\n",
		each(r.Packets, r.Messages), each(sum, r.Messages)+headers, each(sum, r.Messages)+2*headers)
	fmt.Fprintf(w, "CPU             %v per message, %v per delivery\n",
		(r.CPU / time.Duration(max(r.Messages, 1))).Round(time.Microsecond), (r.CPU / time.Duration(max(len(r.SinceSent), 1))).Round(time.Microsecond))
	for _, f := range r.Failures {
		fmt.Fprintf(w, "FAILED          %s\n", f)
	}
}
