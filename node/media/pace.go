package media

import "time"

// leastRate, in bytes a second, is below what each of some transfers has that share 16 kbit/s with a conversation, and lets nobody hold a place for ever:
// 50 MB take 54 hours at it.
const leastRate = 256

// Pace gives each step of a transfer Stall of time, and the whole Grace and what its bytes take at leastRate. It begins
// with the first step. It is not for concurrent use.
type Pace struct {
	Stall, Grace time.Duration

	began time.Time
	moved int64
}

// Deadline is until when the next step may take, now, or so much longer if it waits for something else.
func (p *Pace) Deadline(now time.Time, longer time.Duration) time.Time {
	if p.began.IsZero() {
		p.began = now
	}
	p.began = p.began.Add(longer)
	step := now.Add(p.Stall + longer)
	whole := p.began.Add(p.Grace + time.Duration(p.moved)*(time.Second/leastRate))
	if whole.Before(step) {
		return whole
	}
	return step
}

// Moved counts bytes that were sent or taken.
func (p *Pace) Moved(n int) { p.moved += int64(n) }
