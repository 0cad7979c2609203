package clientapi

import (
	"slices"
	"sync"
)

// pollsOfDevice calls of /sync wait for one device; with one more the oldest is answered. A client has one, some have another with a filter of its own.
const pollsOfDevice = 8

// polls are the calls that are under way, for concurrent use.
type polls struct {
	mu sync.Mutex
	of map[deviceKey][]*poll // the oldest first
}

type poll struct{ end func() }

func newPolls() *polls { return &polls{of: map[deviceKey][]*poll{}} }

// begin notes a call, which end has answered with what there is; done is called when it has been answered.
func (p *polls) begin(key deviceKey, end func()) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := &poll{end}
	p.of[key] = append(p.of[key], one)
	if under := p.of[key]; len(under) > pollsOfDevice {
		under[0].end()
		p.of[key] = slices.Delete(under, 0, 1)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		left := slices.DeleteFunc(p.of[key], func(other *poll) bool { return other == one })
		if p.of[key] = left; len(left) == 0 {
			delete(p.of, key)
		}
	}
}
