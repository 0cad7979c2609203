package clientapi

import (
	"slices"
	"sync"
	"time"
)

const (
	// pollsOfDevice calls of /sync wait for one device, and as many of /events; with one more the oldest is answered. A client has one, some have another with a filter of its own.
	pollsOfDevice = 8
	// pollLeast is how long a call has waited then: clients call again at once, and if there are more of them than pollsOfDevice, the windows of one, say,
	// they would make each other do so without end. Meanwhile more calls wait, as many as userRate lets in.
	pollLeast = 5 * time.Second
)

// polls are the calls that are under way, for concurrent use.
type polls struct {
	least time.Duration // pollLeast

	mu sync.Mutex
	of map[deviceKey][]*poll // the oldest first
}

type poll struct {
	began  time.Time
	end    func()
	ending *time.Timer // nil: it has its place
}

func newPolls() *polls { return &polls{least: pollLeast, of: map[deviceKey][]*poll{}} }

// begin notes a call, which end has answered with what there is; done is called when it has been answered.
func (p *polls) begin(key deviceKey, end func()) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := &poll{began: time.Now(), end: end}
	p.of[key] = append(p.of[key], one)
	if under := p.of[key]; len(under) > pollsOfDevice {
		under[0].ending = time.AfterFunc(p.least-time.Since(under[0].began), under[0].end)
		p.of[key] = slices.Delete(under, 0, 1)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if one.ending != nil {
			one.ending.Stop()
		}
		left := slices.DeleteFunc(p.of[key], func(other *poll) bool { return other == one })
		if p.of[key] = left; len(left) == 0 {
			delete(p.of, key)
		}
	}
}
