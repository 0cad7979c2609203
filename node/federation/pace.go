package federation

import (
	"context"
	"io"
	"sync"
	"time"
)

// How much is sent to a peer, or asked of it, at one go follows what its link carries, and so does how long we wait: over 16 kbit/s with seconds of
// latency as over a cable. A message behind a large transaction, or a chunk that others wait for, is then never far away.

const (
	// paceFirst is the size of the first piece, in bytes: 4 s at 16 kbit/s. The next are twice as large while one passes in less than paceQuick,
	// and half as large when it takes longer than paceSlow or does not pass at all; never less than paceLeast.
	paceFirst = 8 << 10
	paceLeast = 2 << 10
	paceQuick = time.Second
	paceSlow  = 4 * time.Second
	// paceShort is what passes at once, as far as latency is measured: a message alone with its headers.
	paceShort = 4 << 10
	// leastSpeed is the slowest link that we wait for, in bytes a second: a quarter of one of 16 kbit/s, for it may be shared and lossy.
	// Each byte that must pass gives its request so much longer; who trickles bytes gains nothing.
	leastSpeed = 512
)

// passing is how long so many bytes may take beyond what an answer may take that is short.
func passing(bytes int) time.Duration { return time.Duration(bytes) * time.Second / leastSpeed }

// passingReader lets an answer take as much longer as passing says for what has come of it, up to stateTimeout in all. It ends its context when
// the time is over.
type passingReader struct {
	from         io.Reader
	timer        *time.Timer
	ends, latest time.Time
}

func newPassing(ctx context.Context, timeout time.Duration) (context.Context, *passingReader, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	now := time.Now()
	p := &passingReader{ends: now.Add(timeout), latest: now.Add(max(timeout, stateTimeout))}
	p.timer = time.AfterFunc(timeout, func() { cancel(context.DeadlineExceeded) })
	return ctx, p, func() { p.timer.Stop(); cancel(context.Canceled) }
}

func (p *passingReader) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	if n > 0 {
		p.ends = p.ends.Add(passing(n))
		if p.ends.After(p.latest) {
			p.ends = p.latest
		}
		p.timer.Reset(time.Until(p.ends))
	}
	return n, err
}

// pace is what is known of the link to a connected peer.
type pace struct {
	mu       sync.Mutex
	latency  time.Duration // the least that a short exchange has taken; 0: none is known
	in, out  int           // bytes of the next piece in each direction
	measured bool          // whether one of them has changed: then the other direction begins where this one is
}

func newPace() *pace { return &pace{in: paceFirst, out: paceFirst} }

// chunk is how many bytes may be asked for at once, and batch how many may be sent; at most the bound given.
func (p *pace) chunk(most int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(p.in, most)
}

func (p *pace) batch(most int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(p.out, most)
}

// came notes that so many bytes came in answer to a question, and how long that took from the question on; failed that it ended before they did.
func (p *pace) came(bytes int, took time.Duration, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(&p.in, bytes, took, failed)
}

// went is the same for bytes that were sent, up to their acknowledgement.
func (p *pace) went(bytes int, took time.Duration, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(&p.out, bytes, took, failed)
}

// note is came and went; mu is held.
func (p *pace) note(piece *int, bytes int, took time.Duration, failed bool) {
	if !failed && bytes <= paceShort && (p.latency == 0 || took < p.latency) {
		p.latency = took
	}
	before := *piece
	switch took -= min(p.latency, took); {
	case failed || took > paceSlow:
		*piece = max(*piece/2, paceLeast)
	case took < paceQuick && bytes >= *piece/2: // one that is smaller says nothing of a larger one
		*piece = min(2**piece, chunkBytes)
	}
	if *piece != before && !p.measured {
		p.measured, p.in, p.out = true, *piece, *piece // most links are alike in both directions
	}
}
