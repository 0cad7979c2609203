package p2ptransport

import "sync"

// group owns work that outside events begin. Once refuse or wait has been called no more begins.
type group struct {
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// enter begins a piece of work, which ends with leave, unless the group is closed.
func (g *group) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.running.Add(1)
	}
	return !g.closed
}

func (g *group) leave() { g.running.Done() }

// start runs f in a goroutine of the group, unless the group is closed.
func (g *group) start(f func()) bool {
	if !g.enter() {
		return false
	}
	go func() {
		defer g.leave()
		f()
	}()
	return true
}

// refuse lets nothing more begin.
func (g *group) refuse() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
}

// wait refuses more and waits for what runs.
func (g *group) wait() {
	g.refuse()
	g.running.Wait()
}
